package resilience

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// till is there that a test that would hang fails.
const till = 10 * time.Second

// shop counts the orders that it makes.
type shop struct {
	url    string
	store  IdempotencyStore
	orders atomic.Int32
}

func openShop(t *testing.T, spec IdempotencySpec, store IdempotencyStore, handle http.HandlerFunc) *shop {
	t.Helper()
	once, err := Idempotent(store, spec)
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{store: store}
	server := httptest.NewServer(once(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.orders.Add(1)
		handle(w, r)
	})))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

type got struct {
	status  int
	header  http.Header
	body    string
	trailer http.Header
}

// order sends a request; lines are "Name: value".
func (s *shop) order(t *testing.T, method, path, body string, lines ...string) got {
	t.Helper()
	g, err := s.send(t.Context(), method, path, strings.NewReader(body), lines...)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (s *shop) send(ctx context.Context, method, path string, body io.Reader, lines ...string) (got, error) {
	ctx, cancel := context.WithTimeout(ctx, till)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, s.url+path, body)
	if err != nil {
		return got{}, err
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return got{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return got{resp.StatusCode, resp.Header, string(data), resp.Trailer}, err
}

func TestARepeatGetsTheFirstAnswer(t *testing.T) {
	var s *shop
	s = openShop(t, IdempotencySpec{}, NewMemoryStore(1<<20), func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Add("Set-Cookie", "b=2")
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Set("Location", "/orders/1")
		w.Header().Set("X-Weft-Reason", "of this one only")
		w.WriteHeader(201)
		fmt.Fprintf(w, "order %d: %s", s.orders.Load(), body)
	})
	first := s.order(t, "POST", "/orders?a=1", "one book", "Idempotency-Key: k", "Content-Type: text/plain")
	if first.status != 201 || first.body != "order 1: one book" || first.header.Get("Idempotency-Replayed") != "" {
		t.Fatalf("first: %+v", first)
	}
	again := s.order(t, "POST", "/orders?a=1", "one book", "Idempotency-Key: k", "Content-Type: text/plain")
	if again.header.Get("Idempotency-Replayed") != "true" || s.orders.Load() != 1 {
		t.Errorf("again: %+v, %d orders", again, s.orders.Load())
	}
	again.header.Del("Idempotency-Replayed")
	for _, h := range []http.Header{first.header, again.header} {
		h.Del("Date")
	}
	first.header.Del("X-Weft-Reason")
	if !reflect.DeepEqual(again, first) {
		t.Errorf("again:\n%+v\nfirst:\n%+v", again, first)
	}
	for name, other := range map[string]got{
		"another body":  s.order(t, "POST", "/orders?a=1", "two books", "Idempotency-Key: k", "Content-Type: text/plain"),
		"another query": s.order(t, "POST", "/orders?a=2", "one book", "Idempotency-Key: k", "Content-Type: text/plain"),
		"another type":  s.order(t, "POST", "/orders?a=1", "one book", "Idempotency-Key: k", "Content-Type: text/html"),
	} {
		if other.status != 422 || other.header.Get("X-Weft-Reason") != "idempotency_mismatch" {
			t.Errorf("%s: %+v", name, other)
		}
	}
	if s.orders.Load() != 1 {
		t.Errorf("%d orders", s.orders.Load())
	}
}

func TestStrangersDoNotShareAKey(t *testing.T) {
	var s *shop
	s = openShop(t, IdempotencySpec{}, NewMemoryStore(1<<20), func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, s.orders.Load())
	})
	for i, order := range []struct{ method, path, who string }{
		{"POST", "/a", "Authorization: a"}, {"POST", "/a", "Authorization: b"}, {"POST", "/a", "X: "},
		{"POST", "/b", "Authorization: a"}, {"PATCH", "/a", "Authorization: a"}, {"POST", "/a", "Idempotency-Key-2: "},
	} {
		want := strconv.Itoa(min(i+1, 5))
		if i == 5 {
			want = "3" // nobody, like the third
		}
		if g := s.order(t, order.method, order.path, "", "Idempotency-Key: k", order.who); g.body != want {
			t.Errorf("%v: %q, want %q", order, g.body, want)
		}
	}
}

func TestWhoCalls(t *testing.T) {
	spiffe, _ := url.Parse("spiffe://cluster.local/ns/default/sa/web")
	renewed := &x509.Certificate{URIs: []*url.URL{spiffe}, Subject: pkix.Name{SerialNumber: "2"}}
	requests := []func(*http.Request){
		func(*http.Request) {},
		func(r *http.Request) { r.TLS = &tls.ConnectionState{} }, // the same: no certificate
		func(r *http.Request) {
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{spiffe}}}}
		},
		func(r *http.Request) { r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{renewed}} },
		func(r *http.Request) {
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: "web"}}}}
		},
		func(r *http.Request) { r.Header.Set("Cookie", "session=1") },
		func(r *http.Request) { r.Host = "other.example" },
		func(r *http.Request) { r.Host = "EXAMPLE.com" }, // the same as the first
	}
	once, err := Idempotent(NewMemoryStore(1<<20), IdempotencySpec{}, func(r *http.Request) string { return r.Header.Get("Cookie") })
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	h := once(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran++ }))
	var after []int
	for _, change := range requests {
		r := httptest.NewRequest("POST", "http://example.com/", nil)
		r.Header.Set("Idempotency-Key", "k")
		change(r)
		h.ServeHTTP(httptest.NewRecorder(), r)
		after = append(after, ran)
	}
	if want := []int{1, 1, 2, 2, 3, 4, 5, 5}; !reflect.DeepEqual(after, want) {
		t.Errorf("ran %v, want %v", after, want)
	}
}

func TestATwinHasToWait(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	s := openShop(t, IdempotencySpec{}, NewMemoryStore(1<<20), func(w http.ResponseWriter, _ *http.Request) {
		begun <- struct{}{}
		<-goOn
	})
	first := make(chan got, 1)
	go func() {
		g, _ := s.send(t.Context(), "POST", "/", nil, "Idempotency-Key: k")
		first <- g
	}()
	<-begun
	twin := s.order(t, "POST", "/", "", "Idempotency-Key: k")
	if twin.status != 409 || twin.header.Get("Retry-After") != "1" || twin.header.Get("X-Weft-Reason") != "idempotency_in_flight" {
		t.Errorf("twin: %+v", twin)
	}
	close(goOn)
	if g := <-first; g.status != 200 {
		t.Errorf("first: %+v", g)
	}
	if g := s.order(t, "POST", "/", "", "Idempotency-Key: k"); g.status != 200 || g.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("after it: %+v", g)
	}
}

func TestWhatRunsAgain(t *testing.T) {
	const limit = 100
	flush := func(w http.ResponseWriter) { w.(http.Flusher).Flush() }
	status := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status); fmt.Fprint(w, "see there") }
	}
	for _, tc := range []struct {
		name   string
		handle http.HandlerFunc
		again  bool
		note   string // in the head or in the trailer
	}{
		{"200", func(w http.ResponseWriter, _ *http.Request) {}, false, ""},
		{"an answer of just the limit", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, limit)) }, false, ""},
		{"204", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, false, ""},
		{"304", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(304)
		}, false, ""},
		{"early hints", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(103); w.WriteHeader(404) }, false, ""},
		{"400", status(400), false, ""},
		{"409", status(409), true, ""},
		{"429", status(429), true, ""},
		{"500", status(500), true, ""},
		{"503", status(503), true, ""},
		{"a panic", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, true, ""},
		{"a panic after the answer", func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte("ok"))
			flush(w)
			panic(http.ErrAbortHandler)
		}, true, ""},
		{"an answer over the limit", func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte("begin"))
			flush(w)
			w.Write(make([]byte, limit))
			w.Write([]byte("end"))
		}, true, "answer too large"},
		{"an answer that says it is over the limit", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "101")
			w.Write(make([]byte, limit+1))
		}, true, "answer too large"},
		{"declared trailers", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "Grpc-Status")
			w.Write([]byte("ok"))
			w.Header().Set("Grpc-Status", "0")
		}, true, "answer has trailers"},
		{"undeclared trailers", func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte("ok"))
			flush(w)
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
		}, true, "answer has trailers"},
		{"less than was declared", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			w.Write([]byte("less"))
		}, true, ""},
		{"more than was declared", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "2")
			if _, err := w.Write([]byte("more")); !errors.Is(err, http.ErrContentLength) {
				panic(err)
			}
		}, true, ""},
		{"a body that 204 has not", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(204)
			w.Write([]byte("more"))
		}, true, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := openShop(t, IdempotencySpec{MaxBodyBytes: limit}, NewMemoryStore(1<<20), tc.handle)
			first, err := s.send(t.Context(), "POST", "/", nil, "Idempotency-Key: k")
			note := first.header.Get("X-Weft-Idempotency") + first.trailer.Get("X-Weft-Idempotency")
			if note != tc.note {
				t.Errorf("%q is noted, want %q (%+v, %v)", note, tc.note, first, err)
			}
			again, _ := s.send(t.Context(), "POST", "/", nil, "Idempotency-Key: k")
			if ran := s.orders.Load(); (ran == 2) != tc.again || !tc.again && again.header.Get("Idempotency-Replayed") != "true" {
				t.Errorf("ran %d times; again %+v", ran, again)
			}
			if !tc.again && (again.status != first.status || again.body != first.body) {
				t.Errorf("first %+v, again %+v", first, again)
			}
		})
	}
}

func TestALargeRequestRunsWithoutRegardToItsKey(t *testing.T) {
	s := openShop(t, IdempotencySpec{MaxBodyBytes: 10}, NewMemoryStore(1<<20), func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	})
	const long = "eleven byte"
	for ran, body := range []io.Reader{strings.NewReader(long), struct{ io.Reader }{strings.NewReader(long)}} { // with a length, and chunked
		g, err := s.send(t.Context(), "POST", "/", body, "Idempotency-Key: k")
		if err != nil || g.body != long || g.header.Get("X-Weft-Idempotency") != "body too large" || s.orders.Load() != int32(ran+1) {
			t.Errorf("%d: %+v, %v, ran %d times", ran, g, err, s.orders.Load())
		}
	}
	for range 2 {
		g, err := s.send(t.Context(), "POST", "/", struct{ io.Reader }{strings.NewReader("ten bytes.")}, "Idempotency-Key: k")
		if err != nil || g.body != "ten bytes." || s.orders.Load() != 3 {
			t.Errorf("just the limit: %+v, %v, ran %d times", g, err, s.orders.Load())
		}
	}
}

func TestABodyThatCannotBeRead(t *testing.T) {
	ran := false
	once, err := Idempotent(NewMemoryStore(1<<20), IdempotencySpec{})
	if err != nil {
		t.Fatal(err)
	}
	h := once(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran = true }))
	for status, body := range map[int]io.ReadCloser{
		400: io.NopCloser(io.MultiReader(strings.NewReader("half"), failing{})),
		413: http.MaxBytesReader(nil, io.NopCloser(strings.NewReader("too long")), 3),
	} {
		r := httptest.NewRequest("POST", "/", body)
		r.Header.Set("Idempotency-Key", "k")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != status || ran {
			t.Errorf("%d, want %d; ran: %v", w.Code, status, ran)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the connection is broken") }

func TestAnAnswerIsSentAsItIsWritten(t *testing.T) {
	goOn := make(chan struct{})
	s := openShop(t, IdempotencySpec{}, NewMemoryStore(1<<20), func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "one")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		<-goOn
		fmt.Fprintln(w, "two")
	})
	r, _ := http.NewRequestWithContext(t.Context(), "POST", s.url, nil)
	r.Header.Set("Idempotency-Key", "k")
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	if line, err := lines.ReadString('\n'); line != "one\n" {
		t.Fatalf("%q, %v", line, err)
	}
	close(goOn)
	if line, err := lines.ReadString('\n'); line != "two\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if g := s.order(t, "POST", "/", "", "Idempotency-Key: k"); g.body != "one\ntwo\n" {
		t.Errorf("again: %q", g.body)
	}
}

// finished tells when an answer was kept or a key was freed.
type finished struct {
	IdempotencyStore
	kept, freed chan struct{}
}

func (f *finished) Finish(ctx context.Context, c Claim, a StoredAnswer, ttl time.Duration) error {
	defer close(f.kept)
	if _, bounded := ctx.Deadline(); !bounded || ctx.Err() != nil {
		return fmt.Errorf("the answer is to be kept, whoever went away, and soon: %v, %v", bounded, ctx.Err())
	}
	return f.IdempotencyStore.Finish(ctx, c, a, ttl)
}

func (f *finished) Abandon(ctx context.Context, c Claim) error {
	defer close(f.freed)
	return f.IdempotencyStore.Abandon(ctx, c)
}

func TestAClientThatGoesAwayFindsItsAnswerLater(t *testing.T) {
	begun, goOn := make(chan struct{}, 1), make(chan struct{})
	store := &finished{NewMemoryStore(1 << 20), make(chan struct{}), make(chan struct{})}
	gone := make(chan struct{})
	once, err := Idempotent(store, IdempotencySpec{})
	if err != nil {
		t.Fatal(err)
	}
	handler := once(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-goOn
		if r.Context().Err() != nil {
			t.Error("the handler's context ended with the client")
		}
		for range 100 { // more than the connection's buffers: writing fails
			if _, err := w.Write(make([]byte, 600)); err != nil {
				t.Error(err)
			}
		}
	}))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		context.AfterFunc(r.Context(), func() { close(gone) })
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	conn, err := net.DialTimeout("tcp", server.Listener.Addr().String(), till)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "POST /pay HTTP/1.1\r\nHost: shop\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n")
	<-begun
	conn.Close()
	<-gone
	close(goOn)
	select {
	case <-store.kept:
	case <-store.freed:
		t.Fatal("the key was freed")
	case <-time.After(till):
		t.Fatal("the answer is not kept")
	}
	claim, err := store.Begin(t.Context(), IdempotencyKey("k", "POST", "shop", "/pay", "", ""), NewFingerprint("POST", "/pay", "", "").Sum(), time.Minute)
	if err != nil || claim.State != ClaimDone || len(claim.Answer.Body) != 60_000 {
		t.Errorf("%v with %d bytes, %v", claim.State, len(claim.Answer.Body), err)
	}
}

// down is a store that fails in some calls.
type down struct {
	IdempotencyStore
	begin, finish error
}

func (d *down) Begin(ctx context.Context, key string, fingerprint [32]byte, lease time.Duration) (Claim, error) {
	if d.begin != nil {
		return Claim{}, d.begin
	}
	return d.IdempotencyStore.Begin(ctx, key, fingerprint, lease)
}

func (d *down) Finish(ctx context.Context, c Claim, a StoredAnswer, ttl time.Duration) error {
	if d.finish != nil {
		return d.finish
	}
	return d.IdempotencyStore.Finish(ctx, c, a, ttl)
}

func TestAStoreThatFails(t *testing.T) {
	store := &down{IdempotencyStore: NewMemoryStore(1 << 20), begin: errors.New("no quorum")}
	s := openShop(t, IdempotencySpec{}, store, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "ok")
		w.(http.Flusher).Flush()
	})
	g := s.order(t, "POST", "/", "", "Idempotency-Key: k")
	if g.status != 503 || g.header.Get("X-Weft-Reason") != "idempotency_store" || g.header.Get("Retry-After") != "1" || s.orders.Load() != 0 {
		t.Errorf("nothing may run that may have run before: %+v", g)
	}
	store.begin, store.finish = nil, errors.New("no quorum")
	g = s.order(t, "POST", "/", "", "Idempotency-Key: k")
	if g.status != 200 || g.trailer.Get("X-Weft-Idempotency") != "answer not kept" {
		t.Errorf("the client is not told: %+v", g)
	}
	if s.order(t, "POST", "/", "", "Idempotency-Key: k"); s.orders.Load() != 2 {
		t.Errorf("ran %d times", s.orders.Load())
	}
}

func TestWhatIsRefusedAndWhatPasses(t *testing.T) {
	s := openShop(t, IdempotencySpec{Header: "X-Once", Required: true}, NewMemoryStore(1<<20), func(http.ResponseWriter, *http.Request) {})
	for _, tc := range []struct {
		method, line string
		status       int
	}{
		{"POST", "Idempotency-Key: k", 400}, {"POST", "X-Once: a b", 400}, {"PATCH", "X: ", 400},
		{"GET", "X: ", 200}, {"PUT", "X: ", 200}, {"POST", "X-Once: k", 200}, {"GET", "X-Once: k", 200}, {"GET", "X-Once: k", 200},
	} {
		if g := s.order(t, tc.method, "/", "", tc.line); g.status != tc.status || g.header.Get("Idempotency-Replayed") != "" {
			t.Errorf("%s with %s: %+v", tc.method, tc.line, g)
		}
	}
	if s.orders.Load() != 5 {
		t.Errorf("ran %d times", s.orders.Load())
	}
}

func TestAMiddlewareThatCannotBe(t *testing.T) {
	var field *FieldError
	if _, err := Idempotent(nil, IdempotencySpec{}); !errors.As(err, &field) {
		t.Errorf("without a store: %v", err)
	}
	if _, err := Idempotent(NewMemoryStore(1), IdempotencySpec{MaxBodyBytes: -1}); !errors.As(err, &field) {
		t.Errorf("with a bad spec: %v", err)
	}
}
