package resilience

import (
	"sync"
	"sync/atomic"
	"time"
)

// budgetWindow is how far back a Budget looks, in seconds.
const budgetWindow = 10

// Budget keeps retries and hedges together a fraction of the calls of the last
// ten seconds, so that a failing service is not buried under its callers' retries.
// It counts over a window and not over calls in flight: the death of one instance
// fails many calls in one instant, and all of these deserve their second try. What
// was spent comes back evenly over the ten seconds, not at once at their end: that
// would be a burst on a service that has just come back.
//
// The zero value allows 20 % and three retries a second on top.
type Budget struct {
	Percent      float64 // of the calls in the window; 0 means 20
	MinPerSecond float64 // allowed whatever the traffic; 0 means 3

	seconds [budgetWindow]budgetSecond

	mu    sync.Mutex // only who retries waits for it
	debt  float64    // retries that were granted and have not come back
	asked time.Time  // when debt was last looked at
}

type budgetSecond struct {
	second atomic.Int64 // which second of time the count belongs to
	calls  atomic.Int64
}

// Call counts a first try.
func (b *Budget) Call(now time.Time) { b.at(now).calls.Add(1) }

// Retry reports whether one more retry is within the budget, and counts it if so.
func (b *Budget) Retry(now time.Time) bool {
	s := BudgetSpec{b.Percent, b.MinPerSecond}.withDefaults()
	return b.spend(now, s.Percent, s.MinPerSecond)
}

// spend is Retry with the numbers of a policy, which change while b lives.
func (b *Budget) spend(now time.Time, percent, perSecond float64) bool {
	var calls int64
	oldest := now.Unix() - budgetWindow
	for i := range b.seconds {
		if s := &b.seconds[i]; s.second.Load() > oldest {
			calls += s.calls.Load()
		}
	}
	allowed := float64(calls)*percent/100 + perSecond*budgetWindow
	b.mu.Lock()
	defer b.mu.Unlock()
	if gone := now.Sub(b.asked); gone > 0 {
		b.debt = max(0, b.debt-allowed*gone.Seconds()/budgetWindow)
		b.asked = now
	}
	if b.debt+1 > allowed+1e-9 { // debt is a sum of fractions
		return false
	}
	b.debt++
	return true
}

// at returns the slot of the present second, emptied if it was last used in
// another. Two callers may race to empty it: a few counts are lost, never made up.
func (b *Budget) at(now time.Time) *budgetSecond {
	second := now.Unix()
	s := &b.seconds[uint64(second)%budgetWindow]
	if old := s.second.Load(); old != second && s.second.CompareAndSwap(old, second) {
		s.calls.Store(0)
	}
	return s
}
