// Package eureka lets unmodified clients of Netflix's Eureka register with and read
// from weft's registry. It serves both base paths, Netflix's /eureka/v2/ and Spring's
// /eureka/, with or without a trailing slash, in XML (the default) and, for who
// accepts it, in JSON.
//
// # What an instance is here and there
//
// An application is a service: ORDER-SERVICE is the service "order-service" of the
// default namespace. A service of another namespace is shown as NAME.NAMESPACE.
// Services whose names differ only in case share one application.
//
// A registration makes an instance on the node "eureka", which stands for all hosts
// of Eureka's clients: they name hosts and addresses, but no nodes, and may speak to
// another server at any time. Its id is the instanceId, or "service:instanceId" when
// another application has that id; its address is ipAddr; its port is the first one
// that is enabled of port and securePort; its labels are the metadata, and its zone
// is the metadatum "zone", or Amazon's availability zone. What has no word in weft
// is kept beside it. Everybody else sees it as an instance with two checks: the
// lease, and the status, which passes when it is UP.
//
// Every other instance of the registry is shown to Eureka's clients: its id is
// "node:id", its VIP address its service, and its status UP, DOWN when a check is
// critical, OUT_OF_SERVICE when it is in maintenance. To override its status is to
// put it into maintenance, or out of it.
//
// # Leases
//
// A lease lasts exactly as long as the client asks (90 s when it does not), and not
// twice that. When it lapses the instance is critical for everybody, and Eureka's
// readers do not see it any more; a renewal brings it back. Run deregisters it after
// a minute.
//
// But when two or more, and more than 15 %, of the leases of one application have
// lapsed, the network is the likelier culprit: Eureka's readers see those instances
// as they were, Run leaves them alone, and only half an hour later they go. Other
// applications are not concerned. Readers in other dialects see these instances as
// what they are, critical; unless the registry guards the service (registry.Guard),
// which is for everybody: Eureka's readers see what it keeps as it was, too. The
// header X-Weft-Preserved and /eureka/status name such applications, and say why.
//
// # Reads
//
// The full list, the deltas and their hash codes come from one picture of the
// catalogue, which is brought up to date by the first request after a change. A
// change stays in the deltas for three minutes after it was noticed. Each application
// is encoded and compressed once after a change to it, so a fetch is a copy. Answers
// have an ETag. "lastRenewalTimestamp" is that of the last registration: renewals
// change nothing that is told.
package eureka

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// Config of the dialect. The zero value is useful.
type Config struct {
	Logger *slog.Logger // failures that are ours, and who was deregistered why; nil discards them

	// Permit returns why the sender of a request may not read, or write, a service; an
	// empty name is all of them. The error is weft.Denied. Without Permit everybody may
	// do everything.
	Permit func(r *http.Request, service string, write bool) error
}

// API is the handler of everything under /eureka/. Its methods may be called from
// any goroutine; its goroutines are those of net/http and the caller of Run.
type API struct {
	// constant after New
	registry *registry.Registry
	logger   *slog.Logger
	permit   func(r *http.Request, service string, write bool) error // nil: everything is permitted
	now      func() time.Time
	started  time.Time
	routes   []route
	patience time.Duration // how long Run leaves an instance whose lease has lapsed
	pause    time.Duration // of Run, between two looks

	view view
}

// New returns the handler. Run must run beside it.
func New(r *registry.Registry, c Config) *API {
	a := &API{
		registry: r, logger: c.Logger, permit: c.Permit, now: time.Now, started: time.Now(),
		patience: time.Minute, pause: time.Second,
	}
	if a.logger == nil {
		a.logger = slog.New(slog.DiscardHandler)
	}
	a.view = newView(r, func() time.Time { return a.now() })
	a.routes = a.routeTable()
	return a
}

// call is one request on its way through its handler.
type call struct {
	w      http.ResponseWriter
	r      *http.Request
	args   []string   // the variable parts of the path, unescaped
	params url.Values // of the query
}

// context is the request's, with who sent it for the registry's history.
func (c *call) context() context.Context {
	host, _, err := net.SplitHostPort(c.r.RemoteAddr)
	if err != nil {
		host = c.r.RemoteAddr
	}
	return registry.WithActor(c.r.Context(), "Eureka client "+host)
}

// replica says whether another Eureka server passes on what it was told.
func (c *call) replica() bool {
	return c.r.Header.Get("x-netflix-discovery-replication") == "true"
}

// serve handles a request. An error that it returns is answered by API.fail, so it
// must not have written anything.
type serve func(*call) error

// route is a path's form and its handler per method. "*" is a variable part.
type route struct {
	path []string
	do   map[string]serve
}

func (a *API) routeTable() []route {
	return []route{
		{[]string{"apps"}, map[string]serve{"GET": a.getApps}},
		{[]string{"apps", "delta"}, map[string]serve{"GET": a.getDelta}},
		{[]string{"apps", "*"}, map[string]serve{"GET": a.getApp, "POST": a.postInstance}},
		{[]string{"apps", "*", "*"}, map[string]serve{"GET": a.getInstance, "PUT": a.putLease, "DELETE": a.deleteInstance}},
		{[]string{"apps", "*", "*", "status"}, map[string]serve{"PUT": a.putStatus, "DELETE": a.deleteStatus}},
		{[]string{"apps", "*", "*", "metadata"}, map[string]serve{"PUT": a.putMetadata}},
		{[]string{"instances", "*"}, map[string]serve{"GET": a.getInstanceByID}},
		{[]string{"vips", "*"}, map[string]serve{"GET": a.getVIP}},
		{[]string{"svips", "*"}, map[string]serve{"GET": a.getSecureVIP}},
		{[]string{"asg", "*", "status"}, map[string]serve{"PUT": a.putASG}},
		{[]string{"peerreplication", "batch"}, map[string]serve{"POST": a.postBatch}},
		{[]string{"status"}, map[string]serve{"GET": a.getStatus}},
		{[]string{"serverinfo", "statusoverrides"}, map[string]serve{"GET": a.getOverrides}},
	}
}

func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts, err := pathParts(r.URL.EscapedPath())
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	do, args := a.find(parts)
	if do == nil {
		http.Error(w, "not found: no such resource of Eureka's API", http.StatusNotFound)
		return
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if do[method] == nil {
		w.Header().Set("Allow", allow(do))
		http.Error(w, "method "+r.Method+" not allowed, use "+allow(do), http.StatusMethodNotAllowed)
		return
	}
	if !a.permitted(w, r, parts) {
		return
	}
	params, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		http.Error(w, "query: "+err.Error(), http.StatusBadRequest)
		return
	}
	if err := do[method](&call{w: w, r: r, args: args, params: params}); err != nil {
		a.fail(w, r, err)
	}
}

// permitted answers a request that is not permitted. Who came without credentials is
// asked for some: clients that have them in their URL send them only then.
func (a *API) permitted(w http.ResponseWriter, r *http.Request, parts []string) bool {
	if a.permit == nil {
		return true
	}
	service := ""
	if parts[0] == "apps" && len(parts) > 1 && parts[1] != "delta" {
		service = serviceOf(parts[1]).Name
	}
	err := a.permit(r, service, r.Method != http.MethodGet && r.Method != http.MethodHead)
	if err == nil {
		return true
	}
	status := statusOf(err)
	if status == http.StatusForbidden && r.Header.Get("Authorization") == "" {
		w.Header().Set("WWW-Authenticate", `Basic realm="weft", charset="UTF-8"`)
		status = http.StatusUnauthorized
	}
	http.Error(w, err.Error(), status)
	return false
}

// pathParts splits an escaped path below /eureka/ or /eureka/v2/. Empty parts do not
// count: clients put their paths together from configured ones, and a "/" too many
// is common.
func pathParts(path string) (parts []string, err error) {
	for part := range strings.SplitSeq(path, "/") {
		if part == "" {
			continue
		}
		plain, err := url.PathUnescape(part)
		if err != nil {
			return nil, weft.Errorf(weft.Invalid, "read path", path, "%w", err)
		}
		parts = append(parts, plain)
	}
	if len(parts) == 0 || parts[0] != "eureka" {
		return nil, weft.Errorf(weft.NotFound, "find", path, "Eureka's API is under /eureka/ and /eureka/v2/")
	}
	parts = parts[1:]
	if len(parts) > 0 && parts[0] == "v2" {
		parts = parts[1:]
	}
	return parts, nil
}

// find returns the handlers of a path, nil when there is none, and its variable parts.
func (a *API) find(parts []string) (do map[string]serve, args []string) {
	for _, rt := range a.routes {
		if args, ok := rt.match(parts); ok {
			return rt.do, args
		}
	}
	return nil, nil
}

func (rt route) match(parts []string) (args []string, ok bool) {
	if len(rt.path) != len(parts) {
		return nil, false
	}
	for i, want := range rt.path {
		switch {
		case want == "*":
			args = append(args, parts[i])
		case want != parts[i]:
			return nil, false
		}
	}
	return args, true
}

func allow(do map[string]serve) string {
	var methods []string
	for _, m := range []string{"GET", "POST", "PUT", "DELETE"} {
		if do[m] != nil {
			methods = append(methods, m)
		}
	}
	if do["GET"] != nil {
		methods = append(methods, "HEAD")
	}
	return strings.Join(methods, ", ")
}

// fail answers an error with a plain text. Clients go by the status alone: they try
// another server after 5xx, and register again after 404.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	if weft.KindOf(err) == weft.Internal {
		a.logger.ErrorContext(r.Context(), "eureka request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	http.Error(w, err.Error(), statusOf(err))
}

func statusOf(err error) int {
	switch weft.KindOf(err) {
	case weft.Invalid:
		return http.StatusBadRequest
	case weft.NotFound:
		return http.StatusNotFound
	case weft.Conflict:
		return http.StatusConflict
	case weft.Denied:
		return http.StatusForbidden
	case weft.TooLarge:
		return http.StatusRequestEntityTooLarge
	case weft.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// putASG: PUT /asg/{name}/status
func (a *API) putASG(c *call) error {
	http.Error(c.w, fmt.Sprintf("weft %s does not follow Amazon's auto scaling groups; "+
		"override the status of the instances, or put them into maintenance", weft.Version), http.StatusNotImplemented)
	return nil
}
