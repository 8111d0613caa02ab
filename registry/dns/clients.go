package dns

import (
	"net"
	"net/netip"

	"github.com/miekg/dns"
)

// serves reports whether a client may ask. DNS has neither encryption nor tokens, so
// the network that a question comes from is all that there is to go by; loopback may
// always ask.
func (s *Server) serves(client netip.Addr) bool {
	if s.clients == nil {
		return true
	}
	client = client.Unmap().WithZone("")
	if client.IsLoopback() {
		return true
	}
	for _, p := range s.clients {
		if p.Contains(client) {
			return true
		}
	}
	return false
}

// turnAway appends the answer to a stranger's packet: none to what is no question, so
// that two servers cannot be made to talk to each other.
func turnAway(b, packet []byte) []byte {
	if len(packet) < 12 || packet[2]&0x80 != 0 {
		return b
	}
	return refusal(b, packet, dns.RcodeRefused)
}

// clientOf is who opened a connection, the zero value when that cannot be told.
func clientOf(c net.Conn) netip.Addr {
	a, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr()
}
