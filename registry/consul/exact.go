package consul

import (
	"hash/maphash"
	"maps"
	"net/url"
	"sync"
)

// maxRemembered bounds the queries whose answers are remembered; 40 bytes each.
const maxRemembered = 8 << 10

// exactIndexes gives an index of its own to an answer that is only a part of what
// its topic tells: it remembers, by a hash, what each query was answered last, and
// the index at which that answer first was seen. While the answer stays the same,
// so does the index, and the query goes on blocking. What is forgotten (by a
// restart, or because there are too many queries) gets the topic's index, which is
// greater: a watcher then returns once too often, and never once too little.
type exactIndexes struct {
	seed maphash.Seed // constant

	mu   sync.Mutex
	last map[uint64]remembered // by the query's hash
}

type remembered struct {
	answer uint64 // its hash
	index  uint64 // of the topic, when this answer was first seen
	until  uint64 // of the topic, when it was last seen
}

func newExactIndexes() *exactIndexes {
	return &exactIndexes{seed: maphash.MakeSeed(), last: make(map[uint64]remembered)}
}

// indexOf returns the index of body, which answers the query key when its topic is
// at index at.
func (e *exactIndexes) indexOf(key string, body []byte, at uint64) uint64 {
	query, answer := maphash.String(e.seed, key), maphash.Bytes(e.seed, body)
	e.mu.Lock()
	defer e.mu.Unlock()
	was, known := e.last[query]
	switch {
	case known && at < was.until: // somebody who read later was faster
		return min(at, was.index)
	case known && answer == was.answer:
		was.until = at
	default:
		was = remembered{answer: answer, index: at, until: at}
	}
	if !known && len(e.last) >= maxRemembered {
		for any := range e.last {
			delete(e.last, any)
			break
		}
	}
	e.last[query] = was
	return was.index
}

// key is the query without what does not change its answer.
func (q *query) key() string {
	params := url.Values(maps.Clone(map[string][]string(q.params)))
	for _, name := range []string{"index", "wait", "stale", "consistent", "cached", "token"} {
		params.Del(name)
	}
	sender := "" // who may see less is answered less
	if q.acl != nil {
		sender = q.acl.accessor
	}
	return q.request.URL.EscapedPath() + "?" + params.Encode() + " " + sender
}
