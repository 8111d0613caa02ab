package subscribe

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weftmesh/weft/control/weftpb"
)

const (
	maxEvents        = 256    // that wait for a server; beyond, the oldest go
	maxReason        = 256    // bytes of an event's reason
	maxSeen          = 10_000 // observations that wait
	breakersAMessage = 500    // a message stays well below the 4 MiB that the server reads

	// Between two looks at the circuits: what changes in between without an event, the
	// figures, is told then.
	breakerInterval = 5 * time.Second
	// breakerGap is the least time between two reports: circuits that open together
	// are told of together.
	breakerGap = 50 * time.Millisecond
	// A server that is too old to take reports is asked again after some minutes: it
	// may be a newer one by then.
	oldServerPause = 5 * time.Minute
)

// Breaker is a circuit of the proxy.
type Breaker struct {
	Target      string // a service, "inventory-service.default", or a route's rule
	Policy      string // where it was asked for: "ResiliencePolicy default/inventory-service"
	State       string // "closed", "open", "half-open", "forced-open", "disabled" or "metrics-only"
	Since       time.Time
	Calls       uint32 // in its window
	Failures    uint32
	Slow        uint32
	FailureRate float64 // percent; below 0: too few calls to tell
	SlowRate    float64
}

// BreakerEvent is a change of a circuit's state.
type BreakerEvent struct {
	Time           time.Time
	Target, Policy string
	From, To       string // states
	Reason         string
	Calls          uint32 // in the window when it changed
	Failures       uint32
	Slow           uint32
}

// ReportBreakers tells the server of the proxy's circuits from now on until Close:
// of all that list returns, one of a target and policy, and of each change that
// BreakerChanged notes. The server is told again what is not as before; after a
// broken connection, of everything. list must not block. ReportBreakers is called
// once.
func (c *Client) ReportBreakers(list func() []Breaker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		r := reporter{client: c, list: list, look: c.seen}
		c.work.Go(r.run)
	}
}

// Observation is what the proxy saw of an endpoint since it told of it last.
type Observation struct {
	Endpoint  string // its ID in the snapshot
	Failures  int    // to reach it, since it last answered
	Successes int    // answers, if nothing failed since
	Kind      string // of the failures, for people: "connect"
}

// ReportEndpoints lets the server be told of what seen returns, which each call of it
// begins anew. seen must not block. What the server does not get is lost: what lasts is
// seen again. It is called before ReportBreakers, which begins.
func (c *Client) ReportEndpoints(seen func() []Observation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = seen
}

// EndpointUnreachable says that there is something to report that should not wait. It
// does not block, and may be called from any goroutine.
func (c *Client) EndpointUnreachable() { c.breakers.wake() }

// BreakerChanged notes a change. It does not block, and may be called from any
// goroutine. While the server is away only the newest changes are kept.
func (c *Client) BreakerChanged(e BreakerEvent) {
	c.breakers.add(e)
	c.breakers.wake()
}

// outbox is the changes of circuits that the server is to be told of.
type outbox struct {
	kick chan struct{} // constant; holds one: there may be something to tell

	mu     sync.Mutex     // guards what follows
	events []BreakerEvent // oldest first
	first  uint64         // number of events[0], counting from 0
	known  uint64         // those below were told, or told to be lost
}

func (o *outbox) wake() {
	select {
	case o.kick <- struct{}{}:
	default:
	}
}

func (o *outbox) add(e BreakerEvent) {
	if len(e.Reason) > maxReason {
		e.Reason = strings.ToValidUTF8(e.Reason[:maxReason], "") + "…"
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.events) == maxEvents {
		o.events = slices.Delete(o.events, 0, 1)
		o.first++
	}
	o.events = append(o.events, e)
}

// letter is what of an outbox is told at once.
type letter struct {
	events []BreakerEvent
	lost   uint64 // dropped before those
	upTo   uint64 // number of the event after them
	seen   []Observation
}

func (o *outbox) waiting() letter {
	o.mu.Lock()
	defer o.mu.Unlock()
	return letter{events: slices.Clone(o.events), lost: o.first - o.known, upTo: o.first + uint64(len(o.events))}
}

// told forgets a letter. Of its events some may have been dropped meanwhile, and
// others after them.
func (o *outbox) told(l letter) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.known = l.upTo
	if l.upTo > o.first {
		o.events = slices.Delete(o.events, 0, int(l.upTo-o.first))
		o.first = l.upTo
	}
}

// reporter tells the server. It is of one goroutine.
type reporter struct {
	client *Client
	list   func() []Breaker
	look   func() []Observation // nil: nobody looks
	seen   []Observation        // and not told
}

// run keeps a report open while there is anything to tell.
func (r *reporter) run() {
	c, failures := r.client, 0
	for r.await() {
		begin := time.Now()
		err := r.once()
		if c.ctx.Err() != nil {
			return
		}
		if time.Since(begin) > reconnectLimit {
			failures = 0
		}
		wait := retryAfter(failures, reconnectLimit)
		if status.Code(err) == codes.Unimplemented {
			wait = retryAfter(failures+20, oldServerPause)
		}
		c.log.Debug("the report of circuits is interrupted", "error", err, "again", wait)
		if !pause(c.ctx, wait) {
			return
		}
		failures++
	}
}

// await waits until there is something to report: a proxy that calls nobody costs the
// server nothing. It reports false when the client is closed.
func (r *reporter) await() bool {
	c := r.client
	tick := time.NewTicker(breakerInterval)
	defer tick.Stop()
	for len(r.list()) == 0 && len(c.breakers.waiting().events) == 0 && !r.sees() {
		select {
		case <-c.breakers.kick:
		case <-tick.C:
		case <-c.ctx.Done():
			return false
		}
	}
	return c.ctx.Err() == nil
}

// sees reports whether there is anything new of endpoints.
func (r *reporter) sees() bool {
	if r.look != nil {
		r.seen = append(r.seen, r.look()...)
	}
	if more := len(r.seen) - maxSeen; more > 0 {
		r.seen = slices.Delete(r.seen, 0, more)
	}
	return len(r.seen) > 0
}

// once runs one stream.
func (r *reporter) once() error {
	c := r.client
	ctx, cancel := context.WithCancel(c.ctx)
	stream, err := weftpb.NewWorkloadClient(c.conn).Report(ctx)
	if err != nil {
		cancel()
		return err
	}
	ended := make(chan error, 1) // the server says something only at the end
	var reading sync.WaitGroup
	reading.Go(func() { ended <- stream.RecvMsg(new(weftpb.ReportResponse)) })
	defer reading.Wait()
	defer cancel()
	tick := time.NewTicker(breakerInterval)
	defer tick.Stop()
	t := telling{proxy: c.id, told: make(map[breakerKey]Breaker)}
	for {
		news := c.breakers.waiting()
		r.sees()
		news.seen, r.seen = r.seen, nil
		for _, m := range t.next(r.list(), news) {
			if err := stream.Send(m); err != nil {
				return <-ended // Send says only EOF
			}
		}
		c.breakers.told(news)
		if !pause(ctx, breakerGap) {
			return ctx.Err()
		}
		select {
		case <-c.breakers.kick:
		case <-tick.C:
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// telling is what the server was told in one stream.
type telling struct {
	proxy string // "" when that was told
	told  map[breakerKey]Breaker
}

type breakerKey struct{ target, policy string }

// next makes the messages that tell of what is not as it was told.
func (t *telling) next(now []Breaker, news letter) []*weftpb.ProxyReport {
	var changed []*weftpb.Breaker
	there := make(map[breakerKey]bool, len(now))
	for _, b := range now[:min(len(now), weftpb.MaxBreakers)] {
		key := breakerKey{b.Target, b.Policy}
		there[key] = true
		before, known := t.told[key]
		if known && b.same(before) {
			continue
		}
		t.told[key] = b
		changed = append(changed, encodeBreaker(&b))
	}
	first := &weftpb.ProxyReport{Proxy: t.proxy, Lost: news.lost}
	t.proxy = ""
	for i := range news.events {
		first.Events = append(first.Events, encodeEvent(&news.events[i]))
	}
	for key := range t.told {
		if !there[key] {
			delete(t.told, key)
			first.Removed = append(first.Removed, &weftpb.Breaker{Target: key.target, Policy: key.policy})
		}
	}
	for _, o := range news.seen {
		first.Endpoints = append(first.Endpoints, &weftpb.EndpointSeen{Id: o.Endpoint, Failures: uint32(o.Failures), Successes: uint32(o.Successes), Kind: o.Kind})
	}
	if first.Proxy == "" && len(first.Events)+len(first.Removed)+len(changed)+len(first.Endpoints) == 0 {
		return nil
	}
	out := []*weftpb.ProxyReport{first}
	for chunk := range slices.Chunk(changed, breakersAMessage) {
		if first.Breakers == nil {
			first.Breakers = chunk
			continue
		}
		out = append(out, &weftpb.ProxyReport{Breakers: chunk})
	}
	return out
}

// same reports whether the server, which knows before, need not hear of b.
func (b *Breaker) same(before Breaker) bool {
	if !b.Since.Equal(before.Since) {
		return false
	}
	before.Since = b.Since // however that is written
	return *b == before
}

func encodeBreaker(b *Breaker) *weftpb.Breaker {
	return &weftpb.Breaker{
		Target: b.Target, Policy: b.Policy, State: b.State, Since: timestamppb.New(b.Since),
		Calls: b.Calls, Failures: b.Failures, Slow: b.Slow, FailureRate: b.FailureRate, SlowRate: b.SlowRate,
	}
}

func encodeEvent(e *BreakerEvent) *weftpb.BreakerEvent {
	return &weftpb.BreakerEvent{
		Time: timestamppb.New(e.Time), Target: e.Target, Policy: e.Policy, From: e.From, To: e.To,
		Reason: e.Reason, Calls: e.Calls, Failures: e.Failures, Slow: e.Slow,
	}
}
