package registry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// model is the catalogue in the plainest form: two maps, and every answer made
// anew by looking at everything.
type model struct {
	nodes     map[string]weft.Node
	instances map[weft.InstanceKey]weft.Instance
}

var modelServices = []weft.ServiceName{{Namespace: "default", Name: "a"}, {Namespace: "default", Name: "b"}, {Namespace: "test", Name: "a"}}

var modelNodes = []string{"n-1", "n-2", ownNode}

func (m *model) topics() map[string]registry.Topic {
	topics := map[string]registry.Topic{
		"services": registry.ServicesTopic(), "nodes": registry.NodesTopic(), "instances": registry.InstancesTopic(),
	}
	for _, n := range modelServices {
		topics["service "+n.String()] = registry.ServiceTopic(n)
	}
	for _, n := range modelNodes {
		topics["node "+n] = registry.NodeTopic(n)
	}
	return topics
}

// tell is everything that each topic tells, as text.
func (m *model) tell() map[string]string {
	told := make(map[string]string)
	byKey := slices.SortedFunc(maps.Values(m.instances), func(a, b weft.Instance) int {
		return strings.Compare(a.Node+"\x00"+a.ID, b.Node+"\x00"+b.ID)
	})
	services := make(map[string]map[string]bool)
	for _, n := range modelServices {
		told["service "+n.String()] = ""
	}
	for _, in := range byKey {
		name := in.Service.String()
		told["service "+name] += text(in) + text(m.nodes[in.Node])
		told["node "+in.Node] += text(in)
		told["instances"] += text(in) + text(m.nodes[in.Node])
		if services[name] == nil {
			services[name] = make(map[string]bool)
		}
		for _, tag := range in.Tags {
			services[name][tag] = true
		}
	}
	told["services"] = text(services)
	for _, name := range modelNodes {
		n, ok := m.nodes[name]
		if !ok {
			told["node "+name] += "absent"
			continue
		}
		told["node "+name] += text(n)
		if len(n.Checks) > 0 {
			told["instances"] += text(n.Checks)
		}
		n.Checks = nil
		told["nodes"] += text(n)
	}
	return told
}

// realTell is what the registry tells, in the same form.
func realTell(r *registry.Registry) (told map[string]string, index map[string]uint64) {
	told, index = make(map[string]string), make(map[string]uint64)
	nodes := make(map[string]weft.Node)
	for _, name := range modelNodes {
		n, on, at := r.Node(name)
		index["node "+name] = at
		for _, in := range on {
			told["node "+name] += text(bare(in))
		}
		if n == nil {
			told["node "+name] += "absent"
			continue
		}
		nodes[name] = bareNode(n)
		told["node "+name] += text(nodes[name])
	}
	for _, n := range modelServices {
		list, at := r.Instances(n)
		index["service "+n.String()] = at
		for _, in := range list {
			told["service "+n.String()] += text(bare(in)) + text(nodes[in.Node])
		}
	}
	services := make(map[string]map[string]bool)
	for _, ns := range []string{"default", "test"} {
		var list map[string][]string
		list, index["services"] = r.Services(ns)
		for name, tags := range list {
			services[name+"."+ns] = make(map[string]bool)
			for _, tag := range tags {
				services[name+"."+ns][tag] = true
			}
		}
	}
	told["services"] = text(services)
	var list []*weft.Node
	list, index["nodes"] = r.Nodes()
	for _, n := range list {
		b := bareNode(n)
		b.Checks = nil
		told["nodes"] += text(b)
	}
	all, at := r.AllInstances()
	index["instances"] = at
	byKey := slices.SortedFunc(slices.Values(all), func(a, b *weft.Instance) int {
		return strings.Compare(a.Node+"\x00"+a.ID, b.Node+"\x00"+b.ID)
	})
	for _, in := range byKey {
		told["instances"] += text(bare(in)) + text(nodes[in.Node])
	}
	for _, name := range modelNodes {
		if n := nodes[name]; len(n.Checks) > 0 {
			told["instances"] += text(n.Checks)
		}
	}
	return told, index
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b) + "\n"
}

// bare is an instance without indexes.
func bare(in *weft.Instance) weft.Instance {
	b := *in
	b.CreateIndex, b.ModifyIndex, b.Checks = 0, 0, bareChecks(in.Checks)
	return b
}

func bareNode(n *weft.Node) weft.Node {
	b := *n
	b.CreateIndex, b.ModifyIndex, b.Checks = 0, 0, bareChecks(n.Checks)
	return b
}

func bareChecks(checks []weft.Check) []weft.Check {
	checks = slices.Clone(checks)
	for i := range checks {
		checks[i].CreateIndex, checks[i].ModifyIndex = 0, 0
	}
	return checks
}

// operation does the same to the registry and to the model.
type operation struct {
	name  string
	real  func(*registry.Registry) error
	model func(*model) (ok bool)
}

func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

func randomOperation(rng *rand.Rand, node string) operation {
	ctx := context.Background()
	k := weft.InstanceKey{Node: node, ID: fmt.Sprintf("%s-%d", node, rng.IntN(3))}
	switch rng.IntN(10) {
	case 0, 1, 2, 3:
		return registerOperation(rng, k)
	case 4:
		return operation{"deregister " + k.ID,
			func(r *registry.Registry) error { _, err := r.Deregister(ctx, k); return err },
			func(m *model) bool { _, ok := m.instances[k]; delete(m.instances, k); return ok }}
	case 5:
		id, status := k.ID+":ttl", pick(rng, weft.Passing, weft.Warning, weft.Critical)
		return operation{fmt.Sprintf("report %s %s", id, status),
			func(r *registry.Registry) error { return r.Report(ctx, node, id, status, "") },
			func(m *model) bool {
				return m.editCheck(k, func(c *weft.Check) bool { return c.ID == id }, func(c *weft.Check) { c.Status = status })
			}}
	case 6:
		return maintainOperation(rng, k)
	case 7:
		return nodeOperation(rng, node)
	case 8:
		return nodeCheckOperation(rng, node)
	}
	return operation{"deregister node " + node,
		func(r *registry.Registry) error { _, err := r.DeregisterNode(ctx, node); return err },
		func(m *model) bool {
			if _, ok := m.nodes[node]; !ok || node == ownNode {
				return false
			}
			delete(m.nodes, node)
			maps.DeleteFunc(m.instances, func(k weft.InstanceKey, _ weft.Instance) bool { return k.Node == node })
			return true
		}}
}

func registerOperation(rng *rand.Rand, k weft.InstanceKey) operation {
	in := weft.Instance{
		ID: k.ID, Node: k.Node, Service: pick(rng, modelServices...), Address: "10.0.0.1", Port: pick(rng, 80, 81),
		Tags: pick(rng, nil, []string{"x"}, []string{"x", "y"}, []string{"z"}),
	}
	if rng.IntN(2) == 0 {
		in.Checks = []weft.Check{
			{ID: k.ID + ":static", Name: "s", Kind: weft.StaticCheck, Status: pick(rng, weft.Passing, weft.Critical)},
			{ID: k.ID + ":ttl", Name: "t", Kind: weft.TTLCheck, TTL: weft.Duration(time.Hour), Status: weft.Critical},
		}
	}
	return operation{fmt.Sprintf("register %s of %s", k.ID, in.Service),
		func(r *registry.Registry) error { _, err := r.Register(context.Background(), in); return err },
		func(m *model) bool {
			if _, ok := m.nodes[k.Node]; !ok {
				return false
			}
			next := in
			next.Checks = nil
			old := m.instances[k].Checks
			for _, c := range in.Checks {
				for _, before := range old { // a TTL check keeps its result
					if before.ID == c.ID && c.Kind == weft.TTLCheck {
						c.Status = before.Status
					}
				}
				next.Checks = append(next.Checks, c)
			}
			for _, c := range old {
				if c.Kind == weft.MaintenanceCheck {
					next.Checks = append(next.Checks, c)
				}
			}
			sortByID(next.Checks)
			m.instances[k] = next
			return true
		}}
}

func sortByID(checks []weft.Check) {
	slices.SortFunc(checks, func(a, b weft.Check) int { return strings.Compare(a.ID, b.ID) })
}

func maintainOperation(rng *rand.Rand, k weft.InstanceKey) operation {
	on := rng.IntN(2) == 0
	c := weft.Check{ID: "_service_maintenance:" + k.ID, Name: "Service Maintenance Mode", Kind: weft.MaintenanceCheck,
		Notes: "tired", Status: weft.Critical}
	return operation{fmt.Sprintf("maintain %s %v", k.ID, on),
		func(r *registry.Registry) error { return r.Maintain(context.Background(), k, on, "tired") },
		func(m *model) bool {
			in, ok := m.instances[k]
			if !ok {
				return false
			}
			in.Checks = replaceCheck(in.Checks, c, on)
			m.instances[k] = in
			return true
		}}
}

// replaceCheck takes the check out, and puts it in when it should be there.
func replaceCheck(checks []weft.Check, c weft.Check, there bool) []weft.Check {
	var next []weft.Check
	for _, old := range checks {
		if old.ID != c.ID {
			next = append(next, old)
		}
	}
	if there {
		next = append(next, c)
	}
	sortByID(next)
	return next
}

func nodeOperation(rng *rand.Rand, node string) operation {
	address, labels := pick(rng, "10.0.0.1", "10.0.0.2"), pick(rng, nil, map[string]string{"os": "linux"})
	zone := pick(rng, "", "west")
	if node == ownNode { // a restart sets it to what is configured
		address, labels, zone = "127.0.0.1", nil, ""
	}
	return operation{"register node " + node,
		func(r *registry.Registry) error {
			_, err := r.RegisterNode(context.Background(), weft.Node{Name: node, Address: address, Labels: labels, Zone: zone})
			return err
		},
		func(m *model) bool {
			n := m.nodes[node]
			n.Name, n.Address, n.Labels, n.Zone = node, address, labels, zone
			m.nodes[node] = n
			return true
		}}
}

func nodeCheckOperation(rng *rand.Rand, node string) operation {
	c := weft.Check{ID: "disk", Name: "disk", Kind: weft.StaticCheck, Status: pick(rng, weft.Passing, weft.Warning)}
	if rng.IntN(3) == 0 {
		return operation{"remove check of " + node,
			func(r *registry.Registry) error { return r.RemoveCheck(context.Background(), node, "disk") },
			func(m *model) bool {
				n := m.nodes[node]
				had := len(n.Checks)
				n.Checks = replaceCheck(n.Checks, c, false)
				if len(n.Checks) == had {
					return false
				}
				m.nodes[node] = n
				return true
			}}
	}
	return operation{fmt.Sprintf("check of %s %s", node, c.Status),
		func(r *registry.Registry) error { return r.SetCheck(context.Background(), node, "disk", c) },
		func(m *model) bool {
			n, ok := m.nodes[node]
			if ok {
				n.Checks = replaceCheck(n.Checks, c, true)
				m.nodes[node] = n
			}
			return ok
		}}
}

func (m *model) editCheck(k weft.InstanceKey, is func(*weft.Check) bool, edit func(*weft.Check)) bool {
	in, ok := m.instances[k]
	if !ok {
		return false
	}
	in.Checks = slices.Clone(in.Checks)
	for i := range in.Checks {
		if is(&in.Checks[i]) {
			edit(&in.Checks[i])
			m.instances[k] = in
			return true
		}
	}
	return false
}

// TestAgainstModel: after each of many random operations the registry tells what
// the model tells, and an index has moved when, and only when, its topic tells
// something else. A restart in between changes nothing.
func TestAgainstModel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			s := openStore(t, t.TempDir())
			r := openRegistry(t, s)
			m := &model{nodes: map[string]weft.Node{ownNode: bareNode(r.LocalNode())}, instances: make(map[weft.InstanceKey]weft.Instance)}
			told, index := realTell(r)
			compare(t, "at first", m.tell(), told)
			for range 250 {
				if rng.IntN(50) == 0 {
					closeRegistry(t, r)
					r = openRegistry(t, s)
					if _, after := realTell(r); !maps.Equal(index, after) {
						t.Fatalf("a restart moved indexes from %v to %v", index, after)
					}
				}
				before, op := m.tell(), randomOperation(rng, pick(rng, modelNodes...))
				if ok, err := op.model(m), op.real(r); ok != (err == nil) {
					t.Fatalf("%s: the model says %v, the registry %v", op.name, ok, err)
				}
				want := m.tell()
				told, after := realTell(r)
				compare(t, op.name, want, told)
				for name := range m.topics() {
					if changed := want[name] != before[name]; changed != (after[name] > index[name]) || after[name] < index[name] {
						t.Errorf("%s: %s changed: %v; its index went from %d to %d", op.name, name, changed, index[name], after[name])
					}
				}
				if index = after; t.Failed() {
					t.FailNow()
				}
			}
		})
	}
}

func compare(t *testing.T, after string, want, got map[string]string) {
	t.Helper()
	for name := range want {
		if want[name] != got[name] {
			t.Fatalf("%s: %s tells\n%s\nwant\n%s", after, name, got[name], want[name])
		}
	}
}

// TestAgainstModelConcurrently: writers of different nodes, whose writes share
// transactions. No change is without a moved index.
func TestAgainstModelConcurrently(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	s := openStore(t, t.TempDir())
	r := openRegistry(t, s)
	m := &model{nodes: map[string]weft.Node{ownNode: bareNode(r.LocalNode())}, instances: make(map[weft.InstanceKey]weft.Instance)}
	_, index := realTell(r)
	for range 40 {
		before := m.tell()
		var work sync.WaitGroup
		for _, node := range modelNodes {
			var ops []operation
			for range 5 {
				op := randomOperation(rng, node)
				op.model(m)
				ops = append(ops, op)
			}
			work.Go(func() {
				for _, op := range ops {
					_ = op.real(r) // whether it may fail is the other test's question
				}
			})
		}
		work.Wait()
		want := m.tell()
		told, after := realTell(r)
		compare(t, "after a round", want, told)
		for name := range m.topics() {
			if want[name] != before[name] && after[name] <= index[name] || after[name] < index[name] {
				t.Fatalf("%s changed, and its index went from %d to %d", name, index[name], after[name])
			}
		}
		index = after
	}
	closeRegistry(t, r)
	r = openRegistry(t, s)
	if _, after := realTell(r); !maps.Equal(index, after) {
		t.Errorf("a restart moved indexes from %v to %v", index, after)
	}
}
