package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
)

// A handshake as RFC 6455 §1.2 has it.
const upgradeRequest = "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"

// chat accepts the upgrade, says something in the same write, and echoes.
func chat(t *testing.T) string {
	return script(t, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if !strings.EqualFold(req.Header.Get("Upgrade"), "websocket") || req.Header.Get("Sec-Websocket-Key") == "" {
			fmt.Fprintf(c, "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nleft over\n")
		_, _ = io.Copy(c, r)
		_ = c.(*net.TCPConn).CloseWrite()
	})
}

func TestWebSocketPasses(t *testing.T) {
	m := newMesh(t, chat(t))
	c, r := m.raw(upgradeRequest + "early\n") // does not wait for the answer
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("Sec-Websocket-Accept") == "" {
		t.Fatalf("%v %v", resp, err)
	}
	for _, want := range []string{"left over\n", "early\n"} {
		if got, err := r.ReadString('\n'); got != want {
			t.Fatalf("%q, %v, want %q", got, err, want)
		}
	}
	talk(t, c, r, "")
}

func TestOtherUpgradesDoNotPass(t *testing.T) {
	got := make(chan http.Header, 1)
	up := server(t, func(w http.ResponseWriter, r *http.Request) { got <- r.Header.Clone() })
	m := newMesh(t, up.URL)
	for _, extra := range []string{
		"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
		"Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
		"Upgrade: websocket\r\n", // not asked for by Connection
	} {
		_, r := m.raw("GET / HTTP/1.1\r\nHost: shop\r\n" + extra + "\r\n")
		if resp, _ := m.read(r, "GET"); resp.StatusCode != 200 {
			t.Errorf("%q: %d", extra, resp.StatusCode)
		}
		if h := <-got; h.Get("Upgrade") != "" || strings.Contains(strings.ToLower(h.Get("Connection")), "upgrade") {
			t.Errorf("%q: the application was asked %v", extra, h)
		}
	}
}

func TestRefusedUpgradeIsAnOrdinaryResponse(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) { http.Error(w, "not today", http.StatusForbidden) })
	m := newMesh(t, up.URL)
	c, r := m.raw(upgradeRequest)
	if resp, body := m.read(r, "GET"); resp.StatusCode != 403 || body != "not today\n" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	if _, err := io.WriteString(c, "GET /next HTTP/1.1\r\nHost: shop\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if resp, _ := m.read(r, "GET"); resp.StatusCode != 403 {
		t.Errorf("the connection is out of step: %d", resp.StatusCode)
	}
}

func TestConnectOpensATunnel(t *testing.T) {
	m := rawMesh(t, weft.TCP, echo(t, "hello\n"))
	m.addr = m.listen(&Listener{Direction: Outbound})
	for host, status := range map[string]int{"shop:5432": 200, "nobody:1": 503} {
		if status == 503 {
			m.known("nobody")
		}
		c, r := m.raw("CONNECT " + host + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
		resp, err := http.ReadResponse(r, &http.Request{Method: "CONNECT"})
		if err != nil || resp.StatusCode != status {
			t.Fatalf("%s: %v %v", host, resp, err)
		}
		if status == 200 {
			talk(t, c, r, "hello\n")
		}
	}
}
