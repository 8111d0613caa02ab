package trace

import "math"

// Sampler decides which traces are recorded: the caller's sampled flag decides
// when there is a caller, else a ratio of all trace ids. The zero value samples
// no trace of its own, and still follows the callers.
type Sampler struct {
	// An id is sampled when its low 56 bits are ≥ 2^56 − keep, as in
	// OpenTelemetry's consistent probability sampling, so that every hop with
	// the same ratio takes the same traces.
	keep uint64 // 0 … 2^56
}

const randomBits = 56 // W3C level 2, §3.2.2.3: the right-most 7 bytes are random

// NewSampler samples ratio (0 … 1) of the traces that start here.
func NewSampler(ratio float64) Sampler {
	if !(ratio > 0) { // also NaN
		return Sampler{}
	}
	return Sampler{keep: uint64(math.Round(math.Min(ratio, 1) * (1 << randomBits)))}
}

// Sample tells whether a trace that starts here is recorded.
func (s Sampler) Sample(id TraceID) bool {
	var low uint64
	for _, b := range id[9:] {
		low = low<<8 | uint64(b)
	}
	return low >= 1<<randomBits-s.keep
}

// Start gives the context of this hop's own span: it continues the trace of a
// valid traceparent with a fresh span id, and returns the caller's span as
// parent; else it starts a trace, and parent is zero.
func (s Sampler) Start(traceparent []byte, random func() uint64) (c Context, parent SpanID) {
	if caller, ok := Parse(traceparent); ok {
		return caller.Child(NewSpanID(random)), caller.SpanID
	}
	c = NewRoot(random, false)
	if s.Sample(c.TraceID) {
		c.Flags |= FlagSampled
	}
	return c, SpanID{}
}
