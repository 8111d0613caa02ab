package resilience

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestTraces runs the stories in testdata/breaker, a file each. A line is one of
//
//	policy NAME=VALUE …   a new breaker, in a document's words
//	update NAME=VALUE …   changes these fields while it runs
//	ok | fail | slow | slow-fail | timed-out | ignored [xN]
//	                      so many calls, one after the other; a slow one takes a
//	                      millisecond longer than is allowed, others no time
//	begin NAME            a call that goes on
//	end NAME ok | fail | …
//	rejected              a call that is refused
//	advance 30s
//	expect STATE
//	counts CALLS FAILED SLOW
//	retry-after 30s
//	event FROM -> TO: REASON
//	reset
//
// Every event must be named, in order.
func TestTraces(t *testing.T) {
	files, err := filepath.Glob("testdata/breaker/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no traces", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			tr := &trace{now: noon, calls: make(map[string]Permit)}
			lines := bufio.NewScanner(f)
			for n := 1; lines.Scan(); n++ {
				line, _, _ := strings.Cut(lines.Text(), "#")
				if words := strings.Fields(line); len(words) > 0 {
					if err := tr.step(words); err != nil {
						t.Fatalf("%s:%d: %s: %v", name, n, line, err)
					}
				}
			}
			if len(tr.events) > 0 {
				t.Errorf("%s: not named: %v", name, tr.events)
			}
		})
	}
}

type trace struct {
	b      *Breaker
	spec   BreakerSpec
	now    time.Time
	calls  map[string]Permit
	events []string
}

func (tr *trace) step(words []string) (err error) {
	rest := words[1:]
	switch words[0] {
	case "policy":
		if err := setFields(&tr.spec, rest); err != nil {
			return err
		}
		tr.b, err = NewBreaker("trace", tr.spec, func(e Event) {
			tr.events = append(tr.events, fmt.Sprintf("%v -> %v: %s", e.From, e.To, e.Reason))
		})
		return err
	case "update":
		if err := setFields(&tr.spec, rest); err != nil {
			return err
		}
		return tr.b.Update(tr.spec)
	case "begin":
		p, ok := tr.b.Acquire(tr.now)
		if !ok {
			return fmt.Errorf("rejected")
		}
		tr.calls[rest[0]] = p
	case "end":
		return tr.done(tr.calls[rest[0]], rest[1])
	case "rejected":
		if _, ok := tr.b.Acquire(tr.now); ok {
			return fmt.Errorf("admitted")
		}
	case "advance":
		d, err := time.ParseDuration(rest[0])
		tr.now = tr.now.Add(d)
		return err
	case "reset":
		tr.b.Reset(tr.now)
	case "expect":
		return same(tr.b.State().String(), rest[0])
	case "counts":
		c := tr.b.Counts(tr.now)
		return same(fmt.Sprint(c.Calls, c.Failures, c.Slow), strings.Join(rest, " "))
	case "retry-after":
		return same(tr.b.RetryAfter(tr.now).String(), rest[0])
	case "event":
		if len(tr.events) == 0 {
			return fmt.Errorf("no event")
		}
		got := tr.events[0]
		tr.events = tr.events[1:]
		return same(got, strings.Join(rest, " "))
	default:
		return tr.repeat(words)
	}
	return nil
}

func (tr *trace) repeat(words []string) error {
	n := 1
	if len(words) > 1 {
		var err error
		if n, err = strconv.Atoi(strings.TrimPrefix(words[1], "x")); err != nil {
			return err
		}
	}
	for i := range n {
		p, ok := tr.b.Acquire(tr.now)
		if !ok {
			return fmt.Errorf("call %d rejected", i+1)
		}
		if err := tr.done(p, words[0]); err != nil {
			return err
		}
	}
	return nil
}

func (tr *trace) done(p Permit, how string) error {
	if strings.HasPrefix(how, "slow") {
		tr.now = tr.now.Add(tr.spec.SlowCallDurationThreshold + time.Millisecond)
	}
	o, known := map[string]Outcome{"ok": Success, "slow": Success, "fail": Failure,
		"slow-fail": Failure, "ignored": Ignored, "timed-out": TimedOut}[how]
	if !known {
		return fmt.Errorf("what is %q?", how)
	}
	tr.b.Done(p, tr.now, o)
	return nil
}

func same(got, want string) error {
	if got != want {
		return fmt.Errorf("got %s", got)
	}
	return nil
}

// setFields sets fields that a document would name so.
func setFields(s *BreakerSpec, pairs []string) error {
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		number, _ := strconv.ParseFloat(value, 64)
		duration, _ := time.ParseDuration(value)
		if s.OpenBackoff == nil && strings.HasPrefix(name, "openBackoff") {
			s.OpenBackoff = &OpenBackoffSpec{Jitter: noJitter}
		}
		switch name {
		case "failureRateThreshold":
			s.FailureRateThreshold = number
		case "slowCallRateThreshold":
			s.SlowCallRateThreshold = number
		case "slowCallDurationThreshold":
			s.SlowCallDurationThreshold = duration
		case "consecutiveFailures":
			s.ConsecutiveFailures = int(number)
		case "slidingWindow.type":
			s.SlidingWindow.Type = WindowType(value)
		case "slidingWindow.size":
			s.SlidingWindow.Size = int(number)
		case "slidingWindow.duration":
			s.SlidingWindow.Duration = duration
		case "minimumNumberOfCalls":
			s.MinimumNumberOfCalls = int(number)
		case "waitDurationInOpenState":
			s.WaitDurationInOpenState = duration
		case "openBackoff.multiplier":
			s.OpenBackoff.Multiplier = number
		case "openBackoff.max":
			s.OpenBackoff.Max = duration
		case "permittedCallsInHalfOpenState":
			s.PermittedCallsInHalfOpenState = int(number)
		case "halfOpenLease":
			s.HalfOpenLease = duration
		case "mode":
			s.Mode = Mode(value)
		default:
			return fmt.Errorf("no field %q", name)
		}
	}
	return nil
}

// noJitter is too little to move a wait by a nanosecond; 0 would be the default.
const noJitter = 1e-15

func TestStateNames(t *testing.T) {
	for s := Closed; s <= MetricsOnly; s++ {
		if got, ok := ParseState(s.String()); !ok || got != s {
			t.Errorf("%v is read as %v, %v", s, got, ok)
		}
	}
	if _, ok := ParseState("unknown"); ok || State(6).String() != "unknown" {
		t.Error("a seventh state is known")
	}
}

func TestNewBreakerNamesTheField(t *testing.T) {
	_, err := NewBreaker("b", BreakerSpec{FailureRateThreshold: 101}, nil)
	if err == nil || !strings.Contains(err.Error(), "failureRateThreshold") {
		t.Errorf("error %v", err)
	}
	b, err := NewBreaker("b", BreakerSpec{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Update(BreakerSpec{ConsecutiveFailures: -1}); err == nil || !strings.Contains(err.Error(), "consecutiveFailures") {
		t.Errorf("error %v", err)
	}
}

func TestEventsTellWhatWasCounted(t *testing.T) {
	var events []Event
	b, err := NewBreaker("inventory", BreakerSpec{SlidingWindow: WindowSpec{Size: 4}}, func(e Event) { events = append(events, e) })
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range []Outcome{Success, Failure, TimedOut, Success} {
		now := noon.Add(time.Duration(i) * time.Second)
		p, _ := b.Acquire(now)
		b.Done(p, now, o)
	}
	want := Event{Time: noon.Add(3 * time.Second), Policy: "inventory", From: Closed, To: Open,
		Reason: "failure rate 50.0 % of 4 calls reached 50 %", Window: WindowCounts{Calls: 4, Failures: 2, Slow: 1}}
	if len(events) != 1 || events[0] != want {
		t.Errorf("events %+v\nwant   %+v", events, want)
	}
}

func TestOnEventMayUseTheBreaker(t *testing.T) {
	var b *Breaker
	var seen []State
	b, err := NewBreaker("b", BreakerSpec{SlidingWindow: WindowSpec{Size: 1}}, func(e Event) {
		seen = append(seen, e.To)
		if e.To == Open {
			b.Reset(e.Time)
			b.Counts(e.Time)
			p, _ := b.Acquire(e.Time)
			b.Done(p, e.Time, Success)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		p, _ := b.Acquire(noon)
		b.Done(p, noon, Failure)
	}
	if want := []State{Open, Closed, Open, Closed}; fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("saw %v, want %v", seen, want)
	}
}

func TestOnEventThatPanicsDoesNotEndAllEvents(t *testing.T) {
	n := 0
	b, err := NewBreaker("b", BreakerSpec{}, func(Event) {
		if n++; n == 1 {
			panic("the first")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() { _ = recover() }()
		b.Reset(noon)
	}()
	b.Reset(noon)
	if n != 2 {
		t.Errorf("%d events arrived, want 2", n)
	}
}

// Jitter spreads the waits over the whole range around the one without, and no
// further.
func TestJitter(t *testing.T) {
	spec := BreakerSpec{SlidingWindow: WindowSpec{Size: 1}, WaitDurationInOpenState: 10 * time.Second,
		OpenBackoff: &OpenBackoffSpec{Jitter: 0.2}}
	least, most := time.Hour, time.Duration(0)
	for range 1000 {
		b, err := NewBreaker("b", spec, nil)
		if err != nil {
			t.Fatal(err)
		}
		p, _ := b.Acquire(noon)
		b.Done(p, noon, Failure)
		wait := b.RetryAfter(noon)
		least, most = min(least, wait), max(most, wait)
	}
	if least < 8*time.Second || least > 8500*time.Millisecond || most > 12*time.Second || most < 11500*time.Millisecond {
		t.Errorf("waits from %v to %v, want 8 s to 12 s", least, most)
	}
}

// TestSixteenAtOnce runs a service that fails at times under sixteen callers, and
// holds every half-open state to its permits.
func TestSixteenAtOnce(t *testing.T) {
	const permitted, callers, calls = 3, 16, 5000
	var clock atomic.Int64 // ns since noon
	now := func() time.Time { return noon.Add(time.Duration(clock.Load())) }

	var last State
	halfOpen := 0
	b, err := NewBreaker("b", BreakerSpec{SlidingWindow: WindowSpec{Size: 10}, PermittedCallsInHalfOpenState: permitted,
		WaitDurationInOpenState: time.Millisecond}, func(e Event) { // one at a time, so nothing here is locked
		if e.From != last {
			t.Errorf("from %v, but the last event was to %v", e.From, last)
		}
		if e.From == HalfOpen && e.Window.Calls != permitted {
			t.Errorf("%v decided on %d probes, want %d", e.To, e.Window.Calls, permitted)
		}
		if e.To == HalfOpen {
			halfOpen++
		}
		last = e.To
	})
	if err != nil {
		t.Fatal(err)
	}
	var probing sync.Map // epoch → *atomic.Int32: probes under way
	var wg sync.WaitGroup
	for caller := range callers {
		wg.Go(func() {
			for i := range calls {
				clock.Add(int64(100 * time.Microsecond))
				p, ok := b.Acquire(now())
				if !ok {
					continue
				}
				var under *atomic.Int32
				if p.probe != 0 {
					n, _ := probing.LoadOrStore(p.word, new(atomic.Int32))
					under = n.(*atomic.Int32)
					if under.Add(1) > permitted {
						t.Error("more probes at once than are permitted")
					}
				}
				o := Success
				if (i/200+caller)%3 == 0 {
					o = Failure
				}
				if under != nil {
					under.Add(-1)
				}
				b.Done(p, now(), o)
			}
		})
	}
	wg.Wait()
	if halfOpen == 0 {
		t.Error("never half-open: the test shows nothing")
	}
}

// TestCallsAddUp counts what sixteen callers do where nothing may be lost.
func TestCallsAddUp(t *testing.T) {
	for _, w := range []WindowSpec{{Type: CountWindow, Size: 10000}, {Type: TimeWindow, Duration: time.Minute}} {
		b, err := NewBreaker("b", BreakerSpec{SlidingWindow: w, Mode: ModeMetricsOnly}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for i := range 600 {
					now := noon.Add(time.Duration(i) * time.Millisecond)
					p, _ := b.Acquire(now)
					b.Done(p, now, []Outcome{Success, Failure, TimedOut, Ignored}[i%4])
					b.Counts(now)
				}
			})
		}
		wg.Wait()
		if got, want := b.Counts(noon), (WindowCounts{Calls: 16 * 450, Failures: 16 * 300, Slow: 16 * 150}); got != want {
			t.Errorf("%s window: %+v, want %+v", w.Type, got, want)
		}
	}
}

func TestNothingIsAllocated(t *testing.T) {
	for _, w := range []WindowSpec{{Type: CountWindow, Size: 100}, {Type: TimeWindow, Duration: time.Second}} {
		b, err := NewBreaker("b", BreakerSpec{SlidingWindow: w}, func(Event) {})
		if err != nil {
			t.Fatal(err)
		}
		now := noon
		if n := testing.AllocsPerRun(1000, func() {
			now = now.Add(time.Millisecond)
			p, _ := b.Acquire(now)
			b.Done(p, now, Success)
		}); n != 0 {
			t.Errorf("%s window: %v allocations a call", w.Type, n)
		}
	}
}

// FuzzBreaker plays outcomes at a breaker, and checks what must hold after any: a
// byte's low bits say what to do, its high bits how long to wait before.
func FuzzBreaker(f *testing.F) {
	f.Add(false, uint8(10), []byte("\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01"))
	f.Add(true, uint8(1), []byte{1, 1, 0xf0, 0, 7, 0xf6, 0, 5, 0})
	f.Add(false, uint8(1), []byte{1, 0xf0, 4, 4, 0xf5, 0x15})
	f.Fuzz(func(t *testing.T, timed bool, size uint8, steps []byte) {
		spec := BreakerSpec{SlidingWindow: WindowSpec{Type: CountWindow, Size: int(size) + 1}, MinimumNumberOfCalls: 3,
			SlowCallDurationThreshold: time.Second, ConsecutiveFailures: 4, WaitDurationInOpenState: 2 * time.Second,
			PermittedCallsInHalfOpenState: 2, OpenBackoff: &OpenBackoffSpec{}}
		if timed {
			spec.SlidingWindow = WindowSpec{Type: TimeWindow, Duration: time.Duration(size)*time.Second + time.Second}
		}
		state := Closed
		b, err := NewBreaker("fuzz", spec, func(e Event) {
			if e.From != state {
				t.Fatalf("from %v, but it was %v", e.From, state)
			}
			state = e.To
		})
		if err != nil {
			t.Fatal(err)
		}
		now := noon
		var out []Permit
		for _, step := range steps {
			now = now.Add(time.Duration(step>>4) * 200 * time.Millisecond)
			wait := b.RetryAfter(now)
			switch what := step & 7; {
			case what < 4: // a call of an instant
				p, ok := b.Acquire(now)
				if ok && wait > 0 || !ok && wait == 0 && state != Open { // a lapsed lease may open it just now
					t.Fatalf("%v, admitted %v, but to be tried again after %v", state, ok, wait)
				}
				b.Done(p, now, Outcome(what))
			case what == 4:
				if p, ok := b.Acquire(now); ok {
					out = append(out, p)
				}
			case len(out) > 0: // one that took long
				b.Done(out[0], now, Outcome(what-5))
				out = out[1:]
			}
			c := b.Counts(now)
			if c.Failures > c.Calls || c.Slow > c.Calls || !timed && state == Closed && int(c.Calls) > int(size)+1 {
				t.Fatalf("counts %+v", c)
			}
			if b.State() != state {
				t.Fatalf("%v without an event: the last was to %v", b.State(), state)
			}
			if len(b.probes)+b.completed > 2 {
				t.Fatalf("%d probes out and %d done, of two", len(b.probes), b.completed)
			}
		}
	})
}

// BenchmarkBreaker is Acquire and Done of a good call on a closed circuit.
func BenchmarkBreaker(b *testing.B) {
	for _, w := range []WindowSpec{{Type: CountWindow, Size: 100}, {Type: TimeWindow, Duration: 10 * time.Second}} {
		b.Run(string(w.Type), func(b *testing.B) {
			breaker, _ := NewBreaker("b", BreakerSpec{SlidingWindow: w}, nil)
			now := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				p, _ := breaker.Acquire(now)
				breaker.Done(p, now, Success)
			}
		})
		b.Run(string(w.Type)+"/parallel", func(b *testing.B) {
			breaker, _ := NewBreaker("b", BreakerSpec{SlidingWindow: w}, nil)
			b.ReportAllocs()
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				now := time.Now()
				for pb.Next() {
					p, _ := breaker.Acquire(now)
					breaker.Done(p, now, Success)
				}
			})
		})
	}
}
