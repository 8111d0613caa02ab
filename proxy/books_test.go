package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// What is counted up for an exchange has to be counted down whatever becomes of
// it: a place in a limit, a call in flight at an endpoint, an open connection.

// books lists what does not add up while nothing is in flight.
func (p *Proxy) books() string {
	var wrong []string
	note := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	p.mu.Lock()
	clusters := append([]*cluster(nil), p.locals...)
	clusters = append(clusters, p.gone...)
	for _, c := range p.external {
		clusters = append(clusters, c)
	}
	for c := range p.conns {
		c.mu.Lock()
		if c.busy != nil {
			note("a connection is busy")
		}
		c.mu.Unlock()
		if c.phase.Load() == phaseMany && c.h2.Active() > 0 {
			note("a client's connection has %d streams", c.h2.Active())
		}
	}
	p.mu.Unlock()
	for _, c := range p.view.Load().clusters {
		clusters = append(clusters, c)
	}
	for _, c := range clusters {
		if in, wait := c.limit.inUse.Load(), c.limit.waiting.Load(); in != 0 || wait != 0 {
			note("%s: %d in use, %d waiting", c.name, in, wait)
		}
		c.mu.Lock()
		endpoints := append([]*endpoint(nil), c.leaving...)
		for _, e := range c.endpoints {
			endpoints = append(endpoints, e)
		}
		c.mu.Unlock()
		open := 0
		for _, e := range endpoints {
			if n := e.target.InFlight(); n != 0 {
				note("%s: %d in flight", e.id, n)
			}
			e.pool.mu.Lock()
			open += len(e.pool.idle)
			e.pool.mu.Unlock()
			e.muxes.mu.Lock()
			open += len(e.muxes.conns)
			for _, h2 := range e.muxes.conns {
				if n := h2.Active(); n != 0 {
					note("%s: %d streams", e.id, n)
				}
			}
			e.muxes.mu.Unlock()
		}
		if n := c.open.Load(); n != int64(open) {
			note("%s: %d connections counted, %d kept", c.name, n, open)
		}
	}
	return strings.Join(wrong, "; ")
}

// settled waits until the proxy's books balance.
func settled(t testing.TB, p *Proxy) {
	t.Helper()
	until(t, "", func() string { return p.books() })
}

// gone waits until nobody is connected to the proxy, too.
func gone(t testing.TB, p *Proxy) {
	t.Helper()
	until(t, "", func() string {
		if n := p.Connections(); n > 0 {
			return fmt.Sprintf("%d connections are open", n)
		}
		return p.books()
	})
}

// until polls for at most some seconds; wrong says what is not as it should be yet.
func until(t testing.TB, what string, wrong func() string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		w := wrong()
		if w == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s%s", what, w)
		}
		<-time.After(time.Millisecond)
	}
}

// within fails the test when what takes longer than anything takes that does not
// hang.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		panic(what + " hangs") // with everybody's stacks
	}
}
