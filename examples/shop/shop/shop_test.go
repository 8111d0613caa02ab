package shop

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// started runs a service on a free port and returns its address and what stops
// it, which returns Run's error.
func started(t *testing.T, name string, env Env) (base string, stop func() error) {
	t.Helper()
	env.Port = "0"
	listening := make(chan net.Addr, 1)
	env.Listening = func(a net.Addr) { listening <- a }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, name, env) }()
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	select {
	case a := <-listening:
		return "http://" + a.String(), stop
	case err := <-ended:
		t.Fatalf("%s did not start: %v", name, err)
		return "", nil
	}
}

var web = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}

// answered is what a service said.
type answered struct {
	code   int
	header http.Header
	body   string
}

func ask(t *testing.T, method, url, body string) answered {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := web.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answered{resp.StatusCode, resp.Header, strings.TrimSpace(string(b))}
}

// decoded is the answer's JSON; it must have all the named fields.
func decoded[T any](t *testing.T, a answered, wantCode int) (v T) {
	t.Helper()
	if a.code != wantCode || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("got %d %s %s, want %d", a.code, a.header.Get("Content-Type"), a.body, wantCode)
	}
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("%s: %v", a.body, err)
	}
	return v
}

func keys(m map[string]any) []string {
	var names []string
	for k := range m {
		names = append(names, k)
	}
	slices.Sort(names)
	return names
}

func TestEachServiceAnswers(t *testing.T) {
	for _, want := range []struct{ service, path, fields string }{
		{"user-service", "/users/7", "avatarUrl id name"},
		{"user-service", "/api/users/7", "avatarUrl id name"},
		{"inventory-service", "/api/inventory/42", "available sku warehouse"},
		{"payment-service", "/payments/3", "amount id orderId status"},
	} {
		base, _ := started(t, want.service, Env{Version: "v2"})
		a := ask(t, "GET", base+want.path, "")
		m := decoded[map[string]any](t, a, 200)
		if got := strings.Join(keys(m), " "); got != want.fields {
			t.Errorf("%s%s: fields %s", want.service, want.path, got)
		}
		if by := a.header.Get("X-Served-By"); !strings.HasPrefix(by, want.service+"-v2-") {
			t.Errorf("%s: served by %q", want.service, by)
		}
		if again := ask(t, "GET", base+want.path, ""); again.body != a.body {
			t.Errorf("%s%s: says something else the second time", want.service, want.path)
		}
		if h := ask(t, "GET", base+"/health", ""); h.code != 200 {
			t.Errorf("%s: health %d", want.service, h.code)
		}
		if h := ask(t, "GET", base+"/nothing", ""); h.code != 404 {
			t.Errorf("%s: unknown path %d", want.service, h.code)
		}
	}
}

func TestRecommendationsAndLimits(t *testing.T) {
	base, _ := started(t, "recommendation-service", Env{})
	list := decoded[[]map[string]any](t, ask(t, "GET", base+"/recommendations/7?limit=3", ""), 200)
	if len(list) != 3 || strings.Join(keys(list[0]), " ") != "price productId productName thumbnailUrl" {
		t.Errorf("got %v", list)
	}
	for _, limit := range []string{"0", "101", "-1", "x", "1e1"} {
		if a := ask(t, "GET", base+"/recommendations/7?limit="+limit, ""); a.code != 400 || !strings.Contains(a.body, limit) {
			t.Errorf("limit=%s: %d %s", limit, a.code, a.body)
		}
	}
}

// sidecar is a forward proxy that knows services by name, as weft's is.
type sidecar struct {
	*httptest.Server
	mu     sync.Mutex
	routes map[string]string // host -> base URL
	called []string          // "host path"
}

func newSidecar(t *testing.T) *sidecar {
	s := &sidecar{routes: map[string]string{}}
	transport := &http.Transport{}
	s.Server = httptest.NewServer(&httputil.ReverseProxy{Transport: transport, Rewrite: func(p *httputil.ProxyRequest) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.called = append(s.called, p.In.URL.Host+" "+p.In.URL.Path)
		to, err := url.Parse(s.routes[p.In.URL.Host])
		if err != nil || to.Host == "" {
			to = &url.URL{Scheme: "http", Host: "127.0.0.1:1"} // nobody listens there
		}
		p.Out.URL.Scheme, p.Out.URL.Host = "http", to.Host
	}, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, "no healthy endpoint", http.StatusServiceUnavailable)
	}})
	t.Cleanup(func() { s.Close(); transport.CloseIdleConnections() })
	return s
}

func (s *sidecar) route(host, base string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.routes[host] = base
}

// env is the environment of a service beside this sidecar.
func (s *sidecar) env(more ...string) Env {
	vars := map[string]string{"HTTP_PROXY": s.URL, "VERSION": "v1"}
	for i := 0; i < len(more); i += 2 {
		vars[more[i]] = more[i+1]
	}
	return ReadEnv(func(name string) string { return vars[name] })
}

func TestOrderCallsItsPartsByNameThroughTheProxy(t *testing.T) {
	s := newSidecar(t)
	users, _ := started(t, "user-service", Env{})
	inventory, _ := started(t, "inventory-service", Env{})
	payments, _ := started(t, "payment-service", Env{})
	s.route("user-service", users)
	s.route("inventory-service", inventory)
	s.route("payment-service", payments)
	orders, _ := started(t, "order-service", s.env())

	a := ask(t, "GET", orders+"/api/orders/1", "")
	o := decoded[map[string]any](t, a, 200)
	if got := strings.Join(keys(o), " "); got != "createdAt id inventory payment quantity servedBy sku status totalAmount user userId version" {
		t.Errorf("fields %s", got)
	}
	if o["id"] != "1" || o["version"] != "v1" || o["servedBy"] != a.header.Get("X-Served-By") {
		t.Errorf("got %s", a.body)
	}
	u, i := o["user"].(map[string]any), o["inventory"].(map[string]any)
	p := o["payment"].(map[string]any)
	if p["orderId"] != "1" || p["amount"] != o["totalAmount"] || p["status"] != "settled" {
		t.Errorf("the payment does not belong to the order: %s", a.body)
	}
	if u["id"] != o["userId"] || u["name"] == "" || i["sku"] != o["sku"] || i["warehouse"] == "" {
		t.Errorf("parts do not belong to the order: %s", a.body)
	}
	slices.Sort(s.called)
	want := fmt.Sprintf("[inventory-service /api/inventory/%s payment-service /payments/1 user-service /users/%s]", o["sku"], o["userId"])
	if fmt.Sprint(s.called) != want {
		t.Errorf("called %v, want %s", s.called, want)
	}
}

func TestOrderSaysWhichPartFailed(t *testing.T) {
	s := newSidecar(t)
	users, _ := started(t, "user-service", Env{})
	payments, _ := started(t, "payment-service", Env{})
	s.route("user-service", users)
	s.route("payment-service", payments)
	orders, _ := started(t, "order-service", s.env())
	a := decoded[map[string]string](t, ask(t, "GET", orders+"/api/orders/1", ""), 502)
	if e := a["error"]; !strings.Contains(e, "inventory-service: 503") || !strings.Contains(e, "no healthy endpoint") || strings.Contains(e, "user-service") || strings.Contains(e, "payment-service") {
		t.Errorf("says %q", e)
	}
	s.Close() // its sidecar is gone
	a = decoded[map[string]string](t, ask(t, "GET", orders+"/api/orders/1", ""), 502)
	if e := a["error"]; !strings.Contains(e, "inventory-service: ") || !strings.Contains(e, "user-service: ") || !strings.Contains(e, "payment-service: ") {
		t.Errorf("says %q", e)
	}
}

func TestOrderCallsUpstreamURLsDirectly(t *testing.T) {
	s := newSidecar(t)
	users, _ := started(t, "user-service", Env{})
	inventory, _ := started(t, "inventory-service", Env{})
	payments, _ := started(t, "payment-service", Env{})
	orders, _ := started(t, "order-service", s.env("USER_SERVICE_URL", users, "INVENTORY_SERVICE_URL", inventory+"/", "PAYMENT_SERVICE_URL", payments))
	if a := ask(t, "GET", orders+"/api/orders/1", ""); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if len(s.called) != 0 {
		t.Errorf("loopback went through the proxy: %v", s.called)
	}
}

func TestOrdersAreListedAndPosted(t *testing.T) {
	base, _ := started(t, "order-service", Env{})
	list := decoded[[]order](t, ask(t, "GET", base+"/orders?user=7&limit=5", ""), 200)
	if len(list) != 5 || list[0].UserID != "7" || list[0].TotalAmount <= 0 || list[0].CreatedAt.IsZero() || list[0].Status == "" {
		t.Errorf("list %+v", list)
	}
	if got := decoded[[]order](t, ask(t, "GET", base+"/api/orders", ""), 200); len(got) != 10 || got[0].ID != "1" {
		t.Errorf("all: %+v", got)
	}

	a := ask(t, "POST", base+"/api/orders", `{"userId":"7","sku":"42","quantity":2}`)
	made := decoded[order](t, a, 201)
	if made.UserID != "7" || made.SKU != "42" || made.Quantity != 2 || made.Status != "created" ||
		a.header.Get("Location") != "/api/orders/"+made.ID || a.header.Get("X-Order-Count") != "1" {
		t.Errorf("posted: %s %v", a.body, a.header)
	}
	if list := decoded[[]order](t, ask(t, "GET", base+"/orders?user=7&limit=5", ""), 200); len(list) != 5 || list[0] != made {
		t.Errorf("the posted order does not lead the list: %+v", list)
	}
	if list := decoded[[]order](t, ask(t, "GET", base+"/orders?user=8", ""), 200); slices.Contains(list, made) {
		t.Error("the posted order is in another user's list")
	}

	for n, bad := range []struct {
		body string
		code int
	}{
		{`{`, 400}, {`[]`, 400}, {`{"quantity":0}`, 400}, {`{"quantity":"many"}`, 400}, {`{"userId":""}`, 400},
		{`{"userId":"` + strings.Repeat("7", maxBody) + `"}`, 413},
	} {
		a := ask(t, "POST", base+"/api/orders", bad.body)
		if a.code != bad.code || !strings.Contains(a.body, `"error"`) {
			t.Errorf("%.40s: %d %s", bad.body, a.code, a.body)
		}
		if got := a.header.Get("X-Order-Count"); got != fmt.Sprint(n+2) {
			t.Errorf("call %d is counted as %s: every POST that arrives counts", n+2, got)
		}
	}
	if a := ask(t, "POST", base+"/api/orders", ""); a.code != 201 || a.header.Get("X-Order-Count") != "8" {
		t.Errorf("an empty body: %d %v", a.code, a.header)
	}
}

func TestPostedOrdersAreBounded(t *testing.T) {
	o := &orders{kept: map[string]order{}}
	for i := range keptOrders + 10 {
		o.add(order{ID: fmt.Sprint("posted-", i), UserID: "7"})
	}
	if len(o.kept) != keptOrders || len(o.ids) != keptOrders {
		t.Errorf("keeps %d and %d", len(o.kept), len(o.ids))
	}
	if o.get("posted-0").Status == "" || o.get("posted-1009").Status != "" {
		t.Error("the oldest must go, the newest stay")
	}
}

func TestPayments(t *testing.T) {
	base, _ := started(t, "payment-service", Env{})
	a := ask(t, "POST", base+"/payments", `{"orderId":"1","amount":12.5,"id":"mine","status":"settled"}`)
	p := decoded[payment](t, a, 201)
	if p.OrderID != "1" || p.Amount != 12.5 || p.Status != "authorized" || p.ID == "mine" {
		t.Errorf("posted %+v", p)
	}
	if got := decoded[payment](t, ask(t, "GET", base+a.header.Get("Location"), ""), 200); got != p {
		t.Errorf("read %+v, posted %+v", got, p)
	}
	for _, bad := range []string{"", "{}", `{"orderId":"1"}`, `{"orderId":"1","amount":-1}`, `{"amount":1}`, `{"orderId":"1","amount":1e7}`} {
		if a := ask(t, "POST", base+"/payments", bad); a.code != 400 {
			t.Errorf("%s: %d %s", bad, a.code, a.body)
		}
	}
}

// otlpReceiver collects "service name" of each span, with its trace and parent.
type otlpReceiver struct {
	*httptest.Server
	mu    sync.Mutex
	spans []string
	trace map[string]bool
}

func newReceiver(t *testing.T) *otlpReceiver {
	o := &otlpReceiver{trace: map[string]bool{}}
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req collectorpb.ExportTraceServiceRequest
		b, err := io.ReadAll(r.Body)
		if err = firstError(err, proto.Unmarshal(b, &req)); err != nil || r.URL.Path != "/v1/traces" {
			http.Error(w, fmt.Sprint(r.URL.Path, err), 400)
			return
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, rs := range req.ResourceSpans {
			service := ""
			for _, a := range rs.Resource.Attributes {
				if a.Key == "service.name" {
					service = a.Value.GetStringValue()
				}
			}
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					o.spans = append(o.spans, service+" "+s.Kind.String()+" "+s.Name)
					o.trace[hex.EncodeToString(s.TraceId)] = true
				}
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(o.Close)
	return o
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestSpansOfOneRequestStandInOneTrace(t *testing.T) {
	receiver := newReceiver(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.URL) // read by the SDK itself
	t.Setenv("OTEL_SERVICE_NAME", "")
	otel := []string{"OTEL_EXPORTER_OTLP_ENDPOINT", receiver.URL, "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "OTEL_PROPAGATORS", "tracecontext,baggage"}
	s := newSidecar(t)
	users, stopUsers := started(t, "user-service", s.env(otel...))
	inventory, stopInventory := started(t, "inventory-service", s.env(otel...))
	payments, stopPayments := started(t, "payment-service", s.env(otel...))
	s.route("payment-service", payments)
	s.route("user-service", users)
	s.route("inventory-service", inventory)
	orders, stopOrders := started(t, "order-service", s.env(otel...))

	req, _ := http.NewRequestWithContext(t.Context(), "GET", orders+"/api/orders/1", nil)
	req.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	resp, err := web.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	ask(t, "GET", orders+"/health", "")
	for _, stop := range []func() error{stopUsers, stopInventory, stopPayments, stopOrders} {
		if err := stop(); err != nil { // flushes
			t.Fatal(err)
		}
	}
	slices.Sort(receiver.spans)
	want := []string{
		"inventory-service SPAN_KIND_SERVER GET /api/inventory/{sku}",
		"order-service SPAN_KIND_CLIENT HTTP GET", "order-service SPAN_KIND_CLIENT HTTP GET", "order-service SPAN_KIND_CLIENT HTTP GET",
		"order-service SPAN_KIND_SERVER GET /api/orders/{id}",
		"payment-service SPAN_KIND_SERVER GET /payments/{id}",
		"user-service SPAN_KIND_SERVER GET /users/{id}",
	}
	if !slices.Equal(receiver.spans, want) {
		t.Errorf("spans\n%s\nwant\n%s", strings.Join(receiver.spans, "\n"), strings.Join(want, "\n"))
	}
	if len(receiver.trace) != 1 || !receiver.trace["4bf92f3577b34da6a3ce929d0e0e4736"] {
		t.Errorf("traces %v", receiver.trace)
	}
}

// allOf is one peer that stands for every service that an order is made of.
func allOf(peer string) map[string]string {
	return map[string]string{"user-service": peer, "inventory-service": peer, "payment-service": peer}
}

// Without an endpoint nothing is exported, and the trace still goes on.
func TestTraceContextIsPassedOnWithoutExport(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	peer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Header.Get("Traceparent")+" "+r.Header.Get("Baggage"))
		fmt.Fprint(w, "{}")
	}))
	defer peer.Close()
	base, _ := started(t, "order-service", Env{Upstreams: allOf(peer.URL)})
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	req, _ := http.NewRequestWithContext(t.Context(), "GET", base+"/api/orders/1", nil)
	req.Header.Set("Traceparent", parent)
	req.Header.Set("Baggage", "tenant=blue")
	resp, err := web.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(seen, []string{parent + " tenant=blue", parent + " tenant=blue", parent + " tenant=blue"}) {
		t.Errorf("passed on %q", seen)
	}
}

func TestRunRefuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	for _, c := range []struct {
		name string
		env  Env
		says string
	}{
		{"cart-service", Env{Port: "0"}, "inventory-service"},
		{"user-service", Env{}, "PORT"},
		{"user-service", Env{Port: port}, port},
		{"user-service", Env{Port: "many"}, "many"},
		{"user-service", Env{Port: "0", Telemetry: Telemetry{Export: true, Protocol: "grpc"}}, "grpc"},
		{"user-service", Env{Port: "0", Telemetry: Telemetry{Propagators: "b3"}}, "b3"},
	} {
		if err := Run(t.Context(), c.name, c.env); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %+v: %v, want %q", c.name, c.env, err, c.says)
		}
	}
}

func TestStoppingFinishesTheRequestInFlight(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	peer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/users") {
			close(arrived)
			<-release
		}
		fmt.Fprint(w, "{}")
	}))
	defer peer.Close()
	base, stop := started(t, "order-service", Env{Upstreams: allOf(peer.URL)})
	got := make(chan string, 1)
	go func() {
		resp, err := web.Get(base + "/api/orders/1")
		if err != nil {
			got <- err.Error()
			return
		}
		resp.Body.Close()
		got <- resp.Status
	}()
	<-arrived
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	host := strings.TrimPrefix(base, "http://")
	for { // until it takes no more connections
		conn, err := net.Dial("tcp", host)
		if err != nil {
			break
		}
		conn.Close()
	}
	close(release)
	if status := <-got; status != "200 OK" {
		t.Errorf("the request in flight got %s", status)
	}
	if err := <-stopped; err != nil {
		t.Errorf("stopped with %v", err)
	}
}

func TestAccessLinesAtDebugOnly(t *testing.T) {
	for level, want := range map[slog.Level]bool{slog.LevelInfo: false, slog.LevelDebug: true} {
		var out bytes.Buffer
		base, stop := started(t, "user-service", Env{Log: slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: level}))})
		ask(t, "GET", base+"/users/7", "")
		ask(t, "GET", base+"/nothing", "")
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if !want {
			if out.Len() > 0 {
				t.Errorf("not quiet:\n%s", &out)
			}
			continue
		}
		var lines []map[string]any
		for line := range strings.Lines(out.String()) {
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, m)
		}
		if len(lines) != 2 || lines[0]["path"] != "/users/7" || lines[0]["status"] != 200.0 || lines[1]["status"] != 404.0 {
			t.Errorf("lines:\n%s", &out)
		}
	}
}
