package proxy

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/wire/http1"
)

// receive reads the response to attempt n and, unless it is to be retried,
// streams it to the client.
func (x *Exchange) receive(pl *plan, u *upstream, n int) (o received) {
	c, r := x.conn, &x.response
	if u.in == nil {
		u.in = takeBuffer()
	}
	if fault := x.readResponse(u); fault != nil {
		o.fault = *fault
		o.again = fault.Reason == "upstream_reset" && (pl.retry.On&(weft.RetryReset|weft.Retry5xx|weft.RetryGatewayError) != 0) &&
			(c.l.Direction != Inbound || u.reused) ||
			fault.Reason == "timeout" && pl.retry.PerTryTimeout > 0
		if c.l.Direction != Inbound || !u.reused {
			x.judge(pl, u.endpoint, 0, true)
		}
		return o
	}
	if again := x.judgeResponse(pl, u, &o); again && x.mayRepeat(pl, &o.outcome, n) {
		o.reusable = x.skipBody(u)
		return o
	}
	o.unsent, o.again, o.done = false, false, true
	framing := x.clientFraming()
	// A client that waits for "100 Continue" and gets a final answer may or may
	// not send its body: nobody knows where its next request would begin.
	waits := x.head.ExpectContinue && !x.continued
	o.keep = x.keepAlive() && framing != http1.UntilClose && !waits && !c.p.draining.Load()
	out := x.appendResponse(c.takeOut()[:0], pl, framing, o.keep)
	x.record.Status = r.Status
	complete, err := x.stream(u, out, framing)
	if err != nil {
		o.keep = false
		x.record.Reason = "client_gone"
		if errors.Is(err, errUpstream) {
			x.record.Reason = "upstream_truncated"
			x.record.Status = 0 // the client did not get a whole response
			x.judge(pl, u.endpoint, 0, true)
		}
	}
	o.patience = x.upstreamPatience(pl)
	u.served++
	most := pl.group.policy.MaxRequestsPerConn
	o.reusable = complete && r.KeepAlive && r.Framing != http1.UntilClose && u.r == u.w && (most == 0 || u.served < most)
	return o
}

// readResponse reads until a final response head is in x.response, passing
// informational ones on.
func (x *Exchange) readResponse(u *upstream) *Answer {
	c, r := x.conn, &x.response
	for {
		if u.r < u.w {
			n, err := r.Parse(u.in[u.r:u.w], x.head.Method, &limits)
			switch {
			case err == nil && r.Status >= 200:
				u.r += n
				return nil
			case err == nil && r.Status == 101:
				return &Answer{Status: 502, Reason: "unasked_upgrade", Text: u.endpoint.id + " changed the protocol without being asked"}
			case err == nil:
				u.r += n
				x.continued = x.continued || r.Status == 100
				if x.head.Minor >= 1 && !x.passOn(u) {
					return &Answer{Status: 502, Reason: "client_gone", Close: true}
				}
				continue
			case !errors.Is(err, http1.ErrIncomplete):
				reason := "malformed"
				var e *http1.Error
				if errors.As(err, &e) {
					reason = e.Reason
				}
				return &Answer{Status: 502, Reason: "bad_response", Text: u.endpoint.id + " sent a malformed response: " + reason}
			}
			if u.r > 0 {
				u.w = copy(u.in[:], u.in[u.r:u.w])
				u.r = 0
			}
		}
		if err := u.fill(); err != nil {
			if c.wasExpired() {
				return &Answer{Status: 504, Reason: "stalled", Text: u.endpoint.id + " did not answer for " + stallTimeout.String(), Close: true}
			}
			when := "before it answered"
			if u.w > u.r {
				when = "in the middle of the response's head"
			}
			if errors.Is(err, io.EOF) {
				err = errClosed
			}
			return x.broken(u.endpoint, when, err)
		}
		c.progress()
	}
}

var errClosed = errors.New("closed by the endpoint")

// passOn sends an informational response (100, 103) to the client.
func (x *Exchange) passOn(u *upstream) bool {
	out := http1.AppendStatusLine(x.conn.takeOut()[:0], x.response.Status, x.response.Reason)
	out = append(x.response.AppendFields(out), "\r\n"...)
	_, err := x.conn.sock.Write(out)
	return err == nil
}

// judgeResponse feeds outlier detection and reports whether the response is one
// that the plan would rather retry.
func (x *Exchange) judgeResponse(pl *plan, u *upstream, o *received) (again bool) {
	r := &x.response
	if u.endpoint.identity != "" && r.Find(http1.FieldXWeft) >= 0 && r.Status >= 500 {
		if again, known := x.peerFailed(pl, u, o); known {
			return again
		}
	}
	gateway := r.Status == 502 || r.Status == 503 || r.Status == 504
	x.judge(pl, u.endpoint, r.Status, gateway)
	on := pl.retry.On
	again = on&weft.Retry5xx != 0 && r.Status >= 500 ||
		on&weft.RetryGatewayError != 0 && gateway ||
		on&weft.RetryUnavailable != 0 && r.Status == 503 ||
		on&weft.RetryRetriable4xx != 0 && r.Status == 409
	for _, s := range pl.retry.Statuses {
		again = again || s == r.Status
	}
	o.again = again
	return again
}

// peerFailed reads what the peer's sidecar says of a response that it made
// itself: that its application cannot be reached, or broke.
func (x *Exchange) peerFailed(pl *plan, u *upstream, o *received) (again, known bool) {
	reason, _ := x.response.Lookup(reasonHeader)
	_, unsent := x.response.Lookup(unsentHeader)
	switch {
	case unsent > 0:
		o.unsent, o.again = true, true
		u.endpoint.connectFailed(time.Now())
		x.judge(pl, u.endpoint, 503, true)
		return true, true
	case string(reason) == "upstream_reset":
		o.again = pl.retry.On&(weft.RetryReset|weft.Retry5xx|weft.RetryGatewayError) != 0
		x.judge(pl, u.endpoint, 502, true)
		return o.again, true
	}
	return false, false
}

// judge tells the endpoint's outlier detection of a result; status 0 is a broken
// connection.
func (x *Exchange) judge(pl *plan, e *endpoint, status int, gateway bool) {
	if status > 0 && status < 500 {
		pl.group.succeeded(e)
		return
	}
	if out := pl.group.failed(e, gateway, time.Now()); out > 0 {
		x.conn.p.logger.Warn("endpoint ejected", "service", pl.cluster.name, "endpoint", e.id, "for", out.String(),
			"policy", pl.group.policy.Source.String())
		x.conn.p.ejected.Add(1)
	}
}

// skipBody makes the connection reusable after a response that is not passed on,
// if its body is here already.
func (x *Exchange) skipBody(u *upstream) bool {
	r := &x.response
	if r.Framing == http1.FixedLength && r.Length == int64(u.w-u.r) {
		u.r = u.w
	}
	return u.r == u.w && (r.Framing == http1.NoBody || r.Framing == http1.FixedLength) && r.KeepAlive
}

// clientFraming is how the client gets the response's body.
func (x *Exchange) clientFraming() http1.Framing {
	switch f := x.response.Framing; {
	case f == http1.NoBody || f == http1.FixedLength:
		return f
	case x.head.Minor == 0: // HTTP/1.0 knows no chunks
		return http1.UntilClose
	}
	return http1.Chunked
}

// appendResponse writes the response's head as the client gets it.
func (x *Exchange) appendResponse(dst []byte, pl *plan, framing http1.Framing, keep bool) []byte {
	r := &x.response
	dst = http1.AppendStatusLine(dst, r.Status, r.Reason)
	if i := r.Find(http1.FieldXWeft); i >= 0 {
		x.filterWeft(pl)
	}
	if i := r.Find(http1.FieldContentLength); i >= 0 && framing == http1.NoBody && (r.Status == 304 || string(x.head.Method) == "HEAD") {
		r.Fields[i].Drop = false // it tells of a body that is not here
	}
	if i := r.Find(http1.FieldTrailer); i >= 0 && framing == http1.Chunked {
		r.Fields[i].Drop = false // the trailers go on too
	}
	if pl.rule != nil && !pl.rule.Response.Empty() {
		dst = applyOps(dst, &r.Head, &pl.rule.Response)
	}
	if e := x.decision.Edge; e != nil && !e.Response.Empty() {
		dst = applyOps(dst, &r.Head, &e.Response)
	}
	dst = r.AppendFields(dst)
	switch framing {
	case http1.FixedLength, http1.Chunked:
		dst = http1.AppendFraming(dst, framing, r.Length)
	}
	if !keep {
		dst = append(dst, "Connection: close\r\n"...)
	} else if x.head.Minor == 0 {
		dst = append(dst, "Connection: keep-alive\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// filterWeft removes our own headers from a response of somebody who has no
// business to send them. A peer sidecar's reason goes on; its word on whether the
// request was sent was for us.
func (x *Exchange) filterWeft(pl *plan) {
	h := &x.response.Head
	trusted := pl.group != nil && x.conn.l.Direction != Inbound && x.tried[(x.record.Attempts-1)%maxTried].identity != ""
	for i := range h.Fields {
		if h.Fields[i].ID == http1.FieldXWeft && !(trusted && equalFold(h.Name(i), reasonHeader)) {
			h.Fields[i].Drop = true
		}
	}
}

// upstreamPatience is how long the connection may idle: the policy's limit, ours,
// or a second less than the server announces (Keep-Alive: timeout=5), so that we
// close before it does.
func (x *Exchange) upstreamPatience(pl *plan) time.Duration {
	patience := idleUpstream
	if t := pl.group.policy.IdleTimeout; t > 0 {
		patience = min(patience, t)
	}
	i := x.response.Find(http1.FieldKeepAlive)
	if i < 0 {
		return patience
	}
	_, after, found := bytes.Cut(x.response.Value(i), []byte("timeout="))
	if !found {
		return patience
	}
	digits := 0
	for digits < len(after) && after[digits] >= '0' && after[digits] <= '9' {
		digits++
	}
	seconds, err := strconv.Atoi(string(after[:digits]))
	if err != nil || seconds > 3600 {
		return patience
	}
	return min(patience, max(time.Duration(seconds)*time.Second-time.Second, 0))
}
