package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control/subscribe"
	"github.com/weftmesh/weft/proxy"
	"github.com/weftmesh/weft/proxy/overload"
	"github.com/weftmesh/weft/telemetry/accesslog"
	"github.com/weftmesh/weft/telemetry/metric"
	"github.com/weftmesh/weft/telemetry/trace"
)

// ProxyConfig is what gateways and sidecars have in common.
type ProxyConfig struct {
	Control     string        // host:port of the server's control door
	Token       string        // join token
	Admin       string        // /metrics and /healthz; port 0 picks a free one
	Zone        string        // where it is, "region/zone/subzone" or just a zone; empty: nobody said
	Sample      float64       // share of the traces that begin here that are kept, 0 to 1
	Memory      int64         // ceiling of resident memory, bytes; 0: 90 % of the control group's
	Connections int           // that clients may have open; 0: by the number of file descriptors
	AccessLog   io.Writer     // one JSON line an exchange; nil: none
	Drain       time.Duration // how long exchanges in flight may still take at the end
	Process     *Process      // nil: it cannot be replaced
	Logger      *slog.Logger
}

// DefaultDrain is above what most requests take.
const DefaultDrain = 30 * time.Second

// dataPlane is a joined proxy with its telemetry.
type dataPlane struct {
	config  proxy.Config
	logger  *slog.Logger
	process *Process
	drain   time.Duration
	token   string
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
	d.logger, d.metrics, d.process, d.drain, d.token = c.Logger, metric.New(0), c.Process, c.Drain, c.Token
	if d.logger == nil {
		d.logger = slog.New(slog.DiscardHandler)
	}
	if d.process.Inherited() && d.token == "" {
		var old proxyState
		if err := d.process.chain.State(&old); err != nil {
			return err
		}
		d.token = old.Token
	}
	if err := loopbackOnly("admin", c.Admin, "--admin"); err != nil {
		return err
	}
	var err error
	if d.admin, err = listen(d.process, "admin", c.Admin, "--admin"); err != nil {
		return err
	}
	d.undo.add(closeQuietly(d.admin))
	if err := loopbackOnly("admin", d.admin.Addr().String(), "--admin"); err != nil {
		return err // a supervisor's socket
	}
	s.Server, s.Token, s.Logger = c.Control, d.token, d.logger
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
	d.config = proxy.Config{Self: self, Source: need{d.mesh}, ClientTLS: d.mesh.Credentials().DialTLS,
		Metrics: d.metrics, Spans: spans, Sample: trace.NewSampler(c.Sample), Logger: d.logger,
		Zone: c.Zone, OnBreaker: d.breakerChanged, OnUnreachable: d.mesh.EndpointUnreachable}
	// Only policies with a cluster-wide store of idempotency keys ask the server's API.
	api, err := client.New(ctx)
	if err != nil {
		return err
	}
	d.config.Answers = api.IdempotencyStore()
	if c.AccessLog != nil {
		d.config.AccessLog = accesslog.New(c.AccessLog, func(err error) { d.logger.Error("the access log cannot be written", "error", err) })
		d.undo.add(d.config.AccessLog.Close)
	}
	load := overload.Start(overload.Limits{MemoryBytes: c.Memory, Connections: c.Connections, Late: lateMark}, d.logger)
	d.undo.add(func() error { load.Close(); return nil }) // after the proxies
	d.config.Load = load
	d.proxy = proxy.New(d.config)
	d.undo.add(func() error { d.proxy.Close(); return nil })
	d.mesh.OnChange(d.proxy.Update)
	d.mesh.ReportEndpoints(d.observed)
	d.mesh.ReportBreakers(d.breakers)
	d.figures()
	return nil
}

// lateMark is how late the median goroutine may run before requests are refused.
// It is far above overload's own, which is for machines that do nothing else: a
// laptop that compiles must not turn requests away.
const lateMark = 250 * time.Millisecond

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
	load := d.config.Load
	d.metrics.GaugeFunc("weft_overload_level", "0 calm, 1 tight (connections are not kept), 2 full (requests are refused).", func() float64 { return float64(load.Level()) })
	d.metrics.GaugeFunc("weft_memory_ceiling_bytes", "Ceiling of the resident memory; 0 is none.", func() float64 { return float64(load.Limits().MemoryBytes) })
	d.metrics.GaugeFunc("weft_memory_resident_bytes", "Resident memory.", func() float64 { return float64(load.Stats().RSS) })
	d.metrics.GaugeFunc("weft_memory_pinned_bytes", "Bytes that requests in flight hold.", func() float64 { return float64(load.Stats().Pinned) })
	d.metrics.GaugeFunc("weft_requests_in_flight", "Requests that have begun and not ended.", func() float64 { return float64(load.Stats().Requests) })
	d.metrics.GaugeFunc("weft_scheduler_late_seconds", "How late the median goroutine ran.", func() float64 { return load.Stats().Late.Seconds() })
	d.metrics.CounterFunc("weft_spans_lost_total", "Spans that did not reach the collector.", func() float64 {
		return float64(d.export.Lost() + d.export.Recorder.Dropped())
	})
}

// parts adds what every proxy process runs beside its listeners. The last spans are
// those of the last exchanges.
func (d *dataPlane) parts(p *parts) {
	mux := http.NewServeMux()
	mux.Handle("/metrics", metricsHandler(d.metrics, d.logger))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	p.add("admin", serveHTTP(d.admin, mux, d.logger))
	p.addLast("spans", func(ctx context.Context) error { d.export.Run(ctx); return nil })
	p.addLast("clock", watchClock(d.logger))
}

// opening is a listening socket with what it is for.
type opening struct {
	socket   string // its name among the process's sockets
	ln       net.Listener
	listener *proxy.Listener
}

// serve runs all listeners of a proxy until ctx ends, and then drains the proxy: it
// stops accepting, and what has begun may end. When another process has taken over
// (errReplaced), that one has the sockets; else they are closed for good.
func (d *dataPlane) serve(p *proxy.Proxy, openings ...opening) func(context.Context) error {
	return func(ctx context.Context) error {
		ended := make(chan error, len(openings))
		for _, o := range openings {
			go func() { ended <- p.Serve(o.ln, o.listener) }()
		}
		var err error
		open := len(openings)
		select {
		case err = <-ended:
			open--
		case <-ctx.Done():
		}
		for _, o := range openings {
			if !errors.Is(context.Cause(ctx), errReplaced) {
				d.process.link().Close(o.socket)
			}
			_ = o.ln.Close()
		}
		// All are awaited before the drain: it would turn away a connection that was
		// accepted and is not served yet.
		for range open {
			err = errors.Join(err, <-ended)
		}
		patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.drain)
		defer cancel()
		if p.Drain(patience) != nil {
			d.logger.Warn("some exchanges did not end in time and are cut off", "after", d.drain.String())
		}
		return err
	}
}

// proxyState is what every proxy hands to the process that replaces it.
type proxyState struct {
	Token string   `json:"token"`           // the file it came from may be gone
	Hosts []string `json:"hosts,omitempty"` // with a table: the next process shall have them, too
}

func (d *dataPlane) state() proxyState {
	s := proxyState{Token: d.token}
	for host := range tables(d.mesh.Snapshot()) {
		s.Hosts = append(s.Hosts, host)
	}
	return s
}

// tables are those of the gateway, or of the hosts that a sidecar calls.
func tables(s *weft.Snapshot) map[string]*weft.RouteTable {
	out := make(map[string]*weft.RouteTable)
	if s.Gateway != nil {
		for _, t := range s.Gateway.Tables() {
			out[t.Host] = t
		}
		return out
	}
	for host, t := range s.Hosts {
		if t != nil {
			out[host] = t
		}
	}
	return out
}

// learnTimeout bounds the wait for configuration before a process begins to serve.
const learnTimeout = 10 * time.Second

// learn waits until this process knows the hosts that the one before it knew. What
// was deleted meanwhile does not come any more.
func (d *dataPlane) learn(ctx context.Context, old proxyState) {
	patience, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	var all sync.WaitGroup
	for _, host := range old.Hosts { // a gateway waits for the first, and does not ask
		all.Go(func() { d.mesh.Need(patience, host) })
	}
	all.Wait()
	known := make(chan struct{})
	var once sync.Once
	d.mesh.OnChange(func(now *weft.Snapshot) {
		have := tables(now)
		if !slices.ContainsFunc(old.Hosts, func(host string) bool { return have[host] == nil }) {
			once.Do(func() { close(known) })
		}
	})
	select {
	case <-known:
	case <-patience.Done():
		d.logger.Warn("not every host came that the old process knew", "waited", learnTimeout.String())
	}
}
