package proxy

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/proxy/overload"
)

// pinned makes a monitor of which so large a share is held as bodies.
func pinned(t *testing.T, limits overload.Limits) (load *overload.Monitor, pin func(percent int)) {
	limits.MemoryBytes = 1 << 40 // half of it for bodies
	load = overload.Start(limits, slog.New(slog.DiscardHandler))
	t.Cleanup(load.Close)
	held := 0
	return load, func(percent int) {
		load.Unpin(held)
		if held = percent * (1 << 39 / 100); !load.Pin(held) {
			t.Fatalf("%d %% cannot be pinned", percent)
		}
	}
}

// While memory is short, connections end with their answer; when it is full,
// requests are refused and connections stay as they are.
func TestShortMemory(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "done") })
	load, pin := pinned(t, overload.Limits{})
	m := newMeshOf(t, Config{Load: load}, up.URL)
	f := dialFrames(t, m.addr)
	for i, tc := range []struct {
		percent, status int
		close           bool
	}{{0, 200, false}, {90, 200, true}, {97, 503, true}, {0, 200, false}} {
		pin(tc.percent)
		c, r := m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
		resp, body := m.read(r, "GET")
		if resp.StatusCode != tc.status || resp.Close != tc.close || (tc.status == 503) != (resp.Header.Get("Retry-After") != "") {
			t.Errorf("%d %%: %d %q, close %v, %v", tc.percent, resp.StatusCode, body, resp.Close, resp.Header)
		}
		if tc.close {
			if _, err := r.ReadByte(); err != io.EOF {
				t.Errorf("%d %%: the connection goes on: %v", tc.percent, err)
			}
		} else if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n"); err != nil {
			t.Error(err)
		} else if resp, _ := m.read(r, "GET"); resp.StatusCode != 200 {
			t.Errorf("%d %%: the next request gets %d", tc.percent, resp.StatusCode)
		}
		id := uint32(1 + 2*i)
		if err := f.ask(id, true, "GET", "/"); err != nil {
			t.Fatal(err)
		}
		if a, err := f.reply(id); err != nil || a.status != resp.Status[:3] {
			t.Errorf("%d %%, HTTP/2: %v %v", tc.percent, a, err)
		}
	}
	settled(t, m.proxy)
	pin(0)
	if n := load.Stats().Requests; n != 0 {
		t.Errorf("%d requests are counted as in flight", n)
	}
}

// The limit of requests counts them, not connections.
func TestLimitOfRequests(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	up := h2server(t, func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-release
	})
	load, _ := pinned(t, overload.Limits{Streams: 2})
	m := newMeshOf(t, Config{Load: load}, up.URL)
	m.speak(weft.HTTP2)
	f := dialFrames(t, m.addr)
	for id := uint32(1); id < 5; id += 2 {
		if err := f.ask(id, true, "GET", "/"); err != nil {
			t.Fatal(err)
		}
		<-began
	}
	if err := f.ask(5, true, "GET", "/"); err != nil {
		t.Fatal(err)
	}
	if a, err := f.reply(5); err != nil || a.status != "503" || a.fields["retry-after"] == "" || a.fields[reasonHeader] != "overload" {
		t.Errorf("%v %v %v", a, a.fields, err)
	}
	close(release)
	if a, err := f.reply(3); err != nil || a.status != "200" {
		t.Errorf("%v %v", a, err)
	}
	settled(t, m.proxy)
	if n := load.Stats().Requests; n != 0 {
		t.Errorf("%d requests are counted as in flight", n)
	}
}

// A policy's limits hold for requests that share connections, too.
func TestPolicyLimitsBetweenProtocols(t *testing.T) {
	lanes := []weft.Protocol{weft.HTTP, weft.HTTP2}
	for _, p := range lanes {
		t.Run(string(p), func(t *testing.T) {
			release := make(chan struct{})
			var most, now atomic.Int32
			up := h2server(t, func(w http.ResponseWriter, r *http.Request) {
				most.Store(max(most.Load(), now.Add(1)))
				<-release
				now.Add(-1)
			})
			m := newMesh(t)
			m.svc.Policy.MaxRequests, m.svc.Policy.MaxPendingRequests = 2, 3
			m.endpoints(up.URL)
			m.speak(p)
			c := h2c(t, true)
			codes := make(chan int, 8)
			for range 8 {
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
			for range 3 {
				if code := <-codes; code != 503 {
					t.Errorf("beyond two and three that wait: %d", code)
				}
			}
			close(release)
			for range 5 {
				if code := <-codes; code != 200 {
					t.Errorf("%d", code)
				}
			}
			if n := most.Load(); n > 2 {
				t.Errorf("%d at once", n)
			}
			settled(t, m.proxy)
		})
	}
}
