package dns

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
)

// sampler draws the records of an answer, each once, in random order: each has a
// chance to come next that is in proportion to its weight among those that are
// left. An answer that is cut anywhere is a fair sample. Its memory is used again.
type sampler struct {
	rand *rand.Rand

	set   *packed
	mode  sampling
	order []uint32 // of shuffling and sorted: what is drawn next, from at on
	at    int
	left  uint64 // of few: the weight of what is not drawn yet
	drawn []bool // of many
	tries int    // of many: how often it may still draw what it has drawn already
	keys  []drawKey
}

type sampling uint8

const (
	shuffling sampling = iota // all weigh the same
	few                       // each draw looks at all that are left
	many                      // draws with the sums of all weights, until it meets too many again
	sorted                    // drawn all at once
)

// fewRecords are so few that looking at each costs less than anything clever.
const fewRecords = 32

type drawKey struct {
	at     float64
	record uint32
}

func newSampler() *sampler {
	return &sampler{rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
}

// begin prepares to draw from set.
func (d *sampler) begin(set *packed) {
	n := len(set.records)
	d.set, d.at, d.mode = set, 0, shuffling
	if set.sums == nil || n <= fewRecords {
		d.order = grown(d.order, n)
		for i := range d.order {
			d.order[i] = uint32(i)
		}
		if set.sums != nil {
			d.mode, d.left = few, set.sums[n-1]
		}
		return
	}
	d.mode, d.tries = many, 2*n
	d.drawn = grown(d.drawn, n)
	clear(d.drawn)
}

func grown[T any](b []T, n int) []T { return slices.Grow(b[:0], n)[:n] }

// next draws one.
func (d *sampler) next() (record int, ok bool) {
	n := len(d.set.records)
	if d.at >= n {
		return 0, false
	}
	switch d.mode {
	case shuffling:
		k := d.at + d.rand.IntN(n-d.at)
		d.order[d.at], d.order[k] = d.order[k], d.order[d.at]
	case few:
		d.drawFew()
	case many:
		if i, ok := d.drawMany(); ok {
			d.at++
			return i, true
		}
		d.sort()
	}
	d.at++
	return int(d.order[d.at-1]), true
}

func (d *sampler) drawFew() {
	x := d.rand.Uint64N(d.left)
	for k := d.at; ; k++ {
		w := uint64(d.set.records[d.order[k]].weight)
		if x < w {
			d.left -= w
			d.order[d.at], d.order[k] = d.order[k], d.order[d.at]
			return
		}
		x -= w
	}
}

// drawMany draws among all until it finds what it has not drawn yet: so that is in
// proportion to the weights of what is left. It gives up when that takes too long.
func (d *sampler) drawMany() (int, bool) {
	sums := d.set.sums
	for ; d.tries > 0; d.tries-- {
		x := d.rand.Uint64N(sums[len(sums)-1])
		i := sort.Search(len(sums), func(i int) bool { return sums[i] > x })
		if !d.drawn[i] {
			d.drawn[i] = true
			return i, true
		}
	}
	return 0, false
}

// sort draws all that are left (Efraimidis and Spirakis: in the order of an
// exponential variate over the weight).
func (d *sampler) sort() {
	d.keys = d.keys[:0]
	for i := range d.set.records {
		if !d.drawn[i] {
			d.keys = append(d.keys, drawKey{d.rand.ExpFloat64() / float64(d.set.records[i].weight), uint32(i)})
		}
	}
	slices.SortFunc(d.keys, func(a, b drawKey) int { return cmp.Compare(a.at, b.at) })
	n := len(d.set.records)
	d.order = grown(d.order, n)
	for i, k := range d.keys {
		d.order[n-len(d.keys)+i] = k.record
	}
	d.mode = sorted
}

// weightOf is a weight that can be drawn by.
func weightOf(w uint32) uint32 { return min(max(w, 1), math.MaxUint32/2) }
