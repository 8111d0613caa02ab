package resource

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weftmesh/weft"
)

// world makes resources at random, few names and many collisions.
type world struct {
	t      *testing.T
	random *rand.Rand
}

func (w world) one(of ...string) string { return of[w.random.IntN(len(of))] }

func (w world) some(of ...string) string {
	var out []string
	for _, v := range of {
		if w.random.IntN(2) == 0 {
			out = append(out, fmt.Sprintf("%q", v))
		}
	}
	if len(out) == 0 {
		out = append(out, fmt.Sprintf("%q", of[0]))
	}
	return "[" + strings.Join(out, ", ") + "]"
}

func (w world) annotation() string {
	return w.one("", "", "weft.dev/path-normalization: "+w.one("NONE", "MERGE_SLASHES"))
}

func (w world) resource() *Resource {
	namespace := w.one("default", "shop")
	head := func(api, kind, name string) string {
		return fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: %s, namespace: %s, annotations: {%s}}\nspec:\n",
			api, kind, name, namespace, map[bool]string{true: w.annotation()}[annotated(kind)])
	}
	var text string
	switch w.random.IntN(12) {
	case 0:
		text = head("networking.istio.io/v1", gatewayKind, w.one("edge", "inner")) + "  servers:\n" +
			"    - {port: {number: 80, protocol: HTTP}, hosts: " + w.some("*", "a.example.com", "./*.example.com") + "}\n" +
			"    - {port: {number: 443, protocol: HTTPS}, tls: {mode: " + w.one("SIMPLE", "PASSTHROUGH") + "}, hosts: " + w.some("*.example.com", "b.example.com") + "}\n" +
			"    - {port: {number: 443, protocol: TLS}, tls: {mode: PASSTHROUGH}, hosts: " + w.some("shop/*", "a.example.com") + "}\n" +
			"    - {port: {number: " + w.one("5432", "6379") + ", protocol: TCP}, hosts: " + w.some("*", "a.example.com") + "}\n"
	case 1, 2:
		text = head("networking.istio.io/v1", destinationRuleKind, w.one("x", "y", "z")) +
			"  host: " + w.one("a", "b.default", `"*.example.com"`) + "\n  exportTo: " + w.some("*", ".") +
			"\n  subsets: [{name: " + w.one("v1", "v2") + ", labels: {version: " + w.one("1", "2") + "}}]\n"
	case 3:
		text = head("security.istio.io/v1", authorizationPolicyKind, w.one("p", "q")) +
			"  action: " + w.one("ALLOW", "DENY") + "\n  rules: [{to: [{operation: {paths: [/" + w.one("x", "y") + "]}}]}]\n"
	case 4:
		text = head("weft.dev/v1", resiliencePolicyKind, w.one("r", "s", "t")) + "  timeout: " + w.one("1s", "2s") + "\n  " +
			w.one("", "retry: {maxAttempts: 2}\n  ") + "targetRefs:\n    - {kind: Service, name: " + w.one("a", "b") + "}\n" +
			w.one("", "    - {kind: VirtualService, name: "+w.one("a", "b", "c")+w.one("", ", sectionName: http[0]", ", sectionName: http[1]")+"}\n")
	case 5:
		text = head("weft.dev/v1", breakerOverrideKind, w.one("a", "b")) + "  state: " + w.one("forced-open", "disabled") + "\n"
	default:
		text = head("networking.istio.io/v1", virtualServiceKind, w.one("a", "b", "c", "d", "e")) +
			"  hosts: " + w.some("a", "a.example.com", "b.example.com", "*.example.com") + "\n  gateways: " + w.some("edge", "mesh", "shop/inner", "default/edge") +
			"\n  exportTo: " + w.some("*", ".", "*") + "\n" +
			w.one("", "  tcp: [{match: [{port: "+w.one("5432", "6379")+"}], route: [{destination: {host: a}}]}, {route: [{destination: {host: b}}]}]\n") +
			w.one("", "  tls: [{match: [{sniHosts: [x.example.com]}], route: [{destination: {host: a}}]}]\n") +
			"  http:\n    - {" + w.one("", "timeout: 3s, ") + "match: [{uri: {prefix: /" + w.one("x", "y", "") + "}}], route: [{destination: {host: a, subset: v1}}]}\n" +
			w.one("", "    - {route: [{destination: {host: "+w.one("a", "b")+"}}]}\n")
	}
	// tls rules must be for the hosts of the VirtualService.
	text = strings.ReplaceAll(text, "hosts: [\"a\"]", "hosts: [\"a\", \"*.example.com\"]")
	parsed, problems := Parse([]File{{Name: w.one("1.yaml", "2.yaml"), Data: []byte(text)}})
	if len(problems.Errors()) > 0 {
		return w.resource() // such as a name that is not among the hosts
	}
	return parsed[0]
}

// Whatever is changed bit by bit is as if it had been compiled at once; and every
// table of a gateway that differs was named.
func TestASetThatWasChangedIsAsOneThatWasMade(t *testing.T) {
	for seed := range uint64(8) {
		w := world{t, rand.New(rand.NewPCG(seed, 7))}
		all := map[Ref]*Resource{}
		set := NewSet(nil)
		for step := range 25 {
			var put []*Resource
			var removed []Ref
			for range 1 + w.random.IntN(3) {
				if r := w.resource(); !slices.ContainsFunc(put, func(p *Resource) bool { return p.Ref() == r.Ref() }) {
					r.Created = int64(1000*step + len(put) + 1)
					if old := all[r.Ref()]; old != nil {
						r.Created = old.Created
					}
					put = append(put, r)
				}
			}
			if refs := slices.Collect(maps.Keys(all)); len(refs) > 0 && w.random.IntN(3) == 0 {
				ref := refs[w.random.IntN(len(refs))]
				if !slices.ContainsFunc(put, func(p *Resource) bool { return p.Ref() == ref }) {
					removed = append(removed, ref)
					delete(all, ref)
				}
			}
			for _, r := range put {
				all[r.Ref()] = r
			}
			before := answers(set)
			next, tables := set.With(put, removed)
			want := NewSet(slices.Collect(maps.Values(all)))
			if d := cmp.Diff(answers(want), answers(next), nouns); d != "" {
				t.Fatalf("seed %d, step %d (-made +changed):\n%s", seed, step, d)
			}
			if d := cmp.Diff(before, answers(set), nouns); d != "" {
				t.Fatalf("seed %d, step %d: the set before was changed (-before +after):\n%s", seed, step, d)
			}
			unnamed(t, set, next, tables)
			set = next
		}
	}
}

var nouns = cmpopts.IgnoreUnexported(weft.StringMatch{}, weft.RouteTable{}, weft.Rule{}, weft.RawRule{}, weft.Destination{})

var worldGateways = []string{"default/edge", "default/inner", "shop/edge", "shop/inner"}

// answers is everything that a set says.
func answers(s *Set) map[string]any {
	out := map[string]any{
		"warnings": lines(s.Warnings(func(n weft.ServiceName) bool { return n.Name == "a" })), "conflicts": lines(s.Conflicts(slices.Collect(maps.Keys(s.resources)))),
	}
	for _, name := range worldGateways {
		out["gateway "+name] = s.Gateway(name)
	}
	for _, namespace := range []string{"default", "shop", "other"} {
		for _, host := range []string{"a", "a.shop", "a.example.com", "x.example.com", "nobody"} {
			out["host "+host+" in "+namespace] = s.RouteTable(host, namespace)
		}
		for _, service := range []string{"a", "b"} {
			n := weft.NewServiceName("default", service)
			policy, subsets := s.Service(n, namespace)
			out["service "+service+" in "+namespace] = fmt.Sprint(policy.Source, subsets, s.Paths(n))
			n.Namespace = namespace
			out["resilience of "+n.String()] = []any{s.Resilience(n), s.Breaker(n)}
		}
		out["authorization in "+namespace] = s.Authorization(namespace, nil)
	}
	return out
}

func unnamed(t *testing.T, before, after *Set, tables []HostOfGateway) {
	t.Helper()
	for _, name := range worldGateways {
		hosts := map[string]bool{}
		for _, s := range []*Set{before, after} {
			known, _ := s.GatewayHosts(name)
			for _, host := range known {
				hosts[host] = true
			}
		}
		for host := range hosts {
			same := cmp.Equal(before.GatewayTable(name, host), after.GatewayTable(name, host), nouns)
			if !same && !slices.Contains(tables, HostOfGateway{name, host}) {
				t.Errorf("the table of %s at %s is another, and was not named", host, name)
			}
		}
	}
}

// What a change does not concern is not compiled again.
func TestAChangeSharesTheRest(t *testing.T) {
	const service = `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: %s},
spec: {hosts: [%[1]s.example.com], gateways: [edge], http: [{route: [{destination: {host: %s}}]}]}}`
	const edge = `{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {name: edge},
spec: {servers: [{port: {number: 80, protocol: HTTP}, hosts: ["*"]}]}}`
	a, b := parseOne(t, fmt.Sprintf(service, "a", "a")), parseOne(t, fmt.Sprintf(service, "b", "b"))
	before := NewSet([]*Resource{parseOne(t, edge), a, b})
	after, tables := before.With([]*Resource{parseOne(t, fmt.Sprintf(service, "b", "other"))}, nil)
	if want := []HostOfGateway{{"default/edge", "b.example.com"}}; !reflect.DeepEqual(tables, want) {
		t.Errorf("tables %v, want %v", tables, want)
	}
	if before.GatewayTable("edge", "a.example.com") != after.GatewayTable("edge", "a.example.com") {
		t.Error("the table of a was compiled again")
	}
	if to := after.GatewayTable("edge", "b.example.com").Rules[0].Destinations[0].Service.Name; to != "other" {
		t.Errorf("b goes to %s", to)
	}
}
