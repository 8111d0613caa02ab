package resilience

import (
	"context"
	"time"
)

// Do calls fn under a policy and returns what its last attempt returned. When the
// policy ends the call, the error is a *Rejected.
//
// fn runs in the caller's goroutine, again after a failure if the policy retries.
// Its context ends with the attempt's timeout, which it has to heed: it is waited
// for. An answer that comes in spite of a timeout is taken. With a hedge in the spec
// each attempt runs in a goroutine of its own, several at a time, and Do returns with
// the first good answer and cancels the others; see Policy.Wait. fn is sent twice,
// then, or again: it must be idempotent, or mark what it must not repeat as Permanent.
// The answer of an attempt that lost is forgotten: what must be closed is not for a
// hedge, but for Transport.
//
// A context that the caller cancelled says nothing about the service. Other errors
// are Failures, or what Config.Classify says. An error with a method
// RetryAfter() time.Duration sets the pause before the next attempt; see Permanent
// for one that is not tried again. When fn panics, the call is a Failure and
// everything is given back before the panic goes on; that of an attempt that lost
// against its hedge goes on in the attempt's goroutine. A nil policy only calls fn.
//
// The happy path allocates nothing without a timeout in the spec, and with one a
// context of 96 bytes for each attempt: fn may keep it, and so it is not reused.
func Do[T any](ctx context.Context, p *Policy, fn func(context.Context) (T, error)) (T, error) {
	value, _, err := do(ctx, p, fn)
	return value, err
}

// WithPriority marks the calls made under ctx for the adaptive limit.
func WithPriority(ctx context.Context, p Priority) context.Context {
	return context.WithValue(ctx, priorityKey{}, p)
}

type priorityKey struct{}

func (p *Policy) priority(ctx context.Context) Priority {
	if p.plan.Load().adaptive == nil {
		return Normal
	}
	prio, _ := ctx.Value(priorityKey{}).(Priority)
	return prio
}

// do is Do, and tells the outcome of the last attempt: Ignored if there was none.
func do[T any](ctx context.Context, p *Policy, fn func(context.Context) (T, error)) (value T, o Outcome, err error) {
	if p == nil {
		if value, err = fn(ctx); err != nil {
			o = Failure
		}
		return value, o, err
	}
	call, err := p.Begin(ctx, time.Now(), p.priority(ctx))
	if err != nil {
		return value, Ignored, err
	}
	if call.plan.hedges > 0 {
		return doHedged(ctx, call, fn)
	}
	now := call.began
	var last error
	for {
		value, now, o, err = attempt(ctx, &call, now, fn)
		var wait time.Duration
		again := o.Failed() && ctx.Err() == nil && !isPermanent(err)
		if again {
			wait, again = call.Retry(now, hintOf(err))
		}
		if !again {
			call.End(now, o)
			return value, o, afterwards(o, err, last)
		}
		last = err
		if ended := rest(ctx, wait, err); ended != nil {
			call.End(now, o)
			return value, o, ended
		}
		now = time.Now()
	}
}

// attempt calls fn once. If fn panics the call is over.
func attempt[T any](ctx context.Context, c *Call, now time.Time, fn func(context.Context) (T, error)) (value T, end time.Time, o Outcome, err error) {
	permit, err := c.Attempt(now)
	if err != nil {
		return value, now, Ignored, err
	}
	var deadline time.Time
	var own *attemptContext
	if c.plan.timeout > 0 || c.plan.attemptTimeout > 0 {
		deadline = c.AttemptDeadline(now)
		own = &attemptContext{caller: ctx, deadline: deadline}
	}
	returned := false
	defer func() {
		if own != nil {
			own.finish()
		}
		if !returned {
			end = time.Now()
			c.AttemptDone(permit, end, Failure)
			c.End(end, Failure)
		}
	}()
	if own != nil {
		value, err = fn(own)
	} else {
		value, err = fn(ctx)
	}
	returned = true
	end = time.Now()
	if err != nil {
		o, err = c.judge(ctx, end, deadline, err)
	}
	c.AttemptDone(permit, end, o)
	return value, end, o, err
}
