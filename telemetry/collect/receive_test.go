package collect

import (
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/weftmesh/weft"
)

// post sends a body to the OTLP/HTTP door.
func post(t *testing.T, c *Collector, contentType, encoding string, body []byte) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/v1/traces", bytes.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	if encoding != "" {
		r.Header.Set("Content-Encoding", encoding)
	}
	w := httptest.NewRecorder()
	c.Handler().ServeHTTP(w, r)
	return w
}

func gzipped(body []byte) []byte {
	var out bytes.Buffer
	z := stdgzip.NewWriter(&out)
	z.Write(body)
	z.Close()
	return out.Bytes()
}

func encoded(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The example of the OTLP specification's JSON file, shortened: hex ids,
// 64-bit numbers as texts, enums as numbers, and a field of a later version.
const otlpJSON = `{"resourceSpans":[{
  "resource":{"attributes":[
    {"key":"service.name","value":{"stringValue":"my.service"}},
    {"key":"service.instance.id","value":{"stringValue":"my-1"}}]},
  "scopeSpans":[{"scope":{"name":"my.library","version":"1.0.0","fromTheFuture":{"a":[1]}},
    "spans":[{
      "traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B174","parentSpanId":"EEE19B7EC3C1B173",
      "name":"I'm a server span","startTimeUnixNano":"1544712660000000000","endTimeUnixNano":1544712661000000000,"kind":2,
      "status":{"code":2,"message":"broken"},
      "attributes":[{"key":"my.span.attr","value":{"stringValue":"some value"}},{"key":"n","value":{"intValue":"42"}}]}]}]}]}`

func TestHTTPTakesProtobufAndJSON(t *testing.T) {
	c, _ := opened(t, Config{})
	body := encoded(t, export(span{trace: 1, id: 1, service: "order-service", name: "GET /", end: 3}))
	for n, send := range []struct {
		contentType, encoding string
		body                  []byte
	}{
		{"application/x-protobuf", "", body},
		{"application/x-protobuf", "identity", body},
		{"application/x-protobuf; charset=utf-8", "gzip", gzipped(body)},
		{"application/json", "", []byte(otlpJSON)},
		{"application/json; charset=utf-8", "gzip", gzipped([]byte(otlpJSON))},
		{"application/x-protobuf", "", nil}, // an empty export is valid
		{"application/json", "", []byte("{}")},
	} {
		w := post(t, c, send.contentType, send.encoding, send.body)
		wantType, _, _ := strings.Cut(send.contentType, ";")
		if w.Code != 200 || w.Header().Get("Content-Type") != wantType {
			t.Fatalf("%d: %d %s %q", n, w.Code, w.Header().Get("Content-Type"), w.Body)
		}
		unmarshal := proto.Unmarshal
		if wantType == typeJSON {
			unmarshal = protojson.Unmarshal
		}
		var resp collectorpb.ExportTraceServiceResponse
		if err := unmarshal(w.Body.Bytes(), &resp); err != nil || resp.GetPartialSuccess() != nil {
			t.Errorf("%d: answer %v, %v", n, &resp, err)
		}
	}
	stored(t, c)
	if got := find(t, c, Query{Service: "order-service"}); fmt.Sprint(got) != "[01]" {
		t.Errorf("by protobuf: %v", got)
	}
	trace, err := c.Trace(t.Context(), "5b8efff798038103d269b633813fc60c")
	if err != nil {
		t.Fatal(err)
	}
	s := trace.Tree[0]
	if s.SpanID != "eee19b7ec3c1b174" || s.ParentID != "eee19b7ec3c1b173" || !s.Orphan || s.Service != "my.service" ||
		s.Instance != "my-1" || s.Operation != "I'm a server span" || s.Kind != "server" || s.Duration != time.Second ||
		!s.Error || s.StatusMessage != "broken" || fmt.Sprint(s.Attrs) != "[{my.span.attr some value} {n 42}]" {
		t.Errorf("by JSON: %+v", *s)
	}
}

func TestHTTPRefuses(t *testing.T) {
	c, _ := opened(t, Config{})
	bomb := gzipped(make([]byte, 8<<20))
	if len(bomb) > maxBody {
		t.Fatalf("the bomb has %d bytes", len(bomb))
	}
	large := encoded(t, export(span{trace: 1, id: 1, service: "s", name: strings.Repeat("n", maxBody)}))
	for name, send := range map[string]struct {
		contentType, encoding string
		body                  []byte
		code                  int
		says                  string
	}{
		"no content type":             {"", "", nil, 415, "content type"},
		"another content type":        {"text/plain", "", nil, 415, "content type"},
		"another encoding":            {typeProto, "br", nil, 415, "gzip"},
		"not protobuf":                {typeProto, "", []byte("\xff\xff\xff"), 400, "not an OTLP"},
		"not JSON":                    {typeJSON, "", []byte("{"), 400, "not an OTLP"},
		"JSON of another shape":       {typeJSON, "", []byte(`{"resourceSpans":7}`), 400, "not an OTLP"},
		"not gzip":                    {typeProto, "gzip", []byte("plain"), 400, "not gzip"},
		"gzip cut off":                {typeProto, "gzip", gzipped([]byte("0123456789"))[:14], 400, "cannot be read"},
		"too large":                   {typeProto, "", large, 413, "4 MiB"},
		"too large when decompressed": {typeProto, "gzip", gzipped(large), 413, "4 MiB"},
		"a gzip bomb":                 {typeProto, "gzip", bomb, 413, "4 MiB"},
		"a gzip bomb as JSON":         {typeJSON, "gzip", bomb, 413, "4 MiB"},
	} {
		w := post(t, c, send.contentType, send.encoding, send.body)
		if w.Code != send.code {
			t.Errorf("%s: %d, want %d: %q", name, w.Code, send.code, w.Body)
		}
		var said string
		switch {
		case send.code == 415 && send.encoding == "":
			said = w.Body.String()
		case send.contentType == typeJSON:
			var st statuspb.Status
			if err := protojson.Unmarshal(w.Body.Bytes(), &st); err != nil {
				t.Errorf("%s: the answer is no Status: %v", name, err)
			}
			said = st.Message
		default:
			var st statuspb.Status
			if err := proto.Unmarshal(w.Body.Bytes(), &st); err != nil {
				t.Errorf("%s: the answer is no Status: %v", name, err)
			}
			said = st.Message
		}
		if !strings.Contains(said, send.says) {
			t.Errorf("%s: says %q, want %q", name, said, send.says)
		}
	}
	if s := c.Stats(); s.Accepted != 0 {
		t.Errorf("%d spans were accepted", s.Accepted)
	}
}

func TestHTTPOtherDoors(t *testing.T) {
	c, _ := opened(t, Config{})
	for _, want := range []struct {
		method, path string
		code         int
		says         string
	}{
		{"GET", "/v1/traces", 405, "POST"},
		{"POST", "/v1/metrics", 404, "traces only"},
		{"POST", "/v1/logs", 404, "traces only"},
		{"POST", "/v1/trace", 404, ""},
	} {
		w := httptest.NewRecorder()
		c.Handler().ServeHTTP(w, httptest.NewRequest(want.method, want.path, nil))
		if w.Code != want.code || !strings.Contains(w.Body.String(), want.says) {
			t.Errorf("%s %s: %d %q", want.method, want.path, w.Code, w.Body)
		}
		if want.code == 405 && w.Header().Get("Allow") != "POST" {
			t.Errorf("Allow: %q", w.Header().Get("Allow"))
		}
	}
}

func TestInvalidSpansAreRejectedAloneAndCounted(t *testing.T) {
	c, _ := opened(t, Config{})
	good := span{trace: 1, id: 1, service: "s", name: "good"}
	spoil := func(fn func(*collectorpb.ExportTraceServiceRequest)) *collectorpb.ExportTraceServiceRequest {
		req := export(span{trace: 9, id: 9, service: "s", name: "bad"}, good)
		fn(req)
		return req
	}
	for name, req := range map[string]*collectorpb.ExportTraceServiceRequest{
		"no trace id": spoil(func(r *collectorpb.ExportTraceServiceRequest) {
			r.ResourceSpans[0].ScopeSpans[0].Spans[0].TraceId = nil
		}),
		"trace id zero": spoil(func(r *collectorpb.ExportTraceServiceRequest) {
			r.ResourceSpans[0].ScopeSpans[0].Spans[0].TraceId = make([]byte, 16)
		}),
		"trace id too long": spoil(func(r *collectorpb.ExportTraceServiceRequest) {
			r.ResourceSpans[0].ScopeSpans[0].Spans[0].TraceId = make([]byte, 17)
		}),
		"span id too short": spoil(func(r *collectorpb.ExportTraceServiceRequest) {
			r.ResourceSpans[0].ScopeSpans[0].Spans[0].SpanId = []byte{1}
		}),
		"parent of 5 bytes": spoil(func(r *collectorpb.ExportTraceServiceRequest) {
			r.ResourceSpans[0].ScopeSpans[0].Spans[0].ParentSpanId = make([]byte, 5)
		}),
		"larger than 64 KiB": spoil(func(r *collectorpb.ExportTraceServiceRequest) {
			r.ResourceSpans[0].ScopeSpans[0].Spans[0].TraceState = strings.Repeat("x", maxSpanBytes)
		}),
	} {
		before := c.Stats()
		resp, err := c.Receive(req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		p := resp.GetPartialSuccess()
		if p.GetRejectedSpans() != 1 || !strings.Contains(p.GetErrorMessage(), `"bad"`) {
			t.Errorf("%s: %v", name, p)
		}
		if s := c.Stats(); s.Rejected != before.Rejected+1 || s.Accepted != before.Accepted+1 {
			t.Errorf("%s: stats %+v", name, s)
		}
	}
	// The JSON form of an id that is not hex.
	w := post(t, c, typeJSON, "", []byte(strings.Replace(otlpJSON, "EEE19B7EC3C1B174", "EEE19B7EC3C1B1xy", 1)))
	if w.Code != 200 || !strings.Contains(w.Body.String(), `"rejectedSpans":"1"`) {
		t.Errorf("JSON with a wrong id: %d %s", w.Code, w.Body)
	}
}

func TestFullQueueAnswers429AndUnavailable(t *testing.T) {
	c, ck := opened(t, Config{})
	ck.held.Lock()
	defer ck.held.Unlock()
	one := export(span{trace: 1, id: 1, service: "s"})
	for {
		if _, err := c.Receive(one); err != nil {
			break
		}
	}
	for contentType, body := range map[string][]byte{typeProto: encoded(t, one), typeJSON: []byte(otlpJSON)} {
		w := post(t, c, contentType, "", body)
		if w.Code != 429 || w.Header().Get("Retry-After") != "2" || !strings.Contains(w.Body.String(), "queue") {
			t.Errorf("%s: %d, Retry-After %q, %q", contentType, w.Code, w.Header().Get("Retry-After"), w.Body)
		}
	}
	_, err := traceService{c: c}.Export(t.Context(), one)
	st := status.Convert(err)
	if st.Code() != grpccodes.Unavailable || len(st.Details()) != 1 {
		t.Fatalf("gRPC: %v %v", st, st.Details())
	}
	if hint, ok := st.Details()[0].(*errdetails.RetryInfo); !ok || hint.RetryDelay.AsDuration() != retryAfter {
		t.Errorf("gRPC hint: %v", st.Details()[0])
	}
}

func TestAStoppedCollectorAnswers503(t *testing.T) {
	c, _ := opened(t, Config{})
	c.Close()
	if w := post(t, c, typeJSON, "", []byte(otlpJSON)); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestReceiveBytes(t *testing.T) {
	c, _ := opened(t, Config{})
	if err := c.ReceiveBytes(encoded(t, export(span{trace: 4, id: 1, service: "proxy"}))); err != nil {
		t.Fatal(err)
	}
	stored(t, c)
	if got := find(t, c, Query{Service: "proxy"}); fmt.Sprint(got) != "[04]" {
		t.Errorf("got %v", got)
	}
	if err := c.ReceiveBytes([]byte{0xff}); weft.KindOf(err) != weft.Invalid {
		t.Errorf("not protobuf: %v", err)
	}
}

func TestGRPCTakesPlainAndGzip(t *testing.T) {
	c, _ := opened(t, Config{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	c.RegisterGRPC(server)
	served := make(chan error)
	go func() { served <- server.Serve(listener) }()
	defer func() { server.Stop(); <-served }()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sender := collectorpb.NewTraceServiceClient(conn)
	for n, opts := range [][]grpc.CallOption{nil, {grpc.UseCompressor(gzip.Name)}} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := sender.Export(ctx, export(span{trace: byte(n + 1), id: 1, service: "s", name: "GET /", start: n}), opts...)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
	stored(t, c)
	if got := fmt.Sprint(find(t, c, Query{})); got != "[02 01]" {
		t.Errorf("arrived: %s", got)
	}
}

// An application with the OpenTelemetry SDK, as its users set it up.
func TestOpenTelemetrySDKExportsIntoIt(t *testing.T) {
	c, _ := opened(t, Config{})
	server := httptest.NewServer(c.Handler())
	defer server.Close()
	defer http.DefaultClient.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "order-service"))))
	tracer := provider.Tracer("test")
	parentCtx, parent := tracer.Start(ctx, "GET /api/orders/{id}", oteltrace.WithSpanKind(oteltrace.SpanKindServer))
	_, child := tracer.Start(parentCtx, "load", oteltrace.WithAttributes(attribute.StringSlice("tables", []string{"a", "b"}), attribute.Float64("ratio", 0.5)))
	child.RecordError(io.ErrUnexpectedEOF)
	child.SetStatus(codes.Error, "cut off")
	child.End()
	parent.End()
	if err := provider.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	stored(t, c)
	trace, err := c.Trace(ctx, parent.SpanContext().TraceID().String())
	if err != nil {
		t.Fatal(err)
	}
	if len(trace.Tree) != 2 || !trace.Error || trace.Service != "order-service" || trace.Operation != "GET /api/orders/{id}" {
		t.Fatalf("summary %+v", trace.Summary)
	}
	root, load := trace.Tree[0], trace.Tree[1]
	if root.Kind != "server" || root.Depth != 0 || root.Orphan || root.SpanID != parent.SpanContext().SpanID().String() {
		t.Errorf("root %+v", *root)
	}
	if load.Depth != 1 || load.ParentID != root.SpanID || load.StatusMessage != "cut off" ||
		fmt.Sprint(load.Attrs) != `[{tables ["a","b"]} {ratio 0.5}]` || len(load.Events) != 1 || load.Events[0].Name != "exception" {
		t.Errorf("child %+v", *load)
	}
}

// The ids of the JSON form are hex and nothing else, whatever the base64 decoder
// in between makes of them.
func FuzzJSONIDs(f *testing.F) {
	f.Add("5B8EFFF798038103D269B633813FC60C", "EEE19B7EC3C1B174", "")
	f.Add("W47/95gDgQPSabYzgT/GDA==", "7uGbfsPBsXQ=", "7uGbfsPBsXQ=")
	f.Add("5b8efff7-9803-8103-d269-b633813fc60c", "eee19b7ec3c1b17", "zz")
	f.Add("5b8efff798038103d269b633813fc6__", " eee19b7ec3c1b174", "\u00e9")
	f.Fuzz(func(t *testing.T, trace, id, parent string) {
		if !utf8.ValidString(trace + id + parent) {
			return
		}
		body, err := json.Marshal(map[string]any{"resourceSpans": []any{map[string]any{"scopeSpans": []any{map[string]any{
			"spans": []any{map[string]any{"traceId": trace, "spanId": id, "parentSpanId": parent}}}}}}})
		if err != nil {
			t.Fatal(err)
		}
		isHex := func(s string, n int) bool {
			b, err := hex.DecodeString(s)
			return err == nil && len(b) == n && strings.Trim(s, "0") != ""
		}
		parentOK := parent == "" || (len(parent) == 16 && isHex("1"+parent[1:], 8) && isHex(parent[:15]+"1", 8))
		want := isHex(trace, 16) && isHex(id, 8) && parentOK
		req := &collectorpb.ExportTraceServiceRequest{}
		if err := unmarshalJSON(body, req); err != nil {
			if want {
				t.Fatalf("%q %q %q: %v", trace, id, parent, err)
			}
			return
		}
		got, rejected, why := records(req)
		if (rejected == 0) != want {
			t.Fatalf("%q %q %q: rejected %d (%s), want accepted %v", trace, id, parent, rejected, why, want)
		}
		if want && (!strings.EqualFold(hex.EncodeToString(got[0].trace[:]), trace) || !strings.EqualFold(hex.EncodeToString(got[0].span[:]), id)) {
			t.Fatalf("%q %q became %x %x", trace, id, got[0].trace, got[0].span)
		}
	})
}
