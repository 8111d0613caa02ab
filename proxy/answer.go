package proxy

import (
	"strconv"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/telemetry/metric"
	"github.com/weftmesh/weft/wire/http1"
)

// Answer is a response that weft itself makes. Every one of them is written by
// conn.answer and nowhere else.
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
}

// Headers that weft's proxies say to each other. They are removed from whatever
// comes from outside.
const (
	reasonHeader = "x-weft-reason"
	unsentHeader = "x-weft-unsent"
)

// answer writes a to the client and records it. It returns whether the connection
// may carry another request.
func (c *conn) answer(a *Answer) (keep bool) {
	x := &c.x
	x.record.Status, x.record.Reason, x.record.Policy = a.Status, a.Reason, a.Policy
	x.record.local = true
	body := a.Body
	if body == "" && a.Text != "" {
		body = "weft: " + a.Text + "\n"
	}
	keep = !a.Close && x.keepAlive() && !c.p.draining.Load()
	out := c.takeOut()[:0]
	out = http1.AppendStatusLine(out, a.Status, nil)
	if a.Location != "" {
		out = append(append(append(out, "Location: "...), a.Location...), "\r\n"...)
	}
	if body != "" {
		out = append(out, "Content-Type: text/plain; charset=utf-8\r\n"...)
	}
	if a.Reason != "" {
		out = append(append(append(out, reasonHeader+": "...), a.Reason...), "\r\n"...)
	}
	if a.Unsent && c.l.Direction == Inbound {
		out = append(out, unsentHeader+": 1\r\n"...)
	}
	out = http1.AppendFraming(out, http1.FixedLength, int64(len(body)))
	if !keep {
		out = append(out, "Connection: close\r\n"...)
	}
	out = append(out, "\r\n"...)
	if string(x.head.Method) != "HEAD" {
		out = append(out, body...)
		x.record.BytesOut = int64(len(body))
	}
	if _, err := c.sock.Write(out); err != nil {
		keep = false
	}
	return keep
}

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
			" is not defined (" + d.Rule.Source.String() + ")"}
	case weft.NoService:
		return &Answer{Status: 503, Reason: "no_service", Text: "service " + d.Destination.Service.String() +
			" does not exist yet (" + d.Rule.Source.String() + ")"}
	}
	return &Answer{Status: 500, Reason: "internal", Text: "unknown routing problem " + strconv.Quote(string(d.Problem))}
}
