package trace

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// asProto is the same export made with the generated types.
func asProto(res *Resource, scope string, spans []Span) *collectorpb.ExportTraceServiceRequest {
	resource := []Attr{{Key: "service.name", Str: res.Service}}
	if res.Namespace != "" {
		resource = append(resource, Attr{Key: "service.namespace", Str: res.Namespace})
	}
	if res.InstanceID != "" {
		resource = append(resource, Attr{Key: "service.instance.id", Str: res.InstanceID})
	}
	scoped := &tracepb.ScopeSpans{Scope: &commonpb.InstrumentationScope{Name: scope}}
	for _, s := range spans {
		p := &tracepb.Span{
			TraceId: s.TraceID[:], SpanId: s.SpanID[:], Name: s.Name, Kind: tracepb.Span_SpanKind(s.Kind),
			StartTimeUnixNano: uint64(s.Start), EndTimeUnixNano: uint64(s.End),
			Attributes: attrsAsProto(s.Attrs), Flags: uint32(s.Flags),
		}
		if s.Parent != (SpanID{}) {
			p.ParentSpanId = s.Parent[:]
		}
		if s.Error {
			p.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: s.StatusMessage}
		}
		scoped.Spans = append(scoped.Spans, p)
	}
	return &collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: attrsAsProto(append(resource, res.Attrs...))},
		ScopeSpans: []*tracepb.ScopeSpans{scoped},
	}}}
}

func attrsAsProto(attrs []Attr) (out []*commonpb.KeyValue) {
	for _, a := range attrs {
		v := &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: a.Str}}
		if a.IsInt {
			v = &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: a.Int}}
		}
		out = append(out, &commonpb.KeyValue{Key: a.Key, Value: v})
	}
	return out
}

func decodeOTLP(t *testing.T, payload []byte) *collectorpb.ExportTraceServiceRequest {
	t.Helper()
	var got collectorpb.ExportTraceServiceRequest
	if err := (proto.UnmarshalOptions{DiscardUnknown: false}).Unmarshal(payload, &got); err != nil {
		t.Fatalf("the generated types cannot read the export: %v", err)
	}
	return &got
}

func TestOTLPDecodesToTheSameSpans(t *testing.T) {
	full := Span{
		Context: NewRoot(rand.Uint64, true), Parent: SpanID{1, 2, 3, 4, 5, 6, 7, 8},
		Name: "GET /api/orders/{id}", Kind: Server, Start: 1_700_000_000_000_000_001, End: 1_700_000_000_123_456_789,
		Error: true, StatusMessage: "no healthy endpoint",
		Attrs: []Attr{{Key: "url.path", Str: "/api/orders/1"}, {Key: "empty"}, {Key: "code", Int: 503, IsInt: true}, {Key: "zero", IsInt: true}, {Key: "below", Int: -5, IsInt: true}},
	}
	root := Span{Context: NewRoot(rand.Uint64, false), Name: "root", Kind: Client}
	long := Span{Context: NewRoot(rand.Uint64, true), Name: strings.Repeat("n", 127), Attrs: []Attr{{Key: strings.Repeat("k", 128), Str: strings.Repeat("v", 20_000)}}}
	res := Resource{Service: "order-service", Namespace: "default", InstanceID: "order-service-1", Attrs: []Attr{{Key: "weft.role", Str: "sidecar"}, {Key: "process.pid", Int: 4711, IsInt: true}}}
	for _, c := range []struct {
		name  string
		res   Resource
		spans []Span
	}{
		{"no spans", res, nil},
		{"only a service name", Resource{Service: "s"}, []Span{root}},
		{"no parent, kind or status", res, []Span{{Context: root.Context}}},
		{"everything", res, []Span{full}},
		{"lengths of more than one byte", res, []Span{long, full, long}},
		{"many", res, manySpans(300)},
	} {
		t.Run(c.name, func(t *testing.T) {
			payload := AppendOTLP([]byte("before"), &c.res, "weft", c.spans)
			got := decodeOTLP(t, payload[len("before"):])
			if d := cmp.Diff(asProto(&c.res, "weft", c.spans), got, protocmp.Transform()); d != "" {
				t.Errorf("want -, got +\n%s", d)
			}
			if want := proto.Size(asProto(&c.res, "weft", c.spans)); len(payload)-len("before") != want {
				t.Errorf("%d bytes, the generated encoder takes %d", len(payload)-len("before"), want)
			}
		})
	}
}

func manySpans(n int) (out []Span) {
	for i := range n {
		out = append(out, Span{Context: NewRoot(rand.Uint64, true), Name: strings.Repeat("x", i), Start: int64(i)})
	}
	return out
}

// One wrong byte would make a receiver refuse the whole batch.
func TestOTLPMendsTextThatIsNotUTF8(t *testing.T) {
	got := decodeOTLP(t, AppendOTLP(nil, &Resource{Service: "s"}, "weft", []Span{{
		Name: "GET /\xff\xfe", Attrs: []Attr{{Key: "url.path", Str: "/a\x80b"}},
	}}))
	span := got.ResourceSpans[0].ScopeSpans[0].Spans[0]
	if span.Name != "GET /\ufffd\ufffd" || span.Attributes[0].Value.GetStringValue() != "/a\ufffdb" {
		t.Errorf("got %q and %q", span.Name, span.Attributes[0].Value.GetStringValue())
	}
}

func TestOTLPDoesNotAllocateInSteadyState(t *testing.T) {
	res, spans := Resource{Service: "s"}, manySpans(50)
	buf := AppendOTLP(nil, &res, "weft", spans)
	if n := testing.AllocsPerRun(50, func() { buf = AppendOTLP(buf[:0], &res, "weft", spans) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzOTLPText(f *testing.F) {
	f.Add("GET", "url.path", "/", int64(1))
	f.Add("\xff", "", strings.Repeat("é", 70), int64(-1))
	f.Fuzz(func(t *testing.T, name, key, text string, n int64) {
		spans := []Span{{Name: name, Attrs: []Attr{{Key: key, Str: text}, {Key: key, Int: n, IsInt: true}}}}
		got := decodeOTLP(t, AppendOTLP(nil, &Resource{Service: name}, key, spans))
		valid := func(s string) string { return strings.Map(func(r rune) rune { return r }, s) }
		span := got.ResourceSpans[0].ScopeSpans[0].Spans[0]
		if span.Name != valid(name) || span.Attributes[0].Key != valid(key) ||
			span.Attributes[0].Value.GetStringValue() != valid(text) || span.Attributes[1].Value.GetIntValue() != n {
			t.Errorf("got %v", span)
		}
	})
}
