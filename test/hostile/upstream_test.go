package hostile

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/test/frames"
	"github.com/weftmesh/weft/test/world"
)

// liar is an upstream that answers each connection's first request with bytes that
// are set beforehand, and says "ok" when none are.
type liar struct {
	address string
	mu      sync.Mutex
	lie     string
}

func startLiar(t *testing.T) *liar {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &liar{address: ln.Addr().String()}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { defer c.Close(); l.serve(c) })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); serving.Wait() })
	return l
}

const truth = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"

func (l *liar) serve(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, req.Body) // whatever it is, it is answered
	l.mu.Lock()
	say := l.lie
	l.mu.Unlock()
	if req.URL.Path != "/lie" {
		say = truth
	}
	_, _ = io.WriteString(c, say) // the gateway may have gone
}

func (l *liar) tell(lie string) { l.mu.Lock(); defer l.mu.Unlock(); l.lie = lie }

// lies are answers that are none. Those that begin well are cut off in the middle;
// the others must become a 502 that says why.
var lies = []struct {
	name, answer string
	begun        bool // the head is right: the client has it when the rest turns out wrong
}{
	{"nonsense", "what do you want?\r\n\r\n", false},
	{"another protocol", "SSH-2.0-OpenSSH_9.2\r\n", false},
	{"TLS", "\x15\x03\x01\x00\x02\x02\x16", false},
	{"HTTP/2", "\x00\x00\x00\x04\x00\x00\x00\x00\x00", false},
	{"HTTP/2.0 as text", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", false},
	{"a status of two digits", "HTTP/1.1 99 No\r\nContent-Length: 0\r\n\r\n", false},
	{"a status of four digits", "HTTP/1.1 1000 No\r\nContent-Length: 0\r\n\r\n", false},
	{"a status of words", "HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n", false},
	{"a head by LF", "HTTP/1.1 200 OK\nContent-Length: 0\n\n", false},
	{"NUL in a value", "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n", false},
	{"CR in a value", "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n", false},
	{"a folded line", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n", false},
	{"a space before the colon", "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello", false},
	{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", false},
	{"a length of +5", "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", false},
	{"a length and chunks", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false},
	{"an unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello", false},
	{"a head without an end", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 100_000), false},
	{"5,000 fields", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: a\r\n", 5000) + "\r\n", false},
	{"a head that is cut off", "HTTP/1.1 200 OK\r\nContent-Le", false},
	{"101 that nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nbytes", false},
	{"endless 100", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 5000), false},
	{"a body that is cut off", "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello", true},
	{"chunks that are cut off", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", true},
	{"a chunk size of nonsense", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\nhello\r\n0\r\n\r\n", true},
	{"a chunk that is too long", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n", true},
}

func TestLies(t *testing.T) {
	l := startLiar(t)
	w := world.New(t)
	w.Register("app", "app-1", l.address)
	w.Apply(world.Everything("app"))
	// One endpoint that lies is not to be taken out for it: there is no other.
	w.Apply("apiVersion: networking.istio.io/v1beta1\nkind: DestinationRule\nmetadata: {name: app}\nspec:\n  host: app\n  trafficPolicy:\n" +
		"    outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 0}\n")
	g := w.Gateway("--access-log", "off")
	world.Eventually(t, 10*time.Second, "the gateway", world.Answers("http://"+g.HTTP+"/"))
	for _, c := range lies {
		t.Run(c.name, func(t *testing.T) {
			l.tell(c.answer)
			t.Run("HTTP/1", func(t *testing.T) { lieOverHTTP1(t, g.HTTP, c.begun) })
			t.Run("HTTP/2", func(t *testing.T) { lieOverHTTP2(t, g.HTTP, c.begun) })
		})
	}
}

// lieOverHTTP1 asks for a lie and then for the truth.
func lieOverHTTP1(t *testing.T, address string, begun bool) {
	conn := dialTCP(t, address)
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, "GET /lie HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	resp, err := readFinal(in)
	if err != nil {
		if !begun {
			t.Errorf("no answer: %v", err)
		}
		return
	}
	body, err := io.ReadAll(resp.Body)
	if begun {
		// 502 is right, too: nothing of the answer has been sent yet.
		if err == nil && resp.StatusCode != http.StatusBadGateway {
			t.Errorf("%s %q came as if it were whole", resp.Status, body)
		}
		return
	}
	if err != nil || resp.StatusCode != http.StatusBadGateway || resp.Header.Get("x-weft-reason") == "" {
		t.Errorf("got %s, reason %q, %v", resp.Status, resp.Header.Get("x-weft-reason"), err)
	}
	if resp.Close {
		return
	}
	if _, err := io.WriteString(conn, "GET /truth HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err = readFinal(in)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "ok" {
		t.Errorf("the next answer on the connection is %s %q, %v", resp.Status, body, err)
	}
}

// readFinal reads a response and drops the informational ones before it.
func readFinal(in *bufio.Reader) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
}

// lieOverHTTP2 does the same on streams of one connection, which must survive.
func lieOverHTTP2(t *testing.T, address string, begun bool) {
	c, err := frames.Dial(address, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := errors.Join(c.Request(1, true, "GET", "/lie"), c.Request(3, true, "GET", "/truth")); err != nil {
		t.Fatal(err)
	}
	streams := map[uint32]*frames.Message{}
	for _, id := range []uint32{1, 5} {
		if id == 5 {
			if err := c.Request(5, true, "GET", "/truth"); err != nil {
				t.Fatal(err)
			}
		}
		if streams[id], err = c.Response(id); err != nil {
			t.Fatalf("stream %d: %v", id, err)
		}
	}
	lie := streams[1]
	switch {
	case begun && lie.Reset == nil && lie.Get(":status") != "502":
		t.Errorf("%s %q came as if it were whole", lie.Get(":status"), lie.Body)
	case !begun && (lie.Get(":status") != "502" || lie.Get("x-weft-reason") == ""):
		t.Errorf("got %v, reset %v", lie.Head, lie.Reset)
	}
	if string(streams[5].Body) != "ok" {
		t.Errorf("the next answer on the connection is %v %q", streams[5].Head, streams[5].Body)
	}
}
