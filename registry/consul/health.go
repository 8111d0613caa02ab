package consul

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

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
	service, err := q.needService()
	if err != nil {
		return err
	}
	return a.answerEntries(w, q, healthServiceKept, service, a.instancesOf(service))
}

// GET /v1/health/connect/{name}
func (a *api) healthConnect(w http.ResponseWriter, q *query) error {
	service, err := q.needService()
	if err != nil {
		return err
	}
	return a.answerEntries(w, q, healthConnectKept, service, a.connectable(service))
}

// selection is where the instances come from that an answer tells.
type selection struct {
	topic registry.Topic
	// list has an index that moves when something of the instances has changed, and that
	// of the topic, which may be greater.
	list func() (instances []*weft.Instance, index, topic uint64)
}

// instancesOf selects the instances of a service.
func (a *api) instancesOf(service weft.ServiceName) selection {
	return selection{topic: registry.ServiceTopic(service), list: func() ([]*weft.Instance, uint64, uint64) {
		list, index := a.registry.Instances(service)
		return list, index, index
	}}
}

// connectable selects the instances by which a service is reached with Connect.
func (a *api) connectable(service weft.ServiceName) selection {
	return selection{topic: registry.InstancesTopic(), list: func() ([]*weft.Instance, uint64, uint64) {
		return a.connectables.of(a.registry, service)
	}}
}

// view is of what build makes of the instances.
func (s selection) view(build func([]*weft.Instance) any) lasting {
	return lasting{
		view: view{topic: s.topic, part: true, build: func() (any, uint64) {
			instances, _, topic := s.list()
			return build(instances), topic
		}},
		now: func() (uint64, uint64) {
			_, index, topic := s.list()
			return index, topic
		},
	}
}

// answerEntries answers instances with their node and all checks.
func (a *api) answerEntries(w http.ResponseWriter, q *query, of keptKind, service weft.ServiceName, from selection) error {
	entries, err := a.entriesOf(q)
	if err != nil {
		return err
	}
	v := from.view(entries)
	v.whole = of == healthServiceKept
	v.guard = func() []string {
		instances, _, _ := from.list()
		return a.guardOf(instances)
	}
	return a.answerKept(w, q, of, service, v)
}

// entriesOf returns what makes the list of those instances that q asks for. Those that
// a guard keeps pass, however they are: an empty list would stop all traffic.
func (a *api) entriesOf(q *query) (func([]*weft.Instance) any, error) {
	fits, err := keep[entryRecord](q)
	if err != nil {
		return nil, err
	}
	passing, err := q.flag("passing")
	if err != nil {
		return nil, err
	}
	return func(instances []*weft.Instance) any {
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
		return out
	}, nil
}

// guardOf says why failed instances are among those that pass; nil when none is.
func (a *api) guardOf(instances []*weft.Instance) []string {
	var of weft.ServiceName
	for _, in := range instances {
		if in.Service == of {
			continue
		}
		of = in.Service
		if g, guarded := a.registry.Guard(of); guarded {
			return []string{strings.Map(func(r rune) rune {
				if r < ' ' || r > '~' {
					return ' '
				}
				return r
			}, g.Reason)}
		}
	}
	return nil
}

func tellGuard(w http.ResponseWriter, why []string) {
	if why != nil {
		w.Header()["X-Weft-Guard"] = why
	}
}

func (a *api) keeps(in *weft.Instance) bool {
	g, guarded := a.registry.Guard(in.Service)
	return guarded && g.Keeps(in.Key())
}

// GET /v1/health/checks/{service}
func (a *api) healthChecks(w http.ResponseWriter, q *query) error {
	service, err := q.needService()
	if err != nil {
		return err
	}
	fits, err := keep[checkRecord](q)
	if err != nil {
		return err
	}
	return a.answerKept(w, q, healthChecksKept, service, a.instancesOf(service).view(func(instances []*weft.Instance) any {
		return a.nearChecks(q, a.fittingChecks(q, instances, fits))
	}))
}

// fittingChecks are the checks of instances, on the nodes that q asks for, that fit.
func (a *api) fittingChecks(q *query, instances []*weft.Instance, fits func(*checkRecord) bool) []checkRecord {
	nodes := a.newNodeCache()
	out := make([]checkRecord, 0, len(instances))
	for _, in := range instances {
		if n := nodes.get(in.Node); n != nil && q.onNode(n) {
			out = append(out, chosen(instanceChecks(in), fits)...)
		}
	}
	return out
}

// chosen keeps those that fit. The list is the caller's own.
func chosen(checks []checkRecord, fits func(*checkRecord) bool) []checkRecord {
	return slices.DeleteFunc(checks, func(c checkRecord) bool { return !fits(&c) })
}

func (a *api) nearChecks(q *query, checks []checkRecord) []checkRecord {
	near(a, q, checks, func(c *checkRecord) string { return c.Node })
	return checks
}

// GET /v1/health/node/{name}
func (a *api) healthNode(w http.ResponseWriter, q *query) error {
	name, err := q.need("node name")
	if err != nil {
		return err
	}
	fits, err := keep[checkRecord](q)
	if err != nil {
		return err
	}
	return a.answer(w, q, view{topic: registry.NodeTopic(name), part: true, build: func() (any, uint64) {
		checks, index := a.checksOfNode(q, name)
		return a.nearChecks(q, chosen(checks, fits)), index
	}})
}

// checksOfNode are a node's own checks and those of its instances.
func (a *api) checksOfNode(q *query, name string) ([]checkRecord, uint64) {
	n, instances, index := a.registry.Node(name)
	if n == nil {
		return []checkRecord{}, index
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
	filter, err := keep[checkRecord](q)
	if err != nil {
		return err
	}
	fits := func(c *checkRecord) bool { return (state == "any" || c.Status == state) && filter(c) }
	v := a.ofAllInstances()
	v.build = func() (any, uint64) {
		_, index := v.now()
		out := a.checksOfNodes(q, fits)
		a.eachService(q.namespace, func(_ weft.ServiceName, instances []*weft.Instance) {
			out = append(out, a.fittingChecks(q, instances, fits)...)
		})
		return a.nearChecks(q, out), index
	}
	v.assemble = func(was pieces) ([]byte, pieces, error) {
		first, err := elements(a.checksOfNodes(q, fits))
		if err != nil {
			return nil, nil, err
		}
		return a.assemble(q.namespace, "[]", first, was, func(_ weft.ServiceName, instances []*weft.Instance) ([]byte, error) {
			return elements(a.fittingChecks(q, instances, fits))
		})
	}
	return a.answerKept(w, q, healthStateKept, q.service(state), v)
}

// elements is a list as JSON without its brackets.
func elements[T any](list []T) ([]byte, error) {
	b, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	return b[1 : len(b)-1], nil
}

// checksOfNodes are the nodes' own checks that fit, of the nodes that q asks for.
func (a *api) checksOfNodes(q *query, fits func(*checkRecord) bool) []checkRecord {
	nodes, _ := a.registry.Nodes()
	out := make([]checkRecord, 0, len(nodes))
	for _, n := range nodes {
		if q.onNode(n) {
			out = append(out, chosen(nodeChecks(n), fits)...)
		}
	}
	return out
}

// ofAllInstances begins a view of a part of what all instances tell.
func (a *api) ofAllInstances() lasting {
	return lasting{
		view: view{topic: registry.InstancesTopic(), part: true},
		now: func() (uint64, uint64) {
			index := a.registry.Wait(context.Background(), registry.InstancesTopic(), 0)
			return index, index
		},
	}
}

// eachService visits the services of a namespace, sorted.
func (a *api) eachService(namespace string, visit func(weft.ServiceName, []*weft.Instance)) {
	names, _ := a.registry.ServiceNames()
	for _, name := range names {
		if name.Namespace == namespace {
			instances, _ := a.registry.Instances(name)
			visit(name, instances)
		}
	}
}
