package dns

import (
	"hash/maphash"
	"sync"
)

// cache keeps values by the name and type of a question, until their cost is too
// much; then any go. Several goroutines use it at a time.
type cache[V interface{ cost() int }] struct {
	seed   maphash.Seed
	most   int // bytes of a shard
	shards [cacheShards]shard[V]
}

const cacheShards = 16

type shard[V interface{ cost() int }] struct {
	mu    sync.RWMutex
	byKey map[string]V
	cost  int
}

// newCache returns a cache that takes about so many bytes.
func newCache[V interface{ cost() int }](bytes int) *cache[V] {
	c := &cache[V]{seed: maphash.MakeSeed(), most: bytes / cacheShards}
	for i := range c.shards {
		c.shards[i].byKey = make(map[string]V)
	}
	return c
}

func (c *cache[V]) shard(key []byte) *shard[V] {
	return &c.shards[maphash.Bytes(c.seed, key)%cacheShards]
}

func (c *cache[V]) get(key []byte) (V, bool) {
	s := c.shard(key)
	s.mu.RLock()
	v, ok := s.byKey[string(key)]
	s.mu.RUnlock()
	return v, ok
}

// put keeps a value. Others of its shard are forgotten for it, but never itself.
func (c *cache[V]) put(key []byte, v V) {
	s := c.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.byKey[string(key)]; ok {
		s.cost -= old.cost() + len(key)
	}
	s.byKey[string(key)] = v
	s.cost += v.cost() + len(key)
	for k, other := range s.byKey {
		if s.cost <= c.most {
			return
		}
		if k != string(key) {
			s.cost -= other.cost() + len(k)
			delete(s.byKey, k)
		}
	}
}
