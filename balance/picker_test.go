package balance_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/balance"
)

// fits compares counts with shares by Pearson's chi-squared statistic: pure chance
// exceeds the limit in one of a million runs, and the seeds are fixed. Cells of which
// fewer than five were expected are put together, for smaller ones the statistic has
// another distribution.
func fits(counts []int, shares []float64) error {
	n := 0
	for _, c := range counts {
		n += c
	}
	statistic, cells, smallGot, smallWant := 0.0, 0, 0.0, 0.0
	for i, share := range shares {
		want := share * float64(n)
		switch {
		case share == 0 && counts[i] > 0:
			return fmt.Errorf("%d picks of member %d, which should get none", counts[i], i)
		case want < 5:
			smallGot, smallWant = smallGot+float64(counts[i]), smallWant+want
		default:
			statistic += (float64(counts[i]) - want) * (float64(counts[i]) - want) / want
			cells++
		}
	}
	if smallWant >= 1 {
		statistic += (smallGot - smallWant) * (smallGot - smallWant) / smallWant
		cells++
	}
	// Wilson and Hilferty: the cube root of chi-squared is about normal; 4.753 is the
	// normal quantile of 1 - 10^-6.
	k := float64(max(cells-1, 1))
	limit := k * math.Pow(1-2/(9*k)+4.753*math.Sqrt(2/(9*k)), 3)
	if statistic > limit {
		return fmt.Errorf("chi-squared is %.1f with %v degrees of freedom, over %.1f", statistic, k, limit)
	}
	return nil
}

// picks counts n picks.
func picks(p *balance.Picker, n int, seed uint64, usable func(int) bool) []int {
	r := rand.New(rand.NewPCG(seed, 7))
	counts := make([]int, p.Len())
	for range n {
		if i := p.Pick(&balance.Query{Random: r.Uint64(), Now: start, Usable: usable}); i >= 0 {
			counts[i]++
		}
	}
	return counts
}

// part is a priority or a zone, with its load of the traffic.
type part struct {
	of                  []int
	healthy, load, size float64
	panic               bool
}

// partsOf sorts members into parts, first to last.
func partsOf(c balance.Config, members []balance.Member, healthy []bool) (parts []*part, shares []float64) {
	byName := map[string]*part{}
	var names []string
	for i, m := range members {
		name := fmt.Sprintf("%03d", m.Priority)
		if c.Shares != nil {
			name = m.Zone
			if c.Shares[name] == 0 {
				continue
			}
		}
		if byName[name] == nil {
			byName[name] = new(part)
			names = append(names, name)
		}
		p := byName[name]
		p.of = append(p.of, i)
		p.size++
		if healthy[i] {
			p.healthy++
		}
	}
	slices.Sort(names)
	for _, name := range names {
		parts, shares = append(parts, byName[name]), append(shares, float64(c.Shares[name]))
	}
	return parts, shares
}

// divide gives each part its load, by the rules as they are written down.
func divide(c balance.Config, parts []*part, shares []float64) {
	sum, allHealthy, all, left := 0.0, 0.0, 0.0, 100.0
	for i, p := range parts {
		health := min(100, math.Floor(140*p.healthy/p.size))
		sum, allHealthy, all = sum+health, allHealthy+p.healthy, all+p.size
		if c.Shares != nil {
			p.load = health * shares[i]
			continue
		}
		p.load = min(left, health)
		left -= p.load
	}
	limit := float64(c.PanicPercent) / 100
	if c.Shares != nil && 1.4*allHealthy < all && allHealthy < limit*all {
		for i, p := range parts {
			p.load, p.panic = shares[i], true
		}
	}
	if c.Shares == nil && sum < 100 {
		everywhere := true
		for _, p := range parts {
			p.panic = p.healthy < limit*p.size
			everywhere = everywhere && p.panic
		}
		for _, p := range parts {
			if everywhere {
				p.load = p.size
			}
		}
	}
}

// exact is the share of each member, computed by sums over lists.
func exact(c balance.Config, members []balance.Member, healthy []bool) []float64 {
	parts, shares := partsOf(c, members, healthy)
	divide(c, parts, shares)
	out, total := make([]float64, len(members)), 0.0
	for _, p := range parts {
		weights := 0.0
		for _, i := range p.of {
			if healthy[i] || p.panic {
				weights += float64(max(members[i].Weight, 1))
			}
		}
		for _, i := range p.of {
			if healthy[i] || p.panic {
				out[i] = p.load * float64(max(members[i].Weight, 1)) / weights
			}
		}
		total += p.load
	}
	for i := range out {
		if total > 0 {
			out[i] /= total
		}
	}
	return out
}

func TestSharesFollowWeights(t *testing.T) {
	for _, algorithm := range algorithms[:4] {
		for name, weights := range map[string][]uint32{
			"equal":    {1, 1, 1, 1},
			"none":     {0, 0, 0},
			"unequal":  {1, 2, 5},
			"one":      {3},
			"two":      {9, 1},
			"coprime":  {9973, 10007, 3001, 20011},
			"huge":     {math.MaxUint32, math.MaxUint32, math.MaxUint32 / 2},
			"lopsided": {1, 1, 1, 1000},
		} {
			_, members := newEndpoints(len(weights), func(i int) uint32 { return weights[i] })
			p := newPicker(t, balance.Config{Algorithm: algorithm}, members)
			healthy := slices.Repeat([]bool{true}, len(weights))
			if err := fits(picks(p, 100_000, 1, nil), exact(balance.Config{}, members, healthy)); err != nil {
				t.Errorf("%s, %s: %v", algorithm, name, err)
			}
		}
		_, members := newEndpoints(1000, uneven)
		p := newPicker(t, balance.Config{Algorithm: algorithm}, members)
		if err := fits(picks(p, 300_000, 2, nil), exact(balance.Config{}, members, slices.Repeat([]bool{true}, 1000))); err != nil {
			t.Errorf("%s, 1000 members: %v", algorithm, err)
		}
	}
}

// Any mixture of priorities with gaps or zones, weights, health and panic must give
// what the rules give when they are followed step by step.
func TestSharesAreThoseOfTheRules(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for round := range 150 {
		c := balance.Config{Algorithm: algorithms[round%4], PanicPercent: uint32(r.IntN(3)) * 50}
		if round%3 == 0 {
			c.Shares = map[string]uint32{"a": 70, "b": 20, "c": 10}
		}
		_, members := newEndpoints(1+r.IntN(12), func(int) uint32 { return r.Uint32N(9) })
		healthy := make([]bool, len(members))
		odds := r.Float64()
		for i := range members {
			members[i].Priority = []uint8{0, 0, 3, 255}[r.IntN(4)]
			members[i].Zone = []string{"a", "b", "c", "d"}[r.IntN(4)]
			healthy[i] = r.Float64() < odds
		}
		p := newPicker(t, c, members)
		p.Refresh(start, func(i int) bool { return healthy[i] })
		shares := exact(c, members, healthy)
		counts := picks(p, 20_000, uint64(round), nil)
		if slices.Max(shares) == 0 {
			if slices.Max(counts) > 0 {
				t.Fatalf("round %d: picked although nobody is in service: %v", round, counts)
			}
			continue
		}
		if err := fits(counts, shares); err != nil {
			t.Errorf("round %d: %v\n%+v\nhealthy %v\npicks %v\nwant %.3f", round, err, c, healthy, counts, shares)
		}
	}
}

// Members that a query excludes leave their share to the others, by weight, whether
// there are few of them or many.
func TestExcludedMembersLeaveTheirShare(t *testing.T) {
	for _, algorithm := range algorithms[:4] {
		for _, n := range []int{3, 10, 200} {
			for name, usable := range map[string]func(int) bool{
				"all but one": func(i int) bool { return i != 1 },
				"every other": func(i int) bool { return i%2 == 0 },
				"last two":    func(i int) bool { return i >= n-2 },
				"one":         func(i int) bool { return i == 0 },
			} {
				_, members := newEndpoints(n, oneToTen)
				want, total := make([]float64, n), 0.0
				for i, m := range members {
					if usable(i) {
						want[i] = float64(m.Weight)
						total += want[i]
					}
				}
				for i := range want {
					want[i] /= total
				}
				counts := picks(newPicker(t, balance.Config{Algorithm: algorithm}, members), 20_000, 4, usable)
				// LeastRequest and PeakEWMA ask a second choice, but nothing
				// distinguishes idle ones: shares are exact for them too.
				if err := fits(counts, want); err != nil {
					t.Errorf("%s, %d members, %s: %v", algorithm, n, name, err)
				}
			}
		}
	}
}

func TestRoundRobinGoesInTurn(t *testing.T) {
	_, members := newEndpoints(3, func(i int) uint32 { return []uint32{4, 2, 2}[i] })
	p := newPicker(t, balance.Config{Algorithm: balance.RoundRobin}, members)
	var got []int
	for range 40 {
		got = append(got, p.Pick(&balance.Query{Random: 12345}))
	}
	for k := 0; k+4 <= len(got); k++ {
		window := slices.Clone(got[k : k+4])
		slices.Sort(window)
		if !slices.Equal(window, []int{0, 0, 1, 2}) {
			t.Fatalf("four turns from the %dth are %v, want 0 twice, 1 and 2: %v", k, window, got)
		}
	}
	begins := map[int]bool{}
	for random := range uint64(10) {
		p := newPicker(t, balance.Config{Algorithm: balance.RoundRobin}, members)
		begins[p.Pick(&balance.Query{Random: random * 2})] = true
	}
	if len(begins) != 3 {
		t.Errorf("pickers begin only with %v", begins)
	}
}

// Weights without a short round go by multiples of the golden ratio: at any time each
// member has had what its weight says, give or take a few. Drawing would be off by
// the root of the number of picks, a hundred here.
func TestRoundRobinWithLongRoundsStaysExact(t *testing.T) {
	_, members := newEndpoints(20, uneven)
	p := newPicker(t, balance.Config{Algorithm: balance.RoundRobin}, members)
	total := 0.0
	for _, m := range members {
		total += float64(m.Weight)
	}
	counts := make([]float64, len(members))
	for k := range 20_000 {
		counts[p.Pick(&balance.Query{Random: 99})]++
		for i, m := range members {
			if off := counts[i] - float64(k+1)*float64(m.Weight)/total; math.Abs(off) > 4 {
				t.Fatalf("after %d picks member %d is off by %.1f", k+1, i, off)
			}
		}
	}
}

// Envoy's documentation of priority levels and of panic thresholds, where its tables
// follow its rules.
func TestSpillOver(t *testing.T) {
	for _, tc := range []struct {
		healthy []int // percent, by priority
		traffic []float64
		panic   []bool
	}{
		{healthy: []int{100, 100}, traffic: []float64{100, 0}},
		{healthy: []int{72, 72}, traffic: []float64{100, 0}},
		{healthy: []int{71, 71}, traffic: []float64{99, 1}},
		{healthy: []int{50, 60}, traffic: []float64{70, 30}},
		{healthy: []int{25, 100}, traffic: []float64{35, 65}},
		{healthy: []int{0, 100}, traffic: []float64{0, 100}},
		{healthy: []int{100, 0}, traffic: []float64{100, 0}},
		{healthy: []int{25, 25}, traffic: []float64{50, 50}, panic: []bool{true, true}},
		{healthy: []int{5, 65}, traffic: []float64{7. / 98 * 100, 91. / 98 * 100}, panic: []bool{true, false}},
		{healthy: []int{0, 0}, traffic: []float64{50, 50}, panic: []bool{true, true}},
		{healthy: []int{71, 71, 100}, traffic: []float64{99, 1, 0}},
		{healthy: []int{25, 25, 100}, traffic: []float64{35, 35, 30}},
		{healthy: []int{25, 25, 20}, traffic: []float64{35. / 98 * 100, 35. / 98 * 100, 28. / 98 * 100}, panic: []bool{true, true, true}},
		{healthy: []int{49}, traffic: []float64{100}, panic: []bool{true}},
		{healthy: []int{50}, traffic: []float64{100}},
	} {
		_, members := newEndpoints(100*len(tc.healthy), one)
		for i := range members {
			members[i].Priority = uint8(i / 100 * 7)
		}
		p := newPicker(t, balance.Config{PanicPercent: 50}, members)
		p.Refresh(start, func(i int) bool { return i%100 < tc.healthy[i/100] })
		everywhere := len(tc.panic) > 0 && !slices.Contains(tc.panic, false)
		for i, load := range p.Loads() {
			want := tc.traffic[i]
			if everywhere { // by members, of which all have as many
				want = 100 / float64(len(tc.healthy))
			}
			if math.Abs(load.Percent-want) > 1e-9 {
				t.Errorf("%v: %.2f %% to priority %d, want %.2f %%", tc.healthy, load.Percent, i, want)
			}
			if load.Panic != (tc.panic != nil && tc.panic[i]) {
				t.Errorf("%v: panic of priority %d is %v", tc.healthy, i, load.Panic)
			}
			if load.Priority != uint8(7*i) || load.Members != 100 || load.Healthy != tc.healthy[i] {
				t.Errorf("%v: priority %d is %+v", tc.healthy, i, load)
			}
		}
	}
}

// Envoy's documentation of locality weights: zone x has a share of one third, zone y
// is whole.
func TestSharesOfZones(t *testing.T) {
	for _, tc := range []struct {
		healthy int // percent of x
		want    float64
	}{{100, 33}, {72, 33}, {69, 32}, {50, 25.6}, {25, 14.7}, {0, 0}} {
		_, members := newEndpoints(200, one)
		for i := range members {
			members[i].Zone = []string{"y", "x", "z"}[min(i/50, 2)]
		}
		p := newPicker(t, balance.Config{Shares: map[string]uint32{"x": 33, "y": 67, "elsewhere": 0}}, members)
		p.Refresh(start, func(i int) bool { return i < 50 || i%50 < tc.healthy/2 })
		loads := p.Loads()
		if len(loads) != 2 || loads[0].Zone != "x" || loads[1].Zone != "y" {
			t.Fatalf("%+v", loads)
		}
		if math.Abs(loads[0].Percent-tc.want) > 0.8 {
			t.Errorf("%d %% of x in service: %.1f %% of the traffic, want %.1f %%", tc.healthy, loads[0].Percent, tc.want)
		}
		counts := picks(p, 20_000, 5, nil)
		for i := 100; i < 200; i++ {
			if counts[i] > 0 {
				t.Fatal("a zone without a share got traffic")
			}
		}
	}
}

func TestPanicPicksWhoIsOutOfServiceButNotWhatWasTried(t *testing.T) {
	for _, algorithm := range algorithms {
		_, members := newEndpoints(10, one)
		p := newPicker(t, balance.Config{Algorithm: algorithm, PanicPercent: 50}, members)
		p.Refresh(start, func(i int) bool { return i < 5 })
		counts := picks(p, 10_000, 6, nil)
		for i, n := range counts {
			if (n > 0) != (i < 5) {
				t.Errorf("%s, half of them in service: %v", algorithm, counts)
				break
			}
		}
		p.Refresh(start, func(i int) bool { return i < 4 })
		counts = picks(p, 10_000, 6, func(i int) bool { return i != 7 })
		for i, n := range counts {
			if (n > 0) != (i != 7) {
				t.Errorf("%s, panic, 7 was tried: %v", algorithm, counts)
				break
			}
		}
		p.Refresh(start, nil)
		if loads := p.Loads(); loads[0].Panic || loads[0].Healthy != 10 {
			t.Errorf("%s, all back: %+v", algorithm, loads)
		}
	}
}

// When all of the priority whose turn it is were tried, the next one stands in.
func TestStandInPriority(t *testing.T) {
	for _, algorithm := range algorithms {
		_, members := newEndpoints(4, one)
		members[2].Priority, members[3].Priority = 1, 2
		p := newPicker(t, balance.Config{Algorithm: algorithm}, members)
		for tried := range 5 {
			want := []int{0, 1, 2, 3, -1}[tried]
			got := p.Pick(&balance.Query{Random: 42, Usable: func(i int) bool { return i >= tried }})
			if got != want && !(tried == 0 && got == 1) {
				t.Errorf("%s, %d tried: got %d, want %d", algorithm, tried, got, want)
			}
		}
	}
}

func TestSlowStart(t *testing.T) {
	const window = 100 * time.Second
	for _, tc := range []struct {
		slow balance.SlowStart
		age  time.Duration
		want float64 // part of its weight
	}{
		{balance.SlowStart{Window: window}, 0, 0.10},
		{balance.SlowStart{Window: window}, 5 * time.Second, 0.10},
		{balance.SlowStart{Window: window}, 25 * time.Second, 0.25},
		{balance.SlowStart{Window: window}, 50 * time.Second, 0.50},
		{balance.SlowStart{Window: window}, 100 * time.Second, 1},
		{balance.SlowStart{Window: window}, 200 * time.Second, 1},
		{balance.SlowStart{Window: window, Aggression: 2}, 25 * time.Second, 0.50},
		{balance.SlowStart{Window: window, Aggression: 0.5}, 50 * time.Second, 0.25},
		{balance.SlowStart{Window: window, MinPercent: 40}, 0, 0.40},
		{balance.SlowStart{Window: window, MinPercent: 100}, 0, 1},
		{balance.SlowStart{}, 0, 1},
		// the clock of who noted the joining is a little ahead, or this one was set back
		{balance.SlowStart{Window: window}, -time.Second, 0.10},
		{balance.SlowStart{Window: window, Aggression: 2}, -time.Second, 0.10},
		{balance.SlowStart{Window: window}, -time.Hour, 1},
	} {
		for _, algorithm := range algorithms[:4] {
			endpoints, members := newEndpoints(4, func(i int) uint32 { return []uint32{2, 1, 1, 4}[i] })
			endpoints[3].Join(start)
			p := newPicker(t, balance.Config{Algorithm: algorithm, SlowStart: tc.slow}, members)
			p.Refresh(start+int64(tc.age), nil)
			weights := []float64{2, 1, 1, 4 * tc.want}
			total := 4 + 4*tc.want
			for i := range weights {
				weights[i] /= total
			}
			if err := fits(picks(p, 50_000, 8, nil), weights); err != nil {
				t.Errorf("%s, %+v, at %s: %v", algorithm, tc.slow, tc.age, err)
			}
		}
	}
}

// A target that was away begins slowly again, also when nothing else changes.
func TestSlowStartOfWhoComesBack(t *testing.T) {
	const window = 10 * time.Second
	endpoints, members := newEndpoints(2, one)
	p := newPicker(t, balance.Config{Algorithm: balance.RoundRobin, SlowStart: balance.SlowStart{Window: window}}, members)
	share := func() float64 { return float64(picks(p, 10_000, 9, nil)[1]) / 10_000 }
	near := func(when string, want float64) {
		t.Helper()
		if got := share(); math.Abs(got-want) > 0.002 {
			t.Errorf("%s: a share of %.3f, want %.3f", when, got, want)
		}
	}
	near("always there", 0.5)
	endpoints[1].Join(start)
	p.Refresh(start, nil)
	near("just back", 0.1/1.1)
	p.Refresh(start+int64(window/2), nil)
	near("half way", 0.5/1.5)
	p.Refresh(start+int64(window)-1, nil)
	near("almost", 0.5)
	p.Refresh(start+int64(window), nil)
	p.Refresh(start+int64(2*window), nil)
	near("whole", 0.5)
	var rounds []int
	for range 6 {
		rounds = append(rounds, p.Pick(&balance.Query{}))
	}
	if rounds[0] == rounds[1] || rounds[0] != rounds[2] || rounds[1] != rounds[3] {
		t.Errorf("after slow start turns go %v", rounds)
	}
}

// A picker that was never refreshed takes now for the moment when the last one came.
func TestSlowStartBeforeTheFirstRefresh(t *testing.T) {
	endpoints, members := newEndpoints(3, one)
	endpoints[1].Join(start - int64(5*time.Second))
	endpoints[2].Join(start)
	p := newPicker(t, balance.Config{SlowStart: balance.SlowStart{Window: 10 * time.Second}}, members)
	if err := fits(picks(p, 50_000, 10, nil), []float64{1 / 1.6, 0.5 / 1.6, 0.1 / 1.6}); err != nil {
		t.Error(err)
	}
}

func TestNobody(t *testing.T) {
	for _, algorithm := range algorithms {
		for n := range 4 {
			_, members := newEndpoints(n, one)
			p := newPicker(t, balance.Config{Algorithm: algorithm}, members)
			q := balance.Query{Random: 7, Hash: 7, Hashed: true}
			if got := p.Pick(&q); (got >= 0) != (n > 0) || got >= n {
				t.Errorf("%s, %d members: %d", algorithm, n, got)
			}
			q.Usable = func(int) bool { return false }
			if got := p.Pick(&q); got != -1 {
				t.Errorf("%s, %d members, none usable: %d", algorithm, n, got)
			}
			p.Refresh(start, func(int) bool { return false })
			q.Usable = nil
			if got := p.Pick(&q); got != -1 {
				t.Errorf("%s, %d members, none in service: %d", algorithm, n, got)
			}
			p.Refresh(start, nil)
			if got := p.Pick(&q); (got >= 0) != (n > 0) {
				t.Errorf("%s, %d members, back: %d", algorithm, n, got)
			}
		}
	}
	_, members := newEndpoints(3, one)
	p := newPicker(t, balance.Config{Shares: map[string]uint32{"nowhere": 100}}, members)
	if got := p.Pick(&balance.Query{}); got != -1 || len(p.Loads()) != 0 {
		t.Errorf("no zone has a share: %d", got)
	}
}

func TestErrorsNameTheField(t *testing.T) {
	target := new(balance.Target)
	for _, tc := range []struct {
		config  balance.Config
		members []balance.Member
		want    string
	}{
		{config: balance.Config{Algorithm: 6}, want: "Algorithm: 6"},
		{config: balance.Config{SlowStart: balance.SlowStart{Window: -1}}, want: "SlowStart.Window: -1ns"},
		{config: balance.Config{SlowStart: balance.SlowStart{Aggression: -1}}, want: "SlowStart.Aggression: -1"},
		{config: balance.Config{SlowStart: balance.SlowStart{Aggression: math.NaN()}}, want: "SlowStart.Aggression: NaN"},
		{config: balance.Config{SlowStart: balance.SlowStart{Aggression: math.Inf(1)}}, want: "SlowStart.Aggression: +Inf"},
		{config: balance.Config{SlowStart: balance.SlowStart{MinPercent: 101}}, want: "SlowStart.MinPercent: 101"},
		{config: balance.Config{PanicPercent: 101}, want: "PanicPercent: 101"},
		{config: balance.Config{Algorithm: balance.RingHash, RingSize: 8<<20 + 1}, want: "RingSize: 8388609"},
		{config: balance.Config{Algorithm: balance.Maglev, RingSize: 5_000_077}, want: "RingSize: 5000077"},
		{config: balance.Config{Algorithm: balance.Maglev, RingSize: 65536}, want: "RingSize: 65536"},
		{config: balance.Config{Algorithm: balance.Maglev, RingSize: 1}, want: "RingSize: 1 "},
		{config: balance.Config{Shares: map[string]uint32{"a": 50, "b": 49}}, want: "Shares: their sum is 99"},
		{config: balance.Config{Shares: map[string]uint32{}}, want: "Shares: their sum is 0"},
		{config: balance.Config{Shares: map[string]uint32{"a": math.MaxUint32, "b": 101}}, want: "Shares: their sum is 4294967396"},
		{members: []balance.Member{{Target: target}, {}}, want: "members[1].Target: nil"},
		{config: balance.Config{Algorithm: balance.Maglev}, members: []balance.Member{{Target: target}}, want: "members[0].Key: empty"},
		{config: balance.Config{Algorithm: balance.RingHash}, members: []balance.Member{{Target: target, Key: "a"}, {Target: target, Key: "a"}}, want: `members[1].Key: "a" is also that of members[0]`},
	} {
		_, err := balance.NewPicker(tc.config, tc.members)
		if err == nil || !strings.HasPrefix(err.Error(), "balance: "+tc.want) {
			t.Errorf("%q, want %q", err, tc.want)
		}
	}
}

// A caller's closure captures what it needs, and nothing of that may be allocated.
func TestPickAllocatesNothing(t *testing.T) {
	for _, algorithm := range algorithms {
		endpoints, members := newEndpoints(100, oneToTen)
		for i := range members {
			members[i].Priority = uint8(i % 3)
		}
		g := &group{endpoints, newPicker(t, balance.Config{Algorithm: algorithm}, members)}
		g.picker.Refresh(start, func(i int) bool { return i%2 == 0 })
		random := uint64(1)
		tried := []*endpoint{endpoints[0], endpoints[2]}
		if n := testing.AllocsPerRun(1000, func() {
			random = step(random)
			e := g.pick(random, start, tried)
			e.Begin()
			e.End()
			e.Observe(time.Millisecond, start)
		}); n != 0 {
			t.Errorf("%s: %v allocations a pick", algorithm, n)
		}
	}
}

func TestRefreshOfNothingNewAllocatesNothing(t *testing.T) {
	_, members := newEndpoints(100, oneToTen)
	p := newPicker(t, balance.Config{SlowStart: balance.SlowStart{Window: time.Minute}}, members)
	if n := testing.AllocsPerRun(100, func() { p.Refresh(start, func(i int) bool { return true }) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Sixteen goroutines call while members go, come back and join, and others publish
// new pickers. Who is out of service for the whole test is never picked.
func TestPickWhileEverythingChanges(t *testing.T) {
	for _, algorithm := range algorithms {
		endpoints, members := newEndpoints(50, oneToTen)
		for i := range members {
			members[i].Priority = uint8(i % 2)
		}
		p := newPicker(t, balance.Config{Algorithm: algorithm, SlowStart: balance.SlowStart{Window: time.Second}}, members)
		p.Refresh(start, func(i int) bool { return i != 0 })
		var wg sync.WaitGroup
		for g := range 16 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(g), 1))
				for k := range 500 {
					now := start + int64(k)*int64(10*time.Millisecond)
					if g < 2 && k%10 == 0 {
						out := 1 + r.IntN(49)
						endpoints[out].Join(now)
						p.Refresh(now, func(i int) bool { return i != 0 && i != out })
						p.Loads()
					}
					tried := r.IntN(50)
					i := p.Pick(&balance.Query{Random: r.Uint64(), Hash: r.Uint64(), Hashed: k%2 == 0, Now: now, Usable: func(i int) bool { return i != tried }})
					if i <= 0 || i == tried {
						t.Errorf("%s: picked %d", algorithm, i)
						return
					}
					endpoints[i].Begin()
					endpoints[i].Observe(time.Duration(r.IntN(1e9)), now)
					endpoints[i].End()
				}
			})
		}
		wg.Wait()
		for i, e := range endpoints {
			if e.InFlight() != 0 {
				t.Errorf("%s: endpoint %d has %d in flight at the end", algorithm, i, e.InFlight())
			}
		}
	}
}

// FuzzPick reads members, health and a query from bytes, and checks what must hold of
// every pick whatever they are.
func FuzzPick(f *testing.F) {
	f.Add([]byte{0, 50, 3, 1, 0, 200, 1, 3, 255, 9, 7})
	f.Add([]byte{4, 0, 1, 255, 255, 1, 0})
	f.Add([]byte{5, 100, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		next := func() byte {
			if len(data) == 0 {
				return 0
			}
			b := data[0]
			data = data[1:]
			return b
		}
		c := balance.Config{Algorithm: algorithms[next()%6], PanicPercent: uint32(next() % 101)}
		if c.Algorithm == balance.Maglev {
			c.RingSize = 251
		}
		n := int(next() % 20)
		_, members := newEndpoints(n, func(int) uint32 { return uint32(1) << (next() % 33) >> 1 })
		healthy, usable, somebody := make([]bool, n), make([]bool, n), false
		for i := range members {
			b := next()
			members[i].Priority, healthy[i], usable[i] = b>>6, b&1 == 0, b&2 == 0
		}
		p := newPicker(t, c, members)
		p.Refresh(start, func(i int) bool { return healthy[i] })
		panics := map[uint8]bool{}
		for _, load := range p.Loads() {
			panics[load.Priority] = load.Panic
		}
		for i := range members {
			somebody = somebody || usable[i] && (healthy[i] || panics[members[i].Priority])
		}
		for range 20 {
			random := balance.HashBytes([]byte{next(), next(), next()})
			got := p.Pick(&balance.Query{Random: random, Hash: random, Hashed: random&1 == 0, Now: int64(random >> 1), Usable: func(i int) bool { return usable[i] }})
			if (got >= 0) != somebody {
				t.Fatalf("picked %d, and %v that somebody can be picked", got, somebody)
			}
			if got >= 0 && (!usable[got] || !healthy[got] && !panics[members[got].Priority]) {
				t.Fatalf("picked %d: usable %v, healthy %v", got, usable[got], healthy[got])
			}
		}
	})
}
