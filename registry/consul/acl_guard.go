package consul

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// guard decides whether a request may reach its endpoint. What an answer may show is
// decided later, by query.visible.
type guard func(a *api, w http.ResponseWriter, q *query) error

// guarded has the guards of reading an endpoint and of everything else.
type guarded struct{ read, write guard }

// guards are by the endpoint's path, as the tables of endpoints have it. What is not
// here takes the right to operate: what is forgotten is closed, not open.
//
//   - open: it tells nothing of anybody.
//   - filtered: it shows a list of what its reader may see.
//   - itself: it asks for rights when it knows what for.
var guards = map[string]guarded{
	"acl/bootstrap":                 {write: open}, // by whom it is done is what it makes
	"acl/login":                     {write: open},
	"acl/logout":                    {write: itself},
	"acl/replication":               {read: open},
	"acl/token":                     {write: itself},
	"acl/token/":                    {itself, itself},
	"acl/token/self":                {read: itself},
	"acl/tokens":                    {read: itself},
	"acl/policy":                    {write: itself},
	"acl/policy/":                   {itself, itself},
	"acl/policy/name/":              {read: itself},
	"acl/policies":                  {read: itself},
	"acl/role":                      {write: itself},
	"acl/role/":                     {itself, itself},
	"acl/role/name/":                {read: itself},
	"acl/roles":                     {read: itself},
	"acl/templated-policies":        {read: itself},
	"acl/templated-policy/name/":    {read: itself},
	"acl/templated-policy/preview/": {write: itself},
	"acl/auth-method":               {write: itself},
	"acl/auth-method/":              {itself, itself},
	"acl/auth-methods":              {read: itself},
	"acl/binding-rule":              {write: itself},
	"acl/binding-rule/":             {itself, itself},
	"acl/binding-rules":             {read: itself},
	"acl/oidc/auth-url":             {write: open},
	"acl/oidc/callback":             {write: open},
	"acl/create":                    {write: open},
	"acl/update":                    {write: open},
	"acl/destroy/":                  {write: open},
	"acl/info/":                     {read: open},
	"acl/clone/":                    {write: open},
	"acl/list":                      {read: open},
	"internal/acl/authorize":        {write: itself}, // about the sender only

	"agent/self":                 {read: needs(agentResource, localNode, readable)},
	"agent/members":              {read: filtered},
	"agent/metrics":              {read: needs(agentResource, localNode, readable)},
	"agent/monitor":              {read: needs(agentResource, localNode, readable)},
	"agent/version":              {read: needs(agentResource, localNode, readable)},
	"agent/host":                 {read: needs(operatorResource, nobody, readable)},
	"agent/maintenance":          {write: needs(nodeResource, localNode, writable)},
	"agent/reload":               {write: needs(agentResource, localNode, writable)},
	"agent/leave":                {write: needs(agentResource, localNode, writable)},
	"agent/join/":                {write: needs(agentResource, localNode, writable)},
	"agent/force-leave/":         {write: needs(operatorResource, nobody, writable)},
	"agent/services":             {read: filtered},
	"agent/checks":               {read: filtered},
	"agent/service/":             {read: needs(serviceResource, ownService, readable)},
	"agent/service/register":     {write: registersService},
	"agent/service/deregister/":  {write: needs(serviceResource, ownService, writable)},
	"agent/service/maintenance/": {write: needs(serviceResource, ownService, writable)},
	"agent/health/service/id/":   {read: needs(serviceResource, ownService, readable)},
	"agent/health/service/name/": {read: needs(serviceResource, argument, readable)},
	"agent/check/register":       {write: registersCheck},
	"agent/check/deregister/":    {write: changesCheck},
	"agent/check/pass/":          {write: changesCheck},
	"agent/check/warn/":          {write: changesCheck},
	"agent/check/fail/":          {write: changesCheck},
	"agent/check/update/":        {write: changesCheck},
	"agent/token/":               {write: needs(agentResource, localNode, writable)},
	"agent/connect/ca/roots":     {read: open}, // public by their nature
	"agent/connect/ca/leaf/":     {read: itself},
	"agent/connect/authorize":    {write: itself},

	"catalog/datacenters":    {read: open},
	"catalog/nodes":          {read: filtered},
	"catalog/services":       {read: filtered},
	"catalog/node/":          {read: filtered},
	"catalog/node-services/": {read: filtered},
	"catalog/service/":       {read: filtered},
	"catalog/connect/":       {read: filtered},
	"catalog/register":       {write: registersNode},
	"catalog/deregister":     {write: deregisters},
	"health/service/":        {read: filtered},
	"health/connect/":        {read: filtered},
	"health/checks/":         {read: filtered},
	"health/node/":           {read: filtered},
	"health/state/":          {read: filtered},

	"config":                   {write: itself},
	"config/":                  {itself, itself},
	"discovery-chain/":         {needs(serviceResource, argument, readable), needs(serviceResource, argument, readable)},
	"connect/ca/roots":         {read: open},
	"connect/ca/configuration": {itself, itself},
	"connect/intentions":       {itself, itself},
	"connect/intentions/exact": {itself, itself},
	"connect/intentions/match": {read: itself},
	"connect/intentions/check": {read: itself},
	"connect/intentions/":      {itself, itself},

	"coordinate/datacenters": {read: open}, // of this server, which is at the middle
	"coordinate/nodes":       {read: filtered},
	"coordinate/node/":       {read: filtered},
	"coordinate/update":      {write: needs(nodeResource, bodyNode, writable)},
	"event/fire/":            {write: needs(eventResource, argument, writable)},
	"event/list":             {read: filtered},
	"kv/":                    {readsKey, writesKey},
	"txn":                    {write: itself},
	"query":                  {filtered, itself},
	"query/":                 {itself, itself},
	"session/create":         {write: needs(sessionResource, bodyNode, writable)},
	"session/destroy/":       {write: needs(sessionResource, sessionNode, writable)},
	"session/renew/":         {write: needs(sessionResource, sessionNode, writable)},
	"session/info/":          {read: filtered},
	"session/node/":          {read: filtered},
	"session/list":           {read: filtered},

	"snapshot":                         {needs(aclResource, nobody, writable), needs(aclResource, nobody, writable)},
	"status/leader":                    {read: open},
	"status/peers":                     {read: open},
	"operator/raft/configuration":      operates,
	"operator/raft/peer":               operates,
	"operator/raft/transfer-leader":    operates,
	"operator/autopilot/health":        operates,
	"operator/autopilot/state":         operates,
	"operator/autopilot/configuration": operates,
	"operator/usage":                   operates,
	"health/ingress/":                  {read: open}, // these six are always empty
	"catalog/gateway-services/":        {read: open},
	"peerings":                         {read: open},
	"exported-services":                {read: open},
	"imported-services":                {read: open},
	"partitions":                       {read: open},
}

var operates = guarded{needs(operatorResource, nobody, readable), needs(operatorResource, nobody, writable)}

func open(*api, http.ResponseWriter, *query) error     { return nil }
func filtered(*api, http.ResponseWriter, *query) error { return nil }
func itself(*api, http.ResponseWriter, *query) error   { return nil }

// anybody are the endpoints that do not look at tokens: whose sender has none yet,
// or only asks whether the server lives. A wrong token does not matter to them.
var anybody = map[string]bool{"acl/bootstrap": true, "acl/login": true, "status/leader": true, "status/peers": true}

// attend does a request with the rights of its sender. A read that waited begins again
// when these have changed meanwhile.
func (a *api) attend(w http.ResponseWriter, q *query, path string, do serve) error {
	for {
		if err := a.admit(w, q, path); err != nil {
			return err
		}
		q.sign()
		if err := do(w, q); err != errRightsChanged { //nolint:errorlint // stillMay returned this very value
			return err
		}
	}
}

// admit finds out who sent a request, and whether they may ask for what they ask.
// path is the endpoint's, as the tables have it.
func (a *api) admit(w http.ResponseWriter, q *query, path string) (err error) {
	if a.acl == nil {
		return nil
	}
	q.filtered = false
	q.sender = q.secret()
	if q.sender == "" {
		q.sender = a.acl.standIn()
	}
	if anybody[path] {
		q.sender = ""
	}
	if q.acl, err = a.resolve(q.request.Context(), q.sender); err != nil || q.acl.management {
		return err
	}
	g := guards[path].write
	if q.request.Method == http.MethodGet || q.request.Method == http.MethodHead {
		g = guards[path].read
	}
	if g == nil {
		return a.authorize(q, operatorResource, "", writable)
	}
	return g(a, w, q)
}

// errRightsChanged ends a read that waited: its request is admitted again, or not.
var errRightsChanged = weft.Errorf(weft.Denied, "read", "", "the rights of the token changed meanwhile")

// stillMay is for what answers after it waited. Who waits with a token that is
// revoked meanwhile must not be told what has happened since.
func (a *api) stillMay(q *query) error {
	if q.acl == nil {
		return nil
	}
	if now, err := a.resolve(q.request.Context(), q.sender); err != nil || now != q.acl {
		return errRightsChanged
	}
	return nil
}

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
	return a.serviceOf(a.own(q.argument)), nil
}

// serviceOf is the name of an instance's service, or its id when it is not there.
func (a *api) serviceOf(key weft.InstanceKey) string {
	if in, _ := a.registry.Instance(key); in != nil {
		return in.Service.Name
	}
	return key.ID
}

// sessionNode is the node of the session that the path names.
func sessionNode(a *api, _ http.ResponseWriter, q *query) (string, error) {
	if s, _ := a.registry.Session(q.argument); s != nil {
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

// peek decodes a body that the endpoint will read again, into what the endpoint will
// decode it into.
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
	var body agentServiceBody
	if err := peek(w, q, &body); err != nil {
		return err
	}
	if err := a.mayRegister(q, a.registry.LocalNode().Name, body.Name, &body.serviceFields); err != nil {
		return err
	}
	if body.Connect == nil || body.Connect.SidecarService == nil {
		return nil
	}
	sidecar := body.Connect.SidecarService
	if sidecar.Name == "" {
		sidecar.Name = body.Name + "-sidecar-proxy"
	}
	id := body.ID
	if id == "" {
		id = body.Name
	}
	sidecar.ID = id + "-sidecar-proxy"
	return a.mayRegister(q, a.registry.LocalNode().Name, sidecar.Name, &sidecar.serviceFields)
}

// mayRegister asks for the service of an instance; for the one that an instance of
// this id has now, which it may become another one's; and for the one that a proxy
// is before, of which it can be found as an instance.
func (a *api) mayRegister(q *query, node, service string, fields *serviceFields) error {
	if err := a.authorize(q, serviceResource, service, writable); err != nil {
		return err
	}
	id := fields.ID
	if id == "" {
		id = service
	}
	if known, _ := a.registry.Instance(weft.InstanceKey{Node: node, ID: id}); known != nil {
		if err := a.authorize(q, serviceResource, known.Service.Name, writable); err != nil {
			return err
		}
	}
	if fields.Kind == connectProxy && fields.Proxy != nil {
		return a.authorize(q, serviceResource, fields.Proxy.DestinationServiceName, writable)
	}
	return nil
}

func registersCheck(a *api, w http.ResponseWriter, q *query) error {
	var body checkBody
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
	return a.authorize(q, serviceResource, a.serviceOf(weft.InstanceKey{Node: node, ID: serviceID}), writable)
}

// changesCheck is for deregister/, pass/, warn/, fail/ and update/.
func changesCheck(a *api, _ http.ResponseWriter, q *query) error {
	return a.mayChangeCheck(q, a.registry.LocalNode().Name, q.argument, writable)
}

// mayChangeCheck asks for all whose check of this id may be meant.
func (a *api) mayChangeCheck(q *query, node, check string, want access) error {
	found := false
	_, instances, _ := a.registry.Node(node)
	for _, in := range instances {
		for i := range in.Checks {
			if in.Checks[i].ID != check {
				continue
			}
			found = true
			if err := a.authorize(q, serviceResource, in.Service.Name, want); err != nil {
				return err
			}
		}
	}
	if found {
		return nil
	}
	return a.authorize(q, nodeResource, node, want)
}

// registersNode is for catalog/register. Who registers a service says again what
// everybody knows of its node; that takes a right to the node only when it changes.
func registersNode(a *api, w http.ResponseWriter, q *query) error {
	var body catalogBody
	if err := peek(w, q, &body); err != nil {
		return err
	}
	known := a.registry.NodeNamed(body.Node)
	if known == nil || !body.SkipNodeUpdate && alters(known, body.node(known)) {
		if err := a.authorize(q, nodeResource, body.Node, writable); err != nil {
			return err
		}
	}
	if s := body.Service; s != nil {
		if err := a.mayRegister(q, body.Node, s.Service, &s.serviceFields); err != nil {
			return err
		}
	}
	for _, c := range append([]*checkBody{body.Check}, body.Checks...) {
		switch {
		case c == nil:
		case body.Service != nil && (c.ServiceID == body.Service.ID || c.ServiceID == body.Service.Service):
			// of the service that was asked for already
		default:
			if err := a.mayWriteCheck(q, body.Node, c.ServiceID); err != nil {
				return err
			}
		}
	}
	return nil
}

// alters says whether a registration makes anything else of a node.
func alters(known *weft.Node, n weft.Node) bool {
	return n.ID != "" && n.ID != known.ID || n.Address != known.Address || n.Zone != known.Zone ||
		!maps.Equal(n.Labels, known.Labels) || !maps.Equal(n.TaggedAddresses, known.TaggedAddresses)
}

// deregisters is for catalog/deregister. Who may write a node may clear it.
func deregisters(a *api, w http.ResponseWriter, q *query) error {
	var body struct{ Node, ServiceID, CheckID string }
	if err := peek(w, q, &body); err != nil {
		return err
	}
	switch {
	case q.may(nodeResource, body.Node, writable):
		return nil
	case body.ServiceID != "":
		return a.mayWriteCheck(q, body.Node, body.ServiceID)
	case body.CheckID != "":
		return a.mayChangeCheck(q, body.Node, body.CheckID, writable)
	}
	return a.authorize(q, nodeResource, body.Node, writable)
}

func readsKey(a *api, _ http.ResponseWriter, q *query) error {
	keys, err := q.flag("keys")
	if err != nil {
		return err
	}
	recurse, err := q.flag("recurse")
	if err != nil || keys || recurse {
		return err // a list shows only what may be read
	}
	return a.authorize(q, keyResource, q.argument, readable)
}

func writesKey(a *api, _ http.ResponseWriter, q *query) error {
	recurse, err := q.flag("recurse")
	switch {
	case err != nil:
		return err
	case recurse && q.request.Method == http.MethodDelete:
		return a.allBelow(q, q.argument, writable)
	}
	return a.authorize(q, keyResource, q.argument, writable)
}

// allBelow asks for all keys that begin with a prefix.
func (a *api) allBelow(q *query, prefix string, want access) error {
	if q.acl == nil || q.acl.allowsBelow(keyResource, prefix, want) {
		return nil
	}
	return q.lacks(keyResource, prefix, want)
}

// refusedOps are the operations of a transaction that its sender has no right to.
func (a *api) refusedOps(q *query, ops []txnOp) (refused []txnError) {
	if q.acl == nil || q.acl.management {
		return nil
	}
	for i := range ops {
		if err := a.mayTransact(q, &ops[i]); err != nil {
			refused = append(refused, txnError{OpIndex: i, What: err.Error()})
		}
	}
	return refused
}

func (a *api) mayTransact(q *query, op *txnOp) error {
	switch {
	case op.KV != nil:
		return a.mayTransactKey(q, op.KV.Verb, op.KV.Key)
	case op.Node != nil:
		return a.authorize(q, nodeResource, op.Node.Node.Node, accessOf(op.Node.Verb))
	case op.Service != nil:
		s := &op.Service.Service
		if accessOf(op.Service.Verb) == writable && s.Service != "" {
			return a.mayRegister(q, op.Service.Node, s.Service, &s.serviceFields)
		}
		return a.authorize(q, serviceResource, a.serviceOf(weft.InstanceKey{Node: op.Service.Node, ID: s.ID}), accessOf(op.Service.Verb))
	case op.Check != nil:
		c := &op.Check.Check
		if c.ServiceID != "" {
			return a.authorize(q, serviceResource, a.serviceOf(weft.InstanceKey{Node: c.Node, ID: c.ServiceID}), accessOf(op.Check.Verb))
		}
		return a.mayChangeCheck(q, c.Node, c.id(), accessOf(op.Check.Verb))
	}
	return nil // the endpoint says what is wrong with it
}

func (a *api) mayTransactKey(q *query, verb, key string) error {
	switch verb {
	case "delete-tree":
		return a.allBelow(q, key, writable)
	case "get-tree":
		return a.allBelow(q, key, readable)
	case "check-index", "check-session", "check-not-exists":
		return a.authorize(q, keyResource, key, readable)
	}
	return a.authorize(q, keyResource, key, accessOf(verb))
}

func accessOf(verb string) access {
	if verb == "get" || verb == "get-or-empty" {
		return readable
	}
	return writable
}

// readableKeys are the entries below a prefix that the sender may read.
func (a *api) readableKeys(q *query, prefix string) ([]*registry.Entry, uint64) {
	entries, index := a.registry.Keys(q.tree(), prefix)
	if q.acl == nil || q.acl.management {
		return entries, index
	}
	out := make([]*registry.Entry, 0, len(entries)) // entries is the registry's
	for _, e := range entries {
		if q.acl.allows(keyResource, e.Key, readable) {
			out = append(out, e)
		}
	}
	q.filtered = q.filtered || len(out) < len(entries)
	return out, index
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
	case []sessionRecord:
		return only(q, list, func(r *sessionRecord) bool { return q.acl.allows(sessionResource, r.Node, readable) })
	case []eventRecord:
		return only(q, list, func(r *eventRecord) bool { return q.acl.allows(eventResource, r.Name, readable) })
	case []coordinateRecord:
		return only(q, list, func(r *coordinateRecord) bool { return q.seesNode(r.Node) })
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
