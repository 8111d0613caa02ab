package resilience

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

func newThrottle(t testing.TB, s ThrottleSpec) *Throttle {
	t.Helper()
	th, err := NewThrottle(s)
	if err != nil {
		t.Fatal(err)
	}
	return th
}

func ExampleThrottle() {
	t, err := NewThrottle(ThrottleSpec{K: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Now()
	sent := 0
	for range 1000 { // nothing is accepted
		if t.Admit(now, rand.Uint64()) {
			sent++
		}
	}
	fmt.Println(sent > 0, sent < 100)
	// Output: true true
}

func TestThrottleRejectsBadSpecs(t *testing.T) {
	for _, s := range []ThrottleSpec{{K: 1}, {K: -2}, {K: 11}, {K: math.NaN()}, {Window: -1}, {Window: time.Millisecond}, {Window: time.Hour}} {
		if th, err := NewThrottle(s); err == nil || th != nil {
			t.Errorf("%+v: accepted", s)
		}
		if err := newThrottle(t, ThrottleSpec{}).Update(s); err == nil {
			t.Errorf("%+v: update accepted", s)
		}
	}
}

// fraction is the random number with the fraction p of all below it.
func fraction(p float64) uint64 { return uint64(p * (1 << 53) * (1 << 11)) }

func TestThrottleProbability(t *testing.T) {
	for _, tc := range []struct {
		name              string
		k                 float64
		requests, accepts int
		want              float64 // probability of a rejection
	}{
		{"no traffic", 2, 0, 0, 0},
		{"all accepted", 2, 1000, 1000, 0},
		{"half accepted", 2, 1000, 500, 0},
		{"a little less than half", 2, 1000, 499, 2. / 1001},
		{"a tenth accepted", 2, 1000, 100, 800. / 1001},
		{"one rejected", 2, 1, 0, 1. / 2},
		{"all rejected", 2, 1000, 0, 1000. / 1001},
		{"an eager one", 1.1, 1000, 800, 120. / 1001},
		{"a patient one", 10, 1000, 100, 0},
		{"accepted more than asked for", 2, 0, 10, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			make := func() *Throttle {
				th := newThrottle(t, ThrottleSpec{K: tc.k})
				for range tc.requests {
					th.Admit(midnight, math.MaxUint64)
				}
				for range tc.accepts {
					th.Accepted(midnight)
				}
				return th
			}
			const near = 1e-9
			if tc.want > 0 && (make().Admit(midnight, 0) || make().Admit(midnight, fraction(tc.want-near))) {
				t.Errorf("admitted with a probability above %v", 1-tc.want)
			}
			if !make().Admit(midnight, fraction(tc.want+near)) || !make().Admit(midnight, math.MaxUint64) {
				t.Errorf("rejected with a probability above %v", tc.want)
			}
		})
	}
}

// TestThrottleAlwaysLeavesAChance: with r requests and no accept r/(r+1) is the chance
// of a rejection, and so the largest random number passes. It is (2^53−1)/2^53, which
// is at least r/(r+1) while r < 2^53.
func TestThrottleAlwaysLeavesAChance(t *testing.T) {
	for _, requests := range []int64{0, 1, 2, 1 << 20, 1<<40 + 1, 1<<52 - 1} {
		th := newThrottle(t, ThrottleSpec{})
		th.at(midnight).requests = requests
		th.sum.requests = requests
		if !th.Admit(midnight, math.MaxUint64) {
			t.Errorf("%d rejected: none can pass any more", requests)
		}
		if th.Admit(midnight, 0) {
			t.Errorf("%d rejected: the smallest random number passes", requests)
		}
	}
}

// TestThrottleAgainstModel compares with a list of all that happened.
func TestThrottleAgainstModel(t *testing.T) {
	type event struct {
		bucket   int64
		accepted bool
	}
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 8))
		s := ThrottleSpec{K: 1.1 + 3*rnd.Float64(), Window: time.Duration(1+rnd.IntN(10)) * time.Second}
		th := newThrottle(t, s)
		width := s.Window / throttleBuckets
		now := midnight.Add(time.Duration(rnd.Int64N(int64(time.Hour))))
		var base time.Time // buckets begin with the first call, and with the first after a whole window
		var events []event
		present := int64(0)
		for step := range 3000 {
			switch rnd.IntN(300) {
			case 0:
				now = now.Add(s.Window - width)
			case 1:
				now = now.Add(s.Window)
			case 2, 3:
				now = now.Add(width)
			default:
				now = now.Add(time.Duration(rnd.Int64N(int64(width / 4))))
			}
			at := now
			if rnd.IntN(10) == 0 {
				at = at.Add(-time.Duration(rnd.Int64N(int64(width)))) // one who read the clock earlier
			}
			if base.IsZero() || at.Sub(base)/width >= time.Duration(present+throttleBuckets) {
				base, present, events = at, 0, nil
			}
			present = max(present, int64(at.Sub(base)/width))
			var requests, accepts float64
			for _, e := range events {
				if e.bucket > present-throttleBuckets {
					if e.accepted {
						accepts++
					} else {
						requests++
					}
				}
			}
			if rnd.IntN(3) == 0 {
				th.Accepted(at)
				events = append(events, event{present, true})
				continue
			}
			random := rnd.Uint64()
			want := float64(random)/(1<<64) >= max(0, (requests-s.K*accepts)/(requests+1))
			if got := th.Admit(at, random); got != want {
				t.Fatalf("seed %d, step %d: %v, want %v with %v requests and %v accepts", seed, step, got, want, requests, accepts)
			}
			events = append(events, event{present, false})
		}
	}
}

// throttled runs d of time at so many requests a second against a server that accepts
// what accept says, and returns how many of the asked were sent and accepted.
func throttled(th *Throttle, rnd *rand.Rand, now *time.Time, d time.Duration, rate int, accept func() bool) (asked, sent, accepted int) {
	for end := now.Add(d); now.Before(end); *now = now.Add(time.Second / time.Duration(rate)) {
		asked++
		if !th.Admit(*now, rnd.Uint64()) {
			continue
		}
		if sent++; accept() {
			accepted++
			th.Accepted(*now)
		}
	}
	return asked, sent, accepted
}

// TestThrottleSendsKTimesWhatIsAccepted has a server that takes 100 of 1,000 calls a
// second. In balance requests × (1 − p) = K × accepts are sent. Of 60,000 calls 12,000
// are sent, with a deviation of √(60,000 × 0.2 × 0.8) = 98; 10 % is far beyond it.
func TestThrottleSendsKTimesWhatIsAccepted(t *testing.T) {
	for _, k := range []float64{1.5, 2, 4} {
		th := newThrottle(t, ThrottleSpec{K: k, Window: 10 * time.Second})
		rnd := rand.New(rand.NewPCG(1, 1))
		now := midnight
		second, taken := now, 0
		accept := func() bool {
			if now.Sub(second) >= time.Second {
				second, taken = now, 0
			}
			taken++
			return taken <= 100
		}
		throttled(th, rnd, &now, 30*time.Second, 1000, accept)
		_, sent, accepted := throttled(th, rnd, &now, time.Minute, 1000, accept)
		if got := float64(sent) / float64(accepted); math.Abs(got/k-1) > 0.1 {
			t.Errorf("K %v: %.2f sent for one accepted", k, got)
		}
		if accepted < 5900 {
			t.Errorf("K %v: the server could take 6000 and got %d", k, accepted)
		}
	}
}

// TestThrottleProbesADeadServer: with N calls in the window each passes with 1/(N+1),
// so about one a window does. In 100 windows that is Poisson with mean and variance
// 100: 60 to 140 is four deviations. When the server is back K = 2 are sent for each
// accepted in the last window: that grows as e^(s×t/window) with s = 2 × (1 − e^−s),
// 1.59, and from one to half of the 10,000 in ln(5,000)/1.59 = 5.4 windows. Eight are
// enough also for the first that has to be waited for.
func TestThrottleProbesADeadServer(t *testing.T) {
	th := newThrottle(t, ThrottleSpec{Window: 10 * time.Second})
	rnd := rand.New(rand.NewPCG(2, 2))
	now := midnight
	dead := func() bool { return false }
	throttled(th, rnd, &now, 10*time.Second, 1000, dead)
	if _, sent, _ := throttled(th, rnd, &now, 1000*time.Second, 1000, dead); sent < 60 || sent > 140 {
		t.Errorf("%d calls in 100 windows", sent)
	}
	alive := func() bool { return true }
	throttled(th, rnd, &now, 80*time.Second, 1000, alive)
	if asked, sent, _ := throttled(th, rnd, &now, 10*time.Second, 1000, alive); sent != asked {
		t.Errorf("%d of %d sent eight windows after the server is back", sent, asked)
	}
}

func TestThrottleForgets(t *testing.T) {
	for _, later := range []time.Duration{2 * time.Minute, time.Hour, 200 * 365 * 24 * time.Hour} {
		th := newThrottle(t, ThrottleSpec{})
		for range 1000 {
			th.Admit(midnight, 0)
		}
		if at := midnight.Add(later - 6*time.Second - 1); later == 2*time.Minute && th.Admit(at, 0) {
			t.Error("forgotten before the window ends")
		}
		now := midnight.Add(later)
		if later == 2*time.Minute { // the call just made is in the window
			th.Accepted(now)
		}
		if !th.Admit(now, 0) {
			t.Errorf("not forgotten after %v", later)
		}
	}
}

func TestThrottleClockGoesBack(t *testing.T) {
	th := newThrottle(t, ThrottleSpec{Window: 10 * time.Second})
	for range 1000 {
		th.Admit(midnight, 0)
	}
	now := midnight.Add(-time.Hour)
	if th.Admit(now, 0) {
		t.Error("a clock set back makes it forget")
	}
	if now = now.Add(10 * time.Second); !th.Admit(now, 0) {
		t.Error("after a clock was set back it never forgets")
	}
}

func TestThrottleUpdate(t *testing.T) {
	th := newThrottle(t, ThrottleSpec{K: 2, Window: time.Minute})
	for range 100 {
		th.Admit(midnight, math.MaxUint64)
	}
	for range 20 {
		th.Accepted(midnight)
	}
	if err := th.Update(ThrottleSpec{K: 5, Window: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
	if !th.Admit(midnight, 0) {
		t.Error("K 5 lets all through")
	}
	if err := th.Update(ThrottleSpec{K: 2, Window: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
	if th.Admit(midnight.Add(time.Second), 0) {
		t.Error("an update forgets what was counted")
	}
	if !th.Admit(midnight.Add(3*time.Second+1), 0) {
		t.Error("the new window is not the one that counts")
	}
}

func TestThrottleWithdraw(t *testing.T) {
	th := newThrottle(t, ThrottleSpec{Window: 20 * time.Second})
	for range 100 { // all rejected by the server, and each with ten that were never sent
		th.Admit(midnight, math.MaxUint64)
		for range 10 {
			th.Admit(midnight, math.MaxUint64)
			th.Withdraw(midnight)
		}
	}
	const p, near = 100. / 101, 1e-9
	if th.Admit(midnight, fraction(p-near)) {
		t.Error("calls that were never sent count as accepted")
	}
	th.Withdraw(midnight)
	if !th.Admit(midnight, fraction(p+near)) {
		t.Error("calls that were never sent count as rejected")
	}
	// Counted in one bucket and withdrawn in a later one: the first leaves the window
	// earlier, and nothing is left when both have.
	th = newThrottle(t, ThrottleSpec{Window: 20 * time.Second})
	th.Admit(midnight, 0)
	th.Withdraw(midnight.Add(5 * time.Second))
	th.Withdraw(midnight.Add(5 * time.Second)) // there is nothing to take back
	for _, second := range []time.Duration{6, 21, 22, 40} {
		th.Accepted(midnight.Add(second * time.Second))
		if !th.Admit(midnight.Add(second*time.Second), 0) {
			t.Errorf("rejected after %d s", second)
		}
		th.Withdraw(midnight.Add(second * time.Second))
	}
	if th.Accepted(midnight.Add(time.Hour)); th.sum != (throttleBucket{0, 1}) {
		t.Errorf("left: %+v", th.sum)
	}
}

func TestThrottleStorm(t *testing.T) {
	th := newThrottle(t, ThrottleSpec{})
	now := time.Now()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 1000 {
				th.Admit(now, math.MaxUint64)
				th.Accepted(now)
			}
		})
	}
	wg.Wait()
	if want := (throttleBucket{16_000, 16_000}); th.sum != want || th.buckets[0] != want {
		t.Errorf("%+v, want %+v", th.sum, want)
	}
}

func TestThrottleAllocatesNothing(t *testing.T) {
	th := newThrottle(t, ThrottleSpec{})
	now := midnight
	if n := testing.AllocsPerRun(1000, func() {
		now = now.Add(time.Second)
		th.Admit(now, 1)
		th.Accepted(now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkThrottle(b *testing.B) {
	th := newThrottle(b, ThrottleSpec{})
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Microsecond)
		if th.Admit(now, math.MaxUint64) {
			th.Accepted(now)
		}
	}
}
