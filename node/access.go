package node

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry/consul"
	"github.com/weftmesh/weft/registry/eureka"
)

// Access is who may use the doors of the catalogue: beyond loopback Consul's and
// Eureka's clients come over TLS and with tokens, and DNS, which has neither, answers
// certain networks.
type Access struct {
	Default    string // what a token may do of which no rule says anything, "allow" or "deny"; empty: there is no access control
	Management string // a secret that may do everything; empty: the one that acl/bootstrap gives

	DefaultIntention string // what holds where no intention says anything: "deny", or "allow" (also when empty)

	ConsulHTTPS  string // host:port of Consul's API over TLS; none when empty
	EurekaHTTPS  string
	Certificates []CertificateFiles // of these two

	DNSClients []netip.Prefix // who may ask DNS, beside loopback
}

// check refuses what would not do what it seems to.
func (c *Access) check() error {
	switch c.Default {
	case "", "allow", "deny":
	default:
		return weft.Errorf(weft.Invalid, "start", "server", "--acl %q: use allow or deny", c.Default)
	}
	switch c.DefaultIntention {
	case "", "allow", "deny":
	default:
		return weft.Errorf(weft.Invalid, "start", "server", "--default-intention %q: use allow or deny", c.DefaultIntention)
	}
	secure := c.ConsulHTTPS != "" || c.EurekaHTTPS != ""
	switch {
	case c.Management != "" && c.Default == "":
		return weft.Errorf(weft.Invalid, "start", "server", "--acl-token-file: it belongs to --acl deny (or allow)")
	case secure && len(c.Certificates) == 0:
		return weft.Errorf(weft.Invalid, "start", "server", "--consul-https and --eureka-https need --cert and --key")
	case !secure && len(c.Certificates) > 0:
		return weft.Errorf(weft.Invalid, "start", "server", "--cert and --key belong to --consul-https or --eureka-https: set an address, too")
	}
	return nil
}

// admit makes ready what the doors need.
func (s *Server) admit(c ServerConfig) (err error) {
	if err := c.Access.check(); err != nil {
		return err
	}
	if len(c.Certificates) > 0 {
		s.certificates, err = loadCertificates(c.Certificates, s.logger)
	}
	return err
}

// acl is the access control of all doors of the catalogue, nil when there is none.
func (s *Server) acl() *consul.ACL {
	c := &s.config.Access
	if c.Default == "" {
		return nil
	}
	return &consul.ACL{DefaultPolicy: c.Default, InitialManagement: c.Management, SealKey: s.seal}
}

// addCatalogue adds Consul's API and Eureka's, each on its doors.
func (s *Server) addCatalogue(p *parts) {
	s.serveConsul(p)
	c := eureka.Config{Logger: s.logger}
	if acl := s.acl(); acl != nil {
		c.Permit = consul.NewAccess(s.registry, acl).Service
	}
	e := eureka.New(s.registry, c)
	p.add("Eureka", serveHTTP(s.doors.eureka, e, s.logger))
	p.add("leases of Eureka", e.Run)
	s.addTLS(p, "Eureka over TLS", s.doors.eurekaHTTPS, e)
	if s.certificates != nil {
		p.add("certificates", s.certificates.watch)
	}
}

// addTLS serves a door with TLS, if it is bound.
func (s *Server) addTLS(p *parts, what string, ln net.Listener, h http.Handler) {
	if ln != nil {
		p.add(what, serveHTTP(tls.NewListener(ln, s.certificates.config()), h, s.logger))
	}
}
