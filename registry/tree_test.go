package registry

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// slowTree is the obvious tree.
type slowTree struct {
	leaves map[string]*leaf
	floors map[string]uint64
}

func (s slowTree) clone() slowTree {
	return slowTree{maps.Clone(s.leaves), maps.Clone(s.floors)}
}

func (s slowTree) floor(key string) (floor uint64) {
	for dir, f := range s.floors {
		if strings.HasPrefix(key, dir) {
			floor = max(floor, f)
		}
	}
	return floor
}

func (s slowTree) newest(prefix string) uint64 {
	newest := s.floor(prefix)
	for key, l := range s.leaves {
		if strings.HasPrefix(key, prefix) {
			newest = max(newest, l.index)
		}
	}
	for dir, f := range s.floors {
		if strings.HasPrefix(dir, prefix) {
			newest = max(newest, f)
		}
	}
	return newest
}

func (s slowTree) entries(prefix string) (keys []string) {
	for key, l := range s.leaves {
		if strings.HasPrefix(key, prefix) && l.entry != nil {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func (s slowTree) graves() (graves []string) {
	for key, l := range s.leaves {
		if l.entry == nil {
			graves = append(graves, fmt.Sprint(key, " ", l.index, " ", false))
		}
	}
	for dir, f := range s.floors {
		graves = append(graves, fmt.Sprint(dir, " ", f, " ", true))
	}
	slices.Sort(graves)
	return graves
}

// checkTree compares every answer about some keys and prefixes.
func checkTree(t *testing.T, what string, fast tree, slow slowTree, keys []string) {
	t.Helper()
	live, dead := 0, 0
	var graves []string
	if fast.top != nil {
		live, dead = fast.top.live, fast.top.dead
		for _, g := range fast.top.graves("", nil) {
			graves = append(graves, fmt.Sprint(g.at, " ", g.index, " ", g.floor))
		}
		slices.Sort(graves)
	}
	if want := slow.graves(); !slices.Equal(graves, want) || dead != len(want) || live != len(slow.entries("")) {
		t.Fatalf("%s: live %d, dead %d, graves %q; want %d, %d, %q", what, live, dead, graves, len(slow.entries("")), len(want), want)
	}
	for _, key := range keys {
		l, floor := fast.get(key)
		if l != slow.leaves[key] || floor != slow.floor(key) {
			t.Fatalf("%s: get %q is %v, floor %d; want %v, %d", what, key, l, floor, slow.leaves[key], slow.floor(key))
		}
		if got, want := fast.newest(key), slow.newest(key); got != want {
			t.Fatalf("%s: newest of %q is %d, want %d", what, key, got, want)
		}
		if got, want := keysOfEntries(fast.entries(key)), slow.entries(key); !slices.Equal(got, want) {
			t.Fatalf("%s: entries of %q are %q, want %q", what, key, got, want)
		}
	}
}

func keysOfEntries(list []*Entry) (keys []string) {
	for _, e := range list {
		keys = append(keys, e.Key)
	}
	return keys
}

// TestTreeAgainstMap: random edits, and that a tree from before them stays as it was.
func TestTreeAgainstMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	letters := []string{"a", "b", "/", "ab/", "\x00", "\xff", "ä"}
	key := func() string {
		var b strings.Builder
		for range rng.IntN(6) {
			b.WriteString(letters[rng.IntN(len(letters))])
		}
		return b.String()
	}
	for round := range 60 {
		var fast tree
		slow := slowTree{make(map[string]*leaf), make(map[string]uint64)}
		var keys []string
		for range 40 {
			keys = append(keys, key())
		}
		for step := uint64(1); step < 40; step++ {
			oldFast, oldSlow := fast, slow.clone()
			e := new(edition)
			for range 1 + rng.IntN(4) {
				k := keys[rng.IntN(len(keys))]
				switch rng.IntN(6) {
				case 0, 1, 2:
					l := &leaf{key: k, index: step, entry: &Entry{Key: k}}
					fast.put(e, l)
					slow.leaves[k] = l
				case 3:
					l := &leaf{key: k, index: step}
					fast.put(e, l)
					slow.leaves[k] = l
				case 4:
					fast.remove(e, k)
					delete(slow.leaves, k)
				case 5:
					floor := uint64(rng.IntN(2)) * step
					fast.raise(e, k, floor)
					if delete(slow.floors, k); floor != 0 {
						slow.floors[k] = floor
					}
				}
			}
			checkTree(t, fmt.Sprintf("round %d, step %d", round, step), fast, slow, keys)
			checkTree(t, fmt.Sprintf("round %d, before step %d", round, step), oldFast, oldSlow, keys)
		}
	}
}

func TestDirectory(t *testing.T) {
	for key, want := range map[string]string{
		"": "", "a": "", "a/": "", "a/b": "a/", "a/b/": "a/", "a/b/c": "a/b/", "/": "", "//": "/", "/a": "/",
	} {
		if got := directory(key); got != want {
			t.Errorf("directory of %q is %q, want %q", key, got, want)
		}
	}
}
