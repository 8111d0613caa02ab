package websocket

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"

	"github.com/weftmesh/weft/test/world"
)

func TestMain(m *testing.M) { world.Main(m) }

// patience bounds whatever a test waits for.
const patience = 10 * time.Second

// way is what stands between a client and the app.
type way struct {
	name    string
	address string
	tls     *tls.Config // nil: plain text
	app     *app
}

func (w *way) url(path string) string {
	if w.tls != nil {
		return "wss://" + w.address + path
	}
	return "ws://" + w.address + path
}

// startWays starts a world with every way in it.
func startWays(t *testing.T) []*way {
	t.Helper()
	a := startApp(t)
	w := world.New(t)
	w.Register("plain", "plain-1", a.address)
	w.Apply(world.Everything("plain"))
	certificate := world.NewCertificate(t)
	gateway := w.Gateway("--access-log", "off", "--https", "127.0.0.1:0", "--cert", certificate.Cert, "--key", certificate.Key)
	w.Sidecar("meshed", world.Port(t, a.address), "--access-log", "off")
	_, door := w.Caller("tests", "meshed", "--access-log", "off")
	world.Eventually(t, patience, "the gateway", world.Answers("http://"+gateway.HTTP+"/"))
	world.Eventually(t, patience, "the sidecars", world.Answers("http://"+door+"/"))
	return []*way{
		{"gateway", gateway.HTTP, nil, a},
		{"gateway-tls", gateway.HTTPS, &tls.Config{RootCAs: certificate.Pool, ServerName: "localhost"}, a},
		{"sidecars", door, nil, a},
	}
}

// raw opens a connection that can end one direction.
func (w *way) raw(t *testing.T) *socket {
	t.Helper()
	c, err := net.DialTimeout("tcp", w.address, patience)
	if err != nil {
		t.Fatal(err)
	}
	if w.tls != nil {
		c = tls.Client(c, w.tls)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return &socket{Conn: c, in: bufio.NewReader(c)}
}

// socket is a raw client.
type socket struct {
	net.Conn
	in *bufio.Reader
}

func (s *socket) end(t *testing.T) {
	t.Helper()
	if err := s.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// say writes a request and perhaps more behind it, and reads the answer's head.
func (s *socket) say(t *testing.T, text string) *http.Response {
	t.Helper()
	if _, err := io.WriteString(s, text); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(s.in, nil)
	if err != nil {
		t.Fatalf("after %.60q: %v", text, err)
	}
	return resp
}

// hear reads what has to come.
func (s *socket) hear(t *testing.T, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(s.in, b); err != nil || string(b) != want {
		t.Fatalf("heard %q, %v; want %q", b[:n], err, want)
	}
}

// request is a handshake as RFC 6455 §1.2 has it.
func request(path string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
}

// gorilla opens a WebSocket.
func (w *way) gorilla(t testing.TB, path string, protocols ...string) (*gorilla.Conn, *http.Response) {
	t.Helper()
	d := gorilla.Dialer{TLSClientConfig: w.tls, HandshakeTimeout: patience, Subprotocols: protocols}
	c, resp, err := d.Dial(w.url(path), nil)
	if err != nil {
		t.Fatalf("dial %s: %v", w.url(path), err)
	}
	t.Cleanup(func() { _ = c.Close() })
	c.SetReadLimit(mostMessage)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	return c, resp
}

// talker is a client of either library.
type talker interface {
	// write sends a message in one frame, or in several.
	write(binary bool, pieces ...[]byte) error
	read() (binary bool, message []byte, err error)
	// ping waits for the pong.
	ping() error
}

type gorillaTalker struct{ c *gorilla.Conn }

func (g gorillaTalker) write(binary bool, pieces ...[]byte) error {
	kind := gorilla.TextMessage
	if binary {
		kind = gorilla.BinaryMessage
	}
	if len(pieces) == 1 {
		return g.c.WriteMessage(kind, pieces[0])
	}
	w, err := g.c.NextWriter(kind)
	if err != nil {
		return err
	}
	for _, p := range pieces {
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return w.Close()
}

func (g gorillaTalker) read() (bool, []byte, error) {
	kind, m, err := g.c.ReadMessage()
	return kind == gorilla.BinaryMessage, m, err
}

// ping has an echo behind it, because the library looks at pongs only while it reads.
func (g gorillaTalker) ping() error {
	var pong string
	g.c.SetPongHandler(func(data string) error { pong = data; return nil })
	if err := g.c.WriteControl(gorilla.PingMessage, []byte("are you there"), time.Now().Add(patience)); err != nil {
		return err
	}
	if err := g.c.WriteMessage(gorilla.TextMessage, []byte("x")); err != nil {
		return err
	}
	if _, _, err := g.c.ReadMessage(); err != nil {
		return err
	}
	if pong != "are you there" {
		return fmt.Errorf("pong %q", pong)
	}
	return nil
}

type coderTalker struct {
	ctx context.Context
	c   *coder.Conn
}

func (k coderTalker) write(binary bool, pieces ...[]byte) error {
	kind := coder.MessageText
	if binary {
		kind = coder.MessageBinary
	}
	if len(pieces) == 1 {
		return k.c.Write(k.ctx, kind, pieces[0])
	}
	w, err := k.c.Writer(k.ctx, kind)
	if err != nil {
		return err
	}
	for _, p := range pieces {
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return w.Close()
}

func (k coderTalker) read() (bool, []byte, error) {
	kind, m, err := k.c.Read(k.ctx)
	return kind == coder.MessageBinary, m, err
}

func (k coderTalker) ping() error {
	ended := make(chan struct{})
	go func() { defer close(ended); _, _, _ = k.c.Read(k.ctx) }() // it looks at pongs only while it reads
	if err := k.c.Ping(k.ctx); err != nil {
		return err
	}
	if err := k.write(false, []byte("x")); err != nil {
		return err
	}
	<-ended
	return nil
}

// libraries are the clients.
var libraries = map[string]func(t *testing.T, w *way, path string) talker{
	"gorilla": func(t *testing.T, w *way, path string) talker {
		d := gorilla.Dialer{TLSClientConfig: w.tls, HandshakeTimeout: patience, WriteBufferSize: 512} // what is longer becomes several frames
		c, _, err := d.Dial(w.url(path), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetReadDeadline(time.Now().Add(2 * patience))
		return gorillaTalker{c}
	},
	"coder": func(t *testing.T, w *way, path string) talker {
		ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
		t.Cleanup(cancel)
		c, _, err := coder.Dial(ctx, w.url(path), &coder.DialOptions{HTTPClient: &http.Client{Transport: &http.Transport{TLSClientConfig: w.tls}}})
		if err != nil {
			t.Fatal(err)
		}
		c.SetReadLimit(mostMessage)
		t.Cleanup(func() { _ = c.CloseNow() })
		return coderTalker{ctx, c}
	},
}
