package registry

import (
	"context"
	"strconv"
	"time"

	"github.com/weftmesh/weft"
)

// markEvery is how exactly History knows when something changed. The mark goes with a
// transaction that is made anyway, the first of each such time.
const markEvery = 100 * time.Millisecond

// readMark returns the newest mark, 0 when there is none.
func (r *Registry) readMark(ctx context.Context) (int64, error) {
	kv, ok, err := r.store.Get(ctx, timeMark)
	if err != nil || !ok {
		return 0, err
	}
	return parseMark(kv.Value), nil
}

// parseMark returns 0 for what is no mark.
func parseMark(b []byte) int64 {
	ms, _ := strconv.ParseInt(string(b), 10, 64)
	return ms
}

// markAt returns the mark as it was at a revision. gone is set when that is compacted.
func (r *Registry) markAt(ctx context.Context, rev int64) (ms int64, gone bool, err error) {
	kv, ok, err := r.store.GetAt(ctx, timeMark, rev)
	switch {
	case weft.KindOf(err) == weft.NotFound:
		return 0, true, nil
	case err != nil || !ok:
		return 0, false, err
	}
	return parseMark(kv.Value), false, nil
}

// span is a part of the history: after a revision, up to another.
type span struct {
	after, to int64
	at        int64 // Unix milliseconds, about: the mark at after; 0 is before there were any
	whole     bool  // nothing before it was compacted
}

// since finds the revision that was the newest at a time, or the oldest that history
// has. Marks only grow, so it is found by halving.
func (r *Registry) since(ctx context.Context, t time.Time, to int64) (s span, err error) {
	s = span{to: to, whole: true}
	low, high := int64(1), to // low: not later than t, or gone; high: where the search ends
	for low < high {
		mid := low + (high-low+1)/2
		at, gone, err := r.markAt(ctx, mid)
		switch {
		case err != nil:
			return s, err
		case gone || at <= t.UnixMilli():
			low = mid
		default:
			high = mid - 1
		}
	}
	s.after = low
	at, gone, err := r.markAt(ctx, low)
	if gone { // all of the history is later than t
		s.whole, s.after = false, low+1
		at, _, err = r.markAt(ctx, s.after)
	}
	s.at = at
	return s, err
}
