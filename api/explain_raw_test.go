package api

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

const connections = `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  servers:
    - {port: {number: 5432, protocol: TCP}, hosts: ["*"]}
    - {port: {number: 443, protocol: TLS}, tls: {mode: PASSTHROUGH}, hosts: ["*.example.com"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order-service}
spec:
  hosts: [order-service, vault.example.com]
  gateways: [edge, mesh]
  tcp:
    - match: [{port: 5432}]
      route: [{destination: {host: order-service, subset: v1}, weight: 3}, {destination: {host: order-service, subset: v2}, weight: 1}]
  tls:
    - match: [{sniHosts: [vault.example.com]}]
      route: [{destination: {host: inventory-service}}]
`

// told writes an explanation's routes: "tcp[0] (port 5432) to order-service/v1 75%".
func told(e *client.Explanation) string {
	var out []string
	for _, r := range e.Routes {
		if r.Rule == nil {
			out = append(out, r.Problem)
			continue
		}
		line := fmt.Sprintf("%s (%s) to", r.Rule.Name, r.Rule.Match)
		for _, d := range r.Destinations {
			line += fmt.Sprintf(" %s/%s %g%% at %d", d.Service, d.Subset, 100*d.Share, len(d.Endpoints))
		}
		out = append(out, line)
	}
	return strings.Join(out, "; ")
}

func TestExplainConnections(t *testing.T) {
	h := shop(t)
	check(t, h.Delete(t.Context(), "VirtualService", "default", "order-service"))
	_, err := h.Apply(t.Context(), []client.File{{Name: "raw.yaml", Data: connections}}, client.ApplyOptions{})
	check(t, err)
	h.joinGateway(t, "edge")
	split := "tcp[0] (port 5432) to order-service/v1 75% at 2 order-service/v2 25% at 1"
	for _, tc := range []struct {
		url, from string
		gateway   string
		want      string
	}{
		{"tcp://order-service:5432", "", "", split},
		{"tcp://order-service:6000", "user-service", "", "default (every connection) to order-service/ 100% at 3"},
		{"tcp://inventory-service:1", "order-service", "", "default (every connection) to inventory-service/ 100% at 1"},
		{"tcp://nobody:1", "user-service", "", "no such host"},
		{"tcp://db.example.com:5432", "", "edge", split},
		{"tcp://localhost:7777", "edge", "edge", "no TCP server of the gateway has the port 7777, or no rule leads on from it"},
		{"tls://vault.example.com", "", "", "tls[0] (vault.example.com) to inventory-service/ 100% at 1"}, // the mesh knows it, too
		{"tls://vault.example.com", "edge", "edge", "default (every connection) to inventory-service/ 100% at 1"},
		{"tls://other.example.com:443", "edge", "edge", "no rule passes it on; a gateway ends TLS itself, if it has a certificate"},
		{"tls://vault.example.com", "user-service", "", "tls[0] (vault.example.com) to inventory-service/ 100% at 1"},
	} {
		e := h.explain(t, client.ExplainRequest{Method: "GET", URL: tc.url, From: tc.from})
		if got := told(e); got != tc.want || e.Gateway != tc.gateway || e.Method != "" || e.Path != "" {
			t.Errorf("%s from %q: %s at %q; want %s at %q", tc.url, tc.from, got, e.Gateway, tc.want, tc.gateway)
		}
	}
	e := h.explain(t, client.ExplainRequest{URL: "tls://vault.example.com", From: "edge"})
	if e.Edge == nil || e.Edge.Name != "tls[0]" || e.Edge.Source.Position() != "raw.yaml:19" {
		t.Errorf("the gateway's own rule: %+v", e.Edge)
	}
	// inventory's policy asks for a method and a path, which a connection has not.
	if v := e.Routes[0].Destinations[0].Authorization; len(v) != 1 || v[0].Allowed || v[0].Policy.Name != "inventory-policy" {
		t.Errorf("authorization: %+v", v)
	}
	if _, err := h.Explain(t.Context(), client.ExplainRequest{URL: "tcp://order-service"}); weft.KindOf(err) != weft.Invalid || !strings.Contains(err.Error(), "port") {
		t.Errorf("tcp without a port: %v", err)
	}
}

const merging = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: inventory, annotations: {weft.dev/path-normalization: MERGE_SLASHES}}
spec:
  hosts: [inventory-service]
  http: [{route: [{destination: {host: inventory-service}}]}]
`

func TestExplainSeesPathsAsTheHostDoes(t *testing.T) {
	h := shop(t)
	ask := func() (path string, allowed bool) {
		e := h.explain(t, client.ExplainRequest{URL: "http://inventory-service//api//inventory/42", From: "order-service"})
		return e.Path, e.Routes[0].Destinations[0].Authorization[0].Allowed
	}
	if path, allowed := ask(); path != "//api//inventory/42" || allowed {
		t.Errorf("as it is: %s, allowed %v", path, allowed)
	}
	_, err := h.Apply(t.Context(), []client.File{{Name: "merge.yaml", Data: merging}}, client.ApplyOptions{})
	check(t, err)
	if path, allowed := ask(); path != "/api/inventory/42" || !allowed {
		t.Errorf("merged: %s, allowed %v", path, allowed)
	}
}
