package grpc

import (
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weftmesh/weft/test/frames"
	"github.com/weftmesh/weft/test/world"
)

// What a library would do by itself is done here by hand, so that only weft can
// have done it.

// rawServer answers readiness calls (EmptyCall), and gives everything else to
// serve, with the request's stream. The connection reads on afterwards; what
// happens to the stream is sent to fates.
type rawServer struct {
	address string
	fates   chan string // of streams that serve did not end: "RST_STREAM CANCEL", "closed"
}

func startRaw(t *testing.T, serve func(c *frames.Conn, stream uint32, head *http2.MetaHeadersFrame) error) *rawServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &rawServer{address: ln.Addr().String(), fates: make(chan string, 100)}
	var serving sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	serving.Go(func() {
		for {
			sock, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, sock)
			mu.Unlock()
			serving.Go(func() { defer sock.Close(); s.run(sock, serve) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for _, sock := range open {
			_ = sock.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return s
}

func (s *rawServer) run(sock net.Conn, serve func(*frames.Conn, uint32, *http2.MetaHeadersFrame) error) {
	c, err := frames.Accept(sock)
	if err != nil {
		return
	}
	for {
		f, err := c.Next()
		var slow net.Error
		if errors.As(err, &slow) && slow.Timeout() {
			continue
		}
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if strings.HasSuffix(f.PseudoValue("path"), "/EmptyCall") {
				err = errors.Join(c.Headers(f.StreamID, false, ":status", "200", "content-type", "application/grpc"),
					c.WriteData(f.StreamID, false, make([]byte, 5)), c.Headers(f.StreamID, true, "grpc-status", "0"))
			} else {
				err = serve(c, f.StreamID, f)
			}
			if err != nil {
				return
			}
		case *http2.RSTStreamFrame:
			s.fates <- "RST_STREAM " + f.ErrCode.String()
		}
	}
}

// rawDial opens a connection that belongs to the test.
func rawDial(t *testing.T, address string) *frames.Conn {
	t.Helper()
	c, err := frames.Dial(address, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// call sends a gRPC call with an empty message.
func call(t *testing.T, c *frames.Conn, stream uint32, pairs ...string) *frames.Message {
	t.Helper()
	if err := errors.Join(c.Request(stream, false, "POST", "/grpc.testing.TestService/UnaryCall",
		append([]string{"content-type", "application/grpc", "te", "trailers"}, pairs...)...),
		c.WriteData(stream, true, make([]byte, 5))); err != nil {
		t.Fatal(err)
	}
	r, err := c.Response(stream)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTheProxyEnforcesDeadlines: neither client nor server ends the call.
func TestTheProxyEnforcesDeadlines(t *testing.T) {
	told := make(chan string, 10)
	app := startRaw(t, func(_ *frames.Conn, _ uint32, head *http2.MetaHeadersFrame) error {
		for _, f := range head.Fields {
			if f.Name == "grpc-timeout" {
				told <- f.Value
			}
		}
		return nil
	})
	ways(t, []string{app.address}, func(t *testing.T, w *world.World, door string) {
		c := rawDial(t, door)
		for i, timeout := range []string{"700m", "1S", "400000u"} {
			began := time.Now()
			r := call(t, c, uint32(2*i+1), "grpc-timeout", timeout)
			if r.Get(":status") != "200" || r.Get("grpc-status")+r.Trailer("grpc-status") != "4" {
				t.Errorf("%s: got %v %v %v, want DEADLINE_EXCEEDED (4)", timeout, r.Head, r.Trailers, r.Reset)
			}
			if took := time.Since(began); took < 300*time.Millisecond || took > 8*time.Second {
				t.Errorf("%s: answered after %s", timeout, took)
			}
			if got := within(t, told); got == "" {
				t.Error("the server was told no deadline")
			}
			if fate := within(t, app.fates); fate != "RST_STREAM CANCEL" {
				t.Errorf("%s: the server's stream: %s, want RST_STREAM CANCEL", timeout, fate)
			}
		}
	})
}

// TestBadDeadlines are refused, or ignored, but never a reason to hang or to break
// the connection.
func TestBadDeadlines(t *testing.T) {
	app := startRaw(t, func(c *frames.Conn, stream uint32, _ *http2.MetaHeadersFrame) error {
		return c.Headers(stream, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "0")
	})
	ways(t, []string{app.address}, func(t *testing.T, w *world.World, door string) {
		c := rawDial(t, door)
		for i, timeout := range []string{"", "S", "-1S", "1", "1x", "123456789S", "1.5S", "99999999H"} {
			r := call(t, c, uint32(2*i+1), "grpc-timeout", timeout)
			if r.Get(":status") == "" && r.Reset == nil {
				t.Errorf("%q: got %+v", timeout, r)
			}
		}
	})
}

// TestTrailersOnly stays one HEADERS frame: a status in it and one behind a body
// are different things to a client that decides about a retry.
func TestTrailersOnly(t *testing.T) {
	app := startRaw(t, func(c *frames.Conn, stream uint32, _ *http2.MetaHeadersFrame) error {
		return c.Headers(stream, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "9", "grpc-message", "not%20now")
	})
	ways(t, []string{app.address}, func(t *testing.T, w *world.World, door string) {
		r := call(t, rawDial(t, door), 1)
		if r.Frames != 1 || r.Get("grpc-status") != "9" || r.Get("grpc-message") != "not%20now" || r.Trailers != nil {
			t.Errorf("%d frames, head %v, trailers %v", r.Frames, r.Head, r.Trailers)
		}
	})
}

// TestTrailersBehindABody come as trailers, and nothing between is lost or joined.
func TestTrailersBehindABody(t *testing.T) {
	body := make([]byte, 30_000)
	app := startRaw(t, func(c *frames.Conn, stream uint32, _ *http2.MetaHeadersFrame) error {
		return errors.Join(c.Headers(stream, false, ":status", "200", "content-type", "application/grpc", "x-metadata-bin", "AAEC"),
			c.WriteData(stream, false, body[:10_000]), c.WriteData(stream, false, body[10_000:20_000]), c.WriteData(stream, false, body[20_000:]),
			c.Headers(stream, true, "grpc-status", "0", "x-sum-bin", "AQID"))
	})
	ways(t, []string{app.address}, func(t *testing.T, w *world.World, door string) {
		r := call(t, rawDial(t, door), 1)
		if r.Get("x-metadata-bin") != "AAEC" || len(r.Body) != len(body) || r.Trailer("grpc-status") != "0" || r.Trailer("x-sum-bin") != "AQID" || r.Get("grpc-status") != "" {
			t.Errorf("head %v, %d bytes, trailers %v", r.Head, len(r.Body), r.Trailers)
		}
	})
}
