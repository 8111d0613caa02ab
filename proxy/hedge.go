package proxy

import (
	"math/rand/v2"
	"time"

	"github.com/weftmesh/weft/resilience"
)

// A hedge is a second attempt beside one that takes long; whichever answers first
// is the answer, and the other is given up. Only a request that lies whole in
// memory and may be sent twice is hedged.

// runner is one of several attempts that run at once.
type runner struct {
	up       upstream
	endpoint *endpoint
	permit   resilience.Permit
	done     bool // its wait is over
	err      error
}

// hedges reports whether attempts of the request may be hedged, and from when on.
func (x *Exchange) hedges(pl *plan) (delay time.Duration, most int) {
	if pl.guard == nil || !x.whole || x.upgrade || !x.idempotent() && !pl.guard.policy.RetriesMethod(x.request.Method) {
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
	runners := []*runner{{up: first, endpoint: e, permit: x.permit}}
	results := make(chan *runner, most+1)
	wait := func(r *runner) {
		_, r.err = r.up.ready(time.Time{})
		results <- r
	}
	go wait(runners[0])
	timer := time.NewTimer(0)
	defer timer.Stop()
	running := 1
	var best *runner
	for best == nil {
		select {
		case <-timer.C:
			r := x.hedge(pl, runners)
			if r == nil {
				continue
			}
			runners = append(runners, r)
			running++
			go wait(r)
			if len(runners) <= most {
				timer.Reset(delay)
			}
		case r := <-results:
			r.done = true
			running--
			if r.err == nil || running == 0 {
				best = r
			}
		}
	}
	x.giveUpRivals(pl, runners, best, results, running)
	return best.up, best.endpoint
}

// hedge starts one more attempt, if the policy pays for it and there is an endpoint
// that has none yet.
func (x *Exchange) hedge(pl *plan, runners []*runner) *runner {
	now := time.Now()
	var tried [maxTried]*endpoint
	for i, r := range runners {
		tried[i] = r.endpoint
	}
	e := pl.group.pick(x.choice(pl, rand.Uint64(), now, tried[:len(runners)]))
	if e == nil || !x.call.MayHedge(now) {
		return nil
	}
	permit, err := x.call.Attempt(now)
	if err != nil {
		return nil
	}
	up, fault := x.connect(pl, e, new(http2Upstream))
	if fault != nil {
		x.call.AttemptDone(permit, time.Now(), resilience.Failure)
		return nil
	}
	x.mu.Lock()
	x.rivals = append(x.rivals, up)
	if x.expired {
		up.interrupt()
	}
	x.mu.Unlock()
	e.target.Begin()
	r := &runner{up: up, endpoint: e, permit: permit}
	if _, err := up.send(x, pl); err != nil {
		x.dropRival(pl, r, resilience.Failure)
		return nil
	}
	pl.guard.stats.hedges.Add(1)
	x.record.Hedges++
	return r
}

// giveUpRivals ends all attempts but the best, which takes the place of the first.
func (x *Exchange) giveUpRivals(pl *plan, runners []*runner, best *runner, results chan *runner, running int) {
	for _, r := range runners {
		if !r.done {
			r.up.interrupt()
		}
	}
	for range running {
		<-results
	}
	x.mu.Lock()
	x.rivals = x.rivals[:0]
	x.up = best.up
	expired := x.expired
	x.mu.Unlock()
	if expired {
		best.up.interrupt()
	}
	for i, r := range runners {
		if r == best {
			continue
		}
		r.up.release(x, pl, false)
		x.call.AttemptDone(r.permit, time.Now(), resilience.Ignored)
		if i > 0 {
			r.endpoint.target.End()
		}
	}
	x.permit = best.permit
	x.tried[(x.record.Attempts-1)%maxTried] = best.endpoint
	x.chose(best.endpoint)
}

// dropRival ends an attempt that could not be sent.
func (x *Exchange) dropRival(pl *plan, r *runner, o resilience.Outcome) {
	x.mu.Lock()
	x.rivals = x.rivals[:len(x.rivals)-1]
	x.mu.Unlock()
	r.up.release(x, pl, false)
	r.endpoint.target.End()
	x.call.AttemptDone(r.permit, time.Now(), o)
}
