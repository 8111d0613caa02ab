package registry_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

func wantEndpoints(t *testing.T, r *registry.Registry, service string, want ...string) {
	t.Helper()
	list, index := r.Endpoints(weft.NewServiceName("", service))
	var got []string
	for _, ep := range list {
		got = append(got, ep.ID)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("endpoints of %s (-want +got):\n%s", service, diff)
	}
	if _, i := r.Instances(weft.NewServiceName("", service)); i != index {
		t.Errorf("endpoints have index %d; instances %d", index, i)
	}
}

func TestEndpointsFollowHealth(t *testing.T) {
	r := open(t)
	ctx := t.Context()
	_, err := r.RegisterNode(ctx, weft.Node{Name: "n", Address: "10.0.0.7"})
	must(t, err)
	in := withChecks(instance("order", "o"), ttlCheck("alive", weft.Critical))
	in.Node = "n"
	register(t, r, in)
	wantEndpoints(t, r, "order")
	static := func(s weft.Health) weft.Check { return weft.Check{Kind: weft.StaticCheck, Status: s} }
	steps := []struct {
		name string
		do   func() error
		want []string
	}{
		{"warning", func() error { return r.Report(ctx, "n", "alive", weft.Warning, "") }, []string{"n/o"}},
		{"passing", func() error { return r.Report(ctx, "n", "alive", weft.Passing, "") }, []string{"n/o"}},
		{"the node is critical", func() error { return r.SetCheck(ctx, "n", "disk", static(weft.Critical)) }, nil},
		{"the node warns", func() error { return r.SetCheck(ctx, "n", "disk", static(weft.Warning)) }, []string{"n/o"}},
		{"the instance rests", func() error { return r.Maintain(ctx, weft.InstanceKey{Node: "n", ID: "o"}, true, "") }, nil},
		{"it is back", func() error { return r.Maintain(ctx, weft.InstanceKey{Node: "n", ID: "o"}, false, "") }, []string{"n/o"}},
		{"the node rests", func() error { return r.Maintain(ctx, weft.InstanceKey{Node: "n"}, true, "") }, nil},
		{"it is back too", func() error { return r.Maintain(ctx, weft.InstanceKey{Node: "n"}, false, "") }, []string{"n/o"}},
		{"a second check", func() error { return r.AddCheck(ctx, weft.InstanceKey{Node: "n", ID: "o"}, static(weft.Critical)) }, nil},
		{"is removed", func() error { return r.RemoveCheck(ctx, "n", "service:o") }, []string{"n/o"}},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			must(t, s.do())
			wantEndpoints(t, r, "order", s.want...)
		})
	}
}

func TestEndpointFields(t *testing.T) {
	r := open(t)
	_, err := r.RegisterNode(t.Context(), weft.Node{Name: "n", Address: "fd00::7"})
	must(t, err)
	plain := weft.Instance{ID: "plain", Node: "n", Service: service("order"), Port: 80, Zone: "b",
		Weights: weft.Weights{Passing: 10, Warning: 2}, Labels: map[string]string{"version": "v2"}}
	slow := plain
	slow.ID, slow.Address = "slow", "10.1.1.1"
	slow.Checks = []weft.Check{{Kind: weft.StaticCheck, Status: weft.Warning}}
	mesh := plain
	mesh.Protocol = weft.GRPC
	mesh.ID, mesh.MeshAddr, mesh.Identity, mesh.Weights = "mesh", "127.0.0.9:15006", "spiffe://cluster.local/ns/default/sa/order", weft.Weights{}
	for _, in := range []weft.Instance{plain, slow, mesh} {
		register(t, r, in)
	}
	got, _ := r.Endpoints(service("order"))
	labels := map[string]string{"version": "v2"}
	want := []weft.Endpoint{
		{ID: "n/mesh", Address: "127.0.0.9:15006", Identity: "spiffe://cluster.local/ns/default/sa/order", Weight: 1, Zone: "b", Labels: labels, Protocol: weft.GRPC},
		{ID: "n/plain", Address: "[fd00::7]:80", Weight: 10, Zone: "b", Labels: labels},
		{ID: "n/slow", Address: "10.1.1.1:80", Weight: 2, Zone: "b", Labels: labels},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
	_, err = r.RegisterNode(t.Context(), weft.Node{Name: "n", Address: "10.2.2.2"})
	must(t, err)
	if got, _ = r.Endpoints(service("order")); got[1].Address != "10.2.2.2:80" {
		t.Errorf("the node moved, and the endpoint stays at %s", got[1].Address)
	}
}

func TestMaintenance(t *testing.T) {
	r := open(t)
	ctx := t.Context()
	register(t, r, instance("order", "o"))
	must(t, r.Maintain(ctx, key("o"), true, "new version"))
	got, _ := r.Instance(key("o"))
	c := got.Checks[0]
	if c.ID != "_service_maintenance:o" || c.Name != "Service Maintenance Mode" || c.Notes != "new version" ||
		c.Status != weft.Critical || c.Kind != weft.MaintenanceCheck {
		t.Errorf("maintenance check of the instance: %+v", c)
	}
	moved := instance("order", "o")
	moved.Port++
	register(t, r, moved)
	if got, _ = r.Instance(key("o")); len(got.Checks) != 1 {
		t.Error("registering again ended the maintenance")
	}
	must(t, r.Maintain(ctx, key("o"), false, ""))
	if got, _ = r.Instance(key("o")); len(got.Checks) != 0 {
		t.Errorf("after the maintenance: %+v", got.Checks)
	}
	must(t, r.Maintain(ctx, weft.InstanceKey{}, true, ""))
	checks := r.LocalNode().Checks
	if c = checks[0]; c.ID != "_node_maintenance" || c.Name != "Node Maintenance Mode" || c.Notes == "" {
		t.Errorf("maintenance check of the node: %+v", checks)
	}
	wantKind(t, r.Maintain(ctx, key("nobody"), true, ""), weft.NotFound, "nobody")
	wantKind(t, r.Maintain(ctx, weft.InstanceKey{Node: "nowhere"}, true, ""), weft.NotFound, "nowhere")
}

func TestChecksOfANode(t *testing.T) {
	r := open(t)
	ctx := t.Context()
	register(t, r, withChecks(instance("order", "a"), ttlCheck("alive", weft.Critical)))
	_, err := r.Register(ctx, withChecks(instance("order", "b"), ttlCheck("alive", weft.Critical)))
	wantKind(t, err, weft.Conflict, `"alive"`, "instance a", "choose another")
	register(t, r, withChecks(instance("order", "b"), ttlCheck("", weft.Critical)))
	wantKind(t, r.AddCheck(ctx, key("b"), ttlCheck("alive", weft.Critical)), weft.Conflict, "instance a")
	wantKind(t, r.AddCheck(ctx, key("b"), ttlCheck("serfHealth", weft.Critical)), weft.Conflict, "the node itself")

	must(t, r.SetCheck(ctx, "", "alive", weft.Check{Kind: weft.StaticCheck, Status: weft.Warning}))
	if got, _ := r.Instance(key("a")); got.Checks[0].Kind != weft.StaticCheck || got.Checks[0].Status != weft.Warning {
		t.Errorf("SetCheck did not reach the instance's check: %+v", got.Checks)
	}
	must(t, r.SetCheck(ctx, "", "new", ttlCheck("", weft.Passing)))
	if checks := r.LocalNode().Checks; len(checks) != 2 || checks[0].ID != "new" {
		t.Errorf("SetCheck of an unknown id did not make a check of the node: %+v", checks)
	}
	must(t, r.AddCheck(ctx, weft.InstanceKey{}, weft.Check{Name: "disk", Kind: weft.StaticCheck}))
	if checks := r.LocalNode().Checks; len(checks) != 3 || checks[0].ID != "disk" {
		t.Errorf("checks of the node: %+v", checks)
	}
	must(t, r.RemoveCheck(ctx, "", "new"))
	wantKind(t, r.RemoveCheck(ctx, "", "new"), weft.NotFound, "new")
	wantKind(t, r.AddCheck(ctx, key("nobody"), ttlCheck("", 0)), weft.NotFound, "nobody")
	wantKind(t, r.AddCheck(ctx, key("a"), weft.Check{ID: "x", Kind: "y"}), weft.Invalid, "kind")

	_, err = r.Deregister(ctx, key("a"))
	must(t, err)
	register(t, r, withChecks(instance("order", "b"), ttlCheck("alive", weft.Critical))) // free again
}

func TestReport(t *testing.T) {
	r := open(t)
	ctx := t.Context()
	register(t, r, withChecks(instance("order", "o"), ttlCheck("", weft.Critical), weft.Check{ID: "static", Kind: weft.StaticCheck}))
	must(t, r.Report(ctx, "", "service:o:1", weft.Warning, strings.Repeat("long ", 2000)))
	got, _ := r.Instance(key("o"))
	if c := got.Checks[0]; c.Status != weft.Warning || len(c.Output) != 4<<10 {
		t.Errorf("status %s with %d bytes of output; want a warning with 4 KiB", c.Status, len(c.Output))
	}
	wantKind(t, r.Report(ctx, "", "nothing", weft.Passing, ""), weft.NotFound, "nothing")
	wantKind(t, r.Report(ctx, "", "static", weft.Passing, ""), weft.Invalid, "static", "ttl")
	wantKind(t, r.Report(ctx, "", "service:o:1", weft.Maintenance, ""), weft.Invalid, "maintenance")
}

// What a check says is told although its status stays: the first word of one that
// began critical is why, and later ones are rare.
func TestOutputWhileTheStatusStays(t *testing.T) {
	r := open(t)
	ctx := t.Context()
	register(t, r, withChecks(instance("order", "o"), ttlCheck("ttl", weft.Critical), weft.Check{
		ID: "tcp", Kind: weft.TCPCheck, Status: weft.Critical, Target: closedPort(t), Interval: weft.Duration(time.Millisecond)}))
	output := func(i int) string {
		got, _ := r.Instance(key("o"))
		return got.Checks[i].Output // they are sorted by their ids
	}
	waitUntil(t, r, registry.ServiceTopic(service("order")), "explained", func() bool { return strings.Contains(output(0), "refused") })
	for _, said := range []struct{ status, output, want string }{
		{"critical", "the disk is full", "the disk is full"},
		{"critical", "", "the disk is full"},
		{"critical", "it is still full", "the disk is full"},
		{"warning", "nearly full", "nearly full"},
		{"warning", "nearly full: 97 %", "nearly full: 97 %"},
		{"warning", "nearly full: 96 %", "nearly full: 97 %"},
	} {
		status := map[string]weft.Health{"critical": weft.Critical, "warning": weft.Warning}[said.status]
		must(t, r.Report(ctx, "", "ttl", status, said.output))
		if got := output(1); got != said.want {
			t.Errorf("after %s %q the output is %q, want %q", said.status, said.output, got, said.want)
		}
	}
}

func TestRegisteringAgainKeepsTheResult(t *testing.T) {
	http := weft.Check{ID: "c", Kind: weft.HTTPCheck, Target: "http://127.0.0.1:1/", Interval: weft.Duration(time.Hour), Status: weft.Critical}
	lease := weft.Check{ID: "c", Kind: weft.LeaseCheck, TTL: weft.Duration(time.Hour), Status: weft.Critical}
	static := weft.Check{ID: "c", Kind: weft.StaticCheck, Status: weft.Critical}
	with := func(c weft.Check, s weft.Health) weft.Check { c.Status = s; return c }
	moved := with(http, weft.Critical)
	moved.Target += "other"
	cases := []struct {
		name         string
		first, again weft.Check
		want         weft.Health
	}{
		{"a probed check stays passing", with(http, weft.Passing), http, weft.Passing},
		{"a probed check stays critical", http, with(http, weft.Passing), weft.Critical},
		{"a probed check of another target begins anew", with(http, weft.Passing), moved, weft.Critical},
		{"a lease stays passing", with(lease, weft.Passing), lease, weft.Passing},
		{"a lease is renewed", lease, with(lease, weft.Passing), weft.Passing},
		{"a static check is what is said", with(static, weft.Passing), static, weft.Critical},
		{"another kind begins anew", with(static, weft.Passing), lease, weft.Critical},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := open(t)
			register(t, r, withChecks(instance("order", "o"), c.first))
			register(t, r, withChecks(instance("order", "o"), c.again))
			got, _ := r.Instance(key("o"))
			if got.Checks[0].Status != c.want {
				t.Errorf("%s; want %s", got.Checks[0].Status, c.want)
			}
		})
	}
}

// TestProbedFromEndToEnd: what is registered critical turns passing by its probes,
// then critical with its server, and goes.
func TestProbedFromEndToEnd(t *testing.T) {
	r := open(t)
	var broken atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if broken.Load() {
			http.Error(w, "database is gone", http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	in := withChecks(instance("order", "o"),
		weft.Check{Kind: weft.HTTPCheck, Target: server.URL + "/health", Status: weft.Critical,
			Interval: weft.Duration(20 * time.Millisecond), DeregisterAfter: weft.Duration(700 * time.Millisecond)},
		weft.Check{Kind: weft.TCPCheck, Target: server.Listener.Addr().String(), Status: weft.Critical,
			Interval: weft.Duration(20 * time.Millisecond)})
	register(t, r, in)
	topic := registry.ServiceTopic(service("order"))
	waitUntil(t, r, topic, "passing", func() bool { list, _ := r.Endpoints(service("order")); return len(list) == 1 })
	broken.Store(true)
	waitUntil(t, r, topic, "critical", func() bool { list, _ := r.Endpoints(service("order")); return len(list) == 0 })
	got, _ := r.Instance(key("o"))
	if got == nil || got.Checks[0].Status != weft.Critical || !strings.Contains(got.Checks[0].Output, "database is gone") {
		t.Errorf("after the failure: %+v", got)
	}
	waitUntil(t, r, topic, "gone", func() bool { list, _ := r.Instances(service("order")); return len(list) == 0 })
}

// waitUntil waits as a reader does, until ok holds.
func waitUntil(t *testing.T, r *registry.Registry, topic registry.Topic, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		index := r.Wait(ctx, topic, 0)
		if ok() {
			return
		}
		if r.Wait(ctx, topic, index); ctx.Err() != nil {
			t.Fatalf("not %s in time", what)
		}
	}
}

func health(r *registry.Registry, id string) weft.Health {
	if in, _ := r.Instance(key(id)); in != nil {
		return in.Health()
	}
	return weft.Maintenance // gone
}

func TestLeaseLapsesAndComesBack(t *testing.T) {
	r := open(t)
	lease := weft.Check{ID: "lease", Kind: weft.LeaseCheck, TTL: weft.Duration(20 * time.Millisecond)}
	register(t, r, withChecks(instance("order", "o"), lease))
	waitUntil(t, r, registry.ServiceTopic(service("order")), "critical", func() bool { return health(r, "o") == weft.Critical })
	got, _ := r.Instance(key("o"))
	if c := got.Checks[0]; !strings.Contains(c.Output, "no report for 20ms") {
		t.Errorf("after the lapse: %+v", c)
	}
	lease.TTL = weft.Duration(time.Hour)
	register(t, r, withChecks(instance("order", "o"), lease))
	wantEndpoints(t, r, "order", ownNode+"/o")
}

func TestCatalogueRegistrationIsReaped(t *testing.T) {
	r := open(t)
	ctx := t.Context()
	_, err := r.RegisterNode(ctx, weft.Node{Name: "external", Address: "192.0.2.1"})
	must(t, err)
	c := weft.Check{ID: "ping", Kind: weft.StaticCheck, Status: weft.Passing, DeregisterAfter: weft.Duration(30 * time.Millisecond)}
	in := withChecks(instance("billing", "b"), c)
	in.Node, in.Dialect = "external", "catalog"
	register(t, r, in)
	c.Status = weft.Critical
	must(t, r.SetCheck(ctx, "external", "ping", c))
	waitUntil(t, r, registry.ServiceTopic(service("billing")), "gone", func() bool {
		list, _ := r.Instances(service("billing"))
		return len(list) == 0
	})
}

// closedPort returns an address where nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

func TestProbeOfAClosedPort(t *testing.T) {
	r := open(t)
	register(t, r, withChecks(instance("order", "o"), weft.Check{
		ID: "tcp", Kind: weft.TCPCheck, Target: closedPort(t), Interval: weft.Duration(10 * time.Millisecond)}))
	waitUntil(t, r, registry.ServiceTopic(service("order")), "critical", func() bool { return health(r, "o") == weft.Critical })
	got, _ := r.Instance(key("o"))
	if c := got.Checks[0]; !strings.Contains(c.Output, "refused") {
		t.Errorf("%+v", c)
	}
}
