package node

import (
	"fmt"
	"net"
	"strings"

	"github.com/weftmesh/weft/client"
)

// doors are the bound sockets of a server.
type doors struct {
	api, consul, eureka, dns, control, otlpHTTP, otlpGRPC net.Listener
	consulHTTPS, eurekaHTTPS                              net.Listener // nil: not bound
	dnsPackets                                            net.PacketConn
}

// bind takes every port, so that a taken one is found before any state is opened.
func (s *Server) bind(c ServerConfig) error {
	const noTokens = "without TLS and tokens, which this version does not have for it; bind it to 127.0.0.1 (the control port is protected and may be bound to any address)"
	const plain = "in plain text; bind it to 127.0.0.1, and give others %s"
	secured, named := "", ""
	if c.Access.Default != "deny" {
		secured = "to everybody who can reach it; set --acl deny, so that clients need tokens"
	}
	if len(c.DNSClients) == 0 {
		named = "to everybody who can reach it; say by --dns-clients which networks may ask"
	}
	for _, d := range []struct {
		ln                        *net.Listener
		what, address, flag, lack string
	}{
		{&s.doors.api, "weft API", c.API, "--api", noTokens},
		{&s.doors.consul, "Consul API", c.Consul, "--consul", fmt.Sprintf(plain, "--consul-https")},
		{&s.doors.consulHTTPS, "Consul API over TLS", c.ConsulHTTPS, "--consul-https", secured},
		{&s.doors.eureka, "Eureka", c.Eureka, "--eureka", fmt.Sprintf(plain, "--eureka-https")},
		{&s.doors.eurekaHTTPS, "Eureka over TLS", c.EurekaHTTPS, "--eureka-https", secured},
		{&s.doors.dns, "DNS", c.DNS, "--dns", named},
		{&s.doors.control, "control", c.Control, "--control", ""},
		{&s.doors.otlpHTTP, "OTLP/HTTP", c.OTLPHTTP, "--otlp-http", noTokens},
		{&s.doors.otlpGRPC, "OTLP/gRPC", c.OTLPGRPC, "--otlp-grpc", noTokens},
	} {
		if d.address == "" && strings.HasSuffix(d.flag, "-https") {
			continue
		}
		if err := offered(d.what, d.address, d.flag, d.lack); err != nil {
			return err
		}
		ln, err := listen(c.Process, d.what, d.address, d.flag)
		if err != nil {
			return err
		}
		*d.ln = ln
		s.undo.add(closeQuietly(ln))
		if err := offered(d.what, ln.Addr().String(), d.flag, d.lack); err != nil {
			return err // a supervisor's socket
		}
	}
	return s.bindPackets(c)
}

func (s *Server) bindPackets(c ServerConfig) error {
	address := s.doors.dns.Addr().String()
	packets, err := c.Process.link().ListenPacket(dnsPackets, address)
	if err != nil {
		return bindError("DNS (UDP)", address, "--dns", err)
	}
	s.doors.dnsPackets = packets
	s.undo.add(func() error { _ = packets.Close(); return nil })
	return nil
}

// dnsPackets is the name of the UDP socket of --dns.
const dnsPackets = "dns-packets"

// closeQuietly closes a listener that its server may have closed already.
func closeQuietly(ln net.Listener) func() error {
	return func() error { _ = ln.Close(); return nil }
}

// Listeners are the server's doors with the ports that were bound.
func (s *Server) Listeners() (list []client.Listener) {
	d := &s.doors
	for _, one := range []struct {
		name string
		ln   net.Listener
	}{
		{"api", d.api}, {"consul", d.consul}, {"consul-https", d.consulHTTPS}, {"eureka", d.eureka}, {"eureka-https", d.eurekaHTTPS},
		{"dns", d.dns}, {"control", d.control}, {"otlp-http", d.otlpHTTP}, {"otlp-grpc", d.otlpGRPC},
	} {
		if one.ln != nil {
			list = append(list, client.Listener{Name: one.name, Address: one.ln.Addr().String()})
		}
	}
	return list
}
