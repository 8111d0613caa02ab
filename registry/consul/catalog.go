package consul

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

func (a *api) catalogEndpoints() endpoints {
	return endpoints{
		"catalog/datacenters":    {get: a.catalogDatacenters},
		"catalog/nodes":          {get: a.catalogNodes},
		"catalog/services":       {get: a.catalogServices},
		"catalog/register":       {put: a.catalogRegister},
		"catalog/deregister":     {put: a.catalogDeregister},
		"catalog/node/":          {get: a.catalogNode},
		"catalog/node-services/": {get: a.catalogNodeServices},
		"catalog/service/":       {get: a.catalogService},
		"catalog/connect/":       {get: a.catalogConnect},
	}
}

// nodeCache remembers, for one answer, the nodes that its instances are on. A
// reader takes the index first and the nodes later: what changes in between is
// delivered again, and never missed.
type nodeCache struct {
	registry *registry.Registry
	seen     map[string]*weft.Node
}

func (a *api) newNodeCache() *nodeCache {
	return &nodeCache{registry: a.registry, seen: make(map[string]*weft.Node)}
}

// get returns nil when the node has gone.
func (c *nodeCache) get(name string) *weft.Node {
	n, ok := c.seen[name]
	if !ok {
		n = c.registry.NodeNamed(name)
		c.seen[name] = n
	}
	return n
}

// GET /v1/catalog/datacenters
func (a *api) catalogDatacenters(w http.ResponseWriter, q *query) error {
	return a.fixed(w, q, []string{a.registry.Datacenter()})
}

// GET /v1/catalog/nodes
func (a *api) catalogNodes(w http.ResponseWriter, q *query) error {
	fits, err := keep[nodeRecord](q)
	if err != nil {
		return err
	}
	return a.answer(w, q, view{topic: registry.NodesTopic(), part: true, build: func() (any, uint64) {
		nodes, index := a.registry.Nodes()
		out := make([]nodeRecord, 0, len(nodes))
		for _, n := range nodes {
			if r := a.nodeRecord(n); q.onNode(n) && fits(&r) {
				out = append(out, r)
			}
		}
		near(a, q, out, func(r *nodeRecord) string { return r.Node })
		return out, index
	}})
}

// GET /v1/catalog/services
//
// The plain form has an exact topic. A filter or node metadata look at instances,
// and any of these may change the answer.
func (a *api) catalogServices(w http.ResponseWriter, q *query) error {
	if q.nodeMeta == nil && q.params.Get("filter") == "" {
		return a.catalogServiceNames(w, q)
	}
	fits, err := keep[catalogRecord](q)
	if err != nil {
		return err
	}
	v := a.ofAllInstances()
	v.build = func() (any, uint64) {
		_, index := v.now()
		out := make(map[string][]string)
		a.eachService(q.namespace, func(name weft.ServiceName, instances []*weft.Instance) {
			if tags := a.tagsOf(q, instances, fits); tags != nil {
				out[name.Name] = tags
			}
		})
		return out, index
	}
	v.assemble = func(was pieces) ([]byte, pieces, error) {
		return a.assemble(q.namespace, "{}", nil, was, func(name weft.ServiceName, instances []*weft.Instance) ([]byte, error) {
			tags := a.tagsOf(q, instances, fits)
			if tags == nil {
				return nil, nil
			}
			b, err := json.Marshal(map[string][]string{name.Name: tags})
			if err != nil {
				return nil, err
			}
			return b[1 : len(b)-1], nil
		})
	}
	return a.answerKept(w, q, catalogServicesKept, q.service(""), v)
}

func (a *api) catalogServiceNames(w http.ResponseWriter, q *query) error {
	return a.answerKept(w, q, catalogServicesKept, q.service(""), lasting{
		view: view{topic: registry.ServicesTopic(), part: true, build: func() (any, uint64) {
			services, index := a.registry.Services(q.namespace)
			return services, index
		}},
		now: func() (uint64, uint64) {
			index := a.registry.Wait(context.Background(), registry.ServicesTopic(), 0)
			return index, index
		},
	})
}

// tagsOf returns the union of the tags of the instances that fit; nil when none does.
func (a *api) tagsOf(q *query, instances []*weft.Instance, fits func(*catalogRecord) bool) (tags []string) {
	nodes := a.newNodeCache()
	for _, in := range instances {
		n := nodes.get(in.Node)
		if n == nil || !q.onNode(n) {
			continue
		}
		if r := a.catalogRecord(n, in); fits(&r) {
			tags = append(orNone(tags), in.Tags...)
		}
	}
	slices.Sort(tags)
	return slices.Compact(tags)
}

// GET /v1/catalog/service/{name}
func (a *api) catalogService(w http.ResponseWriter, q *query) error {
	service, err := q.needService()
	if err != nil {
		return err
	}
	return a.answerCatalog(w, q, catalogServiceKept, service, a.instancesOf(service))
}

// GET /v1/catalog/connect/{name}
func (a *api) catalogConnect(w http.ResponseWriter, q *query) error {
	service, err := q.needService()
	if err != nil {
		return err
	}
	return a.answerCatalog(w, q, catalogConnectKept, service, a.connectable(service))
}

func (a *api) answerCatalog(w http.ResponseWriter, q *query, of keptKind, service weft.ServiceName, from selection) error {
	fits, err := keep[catalogRecord](q)
	if err != nil {
		return err
	}
	return a.answerKept(w, q, of, service, from.view(func(instances []*weft.Instance) any {
		nodes := a.newNodeCache()
		out := make([]catalogRecord, 0, len(instances))
		for _, in := range instances {
			n := nodes.get(in.Node)
			if n == nil || !q.tagged(in.Tags) || !q.onNode(n) {
				continue
			}
			if r := a.catalogRecord(n, in); fits(&r) {
				out = append(out, r)
			}
		}
		near(a, q, out, func(r *catalogRecord) string { return r.Node })
		return out
	}))
}

// GET /v1/catalog/node/{name}. A node that is not there is null, which clients
// read as "none".
func (a *api) catalogNode(w http.ResponseWriter, q *query) error {
	return a.servicesOfNode(w, q, func(n nodeRecord, services []serviceRecord) any {
		byID := make(map[string]serviceRecord, len(services))
		for _, s := range services {
			byID[s.ID] = s
		}
		return nodeServices{Node: n, Services: byID}
	})
}

// GET /v1/catalog/node-services/{name}
func (a *api) catalogNodeServices(w http.ResponseWriter, q *query) error {
	return a.servicesOfNode(w, q, func(n nodeRecord, services []serviceRecord) any {
		return nodeServiceList{Node: n, Services: services}
	})
}

func (a *api) servicesOfNode(w http.ResponseWriter, q *query, shape func(nodeRecord, []serviceRecord) any) error {
	name, err := q.need("node name")
	if err != nil {
		return err
	}
	fits, err := keep[serviceRecord](q)
	if err != nil {
		return err
	}
	return a.answer(w, q, view{topic: registry.NodeTopic(name), part: true, build: func() (any, uint64) {
		n, instances, index := a.registry.Node(name)
		if n == nil {
			return nil, index
		}
		services := make([]serviceRecord, 0, len(instances))
		for _, in := range instances {
			if r := newServiceRecord(in); in.Service.Namespace == q.namespace && fits(&r) {
				services = append(services, r)
			}
		}
		return shape(a.nodeRecord(n), services), index
	}})
}

// catalogBody is the body of catalog/register.
type catalogBody struct {
	ID              string
	Node            string
	Address         string
	TaggedAddresses map[string]string
	NodeMeta        map[string]string
	Locality        *localityRecord
	Datacenter      string
	SkipNodeUpdate  bool
	Service         *struct {
		Service string
		serviceFields
	}
	Check  *checkBody
	Checks []*checkBody
}

// PUT /v1/catalog/register
//
// Node, service and checks are written together, at one index.
func (a *api) catalogRegister(w http.ResponseWriter, q *query) error {
	var body catalogBody
	if err := decode(w, q, &body); err != nil {
		return err
	}
	if body.Node == "" || body.Address == "" && !body.SkipNodeUpdate {
		return weft.Errorf(weft.Invalid, "register", body.Node, "Node and Address must be given")
	}
	if body.Datacenter != "" && body.Datacenter != a.registry.Datacenter() {
		return noPath(body.Datacenter)
	}
	var in *weft.Instance
	var err error
	if body.Service != nil {
		if in, err = a.catalogInstance(q, &body); err != nil {
			return err
		}
	}
	known := a.registry.NodeNamed(body.Node)
	checks, err := body.checks(known)
	if err != nil {
		return err
	}
	var ops []registry.Op
	if known == nil || !body.SkipNodeUpdate {
		ops = append(ops, registry.Op{Node: &registry.NodeOp{Verb: "set", Node: body.node(known)}})
	}
	if in != nil {
		ops = append(ops, registry.Op{Service: &registry.InstanceOp{Verb: "set", Instance: *in}})
	}
	for _, c := range checks {
		ops = append(ops, registry.Op{Check: &c})
	}
	if _, err := a.transact(q.request.Context(), "register", "node "+body.Node, ops); err != nil {
		return err
	}
	return a.done(w, q)
}

// node is the node that the body describes; known is what it was before.
func (b *catalogBody) node(known *weft.Node) weft.Node {
	n := weft.Node{ID: b.ID, Name: b.Node, Address: b.Address, Labels: b.NodeMeta, TaggedAddresses: b.TaggedAddresses}
	if n.Address == "" && known == nil {
		n.Address = n.Name // a service came before its node
	}
	var x nodeExtra
	if known != nil {
		x.Version = nodeExtraOf(known).Version
	}
	if b.Locality != nil {
		n.Zone, x.Region = b.Locality.Zone, b.Locality.Region
	}
	x.carry(&n)
	return n
}

func (a *api) catalogInstance(q *query, body *catalogBody) (*weft.Instance, error) {
	if body.Service.Service == "" {
		return nil, weft.Errorf(weft.Invalid, "register service", body.Service.ID, "missing Service, its name")
	}
	name := q.service(body.Service.Service)
	if body.Service.Namespace != "" {
		name.Namespace = body.Service.Namespace
	}
	in, err := body.Service.instance(name, "catalog")
	in.Node = body.Node
	if known, _ := a.registry.Instance(in.Key()); err == nil && known != nil && known.Dialect == serverDialect {
		in.Dialect = serverDialect // it says again what it is
	}
	return &in, err
}

// checks returns what has to be done for the checks. What is registered in the
// catalogue is reported by who registers it, and not probed; but for external nodes,
// which say so in their metadata: where others run consul-esm for them, the server does
// it itself.
func (b *catalogBody) checks(known *weft.Node) ([]registry.CheckOp, error) {
	meta := b.NodeMeta
	if b.SkipNodeUpdate && known != nil {
		meta = known.Labels
	}
	external := isExternal(meta)
	var out []registry.CheckOp
	for _, body := range append([]*checkBody{b.Check}, b.Checks...) {
		if body == nil {
			continue
		}
		c, err := body.catalogCheck(external)
		if err != nil {
			return nil, err
		}
		out = append(out, registry.CheckOp{Verb: "set", Node: b.Node, Instance: body.ServiceID, Check: c})
	}
	return out, nil
}

// isExternal says of the metadata of a node that nobody who runs there makes its checks.
func isExternal(meta map[string]string) bool { return meta["external-node"] == "true" }

// catalogCheck reads a check of the catalogue. Without probed it is static: its
// definition is only kept.
func (b *checkBody) catalogCheck(probed bool) (weft.Check, error) {
	c := weft.Check{ID: b.id(), Name: b.Name, Notes: b.Notes, Kind: weft.StaticCheck, Output: clip(b.Output)}
	if c.ID == "" {
		c.ID = c.Name
	}
	if err := b.status(&c); err != nil {
		return c, err
	}
	d := b.Definition
	if d == nil || d.HTTP == "" && d.TCP == "" && d.UDP == "" && d.GRPC == "" {
		return c, nil
	}
	if err := d.times(&c); err != nil {
		return c, err
	}
	c.Method, c.Header, c.Body = d.Method, d.Header, d.Body
	c.TLS, c.TLSSkipVerify, c.TLSServerName = d.GRPC != "" && d.GRPCUseTLS, d.TLSSkipVerify, d.TLSServerName
	kind, n := weft.StaticCheck, 0
	for k, target := range map[weft.CheckKind]string{weft.HTTPCheck: d.HTTP, weft.TCPCheck: d.TCP, weft.UDPCheck: d.UDP, weft.GRPCCheck: d.GRPC} {
		if target != "" {
			kind, c.Target, n = k, target, n+1
		}
	}
	switch {
	case n > 1:
		return c, b.invalid("its Definition has several of HTTP, TCP, UDP and GRPC: give only one")
	case probed && c.Interval > 0:
		c.Kind = kind
	default:
		c.Target = string(kind) + " " + c.Target
	}
	return c, nil
}

// PUT /v1/catalog/deregister. What is not there is as good as removed.
func (a *api) catalogDeregister(w http.ResponseWriter, q *query) error {
	var body struct{ Node, ServiceID, CheckID, Datacenter string }
	if err := decode(w, q, &body); err != nil {
		return err
	}
	if body.Node == "" {
		return weft.Errorf(weft.Invalid, "deregister", "", "missing Node")
	}
	if body.Datacenter != "" && body.Datacenter != a.registry.Datacenter() {
		return noPath(body.Datacenter)
	}
	ctx := q.request.Context()
	var err error
	switch {
	case body.ServiceID != "":
		_, err = a.registry.Deregister(ctx, weft.InstanceKey{Node: body.Node, ID: body.ServiceID})
	case body.CheckID != "":
		err = a.registry.RemoveCheck(ctx, body.Node, body.CheckID)
	default:
		_, err = a.registry.DeregisterNode(ctx, body.Node)
	}
	if err != nil && weft.KindOf(err) != weft.NotFound {
		return err
	}
	return a.done(w, q)
}

// done answers a write to the catalogue.
func (a *api) done(w http.ResponseWriter, q *query) error {
	b, err := q.marshal(true)
	if err == nil {
		writeJSON(w, http.StatusOK, b)
	}
	return err
}
