package consul

import (
	"net/http"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

func (a *api) healthEndpoints() endpoints {
	return endpoints{
		"health/service/": {get: a.healthService},
		"health/connect/": {get: a.healthConnect},
		"health/checks/":  {get: a.healthChecks},
		"health/node/":    {get: a.healthNode},
		"health/state/":   {get: a.healthState},
	}
}

// GET /v1/health/service/{name}
func (a *api) healthService(w http.ResponseWriter, q *query) error {
	name, err := q.need("service name")
	if err != nil {
		return err
	}
	service := q.service(name)
	list := func() ([]*weft.Instance, uint64) { return a.registry.Instances(service) }
	passing, err := q.flag("passing")
	if err != nil {
		return err
	}
	if k, ok := a.keptQuery(q, service, passing); ok {
		entries, err := a.entriesOf(q, list)
		if err != nil {
			return err
		}
		return a.answerKept(w, q, k, entries)
	}
	return a.answerEntries(w, q, registry.ServiceTopic(service), list)
}

// GET /v1/health/connect/{name}
func (a *api) healthConnect(w http.ResponseWriter, q *query) error {
	name, err := q.need("service name")
	if err != nil {
		return err
	}
	return a.answerEntries(w, q, registry.InstancesTopic(), func() ([]*weft.Instance, uint64) {
		return a.connectable(q.service(name))
	})
}

// connectable are the instances by which a service is reached with Connect: the
// proxies before it, and those of its own that need none.
func (a *api) connectable(service weft.ServiceName) (out []*weft.Instance, index uint64) {
	instances, index := a.registry.AllInstances()
	for _, in := range instances {
		if in.Service.Namespace != service.Namespace || in.Extra[dialect] == nil {
			continue
		}
		x := extraOf(in)
		proxy := x.Kind == connectProxy && x.Proxy != nil && x.Proxy.DestinationServiceName == service.Name
		if proxy || in.Service == service && x.Connect != nil && x.Connect.Native {
			out = append(out, in)
		}
	}
	return out, index
}

// answerEntries answers instances with their node and all checks.
func (a *api) answerEntries(w http.ResponseWriter, q *query, t registry.Topic, list func() ([]*weft.Instance, uint64)) error {
	entries, err := a.entriesOf(q, func() ([]*weft.Instance, uint64) {
		instances, index := list()
		a.tellGuard(w, instances) // of what is told: there may have been a long wait before
		return instances, index
	})
	if err != nil {
		return err
	}
	return a.answer(w, q, view{topic: t, part: true, build: func() (any, uint64) { return entries() }})
}

// entriesOf returns what builds the list of those instances that q asks for. Those that
// a guard keeps pass, however they are: an empty list would stop all traffic.
func (a *api) entriesOf(q *query, list func() ([]*weft.Instance, uint64)) (func() ([]entryRecord, uint64), error) {
	fits, err := keep[entryRecord](q)
	if err != nil {
		return nil, err
	}
	passing, err := q.flag("passing")
	if err != nil {
		return nil, err
	}
	return func() ([]entryRecord, uint64) {
		instances, index := list()
		nodes := a.newNodeCache()
		out := make([]entryRecord, 0, len(instances))
		for _, in := range instances {
			n := nodes.get(in.Node)
			if n == nil || !q.tagged(in.Tags) || !q.onNode(n) {
				continue
			}
			e := entryRecord{Node: a.nodeRecord(n), Service: newServiceRecord(in), Checks: append(nodeChecks(n), instanceChecks(in)...)}
			if passing && worst(e.Checks) != weft.Passing && !a.keeps(in) || !fits(&e) {
				continue
			}
			out = append(out, e)
		}
		near(a, q, out, func(e *entryRecord) string { return e.Node.Node })
		return out, index
	}, nil
}

// tellGuard says in a header why failed instances are among those that pass.
func (a *api) tellGuard(w http.ResponseWriter, instances []*weft.Instance) {
	h := w.Header()
	delete(h, "X-Weft-Guard")
	var of weft.ServiceName
	for _, in := range instances {
		if in.Service == of {
			continue
		}
		of = in.Service
		if g, guarded := a.registry.Guard(of); guarded {
			h["X-Weft-Guard"] = guardHeader(g)
			return
		}
	}
}

func (a *api) keeps(in *weft.Instance) bool {
	g, guarded := a.registry.Guard(in.Service)
	return guarded && g.Keeps(in.Key())
}

// GET /v1/health/checks/{service}
func (a *api) healthChecks(w http.ResponseWriter, q *query) error {
	name, err := q.need("service name")
	if err != nil {
		return err
	}
	service := q.service(name)
	return a.answerChecks(w, q, registry.ServiceTopic(service), func() ([]checkRecord, uint64) {
		instances, index := a.registry.Instances(service)
		nodes := a.newNodeCache()
		var out []checkRecord
		for _, in := range instances {
			if n := nodes.get(in.Node); n != nil && q.onNode(n) {
				out = append(out, instanceChecks(in)...)
			}
		}
		return out, index
	})
}

// GET /v1/health/node/{name}
func (a *api) healthNode(w http.ResponseWriter, q *query) error {
	name, err := q.need("node name")
	if err != nil {
		return err
	}
	return a.answerChecks(w, q, registry.NodeTopic(name), func() ([]checkRecord, uint64) {
		return a.checksOfNode(q, name)
	})
}

// checksOfNode are a node's own checks and those of its instances.
func (a *api) checksOfNode(q *query, name string) ([]checkRecord, uint64) {
	n, instances, index := a.registry.Node(name)
	if n == nil {
		return nil, index
	}
	out := nodeChecks(n)
	for _, in := range instances {
		if in.Service.Namespace == q.namespace {
			out = append(out, instanceChecks(in)...)
		}
	}
	return out, index
}

// GET /v1/health/state/{any|passing|warning|critical}
func (a *api) healthState(w http.ResponseWriter, q *query) error {
	state, err := q.need("state")
	if err != nil {
		return err
	}
	if state != "any" {
		if _, err := parseStatus(state); err != nil {
			return weft.Errorf(weft.Invalid, "read state", state, "want any, passing, warning or critical")
		}
	}
	return a.answerChecks(w, q, registry.InstancesTopic(), func() ([]checkRecord, uint64) {
		var out []checkRecord
		take := func(checks []checkRecord) {
			for _, c := range checks {
				if state == "any" || c.Status == state {
					out = append(out, c)
				}
			}
		}
		instances, index := a.registry.AllInstances()
		nodes, _ := a.registry.Nodes()
		wanted := make(map[string]bool, len(nodes))
		for _, n := range nodes {
			if wanted[n.Name] = q.onNode(n); wanted[n.Name] {
				take(nodeChecks(n))
			}
		}
		for _, in := range instances {
			if wanted[in.Node] && in.Service.Namespace == q.namespace {
				take(instanceChecks(in))
			}
		}
		return out, index
	})
}

// answerChecks answers those of a list of checks that pass the filter.
func (a *api) answerChecks(w http.ResponseWriter, q *query, t registry.Topic, list func() ([]checkRecord, uint64)) error {
	fits, err := keep[checkRecord](q)
	if err != nil {
		return err
	}
	return a.answer(w, q, view{topic: t, part: true, build: func() (any, uint64) {
		checks, index := list()
		out := make([]checkRecord, 0, len(checks))
		for i := range checks {
			if fits(&checks[i]) {
				out = append(out, checks[i])
			}
		}
		near(a, q, out, func(c *checkRecord) string { return c.Node })
		return out, index
	}})
}
