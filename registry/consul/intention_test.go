package consul

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func (w *world) intend(source, destination, rest string) {
	w.Helper()
	w.put("/v1/connect/intentions/exact?source="+source+"&destination="+destination, "{"+rest+"}").wantJSON("true")
}

// pairs lists intentions as "source>destination action".
func (a answer) pairs() string {
	a.Helper()
	var list []intentionRecord
	if err := json.Unmarshal([]byte(a.body), &list); err != nil {
		a.Fatal(err, a.body)
	}
	var out []string
	for _, r := range list {
		out = append(out, fmt.Sprintf("%s>%s %s %d", r.SourceName, r.DestinationName, r.Action, r.Precedence))
	}
	return strings.Join(out, ", ")
}

func TestIntentions(t *testing.T) {
	w := newWorld(t)
	w.get("/v1/connect/intentions").wantJSON("[]")
	w.intend("*", "*", `"Action":"deny"`)
	w.intend("web", "db", `"Action":"allow","Description":"reads"`)
	w.intend("default/api", "default/default/db", `"Action":"deny"`)
	w.intend("*", "db", `"Action":"deny"`)
	all := w.get("/v1/connect/intentions")
	if got := all.pairs(); got != "api>db deny 9, web>db allow 9, *>db deny 8, *>* deny 5" {
		t.Error(got)
	}
	if got := w.get("/v1/connect/intentions?filter=Action==allow").pairs(); got != "web>db allow 9" {
		t.Error(got)
	}
	w.intend("web", "db", `"Action":"deny"`) // replaces
	w.intend("web", "db", `"Action":"allow"`)
	one := w.get("/v1/connect/intentions/exact?source=web&destination=db")
	if !strings.Contains(one.body, `"Precedence":9`) || !strings.Contains(one.body, `"SourceType":"consul"`) {
		t.Error(one.body)
	}
	for pair, want := range map[string]string{
		"source=web&destination=db": "true", "source=api&destination=db": "false", "source=x&destination=db": "false", "source=x&destination=y": "false",
	} {
		w.get("/v1/connect/intentions/check?" + pair).wantJSON(`{"Allowed":` + want + `}`)
	}
	var matched map[string][]intentionRecord
	if err := json.Unmarshal([]byte(w.get("/v1/connect/intentions/match?by=destination&name=db&name=other").body), &matched); err != nil {
		t.Fatal(err)
	}
	if len(matched["db"]) != 4 || len(matched["other"]) != 1 {
		t.Errorf("%v", matched)
	}
	if err := json.Unmarshal([]byte(w.get("/v1/connect/intentions/match?by=source&name=web").body), &matched); err != nil || len(matched["web"]) != 3 {
		t.Errorf("%v %v", matched, err)
	}
	// it is the entry of the destination, too
	w.send("DELETE", "/v1/connect/intentions/exact?source=web&destination=db", "").want(200)
	w.send("GET", "/v1/connect/intentions/exact?source=web&destination=db", "").want(404)
	if a := w.get("/v1/config/service-intentions/db"); strings.Contains(a.body, "web") || !strings.Contains(a.body, "api") {
		t.Error(a.body)
	}
	w.send("DELETE", "/v1/config/service-intentions/db", "").want(200)
	if got := w.get("/v1/connect/intentions").pairs(); got != "*>* deny 5" {
		t.Error(got)
	}
}

func TestIntentionsWithIDs(t *testing.T) {
	w := newWorld(t)
	body := `{"SourceNS":"default","SourceName":"web","DestinationNS":"default","DestinationName":"db","SourceType":"consul","Action":"allow","Meta":{"k":"v"},"Precedence":9,"CreatedAt":"0001-01-01T00:00:00Z"}`
	var made struct{ ID string }
	if err := json.Unmarshal([]byte(w.send("POST", "/v1/connect/intentions", body).want(200).body), &made); err != nil {
		t.Fatal(err)
	}
	path := "/v1/connect/intentions/" + made.ID
	if a := w.get(path); !strings.Contains(a.body, `"Meta":{"k":"v"}`) || !strings.Contains(a.body, `"Action":"allow"`) {
		t.Error(a.body)
	}
	w.send("POST", "/v1/connect/intentions", body).want(400)
	w.put(path, strings.Replace(body, `"web"`, `"shop"`, 1))
	if a := w.get(path); !strings.Contains(a.body, "shop") {
		t.Error(a.body)
	}
	if a := w.send("PUT", path, strings.Replace(body, `"db"`, `"other"`, 1)); a.status != 400 || !strings.Contains(a.body, "destination") {
		t.Errorf("%d %s", a.status, a.body)
	}
	// who reads the entry can write it back with its ids and times
	entry := w.get("/v1/config/service-intentions/db")
	w.put("/v1/config", entry.body)
	w.get(path)
	w.send("DELETE", path, "").want(200)
	w.send("GET", path, "").want(404)
}

func TestIntentionBlocks(t *testing.T) {
	w := newWorld(t)
	w.intend("web", "db", `"Action":"allow"`)
	first := w.get("/v1/connect/intentions/exact?source=web&destination=db")
	answers := make(chan answer, 1)
	go func() {
		a, _ := w.trySend("GET", "/v1/connect/intentions/exact?source=web&destination=db&wait=10s&index="+itoa(first.index()), "")
		answers <- a
	}()
	w.intend("web", "other", `"Action":"allow"`)
	w.intend("web", "db", `"Action":"deny"`)
	if a := <-answers; !strings.Contains(a.body, "deny") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestWrongIntentions(t *testing.T) {
	w := newWorld(t)
	exact := "/v1/connect/intentions/exact?source=web&destination=db"
	permission := func(of string) string { return `{"Permissions":[` + of + `]}` }
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"PUT", "/v1/connect/intentions/exact?source=web", `{"Action":"deny"}`, 400, "'destination' not set"},
		{"PUT", "/v1/connect/intentions/exact?source=a/b/c/d&destination=db", `{"Action":"deny"}`, 400, "source"},
		{"PUT", exact, ``, 400, "JSON"},
		{"PUT", exact, `{}`, 400, "Sources[0].Action"},
		{"PUT", exact, `{"Action":"perhaps"}`, 400, "Action"},
		{"PUT", exact, `{"Action":"deny","SourcePeer":"p"}`, 400, "SourcePeer"},
		{"PUT", exact, `{"Action":"deny","Meta":{"a":"b"}}`, 400, "Meta"},
		{"PUT", exact, `{"Action":"deny","SourceType":"vm"}`, 400, "Type"},
		{"PUT", exact, `{"Action":"deny","SourceSamenessGroup":"g"}`, 400, "SourceSamenessGroup"},
		{"PUT", "/v1/connect/intentions/exact?source=w*&destination=db", `{"Action":"deny"}`, 400, "must stand alone"},
		{"PUT", "/v1/connect/intentions/exact?source=web&destination=d*", `{"Action":"deny"}`, 400, "must stand alone"},
		{"PUT", "/v1/connect/intentions/exact?source=other/*&destination=db", `{"Action":"deny"}`, 400, "Namespace"},
		{"PUT", exact, `{"Action":"deny","Permissions":[{"Action":"deny","HTTP":{"PathExact":"/"}}]}`, 400, "must be omitted"},
		{"PUT", exact, permission(`{"Action":"deny"}`), 400, "Permissions[0].HTTP"},
		{"PUT", exact, permission(`{"Action":"deny","HTTP":{"PathRegex":"/a"}}`), 400, "PathRegex: weft does not carry this out"},
		{"PUT", exact, permission(`{"Action":"deny","HTTP":{"PathPrefix":"a"}}`), 400, "PathPrefix"},
		{"PUT", exact, permission(`{"Action":"deny","HTTP":{"PathPrefix":"/a*"}}`), 400, "PathPrefix"},
		{"PUT", exact, permission(`{"Action":"deny","HTTP":{"PathPrefix":"/a","PathExact":"/b"}}`), 400, "only one of"},
		{"PUT", exact, permission(`{"Action":"deny","HTTP":{"Header":[{"Name":"a"}]}}`), 400, "Header[0]"},
		{"PUT", exact, permission(`{"Action":"deny","HTTP":{"Methods":["a b"]}}`), 400, "Methods[0]"},
		{"PUT", exact, permission(`{"Action":"deny","JWT":{"Providers":[{"Name":"x"}]},"HTTP":{"PathExact":"/"}}`), 400, "JWT"},
		{"GET", "/v1/connect/intentions/exact?source=a&destination=b", ``, 404, "not found"},
		{"GET", "/v1/connect/intentions/match?by=name&name=a", ``, 400, "'by'"},
		{"GET", "/v1/connect/intentions/match?by=source", ``, 400, "'name'"},
		{"GET", "/v1/connect/intentions/check?source=a", ``, 400, "destination"},
		{"GET", "/v1/connect/intentions/check?source=a&destination=b&source-type=vm", ``, 400, "source-type"},
		{"GET", "/v1/connect/intentions/hello", ``, 500, "UUID"},
		{"GET", "/v1/connect/intentions/" + newUUID(), ``, 404, "not found"},
		{"PUT", "/v1/connect/intentions/" + newUUID(), `{}`, 500, "non-existent"},
		{"POST", "/v1/connect/intentions", `{"SourceName":"a","Action":"deny"}`, 400, "DestinationName"},
		{"GET", "/v1/connect/intentions?filter=Nothing==1", ``, 400, "Nothing"},
	} {
		if a := w.send(c.method, c.path, c.body); a.status != c.status || !strings.Contains(a.body, c.says) {
			t.Errorf("%s %s %s: %d %swant %d %q", c.method, c.path, c.body, a.status, a.body, c.status, c.says)
		}
	}
	if kept, _ := w.registry.Keys(configTree, ""); len(kept) != 0 {
		t.Errorf("%d entries are kept", len(kept))
	}
}

// What would grow without bound is refused.
func TestTooManyPermissions(t *testing.T) {
	w := newWorld(t)
	one := `{"Action":%q,"HTTP":{"PathPrefix":"/%d","Methods":["GET"],"Header":[{"Name":"a","Exact":"1"}]}}`
	var list []string
	for i := range 12 {
		list = append(list, fmt.Sprintf(one, []string{"allow", "deny"}[i%2], i))
	}
	path := "/v1/connect/intentions/exact?source=web&destination=db"
	if a := w.send("PUT", path, `{"Permissions":[`+strings.Join(list, ",")+`]}`); a.status != 400 || !strings.Contains(a.body, "too many") {
		t.Errorf("%d %s", a.status, a.body)
	}
	alike := slices.Repeat([]string{fmt.Sprintf(one, "allow", 1)}, 3)
	w.put(path, `{"Permissions":[`+strings.Join(alike, ",")+`]}`)
}
