package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
)

// kubeService answers for name.ns.svc.cluster.local.
func (s *Server) kubeService(t target, qtype uint16) result {
	doc := s.documents.Load().find(t.service)
	if doc != nil && doc.ExternalName != "" {
		return result{found: true, keep: true, answers: []answer{cname(doc.ExternalName, s.ttl)}}
	}
	ttl := s.serviceTTL(t.service.Name)
	if doc != nil && len(doc.ClusterIPs) > 0 {
		return clusterService(doc, qtype, ttl)
	}
	list, deps, any := s.ready(t.service, doc != nil && doc.PublishNotReady)
	r := result{found: len(list) > 0, deps: deps, keep: any, guarded: guardOf(list)}
	switch qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME:
		addresses(&r, qtype, list, ttl)
	case dns.TypeSRV:
		headlessPorts(&r, t, doc, list, ttl)
	case dns.TypeSVCB, dns.TypeHTTPS:
		bindings(&r, qtype, list, ttl, func(sp spot) string { return kubeTarget(sp, t.service) })
	}
	return r
}

// clusterService is what a service with addresses of its own has.
func clusterService(doc *Service, qtype uint16, ttl uint32) result {
	r := result{found: true, keep: true}
	switch qtype {
	case dns.TypeA, dns.TypeAAAA:
		for _, ip := range doc.ClusterIPs {
			if addressType(ip) == qtype {
				r.answers = append(r.answers, answer{rrtype: qtype, ttl: ttl, data: ip.AsSlice()})
			}
		}
	case dns.TypeSRV:
		for _, p := range doc.Ports {
			if p.Name != "" {
				r.answers = append(r.answers, clusterPort(doc, p, ttl))
			}
		}
	}
	return r
}

func clusterPort(doc *Service, p ServicePort, ttl uint32) answer {
	return srv(spot{addr: doc.ClusterIPs[0], weight: 1}, int(p.Port), kubeHost(doc.Name), ttl)
}

// kubePort answers for _port._tcp.name.ns.svc.cluster.local.
func (s *Server) kubePort(t target, qtype uint16) result {
	doc := s.documents.Load().find(t.service)
	ttl := s.serviceTTL(t.service.Name)
	if doc != nil && doc.ExternalName != "" {
		return result{}
	}
	if doc != nil && len(doc.ClusterIPs) > 0 {
		i := slices.IndexFunc(doc.Ports, t.isPort)
		r := result{found: i >= 0, keep: i >= 0}
		if i >= 0 && qtype == dns.TypeSRV {
			r.answers = []answer{clusterPort(doc, doc.Ports[i], ttl)}
		}
		return r
	}
	list, deps, _ := s.ready(t.service, doc != nil && doc.PublishNotReady)
	r := result{deps: deps, guarded: guardOf(list)}
	headlessPorts(&r, t, doc, list, ttl)
	r.found = len(r.answers) > 0
	r.keep = r.found
	if qtype != dns.TypeSRV {
		r.answers = nil
	}
	return r
}

func (t target) isPort(p ServicePort) bool {
	return p.Name != "" && strings.EqualFold(p.Name, t.tag) && p.Protocol == t.proto
}

// headlessPorts adds a SRV record for each instance and port. Which ports an
// instance has says the Service: all those with a name, or the one that was asked
// for. Without a Service, or when that names no ports, an instance has one: its own,
// which is called by its number or by any of the instance's tags.
func headlessPorts(r *result, t target, doc *Service, list []spot, ttl uint32) {
	var named []ServicePort
	if doc != nil {
		for _, p := range doc.Ports {
			if p.Name != "" {
				named = append(named, p)
			}
		}
	}
	for _, sp := range list {
		target := kubeTarget(sp, t.service)
		for _, p := range named {
			if t.kind == kubePort && !t.isPort(p) {
				continue
			}
			r.answers = append(r.answers, srv(sp, portOf(sp, p), target, ttl))
		}
		if len(named) == 0 && (t.kind != kubePort ||
			t.proto == "tcp" && (strconv.Itoa(sp.port) == t.tag || hasTag(sp.in, t.tag))) {
			r.answers = append(r.answers, srv(sp, sp.port, target, ttl))
		}
	}
}

// portOf is the port at which an instance offers a port of its Service.
func portOf(sp spot, p ServicePort) int {
	switch {
	case p.Target != 0:
		return int(p.Target)
	case sp.port != 0:
		return sp.port
	}
	return int(p.Port)
}

// kubeTarget names an instance within its service.
func kubeTarget(sp spot, n weft.ServiceName) string {
	if !sp.addr.IsValid() {
		return sp.host
	}
	return kubeLabel(sp) + "." + kubeHost(n)
}

// kubeLabel is the label of an instance before its service's name: the host name
// that it says it has, else its address.
func kubeLabel(sp spot) string {
	h := strings.ToLower(sp.in.Labels["hostname"])
	if h != "" && len(h) <= 63 && isHostName(h) && !strings.ContainsAny(h, "._") {
		return h
	}
	return dashed(sp.addr)
}

// kubeEndpoint answers for 10-0-0-1.name.ns.svc.cluster.local, or hostname.name.…
func (s *Server) kubeEndpoint(t target, qtype uint16) result {
	doc := s.documents.Load().find(t.service)
	if doc != nil && doc.ExternalName != "" {
		return result{}
	}
	list, deps, _ := s.ready(t.service, doc != nil && doc.PublishNotReady)
	list = slices.DeleteFunc(list, func(sp spot) bool { return !sp.addr.IsValid() || kubeLabel(sp) != t.tag })
	r := result{found: len(list) > 0, deps: deps, keep: len(list) > 0, guarded: guardOf(list)}
	if qtype == dns.TypeA || qtype == dns.TypeAAAA {
		addresses(&r, qtype, list, s.serviceTTL(t.service.Name))
	}
	return r
}

// kubePointers are the names of Kubernetes of an address of a service: those of its
// instances there, if a Service or a host name speaks of them.
func (s *Server) kubePointers(n weft.ServiceName, addr netip.Addr) (names []string) {
	doc := s.documents.Load().find(lower(n))
	if doc != nil && (doc.ExternalName != "" || len(doc.ClusterIPs) > 0) {
		return nil
	}
	list, _ := s.registry.Instances(n)
	for _, sp := range s.spots(list, doc != nil && doc.PublishNotReady) {
		if sp.addr == addr && (doc != nil || sp.in.Labels["hostname"] != "") {
			names = append(names, kubeTarget(sp, n))
		}
	}
	return names
}

// kubePod answers for 10-0-0-1.ns.pod.cluster.local: the address, if an instance in
// the namespace has it ("verified", in CoreDNS' words).
func (s *Server) kubePod(t target, qtype uint16) result {
	services, _ := s.servicesAt(t.addr)
	if !slices.ContainsFunc(services, func(n weft.ServiceName) bool { return lower(n).Namespace == t.service.Namespace }) {
		return result{}
	}
	return addressOf(qtype, t.addr, s.ttl)
}
