package resilience

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// replayedHeader is on every answer that is given again.
	replayedHeader = "Idempotency-Replayed"
	// noteHeader says why a repeat of this request will run again although it had a
	// key. It is a trailer when that was found out after the head was sent.
	noteHeader   = "X-Weft-Idempotency"
	reasonHeader = "X-Weft-Reason"

	noteBody     = "body too large"   // the request's: it was run without regard to its key
	noteAnswer   = "answer too large" // more than MaxBodyBytes
	noteTrailers = "answer has trailers"
	noteStore    = "answer not kept" // the store failed
)

// Idempotent makes a handler run each request that has a key once. For POST, PATCH
// and all other methods that are not idempotent by themselves:
//
//   - The first request runs, and its answer is kept for spec.TTL. A repeat gets that
//     answer with Idempotency-Replayed: true.
//   - While the first one runs, a repeat is answered 409 with Retry-After. Another
//     request with the same key (path, query, Content-Type or body differ) is 422.
//   - A key that is malformed is 400; so is none at all for POST and PATCH when
//     spec.Required. When the store fails the answer is 503, and nothing runs.
//   - Answers 2xx to 4xx are kept, but for 408, 409, 425 and 429. After these, after
//     5xx, and after a panic a repeat runs again.
//   - A client that goes away does not end the handler: its context goes on until
//     ClaimLease is over, and the answer is kept for the repeat that will come. A
//     handler that runs longer than that may find its repeat running beside it.
//   - A request body over spec.MaxBodyBytes runs as if it had no key. An answer over
//     it, or with trailers, is not kept. Both say so in X-Weft-Idempotency.
//
// Two requests with one key are strangers when their method, host, path,
// Authorization or client certificate differ, or what a function of caller returns
// for them: give one when it is something else, such as a session's cookie, that
// says who calls.
//
// The request body and the answer are in memory while the handler runs, up to
// spec.MaxBodyBytes each; the answer is sent as it is written all the same. 1xx
// answers are passed on and not kept. Hijacking is not supported.
func Idempotent(store IdempotencyStore, spec IdempotencySpec, caller ...func(*http.Request) string) (func(http.Handler) http.Handler, error) {
	if store == nil {
		return nil, &FieldError{Field: "store", Problem: "there is none"}
	}
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	spec = spec.withDefaults()
	return func(next http.Handler) http.Handler {
		return &idempotentHandler{store: store, spec: spec, caller: caller, next: next}
	}, nil
}

type idempotentHandler struct {
	store  IdempotencyStore
	spec   IdempotencySpec
	caller []func(*http.Request) string
	next   http.Handler
}

func (h *idempotentHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	lines := r.Header.Values(h.spec.Header)
	once, refusal := h.spec.Check(r.Method, lines...)
	switch {
	case refusal != nil:
		refuse(w, *refusal)
		return
	case !once:
		h.next.ServeHTTP(w, r)
		return
	}
	body, rest, err := readUpTo(r, h.spec.MaxBodyBytes)
	if err != nil {
		refuse(w, unreadable(err))
		return
	}
	if rest != nil {
		w.Header().Set(noteHeader, noteBody)
		r = r.WithContext(r.Context()) // a copy: a middleware does not change its caller's request
		r.Body = rest
		h.next.ServeHTTP(w, r)
		return
	}
	claim, err := h.claim(r, lines[0], body)
	if err != nil {
		slog.WarnContext(r.Context(), "idempotency store failed", "op", "claim", "error", err)
		refuse(w, IdempotencyUnavailable())
		return
	}
	if refusal, refused := claim.Refusal(); refused {
		refuse(w, refusal)
		return
	}
	if claim.State == ClaimDone {
		replay(w, &claim.Answer)
		return
	}
	h.run(w, r, claim, body)
}

func (h *idempotentHandler) claim(r *http.Request, key string, body []byte) (Claim, error) {
	path := r.URL.EscapedPath()
	f := NewFingerprint(r.Method, path, r.URL.RawQuery, r.Header.Get("Content-Type"))
	f.Write(body)
	scope := []string{r.Method, strings.ToLower(r.Host), path, strings.Join(r.Header.Values("Authorization"), "\n"), certified(r)}
	for _, fn := range h.caller {
		scope = append(scope, fn(r))
	}
	// Not the client's context: a claim whose answer nobody waited for would block
	// the key until its lease is over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), storeTimeout)
	defer cancel()
	return h.store.Begin(ctx, IdempotencyKey(key, scope...), f.Sum(), ClaimLease)
}

// certified is who the client's certificate says it is: its URI (SPIFFE), which
// outlives the certificate, else its subject.
func certified(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	leaf := r.TLS.PeerCertificates[0]
	if len(leaf.URIs) > 0 {
		return leaf.URIs[0].String()
	}
	return leaf.Issuer.String() + "\n" + leaf.Subject.String()
}

// run runs the request under its claim, and keeps the answer or frees the key.
func (h *idempotentHandler) run(w http.ResponseWriter, r *http.Request, claim Claim, body []byte) {
	k := &keeper{w: w, max: h.spec.MaxBodyBytes, declared: -1}
	kept := false
	defer func() { // also when the handler panics
		if kept {
			return
		}
		if err := abandon(r.Context(), h.store, claim); err != nil {
			slog.WarnContext(r.Context(), "idempotency store failed", "op", "abandon", "error", err)
		}
	}()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), ClaimLease)
	defer cancel()
	run := r.WithContext(ctx)
	run.Body = io.NopCloser(bytes.NewReader(body))
	h.next.ServeHTTP(k, run)
	answer, ok := k.answer()
	if !ok {
		return
	}
	if err := finish(r.Context(), h.store, claim, answer, h.spec.TTL); err != nil {
		slog.WarnContext(r.Context(), "idempotency store failed", "op", "finish", "error", err)
		k.forget(noteStore)
		return
	}
	kept = true
}

func refuse(w http.ResponseWriter, r IdempotencyRefusal) {
	w.Header().Set(reasonHeader, r.Reason)
	if r.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((r.RetryAfter+time.Second-1)/time.Second)))
	}
	http.Error(w, "weft: "+r.Text, r.Status)
}

// unreadable is the refusal of a request whose body could not be read.
func unreadable(err error) IdempotencyRefusal {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return IdempotencyRefusal{Status: http.StatusRequestEntityTooLarge, Reason: "body_too_large", Text: "the request body is too large"}
	}
	return IdempotencyRefusal{Status: http.StatusBadRequest, Reason: "body_unreadable", Text: "the request body cannot be read"}
}

func replay(w http.ResponseWriter, a *StoredAnswer) {
	header := w.Header()
	for _, line := range a.Header {
		name := http.CanonicalHeaderKey(line.Name)
		header[name] = append(header[name], line.Value)
	}
	header.Set(replayedHeader, "true")
	if bodyAllowed(a.Status) {
		header.Set("Content-Length", strconv.Itoa(len(a.Body)))
	}
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body) // the client may have gone: nobody is left to tell
}

// bodyAllowed: RFC 9110 §6.4.1.
func bodyAllowed(status int) bool { return status >= 200 && status != 204 && status != 304 }

// readUpTo reads the body. When that is over limit bytes, rest is the whole of it.
func readUpTo(r *http.Request, limit int) (body []byte, rest io.ReadCloser, err error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil, nil
	}
	if r.ContentLength > int64(limit) {
		return nil, r.Body, nil
	}
	body, err = io.ReadAll(io.LimitReader(r.Body, int64(limit)+1))
	if err != nil {
		return nil, nil, err
	}
	if len(body) > limit {
		return nil, readCloser{io.MultiReader(bytes.NewReader(body), r.Body), r.Body}, nil
	}
	return body, nil, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

// keeper sends an answer on and keeps a copy.
type keeper struct {
	w   http.ResponseWriter
	max int // bytes of body

	status   int // 0 until the head was sent
	header   []HeaderLine
	body     []byte
	declared int  // Content-Length; -1 when there is none
	keeps    bool // the copy is whole so far
}

func (k *keeper) Header() http.Header { return k.w.Header() }

func (k *keeper) WriteHeader(status int) {
	if k.status == 0 && status >= 200 {
		k.begin(status)
	}
	k.w.WriteHeader(status)
}

// begin takes the head down as it is sent.
func (k *keeper) begin(status int) {
	k.status = status
	k.keeps = KeepsStatus(status)
	header := k.w.Header()
	if n, err := strconv.Atoi(header.Get("Content-Length")); err == nil {
		k.declared = n
	}
	if k.keeps && bodyAllowed(status) && k.declared > k.max {
		k.forget("")
		header.Set(noteHeader, noteAnswer)
	}
	if k.keeps && len(header.Values("Trailer")) > 0 {
		k.forget("")
		header.Set(noteHeader, noteTrailers)
	}
	if k.keeps {
		k.header = linesOf(header)
	}
}

// linesOf has the kept lines sorted by name: a map has no order.
func linesOf(header http.Header) []HeaderLine {
	var lines []HeaderLine
	for _, name := range slices.Sorted(maps.Keys(header)) {
		if !KeepsHeader(name) {
			continue
		}
		for _, value := range header[name] {
			lines = append(lines, HeaderLine{name, value})
		}
	}
	return lines
}

// forget gives the copy up. note, if any, becomes a trailer: the head was sent.
func (k *keeper) forget(note string) {
	k.keeps, k.body, k.header = false, nil, nil
	if note != "" {
		k.w.Header().Set(http.TrailerPrefix+noteHeader, note)
	}
}

func (k *keeper) Write(p []byte) (int, error) {
	if k.status == 0 {
		k.WriteHeader(http.StatusOK)
	}
	n, err := k.w.Write(p)
	if !k.keeps {
		return n, err
	}
	if errors.Is(err, http.ErrContentLength) || errors.Is(err, http.ErrBodyNotAllowed) {
		k.forget("")
		return n, err
	}
	if len(k.body)+len(p) > k.max {
		k.forget(noteAnswer)
		return n, err
	}
	k.body = append(k.body, p...)
	// The client may have gone. The answer is finished for the one who comes back.
	return len(p), nil
}

// FlushError sends what was written so far; http.ResponseController calls it.
func (k *keeper) FlushError() error {
	if k.status == 0 {
		k.WriteHeader(http.StatusOK)
	}
	err := http.NewResponseController(k.w).Flush()
	if err != nil && k.keeps && !errors.Is(err, errors.ErrUnsupported) {
		return nil // as in Write
	}
	return err
}

// Flush is http.Flusher's.
func (k *keeper) Flush() { _ = k.FlushError() }

// answer returns what was sent, when it is to be kept.
func (k *keeper) answer() (a StoredAnswer, ok bool) {
	if k.status == 0 {
		k.WriteHeader(http.StatusOK) // as net/http does for a handler that wrote nothing
	}
	if k.keeps && bodyAllowed(k.status) && k.declared >= 0 && k.declared != len(k.body) {
		k.forget("") // net/http will break the connection
	}
	for name := range k.w.Header() {
		if k.keeps && strings.HasPrefix(name, http.TrailerPrefix) {
			k.forget(noteTrailers)
		}
	}
	return StoredAnswer{Status: k.status, Header: k.header, Body: k.body}, k.keeps
}
