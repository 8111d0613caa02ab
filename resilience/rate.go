package resilience

import (
	"context"
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// RateLimiter lets Requests per Period through, evenly, and Burst of them at once.
// In no interval of length t it lets more through than Burst + Requests × t/Period,
// however many goroutines ask.
//
//	if ok, after := l.Allow(time.Now()); !ok {
//		return retryAfter(after)
//	}
//
// It is the generic cell rate algorithm: all state is the time at which the bucket
// will be full again. A clock that goes backwards does no harm: at worst the limiter
// counts its burst as used up at the earlier time. All methods may be called at the
// same time.
type RateLimiter struct {
	cur atomic.Pointer[gcra] // stored under mu
	mu  sync.Mutex
}

// gcra is the state of a RateLimiter relative to a moment not long ago. Time is
// counted in fractions of a nanosecond such that the interval between two calls is
// a whole number of them, so that three calls a second are not a call every
// 333333333 ns.
type gcra struct {
	spec      RateLimitSpec
	base      time.Time
	horizon   time.Duration // how far from base the numbers below hold; -1: base is not known yet
	unit      int64         // units a nanosecond
	interval  int64         // units between two calls
	tolerance int64         // how far tat may be ahead of a call that passes at once
	furthest  int64         // how far tat can be ahead of a clock that never goes back

	// What the limiter was before an Update, until a call brings the time.
	before    *gcra
	beforeTAT int64

	// tat is the theoretical arrival time: when the bucket will be full again,
	// since base. Or one of:
	tat atomic.Int64
}

const (
	tatIdle  = math.MinInt64 // full, always has been
	tatMoved = math.MaxInt64 // RateLimiter.cur is, or is about to be, another
)

const (
	// A gcra is replaced when base is so long ago. The shorter, the more room is
	// left for fractions: at ten minutes rates with 21 significant bits are exact.
	// Beyond that the interval is rounded up by less than 1/1000000 ns.
	rateHorizon = 10 * time.Minute
	// A wall clock that is set back by more than this is believed. Calls whose
	// callers read the clock in another order than they arrive differ by less.
	clockSkew = time.Second
)

// NewRateLimiter returns a RateLimiter with a full burst, or a FieldError when s is
// out of range.
func NewRateLimiter(s RateLimitSpec) (*RateLimiter, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	l := &RateLimiter{}
	l.cur.Store(newGCRA(s.withDefaults()))
	return l, nil
}

// Update changes the rate of a RateLimiter in use. The share of the burst that is
// used up stays used up; calls that wait already keep their turn.
func (l *RateLimiter) Update(s RateLimitSpec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	next := newGCRA(s.withDefaults())
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.cur.Load()
	if old.horizon < 0 {
		next.before, next.beforeTAT = old.before, old.beforeTAT
	} else {
		next.before, next.beforeTAT = old, old.tat.Swap(tatMoved)
	}
	l.cur.Store(next)
	return nil
}

// Allow reports whether a call may pass now, and counts it if so. If not, it
// returns when to ask again, exactly, if nobody else asks.
func (l *RateLimiter) Allow(now time.Time) (ok bool, retryAfter time.Duration) {
	wait, g, _ := l.take(now, 0)
	return g != nil, wait
}

// Wait waits for the turn of a call, first come, first served. It returns
// ErrRateLimited at once, and the call does not count, when its turn would come
// after MaxWaitDuration or not before the deadline of ctx. When ctx ends before
// its turn it returns the cause; the call still counts if others wait behind it.
func (l *RateLimiter) Wait(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	now := time.Now()
	patience := time.Duration(math.MaxInt64)
	if deadline, ok := ctx.Deadline(); ok {
		patience = max(0, deadline.Sub(now)-1)
	}
	wait, g, tat := l.take(now, patience)
	if g == nil {
		return ErrRateLimited
	}
	if wait == 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		// Only the last in line can step back: the turns of those behind are fixed.
		g.tat.CompareAndSwap(tat, tat-g.interval)
		return context.Cause(ctx)
	}
}

// take takes a turn that comes within the patience and MaxWaitDuration, and returns
// how long until then, and in which gcra it was taken with which tat. Without a turn
// it returns a nil gcra, and when one could be had at once.
func (l *RateLimiter) take(now time.Time, patience time.Duration) (time.Duration, *gcra, int64) {
	for {
		g := l.cur.Load()
		since := now.Sub(g.base)
		if since > g.horizon || since < -g.horizon {
			l.move(now, false)
			continue
		}
		t := int64(since) * g.unit
		tat := g.tat.Load()
		if tat == tatMoved {
			l.move(now, false) // waits until the next is in place
			continue
		}
		start := max(tat, t)
		early := start - t - g.tolerance
		if early > 0 {
			if start-t-g.furthest > int64(clockSkew)*g.unit && now == now.Round(0) {
				l.move(now, true)
				continue
			}
			wait := time.Duration((early + g.unit - 1) / g.unit)
			if wait > min(patience, g.spec.MaxWaitDuration) {
				return wait, nil, 0
			}
			if g.tat.CompareAndSwap(tat, start+g.interval) {
				return wait, g, start + g.interval
			}
			continue
		}
		if g.tat.CompareAndSwap(tat, start+g.interval) {
			return 0, g, 0
		}
	}
}

// move makes now the base, because it is beyond the horizon, or because the clock
// was set back.
func (l *RateLimiter) move(now time.Time, setBack bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.cur.Load()
	since := now.Sub(old.base)
	if !setBack && since <= old.horizon && since >= -old.horizon {
		return // somebody else did it
	}
	next := newGCRA(old.spec)
	next.base, next.horizon = now, rateHorizon
	var ahead int64
	if old.horizon < 0 {
		if old.before != nil {
			ahead = next.share(old.before, old.before.ahead(now, old.beforeTAT))
		}
	} else {
		ahead = old.ahead(now, old.tat.Swap(tatMoved))
	}
	if ahead > 0 {
		next.tat.Store(ahead)
	}
	l.cur.Store(next)
}

// ahead is how far tat is after now. More than could be is what a clock leaves
// behind that was set back: then the burst is used up.
func (g *gcra) ahead(now time.Time, tat int64) int64 {
	if tat == tatIdle {
		return 0
	}
	since := int64(now.Sub(g.base))
	if since > 0 && since > math.MaxInt64/2/g.unit {
		return 0
	}
	if since < 0 && since < -math.MaxInt64/4/g.unit || tat-since*g.unit > g.furthest {
		return g.tolerance + g.interval
	}
	return max(0, tat-since*g.unit)
}

// share converts what is used of a burst of old into the same number of calls of g.
func (g *gcra) share(old *gcra, ahead int64) int64 {
	hi, lo := bits.Mul64(uint64(ahead), uint64(g.interval))
	lo, carry := bits.Add64(lo, uint64(old.interval)-1, 0)
	if hi += carry; hi >= uint64(old.interval) {
		return g.furthest
	}
	calls, _ := bits.Div64(hi, lo, uint64(old.interval))
	return int64(min(calls, uint64(g.furthest)))
}

// newGCRA returns an idle gcra without a base. Its arithmetic cannot overflow:
// Validate keeps the whole burst below 2^61 ns.
func newGCRA(s RateLimitSpec) *gcra {
	period, requests := lowestTerms(int64(s.Period), int64(s.Requests))
	whole := float64(s.Burst) * float64(period) / float64(requests)
	room := float64(2*rateHorizon+s.MaxWaitDuration+2*clockSkew) + whole
	g := &gcra{spec: s, horizon: -1}
	g.unit = max(1, min(requests, int64((1<<62)/room)))
	hi, lo := bits.Mul64(uint64(period), uint64(g.unit))
	lo, carry := bits.Add64(lo, uint64(requests)-1, 0)
	interval, _ := bits.Div64(hi+carry, lo, uint64(requests))
	g.interval = int64(interval)
	g.tolerance = int64(s.Burst-1) * g.interval
	g.furthest = g.tolerance + g.interval + int64(s.MaxWaitDuration)*g.unit
	g.tat.Store(tatIdle)
	return g
}

func lowestTerms(a, b int64) (int64, int64) {
	x, y := a, b
	for y != 0 {
		x, y = y, x%y
	}
	return a / x, b / x
}
