package eureka

import (
	"cmp"
	"slices"
	"strconv"
	"time"
)

const (
	// retention is how long a change is told. Clients ask every 30 s.
	retention = 3 * time.Minute
	// maxTombstones bounds the memory for instances that went. Changes of instances
	// that are there are bounded by their number.
	maxTombstones = 1 << 16
)

// deltaLog has the last change of each instance that changed lately.
type deltaLog struct {
	changes    []*change          // in the order of their times, with some that are superseded
	last       map[rowKey]*change // the others
	tombstones int
	// lossy is until when changes are missing here that are younger than retention.
	lossy time.Time

	hash    string         // of the picture that answers were made for; "" when something changed
	answers [forms]*answer // made when first asked for
}

type change struct {
	row        *row
	action     string
	at         time.Time
	superseded bool
}

// compare notes the differences between two applications' rows.
func (l *deltaLog) compare(old, next []*row, now time.Time) {
	for len(old) > 0 || len(next) > 0 {
		order := 0
		switch {
		case len(old) == 0:
			order = 1
		case len(next) == 0:
			order = -1
		default:
			order = cmp.Compare(old[0].id, next[0].id)
		}
		switch {
		case order < 0:
			l.note(old[0], deleted, now)
			old = old[1:]
		case order > 0:
			l.note(next[0], added, now)
			next = next[1:]
		default:
			if !next[0].same(old[0]) {
				l.note(next[0], modified, now)
			}
			old, next = old[1:], next[1:]
		}
	}
}

// note adds a change, in place of the one before of the same instance.
func (l *deltaLog) note(w *row, action string, now time.Time) {
	if l.last == nil {
		l.last = make(map[rowKey]*change)
	}
	if before := l.last[w.key()]; before != nil {
		l.forget(before)
	}
	if l.tombstones >= maxTombstones {
		*l = deltaLog{last: make(map[rowKey]*change), lossy: now.Add(retention)}
	}
	c := &change{row: w, action: action, at: now}
	l.changes = append(l.changes, c)
	l.last[w.key()] = c
	if action == deleted {
		l.tombstones++
	}
}

func (l *deltaLog) forget(c *change) {
	c.superseded = true
	delete(l.last, c.row.key())
	if c.action == deleted {
		l.tombstones--
	}
}

// expire drops what is too old, and says whether that was anything.
func (l *deltaLog) expire(now time.Time) (dropped bool) {
	n := 0
	for n < len(l.changes) && (l.changes[n].superseded || now.Sub(l.changes[n].at) >= retention) {
		if c := l.changes[n]; !c.superseded {
			l.forget(c)
			dropped = true
		}
		n++
	}
	l.changes = slices.Delete(l.changes, 0, n)
	if len(l.changes) > 2*len(l.last)+64 { // a few instances that change all the time
		l.changes = slices.DeleteFunc(l.changes, func(c *change) bool { return c.superseded })
	}
	return dropped
}

// delta returns what changed lately, with the hash code of the whole catalogue after
// it. It is nil when changes are missing: clients then take the full list.
func (v *view) delta(f form) *answer {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.refresh()
	now := v.now()
	l := &v.log
	if now.Before(l.lossy) {
		return nil
	}
	if l.expire(now) || l.hash == "" || l.hash != p.hash {
		l.answers = [forms]*answer{}
		l.hash = p.hash
	}
	if l.answers[f] == nil {
		l.answers[f] = newAnswer(l.encode(f, p.hash))
	}
	return l.answers[f]
}

// encode writes the changes by their applications.
func (l *deltaLog) encode(f form, hash string) []byte {
	all := make([]*change, 0, len(l.last))
	for _, c := range l.changes {
		if !c.superseded {
			all = append(all, c)
		}
	}
	slices.SortStableFunc(all, func(a, b *change) int { return cmp.Compare(a.row.app, b.row.app) })
	b := []byte(f.listHead(hash))
	for i := 0; i < len(all); {
		end := i + 1
		for end < len(all) && all[end].row.app == all[i].row.app {
			end++
		}
		if f.json() && i > 0 {
			b = append(b, ',')
		}
		rows := make([]*row, 0, end-i)
		for _, c := range all[i:end] {
			rows = append(rows, c.row)
		}
		b = f.appendApp(b, all[i].row.app, rows, func(k int) string { return all[i+k].action })
		i = end
	}
	return append(b, f.listTail()...)
}

func appendInt(b []byte, n int) []byte { return strconv.AppendInt(b, int64(n), 10) }
