package registry

import (
	"fmt"
	"slices"

	"github.com/weftmesh/weft"
)

// refuse says why an operation fails.
func refuse(kind weft.Kind, format string, args ...any) error {
	return &weft.Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}

func (x *execution) key(o *KeyOp) error {
	r := treeRef{o.Tree, o.Key}
	old := x.d.keys.entry(r)
	switch o.Verb {
	case "get", "get-or-empty", "get-tree":
		return x.getKey(o, old)
	case "set":
		x.setKey(o, old)
	case "cas":
		if !casHolds(o.Index, old != nil, modified(old)) {
			return refuse(weft.Conflict, "failed to set key %q, index is stale", o.Key)
		}
		x.setKey(o, old)
	case "delete":
		x.d.unset(r)
	case "delete-cas":
		if old != nil && !sameIndex(o.Index, old.ModifyIndex) {
			return refuse(weft.Conflict, "failed to delete key %q, index is stale", o.Key)
		}
		x.d.unset(r)
	case "delete-tree":
		return x.deleteTree(o)
	case "lock":
		return x.lock(o, old)
	case "unlock":
		return x.unlock(o, old)
	case "check-index", "check-session", "check-not-exists":
		return x.checkKey(o, old)
	default:
		return refuse(weft.Invalid, "unknown KV verb %q", o.Verb)
	}
	return nil
}

func modified(e *Entry) uint64 {
	if e == nil {
		return 0
	}
	return e.ModifyIndex
}

// sameIndex reports whether what has index have is what the caller knows. Something
// that the draft itself changed has index 0, which nobody knows.
func sameIndex(known, have uint64) bool { return have != 0 && known == have }

// casHolds reports whether a cas may happen.
func casHolds(known uint64, there bool, have uint64) bool {
	if known == 0 {
		return !there
	}
	return there && sameIndex(known, have)
}

// tell adds an entry to the results.
func (x *execution) tell(e *Entry, withValue bool) {
	own := *e
	if !withValue {
		own.Value = nil
	}
	x.date(&own.CreateIndex)
	x.date(&own.ModifyIndex)
	x.results = append(x.results, OpResult{Key: &own})
}

// date has an index filled in that is not known yet.
func (x *execution) date(index *uint64) {
	if *index == 0 {
		x.dates = append(x.dates, index)
	}
}

func (x *execution) getKey(o *KeyOp, e *Entry) error {
	switch {
	case o.Verb == "get-tree":
		for _, e := range x.d.keys.trees[o.Tree].entries(o.Key) {
			x.tell(e, true)
		}
	case e != nil:
		x.tell(e, true)
	case o.Verb == "get":
		return refuse(weft.NotFound, "key %q doesn't exist", o.Key)
	default:
		x.results = append(x.results, OpResult{Key: &Entry{Key: o.Key}})
	}
	return nil
}

// setKey sets value and flags; who has the key locked keeps it.
func (x *execution) setKey(o *KeyOp, old *Entry) {
	e := Entry{Value: o.Value, Flags: o.Flags}
	if old != nil {
		e.Session, e.LockIndex = old.Session, old.LockIndex
	}
	x.tell(x.d.set(treeRef{o.Tree, o.Key}, e), false)
}

func (x *execution) deleteTree(o *KeyOp) error {
	before := x.d.size
	for _, e := range x.d.keys.trees[o.Tree].entries(o.Key) {
		if x.d.size-before > maxTxn {
			if x.alone {
				x.more = true
				return nil
			}
			return refuse(weft.TooLarge, "failed to delete tree %q, it is too large for a transaction with other operations", o.Key)
		}
		x.d.unset(treeRef{o.Tree, e.Key})
	}
	return nil
}

func (x *execution) lock(o *KeyOp, old *Entry) error {
	if err := x.needSession(o); err != nil {
		return err
	}
	r := treeRef{o.Tree, o.Key}
	e := Entry{Value: o.Value, Flags: o.Flags, Session: o.Session, LockIndex: 1}
	switch {
	case old != nil && old.Session == o.Session:
		e.LockIndex = old.LockIndex
	case old != nil && old.Session != "":
		return refuse(weft.Conflict, "failed to lock key %q, lock is already held", o.Key)
	case x.d.stillDelayed(x.d.keys.leaf(r)) != 0:
		return refuse(weft.Conflict, "failed to lock key %q due to lock delay", o.Key)
	case old != nil:
		e.LockIndex = old.LockIndex + 1
	}
	x.tell(x.d.set(r, e), false)
	return nil
}

func (x *execution) unlock(o *KeyOp, old *Entry) error {
	if o.Session == "" {
		return refuse(weft.Invalid, "missing session")
	}
	if old == nil || old.Session != o.Session {
		return refuse(weft.Conflict, "failed to unlock key %q, lock isn't held, or is held by another session", o.Key)
	}
	x.tell(x.d.set(treeRef{o.Tree, o.Key}, Entry{Value: o.Value, Flags: o.Flags, LockIndex: old.LockIndex}), false)
	return nil
}

func (x *execution) needSession(o *KeyOp) error {
	if o.Session == "" {
		return refuse(weft.Invalid, "missing session")
	}
	if x.d.keys.session(o.Session) == nil {
		return refuse(weft.Invalid, "invalid session %q", o.Session)
	}
	return nil
}

func (x *execution) checkKey(o *KeyOp, e *Entry) error {
	switch {
	case o.Verb == "check-not-exists":
		if e != nil {
			return refuse(weft.Conflict, "key %q exists", o.Key)
		}
		return nil
	case o.Verb == "check-index" && e == nil:
		return refuse(weft.NotFound, "failed index check for key %q, key %q doesn't exist", o.Key, o.Key)
	case e == nil:
		return refuse(weft.NotFound, "failed session check for key %q, key %q doesn't exist", o.Key, o.Key)
	case o.Verb == "check-index" && !sameIndex(o.Index, e.ModifyIndex):
		return refuse(weft.Conflict, "failed index check for key %q, current modify index %d != %d", o.Key, e.ModifyIndex, o.Index)
	case o.Verb == "check-session" && e.Session != o.Session:
		return refuse(weft.Conflict, "failed session check for key %q, current session %q != %q", o.Key, e.Session, o.Session)
	}
	x.tell(e, false)
	return nil
}

// verb does what nodes, instances and checks have in common: it decides by the
// index, and calls what has to be done.
func verb(verb, thing string, known uint64, there bool, have uint64, put func() error, remove func()) (told bool, err error) {
	switch verb {
	case "get":
		if !there {
			return false, refuse(weft.NotFound, "%s doesn't exist", thing)
		}
		return true, nil
	case "cas":
		if !casHolds(known, there, have) {
			return false, refuse(weft.Conflict, "failed to set %s, index is stale", thing)
		}
		return true, put()
	case "set":
		return true, put()
	case "delete-cas":
		if there && !sameIndex(known, have) {
			return false, refuse(weft.Conflict, "failed to delete %s, index is stale", thing)
		}
		fallthrough
	case "delete":
		if there {
			remove()
		}
		return false, nil
	}
	return false, refuse(weft.Invalid, "unknown verb %q for %s", verb, thing)
}

func (x *execution) node(o *NodeOp) error {
	d, name := x.d, o.Node.Name
	if name == "" && o.Verb == "get" {
		name = d.nodeByID(o.Node.ID)
	}
	old := d.node(name)
	var have uint64
	if old != nil {
		have = x.nodeIndex(old)
	}
	removes := o.Verb == "delete" || o.Verb == "delete-cas"
	if removes && name == x.ownNode {
		return refuse(weft.Invalid, "node %q is the node of this server", name)
	}
	told, err := verb(o.Verb, fmt.Sprintf("node %q", orElse(name, o.Node.ID)), o.Node.ModifyIndex, old != nil, have,
		func() error {
			n := o.Node
			n.CreateIndex, n.ModifyIndex = 0, 0
			n.Checks = ownChecks(n.Checks)
			sortChecks(n.Checks)
			return planNode(d, n, len(n.Checks) > 0)
		},
		func() {
			for _, key := range d.instancesOn(name) {
				d.deleteInstance(key)
			}
			d.deleteNode(name)
		})
	if told && err == nil {
		x.tellNode(name)
	}
	return err
}

// nodeIndex is the index of a node, 0 when the draft changed it.
func (x *execution) nodeIndex(n *weft.Node) uint64 {
	if n != x.d.view.node(n.Name) {
		return 0
	}
	return n.ModifyIndex
}

func (d *draft) nodeByID(id string) string {
	for _, n := range d.nodes {
		if n != nil && n.ID == id && id != "" {
			return n.Name
		}
	}
	for name, e := range d.view.nodes {
		if e.node != nil && e.node.ID == id && d.node(name) == e.node {
			return name
		}
	}
	return ""
}

func (x *execution) tellNode(name string) {
	n, before := *x.d.node(name), x.d.view.node(name)
	if x.d.node(name) != before {
		n.CreateIndex, n.ModifyIndex = 0, 0
		if before != nil {
			n.CreateIndex = before.CreateIndex
		}
		n.Checks = x.dateChecks(n.Checks)
	}
	x.results = append(x.results, OpResult{Node: &n})
	x.date(&n.CreateIndex)
	x.date(&n.ModifyIndex)
}

// dateChecks returns a copy whose indexes are filled in.
func (x *execution) dateChecks(checks []weft.Check) []weft.Check {
	checks = slices.Clone(checks)
	for i := range checks {
		x.date(&checks[i].CreateIndex)
		x.date(&checks[i].ModifyIndex)
	}
	return checks
}

func (x *execution) instance(in *weft.Instance, how string) error {
	d, key := x.d, weft.InstanceKey{Node: in.Node, ID: orElse(in.ID, in.Service.Name)}
	old := d.instance(key)
	var have uint64
	if old != nil && old == d.view.instance(key) {
		have = old.ModifyIndex
	}
	told, err := verb(how, fmt.Sprintf("service %q on node %q", key.ID, key.Node), in.ModifyIndex, old != nil, have,
		func() error {
			own := *in
			own.ModifyIndex = 0
			if len(own.Checks) == 0 && old != nil {
				own.Checks = slices.Clone(old.Checks)
			}
			_, record, err := prepare(own, x.ownNode)
			if err != nil {
				return err
			}
			return planRegister(d, &own, record)
		},
		func() { d.deleteInstance(key) })
	if told && err == nil {
		x.results = append(x.results, OpResult{Service: x.instanceResult(key)})
	}
	return err
}

// instanceResult is an instance of the draft with its indexes.
func (x *execution) instanceResult(key weft.InstanceKey) *weft.Instance {
	now, before := x.d.instance(key), x.d.view.instance(key)
	if now == nil || now == before {
		return now
	}
	in := *now
	in.CreateIndex, in.ModifyIndex = 0, 0
	if before != nil {
		in.CreateIndex = before.CreateIndex
	}
	in.Checks = x.dateChecks(in.Checks)
	x.date(&in.CreateIndex)
	x.date(&in.ModifyIndex)
	return &in
}

func (x *execution) check(o *CheckOp) error {
	d, key := x.d, checkKey{o.Node, orElse(o.Check.ID, o.Check.Name)}
	old := d.check(key)
	var have uint64
	if old != nil {
		have = old.ModifyIndex
	}
	told, err := verb(o.Verb, fmt.Sprintf("check %q on node %q", key.id, key.node), o.Check.ModifyIndex, old != nil, have,
		func() error {
			c := ownChecks([]weft.Check{o.Check})[0]
			c.ID = key.id
			if err := checkCheck(&c); err != nil {
				return err
			}
			return planCheck(d, weft.InstanceKey{Node: o.Node, ID: o.Instance}, c)
		},
		func() {
			owner := weft.InstanceKey{Node: o.Node, ID: d.owner(key).instance}
			// It cannot fail: a record gets smaller.
			_ = editChecks(d, owner, "remove", without(key.id))
		})
	if told && err == nil {
		x.tellCheck(key)
	}
	return err
}

func (x *execution) tellCheck(key checkKey) {
	c := *x.d.check(key)
	x.date(&c.CreateIndex)
	x.date(&c.ModifyIndex)
	r := OpResult{Check: &c, CheckOn: key.node}
	if id := x.d.owner(key).instance; id != "" {
		r.Service = x.instanceResult(weft.InstanceKey{Node: key.node, ID: id})
	}
	x.results = append(x.results, r)
}
