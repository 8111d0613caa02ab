package balance_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/weftmesh/weft/balance"
)

var hashing = []balance.Algorithm{balance.RingHash, balance.Maglev}

// keys are hashes of some sessions.
func keys(n int) []uint64 {
	out := make([]uint64, n)
	for i := range out {
		out[i] = balance.HashString(fmt.Sprintf("session-%d", i))
	}
	return out
}

// homes says by key which endpoint each hash belongs to.
func homes(p *balance.Picker, members []balance.Member, keys []uint64, usable func(int) bool) []string {
	out := make([]string, len(keys))
	for k, hash := range keys {
		if i := p.Pick(&balance.Query{Hash: hash, Hashed: true, Random: uint64(k) << 40, Usable: usable}); i >= 0 {
			out[k] = members[i].Key
		}
	}
	return out
}

func TestHashingSticks(t *testing.T) {
	for _, algorithm := range hashing {
		_, members := newEndpoints(100, oneToTen)
		p := newPicker(t, balance.Config{Algorithm: algorithm}, members)
		ks := keys(10_000)
		first := homes(p, members, ks, nil)
		if !slices.Equal(first, homes(p, members, ks, nil)) {
			t.Errorf("%s: the same keys go elsewhere", algorithm)
		}
		rand.New(rand.NewPCG(1, 1)).Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
		if !slices.Equal(first, homes(newPicker(t, balance.Config{Algorithm: algorithm}, members), members, ks, nil)) {
			t.Errorf("%s: the order of members matters", algorithm)
		}
		for i := range members {
			members[i].Weight *= 3
		}
		if !slices.Equal(first, homes(newPicker(t, balance.Config{Algorithm: algorithm}, members), members, ks, nil)) {
			t.Errorf("%s: the unit of weights matters", algorithm)
		}
	}
}

// Where these keys belong, and their stand-ins while that one is away, must not change
// with a release: proxies of two releases serve the same sessions while one replaces
// the other.
func TestHomesAreStable(t *testing.T) {
	for algorithm, want := range map[balance.Algorithm][2][]int{
		balance.RingHash: {{3, 9, 4, 8, 4, 1, 4, 8, 4, 4, 8, 5, 7, 6, 5, 9}, {4, 6, 6, 1, 3, 9, 3, 5, 8, 1, 7, 9, 5, 5, 9, 8}},
		balance.Maglev:   {{7, 5, 4, 6, 8, 8, 9, 7, 9, 3, 7, 1, 8, 9, 3, 4}, {6, 8, 2, 7, 9, 5, 7, 6, 1, 8, 6, 8, 7, 6, 4, 1}},
	} {
		_, members := newEndpoints(10, oneToTen)
		p := newPicker(t, balance.Config{Algorithm: algorithm}, members)
		var got [2][]int
		for _, hash := range keys(16) {
			home := p.Pick(&balance.Query{Hash: hash, Hashed: true})
			standIn := p.Pick(&balance.Query{Hash: hash, Hashed: true, Usable: func(i int) bool { return i != home }})
			got[0], got[1] = append(got[0], home), append(got[1], standIn)
		}
		if !slices.Equal(got[0], want[0]) || !slices.Equal(got[1], want[1]) {
			t.Errorf("%s: %v, want %v", algorithm, got, want)
		}
	}
}

func TestWithoutAHashItIsRandom(t *testing.T) {
	for _, algorithm := range hashing {
		_, members := newEndpoints(10, one)
		counts := picks(newPicker(t, balance.Config{Algorithm: algorithm}, members), 10_000, 11, nil)
		// The ring's shares stray: see TestHashingBalances.
		if least, most := slices.Min(counts), slices.Max(counts); least < 600 || most > 1500 {
			t.Errorf("%s: %v", algorithm, counts)
		}
	}
}

// While an endpoint is away its keys, and only those, have stand-ins; each always the
// same, and of many endpoints. It makes no difference whether the endpoint is out of
// service or excluded.
func TestStandIns(t *testing.T) {
	for _, algorithm := range hashing {
		_, members := newEndpoints(20, one)
		p := newPicker(t, balance.Config{Algorithm: algorithm}, members)
		ks := keys(5000)
		whole := homes(p, members, ks, nil)
		p.Refresh(start, func(i int) bool { return i != 3 && i != 4 })
		away := homes(p, members, ks, nil)
		p.Refresh(start, nil)
		if !slices.Equal(away, homes(p, members, ks, func(i int) bool { return i != 3 && i != 4 })) {
			t.Errorf("%s: the stand-in of what was tried is not that of what is out of service", algorithm)
		}
		standIns := map[string]bool{}
		for k := range ks {
			switch whole[k] {
			case members[3].Key, members[4].Key:
				standIns[away[k]] = true
			case away[k]:
			default:
				t.Fatalf("%s: a key of %s moved to %s", algorithm, whole[k], away[k])
			}
		}
		if standIns[members[3].Key] || standIns[members[4].Key] || len(standIns) != 18 {
			t.Errorf("%s: %d stand-ins, want the 18 others", algorithm, len(standIns))
		}
	}
}

// Also when next to nobody is left a key has one stand-in.
func TestStandInsOfNearlyAll(t *testing.T) {
	for _, algorithm := range hashing {
		_, members := newEndpoints(1000, one)
		p := newPicker(t, balance.Config{Algorithm: algorithm}, members)
		ks := keys(2000)
		p.Refresh(start, func(i int) bool { return i == 17 || i == 500 })
		two := homes(p, members, ks, nil)
		counts := map[string]int{}
		for _, home := range two {
			counts[home]++
		}
		if len(counts) != 2 || counts[members[17].Key] < 600 || counts[members[500].Key] < 600 {
			t.Errorf("%s: %v", algorithm, counts)
		}
		if !slices.Equal(two, homes(p, members, ks, nil)) {
			t.Errorf("%s: the same keys go elsewhere", algorithm)
		}
	}
}

// Some keys spill over to the next priority, always the same ones, and the more do
// the fewer are left.
func TestHashedSpillOver(t *testing.T) {
	for _, algorithm := range hashing {
		_, members := newEndpoints(40, one)
		local := map[string]bool{}
		for i := range members {
			members[i].Priority = uint8(i / 20)
			local[members[i].Key] = i < 20
		}
		p := newPicker(t, balance.Config{Algorithm: algorithm}, members)
		ks := keys(20_000)
		last := make([]bool, len(ks))
		for left := 20; left >= 0; left -= 5 {
			p.Refresh(start, func(i int) bool { return i < left || i >= 20 })
			spilled := 0
			for k, home := range homes(p, members, ks, nil) {
				if !local[home] {
					spilled++
				} else if last[k] {
					t.Fatalf("%s: a key came back while fewer were in service", algorithm)
				}
				last[k] = !local[home]
			}
			// Four standard deviations of 20,000 keys that spill with chance 1/2: 1.4 %.
			want := 1 - min(1, 1.4*float64(left)/20)
			if got := float64(spilled) / float64(len(ks)); got < want-0.015 || got > want+0.015 {
				t.Errorf("%s: with %d of 20 in service %.3f of the keys spill over, want %.3f", algorithm, left, got, want)
			}
		}
	}
}

// moved says how many of the keys changed their home between two sets of members, and
// how many of these neither left nor reached an endpoint that came or went.
func moved(tb testing.TB, c balance.Config, before, after []balance.Member, ks []uint64, changed string) (all, others float64) {
	a := homes(newPicker(tb, c, before), before, ks, nil)
	b := homes(newPicker(tb, c, after), after, ks, nil)
	for k := range ks {
		if a[k] != b[k] {
			all++
			if a[k] != changed && b[k] != changed {
				others++
			}
		}
	}
	return all / float64(len(ks)), others / float64(len(ks))
}

// When one of n leaves, its own keys must move: 1/n of all. What moves beside is
// disruption. When it joins again the same keys move back, because homes depend on who
// is there and on nothing else (TestHashingSticks).
//
// On a ring with enough points nothing else does: no other point is touched. Below 8
// members of 128 points the others grow from 1024/n to 1024/(n-1), so that of the
// new ring's points 1/n are new, and take as many keys again at most.
//
// Maglev trades this for balance: a member that finds an entry taken otherwise, or has
// its turn earlier, takes another one, which somebody else then lacks. These chains
// come to rest because most first choices are free, all but those of the last rounds,
// which take what is left. It is a matter of the table and not of n: about half a
// hundredth of 65537 entries from a hundred members on. The bound is twice that.
//
// A ring's member has 1/n of the keys only give or take 1/√128 of that, and in the
// mean of five members that leave half of it: 1.2 is over four standard deviations.
func TestDisruption(t *testing.T) {
	ks := keys(20_000)
	for _, n := range []int{3, 5, 8, 10, 17, 100, 1000} {
		for _, algorithm := range hashing {
			_, members := newEndpoints(n, one)
			gone, others, rounds := 0.0, 0.0, 0
			for leaver := 0; leaver < n && rounds < 5; leaver += max(1, n/5) {
				after := slices.Delete(slices.Clone(members), leaver, leaver+1)
				all, beside := moved(t, balance.Config{Algorithm: algorithm}, members, after, ks, members[leaver].Key)
				gone, others, rounds = gone+all-beside, others+beside, rounds+1
			}
			gone, others = gone/float64(rounds), others/float64(rounds)
			t.Logf("%s, %d members: %.4f of the keys had to move, %.4f of them beside", algorithm, n, gone, others)
			most := 1.2 / float64(n)
			if n == 1000 {
				most = 1.5 / float64(n) // 100 keys in all: chance alone is 1/√100 on top
			}
			if gone > most {
				t.Errorf("%s, %d members: the leaving one had %.4f of the keys", algorithm, n, gone)
			}
			switch {
			case algorithm == balance.RingHash && n > 8 && others != 0:
				t.Errorf("%s, %d members: %.4f of the keys moved between others", algorithm, n, others)
			case algorithm == balance.RingHash && others > 1.2/float64(n):
				t.Errorf("%s, %d members: %.4f of the keys moved between others", algorithm, n, others)
			case algorithm == balance.Maglev && others > 0.01:
				t.Errorf("%s, %d members: %.4f of the keys moved between others", algorithm, n, others)
			}
		}
	}
}

// With unequal weights nothing more moves on a ring while the usual weight stays.
func TestDisruptionWithWeights(t *testing.T) {
	ks := keys(50_000)
	for _, n := range []int{15, 100} {
		_, members := newEndpoints(n, func(i int) uint32 { return []uint32{100, 100, 10}[i%3] })
		for _, leaver := range []int{0, 2} {
			after := slices.Delete(slices.Clone(members), leaver, leaver+1)
			if _, others := moved(t, balance.Config{Algorithm: balance.RingHash}, members, after, ks, members[leaver].Key); others != 0 {
				t.Errorf("ring, %d members: %.4f of the keys moved between others", n, others)
			}
			if _, others := moved(t, balance.Config{Algorithm: balance.Maglev}, members, after, ks, members[leaver].Key); others > 0.01 {
				t.Errorf("Maglev, %d members: %.4f of the keys moved between others", n, others)
			}
		}
	}
}

// The most loaded member against its share by weight, measured with so many keys that
// chance counts for little: a thousand each, so that the largest of a hundred strays
// by some 10 %.
//
// A ring's member has the arcs before its points, whose lengths are about exponential:
// with 128 of them the sum strays by 1/√128 = 9 %, and the largest of a hundred by
// three times that. Maglev's entries are exact to one in 655.
func TestHashingBalances(t *testing.T) {
	const n = 100
	ks := keys(n * 1000)
	for _, algorithm := range hashing {
		for name, weight := range map[string]func(int) uint32{
			"equal":   one,
			"unequal": func(i int) uint32 { return uint32(i%2)*2 + 2 },
		} {
			_, members := newEndpoints(n, weight)
			counts, total := map[string]float64{}, 0.0
			for _, home := range homes(newPicker(t, balance.Config{Algorithm: algorithm}, members), members, ks, nil) {
				counts[home]++
			}
			for _, m := range members {
				total += float64(m.Weight)
			}
			most, least := 0.0, 9.0
			for _, m := range members {
				part := counts[m.Key] / float64(len(ks)) / (float64(m.Weight) / total)
				most, least = max(most, part), min(least, part)
			}
			t.Logf("%s, %s: from %.2f to %.2f of a share", algorithm, name, least, most)
			limit := 1.15
			if algorithm == balance.RingHash {
				limit = 1.5
			}
			if most > limit || least < 2-limit {
				t.Errorf("%s, %s: from %.2f to %.2f of a share", algorithm, name, least, most)
			}
		}
	}
}
