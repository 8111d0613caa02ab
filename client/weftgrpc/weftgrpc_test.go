package weftgrpc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/client/weftgrpc"
	"github.com/weftmesh/weft/resilience"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// instance answers health checks, which serve as the service's calls and streams.
type instance struct {
	grpc_health_v1.UnimplementedHealthServer
	server *grpc.Server
	addr   string
	asked  atomic.Int64
	check  func(context.Context) error                   // nil is fine
	watch  func(grpc_health_v1.Health_WatchServer) error // nil sends one message and ends
	md     atomic.Pointer[metadata.MD]                   // of the last call
}

func (in *instance) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	in.asked.Add(1)
	md, _ := metadata.FromIncomingContext(ctx)
	in.md.Store(&md)
	if in.check != nil {
		if err := in.check(ctx); err != nil {
			return nil, err
		}
	}
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

func (in *instance) Watch(_ *grpc_health_v1.HealthCheckRequest, s grpc_health_v1.Health_WatchServer) error {
	in.asked.Add(1)
	if in.watch != nil {
		return in.watch(s)
	}
	return s.Send(&grpc_health_v1.HealthCheckResponse{})
}

// serve runs an instance.
func serve(t *testing.T, in *instance) *instance {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	in.addr = l.Addr().String()
	in.server = grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(in.server, in)
	served := make(chan struct{})
	go func() { defer close(served); _ = in.server.Serve(l) }()
	t.Cleanup(func() { in.server.Stop(); <-served })
	return in
}

// fails answers with the codes in turn, and then well.
func fails(list ...codes.Code) func(context.Context) error {
	var n atomic.Int64
	return func(context.Context) error {
		if i := n.Add(1); int(i) <= len(list) {
			return status.Error(list[i-1], "as told")
		}
		return nil
	}
}

func open(t *testing.T) (*server, *client.Client) {
	t.Helper()
	s := newServer()
	c, err := client.New(context.Background(), client.At(s.Listener.Addr().String()))
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()); s.close() })
	return s, c
}

func dial(t *testing.T, c *client.Client, target string) grpc_health_v1.HealthClient {
	t.Helper()
	conn, err := weftgrpc.Dial(c, target)
	check(t, err)
	t.Cleanup(func() { check(t, conn.Close()) })
	return grpc_health_v1.NewHealthClient(conn)
}

// direct is a connection to one instance with a policy, and no weft.
func direct(t *testing.T, in *instance, spec resilience.Spec) (grpc_health_v1.HealthClient, *resilience.Policy) {
	t.Helper()
	p, err := resilience.New("orders", spec)
	check(t, err)
	conn, err := grpc.NewClient("passthrough:///"+in.addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(weftgrpc.UnaryClientInterceptor(p)), grpc.WithStreamInterceptor(weftgrpc.StreamClientInterceptor(p)))
	check(t, err)
	t.Cleanup(func() { check(t, conn.Close()) })
	return grpc_health_v1.NewHealthClient(conn), p
}

func ask(ctx context.Context, web grpc_health_v1.HealthClient) error {
	_, err := web.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return err
}

func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !ask() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after 10 s still not: %s", what)
		}
	}
}

func TestCallsGoToTheEndpointsOfTheName(t *testing.T) {
	s, c := open(t)
	a, b := serve(t, new(instance)), serve(t, new(instance))
	s.set("order-service", a.addr, b.addr)
	s.change("order-service", func(state *client.State) { state.LoadBalancer, state.Endpoints[1].Weight = weft.RoundRobin, 3 })
	web := dial(t, c, "weft:///order-service")
	eventually(t, "both are ready", func() bool {
		check(t, ask(t.Context(), web))
		return a.asked.Load() > 0 && b.asked.Load() > 0
	})
	a.asked.Store(0)
	b.asked.Store(0)
	for range 40 {
		check(t, ask(t.Context(), web))
	}
	if x, y := a.asked.Load(), b.asked.Load(); x != 10 || y != 30 {
		t.Errorf("asked %d and %d times, want 10 and 30", x, y)
	}
	s.change("order-service", func(state *client.State) { state.Endpoints[1].Weight = 1 })
	eventually(t, "the weights are equal", func() bool {
		a.asked.Store(0)
		for range 20 {
			check(t, ask(t.Context(), web))
		}
		return a.asked.Load() == 10
	})
}

func TestAnEndpointComesAndGoes(t *testing.T) {
	s, c := open(t)
	a, b := serve(t, new(instance)), serve(t, new(instance))
	s.set("order-service", a.addr)
	web := dial(t, c, "order-service.default")
	check(t, ask(t.Context(), web))
	s.set("order-service", b.addr)
	eventually(t, "the new one is asked", func() bool { check(t, ask(t.Context(), web)); return b.asked.Load() > 0 })
	before := a.asked.Load()
	for range 10 {
		check(t, ask(t.Context(), web))
	}
	if a.asked.Load() != before {
		t.Error("the one that went is asked on")
	}
	// One that dies without a word: what it may have seen is repeated by its key.
	s.set("order-service", a.addr, b.addr)
	eventually(t, "both are asked", func() bool { check(t, ask(t.Context(), web)); return a.asked.Load() > before })
	a.server.Stop()
	for range 20 {
		check(t, ask(metadata.AppendToOutgoingContext(t.Context(), "idempotency-key", "k1"), web))
	}
}

func TestNowhereToGo(t *testing.T) {
	s, c := open(t)
	s.set("meshed-service", "127.0.0.1:1")
	s.change("meshed-service", func(state *client.State) { state.Endpoints[0].Plain = false })
	for target, want := range map[string]string{"weft:///nobody": "no instance of it is registered", "weft:///meshed-service": "weft run"} {
		err := ask(t.Context(), dial(t, c, target))
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", target, err, want)
		}
	}
	for target, want := range map[string]string{"weft://order-service": "three strokes", "weft:///a.b.c": "want a name"} {
		conn, err := weftgrpc.Dial(c, target)
		if err == nil {
			err = ask(t.Context(), grpc_health_v1.NewHealthClient(conn))
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", target, err, want)
		}
	}
	// It comes.
	web := dial(t, c, "weft:///nobody")
	in := serve(t, new(instance))
	s.set("nobody", in.addr)
	eventually(t, "it is found", func() bool { return ask(t.Context(), web) == nil })
}

func TestThePolicyOfTheServerHolds(t *testing.T) {
	s, c := open(t)
	in := serve(t, &instance{check: fails(codes.Internal, codes.Unavailable, codes.NotFound)})
	s.set("order-service", in.addr)
	s.change("order-service", func(state *client.State) {
		state.Resilience = []byte(`{"circuitBreaker":{"consecutiveFailures":2,"waitDurationInOpenState":"1h"}}`)
	})
	web := dial(t, c, "weft:///order-service")
	for _, want := range []codes.Code{codes.Internal, codes.Unavailable} {
		if err := ask(t.Context(), web); status.Code(err) != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	err := ask(t.Context(), web)
	var rejected *resilience.Rejected
	if status.Code(err) != codes.Unavailable || !errors.As(err, &rejected) || !errors.Is(err, resilience.ErrCircuitOpen) || in.asked.Load() != 2 {
		t.Errorf("after two failures: %v; asked %d times", err, in.asked.Load())
	}
	p, err := c.Policy(t.Context(), "order-service")
	check(t, err)
	if p.Breaker().State() != resilience.Open {
		t.Errorf("the circuit is %s", p.Breaker().State())
	}
}

func TestWhatCounts(t *testing.T) {
	for code, want := range map[codes.Code]resilience.State{
		codes.Unavailable: resilience.Open, codes.Internal: resilience.Open, codes.Unknown: resilience.Open,
		codes.DeadlineExceeded: resilience.Open, codes.ResourceExhausted: resilience.Open,
		codes.OK: resilience.Closed, codes.NotFound: resilience.Closed, codes.InvalidArgument: resilience.Closed,
		codes.PermissionDenied: resilience.Closed, codes.Canceled: resilience.Closed, codes.Aborted: resilience.Closed,
	} {
		in := serve(t, &instance{check: fails(code), watch: func(grpc_health_v1.Health_WatchServer) error { return status.Error(code, "as told") }})
		spec := resilience.Spec{CircuitBreaker: &resilience.BreakerSpec{ConsecutiveFailures: 1}}
		web, p := direct(t, in, spec)
		if err := ask(t.Context(), web); status.Code(err) != code || p.Breaker().State() != want {
			t.Errorf("a call with %s: %v, and the circuit is %s", code, err, p.Breaker().State())
		}
		web, p = direct(t, in, spec)
		stream, err := web.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		check(t, err)
		if _, err := stream.Recv(); code != codes.OK && status.Code(err) != code || p.Breaker().State() != want {
			t.Errorf("a stream with %s: %v, and the circuit is %s", code, err, p.Breaker().State())
		}
	}
}

func TestTheCallerWhoCancelsIsNoFailure(t *testing.T) {
	began := make(chan struct{}, 1)
	in := serve(t, &instance{check: func(ctx context.Context) error { began <- struct{}{}; <-ctx.Done(); return ctx.Err() }})
	web, p := direct(t, in, resilience.Spec{CircuitBreaker: &resilience.BreakerSpec{ConsecutiveFailures: 1}, Retry: &resilience.RetrySpec{}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	if err := ask(ctx, web); status.Code(err) != codes.Canceled || p.Breaker().State() != resilience.Closed || in.asked.Load() != 1 {
		t.Errorf("cancelled: %v, and the circuit is %s", err, p.Breaker().State())
	}
	if err := ask(ctx, web); status.Code(err) != codes.Canceled {
		t.Errorf("cancelled before it began: %v", err)
	}
	// Our own timeout is one.
	web, p = direct(t, in, resilience.Spec{AttemptTimeout: 20 * time.Millisecond, CircuitBreaker: &resilience.BreakerSpec{ConsecutiveFailures: 1}})
	if err := ask(t.Context(), web); status.Code(err) != codes.DeadlineExceeded || p.Breaker().State() != resilience.Open {
		t.Errorf("timed out: %v, and the circuit is %s", err, p.Breaker().State())
	}
	<-began
}

func TestWhatIsRepeated(t *testing.T) {
	fast := resilience.BackoffSpec{Initial: time.Millisecond, Jitter: resilience.NoJitter}
	retry := func(r resilience.RetrySpec) resilience.Spec {
		r.Backoff = fast
		return resilience.Spec{Retry: &r}
	}
	pushback := func(ms string) func(context.Context) error {
		fail := fails(codes.Unavailable)
		return func(ctx context.Context) error {
			err := fail(ctx)
			if err != nil {
				_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", ms))
			}
			return err
		}
	}
	key := func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "idempotency-key", "k1")
	}
	for _, tt := range []struct {
		name  string
		check func(context.Context) error
		spec  resilience.Spec
		ctx   func(context.Context) context.Context
		asked int64
		want  codes.Code
	}{
		{"a call that may have done something", fails(codes.Unavailable), retry(resilience.RetrySpec{}), nil, 1, codes.Unavailable},
		{"with a key", fails(codes.Unavailable, codes.Unavailable), retry(resilience.RetrySpec{}), key, 3, codes.OK},
		{"with a key, but too often", fails(codes.Unavailable, codes.Unavailable, codes.Unavailable), retry(resilience.RetrySpec{}), key, 3, codes.Unavailable},
		{"with a key, but of another status", fails(codes.Internal), retry(resilience.RetrySpec{}), key, 1, codes.Internal},
		{"with a key and the policy's status", fails(codes.Aborted), retry(resilience.RetrySpec{GRPCStatuses: []string{"ABORTED"}}), key, 2, codes.OK},
		{"by the policy's methods", fails(codes.Unavailable), retry(resilience.RetrySpec{Methods: []string{"POST"}}), nil, 2, codes.OK},
		{"when the server asks for it", pushback("5"), retry(resilience.RetrySpec{}), nil, 2, codes.OK},
		{"when the server asks for it at once", pushback("0"), retry(resilience.RetrySpec{}), nil, 2, codes.OK},
		{"not when the server says never", pushback("-1"), retry(resilience.RetrySpec{}), key, 1, codes.Unavailable},
		{"not when it says nonsense", pushback("soon"), retry(resilience.RetrySpec{}), key, 1, codes.Unavailable},
		{"not without a retry in the policy", fails(codes.Unavailable), resilience.Spec{}, key, 1, codes.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := serve(t, &instance{check: tt.check})
			web, _ := direct(t, in, tt.spec)
			ctx := t.Context()
			if tt.ctx != nil {
				ctx = tt.ctx(ctx)
			}
			if err := ask(ctx, web); status.Code(err) != tt.want || in.asked.Load() != tt.asked {
				t.Errorf("%v after %d attempts, want %s after %d", err, in.asked.Load(), tt.want, tt.asked)
			}
		})
	}
}

func TestARetryGoesToAnotherEndpoint(t *testing.T) {
	s, c := open(t)
	always := func(context.Context) error { return status.Error(codes.Unavailable, "as told") }
	bad, good := serve(t, &instance{check: always}), serve(t, new(instance))
	s.set("order-service", bad.addr, good.addr)
	s.change("order-service", func(state *client.State) {
		state.Resilience = []byte(`{"retry":{"maxAttempts":2,"methods":["POST"],"backoff":{"initial":"1ms"},"budget":{"percent":1000}}}`)
	})
	web := dial(t, c, "weft:///order-service")
	eventually(t, "both are ready", func() bool { _ = ask(t.Context(), web); return bad.asked.Load() > 0 && good.asked.Load() > 0 })
	for range 20 {
		check(t, ask(t.Context(), web))
	}
}

func TestWhatNobodyHasSeenIsRepeated(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	l.Close()
	web, p := direct(t, &instance{addr: l.Addr().String()}, resilience.Spec{
		Retry:          &resilience.RetrySpec{MaxAttempts: 3, Backoff: resilience.BackoffSpec{Initial: time.Millisecond}},
		CircuitBreaker: &resilience.BreakerSpec{},
	})
	if err := ask(t.Context(), web); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
	if n := p.Breaker().Counts(time.Now()).Failures; n != 3 {
		t.Errorf("%d attempts, want 3", n)
	}
	if _, err := web.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a stream: %v", err)
	}
	if n := p.Breaker().Counts(time.Now()).Failures; n != 6 {
		t.Errorf("%d attempts, want 3 more", n)
	}
}

func TestAStreamKeepsItsPlaceToItsEnd(t *testing.T) {
	finish := make(chan error)
	in := serve(t, &instance{watch: func(s grpc_health_v1.Health_WatchServer) error {
		if err := s.Send(&grpc_health_v1.HealthCheckResponse{}); err != nil {
			return err
		}
		select {
		case err := <-finish:
			return err
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}})
	web, p := direct(t, in, resilience.Spec{Timeout: 100 * time.Millisecond, Bulkhead: &resilience.BulkheadSpec{MaxConcurrentCalls: 1},
		CircuitBreaker: &resilience.BreakerSpec{ConsecutiveFailures: 1}})
	begin := func(ctx context.Context) grpc_health_v1.Health_WatchClient {
		t.Helper()
		stream, err := web.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		check(t, err)
		_, err = stream.Recv()
		check(t, err)
		return stream
	}
	free := func() bool { return p.Bulkhead().InUse() == 0 }
	first := begin(t.Context())
	if _, err := web.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{}); status.Code(err) != codes.ResourceExhausted || !errors.Is(err, resilience.ErrBulkheadFull) {
		t.Errorf("a second stream: %v", err)
	}
	finish <- nil
	if _, err := first.Recv(); err == nil || free() != true {
		t.Errorf("its end: %v, place given back: %v", err, free())
	}
	// One that its caller leaves.
	ctx, cancel := context.WithCancel(t.Context())
	begin(ctx)
	cancel()
	eventually(t, "the place is given back", free)
	if state := p.Breaker().State(); state != resilience.Closed {
		t.Errorf("the circuit is %s after streams that ended well", state)
	}
	// One that fails behind a good beginning.
	last := begin(t.Context())
	finish <- status.Error(codes.Internal, "as told")
	if _, err := last.Recv(); status.Code(err) != codes.Internal || !free() || p.Breaker().State() != resilience.Open {
		t.Errorf("%v; place given back: %v; the circuit is %s", err, free(), p.Breaker().State())
	}
}

func TestOnlyTheBeginningOfAStreamHasATimeout(t *testing.T) {
	mute, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	check(t, err)
	defer mute.Close()
	web, p := direct(t, &instance{addr: mute.Addr().String()}, resilience.Spec{AttemptTimeout: 20 * time.Millisecond, CircuitBreaker: &resilience.BreakerSpec{ConsecutiveFailures: 1}})
	_, err = web.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
	if status.Code(err) != codes.DeadlineExceeded || p.Breaker().State() != resilience.Open {
		t.Errorf("%v, and the circuit is %s", err, p.Breaker().State())
	}
}

const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestATraceGoesOn(t *testing.T) {
	s, c := open(t)
	in := serve(t, new(instance))
	s.set("order-service", in.addr)
	web := dial(t, c, "weft:///order-service")
	header := http.Header{"Traceparent": {parent}, "X-Request-Id": {"r1"}, "Tracestate": {"a=1"}}
	own := strings.Replace(parent, "00f067aa", "11f067aa", 1)
	for name, tt := range map[string]struct {
		ctx  context.Context
		want [3]string // traceparent, x-request-id, tracestate
	}{
		"of an HTTP request":   {client.WithTrace(t.Context(), header), [3]string{parent, "r1", "a=1"}},
		"of a gRPC call":       {metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", parent, "x-request-id", "r2", "authorization", "secret")), [3]string{parent, "r2", ""}},
		"which an SDK goes on": {metadata.AppendToOutgoingContext(client.WithTrace(t.Context(), header), "traceparent", own), [3]string{own, "r1", ""}},
		"none":                 {t.Context(), [3]string{}},
	} {
		check(t, ask(tt.ctx, web))
		md := *in.md.Load()
		got := [3]string{strings.Join(md["traceparent"], ","), strings.Join(md["x-request-id"], ","), strings.Join(md["tracestate"], ",")}
		if got != tt.want || len(md["authorization"]) > 0 {
			t.Errorf("a trace %s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestBesideASidecarCallsGoToTheSidecar(t *testing.T) {
	sidecar := serve(t, &instance{check: fails(codes.Unavailable)})
	t.Setenv("WEFT_SERVICE", "web")
	t.Setenv("HTTP_PROXY", "http://"+sidecar.addr)
	s, c := open(t)
	s.change("order-service", func(state *client.State) {
		state.Endpoints = []client.Endpoint{{ID: "x", Address: "127.0.0.1:1", Plain: true}}
		state.Resilience = []byte(`{"retry":{"methods":["POST"]}}`)
	})
	web := dial(t, c, "weft:///order-service")
	if err := ask(t.Context(), web); status.Code(err) != codes.Unavailable || sidecar.asked.Load() != 1 {
		t.Errorf("%v after %d attempts: what repeats already must not be repeated", err, sidecar.asked.Load())
	}
	check(t, ask(t.Context(), web))
	if authority := (*sidecar.md.Load())[":authority"]; fmt.Sprint(authority) != "[order-service]" {
		t.Errorf("the sidecar was asked for %q", authority)
	}
}

func TestAConnectionThatIsNeverUsed(t *testing.T) {
	_, c := open(t)
	conn, err := weftgrpc.Dial(c, "order-service")
	check(t, err)
	if conn.GetState() != connectivity.Idle {
		t.Errorf("it is %s", conn.GetState())
	}
	check(t, conn.Close())
}
