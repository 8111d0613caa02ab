package dns

import (
	"cmp"
	"iter"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/weftmesh/weft"
)

// sample yields the instances in random order, each with a chance to come first
// that is in proportion to its weight, also among those that are left: an answer
// that is cut anywhere is a fair sample. It reorders list.
func sample(list []*weft.Instance) iter.Seq[*weft.Instance] {
	if sameWeight(list) {
		return shuffle(list)
	}
	// Efraimidis and Spirakis: sort by an exponential variate over the weight.
	type drawn struct {
		at float64
		in *weft.Instance
	}
	draws := make([]drawn, len(list))
	for i, in := range list {
		draws[i] = drawn{at: -math.Log(1-rand.Float64()) / float64(max(in.Weight(), 1)), in: in}
	}
	slices.SortFunc(draws, func(a, b drawn) int { return cmp.Compare(a.at, b.at) })
	return func(yield func(*weft.Instance) bool) {
		for _, d := range draws {
			if !yield(d.in) {
				return
			}
		}
	}
}

func sameWeight(list []*weft.Instance) bool {
	return !slices.ContainsFunc(list, func(in *weft.Instance) bool { return in.Weight() != list[0].Weight() })
}

// shuffle draws one after the other, so that few cost little of many.
func shuffle(list []*weft.Instance) iter.Seq[*weft.Instance] {
	return func(yield func(*weft.Instance) bool) {
		for i := range list {
			k := i + rand.IntN(len(list)-i)
			list[i], list[k] = list[k], list[i]
			if !yield(list[i]) {
				return
			}
		}
	}
}
