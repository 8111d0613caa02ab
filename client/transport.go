package client

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/resilience"
)

// HTTPClient returns an http.Client over Transport(nil). All that a Client returns
// share their connections. It has no timeout of its own: give one to the request's
// context, or to the service by a ResiliencePolicy.
func (c *Client) HTTPClient() *http.Client { return &http.Client{Transport: c.Transport(nil)} }

// Transport returns a RoundTripper for which the names of services are hosts:
// http://order-service/, http://order-service.shop/ and the longer forms that
// weft.ParseHost knows. A port is not looked at, and what is not plain http goes to
// base as it is; so does a name of two labels which is no service's. A name of one
// label is a service's, but for localhost.
//
// For a call of a service it picks an endpoint by the service's load balancer, and
// does what the service's ResiliencePolicy says, as the sidecars do. A service
// without one gets this: what was never sent, and what is idempotent and broke off,
// is sent to another endpoint, up to twice and within a budget of 20 %. An endpoint
// that nobody answers at is avoided for a while. A request with a body is repeated
// only if it has GetBody. The context's trace goes along; see WithTrace.
//
// Beside a sidecar (`weft run` sets WEFT_SERVICE and HTTP_PROXY) the call goes to the
// sidecar and the sidecar does all of that, but for the trace: what repeats above
// what repeats would multiply a failure.
//
// base makes the attempts, too, and sees the address of an endpoint in the URL and
// the service in Host. nil stands for transports of the client, one of them for
// HTTP/2 in plain text with endpoints that declare http2 or grpc, and for
// http.DefaultTransport where no service is called.
func (c *Client) Transport(base http.RoundTripper) http.RoundTripper {
	t := &transport{client: c, others: base, attempts: base}
	if base == nil {
		t.others, t.attempts = http.DefaultTransport, c.wire
	}
	return t
}

type transport struct {
	client   *Client
	others   http.RoundTripper // what is for no service
	attempts http.RoundTripper
}

// CloseIdleConnections closes those to services and to others, for http.Client.
func (t *transport) CloseIdleConnections() {
	for _, one := range []http.RoundTripper{t.others, t.attempts} {
		if c, ok := one.(interface{ CloseIdleConnections() }); ok {
			c.CloseIdleConnections()
		}
	}
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "http" {
		return t.others.RoundTrip(r)
	}
	s, err := t.client.hosted(r.Context(), r.URL.Hostname())
	switch {
	case err != nil:
		closeBody(r)
		return nil, err
	case s == nil:
		return t.others.RoundTrip(r)
	case s == throughSidecar:
		resp, err := t.attempts.RoundTrip(traced(r, t.client.sidecar))
		return answered(resp, r), err
	}
	if _, err := s.first(r.Context(), "call"); err != nil {
		closeBody(r)
		return nil, err
	}
	ctx := context.WithValue(r.Context(), callKey{}, &call{transport: t, service: s})
	resp, err := s.calls.guarding.Load().RoundTrip(r.WithContext(ctx))
	return answered(resp, r), err
}

// answered makes a response that of the caller's request.
func answered(resp *http.Response, r *http.Request) *http.Response {
	if resp != nil {
		resp.Request = r
	}
	return resp
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

// traced is r on its way to address, with the context's trace.
func traced(r *http.Request, address string) *http.Request {
	out := new(http.Request)
	*out = *r
	url := *r.URL
	url.Host = address
	out.URL = &url
	if out.Host == "" {
		out.Host = r.URL.Host
	}
	if more := missing(r.Context(), r.Header); more != nil {
		out.Header = r.Header.Clone()
		if out.Header == nil {
			out.Header = make(http.Header, len(more))
		}
		maps.Copy(out.Header, more)
	}
	return out
}

type callKey struct{}

// attempt makes one attempt of a call.
type attempt struct{}

// RoundTrip implements http.RoundTripper.
func (attempt) RoundTrip(r *http.Request) (*http.Response, error) {
	c := r.Context().Value(callKey{}).(*call)
	v := c.service.calls.view.Load()
	e := v.pick(c, time.Now())
	if e == nil {
		closeBody(r)
		return nil, resilience.Permanent(v.state.Problem())
	}
	if !e.Protocol.IsHTTP() {
		closeBody(r)
		return nil, resilience.Permanent(weft.Errorf(weft.Invalid, "call", "service "+c.service.name.String(), "its instance %s declares %s, which is not called by requests", e.ID, e.Protocol))
	}
	r = traced(r, e.Address)
	if e.Protocol == weft.HTTP2 || e.Protocol == weft.GRPC {
		r = r.WithContext(context.WithValue(r.Context(), http2Key{}, true))
	}
	e.target.Begin()
	began := time.Now()
	resp, err := c.transport.attempts.RoundTrip(r)
	now := time.Now()
	e.ended(err, now)
	if err != nil {
		e.target.End()
		return nil, err
	}
	e.target.Observe(now.Sub(began), now.UnixNano())
	resp.Body = counted(resp.Body, e)
	return resp, nil
}

// counted ends the endpoint's call with the body.
func counted(body io.ReadCloser, e *endpoint) io.ReadCloser {
	b := &countedBody{ReadCloser: body, endpoint: e}
	if w, ok := body.(io.Writer); ok { // 101: the connection itself
		return &countedConn{b, w}
	}
	return b
}

type countedBody struct {
	io.ReadCloser
	endpoint *endpoint
	over     atomic.Bool
}

// Read implements io.Reader.
func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.end()
	}
	return n, err
}

// Close implements io.Closer.
func (b *countedBody) Close() error {
	b.end()
	return b.ReadCloser.Close()
}

func (b *countedBody) end() {
	if b.over.CompareAndSwap(false, true) {
		b.endpoint.target.End()
	}
}

type countedConn struct {
	*countedBody
	io.Writer
}

// wire makes the attempts of a client: HTTP/1 or, when a request's context asks for
// it, HTTP/2.
type wire struct{ http1, http2 http.Transport }

type http2Key struct{}

const (
	idleConns = 64 // for each endpoint; beside a sidecar all calls are of one
	idleTime  = time.Minute
)

func newWire() *wire {
	var w wire
	for _, t := range []*http.Transport{&w.http1, &w.http2} {
		// No proxy from the environment: endpoints are called directly.
		t.DialContext = (&net.Dialer{Timeout: dialTimeout}).DialContext
		t.MaxIdleConnsPerHost, t.IdleConnTimeout = idleConns, idleTime
	}
	w.http2.Protocols = new(http.Protocols)
	w.http2.Protocols.SetUnencryptedHTTP2(true)
	return &w
}

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Context().Value(http2Key{}) != nil {
		return w.http2.RoundTrip(r)
	}
	return w.http1.RoundTrip(r)
}

// CloseIdleConnections is for http.Client, and for Close.
func (w *wire) CloseIdleConnections() {
	w.http1.CloseIdleConnections()
	w.http2.CloseIdleConnections()
}

// throughSidecar stands for every service beside a sidecar.
var throughSidecar = new(service)

// foreignTime is how long a host is remembered that might have been a service's and
// is none; foreignHosts bounds how many are.
const (
	foreignTime  = 5 * time.Second
	foreignHosts = 1024
)

// hosted finds the service of a URL's host; nil when it is none's.
func (c *Client) hosted(ctx context.Context, host string) (*service, error) {
	host = strings.ToLower(host)
	n, ok := weft.ParseHost(host, c.namespace)
	switch {
	case !ok || host == "localhost" || n.Namespace == "localhost":
		return nil, nil
	case c.sidecar != "" && surely(host):
		return throughSidecar, nil
	case !surely(host) && !c.followed(n) && c.isForeign(ctx, n):
		return nil, nil
	}
	s, err := c.service("call", n)
	if err == nil && c.sidecar != "" {
		s = throughSidecar
	}
	return s, err
}

// surely reports whether a host can only be a service's. "name.namespace" may also be
// somebody's domain.
func surely(host string) bool {
	host = strings.TrimSuffix(host, ".")
	return strings.Count(host, ".") != 1
}

func (c *Client) followed(n weft.ServiceName) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.services[n] != nil
}

// isForeign asks the server whether n is no service. When the server is away it is
// none: a domain must stay reachable then.
func (c *Client) isForeign(ctx context.Context, n weft.ServiceName) bool {
	now := time.Now()
	c.mu.RLock()
	until := c.foreign[n]
	c.mu.RUnlock()
	if now.Before(until) {
		return true
	}
	patience, cancel := context.WithTimeout(ctx, firstAnswer)
	defer cancel()
	state, err := c.ask(patience, n, &State{}, 0)
	if err == nil && state.Instances > 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.foreign == nil || len(c.foreign) >= foreignHosts {
		c.foreign = make(map[weft.ServiceName]time.Time)
	}
	c.foreign[n] = now.Add(foreignTime)
	return true
}
