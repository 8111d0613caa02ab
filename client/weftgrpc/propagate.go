package weftgrpc

import (
	"context"

	"google.golang.org/grpc/metadata"

	"github.com/weftmesh/weft/client"
)

// traceKeys are the headers that client.WithTrace keeps, as metadata has them.
var traceKeys = [...]string{"traceparent", "tracestate", "baggage", "x-request-id"}

// withTrace adds the trace of the request that the context belongs to, as far as
// nobody wrote one: an OpenTelemetry SDK's stays.
func withTrace(ctx context.Context) context.Context {
	trace := client.TraceOf(ctx)
	incoming, _ := metadata.FromIncomingContext(ctx)
	if trace == nil && incoming == nil {
		return ctx
	}
	outgoing, _ := metadata.FromOutgoingContext(ctx)
	var pairs []string
	for _, key := range traceKeys {
		if len(outgoing[key]) > 0 || key == "tracestate" && len(outgoing["traceparent"]) > 0 {
			continue
		}
		values := incoming[key]
		if trace != nil {
			values = trace.Values(key)
		}
		for _, v := range values {
			pairs = append(pairs, key, v)
		}
	}
	if pairs == nil {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, pairs...)
}
