package proxy

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/resilience"
	"github.com/weftmesh/weft/telemetry/metric"
)

// guard is a ResiliencePolicy at work in this proxy, for a service or for a route.
// It lives as long as its target has a policy: windows, budgets and what is in
// flight survive every change of the policy's text.
type guard struct {
	policy *resilience.Policy
	target string // "inventory-service.default", or the rule
	stats  guardStats
	since  atomic.Int64 // unix ns of the circuit's last change

	origin   atomic.Pointer[string] // the resource, as records name it
	settings atomic.Pointer[guardSettings]

	refused *weft.Resilience // under Proxy.update: the text that could not be put in force

	mu      sync.Mutex // orders what stats.state is set to
	retired bool       // under mu: the gauge may be another guard's already
}

// guardSettings are what only a proxy makes of a Spec. They are immutable.
type guardSettings struct {
	from     *weft.Resilience
	held     string // the state that a person holds the circuit in
	timeout  time.Duration
	attempt  time.Duration
	slow     time.Duration // from when on the circuit calls a call slow
	retries  bool
	priority string // header
	fallback *fallback
	keeper   *keeper // of last good answers; nil: none are kept
	once     *idempotency
}

// guardStats count what a guard did.
type guardStats struct {
	state     *metric.Gauge // by weft_breaker_state's help
	fallbacks map[string]*metric.Counter
	hedges    *metric.Counter
}

// BreakerStatus is a circuit as it is now.
type BreakerStatus struct {
	Target                string // "inventory-service.default", or a route's rule
	Policy                string // "ResiliencePolicy default/inventory-service (inventory.yaml:1)"
	State                 string // "closed", "open", "half-open", "forced-open", "disabled", "metrics-only"
	Since                 time.Time
	Calls, Failures, Slow uint32 // in the window
	FailureRate, SlowRate float64
}

// BreakerEvent says that a circuit's state has changed.
type BreakerEvent struct {
	Time                  time.Time
	Target, Policy        string
	From, To              string
	Reason                string // "failure rate 60.0 % of 10 calls reached 50 %"
	Calls, Failures, Slow uint32
}

// guards finds the guards of a snapshot's policies: those that old has keep their
// state. It returns them by what asks for them.
func (p *Proxy) guards(s *weft.Snapshot, old map[string]*guard) (all map[string]*guard, rules map[*weft.Rule]*guard) {
	all, rules = make(map[string]*guard), make(map[*weft.Rule]*guard)
	add := func(key, target string, from *weft.Resilience, held string) *guard {
		g := old[key]
		if g == nil {
			g = p.newGuard(target)
		}
		p.putInForce(g, from, held)
		all[key] = g
		return g
	}
	for name, service := range s.Services {
		if service.Resilience != nil || service.Breaker != "" {
			add("service "+name.String(), name.String(), service.Resilience, service.Breaker)
		}
	}
	each := func(t *weft.RouteTable) {
		if t == nil {
			return
		}
		for i := range t.Rules {
			if r := &t.Rules[i]; r.Resilience != nil {
				name := ruleTarget(r)
				rules[r] = add("route "+name, name, r.Resilience, "")
			}
		}
	}
	for _, t := range s.Hosts {
		each(t)
	}
	if s.Gateway != nil {
		for _, t := range s.Gateway.Tables() {
			each(t)
		}
	}
	for key, g := range old {
		if all[key] == nil {
			g.retire()
		}
	}
	return all, rules
}

// ruleTarget names a rule, wherever in its file it stands at the moment.
func ruleTarget(r *weft.Rule) string {
	source := r.Source
	source.File = ""
	return source.String() + " " + r.Name
}

// putInForce configures a guard. A text that is not understood leaves the one before
// in force; the state that a person holds the circuit in does not wait for that.
func (p *Proxy) putInForce(g *guard, from *weft.Resilience, held string) {
	err := p.configure(g, from, held)
	if err == nil {
		g.refused = nil
		return
	}
	if !sameText(g.refused, from) {
		// Control validates policies; this is a server that is newer than us.
		p.logger.Error("resilience policy is not in force", "target", g.target, "policy", from.Source.String(), "error", err)
		g.refused = from
	}
	var last *weft.Resilience
	if s := g.settings.Load(); s != nil {
		last = s.from
	}
	if err := p.configure(g, last, held); err != nil {
		p.logger.Error("circuit is not held", "target", g.target, "state", held, "error", err)
	}
}

func sameText(a, b *weft.Resilience) bool {
	return a == b || a != nil && b != nil && a.Source == b.Source && bytes.Equal(a.Spec, b.Spec)
}

// serviceGuard is what guards keeps the guard of a service under.
func serviceGuard(all map[string]*guard, name weft.ServiceName) *guard {
	if len(all) == 0 {
		return nil
	}
	return all["service "+name.String()]
}

func (p *Proxy) newGuard(target string) *guard {
	label := metric.Label{Name: "target", Value: target}
	g := &guard{target: target, stats: guardStats{
		state: p.metrics.Gauge("weft_breaker_state",
			"State of a circuit: 0 closed, 1 open, 2 half-open, 3 forced open, 4 disabled, 5 metrics only.", label),
		hedges:    p.metrics.Counter("weft_hedges_total", "Second attempts that were made because the first took long.", label),
		fallbacks: map[string]*metric.Counter{},
	}}
	for _, kind := range []string{fallbackStatic, fallbackCached, fallbackService} {
		g.stats.fallbacks[kind] = p.metrics.Counter("weft_fallbacks_total", "Answers given in place of a failure.",
			label, metric.Label{Name: "kind", Value: kind})
	}
	g.since.Store(time.Now().UnixNano())
	origin := ""
	g.origin.Store(&origin)
	var err error
	g.policy, err = resilience.NewWith(target, resilience.Spec{}, resilience.Config{OnEvent: func(e resilience.Event) { p.changed(g, e) }})
	if err != nil {
		panic(err) // an empty Spec is a valid one
	}
	return g
}

// configure puts a policy's text in force, if it has changed.
func (p *Proxy) configure(g *guard, from *weft.Resilience, held string) error {
	old := g.settings.Load()
	if old != nil && old.held == held && sameText(old.from, from) {
		return nil
	}
	spec := &resilience.Spec{}
	origin := "BreakerOverride"
	next := &guardSettings{from: from, held: held}
	var source weft.SourceRef
	if from != nil {
		source = from.Source
		origin = source.String()
		var err error
		if spec, err = resilience.ParseSpec(from.Spec); err != nil {
			return err
		}
		*spec = spec.Defaulted()
	}
	if held != "" {
		circuit := resilience.BreakerSpec{}
		if spec.CircuitBreaker != nil {
			circuit = *spec.CircuitBreaker
		}
		circuit.Mode = resilience.Mode(held)
		spec.CircuitBreaker = &circuit
	}
	var err error
	if next.once, err = p.newIdempotency(spec.Idempotency); err != nil {
		return err
	}
	next.timeout, next.attempt, next.retries = spec.Timeout, spec.AttemptTimeout, spec.Retry != nil
	if spec.CircuitBreaker != nil {
		next.slow = spec.CircuitBreaker.SlowCallDurationThreshold
	}
	// What a route, a client or a lease says may be more or less than the policy's:
	// the call gets the deadline that counts with its context.
	spec.Timeout, spec.AttemptTimeout = 0, 0
	circuit := g.policy.Breaker()
	if err := g.policy.Update(*spec); err != nil {
		return err
	}
	if g.policy.Breaker() != circuit {
		g.since.Store(time.Now().UnixNano())
	}
	next.fallback = newFallback(spec.Fallback, source)
	if a := spec.AdaptiveConcurrency; a != nil {
		next.priority = strings.ToLower(a.PriorityHeader)
	}
	if next.fallback != nil && next.fallback.cached {
		next.keeper = newKeeper(spec.Fallback.Cached)
		if old != nil && old.keeper != nil && old.keeper.spec == *spec.Fallback.Cached {
			next.keeper = old.keeper
		}
	}
	g.origin.Store(&origin)
	g.settings.Store(next)
	g.show()
	return nil
}

// show sets the gauge to the circuit's state.
func (g *guard) show() {
	g.mu.Lock()
	defer g.mu.Unlock()
	state := resilience.Closed // also where there is no circuit
	if b := g.policy.Breaker(); b != nil {
		state = b.State()
	}
	if !g.retired {
		g.stats.state.Set(float64(state))
	}
}

// retire says that the policy is gone: nothing is held up any more by what its gauge
// says, and exchanges that still end under it do not change that.
func (g *guard) retire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.retired = true
	g.stats.state.Set(float64(resilience.Closed))
}

// status is the circuit's state now; ok is false when there is none.
func (g *guard) status(now time.Time) (s BreakerStatus, ok bool) {
	b := g.policy.Breaker()
	if b == nil {
		return s, false
	}
	c := b.Counts(now)
	return BreakerStatus{
		Target: g.target, Policy: *g.origin.Load(), State: b.State().String(), Since: time.Unix(0, g.since.Load()),
		Calls: c.Calls, Failures: c.Failures, Slow: c.Slow, FailureRate: c.FailureRate(), SlowRate: c.SlowRate(),
	}, true
}

// Breakers are the circuits of the policies in force, sorted by target.
func (p *Proxy) Breakers() []BreakerStatus {
	var out []BreakerStatus
	now := time.Now()
	for _, g := range p.view.Load().guards {
		if s, ok := g.status(now); ok {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b BreakerStatus) int { return strings.Compare(a.Target, b.Target) })
	return out
}

// changed is told whenever a circuit's state changes.
func (p *Proxy) changed(g *guard, e resilience.Event) {
	g.since.Store(e.Time.UnixNano())
	g.show()
	p.metrics.Counter("weft_breaker_transitions_total", "Changes of a circuit's state.",
		metric.Label{Name: "target", Value: g.target}, metric.Label{Name: "to", Value: e.To.String()}).Add(1)
	level := slog.LevelInfo
	if e.To == resilience.Open || e.To == resilience.ForcedOpen {
		level = slog.LevelWarn
	}
	origin := *g.origin.Load()
	p.logger.Log(context.Background(), level, "circuit "+e.To.String(), "target", g.target, "from", e.From.String(), "reason", e.Reason, "policy", origin)
	if p.onBreaker != nil {
		p.onBreaker(BreakerEvent{Time: e.Time, Target: g.target, Policy: origin, From: e.From.String(), To: e.To.String(), Reason: e.Reason,
			Calls: e.Window.Calls, Failures: e.Window.Failures, Slow: e.Window.Slow})
	}
}
