package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/store"
	"github.com/weftmesh/weft/telemetry/collect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// house is a server's planes with the API before them.
type house struct {
	*client.Client
	url       string
	registry  *registry.Registry
	control   *control.Control
	collector *collect.Collector
	token     string
}

func openHouse(t *testing.T) *house {
	t.Helper()
	ctx := t.Context()
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	state, err := store.Open(ctx, store.Config{Dir: t.TempDir(), Logger: logger})
	check(t, err)
	h := &house{}
	h.registry, err = registry.Open(ctx, registry.Config{Store: state, Node: weft.Node{Name: "laptop", Address: "127.0.0.1"}, Logger: logger})
	check(t, err)
	authority, err := ca.Open(ctx, &memory{}, ca.Config{SealKey: make([]byte, 32)})
	check(t, err)
	h.token, err = ca.NewJoinToken(authority.Roots())
	check(t, err)
	h.control, err = control.Open(ctx, control.Config{Store: state, Registry: h.registry, CA: authority, JoinToken: h.token, Logger: logger})
	check(t, err)
	h.collector, err = collect.Open(collect.Config{Dir: t.TempDir(), Logger: logger})
	check(t, err)
	s := httptest.NewServer(New(Config{Registry: h.registry, Control: h.control, Collector: h.collector, Logger: logger,
		Hosts: []string{"weft.example.com"}, Listeners: []client.Listener{{Name: "api", Address: "127.0.0.1:7400"}}}))
	h.url = s.URL
	h.Client, err = client.New(ctx, client.At(s.URL))
	check(t, err)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		for _, c := range []io.Closer{h.collector, h.control, h.registry, state} {
			check(t, c.Close())
		}
	})
	return h
}

// memory keeps the authority's root.
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
	if m.values == nil {
		m.values = map[string][]byte{}
	}
	m.values[name] = value
	return nil
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (h *house) register(t *testing.T, in weft.Instance) {
	t.Helper()
	in.Service = weft.NewServiceName(in.Service.Namespace, in.Service.Name)
	_, err := h.registry.Register(t.Context(), in)
	check(t, err)
}

func static(status weft.Health) []weft.Check {
	return []weft.Check{{Kind: weft.StaticCheck, Status: status, Output: "as told", Header: map[string][]string{"Authorization": {"secret"}}}}
}

func named(name string) weft.ServiceName { return weft.ServiceName{Name: name} }

func TestTheCatalogue(t *testing.T) {
	h := openHouse(t)
	h.register(t, weft.Instance{ID: "o1", Service: named("order-service"), Port: 3000, Tags: []string{"http", "api"}, PID: 4711, Protocol: weft.GRPC,
		Labels: map[string]string{"version": "v2"}, Zone: "a", Identity: ordersID, MeshAddr: "127.0.0.1:15006"})
	h.register(t, weft.Instance{ID: "o2", Service: named("order-service"), Address: "10.0.0.2", Port: 3000, Tags: []string{"http"},
		Labels: map[string]string{"version": "v1"}, Checks: static(weft.Critical)})
	h.register(t, weft.Instance{ID: "u1", Service: weft.ServiceName{Namespace: "shop", Name: "user-service"}, Port: 3001, Checks: static(weft.Warning)})

	services, err := h.Services(t.Context(), "")
	check(t, err)
	want := []client.Service{
		{Namespace: "default", Name: "order-service", Tags: []string{"api", "http"}, Versions: []string{"v1", "v2"}, Instances: 2, Healthy: 1},
		{Namespace: "shop", Name: "user-service", Instances: 1, Healthy: 1},
	}
	notOurs := cmpopts.IgnoreSliceElements(func(s client.Service) bool { return s.Name == "consul" || s.Name == "weft" })
	if d := cmp.Diff(want, services, notOurs); d != "" {
		t.Error(d)
	}
	services, err = h.Services(t.Context(), "shop")
	check(t, err)
	if d := cmp.Diff(want[1:], services); d != "" {
		t.Error(d)
	}

	got, err := h.Instances(t.Context(), weft.NewServiceName("", "order-service"))
	check(t, err)
	for i := range got {
		node := got[i].Checks[len(got[i].Checks)-1] // the laptop's own, behind the instance's
		if !node.Node || node.Status != weft.Passing {
			t.Errorf("last check of %s: %+v", got[i].ID, node)
		}
		got[i].Checks = got[i].Checks[:len(got[i].Checks)-1]
	}
	if d := cmp.Diff([]client.Instance{
		{ID: "o1", Namespace: "default", Service: "order-service", Node: "laptop", Address: "127.0.0.1:3000", Protocol: weft.GRPC, Version: "v2", Zone: "a", PID: 4711,
			Tags: []string{"http", "api"}, Labels: map[string]string{"version": "v2"}, Identity: ordersID, MeshAddress: "127.0.0.1:15006"},
		{ID: "o2", Namespace: "default", Service: "order-service", Node: "laptop", Address: "10.0.0.2:3000", Version: "v1", Health: weft.Critical,
			Tags: []string{"http"}, Labels: map[string]string{"version": "v1"},
			Checks: []client.Check{{ID: "service:o2", Kind: weft.StaticCheck, Status: weft.Critical, Output: "as told"}}},
	}, got, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}

	_, err = h.Instances(t.Context(), weft.NewServiceName("", "user-service"))
	if weft.KindOf(err) != weft.NotFound || !strings.Contains(err.Error(), "user-service.default") {
		t.Errorf("a service of another namespace: %v", err)
	}
}

func TestAnInstanceIsAsIllAsItsNode(t *testing.T) {
	h := openHouse(t)
	h.register(t, weft.Instance{ID: "o1", Service: named("order-service"), Port: 3000})
	check(t, h.registry.Maintain(t.Context(), weft.InstanceKey{Node: "laptop"}, true, "new disk"))
	got, err := h.Instances(t.Context(), weft.NewServiceName("", "order-service"))
	check(t, err)
	if got[0].Health < weft.Critical {
		t.Errorf("health %s though the node is in maintenance", got[0].Health)
	}
	services, err := h.Services(t.Context(), "")
	check(t, err)
	for _, s := range services {
		if s.Name == "order-service" && s.Healthy != 0 {
			t.Errorf("%d healthy instances though the node is in maintenance", s.Healthy)
		}
	}
}

const canary = `apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: order-service
spec:
  hosts:
    - order-service
  http:
    - route:
        - destination: {host: order-service, subset: v1}
          weight: 95
        - destination: {host: order-service, subset: v2}
          weight: 5
`

const subsets = `apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: order-service
spec:
  host: order-service
  subsets:
    - name: v1
      labels: {version: v1}
    - name: v2
      labels: {version: v2}
`

func TestResourcesComeAndGo(t *testing.T) {
	h := openHouse(t)
	ctx := t.Context()
	files := []client.File{{Name: "canary.yaml", Data: canary}, {Name: "subsets.yaml", Data: subsets}}
	apply := func(want string, o client.ApplyOptions) client.ApplyResult {
		t.Helper()
		got, err := h.Apply(ctx, files, o)
		check(t, err)
		if len(got.Resources) != 2 || got.Resources[0].Action != want {
			t.Errorf("apply: %+v, want two resources %s", got, want)
		}
		return got
	}
	apply("created", client.ApplyOptions{DryRun: true})
	got := apply("created", client.ApplyOptions{})
	if got.Resources[0].Line == 0 || got.Resources[0].File == "" {
		t.Errorf("no place in %+v", got.Resources[0])
	}
	apply("unchanged", client.ApplyOptions{})
	files[0].Data = strings.ReplaceAll(canary, "95", "80")
	apply("configured", client.ApplyOptions{})

	for _, kind := range []string{"VirtualService", "virtualservice", "virtualservices"} {
		list, err := h.Resources(ctx, kind)
		check(t, err)
		if len(list) != 1 || list[0].Name != "order-service" || !strings.Contains(string(list[0].Object), `"weight":80`) || list[0].File != "canary.yaml" {
			t.Errorf("resources of kind %s: %+v", kind, list)
		}
	}
	kinds, err := h.Kinds(ctx)
	check(t, err)
	if d := cmp.Diff([]string{"DestinationRule", "VirtualService"}, kinds); d != "" {
		t.Error(d)
	}
	all, err := h.Resources(ctx)
	check(t, err)
	if len(all) != 2 {
		t.Errorf("%d resources, want 2", len(all))
	}
	one, err := h.Resource(ctx, "destinationrule", "", "order-service")
	check(t, err)
	// What is read can be applied again.
	files = []client.File{{Name: "subsets.yaml", Data: string(one.Object)}, files[0]}
	if again, err := h.Apply(ctx, files[:1], client.ApplyOptions{}); err != nil || again.Resources[0].Kind != "DestinationRule" {
		t.Errorf("apply what was read: %+v, %v", again, err)
	}

	check(t, h.Delete(ctx, "virtualservices", "default", "order-service"))
	if err := h.Delete(ctx, "VirtualService", "default", "order-service"); weft.KindOf(err) != weft.NotFound {
		t.Errorf("deleted twice: %v", err)
	}
	if _, err := h.Resource(ctx, "VirtualService", "default", "order-service"); weft.KindOf(err) != weft.NotFound {
		t.Errorf("read after deletion: %v", err)
	}
}

func TestEveryProblemIsToldAtOnce(t *testing.T) {
	h := openHouse(t)
	bad := strings.NewReplacer("weight: 95", "wieght: 95", "weight: 5", "weight: many").Replace(canary)
	files := []client.File{{Name: "canary.yaml", Data: bad}, {Name: "subsets.yaml", Data: subsets}}
	_, err := h.Apply(t.Context(), files, client.ApplyOptions{})
	var problems weft.Problems
	if weft.KindOf(err) != weft.Invalid || !errors.As(err, &problems) || len(problems.Errors()) != 2 || problems[0].Source.Position() != "canary.yaml:11" {
		t.Fatalf("got %v", err)
	}
	if list, _ := h.Resources(t.Context()); len(list) != 0 {
		t.Errorf("%d resources though nothing was to be applied", len(list))
	}
	got, err := h.Apply(t.Context(), files, client.ApplyOptions{Partial: true})
	check(t, err)
	if len(got.Resources) != 1 || got.Resources[0].Kind != "DestinationRule" || len(got.Problems.Errors()) != 2 {
		t.Errorf("partial: %+v", got)
	}
}

func TestStatus(t *testing.T) {
	h := openHouse(t)
	before, err := h.Status(t.Context())
	check(t, err)
	h.register(t, weft.Instance{ID: "o1", Service: named("order-service"), Port: 3000})
	h.register(t, weft.Instance{ID: "o2", Service: named("order-service"), Port: 3001, Checks: static(weft.Critical)})
	s, err := h.Status(t.Context())
	check(t, err)
	if s.Services != before.Services+1 || s.Instances != before.Instances+2 || s.Healthy != before.Healthy+1 || s.Index <= before.Index {
		t.Errorf("counts before %+v, after %+v", before, s)
	}
	if s.PID != os.Getpid() || s.Node != "laptop" || s.Version != weft.Version || s.Datacenter == "" || len(s.Listeners) != 1 || s.Uptime <= 0 {
		t.Errorf("got %+v", s)
	}
}

func TestTraces(t *testing.T) {
	h := openHouse(t)
	start := time.Now().Add(-time.Second)
	traceID := []byte("0123456789abcdef")
	text := func(s string) *commonpb.AnyValue {
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: s}}
	}
	span := func(id, parent string, after, lasts time.Duration) *tracepb.Span {
		s := &tracepb.Span{TraceId: traceID, SpanId: []byte(id), Name: "GET", Kind: tracepb.Span_SPAN_KIND_SERVER,
			StartTimeUnixNano: uint64(start.Add(after).UnixNano()), EndTimeUnixNano: uint64(start.Add(after + lasts).UnixNano()),
			Attributes: []*commonpb.KeyValue{{Key: "http.response.status_code", Value: text("200")}}}
		if parent != "" {
			s.ParentSpanId = []byte(parent)
		}
		return s
	}
	failed := span("span0002", "span0001", time.Millisecond, 5*time.Millisecond)
	failed.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "no stock"}
	_, err := h.collector.Receive(&collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{{Key: "service.name", Value: text("order-service")}}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{span("span0001", "", 0, 10*time.Millisecond), failed}}}}}})
	check(t, err)

	list := eventually(t, func() ([]client.TraceSummary, bool) {
		list, err := h.Traces(t.Context(), client.TraceQuery{Service: "order-service", Errors: true, Since: time.Hour, MinDuration: time.Millisecond, Limit: 5})
		check(t, err)
		return list, len(list) == 1
	})
	id := "30313233343536373839616263646566"
	if s := list[0]; s.ID != id || s.Spans != 2 || !s.Error || s.DurationMS != 10 || s.Service != "order-service" {
		t.Errorf("summary %+v", s)
	}
	tr, err := h.Trace(t.Context(), id)
	check(t, err)
	want := client.Span{ID: "7370616e30303032", Parent: "7370616e30303031", Depth: 1, Service: "order-service", Operation: "GET", Kind: "server",
		DurationMS: 5, Error: true, Message: "no stock", Attributes: map[string]string{"http.response.status_code": "200"}}
	if d := cmp.Diff(want, tr.Tree[1], cmpopts.IgnoreFields(client.Span{}, "Start")); d != "" {
		t.Error(d)
	}
	if none, err := h.Traces(t.Context(), client.TraceQuery{Service: "nobody"}); err != nil || len(none) != 0 {
		t.Errorf("traces of nobody: %v, %v", none, err)
	}
	if _, err := h.Trace(t.Context(), strings.Repeat("0", 32)); weft.KindOf(err) != weft.NotFound {
		t.Errorf("a trace that is not there: %v", err)
	}
	for _, query := range []string{"since=soon", "limit=x", "errors=perhaps", "servcie=a"} {
		if code, _ := h.do(t, "GET", "/api/traces?"+query, "", nil); code != http.StatusBadRequest {
			t.Errorf("?%s: status %d, want 400", query, code)
		}
	}
}

// eventually asks until the answer is right, for at most 10 seconds.
func eventually[T any](t *testing.T, ask func() (T, bool)) T {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for {
		v, ok := ask()
		if ok {
			return v
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("still %+v after 10 s", v)
		}
	}
}

// do sends a request as it is and returns status and body.
func (h *house) do(t *testing.T, method, path, body string, header map[string]string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, h.url+path, strings.NewReader(body))
	check(t, err)
	for k, v := range header {
		if k == "Host" {
			r.Host = v
		}
		r.Header.Set(k, v)
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(r)
	check(t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	check(t, err)
	return resp.StatusCode, string(data)
}

func TestWhatAForeignPageMayMakeABrowserSend(t *testing.T) {
	h := openHouse(t)
	for _, tt := range []struct {
		name, method string
		header       map[string]string
		want         int
	}{
		{"loopback address", "GET", nil, 200},
		{"localhost with port", "GET", map[string]string{"Host": "LocalHost:7400"}, 200},
		{"a name below localhost", "GET", map[string]string{"Host": "weft.localhost"}, 200},
		{"IPv6 loopback", "GET", map[string]string{"Host": "[::1]:7400"}, 200},
		{"IPv6 loopback without port", "GET", map[string]string{"Host": "[::1]"}, 200},
		{"the configured name", "GET", map[string]string{"Host": "weft.example.com:7400"}, 200},
		{"a name that was rebound to loopback", "GET", map[string]string{"Host": "evil.example.com:7400"}, 403},
		{"a name that ends like ours", "GET", map[string]string{"Host": "notlocalhost"}, 403},
		{"an address that is not ours", "GET", map[string]string{"Host": "10.1.2.3:7400"}, 403},
		{"a script of another site", "DELETE", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"a page of another port", "DELETE", map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		{"an old browser at another origin", "DELETE", map[string]string{"Origin": "https://evil.example.com"}, 403},
		{"a read from another site, which it cannot see", "GET", map[string]string{"Sec-Fetch-Site": "cross-site"}, 200},
		{"our own page", "DELETE", map[string]string{"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:7400", "Host": "localhost:7400"}, 404},
		{"no browser at all", "DELETE", nil, 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := "/api/status"
			if tt.method == "DELETE" {
				path = "/api/resources/VirtualService/default/nobody" // 404 when it is let through
			}
			if got, body := h.do(t, tt.method, path, "", tt.header); got != tt.want {
				t.Errorf("status %d, want %d: %s", got, tt.want, body)
			}
		})
	}
}

func TestBadRequests(t *testing.T) {
	h := openHouse(t)
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		says                     string
	}{
		{"an unknown call", "GET", "/api/nothing", "", 404, "no such call"},
		{"an unknown method", "PATCH", "/api/services", "", 404, "no such call"},
		{"no JSON", "POST", "/api/resources", "kind: X", 400, "read the JSON body"},
		{"an unknown field", "POST", "/api/resources", `{"fiels":[]}`, 400, "fiels"},
		{"something behind the JSON", "POST", "/api/explain", `{"url":"http://a/"} {}`, 400, "after the JSON value"},
		{"no files", "POST", "/api/resources", `{}`, 400, "no files"},
		{"10 MB", "POST", "/api/resources", `{"files":[{"name":"a","data":"` + strings.Repeat("x", 10<<20) + `"}]}`, 413, "over 4 MiB"},
		{"no URL", "POST", "/api/explain", `{"url":"order-service"}`, 400, "http://order-service"},
		{"a path out of the root", "POST", "/api/explain", `{"url":"http://a/../../x"}`, 400, "/"},
		{"a port that is none", "POST", "/api/explain", `{"url":"http://a:99999/"}`, 400, "port"},
		{"a header without a name", "POST", "/api/explain", `{"url":"http://a/","headers":["x"]}`, 400, "name: value"},
		{"a caller who is not there", "POST", "/api/explain", `{"url":"http://a/","from":"usr-service"}`, 404, "usr-service"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, body := h.do(t, tt.method, tt.path, tt.body, nil)
			if status != tt.status || !strings.Contains(body, tt.says) || !strings.HasPrefix(body, `{"kind":"`) {
				t.Errorf("status %d, want %d with %q: %s", status, tt.status, tt.says, body)
			}
		})
	}
}
