package registry

import (
	"container/heap"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/weftmesh/weft"
)

// sessionTTLs is how many TTLs a session lives without a renewal.
const sessionTTLs = 2

// lifetimes knows when which session lapses. Like schedule, it has no clock and does
// nothing by itself, and it does not count a pause of this process.
type lifetimes struct {
	sessions map[string]*lifetime
	byTime   lifetimeHeap
	last     time.Time // when this process was last seen running
}

// lifetime is one session that can lapse.
type lifetime struct {
	id     string
	span   time.Duration // without a renewal; 0 when it has no TTL
	due    time.Time     // it lapses then, or its end is tried again
	lapsed bool          // its end is handed out
	doomed bool          // nothing renews it

	at    time.Time // when it is looked at: never after due
	place int       // in byTime
}

// set tells that a session is there, or that it is gone (nil).
func (l *lifetimes) set(id string, s *Session, now time.Time) {
	old := l.sessions[id]
	if s == nil {
		if old != nil {
			heap.Remove(&l.byTime, old.place)
			delete(l.sessions, id)
		}
		return
	}
	if s.TTL > 0 && old == nil {
		span := sessionTTLs * s.TTL.Std()
		l.add(&lifetime{id: id, span: span, due: now.Add(span)})
	}
}

func (l *lifetimes) add(t *lifetime) {
	if l.sessions == nil {
		l.sessions = make(map[string]*lifetime)
	}
	l.sessions[t.id] = t
	t.at = t.due
	heap.Push(&l.byTime, t)
}

// renew begins a session's time anew. It is false when it will end all the same.
func (l *lifetimes) renew(id string, now time.Time) bool {
	l.notice(now)
	t := l.sessions[id]
	if t == nil {
		return true // it has no TTL
	}
	if t.doomed {
		return false
	}
	// Its place in byTime is left as it is: too early, where it is put right.
	t.due, t.lapsed = now.Add(t.span), false
	if t.at.After(t.due) {
		t.at = t.due
		heap.Fix(&l.byTime, t.place)
	}
	return true
}

// doom lets a session end now, whoever renews it.
func (l *lifetimes) doom(id string, now time.Time) {
	t := l.sessions[id]
	if t == nil {
		l.add(&lifetime{id: id, due: now, doomed: true})
		return
	}
	t.doomed, t.due, t.at = true, now, now
	heap.Fix(&l.byTime, t.place)
}

// over reports whether a session that was handed out still has to end.
func (l *lifetimes) over(id string) bool {
	t := l.sessions[id]
	return t != nil && (t.lapsed || t.doomed)
}

// step returns the sessions that have to end, and when to call it next. What did
// not end is handed out again after retryAfter.
func (l *lifetimes) step(now time.Time) (ids []string, next time.Time) {
	l.notice(now)
	for len(l.byTime) > 0 && !l.byTime[0].at.After(now) {
		t := l.byTime[0]
		if !t.due.After(now) {
			ids = append(ids, t.id)
			t.lapsed, t.due = true, now.Add(retryAfter)
		}
		t.at = t.due
		heap.Fix(&l.byTime, 0)
	}
	next = now.Add(maxStep)
	if len(l.byTime) > 0 && l.byTime[0].at.Before(next) {
		next = l.byTime[0].at
	}
	return ids, next
}

// notice sees by the clock whether this process was stopped, and moves every
// deadline by that time, in which nobody could renew.
func (l *lifetimes) notice(now time.Time) {
	if gap := now.Sub(l.last); !l.last.IsZero() && gap > maxStep+pauseSlack {
		for _, t := range l.byTime { // all by the same time: they stay sorted
			t.due, t.at = t.due.Add(gap), t.at.Add(gap)
		}
	}
	l.last = now
}

// sessionClock ends the sessions that lapse, while this server writes.
type sessionClock struct {
	// constant
	end  func(ctx context.Context, ids []string) error
	log  *slog.Logger
	kick chan struct{} // holds one: something is due earlier

	mu       sync.Mutex
	counting bool // this server writes
	lives    lifetimes

	work sync.WaitGroup // ends under way; Add by run only
}

func newSessionClock(end func(context.Context, []string) error, log *slog.Logger) *sessionClock {
	return &sessionClock{end: end, log: log, kick: make(chan struct{}, 1)}
}

// start begins to count: every session has its whole time, the doomed have none.
func (k *sessionClock) start(all []*Session, doomed []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	k.counting, k.lives = true, lifetimes{last: now}
	for _, s := range all {
		k.lives.set(s.ID, s, now)
	}
	for _, id := range doomed {
		k.lives.doom(id, now)
	}
	k.wake()
}

func (k *sessionClock) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.counting, k.lives = false, lifetimes{}
}

// set tells which sessions came and went.
func (k *sessionClock) set(sessions map[string]*Session) {
	if len(sessions) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.counting {
		return
	}
	for id, s := range sessions {
		k.lives.set(id, s, time.Now())
	}
	k.wake()
}

func (k *sessionClock) renew(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.counting || k.lives.renew(id, time.Now())
}

func (k *sessionClock) doom(ids []string) {
	if len(ids) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.counting {
		return
	}
	for _, id := range ids {
		k.lives.doom(id, time.Now())
	}
	k.wake()
}

func (k *sessionClock) over(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lives.over(id)
}

func (k *sessionClock) wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// maxEnds is how many sessions end by one write.
const maxEnds = 64

// run ends what lapses until ctx ends, and waits for what is under way.
func (k *sessionClock) run(ctx context.Context) {
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
		lapsed, next := k.lives.step(time.Now())
		k.mu.Unlock()
		for ids := range slices.Chunk(lapsed, maxEnds) {
			k.work.Go(func() {
				if err := k.end(ctx, ids); err != nil && ctx.Err() == nil && weft.KindOf(err) != weft.NotFound {
					k.log.Warn("registry: sessions lapsed and could not be ended; it is tried again", "sessions", len(ids), "error", err)
				}
			})
		}
		timer.Reset(time.Until(next))
	}
}

// lifetimeHeap is a heap.Interface of lifetimes by their time.
type lifetimeHeap []*lifetime

func (h lifetimeHeap) Len() int           { return len(h) }
func (h lifetimeHeap) Less(i, k int) bool { return h[i].at.Before(h[k].at) }
func (h lifetimeHeap) Swap(i, k int) {
	h[i], h[k] = h[k], h[i]
	h[i].place, h[k].place = i, k
}

// Push is called by package heap only.
func (h *lifetimeHeap) Push(x any) {
	t := x.(*lifetime)
	t.place = len(*h)
	*h = append(*h, t)
}

// Pop is called by package heap only.
func (h *lifetimeHeap) Pop() any {
	last := len(*h) - 1
	t := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return t
}
