// Package controltest runs a whole control plane for tests: a real store, registry
// and certificate authority, and the control port on a loopback address.
package controltest

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/control/resource"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/store"
	"github.com/weftmesh/weft/telemetry/metric"
)

// Server is a control plane with what it stands on.
type Server struct {
	Store    *store.Store
	Registry *registry.Registry
	CA       *ca.Authority
	Control  *control.Control
	Address  string // the same over restarts
	Token    string

	tb     testing.TB
	dir    string
	config Config
	grpc   *grpc.Server
	served chan error
}

// Config of Start. The zero value is usable.
type Config struct {
	TrustDomain string
	LeafTTL     time.Duration
	Traces      collector.TraceServiceServer // served on the control port
	Others      control.Others
	Metrics     *metric.Registry
}

// Start starts a server, which ends with the test.
func Start(tb testing.TB, c Config) *Server {
	tb.Helper()
	s := &Server{tb: tb, dir: tb.TempDir(), Address: "127.0.0.1:0", config: c}
	s.start()
	tb.Cleanup(s.Stop)
	return s
}

func (s *Server) start() {
	s.tb.Helper()
	ctx := context.Background()
	var err error
	followers := new(control.Followers)
	if s.Store, err = store.Open(ctx, store.Config{Dir: filepath.Join(s.dir, "state")}); err != nil {
		s.tb.Fatal(err)
	}
	s.Registry, err = registry.Open(ctx, registry.Config{Store: s.Store, Node: weft.Node{Name: "node-1", Address: "127.0.0.1"}, Followers: followers})
	if err != nil {
		s.tb.Fatal(err)
	}
	s.CA, err = ca.Open(ctx, caStorage{s.Store}, ca.Config{TrustDomain: s.config.TrustDomain, SealKey: bytes.Repeat([]byte{7}, 32), LeafTTL: s.config.LeafTTL})
	if err != nil {
		s.tb.Fatal(err)
	}
	if s.Token == "" {
		if s.Token, err = ca.NewJoinToken(s.CA.Roots()); err != nil {
			s.tb.Fatal(err)
		}
	}
	if s.Control, err = control.Open(ctx, control.Config{Store: s.Store, Registry: s.Registry, CA: s.CA, JoinToken: s.Token, Followers: followers, Others: s.config.Others, Metrics: s.config.Metrics}); err != nil {
		s.tb.Fatal(err)
	}
	s.listen()
}

func (s *Server) listen() {
	s.tb.Helper()
	l, err := net.Listen("tcp", s.Address)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.Address = l.Addr().String()
	s.grpc = grpc.NewServer(append(s.Control.ServerOptions(), grpc.Creds(credentials.NewTLS(s.Control.ServerTLS())))...)
	s.Control.Register(s.grpc)
	if s.config.Traces != nil {
		collector.RegisterTraceServiceServer(s.grpc, s.config.Traces)
	}
	s.served = make(chan error, 1)
	go func() { s.served <- s.grpc.Serve(l) }()
}

// Stop ends the server as a crash does: streams break, nobody says goodbye. The
// state stays.
func (s *Server) Stop() {
	s.tb.Helper()
	if s.grpc == nil {
		return
	}
	s.grpc.Stop()
	<-s.served
	s.grpc = nil
	for _, close := range []func() error{s.Control.Close, s.Registry.Close, s.Store.Close} {
		if err := close(); err != nil {
			s.tb.Error(err)
		}
	}
}

// Restart stops the server and starts it on the same state and address.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Stop()
	s.start()
}

// Apply applies one file of resources.
func (s *Server) Apply(yaml string) control.ApplyResult {
	s.tb.Helper()
	r, err := s.Control.Apply(context.Background(), []resource.File{{Name: "test.yaml", Data: []byte(yaml)}}, control.ApplyOptions{})
	if err != nil {
		s.tb.Fatal(err)
	}
	return r
}

// Instance registers a healthy instance "<service>-<version>" at 10.0.0.1:port.
func (s *Server) Instance(service, version string, port int) weft.InstanceKey {
	s.tb.Helper()
	in := weft.Instance{
		ID: service + "-" + version, Service: weft.NewServiceName("", service), Node: "node-1", Address: "10.0.0.1", Port: port,
		Labels: map[string]string{"app": service, "version": version},
	}
	if _, err := s.Registry.Register(context.Background(), in); err != nil {
		s.tb.Fatal(err)
	}
	return in.Key()
}

// Credentials are those of a service account, signed by the server's authority.
func (s *Server) Credentials(serviceAccount string) *ca.Credentials {
	s.tb.Helper()
	id := weft.NewIdentity(s.CA.TrustDomain(), weft.DefaultNamespace, serviceAccount)
	key, csr, err := ca.NewCSR(id)
	if err != nil {
		s.tb.Fatal(err)
	}
	chain, _, err := s.CA.Sign(csr, id)
	if err != nil {
		s.tb.Fatal(err)
	}
	c := new(ca.Credentials)
	if err := c.Set(chain, key, s.CA.Roots()); err != nil {
		s.tb.Fatal(err)
	}
	return c
}

// caStorage keeps the root under "ca/", as a server does.
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

// Eventually waits until ok returns "", and fails the test with what it returned
// last after ten seconds.
func Eventually(tb testing.TB, ok func() (wrong string)) {
	tb.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		wrong := ok()
		if wrong == "" {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatal(wrong)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
