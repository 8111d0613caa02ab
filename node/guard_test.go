package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control/controltest"
)

// fetch asks a door of the server.
func fetch(t *testing.T, door net.Listener, path string) (body string, header http.Header) {
	t.Helper()
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+door.Addr().String()+path, nil)
	r.Header.Set("Accept", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), resp.Header
}

// look is what every view says of a service: which ports get traffic, and why if
// they failed.
type look struct {
	ports map[string][]string
	why   map[string]string
}

func lookAt(t *testing.T, s *testServer, f *follower, service string) look {
	t.Helper()
	l := look{ports: map[string][]string{}, why: map[string]string{}}
	add := func(view string, port int) { l.ports[view] = append(l.ports[view], fmt.Sprint(port)) }

	body, h := fetch(t, s.doors.consul, "/v1/health/service/"+service+"?passing")
	var entries []struct{ Service struct{ Port int } }
	if err := json.Unmarshal([]byte(body), &entries); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	for _, e := range entries {
		add("consul", e.Service.Port)
	}
	l.why["consul"] = h.Get("X-Weft-Guard")

	body, h = fetch(t, s.doors.eureka, "/eureka/apps/"+service)
	var app struct {
		Application struct {
			Instance []struct {
				Status string
				Port   struct {
					Number int `json:"$"`
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(body), &app); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	for _, in := range app.Application.Instance {
		if in.Status == "UP" {
			add("eureka", in.Port.Number)
		}
	}
	l.why["eureka"] = h.Get("X-Weft-Preserved")

	q := new(dns.Msg).SetQuestion(service+".service.consul.", dns.TypeSRV).SetEdns0(1232, false)
	answer, err := dns.Exchange(q, s.doors.dnsPackets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, rr := range answer.Answer {
		add("dns", int(rr.(*dns.SRV).Port))
	}
	l.why["dns"] = ""
	for _, o := range answer.IsEdns0().Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok && e.InfoCode == dns.ExtendedErrorCodeStaleAnswer {
			l.why["dns"] = e.ExtraText
		}
	}

	l.why["mesh"] = ""
	if host := f.Snapshot().Hosts[service]; host != nil {
		for _, e := range f.Snapshot().Services[weft.NewServiceName("", service)].Endpoints {
			_, port, _ := net.SplitHostPort(e.Address)
			l.ports["mesh"] = append(l.ports["mesh"], port)
		}
	}
	x, err := s.api.Explain(t.Context(), client.ExplainRequest{URL: "http://" + service + "/"})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range x.Routes[0].Destinations {
		l.why["mesh"] = d.Guard
	}

	l.why["weft"] = ""
	instances, err := s.api.Instances(t.Context(), weft.NewServiceName("", service))
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range instances {
		if in.Health <= weft.Warning || in.Kept != "" {
			_, port, _ := net.SplitHostPort(in.Address)
			l.ports["weft"] = append(l.ports["weft"], port)
			l.why["weft"] = in.Kept
		}
	}
	return l
}

// wrong says in which view something else gets traffic than ports, or another reason
// is told than why begins with; "" when all is well.
func (l look) wrong(ports []string, why string) string {
	for _, view := range []string{"consul", "eureka", "dns", "mesh", "weft"} {
		got := slices.Sorted(slices.Values(l.ports[view]))
		if !slices.Equal(got, ports) {
			return fmt.Sprintf("%s: ports %v get traffic, want %v", view, got, ports)
		}
		if told := l.why[view]; (told == "") != (why == "") || !strings.Contains(told, why) {
			return fmt.Sprintf("%s: the reason is %q, want %q", view, told, why)
		}
	}
	return ""
}

// All instances of a service fail their checks at once: every view holds them, and
// says why. When the guard is released every view is empty at once.
func TestGuardInEveryView(t *testing.T) {
	s := startMember(t, ServerConfig{Node: "a"})
	defer http.DefaultClient.CloseIdleConnections()
	var ill atomic.Bool
	var ports []string
	for i := range 3 {
		app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if ill.Load() {
				http.Error(w, "the database is away", http.StatusServiceUnavailable)
			}
		}))
		defer app.Close()
		_, port, _ := net.SplitHostPort(app.Listener.Addr().String())
		ports = append(ports, port)
		body := fmt.Sprintf(`{"ID": "web-%d", "Name": "web", "Address": "127.0.0.1", "Port": %s, "Check": {"HTTP": %q, "Interval": "50ms", "Timeout": "1s"}}`, i, port, app.URL)
		r, _ := http.NewRequest(http.MethodPut, "http://"+s.doors.consul.Addr().String()+"/v1/agent/service/register", strings.NewReader(body))
		resp, err := http.DefaultClient.Do(r)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		_ = resp.Body.Close()
	}
	slices.Sort(ports)
	web := weft.NewServiceName("", "web")
	f := follow(t, s, "caller", "web")
	every := func(ports []string, why string) {
		t.Helper()
		controltest.Eventually(t, func() string { return lookAt(t, s, f, "web").wrong(ports, why) })
	}
	every(ports, "")

	ill.Store(true)
	every(ports, "3 of 3 instances failed")
	status, _ := fetch(t, s.doors.eureka, "/eureka/status")
	if !strings.Contains(status, `"name":"WEB"`) || !strings.Contains(status, "the database is away") {
		t.Errorf("Eureka's status does not tell of it: %s", status)
	}
	list, err := s.api.Services(t.Context(), "")
	if err != nil || len(list) != 1 || list[0].Kept != 3 || list[0].Healthy != 0 || !strings.Contains(list[0].Guard, "3 of 3") {
		t.Errorf("services: %+v, %v", list, err)
	}
	guards, err := s.api.Guards(t.Context())
	if err != nil || len(guards) != 1 || len(guards[0].Kept) != 3 {
		t.Errorf("guards: %+v, %v", guards, err)
	}

	if err := s.api.ReleaseGuard(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	at := lookAt(t, s, f, "web") // at once: but for the proxy, which hears of it in a moment
	at.ports["mesh"] = nil
	if wrong := at.wrong(nil, ""); wrong != "" {
		t.Errorf("after the release: %s", wrong)
	}
	every(nil, "")

	ill.Store(false)
	every(ports, "")
}
