package http1

import (
	"fmt"
	"strings"
	"testing"
)

func responseFacts(r *Response) map[string]string {
	facts := headFacts(&r.Head)
	for key, value := range map[string]any{
		"status": r.Status, "reason": string(r.Reason), "minor": r.Minor,
		"framing": framingNames[r.Framing], "length": r.Length,
		"keepalive": r.KeepAlive, "upgrade": string(r.Upgrade),
	} {
		facts[key] = fmt.Sprint(value)
	}
	return facts
}

func (r *Response) snapshot() string { return fmt.Sprintf("%q", responseFacts(r)) }

func TestResponseCases(t *testing.T) {
	for _, c := range readCases(t, "testdata/responses.txt") {
		t.Run(c.title, func(t *testing.T) {
			if c.method == "" {
				c.method = "GET"
			}
			var r Response
			n, err := r.Parse(c.wire, []byte(c.method), nil)
			if err == nil && n != len(c.wire) {
				t.Errorf("head of %d bytes, want %d", n, len(c.wire))
			}
			c.check(t, responseFacts(&r), err)
			checkSplitResponse(t, c.wire, c.method)
		})
	}
}

// checkSplitResponse is checkSplitRequest for responses.
func checkSplitResponse(t *testing.T, wire []byte, method string) {
	t.Helper()
	var whole Response
	wantN, wantErr := whole.Parse(wire, []byte(method), nil)

	var r Response
	past := "HTTP/1.1 101 Left\r\nConnection: upgrade\r\nUpgrade: x\r\nX-Long: " + strings.Repeat("y", 200)
	r.Parse([]byte(past+"\r\n\r\n"), nil, nil)
	r.Parse([]byte(past), nil, nil)
	n, err := 0, error(ErrIncomplete)
	for i := 0; i <= len(wire) && err == ErrIncomplete; i++ {
		n, err = r.Parse(wire[:i], []byte(method), nil)
	}
	if n != wantN || err != wantErr {
		t.Fatalf("byte by byte: %d, %v; at once: %d, %v", n, err, wantN, wantErr)
	}
	if err == nil && r.snapshot() != whole.snapshot() {
		t.Errorf("byte by byte:\n%s\nat once:\n%s", r.snapshot(), whole.snapshot())
	}
}

func TestResponseLimits(t *testing.T) {
	const line = "HTTP/1.1 200 OK\r\n"
	for _, c := range []struct{ name, head, want string }{
		{"101 fields", line + strings.Repeat("X: y\r\n", 101), "502 too_many_fields"},
		{"16 KiB", line + "X: " + strings.Repeat("y", 16<<10), "502 head_too_large"},
		{"a reason of 16 KiB", line[:13] + strings.Repeat("y", 16<<10), "502 head_too_large"},
	} {
		var r Response
		_, err := r.Parse([]byte(c.head), nil, nil)
		if err == nil || refusal(err) != c.want {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
		checkSplitResponse(t, []byte(c.head), "GET")
	}
}

func TestStatusLine(t *testing.T) {
	for _, c := range []struct {
		status int
		reason string
		want   string
	}{
		{200, "", "HTTP/1.1 200 OK\r\n"},
		{200, "Fine", "HTTP/1.1 200 Fine\r\n"},
		{503, "", "HTTP/1.1 503 Service Unavailable\r\n"},
		{299, "", "HTTP/1.1 299 \r\n"},
		{999, "", "HTTP/1.1 999 \r\n"},
	} {
		if got := string(AppendStatusLine(nil, c.status, []byte(c.reason))); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
		var r Response
		n, err := r.Parse([]byte(c.want+"\r\n"), []byte("GET"), nil)
		if err != nil || n != len(c.want)+2 || r.Status != c.status {
			t.Errorf("%q reads as %d (%d bytes, %v)", c.want, r.Status, n, err)
		}
	}
	for code := range 100 {
		if StatusText(code) != "" {
			t.Errorf("%d has a text", code)
		}
	}
}

const typicalResponse = "HTTP/1.1 200 OK\r\n" +
	"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n" +
	"Server: shop\r\n" +
	"Content-Type: application/json; charset=utf-8\r\n" +
	"Content-Length: 512\r\n" +
	"Cache-Control: private, max-age=0\r\n" +
	"ETag: \"6f1d9c1e8b7a4c0e\"\r\n" +
	"Connection: keep-alive\r\n" +
	"\r\n"

func TestResponseAllocatesNothing(t *testing.T) {
	var r Response
	wire, method := []byte(typicalResponse), []byte("GET")
	out := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := r.Parse(wire, method, nil); err != nil {
			t.Error(err)
		}
		out = AppendStatusLine(out[:0], r.Status, nil)
		out = r.AppendFields(out)
		out = AppendFraming(out, r.Framing, r.Length)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkResponseParse(b *testing.B) {
	wire, method := []byte(typicalResponse), []byte("GET")
	b.SetBytes(int64(len(wire)))
	b.ReportAllocs()
	var r Response
	for b.Loop() {
		if _, err := r.Parse(wire, method, nil); err != nil {
			b.Fatal(err)
		}
	}
}
