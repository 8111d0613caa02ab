package resilience

import (
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Priority of a call. The zero value is Normal.
type Priority uint8

const (
	Normal Priority = iota
	Low
	High
	Critical
)

var priorityNames = [...]string{Normal: "normal", Low: "low", High: "high", Critical: "critical"}

// ParsePriority reads "low", "normal", "high" or "critical". ok is false for
// anything else, and p then Normal.
func ParsePriority(s string) (p Priority, ok bool) {
	for p, name := range priorityNames {
		if s == name {
			return Priority(p), true
		}
	}
	return Normal, false
}

func (p Priority) String() string {
	if int(p) < len(priorityNames) {
		return priorityNames[p]
	}
	return "unknown"
}

// shares is how many percent of the limit may be in flight for a call of each
// priority to be let in.
var shares = [...]int64{Low: 70, Normal: 90, High: 100, Critical: 110}

// Adaptive finds by itself how many calls at once a service bears, from how its
// latency changes, and rejects the rest before it queues up there.
//
//	if !a.Acquire(start, resilience.Normal) {
//		return resilience.ErrConcurrencyLimited
//	}
//	… call …
//	a.Done(start, time.Now(), outcome)
//
// A call is let in when fewer are in flight than its priority's share of the limit,
// rounded up: Low 70 %, Normal 90 %, High 100 %, Critical 110 %. When the limit is
// reached the least important are rejected first; an idle Adaptive lets every
// priority in, whatever the limit.
//
// It looks at windows of at least 100 ms, twice the latency, and 32 calls, and only
// at calls that began in the window, so that it sees what its last step did:
//
//   - Gradient multiplies the limit by 1.5 × the long-term latency / the window's
//     latency, at least 0.5 and at most 1, adds √limit, and goes a fifth of the way
//     there, or half of it when latency has tripled. In balance it allows the service
//     a queue of about half its capacity.
//   - Vegas takes limit × (1 − least latency / the window's latency) for the length of
//     the service's queue, and keeps it between 3 and 6 × log10(limit): below it
//     grows, above it gives back half of what is too much.
//
// Either way the limit shrinks by half the share of calls that failed in a window,
// so that rare errors hardly matter and a service that times out loses half of it
// each time; and it does not grow while less than half of it is in use.
//
// What latency is without a queue cannot be seen while there is one. Every 50 to 100
// windows, at random so that the clients of a service do not do it together, half of
// the limit holds for one window, and as long as that makes latency fall by a fifth,
// half of that. A limit that has come down by half is reason for a probe, too: what
// looks like a queue may be a service that has become slower. All methods may be called at the same time.
type Adaptive struct {
	limit    atomic.Int64 // that holds: found, or less in a probe
	inFlight atomic.Int64
	probing  atomic.Bool // stored under mu

	mu       sync.Mutex
	spec     AdaptiveSpec
	found    float64 // the limit, as long as there is no probe
	base     float64 // ns, latency without a queue; 0 is unknown
	window   adaptiveWindow
	length   time.Duration // of the window, at least
	windows  int           // until the next probe
	probed   float64       // found when the last probe ended
	before   float64       // ns, latency before the limit was halved
	known    float64       // base before the probe
	draining bool          // in a probe: more than its limit are still in flight
	giveUp   time.Time     // on halving: calls that hang must not keep the limit low
	random   uint64        // state of a xorshift generator
}

// adaptiveWindow is what is known of the calls that began after start.
type adaptiveWindow struct {
	start     time.Time
	latency   float64 // ns, sum over successes
	successes int
	failures  int
	peak      int64 // in flight
}

const (
	adaptiveWindowMin   = 100 * time.Millisecond
	adaptiveWindowMax   = 5 * time.Second // but always as long as the calls take
	adaptiveWindowCalls = 32              // or four times the limit, in a probe eight times, if that is less
	adaptiveProbeEvery  = 50              // windows, and up to as many more
	adaptiveProbeSoon   = 5               // windows, when latency without a queue may be unknown
	adaptiveProbeLength = 10              // windows, at most, for each halving
	gradientTolerance   = 1.5
	gradientSmoothing   = 0.2
	gradientMemory      = 600 // windows
)

// NewAdaptive returns an Adaptive, or a FieldError when s is out of range.
func NewAdaptive(s AdaptiveSpec) (*Adaptive, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	s = s.withDefaults()
	a := &Adaptive{spec: s, found: float64(s.InitialLimit), length: adaptiveWindowMin, random: rand.Uint64() | 1}
	a.windows = adaptiveProbeSoon // the first latencies may well be those of a queue
	a.limit.Store(int64(s.InitialLimit))
	return a, nil
}

// Update changes an Adaptive in use. The limit that was found stays, moved into the
// new bounds; InitialLimit is not used.
func (a *Adaptive) Update(s AdaptiveSpec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.spec = s.withDefaults()
	a.window = adaptiveWindow{}
	a.probing.Store(false)
	a.draining = false
	a.setLimit(a.found)
	return nil
}

// Acquire reports whether a call of priority p may begin. If so, Done must follow.
func (a *Adaptive) Acquire(now time.Time, p Priority) bool {
	if int(p) >= len(shares) {
		p = Normal
	}
	for {
		n := a.inFlight.Load()
		if n >= (a.limit.Load()*shares[p]+99)/100 {
			if a.probing.Load() {
				a.endLateProbe(now)
			}
			return false
		}
		if a.inFlight.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Done ends a call that Acquire let in at start. Ignored outcomes say nothing about
// the service; of failures only the number counts, and not how long they took. It
// panics when no call is in flight.
func (a *Adaptive) Done(start, now time.Time, o Outcome) {
	n := a.inFlight.Add(-1) + 1
	if n <= 0 {
		panic("resilience: Done of an Adaptive without Acquire")
	}
	if o == Ignored {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	w := &a.window
	if w.start.IsZero() || w.start.Sub(now) > clockSkew { // the first call, or the clock was set back
		a.open(start)
	}
	if a.draining {
		if n-1 <= a.limit.Load() {
			a.draining = false
			a.open(now)
		}
		return
	}
	if start.Before(w.start) {
		return
	}
	if o.Failed() {
		w.failures++
	} else {
		w.successes++
		w.latency += max(1, float64(now.Sub(start)))
	}
	w.peak = max(w.peak, n)
	enough := 4 * a.limit.Load()
	if a.probing.Load() {
		enough *= 2
	}
	if calls := w.successes + w.failures; int64(calls) >= min(enough, adaptiveWindowCalls) && now.Sub(w.start) >= a.length {
		a.close(now)
	}
}

// Limit is the limit found, also while a probe holds a smaller one.
func (a *Adaptive) Limit() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return int(a.found)
}

// InFlight is how many calls are in flight.
func (a *Adaptive) InFlight() int { return int(a.inFlight.Load()) }

func (a *Adaptive) open(start time.Time) { a.window = adaptiveWindow{start: start} }

// close draws the conclusions from a window and opens the next one.
func (a *Adaptive) close(now time.Time) {
	w := a.window
	a.open(now)
	latency := 0.0
	if w.successes > 0 {
		latency = w.latency / float64(w.successes)
		longest := max(latency, a.base)
		a.length = min(max(adaptiveWindowMin, time.Duration(2*longest)), adaptiveWindowMax)
	}
	busy := 2*w.peak >= a.limit.Load()
	next := a.found
	switch {
	case a.probing.Load():
		if latency > 0 && latency < 0.8*a.before && a.limit.Load() > int64(a.spec.MinLimit) {
			a.learn(latency, true)
			a.probe(now, latency)
			return
		}
		a.learn(latency, true)
		a.endProbe(now)
	case latency > 0:
		a.windows--
		a.learn(latency, a.windows <= 0 && !busy)
		if busy {
			next = a.step(latency)
		}
	}
	next *= 1 - float64(w.failures)/float64(2*(w.failures+w.successes))
	a.found = min(max(next, float64(a.spec.MinLimit)), float64(a.spec.MaxLimit))
	if a.windows <= 0 || a.found < a.probed/2 {
		// A window in which less than half was in use was as good as a probe.
		if busy && latency > 0 {
			a.probe(now, latency)
			return
		}
		a.schedule()
	}
	a.setLimit(a.found)
}

// learn takes a window's latency into account for base; unloaded says that there was
// no queue as far as could be done about it.
func (a *Adaptive) learn(latency float64, unloaded bool) {
	switch {
	case latency == 0:
	case a.base == 0, unloaded && latency < a.base:
		a.base = latency
	case latency < a.base:
		// Not all at once: the least of many windows is an error of measurement.
		a.base += (latency - a.base) / 8
	case unloaded && a.spec.Algorithm == Vegas:
		a.base = latency
	case unloaded:
		a.base += (latency - a.base) / 2
	case a.spec.Algorithm == Gradient:
		a.base += (latency - a.base) / gradientMemory
	}
}

// step is the limit after a window that made use of the present one.
func (a *Adaptive) step(latency float64) float64 {
	if a.spec.Algorithm == Vegas {
		return vegasStep(a.found, a.base, latency)
	}
	return gradientStep(a.found, a.base, latency)
}

func gradientStep(limit, base, latency float64) float64 {
	gradient := min(max(gradientTolerance*base/latency, 0.5), 1)
	target := limit*gradient + math.Sqrt(limit)
	if gradient == 0.5 {
		return (limit + target) / 2
	}
	return limit + (target-limit)*gradientSmoothing
}

func vegasStep(limit, base, latency float64) float64 {
	queue := limit * (1 - min(1, base/latency))
	unit := max(1, math.Log10(limit))
	switch alpha, beta := 3*unit, 6*unit; {
	case queue <= unit:
		return limit + beta
	case queue < alpha:
		return limit + unit
	case queue > beta:
		return limit - max(unit, (queue-beta)/2)
	}
	return limit
}

// probe halves the limit that holds, to see whether latency falls below the given.
func (a *Adaptive) probe(now time.Time, latency float64) {
	if !a.probing.Load() {
		a.known = a.base
	}
	a.giveUp = now.Add(adaptiveProbeLength * a.length)
	a.probing.Store(true)
	a.before = latency
	a.setLimit(float64(a.limit.Load()) / 2)
	a.draining = a.inFlight.Load() > a.limit.Load()
}

func (a *Adaptive) endProbe(now time.Time) {
	a.probing.Store(false)
	a.draining = false
	a.schedule()
	if a.base < 0.8*a.known { // there may be more to learn
		a.windows = adaptiveProbeSoon
	}
	a.open(now)
	a.setLimit(a.found)
}

// endLateProbe ends a probe in which calls do not come back.
func (a *Adaptive) endLateProbe(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.probing.Load() && now.After(a.giveUp) {
		a.endProbe(now)
	}
}

// schedule sets when the next probe is due.
func (a *Adaptive) schedule() {
	a.random ^= a.random << 13
	a.random ^= a.random >> 7
	a.random ^= a.random << 17
	a.probed = a.found
	a.windows = adaptiveProbeEvery + int(a.random%adaptiveProbeEvery)
}

func (a *Adaptive) setLimit(limit float64) {
	a.limit.Store(int64(min(max(limit, float64(a.spec.MinLimit)), float64(a.spec.MaxLimit))))
}
