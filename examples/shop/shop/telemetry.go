package shop

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Telemetry is what OpenTelemetry's own variables say about this service. The
// SDK reads OTEL_SERVICE_NAME, the endpoint, headers and sampler by itself.
type Telemetry struct {
	Export      bool   // OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set
	Protocol    string // OTEL_EXPORTER_OTLP_PROTOCOL; "" is http/protobuf, the only one
	Propagators string // OTEL_PROPAGATORS; "" is tracecontext,baggage
}

func readTelemetry(getenv func(string) string) Telemetry {
	return Telemetry{
		Export:      getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "",
		Protocol:    getenv("OTEL_EXPORTER_OTLP_PROTOCOL"),
		Propagators: getenv("OTEL_PROPAGATORS"),
	}
}

// tracing carries trace context from request to call, and exports spans when
// there is an endpoint.
type tracing struct {
	options []otelhttp.Option
	stop    func(context.Context) error // flushes
}

func startTracing(ctx context.Context, t Telemetry, name, version, instance string) (*tracing, error) {
	propagators, err := t.propagators()
	if err != nil {
		return nil, err
	}
	var provider trace.TracerProvider = noop.NewTracerProvider()
	stop := func(context.Context) error { return nil }
	if t.Export {
		sdk, err := t.exporting(ctx, name, version, instance)
		if err != nil {
			return nil, err
		}
		provider, stop = sdk, sdk.Shutdown
	}
	return &tracing{stop: stop, options: []otelhttp.Option{
		otelhttp.WithTracerProvider(provider), otelhttp.WithPropagators(propagators),
	}}, nil
}

func (t Telemetry) exporting(ctx context.Context, name, version, instance string) (*sdktrace.TracerProvider, error) {
	if t.Protocol != "" && t.Protocol != "http/protobuf" {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q: this program speaks http/protobuf only", t.Protocol)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(
			attribute.String("service.name", name), attribute.String("service.version", version),
			attribute.String("service.instance.id", instance), attribute.Int("process.pid", os.Getpid())),
		resource.WithFromEnv(), // OTEL_SERVICE_NAME wins
		resource.WithTelemetrySDK())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("OTLP exporter: %w", err)
	}
	return sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about)), nil
}

func (t Telemetry) propagators() (propagation.TextMapPropagator, error) {
	names := t.Propagators
	if names == "" {
		names = "tracecontext,baggage"
	}
	var list []propagation.TextMapPropagator
	for name := range strings.SplitSeq(names, ",") {
		switch strings.TrimSpace(name) {
		case "tracecontext":
			list = append(list, propagation.TraceContext{})
		case "baggage":
			list = append(list, propagation.Baggage{})
		case "none":
		default:
			return nil, fmt.Errorf("OTEL_PROPAGATORS names %q: this program knows tracecontext, baggage and none", name)
		}
	}
	return propagation.NewCompositeTextMapPropagator(list...), nil
}

func (t *tracing) client(next http.RoundTripper) http.RoundTripper {
	return otelhttp.NewTransport(next, t.options...)
}

// server traces every request but health checks.
func (t *tracing) server(next http.Handler) http.Handler {
	options := append([]otelhttp.Option{otelhttp.WithFilter(func(r *http.Request) bool { return r.URL.Path != "/health" })}, t.options...)
	return otelhttp.NewHandler(next, "http", options...)
}
