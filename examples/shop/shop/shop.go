// Package shop is a small shop of five services, as somebody would write it who
// has never heard of weft: plain net/http servers that call each other by name
// through the proxy of their environment, traced with the OpenTelemetry SDK.
//
//	user-service            GET /users/{id}, /api/users/{id}
//	order-service           GET /api/orders/{id}, /api/orders, /orders; POST /api/orders
//	inventory-service       GET /api/inventory/{sku}
//	recommendation-service  GET /recommendations/{id}
//	payment-service         POST /payments, GET /payments/{id}
//
// Each answers GET /health, and says in X-Served-By which process answered. What
// they tell about an id follows from the id, so that every instance says the
// same; only what was posted is kept, in memory.
//
// Each instance can be told to answer badly, until it is told to stop:
//
//	POST /admin/misbehave?status=503&rate=0.5   every second answer is a 503
//	POST /admin/misbehave?delay=5s              every answer is right, and 5 s late
//	DELETE /admin/misbehave
package shop

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// Env is what a service finds in its environment.
type Env struct {
	Port      string                           // PORT: listens on 127.0.0.1; "0" takes a free one
	Version   string                           // VERSION; "" is v1
	Upstreams map[string]string                // base URLs by service; of others it is http://<service>
	Proxy     func(*url.URL) (*url.URL, error) // for calls; nil is none
	Telemetry Telemetry
	Log       *slog.Logger   // nil is silent
	Listening func(net.Addr) // called once when it listens; may be nil
}

// ReadEnv reads PORT, VERSION, HTTP_PROXY, NO_PROXY (loopback is never proxied),
// LOG_LEVEL (debug logs each request), USER_SERVICE_URL, INVENTORY_SERVICE_URL,
// PAYMENT_SERVICE_URL, and the OTEL_ variables that Telemetry names.
func ReadEnv(getenv func(string) string) Env {
	level := slog.LevelInfo
	if strings.EqualFold(getenv("LOG_LEVEL"), "debug") {
		level = slog.LevelDebug
	}
	first := func(names ...string) string {
		for _, n := range names {
			if v := getenv(n); v != "" {
				return v
			}
		}
		return ""
	}
	proxy := httpproxy.Config{HTTPProxy: first("HTTP_PROXY", "http_proxy"), NoProxy: first("NO_PROXY", "no_proxy")}
	upstreams := map[string]string{}
	for _, name := range []string{"user-service", "inventory-service", "payment-service"} {
		if v := getenv(strings.ToUpper(strings.ReplaceAll(name, "-", "_")) + "_URL"); v != "" {
			upstreams[name] = strings.TrimSuffix(v, "/")
		}
	}
	return Env{
		Port: getenv("PORT"), Version: getenv("VERSION"), Upstreams: upstreams,
		Proxy: proxy.ProxyFunc(), Telemetry: readTelemetry(getenv),
		Log: slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}
}

// service is one running service.
type service struct {
	name, version string
	servedBy      string // "<name>-<version>-<pid>"
	web           *http.Client
	upstreams     map[string]string
	log           *slog.Logger
}

// services registers what each service answers.
var services = map[string]func(*service, *http.ServeMux){
	"user-service":           serveUsers,
	"order-service":          serveOrders,
	"inventory-service":      serveInventory,
	"recommendation-service": serveRecommendations,
	"payment-service":        servePayments,
}

// Names lists the services.
func Names() []string { return slices.Sorted(maps.Keys(services)) }

const (
	drainTimeout = 4 * time.Second // for requests in flight when the service stops
	flushTimeout = 1 * time.Second // for its last spans; together the 5 s after SIGTERM
	// callTimeout of one call to another service is generous, as such numbers are
	// when somebody once chose them to be on the safe side.
	callTimeout = 10 * time.Second
	maxBody     = 64 << 10 // of any body that is read
)

// Run is the named service until ctx ends: it then finishes the requests that it
// has, sends its last spans, and returns.
func Run(ctx context.Context, name string, env Env) error {
	register, ok := services[name]
	switch {
	case !ok:
		return fmt.Errorf("no service %q; the services are %s", name, strings.Join(Names(), ", "))
	case env.Port == "":
		return fmt.Errorf("%s: PORT is not set: say on which port of 127.0.0.1 to listen", name)
	}
	if env.Version == "" {
		env.Version = "v1"
	}
	if env.Log == nil {
		env.Log = slog.New(slog.DiscardHandler)
	}
	s := &service{
		name: name, version: env.Version, servedBy: fmt.Sprintf("%s-%s-%d", name, env.Version, os.Getpid()),
		upstreams: env.Upstreams, log: env.Log,
	}
	tracing, err := startTracing(ctx, env.Telemetry, name, env.Version, s.servedBy)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	transport := newTransport(env.Proxy)
	defer transport.CloseIdleConnections()
	s.web = &http.Client{Transport: tracing.client(transport), Timeout: callTimeout}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, http.StatusOK, map[string]string{"status": "up"})
	})
	register(s, mux)
	handler := s.misbehave(&misbehaviour{stopped: ctx.Done()}, mux)
	err = s.serve(ctx, env, tracing.server(s.access(handler)))

	flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	if flushErr := tracing.stop(flushing); flushErr != nil {
		s.log.Warn("last spans not sent", "error", flushErr)
	}
	return err
}

func newTransport(proxy func(*url.URL) (*url.URL, error)) *http.Transport {
	t := &http.Transport{
		MaxIdleConnsPerHost: 64, // all calls go to one host, the sidecar
		IdleConnTimeout:     60 * time.Second,
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
	}
	if proxy != nil {
		t.Proxy = func(r *http.Request) (*url.URL, error) { return proxy(r.URL) }
	}
	return t
}

// serve listens and serves until ctx ends.
func (s *service) serve(ctx context.Context, env Env, h http.Handler) error {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", env.Port))
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	if env.Listening != nil {
		env.Listening(listener.Addr())
	}
	select {
	case err := <-failed:
		return fmt.Errorf("%s: %w", s.name, err)
	case <-ctx.Done():
	}
	draining, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err = server.Shutdown(draining)
	if err != nil { // requests that would not end
		err = fmt.Errorf("%s: stopped in the middle of requests: %w", s.name, errors.Join(err, server.Close()))
	}
	<-failed
	return err
}

// number is a number below n that follows from the texts.
func number(n uint64, texts ...string) uint64 {
	h := fnv.New64a()
	for _, t := range texts {
		_, _ = io.WriteString(h, t) // a hash takes everything
		_, _ = h.Write([]byte{0})
	}
	sum := h.Sum64()
	return (sum ^ sum>>32) % n // the low bits of FNV alone are poor
}
