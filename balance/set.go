package balance

import (
	"math/bits"
	"sort"
	"sync/atomic"
)

// Set is an immutable list of targets with weights.
type Set struct {
	algorithm Algorithm
	targets   []*Target
	weights   []uint32
	ends      []uint64 // running sums of weights; nil when all weights are equal
	total     uint64
	turn      atomic.Uint64
}

// NewSet builds a set. weights may be nil (all equal); a weight of 0 counts as 1.
func NewSet(algorithm Algorithm, targets []*Target, weights []uint32) *Set {
	s := &Set{algorithm: algorithm, targets: targets, weights: weights}
	equal := true
	for i := range weights {
		equal = equal && weights[i] == weights[0]
	}
	if weights == nil || equal {
		s.weights, s.total = nil, uint64(len(targets))
		return s
	}
	for _, w := range weights {
		s.total += uint64(max(w, 1))
		s.ends = append(s.ends, s.total)
	}
	return s
}

// Len is the number of targets.
func (s *Set) Len() int { return len(s.targets) }

// Pick returns the index of a target for which usable is true, or -1 when there
// is none. random must be uniform over 64 bits.
func (s *Set) Pick(random uint64, usable func(int) bool) int {
	n := len(s.targets)
	if n == 0 {
		return -1
	}
	var first int
	switch s.algorithm {
	case RoundRobin:
		first = s.at(s.turn.Add(1) % s.total)
	case Random:
		first = s.draw(random)
	default:
		first = s.leastOfTwo(random, usable)
	}
	if usable(first) {
		return first
	}
	// Walk on from a random place, so that an unusable target's share is spread
	// over all others and does not fall on its neighbour.
	start := int(scale(bits.RotateLeft64(random*0x9e3779b97f4a7c15, 31), uint64(n)))
	for k := range n {
		if i := (start + k) % n; usable(i) {
			return i
		}
	}
	return -1
}

// leastOfTwo draws two targets and returns the one with fewer calls in flight
// per weight ("the power of two choices").
func (s *Set) leastOfTwo(random uint64, usable func(int) bool) int {
	a := s.draw(random)
	b := s.draw(bits.RotateLeft64(random, 32) * 0x9e3779b97f4a7c15)
	if a == b && len(s.targets) > 1 {
		b = (a + 1) % len(s.targets)
	}
	switch {
	case !usable(a):
		return b
	case !usable(b):
		return a
	case s.load(b) < s.load(a):
		return b
	}
	return a
}

// load compares across weights by cross-free scaling: calls in flight, counting
// this one, in 1/65536 of a weight.
func (s *Set) load(i int) int64 {
	l := (s.targets[i].InFlight() + 1) << 16
	if s.weights == nil {
		return l
	}
	return l / int64(max(s.weights[i], 1))
}

// draw chooses an index with probability weight/total.
func (s *Set) draw(random uint64) int { return s.at(scale(random, s.total)) }

func (s *Set) at(point uint64) int {
	if s.ends == nil {
		return int(point)
	}
	return sort.Search(len(s.ends), func(i int) bool { return point < s.ends[i] })
}
