package balance_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/weftmesh/weft/balance"
)

var algorithms = []balance.Algorithm{
	balance.LeastRequest, balance.RoundRobin, balance.Random, balance.PeakEWMA, balance.RingHash, balance.Maglev,
}

// endpoint is how a caller keeps a member: with state of its own that decides whether
// a call may go there.
type endpoint struct {
	balance.Target
	downUntil int64
}

func newEndpoints(n int, weight func(i int) uint32) ([]*endpoint, []balance.Member) {
	endpoints := make([]*endpoint, n)
	members := make([]balance.Member, n)
	for i := range endpoints {
		endpoints[i] = new(endpoint)
		members[i] = balance.Member{Target: &endpoints[i].Target, Key: fmt.Sprintf("10.0.%d.%d:8080", i/250, i%250), Weight: weight(i)}
	}
	return endpoints, members
}

func newPicker(tb testing.TB, c balance.Config, members []balance.Member) *balance.Picker {
	tb.Helper()
	p, err := balance.NewPicker(c, members)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// start is some moment.
const start = int64(1_700_000_000 * time.Second)

// group mimics a caller: what a closure captures is what would be allocated if it
// escaped.
type group struct {
	endpoints []*endpoint
	picker    *balance.Picker
}

func (g *group) pick(random uint64, now int64, tried []*endpoint) *endpoint {
	q := balance.Query{Random: random, Hash: random, Hashed: true, Now: now, Usable: func(i int) bool {
		e := g.endpoints[i]
		if e.downUntil > now {
			return false
		}
		for _, t := range tried {
			if t == e {
				return false
			}
		}
		return true
	}}
	if i := g.picker.Pick(&q); i >= 0 {
		return g.endpoints[i]
	}
	return nil
}

func one(int) uint32        { return 1 }
func oneToTen(i int) uint32 { return uint32(i%10) + 1 }
func uneven(i int) uint32   { return uint32(i*7919)%9973 + 1 }

// step is a generator that costs nothing beside a pick.
func step(x uint64) uint64 { return x*6364136223846793005 + 1442695040888963407 }

func BenchmarkPick(b *testing.B) {
	for _, algorithm := range algorithms {
		for _, n := range []int{10, 1000} {
			for _, w := range []struct {
				name   string
				weight func(int) uint32
			}{{"equal", one}, {"weights", oneToTen}, {"uneven", uneven}} {
				b.Run(fmt.Sprintf("%s/%d/%s", algorithm, n, w.name), func(b *testing.B) {
					endpoints, members := newEndpoints(n, w.weight)
					g := &group{endpoints, newPicker(b, balance.Config{Algorithm: algorithm}, members)}
					for i, e := range endpoints {
						e.Observe(time.Duration(i+1)*time.Millisecond, start)
						if i%2 == 0 { // half of them are idle, and their latency decays
							e.Begin()
						}
					}
					random, now := uint64(1), start+int64(time.Second)
					b.ReportAllocs()
					for b.Loop() {
						random = step(random)
						g.pick(random, now, nil)
					}
				})
			}
		}
	}
}

// One member in five is out of service, two zones share, and one endpoint was tried.
func BenchmarkPickDegraded(b *testing.B) {
	for _, algorithm := range algorithms {
		b.Run(algorithm.String(), func(b *testing.B) {
			endpoints, members := newEndpoints(1000, oneToTen)
			for i := range members {
				members[i].Priority = uint8(i % 2)
			}
			g := &group{endpoints, newPicker(b, balance.Config{Algorithm: algorithm}, members)}
			g.picker.Refresh(start, func(i int) bool { return i%5 != 0 })
			random := uint64(1)
			tried := []*endpoint{endpoints[7]}
			b.ReportAllocs()
			for b.Loop() {
				random = step(random)
				g.pick(random, start, tried)
			}
		})
	}
}

func BenchmarkPickParallel(b *testing.B) {
	for _, algorithm := range algorithms {
		b.Run(algorithm.String(), func(b *testing.B) {
			endpoints, members := newEndpoints(1000, one)
			g := &group{endpoints, newPicker(b, balance.Config{Algorithm: algorithm}, members)}
			b.RunParallel(func(pb *testing.PB) {
				random := uint64(1)
				for pb.Next() {
					random = step(random)
					e := g.pick(random, start, nil)
					e.Begin()
					e.Observe(time.Millisecond, start)
					e.End()
				}
			})
		})
	}
}

func BenchmarkNewPicker(b *testing.B) {
	for _, algorithm := range algorithms {
		for _, n := range []int{10, 1000} {
			for _, w := range []struct {
				name   string
				weight func(int) uint32
			}{{"equal", one}, {"uneven", uneven}} {
				b.Run(fmt.Sprintf("%s/%d/%s", algorithm, n, w.name), func(b *testing.B) {
					_, members := newEndpoints(n, w.weight)
					b.ReportAllocs()
					for b.Loop() {
						newPicker(b, balance.Config{Algorithm: algorithm}, members)
					}
				})
			}
		}
	}
}

func BenchmarkRefresh(b *testing.B) {
	_, members := newEndpoints(1000, oneToTen)
	p := newPicker(b, balance.Config{Algorithm: balance.RoundRobin, SlowStart: balance.SlowStart{Window: time.Minute}}, members)
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			p.Refresh(start, func(int) bool { return true })
		}
	})
	b.Run("one ejected or back", func(b *testing.B) {
		out := -1
		for b.Loop() {
			out = -1 - out
			p.Refresh(start, func(i int) bool { return i != out })
		}
	})
}

func BenchmarkObserve(b *testing.B) {
	t, now := new(balance.Target), start
	for b.Loop() {
		now += int64(10 * time.Microsecond)
		t.Observe(time.Millisecond, now)
	}
}

func BenchmarkHashString(b *testing.B) {
	const cookie = "session=8f14e45fceea167a5a36dedd4bea2543"
	for b.Loop() {
		balance.HashString(cookie)
	}
}
