package dns

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft/registry"
)

// lookup finds the records of a name, whose labels are in lower case.
func (s *Server) lookup(labels []string, qtype uint16) (target, result) {
	t := s.parseName(labels)
	if t.zone == outside {
		return t, result{refused: true}
	}
	switch qtype {
	case dns.TypeAXFR, dns.TypeIXFR, dns.TypeMAILA, dns.TypeMAILB:
		return t, result{refused: true}
	case dns.TypeANY: // one record that means "ask for a type" (RFC 8482 section 4.2)
		r := s.records(t, dns.TypeHINFO)
		if r.found && len(r.answers) == 0 {
			r.answers = []answer{{rrtype: dns.TypeHINFO, ttl: s.ttl, data: []byte("\x07RFC8482\x00")}}
		}
		return t, r
	}
	r := s.records(t, qtype)
	if !r.found && t.searched != "" {
		r = s.search(t, r)
	}
	return t, r
}

// records finds the records that a name has itself.
func (s *Server) records(t target, qtype uint16) result {
	switch t.kind {
	case apexName:
		return s.apex(t, qtype)
	case serverName:
		deps := []dep{s.topicDep(registry.NodesTopic())}
		r := addressOf(qtype, s.ownAddress(), s.ttl)
		r.deps, r.keep = deps, true
		return r
	case addressName:
		return addressOf(qtype, t.addr, s.ttl)
	case nodeName:
		return s.node(t, qtype)
	case serviceName:
		return s.service(t, qtype)
	case queryName:
		return s.query(t, qtype)
	case connectName:
		return s.connect(t, qtype)
	case ingressName:
		return s.ingress(t, qtype)
	case virtualName:
		return s.virtual(t, qtype)
	case kubeService:
		return s.kubeService(t, qtype)
	case kubePort:
		return s.kubePort(t, qtype)
	case kubeEndpoint:
		return s.kubeEndpoint(t, qtype)
	case kubePod:
		return s.kubePod(t, qtype)
	case kubeNamespace, kubePods:
		return result{found: s.hasNamespace(t.service.Namespace)}
	case kubeProtocol:
		return result{found: s.hasService(t.service)}
	case kubeVersion:
		r := result{found: true, keep: true}
		if qtype == dns.TypeTXT {
			r.answers = texts(s.ttl, "1.1.0")
		}
		return r
	case pointer:
		return s.pointer(t, qtype)
	case innerName:
		return result{found: true, keep: true}
	}
	return result{}
}

func (s *Server) ownAddress() netip.Addr {
	addr, _ := netip.ParseAddr(s.registry.LocalNode().Address)
	return addr.Unmap()
}

func (s *Server) apex(t target, qtype uint16) result {
	r := result{found: true, deps: []dep{s.topicDep(registry.NodesTopic())}}
	switch qtype {
	case dns.TypeSOA:
		r.answers = []answer{{rrtype: dns.TypeSOA, ttl: s.negative, data: s.soa(t)}}
	case dns.TypeNS:
		data, _ := appendName(nil, serverOf(t))
		r.answers = []answer{{rrtype: dns.TypeNS, ttl: s.ttl, data: data, glue: s.ownAddress()}}
		r.keep = true
	}
	return r
}

// soa says whom a zone belongs to, and by its last number how long a "no" may be
// kept (RFC 2308 section 5).
func (s *Server) soa(t target) []byte {
	mailbox := "postmaster."
	if t.zone == kubeZone {
		mailbox = "hostmaster."
	}
	data, _ := appendName(nil, serverOf(t))
	data, _ = appendName(data, mailbox+t.domain)
	for _, n := range []uint32{uint32(time.Now().Unix()), 3600, 600, 86400, s.negative} {
		data = append(data, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return data
}

func serverOf(t target) string {
	if t.zone == kubeZone {
		return "ns.dns." + kubeDomain
	}
	return "ns." + t.domain
}

// search completes a name that a resolver made with the first suffix of its search
// path, ns.svc.cluster.local, as that resolver would by asking again and again:
// with svc.cluster.local, with cluster.local, and alone. The first that exists is
// where the name leads.
//
// It must be sure that the name is of that kind: the namespace exists, and what
// stands before it is of two labels at least, the last of which is no service
// there (else it would be an instance of that service, which is gone).
func (s *Server) search(t target, no result) result {
	if !s.hasNamespace(t.service.Namespace) || s.hasService(t.service) || !strings.Contains(t.searched, ".") {
		return no
	}
	for _, suffix := range []string{".svc." + kubeDomain, "." + kubeDomain, "."} {
		name := t.searched + suffix
		labels := strings.Split(strings.TrimSuffix(name, "."), ".")
		if len(name) > maxName-2 {
			return no
		}
		at := s.parseName(labels)
		switch {
		case at.zone == outside:
			return result{follow: name, doubtful: true}
		case isReal(at.kind) && s.records(at, dns.TypeA).found:
			return result{found: true, follow: name}
		}
	}
	return no
}

// isReal says whether names of a kind are such that somebody is meant by them, and
// not only a way to others.
func isReal(k nameKind) bool {
	return !slices.Contains([]nameKind{unknownName, apexName, innerName, kubeNamespace, kubeProtocol, kubePods, pointer}, k)
}
