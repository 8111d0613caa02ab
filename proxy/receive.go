package proxy

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/proxy/relay"
	"github.com/weftmesh/weft/resilience"
	"github.com/weftmesh/weft/wire/http1"
)

// receive reads the response to attempt n and, unless it is to be retried,
// streams it to the client.
func (x *Exchange) receive(pl *plan, up upstream, n int) (o outcome) {
	err := x.awaitResponse(up)
	var now time.Time
	if pl.guard != nil || pl.group.observes {
		now = time.Now()
	}
	if pl.group.observes && (err == nil || errors.Is(err, os.ErrDeadlineExceeded)) {
		x.tried[(x.record.Attempts-1)%maxTried].target.Observe(now.Sub(x.sentAt), now.UnixNano())
	}
	if err != nil {
		x.noResponse(pl, up, err, &o)
		return o
	}
	if pl.guard != nil {
		x.headCame(pl, now)
	}
	if x.judgeResponse(pl, &o) && x.mayRepeat(pl, &o, n) && x.grant(pl, n, time.Now()) {
		o.paid, o.fault = true, x.replaced() // if it comes to nothing
		o.whole = skip(x, up)
		return o
	}
	if x.failing(pl) && x.hasFallback(pl) {
		o.again, o.whole = false, skip(x, up)
		o.fault = x.replaced()
		return o
	}
	if x.upgrade && x.client.http2() && x.response.Status/100 == 2 {
		// There a 200 says that the protocol begins (RFC 8441 §5), here that it does not.
		o.again = false
		o.fault = Answer{Status: 502, Reason: "not_upgraded", Text: x.record.Endpoint + " does not speak the protocol that was asked for"}
		return o
	}
	o.unsent, o.again, o.done = false, false, true
	if x.response.Status == 101 {
		x.tunnel(pl, up.(*link))
		return o
	}
	x.pass(pl, up, &o)
	return o
}

// pass streams the response to the client, and says what became of it.
func (x *Exchange) pass(pl *plan, up upstream, o *outcome) {
	keeps := pl.guard != nil && x.startKeeping(pl)
	o.keep = x.client.begin(pl)
	x.record.Status = x.response.Status
	err := x.passBody(up, keeps)
	switch {
	case err == nil:
		o.whole = true
		x.judgeLate(pl)
		if keeps {
			x.finishKeeping(pl)
		}
		if keeps && x.keep.lost != nil {
			o.keep = false
			x.record.Reason, x.record.GRPCStatus = "client_gone", grpcCancelled
		}
	case errors.Is(err, errSource):
		o.keep = false
		status := 502
		if errors.Is(err, os.ErrDeadlineExceeded) {
			status = 504
		}
		o.cut = status
		x.client.abort(status, "the connection to "+x.record.Endpoint+" broke")
		x.record.Reason = "upstream_truncated"
		x.record.Status = 0 // the client did not get a whole response
		if !x.wasExpired() && !x.sender.lost.Load() {
			x.judge(pl, 0)
		}
	default:
		o.keep = false
		x.record.Reason, x.record.GRPCStatus = "client_gone", grpcCancelled
	}
}

// skip reads past a response that is not passed on, if its body is here already.
func skip(x *Exchange, up upstream) (whole bool) {
	u, one := up.(*link)
	return one && u.skip(x)
}

// passBody streams the response's body, and keeps a copy of it if asked to.
func (x *Exchange) passBody(up upstream, keeps bool) error {
	var to sink = x.client
	if keeps {
		to = &x.keep
	}
	if x.response.Framing == http1.NoBody || x.response.Framing == http1.FixedLength && x.response.Length == 0 {
		if err := to.end(nil); err != nil {
			return errors.Join(errSink, err)
		}
		return nil
	}
	if !up.more() { // the client may act on the head before there is a body
		if err := to.flush(); err != nil {
			return errors.Join(errSink, err)
		}
	}
	if keeps {
		return pump(to, up, &x.record.BytesOut)
	}
	if err := x.splice(up); err != nil {
		return err
	}
	return pump(x.client, up, &x.record.BytesOut)
}

// spliceFrom is how long the rest of a body must be for the kernel to move it. A
// pipe costs about as much as copying this.
const spliceFrom = 64 << 10

// splice lets the kernel move a long body of known length, where both sides are
// HTTP/1 in plain text: less than half of the CPU time of copying it. What it
// cannot move is left to pump.
func (x *Exchange) splice(up upstream) error {
	u, one := up.(*link)
	s, plain := x.client.(*http1Client)
	c := x.conn
	if !one || !plain || u.pass == nil || c.raw == nil || x.response.Framing != http1.FixedLength || u.left-int64(u.w-u.r) < spliceFrom {
		return nil
	}
	for u.r < u.w {
		data, _, err := u.next()
		if err != nil {
			return errors.Join(errSource, err)
		}
		x.record.BytesOut += int64(len(data))
		if err := s.write(data, false); err != nil {
			return errors.Join(errSink, err)
		}
	}
	if err := s.flush(); err != nil {
		return errors.Join(errSink, err)
	}
	moved, from, to := relay.Splice(c.raw, u.raw, u.left, c)
	u.left -= moved
	x.record.BytesOut += moved
	switch {
	case from != nil:
		return errors.Join(errSource, from)
	case to != nil:
		return errors.Join(errSink, to)
	}
	return nil
}

// mostInterim is how many informational responses may come before a final one.
// Some servers send one every few seconds while they work.
const mostInterim = 100

// awaitResponse reads until a final response head is in x.response, passing
// informational ones on.
func (x *Exchange) awaitResponse(up upstream) error {
	r := &x.response
	for n := 0; ; n++ {
		if err := up.await(x); err != nil {
			return err
		}
		switch {
		case r.Status >= 200:
			return nil
		case r.Status == 101 && x.upgrade && equalFold(r.Upgrade, websocket): // what was asked for, not h2c
			return nil
		case r.Status == 101:
			return &protocolError{"unasked_upgrade"}
		case n == mostInterim:
			return &protocolError{"interim_flood"}
		}
		x.continued = x.continued || r.Status == 100
		if x.head.Minor >= 1 {
			if err := x.client.inform(); err != nil {
				return errClientGone
			}
		}
	}
}

var errClientGone = errors.New("the client went away")

// noResponse says what it means that an attempt ended without a response.
func (x *Exchange) noResponse(pl *plan, up upstream, err error, o *outcome) {
	var malformed *protocolError
	e := x.tried[(x.record.Attempts-1)%maxTried]
	switch {
	case errors.Is(err, errClientGone), x.wasExpired() && x.client.http2():
		o.fault = *clientGone()
		return
	case x.sender.lost.Load(): // and the upstream was made to fail for it
		o.fault = Answer{Status: 400, Reason: "client_body", Text: "the request's body ended early", Close: true}
		return
	case misbehaved(err, &malformed):
		o.fault = Answer{Status: 502, Reason: "bad_response", Text: e.id + " sent a malformed response: " + malformed.reason}
	case x.wasExpired():
		o.fault = Answer{Status: 504, Reason: "stalled", Text: e.id + " did not answer for " + stallTimeout.String(), Close: true}
		o.excused = x.sender.asks.Load()
	case errors.Is(err, os.ErrDeadlineExceeded):
		o.fault = *x.broken(e, "", err)
		o.again = pl.perTry > 0
		o.excused = x.sender.asks.Load()
	default:
		x.upstreamBroke(pl, up, e, err, o)
		if o.stale || x.conn.l.Direction == Inbound && up.reused() {
			return
		}
	}
	if !o.excused {
		x.judge(pl, 0)
	}
}

// upstreamBroke describes a connection or stream that ended without an answer.
func (x *Exchange) upstreamBroke(pl *plan, up upstream, e *endpoint, err error, o *outcome) {
	when := "before it answered"
	if errors.Is(err, io.ErrUnexpectedEOF) {
		when = "in the middle of the response's head"
	} else {
		o.stale = up.reused()
	}
	if s, ok := up.(*http2Upstream); ok {
		o.stale = o.stale && !s.conn.Alive() // else it is about this request
		if !s.sent() {
			o.unsent, o.again = true, true
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errClosed
	}
	o.fault = *x.broken(e, when, err)
	o.again = o.again || (pl.retries || pl.retry.On&(weft.RetryReset|weft.Retry5xx|weft.RetryGatewayError) != 0) &&
		(x.conn.l.Direction != Inbound || up.reused())
}

var errClosed = errors.New("closed by the endpoint")

// judgeResponse feeds outlier detection and reports whether the response is one
// that the plan would rather retry.
func (x *Exchange) judgeResponse(pl *plan, o *outcome) (again bool) {
	r := &x.response
	e := x.tried[(x.record.Attempts-1)%maxTried]
	if e.identity != "" && r.Find(http1.FieldXWeft) >= 0 && (r.Status >= 500 || x.grpc) {
		if again, known := x.peerFailed(pl, e, o); known {
			return again
		}
	}
	status := r.Status
	if x.grpc {
		var early bool
		if status, early = x.earlyGRPCStatus(); !early {
			return false // it comes behind the body: see passBody
		}
	}
	x.judge(pl, status)
	if pl.retries {
		if x.grpc {
			o.again = pl.guard.policy.RetriesGRPC(x.record.GRPCStatus)
		} else {
			o.again = pl.guard.policy.RetriesStatus(r.Status)
		}
		return o.again
	}
	on := pl.retry.On
	again = on&weft.Retry5xx != 0 && status >= 500 ||
		on&weft.RetryGatewayError != 0 && isGatewayError(status) ||
		on&weft.RetryUnavailable != 0 && status == 503 ||
		on&weft.RetryRetriable4xx != 0 && r.Status == 409
	for _, s := range pl.retry.Statuses {
		again = again || s == r.Status
	}
	o.again = again
	return again
}

func isGatewayError(status int) bool { return status == 502 || status == 503 || status == 504 }

// peerFailed reads what the peer's sidecar says of a response that it made
// itself: that its application cannot be reached, or broke.
func (x *Exchange) peerFailed(pl *plan, e *endpoint, o *outcome) (again, known bool) {
	reason, _ := x.response.Lookup(reasonHeader)
	_, unsent := x.response.Lookup(unsentHeader)
	switch {
	case unsent > 0:
		o.unsent, o.again = true, true
		x.conn.p.unreached(e, time.Now())
		x.judge(pl, 0)
		return true, true
	case string(reason) == "upstream_reset":
		o.again = pl.retries || pl.retry.On&(weft.RetryReset|weft.Retry5xx|weft.RetryGatewayError) != 0
		x.judge(pl, 0)
		return o.again, true
	}
	return false, false
}

// judge tells the present endpoint's outlier detection of a result; status 0: it did
// not answer.
func (x *Exchange) judge(pl *plan, status int) {
	e := x.tried[(x.record.Attempts-1)%maxTried]
	fault := resilience.FaultAnswer
	switch {
	case status == 0:
		fault = resilience.FaultLocal
	case status < 500:
		pl.group.succeeded(e)
		return
	case isGatewayError(status):
		fault = resilience.FaultGateway
	}
	if out := pl.group.failed(e, fault, time.Now()); out > 0 {
		x.conn.p.logger.Warn("endpoint ejected", "service", pl.cluster.name, "endpoint", e.id, "for", out.String(),
			"policy", pl.group.policy.Source.String())
		x.conn.p.ejected.Add(1)
	}
}

// appendResponse appends the header lines that the client gets, but for framing.
func (x *Exchange) appendResponse(dst []byte, pl *plan, bodiless, trailers bool) []byte {
	r := &x.response
	if r.Find(http1.FieldXWeft) >= 0 {
		x.filterWeft()
	}
	if i := r.Find(http1.FieldContentLength); i >= 0 && bodiless && (r.Status == 304 || string(x.head.Method) == "HEAD") {
		r.Fields[i].Drop = false // it tells of a body that is not here
	}
	if i := r.Find(http1.FieldTrailer); i >= 0 && trailers {
		r.Fields[i].Drop = false // the trailers go on too
	}
	if pl.rule != nil && !pl.rule.Response.Empty() {
		dst = applyOps(dst, &r.Head, &pl.rule.Response)
	}
	if x.note != "" {
		dst = appendField(dst, noteHeader, x.note)
	}
	if pl.instead != nil {
		dst = appendField(dst, fallbackHeader, fallbackService)
		dst = appendField(dst, reasonHeader, x.record.Reason)
	}
	if x.sticky != "" {
		dst = x.appendSticky(dst)
	}
	if e := x.decision.Edge; e != nil && !e.Response.Empty() {
		dst = applyOps(dst, &r.Head, &e.Response)
	}
	return r.AppendFields(dst)
}

// filterWeft removes our own headers from a response of somebody who has no
// business to send them. A peer sidecar's reason goes on; its word on whether the
// request was sent was for us.
func (x *Exchange) filterWeft() {
	h := &x.response.Head
	trusted := x.conn.l.Direction != Inbound && x.tried[(x.record.Attempts-1)%maxTried].identity != ""
	for i := range h.Fields {
		if h.Fields[i].ID == http1.FieldXWeft && !(trusted && equalFold(h.Name(i), reasonHeader)) {
			h.Fields[i].Drop = true
		}
	}
}
