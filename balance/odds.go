package balance

import "math/bits"

// odds draws one of n by weight, in constant time on average.
type odds struct {
	n int
	// nil when all weights are equal
	ends    []uint64  // where each one's part of the 64-bit numbers ends
	guide   []uint32  // who is first in each of guideEach·n equal parts
	inverse []float32 // mean weight / weight
}

// guideEach parts of the guide a member: three of four draws hit the right member at
// once, and a branch that is predicted costs less than memory for more.
const guideEach = 4

// newOdds of weights, which are positive.
func newOdds(weights []float64) odds {
	o := odds{n: len(weights)}
	total, equal := 0.0, true
	for _, w := range weights {
		total += w
		equal = equal && w == weights[0]
	}
	if equal {
		return o
	}
	o.ends = make([]uint64, o.n)
	o.guide = make([]uint32, guideEach*o.n)
	o.inverse = make([]float32, o.n)
	mean, sum := total/float64(o.n), 0.0
	for i, w := range weights {
		sum += w
		o.inverse[i] = float32(mean / w)
		o.ends[i] = ^uint64(0)
		if f := sum / total * (1 << 63); f < 1<<63 {
			o.ends[i] = uint64(f) << 1
		}
	}
	j := 0
	for part := range o.guide {
		begin, _ := bits.Div64(uint64(part), 0, uint64(len(o.guide)))
		for j < o.n-1 && o.ends[j] <= begin {
			j++
		}
		o.guide[part] = uint32(j)
	}
	return o
}

// at maps a uniform number to one of 0…n-1: the parts lie one after another.
func (o *odds) at(x uint64) int {
	if o.ends == nil {
		return int(scale(x, uint64(o.n)))
	}
	i := int(o.guide[scale(x, uint64(len(o.guide)))])
	for i < o.n-1 && o.ends[i] <= x {
		i++
	}
	return i
}

// per is the mean weight through the weight of one.
func (o *odds) per(i int) float32 {
	if o.inverse == nil {
		return 1
	}
	return o.inverse[i]
}

// maxCycle bounds the memory of a round: 32 KiB. It has room for a thousand members
// of mean weight 8.
const maxCycle = 8192

// newCycle is one round of a smooth round robin, in which everyone comes as often as
// its weight says, at even distances. It is nil when weights are no whole numbers,
// or a round would be longer than maxCycle.
func newCycle(weights []float64) []uint32 {
	divisor, total := uint64(0), 0.0
	for _, w := range weights {
		if w != float64(uint64(w)) {
			return nil
		}
		divisor, total = gcd(divisor, uint64(w)), total+w
	}
	if divisor == 0 || total > maxCycle*float64(divisor) {
		return nil
	}
	// The k-th turn of weight w in a round of n falls on (k+1/2)·n/w. Turns are sorted
	// by counting, those of one place by member.
	n := uint64(total) / divisor
	each := func(do func(i int, place uint64)) {
		for i, weight := range weights {
			w := uint64(weight) / divisor
			for k := range w {
				do(i, (2*k+1)*n/(2*w))
			}
		}
	}
	next := make([]uint32, n+1)
	each(func(_ int, place uint64) { next[place+1]++ })
	for i := range n {
		next[i+1] += next[i]
	}
	cycle := make([]uint32, n)
	each(func(i int, place uint64) {
		cycle[next[place]] = uint32(i)
		next[place]++
	})
	return cycle
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
