package resilience

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestHappyPathAllocates(t *testing.T) {
	spec := fullSpec()
	p := mustNew(t, spec)
	ctx := t.Context()
	inside := func(context.Context) (int, error) { return p.Bulkhead().InUse() + p.Adaptive().InFlight(), nil }
	spec.Timeout, spec.AttemptTimeout = time.Second, time.Second
	timed := mustNew(t, spec)
	for _, tc := range []struct {
		name string
		want float64
		call func()
	}{
		{"Do", 0, func() {
			if n, err := Do(ctx, p, inside); n != 2 || err != nil {
				t.Fatal(n, err)
			}
		}},
		{"Do with timeouts", 1, func() {
			if _, err := Do(ctx, timed, inside); err != nil {
				t.Fatal(err)
			}
		}},
		{"Call with timeouts", 0, func() {
			if !oneCall(ctx, timed, time.Now()) {
				t.Fatal("rejected")
			}
		}},
		{"questions", 0, func() {
			if !p.RetriesStatus(503) || !p.RetriesMethod("PUT") || !p.RetriesGRPC(14) || !p.FailsStatus(500) {
				t.Fatal("wrong")
			}
			p.HedgeDelay()
		}},
	} {
		if got := testing.AllocsPerRun(200, tc.call); got != tc.want {
			t.Errorf("%s: %v allocations, want %v", tc.name, got, tc.want)
		}
	}
}

func TestPredicates(t *testing.T) {
	p := mustNew(t, Spec{
		Retry:          &RetrySpec{Statuses: []string{"5xx", "429"}, IgnoreStatuses: []string{"501", "4xx"}, GRPCStatuses: []string{"ABORTED"}, Methods: []string{"POST"}},
		CircuitBreaker: &BreakerSpec{FailureStatuses: []string{"503", "404"}},
	})
	plain := mustNew(t, Spec{})
	defaults := mustNew(t, Spec{Retry: &RetrySpec{}})
	for status := -1; status < 1000; status++ {
		if got, want := p.RetriesStatus(status), status >= 500 && status < 600 && status != 501; got != want {
			t.Errorf("retries %d: %v", status, got)
		}
		if got, want := p.FailsStatus(status), status == 503 || status == 404; got != want {
			t.Errorf("%d fails: %v", status, got)
		}
		if got, want := plain.FailsStatus(status), status/100 == 5; got != want {
			t.Errorf("%d fails by default: %v", status, got)
		}
		if plain.RetriesStatus(status) {
			t.Errorf("without retry: retries %d", status)
		}
		if got, want := defaults.RetriesStatus(status), status == 429 || status >= 502 && status <= 504; got != want {
			t.Errorf("retries %d by default: %v", status, got)
		}
	}
	for code := -1; code < 40; code++ {
		if p.RetriesGRPC(code) != (code == 10) || defaults.RetriesGRPC(code) != (code == 14) || plain.RetriesGRPC(code) {
			t.Errorf("gRPC status %d", code)
		}
	}
	for _, m := range []string{"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"} {
		if !plain.RetriesMethod(m) {
			t.Errorf("%s is idempotent", m)
		}
	}
	for _, m := range []string{"PATCH", "CONNECT", "get", ""} {
		if p.RetriesMethod(m) {
			t.Errorf("%s is not idempotent", m)
		}
	}
	if !p.RetriesMethod("POST") || plain.RetriesMethod("POST") {
		t.Error("POST is repeated where the spec says so")
	}
}

func TestBackoff(t *testing.T) {
	const ms = time.Millisecond
	doubling := BackoffSpec{Initial: 100 * ms, Multiplier: 2, Max: 350 * ms, Jitter: NoJitter}
	full, decorrelated := doubling, doubling
	full.Jitter, decorrelated.Jitter = FullJitter, DecorrelatedJitter
	for _, tc := range []struct {
		spec   BackoffSpec
		n      int
		pause  time.Duration
		random float64
		want   time.Duration
	}{
		{doubling, 1, 0, 0.5, 100 * ms},
		{doubling, 2, 0, 0.5, 200 * ms},
		{doubling, 3, 0, 0.5, 350 * ms},
		{doubling, 19, 0, 0.5, 350 * ms},
		{full, 1, 0, 0, 0},
		{full, 2, 0, 0.5, 100 * ms},
		{full, 9, 0, 0.5, 175 * ms},
		{decorrelated, 1, 0, 0, 100 * ms},
		{decorrelated, 1, 0, 0.5, 200 * ms},
		{decorrelated, 2, 110 * ms, 0.5, 215 * ms},
		{decorrelated, 3, 300 * ms, 0.5, 350 * ms},
	} {
		if got := tc.spec.wait(tc.n, tc.pause, tc.random); got != tc.want {
			t.Errorf("%s, attempt %d: %v, want %v", tc.spec.Jitter, tc.n, got, tc.want)
		}
	}
}

func TestCallRetry(t *testing.T) {
	spec := Spec{Timeout: time.Second, Retry: &RetrySpec{MaxAttempts: 3, Backoff: BackoffSpec{Initial: 100 * time.Millisecond, Jitter: NoJitter}}}
	p := mustNew(t, spec)
	call, err := p.Begin(t.Context(), noon, Normal)
	if err != nil {
		t.Fatal(err)
	}
	defer call.End(noon, Success)
	if d := call.Deadline(); !d.Equal(noon.Add(time.Second)) {
		t.Errorf("deadline %v", d)
	}
	retry := func(at, hint, want time.Duration, ok bool) {
		t.Helper()
		if wait, again := call.Retry(noon.Add(at), hint); again != ok || wait != want {
			t.Errorf("%v after the start, asked for %v: %v, %v", at, hint, wait, again)
		}
	}
	retry(0, -1, 0, false)
	retry(0, time.Second, 0, false)
	retry(950*time.Millisecond, 0, 0, false)
	retry(0, 900*time.Millisecond, 900*time.Millisecond, true)
	retry(0, 0, 200*time.Millisecond, true)
	retry(0, 0, 0, false)

	untimed := mustNew(t, Spec{Retry: spec.Retry})
	call, _ = untimed.Begin(t.Context(), noon, Normal)
	retry(0, longestHint+1, 0, false)
	retry(0, longestHint, longestHint, true)
}

func TestAttemptDeadline(t *testing.T) {
	for _, tc := range []struct{ total, attempt, caller, at, want time.Duration }{
		{0, 0, 0, 0, 0},
		{2, 0, 0, 1, 2},
		{0, 2, 0, 1, 3},
		{4, 2, 0, 1, 3},
		{4, 2, 0, 3, 4},
		{4, 2, 2, 1, 2},
		{1, 0, 9, 0, 1},
	} {
		p := mustNew(t, Spec{Timeout: tc.total * time.Hour, AttemptTimeout: tc.attempt * time.Hour})
		start := time.Now()
		ctx, cancel := t.Context(), func() {}
		if tc.caller > 0 {
			ctx, cancel = context.WithDeadline(ctx, start.Add(tc.caller*time.Hour))
		}
		call, err := p.Begin(ctx, start, Normal)
		if err != nil {
			t.Fatal(err)
		}
		got := call.AttemptDeadline(start.Add(tc.at * time.Hour))
		if tc.want == 0 && !got.IsZero() || tc.want > 0 && !got.Equal(start.Add(tc.want*time.Hour)) {
			t.Errorf("%+v: got %v after the start", tc, got.Sub(start))
		}
		call.End(start, Success)
		cancel()
	}
}

func TestBeginWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := Spec{Timeout: time.Minute, AttemptTimeout: time.Second, AdaptiveConcurrency: &AdaptiveSpec{},
			RateLimit: &RateLimitSpec{Requests: 1, Period: 10 * time.Second, MaxWaitDuration: time.Hour},
			Bulkhead:  &BulkheadSpec{MaxConcurrentCalls: 1, MaxWaitDuration: time.Hour}}
		p := mustNew(t, spec)
		start := time.Now()
		first, err := p.Begin(t.Context(), start, Normal)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(30*time.Second, func() { first.End(time.Now(), Success) })
		second, err := p.Begin(t.Context(), start, Normal) // 10 s for the rate, 20 s for the bulkhead
		if err != nil || time.Since(start) != 30*time.Second {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
		if want := start.Add(time.Minute); !second.Deadline().Equal(want) {
			t.Error("the wait is not part of the timeout")
		}
		if _, err := p.Begin(t.Context(), start, Normal); !errors.Is(err, ErrTimeout) || time.Since(start) != time.Minute {
			t.Errorf("a wait beyond the timeout: %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := p.Begin(ctx, time.Now(), Normal); err != context.Canceled {
			t.Errorf("a caller who leaves: %v", err)
		}
		second.End(time.Now(), Success)
		nothingTaken(t, p)
		if _, err := p.Begin(ctx, time.Now(), Normal); err != context.Canceled {
			t.Errorf("a caller who has left: %v", err)
		}
	})
}

func TestPriorityReachesTheLimit(t *testing.T) {
	p := mustNew(t, Spec{AdaptiveConcurrency: &AdaptiveSpec{InitialLimit: 10, MaxLimit: 10}})
	var calls []Call
	for {
		c, err := p.Begin(t.Context(), noon, Low)
		if err != nil {
			break
		}
		calls = append(calls, c)
	}
	ok := func(context.Context) (int, error) { return 0, nil }
	if _, err := Do(WithPriority(t.Context(), Low), p, ok); !errors.Is(err, ErrConcurrencyLimited) {
		t.Errorf("low: %v", err)
	}
	if _, err := Do(WithPriority(t.Context(), Critical), p, ok); err != nil {
		t.Errorf("critical: %v", err)
	}
	for _, c := range calls {
		c.End(noon, Success)
	}
}

// A throttle that knows no answer yet takes a burst for nothing but a burst.
func TestBurstIsNotThrottled(t *testing.T) {
	p := mustNew(t, Spec{Throttle: &ThrottleSpec{}})
	calls := make([]Call, 100)
	for n := range calls {
		var err error
		if calls[n], err = p.Begin(t.Context(), noon, Normal); err != nil {
			t.Fatalf("with %d on their way: %v", n, err)
		}
	}
	for n := range calls { // half of them are accepted: that is K times
		o := Success
		switch {
		case n%4 == 0:
			o = Failure
		case n%4 == 1:
			o = TimedOut
		}
		calls[n].End(noon, o)
		calls[n].End(noon, Failure) // is over, and counts no more
	}
	if got, want := p.plan.Load().throttle.sum, (throttleBucket{100, 50}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	for range 100 {
		call, err := p.Begin(t.Context(), noon, Normal)
		if err != nil {
			t.Fatalf("with half of all accepted: %v", err)
		}
		call.End(noon, Ignored) // says nothing
	}
	for range 100 {
		if call, err := p.Begin(t.Context(), noon, Normal); err == nil {
			call.End(noon, Failure)
		} else if !errors.Is(err, ErrThrottled) {
			t.Fatal(err)
		}
	}
	if got, want := p.plan.Load().throttle.sum, (throttleBucket{200, 50}); got != want {
		t.Errorf("counted %+v, want %+v: each of the last hundred failed or was rejected", got, want)
	}
}

// What was never sent says nothing about what the server accepts.
func TestRejectedElsewhereIsNotThrottled(t *testing.T) {
	for _, tc := range []struct {
		name string
		spec Spec
		busy bool // one call is in flight
		err  error
	}{
		{"bulkhead", Spec{Bulkhead: &BulkheadSpec{MaxConcurrentCalls: 1}}, true, ErrBulkheadFull},
		{"adaptive limit", Spec{AdaptiveConcurrency: &AdaptiveSpec{MinLimit: 1, InitialLimit: 1, MaxLimit: 1}}, true, ErrConcurrencyLimited},
		{"circuit", Spec{CircuitBreaker: &BreakerSpec{Mode: ModeForcedOpen}}, false, ErrCircuitOpen},
	} {
		tc.spec.Throttle = &ThrottleSpec{}
		p := mustNew(t, tc.spec)
		var want throttleBucket
		var call Call
		if tc.busy {
			var err error
			if call, err = p.Begin(t.Context(), noon, Normal); err != nil {
				t.Fatal(tc.name, err)
			}
			want = throttleBucket{1, 1}
		}
		for range 1000 {
			if _, err := Do(t.Context(), p, answerOne); !errors.Is(err, tc.err) {
				t.Fatal(tc.name, err)
			}
		}
		call.End(noon, Success)
		if got := p.plan.Load().throttle.sum; got != want {
			t.Errorf("%s: counted %+v, want %+v", tc.name, got, want)
		}
	}
}

// Contexts of attempts behave like those of package context, whoever asks first.
func TestAttemptContext(t *testing.T) {
	type key struct{}
	for _, tc := range []struct {
		name string
		end  func(own *attemptContext, cancel func())
		want error
	}{
		{"finished", func(own *attemptContext, _ func()) { own.finish() }, context.Canceled},
		{"its deadline", func(*attemptContext, func()) { time.Sleep(time.Second) }, context.DeadlineExceeded}, //weft:sleep fake time
		{"the caller cancels", func(_ *attemptContext, cancel func()) { cancel() }, context.Canceled},
	} {
		for _, early := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				caller, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "v"))
				defer cancel()
				own := &attemptContext{caller: caller, deadline: time.Now().Add(time.Second)}
				if d, ok := own.Deadline(); !ok || time.Until(d) != time.Second {
					t.Errorf("deadline in %v", time.Until(d))
				}
				var child context.Context = own
				if early {
					own.Done()
					var stop context.CancelFunc
					child, stop = context.WithCancel(own)
					defer stop()
				}
				if own.Err() != nil || own.Value(key{}) != "v" {
					t.Errorf("alive: %v, value %v", own.Err(), own.Value(key{}))
				}
				tc.end(own, cancel)
				if early {
					<-child.Done()
				}
				if err := own.Err(); err != tc.want {
					t.Errorf("%s, early %v: %v, want %v", tc.name, early, err, tc.want)
				}
				<-own.Done()
				own.finish()
				if err := child.Err(); err != tc.want || own.Err() != tc.want || context.Cause(own) != tc.want {
					t.Errorf("%s, early %v: child %v, later %v, cause %v", tc.name, early, err, own.Err(), context.Cause(own))
				}
			})
		}
	}
}

// Sixteen goroutines and a spec that changes: everything is given back.
func TestManyAtOnce(t *testing.T) {
	spec := fullSpec()
	spec.Timeout = time.Second
	p := mustNew(t, spec)
	hedged := spec
	hedged.Hedge = &HedgeSpec{Delay: 10 * time.Microsecond, Percentile: 90}
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(g), 0))
			for range 300 {
				ctx, cancel := context.WithCancel(context.Background())
				n := random.IntN(8)
				func() {
					defer func() { _ = recover() }()
					_, _ = Do(ctx, p, func(ctx context.Context) (int, error) {
						switch n {
						case 0:
							return 0, errService
						case 1:
							cancel()
							return 0, ctx.Err()
						case 2:
							_ = work(ctx, 50*time.Microsecond, nil)
						}
						return 0, nil
					})
				}()
				if n == 3 && g == 0 {
					_ = p.Update(hedged)
				} else if n == 4 && g == 0 {
					_ = p.Update(spec)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	nothingTaken(t, p)
}

func TestErrors(t *testing.T) {
	p := mustNew(t, Spec{CircuitBreaker: &BreakerSpec{Mode: ModeForcedOpen}})
	_, err := Do(t.Context(), p, answerOne)
	if got := err.Error(); got != "policy inventory: circuit open" {
		t.Errorf("got %q", got)
	}
	if got := (&Rejected{Policy: "x", Err: ErrRateLimited, RetryAfter: time.Second}).Error(); got != "policy x: rate limit exceeded, retry after 1s" {
		t.Errorf("got %q", got)
	}
	var timeout interface{ Timeout() bool }
	if !errors.Is(ErrAttemptTimeout, context.DeadlineExceeded) || errors.Is(ErrAttemptTimeout, ErrTimeout) || !errors.As(ErrTimeout, &timeout) || !timeout.Timeout() {
		t.Error("timeouts are not known as such")
	}
	if Permanent(nil) != nil || !errors.Is(Permanent(http.ErrNoCookie), http.ErrNoCookie) {
		t.Error("Permanent hides its error")
	}
}
