// DOC
package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// Config of a Server. The zero value is useful.
type Config struct {
	Domain      string // of Consul's names; "consul." when empty
	AltDomain   string // another name of the same; "" for none
	OnlyPassing bool   // instances that warn are not given either

	TTL         time.Duration            // of answers, whole seconds; 0: they may not be cached
	ServiceTTL  map[string]time.Duration // by a service's name, or a beginning of names and "*"; others have TTL
	NegativeTTL time.Duration            // how long a "no" may be cached; 1 s when 0

	Recursors []string // resolvers, host:port, of names that are not ours; none: such names are refused
	Queries   Queries  // nil: there are no prepared queries
	MaxConns  int      // TCP connections at a time, more are closed at once; 512 when 0

	Logger *slog.Logger // our own failures; nil discards them
}

// Queries finds what a prepared query gives: instances, best first, at most limit,
// and how long an answer may be cached. found is false when there is no such query.
// It must not block.
type Queries interface {
	Execute(name string, limit int) (instances []*weft.Instance, ttl time.Duration, found bool)
}

// Server answers questions from one registry.
type Server struct {
	// constant
	registry    *registry.Registry
	logger      *slog.Logger
	datacenter  string       // lower case
	domains     []zoneDomain // of Consul's names; the first is the one
	onlyPassing bool
	ttl         uint32
	serviceTTLs map[string]uint32
	negative    uint32
	queries     Queries
	recursor    *recursor // nil: names that are not ours are refused
	maxConns    int
	baker       baker
	ctx         context.Context // ends with Close
	cancel      context.CancelFunc

	packed    *cache[*packed]
	documents atomic.Pointer[documents] // never nil
	folded    atomic.Pointer[foldedNames]
	places    places

	work    sync.WaitGroup // readers, connections and errands
	errands chan struct{}  // holds one for each that runs

	mu       sync.Mutex
	closed   bool
	packet   net.PacketConn // nil until Serve
	listener net.Listener   // nil until Serve
	conns    map[net.Conn]struct{}
}

// zoneDomain is a domain of Consul's names, in lower case.
type zoneDomain struct {
	name   string // with the final dot
	labels []string
}

// packedMemory bounds the answers that are kept ready, in bytes.
const packedMemory = 64 << 20

// New returns a server that is not serving yet.
func New(r *registry.Registry, c Config) *Server {
	s := &Server{
		registry: r, logger: c.Logger, onlyPassing: c.OnlyPassing,
		ttl: seconds(c.TTL), negative: seconds(c.NegativeTTL), serviceTTLs: make(map[string]uint32),
		queries: c.Queries, maxConns: c.MaxConns, baker: newBaker(),
		packed: newCache[*packed](packedMemory), errands: make(chan struct{}, maxErrands),
		conns: make(map[net.Conn]struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if r != nil {
		s.datacenter = strings.ToLower(r.Datacenter())
	}
	if c.Domain == "" {
		c.Domain = "consul"
	}
	for _, d := range []string{c.Domain, c.AltDomain} {
		if d != "" {
			name := strings.ToLower(dns.Fqdn(d))
			s.domains = append(s.domains, zoneDomain{name, dns.SplitDomainName(name)})
		}
	}
	for name, ttl := range c.ServiceTTL {
		s.serviceTTLs[strings.ToLower(name)] = seconds(ttl)
	}
	if c.NegativeTTL == 0 {
		s.negative = 1
	}
	if s.maxConns == 0 {
		s.maxConns = 512
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if len(c.Recursors) > 0 {
		s.recursor = newRecursor(c.Recursors)
	}
	s.SetServices(nil)
	return s
}

// Serve answers on both sockets, which it owns from now on, until Close, and then
// returns nil. When a socket fails it closes both, and returns the failure.
func (s *Server) Serve(packet net.PacketConn, listener net.Listener) error {
	failed, err := s.start(packet, listener)
	if err != nil {
		return errors.Join(err, packet.Close(), listener.Close())
	}
	err = <-failed
	if closing := s.Close(); err == nil {
		err = closing
	}
	return err
}

// start takes the sockets and begins to read them, unless Close was there first.
// The readers' ends arrive on the channel.
func (s *Server) start(packet net.PacketConn, listener net.Listener) (<-chan error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.packet != nil {
		return nil, weft.Errorf(weft.Conflict, "serve", "DNS", "the server is closed, or serves already")
	}
	s.packet, s.listener = packet, listener
	readers := runtime.GOMAXPROCS(0)
	failed := make(chan error, readers+1)
	socket := newUDPSocket(packet)
	for range readers {
		s.work.Go(func() { failed <- s.servePackets(socket) })
	}
	s.work.Go(func() { failed <- s.serveConns(listener) })
	return failed, nil
}

// Close lets the answers that are being made be sent, closes the sockets, and
// waits until nothing runs any more.
func (s *Server) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	if first && s.packet != nil {
		s.packet.SetReadDeadline(past)
		s.listener.Close()
		for c := range s.conns {
			c.SetReadDeadline(past)
		}
	}
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
	if first && s.packet != nil {
		return s.packet.Close()
	}
	return nil
}

var past = time.Unix(1, 0) // a deadline that wakes a reader at once

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}
