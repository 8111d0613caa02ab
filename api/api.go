// Package api serves weft's own HTTP API under /api/, which the command line, the
// dashboard and package client use. Paths and bodies are in package client, whose
// types they are.
//
// A browser can reach a server on loopback for any page that it shows. Therefore a
// request is refused when its Host header is neither a loopback name or address
// nor one of Config.Hosts (a page whose name was rebound to 127.0.0.1 says its own
// name there), and when it would change something and comes from another origin
// (Sec-Fetch-Site, Origin). Bodies are at most 4 MiB.
//
// Every failure is answered as client.Failure, with a status by its weft.Kind;
// what is our own fault is logged too.
package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/telemetry/collect"
)

// maxBody bounds what is read of a request.
const maxBody = 4 << 20

// Config of the API.
type Config struct {
	Registry  *registry.Registry
	Control   *control.Control
	Collector *collect.Collector
	// Idempotency keeps the mesh's idempotency keys; nil: this server keeps none.
	Idempotency *Idempotency
	// Cluster is the servers that this one belongs to, and their state.
	Cluster Cluster
	// Hosts are names and addresses by which this server may be called beside
	// the loopback ones: "weft.example.com", "10.0.0.5".
	Hosts     []string
	Listeners []client.Listener      // of the whole server, for status
	Sources   func() []client.Source // how things are with them; nil: there are none
	Started   time.Time              // of the server; when New was called if zero
	Logger    *slog.Logger
}

// New returns the handler of /api/.
func New(c Config) http.Handler {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Started.IsZero() {
		c.Started = time.Now()
	}
	a := &api{c}
	mux := http.NewServeMux()
	handle := func(pattern string, h func(*http.Request) (any, error)) {
		mux.Handle(pattern, a.answer(h))
	}
	handle("GET /api/services", a.services)
	handle("GET /api/services/{name}/instances", a.instances)
	handle("GET /api/services/{name}/watch", a.watch)
	handle("GET /api/services/{name}/receipts", a.receipts)
	handle("GET /api/services/{name}/history", a.history)
	handle("GET /api/guards", a.guards)
	handle("DELETE /api/guards/{name}", a.releaseGuard)
	handle("POST /api/instances", a.register)
	handle("PUT /api/instances/{id}/drain", a.drainInstance)
	handle("DELETE /api/instances/{id}/drain", a.endDrain)
	handle("PUT /api/instances/{id}/heartbeat", a.heartbeat)
	handle("DELETE /api/instances/{id}", a.drain)
	handle("GET /api/kinds", a.kinds)
	handle("GET /api/resources", a.resources)
	handle("GET /api/resources/{kind}/{namespace}/{name}", a.resource)
	handle("POST /api/resources", a.apply)
	handle("DELETE /api/resources/{kind}/{namespace}/{name}", a.delete)
	handle("GET /api/breakers", a.breakers)
	handle("GET /api/breakers/events", a.breakerEvents)
	handle("PUT /api/breakers/{service}", a.holdBreaker)
	handle("DELETE /api/breakers/{service}", a.releaseBreaker)
	handle("POST /api/explain", a.explain)
	handle("GET /api/traces", a.traces)
	handle("GET /api/traces/{id}", a.trace)
	handle("POST /api/idempotency/{key}/begin", a.beginKey)
	handle("POST /api/idempotency/{key}/finish", a.finishKey)
	handle("POST /api/idempotency/{key}/abandon", a.abandonKey)
	handle("GET /api/status", a.status)
	handle("GET /api/servers", a.servers)
	handle("DELETE /api/servers/{name}", a.removeServer)
	mux.HandleFunc("GET /api/backup", a.backup)
	handle("/", func(r *http.Request) (any, error) {
		return nil, weft.Errorf(weft.NotFound, "answer", r.Method+" "+r.URL.Path, "the weft API has no such call")
	})
	return a.guard(mux)
}

type api struct{ Config }

// guard refuses what a foreign page may make a browser send.
func (a *api) guard(next http.Handler) http.Handler {
	origins := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !a.knownHost(r.Host) {
			a.fail(w, r, weft.Errorf(weft.Denied, "answer", "host "+r.Host,
				"this server is not known by that name; call it by a loopback address, or start it with an address of that name"))
			return
		}
		if err := origins.Check(r); err != nil {
			a.fail(w, r, weft.Errorf(weft.Denied, "answer", r.Method+" "+r.URL.Path, "a page of another origin may not do this: %w", err))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// knownHost reports whether a Host header names this server.
func (a *api) knownHost(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]") // without a port
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().IsLoopback() {
		return true
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost") ||
		slices.ContainsFunc(a.Hosts, func(h string) bool { return strings.EqualFold(h, host) })
}

// answer makes an http.Handler of h: what h returns is written as JSON, nil as
// 204, an error as a Failure.
func (a *api) answer(h func(*http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = r.WithContext(registry.WithActor(r.Context(), "weft's API, from "+callerHost(r)))
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		v, err := h(r)
		switch {
		case err != nil:
			a.fail(w, r, err)
		case v == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			a.write(w, r, http.StatusOK, v)
		}
	})
}

func (a *api) write(w http.ResponseWriter, r *http.Request, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		a.Logger.Error("answer cannot be encoded", "path", r.URL.Path, "error", err)
		status, data = http.StatusInternalServerError, []byte(`{"kind":"internal","message":"the answer cannot be encoded"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// The client may have gone: nobody is left to tell.
	_, _ = w.Write(append(data, '\n'))
}

// statuses is indexed by weft.Kind.
var statuses = [...]int{
	weft.Internal: http.StatusInternalServerError, weft.Invalid: http.StatusBadRequest, weft.NotFound: http.StatusNotFound,
	weft.Conflict: http.StatusConflict, weft.Denied: http.StatusForbidden,
	weft.Unavailable: http.StatusServiceUnavailable, weft.TooLarge: http.StatusRequestEntityTooLarge,
}

func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	kind := weft.KindOf(err)
	var problems weft.Problems
	if kind == weft.Internal && errors.As(err, &problems) {
		kind = weft.Invalid
	}
	if kind == weft.Internal && r.Context().Err() == nil {
		a.Logger.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	a.write(w, r, statuses[kind], client.NewFailure(err))
}

// decode reads the body into v, strictly: a field with a typing mistake would
// otherwise do nothing, silently.
func decode(r *http.Request, op string, v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		err = errors.New("there is something after the JSON value")
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return weft.Errorf(weft.TooLarge, op, "request", "the body is over %d MiB; send it in several calls", maxBody>>20)
	}
	return &weft.Error{Kind: weft.Invalid, Op: op, Thing: "request", Err: fmt.Errorf("read the JSON body: %w", err)}
}
