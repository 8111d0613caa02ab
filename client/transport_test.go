package client_test

import (
	"context"
	"errors"
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
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/resilience"
)

// instance is a process of a service.
type instance struct {
	*httptest.Server
	addr  string
	asked atomic.Int64
}

func serve(t *testing.T, h http.HandlerFunc) *instance {
	t.Helper()
	in := new(instance)
	in.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in.asked.Add(1)
		h(w, r)
	}))
	in.addr = in.Listener.Addr().String()
	t.Cleanup(func() { in.CloseClientConnections(); in.Close() })
	return in
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }
}

// nobody is an address at which nobody listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().String()
}

// get returns the body of a response, or "<status>" or the error.
func get(t *testing.T, web *http.Client, url string) (string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	check(t, err)
	return do(web, r)
}

func do(web *http.Client, r *http.Request) (string, error) {
	resp, err := web.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Sprintf("<%d> %s", resp.StatusCode, body), err
	}
	return string(body), err
}

func TestTheNamesOfServicesAreHosts(t *testing.T) {
	w := open(t)
	order, shop := serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s", r.Host, r.URL) }), serve(t, says("shop"))
	w.set("order-service", order.addr)
	w.set("order-service.shop", shop.addr)
	web := w.client.HTTPClient()
	for url, want := range map[string]string{
		"http://order-service/a?b=c":                          "order-service /a?b=c",
		"http://Order-Service:8080/":                          "Order-Service:8080 /",
		"http://order-service.default/":                       "order-service.default /",
		"http://order-service.default.svc.cluster.local:80/x": "order-service.default.svc.cluster.local:80 /x",
		"http://order-service.service.consul/":                "order-service.service.consul /",
		"http://order-service.shop/":                          "shop",
	} {
		if got, err := get(t, web, url); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", url, got, err, want)
		}
	}
	resp, err := web.Get("http://order-service/a")
	check(t, err)
	resp.Body.Close()
	if resp.Request.URL.String() != "http://order-service/a" {
		t.Errorf("the response is to %s", resp.Request.URL)
	}
	_, err = get(t, web, "http://nobody/")
	if weft.KindOf(err) != weft.NotFound {
		t.Errorf("a service that is not there: %v", err)
	}
}

// base notes which requests come to it, and answers.
type base struct {
	mu    sync.Mutex
	hosts []string
}

func (b *base) RoundTrip(r *http.Request) (*http.Response, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hosts = append(b.hosts, r.URL.Scheme+" "+r.URL.Host+" "+r.Host+" "+r.Header.Get("Traceparent"))
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("base")), Request: r}, nil
}

func TestOtherHostsAreTheBases(t *testing.T) {
	w := open(t)
	w.set("order-service", "10.0.0.1:80")
	b := new(base)
	web := &http.Client{Transport: w.client.Transport(b)}
	for _, url := range []string{"https://order-service/", "http://127.0.0.1:1/", "http://[::1]:1/", "http://localhost/", "http://weft.localhost/",
		"http://example.com/", "http://www.example.com/", "http://example.com/again"} {
		r, err := http.NewRequestWithContext(client.WithTrace(t.Context(), http.Header{"Traceparent": {parent}}), "GET", url, nil)
		check(t, err)
		b.hosts = nil
		if got, err := do(web, r); err != nil || got != "base" {
			t.Errorf("%s: %q, %v", url, got, err)
		}
		if want := fmt.Sprint(r.URL.Scheme, " ", r.URL.Host, " ", r.Host, " "); len(b.hosts) != 1 || b.hosts[0] != want {
			t.Errorf("%s: the base saw %q, want %q as it was", url, b.hosts, want)
		}
	}
	w.mu.Lock()
	if w.watches != 1 {
		t.Errorf("the server was asked %d times, want once for example.com", w.watches)
	}
	w.mu.Unlock()
	b.hosts = nil
	if got, err := get(t, web, "http://order-service:81/"); err != nil || got != "base" || b.hosts[0] != "http 10.0.0.1:80 order-service:81 " {
		t.Errorf("a service: %q, %v; the base saw %q", got, err, b.hosts)
	}
	// Without a weft server domains are still there.
	w.stop()
	if got, err := get(t, web, "http://example.org/"); err != nil || got != "base" {
		t.Errorf("without a server: %q, %v", got, err)
	}
	w.restart(false)
}

func TestCallsAreBalanced(t *testing.T) {
	w := open(t)
	var list []*instance
	var addrs []string
	for range 3 {
		in := serve(t, says("ok"))
		list, addrs = append(list, in), append(addrs, in.addr)
	}
	w.change("order-service", func(s *client.State) { s.LoadBalancer = weft.RoundRobin })
	w.set("order-service", addrs...)
	w.change("order-service", func(s *client.State) { s.Endpoints[2].Weight = 2 })
	web := w.client.HTTPClient()
	for range 40 {
		if got, err := get(t, web, "http://order-service/"); err != nil || got != "ok" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if a, b, c := list[0].asked.Load(), list[1].asked.Load(), list[2].asked.Load(); a != 10 || b != 10 || c != 20 {
		t.Errorf("asked %d, %d and %d times, want 10, 10 and 20", a, b, c)
	}
}

func TestWhatNobodyHasSeenGoesToAnother(t *testing.T) {
	w := open(t)
	alive := serve(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	w.set("order-service", nobody(t), alive.addr, nobody(t))
	web := w.client.HTTPClient()
	for i := range 20 {
		text := fmt.Sprint("order ", i)
		r, err := http.NewRequestWithContext(t.Context(), "POST", "http://order-service/", strings.NewReader(text))
		check(t, err)
		if got, err := do(web, r); err != nil || got != text {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if n := alive.asked.Load(); n != 20 {
		t.Errorf("the one that lives was asked %d times", n)
	}
}

func TestWhatBrokeOffIsRepeatedIfThatIsSafe(t *testing.T) {
	for _, tt := range []struct {
		method, key string
		again       bool
	}{{"GET", "", true}, {"PUT", "", true}, {"DELETE", "", true}, {"POST", "", false}, {"PATCH", "", false}, {"POST", "k1", true}} {
		w := open(t)
		broken, good := serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), serve(t, says("ok"))
		w.change("order-service", func(s *client.State) { s.LoadBalancer = weft.RoundRobin })
		w.set("order-service", broken.addr, good.addr)
		web := w.client.HTTPClient()
		failed := 0
		for range 4 {
			r, err := http.NewRequestWithContext(t.Context(), tt.method, "http://order-service/", strings.NewReader("x"))
			check(t, err)
			if tt.key != "" {
				r.Header.Set("Idempotency-Key", tt.key)
			}
			if _, err := do(web, r); err != nil {
				failed++
			}
		}
		if broken.asked.Load() == 0 || tt.again != (failed == 0) {
			t.Errorf("%s %s: %d of 4 failed, the broken one was asked %d times", tt.method, tt.key, failed, broken.asked.Load())
		}
		web.CloseIdleConnections()
	}
}

func TestAnswersAreNotRepeatedWithoutAPolicy(t *testing.T) {
	w := open(t)
	in := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	w.set("order-service", in.addr)
	if got, err := get(t, w.client.HTTPClient(), "http://order-service/"); err != nil || got != "<503> " || in.asked.Load() != 1 {
		t.Errorf("%q, %v; asked %d times", got, err, in.asked.Load())
	}
}

func TestAnEndpointThatDiesInTheMiddle(t *testing.T) {
	w := open(t)
	var addrs []string
	var list []*instance
	for range 3 {
		in := serve(t, says("ok"))
		list, addrs = append(list, in), append(addrs, in.addr)
	}
	w.set("order-service", addrs...)
	web := w.client.HTTPClient()
	var all sync.WaitGroup
	begun := make(chan struct{}, 400)
	for range 4 {
		all.Go(func() {
			for range 100 {
				begun <- struct{}{}
				if got, err := get(t, web, "http://order-service/"); err != nil || got != "ok" {
					t.Errorf("%q, %v", got, err)
				}
			}
		})
	}
	for range 100 {
		<-begun
	}
	list[1].Listener.Close()
	list[1].CloseClientConnections()
	all.Wait()
}

func TestADeadEndpointIsAvoided(t *testing.T) {
	w := open(t)
	alive := serve(t, says("ok"))
	attempts := new(dials)
	web := &http.Client{Transport: w.client.Transport(attempts)}
	w.change("order-service", func(s *client.State) { s.LoadBalancer = weft.RoundRobin })
	w.set("order-service", nobody(t), alive.addr)
	for range 20 {
		_, err := get(t, web, "http://order-service/")
		check(t, err)
	}
	if n := attempts.n.Load(); n < 21 || n > 23 { // once, and again after 250 ms at most
		t.Errorf("%d attempts for 20 calls, want the dead one to be tried about once", n)
	}
	attempts.CloseIdleConnections()
}

// dials counts attempts.
type dials struct {
	http.Transport
	n atomic.Int64
}

func (d *dials) RoundTrip(r *http.Request) (*http.Response, error) {
	d.n.Add(1)
	return d.Transport.RoundTrip(r)
}

func TestNowhereToGo(t *testing.T) {
	w := open(t)
	w.change("resting-service", func(s *client.State) { s.Instances = 2 })
	w.set("meshed-service", "127.0.0.1:1")
	w.change("meshed-service", func(s *client.State) { s.Endpoints[0].Plain = false })
	w.set("database", "127.0.0.1:1")
	w.change("database", func(s *client.State) { s.Endpoints[0].Protocol = weft.TCP })
	web := w.client.HTTPClient()
	for url, want := range map[string]struct {
		kind weft.Kind
		says string
	}{
		"http://resting-service/": {weft.Unavailable, "none of its 2 instances is healthy"},
		"http://meshed-service/":  {weft.Unavailable, "weft run"},
		"http://database/":        {weft.Invalid, "tcp"},
		"http://nobody/":          {weft.NotFound, "weft services"},
	} {
		_, err := get(t, web, url)
		if weft.KindOf(err) != want.kind || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%s: %v, want kind %d and %q", url, err, want.kind, want.says)
		}
	}
}

func TestCallsGoOnWhenTheServerAndTheClientHaveEnded(t *testing.T) {
	w := open(t)
	in := serve(t, says("ok"))
	w.set("order-service", in.addr)
	web := w.client.HTTPClient()
	_, err := get(t, web, "http://order-service/")
	check(t, err)
	w.stop()
	eventually(t, "the state is stale", func() bool {
		s, _ := w.client.Resolve(t.Context(), "order-service")
		return s.Stale
	})
	if got, err := get(t, web, "http://order-service/"); err != nil || got != "ok" {
		t.Errorf("without a server: %q, %v", got, err)
	}
	w.restart(false)
	check(t, w.client.Close())
	if got, err := get(t, web, "http://order-service/"); err != nil || got != "ok" {
		t.Errorf("after Close: %q, %v", got, err)
	}
	web.CloseIdleConnections()
	check(t, w.client.Close()) // for the connection of the last call
}

// The breaker of a ResiliencePolicy.
const breaking = `{"circuitBreaker":{"slidingWindow":{"size":4},"minimumNumberOfCalls":4,"failureRateThreshold":50,"waitDurationInOpenState":"1h"}}`

func TestAPolicyOfTheServerBreaks(t *testing.T) {
	w := open(t)
	failing := atomic.Bool{}
	failing.Store(true)
	in := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if failing.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	w.set("order-service", in.addr)
	w.policy("order-service", breaking)
	web := w.client.HTTPClient()
	for range 4 {
		_, err := get(t, web, "http://order-service/")
		check(t, err)
	}
	_, err := get(t, web, "http://order-service/")
	var rejected *resilience.Rejected
	if !errors.As(err, &rejected) || !errors.Is(err, resilience.ErrCircuitOpen) || in.asked.Load() != 4 {
		t.Fatalf("after four failures: %v; asked %d times", err, in.asked.Load())
	}
	p, err := w.client.Policy(t.Context(), "order-service")
	check(t, err)
	if p.Breaker().State() != resilience.Open || w.log.count("to=open") != 1 {
		t.Errorf("the circuit is %s; log: %s", p.Breaker().State(), w.log.text.String())
	}
	// A person sets it aside, and gives it back.
	for _, held := range []struct {
		state string
		want  resilience.State
	}{{"disabled", resilience.Disabled}, {"forced-open", resilience.ForcedOpen}, {"", resilience.Closed}} {
		w.change("order-service", func(s *client.State) { s.Breaker = held.state })
		eventually(t, "the circuit is "+held.want.String(), func() bool { return p.Breaker().State() == held.want })
	}
	failing.Store(false)
	if got, err := get(t, web, "http://order-service/"); err != nil || got != "" {
		t.Errorf("given back: %q, %v", got, err)
	}
	// One that this client cannot read leaves the last one in force.
	w.policy("order-service", `{"circuitBraker":{}}`)
	eventually(t, "it is told", func() bool { return w.log.count("circuitBraker") > 0 })
	if p.Breaker() == nil {
		t.Error("the last good policy is gone")
	}
	w.change("order-service", func(s *client.State) { s.Resilience = nil })
	eventually(t, "the policy is gone", func() bool { return p.Breaker() == nil })
}

func TestACircuitOutlivesItsServicesAbsence(t *testing.T) {
	w := open(t)
	in := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	w.set("order-service", in.addr)
	w.policy("order-service", breaking)
	web := w.client.HTTPClient()
	for range 4 {
		_, err := get(t, web, "http://order-service/")
		check(t, err)
	}
	w.change("order-service", func(s *client.State) { s.Endpoints, s.Instances, s.Resilience = nil, 0, nil })
	eventually(t, "it is gone", func() bool {
		_, err := w.client.Resolve(t.Context(), "order-service")
		return weft.KindOf(err) == weft.NotFound
	})
	w.set("order-service", in.addr)
	w.policy("order-service", breaking)
	eventually(t, "its circuit is as it was", func() bool {
		_, err := get(t, web, "http://order-service/")
		return errors.Is(err, resilience.ErrCircuitOpen)
	})
}

func TestARetryGoesToAnotherEndpoint(t *testing.T) {
	w := open(t)
	var list []*instance
	var addrs []string
	for i := range 3 {
		in := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if i < 2 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})
		list, addrs = append(list, in), append(addrs, in.addr)
	}
	w.set("order-service", addrs...)
	w.policy("order-service", `{"retry":{"maxAttempts":3,"backoff":{"initial":"1ms"},"budget":{"percent":1000}}}`)
	web := w.client.HTTPClient()
	for range 10 {
		if got, err := get(t, web, "http://order-service/"); err != nil || got != "" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if n := list[2].asked.Load(); n != 10 {
		t.Errorf("the good one was asked %d times for 10 calls", n)
	}
}

func TestHedgesGoToAnotherEndpoint(t *testing.T) {
	w := open(t)
	hang := make(chan struct{})
	defer close(hang)
	slow := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	})
	fast := serve(t, says("fast"))
	w.set("order-service", slow.addr, fast.addr)
	w.policy("order-service", `{"hedge":{"delay":"5ms"}}`)
	web := w.client.HTTPClient()
	for range 10 {
		if got, err := get(t, web, "http://order-service/"); err != nil || got != "fast" {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

func TestHTTP2InPlainTextWithThoseWhoDeclareIt(t *testing.T) {
	w := open(t)
	in := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
	in.Config.Protocols = new(http.Protocols)
	in.Config.Protocols.SetUnencryptedHTTP2(true)
	in.Config.Protocols.SetHTTP1(true)
	in.Start()
	t.Cleanup(func() { in.CloseClientConnections(); in.Close() })
	w.set("old-service", in.Listener.Addr().String())
	w.set("new-service", in.Listener.Addr().String())
	w.change("new-service", func(s *client.State) { s.Endpoints[0].Protocol = weft.HTTP2 })
	web := w.client.HTTPClient()
	for url, want := range map[string]string{"http://old-service/": "HTTP/1.1", "http://new-service/": "HTTP/2.0"} {
		if got, err := get(t, web, url); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %s", url, got, err, want)
		}
	}
}

const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestATraceGoesOn(t *testing.T) {
	w := open(t)
	got := make(chan http.Header, 1)
	called := serve(t, func(_ http.ResponseWriter, r *http.Request) { got <- r.Header })
	w.set("inventory-service", called.addr)
	web := w.client.HTTPClient()
	caller := httptest.NewServer(client.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		onward, _ := http.NewRequestWithContext(r.Context(), "GET", "http://inventory-service/", nil)
		if own := r.Header.Get("Own"); own != "" {
			onward.Header.Set("Traceparent", own)
		}
		if _, err := do(web, onward); err != nil {
			t.Error(err)
		}
		if len(onward.Header) > 1 {
			t.Errorf("the application's request was changed: %v", onward.Header)
		}
	})))
	defer caller.Close()
	ask := func(header http.Header) http.Header {
		r, err := http.NewRequestWithContext(t.Context(), "GET", caller.URL, nil)
		check(t, err)
		r.Header = header
		_, err = do(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, r)
		check(t, err)
		return <-got
	}
	full := http.Header{"Traceparent": {parent}, "Tracestate": {"a=1", "b=2"}, "Baggage": {"user=7"}, "X-Request-Id": {"r1"}, "Authorization": {"secret"}}
	h := ask(full)
	for _, name := range []string{"Traceparent", "Tracestate", "Baggage", "X-Request-Id"} {
		if strings.Join(h[name], ",") != strings.Join(full[name], ",") {
			t.Errorf("%s: %q, want %q", name, h[name], full[name])
		}
	}
	if h.Get("Authorization") != "" {
		t.Error("what is no trace went along")
	}
	// An SDK that writes its own span keeps it, and a foreign tracestate does not
	// get behind it.
	full.Set("Own", strings.Replace(parent, "00f067aa", "11f067aa", 1))
	if h = ask(full); h.Get("Traceparent") != full.Get("Own") || h.Get("Tracestate") != "" || h.Get("Baggage") != "user=7" {
		t.Errorf("with an SDK: %v", h)
	}
	if h = ask(http.Header{}); h.Get("Traceparent") != "" {
		t.Errorf("without a trace: %v", h)
	}
}

func TestBesideASidecarCallsGoToTheSidecar(t *testing.T) {
	sidecar := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/broken" {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "%s %s %s", r.Host, r.URL, r.Header.Get("Traceparent"))
	})
	t.Setenv("WEFT_SERVICE", "web")
	t.Setenv("HTTP_PROXY", "http://"+sidecar.addr)
	w := open(t)
	w.set("order-service.shop", "10.0.0.1:1")
	web := w.client.HTTPClient()
	ctx := client.WithTrace(t.Context(), http.Header{"Traceparent": {parent}})
	for _, host := range []string{"order-service", "order-service.shop", "never-heard-of"} {
		r, err := http.NewRequestWithContext(ctx, "GET", "http://"+host+"/a?b", nil)
		check(t, err)
		if got, err := do(web, r); err != nil || got != host+" /a?b "+parent {
			t.Errorf("%s: %q, %v", host, got, err)
		}
	}
	// On a new connection: for a kept one that ends, net/http takes another.
	web.CloseIdleConnections()
	before := sidecar.asked.Load()
	if _, err := get(t, web, "http://order-service/broken"); err == nil || sidecar.asked.Load() != before+1 {
		t.Errorf("%v after %d attempts: what repeats already must not be repeated", err, sidecar.asked.Load()-before)
	}
	b := new(base)
	if got, err := get(t, &http.Client{Transport: w.client.Transport(b)}, "http://example.com/"); err != nil || got != "base" {
		t.Errorf("a domain: %q, %v", got, err)
	}
}

func TestACallDoesNotWaitForEver(t *testing.T) {
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer mute.Close()
	c, err := client.New(context.Background(), client.At(mute.Addr().String()))
	check(t, err)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", "http://order-service/", nil)
	check(t, err)
	if _, err := do(c.HTTPClient(), r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
