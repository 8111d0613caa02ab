package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/proxy/relay"
	"github.com/weftmesh/weft/wire/http1"
)

// link is an HTTP/1 connection to an endpoint. Whoever took it from the pool owns
// it alone until it is put back or closed.
type link struct {
	sock     net.Conn
	raw      syscall.RawConn // of the TCP socket below sock, for peeking
	endpoint *endpoint
	cluster  *cluster
	in       *buffer               // nil while idle
	r, w     int                   // in[r:w] was read and not used yet
	served   uint32                // exchanges so far
	deadline bool                  // a deadline is set on sock
	peek     func(fd uintptr) bool // look, made once
	alive    bool                  // what the last look found
	expires  int64                 // while idle: unix ns

	// while it serves an exchange
	x       *Exchange
	pass    func(fd uintptr) bool // step, made once; nil with TLS
	request []byte                // what step writes
	wrote   int                   // bytes of it; -1: not tried yet
	passErr error                 // what step met; fill returns it
	until   time.Time             // the deadline that was set last

	left   int64 // bytes of the response's body to come, if their number is known
	chunks http1.ChunkDecoder
	over   bool    // the response's last chunk was read
	spill  *buffer // where the request's chunks are put together; nil: none yet
	out    []byte  // in spill: chunks that were not written yet
}

// pool keeps idle connections to one endpoint, the one used last on top: it is
// the least likely to have been closed, and the rest can age out.
type pool struct {
	mu      sync.Mutex
	idle    []*link
	drained bool
}

const (
	// idleUpstream is how long an unused connection is kept. Servers that close
	// earlier say so by Keep-Alive, or are noticed when the connection is taken.
	idleUpstream = 60 * time.Second
	maxIdle      = 512 // an endpoint
	// freshness is how long after its last use a connection is trusted without
	// looking at the socket. A look costs a system call; under load connections are
	// used again at once. What a server sends unasked within this time is taken
	// for the answer to the next request.
	freshness = time.Millisecond
)

// get returns an idle connection that is still alive, or nil. careful asks for a
// look at the socket however fresh the connection is.
func (p *pool) get(now int64, careful bool) *link {
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return nil
		}
		u := p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if now < u.expires && (!careful && u.expires-now > int64(idleUpstream-freshness) || u.quiet()) {
			return u
		}
		u.close()
	}
}

// put keeps the connection for the next exchange.
func (p *pool) put(u *link, now int64, patience time.Duration) {
	if u.in != nil {
		u.in.free()
		u.in = nil
	}
	u.r, u.w = 0, 0
	u.expires = now + int64(patience)
	p.mu.Lock()
	if p.drained || len(p.idle) >= maxIdle {
		p.mu.Unlock()
		u.close()
		return
	}
	p.idle = append(p.idle, u)
	p.mu.Unlock()
}

// drain closes the idle connections and refuses to keep others.
func (p *pool) drain() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.drained = nil, true
	p.mu.Unlock()
	for _, u := range idle {
		u.close()
	}
}

// closeIdle closes what is too old (the bottom of the stack) and returns how many
// connections stay.
func (p *pool) closeIdle(now int64) int {
	p.mu.Lock()
	n := 0
	for n < len(p.idle) && p.idle[n].expires <= now {
		n++
	}
	var old []*link
	if n > 0 {
		old = append(old, p.idle[:n]...)
		p.idle = append(p.idle[:0], p.idle[n:]...)
	}
	left := len(p.idle)
	p.mu.Unlock()
	for _, u := range old {
		u.close()
	}
	return left
}

// dropOldest closes the longest unused connection and reports whether there was one.
func (p *pool) dropOldest() bool {
	p.mu.Lock()
	if len(p.idle) == 0 {
		p.mu.Unlock()
		return false
	}
	u := p.idle[0]
	p.idle = append(p.idle[:0], p.idle[1:]...)
	p.mu.Unlock()
	u.close()
	return true
}

// quiet looks at the socket without reading: alive means that there is nothing
// to read. An end of stream, an error and bytes that nobody asked for (an old
// answer's rest, somebody else's answer) all make the connection unusable.
func (u *link) quiet() bool {
	if u.peek == nil {
		u.peek = u.look
	}
	return u.raw.Read(u.peek) == nil && u.alive
}

// look peeks at the socket; true tells the runtime's poller not to wait.
func (u *link) look(fd uintptr) bool {
	var one [1]byte
	_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	u.alive = err == syscall.EAGAIN
	return true
}

func (u *link) close() {
	_ = u.sock.Close()
	u.cluster.open.Add(-1)
	if u.in != nil {
		u.in.free()
		u.in = nil
	}
}

// setDeadline bounds all I/O of the exchange; the zero time takes the bound away.
func (u *link) setDeadline(t time.Time) {
	if t.IsZero() && !u.deadline {
		return
	}
	_ = u.sock.SetDeadline(t)
	u.deadline, u.until = !t.IsZero(), t
}

// fill reads once more into the buffer. There must be room.
func (u *link) fill() error {
	if err := u.passErr; err != nil {
		u.passErr = nil
		return err
	}
	n, err := u.sock.Read(u.in[u.w:])
	u.w += n
	if n > 0 {
		return nil
	}
	if u.x != nil && errors.Is(err, os.ErrDeadlineExceeded) && u.x.woken(u) {
		return u.fill()
	}
	return err
}

// dialLink opens an HTTP/1 connection to the endpoint.
func (p *Proxy) dialLink(c *cluster, e *endpoint, timeout time.Duration) (*link, error) {
	sock, tcp, err := p.dial(e, timeout, protocolHTTP1)
	if err != nil {
		return nil, err
	}
	u := &link{sock: sock, endpoint: e, cluster: c}
	c.open.Add(1)
	if u.raw, err = tcp.SyscallConn(); err != nil {
		u.close()
		return nil, err
	}
	if e.identity == "" {
		u.pass = u.step
	}
	return u, nil
}

// dial connects to the endpoint, with mTLS when it has an identity.
func (p *Proxy) dial(e *endpoint, timeout time.Duration, protocol string) (net.Conn, *net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(p.life, timeout)
	defer cancel()
	var d net.Dialer
	sock, err := d.DialContext(ctx, "tcp", e.address)
	if err != nil {
		return nil, nil, err
	}
	tcp := sock.(*net.TCPConn)
	if e.identity == "" {
		return sock, tcp, nil
	}
	if p.clientTLS == nil {
		_ = sock.Close()
		return nil, nil, weft.Errorf(weft.Internal, "call", string(e.identity), "this proxy has no certificate to show")
	}
	secured := tls.Client(&relay.Cuttable{Conn: sock}, p.clientTLS(e.identity, protocol))
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = sock.Close()
		return nil, nil, err
	}
	return secured, tcp, nil
}
