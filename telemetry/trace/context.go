// Package trace carries W3C trace context through a proxy's hot path, records
// the proxy's own spans and exports them as OTLP. It is not a tracing SDK: no
// context.Context, no global provider, no processor chain.
//
// One exchange costs one Sampler.Start, one Context.Append into the forwarded
// head, and, when it is sampled, one Recorder.Record. None of them allocates in
// the steady state, and none blocks:
//
//	c, parent := sampler.Start(traceparentOfTheRequest, rand.Uint64)
//	head = c.Append(head) // the header's value, 55 bytes
//	…
//	if c.Sampled() {
//		recorder.Record(&trace.Span{Context: c, Parent: parent, Name: …})
//	}
//
// An Exporter, run by its owner, drains the recorder and hands encoded OTLP
// ExportTraceServiceRequest messages to a Send function. The package opens no
// socket.
//
// tracestate and baggage are not looked at: a proxy forwards them as they came.
package trace

// TraceID names a trace; all zero is invalid.
type TraceID [16]byte

// SpanID names a span within its trace; all zero is invalid, or "no parent".
type SpanID [8]byte

// String is 32 lower-case hex digits.
func (t TraceID) String() string { return string(appendHex(nil, t[:])) }

// String is 16 lower-case hex digits.
func (s SpanID) String() string { return string(appendHex(nil, s[:])) }

// IsZero tells that the id is the invalid one.
func (t TraceID) IsZero() bool { return t == TraceID{} }

// IsZero tells that the id is the invalid one.
func (s SpanID) IsZero() bool { return s == SpanID{} }

// Trace flags of W3C Trace Context level 2, §3.2.2.5; all other bits are
// reserved and must be sent as zero.
const (
	FlagSampled byte = 1 << 0
	FlagRandom  byte = 1 << 1 // the right-most 7 bytes of the trace id are random
)

// Context is what travels from hop to hop in a traceparent header.
type Context struct {
	TraceID TraceID
	SpanID  SpanID // of the span that sent the request
	Flags   byte   // FlagSampled, FlagRandom
}

// Length of a version 00 traceparent: version, trace id, parent id, flags.
const contextLen = 2 + 1 + 32 + 1 + 16 + 1 + 2

// Parse reads a traceparent header's value strictly as W3C Trace Context level 2
// says: lower-case hex only, no surrounding space, ids that are not zero, and
// for version 00 exactly 55 bytes. Version ff is invalid. A higher version is
// read as far as version 00 goes (§3.2.4): it may be longer when the 56th byte
// is a dash, and only its sampled flag is believed.
func Parse(traceparent []byte) (Context, bool) {
	b := traceparent
	if len(b) < contextLen || b[2] != '-' || b[35] != '-' || b[52] != '-' {
		return Context{}, false
	}
	var c Context
	var version, flags [1]byte
	if !decodeHex(version[:], b[0:2]) || !decodeHex(c.TraceID[:], b[3:35]) ||
		!decodeHex(c.SpanID[:], b[36:52]) || !decodeHex(flags[:], b[53:55]) {
		return Context{}, false
	}
	if version[0] == 0xff || c.TraceID.IsZero() || c.SpanID.IsZero() {
		return Context{}, false
	}
	c.Flags = flags[0] & (FlagSampled | FlagRandom)
	if version[0] != 0 {
		c.Flags &= FlagSampled
	}
	if len(b) > contextLen && (version[0] == 0 || b[contextLen] != '-') {
		return Context{}, false
	}
	return c, true
}

// Append adds the traceparent header's value, always version 00 and 55 bytes:
// "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".
func (c Context) Append(dst []byte) []byte {
	dst = append(dst, '0', '0', '-')
	dst = appendHex(dst, c.TraceID[:])
	dst = append(dst, '-')
	dst = appendHex(dst, c.SpanID[:])
	dst = append(dst, '-')
	return append(dst, hexDigits[c.Flags>>4], hexDigits[c.Flags&15])
}

// Sampled tells whether the spans of this trace are to be recorded.
func (c Context) Sampled() bool { return c.Flags&FlagSampled != 0 }

// Child is the context to send onward from the span with this id.
func (c Context) Child(id SpanID) Context {
	c.SpanID = id
	return c
}

// NewRoot starts a trace. random must give 64 uniformly random bits a call.
//
// The random flag stays unset although the ids are random: OpenTelemetry SDKs
// that know level 1 only discard a version 00 header with a flag above 02, and
// would break the trace in two.
func NewRoot(random func() uint64, sampled bool) Context {
	var c Context
	for c.TraceID.IsZero() {
		putUint64(c.TraceID[:8], random())
		putUint64(c.TraceID[8:], random())
	}
	c.SpanID = NewSpanID(random)
	if sampled {
		c.Flags = FlagSampled
	}
	return c
}

// NewSpanID draws a span id that is not zero.
func NewSpanID(random func() uint64) SpanID {
	var id SpanID
	for id.IsZero() {
		putUint64(id[:], random())
	}
	return id
}

const hexDigits = "0123456789abcdef"

// hexValue maps a lower-case hex digit to its value, anything else to 0xff.
var hexValue = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i := range 16 {
		t[hexDigits[i]] = byte(i)
	}
	return t
}()

// decodeHex fills dst from twice as many digits of src. A wrong digit sets high
// bits in bad, so that one test at the end finds it.
func decodeHex(dst, src []byte) bool {
	var bad byte
	for i := range dst {
		hi, lo := hexValue[src[2*i]], hexValue[src[2*i+1]]
		dst[i] = hi<<4 | lo
		bad |= hi | lo
	}
	return bad <= 15
}

func appendHex(dst, src []byte) []byte {
	for _, b := range src {
		dst = append(dst, hexDigits[b>>4], hexDigits[b&15])
	}
	return dst
}

func putUint64(dst []byte, v uint64) {
	for i := range 8 {
		dst[i] = byte(v >> (56 - 8*i))
	}
}
