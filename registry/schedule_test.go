package registry

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func seconds(s float64) weft.Duration { return weft.Duration(s * float64(time.Second)) }

var order = weft.InstanceKey{Node: "n", ID: "order"}

// timeline steps a schedule from time to time and plays the catalogue: what is
// handed out to be written is written at once.
type timeline struct {
	t      *testing.T
	s      *schedule
	now    time.Time
	checks map[weft.InstanceKey][]weft.Check
	events []string // what came out, with seconds since start
	// result of every probe
	result weft.Health
	refuse bool // the catalogue cannot be written
}

// leading returns a schedule that hands out duties.
func leading() *schedule {
	s := newSchedule()
	s.lead(true, start)
	return s
}

func newTimeline(t *testing.T, checks ...weft.Check) *timeline {
	l := &timeline{t: t, s: leading(), now: start, checks: make(map[weft.InstanceKey][]weft.Check)}
	l.set(order, checks...)
	return l
}

func (l *timeline) set(owner weft.InstanceKey, checks ...weft.Check) {
	l.checks[owner] = checks
	l.s.set(owner, slices.Clone(checks), l.now) // what is in the catalogue does not change
}

func (l *timeline) note(format string, args ...any) {
	l.events = append(l.events, fmt.Sprintf("%.1f ", l.now.Sub(start).Seconds())+fmt.Sprintf(format, args...))
}

// run steps until the time is over, when the schedule asks for it.
func (l *timeline) run(until float64) {
	end := start.Add(seconds(until).Std())
	for {
		duties, next := l.s.step(l.now)
		for _, d := range duties {
			l.do(d)
		}
		if len(duties) > 0 {
			continue
		}
		if next.After(end) {
			l.now = end
			return
		}
		l.now = next
	}
}

func (l *timeline) do(d duty) {
	switch d.kind {
	case probeDuty:
		if status, changed := l.s.done(d.state, l.result, l.now); changed {
			l.write(d, status)
		}
	case lapseDuty:
		l.write(d, weft.Critical)
	case reapDuty:
		l.note("reap %s: %s", d.owner.ID, d.reason)
		if !l.refuse {
			l.set(d.owner)
		}
	}
}

func (l *timeline) write(d duty, status weft.Health) {
	l.note("%s %s", d.key.id, status)
	if l.refuse {
		return
	}
	checks := l.checks[d.owner]
	findCheck(checks, d.key.id).Status = status
	l.set(d.owner, checks...)
}

func (l *timeline) report(id string, status weft.Health) {
	if _, changed := l.s.report(checkKey{"n", id}, status, l.now); changed {
		l.write(duty{key: checkKey{"n", id}, owner: order}, status)
	}
}

func (l *timeline) want(events ...string) {
	l.t.Helper()
	if fmt.Sprint(l.events) != fmt.Sprint(events) {
		l.t.Errorf("happened:\n%q\nwant:\n%q", l.events, events)
	}
	l.events = nil
}

func TestTTLLapses(t *testing.T) {
	for _, kind := range []weft.CheckKind{weft.TTLCheck, weft.LeaseCheck} {
		l := newTimeline(t, weft.Check{ID: "c", Kind: kind, TTL: seconds(3)})
		l.run(2)
		l.report("c", weft.Passing) // renewed: until 5
		l.run(4)
		l.report("c", weft.Warning)
		l.want("4.0 c warning")
		l.run(20)
		l.want("7.0 c critical") // once
		l.report("c", weft.Passing)
		l.want("20.0 c passing")
		l.run(30)
		l.want("23.0 c critical")
	}
}

func TestTTLThatBeginsCriticalHasNothingToLose(t *testing.T) {
	l := newTimeline(t, weft.Check{ID: "c", Kind: weft.TTLCheck, TTL: seconds(3), Status: weft.Critical})
	l.run(10)
	l.report("c", weft.Passing)
	l.run(20)
	l.want("10.0 c passing", "13.0 c critical")
}

func TestManyRenewalsKeepALease(t *testing.T) {
	l := newTimeline(t, weft.Check{ID: "c", Kind: weft.LeaseCheck, TTL: seconds(3)})
	for at := 1.0; at < 60; at++ {
		l.run(at)
		l.report("c", weft.Passing)
	}
	l.want()
	l.run(70)
	l.want("62.0 c critical")
}

func TestLapseThatWasNotWrittenIsTriedAgain(t *testing.T) {
	l := newTimeline(t, weft.Check{ID: "c", Kind: weft.LeaseCheck, TTL: seconds(3)})
	l.refuse = true
	l.run(6)
	l.want("3.0 c critical", "5.0 c critical")
	l.refuse = false
	l.run(20)
	l.want("7.0 c critical")
}

func TestReportEndsALapse(t *testing.T) {
	l := newTimeline(t, weft.Check{ID: "c", Kind: weft.LeaseCheck, TTL: seconds(3)})
	l.refuse = true
	l.run(3)
	l.refuse = false
	c := l.s.checks[checkKey{"n", "c"}]
	if !c.lapsing {
		t.Fatal("not lapsing")
	}
	_, changed := l.s.report(c.key, weft.Passing, l.now)
	if c.lapsing {
		t.Error("a report came, and the lapse would still be written")
	}
	if !changed {
		t.Error("the report is not written, and the lapse may be on its way")
	}
	l.run(5.9)
	l.want("3.0 c critical")
}

// TestRegisteredAlive: a TTL check that is set to passing, without a report, has its
// whole TTL.
func TestRegisteredAlive(t *testing.T) {
	check := weft.Check{ID: "c", Kind: weft.TTLCheck, TTL: seconds(3), Status: weft.Critical}
	l := newTimeline(t, check)
	l.run(10)
	check.Status = weft.Passing
	l.set(order, check)
	l.run(20)
	l.want("13.0 c critical")
}

func TestThresholds(t *testing.T) {
	cases := []struct {
		name    string
		check   weft.Check
		results string // p, w or c for each probe
		want    string // statuses after each
	}{
		{"at once", weft.Check{}, "pcwcp", "pcwcp"},
		{"three failures", weft.Check{FailuresBeforeCritical: 3}, "pccpccc", "ppppppc"},
		{"two successes", weft.Check{SuccessBeforePassing: 2, Status: weft.Critical}, "pcppp", "cccpp"},
		{"two successes, also with warnings", weft.Check{SuccessBeforePassing: 2, Status: weft.Critical}, "wpw", "cpw"},
		{"warning before critical", weft.Check{FailuresBeforeWarning: 1, FailuresBeforeCritical: 3}, "pcccp", "pwwcp"},
		{"warning never betters critical", weft.Check{FailuresBeforeWarning: 1, FailuresBeforeCritical: 2, SuccessBeforePassing: 2, Status: weft.Critical}, "pcp", "ccc"},
	}
	letters := map[byte]weft.Health{'p': weft.Passing, 'w': weft.Warning, 'c': weft.Critical}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.check.ID, c.check.Kind, c.check.Interval = "c", weft.HTTPCheck, seconds(10)
			l := newTimeline(t, c.check)
			for i := range len(c.results) {
				l.result = letters[c.results[i]]
				l.run(float64(i)*10 + 2) // the first comes within a second
				if got := l.checks[order][0].Status; got != letters[c.want[i]] {
					t.Errorf("after %s it is %s", c.results[:i+1], got)
				}
			}
		})
	}
}

func TestProbesAreSpreadAndRegular(t *testing.T) {
	s := leading()
	const n = 200
	for i := range n {
		s.set(weft.InstanceKey{Node: "n", ID: fmt.Sprint(i)},
			[]weft.Check{{ID: fmt.Sprint(i), Kind: weft.TCPCheck, Interval: seconds(10)}}, start)
	}
	now := start
	starts := make(map[checkKey][]time.Duration)
	for now.Before(start.Add(35 * time.Second)) {
		duties, next := s.step(now)
		for _, d := range duties {
			starts[d.key] = append(starts[d.key], now.Sub(start))
			s.done(d.state, weft.Passing, now)
		}
		now = next
	}
	firstHalf := 0
	for key, at := range starts {
		if at[0] >= time.Second || len(at) != 4 {
			t.Fatalf("%v is probed at %v", key, at)
		}
		for i := 1; i < len(at); i++ {
			if at[i]-at[i-1] != 10*time.Second {
				t.Errorf("%v is probed at %v", key, at)
			}
		}
		if at[0] < 500*time.Millisecond {
			firstHalf++
		}
	}
	if len(starts) != n || firstHalf < n/4 || firstHalf > 3*n/4 {
		t.Errorf("%d of %d are probed in the first half second", firstHalf, len(starts))
	}
}

func TestShortIntervalsBeginWithinThem(t *testing.T) {
	l := newTimeline(t, weft.Check{ID: "c", Kind: weft.TCPCheck, Interval: seconds(0.1), Status: weft.Critical})
	l.run(0.1)
	if len(l.events) != 1 {
		t.Errorf("happened: %q", l.events)
	}
}

// TestSlowProbes: a probe that takes longer than its interval does not overlap
// with the next one, and there are never more than maxProbes.
func TestSlowProbes(t *testing.T) {
	s := leading()
	for i := range maxProbes + 100 {
		s.set(weft.InstanceKey{Node: "n", ID: fmt.Sprint(i)},
			[]weft.Check{{ID: fmt.Sprint(i), Kind: weft.TCPCheck, Interval: seconds(1)}}, start)
	}
	var running []duty
	step := func(now time.Time) { duties, _ := s.step(now); running = append(running, duties...) }
	step(start.Add(time.Second))
	step(start.Add(2 * time.Second))
	step(start.Add(3 * time.Second))
	if len(running) != maxProbes {
		t.Fatalf("%d probes at a time; want %d", len(running), maxProbes)
	}
	seen := make(map[checkKey]bool)
	for _, d := range running {
		if seen[d.key] {
			t.Errorf("%v is probed twice at a time", d.key)
		}
		seen[d.key] = true
	}
	for _, d := range running[:100] {
		s.done(d.state, weft.Passing, start.Add(3*time.Second))
	}
	running = running[100:]
	step(start.Add(3 * time.Second))
	for _, d := range running[len(running)-100:] {
		if seen[d.key] {
			t.Errorf("%v has its second probe before others had their first", d.key)
		}
	}
}

func TestReaping(t *testing.T) {
	check := weft.Check{ID: "c", Kind: weft.HTTPCheck, Interval: seconds(0.1), DeregisterAfter: seconds(30)}
	t.Run("after exactly so long", func(t *testing.T) {
		l := newTimeline(t, weft.Check{ID: "c", Kind: weft.StaticCheck, Status: weft.Critical, DeregisterAfter: seconds(30)})
		l.run(29.9)
		l.want()
		l.run(100)
		l.want(`30.0 reap order: check "c" is critical for 30s`)
	})
	t.Run("below a minute and below a second", func(t *testing.T) {
		l := newTimeline(t, weft.Check{ID: "c", Kind: weft.StaticCheck, Status: weft.Critical, DeregisterAfter: seconds(0.2)})
		l.run(1)
		l.want(`0.2 reap order: check "c" is critical for 200ms`)
	})
	t.Run("not when it was well in between", func(t *testing.T) {
		l := newTimeline(t, check)
		l.result = weft.Critical
		l.run(20)
		l.result = weft.Passing
		l.run(21)
		l.result = weft.Critical
		l.run(50)
		if n := len(l.events); n != 3 {
			t.Errorf("happened: %q", l.events)
		}
		l.run(60)
		if n := len(l.events); n != 4 {
			t.Errorf("happened: %q", l.events)
		}
	})
	t.Run("not for warnings", func(t *testing.T) {
		l := newTimeline(t, weft.Check{ID: "c", Kind: weft.StaticCheck, Status: weft.Warning, DeregisterAfter: seconds(1)})
		l.run(10)
		l.want()
	})
	t.Run("not for maintenance", func(t *testing.T) {
		l := newTimeline(t, weft.Check{ID: "c", Kind: weft.MaintenanceCheck, Status: weft.Critical, DeregisterAfter: seconds(1)})
		l.run(10)
		l.want()
	})
	t.Run("not a node", func(t *testing.T) {
		l := newTimeline(t)
		l.set(weft.InstanceKey{Node: "n"}, weft.Check{ID: "c", Kind: weft.StaticCheck, Status: weft.Critical, DeregisterAfter: seconds(1)})
		l.run(10)
		l.want()
	})
	t.Run("again when it was not written", func(t *testing.T) {
		l := newTimeline(t, weft.Check{ID: "c", Kind: weft.StaticCheck, Status: weft.Critical, DeregisterAfter: seconds(1)})
		l.refuse = true
		l.run(4)
		if n := len(l.events); n != 2 {
			t.Errorf("happened: %q", l.events)
		}
	})
}

// TestOwnPause: while this process is stopped nobody can report, and that is not
// their fault.
func TestOwnPause(t *testing.T) {
	checks := func() []weft.Check {
		return []weft.Check{
			{ID: "lease", Kind: weft.LeaseCheck, TTL: seconds(3)},
			{ID: "other", Kind: weft.StaticCheck, Status: weft.Critical, DeregisterAfter: seconds(10)},
		}
	}
	t.Run("of a minute", func(t *testing.T) {
		l := newTimeline(t, checks()...)
		l.run(2)
		l.now = start.Add(60 * time.Second) // stopped for 58 s
		l.run(62.9)
		l.want()
		l.run(70)
		l.want("63.0 lease critical", `68.0 reap order: check "other" is critical for 10s`) // a whole TTL again
	})
	t.Run("of less than a second", func(t *testing.T) {
		l := newTimeline(t, checks()...)
		l.run(2.8)
		l.now = start.Add(3500 * time.Millisecond) // its time would have been over at 3.0
		l.run(4.1)
		l.want()
		l.run(5)
		l.want("4.2 lease critical") // as much time as was lost, from the end of the pause
	})
	t.Run("again and again", func(t *testing.T) {
		l := newTimeline(t, checks()...)
		for at := 1.0; at < 60; at += 10 {
			l.run(at)
			l.now = l.now.Add(9 * time.Second)
			l.report("lease", weft.Passing)
		}
		l.want()
	})
}

// TestClockReadBeforeAPause: a report's time was read before the process was stopped,
// and it is taken in after the pause was noticed.
func TestClockReadBeforeAPause(t *testing.T) {
	l := newTimeline(t, weft.Check{ID: "lease", Kind: weft.LeaseCheck, TTL: seconds(3)})
	l.run(2)
	before := l.now
	l.now = start.Add(time.Minute)
	l.run(60)
	l.s.report(checkKey{"n", "lease"}, weft.Passing, before)
	l.run(62.9)
	l.want()
	l.run(70)
	l.want("63.0 lease critical")
}

// TestProbeOverAPause: its time was up before it could get an answer.
func TestProbeOverAPause(t *testing.T) {
	s := leading()
	s.set(order, []weft.Check{{ID: "c", Kind: weft.HTTPCheck, Interval: seconds(10)}}, start)
	now := start.Add(time.Second)
	duties, _ := s.step(now)
	now = now.Add(time.Minute)
	if status, changed := s.done(duties[0].state, weft.Critical, now); changed {
		t.Errorf("the pause makes it %s", status)
	}
	duties, _ = s.step(now)
	if len(duties) != 1 {
		t.Fatalf("%d probes after the pause; want one at once", len(duties))
	}
	if _, changed := s.done(duties[0].state, weft.Critical, now.Add(400*time.Millisecond)); !changed {
		t.Error("a failure after the pause does not count")
	}
}

// TestReportsAfterAPause: the first one is taken before the schedule's next step.
func TestReportsAfterAPause(t *testing.T) {
	l := newTimeline(t, weft.Check{ID: "lease", Kind: weft.LeaseCheck, TTL: seconds(3)})
	l.run(2)
	l.now = start.Add(time.Minute)
	l.report("lease", weft.Passing)
	l.run(62.9)
	l.want()
	l.run(70)
	l.want("63.0 lease critical")
}

func TestShortDelayIsNoPause(t *testing.T) {
	l := newTimeline(t, weft.Check{ID: "lease", Kind: weft.LeaseCheck, TTL: seconds(3)})
	l.run(2)
	l.now = start.Add(2400 * time.Millisecond)
	l.run(4)
	l.want("3.0 lease critical")
}

// TestTakingOver: a server that begins to check knows nothing of what was reported to
// the one before it.
func TestTakingOver(t *testing.T) {
	l := newTimeline(t, weft.Check{ID: "lease", Kind: weft.LeaseCheck, TTL: seconds(3)},
		weft.Check{ID: "old", Kind: weft.StaticCheck, Status: weft.Critical, DeregisterAfter: seconds(120)})
	l.s.lead(false, l.now)
	l.run(60)
	l.want()
	l.s.lead(true, l.now)
	l.run(62.9)
	l.want()
	l.run(130)
	l.want("63.0 lease critical", `120.0 reap order: check "old" is critical for 2m0s`)
}

func TestTakingOverSpreadsProbes(t *testing.T) {
	s := newSchedule()
	const n = 1000
	for i := range n {
		s.set(weft.InstanceKey{Node: "n", ID: fmt.Sprint(i)},
			[]weft.Check{{ID: fmt.Sprint(i), Kind: weft.TCPCheck, Interval: seconds(10)}}, start)
	}
	s.lead(true, start)
	var inSecond [10]int
	for now := start; now.Before(start.Add(10 * time.Second)); {
		duties, next := s.step(now)
		for _, d := range duties {
			inSecond[int(now.Sub(start).Seconds())]++
			s.done(d.state, weft.Passing, now)
		}
		now = next
	}
	total := 0
	for second, probes := range inSecond {
		total += probes
		if probes < n/20 || probes > n/5 {
			t.Errorf("%d of %d probes in second %d", probes, n, second)
		}
	}
	if total != n {
		t.Errorf("%d probes in one interval; want %d", total, n)
	}
}

// TestResultsOfAnotherTime: what was probed before another server wrote is no news.
func TestResultsOfAnotherTime(t *testing.T) {
	s := leading()
	s.set(order, []weft.Check{{ID: "c", Kind: weft.TCPCheck, Interval: seconds(1)}}, start)
	now := start.Add(time.Second)
	first, _ := s.step(now)
	s.lead(false, now)
	if duties, _ := s.step(now.Add(time.Minute)); len(duties) > 0 {
		t.Errorf("%d duties without leading", len(duties))
	}
	s.lead(true, now)
	if _, changed := s.done(first[0].state, weft.Critical, now); changed {
		t.Error("the result counts")
	}
	second, _ := s.step(now.Add(time.Second))
	if len(second) != 1 || s.probing != 1 {
		t.Fatalf("%d duties, %d probes counted", len(second), s.probing)
	}
	s.lead(false, now)
	if _, changed := s.done(second[0].state, weft.Critical, now); changed || s.probing != 0 {
		t.Errorf("after the end it counts: %v; %d probes counted", changed, s.probing)
	}
}

func TestFellSince(t *testing.T) {
	lease := weft.Check{ID: "lease", Kind: weft.LeaseCheck, TTL: seconds(3)}
	born := weft.Check{ID: "born", Kind: weft.StaticCheck, Status: weft.Critical}
	l := newTimeline(t, lease)
	l.run(10)
	for at, want := range map[float64]bool{2: true, 4: false} {
		if is, all := l.s.fellSince(order, start.Add(seconds(at).Std())); !is || all != want {
			t.Errorf("fell since %v: %v, %v", at, is, all)
		}
	}
	l.set(order, l.checks[order][0], born)
	if is, all := l.s.fellSince(order, start); !is || all {
		t.Errorf("with a check that always was critical: %v, %v", is, all)
	}
	l.report("lease", weft.Passing)
	l.set(order, lease)
	if is, all := l.s.fellSince(order, start); is || !all {
		t.Errorf("healthy: %v, %v", is, all)
	}
}

func TestChangedChecks(t *testing.T) {
	probe := weft.Check{ID: "c", Kind: weft.HTTPCheck, Target: "http://a/", Interval: seconds(10)}
	s := leading()
	s.set(order, []weft.Check{probe}, start)
	now := start.Add(time.Second)
	duties, _ := s.step(now)
	if len(duties) != 1 {
		t.Fatalf("%d duties", len(duties))
	}
	s.set(order, []weft.Check{probe}, now) // the same: goes on
	if _, changed := s.done(duties[0].state, weft.Critical, now); !changed {
		t.Error("the result of an unchanged check is dropped")
	}
	duties, _ = s.step(now.Add(10 * time.Second))
	probe.Target = "http://b/"
	s.set(order, []weft.Check{probe}, now)
	if _, changed := s.done(duties[0].state, weft.Critical, now); changed {
		t.Error("the result of a changed check counts")
	}
	if s.probing != 0 {
		t.Errorf("%d probes are counted as running", s.probing)
	}
	// It goes from one instance to another.
	other := weft.InstanceKey{Node: "n", ID: "other"}
	s.set(other, []weft.Check{probe}, now)
	s.set(order, nil, now)
	if c := s.checks[checkKey{"n", "c"}]; c == nil || c.owner != other {
		t.Errorf("the check is lost: %+v", c)
	}
	s.set(other, nil, now)
	if len(s.checks)+len(s.owned)+len(s.byTime) != 0 {
		t.Errorf("left behind: %v, %v, %v", s.checks, s.owned, s.byTime)
	}
	if kind, _ := s.report(checkKey{"n", "c"}, weft.Passing, now); kind != "" {
		t.Error("a report for a check that is gone is taken")
	}
}
