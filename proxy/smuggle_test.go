package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
)

// An HTTP/2 client need not say how long its body is. What it sends in one piece
// must not become chunks that it wrote itself.
func TestBodyOfUnknownLengthIsFramed(t *testing.T) {
	back := record(t)
	m := newMesh(t, back.address)
	m.speak(weft.HTTP)
	for _, body := range []string{"", "x", "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n"} {
		f := dialFrames(t, m.addr)
		if err := f.ask(1, false, "POST", "/"); err != nil {
			t.Fatal(err)
		}
		if err := f.WriteData(1, true, []byte(body)); err != nil {
			t.Fatal(err)
		}
		if r, err := f.reply(1); err != nil || r.status != "200" {
			t.Errorf("%v %v", r, err)
		}
		if got := back.take(); len(got) != 1 || got[0].body != body {
			t.Errorf("%q: the application heard %q, cut: %q", body, got, back.cut())
		}
	}
	settled(t, m.proxy)
}

// What raw bytes become of which a proxy in front or an attacker may hope that two
// servers read them differently: exactly the request that was meant, or an error
// and the connection's end.
func TestWhatSmugglersSend(t *testing.T) {
	const host = "Host: shop\r\n"
	const next = "GET /next HTTP/1.1\r\nHost: shop\r\n\r\n"
	for name, tc := range map[string]struct {
		bytes string
		meant string // "METHOD target host body" of the one request that is forwarded; "" is none
		not   string // what must not be in its head
	}{
		"length and chunks":              {"POST / HTTP/1.1\r\n" + host + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG", "", ""},
		"chunks and length":              {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nG", "", ""},
		"chunked, with a tab":            {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\tchunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", "POST / shop x", ""},
		"chunked, in capitals":           {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: CHUNKED\r\n\r\n1\r\nx\r\n0\r\n\r\n", "POST / shop x", ""},
		"xchunked":                       {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "", ""},
		"chunked, quoted":                {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", "", ""},
		"chunked, with a vertical tab":   {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", "", ""},
		"chunked twice":                  {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "", ""},
		"chunked on two lines":           {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", "", ""},
		"chunked and then gzip":          {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", "", ""},
		"gzip and then chunked":          {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "", ""},
		"identity":                       {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: identity\r\nContent-Length: 1\r\n\r\nx", "", ""},
		"chunks in HTTP/1.0":             {"POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", ""},
		"space before the colon":         {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "", ""},
		"length before the colon":        {"POST / HTTP/1.1\r\n" + host + "Content-Length : 5\r\n\r\nhello", "", ""},
		"two lengths":                    {"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 0\r\n\r\nhello", "", ""},
		"two equal lengths":              {"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "", ""},
		"list of lengths":                {"POST / HTTP/1.1\r\n" + host + "Content-Length: 5, 5\r\n\r\nhello", "", ""},
		"signed length":                  {"POST / HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\nhello", "", ""},
		"negative length":                {"POST / HTTP/1.1\r\n" + host + "Content-Length: -5\r\n\r\nhello", "", ""},
		"hexadecimal length":             {"POST / HTTP/1.1\r\n" + host + "Content-Length: 0x5\r\n\r\nhello", "", ""},
		"length that overflows":          {"POST / HTTP/1.1\r\n" + host + "Content-Length: 18446744073709551621\r\n\r\nhello", "", ""},
		"empty length":                   {"POST / HTTP/1.1\r\n" + host + "Content-Length: \r\n\r\nhello", "", ""},
		"leading zeros":                  {"POST / HTTP/1.1\r\n" + host + "Content-Length: 0005\r\n\r\nhello", "POST / shop hello", ""},
		"folded line":                    {"POST / HTTP/1.1\r\n" + host + "X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", ""},
		"fold behind the start line":     {"GET / HTTP/1.1\r\n X: y\r\n" + host + "\r\n", "", ""},
		"bare LF":                        {"GET / HTTP/1.1\nHost: shop\n\n", "", ""},
		"one bare LF":                    {"GET / HTTP/1.1\r\n" + host + "X: y\nTransfer-Encoding: chunked\r\n\r\n", "", ""},
		"bare CR":                        {"GET / HTTP/1.1\r\n" + host + "X: y\rTransfer-Encoding: chunked\r\n\r\n", "", ""},
		"CR CR LF":                       {"GET / HTTP/1.1\r\n" + host + "X: y\r\r\n\r\n", "", ""},
		"NUL in a value":                 {"GET / HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n", "", ""},
		"NUL in a name":                  {"GET / HTTP/1.1\r\n" + host + "X\x00: b\r\n\r\n", "", ""},
		"control byte in a value":        {"GET / HTTP/1.1\r\n" + host + "X: a\x01b\r\n\r\n", "", ""},
		"no name":                        {"GET / HTTP/1.1\r\n" + host + ": b\r\n\r\n", "", ""},
		"no colon":                       {"GET / HTTP/1.1\r\n" + host + "X\r\n\r\n", "", ""},
		"two hosts":                      {"GET / HTTP/1.1\r\n" + host + "Host: evil\r\n\r\n", "", ""},
		"no host":                        {"GET / HTTP/1.1\r\nX: y\r\n\r\n", "", ""},
		"empty host":                     {"GET / HTTP/1.1\r\nHost:\r\n\r\n", "", ""},
		"host with a path":               {"GET / HTTP/1.1\r\nHost: shop/x\r\n\r\n", "", ""},
		"host with userinfo":             {"GET / HTTP/1.1\r\nHost: a@shop\r\n\r\n", "", ""},
		"list of hosts":                  {"GET / HTTP/1.1\r\nHost: shop, evil\r\n\r\n", "", ""},
		"absolute form wins":             {"GET http://shop.example/a HTTP/1.1\r\nHost: evil\r\n\r\n", "GET /a shop.example ", "evil"},
		"absolute form, no path":         {"GET http://shop.example HTTP/1.1\r\nHost: evil\r\n\r\n", "GET / shop.example ", "evil"},
		"absolute form with userinfo":    {"GET http://a@shop/ HTTP/1.1\r\nHost: shop\r\n\r\n", "", ""},
		"another scheme":                 {"GET gopher://shop/ HTTP/1.1\r\nHost: shop\r\n\r\n", "", ""},
		"fragment":                       {"GET /a#b HTTP/1.1\r\n" + host + "\r\n", "", ""},
		"space in the target":            {"GET /a b HTTP/1.1\r\n" + host + "\r\n", "", ""},
		"tab in the target":              {"GET /a\tb HTTP/1.1\r\n" + host + "\r\n", "", ""},
		"two spaces":                     {"GET  / HTTP/1.1\r\n" + host + "\r\n", "", ""},
		"HTTP/0.9":                       {"GET /\r\n" + host + "\r\n", "", ""},
		"HTTP/1.2":                       {"GET / HTTP/1.2\r\n" + host + "\r\n", "", ""},
		"HTTP/2.0":                       {"GET / HTTP/2.0\r\n" + host + "\r\n", "", ""},
		"backslash in the path":          {"GET /a\\..\\b HTTP/1.1\r\n" + host + "\r\n", "GET /b shop ", ""},
		"dots above the root":            {"GET /../../b HTTP/1.1\r\n" + host + "\r\n", "", ""},
		"dots, encoded":                  {"GET /a/%2e%2E/b HTTP/1.1\r\n" + host + "\r\n", "GET /b shop ", ""},
		"line feed, encoded":             {"GET /a%0d%0aX:%20y HTTP/1.1\r\n" + host + "\r\n", "", ""},
		"NUL, encoded":                   {"GET /a%00 HTTP/1.1\r\n" + host + "\r\n", "", ""},
		"asterisk of GET":                {"GET * HTTP/1.1\r\n" + host + "\r\n", "", ""},
		"asterisk of OPTIONS":            {"OPTIONS * HTTP/1.1\r\n" + host + "\r\n", "OPTIONS * shop ", ""},
		"method of symbols":              {"GE(T / HTTP/1.1\r\n" + host + "\r\n", "", ""},
		"QUERY":                          {"QUERY /q HTTP/1.1\r\n" + host + "Content-Length: 2\r\n\r\nab", "QUERY /q shop ab", ""},
		"connection lists the length":    {"POST / HTTP/1.1\r\n" + host + "Connection: Content-Length\r\nContent-Length: 5\r\n\r\nhello", "POST / shop hello", "Connection"},
		"connection lists the host":      {"GET / HTTP/1.1\r\n" + host + "Connection: Host\r\n\r\n", "GET / shop ", "Connection"},
		"connection lists authorization": {"GET / HTTP/1.1\r\n" + host + "Authorization: x\r\nConnection: Authorization\r\n\r\n", "GET / shop ", "Connection"},
		"connection lists another":       {"GET / HTTP/1.1\r\n" + host + "X-Hop: x\r\nConnection: x-hop\r\n\r\n", "GET / shop ", "X-Hop"},
		"trailers in the head":           {"GET / HTTP/1.1\r\n" + host + "TE: trailers, gzip\r\n\r\n", "GET / shop ", "gzip"},
		"chunk extension":                {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\n\r\n", "POST / shop x", ""},
		"chunk extension, line feed":     {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\nx\r\n0\r\n\r\n", "", ""},
		"chunk size, 0x":                 {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n", "", ""},
		"chunk size, signed":             {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n", "", ""},
		"chunk size, underscore":         {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1_0\r\n0123456789abcdef\r\n0\r\n\r\n", "", ""},
		"chunk size, space":              {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1 \r\nx\r\n0\r\n\r\n", "", ""},
		"chunk size that overflows":      {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n10000000000000001\r\nx\r\n0\r\n\r\n", "", ""},
		"chunk longer than its size":     {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n", "", ""},
		"chunk ends by LF":               {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\n0\r\n\r\n", "", ""},
		"forbidden trailer":              {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nContent-Length: 5\r\nX-T: y\r\n\r\n", "POST / shop x", "Content-Length"},
		"GET with a body":                {"GET / HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhello", "GET / shop hello", ""},
		"upgrade to h2c":                 {"GET / HTTP/1.1\r\n" + host + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", "GET / shop ", "h2c"},
		"empty lines first":              {"\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", "GET / shop ", ""},
		"underscore twin":                {"POST / HTTP/1.1\r\n" + host + "Content_Length: 3\r\nContent-Length: 5\r\n\r\nhello", "POST / shop hello", ""},
	} {
		t.Run(name, func(t *testing.T) {
			back := record(t)
			m := newMesh(t, back.address)
			m.speak(weft.HTTP)
			c, r := m.raw(tc.bytes + next)
			_ = c.(*net.TCPConn).CloseWrite() // nothing else comes, whatever the proxy still waits for
			codes, err := answers(r)
			if err != nil {
				t.Errorf("answered %v, then %v", codes, err)
			}
			gone(t, m.proxy)
			got := back.take()
			if tc.meant == "" {
				// The bytes behind it are no request any more.
				if len(got) != 0 || len(codes) != 1 || codes[0] < 400 || codes[0] == 502 || codes[0] == 503 {
					t.Errorf("answered %v, forwarded %q", codes, got)
				}
				return
			}
			if len(got) != 2 || len(codes) != 2 || meant(got[0]) != tc.meant || meant(got[1]) != "GET /next shop " {
				t.Fatalf("answered %v, forwarded %q, cut %q; want %q and then the next", codes, got, back.cut(), tc.meant)
			}
			if tc.not != "" && strings.Contains(got[0].head, tc.not) {
				t.Errorf("%q is in %q", tc.not, got[0].head)
			}
		})
	}
}

// meant is what a request says, whatever fields have been added.
func meant(h heard) string {
	method, target, _ := strings.Cut(strings.Split(h.head, "\n")[0], " ")
	return method + " " + strings.TrimSuffix(target, " HTTP/1.1") + " " + h.field("Host") + " " + h.body
}

// answers reads the status of each response until the connection ends.
func answers(r *bufio.Reader) (codes []int, err error) {
	for {
		if _, err := r.Peek(1); err == io.EOF {
			return codes, nil
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return codes, err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return codes, err
		}
		codes = append(codes, resp.StatusCode)
	}
}

// The same of clients that speak HTTP/2, where names and values have lengths and
// may contain what ends a line elsewhere.
func TestWhatSmugglersSendByHTTP2(t *testing.T) {
	get := func(more ...string) []string {
		return append([]string{":method", "GET", ":scheme", "http", ":authority", "shop", ":path", "/"}, more...)
	}
	post := func(more ...string) []string {
		return append([]string{":method", "POST", ":scheme", "http", ":authority", "shop", ":path", "/"}, more...)
	}
	for name, tc := range map[string]struct {
		head     []string
		body     string
		trailers []string
		meant    string // as above; "" is a stream error or a 4xx
		not      string // what must not be in its head
	}{
		"plain":                     {head: get(), meant: "GET / shop "},
		"line feed in a value":      {head: get("a", "b\r\nTransfer-Encoding: chunked")},
		"LF in a value":             {head: get("a", "b\nx: y")},
		"CR in a value":             {head: get("a", "b\rx: y")},
		"NUL in a value":            {head: get("a", "b\x00")},
		"space at the end":          {head: get("a", "b ")},
		"line feed in a name":       {head: get("a\r\nb", "c")},
		"colon in a name":           {head: get("transfer-encoding: chunked\r\nx", "y")},
		"colon in a short name":     {head: get("a:b", "c")},
		"space in a name":           {head: get("content-length ", "5")},
		"upper case":                {head: get("Transfer-Encoding", "chunked")},
		"no name":                   {head: get("", "x")},
		"space in :path":            {head: []string{":method", "GET", ":scheme", "http", ":authority", "shop", ":path", "/ HTTP/1.1\r\nHost: shop\r\n\r\nGET /b"}},
		"one space in :path":        {head: []string{":method", "GET", ":scheme", "http", ":authority", "shop", ":path", "/a b"}},
		"empty :path":               {head: []string{":method", "GET", ":scheme", "http", ":authority", "shop", ":path", ""}},
		":path without slash":       {head: []string{":method", "GET", ":scheme", "http", ":authority", "shop", ":path", "a"}},
		":path with a fragment":     {head: []string{":method", "GET", ":scheme", "http", ":authority", "shop", ":path", "/a#b"}},
		"absolute :path":            {head: []string{":method", "GET", ":scheme", "http", ":authority", "shop", ":path", "http://evil/"}},
		"space in :method":          {head: []string{":method", "GET /b HTTP/1.1\r\nX:", ":scheme", "http", ":authority", "shop", ":path", "/"}},
		"line feed in :authority":   {head: []string{":method", "GET", ":scheme", "http", ":authority", "shop\r\nx: y", ":path", "/"}},
		"userinfo in :authority":    {head: []string{":method", "GET", ":scheme", "http", ":authority", "a@shop", ":path", "/"}},
		"path in :authority":        {head: []string{":method", "GET", ":scheme", "http", ":authority", "shop/x", ":path", "/"}},
		"line feed in :scheme":      {head: []string{":method", "GET", ":scheme", "http://x\r\n", ":authority", "shop", ":path", "/"}},
		"two :method":               {head: get(":method", "POST")},
		"two :path":                 {head: []string{":method", "GET", ":path", "/a", ":scheme", "http", ":authority", "shop", ":path", "/"}},
		"two :authority":            {head: []string{":method", "GET", ":authority", "evil", ":scheme", "http", ":authority", "shop", ":path", "/"}},
		"pseudo behind a field":     {head: []string{":method", "GET", ":scheme", "http", "a", "b", ":authority", "shop", ":path", "/"}},
		"unknown pseudo":            {head: []string{":method", "GET", ":scheme", "http", ":authority", "shop", ":path", "/", ":x", "y"}},
		":status":                   {head: []string{":method", "GET", ":scheme", "http", ":authority", "shop", ":path", "/", ":status", "200"}},
		"no :method":                {head: []string{":scheme", "http", ":authority", "shop", ":path", "/"}},
		"no :scheme":                {head: []string{":method", "GET", ":authority", "shop", ":path", "/"}},
		"no host at all":            {head: []string{":method", "GET", ":scheme", "http", ":path", "/"}},
		"host instead":              {head: []string{":method", "GET", ":scheme", "http", ":path", "/", "host", "shop"}, meant: "GET / shop "},
		"the same host":             {head: get("host", "shop"), meant: "GET / shop "},
		"another host":              {head: get("host", "evil")},
		"two hosts":                 {head: []string{":method", "GET", ":scheme", "http", ":path", "/", "host", "shop", "host", "shop"}},
		"connection":                {head: get("connection", "close")},
		"connection lists":          {head: get("connection", "x-hop", "x-hop", "y")},
		"keep-alive":                {head: get("keep-alive", "timeout=5")},
		"proxy-connection":          {head: get("proxy-connection", "close")},
		"upgrade":                   {head: get("upgrade", "h2c")},
		"transfer-encoding":         {head: post("transfer-encoding", "chunked"), body: "0\r\n\r\n"},
		"te: trailers":              {head: get("te", "trailers"), meant: "GET / shop "},
		"te: gzip":                  {head: get("te", "gzip")},
		"length as it is":           {head: post("content-length", "5"), body: "hello", meant: "POST / shop hello"},
		"length too short":          {head: post("content-length", "4"), body: "hello"},
		"length too long":           {head: post("content-length", "6"), body: "hello"},
		"length without a body":     {head: post("content-length", "5")},
		"two lengths":               {head: post("content-length", "5", "content-length", "5"), body: "hello"},
		"list of lengths":           {head: post("content-length", "5,5"), body: "hello"},
		"signed length":             {head: post("content-length", "+5"), body: "hello"},
		"line feed in the length":   {head: post("content-length", "5\r\n"), body: "hello"},
		"body that looks like more": {head: post(), body: "0\r\n\r\nGET /b HTTP/1.1\r\nHost: shop\r\n\r\n", meant: "POST / shop 0\r\n\r\nGET /b HTTP/1.1\r\nHost: shop\r\n\r\n"},
		"trailers":                  {head: post("trailer", "x-t"), body: "hello", trailers: []string{"x-t", "y"}, meant: "POST / shop hello"},
		"forbidden trailers":        {head: post(), body: "hello", trailers: []string{"content-length", "9", "host", "evil", "x-t", "y"}, meant: "POST / shop hello", not: "evil"},
		"line feed in a trailer":    {head: post(), body: "hello", trailers: []string{"x-t", "y\r\nz: a"}},
		"pseudo in a trailer":       {head: post(), body: "hello", trailers: []string{":path", "/b"}},
		"cookie crumbs":             {head: get("cookie", "a=b", "x", "y", "cookie", "c=d"), meant: "GET / shop "},
		"line feed in a crumb":      {head: get("cookie", "a=b", "cookie", "c=d\r\nx: y")},
		"CONNECT":                   {head: []string{":method", "CONNECT", ":authority", "shop:80"}},
		"unknown protocol":          {head: []string{":method", "CONNECT", ":protocol", "h2c", ":scheme", "http", ":authority", "shop", ":path", "/"}},
		"protocol of a GET":         {head: []string{":method", "GET", ":protocol", "websocket", ":scheme", "http", ":authority", "shop", ":path", "/"}},
	} {
		t.Run(name, func(t *testing.T) {
			back := record(t)
			m := newMesh(t, back.address)
			m.speak(weft.HTTP)
			f := dialFrames(t, m.addr)
			ends := tc.body == "" && tc.trailers == nil
			if err := f.head(1, ends, tc.head...); err != nil {
				t.Fatal(err)
			}
			if tc.body != "" {
				half := len(tc.body) / 2
				_ = f.WriteData(1, false, []byte(tc.body[:half]))
				_ = f.WriteData(1, tc.trailers == nil, []byte(tc.body[half:]))
			}
			if tc.trailers != nil {
				_ = f.head(1, true, tc.trailers...)
			}
			r, err := f.reply(1)
			got := back.take()
			if tc.meant == "" {
				if len(got) != 0 || err != nil || r.reset == nil && (r.status < "400" || r.status > "501") {
					t.Errorf("%v %v; forwarded %q", r, err, got)
				}
			} else {
				if err != nil || r.status != "200" || len(got) != 1 || meant(got[0]) != tc.meant {
					t.Fatalf("%v %v; forwarded %q, cut %q; want %q", r, err, got, back.cut(), tc.meant)
				}
				if tc.not != "" && strings.Contains(got[0].head, tc.not) {
					t.Errorf("%q is in %q", tc.not, got[0].head)
				}
				if name == "cookie crumbs" && got[0].field("Cookie") != "a=b; c=d" {
					t.Errorf("cookie %q", got[0].field("Cookie"))
				}
				if name == "trailers" && !strings.Contains(got[0].head, "\ntrailer x-t: y") {
					t.Errorf("no trailer in %q", got[0])
				}
			}
			// The connection goes on, and so do both books.
			if err := f.ask(3, true, "GET", "/next"); err != nil {
				t.Fatal(err)
			}
			if r, err := f.reply(3); err != nil || r.status != "200" {
				t.Fatalf("the next request: %v %v", r, err)
			}
			if got := back.take(); len(got) != 1 || meant(got[0]) != "GET /next shop " {
				t.Errorf("the next request: %q", got)
			}
			settled(t, m.proxy)
		})
	}
}
