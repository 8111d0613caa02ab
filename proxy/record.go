package proxy

import (
	"log/slog"
	"strconv"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/telemetry/accesslog"
	"github.com/weftmesh/weft/telemetry/metric"
	"github.com/weftmesh/weft/telemetry/trace"
)

// Record is what is known of an exchange when it is over. Metrics, span and log
// line are all made from it.
type Record struct {
	Start       time.Time
	Duration    time.Duration
	Direction   Direction
	Source      string // service account of the caller; "" outside the mesh
	Destination string
	Version     string // of the endpoint that answered
	Status      int    // as sent to the client; 0: no response could be sent
	Reason      string // why weft answered or gave up, one word
	Policy      string
	Fallback    string // what the client got instead of a failure: "service", "cached", "static"
	GRPCStatus  int    // with GRPC
	GRPC        bool
	Raw         bool // a connection whose bytes nobody looked at
	Endpoint    string
	Attempts    int
	Hedges      int   // attempts beside the last one of Attempts
	BytesIn     int64 // of the request's body
	BytesOut    int64
	Parent      trace.SpanID
	Rule, Edge  *weft.Rule

	local  bool // weft made the response
	series *metric.RequestSeries
	calls  *metric.GRPCCalls
}

// finish completes the record and gives it to metrics, spans and the access log.
func (x *Exchange) finish() {
	r, c := &x.record, x.conn
	r.Duration = time.Since(r.Start)
	x.complete()
	r.series.Observe(r.Status, r.Duration)
	if r.GRPC {
		r.calls.Observe(x.request.Path, r.GRPCStatus, r.Duration)
	}
	p := c.p
	if p.spans != nil && x.traced && x.trace.Sampled() {
		x.recordSpan()
	}
	if p.accessLog != nil {
		x.log()
	}
	r.Rule, r.Edge, r.series, r.calls = nil, nil, nil, nil
}

// complete fills in who called whom.
func (x *Exchange) complete() {
	r, c := &x.record, x.conn
	self := c.p.self.Name
	switch c.l.Direction {
	case Inbound:
		r.Source, r.Destination = c.source, self
		r.series = c.series
		if r.GRPC {
			r.calls = c.grpcCalls()
		}
	default:
		r.Source = self
		if r.Destination == "" {
			r.Destination = "unknown"
		}
		if r.series == nil {
			r.series = c.p.metrics.Requests(c.l.Direction.String(), self, r.Destination, r.Version)
		}
		if r.GRPC && r.calls == nil {
			r.calls = c.p.metrics.GRPC(c.l.Direction.String(), self, r.Destination)
		}
	}
}

func (x *Exchange) recordSpan() {
	r := &x.record
	a := append(x.span.Attrs[:0],
		trace.Attr{Key: "http.request.method", Str: x.request.Method},
		trace.Attr{Key: "url.path", Str: x.request.Path},
		trace.Attr{Key: "server.address", Str: x.request.Host},
		trace.Attr{Key: "http.response.status_code", Int: int64(r.Status), IsInt: true},
		trace.Attr{Key: "weft.direction", Str: r.Direction.String()},
		trace.Attr{Key: "weft.source", Str: r.Source},
		trace.Attr{Key: "weft.destination", Str: r.Destination})
	if r.Endpoint != "" {
		a = append(a, trace.Attr{Key: "weft.endpoint", Str: r.Endpoint})
	}
	if r.Attempts > 1 {
		a = append(a, trace.Attr{Key: "weft.attempts", Int: int64(r.Attempts), IsInt: true})
	}
	if r.Reason != "" {
		a = append(a, trace.Attr{Key: "weft.reason", Str: r.Reason})
	}
	if r.Policy != "" {
		a = append(a, trace.Attr{Key: "weft.policy", Str: r.Policy})
	}
	if r.Fallback != "" {
		a = append(a, trace.Attr{Key: "weft.fallback", Str: r.Fallback})
	}
	kind := trace.Server
	if r.Direction == Outbound {
		kind = trace.Client
	}
	x.span = trace.Span{Context: x.trace, Parent: r.Parent, Name: spanName(r.Direction, r.Destination), Kind: kind,
		Start: r.Start.UnixNano(), End: r.Start.Add(r.Duration).UnixNano(),
		Error: r.Status >= 500 || r.Status == 0, StatusMessage: r.Reason, Attrs: a}
	x.conn.p.spans.Record(&x.span)
}

// spanName is a name of few values, so that operations can be listed: the path is
// an attribute.
func spanName(d Direction, destination string) string {
	switch d {
	case Inbound:
		return "inbound"
	case Edge:
		return "gateway"
	}
	return destination
}

// log writes the exchange's line. Its keys are listed in the README.
func (x *Exchange) log() {
	r := &x.record
	level, msg := slog.LevelInfo, statusText(r.Status)
	if r.Status >= 500 || r.Status == 0 && !r.Raw {
		level = slog.LevelWarn
	}
	if r.Raw {
		msg = "raw"
	}
	l := x.conn.p.accessLog.Begin(r.Start.Add(r.Duration), level, msg)
	l.Str("direction", r.Direction.String())
	l.Str("source", r.Source)
	l.Str("destination", r.Destination)
	if r.Raw {
		l.Str("protocol", "tcp")
	} else {
		l.Str("method", x.request.Method)
		l.Str("host", x.request.Host)
		l.Str("path", x.request.Path)
		l.Int("status", int64(r.Status))
	}
	l.Float("duration_ms", float64(r.Duration.Microseconds())/1000)
	l.Int("bytes_in", r.BytesIn)
	l.Int("bytes_out", r.BytesOut)
	l.Str("peer", x.conn.peerText)
	if !r.Raw && x.client.http2() {
		l.Str("protocol", protocolHTTP2)
	}
	if r.GRPC {
		l.Int("grpc_status", int64(r.GRPCStatus))
	}
	strIf(l, "version", r.Version)
	strIf(l, "endpoint", r.Endpoint)
	strIf(l, "reason", r.Reason)
	strIf(l, "policy", r.Policy)
	strIf(l, "fallback", r.Fallback)
	if r.Attempts > 1 {
		l.Int("attempts", int64(r.Attempts))
	}
	if r.Hedges > 0 {
		l.Int("hedges", int64(r.Hedges))
	}
	if r.Rule != nil && r.Rule.Source.Kind != "" {
		l.Str("rule", r.Rule.String())
	}
	if x.traced {
		l.Hex("trace_id", x.trace.TraceID[:])
	}
	l.End()
}

func strIf(l *accesslog.Line, key, value string) {
	if value != "" {
		l.Str(key, value)
	}
}

// statusText is the line's message. The usual ones are not made anew each time.
func statusText(status int) string {
	switch status {
	case 200:
		return "200"
	case 404:
		return "404"
	case 503:
		return "503"
	}
	return strconv.Itoa(status)
}
