package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/telemetry/accesslog"
)

// What is answered in place of a failure, and what is not.

// backup adds a service to the mesh, and returns its server's end.
func (m *mesh) backup(h http.HandlerFunc) {
	s := &weft.Service{Name: weft.NewServiceName("", "backup"), Policy: weft.TrafficPolicy{}}
	s.Endpoints = []weft.Endpoint{{ID: "backup", Address: strings.TrimPrefix(server(m.t, h).URL, "http://"), Weight: 1}}
	m.others = append(m.others, s)
}

func ill(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { http.Error(w, "ill", status) }
}

// A cookie that leads to one of the service's endpoints means nothing where another
// service answers.
func TestFallbackOfStickyService(t *testing.T) {
	m := newMesh(t, server(t, ill(500)).URL)
	m.backup(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "backup") })
	m.svc.Policy = weft.TrafficPolicy{LoadBalancer: weft.RingHash, Hash: &weft.Hash{Cookie: "place", CookieTTL: time.Hour}}
	m.policy(`{"fallback":{"service":"backup"}}`)
	resp, body := m.ask("GET", "/", nil)
	if resp.StatusCode != 200 || body != "backup" || len(resp.Cookies()) != 0 {
		t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
	}
}

// lines collects the access log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// last waits for the n-th line.
func (l *lines) last(t *testing.T, n int) (line string) {
	until(t, "", func() string {
		l.mu.Lock()
		defer l.mu.Unlock()
		all := strings.Split(l.text.String(), "\n")
		if len(all) <= n {
			return fmt.Sprintf("%d lines in the access log", len(all)-1)
		}
		line = all[n-1]
		return ""
	})
	return line
}

// newLoggedMesh is a mesh with an access log.
func newLoggedMesh(t *testing.T, upstreams ...string) (*mesh, *lines) {
	l := &lines{}
	log := accesslog.New(l, func(err error) { t.Error(err) })
	t.Cleanup(func() { _ = log.Close() })
	return newMeshOf(t, Config{AccessLog: log}, upstreams...), l
}

// The chain is gone down to its end: another service, the last good answer, a fixed
// one. What is recorded is the service that was asked for, and why it was not it that
// answered.
func TestFallbackChain(t *testing.T) {
	m, log := newLoggedMesh(t, server(t, ill(500)).URL)
	status := 200
	m.backup(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status); fmt.Fprint(w, "backup") })
	m.policy(`{"fallback":{"service":"backup","status":203,"body":"fixed"}}`)
	for i, tt := range []struct {
		backup, want int
		kind, to     string
	}{
		{200, 200, "service", `"destination":"backup"`}, {500, 203, "static", `"destination":"shop"`}, {404, 404, "service", `"destination":"backup"`},
	} {
		status = tt.backup
		resp, _ := m.ask("GET", "/", nil)
		if resp.StatusCode != tt.want || resp.Header.Get("X-Weft-Fallback") != tt.kind || resp.Header.Get("X-Weft-Reason") != "upstream_error" {
			t.Errorf("the other service says %d: %d %v", tt.backup, resp.StatusCode, resp.Header)
		}
		line := log.last(t, i+1)
		for _, want := range []string{`"reason":"upstream_error"`, `"fallback":"` + tt.kind + `"`, `"policy":"ResiliencePolicy default/shop (shop.yaml:1)"`, tt.to} {
			if !strings.Contains(line, want) {
				t.Errorf("the other service says %d: %s has no %s", tt.backup, line, want)
			}
		}
	}
	m.policy(`{"fallback":{"service":"nobody"}}`)
	if resp, body := m.ask("GET", "/", nil); resp.StatusCode != 500 || body != "ill\n" {
		t.Errorf("nothing can stand in: %d %q; want the service's own answer", resp.StatusCode, body)
	}
	settled(t, m.proxy)
}

// What counts as a failure is the policy's to say, and so is what stands in for it.
func TestFallbackOfClientError(t *testing.T) {
	m := newMesh(t, server(t, ill(404)).URL)
	m.policy(`{"circuitBreaker":{"failureStatuses":["404"]},"fallback":{"status":200,"body":"nothing"}}`)
	if resp, body := m.ask("GET", "/", nil); resp.StatusCode != 200 || body != "nothing" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	m.policy(`{"circuitBreaker":{"failureStatuses":["404"]},"fallback":{"cached":{}}}`)
	for range 2 {
		if resp, body := m.ask("GET", "/", nil); resp.StatusCode != 404 || body != "ill\n" || resp.Header.Get("X-Weft-Fallback") != "" {
			t.Errorf("a failure is no good answer: %d %q %v", resp.StatusCode, body, resp.Header)
		}
	}
}

// A client that asked to speak something else would take an answer for a yes.
func TestNoFallbackForUpgrades(t *testing.T) {
	m := newMesh(t, server(t, ill(500)).URL)
	m.policy(`{"fallback":{"cached":{},"status":200,"body":"nothing"}}`)
	_, r := m.raw(upgradeRequest)
	if resp, _ := m.read(r, "GET"); resp.StatusCode != 500 {
		t.Errorf("refused: %d", resp.StatusCode)
	}
	m.endpoints("127.0.0.1:1")
	_, r = m.raw(upgradeRequest)
	if resp, _ := m.read(r, "GET"); resp.StatusCode != 503 || resp.Header.Get("X-Weft-Fallback") != "" {
		t.Errorf("unreachable: %d %v", resp.StatusCode, resp.Header)
	}
}

// call makes a unary call of gRPC.
func (m *mesh) call(fields ...string) *reply {
	m.t.Helper()
	f := dialFrames(m.t, m.addr)
	var out bytes.Buffer // in one piece, as gRPC's clients send it: such a call is whole
	w := newFramer(nil, nil)
	w.Framer = http2.NewFramer(&out, nil)
	_ = w.ask(1, false, "POST", "/shop.Words/Unary", append([]string{"content-type", "application/grpc", "te", "trailers"}, fields...)...)
	_ = w.WriteData(1, true, []byte("\x00\x00\x00\x00\x05hello"))
	_, _ = f.Conn.Write(out.Bytes())
	r, err := f.reply(1)
	if err != nil {
		m.t.Fatal(err)
	}
	_ = f.Close()
	return r
}

// status answers a call with no message.
func status(code string) func(f *framer, id uint32) error {
	return func(f *framer, id uint32) error {
		return f.head(id, true, ":status", "200", "content-type", "application/grpc", "grpc-status", code)
	}
}

func TestFallbackOfCalls(t *testing.T) {
	m := newMesh(t, speaks(t, status("13")))
	m.policy(`{"circuitBreaker":{},"fallback":{"service":"backup","status":200}}`)
	m.speak(weft.GRPC)
	if r := m.call(); r.fields["grpc-status"] != "13" || r.fields["x-weft-reason"] != "" {
		t.Errorf("there is no other service: %v %v; want the service's own status", r, r.fields)
	}
	m.backup(func(http.ResponseWriter, *http.Request) {})
	m.others[0].Endpoints[0] = weft.Endpoint{ID: "b", Address: speaks(t, status("0")), Weight: 1, Protocol: weft.GRPC}
	m.publish()
	if r := m.call(); r.fields["grpc-status"] != "0" || r.fields["x-weft-fallback"] != "service" {
		t.Errorf("%v %v", r, r.fields)
	}
	m.others[0] = &weft.Service{Name: m.others[0].Name, Endpoints: []weft.Endpoint{{ID: "b", Address: "127.0.0.1:1", Weight: 1, Protocol: weft.GRPC}}}
	m.publish()
	if r := m.call(); r.fields["grpc-status"] != "13" || r.fields["x-weft-fallback"] != "" {
		t.Errorf("both are ill: %v %v; want the first one's status", r, r.fields)
	}
	settled(t, m.proxy)
}

// The other service has as long as the first one had, and no longer than the client
// waits.
func TestFallbackIsInTime(t *testing.T) {
	m := newMesh(t, server(t, ill(500)).URL)
	m.backup(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	m.rule.Timeout = 100 * time.Millisecond
	m.policy(`{"fallback":{"service":"backup","status":203}}`)
	if resp, _ := m.ask("GET", "/", nil); resp.StatusCode != 203 || resp.Header.Get("X-Weft-Fallback") != "static" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
}

// The answer that stands in is one that its client can read: with one length, or none
// where there is no body, and with one age.
func TestLastGoodAnswerIsWellFormed(t *testing.T) {
	var sick atomic.Bool
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case sick.Load():
			w.WriteHeader(500)
		case r.URL.Path == "/none":
			w.WriteHeader(204)
		default:
			w.Header().Set("Age", "100")
			fmt.Fprint(w, "hello")
		}
	})
	m := newMesh(t, up.URL)
	m.policy(`{"fallback":{"cached":{}}}`)
	ask := func(method, path string) (*http.Response, string) {
		_, r := m.raw(method + " " + path + " HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
		resp, body := m.read(r, method)
		if rest, _ := io.ReadAll(r); len(rest) > 0 {
			t.Errorf("%s %s: %q behind the answer", method, path, rest)
		}
		return resp, body
	}
	ask("HEAD", "/")
	ask("GET", "/")
	ask("GET", "/none")
	settled(t, m.proxy) // the client has its answer before it is kept
	sick.Store(true)
	for _, tt := range []struct {
		method, path string
		status       int
		length, body string
	}{{"GET", "/", 200, "5", "hello"}, {"HEAD", "/", 200, "5", ""}, {"GET", "/none", 204, "", ""}} {
		resp, body := ask(tt.method, tt.path)
		if resp.StatusCode != tt.status || strings.Join(resp.Header["Content-Length"], "|") != tt.length || body != tt.body || resp.Header.Get("X-Weft-Fallback") != "cached" {
			t.Errorf("%s %s: %d %q %v", tt.method, tt.path, resp.StatusCode, body, resp.Header)
		}
		if age := resp.Header["Age"]; tt.status == 200 && (len(age) != 1 || age[0] < "100" || age[0] > "109") {
			t.Errorf("%s %s: age %q", tt.method, tt.path, age)
		}
	}
}

// Nobody gets what was for somebody else.
func TestWhatIsNotKept(t *testing.T) {
	var sick atomic.Bool
	var field, value string
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		if sick.Load() {
			w.WriteHeader(500)
			return
		}
		w.Header().Set(field, value)
		fmt.Fprint(w, "hello")
	})
	for _, tt := range []struct {
		field, value string
		ask          http.Header
		kept         bool
	}{
		{"Server", "x", nil, true},
		{"Set-Cookie", "a=b", nil, false},
		{"Cache-Control", "max-age=1, no-store", nil, false},
		{"Cache-Control", "private", nil, false}, // the client may be told by any header
		{"Cache-Control", "private", http.Header{"Authorization": {"ann"}}, true},
		{"Cache-Control", "private", http.Header{"Cookie": {"user=ann"}}, true},
		{"Vary", "Accept, accept-encoding", nil, true},
		{"Vary", "Accept, X-Tenant", nil, false},
		{"Vary", "*", nil, false},
		{"Server", "x", http.Header{"Range": {"bytes=0-1"}}, false},
	} {
		m := newMesh(t, up.URL)
		m.policy(`{"fallback":{"cached":{}}}`)
		field, value = tt.field, tt.value
		sick.Store(false)
		m.ask("GET", "/", tt.ask)
		settled(t, m.proxy) // the client has its answer before it is kept
		sick.Store(true)
		if resp, _ := m.ask("GET", "/", tt.ask); (resp.Header.Get("X-Weft-Fallback") == "cached") != tt.kept {
			t.Errorf("%s: %s to %v: %d %v", tt.field, tt.value, tt.ask, resp.StatusCode, resp.Header)
		}
	}
}
