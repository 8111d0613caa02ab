package resilience

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// HedgeDelay is how long to wait for an attempt until another one is started beside
// it, and how many times. max is 0 without a hedge in the spec, and as long as the
// delay is a percentile alone that is not known yet.
func (p *Policy) HedgeDelay() (d time.Duration, max int) {
	plan := p.plan.Load()
	return p.hedgeDelay(plan)
}

func (p *Policy) hedgeDelay(plan *plan) (d time.Duration, max int) {
	d = plan.hedgeDelay
	if plan.percentile > 0 {
		if measured := p.latency.percentile(); measured > d {
			d = measured
		}
	}
	if d == 0 {
		return 0, 0
	}
	return d, plan.hedges
}

// MayHedge reports whether one more attempt may be started beside those that run:
// as far as number, deadline and budget are concerned. Attempt must still be asked.
func (c *Call) MayHedge(now time.Time) bool {
	if c.hedges >= c.plan.hedges || !c.deadline.IsZero() && !now.Before(c.deadline) {
		return false
	}
	if !c.policy.budget.spend(now, c.plan.budget.Percent, c.plan.budget.MinPerSecond) {
		return false
	}
	c.hedges++
	return true
}

// effort makes the attempts of one call, one after the other or, hedged, several
// beside each other. Its functions are called by many goroutines at once.
type effort[T any] struct {
	// constant
	ctx  context.Context // the caller's
	twin bool            // may be sent twice
	try  func(context.Context) (T, error)
	// judge says whether the value, if the error is nil, counts as a Failure and is
	// worth another attempt. nil: values are good.
	judge func(r *result[T])
	drop  func(T, *attemptContext) // gives up a value that nobody will get; nil: there is nothing to do

	call Call // of the goroutine that calls run
}

// result of an attempt.
type result[T any] struct {
	value   T
	err     error
	outcome Outcome
	again   bool // another attempt could mend it
	hint    time.Duration
	at      time.Time
	own     *attemptContext // is not finished yet
	panics  any             // what try panicked with; errGoexit when it ended its goroutine
}

var errGoexit = errors.New("resilience: the function ended its goroutine")

// run returns the result that counts. Its context is the caller's to finish, after
// use of the value; and so is the call to end.
func (e *effort[T]) run() result[T] {
	var last error
	for {
		r := e.round()
		r.err = afterwards(r.outcome, r.err, last)
		if r.panics != nil || !r.again {
			return r
		}
		wait, again := e.call.Retry(r.at, r.hint)
		if !again {
			return r
		}
		e.giveUp(r)
		last = r.err
		if err := rest(e.ctx, wait, r.err); err != nil {
			return result[T]{err: err, outcome: r.outcome, at: time.Now()}
		}
	}
}

// giveUp what an attempt holds.
func (e *effort[T]) giveUp(r result[T]) {
	if r.err == nil && r.panics == nil && e.drop != nil {
		e.drop(r.value, r.own)
	}
	if r.own != nil {
		r.own.finish()
	}
}

// attempt runs try once and gives its permit back.
func (e *effort[T]) attempt(permit Permit, own *attemptContext, lost *atomic.Bool) (r result[T]) {
	r = result[T]{own: own, panics: errGoexit, outcome: Failure}
	defer func() {
		if r.panics != nil {
			if p := recover(); p != nil {
				r.panics = p
			}
			r.at = time.Now()
			e.call.AttemptDone(permit, r.at, Failure)
			own.finish()
		}
	}()
	r.value, r.err = e.try(own)
	r.panics = nil
	r.at = time.Now()
	switch {
	case r.err != nil && lost.Load():
		r.outcome = Ignored
	case r.err != nil:
		r.outcome, r.err = e.call.judge(e.ctx, r.at, own.deadline, r.err)
		r.again = r.outcome.Failed() && e.ctx.Err() == nil && !isPermanent(r.err)
		r.hint = hintOf(r.err)
	default:
		r.outcome = Success
	}
	if e.judge != nil {
		e.judge(&r)
	}
	e.call.AttemptDone(permit, r.at, r.outcome)
	return r
}

// race is one round of attempts beside each other.
type race[T any] struct {
	effort  *effort[T]
	results chan result[T] // with room for all, so that no runner waits
	lost    atomic.Bool    // what fails from now on has been cancelled

	mu     sync.Mutex // orders results and over
	over   bool
	owns   []*attemptContext // of the goroutine that calls round
	flying int               // likewise
}

// round makes an attempt, and others beside it if it takes long.
func (e *effort[T]) round() result[T] {
	now := time.Now()
	permit, err := e.call.Attempt(now)
	if err != nil {
		return result[T]{err: err, outcome: Ignored, at: now}
	}
	delay, most := time.Duration(0), 0
	if e.twin {
		delay, most = e.call.policy.hedgeDelay(e.call.plan)
	}
	if most == 0 {
		var never atomic.Bool
		return e.attempt(permit, e.context(now), &never)
	}
	r := &race[T]{effort: e, results: make(chan result[T], 1+most)}
	r.start(permit, now)
	return r.wait(delay)
}

func (e *effort[T]) context(now time.Time) *attemptContext {
	own := &attemptContext{caller: e.ctx}
	if e.call.plan.timeout > 0 || e.call.plan.attemptTimeout > 0 {
		own.deadline = e.call.AttemptDeadline(now)
	}
	return own
}

// start a runner. It is owned by the policy, whose Wait waits for it.
func (r *race[T]) start(permit Permit, now time.Time) {
	own := r.effort.context(now)
	r.owns = append(r.owns, own)
	r.flying++
	losers := &r.effort.call.policy.losers
	losers.Add(1)
	go func() {
		defer losers.Done()
		done := result[T]{outcome: Failure, panics: errGoexit}
		defer func() {
			if !r.deliver(done) {
				r.effort.giveUp(done)
				if done.panics != nil && done.panics != errGoexit {
					panic(done.panics)
				}
			}
		}()
		done = r.effort.attempt(permit, own, &r.lost)
	}()
}

// deliver reports false when the race is over.
func (r *race[T]) deliver(done result[T]) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over {
		r.results <- done
	}
	return !r.over
}

// wait for the first result that is good, or final, and else for the last one.
func (r *race[T]) wait(delay time.Duration) result[T] {
	e := r.effort
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for {
		select {
		case done := <-r.results:
			r.flying--
			if r.flying == 0 || !done.again {
				r.end(done.own, true)
				return done
			}
			e.giveUp(done)
		case <-timer.C:
			now := time.Now()
			if !e.call.MayHedge(now) {
				break
			}
			if permit, err := e.call.Attempt(now); err == nil {
				r.start(permit, now)
				timer.Reset(delay)
			}
		case <-e.ctx.Done():
			err, outcome := e.ctx.Err(), Ignored
			if err != context.Canceled { // see judge
				outcome = Failure
			}
			r.end(nil, outcome == Ignored)
			return result[T]{err: err, outcome: outcome, at: time.Now()}
		}
	}
}

// end cancels everyone but the winner. A runner that has delivered nevertheless is
// given up here, and one that has not gives up by itself. excused runners have not
// failed, whatever they return now.
func (r *race[T]) end(winner *attemptContext, excused bool) {
	r.lost.Store(excused)
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
	for len(r.results) > 0 {
		r.effort.giveUp(<-r.results)
	}
	for _, own := range r.owns {
		if own != winner {
			own.finish()
		}
	}
}

// doHedged is do for a policy with a hedge.
func doHedged[T any](ctx context.Context, call Call, fn func(context.Context) (T, error)) (T, Outcome, error) {
	e := &effort[T]{ctx: ctx, twin: true, try: fn, call: call}
	done := result[T]{outcome: Failure}
	defer func() {
		if done.own != nil {
			done.own.finish()
		}
		if done.at.IsZero() { // fn ended this goroutine
			done.at = time.Now()
		}
		e.call.End(done.at, done.outcome)
	}()
	done = e.run()
	if done.panics != nil {
		panic(done.panics)
	}
	return done.value, done.outcome, done.err
}
