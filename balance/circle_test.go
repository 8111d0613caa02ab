package balance

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func someHashed(n int, weight func(i int) uint32) []hashed {
	out := make([]hashed, n)
	for i := range out {
		out[i] = hashed{member: uint32(i), weight: weight(i), hash: HashString(fmt.Sprintf("10.1.%d.%d:80", i/250, i%250))}
	}
	return out
}

func even(int) uint32        { return 1 }
func spreadOut(i int) uint32 { return uint32(i%5)*3 + 1 }

// The obvious ring: all points in a list, and the least one that is not before the
// hash, looked for from end to end.
func TestRingIsThatOfALinearSearch(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for _, n := range []int{1, 2, 3, 17, 100} {
		members := someHashed(n, spreadOut)
		c := newRing(members, 0)
		var points []point
		for i, m := range members {
			count := 0
			for _, p := range c.points {
				if p.owner == uint32(i) {
					count++
				}
			}
			for p := range count {
				points = append(points, point{uint32(mix(m.hash+uint64(p)*golden) >> 32), m.member})
			}
		}
		for k := range 2000 {
			hash := r.Uint64()
			switch k {
			case 0:
				hash = 0
			case 1:
				hash = math.MaxUint64
			}
			at := uint32(hash >> 32)
			best := -1
			for i, p := range points {
				if p.at >= at && (best < 0 || p.at < points[best].at) {
					best = i
				}
			}
			if best < 0 { // past the last point: around to the first
				for i, p := range points {
					if best < 0 || p.at < points[best].at {
						best = i
					}
				}
			}
			if got := c.owner(c.start(hash)); got != points[best].owner {
				t.Fatalf("%d members: %#x belongs to %d, want %d", n, hash, got, points[best].owner)
			}
		}
	}
}

func TestRingHasPointsByWeight(t *testing.T) {
	for _, tc := range []struct {
		n      int
		size   uint32
		weight func(int) uint32
		first  int // points of the first member, of weight 1
		all    int
	}{
		{1, 0, even, 1024, 1024},
		{3, 0, even, 341, 1024},
		{8, 0, even, 128, 1024},
		{9, 0, even, 128, 9 * 128},
		{100, 0, even, 128, 12_800},
		{100, 20_000, even, 200, 20_000},
		{10, 1, even, 128, 1280},
		// weights 1, 4, 7, 10, 13: 7 is usual
		{100, 0, spreadOut, 18, 12_800},
		{100, 35_000, spreadOut, 50, 35_000},
	} {
		c := newRing(someHashed(tc.n, tc.weight), tc.size)
		counts := make([]int, tc.n)
		for _, p := range c.points {
			counts[p.owner]++
		}
		// Each member's points are rounded.
		if n := c.len(); n < tc.all-tc.n/2 || n > tc.all+tc.n/2 {
			t.Errorf("%d members, size %d: %d points, want %d", tc.n, tc.size, n, tc.all)
		}
		for i, count := range counts {
			want := float64(tc.first) * float64(tc.weight(i))
			if math.Abs(float64(count)-want) > 0.5*float64(tc.weight(i))+0.5 {
				t.Errorf("%d members, size %d: %d points for weight %d, want %v", tc.n, tc.size, count, tc.weight(i), want)
			}
		}
		if !slices.IsSortedFunc(c.points, func(a, b point) int { return cmp.Compare(a.at, b.at) }) {
			t.Errorf("%d members: the points are not in order", tc.n)
		}
	}
}

func TestRingIsBounded(t *testing.T) {
	heavy := func(i int) uint32 { return []uint32{1, 1, math.MaxUint32}[i] }
	c := newRing(someHashed(3, heavy), 0)
	if n := c.len(); n > 8*3*pointsEach+3 {
		t.Errorf("%d points", n)
	}
	for i := range 3 {
		if !slices.ContainsFunc(c.points, func(p point) bool { return p.owner == uint32(i) }) {
			t.Errorf("member %d has no point", i)
		}
	}
}

// obviousMaglev is the paper's pseudocode, with whole permutations, and one list of
// the turns to come, in the order in which they were asked for.
func obviousMaglev(members []hashed, size uint32) []uint32 {
	type turn struct {
		round uint64
		i     int
	}
	var turns []turn
	heaviest := uint64(0)
	permutation := make([][]uint32, len(members))
	for i, m := range members {
		turns = append(turns, turn{0, i})
		heaviest = max(heaviest, uint64(m.weight))
		offset, skip := scale(m.hash, uint64(size)), 1+scale(mix(m.hash), uint64(size-1))
		for j := range uint64(size) {
			permutation[i] = append(permutation[i], uint32((offset+j*skip)%uint64(size)))
		}
	}
	entry := make([]uint32, size)
	taken := make([]bool, size)
	taking := make([]uint64, len(members))
	for filled, round := uint32(0), uint64(0); ; round++ {
		for k := 0; k < len(turns); k++ {
			if turns[k].round != round {
				continue
			}
			i := turns[k].i
			for _, c := range permutation[i] {
				if !taken[c] {
					entry[c], taken[c] = members[i].member, true
					break
				}
			}
			if filled++; filled == size {
				return entry
			}
			taking[i]++
			turns = append(turns, turn{taking[i] * heaviest / uint64(members[i].weight), i})
		}
	}
}

func TestMaglevIsThePapersTable(t *testing.T) {
	for _, tc := range []struct {
		n      int
		size   uint32
		weight func(int) uint32
	}{
		{1, 7, even}, {2, 2, even}, {3, 7, even}, {5, 101, even}, {20, 1009, even}, {9, 7, even},
		{3, 101, spreadOut}, {7, 53, spreadOut}, {4, 53, func(i int) uint32 { return []uint32{1, math.MaxUint32, 5, math.MaxUint32}[i] }},
	} {
		members := someHashed(tc.n, tc.weight)
		got, want := newMaglev(members, tc.size).table, obviousMaglev(members, tc.size)
		if !slices.Equal(got, want) {
			t.Errorf("%d members, %d entries:\n%v, want\n%v", tc.n, tc.size, got, want)
		}
	}
}

// In each round a member takes one entry at most, and by weight: entries deviate from
// the exact share by the one of the first round, and by what the first entries of all
// take from the others.
func TestMaglevHasEntriesByWeight(t *testing.T) {
	for _, n := range []int{1, 3, 10, 1000} {
		for name, weight := range map[string]func(int) uint32{"equal": even, "unequal": spreadOut} {
			members := someHashed(n, weight)
			total := 0.0
			for _, m := range members {
				total += float64(m.weight)
			}
			counts := make([]float64, n)
			for _, owner := range newMaglev(members, maglevTable).table {
				counts[owner]++
			}
			for i, m := range members {
				part := float64(m.weight) / total
				if off := counts[i] - maglevTable*part; off > 1+1e-9 || off < -1-float64(n)*part {
					t.Errorf("%d members, %s: %v entries for %v of the weight, want %v", n, name, counts[i], part, maglevTable*part)
				}
			}
		}
	}
}
