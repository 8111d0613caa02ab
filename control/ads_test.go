package control_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/control/controltest"
	"github.com/weftmesh/weft/control/weftpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dial connects with the certificate of a service account.
func dial(t *testing.T, s *controltest.Server, serviceAccount string) *grpc.ClientConn {
	t.Helper()
	return dialWith(t, s, s.Credentials(serviceAccount))
}

func dialWith(t *testing.T, s *controltest.Server, c *ca.Credentials) *grpc.ClientConn {
	t.Helper()
	config := c.ClientTLS(ca.ServerIdentity(s.CA.TrustDomain()))
	conn, err := grpc.NewClient("passthrough:///"+s.Address, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// wire is a delta ADS stream, told what to do request by request.
type wire struct {
	t      *testing.T
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	end    context.CancelFunc
}

func openWire(t *testing.T, s *controltest.Server, id string) *wire {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(dial(t, s, "user-service")).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t, stream, cancel}
	w.send(&discovery.DeltaDiscoveryRequest{TypeUrl: weftpb.TrustType, Node: nodeOf(id)})
	return w
}

func nodeOf(id string) *core.Node {
	return &core.Node{Id: id, Metadata: &structpb.Struct{
		Fields: map[string]*structpb.Value{"role": structpb.NewStringValue("sidecar"), "pid": structpb.NewNumberValue(42)}}}
}

func (w *wire) send(r *discovery.DeltaDiscoveryRequest) {
	w.t.Helper()
	if err := w.stream.Send(r); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) subscribe(typeURL string, names ...string) {
	w.t.Helper()
	w.send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names})
}

func (w *wire) ack(r *discovery.DeltaDiscoveryResponse) {
	w.t.Helper()
	w.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

// recv returns the next response without an ACK.
func (w *wire) recv() *discovery.DeltaDiscoveryResponse {
	w.t.Helper()
	r, err := w.stream.Recv()
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// take returns the next response and acknowledges it.
func (w *wire) take() *discovery.DeltaDiscoveryResponse {
	w.t.Helper()
	r := w.recv()
	w.ack(r)
	return r
}

// silence checks that nothing more is sent: the answer to a last question comes
// next. (The service that it asks for is new each time.)
func (w *wire) silence(question string) {
	w.t.Helper()
	w.subscribe(weftpb.ServiceType, "default/"+question)
	if got := brief(w.take()); got != "Service -default/"+question {
		w.t.Errorf("instead of silence: %s", got)
	}
}

// brief writes a response as "RouteTable +default/a -default/b".
func brief(r *discovery.DeltaDiscoveryResponse) string {
	out := []string{r.GetTypeUrl()[strings.LastIndex(r.GetTypeUrl(), ".")+1:]}
	for _, res := range r.GetResources() {
		out = append(out, "+"+res.GetName())
	}
	for _, name := range r.GetRemovedResources() {
		out = append(out, "-"+name)
	}
	slices.Sort(out[1:])
	return strings.Join(out, " ")
}

func wantBrief(t *testing.T, r *discovery.DeltaDiscoveryResponse, want string) {
	t.Helper()
	if got := brief(r); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func virtualService(name, host, subset string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s}
spec:
  hosts: [%s]
  http: [{route: [{destination: {host: %s, subset: %s}}]}]
---
`, name, host, host, subset)
}

func destinationRule(host string, subsets ...string) string {
	out := fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: %s}\nspec:\n  host: %s\n  subsets:\n", host, host)
	for _, v := range subsets {
		out += fmt.Sprintf("  - {name: %s, labels: {version: %s}}\n", v, v)
	}
	return out + "---\n"
}

func TestAChangeIsSentToThoseWhomItConcerns(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Instance("user", "v1", 8002)
	w := openWire(t, s, "a")
	w.subscribe(weftpb.RouteTableType, "default/order", "default/user")
	wantBrief(t, w.take(), "RouteTable +default/order +default/user")
	w.subscribe(weftpb.ServiceType, "default/order", "default/user")
	wantBrief(t, w.take(), "Service +default/order +default/user")
	w.subscribe(weftpb.EndpointsType, "default/order", "default/user")
	first := w.take()
	wantBrief(t, first, "Endpoints +default/order +default/user")

	s.Instance("order", "v2", 8003)
	r := w.take()
	wantBrief(t, r, "Endpoints +default/order")
	var m weftpb.Endpoints
	if err := r.GetResources()[0].GetResource().UnmarshalTo(&m); err != nil {
		t.Fatal(err)
	}
	if _, index := s.Registry.Endpoints(controlService("order")); len(m.GetEndpoints()) != 2 || m.GetIndex() != index {
		t.Errorf("%d endpoints at index %d, want 2 at %d", len(m.GetEndpoints()), m.GetIndex(), index)
	}
	s.Instance("payment", "v1", 8004) // nobody asked for it
	s.Apply(destinationRule("order", "v1", "v2") + virtualService("order", "order", "v2"))
	wantBrief(t, w.take(), "Service +default/order")
	wantBrief(t, w.take(), "RouteTable +default/order")
	s.Apply(virtualService("payment", "payment", "v1"))
	w.silence("a")

	if r := s.Apply(virtualService("order", "order", "v2")); r.Changes[0].Action != "unchanged" {
		t.Errorf("the same again is %s", r.Changes[0].Action)
	}
	// It stands in another file now: that is told, and nothing else.
	wantBrief(t, w.take(), "RouteTable +default/order")
	w.silence("b")
}

func TestUnknownNamesAreRemembered(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	w := openWire(t, s, "a")
	w.subscribe(weftpb.RouteTableType, "default/order", "default/shop.example.com", "nonsense")
	wantBrief(t, w.take(), "RouteTable -default/order -default/shop.example.com -nonsense")
	w.subscribe(weftpb.ServiceType, "default/order")
	wantBrief(t, w.take(), "Service -default/order")

	key := s.Instance("order", "v1", 8001)
	wantBrief(t, w.take(), "Service +default/order")
	wantBrief(t, w.take(), "RouteTable +default/order")
	s.Apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example.com]
  http: [{route: [{destination: {host: order}}]}]
`)
	wantBrief(t, w.take(), "RouteTable +default/shop.example.com")

	if _, err := s.Registry.Deregister(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	wantBrief(t, w.take(), "Service -default/order")
	r := w.take()
	wantBrief(t, r, "RouteTable +default/shop.example.com -default/order")
	var m weftpb.RouteTable
	if err := r.GetResources()[0].GetResource().UnmarshalTo(&m); err != nil {
		t.Fatal(err)
	}
	if got := m.GetRules()[0].GetDestinations()[0].GetUnresolved(); got != "service order.default does not exist" {
		t.Errorf("unresolved: %q", got)
	}
	if _, err := s.Control.Delete(t.Context(), "VirtualService", "default", "shop"); err != nil {
		t.Fatal(err)
	}
	wantBrief(t, w.take(), "RouteTable -default/shop.example.com")
}

func TestChangesMergeBehindAnUnacknowledgedResponse(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v0", 8000)
	w := openWire(t, s, "a")
	w.subscribe(weftpb.EndpointsType, "default/order")
	first := w.recv()
	for i := 1; i <= 5; i++ {
		s.Instance("order", fmt.Sprintf("v%d", i), 8000+i)
	}
	w.subscribe(weftpb.ServiceType, "default/order") // another type is not held up
	wantBrief(t, w.take(), "Service +default/order")
	w.ack(first)
	r := w.take()
	var m weftpb.Endpoints
	if err := r.GetResources()[0].GetResource().UnmarshalTo(&m); err != nil {
		t.Fatal(err)
	}
	if len(m.GetEndpoints()) != 6 {
		t.Errorf("the second response has %d endpoints, want all 6", len(m.GetEndpoints()))
	}
	w.silence("a")
}

func TestAChangeThatIsTakenBackIsNotSent(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	w := openWire(t, s, "a")
	w.subscribe(weftpb.EndpointsType, "default/order")
	first := w.recv()
	key := s.Instance("order", "v2", 8002)
	if _, err := s.Registry.Deregister(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	_, index := s.Registry.Instances(controlService("order"))
	controltest.Eventually(t, func() string {
		if s.Control.Index() < index {
			return "the change is not compiled"
		}
		return ""
	})
	w.ack(first)
	w.silence("a")
}

func TestNoncesAndSubscriptions(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	for i, name := range []string{"order", "user", "cart"} {
		s.Instance(name, "v1", 8000+i)
	}
	w := openWire(t, s, "a")
	w.subscribe(weftpb.EndpointsType, "default/order")
	first := w.take()
	s.Instance("order", "v2", 8010)
	second := w.recv()
	if first.GetNonce() == "" || first.GetNonce() == second.GetNonce() {
		t.Errorf("nonces %q and %q", first.GetNonce(), second.GetNonce())
	}

	// A stale nonce is no ACK of the second response; its subscriptions count.
	w.send(&discovery.DeltaDiscoveryRequest{TypeUrl: weftpb.EndpointsType, ResponseNonce: first.GetNonce(), ResourceNamesSubscribe: []string{"default/user"}})
	w.silence("a") // user has to wait for the second's ACK
	w.ack(second)
	wantBrief(t, w.take(), "Endpoints +default/user")

	// What is subscribed again is sent again, though it is the same.
	w.subscribe(weftpb.EndpointsType, "default/user")
	wantBrief(t, w.take(), "Endpoints +default/user")

	w.send(&discovery.DeltaDiscoveryRequest{TypeUrl: weftpb.EndpointsType, ResourceNamesUnsubscribe: []string{"default/order"}})
	w.subscribe(weftpb.EndpointsType, "default/cart")
	wantBrief(t, w.take(), "Endpoints +default/cart")
	s.Instance("order", "v3", 8011)
	s.Instance("cart", "v2", 8012)
	wantBrief(t, w.take(), "Endpoints +default/cart")
	w.silence("b")
}

func TestReconnectGetsOnlyWhatChanged(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	for i, name := range []string{"order", "user", "cart"} {
		s.Instance(name, "v1", 8000+i)
	}
	w := openWire(t, s, "a")
	w.subscribe(weftpb.EndpointsType, "default/order", "default/user", "default/cart")
	have := map[string]string{}
	for _, r := range w.take().GetResources() {
		have[r.GetName()] = r.GetVersion()
	}
	w.end()
	cart := s.Instance("cart", "v1", 8002) // as before
	if _, err := s.Registry.Deregister(t.Context(), cart); err != nil {
		t.Fatal(err)
	}
	s.Instance("user", "v2", 8010)
	s.Restart() // versions are the content's: they outlive the server

	again := openWire(t, s, "a")
	again.send(&discovery.DeltaDiscoveryRequest{TypeUrl: weftpb.EndpointsType, InitialResourceVersions: have,
		ResourceNamesSubscribe: []string{"default/order", "default/user", "default/cart"}})
	wantBrief(t, again.take(), "Endpoints +default/user -default/cart")
	again.silence("a")
	s.Instance("order", "v2", 8011)
	wantBrief(t, again.take(), "Endpoints +default/order")
}

func TestServicesGoBeforeTheTablesThatPointToThem(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	w := openWire(t, s, "a")
	w.subscribe(weftpb.RouteTableType, "default/order")
	w.take()
	w.subscribe(weftpb.ServiceType, "default/order")
	service := w.recv() // not acknowledged: the next Service response has to wait
	s.Apply(destinationRule("order", "v1") + virtualService("order", "order", "v1"))
	w.subscribe(weftpb.EndpointsType, "default/order")
	wantBrief(t, w.take(), "Endpoints +default/order") // not the route table
	w.ack(service)
	wantBrief(t, w.take(), "Service +default/order")
	wantBrief(t, w.take(), "RouteTable +default/order")
}

func TestNackIsRecorded(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	w := openWire(t, s, "proxy-a")
	w.subscribe(weftpb.EndpointsType, "default/order")
	w.take()
	s.Instance("order", "v2", 8002)
	r := w.recv()
	controltest.Eventually(t, func() string {
		if p := s.Control.Proxies(); len(p) != 1 || p[0].Applied >= p[0].Current {
			return fmt.Sprintf("with a response under way: %+v", p)
		}
		return ""
	})
	w.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(),
		ErrorDetail: &rpcstatus.Status{Message: "default/order: it holds nonsense"}})
	w.silence("a")
	controltest.Eventually(t, func() string {
		p := s.Control.Proxies()
		if len(p) != 1 || p[0].LastNack != "Endpoints: default/order: it holds nonsense" || p[0].Applied != p[0].Current {
			return fmt.Sprintf("proxies: %+v", p)
		}
		return ""
	})
	p := s.Control.Proxies()[0]
	if p.ID != "proxy-a" || p.Role != "sidecar" || p.PID != 42 || p.Service.String() != "user-service.default" || !strings.HasPrefix(p.Address, "127.0.0.1:") {
		t.Errorf("%+v", p)
	}
	// What was refused is not sent again, until it changes.
	s.Instance("order", "v3", 8003)
	wantBrief(t, w.take(), "Endpoints +default/order")
	w.end()
	controltest.Eventually(t, func() string {
		if p := s.Control.Proxies(); len(p) > 0 {
			return fmt.Sprintf("it left, but is still there: %+v", p)
		}
		return ""
	})
}

func TestAStreamThatDoesNotAcknowledgeIsClosed(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Control.SetPatience(200*time.Millisecond, time.Second)
	s.Instance("order", "v1", 8001)
	w := openWire(t, s, "a")
	w.subscribe(weftpb.EndpointsType, "default/order")
	w.recv()
	_, err := w.stream.Recv()
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "Endpoints response 1 was not acknowledged") {
		t.Errorf("got %v", err)
	}
}

func TestADSRefuses(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	for name, c := range map[string]struct {
		request *discovery.DeltaDiscoveryRequest
		code    codes.Code
	}{
		"a type of Envoy's": {&discovery.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"}, codes.InvalidArgument},
		"a name of a kilobyte": {&discovery.DeltaDiscoveryRequest{TypeUrl: weftpb.RouteTableType,
			ResourceNamesSubscribe: []string{"default/" + strings.Repeat("a", 1024)}}, codes.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			w := openWire(t, s, "a")
			w.send(c.request)
			if _, err := w.stream.Recv(); status.Code(err) != c.code {
				t.Errorf("got %v, want %v", err, c.code)
			}
		})
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(dial(t, s, "user-service")).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("state of the world: %v", err)
	}
}

func TestNothingIsLeftOfThoseWhoLeft(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order", "v1", 8001)
	s.Apply(edge + atEdge("a", "order"))
	for range 3 {
		w := openWire(t, s, "a")
		w.subscribe(weftpb.RouteTableType, "default/order", "default/nobody")
		w.take()
		w.subscribe(weftpb.GatewayTableType, "edge/")
		w.take()
		w.end()
	}
	controltest.Eventually(t, func() string {
		if entries, services, proxies := s.Control.Held(); entries+services+proxies > 0 {
			return fmt.Sprintf("%d entries, %d services and %d proxies are kept", entries, services, proxies)
		}
		return ""
	})
}
