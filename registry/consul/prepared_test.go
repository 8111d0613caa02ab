package consul

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// createQuery returns the id.
func (w *world) createQuery(definition string, header ...string) string {
	w.Helper()
	var created struct{ ID string }
	a := w.send("POST", "/v1/query", definition, header...).want(200)
	if err := json.Unmarshal([]byte(a.body), &created); err != nil || !isUUID(created.ID) {
		w.Fatalf("%v: %s", err, a.body)
	}
	return created.ID
}

// instances registers nodes n1, n2, … with an instance of redis each.
func (w *world) redis(list ...string) {
	w.Helper()
	for i, more := range list {
		w.put("/v1/catalog/register", fmt.Sprintf(`{"Node":"n%d","Address":"10.0.0.%d","NodeMeta":{"rack":"r%d"},%s}`, i+1, i+1, i+1, more))
	}
}

// executes returns the nodes of an execution, sorted as they came.
func (w *world) executes(path string, header ...string) string {
	w.Helper()
	var got struct {
		Nodes []struct{ Node struct{ Node string } }
	}
	a := w.send("GET", path, "", header...).want(200)
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || got.Nodes == nil {
		w.Fatalf("%v: %s", err, a.body)
	}
	var names []string
	for _, n := range got.Nodes {
		names = append(names, n.Node.Node)
	}
	return strings.Join(names, " ")
}

func TestPreparedQuery(t *testing.T) {
	w := newWorld(t)
	w.redis(`"Service":{"Service":"redis","Port":1}`)
	definition := `{"Name":"q","Service":{"Service":"redis","NodeMeta":{"rack":"r1"}},"DNS":{"TTL":"10s"}}`
	id := w.createQuery(definition)
	want := `{"ID":"uuid","Name":"q","Session":"","Token":"","Service":{"Service":"redis","Near":"","Failover":{"NearestN":0,"Datacenters":null,"Targets":null},
		"IgnoreCheckIDs":null,"OnlyPassing":false,"Tags":null,"NodeMeta":{"rack":"r1"},"ServiceMeta":null,"Connect":false},"DNS":{"TTL":"10s"},
		"Template":{"Type":"","Regexp":"","RemoveEmptyTags":false}}`
	first := w.get("/v1/query/" + id)
	first.wantJSON("[" + want + "]")
	w.get("/v1/query").wantJSON("[" + want + "]")
	w.get("/v1/query/Q/explain").wantJSON(`{"Query":` + want + `}`)
	a := w.get("/v1/query/Q/execute") // names are compared without case
	if got := w.executes("/v1/query/" + id + "/execute"); got != "n1" || !strings.Contains(a.body, `"TTL":"10s"`) || !strings.Contains(a.body, `"Datacenter":"dc1"`) {
		t.Errorf("%q, %s", got, a.body)
	}
	blocked := make(chan answer, 1)
	go func() {
		a, _ := w.trySend("GET", "/v1/query/"+id+"?wait=10s&index="+itoa(first.index()), "")
		blocked <- a
	}()
	w.createQuery(strings.Replace(definition, `"q"`, `"other"`, 1))
	w.put("/v1/query/"+id, strings.Replace(definition, `"q"`, `"renamed"`, 1))
	if a := <-blocked; a.status != 200 || !strings.Contains(a.body, "renamed") {
		t.Errorf("%d %s", a.status, a.body)
	}
	w.send("GET", "/v1/query/q/execute", "").want(404)
	w.createQuery(definition) // its name is free again
	w.send("DELETE", "/v1/query/"+id, "").want(200)
	w.send("GET", "/v1/query/"+id, "").want(404)
	w.send("GET", "/v1/query/renamed/execute", "").want(404)
}

func TestPreparedQueryFilters(t *testing.T) {
	w := newWorld(t)
	w.redis(
		`"Service":{"Service":"redis","Tags":["Primary","v1"],"Meta":{"version":"4"}}`,
		`"Service":{"Service":"redis","Tags":["v1"]},"Check":{"CheckID":"slow","Name":"slow","ServiceID":"redis","Status":"warning"}`,
		`"Service":{"Service":"redis","Tags":["v2"]},"Check":{"CheckID":"down","Name":"down","ServiceID":"redis","Status":"critical"}`,
		`"Service":{"Service":"redis"},"Check":{"CheckID":"node","Name":"node","Status":"critical"}`,
	)
	w.put("/v1/catalog/register", `{"Node":"n1","Address":"10.0.0.1","NodeMeta":{"rack":"r1"},"Service":{"ID":"p","Service":"redis-proxy","Kind":"connect-proxy","Port":7,"Proxy":{"DestinationServiceName":"redis"}}}`)
	for _, c := range []struct{ name, service, want string }{
		{"near", `"Near":"n2"`, "n2 n1"},
		{"passing", `"OnlyPassing":true`, "n1"},
		{"ignored", `"Near":"n3","IgnoreCheckIDs":["down"],"Tags":["v2"]`, "n3"},
		{"of-node", `"IgnoreCheckIDs":["node"],"NodeMeta":{"rack":"r4"}`, "n4"},
		{"tag", `"Tags":["primary"]`, "n1"},
		{"without", `"Tags":["!primary"]`, "n2"},
		{"meta", `"ServiceMeta":{"version":"4"}`, "n1"},
		{"rack", `"NodeMeta":{"rack":"r2"}`, "n2"},
		{"nothing", `"NodeMeta":{"rack":"r9"},"Failover":{"Datacenters":["dc2","dc3"]}`, ""},
		{"connect", `"Connect":true`, "n1"},
	} {
		w.createQuery(fmt.Sprintf(`{"Name":%q,"Service":{"Service":"redis",%s}}`, c.name, c.service))
		if got := w.executes("/v1/query/" + c.name + "/execute"); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if a := w.get("/v1/query/nothing/execute"); !strings.Contains(a.body, `"Failovers":2`) || !strings.Contains(a.body, `"Nodes":[]`) {
		t.Error(a.body)
	}
	if got := w.executes("/v1/query/near/execute?near=n1&limit=1"); got != "n1" {
		t.Errorf("near and limit of the request: %q", got)
	}
	for _, path := range []string{"/v1/query/near/execute?connect=true", "/v1/query/near/execute/connect"} {
		if a := w.get(path); !strings.Contains(a.body, `"redis-proxy"`) || strings.Contains(a.body, `"Service":"redis",`+`"Tags"`) {
			t.Error(a.body)
		}
	}
}

func TestPreparedQueryFailsOverToNamespace(t *testing.T) {
	w := newWorld(t)
	w.redis(`"Service":{"Service":"redis","Namespace":"spare"}`)
	w.createQuery(`{"Name":"q","Service":{"Service":"redis","Failover":{"Targets":[{"Peer":"elsewhere"},{"Datacenter":"dc1","Namespace":"spare"}]}}}`)
	if a := w.get("/v1/query/q/execute"); !strings.Contains(a.body, `"n1"`) || !strings.Contains(a.body, `"Failovers":2`) {
		t.Error(a.body)
	}
}

func TestQueryTemplates(t *testing.T) {
	w := newWorld(t)
	w.createQuery(`{"Name":"","Template":{"Type":"name_prefix_match"},"Service":{"Service":"${name.full}"}}`)
	w.createQuery(`{"Name":"geo-","Template":{"Type":"name_prefix_match","Regexp":"^geo-(.*?)-([^-]+?)$","RemoveEmptyTags":true},
		"Service":{"Service":"${match(1)}","Tags":["${match(2)}","${match(7)}"],"NodeMeta":{"pre":"${name.prefix}"},"Near":"${ name.suffix }"},"DNS":{"TTL":"${match(3)}"}}`)
	w.createQuery(`{"Name":"geo-db-master","Service":{"Service":"exact"}}`)
	for _, c := range []struct{ name, service, tags, near string }{
		{"anything", "anything", "null", ""},
		{"geo-db-slave", "db", `["slave"]`, "db-slave"},
		{"GEO-x", "", "[]", "x"}, // the expression does not fit
		{"geo-db-master", "exact", "null", ""},
	} {
		var got struct {
			Query struct {
				Service struct {
					Service, Near string
					Tags          json.RawMessage
				}
			}
		}
		if err := json.Unmarshal([]byte(w.get("/v1/query/"+c.name+"/explain").body), &got); err != nil {
			t.Fatal(err)
		}
		if s := got.Query.Service; s.Service != c.service || string(s.Tags) != c.tags || s.Near != c.near {
			t.Errorf("%s: %s %s %s, want %+v", c.name, s.Service, s.Tags, s.Near, c)
		}
	}
	w.send("POST", "/v1/query", `{"Name":"GEO-","Template":{"Type":"name_prefix_match"},"Service":{"Service":"x"}}`).want(400)
}

// A query ends with its session: at once, for whoever asks, and its name is free.
func TestQueryEndsWithSession(t *testing.T) {
	w := newWorld(t)
	var session struct{ ID string }
	if err := json.Unmarshal([]byte(w.put("/v1/session/create", `{"LockDelay":"0s"}`).body), &session); err != nil {
		t.Fatal(err)
	}
	definition := `{"Name":"q","Session":"` + session.ID + `","Service":{"Service":"redis"}}`
	id := w.createQuery(definition)
	w.get("/v1/query/q/execute")
	if got := w.get("/v1/query/" + id); got.field("0.Session") != session.ID {
		t.Errorf("%s", got.body)
	}
	unbound := strings.Replace(definition, session.ID, "", 1)
	for _, d := range []string{unbound, definition, definition} { // it may be bound later, and freed
		w.put("/v1/query/"+id, d)
	}
	index := w.get("/v1/query").index()
	waits := make(chan answer, 1)
	go func() {
		a, _ := w.trySend("GET", "/v1/query?wait=10s&index="+itoa(index), "")
		waits <- a
	}()
	w.put("/v1/session/destroy/"+session.ID, "")
	if a := <-waits; a.status != 200 || a.body != "[]\n" || a.index() <= index {
		t.Errorf("who waits for the queries is told %d %s at %d", a.status, a.body, a.index())
	}
	if kept, _ := w.registry.Keys(queryTree, ""); len(kept) != 0 {
		t.Errorf("%d queries are kept", len(kept))
	}
	for _, path := range []string{"/v1/query/q/execute", "/v1/query/" + id, "/v1/query/" + id + "/explain"} {
		w.send("GET", path, "").want(404)
	}
	w.get("/v1/query").wantJSON("[]")
	if a := w.send("POST", "/v1/query", definition); a.status != 400 || !strings.Contains(a.body, "invalid session") {
		t.Errorf("%d %s", a.status, a.body)
	}
	w.createQuery(`{"Name":"q","Service":{"Service":"redis"}}`)
	second := w.put("/v1/session/create", `{"LockDelay":"0s"}`).field("ID").(string)
	w.createQuery(`{"Name":"r","Session":"` + second + `","Service":{"Service":"redis"}}`)
	w.put("/v1/session/destroy/"+second, "")
	w.createQuery(`{"Name":"s","Service":{"Service":"redis"}}`)
	if kept, _ := w.registry.Keys(nameTree, "query/"); len(kept) != 2 {
		t.Errorf("%d names are kept, want those of q and s", len(kept))
	}
}

func TestWrongQueries(t *testing.T) {
	w := newWorld(t)
	id := w.createQuery(`{"Name":"taken","Service":{"Service":"redis"}}`)
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"POST", "", `{}`, 400, "Service.Service"},
		{"POST", "", `{`, 400, "JSON"},
		{"POST", "", `[]`, 400, "want an object"},
		{"POST", "", `{"ID":"x","Service":{"Service":"a"}}`, 400, "ID must be empty"},
		{"POST", "", `{"Name":"Taken","Service":{"Service":"a"}}`, 400, "is there already"},
		{"POST", "", `{"Name":"a/b","Service":{"Service":"a"}}`, 400, "Name"},
		{"POST", "", `{"Name":"` + id + `","Service":{"Service":"a"}}`, 400, "looks like an ID"},
		{"POST", "", `{"Service":{"Service":"a","SamenessGroup":"g"}}`, 400, "Service.SamenessGroup: weft does not carry this out"},
		{"POST", "", `{"Service":{"Service":"a","Partition":"p"}}`, 400, "Service.Partition"},
		{"POST", "", `{"Service":{"Service":"a","Failover":{"NearestN":-1}}}`, 400, "NearestN"},
		{"POST", "", `{"Service":{"Service":"a","Failover":{"NearestN":1,"Targets":[{"Peer":"p"}]}}}`, 400, "Targets"},
		{"POST", "", `{"Service":{"Service":"a"},"DNS":{"TTL":"soon"}}`, 400, "DNS.TTL"},
		{"POST", "", `{"Service":{"Service":"a"},"DNS":{"TTL":"-1s"}}`, 400, "DNS.TTL"},
		{"POST", "", `{"Service":{"Service":"a"},"Template":{"Regexp":"a"}}`, 400, "Template.Regexp"},
		{"POST", "", `{"Service":{"Service":"a"},"Template":{"Type":"best"}}`, 400, "Template.Type"},
		{"POST", "", `{"Service":{"Service":"a"},"Template":{"Type":"name_prefix_match","Regexp":"("}}`, 400, "Template.Regexp"},
		{"POST", "", `{"Service":{"Service":"${name.whole}"},"Template":{"Type":"name_prefix_match"}}`, 400, "${name.whole}"},
		{"POST", "", `{"Session":"none","Service":{"Service":"a"}}`, 400, "invalid session"},
		{"PUT", "/" + id, `{"ID":"x","Service":{"Service":"a"}}`, 400, "ID"},
		{"PUT", "/" + newUUID(), `{"Service":{"Service":"a"}}`, 404, "Query not found"},
		{"PUT", "/", `{"Service":{"Service":"a"}}`, 400, "query ID"},
		{"DELETE", "/" + newUUID(), ``, 404, "Query not found"},
		{"GET", "/" + newUUID(), ``, 404, "Query not found"},
		{"GET", "/none/execute", ``, 404, "Query not found"},
		{"GET", "/none/explain", ``, 404, "Query not found"},
		{"GET", "/taken/execute?limit=some", ``, 400, "limit"},
		{"GET", "/taken/execute?connect=perhaps", ``, 400, "connect"},
	} {
		a := w.send(c.method, "/v1/query"+c.path, c.body)
		if a.status != c.status || !strings.Contains(a.body, c.says) {
			t.Errorf("%s %s %s: %d %swant %d %q", c.method, c.path, c.body, a.status, a.body, c.status, c.says)
		}
	}
}

// Who executes a query with a token sees what that token sees; the token itself is
// shown to managers only.
func TestQueryTokens(t *testing.T) {
	access := &ACL{DefaultPolicy: "deny", InitialManagement: "root", SealKey: []byte("a key")}
	w := worldWith(t, Config{ACL: access})
	as := func(token string) []string { return []string{"X-Consul-Token", token} }
	var made struct{ AccessorID, SecretID string }
	w.send("PUT", "/v1/acl/policy", `{"Name":"reads","Rules":"service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" } query \"own\" { policy = \"write\" }"}`, as("root")...).want(200)
	a := w.send("PUT", "/v1/acl/token", `{"Policies":[{"Name":"reads"}]}`, as("root")...).want(200)
	if err := json.Unmarshal([]byte(a.body), &made); err != nil {
		t.Fatal(err)
	}
	w.send("PUT", "/v1/catalog/register", `{"Node":"n1","Address":"10.0.0.1","Service":{"Service":"redis"}}`, as("root")...).want(200)
	w.createQuery(`{"Name":"lent","Token":"`+made.SecretID+`","Service":{"Service":"redis"}}`, as("root")...)
	w.createQuery(`{"Name":"plain","Service":{"Service":"redis"}}`, as("root")...)
	if got := w.executes("/v1/query/lent/execute"); got != "n1" {
		t.Errorf("with its own token: %q", got)
	}
	if got := w.executes("/v1/query/plain/execute"); got != "" {
		t.Errorf("without any: %q", got)
	}
	id := w.createQuery(`{"Name":"own","Token":"`+made.SecretID+`","Service":{"Service":"redis"}}`, as(made.SecretID)...)
	w.send("POST", "/v1/query", `{"Name":"else","Service":{"Service":"redis"}}`, as(made.SecretID)...).want(http.StatusForbidden)
	list := w.send("GET", "/v1/query", "", as(made.SecretID)...).want(200)
	if strings.Contains(list.body, "lent") || !strings.Contains(list.body, `"Token":"`+`\u003chidden\u003e"`) {
		t.Error(list.body)
	}
	// what they were shown can be sent back
	w.send("PUT", "/v1/query/"+id, `{"Name":"own","Token":"<hidden>","Service":{"Service":"redis","OnlyPassing":true}}`, as(made.SecretID)...).want(200)
	if a := w.send("GET", "/v1/query/"+id, "", as("root")...).want(200); !strings.Contains(a.body, made.SecretID) {
		t.Error("the token is lost:", a.body)
	}
	if a := w.send("POST", "/v1/query", `{"Token":"nobody's","Service":{"Service":"redis"}}`, as("root")...); a.status != 403 || a.body != "ACL not found\n" {
		t.Errorf("a token that nobody has: %d %s", a.status, a.body)
	}
	entries, _ := w.registry.Keys(queryTree, "")
	for _, e := range entries {
		if strings.Contains(string(e.Value), made.SecretID) {
			t.Errorf("the store tells a token: %s", e.Value)
		}
	}
	// DNS has no tokens: it sees what the query's token may, or else the anonymous one.
	dns := NewQueries(w.registry, access)
	for name, want := range map[string]int{"lent": 1, "plain": 0} {
		if list, _, ok := dns.Execute(name, 9); !ok || len(list) != want {
			t.Errorf("DNS sees %d instances by %s, %v, want %d", len(list), name, ok, want)
		}
	}
	w.send("DELETE", "/v1/query/"+id, "").want(http.StatusForbidden)
	w.send("DELETE", "/v1/query/"+id, "", as(made.SecretID)...).want(200)
	w.send("DELETE", "/v1/acl/token/"+made.AccessorID, "", as("root")...).want(200)
	w.send("GET", "/v1/query/lent/execute", "").want(http.StatusForbidden)
	if list, _, ok := dns.Execute("lent", 9); !ok || len(list) != 0 {
		t.Errorf("DNS sees %d instances by a token that ended", len(list))
	}
}

// An accessor names a token and is known to many: it is none itself, also when a query
// was executed by it.
func TestAccessorIsNoToken(t *testing.T) {
	w := worldWith(t, Config{ACL: &ACL{DefaultPolicy: "deny", InitialManagement: "root"}})
	w.createQuery(`{"Name":"lent","Token":"root","Service":{"Service":"redis"}}`, "X-Consul-Token", "root")
	w.get("/v1/query/lent/execute")
	w.send("GET", "/v1/acl/tokens", "", "X-Consul-Token", initialAccessor).want(http.StatusForbidden)
	if got := w.send("GET", "/v1/query/lent/explain", "", "X-Consul-Token", "root").want(200); got.field("Query.Token") != hidden {
		t.Errorf("without a key it cannot be told: %s", got.body)
	}
}

func TestQueriesForDNS(t *testing.T) {
	w := newWorld(t)
	queries := NewQueries(w.registry, nil)
	if _, _, found := queries.Execute("q", 9); found {
		t.Error("a query is found that nobody wrote")
	}
	w.redis(`"Service":{"Service":"redis"}`, `"Service":{"Service":"redis"}`, `"Service":{"Service":"redis"}`)
	w.createQuery(`{"Name":"Q","Service":{"Service":"redis","Near":"n2"},"DNS":{"TTL":"7s"}}`)
	list, ttl, found := queries.Execute("q", 2)
	if !found || len(list) != 2 || list[0].Node != "n2" || ttl != 7*time.Second {
		t.Errorf("%v %v %v", list, ttl, found)
	}
	seen := make(map[string]bool) // without a place the order is random
	w.createQuery(`{"Name":"any","Service":{"Service":"redis"}}`)
	for range 200 {
		list, _, _ := queries.Execute("any", 1)
		seen[list[0].Node] = true
	}
	if len(seen) != 3 {
		t.Errorf("always the same are first: %v", seen)
	}
}
