package registry

import (
	"context"
	"sync"

	"github.com/weftmesh/weft"
)

// CountWakes counts from now on how often a Wait was woken, by topic. Call it
// before the first Wait.
func (r *Registry) CountWakes() *Wakes {
	w := &Wakes{n: make(map[Topic]int)}
	r.waiters.onWake = func(t Topic) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.n[t]++
	}
	return w
}

// Wakes is a count by topic.
type Wakes struct {
	mu sync.Mutex
	n  map[Topic]int
}

// Of returns the count of one topic.
func (w *Wakes) Of(t Topic) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n[t]
}

// Waiting returns how many wait for a topic.
func (r *Registry) Waiting(t Topic) int {
	r.waiters.mu.Lock()
	defer r.waiters.mu.Unlock()
	if list := r.waiters.topics[t]; list != nil {
		return list.n
	}
	return 0
}

// HistoryFrom tells the history of a service from an index on, with Start.
func (r *Registry) HistoryFrom(ctx context.Context, n weft.ServiceName, from int64) (HistoryResult, error) {
	h, err := r.beginHistory(ctx, HistoryRequest{Service: n, Since: 1, Limit: historyLimit})
	if err != nil {
		return HistoryResult{}, err
	}
	h.after = from - 1
	return h.read(ctx)
}
