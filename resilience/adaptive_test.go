package resilience

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

func newAdaptive(t testing.TB, s AdaptiveSpec) *Adaptive {
	t.Helper()
	a, err := NewAdaptive(s)
	if err != nil {
		t.Fatal(err)
	}
	a.random = 1 // the same probes in every run
	return a
}

func ExampleAdaptive() {
	a, err := NewAdaptive(AdaptiveSpec{InitialLimit: 10})
	if err != nil {
		fmt.Println(err)
		return
	}
	start := time.Now()
	for range 7 {
		a.Acquire(start, Normal)
	}
	fmt.Println("low:", a.Acquire(start, Low))
	fmt.Println("normal:", a.Acquire(start, Normal))
	a.Done(start, start.Add(20*time.Millisecond), Success)
	fmt.Println(a.InFlight(), "of", a.Limit())
	// Output:
	// low: false
	// normal: true
	// 7 of 10
}

// simService is a server in virtual time: capacity calls at once, each for a random time
// around work, the others in a queue in order.
type simService struct {
	rnd      *rand.Rand
	now      time.Duration
	capacity int
	work     time.Duration
	timeout  time.Duration // of the caller; 0: patient

	busy  int
	queue []*simCall
	due   simEvents
}

const simWork = 40 * time.Millisecond

type simCall struct {
	start    time.Duration
	priority Priority
	gone     bool
}

type simEvent struct {
	at   time.Duration
	do   func()
	turn int
}

type simEvents struct {
	list []simEvent
	turn int
}

func (e *simEvents) Len() int { return len(e.list) }
func (e *simEvents) Less(i, j int) bool {
	return e.list[i].at < e.list[j].at || e.list[i].at == e.list[j].at && e.list[i].turn < e.list[j].turn
}
func (e *simEvents) Swap(i, j int) { e.list[i], e.list[j] = e.list[j], e.list[i] }
func (e *simEvents) Push(x any)    { e.list = append(e.list, x.(simEvent)) }
func (e *simEvents) Pop() any {
	last := e.list[len(e.list)-1]
	e.list = e.list[:len(e.list)-1]
	return last
}

func (s *simService) at(when time.Duration, do func()) {
	s.due.turn++
	heap.Push(&s.due, simEvent{when, do, s.due.turn})
}

func (s *simService) run(until time.Duration) {
	for len(s.due.list) > 0 && s.due.list[0].at <= until {
		e := heap.Pop(&s.due).(simEvent)
		s.now = e.at
		e.do()
	}
	s.now = until
}

// simLoad is what calls the service through a.
type simLoad struct {
	*simService
	a        *Adaptive
	rate     float64 // calls a second
	mix      func(*rand.Rand) Priority
	admitted [4]int
	asked    [4]int
	failed   int
	latency  []time.Duration
	limits   []int // each 100 ms
}

func newSimLoad(t testing.TB, seed uint64, s AdaptiveSpec, capacity int, rate float64) *simLoad {
	rnd := rand.New(rand.NewPCG(seed, 3))
	l := &simLoad{simService: &simService{rnd: rnd, capacity: capacity, work: simWork}, rate: rate}
	if s.MaxLimit >= 0 {
		l.a = newAdaptive(t, s)
	}
	l.at(0, l.arrive)
	l.at(0, l.watch)
	return l
}

func (l *simLoad) watch() {
	if l.a != nil {
		l.limits = append(l.limits, l.a.Limit())
	}
	l.at(l.now+100*time.Millisecond, l.watch)
}

func (l *simLoad) arrive() {
	l.at(l.now+time.Duration(l.rnd.ExpFloat64()/l.rate*1e9), l.arrive)
	p := Normal
	if l.mix != nil {
		p = l.mix(l.rnd)
	}
	l.asked[p]++
	if l.a != nil && !l.a.Acquire(midnight.Add(l.now), p) {
		return
	}
	l.admitted[p]++
	c := &simCall{start: l.now, priority: p}
	if l.timeout > 0 {
		l.at(l.now+l.timeout, func() { l.finish(c, TimedOut) })
	}
	l.queue = append(l.queue, c)
	l.serve()
}

// serve lets the service work. What its caller has given up costs the service as much
// as before: it does not know.
func (l *simLoad) serve() {
	for l.busy < l.capacity && len(l.queue) > 0 {
		c := l.queue[0]
		l.queue = l.queue[1:]
		l.busy++
		l.at(l.now+time.Duration(l.rnd.ExpFloat64()*float64(l.work)), func() {
			l.busy--
			l.finish(c, Success)
			l.serve()
		})
	}
}

func (l *simLoad) finish(c *simCall, o Outcome) {
	if c.gone {
		return
	}
	c.gone = true
	if o.Failed() {
		l.failed++
	}
	l.latency = append(l.latency, l.now-c.start)
	if l.a != nil {
		l.a.Done(midnight.Add(c.start), midnight.Add(l.now), o)
	}
}

// over runs for d and returns the mean limit and the 99th percentile of the latency in
// that time.
func (l *simLoad) over(d time.Duration) (limit float64, p99 time.Duration) {
	l.latency, l.limits = nil, nil
	l.run(l.now + d)
	for _, n := range l.limits {
		limit += float64(n) / float64(len(l.limits))
	}
	slices.Sort(l.latency)
	return limit, l.latency[len(l.latency)*99/100]
}

// restingLimit is where the limit comes to rest for Normal calls only, which fill nine
// tenths of it. While a service of capacity C is busy, and N > C calls are in flight,
// each takes N/C × work. For Gradient, which lets them take 1.5 × work and adds √L:
//
//	1.5 × C / (0.9 × L) + 1/√L = 1
//
// Vegas keeps L × (1 − C/(0.9 × L)) between 3 and 6 × log10(L); this is the middle.
func restingLimit(algorithm Algorithm, capacity int) float64 {
	c := float64(capacity) / 0.9
	if algorithm == Gradient {
		root := (1 + math.Sqrt(1+4*1.5*c)) / 2
		return root * root
	}
	limit := c
	for range 50 {
		limit = c + 4.5*max(1, math.Log10(limit))
	}
	return limit
}

// nearly allows a third. The mean of a window of 200 calls with exponential times is off
// by 7 %, and so is what a probe finds; between probes that error stays, and the limit
// is proportional to it. Three times that, and what the limit does meanwhile.
func nearly(limit, want float64) bool { return limit > want*2/3 && limit < want*4/3 }

func TestAdaptiveConverges(t *testing.T) {
	const capacity = 40
	rate := 2 * capacity / simWork.Seconds() // twice what it bears
	for _, algorithm := range []Algorithm{Gradient, Vegas} {
		for _, initial := range []int{1, 40, 1000} {
			l := newSimLoad(t, 1, AdaptiveSpec{Algorithm: algorithm, InitialLimit: initial}, capacity, rate)
			l.over(20 * time.Second)
			limit, p99 := l.over(10 * time.Second)
			if want := restingLimit(algorithm, capacity); !nearly(limit, want) {
				t.Errorf("%s from %d: limit %.0f after 20 s, want about %.0f", algorithm, initial, limit, want)
			}
			// The work alone has 4.6 × its mean, and 0.9 × 1.33 × L/C − 1 < 2 × the
			// mean is what waiting adds.
			if p99 > 7*l.work {
				t.Errorf("%s from %d: p99 %v", algorithm, initial, p99)
			}
		}
	}
	unlimited := newSimLoad(t, 1, AdaptiveSpec{MaxLimit: -1}, capacity, rate)
	unlimited.over(20 * time.Second)
	if _, p99 := unlimited.over(10 * time.Second); p99 < 100*unlimited.work {
		t.Errorf("p99 %v without a limit: this load proves nothing", p99)
	}
}

func TestAdaptiveFollowsCapacity(t *testing.T) {
	for _, algorithm := range []Algorithm{Gradient, Vegas} {
		l := newSimLoad(t, 3, AdaptiveSpec{Algorithm: algorithm}, 40, 2.5*40/simWork.Seconds())
		l.over(20 * time.Second)
		for _, capacity := range []int{20, 80, 40} {
			l.capacity = capacity
			l.over(15 * time.Second)
			limit, p99 := l.over(10 * time.Second)
			if want := restingLimit(algorithm, capacity); !nearly(limit, want) || p99 > 7*l.work {
				t.Errorf("%s: limit %.0f, p99 %v 15 s after the capacity became %d, want about %.0f", algorithm, limit, p99, capacity, want)
			}
		}
		// All calls take three times as long, with the same capacity. That looks like a
		// queue until the limit has come down by half and a probe shows that it is none:
		// 7 windows of 10 % and more, of at most 2 × 200 ms, and a third of that for
		// the way back.
		l.work *= 3
		l.over(15 * time.Second)
		if limit, _ := l.over(20 * time.Second); !nearly(limit, restingLimit(algorithm, 40)) {
			t.Errorf("%s: limit %.0f 15 s after the work became three times as long, want about %.0f", algorithm, limit, restingLimit(algorithm, 40))
		}
	}
}

func TestAdaptiveTimeouts(t *testing.T) {
	for _, algorithm := range []Algorithm{Gradient, Vegas} {
		l := newSimLoad(t, 4, AdaptiveSpec{Algorithm: algorithm}, 40, 2*40/simWork.Seconds())
		l.timeout = time.Second
		l.over(20 * time.Second)
		l.capacity = 0
		l.over(20 * time.Second) // from 70 to 3 in five halves, each a window of calls of 1 s
		if limit := l.a.Limit(); limit > 3 {
			t.Errorf("%s: limit %d after 20 s of timeouts", algorithm, limit)
		}
		l.capacity, l.queue = 40, nil
		l.over(20 * time.Second)
		if limit, _ := l.over(10 * time.Second); !nearly(limit, restingLimit(algorithm, 40)) {
			t.Errorf("%s: limit %.0f 20 s after the service is back, want about %.0f", algorithm, limit, restingLimit(algorithm, 40))
		}
	}
}

// TestAdaptiveRareErrors answers one call in a hundred with an error: that is no reason
// to call less. In balance half a hundredth is lost, and won again, in each window.
func TestAdaptiveRareErrors(t *testing.T) {
	a := newAdaptive(t, AdaptiveSpec{})
	now := midnight
	driveAdaptive(a, &now, 1500, func(i int) Outcome {
		if i%100 == 0 {
			return Failure
		}
		return Success
	})
	if a.Limit() < 500 {
		t.Errorf("limit %d", a.Limit())
	}
}

// driveAdaptive keeps the limit full for so many rounds of 50 ms.
func driveAdaptive(a *Adaptive, now *time.Time, rounds int, outcome func(int) Outcome) {
	call := 0
	for range rounds {
		start, n := *now, 0
		for a.Acquire(start, Normal) {
			n++
		}
		*now = start.Add(50 * time.Millisecond)
		for range n {
			call++
			a.Done(start, *now, outcome(call))
		}
	}
}

func TestAdaptiveDoesNotGrowUnused(t *testing.T) {
	for _, algorithm := range []Algorithm{Gradient, Vegas} {
		a := newAdaptive(t, AdaptiveSpec{Algorithm: algorithm, InitialLimit: 100})
		now := midnight
		for range 1000 {
			start := now
			for range 40 {
				if !a.Acquire(start, Normal) {
					t.Fatal("rejected")
				}
			}
			now = now.Add(50 * time.Millisecond)
			for range 40 {
				a.Done(start, now, Success)
			}
		}
		if a.Limit() != 100 {
			t.Errorf("%s: limit %d with 40 of 100 in use", algorithm, a.Limit())
		}
	}
}

func TestAdaptiveIgnores(t *testing.T) {
	a := newAdaptive(t, AdaptiveSpec{InitialLimit: 50})
	now := midnight
	driveAdaptive(a, &now, 1000, func(int) Outcome { return Ignored })
	if a.Limit() != 50 || a.InFlight() != 0 {
		t.Errorf("limit %d, %d in flight", a.Limit(), a.InFlight())
	}
}

func TestAdaptiveBounds(t *testing.T) {
	a := newAdaptive(t, AdaptiveSpec{InitialLimit: 20, MinLimit: 5, MaxLimit: 30})
	now := midnight
	driveAdaptive(a, &now, 500, func(int) Outcome { return Success })
	if a.Limit() != 30 {
		t.Errorf("limit %d, want the largest", a.Limit())
	}
	driveAdaptive(a, &now, 500, func(int) Outcome { return TimedOut })
	if a.Limit() != 5 {
		t.Errorf("limit %d, want the least", a.Limit())
	}
	if err := a.Update(AdaptiveSpec{MinLimit: 8, MaxLimit: 9}); err != nil {
		t.Fatal(err)
	}
	if got := fill(a, Critical); got != 9 {
		t.Errorf("%d critical calls at a limit of 8", got)
	}
	if err := a.Update(AdaptiveSpec{MinLimit: 8, MaxLimit: 7}); err == nil {
		t.Error("accepted")
	}
	if a, err := NewAdaptive(AdaptiveSpec{Algorithm: "guess"}); err == nil || a != nil {
		t.Error("accepted")
	}
}

// fill fills a with calls of one priority.
func fill(a *Adaptive, p Priority) int {
	n := 0
	for a.Acquire(midnight, p) {
		n++
	}
	return n
}

func TestAdaptiveShares(t *testing.T) {
	for _, tc := range []struct{ limit, low, normal, high, critical int }{
		{1, 1, 1, 1, 2}, {2, 2, 2, 2, 3}, {3, 3, 3, 3, 4}, {5, 4, 5, 5, 6}, {10, 7, 9, 10, 11}, {20, 14, 18, 20, 22}, {1000, 700, 900, 1000, 1100},
	} {
		for p, want := range map[Priority]int{Low: tc.low, Normal: tc.normal, High: tc.high, Critical: tc.critical, Priority(200): tc.normal} {
			a := newAdaptive(t, AdaptiveSpec{InitialLimit: tc.limit})
			if got := fill(a, p); got != want {
				t.Errorf("limit %d: %d %s calls, want %d", tc.limit, got, p, want)
			}
		}
		a := newAdaptive(t, AdaptiveSpec{InitialLimit: tc.limit})
		got := [4]int{fill(a, Low), fill(a, Normal), fill(a, High), fill(a, Critical)}
		if want := [4]int{tc.low, tc.normal - tc.low, tc.high - tc.normal, tc.critical - tc.high}; got != want {
			t.Errorf("limit %d: one after the other %v, want %v", tc.limit, got, want)
		}
	}
}

// TestAdaptiveShedsTheLeastImportant overloads a service twice, with a tenth of
// critical calls and thirds of the others. What it bears is half of what is asked for:
// critical and high calls are 40 % and all pass, and low ones hardly do.
func TestAdaptiveShedsTheLeastImportant(t *testing.T) {
	for _, algorithm := range []Algorithm{Gradient, Vegas} {
		l := newSimLoad(t, 6, AdaptiveSpec{Algorithm: algorithm}, 40, 2*40/simWork.Seconds())
		l.mix = func(rnd *rand.Rand) Priority {
			return [...]Priority{Critical, High, High, High, Normal, Normal, Normal, Low, Low, Low}[rnd.IntN(10)]
		}
		l.over(20 * time.Second)
		l.asked, l.admitted = [4]int{}, [4]int{}
		l.over(20 * time.Second)
		share := func(p Priority) float64 { return float64(l.admitted[p]) / float64(l.asked[p]) }
		if share(Critical) < 0.97 || share(High) < 0.9 || share(Normal) < share(Low)+0.1 || share(Low) > 0.1 {
			t.Errorf("%s: passed %.2f critical, %.2f high, %.2f normal, %.2f low", algorithm, share(Critical), share(High), share(Normal), share(Low))
		}
	}
}

func TestPriorityNames(t *testing.T) {
	for _, p := range []Priority{Normal, Low, High, Critical} {
		if got, ok := ParsePriority(p.String()); got != p || !ok {
			t.Errorf("%v: %v %v", p, got, ok)
		}
	}
	for _, s := range []string{"", "urgent", "HIGH", "unknown"} {
		if p, ok := ParsePriority(s); p != Normal || ok {
			t.Errorf("%q: %v %v", s, p, ok)
		}
	}
	if Priority(9).String() != "unknown" {
		t.Error(Priority(9).String())
	}
}

// TestAdaptiveHungCalls lets more calls hang than a probe allows at once. The probe
// must end all the same.
func TestAdaptiveHungCalls(t *testing.T) {
	a := newAdaptive(t, AdaptiveSpec{InitialLimit: 100, MaxLimit: 100})
	now := midnight
	hung := midnight
	for range 60 {
		if !a.Acquire(hung, Normal) {
			t.Fatal("rejected")
		}
	}
	for range 200 {
		start, n := now, 0
		for a.Acquire(start, Normal) {
			n++
		}
		now = now.Add(50 * time.Millisecond)
		for range n {
			a.Done(start, now, Success)
		}
		if a.probing.Load() {
			break
		}
	}
	if !a.probing.Load() || a.Acquire(now, Critical) {
		t.Fatal("no probe, or it does not lower the limit")
	}
	now = now.Add(2 * time.Second)
	if a.Acquire(now, Normal); !a.Acquire(now, Normal) {
		t.Errorf("calls that hang keep the limit at half of %d", a.Limit())
	}
}

func TestAdaptiveClockGoesBack(t *testing.T) {
	a := newAdaptive(t, AdaptiveSpec{})
	now := midnight
	ok := func(int) Outcome { return Success }
	driveAdaptive(a, &now, 20, ok)
	before := a.Limit()
	now = now.Add(-time.Hour)
	driveAdaptive(a, &now, 100, ok)
	if a.Limit() <= before {
		t.Errorf("limit %d, then %d: it learns nothing", before, a.Limit())
	}
	start := now
	for a.Acquire(start, Normal) {
	}
	for a.InFlight() > 0 { // calls of negative length
		a.Done(start, start.Add(-time.Second), Success)
	}
}

func TestAdaptiveSteps(t *testing.T) {
	for _, tc := range []struct {
		name                 string
		step                 func(limit, base, latency float64) float64
		limit, base, latency float64
		want                 float64
	}{
		{"gradient: no queue", gradientStep, 100, 1, 1, 102},
		{"gradient: within the tolerance", gradientStep, 100, 1, 1.5, 102},
		{"gradient: twice the latency", gradientStep, 100, 1, 2, 100 + 0.2*(75+10-100)},
		{"gradient: faster than ever", gradientStep, 100, 1, 0.1, 102},
		{"gradient: far too slow", gradientStep, 100, 1, 1000, (100 + 50 + 10) / 2},
		{"gradient: the least", gradientStep, 1, 1, 1000, 1.25},
		{"vegas: no queue", vegasStep, 100, 1, 1, 112},
		{"vegas: a short queue", vegasStep, 100, 0.95, 1, 102},
		{"vegas: as it should be", vegasStep, 100, 0.9, 1, 100},
		{"vegas: a little too long", vegasStep, 100, 0.87, 1, 98},
		{"vegas: far too long", vegasStep, 100, 0.2, 1, 100 - (80-12)/2},
		{"vegas: faster than ever", vegasStep, 100, 2, 1, 112},
		{"vegas: the least", vegasStep, 1, 1, 1000, 1 + 6},
	} {
		if got := tc.step(tc.limit, tc.base, tc.latency); math.Abs(got-tc.want) > 1e-9 {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestAdaptiveDoneWithoutAcquire(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	newAdaptive(t, AdaptiveSpec{}).Done(midnight, midnight, Success)
}

func TestAdaptiveStorm(t *testing.T) {
	a := newAdaptive(t, AdaptiveSpec{MaxLimit: 50})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for n := range 5000 {
				start := time.Now()
				if a.Acquire(start, Priority(n%4)) {
					if n := a.InFlight(); n < 1 || n > 55 {
						t.Errorf("%d in flight", n)
					}
					a.Done(start, time.Now(), Outcome((n+i)%4))
				}
				if n%1000 == 0 {
					_ = a.Update(AdaptiveSpec{MaxLimit: 50})
				}
			}
		})
	}
	wg.Wait()
	if a.InFlight() != 0 || a.Limit() < 1 || a.Limit() > 50 {
		t.Errorf("%d in flight, limit %d", a.InFlight(), a.Limit())
	}
}

func TestAdaptiveAllocatesNothing(t *testing.T) {
	a := newAdaptive(t, AdaptiveSpec{})
	now := midnight
	if n := testing.AllocsPerRun(3000, func() {
		now = now.Add(time.Millisecond)
		if a.Acquire(now, Normal) {
			a.Done(now, now.Add(time.Millisecond), Success)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAdaptive(b *testing.B) {
	for _, algorithm := range []Algorithm{Gradient, Vegas} {
		b.Run(string(algorithm), func(b *testing.B) {
			a := newAdaptive(b, AdaptiveSpec{Algorithm: algorithm})
			now := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(time.Microsecond)
				if a.Acquire(now, Normal) {
					a.Done(now.Add(-time.Millisecond), now, Success)
				}
			}
		})
	}
}
