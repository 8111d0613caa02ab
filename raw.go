package weft

import (
	"math/bits"
	"slices"
	"strings"
)

// RawRule routes whole connections, whose bytes nobody looks at: a VirtualService's
// tcp or tls route. A field that is empty asks nothing.
type RawRule struct {
	Name   string // "tcp[0]", "default"
	Source SourceRef
	Ports  []uint16 // one of them: the port that the client meant
	SNI    []string // one of them, lower case: "db.example.com", "*.example.com", "*"
	// Destinations share the connections. Without one the rule is a gateway's, and
	// says that the gateway itself ends TLS here: its requests are routed by Rules.
	Destinations []Destination
	total        uint64 // sum of the destinations' weights
}

// Fits reports whether the rule takes a connection. Port 0 is one that the caller
// does not tell from others: it fits any.
func (r *RawRule) Fits(sni string, port uint16) bool {
	if port != 0 && len(r.Ports) > 0 && !slices.Contains(r.Ports, port) {
		return false
	}
	if len(r.SNI) == 0 {
		return true
	}
	for _, pattern := range r.SNI {
		if FitsHost(pattern, sni) {
			return true
		}
	}
	return false
}

// FitsHost reports whether a host is a pattern's: "*" is everybody's, and
// "*.foo.com" that of every name under foo.com, but not foo.com itself. Both are
// in lower case.
func FitsHost(pattern, host string) bool {
	suffix, wildcard := strings.CutPrefix(pattern, "*")
	if !wildcard {
		return pattern == host
	}
	return suffix == "" || len(host) > len(suffix) && strings.HasSuffix(host, suffix)
}

// pick chooses a destination, as Rule.pick does.
func (r *RawRule) pick(random uint64) *Destination {
	return pickDestination(r.Destinations, r.total, random)
}

// Share is the destination's part of the rule's connections, 0 to 1.
func (r *RawRule) Share(d *Destination) float64 { return share(r.Destinations, r.total, d) }

func (r *RawRule) String() string { return r.Source.String() + " " + r.Name }

func firstRaw(rules []RawRule, sni string, port uint16) *RawRule {
	for i := range rules {
		if rules[i].Fits(sni, port) {
			return &rules[i]
		}
	}
	return nil
}

// RouteTCP decides where a connection goes that a client in the mesh opens to a
// host, or to an outbound port that stands for it. port is the one that the client
// meant, 0 when that is not told. A host that is a service's leads there when no
// tcp rule fits.
func (s *Snapshot) RouteTCP(host string, port uint16, random uint64) Decision {
	table, asked := s.Hosts[host]
	switch {
	case !asked:
		return Decision{Problem: NotLoaded}
	case table == nil:
		return Decision{Problem: NoHost}
	}
	rule := firstRaw(table.TCP, "", port)
	if rule == nil || len(rule.Destinations) == 0 {
		return Decision{Problem: NoRule}
	}
	return s.followRaw(rule, random)
}

// RouteTLS decides where a TLS connection goes that is passed on as it is, by the
// name in its ClientHello (lower case). ok is false when it is not to be passed on:
// at a gateway TLS ends there then, if it has a certificate.
//
// At a gateway the narrowest host with a rule for the port counts: exact, then the
// longest wildcard, then "*". In the mesh the SNI is the host itself.
func (s *Snapshot) RouteTLS(sni string, port uint16, random uint64) (d Decision, ok bool) {
	if s.Gateway == nil {
		table := s.Hosts[sni]
		if table == nil {
			return Decision{}, false
		}
		rule := firstRaw(table.TLS, sni, port)
		if rule == nil {
			rule = firstRaw(table.TCP, "", port)
		}
		if rule == nil || len(rule.Destinations) == 0 {
			return Decision{}, false
		}
		return s.followRaw(rule, random), true
	}
	rule := s.Gateway.lookupTLS(sni, port)
	if rule == nil || len(rule.Destinations) == 0 {
		return Decision{}, false
	}
	return s.passOn(rule, port, random), true
}

// RouteGatewayTCP decides where a connection goes that a client opened to a port of
// the gateway. ok is false when no TCP server of the Gateway has the port.
func (s *Snapshot) RouteGatewayTCP(port uint16, random uint64) (d Decision, ok bool) {
	if s.Gateway == nil {
		return Decision{}, false
	}
	rule := s.Gateway.tcp[port]
	if rule == nil || len(rule.Destinations) == 0 {
		return Decision{}, false
	}
	return s.passOn(rule, port, random), true
}

// passOn is a gateway's decision: as for requests, the tcp rules of the service
// that it leads to apply next, unless the edge's rule names a subset.
func (s *Snapshot) passOn(rule *RawRule, port uint16, random uint64) Decision {
	d := s.followRaw(rule, random)
	if d.Destination.Subset != "" {
		return d
	}
	own := s.Hosts[d.Destination.host]
	if own == nil {
		return d
	}
	inner := firstRaw(own.TCP, "", port)
	if inner == nil || len(inner.Destinations) == 0 {
		return d
	}
	to := s.followRaw(inner, bits.RotateLeft64(random*0x9e3779b97f4a7c15, 32))
	to.EdgeRaw = rule
	return to
}

func (s *Snapshot) followRaw(rule *RawRule, random uint64) Decision {
	d := Decision{Raw: rule, Destination: rule.pick(random)}
	d.Service = s.Services[d.Destination.Service]
	d.Problem = d.nowhere()
	return d
}

// TCPPorts are the ports of the Gateway's TCP servers that lead somewhere, in
// order: those that a gateway has to listen on.
func (g *Gateway) TCPPorts() []uint16 {
	out := make([]uint16, 0, len(g.tcp))
	for port := range g.tcp {
		out = append(out, port)
	}
	slices.Sort(out)
	return out
}

// lookupTLS finds the rule for an SNI from the narrowest host to the widest.
func (g *Gateway) lookupTLS(sni string, port uint16) *RawRule {
	if !g.tls {
		return nil
	}
	if t := g.hosts[sni]; t != nil {
		if rule := firstRaw(t.TLS, sni, port); rule != nil {
			return rule
		}
	}
	for rest := sni; ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			break
		}
		if t := g.hosts[rest[i:]]; t != nil {
			if rule := firstRaw(t.TLS, sni, port); rule != nil {
				return rule
			}
		}
		rest = rest[i+1:]
	}
	if g.any == nil {
		return nil
	}
	return firstRaw(g.any.TLS, sni, port)
}
