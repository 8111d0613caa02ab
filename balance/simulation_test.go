package balance_test

import (
	"container/heap"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/weftmesh/weft/balance"
)

// simulation sends calls through a picker on a clock of its own: they come at random
// at a rate, and last as long as their endpoint takes.
type simulation struct {
	picker    *balance.Picker
	endpoints []*endpoint
	rate      float64                                           // calls a second
	takes     func(i int, inFlight int64, r *rand.Rand) float64 // seconds

	now     int64
	running calls
	counts  []int
	most    int64 // calls in flight on one endpoint
}

type call struct {
	ends, began int64
	endpoint    int
}

type calls []call

func (c calls) Len() int           { return len(c) }
func (c calls) Less(i, j int) bool { return c[i].ends < c[j].ends }
func (c calls) Swap(i, j int)      { c[i], c[j] = c[j], c[i] }
func (c *calls) Push(x any)        { *c = append(*c, x.(call)) }
func (c *calls) Pop() any {
	last := (*c)[len(*c)-1]
	*c = (*c)[:len(*c)-1]
	return last
}

func newSimulation(tb testing.TB, algorithm balance.Algorithm, n int, weight func(int) uint32) *simulation {
	endpoints, members := newEndpoints(n, weight)
	return &simulation{picker: newPicker(tb, balance.Config{Algorithm: algorithm}, members), endpoints: endpoints, now: start}
}

// run for a while; counts and most are of this while.
func (s *simulation) run(d time.Duration, r *rand.Rand) {
	s.counts, s.most = make([]int, len(s.endpoints)), 0
	for end := s.now + int64(d); s.now < end; {
		s.now += int64(r.ExpFloat64() / s.rate * 1e9)
		for len(s.running) > 0 && s.running[0].ends <= s.now {
			c := heap.Pop(&s.running).(call)
			s.endpoints[c.endpoint].End()
			s.endpoints[c.endpoint].Observe(time.Duration(c.ends-c.began), c.ends)
		}
		i := s.picker.Pick(&balance.Query{Random: r.Uint64(), Now: s.now})
		e := s.endpoints[i]
		e.Begin()
		s.counts[i]++
		s.most = max(s.most, e.InFlight())
		took := int64(s.takes(i, e.InFlight(), r) * 1e9)
		heap.Push(&s.running, call{ends: s.now + took, began: s.now, endpoint: i})
	}
}

func (s *simulation) share(i int) float64 {
	sum := 0
	for _, c := range s.counts {
		sum += c
	}
	return float64(s.counts[i]) / float64(sum)
}

// Ten endpoints of 5 ms, of which one takes 100 ms for a while. Peak-EWMA notices with
// the first slow answer, asks it hardly ever while it is slow, and gives it its share
// back when it is well, but not at once: its bad name fades with 10 s.
func TestPeakEWMAAvoidsTheSlowOne(t *testing.T) {
	r := rand.New(rand.NewPCG(20, 1))
	s := newSimulation(t, balance.PeakEWMA, 10, one)
	slow := false
	s.rate = 1000
	s.takes = func(i int, _ int64, r *rand.Rand) float64 {
		if slow && i == 3 {
			return 0.1
		}
		return 0.004 + 0.002*r.Float64()
	}
	s.run(10*time.Second, r)
	if got := s.share(3); got < 0.08 || got > 0.12 {
		t.Errorf("while all are alike it has a share of %.3f", got)
	}
	slow = true
	s.run(30*time.Second, r)
	t.Logf("slow: %d of 30,000 calls", s.counts[3])
	// It fades from 100 ms to below twice 5 ms in 10 s × ln 10 = 23 s, and then gets a
	// few calls until the first of them ends.
	if got := s.share(3); got > 0.002 {
		t.Errorf("while it is slow it has a share of %.3f", got)
	}
	if s.counts[3] == 0 {
		t.Error("nobody would ever notice that it is well again")
	}
	slow = false
	s.run(60*time.Second, r)
	s.run(10*time.Second, r)
	if got := s.share(3); got < 0.08 || got > 0.12 {
		t.Errorf("a minute after it has a share of %.3f", got)
	}
}

// An endpoint that accepts calls and never answers gets none after those that came
// before anybody else had answered: 500 calls a second for 10 ms, on five endpoints.
func TestPeakEWMAAndTheOneThatNeverAnswers(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 1))
	s := newSimulation(t, balance.PeakEWMA, 5, one)
	s.rate = 500
	s.takes = func(i int, _ int64, _ *rand.Rand) float64 {
		if i == 0 {
			return 3600
		}
		return 0.010
	}
	s.run(time.Minute, r)
	if s.counts[0] < 1 || s.counts[0] > 5 {
		t.Errorf("%d calls wait for nothing", s.counts[0])
	}
}

// Peak-EWMA follows weights while endpoints are alike.
func TestPeakEWMAUnderLoadFollowsWeights(t *testing.T) {
	r := rand.New(rand.NewPCG(22, 1))
	s := newSimulation(t, balance.PeakEWMA, 4, func(i int) uint32 { return []uint32{1, 1, 2, 4}[i] })
	s.rate = 2000
	s.takes = func(int, int64, *rand.Rand) float64 { return 0.020 }
	s.run(20*time.Second, r)
	for i, want := range []float64{0.125, 0.125, 0.25, 0.5} {
		if got := s.share(i); got < 0.9*want || got > 1.1*want {
			t.Errorf("endpoint %d has a share of %.3f, want about %.3f", i, got, want)
		}
	}
}

// Two choices keep the longest queue near the mean, of five calls here; at random it
// is Poisson's, of which the largest of all times is several times the mean.
func TestLeastRequestKeepsQueuesShort(t *testing.T) {
	most := map[balance.Algorithm]int64{}
	for _, algorithm := range []balance.Algorithm{balance.Random, balance.LeastRequest} {
		r := rand.New(rand.NewPCG(23, 1))
		s := newSimulation(t, algorithm, 100, one)
		s.rate = 50_000
		s.takes = func(_ int, _ int64, r *rand.Rand) float64 { return 0.010 * r.ExpFloat64() }
		s.run(2*time.Second, r)
		most[algorithm] = s.most
	}
	t.Logf("most in flight on one of 100: %d at random, %d with two choices", most[balance.Random], most[balance.LeastRequest])
	if 2*most[balance.LeastRequest] > most[balance.Random] {
		t.Errorf("most in flight on one: %d at random, %d with two choices", most[balance.Random], most[balance.LeastRequest])
	}
}

// A slow endpoint fills up, and least request then goes elsewhere: its calls in
// flight come near those of the others, where random lets it have as many calls as
// they and so twenty times as many in flight.
func TestLeastRequestAvoidsTheSlowOne(t *testing.T) {
	share := map[balance.Algorithm]float64{}
	for _, algorithm := range []balance.Algorithm{balance.Random, balance.LeastRequest} {
		r := rand.New(rand.NewPCG(24, 1))
		s := newSimulation(t, algorithm, 10, one)
		s.rate = 10_000
		s.takes = func(i int, _ int64, _ *rand.Rand) float64 {
			if i == 0 {
				return 0.2
			}
			return 0.010
		}
		s.run(5*time.Second, r)
		s.run(5*time.Second, r)
		share[algorithm] = s.share(0)
	}
	if got := share[balance.Random]; got < 0.09 {
		t.Errorf("at random it has a share of %.3f", got)
	}
	if got := share[balance.LeastRequest]; got > 0.02 {
		t.Errorf("with two choices it has a share of %.3f", got)
	}
}

// Under load least request balances calls in flight for weight, and so calls too.
func TestLeastRequestUnderLoadFollowsWeights(t *testing.T) {
	r := rand.New(rand.NewPCG(25, 1))
	s := newSimulation(t, balance.LeastRequest, 4, func(i int) uint32 { return []uint32{1, 1, 2, 4}[i] })
	s.rate = 2000
	s.takes = func(int, int64, *rand.Rand) float64 { return 0.020 }
	s.run(20*time.Second, r)
	for i, want := range []float64{0.125, 0.125, 0.25, 0.5} {
		if got := s.share(i); got < 0.9*want || got > 1.1*want {
			t.Errorf("endpoint %d has a share of %.3f, want about %.3f", i, got, want)
		}
	}
}
