package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weftmesh/weft"
)

// What an upstream may say, and what becomes of it at the client.

// clients runs a test for a client of each protocol. ask sends a request and
// returns its answer, whole, or an error.
func clients(t *testing.T, test func(t *testing.T, ask func(m *mesh, method, path string) (*http.Response, string, error))) {
	for _, two := range []bool{false, true} {
		t.Run(fmt.Sprintf("client of HTTP/%d", 1+strings.Count(fmt.Sprint(two), "true")), func(t *testing.T) {
			c := h2c(t, two)
			c.Timeout = 15 * time.Second
			test(t, func(m *mesh, method, path string) (*http.Response, string, error) {
				var body io.Reader
				if method == "POST" {
					body = strings.NewReader("x")
				}
				req, err := http.NewRequest(method, "http://"+m.addr+path, body)
				if err != nil {
					return nil, "", err
				}
				resp, err := c.Do(req)
				if err != nil {
					return nil, "", err
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				return resp, string(b), err
			})
		})
	}
}

// says is an HTTP/1 server that answers the first request of each connection with
// these bytes, and ends it.
func says(t testing.TB, bytes string) string {
	return peers(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := hear(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, bytes)
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, r)
	})
}

func TestMalformedResponsesAre502(t *testing.T) {
	clients(t, func(t *testing.T, ask func(*mesh, string, string) (*http.Response, string, error)) {
		for name, bytes := range map[string]string{
			"nothing":                "",
			"no HTTP":                "hello there, this is no HTTP\r\n\r\n",
			"TLS":                    "\x15\x03\x01\x00\x02\x02\x46",
			"another version":        "HTTP/2.0 200 OK\r\n\r\n",
			"status of four digits":  "HTTP/1.1 2000 OK\r\n\r\n",
			"status below 100":       "HTTP/1.1 099 OK\r\n\r\n",
			"half a head":            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n",
			"bare line feeds":        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
			"bare CR":                "HTTP/1.1 200 OK\r\nA: b\rc\r\nContent-Length: 2\r\n\r\nok",
			"NUL":                    "HTTP/1.1 200 OK\r\nA: \x00\r\nContent-Length: 2\r\n\r\nok",
			"folded line":            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nok",
			"space before colon":     "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
			"length and chunks":      "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
			"two lengths":            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
			"list of lengths":        "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
			"signed length":          "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
			"length beyond integers": "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
			"another coding":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
			"chunked not last":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
			"chunks in HTTP/1.0":     "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			"unasked upgrade":        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
			"head too large":         "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", bufferSize) + "\r\n\r\n",
			"too many fields":        "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 200) + "\r\n",
			"flood of interim":       strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 1000),
			"interim, then nothing":  "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
		} {
			m := newMesh(t, says(t, bytes))
			resp, body, err := ask(m, "POST", "/")
			if err != nil || resp.StatusCode != 502 || resp.Header.Get(reasonHeader) == "" {
				t.Errorf("%s: %v %q %v", name, resp, body, err)
			}
			settled(t, m.proxy)
		}
	})
}

func TestMalformedHTTP2ResponsesAre502(t *testing.T) {
	ok := func(f *framer, id uint32) error { return f.head(id, true, ":status", "200") }
	clients(t, func(t *testing.T, ask func(*mesh, string, string) (*http.Response, string, error)) {
		for name, answer := range map[string]func(f *framer, id uint32) error{
			"no status":             func(f *framer, id uint32) error { return f.head(id, true, "a", "b") },
			"two of them":           func(f *framer, id uint32) error { return f.head(id, true, ":status", "200", ":status", "204") },
			"of a request":          func(f *framer, id uint32) error { return f.head(id, true, ":status", "200", ":path", "/") },
			"status behind a field": func(f *framer, id uint32) error { return f.head(id, true, "a", "b", ":status", "200") },
			"no number":             func(f *framer, id uint32) error { return f.head(id, true, ":status", "two") },
			"101":                   func(f *framer, id uint32) error { return f.head(id, true, ":status", "101") },
			"upper case":            func(f *framer, id uint32) error { return f.head(id, true, ":status", "200", "Upper", "case") },
			"line feed in a value":  func(f *framer, id uint32) error { return f.head(id, true, ":status", "200", "a", "b\r\nc: d") },
			"of the connection":     func(f *framer, id uint32) error { return f.head(id, true, ":status", "200", "connection", "close") },
			"transfer-encoding": func(f *framer, id uint32) error {
				return f.head(id, true, ":status", "200", "transfer-encoding", "chunked")
			},
			"length and no body": func(f *framer, id uint32) error { return f.head(id, true, ":status", "200", "content-length", "5") },
			"bad length":         func(f *framer, id uint32) error { return f.head(id, true, ":status", "200", "content-length", "five") },
			"interim that ends":  func(f *framer, id uint32) error { return f.head(id, true, ":status", "103") },
			"body before head":   func(f *framer, id uint32) error { return f.WriteData(id, true, []byte("hello")) },
			"head too large": func(f *framer, id uint32) error {
				return f.head(id, true, ":status", "200", "a", strings.Repeat("a", 15<<10), "b", strings.Repeat("b", 8<<10))
			},
			"stream that nobody has": func(f *framer, id uint32) error { return ok(f, id+20) },
			"reset":                  func(f *framer, id uint32) error { return f.WriteRSTStream(id, http2.ErrCodeInternal) },
			"goodbye": func(f *framer, id uint32) error {
				return errors.Join(f.WriteGoAway(id, http2.ErrCodeInternal, nil), io.EOF)
			},
			"end":       func(f *framer, id uint32) error { return io.EOF },
			"no HTTP/2": func(f *framer, id uint32) error { _, _ = io.WriteString(f.Conn, "HTTP/1.1 200 OK\r\n\r\n"); return nil },
			"bad compression": func(f *framer, id uint32) error {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
			},
			"flood of interim": func(f *framer, id uint32) (err error) {
				for range 1000 {
					err = errors.Join(err, f.head(id, false, ":status", "102"))
				}
				return nil
			},
		} {
			m := newMesh(t, speaks(t, answer))
			m.speak(weft.HTTP2)
			resp, body, err := ask(m, "POST", "/")
			if err != nil || resp.StatusCode != 502 || resp.Header.Get(reasonHeader) == "" {
				t.Errorf("%s: %v %q %v", name, resp, body, err)
			}
			settled(t, m.proxy)
		}
	})
}

// speaks is an HTTP/2 server that answers the head of each request.
func speaks(t testing.TB, answer func(f *framer, id uint32) error) string {
	return peers(t, func(c net.Conn, r *bufio.Reader) {
		f, err := acceptFrames(c, r)
		for err == nil {
			var frame http2.Frame
			if frame, err = f.next(); err != nil {
				return
			}
			if head, ok := frame.(*http2.MetaHeadersFrame); ok {
				err = answer(f, head.StreamID)
			}
		}
	})
}

// Where a response ends is what its head says. What comes behind it is nobody's,
// and its connection serves nobody else.
func TestBytesBehindAResponseAreNobodys(t *testing.T) {
	const stale = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale"
	clients(t, func(t *testing.T, ask func(*mesh, string, string) (*http.Response, string, error)) {
		for _, tc := range []struct{ name, method, answer, body string }{
			{"length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok"},
			{"no body", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""},
			{"chunks", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "ok"},
			{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n", ""},
			{"HEAD of chunks", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", ""},
			{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", ""},
			{"204 with a length", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 45\r\n\r\n", ""},
			{"304", "GET", "HTTP/1.1 304 Not Modified\r\n\r\n", ""},
		} {
			for _, late := range []bool{false, true} {
				sent := make(chan struct{}, 10)
				m := newMesh(t, peers(t, func(c net.Conn, r *bufio.Reader) {
					for {
						if _, err := hear(r); err != nil {
							return
						}
						if !late {
							_, _ = io.WriteString(c, tc.answer+stale)
							continue
						}
						_, _ = io.WriteString(c, tc.answer)
						<-time.After(5 * time.Millisecond)
						_, _ = io.WriteString(c, stale)
						sent <- struct{}{}
					}
				}))
				for range 3 {
					_, body, err := ask(m, tc.method, "/")
					if err != nil || body != tc.body {
						t.Errorf("%s, late %v: %q %v", tc.name, late, body, err)
					}
					if late {
						<-sent
						<-time.After(2 * time.Millisecond)
					}
				}
				settled(t, m.proxy)
			}
		}
	})
}

// The head of a response that ends a stream of HTTP/2 need not say that nothing
// follows. A client of HTTP/1 has to be told.
func TestEmptyAnswerOfHTTP2HasALength(t *testing.T) {
	m := newMesh(t, speaks(t, func(f *framer, id uint32) error { return f.head(id, true, ":status", "404") }))
	m.speak(weft.HTTP2)
	c, r := m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\nHEAD / HTTP/1.1\r\nHost: shop\r\n\r\nGET / HTTP/1.0\r\nHost: shop\r\n\r\n")
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	for _, method := range []string{"GET", "HEAD", "GET"} {
		if resp, body := m.read(r, method); resp.StatusCode != 404 || body != "" || method == "GET" && resp.ContentLength != 0 {
			t.Errorf("%s: %v %q", method, resp, body)
		}
	}
}

// A client that is still sending gets the answer, whatever becomes of the upstream.
func TestUpstreamDiesDuringUpload(t *testing.T) {
	for name, m := range map[string]*mesh{
		"HTTP/1": newMesh(t, peers(t, func(c net.Conn, r *bufio.Reader) { skipHead(r) })),
		"HTTP/2": newMesh(t, speaks(t, func(f *framer, id uint32) error { return io.EOF })),
	} {
		if name == "HTTP/2" {
			m.speak(weft.HTTP2)
		}
		t.Run(name, func(t *testing.T) {
			_, r := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
			if resp, body := m.read(r, "POST"); resp.StatusCode != 502 || !resp.Close {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
			f := dialFrames(t, m.addr)
			if err := errors.Join(f.ask(1, false, "POST", "/"), f.WriteData(1, false, []byte("hello"))); err != nil {
				t.Fatal(err)
			}
			if r, err := f.reply(1); err != nil || r.status != "502" || r.fields[reasonHeader] != "upstream_reset" {
				t.Errorf("%v %v", r, err)
			}
			settled(t, m.proxy)
		})
	}
}

// Clients that give up their uploads say nothing about the endpoint.
func TestBrokenUploadsDoNotEject(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	m := newMesh(t)
	m.svc.Policy.Outlier = &weft.Outlier{Consecutive5xx: 3, ConsecutiveGateway: 3, Interval: time.Second, BaseEjection: time.Minute,
		MaxEjection: time.Minute, MaxEjectionPercent: 100}
	m.endpoints(up.URL)
	for range 10 {
		c, r := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if resp, body := m.read(r, "POST"); resp.StatusCode != 400 {
			t.Errorf("half a body: %d %q", resp.StatusCode, body)
		}
		c, _ = m.raw("POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")
		_, _ = io.Copy(io.Discard, c)
		f := dialFrames(t, m.addr)
		if err := errors.Join(f.ask(1, false, "POST", "/"), f.WriteData(1, false, []byte("hello"))); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	gone(t, m.proxy)
	if code, body := m.do("GET", "/", ""); code != 200 {
		t.Errorf("%d %q", code, body)
	}
}

// An answer that comes before the request has ended arrives whole, and who is still
// sending is stopped.
func TestEarlyAnswerArrivesWhole(t *testing.T) {
	const text = "too large, and no thanks"
	one := peers(t, func(c net.Conn, r *bufio.Reader) {
		skipHead(r)
		fmt.Fprintf(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: %d\r\n\r\n%s\n", len(text)+1, text)
		<-t.Context().Done() // reads no more
	})
	two := h2server(t, func(w http.ResponseWriter, r *http.Request) { http.Error(w, text, http.StatusRequestEntityTooLarge) }).URL
	for app, address := range map[weft.Protocol]string{weft.HTTP: one, weft.HTTP2: two} {
		m := newMesh(t, address)
		m.speak(app)
		t.Run("HTTP/1 to "+string(app), func(t *testing.T) {
			c, r := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 50000000\r\n\r\nbegin")
			stopped := make(chan error, 1)
			go func() {
				_, err := io.Copy(c, io.LimitReader(zeros{}, 50_000_000))
				stopped <- err
			}()
			if resp, body := m.read(r, "POST"); resp.StatusCode != 413 || body != text+"\n" {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
			if err := <-stopped; err == nil {
				t.Error("the rest of the body was taken")
			}
		})
		t.Run("HTTP/2 to "+string(app), func(t *testing.T) {
			f := dialFrames(t, m.addr)
			if err := errors.Join(f.ask(1, false, "POST", "/"), f.WriteData(1, false, make([]byte, 10_000))); err != nil {
				t.Fatal(err)
			}
			r, err := f.reply(1)
			if err != nil || r.status != "413" || r.body != text+"\n" || !r.ended {
				t.Errorf("%v %v", r, err)
			}
			for { // RFC 9113 §8.1: the client is asked to send no more
				frame, err := f.next()
				if err != nil {
					t.Fatal(err)
				}
				if reset, ok := frame.(*http2.RSTStreamFrame); ok {
					if reset.ErrCode != http2.ErrCodeNo {
						t.Errorf("reset with %v", reset.ErrCode)
					}
					break
				}
			}
			if err := f.ask(3, true, "GET", "/"); err != nil {
				t.Fatal(err)
			}
			if r, err := f.reply(3); err != nil || r.status != "413" {
				t.Errorf("the connection's next request: %v %v", r, err)
			}
		})
		settled(t, m.proxy)
	}
}

// zeros are as many as one likes.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// Where the connection's end is the response's end, a response that breaks off ends
// with a reset.
func TestTruncatedForHTTP10(t *testing.T) {
	for name, bytes := range map[string]string{
		"chunks":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
		"bad chunks":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nzz\r\n",
		"whole":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\n\r\n",
		"until close": "HTTP/1.1 200 OK\r\n\r\nshort",
	} {
		m := newMesh(t, says(t, bytes))
		_, r := m.raw("GET / HTTP/1.0\r\nHost: shop\r\n\r\n")
		all, err := io.ReadAll(r)
		if whole := name == "whole" || name == "until close"; whole != (err == nil) || whole && !strings.HasSuffix(string(all), "\r\n\r\nshort") {
			t.Errorf("%s: %q, %v", name, all, err)
		}
	}
}

// What must not stand in a trailer section is left out of it, between all
// protocols.
func TestForbiddenTrailers(t *testing.T) {
	one := says(t, "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 42\r\n"+
		"Content-Length: 7\r\nTransfer-Encoding: chunked\r\nHost: x\r\nConnection: close\r\nAuthorization: x\r\n\r\n")
	two := speaks(t, func(f *framer, id uint32) error {
		return errors.Join(f.head(id, false, ":status", "200"), f.WriteData(id, false, []byte("ok")),
			f.head(id, true, "x-sum", "42", "content-length", "7", "host", "x", "authorization", "x"))
	})
	clients(t, func(t *testing.T, ask func(*mesh, string, string) (*http.Response, string, error)) {
		for address, p := range map[string]weft.Protocol{one: weft.HTTP, two: weft.HTTP2} {
			m := newMesh(t, address)
			m.speak(p)
			resp, body, err := ask(m, "GET", "/")
			if err != nil || body != "ok" || len(resp.Trailer) != 1 || resp.Trailer.Get("X-Sum") != "42" {
				t.Errorf("%s: %q %v %v", p, body, resp, err)
			}
		}
	})
}
