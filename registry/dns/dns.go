// Package dns answers DNS questions from weft's registry, over UDP and TCP.
//
// Names of Consul (the zone "consul." unless Config.Domain says otherwise; "dc" is
// the registry's datacenter and may be left out):
//
//	[tag.]name.service[.dc].consul       A, AAAA, SRV
//	_name._tcp[.service][.dc].consul     SRV (RFC 2782); another second label is a tag
//	node.node[.dc].consul                A, AAAA; TXT: the node's labels (RFC 1464)
//	c0a80101.addr[.dc].consul            A, AAAA: the address itself, in hexadecimal
//	1.1.168.192.in-addr.arpa, ….ip6.arpa PTR: the node of this address, else its services
//
// Names of Kubernetes (DNS specification 1.1.0, as for headless services):
//
//	name.ns.svc.cluster.local            A, AAAA, SRV
//	10-0-0-1.name.ns.svc.cluster.local   A, AAAA of one instance; target of its SRV
//	_port._tcp.name.ns.svc.cluster.local SRV; instances have one port without a name,
//	                                     so "port" is its number, or a tag of the instance
//	dns-version.cluster.local            TXT
//
// Answers are the addresses and ports that instances registered, not those of
// their sidecars. Only instances that pass or warn, on nodes that pass or warn, are
// given; in random order, by weight. An instance whose address is a host name is a
// CNAME, when the service has no instance with an address. A name that nothing has
// is NXDOMAIN, and so is a Consul name whose instances are all ill; a Kubernetes
// name with no ready instance, a name that has no record of the type, and one that
// only leads to others (service.consul) is an empty answer. Questions outside the
// zones are REFUSED: nothing is looked up elsewhere.
//
// What does not fit is cut, and TC is set; records in the additional section are
// left out without. UDP answers are at most 512 bytes, or what the client says by
// EDNS, up to 4096. ANY gets one HINFO record (RFC 8482).
package dns

import (
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
	Domain      string        // of Consul's names; "consul." when empty
	TTL         time.Duration // of answers, whole seconds; 0: they may not be cached
	NegativeTTL time.Duration // how long a "no" may be cached; 1 s when 0
	MaxConns    int           // TCP connections at a time, more are closed at once; 512 when 0
	Logger      *slog.Logger  // our own failures; nil discards them
}

// Server answers questions from one registry.
type Server struct {
	// constant
	registry *registry.Registry
	logger   *slog.Logger
	domain   string // lower case, with the final dot
	ttl      uint32
	negative uint32
	maxConns int
	done     chan struct{} // closed by Close

	folded  atomic.Pointer[foldedNames]
	reverse atomic.Pointer[reverseNames]

	work sync.WaitGroup // readers and connections

	mu       sync.Mutex
	closed   bool
	packet   net.PacketConn // nil until Serve
	listener net.Listener   // nil until Serve
	conns    map[net.Conn]struct{}
}

// New returns a server that is not serving yet.
func New(r *registry.Registry, c Config) *Server {
	s := &Server{
		registry: r, logger: c.Logger, domain: strings.ToLower(dns.Fqdn(c.Domain)),
		ttl: uint32(c.TTL / time.Second), negative: uint32(c.NegativeTTL / time.Second),
		maxConns: c.MaxConns, conns: make(map[net.Conn]struct{}), done: make(chan struct{}),
	}
	if c.Domain == "" {
		s.domain = "consul."
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
	if first {
		close(s.done)
	}
	if first && s.packet != nil {
		s.packet.SetReadDeadline(past)
		s.listener.Close()
		for c := range s.conns {
			c.SetReadDeadline(past)
		}
	}
	s.mu.Unlock()
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
