package http1

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

var formNames = map[TargetForm]string{Origin: "origin", Absolute: "absolute", Authority: "authority", Asterisk: "asterisk"}

func requestFacts(r *Request) map[string]string {
	facts := headFacts(&r.Head)
	for key, value := range map[string]any{
		"method": r.Method, "target": r.Target, "minor": r.Minor, "form": formNames[r.Form],
		"scheme": r.Scheme, "authority": r.Authority, "path": r.Path, "query": r.Query,
		"hasquery": r.HasQuery, "framing": framingNames[r.Framing], "length": r.Length,
		"keepalive": r.KeepAlive, "expect": r.ExpectContinue, "upgrade": r.Upgrade,
	} {
		if b, isBytes := value.([]byte); isBytes {
			value = string(b)
		}
		facts[key] = fmt.Sprint(value)
	}
	return facts
}

// snapshot is all that a caller can see of a parsed request.
func (r *Request) snapshot() string { return fmt.Sprintf("%q", requestFacts(r)) }

func TestRequestCases(t *testing.T) {
	cases := append(readCases(t, "testdata/requests.txt"), readCases(t, "testdata/smuggling.txt")...)
	for _, c := range cases {
		t.Run(c.title, func(t *testing.T) {
			var r Request
			n, err := r.Parse(c.wire, nil)
			if err == nil && n != len(c.wire) && !strings.Contains(c.title, "preface") {
				t.Errorf("head of %d bytes, want %d", n, len(c.wire))
			}
			c.check(t, requestFacts(&r), err)
			checkSplitRequest(t, c.wire)
		})
	}
}

// checkSplitRequest gives the bytes one by one, as a slow client would, to a
// Request that has a past; the answer must be the one that all at once give.
func checkSplitRequest(t *testing.T, wire []byte) {
	t.Helper()
	var whole Request
	wantN, wantErr := whole.Parse(wire, nil)

	var r Request
	r.Parse([]byte("GET /left-behind HTTP/1.1\r\nHost: elsewhere\r\nX-Long: "+strings.Repeat("y", 200)), nil)
	n, err := 0, error(ErrIncomplete)
	for i := 0; i <= len(wire) && err == ErrIncomplete; i++ {
		n, err = r.Parse(wire[:i], nil)
	}
	if n != wantN || err != wantErr {
		t.Fatalf("byte by byte: %d, %v; at once: %d, %v", n, err, wantN, wantErr)
	}
	if err == nil && r.snapshot() != whole.snapshot() {
		t.Errorf("byte by byte:\n%s\nat once:\n%s", r.snapshot(), whole.snapshot())
	}
}

func TestRequestEndsWhereTheBodyBegins(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
	var r Request
	n, err := r.Parse([]byte(head+"GET / \x00\r\n\r\n\n"), nil)
	if err != nil || n != len(head) {
		t.Errorf("head of %d bytes (%v), want %d", n, err, len(head))
	}
}

func TestRequestLimits(t *testing.T) {
	fields := func(n int) string { return strings.Repeat("X: y\r\n", n) }
	pad := func(n int) string { return strings.Repeat("a", n) }
	const line = "GET / HTTP/1.1\r\nHost: a\r\n"
	for _, c := range []struct {
		name string
		lim  *Limits
		head string
		want string
	}{
		{"100 fields", nil, line + fields(99) + "\r\n", "ok"},
		{"101 fields", nil, line + fields(100) + "\r\n", "431 too_many_fields"},
		{"101 fields, no end in sight", nil, line + fields(100), "431 too_many_fields"},
		{"own limit of fields", &Limits{Fields: 1}, line + "\r\n", "ok"},
		{"own limit of fields exceeded", &Limits{Fields: 1}, line + fields(1) + "\r\n", "431 too_many_fields"},
		{"a target of 8 KiB", nil, "GET /" + pad(8191) + " HTTP/1.1\r\nHost: a\r\n\r\n", "ok"},
		{"a longer target", nil, "GET /" + pad(8192) + " HTTP/1.1\r\nHost: a\r\n\r\n", "414 target_too_long"},
		{"a longer target without end", nil, "GET /" + pad(8192), "414 target_too_long"},
		{"a target of 8 KiB without end", nil, "GET /" + pad(8191), "incomplete"},
		{"own limit of target", &Limits{TargetBytes: 3}, "GET /ab", "incomplete"},
		{"own limit of target exceeded", &Limits{TargetBytes: 3}, "GET /abc", "414 target_too_long"},
		{"a head of 16 KiB", nil, line + "X: " + pad(16384-len(line)-7) + "\r\n\r\n", "ok"},
		{"a larger head", nil, line + "X: " + pad(16384-len(line)-6) + "\r\n\r\n", "431 head_too_large"},
		{"a head that cannot end in time", nil, line + "X: " + pad(16384-len(line)-3), "431 head_too_large"},
		{"a head that still can", nil, line + "X: " + pad(16384-len(line)-4), "incomplete"},
		{"own limit of bytes", &Limits{HeadBytes: len(line) + 2}, line + "\r\n", "ok"},
		{"own limit of bytes exceeded", &Limits{HeadBytes: len(line) + 1}, line + "\r\n", "431 head_too_large"},
		{"a name of 64 KiB", &Limits{HeadBytes: 1 << 20}, line + pad(1<<16) + ": x\r\n\r\n", "431 head_too_large"},
		{"a method that is too long", nil, pad(65), "501 method_too_long"},
		{"a long method", nil, pad(64), "incomplete"},
		{"32 connection options", nil, line + "Connection: a" + strings.Repeat(",a", 31) + "\r\n\r\n", "ok"},
		{"33 connection options", nil, line + "Connection: a" + strings.Repeat(",a", 32) + "\r\n\r\n", "400 connection_options"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r Request
			_, err := r.Parse([]byte(c.head), c.lim)
			got := "ok"
			if err != nil {
				got = refusal(err)
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if c.lim == nil {
				checkSplitRequest(t, []byte(c.head))
			}
		})
	}
}

// A head that comes byte by byte is parsed again only when a line is complete.
func TestSlowHeadIsNotParsedForEachByte(t *testing.T) {
	head := []byte("GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 8000) + "\r\nY: z\r\n\r\n")
	lim := (*Limits)(nil).filled()
	var r Request
	parses := 0
	for i := 1; i < len(head); i++ {
		if !r.waiting(head[:i], &lim) {
			parses++
		}
		if _, err := r.Parse(head[:i], nil); err != ErrIncomplete {
			t.Fatal(err)
		}
	}
	if parses > 100 {
		t.Errorf("%d parses of a head of 5 lines", parses)
	}
}

// What a Request remembers of an unfinished head must not reach the next
// connection.
func TestAbandonedHeadLeavesNothing(t *testing.T) {
	for _, past := range []string{
		strings.Repeat("GET / HTTP/1.1\r\n", 1) + "Host: victim\r\nX: " + strings.Repeat("a", 100),
		"POST / HTTP/1.1\r\nHost: victim\r\nTransfer-Encoding: chunked\r\nConnection: close, upgrade\r\nUpgrade: x\r\nTE: x\r\n\r\n",
		"OPTIONS http://a/?b HTTP/1.1\r\nHost: victim\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
	} {
		for tail := range 200 {
			wire := []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n" + strings.Repeat("b", tail))
			var used, fresh Request
			used.Parse([]byte(past), nil)
			n, err := used.Parse(wire, nil)
			wantN, _ := fresh.Parse(wire, nil)
			if err != nil || n != wantN || used.snapshot() != fresh.snapshot() {
				t.Fatalf("after %q: %d, %v\n%s\nwant %d\n%s", past, n, err, used.snapshot(), wantN, fresh.snapshot())
			}
		}
	}
}

func TestFindAndLookup(t *testing.T) {
	var r Request
	parseRequest(t, &r, "GET / HTTP/1.1\r\nhOST: a\r\nX-Weft-A: 1\r\nAccept: x\r\nx-weft-b: 2\r\nACCEPT: y\r\n\r\n")
	if i := r.Find(FieldHost); i != 0 || string(r.Name(i)) != "hOST" {
		t.Errorf("Host is field %d", i)
	}
	if i := r.Find(FieldXWeft); i != 1 {
		t.Errorf("first x-weft- field is %d, want 1", i)
	}
	if i := r.Find(FieldCookie); i != -1 {
		t.Errorf("Cookie is field %d, want none", i)
	}
	if v, n := r.Lookup("accept"); string(v) != "x" || n != 2 {
		t.Errorf("Accept is %q on %d lines", v, n)
	}
	if v, n := r.Lookup("X-Weft-B"); string(v) != "2" || n != 1 {
		t.Errorf("X-Weft-B is %q on %d lines", v, n)
	}
	if v, n := r.Lookup("X-Weft-"); v != nil || n != 0 {
		t.Errorf("X-Weft- is %q on %d lines, want none", v, n)
	}
}

// Every well-known name is found in any case, none is taken for another, and a
// name that differs in one byte is not taken for it.
func TestWellKnownNames(t *testing.T) {
	for id, name := range wellKnown {
		if name == "" {
			continue
		}
		for _, spelt := range []string{name, strings.ToUpper(name)} {
			if got, _ := identify([]byte(spelt), tokenByte); got != FieldID(id) {
				t.Errorf("%s is field %d, want %d", spelt, got, id)
			}
		}
		for i := range name {
			other := []byte(name)
			other[i] = '~'
			if got, _ := identify(other, tokenByte); got != FieldOther {
				t.Errorf("%s is taken for %s", other, wellKnown[got])
			}
		}
	}
}

func parseRequest(t testing.TB, r *Request, head string) {
	t.Helper()
	n, err := r.Parse([]byte(head), nil)
	if err != nil || n != len(head) {
		t.Fatalf("%q: %d, %v", head, n, err)
	}
}

func TestAppendFields(t *testing.T) {
	for _, c := range []struct{ name, fields, want string }{
		{"a run", "Host: a\r\nAccept: b\r\n", "Host: a\r\nAccept: b\r\n"},
		{"a hole in the run", "Host: a\r\nConnection: close\r\nAccept: b\r\n", "Host: a\r\nAccept: b\r\n"},
		{"a hole at the end", "Host: a\r\nTE: x\r\n", "Host: a\r\n"},
		{"no space", "Host:a\r\nAccept: b\r\n", "Host: a\r\nAccept: b\r\n"},
		{"a tab for a space", "Host:\ta\r\nAccept: b\r\n", "Host: a\r\nAccept: b\r\n"},
		{"more space", "Accept:  b\r\nHost: a\r\nX: c\r\n", "Accept: b\r\nHost: a\r\nX: c\r\n"},
		{"space behind", "Accept: b \t\r\nHost: a\r\n", "Accept: b\r\nHost: a\r\n"},
		{"empty values", "Host: a\r\nX:\r\nY: \r\nZ:  \r\n", "Host: a\r\nX: \r\nY: \r\nZ: \r\n"},
		{"case and bytes", "hOsT: a\r\nX: \xff\"a\"\r\n", "hOsT: a\r\nX: \xff\"a\"\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r Request
			parseRequest(t, &r, "GET / HTTP/1.1\r\n"+c.fields+"\r\n")
			if got := string(r.AppendFields([]byte("before "))); got != "before "+c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// typicalRequest is what a browser behind a load balancer sends: 10 fields.
const typicalRequest = "GET /api/orders/1?expand=items HTTP/1.1\r\n" +
	"Host: shop.example.com\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n" +
	"Accept: application/json, text/plain, */*\r\n" +
	"Accept-Language: en-US,en;q=0.5\r\n" +
	"Accept-Encoding: gzip, deflate, br, zstd\r\n" +
	"Referer: https://shop.example.com/orders\r\n" +
	"Connection: keep-alive\r\n" +
	"Cookie: session=6f1d9c1e8b7a4c0e; theme=dark\r\n" +
	"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n" +
	"X-Request-Id: 8c5e3c1a-7a51-4b7e-9a55-0c3a2f1f6d11\r\n" +
	"\r\n"

func TestRequestAllocatesNothing(t *testing.T) {
	var r Request
	wire := []byte(typicalRequest)
	out := make([]byte, 0, 4096)
	bad := bytes.Replace(wire, []byte("Cookie:"), []byte("Cookie :"), 1)
	awkward := []byte("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::ffff:1.2.3.4]\r\nX_Forwarded_For: a\r\n" +
		"Connection: x-a, x-b, TE, cache-control\r\nX-A: b\r\nTE: trailers\r\nX-Very-Long-Name-Behind-All-That-Is-Guarded: y\r\n\r\n")
	steps := func() {
		r.Parse(wire, nil)
		r.Parse(wire[:len(wire)-9], nil)
		r.Parse(wire, &Limits{Fields: 50})
		out = AppendRequestLine(out[:0], r.Method, r.Target)
		out = r.AppendFields(out)
		out = AppendFraming(out, FixedLength, 123456)
		if _, n := r.Lookup("cookie"); n != 1 {
			t.Error("no cookie")
		}
		if _, err := r.Parse(bad, nil); err == nil {
			t.Error("accepted a space before the colon")
		}
		if _, err := r.Parse(awkward, nil); err != nil {
			t.Error(err)
		}
	}
	if n := testing.AllocsPerRun(100, steps); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRequestParse(b *testing.B) {
	wire := []byte(typicalRequest)
	b.SetBytes(int64(len(wire)))
	b.ReportAllocs()
	var r Request
	for b.Loop() {
		if _, err := r.Parse(wire, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendFields(b *testing.B) {
	var r Request
	parseRequest(b, &r, typicalRequest)
	out := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		out = r.AppendFields(out[:0])
	}
}
