package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/telemetry/metric"
	"github.com/weftmesh/weft/telemetry/trace"
)

// later makes the sweeper's look at every connection as if it were much later.
func (m *mesh) later(phase uint32, d time.Duration) {
	m.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		m.proxy.mu.Lock()
		for c := range m.proxy.conns {
			if c.phase.Load() == phase {
				c.expireIfDue(time.Now().Add(d).UnixNano())
				m.proxy.mu.Unlock()
				return
			}
		}
		m.proxy.mu.Unlock()
		<-time.After(time.Millisecond)
	}
	m.t.Fatalf("no connection came to phase %d", phase)
}

func TestSlowHeadIs408(t *testing.T) {
	m := newMesh(t)
	_, r := m.raw("GET / HTTP/1.1\r\nHost: sh")
	m.later(phaseHead, headTimeout+time.Second)
	if resp, body := m.read(r, "GET"); resp.StatusCode != 408 || !resp.Close {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
}

func TestIdleConnectionIsClosedSilently(t *testing.T) {
	m := newMesh(t)
	_, r := m.raw("")
	m.later(phaseIdle, idleTimeout+time.Second)
	if b, err := io.ReadAll(r); err != nil || len(b) != 0 {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestStalledUpstreamEndsTheExchange(t *testing.T) {
	got := make(chan struct{})
	m := newMesh(t, script(t, func(c net.Conn, r *bufio.Reader) {
		skipHead(r)
		close(got)
		_, _ = r.ReadByte() // until the proxy gives up
	}))
	c, _ := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n")
	<-got
	m.later(phaseBusy, stallTimeout+time.Second)
	if _, err := io.ReadAll(c); err != nil {
		t.Errorf("the client's connection should end cleanly: %v", err)
	}
}

func TestStalledBodyEndsTheExchange(t *testing.T) {
	m := newMesh(t, server(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }).URL)
	c, _ := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 100000\r\n\r\nbegin")
	m.later(phaseBusy, stallTimeout+time.Second)
	if _, err := io.ReadAll(c); err != nil {
		t.Errorf("the client's connection should end cleanly: %v", err)
	}
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	m := newMesh(t)
	for name, tc := range map[string]struct {
		bytes  string
		status int
	}{
		"length and chunks":   {"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		"no host":             {"GET / HTTP/1.1\r\n\r\n", 400},
		"head too large":      {"GET / HTTP/1.1\r\nHost: shop\r\nX: " + strings.Repeat("a", bufferSize) + "\r\n\r\n", 431},
		"too many fields":     {"GET / HTTP/1.1\r\nHost: shop\r\n" + strings.Repeat("A: b\r\n", 150) + "\r\n", 431},
		"target too long":     {"GET /" + strings.Repeat("a", 9<<10) + " HTTP/1.1\r\nHost: shop\r\n\r\n", 414},
		"path above the root": {"GET /../../etc HTTP/1.1\r\nHost: shop\r\n\r\n", 400},
		"CONNECT":             {"CONNECT shop:443 HTTP/1.1\r\nHost: shop:443\r\n\r\n", 501},
		"bad chunk":           {"POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			_, r := m.raw(tc.bytes + "GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n")
			if tc.status == 0 { // no endpoint to send it to: what counts is that nothing behind it is read as a request
				tc.status = 503
			}
			resp, body := m.read(r, "GET")
			if resp.StatusCode != tc.status || !resp.Close {
				t.Errorf("%d %q, close %v; want %d and the connection's end", resp.StatusCode, body, resp.Close, tc.status)
			}
			if rest, _ := io.ReadAll(r); len(rest) > 0 {
				t.Errorf("something behind it was answered: %q", rest)
			}
		})
	}
}

// The steady state of a keep-alive exchange allocates nothing, tracing on.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("under the race detector sync.Pool forgets at random")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { ln.Close(); <-done })
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		answer := []byte("HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello")
		var b [4096]byte
		for {
			if _, err := c.Read(b[:]); err != nil {
				return
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	}()
	m := newMesh(t)
	m.proxy.sample = trace.NewSampler(1)
	m.endpoints(ln.Addr().String())
	c, _ := m.raw("")
	request := []byte("GET /api/orders/1?x=y HTTP/1.1\r\nHost: shop\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n")
	var b [4096]byte
	once := func() {
		if _, err := c.Write(request); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(b[:]); err != nil || n == 0 {
			t.Fatal(n, err)
		}
	}
	for range 200 {
		once()
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if n := testing.AllocsPerRun(2000, once); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
}

func TestSlowClientsRunOutOfPatience(t *testing.T) {
	second := int64(time.Second)
	for _, tc := range []struct {
		name  string
		play  func(w *patience)
		now   int64
		grace time.Duration
		over  bool
	}{
		{"nobody waits", func(w *patience) { w.begin(second); w.end(100*second, 1) }, 200 * second, grace, false},
		{"both directions at once", func(w *patience) {
			w.begin(second)
			w.begin(second)
			w.end(second, 0)
			w.end(second, 0)
			w.begin(2 * second)
		},
			3 * second, grace, false},
		{"within grace", func(w *patience) { w.begin(second) }, 20 * second, grace, false},
		{"nothing comes", func(w *patience) { w.begin(second) }, 22 * second, grace, true},
		{"a byte now and then", func(w *patience) {
			for i := int64(1); i <= 21; i++ {
				w.begin(i * second)
				w.end((i+1)*second, 1)
			}
			w.begin(22 * second)
		}, 23 * second, grace, true},
		{"a burst does not buy an hour", func(w *patience) {
			w.begin(second)
			w.end(second, 10<<20)
			w.begin(2 * second)
		}, 23 * second, grace, true},
		{"slow but steady", func(w *patience) {
			for i := int64(1); i <= 100; i++ {
				w.begin(i * second)
				w.end((i+1)*second, minRate)
			}
			w.begin(101 * second)
		}, 110 * second, grace, false},
		{"while memory is short", func(w *patience) { w.begin(second) }, 4 * second, hurriedGrace, true},
		{"a slow application is not the client's fault", func(w *patience) { w.begin(second); w.end(second, 10); w.begin(300 * second) }, 301 * second, grace, false},
	} {
		var w patience
		tc.play(&w)
		if got := w.over(tc.now, tc.grace); got != tc.over {
			t.Errorf("%s: over is %v", tc.name, got)
		}
	}
}

// A body that dribbles in at the edge is given up, and its slot at the application
// with it.
func TestDribblingBodyIsGivenUp(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	m := newMesh(t, up.URL)
	m.gateway(m.table())
	m.addr = m.listen(&Listener{Direction: Edge})
	_, r := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 100000\r\n\r\nx")
	slow := m.proxy.metrics.Counter("weft_refused_total", "Requests refused before routing, by reason.", metric.Label{Name: "reason", Value: "slow_client"})
	for deadline := time.Now().Add(10 * time.Second); slow.Value() == 0; {
		m.proxy.mu.Lock()
		for c := range m.proxy.conns {
			if c.client.since.Load() != 0 {
				c.expireIfDue(c.client.since.Load() + int64(grace) + int64(time.Second))
			}
		}
		m.proxy.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatal("nobody was counted as slow")
		}
		<-time.After(time.Millisecond)
	}
	if b, _ := io.ReadAll(r); strings.Contains(string(b), " 200 ") {
		t.Errorf("answered %q", b)
	}
}
