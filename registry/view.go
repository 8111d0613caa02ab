package registry

import (
	"cmp"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// view is the catalogue in memory. Only the registry's loop changes it, by the
// store's events in revision order; so the loop may read it without the lock.
type view struct {
	mu sync.RWMutex
	state
	moved chan struct{} // closed when rev moves
}

// state is what the records and cells up to revision rev say.
type state struct {
	rev      int64
	services map[weft.ServiceName]*serviceEntry // tombstones included
	nodes    map[string]*nodeEntry              // tombstones included
	guards   map[weft.ServiceName]*Guard
	aliases  aliases
	tickets  ticketBook
	// indexes of the topics of the same names
	servicesX, nodesX, instancesX uint64
	keys                          keyspace
}

// serviceEntry is one service. It is immutable, but for its cache.
type serviceEntry struct {
	index     uint64
	instances []*weft.Instance // sorted by node and id
	tags      []string         // sorted union

	endpoints atomic.Pointer[[]weft.Endpoint] // made when first asked for, under view.mu
}

// nodeEntry is one node. Its fields are guarded by view.mu.
type nodeEntry struct {
	index     uint64
	node      *weft.Node                // nil when it is not there
	instances map[string]*weft.Instance // by id
	checks    map[string]string         // check id -> instance id, "" for the node's own

	sorted atomic.Pointer[[]*weft.Instance] // by id; made when first asked for
}

func newState() state {
	return state{
		services: make(map[weft.ServiceName]*serviceEntry), nodes: make(map[string]*nodeEntry),
		guards: make(map[weft.ServiceName]*Guard), aliases: make(aliases), keys: newKeyspace(),
		tickets: ticketBook{limit: maxTickets},
	}
}

// edits are changes to the instances of one service; nil takes one away.
type edits map[weft.InstanceKey]*weft.Instance

// keys returns what is edited, sorted.
func (ed edits) keys() []weft.InstanceKey {
	keys := make([]weft.InstanceKey, 0, len(ed))
	for key := range ed {
		keys = append(keys, key)
	}
	if len(keys) > 1 {
		slices.SortFunc(keys, compareKeys)
	}
	return keys
}

var noService serviceEntry

// with returns the entry after some edits.
func (e *serviceEntry) with(ed edits) *serviceEntry {
	if e == nil {
		e = &noService
	}
	next := &serviceEntry{index: e.index, instances: e.instances, tags: e.tags}
	if len(ed) == 0 {
		return next
	}
	rest := e.instances
	next.instances = make([]*weft.Instance, 0, len(rest)+len(ed))
	sameTags := len(rest) > 0
	for _, key := range ed.keys() {
		in := ed[key]
		at, found := findInstance(rest, key)
		next.instances = append(next.instances, rest[:at]...)
		rest = rest[at:]
		if found {
			sameTags = sameTags && in != nil && containsAll(in.Tags, rest[0].Tags) // else one may have gone
			rest = rest[1:]
		}
		if in != nil {
			next.instances = append(next.instances, in)
			sameTags = sameTags && containsAll(e.tags, in.Tags)
		}
	}
	next.instances = append(next.instances, rest...)
	if len(next.instances) == 0 {
		next.instances, next.tags = nil, nil // as in a tombstone that was loaded
	} else if !sameTags {
		next.tags = unionTags(next.instances)
	}
	return next
}

// onlyGrows reports whether edits add instances that bring no new tag to a service that
// has some: the common case, in which Services cannot be different.
func (e *serviceEntry) onlyGrows(ed edits) bool {
	if e == nil || len(e.instances) == 0 {
		return false
	}
	for key, in := range ed {
		if in == nil || !containsAll(e.tags, in.Tags) {
			return false
		}
		if _, found := findInstance(e.instances, key); found {
			return false
		}
	}
	return true
}

// findInstance returns the place of an instance in a sorted list.
func findInstance(list []*weft.Instance, key weft.InstanceKey) (int, bool) {
	low, high := 0, len(list)
	for low < high {
		mid := int(uint(low+high) >> 1)
		if in := list[mid]; in.Node < key.Node || in.Node == key.Node && in.ID < key.ID {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low, low < len(list) && list[low].Node == key.Node && list[low].ID == key.ID
}

func compareKeys(a, b weft.InstanceKey) int {
	return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.ID, b.ID))
}

func byKey(a, b *weft.Instance) int { return compareKeys(a.Key(), b.Key()) }

func containsAll(set, all []string) bool {
	for _, s := range all {
		if !slices.Contains(set, s) {
			return false
		}
	}
	return true
}

func unionTags(instances []*weft.Instance) []string {
	set := make(map[string]bool)
	for _, in := range instances {
		for _, tag := range in.Tags {
			set[tag] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// sameInMap reports whether Services lists both entries in the same way.
func sameInMap(a, b *serviceEntry) bool {
	if a == nil {
		a = &noService
	}
	return (len(a.instances) > 0) == (len(b.instances) > 0) && slices.Equal(a.tags, b.tags)
}

// decoded is one event of the store in the registry's words: exactly one of
// instance, node and topic is meant, by its kind.
type decoded struct {
	kind     recordKind
	rev      uint64
	key      weft.InstanceKey // ID is empty for a node
	instance *weft.Instance   // nil when deleted
	node     *weft.Node       // nil when deleted
	topic    Topic            // of a cell or a guard
	guard    *Guard           // nil when deleted
	keyed    *keyEvent
	tickets  []byte
}

type recordKind uint8

const (
	instanceKind recordKind = iota
	nodeKind
	cellKind
	guardKind
	keyKind
	ticketKind
)

// decode reads an event. A record that cannot be read stays in the store, and is
// logged; the rest of the catalogue must not be lost with it.
// known is what the record says, when that is known already. Instances share what p has.
func decode(ev *store.Event, known *weft.Instance, p *pool, log *slog.Logger) (d decoded, ok bool) {
	d.rev = uint64(ev.ModRev)
	if key, isInstance := parseInstanceRecord(ev.Key); isInstance {
		d.kind, d.key = instanceKind, key
		if ev.Deleted {
			return d, true
		}
		in := known
		if in == nil {
			in = new(weft.Instance)
			if err := json.Unmarshal(ev.Value, in); err != nil {
				log.Error("registry: instance record cannot be read", "key", ev.Key, "error", err)
				return d, false
			}
		}
		in.Node, in.ID = key.Node, key.ID
		in.CreateIndex, in.ModifyIndex = uint64(ev.CreateRev), d.rev
		dateChecks(in.Checks, d.rev)
		p.share(in)
		d.instance = in
		return d, true
	}
	if name, isNode := parseNodeRecord(ev.Key); isNode {
		d.kind, d.key = nodeKind, weft.InstanceKey{Node: name}
		if ev.Deleted {
			return d, true
		}
		n := new(weft.Node)
		if err := json.Unmarshal(ev.Value, n); err != nil {
			log.Error("registry: node record cannot be read", "key", ev.Key, "error", err)
			return d, false
		}
		n.Name, n.CreateIndex, n.ModifyIndex = name, uint64(ev.CreateRev), d.rev
		dateChecks(n.Checks, d.rev)
		d.node = n
		return d, true
	}
	if keyed, isKey := decodeKey(ev, log); isKey {
		d.kind, d.keyed = keyKind, keyed
		return d, keyed != nil
	}
	if n, isGuard := parseGuardRecord(ev.Key); isGuard {
		return decodeGuard(d, n, ev, log)
	}
	if ev.Key == ticketsRecord {
		d.kind, d.tickets = ticketKind, ev.Value
		return d, true
	}
	d.kind = cellKind
	d.topic, ok = parseCell(ev.Key)
	return d, ok
}

// dateChecks gives the indexes to the checks that changed with their record: a
// record is written before its revision is known, and so with zeros there.
func dateChecks(checks []weft.Check, rev uint64) {
	for i := range checks {
		if checks[i].CreateIndex == 0 {
			checks[i].CreateIndex = rev
		}
		if checks[i].ModifyIndex == 0 {
			checks[i].ModifyIndex = rev
		}
	}
}

// change is what a batch of events did.
type change struct {
	topics map[Topic]bool
	// owners are instances and nodes (ID "") with their checks now; nil when gone. It is
	// nil itself while everything is loaded: see checker.fill.
	owners map[weft.InstanceKey][]weft.Check

	sessions map[string]*Session // those that came, and nil for those that went
}

func (c *change) own(key weft.InstanceKey, checks []weft.Check) {
	if c.owners != nil {
		c.owners[key] = checks
	}
}

// apply brings the state forward by events, which are whole revisions.
func (s *state) apply(rev int64, events []decoded) change {
	c := change{topics: make(map[Topic]bool)}
	touched := make(map[weft.ServiceName]edits)
	now := new(edition)
	loading := s.rev == 0
	if loading {
		c.topics[everyKeyTopic()] = true
		s.tickets.since = rev
	} else {
		c.owners = make(map[weft.InstanceKey][]weft.Check, len(events))
	}
	for i := range events {
		ev := &events[i]
		switch ev.kind {
		case keyKind:
			s.applyKey(ev, now, &c, loading)
		case instanceKind:
			s.applyInstance(ev, touched, &c)
		case nodeKind:
			s.applyNode(ev, &c)
		case guardKind:
			s.setGuard(ev.topic.service(), ev.guard)
		case ticketKind:
			s.tickets.add(ev.tickets, int64(ev.rev))
		}
	}
	for name, ed := range touched {
		s.services[name] = s.services[name].with(ed)
	}
	// Indexes last: they are set on the new entries.
	for i := range events {
		s.applyIndex(&events[i], &c)
	}
	s.rev = rev
	return c
}

func (s *state) applyInstance(ev *decoded, touched map[weft.ServiceName]edits, c *change) {
	n := s.nodeEntry(ev.key.Node)
	var before []weft.Check
	if old := n.instances[ev.key.ID]; old != nil {
		editsOf(touched, old.Service)[ev.key] = nil
		n.dropChecks(ev.key.ID, old.Checks)
		before = old.Checks
	}
	n.sorted.Store(nil)
	if ev.instance == nil {
		delete(n.instances, ev.key.ID)
		s.aliases.replace(ev.key, before, nil)
		c.own(ev.key, nil)
		return
	}
	s.aliases.replace(ev.key, before, ev.instance.Checks)
	n.instances[ev.key.ID] = ev.instance
	n.addChecks(ev.key.ID, ev.instance.Checks)
	editsOf(touched, ev.instance.Service)[ev.key] = ev.instance
	c.own(ev.key, ev.instance.Checks)
}

func editsOf(touched map[weft.ServiceName]edits, n weft.ServiceName) edits {
	ed := touched[n]
	if ed == nil {
		ed = make(edits)
		touched[n] = ed
	}
	return ed
}

func (s *state) applyNode(ev *decoded, c *change) {
	n := s.nodeEntry(ev.key.Node)
	if n.node != nil {
		n.dropChecks("", n.node.Checks)
	}
	s.aliases.replace(ev.key, checksOfNode(n.node), checksOfNode(ev.node))
	n.node = ev.node
	c.own(ev.key, checksOfNode(ev.node))
	n.addChecks("", checksOfNode(ev.node))
}

// applyIndex moves the indexes that an event stands for.
func (s *state) applyIndex(ev *decoded, c *change) {
	switch {
	case ev.kind == cellKind || ev.kind == guardKind:
		s.setIndex(ev.topic, ev.rev, c)
	case ev.instance != nil:
		s.setIndex(ServiceTopic(ev.instance.Service), ev.rev, c)
		s.setIndex(NodeTopic(ev.key.Node), ev.rev, c)
		s.setIndex(InstancesTopic(), ev.rev, c)
	case ev.node != nil:
		s.setIndex(NodeTopic(ev.key.Node), ev.rev, c)
	}
}

func (s *state) setIndex(t Topic, rev uint64, c *change) {
	c.topics[t] = true
	switch t.kind {
	case serviceTopic:
		e := s.services[t.service()]
		if e == nil || e.index < rev { // a new entry: readers may hold the old one
			e = e.with(nil)
			e.index = rev
			s.services[t.service()] = e
		}
	case nodeTopic:
		n := s.nodeEntry(t.name)
		n.index = max(n.index, rev)
	case servicesTopic:
		s.servicesX = max(s.servicesX, rev)
	case nodesTopic:
		s.nodesX = max(s.nodesX, rev)
	case instancesTopic:
		s.instancesX = max(s.instancesX, rev)
	}
}

// index returns the index of a topic; 1 when it never changed.
func (v *view) index(t Topic) uint64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.indexLocked(t)
}

func (s *state) indexLocked(t Topic) uint64 {
	var index uint64
	switch t.kind {
	case serviceTopic:
		if e := s.services[t.service()]; e != nil {
			index = e.index
		}
	case nodeTopic:
		if n := s.nodes[t.name]; n != nil {
			index = n.index
		}
	case servicesTopic:
		index = s.servicesX
	case nodesTopic:
		index = s.nodesX
	case instancesTopic:
		index = s.instancesX
	case keyTopic:
		index = s.keys.keyIndex(treeRef{t.namespace, t.name})
	case keysTopic:
		index = s.keys.trees[t.namespace].newest(t.name)
	case everyKey:
		index = uint64(s.rev)
	}
	return max(index, 1)
}

func (s *state) nodeEntry(name string) *nodeEntry {
	n := s.nodes[name]
	if n == nil {
		n = &nodeEntry{instances: make(map[string]*weft.Instance), checks: make(map[string]string)}
		s.nodes[name] = n
	}
	return n
}

func (n *nodeEntry) addChecks(instance string, checks []weft.Check) {
	for i := range checks {
		n.checks[checks[i].ID] = instance
	}
}

func (n *nodeEntry) dropChecks(instance string, checks []weft.Check) {
	for i := range checks {
		if n.checks[checks[i].ID] == instance { // else it went to another one
			delete(n.checks, checks[i].ID)
		}
	}
}

// instance returns an instance, nil when it is not there.
func (s *state) instance(k weft.InstanceKey) *weft.Instance {
	if n := s.nodes[k.Node]; n != nil {
		return n.instances[k.ID]
	}
	return nil
}

// node returns a node, nil when it is not there.
func (s *state) node(name string) *weft.Node {
	if n := s.nodes[name]; n != nil {
		return n.node
	}
	return nil
}
