package consul

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	dialect "github.com/weftmesh/weft/registry/consul"
	"github.com/weftmesh/weft/store"
)

// newClient starts a registry with the API before it, and returns a client for it.
func newClient(t *testing.T) (*api.Client, string) {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.Open(t.Context(), registry.Config{Store: st, Node: weft.Node{Name: "server-1", Address: "127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	server := httptest.NewUnstartedServer(dialect.New(r, dialect.Config{}))
	server.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	server.Start()
	t.Cleanup(func() {
		cancel()
		server.Close()
		r.Close()
		st.Close()
	})
	address := server.Listener.Addr().String()
	return clientOf(t, address), address
}

func clientOf(t *testing.T, address string) *api.Client {
	t.Helper()
	c := api.DefaultConfig()
	c.Address, c.Token = address, "any"
	client, err := api.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in 10 s: %s", what)
		}
	}
}

func TestServiceLife(t *testing.T) {
	var ill atomic.Bool
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if ill.Load() {
			w.WriteHeader(http.StatusTooManyRequests) // a warning
		}
	}))
	defer backend.Close()
	client, _ := newClient(t)
	agent := client.Agent()
	must(t, agent.ServiceRegister(&api.AgentServiceRegistration{
		ID: "web/1", Name: "web", Tags: []string{"a", "b"}, Port: 3000, Address: "10.0.0.1",
		Meta: map[string]string{"version": "2"}, Weights: &api.AgentWeights{Passing: 5, Warning: 2},
		TaggedAddresses: map[string]api.ServiceAddress{"lan": {Address: "10.0.0.2", Port: 3001}},
		Check:           &api.AgentServiceCheck{HTTP: backend.URL, Interval: "20ms", Timeout: "1s", DeregisterCriticalServiceAfter: "30s"},
	}))
	var entry *api.ServiceEntry
	eventually(t, "the check passes", func() bool {
		entries, meta, err := client.Health().Service("web", "a", true, nil)
		must(t, err)
		if meta.LastIndex == 0 || !meta.KnownLeader || meta.DefaultACLPolicy != "allow" {
			t.Fatalf("meta %+v", meta)
		}
		if len(entries) == 1 {
			entry = entries[0]
		}
		return len(entries) == 1
	})
	s := entry.Service
	if s.ID != "web/1" || s.Port != 3000 || s.Address != "10.0.0.1" || s.Meta["version"] != "2" || s.Weights.Passing != 5 ||
		s.TaggedAddresses["lan"].Port != 3001 || entry.Node.Node != "server-1" || entry.Node.Datacenter != "dc1" {
		t.Errorf("service %+v, node %+v", s, entry.Node)
	}
	if got := entry.Checks.AggregatedStatus(); got != api.HealthPassing {
		t.Errorf("aggregated %s", got)
	}
	definition := entry.Checks[len(entry.Checks)-1].Definition
	if definition.HTTP != backend.URL || definition.IntervalDuration != 20*time.Millisecond || definition.DeregisterCriticalServiceAfterDuration != 30*time.Second {
		t.Errorf("definition %+v", definition)
	}

	ill.Store(true)
	eventually(t, "the check warns", func() bool {
		status, info, err := agent.AgentHealthServiceByID("web/1")
		must(t, err)
		return status == api.HealthWarning && info.Service.ID == "web/1" && len(info.Checks) == 1
	})
	services, err := agent.ServicesWithFilter(`Service == web and "a" in Tags`)
	must(t, err)
	if len(services) != 1 || services["web/1"].Port != 3000 {
		t.Errorf("services %+v", services)
	}
	must(t, agent.ServiceDeregister("web/1"))
	if err := agent.ServiceDeregister("web/1"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("deregistered twice: %v", err)
	}
	if status, _, err := agent.AgentHealthServiceByID("web/1"); err != nil || status != api.HealthCritical {
		t.Errorf("of a service that is gone: %s %v", status, err)
	}
	if _, _, err := agent.Service("web/1", nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a service that is gone: %v", err)
	}
}

func TestTTLAndMaintenance(t *testing.T) {
	client, _ := newClient(t)
	agent := client.Agent()
	must(t, agent.ServiceRegister(&api.AgentServiceRegistration{Name: "foo", Checks: api.AgentServiceChecks{
		{TTL: "15s"}, {TTL: "15s", CheckID: "second", Status: "warning"},
	}}))
	checks, err := agent.Checks()
	must(t, err)
	if checks["service:foo:1"].Status != api.HealthCritical || checks["second"].Status != api.HealthWarning || len(checks) != 2 { // serfHealth is the catalogue's
		t.Errorf("checks %+v", checks)
	}
	must(t, agent.UpdateTTL("service:foo:1", "out", api.HealthPassing))
	must(t, agent.PassTTL("second", "note"))
	list, _, err := client.Health().Checks("foo", nil)
	must(t, err)
	if list.AggregatedStatus() != api.HealthPassing || len(list) != 2 {
		t.Errorf("after both passed: %+v", list)
	}
	if err := agent.PassTTL("none", ""); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("an unknown check: %v", err)
	}

	must(t, agent.EnableServiceMaintenance("foo", "broken"))
	list, _, err = client.Health().Checks("foo", nil)
	must(t, err)
	if list.AggregatedStatus() != api.HealthMaint {
		t.Errorf("in maintenance: %s", list.AggregatedStatus())
	}
	must(t, agent.DisableServiceMaintenance("foo"))
	must(t, agent.EnableNodeMaintenance("broken"))
	entries, _, err := client.Health().Service("foo", "", false, nil)
	must(t, err)
	if entries[0].Checks.AggregatedStatus() != api.HealthMaint {
		t.Errorf("node in maintenance: %+v", entries[0].Checks)
	}
	must(t, agent.DisableNodeMaintenance())

	must(t, agent.CheckRegister(&api.AgentCheckRegistration{Name: "own", ServiceID: "foo", AgentServiceCheck: api.AgentServiceCheck{TTL: "15s"}}))
	must(t, agent.ServiceRegisterOpts(&api.AgentServiceRegistration{Name: "foo"}, api.ServiceRegisterOpts{ReplaceExistingChecks: true}))
	checks, err = agent.ChecksWithFilter("ServiceID == foo")
	must(t, err)
	if len(checks) != 0 {
		t.Errorf("after replacing the checks: %+v", checks)
	}
	if err := agent.CheckDeregister("own"); err == nil {
		t.Error("a check that is gone was deregistered")
	}
}

func TestCatalog(t *testing.T) {
	client, _ := newClient(t)
	catalog := client.Catalog()
	reg := &api.CatalogRegistration{
		Node: "far", Address: "10.0.0.9", NodeMeta: map[string]string{"os": "linux"}, Datacenter: "dc1",
		Service: &api.AgentService{ID: "db-1", Service: "db", Tags: []string{"v1"}, Port: 5432},
		Check:   &api.AgentCheck{Node: "far", CheckID: "db:up", Name: "up", Status: api.HealthPassing, ServiceID: "db-1"},
		Checks: api.HealthChecks{{CheckID: "node:up", Name: "up", Status: api.HealthPassing,
			Definition: api.HealthCheckDefinition{TCP: "10.0.0.9:22", IntervalDuration: 5 * time.Second}}},
	}
	_, err := catalog.Register(reg, nil)
	must(t, err)
	nodes, _, err := catalog.Nodes(&api.QueryOptions{NodeMeta: map[string]string{"os": "linux"}})
	must(t, err)
	if len(nodes) != 1 || nodes[0].Node != "far" || nodes[0].TaggedAddresses["lan"] != "10.0.0.9" {
		t.Errorf("nodes %+v", nodes)
	}
	services, _, err := catalog.Services(&api.QueryOptions{AllowStale: true})
	must(t, err)
	if !slices.Equal(services["db"], []string{"v1"}) {
		t.Errorf("services %v", services)
	}
	list, _, err := catalog.ServiceMultipleTags("db", []string{"v1"}, &api.QueryOptions{Filter: "NodeMeta.os == linux"})
	must(t, err)
	if len(list) != 1 || list[0].ServicePort != 5432 || list[0].Address != "10.0.0.9" {
		t.Errorf("instances %+v", list)
	}
	node, _, err := catalog.Node("far", nil)
	must(t, err)
	if node.Services["db-1"].Port != 5432 {
		t.Errorf("node %+v", node)
	}
	byList, _, err := catalog.NodeServiceList("far", nil)
	must(t, err)
	if len(byList.Services) != 1 || byList.Services[0].ID != "db-1" {
		t.Errorf("services of the node %+v", byList)
	}
	state, _, err := client.Health().State(api.HealthPassing, nil)
	must(t, err)
	if len(state) != 3 {
		t.Errorf("passing: %+v", state)
	}
	_, err = catalog.Deregister(&api.CatalogDeregistration{Node: "far"}, nil)
	must(t, err)
	if node, _, err = catalog.Node("far", nil); err != nil || node != nil {
		t.Errorf("a node that is gone: %+v %v", node, err)
	}
	if dcs, err := catalog.Datacenters(); err != nil || !slices.Equal(dcs, []string{"dc1"}) {
		t.Errorf("datacenters %v %v", dcs, err)
	}
	if _, _, err := catalog.Nodes(&api.QueryOptions{Datacenter: "dc2"}); err == nil || !api.IsRetryableError(err) {
		t.Errorf("another datacenter: %v", err)
	}
}

func TestAgentAndStatus(t *testing.T) {
	client, _ := newClient(t)
	name, err := client.Agent().NodeName()
	must(t, err)
	if name != "server-1" {
		t.Errorf("node %q", name)
	}
	members, err := client.Agent().Members(false)
	must(t, err)
	if len(members) != 1 || members[0].Status != 1 || !members[0].IsConsulServer() || members[0].ACLMode() != api.ACLModeDisabled {
		t.Errorf("members %+v", members)
	}
	leader, err := client.Status().Leader()
	must(t, err)
	peers, err := client.Status().Peers()
	must(t, err)
	if leader == "" || !slices.Equal(peers, []string{leader}) {
		t.Errorf("leader %q of %v", leader, peers)
	}
	if _, _, err := client.Operator().AreaList(nil); err == nil || !strings.Contains(err.Error(), "501") {
		t.Errorf("network areas, which weft does not have: %v", err)
	}
}

// A blocking query returns with a change, and its index goes on from there.
func TestBlockingQuery(t *testing.T) {
	client, _ := newClient(t)
	register := func(name string, port int) {
		t.Helper()
		must(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: name, Port: port}))
	}
	register("web", 1)
	_, meta, err := client.Health().Service("web", "", false, nil)
	must(t, err)
	type result struct {
		port  int
		index uint64
		err   error
	}
	results := make(chan result, 1)
	go func() {
		entries, meta, err := client.Health().Service("web", "", false, &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Minute})
		if err != nil || len(entries) != 1 {
			results <- result{err: err}
			return
		}
		results <- result{port: entries[0].Service.Port, index: meta.LastIndex}
	}()
	for i := range 50 {
		register("other", i+1)
	}
	select {
	case r := <-results:
		t.Fatalf("woken by another service: %+v", r)
	default:
	}
	register("web", 2)
	if r := <-results; r.err != nil || r.port != 2 || r.index <= meta.LastIndex {
		t.Errorf("woken with %+v after index %d", r, meta.LastIndex)
	}

	start := time.Now()
	_, again, err := client.Catalog().Service("web", "", &api.QueryOptions{WaitIndex: 1 << 40, WaitTime: 50 * time.Millisecond})
	must(t, err)
	if took := time.Since(start); took < 50*time.Millisecond || again.LastIndex >= 1<<40 {
		t.Errorf("after %v: %+v", took, again)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	opts := (&api.QueryOptions{WaitIndex: again.LastIndex}).WithContext(ctx)
	if _, _, err := client.Health().Service("web", "", false, opts); err == nil {
		t.Error("a cancelled query answered")
	}
}
