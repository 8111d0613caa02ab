package proxy

import (
	"sync/atomic"
	"time"
)

// Observation is what this proxy saw of an endpoint of the mesh since it told of it
// last.
type Observation struct {
	Endpoint  string // its ID in the snapshot
	Failures  int    // to connect, since it last answered
	Successes int    // 1: it answered, and nothing failed since; 0 else
}

// reachedEvery is how often it is told that an endpoint answers, as long as it does.
const reachedEvery = 10 * time.Second

// observed is what an endpoint has yet to tell.
type observed struct {
	misses  atomic.Uint32 // since it answered, or since they were told
	reached atomic.Bool   // it answered since that was told
	told    time.Time     // that it answers, last; zero after a failure. Guarded by Proxy.observing
}

// unreached notes that the endpoint could not be connected to.
func (p *Proxy) unreached(e *endpoint, now time.Time) {
	e.connectFailed(now)
	e.seen.reached.Store(false)
	e.seen.misses.Add(1)
	if p.onUnreachable != nil {
		p.onUnreachable()
	}
}

// answered notes that the endpoint answered, whatever it said. It is on the way of
// each request.
func (e *endpoint) answered() {
	if e.seen.misses.Load() != 0 {
		e.seen.misses.Store(0)
	}
	if !e.seen.reached.Load() {
		e.seen.reached.Store(true)
	}
}

// Observed returns what is new of the endpoints that this proxy calls: each failure,
// and every 10 s that an endpoint answers. What is returned once does not come again.
func (p *Proxy) Observed() (list []Observation) {
	p.observing.Lock()
	defer p.observing.Unlock()
	now := time.Now()
	for _, c := range p.view.Load().clusters {
		for _, e := range c.set.Load().all.endpoints {
			if n := e.seen.misses.Swap(0); n > 0 {
				e.seen.told = time.Time{}
				list = append(list, Observation{Endpoint: e.id, Failures: int(n)})
				continue
			}
			if now.Sub(e.seen.told) >= reachedEvery && e.seen.reached.Swap(false) {
				e.seen.told = now
				list = append(list, Observation{Endpoint: e.id, Successes: 1})
			}
		}
	}
	return list
}
