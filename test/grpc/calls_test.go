package grpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft/test/world"
)

// server answers with its name, and says when a call to it was cancelled.
type server struct {
	testpb.UnimplementedTestServiceServer
	name      string
	cancelled chan time.Duration // what was left of the deadline when the call came
}

func (s *server) EmptyCall(context.Context, *testpb.Empty) (*testpb.Empty, error) {
	return &testpb.Empty{}, nil
}

// UnaryCall answers, fails with the status that it is asked for, or waits until it
// is cancelled when the answer is to be endless.
func (s *server) UnaryCall(ctx context.Context, r *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if st := r.GetResponseStatus(); st != nil {
		return nil, status.Error(codes.Code(st.Code), st.Message)
	}
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("wait")) > 0 {
		deadline, ok := ctx.Deadline()
		left := time.Until(deadline)
		if !ok {
			left = 0
		}
		<-ctx.Done()
		s.cancelled <- left
		return nil, ctx.Err()
	}
	if r.GetPayload() != nil {
		return &testpb.SimpleResponse{Payload: r.Payload, ServerId: s.name}, nil
	}
	return &testpb.SimpleResponse{ServerId: s.name}, nil
}

// FullDuplexCall answers each message with one, with its name.
func (s *server) FullDuplexCall(stream grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&testpb.StreamingOutputCallResponse{Payload: m.Payload}); err != nil {
			return err
		}
	}
}

func newServer(name string) *server {
	return &server{name: name, cancelled: make(chan time.Duration, 10)}
}

// ways runs a test behind sidecars and behind a gateway.
func ways(t *testing.T, servers []string, test func(t *testing.T, w *world.World, door string)) {
	t.Helper()
	t.Run("sidecars", func(t *testing.T) {
		w := world.New(t)
		test(t, w, startPair(t, w, servers...))
	})
	t.Run("gateway", func(t *testing.T) {
		w := world.New(t)
		test(t, w, startGateway(t, w, servers...).HTTP)
	})
}

// TestCallsOfOneConnectionAreSpread: balancing is by call, not by connection, also
// beside a stream that stays open.
func TestCallsOfOneConnectionAreSpread(t *testing.T) {
	var servers []string
	for i := range 3 {
		servers = append(servers, startServer(t, newServer(fmt.Sprint("server-", i))))
	}
	ways(t, servers, func(t *testing.T, w *world.World, door string) {
		client := dial(t, door)
		stream, err := client.FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		exchangeOne(t, stream)
		const calls = 600
		seen := map[string]int{}
		world.Eventually(t, 20*time.Second, "all servers to be known", func() error {
			seen = callMany(t, client, calls)
			if len(seen) < len(servers) {
				return fmt.Errorf("seen %v", seen)
			}
			return nil
		})
		for name, n := range seen {
			if n < calls/10 {
				t.Errorf("%s had %d of %d calls: %v", name, n, calls, seen)
			}
		}
		exchangeOne(t, stream)
		if err := stream.CloseSend(); err != nil {
			t.Error(err)
		}
		if _, err := stream.Recv(); err != io.EOF {
			t.Errorf("the end of the stream: %v", err)
		}
	})
}

// callMany calls from several goroutines and counts the answers by server.
func callMany(t *testing.T, client testpb.TestServiceClient, calls int) map[string]int {
	t.Helper()
	const callers = 20
	names := make(chan string, calls)
	for range callers {
		go func() {
			for range calls / callers {
				r, err := client.UnaryCall(t.Context(), &testpb.SimpleRequest{})
				if err != nil {
					names <- err.Error()
					continue
				}
				names <- r.ServerId
			}
		}()
	}
	seen := map[string]int{}
	for range calls {
		seen[<-names]++
	}
	for name, n := range seen {
		if !strings.HasPrefix(name, "server-") {
			t.Errorf("%d calls failed: %s", n, name)
		}
	}
	return seen
}

type duplex = grpc.BidiStreamingClient[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]

// exchangeOne sends a message and awaits one.
func exchangeOne(t *testing.T, stream duplex) {
	t.Helper()
	if err := stream.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: []byte("hello")}}); err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil || string(m.GetPayload().GetBody()) != "hello" {
		t.Fatalf("got %v, %v", m, err)
	}
}

// TestStatusesArePassedOn whole: code, message in any script, and what a server
// answers before it has read the request.
func TestStatusesArePassedOn(t *testing.T) {
	ways(t, []string{startServer(t, newServer("one"))}, func(t *testing.T, w *world.World, door string) {
		client := dial(t, door)
		for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
			const message = "so ist es: 你好\n\t%20"
			_, err := client.UnaryCall(t.Context(), &testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: int32(code), Message: message}})
			if got := status.Convert(err); got.Code() != code || got.Message() != message {
				t.Errorf("%s came as %s %q", code, got.Code(), got.Message())
			}
		}
	})
}

// TestDeadlines are told to the server, and a call that the client gives up is
// cancelled there.
func TestDeadlines(t *testing.T) {
	app := newServer("one")
	ways(t, []string{startServer(t, app)}, func(t *testing.T, w *world.World, door string) {
		client := dial(t, door)
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "wait", "1"), 500*time.Millisecond)
		defer cancel()
		_, err := client.UnaryCall(ctx, &testpb.SimpleRequest{})
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v, want DeadlineExceeded", err)
		}
		if left := within(t, app.cancelled); left <= 0 || left > 500*time.Millisecond {
			t.Errorf("the server was told of %s, want at most 500ms", left)
		}
		ctx, cancel = context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "wait", "1"))
		time.AfterFunc(200*time.Millisecond, cancel)
		if _, err := client.UnaryCall(ctx, &testpb.SimpleRequest{}); status.Code(err) != codes.Canceled {
			t.Errorf("got %v, want Canceled", err)
		}
		if left := within(t, app.cancelled); left != 0 {
			t.Errorf("a call without a deadline came with %s", left)
		}
	})
}

func within[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing in 10 s")
		panic("unreachable")
	}
}

// TestServerKilled in the middle of a stream: the client hears UNAVAILABLE, and
// its next calls go to the server that is left.
func TestServerKilled(t *testing.T) {
	for _, way := range []string{"sidecars", "gateway"} {
		t.Run(way, func(t *testing.T) {
			doomed, first := startInterop(t)
			_, second := startInterop(t)
			w := world.New(t)
			door := ""
			if way == "gateway" {
				door = startGateway(t, w, first, second).HTTP
			} else {
				door = startPair(t, w, first, second)
			}
			client := dial(t, door)
			// Streams on both servers: those of the doomed one break, the others do not.
			const streams = 12
			results := make(chan error, streams)
			for range streams {
				stream, err := client.FullDuplexCall(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				ask := &testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 5}}}
				if err := stream.Send(ask); err != nil {
					t.Fatal(err)
				}
				if _, err := stream.Recv(); err != nil {
					t.Fatal(err)
				}
				go func() {
					_, err := stream.Recv() // until it breaks, or is closed below
					results <- err
				}()
				t.Cleanup(func() { _ = stream.CloseSend() })
			}
			doomed.Kill()
			err := within(t, results)
			if status.Code(err) != codes.Unavailable {
				t.Errorf("a stream of the killed server: %v, want Unavailable", err)
			}
			world.Eventually(t, 10*time.Second, "20 calls in a row", func() error {
				for range 20 {
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					_, err := client.EmptyCall(ctx, &testpb.Empty{})
					cancel()
					if err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
}

// TestNoServer: what weft answers by itself to a gRPC client is a gRPC status.
func TestNoServer(t *testing.T) {
	w := world.New(t)
	w.Apply(world.Everything("app"))
	g := w.Gateway("--access-log", "off")
	client := dial(t, g.HTTP)
	world.Eventually(t, 10*time.Second, "UNAVAILABLE", func() error {
		_, err := client.EmptyCall(t.Context(), &testpb.Empty{})
		if status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "weft") {
			return nil
		}
		return fmt.Errorf("got %w", err)
	})
}

// TestMetrics tell calls apart by method and gRPC status.
func TestMetrics(t *testing.T) {
	w := world.New(t)
	g := startGateway(t, w, startServer(t, newServer("one")))
	client := dial(t, g.HTTP)
	const calls = 7
	for range calls {
		_, err := client.UnaryCall(t.Context(), &testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: int32(codes.NotFound)}})
		if status.Code(err) != codes.NotFound {
			t.Fatal(err)
		}
		if _, err := client.UnaryCall(t.Context(), &testpb.SimpleRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, code := range []string{"0", "5"} { // OK, NOT_FOUND
		n := g.Metric("weft_grpc_requests_total", `service="grpc.testing.TestService"`, `method="UnaryCall"`, `grpc_status="`+code+`"`)
		if n != calls {
			t.Errorf("%v calls with %s are counted, want %d, in\n%s", n, code, calls, grpcLines(t, g.Admin))
		}
	}
}

// grpcLines are the metrics that name gRPC.
func grpcLines(t *testing.T, admin string) string {
	t.Helper()
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var found strings.Builder
	for line := range strings.Lines(string(text)) {
		if strings.Contains(strings.ToLower(line), "grpc") {
			found.WriteString(line)
		}
	}
	return found.String()
}

// TestManyStreamsShareAConnection: more streams than a server allows at once wait
// their turn, and none is lost or mixed up.
func TestManyStreamsShareAConnection(t *testing.T) {
	ways(t, []string{startServer(t, newServer("one"))}, func(t *testing.T, w *world.World, door string) {
		client := dial(t, door)
		const streams = 400
		var ended atomic.Int64
		results := make(chan error, streams)
		for i := range streams {
			go func() { results <- echoMany(t.Context(), client, i, &ended) }()
		}
		for range streams {
			if err := <-results; err != nil {
				t.Fatal(err)
			}
		}
		if ended.Load() != streams {
			t.Errorf("%d streams ended", ended.Load())
		}
	})
}

// echoMany sends messages of different sizes and expects each back.
func echoMany(ctx context.Context, client testpb.TestServiceClient, i int, ended *atomic.Int64) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		return err
	}
	for n := range 5 {
		want := strings.Repeat(fmt.Sprintf("%d/%d ", i, n), 1+(i*n)%2000)
		if err := stream.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: []byte(want)}}); err != nil {
			return err
		}
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if string(m.GetPayload().GetBody()) != want {
			return errors.New("another stream's message came back")
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if _, err := stream.Recv(); err != io.EOF {
		return fmt.Errorf("the end: %w", err)
	}
	ended.Add(1)
	return nil
}
