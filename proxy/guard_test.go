package proxy

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/resilience"
)

// What a ResiliencePolicy makes of a service's answers and failures.

// guarded is a mesh whose service has a policy, in front of one server.
func guarded(t *testing.T, spec string, h http.HandlerFunc) *mesh {
	m := newMesh(t, server(t, h).URL)
	m.policy(spec)
	return m
}

// policy gives the service a policy.
func (m *mesh) policy(spec string) {
	m.svc.Resilience = &weft.Resilience{
		Source: weft.SourceRef{Kind: "ResiliencePolicy", Namespace: "default", Name: "shop", File: "shop.yaml", Line: 1}, Spec: []byte(spec)}
	m.publish()
}

// ask is do that also returns the headers.
func (m *mesh) ask(method, path string, header http.Header) (*http.Response, string) {
	m.t.Helper()
	req, _ := http.NewRequest(method, "http://"+m.addr+path, nil)
	for k, v := range header {
		req.Header[k] = v
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp, string(b)
}

func (m *mesh) state() string {
	m.t.Helper()
	all := m.proxy.Breakers()
	if len(all) != 1 {
		m.t.Fatalf("circuits %+v; want one", all)
	}
	return all[0].State
}

func TestCircuitOpensAndFallbackAnswers(t *testing.T) {
	var ill atomic.Bool
	var asked atomic.Int32
	var mu sync.Mutex
	var events []BreakerEvent
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if ill.Load() {
			http.Error(w, "ill", 500)
		}
	})
	m := newMeshOf(t, Config{OnBreaker: func(e BreakerEvent) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
	}}, up.URL)
	m.policy(`{"circuitBreaker":{"slidingWindow":{"type":"count","size":4},"failureRateThreshold":50,"waitDurationInOpenState":"200ms","permittedCallsInHalfOpenState":1},
		"fallback":{"status":200,"headers":{"content-type":"application/json"},"body":"{\"status\":\"unknown\"}"}}`)
	for range 4 {
		if resp, _ := m.ask("GET", "/", nil); resp.StatusCode != 200 || resp.Header.Get("X-Weft-Fallback") != "" {
			t.Fatalf("while well: %d %v", resp.StatusCode, resp.Header)
		}
	}
	ill.Store(true)
	for i := range 3 {
		resp, body := m.ask("POST", "/", nil)
		if resp.StatusCode != 200 || body != `{"status":"unknown"}` || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("X-Weft-Fallback") != "static" {
			t.Fatalf("call %d while ill: %d %q %v", i, resp.StatusCode, body, resp.Header)
		}
	}
	if n := asked.Load(); n != 6 {
		t.Errorf("%d calls reached the service; the circuit opens with two failures of four", n)
	}
	if resp, _ := m.ask("GET", "/", nil); resp.Header.Get("X-Weft-Reason") != "circuit_open" {
		t.Errorf("an open circuit says %q", resp.Header.Get("X-Weft-Reason"))
	}
	if got := m.state(); got != "open" {
		t.Errorf("state %s; want open", got)
	}
	ill.Store(false)
	until(t, "the circuit closes", func() string {
		m.ask("GET", "/", nil)
		if state := m.state(); state != "closed" {
			return state
		}
		return ""
	})
	mu.Lock()
	defer mu.Unlock()
	var path []string
	for _, e := range events {
		path = append(path, e.To)
	}
	if got := strings.Join(path, " "); got != "open half-open closed" {
		t.Errorf("events %q", got)
	}
	if e := events[0]; e.Target != "shop.default" || !strings.Contains(e.Reason, "50") || !strings.Contains(e.Policy, "shop.yaml:1") || e.Failures != 2 {
		t.Errorf("first event %+v", e)
	}
}

func TestOpenCircuitWithoutFallback(t *testing.T) {
	m := guarded(t, `{"circuitBreaker":{"consecutiveFailures":2,"waitDurationInOpenState":"30s"}}`,
		func(w http.ResponseWriter, r *http.Request) { http.Error(w, "ill", http.StatusServiceUnavailable) })
	for range 2 {
		if code, body := m.do("POST", "/", ""); code != 503 || body != "ill\n" {
			t.Fatalf("%d %q", code, body)
		}
	}
	resp, body := m.ask("POST", "/", nil)
	if resp.StatusCode != 503 || resp.Header.Get("X-Weft-Reason") != "circuit_open" || resp.Header.Get("Retry-After") != "30" || !strings.Contains(body, "circuit is open") {
		t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
	}
}

// A state that a person sets holds whatever the calls do, also without a policy.
func TestHeldCircuit(t *testing.T) {
	var asked atomic.Int32
	m := newMesh(t, server(t, func(http.ResponseWriter, *http.Request) { asked.Add(1) }).URL)
	m.svc.Breaker = "forced-open"
	m.publish()
	if resp, _ := m.ask("GET", "/", nil); resp.StatusCode != 503 || resp.Header.Get("X-Weft-Reason") != "circuit_open" || m.state() != "forced-open" {
		t.Errorf("held open: %d %v", resp.StatusCode, resp.Header)
	}
	m.rule.Resilience = &weft.Resilience{Spec: []byte(`{"timeout":"1s"}`)}
	m.publish()
	if resp, _ := m.ask("GET", "/", nil); resp.Header.Get("X-Weft-Reason") != "circuit_open" {
		t.Errorf("held open, and the route has a policy: %d %v", resp.StatusCode, resp.Header)
	}
	m.svc.Breaker = ""
	m.publish()
	if code, _ := m.do("GET", "/", ""); code != 200 || asked.Load() != 1 {
		t.Errorf("let go: %d", code)
	}
}

func TestPolicyRetries(t *testing.T) {
	for name, tt := range map[string]struct {
		spec, method string
		status       int
		want         int32
	}{
		"idempotent":         {`{"retry":{"maxAttempts":3,"backoff":{"initial":"1ms"}}}`, "GET", 503, 3},
		"not idempotent":     {`{"retry":{"maxAttempts":3,"backoff":{"initial":"1ms"}}}`, "POST", 503, 1},
		"method named":       {`{"retry":{"maxAttempts":3,"methods":["POST"],"backoff":{"initial":"1ms"}}}`, "POST", 503, 3},
		"client's mistake":   {`{"retry":{"maxAttempts":3,"statuses":["4xx","5xx"],"ignoreStatuses":["4xx"],"backoff":{"initial":"1ms"}}}`, "GET", 404, 1},
		"status named":       {`{"retry":{"maxAttempts":2,"statuses":["404"],"backoff":{"initial":"1ms"}}}`, "GET", 404, 2},
		"status not named":   {`{"retry":{"maxAttempts":3,"statuses":["503"],"backoff":{"initial":"1ms"}}}`, "GET", 500, 1},
		"no retry in policy": {`{"timeout":"5s"}`, "GET", 503, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			m := guarded(t, tt.spec, func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				w.WriteHeader(tt.status)
			})
			if code, _ := m.do(tt.method, "/", ""); code != tt.status || asked.Load() != tt.want {
				t.Errorf("status %d after %d attempts; want %d after %d", code, asked.Load(), tt.status, tt.want)
			}
		})
	}
}

// What a rule says of retries and timeouts goes before the service's policy, and a
// policy of the route before both.
func TestWhoseRetriesCount(t *testing.T) {
	var asked atomic.Int32
	m := guarded(t, `{"retry":{"maxAttempts":4,"backoff":{"initial":"1ms"}}}`, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.WriteHeader(503)
	})
	count := func(want int32) {
		t.Helper()
		asked.Store(0)
		if m.do("GET", "/", ""); asked.Load() != want {
			t.Errorf("%d attempts; want %d", asked.Load(), want)
		}
	}
	count(4)
	m.rule.Retry = weft.Retry{Attempts: 1, On: weft.Retry5xx, Chosen: true}
	m.publish()
	count(2)
	m.rule.Resilience = &weft.Resilience{Source: weft.SourceRef{Kind: "ResiliencePolicy", Namespace: "default", Name: "route"},
		Spec: []byte(`{"retry":{"maxAttempts":3,"backoff":{"initial":"1ms"}}}`)}
	m.publish()
	count(3)
}

func TestRetryAfterIsHonoured(t *testing.T) {
	var asked atomic.Int32
	m := guarded(t, `{"timeout":"500ms","retry":{"maxAttempts":3,"backoff":{"initial":"1ms"}}}`, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Header().Set("Retry-After", "5")
		w.WriteHeader(503)
	})
	if code, _ := m.do("GET", "/", ""); code != 503 || asked.Load() != 1 {
		t.Errorf("status %d after %d attempts: five seconds do not fit into the timeout", code, asked.Load())
	}
}

func TestAttemptTimeout(t *testing.T) {
	var asked atomic.Int32
	m := guarded(t, `{"timeout":"5s","attemptTimeout":"50ms","retry":{"maxAttempts":2,"backoff":{"initial":"1ms"}}}`,
		func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) == 1 {
				<-r.Context().Done()
			}
		})
	if code, _ := m.do("GET", "/", ""); code != 200 || asked.Load() != 2 {
		t.Errorf("status %d after %d attempts", code, asked.Load())
	}
}

func TestTotalTimeoutFallsBack(t *testing.T) {
	m := guarded(t, `{"timeout":"50ms","fallback":{"status":200,"body":"unknown"}}`,
		func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	resp, body := m.ask("GET", "/", nil)
	if resp.StatusCode != 200 || body != "unknown" || resp.Header.Get("X-Weft-Reason") != "timeout" {
		t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
	}
}

func TestBulkheadRejectsWhatDoesNotFit(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	m := guarded(t, `{"bulkhead":{"maxConcurrentCalls":2,"maxWaitDuration":"20ms"}}`, func(w http.ResponseWriter, r *http.Request) {
		inside <- struct{}{}
		<-leave
	})
	var calls sync.WaitGroup
	for range 2 {
		calls.Go(func() { m.do("GET", "/", "") })
	}
	<-inside
	<-inside
	resp, _ := m.ask("GET", "/", nil)
	if resp.StatusCode != 503 || resp.Header.Get("X-Weft-Reason") != "bulkhead_full" {
		t.Errorf("the third call: %d %v", resp.StatusCode, resp.Header)
	}
	close(leave)
	calls.Wait()
	go func() { <-inside }()
	if code, _ := m.do("GET", "/", ""); code != 200 {
		t.Errorf("a call after the others: %d", code)
	}
}

func TestRateLimit(t *testing.T) {
	m := guarded(t, `{"rateLimit":{"requests":3,"period":"1h"}}`, func(http.ResponseWriter, *http.Request) {})
	for i := range 5 {
		resp, _ := m.ask("GET", "/", nil)
		switch {
		case i < 3 && resp.StatusCode != 200:
			t.Errorf("call %d: %d", i, resp.StatusCode)
		case i >= 3 && (resp.StatusCode != 429 || resp.Header.Get("X-Weft-Reason") != "rate_limited" || resp.Header.Get("Retry-After") == ""):
			t.Errorf("call %d: %d %v", i, resp.StatusCode, resp.Header)
		}
	}
}

// The last good answer stands in, for who got it, and says how old it is.
func TestCachedFallback(t *testing.T) {
	var ill atomic.Bool
	m := guarded(t, `{"fallback":{"cached":{"maxAge":"1m"}}}`, func(w http.ResponseWriter, r *http.Request) {
		if ill.Load() {
			http.Error(w, "ill", 500)
			return
		}
		w.Header().Set("ETag", `"7"`)
		fmt.Fprintf(w, "%s for %s", r.URL, r.Header.Get("Authorization"))
	})
	ann, bob := http.Header{"Authorization": {"ann"}}, http.Header{"Authorization": {"bob"}}
	m.ask("GET", "/item?id=1", ann)
	settled(t, m.proxy) // the client has its answer before it is kept
	ill.Store(true)
	resp, body := m.ask("GET", "/item?id=1", ann)
	if resp.StatusCode != 200 || body != "/item?id=1 for ann" || resp.Header.Get("X-Weft-Fallback") != "cached" || resp.Header.Get("Etag") != `"7"` || resp.Header.Get("Age") == "" {
		t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
	}
	for name, ask := range map[string]func() (*http.Response, string){
		"somebody else": func() (*http.Response, string) { return m.ask("GET", "/item?id=1", bob) },
		"another item":  func() (*http.Response, string) { return m.ask("GET", "/item?id=2", ann) },
		"a change":      func() (*http.Response, string) { return m.ask("POST", "/item?id=1", ann) },
	} {
		if resp, body := ask(); resp.StatusCode != 500 || body != "ill\n" {
			t.Errorf("%s: %d %q", name, resp.StatusCode, body)
		}
	}
}

func TestOtherServiceStandsIn(t *testing.T) {
	backup := server(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "backup %s %s", r.Method, r.URL) })
	m := newMesh(t, server(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }).URL)
	name := weft.NewServiceName("", "backup")
	m.others = []*weft.Service{{Name: name, Endpoints: []weft.Endpoint{{ID: "b", Address: strings.TrimPrefix(backup.URL, "http://"), Weight: 1}}}}
	m.policy(`{"fallback":{"service":"backup","status":200,"body":"nothing"}}`)
	resp, body := m.ask("GET", "/x?y", nil)
	if resp.StatusCode != 200 || body != "backup GET /x?y" || resp.Header.Get("X-Weft-Fallback") != "service" {
		t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
	}
	backup.Close()
	if resp, body := m.ask("GET", "/x?y", nil); resp.StatusCode != 200 || body != "nothing" || resp.Header.Get("X-Weft-Fallback") != "static" {
		t.Errorf("with both ill: %d %q %v", resp.StatusCode, body, resp.Header)
	}
}

func TestHedge(t *testing.T) {
	for _, p := range []weft.Protocol{weft.HTTP, weft.HTTP2} {
		t.Run(string(p), func(t *testing.T) {
			gone := make(chan struct{}, 8)
			slow := h2server(t, func(w http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
				gone <- struct{}{}
			})
			quick := h2server(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "quick") })
			m := newMesh(t, slow.URL, quick.URL)
			m.svc.Policy.LoadBalancer = weft.RoundRobin
			m.policy(`{"timeout":"8s","hedge":{"delay":"20ms"}}`)
			m.speak(p)
			hedged := false
			for range 4 {
				if code, body := m.do("GET", "/", ""); code != 200 || body != "quick" {
					t.Fatalf("%d %q", code, body)
				}
				select {
				case <-gone:
					hedged = true
				default:
				}
			}
			if !hedged {
				select {
				case <-gone: // who was too slow was told to stop
				case <-time.After(5 * time.Second):
					t.Error("the slow attempt was not given up")
				}
			}
			settled(t, m.proxy)
		})
	}
}

func TestHedgeIsOnlyForWhatMayBeSentTwice(t *testing.T) {
	var asked atomic.Int32
	slow := func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		<-time.After(40 * time.Millisecond) // longer than the hedge's delay
	}
	m := newMesh(t, server(t, slow).URL, server(t, slow).URL)
	m.policy(`{"hedge":{"delay":"5ms"}}`)
	if code, _ := m.do("POST", "/", "x"); code != 200 || asked.Load() != 1 {
		t.Errorf("status %d after %d attempts", code, asked.Load())
	}
}

// A policy's text may change at any time; what was seen so far still counts.
func TestWindowSurvivesChanges(t *testing.T) {
	m := guarded(t, `{"circuitBreaker":{"slidingWindow":{"size":4},"waitDurationInOpenState":"30s"}}`, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) })
	for range 3 {
		m.do("GET", "/", "")
	}
	m.policy(`{"circuitBreaker":{"slidingWindow":{"size":4},"waitDurationInOpenState":"40s"}}`)
	m.do("GET", "/", "")
	if resp, _ := m.ask("GET", "/", nil); resp.Header.Get("Retry-After") != "40" {
		t.Errorf("after four failures under two texts: %d %v", resp.StatusCode, resp.Header)
	}
	m.svc.Resilience = nil
	m.publish()
	if code, _ := m.do("GET", "/", ""); code != 500 {
		t.Errorf("without a policy: %d", code)
	}
	if all := m.proxy.Breakers(); len(all) != 0 {
		t.Errorf("circuits without a policy: %+v", all)
	}
}

// A request with a key runs once, and its twin does not run beside it.
func TestIdempotencyKey(t *testing.T) {
	var ran atomic.Int32
	inside, leave := make(chan struct{}, 1), make(chan struct{})
	m := guarded(t, `{"idempotency":{"required":true},"retry":{"maxAttempts":2,"backoff":{"initial":"1ms"}}}`, func(w http.ResponseWriter, r *http.Request) {
		n := ran.Add(1)
		if r.URL.Path == "/slow" {
			inside <- struct{}{}
			<-leave
		}
		if r.URL.Path == "/ill" && n == 1 {
			w.WriteHeader(500)
			return
		}
		w.Header().Set("Location", "/orders/1")
		w.WriteHeader(201)
		fmt.Fprintf(w, "order %d", n)
	})
	key := func(k string) http.Header { return http.Header{"Idempotency-Key": {k}} }
	for i := range 3 {
		resp, body := m.ask("POST", "/orders", key("a"))
		if resp.StatusCode != 201 || body != "order 1" || resp.Header.Get("Location") != "/orders/1" || (resp.Header.Get("Idempotency-Replayed") == "true") != (i > 0) {
			t.Errorf("time %d: %d %q %v", i, resp.StatusCode, body, resp.Header)
		}
	}
	if resp, body := m.ask("POST", "/orders", key("b")); resp.StatusCode != 201 || body != "order 2" {
		t.Errorf("another key: %d %q", resp.StatusCode, body)
	}
	if resp, _ := m.ask("POST", "/orders?x", key("b")); resp.StatusCode != 422 {
		t.Errorf("a key used again: %d", resp.StatusCode)
	}
	if resp, _ := m.ask("POST", "/orders", nil); resp.StatusCode != 400 || resp.Header.Get("X-Weft-Reason") != "idempotency_key_missing" {
		t.Errorf("no key: %d", resp.StatusCode)
	}
	var first sync.WaitGroup
	first.Go(func() { m.ask("POST", "/slow", key("c")) })
	<-inside
	if resp, _ := m.ask("POST", "/slow", key("c")); resp.StatusCode != 409 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a twin: %d %v", resp.StatusCode, resp.Header)
	}
	close(leave)
	first.Wait()
	ran.Store(0)
	if resp, _ := m.ask("POST", "/ill", key("d")); resp.StatusCode != 500 {
		t.Errorf("a failure: %d", resp.StatusCode)
	}
	if resp, body := m.ask("POST", "/ill", key("d")); resp.StatusCode != 201 || body != "order 2" {
		t.Errorf("after a failure: %d %q", resp.StatusCode, body)
	}
}

// A client that goes away in the middle of the answer asks again, and gets it.
func TestAnswerOutlivesItsClient(t *testing.T) {
	var ran atomic.Int32
	gone := make(chan struct{})
	m := guarded(t, `{"idempotency":{}}`, func(w http.ResponseWriter, r *http.Request) {
		ran.Add(1)
		io.WriteString(w, "first ")
		w.(http.Flusher).Flush()
		<-gone
		for range 100 { // more than a socket whose other end is closed takes without a word
			io.WriteString(w, strings.Repeat("x", 100))
			w.(http.Flusher).Flush()
		}
	})
	c, r := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nIdempotency-Key: a\r\nContent-Length: 0\r\n\r\n")
	skipHead(r)
	c.Close()
	close(gone)
	until(t, "", func() string {
		resp, body := m.ask("POST", "/", http.Header{"Idempotency-Key": {"a"}})
		switch {
		case resp.StatusCode == 409:
			return "the first has not ended"
		case resp.StatusCode != 200 || len(body) != 6+100*100 || resp.Header.Get("Idempotency-Replayed") != "true":
			t.Fatalf("%d, %d bytes, %v", resp.StatusCode, len(body), resp.Header)
		}
		return ""
	})
	if n := ran.Load(); n != 1 {
		t.Errorf("it ran %d times", n)
	}
}

var cachedSpec = resilience.CachedSpec{MaxAge: time.Minute, MaxEntries: 3}

func TestKeeperForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(&cachedSpec)
		for i := range 5 {
			k.put(&kept{key: keeperKey{byte(i)}, at: time.Now()})
		}
		if k.get(keeperKey{0}, time.Now()) != nil || k.get(keeperKey{4}, time.Now()) == nil || k.order.Len() != 3 {
			t.Error("the oldest of five goes where there is room for three")
		}
		time.Sleep(cachedSpec.MaxAge + time.Second)
		if k.get(keeperKey{4}, time.Now()) != nil || k.order.Len() != 2 {
			t.Error("what is too old is no answer")
		}
	})
}

// An answer without a body is given again without one.
func TestEmptyAnswerIsReplayed(t *testing.T) {
	m := guarded(t, `{"idempotency":{}}`, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })
	for range 2 {
		_, r := m.raw("POST / HTTP/1.1\r\nHost: shop\r\nIdempotency-Key: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		if resp, _ := m.read(r, "POST"); resp.StatusCode != 204 || len(resp.Header["Content-Length"]) != 0 {
			t.Errorf("%d %v", resp.StatusCode, resp.Header)
		}
	}
}
