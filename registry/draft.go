package registry

import (
	"bytes"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// draft is the catalogue as it will be after some writes that are not committed
// yet. Writes read and change it; then txn says what to put and delete for the
// difference to the view, index cells included. So what moves an index is decided
// in one place, from what is really different.
type draft struct {
	view      *state                              // before; not changed
	instances map[weft.InstanceKey]*weft.Instance // after, nil is gone; the view's own pointer is unchanged
	nodes     map[string]*weft.Node               // after, likewise
	owners    map[checkKey]checkOwner             // after
	records   map[string][]byte                   // JSON of what is put, by key
	prepared  map[string]*weft.Instance           // what some of the records say, by key
	guards    map[weft.ServiceName]*Guard         // after, nil is gone
	gone      map[weft.InstanceKey]string         // who took an instance away
	released  map[weft.ServiceName]string         // who released a guard
	departed  map[string]*departures              // of txn, by cell
	actor     string                              // who makes the changes that come now
	tickets   map[string]punch                    // by id
	size      int                                 // bytes, about
	keys      keyDraft
	rev       int64   // of its transaction, when that is committed; 0 when it changes nothing
	outcome   outcome // of the plan that was made last
	repeated  bool    // some of the tickets are of repeated attempts
}

// checkKey finds a check: ids are unique on a node.
type checkKey struct{ node, id string }

// checkOwner is who has a check.
type checkOwner struct {
	instance string // id; "" is the node itself
	ok       bool   // false: nobody
}

func newDraft(s *state) *draft {
	return &draft{
		view:      s,
		instances: make(map[weft.InstanceKey]*weft.Instance),
		nodes:     make(map[string]*weft.Node),
		owners:    make(map[checkKey]checkOwner),
		records:   make(map[string][]byte),
		prepared:  make(map[string]*weft.Instance),
		guards:    make(map[weft.ServiceName]*Guard),
		gone:      make(map[weft.InstanceKey]string),
		released:  make(map[weft.ServiceName]string),
		departed:  make(map[string]*departures),
		keys:      newKeyDraft(&s.keys, time.Now().UnixMilli()),
	}
}

func (d *draft) instance(k weft.InstanceKey) *weft.Instance {
	if in, ok := d.instances[k]; ok {
		return in
	}
	return d.view.instance(k)
}

func (d *draft) node(name string) *weft.Node {
	if n, ok := d.nodes[name]; ok {
		return n
	}
	return d.view.node(name)
}

// instancesOn returns the keys of the instances on a node.
func (d *draft) instancesOn(node string) (keys []weft.InstanceKey) {
	if n := d.view.nodes[node]; n != nil {
		for id := range n.instances {
			key := weft.InstanceKey{Node: node, ID: id}
			if in, ok := d.instances[key]; !ok || in != nil {
				keys = append(keys, key)
			}
		}
	}
	for key, in := range d.instances {
		if key.Node == node && in != nil && d.view.instance(key) == nil {
			keys = append(keys, key)
		}
	}
	return keys
}

// owner returns who has a check.
func (d *draft) owner(k checkKey) checkOwner {
	if o, ok := d.owners[k]; ok {
		return o
	}
	if n := d.view.nodes[k.node]; n != nil {
		id, ok := n.checks[k.id]
		return checkOwner{id, ok}
	}
	return checkOwner{}
}

// putPrepared adds an instance that is not there, as prepare returned it.
func (d *draft) putPrepared(in *weft.Instance, b []byte) {
	key, record := in.Key(), instanceRecord(in.Key())
	d.put(record, signed(b, d.actor))
	d.prepared[record] = in
	d.instances[key] = in
	d.own(key, in.Checks)
}

// putInstance adds or replaces an instance, which the draft may keep.
func (d *draft) putInstance(in *weft.Instance) error {
	key := in.Key()
	record := instanceRecord(key)
	delete(d.prepared, record)
	before := d.view.instance(key)
	if before != nil {
		keepIndexes(in.Checks, before.Checks)
	}
	if before != nil && sameInstance(before, in) {
		delete(d.records, record)
		in = before
	} else if err := d.encode(record, "instance "+in.Service.Name+"/"+in.ID, in); err != nil {
		return err
	}
	old := d.instance(key)
	if old != nil {
		d.disown(key, old.Checks)
	}
	d.instances[key] = in
	d.own(key, in.Checks)
	if old != nil {
		d.checksChanged(key.Node, old.Checks, in.Checks)
	}
	return nil
}

func (d *draft) deleteInstance(key weft.InstanceKey) {
	checks := d.instance(key).Checks
	d.disown(key, checks)
	d.instances[key], d.gone[key] = nil, d.actor
	d.checksChanged(key.Node, checks, nil)
	delete(d.records, instanceRecord(key))
	delete(d.prepared, instanceRecord(key))
	d.size += 4 * len(key.ID) // its record's and its cells' keys
}

// putNode adds or replaces a node, which the draft may keep.
func (d *draft) putNode(n *weft.Node) error {
	record := nodeRecord(n.Name)
	before := d.view.node(n.Name)
	if before != nil {
		keepIndexes(n.Checks, before.Checks)
	}
	if before != nil && sameNode(before, n) {
		delete(d.records, record)
		n = before
	} else if err := d.encode(record, "node "+n.Name, n); err != nil {
		return err
	}
	key := weft.InstanceKey{Node: n.Name}
	old := d.node(n.Name)
	if old != nil {
		d.disown(key, old.Checks)
	}
	d.nodes[n.Name] = n
	d.own(key, n.Checks)
	if old != nil {
		d.checksChanged(n.Name, old.Checks, n.Checks)
	}
	return nil
}

func (d *draft) deleteNode(name string) {
	d.disown(weft.InstanceKey{Node: name}, d.node(name).Checks)
	d.nodes[name] = nil
	delete(d.records, nodeRecord(name))
	d.nodeGone(name)
}

func (d *draft) encode(record, thing string, v any) error {
	b, err := encode(thing, v)
	if err != nil {
		return err
	}
	d.put(record, signed(b, d.actor))
	return nil
}

func (d *draft) put(record string, b []byte) {
	d.records[record] = b
	d.size += len(b) + len(record)
}

func (d *draft) own(k weft.InstanceKey, checks []weft.Check) {
	for i := range checks {
		d.owners[checkKey{k.Node, checks[i].ID}] = checkOwner{k.ID, true}
	}
}

func (d *draft) disown(k weft.InstanceKey, checks []weft.Check) {
	for i := range checks {
		d.owners[checkKey{k.Node, checks[i].ID}] = checkOwner{}
	}
}

// keepIndexes takes over the indexes of checks that stay the same. A zero is
// filled in with the revision of the record (dateChecks).
func keepIndexes(checks, old []weft.Check) {
	for i := range checks {
		c := &checks[i]
		c.CreateIndex, c.ModifyIndex = 0, 0
		for k := range old {
			if old[k].ID != c.ID {
				continue
			}
			before := old[k]
			c.CreateIndex = before.CreateIndex
			before.CreateIndex, before.ModifyIndex = c.CreateIndex, 0
			if reflect.DeepEqual(before, *c) {
				c.ModifyIndex = old[k].ModifyIndex
			}
		}
	}
}

// sameInstance compares contents. It goes by reflection so that a new field of
// the noun is not forgotten here.
func sameInstance(before, after *weft.Instance) bool {
	a, b := *before, *after
	b.CreateIndex, b.ModifyIndex = a.CreateIndex, a.ModifyIndex
	return reflect.DeepEqual(a, b)
}

func sameNode(before, after *weft.Node) bool {
	a, b := *before, *after
	b.CreateIndex, b.ModifyIndex = a.CreateIndex, a.ModifyIndex
	return reflect.DeepEqual(a, b)
}

// says returns the instance that an event's record says, when the draft put that
// record and has its content; else nil. The draft gives it away.
func (d *draft) says(ev *store.Event) *weft.Instance {
	if d == nil || ev.Deleted || !bytes.Equal(d.records[ev.Key], ev.Value) {
		return nil
	}
	in := d.prepared[ev.Key]
	delete(d.prepared, ev.Key)
	return in
}

// txn returns the transaction that makes the draft true. It is empty when nothing
// is different.
func (d *draft) txn() store.Txn {
	var t store.Txn
	cells := make(map[string]bool)
	touched := make(map[weft.ServiceName]edits)
	for key, after := range d.instances {
		before := d.view.instance(key)
		if before == after {
			continue
		}
		if before != nil && (after == nil || after.Service != before.Service) {
			editsOf(touched, before.Service)[key] = nil
			cells[serviceCell(before.Service)] = true
		}
		if after != nil {
			editsOf(touched, after.Service)[key] = after
			continue
		}
		d.depart(before.Service, instanceRecord(key), d.gone[key])
		t.Delete = append(t.Delete, instanceRecord(key))
		cells[nodeCell(key.Node)] = true
		cells[instancesCell] = true
	}
	for name, after := range d.nodes {
		if before := d.view.node(name); before != after {
			d.nodeTxn(name, before, after, &t, cells)
		}
	}
	for name, ed := range touched {
		before := d.view.services[name]
		if !before.onlyGrows(ed) && !sameInMap(before, before.with(ed)) {
			cells[servicesCell] = true
			break
		}
	}
	d.guardTxn(&t, cells)
	for _, key := range slices.Sorted(maps.Keys(d.records)) {
		t.Put = append(t.Put, store.KV{Key: key, Value: d.records[key]})
	}
	for _, key := range slices.Sorted(maps.Keys(cells)) {
		t.Put = append(t.Put, store.KV{Key: key, Value: d.departed[key].encode()})
	}
	d.keyTxn(&t)
	return t
}

// depart notes who took a record of a service away.
func (d *draft) depart(n weft.ServiceName, record, by string) {
	cell := serviceCell(n)
	first := d.departed[cell] == nil
	if first {
		d.departed[cell] = new(departures)
	}
	d.departed[cell].add(record, by, first)
}

// nodeTxn adds what the change of a node means besides its own record.
func (d *draft) nodeTxn(name string, before, after *weft.Node, t *store.Txn, cells map[string]bool) {
	if after == nil {
		t.Delete = append(t.Delete, nodeRecord(name))
		cells[nodeCell(name)] = true
	}
	if !sameListing(before, after) {
		cells[nodesCell] = true
	}
	if !sameChecks(before, after) {
		cells[instancesCell] = true
	}
	// The node is part of what is told of the services on it, and so of all instances.
	// Instances that this draft adds have their record's revision.
	if n := d.view.nodes[name]; n != nil {
		for _, in := range n.instances {
			cells[serviceCell(in.Service)] = true
			cells[instancesCell] = true
		}
	}
}

// sameListing reports whether Nodes tells the same of both, but for their checks.
func sameListing(a, b *weft.Node) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := *a, *b
	x.Checks, y.Checks = nil, nil
	return sameNode(&x, &y)
}

func sameChecks(a, b *weft.Node) bool {
	var ca, cb []weft.Check
	if a != nil {
		ca = a.Checks
	}
	if b != nil {
		cb = b.Checks
	}
	return len(ca) == 0 && len(cb) == 0 || reflect.DeepEqual(ca, cb)
}
