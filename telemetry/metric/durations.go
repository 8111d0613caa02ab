package metric

import (
	"slices"
	"sync/atomic"
	"time"
)

// Durations is a histogram of how long something took.
type Durations struct {
	bounds  []time.Duration // constant, ascending
	buckets []atomic.Uint64 // one more than bounds: the last has no upper bound; not cumulative
	nanos   atomic.Int64
}

// Durations returns the histogram with this name and label set, the same one at each
// call, with buckets of the given upper bounds, ascending. The rules for Counter hold
// here too; the name ends in _seconds.
func (r *Registry) Durations(name, help string, bounds []time.Duration, labels ...Label) *Durations {
	s := r.series(name, help, TypeHistogram, labels, nil)
	if h := s.took.Load(); h != nil {
		return h
	}
	s.took.CompareAndSwap(nil, &Durations{bounds: slices.Clone(bounds), buckets: make([]atomic.Uint64, len(bounds)+1)})
	return s.took.Load()
}

// Observe counts one.
func (h *Durations) Observe(d time.Duration) {
	i, _ := slices.BinarySearch(h.bounds, d)
	h.buckets[i].Add(1)
	h.nanos.Add(int64(d))
}

func (h *Durations) gather() *Histogram {
	out := &Histogram{}
	if h == nil { // it is being made
		return out
	}
	for i := range h.buckets {
		out.Count += h.buckets[i].Load()
		if i < len(h.bounds) {
			out.Buckets = append(out.Buckets, Bucket{UpperBound: h.bounds[i].Seconds(), Count: out.Count})
		}
	}
	out.Sum = time.Duration(h.nanos.Load()).Seconds()
	return out
}
