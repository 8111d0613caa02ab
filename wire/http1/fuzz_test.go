package http1

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mostSplit bounds the inputs that are also fed in pieces: the work grows with the
// square of their length.
const mostSplit = 2 << 10

// FuzzRequest holds the parser against net/http: what is accepted here must be
// accepted there and mean the same, also when it was written for the next hop. What
// is refused here must be refused there, but for the reasons of stdTakesRequest.
//
// Where net/http refuses and this package does not: escapes in the path are left
// to NormalizePath, and the names in Trailer are not read, for the field is dropped.
func FuzzRequest(f *testing.F) {
	for _, file := range []string{"testdata/requests.txt", "testdata/smuggling.txt"} {
		for _, c := range readCases(f, file) {
			f.Add(c.wire)
		}
	}
	f.Add([]byte(typicalRequest))
	f.Fuzz(func(t *testing.T, wire []byte) {
		var r Request
		n, err := r.Parse(wire, nil)
		if len(wire) <= mostSplit {
			checkSplitRequest(t, wire)
		}
		if err != nil {
			checkStdRefusesRequest(t, wire, err)
			return
		}
		if n <= 0 || n > len(wire) || !bytes.HasSuffix(wire[:n], []byte("\r\n\r\n")) {
			t.Fatalf("head ends at %d", n)
		}
		compareRequest(t, &r, wire[:n])
		checkRequestRoundTrip(t, &r)
	})
}

func compareRequest(t *testing.T, r *Request, head []byte) {
	t.Helper()
	head = withoutEmptyLines(head)
	std, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
	if err != nil {
		if stdIsStricter(r) {
			return
		}
		t.Fatalf("net/http refuses %q: %v", head, err)
	}
	if std.Method != string(r.Method) || std.RequestURI != string(r.Target) || std.ProtoMinor != int(r.Minor) {
		t.Errorf("%s %s 1.%d, net/http: %s %s 1.%d", r.Method, r.Target, r.Minor, std.Method, std.RequestURI, std.ProtoMinor)
	}
	if std.Host != string(r.Authority) {
		t.Errorf("authority %q, net/http: %q", r.Authority, std.Host)
	}
	if r.Form == Origin || r.Form == Absolute {
		if std.URL.RawQuery != string(r.Query) {
			t.Errorf("query %q, net/http: %q", r.Query, std.URL.RawQuery)
		}
	}
	compareFraming(t, r.Framing, r.Length, std.ContentLength, std.TransferEncoding)
	// net/http keeps an HTTP/1.0 connection only when a response has a length: it
	// decides later. Close alone is comparable.
	if r.Minor == 1 && r.KeepAlive == std.Close {
		t.Errorf("keep-alive %v, net/http: close %v", r.KeepAlive, std.Close)
	}
	compareFields(t, &r.Head, std.Header, "Host", "Content-Length", "Transfer-Encoding", "Trailer")
}

// stdIsStricter tells that r has one of the things that only net/http refuses.
func stdIsStricter(r *Request) bool {
	return r.has(1<<FieldTrailer) || bytes.IndexByte(r.Path, '%') >= 0
}

func compareFraming(t *testing.T, framing Framing, length, stdLength int64, stdCodings []string) {
	t.Helper()
	var want int64
	switch framing {
	case FixedLength:
		want = length
	case Chunked, UntilClose:
		want = -1
	}
	if stdLength != want {
		t.Errorf("framing %s with length %d, net/http: length %d", framingNames[framing], length, stdLength)
	}
	if (framing == Chunked) != slices.Equal(stdCodings, []string{"chunked"}) {
		t.Errorf("framing %s, net/http: %q", framingNames[framing], stdCodings)
	}
}

// compareFields compares all values by name, except of fields that net/http takes
// out of the header.
func compareFields(t *testing.T, h *Head, std http.Header, except ...string) {
	t.Helper()
	ours := http.Header{}
	for i := range h.Fields {
		key := textproto.CanonicalMIMEHeaderKey(string(h.Name(i)))
		ours[key] = append(ours[key], string(h.Value(i)))
	}
	for _, key := range except {
		delete(ours, key)
		std.Del(key)
	}
	for key, values := range ours {
		if !slices.Equal(values, std[key]) {
			t.Errorf("%s is %q, net/http: %q", key, values, std[key])
		}
	}
	if len(ours) != len(std) {
		t.Errorf("%d names, net/http: %d", len(ours), len(std))
	}
}

// checkRequestRoundTrip writes the request as a proxy would and reads it again.
func checkRequestRoundTrip(t *testing.T, r *Request) {
	t.Helper()
	wire := AppendRequestLine(nil, r.Method, r.Target)
	if i := r.Find(FieldHost); i < 0 || r.Fields[i].Drop {
		wire = fmt.Appendf(wire, "Host: %s\r\n", cmp.Or(string(r.Authority), "none"))
	}
	wire = r.AppendFields(wire)
	wire = AppendFraming(wire, r.Framing, r.Length)
	wire = append(wire, "\r\n"...)

	var again Request
	n, err := again.Parse(wire, &Limits{HeadBytes: 1 << 20, Fields: 200})
	if err != nil || n != len(wire) {
		t.Fatalf("wrote %q, read %d of %d: %v", wire, n, len(wire), err)
	}
	if string(again.Method) != string(r.Method) || string(again.Target) != string(r.Target) ||
		len(r.Authority) > 0 && string(again.Authority) != string(r.Authority) ||
		again.Framing != r.Framing || again.Length != r.Length {
		t.Errorf("wrote %q", wire)
	}
	checkKept(t, &r.Head, &again.Head)
	checkOneRequest(t, r, wire)
}

// checkKept checks that the fields that were kept in one head are the ones of the
// other, apart from what the writer added.
func checkKept(t *testing.T, sent, got *Head) {
	t.Helper()
	var want, have []string
	for i := range sent.Fields {
		if !sent.Fields[i].Drop && sent.Fields[i].ID != FieldHost {
			want = append(want, fmt.Sprintf("%s: %s", sent.Name(i), sent.Value(i)))
		}
	}
	for i := range got.Fields {
		if !got.Fields[i].Drop && got.Fields[i].ID != FieldHost {
			have = append(have, fmt.Sprintf("%s: %s", got.Name(i), got.Value(i)))
		}
	}
	if !slices.Equal(want, have) {
		t.Errorf("kept %q, read again %q", want, have)
	}
}

// FuzzResponse is FuzzRequest for responses. Where net/http refuses and this
// package does not: fields named in Trailer, as above. Where it reads the same
// bytes otherwise: it takes Connection: close out of the header, it ignores Content-Length and Transfer-Encoding of 1xx and 204,
// and knows no CONNECT.
func FuzzResponse(f *testing.F) {
	for _, c := range readCases(f, "testdata/responses.txt") {
		f.Add(c.wire, c.method == "HEAD")
	}
	f.Add([]byte(typicalResponse), false)
	f.Fuzz(func(t *testing.T, wire []byte, head bool) {
		method := "GET"
		if head {
			method = "HEAD"
		}
		var r Response
		n, err := r.Parse(wire, []byte(method), nil)
		if len(wire) <= mostSplit {
			checkSplitResponse(t, wire, method)
		}
		if err != nil {
			checkStdRefusesResponse(t, wire, method, err)
			return
		}
		if n <= 0 || n > len(wire) || !bytes.HasSuffix(wire[:n], []byte("\r\n\r\n")) {
			t.Fatalf("head ends at %d", n)
		}
		compareResponse(t, &r, wire[:n], method)
		checkResponseRoundTrip(t, &r, method)
	})
}

func compareResponse(t *testing.T, r *Response, head []byte, method string) {
	t.Helper()
	std, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), &http.Request{Method: method})
	if err != nil {
		if r.has(1 << FieldTrailer) {
			return
		}
		t.Fatalf("net/http refuses %q: %v", head, err)
	}
	defer std.Body.Close()
	if std.StatusCode != r.Status || std.ProtoMinor != int(r.Minor) {
		t.Errorf("%d in 1.%d, net/http: %d in 1.%d", r.Status, r.Minor, std.StatusCode, std.ProtoMinor)
	}
	bodyless := r.Status < 200 || r.Status == 204 || r.Status == 304 || method == "HEAD"
	if bodyless != (r.Framing == NoBody) {
		t.Errorf("status %d after %s has framing %s", r.Status, method, framingNames[r.Framing])
	}
	if !bodyless {
		compareFraming(t, r.Framing, r.Length, std.ContentLength, std.TransferEncoding)
		if r.Minor == 1 && r.KeepAlive == std.Close {
			t.Errorf("keep-alive %v, net/http: close %v", r.KeepAlive, std.Close)
		}
	}
	compareFields(t, &r.Head, std.Header, "Connection", "Content-Length", "Transfer-Encoding", "Trailer")
}

func checkResponseRoundTrip(t *testing.T, r *Response, method string) {
	t.Helper()
	wire := AppendStatusLine(nil, r.Status, r.Reason)
	wire = r.AppendFields(wire)
	wire = AppendFraming(wire, r.Framing, r.Length)
	wire = append(wire, "\r\n"...)

	var again Response
	n, err := again.Parse(wire, []byte(method), &Limits{HeadBytes: 1 << 20, Fields: 200})
	if err != nil || n != len(wire) {
		t.Fatalf("wrote %q, read %d of %d: %v", wire, n, len(wire), err)
	}
	if again.Status != r.Status || again.Framing != r.Framing {
		t.Errorf("wrote %q", wire)
	}
	checkKept(t, &r.Head, &again.Head)
	if method != "CONNECT" {
		checkOneResponse(t, r, method, wire)
	}
}

// FuzzChunks holds the decoder against net/http's: a body that is accepted here
// gives the same data there and ends at the same byte. net/http takes bare LF in
// some places, whitespace behind a size, and sizes with 16 digits, and it does not
// read trailers; here these are refused, or read.
func FuzzChunks(f *testing.F) {
	for _, c := range readCases(f, "testdata/chunks.txt") {
		f.Add(c.wire)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var d ChunkDecoder
		got := decode(&d, body, len(body)+1)
		if len(body) <= mostSplit {
			checkSplitChunks(t, body)
		}
		if got.err != nil {
			return
		}
		source := bufio.NewReader(bytes.NewReader(body))
		data, err := io.ReadAll(httputil.NewChunkedReader(source))
		if err != nil || string(data) != got.data {
			t.Fatalf("data %q, net/http: %q, %v", got.data, data, err)
		}
		// The trailer section, up to the empty line, as textproto reads it.
		trailers, err := textproto.NewReader(source).ReadMIMEHeader()
		if err != nil {
			t.Fatalf("net/textproto refuses the trailers of %q: %v", body, err)
		}
		if rest, _ := io.ReadAll(source); string(rest) != got.rest {
			t.Errorf("left %q, net/http: %q", got.rest, rest)
		}
		compareTrailers(t, got.trailers, trailers)

		wire := AppendChunkHeader(nil, len(got.data))
		wire = append(wire, got.data+"\r\n"...)
		if got.data == "" {
			wire = wire[:0]
		}
		wire = AppendLastChunk(wire, []byte(got.trailers))
		d.Reset()
		if again := decode(&d, wire, len(wire)); again.err != nil || again.data != got.data || again.trailers != got.trailers {
			t.Errorf("wrote %q, read %+v", wire, again)
		}
	})
}

// compareTrailers checks that each trailer that was kept is a line that was sent.
func compareTrailers(t *testing.T, kept string, sent textproto.MIMEHeader) {
	t.Helper()
	for line := range strings.SplitSeq(strings.TrimSuffix(kept, "\r\n"), "\r\n") {
		if line == "" {
			continue
		}
		name, value, _ := strings.Cut(line, ": ")
		if !slices.Contains(sent[textproto.CanonicalMIMEHeaderKey(name)], value) {
			t.Errorf("kept trailer %q, net/textproto: %q", line, sent)
		}
		if guarded([]byte(name)) {
			t.Errorf("kept trailer %q", line)
		}
	}
}

func FuzzNormalizePath(f *testing.F) {
	for _, path := range []string{"/", "/a/b", "/a/../b", "/%2e%2E/a", `/a\..\b`, "/a//b/.", "/%zz", "/a%2fb", "*", "/%252e", "/..", "/.%2e"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) { checkPath(t, path) })
}

// FuzzLength holds parseLength against strconv.
func FuzzLength(f *testing.F) {
	for _, v := range []string{"0", "5", "007", "9223372036854775807", "9223372036854775808", "+1", "1_0", "0x1", ""} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		got, fault := parseLength([]byte(v))
		want, err := strconv.ParseUint(v, 10, 63)
		if (fault == ok) != (err == nil) || err == nil && got != int64(want) {
			t.Fatalf("%q is %d (fault %d), strconv: %d, %v", v, got, fault, want, err)
		}
		// strconv gives up at the digit that overflows; a byte behind it that is no
		// digit makes it a bad length here.
		if tooLarge := errors.Is(err, strconv.ErrRange); fault == hugeCL && !tooLarge || tooLarge && fault == ok {
			t.Fatalf("%q has fault %d, strconv: %v", v, fault, err)
		}
	})
}

// FuzzText holds the eight-at-a-time scanner against one byte at a time.
func FuzzText(f *testing.F) {
	f.Add([]byte("a value\tof some length\x7f, with more behind\r\n"), 0)
	f.Add([]byte("\xff\x80\x7e\x1f\x09\x20"), 3)
	f.Fuzz(func(t *testing.T, b []byte, from int) {
		if from < 0 || from > len(b) {
			return
		}
		want := from
		for want < len(b) && (b[want] >= 0x20 && b[want] != 0x7f || b[want] == '\t') {
			want++
		}
		if got := skipText(b, from); got != want {
			t.Fatalf("%q from %d stops at %d, want %d", b, from, got, want)
		}
	})
}
