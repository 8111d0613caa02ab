package resilience

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
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
			t.Done(now, false)
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
		name               string
		k                  float64
		answered, accepted int
		rejected           int     // by the throttle itself
		want               float64 // probability of a rejection
	}{
		{"no traffic", 2, 0, 0, 0, 0},
		{"all accepted", 2, 1000, 1000, 0, 0},
		{"half accepted", 2, 1000, 500, 0, 0},
		{"a little less than half", 2, 1000, 499, 0, 2. / 1001},
		{"a tenth accepted", 2, 1000, 100, 0, 800. / 1001},
		{"one failed", 2, 1, 0, 0, 1. / 2},
		{"all failed", 2, 1000, 0, 0, 1000. / 1001},
		{"most not sent", 2, 200, 100 - 1, 1000, 1002. / 1201},
		{"one failed, the others not sent", 2, 1, 0, 999, 1000. / 1001},
		{"an eager one", 1.1, 1000, 800, 0, 120. / 1001},
		{"a patient one", 10, 1000, 100, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			make := func() *Throttle {
				th := newThrottle(t, ThrottleSpec{K: tc.k})
				for n := range tc.answered {
					th.Done(midnight, n < tc.accepted)
				}
				for range tc.rejected {
					th.Admit(midnight, 0)
				}
				for range 1000 { // and none of these is answered
					th.Admit(midnight, math.MaxUint64)
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

// What is on its way is no reason to reject, and none to let more through.
func TestThrottleLetsABurstThrough(t *testing.T) {
	th := newThrottle(t, ThrottleSpec{})
	for n := range 100 {
		if !th.Admit(midnight, 0) {
			t.Fatalf("rejected with %d on their way and none answered", n)
		}
	}
	th.Done(midnight, false)
	const p, near = 1. / 2, 1e-9
	if !th.Admit(midnight, fraction(p+near)) || th.Admit(midnight, fraction(p-near)) {
		t.Error("after one failure it is not one half that is rejected")
	}
}

// TestThrottleAlwaysLeavesAChance: with r requests and no accept r/(r+1) is the chance
// of a rejection, and so the largest random number passes. It is (2^53−1)/2^53, which
// is at least r/(r+1) while r < 2^53.
func TestThrottleAlwaysLeavesAChance(t *testing.T) {
	for _, requests := range []int64{1, 2, 1 << 20, 1<<40 + 1, 1<<52 - 1} {
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
	type event struct { // a rejection or an answer
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
					requests++
					if e.accepted {
						accepts++
					}
				}
			}
			if rnd.IntN(2) == 0 {
				accepted := rnd.IntN(3) == 0
				th.Done(at, accepted)
				events = append(events, event{present, accepted})
				continue
			}
			random := rnd.Uint64()
			want := float64(random)/(1<<64) >= max(0, (requests-s.K*accepts)/(requests+1))
			if got := th.Admit(at, random); got != want {
				t.Fatalf("seed %d, step %d: %v, want %v with %v requests and %v accepts", seed, step, got, want, requests, accepts)
			}
			if !want {
				events = append(events, event{present, false})
			}
		}
	}
}

// throttledServer asks a throttle at a steady rate for calls to a server that answers
// each after latency, in a time of its own.
type throttledServer struct {
	th      *Throttle
	rnd     *rand.Rand
	now     time.Time
	rate    int // calls a second
	latency time.Duration
	accept  func() bool
	flying  []flight // in the order of at
}

type flight struct {
	at       time.Time // when the answer comes
	accepted bool
}

func newThrottledServer(t *testing.T, s ThrottleSpec, seed uint64, latency time.Duration, accept func() bool) *throttledServer {
	return &throttledServer{th: newThrottle(t, s), rnd: rand.New(rand.NewPCG(seed, seed)), now: midnight,
		rate: 1000, latency: latency, accept: accept}
}

// run returns how many calls were asked for, sent and accepted in d.
func (s *throttledServer) run(d time.Duration) (asked, sent, accepted int) {
	for end := s.now.Add(d); s.now.Before(end); s.now = s.now.Add(time.Second / time.Duration(s.rate)) {
		for len(s.flying) > 0 && !s.flying[0].at.After(s.now) {
			s.th.Done(s.flying[0].at, s.flying[0].accepted)
			s.flying = s.flying[1:]
		}
		asked++
		if !s.th.Admit(s.now, s.rnd.Uint64()) {
			continue
		}
		ok := s.accept()
		if sent++; ok {
			accepted++
		}
		s.flying = append(s.flying, flight{s.now.Add(s.latency), ok})
	}
	return asked, sent, accepted
}

func dead() bool  { return false }
func alive() bool { return true }

// TestThrottleSendsKTimesWhatIsAccepted has a server that takes 100 of 1,000 calls a
// second. In balance requests × (1 − p) = K × accepts are sent; latency moves both to
// later and changes neither. With K = 2 of 60,000 calls 12,000 are sent, with a
// deviation of √(60,000 × 0.2 × 0.8) = 98; 10 % is far beyond it.
func TestThrottleSendsKTimesWhatIsAccepted(t *testing.T) {
	for _, latency := range []time.Duration{0, 100 * time.Millisecond, time.Second} {
		for _, k := range []float64{1.5, 2, 4} {
			s := newThrottledServer(t, ThrottleSpec{K: k, Window: 10 * time.Second}, 1, latency, nil)
			second, taken := s.now, 0
			s.accept = func() bool {
				if s.now.Sub(second) >= time.Second {
					second, taken = s.now, 0
				}
				taken++
				return taken <= 100
			}
			s.run(30 * time.Second)
			_, sent, accepted := s.run(time.Minute)
			if got := float64(sent) / float64(accepted); math.Abs(got/k-1) > 0.1 {
				t.Errorf("latency %v, K %v: %.2f sent for one accepted", latency, k, got)
			}
			if accepted < 5900 {
				t.Errorf("latency %v, K %v: the server could take 6000 and got %d", latency, k, accepted)
			}
		}
	}
}

// TestThrottleIsBlindForOneLatency has a server that accepts all, and then nothing.
// After u windows of failures 1 − u of a window's calls are accepted, and with K = 2
// 1 − 2 × (1 − u) are rejected: nothing in the first half of the window, and in the
// second half a quarter of a window's calls are sent, 7,500 of 10,000 in all. With
// latency all that begins with the first failure that comes back, and what was sent
// until then is extra; that it fails later adds requests, and so only less is sent. The
// deviation of 5,000 calls with p from 1 to 0 is √(5,000/6) = 29, and afterwards about
// one a window is sent: 150 more are four deviations and some probes.
func TestThrottleIsBlindForOneLatency(t *testing.T) {
	const window = 10 * time.Second
	for _, latency := range []time.Duration{0, 100 * time.Millisecond, 2 * time.Second, 3 * window} {
		s := newThrottledServer(t, ThrottleSpec{Window: window}, 3, latency, alive)
		if asked, sent, _ := s.run(latency + 2*window); sent != asked {
			t.Errorf("latency %v: %d of %d sent to a server that accepts all", latency, sent, asked)
		}
		s.accept = dead
		_, sent, _ := s.run(latency + 2*window)
		extra := int(latency.Seconds() * 1000)
		if sent > extra+7500+150 {
			t.Errorf("latency %v: %d sent to a server that fails, %d of them before that could be known", latency, sent, extra)
		}
	}
}

// TestThrottleProbesADeadServer: with N calls in the window each passes with 1/(N+1),
// so about one a window does. In 100 windows that is Poisson with mean and variance
// 100: 60 to 140 is four deviations. It takes a latency until the first failures are
// known, and then the window is full of what was sent or rejected.
//
// When the server is back K = 2 are sent for each accepted in the last window, a
// latency ago: that grows as e^(s×t/window) with s = 2 × e^(−s×l) × (1 − e^−s) for l
// windows of latency, 1.59 without and 1.27 with a tenth, and from one to half of the
// 10,000 in ln(5,000)/s = 5.4 and 6.7 windows. The first has to be waited for: in one
// case of e⁵ = 148 for more than five windows.
func TestThrottleProbesADeadServer(t *testing.T) {
	const window = 10 * time.Second
	for _, tc := range []struct{ latency, back time.Duration }{{0, 11 * window}, {window / 10, 12 * window}, {2 * window, 0}} {
		s := newThrottledServer(t, ThrottleSpec{Window: window}, 2, tc.latency, dead)
		s.run(tc.latency + window)
		if _, sent, _ := s.run(100 * window); sent < 60 || sent > 140 {
			t.Errorf("latency %v: %d calls in 100 windows", tc.latency, sent)
		}
		if tc.back == 0 {
			continue
		}
		s.accept = alive
		s.run(tc.back)
		if asked, sent, _ := s.run(window); sent != asked {
			t.Errorf("latency %v: %d of %d sent %v after the server is back", tc.latency, sent, asked, tc.back)
		}
	}
}

func TestThrottleForgets(t *testing.T) {
	for _, later := range []time.Duration{2 * time.Minute, time.Hour, 200 * 365 * 24 * time.Hour} {
		th := newThrottle(t, ThrottleSpec{})
		for range 1000 {
			th.Done(midnight, false)
		}
		if at := midnight.Add(later - 6*time.Second - 1); later == 2*time.Minute && th.Admit(at, 0) {
			t.Error("forgotten before the window ends")
		}
		now := midnight.Add(later)
		if later == 2*time.Minute { // the call just rejected is in the window
			th.Done(now, true)
		}
		if !th.Admit(now, 0) {
			t.Errorf("not forgotten after %v", later)
		}
	}
}

func TestThrottleClockGoesBack(t *testing.T) {
	th := newThrottle(t, ThrottleSpec{Window: 10 * time.Second})
	for range 1000 {
		th.Done(midnight, false)
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
	for n := range 100 {
		th.Done(midnight, n < 20)
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

func TestThrottleStorm(t *testing.T) {
	th := newThrottle(t, ThrottleSpec{})
	now := time.Now()
	var accepts atomic.Int64
	var wg sync.WaitGroup
	for g := range uint64(16) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(g, 4))
			for range 1000 {
				if !th.Admit(now, rnd.Uint64()) {
					continue
				}
				accepted := rnd.IntN(4) == 0
				if th.Done(now, accepted); accepted {
					accepts.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if want := (throttleBucket{16_000, accepts.Load()}); th.sum != want || th.buckets[0] != want {
		t.Errorf("%+v, want %+v: each call is rejected or answered", th.sum, want)
	}
}

func TestThrottleAllocatesNothing(t *testing.T) {
	th := newThrottle(t, ThrottleSpec{})
	now := midnight
	if n := testing.AllocsPerRun(1000, func() {
		now = now.Add(time.Second)
		th.Admit(now, 1)
		th.Done(now, true)
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
			th.Done(now, true)
		}
	}
}
