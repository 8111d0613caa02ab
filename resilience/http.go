package resilience

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Transport sends requests through Base under a policy. It is an
// http.RoundTripper:
//
//	client := &http.Client{Transport: &resilience.Transport{Policy: policy}}
//
// A request is tried again, or hedged, if that cannot do something twice: when its
// method is idempotent or among the spec's methods, when it has an Idempotency-Key
// (or the header that the spec calls so), or when the connection failed before
// anything was sent; and if its body can be read again: by GetBody, which
// http.NewRequest sets for bytes and strings, or because it has at most 64 KiB, which
// are then read before the first attempt. What is tried again is a failed attempt, one
// that took too long, and the spec's statuses, after the pause that Retry-After asks
// for. When there is no other attempt the last response is returned as it is.
//
// For the breaker an attempt ends with the head of its response, and its status tells
// how; a body that breaks afterwards counts as one more failure. The timeouts, the
// bulkhead and the adaptive limit cover the call until the body was read to its end
// or closed, which has to be done, as with every http.Client.
//
// Where the policy refuses a request the error is a *Rejected. The spec's fallback
// takes the place of that, of other errors and of a response with a failing status:
// the last good answer, or the fixed one, with the header X-Weft-Reason, which says
// what it replaces, and X-Weft-Fallback, "cached" or "static". A fallback to another
// service is for a proxy, which knows where that is. Idempotency is a server's part:
// see Idempotent.
type Transport struct {
	Policy *Policy           // constant; nil: requests go to Base as they are
	Base   http.RoundTripper // constant; nil: http.DefaultTransport

	good lastAnswers
}

const (
	replayBytes = 64 << 10 // of a body that is read before it is sent
	drainBytes  = 4 << 10  // of a response that nobody wants, so that its connection can be used again
	drainTime   = 50 * time.Millisecond
)

// fallbackHeader says what kind of fallback made an answer.
const fallbackHeader = "X-Weft-Fallback"

func (t *Transport) base() http.RoundTripper {
	if t.Base != nil {
		return t.Base
	}
	return http.DefaultTransport
}

// CloseIdleConnections closes those of Base, for http.Client.
func (t *Transport) CloseIdleConnections() {
	if c, ok := t.base().(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.Policy == nil {
		return t.base().RoundTrip(req)
	}
	fallback := t.Policy.plan.Load().spec.Fallback
	resp, o, err := t.send(req)
	if fallback == nil {
		return resp, err
	}
	if err == nil && !o.Failed() {
		return t.good.keep(req, resp, fallback.Cached), nil
	}
	if err != nil && !mends(req.Context(), o, err) {
		return nil, err
	}
	instead := t.good.find(req, fallback.Cached)
	if instead == nil {
		instead = fixedAnswer(req, fallback)
	}
	if instead == nil {
		return resp, err
	}
	instead.Header.Set(reasonHeader, reasonOf(err))
	if err == nil {
		resp.Body.Close()
	}
	return instead, nil
}

// send is RoundTrip without fallbacks.
func (t *Transport) send(req *http.Request) (*http.Response, Outcome, error) {
	p, ctx := t.Policy, req.Context()
	call, err := p.Begin(ctx, time.Now(), p.priorityOf(req))
	if err != nil {
		closeBody(req)
		return nil, Ignored, err
	}
	trip := &trip{base: t.base(), policy: p, req: req}
	e := &effort[*http.Response]{ctx: ctx, try: trip.attempt, judge: trip.judge, drop: drop, call: call}
	done := result[*http.Response]{outcome: Failure, panics: errGoexit}
	defer func() {
		if done.panics != nil {
			e.call.End(time.Now(), Failure)
		}
	}()
	if err := trip.prepare(&e.call); err != nil {
		done.panics = nil
		e.call.End(time.Now(), Ignored)
		return nil, Ignored, err
	}
	e.twin = trip.repeats && trip.rewinds
	done = e.run()
	trip.close()
	if done.panics != nil {
		panic(done.panics)
	}
	if done.err != nil {
		if done.own != nil {
			done.own.finish()
		}
		e.call.End(done.at, done.outcome)
		return nil, done.outcome, done.err
	}
	if done.outcome == Success {
		e.call.answeredAt(done.at)
	}
	done.value.Request = req
	return attend(ctx, &e.call, done), done.outcome, nil
}

func (p *Policy) priorityOf(req *http.Request) Priority {
	prio := p.priority(req.Context())
	if a := p.plan.Load().spec.AdaptiveConcurrency; a != nil && a.PriorityHeader != "" {
		if named, ok := ParsePriority(strings.ToLower(req.Header.Get(a.PriorityHeader))); ok {
			return named
		}
	}
	return prio
}

// trip is a request on its way, several times perhaps.
type trip struct {
	// constant after prepare
	base    http.RoundTripper
	policy  *Policy
	req     *http.Request
	repeats bool // may be sent twice
	rewinds bool // its body can be sent twice
	getBody func() (io.ReadCloser, error)

	taken atomic.Bool // an attempt has taken req.Body
}

// prepare finds out whether the request can be repeated, and reads a small body
// that otherwise could not.
func (t *trip) prepare(call *Call) error {
	req, plan := t.req, call.plan
	t.repeats = t.policy.RetriesMethod(methodOf(req)) || hasKey(req, plan.spec.Idempotency)
	t.getBody = req.GetBody
	t.rewinds = req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
	if t.rewinds || !t.repeats || !plan.countsBudget || req.ContentLength > replayBytes {
		return nil
	}
	bounded, cancel := call.bounded(req.Context())
	defer cancel()
	stop := context.AfterFunc(bounded, func() { closeBody(req) }) // ends a Read that hangs
	read, err := io.ReadAll(io.LimitReader(req.Body, replayBytes+1))
	if !stop() {
		return call.waitEnded(req.Context(), bounded.Err())
	}
	if err != nil {
		closeBody(req)
		return err
	}
	if len(read) > replayBytes {
		whole := *req
		whole.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(read), req.Body), req.Body}
		t.req = &whole
		return nil
	}
	closeBody(req)
	t.taken.Store(true)
	t.rewinds = true
	t.getBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(read)), nil }
	return nil
}

func methodOf(req *http.Request) string {
	if req.Method == "" {
		return http.MethodGet
	}
	return req.Method
}

func hasKey(req *http.Request, spec *IdempotencySpec) bool {
	return req.Header.Get("Idempotency-Key") != "" || spec != nil && req.Header.Get(spec.header()) != ""
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

// close closes the request's own body if no attempt took it: the first has not
// begun.
func (t *trip) close() {
	if t.taken.CompareAndSwap(false, true) {
		closeBody(t.req)
	}
}

func (t *trip) attempt(ctx context.Context) (*http.Response, error) {
	req := t.req.WithContext(ctx)
	if !t.taken.CompareAndSwap(false, true) && t.getBody != nil && req.Body != nil && req.Body != http.NoBody {
		body, err := t.getBody()
		if err != nil {
			return nil, Permanent(err)
		}
		req.Body = body
	}
	resp, err := t.base.RoundTrip(req)
	if err == nil && resp.Body == nil {
		resp.Body = http.NoBody
	}
	return resp, err
}

// judge a response by its status, and an error by whether it may be repeated.
func (t *trip) judge(r *result[*http.Response]) {
	if r.err != nil {
		r.again = r.again && t.rewinds && (t.repeats || neverSent(r.err))
		return
	}
	if t.policy.FailsStatus(r.value.StatusCode) {
		r.outcome = Failure
	}
	r.again = t.policy.RetriesStatus(r.value.StatusCode) && t.repeats && t.rewinds
	r.hint = retryAfter(r.value, r.at)
}

// neverSent reports whether a request failed before its connection stood.
func neverSent(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	return errors.As(err, &op) && op.Op == "dial" || errors.As(err, &dns)
}

// retryAfter is what the server asks for (RFC 9110 §10.2.3), 0 if nothing.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	text := resp.Header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(text); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}

// drop reads what is left of a short response, so that its connection can be used
// again, and closes it.
func drop(resp *http.Response, own *attemptContext) {
	if resp.ContentLength <= drainBytes {
		late := time.AfterFunc(drainTime, own.finish) // ends a Read that hangs
		io.CopyN(io.Discard, resp.Body, drainBytes+1)
		late.Stop()
	}
	resp.Body.Close()
}

// attend returns the response with a body that ends the call.
func attend(ctx context.Context, call *Call, done result[*http.Response]) *http.Response {
	resp := done.value
	body := &answerBody{ReadCloser: resp.Body, ctx: ctx, call: call, own: done.own, outcome: done.outcome, headAt: done.at}
	writer, upgraded := resp.Body.(io.Writer)
	switch {
	case resp.Body == http.NoBody:
		body.end(done.outcome)
	case upgraded: // 101: a connection, which is written to
		resp.Body = &upgradedBody{body, writer}
	default:
		resp.Body = body
	}
	return resp
}

// answerBody is the body of a response that counts.
type answerBody struct {
	io.ReadCloser
	ctx     context.Context // the caller's
	call    *Call
	own     *attemptContext
	outcome Outcome     // by the head
	headAt  time.Time   // how fast the caller reads says nothing about the service
	ended   atomic.Bool // Read and Close may run at the same time
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == nil {
		return n, nil
	}
	if err == io.EOF {
		b.end(b.outcome)
		return n, err
	}
	if b.ended.Load() { // a Read after Close
		return n, err
	}
	o, err := b.call.judge(b.ctx, time.Now(), b.own.deadline, err)
	b.broke(o)
	return n, err
}

// broke counts a body that failed behind a good head.
func (b *answerBody) broke(o Outcome) {
	if o.Failed() && !b.outcome.Failed() && !b.ended.Load() {
		now := time.Now()
		if permit, err := b.call.Attempt(now); err == nil {
			b.call.AttemptDone(permit, now, o)
		}
	}
	b.end(o)
}

func (b *answerBody) Close() error {
	err := b.ReadCloser.Close()
	b.end(b.outcome)
	return err
}

func (b *answerBody) end(o Outcome) {
	if b.ended.CompareAndSwap(false, true) {
		b.own.finish()
		b.call.End(b.headAt, o)
	}
}

type upgradedBody struct {
	*answerBody
	io.Writer
}

// reasonOf is what a fallback replaces, as a word.
func reasonOf(err error) string {
	var r *Rejected
	if errors.As(err, &r) {
		return r.Reason
	}
	return "upstream_error"
}

// fixedAnswer is the spec's fixed answer to a request, nil if it has none.
func fixedAnswer(req *http.Request, spec *FallbackSpec) *http.Response {
	if spec.Status == 0 {
		return nil
	}
	header := http.Header{fallbackHeader: {"static"}}
	if spec.Body != "" {
		header.Set("Content-Type", "text/plain; charset=utf-8")
	}
	for name, value := range spec.Headers {
		header.Set(name, value)
	}
	return madeAnswer(req, spec.Status, header, []byte(spec.Body))
}

// madeAnswer is a response that came from nowhere.
func madeAnswer(req *http.Request, status int, header http.Header, body []byte) *http.Response {
	resp := &http.Response{
		Status: strconv.Itoa(status) + " " + http.StatusText(status), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: http.NoBody, ContentLength: int64(len(body)), Request: req,
	}
	if len(body) > 0 && bodyAllowed(status) {
		header.Set("Content-Length", strconv.Itoa(len(body)))
		if req.Method != http.MethodHead {
			resp.Body = io.NopCloser(bytes.NewReader(body))
		}
	}
	return resp
}
