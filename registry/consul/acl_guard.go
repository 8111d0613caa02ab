package consul

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"github.com/weftmesh/weft"
)

// guard decides whether a request may reach its endpoint. What an answer may show is
// decided later, by query.visible.
type guard func(a *api, w http.ResponseWriter, q *query) error

// guarded is a path, or the begin of one when it ends with "/", with the guards of
// reading it and of everything else. A path that is not in the table takes the
// right to operate: what is forgotten here is closed, not open.
type guarded struct {
	path        string
	read, write guard
}

// guards is looked through for the longest path that fits. Endpoints with "open"
// decide by themselves (acl/, config, query, intentions), show a filtered list, or
// tell nothing of anybody.
var guards = []guarded{
	{"acl/", open, open},
	{"agent/self", needs(agentResource, localNode, readable), nil},
	{"agent/members", open, nil},
	{"agent/metrics", needs(agentResource, localNode, readable), nil},
	{"agent/monitor", needs(agentResource, localNode, readable), nil},
	{"agent/version", needs(agentResource, localNode, readable), nil},
	{"agent/maintenance", nil, needs(nodeResource, localNode, writable)},
	{"agent/reload", nil, needs(agentResource, localNode, writable)},
	{"agent/leave", nil, needs(agentResource, localNode, writable)},
	{"agent/join/", nil, needs(agentResource, localNode, writable)},
	{"agent/token/", nil, needs(agentResource, localNode, writable)},
	{"agent/services", open, nil},
	{"agent/checks", open, nil},
	{"agent/service/", needs(serviceResource, ownService, readable), nil},
	{"agent/service/register", nil, registersService},
	{"agent/service/deregister/", nil, needs(serviceResource, ownService, writable)},
	{"agent/service/maintenance/", nil, needs(serviceResource, ownService, writable)},
	{"agent/health/service/id/", needs(serviceResource, ownService, readable), nil},
	{"agent/health/service/name/", needs(serviceResource, argument, readable), nil},
	{"agent/check/register", nil, registersCheck},
	{"agent/check/", nil, changesCheck},
	{"agent/connect/", open, open},
	{"catalog/", open, nil},
	{"catalog/register", nil, registersNode},
	{"catalog/deregister", nil, deregisters},
	{"config", open, open},
	{"connect/", open, open},
	{"coordinate/", open, nil},
	{"coordinate/update", nil, needs(nodeResource, bodyNode, writable)},
	{"discovery-chain/", needs(serviceResource, argument, readable), needs(serviceResource, argument, readable)},
	{"event/fire/", nil, needs(eventResource, argument, writable)},
	{"event/list", open, nil},
	{"health/", open, nil},
	{"kv/", readsKey, writesKey},
	{"query", open, open},
	{"session/", open, needs(sessionResource, sessionNode, writable)},
	{"session/create", nil, needs(sessionResource, bodyNode, writable)},
	{"snapshot", needs(aclResource, nobody, writable), needs(aclResource, nobody, writable)},
	{"status/", open, nil},
	{"txn", nil, transacts},
	{"operator/keyring", needs(keyringResource, nobody, readable), needs(keyringResource, nobody, writable)},
	{"operator/", needs(operatorResource, nobody, readable), needs(operatorResource, nobody, writable)},
	{"internal/", needs(operatorResource, nobody, readable), nil},
}

// admit finds out who sent a request, and whether they may ask for what they ask.
func (a *api) admit(w http.ResponseWriter, q *query, path string) error {
	var err error
	if q.acl, err = a.identify(q.request); err != nil || q.acl == nil {
		return err
	}
	if q.acl.management {
		return nil
	}
	g := guardOf(path, q.request.Method)
	if g == nil {
		return a.authorize(q, operatorResource, "", writable)
	}
	return g(a, w, q)
}

// guardOf returns nil for what is not in the table.
func guardOf(path, method string) guard {
	var best *guarded
	for i := range guards {
		g := &guards[i]
		fits := path == g.path || strings.HasSuffix(g.path, "/") && strings.HasPrefix(path, g.path) ||
			strings.HasPrefix(path, g.path+"/") && (g.path == "config" || g.path == "query")
		if fits && (best == nil || len(g.path) > len(best.path)) {
			best = g
		}
	}
	switch {
	case best == nil:
		return nil
	case method == http.MethodGet || method == http.MethodHead:
		return best.read
	}
	return best.write
}

func open(*api, http.ResponseWriter, *query) error { return nil }

// needs is the guard that asks for access to the one thing that a request names.
func needs(resource string, name func(a *api, w http.ResponseWriter, q *query) (string, error), want access) guard {
	return func(a *api, w http.ResponseWriter, q *query) error {
		thing, err := name(a, w, q)
		if err != nil {
			return err
		}
		return a.authorize(q, resource, thing, want)
	}
}

func nobody(*api, http.ResponseWriter, *query) (string, error) { return "", nil }

func localNode(a *api, _ http.ResponseWriter, _ *query) (string, error) {
	return a.registry.LocalNode().Name, nil
}

func argument(_ *api, _ http.ResponseWriter, q *query) (string, error) { return q.argument, nil }

// ownService is the name of the service of the instance that the path names; the id
// itself for one that is not there, so that a guess tells nothing.
func ownService(a *api, _ http.ResponseWriter, q *query) (string, error) {
	if in, _ := a.registry.Instance(a.own(q.argument)); in != nil {
		return in.Service.Name, nil
	}
	return q.argument, nil
}

// sessionNode is the node of the session that the path names.
func sessionNode(a *api, _ http.ResponseWriter, q *query) (string, error) {
	_, id, _ := strings.Cut(q.argument, "/")
	if id == "" {
		id = q.argument
	}
	if s, _ := a.registry.Session(id); s != nil {
		return s.Node, nil
	}
	return a.registry.LocalNode().Name, nil
}

func bodyNode(a *api, w http.ResponseWriter, q *query) (string, error) {
	var body struct{ Node string }
	if err := peek(w, q, &body); err != nil {
		return "", err
	}
	if body.Node == "" {
		return a.registry.LocalNode().Name, nil
	}
	return body.Node, nil
}

// peek decodes a body that the endpoint will read again. What cannot be decoded is
// left to the endpoint, which has the better words for it.
func peek(w http.ResponseWriter, q *query, v any) error {
	r := q.request
	b, err := readBody(w, q, maxBody)
	if err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(b))
	if len(b) == 0 {
		return nil
	}
	return unmarshal(bytes.Clone(b), v)
}

func registersService(a *api, w http.ResponseWriter, q *query) error {
	var body struct{ ID, Name string }
	if err := peek(w, q, &body); err != nil {
		return err
	}
	if body.ID == "" {
		body.ID = body.Name
	}
	if known, _ := a.registry.Instance(a.own(body.ID)); known != nil { // it may become another service's
		if err := a.authorize(q, serviceResource, known.Service.Name, writable); err != nil {
			return err
		}
	}
	return a.authorize(q, serviceResource, body.Name, writable)
}

func registersCheck(a *api, w http.ResponseWriter, q *query) error {
	var body struct{ ServiceID string }
	if err := peek(w, q, &body); err != nil {
		return err
	}
	return a.mayWriteCheck(q, a.registry.LocalNode().Name, body.ServiceID)
}

// mayWriteCheck asks for the service of a check, or for the node of one that has
// none.
func (a *api) mayWriteCheck(q *query, node, serviceID string) error {
	if serviceID == "" {
		return a.authorize(q, nodeResource, node, writable)
	}
	name := serviceID
	if in, _ := a.registry.Instance(weft.InstanceKey{Node: node, ID: serviceID}); in != nil {
		name = in.Service.Name
	}
	return a.authorize(q, serviceResource, name, writable)
}

// changesCheck is for deregister/, pass/, warn/, fail/ and update/.
func changesCheck(a *api, _ http.ResponseWriter, q *query) error {
	node, instances, _ := a.registry.Node(a.registry.LocalNode().Name)
	for _, in := range instances {
		for i := range in.Checks {
			if in.Checks[i].ID == q.argument {
				return a.authorize(q, serviceResource, in.Service.Name, writable)
			}
		}
	}
	return a.authorize(q, nodeResource, node.Name, writable)
}

// registersNode is for catalog/register. A service or a check alone leaves the node
// as it is, but must be allowed on it.
func registersNode(a *api, w http.ResponseWriter, q *query) error {
	type checkOf struct{ ServiceID string }
	var body struct {
		Node    string
		Service *struct{ Service string }
		Check   *checkOf
		Checks  []*checkOf
	}
	if err := peek(w, q, &body); err != nil {
		return err
	}
	if err := a.authorize(q, nodeResource, body.Node, writable); err != nil {
		return err
	}
	if body.Service != nil {
		if err := a.authorize(q, serviceResource, body.Service.Service, writable); err != nil {
			return err
		}
	}
	for _, c := range append(body.Checks, body.Check) {
		if c == nil || c.ServiceID == "" || body.Service != nil {
			continue
		}
		if err := a.mayWriteCheck(q, body.Node, c.ServiceID); err != nil {
			return err
		}
	}
	return nil
}

func deregisters(a *api, w http.ResponseWriter, q *query) error {
	var body struct{ Node, ServiceID, CheckID string }
	if err := peek(w, q, &body); err != nil {
		return err
	}
	id := body.ServiceID
	if id == "" && body.CheckID != "" {
		id = a.instanceOfCheck(body.Node, body.CheckID)
	}
	return a.mayWriteCheck(q, body.Node, id)
}

// instanceOfCheck is the id of the instance that a check is of, "" for a node's own.
func (a *api) instanceOfCheck(node, check string) string {
	_, instances, _ := a.registry.Node(node)
	for _, in := range instances {
		for i := range in.Checks {
			if in.Checks[i].ID == check {
				return in.ID
			}
		}
	}
	return ""
}

func readsKey(a *api, _ http.ResponseWriter, q *query) error {
	if q.params.Has("recurse") || q.params.Has("keys") {
		return nil // a list, which shows only what may be read
	}
	return a.authorize(q, keyResource, q.argument, readable)
}

func writesKey(a *api, _ http.ResponseWriter, q *query) error {
	if q.request.Method == http.MethodDelete && q.params.Has("recurse") {
		return a.mayWriteBelow(q, q.argument)
	}
	return a.authorize(q, keyResource, q.argument, writable)
}

func (a *api) mayWriteBelow(q *query, prefix string) error {
	if q.acl == nil || q.acl.allowsBelow(keyResource, prefix, writable) {
		return nil
	}
	return q.lacks(keyResource, prefix, writable)
}

// transactionOp is what the guard of a transaction looks at.
type transactionOp struct {
	KV      *struct{ Verb, Key string }
	Node    *struct{ Node struct{ Node string } }
	Service *struct {
		Verb, Node string
		Service    struct{ ID, Service string }
	}
	Check *struct {
		Verb  string
		Check struct{ Node, ServiceID, CheckID string }
	}
}

func transacts(a *api, w http.ResponseWriter, q *query) error {
	var raw json.RawMessage
	if err := peek(w, q, &raw); err != nil {
		return err
	}
	var ops []transactionOp
	if err := json.Unmarshal(raw, &ops); err != nil {
		return nil // the endpoint says what is wrong with it
	}
	for i := range ops {
		if err := a.mayTransact(q, &ops[i]); err != nil {
			return err
		}
	}
	return nil
}

func (a *api) mayTransact(q *query, op *transactionOp) error {
	switch {
	case op.KV != nil && op.KV.Verb == "delete-tree":
		return a.mayWriteBelow(q, op.KV.Key)
	case op.KV != nil && strings.HasPrefix(op.KV.Verb, "get"), op.KV != nil && strings.HasPrefix(op.KV.Verb, "check"):
		if op.KV.Verb == "get-tree" && q.acl != nil && !q.acl.allowsBelow(keyResource, op.KV.Key, readable) {
			return q.lacks(keyResource, op.KV.Key, readable)
		}
		return a.authorize(q, keyResource, op.KV.Key, readable)
	case op.KV != nil:
		return a.authorize(q, keyResource, op.KV.Key, writable)
	case op.Node != nil:
		return a.authorize(q, nodeResource, op.Node.Node.Node, writable)
	case op.Service != nil:
		if op.Service.Service.Service != "" {
			if err := a.authorize(q, serviceResource, op.Service.Service.Service, writable); err != nil {
				return err
			}
		}
		return a.mayWriteCheck(q, op.Service.Node, op.Service.Service.ID)
	case op.Check != nil:
		id := op.Check.Check.ServiceID
		if id == "" {
			id = a.instanceOfCheck(op.Check.Check.Node, op.Check.Check.CheckID)
		}
		return a.mayWriteCheck(q, op.Check.Check.Node, id)
	}
	return nil
}

// defaultPolicy is what the answer says holds where no rule does.
func (q *query) defaultPolicy() string {
	if q.acl != nil && q.acl.byDefault == denied {
		return "deny"
	}
	return "allow"
}

// visible leaves out of an answer what its reader may not see. Answers of other
// types show nothing that a guard has not asked for.
func (q *query) visible(body any) any {
	if q.acl == nil || q.acl.management {
		return body
	}
	switch list := body.(type) {
	case []entryRecord:
		return only(q, list, func(e *entryRecord) bool { return q.seesService(e.Service.Service) && q.seesNode(e.Node.Node) })
	case []catalogRecord:
		return only(q, list, func(r *catalogRecord) bool { return q.seesService(r.ServiceName) && q.seesNode(r.Node) })
	case []checkRecord:
		return only(q, list, q.seesCheck)
	case map[string]checkRecord:
		return onlyOf(q, list, func(_ string, r checkRecord) bool { return q.seesCheck(&r) })
	case []nodeRecord:
		return only(q, list, func(r *nodeRecord) bool { return q.seesNode(r.Node) })
	case map[string]serviceRecord:
		return onlyOf(q, list, func(_ string, r serviceRecord) bool { return q.seesService(r.Service) })
	case map[string][]string: // of services, their tags
		return onlyOf(q, list, func(name string, _ []string) bool { return q.seesService(name) })
	case []memberRecord:
		return only(q, list, func(r *memberRecord) bool { return q.seesNode(strings.TrimSuffix(r.Name, "."+r.Tags["dc"])) })
	case nodeServices:
		if !q.seesNode(list.Node.Node) {
			q.filtered = true
			return nil
		}
		list.Services = onlyOf(q, list.Services, func(_ string, r serviceRecord) bool { return q.seesService(r.Service) })
		return list
	case nodeServiceList:
		if !q.seesNode(list.Node.Node) {
			q.filtered = true
			return nil
		}
		list.Services = only(q, list.Services, func(r *serviceRecord) bool { return q.seesService(r.Service) })
		return list
	}
	return body
}

func (q *query) seesService(name string) bool { return q.acl.allows(serviceResource, name, readable) }
func (q *query) seesNode(name string) bool    { return q.acl.allows(nodeResource, name, readable) }

func (q *query) seesCheck(r *checkRecord) bool {
	if r.ServiceName != "" {
		return q.seesService(r.ServiceName) && q.seesNode(r.Node)
	}
	return q.seesNode(r.Node)
}

// only keeps what is seen. The list is the answer's own.
func only[T any](q *query, list []T, seen func(*T) bool) []T {
	out := list[:0]
	for i := range list {
		if seen(&list[i]) {
			out = append(out, list[i])
		}
	}
	q.filtered = q.filtered || len(out) < len(list)
	return out
}

func onlyOf[T any](q *query, all map[string]T, seen func(string, T) bool) map[string]T {
	for name, v := range all {
		if !seen(name, v) {
			delete(all, name)
			q.filtered = true
		}
	}
	return all
}
