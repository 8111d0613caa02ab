// Package consul lets unmodified clients of Consul use weft's registry: it serves
// Consul's HTTP API under /v1/, which is agent, catalog, health, keys, sessions,
// transactions, events, coordinates, access control, intentions, config entries,
// discovery chains, prepared queries, Connect's certificates, snapshots, and what
// operators ask of the servers.
//
// A client sees one datacenter. Every server is an agent too, and there are no other
// agents: agent endpoints speak of the server's own node. Consul's service metadata
// are an instance's labels. "ns" names a weft namespace, "default" when absent. There
// are no partitions, peers or other datacenters.
//
// Reads carry X-Consul-Index, exact for what was asked, and block with "index" and
// "wait" on the registry's topics, without polling. They are as new as the writes that
// were acknowledged before, on any server; with "stale" they ask nobody, and with
// "consistent" they fail rather than tell less. A blocked read ends with its request's
// context: a server that shall stop fast cancels the context that it gave its requests
// (http.Server.BaseContext) before it calls Shutdown.
//
// health/service with "passing" also has the failed instances that a guard of the
// registry keeps, and then says why in X-Weft-Guard.
//
// Intentions and config entries become resources of the mesh through Config.Mesh;
// CarryOut keeps them so. What weft would not carry out is refused with the name of
// the field. NewQueries gives prepared queries to DNS.
//
// The handler matches the escaped path by itself: "//", "%2F" and a trailing "/" reach
// the endpoint as they were sent, and nothing is ever redirected. So do not put it
// behind http.ServeMux. Without Config.ACL tokens are accepted wherever Consul accepts
// them, and ignored; everybody is trusted then: bind it to loopback, or put something
// before it that knows who calls.
//
// What Consul has and weft has not (peering, partitions, gossip and its keys, gateways
// that are config entries) answers 501 with one sentence; what is unknown answers 404.
package consul

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// Config of the dialect. The zero value is useful.
type Config struct {
	Logger  *slog.Logger // failures that are ours; nil discards them
	Version string       // what agent/self and agent/members say; weft.Version when empty
	Address string       // host:port of this API as others reach it; the own node's address and 8500 when empty
	Scripts bool         // let clients register checks that run commands on this machine
	Process Process      // this process
	Cluster Cluster      // the servers; nil: this one is alone
	ACL     *ACL         // access control; nil: off
	CA      CA           // signs for Connect; nil: Connect is off
	Mesh    Resources    // carries out intentions and config entries; nil: they are kept only

	// Closed says what holds between services of which no intention speaks: nothing
	// is allowed. It is apart from ACL, so that who protects the API by tokens does
	// not at once close a mesh that has no intentions.
	Closed bool
}

// Handler serves everything under /v1/. Its methods may be called from any goroutine.
type Handler struct{ *api }

// New returns the handler of everything under /v1/.
func New(r *registry.Registry, c Config) *Handler {
	a := &api{registry: r, indexes: newExactIndexes(), logger: c.Logger, version: c.Version, address: c.Address, scripts: c.Scripts,
		cluster: c.Cluster, process: c.Process, started: time.Now()}
	if a.logger == nil {
		a.logger = slog.New(slog.DiscardHandler)
	}
	if a.version == "" {
		a.version = weft.Version
	}
	a.acl, a.ca, a.mesh, a.closed = newAccessControl(c.ACL), c.CA, c.Mesh, c.Closed
	a.catchUp = catchUpOf(r)
	a.queries = &Queries{api: a}
	a.install(a.tables())
	return &Handler{a}
}

func catchUpOf(r *registry.Registry) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := r.Fresh(ctx, false)
		return err
	}
}

// api is constant after New, but for indexes, kept, connectables and leaves. Its goroutines are those of net/http.
type api struct {
	registry     *registry.Registry
	logger       *slog.Logger
	version      string
	address      string
	scripts      bool
	cluster      Cluster // nil: this server is alone
	process      Process
	started      time.Time
	exact        map[string]endpoint // "agent/self"
	prefixes     []prefixed          // longest first
	indexes      *exactIndexes
	kept         keptAnswers
	connectables connectables
	acl          *accessControl // nil: everybody may do everything
	ca           CA             // nil: Connect is off
	mesh         Resources      // nil: there is no mesh to carry out what is written
	closed       bool           // what no intention allows is denied
	// catchUp makes this server's view as new as the writes that were acknowledged
	// before, on any server. It does not wait long, nor fail, when no server leads.
	catchUp func(context.Context) error

	queries     *Queries
	configuring sync.Mutex // so that the mesh gets changes in the order of their writes
	leaves      leaves
}

// serve handles one request of one endpoint. An error that it returns is answered
// by api.fail, so it must not have written anything.
type serve func(w http.ResponseWriter, q *query) error

// endpoint is a path's handler per method; nil is a method that it does not know.
type endpoint struct{ get, put, post, delete serve }

// endpoints are handlers by path: "agent/self"; or "agent/service/", where the rest
// of the path is the argument.
type endpoints map[string]endpoint

type prefixed struct {
	path string
	endpoint
}

// tables lists what each file of this package serves.
func (a *api) tables() []endpoints {
	return []endpoints{
		a.agentEndpoints(),
		a.catalogEndpoints(),
		a.healthEndpoints(),
		a.statusEndpoints(),
		a.kvEndpoints(),
		a.sessionEndpoints(),
		a.txnEndpoints(),
		a.eventEndpoints(),
		a.coordinateEndpoints(),
		a.operatorEndpoints(),
		a.snapshotEndpoints(),
		a.processEndpoints(),
		a.emptyEndpoints(),
		a.aclEndpoints(),
		a.configEndpoints(),
		a.connectEndpoints(),
		a.intentionEndpoints(),
		a.chainEndpoints(),
		a.queryEndpoints(),
	}
}

func (a *api) install(tables []endpoints) {
	a.exact = make(map[string]endpoint)
	for _, table := range tables {
		for path, e := range table {
			if strings.HasSuffix(path, "/") {
				a.prefixes = append(a.prefixes, prefixed{path: path, endpoint: e})
			} else {
				a.exact[path] = e
			}
		}
	}
	sort.Slice(a.prefixes, func(i, k int) bool { return len(a.prefixes[i].path) > len(a.prefixes[k].path) })
}

// later are the parts of Consul's API that this release does not have.
var later = []struct{ path, what string }{
	{"internal/", "the interface of Consul's own dashboard"},
	{"operator/", "operating a Consul cluster"},
	{"peering", "cluster peering"},
	{"exported-services", "cluster peering"},
	{"partition", "partitions"},
	{"namespace", "managing namespaces"},
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if a.quick(w, r) {
		return
	}
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), "/v1/")
	if !ok {
		http.Error(w, "not found: Consul's API is under /v1/", http.StatusNotFound)
		return
	}
	e, argument, found := a.find(path)
	if !found { // Consul sends such to the path with the slash
		path += "/"
		e, argument, found = a.find(path)
	}
	if !found {
		a.unknown(w, path)
		return
	}
	if r.Method == http.MethodOptions {
		w.Header().Set("Allow", "OPTIONS, "+e.allow())
		return
	}
	do := e.method(r.Method)
	if do == nil {
		w.Header().Set("Allow", e.allow())
		http.Error(w, "method "+r.Method+" not allowed, use "+e.allow(), http.StatusMethodNotAllowed)
		return
	}
	if a.logger.Enabled(r.Context(), slog.LevelDebug) {
		defer func(began time.Time) {
			a.logger.Debug("Request finished", "method", r.Method, "url", r.URL.EscapedPath(), "from", r.RemoteAddr, "latency", time.Since(began))
		}(time.Now())
	}
	q, err := a.parseQuery(r, argument)
	if err == nil { // before admit: a token may be as new as what it is for
		err = a.freshen(q)
	}
	if err == nil {
		err = a.attend(w, q, strings.TrimSuffix(path, argument), do)
	}
	if err != nil {
		a.fail(w, r, err)
	}
}

// find returns the endpoint of an escaped path below /v1/, with what follows its
// name, still escaped.
func (a *api) find(path string) (e endpoint, argument string, found bool) {
	if e, ok := a.exact[path]; ok {
		return e, "", true
	}
	for _, p := range a.prefixes {
		if rest, ok := strings.CutPrefix(path, p.path); ok {
			return p.endpoint, rest, true
		}
	}
	return endpoint{}, "", false
}

func (a *api) unknown(w http.ResponseWriter, path string) {
	for _, l := range later {
		if strings.HasPrefix(path, l.path) || path == strings.TrimSuffix(l.path, "/") {
			http.Error(w, "weft "+weft.Version+" does not have "+l.what+" of Consul's API yet", http.StatusNotImplemented)
			return
		}
	}
	http.Error(w, "not found: no such endpoint of Consul's API", http.StatusNotFound)
}

func (e endpoint) method(m string) serve {
	switch m {
	case http.MethodGet, http.MethodHead:
		return e.get
	case http.MethodPut:
		return e.put
	case http.MethodPost:
		return e.post
	case http.MethodDelete:
		return e.delete
	}
	return nil
}

func (e endpoint) allow() string {
	var methods []string
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodDelete} {
		if e.method(m) != nil {
			methods = append(methods, m)
		}
	}
	return strings.Join(methods, ", ")
}

// fail answers an error: a plain text and a status, as Consul's clients expect.
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	if plain := (*plainError)(nil); errors.As(err, &plain) {
		http.Error(w, plain.text, plain.status)
		return
	}
	status := http.StatusInternalServerError
	switch weft.KindOf(err) {
	case weft.Invalid:
		status = http.StatusBadRequest
	case weft.NotFound:
		status = http.StatusNotFound
	case weft.Conflict:
		status = http.StatusConflict
	case weft.Denied:
		status = http.StatusForbidden
	case weft.TooLarge:
		status = http.StatusRequestEntityTooLarge
	case weft.Internal:
		a.logger.ErrorContext(r.Context(), "consul request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	case weft.Unavailable:
		// 500, not 503: Consul's clients retry a 500, and take 503 for a health.
	}
	http.Error(w, err.Error(), status)
}

// advertised is the host:port under which status and members name this server.
func (a *api) advertised() string {
	if a.address != "" {
		return a.address
	}
	return net.JoinHostPort(a.registry.LocalNode().Address, "8500")
}
