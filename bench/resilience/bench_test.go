package resilience

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/bulkhead"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/ratelimiter"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	"github.com/failsafe-go/failsafe-go/timeout"
	"github.com/sony/gobreaker/v2"

	"github.com/weftmesh/weft/resilience"
)

// What all have in common: 50 % of the last 100 calls, or of those of the last ten
// seconds in ten buckets, at least 100; three attempts; so many calls at once and a
// second that nobody is ever rejected.
const (
	calls      = 100
	period     = 10 * time.Second
	atOnce     = 1000
	perSecond  = 100_000_000
	patience   = time.Minute
	callers    = 16
	answerCode = 200
)

func answer() (int, error)                       { return answerCode, nil }
func answerContext(context.Context) (int, error) { return answerCode, nil }

// run measures one call, which says whether it was answered.
func run(b *testing.B, name string, call func() bool) {
	b.Run(name, func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !call() {
				b.Fatal("no answer")
			}
		}
	})
	b.Run(name+"/parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(callers / runtime.GOMAXPROCS(0))
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if !call() {
					b.Error("no answer")
					return
				}
			}
		})
	})
}

func weftBreaker(b *testing.B, w resilience.WindowSpec) *resilience.Breaker {
	breaker, err := resilience.NewBreaker("bench", resilience.BreakerSpec{SlidingWindow: w}, nil)
	if err != nil {
		b.Fatal(err)
	}
	return breaker
}

var (
	countWindow = resilience.WindowSpec{Type: resilience.CountWindow, Size: calls}
	timeWindow  = resilience.WindowSpec{Type: resilience.TimeWindow, Duration: period}
)

func theirBreaker() circuitbreaker.CircuitBreaker[int] {
	return circuitbreaker.NewBuilder[int]().WithFailureRateThreshold(0.5, calls, period).Build()
}

func half(c gobreaker.Counts) bool { return c.Requests >= calls && c.TotalFailures*2 >= c.Requests }

// BenchmarkBreaker is a breaker alone, by what asks and tells it around a call.
// weft's takes the time from its caller, who has mostly looked at a clock already;
// the others look themselves, and "with clock" does that for weft too, twice.
func BenchmarkBreaker(b *testing.B) {
	for _, w := range []resilience.WindowSpec{countWindow, timeWindow} {
		breaker, now := weftBreaker(b, w), time.Now()
		run(b, "weft/"+string(w.Type), func() bool {
			permit, ok := breaker.Acquire(now)
			breaker.Done(permit, now, resilience.Success)
			return ok
		})
		run(b, "weft/"+string(w.Type)+" with clock", func() bool {
			permit, ok := breaker.Acquire(time.Now())
			breaker.Done(permit, time.Now(), resilience.Success)
			return ok
		})
	}
	counting := circuitbreaker.NewBuilder[int]().WithFailureThresholdRatio(calls/2, calls).Build()
	for i, breaker := range []circuitbreaker.CircuitBreaker[int]{counting, theirBreaker()} {
		run(b, "failsafe-go/"+[]string{"count", "time"}[i], func() bool {
			ok := breaker.TryAcquirePermit()
			breaker.RecordSuccess()
			return ok
		})
	}
	for i, bucket := range []time.Duration{0, period / 10} {
		breaker := gobreaker.NewTwoStepCircuitBreaker[int](gobreaker.Settings{Interval: period, BucketPeriod: bucket, ReadyToTrip: half})
		run(b, "gobreaker/"+[]string{"fixed", "rolling"}[i], func() bool {
			done, err := breaker.Allow()
			if err != nil {
				return false
			}
			done(nil)
			return true
		})
	}
}

// BenchmarkFunction is a breaker around a function.
func BenchmarkFunction(b *testing.B) {
	ctx := context.Background()
	policy, err := resilience.New("bench", resilience.Spec{CircuitBreaker: &resilience.BreakerSpec{SlidingWindow: timeWindow}})
	if err != nil {
		b.Fatal(err)
	}
	run(b, "weft", func() bool {
		code, _ := resilience.Do(ctx, policy, answerContext)
		return code == answerCode
	})
	executor := failsafe.With[int](theirBreaker())
	run(b, "failsafe-go", func() bool {
		code, _ := executor.Get(answer)
		return code == answerCode
	})
	breaker := gobreaker.NewCircuitBreaker[int](gobreaker.Settings{Interval: period, BucketPeriod: period / 10, ReadyToTrip: half})
	run(b, "gobreaker", func() bool {
		code, _ := breaker.Execute(answer)
		return code == answerCode
	})
}

// stack has every part that a call of a service passes.
func stack() resilience.Spec {
	return resilience.Spec{
		RateLimit:      &resilience.RateLimitSpec{Requests: perSecond},
		Bulkhead:       &resilience.BulkheadSpec{MaxConcurrentCalls: atOnce},
		Retry:          &resilience.RetrySpec{MaxAttempts: 3},
		CircuitBreaker: &resilience.BreakerSpec{SlidingWindow: timeWindow},
	}
}

func theirStack() []failsafe.Policy[int] {
	return []failsafe.Policy[int]{
		ratelimiter.NewSmooth[int](perSecond, time.Second),
		bulkhead.New[int](atOnce),
		retrypolicy.NewBuilder[int]().WithMaxAttempts(3).WithBackoff(25*time.Millisecond, 250*time.Millisecond).Build(),
		theirBreaker(),
	}
}

// BenchmarkStack is rate limit, bulkhead, retry and breaker together: around a
// function, and as a proxy uses them, without one. gobreaker is a breaker only.
func BenchmarkStack(b *testing.B) {
	ctx := context.Background()
	policy, err := resilience.New("bench", stack())
	if err != nil {
		b.Fatal(err)
	}
	run(b, "weft", func() bool {
		code, _ := resilience.Do(ctx, policy, answerContext)
		return code == answerCode
	})
	run(b, "weft/permits", func() bool {
		return permits(ctx, policy)
	})
	executor := failsafe.With(theirStack()...)
	run(b, "failsafe-go", func() bool {
		code, _ := executor.Get(answer)
		return code == answerCode
	})
}

func permits(ctx context.Context, policy *resilience.Policy) bool {
	now := time.Now()
	call, err := policy.Begin(ctx, now, resilience.Normal)
	if err != nil {
		return false
	}
	permit, err := call.Attempt(now)
	now = time.Now()
	call.AttemptDone(permit, now, resilience.Success)
	call.End(now, resilience.Success)
	return err == nil
}

// BenchmarkStackTimeout is the same with a timeout of the call: the permits only
// compute a deadline, the others have a context for the function.
func BenchmarkStackTimeout(b *testing.B) {
	ctx := context.Background()
	spec := stack()
	spec.Timeout = patience
	policy, err := resilience.New("bench", spec)
	if err != nil {
		b.Fatal(err)
	}
	run(b, "weft", func() bool {
		code, _ := resilience.Do(ctx, policy, answerContext)
		return code == answerCode
	})
	run(b, "weft/permits", func() bool {
		return permits(ctx, policy)
	})
	executor := failsafe.With(append([]failsafe.Policy[int]{timeout.New[int](patience)}, theirStack()...)...)
	run(b, "failsafe-go", func() bool {
		code, _ := executor.Get(answer)
		return code == answerCode
	})
}
