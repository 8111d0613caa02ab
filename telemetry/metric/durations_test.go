package metric

import (
	"fmt"
	"testing"
	"time"
)

func TestDurations(t *testing.T) {
	r := New(0)
	bounds := []time.Duration{time.Millisecond, time.Second}
	h := r.Durations("weft_push_duration_seconds", "Pushes.", bounds, Label{"type", "a"})
	if h != r.Durations("weft_push_duration_seconds", "Pushes.", bounds, Label{"type", "a"}) {
		t.Error("another histogram for the same labels")
	}
	for _, d := range []time.Duration{0, time.Millisecond, time.Millisecond + 1, time.Second, time.Minute} {
		h.Observe(d)
	}
	f := familyOf(t, r, "weft_push_duration_seconds")
	got := fmt.Sprint(f.Type == TypeHistogram, f.Samples[0].Labels, f.Samples[0].Histogram.Buckets, f.Samples[0].Histogram.Count)
	if want := "true [{type a}] [{0.001 2} {1 4}] 5"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if sum := f.Samples[0].Histogram.Sum; sum < 61 || sum > 61.1 {
		t.Errorf("sum %v", sum)
	}
	if n := testing.AllocsPerRun(100, func() { h.Observe(time.Second) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	defer func() {
		if recover() == nil {
			t.Error("a histogram without its unit is taken")
		}
	}()
	r.Durations("weft_push", "Pushes.", bounds)
}
