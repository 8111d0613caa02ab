package resilience

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Breaker is a circuit breaker. A caller asks Acquire before a call, and says with
// Done how it ended:
//
//	permit, ok := b.Acquire(time.Now())
//	if !ok {
//		return ErrOpen // try again after b.RetryAfter
//	}
//	err := call()
//	b.Done(permit, time.Now(), outcome(err))
//
// Closed, all calls pass. When the share of failed or of slow calls in the window
// reaches its threshold, and at least MinimumNumberOfCalls are in it, or when so
// many failed in a row, the circuit opens and rejects calls. After a wait the first
// Acquire makes it half-open: PermittedCallsInHalfOpenState calls pass, and their
// rates close the circuit or open it again. A permit of these that is not given
// back within its lease counts as a failed call, and is given to another. A call
// that began in one state never counts in a later one.
//
// All methods may be called by many goroutines at once. Time comes from the caller;
// there is neither timer nor goroutine.
type Breaker struct {
	name    string
	onEvent func(Event) // may be nil

	// word is the state and, above it, the epoch: how many times the state was
	// entered. A permit carries the word that it was given under.
	word atomic.Uint32
	_    [64]byte // Acquire only reads the word; keep it off the line that Done writes

	// mu is held only while a call's end is counted. Measured on two cores, Acquire
	// and Done together cost 16 to 23 ns alone and 25 to 60 when both cores do
	// nothing else. A sketch whose counters were updated by atomic operations took
	// 7 to 10 and 16 to 50, and could not tell which call had reached a threshold.
	mu     sync.Mutex
	spec   BreakerSpec
	window window
	row    int  // failures in a row
	review bool // the thresholds changed: look at the rates whatever the next call is

	opened   int       // openings since a whole window passed without one
	closedAt time.Time // when it last closed again
	wait     time.Duration
	until    time.Time    // when the wait is over, if it is open
	tripped  WindowCounts // what opened it

	probes    []probe // the permits that are out, if it is half-open
	lastProbe uint32
	completed int          // probes that were given back in time
	probed    WindowCounts // what probes showed, those too whose lease ran out

	events     []Event // not yet handed to onEvent
	delivering bool    // a goroutine is handing them over
}

// probe is a permit of a half-open circuit.
type probe struct {
	id    uint32
	lapse time.Time // the end of its lease
}

// Permit to make one call. It is given back by Done, once.
type Permit struct {
	start time.Time
	word  uint32
	probe uint32 // its id, if the circuit was half-open
}

const stateBits = 3

// NewBreaker returns a closed circuit, or one in the state that spec.Mode holds it
// in. Its name stands in its events. onEvent, which may be nil, is called for every
// change in order, one at a time, by a goroutine that called the breaker, which is
// kept waiting meanwhile; it may use the breaker.
func NewBreaker(name string, spec BreakerSpec, onEvent func(Event)) (*Breaker, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	spec = spec.withDefaults()
	b := &Breaker{name: name, onEvent: onEvent, spec: spec, window: newWindow(spec.SlidingWindow)}
	b.word.Store(1<<stateBits | uint32(spec.Mode.state())) // so that no circuit takes the zero Permit back
	return b, nil
}

// State as the last call left it: an open circuit whose wait is over is open until
// somebody calls Acquire.
func (b *Breaker) State() State { return stateOf(b.word.Load()) }

func stateOf(word uint32) State { return State(word & (1<<stateBits - 1)) }

// Acquire asks whether a call may be made. If so, Done must follow.
func (b *Breaker) Acquire(now time.Time) (Permit, bool) {
	word := b.word.Load()
	switch stateOf(word) {
	case Closed, MetricsOnly, Disabled:
		return Permit{start: now, word: word}, true
	case ForcedOpen:
		return Permit{}, false
	}
	return b.acquireProbe(now)
}

// acquireProbe is Acquire for a circuit that is not closed.
func (b *Breaker) acquireProbe(now time.Time) (p Permit, ok bool) {
	b.mu.Lock()
	if b.State() == Open && !now.Before(b.until) {
		b.enter(HalfOpen, now, fmt.Sprintf("the wait of %v is over", b.wait.Round(time.Millisecond)), b.tripped)
	}
	if b.State() == HalfOpen {
		b.settle(now)
	}
	switch b.State() {
	case HalfOpen:
		if len(b.probes)+b.completed < b.spec.PermittedCallsInHalfOpenState {
			b.lastProbe++
			b.probes = append(b.probes, probe{b.lastProbe, now.Add(b.spec.HalfOpenLease)})
			p, ok = Permit{start: now, word: b.word.Load(), probe: b.lastProbe}, true
		}
	case Closed, MetricsOnly, Disabled: // since Acquire looked
		p, ok = Permit{start: now, word: b.word.Load()}, true
	}
	b.unlock()
	return p, ok
}

// Done gives a permit back and says how its call ended. The zero Permit, one of an
// earlier state and one whose lease ran out change nothing.
func (b *Breaker) Done(p Permit, now time.Time, o Outcome) {
	if p.word != b.word.Load() {
		return
	}
	switch stateOf(p.word) {
	case HalfOpen:
		b.doneProbe(p, now, o)
		return
	case Disabled:
		return
	}
	if o == Ignored {
		return
	}
	b.mu.Lock()
	if p.word != b.word.Load() {
		b.mu.Unlock()
		return
	}
	b.record(now, b.kind(p, now, o))
	if len(b.events) == 0 {
		b.mu.Unlock()
		return
	}
	b.unlock()
}

func (b *Breaker) kind(p Permit, now time.Time, o Outcome) callKind {
	var kind callKind
	if o.Failed() {
		kind = failed
	}
	if o == TimedOut || now.Sub(p.start) > b.spec.SlowCallDurationThreshold {
		kind |= slow
	}
	return kind
}

// record counts a call of a closed circuit, or of one that is held open to metrics,
// and opens it when that was one too many. b.mu is held.
func (b *Breaker) record(now time.Time, kind callKind) {
	if b.opened > 0 && b.quiet(now) {
		b.opened = 0
	}
	before := b.window.counts.Calls
	b.window.add(now, kind)
	calls, minimum := int(b.window.counts.Calls), b.spec.MinimumNumberOfCalls
	completes := calls == minimum && b.window.counts.Calls > before
	if kind&failed != 0 {
		b.row++
	} else {
		b.row = 0
	}
	// A good call lowers the rates, but may be the one that makes them count; and a
	// window that turned may have lost good calls.
	if kind == 0 && !completes && !b.window.turned && !b.review {
		return
	}
	b.window.turned, b.review = false, false
	if b.State() != Closed {
		return
	}
	if limit := b.spec.ConsecutiveFailures; limit > 0 && b.row >= limit {
		b.open(now, fmt.Sprintf("%d failures in a row", b.row), b.window.counts)
		return
	}
	if calls < minimum {
		return
	}
	if reason, over := b.over(b.window.counts, "calls"); over {
		b.open(now, reason, b.window.counts)
	}
}

// quiet reports whether a whole window passed since the circuit closed.
func (b *Breaker) quiet(now time.Time) bool {
	if b.window.ring != nil {
		return b.window.full()
	}
	return now.Sub(b.closedAt) >= b.spec.SlidingWindow.Duration
}

// over reports whether a rate reached its threshold, and which.
func (b *Breaker) over(c WindowCounts, what string) (reason string, over bool) {
	switch {
	case c.FailureRate() >= b.spec.FailureRateThreshold:
		return fmt.Sprintf("failure rate %.1f %% of %d %s reached %v %%",
			c.FailureRate(), c.Calls, what, b.spec.FailureRateThreshold), true
	case c.SlowRate() >= b.spec.SlowCallRateThreshold:
		return fmt.Sprintf("slow-call rate %.1f %% of %d %s reached %v %%",
			c.SlowRate(), c.Calls, what, b.spec.SlowCallRateThreshold), true
	}
	return "", false
}

// doneProbe is Done for a half-open circuit.
func (b *Breaker) doneProbe(p Permit, now time.Time, o Outcome) {
	b.mu.Lock()
	defer b.unlock()
	if p.word != b.word.Load() {
		return
	}
	b.settle(now)
	i := slices.IndexFunc(b.probes, func(out probe) bool { return out.id == p.probe })
	if p.word != b.word.Load() || i < 0 {
		return
	}
	b.probes = slices.Delete(b.probes, i, i+1)
	if o == Ignored {
		return
	}
	b.completed++
	b.probed.add(b.kind(p, now, o))
	b.settle(now)
}

// settle counts the probes whose lease ran out as failed, and leaves the half-open
// state when enough is known. b.mu is held.
func (b *Breaker) settle(now time.Time) {
	lapsed := failed
	if b.spec.HalfOpenLease >= b.spec.SlowCallDurationThreshold {
		lapsed |= slow
	}
	b.probes = slices.DeleteFunc(b.probes, func(out probe) bool {
		if now.Before(out.lapse) {
			return false
		}
		b.probed.add(lapsed)
		return true
	})
	if int(b.probed.Calls) < b.spec.PermittedCallsInHalfOpenState {
		return
	}
	if reason, over := b.over(b.probed, "probes"); over {
		b.open(now, reason, b.probed)
		return
	}
	b.closedAt = now
	b.enter(Closed, now, fmt.Sprintf("failure rate %.1f %% and slow-call rate %.1f %% of %d probes",
		b.probed.FailureRate(), b.probed.SlowRate(), b.probed.Calls), b.probed)
}

// open opens the circuit. b.mu is held.
func (b *Breaker) open(now time.Time, reason string, counts WindowCounts) {
	b.opened++
	b.wait = b.nextWait()
	b.until = now.Add(b.wait)
	b.enter(Open, now, reason, counts)
	b.tripped = counts
}

// nextWait is that of the opening that b.opened counts, rounded so that no
// nanosecond is lost where the jitter is next to none.
func (b *Breaker) nextWait() time.Duration {
	wait, backoff := b.spec.WaitDurationInOpenState, b.spec.OpenBackoff
	if backoff == nil {
		return wait
	}
	grown := min(float64(wait)*math.Pow(backoff.Multiplier, float64(b.opened-1)), float64(backoff.Max))
	return time.Duration(math.Round(grown * (1 + backoff.Jitter*(2*rand.Float64()-1))))
}

// enter makes s the state, with nothing counted yet. What had been counted goes
// into the event. b.mu is held.
func (b *Breaker) enter(s State, now time.Time, reason string, counts WindowCounts) {
	word := b.word.Load()
	if b.onEvent != nil {
		b.events = append(b.events, Event{Time: now, Policy: b.name, From: stateOf(word), To: s, Reason: reason, Window: counts})
	}
	b.word.Store((word>>stateBits+1)<<stateBits | uint32(s))
	b.window.reset()
	b.row, b.review = 0, false
	b.probes, b.completed, b.probed, b.tripped = b.probes[:0], 0, WindowCounts{}, WindowCounts{}
}

// Update puts another spec in force. What the window holds stays, unless its type
// or its size changes; so do the state, the wait of an open circuit, and the
// permits that are out. Another Mode changes the state, with an event of the
// present time: to the held one, or from there to closed.
func (b *Breaker) Update(spec BreakerSpec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	spec = spec.withDefaults()
	b.mu.Lock()
	defer b.unlock()
	old, counted := b.spec, b.counted()
	b.spec, b.review = spec, true
	if spec.SlidingWindow != old.SlidingWindow {
		b.window = newWindow(spec.SlidingWindow)
	}
	if spec.Mode != old.Mode {
		reason := fmt.Sprintf("mode %s was set", spec.Mode)
		if spec.Mode == ModeAutomatic {
			reason = fmt.Sprintf("mode %s was lifted", old.Mode)
		}
		b.opened = 0
		b.enter(spec.Mode.state(), time.Now(), reason, counted)
	}
	return nil
}

// Reset forgets everything that was counted and closes the circuit, unless a mode
// holds it: that is lifted by Update.
func (b *Breaker) Reset(now time.Time) {
	b.mu.Lock()
	defer b.unlock()
	b.window.at(now)
	b.opened = 0
	b.enter(b.spec.Mode.state(), now, "reset", b.counted())
}

// Counts returns what has been counted in the state that the circuit is in: the
// window; half-open, the probes; open, what opened it.
func (b *Breaker) Counts(now time.Time) WindowCounts {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.window.at(now)
	return b.counted()
}

func (b *Breaker) counted() WindowCounts {
	switch b.State() {
	case Open:
		return b.tripped
	case HalfOpen:
		return b.probed
	}
	return b.window.counts
}

// RetryAfter is how long Acquire will refuse calls, as far as is known: until the
// wait is over, or until the first lease of a half-open circuit's permits runs out.
// 0 when it would not refuse, and when only a person can tell.
func (b *Breaker) RetryAfter(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.State() {
	case Open:
		return max(0, b.until.Sub(now))
	case HalfOpen:
		if len(b.probes) == 0 || len(b.probes)+b.completed < b.spec.PermittedCallsInHalfOpenState {
			return 0
		}
		first := slices.MinFunc(b.probes, func(x, y probe) int { return x.lapse.Compare(y.lapse) })
		return max(0, first.lapse.Sub(now))
	}
	return 0
}

// unlock releases b.mu and hands over the events that came up meanwhile, outside of
// it and in order: whoever finds nobody at it hands over all there are.
func (b *Breaker) unlock() {
	if len(b.events) == 0 || b.delivering {
		b.mu.Unlock()
		return
	}
	b.delivering = true
	done := false
	defer func() {
		if !done { // onEvent panicked: let others go on
			b.mu.Lock()
		}
		b.delivering = false
		b.mu.Unlock()
	}()
	for len(b.events) > 0 {
		e := b.events[0]
		b.events = slices.Delete(b.events, 0, 1)
		b.mu.Unlock()
		b.onEvent(e)
		b.mu.Lock()
	}
	done = true
}
