package trace

import (
	"encoding/binary"
	"unicode/utf8"
)

// Resource names the process whose spans are exported.
type Resource struct {
	Service    string // service.name
	Namespace  string // service.namespace; "" is left out
	InstanceID string // service.instance.id; "" is left out
	Attrs      []Attr
}

// AppendOTLP adds one opentelemetry.proto.collector.trace.v1
// ExportTraceServiceRequest that holds the spans under one resource and one
// scope. Texts that are not UTF-8 get U+FFFD for each wrong byte, because a
// receiver must refuse the whole message for one of them.
func AppendOTLP(dst []byte, res *Resource, scope string, spans []Span) []byte {
	dst, resourceSpans, scopeSpans := openRequest(dst, res, scope)
	for i := range spans {
		dst = appendSpan(dst, &spans[i])
	}
	return closeRequest(dst, resourceSpans, scopeSpans)
}

// openRequest begins the message up to where its spans follow.
func openRequest(dst []byte, res *Resource, scope string) (_ []byte, resourceSpans, scopeSpans int) {
	dst, resourceSpans = open(dst, 1) // ExportTraceServiceRequest.resource_spans
	dst, resource := open(dst, 1)     // ResourceSpans.resource
	dst = appendAttr(dst, 1, &Attr{Key: "service.name", Str: res.Service})
	if res.Namespace != "" {
		dst = appendAttr(dst, 1, &Attr{Key: "service.namespace", Str: res.Namespace})
	}
	if res.InstanceID != "" {
		dst = appendAttr(dst, 1, &Attr{Key: "service.instance.id", Str: res.InstanceID})
	}
	for i := range res.Attrs {
		dst = appendAttr(dst, 1, &res.Attrs[i])
	}
	dst = closeAt(dst, resource)
	dst, scopeSpans = open(dst, 2) // ResourceSpans.scope_spans
	dst, name := open(dst, 1)      // ScopeSpans.scope
	dst = appendString(dst, 1, scope)
	return closeAt(dst, name), resourceSpans, scopeSpans
}

func closeRequest(dst []byte, resourceSpans, scopeSpans int) []byte {
	return closeAt(closeAt(dst, scopeSpans), resourceSpans)
}

// appendSpan adds one span as ScopeSpans.spans. Field numbers are those of
// opentelemetry/proto/trace/v1/trace.proto.
func appendSpan(dst []byte, s *Span) []byte {
	dst, span := open(dst, 2)
	dst = appendBytes(dst, 1, s.TraceID[:])
	dst = appendBytes(dst, 2, s.SpanID[:])
	if !s.Parent.IsZero() {
		dst = appendBytes(dst, 4, s.Parent[:])
	}
	dst = appendString(dst, 5, s.Name)
	if s.Kind != Unspecified {
		dst = appendVarint(dst, 6, uint64(s.Kind))
	}
	dst = appendFixed64(dst, 7, uint64(s.Start))
	dst = appendFixed64(dst, 8, uint64(s.End))
	for i := range s.Attrs {
		dst = appendAttr(dst, 9, &s.Attrs[i])
	}
	if s.Error {
		var status int
		dst, status = open(dst, 15)
		dst = appendString(dst, 2, s.StatusMessage)
		dst = appendVarint(dst, 3, 2) // STATUS_CODE_ERROR
		dst = closeAt(dst, status)
	}
	if s.Flags != 0 {
		dst = binary.AppendUvarint(dst, 16<<3|5) // flags, fixed32
		dst = binary.LittleEndian.AppendUint32(dst, uint32(s.Flags))
	}
	return closeAt(dst, span)
}

// appendAttr adds a common.v1.KeyValue. The value is written even when it is
// empty, because its presence says which of the oneof it is.
func appendAttr(dst []byte, field int, a *Attr) []byte {
	dst, pair := open(dst, field)
	dst = appendString(dst, 1, a.Key)
	dst, value := open(dst, 2)
	if a.IsInt {
		dst = appendVarint(dst, 3, uint64(a.Int))
	} else {
		var text int
		dst, text = open(dst, 1)
		dst = closeAt(appendValid(dst, a.Str), text)
	}
	return closeAt(closeAt(dst, value), pair)
}

// The protobuf wire format: a tag (field<<3 | wire type), then the value.

// open begins a length-delimited field; closeAt with the returned place ends it.
func open(dst []byte, field int) ([]byte, int) {
	dst = binary.AppendUvarint(dst, uint64(field)<<3|2)
	return append(dst, 0), len(dst) // one byte for a length below 128
}

// closeAt writes the length of what was added since open, and makes room for
// the further bytes of a longer one.
func closeAt(dst []byte, at int) []byte {
	n := len(dst) - at - 1
	var length [binary.MaxVarintLen64]byte
	w := binary.PutUvarint(length[:], uint64(n))
	if w > 1 {
		dst = append(dst, length[1:w]...) // any w−1 bytes: they are overwritten
		copy(dst[at+w:], dst[at+1:at+1+n])
	}
	copy(dst[at:], length[:w])
	return dst
}

func appendVarint(dst []byte, field int, v uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, uint64(field)<<3), v)
}

func appendFixed64(dst []byte, field int, v uint64) []byte {
	if v == 0 {
		return dst // proto3 leaves zeros out
	}
	return binary.LittleEndian.AppendUint64(binary.AppendUvarint(dst, uint64(field)<<3|1), v)
}

func appendBytes(dst []byte, field int, b []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(field)<<3|2)
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// appendString leaves an empty string out, as proto3 does.
func appendString(dst []byte, field int, s string) []byte {
	if s == "" {
		return dst
	}
	dst, at := open(dst, field)
	return closeAt(appendValid(dst, s), at)
}

func appendValid(dst []byte, s string) []byte {
	if utf8.ValidString(s) {
		return append(dst, s...)
	}
	for _, r := range s { // yields U+FFFD for each wrong byte
		dst = utf8.AppendRune(dst, r)
	}
	return dst
}
