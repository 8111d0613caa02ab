package websocket

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gorilla "github.com/gorilla/websocket"
)

// TestWays asks everything through every way.
func TestWays(t *testing.T) {
	for _, w := range startWays(t) {
		t.Run(w.name, func(t *testing.T) {
			for _, c := range []struct {
				name string
				test func(*testing.T, *way)
			}{
				{"messages", messages},
				{"many at once", manyAtOnce},
				{"subprotocol", subprotocol},
				{"the client closes", clientCloses},
				{"the server closes", serverCloses},
				{"refused", refused},
				{"bytes beside the handshake", besideTheHandshake},
				{"the client ends first", clientEndsFirst},
				{"the server ends first", serverEndsFirst},
				{"the server dies", serverDies},
				{"the client is reset", clientReset},
				{"only websocket", onlyWebSocket},
				{"by HTTP/2", byHTTP2},
			} {
				t.Run(c.name, func(t *testing.T) { c.test(t, w) })
			}
		})
	}
}

// pattern is a message that no other part of it looks like.
func pattern(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b) // it does not fail
	return b
}

// messages of all kinds and sizes come back as they were, whoever speaks to whom.
func messages(t *testing.T, w *way) {
	for client, dial := range libraries {
		for _, server := range []string{"gorilla", "coder"} {
			t.Run(client+" to "+server, func(t *testing.T) {
				c := dial(t, w, "/"+server)
				for i, m := range [][][]byte{
					{[]byte("so ist es: 你好")},
					{nil},
					{pattern(1, 125)}, {pattern(2, 126)}, {pattern(3, 65535)}, {pattern(4, 65536)},
					{pattern(5, 1<<20)},
					{pattern(6, 3), nil, pattern(7, 700), pattern(8, 40_000), pattern(9, 1)}, // fragments
					{pattern(10, 1<<20), pattern(11, 1<<20)},
				} {
					binary := i > 0
					if err := c.write(binary, m...); err != nil {
						t.Fatalf("message %d: %v", i, err)
					}
					gotBinary, got, err := c.read()
					if err != nil || gotBinary != binary || !bytes.Equal(got, bytes.Join(m, nil)) {
						t.Fatalf("message %d: binary %v, %d bytes, %v", i, gotBinary, len(got), err)
					}
				}
				if err := c.ping(); err != nil {
					t.Error("ping:", err)
				}
			})
		}
	}
}

// manyAtOnce: nobody gets what was said to somebody else.
func manyAtOnce(t *testing.T, w *way) {
	const sockets, turns = 200, 20
	var all sync.WaitGroup
	everybody := make(chan struct{}) // closed when all are open
	var open sync.WaitGroup
	open.Add(sockets)
	for i := range sockets {
		all.Go(func() {
			d := gorilla.Dialer{TLSClientConfig: w.tls, HandshakeTimeout: 3 * patience}
			c, _, err := d.Dial(w.url("/gorilla"), nil)
			open.Done()
			if err != nil {
				t.Errorf("socket %d: %v", i, err)
				return
			}
			defer c.Close()
			_ = c.SetReadDeadline(time.Now().Add(3 * patience))
			<-everybody
			for n := range turns {
				m := append(fmt.Appendf(nil, "socket %d turn %d ", i, n), pattern(uint64(i), n*100)...)
				if err := c.WriteMessage(gorilla.BinaryMessage, m); err != nil {
					t.Errorf("socket %d: %v", i, err)
					return
				}
				if _, got, err := c.ReadMessage(); err != nil || !bytes.Equal(got, m) {
					t.Errorf("socket %d turn %d: %.40q, %v", i, n, got, err)
					return
				}
			}
		})
	}
	open.Wait()
	close(everybody)
	all.Wait()
}

// subprotocol: the offer and the choice are passed on, and other headers.
func subprotocol(t *testing.T, w *way) {
	for _, server := range []string{"gorilla", "coder"} {
		c, resp := w.gorilla(t, "/"+server, "mqtt", "chat.v1")
		if c.Subprotocol() != "chat.v1" || resp.Header.Get("X-App") != server {
			t.Errorf("%s: %q, %v", server, c.Subprotocol(), resp.Header)
		}
		if c, _ := w.gorilla(t, "/"+server, "mqtt"); c.Subprotocol() != "" {
			t.Errorf("%s chose %q", server, c.Subprotocol())
		}
	}
}

var closings = []struct {
	code   int
	reason string
}{{1000, ""}, {1000, "bye"}, {1001, "going away"}, {1008, "policy"}, {1011, "交"}, {3000, strings.Repeat("r", 123)}, {4999, ""}}

func clientCloses(t *testing.T, w *way) {
	for _, want := range closings {
		id := newID()
		c, _ := w.gorilla(t, "/gorilla?id="+id)
		if err := c.WriteMessage(gorilla.CloseMessage, gorilla.FormatCloseMessage(want.code, want.reason)); err != nil {
			t.Fatal(err)
		}
		_, _, err := c.ReadMessage()
		if got := new(gorilla.CloseError); !errors.As(err, &got) || got.Code != want.code {
			t.Errorf("the reply to %d is %v", want.code, err)
		}
		if got, err := new(gorilla.CloseError), ended(t, w, id); !errors.As(err, &got) || got.Code != want.code || got.Text != want.reason {
			t.Errorf("the server saw %v, want %d %q", err, want.code, want.reason)
		}
	}
}

func serverCloses(t *testing.T, w *way) {
	for _, want := range closings {
		c, _ := w.gorilla(t, "/closes?"+url.Values{"code": {fmt.Sprint(want.code)}, "reason": {want.reason}}.Encode())
		_, _, err := c.ReadMessage()
		if got := new(gorilla.CloseError); !errors.As(err, &got) || got.Code != want.code || got.Text != want.reason {
			t.Errorf("got %v, want %d %q", err, want.code, want.reason)
		}
	}
}

// refused is an ordinary answer, and the connection goes on.
func refused(t *testing.T, w *way) {
	s := w.raw(t)
	for range 2 {
		resp := s.say(t, request("/refuses"))
		body, err := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusForbidden || resp.Header.Get("X-Why") != "policy" || string(body) != "no sockets for you\n" || err != nil {
			t.Fatalf("%s %q %v", resp.Status, body, err)
		}
	}
	if resp := s.say(t, request("/raw")); resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp.Status)
	}
	s.hear(t, behind)
}

// besideTheHandshake: the server speaks in the same write as its 101, the client in
// the same write as its request.
func besideTheHandshake(t *testing.T, w *way) {
	early := string(pattern(1, 3000))
	s := w.raw(t)
	if resp := s.say(t, request("/raw")+early); resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "websocket" {
		t.Fatal(resp.Status, resp.Header)
	}
	s.hear(t, behind+early)
}

func clientEndsFirst(t *testing.T, w *way) {
	id := newID()
	s := w.raw(t)
	s.say(t, request("/raw?id="+id))
	s.hear(t, behind)
	much := string(pattern(2, 1<<20))
	sent := make(chan error, 1)
	go func() { _, err := io.WriteString(s, much); sent <- err }()
	s.hear(t, much)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	s.end(t)
	s.hear(t, lastWords)
	if n, err := s.in.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end: %d, %v", n, err)
	}
	if err := ended(t, w, id); err != nil {
		t.Errorf("the server saw %v", err)
	}
}

func serverEndsFirst(t *testing.T, w *way) {
	id := newID()
	s := w.raw(t)
	s.say(t, request("/first?id="+id))
	s.hear(t, behind)
	if n, err := s.in.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("after the end: %d, %v", n, err)
	}
	if _, err := io.WriteString(s, "still here"); err != nil {
		t.Fatal(err)
	}
	s.end(t)
	if err := ended(t, w, id); err != heard("still here") {
		t.Errorf("the server heard %v", err)
	}
}

var lastID atomic.Int64

// newID marks a socket.
func newID() string { return strconv.FormatInt(lastID.Add(1), 10) }

// ended is how the server saw the client end.
func ended(t *testing.T, w *way, id string) error {
	t.Helper()
	select {
	case err := <-w.app.end(id):
		return err
	case <-time.After(patience):
		t.Fatal("the server did not see the end")
		return nil
	}
}

// serverDies: nobody takes half a frame for a whole one, and a reset stays one.
func serverDies(t *testing.T, w *way) {
	for _, how := range []string{"reset", "close"} {
		c, _ := w.gorilla(t, "/dies?how="+how)
		if err := c.WriteMessage(gorilla.TextMessage, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		if kind, m, err := c.ReadMessage(); err == nil {
			t.Errorf("%s: message of kind %d: %q", how, kind, m)
		}
	}
	s := w.raw(t)
	s.say(t, request("/dies?how=reset"))
	if _, err := io.WriteString(s, "hello"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(s.in); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%d bytes, then %v; want a reset", len(b), err)
	}
}

// clientReset: the server is told by a reset.
func clientReset(t *testing.T, w *way) {
	id := newID()
	s := w.raw(t)
	s.say(t, request("/raw?id="+id))
	s.hear(t, behind)
	sock := s.Conn
	if secured, ok := sock.(*tls.Conn); ok {
		sock = secured.NetConn()
	}
	if err := errors.Join(sock.(*net.TCPConn).SetLinger(0), sock.Close()); err != nil {
		t.Fatal(err)
	}
	if err := ended(t, w, id); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server saw %v, want a reset", err)
	}
}

// onlyWebSocket is passed on: HTTP/2 above all would go past every filter.
func onlyWebSocket(t *testing.T, w *way) {
	const h2c = "HTTP2-Settings: AAMAAABkAAQAAP__\r\n"
	for _, fields := range []string{
		"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" + h2c,
		"Connection: upgrade,http2-settings\r\nUpgrade: H2C\r\n" + h2c,
		"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: websocket, h2c\r\n" + h2c,
		"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c, websocket\r\n" + h2c,
		"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n" + h2c,
		"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n" + h2c,
		"Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
		"Connection: Upgrade\r\nUpgrade: connect-udp\r\n",
		"Connection: Upgrade\r\nUpgrade: websocket/2\r\n",
		"Upgrade: websocket\r\n",
		"Connection: keep-alive\r\nUpgrade: h2c\r\n",
	} {
		s := w.raw(t)
		resp := s.say(t, "GET /anything HTTP/1.1\r\nHost: localhost\r\n"+fields+"\r\n")
		if resp.StatusCode == http.StatusBadRequest {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		if resp.StatusCode != 200 || string(body) != `HTTP/1.1 "" ""` || err != nil {
			t.Errorf("%q: %s %q %v", fields, resp.Status, body, err)
		}
	}
	for _, text := range []string{
		"GET /anything?protocol=h2c HTTP/1.1\r\nHost: localhost\r\n\r\n", // nothing was asked for
		request("/anything?protocol=h2c"),                                // something else was
	} {
		if resp := w.raw(t).say(t, text); resp.StatusCode != http.StatusBadGateway {
			t.Errorf("%.60q: the server switched to h2c, and the answer is %s", text, resp.Status)
		}
	}
	// A request with a body cannot become a socket.
	s := w.raw(t)
	resp := s.say(t, strings.Replace(request("/anything"), "GET", "POST", 1))
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
		t.Errorf("POST: %s %v", resp.Status, err)
	}
}
