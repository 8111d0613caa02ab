package api

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

// The world of these tests: order-service with two versions and a canary rule,
// inventory-service behind a policy, and a gateway before both.

var (
	orders    = weft.NewServiceName("", "order-service")
	inventory = weft.NewServiceName("", "inventory-service")
	ordersID  = weft.NewIdentity("cluster.local", "default", "order-service")
	usersID   = weft.NewIdentity("cluster.local", "default", "user-service")
)

func source(kind, name string, line int) weft.SourceRef {
	return weft.SourceRef{Kind: kind, Namespace: "default", Name: name, File: name + ".yaml", Line: line}
}

func match(t *testing.T, kind weft.MatchKind, value string) *weft.StringMatch {
	t.Helper()
	m, err := weft.NewStringMatch(kind, value)
	if err != nil {
		t.Fatal(err)
	}
	return &m
}

func routeTable(t *testing.T, host string, rules ...weft.Rule) *weft.RouteTable {
	t.Helper()
	table, err := weft.NewRouteTable(host, rules)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func endpoint(id, version string, identity weft.Identity) weft.Endpoint {
	return weft.Endpoint{ID: "laptop/" + id, Address: "127.0.0.1:15006", Identity: identity, Weight: 1,
		Labels: map[string]string{"version": version, "app": strings.Split(id, "-")[0]}}
}

// headers of a request in a test.
type headers map[string]string

func (h headers) Header(name string) (string, bool) {
	v, ok := h[strings.ToLower(name)]
	return v, ok
}

// world is a mesh snapshot; the gateway is put before it by throughGateway.
func world(t *testing.T) *weft.Snapshot {
	beta := weft.Rule{Name: "beta", Source: source("VirtualService", "order-service", 7),
		Matches: []weft.Match{{Headers: []weft.NamedMatch{{Name: "x-beta", Value: *match(t, weft.MatchExact, "yes")}}},
			{Path: match(t, weft.MatchPrefix, "/beta/"), Method: match(t, weft.MatchExact, "POST")}},
		Destinations: []weft.Destination{{Service: orders, Subset: "v2"}}}
	canary := weft.Rule{Name: "http[1]", Source: source("VirtualService", "order-service", 17), Timeout: 2 * time.Second,
		Retry: weft.Retry{Attempts: 3, PerTryTimeout: time.Second, On: weft.RetryConnectFailure | weft.RetryGatewayError, Statuses: []int{425}},
		Destinations: []weft.Destination{{Service: orders, Subset: "v1", Weight: 95}, {Service: orders, Subset: "v2", Weight: 5},
			{Service: orders, Subset: "v3", Weight: 0}}}
	plain := weft.Rule{Name: "default", Destinations: []weft.Destination{{Service: inventory}}, Retry: weft.DefaultRetry}
	policy := weft.TrafficPolicy{Source: source("DestinationRule", "order-service", 1), LoadBalancer: weft.RoundRobin, MaxConnections: 100}
	v2policy := policy
	v2policy.Outlier = &weft.Outlier{Consecutive5xx: 5, Interval: 10 * time.Second, BaseEjection: 30 * time.Second, MaxEjectionPercent: 50}
	return &weft.Snapshot{
		Hosts: map[string]*weft.RouteTable{
			"order-service":     routeTable(t, "order-service", beta, canary),
			orders.Host():       routeTable(t, orders.Host(), beta, canary),
			"inventory-service": routeTable(t, "inventory-service", plain),
			inventory.Host():    routeTable(t, inventory.Host(), plain),
			"nobody":            nil,
		},
		Services: map[weft.ServiceName]*weft.Service{
			orders: {Name: orders, Policy: policy, Endpoints: []weft.Endpoint{endpoint("orders-1", "v1", ordersID), endpoint("orders-2", "v1", ""), endpoint("orders-3", "v2", ordersID)},
				Subsets: []weft.Subset{{Name: "v1", Labels: map[string]string{"version": "v1"}, Policy: policy}, {Name: "v2", Labels: map[string]string{"version": "v2"}, Policy: v2policy}}},
			inventory: {Name: inventory, Endpoints: []weft.Endpoint{endpoint("inventory-1", "v1", "spiffe://cluster.local/ns/default/sa/inventory-service")}},
		},
	}
}

func ask(t *testing.T, s *weft.Snapshot, caller weft.Identity, method, host, path string, h headers) *client.Explanation {
	t.Helper()
	allowed := &weft.AuthorizationPolicy{Source: source("AuthorizationPolicy", "inventory-policy", 1), Rules: []weft.AuthorizationRule{{
		From: []weft.SourceMatch{{Principals: weft.Values{Any: []weft.StringMatch{*match(t, weft.MatchExact, ordersID.Principal())}}}},
		To: []weft.OperationMatch{{Paths: weft.Values{Any: []weft.StringMatch{*match(t, weft.MatchPrefix, "/api/inventory/")}},
			Ports: weft.Values{Any: []weft.StringMatch{*match(t, weft.MatchExact, "8080")}}}}}}}
	v := &evaluation{snapshot: s, caller: caller, authority: host + ":8080",
		request: &weft.Request{Method: method, Scheme: "http", Host: host, Path: path, Headers: h},
		workload: func(_ weft.ServiceName, e *weft.Endpoint) workload {
			if e.Labels["app"] != "inventory" {
				return workload{port: "8080"}
			}
			return workload{authorization: &weft.Authorization{Policies: []*weft.AuthorizationPolicy{allowed}}, port: "8080"}
		}}
	var e client.Explanation
	v.run(&e)
	return &e
}

func TestACanaryNamesRuleSharesAndEndpoints(t *testing.T) {
	e := ask(t, world(t), usersID, "GET", "order-service", "/api/orders/1", nil)
	policy := &client.Policy{Source: source("DestinationRule", "order-service", 1), LoadBalancer: "ROUND_ROBIN", MaxConnections: 100}
	v2 := *policy
	v2.Outlier = &client.Outlier{Consecutive5xx: 5, Interval: weft.Duration(10 * time.Second), BaseEjection: weft.Duration(30 * time.Second), MaxEjectionPercent: 50}
	want := &client.Explanation{Routes: []client.Route{{
		Share: 1, Table: "order-service",
		Passed: []client.PassedRule{{Name: "beta", Source: source("VirtualService", "order-service", 7),
			Why: `header x-beta is missing, wanted = yes; path is "/api/orders/1", wanted /beta/*`}},
		Rule: &client.Rule{Name: "http[1]", Source: source("VirtualService", "order-service", 17), Match: "every request",
			Timeout: weft.Duration(2 * time.Second), Retry: client.Retry{Attempts: 3, PerTryTimeout: weft.Duration(time.Second),
				On: []string{"connect-failure", "gateway-error"}, Statuses: []int{425}}},
		Destinations: []client.Destination{
			{Namespace: "default", Service: "order-service", Subset: "v1", Weight: 95, Share: 0.95, Policy: policy,
				Endpoints: []client.Endpoint{{ID: "laptop/orders-1", Address: "127.0.0.1:15006", Version: "v1", Weight: 1, Identity: ordersID},
					{ID: "laptop/orders-2", Address: "127.0.0.1:15006", Version: "v1", Weight: 1}},
				Authorization: []client.Verdict{{Allowed: true, Reason: "no policy applies", Endpoints: []string{"laptop/orders-1"}},
					{Allowed: true, Reason: "no sidecar stands there to ask", Endpoints: []string{"laptop/orders-2"}}}},
			{Namespace: "default", Service: "order-service", Subset: "v2", Weight: 5, Share: 0.05, Policy: &v2,
				Endpoints:     []client.Endpoint{{ID: "laptop/orders-3", Address: "127.0.0.1:15006", Version: "v2", Weight: 1, Identity: ordersID}},
				Authorization: []client.Verdict{{Allowed: true, Reason: "no policy applies", Endpoints: []string{"laptop/orders-3"}}}},
			{Namespace: "default", Service: "order-service", Subset: "v3", Endpoints: []client.Endpoint{}},
		}}}}
	if d := cmp.Diff(want, e); d != "" {
		t.Error(d)
	}
}

func TestTheFirstRuleThatFitsIsNamedWithItsMatch(t *testing.T) {
	e := ask(t, world(t), "", "POST", "order-service", "/beta/x", nil)
	r := e.Routes[0]
	if r.Rule.Name != "beta" || r.Rule.Match != "path /beta/* and method = POST" || len(r.Passed) != 0 || r.Destinations[0].Share != 1 {
		t.Errorf("got %+v", r)
	}
	e = ask(t, world(t), "", "GET", "order-service", "/beta/x", headers{"x-beta": "no"})
	want := `header x-beta is "no", wanted = yes; method is "GET", wanted = POST`
	if got := e.Routes[0].Passed[0].Why; got != want {
		t.Errorf("passed over because %s\nwant %s", got, want)
	}
}

func TestWhoMayTalkToWhom(t *testing.T) {
	for _, tt := range []struct {
		name    string
		caller  weft.Identity
		path    string
		allowed bool
		reason  string
	}{
		{"the caller of the policy", ordersID, "/api/inventory/42", true, "AuthorizationPolicy default/inventory-policy (inventory-policy.yaml:1) rule 0 allows it"},
		{"another path", ordersID, "/admin", false, "no rule of AuthorizationPolicy default/inventory-policy (inventory-policy.yaml:1) allows it"},
		{"another caller", usersID, "/api/inventory/42", false, "no rule of AuthorizationPolicy default/inventory-policy (inventory-policy.yaml:1) allows it"},
		{"nobody known", "", "/api/inventory/42", false, "no rule of AuthorizationPolicy default/inventory-policy (inventory-policy.yaml:1) allows it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := ask(t, world(t), tt.caller, "GET", "inventory-service", tt.path, nil)
			want := []client.Verdict{{Allowed: tt.allowed, Policy: source("AuthorizationPolicy", "inventory-policy", 1),
				Reason: tt.reason, Endpoints: []string{"laptop/inventory-1"}}}
			if d := cmp.Diff(want, e.Routes[0].Destinations[0].Authorization); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestPoliciesSeeTheRewrittenPath(t *testing.T) {
	s := world(t)
	s.Hosts["stock"] = routeTable(t, "stock", weft.Rule{Name: "http[0]",
		Matches:      []weft.Match{{Path: match(t, weft.MatchPrefix, "/stock/")}},
		Rewrite:      &weft.Rewrite{Path: "/api/inventory", Prefix: true, Authority: "Inventory-Service"},
		Destinations: []weft.Destination{{Service: inventory}}})
	e := ask(t, s, ordersID, "GET", "stock", "/stock/42", nil)
	r := e.Routes[0]
	if d := cmp.Diff(&client.Rewrite{Path: "/api/inventory/42", Authority: "Inventory-Service"}, r.Rule.Rewrite); d != "" {
		t.Error(d)
	}
	if v := r.Destinations[0].Authorization[0]; !v.Allowed {
		t.Errorf("verdict %+v: the policy looked at the path before the rewrite", v)
	}
}

// throughGateway puts a gateway with one rule before the world.
func throughGateway(t *testing.T, s *weft.Snapshot, rule weft.Rule) *weft.Snapshot {
	s.Gateway = weft.NewGateway("edge", []*weft.RouteTable{routeTable(t, "*.example.com", rule)})
	return s
}

func TestAGatewaysRuleHandsOverToTheServicesOwnRules(t *testing.T) {
	s := throughGateway(t, world(t), weft.Rule{Name: "http[0]", Source: source("VirtualService", "edge", 9),
		Matches:      []weft.Match{{Path: match(t, weft.MatchPrefix, "/api")}},
		Rewrite:      &weft.Rewrite{Path: "/api/inventory/9"},
		Destinations: []weft.Destination{{Service: orders, Weight: 3}, {Service: orders, Subset: "v2", Weight: 1}, {Service: inventory, Weight: 4}}})
	e := ask(t, s, ordersID, "GET", "shop.example.com", "/api/orders/1", nil)
	if e.Edge == nil || e.Edge.Source.Line != 9 || e.Edge.Match != "path /api*" {
		t.Fatalf("edge %+v", e.Edge)
	}
	type way struct {
		Share        float64
		Table, Rule  string
		Destinations int
	}
	var got []way
	for _, r := range e.Routes {
		got = append(got, way{r.Share, r.Table, r.Rule.Name, len(r.Destinations)})
	}
	want := []way{{0.375, orders.Host(), "http[1]", 3}, {0.125, "*.example.com", "http[0]", 1}, {0.5, inventory.Host(), "default", 1}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if v := e.Routes[2].Destinations[0].Authorization[0]; !v.Allowed {
		t.Errorf("verdict %+v: the edge's rewrite was not applied", v)
	}
}

func TestAGatewaysRuleThatHandsNothingOver(t *testing.T) {
	s := throughGateway(t, world(t), weft.Rule{Name: "http[0]", Destinations: []weft.Destination{
		{Service: orders, Subset: "v1", Weight: 1}, {Service: orders, Subset: "v2", Weight: 1}}})
	e := ask(t, s, "", "GET", "shop.example.com", "/", nil)
	if e.Edge != nil || len(e.Routes) != 1 || len(e.Routes[0].Destinations) != 2 || e.Routes[0].Table != "*.example.com" {
		t.Errorf("got %+v", e)
	}
}

func TestRulesThatAnswerThemselves(t *testing.T) {
	s := world(t)
	s.Hosts["old"] = routeTable(t, "old", weft.Rule{Name: "http[0]", Redirect: &weft.Redirect{Scheme: "https", Authority: "new", Code: 308}})
	s.Hosts["moved"] = routeTable(t, "moved", weft.Rule{Name: "http[0]", Redirect: &weft.Redirect{Path: "/b"}})
	s.Hosts["down"] = routeTable(t, "down", weft.Rule{Name: "http[0]", Direct: &weft.DirectResponse{Status: 503, Body: "closed"}})
	if r := ask(t, s, "", "GET", "old", "/a", nil).Routes[0]; *r.Rule.Redirect != (client.Redirect{Code: 308, Location: "https://new/a"}) || r.Problem != "" {
		t.Errorf("redirect: %+v", r)
	}
	if r := ask(t, s, "", "GET", "moved", "/a", nil).Routes[0]; *r.Rule.Redirect != (client.Redirect{Code: 301, Location: "http://moved:8080/b"}) {
		t.Errorf("redirect on the same host: %+v", r.Rule.Redirect)
	}
	if r := ask(t, s, "", "GET", "down", "/a", nil).Routes[0]; *r.Rule.Direct != (client.Direct{Status: 503, Body: "closed"}) || r.Problem != "" {
		t.Errorf("direct response: %+v", r)
	}
}

func TestWhyThereIsNowhereToGo(t *testing.T) {
	s := world(t)
	gone := weft.NewServiceName("", "gone")
	idle := weft.NewServiceName("", "idle")
	s.Services[idle] = &weft.Service{Name: idle}
	to := func(d weft.Destination) weft.Rule { return weft.Rule{Name: "r", Destinations: []weft.Destination{d}} }
	s.Hosts["gone"] = routeTable(t, "gone", to(weft.Destination{Service: gone}))
	s.Hosts["unresolved"] = routeTable(t, "unresolved", to(weft.Destination{Service: gone, Unresolved: "service gone does not exist"}))
	s.Hosts["idle"] = routeTable(t, "idle", to(weft.Destination{Service: idle}))
	s.Hosts["subset"] = routeTable(t, "subset", to(weft.Destination{Service: orders, Subset: "v9"}))
	picky := to(weft.Destination{Service: idle})
	picky.Matches = []weft.Match{{Method: match(t, weft.MatchExact, "POST")}}
	s.Hosts["picky"] = routeTable(t, "picky", picky)
	for host, want := range map[string]string{
		"nobody": "no such host", "never-asked": "configuration is not loaded yet", "picky": "no rule fits",
		"gone": "service is not known", "unresolved": "service gone does not exist", "idle": "no healthy endpoint", "subset": "subset is not defined",
	} {
		r := ask(t, s, "", "GET", host, "/", nil).Routes[0]
		got := r.Problem
		if len(r.Destinations) > 0 {
			got += r.Destinations[0].Problem
		}
		if got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
	gw := throughGateway(t, world(t), picky)
	if r := ask(t, gw, "", "GET", "elsewhere", "/", nil).Routes[0]; r.Problem != "no such host" {
		t.Errorf("a host the gateway does not serve: %+v", r)
	}
	if r := ask(t, gw, "", "GET", "a.example.com", "/", nil).Routes[0]; r.Problem != "no rule fits" || len(r.Passed) != 1 {
		t.Errorf("a gateway without a rule that fits: %+v", r)
	}
}
