package resilience

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// latencies estimates a percentile of the latencies of the last half minute or so.
// It is a histogram with eight buckets to a power of two, from 1 µs to 2 minutes:
// what it tells is at most an eighth too much.
type latencies struct {
	buckets [latencyBuckets]atomic.Uint32
	value   atomic.Int64  // the percentile; 0 until enough is known
	seen    atomic.Uint32 // since value was computed
	due     atomic.Int64  // when to compute it again, unix ns

	mu    sync.Mutex // of turn
	decay time.Time  // when all counts are halved
}

const (
	latencyBuckets = 27*8 + 1
	latencyEnough  = 100 // calls
	latencyEvery   = 100 // calls, or each second
	latencyHalf    = 10 * time.Second
)

// bucketOf is 0 up to 1 µs (1024 ns), and then grows by 8 where the latency doubles.
func bucketOf(d time.Duration) int {
	n := uint64(max(d, 1<<10))
	log := bits.Len64(n) - 1
	return min((log-10)*8+int(n>>(log-3)&7), latencyBuckets-1)
}

// bucketEnd is what bucketOf(d) is an upper bound of.
func bucketEnd(i int) time.Duration {
	return time.Duration((8 + uint64(i%8) + 1) << (i / 8) << 7)
}

// add a latency. percentile is that of the policy's spec, now.
func (l *latencies) add(now time.Time, d time.Duration, percentile float64) {
	l.buckets[bucketOf(d)].Add(1)
	if l.seen.Add(1) >= latencyEvery || now.UnixNano() >= l.due.Load() {
		l.turn(now, percentile)
	}
}

// turn computes the percentile. Who finds another one at it goes on.
func (l *latencies) turn(now time.Time, percentile float64) {
	if !l.mu.TryLock() {
		return
	}
	defer l.mu.Unlock()
	l.seen.Store(0)
	l.due.Store(now.Add(time.Second).UnixNano())
	if l.decay.IsZero() {
		l.decay = now.Add(latencyHalf)
	}
	halve := !now.Before(l.decay)
	if halve {
		l.decay = now.Add(latencyHalf)
	}
	var counts [latencyBuckets]uint32
	total := 0
	for i := range l.buckets {
		counts[i] = l.buckets[i].Load()
		total += int(counts[i])
		if halve && counts[i] > 0 {
			l.buckets[i].Add(-((counts[i] + 1) / 2))
		}
	}
	if total < latencyEnough {
		return // what was known stays known
	}
	l.value.Store(int64(percentileOf(counts[:], total, percentile)))
}

func percentileOf(counts []uint32, total int, percentile float64) time.Duration {
	rank := float64(total) * percentile / 100
	below := 0
	for i, n := range counts {
		if below += int(n); float64(below) >= rank {
			return bucketEnd(i)
		}
	}
	return bucketEnd(len(counts) - 1)
}

// percentile is 0 until enough calls were measured.
func (l *latencies) percentile() time.Duration { return time.Duration(l.value.Load()) }
