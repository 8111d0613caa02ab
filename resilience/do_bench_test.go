package resilience

import (
	"context"
	"testing"
	"time"
)

func BenchmarkDo(b *testing.B) {
	breaker := &BreakerSpec{SlidingWindow: WindowSpec{Type: TimeWindow, Duration: 10 * time.Second}}
	bulkhead := &BulkheadSpec{MaxConcurrentCalls: 1000, MaxWaitDuration: time.Second}
	rate := &RateLimitSpec{Requests: 1_000_000_000}
	for _, bm := range []struct {
		name string
		spec Spec
	}{
		{"nothing", Spec{}},
		{"breaker", Spec{CircuitBreaker: breaker}},
		{"retry+breaker", Spec{CircuitBreaker: breaker, Retry: &RetrySpec{}}},
		{"retry+breaker+bulkhead+rate", Spec{CircuitBreaker: breaker, Retry: &RetrySpec{}, Bulkhead: bulkhead, RateLimit: rate}},
		{"retry+breaker+bulkhead+rate+timeouts", Spec{CircuitBreaker: breaker, Retry: &RetrySpec{}, Bulkhead: bulkhead, RateLimit: rate,
			Timeout: time.Second, AttemptTimeout: time.Second}},
		{"everything but hedge", Spec{CircuitBreaker: breaker, Retry: &RetrySpec{}, Bulkhead: bulkhead, RateLimit: rate,
			Timeout: time.Second, AttemptTimeout: time.Second, Throttle: &ThrottleSpec{}, AdaptiveConcurrency: &AdaptiveSpec{}}},
		{"hedge that never fires", Spec{Hedge: &HedgeSpec{Delay: time.Hour}}},
	} {
		b.Run(bm.name, func(b *testing.B) {
			p := mustNew(b, bm.spec)
			ctx := b.Context()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Do(ctx, p, answerOne); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(bm.name+"/parallel", func(b *testing.B) {
			p := mustNew(b, bm.spec)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_, _ = Do(context.Background(), p, answerOne)
				}
			})
		})
	}
}

func answerOne(context.Context) (int, error) { return 1, nil }

// BenchmarkCall is what a proxy does for a request; its clock is its own.
func BenchmarkCall(b *testing.B) {
	p := mustNew(b, Spec{CircuitBreaker: &BreakerSpec{}, Retry: &RetrySpec{}, Bulkhead: &BulkheadSpec{MaxConcurrentCalls: 1000},
		RateLimit: &RateLimitSpec{Requests: 1_000_000_000}, Timeout: time.Second, AttemptTimeout: time.Second})
	ctx, now := b.Context(), time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if !oneCall(ctx, p, now) {
			b.Fatal("rejected")
		}
		now = now.Add(100)
	}
}

func oneCall(ctx context.Context, p *Policy, now time.Time) bool {
	call, err := p.Begin(ctx, now, Normal)
	if err != nil {
		return false
	}
	permit, err := call.Attempt(now)
	if err != nil {
		return false
	}
	call.AttemptDone(permit, now, Success)
	call.End(now, Success)
	return true
}
