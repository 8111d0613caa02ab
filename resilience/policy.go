package resilience

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Policy puts a Spec in force for one service, or for whatever shares its fate. It
// may be used by many goroutines at once and must not be copied.
type Policy struct {
	// constant
	name   string
	config Config

	updating sync.Mutex // one Update at a time
	plan     atomic.Pointer[plan]

	budget  Budget // spent by the numbers of the plan
	latency latencies
	losers  sync.WaitGroup // attempts that run in goroutines of their own
}

// Config is what a policy has beside its Spec. It does not change.
type Config struct {
	// OnEvent is told of every change of the circuit's state; see NewBreaker.
	OnEvent func(Event)
	// Classify judges errors that Do's function or a RoundTripper returned, except
	// where the caller cancelled (that is Ignored) and where a timeout of the policy
	// ended the attempt (TimedOut). Only what failed is tried again or replaced by
	// a fallback. nil: every error is a Failure.
	Classify func(error) Outcome
}

// New returns a policy. An error joins a *FieldError for everything that is wrong
// with spec.
func New(name string, spec Spec) (*Policy, error) { return NewWith(name, spec, Config{}) }

// NewWith is New with a Config.
func NewWith(name string, spec Spec, config Config) (*Policy, error) {
	p := &Policy{name: name, config: config}
	if err := p.Update(spec); err != nil {
		return nil, err
	}
	return p, nil
}

// Update puts another spec in force. What was counted, who waits and what is in
// flight stay as they are, in every part that both specs have; calls in flight end
// by the spec that they began with. After an error the old spec is in force.
func (p *Policy) Update(spec Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	p.updating.Lock()
	defer p.updating.Unlock()
	next, err := p.compile(spec.clone(), p.plan.Load())
	if err != nil {
		return err
	}
	p.plan.Store(next)
	return nil
}

// Name is the one that New was given.
func (p *Policy) Name() string { return p.name }

// Spec is the one in force, as it was given. What it points to must not be changed.
func (p *Policy) Spec() Spec { return p.plan.Load().spec }

// Breaker returns the policy's circuit breaker, nil if its spec has none.
func (p *Policy) Breaker() *Breaker { return p.plan.Load().breaker }

// Bulkhead returns the policy's bulkhead, nil if its spec has none.
func (p *Policy) Bulkhead() *Bulkhead { return p.plan.Load().bulkhead }

// Adaptive returns the policy's adaptive limit, nil if its spec has none.
func (p *Policy) Adaptive() *Adaptive { return p.plan.Load().adaptive }

// Wait waits for attempts that go on although their call has ended: those that lost
// against a hedge and have not noticed yet. No call may begin meanwhile.
func (p *Policy) Wait() { p.losers.Wait() }

// RetriesStatus reports whether an answer with this status is tried again.
func (p *Policy) RetriesStatus(status int) bool { return p.plan.Load().retryStatuses.has(status) }

// RetriesGRPC reports whether an answer with this gRPC status is tried again.
func (p *Policy) RetriesGRPC(code int) bool {
	return code >= 0 && code < len(grpcNames) && p.plan.Load().retryGRPC&(1<<code) != 0
}

// RetriesMethod reports whether a request with this method may be sent twice: the
// method is idempotent (RFC 9110 §9.2.2), or the spec says so.
func (p *Policy) RetriesMethod(method string) bool {
	return !repeatRunsAgain(method) && method != "CONNECT" || slices.Contains(p.plan.Load().methods, method)
}

// FailsStatus reports whether an answer with this status is a Failure.
func (p *Policy) FailsStatus(status int) bool { return p.plan.Load().failStatuses.has(status) }

// plan is a spec, compiled. It is immutable; the mechanisms that it points to live
// on in the next one.
type plan struct {
	spec Spec

	timeout, attemptTimeout time.Duration
	rate                    *RateLimiter
	rateWait                time.Duration
	throttle                *Throttle
	adaptive                *Adaptive
	bulkhead                *Bulkhead
	breaker                 *Breaker

	attempts     int // at most; 1: nothing is tried again
	backoff      BackoffSpec
	budget       BudgetSpec
	hedges       int // at most, for each attempt
	hedgeDelay   time.Duration
	percentile   float64 // 0: latencies are not measured
	countsBudget bool    // something may draw on the budget

	retryStatuses, failStatuses statusSet
	retryGRPC                   uint32 // a bit for each code
	methods                     []string
}

// statusSet holds HTTP statuses.
type statusSet [600/64 + 1]uint64

func (s *statusSet) has(status int) bool {
	return uint(status) < 600 && s[status/64]&(1<<(status%64)) != 0
}

// set adds or removes the statuses of a valid list.
func (s *statusSet) set(list []string, in bool) {
	for _, text := range list {
		low, high, _ := parseStatus(text)
		for status := low; status <= high; status++ {
			if in {
				s[status/64] |= 1 << (status % 64)
			} else {
				s[status/64] &^= 1 << (status % 64)
			}
		}
	}
}

// compile a valid spec. Mechanisms that old has are updated and taken over.
func (p *Policy) compile(spec Spec, old *plan) (*plan, error) {
	if old == nil {
		old = &plan{}
	}
	full := spec.withDefaults()
	next := &plan{spec: spec, timeout: spec.Timeout, attemptTimeout: spec.AttemptTimeout, attempts: 1}
	var err [5]error
	next.rate, err[0] = mechanism(old.rate, spec.RateLimit, NewRateLimiter)
	next.throttle, err[1] = mechanism(old.throttle, spec.Throttle, NewThrottle)
	next.adaptive, err[2] = mechanism(old.adaptive, spec.AdaptiveConcurrency, NewAdaptive)
	next.bulkhead, err[3] = mechanism(old.bulkhead, spec.Bulkhead, NewBulkhead)
	next.breaker, err[4] = mechanism(old.breaker, spec.CircuitBreaker, func(s BreakerSpec) (*Breaker, error) {
		return NewBreaker(p.name, s, p.config.OnEvent)
	})
	for _, err := range err {
		if err != nil {
			return nil, err
		}
	}
	if spec.RateLimit != nil {
		next.rateWait = spec.RateLimit.MaxWaitDuration
	}
	next.budget = BudgetSpec{}.withDefaults() // of hedges, if nothing is retried
	if r := full.Retry; r != nil {
		next.compileRetry(r)
	}
	if h := full.Hedge; h != nil {
		next.hedges, next.hedgeDelay, next.percentile = h.MaxHedges, h.Delay, h.Percentile
	}
	next.countsBudget = next.attempts > 1 || next.hedges > 0
	failures := BreakerSpec{}.withDefaults().FailureStatuses
	if full.CircuitBreaker != nil {
		failures = full.CircuitBreaker.FailureStatuses
	}
	next.failStatuses.set(failures, true)
	return next, nil
}

func (next *plan) compileRetry(r *RetrySpec) {
	next.attempts, next.backoff, next.budget, next.methods = r.MaxAttempts, r.Backoff, r.Budget, r.Methods
	next.retryStatuses.set(r.Statuses, true)
	next.retryStatuses.set(r.IgnoreStatuses, false)
	for _, name := range r.GRPCStatuses {
		next.retryGRPC |= 1 << grpcCode(name)
	}
}

// mechanism makes the mechanism that spec asks for, or updates the one that there is.
func mechanism[S any, M any, P interface {
	*M
	Update(S) error
}](old P, spec *S, make func(S) (P, error)) (P, error) {
	if spec == nil {
		return nil, nil
	}
	if old == nil {
		return make(*spec)
	}
	return old, old.Update(*spec)
}

// clone copies everything that s points to.
func (s Spec) clone() Spec {
	s.RateLimit = copied(s.RateLimit)
	s.Throttle = copied(s.Throttle)
	s.AdaptiveConcurrency = copied(s.AdaptiveConcurrency)
	s.Bulkhead = copied(s.Bulkhead)
	s.Idempotency = copied(s.Idempotency)
	s.Hedge = copied(s.Hedge)
	if s.Retry = copied(s.Retry); s.Retry != nil {
		s.Retry.Statuses = slices.Clone(s.Retry.Statuses)
		s.Retry.IgnoreStatuses = slices.Clone(s.Retry.IgnoreStatuses)
		s.Retry.GRPCStatuses = slices.Clone(s.Retry.GRPCStatuses)
		s.Retry.Methods = slices.Clone(s.Retry.Methods)
	}
	if s.CircuitBreaker = copied(s.CircuitBreaker); s.CircuitBreaker != nil {
		s.CircuitBreaker.OpenBackoff = copied(s.CircuitBreaker.OpenBackoff)
		s.CircuitBreaker.FailureStatuses = slices.Clone(s.CircuitBreaker.FailureStatuses)
	}
	if s.Fallback = copied(s.Fallback); s.Fallback != nil {
		s.Fallback.Headers = maps.Clone(s.Fallback.Headers)
		s.Fallback.Cached = copied(s.Fallback.Cached)
	}
	return s
}

func copied[V any](v *V) *V {
	if v == nil {
		return nil
	}
	c := *v
	return &c
}
