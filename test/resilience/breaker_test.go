package resilience

import (
	"flag"
	"os"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weftmesh/weft/resilience"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// TestMain makes histories long enough to see several openings, and many; the flags
// of the same names say otherwise.
func TestMain(m *testing.M) {
	for name, value := range map[string]string{"rapid.steps": "200", "rapid.checks": "2000"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// reached counts what the histories led to, so that a generator that grew dull is
// found out.
var reached = make(map[string]int)

// TestModel drives the breaker and the model through the same histories, and wants
// no difference that can be seen.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &history{now: noon}
		spec := drawSpec(t)
		h.model = newModel(spec)
		var err error
		if h.breaker, err = resilience.NewBreaker("judged", spec, func(e resilience.Event) { h.events = append(h.events, e) }); err != nil {
			t.Fatal(err)
		}
		t.Repeat(map[string]func(*rapid.T){
			"": h.check,
			// Most of what happens in a life is calls.
			"call": h.call, "another call": h.call, "a third call": h.call, "begin": h.begin, "end": h.end,
			"advance": h.advance, "age": h.age, "wait until it may be tried": h.wait, "update": h.update, "reset": h.reset,
		})
	})
	if t.Failed() {
		return
	}
	for _, want := range []string{"closed to open", "open to half-open", "half-open to open", "half-open to closed",
		"closed to forced-open", "half-open to disabled", "open to metrics-only", "metrics-only to closed",
		"a lease ran out", "a longer wait"} {
		if reached[want] < 5 {
			t.Errorf("%s: %d times in all histories; they show little", want, reached[want])
		}
	}
}

// history is what happens to both.
type history struct {
	breaker *resilience.Breaker
	model   *model
	now     time.Time
	events  []resilience.Event
	out     []*permit
	used    []*permit
}

func (h *history) check(t *rapid.T) {
	if got, want := h.breaker.State(), h.model.state; got != want {
		t.Fatalf("%v, the model is %v", got, want)
	}
	if got, want := h.breaker.Counts(h.now), h.model.counts(h.now); got != want {
		t.Fatalf("counts %+v, the model's %+v", got, want)
	}
	if got, want := h.breaker.RetryAfter(h.now), h.model.retryAfter(h.now); got != want {
		t.Fatalf("retry after %v, the model after %v", got, want)
	}
	for i := range h.events {
		if h.events[i].Reason == "" {
			t.Fatalf("no reason: %+v", h.events[i])
		}
		h.events[i].Reason = ""
	}
	if !slices.Equal(h.events, h.model.events) {
		t.Fatalf("events %+v, the model's %+v", h.events, h.model.events)
	}
	h.events, h.model.events = nil, nil
}

func (h *history) acquire(t *rapid.T) *permit {
	real, ok := h.breaker.Acquire(h.now)
	p, want := h.model.acquire(h.now)
	if ok != want {
		t.Fatalf("admitted %v, by the model %v", ok, want)
	}
	if p != nil {
		p.real = real
	}
	return p
}

func (h *history) done(p *permit, o resilience.Outcome) {
	h.breaker.Done(p.real, h.now, o)
	h.model.done(p, h.now, o)
	h.used = append(h.used, p)
}

var outcomes = rapid.SampledFrom([]resilience.Outcome{resilience.Success, resilience.Success, resilience.Success,
	resilience.Failure, resilience.Failure, resilience.TimedOut, resilience.Ignored})

func (h *history) call(t *rapid.T) {
	if p := h.acquire(t); p != nil {
		h.now = h.now.Add(rapid.SampledFrom([]time.Duration{0, 0, 0, time.Millisecond, time.Second, time.Second + 1}).Draw(t, "took"))
		h.done(p, outcomes.Draw(t, "outcome"))
	}
}

func (h *history) begin(t *rapid.T) {
	if p := h.acquire(t); p != nil {
		h.out = append(h.out, p)
	}
}

// end ends a call that goes on, or a probe that has ended already.
func (h *history) end(t *rapid.T) {
	if len(h.used) > 0 && h.model.state == resilience.HalfOpen && rapid.IntRange(0, 9).Draw(t, "again") == 0 {
		h.done(rapid.SampledFrom(h.used).Draw(t, "used"), outcomes.Draw(t, "outcome"))
		return
	}
	if len(h.out) == 0 {
		t.Skip("nothing goes on")
	}
	i := rapid.IntRange(0, len(h.out)-1).Draw(t, "which")
	p := h.out[i]
	h.out = slices.Delete(h.out, i, i+1)
	h.done(p, outcomes.Draw(t, "outcome"))
}

func (h *history) advance(t *rapid.T) {
	h.now = h.now.Add(rapid.SampledFrom([]time.Duration{1, time.Millisecond, 100 * time.Millisecond, 999 * time.Millisecond,
		time.Second, 1001 * time.Millisecond, 3 * time.Second, 7 * time.Second, 30 * time.Second, time.Hour}).Draw(t, "by"))
}

// age makes parts of a time window leave it.
func (h *history) age(t *rapid.T) {
	w := h.model.spec.SlidingWindow.Duration
	if w == 0 {
		t.Skip("no time window")
	}
	h.now = h.now.Add(w * time.Duration(rapid.IntRange(1, 41).Draw(t, "fortieths")) / 40)
}

func (h *history) wait(t *rapid.T) {
	after := h.model.retryAfter(h.now)
	if after == 0 {
		t.Skip("it may be tried now")
	}
	h.now = h.now.Add(after - time.Duration(rapid.IntRange(0, 1).Draw(t, "less")))
}

func (h *history) update(t *rapid.T) {
	if rapid.IntRange(0, 2).Draw(t, "really") > 0 {
		t.Skip("too often")
	}
	spec := drawSpec(t)
	if rapid.Bool().Draw(t, "same window") {
		spec.SlidingWindow = h.model.spec.SlidingWindow
	}
	if rapid.IntRange(0, 2).Draw(t, "mode too") > 0 {
		spec.Mode = h.model.spec.Mode
	}
	if err := h.breaker.Update(spec); err != nil {
		t.Fatal(err)
	}
	h.model.update(spec, h.now)
	if len(h.events) > 0 {
		h.events[len(h.events)-1].Time = h.now // Update has no clock but the real one
	}
}

func (h *history) reset(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "really") > 0 {
		t.Skip("too often")
	}
	h.breaker.Reset(h.now)
	h.model.reset(h.now)
}

func drawSpec(t *rapid.T) resilience.BreakerSpec {
	percent := rapid.SampledFrom([]float64{0.1, 33.3, 50, 60, 100, 100})
	seconds := func(name string, from ...float64) time.Duration {
		return time.Duration(rapid.SampledFrom(from).Draw(t, name) * float64(time.Second))
	}
	s := resilience.BreakerSpec{
		FailureRateThreshold:          percent.Draw(t, "failureRateThreshold"),
		SlowCallRateThreshold:         percent.Draw(t, "slowCallRateThreshold"),
		SlowCallDurationThreshold:     seconds("slowCallDurationThreshold", 0.1, 1, 2),
		ConsecutiveFailures:           rapid.SampledFrom([]int{0, 0, 0, 1, 3, 4}).Draw(t, "consecutiveFailures"),
		MinimumNumberOfCalls:          rapid.IntRange(1, 6).Draw(t, "minimumNumberOfCalls"),
		WaitDurationInOpenState:       seconds("waitDurationInOpenState", 1, 5),
		PermittedCallsInHalfOpenState: rapid.IntRange(1, 4).Draw(t, "permittedCallsInHalfOpenState"),
		HalfOpenLease:                 seconds("halfOpenLease", 0.5, 1, 3),
		Mode: rapid.SampledFrom([]resilience.Mode{"", "", "", "", "", resilience.ModeForcedOpen, resilience.ModeDisabled,
			resilience.ModeMetricsOnly}).Draw(t, "mode"),
	}
	if rapid.Bool().Draw(t, "count window") {
		s.SlidingWindow = resilience.WindowSpec{Type: resilience.CountWindow, Size: rapid.IntRange(1, 7).Draw(t, "size")}
	} else {
		s.SlidingWindow = resilience.WindowSpec{Type: resilience.TimeWindow, Duration: seconds("duration", 1, 1.5, 5, 10, 12.5, 30, 180)}
	}
	if rapid.Bool().Draw(t, "backoff") {
		s.OpenBackoff = &resilience.OpenBackoffSpec{
			Multiplier: rapid.SampledFrom([]float64{1, 1.5, 2, 3}).Draw(t, "multiplier"),
			Max:        s.WaitDurationInOpenState * time.Duration(rapid.IntRange(1, 10).Draw(t, "max")),
			Jitter:     1e-15, // moves no wait by a nanosecond; 0 would be the default
		}
	}
	return s
}
