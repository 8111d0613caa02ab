package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/weftmesh/weft"
)

// Op is one operation of a transaction: exactly one field is set. Verbs are Consul's
// words.
type Op struct {
	Key     *KeyOp      `json:"key,omitempty"`
	Node    *NodeOp     `json:"node,omitempty"`
	Service *InstanceOp `json:"service,omitempty"`
	Check   *CheckOp    `json:"check,omitempty"`
}

// KeyOp is an operation on a key.
//
//	get, get-or-empty        one entry; get fails when it is not there
//	get-tree                 all entries whose keys begin with Key
//	set                      Value and Flags
//	cas                      likewise, when the key's ModifyIndex is Index, or with Index 0 when it is not there
//	delete, delete-tree      the key, or all that begin with Key
//	delete-cas               the key, when its ModifyIndex is Index or it is not there
//	lock                     Value and Flags, and the lock for Session
//	unlock                   Value and Flags, and the lock of Session given back
//	check-index              its ModifyIndex is Index
//	check-session            Session has it locked
//	check-not-exists         it is not there
type KeyOp struct {
	Tree    string `json:"tree"`
	Verb    string `json:"verb"`
	Key     string `json:"key"`
	Value   []byte `json:"value,omitempty"`
	Flags   uint64 `json:"flags,omitempty"`
	Index   uint64 `json:"index,omitempty"`
	Session string `json:"session,omitempty"`
}

// NodeOp is an operation on a node: get, set, cas, delete or delete-cas, where cas
// goes by the node's ModifyIndex. Without a name, get goes by the ID. set leaves what
// is empty as RegisterNode does; delete takes the node's instances along.
type NodeOp struct {
	Verb string    `json:"verb"`
	Node weft.Node `json:"node"`
}

// InstanceOp is an operation on an instance, as NodeOp. Without checks, set leaves
// those that the instance has.
type InstanceOp struct {
	Verb     string        `json:"verb"`
	Instance weft.Instance `json:"instance"`
}

// CheckOp is an operation on a check, as NodeOp.
type CheckOp struct {
	Verb     string     `json:"verb"`
	Node     string     `json:"node"`               // the own node when empty
	Instance string     `json:"instance,omitempty"` // id; empty is a check of the node. Only set and cas look at it
	Check    weft.Check `json:"check"`
}

// TxnRequest is operations that happen together, in order, or not at all.
type TxnRequest struct {
	Ops []Op `json:"ops"`
}

// TxnResult is what became of a transaction. With Errors nothing was done.
type TxnResult struct {
	Index   uint64     `json:"index"` // of what it changed; else of the view that it saw
	Results []OpResult `json:"results,omitempty"`
	Errors  []OpError  `json:"errors,omitempty"`
}

// OpResult is what an operation found or left, in the order of the operations;
// get-tree has one for each entry, delete verbs and check-not-exists have none.
// Entries have their Value only where an operation asked for it.
type OpResult struct {
	Key     *Entry         `json:"key,omitempty"`
	Node    *weft.Node     `json:"node,omitempty"`
	Service *weft.Instance `json:"service,omitempty"` // of a check: the instance that has it, if any
	Check   *weft.Check    `json:"check,omitempty"`
	CheckOn string         `json:"checkOn,omitempty"` // the node of Check
}

// OpError says why an operation failed, in a text as Consul's clients know it.
type OpError struct {
	Op   int       `json:"op"`
	What string    `json:"what"`
	Kind weft.Kind `json:"kind"` // Conflict and NotFound are answers; Invalid is the caller's fault
}

const (
	// maxOps is the limit of Consul; its documentation says 64, for older versions.
	maxOps = 128
	// maxTxn bounds what a transaction puts, in bytes. Drafts of several callers end
	// at maxBatchBytes, so both together stay below the store's limit.
	maxTxn = 2 << 20
)

// ReadOnly reports whether the transaction changes nothing, and so is answered from
// this server's view.
func (t *TxnRequest) ReadOnly() bool {
	for i := range t.Ops {
		if !t.Ops[i].readOnly() {
			return false
		}
	}
	return true
}

func (o *Op) readOnly() bool {
	switch {
	case o.Key != nil:
		switch o.Key.Verb {
		case "get", "get-or-empty", "get-tree", "check-index", "check-session", "check-not-exists":
			return true
		}
		return false
	case o.Node != nil:
		return o.Node.Verb == "get"
	case o.Service != nil:
		return o.Service.Verb == "get"
	case o.Check != nil:
		return o.Check.Verb == "get"
	}
	return true
}

// Transact does operations on keys, nodes, instances and checks, all or nothing, at
// one index. What operations refuse or do not find is in the result's Errors; an
// error is about the whole: too many operations, too many bytes (Kind TooLarge), no
// server that writes. A set that changes nothing leaves the index as it is.
//
// A delete-tree that is alone and finds more than one transaction can take goes on
// until all is deleted; readers may see some of it.
func (r *Registry) Transact(ctx context.Context, t TxnRequest) (TxnResult, error) {
	t.Ops = slices.Clone(t.Ops)
	for i := range t.Ops {
		t.Ops[i] = t.Ops[i].onNode(r.node)
	}
	if err := checkTxn(&t); err != nil {
		return TxnResult{}, err
	}
	if t.ReadOnly() {
		return r.look(&t), nil
	}
	return r.operations.transact(ctx, t)
}

// onNode fills in the own node.
func (o Op) onNode(node string) Op {
	if o.Service != nil && o.Service.Instance.Node == "" {
		s := *o.Service
		s.Instance.Node = node
		o.Service = &s
	}
	if o.Check != nil && o.Check.Node == "" {
		c := *o.Check
		c.Node = node
		o.Check = &c
	}
	return o
}

func checkTxn(t *TxnRequest) error {
	thing := fmt.Sprintf("%d operations", len(t.Ops))
	if len(t.Ops) > maxOps {
		return weft.Errorf(weft.TooLarge, "transact", thing, "the limit is %d", maxOps)
	}
	size := 0
	for i := range t.Ops {
		o := &t.Ops[i]
		n := 0
		for _, set := range []bool{o.Key != nil, o.Node != nil, o.Service != nil, o.Check != nil} {
			if set {
				n++
			}
		}
		if n != 1 {
			return weft.Errorf(weft.Invalid, "transact", thing, "operation %d is about %d things; each is about one", i, n)
		}
		if o.Key == nil {
			continue
		}
		if err := checkKeyOp(o.Key); err != nil {
			return err
		}
		size += len(o.Key.Key) + len(o.Key.Value)
	}
	if size > maxTxn {
		return weft.Errorf(weft.TooLarge, "transact", thing, "they are %d bytes long; the limit is %d", size, maxTxn)
	}
	return nil
}

func checkKeyOp(o *KeyOp) error {
	thing := "key " + o.Key
	switch {
	case len(o.Value) > maxValue:
		return weft.Errorf(weft.TooLarge, o.Verb, thing, "its value is %d bytes long; the limit is %d", len(o.Value), maxValue)
	case len(o.Key) > maxKey:
		return weft.Errorf(weft.TooLarge, o.Verb, "key", "it is %d bytes long; the limit is %d", len(o.Key), maxKey)
	case o.Key == "" && o.Verb != "get-tree" && o.Verb != "delete-tree":
		return weft.Errorf(weft.Invalid, o.Verb, "key", "Must provide key")
	case o.Tree == "" || len(o.Tree) > maxTree || o.Tree == sessionTree || o.Tree == bySession:
		return weft.Errorf(weft.Invalid, o.Verb, thing, "there is no tree %q for keys", o.Tree)
	}
	return nil
}

// look answers a transaction that changes nothing.
func (r *Registry) look(t *TxnRequest) TxnResult {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	x := execution{d: newDraft(&r.view.state), ownNode: r.node, seen: uint64(r.view.rev)}
	for i := range t.Ops {
		x.do(i, &t.Ops[i])
	}
	return x.result(0)
}

func (r *Registry) transactHere(ctx context.Context, t TxnRequest) (TxnResult, error) {
	for i := range t.Ops {
		if err := r.allowOp(&t.Ops[i]); err != nil {
			return TxnResult{Errors: []OpError{newOpError(i, err)}}, nil
		}
		if s := t.Ops[i].Service; s != nil && (s.Verb == "set" || s.Verb == "cas") {
			own, _, err := prepare(s.Instance, r.node)
			if err != nil {
				return TxnResult{Errors: []OpError{newOpError(i, err)}}, nil
			}
			own.ModifyIndex = s.Instance.ModifyIndex // cas goes by it
			t.Ops[i].Service = &InstanceOp{Verb: s.Verb, Instance: *own}
		}
	}
	for {
		var x execution
		used, err := r.once(ctx, "transact", t.thing(), func(d *draft) error {
			x = execution{d: d, ownNode: r.node, alone: len(t.Ops) == 1}
			err := x.plan(&t)
			switch {
			case x.more:
				d.outcome = part
			case len(x.errors) > 0:
				d.outcome = nothing
			}
			return err
		})
		if err != nil {
			return TxnResult{}, err
		}
		if used != 0 {
			return r.resultAt(ctx, &t, used)
		}
		if !x.more {
			return x.result(uint64(x.d.rev)), nil
		}
	}
}

// thing names the transaction in errors.
func (t *TxnRequest) thing() string {
	if len(t.Ops) == 1 && t.Ops[0].Key != nil {
		return "key " + t.Ops[0].Key.Key
	}
	return fmt.Sprintf("%d operations", len(t.Ops))
}

// execution is a transaction on its way through a draft.
type execution struct {
	d       *draft
	ownNode string
	alone   bool // there is one operation
	more    bool // it has to be done again for the rest

	results []OpResult
	errors  []OpError
	dates   []*uint64 // in results: to be filled in with the index of the transaction
	seen    uint64    // index of the view
}

// plan does the operations in the draft, or leaves it as it was. What is refused is
// no error of the plan: it is answered when that is on disk which it was refused for.
func (x *execution) plan(t *TxnRequest) error {
	x.seen = uint64(x.d.view.rev)
	before := x.d.size
	var m mark
	if !x.alone {
		keysOnly := !slices.ContainsFunc(t.Ops, func(o Op) bool { return o.Key == nil })
		m = x.d.mark(!keysOnly)
	}
	for i := range t.Ops {
		x.do(i, &t.Ops[i])
	}
	if len(x.errors) == 0 && x.d.size-before > maxTxn+maxTxn/2 && !x.alone {
		x.d.back(m)
		return weft.Errorf(weft.TooLarge, "transact", t.thing(), "what they change is %d bytes long; do it in parts", x.d.size-before)
	}
	if len(x.errors) > 0 && !x.alone { // one operation that failed has changed nothing
		x.d.back(m)
	}
	return nil
}

func (x *execution) do(i int, o *Op) {
	var err error
	switch {
	case o.Key != nil:
		err = x.key(o.Key)
	case o.Node != nil:
		err = x.node(o.Node)
	case o.Service != nil:
		err = x.instance(&o.Service.Instance, o.Service.Verb)
	case o.Check != nil:
		err = x.check(o.Check)
	}
	if err != nil {
		x.errors = append(x.errors, newOpError(i, err))
	}
}

// result returns what became of it, when that has index rev; 0 is: nothing changed.
func (x *execution) result(rev uint64) TxnResult {
	if rev == 0 {
		rev = x.seen
	}
	if len(x.errors) > 0 {
		return TxnResult{Index: rev, Errors: x.errors}
	}
	for _, index := range x.dates {
		*index = rev
	}
	return TxnResult{Index: rev, Results: x.results}
}

// newOpError takes the text of an operation's error without the words around it,
// when it has none that matter.
func newOpError(i int, err error) OpError {
	e := OpError{Op: i, What: err.Error(), Kind: weft.KindOf(err)}
	if r, ok := err.(*weft.Error); ok && r.Op == "" {
		e.What = r.Err.Error()
	}
	return e
}

// resultAt tells what became of a transaction that was done at index rev, and whose
// answer was lost. Of what it read nobody knows.
func (r *Registry) resultAt(ctx context.Context, t *TxnRequest, rev int64) (TxnResult, error) {
	result := TxnResult{Index: uint64(rev)}
	for i := range t.Ops {
		o, known, err := r.leftAt(ctx, &t.Ops[i], rev)
		if err != nil || !known {
			return TxnResult{}, &weft.Error{Kind: weft.Unavailable, Op: "transact", Thing: t.thing(),
				Err: errors.Join(fmt.Errorf("it is done, at index %d, but its results are lost", rev), err)}
		}
		if o != (OpResult{}) {
			result.Results = append(result.Results, o)
		}
	}
	return result, nil
}

// leftAt returns what an operation left at a revision; known is false when that does
// not tell what it answered.
func (r *Registry) leftAt(ctx context.Context, o *Op, rev int64) (result OpResult, known bool, err error) {
	switch {
	case o.Key != nil:
		switch o.Key.Verb {
		case "delete", "delete-cas", "delete-tree":
			return result, true, nil
		case "set", "cas", "lock", "unlock":
		default:
			return result, false, nil
		}
		ref := treeRef{o.Key.Tree, o.Key.Key}
		kv, there, err := r.store.GetAt(ctx, treePath(kvDir, ref), rev)
		if err != nil || !there {
			return result, false, err
		}
		l, err := decodeEntry(ref, kv.Value, uint64(kv.ModRev))
		if err != nil {
			return result, false, err
		}
		l.entry.Value = nil
		return OpResult{Key: l.entry}, true, nil
	case o.Service != nil:
		key := weft.InstanceKey{Node: o.Service.Instance.Node, ID: orElse(o.Service.Instance.ID, o.Service.Instance.Service.Name)}
		if o.Service.Verb != "set" && o.Service.Verb != "cas" {
			return result, o.Service.Verb != "get", nil
		}
		kv, there, err := r.store.GetAt(ctx, instanceRecord(key), rev)
		if err != nil || !there {
			return result, false, err
		}
		in := readInstance(key, kv)
		return OpResult{Service: in}, in != nil, nil
	case o.Node != nil && (o.Node.Verb == "delete" || o.Node.Verb == "delete-cas"),
		o.Check != nil && (o.Check.Verb == "delete" || o.Check.Verb == "delete-cas"):
		return result, true, nil
	}
	return result, false, nil
}
