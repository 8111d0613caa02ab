package node

import (
	"net"

	"github.com/weftmesh/weft/client"
)

// doors are the bound sockets of a server.
type doors struct {
	api, consul, eureka, dns, control, otlpHTTP, otlpGRPC net.Listener
	dnsPackets                                            net.PacketConn
}

// bind takes every port, so that a taken one is found before any state is opened.
func (s *Server) bind(c ServerConfig) error {
	for _, d := range []struct {
		ln                  *net.Listener
		what, address, flag string
		protected           bool
	}{
		{&s.doors.api, "weft API", c.API, "--api", false},
		{&s.doors.consul, "Consul API", c.Consul, "--consul", false},
		{&s.doors.eureka, "Eureka", c.Eureka, "--eureka", false},
		{&s.doors.dns, "DNS", c.DNS, "--dns", false},
		{&s.doors.control, "control", c.Control, "--control", true},
		{&s.doors.otlpHTTP, "OTLP/HTTP", c.OTLPHTTP, "--otlp-http", false},
		{&s.doors.otlpGRPC, "OTLP/gRPC", c.OTLPGRPC, "--otlp-grpc", false},
	} {
		if !d.protected {
			if err := loopbackOnly(d.what, d.address, d.flag); err != nil {
				return err
			}
		}
		ln, err := listen(c.Process, d.what, d.address, d.flag)
		if err != nil {
			return err
		}
		*d.ln = ln
		s.undo.add(closeQuietly(ln))
		if err := loopbackOnly(d.what, ln.Addr().String(), d.flag); err != nil && !d.protected {
			return err // a supervisor's socket
		}
	}
	packets, err := c.Process.link().ListenPacket(dnsPackets, s.doors.dns.Addr().String())
	if err != nil {
		return bindError("DNS (UDP)", s.doors.dns.Addr().String(), "--dns", err)
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
func (s *Server) Listeners() []client.Listener {
	d := &s.doors
	return []client.Listener{
		{Name: "api", Address: d.api.Addr().String()}, {Name: "consul", Address: d.consul.Addr().String()},
		{Name: "eureka", Address: d.eureka.Addr().String()},
		{Name: "dns", Address: d.dns.Addr().String()}, {Name: "control", Address: d.control.Addr().String()},
		{Name: "otlp-http", Address: d.otlpHTTP.Addr().String()}, {Name: "otlp-grpc", Address: d.otlpGRPC.Addr().String()},
	}
}
