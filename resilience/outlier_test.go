package resilience

import (
	"testing"
	"time"
)

var istio = OutlierPolicy{Consecutive5xx: 5, Interval: 30 * time.Second,
	BaseEjection: 30 * time.Second, MaxEjection: 300 * time.Second, MaxEjectionPercent: 50}

func TestFiveInARowEject(t *testing.T) {
	var o Outlier
	for i := range 4 {
		if o.Failure(&istio, FaultAnswer) {
			t.Fatalf("due after %d failures", i+1)
		}
	}
	o.Success()
	for i := range 5 {
		if due := o.Failure(&istio, FaultAnswer); due != (i == 4) {
			t.Fatalf("after a success, failure %d: due %v", i+1, due)
		}
	}
	if out := o.Eject(&istio, noon, 0, 2); out != 30*time.Second {
		t.Fatalf("ejected for %v, want 30s", out)
	}
	if !o.Ejected(noon.Add(29*time.Second)) || o.Ejected(noon.Add(30*time.Second)) {
		t.Error("want it out for exactly 30 s")
	}
}

func TestNeverMoreThanTheShareAllowed(t *testing.T) {
	for _, tc := range []struct {
		percent        uint32
		ejected, hosts int
		want           bool
	}{
		{50, 0, 2, true}, {50, 1, 2, false}, {50, 0, 1, false},
		{10, 0, 9, false}, {10, 0, 10, true}, {100, 4, 5, true}, {100, 0, 0, false},
	} {
		p := istio
		p.MaxEjectionPercent = tc.percent
		var o Outlier
		if got := o.Eject(&p, noon, tc.ejected, tc.hosts) > 0; got != tc.want {
			t.Errorf("%d %%, %d of %d out: ejects %v, want %v", tc.percent, tc.ejected, tc.hosts, got, tc.want)
		}
	}
}

func TestEjectionsInARowGrowAndAreForgotten(t *testing.T) {
	var o Outlier
	now := noon
	for _, want := range []time.Duration{30, 60, 90, 120} {
		if got := o.Eject(&istio, now, 0, 2); got != want*time.Second {
			t.Fatalf("out for %v, want %v s", got, want)
		}
		now = now.Add(want * time.Second)
	}
	now = now.Add(2 * istio.Interval) // two quiet intervals forget two ejections
	if got := o.Eject(&istio, now, 0, 2); got != 90*time.Second {
		t.Errorf("out for %v after two quiet intervals, want 90s", got)
	}
	now = now.Add(time.Hour)
	if got := o.Eject(&istio, now, 0, 2); got != 30*time.Second {
		t.Errorf("out for %v after an hour, want 30s", got)
	}
}

func TestGatewayFailuresHaveTheirOwnRow(t *testing.T) {
	p := OutlierPolicy{ConsecutiveGateway: 2}
	var o Outlier
	if o.Failure(&p, FaultGateway) || o.Failure(&p, FaultAnswer) || o.Failure(&p, FaultGateway) {
		t.Error("a plain 500 between ends the row")
	}
	if !o.Failure(&p, FaultGateway) {
		t.Error("two in a row are due")
	}
}

func TestLocalFaultsApartFromAnswers(t *testing.T) {
	p := OutlierPolicy{Consecutive5xx: 3, ConsecutiveLocal: 2}
	var o Outlier
	if o.Failure(&p, FaultLocal) || o.Failure(&p, FaultAnswer) || o.Failure(&p, FaultLocal) || o.Failure(&p, FaultGateway) {
		t.Error("answers and local faults have rows of their own, and an answer ends a row of local faults")
	}
	if !o.Failure(&p, FaultAnswer) {
		t.Error("the third failing answer in a row is due")
	}
	if o.Failure(&p, FaultLocal) || !o.Failure(&p, FaultLocal) {
		t.Error("the second local fault in a row is due")
	}
	together := OutlierPolicy{Consecutive5xx: 2}
	var other Outlier
	if other.Failure(&together, FaultAnswer) || !other.Failure(&together, FaultLocal) {
		t.Error("without a threshold of their own local faults count as answers")
	}
}

func TestHappyPathAllocatesNothing(t *testing.T) {
	var b Budget
	var o Outlier
	if n := testing.AllocsPerRun(1000, func() {
		b.Call(noon)
		o.Success()
		o.Ejected(noon)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
