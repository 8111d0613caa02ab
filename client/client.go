// Package client is the Go door to weft: for programs that call services, and are
// one, without a proxy or beside one; and for whoever wants to read the catalogue or
// apply resources, as the command line does.
//
//	c, err := client.New(ctx) // $WEFT_ADDR, else 127.0.0.1:7400; for a cluster "a:7400,b:7400,c:7400"
//	defer c.Close()
//
//	web := c.HTTPClient() // the names of services are hosts for it
//	resp, err := web.Get("http://order-service/api/orders/1")
//
//	state, err := c.Resolve(ctx, "order-service")
//	for state, err := range c.Watch(ctx, "order-service") { … }
//
//	lease, err := c.Register(ctx, client.Registration{Service: "order-service", Port: 8080})
//	defer lease.Drain(ctx)
//
//	services, err := c.Services(ctx, "") // every namespace
//
// Package client/weftgrpc does the same for gRPC.
//
// # Beside a sidecar, and without one
//
// `weft run` tells the program that it starts where its sidecar is. Then calls go to
// the sidecar, over mTLS to the others', and the sidecar balances, repeats and breaks;
// and the sidecar has registered the program. Without one, the client does all that
// itself, by the same policies, and calls the processes themselves. On one machine it
// so reaches those behind a sidecar as well, in plain text and past the policies that
// stand there, as everything on that machine can; on another machine it does not, and
// says so.
//
// # When the server is away
//
// What it said last is used on: states are Stale then, instances that die are found
// out by calling them. The server's return is noticed within seconds, and instances
// are registered again.
//
// A Client is safe for use by several goroutines. It holds no state but idle
// connections and needs no Close if nothing but the API is used.
//
// # The API
//
// The types of this package are the bodies of the server's HTTP API, which
// package api serves:
//
//	GET    /api/services?namespace=NS                  []Service
//	GET    /api/services/{name}/instances?namespace=NS []Instance
//	GET    /api/services/{name}/watch?namespace=NS     State, when it is another than
//	       also from=NS, index=N&policy=P, wait=30s    the one with that index and policy
//	POST   /api/instances                              Registration -> Leased
//	PUT    /api/instances/{id}/heartbeat               Heartbeat -> 204
//	DELETE /api/instances/{id}                         Drained
//	GET    /api/kinds                                  []string
//	GET    /api/resources?kind=K&kind=L                []Resource
//	GET    /api/resources/{kind}/{namespace}/{name}    Resource
//	POST   /api/resources                              ApplyRequest -> ApplyResult
//	DELETE /api/resources/{kind}/{namespace}/{name}    204
//	GET    /api/breakers?service=S&namespace=NS        []Breaker
//	GET    /api/breakers/events?since=10m              []BreakerEvent
//	PUT    /api/breakers/{service}?namespace=NS        BreakerOverride -> ApplyResult
//	DELETE /api/breakers/{service}?namespace=NS        204
//	POST   /api/explain                                ExplainRequest -> Explanation
//	GET    /api/traces?service=S&since=10m&limit=20    []TraceSummary
//	       also minDuration=50ms, errors=true
//	GET    /api/traces/{id}                            Trace
//	POST   /api/idempotency/{key}/begin                IdempotencyBegin -> IdempotencyClaim
//	POST   /api/idempotency/{key}/finish               IdempotencyFinish -> 204
//	POST   /api/idempotency/{key}/abandon              IdempotencyAbandon -> 204
//	GET    /api/status                                 Status
//
// Every failure has a Failure as its body. A method returns it as a *weft.Error
// of the server's kind; when the server found problems in what was sent,
// errors.As also finds them as weft.Problems. A server that is not there is
// weft.Unavailable, with the socket's error in the chain.
//
// Times are RFC 3339, durations "1m30s" unless a field's name has a unit. A
// server may add fields: readers ignore what they do not know.
package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
)

// DefaultAddr is where a server listens when nobody said otherwise.
const DefaultAddr = "127.0.0.1:7400"

// AddrEnv names the environment variable that New reads first.
const AddrEnv = "WEFT_ADDR"

// What a sidecar sets for the program that it stands beside.
const (
	serviceEnv   = "WEFT_SERVICE"
	namespaceEnv = "WEFT_NAMESPACE"
)

const (
	// requestTimeout covers a whole call. An apply that waits for the store's
	// fsync takes milliseconds; what takes longer than this will not come.
	requestTimeout = 30 * time.Second
	dialTimeout    = 5 * time.Second
	// maxAnswer bounds what is read of one answer. 100,000 instances are some
	// 30 MB.
	maxAnswer = 64 << 20
)

// Client speaks with a weft server, and with another one of its cluster when that
// fails.
type Client struct {
	// constant
	at        string // what At said
	servers   *addresses
	namespace string // whose names are meant without one
	http      *http.Client
	self      string // the service that a sidecar stands beside; empty without one
	sidecar   string // host:port of its outbound side; empty without one
	log       *slog.Logger
	wire      *wire
	ctx       context.Context // ends with Close, or with New's
	end       context.CancelFunc
	work      sync.WaitGroup // what Close waits for; it grows only under mu, before ctx ends
	away      atomic.Bool    // the server, which has been told

	mu       sync.RWMutex // guards what follows
	services map[weft.ServiceName]*service
	foreign  map[weft.ServiceName]time.Time // hosts that are no service, and how long that is believed
	leases   map[*Lease]struct{}
}

// Option of New.
type Option func(*Client)

// At says where the server is: "host:port" or "http://host:port", or several servers of
// one cluster with commas between. Empty means $WEFT_ADDR, and DefaultAddr when that is
// empty too; so does New without At.
func At(addr string) Option { return func(c *Client) { c.at = addr } }

// In says in which namespace a name without one is looked up. New without In takes
// that of the sidecar (WEFT_NAMESPACE), else weft.DefaultNamespace.
func In(namespace string) Option { return func(c *Client) { c.namespace = namespace } }

// Log says where it is told that the server went away or came back, and the like.
// New without Log tells nobody.
func Log(l *slog.Logger) Option { return func(c *Client) { c.log = l } }

// New returns a client of the server that the environment names, or At another.
// Nothing is dialled before the first call, and no goroutine runs before the first
// Resolve, Watch, Register or call of a service. These end with ctx or by Close; all
// other methods go on. So does the transport with what it knows: give it a context
// that lives as long as the program, and end with Close.
//
// The error is weft.Invalid for an address that is none.
func New(ctx context.Context, options ...Option) (*Client, error) {
	c := &Client{namespace: cmp.Or(os.Getenv(namespaceEnv), weft.DefaultNamespace), log: slog.New(slog.DiscardHandler), wire: newWire()}
	for _, o := range options {
		o(c)
	}
	var err error
	if c.servers, err = parseAddresses(cmp.Or(c.at, os.Getenv(AddrEnv), DefaultAddr)); err != nil {
		return nil, err
	}
	if err := c.findSidecar(); err != nil {
		return nil, err
	}
	c.ctx, c.end = context.WithCancel(ctx)
	c.http = &http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{
			// No proxy from the environment: under a sidecar HTTP_PROXY
			// is set, and leads into the mesh.
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout: dialTimeout,
			IdleConnTimeout:     time.Minute,
			MaxIdleConnsPerHost: 32, // each watch has one
		},
		// A server never redirects its API: a redirect is somebody else's.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// findSidecar reads what `weft run` has put into the environment.
func (c *Client) findSidecar() error {
	forward := cmp.Or(os.Getenv("HTTP_PROXY"), os.Getenv("http_proxy"))
	self := os.Getenv(serviceEnv)
	if self == "" || forward == "" {
		return nil
	}
	u, err := url.Parse(forward)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return weft.Errorf(weft.Invalid, "find", "sidecar", "$HTTP_PROXY is %q; want http://host:port, as `weft run` sets it", forward)
	}
	c.self, c.sidecar = self, u.Host
	return nil
}

// Sidecar is the address of the sidecar beside this process, "host:port" of its
// outbound side; empty without one.
func (c *Client) Sidecar() string { return c.sidecar }

// Close drains the instances that are still registered, ends every watch, and waits
// for both, and for attempts that lost against a hedge. No call may begin meanwhile;
// bodies that are being read are read on. The error is of a drain: the server could
// not be told, and the lease lapses.
func (c *Client) Close() error {
	err := c.drainAll()
	c.mu.Lock()
	c.end()
	c.mu.Unlock()
	c.work.Wait()
	for _, s := range c.services {
		if t := s.calls.guarding.Load(); t != nil {
			t.Policy.Wait()
		}
	}
	c.http.CloseIdleConnections()
	c.wire.CloseIdleConnections()
	return err
}

// Addr is the address of the server that is called: "127.0.0.1:7400".
func (c *Client) Addr() string { return shown(c.servers.current()) }

// Services lists the services of a namespace, or of all when that is empty,
// sorted by namespace and name.
func (c *Client) Services(ctx context.Context, namespace string) ([]Service, error) {
	var out []Service
	err := c.call(ctx, request{op: "list", thing: "services", path: "/api/services" + query("namespace", namespace)}, &out)
	return out, err
}

// Instances lists the instances of one service, sorted by node and id. A service
// that nobody registered is weft.NotFound.
func (c *Client) Instances(ctx context.Context, n weft.ServiceName) ([]Instance, error) {
	var out []Instance
	path := "/api/services/" + url.PathEscape(n.Name) + "/instances" + query("namespace", n.Namespace)
	err := c.call(ctx, request{op: "list", thing: "instances of " + n.Name, path: path}, &out)
	return out, err
}

// Kinds lists the kinds of resource that the server takes.
func (c *Client) Kinds(ctx context.Context) ([]string, error) {
	var out []string
	err := c.call(ctx, request{op: "list", thing: "kinds", path: "/api/kinds"}, &out)
	return out, err
}

// Resources lists the applied resources of some kinds, or of all when none is
// given, sorted by kind, namespace and name. A kind may be written as in the
// YAML, in lower case, or in the plural.
func (c *Client) Resources(ctx context.Context, kinds ...string) ([]Resource, error) {
	var out []Resource
	q := ""
	if len(kinds) > 0 {
		q = "?" + url.Values{"kind": kinds}.Encode()
	}
	err := c.call(ctx, request{op: "list", thing: "resources", path: "/api/resources" + q}, &out)
	return out, err
}

// Resource returns one applied resource.
func (c *Client) Resource(ctx context.Context, kind, namespace, name string) (Resource, error) {
	var out Resource
	err := c.call(ctx, request{op: "get", thing: thing(kind, namespace, name), path: resourcePath(kind, namespace, name)}, &out)
	return out, err
}

// Apply creates or changes the resources in files, all in one transaction.
func (c *Client) Apply(ctx context.Context, files []File, o ApplyOptions) (ApplyResult, error) {
	var out ApplyResult
	err := c.call(ctx, request{op: "apply", thing: countFiles(files), method: http.MethodPost,
		path: "/api/resources", body: ApplyRequest{Files: files, ApplyOptions: o}}, &out)
	return out, err
}

// Delete removes one applied resource.
func (c *Client) Delete(ctx context.Context, kind, namespace, name string) error {
	return c.call(ctx, request{op: "delete", thing: thing(kind, namespace, name),
		method: http.MethodDelete, path: resourcePath(kind, namespace, name)}, nil)
}

// Explain says where a request would go and why, without sending it.
func (c *Client) Explain(ctx context.Context, r ExplainRequest) (*Explanation, error) {
	var out Explanation
	err := c.call(ctx, request{op: "explain", thing: r.Method + " " + r.URL, method: http.MethodPost,
		path: "/api/explain", body: r}, &out)
	return &out, err
}

// Traces lists the traces that the server holds, newest first.
func (c *Client) Traces(ctx context.Context, q TraceQuery) ([]TraceSummary, error) {
	var out []TraceSummary
	pairs := []string{"service", q.Service}
	if q.Since > 0 {
		pairs = append(pairs, "since", q.Since.String())
	}
	if q.MinDuration > 0 {
		pairs = append(pairs, "minDuration", q.MinDuration.String())
	}
	if q.Errors {
		pairs = append(pairs, "errors", "true")
	}
	if q.Limit > 0 {
		pairs = append(pairs, "limit", strconv.Itoa(q.Limit))
	}
	err := c.call(ctx, request{op: "list", thing: "traces", path: "/api/traces" + query(pairs...)}, &out)
	return out, err
}

// Trace returns every span of one trace. id is 32 hex digits.
func (c *Client) Trace(ctx context.Context, id string) (*Trace, error) {
	var out Trace
	err := c.call(ctx, request{op: "get", thing: "trace " + id, path: "/api/traces/" + url.PathEscape(id)}, &out)
	return &out, err
}

// Status says what the server is, where it listens, and who is connected.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var out Status
	err := c.call(ctx, request{op: "ask for", thing: "status", path: "/api/status"}, &out)
	return &out, err
}

// request is one call: op and thing name it in errors.
type request struct {
	op, thing string
	method    string // GET when empty
	path      string // with query
	body      any    // sent as JSON when not nil
}

// call sends r and decodes the answer into out, when that is not nil.
func (c *Client) call(ctx context.Context, r request, out any) error {
	fail := func(kind weft.Kind, err error) error {
		return &weft.Error{Kind: kind, Op: r.op, Thing: r.thing, Err: err}
	}
	resp, from, err := c.send(ctx, r)
	switch {
	case weft.KindOf(err) == weft.Invalid:
		return err
	case err != nil:
		return fail(weft.Unavailable, fmt.Errorf("call %s: %w", from, innermost(err)))
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fail(weft.Unavailable, fmt.Errorf("read the answer of %s: %w", from, err))
	case len(data) > maxAnswer:
		return fail(weft.TooLarge, fmt.Errorf("the answer of %s is over %d MiB", from, maxAnswer>>20))
	case resp.StatusCode >= 300:
		return refusal(data, resp, r)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fail(weft.Internal, fmt.Errorf("%s does not answer as a weft server does: %w", from, err))
	}
	return nil
}

// refused reads a refusal.
func refused(resp *http.Response, r request) error {
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return &weft.Error{Kind: weft.Unavailable, Op: r.op, Thing: r.thing, Err: err}
	}
	return refusal(data, resp, r)
}

// refusal is the error that a server's answer tells.
func refusal(data []byte, resp *http.Response, r request) error {
	var f Failure
	if json.Unmarshal(data, &f) != nil || f.Kind == "" {
		return weft.Errorf(weft.Internal, r.op, r.thing, "%s does not answer as a weft server does (HTTP status %d)", resp.Request.URL.Host, resp.StatusCode)
	}
	return f.err(r.op, r.thing)
}

func (c *Client) newRequest(ctx context.Context, addr string, r request) (*http.Request, error) {
	method := r.method
	if method == "" {
		method = http.MethodGet
	}
	var body io.Reader
	if r.body != nil {
		data, err := json.Marshal(r.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	hr, err := http.NewRequestWithContext(ctx, method, base(addr)+r.path, body)
	if err != nil {
		return nil, err
	}
	hr.Header.Set("Accept", "application/json")
	if body != nil {
		hr.Header.Set("Content-Type", "application/json")
	}
	return hr, nil
}

// innermost takes off net/http's wrapper, which repeats method and URL.
func innermost(err error) error {
	if u, ok := err.(*url.Error); ok {
		return u.Err
	}
	return err
}

// query writes "?k=v&…" from pairs, leaving out empty values.
func query(pairs ...string) string {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	if len(v) == 0 {
		return ""
	}
	return "?" + v.Encode()
}

func resourcePath(kind, namespace, name string) string {
	if namespace == "" {
		namespace = weft.DefaultNamespace
	}
	return "/api/resources/" + url.PathEscape(kind) + "/" + url.PathEscape(namespace) + "/" + url.PathEscape(name)
}

func thing(kind, namespace, name string) string {
	if namespace == "" {
		namespace = weft.DefaultNamespace
	}
	return kind + " " + namespace + "/" + name
}

func countFiles(files []File) string {
	if len(files) == 1 {
		return files[0].Name
	}
	return strconv.Itoa(len(files)) + " files"
}
