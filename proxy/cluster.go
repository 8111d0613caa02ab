package proxy

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/balance"
	"github.com/weftmesh/weft/resilience"
	"github.com/weftmesh/weft/telemetry/metric"
)

// cluster is the runtime state of one service that this proxy calls.
type cluster struct {
	name   string // "order-service.default", for records
	zone   string // the proxy's
	limit  limit
	budget resilience.Budget
	open   atomic.Int64 // connections, idle ones too
	asked  atomic.Int64 // outside the mesh: when somebody came for it last, coarse unix ns

	// swapped whole by update
	set   atomic.Pointer[endpointSet]
	guard atomic.Pointer[guard] // nil: the service has no ResiliencePolicy

	mu        sync.Mutex
	endpoints map[string]*endpoint // by ID, address, identity and protocol
	leaving   []*endpoint          // went, and still have HTTP/2 connections with streams
}

// endpointSet is one immutable state of a cluster's endpoints.
type endpointSet struct {
	service *weft.Service
	all     *group
	subsets map[string]*group
}

// endpoint is one endpoint with everything known of it. It lives as long as the
// snapshot holds it, whatever else of its service changes.
type endpoint struct {
	id       string
	address  string
	identity weft.Identity
	version  string
	protocol weft.Protocol // what its port declares to speak

	target  balance.Target
	outlier resilience.Outlier
	// metrics by direction, resolved on first use
	series [3]atomic.Pointer[metric.RequestSeries]
	calls  [3]atomic.Pointer[metric.GRPCCalls]
	// After a failed connect the endpoint is avoided for a while: 250 ms,
	// doubling to 5 s. Otherwise a dead instance would take its share of first
	// tries until the registry drops it.
	downUntil atomic.Int64
	downTimes atomic.Int32
	seen      observed

	pool  pool  // HTTP/1
	muxes muxes // HTTP/2
}

const (
	downMin = 250 * time.Millisecond
	downMax = 5 * time.Second
)

// newCluster returns a cluster without endpoints. zone is where the proxy is.
func newCluster(name, zone string) *cluster {
	c := &cluster{name: name, zone: zone, endpoints: map[string]*endpoint{}}
	c.set.Store(&endpointSet{service: &weft.Service{}, all: newGroup(&weft.TrafficPolicy{}, "", nil, nil, nil)})
	return c
}

// update replaces the cluster's endpoints and policies. Endpoints that stay keep
// their state; those that went drain.
func (c *cluster) update(s *weft.Service) {
	if c.set.Load().service == s {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := make(map[string]*endpoint, len(s.Endpoints))
	live := make([]*endpoint, len(s.Endpoints))
	now, known := time.Now().UnixNano(), len(c.endpoints) > 0
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		key := e.ID + "|" + e.Address + "|" + string(e.Identity) + "|" + string(e.Protocol)
		ep := c.endpoints[key]
		if ep == nil {
			ep = &endpoint{id: e.ID, address: e.Address, identity: e.Identity, version: e.Labels["version"], protocol: e.Protocol}
			if known { // and it was not there
				ep.target.Join(now)
			}
		} else if v := e.Labels["version"]; v != ep.version {
			ep = ep.relabelled(v)
		}
		kept[key], live[i] = ep, ep
	}
	next := &endpointSet{service: s, all: newGroup(&s.Policy, c.zone, s.Endpoints, live, nil), subsets: make(map[string]*group, len(s.Subsets))}
	for i := range s.Subsets {
		sub := &s.Subsets[i]
		next.subsets[sub.Name] = newGroup(&sub.Policy, c.zone, s.Endpoints, live, sub)
	}
	gone := c.endpoints
	c.endpoints = kept
	c.set.Store(next)
	for key, ep := range gone {
		if kept[key] != ep {
			ep.pool.drain()
			ep.muxes.drain()
			c.leaving = append(c.leaving, ep)
		}
	}
}

// adopt looks after the connection of an endpoint that went before somebody connected
// to it who had picked it.
func (c *cluster) adopt(e *endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.leaving, e) {
		c.leaving = append(c.leaving, e)
	}
}

// relabelled is the same endpoint under another version label. Its connections
// stay with the old one, which drains.
func (e *endpoint) relabelled(version string) *endpoint {
	return &endpoint{id: e.id, address: e.address, identity: e.identity, version: version, protocol: e.protocol}
}

// group of a subset, or of the whole service for "". nil when there is no such
// subset.
func (s *endpointSet) group(subset string) *group {
	if subset == "" {
		return s.all
	}
	return s.subsets[subset]
}

// connectFailed keeps picks away from the endpoint for a while.
func (e *endpoint) connectFailed(now time.Time) {
	n := min(e.downTimes.Add(1)-1, 10)
	e.downUntil.Store(now.Add(min(downMin<<n, downMax)).UnixNano())
}

func (e *endpoint) connected() {
	if e.downTimes.Load() != 0 {
		e.downTimes.Store(0)
		e.downUntil.Store(0)
		e.target.Join(time.Now().UnixNano())
	}
}

// requests resolves the endpoint's metrics once for each direction.
func (e *endpoint) requests(p *Proxy, d Direction, destination string) *metric.RequestSeries {
	if s := e.series[d].Load(); s != nil {
		return s
	}
	s := p.metrics.Requests(d.String(), p.self.Name, destination, e.version)
	e.series[d].Store(s)
	return s
}

// grpcCalls is requests for gRPC.
func (e *endpoint) grpcCalls(p *Proxy, d Direction, destination string) *metric.GRPCCalls {
	if c := e.calls[d].Load(); c != nil {
		return c
	}
	c := p.metrics.GRPC(d.String(), p.self.Name, destination)
	e.calls[d].Store(c)
	return c
}

// closeIdle closes connections that were idle too long and returns how many stay.
func (c *cluster) closeIdle(now int64) (left int) {
	set := c.set.Load()
	set.refresh(now)
	for _, e := range set.all.endpoints {
		left += e.pool.closeIdle(now) + e.muxes.expire(time.Unix(0, now), c.opened)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.leaving[:0]
	for _, e := range c.leaving {
		if e.muxes.expire(time.Unix(0, now), c.opened) > 0 {
			kept = append(kept, e)
		}
	}
	clear(c.leaving[len(kept):])
	c.leaving = kept
	return left + len(kept)
}

func (c *cluster) opened(n int) { c.open.Add(int64(n)) }

// close ends all connections at once and waits for what runs on them.
func (c *cluster) close() {
	c.update(&weft.Service{})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.leaving {
		e.muxes.close(c.opened)
	}
	c.leaving = nil
}

// limit caps the exchanges of a cluster that hold a connection, and those that
// wait for one. HTTP/1 carries one exchange a connection, so there connections and
// requests in flight are the same number.
type limit struct {
	inUse   atomic.Int64
	waiting atomic.Int64

	mu    sync.Mutex
	queue []chan struct{} // first in, first out
}

// acquire takes a slot: at once when there is one, else after waiting in line for as
// long as the plan has patience. reason says what was full when it fails.
func (l *limit) acquire(pl *plan) (reason string) {
	p := pl.group.policy
	most := int64(p.MaxConnections)
	if pl.http2 {
		most = 0
	}
	if p.MaxRequests > 0 && (most == 0 || int64(p.MaxRequests) < most) {
		most = int64(p.MaxRequests)
	}
	if most == 0 {
		l.inUse.Add(1)
		return ""
	}
	if l.take(most) {
		return ""
	}
	if p.MaxPendingRequests > 0 && l.waiting.Load() >= int64(p.MaxPendingRequests) {
		return "pending_overflow"
	}
	return l.wait(most, pl.group.patience(time.Now(), pl.deadline))
}

// wait is acquire when there was no slot.
func (l *limit) wait(most int64, patience time.Duration) (reason string) {
	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		woken := make(chan struct{}, 1)
		l.mu.Lock()
		l.queue = append(l.queue, woken)
		l.mu.Unlock()
		if l.take(most) { // a slot came free before we stood in line
			l.leave(woken)
			return ""
		}
		select {
		case <-woken:
			if l.take(most) {
				return ""
			}
		case <-timer.C:
			l.leave(woken)
			return "pending_timeout"
		}
	}
}

func (l *limit) take(most int64) bool {
	for {
		n := l.inUse.Load()
		if n >= most {
			return false
		}
		if l.inUse.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release gives a slot back and wakes who has waited longest.
func (l *limit) release() {
	l.inUse.Add(-1)
	if l.waiting.Load() == 0 {
		return
	}
	l.wakeOne()
}

func (l *limit) wakeOne() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) > 0 {
		l.queue[0] <- struct{}{}
		l.queue = l.queue[1:]
	}
}

// leave takes woken out of the line. If it was woken meanwhile, the next in line
// gets that chance.
func (l *limit) leave(woken chan struct{}) {
	l.mu.Lock()
	for i, w := range l.queue {
		if w == woken {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			l.mu.Unlock()
			return
		}
	}
	l.mu.Unlock()
	l.wakeOne()
}
