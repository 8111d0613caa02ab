package dns

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
)

// healthy returns the instances of a service that pass or warn, by their own and
// their node's checks, and whether the service has instances at all.
func (s *Server) healthy(n weft.ServiceName) (list []*weft.Instance, found bool) {
	all := s.instances(n)
	list = make([]*weft.Instance, 0, len(all))
	nodes := make(map[string]bool, 1)
	for _, in := range all {
		if in.Health() > weft.Warning {
			continue
		}
		well, seen := nodes[in.Node]
		if !seen {
			well = s.nodeIsWell(in.Node)
			nodes[in.Node] = well
		}
		if well {
			list = append(list, in)
		}
	}
	return list, len(all) > 0
}

func (s *Server) nodeIsWell(name string) bool {
	n, _, _ := s.registry.Node(name)
	return n != nil && !slices.ContainsFunc(n.Checks, func(c weft.Check) bool { return c.Status > weft.Warning })
}

// service answers for [tag.]name.service.consul.
func (s *Server) service(t target, q dns.Question, most int) result {
	list, _ := s.healthy(t.service)
	if t.tag != "" {
		list = slices.DeleteFunc(list, func(in *weft.Instance) bool { return !hasTag(in, t.tag) })
	}
	r := result{found: len(list) > 0}
	switch q.Qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME:
		s.addresses(&r, q, list, most)
	case dns.TypeSRV:
		s.servers(&r, q, list, most, consulTarget)
	}
	return r
}

// kubeService answers for name.ns.svc.cluster.local, and for the SRV form of it.
func (s *Server) kubeService(t target, q dns.Question, most int) result {
	list, found := s.healthy(t.service)
	if t.kind == kubePort {
		list = slices.DeleteFunc(list, func(in *weft.Instance) bool {
			return strconv.Itoa(in.Port) != t.tag && !hasTag(in, t.tag)
		})
		found = len(list) > 0
	}
	r := result{found: found}
	switch {
	case q.Qtype == dns.TypeSRV:
		s.servers(&r, q, list, most, kubeTarget)
	case t.kind == kubeService && (q.Qtype == dns.TypeA || q.Qtype == dns.TypeAAAA || q.Qtype == dns.TypeCNAME):
		s.addresses(&r, q, list, most)
	}
	return r
}

// kubeEndpoint answers for 10-0-0-1.name.ns.svc.cluster.local.
func (s *Server) kubeEndpoint(t target, q dns.Question) result {
	list, _ := s.healthy(t.service)
	for _, in := range list {
		if addr, err := netip.ParseAddr(s.hostOf(in)); err == nil && addr == t.addr {
			return s.addressOf(q, addr)
		}
	}
	return result{}
}

func hasTag(in *weft.Instance, tag string) bool {
	return slices.ContainsFunc(in.Tags, func(t string) bool { return strings.EqualFold(t, tag) })
}

// hostOf is the IP address or host name at which an instance is reached.
func (s *Server) hostOf(in *weft.Instance) string {
	if in.Address != "" {
		return in.Address
	}
	return s.registry.NodeAddress(in.Node)
}

// addresses adds the addresses of instances, each once, in an order that prefers
// heavy ones. Host names cannot stand beside addresses (RFC 2181 section 10.1): one
// is given, when there is nothing else.
func (s *Server) addresses(r *result, q dns.Question, list []*weft.Instance, most int) {
	host, anyAddress := "", false
	seen := make(map[netip.Addr]bool)
	for in := range sample(list) {
		h := s.hostOf(in)
		addr, err := netip.ParseAddr(h)
		if err != nil && host == "" && isHostName(h) {
			host = dns.Fqdn(h)
		}
		anyAddress = anyAddress || err == nil
		if err != nil || addressType(addr) != q.Qtype || seen[addr] {
			continue
		}
		if r.cut = len(r.answers) >= most; r.cut {
			return
		}
		seen[addr] = true
		r.answers = append(r.answers, s.address(q.Name, addr))
	}
	if !anyAddress && host != "" {
		r.answers = []dns.RR{&dns.CNAME{Hdr: s.header(q.Name, dns.TypeCNAME), Target: host}}
	}
}

// servers adds an SRV record for each instance, with the address of its target.
func (s *Server) servers(r *result, q dns.Question, list []*weft.Instance, most int, name func(s *Server, in *weft.Instance, addr netip.Addr) string) {
	glued := make(map[string]bool)
	for in := range sample(list) {
		host := s.hostOf(in)
		addr, err := netip.ParseAddr(host)
		if err != nil && !isHostName(host) {
			continue
		}
		if r.cut = len(r.answers) >= most; r.cut {
			return
		}
		server := dns.Fqdn(host)
		if err == nil {
			if server = name(s, in, addr); !glued[server] {
				glued[server] = true
				r.extra = append(r.extra, s.address(server, addr))
			}
		}
		r.answers = append(r.answers, &dns.SRV{
			Hdr: s.header(q.Name, dns.TypeSRV), Priority: 1,
			Weight: uint16(min(in.Weight(), 65535)), Port: uint16(in.Port), Target: server,
		})
	}
}

// consulTarget names an instance by its node, or by its address when it has one of
// its own or its node's name does not fit into a host name.
func consulTarget(s *Server, in *weft.Instance, addr netip.Addr) string {
	dc := strings.ToLower(s.registry.Datacenter())
	if in.Address == "" && isHostName(in.Node) {
		return strings.ToLower(in.Node) + ".node." + dc + "." + s.domain
	}
	return hex.EncodeToString(addr.AsSlice()) + ".addr." + dc + "." + s.domain
}

func kubeTarget(_ *Server, in *weft.Instance, addr netip.Addr) string {
	return dashed(addr) + "." + strings.ToLower(in.Service.Host()) + "."
}

// isHostName says whether a registered text can stand in a message as a name.
func isHostName(h string) bool {
	if h == "" || strings.ContainsFunc(h, func(c rune) bool {
		return c != '.' && c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	}) {
		return false
	}
	_, ok := dns.IsDomainName(h)
	return ok
}

// node answers for node.node.consul. A node is given whatever its health.
func (s *Server) node(t target, q dns.Question) result {
	n := s.nodeNamed(t.node)
	if n == nil {
		return result{}
	}
	if q.Qtype == dns.TypeTXT {
		return s.text(q, labelTexts(n.Labels)...)
	}
	addr, err := netip.ParseAddr(n.Address)
	if err == nil {
		return s.addressOf(q, addr)
	}
	r := result{found: true}
	if isHostName(n.Address) && (q.Qtype == dns.TypeA || q.Qtype == dns.TypeAAAA || q.Qtype == dns.TypeCNAME) {
		r.answers = []dns.RR{&dns.CNAME{Hdr: s.header(q.Name, dns.TypeCNAME), Target: dns.Fqdn(n.Address)}}
	}
	return r
}

// labelTexts writes labels as RFC 1464 has it, key=value; of a key that starts
// with "rfc1035-" the value alone.
func labelTexts(labels map[string]string) []string {
	out := make([]string, 0, len(labels))
	for k, v := range labels {
		if !strings.HasPrefix(k, "rfc1035-") {
			v = k + "=" + v
		}
		out = append(out, strings.ReplaceAll(v, `\`, `\\`)) // presentation form
	}
	slices.Sort(out)
	return out
}

// pointer answers for an address backwards: its node's name, else the names of the
// services that have an instance there.
func (s *Server) pointer(t target, q dns.Question) result {
	names := s.namesOf(t.addr)
	r := result{found: len(names) > 0}
	if q.Qtype == dns.TypePTR {
		for _, name := range names {
			r.answers = append(r.answers, &dns.PTR{Hdr: s.header(q.Name, dns.TypePTR), Ptr: name})
		}
	}
	return r
}
