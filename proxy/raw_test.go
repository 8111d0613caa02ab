package proxy

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/wire/proxyproto"
)

// echo is a server that greets and repeats lines; greeting may be empty.
func echo(t *testing.T, greeting string) string {
	return script(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = io.WriteString(c, greeting)
		_, _ = io.Copy(c, r)
		_ = c.(*net.TCPConn).CloseWrite()
	})
}

// talk sends a line and expects it back, behind the greeting.
func talk(t *testing.T, c net.Conn, r *bufio.Reader, greeting string) {
	t.Helper()
	if greeting != "" {
		got := make([]byte, len(greeting))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != greeting {
			t.Fatalf("greeting %q, %v", got, err)
		}
	}
	for i := range 3 {
		line := fmt.Sprintf("SET line %d\n", i)
		if _, err := io.WriteString(c, line); err != nil {
			t.Fatal(err)
		}
		if got, err := r.ReadString('\n'); err != nil || got != line {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
		t.Errorf("at the end: %q, %v", rest, err)
	}
}

// rawMesh is a mesh whose service has the tcp rule that a compiled table has.
func rawMesh(t *testing.T, p weft.Protocol, upstreams ...string) *mesh {
	m := newMesh(t, upstreams...)
	m.raws = []weft.RawRule{{Name: "service", Destinations: []weft.Destination{{Service: shop}}}}
	m.speak(p)
	return m
}

func TestDeclaredBytesAreRelayed(t *testing.T) {
	for _, greeting := range []string{"", "220 ready\r\n"} {
		m := rawMesh(t, weft.TCP, echo(t, greeting))
		c, r := m.raw("")
		talk(t, c, r, greeting)
	}
}

func TestFirstSpeakerDecides(t *testing.T) {
	for name, greeting := range map[string]string{"client first": "", "server first": "220 ready\r\n"} {
		t.Run(name, func(t *testing.T) {
			m := rawMesh(t, "", echo(t, greeting))
			for range 3 { // the second time the answer is known
				c, r := m.raw("")
				talk(t, c, r, greeting)
			}
		})
	}
	t.Run("http", func(t *testing.T) {
		up := h2server(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.ProtoMajor) })
		m := rawMesh(t, "", up.URL)
		for range 2 {
			_, r := m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
			if resp, body := m.read(r, "GET"); resp.StatusCode != 200 || body != "1" {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
			resp, err := h2c(t, true).Get("http://" + m.addr + "/")
			if err != nil || resp.ProtoMajor != 2 {
				t.Fatalf("%v %v", resp, err)
			}
			resp.Body.Close()
		}
	})
}

// One client that speaks out of turn does not silence a server for all others.
func TestClientOutOfTurn(t *testing.T) {
	const greeting = "220 ready\r\n"
	m := rawMesh(t, "", echo(t, greeting))
	for _, said := range []string{"EHLO\n", "GET / HTTP/1.1\r\nHost: shop\r\n\r\n"} {
		c, r := m.raw(said)
		if _, err := r.ReadByte(); err != nil {
			t.Fatalf("after %q: %v", said, err)
		}
		_ = c.Close()
		c, r = m.raw("")
		talk(t, c, r, greeting)
	}
}

func TestDeadEndpointOfRawService(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := ln.Addr().String()
	ln.Close()
	m := rawMesh(t, weft.TCP, dead, echo(t, "hello\n"))
	for range 6 {
		c, r := m.raw("")
		talk(t, c, r, "hello\n")
	}
	m.endpoints(dead)
	m.speak(weft.TCP)
	m.refusesBytes("")
}

// A destination that does not exist ends the connection, and nothing else.
func TestRawRouteToNowhere(t *testing.T) {
	for problem, to := range map[string]weft.Destination{
		"subset":  {Service: shop, Subset: "nobody"},
		"service": {Service: weft.NewServiceName("", "nobody")},
		"broken":  {Unresolved: "the service is in another cluster"},
	} {
		t.Run(problem, func(t *testing.T) {
			m := newMesh(t, echo(t, ""))
			table := &weft.RouteTable{Host: ":5432", TCP: []weft.RawRule{{Name: "tcp[0]", Ports: []uint16{5432}, Destinations: []weft.Destination{to}}}}
			if err := table.Complete(); err != nil {
				t.Fatal(err)
			}
			m.gateway(table)
			m.addr = m.listen(&Listener{Direction: Edge, Raw: true, Port: 5432})
			for range 2 {
				c, err := net.Dial("tcp", m.addr)
				if err != nil {
					continue // the reset was faster than the dialler
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("read: %v; want a reset", err)
				}
			}
		})
	}
}

func TestTLSPassesByName(t *testing.T) {
	app := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "the application's own TLS") }))
	t.Cleanup(app.Close)
	edge := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(edge.Close)
	m := newMesh(t, strings.TrimPrefix(app.URL, "https://"))
	table := &weft.RouteTable{Host: "pass.example", TLS: []weft.RawRule{{Name: "tls[0]", SNI: []string{"pass.example"}, Destinations: []weft.Destination{{Service: shop}}}}}
	if err := table.Complete(); err != nil {
		t.Fatal(err)
	}
	m.gateway(table, m.table())
	addr := m.listen(&Listener{Direction: Edge, Port: 443, TLS: &tls.Config{Certificates: edge.TLS.Certificates}})
	for name, want := range map[string]string{"pass.example": "the application's own TLS", "shop": "weft: "} {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, ServerName: name})
		if err != nil {
			t.Fatal(name, err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", name)
		b, _ := io.ReadAll(c)
		if name == "pass.example" && !strings.Contains(string(b), want) || name == "shop" && !strings.HasPrefix(string(b), "HTTP/1.1 ") {
			t.Errorf("%s: %q", name, b)
		}
		c.Close()
	}
}

func TestProxyHeaderNamesTheClient(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	m := newMesh(t, up.URL)
	addr := m.listen(&Listener{Direction: Outbound, Host: "shop", Filters: []Filter{peerEcho{}},
		ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	for _, version := range []int{1, 2} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		h := proxyproto.Header{Source: netip.MustParseAddrPort("192.0.2.7:1234"), Destination: netip.MustParseAddrPort("192.0.2.1:80")}
		b := proxyproto.AppendV1(nil, h)
		if version == 2 {
			b, _ = proxyproto.AppendV2(nil, h)
		}
		_, _ = c.Write(append(b, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n"...))
		if resp, body := m.read(bufio.NewReader(c), "GET"); resp.StatusCode != 200 || body != "192.0.2.7" {
			t.Errorf("version %d: %d %q", version, resp.StatusCode, body)
		}
		c.Close()
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("without a header: %q", b)
	}
}

// A plain endpoint learns from the header whose connection it is, whoever speaks
// first and whatever was heard before it was dialled.
func TestProxyHeaderIsSent(t *testing.T) {
	for _, protocol := range []weft.Protocol{weft.TCP, ""} {
		for version := range uint8(3) {
			for _, greeting := range []string{"", "220 ready\r\n"} {
				t.Run(fmt.Sprintf("%q version %d greeting %q", protocol, version, greeting), func(t *testing.T) {
					headers := make(chan proxyproto.Header, 4)
					m := rawMesh(t, protocol, script(t, func(c net.Conn, r *bufio.Reader) {
						if version > 0 {
							headers <- header(t, r)
						}
						_, _ = io.WriteString(c, greeting)
						_, _ = io.Copy(c, r)
						_ = c.(*net.TCPConn).CloseWrite()
					}))
					m.svc.Policy.ProxyProtocol = version
					m.publish()
					c, r := m.raw("")
					talk(t, c, r, greeting)
					if version == 0 {
						return
					}
					if h := <-headers; h.Version != version || h.Source.String() != c.LocalAddr().String() || h.Destination.String() != m.addr {
						t.Errorf("header %+v, want of %s to %s", h, c.LocalAddr(), m.addr)
					}
				})
			}
		}
	}
}

// header reads the PROXY header that a connection begins with.
func header(t *testing.T, r *bufio.Reader) proxyproto.Header {
	for n := 1; ; n++ {
		b, err := r.Peek(n)
		if err != nil {
			t.Errorf("no PROXY header: %v", err)
			return proxyproto.Header{}
		}
		h, size, err := proxyproto.Parse(b)
		switch {
		case err == nil:
			_, _ = r.Discard(size)
			return h
		case err != proxyproto.ErrIncomplete:
			t.Errorf("%q is no PROXY header: %v", b, err)
			return proxyproto.Header{}
		}
	}
}

// peerEcho answers with who the client is.
type peerEcho struct{}

func (peerEcho) Request(x *Exchange) *Answer { return &Answer{Status: 200, Body: x.Peer()} }

// Bytes to a service that has nobody at the moment are reset, whoever should have
// spoken first; only to a request can be said why.
func TestNobodyAnswersBytes(t *testing.T) {
	for _, c := range []struct {
		name, says string
		protocol   weft.Protocol
	}{
		{"declared", "\x00\x01", weft.TCP}, {"declared, server first", "", weft.TCP},
		{"heard", "\x00\x01", ""}, {"server first", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := rawMesh(t, c.protocol, echo(t, "hello\n"))
			m.endpoints()
			m.refusesBytes(c.says)
			_, r := m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
			if resp, _ := m.read(r, "GET"); resp.StatusCode != 503 {
				t.Errorf("a request is answered with %d", resp.StatusCode)
			}
		})
	}
	t.Run("known to speak first", func(t *testing.T) {
		m := rawMesh(t, "", echo(t, "hello\n"))
		c, r := m.raw("")
		talk(t, c, r, "hello\n")
		m.endpoints()
		m.refusesBytes("")
	})
}

// refusesBytes expects a reset and nothing else. It may come so early that who
// connects sees it, or writes.
func (m *mesh) refusesBytes(says string) {
	m.t.Helper()
	var b []byte
	c, err := net.Dial("tcp", m.addr)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err = io.WriteString(c, says); err == nil {
			b, err = io.ReadAll(c)
		}
	}
	if len(b) > 0 || !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		m.t.Errorf("got %q, then %v; want a reset", b, err)
	}
}
