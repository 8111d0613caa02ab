package balance

import (
	"math"
	"math/bits"
	"slices"
)

// circle is a consistent hash: a place for every key, and an order in which to go on
// from there. It is Maglev's table of entries, or RingHash's ring of points.
type circle struct {
	table []uint32 // a member for each entry

	points []point  // ascending
	guide  []uint32 // the first point at or after the beginning of each of 2^k equal arcs
	shift  int      // 32 - k
}

// point on a ring. Place and owner lie side by side, because of a large ring neither
// is in a near cache.
type point struct{ at, owner uint32 }

// len is the number of places.
func (c *circle) len() int {
	if c.table != nil {
		return len(c.table)
	}
	return len(c.points)
}

// owner is the member at a place.
func (c *circle) owner(place int) uint32 {
	if c.table != nil {
		return c.table[place]
	}
	return c.points[place].owner
}

// start is the place at which the search for a key's member begins.
func (c *circle) start(hash uint64) int {
	if c.table != nil {
		return int(scale(hash, uint64(len(c.table))))
	}
	at := uint32(hash >> 32)
	j := int(c.guide[at>>c.shift])
	for j < len(c.points) && c.points[j].at < at {
		j++
	}
	if j == len(c.points) {
		return 0
	}
	return j
}

// hashed is a member as circles see it. Lists of them are sorted by key, so that a
// circle depends on who is in it and not on the order in which they came.
type hashed struct {
	member uint32
	weight uint32
	hash   uint64 // of the key
}

const (
	minRing        = 1024
	maxRing        = 8 << 20
	pointsEach     = 128 // a member's share strays by about 1/√128
	maglevTable    = 65537
	maxMaglevTable = 5_000_011
)

// newRing places points of each member on a ring, by weight. size is the least
// number of points, 0 is minRing, as far as roundings allow.
//
// A point depends on its member's key and number alone, and a member's number of
// points on its own weight and on what weight is usual, so that who comes or goes
// moves no keys between others. Only when so few members are left that the ring would
// be too small do the others get more points then, and about as many keys again move.
func newRing(members []hashed, size uint32) *circle {
	if size == 0 {
		size = minRing
	}
	unit, total := pointsEach/usualWeight(members), 0.0
	for _, m := range members {
		total += float64(m.weight)
	}
	unit = min(max(unit, float64(size)/total), maxRing/total)
	n := 0
	counts := make([]int, len(members))
	for i, m := range members {
		counts[i] = max(1, int(float64(m.weight)*unit+0.5))
		n += counts[i]
	}

	k := bits.Len(uint(n - 1)) // arcs with one point or fewer each
	c := &circle{points: make([]point, n), guide: make([]uint32, 1<<k), shift: 32 - k}
	// Points are uniform: sorting them into the arcs by counting, and then within an
	// arc by insertion, takes linear time.
	each := func(do func(i int, at uint32)) {
		for i, m := range members {
			for p := range counts[i] {
				do(i, uint32(mix(m.hash+uint64(p)*golden)>>32))
			}
		}
	}
	each(func(_ int, at uint32) { c.guide[at>>c.shift]++ })
	sum := uint32(0)
	for arc, count := range c.guide {
		sum += count
		c.guide[arc] = sum
	}
	// Filling arcs from their ends leaves each guide at the arc's beginning.
	each(func(i int, at uint32) {
		arc := at >> c.shift
		j := c.guide[arc] - 1
		c.guide[arc] = j
		c.points[j] = point{at, uint32(i)}
	})
	for i := 1; i < n; i++ {
		for j := i; j > 0 && c.points[j].before(c.points[j-1]); j-- {
			c.points[j-1], c.points[j] = c.points[j], c.points[j-1]
		}
	}
	for j := range c.points {
		c.points[j].owner = members[c.points[j].owner].member
	}
	return c
}

// usualWeight is the median, which stays the same when one of many goes; unless a few
// outweigh all others, which would get them more points than there is memory for.
func usualWeight(members []hashed) float64 {
	weights, total := make([]uint32, len(members)), 0.0
	for i, m := range members {
		weights[i], total = m.weight, total+float64(m.weight)
	}
	slices.Sort(weights)
	return max(float64(weights[len(weights)/2]), total/float64(len(weights))/8)
}

// before orders points; of those at one place the one of lower rank comes first.
func (p point) before(q point) bool {
	return p.at < q.at || p.at == q.at && p.owner < q.owner
}

// newMaglev fills a table as the Maglev paper does (Eisenbud et al., NSDI 2016,
// section 3.4): in rounds, in which each member takes the next free entry in an order
// of its own. A member of less weight than the heaviest sits out rounds; everyone has
// its turn in the first. size must be a prime.
func newMaglev(members []hashed, size uint32) *circle {
	const free = math.MaxUint32
	table := make([]uint32, size)
	for i := range table {
		table[i] = free
	}
	type walk struct {
		at, skip uint32
		turns    uint64
	}
	walks := make([]walk, len(members))
	heaviest := uint64(0)
	// The heaviest takes an entry in every round, so that there are at most size of them.
	rounds := newRounds(int(size), len(members))
	for i, m := range members {
		walks[i] = walk{at: uint32(scale(m.hash, uint64(size))), skip: 1 + uint32(scale(mix(m.hash), uint64(size-1)))}
		heaviest = max(heaviest, uint64(m.weight))
		rounds.add(0, int32(i))
	}
	filled := uint32(0)
	for round := range rounds.queues {
		for i := rounds.queues[round].first; i >= 0; {
			w, m := &walks[i], &members[i]
			for table[w.at] != free {
				if w.at += w.skip; w.at >= size {
					w.at -= size
				}
			}
			table[w.at] = m.member
			if filled++; filled == size {
				return &circle{table: table}
			}
			w.turns++
			following := rounds.next[i]
			rounds.add(w.turns*heaviest/uint64(m.weight), i)
			i = following
		}
	}
	return &circle{table: table}
}

// rounds has a queue of members for each round; a member stands in one at a time.
type rounds struct {
	queues []struct{ first, last int32 } // first is -1 where nobody stands
	next   []int32                       // by member
}

func newRounds(n, members int) *rounds {
	r := &rounds{queues: make([]struct{ first, last int32 }, n), next: make([]int32, members)}
	for i := range r.queues {
		r.queues[i].first = -1
	}
	return r
}

// add puts a member last in a round, if there is such a round.
func (r *rounds) add(round uint64, member int32) {
	if round >= uint64(len(r.queues)) {
		return
	}
	q := &r.queues[round]
	r.next[member] = -1
	if q.first < 0 {
		q.first = member
	} else {
		r.next[q.last] = member
	}
	q.last = member
}
