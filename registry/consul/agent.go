package consul

import (
	"fmt"
	"hash/fnv"
	"net"
	"net/http"
	"slices"
	"strconv"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

func (a *api) agentEndpoints() endpoints {
	return endpoints{
		"agent/self":                 {get: a.agentSelf},
		"agent/members":              {get: a.agentMembers},
		"agent/maintenance":          {put: a.agentMaintenance},
		"agent/services":             {get: a.agentServices},
		"agent/checks":               {get: a.agentChecks},
		"agent/service/register":     {put: a.agentRegister},
		"agent/service/":             {get: a.agentService},
		"agent/token/":               {put: a.agentToken},
		"agent/service/deregister/":  {put: a.agentDeregister},
		"agent/service/maintenance/": {put: a.serviceMaintenance},
		"agent/check/register":       {put: a.checkRegister},
		"agent/check/deregister/":    {put: a.checkDeregister},
		"agent/check/pass/":          {put: a.checkReport(weft.Passing)},
		"agent/check/warn/":          {put: a.checkReport(weft.Warning)},
		"agent/check/fail/":          {put: a.checkReport(weft.Critical)},
		"agent/check/update/":        {put: a.checkUpdate},
		"agent/health/service/id/":   {get: a.agentHealthByID},
		"agent/health/service/name/": {get: a.agentHealthByName},
	}
}

// own is the key of an instance on this server's own node.
func (a *api) own(id string) weft.InstanceKey {
	return weft.InstanceKey{Node: a.registry.LocalNode().Name, ID: id}
}

// PUT /v1/agent/service/register
func (a *api) agentRegister(w http.ResponseWriter, q *query) error {
	var body agentServiceBody
	if err := decode(w, q, &body); err != nil {
		return err
	}
	if body.Name == "" {
		return weft.Errorf(weft.Invalid, "register service", body.ID, "Missing service name")
	}
	replace, err := q.flag("replace-existing-checks")
	if err != nil {
		return err
	}
	in, err := a.agentInstance(q, &body)
	if err != nil {
		return err
	}
	sidecar, err := a.sidecarOf(q, &body, &in)
	if err != nil {
		return err
	}
	ctx := q.request.Context()
	for _, in := range []*weft.Instance{&in, sidecar} {
		if in == nil {
			continue
		}
		if known, _ := a.registry.Instance(a.own(in.ID)); known != nil && !replace {
			in.Checks = keepUnnamed(in.Checks, known.Checks)
		}
		if _, err := a.registry.Register(ctx, *in); err != nil {
			return err
		}
	}
	return nil
}

// agentInstance reads a registration with this agent.
func (a *api) agentInstance(q *query, body *agentServiceBody) (weft.Instance, error) {
	name := q.service(body.Name)
	if body.Namespace != "" {
		name.Namespace = body.Namespace
	}
	in, err := body.instance(name, dialect)
	if err != nil {
		return in, err
	}
	in.Checks, err = a.checksOf(body, in.ID)
	return in, err
}

// PUT /v1/agent/service/deregister/{id}
func (a *api) agentDeregister(w http.ResponseWriter, q *query) error {
	id, err := q.need("service ID")
	if err != nil {
		return err
	}
	if in, _ := a.registry.Instance(a.own(id)); in == nil || in.Dialect == serverDialect {
		return weft.Errorf(weft.NotFound, "deregister", id, "Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id)
	}
	ctx := q.request.Context()
	if _, err := a.registry.Deregister(ctx, a.own(id)); err != nil {
		return err
	}
	_, instances, _ := a.registry.Node(a.registry.LocalNode().Name)
	for _, in := range instances {
		if extraOf(in).SidecarOf != id {
			continue
		}
		if _, err := a.registry.Deregister(ctx, in.Key()); err != nil && weft.KindOf(err) != weft.NotFound {
			return err
		}
	}
	return nil
}

// PUT /v1/agent/service/maintenance/{id}?enable=&reason=
func (a *api) serviceMaintenance(w http.ResponseWriter, q *query) error {
	id, err := q.need("service ID")
	if err != nil {
		return err
	}
	return a.maintain(q, a.own(id))
}

// PUT /v1/agent/maintenance?enable=&reason=
func (a *api) agentMaintenance(w http.ResponseWriter, q *query) error {
	return a.maintain(q, a.own(""))
}

func (a *api) maintain(q *query, key weft.InstanceKey) error {
	enable := q.params.Get("enable")
	if enable == "" {
		return weft.Errorf(weft.Invalid, "read enable", "", "missing, want true or false")
	}
	on, err := parseFlag("enable", enable)
	if err != nil {
		return err
	}
	return a.registry.Maintain(q.request.Context(), key, on, q.params.Get("reason"))
}

// PUT /v1/agent/check/register
func (a *api) checkRegister(w http.ResponseWriter, q *query) error {
	var body checkBody
	if err := decode(w, q, &body); err != nil {
		return err
	}
	if body.Name == "" {
		return weft.Errorf(weft.Invalid, "register check", body.id(), "Missing check name")
	}
	c, err := a.checkOf(&body)
	if err != nil {
		return err
	}
	if c.ID == "" {
		c.ID = c.Name
	}
	return a.registry.AddCheck(q.request.Context(), a.own(body.ServiceID), c)
}

// PUT /v1/agent/check/deregister/{id}
func (a *api) checkDeregister(w http.ResponseWriter, q *query) error {
	id, err := q.need("check ID")
	if err != nil {
		return err
	}
	return a.registry.RemoveCheck(q.request.Context(), a.registry.LocalNode().Name, id)
}

// PUT /v1/agent/check/{pass|warn|fail}/{id}?note=
func (a *api) checkReport(status weft.Health) serve {
	return func(w http.ResponseWriter, q *query) error {
		return a.report(q, status, q.params.Get("note"))
	}
}

// PUT /v1/agent/check/update/{id}
func (a *api) checkUpdate(w http.ResponseWriter, q *query) error {
	var body struct{ Status, Output string }
	if err := decode(w, q, &body); err != nil {
		return err
	}
	status, err := parseStatus(body.Status)
	if err != nil {
		return err
	}
	return a.report(q, status, body.Output)
}

func (a *api) report(q *query, status weft.Health, output string) error {
	id, err := q.need("check ID")
	if err != nil {
		return err
	}
	return a.registry.Report(q.request.Context(), a.registry.LocalNode().Name, id, status, clip(output))
}

// GET /v1/agent/services
func (a *api) agentServices(w http.ResponseWriter, q *query) error {
	fits, err := keep[serviceRecord](q)
	if err != nil {
		return err
	}
	node := a.registry.LocalNode().Name
	return a.answer(w, q, view{topic: registry.NodeTopic(node), part: true, build: func() (any, uint64) {
		_, instances, index := a.registry.Node(node)
		out := make(map[string]serviceRecord, len(instances))
		for _, in := range instances {
			if r := a.agentRecord(in); a.isLocal(q, in) && fits(&r) {
				out[in.ID] = r
			}
		}
		return out, index
	}})
}

// isLocal says whether the agent's endpoints show an instance of the own node.
func (a *api) isLocal(q *query, in *weft.Instance) bool {
	return in.Service.Namespace == q.namespace && in.Dialect != serverDialect
}

// agentRecord is an instance as the agent's endpoints show it: as it was registered,
// and not when.
func (a *api) agentRecord(in *weft.Instance) serviceRecord {
	x, r := extraOf(in), newServiceRecord(in)
	r.CreateIndex, r.ModifyIndex = 0, 0
	r.Datacenter, r.Proxy, r.Connect = a.registry.Datacenter(), x.Proxy, x.Connect
	return r
}

// GET /v1/agent/service/{id}?hash=
//
// This one blocks on the content and not on an index: with the hash of the last
// answer it returns when the definition differs.
func (a *api) agentService(w http.ResponseWriter, q *query) error {
	id, err := q.need("service ID")
	if err != nil {
		return err
	}
	ctx, cancel := a.waiting(q)
	defer cancel()
	for timeUp := false; ; {
		in, index := a.registry.Instance(a.own(id))
		if in == nil || !a.isLocal(q, in) {
			return weft.Errorf(weft.NotFound, "find service", id, "unknown service ID: %s", id)
		}
		record := a.agentRecord(in)
		if record.ContentHash, err = contentHash(q, record); err != nil {
			return err
		}
		if record.ContentHash == q.params.Get("hash") && !timeUp {
			timeUp = a.registry.Wait(ctx, registry.ServiceTopic(in.Service), index) <= index
			continue
		}
		if err := a.stillMay(q); err != nil {
			return err
		}
		body, err := q.marshal(record)
		if err != nil {
			return err
		}
		q.setHeaders(w, index)
		w.Header().Set("X-Consul-ContentHash", record.ContentHash)
		writeJSON(w, http.StatusOK, body)
		return nil
	}
}

// contentHash identifies a definition.
func contentHash(q *query, r serviceRecord) (string, error) {
	b, err := q.marshal(r)
	if err != nil {
		return "", err
	}
	h := fnv.New64a()
	h.Write(b)
	return fmt.Sprintf("%016x", h.Sum64()), nil
}

// GET /v1/agent/checks
func (a *api) agentChecks(w http.ResponseWriter, q *query) error {
	fits, err := keep[checkRecord](q)
	if err != nil {
		return err
	}
	node := a.registry.LocalNode().Name
	return a.answer(w, q, view{topic: registry.NodeTopic(node), part: true, build: func() (any, uint64) {
		checks, index := a.checksOfNode(q, node)
		out := make(map[string]checkRecord, len(checks))
		for i := range checks {
			if checks[i].CheckID != aliveCheckID && checks[i].CheckID != serverCheckID && fits(&checks[i]) {
				out[checks[i].CheckID] = checks[i]
			}
		}
		return out, index
	}})
}

// GET /v1/agent/health/service/id/{id}
func (a *api) agentHealthByID(w http.ResponseWriter, q *query) error {
	id, err := q.need("service ID")
	if err != nil {
		return err
	}
	node, instances, index := a.registry.Node(a.registry.LocalNode().Name)
	for _, in := range instances {
		if in.ID == id && a.isLocal(q, in) {
			h := a.serviceHealth(node, in)
			return a.answerHealth(w, q, index, h.AggregatedStatus, h)
		}
	}
	return weft.Errorf(weft.NotFound, "find service", id, "no service of this ID")
}

// GET /v1/agent/health/service/name/{name}
func (a *api) agentHealthByName(w http.ResponseWriter, q *query) error {
	name, err := q.need("service name")
	if err != nil {
		return err
	}
	node, instances, index := a.registry.Node(a.registry.LocalNode().Name)
	var list []serviceHealth
	aggregated := weft.Passing
	for _, in := range instances {
		if in.Service == q.service(name) {
			h := a.serviceHealth(node, in)
			list = append(list, h)
			aggregated = max(aggregated, worst(h.Checks))
		}
	}
	if len(list) == 0 {
		return weft.Errorf(weft.NotFound, "find service", name, "no service of this name on this node")
	}
	return a.answerHealth(w, q, index, aggregated.String(), list)
}

func (a *api) serviceHealth(node *weft.Node, in *weft.Instance) serviceHealth {
	checks := slices.DeleteFunc(nodeChecks(node), func(c checkRecord) bool { return c.CheckID == aliveCheckID })
	h := serviceHealth{Service: a.agentRecord(in), Checks: append(checks, instanceChecks(in)...)}
	h.AggregatedStatus = worst(h.Checks).String()
	return h
}

// answerHealth answers by the status code, for load balancers that look at nothing
// else.
func (a *api) answerHealth(w http.ResponseWriter, q *query, index uint64, status string, body any) error {
	code := http.StatusServiceUnavailable
	switch status {
	case "passing":
		code = http.StatusOK
	case "warning":
		code = http.StatusTooManyRequests
	}
	if q.params.Get("format") == "text" {
		q.setHeaders(w, index)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(code)
		fmt.Fprint(w, status)
		return nil
	}
	b, err := q.marshal(body)
	if err != nil {
		return err
	}
	q.setHeaders(w, index)
	writeJSON(w, code, b)
	return nil
}

// GET /v1/agent/self
func (a *api) agentSelf(w http.ResponseWriter, q *query) error {
	node, instances, _ := a.registry.Node(a.registry.LocalNode().Name)
	checks := len(node.Checks)
	for _, in := range instances {
		checks += len(in.Checks)
	}
	dc := a.registry.Datacenter()
	servers, leads := a.servers(), "false"
	for _, s := range servers {
		if s.Leader && s.Name == node.Name {
			leads = "true"
		}
	}
	return a.fixed(w, q, map[string]any{
		"Config": map[string]any{
			"Datacenter": dc, "PrimaryDatacenter": dc, "NodeName": node.Name, "NodeID": node.ID,
			"Server": true, "Revision": "", "Version": a.version,
		},
		"DebugConfig": map[string]any{
			"Datacenter": dc, "NodeName": node.Name, "NodeID": node.ID, "ServerMode": true, "ACLsEnabled": a.acl != nil,
			"SerfAdvertiseAddrLAN": "tcp://" + a.advertised(), // nothing gossips here: it is where this server is joined
		},
		"Member": a.member(Server{ID: node.ID, Name: node.Name, API: a.advertised(), Healthy: true}),
		"Meta":   orEmpty(node.Labels),
		"Stats": map[string]map[string]string{
			"agent":  {"services": strconv.Itoa(len(instances)), "checks": strconv.Itoa(checks)},
			"build":  {"version": a.version},
			"consul": {"server": "true", "leader": leads, "known_servers": strconv.Itoa(len(servers))},
		},
	})
}

// GET /v1/agent/members
func (a *api) agentMembers(w http.ResponseWriter, q *query) error {
	fits, err := keep[memberRecord](q)
	if err != nil {
		return err
	}
	wan, err := q.flag("wan")
	if err != nil {
		return err
	}
	members := []memberRecord{}
	for _, server := range a.servers() {
		if wan {
			server.Name += "." + a.registry.Datacenter()
		}
		if m := a.member(server); fits(&m) {
			members = append(members, m)
		}
	}
	return a.fixed(w, q, members)
}

// Statuses of a member.
const (
	memberAlive  = 1
	memberFailed = 4
)

// member is a server as one of those who gossip. Nothing gossips here, so there are
// no others.
func (a *api) member(s Server) memberRecord {
	host, port, err := net.SplitHostPort(s.API)
	if err != nil {
		host = s.API
	}
	n, _ := strconv.ParseUint(port, 10, 16) // 0 when it is a name
	m := memberRecord{
		Name: s.Name, Addr: host, Port: uint16(n), Status: memberAlive,
		Tags: map[string]string{
			"role": "consul", "dc": a.registry.Datacenter(), "id": s.ID, "port": port,
			"build": a.version, "vsn": "2", "acls": "0",
		},
		ProtocolMin: 1, ProtocolMax: 5, ProtocolCur: 2, DelegateMin: 2, DelegateMax: 5, DelegateCur: 4,
	}
	if !s.Healthy {
		m.Status = memberFailed
	}
	if a.acl != nil {
		m.Tags["acls"] = "1"
	}
	return m
}
