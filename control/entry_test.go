package control

import (
	"testing"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/resource"
	"github.com/weftmesh/weft/control/weftpb"
)

// TestConcern: a changed resource makes compile again what may depend on it, and
// leaves the rest alone.
func TestConcern(t *testing.T) {
	virtualService := func(hosts ...string) *resource.Resource {
		return &resource.Resource{Kind: "VirtualService", Spec: &networking.VirtualService{Hosts: hosts}}
	}
	rule := func(host string) *resource.Resource {
		return &resource.Resource{Kind: "DestinationRule", Spec: &networking.DestinationRule{Host: host}}
	}
	atGateways := func(hosts ...string) *resource.Resource {
		return &resource.Resource{Kind: "VirtualService", Spec: &networking.VirtualService{Hosts: hosts, Gateways: []string{"edge"}}}
	}
	policy := &resource.Resource{Kind: "AuthorizationPolicy"}
	gateway := &resource.Resource{Kind: "Gateway"}
	resilience := func(kind, name string) *resource.Resource {
		return &resource.Resource{Kind: "ResiliencePolicy", Spec: &resource.ResiliencePolicy{Targets: []resource.TargetRef{{Kind: kind, Name: name}}}}
	}
	breaker := &resource.Resource{Kind: "BreakerOverride", Name: "order", Spec: &resource.BreakerOverride{}}

	table := entryKey{typeURL: weftpb.RouteTableType, name: "default/order.prod.svc.cluster.local"}
	service := entryKey{typeURL: weftpb.ServiceType, name: "prod/order"}
	endpoints := entryKey{typeURL: weftpb.EndpointsType, name: "prod/order"}
	edge := entryKey{typeURL: weftpb.GatewayType, name: "edge"}
	edgeTable := entryKey{typeURL: weftpb.GatewayTableType, name: "edge/order.example.com"}
	authorization := entryKey{typeURL: weftpb.AuthorizationType, name: "self", scope: workloadScope(weft.NewServiceName("prod", "order"), nil)}
	trust := entryKey{typeURL: weftpb.TrustType, name: "self"}
	all := []entryKey{table, service, endpoints, edge, edgeTable, authorization, trust}

	for name, c := range map[string]struct {
		changed []*resource.Resource
		touched []entryKey
	}{
		"nothing":                                {nil, nil},
		"a VirtualService of the host":           {[]*resource.Resource{virtualService("order")}, []entryKey{table, authorization}},
		"of the host's full name":                {[]*resource.Resource{virtualService("Order.prod.svc.cluster.local")}, []entryKey{table, authorization}},
		"of another host":                        {[]*resource.Resource{virtualService("user")}, nil},
		"of a wildcard":                          {[]*resource.Resource{virtualService("user", "*.prod.svc.cluster.local")}, []entryKey{table, authorization}},
		"a wildcard, then a plain one":           {[]*resource.Resource{virtualService("*"), virtualService("user")}, []entryKey{table, authorization}},
		"for gateways only":                      {[]*resource.Resource{atGateways("order", "*")}, nil},
		"a DestinationRule of the service":       {[]*resource.Resource{rule("order")}, []entryKey{service}},
		"of what the tables point to":            {[]*resource.Resource{rule("order-canary")}, []entryKey{table, edgeTable}},
		"of another service":                     {[]*resource.Resource{rule("user")}, nil},
		"of every service":                       {[]*resource.Resource{rule("*.cluster.local")}, []entryKey{table, service, edgeTable}},
		"a Gateway":                              {[]*resource.Resource{gateway}, []entryKey{edge}},
		"an AuthorizationPolicy":                 {[]*resource.Resource{policy}, []entryKey{authorization}},
		"a ResiliencePolicy of the service":      {[]*resource.Resource{resilience("Service", "order")}, []entryKey{service}},
		"of what stands in":                      {[]*resource.Resource{resilience("Service", "order-canary")}, nil},
		"a held circuit":                         {[]*resource.Resource{breaker}, []entryKey{service}},
		"a VirtualService that was and is not":   {[]*resource.Resource{virtualService("order"), nil}, []entryKey{table, authorization}},
		"one that moved from one host to others": {[]*resource.Resource{virtualService("order"), virtualService("user")}, []entryKey{table, authorization}},
	} {
		t.Run(name, func(t *testing.T) {
			n := concern{kinds: make(map[string]bool), names: make(map[string]bool)}
			for _, r := range c.changed {
				n.add(r)
			}
			want := make(map[entryKey]bool)
			for _, key := range c.touched {
				want[key] = true
			}
			catalogue := newCatalogue()
			for _, key := range all {
				e := &entry{key: key}
				catalogue.add(e)
				if key == table || key == edgeTable {
					catalogue.index(e, map[weft.ServiceName]bool{weft.NewServiceName("prod", "order-canary"): true})
				}
			}
			affected := catalogue.affected(n)
			for _, e := range catalogue.entries {
				if _, got := affected[e]; got != want[e.key] {
					t.Errorf("%s %s: %v", kindOf(e.key.typeURL), e.key.name, got)
				}
				if n.touches(e) != want[e.key] {
					t.Errorf("%s %s would be found if all were looked at: %v", kindOf(e.key.typeURL), e.key.name, n.touches(e))
				}
			}
			for _, key := range all[:6] {
				if e := (&entry{key: key}); key != endpoints && !everything().touches(&entry{key: key, saw: map[weft.ServiceName]bool{{}: true}}) {
					t.Errorf("everything does not touch %v", e.key)
				}
			}
		})
	}
}

func TestWorkloadScope(t *testing.T) {
	for _, labels := range []map[string]string{nil, {}, {"a": "1"}, {"b": "2", "a": "line\nbreak"}} {
		order := weft.NewServiceName("prod", "order")
		service, got := parseWorkload(workloadScope(order, labels))
		if service != order || len(got) != len(labels) {
			t.Errorf("%v came back as %s %v", labels, service, got)
		}
		for k, v := range labels {
			if got[k] != v {
				t.Errorf("%v came back as %v", labels, got)
			}
		}
	}
}
