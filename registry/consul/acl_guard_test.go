package consul

import (
	"crypto/x509"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

const rootSecret = "11111111-2222-3333-4444-555555555555"

// reluctant is an authority that nobody gets to.
type reluctant struct{}

func (reluctant) TrustDomain() string        { return "weft.test" }
func (reluctant) Roots() []*x509.Certificate { return nil }
func (reluctant) Sign([]byte, weft.Identity) ([][]byte, time.Time, error) {
	panic("a certificate was asked for without a right to it")
}

// secured is a world that denies by default, with a few of everything in it.
func secured(t *testing.T) *world {
	t.Helper()
	w := worldWith(t, Config{ACL: &ACL{DefaultPolicy: "deny", InitialManagement: rootSecret}, Process: Process{Log: new(LogTap)}, CA: reluctant{}})
	for _, s := range []struct{ path, body string }{
		{"/v1/agent/service/register", `{"Name":"web","Port":1,"Check":{"CheckID":"web-ttl","TTL":"1h"}}`},
		{"/v1/agent/service/register", `{"Name":"db","Port":2,"Check":{"CheckID":"db-ttl","TTL":"1h"}}`},
		{"/v1/catalog/register", `{"Node":"n1","Address":"10.0.0.1","Service":{"Service":"far","ID":"far-1"},"Check":{"CheckID":"c","Name":"c","Status":"passing","ServiceID":"far-1"}}`},
		{"/v1/kv/app/name", "x"}, {"/v1/kv/app/secret", "y"}, {"/v1/kv/other", "z"},
		{"/v1/event/fire/deploy", ""}, {"/v1/event/fire/quiet", ""},
		{"/v1/coordinate/update", `{"Node":"n1","Coord":{"Vec":[0,0,0,0,0,0,0,0]}}`},
		{"/v1/session/create", `{"Node":"server-1"}`},
		{"/v1/config", `{"Kind":"service-defaults","Name":"web","Protocol":"http"}`},
	} {
		w.as(rootSecret, "PUT", s.path, s.body).want(200)
	}
	w.as(rootSecret, "POST", "/v1/connect/intentions", `{"SourceName":"web","DestinationName":"db","Action":"deny"}`).want(200)
	w.as(rootSecret, "POST", "/v1/query", `{"Name":"find-web","Service":{"Service":"web"}}`).want(200)
	return w
}

// as sends a request with a token.
func (w *world) as(token, method, path, body string) answer {
	w.Helper()
	return w.send(method, path, body, "X-Consul-Token", token)
}

// tokenWith makes a token with rules, and returns its secret and its accessor.
func (w *world) tokenWith(rules string) (secret, accessor string) {
	w.Helper()
	name := strings.ReplaceAll(newUUID(), "-", "")
	w.as(rootSecret, "PUT", "/v1/acl/policy", `{"Name":"`+name+`","Rules":`+quote(rules)+`}`).want(200)
	a := w.as(rootSecret, "PUT", "/v1/acl/token", `{"Policies":[{"Name":"`+name+`"}]}`).want(200)
	return a.field("SecretID").(string), a.field("AccessorID").(string)
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`"`, `\"`, "\n", `\n`, "\t", " ").Replace(s) + `"`
}

// Every endpoint has a guard for every method that it knows, and no guard is left of
// an endpoint that has gone.
func TestEveryEndpointIsGuarded(t *testing.T) {
	a := New(newRegistry(t), Config{}).api
	known := make(map[string]bool)
	for _, table := range a.tables() {
		for path, e := range table {
			known[path] = true
			g := guards[path]
			if e.get != nil && g.read == nil {
				t.Errorf("GET %s has no guard", path)
			}
			if (e.put != nil || e.post != nil || e.delete != nil) && g.write == nil {
				t.Errorf("writing %s has no guard", path)
			}
		}
	}
	for path := range guards {
		if !known[path] {
			t.Errorf("there is a guard of %s, but no endpoint", path)
		}
	}
}

// harmless is what everybody is told, and why.
var harmless = map[string]string{
	"GET status/leader":           "load balancers ask whether the server lives",
	"GET status/peers":            "as status/leader",
	"GET catalog/datacenters":     "the name of the datacenter is in every client's configuration",
	"GET coordinate/datacenters":  "the server is at the middle of its own coordinates",
	"GET agent/connect/ca/roots":  "roots are public",
	"GET connect/ca/roots":        "roots are public",
	"GET acl/replication":         "it is always off",
	"GET acl/token/self":          "the sender's own",
	"PUT internal/acl/authorize":  "about the sender",
	"POST internal/acl/authorize": "about the sender",
	"GET peerings":                "always empty",
	"GET exported-services":       "always empty",
	"GET imported-services":       "always empty",
	"GET partitions":              "always empty",
	"PUT acl/login":               "its body proves who asks",
	"POST acl/login":              "its body proves who asks",
	"PUT acl/bootstrap":           "it works once",
}

// arguments are things that are there, for the paths that want one.
var arguments = map[string]string{
	"acl/token/": "00000000-0000-0000-0000-000000000002", "acl/policy/": managementPolicy, "acl/policy/name/": "global-management",
	"acl/templated-policy/name/": "builtin/dns", "agent/service/": "web", "agent/service/deregister/": "web", "agent/service/maintenance/": "web?enable=true",
	"agent/health/service/id/": "web", "agent/health/service/name/": "web", "agent/check/deregister/": "web-ttl",
	"agent/check/pass/": "web-ttl", "agent/check/warn/": "web-ttl", "agent/check/fail/": "web-ttl", "agent/check/update/": "web-ttl",
	"agent/connect/ca/leaf/": "web", "catalog/node/": "n1", "catalog/node-services/": "n1", "catalog/service/": "web", "catalog/connect/": "web",
	"health/service/": "web", "health/connect/": "web", "health/checks/": "web", "health/node/": "n1", "health/state/": "any",
	"config/": "service-defaults/web", "discovery-chain/": "web", "coordinate/node/": "n1", "event/fire/": "deploy", "kv/": "app/name",
	"session/node/": "server-1", "acl/role/": "x", "acl/role/name/": "x", "acl/auth-method/": "x", "acl/binding-rule/": "x", "agent/force-leave/": "server-1", "agent/join/": "127.0.0.1",
}

// bodies are what a write has to say for itself to be looked at.
var bodies = map[string]string{
	"agent/service/register": `{"Name":"web"}`, "agent/check/register": `{"Name":"c","TTL":"1h"}`, "agent/check/update/": `{"Status":"critical"}`,
	"catalog/register": `{"Node":"n2","Address":"10.0.0.2"}`, "catalog/deregister": `{"Node":"n1"}`,
	"coordinate/update": `{"Node":"n1","Coord":{"Vec":[0,0,0,0,0,0,0,0]}}`, "txn": `[{"KV":{"Verb":"get","Key":"app/name"}}]`,
	"config": `{"Kind":"service-defaults","Name":"web"}`, "query": `{"Name":"q","Service":{"Service":"web"}}`, "query/": `{"Name":"q","Service":{"Service":"web"}}`,
	"connect/intentions": `{"SourceName":"web","DestinationName":"db","Action":"allow"}`, "connect/intentions/exact": `{"Action":"allow"}`,
	"agent/connect/authorize": `{"Target":"web","ClientCertURI":"spiffe://x/ns/default/dc/dc1/svc/db","ClientCertSerial":"1"}`,
	"internal/acl/authorize":  `[{"Resource":"key","Segment":"app/name","Access":"read"}]`, "acl/token": `{}`, "acl/policy": `{"Name":"p"}`, "acl/role": `{"Name":"r"}`,
	"acl/auth-method": `{"Name":"m","Type":"jwt"}`, "acl/binding-rule": `{}`,
}

// A token without rights, and a request without a token, get no data from anywhere.
func TestWhoHasNoRightsGetsNothing(t *testing.T) {
	w := secured(t)
	nothing, _ := w.tokenWith(`event "none" { policy = "read" }`)
	a := New(w.registry, Config{}).api // for its tables
	arguments := maps.Clone(arguments)
	for path, list := range map[string]string{"query/": "query", "connect/intentions/": "connect/intentions", "session/info/": "session/list"} {
		arguments[path] = w.as(rootSecret, "GET", "/v1/"+list, "").want(200).field("0.ID").(string)
	}
	arguments["session/destroy/"], arguments["session/renew/"] = arguments["session/info/"], arguments["session/info/"]
	empty := []string{"", "[]", "{}", "null", `{"Nodes":[]}`}
	for _, table := range a.tables() {
		for path, e := range table {
			for _, method := range []string{"GET", "PUT", "POST", "DELETE"} {
				if e.method(method) == nil || path == "acl/bootstrap" {
					continue
				}
				url := "/v1/" + path + arguments[path]
				switch path {
				case "connect/intentions/exact", "connect/intentions/check":
					url += "?source=web&destination=db"
				case "connect/intentions/match":
					url += "?by=destination&name=db"
				}
				for _, token := range []string{nothing, ""} {
					got := w.as(token, method, url, bodies[path])
					if got.status == 403 || harmless[method+" "+path] != "" {
						continue
					}
					if got.status < 300 && method == "GET" && slices.Contains(empty, strings.TrimSpace(got.body)) {
						continue
					}
					if got.status == 404 && got.body == "" || got.status == 409 && strings.Contains(got.body, "Permission denied") ||
						got.status == 410 || got.status == 501 {
						continue
					}
					t.Errorf("%s %s with token %q: %d %s", method, url, token, got.status, got.body)
				}
			}
		}
	}
	// And nothing has happened.
	w.as(rootSecret, "GET", "/v1/agent/health/service/id/web", "").want(503)
	w.as(rootSecret, "GET", "/v1/catalog/node/n1", "").want(200)
	if got := w.as(rootSecret, "GET", "/v1/kv/app/name?raw", "").body; got != "x" {
		t.Errorf("the key is %q", got)
	}
}

// What is shown is what may be seen, and it is said that there is more.
func TestReadsAreFiltered(t *testing.T) {
	w := secured(t)
	secret, _ := w.tokenWith(`
		service "web" { policy = "read" }
		node "server-1" { policy = "read" }
		key_prefix "app/" { policy = "read" }
		key "app/secret" { policy = "deny" }
		event "deploy" { policy = "read" }
		query "find" { policy = "read" }`)
	for _, c := range []struct{ path, has, hasNot string }{
		{"/v1/agent/services", `"web"`, `"db"`},
		{"/v1/agent/checks", "web-ttl", "db-ttl"},
		{"/v1/catalog/services", "web", "db"},
		{"/v1/catalog/nodes", "server-1", "n1"},
		{"/v1/catalog/node/server-1", `"web"`, `"db"`},
		{"/v1/catalog/node-services/server-1", `"web"`, `"db"`},
		{"/v1/catalog/node/n1", "null", "far"},
		{"/v1/catalog/service/db", "[]", "server-1"},
		{"/v1/health/service/db", "[]", "server-1"},
		{"/v1/health/state/any", "web-ttl", "db-ttl"},
		{"/v1/health/node/server-1", "web-ttl", "db-ttl"},
		{"/v1/kv/?recurse", "app/name", "secret"},
		{"/v1/kv/?keys", "app/name", "secret"},
		{"/v1/kv/?keys&separator=/", `["app/"]`, "other"},
		{"/v1/event/list", "deploy", "quiet"},
		{"/v1/coordinate/nodes", "[]", "n1"},
		{"/v1/session/list", "[]", "server-1"},
		{"/v1/agent/members", "server-1", "nobody"},
	} {
		got := w.as(secret, "GET", c.path, "").want(200)
		if !strings.Contains(got.body, c.has) || strings.Contains(got.body, c.hasNot) {
			t.Errorf("%s: %s", c.path, got.body)
		}
		if filtered := got.header.Get("X-Consul-Results-Filtered-By-ACLs"); (filtered == "true") != (c.path != "/v1/agent/members") {
			t.Errorf("%s: filtered is %q", c.path, filtered)
		}
		if got.header.Get("X-Consul-Default-ACL-Policy") != "deny" {
			t.Errorf("%s: no default policy", c.path)
		}
	}
}

func TestRights(t *testing.T) {
	w := secured(t)
	for _, c := range []struct {
		rules, method, path, body string
		status                    int
	}{
		{`key "a" { policy = "read" }`, "GET", "/v1/kv/a", "", 404},
		{`key "a" { policy = "read" }`, "GET", "/v1/kv/app/secret?recurse=false", "", 403},
		{`key "a" { policy = "read" }`, "GET", "/v1/kv/app/secret?keys=false", "", 403},
		{`key "a" { policy = "read" }`, "PUT", "/v1/kv/a", "1", 403},
		{`key "a" { policy = "write" }`, "PUT", "/v1/kv/a", "1", 200},
		{`key "a" { policy = "write" }`, "PUT", "/v1/kv/a?recurse", "1", 200},
		{`key_prefix "a" { policy = "write" }`, "DELETE", "/v1/kv/a?recurse", "", 200},
		{`key_prefix "a" { policy = "write" } key "a/b" { policy = "read" }`, "DELETE", "/v1/kv/a?recurse", "", 403},
		{`key "a" { policy = "write" }`, "DELETE", "/v1/kv/a?recurse", "", 403},
		{`service "new" { policy = "write" }`, "PUT", "/v1/agent/service/register", `{"Name":"new"}`, 200},
		{`service "new" { policy = "write" }`, "PUT", "/v1/agent/service/register", `{"name":"new","ID":"web"}`, 403},                      // takes web's place
		{`service "new" { policy = "write" }`, "PUT", "/v1/agent/service/register", `{"Name":"new","Connect":{"SidecarService":{}}}`, 403}, // its sidecar has a name of its own
		{`service "new" { policy = "write" }`, "PUT", "/v1/agent/service/register", `{"Name":"new","Connect":{"SidecarService":{"Name":"new"}}}`, 200},
		{`service_prefix "new" { policy = "write" }`, "PUT", "/v1/agent/service/register", `{"Name":"new","Port":1,"Connect":{"SidecarService":{}}}`, 200},
		{`service "p" { policy = "write" }`, "PUT", "/v1/agent/service/register", `{"Name":"p","Port":1,"Kind":"connect-proxy","Proxy":{"DestinationServiceName":"web"}}`, 403},
		{`service "web" { policy = "read" }`, "PUT", "/v1/agent/service/maintenance/web?enable=true", "", 403},
		{`service "web" { policy = "write" }`, "PUT", "/v1/agent/check/pass/web-ttl", "", 200},
		{`service "web" { policy = "write" }`, "PUT", "/v1/agent/check/pass/db-ttl", "", 403},
		{`node "server-1" { policy = "write" }`, "PUT", "/v1/agent/check/register", `{"Name":"disk","TTL":"1h"}`, 200},
		{`node "server-1" { policy = "write" }`, "PUT", "/v1/agent/check/register", `{"Name":"disk","TTL":"1h","service_id":"web"}`, 403},
		{`service "far" { policy = "write" }`, "PUT", "/v1/catalog/register", `{"Node":"n1","Address":"10.0.0.1","Service":{"Service":"far","ID":"far-2"}}`, 200}, // the node stays as it is
		{`service "far" { policy = "write" }`, "PUT", "/v1/catalog/register", `{"Node":"n1","Address":"10.6.6.6","Service":{"Service":"far"}}`, 403},
		{`service "far" { policy = "write" }`, "PUT", "/v1/catalog/register", `{"Node":"n9","SkipNodeUpdate":true,"Service":{"Service":"far"}}`, 403},
		{`node "n1" { policy = "write" }`, "PUT", "/v1/catalog/register", `{"Node":"n1","Address":"10.0.0.1","Service":{"Service":"far"}}`, 403},
		{`service "far" { policy = "write" }`, "PUT", "/v1/catalog/register", `{"Node":"n1","Address":"10.0.0.1","Check":{"Name":"x","Status":"critical"}}`, 403},
		{`service "far" { policy = "write" }`, "PUT", "/v1/catalog/deregister", `{"Node":"n1","ServiceID":"far-2"}`, 200},
		{`service "far" { policy = "write" }`, "PUT", "/v1/catalog/deregister", `{"Node":"n1"}`, 403},
		{`session "server-1" { policy = "write" }`, "PUT", "/v1/session/create", "", 200},
		{`session "server-1" { policy = "write" }`, "PUT", "/v1/session/create", `{"Node":"n1"}`, 403},
		{`event "deploy" { policy = "read" }`, "PUT", "/v1/event/fire/deploy", "", 403},
		{`event "deploy" { policy = "write" }`, "PUT", "/v1/event/fire/deploy", "", 200},
		{`agent "server-1" { policy = "read" }`, "GET", "/v1/agent/self", "", 200},
		{`agent "server-1" { policy = "read" }`, "GET", "/v1/agent/metrics", "", 200},
		{`agent "other" { policy = "read" }`, "GET", "/v1/agent/monitor", "", 403},
		{`operator = "read"`, "GET", "/v1/operator/raft/configuration", "", 200},
		{`operator = "read"`, "DELETE", "/v1/operator/raft/peer?id=x", "", 403},
		{`operator = "write" key_prefix "" { policy = "write" }`, "GET", "/v1/snapshot", "", 403},
		{`acl = "write"`, "GET", "/v1/snapshot", "", 200},
		{`acl = "read"`, "GET", "/v1/acl/tokens", "", 200},
		{`acl = "read"`, "PUT", "/v1/acl/token", "{}", 403},
		{`service "web" { policy = "write" }`, "PUT", "/v1/config", `{"Kind":"service-defaults","Name":"web","Protocol":"http"}`, 200},
		{`service "web" { policy = "write" }`, "PUT", "/v1/config", `{"Kind":"service-defaults","Name":"db","Protocol":"http"}`, 403},
		{`service "db" { policy = "write" }`, "DELETE", "/v1/connect/intentions/exact?source=web&destination=db", "", 403}, // intentions are apart
		{`query "q" { policy = "write" }`, "POST", "/v1/query", `{"Name":"q","Service":{"Service":"web"}}`, 200},
		{`query "q" { policy = "write" }`, "POST", "/v1/query", `{"Name":"r","Service":{"Service":"web"}}`, 403},
	} {
		secret, _ := w.tokenWith(c.rules)
		if got := w.as(secret, c.method, c.path, c.body); got.status != c.status {
			t.Errorf("%s: %s %s %s: %d, want %d: %s", c.rules, c.method, c.path, c.body, got.status, c.status, got.body)
		}
	}
}

// A transaction is refused as a whole, and each operation that was not allowed is named.
func TestTransactionsNeedRightsForEachOperation(t *testing.T) {
	w := secured(t)
	secret, _ := w.tokenWith(`key_prefix "app/" { policy = "read" } key "mine" { policy = "write" }`)
	w.as(secret, "PUT", "/v1/txn", `[{"KV":{"Verb":"set","Key":"mine","Value":"eA=="}},{"KV":{"Verb":"get","Key":"app/name"}},{"KV":{"Verb":"get-tree","Key":"app/"}}]`).want(200)
	got := w.as(secret, "PUT", "/v1/txn", `[
		{"KV":{"Verb":"set","Key":"mine","Value":"eQ=="}},
		{"KV":{"Verb":"set","Key":"app/name"}},
		{"KV":{"Verb":"get","Key":"other"}},
		{"KV":{"Verb":"delete-tree","Key":"mine"}},
		{"Node":{"Verb":"set","Node":{"Node":"n5","Address":"1.1.1.1"}}},
		{"Service":{"Verb":"delete","Node":"n1","Service":{"ID":"far-1"}}},
		{"Check":{"Verb":"delete","Check":{"Node":"n1","CheckID":"c"}}}]`).want(409)
	for _, part := range []string{`"OpIndex":1`, `"OpIndex":2`, `"OpIndex":3`, `"OpIndex":4`, `"OpIndex":5`, `"OpIndex":6`, "Permission denied"} {
		if !strings.Contains(got.body, part) {
			t.Errorf("%s is missing: %s", part, got.body)
		}
	}
	if strings.Contains(got.body, `"OpIndex":0`) {
		t.Errorf("mine may be written: %s", got.body)
	}
	if got := w.as(secret, "GET", "/v1/kv/mine?raw", "").body; got != "x" {
		t.Errorf("mine is %q: the transaction was done", got)
	}
}

// Who waits with a token that ends meanwhile is not told what has happened since.
func TestBlockedReadsLoseTheirRights(t *testing.T) {
	for _, path := range []string{
		"/v1/kv/app/name?index=", "/v1/kv/app?recurse&index=", "/v1/event/list?index=", "/v1/health/service/web?index=", "/v1/catalog/nodes?index=", "/v1/catalog/services?index=",
	} {
		w := secured(t)
		secret, accessor := w.tokenWith(`key_prefix "" { policy = "read" } service_prefix "" { policy = "read" } node_prefix "" { policy = "read" } event_prefix "" { policy = "read" }`)
		index := w.as(secret, "GET", strings.TrimSuffix(path, "index="), "").want(200).header.Get("X-Consul-Index")
		waiting := w.ask(path + index + "&token=" + secret)
		w.waits(1)
		w.as(rootSecret, "DELETE", "/v1/acl/token/"+accessor, "").want(200)
		w.as(rootSecret, "PUT", "/v1/kv/app/name", "changed").want(200)
		w.as(rootSecret, "PUT", "/v1/event/fire/deploy", "").want(200)
		w.as(rootSecret, "PUT", "/v1/agent/check/warn/web-ttl", "").want(200)
		w.as(rootSecret, "PUT", "/v1/catalog/register", `{"Node":"n7","Address":"10.0.0.7","Service":{"Service":"seven"}}`).want(200)
		if got := <-waiting; got.status != 403 || !strings.Contains(got.body, "ACL not found") {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}

// The content of a service and the log are waited for otherwise.
func TestOtherWaitsLoseTheirRights(t *testing.T) {
	w := secured(t)
	a := w.server.Config.Handler.(*Handler).api
	secret, accessor := w.tokenWith(`service "web" { policy = "read" } agent "server-1" { policy = "read" }`)
	hash := w.as(secret, "GET", "/v1/agent/service/web", "").want(200).header.Get("X-Consul-ContentHash")
	content := w.ask("/v1/agent/service/web?hash=" + hash + "&token=" + secret)
	monitor := w.ask("/v1/agent/monitor?token=" + secret)
	w.waits(1)
	eventually(t, "somebody listens to the log", func() bool { return a.process.Log.wants(slog.LevelInfo) })
	log := slog.New(a.process.Log.Handler(slog.DiscardHandler))
	w.as(rootSecret, "DELETE", "/v1/acl/token/"+accessor, "").want(200)
	log.Info("of no concern to them")
	w.as(rootSecret, "PUT", "/v1/agent/service/register", `{"Name":"web","Port":99}`).want(200)
	if got := <-content; got.status != 403 {
		t.Errorf("content: %d %s", got.status, got.body)
	}
	if got := <-monitor; strings.Contains(got.body, "concern") {
		t.Errorf("log: %s", got.body)
	}
}

// A policy that becomes narrower before or while a read waits holds for its answer, and
// is a reason to answer it.
func TestBlockedReadsAreFilteredByTheRightsOfNow(t *testing.T) {
	w := secured(t)
	id := w.as(rootSecret, "PUT", "/v1/acl/policy", `{"Name":"p","Rules":"key_prefix \"\" { policy = \"read\" }"}`).want(200).field("ID").(string)
	secret := w.as(rootSecret, "PUT", "/v1/acl/token", `{"Policies":[{"Name":"p"}]}`).want(200).field("SecretID").(string)
	index := w.as(secret, "GET", "/v1/kv/?keys", "").want(200).header.Get("X-Consul-Index")
	waiting := w.ask("/v1/kv/?keys&index=" + index + "&token=" + secret)
	w.waits(1)
	w.as(rootSecret, "PUT", "/v1/acl/policy/"+id, `{"Name":"p","Rules":"key \"other\" { policy = \"read\" }"}`).want(200)
	w.as(rootSecret, "PUT", "/v1/kv/another", "").want(200)
	if got := <-waiting; got.body != `["other"]`+"\n" {
		t.Errorf("waited before: %d %s", got.status, got.body)
	}
	index = w.as(secret, "GET", "/v1/kv/?keys", "").want(200).header.Get("X-Consul-Index")
	w.as(rootSecret, "PUT", "/v1/acl/policy/"+id, `{"Name":"p","Rules":"key \"another\" { policy = \"read\" }"}`).want(200)
	for range 2 { // who asks with the old index learns it, as often as they ask
		if got := w.as(secret, "GET", "/v1/kv/?keys&wait=5s&index="+index, ""); got.body != `["another"]`+"\n" || got.header.Get("X-Consul-Index") == index {
			t.Errorf("asked after: %d %s, index %s", got.status, got.body, got.header.Get("X-Consul-Index"))
		}
	}
}

// Without access control a request is not looked at.
func TestWithoutAccessControl(t *testing.T) {
	w := newWorld(t)
	w.send("GET", "/v1/catalog/nodes", "", "X-Consul-Token", "anything").want(200)
	for _, path := range []string{"acl/tokens", "acl/policies", "acl/roles", "acl/token/self", "acl/auth-methods", "acl/binding-rules", "acl/replication"} {
		if got := w.send("GET", "/v1/"+path, "").want(401); got.body != "ACL support disabled\n" {
			t.Errorf("%s: %q", path, got.body)
		}
	}
	w.send("PUT", "/v1/acl/bootstrap", "").want(401)
	w.send("PUT", "/v1/acl/login", "{}").want(401)
	a := w.server.Config.Handler.(*Handler).api
	r := httptest.NewRequest(http.MethodGet, "/v1/catalog/nodes", nil)
	q, err := a.parseQuery(r, "")
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if a.admit(nil, q, "catalog/nodes") != nil || a.stillMay(q) != nil {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestHistorySaysWho: with the accessor of the token, and never with its secret.
func TestHistorySaysWho(t *testing.T) {
	w := secured(t)
	secret, accessor := w.tokenWith(`service_prefix "" { policy = "write" }`)
	w.as(secret, "PUT", "/v1/agent/service/register", `{"Name":"signed","Port":1}`).want(200)
	w.as(rootSecret, "PUT", "/v1/agent/service/deregister/signed", "").want(200)
	h, err := w.registry.History(t.Context(), registry.HistoryRequest{Service: weft.NewServiceName("", "signed"), Since: weft.Duration(time.Hour)})
	if err != nil || len(h.Changes) != 2 {
		t.Fatalf("%+v, %v", h, err)
	}
	for i, token := range []string{accessor, initialAccessor} {
		if want := "Consul client 127.0.0.1 (token " + token + ")"; h.Changes[i].By != want {
			t.Errorf("by %q, want %q", h.Changes[i].By, want)
		}
	}
	open := newWorld(t)
	open.put("/v1/agent/service/register", `{"Name":"signed","Port":1}`)
	in, _ := open.registry.Instance(weft.InstanceKey{Node: "server-1", ID: "signed"})
	if h, err = open.registry.History(t.Context(), registry.HistoryRequest{Service: in.Service, Since: weft.Duration(time.Hour)}); err != nil || len(h.Changes) != 1 || h.Changes[0].By != "Consul client 127.0.0.1" {
		t.Errorf("without access control: %+v, %v", h, err)
	}
}
