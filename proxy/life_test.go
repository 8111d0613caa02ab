package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weftmesh/weft"
)

// silent is a server that answers the first requests of each connection and then
// no more; each that it does not answer is told.
func silent(t testing.TB, answers int) (address string, asked chan struct{}) {
	asked = make(chan struct{}, 100)
	return peers(t, func(c net.Conn, r *bufio.Reader) {
		for n := 0; ; n++ {
			if _, err := hear(r); err != nil {
				return
			}
			if n >= answers {
				asked <- struct{}{}
				continue
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	}), asked
}

// Close ends what waits for an upstream, however it came to wait.
func TestCloseEndsWhatIsInFlight(t *testing.T) {
	const get, post = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n", "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\nok"
	for name, requests := range map[string][]string{
		"first request":           {get},
		"later request, in place": {get, get},
		"with a body":             {get, post},
		"with half a body":        {"POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			up, asked := silent(t, len(requests)-1)
			m := newMesh(t, up)
			c, r := m.raw("")
			for i, request := range requests {
				if _, err := io.WriteString(c, request); err != nil {
					t.Fatal(err)
				}
				if i < len(requests)-1 {
					m.read(r, "GET")
				}
			}
			if name != "with half a body" {
				<-asked
			}
			within(t, "Close", m.proxy.Close)
		})
	}
	t.Run("HTTP/2", func(t *testing.T) {
		up, asked := silent(t, 0)
		m := newMesh(t, up)
		f := dialFrames(t, m.addr)
		for id := uint32(1); id < 20; id += 2 {
			if err := f.ask(id, id%4 == 1, "POST", "/"); err != nil {
				t.Fatal(err)
			}
		}
		<-asked
		within(t, "Close", m.proxy.Close)
	})
	t.Run("handshake", func(t *testing.T) {
		m := newMesh(t)
		for range 5 {
			m.raw("")
		}
		within(t, "Close", m.proxy.Close)
	})
	t.Run("connecting", func(t *testing.T) { // TCP is there, TLS does not answer
		called := make(chan struct{}, 10)
		m := newMeshOf(t, Config{ClientTLS: func(weft.Identity, ...string) *tls.Config { return &tls.Config{InsecureSkipVerify: true} }},
			peers(t, func(c net.Conn, r *bufio.Reader) { called <- struct{}{}; _, _ = io.Copy(io.Discard, r) }))
		m.svc.Endpoints[0].Identity = "spiffe://cluster.local/ns/default/sa/shop"
		m.publish()
		m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
		f := dialFrames(t, m.addr)
		for id := uint32(1); id < 9; id += 2 {
			if err := f.ask(id, true, "GET", "/"); err != nil {
				t.Fatal(err)
			}
		}
		<-called
		<-called
		began := time.Now()
		within(t, "Close", m.proxy.Close)
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("Close took %v", d)
		}
	})
	t.Run("detection", func(t *testing.T) {
		m := rawMesh(t, "", peers(t, func(c net.Conn, r *bufio.Reader) { _, _ = r.ReadByte() }))
		for range 5 {
			m.raw("")
		}
		until(t, "", func() string {
			if m.proxy.Connections() < 5 {
				return "not all connections are there"
			}
			return ""
		})
		within(t, "Close", m.proxy.Close)
	})
}

// A connection that has not sent a request yet when a drain begins may have one on
// the way; but it does not hold the drain up.
func TestDrainAndNewConnections(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	m := newMesh(t, up.URL)
	late, lateR := m.raw("")
	for range 20 {
		m.raw("")
	}
	until(t, "", func() string {
		if m.proxy.Connections() < 21 {
			return "not all connections are there"
		}
		return ""
	})
	drained := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		drained <- m.proxy.Drain(ctx)
	}()
	until(t, "", func() string {
		if !m.proxy.draining.Load() {
			return "the drain does not begin"
		}
		return ""
	})
	if _, err := io.WriteString(late, "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello"); err != nil {
		t.Fatal(err)
	}
	if resp, body := m.read(lateR, "POST"); resp.StatusCode != 200 || body != "hello" || !resp.Close {
		t.Errorf("%d %q, close %v", resp.StatusCode, body, resp.Close)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// Requests that arrive in the very moment in which the connection is told to end
// for being idle are answered, or it ended before them: never is one read and
// dropped.
func TestDrainMeetsRequests(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	for i := range 30 {
		m := newMesh(t, up.URL)
		c, r := m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
		m.read(r, "GET")
		go func() {
			<-time.After(time.Duration(i*10) * time.Microsecond)
			_ = m.proxy.Drain(t.Context())
		}()
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\n"); err != nil {
			continue
		}
		read := func() bool { // the head was read by the proxy
			m.proxy.mu.Lock()
			defer m.proxy.mu.Unlock()
			for c := range m.proxy.conns {
				if c.phase.Load() == phaseBusy {
					return true
				}
			}
			return false
		}
		for end := time.Now().Add(3 * time.Millisecond); !read() && time.Now().Before(end); {
		}
		if !read() {
			continue
		}
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		if _, body := m.read(r, "POST"); body != "hello" {
			t.Errorf("%q", body)
		}
	}
}

func TestCloseAndDrainWithTunnels(t *testing.T) {
	tunnels := map[string]func(t *testing.T, m *mesh){
		"WebSocket": func(t *testing.T, m *mesh) {
			_, r := m.raw(upgradeRequest)
			if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 101 {
				t.Fatal(resp, err)
			}
		},
		"WebSocket over HTTP/2": func(t *testing.T, m *mesh) { openSocket(t, m) },
		"CONNECT": func(t *testing.T, m *mesh) {
			m.addr = m.listen(&Listener{Direction: Outbound})
			_, r := m.raw("CONNECT shop:1 HTTP/1.1\r\nHost: shop:1\r\n\r\n")
			if resp, err := http.ReadResponse(r, &http.Request{Method: "CONNECT"}); err != nil || resp.StatusCode != 200 {
				t.Fatal(resp, err)
			}
		},
		"raw": func(t *testing.T, m *mesh) {
			m.speak(weft.TCP)
			_, r := m.raw(upgradeRequest)
			if _, err := r.ReadByte(); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, open := range tunnels {
		t.Run(name, func(t *testing.T) {
			m := rawMesh(t, weft.HTTP, chat(t))
			open(t, m)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if err := m.proxy.Drain(ctx); weft.KindOf(err) != weft.Unavailable {
				t.Errorf("a drain with an open tunnel ends when its time is over, with %v", err)
			}
			within(t, "Close", m.proxy.Close)
			if wrong := m.proxy.books(); wrong != "" {
				t.Error(wrong)
			}
		})
	}
}

// openSocket opens a WebSocket on stream 1 and reads what the server says first.
func openSocket(t *testing.T, m *mesh) *framer {
	t.Helper()
	f := dialFrames(t, m.addr)
	if err := f.head(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "shop", ":path", "/chat",
		"sec-websocket-version", "13"); err != nil {
		t.Fatal(err)
	}
	head, err := f.next()
	if err != nil {
		t.Fatal(err)
	}
	if h, ok := head.(*http2.MetaHeadersFrame); !ok || h.PseudoValue("status") != "200" || h.StreamEnded() {
		t.Fatalf("the WebSocket does not open: %v", head)
	}
	data, err := f.next()
	if d, ok := data.(*http2.DataFrame); err != nil || !ok || string(d.Data()) != "left over\n" {
		t.Fatalf("%v %v", data, err)
	}
	return f
}
