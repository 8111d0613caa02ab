package proxy

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
)

// Who does not read slows down who sends to him, and nobody else; what is under way
// in between is bounded.

// source64 serves as many bytes as the path says, and counts those that it got rid of.
func source64(count *atomic.Int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		left, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		piece := make([]byte, 64<<10)
		for left > 0 {
			n, err := w.Write(piece[:min(left, len(piece))])
			count.Add(int64(n))
			if left -= n; err != nil {
				return
			}
		}
	}
}

func TestSlowReaderSlowsItsOwnStream(t *testing.T) {
	var sent atomic.Int64
	apps(t, source64(&sent), func(t *testing.T, m *mesh) {
		f := dialFrames(t, m.addr)
		if err := errors.Join(f.WriteWindowUpdate(0, 1<<30), f.ask(1, true, "GET", "/50000000")); err != nil {
			t.Fatal(err)
		}
		have := 0 // of stream 1, whose window stays as it is
		for have < 65535 {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if d, ok := frame.(*http2.DataFrame); ok {
				have += len(d.Data())
			}
		}
		for id := uint32(3); id < 9; id += 2 { // the others are served all the same
			if err := f.ask(id, true, "GET", "/1000000"); err != nil {
				t.Fatal(err)
			}
			if r, err := f.reply(id); err != nil || len(r.body) != 1_000_000 {
				t.Fatalf("stream %d: %d bytes, %v", id, len(r.body), err)
			}
		}
		if err := f.WriteRSTStream(1, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
	})
}

// Many streams that nobody reads pin a window each, not what they would like to
// send.
func TestUnreadStreamsAreBounded(t *testing.T) {
	var sent atomic.Int64
	apps(t, source64(&sent), func(t *testing.T, m *mesh) {
		sent.Store(0)
		f := dialFrames(t, m.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		const streams = 100
		for i := range uint32(streams) {
			if err := f.ask(1+2*i, true, "GET", "/20000000"); err != nil {
				t.Fatal(err)
			}
		}
		for heads := 0; heads < streams; {
			frame, err := f.next()
			if err != nil {
				t.Fatal(err)
			}
			if frame.Header().Type == http2.FrameHeaders {
				heads++
			}
		}
		var before int64 = -1
		until(t, "", func() string { // all is stuck
			runtime.Gosched()
			if n := sent.Load(); n != before {
				before = n
				return fmt.Sprintf("%d bytes and more are sent to who does not read", n)
			}
			return ""
		})
		var mem runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&mem)
		if mem.HeapInuse > 64<<20 {
			t.Errorf("%d streams pin %d MiB", streams, mem.HeapInuse>>20)
		}
		f.Close()
		gone(t, m.proxy)
	})
}

// A client of HTTP/1 that reads nothing stops the application, too.
func TestUnreadConnectionStopsTheApplication(t *testing.T) {
	var sent atomic.Int64
	apps(t, source64(&sent), func(t *testing.T, m *mesh) {
		sent.Store(0)
		c, _ := m.raw("GET /1000000000 HTTP/1.1\r\nHost: shop\r\n\r\n")
		var before int64 = -1
		until(t, "", func() string {
			n := sent.Load()
			if n > 100<<20 {
				t.Fatal("nobody stops it")
			}
			if n != before || n == 0 {
				before = n
				return fmt.Sprintf("%d bytes and more are sent to who does not read", n)
			}
			return ""
		})
		c.Close()
		gone(t, m.proxy)
	})
}

// An application that does not read one request's body goes on to serve others of
// the same connections.
func TestUnreadUploadHoldsUpNobody(t *testing.T) {
	release := make(chan struct{})
	apps(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stuck" {
			<-release
			return
		}
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	}, func(t *testing.T, m *mesh) {
		c := h2c(t, true)
		r, w := io.Pipe()
		stuck := make(chan error, 1)
		go func() {
			resp, err := c.Post("http://"+m.addr+"/stuck", "", r)
			if err == nil {
				resp.Body.Close()
			}
			stuck <- err
		}()
		go func() { // as much as is taken
			_, err := io.Copy(w, io.LimitReader(zeros{}, 600_000))
			w.CloseWithError(err)
		}()
		for range 10 {
			resp, err := c.Post("http://"+m.addr+"/", "", bytes.NewReader(make([]byte, 200_000)))
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(b) != "200000" {
				t.Errorf("%q %v", b, err)
			}
		}
		release <- struct{}{}
		if err := <-stuck; err != nil {
			t.Error(err)
		}
		r.Close()
	})
}

// Large bodies in both directions at once, through one connection, arrive as they
// were; and small requests get their turn between them.
func TestLargeBodiesBothWaysAtOnce(t *testing.T) {
	apps(t, func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		_, _ = io.Copy(h, r.Body)
		seed, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		w.Header().Set("X-Sum", fmt.Sprintf("%x", h.Sum(nil)))
		_, _ = w.Write(noise(seed, 2<<20))
	}, func(t *testing.T, m *mesh) {
		c := h2c(t, true)
		var all sync.WaitGroup
		for i := range 12 {
			all.Go(func() {
				up := noise(1000+i, 2<<20)
				resp, err := c.Post(fmt.Sprintf("http://%s/%d", m.addr, i), "", bytes.NewReader(up))
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				down, err := io.ReadAll(resp.Body)
				if err != nil || resp.Header.Get("X-Sum") != fmt.Sprintf("%x", sha256.Sum256(up)) || !bytes.Equal(down, noise(i, 2<<20)) {
					t.Errorf("%d: %d bytes, %v", i, len(down), err)
				}
			})
		}
		all.Wait()
	})
	var sent atomic.Int64
	apps(t, source64(&sent), func(t *testing.T, m *mesh) {
		c := h2c(t, true)
		large, err := c.Get("http://" + m.addr + "/60000000")
		if err != nil {
			t.Fatal(err)
		}
		read := make(chan error, 1)
		go func() {
			n, err := io.Copy(io.Discard, large.Body)
			large.Body.Close()
			if err == nil && n != 60_000_000 {
				err = io.ErrUnexpectedEOF
			}
			read <- err
		}()
		small := 0
		for small < 5 && len(read) == 0 {
			resp, err := c.Get("http://" + m.addr + "/100")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			small++
		}
		if small < 5 {
			t.Errorf("beside a large one, %d small requests were answered", small)
		}
		if err := <-read; err != nil {
			t.Error(err)
		}
	})
}

func noise(seed, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.New(rand.NewSource(int64(seed))).Read(b)
	return b
}
