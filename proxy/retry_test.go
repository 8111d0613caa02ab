package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weftmesh/weft"
)

// What is repeated, and what is not.

// mostOf is what calls may become: 20 % more, and 3 a second for the ten seconds that
// a budget looks back; and of that what comes back while they are made.
func mostOf(calls int, took time.Duration) int {
	budget := float64(calls)/5 + 30
	return calls + int(budget*(1+took.Seconds()/10)) + 1
}

// When there is nothing left to repeat with, the answer that one would rather not
// have had is the answer.
func TestLastAnswerIsPassedOn(t *testing.T) {
	var asked atomic.Int32
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.Error(w, "no", http.StatusServiceUnavailable)
	})
	m := newMesh(t)
	m.rule.Retry = weft.Retry{Attempts: 3, On: weft.Retry5xx}
	m.endpoints(up.URL)
	const calls = 40
	began := time.Now()
	for range calls {
		if code, body := m.do("GET", "/", ""); code != 503 || body != "no\n" {
			t.Fatalf("%d %q", code, body)
		}
	}
	if n := int(asked.Load()); n < calls+10 || n > mostOf(calls, time.Since(began)) {
		t.Errorf("%d calls became %d", calls, n)
	}
	settled(t, m.proxy)
}

func TestBudgetBoundsBrokenConnections(t *testing.T) {
	for _, p := range []weft.Protocol{weft.HTTP, weft.HTTP2} {
		t.Run(string(p), func(t *testing.T) {
			var asked atomic.Int32
			m := newMesh(t, peers(t, func(c net.Conn, r *bufio.Reader) {
				if p == weft.HTTP2 {
					f, err := acceptFrames(c, r)
					for err == nil {
						var frame http2.Frame
						if frame, err = f.next(); err == nil && frame.Header().Type == http2.FrameHeaders {
							asked.Add(1)
							err = f.WriteRSTStream(frame.Header().StreamID, http2.ErrCodeInternal)
						}
					}
					return
				}
				if _, err := hear(r); err == nil {
					asked.Add(1)
				}
			}))
			m.speak(p)
			const calls = 60
			began := time.Now()
			for range calls {
				if code, body := m.do("GET", "/", ""); code != 502 {
					t.Fatalf("%d %q", code, body)
				}
			}
			if n := int(asked.Load()); n > mostOf(calls, time.Since(began)) {
				t.Errorf("%d calls became %d", calls, n)
			}
			asked.Store(0)
			if code, _ := m.do("POST", "/", "x"); code != 502 || asked.Load() != 1 {
				t.Errorf("a POST: %d, %d times", code, asked.Load())
			}
		})
	}
}

// A stream that the server says it did nothing with goes elsewhere, whatever its
// method, and counts as an attempt.
func TestRefusedStreamsGoElsewhere(t *testing.T) {
	var refused, served atomic.Int32
	full := speaks(t, func(f *framer, id uint32) error {
		refused.Add(1)
		return f.WriteRSTStream(id, http2.ErrCodeRefusedStream)
	})
	free := speaks(t, func(f *framer, id uint32) error {
		served.Add(1)
		return f.head(id, true, ":status", "200")
	})
	m := newMesh(t, full, free)
	m.speak(weft.HTTP2)
	const calls = 20
	for range calls {
		if code, body := m.do("POST", "/", "x"); code != 200 {
			t.Fatalf("%d %q", code, body)
		}
	}
	if r, s := refused.Load(), served.Load(); s != calls || r == 0 || r > calls {
		t.Errorf("%d calls, %d served, %d refused", calls, s, r)
	}
	m.endpoints(full)
	m.speak(weft.HTTP2)
	refused.Store(0)
	if code, body := m.do("POST", "/", "x"); code != 502 || refused.Load() != 3 {
		t.Errorf("nowhere else to go: %d %q after %d attempts", code, body, refused.Load())
	}
	settled(t, m.proxy)
}

// A server that goes away in good order loses nothing: streams that it did not look
// at are sent again, and those that it serves are answered.
func TestGoAwayInTheMiddle(t *testing.T) {
	const calls, each = 60, 20 // requests that a connection serves
	var served atomic.Int32
	up := peers(t, func(c net.Conn, r *bufio.Reader) {
		f, err := acceptFrames(c, r)
		for n := 0; err == nil; {
			var frame http2.Frame
			if frame, err = f.next(); err != nil {
				return
			}
			head, ok := frame.(*http2.MetaHeadersFrame)
			if !ok || n == each {
				continue
			}
			if n++; n == each {
				err = f.WriteGoAway(head.StreamID, http2.ErrCodeNo, nil)
			}
			served.Add(1)
			err = errors.Join(err, f.head(head.StreamID, true, ":status", "200"))
		}
	})
	m := newMesh(t, up)
	m.speak(weft.HTTP2)
	c := h2c(t, true)
	codes := make(chan int, calls)
	for range calls {
		go func() {
			resp, err := c.Post("http://"+m.addr+"/", "", strings.NewReader("x"))
			if err != nil {
				t.Error(err)
				codes <- 0
				return
			}
			resp.Body.Close()
			codes <- resp.StatusCode
		}()
	}
	for range calls {
		if code := <-codes; code != 200 {
			t.Errorf("%d", code)
		}
	}
	if n := served.Load(); n != calls {
		t.Errorf("%d calls were served %d times", calls, n)
	}
	settled(t, m.proxy)
}

// A kept connection that the server has closed meanwhile is nobody's failure: what
// was put on it goes to another, although the route repeats nothing.
func TestStaleConnectionsDoNotCount(t *testing.T) {
	for _, p := range []weft.Protocol{weft.HTTP, weft.HTTP2} {
		t.Run(string(p), func(t *testing.T) {
			var conns atomic.Int32
			up := peers(t, func(c net.Conn, r *bufio.Reader) {
				conns.Add(1)
				if p == weft.HTTP2 {
					f, err := acceptFrames(c, r)
					for err == nil {
						var frame http2.Frame
						if frame, err = f.next(); err == nil && frame.Header().Type == http2.FrameHeaders {
							_ = f.head(frame.Header().StreamID, true, ":status", "200")
							return
						}
					}
					return
				}
				if _, err := hear(r); err == nil {
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			})
			m := newMesh(t)
			m.rule.Retry = weft.Retry{}
			m.endpoints(up)
			m.speak(p)
			const calls = 50
			for i := range calls {
				method := []string{"GET", "PUT"}[i%2]
				if code, body := m.do(method, "/", "x"); code != 200 {
					t.Fatalf("%s: %d %q", method, code, body)
				}
			}
			if n := conns.Load(); n != calls {
				t.Errorf("%d connections for %d calls", n, calls)
			}
			settled(t, m.proxy)
		})
	}
}

// What is sent again is the whole request.
func TestRepeatedRequestsAreWhole(t *testing.T) {
	var tries atomic.Int32
	body := strings.Repeat("0123456789", 3000)
	up := h2server(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if tries.Add(1)%2 == 1 {
			w.WriteHeader(503)
			return
		}
		fmt.Fprintf(w, "%s %s %t", r.Header.Get("X-A"), r.Header.Get("X-Set"), string(b) == body)
	})
	clients(t, func(t *testing.T, _ func(*mesh, string, string) (*http.Response, string, error)) {
		for _, p := range []weft.Protocol{weft.HTTP, weft.HTTP2} {
			m := newMesh(t)
			m.rule.Retry = weft.Retry{Attempts: 1, On: weft.RetryUnavailable}
			m.rule.Request.Set = []weft.HeaderField{{Name: "X-Set", Value: "1"}}
			m.endpoints(up.URL)
			m.speak(p)
			req, _ := http.NewRequest("POST", "http://"+m.addr+"/", strings.NewReader(body))
			req.Header.Set("Idempotency-Key", "k")
			req.Header.Set("X-A", "a")
			req.Header.Set("X-Set", "0")
			resp, err := h2c(t, strings.HasSuffix(t.Name(), "2")).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 200 || string(b) != "a 1 true" {
				t.Errorf("%s: %d %q", p, resp.StatusCode, b)
			}
			settled(t, m.proxy)
		}
	})
}
