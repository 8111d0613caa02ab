package consul

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/weftmesh/weft"
)

// What the catalogue holds is read again and again, and who waits for a service waits
// with many others. So these answers are encoded once for each state of what they tell:
// at the first request after a change, for all that ask the same. A request that needs
// nothing else never builds a record.

// keptQuery is a question whose answers are kept. What it asks for depends on
// instances, their checks and their nodes, and on nothing else: all of that moves the
// index of the view's topic.
type keptQuery struct {
	of      keptKind
	service weft.ServiceName // of one of all services of a namespace, without a name
	passing bool
	rest    string // the parameters that narrow it further, in one spelling; as a rule none
}

// keptKind is an endpoint whose answers are kept.
type keptKind uint8

const (
	healthServiceKept keptKind = iota
	healthConnectKept
	healthChecksKept
	healthStateKept // the state stands where another one has its service
	catalogServiceKept
	catalogConnectKept
	catalogServicesKept
)

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
	pieces pieces // that body was put together from, if it was

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
	maxKept      = 32 << 20    // bytes of all
	maxKeptOne   = maxKept / 2 // bytes of one: what is longer is made for those who wait for it now
	keptOverhead = 512         // bytes of an entry beside its body
)

// get returns the answer at index now, or a newer one. make is given the one before,
// nil when there is none.
func (k *keptAnswers) get(q keptQuery, now uint64, make func(was *keptAnswer) (*keptAnswer, error)) (*keptAnswer, error) {
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
	was := e.answer.Load()
	if was != nil && was.at >= now {
		return was, nil
	}
	a, err := make(was)
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
	size := q.size() + len(a.body)*5/4 + a.pieces.size() // a quarter for the compressed form
	if size > maxKeptOne {
		k.size -= e.size
		delete(k.by, q)
		return
	}
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

// keptQuery returns what q asks of an endpoint as a question whose answers are kept;
// ok is false when it is none.
func (q *query) keptQuery(of keptKind, service weft.ServiceName) (k keptQuery, ok bool) {
	if !q.seesAll() { // what is shown depends on who asks, and on policies
		return k, false
	}
	k = keptQuery{of: of, service: service}
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
	passing, err := q.flag("passing")
	k.passing = passing
	return k, err == nil
}

// seesAll says whether nothing of the catalogue is hidden from the sender.
func (q *query) seesAll() bool {
	return q.acl == nil || q.acl.management ||
		q.acl.allowsBelow(serviceResource, "", readable) && q.acl.allowsBelow(nodeResource, "", readable)
}

// lasting is a view whose answers are kept.
type lasting struct {
	view
	// now returns the index that an answer has which tells all that there is to tell,
	// and that of the topic, which may be greater.
	now func() (at, topic uint64)
	// assemble is for an answer of all services: it makes the same body as build, of
	// one piece for each of them.
	assemble func(was pieces) ([]byte, pieces, error)
	whole    bool // the plain answer tells all that moves the topic's index
}

// answerKept answers a question with the answer that is kept, or else with a new one,
// which is then kept.
func (a *api) answerKept(w http.ResponseWriter, q *query, of keptKind, service weft.ServiceName, v lasting) error {
	k, ok := q.keptQuery(of, service)
	if !ok {
		return a.answer(w, q, v.view)
	}
	ctx, blocking := q.request.Context(), q.index > 0
	if blocking {
		limited, cancel := a.waiting(q)
		defer cancel()
		ctx = limited
	}
	for {
		at, topic := v.now()
		answer, err := a.kept.get(k, at, func(was *keptAnswer) (*keptAnswer, error) { return a.makeKept(q, k, v, was) })
		if err != nil {
			return err
		}
		if !blocking || answer.index > q.index {
			q.setHeaders(w, answer.index)
			a.writeKept(w, q.request, answer)
			return nil
		}
		blocking = a.registry.Wait(ctx, v.topic, topic) > topic // else time is up, or the registry closes
		q.fresh = a.registry.Stale()
		if err := a.stillMay(q); err != nil {
			return err
		}
	}
}

func (a *api) makeKept(q *query, k keptQuery, v lasting, was *keptAnswer) (answer *keptAnswer, err error) {
	at, _ := v.now() // before what is told: what changes meanwhile is told again
	answer = &keptAnswer{at: at, index: at}
	if v.assemble != nil {
		var before pieces
		if was != nil {
			before = was.pieces
		}
		answer.body, answer.pieces, err = v.assemble(before)
	} else {
		list, _ := v.build()
		answer.body, err = q.marshal(list)
	}
	if err != nil {
		return nil, err
	}
	if !v.whole || k.passing || k.rest != "" {
		answer.index = a.indexes.indexOf(k.String(), answer.body, at)
	}
	if v.guard != nil {
		answer.guard = v.guard()
	}
	answer.header, answer.length = []string{strconv.FormatUint(max(answer.index, 1), 10)}, []string{strconv.Itoa(len(answer.body))}
	return answer, nil
}

func (k keptQuery) String() string {
	return strconv.Itoa(int(k.of)) + " " + k.service.String() + " " + strconv.FormatBool(k.passing) + k.rest
}

func (a *api) writeKept(w http.ResponseWriter, r *http.Request, answer *keptAnswer) {
	h, body := w.Header(), answer.body
	h["Content-Type"] = contentJSON
	tellGuard(w, answer.guard)
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
