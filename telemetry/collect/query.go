package collect

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weftmesh/weft"
)

// Query selects traces. A trace is found when one of its spans has all that is
// asked for: it is Service's, is the Operation, lasted MinDuration, failed.
type Query struct {
	Service     string        // "" is any
	Operation   string        // a span's name; "" is any
	MinDuration time.Duration // of the span
	ErrorsOnly  bool
	Since       time.Duration // the span began no longer ago; 0 is all that is kept
	Limit       int           // of traces; 0 is 20, at most 1,000
}

// Summary is a trace in a list.
type Summary struct {
	TraceID   string        `json:"traceId"`
	Service   string        `json:"service"`   // of the root span
	Operation string        `json:"operation"` // of the root span
	Start     time.Time     `json:"start"`
	Duration  time.Duration `json:"durationNanos"` // from the first start to the last end
	Spans     int           `json:"spans"`
	Services  []string      `json:"services"`            // all that took part, sorted
	Error     bool          `json:"error"`               // a span failed
	Truncated bool          `json:"truncated,omitempty"` // there are more spans than were read
}

const (
	defaultLimit  = 20
	maxLimit      = 1000
	maxScan       = 2_000_000 // index entries that one query looks at
	maxTraceSpans = 10_000
	maxTraceBytes = 32 << 20 // of encoded spans; larger traces are truncated too
)

// Traces returns the newest traces that match, newest first.
func (c *Collector) Traces(ctx context.Context, q Query) (found []Summary, err error) {
	switch {
	case q.Limit <= 0:
		q.Limit = defaultLimit
	case q.Limit > maxLimit:
		q.Limit = maxLimit
	}
	err = c.reading("find traces", q.Service, func() error {
		ids, err := c.find(ctx, q)
		if err != nil {
			return err
		}
		for _, id := range ids {
			t, err := c.load(ctx, id)
			if err != nil {
				return err
			}
			if t != nil { // its hour may have been dropped since
				found = append(found, t.Summary)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(found, func(a, b Summary) int { return b.Start.Compare(a.Start) })
	return found, nil
}

// find walks the index backwards in time until it has met enough traces.
func (c *Collector) find(ctx context.Context, q Query) (ids [][16]byte, err error) {
	var since uint64 // Unix nanoseconds
	if q.Since > 0 {
		since = uint64(max(0, c.now().Add(-q.Since).UnixNano()))
	}
	service, operation := cut(q.Service), cut(q.Operation)
	parts, seen, scanned := *c.store.parts.Load(), map[[16]byte]bool{}, 0
	for _, p := range slices.Backward(parts) {
		if uint64(max(0, p.until().UnixNano())) < since {
			break // a span that arrived before cannot have begun after
		}
		prefix := indexKey(p.id, service)
		err := c.store.scan(ctx, binary.BigEndian.AppendUint64(slices.Clone(prefix), since), after(prefix), func(key, value []byte) bool {
			scanned++
			if id := [16]byte(key[len(prefix)+8:]); !seen[id] && q.matches(operation, value) {
				seen[id] = true
				ids = append(ids, id)
			}
			return len(ids) < q.Limit && scanned < maxScan
		})
		if err != nil || len(ids) >= q.Limit || scanned >= maxScan {
			return ids, err
		}
	}
	return ids, nil
}

// matches looks at an index entry's value.
func (q *Query) matches(operation string, value []byte) bool {
	if len(value) == 0 {
		return false
	}
	duration, w := binary.Uvarint(value[1:])
	if w <= 0 {
		return false
	}
	return (!q.ErrorsOnly || value[0]&flagError != 0) &&
		duration >= uint64(max(0, q.MinDuration)) &&
		(operation == "" || string(value[1+w:]) == operation)
}

// Services returns the names of all services that sent a span that is kept.
func (c *Collector) Services(ctx context.Context) (names []string, err error) {
	err = c.reading("list services", "", func() error {
		seen := map[string]bool{}
		for _, p := range *c.store.parts.Load() {
			if err := c.store.services(ctx, p.id, seen); err != nil {
				return err
			}
		}
		for name := range seen {
			names = append(names, name)
		}
		return nil
	})
	slices.Sort(names)
	return names, err
}

// services skips through the index of a part, one seek a service.
func (s *store) services(ctx context.Context, id uint32, into map[string]bool) error {
	all := indexKey(id, "")
	from, to := after(all), after(all[:len(all)-1])
	it, err := s.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; {
		name := it.Key()[len(all):][:it.Key()[len(all)-1]]
		into[string(name)] = true
		if err := ctx.Err(); err != nil {
			return err
		}
		ok = it.SeekGE(after(indexKey(id, string(name))))
	}
	return it.Error()
}

// Trace returns all that is kept of a trace; weft.NotFound when that is nothing.
// id is 32 hex digits.
func (c *Collector) Trace(ctx context.Context, id string) (t *Trace, err error) {
	const op = "read trace"
	var raw [16]byte
	if n, err := hex.Decode(raw[:], []byte(id[:min(len(id), 32)])); err != nil || n != 16 || len(id) != 32 {
		return nil, weft.Errorf(weft.Invalid, op, id, "a trace id is 32 hex digits")
	}
	err = c.reading(op, id, func() error {
		t, err = c.load(ctx, raw)
		return err
	})
	if err != nil {
		return nil, err
	}
	if t == nil {
		return nil, weft.Errorf(weft.NotFound, op, id, "no span of it is kept; spans arrive a second or two after they end, and go after %v", c.retention)
	}
	return t, nil
}

// load reads a trace; nil when there is none. A span that came twice (a sender
// repeats what was not confirmed) counts once.
func (c *Collector) load(ctx context.Context, id [16]byte) (*Trace, error) {
	var spans []*Span
	seen, bytes, truncated := map[string]bool{}, 0, false
	var bad error
	for _, p := range *c.store.parts.Load() {
		prefix := append(append(partKey(p.id), keySpan), id[:]...)
		err := c.store.scan(ctx, prefix, after(prefix), func(key, value []byte) bool {
			spanID := hex.EncodeToString(key[len(prefix):])
			if seen[spanID] {
				return true
			}
			if len(spans) >= maxTraceSpans || bytes+len(value) > maxTraceBytes {
				truncated = true
				return false
			}
			var s *Span
			if s, bad = newSpan(value); bad != nil {
				return false
			}
			seen[spanID], bytes = true, bytes+len(value)
			spans = append(spans, s)
			return true
		})
		if err := cmp.Or(err, bad); err != nil {
			return nil, weft.Errorf(weft.Internal, "read trace", hex.EncodeToString(id[:]), "%w", err)
		}
		if truncated {
			break
		}
	}
	if len(spans) == 0 {
		return nil, nil
	}
	t := newTrace(hex.EncodeToString(id[:]), spans)
	t.Truncated = truncated
	return t, nil
}

// scan calls fn for the keys in [from, to), last first, until it returns false.
// key and value are fn's until it returns.
func (s *store) scan(ctx context.Context, from, to []byte, fn func(key, value []byte) bool) error {
	it, err := s.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return err
	}
	defer it.Close()
	for i, ok := 0, it.Last(); ok; i, ok = i+1, it.Prev() {
		if i%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if !fn(it.Key(), it.Value()) {
			break
		}
	}
	return it.Error()
}

// after is the first key behind all that begin with prefix.
func after(prefix []byte) []byte {
	end := slices.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil // no key is: prefix is all ff, which no key of ours begins with
}
