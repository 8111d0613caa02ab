package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// HistoryRequest asks what happened to a service.
type HistoryRequest struct {
	Service weft.ServiceName
	Since   weft.Duration // how far back
	After   uint64        // go on after HistoryResult.Next; Since does not count then
	Until   uint64        // with After: no further than this index; 0: to the newest
	Limit   int           // most changes in the answer; 0 is 1000
}

// HistoryResult is a part of the history of a service.
type HistoryResult struct {
	// Start is the service's instances as they were at index From, sorted by node and
	// id. When the answer goes on from another (After), it is empty.
	Start []*weft.Instance `json:"start,omitempty"`
	From  uint64           `json:"from"`
	At    time.Time        `json:"at,omitzero"` // of From, about; zero when nobody knows
	// Changes are those after From, oldest first.
	Changes []Change `json:"changes,omitempty"`
	// Next is the index after which there are more; 0 when these are all.
	Next uint64 `json:"next,omitempty"`
}

// Change is what happened to one instance at one index.
type Change struct {
	Index uint64           `json:"index"`
	When  time.Time        `json:"when,omitzero"` // not later than it happened, and by markEvery at most earlier
	By    string           `json:"by,omitempty"`  // "" when nobody said so
	Key   weft.InstanceKey `json:"key"`           // ID is empty for the node; both are for the service's guard
	What  []string         `json:"what"`          // in plain words
}

const (
	historyLimit   = 1000
	maxHistory     = 10_000
	historyTimeout = 30 * time.Second
	// historyPage is how many revisions are read at a time.
	historyPage = 256
)

// History tells how a service came to be what it is: what changed in it, when, and who
// changed it, as far back as the store remembers (an hour, or half a million
// changes). The error is of Kind NotFound when it does not reach so far.
func (r *Registry) History(ctx context.Context, q HistoryRequest) (HistoryResult, error) {
	q.Service = weft.NewServiceName(q.Service.Namespace, q.Service.Name)
	thing := "history of " + q.Service.String()
	switch {
	case q.Service.Name == "":
		return HistoryResult{}, weft.Errorf(weft.Invalid, "read", "history", "service: is empty; give it a name")
	case q.Since <= 0 && q.After == 0:
		return HistoryResult{}, weft.Errorf(weft.Invalid, "read", thing, "since: %s is no time; use one such as \"1h\"", q.Since)
	case q.Limit < 0 || q.Limit > maxHistory:
		return HistoryResult{}, weft.Errorf(weft.Invalid, "read", thing, "limit: %d is out of range; use 1 to %d", q.Limit, maxHistory)
	case q.Limit == 0:
		q.Limit = historyLimit
	}
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	h, err := r.beginHistory(ctx, q)
	if err != nil {
		return HistoryResult{}, err
	}
	return h.read(ctx)
}

// history is being read.
type history struct {
	store  *store.Store
	q      HistoryRequest
	record []byte // what the record of an instance of the service has in it
	cell   string // put when an instance leaves the service, or a node changes under it
	guard  string

	span
	result  HistoryResult
	start   map[weft.InstanceKey]*weft.Instance // those that were seen, before; nil was not there
	now     map[weft.InstanceKey]*weft.Instance // those that were seen, as read so far
	nodes   map[string]*weft.Node               // likewise
	present []*weft.Instance                    // at the end of the span
}

func (r *Registry) beginHistory(ctx context.Context, q HistoryRequest) (*history, error) {
	name, err := json.Marshal(q.Service)
	if err != nil {
		return nil, weft.Errorf(weft.Invalid, "read", "history", "%w", err)
	}
	h := &history{
		store: r.store, q: q, record: append([]byte(`"service":`), name...),
		cell: serviceCell(q.Service), guard: guardRecord(q.Service),
		start: make(map[weft.InstanceKey]*weft.Instance), now: make(map[weft.InstanceKey]*weft.Instance),
		nodes: make(map[string]*weft.Node),
	}
	r.view.mu.RLock()
	to := r.view.rev
	if e := r.view.services[q.Service]; e != nil {
		h.present = e.instances
	}
	r.view.mu.RUnlock()
	if q.After != 0 {
		if q.Until != 0 {
			to = min(to, int64(q.Until))
		}
		h.span = span{after: min(int64(q.After), to), to: to, whole: true}
		h.at, _, err = r.markAt(ctx, h.after)
		return h, err
	}
	h.span, err = r.since(ctx, time.Now().Add(-q.Since.Std()), to)
	if err == nil && !h.whole {
		err = weft.Errorf(weft.NotFound, "read", "history of "+q.Service.String(),
			"the history reaches back to %s (index %d); ask for a shorter time", when(h.at).Format(time.RFC3339), h.after)
	}
	return h, err
}

func when(mark int64) time.Time {
	if mark == 0 {
		return time.Time{}
	}
	return time.UnixMilli(mark).UTC()
}

// read goes through the span. For Start all of it must be seen, also when there are
// more changes in it than are asked for.
func (h *history) read(ctx context.Context) (HistoryResult, error) {
	h.result.From, h.result.At = uint64(h.after), when(h.at)
	for from := h.after + 1; from <= h.to; from += historyPage {
		batches, err := h.store.History(ctx, root, from, min(from+historyPage-1, h.to))
		if err != nil {
			return HistoryResult{}, err
		}
		for _, b := range batches {
			if err := h.revision(ctx, b); err != nil {
				return HistoryResult{}, err
			}
			if h.result.Next != 0 && h.q.After != 0 {
				return h.result, nil
			}
		}
	}
	if h.q.After == 0 {
		h.result.Start = h.catalogue()
	}
	return h.result, nil
}

// catalogue returns the instances at the beginning: those of the end that nothing
// happened to, and of the others what they were.
func (h *history) catalogue() (list []*weft.Instance) {
	for _, in := range h.present {
		if _, seen := h.start[in.Key()]; !seen {
			list = append(list, in)
		}
	}
	for _, in := range h.start {
		if in != nil && in.Service == h.q.Service {
			list = append(list, in)
		}
	}
	slices.SortFunc(list, byKey)
	return list
}

// revision reads the changes of one index.
func (h *history) revision(ctx context.Context, b store.Batch) error {
	var gone *departures
	for i := range b.Events {
		switch ev := &b.Events[i]; ev.Key {
		case timeMark:
			h.at = parseMark(ev.Value)
		case h.cell:
			gone = new(departures)
			if len(ev.Value) > 0 && json.Unmarshal(ev.Value, gone) != nil {
				gone = new(departures)
			}
		}
	}
	var changes []Change
	for i := range b.Events {
		c, err := h.event(ctx, &b.Events[i], gone)
		if err != nil {
			return err
		}
		if len(c.What) > 0 {
			c.Index, c.When = uint64(b.Rev), when(h.at)
			changes = append(changes, c)
		}
	}
	// The store keeps the changes of one index in no order.
	slices.SortStableFunc(changes, func(a, b Change) int { return compareKeys(a.Key, b.Key) })
	h.add(changes)
	return nil
}

// add takes all changes of one index, or none: an answer ends between two indexes.
func (h *history) add(changes []Change) {
	if len(changes) == 0 || h.result.Next != 0 {
		return
	}
	if have := len(h.result.Changes); have > 0 && have+len(changes) > h.q.Limit {
		h.result.Next = h.result.Changes[have-1].Index
		return
	}
	h.result.Changes = append(h.result.Changes, changes...)
}

// event tells what an event changed in the service. gone is nil when no instance left
// it at this index, and no node changed under it.
func (h *history) event(ctx context.Context, ev *store.Event, gone *departures) (Change, error) {
	if key, ok := parseInstanceRecord(ev.Key); ok {
		if gone == nil && !bytes.Contains(ev.Value, h.record) {
			return Change{}, nil
		}
		return h.instance(ctx, key, ev, gone)
	}
	if name, ok := parseNodeRecord(ev.Key); ok && gone != nil {
		return h.node(ctx, name, ev)
	}
	if ev.Key == h.guard {
		return h.guarded(ev, gone), nil
	}
	return Change{}, nil
}

func (h *history) instance(ctx context.Context, key weft.InstanceKey, ev *store.Event, gone *departures) (Change, error) {
	before, seen := h.now[key]
	if !seen {
		var err error
		if before, err = h.instanceBefore(ctx, key, ev); err != nil {
			return Change{}, err
		}
		h.start[key] = before
	}
	var after *weft.Instance
	c := Change{Key: key}
	if !ev.Deleted {
		after, c.By = readInstance(key, ev.KV), signerOf(ev.Value)
	} else if gone != nil {
		c.By = gone.of(ev.Key)
	}
	h.now[key] = after
	c.What = whatChanged(h.q.Service, before, after)
	return c, nil
}

// instanceBefore returns an instance as it was before an event, nil when it was not
// there.
func (h *history) instanceBefore(ctx context.Context, key weft.InstanceKey, ev *store.Event) (*weft.Instance, error) {
	if !ev.Deleted && ev.CreateRev == ev.ModRev {
		return nil, nil
	}
	kv, ok, err := h.store.GetAt(ctx, ev.Key, ev.ModRev-1)
	if err != nil || !ok {
		return nil, err
	}
	return readInstance(key, kv), nil
}

// readInstance reads a record; what cannot be read was never in the catalogue.
func readInstance(key weft.InstanceKey, kv store.KV) *weft.Instance {
	in := new(weft.Instance)
	if json.Unmarshal(kv.Value, in) != nil {
		return nil
	}
	in.Node, in.ID = key.Node, key.ID
	in.CreateIndex, in.ModifyIndex = uint64(kv.CreateRev), uint64(kv.ModRev)
	dateChecks(in.Checks, in.ModifyIndex)
	return in
}

// node tells what changed of a node that has instances of the service.
func (h *history) node(ctx context.Context, name string, ev *store.Event) (Change, error) {
	before, seen := h.nodes[name]
	if !seen {
		kv, ok, err := h.store.GetAt(ctx, ev.Key, ev.ModRev-1)
		if err != nil {
			return Change{}, err
		}
		if ok {
			before = readNode(name, kv)
		}
	}
	c := Change{Key: weft.InstanceKey{Node: name}}
	var after *weft.Node
	if !ev.Deleted {
		after, c.By = readNode(name, ev.KV), signerOf(ev.Value)
	}
	h.nodes[name] = after
	c.What = whatNodeChanged(before, after)
	return c, nil
}

func readNode(name string, kv store.KV) *weft.Node {
	n := new(weft.Node)
	if json.Unmarshal(kv.Value, n) != nil {
		return nil
	}
	n.Name = name
	return n
}

// guarded tells that the service's guard began, changed or ended.
func (h *history) guarded(ev *store.Event, gone *departures) Change {
	var c Change
	var g Guard
	switch {
	case ev.Deleted:
		if gone != nil {
			c.By = gone.Others[ev.Key]
		}
		c.What = []string{"no longer guarded"}
	case json.Unmarshal(ev.Value, &g) == nil && ev.CreateRev == ev.ModRev:
		c.What = []string{"guarded: " + g.Reason}
	default:
		c.What = []string{"guarded still, with other instances kept"}
	}
	return c
}
