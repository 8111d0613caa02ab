// Package dns answers DNS questions from weft's registry, over UDP and TCP: by
// Consul's names, by Kubernetes', and backwards by address; other names are asked for
// elsewhere, if Config says where.
//
//	s := dns.New(registry, dns.Config{})
//	err := s.Serve(packets, listener) // until s.Close()
//
// # Names of Consul
//
// They are below "consul.", or Config.Domain and AltDomain. "dc" is the registry's
// datacenter, and may be left out, or be written "dc.dc"; there are no others.
//
//	[tag.]name.service[.dc].consul       A, AAAA, SRV, SVCB, HTTPS
//	_name._tcp[.service][.dc].consul     the same (RFC 2782); another second label is a tag
//	name.connect[.dc].consul             likewise: where the mesh takes connections for it
//	name.ingress[.dc].consul             likewise: the ingress gateways
//	name.query[.dc].consul               likewise: a prepared query, by Config.Queries
//	name.virtual[.dc].consul             A: an address that only stands for the service (VirtualIP)
//	node.node[.dc].consul                A, AAAA; TXT: the node's labels (RFC 1464)
//	c0a80101.addr[.dc].consul            A, AAAA: the address itself, in hexadecimal
//	consul                               SOA, NS
//
// The target of a SRV record is the instance's node, or its address (….addr.…) when
// the instance has one of its own. Only instances that pass or warn, on nodes that
// pass or warn, are given (Config.OnlyPassing leaves out who warns), and the failed ones
// that the service's guard keeps (registry.Guard): then the answer to a question with
// EDNS says why, in an Extended DNS Error "stale answer" (RFC 8914). A node is given
// whatever its health.
//
// # Names of Kubernetes
//
// They follow the DNS specification 1.1.0 for the zone cluster.local. SetServices says
// which Services there are; their endpoints are the instances of the registry's
// service of that name and namespace.
//
//	name.ns.svc.cluster.local            A, AAAA: its cluster addresses; SRV: its named ports
//	_port._tcp.name.ns.svc.cluster.local SRV of one port
//	10-0-0-1.name.ns.svc.cluster.local   A, AAAA of one instance; so hostname.name.…
//	10-0-0-1.ns.pod.cluster.local        A, AAAA, if an instance of the namespace is there
//	dns-version.cluster.local            TXT
//
// A headless Service (without addresses) has those of its ready instances, and a SRV
// record for each of them and each port; one with PublishNotReady, those of all of
// them. One with an ExternalName is a CNAME. A service without a Service is as a
// headless one; each instance then has the one port that it registered, whose name is
// its number, or any tag of the instance. An instance's label "hostname" names it
// within its service.
//
// A name that a resolver made of another one and the first suffix of its search path
// (www.example.com.shop.svc.cluster.local) is answered at once with a CNAME to what
// the rest of the path leads to, if that exists: so ndots:5 costs one question.
//
// # Backwards
//
// 1.1.168.192.in-addr.arpa and ….ip6.arpa have PTR records: the node at this address,
// else the services that have an instance there; the Service whose cluster address it
// is; and the names that Kubernetes has for its instances.
//
// # Answers
//
// Addresses and ports are those that instances registered, not their sidecars'. They
// are in random order, by weight, each once; so what is left of an answer that was cut
// is a fair sample. An instance whose address is a host name is a CNAME, when its
// service has no instance with an address, and its answer goes on with what that name
// has. Service bindings (RFC 9460) have port and ALPN of the instances' protocol.
//
// A name that nothing has, or whose instances are all ill, is NXDOMAIN; one that has
// no record of the type, or only leads to others (service.consul), is an empty answer
// (RFC 2308), for Config.NegativeTTL. Other names are REFUSED without recursors, and
// so are zone transfers. ANY gets one HINFO record (RFC 8482).
//
// What does not fit is cut, and TC is set; additional records are left out without.
// An answer has at most 512 bytes over UDP, 1232 with EDNS, and as many as the client
// says (65467 at most) when it proved its address by a cookie (RFC 7873), or is on
// this machine; over TCP 65535. Questions may follow each other on a connection
// without waiting. The letters of the question come back in their case ("0x20").
//
// Answers are kept packed (64 MiB at most) with the indexes of what they were made of,
// and given until one of those moves: so every answer is of the registry as it is now,
// and most are a copy.
//
// # Recursion
//
// With Config.Recursors, questions that want recursion and are not for these zones are
// asked there, once for all who ask the same meanwhile: from a new port, with a new
// id and mixed letters, over UDP, then TCP when the answer is cut. Answers are
// remembered (32 MiB at most) for as long as they say, a failure for a second; when no
// resolver answers, one that is too old by an hour at most is given (RFC 8767).
package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
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

	Clients []netip.Prefix // who may ask, beside loopback; none: everybody. Others are refused.

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
	clients     []netip.Prefix // nil: everybody
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
		queries: c.Queries, maxConns: c.MaxConns, clients: c.Clients, baker: newBaker(),
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
