package api

import (
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/telemetry/collect"
)

// traces lists the newest traces that fit the query.
func (a *api) traces(r *http.Request) (any, error) {
	q, err := traceQuery(r.URL.Query())
	if err != nil {
		return nil, err
	}
	found, err := a.Collector.Traces(r.Context(), q)
	if err != nil {
		return nil, err
	}
	out := make([]client.TraceSummary, len(found))
	for i, s := range found {
		out[i] = summaryOf(s)
	}
	return out, nil
}

// traceQuery reads a query strictly: a parameter that is not known would choose
// nothing, silently.
func traceQuery(values url.Values) (q collect.Query, err error) {
	for name, v := range values {
		switch name {
		case "service":
			q.Service = v[0]
		case "since":
			q.Since, err = time.ParseDuration(v[0])
		case "minDuration":
			q.MinDuration, err = time.ParseDuration(v[0])
		case "errors":
			q.ErrorsOnly, err = strconv.ParseBool(v[0])
		case "limit":
			q.Limit, err = strconv.Atoi(v[0])
		default:
			return q, weft.Errorf(weft.Invalid, "list", "traces", "parameter %q: want service, since, minDuration, errors or limit", name)
		}
		if err != nil {
			return q, weft.Errorf(weft.Invalid, "list", "traces", "parameter %s=%q cannot be read", name, v[0])
		}
	}
	return q, nil
}

// trace returns one trace with all its spans.
func (a *api) trace(r *http.Request) (any, error) {
	t, err := a.Collector.Trace(r.Context(), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	out := client.Trace{TraceSummary: summaryOf(t.Summary), Tree: make([]client.Span, len(t.Tree))}
	for i, s := range t.Tree {
		out.Tree[i] = spanOf(s)
	}
	return out, nil
}

func summaryOf(s collect.Summary) client.TraceSummary {
	return client.TraceSummary{ID: s.TraceID, Service: s.Service, Operation: s.Operation, Start: s.Start,
		DurationMS: milliseconds(s.Duration), Spans: s.Spans, Services: s.Services, Error: s.Error, Truncated: s.Truncated}
}

func spanOf(s *collect.Span) client.Span {
	out := client.Span{ID: s.SpanID, Parent: s.ParentID, Depth: s.Depth, Orphan: s.Orphan, Service: s.Service, Instance: s.Instance,
		Operation: s.Operation, Kind: s.Kind, Start: s.Start, DurationMS: milliseconds(s.Duration), Error: s.Error, Message: s.StatusMessage}
	for _, at := range s.Attrs {
		if out.Attributes == nil {
			out.Attributes = make(map[string]string, len(s.Attrs))
		}
		out.Attributes[at.Key] = at.Value
	}
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
