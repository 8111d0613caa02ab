package proxy

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/proxy/relay"
	"github.com/weftmesh/weft/resilience"
	"github.com/weftmesh/weft/telemetry/trace"
	"github.com/weftmesh/weft/wire/http1"
)

// Exchange is one request and its response, on their way through a proxy. It is
// reused: nothing in it outlives the exchange.
type Exchange struct {
	conn   *conn
	client client
	h1     http1Client // what client is in HTTP/1
	h2     http2Client // what client is in HTTP/2
	stream http2Upstream

	head     http1.Request
	request  weft.Request
	auth     weft.AuthorizationRequest
	path     []byte // scratch of our own for normalising paths
	rawPath  []byte // as it came
	pathMode weft.PathMode
	view     *view
	decision weft.Decision
	plan     plan
	added    []byte  // header lines that filters and rules add, "Name: value\r\n"
	lines    []byte  // scratch for header lines
	out      *buffer // scratch for what is written to either side; nil while not needed
	body     []byte  // the request's body when it was read whole, for replays
	kept     []byte  // memory of body when it lies in no buffer
	whole    bool    // body is all of it
	streamed bool    // part of the body was taken from the client and is gone
	grpc     bool
	upgrade  bool // the request asks for another protocol
	// continued: the client was told to send its body
	continued bool
	tried     [maxTried]*endpoint
	response  http1.Response
	sender    bodySender
	record    Record
	trace     trace.Context
	span      trace.Span // scratch, so that recording one allocates nothing
	traced    bool
	sentAt    time.Time  // when the attempt began; zero where nobody wants to know
	sticky    string     // value of the cookie that the client gets, and did not have
	stickyBy  *weft.Hash // what asked for it; the group may have changed since

	// of a plan with a guard
	call      resilience.Call
	within    callContext // of call
	permit    resilience.Permit
	permitted bool // the circuit has not been told yet how the attempt ended
	outcome   resilience.Outcome
	headAt    time.Time     // when the attempt's response began; zero: it has not
	hint      time.Duration // how long the endpoint asks to be left alone; negative: for ever
	keep      copying
	note      string // that the client is told of its idempotency key
	hedged    bool   // the attempt may get another one beside it

	parked atomic.Bool // waits for the upstream without having looked at its socket

	mu      sync.Mutex   // guards what follows
	up      upstream     // nil between attempts
	rivals  []upstream   // of hedges that run beside up
	relay   *relay.Relay // while bytes are relayed
	nudged  bool         // up's read deadline is past, only to make the goroutine look
	expired bool         // somebody ended the exchange
	resting bool         // between attempts: the end is told by wake

	wake chan struct{} // made when it is needed; cap 1
}

// takeExchange returns an exchange for the connection.
func (p *Proxy) takeExchange(c *conn) *Exchange {
	x := exchanges.Get().(*Exchange)
	x.conn = c
	return x
}

// putExchange takes an exchange back. Nobody else may know it any more.
func (p *Proxy) putExchange(x *Exchange) {
	x.h1.free()
	if x.out != nil {
		x.out.free()
		x.out = nil
	}
	if cap(x.kept) > keptBytes {
		x.kept = nil
	}
	x.conn, x.client, x.view, x.body = nil, nil, nil, nil
	exchanges.Put(x)
}

// exchanges are shared by the whole process; an idle connection holds none.
var exchanges = sync.Pool{New: func() any { return new(Exchange) }}

// keptBytes is how much memory for bodies an exchange may keep for the next one.
const keptBytes = 16 << 10

// Authorization is the request with what only authorization looks at.
func (x *Exchange) Authorization() *weft.AuthorizationRequest { return &x.auth }

// Header implements weft.Headers on the request's head.
func (x *Exchange) Header(name string) (string, bool) {
	value, n := x.head.Lookup(name)
	if n <= 1 {
		return str(value), n == 1
	}
	var all []string
	for i := range x.head.Fields {
		if equalFold(x.head.Name(i), name) {
			all = append(all, string(x.head.Value(i)))
		}
	}
	return strings.Join(all, ","), true
}

// Drop removes a header from the request that goes upstream.
func (x *Exchange) Drop(name string) { dropFields(&x.head.Head, name) }

// DropFunc removes every header for whose name unwanted is true.
func (x *Exchange) DropFunc(unwanted func(name string) bool) {
	for i := range x.head.Fields {
		if unwanted(str(x.head.Name(i))) {
			x.head.Fields[i].Drop = true
		}
	}
}

// Add adds a header to the request that goes upstream.
func (x *Exchange) Add(name, value string) { x.added = appendField(x.added, name, value) }

// Peer is the address of the client's socket.
func (x *Exchange) Peer() string { return x.conn.peerText }

// Secure reports whether the client came over TLS.
func (x *Exchange) Secure() bool { return x.conn.l.TLS != nil }

func dropFields(h *http1.Head, name string) {
	for i := range h.Fields {
		if equalFold(h.Name(i), name) {
			h.Fields[i].Drop = true
		}
	}
}

func appendField(dst []byte, name, value string) []byte {
	dst = append(append(dst, name...), ": "...)
	return append(append(dst, value...), "\r\n"...)
}

func equalFold(b []byte, s string) bool { return strings.EqualFold(str(b), s) }

// str views bytes as a string without copying them; valid as long as the bytes.
func str(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// begin resets the exchange for a request.
func (x *Exchange) begin() {
	x.added = x.added[:0]
	x.decision = weft.Decision{}
	x.tried = [maxTried]*endpoint{}
	x.body, x.whole, x.streamed, x.continued, x.grpc, x.upgrade = nil, false, false, false, false, false
	x.traced, x.sticky, x.note = false, "", ""
	x.keep = copying{}
	x.trace = trace.Context{}
	x.request = weft.Request{}
	x.record = Record{Start: time.Now(), Direction: x.conn.l.Direction}
	x.record.GRPCStatus = grpcUnknown
	x.expired = false
}

// takeOut returns the exchange's output buffer.
func (x *Exchange) takeOut() []byte {
	if x.out == nil {
		x.out = takeBuffer()
	}
	return x.out[:]
}

// serve serves the request whose head is in x.head. It returns whether the
// client's connection may carry another one.
func (x *Exchange) serve() (keep bool) {
	a := x.prepare()
	load := x.conn.p.load
	switch {
	case a != nil:
		keep = x.answer(a)
	case load == nil:
		keep = x.run()
	default:
		if ok, after := load.AdmitRequest(); ok {
			keep = x.run()
			load.ReleaseRequest()
		} else {
			x.conn.p.refused.count("overload_request")
			keep = x.answer(&Answer{Status: 503, Reason: "overload", Text: "too much is going on", RetryAfter: after, Unsent: true})
		}
	}
	x.finish()
	return keep
}

// hold and unhold tie an upstream to the exchange, so that it can be interrupted
// by who does not run it: the sweeper, a client that goes away.
func (x *Exchange) hold(up upstream) {
	x.mu.Lock()
	x.up = up
	if x.expired {
		up.interrupt()
	}
	x.mu.Unlock()
}

// unhold reports whether the exchange was interrupted: the upstream is then of no
// more use.
func (x *Exchange) unhold() (interrupted bool) {
	x.mu.Lock()
	if u, ok := x.up.(*link); ok && x.nudged && !x.expired {
		_ = u.sock.SetReadDeadline(u.until)
	}
	x.nudged = false
	x.up = nil
	interrupted = x.expired
	x.mu.Unlock()
	return interrupted
}

// interruptUpstream makes whoever waits for the upstream fail, now and later.
func (x *Exchange) interruptUpstream() {
	x.cancel()
	x.mu.Lock()
	if x.relay != nil {
		x.relay.Interrupt()
	}
	x.mu.Unlock()
}

// cancel is interruptUpstream for a stream that is lost. A relay over the stream
// must not be told while the stream's connection is locked, and sees it by itself.
func (x *Exchange) cancel() {
	x.mu.Lock()
	x.expired = true
	if x.up != nil {
		x.up.interrupt()
	}
	for _, up := range x.rivals {
		up.interrupt()
	}
	if x.resting {
		x.resting = false
		x.wake <- struct{}{}
	}
	x.mu.Unlock()
}

// rest waits before another attempt. It is false when the exchange, or the proxy,
// ends meanwhile.
func (x *Exchange) rest(wait time.Duration) bool {
	if wait <= 0 {
		return true
	}
	if x.wake == nil {
		x.wake = make(chan struct{}, 1)
	}
	x.mu.Lock()
	x.resting = !x.expired
	over := x.expired
	x.mu.Unlock()
	if over {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-x.wake:
	case <-x.conn.p.life.Done():
		over = true
	}
	x.mu.Lock()
	x.resting = false
	over = over || x.expired
	x.mu.Unlock()
	select {
	case <-x.wake: // at the same moment
	default:
	}
	return !over
}

// nudge makes the exchange look at the upstream's socket, if it waits without.
func (x *Exchange) nudge() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if u, ok := x.up.(*link); ok && !x.expired && x.parked.CompareAndSwap(true, false) {
		x.nudged = true
		_ = u.sock.SetReadDeadline(time.Unix(1, 0))
	}
}

// woken reports whether a read failed only because of a nudge, and makes reading
// possible again.
func (x *Exchange) woken(u *link) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.nudged || x.expired {
		return false
	}
	x.nudged = false
	_ = u.sock.SetReadDeadline(u.until)
	return u.until.IsZero() || time.Now().Before(u.until)
}

func (x *Exchange) wasExpired() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.expired
}

// prepare turns the parsed head into the request that everybody looks at.
func (x *Exchange) prepare() *Answer {
	h := &x.head
	if a := x.prepareUpgrade(); a != nil {
		return a
	}
	if h.Form == http1.Authority && (x.conn.l.Direction != Outbound || x.conn.l.Host != "" || x.client.http2()) {
		return x.unserved(501, "connect", "CONNECT is only for the application's own proxy")
	}
	host := hostOnly(str(h.Authority))
	if x.conn.l.Host != "" {
		host = x.conn.l.Host
	}
	x.view = x.conn.p.view.Load()
	if a := x.normalize(host); a != nil {
		return a
	}
	x.request = weft.Request{Method: str(h.Method), Scheme: "http", Host: host, Path: str(h.Path),
		Query: str(h.Query), Headers: x, Source: x.conn.peer}
	if x.conn.l.TLS != nil {
		x.request.Scheme = "https"
	}
	x.grpc = isGRPC(h)
	x.record.GRPC = x.grpc
	x.auth = weft.AuthorizationRequest{Request: &x.request, PeerAddr: x.conn.peerAddr, Port: x.conn.l.port}
	x.beginTrace()
	if h.Framing != http1.NoBody && string(h.Method) == "TRACE" {
		return x.unserved(400, "trace_body", "TRACE cannot have a body")
	}
	return nil
}

// normalize brings the path to the form that everybody from here on sees: filters,
// routing, the next hop.
func (x *Exchange) normalize(host string) *Answer {
	h, s := &x.head, x.view.snapshot
	if h.Form == http1.Asterisk || h.Form == http1.Authority {
		return nil
	}
	mode := s.Paths
	if x.conn.l.Direction != Inbound {
		mode = s.PathMode(host)
	}
	// The result is h.Path itself when it is normal already, so it must never
	// become the scratch.
	x.path = slices.Grow(x.path[:0], len(h.Path))
	path, err := http1.PathMode(mode).Normalize(x.path, h.Path)
	if err != nil {
		return x.unserved(400, "bad_path", "the path cannot be normalised: "+err.Error())
	}
	x.rawPath, x.pathMode, h.Path = h.Path, mode, path
	return nil
}

// unserved answers what can be parsed and not be served; the rest of the
// connection is not trusted.
func (x *Exchange) unserved(status int, reason, text string) *Answer {
	x.conn.p.refused.count(reason)
	return &Answer{Status: status, Reason: reason, Text: text, Close: true}
}

// hostOnly is the host of an authority, lower case and without port.
func hostOnly(authority string) string {
	if strings.HasPrefix(authority, "[") {
		if i := strings.IndexByte(authority, ']'); i > 0 {
			return strings.ToLower(authority[1:i])
		}
	} else if i := strings.IndexByte(authority, ':'); i >= 0 {
		authority = authority[:i]
	}
	return strings.ToLower(authority) // no copy when it is lower case already
}

// beginTrace continues the client's trace or begins one.
func (x *Exchange) beginTrace() {
	if i := x.head.Find(http1.FieldTraceparent); i >= 0 {
		if parent, ok := trace.Parse(x.head.Value(i)); ok {
			x.record.Parent = parent.SpanID
			x.trace = parent.Child(trace.NewSpanID(rand.Uint64))
			x.traced = true
			dropFields(&x.head.Head, "traceparent")
			return
		}
		dropFields(&x.head.Head, "traceparent")
		dropFields(&x.head.Head, "tracestate") // it belongs to the parent that could not be read
	}
	x.trace = trace.NewRoot(rand.Uint64, false)
	if x.conn.p.sample.Sample(x.trace.TraceID) {
		x.trace.Flags |= 1
	}
	x.traced = true
}

// run passes the filters, routes and forwards.
func (x *Exchange) run() (keep bool) {
	c := x.conn
	for _, f := range c.l.Filters {
		if a := f.Request(x); a != nil {
			return x.answer(a)
		}
	}
	if c.l.Direction == Inbound {
		return x.forwardLocal()
	}
	if x.head.Form == http1.Authority {
		x.serveConnect()
		return false
	}
	if a := x.route(); a != nil {
		return x.answer(a)
	}
	return x.forwardRouted()
}

// needPatience is how long a request waits for configuration that the proxy has
// not asked for before.
const needPatience = 3 * time.Second

// route fills x.decision, fetching what the snapshot lacks. It answers redirects,
// direct responses and dead ends.
func (x *Exchange) route() *Answer {
	p := x.conn.p
	x.decision = x.view.snapshot.Route(&x.request, rand.Uint64())
	if x.decision.Problem == weft.NotLoaded && p.source != nil {
		ctx, cancel := context.WithTimeout(p.life, needPatience)
		p.source.Need(ctx, strings.Clone(x.request.Host))
		cancel()
		x.view = p.view.Load()
		if x.view.snapshot.PathMode(x.request.Host) != x.pathMode {
			x.head.Path = x.rawPath
			if a := x.normalize(x.request.Host); a != nil {
				return a
			}
			x.request.Path = str(x.head.Path)
		}
		x.decision = x.view.snapshot.Route(&x.request, rand.Uint64())
	}
	d := &x.decision
	x.record.Rule, x.record.Edge = d.Rule, d.Edge
	switch {
	case d.Problem == weft.NoHost && x.leavesMesh():
		return nil
	case d.Problem != "":
		if d.Destination != nil {
			x.record.Destination = d.Destination.Service.Name
		}
		return problemAnswer(x, d)
	case d.Rule.Redirect != nil:
		code, location := d.Rule.Redirect.Apply(&x.request, string(x.head.Authority))
		return &Answer{Status: code, Location: location}
	case d.Rule.Direct != nil:
		return &Answer{Status: d.Rule.Direct.Status, Body: d.Rule.Direct.Body}
	}
	return nil
}

// leavesMesh reports whether an unknown host is somebody else's: a domain that a
// client asked its forward proxy for. Names that can only be services are not.
func (x *Exchange) leavesMesh() bool {
	h := x.request.Host
	return x.conn.l.Direction == Outbound && x.conn.l.Host == "" && (x.head.Form == http1.Absolute || x.head.Form == http1.Authority) &&
		(strings.Contains(h, ".") || h == "localhost") &&
		!strings.HasSuffix(h, "."+weft.ClusterDomain) && !strings.HasSuffix(h, ".consul") && !strings.HasSuffix(h, ".svc")
}
