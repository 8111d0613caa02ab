package weft

import (
	"slices"
	"testing"
)

func rawTable(t *testing.T, table RouteTable) *RouteTable {
	t.Helper()
	if err := table.Complete(); err != nil {
		t.Fatal(err)
	}
	return &table
}

var database = NewServiceName("", "database")

func toSubset(name, subset string, ports ...uint16) RawRule {
	return RawRule{Name: name, Ports: ports, Destinations: []Destination{{Service: database, Subset: subset}}}
}

func TestRouteTCPInTheMesh(t *testing.T) {
	table := rawTable(t, RouteTable{Host: "database", TCP: []RawRule{
		toSubset("replica", "ro", 5433), toSubset("gone", "nowhere", 5434), toSubset("default", "")}})
	s := &Snapshot{
		Hosts:    map[string]*RouteTable{"database": table, "gone": nil, "web": rawTable(t, RouteTable{Host: "web"})},
		Services: map[ServiceName]*Service{database: {Name: database, Subsets: []Subset{{Name: "ro"}}}},
	}
	for _, tc := range []struct {
		host    string
		port    uint16
		rule    string
		problem RouteProblem
	}{
		{"database", 5433, "replica", ""},
		{"database", 5432, "default", ""},
		{"database", 0, "replica", ""}, // no port is told: any fits
		{"database", 5434, "gone", NoSubset},
		{"web", 80, "", NoRule},
		{"gone", 1, "", NoHost},
		{"other", 1, "", NotLoaded},
	} {
		d := s.RouteTCP(tc.host, tc.port, 7)
		if d.Problem != tc.problem || (d.Raw == nil) != (tc.rule == "") || d.Raw != nil && d.Raw.Name != tc.rule {
			t.Errorf("%s:%d: %+v, want rule %q, problem %q", tc.host, tc.port, d, tc.rule, tc.problem)
		}
	}
	if d, ok := s.RouteTLS("database", 5432, 7); !ok || d.Raw.Name != "default" {
		t.Errorf("TLS of the application to a service: %+v, %v", d, ok)
	}
	if _, ok := s.RouteTLS("nobody.example.com", 443, 7); ok {
		t.Error("a name that nobody knows has a route")
	}
}

func gatewayOf(t *testing.T, own *RouteTable, tables ...RouteTable) *Snapshot {
	t.Helper()
	var all []*RouteTable
	for _, table := range tables {
		all = append(all, rawTable(t, table))
	}
	return &Snapshot{
		Gateway:  NewGateway("edge", all),
		Hosts:    map[string]*RouteTable{database.Host(): own},
		Services: map[ServiceName]*Service{database: {Name: database, Subsets: []Subset{{Name: "ro"}, {Name: "canary"}}}},
	}
}

func TestPassthroughByNarrowestName(t *testing.T) {
	ends := RawRule{Name: "ends here", Ports: []uint16{443}} // TLS is the gateway's own
	s := gatewayOf(t, nil,
		RouteTable{Host: "api.example.com", TLS: []RawRule{ends}},
		RouteTable{Host: "www.example.com"}, // plain HTTP only
		RouteTable{Host: "*.example.com", TLS: []RawRule{toSubset("wide", "ro", 443, 9443)}},
		RouteTable{Host: "db.example.com", TLS: []RawRule{toSubset("narrow", "canary", 443)}},
		RouteTable{Host: "*", TLS: []RawRule{toSubset("any", "ro", 8443)}},
	)
	for _, tc := range []struct {
		sni  string
		port uint16
		rule string
	}{
		{"db.example.com", 443, "narrow"},
		{"db.example.com", 9443, "wide"}, // the narrow one is for another port
		{"x.example.com", 443, "wide"},
		{"www.example.com", 443, "wide"},
		{"api.example.com", 443, ""},
		{"api.example.com", 9443, "wide"},
		{"api.example.com", 0, ""},
		{"example.com", 443, ""},
		{"example.com", 8443, "any"},
		{"", 8443, "any"},
		{"", 443, ""},
	} {
		d, ok := s.RouteTLS(tc.sni, tc.port, 7)
		if ok != (tc.rule != "") || ok && d.Raw.Name != tc.rule {
			t.Errorf("%q on %d: %+v %v, want %q", tc.sni, tc.port, d.Raw, ok, tc.rule)
		}
	}
	if _, ok := gatewayOf(t, nil, RouteTable{Host: "*"}).RouteTLS("x", 443, 7); ok {
		t.Error("a gateway without tls routes passes nothing on")
	}
}

func TestGatewayTCP(t *testing.T) {
	own := rawTable(t, RouteTable{Host: database.Host(), TCP: []RawRule{toSubset("canary", "canary", 5432), toSubset("default", "")}})
	s := gatewayOf(t, own, RouteTable{Host: "*", TCP: []RawRule{
		toSubset("first", "", 5432, 7000), toSubset("second", "ro", 5432), toSubset("subset", "ro", 6000)}})
	for port, want := range map[uint16]string{5432: "canary", 7000: "default", 6000: "subset"} {
		if d, ok := s.RouteGatewayTCP(port, 7); !ok || d.Raw.Name != want || (d.EdgeRaw != nil) != (port != 6000) {
			t.Errorf("port %d: %+v %v, want %q", port, d.Raw, ok, want)
		}
	}
	if _, ok := s.RouteGatewayTCP(1, 7); ok {
		t.Error("no server has port 1")
	}
	if got := s.Gateway.TCPPorts(); !slices.Equal(got, []uint16{5432, 6000, 7000}) {
		t.Errorf("ports %v", got)
	}
	if n := testing.AllocsPerRun(100, func() { s.RouteGatewayTCP(5432, 7); s.RouteTLS("a.example.com", 443, 7) }); n > 0 {
		t.Errorf("%v allocations a decision", n)
	}
}

func TestRawWeights(t *testing.T) {
	table := RouteTable{Host: "h", TCP: []RawRule{{Name: "tcp[0]", Destinations: []Destination{{}, {}}}}}
	if err := table.Complete(); KindOf(err) != Invalid {
		t.Errorf("all weights zero: %v", err)
	}
	table.TCP[0].Destinations = []Destination{{Subset: "a", Weight: 3}, {Subset: "b", Weight: 1}}
	if err := table.Complete(); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for i := range uint64(400) {
		counts[table.TCP[0].pick(i).Subset]++
	}
	if counts["a"] != 300 || table.TCP[0].Share(&table.TCP[0].Destinations[1]) != 0.25 {
		t.Errorf("shares %v", counts)
	}
}

func TestPathModeOfHost(t *testing.T) {
	merge := RouteTable{Host: "*.example.com", Paths: PathMergeSlashes}
	edge := gatewayOf(t, nil, merge, RouteTable{Host: "*", Paths: PathNone})
	mesh := &Snapshot{Hosts: map[string]*RouteTable{"web": {Host: "web", Paths: PathDecodeAndMergeSlashes}, "gone": nil}}
	for _, tc := range []struct {
		s    *Snapshot
		host string
		want PathMode
	}{
		{edge, "api.example.com", PathMergeSlashes}, {edge, "other.org", PathNone},
		{mesh, "web", PathDecodeAndMergeSlashes}, {mesh, "gone", PathBase}, {mesh, "other", PathBase},
	} {
		if got := tc.s.PathMode(tc.host); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.host, got, tc.want)
		}
	}
}

func TestFitsHost(t *testing.T) {
	for _, tc := range []struct {
		pattern, host string
		want          bool
	}{
		{"*", "x", true}, {"*", "", true}, {"a.b", "a.b", true}, {"a.b", "x.a.b", false},
		{"*.b", "a.b", true}, {"*.b", "x.a.b", true}, {"*.b", "b", false}, {"*.b", ".b", false}, {"*.b", "ab", false},
	} {
		if got := FitsHost(tc.pattern, tc.host); got != tc.want {
			t.Errorf("%s of %q: %v", tc.pattern, tc.host, got)
		}
	}
}
