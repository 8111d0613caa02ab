package control_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/controltest"
	"github.com/weftmesh/weft/control/weftpb"
)

// resiliencePolicy is for one target; spec is what else it says.
func resiliencePolicy(name, kind, target, spec string) string {
	return fmt.Sprintf(`
apiVersion: weft.dev/v1
kind: ResiliencePolicy
metadata: {name: %s}
spec:
  targetRef: {kind: %s, name: %s}
  %s
---
`, name, kind, target, spec)
}

func TestAPolicyIsSentToThoseWhomItConcerns(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Instance("user", "v1", 8002)
	// The name of the VirtualService is not that of its host.
	s.Apply(destinationRule("order", "v1") + virtualService("routes", "order", "v1") + edge + atEdge("a", "user"))
	w := openWire(t, s, "a")
	w.subscribe(weftpb.RouteTableType, "default/order", "default/user")
	w.take()
	w.subscribe(weftpb.ServiceType, "default/order", "default/user")
	w.take()
	w.subscribe(weftpb.GatewayTableType, "edge/")
	w.take()

	for _, step := range []struct{ what, yaml, deleted, sent string }{
		{"of a service", resiliencePolicy("p", "Service", "order", "timeout: 1s"), "", "Service +default/order"},
		{"another one of it", resiliencePolicy("q", "Service", "order", "timeout: 2s"), "", ""},
		{"the first is gone: the second holds", "", "ResiliencePolicy/p", "Service +default/order"},
		{"of a rule", resiliencePolicy("r", "VirtualService", "routes", "timeout: 3s"), "", "RouteTable +default/order"},
		{"of another rule instead", resiliencePolicy("r", "VirtualService", "a", "timeout: 3s"), "", "RouteTable +default/order, GatewayTable +edge/a.example.com"},
		{"that is gone", "", "ResiliencePolicy/r", "GatewayTable +edge/a.example.com"},
		{"of nobody", resiliencePolicy("n", "Service", "nobody", "timeout: 1s") + resiliencePolicy("m", "VirtualService", "nobody", "timeout: 1s"), "", ""},
		{"a circuit is held", "{apiVersion: weft.dev/v1, kind: BreakerOverride, metadata: {name: user}, spec: {state: forced-open}}", "", "Service +default/user"},
		{"and let go", "", "BreakerOverride/user", "Service +default/user"},
	} {
		if step.deleted == "" {
			s.Apply(step.yaml)
		} else {
			kind, name, _ := strings.Cut(step.deleted, "/")
			if _, err := s.Control.Delete(t.Context(), kind, "default", name); err != nil {
				t.Fatal(err)
			}
		}
		var want, got []string
		if step.sent != "" {
			want = strings.Split(step.sent, ", ")
		}
		for range want {
			got = append(got, brief(w.take()))
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: sent %q, want %q", step.what, got, want)
		}
		w.silence("after-" + strings.ReplaceAll(step.what[:4], " ", "-") + fmt.Sprint(len(step.what)))
	}
}

func TestASnapshotHasThePoliciesAndWhoStandsIn(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	for i, name := range []string{"order", "backup", "spare", "third"} {
		s.Instance(name, "v1", 8001+i)
	}
	s.Apply(destinationRule("order", "v1") + virtualService("order", "order", "v1") +
		resiliencePolicy("order", "Service", "order", "fallback: {service: backup}") +
		resiliencePolicy("route", "VirtualService", "order", "fallback: {service: spare}") +
		resiliencePolicy("backup", "Service", "backup", "fallback: {service: third}") +
		"{apiVersion: weft.dev/v1, kind: BreakerOverride, metadata: {name: order}, spec: {state: metrics-only}}")
	check := func() {
		t.Helper()
		mesh := s.Control.Mesh("default", "order")
		var names []string
		for n, svc := range mesh.Services {
			if names = append(names, n.Name); len(svc.Endpoints) != 1 {
				t.Errorf("%s has %d endpoints", n, len(svc.Endpoints))
			}
		}
		slices.Sort(names)
		if want := []string{"backup", "order", "spare"}; !slices.Equal(names, want) { // a fallback has none itself
			t.Errorf("services %v, want %v", names, want)
		}
		order := mesh.Services[controlService("order")]
		if order.Breaker != "metrics-only" || policyOf(order.Resilience) != `order:18 {"fallback":{"service":"backup.default"}}` {
			t.Errorf("the service has %s, its circuit is held %q", policyOf(order.Resilience), order.Breaker)
		}
		if got := policyOf(mesh.Hosts["order"].Rules[0].Resilience); got != `route:26 {"fallback":{"service":"spare.default"}}` {
			t.Errorf("the rule has %s", got)
		}
	}
	check()
	s.Restart()
	check()
}

// policyOf is the name, the line, and the spec of a policy.
func policyOf(r *weft.Resilience) string {
	if r == nil {
		return "no policy"
	}
	return fmt.Sprintf("%s:%d %s", r.Source.Name, r.Source.Line, r.Spec)
}
