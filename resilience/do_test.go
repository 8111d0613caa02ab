package resilience

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var errService = errors.New("the service failed")

func mustNew(t testing.TB, spec Spec) *Policy {
	t.Helper()
	p, err := New("inventory", spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fullSpec has every part that takes something that must be given back.
func fullSpec() Spec {
	return Spec{
		RateLimit: &RateLimitSpec{Requests: 1_000_000_000}, Throttle: &ThrottleSpec{}, AdaptiveConcurrency: &AdaptiveSpec{},
		Bulkhead:       &BulkheadSpec{MaxConcurrentCalls: 10, MaxWaitDuration: time.Second},
		Retry:          &RetrySpec{MaxAttempts: 2, Backoff: BackoffSpec{Initial: time.Millisecond}},
		CircuitBreaker: &BreakerSpec{SlidingWindow: WindowSpec{Type: CountWindow, Size: 100}, PermittedCallsInHalfOpenState: 1},
	}
}

// nothingTaken fails unless everything was given back.
func nothingTaken(t *testing.T, p *Policy) {
	t.Helper()
	p.Wait()
	if n := p.Bulkhead().InUse(); n != 0 {
		t.Errorf("%d slots of the bulkhead are taken", n)
	}
	if n := p.Adaptive().InFlight(); n != 0 {
		t.Errorf("%d calls are in flight", n)
	}
	if b := p.Breaker(); b != nil && b.State() == HalfOpen && len(b.probes) > 0 {
		t.Errorf("%d probes are out", len(b.probes))
	}
}

func TestDo(t *testing.T) {
	type answer struct {
		err   error
		takes time.Duration
	}
	fails, ok := answer{err: errService}, answer{}
	attempts := func(n int) *RetrySpec {
		return &RetrySpec{MaxAttempts: n, Backoff: BackoffSpec{Initial: 100 * time.Millisecond, Jitter: NoJitter}}
	}
	for _, tc := range []struct {
		name    string
		spec    Spec
		answers []answer
		want    error // nil: none
		calls   int
		takes   time.Duration
	}{
		{"good", Spec{Retry: attempts(3)}, []answer{ok}, nil, 1, 0},
		{"no retry", Spec{}, []answer{fails, ok}, errService, 1, 0},
		{"the second is good", Spec{Retry: attempts(3)}, []answer{fails, ok}, nil, 2, 100 * time.Millisecond},
		{"the pause doubles", Spec{Retry: attempts(3)}, []answer{fails, fails, ok}, nil, 3, 300 * time.Millisecond},
		{"used up", Spec{Retry: attempts(3)}, []answer{fails, fails, fails, ok}, errService, 3, 300 * time.Millisecond},
		{"permanent", Spec{Retry: attempts(3)}, []answer{{err: Permanent(errService)}, ok}, errService, 1, 0},
		{"asked to wait", Spec{Retry: attempts(3)}, []answer{{err: politeError(2 * time.Second)}, ok}, nil, 2, 2 * time.Second},
		{"told never", Spec{Retry: attempts(3)}, []answer{{err: politeError(-1)}, ok}, politeError(-1), 1, 0},
		{"asked to wait beyond the timeout", Spec{Timeout: time.Second, Retry: attempts(3)},
			[]answer{{err: politeError(2 * time.Second)}, ok}, politeError(2 * time.Second), 1, 0},
		{"an attempt takes too long", Spec{AttemptTimeout: time.Second, Retry: attempts(2)},
			[]answer{{takes: time.Minute}, ok}, nil, 2, 1100 * time.Millisecond},
		{"all attempts take too long", Spec{AttemptTimeout: time.Second, Retry: attempts(2)},
			[]answer{{takes: time.Minute}, {takes: time.Minute}}, ErrAttemptTimeout, 2, 2100 * time.Millisecond},
		{"the call takes too long", Spec{Timeout: 1500 * time.Millisecond, AttemptTimeout: time.Second, Retry: attempts(5)},
			[]answer{{takes: time.Minute}, {takes: time.Minute}}, ErrTimeout, 2, 1500 * time.Millisecond},
		{"no attempt after the deadline", Spec{Timeout: 50 * time.Millisecond, Retry: attempts(3)}, []answer{fails, ok}, errService, 1, 0},
		{"the circuit opens meanwhile", Spec{Retry: attempts(5), CircuitBreaker: &BreakerSpec{ConsecutiveFailures: 2}},
			[]answer{fails, fails, ok}, errService, 2, 100 * time.Millisecond},
		{"the circuit is held open", Spec{CircuitBreaker: &BreakerSpec{Mode: ModeForcedOpen}}, []answer{ok}, ErrCircuitOpen, 0, 0},
	} {
		for _, hedged := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/hedged=%v", tc.name, hedged), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					if hedged { // by an attempt that never comes
						tc.spec.Hedge = &HedgeSpec{Delay: time.Hour}
					}
					p := mustNew(t, tc.spec)
					calls := 0
					start := time.Now()
					got, err := Do(t.Context(), p, func(ctx context.Context) (int, error) {
						a := tc.answers[calls]
						calls++
						return calls, work(ctx, a.takes, a.err)
					})
					if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
						t.Errorf("error %v, want %v", err, tc.want)
					}
					if calls != tc.calls || err == nil && got != calls {
						t.Errorf("%d calls, value %d, want %d", calls, got, tc.calls)
					}
					if took := time.Since(start); took != tc.takes {
						t.Errorf("took %v, want %v", took, tc.takes)
					}
				})
			})
		}
	}
}

// work takes so long unless its context ends.
func work(ctx context.Context, takes time.Duration, err error) error {
	if takes == 0 {
		return err
	}
	select {
	case <-time.After(takes):
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

type politeError time.Duration

func (e politeError) Error() string             { return "later" }
func (e politeError) RetryAfter() time.Duration { return time.Duration(e) }

func TestRejectionSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tc := range []struct {
			reason string
			err    error
			spec   Spec
			after  time.Duration
		}{
			{"rate_limited", ErrRateLimited, Spec{RateLimit: &RateLimitSpec{Requests: 1}}, time.Second},
			{"bulkhead_full", ErrBulkheadFull, Spec{Bulkhead: &BulkheadSpec{MaxConcurrentCalls: 1}}, 0},
			{"concurrency_limited", ErrConcurrencyLimited, Spec{AdaptiveConcurrency: &AdaptiveSpec{InitialLimit: 1, MaxLimit: 1}}, 0},
			{"timeout", ErrTimeout, Spec{Timeout: time.Second, Bulkhead: &BulkheadSpec{MaxConcurrentCalls: 1, MaxWaitDuration: time.Hour}}, 0},
			{"rate_limited", ErrRateLimited, Spec{Timeout: time.Second, RateLimit: &RateLimitSpec{Requests: 1, Period: time.Minute, MaxWaitDuration: time.Hour}}, time.Minute},
			{"circuit_open", ErrCircuitOpen, Spec{CircuitBreaker: &BreakerSpec{ConsecutiveFailures: 1, WaitDurationInOpenState: 30 * time.Second}}, 30 * time.Second},
		} {
			p := mustNew(t, tc.spec)
			_, err := Do(t.Context(), p, func(ctx context.Context) (int, error) {
				_, err := Do(ctx, p, func(context.Context) (int, error) { return 0, errService })
				return 0, err
			})
			if tc.spec.CircuitBreaker != nil { // the first call opened it
				_, err = Do(t.Context(), p, func(context.Context) (int, error) { return 0, nil })
			}
			var r *Rejected
			if !errors.As(err, &r) || !errors.Is(err, tc.err) || r.Reason != tc.reason || r.RetryAfter != tc.after || r.Policy != "inventory" {
				t.Errorf("%s: got %#v", tc.reason, err)
			}
		}
	})
}

func TestThrottledCallsAreNotSent(t *testing.T) {
	p := mustNew(t, Spec{Throttle: &ThrottleSpec{}})
	sent, throttled := 0, 0
	for range 1000 {
		_, err := Do(t.Context(), p, func(context.Context) (int, error) { sent++; return 0, errService })
		if errors.Is(err, ErrThrottled) {
			throttled++
		}
	}
	if throttled < 900 || sent+throttled != 1000 {
		t.Errorf("%d sent to a service that never answers, %d throttled", sent, throttled)
	}
}

func TestOutcomes(t *testing.T) {
	notFound := errors.New("no such thing")
	classify := func(err error) Outcome {
		if errors.Is(err, notFound) {
			return Success
		}
		return Failure
	}
	synctest.Test(t, func(t *testing.T) {
		for _, tc := range []struct {
			name string
			fn   func(ctx context.Context, cancel func()) error
			want WindowCounts
		}{
			{"good", func(context.Context, func()) error { return nil }, WindowCounts{Calls: 1}},
			{"failed", func(context.Context, func()) error { return errService }, WindowCounts{Calls: 1, Failures: 1}},
			{"classified", func(context.Context, func()) error { return notFound }, WindowCounts{Calls: 1}},
			{"the caller cancelled", func(_ context.Context, cancel func()) error { cancel(); return errService }, WindowCounts{}},
			{"own timeout", func(ctx context.Context, _ func()) error { return work(ctx, time.Hour, nil) }, WindowCounts{Calls: 1, Failures: 1, Slow: 1}},
			{"caller's deadline", func(ctx context.Context, _ func()) error { return work(ctx, 2*time.Second, errService) }, WindowCounts{Calls: 1, Failures: 1, Slow: 1}},
		} {
			p, err := NewWith("x", Spec{AttemptTimeout: time.Second, CircuitBreaker: &BreakerSpec{}}, Config{Classify: classify})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			_, _ = Do(ctx, p, func(ctx context.Context) (int, error) { return 0, tc.fn(ctx, cancel) })
			cancel()
			if got := p.Breaker().Counts(time.Now()); got != tc.want {
				t.Errorf("%s: counted %+v, want %+v", tc.name, got, tc.want)
			}
		}
	})
}

func TestCallersDeadlineIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, hedge := range []*HedgeSpec{nil, {Delay: time.Hour}} {
			p := mustNew(t, Spec{CircuitBreaker: &BreakerSpec{}, Hedge: hedge})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := Do(ctx, p, func(ctx context.Context) (int, error) { return 0, work(ctx, time.Hour, nil) })
			cancel()
			p.Wait()
			if got, want := p.Breaker().Counts(time.Now()), (WindowCounts{Calls: 1, Failures: 1}); got != want || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("hedge %v: counted %+v, %v", hedge, got, err)
			}
		}
	})
}

func TestEverythingIsGivenBack(t *testing.T) {
	for _, hedge := range []*HedgeSpec{nil, {Delay: time.Millisecond}, {Delay: time.Hour}} {
		for _, timeout := range []time.Duration{0, 10 * time.Second} {
			for name, fn := range map[string]func(ctx context.Context, cancel func()) error{
				"good":    func(context.Context, func()) error { return nil },
				"failed":  func(context.Context, func()) error { return errService },
				"cancel":  func(ctx context.Context, cancel func()) error { cancel(); return ctx.Err() },
				"timeout": func(ctx context.Context, _ func()) error { return work(ctx, 20*time.Second, errService) },
				"panic":   func(context.Context, func()) error { panic("boom") },
			} {
				t.Run(fmt.Sprintf("%s/hedge=%v/timeout=%v", name, hedge != nil, timeout), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						spec := fullSpec()
						spec.Hedge, spec.Timeout = hedge, timeout
						p := mustNew(t, spec)
						ctx, cancel := context.WithCancel(t.Context())
						defer cancel()
						func() {
							defer func() {
								if got := recover(); (got != nil) != (name == "panic") || got != nil && got != "boom" {
									t.Errorf("panicked with %v", got)
								}
							}()
							_, _ = Do(ctx, p, func(ctx context.Context) (int, error) { return 0, fn(ctx, cancel) })
						}()
						nothingTaken(t, p)
						if c := p.Breaker().Counts(time.Now()); name == "panic" && c.Failures != 1 {
							t.Errorf("a panic counted as %+v", c)
						}
					})
				})
			}
		}
	}
}

func TestGoexitGivesBack(t *testing.T) {
	for _, hedge := range []*HedgeSpec{nil, {Delay: time.Hour}} {
		spec := fullSpec()
		spec.Hedge = hedge
		p := mustNew(t, spec)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer func() { _ = recover() }() // hedged, the caller cannot end by Goexit as well
			_, _ = Do(context.Background(), p, func(context.Context) (int, error) {
				(&testing.T{}).SkipNow() // runtime.Goexit, as tests do
				return 0, nil
			})
		})
		wg.Wait()
		nothingTaken(t, p)
	}
}

func TestRetriesAreBudgeted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustNew(t, Spec{Retry: &RetrySpec{MaxAttempts: 2, Backoff: BackoffSpec{Initial: 1}}, Hedge: nil})
		sent := 0
		for range 1000 {
			_, _ = Do(t.Context(), p, func(context.Context) (int, error) { sent++; return 0, errService })
		}
		// 20 % of the calls, and three a second for ten seconds.
		if sent != 1000+200+30 {
			t.Errorf("%d attempts of 1000 calls, want 1230", sent)
		}
	})
}

// Somebody else opens the circuit during the pause.
func TestRejectionTellsOfTheAttemptBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, hedge := range []*HedgeSpec{nil, {Delay: time.Hour}} {
			spec := Spec{Retry: &RetrySpec{Backoff: BackoffSpec{Initial: time.Second, Jitter: NoJitter}}, CircuitBreaker: &BreakerSpec{}, Hedge: hedge}
			p := mustNew(t, spec)
			time.AfterFunc(time.Millisecond, func() {
				spec.CircuitBreaker = &BreakerSpec{Mode: ModeForcedOpen}
				_ = p.Update(spec)
			})
			_, err := Do(t.Context(), p, func(context.Context) (int, error) { return 0, errService })
			if !errors.Is(err, ErrCircuitOpen) || !errors.Is(err, errService) {
				t.Errorf("got %v, want both", err)
			}
		}
	})
}

func TestWithoutPolicy(t *testing.T) {
	if n, err := Do(t.Context(), nil, answerOne); n != 1 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	bad := func(context.Context) (int, error) { return 0, errService }
	if n, err := DoOr(t.Context(), nil, bad, Static(2)); n != 2 || err != nil {
		t.Errorf("with a fallback: got %d, %v", n, err)
	}
}

func TestCancelDuringThePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustNew(t, Spec{Retry: &RetrySpec{Backoff: BackoffSpec{Initial: time.Hour, Jitter: NoJitter}}, Bulkhead: &BulkheadSpec{MaxConcurrentCalls: 1}})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := Do(ctx, p, func(context.Context) (int, error) { return 0, errService })
		if !errors.Is(err, context.Canceled) || !errors.Is(err, errService) {
			t.Errorf("got %v, want both the cancellation and the last error", err)
		}
		if n := p.Bulkhead().InUse(); n != 0 {
			t.Errorf("%d slots are taken", n)
		}
	})
}

func TestUpdateKeepsWhatLives(t *testing.T) {
	spec := fullSpec()
	spec.Throttle = nil
	p := mustNew(t, spec)
	for range 5 {
		_, _ = Do(t.Context(), p, func(context.Context) (int, error) { return 0, Permanent(errService) })
	}
	call, err := p.Begin(t.Context(), time.Now(), Normal)
	if err != nil {
		t.Fatal(err)
	}
	breaker, bulkhead := p.Breaker(), p.Bulkhead()
	spec.Bulkhead.MaxConcurrentCalls, spec.CircuitBreaker.FailureRateThreshold = 20, 90
	if p.Spec().Bulkhead.MaxConcurrentCalls != 10 {
		t.Error("the policy looks at a spec that its owner changed")
	}
	if err := p.Update(spec); err != nil {
		t.Fatal(err)
	}
	if p.Breaker() != breaker || p.Bulkhead() != bulkhead || breaker.Counts(time.Now()).Failures != 5 || bulkhead.InUse() != 1 {
		t.Error("an update lost what was counted")
	}
	var field *FieldError
	if err := p.Update(Spec{Timeout: -1}); !errors.As(err, &field) || field.Field != "timeout" || p.Spec().Timeout != 0 {
		t.Errorf("a bad spec: %v, in force %v", err, p.Spec())
	}
	if err := p.Update(Spec{}); err != nil { // the call gives back to what it took from
		t.Fatal(err)
	}
	call.End(time.Now(), Success)
	call.End(time.Now(), Success)
	if n := bulkhead.InUse(); n != 0 {
		t.Errorf("%d slots are taken", n)
	}
	if p.Breaker() != nil || p.Bulkhead() != nil || p.Adaptive() != nil {
		t.Error("parts that the spec has not any more are there")
	}
	new(Call).End(time.Now(), Success)
}

func TestFallbacks(t *testing.T) {
	p := mustNew(t, Spec{})
	good := func(context.Context) (string, error) { return "fresh", nil }
	bad := func(context.Context) (string, error) { return "", errService }
	none := func(context.Context, error) (string, error) { return "", errors.New("no idea") }
	ctx := t.Context()

	if got, err := DoOr(ctx, p, good, Static("fixed")); got != "fresh" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := DoOr(ctx, p, bad, none, Static("fixed")); got != "fixed" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := DoOr(ctx, p, bad, none); !errors.Is(err, errService) || err.Error() != "the service failed\nno idea" {
		t.Errorf("got %v", err)
	}
	open := mustNew(t, Spec{CircuitBreaker: &BreakerSpec{Mode: ModeForcedOpen}})
	if got, err := DoOr(ctx, open, good, Static("fixed")); got != "fixed" || err != nil {
		t.Errorf("an open circuit: got %q, %v", got, err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := DoOr(gone, p, bad, Static("fixed")); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that is gone: %v", err)
	}
	tolerant, _ := NewWith("x", Spec{}, Config{Classify: func(error) Outcome { return Success }})
	if _, err := DoOr(ctx, tolerant, bad, Static("fixed")); err != errService {
		t.Errorf("what is no failure needs no fallback: %v", err)
	}
}

func TestLastGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustNew(t, Spec{})
		last := LastGood[int]{MaxAge: time.Minute}
		var answer atomic.Int64
		fetch := last.Keep(func(context.Context) (int, error) {
			if n := answer.Load(); n > 0 {
				return int(n), nil
			}
			return 0, errService
		})
		ask := func() (int, error) { return DoOr(t.Context(), p, fetch, last.Fallback) }
		if _, err := ask(); err != errService {
			t.Errorf("nothing is kept yet: %v", err)
		}
		answer.Store(7)
		_, _ = ask()
		answer.Store(0)
		time.Sleep(time.Minute)
		if got, err := ask(); got != 7 || err != nil {
			t.Errorf("got %d, %v, want the last good answer", got, err)
		}
		time.Sleep(time.Nanosecond)
		if _, err := ask(); err != errService {
			t.Errorf("it is too old: %v", err)
		}
	})
}

func TestHedge(t *testing.T) {
	const delay = 100 * time.Millisecond
	for _, tc := range []struct {
		name    string
		hedges  int
		takes   []time.Duration // of each attempt
		errs    []error
		want    int // which attempt answered; 0: errService
		after   time.Duration
		started int
	}{
		{"a quick answer", 1, []time.Duration{50}, nil, 1, 50, 1},
		{"the hedge wins", 1, []time.Duration{500, 50}, nil, 2, 150, 2},
		{"the first wins", 1, []time.Duration{120, 50}, nil, 1, 120, 2},
		{"two hedges", 2, []time.Duration{500, 500, 10}, nil, 3, 210, 3},
		{"no more than the spec says", 1, []time.Duration{500, 500}, nil, 1, 500, 2},
		{"a failed hedge does not count", 1, []time.Duration{300, 50}, []error{nil, errService}, 1, 300, 2},
		{"a failed first does not count", 1, []time.Duration{120, 100}, []error{errService}, 2, 200, 2},
		{"all fail", 1, []time.Duration{120, 100}, []error{errService, errService}, 0, 200, 2},
		{"a quick failure is not waited with", 1, []time.Duration{50}, []error{errService}, 0, 50, 1},
		{"permanent is final", 1, []time.Duration{120, 100}, []error{Permanent(errService)}, 0, 120, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				spec := fullSpec()
				spec.Retry = nil
				spec.Hedge = &HedgeSpec{Delay: delay, MaxHedges: tc.hedges}
				p := mustNew(t, spec)
				start := time.Now()
				var started, cancelled atomic.Int64
				got, err := Do(t.Context(), p, func(ctx context.Context) (int, error) {
					n := int(started.Add(1))
					var err error
					if n <= len(tc.errs) {
						err = tc.errs[n-1]
					}
					if err = work(ctx, tc.takes[n-1]*time.Millisecond, err); err == context.Canceled {
						cancelled.Add(1)
					}
					return n, err
				})
				if took := time.Since(start); took != tc.after*time.Millisecond {
					t.Errorf("took %v, want %v ms", took, int(tc.after))
				}
				if (err == nil) != (tc.want > 0) || err == nil && got != tc.want || err != nil && !errors.Is(err, errService) {
					t.Errorf("got attempt %d, %v, want %d", got, err, tc.want)
				}
				if int(started.Load()) != tc.started {
					t.Errorf("%d attempts, want %d", started.Load(), tc.started)
				}
				nothingTaken(t, p)
				if took := time.Since(start); took != tc.after*time.Millisecond {
					t.Errorf("losers ended only after %v", took)
				}
			})
		})
	}
}

func TestHedgesAreBudgeted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustNew(t, Spec{Hedge: &HedgeSpec{Delay: 1}})
		var started atomic.Int64
		for range 100 {
			_, _ = Do(t.Context(), p, func(ctx context.Context) (int, error) {
				started.Add(1)
				return 0, work(ctx, 2, nil)
			})
		}
		if n := started.Load(); n != 100+20+30 {
			t.Errorf("%d attempts of 100 calls, want 150", n)
		}
	})
}

func TestLosersErrorsAreNobodysFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustNew(t, Spec{Hedge: &HedgeSpec{Delay: time.Second}, CircuitBreaker: &BreakerSpec{}})
		var started atomic.Int64
		_, _ = Do(t.Context(), p, func(ctx context.Context) (int, error) {
			if started.Add(1) == 1 {
				return 0, work(ctx, time.Hour, nil)
			}
			return 0, nil
		})
		p.Wait()
		if got, want := p.Breaker().Counts(time.Now()), (WindowCounts{Calls: 1}); got != want {
			t.Errorf("counted %+v, want %+v", got, want)
		}
	})
}

func TestHedgeByPercentile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustNew(t, Spec{Hedge: &HedgeSpec{Percentile: 95}})
		n := 0
		call := func() {
			_, _ = Do(t.Context(), p, func(ctx context.Context) (int, error) {
				n++
				return 0, work(ctx, time.Duration(n%100+1)*time.Millisecond, nil)
			})
		}
		if _, most := p.HedgeDelay(); most != 0 {
			t.Error("it hedges by a percentile that nobody knows")
		}
		for range 100 {
			call()
		}
		time.Sleep(time.Second) // it is computed again each second
		call()
		d, most := p.HedgeDelay()
		if most != 1 || d < 95*time.Millisecond || d > 107*time.Millisecond {
			t.Errorf("hedges after %v, at most %d, want 95 ms or an eighth more", d, most)
		}
	})
}

func TestNoFallbackForWhoLeavesInThePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustNew(t, Spec{Retry: &RetrySpec{Backoff: BackoffSpec{Initial: time.Hour, Jitter: NoJitter}}})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := DoOr(ctx, p, func(context.Context) (int, error) { return 0, errService }, Static(1))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestAttemptsBeginAfterTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustNew(t, Spec{AttemptTimeout: time.Second,
			RateLimit: &RateLimitSpec{Requests: 1, Period: 10 * time.Second, MaxWaitDuration: time.Minute}})
		for range 3 {
			if _, err := Do(t.Context(), p, func(ctx context.Context) (int, error) {
				return 0, work(ctx, 999*time.Millisecond, nil)
			}); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestContextsEndWithTheirAttempt(t *testing.T) {
	for _, hedge := range []*HedgeSpec{nil, {Delay: time.Hour}} {
		p := mustNew(t, Spec{AttemptTimeout: time.Hour, Hedge: hedge})
		var kept context.Context
		_, _ = Do(t.Context(), p, func(ctx context.Context) (int, error) { kept = ctx; return 0, nil })
		if kept.Err() != context.Canceled {
			t.Errorf("hedge %v: the context of an attempt that is over: %v", hedge, kept.Err())
		}
	}
}

func TestEveryRoundHasItsHedges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustNew(t, Spec{Hedge: &HedgeSpec{Delay: time.Second}, Retry: &RetrySpec{MaxAttempts: 3, Backoff: BackoffSpec{Initial: 1}}})
		var started atomic.Int64
		_, _ = Do(t.Context(), p, func(ctx context.Context) (int, error) {
			started.Add(1)
			return 0, work(ctx, 2*time.Second, errService)
		})
		if n := started.Load(); n != 6 {
			t.Errorf("%d attempts, want three with a hedge each", n)
		}
	})
}

// A runner that delivers while the race is being decided has its value dropped.
func TestDeliveredLosersAreDropped(t *testing.T) {
	var dropped []int
	e := &effort[int]{drop: func(n int, _ *attemptContext) { dropped = append(dropped, n) }}
	r := &race[int]{effort: e, results: make(chan result[int], 2)}
	if !r.deliver(result[int]{value: 1}) || !r.deliver(result[int]{value: 2}) {
		t.Fatal("the race is over too early")
	}
	if won := <-r.results; won.value != 1 {
		t.Fatal(won)
	}
	r.end(nil, true)
	if r.deliver(result[int]{value: 3}) || len(dropped) != 1 || dropped[0] != 2 {
		t.Errorf("dropped %v, want 2; 3 is its runner's to drop", dropped)
	}
}
