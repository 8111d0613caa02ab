package dns

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// dep is something in the registry that an answer was made of, and its index then.
type dep struct {
	service weft.ServiceName // with the zero topic: its instances
	topic   registry.Topic
	index   uint64
}

// indexOf is the index of a topic now.
func (s *Server) indexOf(t registry.Topic) uint64 {
	return s.registry.Wait(context.Background(), t, 0) // returns at once
}

func (s *Server) topicDep(t registry.Topic) dep { return dep{topic: t, index: s.indexOf(t)} }

// holds says whether nothing has changed since.
func (s *Server) holds(deps []dep) bool {
	for i := range deps {
		d := &deps[i]
		var now uint64
		if d.topic == (registry.Topic{}) {
			_, now = s.registry.Instances(d.service)
		} else {
			now = s.indexOf(d.topic)
		}
		if now != d.index {
			return false
		}
	}
	return true
}

// foldedNames finds the names that the registry has, by their lower case: DNS does
// not know case, the registry does. It is made when a name was not found as it
// stands in lower case, and used until the registry's indexes move.
type foldedNames struct {
	servicesIndex uint64
	nodesIndex    uint64
	services      map[weft.ServiceName][]weft.ServiceName
	nodes         map[string]string
	namespaces    map[string]bool
}

func (s *Server) foldedNow() *foldedNames {
	f := s.folded.Load()
	if f != nil && f.servicesIndex == s.indexOf(registry.ServicesTopic()) && f.nodesIndex == s.indexOf(registry.NodesTopic()) {
		return f
	}
	services, servicesIndex := s.registry.ServiceNames()
	nodes, nodesIndex := s.registry.Nodes()
	f = &foldedNames{
		servicesIndex: servicesIndex, nodesIndex: nodesIndex,
		services:   make(map[weft.ServiceName][]weft.ServiceName, len(services)),
		nodes:      make(map[string]string, len(nodes)),
		namespaces: make(map[string]bool),
	}
	for _, n := range services {
		low := lower(n)
		f.services[low] = append(f.services[low], n)
		f.namespaces[low.Namespace] = true
	}
	for _, n := range nodes {
		f.nodes[strings.ToLower(n.Name)] = n.Name
	}
	s.folded.Store(f)
	return f
}

func lower(n weft.ServiceName) weft.ServiceName {
	return weft.ServiceName{Namespace: strings.ToLower(n.Namespace), Name: strings.ToLower(n.Name)}
}

// instances returns those of the service whose name is n in lower case.
func (s *Server) instances(n weft.ServiceName) ([]*weft.Instance, []dep) {
	list, index := s.registry.Instances(n)
	deps := []dep{{service: n, index: index}}
	if len(list) > 0 {
		return list, deps
	}
	f := s.foldedNow()
	deps = append(deps, dep{topic: registry.ServicesTopic(), index: f.servicesIndex})
	var out []*weft.Instance
	for _, real := range f.services[n] {
		list, index := s.registry.Instances(real)
		out = append(out, list...)
		deps = append(deps, dep{service: real, index: index})
	}
	return out, deps
}

func (s *Server) hasService(n weft.ServiceName) bool {
	list, _ := s.instances(n)
	return len(list) > 0 || s.documents.Load().find(n) != nil
}

func (s *Server) hasNamespace(namespace string) bool {
	return namespace == weft.DefaultNamespace || s.foldedNow().namespaces[namespace] || s.documents.Load().namespaces[namespace]
}

// nodeNamed returns the node whose name is this in lower case, or nil.
func (s *Server) nodeNamed(name string) *weft.Node {
	if n, _, _ := s.registry.Node(name); n != nil {
		return n
	}
	n, _, _ := s.registry.Node(s.foldedNow().nodes[name])
	return n
}

// places finds services by what is in their instances. It follows the registry when
// it is asked, and reads again only the services that changed.
type places struct {
	mu       sync.Mutex
	index    uint64 // of InstancesTopic
	nodes    uint64 // index of NodesTopic
	known    map[weft.ServiceName]*placed
	byAddr   map[netip.Addr]map[weft.ServiceName]bool
	proxied  map[string]map[weft.ServiceName]bool // by the name of the service behind
	ingress  map[weft.ServiceName]bool
	nodeAddr map[netip.Addr][]string // names of nodes
}

// placed is what places knows of one service.
type placed struct {
	index   uint64
	addrs   map[netip.Addr]bool
	proxies map[string]bool
	ingress bool
}

// consulExtra is what the Consul dialect keeps with an instance that matters here.
type consulExtra struct {
	Kind    string
	Proxy   struct{ DestinationServiceName string }
	Connect struct{ Native bool }
}

func extraOf(in *weft.Instance) (e consulExtra) {
	if raw := in.Extra["consul"]; raw != nil {
		_ = json.Unmarshal(raw, &e) // what is not of this form says nothing
	}
	return e
}

// servicesAt returns the services that have an instance at an address, sorted, and
// the nodes that have it.
func (s *Server) servicesAt(addr netip.Addr) (services []weft.ServiceName, nodes []string) {
	p := &s.places
	p.mu.Lock()
	defer p.mu.Unlock()
	s.follow(p)
	return sortedNames(p.byAddr[addr]), slices.Clone(p.nodeAddr[addr])
}

// proxiesOf returns the services that have proxies for a service.
func (s *Server) proxiesOf(name string) []weft.ServiceName {
	p := &s.places
	p.mu.Lock()
	defer p.mu.Unlock()
	s.follow(p)
	return sortedNames(p.proxied[name])
}

// ingresses returns the services of ingress gateways.
func (s *Server) ingresses() []weft.ServiceName {
	p := &s.places
	p.mu.Lock()
	defer p.mu.Unlock()
	s.follow(p)
	return sortedNames(p.ingress)
}

func sortedNames(m map[weft.ServiceName]bool) []weft.ServiceName {
	out := make([]weft.ServiceName, 0, len(m))
	for n := range m {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b weft.ServiceName) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// follow brings p to what the registry says. p.mu is held.
func (s *Server) follow(p *places) {
	index, nodesIndex := s.indexOf(registry.InstancesTopic()), s.indexOf(registry.NodesTopic())
	if p.known != nil && index == p.index && nodesIndex == p.nodes {
		return
	}
	moved := p.known == nil || nodesIndex != p.nodes // addresses of nodes are those of instances without
	if p.known == nil {
		p.known = make(map[weft.ServiceName]*placed)
		p.byAddr = make(map[netip.Addr]map[weft.ServiceName]bool)
		p.proxied = make(map[string]map[weft.ServiceName]bool)
		p.ingress = make(map[weft.ServiceName]bool)
	}
	names, _ := s.registry.ServiceNames()
	there := make(map[weft.ServiceName]bool, len(names))
	for _, n := range names {
		there[n] = true
		list, at := s.registry.Instances(n)
		if old := p.known[n]; old == nil || old.index != at || moved {
			p.replace(n, s.placedOf(list, at))
		}
	}
	for n := range p.known {
		if !there[n] {
			p.replace(n, nil)
		}
	}
	if moved {
		p.nodeAddr = make(map[netip.Addr][]string)
		nodes, _ := s.registry.Nodes()
		for _, n := range nodes {
			if addr, err := netip.ParseAddr(n.Address); err == nil && isHostName(n.Name) {
				p.nodeAddr[addr] = append(p.nodeAddr[addr], strings.ToLower(n.Name))
			}
		}
	}
	p.index, p.nodes = index, nodesIndex
}

func (s *Server) placedOf(list []*weft.Instance, index uint64) *placed {
	out := &placed{index: index, addrs: make(map[netip.Addr]bool), proxies: make(map[string]bool)}
	for _, in := range list {
		host := in.Address
		if host == "" {
			host = s.registry.NodeAddress(in.Node)
		}
		if addr, err := netip.ParseAddr(host); err == nil {
			out.addrs[addr] = true
		}
		if in.Extra == nil {
			continue
		}
		switch e := extraOf(in); e.Kind {
		case "connect-proxy":
			out.proxies[strings.ToLower(e.Proxy.DestinationServiceName)] = true
		case "ingress-gateway":
			out.ingress = true
		}
	}
	return out
}

// replace makes next what is known of a service; nil: it is gone.
func (p *places) replace(n weft.ServiceName, next *placed) {
	if old := p.known[n]; old != nil {
		for a := range old.addrs {
			leave(p.byAddr, a, n)
		}
		for d := range old.proxies {
			leave(p.proxied, d, n)
		}
		delete(p.ingress, n)
	}
	if next == nil {
		delete(p.known, n)
		return
	}
	p.known[n] = next
	for a := range next.addrs {
		enter(p.byAddr, a, n)
	}
	for d := range next.proxies {
		enter(p.proxied, d, n)
	}
	if next.ingress {
		p.ingress[n] = true
	}
}

func enter[K comparable](m map[K]map[weft.ServiceName]bool, k K, n weft.ServiceName) {
	if m[k] == nil {
		m[k] = make(map[weft.ServiceName]bool)
	}
	m[k][n] = true
}

func leave[K comparable](m map[K]map[weft.ServiceName]bool, k K, n weft.ServiceName) {
	if delete(m[k], n); len(m[k]) == 0 {
		delete(m, k)
	}
}
