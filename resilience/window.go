package resilience

import "time"

// WindowCounts are the calls in a window. A call that failed and was slow is
// counted as both.
type WindowCounts struct {
	Calls, Failures, Slow uint32
}

// FailureRate is the percentage of the calls that failed; 0 when there are none.
func (c WindowCounts) FailureRate() float64 { return percent(c.Failures, c.Calls) }

// SlowRate is the percentage of the calls that were slow; 0 when there are none.
func (c WindowCounts) SlowRate() float64 { return percent(c.Slow, c.Calls) }

// percent divides last, so that 333 of 1000 is the float64 that 33.3 is written for
// and reaches a threshold of 33.3.
func percent(part, whole uint32) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}

func (c *WindowCounts) add(o callKind) {
	c.Calls++
	c.Failures += uint32(o & failed)
	c.Slow += uint32(o >> 1)
}

func (c *WindowCounts) subtract(d WindowCounts) {
	c.Calls -= d.Calls
	c.Failures -= d.Failures
	c.Slow -= d.Slow
}

// callKind is what a window keeps of a call: two bits.
type callKind uint8

const (
	failed callKind = 1 << iota
	slow
)

// A time window has a bucket a second, like Resilience4j's, but not fewer than ten,
// so that a short window slides too, and not more than sixty, so that an hour costs
// no more than a minute.
const (
	minBuckets = 10
	maxBuckets = 60
)

// window is a sliding window over calls, of either type. It holds calls for at most
// its duration: the oldest bucket leaves whole when a new one begins. Not safe for
// concurrent use.
type window struct {
	ring []callKind // of a count window: one a call, used from next round to next-1
	next int

	buckets []WindowCounts // of a time window
	current int            // the bucket that calls are counted in
	begun   time.Time      // when it began; the first call begins the first one
	width   time.Duration  // of a bucket
	turned  bool           // old calls left since this was last set to false: rates may have grown

	counts WindowCounts // of all that is in the window
}

func newWindow(s WindowSpec) window {
	if s.Type != TimeWindow {
		return window{ring: make([]callKind, s.Size)}
	}
	n := min(max(int((s.Duration+time.Second-1)/time.Second), minBuckets), maxBuckets)
	return window{buckets: make([]WindowCounts, n), width: s.Duration / time.Duration(n)}
}

func (w *window) reset() {
	clear(w.buckets) // a ring is overwritten before it is read
	w.next, w.current, w.begun, w.counts = 0, 0, time.Time{}, WindowCounts{}
}

// full reports whether a count window is.
func (w *window) full() bool { return int(w.counts.Calls) == len(w.ring) }

// add counts a call that ended at now.
func (w *window) add(now time.Time, kind callKind) {
	if w.ring == nil {
		w.turn(now)
		w.buckets[w.current].add(kind)
		w.counts.add(kind)
		return
	}
	if w.full() {
		old := w.ring[w.next]
		w.counts.Calls--
		w.counts.Failures -= uint32(old & failed)
		w.counts.Slow -= uint32(old >> 1)
	}
	w.ring[w.next] = kind
	w.counts.add(kind)
	if w.next++; w.next == len(w.ring) {
		w.next = 0
	}
}

// turn makes the bucket current that now is in, and empties those between. A time
// before the current bucket, from a caller that looked at its clock earlier than
// another, is counted in the current one.
func (w *window) turn(now time.Time) {
	passed := now.Sub(w.begun)
	if passed < w.width {
		return
	}
	w.turned = true
	if w.begun.IsZero() {
		w.begun = now
		return
	}
	steps := int64(passed / w.width)
	w.begun = w.begun.Add(time.Duration(steps) * w.width)
	for range min(steps, int64(len(w.buckets))) {
		if w.current++; w.current == len(w.buckets) {
			w.current = 0
		}
		w.counts.subtract(w.buckets[w.current])
		w.buckets[w.current] = WindowCounts{}
	}
}

// at returns what is in the window at now.
func (w *window) at(now time.Time) WindowCounts {
	if w.ring == nil && w.counts.Calls > 0 {
		w.turn(now)
	}
	return w.counts
}
