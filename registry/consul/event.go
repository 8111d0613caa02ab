package consul

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

const (
	eventTree = "event" // the last events, by their number in 16 hexadecimal digits
	// maxEvents are kept; who looks seldom misses what is older, as in Consul.
	maxEvents  = 256
	maxPayload = 64 << 10
)

func (a *api) eventEndpoints() endpoints {
	return endpoints{
		"event/fire/": {put: a.eventFire},
		"event/list":  {get: a.eventList},
	}
}

// eventRecord is an event. The filters are for agents that run handlers; who lists
// events gets all.
type eventRecord struct {
	ID            string
	Name          string
	Payload       []byte // base64; null when empty
	NodeFilter    string
	ServiceFilter string
	TagFilter     string
	Version       int
	LTime         uint64
}

// PUT /v1/event/fire/{name}?node=&service=&tag=
func (a *api) eventFire(w http.ResponseWriter, q *query) error {
	name, err := q.need("event name")
	if err != nil {
		return err
	}
	e := eventRecord{
		ID: newUUID(), Name: name, Version: 1,
		NodeFilter: q.params.Get("node"), ServiceFilter: q.params.Get("service"), TagFilter: q.params.Get("tag"),
	}
	if e.TagFilter != "" && e.ServiceFilter == "" {
		return weft.Errorf(weft.Invalid, "fire event", name, "Cannot provide tag filter without service filter")
	}
	if e.Payload, err = readBody(w, q, maxPayload); err != nil {
		return err
	}
	if len(e.Payload) == 0 {
		e.Payload = nil
	}
	if err := a.keepEvent(q, &e); err != nil {
		return err
	}
	b, err := q.marshal(e)
	if err == nil {
		writeJSON(w, http.StatusOK, b)
	}
	return err
}

// keepEvent writes the event behind the last one, and drops those that are too many.
// Who fires at the same time gets another number.
func (a *api) keepEvent(q *query, e *eventRecord) error {
	for range maxTries {
		events, _ := a.registry.Keys(eventTree, "")
		e.LTime = 1
		if len(events) > 0 {
			last, err := strconv.ParseUint(events[len(events)-1].Key, 16, 64)
			if err != nil {
				return weft.Errorf(weft.Internal, "fire event", e.Name, "%w", err)
			}
			e.LTime = last + 1
		}
		value, err := json.Marshal(e)
		if err != nil {
			return weft.Errorf(weft.Internal, "fire event", e.Name, "%w", err)
		}
		ops := []registry.Op{{Key: &registry.KeyOp{Tree: eventTree, Verb: "cas", Key: fmt.Sprintf("%016x", e.LTime), Value: value}}}
		for i := 0; i <= len(events)-maxEvents && len(ops) < maxTxnOps; i++ {
			ops = append(ops, registry.Op{Key: &registry.KeyOp{Tree: eventTree, Verb: "delete", Key: events[i].Key}})
		}
		result, err := a.registry.Transact(q.request.Context(), registry.TxnRequest{Ops: ops})
		if err != nil || len(result.Errors) == 0 {
			return err
		}
		if err := a.registry.CatchUp(q.request.Context()); err != nil {
			return err
		}
	}
	return weft.Errorf(weft.Unavailable, "fire event", e.Name, "too many events at the same time, fire it again")
}

// GET /v1/event/list?name=
//
// Its index is made from the last event's ID, and not ordered: a read blocks until
// the index is another one.
func (a *api) eventList(w http.ResponseWriter, q *query) error {
	ctx, cancel := a.waiting(q)
	defer cancel()
	for blocking := q.index > 0; ; {
		events, at, err := a.events(q.params.Get("name"))
		if err != nil {
			return err
		}
		index := uint64(1)
		if len(events) > 0 {
			index = indexOfID(events[len(events)-1].ID)
		}
		if blocking && index == q.index {
			blocking = a.registry.Wait(ctx, registry.KeysTopic(eventTree, ""), at) > at // else time is up
			continue
		}
		if err := a.stillMay(q); err != nil {
			return err
		}
		body, err := q.marshal(q.visible(events))
		if err == nil {
			q.setHeaders(w, index)
			writeJSON(w, http.StatusOK, body)
		}
		return err
	}
}

func (a *api) events(name string) ([]eventRecord, uint64, error) {
	entries, index := a.registry.Keys(eventTree, "")
	out := make([]eventRecord, 0, len(entries))
	for _, entry := range entries {
		var e eventRecord
		if err := json.Unmarshal(entry.Value, &e); err != nil {
			return nil, 0, weft.Errorf(weft.Internal, "read event", entry.Key, "%w", err)
		}
		if name == "" || e.Name == name {
			out = append(out, e)
		}
	}
	return out, index, nil
}

// indexOfID is how Consul's clients make an index of an event's UUID: the halves of
// its digits, one xor the other. They rely on it.
func indexOfID(id string) uint64 {
	digits := strings.ReplaceAll(id, "-", "")
	if len(digits) != 32 {
		return 1
	}
	high, _ := strconv.ParseUint(digits[:16], 16, 64) // of a UUID that newUUID made
	low, _ := strconv.ParseUint(digits[16:], 16, 64)
	return high ^ low
}
