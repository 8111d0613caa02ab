package dns

import (
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

const (
	advertisedUDP = 1232 // bytes that we say we take, safe on every path (DNS flag day 2020)
	maxUDPAnswer  = 4096 // bytes that we send at most, whatever the client says
)

// result is what a name has for a question.
type result struct {
	found   bool // the name exists, though perhaps without such a record
	cut     bool // there are more records than could ever fit
	answers []dns.RR
	extra   []dns.RR
}

// reply answers a question that was read, in at most size bytes over TCP, or as
// many as EDNS allows over UDP, where size is dns.MinMsgSize.
func (s *Server) reply(req *dns.Msg, size int) *dns.Msg {
	m := new(dns.Msg).SetReply(req)
	m.RecursionAvailable = false
	if opt := req.IsEdns0(); opt != nil {
		m.SetEdns0(advertisedUDP, opt.Do())
		if opt.Version() != 0 {
			m.Rcode = dns.RcodeBadVers // miekg/dns puts the high bits into the OPT record
			return m
		}
		if size == dns.MinMsgSize {
			size = min(max(int(opt.UDPSize()), size), maxUDPAnswer)
		}
	}
	q := req.Question[0]
	t := s.parseName(q.Name)
	if t.zone == outside || q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY {
		m.Rcode = dns.RcodeRefused
		return m
	}
	switch q.Qtype {
	case dns.TypeAXFR, dns.TypeIXFR, dns.TypeMAILA, dns.TypeMAILB:
		m.Rcode = dns.RcodeRefused
		return m
	}
	r := s.lookup(t, q, size)
	if t.zone == reverseZone && !r.found {
		m.Rcode = dns.RcodeRefused // not ours: these zones are somebody else's
		return m
	}
	s.fill(m, t.zone, r, size)
	return m
}

// fill puts the result into the message, and cuts it to size.
func (s *Server) fill(m *dns.Msg, z zone, r result, size int) {
	m.Authoritative = true
	if !r.found {
		m.Rcode = dns.RcodeNameError
	}
	opt := m.Extra
	m.Answer, m.Extra = r.answers, append(r.extra, opt...)
	if len(r.answers) == 0 && z != reverseZone {
		m.Ns = []dns.RR{s.soa(z)}
	}
	m.Truncate(size)
	m.Compress = true
	// Additional records are a kindness: to leave them out is no truncation
	// (RFC 2181 section 9).
	m.Truncated = r.cut || len(m.Answer) < len(r.answers)
}

// lookup finds the records of a name. size bounds how many are made.
func (s *Server) lookup(t target, q dns.Question, size int) result {
	if q.Qtype == dns.TypeANY {
		return s.any(t, q)
	}
	most := size/minRecord + 1
	switch t.kind {
	case apexName:
		return s.apex(t.zone, q)
	case serverName:
		addr, _ := netip.ParseAddr(s.registry.LocalNode().Address)
		return s.addressOf(q, addr)
	case addressName:
		return s.addressOf(q, t.addr)
	case nodeName:
		return s.node(t, q)
	case serviceName:
		return s.service(t, q, most)
	case kubeService, kubePort:
		return s.kubeService(t, q, most)
	case kubeEndpoint:
		return s.kubeEndpoint(t, q)
	case kubeNamespace:
		return result{found: s.hasNamespace(t.service.Namespace)}
	case kubeProtocol:
		return result{found: s.hasService(t.service)}
	case kubeVersion:
		return s.text(q, "1.1.0")
	case pointer:
		return s.pointer(t, q)
	case innerName:
		return result{found: true}
	}
	return result{}
}

// minRecord is the least that a record takes in a message: a compressed name,
// type, class, TTL, length, and an IPv4 address.
const minRecord = 16

// any answers ANY with one record that means "ask for a type" (RFC 8482 section 4.2).
func (s *Server) any(t target, q dns.Question) result {
	q.Qtype = dns.TypeHINFO
	r := s.lookup(t, q, dns.MinMsgSize)
	if r.found {
		r.answers = []dns.RR{&dns.HINFO{Hdr: s.header(q.Name, dns.TypeHINFO), Cpu: "RFC8482"}}
	}
	return r
}

func (s *Server) apex(z zone, q dns.Question) result {
	r := result{found: true}
	switch q.Qtype {
	case dns.TypeSOA:
		r.answers = []dns.RR{s.soa(z)}
	case dns.TypeNS:
		ns := s.serverOf(z)
		r.answers = []dns.RR{&dns.NS{Hdr: s.header(q.Name, dns.TypeNS), Ns: ns}}
		if addr, err := netip.ParseAddr(s.registry.LocalNode().Address); err == nil {
			r.extra = []dns.RR{s.address(ns, addr)}
		}
	}
	return r
}

// addressOf is the one address of a name.
func (s *Server) addressOf(q dns.Question, addr netip.Addr) result {
	r := result{found: true}
	if addr.IsValid() && q.Qtype == addressType(addr) {
		r.answers = []dns.RR{s.address(q.Name, addr)}
	}
	return r
}

func (s *Server) text(q dns.Question, texts ...string) result {
	r := result{found: true}
	if q.Qtype == dns.TypeTXT {
		for _, t := range texts {
			r.answers = append(r.answers, &dns.TXT{Hdr: s.header(q.Name, dns.TypeTXT), Txt: chunks(t)})
		}
	}
	return r
}

// chunks splits a text into the strings of a TXT record, 255 bytes at most each.
func chunks(t string) []string {
	var out []string
	for len(t) > 255 {
		out, t = append(out, t[:255]), t[255:]
	}
	return append(out, t)
}

func (s *Server) header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: s.ttl}
}

func (s *Server) address(name string, addr netip.Addr) dns.RR {
	if addr.Is4() {
		return &dns.A{Hdr: s.header(name, dns.TypeA), A: addr.AsSlice()}
	}
	return &dns.AAAA{Hdr: s.header(name, dns.TypeAAAA), AAAA: addr.AsSlice()}
}

func addressType(addr netip.Addr) uint16 {
	if addr.Is4() {
		return dns.TypeA
	}
	return dns.TypeAAAA
}

// soa says whom a zone belongs to, and by its last number how long a "no" may be
// kept (RFC 2308 section 5).
func (s *Server) soa(z zone) dns.RR {
	name, mailbox := s.domain, "postmaster."+s.domain
	if z == kubeZone {
		name, mailbox = kubeDomain, "hostmaster."+kubeDomain
	}
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: s.negative},
		Ns:  s.serverOf(z), Mbox: mailbox, Serial: uint32(time.Now().Unix()),
		Refresh: 3600, Retry: 600, Expire: 86400, Minttl: s.negative,
	}
}

func (s *Server) serverOf(z zone) string {
	if z == kubeZone {
		return "ns.dns." + kubeDomain
	}
	return "ns." + s.domain
}
