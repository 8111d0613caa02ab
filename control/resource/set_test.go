package resource

import (
	"fmt"
	"sync"
	"testing"

	"github.com/weftmesh/weft"
)

// The control plane asks one Set from the streams of all proxies at once. Run
// with -race, this fails if an answer writes to what is shared.
func TestSetIsAskedFromManyGoroutines(t *testing.T) {
	s := NewSet([]*Resource{parseOne(t, canary)})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			table := s.RouteTable("order-service", "default")
			rule := table.Match(&weft.Request{Path: "/api/x", Headers: headers{"x-user": "a<bc"}})
			if rule == nil || rule.Share(&rule.Destinations[1]) != 0.05 {
				t.Errorf("rule %v, want one with 5%% for v2", rule)
			}
		})
	}
	wg.Wait()
}

func TestTheOlderVirtualServiceWins(t *testing.T) {
	const one = `{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: %s},
spec: {hosts: [a], http: [{name: %s, route: [{destination: {host: a}}]}]}}`
	for name, tt := range map[string]struct {
		z, a int64 // when they were created
		want string
	}{
		"older":                   {z: 3, a: 9, want: "z"},
		"younger":                 {z: 9, a: 3, want: "a"},
		"by name at the same age": {z: 3, a: 3, want: "a"},
		"not stored yet is last":  {z: 9, a: 0, want: "z"},
	} {
		t.Run(name, func(t *testing.T) {
			z, a := parseOne(t, fmt.Sprintf(one, "z", "z")), parseOne(t, fmt.Sprintf(one, "a", "a"))
			z.Created, a.Created = tt.z, tt.a
			for _, order := range [][]*Resource{{z, a}, {a, z}} {
				if got := NewSet(order).RouteTable("a", "default").Rules[0].Name; got != tt.want {
					t.Errorf("%s won, want %s", got, tt.want)
				}
			}
		})
	}
}

func TestRouteTableKeepsTheHostAsAskedFor(t *testing.T) {
	s := NewSet([]*Resource{parseOne(t, canary)})
	for _, host := range []string{"order-service", "order-service.default.svc.cluster.local"} {
		if got := s.RouteTable(host, "default").Host; got != host {
			t.Errorf("the table's host is %q, want %q", got, host)
		}
	}
}

func TestAnEmptySetAnswers(t *testing.T) {
	s := NewSet(nil)
	policy, subsets := s.Service(weft.NewServiceName("", "a"), "default")
	if s.RouteTable("a", "default") != nil || s.Gateway("edge") != nil || s.Authorization("default", nil) != nil ||
		len(s.Warnings(nil)) > 0 || subsets != nil || policy != (weft.TrafficPolicy{LoadBalancer: weft.LeastRequest}) {
		t.Error("an empty Set knows something")
	}
}
