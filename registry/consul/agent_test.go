package consul

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/weftmesh/weft"
)

func baseContext() (func(net.Listener) context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	return func(net.Listener) context.Context { return ctx }, cancel
}

const ownNode = `{"ID":"uuid","Node":"server-1","Address":"127.0.0.1","Datacenter":"dc1",
	"TaggedAddresses":{"lan":"127.0.0.1","lan_ipv4":"127.0.0.1","wan":"127.0.0.1","wan_ipv4":"127.0.0.1"},"Meta":{"rack":"r1"}}`

const aliveCheck = `{"Node":"server-1","CheckID":"serfHealth","Name":"Serf Health Status","Status":"passing","Notes":"",
	"Output":"Agent alive and reachable","ServiceID":"","ServiceName":"","ServiceTags":[],"Type":"","Interval":"","Timeout":"",
	"ExposedPort":0,"Definition":{}}`

// An instance is critical until its HTTP check passes, and then shows everywhere
// with what it registered.
func TestRegisterWithHTTPCheck(t *testing.T) {
	var ok atomic.Bool
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "POST" || r.Header.Get("X-Probe") != "yes" || !ok.Load() {
			w.WriteHeader(500)
		}
	}))
	defer backend.Close()
	w := newWorld(t)
	w.put("/v1/agent/service/register", `{
		"ID": "web-1", "Name": "web", "Tags": ["a", "b"], "Port": 3000, "Address": "10.0.0.1",
		"Meta": {"version": "2"}, "Weights": {"Passing": 10, "Warning": 2}, "EnableTagOverride": true,
		"TaggedAddresses": {"lan": {"Address": "10.0.0.2", "Port": 3001}}, "Locality": {"Zone": "z1"},
		"Check": {"HTTP": "`+backend.URL+`", "Method": "POST", "Header": {"X-Probe": ["yes"]}, "Interval": "20ms", "Timeout": "5s",
			"DeregisterCriticalServiceAfter": "30s", "Notes": "n"}
	}`)
	w.get("/v1/health/service/web?passing").wantJSON(`[]`)
	if got := w.get("/v1/health/service/web").field("0.Checks.1.Status"); got != "critical" {
		t.Errorf("a new check is %v", got)
	}
	ok.Store(true)
	eventually(t, "the check passes", func() bool { return w.get("/v1/health/service/web?passing=1").ids() == "web-1" })

	service := `"ID":"web-1","Service":"web","Tags":["a","b"],"Meta":{"version":"2"},"Address":"10.0.0.1","Port":3000,
		"TaggedAddresses":{"lan":{"Address":"10.0.0.2","Port":3001}},"Weights":{"Passing":10,"Warning":2},
		"EnableTagOverride":true,"Locality":{"Zone":"z1"}`
	check := `{"Node":"server-1","CheckID":"service:web-1","Name":"Service 'web' check","Status":"passing","Notes":"n",
		"ServiceID":"web-1","ServiceName":"web","ServiceTags":["a","b"],"Type":"http","Interval":"20ms","Timeout":"5s","ExposedPort":0,
		"Definition":{"HTTP":"` + backend.URL + `","Method":"POST","Interval":"20ms","Timeout":"5s","DeregisterCriticalServiceAfter":"30s"},"Output":`
	output, _ := w.get("/v1/health/checks/web").field("0.Output").(string)
	if !strings.Contains(output, "200") {
		t.Errorf("output %q", output)
	}
	check += `"` + output + `"}`
	agentService := `{` + service + `,"Datacenter":"dc1"}`
	service += `,"Proxy":{"MeshGateway":{},"Expose":{}},"Connect":{}` // of the catalogue, always
	w.get("/v1/health/service/web").wantJSON(`[{"Node":` + ownNode + `,"Service":{` + service + `},"Checks":[` + aliveCheck + `,` + check + `]}]`)
	w.get("/v1/health/checks/web").wantJSON(`[` + check + `]`)
	w.get("/v1/health/node/server-1").wantJSON(`[` + aliveCheck + `,` + check + `]`)
	w.get("/v1/health/state/any").wantJSON(`[` + aliveCheck + `,` + check + `]`)
	w.get("/v1/health/state/passing").wantJSON(`[` + aliveCheck + `,` + check + `]`)
	w.get("/v1/health/state/critical").wantJSON(`[]`)
	w.get("/v1/agent/checks").wantJSON(`{"service:web-1":` + check + `}`)
	w.get("/v1/agent/services").wantJSON(`{"web-1":` + agentService + `}`)
	w.get("/v1/agent/service/web-1").wantJSON(agentService)
	w.get("/v1/agent/health/service/id/web-1").wantJSON(`{"AggregatedStatus":"passing","Service":` + agentService + `,"Checks":[` + check + `]}`)
	w.get("/v1/catalog/services").wantJSON(`{"web":["a","b"]}`)
	w.get("/v1/catalog/node/server-1").wantJSON(`{"Node":` + ownNode + `,"Services":{"web-1":{` + service + `}}}`)
	w.get("/v1/catalog/node-services/server-1").wantJSON(`{"Node":` + ownNode + `,"Services":[{` + service + `}]}`)
	w.get("/v1/catalog/service/web").wantJSON(`[{"ID":"uuid","Node":"server-1","Address":"127.0.0.1","Datacenter":"dc1",
		"TaggedAddresses":{"lan":"127.0.0.1","lan_ipv4":"127.0.0.1","wan":"127.0.0.1","wan_ipv4":"127.0.0.1"},
		"NodeMeta":{"rack":"r1"},"ServiceKind":"","ServiceProxy":{"MeshGateway":{},"Expose":{}},"ServiceConnect":{},
		"ServiceID":"web-1","ServiceName":"web","ServiceTags":["a","b"],"ServiceAddress":"10.0.0.1","ServicePort":3000,
		"ServiceTaggedAddresses":{"lan":{"Address":"10.0.0.2","Port":3001}},"ServiceWeights":{"Passing":10,"Warning":2},
		"ServiceMeta":{"version":"2"},"ServiceEnableTagOverride":true,"ServiceLocality":{"Zone":"z1"}}]`)

	w.put("/v1/agent/service/deregister/web-1", "")
	w.get("/v1/health/service/web").wantJSON(`[]`)
	w.get("/v1/catalog/services").wantJSON(`{}`)
}

// The least that a client sends: a name. The id is the name, and no key is null.
func TestRegisterNameOnly(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/agent/service/register", `{"name":"web","check":{},"checks":null,"tags":null}`)
	w.get("/v1/agent/service/web").wantJSON(`{"ID":"web","Service":"web","Tags":[],"Meta":{},"Address":"",
		"Port":0,"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Datacenter":"dc1"}`)
	w.get("/v1/agent/health/service/id/web")
}

// What users write into Meta or tags becomes the endpoint's protocol; a word that
// is none is no reason to refuse a service.
func TestDeclaredProtocol(t *testing.T) {
	w := newWorld(t)
	for body, want := range map[string]weft.Protocol{
		`{"Name":"a","Port":1,"Meta":{"protocol":"grpc"}}`:                    weft.GRPC,
		`{"Name":"a","Port":1,"Meta":{"appProtocol":"kubernetes.io/h2c"}}`:    weft.HTTP2,
		`{"Name":"a","Port":1,"Tags":["blue","protocol=tcp"]}`:                weft.TCP,
		`{"Name":"a","Port":1,"Meta":{"protocol":"smoke"},"Tags":["http"]}`:   "",
		`{"Name":"a","Port":1,"Meta":{"protocol":"smoke","version":"grpc2"}}`: "",
	} {
		w.put("/v1/agent/service/register", body)
		endpoints, _ := w.registry.Endpoints(weft.NewServiceName("", "a"))
		if len(endpoints) != 1 || endpoints[0].Protocol != want {
			t.Errorf("%s: %+v, want protocol %q", body, endpoints, want)
		}
	}
}

func TestCheckIDs(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct{ name, body, want string }{
		{"one", `"Check":{"TTL":"1h"}`, `service:one`},
		{"listed", `"Checks":[{"TTL":"1h"}]`, `service:listed`},
		{"both", `"Check":{"TTL":"1h"},"Checks":[{"TTL":"1h"},{"TTL":"1h"}]`, `service:both:1 service:both:2 service:both:3`},
		{"own", `"Check":{"TTL":"1h","CheckID":"mine"},"Checks":[{"TTL":"1h"}]`, `mine service:own:2`},
		{"empty", `"Check":{},"Checks":[{"TTL":"1h"}]`, `service:empty`},
	} {
		w.put("/v1/agent/service/register", `{"Name":"`+c.name+`",`+c.body+`}`)
		var ids []string
		for i := range strings.Fields(c.want) {
			ids = append(ids, w.get("/v1/health/checks/"+c.name).field(string(rune('0'+i))+".CheckID").(string))
		}
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestTTLCheckIsReported(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/agent/service/register", `{"Name":"web","Check":{"TTL":"1h"}}`)
	status := func() string {
		a := w.get("/v1/agent/checks")
		return a.field("service:web.Status").(string) + " " + a.field("service:web.Output").(string)
	}
	for _, c := range []struct{ path, body, want string }{
		{"/v1/agent/check/pass/service:web?note=fine", ``, "passing fine"},
		{"/v1/agent/check/warn/service%3Aweb?note=slow", ``, "warning slow"},
		{"/v1/agent/check/fail/service:web", ``, "critical "},
		{"/v1/agent/check/update/service:web", `{"Status":"passing","Output":"up"}`, "passing up"},
		{"/v1/agent/check/update/service:web", `{"status":"warning","output":"` + strings.Repeat("é", 3000) + `"}`, "warning " + strings.Repeat("é", 2048)},
	} {
		w.put(c.path, c.body)
		if got := status(); got != c.want {
			t.Errorf("%s: %s", c.path, got)
		}
	}
}

func TestAgentHealthAnswersByStatus(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/agent/service/register", `{"ID":"web-1","Name":"web","Check":{"TTL":"1h"}}`)
	w.put("/v1/agent/service/register", `{"ID":"web-2","Name":"web","Check":{"TTL":"1h","Status":"passing"}}`)
	for _, c := range []struct {
		do     string
		one    int
		all    int
		status string // of web-1
	}{
		{"/v1/agent/check/pass/service:web-1", 200, 200, "passing"},
		{"/v1/agent/check/warn/service:web-1", 429, 429, "warning"},
		{"/v1/agent/check/fail/service:web-1", 503, 503, "critical"},
		{"/v1/agent/service/maintenance/web-1?enable=true", 503, 503, "maintenance"},
		{"/v1/agent/service/maintenance/web-1?enable=false", 503, 503, "critical"},
		{"/v1/agent/check/pass/service:web-1", 200, 200, "passing"},
		{"/v1/agent/maintenance?enable=true", 503, 503, "maintenance"},
	} {
		w.put(c.do, "")
		a := w.send("GET", "/v1/agent/health/service/id/web-1", "").want(c.one)
		if got := a.field("AggregatedStatus"); got != c.status {
			t.Errorf("after %s: %v", c.do, got)
		}
		w.send("GET", "/v1/agent/health/service/name/web", "").want(c.all)
		text := w.send("GET", "/v1/agent/health/service/id/web-1?format=text", "").want(c.one)
		if text.body != c.status || !strings.HasPrefix(text.header.Get("Content-Type"), "text/plain") {
			t.Errorf("after %s: %q", c.do, text.body)
		}
	}
}

// Maintenance shows by the ids that Consul's clients look for.
func TestMaintenance(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/agent/service/register", `{"ID":"web-1","Name":"web"}`)
	w.put("/v1/agent/service/maintenance/web-1?enable=true&reason=disk+full", "")
	a := w.get("/v1/health/service/web")
	for field, want := range map[string]string{
		"0.Checks.1.CheckID": "_service_maintenance:web-1", "0.Checks.1.Name": "Service Maintenance Mode",
		"0.Checks.1.Status": "critical", "0.Checks.1.Notes": "disk full", "0.Checks.1.ServiceID": "web-1",
	} {
		if got := a.field(field); got != want {
			t.Errorf("%s is %v, want %s", field, got, want)
		}
	}
	w.get("/v1/health/service/web?passing").wantJSON(`[]`)
	w.put("/v1/agent/service/register?replace-existing-checks", `{"ID":"web-1","Name":"web"}`)
	w.get("/v1/health/service/web?passing").wantJSON(`[]`)
	w.put("/v1/agent/service/maintenance/web-1?enable=false", "")
	if got := w.get("/v1/health/service/web?passing").ids(); got != "web-1" {
		t.Errorf("after maintenance: %q", got)
	}
	w.put("/v1/agent/maintenance?enable=1", "")
	if got := w.get("/v1/agent/checks").field("_node_maintenance.Name"); got != "Node Maintenance Mode" {
		t.Errorf("node check: %v", got)
	}
	w.get("/v1/health/service/web?passing").wantJSON(`[]`)
	w.put("/v1/agent/maintenance?enable=false", "")
	w.get("/v1/health/state/critical").wantJSON(`[]`)
}

// Registering again neither makes a healthy instance ill nor loses checks that it
// does not name, nor renews them; with replace-existing-checks it loses these.
func TestRegisterAgain(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/agent/service/register", `{"Name":"web","Check":{"TTL":"1h"}}`)
	w.put("/v1/agent/check/pass/service:web?note=fine", "")
	w.put("/v1/agent/check/register", `{"Name":"extra","ServiceID":"web","TTL":"1h","Status":"warning"}`)
	index := w.get("/v1/health/service/web").index()
	w.put("/v1/agent/service/register", `{"Name":"web","Check":{"TTL":"1h"}}`)
	a := w.get("/v1/health/checks/web")
	if a.index() != index {
		t.Errorf("the same registration moved the index from %d to %d", index, a.index())
	}
	for i, want := range []string{"extra warning ", "service:web passing fine"} {
		at := string(rune('0' + i))
		if got := a.field(at+".CheckID").(string) + " " + a.field(at+".Status").(string) + " " + a.field(at+".Output").(string); got != want {
			t.Errorf("check %d: %s, want %s", i, got, want)
		}
	}
	w.put("/v1/agent/service/register?replace-existing-checks=true", `{"Name":"web","Port":1,"Check":{"TTL":"1h"}}`)
	a = w.get("/v1/health/checks/web")
	if a.field("0.CheckID") != "service:web" || a.field("0.Status") != "passing" || strings.Contains(a.body, "extra") {
		t.Errorf("after replacing: %s", a.body)
	}
	w.put("/v1/agent/service/register", `{"Name":"web","Check":{"TTL":"1h","Status":"warning"}}`)
	if got := w.get("/v1/health/checks/web").field("0.Status"); got != "warning" {
		t.Errorf("a given status became %v", got)
	}
}

// A registration that does not name a TTL check is no report for it.
func TestRegisteringIsNoReport(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/agent/service/register", `{"Name":"web"}`)
	w.put("/v1/agent/check/register", `{"Name":"beat","ServiceID":"web","TTL":"300ms","Status":"passing"}`)
	eventually(t, "the check lapses", func() bool {
		w.put("/v1/agent/service/register", `{"Name":"web"}`)
		return w.get("/v1/agent/checks").field("beat.Status") == "critical"
	})
}

// Maintenance is a critical check on the wire, whoever put it there.
func TestStatusOnTheWire(t *testing.T) {
	for status, want := range map[weft.Health]string{
		weft.Passing: "passing", weft.Warning: "warning", weft.Critical: "critical", weft.Maintenance: "critical",
	} {
		if got := newCheckRecord("n", nil, &weft.Check{Status: status}).Status; got != want {
			t.Errorf("%v is %s", status, got)
		}
	}
}

func TestChecksOnTheirOwn(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/agent/check/register", `{"Name":"disk","Notes":"of the node","TTL":"1h"}`)
	w.put("/v1/agent/check/register", `{"ID":"m","Name":"memory","Status":"passing"}`)
	a := w.get("/v1/agent/checks")
	for field, want := range map[string]string{
		"disk.Name": "disk", "disk.Status": "critical", "disk.Notes": "of the node", "disk.Type": "ttl", "disk.ServiceID": "",
		"m.Name": "memory", "m.Status": "passing", "m.Type": "",
	} {
		if got := a.field(field); got != want {
			t.Errorf("%s is %v, want %s", field, got, want)
		}
	}
	w.put("/v1/agent/check/deregister/disk", "")
	w.put("/v1/agent/check/deregister/m", "")
	w.get("/v1/agent/checks").wantJSON(`{}`)
}

func TestTCPCheck(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := newWorld(t)
	w.put("/v1/agent/service/register", `{"Name":"db","Check":{"TCP":"`+l.Addr().String()+`","interval":20000000}}`)
	eventually(t, "the check passes", func() bool { return w.get("/v1/health/service/db?passing").ids() == "db" })
}

func TestSelfMembersStatus(t *testing.T) {
	w := newWorld(t)
	self := w.get("/v1/agent/self")
	for field, want := range map[string]any{
		"Config.Datacenter": "dc1", "Config.NodeName": "server-1", "Config.Server": true, "Member.Name": "server-1",
		"Member.Status": 1.0, "Meta.rack": "r1", "DebugConfig.Datacenter": "dc1", "Stats.agent.checks": "1",
	} {
		if got := self.field(field); got != want {
			t.Errorf("%s is %v, want %v", field, got, want)
		}
	}
	members := w.get("/v1/agent/members")
	if members.field("0.Addr") != "127.0.0.1" || members.field("0.Port") != 8500.0 || members.field("0.Tags.role") != "consul" {
		t.Errorf("members: %s", members.body)
	}
	if got := w.get("/v1/agent/members?wan=1").field("0.Name"); got != "server-1.dc1" {
		t.Errorf("over the WAN: %v", got)
	}
	w.get("/v1/agent/members?filter=Name==other").wantJSON(`[]`)
	w.get("/v1/status/leader").wantJSON(`"127.0.0.1:8500"`)
	w.get("/v1/status/peers").wantJSON(`["127.0.0.1:8500"]`)
	w.get("/v1/catalog/datacenters").wantJSON(`["dc1"]`)
}
