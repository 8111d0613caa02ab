package collect

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"

	"github.com/weftmesh/weft"
)

// shop is what the queries below ask about: four traces, the fourth an hour
// later.
var shop = []span{
	{trace: 1, id: 1, service: "gateway", name: "GET /api/orders", start: 0, end: 100},
	{trace: 1, id: 2, parent: 1, service: "order-service", name: "GET /api/orders", start: 10, end: 90},
	{trace: 1, id: 3, parent: 2, service: "inventory-service", name: "GET /api/inventory", start: 20, end: 30, failed: true},
	{trace: 2, id: 1, service: "gateway", name: "GET /users", start: 1000, end: 1500},
	{trace: 2, id: 2, parent: 1, service: "user-service", name: "GET /users", start: 1100, end: 1200},
	{trace: 3, id: 1, service: "gateway", name: "GET /api/orders", start: 2000, end: 2010, failed: true},
}

func opened4(t *testing.T) *Collector {
	c, ck := opened(t, Config{})
	ck.add(10 * time.Second)
	receive(t, c, shop...)
	ck.add(time.Hour)
	receive(t, c, span{trace: 4, id: 1, service: "order", name: "tick", start: 3600_000, end: 3600_000})
	return c
}

func TestTracesByQuery(t *testing.T) {
	c := opened4(t)
	for _, want := range []struct {
		name  string
		query Query
		ids   string // newest first
	}{
		{"all", Query{}, "04 03 02 01"},
		{"the two newest", Query{Limit: 2}, "04 03"},
		{"of a service", Query{Service: "gateway"}, "03 02 01"},
		{"of a service that was called", Query{Service: "inventory-service"}, "01"},
		{"of a service whose name begins another's", Query{Service: "order"}, "04"},
		{"of no such service", Query{Service: "orders"}, ""},
		{"of an operation", Query{Operation: "GET /users"}, "02"},
		{"of a service and another's operation", Query{Service: "user-service", Operation: "GET /api/orders"}, ""},
		{"slow", Query{MinDuration: 100 * time.Millisecond}, "02 01"},
		{"slow in a service", Query{Service: "user-service", MinDuration: 100*time.Millisecond + 1}, ""},
		{"failed", Query{ErrorsOnly: true}, "03 01"},
		{"failed in the gateway", Query{Service: "gateway", ErrorsOnly: true}, "03"},
		{"of the last minute", Query{Since: time.Minute}, "04"},
		{"since the second request, to the nanosecond", Query{Service: "gateway", Since: time.Hour + 9*time.Second}, "03 02"},
		{"a nanosecond less", Query{Service: "gateway", Since: time.Hour + 9*time.Second - 1}, "03"},
		{"of more than all time", Query{Since: math.MaxInt64}, "04 03 02 01"},
	} {
		if got := strings.Join(find(t, c, want.query), " "); got != want.ids {
			t.Errorf("%s: %q, want %q", want.name, got, want.ids)
		}
	}
	if names, err := c.Services(t.Context()); err != nil || fmt.Sprint(names) != "[gateway inventory-service order order-service user-service]" {
		t.Errorf("services %v, %v", names, err)
	}
}

func TestSummary(t *testing.T) {
	c := opened4(t)
	found, err := c.Traces(t.Context(), Query{Service: "inventory-service"})
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	want := Summary{
		TraceID: traceHex(1), Service: "gateway", Operation: "GET /api/orders", Start: noon,
		Duration: 100 * time.Millisecond, Spans: 3, Error: true,
		Services: []string{"gateway", "inventory-service", "order-service"},
	}
	if fmt.Sprint(found[0]) != fmt.Sprint(want) {
		t.Errorf("got  %+v\nwant %+v", found[0], want)
	}
}

// drawn is a trace's tree as "id@depth", an orphan with a star.
func drawn(spans []*Span) string {
	var out []string
	for _, s := range spans {
		line := fmt.Sprintf("%s@%d", strings.TrimLeft(s.SpanID, "0"), s.Depth)
		if s.Orphan {
			line += "*"
		}
		out = append(out, line)
	}
	return strings.Join(out, " ")
}

func TestTraceIsATree(t *testing.T) {
	for _, want := range []struct {
		name  string
		spans []span
		tree  string
	}{
		{"one", []span{{id: 1}}, "1@0"},
		{"children by start", []span{
			{id: 4, parent: 1, start: 30}, {id: 3, parent: 2, start: 12}, {id: 1}, {id: 2, parent: 1, start: 10},
		}, "1@0 2@1 3@2 4@1"},
		{"a child that began before its parent, by a clock's fault", []span{{id: 1, start: 5}, {id: 2, parent: 1, start: 1}}, "1@0 2@1"},
		{"orphans keep their children and come last", []span{
			{id: 5, parent: 9, start: 1}, {id: 6, parent: 5, start: 2}, {id: 1, start: 10}, {id: 2, parent: 1, start: 11},
		}, "1@0 2@1 5@0* 6@1"},
		{"only orphans", []span{{id: 2, parent: 9, start: 2}, {id: 1, parent: 9, start: 1}}, "1@0* 2@0*"},
		{"two roots", []span{{id: 2, start: 2}, {id: 1, start: 1}}, "1@0 2@0"},
		{"its own parent", []span{{id: 1, parent: 1}}, "1@0*"},
		{"a circle beside a root", []span{{id: 3, start: 9}, {id: 1, parent: 2, start: 1}, {id: 2, parent: 1, start: 2}}, "3@0 1@0* 2@1"},
	} {
		c, _ := opened(t, Config{})
		receive(t, c, want.spans...)
		trace, err := c.Trace(t.Context(), traceHex(0))
		if err != nil {
			t.Fatal(err)
		}
		if got := drawn(trace.Tree); got != want.tree {
			t.Errorf("%s: %s, want %s", want.name, got, want.tree)
		}
		if trace.Spans != len(want.spans) {
			t.Errorf("%s: counts %d spans", want.name, trace.Spans)
		}
	}
}

// Whatever parents a sender writes, each span comes out once, and a child
// directly deeper than its parent before it.
func TestTreeOfAnyParents(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	for range 300 {
		n := 1 + random.IntN(12)
		var spans []*Span
		for i := range n {
			s := &Span{SpanID: spanHex(byte(i + 1)), Start: noon.Add(time.Duration(random.IntN(5)))}
			if p := random.IntN(n + 3); p > 0 {
				s.ParentID = spanHex(byte(p))
			}
			spans = append(spans, s)
		}
		out := tree(spans)
		at := map[string]int{}
		for i, s := range out {
			if _, twice := at[s.SpanID]; twice {
				t.Fatalf("twice: %s", drawn(out))
			}
			at[s.SpanID] = i
		}
		if len(out) != n {
			t.Fatalf("%d of %d spans: %s", len(out), n, drawn(out))
		}
		for i, s := range out {
			if parent, ok := at[s.ParentID]; s.Depth > 0 && (!ok || parent >= i || out[parent].Depth != s.Depth-1) {
				t.Fatalf("span %s at depth %d: %s", s.SpanID, s.Depth, drawn(out))
			}
			if s.Depth == 0 && s.Orphan != (s.ParentID != "") {
				t.Fatalf("span %s: orphan %v with parent %q", s.SpanID, s.Orphan, s.ParentID)
			}
		}
	}
}

func TestASpanThatIsSentAgainCountsOnce(t *testing.T) {
	c, ck := opened(t, Config{})
	s := span{trace: 1, id: 1, service: "s", name: "GET /", end: 1}
	receive(t, c, s)
	receive(t, c, s)
	ck.add(time.Hour) // its repetition lies in another part
	receive(t, c, s, span{trace: 1, id: 2, parent: 1, service: "s", name: "late", end: 1})
	found, err := c.Traces(t.Context(), Query{})
	if err != nil || len(found) != 1 || found[0].Spans != 2 {
		t.Errorf("found %+v, %v", found, err)
	}
}

func TestTraceRefusesAndMisses(t *testing.T) {
	c, _ := opened(t, Config{})
	for id, want := range map[string]weft.Kind{
		"": weft.Invalid, "xyz": weft.Invalid, traceHex(1)[1:]: weft.Invalid, traceHex(1) + "0": weft.Invalid,
		strings.Repeat("g", 32): weft.Invalid, traceHex(1): weft.NotFound,
	} {
		if _, err := c.Trace(t.Context(), id); weft.KindOf(err) != want {
			t.Errorf("%q: %v", id, err)
		}
	}
	receive(t, c, span{trace: 1, id: 1})
	if _, err := c.Trace(t.Context(), strings.ToUpper(traceHex(1))); err != nil {
		t.Errorf("in upper case: %v", err)
	}
}

func TestQueriesEndWithTheirContext(t *testing.T) {
	c := opened4(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, e1 := c.Traces(ctx, Query{})
	_, e2 := c.Trace(ctx, traceHex(1))
	_, e3 := c.Services(ctx)
	for _, err := range []error{e1, e2, e3} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
}

func TestALargeTraceIsTruncated(t *testing.T) {
	c, _ := opened(t, Config{})
	req := export(span{trace: 1, id: 1, service: "s", name: "many"})
	one := req.ResourceSpans[0].ScopeSpans[0]
	one.Spans = nil
	for i := range maxTraceSpans + 5 {
		s := span{trace: 1, service: "s", name: "many", start: i}.proto()
		s.SpanId = []byte{1, 0, 0, 0, 0, 0, byte(i >> 8), byte(i)}
		one.Spans = append(one.Spans, s)
	}
	if _, err := c.Receive(req); err != nil {
		t.Fatal(err)
	}
	stored(t, c)
	trace, err := c.Trace(t.Context(), traceHex(1))
	if err != nil || len(trace.Tree) != maxTraceSpans || !trace.Truncated {
		t.Errorf("%d spans, truncated %v, %v", len(trace.Tree), trace.Truncated, err)
	}
}

func TestAttributesOfEveryType(t *testing.T) {
	str := func(s string) *commonpb.AnyValue { return textAttr("", s).Value }
	list := func(vs ...*commonpb.AnyValue) *commonpb.AnyValue {
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{Values: vs}}}
	}
	float := func(f float64) *commonpb.AnyValue {
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: f}}
	}
	deep := str("bottom")
	for range maxNesting + 4 {
		deep = list(deep)
	}
	for want, v := range map[string]*commonpb.AnyValue{
		"":                   nil,
		"plain \"text\"":     str(`plain "text"`),
		"true":               {Value: &commonpb.AnyValue_BoolValue{BoolValue: true}},
		"-7":                 {Value: &commonpb.AnyValue_IntValue{IntValue: -7}},
		"0.5":                float(0.5),
		"NaN":                float(math.NaN()),
		"+Inf":               float(math.Inf(1)),
		"AQI=":               {Value: &commonpb.AnyValue_BytesValue{BytesValue: []byte{1, 2}}},
		`["a",["b"],"-Inf"]`: list(str("a"), list(str("b")), float(math.Inf(-1))),
		`{"k":["v"]}`:        {Value: &commonpb.AnyValue_KvlistValue{KvlistValue: &commonpb.KeyValueList{Values: []*commonpb.KeyValue{{Key: "k", Value: list(str("v"))}}}}},
		strings.Repeat("[", maxNesting+1) + "null" + strings.Repeat("]", maxNesting+1): deep,
	} {
		if got := text(v); got != want {
			t.Errorf("text(%v) = %s, want %s", v, got, want)
		}
	}
}

// after bounds exactly the keys that begin with a prefix.
func TestAfterBoundsAPrefix(t *testing.T) {
	for _, prefix := range []string{"a", "a\xff", "\x01\xff\xff", "\x00"} {
		end := string(after([]byte(prefix)))
		for _, tail := range []string{"", "\x00", "\xff\xff\xff"} {
			if key := prefix + tail; key >= end {
				t.Errorf("%q is not before %q", key, end)
			}
		}
		if next := []byte(prefix); slices.Compare(next, []byte(end)) >= 0 || strings.HasPrefix(end, prefix) {
			t.Errorf("after(%q) = %q", prefix, end)
		}
	}
}
