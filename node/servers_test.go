package node

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/controltest"
)

// announced are the servers that Consul's clients find through a server, by their
// nodes, each with its health.
func announced(t *testing.T, s *testServer) string {
	t.Helper()
	body, _ := fetch(t, s.doors.consul, "/v1/health/service/consul")
	var entries []struct {
		Node    struct{ Node string }
		Service struct {
			ID      string
			Address string
			Port    int
		}
		Checks []struct{ Status string }
	}
	if err := json.Unmarshal([]byte(body), &entries); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	var out []string
	for _, e := range entries {
		health := "passing"
		for _, c := range e.Checks {
			if c.Status != "passing" {
				health = c.Status
			}
		}
		if e.Service.ID != "consul" || e.Service.Port == 0 {
			t.Errorf("announced: %+v", e)
		}
		out = append(out, e.Node.Node+" "+health)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func wantAnnounced(t *testing.T, s *testServer, want string) {
	t.Helper()
	controltest.Eventually(t, func() string {
		if got := announced(t, s); got != want {
			return fmt.Sprintf("servers: %s; want %s", got, want)
		}
		return ""
	})
}

// portsOf are those of the SRV records of a name.
func portsOf(t *testing.T, s *testServer, name string) (ports []int) {
	t.Helper()
	m, err := dns.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeSRV), s.doors.dnsPackets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, rr := range m.Answer {
		ports = append(ports, int(rr.(*dns.SRV).Port))
	}
	slices.Sort(ports)
	return ports
}

// Consul's clients find the server; people who list their own services do not.
func TestServerIsAnnounced(t *testing.T) {
	s := startMember(t, ServerConfig{Node: "a"})
	defer http.DefaultClient.CloseIdleConnections()
	wantAnnounced(t, s, "a passing")
	port := s.doors.consul.Addr().(*net.TCPAddr).Port
	if got := portsOf(t, s, "consul.service.consul."); !slices.Equal(got, []int{port}) {
		t.Errorf("DNS has ports %v, want %d", got, port)
	}
	for path, want := range map[string]string{
		"/v1/catalog/services": `{"consul":[]}`, "/v1/agent/services": `{}`, "/v1/agent/checks": `{}`,
	} {
		if body, _ := fetch(t, s.doors.consul, path); strings.TrimSpace(body) != want {
			t.Errorf("%s: %s, want %s", path, body, want)
		}
	}
	if body, _ := fetch(t, s.doors.eureka, "/eureka/apps"); strings.Contains(strings.ToLower(body), "consul") {
		t.Errorf("Eureka's clients are told of it: %s", body)
	}
	list, err := s.api.Services(t.Context(), "")
	status, err2 := s.api.Status(t.Context())
	if err != nil || err2 != nil || len(list) != 0 || status.Services != 0 || status.Instances != 0 {
		t.Errorf("weft's own lists: %+v, %+v, %v, %v", list, status, err, err2)
	}
	if body, _ := fetch(t, s.doors.api, "/metrics"); !strings.Contains(body, "weft_registry_instances 0") {
		t.Error("it is counted as an instance of the user's")
	}
	// It wakes nobody while it is well: its lease is renewed without a change.
	_, index := s.registry.AllInstances()
	for range 3 {
		if err := s.registry.Report(t.Context(), "a", "weft-server", weft.Passing, ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, now := s.registry.AllInstances(); now != index {
		t.Errorf("index %d, before %d", now, index)
	}
	// Who takes it out by mistake has it back.
	if _, err := s.registry.Deregister(t.Context(), weft.InstanceKey{Node: "a", ID: "consul"}); err != nil {
		t.Fatal(err)
	}
	wantAnnounced(t, s, "a passing")
}

// A server that died is critical, one that was taken out is gone; and what else is
// registered on the node of either goes on.
func TestServersOfAClusterAreAnnounced(t *testing.T) {
	servers := startCluster(t, "a", "b", "c")
	defer http.DefaultClient.CloseIdleConnections()
	a, b, c := servers[0], servers[1], servers[2]
	for _, s := range servers {
		wantAnnounced(t, s, "a passing, b passing, c passing")
	}
	app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer app.Close()
	web := weft.NewServiceName("", "web")
	in := weft.Instance{ID: "web-1", Service: web, Address: "127.0.0.1", Port: app.Listener.Addr().(*net.TCPAddr).Port,
		Checks: []weft.Check{{Kind: weft.HTTPCheck, Target: app.URL, Interval: weft.Duration(100_000_000), Status: weft.Critical}}}
	if _, err := c.registry.Register(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	healthy := func() string {
		list, _ := a.registry.Endpoints(web)
		if len(list) != 1 || list[0].ID != "c/web-1" {
			return fmt.Sprintf("endpoints of what is on the node of c: %+v", list)
		}
		return ""
	}
	controltest.Eventually(t, healthy)

	c.stop()
	wantAnnounced(t, a, "a passing, b passing, c critical")
	wantAnnounced(t, b, "a passing, b passing, c critical")
	if ports := portsOf(t, b, "consul.service.consul."); len(ports) != 2 {
		t.Errorf("DNS has ports %v, want those of two servers", ports)
	}
	if wrong := healthy(); wrong != "" {
		t.Error(wrong)
	}
	if err := a.api.RemoveServer(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	wantAnnounced(t, b, "a passing, b passing")
	if wrong := healthy(); wrong != "" {
		t.Error(wrong)
	}
	if n, _, _ := a.registry.Node("c"); n == nil {
		t.Error("the node went, too")
	}
}
