package http1

// FieldID is a field name that a proxy asks for often enough to give it a number.
type FieldID uint8

const (
	FieldOther FieldID = iota
	FieldHost
	FieldConnection
	FieldContentLength
	FieldTransferEncoding
	FieldKeepAlive
	FieldTE
	FieldTrailer
	FieldUpgrade
	FieldProxyConnection
	FieldProxyAuthenticate
	FieldProxyAuthorization
	FieldExpect
	FieldTraceparent
	FieldTracestate
	FieldXRequestID
	FieldXForwardedFor
	FieldXForwardedProto
	FieldXForwardedHost
	FieldXForwardedClientCert
	FieldIdempotencyKey
	FieldRetryAfter
	FieldServer
	FieldDate
	FieldContentType
	FieldAuthorization
	FieldCookie
	FieldUserAgent
	FieldXWeft // any name that begins with x-weft-

	fieldIDs // at most 32: Head keeps bit sets
)

// wellKnown holds the names in lower case. They consist of letters and "-" only,
// which lets matches fold with one OR.
var wellKnown = [fieldIDs]string{
	FieldHost:                 "host",
	FieldConnection:           "connection",
	FieldContentLength:        "content-length",
	FieldTransferEncoding:     "transfer-encoding",
	FieldKeepAlive:            "keep-alive",
	FieldTE:                   "te",
	FieldTrailer:              "trailer",
	FieldUpgrade:              "upgrade",
	FieldProxyConnection:      "proxy-connection",
	FieldProxyAuthenticate:    "proxy-authenticate",
	FieldProxyAuthorization:   "proxy-authorization",
	FieldExpect:               "expect",
	FieldTraceparent:          "traceparent",
	FieldTracestate:           "tracestate",
	FieldXRequestID:           "x-request-id",
	FieldXForwardedFor:        "x-forwarded-for",
	FieldXForwardedProto:      "x-forwarded-proto",
	FieldXForwardedHost:       "x-forwarded-host",
	FieldXForwardedClientCert: "x-forwarded-client-cert",
	FieldIdempotencyKey:       "idempotency-key",
	FieldRetryAfter:           "retry-after",
	FieldServer:               "server",
	FieldDate:                 "date",
	FieldContentType:          "content-type",
	FieldAuthorization:        "authorization",
	FieldCookie:               "cookie",
	FieldUserAgent:            "user-agent",
}

const weftPrefix = "x-weft-"

// hopByHop are the fields that end at this hop (RFC 9110 §7.6.1), and those that
// the writer makes anew.
const hopByHop = 1<<FieldConnection | 1<<FieldKeepAlive | 1<<FieldProxyConnection |
	1<<FieldTE | 1<<FieldTrailer | 1<<FieldTransferEncoding | 1<<FieldContentLength |
	1<<FieldUpgrade | 1<<FieldProxyAuthenticate | 1<<FieldProxyAuthorization

// slot is a perfect hash of the well-known names: length, first and last letter
// tell all of them apart. The factors were found by search; a test fails when a
// new name collides.
func slot(n int, first, last byte) int {
	return (n + 12*int(first|0x20) + 6*int(last|0x20)) & 63
}

var bySlot = func() (t [64]FieldID) {
	for id, name := range wellKnown {
		if name != "" {
			t[slot(len(name), name[0], name[len(name)-1])] = FieldID(id)
		}
	}
	return t
}()

// identify tells which field a name is, given the classes of its bytes, and
// whether it is not to be forwarded.
func identify(name []byte, class uint8) (FieldID, bool) {
	id := bySlot[slot(len(name), name[0], name[len(name)-1])]
	if id != FieldOther && foldsTo(name, wellKnown[id]) {
		return id, hopByHop>>id&1 != 0
	}
	if name[0]|0x20 == 'x' && hasPrefixFold(name, weftPrefix) {
		return FieldXWeft, false
	}
	// Servers that turn names into variables read x_forwarded_for as
	// X-Forwarded-For: such a double of a name with a meaning is not passed on.
	if class&tokenUnderscore != 0 && guardedAlias(name) {
		return FieldOther, true
	}
	return FieldOther, false
}

// foldsTo tells whether a token is the lower-case name. Of all token bytes only
// letters and "-" turn into letters and "-" when 0x20 is set.
func foldsTo(token []byte, name string) bool {
	if len(token) != len(name) {
		return false
	}
	for i := range token {
		if token[i]|0x20 != name[i] {
			return false
		}
	}
	return true
}

func hasPrefixFold(token []byte, prefix string) bool {
	return len(token) >= len(prefix) && foldsTo(token[:len(prefix)], prefix)
}

// longestGuarded bounds the names that are compared as a whole.
const longestGuarded = 32

// guarded tells whether a name has a meaning for framing, routing,
// authentication or the processing of content. A Connection field cannot take
// such a field away from the next hop, and it is not accepted as a trailer
// (RFC 9110 §6.5.1, §7.6.1).
func guarded(name []byte) bool {
	if id, _ := identify(name, 0); id != FieldOther {
		return true
	}
	for _, prefix := range [...]string{"x-forwarded-", "if-", "sec-", "access-control-"} {
		if hasPrefixFold(name, prefix) {
			return true
		}
	}
	if len(name) > longestGuarded {
		return false
	}
	var folded [longestGuarded]byte
	for i, c := range name {
		folded[i] = lower[c]
	}
	switch string(folded[:len(name)]) {
	case "age", "cache-control", "content-encoding", "content-location", "content-range",
		"expires", "forwarded", "location", "max-forwards", "origin", "pragma", "range",
		"set-cookie", "vary", "via", "www-authenticate", "x-real-ip":
		return true
	}
	return false
}

// guardedAlias tells whether a name with underscores becomes a guarded one when
// they are read as dashes.
func guardedAlias(name []byte) bool {
	var dashed [longestGuarded]byte
	n := copy(dashed[:], name) // a longer name can only match by its prefix
	for i := range dashed[:n] {
		if dashed[i] == '_' {
			dashed[i] = '-'
		}
	}
	return guarded(dashed[:n])
}
