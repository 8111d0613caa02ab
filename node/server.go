package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/api"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/node/cluster"
	"github.com/weftmesh/weft/node/handover"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/registry/consul"
	"github.com/weftmesh/weft/store"
	"github.com/weftmesh/weft/telemetry/collect"
	"github.com/weftmesh/weft/telemetry/metric"
)

// ServerConfig of a Server. DefaultServer has the documented ports.
type ServerConfig struct {
	DataDir  string // created when it does not exist
	API      string // host:port, port 0 picks a free one; so for all doors
	Consul   string
	Eureka   string
	DNS      string // UDP and TCP
	Control  string
	OTLPHTTP string
	OTLPGRPC string
	Node     string // name of this machine in the catalogue; the host's name when empty

	Datacenter string // "dc1" when empty

	EnableScripts bool     // checks may run programs on this server
	Recursors     []string // resolvers, host:port, that DNS asks for names that are not ours
	Sources                // what else fills the registry
	Access                 // who may use it

	// of a cluster; see package node/cluster
	Peer        string // host:port where the other servers' stores reach this one; empty: as at the last start, or alone
	Join        string // host:port of the control port of a server whose cluster is joined
	ServerToken string // what lets this server join

	Process *Process
	Logger  *slog.Logger
}

// DefaultServer is a server on the documented loopback ports.
var DefaultServer = ServerConfig{
	DataDir: ".weft", API: "127.0.0.1:7400", Consul: "127.0.0.1:8500", Eureka: "127.0.0.1:8761", DNS: "127.0.0.1:8600",
	Control: "127.0.0.1:8502", OTLPHTTP: "127.0.0.1:4318", OTLPGRPC: "127.0.0.1:4317",
}

// Server is registry, DNS, certificate authority, control and telemetry in one
// process, on one data directory.
type Server struct {
	config    ServerConfig
	logger    *slog.Logger
	log       *consul.LogTap // what logger writes
	process   *Process
	doors     doors
	token     string
	seal      []byte // key of what is secret in the store
	authority *ca.Authority
	store     *store.Store
	cluster   *cluster.Cluster // nil: this server is alone
	followers *control.Followers
	registry  *registry.Registry
	sources   []source
	control   *control.Control
	collector *collect.Collector
	metrics   *metric.Registry

	certificates *certificates // of the doors with TLS; nil: there are none

	undo    closers
	started time.Time
}

// NewServer binds every port and opens the data directory, when the process before
// has closed it. When anything is wrong nothing is left open.
func NewServer(ctx context.Context, c ServerConfig) (_ *Server, err error) {
	s := &Server{config: c, logger: c.Logger, process: c.Process, metrics: metric.New(0), started: time.Now()}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	s.log = new(consul.LogTap)
	s.logger = slog.New(s.log.Handler(s.logger.Handler()))
	defer func() {
		if err != nil {
			err = errors.Join(err, s.undo.close())
		}
	}()
	if err := s.admit(c); err != nil {
		return nil, err
	}
	if err := s.bind(c); err != nil {
		return nil, err
	}
	if err := c.Process.onlyUses("api", "consul", "consul-https", "eureka", "eureka-https", "dns", dnsPackets, "control", "otlp-http", "otlp-grpc"); err != nil {
		return nil, err
	}
	if err := c.Process.link().Ready(ctx); err != nil {
		return nil, err
	}
	if err := s.open(ctx, c); err != nil {
		return nil, err
	}
	return s, nil
}

// open opens all state, from the bottom up.
func (s *Server) open(ctx context.Context, c ServerConfig) (err error) {
	if c.Node == "" {
		if c.Node, err = os.Hostname(); err != nil {
			return &weft.Error{Kind: weft.Internal, Op: "start", Thing: "server: name of this machine (set --node)", Err: err}
		}
	}
	if err := s.openStore(ctx, c); err != nil {
		return err
	}
	authority, err := s.openCA(ctx, c.DataDir)
	if err != nil {
		return err
	}
	if err := s.meetOthers(ctx, authority); err != nil {
		return err
	}
	if err := s.openRegistry(ctx, c); err != nil {
		return err
	}
	s.collector, err = collect.Open(collect.Config{Dir: filepath.Join(c.DataDir, "traces"), Logger: s.logger})
	if err != nil {
		return err
	}
	s.undo.add(s.collector.Close)
	config := control.Config{Store: s.store, Registry: s.registry, CA: authority, JoinToken: s.token, Followers: s.followers, Metrics: s.metrics, Logger: s.logger}
	if s.cluster != nil {
		config.Others = s.cluster
	}
	if s.control, err = control.Open(ctx, config); err != nil {
		return err
	}
	s.undo.add(s.control.Close)
	return nil
}

// openStore opens the store, as a member of a cluster when there is one.
func (s *Server) openStore(ctx context.Context, c ServerConfig) (err error) {
	d := &s.doors
	s.cluster, err = cluster.Prepare(ctx, cluster.Config{
		Dir: c.DataDir, Name: c.Node, Peer: c.Peer, Join: c.Join, Token: c.ServerToken, Logger: s.logger,
		Addresses: cluster.Addresses{Control: d.control.Addr().String(), API: d.api.Addr().String(), Consul: d.consul.Addr().String()},
	})
	if err != nil {
		return err
	}
	config := store.Config{Dir: filepath.Join(c.DataDir, "state"), Logger: s.logger}
	if s.cluster != nil {
		s.undo.add(s.cluster.Close)
		if config.Cluster, err = s.cluster.Store(); err != nil {
			return err
		}
	}
	if s.store, err = store.Open(ctx, config); err != nil {
		return err
	}
	s.undo.add(s.store.Close)
	return nil
}

// meetOthers makes the other servers known, before anything asks them.
func (s *Server) meetOthers(ctx context.Context, authority *ca.Authority) error {
	if s.cluster == nil {
		return nil
	}
	s.cluster.Attach(s.store)
	if err := s.cluster.OpenToken(authority); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	wait, err := s.cluster.Follow(ctx)
	if err != nil {
		stop()
		return err
	}
	s.undo.add(func() error { stop(); wait(); return nil })
	return nil
}

func (s *Server) openRegistry(ctx context.Context, c ServerConfig) (err error) {
	s.followers = new(control.Followers)
	config := registry.Config{Store: s.store, Node: weft.Node{Name: c.Node, Address: "127.0.0.1"}, Datacenter: c.Datacenter, EnableScripts: c.EnableScripts, Followers: s.followers, Logger: s.logger}
	if s.cluster != nil { // what stands on this machine is called from others
		config.Peers, config.Node.Address = s.cluster, s.cluster.Host()
	}
	if s.registry, err = registry.Open(ctx, config); err != nil {
		return err
	}
	s.undo.add(s.registry.Close)
	s.sources, err = c.Sources.open(s.registry, s.logger)
	return err
}

// openCA opens the certificate authority and the join token that belongs to it.
func (s *Server) openCA(ctx context.Context, dir string) (*ca.Authority, error) {
	sealFile := filepath.Join(dir, "seal.key")
	seal, err := ca.LoadOrCreateSealKey(sealFile)
	if err != nil {
		return nil, err
	}
	s.seal = seal
	authority, err := ca.Open(ctx, caStorage{s.store}, ca.Config{SealKey: seal, SealKeyFile: sealFile})
	if err != nil {
		return nil, err
	}
	s.authority = authority
	s.token, err = loadToken(TokenFile(dir), authority)
	return authority, err
}

// TokenFile is where a server with this data directory keeps its join token.
func TokenFile(dataDir string) string { return filepath.Join(dataDir, "join-token") }

// loadToken reads the join token, or makes it on first use.
func loadToken(path string, authority *ca.Authority) (string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		token, err := ca.NewJoinToken(authority.Roots())
		if err != nil {
			return "", err
		}
		return token, os.WriteFile(path, []byte(token+"\n"), 0o600)
	}
	if err != nil {
		return "", &weft.Error{Kind: weft.Internal, Op: "read join token", Thing: path, Err: err}
	}
	token, err := ca.ParseJoinToken(string(b))
	if err != nil {
		return "", &weft.Error{Kind: weft.Invalid, Op: "read join token", Thing: path, Err: fmt.Errorf("%w; remove the file to get a new token", err)}
	}
	if token.Pin() != ca.PinOf(authority.Roots()[0]) {
		return "", weft.Errorf(weft.Invalid, "read join token", path, "it belongs to another mesh's root certificate; remove the file to get a new token")
	}
	return strings.TrimSpace(string(b)), nil
}

// caStorage keeps the authority's root in the store.
type caStorage struct{ store *store.Store }

func (s caStorage) Load(ctx context.Context, name string) ([]byte, bool, error) {
	kv, found, err := s.store.Get(ctx, "ca/"+name)
	return kv.Value, found, err
}

func (s caStorage) Create(ctx context.Context, name string, value []byte) error {
	key := "ca/" + name
	_, err := s.store.Commit(ctx, store.Txn{If: []store.Cond{{Key: key}}, Put: []store.KV{{Key: key, Value: value}}})
	return err
}

// JoinToken lets gateways and sidecars join. It is a secret.
func (s *Server) JoinToken() string { return s.token }

// Run serves until ctx ends, then closes everything; or until another process has
// taken over. The state is safe at any moment: nothing is answered before it is on
// disk.
//
// Only one process can have the state open. So the other one is started first and
// made ready, then this one ends what it has begun and closes the state, and the
// other one opens it. Meanwhile connections wait in the queues of the sockets, which
// stay open; proxies, which lose their streams, come back by themselves, to the same
// queue. When the other one cannot open the state, this one does so again.
func (s *Server) Run(ctx context.Context) (err error) {
	outer := ctx
	ctx, over := s.process.tenure(ctx)
	defer over()
	defer func() { s.process.bye(0, err) }()
	for {
		next, r, ended, err := s.serve(ctx)
		if next == nil {
			return err
		}
		if err == nil {
			err = s.process.give(ctx, next)
		} else {
			next.Abort()
		}
		if err == nil {
			s.process.replaced(next, r)
			code, err := s.process.outlive(outer, next, nil, ended, func() error { return nil })
			return exitError(code, err)
		}
		s.process.refused(ctx, err, r)
		if ctx.Err() != nil {
			return nil
		}
		again, err := NewServer(ctx, s.config)
		if err != nil {
			return err
		}
		*s = *again
	}
}

// serve runs the server on its open state, and closes that. next is the process that
// waits for it, if there is one.
func (s *Server) serve(ctx context.Context) (next *handover.Next, r request, ended *running, err error) {
	serving, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	running := s.parts().start(serving)
	s.process.serving()
	ready := []any{"role", "server", "pid", os.Getpid()}
	for _, l := range s.Listeners() {
		ready = append(ready, l.Name, l.Address)
	}
	s.logger.Info("ready", ready...)
	next, r = s.process.successor(ctx, running, nil, s.process.stays(), func() any { return nil })
	if next == nil {
		s.process.link().Close() // nobody will accept from the queues
	}
	end(nil)
	<-running.done
	return next, r, running, errors.Join(running.err, s.undo.close())
}

// watchStore ends the server when its store has ended: it was taken out of its
// cluster, or cannot go on.
func (s *Server) watchStore(ctx context.Context) error {
	select {
	case <-s.store.Done():
		err := s.store.Err()
		if s.cluster != nil && errors.Is(err, store.ErrRemoved) {
			err = errors.Join(err, s.cluster.Leave())
		}
		return err
	case <-ctx.Done():
		return nil
	}
}

func (s *Server) parts() *parts {
	var p parts
	p.add("store", s.watchStore)
	faces := http.NewServeMux()
	faces.Handle("/metrics", metricsHandler(s.metrics, s.logger))
	faces.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	keys := api.NewIdempotency(s.store, s.logger)
	faces.Handle("/", api.New(api.Config{Registry: s.registry, Control: s.control, Collector: s.collector, Idempotency: keys, Cluster: members{s},
		Listeners: s.Listeners(), Sources: func() []client.Source { return statuses(s.sources) }, Started: s.started, Logger: s.logger}))
	s.figures()
	p.add("weft API", serveHTTP(s.doors.api, faces, s.logger))
	s.addCatalogue(&p)
	for _, source := range s.sources {
		source.figures(s.metrics)
		p.add(source.what, source.run)
	}
	p.add("OTLP/HTTP", serveHTTP(s.doors.otlpHTTP, s.collector.Handler(), s.logger))
	p.add("OTLP/gRPC", s.serveOTLP())
	p.add("control", s.serveControl())
	s.addDNS(&p)
	p.add("clock", watchClock(s.logger))
	p.add("idempotency keys", keys.Run)
	if s.cluster != nil {
		p.add("cluster", s.cluster.Run)
	}
	return &p
}

// figures are the server's own metrics.
func (s *Server) figures() {
	s.metrics.GaugeFunc("weft_registry_index", "Index of the newest change to any instance or check.", func() float64 {
		_, index := s.registry.AllInstances()
		return float64(index)
	})
	s.metrics.GaugeFunc("weft_registry_instances", "Registered instances, without the servers themselves.", func() float64 {
		all, _ := s.registry.AllInstances()
		n := 0
		for _, in := range all {
			if in.Dialect != registry.ServerDialect {
				n++
			}
		}
		return float64(n)
	})
	s.metrics.GaugeFunc("weft_control_proxies", "Connected sidecars and gateways.", func() float64 {
		return float64(len(s.control.Proxies()))
	})
}

func (s *Server) serveControl() func(context.Context) error {
	options := append(s.control.ServerOptions(), grpc.Creds(credentials.NewTLS(s.control.ServerTLS())))
	g := grpc.NewServer(options...)
	s.control.Register(g)
	if s.cluster != nil {
		s.cluster.Tell(s.control)
		s.cluster.Register(g, s.registry.Execute)
	}
	s.collector.RegisterGRPC(g) // proxies export their spans over the connection they have
	return serveGRPC(g, s.doors.control)
}

func (s *Server) serveOTLP() func(context.Context) error {
	g := grpc.NewServer(grpc.MaxRecvMsgSize(4 << 20))
	s.collector.RegisterGRPC(g)
	return serveGRPC(g, s.doors.otlpGRPC)
}

// serveGRPC serves until ctx ends. Streams of proxies never end by themselves, so
// there is nothing to wait for politely: proxies reconnect.
func serveGRPC(g *grpc.Server, ln net.Listener) func(context.Context) error {
	return func(ctx context.Context) error {
		unhook := context.AfterFunc(ctx, g.Stop)
		defer unhook()
		return g.Serve(ln)
	}
}
