package soak

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// breaker is a network that breaks: a TCP proxy that cuts what it carries into other
// pieces, and on demand stalls, resets, or ends connections in the middle.
type breaker struct {
	target string
	ln     net.Listener
	all    sync.WaitGroup

	// gate is held for writing while nothing moves.
	gate sync.RWMutex

	mu    sync.Mutex
	pairs map[*pair]struct{}
	over  bool
}

// pair are the two connections of one.
type pair struct{ near, far *net.TCPConn }

func newBreaker(t testing.TB, target string) *breaker {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &breaker{target: target, ln: ln, pairs: map[*pair]struct{}{}}
	b.all.Go(b.accept)
	t.Cleanup(b.close)
	return b
}

func (b *breaker) address() string { return b.ln.Addr().String() }

func (b *breaker) close() {
	_ = b.ln.Close()
	b.mu.Lock()
	b.over = true
	b.mu.Unlock()
	b.reset(1)
	b.all.Wait()
}

func (b *breaker) accept() {
	for {
		near, err := b.ln.Accept()
		if err != nil {
			return
		}
		b.all.Go(func() { b.carry(near.(*net.TCPConn)) })
	}
}

// carry lives as long as a connection.
func (b *breaker) carry(near *net.TCPConn) {
	defer near.Close()
	far, err := net.DialTimeout("tcp", b.target, 5*time.Second)
	if err != nil {
		_ = near.SetLinger(0) // as the kernel refuses
		return
	}
	defer far.Close()
	p := &pair{near, far.(*net.TCPConn)}
	b.mu.Lock()
	b.pairs[p] = struct{}{}
	over := b.over
	b.mu.Unlock()
	if over {
		p.reset()
	}
	var ways sync.WaitGroup
	ways.Go(func() { b.copy(p, p.far, p.near) })
	ways.Go(func() { b.copy(p, p.near, p.far) })
	ways.Wait()
	b.mu.Lock()
	delete(b.pairs, p)
	b.mu.Unlock()
}

// copy moves bytes one way, and passes the end or the reset on.
func (b *breaker) copy(p *pair, dst, src *net.TCPConn) {
	buf := make([]byte, 64<<10)
	for {
		most := len(buf)
		if rand.IntN(4) == 0 {
			most = 1 + rand.IntN(1500)
		}
		n, err := src.Read(buf[:most])
		b.pass()
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				p.reset()
				return
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			_ = dst.CloseWrite()
			return
		default:
			p.reset()
			return
		}
	}
}

// pass waits while everything is stalled.
func (b *breaker) pass() {
	b.gate.RLock()
	defer b.gate.RUnlock()
}

func (p *pair) reset() {
	for _, c := range []*net.TCPConn{p.near, p.far} {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

// some picks a share of the connections.
func (b *breaker) some(share float64) []*pair {
	b.mu.Lock()
	defer b.mu.Unlock()
	var picked []*pair
	for p := range b.pairs {
		if rand.Float64() < share {
			picked = append(picked, p)
		}
	}
	return picked
}

// reset breaks a share of the connections.
func (b *breaker) reset(share float64) {
	for _, p := range b.some(share) {
		p.reset()
	}
}

// end ends what the target says, politely and too early.
func (b *breaker) end(share float64) {
	for _, p := range b.some(share) {
		_ = p.near.CloseWrite()
		_ = p.far.CloseRead()
	}
}

// stall lets nothing through for a while.
func (b *breaker) stall(d time.Duration) {
	b.gate.Lock()
	defer b.gate.Unlock()
	<-time.After(d)
}
