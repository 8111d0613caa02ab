package weft

import (
	"net/netip"
	"strings"
	"testing"
)

func exact(s string) StringMatch  { return StringMatch{Kind: MatchExact, Value: s} }
func prefix(s string) StringMatch { return StringMatch{Kind: MatchPrefix, Value: s} }

// The acceptance policy: only order-service, only GET, only below /api/inventory/.
func inventoryPolicy() *AuthorizationPolicy {
	return &AuthorizationPolicy{
		Source: SourceRef{Kind: "AuthorizationPolicy", Namespace: "default", Name: "inventory-policy", File: "p.yaml", Line: 1},
		Rules: []AuthorizationRule{{
			From: []SourceMatch{{Principals: Values{Any: []StringMatch{exact("cluster.local/ns/default/sa/order-service")}}}},
			To:   []OperationMatch{{Methods: Values{Any: []StringMatch{exact("GET")}}, Paths: Values{Any: []StringMatch{prefix("/api/inventory/")}}}},
		}},
	}
}

func TestDecide(t *testing.T) {
	order, user := NewIdentity("cluster.local", "default", "order-service"), NewIdentity("cluster.local", "default", "user-service")
	denyAdmin := &AuthorizationPolicy{Source: SourceRef{Kind: "AuthorizationPolicy", Name: "deny-admin"}, Action: Deny,
		Rules: []AuthorizationRule{{To: []OperationMatch{{Paths: Values{Any: []StringMatch{prefix("/api/inventory/admin")}}}}}}}
	notOrder := &AuthorizationPolicy{Action: Deny, Rules: []AuthorizationRule{{From: []SourceMatch{{
		Principals: Values{Not: []StringMatch{exact("cluster.local/ns/default/sa/order-service")}}}}}}}
	nobody := &AuthorizationPolicy{}
	everybody := &AuthorizationPolicy{Rules: []AuthorizationRule{{}}}
	dry := &AuthorizationPolicy{Action: Deny, DryRun: true, Rules: []AuthorizationRule{{}}}
	header := &AuthorizationPolicy{Rules: []AuthorizationRule{{When: []Condition{{Key: "request.headers[x-team]", Values: Values{Any: []StringMatch{exact("blue")}}}}}}}
	block := &AuthorizationPolicy{Rules: []AuthorizationRule{{From: []SourceMatch{{Addresses: Prefixes{Any: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}}}}}
	for _, tc := range []struct {
		name     string
		policies []*AuthorizationPolicy
		from     Identity
		method   string
		path     string
		allowed  bool
	}{
		{"order-service may GET", []*AuthorizationPolicy{inventoryPolicy()}, order, "GET", "/api/inventory/42", true},
		{"order-service may not POST", []*AuthorizationPolicy{inventoryPolicy()}, order, "POST", "/api/inventory/42", false},
		{"another path", []*AuthorizationPolicy{inventoryPolicy()}, order, "GET", "/admin", false},
		{"user-service may not", []*AuthorizationPolicy{inventoryPolicy()}, user, "GET", "/api/inventory/42", false},
		{"nobody known may not", []*AuthorizationPolicy{inventoryPolicy()}, "", "GET", "/api/inventory/42", false},
		{"no policies", nil, "", "GET", "/", true},
		{"ALLOW without rules denies all", []*AuthorizationPolicy{nobody}, order, "GET", "/", false},
		{"an empty rule allows all", []*AuthorizationPolicy{everybody}, "", "GET", "/", true},
		{"DENY goes before ALLOW", []*AuthorizationPolicy{inventoryPolicy(), denyAdmin}, order, "GET", "/api/inventory/admin/x", false},
		{"DENY alone lets the rest pass", []*AuthorizationPolicy{denyAdmin}, user, "GET", "/", true},
		{"notPrincipals is true in plain text", []*AuthorizationPolicy{notOrder}, "", "GET", "/", false},
		{"notPrincipals spares the named one", []*AuthorizationPolicy{notOrder}, order, "GET", "/", true},
		{"a dry run decides nothing", []*AuthorizationPolicy{dry}, user, "GET", "/", true},
		{"a header that is missing", []*AuthorizationPolicy{header}, user, "GET", "/", false},
		{"an address outside the block", []*AuthorizationPolicy{block}, user, "GET", "/", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := &Authorization{Policies: tc.policies}
			v := a.Decide(&AuthorizationRequest{Request: &Request{Method: tc.method, Path: tc.path, Source: tc.from}, PeerAddr: netip.MustParseAddr("127.0.0.1")})
			if v.Allowed != tc.allowed {
				t.Errorf("allowed %v: %s", v.Allowed, v.Reason())
			}
		})
	}
}

// Of a raw connection nobody knows a method, a path, a host or a header.
func TestDecideRaw(t *testing.T) {
	order := NewIdentity("cluster.local", "default", "order-service")
	principal := []SourceMatch{{Principals: Values{Any: []StringMatch{exact(order.Principal())}}}}
	port := OperationMatch{Ports: Values{Any: []StringMatch{exact("5432")}}}
	notPath := OperationMatch{Paths: Values{Not: []StringMatch{exact("/admin")}}}
	header := []Condition{{Key: "request.headers[x-team]", Values: Values{Not: []StringMatch{exact("red")}}}}
	one := func(action Action, rule AuthorizationRule) []*AuthorizationPolicy {
		return []*AuthorizationPolicy{{Action: action, Rules: []AuthorizationRule{rule}}}
	}
	for _, tc := range []struct {
		name     string
		policies []*AuthorizationPolicy
		from     Identity
		port     string
		allowed  bool
	}{
		{"ALLOW by principal and port", one(Allow, AuthorizationRule{From: principal, To: []OperationMatch{port}}), order, "5432", true},
		{"ALLOW for another port", one(Allow, AuthorizationRule{From: principal, To: []OperationMatch{port}}), order, "80", false},
		{"ALLOW by path and method", []*AuthorizationPolicy{inventoryPolicy()}, order, "5432", false},
		{"ALLOW by what the path is not", one(Allow, AuthorizationRule{To: []OperationMatch{notPath}}), order, "5432", false},
		{"ALLOW by port, or by path", one(Allow, AuthorizationRule{To: []OperationMatch{port, notPath}}), order, "5432", false},
		{"ALLOW by what a header is not", one(Allow, AuthorizationRule{When: header}), order, "5432", false},
		{"DENY by path denies all", one(Deny, AuthorizationRule{To: []OperationMatch{{Paths: Values{Any: []StringMatch{exact("/admin")}}}}}), order, "5432", false},
		{"DENY by header and principal", one(Deny, AuthorizationRule{From: principal, When: []Condition{{Key: "request.headers[x]", Values: Values{Any: []StringMatch{exact("y")}}}}}), order, "5432", false},
		{"DENY of another principal by path", one(Deny, AuthorizationRule{From: principal, To: []OperationMatch{notPath}}), "", "5432", true},
	} {
		v := (&Authorization{Policies: tc.policies}).Decide(&AuthorizationRequest{Request: &Request{Source: tc.from}, Port: tc.port, Raw: true})
		if v.Allowed != tc.allowed {
			t.Errorf("%s: allowed %v: %s", tc.name, v.Allowed, v.Reason())
		}
	}
}

func TestVerdictNamesThePolicy(t *testing.T) {
	a := &Authorization{Policies: []*AuthorizationPolicy{inventoryPolicy()}}
	v := a.Decide(&AuthorizationRequest{Request: &Request{Method: "GET", Path: "/"}})
	if want := "AuthorizationPolicy default/inventory-policy (p.yaml:1)"; !strings.Contains(v.Reason(), want) {
		t.Errorf("%q does not name %q", v.Reason(), want)
	}
}
