package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weftmesh/weft"
)

// A tunnel that is asked for on a kept connection is as good as one on a new one.
func TestConnectOnKeptConnection(t *testing.T) {
	m := rawMesh(t, weft.TCP, echo(t, "hello\n"))
	m.addr = m.listen(&Listener{Direction: Outbound})
	m.known("nobody")
	c, r := m.raw("GET / HTTP/1.1\r\nHost: nobody\r\n\r\n")
	if resp, _ := m.read(r, "GET"); resp.StatusCode != 503 {
		t.Fatal(resp)
	}
	if _, err := io.WriteString(c, "CONNECT shop:5432 HTTP/1.1\r\nHost: shop:5432\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(r, &http.Request{Method: "CONNECT"})
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	talk(t, c, r, "hello\n")
	gone(t, m.proxy)
}

// RFC 8441 in front of an HTTP/1 server: bytes both ways, half-close, and the
// stream's reset ends the tunnel and nothing else.
func TestWebSocketOverHTTP2(t *testing.T) {
	m := newMesh(t, chat(t))
	t.Run("echo", func(t *testing.T) {
		f := openSocket(t, m)
		for _, line := range []string{"one\n", "two\n"} {
			if err := f.WriteData(1, false, []byte(line)); err != nil {
				t.Fatal(err)
			}
			got, err := f.next()
			if d, ok := got.(*http2.DataFrame); err != nil || !ok || string(d.Data()) != line {
				t.Fatalf("%v %v", got, err)
			}
		}
		if err := f.WriteData(1, true, []byte("last")); err != nil {
			t.Fatal(err)
		}
		if r, err := f.reply(1); err != nil || r.body != "last" || !r.ended {
			t.Errorf("%v %v", r, err)
		}
		settled(t, m.proxy)
	})
	t.Run("silence", func(t *testing.T) { // pings keep it open, but not every five minutes
		f := openSocket(t, m)
		<-time.After(20 * time.Millisecond) // a write that has not returned would have been waiting for six minutes
		m.proxy.mu.Lock()
		for c := range m.proxy.conns {
			c.expireIfDue(time.Now().Add(stallTimeout + time.Minute).UnixNano())
		}
		m.proxy.mu.Unlock()
		if err := f.WriteData(1, true, []byte("last")); err != nil {
			t.Fatal(err)
		}
		if r, err := f.reply(1); err != nil || r.body != "last" || !r.ended {
			t.Errorf("%v %v", r, err)
		}
	})
	t.Run("reset", func(t *testing.T) {
		f := openSocket(t, m)
		if err := f.WriteRSTStream(1, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
		settled(t, m.proxy)
		if err := f.ask(3, true, "GET", "/"); err != nil {
			t.Fatal(err)
		}
		if r, err := f.reply(3); err != nil || r.status != "426" {
			t.Errorf("the connection's next request: %v %v", r, err)
		}
	})
	t.Run("refused by a 200", func(t *testing.T) {
		m := newMesh(t, says(t, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
		f := dialFrames(t, m.addr)
		if err := f.head(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "shop", ":path", "/"); err != nil {
			t.Fatal(err)
		}
		if r, err := f.reply(1); err != nil || r.status != "502" || r.fields[reasonHeader] != "not_upgraded" {
			t.Errorf("%v %v", r, err)
		}
	})
	t.Run("one key", func(t *testing.T) {
		keys := make(chan string, 1)
		m := newMesh(t, peers(t, func(c net.Conn, r *bufio.Reader) {
			h, _ := hear(r)
			keys <- h.field("Sec-WebSocket-Key")
		}))
		f := dialFrames(t, m.addr)
		if err := f.head(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "shop", ":path", "/",
			"sec-websocket-key", "theirs"); err != nil {
			t.Fatal(err)
		}
		if key := <-keys; len(key) != 24 {
			t.Errorf("the application gets the key %q", key)
		}
	})
	t.Run("lost connection", func(t *testing.T) {
		f := openSocket(t, m)
		f.Close()
		gone(t, m.proxy)
	})
}

// An application that switches to what nobody asked for is not believed.
func TestSwitchToAnotherProtocol(t *testing.T) {
	for _, lines := range []string{"Connection: Upgrade\r\nUpgrade: h2c\r\n", "Upgrade: websocket\r\n", ""} {
		m := newMesh(t, says(t, "HTTP/1.1 101 Switching Protocols\r\n"+lines+"\r\n"))
		_, r := m.raw(upgradeRequest)
		if resp, body := m.read(r, "GET"); resp.StatusCode != 502 || resp.Header.Get(reasonHeader) != "bad_response" {
			t.Errorf("%q: %d %q", lines, resp.StatusCode, body)
		}
		settled(t, m.proxy)
	}
}
