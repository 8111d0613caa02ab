package registry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ownNode = "server-1"

func openStore(t testing.TB, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: dir, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func openRegistry(t testing.TB, s *store.Store) *registry.Registry {
	t.Helper()
	r, err := registry.Open(t.Context(), registry.Config{
		Store: s, Logger: testLogger(t),
		Node: weft.Node{Name: ownNode, Address: "127.0.0.1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeRegistry(t, r) })
	return r
}

func closeRegistry(t testing.TB, r *registry.Registry) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func open(t testing.TB) *registry.Registry { return openRegistry(t, openStore(t, t.TempDir())) }

// testLogger fails the test on an error record.
func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(errorWriter{t}, &slog.HandlerOptions{Level: slog.LevelError}))
}

type errorWriter struct{ t testing.TB }

func (w errorWriter) Write(b []byte) (int, error) {
	w.t.Errorf("logged: %s", b)
	return len(b), nil
}

func service(name string) weft.ServiceName { return weft.NewServiceName("", name) }

func instance(service, id string) weft.Instance {
	return weft.Instance{
		ID: id, Service: weft.NewServiceName("", service), Address: "10.0.0.1", Port: 8080,
		Tags: []string{"http"}, Labels: map[string]string{"version": "v1"},
	}
}

func key(id string) weft.InstanceKey { return weft.InstanceKey{Node: ownNode, ID: id} }

func withChecks(in weft.Instance, checks ...weft.Check) weft.Instance {
	in.Checks = checks
	return in
}

func ttlCheck(id string, status weft.Health) weft.Check {
	return weft.Check{ID: id, Kind: weft.TTLCheck, TTL: weft.Duration(time.Hour), Status: status}
}

func register(t testing.TB, r *registry.Registry, in weft.Instance) uint64 {
	t.Helper()
	index, err := r.Register(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind weft.Kind, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want kind %d with %q", kind, texts)
	}
	if weft.KindOf(err) != kind {
		t.Errorf("error %q is of kind %d; want %d", err, weft.KindOf(err), kind)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

func ids(instances []*weft.Instance) (out []string) {
	for _, in := range instances {
		out = append(out, in.ID)
	}
	return out
}

func wantInstances(t *testing.T, r *registry.Registry, service string, want ...string) {
	t.Helper()
	list, _ := r.Instances(weft.NewServiceName("", service))
	if !slices.Equal(ids(list), want) {
		t.Errorf("instances of %s: %v; want %v", service, ids(list), want)
	}
}

func TestRegisterReadDeregister(t *testing.T) {
	r := open(t)
	index := register(t, r, withChecks(instance("order", "o-2"), ttlCheck("", weft.Passing)))
	register(t, r, instance("order", "o-1"))
	register(t, r, instance("user", "u-1"))

	wantInstances(t, r, "order", "o-1", "o-2")
	got, _ := r.Instance(key("o-2"))
	want := instance("order", "o-2")
	want.Node, want.CreateIndex, want.ModifyIndex = ownNode, index, index
	want.Checks = []weft.Check{{
		ID: "service:o-2", Name: "Service 'order' check", Kind: weft.TTLCheck, TTL: weft.Duration(time.Hour),
		CreateIndex: index, ModifyIndex: index,
	}}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Errorf("instance (-want +got):\n%s", diff)
	}

	index, err := r.Deregister(t.Context(), key("o-2"))
	must(t, err)
	wantInstances(t, r, "order", "o-1")
	if _, got := r.Instances(service("order")); got != index {
		t.Errorf("index %d; Deregister said %d", got, index)
	}
	_, err = r.Deregister(t.Context(), key("o-2"))
	wantKind(t, err, weft.NotFound, "o-2", ownNode)
}

func TestLists(t *testing.T) {
	r := open(t)
	_, err := r.RegisterNode(t.Context(), weft.Node{Name: "db-1", Address: "10.0.0.9", Labels: map[string]string{"os": "linux"}})
	must(t, err)
	blue, green := instance("order", "blue"), instance("order", "green")
	blue.Tags, green.Tags = []string{"v1", "http"}, []string{"v2"}
	other := instance("order", "x")
	other.Service.Namespace, other.Node, other.Tags = "test", "db-1", nil
	register(t, r, blue)
	register(t, r, green)
	register(t, r, other)

	services, _ := r.Services("")
	if diff := cmp.Diff(map[string][]string{"order": {"http", "v1", "v2"}}, services); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
	services, _ = r.Services("test")
	if diff := cmp.Diff(map[string][]string{"order": {}}, services); diff != "" {
		t.Errorf("services of test (-want +got):\n%s", diff)
	}
	names, _ := r.ServiceNames()
	if want := []weft.ServiceName{service("order"), {Namespace: "test", Name: "order"}}; !slices.Equal(names, want) {
		t.Errorf("names %v; want %v", names, want)
	}
	nodes, _ := r.Nodes()
	if len(nodes) != 2 || nodes[0].Name != "db-1" || nodes[1].Name != ownNode {
		t.Errorf("nodes %v", nodes)
	}
	n, on, _ := r.Node("db-1")
	if n.Address != "10.0.0.9" || n.Labels["os"] != "linux" || !slices.Equal(ids(on), []string{"x"}) {
		t.Errorf("node %+v with %v", n, ids(on))
	}
	all, _ := r.AllInstances()
	if !slices.Equal(ids(all), []string{"blue", "green", "x"}) {
		t.Errorf("all instances %v", ids(all))
	}
	if a := r.NodeAddress("db-1"); a != "10.0.0.9" {
		t.Errorf("address %q", a)
	}
	if a := r.NodeAddress("nobody"); a != "" {
		t.Errorf("address of nobody %q", a)
	}
}

func TestWhatNeverWasHasIndexOne(t *testing.T) {
	r := open(t)
	list, index := r.Instances(service("ghost"))
	if list != nil || index != 1 {
		t.Errorf("service: %v, %d", list, index)
	}
	eps, index := r.Endpoints(service("ghost"))
	if eps != nil || index != 1 {
		t.Errorf("endpoints: %v, %d", eps, index)
	}
	n, on, index := r.Node("ghost")
	if n != nil || on != nil || index != 1 {
		t.Errorf("node: %v, %v, %d", n, on, index)
	}
	if services, index := r.Services(""); len(services) != 0 || services == nil || index != 1 {
		t.Errorf("services: %v, %d", services, index)
	}
	if in, index := r.Instance(key("ghost")); in != nil || index < 1 {
		t.Errorf("instance: %v, %d", in, index)
	}
}

func TestOwnNode(t *testing.T) {
	s := openStore(t, t.TempDir())
	r := openRegistry(t, s)
	if r.Datacenter() != "dc1" {
		t.Errorf("datacenter %q", r.Datacenter())
	}
	n := r.LocalNode()
	if n.Name != ownNode || n.Address != "127.0.0.1" || len(n.ID) != 36 {
		t.Errorf("own node %+v", n)
	}
	if len(n.Checks) != 1 || n.Checks[0].ID != "serfHealth" || n.Checks[0].Status != weft.Passing ||
		n.Checks[0].Output != "Agent alive and reachable" {
		t.Errorf("checks of the own node: %+v", n.Checks)
	}
	must(t, r.Maintain(t.Context(), weft.InstanceKey{}, true, "new disks"))
	added := *n
	added.Checks, added.Labels, added.Extra = nil, map[string]string{"rack": "r1"}, map[string]json.RawMessage{"consul": json.RawMessage(`{"Version":"1"}`)}
	_, err := r.RegisterNode(t.Context(), added)
	must(t, err)
	_, _, index := r.Node(ownNode)
	closeRegistry(t, r)

	r = openRegistry(t, s)
	again := r.LocalNode()
	if again.ID != n.ID {
		t.Errorf("id %s after a restart; was %s", again.ID, n.ID)
	}
	if len(again.Checks) != 2 {
		t.Errorf("maintenance is lost by a restart: %+v", again.Checks)
	}
	if _, _, got := r.Node(ownNode); got != index {
		t.Errorf("a restart moved the node's index from %d to %d", index, got)
	}
	if again.Labels["rack"] != "r1" || len(again.Extra) != 1 {
		t.Errorf("what was added to the node is lost by a restart: %+v", again)
	}
	_, err = r.DeregisterNode(t.Context(), ownNode)
	wantKind(t, err, weft.Invalid, "node of this server")
}

func TestNodes(t *testing.T) {
	r := open(t)
	ctx := t.Context()
	in := instance("db", "db-a")
	in.Node = "db-1"
	_, err := r.Register(ctx, in)
	wantKind(t, err, weft.Invalid, `no node "db-1"`, "register the node first")
	_, err = r.RegisterNode(ctx, weft.Node{Name: "db-1"})
	wantKind(t, err, weft.Invalid, "address")
	_, err = r.RegisterNode(ctx, weft.Node{Name: "db-1", Address: "10.0.0.9", Checks: []weft.Check{{Name: "disk", Kind: weft.StaticCheck}}})
	must(t, err)
	register(t, r, in)
	in.ID, in.Service.Name = "cache-a", "cache"
	register(t, r, in)

	_, err = r.RegisterNode(ctx, weft.Node{Name: "db-1", Labels: map[string]string{"rack": "7"}})
	must(t, err)
	n, _, _ := r.Node("db-1")
	if n.Address != "10.0.0.9" || n.Labels["rack"] != "7" || len(n.Checks) != 1 || n.Checks[0].ID != "disk" {
		t.Errorf("after an update of its labels the node is %+v", n)
	}

	index, err := r.DeregisterNode(ctx, "db-1")
	must(t, err)
	wantInstances(t, r, "db")
	wantInstances(t, r, "cache")
	n, on, nodeIndex := r.Node("db-1")
	_, dbIndex := r.Instances(service("db"))
	_, cacheIndex := r.Instances(service("cache"))
	_, nodesIndex := r.Nodes()
	if n != nil || len(on) != 0 || nodeIndex != index || dbIndex != index || cacheIndex != index || nodesIndex != index {
		t.Errorf("gone at %d: node %v %v at %d, db at %d, cache at %d, nodes at %d", index, n, on, nodeIndex, dbIndex, cacheIndex, nodesIndex)
	}
	_, err = r.DeregisterNode(ctx, "db-1")
	wantKind(t, err, weft.NotFound, "db-1")
}

func TestInvalid(t *testing.T) {
	r := open(t)
	httpCheck := weft.Check{Kind: weft.HTTPCheck, Target: "http://127.0.0.1:1/health", Interval: weft.Duration(time.Second)}
	edit := func(f func(*weft.Check)) weft.Instance {
		c := httpCheck
		f(&c)
		return withChecks(instance("order", "o"), c)
	}
	port := func(p int) weft.Instance { in := instance("order", "o"); in.Port = p; return in }
	name := func(n string) weft.Instance { in := instance("order", "o"); in.Service.Name = n; return in }
	cases := []struct {
		name  string
		in    weft.Instance
		texts []string
	}{
		{"no name", name(""), []string{"service.name", "empty"}},
		{"long name", name(strings.Repeat("x", 129)), []string{"service.name", "at most 128"}},
		{"control characters", name("a\nb"), []string{"service.name", "control characters"}},
		{"negative port", port(-1), []string{"port", "-1"}},
		{"oversized port", port(65536), []string{"port", "65536", "1 to 65535"}},
		{"no interval", edit(func(c *weft.Check) { c.Interval = 0 }), []string{"checks[0].interval", `"10s"`}},
		{"negative interval", edit(func(c *weft.Check) { c.Interval = -1 }), []string{"checks[0].interval"}},
		{"negative timeout", edit(func(c *weft.Check) { c.Timeout = -1 }), []string{"checks[0].timeout"}},
		{"no URL", edit(func(c *weft.Check) { c.Target = "127.0.0.1:1" }), []string{"checks[0].target", "http://"}},
		{"no TCP address", edit(func(c *weft.Check) { c.Kind, c.Target = weft.TCPCheck, "localhost" }), []string{"checks[0].target", "host:port"}},
		{"TCP without interval", edit(func(c *weft.Check) { c.Kind, c.Target, c.Interval = weft.TCPCheck, "a:1", 0 }), []string{"checks[0].interval"}},
		{"no TTL", edit(func(c *weft.Check) { c.Kind = weft.TTLCheck }), []string{"checks[0].ttl", `"30s"`}},
		{"no lease TTL", edit(func(c *weft.Check) { c.Kind = weft.LeaseCheck }), []string{"checks[0].ttl"}},
		{"unknown kind", edit(func(c *weft.Check) { c.Kind = "docker" }), []string{"checks[0].kind", "docker", "http, tcp"}},
		{"negative removal", edit(func(c *weft.Check) { c.DeregisterAfter = -1 }), []string{"checks[0].deregisterAfter"}},
		{"negative threshold", edit(func(c *weft.Check) { c.FailuresBeforeCritical = -1 }), []string{"checks[0].thresholds"}},
		{"two at once", withChecks(port(-1), weft.Check{Kind: weft.TTLCheck}), []string{"port", "checks[0].ttl"}},
		{"duplicate check ids", withChecks(instance("order", "o"), ttlCheck("a", 0), ttlCheck("a", 0)), []string{`checks[1].id`, `"a" stands twice`}},
		{"bad weight", func() weft.Instance { in := instance("order", "o"); in.Weights.Warning = -1; return in }(), []string{"weights.warning"}},
		{"unknown protocol", func() weft.Instance { in := instance("order", "o"); in.Protocol = "smoke"; return in }(), []string{"protocol", "smoke", "http2"}},
		{"bad mesh address", func() weft.Instance { in := instance("order", "o"); in.MeshAddr = "x"; return in }(), []string{"meshAddr"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := r.Register(t.Context(), c.in)
			wantKind(t, err, weft.Invalid, c.texts...)
		})
	}
	big := instance("order", "o")
	big.Labels = map[string]string{"big": strings.Repeat("x", 256<<10)}
	_, err := r.Register(t.Context(), big)
	wantKind(t, err, weft.TooLarge, "limit")
	if all, _ := r.AllInstances(); len(all) != 0 {
		t.Errorf("an invalid instance was registered: %v", ids(all))
	}
}

func TestSameAgainChangesNothing(t *testing.T) {
	r := open(t)
	ctx := t.Context()
	in := withChecks(instance("order", "o-1"), ttlCheck("", weft.Critical), ttlCheck("", weft.Critical))
	register(t, r, in)
	must(t, r.Report(ctx, ownNode, "service:o-1:1", weft.Passing, "fine"))
	topics := []registry.Topic{
		registry.ServiceTopic(service("order")), registry.ServicesTopic(), registry.NodesTopic(),
		registry.NodeTopic(ownNode), registry.InstancesTopic(),
	}
	indexes := func() (all []uint64) {
		for _, topic := range topics {
			all = append(all, r.Wait(ctx, topic, 0))
		}
		return all
	}
	before := indexes()
	steps := map[string]func() error{
		"register the same":        func() error { _, err := r.Register(ctx, in); return err },
		"report the same":          func() error { return r.Report(ctx, ownNode, "service:o-1:1", weft.Passing, "fine") },
		"register the same node":   func() error { _, err := r.RegisterNode(ctx, weft.Node{Name: ownNode}); return err },
		"end no maintenance":       func() error { return r.Maintain(ctx, key("o-1"), false, "") },
		"add the same check again": func() error { return r.AddCheck(ctx, key("o-1"), ttlCheck("service:o-1:2", weft.Critical)) },
	}
	for name, step := range steps {
		must(t, step())
		if after := indexes(); !slices.Equal(before, after) {
			t.Errorf("%s moved indexes from %v to %v", name, before, after)
		}
	}
	in.Port++
	if index := register(t, r, in); index <= before[0] {
		t.Errorf("a new port did not move the index from %d: %d", before[0], index)
	}
	got, _ := r.Instance(key("o-1"))
	if got.Checks[0].Status != weft.Passing || got.Checks[0].Output != "fine" {
		t.Errorf("registering again lost the check's result: %+v", got.Checks[0])
	}
	if got.CreateIndex == got.ModifyIndex || got.Checks[0].ModifyIndex >= got.ModifyIndex {
		t.Errorf("indexes: instance %d, %d; check %d", got.CreateIndex, got.ModifyIndex, got.Checks[0].ModifyIndex)
	}
}

func TestCallerKeepsItsMemory(t *testing.T) {
	r := open(t)
	in := withChecks(instance("order", "o-1"), weft.Check{ID: "c", Kind: weft.StaticCheck, Header: map[string][]string{"A": {"1"}}})
	register(t, r, in)
	in.Tags[0], in.Labels["version"], in.Checks[0].Header["A"][0] = "changed", "changed", "changed"
	got, _ := r.Instance(key("o-1"))
	if got.Tags[0] != "http" || got.Labels["version"] != "v1" || got.Checks[0].Header["A"][0] != "1" {
		t.Errorf("the caller's later changes reach the catalogue: %+v", got)
	}
}

func TestOddNames(t *testing.T) {
	s := openStore(t, t.TempDir())
	r := openRegistry(t, s)
	names := []string{"a/b", "a%2Fb", "a b", "ä", "..", "a?b#c", "a"}
	for _, name := range names {
		in := instance(name, name)
		in.Service.Namespace = name
		register(t, r, in)
	}
	closeRegistry(t, r)
	r = openRegistry(t, s)
	for _, name := range names {
		list, index := r.Instances(weft.ServiceName{Namespace: name, Name: name})
		if len(list) != 1 || list[0].ID != name || list[0].Service.Name != name || index < 2 {
			t.Errorf("%q: %v at %d", name, ids(list), index)
		}
	}
	_, err := r.Deregister(t.Context(), key("a/b"))
	must(t, err)
	if in, _ := r.Instance(key("a%2Fb")); in == nil {
		t.Error("deregistering a/b took a%2Fb away")
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	s := openStore(t, t.TempDir())
	r := openRegistry(t, s)
	ctx := t.Context()
	register(t, r, withChecks(instance("order", "o-1"), ttlCheck("", weft.Critical)))
	register(t, r, instance("gone", "g-1"))
	must(t, r.Report(ctx, ownNode, "service:o-1", weft.Warning, "slow"))
	_, err := r.Deregister(ctx, key("g-1"))
	must(t, err)
	look := func(r *registry.Registry) map[string]any {
		m := make(map[string]any)
		var index uint64
		m["order"], index = r.Instances(service("order"))
		m["order index"] = index
		m["gone"], index = r.Instances(service("gone"))
		m["gone index"] = index
		m["services"], index = r.Services("")
		m["services index"] = index
		m["nodes"], index = r.Nodes()
		m["nodes index"] = index
		_, m["instances index"] = r.AllInstances()
		_, m["on node"], m["node index"] = r.Node(ownNode)
		return m
	}
	before := look(r)
	closeRegistry(t, r)
	r = openRegistry(t, s)
	if diff := cmp.Diff(before, look(r)); diff != "" {
		t.Errorf("a restart changed (-before +after):\n%s", diff)
	}
	if before["gone index"] == uint64(1) {
		t.Error("a deregistered service has no tombstone")
	}
	if index := register(t, r, instance("gone", "g-1")); index <= before["gone index"].(uint64) {
		t.Errorf("the index went back to %d", index)
	}
}

func TestClosed(t *testing.T) {
	r := open(t)
	index := register(t, r, instance("order", "o-1"))
	done := make(chan uint64)
	go func() { done <- r.Wait(context.Background(), registry.ServiceTopic(service("order")), index) }()
	eventually(t, "a waiter", func() bool { return r.Waiting(registry.ServiceTopic(service("order"))) == 1 })
	closeRegistry(t, r)
	if got := <-done; got != index {
		t.Errorf("the waiter got %d; want %d", got, index)
	}
	_, err := r.Register(t.Context(), instance("order", "o-2"))
	wantKind(t, err, weft.Unavailable, "closed")
	r.Subscribe(func(weft.ServiceName, uint64) { t.Error("called after Close") })()
	wantInstances(t, r, "order", "o-1")
}

func TestStoreClosesUnderRegistry(t *testing.T) {
	s := openStore(t, t.TempDir())
	var quiet *slog.Logger
	r, err := registry.Open(t.Context(), registry.Config{Store: s, Node: weft.Node{Name: ownNode, Address: "127.0.0.1"}, Logger: quiet})
	must(t, err)
	defer closeRegistry(t, r)
	must(t, s.Close())
	_, err = r.Register(t.Context(), instance("order", "o-2"))
	wantKind(t, err, weft.Unavailable)
}

func TestEndedContext(t *testing.T) {
	r := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := r.Register(ctx, instance("order", "o-1"))
	wantKind(t, err, weft.Unavailable, "canceled")
	if got := r.Wait(ctx, registry.ServiceTopic(service("order")), 5); got != 1 {
		t.Errorf("index %d; want 1", got)
	}
}

func TestManyWritersAtOnce(t *testing.T) {
	r := open(t)
	var work sync.WaitGroup
	for w := range 16 {
		work.Go(func() {
			for i := range 20 {
				in := instance(fmt.Sprintf("service-%d", i%3), fmt.Sprintf("%d-%d", w, i))
				index, err := r.Register(t.Context(), in)
				if err != nil {
					t.Error(err)
					return
				}
				got, seen := r.Instance(weft.InstanceKey{Node: ownNode, ID: in.ID})
				if got == nil || seen < index {
					t.Errorf("%s was registered at %d, and is not seen at %d", in.ID, index, seen)
				}
			}
		})
	}
	work.Wait()
	if all, _ := r.AllInstances(); len(all) != 320 {
		t.Errorf("%d instances; want 320", len(all))
	}
}

// eventually polls: for what has no channel to wait on.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("no %s in time", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestNamesOfChecks: only what comes with an instance is named for its service.
func TestNamesOfChecks(t *testing.T) {
	r := open(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	static := weft.Check{Kind: weft.StaticCheck, Status: weft.Passing}
	in := weft.Instance{ID: "web-1", Service: weft.NewServiceName("", "web"), Checks: []weft.Check{static}}
	_, err := r.Register(t.Context(), in)
	must(err)
	must(r.SetCheck(t.Context(), ownNode, "own", static))
	must(r.AddCheck(t.Context(), weft.InstanceKey{ID: "web-1"}, weft.Check{ID: "second", Kind: weft.StaticCheck}))
	put := registry.InstanceOp{Verb: "set", Instance: weft.Instance{ID: "web-2", Service: in.Service, Checks: []weft.Check{static}}}
	_, err = r.Transact(t.Context(), registry.TxnRequest{Ops: []registry.Op{{Service: &put}}})
	must(err)
	names := func(checks []weft.Check) (out []string) {
		for _, c := range checks {
			out = append(out, c.ID+"="+c.Name)
		}
		return out
	}
	web1, _ := r.Instance(weft.InstanceKey{Node: ownNode, ID: "web-1"})
	web2, _ := r.Instance(weft.InstanceKey{Node: ownNode, ID: "web-2"})
	node, _, _ := r.Node(ownNode)
	got := slices.Concat(names(web1.Checks), names(web2.Checks), names(node.Checks))
	want := []string{"second=", "service:web-1=Service 'web' check", "service:web-2=", "own=", "serfHealth=Serf Health Status"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
