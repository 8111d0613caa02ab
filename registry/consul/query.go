package consul

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

const (
	defaultWait = 5 * time.Minute
	maxWait     = 10 * time.Minute
)

// query is one request with the parameters that endpoints share.
type query struct {
	request  *http.Request
	argument string // what follows the endpoint's path, decoded
	params   url.Values

	index       uint64 // block until the topic's index is greater; 0 does not block
	wait        time.Duration
	consistency string // as it was asked for: leader, stale or consistent
	fresh       registry.Freshness
	namespace   string
	nodeMeta    map[string]string
	pretty      bool

	acl      *permissions // of the sender; nil: everything
	sender   string       // the token that acl is of
	filtered bool         // something was left out of the answer that the sender may not see
}

func (a *api) parseQuery(r *http.Request, argument string) (*query, error) {
	argument, err := url.PathUnescape(argument)
	if err != nil {
		return nil, weft.Errorf(weft.Invalid, "read path", r.URL.Path, "%w", err)
	}
	q := &query{request: r, argument: argument, params: r.URL.Query(), wait: defaultWait, consistency: "leader"}
	if dc := q.params.Get("dc"); dc != "" && dc != a.registry.Datacenter() {
		return nil, noPath(dc)
	}
	if q.index, err = parseIndex(q.params.Get("index")); err != nil {
		return nil, err
	}
	if err := q.parseWait(); err != nil {
		return nil, err
	}
	if err := q.parseConsistency(); err != nil {
		return nil, err
	}
	if q.pretty, err = q.flag("pretty"); err != nil {
		return nil, err
	}
	if err := q.parseTenancy(); err != nil {
		return nil, err
	}
	q.namespace = q.params.Get("ns")
	if q.namespace == "" {
		q.namespace = weft.DefaultNamespace
	}
	for _, pair := range q.params["node-meta"] {
		if q.nodeMeta == nil {
			q.nodeMeta = make(map[string]string)
		}
		key, value, _ := strings.Cut(pair, ":")
		q.nodeMeta[key] = value
	}
	return q, nil
}

// sign says for the registry's history who sends a write: where from, and with which
// token, by its accessor id.
func (q *query) sign() {
	if q.request.Method == http.MethodGet || q.request.Method == http.MethodHead {
		return
	}
	who, _, err := net.SplitHostPort(q.request.RemoteAddr)
	if err != nil {
		who = q.request.RemoteAddr
	}
	who = "Consul client " + who
	if q.acl != nil && q.acl.accessor != anonymousAccessor {
		who += " (token " + q.acl.accessor + ")"
	}
	q.request = q.request.WithContext(registry.WithActor(q.request.Context(), who))
}

// parseTenancy refuses to answer from here what is asked of somewhere else.
func (q *query) parseTenancy() error {
	if p := q.params.Get("partition"); p != "" && p != "default" && p != "*" {
		return weft.Errorf(weft.Invalid, "read partition", p, "there are no partitions here, but for \"default\"")
	}
	if p := q.params.Get("peer"); p != "" && p != "local" {
		return notHere("there is no peer " + strconv.Quote(p) + ": weft does not have cluster peering of Consul's API")
	}
	return nil
}

// noPath is what Consul's clients know of a datacenter that is not there: a 500.
func noPath(dc string) error {
	return weft.Errorf(weft.Unavailable, "No path to datacenter", dc, "this server knows its own only")
}

// parseIndex reads "index". Spring sends -1 until it has one.
func parseIndex(s string) (uint64, error) {
	if s == "" || s == "-1" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, weft.Errorf(weft.Invalid, "read index", s, "want a number")
	}
	return n, nil
}

func (q *query) parseWait() error {
	s := q.params.Get("wait")
	if s == "" {
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return weft.Errorf(weft.Invalid, "read wait", s, "want a duration such as \"10s\"")
	}
	if d > 0 {
		q.wait = min(d, maxWait)
	}
	return nil
}

func (q *query) parseConsistency() error {
	stale, err := q.flag("stale")
	if err != nil {
		return err
	}
	consistent, err := q.flag("consistent")
	switch {
	case err != nil:
		return err
	case stale && consistent:
		return weft.Errorf(weft.Invalid, "read query", "", "stale and consistent exclude each other")
	case stale:
		q.consistency = "stale"
	case consistent:
		q.consistency = "consistent"
	}
	return nil
}

// flag reads a parameter that is on when it is there: "?passing", "?passing=",
// "?passing=1"; and off when it says so: "?passing=false".
func (q *query) flag(name string) (bool, error) {
	if !q.params.Has(name) {
		return false, nil
	}
	return parseFlag(name, q.params.Get(name))
}

func parseFlag(name, value string) (bool, error) {
	if value == "" {
		return true, nil
	}
	on, err := strconv.ParseBool(value)
	if err != nil {
		return false, weft.Errorf(weft.Invalid, "read "+name, value, "want true or false")
	}
	return on, nil
}

// need returns the argument of the path, which names a thing.
func (q *query) need(thing string) (string, error) {
	if q.argument == "" {
		return "", weft.Errorf(weft.Invalid, "read path", q.request.URL.Path, "missing %s", thing)
	}
	return q.argument, nil
}

func (q *query) needService() (weft.ServiceName, error) {
	name, err := q.need("service name")
	return q.service(name), err
}

func (q *query) service(name string) weft.ServiceName {
	return weft.NewServiceName(q.namespace, name)
}

// onNode says whether a node has all the metadata that were asked for.
func (q *query) onNode(n *weft.Node) bool { return carries(n.Labels, q.nodeMeta) }

func carries(labels, want map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// tagged says whether tags hold every tag that was asked for, in any case.
func (q *query) tagged(tags []string) bool {
	for _, want := range q.params["tag"] {
		if want != "" && !containsFold(tags, want) {
			return false
		}
	}
	return true
}

func containsFold(list []string, want string) bool {
	for _, s := range list {
		if strings.EqualFold(s, want) {
			return true
		}
	}
	return false
}

// narrowed says whether the request asks for some of a list only.
func (q *query) narrowed() bool {
	for _, name := range []string{"tag", "filter", "node-meta", "passing", "near"} {
		if q.params.Has(name) {
			return true
		}
	}
	return false
}

// keep compiles the request's filter for records of type T. Without a filter it
// keeps all.
func keep[T any](q *query) (func(*T) bool, error) {
	text := q.params.Get("filter")
	if text == "" {
		return func(*T) bool { return true }, nil
	}
	f, err := parseFilter(text, reflect.TypeFor[T]())
	if err != nil { // in the words that clients look for
		return nil, weft.Errorf(weft.Invalid, "Failed to create boolean expression evaluator", "", "%w", err)
	}
	return func(v *T) bool { return f.match(reflect.ValueOf(v)) }, nil
}

// view is an answer that can be built again when its topic has changed.
type view struct {
	topic registry.Topic // zero: nothing to wait for
	// part: the answer is a part of what the topic tells, and has an index of its
	// own (see exactIndexes). Else its index is the topic's.
	part  bool
	build func() (body any, index uint64)
	guard func() []string // why failed instances are told as passing; nil: none can be
}

// answer waits as the request asks for, and then writes the view.
func (a *api) answer(w http.ResponseWriter, q *query, v view) error {
	body, index, err := a.settle(q, v)
	if err != nil {
		return err
	}
	q.setHeaders(w, index)
	if v.guard != nil {
		tellGuard(w, v.guard())
	}
	q.writeAnswer(w, http.StatusOK, body)
	return nil
}

// settle returns the encoded view and its index, after blocking if need be.
func (a *api) settle(q *query, v view) (body []byte, index uint64, err error) {
	blocking := q.index > 0 && v.topic != (registry.Topic{})
	ctx := q.request.Context()
	if blocking {
		var cancel context.CancelFunc
		ctx, cancel = a.waiting(q)
		defer cancel()
	}
	if !v.part {
		if blocking {
			a.registry.Wait(ctx, v.topic, q.index)
			q.fresh = a.registry.Stale()
		}
		return a.encode(q, v)
	}
	key := q.key()
	for {
		body, at, err := a.encode(q, v)
		if err != nil {
			return nil, 0, err
		}
		from := at
		if q.acl != nil { // other rights make another answer of the same
			from = max(at, q.acl.index)
		}
		index = a.indexes.indexOf(key, body, from)
		if !blocking || index > q.index {
			return body, index, nil
		}
		blocking = a.registry.Wait(ctx, v.topic, at) > at // else time is up, or the registry closes
		q.fresh = a.registry.Stale()
	}
}

// waiting limits a blocking read. The jitter of up to a sixteenth spreads the
// returns of clients that came together; npm's client gives up after 10 % more.
func (a *api) waiting(q *query) (context.Context, context.CancelFunc) {
	return context.WithTimeout(q.request.Context(), q.wait+rand.N(q.wait/16+1))
}

func (a *api) encode(q *query, v view) ([]byte, uint64, error) {
	body, index := v.build()
	if q.index > 0 { // it may have waited
		if err := a.stillMay(q); err != nil {
			return nil, 0, err
		}
	}
	b, err := q.marshal(q.visible(body))
	return b, index, err
}

func (q *query) marshal(body any) ([]byte, error) {
	b, err := json.Marshal(body)
	if q.pretty {
		b, err = json.MarshalIndent(body, "", "    ")
	}
	if err != nil {
		return nil, weft.Errorf(weft.Internal, "encode answer", q.request.URL.Path, "%w", err)
	}
	return append(b, '\n'), nil
}

// freshen makes what a read is answered from as new as it asks for. What an agent's
// cache may answer, the view of this server may too, which is newer. Writes are made
// where the newest is known.
func (a *api) freshen(q *query) (err error) {
	write := q.request.Method != http.MethodGet && q.request.Method != http.MethodHead
	if write || q.consistency == "stale" || q.cached() && q.consistency != "consistent" {
		q.fresh = a.registry.Stale()
		return nil
	}
	q.fresh, err = a.registry.Fresh(q.request.Context(), q.consistency == "consistent")
	return err
}

// cached says whether the request takes an answer that somebody read before.
func (q *query) cached() bool {
	return q.params.Has("cached") && !strings.Contains(q.request.Header.Get("Cache-Control"), "no-cache")
}

// setHeaders sets what Consul's clients look for on every read. Some parse the
// headers in order and stop at the first that is missing.
func (q *query) setHeaders(w http.ResponseWriter, index uint64) {
	h := w.Header()
	h["X-Consul-Index"] = []string{strconv.FormatUint(max(index, 1), 10)}
	h["X-Consul-Effective-Consistency"] = []string{q.consistency}
	freshHeaders(h, q.fresh)
	h.Set("X-Consul-Default-ACL-Policy", q.defaultPolicy())
	if q.filtered {
		h.Set("X-Consul-Results-Filtered-By-ACLs", "true")
	}
	h["X-Consul-Query-Backend"] = backend
	if q.cached() { // what is read is a view in memory that follows every change
		h["X-Cache"] = []string{"HIT"}
		h["Age"] = isZero
	}
}

// freshHeaders tells how new a read is. An ordinary one is only as new as this server
// while no server leads: it says so, and is answered nevertheless.
func freshHeaders(h http.Header, f registry.Freshness) {
	h["X-Consul-Lastcontact"], h["X-Consul-Knownleader"] = isZero, isTrue
	if f.KnownLeader {
		return
	}
	h["X-Consul-Lastcontact"] = []string{strconv.FormatInt(f.LastContact.Milliseconds(), 10)}
	h["X-Consul-Knownleader"] = []string{"false"}
	if h.Get("X-Consul-Effective-Consistency") == "leader" {
		h["X-Consul-Effective-Consistency"] = staleRead
	}
}

// fixed writes an answer that nothing can wait for.
func (a *api) fixed(w http.ResponseWriter, q *query, body any) error {
	return a.answer(w, q, view{build: func() (any, uint64) { return body, 1 }})
}
