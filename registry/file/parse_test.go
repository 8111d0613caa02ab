package file

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry/mirror"
)

func seconds(n int) weft.Duration { return weft.Duration(n * 1e9) }

func TestConsulDefinition(t *testing.T) {
	want := weft.Instance{
		ID: "web-1", Service: weft.NewServiceName("", "web"), Address: "10.0.0.1", Port: 8080, Zone: "a",
		Tags: []string{"primary", "protocol=http"}, Labels: map[string]string{"version": "2", "env": "prod"}, Protocol: weft.HTTP,
		Weights: weft.Weights{Passing: 5, Warning: 1}, EnableTagOverride: true,
		TaggedAddresses: map[string]string{"wan": "198.51.100.7:80"},
		Checks: []weft.Check{
			{ID: "alive", Name: "alive", Kind: weft.HTTPCheck, Status: weft.Critical, Target: "https://10.0.0.1/health", Method: "HEAD",
				Header: map[string][]string{"X-Probe": {"weft"}}, TLSSkipVerify: true, Interval: seconds(10), Timeout: seconds(1), DeregisterAfter: seconds(90),
				FailuresBeforeCritical: 3},
			{Kind: weft.TCPCheck, Status: weft.Passing, Target: "10.0.0.1:8080", Interval: seconds(5)},
			{Kind: weft.GRPCCheck, Status: weft.Critical, Target: "10.0.0.1:9090/web", TLS: true, Interval: seconds(5)},
			{Kind: weft.H2PingCheck, Status: weft.Critical, Target: "10.0.0.1:9090", TLS: true, Interval: seconds(5)},
			{Kind: weft.TTLCheck, Status: weft.Critical, TTL: seconds(30)},
			{Kind: weft.AliasCheck, Status: weft.Critical, AliasService: "db"},
			{Kind: weft.StaticCheck, Status: weft.Warning, Notes: "by hand"},
		},
	}
	inJSON := `{
	"service": {
		"ID": "web-1", "name": "web", "address": "10.0.0.1", "port": 8080, "token": "x", "kind": "typical", "locality": {"region": "eu", "zone": "a"},
		"tags": ["primary", "protocol=http"], "meta": {"version": "2", "env": "prod"},
		"weights": {"passing": 5, "warning": 1}, "EnableTagOverride": true,
		"tagged_addresses": {"wan": {"address": "198.51.100.7", "port": 80}},
		"check": {"check_id": "alive", "name": "alive", "http": "https://10.0.0.1/health", "method": "HEAD", "header": {"X-Probe": ["weft"]},
			"tls_skip_verify": true, "interval": "10s", "timeout": "1s", "deregister_critical_service_after": "90s", "failures_before_critical": 3},
		"checks": [
			{"tcp": "10.0.0.1:8080", "interval": "5s", "status": "passing"},
			{"grpc": "10.0.0.1:9090/web", "grpc_use_tls": true, "interval": "5s"},
			{"h2ping": "10.0.0.1:9090", "interval": "5s"},
			{"ttl": "30s"}, {"alias_service": "db"}, {"status": "warning", "notes": "by hand"}
		]
	}
}`
	inYAML := `
services:
- id: web-1
  name: web
  address: 10.0.0.1
  port: 8080
  tags: [primary, protocol=http]
  locality: {zone: a}
  meta: {version: 2, env: prod}   # a number is as good as a text
  weights: {passing: 5, warning: 1}
  enable_tag_override: true
  tagged_addresses: {wan: {address: 198.51.100.7, port: 80}}
  checks:
  - {id: alive, name: alive, http: "https://10.0.0.1/health", method: HEAD, header: {X-Probe: [weft]}, tls_skip_verify: true,
     interval: 10s, timeout: 1s, deregister_critical_service_after: 90s, failures_before_critical: 3}
  - {tcp: "10.0.0.1:8080", interval: &often 5s, status: passing}
  - {grpc: "10.0.0.1:9090/web", grpc_use_tls: true, interval: *often}
  - {h2ping: "10.0.0.1:9090", interval: *often}
  - ttl: 30s
  - alias_service: db
  - {status: warning, notes: by hand}
`
	for name, content := range map[string]string{"web.json": inJSON, "web.yaml": inYAML} {
		claims, problems := instances(name, []byte(content))
		if len(problems) > 0 || len(claims) != 1 {
			t.Errorf("%s: %d claims, %v", name, len(claims), problems)
			continue
		}
		if d := cmp.Diff(want, claims[0].Instance); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestTargetGroups(t *testing.T) {
	claims, problems := instances("nodes.json", []byte(`[
	{"targets": ["10.0.0.8:9100", "db.example.com:9100"], "labels": {"job": "node", "zone": "b", "__path__": "/metrics"}},
	{"targets": ["[fd00::1]:80"], "labels": {"service": "web", "job": "scrape"}},
	{"targets": []}
]`))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	node := weft.NewServiceName("", "node")
	want := []mirror.Claim{
		{Instance: weft.Instance{ID: "node-10.0.0.8:9100", Service: node, Address: "10.0.0.8", Port: 9100, Zone: "b", Labels: map[string]string{"job": "node", "zone": "b"}}, Origin: "nodes.json:2:15"},
		{Instance: weft.Instance{ID: "node-db.example.com:9100", Service: node, Address: "db.example.com", Port: 9100, Zone: "b", Labels: map[string]string{"job": "node", "zone": "b"}}, Origin: "nodes.json:2:32"},
		{Instance: weft.Instance{ID: "web-[fd00::1]:80", Service: weft.NewServiceName("", "web"), Address: "fd00::1", Port: 80, Labels: map[string]string{"job": "scrape"}}, Origin: "nodes.json:3:15"},
	}
	if d := cmp.Diff(want, claims); d != "" {
		t.Error(d)
	}
}

func TestSeveralDocumentsAndNothing(t *testing.T) {
	claims, problems := instances("a.yaml", []byte("service: {name: a, port: 1}\n---\n# nothing\n---\n- {targets: ['h:2'], labels: {job: b}}\n"))
	if len(claims) != 2 || problems != nil {
		t.Errorf("%d claims, %v", len(claims), problems)
	}
	for _, content := range []string{"services: []\n", "[]\n"} {
		if claims, problems := instances("a.yaml", []byte(content)); claims != nil || problems != nil {
			t.Errorf("%q: %v, %v", content, claims, problems)
		}
	}
}

// Each mistake is named with its place and its mend.
func TestMistakes(t *testing.T) {
	for _, c := range []struct{ file, content, want string }{
		{"a.json", "{\n  \"service\": {\"name\": \"web\",}\n}", "a.json:2:29: it is no JSON: invalid character '}'"},
		{"a.json", "{\"service\": {\"name\": \"we", "a.json:1:25: it is no JSON: unexpected end of JSON input; what the file said before stands"},
		{"a.json", "{} {}", "a.json:1:4: it is no JSON: invalid character"},
		{"a.json", strings.Repeat("[", 100) + strings.Repeat("]", 100), "nested deeper than 64"},
		{"a.json", " \n", "a.json:1:1: the file is empty; write what is registered"},
		{"a.yaml", "# all out\n", "a.yaml:1:1: the file says nothing"},
		{"a.yaml", "service:\n  name: web\n port: 1\n", "a.yaml:2:3: it is no YAML: "},
		{"a.yaml", "service: {name: web, prot: 80}\n", `a.yaml:1:22: service: unknown key "prot"; did you mean "port"?`},
		{"a.yaml", "service: {name: web, colour: red}\n", `a.yaml:1:22: service: unknown key "colour"; known are token, id,`},
		{"a.yaml", "service: {name: web, port: eighty}\n", `a.yaml:1:28: service.port: want a whole number, not "eighty"`},
		{"a.yaml", "service: {port: 80}\n", "a.yaml:1:10: service.name: is not there; give the service a name"},
		{"a.yaml", "services: {name: web}\n", "a.yaml:1:11: services: want a list, not a mapping"},
		{"a.yaml", "services: [web]\n", `a.yaml:1:12: services[0]: want a mapping of keys to values, not "web"`},
		{"a.yaml", "service: {name: web, name: api}\n", `a.yaml:1:22: service: key "name" stands twice, also in line 1; keep one`},
		{"a.yaml", "services: [{name: a, id: x}, {name: b, id: x}]\n", `a.yaml:1:30: instance "x" stands twice, also at a.yaml:1:12; give each`},
		{"a.yaml", "service: {name: a, check: {interval: 5s}}\n", "a.yaml:1:27: service.check: it is not said what is checked; give http,"},
		{"a.yaml", "service: {name: a, check: {tcp: 'h:1', http: 'http://h'}}\n", "a.yaml:1:27: service.check: has http and tcp; keep one"},
		{"a.yaml", "service: {name: a, check: {tcp: 'h:1', interval: 5}}\n", `a.yaml:1:50: service.check.interval: want a time such as "10s", not "5"`},
		{"a.yaml", "service: {name: a, check: {status: fine}}\n", `a.yaml:1:36: service.check.status: "fine" is none; use passing,`},
		{"a.yaml", "service: {name: a, tags: [x, {y: z}]}\n", "a.yaml:1:30: service.tags[1]: want a text, not a mapping"},
		{"a.yaml", "service: {name: a, meta: {x: [y]}}\n", "a.yaml:1:30: service.meta.x: want a text, not a list"},
		{"a.yaml", "service: {name: a, meta: {x: y, x: z}}\n", `a.yaml:1:33: service.meta: key "x" stands twice`},
		{"a.yaml", "service: {name: a, connect: {native: true}}\n", "a.yaml:1:20: service.connect: is not supported in files; a sidecar registers itself"},
		{"a.yaml", "service: {name: a, kind: mesh-gateway}\n", `a.yaml:1:26: service.kind: "mesh-gateway" is not supported in files`},
		{"a.yaml", "service: {name: a, enable_tag_override: maybe}\n", `service.enable_tag_override: want true or false, not "maybe"`},
		{"a.yaml", "check: {tcp: 'h:1'}\n", "a.yaml:1:1: there is nothing to register in it; want \"service\""},
		{"a.yaml", "service: {name: a}\nchecks: []\n", "a.yaml:2:1: checks: is not supported in files; put the check into its service"},
		{"a.yaml", "apiVersion: v1\nkind: Service\n", "a.yaml:1:1: it is a resource of kind Service; apply it with `weft apply -f a.yaml`"},
		{"a.yaml", "- targets: ['h:1']\n", "a.yaml:1:3: [0].labels: no label names the service; add \"service: NAME\""},
		{"a.yaml", "- {targets: ['h:99999'], labels: {job: a}}\n", `a.yaml:1:14: [0].targets[0]: want host:port, not "h:99999"`},
		{"a.yaml", "- {target: ['h:1'], labels: {job: a}}\n", `a.yaml:1:4: [0]: unknown key "target"; did you mean "targets"?`},
		{"a.yaml", "hello\n", `a.yaml:1:1: want a mapping of keys to values, not "hello"`},
	} {
		claims, problems := instances(c.file, []byte(c.content))
		found := false
		for _, p := range problems {
			found = found || strings.Contains(p.String(), c.want)
		}
		if !found || claims != nil {
			t.Errorf("%q:\n got %v, %d claims\nwant %s", c.content, problems, len(claims), c.want)
		}
	}
}

// Aliases that multiply are counted.
func TestAliasesDoNotMultiply(t *testing.T) {
	tags := "x: &t [" + strings.Repeat("a,", 5000) + "]\n"
	content := "service: {name: a}\n" + tags + "services: [" + strings.Repeat("{name: a, tags: *t},", 5000) + "]\n"
	_, problems := instances("a.yaml", []byte(content))
	if len(problems) == 0 || len(problems) > maxProblems+1 {
		t.Fatalf("%d problems", len(problems))
	}
	found := false
	for _, p := range problems {
		found = found || strings.Contains(p.text, "split it")
	}
	if !found {
		t.Errorf("not counted: %v", problems[:min(3, len(problems))])
	}
}

// What both parsers take says the same to both; places are inside the file.
func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range seeds {
		if b, err := os.ReadFile(path); err == nil {
			f.Add(b)
		}
	}
	f.Add([]byte(`{"service": {"name": "a", "port": 1, "meta": {"x": "ü"}}}`))
	f.Add([]byte(`[{"targets": ["h:1"], "labels": {"job": "a"}}]`))
	f.Add([]byte("services:\n- &a {name: a}\n- *a\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		instances("a.yaml", content)
		claims, problems := instances("a.json", content)
		for _, p := range problems {
			if p.line < 0 || p.line > strings.Count(string(content), "\n")+1 {
				t.Errorf("line %d of %q", p.line, content)
			}
		}
		if docs, bad := parseJSON("a.json", content); bad == nil {
			var slow any
			if err := json.Unmarshal(content, &slow); err != nil {
				t.Fatalf("taken, but %v: %q", err, content)
			}
			compareTrees(t, slow, docs[0])
		}
		if len(claims) > 0 && len(problems) > 0 {
			t.Errorf("claims and problems: %q", content)
		}
	})
}

// compareTrees holds a tree to what the standard library reads.
func compareTrees(t *testing.T, want any, n *yaml.Node) {
	switch v := want.(type) {
	case map[string]any:
		got := make(map[string]*yaml.Node)
		for i := 0; i+1 < len(n.Content); i += 2 {
			got[n.Content[i].Value] = n.Content[i+1] // the last one counts, as there
		}
		if n.Kind != yaml.MappingNode || len(got) != len(v) {
			t.Fatalf("%v is not %v", got, v)
		}
		for key, value := range v {
			compareTrees(t, value, got[key])
		}
	case []any:
		if n.Kind != yaml.SequenceNode || len(n.Content) != len(v) {
			t.Fatalf("%v is not %v", n.Content, v)
		}
		for i := range v {
			compareTrees(t, v[i], n.Content[i])
		}
	case string:
		if n.Tag != "!!str" || n.Value != v {
			t.Fatalf("%v is not %q", n, v)
		}
	case nil:
		if !isNull(n) {
			t.Fatalf("%v is not null", n)
		}
	}
}
