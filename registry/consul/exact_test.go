package consul

import (
	"strconv"
	"testing"
)

func TestExactIndexes(t *testing.T) {
	e := newExactIndexes()
	for i, c := range []struct {
		query, body string
		at, want    uint64
	}{
		{"a", "1", 5, 5},
		{"a", "1", 9, 5}, // the topic moved, this answer did not
		{"a", "2", 12, 12},
		{"a", "1", 13, 13}, // back is a change too
		{"b", "1", 13, 13}, // another query, seen for the first time
		{"a", "1", 20, 13},
		{"a", "0", 4, 4},   // read before, told after
		{"a", "1", 18, 13}, // likewise
		{"a", "1", 21, 13},
	} {
		if got := e.indexOf(c.query, []byte(c.body), c.at); got != c.want {
			t.Errorf("step %d: index %d, want %d", i, got, c.want)
		}
	}
	for i := range 2 * maxRemembered {
		e.indexOf(strconv.Itoa(i), nil, 1)
	}
	if len(e.last) > maxRemembered {
		t.Errorf("remembers %d queries", len(e.last))
	}
}
