package balance

import (
	"math"
	"sync/atomic"
	"time"
)

// Target is the state of one target that calls go to. The zero value is ready: idle,
// of unknown latency, and there since always. All methods may be called from any
// goroutine.
type Target struct {
	inFlight atomic.Int64
	// latency has the estimate in ns as a float32 in the upper half, and the tick of
	// its last change in the lower. 0: nothing was observed yet.
	latency atomic.Uint64
	joined  atomic.Int64
}

// Begin notes that a call to the target has started.
func (t *Target) Begin() { t.inFlight.Add(1) }

// End notes that a call that was begun has ended.
func (t *Target) End() { t.inFlight.Add(-1) }

// InFlight is the number of calls that have begun and not ended.
func (t *Target) InFlight() int64 { return t.inFlight.Load() }

// Join notes that the target came, or came back, at now (unix ns): its slow start
// begins. It takes effect with the next Refresh. A target that never joined has
// always been there.
func (t *Target) Join(now int64) { t.joined.Store(now) }

const (
	// tickBits makes ticks of 2^20 ns, about a millisecond. 32 bits of them wrap in
	// 52 days; a target that nobody called for so long is only taken for one that was
	// called lately.
	tickBits = 20
	// decayTicks is the time constant of the estimate: 10 s, in ticks. What was slow
	// ten seconds ago still counts for a third.
	decayTicks = float64(10*time.Second) / (1 << tickBits)
)

// Observe tells how long a call took that ended at now (unix ns, a coarse clock will
// do). The estimate rises at once to a longer latency, and falls slowly to shorter
// ones. Observe also what ran into a timeout, but not what failed quickly: that is
// not speed.
func (t *Target) Observe(latency time.Duration, now int64) {
	sample := float32(max(latency, 1))
	tick := uint32(now >> tickBits)
	for {
		old := t.latency.Load()
		next := sample
		if old != 0 {
			mean, at := unpack(old)
			// Calls end in any order and are told by many goroutines: now may be a
			// little older than the last change.
			elapsed := int32(tick - at)
			if sample < mean {
				if elapsed <= 0 {
					return // no time has passed in which the estimate could have fallen
				}
				next = sample + (mean-sample)*float32(math.Exp(-float64(elapsed)/decayTicks))
			} else if elapsed < 0 {
				tick = at
			}
		}
		if t.latency.CompareAndSwap(old, pack(next, tick)) {
			return
		}
	}
}

// Latency is the estimate at now, 0 while nothing was observed.
func (t *Target) Latency(now int64) time.Duration {
	return time.Duration(t.estimate(uint32(now>>tickBits), max(0, t.InFlight())))
}

// estimate falls further while the target is idle, so that it is tried again some
// day. While calls are in flight it does not: that none of them ends is no good news.
func (t *Target) estimate(tick uint32, inFlight int64) float32 {
	mean, at := unpack(t.latency.Load())
	if elapsed := int32(tick - at); elapsed > 0 && inFlight == 0 {
		return mean * faded(elapsed)
	}
	return mean
}

// unknownLatency is what a target without an estimate counts for while it has calls
// in flight: about 17 minutes, more than any that has one. Until it has answered it
// gets one call, and not all of them.
const unknownLatency = 1e12

// cost of one more call: latency × calls in flight, where inverse makes a call on a
// heavy target count for less.
func (t *Target) cost(tick uint32, inverse float32) float32 {
	inFlight := max(0, t.InFlight())
	latency := t.estimate(tick, inFlight)
	if latency == 0 && inFlight > 0 {
		latency = unknownLatency
	}
	return latency * (1 + float32(inFlight)*inverse)
}

// bitsPerTick is how far a float32, read as a number, falls in a tick when it halves
// every decayTicks·ln 2.
var bitsPerTick = uint64(math.Round(math.Log2E / decayTicks * (1 << 23)))

// faded is about e^-(ticks/decayTicks): right at whole halvings, and between them on
// straight lines, at most 6.2 % too high. That is good enough for comparing guesses,
// and a pick needs two of them: math.Exp would cost it a third of its time.
func faded(ticks int32) float32 {
	const one = 127 << 23 // the bits of 1
	fall := uint64(ticks) * bitsPerTick
	if fall >= one {
		return 0
	}
	return math.Float32frombits(uint32(one - fall))
}

func pack(mean float32, tick uint32) uint64 {
	return uint64(math.Float32bits(mean))<<32 | uint64(tick)
}

func unpack(state uint64) (mean float32, tick uint32) {
	return math.Float32frombits(uint32(state >> 32)), uint32(state)
}
