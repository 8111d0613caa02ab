package http2

import "github.com/weftmesh/weft/wire/http1"

// headKind is what a head belongs to.
type headKind uint8

const (
	ofRequest headKind = iota
	ofResponse
	ofTrailers
)

// Pseudo-header fields (RFC 9113 §8.3), as bits.
const (
	pseudoMethod = 1 << iota
	pseudoScheme
	pseudoAuthority
	pseudoPath
	pseudoProtocol
	pseudoStatus

	// mandatory are those of a request that is no CONNECT.
	mandatory = pseudoMethod | pseudoScheme | pseudoPath
)

// bombFactor times the limits is where a head ends the connection: it is no
// mistake (CVE-2026-49975).
const bombFactor = 4

// head turns decoded fields into what http1 calls a head. One that is malformed is
// read to its end for the sake of the table.
type head struct {
	kind  headKind
	fault string // what is malformed first; "": nothing
	large bool   // over the limits: fields are missing
	bomb  bool

	bytes, mostBytes   int
	fields, mostFields int

	seen     uint8 // pseudo-header fields
	regular  bool  // a field that is none was seen
	connect  bool  // the method is CONNECT
	protocol []byte

	request  http1.Request
	response http1.Response
	trailers http1.Head
}

func (h *head) begin(kind headKind, limits *Config) {
	h.kind = kind
	h.fault, h.large, h.bomb = "", false, false
	h.bytes, h.mostBytes = 0, limits.HeadBytes
	h.fields, h.mostFields = 0, limits.Fields
	h.seen, h.regular, h.connect = 0, false, false
	h.protocol = h.protocol[:0]
	switch kind {
	case ofRequest:
		h.request.Reset()
	case ofResponse:
		h.response.Reset()
	case ofTrailers:
		h.trailers.Reset()
	}
}

// field takes one decoded field; false: there is no use in others.
func (h *head) field(name, value []byte, _ bool) bool {
	h.bytes += len(name) + len(value) + 32
	pseudo := len(name) > 0 && name[0] == ':'
	if !pseudo {
		h.fields++
	}
	switch {
	case h.bytes > h.mostBytes || h.fields > h.mostFields:
		h.large = true
		h.bomb = h.bytes > bombFactor*h.mostBytes || h.fields > bombFactor*h.mostFields
	case h.fault != "":
	case pseudo:
		h.fault = h.pseudo(name, value)
	default:
		h.regular = true
		h.fault = h.ordinary(name, value)
	}
	return !h.bomb
}

func (h *head) pseudo(name, value []byte) (fault string) {
	var bit uint8
	switch string(name) {
	case ":method":
		bit = pseudoMethod
	case ":scheme":
		bit = pseudoScheme
	case ":authority":
		bit = pseudoAuthority
	case ":path":
		bit = pseudoPath
	case ":protocol":
		bit = pseudoProtocol
	case ":status":
		bit = pseudoStatus
	}
	switch {
	case bit == 0, h.kind == ofTrailers, (bit == pseudoStatus) != (h.kind == ofResponse):
		return "bad_pseudo"
	case h.regular:
		return "late_pseudo"
	case h.seen&bit != 0:
		return "duplicate_pseudo"
	}
	h.seen |= bit
	var err error
	switch bit {
	case pseudoMethod:
		h.connect = string(value) == "CONNECT"
		err = h.request.SetMethod(value)
	case pseudoScheme:
		err = h.request.SetScheme(value)
	case pseudoAuthority:
		err = h.request.SetAuthority(value)
	case pseudoPath:
		err = h.request.SetTarget(value)
	case pseudoStatus:
		err = h.response.SetStatus(value)
	case pseudoProtocol:
		if len(value) == 0 || !http1.ValidValue(value) {
			return "bad_pseudo"
		}
		h.protocol = append(h.protocol, value...)
	}
	return reason(err)
}

// ordinary takes a field that is no pseudo-header field.
func (h *head) ordinary(name, value []byte) (fault string) {
	if !http1.ValidName(name) {
		return "bad_name"
	}
	to, err := &h.request.Head, error(nil)
	switch h.kind {
	case ofRequest:
		err = to.Add(name, value)
	case ofResponse:
		to = &h.response.Head
		err = to.Add(name, value)
	case ofTrailers:
		to = &h.trailers
		err = to.AddTrailer(name, value)
	}
	if err != nil {
		return reason(err)
	}
	switch to.Fields[len(to.Fields)-1].ID {
	case http1.FieldConnection, http1.FieldKeepAlive, http1.FieldProxyConnection,
		http1.FieldTransferEncoding, http1.FieldUpgrade:
		return "connection_field"
	}
	return ""
}

// reason is the word of an error of http1.
func reason(err error) string {
	if err == nil {
		return ""
	}
	if e, is := err.(*http1.Error); is {
		return e.Reason
	}
	return "malformed"
}

// asRequest completes a request and says what is malformed.
func (h *head) asRequest(end, extendedConnect bool) (fault string) {
	extended := h.seen&pseudoProtocol != 0
	switch {
	case h.fault != "":
		return h.fault
	case extended && (!extendedConnect || !h.connect && h.seen&pseudoMethod != 0):
		return "bad_protocol" // RFC 8441 §4
	case h.large:
		return "" // what is missing may have been there
	case h.connect && !extended:
		// RFC 9113 §8.5
		if h.seen != pseudoMethod|pseudoAuthority {
			return "bad_connect"
		}
	case h.seen&mandatory != mandatory, extended && h.seen&pseudoAuthority == 0:
		return "missing_pseudo"
	}
	return reason(h.request.Finish(!end))
}

var methodHead, methodConnect = []byte("HEAD"), []byte("CONNECT")

// asResponse completes a response on a stream and says what is malformed. left is
// how many bytes of body are to come; -1: it does not say.
func (h *head) asResponse(s *Stream, end bool) (left int64, fault string) {
	r := &h.response
	switch {
	case h.fault != "":
		return 0, h.fault
	case r.Status == 0 && !h.large:
		return 0, "missing_pseudo"
	case r.Status < 200 && end:
		return 0, "end_of_1xx"
	case h.large:
		return -1, ""
	}
	var method []byte
	switch {
	case s.toHead:
		method = methodHead
	case s.tunnel:
		method = methodConnect
	}
	if err := r.Finish(method, !end); err != nil {
		return 0, reason(err)
	}
	switch {
	case s.tunnel && r.Status/100 == 2:
		return -1, ""
	case r.Framing == http1.NoBody:
		return 0, ""
	}
	return r.Length, ""
}
