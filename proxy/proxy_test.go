package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/telemetry/trace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is a proxy with an outbound listener and a snapshot of one service.
type mesh struct {
	t     *testing.T
	proxy *Proxy
	addr  string
	rule  weft.Rule // of service "shop"; change it before set
	svc   weft.Service
	raws  []weft.RawRule
	// others are in the snapshot, too
	others []*weft.Service
	seq    uint64
}

var shop = weft.ServiceName{Namespace: "default", Name: "shop"}

func newMesh(t *testing.T, upstreams ...string) *mesh {
	t.Helper()
	return newMeshOf(t, Config{}, upstreams...)
}

func newMeshOf(t *testing.T, c Config, upstreams ...string) *mesh {
	t.Helper()
	c.Self, c.Spans = weft.NewServiceName("", "caller"), trace.NewRecorder(64)
	m := &mesh{t: t, proxy: New(c)}
	t.Cleanup(func() {
		m.proxy.Close()
		if wrong := m.proxy.books(); wrong != "" {
			t.Errorf("after Close: %s", wrong)
		}
	})
	m.rule = weft.Rule{Name: "http[0]", Destinations: []weft.Destination{{Service: shop}}, Retry: weft.DefaultRetry}
	m.svc = weft.Service{Name: shop}
	m.endpoints(upstreams...)
	m.addr = m.listen(&Listener{Direction: Outbound, Host: "shop"})
	return m
}

// endpoints replaces the endpoints of the service and publishes the snapshot.
func (m *mesh) endpoints(addresses ...string) {
	m.svc.Endpoints = nil
	for _, a := range addresses {
		m.svc.Endpoints = append(m.svc.Endpoints, weft.Endpoint{ID: a, Address: strings.TrimPrefix(a, "http://"), Weight: 1})
	}
	m.publish()
}

func (m *mesh) publish() {
	m.t.Helper()
	table := m.table()
	m.seq++
	svc := m.svc
	services := map[weft.ServiceName]*weft.Service{shop: &svc}
	for _, s := range m.others {
		services[s.Name] = s
	}
	m.proxy.Update(&weft.Snapshot{Version: m.seq, Hosts: map[string]*weft.RouteTable{"shop": table}, Services: services})
}

func (m *mesh) table() *weft.RouteTable {
	m.t.Helper()
	table := &weft.RouteTable{Host: "shop", Rules: []weft.Rule{m.rule}, TCP: m.raws}
	if err := table.Complete(); err != nil {
		m.t.Fatal(err)
	}
	return table
}

// known publishes that a host was asked for and does not exist.
func (m *mesh) known(host string) {
	m.seq++
	svc := m.svc
	m.proxy.Update(&weft.Snapshot{Version: m.seq, Hosts: map[string]*weft.RouteTable{"shop": m.table(), host: nil},
		Services: map[weft.ServiceName]*weft.Service{shop: &svc}})
}

// gateway publishes a gateway's snapshot.
func (m *mesh) gateway(tables ...*weft.RouteTable) {
	m.seq++
	svc := m.svc
	m.proxy.Update(&weft.Snapshot{Version: m.seq, Gateway: weft.NewGateway("edge", tables),
		Services: map[weft.ServiceName]*weft.Service{shop: &svc}})
}

func (m *mesh) listen(l *Listener) string {
	m.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- m.proxy.Serve(ln, l) }()
	m.t.Cleanup(func() {
		m.proxy.Close()
		if err := <-done; err != nil {
			m.t.Errorf("serve: %v", err)
		}
	})
	return ln.Addr().String()
}

// raw sends bytes on one connection and returns it with a reader.
func (m *mesh) raw(bytes string) (net.Conn, *bufio.Reader) {
	m.t.Helper()
	c, err := net.Dial("tcp", m.addr)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, bytes); err != nil {
		m.t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

func (m *mesh) read(r *bufio.Reader, method string) (*http.Response, string) {
	m.t.Helper()
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		m.t.Fatalf("no response: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatalf("response body: %v", err)
	}
	return resp, string(body)
}

// do sends one request by an ordinary client.
func (m *mesh) do(method, path, body string) (int, string) {
	m.t.Helper()
	req, _ := http.NewRequest(method, "http://"+m.addr+path, strings.NewReader(body))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func server(t *testing.T, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// script is an upstream that answers each connection with exact bytes.
func script(t *testing.T, serve func(c net.Conn, r *bufio.Reader)) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { ln.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			serve(c, bufio.NewReader(c))
			c.Close()
		}
	}()
	return ln.Addr().String()
}

func skipHead(r *bufio.Reader) {
	for {
		line, err := r.ReadString('\n')
		if err != nil || line == "\r\n" {
			return
		}
	}
}

func TestRequestAndResponsePassUnchanged(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Echo", r.Header.Get("X-Case"))
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.URL.RequestURI(), r.Host, b)
	})
	m := newMesh(t, up.URL)
	_, r := m.raw("POST /a/../b%41?q=1&r=%20 HTTP/1.1\r\nHost: shop\r\nX-Case: yes\r\nContent-Length: 5\r\n\r\nhello" +
		"GET /second HTTP/1.1\r\nHost: shop\r\n\r\n") // pipelined
	resp, body := m.read(r, "POST")
	if want := "POST /bA?q=1&r=%20 shop hello"; body != want || resp.Header.Get("X-Echo") != "yes" {
		t.Errorf("got %q (X-Echo %q), want %q", body, resp.Header.Get("X-Echo"), want)
	}
	if _, body := m.read(r, "GET"); body != "GET /second shop " {
		t.Errorf("pipelined: %q", body)
	}
}

func TestBodiesStreamBothWays(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum")
		n, err := io.Copy(w, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("X-Sum", fmt.Sprint(n))
	})
	m := newMesh(t, up.URL)
	for _, size := range []int{0, 1, 1000, bufferSize - 200, bufferSize, 3 * bufferSize, replayBytes + 1, 3 << 20} {
		for _, chunked := range []bool{false, true} {
			body := strings.Repeat("abcdefghij", size/10+1)[:size]
			req, _ := http.NewRequest("POST", "http://"+m.addr+"/", strings.NewReader(body))
			if chunked {
				req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), -1
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatalf("%d bytes, chunked %v: %v", size, chunked, err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(got) != body {
				t.Fatalf("%d bytes, chunked %v: got %d back, %v", size, chunked, len(got), err)
			}
			if size > 0 && resp.Trailer.Get("X-Sum") != fmt.Sprint(size) {
				t.Errorf("%d bytes, chunked %v: trailer %q", size, chunked, resp.Trailer.Get("X-Sum"))
			}
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestDeadEndpointIsRetriedElsewhere(t *testing.T) {
	alive := server(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "alive") })
	dead, _ := net.Listen("tcp", "127.0.0.1:0")
	dead.Close()
	m := newMesh(t, alive.URL, dead.Addr().String())
	for range 50 {
		for _, method := range []string{"GET", "POST"} { // never sent: a POST may go elsewhere too
			if code, body := m.do(method, "/", ""); code != 200 || body != "alive" {
				t.Fatalf("%s: %d %s", method, code, body)
			}
		}
	}
}

func TestWhatWasSentIsRepeatedOnlyWhenIdempotent(t *testing.T) {
	var seen atomic.Int32
	breaks := script(t, func(c net.Conn, r *bufio.Reader) {
		seen.Add(1)
		skipHead(r)
	})
	m := newMesh(t, breaks)
	if code, body := m.do("POST", "/", "x"); code != 502 || seen.Load() != 1 {
		t.Errorf("a POST that was sent: %d %q after %d tries, want 502 after one", code, body, seen.Load())
	}
	seen.Store(0)
	if code, _ := m.do("GET", "/", ""); code != 502 || seen.Load() != 3 {
		t.Errorf("a GET: %d after %d tries, want 502 after three", code, seen.Load())
	}
}

func TestFiveErrorsEjectAndThirtySecondsHeal(t *testing.T) {
	var bad atomic.Bool
	var fromBad atomic.Int32
	bad.Store(true)
	a := server(t, func(w http.ResponseWriter, r *http.Request) {
		fromBad.Add(1)
		if bad.Load() {
			w.WriteHeader(500)
		}
	})
	b := server(t, func(w http.ResponseWriter, r *http.Request) {})
	m := newMesh(t)
	m.svc.Policy.Outlier = &weft.Outlier{Consecutive5xx: 5, Interval: time.Second, BaseEjection: 300 * time.Millisecond,
		MaxEjection: time.Second, MaxEjectionPercent: 50}
	m.endpoints(a.URL, b.URL)
	errors := 0
	for range 200 {
		if code, _ := m.do("GET", "/", ""); code == 500 {
			errors++
		}
	}
	if errors < 5 || errors > 15 { // 5, and again after each short ejection
		t.Errorf("%d errors of 200, want about five per ejection", errors)
	}
	bad.Store(false)
	before := fromBad.Load()
	deadline := time.Now().Add(5 * time.Second)
	for fromBad.Load() == before {
		if time.Now().After(deadline) {
			t.Fatal("the ejected endpoint never came back")
		}
		m.do("GET", "/", "")
	}
}

func TestRouteAnswers(t *testing.T) {
	for _, tc := range []struct {
		name   string
		rule   weft.Rule
		status int
		text   string
	}{
		{"redirect", weft.Rule{Redirect: &weft.Redirect{Code: 302, Authority: "elsewhere"}}, 302, ""},
		{"direct response", weft.Rule{Direct: &weft.DirectResponse{Status: 418, Body: "short and stout"}}, 418, "short and stout"},
		{"no endpoint", weft.Rule{Destinations: []weft.Destination{{Service: shop}}}, 503, "no healthy endpoint of shop.default"},
		{"subset that is not defined", weft.Rule{Destinations: []weft.Destination{{Service: shop, Subset: "v9"}}}, 503, "subset v9"},
		{"service that does not exist", weft.Rule{Destinations: []weft.Destination{{Service: weft.NewServiceName("", "nowhere")}}}, 503, "service nowhere.default does not exist"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMesh(t)
			m.rule = tc.rule
			m.publish()
			_, r := m.raw("GET /x?y=z HTTP/1.1\r\nHost: shop\r\n\r\n")
			resp, body := m.read(r, "GET")
			if resp.StatusCode != tc.status || !strings.Contains(body, tc.text) {
				t.Errorf("got %d %q", resp.StatusCode, body)
			}
			if tc.status == 302 && resp.Header.Get("Location") != "http://elsewhere/x?y=z" {
				t.Errorf("Location %q", resp.Header.Get("Location"))
			}
		})
	}
}

func TestContinueIsTheApplicationsToSay(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-No") != "" {
			w.WriteHeader(417)
			return
		}
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	})
	m := newMesh(t, up.URL)
	c, r := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
	if line, _ := r.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q", line)
	}
	skipHead(r)
	io.WriteString(c, "abc")
	if resp, body := m.read(r, "POST"); resp.StatusCode != 200 || body != "abc" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	_, r = m.raw("POST / HTTP/1.1\r\nHost: shop\r\nX-No: 1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
	if resp, _ := m.read(r, "POST"); resp.StatusCode != 417 || !resp.Close {
		t.Errorf("final answer before the body: %d, close %v", resp.StatusCode, resp.Close)
	}
}

func TestBadUpstreamsBecome502(t *testing.T) {
	for name, bytes := range map[string]string{
		"malformed":       "HTTP/1.1 twohundred OK\r\n\r\n",
		"CL and TE":       "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"unasked upgrade": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
		"half a head":     "HTTP/1.1 200 OK\r\nContent-Le",
		"nothing":         "",
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, script(t, func(c net.Conn, r *bufio.Reader) {
				skipHead(r)
				io.WriteString(c, bytes)
			}))
			if code, body := m.do("POST", "/", ""); code != 502 {
				t.Errorf("got %d %q", code, body)
			}
		})
	}
}

// A response that breaks off must not look whole.
func TestTruncatedResponsesStayTruncated(t *testing.T) {
	for name, bytes := range map[string]string{
		"length": "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
		"chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, script(t, func(c net.Conn, r *bufio.Reader) {
				skipHead(r)
				io.WriteString(c, bytes)
			}))
			resp, err := http.Get("http://" + m.addr + "/")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("read %q without an error", b)
			}
		})
	}
}

func TestUnaskedBytesPoisonTheConnection(t *testing.T) {
	up := script(t, func(c net.Conn, r *bufio.Reader) {
		skipHead(r)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale")
		skipHead(r) // until the proxy closes
	})
	m := newMesh(t, up)
	for range 3 {
		if code, body := m.do("GET", "/", ""); code != 200 || body != "ok" {
			t.Fatalf("%d %q: somebody else's bytes", code, body)
		}
	}
}

func TestDrainFinishesWhatIsInFlight(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-release
		io.WriteString(w, "done")
	})
	m := newMesh(t, up.URL)
	_, r := m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
	idle, idleR := m.raw("")
	_ = idle
	<-started
	drained := make(chan error, 1)
	go func() { drained <- m.proxy.Drain(context.Background()) }()
	if _, err := idleR.ReadByte(); err != io.EOF {
		t.Errorf("an idle connection should be closed, got %v", err)
	}
	close(release)
	resp, body := m.read(r, "GET")
	if body != "done" || !resp.Close {
		t.Errorf("in flight: %q, Connection: close %v", body, resp.Close)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

func TestConnectionLimitAndOverflow(t *testing.T) {
	release := make(chan struct{})
	var most, now atomic.Int32
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		most.Store(max(most.Load(), now.Add(1)))
		<-release
		now.Add(-1)
	})
	m := newMesh(t)
	m.svc.Policy.MaxConnections, m.svc.Policy.MaxPendingRequests = 2, 3
	m.endpoints(up.URL)
	codes := make(chan int, 8)
	for range 8 {
		go func() {
			code, _ := m.do("GET", "/", "")
			codes <- code
		}()
	}
	for range 3 { // those beyond 2 + 3 are refused at once
		if code := <-codes; code != 503 {
			t.Errorf("got %d, want 503", code)
		}
	}
	close(release)
	for range 5 {
		if code := <-codes; code != 200 {
			t.Errorf("got %d, want 200", code)
		}
	}
	if most.Load() > 2 {
		t.Errorf("%d at once, want at most 2", most.Load())
	}
}

func TestTimeoutIs504(t *testing.T) {
	release := make(chan struct{})
	up := server(t, func(w http.ResponseWriter, r *http.Request) { <-release })
	defer close(release)
	m := newMesh(t, up.URL)
	m.rule.Timeout = 50 * time.Millisecond
	m.publish()
	if code, body := m.do("GET", "/", ""); code != 504 {
		t.Errorf("got %d %q", code, body)
	}
}

func TestTraceContinues(t *testing.T) {
	got := make(chan string, 2)
	up := server(t, func(w http.ResponseWriter, r *http.Request) { got <- r.Header.Get("Traceparent") })
	m := newMesh(t, up.URL)
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	_, r := m.raw("GET / HTTP/1.1\r\nHost: shop\r\ntraceparent: " + parent + "\r\n\r\n")
	m.read(r, "GET")
	child := <-got
	if !strings.HasPrefix(child, parent[:36]) || child[36:52] == parent[36:52] || !strings.HasSuffix(child, "-01") {
		t.Errorf("child %q of %q", child, parent)
	}
	var span *trace.Span
	for range 1000 { // it is recorded when the exchange is over, a moment after its answer
		m.proxy.spans.Drain(func(s *trace.Span) { c := *s; span = &c })
		if span != nil {
			break
		}
		<-time.After(time.Millisecond)
	}
	if span == nil || span.SpanID.String() != child[36:52] || span.Parent.String() != parent[36:52] {
		t.Errorf("span %+v does not stand between %q and %q", span, parent, child)
	}
}

// A canary whose only instance is dead costs nobody an answer.
func TestDeadSubsetSpillsOver(t *testing.T) {
	alive := server(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "v1") })
	dead, _ := net.Listen("tcp", "127.0.0.1:0")
	dead.Close()
	m := newMesh(t)
	v := func(version string) map[string]string { return map[string]string{"version": version} }
	m.svc.Subsets = []weft.Subset{{Name: "v1", Labels: v("v1")}, {Name: "v2", Labels: v("v2")}, {Name: "v3", Labels: v("v3")}}
	m.svc.Endpoints = []weft.Endpoint{{ID: "a", Address: alive.Listener.Addr().String(), Labels: v("v1"), Weight: 1},
		{ID: "b", Address: dead.Addr().String(), Labels: v("v2"), Weight: 1}}
	m.rule.Destinations = []weft.Destination{{Service: shop, Subset: "v1", Weight: 34}, {Service: shop, Subset: "v2", Weight: 33}, {Service: shop, Subset: "v3", Weight: 33}}
	m.publish()
	for range 60 {
		if code, body := m.do("POST", "/", ""); code != 200 || body != "v1" {
			t.Fatalf("%d %q", code, body)
		}
	}
	m.rule.Destinations = m.rule.Destinations[1:2] // alone, it has nobody to stand in
	m.publish()
	if code, _ := m.do("GET", "/", ""); code != 503 {
		t.Errorf("a single destination that is dead: %d, want 503", code)
	}
}

// What weft answers by itself leaves the connection in step: the next request is
// read where it begins.
func TestAnswersKeepTheConnectionInStep(t *testing.T) {
	m := newMesh(t) // no endpoint: every request is answered with 503
	body := strings.Repeat("x", 300)
	_, r := m.raw("POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 300\r\n\r\n" + body + "GET /b HTTP/1.1\r\nHost: shop\r\n\r\n")
	for _, method := range []string{"POST", "GET"} {
		if resp, text := m.read(r, method); resp.StatusCode != 503 || resp.Header.Get("X-Weft-Reason") != "no_endpoint" {
			t.Errorf("%s: %d %q", method, resp.StatusCode, text)
		}
	}
	m.rule = weft.Rule{Direct: &weft.DirectResponse{Status: 200, Body: strings.Repeat("y", 3*bufferSize)}}
	m.publish()
	_, r = m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
	if _, text := m.read(r, "GET"); len(text) != 3*bufferSize {
		t.Errorf("a direct response of %d bytes came with %d", 3*bufferSize, len(text))
	}
}

// A body that is streamed is still all there when no connection came about.
func TestStreamedBodyGoesElsewhereWhenNothingWasSent(t *testing.T) {
	alive := server(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	})
	dead, _ := net.Listen("tcp", "127.0.0.1:0")
	dead.Close()
	for range 10 { // a fresh proxy each time: the second call avoids what it knows to be down
		m := newMesh(t, alive.URL, dead.Addr().String())
		for range 5 {
			_, r := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
			if resp, body := m.read(r, "POST"); resp.StatusCode != 200 || body != "5" {
				t.Fatalf("%d %q", resp.StatusCode, body)
			}
		}
	}
}

// The reading that waits without asking first (conn.serveInPlace, link.sendAndWait)
// must see everything that one that asks would.
func TestHalfClosedClientGetsAnswerAndEnd(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "here") })
	m := newMesh(t, up.URL)
	for range 20 {
		c, r := m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second)) // far below idleTimeout
		if _, body := m.read(r, "GET"); body != "here" {
			t.Errorf("body %q", body)
		}
		if _, err := r.ReadByte(); err != io.EOF {
			t.Fatalf("after the answer: %v", err)
		}
	}
}

func TestPipelinedAndCutRequests(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s%s", r.Method, r.URL.Path, b)
	})
	m := newMesh(t, up.URL)
	all := "GET /1 HTTP/1.1\r\nHost: shop\r\n\r\nGET /2 HTTP/1.1\r\nHost: shop\r\n\r\n" +
		"POST /3 HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhelloGET /4 HTTP/1.1\r\nHost: shop\r\n\r\n"
	want := []string{"GET /1", "GET /2", "POST /3hello", "GET /4"}
	for cut := 1; cut < len(all); cut += 7 {
		c, r := m.raw(all[:cut])
		if cut%2 == 0 {
			<-time.After(time.Millisecond) // let the proxy see the pieces one by one, now and then
		}
		if _, err := io.WriteString(c, all[cut:]); err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if _, body := m.read(r, "GET"); body != w {
				t.Fatalf("cut at %d: got %q, want %q", cut, body, w)
			}
		}
		c.Close()
	}
}

// A server that stops writing without closing, between two exchanges, is noticed
// although the connection is trusted without a look.
func TestHalfClosedUpstreamIsNotWaitedFor(t *testing.T) {
	first := true
	up := script(t, func(c net.Conn, r *bufio.Reader) {
		skipHead(r)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		if first {
			first = false
			_ = c.(*net.TCPConn).CloseWrite()
		}
		io.Copy(io.Discard, r)
	})
	m := newMesh(t, up)
	c, r := m.raw("")
	for range 2 {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if resp, body := m.read(r, "GET"); resp.StatusCode != 200 {
			t.Errorf("%d %q", resp.StatusCode, body)
		}
	}
}

func TestSlowAnswersArriveWhole(t *testing.T) {
	release := make(chan struct{})
	up := script(t, func(c net.Conn, r *bufio.Reader) {
		for {
			skipHead(r)
			<-release // longer than the sweeper's patience with a wait that never looked
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"); err != nil {
				return
			}
			<-release
			if _, err := io.WriteString(c, "llo"); err != nil {
				return
			}
		}
	})
	m := newMesh(t, up)
	_, r := m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
	for range 2 {
		<-time.After(3 * sweepInterval)
		release <- struct{}{}
	}
	if _, body := m.read(r, "GET"); body != "hello" {
		t.Errorf("body %q", body)
	}
	close(release)
}
