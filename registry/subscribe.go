package registry

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/weftmesh/weft"
)

// subscribers are those whom the loop tells of changed services.
type subscribers struct {
	mu     sync.Mutex
	list   map[*subscriber]bool
	closed bool
	work   sync.WaitGroup
}

// subscriber holds what its goroutine has yet to deliver.
type subscriber struct {
	fn     func(weft.ServiceName, uint64) // constant
	cancel context.CancelFunc             // constant
	ended  chan struct{}                  // closed when the goroutine is gone
	kick   chan struct{}                  // holds one: something is pending

	pending map[weft.ServiceName]uint64 // guarded by subscribers.mu
}

// Subscribe calls fn for each service that has instances now, and then for each
// service whose instances, their health or nodes changed, in index order, from one
// goroutine; fn must not block long. Changes that come while fn runs are delivered
// once, with the newest index. cancel stops the calls, and returns when the last
// one has ended; it must not be called from fn.
func (r *Registry) Subscribe(fn func(n weft.ServiceName, index uint64)) (cancel func()) {
	ctx, stop := context.WithCancel(r.ctx)
	s := &subscriber{
		fn: fn, cancel: stop,
		ended: make(chan struct{}), kick: make(chan struct{}, 1),
	}
	if !r.subs.add(s) {
		stop()
		return func() {}
	}
	// Added first, then filled: a change between the two is delivered twice at
	// most, and never lost.
	r.view.mu.RLock()
	present := make(map[weft.ServiceName]uint64)
	for name, e := range r.view.services {
		if len(e.instances) > 0 {
			present[name] = e.index
		}
	}
	r.view.mu.RUnlock()
	r.subs.fill(s, present)
	go func() {
		defer r.subs.work.Done()
		defer close(s.ended)
		r.subs.deliver(ctx, s)
	}()
	return func() {
		stop()
		r.subs.remove(s)
		<-s.ended
	}
}

func (l *subscribers) add(s *subscriber) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	if l.list == nil {
		l.list = make(map[*subscriber]bool)
	}
	s.pending = make(map[weft.ServiceName]uint64)
	l.list[s] = true
	l.work.Add(1)
	return true
}

func (l *subscribers) fill(s *subscriber, present map[weft.ServiceName]uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, index := range present {
		s.pending[name] = max(s.pending[name], index)
	}
	s.wake()
}

func (l *subscribers) remove(s *subscriber) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.list, s)
}

// close ends every subscription, and waits for the last calls.
func (l *subscribers) close() {
	l.mu.Lock()
	l.closed = true
	for s := range l.list {
		s.cancel()
	}
	l.mu.Unlock()
	l.work.Wait()
}

// changed notes a changed service for every subscriber.
func (l *subscribers) changed(services map[weft.ServiceName]uint64) {
	if len(services) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.list {
		for name, index := range services {
			s.pending[name] = index
		}
		s.wake()
	}
}

func (s *subscriber) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// deliver calls fn until ctx ends. What is noted while it delivers has greater
// indexes than what it delivers.
func (l *subscribers) deliver(ctx context.Context, s *subscriber) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.kick:
		}
		l.mu.Lock()
		pending := s.pending
		s.pending = make(map[weft.ServiceName]uint64)
		l.mu.Unlock()
		names := make([]weft.ServiceName, 0, len(pending))
		for name := range pending {
			names = append(names, name)
		}
		slices.SortFunc(names, func(a, b weft.ServiceName) int {
			return cmp.Or(cmp.Compare(pending[a], pending[b]), byName(a, b))
		})
		for _, name := range names {
			if ctx.Err() != nil {
				return
			}
			s.fn(name, pending[name])
		}
	}
}
