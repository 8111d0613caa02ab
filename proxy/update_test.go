package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

// shift replaces the shop's endpoints and policies by those of turn n: two of the
// three, one of them with another version now and then.
func (m *mesh) shift(n int, p weft.Protocol, urls []string) {
	m.svc.Endpoints = nil
	for i := range 2 {
		a := strings.TrimPrefix(urls[(n+i)%len(urls)], "http://")
		m.svc.Endpoints = append(m.svc.Endpoints, weft.Endpoint{ID: a, Address: a, Weight: uint32(1 + n%2), Protocol: p,
			Labels: map[string]string{"version": fmt.Sprint(n / 4 % 2)}})
	}
	m.svc.Policy = weft.TrafficPolicy{LoadBalancer: []weft.LoadBalancer{weft.LeastRequest, weft.RoundRobin, weft.Random}[n%3]}
	switch n % 4 {
	case 1:
		m.svc.Policy.MaxConnections, m.svc.Policy.MaxRequestsPerConn = 20, 5
	case 2:
		m.svc.Policy.Outlier = &weft.Outlier{Consecutive5xx: 5, Interval: time.Second, BaseEjection: time.Second, MaxEjectionPercent: 50}
	case 3:
		m.svc.Policy.MaxRequests = 20
	}
	m.publish()
}

// Endpoints come and go and policies change under load: no request notices, and
// what went keeps no connection.
func TestUpdatesUnderLoad(t *testing.T) {
	for _, p := range []weft.Protocol{weft.HTTP, weft.HTTP2} {
		for _, two := range []bool{false, true} {
			t.Run(fmt.Sprintf("client of HTTP/2 %v, to %s", two, p), func(t *testing.T) {
				leakless(t)
				var urls []string
				var open [3]atomic.Int32 // connections of each application
				for i := range open {
					up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						b, _ := io.ReadAll(r.Body)
						_, _ = w.Write(b)
					}))
					up.Config.Protocols = new(http.Protocols)
					up.Config.Protocols.SetHTTP1(true)
					up.Config.Protocols.SetUnencryptedHTTP2(true)
					up.Config.ConnState = func(_ net.Conn, s http.ConnState) {
						switch s {
						case http.StateNew:
							open[i].Add(1)
						case http.StateClosed:
							open[i].Add(-1)
						}
					}
					up.Start()
					t.Cleanup(up.Close)
					urls = append(urls, up.URL)
				}
				m := newMesh(t)
				m.shift(0, p, urls)
				var load sync.WaitGroup
				stop := make(chan struct{})
				for worker := range 6 {
					c := h2c(t, two)
					load.Go(func() {
						body := bytes.Repeat([]byte{byte('a' + worker)}, 100<<(2*worker)) // to 100 KiB
						for {
							select {
							case <-stop:
								return
							default:
							}
							resp, err := c.Post("http://"+m.addr+"/", "", bytes.NewReader(body))
							if err != nil {
								t.Error(err)
								return
							}
							b, err := io.ReadAll(resp.Body)
							resp.Body.Close()
							if err != nil || resp.StatusCode != 200 || !bytes.Equal(b, body) {
								t.Errorf("%d, %d of %d bytes, %v", resp.StatusCode, len(b), len(body), err)
								return
							}
						}
					})
				}
				for n := range 150 {
					m.shift(n, p, urls)
					<-time.After(3 * time.Millisecond)
				}
				close(stop)
				load.Wait()
				settled(t, m.proxy)
				m.shift(0, p, urls) // the third has gone
				until(t, "", func() string {
					if n := open[2].Load(); n != 0 {
						return fmt.Sprintf("%d connections of an endpoint that went", n)
					}
					c := m.proxy.view.Load().clusters[shop]
					c.mu.Lock()
					defer c.mu.Unlock()
					if n := len(c.leaving); n != 0 {
						return fmt.Sprintf("%d endpoints are leaving", n)
					}
					return ""
				})
			})
		}
	}
}

// A service that goes away while it is called lets calls end, and then nothing of
// it is left.
func TestServiceGoesAway(t *testing.T) {
	for _, p := range []weft.Protocol{weft.HTTP, weft.HTTP2} {
		t.Run(string(p), func(t *testing.T) {
			began, release := make(chan struct{}), make(chan struct{})
			up := h2server(t, func(w http.ResponseWriter, r *http.Request) {
				close(began)
				<-release
				_, _ = io.WriteString(w, "done")
			})
			m := newMesh(t, up.URL)
			m.speak(p)
			_, r := m.raw("GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
			<-began
			m.proxy.Update(&weft.Snapshot{Version: 1000})
			<-time.After(3 * sweepInterval) // the sweeper must not forget what is still in use
			close(release)
			if resp, body := m.read(r, "GET"); resp.StatusCode != 200 || body != "done" {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
			settled(t, m.proxy)
			until(t, "", func() string {
				m.proxy.mu.Lock()
				defer m.proxy.mu.Unlock()
				if n := len(m.proxy.gone); n > 0 {
					return fmt.Sprintf("%d services are remembered", n)
				}
				return ""
			})
		})
	}
}

// An exchange that picked an endpoint which leaves before it is connected to may
// still use it, and its connection is nobody else's.
func TestEndpointLeavesBetweenPickAndConnect(t *testing.T) {
	up := h2server(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "done") })
	m := newMesh(t, up.URL)
	m.speak(weft.HTTP2)
	cl := m.proxy.view.Load().clusters[shop]
	e := cl.set.Load().all.endpoints[0]
	m.endpoints()
	<-time.After(3 * sweepInterval)
	var s http2Upstream
	o := opening{p: m.proxy, cluster: cl, group: &group{policy: &weft.TrafficPolicy{}}, endpoint: e, http2: true}
	within(t, "open", func() {
		if err := s.open(&o); err != nil {
			t.Fatal(err)
		}
	})
	until(t, "", func() string {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		if len(cl.leaving) != 1 {
			return "the endpoint was forgotten while it is in use"
		}
		return ""
	})
	s.release(nil, nil, true)
	settled(t, m.proxy)
	until(t, "", func() string {
		if n := cl.open.Load(); n != 0 {
			return fmt.Sprintf("%d connections are open", n)
		}
		return ""
	})
}

// A raw connection's destination may go away while it is found out what the
// connection speaks.
func TestServiceGoesAwayDuringDetection(t *testing.T) {
	dialled := make(chan struct{}, 1)
	m := rawMesh(t, "", peers(t, func(c net.Conn, r *bufio.Reader) {
		dialled <- struct{}{}
		_, _ = r.ReadByte()
	}))
	c, r := m.raw("")
	<-dialled
	m.proxy.Update(&weft.Snapshot{Version: 1000})
	if _, err := io.WriteString(c, "SET a b\n"); err != nil {
		t.Fatal(err)
	}
	if b, err := r.ReadByte(); err == nil {
		t.Errorf("read %q", b)
	}
	gone(t, m.proxy)
}
