package client

import (
	"context"
	"net/http"
)

// traceHeaders go on from the request that an application serves to those that it
// sends for it. tracestate means nothing without its traceparent, and stands behind
// it.
var traceHeaders = []string{"Traceparent", "Tracestate", "Baggage", "X-Request-Id"}

type traceKey struct{}

// WithTrace returns a context whose calls carry the trace of a request: its
// traceparent, tracestate, baggage and x-request-id.
func WithTrace(ctx context.Context, header http.Header) context.Context {
	var kept http.Header
	for _, name := range traceHeaders {
		if v := header[name]; len(v) > 0 {
			if kept == nil {
				kept = make(http.Header, len(traceHeaders))
			}
			kept[name] = v
		}
	}
	if kept == nil {
		return ctx
	}
	return context.WithValue(ctx, traceKey{}, kept)
}

// TraceOf returns what WithTrace put into ctx; nil when that is nothing. It is shared:
// read it only.
func TraceOf(ctx context.Context) http.Header {
	kept, _ := ctx.Value(traceKey{}).(http.Header)
	return kept
}

// Handler puts the trace of each request into its context, so that what is called
// with that context belongs to the same trace. An application that has an
// OpenTelemetry SDK needs no Handler: what the SDK writes into a request stays.
func Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ctx := WithTrace(r.Context(), r.Header); ctx != r.Context() {
			r = r.WithContext(ctx)
		}
		next.ServeHTTP(w, r)
	})
}

// missing returns what of the context's trace header lacks; nil when it has all.
func missing(ctx context.Context, header http.Header) http.Header {
	var out http.Header
	for name, v := range TraceOf(ctx) {
		if len(header[name]) > 0 || name == "Tracestate" && len(header["Traceparent"]) > 0 {
			continue
		}
		if out == nil {
			out = make(http.Header, len(traceHeaders))
		}
		out[name] = v
	}
	return out
}
