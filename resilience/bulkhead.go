package resilience

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Bulkhead bounds how many calls run at once, so that one slow service cannot take
// every goroutine and connection of its callers.
//
//	if err := b.Acquire(ctx); err != nil {
//		return err // ErrBulkheadFull, or why ctx ended
//	}
//	defer b.Release()
//
// Who finds it full waits up to MaxWaitDuration, strictly first come, first served:
// a free slot goes to whoever waits longest and never to a newcomer. All methods
// may be called at the same time.
type Bulkhead struct {
	// state has the calls in flight in its low half and those that wait in its
	// high half. Without waiters it changes by CAS; with waiters only under mu.
	// While somebody waits, at least as many calls are in flight as may be: this is
	// why a free slot is never overlooked.
	state atomic.Uint64
	spec  atomic.Pointer[BulkheadSpec] // stored under mu

	mu          sync.Mutex
	first, last *queued // under mu
	idle        sync.Pool
}

const oneWaiting = 1 << 32 // in Bulkhead.state

// queued is a call that waits. Its timer and channel are reused by later ones of
// the same Bulkhead.
type queued struct {
	granted chan struct{} // of capacity 1; receives when the slot is handed over
	timer   *time.Timer   // of the goroutine that waits

	next, prev *queued // under Bulkhead.mu
	waiting    bool    // under Bulkhead.mu
}

// NewBulkhead returns a Bulkhead, or a FieldError when s is out of range.
func NewBulkhead(s BulkheadSpec) (*Bulkhead, error) {
	b := &Bulkhead{}
	if err := b.Update(s); err != nil {
		return nil, err
	}
	return b, nil
}

// Update changes the limits of a Bulkhead in use. A larger one lets those in who
// wait; a smaller one lets those in flight finish. Who waits already keeps the wait
// that it began with.
func (b *Bulkhead) Update(s BulkheadSpec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	s = s.withDefaults()

	b.mu.Lock()
	defer b.mu.Unlock()
	b.spec.Store(&s)
	for {
		// With waiters, and mu held, nobody else changes state.
		state := b.state.Load()
		if state < oneWaiting || uint32(state) >= uint32(s.MaxConcurrentCalls) {
			return nil
		}
		b.state.Store(state - oneWaiting + 1)
		b.leave(b.first)
	}
}

// Acquire takes a slot. It returns ErrBulkheadFull when there was none within
// MaxWaitDuration, or at once when waiting is off or MaxWaiting are waiting, and
// the cause of ctx when that ended first. A slot that is free is given without a
// look at ctx.
func (b *Bulkhead) Acquire(ctx context.Context) error {
	limit := uint64(b.spec.Load().MaxConcurrentCalls)
	for {
		state := b.state.Load()
		if state >= limit { // full, or somebody waits
			return b.acquireFull(ctx)
		}
		if b.state.CompareAndSwap(state, state+1) {
			return nil
		}
	}
}

// Release gives the slot of one Acquire back. It panics when none is taken.
func (b *Bulkhead) Release() {
	for {
		state := b.state.Load()
		if state >= oneWaiting {
			b.handOver()
			return
		}
		if state == 0 {
			panic("resilience: Release of a Bulkhead without Acquire")
		}
		if b.state.CompareAndSwap(state, state-1) {
			return
		}
	}
}

// InUse is how many slots are taken. After a smaller limit was set it may be more
// than the limit.
func (b *Bulkhead) InUse() int { return int(uint32(b.state.Load())) }

// Waiting is how many calls wait for a slot.
func (b *Bulkhead) Waiting() int { return int(b.state.Load() >> 32) }

func (b *Bulkhead) acquireFull(ctx context.Context) error {
	if b.spec.Load().MaxWaitDuration <= 0 {
		return ErrBulkheadFull // without the lock: a full bulkhead rejects cheaply
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b.mu.Lock()
	spec := b.spec.Load()
	for {
		state := b.state.Load()
		if state < uint64(spec.MaxConcurrentCalls) {
			if b.state.CompareAndSwap(state, state+1) {
				b.mu.Unlock()
				return nil
			}
			continue
		}
		if spec.MaxWaitDuration <= 0 || spec.MaxWaiting > 0 && state>>32 >= uint64(spec.MaxWaiting) {
			b.mu.Unlock()
			return ErrBulkheadFull
		}
		// From here on Release sees that somebody waits.
		if b.state.CompareAndSwap(state, state+oneWaiting) {
			break
		}
	}
	q := b.join()
	b.mu.Unlock()
	return b.wait(ctx, q, spec.MaxWaitDuration)
}

// wait waits until q is handed a slot, for at most the time given.
func (b *Bulkhead) wait(ctx context.Context, q *queued, atMost time.Duration) error {
	var expired <-chan time.Time
	if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > atMost {
		if q.timer == nil {
			q.timer = time.NewTimer(atMost)
		} else {
			q.timer.Reset(atMost)
		}
		expired = q.timer.C
	}
	var err error
	select {
	case <-q.granted:
	case <-expired:
		err = ErrBulkheadFull
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if expired != nil {
		q.timer.Stop()
	}
	if err != nil && !b.giveUp(q) {
		// The slot was handed over in the same moment.
		<-q.granted
		if err == ErrBulkheadFull {
			err = nil
		} else {
			b.Release()
		}
	}
	b.idle.Put(q)
	return err
}

// giveUp takes q out of the queue. It reports false when q was handed a slot before.
func (b *Bulkhead) giveUp(q *queued) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !q.waiting {
		return false
	}
	b.unlink(q)
	b.state.Store(b.state.Load() - oneWaiting)
	return true
}

// handOver gives the caller's slot to whoever waits longest, unless that would keep
// more in flight than a limit that has become smaller.
func (b *Bulkhead) handOver() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		state := b.state.Load()
		if state >= oneWaiting && uint32(state) <= uint32(b.spec.Load().MaxConcurrentCalls) {
			b.state.Store(state - oneWaiting)
			b.leave(b.first)
			return
		}
		if b.state.CompareAndSwap(state, state-1) { // without waiters others change it, too
			return
		}
	}
}

// join appends a waiter to the queue. The caller holds mu.
func (b *Bulkhead) join() *queued {
	q, _ := b.idle.Get().(*queued)
	if q == nil {
		q = &queued{granted: make(chan struct{}, 1)}
	}
	q.waiting, q.prev = true, b.last
	if b.last == nil {
		b.first = q
	} else {
		b.last.next = q
	}
	b.last = q
	return q
}

// leave takes q out of the queue with a slot. The caller holds mu.
func (b *Bulkhead) leave(q *queued) {
	b.unlink(q)
	q.granted <- struct{}{}
}

func (b *Bulkhead) unlink(q *queued) {
	if q.prev == nil {
		b.first = q.next
	} else {
		q.prev.next = q.next
	}
	if q.next == nil {
		b.last = q.prev
	} else {
		q.next.prev = q.prev
	}
	q.next, q.prev, q.waiting = nil, nil, false
}
