package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/subscribe"
	"github.com/weftmesh/weft/proxy"
	"github.com/weftmesh/weft/telemetry/metric"
	"github.com/weftmesh/weft/telemetry/trace"
)

// ProxyConfig is what gateways and sidecars have in common.
type ProxyConfig struct {
	Control   string    // host:port of the server's control door
	Token     string    // join token
	Admin     string    // /metrics and /healthz; port 0 picks a free one
	Sample    float64   // share of the traces that begin here that are kept, 0 to 1
	AccessLog io.Writer // one JSON line an exchange; nil: none
	Logger    *slog.Logger
}

// dataPlane is a joined proxy with its telemetry.
type dataPlane struct {
	logger  *slog.Logger
	proxy   *proxy.Proxy
	mesh    *subscribe.Client
	metrics *metric.Registry
	export  *trace.Exporter
	admin   net.Listener
	undo    closers
}

// spanRing is how many finished spans wait for the next export, a second away.
const spanRing = 8192

// joinTimeout is how long a proxy tries to join before it gives up starting.
const joinTimeout = 30 * time.Second

// join binds the admin port, joins the mesh and makes a proxy that follows it.
func (d *dataPlane) join(ctx context.Context, c ProxyConfig, s subscribe.Config) error {
	d.logger, d.metrics = c.Logger, metric.New(0)
	if d.logger == nil {
		d.logger = slog.New(slog.DiscardHandler)
	}
	if err := loopbackOnly("admin", c.Admin, "--admin"); err != nil {
		return err
	}
	var err error
	if d.admin, err = listen("admin", c.Admin, "--admin"); err != nil {
		return err
	}
	d.undo.add(closeQuietly(d.admin))
	s.Server, s.Token, s.Logger = c.Control, c.Token, d.logger
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if d.mesh, err = subscribe.Open(ctx, s); err != nil {
		return err
	}
	d.undo.add(d.mesh.Close)
	self := weft.NewServiceName(s.Namespace, s.ServiceAccount)
	spans := trace.NewRecorder(spanRing)
	d.export = &trace.Exporter{Recorder: spans, Send: d.mesh.Export,
		Resource: trace.Resource{Service: self.Name, Namespace: self.Namespace, InstanceID: fmt.Sprint(os.Getpid()),
			Attrs: []trace.Attr{{Key: "weft.role", Str: string(s.Role)}}}}
	config := proxy.Config{Self: self, Source: need{d.mesh}, ClientTLS: d.mesh.Credentials().ClientTLS,
		Metrics: d.metrics, Spans: spans, Sample: trace.NewSampler(c.Sample), Logger: d.logger}
	if c.AccessLog != nil {
		config.AccessLog = slog.New(slog.NewJSONHandler(c.AccessLog, nil))
	}
	d.proxy = proxy.New(config)
	d.undo.add(func() error { d.proxy.Close(); return nil })
	d.mesh.OnChange(d.proxy.Update)
	d.figures()
	return nil
}

// need lets a proxy ask for hosts that it meets for the first time. What comes
// reaches it by OnChange.
type need struct{ mesh *subscribe.Client }

func (n need) Need(ctx context.Context, host string) { n.mesh.Need(ctx, host) }

func (d *dataPlane) figures() {
	d.metrics.GaugeFunc("weft_control_connected", "1 while the configuration stream is up.", func() float64 {
		if d.mesh.Connected() {
			return 1
		}
		return 0
	})
	d.metrics.GaugeFunc("weft_snapshot_version", "Version of the configuration that the proxy runs on.", func() float64 {
		return float64(d.mesh.Snapshot().Version)
	})
	d.metrics.GaugeFunc("weft_connections", "Open downstream connections.", func() float64 { return float64(d.proxy.Connections()) })
	d.metrics.CounterFunc("weft_spans_lost_total", "Spans that did not reach the collector.", func() float64 {
		return float64(d.export.Lost() + d.export.Recorder.Dropped())
	})
}

// parts adds what every proxy process runs beside its listeners.
func (d *dataPlane) parts(p *parts) {
	mux := http.NewServeMux()
	mux.Handle("/metrics", metricsHandler(d.metrics, d.logger))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	p.add("admin", serveHTTP(d.admin, mux, d.logger))
	p.add("spans", func(ctx context.Context) error { d.export.Run(ctx); return nil })
	p.add("clock", watchClock(d.logger))
}

// serve runs one listener until ctx ends; draining it is the proxy's business.
func (d *dataPlane) serve(ln net.Listener, l *proxy.Listener) func(context.Context) error {
	return func(ctx context.Context) error {
		ended := make(chan error, 1)
		go func() { ended <- d.proxy.Serve(ln, l) }()
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
			defer cancel()
			if err := d.proxy.Drain(patience); err != nil {
				d.logger.Warn("some exchanges did not end in time and are cut off", "after", drainTimeout.String())
			}
			return <-ended
		}
	}
}

// drainTimeout is how long exchanges in flight may still take at the end.
const drainTimeout = 10 * time.Second
