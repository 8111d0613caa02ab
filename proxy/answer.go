package proxy

import (
	"strconv"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/telemetry/metric"
)

// Answer is a response that weft itself makes. Every one of them is written by
// Exchange.answer and nowhere else.
type Answer struct {
	Status int
	Reason string // a word for metrics, logs and x-weft-reason: "no_endpoint"
	Text   string // a sentence for a person; the body is "weft: <Text>\n"
	Body   string // instead of Text: a rule's direct response
	Policy string // the policy that decided, if one did
	Close  bool   // the connection cannot be used any more
	// Unsent says that the request did not reach the application. Between our
	// own proxies it makes a retry on another endpoint safe for any method.
	Unsent   bool
	Location string
	// RetryAfter asks the client to wait; whole seconds, rounded up.
	RetryAfter time.Duration
	// Lines are header lines of the answer's own, Content-Type among them.
	Lines string
	// GRPCStatus is what a gRPC client gets; 0: what Status means there.
	GRPCStatus int
	// Fallback is what kind of answer stands in for a failure; "" when none does.
	Fallback string
}

// Headers that weft's proxies say to each other. They are removed from whatever
// comes from outside.
const (
	reasonHeader   = "x-weft-reason"
	unsentHeader   = "x-weft-unsent"
	fallbackHeader = "x-weft-fallback"
)

// answer sends a to the client and records it. It returns whether the client's
// connection may carry another request.
func (x *Exchange) answer(a *Answer) (keep bool) {
	x.record.Status, x.record.Reason, x.record.Policy = a.Status, a.Reason, a.Policy
	x.record.local, x.record.Fallback = true, a.Fallback
	body := a.Body
	switch {
	case !hasBody(a.Status):
		body = ""
	case body == "" && a.Text != "":
		body = "weft: " + a.Text + "\n"
	}
	lines := x.lines[:0]
	if a.Location != "" {
		lines = appendField(lines, "Location", a.Location)
	}
	if a.RetryAfter > 0 {
		lines = append(lines, "Retry-After: "...)
		lines = strconv.AppendInt(lines, int64((a.RetryAfter+time.Second-1)/time.Second), 10)
		lines = append(lines, "\r\n"...)
	}
	if a.Reason != "" {
		lines = appendField(lines, reasonHeader, a.Reason)
	}
	if a.Fallback != "" {
		lines = appendField(lines, fallbackHeader, a.Fallback)
	}
	if a.Unsent && x.conn.l.Direction == Inbound {
		lines = appendField(lines, unsentHeader, "1")
	}
	if x.grpc {
		// What gRPC clients understand: 200, with the status in the head.
		body, x.record.GRPCStatus = "", a.GRPCStatus
		if a.GRPCStatus == 0 {
			x.record.GRPCStatus = grpcStatusOf(a.Status)
		}
		lines = append(lines, "Content-Type: application/grpc\r\n"...)
		lines = appendGRPCTrailers(lines, x.record.GRPCStatus, a.Text)
	} else if a.Lines != "" {
		lines = append(lines, a.Lines...)
	} else if body != "" {
		lines = append(lines, "Content-Type: text/plain; charset=utf-8\r\n"...)
	}
	x.lines = lines
	if string(x.head.Method) != "HEAD" {
		x.record.BytesOut = int64(len(body))
	}
	if x.grpc {
		return x.client.answer(200, a.Close, lines, nil)
	}
	return x.client.answer(a.Status, a.Close, lines, []byte(body))
}

// hasBody reports whether a response with this status has a body and says how long
// it is (RFC 9110 §8.6).
func hasBody(status int) bool { return status != 204 && status != 304 }

// refusals counts requests that were refused before they could be routed.
type refusals struct {
	metrics *metric.Registry
}

func newRefusals(m *metric.Registry) refusals { return refusals{metrics: m} }

// count is off the fast path: a refused request is rare, or an attack whose
// labels come from a fixed list.
func (r refusals) count(reason string) {
	r.metrics.Counter("weft_refused_total", "Requests refused before routing, by reason.",
		metric.Label{Name: "reason", Value: reason}).Add(1)
}

// problemAnswer turns a routing problem into the response that names it.
func problemAnswer(x *Exchange, d *weft.Decision) *Answer {
	switch d.Problem {
	case weft.NoHost:
		if x.conn.l.Direction == Edge {
			return &Answer{Status: 404, Reason: "no_host", Text: "no route for host " + x.request.Host}
		}
		return &Answer{Status: 503, Reason: "no_host", Text: "there is no service " + x.request.Host + " (yet)"}
	case weft.NoRule:
		return &Answer{Status: 404, Reason: "no_rule", Text: "no rule for " + x.request.Host + " fits this request"}
	case weft.NotLoaded:
		return &Answer{Status: 503, Reason: "not_loaded", Text: "the configuration of " + x.request.Host + " did not arrive in time"}
	case weft.NoSubset:
		return &Answer{Status: 503, Reason: "no_subset", Text: "subset " + d.Destination.Subset + " of " + d.Destination.Service.String() +
			" is not defined (" + decider(d) + ")"}
	case weft.NoService:
		return &Answer{Status: 503, Reason: "no_service", Text: "service " + d.Destination.Service.String() +
			" does not exist yet (" + decider(d) + ")"}
	}
	return &Answer{Status: 500, Reason: "internal", Text: "unknown routing problem " + strconv.Quote(string(d.Problem))}
}

// decider names what chose the destination: a rule for requests, or one for whole
// connections.
func decider(d *weft.Decision) string {
	if d.Raw != nil {
		return d.Raw.Source.String()
	}
	return d.Rule.Source.String()
}
