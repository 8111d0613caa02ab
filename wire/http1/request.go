package http1

import "bytes"

// TargetForm is the form of a request target (RFC 9112 §3.2).
type TargetForm uint8

const (
	Origin    TargetForm = iota // /path?query
	Absolute                    // http://authority/path?query
	Authority                   // host:port, with CONNECT only
	Asterisk                    // *, with OPTIONS only
)

// Request is the head of a request. The zero value is ready; reuse it for every
// request of a connection, and for other connections after that.
type Request struct {
	Head

	Method []byte // a token, as it was written: methods are case-sensitive
	Target []byte // as it was written
	Minor  uint8  // HTTP/1.Minor: 0 or 1
	Form   TargetForm

	// Scheme is "http" or "https" in absolute form, else empty.
	Scheme []byte
	// Authority is the host and port that the request is for: of the target in
	// absolute and authority form, else the value of Host. It is empty only in
	// HTTP/1.0 without Host. In absolute and authority form a Host field is marked
	// Drop, for it may say something else: write one from Authority.
	Authority []byte
	// Path is not normalised (see NormalizePath). It begins with "/" in origin and
	// absolute form, is "*" in asterisk form (and for an OPTIONS of an absolute
	// target without path), and is empty in authority form.
	Path     []byte
	Query    []byte // without "?"
	HasQuery bool   // tells "/a?" from "/a"

	Framing Framing // NoBody, FixedLength or Chunked
	Length  int64   // value of Content-Length, -1 without one

	// KeepAlive tells whether the client will send another request.
	KeepAlive bool
	// ExpectContinue tells that the client waits for 100 before it sends its body.
	ExpectContinue bool
	// Upgrade is the value of Upgrade when Connection lists it, else nil.
	Upgrade []byte
}

const (
	// mostEmptyLines are tolerated before a request (RFC 9112 §2.2): some clients
	// end a body with one that is not theirs to send.
	mostEmptyLines = 4
	// methodBytes is longer than every registered method; a longer one is answered
	// 501 (RFC 9112 §3).
	methodBytes = 64
)

var (
	schemeHTTP   = []byte("http")
	schemeHTTPS  = []byte("https")
	pathRoot     = []byte("/")
	pathAsterisk = []byte("*")
)

// Parse reads the head of a request from the beginning of buf and returns its
// length. The error is nil, ErrIncomplete or an *Error; after an error the fields
// of r mean nothing.
func (r *Request) Parse(buf []byte, lim *Limits) (n int, err error) {
	l := lim.filled()
	buf = buf[:min(len(buf), l.HeadBytes)]
	if r.waiting(buf, &l) {
		return 0, ErrIncomplete
	}
	n, f := r.parse(buf, &l)
	if f == ok {
		r.scanned = 0
		return n, nil
	}
	if f = r.verdict(buf, n, f, l.HeadBytes); f == incomplete {
		return 0, ErrIncomplete
	}
	return 0, &requestErrors[f]
}

// parse returns the length of the head, or the offset of the fault. Faults that
// are found when the head is complete stand at 0.
func (r *Request) parse(buf []byte, lim *Limits) (int, fault) {
	r.reset(buf)
	r.Scheme, r.Authority, r.Path, r.Query, r.Upgrade = nil, nil, nil, nil, nil
	r.HasQuery, r.ExpectContinue = false, false

	p, f := r.requestLine(buf, lim.TargetBytes)
	if f != ok {
		return p, f
	}
	p, f = r.parseFields(buf, p, lim.Fields)
	if f != ok {
		return p, f
	}
	if f = r.target(); f != ok {
		return 0, f
	}
	if f = r.host(); f != ok {
		return 0, f
	}
	if f = r.framing(); f != ok {
		return 0, f
	}
	if f = r.options(); f != ok {
		return 0, f
	}
	return p, ok
}

// requestLine reads "METHOD SP target SP HTTP/1.x CRLF".
func (r *Request) requestLine(buf []byte, targetBytes int) (int, fault) {
	p := 0
	for range mostEmptyLines {
		if len(buf)-p < 2 || buf[p] != '\r' || buf[p+1] != '\n' {
			break
		}
		p += 2
	}
	if p >= len(buf) || buf[p] == '\r' && p+1 == len(buf) {
		return p, incomplete
	}
	if tokenClass[buf[p]] == 0 {
		// TLS on a plain port, for one, sends no line feed that could be waited for.
		return p, lineFault(buf, p, notHTTP)
	}
	start := p
	for p < len(buf) && tokenClass[buf[p]] != 0 {
		p++
	}
	if p-start > methodBytes {
		return p, methodTooLong
	}
	if p >= len(buf) {
		return p, incomplete
	}
	if buf[p] != ' ' {
		return p, lineFault(buf, p, badMethod)
	}
	r.Method = buf[start:p]

	p++
	start = p
	for p < len(buf) && targetByte[buf[p]] {
		p++
	}
	if p-start > targetBytes {
		return p, targetTooLong
	}
	if p >= len(buf) {
		return p, incomplete
	}
	if buf[p] != ' ' {
		return p, lineFault(buf, p, badTarget)
	}
	if p == start {
		return p, badRequestLine
	}
	r.Target = buf[start:p]

	var f fault
	r.Minor, p, f = versionLine(buf, p+1)
	return p, f
}

// lineFault says what is wrong with a start line that broke off at buf[p];
// otherwise is the fault of a byte that is no line end.
func lineFault(buf []byte, p int, otherwise fault) fault {
	switch {
	case buf[p] == '\n':
		return bareLF
	case buf[p] != '\r':
		return otherwise
	case p+1 < len(buf) && buf[p+1] == '\n':
		return badRequestLine
	}
	return bareCR
}

// versionLine reads the version that ends a request line.
func versionLine(buf []byte, p int) (minor uint8, next int, f fault) {
	const line = len("HTTP/1.1\r\n")
	if len(buf)-p >= line {
		switch string(buf[p : p+line]) {
		case "HTTP/1.1\r\n":
			return 1, p + line, ok
		case "HTTP/1.0\r\n":
			return 0, p + line, ok
		}
	}
	lf := bytes.IndexByte(buf[p:], '\n')
	if lf < 0 {
		return 0, p, incomplete
	}
	v := buf[p : p+lf]
	cr := bytes.IndexByte(v, '\r')
	switch {
	case cr < 0:
		return 0, p, bareLF
	case cr != lf-1:
		return 0, p, bareCR
	case isVersion(v[:cr]):
		return 0, p, unsupportedVersion
	}
	return 0, p, badVersion
}

// isVersion tells whether v is an HTTP version of any number.
func isVersion(v []byte) bool {
	return len(v) == len("HTTP/1.1") && string(v[:5]) == "HTTP/" &&
		isDigit(v[5]) && v[6] == '.' && isDigit(v[7])
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// target splits the target by its form.
func (r *Request) target() fault {
	t := r.Target
	switch {
	case string(r.Method) == "CONNECT":
		r.Form = Authority
		if f := checkAuthority(t, true); f != ok {
			return f
		}
		r.Authority = t
	case t[0] == '/':
		r.Form = Origin
		r.splitQuery(t)
	case len(t) == 1 && t[0] == '*':
		r.Form = Asterisk
		if string(r.Method) != "OPTIONS" {
			return asteriskForm
		}
		r.Path = pathAsterisk
	default:
		r.Form = Absolute
		return r.absolute(t)
	}
	return ok
}

// absolute splits "scheme://authority/path?query".
func (r *Request) absolute(t []byte) fault {
	sep := bytes.Index(t, []byte("://"))
	switch {
	case sep < 0 && checkAuthority(t, true) == ok:
		return authorityForm // of CONNECT, with another method
	case sep < 0:
		return badTarget
	case foldsTo(t[:sep], "http"):
		r.Scheme = schemeHTTP
	case foldsTo(t[:sep], "https"):
		r.Scheme = schemeHTTPS
	default:
		return badScheme
	}
	rest := t[sep+3:]
	end := 0
	for end < len(rest) && rest[end] != '/' && rest[end] != '?' {
		end++
	}
	r.Authority = rest[:end]
	if f := checkAuthority(r.Authority, false); f != ok {
		return f
	}
	r.splitQuery(rest[end:])
	if len(r.Path) == 0 {
		r.Path = pathRoot
		if string(r.Method) == "OPTIONS" && !r.HasQuery {
			r.Path = pathAsterisk // RFC 9112 §3.2.4
		}
	}
	return ok
}

func (r *Request) splitQuery(t []byte) {
	if q := bytes.IndexByte(t, '?'); q >= 0 {
		r.Path, r.Query, r.HasQuery = t[:q], t[q+1:], true
		return
	}
	r.Path = t
}

// checkAuthority checks the authority of a target.
func checkAuthority(a []byte, needPort bool) fault {
	if bytes.IndexByte(a, '@') >= 0 {
		return userinfo
	}
	if port, valid := splitHostPort(a); !valid || needPort && !port {
		return badAuthority
	}
	return ok
}

// host applies the rules of RFC 9112 §3.2 and completes Authority.
func (r *Request) host() fault {
	i := r.Find(FieldHost)
	if i < 0 {
		if r.Minor > 0 {
			return missingHost
		}
		return ok
	}
	if r.repeats&(1<<FieldHost) != 0 {
		return duplicateHost
	}
	fromTarget := r.Form == Absolute || r.Form == Authority
	v := r.Value(i)
	if len(v) == 0 {
		if !fromTarget {
			return emptyHost
		}
	} else if _, valid := splitHostPort(v); !valid {
		return badHost
	}
	if fromTarget {
		r.Fields[i].Drop = true
	} else {
		r.Authority = v
	}
	return ok
}

// framing decides how the body is delimited (RFC 9112 §6.3).
func (r *Request) framing() fault {
	var f fault
	if r.Framing, r.Length, f = r.Head.framing(r.Minor); f != ok {
		return f
	}
	if r.Form == Authority && (r.Framing == Chunked || r.Length > 0) {
		// Such content has no meaning (RFC 9110 §9.3.6): what follows the head is
		// the tunnel's, and servers differ on it.
		return connectBody
	}
	return ok
}

// options reads Connection, TE, Upgrade and Expect.
func (r *Request) options() fault {
	o, f := r.connectionOptions()
	if f != ok {
		return f
	}
	r.KeepAlive = o.persistent(r.Minor)
	if o.upgrade && r.Minor > 0 {
		r.Upgrade = r.only(FieldUpgrade)
	}
	if te := r.Find(FieldTE); te >= 0 && foldsTo(r.only(FieldTE), "trailers") {
		r.Fields[te].Drop = false
	}
	return r.expectation()
}

// expectation reads Expect.
func (r *Request) expectation() fault {
	if !r.has(1 << FieldExpect) {
		return ok
	}
	if !equalFold(r.only(FieldExpect), "100-continue") {
		return badExpectation
	}
	// Without a body there is nothing to wait for, and HTTP/1.0 has no 100.
	r.ExpectContinue = r.Minor > 0 && (r.Framing == Chunked || r.Length > 0)
	return ok
}
