package relay

import (
	"container/list"
	"sync"
	"time"
)

// Memory remembers what destinations speak, so that only the first connections to
// each are detected. K is what stands for a destination: a service's name and port,
// or an address. The zero value is ready; it may be used from anywhere.
//
//	kind, known := memory.Recall(to, now)
//	switch {
//	case known && kind == relay.ServerFirst: // connect and Run, without a look
//	case known: // the client speaks first: Detect with dial nil never dials
//	default: // Detect, then Learn when the verdict is Sure
//	}
//
// Who speaks first is a property of the destination. What a client says is not: it
// is worth a Sniff each time, which costs nothing, or else one client could make
// others' requests pass as Raw.
type Memory[K comparable] struct {
	// Size is how many destinations are remembered, the latest used. Default 1024.
	Size int
	// Keep is how long an answer holds after it was learnt. Default 10 minutes: a
	// service that changes its protocol under the same name is met again soon.
	Keep time.Duration

	mu      sync.Mutex
	entries map[K]*list.Element // of remembered[K]
	used    list.List           // the latest used first
}

type remembered[K comparable] struct {
	to     K
	kind   Kind
	forget time.Time
}

// Recall returns what was learnt of a destination.
func (m *Memory[K]) Recall(to K, now time.Time) (kind Kind, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[to]
	if e == nil {
		return Unknown, false
	}
	r := e.Value.(*remembered[K])
	if !now.Before(r.forget) {
		m.drop(e)
		return Unknown, false
	}
	m.used.MoveToFront(e)
	return r.kind, true
}

// Learn remembers what a destination speaks; Unknown is nothing to remember.
func (m *Memory[K]) Learn(to K, kind Kind, now time.Time) {
	if kind == Unknown {
		return
	}
	size, keep := m.Size, m.Keep
	if size <= 0 {
		size = 1024
	}
	if keep <= 0 {
		keep = 10 * time.Minute
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[to]; e != nil {
		r := e.Value.(*remembered[K])
		r.kind, r.forget = kind, now.Add(keep)
		m.used.MoveToFront(e)
		return
	}
	if m.used.Len() >= size {
		m.drop(m.used.Back())
	}
	if m.entries == nil {
		m.entries = make(map[K]*list.Element)
	}
	m.entries[to] = m.used.PushFront(&remembered[K]{to, kind, now.Add(keep)})
}

// Forget is for an answer that has proven wrong.
func (m *Memory[K]) Forget(to K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[to]; e != nil {
		m.drop(e)
	}
}

func (m *Memory[K]) drop(e *list.Element) {
	m.used.Remove(e)
	delete(m.entries, e.Value.(*remembered[K]).to)
}
