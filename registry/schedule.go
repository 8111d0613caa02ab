package registry

import (
	"container/heap"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/weftmesh/weft"
)

// schedule knows when what is due for every check: the next probe, the lapse of a
// TTL or lease, the removal of an instance. It has no clock and does nothing by
// itself: times and results go in, duties come out. It is not safe for concurrent
// use.
//
// What a check's status is, only the catalogue says (set). A duty that was handed
// out and did not lead to a change there is handed out again after retryAfter, so
// a write that failed is not forgotten.
type schedule struct {
	checks  map[checkKey]*checkState
	owned   map[weft.InstanceKey][]*checkState
	byTime  timeHeap
	waiting []*checkState // due probes for which there was no room, oldest first
	probing int           // probes handed out
	leading bool          // duties are handed out; else only the catalogue is followed
	last    time.Time     // when this process was last seen running
	resumed time.Time     // end of its last pause; zero when there was none
}

const (
	// maxProbes bounds the probes at a time, and with them sockets and goroutines.
	// Targets that do not answer hold a place for their timeout, 10 s as a rule:
	// 512 places let 50 probes a second do that before others must wait.
	maxProbes = 512
	// maxStep is how long the schedule may be left alone. A step that comes more
	// than pauseSlack later than that means that this process did not run. The sum
	// is what a pause may take from a lease unnoticed: a lease of one second that is
	// renewed every third of it must outlive that.
	maxStep    = 250 * time.Millisecond
	pauseSlack = 250 * time.Millisecond
	// retryAfter is the time in which a status that was handed out should have
	// come back from the catalogue.
	retryAfter = 2 * time.Second
	// firstProbe bounds the wait for a new check's first probe, which is spread over
	// this time. Checks that were there already when this server began to check are
	// spread over their whole interval.
	firstProbe = time.Second
)

// checkState is one check as the schedule sees it.
type checkState struct {
	key   checkKey
	owner weft.InstanceKey // ID is empty for a check of the node
	check *weft.Check      // as the catalogue has it; not changed

	due       time.Time // next probe, lapse or retry of it; zero is never
	running   bool      // a probe is handed out, or waits for room
	started   time.Time // of the last probe
	lapsing   bool      // a lapse is handed out
	successes int       // in a row
	failures  int       // in a row
	critical  time.Time // since when; zero when it is not
	fell      time.Time // when it was seen to turn critical; zero when it is not, or began so
	reapRetry time.Time // not to be reaped before
	told      time.Time // when it had something new to say of a status that stayed; zero when it had not

	at    time.Time // when it is next looked at; its place in byTime
	place int       // in byTime; -1 when it is not there
	gone  bool      // a result that comes now is of no use
}

// duty is something to do for a check.
type duty struct {
	kind   dutyKind
	state  *checkState
	check  weft.Check
	key    checkKey
	owner  weft.InstanceKey
	reason string // of a lapse or a removal
}

type dutyKind uint8

const (
	probeDuty dutyKind = iota // probe, then call done
	lapseDuty                 // write critical, unless it was renewed meanwhile
	reapDuty                  // deregister the instance
)

func newSchedule() *schedule {
	return &schedule{checks: make(map[checkKey]*checkState), owned: make(map[weft.InstanceKey][]*checkState)}
}

// expect makes room for the checks of n owners, when it is empty: a large catalogue
// comes all at once.
func (s *schedule) expect(n int) {
	if len(s.owned) == 0 {
		s.checks, s.owned = make(map[checkKey]*checkState, n), make(map[weft.InstanceKey][]*checkState, n)
	}
}

// lead begins or ends handing out duties. At the beginning nothing is known of what
// was reported elsewhere: every lease has its whole time again, and every probe is
// due at some time of its interval. Results of probes from before are of no use.
func (s *schedule) lead(on bool, now time.Time) {
	s.leading, s.last, s.resumed = on, now, time.Time{}
	s.waiting, s.byTime = nil, nil
	for _, list := range s.owned {
		for i, old := range list {
			old.place = -1
			if old.gone {
				continue // it went to another owner
			}
			c := old
			if old.running { // somebody has it, and will come with a result
				old.gone = true
				c = new(checkState)
				list[i], s.checks[old.key] = c, c
			}
			*c = checkState{key: old.key, owner: old.owner, check: old.check, critical: old.critical, fell: old.fell, told: now, place: -1}
			c.begin(c.check, now, c.check.Interval.Std())
			if c.at = c.next(); !c.at.IsZero() {
				c.place = len(s.byTime)
				s.byTime = append(s.byTime, c)
			}
		}
	}
	heap.Init(&s.byTime)
}

// set tells the checks that an instance or a node has now in the catalogue.
func (s *schedule) set(owner weft.InstanceKey, checks []weft.Check, now time.Time) {
	old := s.owned[owner]
	if len(old) == 0 && len(checks) == 0 {
		return
	}
	next := make([]*checkState, 0, len(checks))
	for i := range checks {
		key := checkKey{owner.Node, checks[i].ID}
		c := s.checks[key]
		if c != nil && (c.owner != owner || !sameProbe(c.check, &checks[i])) {
			s.drop(c)
			c = nil
		}
		if c == nil {
			c = &checkState{key: key, owner: owner, place: -1}
			s.checks[key] = c
			c.begin(&checks[i], now, firstProbe)
		}
		c.follow(&checks[i], now)
		s.arm(c)
		next = append(next, c)
	}
	for _, c := range old {
		if s.checks[c.key] == c && findCheck(checks, c.key.id) == nil {
			s.drop(c)
		}
	}
	if len(next) == 0 {
		delete(s.owned, owner)
		return
	}
	s.owned[owner] = next
}

// sameProbe reports whether a changed check goes on where it is: all but its
// status is the same.
func sameProbe(a, b *weft.Check) bool {
	return sameTarget(a, b) && a.Interval == b.Interval && a.Timeout == b.Timeout && a.TTL == b.TTL &&
		a.Method == b.Method && a.Body == b.Body && a.NoRedirects == b.NoRedirects &&
		a.TLS == b.TLS && a.TLSServerName == b.TLSServerName && a.TLSSkipVerify == b.TLSSkipVerify &&
		maps.EqualFunc(a.Header, b.Header, slices.Equal)
}

// sameTarget reports whether what is known of one check is true of the other.
func sameTarget(a, b *weft.Check) bool {
	return a.Kind == b.Kind && a.Target == b.Target && slices.Equal(a.Args, b.Args) &&
		a.AliasNode == b.AliasNode && a.AliasService == b.AliasService
}

func (s *schedule) drop(c *checkState) {
	c.gone = true
	delete(s.checks, c.key)
	if c.place >= 0 {
		heap.Remove(&s.byTime, c.place)
	}
}

// begin starts a check's time. Its first probe comes within its interval and soon.
func (c *checkState) begin(check *weft.Check, now time.Time, soon time.Duration) {
	switch {
	case isObservation(check.ID):
		c.due = now.Add(check.Interval.Std()) // its interval is how long it has to wait
	case probed(check.Kind):
		c.due = now.Add(rand.N(max(min(check.Interval.Std(), soon), 1)))
	case reported(check.Kind):
		c.due = now.Add(check.TTL.Std())
	}
}

// follow takes over what the catalogue says.
func (c *checkState) follow(check *weft.Check, now time.Time) {
	known := c.check != nil
	before := weft.Passing
	if known {
		before = c.check.Status
	}
	c.check = check
	if before != check.Status {
		c.told = time.Time{}
	}
	if reported(check.Kind) && before >= weft.Critical && check.Status < weft.Critical {
		c.due = now.Add(check.TTL.Std()) // alive again
	}
	c.lapsing = false
	if check.Status < weft.Critical {
		c.critical, c.fell, c.reapRetry = time.Time{}, time.Time{}, time.Time{}
		return
	}
	if c.critical.IsZero() {
		c.critical = now
	}
	if known && before < weft.Critical {
		c.fell = now
	}
}

// fellSince reports whether an instance or node has a critical check, and each that
// is critical turned so after a time.
func (s *schedule) fellSince(owner weft.InstanceKey, after time.Time) (is, all bool) {
	all = true
	for _, c := range s.owned[owner] {
		if c.check.Status >= weft.Critical {
			is = true
			all = all && c.fell.After(after)
		}
	}
	return is, all
}

// report takes a report in: kind is that of the check, "" when there is none;
// changed says that status must be written.
func (s *schedule) report(key checkKey, status weft.Health, now time.Time) (kind weft.CheckKind, changed bool) {
	now = s.notice(now)
	c := s.checks[key]
	if c == nil {
		return "", false
	}
	if !reported(c.check.Kind) {
		return c.check.Kind, false
	}
	c.due = now.Add(c.check.TTL.Std())
	// Its place in byTime is left as it is: too early, where it is put right.
	// Most renewals so cost nothing there.
	changed = c.lapsing || c.check.Status != status
	c.lapsing = false
	if c.at.IsZero() || c.at.After(c.due) {
		s.arm(c)
	}
	return c.check.Kind, changed
}

// step returns what is due at now, and when to call it next.
func (s *schedule) step(now time.Time) (duties []duty, next time.Time) {
	if !s.leading {
		return nil, now.Add(time.Hour) // lead comes with a wake
	}
	now = s.notice(now)
	for len(s.byTime) > 0 && !s.byTime[0].at.After(now) {
		c := s.byTime[0]
		if d, due := s.look(c, now); due {
			duties = append(duties, d)
		}
		s.arm(c)
	}
	duties = append(duties, s.fill(now)...)
	next = now.Add(maxStep)
	if len(s.byTime) > 0 && s.byTime[0].at.Before(next) {
		next = s.byTime[0].at
	}
	return duties, next
}

// look sees what is due for one check.
func (s *schedule) look(c *checkState, now time.Time) (d duty, due bool) {
	d = duty{state: c, check: *c.check, key: c.key, owner: c.owner}
	if at := c.reapAt(); !at.IsZero() && !at.After(now) {
		c.reapRetry = now.Add(retryAfter)
		d.kind = reapDuty
		d.reason = fmt.Sprintf("check %q is critical for %s", c.key.id, c.check.DeregisterAfter)
		return d, true
	}
	if at := c.dutyAt(); at.IsZero() || at.After(now) {
		return d, false
	}
	if reported(c.check.Kind) {
		c.lapsing = true
		c.due = now.Add(retryAfter)
		d.kind = lapseDuty
		d.reason = fmt.Sprintf("no report for %s", c.check.TTL)
		return d, true
	}
	c.running = true
	s.waiting = append(s.waiting, c)
	return d, false
}

// fill hands out waiting probes as far as there is room.
func (s *schedule) fill(now time.Time) (duties []duty) {
	for len(s.waiting) > 0 && s.probing < maxProbes {
		c := s.waiting[0]
		s.waiting = s.waiting[1:]
		if c.gone {
			continue
		}
		s.probing++
		c.started = now
		duties = append(duties, duty{kind: probeDuty, state: c, check: *c.check, key: c.key, owner: c.owner})
	}
	return duties
}

// done takes the result of a probe in. changed says that status must be written.
func (s *schedule) done(c *checkState, result weft.Health, now time.Time) (status weft.Health, changed bool) {
	now = s.notice(now)
	s.probing--
	if c.gone || !s.leading {
		return 0, false
	}
	c.running = false
	if result >= weft.Critical && c.started.Before(s.resumed) {
		// The pause used up its time: not the target's fault. Ask again.
		c.due = now
		s.arm(c)
		return 0, false
	}
	c.due = c.started.Add(c.check.Interval.Std())
	if c.due.Before(now) {
		c.due = now
	}
	status = c.judge(result)
	s.arm(c)
	return status, status != c.check.Status
}

// newsAfter is how long a check's output may be behind while its status stays. Consul
// documents the same: outputs that tell the time would else be a write, and an answer
// to each blocked query, at every result.
const newsAfter = 5 * time.Minute

// news says whether a result that agrees with the check's status is to be written for
// its output alone: the first one is, which says why a check began as it did, and then
// one in newsAfter. Who begins to write does not know when that was, and waits as long:
// a new writer, or a restart, would else be a write for each check.
func (s *schedule) news(c *checkState, result weft.Health, output string, now time.Time) bool {
	if c == nil || c.gone || !s.leading || result != c.check.Status || isObservation(c.key.id) {
		return false
	}
	if output == "" || c.check.Output == shortOutput(output) {
		return false
	}
	if c.check.Output != "" && !c.told.IsZero() && now.Before(c.told.Add(newsAfter)) {
		return false
	}
	c.told = now
	return true
}

// judge counts a result, and returns the status that the check should have.
func (c *checkState) judge(result weft.Health) weft.Health {
	if result < weft.Critical {
		c.successes, c.failures = c.successes+1, 0
		if c.successes >= c.check.SuccessBeforePassing {
			return result
		}
		return c.check.Status
	}
	c.successes, c.failures = 0, c.failures+1
	switch {
	case c.failures >= c.check.FailuresBeforeCritical:
		return weft.Critical
	case c.check.FailuresBeforeWarning > 0 && c.failures >= c.check.FailuresBeforeWarning:
		return max(c.check.Status, weft.Warning)
	}
	return c.check.Status
}

// notice sees by the clock whether this process was stopped: the schedule was left
// alone for longer than it allows. Everything that reads the schedule's times calls
// it first, so nothing is judged before a pause is known. It returns now, or a later
// time when somebody was here meanwhile: a clock that was read before a pause would
// make of a report one from before it.
func (s *schedule) notice(now time.Time) time.Time {
	if now.Before(s.last) {
		return s.last
	}
	if gap := now.Sub(s.last); s.leading && !s.last.IsZero() && gap > maxStep+pauseSlack {
		s.shift(gap, now)
		s.resumed = now
	}
	s.last = now
	return now
}

// shift moves every deadline by the time in which this process did not run: it
// could neither take reports nor probe. And whoever could not renew for so long
// needs time to come back, as much as was lost, but not more than a whole TTL.
func (s *schedule) shift(gap time.Duration, now time.Time) {
	for _, c := range s.checks {
		if reported(c.check.Kind) {
			c.due = c.due.Add(gap)
			if grace := now.Add(min(gap, c.check.TTL.Std())); c.due.Before(grace) {
				c.due = grace
			}
		}
		if !c.critical.IsZero() {
			c.critical = c.critical.Add(gap)
		}
		c.at = c.next()
	}
	heap.Init(&s.byTime)
}

// dutyAt is when the next probe or lapse is due; zero is never.
func (c *checkState) dutyAt() time.Time {
	if c.running || reported(c.check.Kind) && c.check.Status >= weft.Critical {
		return time.Time{}
	}
	return c.due
}

// reapAt is when the instance goes because of this check; zero is never.
func (c *checkState) reapAt() time.Time {
	if c.critical.IsZero() || c.check.DeregisterAfter <= 0 || c.owner.ID == "" || c.check.Kind == weft.MaintenanceCheck {
		return time.Time{}
	}
	at := c.critical.Add(c.check.DeregisterAfter.Std())
	if at.Before(c.reapRetry) {
		at = c.reapRetry
	}
	return at
}

// next is when the check must be looked at; zero is never.
func (c *checkState) next() time.Time {
	duty, reap := c.dutyAt(), c.reapAt()
	if duty.IsZero() || !reap.IsZero() && reap.Before(duty) {
		return reap
	}
	return duty
}

// arm puts the check to its place in byTime.
func (s *schedule) arm(c *checkState) {
	c.at = c.next()
	switch {
	case c.at.IsZero() && c.place >= 0:
		heap.Remove(&s.byTime, c.place)
	case c.at.IsZero():
	case c.place >= 0:
		heap.Fix(&s.byTime, c.place)
	default:
		heap.Push(&s.byTime, c)
	}
}

// timeHeap is a heap.Interface of checks by their time.
type timeHeap []*checkState

func (h timeHeap) Len() int           { return len(h) }
func (h timeHeap) Less(i, k int) bool { return h[i].at.Before(h[k].at) }
func (h timeHeap) Swap(i, k int) {
	h[i], h[k] = h[k], h[i]
	h[i].place, h[k].place = i, k
}

// Push is called by package heap only.
func (h *timeHeap) Push(x any) {
	c := x.(*checkState)
	c.place = len(*h)
	*h = append(*h, c)
}

// Pop is called by package heap only.
func (h *timeHeap) Pop() any {
	last := len(*h) - 1
	c := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	c.place = -1
	return c
}
