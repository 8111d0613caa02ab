package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// What net/http takes and this package refuses, with the reason. Everything else
// that one of them refuses the other refuses too, apart from what stdIsStricter
// knows; and what both take they read alike.
var stdTakesRequest = map[string]string{
	"400 bare_lf":             "a hop that wants CR LF reads one line where net/http reads two (CVE-2025-22871 is of this kind)",
	"400 obs_fold":            "RFC 9112 §5.2 lets a proxy refuse; hops differ in whether the second line is a field",
	"400 space_before_colon":  "RFC 9112 §5.1 demands it; hops differ in whether the field has this name",
	"400 bad_name":            "textproto takes spaces inside of names, which are no tokens",
	"400 cl_te":               "RFC 9112 §6.1 lets a server refuse; each hop that picks the other field sees another end",
	"400 te_http10":           "net/http ignores the field in HTTP/1.0; RFC 9112 §6.1 calls the framing faulty",
	"400 duplicate_cl":        "net/http merges equal lengths; hops that do not take the first or the last",
	"400 connect_body":        "servers differ on whether it is of the request or of the tunnel",
	"400 missing_host":        "net/http's server refuses it one step later (RFC 9112 §3.2)",
	"400 empty_host":          "there is no route for it",
	"400 bad_host":            "net/http's server checks later and less; parsers differ on what is the host",
	"400 bad_authority":       "as bad_host",
	"400 userinfo":            "RFC 9110 §4.2.4 deprecates it: it disguises the host",
	"400 bad_scheme":          "we serve http and https",
	"400 bad_target":          "net/url takes bytes that RFC 3986 does not, and \"#\"",
	"400 asterisk_form":       "RFC 9112 §3.2.4 has it for OPTIONS alone",
	"400 authority_form":      "RFC 9112 §3.2.3 has it for CONNECT alone",
	"400 bad_request_line":    "net/http takes an empty target of CONNECT",
	"400 connection_options":  "a bound of ours",
	"417 bad_expectation":     "net/http's server answers 417 later",
	"505 unsupported_version": "net/http reads any version and lets the server decide",
	"413 huge_cl":             "a bound of ours",
	"414 target_too_long":     "a bound of ours",
	"431 head_too_large":      "a bound of ours",
	"431 too_many_fields":     "a bound of ours",
	"501 method_too_long":     "a bound of ours",
}

var stdTakesResponse = map[string]string{
	"502 bare_lf":             "as in requests",
	"502 bare_cr":             "net/http keeps it in the reason, where a line may end for the next hop",
	"502 control_byte":        "net/http keeps it in the reason",
	"502 obs_fold":            "as in requests; RFC 9112 §5.2 lets a proxy answer 502",
	"502 space_before_colon":  "RFC 9112 §5.1 would have it mended; a server that sends it is not to be trusted",
	"502 bad_name":            "as in requests",
	"502 cl_te":               "as in requests",
	"502 te_http10":           "as in requests",
	"502 duplicate_cl":        "as in requests",
	"502 bad_status":          "net/http takes signs, spaces and numbers below 100",
	"502 unsupported_version": "net/http reads any version",
	"502 connection_options":  "a bound of ours",
	"502 head_too_large":      "a bound of ours",
	"502 too_many_fields":     "a bound of ours",
}

// checkStdRefusesRequest is asked about what was refused here.
func checkStdRefusesRequest(t *testing.T, wire []byte, err error) {
	t.Helper()
	wire = withoutEmptyLines(wire)
	if _, stdErr := http.ReadRequest(bufio.NewReader(bytes.NewReader(wire))); stdErr == nil && stdTakesRequest[refusal(err)] == "" {
		t.Errorf("net/http takes %q; refused here: %s", wire, refusal(err))
	}
}

// withoutEmptyLines removes what may stand before a request: net/http's clients
// never need it.
func withoutEmptyLines(wire []byte) []byte {
	for bytes.HasPrefix(wire, []byte("\r\n")) {
		wire = wire[2:]
	}
	return wire
}

func checkStdRefusesResponse(t *testing.T, wire []byte, method string, err error) {
	t.Helper()
	std, stdErr := http.ReadResponse(bufio.NewReader(bytes.NewReader(wire)), &http.Request{Method: method})
	if stdErr == nil {
		std.Body.Close()
	}
	if stdErr == nil && stdTakesResponse[refusal(err)] == "" {
		t.Errorf("net/http takes %q; refused here: %s", wire, refusal(err))
	}
}

// Each reason in the lists is one that net/http has for taking something, or it
// should go.
func TestStdIsLessStrict(t *testing.T) {
	seen := map[string]bool{}
	for _, file := range []string{"testdata/requests.txt", "testdata/smuggling.txt"} {
		for _, c := range readCases(t, file) {
			var r Request
			if _, err := r.Parse(c.wire, nil); err != nil {
				checkStdRefusesRequest(t, c.wire, err)
				if _, stdErr := http.ReadRequest(bufio.NewReader(bytes.NewReader(c.wire))); stdErr == nil {
					seen[refusal(err)] = true
				}
			}
		}
	}
	for _, c := range readCases(t, "testdata/responses.txt") {
		var r Response
		if _, err := r.Parse(c.wire, []byte(c.method), nil); err != nil {
			checkStdRefusesResponse(t, c.wire, c.method, err)
			if std, stdErr := http.ReadResponse(bufio.NewReader(bytes.NewReader(c.wire)), nil); stdErr == nil {
				std.Body.Close()
				seen[refusal(err)] = true
			}
		}
	}
	for _, list := range []map[string]string{stdTakesRequest, stdTakesResponse} {
		for reason, why := range list {
			if !seen[reason] && why != "a bound of ours" {
				t.Errorf("no case shows that net/http takes what is %s", reason)
			}
		}
	}
}

const (
	nextRequest  = "GET /next HTTP/1.1\r\nHost: next\r\n\r\n"
	nextResponse = "HTTP/1.1 299 Next\r\nContent-Length: 0\r\n\r\n"
	// hidden is the beginning of a body that would be a message if its end were seen
	// elsewhere.
	hidden = "0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: hidden\r\n\r\n"
)

// body returns a body for a framing, on the wire and as data; not ok: it would be
// too long.
func body(f Framing, length int64) (wire, data string, ok bool) {
	switch {
	case f == Chunked:
		b := AppendChunkHeader(nil, len(hidden))
		b = append(b, hidden+"\r\n"...)
		return string(AppendLastChunk(b, nil)), hidden, true
	case f != FixedLength:
		return "", "", true
	case length > 1<<10:
		return "", "", false
	}
	data = strings.Repeat(hidden, int(length)/len(hidden)+1)[:length]
	return data, data, true
}

// checkOneRequest gives a head that was written for the next hop, with a body and
// another request behind it, to net/http: it must see the two requests and nothing
// else.
func checkOneRequest(t *testing.T, r *Request, head []byte) {
	t.Helper()
	onWire, data, ok := body(r.Framing, r.Length)
	if !ok {
		return
	}
	in := bufio.NewReader(strings.NewReader(string(head) + onWire + nextRequest))
	std, err := http.ReadRequest(in)
	if err != nil {
		if !stdIsStricter(r) {
			t.Fatalf("net/http refuses what was written, %q: %v", head, err)
		}
		return
	}
	got, err := io.ReadAll(std.Body)
	if err != nil || string(got) != data {
		t.Fatalf("%q: net/http reads the body %q (%v), want %q", head, got, err, data)
	}
	if std.Method != string(r.Method) || std.RequestURI != string(r.Target) {
		t.Fatalf("%q: net/http reads %s %s", head, std.Method, std.RequestURI)
	}
	next, err := http.ReadRequest(in)
	if err != nil || next.RequestURI != "/next" || next.Host != "next" {
		t.Fatalf("%q: net/http reads another next request: %v, %v", head, next, err)
	}
	if rest, _ := io.ReadAll(in); len(rest) > 0 {
		t.Fatalf("%q: net/http leaves %q", head, rest)
	}
}

// checkOneResponse is checkOneRequest for responses.
func checkOneResponse(t *testing.T, r *Response, method string, head []byte) {
	t.Helper()
	onWire, data, ok := body(r.Framing, r.Length)
	if !ok || r.Framing == UntilClose {
		return
	}
	in := bufio.NewReader(strings.NewReader(string(head) + onWire + nextResponse))
	std, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("net/http refuses what was written, %q: %v", head, err)
	}
	defer std.Body.Close()
	got, err := io.ReadAll(std.Body)
	if err != nil || string(got) != data || std.StatusCode != r.Status {
		t.Fatalf("%q: net/http reads %d with the body %q (%v), want %q", head, std.StatusCode, got, err, data)
	}
	next, err := http.ReadResponse(in, nil)
	if err != nil || next.StatusCode != 299 {
		t.Fatalf("%q: net/http reads another next response: %v, %v", head, fmt.Sprint(next), err)
	}
	next.Body.Close()
}
