package proxy

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

// Policies that change while they are in force.

// gauge is what weft_breaker_state says.
func (m *mesh) gauge() (state float64) {
	for _, f := range m.proxy.metrics.Gather() {
		if f.Name == "weft_breaker_state" && len(f.Samples) == 1 {
			return f.Samples[0].Value
		}
	}
	return -1
}

// The gauge says what the circuit is, and not only what became of it.
func TestGaugeOfTheCircuit(t *testing.T) {
	m := newMesh(t, server(t, ill(500)).URL)
	want := func(what string, state float64) {
		t.Helper()
		if got := m.gauge(); got != state {
			t.Errorf("%s: the gauge is %v; want %v", what, got, state)
		}
	}
	m.svc.Breaker = "forced-open"
	m.publish()
	want("held open from the beginning", 3)
	m.svc.Breaker = ""
	m.policy(`{` + touchy + `}`)
	want("let go", 0)
	m.do("GET", "/", "")
	m.wantState("a failure", "open")
	want("a failure", 1)
	kept := m.svc.Resilience
	m.svc.Resilience = nil
	m.publish()
	want("no policy", 0)
	m.svc.Resilience = kept
	m.publish()
	want("a policy again", 0)
	m.policy(`{"timeout":"5s"}`)
	want("no circuit", 0)
}

// What a person says is in force also where a policy's text is not understood, and
// that text is complained about once.
func TestHeldCircuitOfAnUnknownPolicy(t *testing.T) {
	log := &lines{}
	m := newMeshOf(t, Config{Logger: slog.New(slog.NewTextHandler(log, nil))}, server(t, func(http.ResponseWriter, *http.Request) {}).URL)
	m.svc.Breaker = "forced-open"
	for range 3 {
		m.policy(`{"fromTheFuture":{}}`)
	}
	if code, _ := m.do("GET", "/", ""); code != 503 || m.state() != "forced-open" {
		t.Errorf("status %d, state %s; want it held open", code, m.state())
	}
	m.svc.Breaker = ""
	m.publish()
	if code, _ := m.do("GET", "/", ""); code != 200 {
		t.Errorf("let go: %d", code)
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	if n := strings.Count(log.text.String(), "not in force"); n != 1 {
		t.Errorf("%d complaints", n)
	}
}

// A rule's circuit is the rule's, wherever it stands in its file.
func TestRuleMovesInItsFile(t *testing.T) {
	m := newMesh(t, server(t, ill(500)).URL)
	m.rule.Source = weft.SourceRef{Kind: "VirtualService", Namespace: "default", Name: "shop", File: "shop.yaml", Line: 7}
	m.rule.Resilience = &weft.Resilience{Source: weft.SourceRef{Kind: "ResiliencePolicy", Name: "p"}, Spec: []byte(`{` + touchy + `}`)}
	m.publish()
	m.do("GET", "/", "")
	m.wantState("a failure", "open")
	m.rule.Source.Line = 9
	m.publish()
	m.wantState("two lines further down", "open")
	if all := m.proxy.Breakers(); all[0].Target != "VirtualService default/shop http[0]" {
		t.Errorf("target %q", all[0].Target)
	}
}

// Everything may change under requests that are in flight: all of them are answered,
// and nothing stays behind.
func TestPoliciesChangeUnderLoad(t *testing.T) {
	var n atomic.Int32
	up := h2server(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1)%5 == 0 {
			w.WriteHeader(503)
		}
		_, _ = io.Copy(w, r.Body)
	})
	m := newMesh(t)
	m.backup(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "backup") })
	texts := []string{
		`{}`, everything,
		`{"timeout":"5s","bulkhead":{"maxConcurrentCalls":2,"maxWaitDuration":"20ms"},"fallback":{"service":"backup","cached":{},"status":203}}`,
		`{"hedge":{"delay":"1ms"},"retry":{"maxAttempts":2,"backoff":{"initial":"1ms"}},"circuitBreaker":{"consecutiveFailures":1,"waitDurationInOpenState":"1ms"}}`,
		`{"idempotency":{},"circuitBreaker":{"mode":"metrics-only"},"throttle":{},"adaptiveConcurrency":{"minLimit":1}}`,
	}
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for i := range 6 {
		c := h2c(t, i%2 == 0)
		callers.Go(func() {
			for k := 0; ; k++ {
				select {
				case <-stop:
					return
				default:
				}
				req, _ := http.NewRequest([]string{"GET", "POST", "PUT"}[k%3], "http://"+m.addr+"/"+fmt.Sprint(k%4), strings.NewReader("x"))
				req.Header.Set("Idempotency-Key", fmt.Sprint(i, " ", k))
				resp, err := c.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	deadline := time.Now().Add(time.Second)
	for k := 0; time.Now().Before(deadline); k++ {
		m.svc.Resilience, m.rule.Resilience, m.svc.Breaker = nil, nil, ""
		m.svc.Endpoints = nil
		for i := range 1 + k%2 {
			m.svc.Endpoints = append(m.svc.Endpoints, weft.Endpoint{ID: fmt.Sprint(i), Address: strings.TrimPrefix(up.URL, "http://"), Weight: 1,
				Protocol: []weft.Protocol{weft.HTTP, weft.HTTP2}[k/2%2]})
		}
		policy := &weft.Resilience{Source: weft.SourceRef{Kind: "ResiliencePolicy", Name: "p"}, Spec: []byte(texts[k%len(texts)])}
		switch k % 7 {
		case 0: // none
		case 1, 2, 3:
			m.svc.Resilience = policy
		case 4, 5:
			m.rule.Resilience = policy
		case 6:
			m.svc.Breaker = "forced-open"
		}
		if k%11 == 0 { // the services go and come
			m.proxy.Update(&weft.Snapshot{})
		}
		m.publish()
		m.proxy.Breakers()
	}
	close(stop)
	callers.Wait()
	m.svc.Resilience, m.rule.Resilience, m.svc.Breaker = nil, nil, ""
	m.publish()
	settled(t, m.proxy)
	if all := m.proxy.Breakers(); len(all) != 0 {
		t.Errorf("circuits of policies that went: %+v", all)
	}
}
