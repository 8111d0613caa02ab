package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

// Whose time limit counts, and what it is that takes the time.

// What a rule says of the time goes before what its service's policy says, for
// retries, too.
func TestRetriesEndWithTheRulesTimeout(t *testing.T) {
	for name, tt := range map[string]struct {
		rule time.Duration
		spec string
		want int32
	}{
		"shorter than the policy's": {300 * time.Millisecond, `{"timeout":"10s","retry":{"maxAttempts":2,"backoff":{"initial":"2s","jitter":"none"}}}`, 1},
		"longer than the policy's":  {8 * time.Second, `{"timeout":"30ms","retry":{"maxAttempts":2,"backoff":{"initial":"50ms","jitter":"none"}}}`, 2},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			m := newMesh(t, server(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1); w.WriteHeader(503) }).URL)
			m.rule.Timeout = tt.rule
			m.policy(tt.spec)
			if code, _ := m.do("GET", "/", ""); code != 503 || asked.Load() != tt.want {
				t.Errorf("status %d after %d attempts; want %d", code, asked.Load(), tt.want)
			}
		})
	}
}

// Who waits for a place uses up the time that the request has, whoever limits it.
func TestWaitingCountsIntoTheTimeout(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	defer close(leave)
	m := newMesh(t, server(t, func(w http.ResponseWriter, r *http.Request) {
		inside <- struct{}{}
		<-leave
	}).URL)
	m.policy(`{"bulkhead":{"maxConcurrentCalls":1,"maxWaitDuration":"1m"}}`)
	go func() {
		if c, err := net.Dial("tcp", m.addr); err == nil {
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
			defer c.Close()
			<-leave
		}
	}()
	<-inside
	if r := m.call("grpc-timeout", "50m"); r.fields["grpc-status"] != "4" || r.fields["x-weft-reason"] != "timeout" {
		t.Errorf("a call with a deadline: %v %v", r, r.fields)
	}
	m.rule.Timeout = 50 * time.Millisecond
	m.publish()
	if resp, _ := m.ask("GET", "/", nil); resp.StatusCode != 504 || resp.Header.Get("X-Weft-Reason") != "timeout" {
		t.Errorf("a rule's timeout: %d %v", resp.StatusCode, resp.Header)
	}
}

// An attempt's time includes that of connecting.
func TestAttemptTimeoutBoundsConnecting(t *testing.T) {
	mute := peers(t, func(c net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) }) // shakes no hands
	m := newMeshOf(t, Config{ClientTLS: func(weft.Identity, ...string) *tls.Config { return &tls.Config{InsecureSkipVerify: true} }}, mute)
	m.svc.Endpoints[0].Identity = weft.NewIdentity("cluster.local", "default", "shop")
	m.policy(`{"attemptTimeout":"50ms"}`)
	for _, p := range []weft.Protocol{weft.HTTP, weft.GRPC} {
		m.speak(p)
		if resp, _ := m.ask("GET", "/", nil); resp.StatusCode != 504 || resp.Header.Get("X-Weft-Reason") != "timeout" {
			t.Errorf("%s: %d %v", p, resp.StatusCode, resp.Header)
		}
	}
	settled(t, m.proxy)
}

// A client that is so slow that no time is left says nothing about the endpoint.
func TestNobodyIsBlamedForBeingTooLate(t *testing.T) {
	m := newMesh(t, server(t, func(http.ResponseWriter, *http.Request) {}).URL)
	m.rule.Timeout = 50 * time.Millisecond
	m.publish()
	c, r := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\n\r\n")
	<-time.After(100 * time.Millisecond)
	_, _ = io.WriteString(c, "x")
	if resp, _ := m.read(r, "POST"); resp.StatusCode != 504 {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	if n := m.proxy.view.Load().clusters[shop].set.Load().all.endpoints[0].downTimes.Load(); n != 0 {
		t.Error("the endpoint is taken for dead")
	}
}

// A client that goes away while its request waits for another attempt is not waited
// for.
func TestClientGoesAwayBetweenAttempts(t *testing.T) {
	asked := make(chan struct{}, 4)
	m := newMesh(t, server(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "60")
		w.WriteHeader(503)
		asked <- struct{}{}
	}).URL)
	m.policy(`{"retry":{},"bulkhead":{"maxConcurrentCalls":1}}`)
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+m.addr+"/", nil)
	over := make(chan struct{})
	go func() {
		defer close(over)
		if resp, err := h2c(t, true).Do(req); err == nil {
			resp.Body.Close()
			t.Error("an answer")
		}
	}()
	<-asked
	cancel()
	<-over
	settled(t, m.proxy)
}
