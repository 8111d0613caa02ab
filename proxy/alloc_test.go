package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/telemetry/trace"
)

// In the steady state an exchange allocates nothing, tracing on, whatever is spoken
// on either side. Both ends are in this process, so they allocate nothing either.

// quiet1 is a server of HTTP/1 that answers whatever it reads.
func quiet1(t *testing.T) string {
	answer := []byte("HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello")
	return peers(t, func(c net.Conn, _ *bufio.Reader) {
		var b [4096]byte
		for {
			if _, err := c.Read(b[:]); err != nil {
				return
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	})
}

// frameReader gives the heads of frames, and nothing of what is in them.
type frameReader struct {
	r    *bufio.Reader
	head [9]byte
}

// next waits for a frame of the kind and returns its stream, flags and length.
func (f *frameReader) next(kind http2.FrameType) (id uint32, flags http2.Flags, err error) {
	for {
		if _, err := io.ReadFull(f.r, f.head[:]); err != nil {
			return 0, 0, err
		}
		h := f.head
		if _, err := f.r.Discard(int(h[0])<<16 | int(h[1])<<8 | int(h[2])); err != nil {
			return 0, 0, err
		}
		if http2.FrameType(h[3]) == kind {
			return uint32(h[5])<<24 | uint32(h[6])<<16 | uint32(h[7])<<8 | uint32(h[8]), http2.Flags(h[4]), nil
		}
	}
}

// stamp puts a stream's number into the frames that begin at the offsets.
func stamp(b []byte, id uint32, at ...int) []byte {
	for _, i := range at {
		b[i+5], b[i+6], b[i+7], b[i+8] = byte(id>>24), byte(id>>16), byte(id>>8), byte(id)
	}
	return b
}

// quiet2 is a server of HTTP/2 that answers each request's end.
func quiet2(t *testing.T) string {
	var out bytes.Buffer
	w := http2.NewFramer(&out, nil)
	_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: block(":status", "200", "server", "x", "content-type", "text/plain", "content-length", "5", "grpc-status", "0")})
	second := out.Len()
	_ = w.WriteData(1, true, []byte("hello"))
	window := out.Len()
	_ = w.WriteWindowUpdate(0, 100)
	return peers(t, func(c net.Conn, r *bufio.Reader) {
		answer := bytes.Clone(out.Bytes())
		if _, err := acceptFrames(c, r); err != nil {
			return
		}
		_, _ = c.Write([]byte{0, 0, 0, 4, 1, 0, 0, 0, 0}) // of its settings
		f := &frameReader{r: r}
		for {
			id, flags, err := f.next(http2.FrameHeaders)
			if err == nil && flags&http2.FlagHeadersEndStream == 0 {
				_, _, err = f.next(http2.FrameData)
			}
			if err != nil {
				return
			}
			if _, err := c.Write(stamp(answer, id, 0, second)[:window]); err != nil {
				return
			}
		}
	})
}

// once1 asks by HTTP/1.
func once1(t *testing.T, m *mesh, request string) func() { return onceAt1(t, m.addr, request) }

func onceAt1(t *testing.T, address, request string) func() {
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	out := []byte(request)
	var b [4096]byte
	return func() {
		if _, err := c.Write(out); err != nil {
			t.Fatal(err)
		}
		for n := 0; !bytes.HasSuffix(b[:n], []byte("hello")); {
			k, err := c.Read(b[n:])
			if n += k; err != nil {
				t.Fatal(n, err)
			}
		}
	}
}

// once2 asks by HTTP/2, with a body or without.
func once2(t *testing.T, m *mesh, method string) func() { return onceAt2(t, m.addr, method) }

func onceAt2(t *testing.T, address, method string) func() {
	f := dialFrames(t, address)
	_, _ = f.Conn.Write([]byte{0, 0, 0, 4, 1, 0, 0, 0, 0})
	var out bytes.Buffer
	w := newFramer(nil, nil)
	w.Framer = http2.NewFramer(&out, nil)
	fields := []string{"user-agent", "test", "accept", "*/*"}
	if method == "POST" {
		fields = append(fields, "content-type", "application/grpc", "te", "trailers")
	}
	_ = w.ask(1, method == "GET", method, "/api.Orders/Get", fields...)
	at := []int{0}
	if method != "GET" {
		at = append(at, out.Len())
		_ = w.WriteData(1, true, []byte("\x00\x00\x00\x00\x05hello"))
	}
	request := out.Bytes()
	r := &frameReader{r: bufio.NewReader(f.Conn)}
	id := uint32(1)
	return func() {
		if _, err := f.Conn.Write(stamp(request, id, at...)); err != nil {
			t.Fatal(err)
		}
		id += 2
		for {
			_, flags, err := r.next(http2.FrameData)
			if err != nil {
				t.Fatal(err)
			}
			if flags&http2.FlagDataEndStream != 0 {
				return
			}
		}
	}
}

// everything is a policy with all parts that are asked on each request.
const everything = `{"timeout":"5s","attemptTimeout":"2s","rateLimit":{"requests":1000000},"throttle":{},"adaptiveConcurrency":{},
	"bulkhead":{"maxConcurrentCalls":100},"retry":{},"circuitBreaker":{},"fallback":{"status":200}}`

func TestLanesAllocateNothing(t *testing.T) {
	if raceDetector {
		t.Skip("under the race detector sync.Pool forgets at random")
	}
	const get = "GET /api/orders/1?x=y HTTP/1.1\r\nHost: shop\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n"
	const post = "POST /api/orders/1?x=y HTTP/1.1\r\nHost: shop\r\nUser-Agent: test\r\nContent-Length: 5\r\n\r\nhello"
	const chunks = "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
	for _, lane := range []struct {
		name string
		app  weft.Protocol
		ask  func(*testing.T, *mesh) func()
	}{
		{"1 to 1", weft.HTTP, func(t *testing.T, m *mesh) func() { return once1(t, m, get) }},
		{"1 to 1, with a body", weft.HTTP, func(t *testing.T, m *mesh) func() { return once1(t, m, post) }},
		{"1 to 2", weft.HTTP2, func(t *testing.T, m *mesh) func() { return once1(t, m, get) }},
		{"1 to 2, with a body", weft.HTTP2, func(t *testing.T, m *mesh) func() { return once1(t, m, post) }},
		{"2 to 1", weft.HTTP, func(t *testing.T, m *mesh) func() { return once2(t, m, "GET") }},
		{"2 to 1, with a body", weft.HTTP, func(t *testing.T, m *mesh) func() { return once2(t, m, "PUT") }},
		{"2 to 2", weft.HTTP2, func(t *testing.T, m *mesh) func() { return once2(t, m, "GET") }},
		{"2 to 2, gRPC", weft.HTTP2, func(t *testing.T, m *mesh) func() { return once2(t, m, "POST") }},
		{"1 to 2, chunks", weft.HTTP2, func(t *testing.T, m *mesh) func() { return once1(t, m, chunks) }},
	} {
		for name, policy := range map[string]string{lane.name: "", lane.name + ", guarded": everything} {
			t.Run(name, func(t *testing.T) {
				m := newMesh(t)
				m.proxy.sample = trace.NewSampler(1)
				if lane.app == weft.HTTP {
					m.endpoints(quiet1(t))
				} else {
					m.endpoints(quiet2(t))
				}
				if policy != "" {
					m.policy(policy)
				}
				m.speak(lane.app)
				once := lane.ask(t, m)
				for range 300 {
					once()
				}
				if n := testing.AllocsPerRun(1000, once); n > 0 {
					t.Errorf("%v allocations a request", n)
				}
			})
		}
	}
}
