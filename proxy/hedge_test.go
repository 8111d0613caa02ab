package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
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

// Two attempts beside each other: who wins, and what becomes of the other.

// rivals is a mesh whose requests go to first at first, and by a hedge to second.
func rivals(t *testing.T, p weft.Protocol, first, second, spec string) *mesh {
	m := newMesh(t, first, second)
	m.rivals(p, spec)
	return m
}

func (m *mesh) rivals(p weft.Protocol, spec string) {
	m.svc.Endpoints[1].Zone = "far"
	m.svc.Endpoints[0].Zone = "near"
	m.proxy.zone = "near"
	m.svc.Policy.Locality = &weft.Locality{}
	m.proxy.Update(&weft.Snapshot{}) // the cluster is made again, in its zone
	m.policy(spec)
	m.speak(p)
}

// hangs reads requests, says so, and answers nothing.
func hangs(t *testing.T, p weft.Protocol, heard chan<- struct{}) string {
	if p == weft.HTTP2 {
		return speaks(t, func(f *framer, id uint32) error { heard <- struct{}{}; return nil })
	}
	return peers(t, func(c net.Conn, r *bufio.Reader) {
		for {
			if _, err := hear(r); err != nil {
				return
			}
			heard <- struct{}{}
		}
	})
}

func protocols(t *testing.T, test func(t *testing.T, p weft.Protocol)) {
	for _, p := range []weft.Protocol{weft.HTTP, weft.HTTP2} {
		t.Run(string(p), func(t *testing.T) { test(t, p) })
	}
}

const hedging = `{"timeout":"8s","hedge":{"delay":"10ms"},"circuitBreaker":{}}`

// failures of the circuit, and calls.
func (m *mesh) counts() (failures, calls uint32) {
	m.t.Helper()
	all := m.proxy.Breakers()
	if len(all) != 1 {
		m.t.Fatalf("circuits %+v; want one", all)
	}
	return all[0].Failures, all[0].Calls
}

// A hedge that cannot connect keeps nobody waiting: neither the answer of the first,
// nor the end of the exchange.
func TestHedgeThatCannotConnect(t *testing.T) {
	protocols(t, func(t *testing.T, p weft.Protocol) {
		answer := make(chan struct{})
		slow := h2server(t, func(w http.ResponseWriter, r *http.Request) { <-answer; io.WriteString(w, "slow") })
		shaking := make(chan struct{}, 1)
		mute := peers(t, func(c net.Conn, r *bufio.Reader) { // shakes no hands
			_, _ = r.ReadByte()
			shaking <- struct{}{}
			_, _ = io.Copy(io.Discard, r)
		})
		m := rivals(t, p, slow.URL, mute, hedging)
		m.proxy.clientTLS = func(weft.Identity, ...string) *tls.Config { return &tls.Config{InsecureSkipVerify: true} }
		m.svc.Endpoints[1].Identity = weft.NewIdentity("cluster.local", "default", "shop")
		m.svc.Policy.ConnectTimeout = 5 * time.Second
		m.publish()
		go func() { <-shaking; close(answer) }()
		began := time.Now()
		if code, body := m.do("GET", "/", ""); code != 200 || body != "slow" {
			t.Errorf("%d %q", code, body)
		}
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("the answer waited %v for a connection that nobody needed", took)
		}
		settled(t, m.proxy)
		if failures, _ := m.counts(); failures != 0 {
			t.Errorf("%d failures", failures)
		}
	})
}

// A connection that is ready when nobody needs it any more serves the next one.
func TestConnectionOfALateHedgeIsKept(t *testing.T) {
	heard := make(chan struct{}, 4)
	slow := server(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "slow") })
	m := rivals(t, weft.HTTP, slow.URL, hangs(t, weft.HTTP, heard), hedging)
	e := m.proxy.view.Load().clusters[shop].set.Load().all.endpoints[1]
	o := opening{p: m.proxy, cluster: m.proxy.view.Load().clusters[shop], group: m.proxy.view.Load().clusters[shop].set.Load().all,
		endpoint: e, until: time.Now().Add(time.Minute)}
	up, fault := o.open(nil)
	if fault != nil {
		t.Fatal(fault)
	}
	o.keep(up)
	settled(t, m.proxy)
	if u := e.pool.get(time.Now().UnixNano(), true); u != up || u.deadline {
		t.Errorf("%v is kept, and its deadline %t", u, u != nil && u.deadline)
	} else {
		u.close()
	}
}

// The first attempt breaks while the hedge goes on: the answer is the hedge's, and the
// failure is counted.
func TestFirstBreaksAndHedgeWins(t *testing.T) {
	protocols(t, func(t *testing.T, p weft.Protocol) {
		broken := make(chan struct{})
		hedged := make(chan struct{}, 1)
		var first string
		if p == weft.HTTP2 {
			first = speaks(t, func(f *framer, id uint32) error {
				<-hedged
				defer close(broken)
				return f.WriteRSTStream(id, http2.ErrCodeInternal)
			})
		} else {
			first = peers(t, func(c net.Conn, r *bufio.Reader) {
				if _, err := hear(r); err == nil {
					<-hedged
					_ = c.Close()
					close(broken)
				}
			})
		}
		second := h2server(t, func(w http.ResponseWriter, r *http.Request) {
			hedged <- struct{}{}
			<-broken
			<-time.After(30 * time.Millisecond) // until the proxy has seen it
			io.WriteString(w, "second")
		})
		m := rivals(t, p, first, second.URL, hedging)
		if code, body := m.do("GET", "/", ""); code != 200 || body != "second" {
			t.Errorf("%d %q", code, body)
		}
		settled(t, m.proxy)
		if failures, calls := m.counts(); failures != 1 || calls != 2 {
			t.Errorf("%d failures of %d calls; want one of two", failures, calls)
		}
	})
}

// Both attempts break: the client is told, and nothing stays behind.
func TestAllAttemptsBreak(t *testing.T) {
	protocols(t, func(t *testing.T, p weft.Protocol) {
		both := make(chan struct{})
		var came atomic.Int32
		breaks := func() string {
			if p == weft.HTTP2 {
				return speaks(t, func(f *framer, id uint32) error {
					if came.Add(1) == 2 {
						close(both)
					}
					<-both
					return f.WriteRSTStream(id, http2.ErrCodeInternal)
				})
			}
			return peers(t, func(c net.Conn, r *bufio.Reader) {
				if _, err := hear(r); err == nil {
					if came.Add(1) == 2 {
						close(both)
					}
					<-both
				}
			})
		}
		m := rivals(t, p, breaks(), breaks(), hedging)
		m.rule.Retry = weft.Retry{}
		m.publish()
		if code, _ := m.do("GET", "/", ""); code != 502 {
			t.Errorf("%d", code)
		}
		settled(t, m.proxy)
		if failures, calls := m.counts(); failures != 2 || calls != 2 {
			t.Errorf("%d failures of %d calls; want both", failures, calls)
		}
	})
}

// Whatever ends a race before it is decided, all attempts end with it.
func TestRaceIsEndedFromOutside(t *testing.T) {
	for name, end := range map[string]func(m *mesh, cancel func()){
		"the client goes away": func(m *mesh, cancel func()) { cancel() },
		"the proxy closes":     func(m *mesh, cancel func()) { m.proxy.Close() },
		"the endpoints go":     func(m *mesh, cancel func()) { m.endpoints(); cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			protocols(t, func(t *testing.T, p weft.Protocol) {
				heard := make(chan struct{}, 2)
				m := rivals(t, p, hangs(t, p, heard), hangs(t, p, heard), hedging)
				ctx, cancel := context.WithCancel(t.Context())
				over := make(chan struct{})
				c := h2c(t, true)
				go func() {
					defer close(over)
					req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+m.addr+"/", nil)
					if resp, err := c.Do(req); err == nil {
						resp.Body.Close()
					}
				}()
				<-heard
				<-heard
				end(m, cancel)
				<-over
				settled(t, m.proxy)
				if m.proxy.draining.Load() || len(m.svc.Endpoints) == 0 {
					return
				}
				if failures, _ := m.counts(); failures != 0 {
					t.Errorf("%d failures: the client's end is nobody's", failures)
				}
			})
		})
	}
}

// Time is up while both attempts run: both were too slow.
func TestRaceEndsWithTheDeadline(t *testing.T) {
	protocols(t, func(t *testing.T, p weft.Protocol) {
		heard := make(chan struct{}, 2)
		m := rivals(t, p, hangs(t, p, heard), hangs(t, p, heard), `{"timeout":"100ms","hedge":{"delay":"10ms"},"circuitBreaker":{}}`)
		resp, _ := m.ask("GET", "/", nil)
		if resp.StatusCode != 504 || resp.Header.Get("X-Weft-Reason") != "timeout" {
			t.Errorf("%d %v", resp.StatusCode, resp.Header)
		}
		settled(t, m.proxy)
		if failures, calls := m.counts(); failures != 2 || calls != 2 {
			t.Errorf("%d failures of %d calls; want both", failures, calls)
		}
	})
}

// A client of no patience ends its race, and opens no circuit.
func TestImpatientRace(t *testing.T) {
	heard := make(chan struct{}, 2)
	m := rivals(t, weft.GRPC, hangs(t, weft.HTTP2, heard), hangs(t, weft.HTTP2, heard),
		`{"timeout":"5s","retry":{"methods":["POST"]},"hedge":{"delay":"5ms"},`+touchy+`}`)
	if r := m.call("grpc-timeout", "100m"); r.fields["grpc-status"] != "4" || len(heard) != 2 {
		t.Errorf("%v %v, %d attempts", r, r.fields, len(heard))
	}
	m.wantState("a client in a hurry", "closed")
}

// Kept connections that the server has closed cost a hedge, and nobody's reputation.
func TestHedgeOnADeadConnection(t *testing.T) {
	heard := make(chan struct{}, 8)
	var ask atomic.Int32
	second := peers(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := hear(r); err == nil && ask.Add(1) == 1 {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			_, _ = hear(r) // the next request is lost with the connection
		}
	})
	answer := make(chan struct{})
	first := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			heard <- struct{}{}
			<-answer
		}
		io.WriteString(w, "first")
	})
	m := rivals(t, weft.HTTP, first.URL, second, hedging)
	e := m.proxy.view.Load().clusters[shop].set.Load().all.endpoints[1]
	o := opening{p: m.proxy, cluster: m.proxy.view.Load().clusters[shop], group: m.proxy.view.Load().clusters[shop].set.Load().all, endpoint: e}
	up, _ := o.open(nil)
	u := up.(*link)
	_, _ = io.WriteString(u.sock, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	_, _ = io.ReadFull(u.sock, make([]byte, len("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")))
	u.served = 1
	o.keep(up)
	go func() {
		<-heard
		until(t, "", func() string { // the hedge has come and gone
			if n := e.target.InFlight(); ask.Load() < 1 || n == 0 {
				return "no hedge yet"
			}
			return ""
		})
		<-time.After(30 * time.Millisecond)
		close(answer)
	}()
	if code, body := m.do("GET", "/", ""); code != 200 || body != "first" {
		t.Errorf("%d %q", code, body)
	}
	settled(t, m.proxy)
	if failures, _ := m.counts(); failures != 0 {
		t.Errorf("%d failures", failures)
	}
}

// What is recorded is the attempt that answered, and how many ran beside it.
func TestHedgeIsRecorded(t *testing.T) {
	heard := make(chan struct{}, 1)
	second := server(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "second") })
	m, log := newLoggedMesh(t, hangs(t, weft.HTTP, heard), second.URL)
	m.rivals(weft.HTTP, hedging)
	m.do("GET", "/", "")
	if line := log.last(t, 1); !strings.Contains(line, `"hedges":1`) || !strings.Contains(line, `"endpoint":"`+second.URL) {
		t.Error(line)
	}
}
