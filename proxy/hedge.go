package proxy

import (
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/weftmesh/weft/resilience"
)

// A hedge is a second attempt beside one that takes long; whichever answers first
// is the answer, and the other is given up. Only a request that lies whole in
// memory and may be sent twice is hedged.

// race is one attempt and its hedges. The exchange's goroutine runs it; each attempt
// has a goroutine that waits. A hedge that still connects when the race is over is
// left behind: it knows nothing of the exchange, and what it opens is kept for others.
type race struct {
	// constant
	x       *Exchange
	pl      *plan
	delay   time.Duration
	results chan *runner // of runners that are done; with room for all

	runners []*runner // of the exchange's goroutine; the first is not a hedge
	running int       // likewise: those whose result has not come

	sends sync.Mutex // one hedge at a time uses the exchange's head and buffers

	mu   sync.Mutex // guards what runners say is under it; taken before Exchange.mu
	over bool       // under mu: nobody may join
}

// runner is one of several attempts that run at once.
type runner struct {
	// constant
	endpoint *endpoint
	permit   resilience.Permit
	began    time.Time

	up     upstream // under race.mu until the race is over; nil before it is joined
	sent   bool     // under race.mu
	done   bool     // of the exchange's goroutine: its result has come
	err    error    // constant once its result has come
	failed *Answer  // likewise: it could not connect
}

// hedges reports whether attempts of the request may be hedged, and from when on.
func (x *Exchange) hedges(pl *plan) (delay time.Duration, most int) {
	if pl.guard == nil || !x.whole || x.upgrade || len(pl.group.endpoints) < 2 ||
		!x.idempotent() && !pl.guard.policy.RetriesMethod(x.request.Method) {
		return 0, 0
	}
	return pl.guard.policy.HedgeDelay()
}

// race waits for the beginning of a response, and sends the request to another
// endpoint each time that delay has passed without. It returns who won; its target
// has one call more than before if it is not first.
func (x *Exchange) race(pl *plan, first upstream, e *endpoint, delay time.Duration, most int) (upstream, *endpoint) {
	if ready, _ := first.ready(time.Now().Add(delay)); ready {
		return first, e
	}
	r := &race{x: x, pl: pl, delay: delay, results: make(chan *runner, 1+most), running: 1}
	r.runners = append(make([]*runner, 0, 1+most), &runner{endpoint: e, permit: x.permit, began: x.sentAt, up: first, sent: true})
	go r.await(r.runners[0])
	best := r.run(most)
	r.end(best)
	return best.up, best.endpoint
}

// run starts hedges until one of the attempts is answered, or all have failed.
func (r *race) run(most int) (best *runner) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			if r.hedge() && len(r.runners) <= most {
				timer.Reset(r.delay)
			}
		case one := <-r.results:
			one.done = true
			r.running--
			switch {
			case one.err == nil:
				return one
			case r.running == 0 || r.x.wasExpired():
				return r.runners[0] // its failure is the attempt's
			case len(r.runners) <= most:
				timer.Reset(r.delay)
			}
		}
	}
}

// hedge starts one more attempt, if the policy pays for it and there is an endpoint
// that has none yet.
func (r *race) hedge() bool {
	x, pl, now := r.x, r.pl, time.Now()
	var tried [maxTried]*endpoint
	for i, one := range r.runners {
		tried[i] = one.endpoint
	}
	e := pl.group.pick(x.choice(pl, rand.Uint64(), now, tried[:len(r.runners)]))
	if e == nil || !x.call.MayHedge(now) {
		return false
	}
	permit, err := x.call.Attempt(now)
	if err != nil {
		return false
	}
	e.target.Begin()
	h := &runner{endpoint: e, permit: permit, began: now}
	r.runners = append(r.runners, h)
	r.running++
	o := x.opening(pl, e, now)
	o.p.serving.Go(func() { r.hedged(h, o) })
	return true
}

// hedged is a hedge's goroutine.
func (r *race) hedged(h *runner, o opening) {
	up, failed := o.open(new(http2Upstream))
	if failed != nil {
		h.err, h.failed = errUnreachable, failed
		r.results <- h // nobody may listen any more
		return
	}
	if !r.join(h, up) {
		o.keep(up)
		return
	}
	r.sends.Lock()
	_, h.err = up.send(r.x, r.pl)
	r.sends.Unlock()
	if h.err != nil {
		r.results <- h
		return
	}
	r.mu.Lock()
	h.sent = true
	r.mu.Unlock()
	r.await(h)
}

var errUnreachable = errors.New("unreachable")

// await is the rest of a runner's goroutine.
func (r *race) await(one *runner) {
	_, one.err = one.up.ready(time.Time{})
	r.results <- one
}

// join ties a hedge to the exchange, unless the race is over.
func (r *race) join(h *runner, up upstream) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return false
	}
	x := r.x
	if s, ok := up.(*http2Upstream); ok {
		s.x = x
	}
	h.up = up
	x.mu.Lock()
	x.rivals = append(x.rivals, up)
	if x.expired {
		up.interrupt()
	}
	x.mu.Unlock()
	return true
}

// end gives up all attempts but the best, which takes the place of the first.
func (r *race) end(best *runner) {
	x, pl := r.x, r.pl
	r.mu.Lock()
	r.over = true
	waiting := 0
	for _, one := range r.runners {
		if one.up != nil && !one.done {
			one.up.interrupt()
			waiting++
		}
	}
	r.mu.Unlock()
	for waiting > 0 {
		if one := <-r.results; one.up != nil {
			waiting--
		}
	}
	x.mu.Lock()
	clear(x.rivals)
	x.rivals = x.rivals[:0]
	x.up = best.up
	if x.expired {
		best.up.interrupt()
	}
	x.mu.Unlock()
	for i, one := range r.runners {
		if one.sent && i > 0 {
			pl.guard.stats.hedges.Add(1)
			x.record.Hedges++
		}
		if one == best {
			continue
		}
		r.lost(one)
		if i > 0 {
			one.endpoint.target.End()
		}
	}
	if best != r.runners[0] {
		x.permit, x.sentAt = best.permit, best.began
		x.tried[(x.record.Attempts-1)%maxTried] = best.endpoint
		x.chose(best.endpoint)
	}
}

// lost settles an attempt that is not the answer. What was given up has not failed;
// what broke before has, unless it was the client's end.
func (r *race) lost(one *runner) {
	x, now := r.x, time.Now()
	outcome := resilience.Ignored
	if one.done && one.err != nil && !x.wasExpired() {
		outcome = r.failure(one, now)
	}
	if one.up != nil {
		one.up.release(x, r.pl, false)
	}
	x.call.AttemptDone(one.permit, now, outcome)
}

// failure says what it means that an attempt failed while others went on.
func (r *race) failure(one *runner, now time.Time) resilience.Outcome {
	late := errors.Is(one.err, os.ErrDeadlineExceeded)
	switch {
	case one.failed != nil:
		late = one.failed.Status == 504
	case one.up.reused() && !late:
		return resilience.Ignored // a kept connection's end is nobody's failure
	default:
		r.pl.group.failed(one.endpoint, resilience.FaultLocal, now)
	}
	if late {
		return r.x.timedOut(r.pl)
	}
	return resilience.Failure
}
