package registry

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/weftmesh/weft"
)

// checker runs the schedule: one goroutine sleeps until the next duty of any check
// is due, and each probe has a goroutine while it runs. A goroutine and a timer for
// each check would cost some 3 KB a check for waiting, and would hide how many
// probes run at a time; a fixed pool of workers would be held up by targets that do
// not answer.
type checker struct {
	// constant
	write func(ctx context.Context, d duty, status weft.Health, output string) error
	reap  func(ctx context.Context, d duty) error
	probe func(ctx context.Context, c *weft.Check) (weft.Health, string)
	log   *slog.Logger
	kick  chan struct{} // holds one: the schedule changed

	mu    sync.Mutex
	sched *schedule

	work sync.WaitGroup // duties under way; Add by run only
}

// newChecker returns a checker that learns by probe, and tells what it learnt by
// write and reap; both return when it is in the catalogue.
func newChecker(
	write func(ctx context.Context, d duty, status weft.Health, output string) error,
	reap func(ctx context.Context, d duty) error,
	probe func(ctx context.Context, c *weft.Check) (weft.Health, string),
	log *slog.Logger,
) *checker {
	return &checker{write: write, reap: reap, probe: probe, log: log, kick: make(chan struct{}, 1), sched: newSchedule()}
}

// set tells the checks that instances and nodes have now; wake must follow.
func (k *checker) set(owners map[weft.InstanceKey][]weft.Check) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	k.sched.expect(len(owners))
	for owner, checks := range owners {
		k.sched.set(owner, checks, now)
	}
}

// fill tells the checks of a whole catalogue; wake must follow.
func (k *checker) fill(catalogue []decoded) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	k.sched.expect(len(catalogue))
	for i := range catalogue {
		switch ev := &catalogue[i]; {
		case ev.instance != nil:
			k.sched.set(ev.key, ev.instance.Checks, now)
		case ev.node != nil:
			k.sched.set(ev.key, ev.node.Checks, now)
		}
	}
}

// report takes a report in; see schedule.report. It is to be written too when its
// output is news.
func (k *checker) report(key checkKey, status weft.Health, output string) (weft.CheckKind, bool) {
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	kind, changed := k.sched.report(key, status, now)
	return kind, changed || reported(kind) && output != "" && k.sched.news(k.sched.checks[key], status, output, now)
}

// lead begins or ends doing what is due. Only the server that writes does it; the
// others follow the catalogue, so that each can take over at once.
func (k *checker) lead(on bool) {
	k.mu.Lock()
	k.sched.lead(on, time.Now())
	k.mu.Unlock()
	k.wake()
}

// fellSince reports whether an instance failed by its own checks and those of its
// node, and all that are critical turned so after a time.
func (k *checker) fellSince(key weft.InstanceKey, after time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	own, ownAll := k.sched.fellSince(key, after)
	node, nodeAll := k.sched.fellSince(weft.InstanceKey{Node: key.Node}, after)
	return (own || node) && ownAll && nodeAll
}

// wake makes run look at the schedule.
func (k *checker) wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// run does what is due until ctx ends, and waits for what is under way.
func (k *checker) run(ctx context.Context) {
	defer k.work.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-k.kick:
		}
		k.mu.Lock()
		duties, next := k.sched.step(time.Now())
		k.mu.Unlock()
		for _, d := range duties {
			k.work.Go(func() { k.do(ctx, d) })
		}
		timer.Reset(time.Until(next))
	}
}

func (k *checker) do(ctx context.Context, d duty) {
	var err error
	switch d.kind {
	case probeDuty:
		err = k.doProbe(ctx, d)
	case lapseDuty:
		err = k.write(ctx, d, weft.Critical, d.reason)
	case reapDuty:
		err = k.reap(ctx, d)
	}
	// What is not there any more needs nothing.
	if err != nil && ctx.Err() == nil && weft.KindOf(err) != weft.NotFound {
		k.log.Warn("registry: result of a check is not written; it is tried again", "check", d.key.id, "node", d.key.node, "error", err)
	}
}

// Times that a probe may take, as Consul documents them where it does.
const (
	defaultTimeout = 10 * time.Second
	scriptTimeout  = 30 * time.Second
	// udpTimeout is how long a refusal is awaited: it comes within a round trip, and
	// a healthy target says nothing.
	udpTimeout = time.Second
)

func timeoutOf(c *weft.Check) time.Duration {
	switch {
	case c.Timeout > 0:
		return c.Timeout.Std()
	case c.Kind == weft.ScriptCheck:
		return scriptTimeout
	case c.Kind == weft.UDPCheck:
		return udpTimeout
	}
	return defaultTimeout
}

func (k *checker) doProbe(ctx context.Context, d duty) error {
	probeCtx, cancel := context.WithTimeout(ctx, timeoutOf(&d.check))
	result, output := k.probe(probeCtx, &d.check)
	cancel()
	now := time.Now()
	k.mu.Lock()
	status, changed := k.sched.done(d.state, result, now)
	if !changed && k.sched.news(d.state, result, output, now) {
		status, changed = result, true
	}
	k.mu.Unlock()
	k.wake()
	if !changed || ctx.Err() != nil {
		return nil
	}
	return k.write(ctx, d, status, output)
}

// writeStatus writes what the checker learnt, unless the check is another one by
// now.
func (r *Registry) writeStatus(ctx context.Context, d duty, status weft.Health, output string) error {
	if isObservation(d.key.id) && status < weft.Critical {
		return r.promote(ctx, d.owner, output, func(c *weft.Check) bool { return sameProbe(c, &d.check) })
	}
	err := r.setStatus(WithActor(ctx, d.actor(status)), d.key, status, output, func(c *weft.Check) bool {
		return sameProbe(c, &d.check) && (d.kind != lapseDuty || r.checks.stillLapses(d))
	})
	if err == nil {
		r.log.Info("registry: check changed", "check", d.key.id, "node", d.key.node, "status", status, "output", firstLine(output))
	}
	return err
}

// actor says what changes a check's status to what it is now.
func (d *duty) actor(status weft.Health) string {
	what := orElse(d.check.Target, d.check.ID)
	switch {
	case d.kind == lapseDuty && d.check.Kind == weft.LeaseCheck:
		return "lease of " + orElse(d.owner.ID, d.owner.Node) + " lapsed"
	case d.kind == lapseDuty:
		return "check " + d.check.ID + " was not reported in time"
	case status >= weft.Critical:
		return "check " + what + " failed"
	case status == weft.Warning:
		return "check " + what + " warns"
	}
	return "check " + what + " passed"
}

// stillLapses reports whether no report came since the lapse was found.
func (k *checker) stillLapses(d duty) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !d.state.gone && d.state.lapsing
}

// reap deregisters an instance that was critical for too long, unless it is guarded.
func (r *Registry) reap(ctx context.Context, d duty) error {
	if r.held(d.owner, time.Now()) {
		return nil // the schedule asks again
	}
	_, err := r.deregisterHere(WithActor(ctx, d.reason), d.owner)
	if err == nil {
		r.log.Warn("registry: instance deregistered", "instance", d.owner.ID, "node", d.owner.Node, "reason", d.reason)
	}
	return err
}
