package subscribe_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/control/controltest"
	"github.com/weftmesh/weft/control/subscribe"
	"github.com/weftmesh/weft/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// join opens a client that ends with the test, before the server does.
func join(t *testing.T, s *controltest.Server, c subscribe.Config) *subscribe.Client {
	t.Helper()
	c.Server, c.Token = s.Address, s.Token
	client, err := subscribe.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func need(t *testing.T, c *subscribe.Client, host string) *weft.Snapshot {
	t.Helper()
	ctx := soon(t)
	s := c.Need(ctx, host)
	if ctx.Err() != nil {
		t.Fatalf("%s was not answered", host)
	}
	return s
}

// route asks a snapshot where a request goes: "order.default v2, 3 endpoints", or
// the problem.
func route(s *weft.Snapshot, host string) string {
	d := s.Route(&weft.Request{Method: "GET", Scheme: "http", Host: host, Path: "/"}, 0)
	if d.Problem != "" {
		return string(d.Problem)
	}
	return fmt.Sprintf("%s %s, %d endpoints", d.Destination.Service, d.Destination.Subset, len(d.Service.Endpoints))
}

func routeBecomes(t *testing.T, c *subscribe.Client, host, want string) {
	t.Helper()
	controltest.Eventually(t, func() string {
		if got := route(c.Snapshot(), host); got != want {
			return fmt.Sprintf("%s: %s, want %s", host, got, want)
		}
		return ""
	})
}

func connected(t *testing.T, c *subscribe.Client, want bool) {
	t.Helper()
	controltest.Eventually(t, func() string {
		if c.Connected() != want {
			return fmt.Sprintf("connected: %v", !want)
		}
		return ""
	})
}

const canary = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: order}
spec:
  host: order
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order}
spec:
  hosts: [order]
  http: [{route: [{destination: {host: order, subset: v2}}]}]
---
`

func TestSidecarFollowsWhatItCalls(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Instance("user", "v1", 8002)
	c := join(t, s, subscribe.Config{ServiceAccount: "shop"})
	if got := route(c.Snapshot(), "order"); got != string(weft.NotLoaded) {
		t.Errorf("before it was asked for: %s", got)
	}
	for host, want := range map[string]string{
		"order":                          "order.default , 1 endpoints",
		"order.default":                  "order.default , 1 endpoints",
		"order.service.consul":           "order.default , 1 endpoints",
		"user.default.svc.cluster.local": "user.default , 1 endpoints",
		"nobody":                         string(weft.NoHost),
		"example.com":                    string(weft.NoHost),
		"no host at all":                 string(weft.NoHost),
	} {
		if got := route(need(t, c, host), host); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
	s.Instance("order", "v2", 8003)
	routeBecomes(t, c, "order", "order.default , 2 endpoints")
	s.Apply(canary)
	routeBecomes(t, c, "order", "order.default v2, 2 endpoints")
	s.Instance("nobody", "v1", 8004)
	routeBecomes(t, c, "nobody", "nobody.default , 1 endpoints")
	if len(c.Snapshot().Services) != 3 {
		t.Errorf("it knows %d services; it calls three", len(c.Snapshot().Services))
	}
}

func TestManyAskAtOnce(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	for i := range 5 {
		s.Instance(fmt.Sprintf("s%d", i), "v1", 8000+i)
	}
	c := join(t, s, subscribe.Config{ServiceAccount: "shop"})
	var asking sync.WaitGroup
	for i := range 40 {
		asking.Go(func() {
			host := fmt.Sprintf("s%d", i%5)
			if got := route(need(t, c, host), host); !strings.HasSuffix(got, "1 endpoints") {
				t.Errorf("%s: %s", host, got)
			}
		})
	}
	asking.Wait()
}

func TestOnChangeIsBeforeNeed(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	c := join(t, s, subscribe.Config{ServiceAccount: "shop"})
	var mu sync.Mutex
	var seen []*weft.Snapshot
	c.OnChange(func(s *weft.Snapshot) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, s)
	})
	mu.Lock()
	if len(seen) != 1 || seen[0] == nil {
		t.Errorf("at once: %v", seen)
	}
	mu.Unlock()
	need(t, c, "order")
	mu.Lock()
	defer mu.Unlock()
	if got := route(seen[len(seen)-1], "order"); got != "order.default , 1 endpoints" {
		t.Errorf("when Need returns, the observer knows: %s", got)
	}
	for i := 1; i < len(seen); i++ {
		if seen[i].Version <= seen[i-1].Version {
			t.Errorf("version %d after %d", seen[i].Version, seen[i-1].Version)
		}
	}
}

const edge = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge}
spec:
  hosts: ["shop.example.com"]
  gateways: [edge]
  http: [{route: [{destination: {host: order}}]}]
---
`

func TestGatewayFollowsItsResource(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Instance("order", "v2", 8002)
	c := join(t, s, subscribe.Config{ServiceAccount: "gateway", Role: subscribe.Gateway, GatewayName: "edge"})
	if got := route(need(t, c, "shop.example.com"), "shop.example.com"); got != string(weft.NoHost) {
		t.Errorf("without its resource: %s", got)
	}
	s.Apply(edge)
	routeBecomes(t, c, "shop.example.com", "order.default , 2 endpoints")
	s.Apply(canary) // the service's own rules apply behind the edge's
	routeBecomes(t, c, "shop.example.com", "order.default v2, 2 endpoints")
	if len(c.Snapshot().Services) != 1 {
		t.Errorf("it knows %d services", len(c.Snapshot().Services))
	}
	if _, err := s.Control.Delete(t.Context(), "VirtualService", "default", "edge"); err != nil {
		t.Fatal(err)
	}
	routeBecomes(t, c, "shop.example.com", string(weft.NoHost))
	if p := s.Control.Proxies(); len(p) != 1 || p[0].Role != "gateway" || p[0].Gateway != "edge" {
		t.Errorf("proxies: %+v", p)
	}
}

// One host may have more rules than gRPC lets through unasked (4 MiB).
func TestALargeTableArrives(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Apply(edge)
	const parts = 10
	for i := range parts {
		s.Apply(fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: part-%d}
spec:
  hosts: [shop.example.com]
  gateways: [edge]
  http: [{match: [{uri: {exact: /part-%d}}], directResponse: {status: 200, body: {string: "%s"}}}]
`, i, i, strings.Repeat("x", 500_000)))
	}
	c := join(t, s, subscribe.Config{ServiceAccount: "gateway", Role: subscribe.Gateway, GatewayName: "edge"})
	d := need(t, c, "shop.example.com").Route(&weft.Request{Host: "shop.example.com", Path: fmt.Sprintf("/part-%d", parts-1)}, 0)
	if d.Rule == nil || d.Rule.Direct == nil || len(d.Rule.Direct.Body) != 500_000 {
		t.Errorf("the last part: %+v", d)
	}
}

func TestTheLastSnapshotOutlivesTheServer(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Instance("user", "v1", 8002)
	s.Apply(canary)
	c := join(t, s, subscribe.Config{ServiceAccount: "shop"})
	need(t, c, "order")
	need(t, c, "user")
	need(t, c, "nobody")
	before := c.Snapshot()

	s.Stop()
	connected(t, c, false)
	if c.Snapshot() != before {
		t.Error("the snapshot changed when the server went")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if got := route(c.Need(ctx, "cart"), "cart"); got != string(weft.NotLoaded) {
		t.Errorf("a new host while the server is away: %s", got)
	}

	s.Restart()
	connected(t, c, true)
	s.Instance("cart", "v1", 8003)
	routeBecomes(t, c, "cart", "cart.default , 1 endpoints") // asked for while the server was away
	after := c.Snapshot()
	for n, svc := range before.Services {
		if after.Services[n] != svc {
			t.Errorf("%s was sent again though it is the same", n)
		}
	}
	for _, host := range []string{"order", "user"} {
		if after.Hosts[host] != before.Hosts[host] {
			t.Errorf("the rules of %s were sent again though they are the same", host)
		}
	}
	s.Instance("user", "v2", 8004)
	routeBecomes(t, c, "user", "user.default , 2 endpoints")
}

func TestOpenRefuses(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	other := controltest.Start(t, controltest.Config{TrustDomain: "other.example"})
	secondToken, err := ca.NewJoinToken(s.CA.Roots())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		config subscribe.Config
		kind   weft.Kind
		says   string
	}{
		"another secret":         {subscribe.Config{Server: s.Address, Token: secondToken, ServiceAccount: "x"}, weft.Denied, "wrong join token"},
		"the token of elsewhere": {subscribe.Config{Server: s.Address, Token: other.Token, ServiceAccount: "x"}, weft.Denied, "the token belongs to another mesh"},
		"a malformed token":      {subscribe.Config{Server: s.Address, Token: "secret", ServiceAccount: "x"}, weft.Invalid, "weft-join."},
		"no service account":     {subscribe.Config{Server: s.Address, Token: s.Token}, weft.Invalid, "x"},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			client, err := subscribe.Open(soon(t), c.config)
			if err == nil {
				client.Close()
				t.Fatal("it joined")
			}
			if weft.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) && c.says != "x" {
				t.Errorf("got %v (kind %d), want kind %d with %q", err, weft.KindOf(err), c.kind, c.says)
			}
			if time.Since(began) > 8*time.Second {
				t.Error("it tried until its time was up, though trying again cannot help")
			}
		})
	}
}

func TestOpenWaitsForTheServer(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Stop()
	opened := make(chan error, 1)
	go func() {
		c, err := subscribe.Open(soon(t), subscribe.Config{Server: s.Address, Token: s.Token, ServiceAccount: "shop"})
		if err == nil {
			err = c.Close()
		}
		opened <- err
	}()
	s.Restart()
	if err := <-opened; err != nil {
		t.Error(err)
	}
	s.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := subscribe.Open(ctx, subscribe.Config{Server: s.Address, Token: s.Token, ServiceAccount: "shop"}); weft.KindOf(err) != weft.Unavailable || !strings.Contains(err.Error(), s.Address) {
		t.Errorf("nobody there: %v", err)
	}
}

func TestCertificateIsRenewed(t *testing.T) {
	s := controltest.Start(t, controltest.Config{LeafTTL: 2 * time.Second})
	s.Instance("order", "v1", 8001)
	c := join(t, s, subscribe.Config{ServiceAccount: "shop"})
	if c.Identity() != "spiffe://cluster.local/ns/default/sa/shop" {
		t.Errorf("identity %s", c.Identity())
	}
	_, first := c.Credentials().Validity()
	controltest.Eventually(t, func() string {
		if _, now := c.Credentials().Validity(); !now.After(first.Add(time.Second)) {
			return "the certificate is still the first"
		}
		return ""
	})
	need(t, c, "order") // over a connection that outlived the certificate, or a new one
}

func instance(id string) weft.Instance {
	return weft.Instance{ID: id, Service: weft.NewServiceName("", "order"), Address: "10.0.0.9", Port: 9000, MeshAddr: "10.0.0.9:15006",
		Labels: map[string]string{"app": "order", "version": "v1"}}
}

func TestRegisterAndDrain(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	caller := join(t, s, subscribe.Config{ServiceAccount: "shop"})
	need(t, caller, "order")
	c := join(t, s, subscribe.Config{ServiceAccount: "order"})
	l, err := c.Register(soon(t), instance("order-a"), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, index := s.Registry.Instance(weft.InstanceKey{Node: "node-1", ID: "order-a"}); l.Index() != index {
		t.Errorf("registered at %d, the registry says %d", l.Index(), index)
	}
	routeBecomes(t, caller, "order", "order.default , 0 endpoints") // its health is not known yet
	l.SetHealth(weft.Passing, "answers")
	routeBecomes(t, caller, "order", "order.default , 1 endpoints")
	l.SetHealth(weft.Critical, "answers 503")
	routeBecomes(t, caller, "order", "order.default , 0 endpoints")
	l.SetHealth(weft.Passing, "answers")
	routeBecomes(t, caller, "order", "order.default , 1 endpoints")
	if err := l.Drain(soon(t)); err != nil {
		t.Fatal(err)
	}
	// Drained: the caller has applied it already.
	if got := route(caller.Snapshot(), "order"); strings.HasSuffix(got, "1 endpoints") {
		t.Errorf("the caller would still call it: %s", got)
	}
	if err := l.Drain(soon(t)); err != nil {
		t.Errorf("a second drain: %v", err)
	}
}

func TestRegisterRefuses(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	c := join(t, s, subscribe.Config{ServiceAccount: "user"})
	if _, err := c.Register(soon(t), instance("order-a"), 0); weft.KindOf(err) != weft.Denied {
		t.Errorf("an instance of another service: %v", err)
	}
	s.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	in := instance("user-a")
	in.Service.Name = "user"
	if _, err := c.Register(ctx, in, 0); weft.KindOf(err) != weft.Unavailable || !strings.Contains(err.Error(), "register instance user-a") {
		t.Errorf("while the server is away: %v", err)
	}
}

func TestLeaseSurvivesRestart(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	c := join(t, s, subscribe.Config{ServiceAccount: "order"})
	l, err := c.Register(soon(t), instance("order-a"), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	l.SetHealth(weft.Passing, "answers")
	key := weft.InstanceKey{Node: "node-1", ID: "order-a"}
	healthy := func() string {
		in, _ := s.Registry.Instance(key)
		if in == nil || in.Health() != weft.Passing {
			return fmt.Sprintf("it is %+v", in)
		}
		return ""
	}
	controltest.Eventually(t, healthy)
	s.Restart()
	if why := healthy(); why != "" {
		t.Errorf("right after the restart: %s", why)
	}
	// Somebody removes it while it is there: it comes back.
	controltest.Eventually(t, func() string {
		if _, err := s.Registry.Deregister(t.Context(), key); err != nil {
			return err.Error()
		}
		return ""
	})
	controltest.Eventually(t, healthy)
	if err := l.Drain(soon(t)); err != nil {
		t.Error(err)
	}
	if in, _ := s.Registry.Instance(key); in != nil {
		t.Error("drained, but still there")
	}
}

func TestCloseDrains(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	c, err := subscribe.Open(t.Context(), subscribe.Config{Server: s.Address, Token: s.Token, ServiceAccount: "order"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Register(soon(t), instance("order-a"), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if in, _ := s.Registry.Instance(weft.InstanceKey{Node: "node-1", ID: "order-a"}); in != nil {
		t.Error("it is still registered")
	}
	if _, err := c.Register(t.Context(), instance("order-b"), 0); weft.KindOf(err) != weft.Unavailable {
		t.Errorf("after Close: %v", err)
	}
}

// One process after the other keeps an instance, and no caller sees any of it.
func TestReleaseLeavesTheInstanceToAnotherProcess(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	open := func() (*subscribe.Client, *subscribe.Lease) {
		c, err := subscribe.Open(t.Context(), subscribe.Config{Server: s.Address, Token: s.Token, ServiceAccount: "order"})
		if err != nil {
			t.Fatal(err)
		}
		l, err := c.Register(soon(t), instance("order-a"), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		l.SetHealth(weft.Passing, "answers")
		return c, l
	}
	before, old := open()
	key := weft.InstanceKey{Node: "node-1", ID: "order-a"}
	topic := registry.ServiceTopic(weft.NewServiceName("", "order"))
	var index uint64
	controltest.Eventually(t, func() string {
		in, at := s.Registry.Instance(key)
		if in == nil || in.Health() != weft.Passing {
			return fmt.Sprintf("it is %+v", in)
		}
		index = at
		return ""
	})
	after, next := open()
	old.Release()
	if err := before.Close(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond) // beyond the first one's TTL
	defer cancel()
	if at := s.Registry.Wait(ctx, topic, index); at != index {
		in, _ := s.Registry.Instance(key)
		t.Errorf("the instance changed from index %d to %d: %+v", index, at, in)
	}
	if err := next.Drain(soon(t)); err != nil {
		t.Error(err)
	}
	if in, _ := s.Registry.Instance(key); in != nil {
		t.Error("drained, but still there")
	}
	if err := after.Close(); err != nil {
		t.Error(err)
	}
}

func TestDrainWithoutAServerEnds(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	c := join(t, s, subscribe.Config{ServiceAccount: "order"})
	l, err := c.Register(soon(t), instance("order-a"), 0)
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := l.Drain(ctx); weft.KindOf(err) != weft.Unavailable {
		t.Errorf("got %v", err)
	}
}

const onlyUser = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-user}
spec:
  selector: {matchLabels: {app: order}}
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/default/sa/user"]}}]}]
`

func TestSidecarEnforcesThePoliciesOfItsInstance(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Apply(onlyUser)
	c := join(t, s, subscribe.Config{ServiceAccount: "order"})
	allows := func(who weft.Identity) bool {
		return c.Snapshot().Authorization.Decide(&weft.AuthorizationRequest{Request: &weft.Request{Method: "GET", Path: "/", Source: who}}).Allowed
	}
	user, shop := weft.Identity("spiffe://cluster.local/ns/default/sa/user"), weft.Identity("spiffe://cluster.local/ns/default/sa/shop")
	if allows(user) {
		t.Error("before it is registered, user is allowed")
	}
	if _, err := c.Register(soon(t), instance("order-a"), 0); err != nil {
		t.Fatal(err)
	}
	if !allows(user) || allows(shop) {
		t.Errorf("registered: user %v, shop %v", allows(user), allows(shop))
	}
	before := c.Snapshot().Authorization
	s.Restart()
	connected(t, c, true)
	if c.Snapshot().Authorization != before || allows(shop) {
		t.Error("the policies were lost over a restart of the server")
	}
	if _, err := s.Control.Delete(t.Context(), "AuthorizationPolicy", "default", "only-user"); err != nil {
		t.Fatal(err)
	}
	controltest.Eventually(t, func() string {
		if !allows(shop) {
			return "shop is denied though there is no policy"
		}
		return ""
	})
}

// collecting is a trace collector that keeps one request.
type collecting struct {
	collector.UnimplementedTraceServiceServer
	got chan *collector.ExportTraceServiceRequest
}

func (c collecting) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	if len(r.GetResourceSpans()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "no spans")
	}
	c.got <- r
	return &collector.ExportTraceServiceResponse{}, nil
}

func TestExport(t *testing.T) {
	sink := collecting{got: make(chan *collector.ExportTraceServiceRequest, 1)}
	s := controltest.Start(t, controltest.Config{Traces: sink})
	c := join(t, s, subscribe.Config{ServiceAccount: "order"})
	request := &collector.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{
		Spans: []*tracepb.Span{{Name: "GET /", TraceId: bytes.Repeat([]byte{1}, 16)}}}}}}}
	otlp, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Export(soon(t), otlp); err != nil {
		t.Fatal(err)
	}
	if got := <-sink.got; !proto.Equal(got, request) {
		t.Errorf("the collector got %v", got)
	}
	if err := c.Export(soon(t), nil); weft.KindOf(err) != weft.Invalid {
		t.Errorf("a refusal comes back as %v", err)
	}
	s.Stop()
	if err := c.Export(soon(t), otlp); weft.KindOf(err) != weft.Unavailable || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the server is away: %v", err)
	}
}

// virtualService sends a host to a service, or to a subset of it.
func virtualService(host, service, subset string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s}
spec:
  hosts: [%s]
  http: [{route: [{destination: {host: %s, subset: "%s"}}]}]
---
`, host, host, service, subset)
}

func TestAChangeNeverLeadsToNowhere(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Instance("order", "v2", 8002)
	s.Instance("order-next", "v1", 8003)
	s.Apply(edge)
	sidecar := join(t, s, subscribe.Config{ServiceAccount: "shop"})
	gateway := join(t, s, subscribe.Config{ServiceAccount: "gateway", Role: subscribe.Gateway, GatewayName: "edge"})
	need(t, sidecar, "order")
	need(t, gateway, "shop.example.com")
	routeBecomes(t, gateway, "shop.example.com", "order.default , 2 endpoints")
	for _, c := range []struct {
		client *subscribe.Client
		host   string
	}{{sidecar, "order"}, {gateway, "shop.example.com"}} {
		c.client.OnChange(func(snap *weft.Snapshot) {
			if got := route(snap, c.host); !strings.HasSuffix(got, "endpoints") || strings.HasSuffix(got, " 0 endpoints") {
				t.Errorf("%s: %s", c.host, got)
			}
		})
	}
	both := func(want string) {
		t.Helper()
		routeBecomes(t, sidecar, "order", want)
		routeBecomes(t, gateway, "shop.example.com", want)
	}
	for range 5 {
		s.Apply(canary) // a subset, and the rules that need it
		both("order.default v2, 2 endpoints")
		s.Apply(virtualService("order", "order-next", "")) // a service that was never called
		both("order-next.default , 1 endpoints")
		if _, err := s.Control.Delete(t.Context(), "VirtualService", "default", "order"); err != nil {
			t.Fatal(err)
		}
		both("order.default , 2 endpoints")
		if _, err := s.Control.Delete(t.Context(), "DestinationRule", "default", "order"); err != nil {
			t.Fatal(err)
		}
	}
}

const ordersByTCP = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order, annotations: {weft.dev/path-normalization: MERGE_SLASHES}}
spec:
  hosts: [order]
  tcp: [{match: [{port: 5432}], route: [{destination: {host: order, subset: v1}}]}]
  http: [{route: [{destination: {host: order}}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: order}
spec:
  host: order
  trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 8}}}
  subsets: [{name: v1, labels: {version: v1}}]
`

func TestConnectionsPathsAndProtocolsReachTheProxy(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Apply(ordersByTCP)
	order := join(t, s, subscribe.Config{ServiceAccount: "order"})
	in := instance("order-a")
	in.Labels["protocol"] = "grpc"
	l, err := order.Register(soon(t), in, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.SetHealth(weft.Passing, "answers")
	if got := order.Snapshot().Paths; got != weft.PathMergeSlashes {
		t.Errorf("its own policies see paths that are normalised by %s", got)
	}
	shop := join(t, s, subscribe.Config{ServiceAccount: "shop"})
	controltest.Eventually(t, func() string {
		snapshot := need(t, shop, "order")
		d := snapshot.RouteTCP("order", 5432, 0)
		if d.Problem != "" || d.Raw.Name != "tcp[0]" || len(d.Service.Endpoints) != 1 || d.Service.Endpoints[0].Protocol != weft.GRPC {
			return fmt.Sprintf("by port 5432: %+v", d)
		}
		if d := snapshot.RouteTCP("order", 80, 0); d.Problem != "" || d.Raw.Name != "default" {
			return fmt.Sprintf("by port 80: %+v", d)
		}
		if p := d.Service.Policy; !p.HTTP2 || p.MaxStreams != 8 {
			return fmt.Sprintf("policy: %+v", p)
		}
		return ""
	})
	if got := shop.Snapshot().PathMode("order"); got != weft.PathMergeSlashes {
		t.Errorf("paths to order: %s", got)
	}
	if _, err := s.Control.Delete(t.Context(), "VirtualService", "default", "order"); err != nil {
		t.Fatal(err)
	}
	controltest.Eventually(t, func() string {
		if got := order.Snapshot().Paths; got != weft.PathBase {
			return "the paths that its policies see stay " + got.String()
		}
		return ""
	})
}
