package resilience

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Call is one call under a policy, for whoever cannot put it into a function: a
// proxy. It is a value; its methods are for one goroutine, and nothing allocates
// unless the call is rejected or has to wait.
//
//	call, err := policy.Begin(ctx, start, resilience.Normal)
//	if err != nil {
//		return err // a *Rejected, or ctx's error
//	}
//	for {
//		permit, err := call.Attempt(now)
//		if err != nil {
//			call.End(now, resilience.Ignored)
//			return err // a *Rejected: the circuit is open
//		}
//		… send, until call.AttemptDeadline(now) …
//		call.AttemptDone(permit, now, outcome)
//		wait, again := call.Retry(now, retryAfter) // if that may be tried again
//		if !again {
//			break
//		}
//		… wait …
//	}
//	call.End(now, outcome)
//
// A zero Call has nothing to give back: its End does nothing.
type Call struct {
	policy   *Policy
	plan     *plan
	began    time.Time // when the waits in Begin were over
	from     time.Time // when the first attempt since the last pause began
	deadline time.Time // of the policy or the caller, whichever is first; zero: none
	pause    time.Duration
	attempts int
	hedges   int  // since the last pause
	answered bool // the latency is known
	ended    bool
}

// Begin asks whether a call may be made, and waits where the spec says so: the rate
// limit, then throttle, adaptive limit and bulkhead. start is now, or when the
// caller's request came: the timeout counts from there. If the error is nil, End
// must follow.
func (p *Policy) Begin(ctx context.Context, start time.Time, prio Priority) (Call, error) {
	if err := ctx.Err(); err != nil {
		return Call{}, err
	}
	plan := p.plan.Load()
	c := Call{policy: p, plan: plan, began: start, attempts: 1}
	c.deadline, _ = ctx.Deadline()
	if plan.timeout > 0 {
		if own := start.Add(plan.timeout); c.deadline.IsZero() || own.Before(c.deadline) {
			c.deadline = own
		}
	}
	if plan.rate != nil {
		if ok, after := plan.rate.Allow(start); !ok {
			if err := c.waitForRate(ctx, after); err != nil {
				return Call{}, err
			}
		}
	}
	if plan.throttle != nil && !plan.throttle.Admit(c.began, rand.Uint64()) {
		return Call{}, c.rejected(ReasonThrottled, ErrThrottled, 0)
	}
	if plan.adaptive != nil && !plan.adaptive.Acquire(c.began, prio) {
		return Call{}, c.rejected(ReasonConcurrencyLimited, ErrConcurrencyLimited, 0)
	}
	if plan.bulkhead != nil {
		if err := c.enterBulkhead(ctx); err != nil {
			if plan.adaptive != nil {
				plan.adaptive.Done(start, start, Ignored)
			}
			return Call{}, err
		}
	}
	if plan.countsBudget {
		p.budget.Call(c.began)
	}
	return c, nil
}

func (c *Call) rejected(reason string, err error, after time.Duration) error {
	return &Rejected{Policy: c.policy.name, Reason: reason, RetryAfter: after, Err: err}
}

func (c *Call) waitForRate(ctx context.Context, after time.Duration) error {
	if c.plan.rateWait == 0 {
		return c.rejected(ReasonRateLimited, ErrRateLimited, after)
	}
	bounded, cancel := c.bounded(ctx)
	defer cancel()
	switch err := c.plan.rate.Wait(bounded); {
	case err == nil:
		c.began = time.Now()
		return nil
	case errors.Is(err, ErrRateLimited):
		return c.rejected(ReasonRateLimited, ErrRateLimited, after)
	default:
		return c.waitEnded(ctx, err)
	}
}

// noWait ends every wait before it begins.
var noWait = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func (c *Call) enterBulkhead(ctx context.Context) error {
	err := c.plan.bulkhead.Acquire(noWait) // a free slot is given without a look at the context
	if err == context.Canceled {
		bounded, cancel := c.bounded(ctx)
		err = c.plan.bulkhead.Acquire(bounded)
		cancel()
		c.began = time.Now()
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrBulkheadFull):
		return c.rejected(ReasonBulkheadFull, ErrBulkheadFull, 0)
	default:
		return c.waitEnded(ctx, err)
	}
}

// bounded is ctx with the deadline of the call.
func (c *Call) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.deadline.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, c.deadline)
}

// waitEnded is the error of a wait that a context ended: the caller's, or our own.
func (c *Call) waitEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return c.rejected(ReasonTimeout, ErrTimeout, 0)
}

// Deadline of the call as a whole: by the policy's timeout or by the context that
// Begin was given, whichever is first. Zero: there is none.
func (c *Call) Deadline() time.Time { return c.deadline }

// Attempt asks the circuit breaker whether an attempt may be made now. If so,
// AttemptDone must follow.
func (c *Call) Attempt(now time.Time) (Permit, error) {
	if c.from.IsZero() {
		c.from = now
	}
	b := c.plan.breaker
	if b == nil {
		return Permit{}, nil
	}
	permit, ok := b.Acquire(now)
	if !ok {
		return Permit{}, c.rejected(ReasonCircuitOpen, ErrCircuitOpen, b.RetryAfter(now))
	}
	return permit, nil
}

// AttemptDone gives a permit back and says how its attempt ended.
func (c *Call) AttemptDone(permit Permit, now time.Time, o Outcome) {
	if b := c.plan.breaker; b != nil {
		b.Done(permit, now, o)
	}
}

// AttemptDeadline is when an attempt that begins now has to end; zero: never.
func (c *Call) AttemptDeadline(now time.Time) time.Time {
	if c.plan.attemptTimeout == 0 {
		return c.deadline
	}
	if own := now.Add(c.plan.attemptTimeout); c.deadline.IsZero() || own.Before(c.deadline) {
		return own
	}
	return c.deadline
}

// End gives back what Begin took. It must be called once, also when no attempt was
// made; further calls do nothing. now may be when the answer began, so that a slow
// reader does not make the service look slow. o is the outcome of the last attempt,
// Ignored if there was none.
func (c *Call) End(now time.Time, o Outcome) {
	if c.plan == nil || c.ended {
		return
	}
	c.ended = true
	if c.plan.bulkhead != nil {
		c.plan.bulkhead.Release()
	}
	from := c.from
	if from.IsZero() {
		from = c.began
	}
	if c.plan.adaptive != nil {
		c.plan.adaptive.Done(from, now, o)
	}
	if c.plan.throttle != nil && o != Ignored {
		c.plan.throttle.Done(now, !o.Failed())
	}
	if o == Success {
		c.answeredAt(now)
	}
}

// answeredAt feeds the percentile that hedges wait for, once a call.
func (c *Call) answeredAt(now time.Time) {
	if c.plan.percentile > 0 && !c.answered {
		c.answered = true
		c.policy.latency.add(now, now.Sub(c.from), c.plan.percentile)
	}
}

// judge an error that an attempt returned which had to end at deadline. A timeout
// of our own becomes a *Rejected that wraps it.
func (c *Call) judge(ctx context.Context, now, deadline time.Time, err error) (Outcome, error) {
	if ctx.Err() == context.Canceled {
		return Ignored, err
	}
	over := !deadline.IsZero() && !now.Before(deadline)
	// An attempt's deadline is the caller's if that is earlier than the policy's; then
	// its own clock may be the first to strike.
	if callers, ok := ctx.Deadline(); ctx.Err() != nil || ok && over && !deadline.Before(callers) {
		// Where the policy says how long is too long, a caller of less patience must
		// not open the circuit for all others.
		if c.plan.timeout > 0 || c.plan.attemptTimeout > 0 {
			return Ignored, err
		}
		return Failure, err
	}
	if over {
		own := ErrAttemptTimeout
		if !deadline.Before(c.deadline) && !c.deadline.IsZero() {
			own = ErrTimeout
		}
		return TimedOut, c.rejected(ReasonTimeout, fmt.Errorf("%w: %w", own, err), 0)
	}
	if classify := c.policy.config.Classify; classify != nil {
		return classify(err), err
	}
	return Failure, err
}
