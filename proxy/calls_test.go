package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/proxy"
)

// gRPC's own library on both sides of a pair of sidecars.

type text = wrapperspb.StringValue

// words is a service of all four kinds of calls. What it does is what it is told.
type words struct {
	began chan string // of calls that wait
	ended chan error  // what ended them
}

// obey does what a word says.
func (s *words) obey(ctx context.Context, word string) (*text, error) {
	switch {
	case word == "fail":
		st, err := status.New(codes.FailedPrecondition, "not today: 100% \n sure").WithDetails(wrapperspb.String("detail"))
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	case word == "wait":
		s.began <- word
		<-ctx.Done()
		s.ended <- ctx.Err()
		return nil, status.FromContextError(ctx.Err()).Err()
	case strings.HasPrefix(word, "big"):
		return wrapperspb.String(strings.Repeat("x", 3<<20)), nil
	}
	return wrapperspb.String(strings.ToUpper(word)), nil
}

func (s *words) unary(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	in := new(text)
	if err := decode(in); err != nil {
		return nil, err
	}
	md, _ := metadata.FromIncomingContext(ctx)
	_ = grpc.SetHeader(ctx, metadata.Pairs("seen", strings.Join(md.Get("say"), "&")))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("last", "word", "bytes-bin", "\x00\xff"))
	return s.obey(ctx, in.Value)
}

// stream answers each word, and at the end says how many there were.
func (s *words) stream(_ any, st grpc.ServerStream) error {
	for n := 0; ; n++ {
		in := new(text)
		if err := st.RecvMsg(in); err == io.EOF {
			return st.SendMsg(wrapperspb.String(fmt.Sprint(n)))
		} else if err != nil {
			return err
		}
		out, err := s.obey(st.Context(), in.Value)
		if err != nil {
			return err
		}
		if err := st.SendMsg(out); err != nil {
			return err
		}
	}
}

var wordsDesc = grpc.ServiceDesc{
	ServiceName: "shop.Words", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(srv any, ctx context.Context, decode func(any) error, i grpc.UnaryServerInterceptor) (any, error) {
		return srv.(*words).unary(nil, ctx, decode, i)
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, ClientStreams: true, Handler: func(srv any, st grpc.ServerStream) error {
		return srv.(*words).stream(nil, st)
	}}},
}

// serveWords runs the service until the test ends or stop is called.
func serveWords(t *testing.T) (address string, s *words, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = &words{began: make(chan string, 100), ended: make(chan error, 100)}
	server := grpc.NewServer()
	server.RegisterService(&wordsDesc, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	stop = sync.OnceFunc(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return ln.Addr().String(), s, stop
}

// dialWords opens a client's connection.
func dialWords(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func say(ctx context.Context, c *grpc.ClientConn, word string, opts ...grpc.CallOption) (string, error) {
	out := new(text)
	err := c.Invoke(ctx, "/shop.Words/Unary", wrapperspb.String(word), out, append(opts, grpc.MaxCallRecvMsgSize(8<<20))...)
	return out.Value, err
}

func converse(t *testing.T, ctx context.Context, c *grpc.ClientConn) grpc.ClientStream {
	t.Helper()
	st, err := c.NewStream(ctx, &wordsDesc.Streams[0], "/shop.Words/Stream")
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestCallsPassAPairOfSidecars(t *testing.T) {
	app, _, _ := serveWords(t)
	pr := newPair(t, app, weft.GRPC)
	c := dialWords(t, pr.address)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()

	var head, tail metadata.MD
	got, err := say(metadata.AppendToOutgoingContext(ctx, "say", "a", "say", "b"), c, "hello", grpc.Header(&head), grpc.Trailer(&tail))
	if err != nil || got != "HELLO" || strings.Join(head.Get("seen"), "") != "a&b" || strings.Join(tail.Get("last"), "") != "word" || tail.Get("bytes-bin")[0] != "\x00\xff" {
		t.Errorf("%q %v %v %v", got, head, tail, err)
	}
	if got, err := say(ctx, c, "big"); err != nil || len(got) != 3<<20 {
		t.Errorf("3 MiB: %d %v", len(got), err)
	}
	_, err = say(ctx, c, "fail", grpc.Trailer(&tail))
	st := status.Convert(err)
	if st.Code() != codes.FailedPrecondition || st.Message() != "not today: 100% \n sure" || len(st.Details()) != 1 {
		t.Errorf("%v, details %v", err, st.Details())
	}
	if err := c.Invoke(ctx, "/shop.Words/Nothing", wrapperspb.String(""), new(text)); status.Code(err) != codes.Unimplemented { // trailers only
		t.Errorf("a method that is not there: %v", err)
	}

	conversation := converse(t, ctx, c)
	for _, word := range []string{"one", "two", "three"} { // each is answered before the next is said
		if err := conversation.SendMsg(wrapperspb.String(word)); err != nil {
			t.Fatal(err)
		}
		in := new(text)
		if err := conversation.RecvMsg(in); err != nil || in.Value != strings.ToUpper(word) {
			t.Fatalf("%q %v", in.Value, err)
		}
	}
	_ = conversation.CloseSend()
	in := new(text)
	if err := conversation.RecvMsg(in); err != nil || in.Value != "3" {
		t.Errorf("%q %v", in.Value, err)
	}
	if err := conversation.RecvMsg(in); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	pr.settled()
	pr.counted("outbound", "Unary", codes.OK, 2)
	pr.counted("outbound", "Unary", codes.FailedPrecondition, 1)
	pr.counted("inbound", "Unary", codes.FailedPrecondition, 1)
	pr.counted("outbound", "Stream", codes.OK, 1)
	pr.counted("inbound", "Stream", codes.OK, 1)
}

// counted waits until the metrics say how often a call has ended so.
func (pr *pair) counted(direction, method string, code codes.Code, want float64) {
	pr.t.Helper()
	proxy.Until(pr.t, "", func() string {
		got := 0.0
		for _, f := range pr.metrics.Gather() {
			for _, s := range f.Samples {
				has := map[string]string{}
				for _, l := range s.Labels {
					has[l.Name] = l.Value
				}
				if f.Name == "weft_grpc_requests_total" && has["direction"] == direction && has["method"] == method && has["grpc_status"] == fmt.Sprint(uint32(code)) {
					got += s.Value
				}
			}
		}
		if got != want {
			return fmt.Sprintf("%v of %s calls of %s with %v were counted, want %v", got, direction, method, code, want)
		}
		return ""
	})
}

func TestDeadlinesAndCancellationOfCalls(t *testing.T) {
	app, s, _ := serveWords(t)
	pr := newPair(t, app, weft.GRPC)
	c := dialWords(t, pr.address)

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := say(ctx, c, "wait"); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a deadline: %v", err)
	}
	<-s.began
	if err := <-s.ended; err == nil {
		t.Error("the application was not told")
	}

	ctx, cancel = context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := say(ctx, c, "wait")
		failed <- err
	}()
	<-s.began
	cancel()
	if err := <-failed; status.Code(err) != codes.Canceled {
		t.Errorf("cancelled: %v", err)
	}
	if err := <-s.ended; err != context.Canceled {
		t.Errorf("the application was told %v", err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	conversation := converse(t, ctx, c)
	if err := conversation.SendMsg(wrapperspb.String("wait")); err != nil {
		t.Fatal(err)
	}
	<-s.began
	cancel()
	if err := <-s.ended; err != context.Canceled {
		t.Errorf("the application was told %v", err)
	}
	pr.settled()
	pr.counted("outbound", "Stream", codes.Canceled, 1)
}

// The route's own timeout is one that the client does not know of.
func TestRouteTimeoutOfCalls(t *testing.T) {
	app, s, _ := serveWords(t)
	pr := newPair(t, app, weft.GRPC, func(pr *pair) { pr.timeout = 100 * time.Millisecond })
	c := dialWords(t, pr.address)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := say(ctx, c, "wait"); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a call: %v", err)
	}
	conversation := converse(t, ctx, c)
	_ = conversation.SendMsg(wrapperspb.String("hello"))
	in := new(text)
	if err := conversation.RecvMsg(in); err != nil || in.Value != "HELLO" {
		t.Errorf("%q %v", in.Value, err)
	}
	if err := conversation.RecvMsg(in); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a conversation: %v", err)
	}
	<-s.began
	<-s.ended
	pr.settled()
}

func TestCallsThatGoNowhere(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	app, s, stop := serveWords(t)

	t.Run("denied", func(t *testing.T) {
		pr := newPair(t, app, weft.GRPC, func(pr *pair) { pr.policies = []*weft.AuthorizationPolicy{denyAll} })
		c := dialWords(t, pr.address)
		if _, err := say(ctx, c, "hello"); status.Code(err) != codes.PermissionDenied {
			t.Errorf("a call: %v", err)
		}
		if err := converse(t, ctx, c).RecvMsg(new(text)); status.Code(err) != codes.PermissionDenied {
			t.Errorf("a conversation: %v", err)
		}
		pr.settled()
	})
	t.Run("no endpoint", func(t *testing.T) {
		pr := newPair(t, app, weft.GRPC)
		pr.endpoints()
		c := dialWords(t, pr.address)
		if _, err := say(ctx, c, "hello"); status.Code(err) != codes.Unavailable {
			t.Errorf("a call: %v", err)
		}
		if err := converse(t, ctx, c).RecvMsg(new(text)); status.Code(err) != codes.Unavailable {
			t.Errorf("a conversation: %v", err)
		}
		pr.settled()
	})
	t.Run("dead sidecar", func(t *testing.T) {
		dead, _ := net.Listen("tcp", "127.0.0.1:0")
		dead.Close()
		pr := newPair(t, app, weft.GRPC)
		pr.endpoints(dead.Addr().String(), pr.inbound)
		c := dialWords(t, pr.address)
		for range 10 {
			if got, err := say(ctx, c, "hello"); err != nil || got != "HELLO" {
				t.Errorf("%q %v", got, err)
			}
		}
		pr.settled()
	})
	t.Run("killed in the middle", func(t *testing.T) {
		pr := newPair(t, app, weft.GRPC)
		c := dialWords(t, pr.address)
		failed := make(chan error, 2)
		go func() {
			_, err := say(ctx, c, "wait")
			failed <- err
		}()
		idle := converse(t, ctx, c)
		_ = idle.SendMsg(wrapperspb.String("hello"))
		if err := idle.RecvMsg(new(text)); err != nil {
			t.Fatal(err)
		}
		silent := converse(t, ctx, c) // its server has not said a word
		_ = silent.SendMsg(wrapperspb.String("wait"))
		<-s.began
		<-s.began
		stop()
		if err := <-failed; status.Code(err) != codes.Unavailable {
			t.Errorf("a call: %v", err)
		}
		if err := idle.RecvMsg(new(text)); status.Code(err) != codes.Unavailable {
			t.Errorf("a conversation: %v", err)
		}
		if err := silent.RecvMsg(new(text)); status.Code(err) != codes.Unavailable {
			t.Errorf("a conversation without an answer: %v", err)
		}
		if _, err := say(ctx, c, "hello"); status.Code(err) != codes.Unavailable {
			t.Errorf("a call to nobody: %v", err)
		}
		pr.settled()
	})
}
