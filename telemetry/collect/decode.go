package collect

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode/utf8"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/weftmesh/weft"
)

const (
	maxSpanBytes = 64 << 10 // of one stored span with its resource
	maxIndexText = 255      // bytes of a service or operation name in the index
	noService    = "unknown_service"
)

// Receive stores what one OTLP export request holds. Spans that are invalid are
// left out; the response tells how many and why. An error means that none was
// taken: weft.Unavailable when it is worth trying again.
func (c *Collector) Receive(req *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	spans, rejected, why := records(req)
	if len(spans) > 0 {
		if err := c.enqueue(spans); err != nil {
			return nil, err
		}
	}
	resp := &collectorpb.ExportTraceServiceResponse{}
	if rejected > 0 {
		c.rejected.Add(uint64(rejected))
		resp.PartialSuccess = &collectorpb.ExportTracePartialSuccess{RejectedSpans: int64(rejected), ErrorMessage: why}
	}
	return resp, nil
}

// ReceiveBytes is Receive for an encoded ExportTraceServiceRequest, as proxies
// send them over their control connection.
func (c *Collector) ReceiveBytes(payload []byte) error {
	req := &collectorpb.ExportTraceServiceRequest{}
	if err := proto.Unmarshal(payload, req); err != nil {
		return weft.Errorf(weft.Invalid, "receive spans", "", "not an OTLP ExportTraceServiceRequest: %w", err)
	}
	_, err := c.Receive(req)
	return err
}

// records takes a request apart. why is about the first span that was rejected.
func records(req *collectorpb.ExportTraceServiceRequest) (out []record, rejected int, why string) {
	for _, rs := range req.GetResourceSpans() {
		resource, err := proto.Marshal(rs.GetResource())
		if err != nil {
			resource = nil // it was decoded a moment ago; the spans are worth more
		}
		service := serviceName(rs.GetResource())
		for _, scope := range rs.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				r, err := newRecord(service, resource, span)
				if err != nil {
					if rejected++; why == "" {
						why = err.Error()
					}
					continue
				}
				out = append(out, r)
			}
		}
	}
	return out, rejected, why
}

func newRecord(service string, resource []byte, span *tracepb.Span) (record, error) {
	r := record{
		service: service, name: cut(span.GetName()), start: span.GetStartTimeUnixNano(),
		failed: span.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR,
	}
	if copy(r.trace[:], span.GetTraceId()) != 16 || len(span.GetTraceId()) != 16 || r.trace == [16]byte{} {
		return record{}, fmt.Errorf("span %q: the trace id must be 16 bytes and not zero", r.name)
	}
	if copy(r.span[:], span.GetSpanId()) != 8 || len(span.GetSpanId()) != 8 || r.span == [8]byte{} {
		return record{}, fmt.Errorf("span %q: the span id must be 8 bytes and not zero", r.name)
	}
	if n := len(span.GetParentSpanId()); n != 0 && n != 8 {
		return record{}, fmt.Errorf("span %q: the parent span id must be 8 bytes or absent", r.name)
	}
	if end := span.GetEndTimeUnixNano(); end > r.start {
		r.duration = end - r.start
	}
	size := proto.Size(span)
	if size+len(resource) > maxSpanBytes {
		return record{}, fmt.Errorf("span %q: larger than %d bytes", r.name, maxSpanBytes)
	}
	r.value = make([]byte, 0, binary.MaxVarintLen32+len(resource)+size)
	r.value = binary.AppendUvarint(r.value, uint64(len(resource)))
	r.value = append(r.value, resource...)
	var err error
	r.value, err = proto.MarshalOptions{}.MarshalAppend(r.value, span)
	return r, err
}

// splitValue takes a stored value apart.
func splitValue(value []byte) (*resourcepb.Resource, *tracepb.Span, error) {
	n, w := binary.Uvarint(value)
	if w <= 0 || n > uint64(len(value)-w) {
		return nil, nil, fmt.Errorf("a stored span is cut off")
	}
	resource, span := &resourcepb.Resource{}, &tracepb.Span{}
	if err := proto.Unmarshal(value[w:w+int(n)], resource); err != nil {
		return nil, nil, err
	}
	return resource, span, proto.Unmarshal(value[w+int(n):], span)
}

func serviceName(resource *resourcepb.Resource) string {
	if name := attrText(resource.GetAttributes(), "service.name"); name != "" {
		return cut(name)
	}
	return noService
}

// attrText is the text of an attribute, or "".
func attrText(attrs []*commonpb.KeyValue, key string) string {
	for _, kv := range attrs {
		if kv.GetKey() == key {
			return kv.GetValue().GetStringValue()
		}
	}
	return ""
}

// cut shortens a text for the index, not within a character.
func cut(text string) string {
	if len(text) <= maxIndexText {
		return text
	}
	n := maxIndexText
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// unmarshalJSON reads OTLP's JSON form. It is protobuf's own, except that trace
// and span ids are in hex, not base64 (OTLP specification, "JSON Protobuf
// Encoding"). Their 32 and 16 digits also happen to be whole base64, so the
// standard decoder takes them for 24 and 12 bytes, which encode back to the
// digits that were sent.
func unmarshalJSON(body []byte, req *collectorpb.ExportTraceServiceRequest) error {
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, req); err != nil {
		// The decoder varies the space in its texts on purpose.
		return fmt.Errorf("%s", strings.ReplaceAll(err.Error(), "\u00a0", " "))
	}
	for _, rs := range req.GetResourceSpans() {
		for _, scope := range rs.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				span.TraceId, span.SpanId = fromHex(span.TraceId), fromHex(span.SpanId)
				span.ParentSpanId = fromHex(span.ParentSpanId)
				for _, link := range span.GetLinks() {
					link.TraceId, link.SpanId = fromHex(link.TraceId), fromHex(link.SpanId)
				}
			}
		}
	}
	return nil
}

// fromHex undoes a base64 decoding of hex digits. What was not hex gives an id
// of one byte, which is refused like any other of a wrong length.
func fromHex(b []byte) []byte {
	id, err := hex.DecodeString(base64.StdEncoding.EncodeToString(b))
	if err != nil {
		return []byte{0}
	}
	return id
}
