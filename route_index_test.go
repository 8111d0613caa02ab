package weft

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// randomTable has rules with few letters and segments, so that exact paths, prefixes
// and the rest overlap in every way.
func randomTable(t testing.TB, random *rand.Rand, rules int) *RouteTable {
	t.Helper()
	table := make([]Rule, rules)
	for i := range table {
		table[i] = Rule{Name: fmt.Sprint(i), Direct: &DirectResponse{}}
		for range random.IntN(4) {
			table[i].Matches = append(table[i].Matches, randomMatch(t, random))
		}
		if len(table[i].Matches) == 0 && random.IntN(60) > 0 { // few fit everything
			table[i].Matches = []Match{randomMatch(t, random)}
		}
	}
	out, err := NewRouteTable("h", table)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func randomPath(random *rand.Rand) string {
	var b strings.Builder
	for range random.IntN(4) {
		b.WriteByte('/')
		for range random.IntN(3) {
			b.WriteByte("abAB"[random.IntN(4)])
		}
	}
	return b.String()
}

func randomMatch(t testing.TB, random *rand.Rand) Match {
	t.Helper()
	var m Match
	path := StringMatch{Kind: MatchExact, Value: randomPath(random), IgnoreCase: random.IntN(6) == 0}
	if random.IntN(100) > 0 { // few fit every path
		path.Value = "/a" + path.Value
	}
	switch random.IntN(8) {
	case 0:
		m.Method = &StringMatch{Kind: MatchExact, Value: "POST"}
		return m
	case 1:
		re, err := NewStringMatch(MatchRegex, path.Value+".*")
		if err != nil {
			t.Fatal(err)
		}
		path = re
	case 2:
		path.Kind = MatchSuffix
	case 3, 4, 5:
		path.Kind = MatchPrefix
	}
	m.Path = &path
	if random.IntN(3) == 0 {
		m.Headers = []NamedMatch{{Name: "x", Value: StringMatch{Kind: MatchPresent}}}
	}
	return m
}

// The index finds the rule that a walk through all rules finds.
func TestIndexFindsWhatAWalkFinds(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	found := map[bool]int{}
	for range 400 {
		table := randomTable(t, random, indexedBlocks+random.IntN(40))
		if table.index == nil {
			t.Fatal("the table has no index")
		}
		for range 60 {
			r := &Request{Method: []string{"GET", "POST"}[random.IntN(2)], Path: []string{"/a", "/b", ""}[random.IntN(3)] + randomPath(random) + randomPath(random)}
			if random.IntN(2) == 0 {
				r.Headers = fields{"x": ""}
			}
			want, got := table.walk(r), table.Match(r)
			if want != got {
				t.Fatalf("%s %s %v: the index finds %v, a walk %v", r.Method, r.Path, r.Headers, got, want)
			}
			found[got != nil]++
		}
	}
	if found[true] < 1000 || found[false] < 10 {
		t.Errorf("%d requests were routed and %d not: too few of one", found[true], found[false])
	}
}

func FuzzRouteIndex(f *testing.F) {
	f.Add(uint64(1), "/a/b", "GET")
	f.Add(uint64(2), "", "POST")
	f.Add(uint64(3), "/A//bb\xff", "GET")
	f.Fuzz(func(t *testing.T, seed uint64, path, method string) {
		table := randomTable(t, rand.New(rand.NewPCG(seed, 0)), 30)
		r := &Request{Method: method, Path: path}
		if want, got := table.walk(r), table.Match(r); want != got {
			t.Fatalf("the index finds %v, a walk %v", got, want)
		}
	})
}

func TestSmallTablesHaveNoIndex(t *testing.T) {
	if table := randomTable(t, rand.New(rand.NewPCG(1, 1)), 2); table.index != nil {
		t.Error("a table of two rules is indexed")
	}
}

// manyRules is a host of n rules: exact paths, prefixes, and one for the rest.
func manyRules(t testing.TB, n int) *RouteTable {
	t.Helper()
	rules := make([]Rule, n)
	for i := range rules {
		m := StringMatch{Kind: MatchExact, Value: fmt.Sprintf("/api/v1/tenant-%d/orders", i)}
		if i%2 == 1 {
			m = StringMatch{Kind: MatchPrefix, Value: fmt.Sprintf("/api/v1/tenant-%d/", i)}
		}
		rules[i] = Rule{Name: fmt.Sprint(i), Matches: []Match{{Path: &m}}, Destinations: []Destination{{Service: orders}}}
	}
	rules[n-1].Matches = nil
	table, err := NewRouteTable("h", rules)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func manySnapshot(t testing.TB, rules int) *Snapshot {
	return &Snapshot{Hosts: map[string]*RouteTable{"h": manyRules(t, rules)}, Services: map[ServiceName]*Service{orders: {Name: orders}}}
}

func TestRouteOfManyRulesAllocatesNothing(t *testing.T) {
	s := manySnapshot(t, 5000)
	for path, want := range map[string]string{
		"/api/v1/tenant-4002/orders": "4002", "/api/v1/tenant-4003/x": "4003", "/api/v1/tenant-4002/x": "4999", "/": "4999",
	} {
		r := &Request{Method: "GET", Host: "h", Path: path}
		if d := s.Route(r, 1); d.Rule == nil || d.Rule.Name != want {
			t.Errorf("%s: %v, want rule %s", path, d.Rule, want)
		}
		if n := testing.AllocsPerRun(100, func() { s.Route(r, 1) }); n > 0 {
			t.Errorf("%s: %v allocations", path, n)
		}
	}
}

func BenchmarkRoute(b *testing.B) {
	for _, n := range []int{2, 10, 100, 5000} {
		s := manySnapshot(b, n)
		for name, path := range map[string]string{
			"exact":  fmt.Sprintf("/api/v1/tenant-%d/orders", n/2&^1),
			"prefix": fmt.Sprintf("/api/v1/tenant-%d/items/7", n/2|1),
			"rest":   "/else",
		} {
			r := &Request{Method: "GET", Host: "h", Path: path}
			b.Run(fmt.Sprintf("%d rules/%s", n, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					s.Route(r, 7)
				}
			})
		}
	}
	var tables []*RouteTable
	for i := range 5000 {
		tables = append(tables, &RouteTable{Host: fmt.Sprintf("h%d.example.com", i), Rules: []Rule{{Destinations: []Destination{{Service: orders}}}}})
	}
	s := &Snapshot{Gateway: NewGateway("g", append(tables, &RouteTable{Host: "*.example.org", Rules: tables[0].Rules})), Services: map[ServiceName]*Service{orders: {Name: orders}}}
	for _, host := range []string{"h2500.example.com", "a.b.c.example.org", "a.b.c.d.nowhere"} {
		r := &Request{Method: "GET", Host: host, Path: "/"}
		b.Run("5000 hosts/"+host, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Route(r, 7)
			}
		})
	}
}
