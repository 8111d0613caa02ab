package consul

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/registry"
)

// When all instances fail at once those that are asked for as passing are told
// nevertheless, with the reason, and their checks as they are.
func TestGuardedService(t *testing.T) {
	w := newWorld(t)
	ids := []string{"web-1", "web-2", "web-3"}
	for _, id := range ids {
		w.put("/v1/agent/service/register", `{"ID":"`+id+`","Name":"web","Check":{"TTL":"1h","Status":"passing"}}`)
	}
	a := w.get("/v1/health/service/web?passing")
	if a.header.Get("X-Weft-Guard") != "" || a.ids() != "web-1 web-2 web-3" {
		t.Fatalf("before: %s, guard %q", a.body, a.header.Get("X-Weft-Guard"))
	}
	for _, id := range ids {
		w.put("/v1/agent/check/fail/service:"+id, "")
	}
	for _, query := range []string{"?passing", "?passing=1&stale=", "?passing&near=_agent", "?passing&filter=Service.ID!=x"} {
		a := w.get("/v1/health/service/web" + query)
		if a.header.Get("X-Weft-Guard") == "" || a.ids() != "web-1 web-2 web-3" || a.field("0.Checks.1.Status") != "critical" {
			t.Errorf("%s: %s, guard %q", query, a.body, a.header.Get("X-Weft-Guard"))
		}
	}
	w.createQuery(`{"Name":"web","Service":{"Service":"web"}}`)
	if a := w.get("/v1/query/web/execute"); a.header.Get("X-Weft-Guard") == "" || strings.Count(a.body, `"ID":"web-`) != 3 {
		t.Errorf("a prepared query: guard %q, %s", a.header.Get("X-Weft-Guard"), a.body)
	}
	// A read that waited tells of what it waited for.
	guarded := w.get("/v1/health/service/web?passing&near=_agent")
	waited := make(chan answer, 1)
	go func() {
		a, _ := w.trySend("GET", "/v1/health/service/web?passing&near=_agent&wait=10s&index="+itoa(guarded.index()), "")
		waited <- a
	}()
	w.put("/v1/agent/check/pass/service:web-1", "")
	if a := <-waited; a.header.Get("X-Weft-Guard") != "" || a.ids() != "web-1" {
		t.Errorf("after a wait: %s, guard %q", a.body, a.header.Get("X-Weft-Guard"))
	}
	w.put("/v1/agent/check/fail/service:web-1", "")
	if a := w.get("/v1/health/state/critical"); a.field("2.ServiceID") != "web-3" {
		t.Errorf("the checks themselves: %s", a.body)
	}
	w.put("/v1/agent/check/pass/service:web-2", "")
	if a := w.get("/v1/health/service/web?passing"); a.header.Get("X-Weft-Guard") != "" || a.ids() != "web-2" {
		t.Errorf("after: %s, guard %q", a.body, a.header.Get("X-Weft-Guard"))
	}
	a = w.send("HEAD", "/v1/health/service/web?passing", "").want(200)
	if a.body != "" || a.index() == 0 {
		t.Errorf("HEAD: %q, index %d", a.body, a.index())
	}
}

// Without a leader a read says so, and does not call itself a leader's.
func TestFreshHeaders(t *testing.T) {
	for _, c := range []struct {
		asked                    string
		f                        registry.Freshness
		contact, leader, effects string
	}{
		{"leader", registry.Freshness{KnownLeader: true}, "0", "true", "leader"},
		{"stale", registry.Freshness{KnownLeader: true}, "0", "true", "stale"},
		{"consistent", registry.Freshness{KnownLeader: true}, "0", "true", "consistent"},
		{"leader", registry.Freshness{LastContact: 1500 * time.Millisecond}, "1500", "false", "stale"},
		{"stale", registry.Freshness{LastContact: time.Second}, "1000", "false", "stale"},
		{"stale", registry.Freshness{}, "0", "false", "stale"},
	} {
		h := http.Header{"X-Consul-Effective-Consistency": {c.asked}}
		freshHeaders(h, c.f)
		if h.Get("X-Consul-LastContact") != c.contact || h.Get("X-Consul-KnownLeader") != c.leader || h.Get("X-Consul-Effective-Consistency") != c.effects {
			t.Errorf("%+v: %v", c, h)
		}
	}
}

// Every read says how new it is and at which index, in whatever way it is answered.
func TestEveryReadHasItsHeaders(t *testing.T) {
	w := fleet(t)
	w.put("/v1/kv/k", "v")
	id := w.session(`{}`)
	for _, path := range []string{
		"/v1/agent/self", "/v1/agent/members", "/v1/agent/services", "/v1/agent/service/web-1", "/v1/agent/checks",
		"/v1/agent/health/service/id/web-1", "/v1/agent/health/service/id/web-1?format=text", "/v1/agent/health/service/name/web",
		"/v1/catalog/datacenters", "/v1/catalog/nodes", "/v1/catalog/services", "/v1/catalog/service/web", "/v1/catalog/node/far", "/v1/catalog/node/none",
		"/v1/catalog/node-services/far", "/v1/catalog/connect/web",
		"/v1/health/service/web", "/v1/health/service/web", "/v1/health/service/web?passing", "/v1/health/service/none", "/v1/health/connect/web",
		"/v1/health/checks/web", "/v1/health/node/far", "/v1/health/state/any",
		"/v1/kv/k", "/v1/kv/k?raw", "/v1/kv/none", "/v1/kv/?recurse", "/v1/kv/?keys", "/v1/kv/none?keys",
		"/v1/session/info/" + id, "/v1/session/node/server-1", "/v1/session/list",
		"/v1/status/leader", "/v1/status/peers", "/v1/event/list", "/v1/coordinate/nodes", "/v1/coordinate/node/none", "/v1/coordinate/datacenters",
		"/v1/operator/raft/configuration", "/v1/operator/autopilot/health", "/v1/snapshot",
	} {
		a := w.send("GET", path, "")
		if a.index() == 0 || a.header.Get("X-Consul-LastContact") != "0" || a.header.Get("X-Consul-KnownLeader") != "true" ||
			a.header.Get("X-Consul-Effective-Consistency") != "leader" || a.header.Get("X-Consul-Default-ACL-Policy") != "allow" {
			t.Errorf("%s: %v", path, a.header)
		}
	}
	cached := w.get("/v1/health/service/web?cached")
	if cached.header.Get("X-Cache") != "HIT" || cached.header.Get("Age") != "0" {
		t.Errorf("cached: %v", cached.header)
	}
	if a := w.send("GET", "/v1/health/service/web?cached", "", "Cache-Control", "no-cache"); a.header.Get("X-Cache") != "" {
		t.Errorf("no-cache: %v", a.header)
	}
}
