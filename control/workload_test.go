package control_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/control/controltest"
	"github.com/weftmesh/weft/control/weftpb"
	"github.com/weftmesh/weft/registry"
)

// stranger connects without a certificate.
func stranger(t *testing.T, s *controltest.Server) *grpc.ClientConn {
	t.Helper()
	token, err := ca.ParseJoinToken(s.Token)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+s.Address, grpc.WithTransportCredentials(credentials.NewTLS(ca.JoinTLS(token.Pin()))), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func csrFor(t *testing.T, id weft.Identity) []byte {
	t.Helper()
	_, csr, err := ca.NewCSR(id)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func TestJoin(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	otherToken, err := ca.NewJoinToken(s.CA.Roots())
	if err != nil {
		t.Fatal(err)
	}
	csr := csrFor(t, "spiffe://cluster.local/ns/default/sa/order")
	for name, c := range map[string]struct {
		request *weftpb.JoinRequest
		code    codes.Code
		says    string
	}{
		"with the token":           {&weftpb.JoinRequest{Token: s.Token, Csr: csr, Namespace: "default", ServiceAccount: "order"}, codes.OK, ""},
		"with another secret":      {&weftpb.JoinRequest{Token: otherToken, Csr: csr, Namespace: "default", ServiceAccount: "order"}, codes.PermissionDenied, "wrong join token: the right one is in the file"},
		"without a token":          {&weftpb.JoinRequest{Csr: csr, Namespace: "default", ServiceAccount: "order"}, codes.PermissionDenied, "wrong join token"},
		"as the server":            {&weftpb.JoinRequest{Token: s.Token, Csr: csr, Namespace: "weft", ServiceAccount: "server"}, codes.PermissionDenied, "the server's own"},
		"without a name":           {&weftpb.JoinRequest{Token: s.Token, Csr: csr, Namespace: "default"}, codes.InvalidArgument, "service account"},
		"with a path for a name":   {&weftpb.JoinRequest{Token: s.Token, Csr: csr, Namespace: "default", ServiceAccount: "x/sa/order"}, codes.InvalidArgument, ""},
		"without a signed request": {&weftpb.JoinRequest{Token: s.Token, Namespace: "default", ServiceAccount: "order"}, codes.InvalidArgument, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := weftpb.NewWorkloadClient(stranger(t, s)).Join(t.Context(), c.request)
			if status.Code(err) != c.code || !strings.Contains(status.Convert(err).Message(), c.says) {
				t.Fatalf("got %v, want %v with %q", err, c.code, c.says)
			}
			if err == nil && (r.GetTrustDomain() != "cluster.local" || len(r.GetChain()) != 1 || len(r.GetRoots()) != 1 || !r.GetNotAfter().AsTime().After(time.Now())) {
				t.Errorf("answered %v", r)
			}
		})
	}
}

func TestWithoutCertificateOnlyJoin(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	conn := stranger(t, s)
	w := weftpb.NewWorkloadClient(conn)
	_, renew := w.Renew(t.Context(), &weftpb.RenewRequest{})
	lease, err := w.Lease(t.Context())
	if err == nil {
		_, err = lease.Recv()
	}
	ads, adsErr := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	if adsErr == nil {
		_, adsErr = ads.Recv()
	}
	// Of other services on the port, too: proxies export their spans there.
	other := conn.Invoke(t.Context(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export", &weftpb.RenewRequest{}, &weftpb.RenewResponse{})
	for name, err := range map[string]error{"Renew": renew, "Lease": err, "delta ADS": adsErr} {
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if status.Code(other) == codes.OK {
		t.Error("another service answers")
	}
}

func TestRenewKeepsTheIdentity(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	// The request asks for another name; the certificate says who it is.
	csr := csrFor(t, "spiffe://cluster.local/ns/default/sa/payment")
	r, err := weftpb.NewWorkloadClient(dial(t, s, "order")).Renew(t.Context(), &weftpb.RenewRequest{Csr: csr})
	if err != nil {
		t.Fatal(err)
	}
	certs, err := weftpb.DecodeCertificates(r.GetChain())
	if err != nil {
		t.Fatal(err)
	}
	if got := certs[0].URIs[0].String(); got != "spiffe://cluster.local/ns/default/sa/order" {
		t.Errorf("it is for %s", got)
	}
}

func TestForeignersAreRefused(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	elsewhere := controltest.Start(t, controltest.Config{TrustDomain: "other.example"})
	foreign := elsewhere.Credentials("order").ClientTLS(ca.ServerIdentity("other.example"))
	foreign.VerifyConnection = nil // it would not care
	for name, creds := range map[string]credentials.TransportCredentials{
		"a certificate of another trust domain": credentials.NewTLS(foreign),
		"TLS 1.2":                               credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}),
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := grpc.NewClient("passthrough:///"+s.Address, grpc.WithTransportCredentials(creds), grpc.WithNoProxy())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := weftpb.NewWorkloadClient(conn).Renew(t.Context(), &weftpb.RenewRequest{}); status.Code(err) != codes.Unavailable {
				t.Errorf("got %v, want no connection", err)
			}
		})
	}
	t.Run("plain text", func(t *testing.T) {
		conn, err := net.Dial("tcp", s.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 64)); n > 0 && err == nil {
			// A TLS alert, at most: no HTTP/2 settings.
			if _, err = conn.Read(make([]byte, 64)); err == nil {
				t.Error("the server talks")
			}
		}
	})
}

// leaseOf opens a lease and sends its first message.
func leaseOf(t *testing.T, s *controltest.Server, account string, r *weftpb.LeaseRegister) (weftpb.Workload_LeaseClient, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	l, err := weftpb.NewWorkloadClient(dial(t, s, account)).Lease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Send(&weftpb.LeaseRequest{Message: &weftpb.LeaseRequest_Register{Register: r}}); err != nil {
		t.Fatal(err)
	}
	return l, cancel
}

func orderInstance() *weftpb.Instance {
	return &weftpb.Instance{Id: "order-a", Service: &weftpb.ServiceName{Namespace: "default", Name: "order"},
		Address: "10.0.0.1", Port: 8000, MeshAddr: "10.0.0.1:15006", Labels: map[string]string{"version": "v1"}}
}

func TestLeaseKeepsAnInstanceRegistered(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	l, die := leaseOf(t, s, "order", &weftpb.LeaseRegister{Instance: orderInstance(), Ttl: durationpb.New(time.Second), Health: &weftpb.LeaseHeartbeat{Health: weftpb.Health_WARNING}})
	r, err := l.Recv()
	if err != nil {
		t.Fatal(err)
	}
	key := weft.InstanceKey{Node: "node-1", ID: "order-a"}
	in, index := s.Registry.Instance(key)
	if in == nil || r.GetIndex() != index || r.GetTtl().AsDuration() != time.Second {
		t.Fatalf("registered %+v at %d; answered %v", in, index, r)
	}
	if in.Identity != "spiffe://cluster.local/ns/default/sa/order" || in.Dialect != "weft" || in.Health() != weft.Warning {
		t.Errorf("identity %s, dialect %s, health %v", in.Identity, in.Dialect, in.Health())
	}
	if c := in.Checks[1]; c.Kind != weft.LeaseCheck || c.DeregisterAfter.Std() != 30*time.Second {
		t.Errorf("lease check: %+v", c)
	}
	if e, _ := s.Registry.Endpoints(controlService("order")); len(e) != 1 || e[0].Address != "10.0.0.1:15006" || e[0].Identity != in.Identity {
		t.Errorf("endpoints: %+v", e)
	}
	// Its application falls ill: it stays, but takes no traffic.
	if err := l.Send(&weftpb.LeaseRequest{Message: &weftpb.LeaseRequest_Heartbeat{Heartbeat: &weftpb.LeaseHeartbeat{Health: weftpb.Health_CRITICAL, Output: "503"}}}); err != nil {
		t.Fatal(err)
	}
	healthIs := func(want weft.Health) {
		t.Helper()
		controltest.Eventually(t, func() string {
			if in, _ := s.Registry.Instance(key); in == nil || in.Health() != want {
				return "want " + want.String()
			}
			return ""
		})
	}
	healthIs(weft.Critical)
	if err := l.Send(&weftpb.LeaseRequest{Message: &weftpb.LeaseRequest_Heartbeat{Heartbeat: &weftpb.LeaseHeartbeat{}}}); err != nil {
		t.Fatal(err)
	}
	healthIs(weft.Passing)
	h, err := s.Registry.History(t.Context(), registry.HistoryRequest{Service: in.Service, Since: weft.Duration(time.Hour)})
	if err != nil || len(h.Changes) == 0 {
		t.Fatalf("%+v, %v", h, err)
	}
	for _, c := range h.Changes {
		if c.By != "sidecar of order v1 at 127.0.0.1" {
			t.Errorf("%v by %q", c.What, c.By)
		}
	}
	die()
	if in, _ := s.Registry.Instance(key); in == nil {
		t.Error("it is removed as soon as its stream ends")
	}
	healthIs(weft.Critical)
}

func TestLeaseRefuses(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("payment", "a", 8001)
	change := func(f func(*weftpb.LeaseRegister)) *weftpb.LeaseRegister {
		r := &weftpb.LeaseRegister{Instance: orderInstance()}
		f(r)
		return r
	}
	for name, c := range map[string]struct {
		register *weftpb.LeaseRegister
		code     codes.Code
		says     string
	}{
		"an instance of another service": {change(func(r *weftpb.LeaseRegister) { r.Instance.Service.Name = "payment" }),
			codes.PermissionDenied, "the certificate is for order.default"},
		"an instance in another namespace": {change(func(r *weftpb.LeaseRegister) { r.Instance.Service.Namespace = "prod" }),
			codes.PermissionDenied, "order.prod"},
		"the id of another service's instance": {change(func(r *weftpb.LeaseRegister) { r.Instance.Id = "payment-a" }),
			codes.PermissionDenied, "payment.default"},
		"a TTL of a millisecond": {change(func(r *weftpb.LeaseRegister) { r.Ttl = durationpb.New(time.Millisecond) }),
			codes.InvalidArgument, "want 1s to 1h"},
		"no id":     {change(func(r *weftpb.LeaseRegister) { r.Instance.Id = "" }), codes.InvalidArgument, "id"},
		"no port":   {change(func(r *weftpb.LeaseRegister) { r.Instance.Port = 70000 }), codes.InvalidArgument, "port"},
		"no detail": {nil, codes.InvalidArgument, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := leaseOf(t, s, "order", c.register)
			if _, err := l.Recv(); status.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v with %q", err, c.code, c.says)
			}
		})
	}
	t.Run("a heartbeat before the registration", func(t *testing.T) {
		l, err := weftpb.NewWorkloadClient(dial(t, s, "order")).Lease(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Send(&weftpb.LeaseRequest{Message: &weftpb.LeaseRequest_Heartbeat{}}); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("got %v", err)
		}
	})
}

func TestALeaseOnAnUnknownNodeMakesTheNode(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	in := orderInstance()
	in.Node = "node-2"
	l, _ := leaseOf(t, s, "order", &weftpb.LeaseRegister{Instance: in})
	if _, err := l.Recv(); err != nil {
		t.Fatal(err)
	}
	if got := s.Registry.NodeAddress("node-2"); got != "127.0.0.1" {
		t.Errorf("node-2 is at %q", got)
	}
}

func TestADeregisteredInstanceEndsItsLease(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	l, _ := leaseOf(t, s, "order", &weftpb.LeaseRegister{Instance: orderInstance()})
	if _, err := l.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Registry.Deregister(t.Context(), weft.InstanceKey{Node: "node-1", ID: "order-a"}); err != nil {
		t.Fatal(err)
	}
	if err := l.Send(&weftpb.LeaseRequest{Message: &weftpb.LeaseRequest_Heartbeat{Heartbeat: &weftpb.LeaseHeartbeat{}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Recv(); status.Code(err) != codes.NotFound {
		t.Errorf("got %v; the sidecar would not learn that it has to register again", err)
	}
}

func sendDrain(t *testing.T, l weftpb.Workload_LeaseClient) {
	t.Helper()
	if err := l.Send(&weftpb.LeaseRequest{Message: &weftpb.LeaseRequest_Drain{Drain: &weftpb.LeaseDrain{}}}); err != nil {
		t.Fatal(err)
	}
}

func TestDrainWaitsForThoseWhoCall(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	l, _ := leaseOf(t, s, "order", &weftpb.LeaseRegister{Instance: orderInstance()})
	if _, err := l.Recv(); err != nil {
		t.Fatal(err)
	}
	caller := openWire(t, s, "caller")
	caller.subscribe(weftpb.EndpointsType, "default/order")
	caller.take()

	sendDrain(t, l)
	without := caller.recv()
	wantBrief(t, without, "Endpoints -default/order") // it was the only one
	if in, _ := s.Registry.Instance(weft.InstanceKey{Node: "node-1", ID: "order-a"}); in != nil {
		t.Error("it is still registered")
	}
	answered := make(chan error, 1)
	go func() {
		r, err := l.Recv()
		if err == nil && r.GetWaiting() != 0 {
			err = errors.New("somebody has not acknowledged")
		}
		answered <- err
	}()
	caller.silence("a")
	select {
	case err := <-answered:
		t.Fatalf("answered before the caller has acknowledged: %v", err)
	default:
	}
	caller.ack(without)
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func TestDrainDoesNotWaitForEver(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Control.SetPatience(10*time.Second, 100*time.Millisecond)
	l, _ := leaseOf(t, s, "order", &weftpb.LeaseRegister{Instance: orderInstance()})
	if _, err := l.Recv(); err != nil {
		t.Fatal(err)
	}
	caller := openWire(t, s, "caller")
	caller.subscribe(weftpb.EndpointsType, "default/order")
	caller.take()
	leaver := openWire(t, s, "leaver")
	leaver.subscribe(weftpb.EndpointsType, "default/order")
	leaver.take()
	sendDrain(t, l)
	caller.recv()
	leaver.recv()
	leaver.end() // who is gone need not be waited for
	r, err := l.Recv()
	if err != nil || r.GetWaiting() != 1 {
		t.Errorf("got %v, %v; want one proxy that was waited for in vain", r, err)
	}
}

const onlyUser = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-user}
spec:
  selector: {matchLabels: {version: v1}}
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/default/sa/user"]}}]}]
`

// sidecarOf is a delta ADS stream of order's sidecar.
func sidecarOf(t *testing.T, s *controltest.Server, id string) *wire {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(dial(t, s, "order")).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t, stream, cancel}
	w.send(&discovery.DeltaDiscoveryRequest{TypeUrl: weftpb.AuthorizationType, ResourceNamesSubscribe: []string{weftpb.Self}, Node: nodeOf(id)})
	return w
}

func policies(t *testing.T, r *discovery.DeltaDiscoveryResponse) int {
	t.Helper()
	wantBrief(t, r, "Authorization +self")
	var m weftpb.Authorization
	if err := r.GetResources()[0].GetResource().UnmarshalTo(&m); err != nil {
		t.Fatal(err)
	}
	return len(m.GetPolicies())
}

func TestPoliciesAreAppliedBeforeTheInstanceIsSeen(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Apply(onlyUser)
	w := sidecarOf(t, s, "sidecar-a")
	w.silence("a") // its workload is not known: nothing can be said
	l, _ := leaseOf(t, s, "order", &weftpb.LeaseRegister{Instance: orderInstance(), Proxy: "sidecar-a"})
	r := w.recv()
	if n := policies(t, r); n != 1 {
		t.Errorf("%d policies", n)
	}
	key := weft.InstanceKey{Node: "node-1", ID: "order-a"}
	if in, _ := s.Registry.Instance(key); in != nil {
		t.Error("it is registered before its sidecar has applied its policies")
	}
	w.ack(r)
	if _, err := l.Recv(); err != nil {
		t.Fatal(err)
	}
	if in, _ := s.Registry.Instance(key); in == nil {
		t.Error("it is not registered")
	}

	if _, err := s.Control.Delete(t.Context(), "AuthorizationPolicy", "default", "only-user"); err != nil {
		t.Fatal(err)
	}
	if n := policies(t, w.take()); n != 0 {
		t.Errorf("%d policies after the deletion", n)
	}
	// Another labels, another workload.
	s.Apply(onlyUser)
	w.take()
	other := orderInstance()
	other.Labels = map[string]string{"version": "v2"}
	again, _ := leaseOf(t, s, "order", &weftpb.LeaseRegister{Instance: other, Proxy: "sidecar-a"})
	if n := policies(t, w.take()); n != 0 {
		t.Errorf("%d policies for version v2", n)
	}
	if _, err := again.Recv(); err != nil {
		t.Fatal(err)
	}
}

func TestASidecarThatDoesNotApplyItsPoliciesIsNotRegistered(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Control.SetPatience(10*time.Second, 100*time.Millisecond)
	w := sidecarOf(t, s, "sidecar-a")
	l, _ := leaseOf(t, s, "order", &weftpb.LeaseRegister{Instance: orderInstance(), Proxy: "sidecar-a"})
	w.recv()
	if _, err := l.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "policies") {
		t.Errorf("got %v", err)
	}
	if in, _ := s.Registry.Instance(weft.InstanceKey{Node: "node-1", ID: "order-a"}); in != nil {
		t.Error("it is registered")
	}
}

func TestOtherProxiesOfTheIdentityDoNotShareAWorkload(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Apply(onlyUser)
	a, b := sidecarOf(t, s, "a"), sidecarOf(t, s, "b")
	la, _ := leaseOf(t, s, "order", &weftpb.LeaseRegister{Instance: orderInstance(), Proxy: "a"})
	if n := policies(t, a.take()); n != 1 {
		t.Errorf("a has %d policies", n)
	}
	if _, err := la.Recv(); err != nil {
		t.Fatal(err)
	}
	second := orderInstance()
	second.Id, second.Labels = "order-b", map[string]string{"version": "v2"}
	leaseOf(t, s, "order", &weftpb.LeaseRegister{Instance: second, Proxy: "b"})
	if n := policies(t, b.take()); n != 0 {
		t.Errorf("b has %d policies", n)
	}
	a.silence("x")
}
