package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

// h2c is an http.Client that speaks HTTP/2 with prior knowledge, or HTTP/1 only.
func h2c(t *testing.T, http2 bool) *http.Client {
	var p http.Protocols
	p.SetHTTP1(!http2)
	p.SetUnencryptedHTTP2(http2)
	tr := &http.Transport{Protocols: &p, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// h2server is a server that speaks both.
func h2server(t *testing.T, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// speak makes the shop's port declare what it speaks.
func (m *mesh) speak(p weft.Protocol) {
	for i := range m.svc.Endpoints {
		m.svc.Endpoints[i].Protocol = p
	}
	m.publish()
}

// lanes runs a test for every combination of protocols on the two sides.
func lanes(t *testing.T, handler http.HandlerFunc, test func(t *testing.T, m *mesh, c *http.Client)) {
	for _, lane := range []struct {
		name   string
		client bool
		app    weft.Protocol
	}{
		{"1 to 1", false, weft.HTTP}, {"1 to 2", false, weft.HTTP2},
		{"2 to 1", true, weft.HTTP}, {"2 to 2", true, weft.HTTP2},
	} {
		t.Run(lane.name, func(t *testing.T) {
			up := h2server(t, func(w http.ResponseWriter, r *http.Request) {
				if want := 1 + strings.Count(string(lane.app), "2"); r.ProtoMajor != want {
					t.Errorf("the application was asked by HTTP/%d, want %d", r.ProtoMajor, want)
				}
				handler(w, r)
			})
			m := newMesh(t, up.URL)
			m.speak(lane.app)
			test(t, m, h2c(t, lane.client))
		})
	}
}

func TestRequestsPassBetweenProtocols(t *testing.T) {
	lanes(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "shop.example" || r.Header.Get("X-Two") != "a, b" && len(r.Header.Values("X-Two")) != 2 {
			t.Errorf("host %q, header %v", r.Host, r.Header)
		}
		b, _ := io.ReadAll(r.Body)
		w.Header().Add("X-Answer", "1")
		w.Header().Add("X-Answer", "2")
		w.WriteHeader(201)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.RequestURI(), b)
	}, func(t *testing.T, m *mesh, c *http.Client) {
		for _, tc := range []struct{ method, path, body, want string }{
			{"GET", "/a/b?x=1&y=%20", "", "GET /a/b?x=1&y=%20 "},
			{"POST", "/", "hello", "POST / hello"},
			{"PUT", "/big", strings.Repeat("x", 300_000), "PUT /big " + strings.Repeat("x", 300_000)},
			{"DELETE", "/a?", "", "DELETE /a? "},
		} {
			req, _ := http.NewRequest(tc.method, "http://"+m.addr+tc.path, strings.NewReader(tc.body))
			req.Host = "shop.example"
			req.Header.Add("X-Two", "a")
			req.Header.Add("X-Two", "b")
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 201 || string(b) != tc.want || len(resp.Header.Values("X-Answer")) != 2 {
				t.Errorf("%s %s: %d, %d bytes, %v, %v", tc.method, tc.path, resp.StatusCode, len(b), resp.Header, err)
			}
		}
	})
}

func TestBodilessResponsesBetweenProtocols(t *testing.T) {
	lanes(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.WriteHeader(304)
		default:
			w.Header().Set("Content-Length", "7")
			io.WriteString(w, "content")
		}
	}, func(t *testing.T, m *mesh, c *http.Client) {
		for _, tc := range []struct {
			method, path string
			status       int
			length       int64
			body         string
		}{{"HEAD", "/", 200, 7, ""}, {"GET", "/204", 204, 0, ""}, {"GET", "/304", 304, 0, ""}, {"GET", "/", 200, 7, "content"}} {
			req, _ := http.NewRequest(tc.method, "http://"+m.addr+tc.path, nil)
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != tc.status || string(b) != tc.body || tc.length > 0 && resp.ContentLength != tc.length {
				t.Errorf("%s %s: %d %q length %d, %v", tc.method, tc.path, resp.StatusCode, b, resp.ContentLength, err)
			}
		}
	})
}

func TestTrailersPassBetweenProtocols(t *testing.T) {
	lanes(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Sum")
		io.WriteString(w, "body")
		w.(http.Flusher).Flush()
		w.Header().Set("X-Sum", "42/"+r.Trailer.Get("X-Asked"))
	}, func(t *testing.T, m *mesh, c *http.Client) {
		req, _ := http.NewRequest("POST", "http://"+m.addr+"/", io.MultiReader(strings.NewReader("some "), strings.NewReader("bytes")))
		req.Trailer = http.Header{"X-Asked": {"why"}}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(b) != "body" || resp.Trailer.Get("X-Sum") != "42/why" {
			t.Errorf("%q, trailer %v, %v", b, resp.Trailer, err)
		}
	})
}

func TestManyStreamsAtOnce(t *testing.T) {
	lanes(t, func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, _ := io.Copy(h, r.Body)
		fmt.Fprintf(w, "%d %x", n, h.Sum(nil))
	}, func(t *testing.T, m *mesh, c *http.Client) {
		var wait sync.WaitGroup
		for i := range 60 {
			wait.Go(func() {
				body := make([]byte, rand.Intn(200_000))
				_, _ = rand.New(rand.NewSource(int64(i))).Read(body)
				resp, err := c.Post("http://"+m.addr+"/", "", bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if want := fmt.Sprintf("%d %x", len(body), sha256.Sum256(body)); err != nil || string(b) != want {
					t.Errorf("got %q, %v, want %q", b, err, want)
				}
			})
		}
		wait.Wait()
	})
}

// A stream is full duplex: what one side says arrives before the other has said
// all that it has to say.
func TestStreamsAreFullDuplex(t *testing.T) {
	up := h2server(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		var b [100]byte
		for {
			n, err := r.Body.Read(b[:])
			if n > 0 {
				_, _ = w.Write(bytes.ToUpper(b[:n]))
				w.(http.Flusher).Flush()
			}
			if err != nil {
				return
			}
		}
	})
	m := newMesh(t, up.URL)
	m.speak(weft.HTTP2)
	r, w := io.Pipe()
	resp, err := h2c(t, true).Post("http://"+m.addr+"/", "", r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, word := range []string{"one", "two", "three"} {
		if _, err := io.WriteString(w, word); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(word))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != strings.ToUpper(word) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	w.Close()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("rest %q, %v", rest, err)
	}
}

// A client that gives up frees the application at once, in every lane where the
// protocol can say so.
func TestCancelledStreamCancelsUpstream(t *testing.T) {
	for _, app := range []weft.Protocol{weft.HTTP, weft.HTTP2} {
		t.Run(string(app), func(t *testing.T) {
			began, gone := make(chan struct{}), make(chan struct{})
			up := h2server(t, func(w http.ResponseWriter, r *http.Request) {
				close(began)
				select {
				case <-r.Context().Done():
					close(gone)
				case <-time.After(10 * time.Second):
				}
			})
			m := newMesh(t, up.URL)
			m.speak(app)
			ctx, cancel := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+m.addr+"/", nil)
			failed := make(chan error, 1)
			go func() {
				_, err := h2c(t, true).Do(req)
				failed <- err
			}()
			<-began
			cancel()
			select {
			case <-gone:
			case <-time.After(5 * time.Second):
				t.Error("the application was not told")
			}
			<-failed
		})
	}
}

func TestUpstreamDiesInTheMiddleOfAStream(t *testing.T) {
	up := h2server(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "beginning")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	for _, app := range []weft.Protocol{weft.HTTP, weft.HTTP2} {
		m := newMesh(t, up.URL)
		m.speak(app)
		resp, err := h2c(t, true).Get("http://" + m.addr + "/")
		if err != nil {
			continue // not even the head came: as clear as it can be
		}
		if b, err := io.ReadAll(resp.Body); err == nil && resp.StatusCode == 200 {
			t.Errorf("%s: %q looked whole", app, b)
		}
		resp.Body.Close()
	}
}

func TestDrainLetsStreamsFinish(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	up := h2server(t, func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-release
		io.WriteString(w, "done")
	})
	m := newMesh(t, up.URL)
	m.speak(weft.HTTP2)
	got := make(chan string, 1)
	go func() {
		resp, err := h2c(t, true).Get("http://" + m.addr + "/")
		if err != nil {
			got <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		got <- string(b)
	}()
	<-began
	drained := make(chan error, 1)
	go func() { drained <- m.proxy.Drain(t.Context()) }()
	for { // the door closes at once
		c, err := net.Dial("tcp", m.addr)
		if err != nil {
			break
		}
		c.Close()
	}
	close(release)
	if s := <-got; s != "done" {
		t.Errorf("got %q", s)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// Requests of one client connection are spread: an exchange is balanced, not a
// connection.
func TestStreamsAreBalancedOneByOne(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	var urls []string
	for i := range 3 {
		up := h2server(t, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			seen[fmt.Sprint(i)]++
			mu.Unlock()
		})
		urls = append(urls, up.URL)
	}
	m := newMesh(t, urls...)
	m.speak(weft.HTTP2)
	c := h2c(t, true)
	for range 60 {
		resp, err := c.Get("http://" + m.addr + "/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	for i := range 3 {
		if n := seen[fmt.Sprint(i)]; n < 5 {
			t.Errorf("server %d got %d of 60: %v", i, n, seen)
		}
	}
}
