package floors

import (
	"bytes"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

const root = "../.."

func house(t *testing.T) *tree {
	t.Helper()
	tree, err := read(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// TestHouse holds the repository to the plan.
func TestHouse(t *testing.T) {
	tree := house(t)
	for name, check := range checks {
		t.Run(name, func(t *testing.T) {
			for _, finding := range check(tree) {
				t.Error(finding)
			}
		})
	}
}

var checks = map[string]func(*tree) []string{
	"every folder is on a floor":       (*tree).homeless,
	"imports go down":                  (*tree).imports,
	"names say what is inside":         (*tree).names,
	"one package, one comment":         (*tree).docs,
	"tests wait for things, not time":  (*tree).sleeps,
	"no library that its authors left": (*tree).requires,
}

// TestMain is small: what grows there belongs into node.
func TestMainIsSmall(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "cmd/weft/main.go"))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(text, []byte("\n")); n > 30 {
		t.Errorf("cmd/weft/main.go has %d lines: what a process does belongs into node, what it reads into cli", n)
	}
}

// TestPlanIsTrue: a row for a room that is not there promises what nobody can
// enter.
func TestPlanIsTrue(t *testing.T) {
	folders := make(map[string]bool)
	for _, f := range house(t).files {
		folders[f.folder] = true
	}
	stands := func(what, pattern string) {
		for folder := range folders {
			if covers(pattern, folder) {
				return
			}
		}
		t.Errorf("%s names %s, which is not in the tree", what, pattern)
	}
	for _, r := range plan {
		stands("plan", r.at)
		for _, o := range r.only {
			stands("only", o)
		}
	}
	for _, d := range doors {
		stands("doors", d.from)
		stands("doors", d.to)
	}
	for _, w := range walls {
		stands("walls", w.from)
		stands("walls", w.to)
	}
	for _, k := range keepers {
		for _, r := range k.rooms {
			stands("keepers", r)
		}
	}
	for _, p := range promises {
		stands("promises", p.room)
	}
}

// TestArchitectureShowsEveryRoom: the floors in ARCHITECTURE.md link into each.
func TestArchitectureShowsEveryRoom(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, floors, _ := strings.Cut(string(text), "\n## Floors\n")
	floors, _, _ = strings.Cut(floors, "\n## ")
	links := regexp.MustCompile(`\]\(([^)#]+)`).FindAllStringSubmatch(floors, -1)
	for _, r := range plan {
		if !slices.ContainsFunc(links, func(m []string) bool {
			shown, ok := roomOf(path.Dir(m[1]))
			return ok && shown.at == r.at
		}) {
			t.Errorf("no floor in ARCHITECTURE.md links into %s (%s)", r.at, r.what)
		}
	}
}

func TestJudge(t *testing.T) {
	const yes = ""
	for _, c := range []struct {
		from, to string
		test     bool
		want     string // part of the reason
	}{
		// down, up, sideways
		{from: "proxy", to: "./wire/http1", want: yes},
		{from: "node", to: "./proxy/filter/authz", want: yes},
		{from: "registry", to: "./control", want: "a plane is made of"},
		{from: "registry", to: "./registry/consul", want: "a plane is made of"},
		{from: "store", to: "./registry", want: "do not know for whom"},
		{from: "node", to: "./cli", want: "flags and terminals"},
		{from: ".", to: "./store", want: "a noun that knew its users"},
		{from: "registry", to: "./proxy", want: "planes are strangers"},
		{from: "registry/consul", to: "./registry/dns", want: "belongs to the plane beneath"},
		{from: "proxy/filter/edge", to: "./proxy/filter/authz", want: "belongs to the plane beneath"},
		{from: "api", to: "./registry/consul", want: "belongs to the plane beneath"},
		{from: "ca", to: "./store", want: "storage"},

		// mechanisms
		{from: "wire/http1", to: ".", want: "what is left"},
		{from: "telemetry/trace", to: "./telemetry/metric", want: "mechanisms are strangers"},
		{from: "balance", to: "./resilience", want: "mechanisms are strangers"},
		{from: "wire/http2", to: "./wire/hpack", want: yes},
		{from: "telemetry/trace", to: "./telemetry/metric", test: true, want: yes},
		{from: "balance", to: ".", test: true, want: yes},

		// families, doors, walls, only
		{from: "control", to: "./control/resource", want: yes},
		{from: "control/subscribe", to: "./control/weftpb", want: yes},
		{from: "api", to: "./control", want: yes},
		{from: "control", to: "./api", want: "faces and edges are strangers"},
		{from: "control", to: "./proxy", want: "any source of snapshots"},
		{from: "control/subscribe", to: "./proxy/filter/authz", want: "any source of snapshots"},
		{from: "proxy", to: "./store", want: "last snapshot"},
		{from: "cli", to: "./node", want: yes},
		{from: "cli", to: "./registry", want: "through client"},
		{from: "cli", to: "./registry", test: true, want: yes},
		{from: "cli", to: "./examples/shop/shop", want: yes},
		{from: "examples/shop", to: "./examples/shop/shop", want: yes},
		{from: "cli", to: "./examples/other", want: "through client"},
		{from: "cmd/weft", to: "./cli", want: yes},
		{from: "cmd/weft", to: "./node", want: "passes the process's arguments"},
		{from: "examples/shop/shop", to: "./client", want: yes},
		{from: "examples/shop/shop", to: "./registry", want: "ordinary application"},
		{from: "node", to: "./nowhere", want: "no such room"},

		// tests
		{from: "registry", to: "./registry", test: true, want: yes},
		{from: "registry", to: "./client", test: true, want: yes},
		{from: "registry", to: "./node", test: true, want: "a plane is made of"},
		{from: "proxy", to: "./proxy/filter/authz", test: true, want: yes},
		{from: "proxy", to: "./proxy/filter/authz", want: "a plane is made of"},
		{from: "control/subscribe", to: "./control/controltest", test: true, want: yes},
		{from: "node", to: "./control/controltest", want: "what is shipped"},
		{from: "registry", to: "./internal/floors", test: true, want: yes},
		{from: "registry", to: "./internal/floors", want: "what is shipped"},
		{from: "registry", to: "./test/e2e", test: true, want: "what is shipped"},
		{from: "test/e2e", to: "./client", test: true, want: yes},

		// libraries
		{from: "registry", to: "net/http", want: yes},
		{from: "proxy", to: "net/http", want: "smuggling"},
		{from: "proxy", to: "net/http", test: true, want: yes},
		{from: "proxy/filter/edge", to: "net/http", want: "smuggling"},
		{from: "wire/http1", to: "net", want: "no sockets"},
		{from: "wire/http1", to: "time", want: "no clock"},
		{from: "wire/http1", to: "net/netip", want: yes},
		{from: "wire/http2", to: "golang.org/x/net/http2/hpack", want: yes},
		{from: "wire/http2", to: "golang.org/x/net/http2", want: "standard library alone"},
		{from: "balance", to: "golang.org/x/net/http2/hpack", want: "everybody else sees fields"},
		{from: ".", to: "golang.org/x/sync/errgroup", want: "standard library alone"},
		{from: "telemetry/trace", to: "go.opentelemetry.io/proto/otlp/trace/v1", want: "standard library alone"},
		{from: "telemetry/trace", to: "go.opentelemetry.io/proto/otlp/trace/v1", test: true, want: yes},
		{from: "registry", to: "go.etcd.io/bbolt", want: "store's secret"},
		{from: "store", to: "go.etcd.io/etcd/server/v3/embed", want: yes},
		{from: "registry/dns", to: "github.com/miekg/dns", want: yes},
		{from: "node", to: "github.com/miekg/dns", want: "one dialect"},
		{from: "proxy", to: "google.golang.org/grpc/status", want: "must not pay"},
		{from: "node", to: "go.opentelemetry.io/otel/sdk/trace", want: "for applications"},
		{from: "client", to: "github.com/google/go-cmp/cmp", want: "serves tests"},
		{from: "client", to: "github.com/google/go-cmp/cmp", test: true, want: yes},
		{from: "client", to: "testing", want: "a room of its own"},
		{from: "client", to: "C", want: "static binary"},
	} {
		path := c.to
		if path == "." || strings.HasPrefix(path, "./") {
			path = module + strings.TrimPrefix(path, ".")
		}
		got := judge(c.from, path, c.test)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s imports %s (test: %t): %q; want %q", c.from, c.to, c.test, got, c.want)
		}
	}
}

// TestChecks runs every check over a small house where all is wrong.
func TestChecks(t *testing.T) {
	files := fstest.MapFS{}
	for name, text := range map[string]string{
		"weft.go":            "// Package weft is fine.\npackage weft\n",
		"testdata/x.go":      "not Go",
		".hidden/x.go":       "not Go",
		"balance/a.go":       "// Package balance is one.\npackage balance\n\nimport (\n\t\"sort\"\n\t\"github.com/weftmesh/weft\"\n)\n",
		"balance/b.go":       "// Package balance is two.\npackage balance\n",
		"balance/b_test.go":  "// Package balance has a test.\npackage balance\n",
		"ca/ca.go":           "package ca\n",
		"store/store.go":     "// Stores things.\npackage store\n",
		"cmd/weft/main.go":   "// Command weft is fine.\npackage main\n",
		"attic/a.go":         "// Package attic is new.\npackage attic\n\nimport \"github.com/weftmesh/weft/cli\"\n",
		"attic/b.go":         "package attic\n",
		"node/common/c.go":   "// Package common holds things.\npackage common\n",
		"test/e2e/e_test.go": "// Package e2e has tests only.\npackage e2e\n",
		"test/e2e/f_test.go": "package e2e\n",
		"registry/r.go":      "// Package registry sleeps.\npackage registry\n\nimport \"time\"\n\nfunc nap() { time.Sleep(1) }\n",
		"registry/r_test.go": `package registry

import ("context"; "testing"; "testing/synctest"; "time")

func hope() { time.Sleep(1) }
func fake(t *testing.T) { synctest.Test(t, func(t *testing.T) { time.Sleep(1) }) }
func step() { time.Sleep(1); synctest.Wait() }
func poll(end time.Time) { for time.Now().Before(end) { time.Sleep(1) } }
func till(ctx context.Context) { for ctx.Err() == nil { time.Sleep(1) } }
func count() { for range 9 { time.Sleep(1) } }
func slow() { time.Sleep(1) } //weft:sleep the client is slow on purpose
func next() {
	//weft:sleep the client is slow on purpose
	time.Sleep(1)
}
func mute() { time.Sleep(1) } //weft:sleep
`,
		"go.mod": "module x\n\nrequire go.uber.org/automaxprocs v1\n\nrequire (\n\tgopkg.in/yaml.v3 v3\n\tgo.yaml.in/yaml/v3 v3\n\tgithub.com/gogo/protobuf v1 // indirect\n)\n\ntool gopkg.in/yaml.v3\n",
	} {
		files[name] = &fstest.MapFile{Data: []byte(text)}
	}
	tree, err := read(files)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"every folder is on a floor": {
			"attic/a.go:2: attic is on no floor",
			"node/common/c.go:2: node/common is on no floor",
		},
		"imports go down":          {"balance/a.go:6: balance imports the nouns: a mechanism"},
		"names say what is inside": {"node/common/c.go:2: the name \"common\""},
		"one package, one comment": {
			"balance/b.go:1: a second package comment",
			"ca/ca.go:1: ca has no package comment",
			"store/store.go:1: the package comment must begin with \"Package store \"",
		},
		"tests wait for things, not time": {
			"registry/r_test.go:5: sleeps",
			"registry/r_test.go:10: sleeps",
			"registry/r_test.go:16: sleeps",
		},
		"no library that its authors left": {
			"go.mod:3: go.uber.org/automaxprocs: obsolete",
			"go.mod:6: gopkg.in/yaml.v3: unmaintained",
		},
	}
	for _, name := range slices.Sorted(maps.Keys(checks)) {
		got := checks[name](tree)
		same := slices.EqualFunc(got, want[name], strings.HasPrefix)
		if !same {
			t.Errorf("%s:\ngot  %s\nwant %s", name, strings.Join(got, "\n     "), strings.Join(want[name], "\n     "))
		}
	}
}
