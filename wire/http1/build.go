package http1

// ownBytes is the memory that a Head keeps when it is reset: the default limit of
// a head.
const ownBytes = defaultHeadBytes

// Reset begins a head that is built and not parsed: it is empty, and keeps its
// memory.
func (h *Head) Reset() {
	if cap(h.own) > ownBytes {
		h.own = nil
	}
	h.own = h.own[:0]
	h.reset(h.own)
	h.built, h.scanned = true, 0
}

// Add adds a field, as if Parse had read its line. Name and value are copied into
// memory of the head. The value must come without whitespace around it, and nothing
// is taken that would not be one field in HTTP/1: the error is an *Error, and the
// head is as before.
//
// The first Add to a head that was parsed empties it.
func (h *Head) Add(name, value []byte) error {
	if f := h.add(name, value); f != ok {
		return &requestErrors[f]
	}
	return nil
}

// AddTrailer is Add for the trailer section: it marks what must not stand there
// (RFC 9110 §6.5.1) as Drop.
func (h *Head) AddTrailer(name, value []byte) error {
	if f := h.add(name, value); f != ok {
		return &requestErrors[f]
	}
	if guarded(name) {
		h.Fields[len(h.Fields)-1].Drop = true
	}
	return nil
}

func (h *Head) add(name, value []byte) fault {
	if !h.built {
		h.Reset()
	}
	var class uint8
	for _, c := range name {
		k := tokenClass[c]
		if k == 0 {
			return badName
		}
		class |= k
	}
	switch {
	case len(name) == 0:
		return emptyName
	case !ValidValue(value):
		return badValue
	case len(name) > 1<<16-1:
		return headTooLarge
	case len(h.Fields) >= mostFields:
		return tooManyFields
	}
	id, drop := identify(name, class)
	h.Fields = append(h.Fields, Field{ID: id, Drop: drop})
	h.line(len(h.Fields)-1, name, value)
	h.note(len(h.Fields) - 1)
	return ok
}

// line writes the line of field i. The bytes are those of AppendFields, which can
// so copy many lines at once.
func (h *Head) line(i int, name, value []byte) {
	f := &h.Fields[i]
	f.nameOff, f.nameLen = uint32(len(h.own)), uint16(len(name))
	h.own = append(append(h.own, name...), ": "...)
	f.valOff, f.valLen = uint32(len(h.own)), uint32(len(value))
	h.own = append(append(h.own, value...), "\r\n"...)
	h.buf = h.own
}

// keep copies b into the head's memory. Growth leaves what was returned before in
// the older memory, where it stays as it is.
func (h *Head) keep(b []byte) []byte {
	if !h.built {
		h.Reset()
	}
	n := len(h.own)
	h.own = append(h.own, b...)
	h.buf = h.own
	return h.own[n:len(h.own):len(h.own)]
}

// joinCookies makes one field of the Cookie fields into which HTTP/2 may split it
// (RFC 9113 §8.2.3): servers of HTTP/1 look at one line.
func (h *Head) joinCookies() {
	if h.repeats>>FieldCookie&1 == 0 {
		return
	}
	first := h.Find(FieldCookie)
	joined := h.Fields[first]
	joined.nameOff = uint32(len(h.own))
	h.own = append(append(h.own, h.Name(first)...), ": "...)
	joined.valOff = uint32(len(h.own))
	rest := h.Fields[:first]
	for i, f := range h.Fields[first:] {
		if i == 0 || f.ID != FieldCookie {
			rest = append(rest, f)
		}
		if f.ID != FieldCookie {
			continue
		}
		if f.valLen > 0 && len(h.own) > int(joined.valOff) {
			h.own = append(h.own, "; "...)
		}
		h.own = append(h.own, h.buf[f.valOff:f.valOff+f.valLen]...)
	}
	joined.valLen = uint32(len(h.own)) - joined.valOff
	h.own = append(h.own, "\r\n"...)
	rest[first] = joined
	h.buf, h.Fields = h.own, rest

	h.first, h.seen, h.repeats = [fieldIDs]uint16{}, 0, 0
	for i := range h.Fields {
		h.note(i)
	}
}

// Reset begins a request that is built and not parsed, as HTTP/2 does: Reset, Set…
// and Add in any order, then Finish. Every []byte of it points into memory that it
// owns: it is valid until Reset or Parse, and a Request in use must not be copied,
// though two may be swapped.
//
// It reads as a request of HTTP/1.1 that persists. The length of a body that has
// none is unknown; Framing is Chunked then, whatever frames the body has.
func (r *Request) Reset() {
	r.Head.Reset()
	*r = Request{Head: r.Head, Minor: 1, Length: -1, KeepAlive: true}
}

// SetMethod sets the method. The error is an *Error.
func (r *Request) SetMethod(method []byte) error {
	switch {
	case len(method) > methodBytes:
		return &requestErrors[methodTooLong]
	case !isToken(method):
		return &requestErrors[badMethod]
	}
	r.Method = r.keep(method)
	return nil
}

// SetScheme sets the scheme: "http" or "https". The error is an *Error.
func (r *Request) SetScheme(scheme []byte) error {
	switch {
	case foldsTo(scheme, "http"):
		r.Scheme = schemeHTTP
	case foldsTo(scheme, "https"):
		r.Scheme = schemeHTTPS
	default:
		return &requestErrors[badScheme]
	}
	return nil
}

// SetAuthority sets the host and port that the request is for. The error is an
// *Error.
func (r *Request) SetAuthority(authority []byte) error {
	if f := checkAuthority(authority, false); f != ok {
		return &requestErrors[f]
	}
	r.Authority = r.keep(authority)
	return nil
}

// SetTarget sets a target in origin form, or "*", and with it Path and Query. The
// error is an *Error.
func (r *Request) SetTarget(target []byte) error {
	for _, c := range target {
		if !targetByte[c] {
			return &requestErrors[badTarget]
		}
	}
	switch {
	case len(target) == 1 && target[0] == '*':
		r.Form = Asterisk
	case len(target) > 0 && target[0] == '/':
		r.Form = Origin
	default:
		return &requestErrors[badTarget]
	}
	r.Target = r.keep(target)
	r.Query, r.HasQuery = nil, false
	r.splitQuery(r.Target)
	return nil
}

// Finish completes a request that was built. body tells whether bytes may follow
// the head. It decides Framing and Length, ExpectContinue, joins Cookie fields, and
// fills Authority from Host; a Host field beside an authority that was set must
// agree with it, and is marked Drop. A CONNECT without target is in authority form;
// one with a target is extended (RFC 8441 §4): its caller has seen a protocol, and
// in HTTP/1 it must become a GET that upgrades.
//
// The error is an *Error: something that Parse would not take either, or a field
// that speaks of the connection, which HTTP/2 forbids (RFC 9113 §8.2.2).
func (r *Request) Finish(body bool) error {
	r.joinCookies()
	f := r.finishTarget()
	if f == ok {
		f = r.finishHost()
	}
	if f == ok {
		f = r.finishFraming(body)
	}
	if f == ok {
		f = r.finishFields()
	}
	if f != ok {
		return &requestErrors[f]
	}
	return nil
}

func (r *Request) finishTarget() fault {
	switch {
	case len(r.Method) == 0:
		return badMethod
	case len(r.Target) == 0 && string(r.Method) == "CONNECT":
		r.Form, r.Target = Authority, r.Authority
		return checkAuthority(r.Authority, true)
	case len(r.Target) == 0:
		return badTarget
	case r.Form == Asterisk && string(r.Method) != "OPTIONS":
		return asteriskForm
	}
	return ok
}

func (r *Request) finishHost() fault {
	i := r.Find(FieldHost)
	switch {
	case i < 0 && len(r.Authority) == 0:
		return missingHost
	case i < 0:
		return ok
	case r.repeats>>FieldHost&1 != 0:
		return duplicateHost
	}
	host := r.Value(i)
	if len(r.Authority) > 0 {
		r.Fields[i].Drop = true
		if !equalFold(host, r.Authority) {
			return hostMismatch
		}
		return ok
	}
	if len(host) == 0 {
		return emptyHost
	}
	if _, valid := splitHostPort(host); !valid {
		return badHost
	}
	r.Authority = host
	return ok
}

func (r *Request) finishFraming(body bool) fault {
	framing, length, f := r.Head.builtFraming(body)
	r.Framing, r.Length = framing, length
	switch {
	case f != ok:
		return f
	case r.Form == Authority && length > 0:
		return connectBody
	case r.Form == Authority:
		r.Framing = NoBody // what follows is the tunnel's
	case length > 0 && !body:
		return lengthMismatch
	}
	return ok
}

// builtFraming is Head.framing for a head that is not delimited by its fields.
func (h *Head) builtFraming(body bool) (Framing, int64, fault) {
	const ofConnection = 1<<FieldConnection | 1<<FieldKeepAlive | 1<<FieldProxyConnection |
		1<<FieldTransferEncoding | 1<<FieldUpgrade
	if h.has(ofConnection) {
		return NoBody, -1, connectionField
	}
	framing, length, f := h.framing(1)
	if f == ok && length < 0 && body {
		framing = Chunked
	}
	return framing, length, f
}

// finishFields reads TE and Expect.
func (r *Request) finishFields() fault {
	if te := r.Find(FieldTE); te >= 0 {
		if !foldsTo(r.only(FieldTE), "trailers") {
			return badTE
		}
		r.Fields[te].Drop = false
	}
	return r.expectation()
}

// Reset begins a response that is built and not parsed: Reset, SetStatus and Add
// in any order, then Finish. What is said of Request.Reset holds here too.
func (r *Response) Reset() {
	r.Head.Reset()
	*r = Response{Head: r.Head, Minor: 1, Length: -1, KeepAlive: true}
}

// SetStatus sets the status from its three digits. The error is an *Error; 101 is
// one, for HTTP/2 has none (RFC 9113 §8.6).
func (r *Response) SetStatus(status []byte) error {
	code, valid := statusCode(status)
	if !valid || code == 101 {
		return &responseErrors[badStatus]
	}
	r.Status = code
	return nil
}

// Finish completes a response that was built, to a request with the given method.
// body tells whether bytes may follow the head. It decides Framing and Length. The
// error is an *Error, as of Request.Finish.
func (r *Response) Finish(requestMethod []byte, body bool) error {
	framing, length, f := r.Head.builtFraming(body)
	if r.Status == 0 {
		f = badStatus
	}
	if f != ok {
		return &responseErrors[f]
	}
	r.Framing, r.Length = framing, length
	switch {
	case r.bodyless(requestMethod):
		r.Framing = NoBody
	case length > 0 && !body:
		return &responseErrors[lengthMismatch]
	}
	return nil
}

// ValidName tells whether name may be that of a field in HTTP/2: a token without
// upper-case letters (RFC 9113 §8.2.1).
func ValidName(name []byte) bool {
	for _, c := range name {
		if tokenClass[c] == 0 || lower[c] != c {
			return false
		}
	}
	return len(name) > 0
}

// ValidValue tells whether value may be that of a field: no control byte but HTAB,
// and no whitespace around it.
func ValidValue(value []byte) bool {
	n := len(value)
	if n == 0 {
		return true
	}
	return skipText(value, 0) == n && value[0] > ' ' && value[n-1] > ' '
}
