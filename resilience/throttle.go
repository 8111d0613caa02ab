package resilience

import (
	"sync"
	"time"
)

// throttleBuckets is how many parts a window has; it forgets a part at a time.
const throttleBuckets = 20

// Throttle rejects at the client what the server would reject anyway, so that a
// server that sheds load does not spend itself on saying no. Of the calls that were
// asked for in the window, K times those that the server accepted may pass; of the
// rest a random part, which is the smaller the fewer are accepted:
//
//	P(reject) = max(0, (requests − K × accepts) / (requests + 1))
//
//	if !t.Admit(time.Now(), rand.Uint64()) {
//		return resilience.ErrThrottled
//	}
//	… send; if the server took the call, whatever it answered:
//	t.Accepted(time.Now())
//
// The probability is never 1. A server that accepts nothing is still asked about
// once in as many calls as the window holds, and its first answer lets K more pass.
// With K = 2 and 10,000 calls in a window that grows to all of them within five or six
// windows after the server is back: a long window forgives slowly. All methods may be
// called at the same time.
type Throttle struct {
	mu      sync.Mutex
	k       float64
	width   time.Duration                   // of a bucket
	base    time.Time                       // when bucket 0 began; zero when the next call says
	present int64                           // number of the bucket that counts now
	buckets [throttleBuckets]throttleBucket // the bucket of number n is at n modulo their count
	sum     throttleBucket                  // of buckets
}

type throttleBucket struct{ requests, accepts int64 }

// NewThrottle returns a Throttle, or a FieldError when s is out of range.
func NewThrottle(s ThrottleSpec) (*Throttle, error) {
	t := &Throttle{}
	if err := t.Update(s); err != nil {
		return nil, err
	}
	return t, nil
}

// Update changes a Throttle in use. When the window changes, what was counted
// counts as of now.
func (t *Throttle) Update(s ThrottleSpec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	s = s.withDefaults()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.k = s.K
	if width := s.Window / throttleBuckets; width != t.width {
		t.width = width
		t.base = time.Time{} // the next call brings the time
	}
	return nil
}

// Admit reports whether a call may be sent, and counts that it was asked for.
// random is uniform over all its values.
func (t *Throttle) Admit(now time.Time, random uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.at(now)
	over := float64(t.sum.requests) - t.k*float64(t.sum.accepts)
	requests := float64(t.sum.requests)
	b.requests++
	t.sum.requests++
	// 53 bits are what a float64 holds: the fraction stays below 1.
	return over <= 0 || float64(random>>11)/(1<<53)*(requests+1) >= over
}

// Accepted counts a call that the server did not turn away.
func (t *Throttle) Accepted(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at(now).accepts++
	t.sum.accepts++
}

// Withdraw takes back what Admit counted, for a call that was not sent after all. To
// call it accepted would let K more through for each one that the server never saw.
func (t *Throttle) Withdraw(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.at(now)
	if t.sum.requests > 0 { // else the request has left the window
		b.requests--
		t.sum.requests--
	}
}

// at returns the bucket of the present, and forgets those that have left the window.
// A time before the present counts as the present, unless it is a whole window
// before: then the clock was set back.
func (t *Throttle) at(now time.Time) *throttleBucket {
	n := int64(now.Sub(t.base) / t.width)
	switch {
	case t.base.IsZero(), n <= t.present-throttleBuckets:
		return t.restart(now, t.sum)
	case n >= t.present+throttleBuckets:
		return t.restart(now, throttleBucket{})
	}
	for ; t.present < n; t.present++ {
		old := &t.buckets[(t.present+1)%throttleBuckets]
		t.sum.requests -= old.requests
		t.sum.accepts -= old.accepts
		*old = throttleBucket{}
	}
	return &t.buckets[t.present%throttleBuckets]
}

// restart begins to number buckets at now, with what is still in the window.
func (t *Throttle) restart(now time.Time, sum throttleBucket) *throttleBucket {
	t.base, t.present = now, 0
	t.sum = sum
	t.buckets = [throttleBuckets]throttleBucket{0: sum}
	return &t.buckets[0]
}
