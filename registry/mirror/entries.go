package mirror

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// Entries is what a source of keys says: each key is one instance. One that cannot be
// read (any more) keeps what it said last, also over a restart of this process.
type Entries struct {
	mirror  *Mirror
	entries map[string]entry
}

type entry struct {
	claim   *Claim // nil when it never said anything
	problem string
}

// origin is what is kept in an instance's Extra.
type origin struct {
	Key string `json:"key"`
}

// NewEntries returns no entries. What they say is for m.
func NewEntries(m *Mirror) *Entries {
	return &Entries{mirror: m, entries: make(map[string]entry)}
}

// Put takes what a key says. With an error it is a problem, and what the key said
// last stands.
func (e *Entries) Put(key string, c Claim, err error) {
	if err == nil {
		kept, _ := json.Marshal(origin{key}) // a text never fails
		c.Extra = map[string]json.RawMessage{e.mirror.config.Dialect: kept}
		e.entries[key] = entry{claim: &c}
		return
	}
	last, known := e.entries[key]
	if !known {
		last.claim = e.inherited(key)
	}
	last.problem = err.Error()
	e.entries[key] = last
}

// inherited finds what a key said before this process began.
func (e *Entries) inherited(key string) *Claim {
	for _, in := range e.mirror.Owned() {
		var o origin
		if json.Unmarshal(in.Extra[e.mirror.config.Dialect], &o) == nil && o.Key == key {
			return &Claim{Instance: *in, Origin: key}
		}
	}
	return nil
}

// Has says whether a key was put.
func (e *Entries) Has(key string) bool {
	_, ok := e.entries[key]
	return ok
}

// Delete forgets a key.
func (e *Entries) Delete(key string) { delete(e.entries, key) }

// Keep forgets all keys but those for which keep is true.
func (e *Entries) Keep(keep func(key string) bool) {
	maps.DeleteFunc(e.entries, func(key string, _ entry) bool { return !keep(key) })
}

// Claims are for Apply. Of two keys that claim an id the first one has it.
func (e *Entries) Claims() (claims []Claim, problems []string) {
	first := make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(e.entries)) {
		en := e.entries[key]
		if en.problem != "" {
			problems = append(problems, en.problem)
		}
		if en.claim == nil {
			continue
		}
		if other, twice := first[en.claim.ID]; twice {
			problems = append(problems, fmt.Sprintf("%s: instance %q is registered by %s already", en.claim.Origin, en.claim.ID, other))
			continue
		}
		first[en.claim.ID] = en.claim.Origin
		claims = append(claims, *en.claim)
	}
	return claims, problems
}
