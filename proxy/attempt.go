package proxy

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/weftmesh/weft/resilience"
	"github.com/weftmesh/weft/telemetry/metric"
	"github.com/weftmesh/weft/wire/http1"
)

// What an exchange asks its guard, and tells it.

// callContext is what the waits of a call are bounded by: the proxy's end and the
// plan's deadline. Only who waits makes a timer of it.
type callContext struct {
	context.Context
	deadline time.Time
}

// Deadline implements context.Context.
func (c *callContext) Deadline() (time.Time, bool) { return c.deadline, !c.deadline.IsZero() }

// beginCall asks the policy whether the request may be sent now, and waits where
// the policy says so.
func (x *Exchange) beginCall(pl *plan) *Answer {
	g := pl.guard
	priority := resilience.Normal
	if name := g.settings.Load().priority; name != "" {
		if value, ok := x.Header(name); ok {
			priority, _ = resilience.ParsePriority(value)
		}
	}
	x.outcome, x.headAt, x.permitted = resilience.Ignored, time.Time{}, false
	x.within = callContext{x.conn.p.life, pl.deadline}
	var err error
	x.call, err = g.policy.Begin(&x.within, x.record.Start, priority)
	if err != nil {
		return x.rejected(pl, err)
	}
	return nil
}

// endCall tells the policy how the request ended. Time counts until the response
// began: how fast the client reads the rest says nothing about the service.
func (x *Exchange) endCall(pl *plan) {
	at := x.headAt
	if at.IsZero() {
		at = time.Now()
	}
	x.settle(resilience.Ignored, at)
	x.call.End(at, x.outcome)
}

// beginAttempt asks the circuit.
func (x *Exchange) beginAttempt(pl *plan) *Answer {
	if x.wasExpired() { // while it waited: a connection need not die of it
		return clientGone()
	}
	x.headAt, x.hint, x.sentAt = time.Time{}, 0, time.Now()
	var err error
	if x.permit, err = x.call.Attempt(x.sentAt); err != nil {
		return x.rejected(pl, err)
	}
	x.permitted = true
	return nil
}

// settle tells the circuit how the attempt ended, once.
func (x *Exchange) settle(o resilience.Outcome, at time.Time) {
	if !x.permitted {
		return
	}
	x.permitted, x.outcome = false, o
	x.call.AttemptDone(x.permit, at, o)
}

// headCame settles an attempt that is answered. That of gRPC is over when its
// status came, which is often behind the messages; but a circuit that asks whether
// the service is there again does not wait for the end of a stream that may live for
// hours, and would take it for a probe that hangs.
func (x *Exchange) headCame(pl *plan, now time.Time) {
	x.headAt = now
	x.hint = x.retryHint()
	if !x.grpc {
		x.settle(pl.guard.outcomeOf(x.response.Status), now)
		return
	}
	if b := pl.guard.policy.Breaker(); b != nil && b.State() == resilience.HalfOpen {
		if _, early := x.earlyGRPCStatus(); !early {
			x.settle(resilience.Success, now)
		}
	}
}

func (g *guard) outcomeOf(status int) resilience.Outcome {
	if g.policy.FailsStatus(status) {
		return resilience.Failure
	}
	return resilience.Success
}

// endAttempt settles what its response's head did not.
func (x *Exchange) endAttempt(pl *plan, o *outcome) {
	if !x.permitted {
		return
	}
	at := x.headAt
	if at.IsZero() {
		at = time.Now()
	}
	x.settle(x.judgeAttempt(pl, o), at)
}

// judgeAttempt says how an attempt ended that had no response, or one of gRPC.
func (x *Exchange) judgeAttempt(pl *plan, o *outcome) resilience.Outcome {
	answered := !x.headAt.IsZero()
	switch {
	case o.stale, o.excused, x.wasExpired() && x.client.http2(), o.done && x.sender.lost.Load(), x.record.Reason == "client_gone":
		return resilience.Ignored
	case !answered && o.fault.Status < 500: // the client broke off, or sent nonsense
		return resilience.Ignored
	case o.cut == 504 && x.record.BytesOut > 0: // a stream; how long its client wants it is not the service's affair
		return resilience.Ignored
	case o.cut == 504 || !answered && o.fault.Status == 504:
		return x.timedOut(pl)
	case answered && o.cut == 0:
		return pl.guard.outcomeOf(x.callStatus())
	}
	return resilience.Failure
}

// timedOut is the outcome of an attempt that took longer than it had: one client of no
// patience must not open the circuit for all.
func (x *Exchange) timedOut(pl *plan) resilience.Outcome {
	if pl.hurried && !time.Now().Before(pl.deadline) && !pl.guard.slow(pl.deadline.Sub(x.record.Start)) {
		return resilience.Ignored
	}
	return resilience.TimedOut
}

// slow reports whether a call that took so long is slow by the policy's own measure.
func (g *guard) slow(took time.Duration) bool {
	s := g.settings.Load()
	switch {
	case s.attempt > 0:
		return took >= s.attempt
	case s.timeout > 0:
		return took >= s.timeout
	}
	return took >= s.slow
}

// rejected is the answer to a request that the policy does not let through.
func (x *Exchange) rejected(pl *plan, err error) *Answer {
	g := pl.guard
	a := &Answer{Status: 503, Reason: "rejected", Unsent: true, Policy: *g.origin.Load(), Text: g.target + ": " + err.Error()}
	var r *resilience.Rejected
	if errors.As(err, &r) {
		a.Reason, a.RetryAfter = r.Reason, r.RetryAfter
		a.Text = rejections[r.Reason] + g.target + " (" + a.Policy + ")"
		switch r.Reason {
		case resilience.ReasonRateLimited:
			a.Status = 429
		case resilience.ReasonTimeout:
			a.Status = 504
		}
	}
	x.conn.p.metrics.Counter("weft_rejected_total", "Requests that a resilience policy did not let through.",
		metric.Label{Name: "target", Value: g.target}, metric.Label{Name: "reason", Value: a.Reason}).Add(1)
	return a
}

// rejections begin the sentence that says why a request was not let through.
var rejections = map[string]string{
	resilience.ReasonCircuitOpen:        "the circuit is open for ",
	resilience.ReasonBulkheadFull:       "the bulkhead is full for ",
	resilience.ReasonRateLimited:        "the rate limit is reached for ",
	resilience.ReasonConcurrencyLimited: "as many requests as it bears are in flight to ",
	resilience.ReasonThrottled:          "most requests fail, and this one is not sent to ",
	resilience.ReasonTimeout:            "no time is left for a request to ",
}

// httpDate is the one format of dates that is still to be sent (RFC 9110 §5.6.7).
const httpDate = "Mon, 02 Jan 2006 15:04:05 GMT"

// retryHint is how long the endpoint asks to be left alone: Retry-After (RFC 9110
// §10.2.3), or a gRPC push-back, of which negative ones and nonsense say: never.
func (x *Exchange) retryHint() time.Duration {
	r := &x.response
	if x.grpc {
		v, n := r.Lookup("grpc-retry-pushback-ms")
		if n == 0 {
			return 0
		}
		ms, err := strconv.ParseUint(str(v), 10, 31)
		if err != nil || n > 1 {
			return -1
		}
		return max(time.Duration(ms)*time.Millisecond, 1) // 0 is at once, and not the policy's pause
	}
	i := r.Find(http1.FieldRetryAfter)
	if i < 0 || r.Status != 429 && r.Status != 503 {
		return 0
	}
	if seconds, err := strconv.ParseUint(str(r.Value(i)), 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := time.Parse(httpDate, str(r.Value(i))); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}
