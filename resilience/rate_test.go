package resilience

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// midnight is a time without a monotonic reading, as tests and logs have it.
var midnight = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

func newRateLimiter(t testing.TB, s RateLimitSpec) *RateLimiter {
	t.Helper()
	l, err := NewRateLimiter(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func ExampleRateLimiter() {
	l, err := NewRateLimiter(RateLimitSpec{Requests: 10, Burst: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Now()
	for range 3 {
		fmt.Println(l.Allow(now))
	}
	fmt.Println(l.Allow(now.Add(100 * time.Millisecond)))
	// Output:
	// true 0s
	// true 0s
	// false 100ms
	// true 0s
}

func TestRateLimiterRejectsBadSpecs(t *testing.T) {
	for _, s := range []RateLimitSpec{{}, {Requests: -1}, {Requests: 1, Period: -1}, {Requests: 1, Burst: -1},
		{Requests: 1, MaxWaitDuration: -1}, {Requests: 2, Period: 1}, {Requests: 1, Period: 24 * time.Hour, Burst: 1_000_000}} {
		if l, err := NewRateLimiter(s); err == nil || l != nil {
			t.Errorf("%+v: accepted", s)
		}
		if err := newRateLimiter(t, RateLimitSpec{Requests: 1}).Update(s); err == nil {
			t.Errorf("%+v: update accepted", s)
		}
	}
}

// rateModel is the slow, obvious limiter: a bucket of tokens, in fractions.
type rateModel struct {
	rate, burst, tokens *big.Rat // rate in tokens a nanosecond
	last                time.Time
}

func newRateModel(s RateLimitSpec, now time.Time) *rateModel {
	s = s.withDefaults()
	burst := big.NewRat(int64(s.Burst), 1)
	return &rateModel{rate: big.NewRat(int64(s.Requests), int64(s.Period)), burst: burst, tokens: new(big.Rat).Set(burst), last: now}
}

func (m *rateModel) allow(now time.Time) (bool, time.Duration) {
	gained := new(big.Rat).Mul(m.rate, big.NewRat(int64(now.Sub(m.last)), 1))
	m.last = now
	if m.tokens.Add(m.tokens, gained); m.tokens.Cmp(m.burst) > 0 {
		m.tokens.Set(m.burst)
	}
	one := big.NewRat(1, 1)
	if m.tokens.Cmp(one) >= 0 {
		m.tokens.Sub(m.tokens, one)
		return true, 0
	}
	missing := new(big.Rat).Sub(one, m.tokens)
	missing.Quo(missing, m.rate)
	up := new(big.Int).Add(missing.Num(), new(big.Int).Sub(missing.Denom(), big.NewInt(1)))
	return false, time.Duration(up.Div(up, missing.Denom()).Int64())
}

// TestRateLimiterAgainstModel holds the limiter to exact fractions: the same answer and
// the same retryAfter to the nanosecond, for rates that are no whole number of
// nanoseconds, over pauses longer than the limiter's own horizon.
func TestRateLimiterAgainstModel(t *testing.T) {
	rates := []int{1, 2, 3, 7, 10, 60, 97, 1000, 1001, 12_289, 999_983}
	periods := []time.Duration{time.Millisecond, time.Second, time.Minute, time.Hour, 7 * time.Millisecond, 1_000_003}
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		s := RateLimitSpec{Requests: rates[rnd.IntN(len(rates))], Period: periods[rnd.IntN(len(periods))], Burst: 1 + rnd.IntN(20)}
		l := newRateLimiter(t, s)
		now := midnight.Add(time.Duration(rnd.Int64N(int64(time.Second))))
		m := newRateModel(s, now)
		every := max(1, int64(s.Period)/int64(s.Requests))
		var retry time.Duration
		for step := range 400 {
			switch rnd.IntN(8) {
			case 0, 1:
				now = now.Add(time.Duration(rnd.Int64N(2 * every)))
			case 2:
				now = now.Add(retry)
			case 3:
				now = now.Add(max(0, retry-1))
			case 4:
				now = now.Add(time.Duration(every))
			case 5:
				now = now.Add(time.Duration(rnd.Int64N(int64(s.Burst) * every)))
			case 6:
				if rnd.IntN(10) == 0 {
					now = now.Add(time.Duration(rnd.Int64N(int64(2 * rateHorizon))))
				}
			}
			ok, after := l.Allow(now)
			wantOK, wantAfter := m.allow(now)
			if ok != wantOK || after != wantAfter {
				t.Fatalf("seed %d, %d per %v, burst %d, step %d: %v %v, want %v %v",
					seed, s.Requests, s.Period, s.Burst, step, ok, after, wantOK, wantAfter)
			}
			retry = after
		}
	}
}

// TestRateLimiterFractionsDoNotDrift asks all the time for a day: three calls a second
// are 259,200 a day and the burst.
func TestRateLimiterFractionsDoNotDrift(t *testing.T) {
	l := newRateLimiter(t, RateLimitSpec{Requests: 3, Burst: 1})
	got := 0
	for now, end := midnight, midnight.Add(24*time.Hour); now.Before(end); {
		ok, after := l.Allow(now)
		if ok {
			got++
			continue
		}
		now = now.Add(after)
	}
	if got != 259_200 {
		t.Errorf("%d calls, want 259200", got)
	}
}

// TestRateLimiterRoundsUp: where the interval between two calls is no whole number of
// units it is a little too long, by less than a millionth of a nanosecond where the
// burst leaves room for that, and never too short.
func TestRateLimiterRoundsUp(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 3))
	inexact := 0
	for range 5000 {
		s := RateLimitSpec{Requests: 1 + rnd.IntN(most), Period: time.Second + time.Duration(rnd.Int64N(int64(time.Hour))), Burst: 1 + rnd.IntN(100)}
		g := newGCRA(s)
		over := new(big.Rat).Sub(big.NewRat(g.interval, g.unit), big.NewRat(int64(s.Period), int64(s.Requests)))
		if over.Sign() < 0 || over.Cmp(big.NewRat(1, 1_000_000)) >= 0 {
			t.Fatalf("%+v: the interval is %s ns too long", s, over.FloatString(12))
		}
		if over.Sign() > 0 {
			inexact++
		}
	}
	if inexact == 0 {
		t.Error("all are exact: nothing is shown")
	}
}

// TestRateLimiterAfterAges uses the burst up and comes back after ages.
func TestRateLimiterAfterAges(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for _, requests := range []int{1, 7, 999_983} {
		for _, ages := range []time.Duration{time.Hour, year, 10 * year, 73 * year, 100 * year, 200 * year, 290 * year} {
			l := newRateLimiter(t, RateLimitSpec{Requests: requests, Period: 1_000_000_007, Burst: 3})
			for _, now := range []time.Time{midnight, midnight.Add(ages)} {
				got := 0
				for ok := true; ok; got++ {
					ok, _ = l.Allow(now)
				}
				if got != 4 {
					t.Errorf("%d a second: %d at once at %v, want 3", requests, got-1, now)
				}
			}
			// And before all this the burst counts as used up.
			every := time.Duration(1_000_000_007/requests + 1)
			if ok, after := l.Allow(midnight.Add(-ages)); ok || after <= 0 || after > every {
				t.Errorf("%d a second, set back by twice %v: %v %v", requests, ages, ok, after)
			}
		}
	}
}

// TestRateLimiterBound asks from 16 goroutines, each with a clock that it read a
// little earlier, and looks at every interval between two calls that passed.
func TestRateLimiterBound(t *testing.T) {
	for _, s := range []RateLimitSpec{{Requests: 7, Period: 1000, Burst: 5}, {Requests: 999_983, Period: 1_000_000_007, Burst: 1}, {Requests: 1, Period: 100, Burst: 40}} {
		l := newRateLimiter(t, s)
		var clock atomic.Int64
		var mu sync.Mutex
		var passed []int64
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(i), 2))
				var mine []int64
				for range 3000 {
					at := clock.Add(rnd.Int64N(20))
					if ok, _ := l.Allow(midnight.Add(time.Duration(at))); ok {
						mine = append(mine, at)
					}
				}
				mu.Lock()
				defer mu.Unlock()
				passed = append(passed, mine...)
			})
		}
		wg.Wait()
		slices.Sort(passed)
		// At most Burst + rate × (t[j]−t[i]) in each closed interval [t[i], t[j]]:
		// with v[k] = k × Period − t[k] × Requests that is v[j] − v[i] ≤ (Burst−1) × Period.
		least := int64(math.MaxInt64)
		for k, at := range passed {
			v := int64(k)*int64(s.Period) - at*int64(s.Requests)
			least = min(least, v)
			if v-least > int64(s.Burst-1)*int64(s.Period) {
				t.Fatalf("%+v: too many until call %d at %d", s, k, at)
			}
		}
		if want := clock.Load() * int64(s.Requests) / int64(s.Period) / 2; int64(len(passed)) < want {
			t.Errorf("%+v: only %d passed in %d ns", s, len(passed), clock.Load())
		}
	}
}

func TestRateLimiterClockGoesBack(t *testing.T) {
	for _, tc := range []struct {
		name string
		back time.Duration
		want int // calls that pass in the second after
	}{
		{"not at all", 0, 10},
		{"less than the skew of callers: these calls only come early", time.Nanosecond, 9},
		{"two seconds", 2 * time.Second, 10},
		{"an hour", time.Hour, 10},
		{"ten years", 10 * 365 * 24 * time.Hour, 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newRateLimiter(t, RateLimitSpec{Requests: 10, Burst: 5})
			now := midnight
			for range 5 {
				if ok, _ := l.Allow(now); !ok {
					t.Fatal("the burst is not there")
				}
			}
			now = now.Add(-tc.back)
			got := 0
			for ms := range 1001 {
				if ok, _ := l.Allow(now.Add(time.Duration(ms) * time.Millisecond)); ok {
					got++
				}
			}
			if got != tc.want {
				t.Errorf("%d passed, want %d", got, tc.want)
			}
		})
	}
}

// TestRateLimiterStaleMonotonicTime has a caller that read the clock two seconds ago.
// Its time says when it read the clock and not that the clock was set back: nothing is
// given back.
func TestRateLimiterStaleMonotonicTime(t *testing.T) {
	l := newRateLimiter(t, RateLimitSpec{Requests: 10, Burst: 1})
	now := time.Now()
	if ok, _ := l.Allow(now); !ok {
		t.Fatal("not allowed")
	}
	if ok, after := l.Allow(now.Add(-2 * time.Second)); ok || after != 2100*time.Millisecond {
		t.Errorf("%v %v", ok, after)
	}
	if ok, after := l.Allow(now); ok || after != 100*time.Millisecond {
		t.Errorf("%v %v", ok, after)
	}
}

// TestRateLimiterExtremes jumps about in time with rates at the edge of what a Spec may
// say: neither overflow nor a wait that makes no sense, and never more than a burst.
func TestRateLimiterExtremes(t *testing.T) {
	for _, s := range []RateLimitSpec{
		{Requests: 1_000_000_000, Period: time.Second, Burst: 1_000_000_000},
		{Requests: 1_000_000_000, Period: longest, Burst: 1},
		{Requests: 999_999_937, Period: longest, Burst: 999_999_937, MaxWaitDuration: longest},
		{Requests: 1, Period: longest, Burst: 70, MaxWaitDuration: longest},
		{Requests: 1, Period: 1, Burst: 1_000_000_000},
		{Requests: 1, Period: 1},
	} {
		l := newRateLimiter(t, s)
		rnd := rand.New(rand.NewPCG(5, uint64(s.Requests)))
		every := s.Period/time.Duration(s.Requests) + 1
		for step := range 2000 {
			now := midnight
			switch rnd.IntN(4) {
			case 0:
				now = now.Add(time.Duration(rnd.Int64()) - math.MaxInt64/2)
			case 1:
				now = time.Unix(rnd.Int64N(1<<40)-1<<39, 0)
			case 2:
				now = time.Time{}.Add(time.Duration(rnd.Int64N(1000)))
			}
			again := 0
			for range 100 {
				ok, after := l.Allow(now)
				if ok {
					again++
				} else if after <= 0 || s.Burst <= 1 && after > every+clockSkew {
					t.Fatalf("%+v, step %d at %v: retry after %v", s, step, now, after)
				}
			}
			if again > max(1, s.Burst) && s.Period/time.Duration(s.Requests) > 0 {
				t.Fatalf("%+v: %d at once", s, again)
			}
		}
	}
}

func TestRateLimiterWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newRateLimiter(t, RateLimitSpec{Requests: 10, Burst: 2, MaxWaitDuration: 300 * time.Millisecond})
		start := time.Now()
		var mu sync.Mutex
		var turns []time.Duration
		rejected := 0
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				err := l.Wait(t.Context())
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					turns = append(turns, time.Since(start))
				} else if err == ErrRateLimited && time.Since(start) == 0 {
					rejected++
				} else {
					t.Errorf("%v after %v", err, time.Since(start))
				}
			})
		}
		wg.Wait()
		want := []time.Duration{0, 0, 100 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond}
		if !slices.Equal(turns, want) || rejected != 3 {
			t.Errorf("turns at %v, %d rejected; want %v, 3", turns, rejected, want)
		}
	})
}

func TestRateLimiterWaitGivesUp(t *testing.T) {
	errGone := errors.New("client gone")
	synctest.Test(t, func(t *testing.T) {
		l := newRateLimiter(t, RateLimitSpec{Requests: 1, MaxWaitDuration: time.Minute})
		if err := l.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for range 100 { // the turn would come after the deadline, or with it
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := l.Wait(ctx); err != ErrRateLimited || time.Since(start) != 0 {
				t.Fatalf("%v after %v", err, time.Since(start))
			}
			cancel()
		}
		for range 3 { // the last in line gives its turn back
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(100*time.Millisecond, func() { cancel(errGone) })
			if err := l.Wait(ctx); err != errGone {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errGone)
		if err := l.Wait(ctx); err != errGone {
			t.Fatal(err)
		}
		if err := l.Wait(t.Context()); err != nil || time.Since(start) != time.Second {
			t.Errorf("%v after %v: those who gave up counted", err, time.Since(start))
		}
	})
}

// TestRateLimiterWaitKeepsTheBound lets some in the middle of the line give up: the
// others keep their turns, and none comes earlier than the rate allows.
func TestRateLimiterWaitKeepsTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newRateLimiter(t, RateLimitSpec{Requests: 100, Burst: 1, MaxWaitDuration: time.Hour})
		rnd := rand.New(rand.NewPCG(9, 9))
		start := time.Now()
		var mu sync.Mutex
		var turns []time.Duration
		var wg sync.WaitGroup
		for range 500 {
			wait := time.Duration(rnd.IntN(5000)) * time.Millisecond
			ctx, cancel := context.WithCancel(t.Context())
			if rnd.IntN(2) == 0 {
				time.AfterFunc(wait, cancel)
			}
			time.Sleep(time.Duration(rnd.IntN(10)) * time.Millisecond)
			wg.Go(func() {
				defer cancel()
				if l.Wait(ctx) == nil {
					mu.Lock()
					defer mu.Unlock()
					turns = append(turns, time.Since(start))
				}
			})
		}
		wg.Wait()
		slices.Sort(turns)
		for i := range turns[1:] {
			if turns[i+1]-turns[i] < 10*time.Millisecond {
				t.Fatalf("turns at %v and %v", turns[i], turns[i+1])
			}
		}
		if len(turns) < 200 {
			t.Errorf("%d turns", len(turns))
		}
	})
}

func TestRateLimiterUpdate(t *testing.T) {
	for _, tc := range []struct {
		name     string
		from, to RateLimitSpec
		used     int           // before
		after    time.Duration // then a pause
		want     int           // allowed at once after the update
		retry    time.Duration
	}{
		{"the same", RateLimitSpec{Requests: 10}, RateLimitSpec{Requests: 10}, 4, 0, 6, 100 * time.Millisecond},
		{"faster: what is used up stays used up", RateLimitSpec{Requests: 10}, RateLimitSpec{Requests: 100, Burst: 10}, 10, 0, 0, 10 * time.Millisecond},
		{"slower", RateLimitSpec{Requests: 10}, RateLimitSpec{Requests: 1, Burst: 10}, 7, 0, 3, time.Second},
		{"a larger burst is there at once", RateLimitSpec{Requests: 10}, RateLimitSpec{Requests: 10, Burst: 15}, 10, 0, 5, 100 * time.Millisecond},
		{"a smaller burst holds at once", RateLimitSpec{Requests: 10}, RateLimitSpec{Requests: 10, Burst: 3}, 2, 0, 1, 100 * time.Millisecond},
		{"what came back before came back at the old rate", RateLimitSpec{Requests: 10}, RateLimitSpec{Requests: 10, Burst: 20}, 10, 500 * time.Millisecond, 15, 100 * time.Millisecond},
		{"never used", RateLimitSpec{Requests: 10}, RateLimitSpec{Requests: 3}, 0, 0, 3, 333333334},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newRateLimiter(t, tc.from)
			now := midnight
			for range tc.used {
				if ok, _ := l.Allow(now); !ok {
					t.Fatal("the burst is not there")
				}
			}
			now = now.Add(tc.after)
			for range 2 { // the second finds the first not yet in use
				if err := l.Update(tc.to); err != nil {
					t.Fatal(err)
				}
			}
			got := 0
			ok, retry := true, time.Duration(0)
			for {
				if ok, retry = l.Allow(now); !ok {
					break
				}
				got++
			}
			if got != tc.want || retry != tc.retry {
				t.Errorf("%d at once, then %v; want %d, %v", got, retry, tc.want, tc.retry)
			}
		})
	}
}

// TestRateLimiterUpdateInUse changes the limiter all the time, to itself: no call is
// forgotten by it, from whichever goroutine.
func TestRateLimiterUpdateInUse(t *testing.T) {
	const burst, calls = 50_000, 4000
	s := RateLimitSpec{Requests: 1, Period: time.Hour, Burst: burst}
	l := newRateLimiter(t, s)
	now := time.Now()
	var passed atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range calls {
				if ok, _ := l.Allow(now); ok {
					passed.Add(1)
				}
			}
		})
	}
	var stop atomic.Bool
	var update sync.WaitGroup
	update.Go(func() {
		for !stop.Load() {
			if err := l.Update(s); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	stop.Store(true)
	update.Wait()
	if passed.Load() != burst {
		t.Errorf("%d passed, want the burst, %d", passed.Load(), burst)
	}
}

func TestRateLimiterAllocatesNothing(t *testing.T) {
	l := newRateLimiter(t, RateLimitSpec{Requests: 1000})
	now := time.Now()
	if n := testing.AllocsPerRun(3000, func() { l.Allow(now); now = now.Add(time.Microsecond) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	w := newRateLimiter(t, RateLimitSpec{Requests: 1_000_000_000})
	if n := testing.AllocsPerRun(1000, func() { _ = w.Wait(context.Background()) }); n != 0 {
		t.Errorf("%v allocations for a turn that comes at once", n)
	}
}

func BenchmarkRateLimiter(b *testing.B) {
	for _, bc := range []struct {
		name string
		spec RateLimitSpec
	}{
		{"allowed", RateLimitSpec{Requests: 1_000_000_000, Burst: 1_000_000_000}},
		{"rejected", RateLimitSpec{Requests: 1, Period: time.Hour}},
	} {
		l := newRateLimiter(b, bc.spec)
		now := time.Now()
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(1)
				l.Allow(now)
			}
		})
		b.Run(bc.name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					l.Allow(now)
				}
			})
		})
	}
}
