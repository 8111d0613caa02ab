package websocket

import (
	"context"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
)

// mostMessage bounds what either side reads at a time.
const mostMessage = 4 << 20

// app is the service behind weft.
type app struct {
	address string
	ends    sync.Map // of "id" in the query: chan error, how that client ended
}

// end is for how the client ended that asked with this id.
func (a *app) end(id string) chan error {
	c, _ := a.ends.LoadOrStore(id, make(chan error, 1))
	return c.(chan error)
}

// tell passes on how a client ended.
func (a *app) tell(r *http.Request, err error) {
	if id := r.FormValue("id"); id != "" {
		a.end(id) <- err
	}
}

func startApp(t *testing.T) *app {
	t.Helper()
	a := &app{}
	mux := http.NewServeMux()
	mux.HandleFunc("/gorilla", a.gorilla)
	mux.HandleFunc("/coder", a.coder)
	mux.HandleFunc("/closes", a.closes)
	mux.HandleFunc("/refuses", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Why", "policy")
		http.Error(w, "no sockets for you", http.StatusForbidden)
	})
	mux.HandleFunc("/raw", a.raw)
	mux.HandleFunc("/first", a.first)
	mux.HandleFunc("/dies", a.dies)
	mux.HandleFunc("/anything", a.anything)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "plain") })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	a.address = server.Listener.Addr().String()
	return a
}

// upgrader takes the first of its protocols that the client offers, too.
var upgrader = gorilla.Upgrader{Subprotocols: []string{"chat.v2", "chat.v1"}, CheckOrigin: func(*http.Request) bool { return true }}

// gorilla echoes.
func (a *app) gorilla(w http.ResponseWriter, r *http.Request) {
	c, err := upgrader.Upgrade(w, r, http.Header{"X-App": {"gorilla"}})
	if err != nil {
		return
	}
	defer c.Close()
	c.SetReadLimit(mostMessage)
	for {
		kind, m, err := c.ReadMessage()
		if err != nil {
			a.tell(r, err)
			return
		}
		if err := c.WriteMessage(kind, m); err != nil {
			return
		}
	}
}

func (a *app) coder(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-App", "coder")
	c, err := coder.Accept(w, r, &coder.AcceptOptions{InsecureSkipVerify: true, Subprotocols: upgrader.Subprotocols})
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(mostMessage)
	for {
		kind, m, err := c.Read(context.Background())
		if err != nil {
			return
		}
		if err := c.Write(context.Background(), kind, m); err != nil {
			return
		}
	}
}

// closes ends the socket with the code and reason that it is asked for.
func (a *app) closes(w http.ResponseWriter, r *http.Request) {
	c, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer c.Close()
	code, _ := strconv.Atoi(r.FormValue("code"))
	_ = c.WriteMessage(gorilla.CloseMessage, gorilla.FormatCloseMessage(code, r.FormValue("reason")))
	_, _, _ = c.ReadMessage() // the client's reply
}

// hijack takes the connection and accepts the upgrade, saying more in the same write.
func hijack(w http.ResponseWriter, r *http.Request, protocol, more string) (*net.TCPConn, io.Reader) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil
	}
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+protocol+
		"\r\nSec-WebSocket-Accept: "+accept(r.Header.Get("Sec-WebSocket-Key"))+"\r\n\r\n"+more)
	return c.(*net.TCPConn), rw
}

// accept is the answer to a key (RFC 6455 §4.2.2).
func accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// raw echoes bytes, and says something more when the client has ended.
func (a *app) raw(w http.ResponseWriter, r *http.Request) {
	c, in := hijack(w, r, "websocket", behind)
	if c == nil {
		return
	}
	defer c.Close()
	_, err := io.Copy(c, in)
	a.tell(r, err)
	_, _ = io.WriteString(c, lastWords)
}

const behind, lastWords = "right behind the 101", "after your end"

// first ends what it says before it has heard anything, and tells what it hears then.
func (a *app) first(w http.ResponseWriter, r *http.Request) {
	c, in := hijack(w, r, "websocket", behind)
	if c == nil {
		return
	}
	defer c.Close()
	_ = c.CloseWrite()
	b, err := io.ReadAll(in)
	if err == nil {
		err = heard(b)
	}
	a.tell(r, err)
}

type heard string

func (h heard) Error() string { return string(h) }

// dies in the middle of a frame: with how=reset as a crash of its machine does,
// else as its process does, whose kernel closes the socket.
func (a *app) dies(w http.ResponseWriter, r *http.Request) {
	const half = "\x82\x7e\x10\x00half of a frame"
	c, in := hijack(w, r, "websocket", "")
	if c == nil {
		return
	}
	_, _ = in.Read(make([]byte, 1024)) // somebody is there
	_, _ = io.WriteString(c, half)
	if r.FormValue("how") == "reset" {
		_ = c.SetLinger(0)
	}
	_ = c.Close()
}

// anything would speak whatever is asked of it: what must not be asked is then
// tunnelled. With protocol=NAME it switches to that, asked or not.
func (a *app) anything(w http.ResponseWriter, r *http.Request) {
	protocol := r.FormValue("protocol")
	if protocol == "" {
		protocol = r.Header.Get("Upgrade")
	}
	if protocol == "" {
		fmt.Fprintf(w, "%v %q %q", r.Proto, r.Header.Get("Connection"), r.Header.Get("Http2-Settings"))
		return
	}
	if c, _ := hijack(w, r, protocol, "tunnelled "+protocol); c != nil {
		_ = c.Close()
	}
}
