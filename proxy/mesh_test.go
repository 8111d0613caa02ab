package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/proxy"
)

// bytesEcho is an application that repeats what it hears.
func bytesEcho(t *testing.T) string {
	return proxy.Peers(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = io.Copy(c, r)
		_ = c.(*net.TCPConn).CloseWrite()
	})
}

func dialTCP(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

func TestBytesPassAPairOfSidecars(t *testing.T) {
	pr := newPair(t, bytesEcho(t), weft.TCP)
	c := dialTCP(t, pr.address)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	go func() {
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes, %v", len(got), len(sent), err)
	}
	proxy.Gone(t, pr.client)
	proxy.Gone(t, pr.server)
}

// A policy that denies the peer ends its raw connections too, and the application
// never hears of them.
func TestPoliciesHoldForBytes(t *testing.T) {
	app := proxy.Peers(t, func(net.Conn, *bufio.Reader) { t.Error("the application was called") })
	pr := newPair(t, app, weft.TCP, func(pr *pair) { pr.policies = []*weft.AuthorizationPolicy{denyAll} })
	if c, err := net.Dial("tcp", pr.address); err == nil { // else the reset was faster than the dialler
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, "SET a b\n")
		if b, err := io.ReadAll(c); len(b) > 0 || err == nil {
			t.Errorf("%q, %v; want a reset", b, err)
		}
	}
	proxy.Gone(t, pr.client)
	proxy.Gone(t, pr.server)
}

const upgradeRequest = "GET /chat HTTP/1.1\r\nHost: inventory-service\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"

// socketEcho accepts every upgrade and repeats what it hears.
func socketEcho(t *testing.T) string {
	return proxy.Peers(t, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil || req.Header.Get("Sec-Websocket-Key") == "" {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello ")
		_, _ = io.Copy(c, r)
		_ = c.(*net.TCPConn).CloseWrite()
	})
}

func TestWebSocketPassesAPairOfSidecars(t *testing.T) {
	for name, policies := range map[string][]*weft.AuthorizationPolicy{"allowed": nil, "denied": {denyAll}} {
		t.Run(name, func(t *testing.T) {
			pr := newPair(t, socketEcho(t), weft.HTTP, func(pr *pair) { pr.policies = policies })
			c := dialTCP(t, pr.address)
			_, _ = io.WriteString(c, upgradeRequest+"early ")
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if name == "denied" {
				if resp.StatusCode != 403 {
					t.Errorf("%v", resp)
				}
				return
			}
			if resp.StatusCode != 101 {
				t.Fatal(resp)
			}
			_, _ = io.WriteString(c, "late")
			_ = c.CloseWrite()
			if all, err := io.ReadAll(r); err != nil || string(all) != "hello early late" {
				t.Errorf("%q, %v", all, err)
			}
			proxy.Gone(t, pr.client)
			proxy.Gone(t, pr.server)
		})
	}
}

// Certificates are replaced again and again while connections of all kinds are open
// and others are opened: nobody notices.
func TestCertificatesRotateUnderLoad(t *testing.T) {
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	}))
	app.Config.Protocols = new(http.Protocols)
	app.Config.Protocols.SetHTTP1(true)
	app.Config.Protocols.SetUnencryptedHTTP2(true)
	app.Start()
	t.Cleanup(app.Close)
	address := strings.TrimPrefix(app.URL, "http://")
	one, two, raw := newPair(t, address, weft.HTTP), newPair(t, address, weft.HTTP2), newPair(t, bytesEcho(t), weft.TCP)

	stop := make(chan struct{})
	var load sync.WaitGroup
	var calls atomic.Int32
	web := func(address string, version2, keep bool) {
		var p http.Protocols
		p.SetHTTP1(!version2)
		p.SetUnencryptedHTTP2(version2)
		tr := &http.Transport{Protocols: &p, DisableKeepAlives: !keep}
		defer tr.CloseIdleConnections()
		c := &http.Client{Transport: tr, Timeout: 15 * time.Second}
		for {
			select {
			case <-stop:
				return
			default:
			}
			resp, err := c.Post("http://"+address+"/", "", strings.NewReader("word"))
			if err != nil {
				t.Error(err)
				return
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || string(b) != "word" {
				t.Errorf("%d %q %v", resp.StatusCode, b, err)
				return
			}
			calls.Add(1)
		}
	}
	talk := func(keep bool) {
		for {
			c, err := net.Dial("tcp", raw.address)
			if err != nil {
				t.Error(err)
				return
			}
			_ = c.SetDeadline(time.Now().Add(15 * time.Second))
			for {
				got := make([]byte, 4)
				_, err := io.WriteString(c, "word")
				if _, err2 := io.ReadFull(c, got); err != nil || err2 != nil || string(got) != "word" {
					t.Errorf("bytes: %q %v", got, errors.Join(err, err2))
					c.Close()
					return
				}
				select {
				case <-stop:
					c.Close()
					return
				default:
				}
				if !keep {
					break
				}
			}
			c.Close()
		}
	}
	load.Go(func() { web(one.address, false, true) })
	load.Go(func() { web(one.address, true, false) })
	load.Go(func() { web(two.address, true, true) })
	load.Go(func() { web(two.address, false, false) })
	load.Go(func() { talk(true) })
	load.Go(func() { talk(false) })
	for range 15 {
		for _, pr := range []*pair{one, two, raw} {
			rotate(t, pr.authority, pr.callers, "order-service")
			rotate(t, pr.authority, pr.apps, "inventory-service")
		}
		<-time.After(30 * time.Millisecond)
	}
	close(stop)
	load.Wait()
	if calls.Load() < 100 {
		t.Errorf("%d calls are not much of a load", calls.Load())
	}
	for _, pr := range []*pair{one, two, raw} {
		pr.settled()
	}
}

// Connections to a peer that was called before resume its session, also when the
// certificates have been replaced meanwhile.
func TestSessionsResume(t *testing.T) {
	pr := newPair(t, "127.0.0.1:1", weft.TCP) // what counts is the handshake
	resumed := func() bool {
		c, err := tls.Dial("tcp", pr.inbound, pr.callers.DialTLS(weft.NewIdentity("cluster.local", "default", "inventory-service"), "http/1.1"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") // the ticket comes before the answer
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return c.ConnectionState().DidResume
	}
	if resumed() {
		t.Error("the first connection resumes")
	}
	if !resumed() {
		t.Error("the second does not resume")
	}
	rotate(t, pr.authority, pr.apps, "inventory-service")
	rotate(t, pr.authority, pr.callers, "order-service")
	resumed() // whether it does is the credentials' choice; it works
	if !resumed() {
		t.Error("after a rotation, the second does not resume")
	}
}

// tlsAllocates is what crypto/tls itself allocates when a message goes there and
// another comes back: something for each record that is read.
func tlsAllocates(t *testing.T) float64 {
	a := authority(t, "cluster.local")
	server, client := credentials(t, a, "inventory-service"), credentials(t, a, "order-service")
	address := proxy.Peers(t, func(c net.Conn, _ *bufio.Reader) {
		secured := tls.Server(c, server.ServerTLS("http/1.1"))
		var b [100]byte
		for {
			n, err := secured.Read(b[:])
			if err != nil {
				return
			}
			_, _ = secured.Write(b[:n])
		}
	})
	c, err := tls.Dial("tcp", address, client.DialTLS(weft.NewIdentity("cluster.local", "default", "inventory-service"), "http/1.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var b [100]byte
	once := func() {
		_, _ = c.Write(b[:10])
		if _, err := c.Read(b[:]); err != nil {
			t.Fatal(err)
		}
	}
	for range 300 {
		once()
	}
	return testing.AllocsPerRun(1000, once)
}

// A pair of sidecars adds nothing to what TLS allocates between them.
func TestPairAllocatesNothing(t *testing.T) {
	if proxy.RaceDetector {
		t.Skip("under the race detector sync.Pool forgets at random")
	}
	const get = "GET /api/inventory/1 HTTP/1.1\r\nHost: inventory-service\r\nUser-Agent: test\r\n\r\n"
	most := tlsAllocates(t)
	for _, lane := range []struct {
		name string
		app  weft.Protocol
		up   func(*testing.T) string
		ask  func(t *testing.T, address string) func()
	}{
		{"1 to 1", weft.HTTP, proxy.Quiet1, func(t *testing.T, a string) func() { return proxy.Once1(t, a, get) }},
		{"2 to 1", weft.HTTP, proxy.Quiet1, func(t *testing.T, a string) func() { return proxy.Once2(t, a, "GET") }},
		{"1 to 2", weft.HTTP2, proxy.Quiet2, func(t *testing.T, a string) func() { return proxy.Once1(t, a, get) }},
		{"2 to 2", weft.HTTP2, proxy.Quiet2, func(t *testing.T, a string) func() { return proxy.Once2(t, a, "GET") }},
		{"gRPC", weft.GRPC, proxy.Quiet2, func(t *testing.T, a string) func() { return proxy.Once2(t, a, "POST") }},
	} {
		t.Run(lane.name, func(t *testing.T) {
			pr := newPair(t, lane.up(t), lane.app)
			once := lane.ask(t, pr.address)
			for range 300 {
				once()
			}
			if n := testing.AllocsPerRun(1000, once); n > most {
				t.Errorf("%v allocations a request, and TLS makes %v of them", n, most)
			}
		})
	}
}
