// Package floors holds the house plan of this repository, and its test holds the
// code to it. Nothing imports this package; `go test ./internal/floors` reads the
// sources (it runs none of them) and prints one line for each breach:
//
//	proxy/pool.go:14: proxy imports control: a plane is made of state and …
//
// The rules:
//
//   - Every folder with Go files stands on a floor (plan, below). A new folder fails
//     until it has a row.
//   - Imports go down. Never up, never sideways: rooms on one floor are strangers,
//     unless they are one family in one folder, or a door (doors) joins them.
//   - Test files may import what their room may, all of their own floor, and the
//     libraries that serve as their judges.
//   - A library has its rooms (keepers); the standard library is open but for what
//     would break a room's promise (promises).
//   - A folder has one package with one package comment, and a name that says what
//     is in it.
//   - Tests do not sleep in the hope that something is over by then; see sleeps.
//   - go.mod requires no library that its authors have left (dead).
//
// Whoever wants to go through a wall finds the reason of the wall here, and
// changes both or neither.
package floors

const module = "github.com/weftmesh/weft"

// The floors. What is beside the house may import anything, and nothing that is
// shipped imports it.
const (
	nouns = iota
	mechanisms
	trust
	planes
	faces
	compositions
	outside
	beside
)

// up is said of an import from a floor to a higher one.
var up = [...]string{
	nouns:        "the nouns are what all others speak of; a noun that knew its users would pull them into every package",
	mechanisms:   "a mechanism is what is left when the product is taken away: bytes or numbers in, values out, reports through callbacks",
	trust:        "state and certificates serve the planes and do not know for whom they keep what",
	planes:       "a plane is made of state and mechanisms; who shows it, steers it or starts it may change without it",
	faces:        "faces and edges are put together by node, and do not know in which shape they run",
	compositions: "node is started by a command; what it composes must not depend on flags and terminals",
}

// sideways is said of an import between two rooms on one floor.
var sideways = [...]string{
	nouns:        "there is one package of nouns",
	mechanisms:   "mechanisms are strangers: each can be taken out and used alone",
	trust:        "state and trust are strangers: ca takes the two methods of a storage that it needs",
	planes:       "planes are strangers: each declares the one or two methods that it needs, and node joins them",
	faces:        "faces and edges are strangers: what two of them share belongs to the plane beneath",
	compositions: "there is one package that composes",
	outside:      "each door of the house is used alone",
}

// room is a row of the plan.
type room struct {
	at    string // folder; with "/..." it stands for every folder in it, too
	floor int
	what  string

	// family: the packages of this row may import each other.
	family bool
	// tests: the tests of every room may import it.
	tests bool
	// only, when set, are the rooms that this one may import, whatever the floors
	// allow, and onlyWhy says why. Test files are not bound by it.
	only    []string
	onlyWhy string
}

// plan has a row for each room. The longest match counts.
var plan = []room{
	{at: ".", floor: nouns, what: "the nouns: Service, Instance, Endpoint, Route, Policy, Identity, Snapshot"},

	{at: "resilience", floor: mechanisms, what: "circuits, retries, limits, fallbacks, idempotency keys"},
	{at: "balance", floor: mechanisms, what: "picking one of many"},
	{at: "wire/...", floor: mechanisms, what: "protocols: bytes in, values out", family: true},
	{at: "telemetry/trace", floor: mechanisms, what: "trace context, span recorder, OTLP out"},
	{at: "telemetry/metric", floor: mechanisms, what: "counters and histograms"},
	{at: "telemetry/accesslog", floor: mechanisms, what: "JSON lines that cost little"},

	{at: "store", floor: trust, what: "embedded etcd"},
	{at: "ca", floor: trust, what: "certificate authority and credentials"},
	{at: "proxy/mux", floor: trust, what: "HTTP/2 connections: wire/http2 with a socket"},
	{at: "proxy/relay", floor: trust, what: "byte lanes, and who speaks first on them"},
	{at: "proxy/overload", floor: trust, what: "whether new work may begin"},

	{at: "registry", floor: planes, what: "catalogue, checks, keys, sessions, indexes"},
	{at: "registry/mirror", floor: planes, what: "what another place says, kept true in a catalogue"},
	{at: "proxy", floor: planes, what: "data plane"},
	{at: "telemetry/collect", floor: planes, what: "OTLP in, span store, query"},
	{at: "client/...", floor: planes, what: "Go SDK", family: true},

	{at: "registry/...", floor: faces, what: "dialects over the registry, and what else fills it"},
	{at: "proxy/filter/...", floor: faces, what: "steps of the chain that a request passes"},
	{at: "control/...", floor: faces, what: "control plane, its protocol and its two sides", family: true},
	{at: "api", floor: faces, what: "weft's own HTTP API"},
	{at: "control/controltest", floor: beside, what: "a control plane for tests", tests: true},

	{at: "node/handover", floor: faces, what: "sockets from one process to the next"},
	{at: "node/express", floor: faces, what: "answers that lie ready, before net/http"},
	{at: "node", floor: compositions, what: "config → build → run → drain"},
	{at: "node/cluster", floor: compositions, what: "how servers join each other, and carry writes"},

	{at: "cli", floor: outside, what: "one file a subcommand",
		only:    []string{".", "client", "node"},
		onlyWhy: "a command asks a server through client or starts a shape through node; a third way would behave differently from both"},
	{at: "cmd/weft", floor: outside, what: "main",
		only:    []string{"cli"},
		onlyWhy: "main only passes the process's arguments and streams on, so that tests run the same command line"},
	{at: "examples/...", floor: outside, what: "applications that use weft", family: true,
		only:    []string{".", "client"},
		onlyWhy: "an example is an ordinary application: what it could only do from inside, its readers cannot do"},

	{at: "bench/...", floor: beside, what: "weft and its peers side by side"},
	{at: "test/...", floor: beside, what: "judges from outside"},
	{at: "internal/...", floor: beside, what: "what builds and guards the house", tests: true},
}

// door lets one room import another that its floor would not.
type door struct{ from, to, why string }

var doors = []door{
	{"api", "control/...", "api shows control over HTTP, as registry/consul shows the registry"},
	{"node", "node/cluster", "servers meet as whole processes: it is a part of what node composes, with files and a service of its own"},
	{"cmd/weft", "cli", "main is the last step of the command line"},
	{"cli", "examples/shop/shop", "the demo's services are processes of the one binary (a hidden subcommand), so that a newcomer needs no second build"},
	{"cli", "examples/shop/resources", "the demo applies the files that its reader sees, wherever the binary runs"},
}

// wall forbids an import that the floors would allow.
type wall struct{ from, to, why string }

var walls = []wall{
	{"control/...", "proxy/...", "both speak weft.Snapshot: a proxy must run on any source of snapshots, and control must serve any proxy"},
	{"proxy/...", "store", "a proxy serves on its last snapshot when all state is gone"},
	{"telemetry/...", "proxy/...", "a hop tells telemetry what happened; telemetry must not know which hop"},
}

// keeper says where a library may be imported by shipped code.
type keeper struct {
	library string // an import path, and all beneath it
	rooms   []string
	why     string
}

// keepers: the longest match counts. A library that is not here may be imported
// on every floor above the mechanisms.
var keepers = []keeper{
	{"golang.org/x/net/http2/hpack", []string{"wire/..."}, "HTTP/2 heads are decoded in wire; everybody else sees fields"},
	{"go.etcd.io", []string{"store"}, "what state is kept in is store's secret"},
	{"go.etcd.io/etcd/client/v3", []string{"registry/etcd"}, "it is for others' etcd, which is imported from; ours is called in the process"},
	{"go.etcd.io/etcd/api/v3/v3rpc", []string{"registry/etcd"}, "as the client that it belongs to"},
	{"github.com/go-zookeeper/zk", []string{"registry/zookeeper"}, "ZooKeeper is one place to import from"},
	{"github.com/fsnotify/fsnotify", []string{"registry/file"}, "only registrations in files are followed"},
	{"github.com/cockroachdb/pebble", []string{"telemetry/collect"}, "spans are the only thing kept outside the store"},
	{"github.com/miekg/dns", []string{"registry/dns"}, "DNS is one dialect; a successor of this library must change one package"},
	{"istio.io/api", []string{"control/..."}, "a user's kinds end in control; behind it there are only nouns"},
	{"github.com/envoyproxy/go-control-plane", []string{"control/..."}, "Envoy's protocol is one way to say a snapshot"},
	{"github.com/spiffe/go-spiffe", []string{"ca"}, "who verifies certificates is one package"},
	{"github.com/spf13/cobra", []string{"cli"}, "only the command line knows flags"},
	{"github.com/prometheus", []string{"node"}, "rooms count with telemetry/metric; node decides how a process shows it"},
	{"google.golang.org/grpc", []string{"control/...", "telemetry/collect", "node/...", "client/weftgrpc", "registry"}, "gRPC is for the control stream, OTLP, health checks and applications that speak it; a request through the proxy must not pay for it"},
	{"go.opentelemetry.io/otel", []string{"examples/..."}, "the SDK is for applications; the proxy records spans without it"},
	{"go.opentelemetry.io/contrib", []string{"examples/..."}, "the SDK is for applications; the proxy records spans without it"},
	{"github.com/google/go-cmp", nil, "it serves tests, and panics"},
	{"go.uber.org/goleak", nil, "it serves tests"},
	{"pgregory.net/rapid", nil, "it serves tests"},
	{"testing", nil, "what helps tests is a room of its own, beside the house"},
}

// promise keeps packages of the standard library out of a room's shipped code.
type promise struct {
	room string
	not  []string
	why  string
}

var promises = []promise{
	{".", []string{"net", "net/http", "os", "os/exec"}, "nouns do nothing"},
	{"wire/...", []string{"net", "net/http", "os", "time", "crypto/tls"}, "wire has no sockets and no clock: the same bytes give the same values, and a fuzzer reaches everything"},
	{"proxy/...", []string{"net/http", "net/http/httputil"}, "the data plane's own engine is the one on the path; two parsers that disagree are a smuggling hole"},
}

// vague are names that promise nothing, so that everything ends up there.
var vague = []string{"util", "utils", "common", "helper", "helpers", "manager", "managers", "types", "models", "misc", "shared", "base", "lib"}

// dead are modules that go.mod must not require, with what to take instead.
var dead = map[string]string{
	"cloud.google.com/go/pubsub":         "ended by its authors: cloud.google.com/go/pubsub/v2",
	"github.com/DATA-DOG/go-sqlmock":     "no release for years: test the real thing",
	"github.com/afex/hystrix-go":         "dead since 2018: our resilience",
	"github.com/cockroachdb/pebble":      "version 1 is over: github.com/cockroachdb/pebble/v2",
	"github.com/go-redis/redis_rate/v10": "stale since 2023: our own limiter",
	"github.com/gogo/protobuf":           "archived: google.golang.org/protobuf",
	"github.com/google/cel-go":           "moved: cel.dev/cel-go",
	"github.com/graphql-go/graphql":      "unmaintained since 2023: vektah/gqlparser",
	"github.com/improbable-eng/grpc-web": "unmaintained since 2021: our own framing",
	"github.com/jaegertracing/jaeger":    "version 1 has ended: OTLP",
	"github.com/openzipkin/zipkin-go":    "no release since 2024: the JSON of its API is enough",
	"github.com/tidwall/sjson":           "no release since 2022: encoding/json",
	"go.uber.org/automaxprocs":           "obsolete: the runtime reads the cgroup's limit",
	"gopkg.in/yaml.v3":                   "unmaintained since 2022: go.yaml.in/yaml/v3",
}
