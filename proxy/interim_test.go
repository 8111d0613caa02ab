package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/weftmesh/weft"
)

// Informational responses, and clients of which they must be kept.

// apps runs a test before an application of each protocol.
func apps(t *testing.T, handler http.HandlerFunc, test func(t *testing.T, m *mesh)) {
	for _, p := range []weft.Protocol{weft.HTTP, weft.HTTP2} {
		t.Run("to "+string(p), func(t *testing.T) {
			m := newMesh(t, h2server(t, handler).URL)
			m.speak(p)
			test(t, m)
			settled(t, m.proxy)
		})
	}
}

func TestContinueBetweenProtocols(t *testing.T) {
	apps(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-No") != "" {
			w.WriteHeader(417)
			return
		}
		if r.ProtoMajor == 1 && r.Header.Get("Expect") != "100-continue" { // net/http keeps it for itself in HTTP/2
			t.Errorf("expect %q", r.Header.Get("Expect"))
		}
		b, _ := io.ReadAll(r.Body) // which sends the 100
		_, _ = w.Write(b)
	}, func(t *testing.T, m *mesh) {
		const head = "POST / HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nContent-Length: 3\r\n"
		c, r := m.raw(head + "\r\n")
		if line, err := r.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("%q, %v", line, err)
		}
		skipHead(r)
		// Its body and the next request, in one piece, since the connection goes on.
		if _, err := io.WriteString(c, "abc"+head+"X-No: 1\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if resp, body := m.read(r, "POST"); resp.StatusCode != 200 || body != "abc" || resp.Close {
			t.Errorf("%d %q, close %v", resp.StatusCode, body, resp.Close)
		}
		// Nobody knows whether the client now sends its body: the connection ends.
		if resp, _ := m.read(r, "POST"); resp.StatusCode != 417 || !resp.Close {
			t.Errorf("a final answer at once: %d, close %v", resp.StatusCode, resp.Close)
		}

		f := dialFrames(t, m.addr)
		if err := f.ask(1, false, "POST", "/", "expect", "100-continue", "content-length", "3"); err != nil {
			t.Fatal(err)
		}
		frame, err := f.next()
		if h, ok := frame.(*http2.MetaHeadersFrame); err != nil || !ok || h.PseudoValue("status") != "100" || h.StreamEnded() {
			t.Fatalf("%v %v", frame, err)
		}
		if err := f.WriteData(1, true, []byte("abc")); err != nil {
			t.Fatal(err)
		}
		if r, err := f.reply(1); err != nil || r.status != "200" || r.body != "abc" {
			t.Errorf("%v %v", r, err)
		}
		if err := f.ask(3, false, "POST", "/", "expect", "100-continue", "x-no", "1"); err != nil {
			t.Fatal(err)
		}
		if r, err := f.reply(3); err != nil || r.status != "417" || !r.ended {
			t.Errorf("%v %v", r, err)
		}
	})
}

func TestEarlyHintsPass(t *testing.T) {
	apps(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(103)
		w.WriteHeader(103)
		w.Header().Set("Link", "</final>")
		_, _ = io.WriteString(w, "body")
	}, func(t *testing.T, m *mesh) {
		_, r := m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\nGET / HTTP/1.0\r\nHost: shop\r\n\r\n")
		for _, want := range []int{103, 103, 200, 200} { // none for HTTP/1.0, which would take it for the answer
			resp, body := m.read(r, "GET")
			if resp.StatusCode != want || want == 103 && resp.Header.Get("Link") != "</style.css>" ||
				want == 200 && (body != "body" || resp.Header.Get("Link") != "</final>") {
				t.Errorf("%v %q, want %d", resp, body, want)
			}
		}
		f := dialFrames(t, m.addr)
		if err := f.ask(1, true, "GET", "/"); err != nil {
			t.Fatal(err)
		}
		if r, err := f.reply(1); err != nil || len(r.interim) != 2 || r.status != "200" || r.body != "body" || !strings.Contains(r.fields["link"], "</final>") {
			t.Errorf("%v %v %v", r, r.interim, err)
		}
	})
}

// Clients of HTTP/1.0 get no chunks, and keep their connection only when they ask
// for it and the length is known.
func TestClientsOfHTTP10(t *testing.T) {
	apps(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/stream" {
			for range 3 {
				_, _ = io.WriteString(w, "piece ")
				w.(http.Flusher).Flush()
			}
			return
		}
		fmt.Fprintf(w, "got %s", b)
	}, func(t *testing.T, m *mesh) {
		_, r := m.raw("POST / HTTP/1.0\r\nHost: shop\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello" +
			"GET /stream HTTP/1.0\r\nHost: shop\r\nConnection: keep-alive\r\n\r\n")
		resp, body := m.read(r, "POST")
		if body != "got hello" || !strings.EqualFold(resp.Header.Get("Connection"), "keep-alive") {
			t.Errorf("%q %v", body, resp.Header)
		}
		resp, body = m.read(r, "GET")
		if body != "piece piece piece " || len(resp.TransferEncoding) > 0 || strings.EqualFold(resp.Header.Get("Connection"), "keep-alive") {
			t.Errorf("%q %v %v", body, resp.Header, resp.TransferEncoding)
		}
		_, r = m.raw("GET / HTTP/1.0\r\nHost: shop\r\n\r\n")
		if all, err := io.ReadAll(r); err != nil || !strings.HasSuffix(string(all), "\r\n\r\ngot ") {
			t.Errorf("%q %v", all, err)
		}
	})
}

// Requests that come one behind the other, of all kinds and with bodies, are
// answered in their order, and a client that then ends what it says gets them all.
func TestPipelinesOfBodies(t *testing.T) {
	apps(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %d", r.Method, r.URL.Path, len(b))
	}, func(t *testing.T, m *mesh) {
		big := strings.Repeat("x", 100_000)
		all := "POST /1 HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello" +
			"POST /2 HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: y\r\n\r\n" +
			"GET /3 HTTP/1.1\r\nHost: shop\r\n\r\n" +
			"PUT /4 HTTP/1.1\r\nHost: shop\r\nContent-Length: 100000\r\n\r\n" + big +
			"POST /5 HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n" + big + "\r\n0\r\n\r\n" +
			"POST /6 HTTP/1.1\r\nHost: shop\r\nContent-Length: 20000\r\n\r\n" + big[:20_000] +
			"GET /7 HTTP/1.1\r\nHost: shop\r\n\r\n"
		want := []string{"POST /1 5", "POST /2 5", "GET /3 0", "PUT /4 100000", "POST /5 100000", "POST /6 20000", "GET /7 0"}
		c, r := m.raw(all)
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if resp, body := m.read(r, "GET"); resp.StatusCode != 200 || body != w {
				t.Fatalf("%d %q, want %q", resp.StatusCode, body, w)
			}
		}
		if _, err := r.ReadByte(); err != io.EOF {
			t.Errorf("behind the last: %v", err)
		}
	})
}
