package resilience

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// script is a RoundTripper that answers each attempt as the next line says.
type script struct {
	mu       sync.Mutex
	answers  []reply
	bodies   []string // that were sent
	requests []*http.Request
	open     atomic.Int64 // response bodies that nobody closed
}

type reply struct {
	status int
	header http.Header
	body   string
	err    error
	takes  time.Duration // until the head
	slow   time.Duration // until the end of the body
}

func (s *script) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := ""
	if req.Body != nil {
		b, _ := io.ReadAll(req.Body)
		sent = string(b)
		req.Body.Close()
	}
	s.mu.Lock()
	n := len(s.requests)
	s.requests, s.bodies = append(s.requests, req), append(s.bodies, sent)
	r := s.answers[min(n, len(s.answers)-1)]
	s.mu.Unlock()
	if err := work(req.Context(), r.takes, r.err); err != nil {
		return nil, err
	}
	header := r.header.Clone()
	if header == nil {
		header = http.Header{}
	}
	s.open.Add(1)
	body := &scriptBody{script: s, ctx: req.Context(), Reader: strings.NewReader(r.body), slow: r.slow}
	return &http.Response{StatusCode: r.status, Header: header, Body: body, ContentLength: int64(len(r.body)), Request: req}, nil
}

type scriptBody struct {
	io.Reader
	script *script
	ctx    context.Context
	slow   time.Duration
	closed atomic.Bool
}

func (b *scriptBody) Read(p []byte) (int, error) {
	if err := work(b.ctx, b.slow, nil); err != nil {
		return 0, err
	}
	b.slow = 0
	return b.Reader.Read(p)
}

func (b *scriptBody) Close() error {
	if b.closed.CompareAndSwap(false, true) {
		b.script.open.Add(-1)
	}
	return nil
}

func ask(t testing.TB, tr *Transport, req *http.Request) (*http.Response, string, error) {
	t.Helper()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	return resp, string(body), err
}

func request(method, body string) *http.Request {
	req, _ := http.NewRequest(method, "http://inventory/items?limit=5", strings.NewReader(body))
	if body == "" {
		req.Body, req.GetBody = nil, nil
	}
	return req
}

// stream hides that a body could be read again.
func stream(req *http.Request) *http.Request {
	req.GetBody, req.ContentLength = nil, -1
	req.Body = io.NopCloser(req.Body)
	return req
}

func withKey(req *http.Request, name string) *http.Request {
	req.Header.Set(name, "k1")
	return req
}

func TestTransportRetries(t *testing.T) {
	retry := Spec{Retry: &RetrySpec{Backoff: BackoffSpec{Initial: 100 * time.Millisecond, Jitter: NoJitter}}}
	with := func(change func(*Spec)) Spec {
		s := retry.clone()
		change(&s)
		return s
	}
	dial := &net.OpError{Op: "dial", Err: errors.New("refused")}
	broken := errors.New("connection reset")
	big := strings.Repeat("x", replayBytes+1)
	after := func(v string) http.Header { return http.Header{"Retry-After": {v}} }
	for _, tc := range []struct {
		name    string
		spec    Spec
		req     *http.Request
		answers []reply
		status  int // 0: an error
		sent    int
		takes   time.Duration
	}{
		{"good", retry, request("GET", ""), []reply{{status: 200}}, 200, 1, 0},
		{"503, then good", retry, request("GET", ""), []reply{{status: 503}, {status: 200}}, 200, 2, 100 * time.Millisecond},
		{"the last answer as it is", retry, request("GET", ""), []reply{{status: 503, body: "sorry"}}, 503, 3, 300 * time.Millisecond},
		{"500 is an answer", retry, request("GET", ""), []reply{{status: 500}}, 500, 1, 0},
		{"a broken connection", retry, request("GET", ""), []reply{{err: broken}, {status: 200}}, 200, 2, 100 * time.Millisecond},
		{"always broken", retry, request("GET", ""), []reply{{err: broken}}, 0, 3, 300 * time.Millisecond},
		{"a POST may have been done", retry, request("POST", "a"), []reply{{err: broken}}, 0, 1, 0},
		{"a POST that answered 503, too", retry, request("POST", "a"), []reply{{status: 503}}, 503, 1, 0},
		{"a POST that was never sent", retry, request("POST", "a"), []reply{{err: dial}, {status: 200}}, 200, 2, 100 * time.Millisecond},
		{"a POST with a key", retry, withKey(request("POST", "a"), "Idempotency-Key"), []reply{{status: 503}, {status: 200}}, 200, 2, 100 * time.Millisecond},
		{"a POST with a key of another name", with(func(s *Spec) { s.Idempotency = &IdempotencySpec{Header: "X-Key"} }),
			withKey(request("POST", "a"), "X-Key"), []reply{{status: 503}, {status: 200}}, 200, 2, 100 * time.Millisecond},
		{"a POST that the spec allows", with(func(s *Spec) { s.Retry.Methods = []string{"POST"} }),
			request("POST", "a"), []reply{{status: 503}, {status: 200}}, 200, 2, 100 * time.Millisecond},
		{"a small stream", retry, stream(request("PUT", "abc")), []reply{{status: 503}, {status: 200}}, 200, 2, 100 * time.Millisecond},
		{"a big stream", retry, stream(request("PUT", big)), []reply{{status: 503}, {status: 200}}, 503, 1, 0},
		{"a big body that can be had again", retry, request("PUT", big), []reply{{status: 503}, {status: 200}}, 200, 2, 100 * time.Millisecond},
		{"Retry-After in seconds", retry, request("GET", ""), []reply{{status: 429, header: after("3")}, {status: 200}}, 200, 2, 3 * time.Second},
		{"Retry-After as a date", retry, request("GET", ""), []reply{{status: 503, header: after("Sat, 01 Jan 2000 00:00:07 GMT")}, {status: 200}}, 200, 2, 7 * time.Second},
		{"Retry-After in the past", retry, request("GET", ""), []reply{{status: 503, header: after("Sat, 01 Jan 1999 00:00:07 GMT")}, {status: 200}}, 200, 2, 100 * time.Millisecond},
		{"Retry-After beyond the timeout", with(func(s *Spec) { s.Timeout = time.Second }), request("GET", ""),
			[]reply{{status: 503, header: after("3")}}, 503, 1, 0},
		{"Retry-After of another status", retry, request("GET", ""), []reply{{status: 502, header: after("3")}, {status: 200}}, 200, 2, 100 * time.Millisecond},
		{"an attempt that hangs", with(func(s *Spec) { s.AttemptTimeout = time.Second }), request("GET", ""),
			[]reply{{takes: time.Hour}, {status: 200}}, 200, 2, 1100 * time.Millisecond},
		{"a call that hangs", with(func(s *Spec) { s.Timeout = time.Second }), request("GET", ""), []reply{{takes: time.Hour}}, 0, 1, time.Second},
		{"a discarded body that hangs", retry, request("GET", ""), []reply{{status: 503, slow: time.Hour}, {status: 200}}, 200, 2, 150 * time.Millisecond},
	} {
		for _, hedged := range []bool{false, true} {
			t.Run(tc.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					spec := tc.spec
					spec.Bulkhead, spec.AdaptiveConcurrency = &BulkheadSpec{MaxConcurrentCalls: 9}, &AdaptiveSpec{}
					if hedged {
						spec.Hedge = &HedgeSpec{Delay: time.Hour}
					}
					base := &script{answers: tc.answers}
					tr := &Transport{Policy: mustNew(t, spec), Base: base}
					req := tc.req.Clone(t.Context())
					want := ""
					if body := tc.req.Body; body != nil {
						b, _ := io.ReadAll(body)
						want = string(b)
						req.Body, tc.req.Body = io.NopCloser(bytes.NewReader(b)), io.NopCloser(bytes.NewReader(b))
					}
					start := time.Now()
					resp, _, err := ask(t, tr, req)
					if took := time.Since(start); took != tc.takes {
						t.Errorf("took %v, want %v", took, tc.takes)
					}
					if (err != nil) != (tc.status == 0) || err == nil && resp.StatusCode != tc.status {
						t.Errorf("got %v, %v, want %d", resp, err, tc.status)
					}
					if len(base.requests) != tc.sent {
						t.Errorf("sent %d times, want %d", len(base.requests), tc.sent)
					}
					for i, got := range base.bodies {
						if got != want {
							t.Errorf("attempt %d had %d bytes of %d", i+1, len(got), len(want))
						}
					}
					if n := base.open.Load(); n != 0 {
						t.Errorf("%d responses were not closed", n)
					}
					nothingTaken(t, tr.Policy)
				})
			})
		}
	}
}

func TestTransportHedges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustNew(t, Spec{Hedge: &HedgeSpec{Delay: 100 * time.Millisecond}, CircuitBreaker: &BreakerSpec{}})
		base := &script{answers: []reply{{status: 200, takes: time.Second, body: "slow"}, {status: 200, takes: 50 * time.Millisecond, body: "quick"}}}
		tr := &Transport{Policy: p, Base: base}
		start := time.Now()
		_, body, err := ask(t, tr, request("PUT", "payload"))
		if err != nil || body != "quick" || time.Since(start) != 150*time.Millisecond {
			t.Errorf("got %q, %v after %v", body, err, time.Since(start))
		}
		p.Wait()
		if got, want := p.Breaker().Counts(time.Now()), (WindowCounts{Calls: 1}); got != want || time.Since(start) != 150*time.Millisecond {
			t.Errorf("counted %+v, the loser ended after %v", got, time.Since(start))
		}
		if base.bodies[0] != "payload" || base.bodies[1] != "payload" {
			t.Errorf("sent %q", base.bodies)
		}

		*base = script{answers: []reply{{status: 200, takes: time.Second, body: "slow"}}}
		if _, body, err := ask(t, tr, request("POST", "payload")); err != nil || body != "slow" || len(base.requests) != 1 {
			t.Errorf("a POST: %q, %v, sent %d times", body, err, len(base.requests))
		}
	})
}

// A loser that answers at the same time is closed, too.
func TestTransportClosesLosers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := &script{answers: []reply{{status: 200, takes: 150 * time.Millisecond}, {status: 200, takes: 50 * time.Millisecond}}}
		p := mustNew(t, Spec{Hedge: &HedgeSpec{Delay: 100 * time.Millisecond}, Bulkhead: &BulkheadSpec{MaxConcurrentCalls: 5}})
		tr := &Transport{Policy: p, Base: base}
		for range 20 {
			base.requests = nil
			if _, _, err := ask(t, tr, request("GET", "")); err != nil {
				t.Fatal(err)
			}
			p.Wait()
		}
		if n := base.open.Load(); n != 0 {
			t.Errorf("%d responses were not closed", n)
		}
	})
}

func TestTransportCallsLastUntilTheBodyIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := Spec{AttemptTimeout: time.Second, Bulkhead: &BulkheadSpec{MaxConcurrentCalls: 1}, CircuitBreaker: &BreakerSpec{}}
		p := mustNew(t, spec)
		base := &script{answers: []reply{{status: 200, body: "abc", slow: time.Hour}}}
		tr := &Transport{Policy: p, Base: base}
		start := time.Now()
		resp, err := tr.RoundTrip(request("GET", ""))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tr.RoundTrip(request("GET", "")); !errors.Is(err, ErrBulkheadFull) {
			t.Errorf("while a body is read: %v", err)
		}
		_, err = io.ReadAll(resp.Body)
		if !errors.Is(err, ErrAttemptTimeout) || time.Since(start) != time.Second {
			t.Errorf("a body that hangs: %v after %v", err, time.Since(start))
		}
		if n := p.Bulkhead().InUse(); n != 0 {
			t.Error("the call goes on after its body broke")
		}
		resp.Body.Close()
		if got, want := p.Breaker().Counts(time.Now()), (WindowCounts{Calls: 2, Failures: 1, Slow: 1}); got != want {
			t.Errorf("a good head and a bad body counted as %+v, want %+v", got, want)
		}

		ctx, cancel := context.WithCancel(t.Context())
		resp, err = tr.RoundTrip(request("GET", "").WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := io.ReadAll(resp.Body); err != context.Canceled {
			t.Errorf("the caller cancelled: %v", err)
		}
		resp.Body.Close()
		if got := p.Breaker().Counts(time.Now()).Failures; got != 1 {
			t.Error("the caller's cancellation is a failure")
		}
		resp, _ = tr.RoundTrip(request("GET", ""))
		resp.Body.Close() // unread
		if p.Bulkhead().InUse() != 0 || base.open.Load() != 0 {
			t.Error("closing an unread body does not end the call")
		}
	})
}

func TestTransportCounts(t *testing.T) {
	for _, tc := range []struct {
		answer   reply
		failures uint32
	}{
		{reply{status: 200}, 0}, {reply{status: 404}, 0}, {reply{status: 429}, 0},
		{reply{status: 500}, 1}, {reply{status: 503}, 1}, {reply{err: errService}, 1},
	} {
		p := mustNew(t, Spec{CircuitBreaker: &BreakerSpec{}})
		_, _, _ = ask(t, &Transport{Policy: p, Base: &script{answers: []reply{tc.answer}}}, request("GET", ""))
		if got := p.Breaker().Counts(time.Now()); int(got.Failures) != int(tc.failures) || int(got.Calls) != 1 {
			t.Errorf("%+v: %+v", tc.answer, got)
		}
	}
}

func TestTransportPanics(t *testing.T) {
	for _, hedge := range []*HedgeSpec{nil, {Delay: time.Hour}} {
		spec := fullSpec()
		spec.Hedge = hedge
		p := mustNew(t, spec)
		tr := &Transport{Policy: p, Base: roundTripper(func(*http.Request) (*http.Response, error) { panic("boom") })}
		func() {
			defer func() {
				if got := recover(); got != "boom" {
					t.Errorf("panicked with %v", got)
				}
			}()
			_, _ = tr.RoundTrip(request("GET", ""))
		}()
		nothingTaken(t, p)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

type closeCounter struct {
	io.Reader
	closed int
}

func (c *closeCounter) Close() error { c.closed++; return nil }

// http.RoundTripper: the body is closed, also when nothing was sent.
func TestTransportClosesRequests(t *testing.T) {
	for name, spec := range map[string]Spec{
		"open circuit": {CircuitBreaker: &BreakerSpec{Mode: ModeForcedOpen}, Retry: &RetrySpec{}},
		"full":         {RateLimit: &RateLimitSpec{Requests: 1, Period: time.Hour}},
		"sent":         {Retry: &RetrySpec{}},
	} {
		for _, method := range []string{"PUT", "POST"} {
			p := mustNew(t, spec)
			if name == "full" {
				p.plan.Load().rate.Allow(time.Now())
			}
			body := &closeCounter{Reader: strings.NewReader("abc")}
			req := request(method, "")
			req.Body, req.ContentLength = body, 3
			_, _, _ = ask(t, &Transport{Policy: p, Base: &script{answers: []reply{{status: 200}}}}, req)
			if body.closed == 0 {
				t.Errorf("%s, %s: the body was not closed", name, method)
			}
		}
	}
}

func TestTransportFallback(t *testing.T) {
	static := &FallbackSpec{Status: 200, Headers: map[string]string{"content-type": "application/json"}, Body: `{"status":"unknown"}`}
	held := &BreakerSpec{Mode: ModeForcedOpen}
	for _, tc := range []struct {
		name   string
		spec   Spec
		answer reply
		reason string // "": no fallback
	}{
		{"open circuit", Spec{Fallback: static, CircuitBreaker: held}, reply{status: 200}, "circuit_open"},
		{"error", Spec{Fallback: static}, reply{err: errService}, "upstream_error"},
		{"failing status", Spec{Fallback: static}, reply{status: 500}, "upstream_error"},
		{"timeout", Spec{Fallback: static, Timeout: time.Second}, reply{takes: time.Hour}, "timeout"},
		{"good", Spec{Fallback: static}, reply{status: 200, body: "ok"}, ""},
		{"not found is good", Spec{Fallback: static}, reply{status: 404}, ""},
		{"another service's", Spec{Fallback: &FallbackSpec{Service: "backup"}}, reply{status: 500}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				base := &script{answers: []reply{tc.answer}}
				tr := &Transport{Policy: mustNew(t, tc.spec), Base: base}
				resp, body, err := ask(t, tr, request("GET", ""))
				if err != nil {
					t.Fatal(err)
				}
				if tc.reason == "" {
					if resp.StatusCode != tc.answer.status || body != tc.answer.body || resp.Header.Get("X-Weft-Reason") != "" {
						t.Errorf("got %d %q %v", resp.StatusCode, body, resp.Header)
					}
				} else {
					want := http.Header{"Content-Type": {"application/json"}, "Content-Length": {"20"}, "X-Weft-Reason": {tc.reason}, "X-Weft-Fallback": {"static"}}
					if resp.StatusCode != 200 || body != static.Body || !reflect.DeepEqual(resp.Header, want) {
						t.Errorf("got %d %q %v", resp.StatusCode, body, resp.Header)
					}
				}
				if n := base.open.Load(); n != 0 {
					t.Errorf("%d responses were not closed", n)
				}
			})
		})
	}
	t.Run("a caller who cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		tr := &Transport{Policy: mustNew(t, Spec{Fallback: static}), Base: &script{}}
		if _, _, err := ask(t, tr, request("GET", "").WithContext(ctx)); err != context.Canceled {
			t.Errorf("got %v", err)
		}
	})
}

func TestTransportLastGoodAnswer(t *testing.T) {
	header := func(pairs ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(pairs); i += 2 {
			h.Set(pairs[i], pairs[i+1])
		}
		return h
	}
	for _, tc := range []struct {
		name    string
		spec    CachedSpec
		first   *http.Request
		answer  reply
		later   time.Duration
		second  *http.Request
		kept    bool
		partial bool // the first body is not read
	}{
		{"kept", CachedSpec{}, request("GET", ""), reply{status: 200, body: "abc", header: header("Etag", "1")}, 10 * time.Minute, request("GET", ""), true, false},
		{"too old", CachedSpec{}, request("GET", ""), reply{status: 200, body: "abc"}, 10*time.Minute + 1, request("GET", ""), false, false},
		{"too much", CachedSpec{MaxBodyBytes: 2}, request("GET", ""), reply{status: 200, body: "abc"}, 0, request("GET", ""), false, false},
		{"not read", CachedSpec{}, request("GET", ""), reply{status: 200, body: "abc"}, 0, request("GET", ""), false, true},
		{"a POST", CachedSpec{}, request("POST", ""), reply{status: 200, body: "abc"}, 0, request("POST", ""), false, false},
		{"another method", CachedSpec{}, request("GET", ""), reply{status: 200, body: "abc"}, 0, request("HEAD", ""), false, false},
		{"somebody else's", CachedSpec{}, request("GET", ""), reply{status: 200, body: "abc"}, 0, withKey(request("GET", ""), "Authorization"), false, false},
		{"no-store", CachedSpec{}, request("GET", ""), reply{status: 200, header: header("Cache-Control", "private, No-Store")}, 0, request("GET", ""), false, false},
		{"varies", CachedSpec{}, request("GET", ""), reply{status: 200, header: header("Vary", "accept, x-tenant")}, 0, request("GET", ""), false, false},
		{"varies by what is known", CachedSpec{}, request("GET", ""), reply{status: 200, body: "abc", header: header("Vary", "accept, Cookie")}, 0, request("GET", ""), true, false},
		{"sets a cookie", CachedSpec{}, request("GET", ""), reply{status: 200, header: header("Set-Cookie", "a=b")}, 0, request("GET", ""), false, false},
		{"moved", CachedSpec{}, request("GET", ""), reply{status: 302}, 0, request("GET", ""), false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				base := &script{answers: []reply{tc.answer, {status: 503}}}
				tr := &Transport{Policy: mustNew(t, Spec{Fallback: &FallbackSpec{Cached: &tc.spec}}), Base: base}
				resp, err := tr.RoundTrip(tc.first)
				if err != nil {
					t.Fatal(err)
				}
				if !tc.partial {
					_, _ = io.ReadAll(resp.Body)
				}
				resp.Body.Close()
				time.Sleep(tc.later)
				resp, body, err := ask(t, tr, tc.second)
				if err != nil {
					t.Fatal(err)
				}
				if kept := resp.StatusCode == tc.answer.status; kept != tc.kept {
					t.Fatalf("got %d", resp.StatusCode)
				}
				if tc.kept && (body != "abc" || resp.Header.Get("X-Weft-Fallback") != "cached" || resp.Header.Get("Etag") != tc.answer.header.Get("Etag") || resp.Header.Get("Age") == "") {
					t.Errorf("got %q %v", body, resp.Header)
				}
			})
		})
	}
}

func TestLastAnswersAreBounded(t *testing.T) {
	base := &script{answers: []reply{{status: 200, body: "x"}}}
	tr := &Transport{Policy: mustNew(t, Spec{Fallback: &FallbackSpec{Cached: &CachedSpec{MaxEntries: 2}}}), Base: base}
	get := func(path string) int {
		req, _ := http.NewRequest("GET", "http://inventory/"+path, nil)
		resp, _, err := ask(t, tr, req)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	get("a")
	get("b")
	get("a")
	get("c")
	base.answers, base.requests = []reply{{status: 500}}, nil
	if a, b, c := get("a"), get("b"), get("c"); a != 200 || b != 500 && b != 200 || c != 200 || len(tr.good.answers) != 2 {
		t.Errorf("a %d, b %d, c %d, %d are kept", a, b, c, len(tr.good.answers))
	} else if b == 200 {
		t.Error("b is kept, which was asked for least recently")
	}
}

// A body that is read before it is sent does not outlast the call's timeout.
func TestTransportReadsBodiesInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := mustNew(t, Spec{Timeout: time.Second, Retry: &RetrySpec{}, Bulkhead: &BulkheadSpec{MaxConcurrentCalls: 1}})
		tr := &Transport{Policy: p, Base: &script{answers: []reply{{status: 200}}}}
		for _, patience := range []time.Duration{time.Hour, time.Millisecond} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			req := request("PUT", "").WithContext(ctx)
			var writer *io.PipeWriter
			req.Body, writer = io.Pipe()
			start := time.Now()
			_, _, err := ask(t, tr, req)
			if want := min(patience, time.Second); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != want {
				t.Errorf("%v after %v, want a timeout after %v", err, time.Since(start), want)
			}
			cancel()
			writer.Close()
		}
		if p.Bulkhead().InUse() != 0 {
			t.Error("the call goes on")
		}
	})
}

// The connection of a discarded response is used again.
func TestTransportReusesConnections(t *testing.T) {
	var conns atomic.Int64
	var calls atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1)%2 == 1 {
			w.WriteHeader(503)
			_, _ = io.WriteString(w, strings.Repeat("x", 1000))
			return
		}
		_, _ = io.Copy(w, r.Body)
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	base := &http.Transport{}
	p := mustNew(t, Spec{Timeout: 10 * time.Second, AttemptTimeout: 5 * time.Second, Retry: &RetrySpec{Backoff: BackoffSpec{Initial: time.Millisecond}}})
	client := &http.Client{Transport: &Transport{Policy: p, Base: base}}
	for range 5 {
		req, _ := http.NewRequest("PUT", srv.URL, strings.NewReader("hello"))
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != "hello" {
			t.Errorf("got %q, %v", body, err)
		}
	}
	client.CloseIdleConnections()
	if calls.Load() != 10 || conns.Load() != 1 {
		t.Errorf("%d requests on %d connections, want 10 on 1", calls.Load(), conns.Load())
	}
}

func TestTransportWithoutPolicy(t *testing.T) {
	base := &script{answers: []reply{{status: 503}}}
	if resp, _, err := ask(t, &Transport{Base: base}, request("GET", "")); err != nil || resp.StatusCode != 503 || len(base.requests) != 1 {
		t.Errorf("got %v, %v", resp, err)
	}
}

func TestTransportPriorityHeader(t *testing.T) {
	p := mustNew(t, Spec{AdaptiveConcurrency: &AdaptiveSpec{PriorityHeader: "x-priority"}})
	tr := &Transport{Policy: p}
	for value, want := range map[string]Priority{"": Normal, "CRITICAL": Critical, "low": Low, "urgent": Normal} {
		req := request("GET", "")
		req.Header.Set("X-Priority", value)
		if got := tr.Policy.priorityOf(req); got != want {
			t.Errorf("%q is %v", value, got)
		}
	}
}

func TestTransportUpgrade(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	p := mustNew(t, Spec{Bulkhead: &BulkheadSpec{MaxConcurrentCalls: 1}})
	tr := &Transport{Policy: p, Base: roundTripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 101, Header: http.Header{}, Body: near}, nil
	})}
	resp, err := tr.RoundTrip(request("GET", ""))
	if err != nil {
		t.Fatal(err)
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || p.Bulkhead().InUse() != 1 {
		t.Fatal("the connection cannot be written to, or is not counted")
	}
	go func() { _, _ = io.Copy(far, far) }()
	var echo [2]byte
	if _, err := conn.Write([]byte("hi")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, echo[:]); err != nil || string(echo[:]) != "hi" {
		t.Errorf("got %q, %v", echo, err)
	}
	conn.Close()
	if p.Bulkhead().InUse() != 0 {
		t.Error("the call goes on after the connection was closed")
	}
}

func BenchmarkTransport(b *testing.B) {
	resp := &http.Response{StatusCode: 200, Header: http.Header{}}
	base := roundTripper(func(*http.Request) (*http.Response, error) {
		r := *resp
		r.Body = http.NoBody
		return &r, nil
	})
	tr := &Transport{Base: base, Policy: mustNew(b, Spec{Timeout: time.Second, Retry: &RetrySpec{}, CircuitBreaker: &BreakerSpec{}})}
	req := request("GET", "").WithContext(b.Context())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tr.RoundTrip(req); err != nil {
			b.Fatal(err)
		}
	}
}

func TestBigAnswersOfUnknownLengthAreNotKept(t *testing.T) {
	for size, want := range map[int]int{10: 1, 11: 0} {
		var l lastAnswers
		resp := &http.Response{StatusCode: 200, ContentLength: -1, Body: io.NopCloser(strings.NewReader(strings.Repeat("x", size)))}
		resp = l.keep(request("GET", ""), resp, &CachedSpec{MaxBodyBytes: 10})
		_, _ = io.Copy(io.Discard, resp.Body)
		if got := len(l.answers); got != want {
			t.Errorf("%d bytes of at most 10: %d kept", size, got)
		}
	}
}
