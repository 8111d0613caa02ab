package resilience

import (
	"sync"
	"time"
)

// throttleBuckets is how many parts a window has; it forgets a part at a time.
const throttleBuckets = 20

// Throttle rejects at the client what the server would reject anyway, so that a
// server that sheds load does not spend itself on saying no. Of the calls in the
// window K times those that the server accepted may pass; of the rest a random part,
// which is the smaller the fewer are accepted:
//
//	P(reject) = max(0, (requests − K × accepts) / (requests + 1))
//
//	if !t.Admit(time.Now(), rand.Uint64()) {
//		return resilience.ErrThrottled
//	}
//	… send; when the answer is known:
//	t.Done(time.Now(), accepted)
//
// Requests are the calls that were answered or given up by a timeout, and those that
// the Throttle rejected itself. What is on its way counts neither way: taken for a
// request, a burst at a healthy server would look like one that is turned away. A call
// that was never sent, or that its caller gave up, has no Done, and nothing needs to
// be taken back for it. The price is that a server's failing shows only when the first
// failure comes back: until then, one latency or timeout, all pass as before.
//
// The probability is never 1. With r requests in the window and no accept among them
// one call in r + 1 passes, and as rejections are requests too that is about one call
// a window, however many are asked for; when nothing is in the window, all pass. The
// first accept lets K more through. With K = 2 and 10,000 calls in a window that grows
// to all of them in about six windows after the server is back, and in seven when an
// answer takes a tenth of a window: a long window forgives slowly. All methods may be
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

// Admit reports whether a call may be sent, and counts the call if not. random is
// uniform over all its values.
func (t *Throttle) Admit(now time.Time, random uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.at(now)
	requests := float64(t.sum.requests)
	over := requests - t.k*float64(t.sum.accepts)
	// 53 bits are what a float64 holds: the fraction stays below 1.
	if over <= 0 || float64(random>>11)/(1<<53)*(requests+1) >= over {
		return true
	}
	b.requests++
	t.sum.requests++
	return false
}

// Done counts a call that Admit let through: accepted if the server did not turn it
// away, whatever it answered.
func (t *Throttle) Done(now time.Time, accepted bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.at(now)
	b.requests++
	t.sum.requests++
	if accepted {
		b.accepts++
		t.sum.accepts++
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
