package resilience

import (
	"container/heap"
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"
)

// MemoryStore is an IdempotencyStore for one process: what it knows ends with it.
//
// It never holds more than its bytes. When they are used up it forgets answers, those
// that were kept first, before their time: a repeat of these runs again. Requests in
// flight are never forgotten within their lease; when they alone use up everything,
// Begin fails with ErrStoreFull. It has no goroutine and needs no Close: each call
// removes a few of those whose time is over.
type MemoryStore struct {
	maxBytes int64 // constant

	mu        sync.Mutex // guards the rest
	entries   map[string]*memoryEntry
	byEnd     memoryHeap // all entries
	done      list.List  // of *memoryEntry with an answer, the first finished in front
	bytes     int64      // of all entries
	doneBytes int64      // of those in done
	lastToken int64
}

// memoryEntry is one key: in flight until it has a place among the done.
type memoryEntry struct {
	key         string
	fingerprint [32]byte
	token       int64
	end         time.Time // of the lease, or of the answer's time
	index       int       // in byEnd
	place       *list.Element
	answer      StoredAnswer
	size        int64
}

// entryBytes is about what an entry takes beside its key and its answer: itself, and
// its places in the map, the heap and the list.
const entryBytes = 320

// NewMemoryStore returns a store that takes about maxBytes of memory at most.
// NewMemoryStore(64 << 20) has room for some 50,000 answers of one kilobyte.
func NewMemoryStore(maxBytes int64) *MemoryStore {
	return &MemoryStore{maxBytes: maxBytes, entries: map[string]*memoryEntry{}}
}

// Begin is IdempotencyStore's.
func (s *MemoryStore) Begin(_ context.Context, key string, fingerprint [32]byte, lease time.Duration) (Claim, error) {
	if lease <= 0 {
		return Claim{}, fmt.Errorf("claim an idempotency key: the lease is %v", lease)
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(now)
	c := Claim{Key: key, Fingerprint: fingerprint}
	if e := s.entries[key]; e != nil {
		switch {
		case !e.end.After(now):
			s.remove(e) // and the key is free
		case e.fingerprint != fingerprint:
			c.State = ClaimMismatch
			return c, nil
		case e.place == nil:
			c.State, c.Wait = ClaimInFlight, e.end.Sub(now)
			return c, nil
		default:
			c.State, c.Answer = ClaimDone, e.answer
			return c, nil
		}
	}
	size := entryBytes + int64(len(key))
	if err := s.makeRoom(size); err != nil {
		return Claim{}, fmt.Errorf("claim an idempotency key: %w", err)
	}
	s.lastToken++
	e := &memoryEntry{key: key, fingerprint: fingerprint, token: s.lastToken, end: now.Add(lease), size: size}
	s.entries[key] = e
	heap.Push(&s.byEnd, e)
	s.bytes += size
	c.State, c.Token = ClaimMine, e.token
	return c, nil
}

// Finish is IdempotencyStore's. A claim whose lease ran out is still good when nobody
// claimed the key since and it was not removed yet.
func (s *MemoryStore) Finish(_ context.Context, c Claim, answer StoredAnswer, ttl time.Duration) error {
	if ttl <= 0 {
		return fmt.Errorf("keep an answer: its time is %v", ttl)
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.claimed(c)
	if e == nil {
		return ErrClaimLost
	}
	more := int64(answer.size() + cap(answer.Body) - len(answer.Body))
	if err := s.makeRoom(more); err != nil {
		return fmt.Errorf("keep an answer of %d bytes: %w", more, err)
	}
	e.answer = answer
	e.size += more
	s.bytes += more
	s.doneBytes += e.size
	e.place = s.done.PushBack(e)
	e.end = now.Add(ttl)
	heap.Fix(&s.byEnd, e.index)
	s.expire(now)
	return nil
}

// Abandon is IdempotencyStore's.
func (s *MemoryStore) Abandon(_ context.Context, c Claim) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.claimed(c)
	if e == nil {
		return ErrClaimLost
	}
	s.remove(e)
	return nil
}

// claimed returns the entry that c holds.
func (s *MemoryStore) claimed(c Claim) *memoryEntry {
	if e := s.entries[c.Key]; e != nil && e.place == nil && e.token == c.Token {
		return e
	}
	return nil
}

// makeRoom forgets answers until more bytes fit, unless not even that would help.
func (s *MemoryStore) makeRoom(more int64) error {
	if s.bytes-s.doneBytes+more > s.maxBytes {
		return ErrStoreFull
	}
	for s.bytes+more > s.maxBytes {
		s.remove(s.done.Front().Value.(*memoryEntry))
	}
	return nil
}

// expireAtOnce is how many entries whose time is over one call removes at most: more
// than it can add, so that they do not grow in number.
const expireAtOnce = 4

func (s *MemoryStore) expire(now time.Time) {
	for range expireAtOnce {
		if len(s.byEnd) == 0 || s.byEnd[0].end.After(now) {
			return
		}
		s.remove(s.byEnd[0])
	}
}

func (s *MemoryStore) remove(e *memoryEntry) {
	delete(s.entries, e.key)
	heap.Remove(&s.byEnd, e.index)
	s.bytes -= e.size
	if e.place != nil {
		s.done.Remove(e.place)
		s.doneBytes -= e.size
	}
}

// memoryHeap has the entry whose time is over first in front.
type memoryHeap []*memoryEntry

func (h memoryHeap) Len() int           { return len(h) }
func (h memoryHeap) Less(i, j int) bool { return h[i].end.Before(h[j].end) }

func (h memoryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *memoryHeap) Push(x any) {
	e := x.(*memoryEntry)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *memoryHeap) Pop() any {
	old := *h
	last := len(old) - 1
	e := old[last]
	old[last] = nil
	*h = old[:last]
	return e
}
