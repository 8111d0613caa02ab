package resilience

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// longestHint is how long a server may ask to be left alone. Whoever says more than
// this is not asked again by the same call.
const longestHint = 5 * time.Minute

// Retry reports whether there is one more attempt, and how long to wait before it.
// hint is what the server asked for, Retry-After or a gRPC push-back, and replaces
// the backoff: 0 is nothing, negative is never again. There is none when attempts or
// budget are used up, when the deadline would pass before it began, and when the
// circuit would refuse it.
func (c *Call) Retry(now time.Time, hint time.Duration) (wait time.Duration, ok bool) {
	if c.attempts >= c.plan.attempts || hint < 0 || hint > longestHint {
		return 0, false
	}
	wait = hint
	if hint == 0 {
		wait = c.plan.backoff.wait(c.attempts, c.pause, rand.Float64())
	}
	if !c.deadline.IsZero() && !now.Add(wait).Before(c.deadline) {
		return 0, false
	}
	if b := c.plan.breaker; b != nil && (b.State() == ForcedOpen || b.RetryAfter(now) > wait) {
		return 0, false
	}
	if !c.policy.budget.spend(now, c.plan.budget.Percent, c.plan.budget.MinPerSecond) {
		return 0, false
	}
	c.attempts++
	c.pause, c.from, c.hedges = wait, time.Time{}, 0
	return wait, true
}

// wait before the attempt that follows n others, the last of them after the pause
// given. random is in [0, 1).
func (s *BackoffSpec) wait(n int, pause time.Duration, random float64) time.Duration {
	if s.Jitter == DecorrelatedJitter {
		low, high := float64(s.Initial), 3*float64(max(pause, s.Initial))
		return time.Duration(min(low+random*(high-low), float64(s.Max)))
	}
	wait := float64(s.Initial)
	for ; n > 1 && wait < float64(s.Max); n-- {
		wait *= s.Multiplier
	}
	wait = min(wait, float64(s.Max))
	if s.Jitter == FullJitter {
		wait *= random
	}
	return time.Duration(wait)
}

// rest waits between two attempts, unless the caller gives up.
func rest(ctx context.Context, wait time.Duration, last error) error {
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
		}
	}
	switch err := ctx.Err(); {
	case err == nil:
		return nil
	case last == nil:
		return fmt.Errorf("%w before the next attempt", err)
	default:
		return fmt.Errorf("%w before the next attempt; the last one: %w", err, last)
	}
}

// afterwards adds what the last attempt failed with to the rejection of the next
// one: a circuit can open between Retry and Attempt.
func afterwards(o Outcome, err, last error) error {
	if r, ok := err.(*Rejected); ok && o == Ignored && last != nil {
		r.Err = fmt.Errorf("%w; the last attempt: %w", r.Err, last)
	}
	return err
}

// hintOf is how long whoever returned err asks to be left alone.
func hintOf(err error) time.Duration {
	var polite interface{ RetryAfter() time.Duration }
	if errors.As(err, &polite) {
		return polite.RetryAfter()
	}
	var r *Rejected
	if errors.As(err, &r) {
		return r.RetryAfter
	}
	return 0
}

func isPermanent(err error) bool {
	var p *permanentError
	return errors.As(err, &p)
}
