package consul

import (
	"fmt"
	"net/http"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// maxTxnOps is the limit of operations in a transaction.
const maxTxnOps = 128

func (a *api) txnEndpoints() endpoints { return endpoints{"txn": {put: a.txn}} }

// txnOp is one operation: one field is set.
type txnOp struct {
	KV *struct {
		Verb      string
		Key       string
		Value     []byte // base64
		Flags     uint64
		Index     uint64
		Session   string
		Namespace string
	}
	Node *struct {
		Verb string
		Node struct {
			ID, Node, Address string
			TaggedAddresses   map[string]string
			Meta              map[string]string
			Locality          *localityRecord
			ModifyIndex       uint64
		}
	}
	Service *struct {
		Verb    string
		Node    string
		Service struct {
			Service     string
			ModifyIndex uint64
			serviceFields
		}
	}
	Check *struct {
		Verb  string
		Check struct {
			Node        string
			ModifyIndex uint64
			checkBody
		}
	}
}

type txnResult struct {
	KV      *pairRecord    `json:",omitempty"`
	Node    *nodeRecord    `json:",omitempty"`
	Service *serviceRecord `json:",omitempty"`
	Check   *checkRecord   `json:",omitempty"`
}

type txnError struct {
	OpIndex int
	What    string
}

type txnAnswer struct {
	Results []txnResult
	Errors  []txnError
}

// PUT /v1/txn
func (a *api) txn(w http.ResponseWriter, q *query) error {
	var body []txnOp
	if err := decode(w, q, &body); err != nil {
		return err
	}
	if len(body) > maxTxnOps {
		return &plainError{http.StatusRequestEntityTooLarge, tooManyOps(len(body))}
	}
	ops := make([]registry.Op, len(body))
	for i := range body {
		var err error
		if ops[i], err = a.txnOp(q, &body[i]); err != nil {
			return err
		}
	}
	refused := keyless(body)
	if len(refused) == 0 {
		refused = a.refusedOps(q, body)
	}
	if len(refused) > 0 {
		return a.answerTxn(w, q, txnAnswer{Errors: refused}, 1)
	}
	result, err := a.registry.Transact(q.request.Context(), registry.TxnRequest{Ops: ops})
	if err != nil {
		return err
	}
	var answer txnAnswer
	for i := range result.Results {
		answer.Results = append(answer.Results, a.txnResult(q, &result.Results[i]))
	}
	for _, e := range result.Errors {
		answer.Errors = append(answer.Errors, txnError{OpIndex: e.Op, What: e.What})
	}
	return a.answerTxn(w, q, answer, result.Index)
}

// keyless are the operations that name no key: Consul's clients look for their place,
// as they do when something is not as it was.
func keyless(body []txnOp) (out []txnError) {
	for i := range body {
		if kv := body[i].KV; kv != nil && kv.Key == "" && kv.Verb != "get-tree" && kv.Verb != "delete-tree" {
			out = append(out, txnError{i, "Must provide key"})
		}
	}
	return out
}

func (a *api) answerTxn(w http.ResponseWriter, q *query, answer txnAnswer, index uint64) error {
	b, err := q.marshal(answer)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if len(answer.Errors) > 0 {
		status = http.StatusConflict
	}
	q.setHeaders(w, index)
	writeJSON(w, status, b)
	return nil
}

func (a *api) txnOp(q *query, o *txnOp) (registry.Op, error) {
	switch {
	case o.KV != nil:
		tree := q.tree()
		if o.KV.Namespace != "" {
			tree = treeOf(o.KV.Namespace)
		}
		return registry.Op{Key: &registry.KeyOp{
			Tree: tree, Verb: o.KV.Verb, Key: o.KV.Key, Value: o.KV.Value, Flags: o.KV.Flags, Index: o.KV.Index, Session: o.KV.Session,
		}}, nil
	case o.Node != nil:
		n := &o.Node.Node
		known := a.registry.NodeNamed(n.Node)
		body := catalogBody{ID: n.ID, Node: n.Node, Address: n.Address, TaggedAddresses: n.TaggedAddresses, NodeMeta: n.Meta, Locality: n.Locality}
		node := body.node(known)
		node.Address, node.ModifyIndex = n.Address, n.ModifyIndex
		return registry.Op{Node: &registry.NodeOp{Verb: o.Node.Verb, Node: node}}, nil
	case o.Service != nil:
		return a.txnService(q, o)
	case o.Check != nil:
		return a.txnCheck(o)
	}
	return registry.Op{}, weft.Errorf(weft.Invalid, "read transaction", "", "an operation is about no KV, Node, Service or Check")
}

func (a *api) txnService(q *query, o *txnOp) (registry.Op, error) {
	s := &o.Service.Service
	name := q.service(s.Service)
	if s.Namespace != "" {
		name.Namespace = s.Namespace
	}
	in, err := s.instance(name, "catalog")
	if err != nil {
		return registry.Op{}, err
	}
	in.Node, in.ModifyIndex = o.Service.Node, s.ModifyIndex
	return registry.Op{Service: &registry.InstanceOp{Verb: o.Service.Verb, Instance: in}}, nil
}

func (a *api) txnCheck(o *txnOp) (registry.Op, error) {
	b := &o.Check.Check
	on := a.registry.NodeNamed(b.Node)
	c, err := b.catalogCheck(on != nil && isExternal(on.Labels))
	if err != nil {
		return registry.Op{}, err
	}
	c.ModifyIndex = b.ModifyIndex
	return registry.Op{Check: &registry.CheckOp{Verb: o.Check.Verb, Node: b.Node, Instance: b.ServiceID, Check: c}}, nil
}

func (a *api) txnResult(q *query, r *registry.OpResult) (out txnResult) {
	switch {
	case r.Key != nil:
		p := q.pair(r.Key)
		out.KV = &p
	case r.Node != nil:
		n := a.nodeRecord(r.Node)
		out.Node = &n
	case r.Check != nil:
		c := newCheckRecord(r.CheckOn, r.Service, r.Check)
		if r.Service == nil {
			c.ServiceTags = nil // here, and only here, Consul's clients compare it with that
		}
		out.Check = &c
	case r.Service != nil:
		s := newServiceRecord(r.Service)
		out.Service = &s
	}
	return out
}

func tooManyOps(n int) string {
	return fmt.Sprintf("Transaction contains too many operations (%d > %d)", n, maxTxnOps)
}
