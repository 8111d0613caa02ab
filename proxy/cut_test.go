package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"

	"github.com/weftmesh/weft"
)

// Connections that end at every point of a conversation, in every way that a
// connection can end. Nobody waits for what cannot come, nothing stays behind, and
// half an answer never looks whole.

// leakless fails the test when goroutines that it began outlive it. It comes first.
func leakless(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if !t.Failed() {
			goleak.VerifyNone(t, before)
		}
	})
}

// ends are the ways in which a connection ends.
var ends = map[string]func(c net.Conn){
	"half-closed": func(c net.Conn) { _ = c.(*net.TCPConn).CloseWrite() },
	"closed":      func(c net.Conn) { _ = c.Close() },
	"reset": func(c net.Conn) {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	},
}

// frames are what write writes.
func frames(write func(f *framer)) []byte {
	var b bytes.Buffer
	f := &framer{nil, http2.NewFramer(&b, nil)}
	write(f)
	return b.Bytes()
}

func TestClientsEndAnywhere(t *testing.T) {
	requests := map[string][]byte{
		"HTTP/1, chunks": []byte("POST /a HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: y\r\n\r\n"),
		"HTTP/1, length": []byte("GET /first HTTP/1.1\r\nHost: shop\r\n\r\nPOST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello"),
		"HTTP/1, wait":   []byte("POST /a HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"),
		"HTTP/2": append([]byte(http2.ClientPreface), frames(func(f *framer) {
			_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 3})
			_ = f.ask(1, false, "POST", "/a")
			_ = f.WriteData(1, false, []byte("hel"))
			_ = f.WriteData(1, true, []byte("lo"))
		})...),
		"HTTP/2, trailers": append([]byte(http2.ClientPreface), frames(func(f *framer) {
			_ = f.WriteSettings()
			_ = f.ask(1, false, "POST", "/a")
			_ = f.WriteData(1, false, []byte("hello"))
			_ = f.ask(3, true, "GET", "/b")
			_ = f.head(1, true, "x-t", "y")
			_ = f.WriteRSTStream(3, http2.ErrCodeCancel)
		})...),
	}
	for name, request := range requests {
		for _, app := range []weft.Protocol{weft.HTTP, weft.HTTP2} {
			t.Run(fmt.Sprintf("%s to %s", name, app), func(t *testing.T) {
				leakless(t)
				up := h2server(t, func(w http.ResponseWriter, r *http.Request) {
					b, err := io.ReadAll(r.Body)
					if err != nil {
						panic(http.ErrAbortHandler)
					}
					fmt.Fprintf(w, "%s %s.", r.URL.Path, b)
				})
				m := newMesh(t, up.URL)
				m.speak(app)
				for way, end := range ends {
					for cut := 0; cut <= len(request); cut += 1 + (len(request)-cut)/40 {
						c, r := m.raw(string(request[:cut]))
						end(c)
						if way != "half-closed" {
							continue
						}
						got, err := io.ReadAll(r)
						if err != nil && !strings.Contains(err.Error(), "reset") {
							t.Fatalf("cut at %d: %v", cut, err)
						}
						if cut == len(request) && strings.HasPrefix(name, "HTTP/1") && !strings.HasSuffix(string(got), "/a hello.") {
							t.Errorf("half-closed behind its request, a client gets %q", got)
						}
					}
					gone(t, m.proxy)
				}
			})
		}
	}
}

func TestUpstreamsEndAnywhere(t *testing.T) {
	responses := map[string]struct {
		bytes []byte
		two   bool
	}{
		"HTTP/1, length": {[]byte("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), false},
		"HTTP/1, chunks": {[]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nX-T: y\r\n\r\n"), false},
		"HTTP/2": {frames(func(f *framer) {
			_ = f.WriteSettings()
			_ = f.WriteSettingsAck()
			_ = f.head(1, false, ":status", "103", "link", "</a>")
			_ = f.head(1, false, ":status", "200")
			_ = f.WriteData(1, false, []byte("hel"))
			_ = f.WriteData(1, true, []byte("lo"))
		}), true},
		"HTTP/2, trailers": {frames(func(f *framer) {
			_ = f.WriteSettings()
			_ = f.head(1, false, ":status", "200", "content-length", "5")
			_ = f.WriteData(1, false, []byte("hello"))
			_ = f.head(1, true, "x-t", "y")
		}), true},
	}
	leakless(t)
	t.Run("", func(t *testing.T) {
		for name, response := range responses {
			for way, end := range ends {
				for _, two := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, %s, client of HTTP/2 %v", name, way, two), func(t *testing.T) {
						t.Parallel()
						cutUpstream(t, response.bytes, response.two, two, end, way == "reset")
					})
				}
			}
		}
	})
}

// cutUpstream asks an upstream again and again that says a little more of the
// response each time, and ends the connection.
func cutUpstream(t *testing.T, response []byte, upstreamTwo, clientTwo bool, end func(net.Conn), reset bool) {
	var cutAt atomic.Int32
	m := newMesh(t, peers(t, func(c net.Conn, r *bufio.Reader) {
		if upstreamTwo {
			f, err := acceptFrames(&muted{Conn: c}, r)
			for err == nil {
				var frame http2.Frame
				if frame, err = f.ReadFrame(); err == nil && frame.Header().Type == http2.FrameHeaders {
					break
				}
			}
		} else if _, err := hear(r); err != nil {
			return
		}
		cut := cutAt.Load()
		_, _ = c.Write(response[:cut])
		if cut%16 != 0 { // else the end comes together with the bytes before it
			<-time.After(time.Millisecond)
		}
		end(c)
		_, _ = io.Copy(io.Discard, r)
	}))
	m.speak(weft.HTTP)
	if upstreamTwo {
		m.speak(weft.HTTP2)
	}
	c := h2c(t, clientTwo)
	c.Timeout = 15 * time.Second
	for cut := 0; cut <= len(response); cut += 1 + (len(response)-cut)/40 {
		cutAt.Store(int32(cut))
		m.unconnected()
		resp, err := c.Post("http://"+m.addr+"/", "", strings.NewReader("x"))
		if err != nil {
			if strings.Contains(err.Error(), "Timeout") {
				t.Fatalf("at %d: %v", cut, err)
			}
			continue // it was clear
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		switch {
		case resp.StatusCode == 200 && err == nil && string(body) != "hello":
			t.Errorf("at %d: %q looks whole", cut, body)
		case resp.StatusCode != 200 && (resp.StatusCode != 502 || resp.Header.Get(reasonHeader) == ""):
			t.Errorf("at %d: %v %q", cut, resp, body)
		case cut == len(response) && !reset && (resp.StatusCode != 200 || string(body) != "hello"):
			t.Errorf("behind it: %v %q %v", resp, body, err)
		}
	}
	settled(t, m.proxy)
}

// unconnected waits until no connection is left that could take a request.
func (m *mesh) unconnected() {
	m.t.Helper()
	until(m.t, "", func() string {
		for _, e := range m.proxy.view.Load().clusters[shop].set.Load().all.endpoints {
			e.muxes.mu.Lock()
			defer e.muxes.mu.Unlock()
			for _, c := range e.muxes.conns {
				if c.Alive() {
					return "a connection is alive"
				}
			}
		}
		return ""
	})
}

// muted is a connection to which a framer writes nothing.
type muted struct{ net.Conn }

func (m *muted) Write(b []byte) (int, error) { return len(b), nil }
