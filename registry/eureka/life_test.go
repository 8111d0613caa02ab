package eureka

import (
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// A registration is an instance like any other for everybody else.
func TestRegistrationIsAnInstance(t *testing.T) {
	w := newWorld(t)
	w.registerHere("ORDER-SERVICE", "host-1:order-service:8080",
		`"metadata":{"zone":"b","version":"v2"}`, `"leaseInfo":{"renewalIntervalInSecs":1,"durationInSecs":3}`)
	list, _ := w.registry.Instances(weft.NewServiceName("", "order-service"))
	if len(list) != 1 {
		t.Fatalf("%d instances, want 1", len(list))
	}
	in := list[0]
	if in.ID != "host-1:order-service:8080" || in.Address != "10.0.0.1" || in.Port != 8080 || in.Zone != "b" ||
		in.Dialect != "eureka" || in.Labels["version"] != "v2" {
		t.Errorf("got %+v", in)
	}
	if in.Health() != weft.Passing {
		t.Errorf("it is %s, want passing", in.Health())
	}
	if ttl := in.Checks[0].TTL.Std(); ttl != 3*time.Second {
		t.Errorf("its lease lasts %s, want 3s as it was asked for", ttl)
	}
	endpoints, _ := w.registry.Endpoints(in.Service)
	if len(endpoints) != 1 || endpoints[0].Address != "10.0.0.1:8080" {
		t.Errorf("endpoints %+v", endpoints)
	}
}

func TestLeaseDefaults(t *testing.T) {
	for asked, want := range map[string]time.Duration{
		"":                                    90 * time.Second,
		`"leaseInfo":{}`:                      90 * time.Second,
		`"leaseInfo":{"durationInSecs":0}`:    90 * time.Second,
		`"leaseInfo":{"durationInSecs":1}`:    time.Second,
		`"leaseInfo":{"durationInSecs":"45"}`: 45 * time.Second,
	} {
		more := []string{asked}
		if asked == "" {
			more = nil
		}
		r, err := decodeJSON([]byte(body("A", "a", more...)))
		if err != nil {
			t.Fatal(err)
		}
		in, err := r.instance(serviceOf("A"), weft.InstanceKey{Node: nodeName, ID: "a"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := in.Checks[0].TTL.Std(); got != want {
			t.Errorf("%s: lease of %s, want %s", asked, got, want)
		}
	}
}

// An instance of any other dialect is shown with what Eureka's clients need to call it.
func TestOthersAreShown(t *testing.T) {
	w := newWorld(t)
	w.registerElsewhere(weft.Instance{ID: "web-1", Service: weft.ServiceName{Name: "web"}, Address: "10.1.1.1", Port: 80,
		Labels: map[string]string{"version": "3"}, Dialect: "consul",
		Checks: []weft.Check{{Kind: weft.HTTPCheck, Target: "http://10.1.1.1:80/health", Interval: weft.Duration(time.Hour), Status: weft.Warning}}})
	w.registerElsewhere(weft.Instance{ID: "ill", Service: weft.ServiceName{Name: "web"}, Port: 81,
		Checks: []weft.Check{{Kind: weft.StaticCheck, Status: weft.Critical}}})
	w.registerElsewhere(weft.Instance{ID: "tls", Service: weft.ServiceName{Name: "Web"}, Address: "::1", Port: 443, Protocol: weft.TLS})
	w.registerElsewhere(weft.Instance{ID: "far", Service: weft.ServiceName{Namespace: "prod", Name: "web"}, Port: 82})

	l := w.apps()
	if want := "DOWN_1_UP_3_"; l.Applications.Hash != want {
		t.Errorf("hash %q, want %q", l.Applications.Hash, want)
	}
	want := map[string]status{"WEB/server-1:web-1": up, "WEB/server-1:ill": down, "WEB/server-1:tls": up, "WEB.PROD/server-1:far": up}
	if got := l.statuses(); !maps.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	var one struct{ Instance record }
	w.getJSON("/eureka/apps/web/server-1:web-1", &one)
	got := one.Instance
	wantRecord := record{
		InstanceID: "server-1:web-1", HostName: "10.1.1.1", App: "WEB", IPAddr: "10.1.1.1", Status: up, Overridden: unknown,
		Port: newPort(80, true), SecurePort: newPort(443, false), HomePageURL: "http://10.1.1.1:80/",
		HealthCheckURL: "http://10.1.1.1:80/health", VIPAddress: "web", SecureVIPAddress: "web", CountryID: 1,
		DataCenter: myOwn, Lease: lease{RenewalInterval: 30, Duration: 90}, Metadata: metadata{"version": "3"},
	}
	if !reflect.DeepEqual(got, wantRecord) {
		t.Errorf("got  %+v\nwant %+v", got, wantRecord)
	}
	w.getJSON("/eureka/apps/WEB/server-1:tls", &one)
	if p := one.Instance; p.Port.on() || !p.SecurePort.on() || p.SecurePort.Number != 443 {
		t.Errorf("ports of the TLS instance: %+v %+v", p.Port, p.SecurePort)
	}
	w.getJSON("/eureka/apps/WEB/server-1:ill", &one)
	if one.Instance.IPAddr != "127.0.0.1" {
		t.Errorf("address %q, want the node's", one.Instance.IPAddr)
	}
	var l2 list
	w.getJSON("/eureka/vips/web.prod", &l2)
	if n := len(l2.statuses()); n != 1 {
		t.Errorf("%d instances of the VIP web.prod, want 1", n)
	}
}

func TestRenew(t *testing.T) {
	w := newWorld(t)
	const path = "/eureka/v2/apps/ORDER/o-1"
	w.send("PUT", path, "").want(404)
	w.registerHere("ORDER", "o-1", `"lastDirtyTimestamp":"1000"`)
	for query, want := range map[string]int{
		"":                                     200,
		"?status=UP&lastDirtyTimestamp=1000":   200,
		"?lastDirtyTimestamp=999":              200, // an old word of the client's own
		"?lastDirtyTimestamp=1001":             404, // register again
		"?lastDirtyTimestamp=yesterday":        400,
		"?lastDirtyTimestamp=":                 200,
		"?lastDirtyTimestamp=null":             200,
		"?status=DOWN&overriddenstatus=&x=%zz": 400,
	} {
		if got := w.send("PUT", path+query, "").status; got != want {
			t.Errorf("%q: %d, want %d", query, got, want)
		}
	}
	replica := []string{"x-netflix-discovery-replication", "true", "Accept", "application/json"}
	a := w.send("PUT", path+"?lastDirtyTimestamp=999", "", replica...).want(http.StatusConflict)
	if !strings.Contains(a.body, `"instanceId":"o-1"`) || !strings.Contains(a.body, `"lastDirtyTimestamp":"1000"`) {
		t.Errorf("a replica that is behind is told %s", a.body)
	}
	w.send("PUT", path+"?lastDirtyTimestamp=1001", "", replica...).want(404)
}

// What a client says of itself again and again is not written again and again.
func TestRegisteringTheSameChangesNothing(t *testing.T) {
	w := newWorld(t)
	index := func() uint64 { _, i := w.registry.Instances(serviceOf("a")); return i }
	w.registerHere("A", "a-1", `"metadata":{"k":"v"}`)
	first := index()
	w.registerHere("A", "a-1", `"metadata":{"k":"v"}`)
	if index() != first {
		t.Error("without a time, the same was written again")
	}
	w.registerHere("A", "a-1", `"metadata":{"k":"v"}`, `"lastDirtyTimestamp":"9999999999999"`)
	second := index()
	if second == first {
		t.Error("a newer lastDirtyTimestamp was not kept")
	}
	w.registerHere("A", "a-1", `"metadata":{"k":"old"}`, `"lastDirtyTimestamp":"5"`)
	if index() != second {
		t.Error("an older registration replaced a newer one")
	}
	w.registerHere("A", "a-1", `"metadata":{"k":"new"}`, `"lastDirtyTimestamp":"9999999999999"`)
	if index() == second {
		t.Error("other metadata were not written")
	}
}

func TestCancel(t *testing.T) {
	w := newWorld(t)
	w.registerHere("ORDER", "o-1")
	w.registerElsewhere(weft.Instance{ID: "w", Service: weft.ServiceName{Name: "web"}, Port: 1})
	w.send("DELETE", "/eureka/apps/ORDER/o-2", "").want(404)
	w.send("DELETE", "/eureka/apps/OTHER/o-1", "").want(404)
	w.send("DELETE", "/eureka/apps/order/o-1/", "").want(200)
	w.send("DELETE", "/eureka/apps/ORDER/o-1", "").want(404)
	w.send("PUT", "/eureka/apps/WEB/server-1:w", "").want(404) // it has no lease here
	w.send("DELETE", "/eureka/apps/WEB/server-1:w", "").want(200)
	if l := w.apps(); len(l.statuses()) != 0 || l.Applications.Hash != "" || l.Applications.List == nil {
		t.Errorf("left: %+v", l)
	}
}

// Ids are unique in an application only. Clients that give none are known by their
// host, whatever else runs there.
func TestSameIDInTwoApplications(t *testing.T) {
	w := newWorld(t)
	for _, app := range []string{"A", "B"} {
		b := strings.Replace(body(app, ""), `"instanceId":"",`, "", 1)
		w.post(app, b).want(204)
		w.post(app, b).want(204)
	}
	if got, want := w.apps().statuses(), (map[string]status{"A/host-1": up, "B/host-1": up}); !maps.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	w.send("DELETE", "/eureka/apps/A/host-1", "").want(200)
	w.send("PUT", "/eureka/apps/A/host-1", "").want(404)
	w.send("PUT", "/eureka/apps/B/host-1", "").want(200)
	w.send("PUT", "/eureka/apps/B/b:host-1", "").want(404)
}

func TestStatuses(t *testing.T) {
	w := newWorld(t)
	for _, s := range []status{up, down, starting, outOfService, unknown} {
		w.registerHere("A", string(s), `"status":"`+string(s)+`"`)
	}
	w.registerHere("A", "odd", `"status":"SLEEPY"`)
	want := map[string]status{"A/UP": up, "A/DOWN": down, "A/STARTING": starting, "A/OUT_OF_SERVICE": outOfService, "A/UNKNOWN": unknown, "A/odd": unknown}
	l := w.apps()
	if got := l.statuses(); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if want := "DOWN_1_OUT_OF_SERVICE_1_STARTING_1_UNKNOWN_2_UP_1_"; l.Applications.Hash != want {
		t.Errorf("hash %q, want %q", l.Applications.Hash, want)
	}
	endpoints, _ := w.registry.Endpoints(serviceOf("a"))
	if len(endpoints) != 1 || endpoints[0].ID != "eureka/UP" {
		t.Errorf("traffic may go to %v, want UP only", endpoints)
	}
}

func TestOverride(t *testing.T) {
	w := newWorld(t)
	w.registerHere("A", "a-1", `"lastDirtyTimestamp":"10"`)
	const path = "/eureka/apps/A/a-1"
	show := func() (s, o status) {
		var one struct{ Instance record }
		w.getJSON(path, &one)
		return one.Instance.Status, one.Instance.Overridden
	}
	wants := func(when string, s, o status, passing bool) {
		t.Helper()
		if gs, g := show(); gs != s || g != o {
			t.Errorf("%s: %s, overridden %s; want %s, %s", when, gs, g, s, o)
		}
		endpoints, _ := w.registry.Endpoints(serviceOf("a"))
		if (len(endpoints) == 1) != passing {
			t.Errorf("%s: %d endpoints", when, len(endpoints))
		}
	}
	wants("registered", up, unknown, true)
	w.send("PUT", path+"/status?value=OUT_OF_SERVICE&lastDirtyTimestamp=20", "").want(200)
	wants("overridden", outOfService, outOfService, false)
	w.send("PUT", path+"?lastDirtyTimestamp=20", "").want(200)
	w.registerHere("A", "a-1", `"lastDirtyTimestamp":"30"`)
	wants("registered again", outOfService, outOfService, false)
	var all map[string]status
	w.getJSON("/eureka/serverinfo/statusoverrides", &all)
	if !maps.Equal(all, map[string]status{"a-1": outOfService}) {
		t.Errorf("overrides: %v", all)
	}
	w.send("DELETE", path+"/status", "").want(200)
	wants("override removed", up, unknown, true)
	w.send("DELETE", path+"/status?value=DOWN", "").want(200)
	wants("own status given", down, unknown, false)
	w.send("PUT", path+"/status?value=up", "").want(200)
	wants("overridden to UP", up, up, true)

	w.send("PUT", path+"/status?value=SLEEPY", "").want(400)
	w.send("PUT", path+"/status", "").want(400)
	w.send("DELETE", path+"/status?value=SLEEPY", "").want(400)
	w.send("PUT", "/eureka/apps/A/a-2/status?value=UP", "").want(404)
	w.send("DELETE", "/eureka/apps/A/a-2/status", "").want(404)
}

// For an instance of another dialect, an override is maintenance.
func TestOverrideElsewhere(t *testing.T) {
	w := newWorld(t)
	w.registerElsewhere(weft.Instance{ID: "w", Service: weft.ServiceName{Name: "web"}, Port: 1, Labels: map[string]string{"a": "1"},
		Checks: []weft.Check{{Kind: weft.TTLCheck, TTL: weft.Duration(time.Hour), Status: weft.Passing}}})
	const path = "/eureka/apps/WEB/server-1:w"
	w.send("PUT", path+"/status?value=OUT_OF_SERVICE", "").want(200)
	if got := w.apps().statuses()["WEB/server-1:w"]; got != outOfService {
		t.Errorf("it is %s", got)
	}
	w.send("PUT", path+"/metadata?b=2&a=3", "").want(200)
	in, _ := w.registry.Instance(weft.InstanceKey{Node: "server-1", ID: "w"})
	if !maps.Equal(in.Labels, map[string]string{"a": "3", "b": "2"}) || len(in.Checks) != 2 {
		t.Errorf("after the metadata: %+v", in)
	}
	w.send("PUT", path+"/status?value=STARTING", "").want(409)
	w.send("DELETE", path+"/status", "").want(200)
	in, _ = w.registry.Instance(in.Key())
	if in.Health() != weft.Passing || w.apps().statuses()["WEB/server-1:w"] != up {
		t.Errorf("after the override: %s", in.Health())
	}
}

// Maintenance that another dialect set is OUT_OF_SERVICE here.
func TestMaintenanceIsShown(t *testing.T) {
	w := newWorld(t)
	w.registerHere("A", "a-1")
	key := weft.InstanceKey{Node: nodeName, ID: "a-1"}
	if err := w.registry.Maintain(t.Context(), key, true, ""); err != nil {
		t.Fatal(err)
	}
	if got := w.apps().statuses()["A/a-1"]; got != outOfService {
		t.Errorf("in maintenance: %s", got)
	}
	w.registerHere("A", "a-1", `"metadata":{"x":"y"}`) // does not end it
	if got := w.apps().statuses()["A/a-1"]; got != outOfService {
		t.Errorf("registered again in maintenance: %s", got)
	}
	if err := w.registry.AddCheck(t.Context(), key, weft.Check{ID: "disk", Kind: weft.StaticCheck, Status: weft.Critical}); err != nil {
		t.Fatal(err)
	}
	if err := w.registry.Maintain(t.Context(), key, false, ""); err != nil {
		t.Fatal(err)
	}
	if got := w.apps().statuses()["A/a-1"]; got != down {
		t.Errorf("with a critical check: %s", got)
	}
	w.registerHere("A", "a-1", `"metadata":{"x":"z"}`)
	in, _ := w.registry.Instance(key)
	if !slices.ContainsFunc(in.Checks, func(c weft.Check) bool { return c.ID == "disk" && c.Status == weft.Critical }) {
		t.Errorf("the check that somebody else added is gone: %+v", in.Checks)
	}
}

func TestMetadata(t *testing.T) {
	w := newWorld(t)
	w.registerHere("A", "a-1")
	w.send("PUT", "/eureka/apps/a/a-1/metadata?colour=blue&zone=z1&colour=red", "").want(200)
	w.send("PUT", "/eureka/apps/A/a-9/metadata?colour=blue", "").want(404)
	in, _ := w.registry.Instance(weft.InstanceKey{Node: nodeName, ID: "a-1"})
	if !maps.Equal(in.Labels, map[string]string{"colour": "blue", "zone": "z1"}) || in.Zone != "z1" {
		t.Errorf("labels %v, zone %q", in.Labels, in.Zone)
	}
	if !strings.Contains(w.send("GET", "/eureka/apps/A", "").body, "<metadata><colour>blue</colour><zone>z1</zone></metadata>") {
		t.Error("readers do not see it")
	}
}

// Edits of one instance at the same time do not lose each other.
func TestEditsAtTheSameTime(t *testing.T) {
	w := newWorld(t)
	w.registerHere("A", "a-1")
	done := make(chan int)
	for i := range 8 {
		go func() {
			done <- w.send("PUT", "/eureka/apps/A/a-1/metadata?k"+strconv.Itoa(i)+"=v", "").status
		}()
	}
	for range 8 {
		if s := <-done; s != 200 {
			t.Errorf("status %d", s)
		}
	}
	in, _ := w.registry.Instance(weft.InstanceKey{Node: nodeName, ID: "a-1"})
	if len(in.Labels) != 8 {
		t.Errorf("%d of 8 edits are left: %v", len(in.Labels), in.Labels)
	}
}

func TestReplication(t *testing.T) {
	w := newWorld(t)
	instance := strings.TrimSuffix(strings.TrimPrefix(body("A", "a-1", `"lastDirtyTimestamp":"10"`), `{"instance":`), "}")
	batch := `{"replicationList":[
		{"appName":"A","id":"a-1","action":"Heartbeat","lastDirtyTimestamp":10},
		{"appName":"A","id":"a-1","action":"Register","instanceInfo":` + instance + `},
		{"appName":"A","id":"a-1","action":"Heartbeat","lastDirtyTimestamp":10},
		{"appName":"A","id":"a-1","action":"Heartbeat","lastDirtyTimestamp":9},
		{"appName":"A","id":"a-1","action":"StatusUpdate","status":"DOWN"},
		{"appName":"A","id":"a-1","action":"Dance"},
		{"appName":"A","action":"Register"},
		{"appName":"B","action":"Register","instanceInfo":` + instance + `},
		{"appName":"A","id":"a-9","action":"Cancel"}]}`
	a := w.send("POST", "/eureka/peerreplication/batch/", batch, "Content-Type", "application/json").want(200)
	var codes []string
	for _, part := range strings.Split(a.body, `"statusCode":`)[1:] {
		codes = append(codes, part[:3])
	}
	if want := []string{"404", "200", "200", "409", "200", "400", "400", "400", "404"}; !slices.Equal(codes, want) {
		t.Errorf("codes %v, want %v: %s", codes, want, a.body)
	}
	if got := w.apps().statuses()["A/a-1"]; got != down {
		t.Errorf("it is %s", got)
	}
	w.send("POST", "/eureka/peerreplication/batch", `{"replicationList":[{"appName":"A","id":"a-1","action":"DeleteStatusOverride"},{"appName":"A","id":"a-1","action":"Cancel"}]}`).want(200)
	if got := w.apps().statuses(); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	w.send("POST", "/eureka/peerreplication/batch", `[`).want(400)
}

func TestHistorySaysWho(t *testing.T) {
	w := newWorld(t)
	w.registerHere("ORDER", "o-1")
	w.send("DELETE", "/eureka/apps/ORDER/o-1", "").want(200)
	h, err := w.registry.History(t.Context(), registry.HistoryRequest{Service: serviceOf("ORDER"), Since: weft.Duration(time.Hour)})
	if err != nil || len(h.Changes) < 2 {
		t.Fatalf("%+v, %v", h, err)
	}
	for _, c := range h.Changes {
		if c.By != "Eureka client 127.0.0.1" {
			t.Errorf("%v by %q", c.What, c.By)
		}
	}
}
