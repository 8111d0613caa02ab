// Package proxy is the data plane: it accepts connections, reads requests, decides
// by the current weft.Snapshot where each goes, and streams it to an endpoint and
// the answer back.
//
// One Proxy is one process's data plane. It owns the pools of upstream
// connections, the state of every endpoint, and any number of listeners of three
// directions: Outbound (the own application calls other services), Inbound (other
// sidecars call the own application over mTLS) and Edge (a gateway).
//
// An exchange, one request and its response, has two sides, a client and an
// upstream, and either speaks HTTP/1 or HTTP/2 (gRPC and WebSocket among them). With
// HTTP/1 one goroutine serves one downstream connection and does its upstream I/O
// too, because a hand-over between goroutines costs more than parsing a request;
// only a request body that does not fit the read buffer gets a second one, so that
// an early answer is seen while the body is still being sent. With HTTP/2 (package
// mux) a connection has one goroutine that reads it and a worker for each stream.
// Connections that carry something else are relayed as bytes (package relay), after
// they were routed, authorized, balanced and limited as exchanges are.
//
// Time limits come in two kinds. A route's own timeouts are deadlines on the
// upstream socket. The rest (idle connections, slow heads, stalled bodies) is a
// coarse deadline in each connection that one sweeper looks at every 100 ms: it
// costs a store per phase and no timer per request.
//
// The proxy never asks where a snapshot comes from: somebody calls Update, and
// may give a Source that can fetch what a request needs and the snapshot lacks.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/proxy/mux"
	"github.com/weftmesh/weft/proxy/overload"
	"github.com/weftmesh/weft/proxy/relay"
	"github.com/weftmesh/weft/resilience"
	"github.com/weftmesh/weft/telemetry/accesslog"
	"github.com/weftmesh/weft/telemetry/metric"
	"github.com/weftmesh/weft/telemetry/trace"
)

// Source fetches configuration that is not in the snapshot yet. Need is called
// from a connection's goroutine and may block until ctx ends; it returns when the
// latest Update knows host (as existing or not), or gives up.
type Source interface {
	Need(ctx context.Context, host string)
}

// Config of a Proxy. The zero values of all but Self are usable.
type Config struct {
	Self   weft.ServiceName // the workload or gateway that this proxy belongs to
	Source Source           // nil: the snapshot is all there is
	// ClientTLS is how to call an endpoint with an identity, offering protocols by ALPN.
	ClientTLS func(peer weft.Identity, protocols ...string) *tls.Config
	Metrics   *metric.Registry
	Spans     *trace.Recorder   // nil: no spans
	Sample    trace.Sampler     // for traces that begin here
	AccessLog *accesslog.Writer // one line an exchange; nil: none
	Logger    *slog.Logger
	// Load decides whether new work may begin. One monitor serves a process, whose
	// owner closes it after the proxy; nil: everything may.
	Load *overload.Monitor
	// Zone is where this proxy is: "region/zone/subzone", or just a zone.
	Zone string
	// OnBreaker is told of each change of a circuit's state, from the exchange that
	// caused it: it must not block. nil: nobody is.
	OnBreaker func(BreakerEvent)
	// OnUnreachable is called when an endpoint could not be connected to, from the
	// exchange that met it: it must not block. Observed then says of which. nil: nobody is.
	OnUnreachable func()
	// Answers is the mesh's store of idempotency keys. nil: policies that ask for it
	// are not in force.
	Answers resilience.IdempotencyStore
}

// Proxy is one process's data plane. Create it by New and end it by Close.
type Proxy struct {
	// constant
	self          weft.ServiceName
	source        Source
	clientTLS     func(weft.Identity, ...string) *tls.Config
	metrics       *metric.Registry
	spans         *trace.Recorder
	sample        trace.Sampler
	accessLog     *accesslog.Writer
	logger        *slog.Logger
	load          *overload.Monitor // nil: no limits
	zone          string
	onBreaker     func(BreakerEvent)
	onUnreachable func()
	cluster       resilience.IdempotencyStore
	answers       func() *resilience.MemoryStore // made when a policy asks for it
	refused       refusals
	ejected       *metric.Counter
	workers       mux.Workers
	speaks        relay.Memory[string] // what hosts speak that do not declare it
	stop          context.CancelFunc
	life          context.Context // until Close: of all that waits to be connected or configured
	hangUp        context.CancelFunc
	sweeping      sync.WaitGroup

	// read by every exchange, swapped by Update
	view atomic.Pointer[view]
	// coarse unix ns, written by the sweeper
	clock    atomic.Int64
	draining atomic.Bool

	update    sync.Mutex // serialises Update
	observing sync.Mutex // serialises Observed

	mu        sync.Mutex // guards what follows; never held during I/O
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	external  map[string]*cluster // hosts outside the mesh, by host:port
	locals    []*cluster          // the own application, one for each inbound listener
	gone      []*cluster          // of services that went, while they have connections
	serving   sync.WaitGroup      // one for each accept loop and connection
}

// view is a snapshot with the runtime state of its services.
type view struct {
	snapshot *weft.Snapshot
	clusters map[weft.ServiceName]*cluster
	guards   map[string]*guard     // of all policies in force
	rules    map[*weft.Rule]*guard // of rules that have their own
}

// New returns a running proxy that serves nothing yet.
func New(c Config) *Proxy {
	p := &Proxy{
		self: c.Self, source: c.Source, clientTLS: c.ClientTLS, metrics: c.Metrics,
		spans: c.Spans, sample: c.Sample, accessLog: c.AccessLog, logger: c.Logger, load: c.Load, zone: c.Zone, onBreaker: c.OnBreaker, onUnreachable: c.OnUnreachable, cluster: c.Answers,
		answers:   sync.OnceValue(func() *resilience.MemoryStore { return resilience.NewMemoryStore(memoryAnswers) }),
		listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{}, external: map[string]*cluster{},
	}
	if p.metrics == nil {
		p.metrics = metric.New(0)
	}
	if p.logger == nil {
		p.logger = slog.New(slog.DiscardHandler)
	}
	p.refused = newRefusals(p.metrics)
	p.ejected = p.metrics.Counter("weft_ejections_total", "Endpoints ejected by outlier detection.")
	p.clock.Store(time.Now().UnixNano())
	p.view.Store(&view{snapshot: &weft.Snapshot{}})
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	p.life, p.hangUp = context.WithCancel(ctx)
	p.sweeping.Go(func() { p.sweep(ctx) })
	return p
}

// Update makes s the snapshot of all exchanges that begin from now on. State of
// endpoints that stay (connections, failures) is kept; endpoints that went are
// drained: their idle connections close now, the others when they are done.
func (p *Proxy) Update(s *weft.Snapshot) {
	p.update.Lock()
	defer p.update.Unlock()
	old := p.view.Load()
	next := &view{snapshot: s, clusters: make(map[weft.ServiceName]*cluster, len(s.Services))}
	for name, service := range s.Services {
		c := old.clusters[name]
		if c == nil {
			c = newCluster(name.String(), p.zone)
		}
		c.update(service)
		next.clusters[name] = c
	}
	next.guards, next.rules = p.guards(s, old.guards)
	for name, c := range next.clusters {
		c.guard.Store(serviceGuard(next.guards, name))
	}
	p.view.Store(next)
	for name, c := range old.clusters {
		if next.clusters[name] == nil {
			c.update(&weft.Service{Name: name})
			p.mu.Lock()
			p.gone = append(p.gone, c)
			p.mu.Unlock()
		}
	}
}

// Drain stops accepting, tells clients to go by "Connection: close", closes idle
// connections, and waits for exchanges in flight until ctx ends.
func (p *Proxy) Drain(ctx context.Context) error {
	p.draining.Store(true)
	p.mu.Lock()
	for ln := range p.listeners {
		_ = ln.Close()
	}
	for c := range p.conns {
		c.expireIdle()
	}
	p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		p.serving.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return &weft.Error{Kind: weft.Unavailable, Op: "drain", Thing: "proxy", Err: context.Cause(ctx)}
	}
}

// Close ends everything at once and waits for it. Call Drain first to be polite.
func (p *Proxy) Close() {
	p.draining.Store(true)
	p.mu.Lock()
	for ln := range p.listeners {
		_ = ln.Close()
	}
	conns := slices.Collect(maps.Keys(p.conns))
	p.mu.Unlock()
	p.hangUp()
	for _, c := range conns {
		c.abort()
	}
	p.serving.Wait()
	p.stop()
	p.sweeping.Wait()
	for _, c := range p.view.Load().clusters {
		c.close()
	}
	for _, c := range p.external {
		c.close()
	}
	for _, c := range p.locals {
		c.close()
	}
	for _, c := range p.gone {
		c.close()
	}
	p.workers.Close()
}

// Serve accepts connections from ln until ln or the proxy is closed. It returns
// nil after Drain or Close.
func (p *Proxy) Serve(ln net.Listener, l *Listener) error {
	if err := l.prepare(p); err != nil {
		return err
	}
	p.mu.Lock()
	if p.draining.Load() {
		p.mu.Unlock()
		return ln.Close()
	}
	p.listeners[ln] = struct{}{}
	p.serving.Add(1)
	p.mu.Unlock()
	defer p.serving.Done()
	defer func() {
		p.mu.Lock()
		delete(p.listeners, ln)
		p.mu.Unlock()
	}()
	for {
		sock, err := ln.Accept()
		if err != nil {
			if p.draining.Load() || errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Out of file descriptors or memory: wait for some to come back
			// rather than spin or die.
			p.logger.Warn("accept failed", "listener", ln.Addr().String(), "error", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if p.load != nil && !p.load.AdmitConnection() {
			p.turnAway(sock)
			continue
		}
		p.start(sock, l)
	}
}

// start hands a connection to its goroutine.
func (p *Proxy) start(sock net.Conn, l *Listener) {
	c := newConn(p, l, sock)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining.Load() {
		_ = sock.Close()
		p.left()
		return
	}
	p.conns[c] = struct{}{}
	p.serving.Add(1)
	go func() {
		defer p.serving.Done()
		defer func() {
			p.mu.Lock()
			delete(p.conns, c)
			p.mu.Unlock()
			p.left()
		}()
		c.serve()
	}()
}

// sweepInterval is how late a coarse deadline may be noticed.
const sweepInterval = 100 * time.Millisecond

// sweep is the sweeper: the coarse clock, coarse deadlines, idle upstream
// connections.
func (p *Proxy) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		var now time.Time
		select {
		case <-ctx.Done():
			return
		case now = <-tick.C:
		}
		ns := now.UnixNano()
		p.clock.Store(ns)
		p.mu.Lock()
		for c := range p.conns {
			c.expireIfDue(ns)
		}
		for _, c := range p.locals {
			c.closeIdle(ns)
		}
		p.gone = slices.DeleteFunc(p.gone, func(c *cluster) bool { return c.closeIdle(ns) == 0 && c.limit.inUse.Load() == 0 })
		for key, c := range p.external {
			if c.closeIdle(ns) == 0 && c.limit.inUse.Load() == 0 && ns-c.asked.Load() > int64(defaultConnectTimeout) {
				delete(p.external, key)
			}
		}
		p.mu.Unlock()
		for _, c := range p.view.Load().clusters {
			c.closeIdle(ns)
		}
		p.workers.Expire(now)
	}
}

// grace is how long a client may keep an exchange waiting before its rate counts.
func (p *Proxy) grace() time.Duration {
	if p.short() {
		return hurriedGrace
	}
	return grace
}

// short reports that memory is short: what can wait elsewhere should.
func (p *Proxy) short() bool { return p.load != nil && p.load.Level() != overload.Calm }

// turnAway refuses a connection as cheaply as can be: with a reset.
func (p *Proxy) turnAway(sock net.Conn) {
	p.refused.count("overload_connection")
	if tcp, ok := sock.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = sock.Close()
}

// left says that a connection is over.
func (p *Proxy) left() {
	if p.load != nil {
		p.load.ReleaseConnection()
	}
}

// ends reports that connections should not be kept after their exchange.
func (p *Proxy) ends() bool { return p.draining.Load() || p.short() }

// Connections is the number of open downstream connections.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}
