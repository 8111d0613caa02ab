package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/proxy/mux"
	"github.com/weftmesh/weft/proxy/relay"
	"github.com/weftmesh/weft/telemetry/metric"
	"github.com/weftmesh/weft/wire/http1"
)

// conn is one downstream connection.
type conn struct {
	// constant
	p        *Proxy
	l        *Listener
	base     net.Conn // as it was accepted: below sock, which others must not look at
	peerAddr netip.Addr
	peerText string // peerAddr, written once

	// of the goroutine that runs serve; constant once requests are served
	sock    net.Conn
	raw     syscall.RawConn       // nil with TLS
	tryRead func(fd uintptr) bool // readWithoutWaiting, made once
	inPlace func(fd uintptr) bool // serveReady, made once
	peer    weft.Identity
	source  string                // peer's service account, for records
	series  *metric.RequestSeries // of an inbound connection

	// of the goroutine that runs serve, in HTTP/1
	in      *buffer // nil while idle
	r, w    int     // in[r:w] was read and not used yet
	readN   int
	readErr error
	over    bool // serveReady saw the connection's end, or made it
	lingers bool // it made it, and the client may still be sending
	// truncated: the last response is not whole, and only a reset can say so
	truncated bool
	x         *Exchange // nil while idle

	calls atomic.Pointer[metric.GRPCCalls] // series for gRPC, resolved on first use

	// written by the goroutine, read by the sweeper
	deadline atomic.Int64 // coarse, unix ns
	phase    atomic.Uint32
	client   patience
	unsure   atomic.Bool // waits without having asked whether there is something to read

	mu      sync.Mutex // guards what follows
	busy    *Exchange  // of HTTP/1: what interrupt must reach beside the socket
	h2      *mux.Conn  // of HTTP/2
	expired bool       // the sweeper ended the present phase
	nudged  bool       // the read deadline is past, only to make the goroutine look again
	left    bool       // the read deadline is past, because the connection was idle for too long
}

// Phases of a connection.
const (
	phaseIdle uint32 = iota // between requests
	phaseOpen               // PROXY header, TLS handshake
	phaseHead               // a head has begun to arrive
	phaseBusy               // an exchange is on its way
	phaseMany               // HTTP/2: its streams have phases of their own
)

func newConn(p *Proxy, l *Listener, sock net.Conn) *conn {
	c := &conn{p: p, l: l, base: sock, sock: sock}
	if ap, err := netip.ParseAddrPort(sock.RemoteAddr().String()); err == nil {
		c.peerAddr = ap.Addr().Unmap()
		c.peerText = c.peerAddr.String()
	}
	c.enter(phaseOpen, time.Now().UnixNano(), shakeTimeout)
	return c
}

// serve runs the connection to its end.
func (c *conn) serve() {
	defer c.finish()
	defer func() {
		if c.lingers {
			c.linger()
		}
	}()
	protocol, ok := c.open()
	if !ok {
		return
	}
	c.enter(phaseIdle, time.Now().UnixNano(), idleTimeout)
	c.expireIfDraining()
	switch {
	case protocol == protocolRaw:
		c.serveRaw(weft.Decision{}, nil, nil)
		return
	case c.l.Raw:
		d, ok := c.p.view.Load().snapshot.RouteGatewayTCP(c.l.Port, rand.Uint64())
		if !ok {
			d.Problem = weft.NoRule
		}
		c.serveRaw(d, nil, nil)
		return
	case c.l.Direction == Outbound && c.l.Host != "":
		if c.detect() {
			return
		}
		c.expireIfDraining()
	}
	if protocol == "" { // plain text, or a peer without ALPN
		speaks, err := c.speaksHTTP2()
		if err != nil {
			c.headFailed(err)
			return
		}
		if speaks {
			protocol = protocolHTTP2
		}
	}
	if protocol == protocolHTTP2 {
		c.serveHTTP2()
		return
	}
	c.serveHTTP1()
}

// open makes the connection ready for the protocol inside: PROXY header, TLS. ok
// is false when it is over already.
func (c *conn) open() (protocol string, ok bool) {
	if !c.acceptProxy() {
		return "", false
	}
	if c.l.Direction == Edge && c.l.TLS != nil {
		if c.passThrough() {
			return "", false
		}
		c.unread()
	}
	if c.l.TLS != nil {
		var err error
		if protocol, err = c.handshake(); err != nil {
			c.p.refused.count("tls_handshake")
			c.p.logger.Debug("handshake refused", "peer", c.peerText, "error", err)
			return "", false
		}
	} else if tcp, plain := c.sock.(*net.TCPConn); plain {
		c.raw, _ = tcp.SyscallConn()
		c.tryRead, c.inPlace = c.readWithoutWaiting, c.serveReady
	}
	if c.l.Direction == Inbound {
		c.series = c.p.metrics.Requests("inbound", c.source, c.p.self.Name, "")
	}
	return protocol, true
}

// grpcCalls are the calls of an inbound connection's peer.
func (c *conn) grpcCalls() *metric.GRPCCalls {
	if g := c.calls.Load(); g != nil {
		return g
	}
	g := c.p.metrics.GRPC(Inbound.String(), c.source, c.p.self.Name)
	c.calls.Store(g)
	return g
}

// acceptProxy learns from a trusted load balancer whose connection this is.
func (c *conn) acceptProxy() bool {
	trusted := false
	for _, prefix := range c.l.ProxyFrom {
		trusted = trusted || prefix.Contains(c.peerAddr)
	}
	if !trusted {
		return true
	}
	accepted, err := relay.AcceptProxy(c.sock, headTimeout)
	if err != nil {
		c.p.refused.count("proxy_header")
		c.p.logger.Debug("no PROXY header", "peer", c.peerText, "error", err)
		return false
	}
	c.sock = accepted
	if ap, err := netip.ParseAddrPort(accepted.RemoteAddr().String()); err == nil {
		c.peerAddr = ap.Addr().Unmap()
		c.peerText = c.peerAddr.String()
	}
	return true
}

// serveHTTP1 serves one request after the other.
func (c *conn) serveHTTP1() {
	for {
		if c.raw != nil && c.r == c.w && !c.serveInPlace() {
			return
		}
		if !c.readHead() {
			return
		}
		if !c.exchange() {
			c.linger()
			return
		}
	}
}

// serveInPlace serves requests for as long as they have no body and come one by
// one, which is most of the time of most connections. It returns false when the
// connection is over, and true when readHead has to look at what came.
//
// All of it runs inside one call of the poller, and a read that brought less than
// there was room for is not followed by one that would say "nothing more". That
// saves a system call a request, and leaves one thing unseen: an end of stream
// that arrived together with the bytes before it. The sweeper makes up for that
// by nudging connections that wait for more than its interval.
func (c *conn) serveInPlace() bool {
	c.over = false
	for {
		err := c.raw.Read(c.inPlace)
		switch {
		case err == nil:
			return !c.over
		case !c.woken():
			return false
		}
	}
}

// serveReady is called by the runtime's poller: false means "wait until readable
// and call again".
func (c *conn) serveReady(fd uintptr) bool {
	for {
		room := bufferSize - c.w
		c.unsure.Store(false)
		if !c.readWithoutWaiting(fd) {
			return false
		}
		if c.readErr != nil || c.readN == 0 {
			c.over = true
			return true
		}
		c.w += c.readN
		short := c.readN < room
		for c.r < c.w {
			x := c.takeX()
			n, err := x.head.Parse(c.in[c.r:c.w], &limits)
			if err != nil || x.head.Framing != http1.NoBody || x.head.Upgrade != nil || x.head.Form == http1.Authority {
				return true // a body and a tunnel are read while the exchange runs: not from in here
			}
			c.r += n
			if !c.exchange() {
				c.over = true
				c.lingers = true
				return true
			}
		}
		if short {
			c.unsure.Store(true)
			return false
		}
	}
}

// takeX returns the exchange that heads are parsed into.
func (c *conn) takeX() *Exchange {
	if c.x == nil {
		c.x = c.p.takeExchange(c)
		c.x.useHTTP1()
	}
	return c.x
}

// Protocols as ALPN names them (RFC 7301).
const (
	protocolHTTP1 = "http/1.1"
	protocolHTTP2 = "h2"
	protocolRaw   = "weft-tcp" // bytes for the application, whatever they are
)

// Protocols are what Inbound listeners speak inside of TLS, as ALPN names.
var Protocols = []string{protocolHTTP2, protocolHTTP1, protocolRaw}

// handshake learns who the peer is and what it will speak.
func (c *conn) handshake() (protocol string, err error) {
	below := c.sock
	if c.l.Direction == Inbound {
		below = &relay.Cuttable{Conn: below}
	}
	secured := tls.Server(below, c.l.TLS)
	ctx, cancel := context.WithTimeout(context.Background(), shakeTimeout)
	defer cancel()
	if err := secured.HandshakeContext(ctx); err != nil {
		return "", err
	}
	c.sock = secured
	state := secured.ConnectionState()
	if c.l.Identify == nil {
		return state.NegotiatedProtocol, nil
	}
	peer, err := c.l.Identify(&state)
	if err != nil {
		return "", err
	}
	c.peer, c.source = peer, peer.ServiceAccount()
	return state.NegotiatedProtocol, nil
}

// preface is how a client of HTTP/2 begins (RFC 9113 §3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// speaksHTTP2 looks at the first bytes that the client sends.
func (c *conn) speaksHTTP2() (bool, error) {
	for {
		if c.w > 0 {
			n := min(c.w, len(preface))
			if string(c.in[:n]) != preface[:n] {
				return false, nil
			}
			if n == len(preface) {
				return true, nil
			}
			if c.phase.Load() == phaseIdle {
				c.enter(phaseHead, c.p.clock.Load(), headTimeout)
			}
		}
		if err := c.fill(); err != nil {
			return false, err
		}
	}
}

func (c *conn) finish() {
	if c.truncated {
		if tcp, ok := c.base.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.base.Close() // before TLS can say goodbye
	}
	_ = c.sock.Close()
	if c.in != nil {
		c.in.free()
		c.in = nil
	}
	if c.x != nil {
		c.p.putExchange(c.x)
		c.x = nil
	}
}

// enter starts a phase that the sweeper ends after patience.
func (c *conn) enter(phase uint32, now int64, patience time.Duration) {
	c.deadline.Store(now + int64(patience))
	c.phase.Store(phase)
}

// write sends to the client.
func (c *conn) write(b []byte) (int, error) {
	c.client.begin(c.p.clock.Load())
	n, err := c.sock.Write(b)
	c.client.end(c.p.clock.Load(), n)
	return n, err
}

// read reads a body's bytes from the client.
func (c *conn) read(b []byte) (int, error) {
	c.client.begin(c.p.clock.Load())
	n, err := c.sock.Read(b)
	c.client.end(c.p.clock.Load(), n)
	return n, err
}

// Write implements io.Writer for what writes in pieces.
func (c *conn) Write(b []byte) (int, error) { return c.write(b) }

// Waits, Moved and Rests make the connection the meter of a body that the kernel
// moves to the client.
func (c *conn) Waits() { c.client.begin(c.p.clock.Load()) }

func (c *conn) Moved(n int) {
	now := c.p.clock.Load()
	c.client.end(now, n)
	c.client.begin(now)
	c.progress()
}

func (c *conn) Rests() { c.client.end(c.p.clock.Load(), 0) }

// progress moves the present phase's deadline: bytes have moved.
func (c *conn) progress() { c.deadline.Store(c.p.clock.Load() + int64(stallTimeout)) }

// expireIfDue is the sweeper's look at the connection.
func (c *conn) expireIfDue(now int64) {
	if c.phase.Load() == phaseMany {
		c.h2.Expire(time.Unix(0, now))
		return
	}
	deadline := c.deadline.Load()
	if now >= deadline {
		if c.phase.Load() != phaseIdle || !c.leave() {
			c.interrupt()
		}
		return
	}
	if c.l.Direction == Edge && c.client.over(now, c.p.grace()) && !c.client.drains(c.base, now) {
		c.p.refused.count("slow_client")
		c.interrupt()
		return
	}
	switch phase := c.phase.Load(); {
	case phase == phaseIdle && c.unsure.Load() && deadline-now < int64(idleTimeout-sweepInterval),
		phase == phaseBusy && deadline-now < int64(stallTimeout-sweepInterval):
		c.nudge()
	}
}

// nudge makes a goroutine that waits without having looked at its socket look.
func (c *conn) nudge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.busy != nil:
		c.busy.nudge()
	case !c.expired && !c.left && c.unsure.Load():
		c.nudged = true
		_ = c.base.SetReadDeadline(time.Unix(1, 0))
	}
}

// woken reports whether a read failed only because of a nudge, and makes reading
// possible again.
func (c *conn) woken() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.nudged || c.expired || c.left {
		return false
	}
	c.nudged = false
	_ = c.base.SetReadDeadline(time.Time{})
	return true
}

// interrupt makes all I/O of the connection and of its upstream fail from now on.
func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expired = true
	if c.busy != nil {
		c.busy.interruptUpstream()
	}
	_ = c.base.SetDeadline(time.Unix(1, 0))
}

// expireIdle ends the connection if it is between requests, and none comes within
// lastGrace: one may be on its way, and to close now would reset it. Not every client
// may send it again. The answer to one that comes tells the client to go.
func (c *conn) expireIdle() {
	switch c.phase.Load() {
	case phaseIdle:
		c.deadline.Store(min(c.deadline.Load(), time.Now().Add(lastGrace).UnixNano()))
	case phaseMany:
		c.h2.Drain()
	}
}

// expireIfDraining is for a connection that was not idle when the others were told.
func (c *conn) expireIfDraining() {
	if c.p.draining.Load() {
		c.expireIdle()
	}
}

// leave ends reading between requests: one that arrives at this very moment is
// still answered.
func (c *conn) leave() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy == nil && !c.left {
		c.left = true
		_ = c.base.SetReadDeadline(time.Unix(1, 0))
		return true
	}
	return c.busy != nil
}

// abort ends the connection whatever it is doing. It does not wait, and so it does
// not close: that would wait for an exchange that is served in place.
func (c *conn) abort() {
	c.interrupt()
	c.mu.Lock()
	h2 := c.h2
	c.mu.Unlock()
	if h2 != nil {
		h2.Close()
	}
	if tcp, ok := c.base.(*net.TCPConn); ok {
		_ = tcp.CloseRead() // for who sets deadlines of its own, as a Detector does
	}
}

func (c *conn) wasExpired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.expired
}

// setBusy says which exchange the connection serves.
func (c *conn) setBusy(x *Exchange) {
	c.mu.Lock()
	c.busy = x
	switch {
	case c.expired && x != nil:
		x.interruptUpstream()
	case (c.nudged || c.left) && !c.expired:
		c.nudged, c.left = false, false
		_ = c.base.SetReadDeadline(time.Time{})
	}
	c.mu.Unlock()
}

// readHead reads until a request head is parsed into c.x.head. It answers what is
// malformed and returns false when the connection is to be closed.
func (c *conn) readHead() bool {
	for {
		if c.r < c.w {
			n, err := c.takeX().head.Parse(c.in[c.r:c.w], &limits)
			if err == nil {
				c.r += n
				return true
			}
			if !errors.Is(err, http1.ErrIncomplete) {
				c.refuse(err)
				return false
			}
			if c.phase.Load() == phaseIdle {
				c.enter(phaseHead, c.p.clock.Load(), headTimeout)
			}
			if c.r > 0 {
				c.w = copy(c.in[:], c.in[c.r:c.w])
				c.r = 0
			}
		}
		if err := c.fill(); err != nil {
			c.headFailed(err)
			return false
		}
	}
}

// refuse answers a request that could not be parsed. The connection is of no more
// use: nobody knows where the next request would begin.
func (c *conn) refuse(err error) {
	status, reason := 400, "malformed"
	var e *http1.Error
	if errors.As(err, &e) {
		status, reason = e.Status, e.Reason
	}
	c.p.refused.count(reason)
	c.lastWord(&Answer{Status: status, Reason: reason, Text: "malformed request: " + reason, Close: true})
	c.linger()
}

// lastWord answers what is not a request.
func (c *conn) lastWord(a *Answer) {
	x := c.takeX()
	x.begin()
	x.answer(a)
	x.finish()
}

// headFailed says 408 to who began a head and did not end it; a connection that
// ends between requests just ends.
func (c *conn) headFailed(err error) {
	if c.phase.Load() != phaseHead || !errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	c.p.refused.count("head_timeout")
	_ = c.sock.SetWriteDeadline(time.Now().Add(time.Second))
	c.lastWord(&Answer{Status: 408, Reason: "head_timeout", Text: "the request head did not arrive in " + headTimeout.String(), Close: true})
}

// fill reads once into c.in. An idle plain connection holds no buffer: one is
// taken when there are bytes to read. (TLS keeps its own buffers anyway.)
func (c *conn) fill() error {
	if c.raw != nil {
		if err := c.raw.Read(c.tryRead); err != nil {
			if c.woken() {
				return c.fill()
			}
			return err
		}
		if c.readErr != nil {
			return c.readErr
		}
		if c.readN == 0 {
			return io.EOF
		}
		c.w += c.readN
		return nil
	}
	if c.in == nil {
		c.in = takeBuffer()
	}
	n, err := c.sock.Read(c.in[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	return err
}

// fillBody is fill for a body's bytes.
func (c *conn) fillBody() error {
	before := c.w
	c.client.begin(c.p.clock.Load())
	err := c.fill()
	c.client.end(c.p.clock.Load(), c.w-before)
	return err
}

// readWithoutWaiting is called by the runtime's poller: false means "wait until
// readable and call again".
func (c *conn) readWithoutWaiting(fd uintptr) bool {
	if c.in == nil {
		c.in = takeBuffer()
	}
	for {
		n, err := syscall.Read(int(fd), c.in[c.w:])
		switch err {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			if c.w == 0 {
				c.in.free()
				c.in = nil
			}
			return false
		}
		c.readN, c.readErr = n, err
		return true
	}
}

// exchange serves the request whose head was read. It returns whether the
// connection may carry another one.
func (c *conn) exchange() (keep bool) {
	x := c.x
	x.begin()
	c.client.reset()
	c.enter(phaseBusy, x.record.Start.UnixNano(), stallTimeout)
	c.setBusy(x)
	keep = x.serve()
	c.setBusy(nil)
	if !keep || c.wasExpired() {
		return false
	}
	x.h1.takeSpill()
	c.release()
	c.enter(phaseIdle, c.p.clock.Load(), idleTimeout)
	if c.p.ends() { // since the head was sent, which told the client to stay
		c.expireIdle()
	}
	return true
}

// release gives memory back between requests, keeping bytes of a next request
// that have come already.
func (c *conn) release() {
	if c.r < c.w {
		return
	}
	c.p.putExchange(c.x)
	c.x = nil
	c.r, c.w = 0, 0
	if c.in != nil && c.raw != nil {
		c.in.free()
		c.in = nil
	}
}

// linger closes politely: the client may still be sending, and a reset would take
// the answer away before it is read (RFC 9112 §9.6).
func (c *conn) linger() {
	if c.truncated || c.wasExpired() {
		return
	}
	half, ok := c.sock.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	_ = c.sock.SetReadDeadline(time.Now().Add(lingerTime))
	b := takeBuffer()
	defer b.free()
	for total := 0; total < lingerBytes; {
		n, err := c.sock.Read(b[:])
		if err != nil {
			return
		}
		total += n
	}
}
