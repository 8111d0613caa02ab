package weft

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// fields is a request's headers for tests, names in lower case.
type fields map[string]string

func (f fields) Header(name string) (string, bool) {
	v, ok := f[strings.ToLower(name)]
	return v, ok
}

func match(t *testing.T, kind MatchKind, value string) StringMatch {
	t.Helper()
	m, err := NewStringMatch(kind, value)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestStringMatch(t *testing.T) {
	for _, tc := range []struct {
		kind  MatchKind
		value string
		fits  []string
		not   []string
	}{
		{MatchExact, "/foo", []string{"/foo"}, []string{"/foobar", "/Foo", ""}},
		{MatchPrefix, "/foo", []string{"/foo", "/foobar"}, []string{"/fo", "/Foo"}},
		{MatchSuffix, "bar", []string{"bar", "foobar"}, []string{"bars"}},
		{MatchRegex, "/v[12]/.*", []string{"/v1/", "/v2/x"}, []string{"x/v1/", "/v3/", "/v1"}},
		{MatchRegex, "a|b", []string{"a", "b"}, []string{"ax", "xb"}}, // the whole value, whatever binds weakest
		{MatchPresent, "", []string{"", "anything"}, nil},
	} {
		m := match(t, tc.kind, tc.value)
		for _, s := range tc.fits {
			if !m.Match(s) {
				t.Errorf("%v should fit %q", m, s)
			}
		}
		for _, s := range tc.not {
			if m.Match(s) {
				t.Errorf("%v should not fit %q", m, s)
			}
		}
	}
	folded := match(t, MatchPrefix, "/Foo")
	folded.IgnoreCase = true
	if !folded.Match("/fOObar") || folded.Match("/fo") {
		t.Error("ignoreUriCase on a prefix")
	}
	if _, err := NewStringMatch(MatchRegex, "("); KindOf(err) != Invalid {
		t.Errorf("a bad regex: %v", err)
	}
}

func TestMatchFieldsAreANDed(t *testing.T) {
	path, method := match(t, MatchPrefix, "/api/"), match(t, MatchExact, "GET")
	m := Match{Path: &path, Method: &method,
		Headers: []NamedMatch{{Name: "x-team", Value: match(t, MatchExact, "blue")}, {Name: "x-debug", Value: match(t, MatchPresent, ""), Invert: true}},
		Query:   []NamedMatch{{Name: "v", Value: match(t, MatchExact, "2")}}}
	good := func() *Request {
		return &Request{Method: "GET", Path: "/api/x", Query: "a=1&v=2", Headers: fields{"x-team": "blue"}}
	}
	if !m.Matches(good()) {
		t.Fatal("a request that fits every field")
	}
	for name, spoil := range map[string]func(*Request){
		"method":         func(r *Request) { r.Method = "POST" },
		"path":           func(r *Request) { r.Path = "/other" },
		"header":         func(r *Request) { r.Headers = fields{"x-team": "red"} },
		"no header":      func(r *Request) { r.Headers = nil },
		"withoutHeaders": func(r *Request) { r.Headers = fields{"x-team": "blue", "x-debug": ""} },
		"query":          func(r *Request) { r.Query = "a=1&v=3" },
		"no query":       func(r *Request) { r.Query = "" },
	} {
		r := good()
		spoil(r)
		if m.Matches(r) {
			t.Errorf("%s does not fit, and yet the match does", name)
		}
	}
	// A missing header counts as empty for an inverted match with a value.
	inverted := Match{Headers: []NamedMatch{{Name: "h", Value: match(t, MatchRegex, ".*"), Invert: true}}}
	if inverted.Matches(&Request{}) {
		t.Error("withoutHeaders {h: {regex: .*}} excludes requests that lack h, too")
	}
}

// 95/5 over many picks: within five standard deviations of the share.
func TestWeightsAreShares(t *testing.T) {
	table, err := NewRouteTable("h", []Rule{{Destinations: []Destination{
		{Subset: "v1", Weight: 95}, {Subset: "v2", Weight: 5}, {Subset: "off", Weight: 0}}}})
	if err != nil {
		t.Fatal(err)
	}
	const n = 100_000
	counts := map[string]int{}
	random := rand.New(rand.NewPCG(1, 1))
	for range n {
		counts[table.Match(&Request{}).pick(random.Uint64()).Subset]++
	}
	if got, five := float64(counts["v2"])/n, 5*math.Sqrt(0.05*0.95/n); math.Abs(got-0.05) > five {
		t.Errorf("v2 got %.4f of the calls, want 0.05 ± %.4f", got, five)
	}
	if counts["off"] != 0 {
		t.Error("a destination of weight 0 got traffic")
	}
	if _, err := NewRouteTable("h", []Rule{{Destinations: []Destination{{}, {}}}}); KindOf(err) != Invalid {
		t.Errorf("all weights zero: %v", err)
	}
	if one, err := NewRouteTable("h", []Rule{{Destinations: []Destination{{Subset: "only"}}}}); err != nil || one.Rules[0].pick(7).Subset != "only" {
		t.Errorf("one destination gets all, whatever its weight: %v", err)
	}
}

var orders = NewServiceName("", "order-service")

func snapshotOf(t *testing.T, edge *Rule, mesh ...Rule) *Snapshot {
	t.Helper()
	own, err := NewRouteTable(orders.Host(), mesh)
	if err != nil {
		t.Fatal(err)
	}
	s := &Snapshot{Hosts: map[string]*RouteTable{orders.Host(): own, "order-service": own, "gone": nil},
		Services: map[ServiceName]*Service{orders: {Name: orders, Subsets: []Subset{{Name: "v1"}, {Name: "v2"}}}}}
	if edge != nil {
		table, err := NewRouteTable("*", []Rule{*edge})
		if err != nil {
			t.Fatal(err)
		}
		s.Gateway = NewGateway("edge", []*RouteTable{table})
	}
	return s
}

func TestRoute(t *testing.T) {
	v1 := Rule{Name: "mesh", Destinations: []Destination{{Service: orders, Subset: "v1"}}}
	toService := &Rule{Name: "edge", Destinations: []Destination{{Service: orders}}}
	toSubset := &Rule{Name: "edge", Destinations: []Destination{{Service: orders, Subset: "v2"}}}
	for _, tc := range []struct {
		name     string
		snapshot *Snapshot
		host     string
		problem  RouteProblem
		rule     string
		subset   string
		edge     bool
	}{
		{"in the mesh", snapshotOf(t, nil, v1), "order-service", "", "mesh", "v1", false},
		{"not asked for yet", snapshotOf(t, nil, v1), "other", NotLoaded, "", "", false},
		{"known not to exist", snapshotOf(t, nil, v1), "gone", NoHost, "", "", false},
		{"the edge hands over to the service's own rules", snapshotOf(t, toService, v1), "any.example.com", "", "mesh", "v1", true},
		{"an edge rule with a subset has decided", snapshotOf(t, toSubset, v1), "any.example.com", "", "edge", "v2", false},
		{"subset that is not defined", snapshotOf(t, nil, Rule{Name: "mesh", Destinations: []Destination{{Service: orders, Subset: "v9"}}}), "order-service", NoSubset, "mesh", "v9", false},
		{"service that is not known", snapshotOf(t, nil, Rule{Name: "mesh", Destinations: []Destination{{Service: NewServiceName("", "x")}}}), "order-service", NoService, "mesh", "", false},
		{"no rule", snapshotOf(t, nil, Rule{Name: "never", Matches: []Match{{Method: &StringMatch{Kind: MatchExact, Value: "POST"}}}, Direct: &DirectResponse{}}), "order-service", NoRule, "", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := tc.snapshot.Route(&Request{Method: "GET", Host: tc.host, Path: "/"}, 42)
			if d.Problem != tc.problem {
				t.Fatalf("problem %q, want %q", d.Problem, tc.problem)
			}
			if tc.rule == "" {
				return
			}
			if d.Rule.Name != tc.rule || d.Destination.Subset != tc.subset || (d.Edge != nil) != tc.edge {
				t.Errorf("rule %s subset %q edge %v", d.Rule.Name, d.Destination.Subset, d.Edge)
			}
		})
	}
}

func TestGatewayHostOrder(t *testing.T) {
	var tables []*RouteTable
	for _, h := range []string{"api.example.com", "*.example.com", "*.eu.example.com", "*"} {
		tables = append(tables, &RouteTable{Host: h})
	}
	g := NewGateway("g", tables)
	for host, want := range map[string]string{
		"api.example.com": "api.example.com", "www.example.com": "*.example.com", "a.b.example.com": "*.example.com",
		"x.eu.example.com": "*.eu.example.com", "example.com": "*", "localhost": "*", "": "*",
	} {
		if got := g.Lookup(host); got.Host != want {
			t.Errorf("%q: table of %q, want %q", host, got.Host, want)
		}
	}
	if NewGateway("g", nil).Lookup("x") != nil {
		t.Error("a gateway without tables has none for x")
	}
}

func TestRouteAllocatesNothing(t *testing.T) {
	s := snapshotOf(t, &Rule{Name: "edge", Destinations: []Destination{{Service: orders}}},
		Rule{Name: "mesh", Destinations: []Destination{{Service: orders, Subset: "v1", Weight: 95}, {Service: orders, Subset: "v2", Weight: 5}}})
	r := &Request{Method: "GET", Host: "localhost", Path: "/api/orders/1"}
	if n := testing.AllocsPerRun(1000, func() { s.Route(r, 99) }); n > 0 {
		t.Errorf("%v allocations a decision", n)
	}
}

func TestOnward(t *testing.T) {
	prefix := func(matched, to string) *Rule {
		m := match(t, MatchPrefix, matched)
		return &Rule{Matches: []Match{{Path: &m}}, Rewrite: &Rewrite{Path: to, Prefix: true}}
	}
	for _, tc := range []struct {
		name       string
		rule, edge *Rule
		path       string
		want       string
		authority  string
	}{
		{"no rewrite", &Rule{}, nil, "/a", "/a", ""},
		{"whole path", &Rule{Rewrite: &Rewrite{Path: "/x"}}, nil, "/a/b", "/x", ""},
		{"prefix", prefix("/api/v1", "/v1"), nil, "/api/v1/orders", "/v1/orders", ""},
		{"prefix to the root", prefix("/api/", "/"), nil, "/api/orders", "/orders", ""},
		{"no double slash", prefix("/api", "/"), nil, "/api/orders", "/orders", ""},
		{"no lost slash", prefix("/api/", "/v2"), nil, "/api/orders", "/v2/orders", ""},
		{"the prefix alone", prefix("/api", "/v2"), nil, "/api", "/v2", ""},
		{"authority", &Rule{Rewrite: &Rewrite{Authority: "other"}}, nil, "/a", "/a", "other"},
		{"the edge's, when the rule has none", &Rule{}, prefix("/api", "/v2"), "/api/x", "/v2/x", ""},
		{"the rule's goes first", &Rule{Rewrite: &Rewrite{Path: "/r"}}, &Rule{Rewrite: &Rewrite{Path: "/e", Authority: "edge"}}, "/a", "/r", "edge"},
	} {
		d := Decision{Rule: tc.rule, Edge: tc.edge}
		if path, authority := d.Onward(&Request{Path: tc.path}); path != tc.want || authority != tc.authority {
			t.Errorf("%s: %q %q, want %q %q", tc.name, path, authority, tc.want, tc.authority)
		}
	}
}
