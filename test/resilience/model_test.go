package resilience

import (
	"math"
	"slices"
	"time"

	"github.com/weftmesh/weft/resilience"
)

// model is a circuit breaker that is meant to be read and not to be fast: it
// forgets nothing while a state lasts, and computes everything from that.
type model struct {
	spec  resilience.BreakerSpec // every field is set
	state resilience.State
	epoch int

	calls []call // counted in this state, oldest first
	row   int    // failures in a row

	opened   int // openings since a whole window passed without one
	closedAt time.Time
	until    time.Time
	tripped  resilience.WindowCounts

	probes    []*permit // out, in the order in which they were given
	completed int
	probed    []call

	events []resilience.Event
}

type call struct {
	at           time.Time
	failed, slow bool
}

// permit is what the model and the breaker gave for the same call.
type permit struct {
	real  resilience.Permit
	epoch int
	start time.Time
	lapse time.Time // the end of a probe's lease
}

func newModel(spec resilience.BreakerSpec) *model {
	m := &model{spec: spec}
	m.state = held(spec.Mode)
	return m
}

func held(mode resilience.Mode) resilience.State {
	if s, ok := resilience.ParseState(string(mode)); ok {
		return s
	}
	return resilience.Closed
}

func (m *model) acquire(now time.Time) (*permit, bool) {
	if m.state == resilience.Open && !now.Before(m.until) {
		m.enter(resilience.HalfOpen, now, m.tripped)
	}
	m.settle(now)
	p := &permit{epoch: m.epoch, start: now}
	switch m.state {
	case resilience.Open, resilience.ForcedOpen:
		return nil, false
	case resilience.HalfOpen:
		if len(m.probes)+m.completed >= m.spec.PermittedCallsInHalfOpenState {
			return nil, false
		}
		p.lapse = now.Add(m.spec.HalfOpenLease)
		m.probes = append(m.probes, p)
	}
	return p, true
}

func (m *model) done(p *permit, now time.Time, o resilience.Outcome) {
	if p.epoch != m.epoch {
		return
	}
	c := call{at: now, failed: o == resilience.Failure || o == resilience.TimedOut}
	c.slow = o == resilience.TimedOut || now.Sub(p.start) > m.spec.SlowCallDurationThreshold
	switch m.state {
	case resilience.HalfOpen:
		m.settle(now)
		i := slices.Index(m.probes, p)
		if i < 0 {
			return
		}
		m.probes = slices.Delete(m.probes, i, i+1)
		if o != resilience.Ignored {
			m.completed++
			m.probed = append(m.probed, c)
			m.settle(now)
		}
	case resilience.Closed, resilience.MetricsOnly:
		if o != resilience.Ignored {
			m.count(c)
		}
	}
}

func (m *model) count(c call) {
	if m.quiet(c.at) {
		m.opened = 0
	}
	m.calls = append(m.calls, c)
	m.row++
	if !c.failed {
		m.row = 0
	}
	if m.state != resilience.Closed {
		return
	}
	counts := m.window(c.at)
	minimum := m.spec.MinimumNumberOfCalls
	if m.spec.SlidingWindow.Type == resilience.CountWindow {
		minimum = min(minimum, m.spec.SlidingWindow.Size)
	}
	inARow := m.spec.ConsecutiveFailures > 0 && m.row >= m.spec.ConsecutiveFailures
	if inARow || int(counts.Calls) >= minimum && m.over(counts) {
		m.open(c.at, counts)
	}
}

// quiet: a whole window has passed since the circuit closed.
func (m *model) quiet(now time.Time) bool {
	if m.spec.SlidingWindow.Type == resilience.CountWindow {
		return len(m.calls) >= m.spec.SlidingWindow.Size
	}
	return now.Sub(m.closedAt) >= m.spec.SlidingWindow.Duration
}

// window sums up the calls that are in the window at now: the last Size, or those of
// the bucket that now is in and of the ones before it. Buckets are as wide as the
// window is long by their number, and the first begins with the first call.
func (m *model) window(now time.Time) resilience.WindowCounts {
	w := m.spec.SlidingWindow
	if w.Type == resilience.CountWindow {
		return sum(m.calls[max(0, len(m.calls)-w.Size):])
	}
	buckets := math.Ceil(w.Duration.Seconds())
	buckets = min(max(buckets, 10), 60)
	var within []call
	for _, c := range m.calls {
		if m.bucket(now, buckets)-m.bucket(c.at, buckets) < int64(buckets) {
			within = append(within, c)
		}
	}
	return sum(within)
}

func (m *model) bucket(t time.Time, buckets float64) int64 {
	width := int64(m.spec.SlidingWindow.Duration) / int64(buckets)
	return int64(t.Sub(m.calls[0].at)) / width
}

func sum(calls []call) (c resilience.WindowCounts) {
	for _, x := range calls {
		c.Calls++
		if x.failed {
			c.Failures++
		}
		if x.slow {
			c.Slow++
		}
	}
	return c
}

// over compares whole numbers: thresholds have one decimal.
func (m *model) over(c resilience.WindowCounts) bool {
	reached := func(n uint32, threshold float64) bool {
		return uint64(n)*1000 >= uint64(c.Calls)*uint64(math.Round(threshold*10))
	}
	return reached(c.Failures, m.spec.FailureRateThreshold) || reached(c.Slow, m.spec.SlowCallRateThreshold)
}

func (m *model) settle(now time.Time) {
	if m.state != resilience.HalfOpen {
		return
	}
	for i := len(m.probes) - 1; i >= 0; i-- {
		if now.Before(m.probes[i].lapse) {
			continue
		}
		m.probes = slices.Delete(m.probes, i, i+1)
		m.probed = append(m.probed, call{failed: true, slow: m.spec.HalfOpenLease >= m.spec.SlowCallDurationThreshold})
		reached["a lease ran out"]++
	}
	counts := sum(m.probed)
	if int(counts.Calls) < m.spec.PermittedCallsInHalfOpenState {
		return
	}
	if m.over(counts) {
		m.open(now, counts)
		return
	}
	m.closedAt = now
	m.enter(resilience.Closed, now, counts)
}

func (m *model) open(now time.Time, counts resilience.WindowCounts) {
	m.opened++
	wait := m.spec.WaitDurationInOpenState
	if b := m.spec.OpenBackoff; b != nil {
		for range m.opened - 1 {
			wait = min(time.Duration(float64(wait)*b.Multiplier), b.Max)
			reached["a longer wait"]++
		}
	}
	m.until = now.Add(wait)
	m.enter(resilience.Open, now, counts)
	m.tripped = counts
}

func (m *model) enter(s resilience.State, now time.Time, counts resilience.WindowCounts) {
	m.events = append(m.events, resilience.Event{Time: now, Policy: "judged", From: m.state, To: s, Window: counts})
	reached[m.state.String()+" to "+s.String()]++
	m.state = s
	m.epoch++
	m.calls, m.row = nil, 0
	m.probes, m.completed, m.probed, m.tripped = nil, 0, nil, resilience.WindowCounts{}
}

func (m *model) update(spec resilience.BreakerSpec, now time.Time) {
	was, counts := m.spec, m.counts(now)
	m.spec = spec
	if spec.Mode != was.Mode {
		m.opened = 0
		m.enter(held(spec.Mode), now, counts)
	} else if spec.SlidingWindow != was.SlidingWindow {
		m.calls = nil
	}
}

func (m *model) reset(now time.Time) {
	counts := m.counts(now)
	m.opened = 0
	m.enter(held(m.spec.Mode), now, counts)
}

func (m *model) counts(now time.Time) resilience.WindowCounts {
	switch m.state {
	case resilience.Open:
		return m.tripped
	case resilience.HalfOpen:
		return sum(m.probed)
	}
	return m.window(now)
}

func (m *model) retryAfter(now time.Time) time.Duration {
	switch {
	case m.state == resilience.Open:
		return max(0, m.until.Sub(now))
	case m.state == resilience.HalfOpen && len(m.probes) > 0 &&
		len(m.probes)+m.completed >= m.spec.PermittedCallsInHalfOpenState:
		first := m.probes[0].lapse
		for _, p := range m.probes {
			if p.lapse.Before(first) {
				first = p.lapse
			}
		}
		return max(0, first.Sub(now))
	}
	return 0
}
