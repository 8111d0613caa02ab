package api

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/control/subscribe"
)

const inventoryPolicy = `apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  name: inventory-policy
spec:
  selector:
    matchLabels:
      app: inventory
  action: ALLOW
  rules:
    - from:
        - source:
            principals: ["cluster.local/ns/default/sa/order-service"]
      to:
        - operation:
            methods: ["GET"]
            paths: ["/api/inventory/*"]
`

// shop registers instances behind sidecars and applies the canary and the policy.
func shop(t *testing.T) *house {
	t.Helper()
	h := openHouse(t)
	add := func(id, service, version string, port int) {
		app, _, _ := strings.Cut(service, "-")
		h.register(t, weft.Instance{ID: id, Service: named(service), Port: port, Labels: map[string]string{"version": version, "app": app},
			Identity: weft.NewIdentity("cluster.local", "default", service), MeshAddr: "127.0.0.1:1500" + id[len(id)-1:]})
	}
	add("orders-1", "order-service", "v1", 3001)
	add("orders-2", "order-service", "v1", 3002)
	add("orders-3", "order-service", "v2", 3003)
	add("inventory-4", "inventory-service", "v1", 3004)
	add("users-5", "user-service", "v1", 3005)
	_, err := h.Apply(t.Context(), []client.File{{Name: "canary.yaml", Data: canary}, {Name: "subsets.yaml", Data: subsets},
		{Name: "policy.yaml", Data: inventoryPolicy}}, client.ApplyOptions{})
	check(t, err)
	return h
}

func (h *house) explain(t *testing.T, r client.ExplainRequest) *client.Explanation {
	t.Helper()
	e, err := h.Explain(t.Context(), r)
	check(t, err)
	return e
}

func TestExplainACanaryAsItWasApplied(t *testing.T) {
	h := shop(t)
	e := h.explain(t, client.ExplainRequest{Method: "get", URL: "http://Order-Service:8080/api/./orders/1?full=1", From: "user-service"})
	if e.Method != "GET" || e.Host != "order-service" || e.Path != "/api/orders/1" || e.Query != "full=1" || e.From != usersID || e.Namespace != "default" {
		t.Errorf("request %+v", e)
	}
	if len(e.Routes) != 1 || e.Routes[0].Rule == nil {
		t.Fatalf("routes %+v", e.Routes)
	}
	r := e.Routes[0]
	if got := r.Rule.Source.String(); got != "VirtualService default/order-service (canary.yaml:9)" {
		t.Errorf("decided by %s", got)
	}
	if len(r.Destinations) != 2 {
		t.Fatalf("destinations %+v", r.Destinations)
	}
	for i, want := range []struct {
		subset    string
		share     float64
		endpoints int
	}{{"v1", 0.95, 2}, {"v2", 0.05, 1}} {
		d := r.Destinations[i]
		if d.Subset != want.subset || d.Share != want.share || len(d.Endpoints) != want.endpoints || d.Problem != "" {
			t.Errorf("destination %+v, want %+v", d, want)
		}
		if got := d.Policy.Source.String(); got != "DestinationRule default/order-service (subsets.yaml:1)" {
			t.Errorf("policy of %s", got)
		}
	}
	// Endpoints are the registry's, as it is now.
	_, err := h.registry.Deregister(t.Context(), weft.InstanceKey{Node: "laptop", ID: "orders-3"})
	check(t, err)
	eventually(t, func() (string, bool) {
		e := h.explain(t, client.ExplainRequest{URL: "http://order-service/"})
		problem := e.Routes[0].Destinations[1].Problem
		return problem, problem == string(weft.NoEndpoints)
	})
}

func TestExplainWhoMayTalkToWhom(t *testing.T) {
	h := shop(t)
	for from, allowed := range map[string]bool{"order-service": true, "order-service.default": true, "user-service": false, "": false} {
		e := h.explain(t, client.ExplainRequest{Method: "GET", URL: "http://inventory-service/api/inventory/42", From: from})
		d := e.Routes[0].Destinations[0]
		if len(d.Authorization) != 1 || d.Authorization[0].Allowed != allowed ||
			!strings.Contains(d.Authorization[0].Reason, "AuthorizationPolicy default/inventory-policy (policy.yaml:1)") ||
			d.Authorization[0].Policy.Name != "inventory-policy" {
			t.Errorf("from %q: %+v, want allowed %v", from, d.Authorization, allowed)
		}
	}
}

func TestExplainWhatIsNotThere(t *testing.T) {
	h := shop(t)
	e := h.explain(t, client.ExplainRequest{URL: "http://nobody/"})
	if e.Routes[0].Problem != string(weft.NoHost) {
		t.Errorf("an unknown host: %+v", e.Routes[0])
	}
	check(t, h.Delete(t.Context(), "DestinationRule", "default", "order-service"))
	e = h.explain(t, client.ExplainRequest{URL: "http://order-service/"})
	for _, d := range e.Routes[0].Destinations {
		if d.Problem == "" {
			t.Errorf("subset %s went, but %+v", d.Subset, d)
		}
	}
}

const edge = `apiVersion: networking.istio.io/v1beta1
kind: Gateway
metadata:
  name: edge
spec:
  servers:
    - port: {number: 80, name: http, protocol: HTTP}
      hosts: ["*.example.com"]
---
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: edge
spec:
  hosts: ["shop.example.com"]
  gateways: [edge]
  http:
    - match:
        - uri: {prefix: /api/orders}
      route:
        - destination: {host: order-service}
`

func (h *house) joinGateway(t *testing.T, name string) {
	t.Helper()
	h.join(t, subscribe.Config{ServiceAccount: "gateway", Role: subscribe.Gateway, GatewayName: name, PID: 4711})
	eventually(t, func() (int, bool) { n := len(h.control.Proxies()); return n, n == 1 })
}

// join joins a proxy to the control plane, over TLS, as proxies do.
func (h *house) join(t *testing.T, config subscribe.Config) *subscribe.Client {
	t.Helper()
	g := grpc.NewServer(append(h.control.ServerOptions(), grpc.Creds(credentials.NewTLS(h.control.ServerTLS())))...)
	h.control.Register(g)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	served := make(chan error, 1)
	go func() { served <- g.Serve(ln) }()
	t.Cleanup(func() {
		g.Stop()
		<-served
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	config.Server, config.Token = ln.Addr().String(), h.token
	c, err := subscribe.Open(ctx, config)
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	return c
}

func TestExplainThroughAGateway(t *testing.T) {
	h := shop(t)
	_, err := h.Apply(t.Context(), []client.File{{Name: "edge.yaml", Data: edge}}, client.ApplyOptions{})
	check(t, err)
	h.joinGateway(t, "edge")

	throughGateway := func(r client.ExplainRequest) {
		t.Helper()
		e := h.explain(t, r)
		if e.Gateway != "edge" || e.From != "spiffe://cluster.local/ns/default/sa/gateway" || e.Edge == nil || e.Edge.Source.String() != "VirtualService default/edge (edge.yaml:18)" {
			t.Fatalf("%+v: %+v", r, e)
		}
		if e.Routes[0].Rule.Source.Position() != "canary.yaml:9" || len(e.Routes[0].Destinations) != 2 {
			t.Errorf("%+v leads on to %+v", r, e.Routes[0])
		}
	}
	throughGateway(client.ExplainRequest{URL: "http://shop.example.com/api/orders/1"})
	throughGateway(client.ExplainRequest{URL: "http://shop.example.com/api/orders/1", From: "edge"})
	throughGateway(client.ExplainRequest{URL: "http://shop.example.com/api/orders/1", From: "gateway"})
	if e := h.explain(t, client.ExplainRequest{URL: "http://order-service/api/orders/1"}); e.Gateway != "" || e.Edge != nil {
		t.Errorf("a service's own name was asked at the gateway: %+v", e)
	}
	if e := h.explain(t, client.ExplainRequest{URL: "http://elsewhere.example.org/"}); e.Gateway != "" || e.Routes[0].Problem != string(weft.NoHost) {
		t.Errorf("a host that nobody serves: %+v", e)
	}
	if e := h.explain(t, client.ExplainRequest{URL: "http://shop.example.com/cart"}); e.Gateway != "edge" || e.Routes[0].Problem != string(weft.NoRule) {
		t.Errorf("a path without a rule: %+v", e)
	}

	s, err := h.Status(t.Context())
	check(t, err)
	if len(s.Proxies) != 1 || s.Proxies[0].Role != "gateway" || s.Proxies[0].Gateway != "edge" || s.Proxies[0].PID != 4711 {
		t.Errorf("proxies %+v", s.Proxies)
	}
}

func TestAGatewaysAddress(t *testing.T) {
	h := openHouse(t)
	h.register(t, weft.Instance{ID: "g", Service: named("gateway"), Address: "127.0.0.1", Port: 8080})
	a := &api{Config{Registry: h.registry}}
	p := control.ProxyStatus{Role: "gateway", Service: weft.NewServiceName("", "gateway")}
	for _, tt := range []struct {
		host string
		port uint16
		want bool
	}{{"127.0.0.1", 8080, true}, {"localhost", 8080, true}, {"::1", 8080, true}, {"localhost", 8081, false}, {"10.0.0.1", 8080, false}, {"shop.example.com", 8080, false}} {
		if got := a.listensAt(p, tt.host, tt.port); got != tt.want {
			t.Errorf("%s:%d: %v", tt.host, tt.port, got)
		}
	}
	if !sameHost("0.0.0.0", "anything") || !sameHost("gw.example.com", "gw.example.com") || sameHost("gw.example.com", "10.0.0.1") {
		t.Error("sameHost")
	}
}
