package client

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/balance"
	"github.com/weftmesh/weft/resilience"
)

// callee is a service as its callers need it: the endpoints with what is known of
// each, and the policy. Its writer is the goroutine that follows the service.
type callee struct {
	view     atomic.Pointer[view]                 // nil before the first state
	guarding atomic.Pointer[resilience.Transport] // likewise; then it stays
}

// view is one immutable state of a callee.
type view struct {
	state     *State
	endpoints []*endpoint // that can be called from here
	picker    *balance.Picker
}

// endpoint lives as long as states name it.
type endpoint struct {
	Endpoint
	target balance.Target
	// After a failed connect the endpoint is avoided for a while: downMin, doubling
	// to downMax. Otherwise a dead instance would take its share of first tries
	// until the registry drops it.
	downUntil atomic.Int64 // unix ns
	downTimes atomic.Int32
}

const (
	downMin = 250 * time.Millisecond
	downMax = 5 * time.Second
)

// update takes a new state. Endpoints that stay keep what is known of them.
func (c *callee) update(state *State) {
	old := c.view.Load()
	if old != nil && sameTargets(old.state, state) {
		c.view.Store(&view{state: state, endpoints: old.endpoints, picker: old.picker})
		return
	}
	v := &view{state: state}
	known := old.byID()
	var members []balance.Member
	for i := range state.Endpoints {
		if !state.Endpoints[i].Plain {
			continue
		}
		e, now := known[state.Endpoints[i].ID], &state.Endpoints[i]
		if e == nil || e.Address != now.Address || e.Protocol != now.Protocol {
			e = &endpoint{Endpoint: *now}
		}
		v.endpoints = append(v.endpoints, e)
		members = append(members, balance.Member{Target: &e.target, Weight: state.Endpoints[i].Weight})
	}
	// Only what hashes, shares or starts slowly can be wrong, and here is none of it.
	v.picker, _ = balance.NewPicker(balance.Config{Algorithm: state.Algorithm()}, members)
	c.view.Store(v)
}

// standard is the policy of a service that has none: what was never sent, and what
// is idempotent and broke off, is repeated within the budget.
var standard = resilience.Spec{Retry: &resilience.RetrySpec{IgnoreStatuses: []string{"4xx", "5xx"}}}

// policy is what a state says how the service is called.
func policy(state *State) (resilience.Spec, error) {
	spec := standard
	if len(state.Resilience) > 0 {
		parsed, err := resilience.ParseSpec(state.Resilience)
		if err != nil {
			return spec, err
		}
		spec = *parsed
	}
	if state.Breaker != "" {
		held := resilience.BreakerSpec{}
		if spec.CircuitBreaker != nil {
			held = *spec.CircuitBreaker
		}
		held.Mode = resilience.Mode(state.Breaker)
		spec.CircuitBreaker = &held
	}
	return spec, nil
}

// guard puts a state's policy in force. What cannot be, because a newer server says
// it, leaves the last one in force, or the standard one.
func (c *callee) guard(n weft.ServiceName, state *State, log *slog.Logger) {
	t, old := c.guarding.Load(), c.view.Load()
	if t != nil && (samePolicy(old.state, state) || state.Instances == 0) {
		return // without instances no policy is told; what is known of the service is kept for its return
	}
	spec, err := policy(state)
	if spec.Fallback != nil && spec.Fallback.Service != "" {
		log.Warn("a fallback to another service is made by sidecars only", "service", n.String(), "fallback", spec.Fallback.Service)
	}
	if t != nil && err == nil {
		err = t.Policy.Update(spec)
	}
	if t == nil {
		var p *resilience.Policy
		config := resilience.Config{OnEvent: func(e resilience.Event) {
			log.Info("circuit", "service", n.String(), "from", e.From.String(), "to", e.To.String(), "reason", e.Reason)
		}}
		if err == nil {
			p, err = resilience.NewWith(n.String(), spec, config)
		}
		if p == nil {
			p, _ = resilience.NewWith(n.String(), standard, config)
		}
		c.guarding.Store(&resilience.Transport{Policy: p, Base: attempt{}})
	}
	if err != nil {
		log.Warn("a resilience policy cannot be put in force", "service", n.String(), "error", err)
	}
}

// byID returns the endpoints of a view, which may be nil.
func (v *view) byID() map[string]*endpoint {
	if v == nil {
		return nil
	}
	out := make(map[string]*endpoint, len(v.endpoints))
	for _, e := range v.endpoints {
		out[e.ID] = e
	}
	return out
}

// pick chooses an endpoint that is not avoided and that the call has not tried yet;
// when there is none any, because the registry believes in it.
func (v *view) pick(c *call, now time.Time) *endpoint {
	ns := now.UnixNano()
	q := balance.Query{Random: rand.Uint64(), Now: ns, Usable: func(i int) bool {
		e := v.endpoints[i]
		return e.downUntil.Load() <= ns && !c.tried(e)
	}}
	i := v.picker.Pick(&q)
	if i < 0 {
		q.Usable = nil
		i = v.picker.Pick(&q)
	}
	if i < 0 {
		return nil
	}
	c.try(v.endpoints[i])
	return v.endpoints[i]
}

// ended tells what became of a connection to the endpoint.
func (e *endpoint) ended(err error, now time.Time) {
	switch {
	case connectFailed(err):
		n := min(e.downTimes.Add(1)-1, 10)
		e.downUntil.Store(now.Add(min(downMin<<n, downMax)).UnixNano())
	case err == nil && e.downTimes.Load() != 0:
		e.downTimes.Store(0)
		e.downUntil.Store(0)
	}
}

// connectFailed reports whether nobody was there: then nothing was sent either.
func connectFailed(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" && !errors.Is(err, context.Canceled)
}

// call is what a caller asked for, with all its attempts.
type call struct {
	transport *transport
	service   *service

	mu        sync.Mutex // hedges run at once
	endpoints []*endpoint
}

func (c *call) tried(e *endpoint) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.endpoints {
		if t == e {
			return true
		}
	}
	return false
}

func (c *call) try(e *endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endpoints = append(c.endpoints, e)
}
