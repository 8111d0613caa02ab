package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/telemetry/metric"
	"github.com/weftmesh/weft/wire/http1"
)

// conn is one downstream connection.
type conn struct {
	// constant
	p        *Proxy
	l        *Listener
	sock     net.Conn
	raw      syscall.RawConn // nil with TLS
	tryRead  func(fd uintptr) bool
	peerAddr netip.Addr
	peerText string // peerAddr, written once

	// of the goroutine that runs serve
	peer    weft.Identity
	source  string                // peer's service account, for records
	series  *metric.RequestSeries // of an inbound connection
	in      *buffer               // nil while idle
	r, w    int                   // in[r:w] was read and not used yet
	out     *buffer
	readN   int
	readErr error
	x       Exchange

	// written by the goroutine, read by the sweeper
	deadline atomic.Int64 // coarse, unix ns
	phase    atomic.Uint32

	mu      sync.Mutex // guards upstream against being expired after it was given back
	up      *upstream
	expired bool // the sweeper ended the present phase
}

// Phases of a connection.
const (
	phaseIdle uint32 = iota // between requests
	phaseHead               // a head has begun to arrive
	phaseBusy               // an exchange is on its way
)

func newConn(p *Proxy, l *Listener, sock net.Conn) *conn {
	c := &conn{p: p, l: l, sock: sock}
	if ap, err := netip.ParseAddrPort(sock.RemoteAddr().String()); err == nil {
		c.peerAddr = ap.Addr().Unmap()
		c.peerText = c.peerAddr.String()
	}
	c.x.conn = c
	c.enter(phaseHead, time.Now().UnixNano(), shakeTimeout)
	return c
}

// serve runs the connection to its end.
func (c *conn) serve() {
	defer c.finish()
	if c.l.TLS != nil {
		if err := c.handshake(); err != nil {
			c.p.refused.count("tls_handshake")
			c.p.logger.Debug("handshake refused", "peer", c.peerAddr.String(), "error", err)
			return
		}
	} else if tcp, ok := c.sock.(*net.TCPConn); ok {
		c.raw, _ = tcp.SyscallConn()
		c.tryRead = c.readWithoutWaiting
	}
	c.enter(phaseIdle, time.Now().UnixNano(), idleTimeout)
	for c.readHead() {
		if !c.exchange() {
			c.linger()
			return
		}
	}
}

// handshake learns who the peer is.
func (c *conn) handshake() error {
	secured := tls.Server(c.sock, c.l.TLS)
	ctx, cancel := context.WithTimeout(context.Background(), shakeTimeout)
	defer cancel()
	if err := secured.HandshakeContext(ctx); err != nil {
		return err
	}
	c.sock = secured
	if c.l.Identify == nil {
		return nil
	}
	state := secured.ConnectionState()
	peer, err := c.l.Identify(&state)
	if err != nil {
		return err
	}
	c.peer, c.source = peer, peer.ServiceAccount()
	return nil
}

func (c *conn) finish() {
	_ = c.sock.Close()
	if c.in != nil {
		c.in.free()
		c.in = nil
	}
	if c.out != nil {
		c.out.free()
		c.out = nil
	}
	c.x.free()
}

// enter starts a phase that the sweeper ends after patience.
func (c *conn) enter(phase uint32, now int64, patience time.Duration) {
	c.deadline.Store(now + int64(patience))
	c.phase.Store(phase)
}

// progress moves the present phase's deadline: bytes have moved.
func (c *conn) progress() { c.deadline.Store(c.p.clock.Load() + int64(stallTimeout)) }

// expireIfDue is the sweeper's look at the connection.
func (c *conn) expireIfDue(now int64) {
	if now < c.deadline.Load() {
		return
	}
	c.interrupt()
}

// interrupt makes all I/O of the connection and of its upstream fail from now on.
func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expired = true
	past := time.Unix(1, 0)
	if c.up != nil && c.phase.Load() == phaseBusy {
		_ = c.up.sock.SetDeadline(past)
	}
	_ = c.sock.SetDeadline(past)
}

// expireIdle ends the connection if it is between requests. Only reading ends: a
// request that arrives at this very moment is still answered.
func (c *conn) expireIdle() {
	if c.phase.Load() == phaseIdle {
		_ = c.sock.SetReadDeadline(time.Unix(1, 0))
	}
}

// abort ends the connection whatever it is doing.
func (c *conn) abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expired = true
	if c.up != nil {
		_ = c.up.sock.Close()
	}
	_ = c.sock.Close()
}

// hold and unhold tie an upstream connection to this one, so that the sweeper can
// interrupt an exchange that waits for it.
func (c *conn) hold(u *upstream) {
	c.mu.Lock()
	c.up = u
	c.mu.Unlock()
}

// unhold reports whether the exchange was interrupted: the upstream connection is
// then of no more use.
func (c *conn) unhold() (interrupted bool) {
	c.mu.Lock()
	c.up = nil
	interrupted = c.expired
	c.mu.Unlock()
	return interrupted
}

func (c *conn) wasExpired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.expired
}

// readHead reads until a request head is parsed into c.x.head. It answers what is
// malformed and returns false when the connection is to be closed.
func (c *conn) readHead() bool {
	for {
		if c.r < c.w {
			n, err := c.x.head.Parse(c.in[c.r:c.w], &limits)
			if err == nil {
				c.x.headStart = c.r
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
	c.x.begin()
	c.answer(&Answer{Status: status, Reason: reason, Text: "malformed request: " + reason, Close: true})
	c.x.finish()
	c.linger()
}

// headFailed says 408 to who began a head and did not end it; a connection that
// ends between requests just ends.
func (c *conn) headFailed(err error) {
	if c.phase.Load() != phaseHead || !errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	c.p.refused.count("head_timeout")
	_ = c.sock.SetWriteDeadline(time.Now().Add(time.Second))
	c.x.begin()
	c.answer(&Answer{Status: 408, Reason: "head_timeout", Text: "the request head did not arrive in " + headTimeout.String(), Close: true})
	c.x.finish()
}

// fill reads once into c.in. An idle plain connection holds no buffer: one is
// taken when there are bytes to read. (TLS keeps its own buffers anyway.)
func (c *conn) fill() error {
	if c.raw != nil {
		if err := c.raw.Read(c.tryRead); err != nil {
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

// takeOut returns the connection's output buffer.
func (c *conn) takeOut() []byte {
	if c.out == nil {
		c.out = takeBuffer()
	}
	return c.out[:]
}

// release gives buffers back between requests, keeping bytes of a next request
// that have come already.
func (c *conn) release() {
	if c.out != nil {
		c.out.free()
		c.out = nil
	}
	if c.r == c.w {
		c.r, c.w = 0, 0
		if c.in != nil && c.raw != nil {
			c.in.free()
			c.in = nil
		}
	}
}

// linger closes politely: the client may still be sending, and a reset would take
// the answer away before it is read (RFC 9112 §9.6).
func (c *conn) linger() {
	if c.wasExpired() {
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
