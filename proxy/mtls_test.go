package proxy_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/proxy"
	"github.com/weftmesh/weft/proxy/filter/authz"
	"github.com/weftmesh/weft/proxy/filter/edge"
	"github.com/weftmesh/weft/telemetry/accesslog"
)

// memory keeps a mesh's root for one test.
type memory struct {
	mu     sync.Mutex
	values map[string][]byte
}

func (m *memory) Load(_ context.Context, name string) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.values[name]
	return v, ok, nil
}

func (m *memory) Create(_ context.Context, name string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.values[name]; ok {
		return weft.Errorf(weft.Conflict, "create", name, "it exists")
	}
	m.values[name] = value
	return nil
}

func authority(t *testing.T, trustDomain string) *ca.Authority {
	t.Helper()
	a, err := ca.Open(context.Background(), &memory{values: map[string][]byte{}}, ca.Config{TrustDomain: trustDomain, SealKey: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func credentials(t *testing.T, a *ca.Authority, service string) *ca.Credentials {
	t.Helper()
	id := weft.NewIdentity(a.TrustDomain(), "default", service)
	var key crypto.Signer
	key, csr, err := ca.NewCSR(id)
	if err != nil {
		t.Fatal(err)
	}
	chain, _, err := a.Sign(csr, id)
	if err != nil {
		t.Fatal(err)
	}
	var c ca.Credentials
	if err := c.Set(chain, key, a.Roots()); err != nil {
		t.Fatal(err)
	}
	return &c
}

// log collects access lines.
type log struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *log) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.text.String() }

func serve(t *testing.T, p *proxy.Proxy, l *proxy.Listener) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Serve(ln, l) }()
	t.Cleanup(func() {
		p.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// sidecar stands before app as inventory-service, under a policy.
func sidecar(t *testing.T, a *ca.Authority, app string, access *log, policy *weft.AuthorizationPolicy) string {
	t.Helper()
	creds := credentials(t, a, "inventory-service")
	config := proxy.Config{Self: weft.NewServiceName("", "inventory-service")}
	if access != nil {
		config.AccessLog = accesslog.New(access, func(err error) { t.Error(err) })
		t.Cleanup(func() { _ = config.AccessLog.Close() })
	}
	p := proxy.New(config)
	var policies *weft.Authorization
	if policy != nil {
		policies = &weft.Authorization{Policies: []*weft.AuthorizationPolicy{policy}}
	}
	return serve(t, p, &proxy.Listener{Direction: proxy.Inbound, TLS: creds.ServerTLS(proxy.Protocols...), Identify: ca.PeerIdentity,
		Local: strings.TrimPrefix(app, "http://"), Filters: []proxy.Filter{&authz.Filter{Policies: func() *weft.Authorization { return policies }}}})
}

// gateway calls endpoints of inventory-service as service self.
func gateway(t *testing.T, creds *ca.Credentials, self string, endpoints ...weft.Endpoint) string {
	t.Helper()
	inventory := weft.NewServiceName("", "inventory-service")
	p := proxy.New(proxy.Config{Self: weft.NewServiceName("", self), ClientTLS: creds.DialTLS})
	table, err := weft.NewRouteTable("*", []weft.Rule{{Name: "edge", Destinations: []weft.Destination{{Service: inventory}}, Retry: weft.DefaultRetry}})
	if err != nil {
		t.Fatal(err)
	}
	p.Update(&weft.Snapshot{Gateway: weft.NewGateway("g", []*weft.RouteTable{table}),
		Services: map[weft.ServiceName]*weft.Service{inventory: {Name: inventory, Endpoints: endpoints}}})
	return serve(t, p, &proxy.Listener{Direction: proxy.Edge, Filters: []proxy.Filter{edge.Filter{}}})
}

func call(t *testing.T, req *http.Request) (*http.Response, string) {
	t.Helper()
	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := web.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp, string(b)
}

func request(method, address string) *http.Request {
	req, _ := http.NewRequest(method, "http://"+address+"/api/inventory/42", nil)
	return req
}

func TestOnlyTheNamedServiceMayCall(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "xff=%s weft=%s", r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Weft-Unsent"))
	}))
	t.Cleanup(app.Close)
	a := authority(t, "cluster.local")
	var access log
	policy := &weft.AuthorizationPolicy{Source: weft.SourceRef{Kind: "AuthorizationPolicy", Namespace: "default", Name: "inventory-policy", File: "p.yaml", Line: 1},
		Rules: []weft.AuthorizationRule{{From: []weft.SourceMatch{{Principals: weft.Values{Any: []weft.StringMatch{
			{Kind: weft.MatchExact, Value: "cluster.local/ns/default/sa/order-service"}}}}}}}}
	port := sidecar(t, a, app.URL, &access, policy)
	ep := weft.Endpoint{ID: "i", Address: port, Identity: "spiffe://cluster.local/ns/default/sa/inventory-service", Weight: 1}

	req := request("GET", gateway(t, credentials(t, a, "order-service"), "order-service", ep))
	req.Header.Set("X-Weft-Unsent", "1")
	req.Header.Set("X-Forwarded-For", "1.2.3.4")
	if resp, body := call(t, req); resp.StatusCode != 200 || body != "xff=1.2.3.4, 127.0.0.1 weft=" {
		t.Errorf("order-service: %d %q", resp.StatusCode, body)
	}
	if resp, body := call(t, request("GET", gateway(t, credentials(t, a, "user-service"), "user-service", ep))); resp.StatusCode != 403 || strings.Contains(body, "inventory-policy") {
		t.Errorf("user-service: %d %q", resp.StatusCode, body)
	}
	want := []string{"AuthorizationPolicy default/inventory-policy (p.yaml:1)", `"source":"user-service"`}
	for deadline := time.Now().Add(5 * time.Second); ; { // the line is written after the answer
		text := access.String()
		if strings.Contains(text, want[0]) && strings.Contains(text, want[1]) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the access log lacks %q: %s", want, text)
		}
		runtime.Gosched()
	}
}

func TestStrangersAreRefused(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a stranger reached the application") }))
	t.Cleanup(app.Close)
	a := authority(t, "cluster.local")
	port := sidecar(t, a, app.URL, new(log), nil)
	ep := weft.Endpoint{ID: "i", Address: port, Identity: "spiffe://cluster.local/ns/default/sa/inventory-service", Weight: 1}

	t.Run("plain text", func(t *testing.T) {
		c, err := net.Dial("tcp", port)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if b, _ := io.ReadAll(c); strings.HasPrefix(string(b), "HTTP/") {
			t.Errorf("answered %q", b)
		}
	})
	t.Run("no certificate", func(t *testing.T) {
		c, err := tls.Dial("tcp", port, &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			if _, err = c.Read(make([]byte, 1)); err == nil {
				t.Error("answered")
			}
			c.Close()
		}
	})
	t.Run("another trust domain", func(t *testing.T) {
		foreign := credentials(t, authority(t, "elsewhere.org"), "order-service")
		if resp, body := call(t, request("GET", gateway(t, foreign, "order-service", ep))); resp.StatusCode != 503 {
			t.Errorf("%d %q", resp.StatusCode, body)
		}
	})
	t.Run("another service at the address", func(t *testing.T) {
		wrong := ep
		wrong.Identity = "spiffe://cluster.local/ns/default/sa/payment-service"
		if resp, body := call(t, request("GET", gateway(t, credentials(t, a, "order-service"), "order-service", wrong))); resp.StatusCode != 503 {
			t.Errorf("%d %q", resp.StatusCode, body)
		}
	})
}

// The sidecar says that its application was never reached, so even a POST goes to
// the other instance.
func TestDeadApplicationBehindALiveSidecar(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "alive") }))
	t.Cleanup(app.Close)
	dead, _ := net.Listen("tcp", "127.0.0.1:0")
	dead.Close()
	a := authority(t, "cluster.local")
	id := weft.Identity("spiffe://cluster.local/ns/default/sa/inventory-service")
	addr := gateway(t, credentials(t, a, "order-service"), "order-service",
		weft.Endpoint{ID: "dead", Address: sidecar(t, a, dead.Addr().String(), new(log), nil), Identity: id, Weight: 1},
		weft.Endpoint{ID: "alive", Address: sidecar(t, a, app.URL, new(log), nil), Identity: id, Weight: 1})
	for range 30 {
		if resp, body := call(t, request("POST", addr)); resp.StatusCode != 200 || body != "alive" || resp.Header.Get("X-Weft-Unsent") != "" {
			t.Fatalf("%d %q %v", resp.StatusCode, body, resp.Header)
		}
	}
}

// Between sidecars HTTP/2 goes by HTTP/2, whatever the application speaks.
func TestHTTP2BetweenSidecars(t *testing.T) {
	a := authority(t, "cluster.local")
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
	t.Cleanup(app.Close)
	port := sidecar(t, a, app.URL, nil, nil)
	gw := gateway(t, credentials(t, a, "order-service"), "order-service",
		weft.Endpoint{ID: "i", Address: port, Identity: "spiffe://cluster.local/ns/default/sa/inventory-service", Weight: 1})
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &p}
	t.Cleanup(tr.CloseIdleConnections)
	for range 3 {
		resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Do(request("GET", gw))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.ProtoMajor != 2 || resp.StatusCode != 200 || string(b) != "HTTP/1.1" {
			t.Errorf("%s %d %q", resp.Proto, resp.StatusCode, b)
		}
	}
}
