package balance

import (
	"math"
	"testing"
	"time"
)

// moment is some time, in unix ns, and momentTick the tick that it is in.
var (
	moment     = int64(1_700_000_000 * time.Second)
	momentTick = uint32(moment >> tickBits)
)

func near(got, want time.Duration, part float64) bool {
	return math.Abs(float64(got-want)) <= part*float64(want)
}

func TestLatencyRisesAtOnceAndFallsSlowly(t *testing.T) {
	var target Target
	if got := target.Latency(moment); got != 0 {
		t.Errorf("of nothing observed: %v", got)
	}
	target.Begin() // busy, so that reading does not let it fall
	now := moment
	target.Observe(10*time.Millisecond, now)
	if got := target.Latency(now); !near(got, 10*time.Millisecond, 1e-6) {
		t.Errorf("the first observation is the estimate: %v", got)
	}
	target.Observe(time.Second, now)
	if got := target.Latency(now); !near(got, time.Second, 1e-6) {
		t.Errorf("a peak counts at once: %v", got)
	}
	target.Observe(10*time.Millisecond, now)
	if got := target.Latency(now); !near(got, time.Second, 1e-6) {
		t.Errorf("no time has passed, the peak stands: %v", got)
	}
	// 1,000 calls a second of 10 ms for 10 s: a factor e less of the difference.
	for range 10_000 {
		now += int64(time.Millisecond)
		target.Observe(10*time.Millisecond, now)
	}
	want := 10*time.Millisecond + time.Duration(math.Round(990e6/math.E))
	if got := target.Latency(now); !near(got, want, 0.01) {
		t.Errorf("after 10 s: %v, want %v", got, want)
	}
	// As many seconds without a call, and then one: the same.
	now += int64(10 * time.Second)
	target.Observe(10*time.Millisecond, now)
	want = 10*time.Millisecond + time.Duration(float64(want-10*time.Millisecond)/math.E)
	if got := target.Latency(now); !near(got, want, 0.01) {
		t.Errorf("after 20 s: %v, want %v", got, want)
	}
}

func TestIdleLatencyFades(t *testing.T) {
	var target Target
	target.Observe(time.Second, moment)
	last := time.Hour
	for s := range 200 {
		got := target.Latency(moment + int64(s)*int64(time.Second))
		want := time.Duration(float64(time.Second) * math.Exp(-float64(s)/10))
		// 6.2 % for the straight lines of faded.
		if got > time.Duration(1.062*float64(want))+1 || got < want*999/1000 {
			t.Errorf("after %d s: %v, want %v", s, got, want)
		}
		if got > last {
			t.Errorf("after %d s it rose to %v", s, got)
		}
		last = got
	}
	if got := target.Latency(moment + int64(20*24*time.Hour)); got != 0 {
		t.Errorf("after three weeks: %v", got)
	}
	target.Begin()
	if got := target.Latency(moment + int64(time.Minute)); !near(got, time.Second, 1e-6) {
		t.Errorf("with a call in flight: %v, want no change", got)
	}
}

// Calls end on many goroutines, and a clock is read before its value is told.
func TestObservationsOfThePast(t *testing.T) {
	var target Target
	target.Observe(100*time.Millisecond, moment)
	target.Observe(50*time.Millisecond, moment-int64(time.Second))
	target.Begin()
	if got := target.Latency(moment); !near(got, 100*time.Millisecond, 1e-6) {
		t.Errorf("a lower one of the past changes nothing: %v", got)
	}
	target.Observe(200*time.Millisecond, moment-int64(time.Second))
	if _, at := unpack(target.latency.Load()); at != momentTick {
		t.Error("a peak of the past set the time back")
	}
	target.Observe(-time.Second, moment+int64(time.Hour))
	if got := target.Latency(moment + int64(time.Hour)); got < 0 || got > time.Millisecond {
		t.Errorf("a negative latency is a short one: %v", got)
	}
}

func TestCostOfTheUnknown(t *testing.T) {
	var unknown, slow Target
	slow.Observe(time.Minute, moment)
	if unknown.cost(momentTick, 1) >= slow.cost(momentTick, 1) {
		t.Error("an idle target that nobody knows should be tried")
	}
	unknown.Begin()
	if unknown.cost(momentTick, 1) <= slow.cost(momentTick, 1) {
		t.Error("a target that has not answered yet should not get a second call")
	}
}

func TestCostCountsCallsByWeight(t *testing.T) {
	var target Target
	target.Observe(time.Millisecond, moment)
	idle := target.cost(momentTick, 0.5)
	for range 4 {
		target.Begin()
	}
	if got := target.cost(momentTick, 0.5); got != 3*idle {
		t.Errorf("four calls on a target of twice the mean weight cost %v, want %v", got, 3*idle)
	}
	for range 6 {
		target.End()
	}
	if got := target.cost(momentTick, 0.5); got != idle {
		t.Errorf("more ends than begins cost %v, want %v", got, idle)
	}
}
