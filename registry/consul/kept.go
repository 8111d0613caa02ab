package consul

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// The answers of health/service are what everybody reads, again and again, and who
// waits for a service waits with many others. So they are encoded once for each
// state of the service: at the first request after a change, for all that ask the
// same. A request that needs nothing else never builds a record.

// keptQuery is a question whose answers are kept. What it asks for depends on the
// instances of its service, their checks and their nodes, and on nothing else: all of
// that moves the index of the service's topic.
type keptQuery struct {
	service weft.ServiceName
	passing bool
	rest    string // the parameters that narrow it further, in one spelling; as a rule none
}

// size is what an entry takes beside its body, in bytes, about.
func (q *keptQuery) size() int {
	return keptOverhead + len(q.service.Namespace) + len(q.service.Name) + len(q.rest)
}

// keptAnswer is constant, but for zipped.
type keptAnswer struct {
	at     uint64   // index of the topic that it was made at
	index  uint64   // what is told; lower when only other parts of the topic have changed since
	header []string // index as a header's value
	length []string // of body
	guard  []string // why failed instances are told as passing; nil: none is
	body   []byte

	zipOnce      sync.Once
	zipped       []byte   // by gzip
	zippedLength []string // of zipped
}

// keptAnswers are bounded by their size; the ones that were not asked for longest go
// first.
type keptAnswers struct {
	clock atomic.Int64 // counts the questions

	mu   sync.RWMutex
	size int // bytes, about
	by   map[keptQuery]*keptEntry
}

type keptEntry struct {
	used   atomic.Int64 // the clock, when it was asked for last
	answer atomic.Pointer[keptAnswer]

	making sync.Mutex // held by who makes the next answer, so that one does it for all
	size   int        // under keptAnswers.mu
}

const (
	maxKept      = 32 << 20 // bytes of all
	keptOverhead = 512      // bytes of an entry beside its body
)

// get returns the answer at index now, or a newer one.
func (k *keptAnswers) get(q keptQuery, now uint64, make func() (*keptAnswer, error)) (*keptAnswer, error) {
	tick := k.clock.Add(1)
	k.mu.RLock()
	e := k.by[q]
	k.mu.RUnlock()
	if e == nil {
		e = k.enter(q)
	}
	e.used.Store(tick)
	if a := e.answer.Load(); a != nil && a.at >= now {
		return a, nil
	}
	e.making.Lock()
	defer e.making.Unlock()
	if a := e.answer.Load(); a != nil && a.at >= now {
		return a, nil
	}
	a, err := make()
	if err == nil {
		k.keep(q, e, a)
	}
	return a, err
}

func (k *keptAnswers) enter(q keptQuery) *keptEntry {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.by[q]; e != nil {
		return e
	}
	if k.by == nil {
		k.by = make(map[keptQuery]*keptEntry)
	}
	e := &keptEntry{size: q.size()}
	k.by[q], k.size = e, k.size+e.size
	return e
}

// keep is called by who holds e.making. Those that wait for it get the answer even
// when it is too long to stay.
func (k *keptAnswers) keep(q keptQuery, e *keptEntry, a *keptAnswer) {
	e.answer.Store(a)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.by[q] != e { // it went meanwhile
		return
	}
	size := q.size() + len(a.body)*5/4 // a quarter for the compressed form
	k.size += size - e.size
	if e.size = size; k.size > maxKept {
		k.shrink()
	}
}

// shrink drops the oldest, a quarter of all, so that this is rare.
func (k *keptAnswers) shrink() {
	type aged struct {
		query keptQuery
		used  int64
	}
	all := make([]aged, 0, len(k.by))
	for q, e := range k.by {
		all = append(all, aged{q, e.used.Load()})
	}
	slices.SortFunc(all, func(x, y aged) int { return int(x.used - y.used) })
	for _, old := range all {
		if k.size <= maxKept*3/4 {
			return
		}
		k.size -= k.by[old.query].size
		delete(k.by, old.query)
	}
}

// minKeptCompressed is the size from which a kept body goes compressed to those who
// take it so: that is done once, and what is longer does not leave net/http's buffers
// in one write.
const minKeptCompressed = 4 << 10

// compressed is the body for those who take gzip, with its length.
func (a *keptAnswer) compressed() ([]byte, []string) {
	a.zipOnce.Do(func() {
		var out bytes.Buffer
		z := compressors.Get().(*gzip.Writer)
		z.Reset(&out)
		z.Write(a.body) // into memory
		z.Close()
		z.Reset(nil)
		compressors.Put(z)
		a.zipped, a.zippedLength = out.Bytes(), []string{strconv.Itoa(out.Len())}
	})
	return a.zipped, a.zippedLength
}

// keptParams are those that a kept answer may be asked with, and whether its body
// depends on them. A value of an unknown parameter says nothing of the answer, but
// with "near" or "pretty" it is another one.
var keptParams = map[string]bool{
	"passing": false, "tag": true, "filter": true, "node-meta": true,
	"index": false, "wait": false, "stale": false, "consistent": false, "cached": false,
	"dc": false, "ns": false, "token": false,
}

// keptQuery returns what q asks of a service as a question whose answers are kept;
// ok is false when it is none.
func (a *api) keptQuery(q *query, service weft.ServiceName, passing bool) (k keptQuery, ok bool) {
	if q.acl != nil { // what is shown depends on who asks, and on policies
		return k, false
	}
	k = keptQuery{service: service, passing: passing}
	var narrow []string
	for name := range q.params {
		depends, known := keptParams[name]
		if !known {
			return k, false
		}
		if depends {
			narrow = append(narrow, name)
		}
	}
	slices.Sort(narrow)
	for _, name := range narrow {
		for _, value := range q.params[name] {
			k.rest += "&" + name + "=" + strconv.Quote(value)
		}
	}
	return k, true
}

// answerKept answers a question with the answer that is kept, or else with one that
// entries makes, which is then kept.
func (a *api) answerKept(w http.ResponseWriter, q *query, k keptQuery, entries func() ([]entryRecord, uint64)) error {
	topic := registry.ServiceTopic(k.service)
	ctx, blocking := q.request.Context(), q.index > 0
	if blocking {
		limited, cancel := a.waiting(q)
		defer cancel()
		ctx = limited
	}
	for {
		_, now := a.registry.Instances(k.service)
		answer, err := a.kept.get(k, now, func() (*keptAnswer, error) { return a.makeKept(q, k, entries) })
		if err != nil {
			return err
		}
		if !blocking || answer.index > q.index {
			q.setHeaders(w, answer.index)
			a.writeKept(w, q.request, answer)
			return nil
		}
		blocking = a.registry.Wait(ctx, topic, answer.at) > answer.at // else time is up, or the registry closes
		q.fresh = a.registry.Stale()
	}
}

func (a *api) makeKept(q *query, k keptQuery, entries func() ([]entryRecord, uint64)) (*keptAnswer, error) {
	list, at := entries()
	body, err := q.marshal(list)
	if err != nil {
		return nil, err
	}
	answer := &keptAnswer{at: at, index: at, body: body, length: []string{strconv.Itoa(len(body))}}
	if k.passing || k.rest != "" {
		answer.index = a.indexes.indexOf(k.String(), body, at)
	}
	answer.header = []string{strconv.FormatUint(max(answer.index, 1), 10)}
	if g, guarded := a.registry.Guard(k.service); guarded {
		answer.guard = guardHeader(g)
	}
	return answer, nil
}

func (k keptQuery) String() string {
	return "health/service " + k.service.String() + " " + strconv.FormatBool(k.passing) + k.rest
}

// guardHeader tells why failed instances are among those that pass.
func guardHeader(g registry.Guard) []string {
	return []string{strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, g.Reason)}
}

func (a *api) writeKept(w http.ResponseWriter, r *http.Request, answer *keptAnswer) {
	h, body := w.Header(), answer.body
	h["Content-Type"] = contentJSON
	if answer.guard != nil {
		h["X-Weft-Guard"] = answer.guard
	}
	h["Content-Length"] = answer.length
	if len(body) >= minKeptCompressed && accepted(r) {
		body, h["Content-Length"] = answer.compressed()
		h["Content-Encoding"], h["Vary"] = codingGzip, varyCoding
	}
	w.WriteHeader(http.StatusOK)
	w.Write(body) // an error here means that the client has gone
}

// Values of headers that many answers share. Nobody changes them.
var (
	contentJSON = []string{"application/json"}
	codingGzip  = []string{"gzip"}
	varyCoding  = []string{"Accept-Encoding"}
	isTrue      = []string{"true"}
	isZero      = []string{"0"}
	backend     = []string{"blocking-query"}
	allowed     = []string{"allow"}
	leaderRead  = []string{"leader"}
	staleRead   = []string{"stale"}
)

// quick answers the plain reads of health/service from what is kept, without taking
// the request apart as the others need it. It returns false, and has done nothing,
// when it is another request, or nothing is kept for it.
func (a *api) quick(w http.ResponseWriter, r *http.Request) bool {
	name, ok := strings.CutPrefix(r.URL.Path, "/v1/health/service/")
	if !ok || name == "" || a.acl != nil || r.URL.RawPath != "" || r.Method != http.MethodGet {
		return false
	}
	p, ok := plainParams(r.URL.RawQuery)
	if !ok {
		return false
	}
	k := keptQuery{service: weft.ServiceName{Namespace: weft.DefaultNamespace, Name: name}, passing: p.passing}
	a.kept.mu.RLock()
	e := a.kept.by[k]
	a.kept.mu.RUnlock()
	if e == nil {
		return false
	}
	f := a.registry.Stale()
	if !p.stale { // newer than this server perhaps is
		var err error
		if f, err = a.registry.Fresh(r.Context(), false); err != nil {
			return false
		}
	}
	answer := e.answer.Load()
	if _, now := a.registry.Instances(k.service); answer == nil || answer.at < now || answer.index <= p.index && p.index > 0 {
		return false
	}
	e.used.Store(a.kept.clock.Add(1))
	h := w.Header()
	h["X-Consul-Index"] = answer.header
	h["X-Consul-Default-Acl-Policy"], h["X-Consul-Query-Backend"] = allowed, backend
	h["X-Consul-Effective-Consistency"] = leaderRead
	if p.stale {
		h["X-Consul-Effective-Consistency"] = staleRead
	}
	freshHeaders(h, f)
	a.writeKept(w, r, answer)
	return true
}

// plain are the parameters of a plain read.
type plain struct {
	passing, stale bool
	index          uint64
}

// plainParams reads a query that has nothing but these, in the spellings of the usual
// clients. "wait" is not looked at: who has to wait is not answered here.
func plainParams(query string) (p plain, ok bool) {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		name, value, _ := strings.Cut(pair, "=")
		flag := value == "" || value == "1" || value == "true"
		switch {
		case name == "passing" && flag && !p.passing:
			p.passing = true
		case name == "stale" && flag && !p.stale:
			p.stale = true
		case name == "index" && p.index == 0:
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return p, false
			}
			p.index = n
		default:
			return p, false
		}
	}
	return p, true
}
