package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a registry with the API before it, on a loopback port.
type world struct {
	*testing.T
	registry *registry.Registry
	server   *httptest.Server
	stop     context.CancelFunc // of every request's context
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return worldWith(t, Config{})
}

func worldWith(t *testing.T, c Config) *world {
	t.Helper()
	r := newRegistry(t)
	w := &world{T: t, registry: r, server: httptest.NewUnstartedServer(New(r, c))}
	w.server.Config.BaseContext, w.stop = baseContext()
	w.server.Start()
	t.Cleanup(func() {
		w.stop()
		w.server.Close()
	})
	return w
}

// newRegistry opens one that is closed at the end of the test.
func newRegistry(t testing.TB) *registry.Registry {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.Open(t.Context(), registry.Config{
		Store: st, Datacenter: "dc1",
		Node: weft.Node{Name: "server-1", Address: "127.0.0.1", Labels: map[string]string{"rack": "r1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		st.Close()
	})
	return r
}

// answer is what the API said.
type answer struct {
	*testing.T
	status int
	header http.Header
	body   string
}

// send makes a request with the path as it is written here.
func (w *world) send(method, path, body string, header ...string) answer {
	w.Helper()
	a, err := w.trySend(method, path, body, header...)
	if err != nil {
		w.Fatal(err)
	}
	return a
}

func (w *world) trySend(method, path, body string, header ...string) (answer, error) {
	r, err := http.NewRequest(method, w.server.URL+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{T: w.T, status: resp.StatusCode, header: resp.Header, body: string(b)}, err
}

func (w *world) get(path string) answer { w.Helper(); return w.send("GET", path, "").want(200) }
func (w *world) put(path, body string) answer {
	w.Helper()
	return w.send("PUT", path, body).want(200)
}

func (a answer) want(status int) answer {
	a.Helper()
	if a.status != status {
		a.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	return a
}

func (a answer) index() uint64 {
	a.Helper()
	n, err := strconv.ParseUint(a.header.Get("X-Consul-Index"), 10, 64)
	if err != nil {
		a.Fatal(err)
	}
	return n
}

// wantJSON compares the body, without the indexes in it, which no test can know.
func (a answer) wantJSON(want string) {
	a.Helper()
	got, wanted := canonical(a.T, a.body), canonical(a.T, want)
	if got != wanted {
		a.Errorf("got\n%s\nwant\n%s", got, wanted)
	}
}

func canonical(t *testing.T, text string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	b, err := json.MarshalIndent(withoutIndexes(v), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func withoutIndexes(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for _, varies := range []string{"CreateIndex", "ModifyIndex", "ContentHash"} {
			delete(v, varies)
		}
		if id, ok := v["ID"].(string); ok && len(id) == 36 {
			v["ID"] = "uuid"
		}
		for k := range v {
			v[k] = withoutIndexes(v[k])
		}
	case []any:
		for i := range v {
			v[i] = withoutIndexes(v[i])
		}
	}
	return v
}

// field reads one value out of a JSON body: field("0.Service.ID").
func (a answer) field(path string) any {
	a.Helper()
	var v any
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		a.Fatalf("%v: %s", err, a.body)
	}
	for part := range strings.SplitSeq(path, ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[part]
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i >= len(at) {
				a.Fatalf("no %s in %s", path, a.body)
			}
			v = at[i]
		default:
			a.Fatalf("no %s in %s", path, a.body)
		}
	}
	return v
}

// ids are the ids of the services in an answer of health/service or catalog/service.
func (a answer) ids() string {
	a.Helper()
	var list []struct {
		ServiceID string
		Service   struct{ ID string }
	}
	if err := json.Unmarshal([]byte(a.body), &list); err != nil {
		a.Fatalf("%v: %s", err, a.body)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.ServiceID+e.Service.ID)
	}
	return strings.Join(out, " ")
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in 10 s: %s", what)
		}
	}
}

func TestEveryReadHasTheHeaders(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/agent/service/register", `{"Name":"web","Check":{"TTL":"1h","Status":"passing"}}`)
	for _, path := range []string{
		"/v1/agent/self", "/v1/agent/members", "/v1/agent/services", "/v1/agent/service/web", "/v1/agent/checks",
		"/v1/agent/health/service/id/web", "/v1/agent/health/service/name/web", "/v1/catalog/datacenters", "/v1/catalog/nodes",
		"/v1/catalog/node/server-1", "/v1/catalog/node-services/server-1", "/v1/catalog/services", "/v1/catalog/service/web",
		"/v1/health/service/web", "/v1/health/checks/web", "/v1/health/node/server-1", "/v1/health/state/any",
		"/v1/status/leader", "/v1/status/peers",
		// of what is not there
		"/v1/catalog/node/none", "/v1/catalog/service/none", "/v1/health/service/none", "/v1/health/checks/none",
		"/v1/health/node/none", "/v1/health/state/critical",
	} {
		a := w.get(path)
		if a.index() < 1 {
			t.Errorf("%s: index %d", path, a.index())
		}
		for name, want := range map[string]string{
			"X-Consul-LastContact": "0", "X-Consul-KnownLeader": "true", "X-Consul-Effective-Consistency": "leader",
			"Content-Type": "application/json",
		} {
			if got := a.header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
		if list := strings.TrimSpace(a.body); list == "null" && path != "/v1/catalog/node/none" {
			t.Errorf("%s: null", path)
		}
		if head := w.send("HEAD", path, "").want(200); head.index() != a.index() || head.body != "" {
			t.Errorf("HEAD %s: index %d, body %q", path, head.index(), head.body)
		}
		if pretty := w.get(path + "?pretty"); path == "/v1/agent/members" && !strings.Contains(pretty.body, "\n        \"Name\"") {
			t.Errorf("%s?pretty: %s", path, pretty.body)
		}
	}
	for consistency, query := range map[string]string{"stale": "?stale", "consistent": "?consistent=", "leader": "?stale=false"} {
		if got := w.get("/v1/catalog/nodes" + query).header.Get("X-Consul-Effective-Consistency"); got != consistency {
			t.Errorf("%s: %s", query, got)
		}
	}
}

// What Consul sends to the path with the slash is answered, and OPTIONS says what a
// path takes.
func TestPathsAsTheyAreTyped(t *testing.T) {
	w := newWorld(t)
	w.send("PUT", "/v1/kv/a", "x").want(200)
	if got := w.send("GET", "/v1/kv?keys", "").want(200).body; strings.TrimSpace(string(got)) != `["a"]` {
		t.Errorf("the keys are %s", got)
	}
	w.send("GET", "/v1/kv", "").want(400)
	w.send("GET", "/v1/health/service", "").want(400)
	if got := w.send("OPTIONS", "/v1/kv/a", "").want(200).header.Get("Allow"); got != "OPTIONS, GET, HEAD, PUT, DELETE" {
		t.Errorf("a key takes %s", got)
	}
}

func TestWrongRequests(t *testing.T) {
	w := newWorld(t)
	big := `{"Name":"web","Meta":{"x":"` + strings.Repeat("x", 10<<20) + `"}}`
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"PUT", "/v1/agent/service/register", `{"ID":"a"}`, 400, "Missing service name"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Address":"0.0.0.0"}`, 400, "Invalid service address"},
		{"PUT", "/v1/agent/service/register", ``, 400, "empty"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web",}`, 400, "at byte 15"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Port":"80"}`, 400, "Port"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Port":70000}`, 400, "70000"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"HTTP":"http://127.0.0.1","Interval":"often"}}`, 400, "check interval"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"HTTP":"http://127.0.0.1","Interval":"-1s"}}`, 400, "interval"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"HTTP":"http://127.0.0.1"}}`, 400, "interval"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"HTTP":"/health","Interval":"1s"}}`, 400, "URL"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"TCP":"here","Interval":"1s"}}`, 400, "host:port"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"TTL":"-3s"}}`, 400, "ttl"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"TTL":"3s","TCP":"a:1"}}`, 400, "only one"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"Name":"nothing","CheckID":"n"}}`, 400, "TTL, ScriptArgs, AliasNode, AliasService or Status"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"TTL":"3s","Status":"fine"}}`, 400, "fine"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"TTL":"3s","Status":"maintenance"}}`, 400, "maintenance"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"GRPC":"a:1","UDP":"a:1","Interval":"1s"}}`, 400, "only one"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"ScriptArgs":["a"],"Interval":"1s"}}`, 400, "Scripts are disabled"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Check":{"docker_container_id":"a","Interval":"1s"}}`, 400, "Docker check is not supported"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Checks":[{"UDP":"here","Interval":"1s"}]}`, 400, "host:port"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Checks":[{"H2PING":"a:1"}]}`, 400, "interval"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Checks":[{"GRPC":"a:1","OSService":"a","Interval":"1s"}]}`, 400, "OSService check is not supported"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Kind":"connect-proxy"}`, 400, "DestinationServiceName"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Kind":"teapot"}`, 400, "teapot"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Connect":{"SidecarService":{"ID":"x"}}}`, 400, "can't have an ID"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Ports":[{"Name":"a","Port":1}]}`, 400, "marked as Default"},
		{"PUT", "/v1/agent/service/register", `{"Name":"web","Partition":"p"}`, 400, "no partitions"},
		{"PUT", "/v1/agent/service/register?replace-existing-checks=perhaps", `{"Name":"web"}`, 400, "replace-existing-checks"},
		{"PUT", "/v1/agent/service/register", big, 413, "over 1048576 bytes"},
		{"PUT", "/v1/agent/service/deregister/none", ``, 404, "none"},
		{"PUT", "/v1/agent/service/deregister/", ``, 400, "missing service ID"},
		{"PUT", "/v1/agent/service/maintenance/none?enable=true", ``, 404, "none"},
		{"PUT", "/v1/agent/service/maintenance/none", ``, 400, "enable"},
		{"PUT", "/v1/agent/service/maintenance/none?enable=perhaps", ``, 400, "enable"},
		{"PUT", "/v1/agent/maintenance", ``, 400, "enable"},
		{"PUT", "/v1/agent/check/register", `{"TTL":"1s"}`, 400, "Missing check name"},
		{"PUT", "/v1/agent/check/register", `{"Name":"c","TTL":"1s","ServiceID":"none"}`, 404, "none"},
		{"PUT", "/v1/agent/check/deregister/none", ``, 404, "none"},
		{"PUT", "/v1/agent/check/pass/none", ``, 404, "none"},
		{"PUT", "/v1/agent/check/warn/none", ``, 404, "none"},
		{"PUT", "/v1/agent/check/fail/none", ``, 404, "none"},
		{"PUT", "/v1/agent/check/update/none", `{"Status":"passing"}`, 404, "none"},
		{"PUT", "/v1/agent/check/update/none", `{"Status":"pass"}`, 400, "pass"},
		{"PUT", "/v1/catalog/register", `{"Node":"n"}`, 400, "Address"},
		{"PUT", "/v1/catalog/register", `{"Address":"10.0.0.1"}`, 400, "Node"},
		{"PUT", "/v1/catalog/register", `{"Node":"n","Address":"10.0.0.1","Service":{"ID":"x"}}`, 400, "missing Service"},
		{"PUT", "/v1/catalog/register", `{"Node":"n","Address":"10.0.0.1","Check":{"CheckID":"x","Status":"fine"}}`, 400, "fine"},
		{"PUT", "/v1/catalog/register", `{"Node":"n","Address":"10.0.0.1","Datacenter":"dc2"}`, 500, "No path to datacenter"},
		{"PUT", "/v1/catalog/deregister", `{}`, 400, "missing Node"},
		{"GET", "/v1/agent/service/none", ``, 404, "none"},
		{"GET", "/v1/agent/health/service/id/none", ``, 404, "none"},
		{"GET", "/v1/agent/health/service/name/none", ``, 404, "none"},
		{"GET", "/v1/health/state/fine", ``, 400, "fine"},
		{"GET", "/v1/health/service/", ``, 400, "missing service name"},
		{"GET", "/v1/catalog/nodes?stale&consistent", ``, 400, "exclude"},
		{"GET", "/v1/catalog/nodes?wait=soon", ``, 400, "wait"},
		{"GET", "/v1/catalog/nodes?wait=-1s", ``, 400, "wait"},
		{"GET", "/v1/catalog/nodes?index=new", ``, 400, "index"},
		{"GET", "/v1/catalog/nodes?filter=Nod%20==%20x", ``, 400, "filter at 1"},
		{"GET", "/v1/health/service/web?passing=perhaps", ``, 400, "passing"},
		{"GET", "/v1/catalog/nodes?dc=dc2", ``, 500, "No path to datacenter"},
		{"PUT", "/v1/agent/service/register?dc=dc2", `{"Name":"web"}`, 500, "No path to datacenter"},
		{"GET", "/v1/status/leader?dc=dc2", ``, 500, "No path to datacenter"},
		{"GET", "/v1/nothing", ``, 404, "no such endpoint"},
		{"GET", "/v1/agent/services/", ``, 404, "no such endpoint"},
		{"GET", "/", ``, 404, "/v1/"},
		{"GET", "/v1/health/service/web?peer=far", ``, 501, "peering"},
		{"GET", "/v1/health/service/web?partition=p", ``, 400, "no partitions"},
		{"GET", "/v1/internal/ui/services", ``, 501, "dashboard"},
		{"PUT", "/v1/peering/token", `{}`, 501, "cluster peering"},
		{"GET", "/v1/operator/keyring", ``, 501, "operating a Consul cluster"},
		{"PUT", "/v1/operator/autopilot/configuration", `{}`, 501, "autopilot"},
		{"PUT", "/v1/agent/token/default", `{"Token":"x"}`, 401, "ACL support disabled"},
	} {
		a := w.send(c.method, c.path, c.body)
		if a.status != c.status || !strings.Contains(a.body, c.says) || strings.Count(a.body, "\n") != 1 {
			t.Errorf("%s %s %.80s: %d %s\nwant %d with %q", c.method, c.path, c.body, a.status, a.body, c.status, c.says)
		}
		if ct := a.header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain") {
			t.Errorf("%s %s: Content-Type %s", c.method, c.path, ct)
		}
	}
	w.get("/v1/agent/services").wantJSON(`{}`)
	w.get("/v1/catalog/nodes").wantJSON(`[` + ownNode + `]`)
}

// A body that says that it is too long is not read at all.
func TestBodyOfKnownLength(t *testing.T) {
	w := newWorld(t)
	body := &countingReader{}
	r := httptest.NewRequest("PUT", "/v1/agent/service/register", body)
	r.ContentLength = maxBody + 1
	rec := httptest.NewRecorder()
	w.server.Config.Handler.ServeHTTP(rec, r)
	if rec.Code != 413 || body.n > 0 {
		t.Errorf("status %d after %d bytes: %s", rec.Code, body.n, rec.Body)
	}
}

// countingReader is endless.
type countingReader struct{ n int }

func (c *countingReader) Read(b []byte) (int, error) { c.n += len(b); return len(b), nil }

// A client that does not say how long its body is may not send more either.
func TestBodyOfUnknownLength(t *testing.T) {
	w := newWorld(t)
	long := io.MultiReader(strings.NewReader(`{"Name":"`), bytes.NewReader(bytes.Repeat([]byte("x"), 2<<20)))
	r := httptest.NewRequest("PUT", "/v1/agent/service/register", long)
	r.ContentLength = -1
	rec := httptest.NewRecorder()
	w.server.Config.Handler.ServeHTTP(rec, r)
	if rec.Code != 413 {
		t.Errorf("status %d: %s", rec.Code, rec.Body)
	}
}

func TestWrongMethodNamesTheRightOne(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct{ method, path, allow string }{
		{"GET", "/v1/agent/service/register", "PUT"},
		{"POST", "/v1/agent/service/register", "PUT"},
		{"GET", "/v1/agent/service/deregister/web", "PUT"},
		{"DELETE", "/v1/catalog/services", "GET, HEAD"},
		{"PUT", "/v1/health/service/web", "GET, HEAD"},
		{"GET", "/v1/agent/check/pass/x", "PUT"},
	} {
		if a := w.send(c.method, c.path, "").want(405); a.header.Get("Allow") != c.allow {
			t.Errorf("%s %s: Allow %q", c.method, c.path, a.header.Get("Allow"))
		}
	}
}

// Tokens may stand in three places. There are no access lists: none of them is wrong.
func TestTokensAreAccepted(t *testing.T) {
	w := newWorld(t)
	w.send("PUT", "/v1/agent/service/register?token=t", `{"Name":"a"}`).want(200)
	w.send("PUT", "/v1/agent/service/register", `{"Name":"b"}`, "X-Consul-Token", "t").want(200)
	w.send("PUT", "/v1/agent/service/register", `{"Name":"c"}`, "Authorization", "Bearer t", "Content-Type", "text/html").want(200)
	w.get("/v1/catalog/services").wantJSON(`{"a":[],"b":[],"c":[]}`)
}

// What clients escape arrives as it was meant, and nothing is redirected.
func TestPaths(t *testing.T) {
	w := newWorld(t)
	w.put("/v1/agent/service/register", `{"Name":"a/b","ID":"a/b:1","Check":{"TTL":"1h"}}`)
	w.put("/v1/agent/check/pass/service%3Aa%2Fb%3A1", "")
	w.put("/v1/agent/check/warn/service:a/b:1", "")
	for path, status := range map[string]int{
		"/v1/health/service/a%2Fb":           200,
		"/v1/health/service/a/b":             200,
		"/v1/health/service/a//b":            200, // another name, with no instance
		"/v1/agent/service/a%2Fb%3A1":        200,
		"/v1/agent/service/register%2Fx":     404,
		"/v1/agent//services":                404,
		"/v1//agent/services":                404,
		"//v1/agent/services":                404,
		"/v1/agent/../agent/services":        404,
		"/v1/agent/health/service/id/a/b:1/": 404,
	} {
		w.send("GET", path, "").want(status)
	}
	if got := w.get("/v1/health/service/a%2fb").ids(); got != "a/b:1" {
		t.Errorf("got %q", got)
	}
	w.get("/v1/health/service/a//b").wantJSON(`[]`)
	w.put("/v1/agent/service/deregister/a%2Fb%3A1", "")
	w.get("/v1/catalog/services").wantJSON(`{}`)
}
