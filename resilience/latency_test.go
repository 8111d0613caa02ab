package resilience

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestLatencyBuckets(t *testing.T) {
	last := -1
	for d := time.Duration(1); d < 200*time.Second; d += d/64 + 1 {
		i := bucketOf(d)
		if i < last || i > last+1 {
			t.Fatalf("%v is in bucket %d, after %d", d, i, last)
		}
		last = i
		if i == latencyBuckets-1 {
			break
		}
		if end := bucketEnd(i); d >= end || d > 1024 && float64(end) > float64(d)*1.126 {
			t.Fatalf("%v is in a bucket that ends at %v", d, end)
		}
	}
	if bucketOf(math.MaxInt64) != latencyBuckets-1 || bucketOf(-1) != 0 {
		t.Error("what is out of range is not in the outermost buckets")
	}
}

// The percentile is never below the one of the sorted list, and at most an eighth
// above it.
func TestPercentile(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, percentile := range []float64{50, 90, 95, 99, 99.9} {
		var l latencies
		var all []time.Duration
		now := noon
		for range 5000 {
			d := time.Duration(random.ExpFloat64() * float64(20*time.Millisecond))
			all = append(all, d)
			l.add(now, d, percentile)
			now = now.Add(time.Millisecond)
		}
		l.turn(now, percentile)
		slices.Sort(all)
		want := all[int(math.Ceil(float64(len(all))*percentile/100))-1]
		if got := l.percentile(); got < want || float64(got) > 1.126*float64(want) {
			t.Errorf("percentile %v is %v, want %v", percentile, got, want)
		}
	}
}

func TestLatenciesAreForgotten(t *testing.T) {
	var l latencies
	now := noon
	feed := func(d time.Duration, calls int) {
		for range calls {
			l.add(now, d, 95)
			now = now.Add(10 * time.Millisecond)
		}
	}
	feed(time.Second, 99)
	if l.percentile() != 0 {
		t.Error("99 calls are enough")
	}
	feed(time.Second, 1000)
	feed(10*time.Millisecond, 6000) // a minute
	if got := l.percentile(); got > 12*time.Millisecond {
		t.Errorf("a minute after it was slow the percentile is %v", got)
	}
}
