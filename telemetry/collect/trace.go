package collect

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// Trace is one trace with its spans in the order of a waterfall: depth first,
// children by start.
type Trace struct {
	Summary
	Tree []*Span `json:"tree"`
}

// Span is one span of a trace.
type Span struct {
	SpanID        string        `json:"spanId"`
	ParentID      string        `json:"parentId,omitempty"`
	Depth         int           `json:"depth"`            // 0: no parent, or an orphan
	Orphan        bool          `json:"orphan,omitempty"` // its parent is not kept, or did not arrive yet
	Service       string        `json:"service"`
	Instance      string        `json:"instance,omitempty"` // service.instance.id
	Operation     string        `json:"operation"`
	Kind          string        `json:"kind"` // "server", "client", "internal", …
	Start         time.Time     `json:"start"`
	Duration      time.Duration `json:"durationNanos"`
	Error         bool          `json:"error,omitempty"`
	StatusMessage string        `json:"statusMessage,omitempty"`
	Attrs         []Attr        `json:"attrs,omitempty"`
	Resource      []Attr        `json:"resource,omitempty"`
	Events        []Event       `json:"events,omitempty"`
}

// Attr is an attribute; whatever its type, the value is a text.
type Attr struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Event is something that happened within a span, such as an exception.
type Event struct {
	Name  string    `json:"name"`
	Time  time.Time `json:"time"`
	Attrs []Attr    `json:"attrs,omitempty"`
}

func newSpan(value []byte) (*Span, error) {
	resource, p, err := splitValue(value)
	if err != nil {
		return nil, err
	}
	s := &Span{
		SpanID: hex.EncodeToString(p.GetSpanId()), ParentID: hex.EncodeToString(p.GetParentSpanId()),
		Service: serviceName(resource), Instance: attrText(resource.GetAttributes(), "service.instance.id"),
		Operation: p.GetName(), Kind: kindName(p.GetKind()),
		Start:         unixNano(p.GetStartTimeUnixNano()),
		Error:         p.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR,
		StatusMessage: p.GetStatus().GetMessage(),
		Attrs:         attrs(p.GetAttributes()),
		Resource:      attrs(resource.GetAttributes()),
	}
	if strings.Trim(s.ParentID, "0") == "" {
		s.ParentID = "" // some senders write "no parent" as zeros
	}
	s.Duration = max(0, unixNano(p.GetEndTimeUnixNano()).Sub(s.Start))
	for _, e := range p.GetEvents() {
		s.Events = append(s.Events, Event{Name: e.GetName(), Time: unixNano(e.GetTimeUnixNano()), Attrs: attrs(e.GetAttributes())})
	}
	return s, nil
}

func unixNano(n uint64) time.Time { return time.Unix(int64(n/1e9), int64(n%1e9)).UTC() }

// kindName is "server" for SPAN_KIND_SERVER.
func kindName(k tracepb.Span_SpanKind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "SPAN_KIND_"))
}

func attrs(kvs []*commonpb.KeyValue) (out []Attr) {
	for _, kv := range kvs {
		out = append(out, Attr{Key: kv.GetKey(), Value: text(kv.GetValue())})
	}
	return out
}

// text shows a value: scalars as they are, lists and maps as JSON.
func text(v *commonpb.AnyValue) string {
	switch plain := plainValue(v, 0).(type) {
	case nil:
		return ""
	case string:
		return plain
	default:
		b, err := json.Marshal(plain)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
}

// maxNesting bounds lists within lists; what is deeper is left out.
const maxNesting = 16

func plainValue(v *commonpb.AnyValue, depth int) any {
	if depth > maxNesting {
		return nil
	}
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_BoolValue:
		return v.BoolValue
	case *commonpb.AnyValue_IntValue:
		return v.IntValue
	case *commonpb.AnyValue_DoubleValue:
		if math.IsNaN(v.DoubleValue) || math.IsInf(v.DoubleValue, 0) { // JSON has neither
			return strconv.FormatFloat(v.DoubleValue, 'g', -1, 64)
		}
		return v.DoubleValue
	case *commonpb.AnyValue_BytesValue:
		return base64.StdEncoding.EncodeToString(v.BytesValue)
	case *commonpb.AnyValue_ArrayValue:
		list := []any{}
		for _, e := range v.ArrayValue.GetValues() {
			list = append(list, plainValue(e, depth+1))
		}
		return list
	case *commonpb.AnyValue_KvlistValue:
		m := map[string]any{}
		for _, kv := range v.KvlistValue.GetValues() {
			m[kv.GetKey()] = plainValue(kv.GetValue(), depth+1)
		}
		return m
	default:
		return nil
	}
}

// newTrace orders the spans, of which there is at least one.
func newTrace(id string, spans []*Span) *Trace {
	t := &Trace{Summary: Summary{TraceID: id, Spans: len(spans)}, Tree: tree(spans)}
	root := t.Tree[0]
	t.Service, t.Operation, t.Start = root.Service, root.Operation, root.Start
	end := root.Start
	for _, s := range spans {
		if s.Start.Before(t.Start) {
			t.Start = s.Start
		}
		if e := s.Start.Add(s.Duration); e.After(end) {
			end = e
		}
		t.Error = t.Error || s.Error
		if !slices.Contains(t.Services, s.Service) {
			t.Services = append(t.Services, s.Service)
		}
	}
	t.Duration = end.Sub(t.Start)
	slices.Sort(t.Services)
	return t
}

// tree puts the spans in depth-first order and sets their depths. Roots come
// first, then orphans, each by start. Whatever a sender wrote as parents, every
// span comes out once: of a circle, the earliest is made an orphan.
func tree(spans []*Span) []*Span {
	byStart := slices.Clone(spans)
	slices.SortStableFunc(byStart, func(a, b *Span) int { return a.Start.Compare(b.Start) })
	known := map[string]bool{}
	for _, s := range byStart {
		known[s.SpanID] = true
	}
	children := map[string][]*Span{}
	var roots, orphans []*Span
	for _, s := range byStart {
		switch {
		case s.ParentID == "":
			roots = append(roots, s)
		case !known[s.ParentID]:
			orphans = append(orphans, s)
		default:
			children[s.ParentID] = append(children[s.ParentID], s)
		}
	}
	out, placed := make([]*Span, 0, len(spans)), map[*Span]bool{}
	place := func(top *Span) {
		for stack := []*Span{top}; len(stack) > 0; {
			s := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if placed[s] {
				continue
			}
			placed[s] = true
			out = append(out, s)
			for _, child := range slices.Backward(children[s.SpanID]) {
				if !placed[child] {
					child.Depth = s.Depth + 1
					stack = append(stack, child)
				}
			}
		}
	}
	for _, s := range roots {
		place(s)
	}
	for _, s := range slices.Concat(orphans, byStart) { // byStart: what is left is circles
		if !placed[s] {
			s.Orphan = true
			place(s)
		}
	}
	return out
}
