package resilience

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/resilience"
)

// TestFailsafe gives the same outcomes to failsafe-go's breaker, and wants the same
// transitions. What both have: the failure rate of a time window with a minimum of
// calls; failures in a row; a fixed wait; probes of which a share must succeed.
// What differs, and how it is kept apart:
//
//   - its buckets are a tenth of the window from the epoch on, ours begin with the
//     first call: windows last at most 10 s and time moves on by whole tenths;
//   - it rounds rates to whole percents: thresholds and numbers of calls are such
//     that nothing is rounded up to the threshold;
//   - it leaves the half-open state as soon as the outcome is certain, ours when all
//     probes have ended: the rest of the probes is ours alone.
func TestFailsafe(t *testing.T) {
	transitions := 0
	rapid.Check(t, func(rt *rapid.T) {
		tc := drawShared(rt)
		var difference string
		synctest.Test(t, func(*testing.T) {
			n, err := tc.run()
			transitions += n
			if err != nil {
				difference = err.Error()
			}
		})
		if difference != "" {
			rt.Fatal(difference)
		}
	})
	if !t.Failed() && transitions < 100 {
		t.Errorf("%d transitions: the traces show little", transitions)
	}
}

// shared is a configuration that both understand, and what happens.
type shared struct {
	spec   resilience.BreakerSpec
	theirs circuitbreaker.Builder[any]
	steps  []step
}

type step struct {
	pause time.Duration // before the call
	fails bool
}

func drawShared(t *rapid.T) shared {
	probes := rapid.IntRange(1, 5).Draw(t, "probes")
	tc := shared{spec: resilience.BreakerSpec{
		SlowCallDurationThreshold:     time.Hour,
		WaitDurationInOpenState:       3 * time.Second,
		PermittedCallsInHalfOpenState: probes,
		HalfOpenLease:                 time.Hour,
	}}
	tick := time.Second
	if rapid.Bool().Draw(t, "in a row") {
		row := rapid.IntRange(1, 5).Draw(t, "row")
		tc.spec.ConsecutiveFailures = row
		tc.spec.FailureRateThreshold = 100 // of calls so many that it is out of reach
		tc.spec.SlidingWindow = resilience.WindowSpec{Type: resilience.CountWindow, Size: 10000}
		tc.spec.MinimumNumberOfCalls = 10000
		tc.theirs = circuitbreaker.NewBuilder[any]().WithFailureThreshold(uint(row))
	} else {
		period := rapid.SampledFrom([]time.Duration{time.Second, 5 * time.Second, 10 * time.Second}).Draw(t, "period")
		tick = period / 10
		rate := rapid.SampledFrom([]float64{25, 50, 100}).Draw(t, "rate")
		minimum := rapid.IntRange(1, 8).Draw(t, "minimum")
		tc.spec.FailureRateThreshold = rate
		tc.spec.SlidingWindow = resilience.WindowSpec{Type: resilience.TimeWindow, Duration: period}
		tc.spec.MinimumNumberOfCalls = minimum
		tc.theirs = circuitbreaker.NewBuilder[any]().WithFailureRateThreshold(rate/100, uint(minimum), period)
	}
	failures := int(math.Ceil(tc.spec.FailureRateThreshold * float64(probes) / 100)) // of the probes, that open it
	tc.theirs = tc.theirs.WithDelay(tc.spec.WaitDurationInOpenState).
		WithSuccessThresholdRatio(uint(probes-failures+1), uint(probes))
	bad := rapid.IntRange(1, 9).Draw(t, "failures in ten")
	for range rapid.IntRange(10, 48).Draw(t, "calls") { // 48 is where 24.5 % is not yet below 25
		tc.steps = append(tc.steps, step{
			pause: tick * time.Duration(rapid.SampledFrom([]int{0, 0, 0, 1, 2, 5, 10, 30}).Draw(t, "pause")),
			fails: rapid.IntRange(1, 10).Draw(t, "fails") <= bad,
		})
	}
	return tc
}

// run plays the steps to both. It returns how many transitions there were.
func (tc shared) run() (transitions int, err error) {
	theirs := tc.theirs.Build()
	ours, err := resilience.NewBreaker("judged", tc.spec, func(resilience.Event) { transitions++ })
	if err != nil {
		return 0, err
	}
	for i, s := range tc.steps {
		if ours.State() != resilience.HalfOpen { // theirs leaves it sooner: until ours does, no time passes
			time.Sleep(s.pause) //weft:sleep fake time, which both look at
		}
		certain := ours.State() == resilience.HalfOpen && !theirs.IsHalfOpen()
		permit, ok := ours.Acquire(time.Now())
		if !certain {
			if theirOK := theirs.TryAcquirePermit(); ok != theirOK {
				return transitions, fmt.Errorf("step %d %+v: admitted %v, by failsafe-go %v", i, s, ok, theirOK)
			}
		}
		if !ok {
			continue
		}
		if s.fails {
			ours.Done(permit, time.Now(), resilience.Failure)
		} else {
			ours.Done(permit, time.Now(), resilience.Success)
		}
		if !certain && s.fails {
			theirs.RecordFailure()
		} else if !certain {
			theirs.RecordSuccess()
		}
		if ours.State() != resilience.HalfOpen && ours.State().String() != theirs.State().String() {
			return transitions, fmt.Errorf("step %d %+v: %v, failsafe-go is %v", i, s, ours.State(), theirs.State())
		}
	}
	return transitions, nil
}
