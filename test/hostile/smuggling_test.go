package hostile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/test/frames"
	"github.com/weftmesh/weft/test/world"
)

// meant is what a request that may be forwarded has to arrive as. Fields that are
// empty are not compared, but the body always is.
type meant struct {
	method, target, host, body string
	header                     map[string]string // "" is absent
}

// refused says that a request must not be forwarded at all.
var refused *meant

// ambiguous requests: what is forwarded is exactly one request as meant, or nothing,
// and then the answer is an error and the connection is closed. Where a request is
// forwarded or refused as the proxy likes, want says how it may arrive; must has no
// second way.
var ambiguous = []struct {
	name string
	raw  string
	want *meant
	must bool // it has to be forwarded
}{
	{"plain", "GET /a HTTP/1.1\r\nHost: h\r\n\r\n", &meant{method: "GET", target: "/a", host: "h"}, true},
	{"a body", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", &meant{method: "POST", body: "hello"}, true},
	{"chunks", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", &meant{method: "POST", body: "hello"}, true},
	{"a chunk extension", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n", &meant{body: "hello"}, false},
	{"trailers", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", &meant{body: "hello"}, true},

	// lengths and encodings that contradict each other
	{"CL and TE", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &meant{body: "", header: map[string]string{"Content-Length": ""}}, false},
	{"TE and CL", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", refused, false},
	{"TE that is not chunked", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n", refused, false},
	{"TE of two codings, chunked last", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", refused, false},
	{"TE of two codings, chunked first", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", refused, false},
	{"chunked twice", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", refused, false},
	{"two TE fields", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", refused, false},
	{"xchunked", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", refused, false},
	{"TE with a vertical tab", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", refused, false},
	{"TE with a quoted value", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", refused, false},
	{"TE in HTTP/1.0", "POST /a HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", refused, false},
	{"TE and a space before the colon", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", refused, false},
	{"TE folded", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", refused, false},
	{"TE with an underscore", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", &meant{body: "0\r\n\r\n", header: map[string]string{"Transfer_encoding": ""}}, false},
	{"two equal CL", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", &meant{body: "hello"}, false},
	{"CL list of equals", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\nhello", &meant{body: "hello"}, false},
	{"two CL", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", refused, false},
	{"CL list", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 6\r\n\r\nhello!", refused, false},
	{"CL +5", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\nhello", refused, false},
	{"CL -5", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\nhello", refused, false},
	{"CL 0x5", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 0x5\r\n\r\nhello", refused, false},
	{"CL 5_0", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5_0\r\n\r\nhello", refused, false},
	{"CL empty", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\nhello", refused, false},
	{"CL that overflows", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551621\r\n\r\nhello", refused, false},
	{"CL with words", "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5 5\r\n\r\nhello", refused, false},

	// chunks
	{"chunk size 0x5", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", refused, false},
	{"chunk size +5", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", refused, false},
	{"chunk size -1", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n", refused, false},
	{"chunk size that overflows", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n", refused, false},
	{"chunk size of nothing", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n", refused, false},
	{"chunk line by LF", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", refused, false},
	{"LF in a chunk extension", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;\nx\r\nhello\r\n0\r\n\r\n", refused, false},
	{"CR in a chunk extension", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n", refused, false},
	{"chunk longer than said", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n", refused, false},
	{"chunk ended by LF", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", refused, false},
	{"last chunk ended by LF", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\n\n", refused, false},
	{"trailers that frame", "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: x\r\nHost: evil\r\n\r\n", &meant{body: "hello", host: "h"}, false},

	// lines
	{"a head by LF", "GET /a HTTP/1.1\nHost: h\n\n", refused, false},
	{"one line by LF", "GET /a HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", refused, false},
	{"CR in a value", "GET /a HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", refused, false},
	{"NUL in a value", "GET /a HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n", refused, false},
	{"NUL in a name", "GET /a HTTP/1.1\r\nHost: h\r\nX\x00: a\r\n\r\n", refused, false},
	{"a folded line", "GET /a HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", refused, false},
	{"a first line folded", "GET /a HTTP/1.1\r\n X: a\r\nHost: h\r\n\r\n", refused, false},
	{"a space before the colon", "GET /a HTTP/1.1\r\nHost: h\r\nX : a\r\n\r\n", refused, false},
	{"a name of nothing", "GET /a HTTP/1.1\r\nHost: h\r\n: a\r\n\r\n", refused, false},
	{"no colon", "GET /a HTTP/1.1\r\nHost: h\r\nX\r\n\r\n", refused, false},
	{"a name in another script", "GET /a HTTP/1.1\r\nHost: h\r\nX-\xc3\xa9: a\r\n\r\n", refused, false},
	{"an empty line first", "\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n", &meant{method: "GET", target: "/a"}, false},

	// the request line
	{"two spaces", "GET  /a HTTP/1.1\r\nHost: h\r\n\r\n", refused, false},
	{"a tab", "GET\t/a\tHTTP/1.1\r\nHost: h\r\n\r\n", refused, false},
	{"a space in the target", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", refused, false},
	{"a fragment", "GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", refused, false},
	{"a target without a slash", "GET a HTTP/1.1\r\nHost: h\r\n\r\n", refused, false},
	{"NUL in the target", "GET /a\x00b HTTP/1.1\r\nHost: h\r\n\r\n", refused, false},
	{"a star and GET", "GET * HTTP/1.1\r\nHost: h\r\n\r\n", refused, false},
	{"HTTP/0.9", "GET /a\r\n\r\n", refused, false},
	{"HTTP/2.0 as text", "GET /a HTTP/2.0\r\nHost: h\r\n\r\n", refused, false},
	{"HTTP/1.2", "GET /a HTTP/1.2\r\nHost: h\r\n\r\n", &meant{method: "GET", target: "/a"}, false},
	{"http/1.1 in small letters", "GET /a http/1.1\r\nHost: h\r\n\r\n", refused, false},
	{"a method with a colon", "GE:T /a HTTP/1.1\r\nHost: h\r\n\r\n", refused, false},
	{"CONNECT", "CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n", refused, false},

	// whose request it is
	{"no Host", "GET /a HTTP/1.1\r\n\r\n", refused, false},
	{"two Hosts", "GET /a HTTP/1.1\r\nHost: h\r\nHost: evil\r\n\r\n", refused, false},
	{"two equal Hosts", "GET /a HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", refused, false},
	{"Host with a path", "GET /a HTTP/1.1\r\nHost: h/evil\r\n\r\n", refused, false},
	{"Host with a user", "GET /a HTTP/1.1\r\nHost: u@h\r\n\r\n", refused, false},
	{"Host with a space", "GET /a HTTP/1.1\r\nHost: h evil\r\n\r\n", refused, false},
	{"Host with a port of words", "GET /a HTTP/1.1\r\nHost: h:evil\r\n\r\n", refused, false},
	{"Host with a list", "GET /a HTTP/1.1\r\nHost: h, evil\r\n\r\n", refused, false},
	{"absolute form against Host", "GET http://h/a HTTP/1.1\r\nHost: evil\r\n\r\n", &meant{method: "GET", target: "/a", host: "h"}, false},
	{"absolute form with a user", "GET http://u:p@h/a HTTP/1.1\r\nHost: h\r\n\r\n", refused, false},

	// what is said for others
	{"a client's word for its certificate", "GET /a HTTP/1.1\r\nHost: h\r\nX-Forwarded-Client-Cert: Hash=1\r\nX-Weft-Reason: x\r\nX-Weft-Unsent: 1\r\n\r\n",
		&meant{header: map[string]string{"X-Forwarded-Client-Cert": "", "X-Weft-Reason": "", "X-Weft-Unsent": ""}}, false},
	{"the same with underscores", "GET /a HTTP/1.1\r\nHost: h\r\nX_Forwarded_Client_Cert: Hash=1\r\nX_Weft_Unsent: 1\r\n\r\n",
		&meant{header: map[string]string{"X_forwarded_client_cert": "", "X_weft_unsent": ""}}, false},
	{"Connection against Authorization", "GET /a HTTP/1.1\r\nHost: h\r\nAuthorization: Basic eA==\r\nConnection: close, Authorization, X-Forwarded-For\r\n\r\n",
		&meant{header: map[string]string{"Authorization": "Basic eA=="}}, false},
	{"Connection against Host", "GET /a HTTP/1.1\r\nHost: h\r\nConnection: close, Host, Content-Length\r\n\r\n", &meant{host: "h"}, false},
	{"hop-by-hop fields", "GET /a HTTP/1.1\r\nHost: h\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: trailers\r\n\r\n",
		&meant{header: map[string]string{"X-Hop": "", "Keep-Alive": "", "Proxy-Connection": ""}}, true},
	{"an upgrade to h2c", "GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		&meant{method: "GET", header: map[string]string{"Upgrade": "", "Http2-Settings": ""}}, false},
	{"h2c without its settings in Connection", "GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		&meant{method: "GET", header: map[string]string{"Upgrade": ""}}, false},
	{"another expectation", "POST /a HTTP/1.1\r\nHost: h\r\nExpect: a-miracle\r\nContent-Length: 5\r\n\r\nhello", &meant{body: "hello"}, false},
	{"GET with a body", "GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: 33\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n", &meant{method: "GET", target: "/a", body: "GET /smuggled HTTP/1.1\r\nHost: h\r\n"}, false},
}

func TestSmuggling(t *testing.T) {
	r, address := startRecorded(t)
	for _, c := range ambiguous {
		t.Run(c.name, func(t *testing.T) {
			r.taken()
			status, closed := send(t, address, c.raw)
			requests, odd := r.taken()
			if odd = cutOff(odd); len(odd) > 0 {
				t.Fatalf("the upstream got what is no request: %q", odd)
			}
			switch {
			case len(requests) == 0 && c.must:
				t.Errorf("it was not forwarded, the answer was %d", status)
			case len(requests) == 0:
				if status < 400 || status > 599 || !closed {
					t.Errorf("it was refused with %d, and the connection was closed: %v", status, closed)
				}
			case len(requests) > 1:
				t.Fatalf("%d requests arrived: %+v", len(requests), requests)
			case c.want == nil:
				t.Errorf("it was forwarded (answer %d): %+v", status, requests[0])
			default:
				c.want.compare(t, requests[0])
			}
		})
	}
}

// cutOff drops what an upstream may see of a request whose body turned out wrong
// behind its head: a beginning, and then the end of the connection.
func cutOff(odd []string) []string {
	return slices.DeleteFunc(odd, func(s string) bool { return s == io.ErrUnexpectedEOF.Error()+` before ""` })
}

// startRecorded starts a recorder behind a gateway.
func startRecorded(t *testing.T) (*recorder, string) {
	t.Helper()
	r := startRecorder(t)
	w := world.New(t)
	w.Register("app", "app-1", r.address)
	w.Apply(world.Everything("app"))
	g := w.Gateway("--access-log", "off")
	world.Eventually(t, 10*time.Second, "the gateway", world.Answers("http://"+g.HTTP+"/"))
	return r, g.HTTP
}

// send sends bytes, then half-closes, and reads all answers: the status of the
// first (0: none), and whether the gateway closed the connection.
func send(t *testing.T, address, raw string) (status int, closed bool) {
	t.Helper()
	c := dialTCP(t, address)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return 0, !errors.Is(err, os.ErrDeadlineExceeded)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Errorf("the answer's body: %v", err)
	}
	// Only now: some servers end the exchange when they hear of the end.
	if err := c.CloseWrite(); err != nil {
		return resp.StatusCode, true
	}
	_, err = io.Copy(io.Discard, in)
	return resp.StatusCode, err == nil || !errors.Is(err, os.ErrDeadlineExceeded)
}

func (m *meant) compare(t *testing.T, r recorded) {
	t.Helper()
	for what, pair := range map[string][2]string{"method": {m.method, r.method}, "target": {m.target, r.target}, "host": {m.host, r.host}} {
		if pair[0] != "" && pair[0] != pair[1] {
			t.Errorf("%s %q arrived, meant was %q", what, pair[1], pair[0])
		}
	}
	if r.body != m.body {
		t.Errorf("body %q arrived, meant was %q", r.body, m.body)
	}
	for name, want := range m.header {
		if got := strings.Join(r.header[name], ","); got != want {
			t.Errorf("%s: %q arrived, meant was %q", name, got, want)
		}
	}
}

// TestPipelining: requests that come at once are forwarded one by one, in order, and
// each with its own body.
func TestPipelining(t *testing.T) {
	r, address := startRecorded(t)
	r.taken()
	c := dialTCP(t, address)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	var all strings.Builder
	const n = 20
	for i := range n {
		body := strings.Repeat("b", i)
		all.WriteString("POST /" + string(rune('a'+i)) + " HTTP/1.1\r\nHost: h\r\n")
		if i%2 == 0 {
			all.WriteString(fmt.Sprintf("Content-Length: %d\r\n\r\n%s", i, body))
			continue
		}
		all.WriteString(fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", i, body))
	}
	if _, err := io.WriteString(c, all.String()); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	for i := range n {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("answer %d: %s %v", i, resp.Status, err)
		}
	}
	requests, odd := r.taken()
	if len(requests) != n || len(odd) > 0 {
		t.Fatalf("%d requests arrived, and %q", len(requests), odd)
	}
	for i, got := range requests {
		if got.target != "/"+string(rune('a'+i)) || got.body != strings.Repeat("b", i) {
			t.Errorf("request %d arrived as %s %q", i, got.target, got.body)
		}
	}
}

// downgrades are HTTP/2 requests whose fields would become something else in
// HTTP/1.
var downgrades = []struct {
	name string
	head []string // names and values
	body string
	want *meant
	must bool
}{
	{"plain", pseudo("GET", "/a"), "", &meant{method: "GET", target: "/a", host: "h"}, true},
	{"a body", append(pseudo("POST", "/a"), "content-length", "5"), "hello", &meant{method: "POST", body: "hello"}, true},
	{"a body of unknown length", pseudo("POST", "/a"), "hello", &meant{method: "POST", body: "hello"}, true},
	{"cookie crumbs", append(pseudo("GET", "/a"), "cookie", "a=1", "cookie", "b=2"), "", &meant{header: map[string]string{"Cookie": "a=1; b=2"}}, true},
	{"te: trailers", append(pseudo("GET", "/a"), "te", "trailers"), "", &meant{method: "GET"}, true},

	{"CRLF in a value", append(pseudo("GET", "/a"), "x", "a\r\ny: b"), "", refused, false},
	{"a request in a value", append(pseudo("GET", "/a"), "x", "a\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h"), "", refused, false},
	{"LF in a value", append(pseudo("GET", "/a"), "x", "a\nb"), "", refused, false},
	{"NUL in a value", append(pseudo("GET", "/a"), "x", "a\x00b"), "", refused, false},
	{"a colon in a name", append(pseudo("GET", "/a"), "x: y\r\nz", "a"), "", refused, false},
	{"capitals in a name", append(pseudo("GET", "/a"), "X-Big", "a"), "", refused, false},
	{"a space in a name", append(pseudo("GET", "/a"), "x y", "a"), "", refused, false},
	{"a name of nothing", append(pseudo("GET", "/a"), "", "a"), "", refused, false},
	{"space in :path", pseudo("GET", "/a b"), "", refused, false},
	{"a request in :path", pseudo("GET", "/a HTTP/1.1\r\nHost: evil\r\n\r\nGET /smuggled"), "", refused, false},
	{"a fragment in :path", pseudo("GET", "/a#b"), "", refused, false},
	{":path without a slash", pseudo("GET", "a"), "", refused, false},
	{":path of nothing", pseudo("GET", ""), "", refused, false},
	{"a space in :method", pseudo("GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\nGET", "/a"), "", refused, false},
	{"a user in :authority", []string{":method", "GET", ":scheme", "http", ":authority", "u@h", ":path", "/a"}, "", refused, false},
	{"Host against :authority", append(pseudo("GET", "/a"), "host", "evil"), "", &meant{host: "h"}, false},
	{"transfer-encoding", append(pseudo("POST", "/a"), "transfer-encoding", "chunked"), "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", refused, false},
	{"connection", append(pseudo("GET", "/a"), "connection", "close"), "", refused, false},
	{"upgrade", append(pseudo("GET", "/a"), "upgrade", "h2c"), "", refused, false},
	{"te: gzip", append(pseudo("GET", "/a"), "te", "gzip"), "", refused, false},
	{"less body than said", append(pseudo("POST", "/a"), "content-length", "50"), "hello", refused, false},
	{"more body than said", append(pseudo("POST", "/a"), "content-length", "2"), "hello", refused, false},
	{"two lengths", append(pseudo("POST", "/a"), "content-length", "5", "content-length", "6"), "hello", refused, false},
	{"a length of +5", append(pseudo("POST", "/a"), "content-length", "+5"), "hello", refused, false},
	{"a pseudo-field behind", append(pseudo("GET", "/a"), "x", "y", ":path", "/evil"), "", refused, false},
	{"two :path", append(pseudo("GET", "/a"), ":path", "/evil"), "", refused, false},
	{"an unknown pseudo-field", append(pseudo("GET", "/a"), ":evil", "y"), "", refused, false},
	{":status in a request", append(pseudo("GET", "/a"), ":status", "200"), "", refused, false},
	{"CONNECT", []string{":method", "CONNECT", ":authority", "h:80"}, "", refused, false},
	{"no :scheme", []string{":method", "GET", ":authority", "h", ":path", "/a"}, "", refused, false},
	{"no :method", []string{":scheme", "http", ":authority", "h", ":path", "/a"}, "", refused, false},
	{"no :authority and no Host", []string{":method", "GET", ":scheme", "http", ":path", "/a"}, "", refused, false},
	{"a client's word for its certificate", append(pseudo("GET", "/a"), "x-forwarded-client-cert", "Hash=1", "x_weft_unsent", "1"), "",
		&meant{header: map[string]string{"X-Forwarded-Client-Cert": "", "X_weft_unsent": ""}}, false},
}

func pseudo(method, path string) []string {
	return []string{":method", method, ":scheme", "http", ":authority", "h", ":path", path}
}

func TestDowngrades(t *testing.T) {
	r, address := startRecorded(t)
	for _, c := range downgrades {
		t.Run(c.name, func(t *testing.T) {
			r.taken()
			said := sendHTTP2(t, address, c.head, c.body)
			requests, odd := r.taken()
			switch {
			case len(cutOff(odd)) > 0:
				t.Errorf("the upstream got what is no request: %q", odd)
			case len(requests) == 0 && c.must:
				t.Errorf("it was not forwarded, but %s", said)
			case len(requests) == 0 && !strings.HasPrefix(said, "4") && said != "501" && !strings.Contains(said, "PROTOCOL_ERROR"):
				t.Errorf("it was refused with %s", said)
			case len(requests) > 1:
				t.Errorf("%d requests arrived: %+v", len(requests), requests)
			case len(requests) == 1 && c.want == nil:
				t.Errorf("it was forwarded (%s): %+v", said, requests[0])
			case len(requests) == 1:
				c.want.compare(t, requests[0])
			}
		})
	}
}

// sendHTTP2 sends one request and says how it was answered: by a status, or by which
// error.
func sendHTTP2(t *testing.T, address string, head []string, body string) string {
	t.Helper()
	c, err := frames.Dial(address, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Headers(1, body == "", head...); err != nil {
		t.Fatal(err)
	}
	if body != "" {
		if err := c.WriteData(1, true, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := c.Response(1)
	var away frames.GoAway
	switch {
	case errors.As(err, &away):
		return away.Code.String()
	case err != nil:
		return err.Error()
	case r.Reset != nil && r.Get(":status") == "":
		return r.Reset.String()
	}
	return r.Get(":status")
}

// TestHalfClosedClientsGetTheirAnswer: the end of what a client sends is not the end
// of what it wants.
func TestHalfClosedClientsGetTheirAnswer(t *testing.T) {
	_, address := startRecorded(t)
	c := dialTCP(t, address)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 200") || !strings.HasSuffix(string(got), "ok") {
		t.Errorf("got %q, %v", got, err)
	}
}
