package dns

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

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

// indexOf is the index of a topic now.
func (s *Server) indexOf(t registry.Topic) uint64 {
	return s.registry.Wait(context.Background(), t, 0) // returns at once
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
		low := weft.ServiceName{Namespace: strings.ToLower(n.Namespace), Name: strings.ToLower(n.Name)}
		f.services[low] = append(f.services[low], n)
		f.namespaces[low.Namespace] = true
	}
	for _, n := range nodes {
		f.nodes[strings.ToLower(n.Name)] = n.Name
	}
	s.folded.Store(f)
	return f
}

// instances returns those of the service whose name is n in lower case.
func (s *Server) instances(n weft.ServiceName) []*weft.Instance {
	list, _ := s.registry.Instances(n)
	if len(list) > 0 {
		return list
	}
	var out []*weft.Instance
	for _, real := range s.foldedNow().services[n] {
		list, _ := s.registry.Instances(real)
		out = append(out, list...)
	}
	return out
}

func (s *Server) hasService(n weft.ServiceName) bool { return len(s.instances(n)) > 0 }

func (s *Server) hasNamespace(namespace string) bool { return s.foldedNow().namespaces[namespace] }

// nodeNamed returns the node whose name is this in lower case, or nil.
func (s *Server) nodeNamed(name string) *weft.Node {
	if n, _, _ := s.registry.Node(name); n != nil {
		return n
	}
	n, _, _ := s.registry.Node(s.foldedNow().nodes[name])
	return n
}

// reverseNames finds the names of addresses, as of the registry's indexes.
type reverseNames struct {
	instancesIndex uint64
	nodesIndex     uint64
	byAddr         map[netip.Addr][]string
}

// namesOf returns the names of an address: of its nodes, else of its services.
func (s *Server) namesOf(addr netip.Addr) []string {
	r := s.reverse.Load()
	if r == nil || r.instancesIndex != s.indexOf(registry.InstancesTopic()) || r.nodesIndex != s.indexOf(registry.NodesTopic()) {
		r = s.reverseNow()
		s.reverse.Store(r)
	}
	return r.byAddr[addr]
}

func (s *Server) reverseNow() *reverseNames {
	instances, instancesIndex := s.registry.AllInstances()
	nodes, nodesIndex := s.registry.Nodes()
	r := &reverseNames{instancesIndex: instancesIndex, nodesIndex: nodesIndex, byAddr: make(map[netip.Addr][]string)}
	suffix := "." + strings.ToLower(s.registry.Datacenter()) + "." + s.domain
	services := make(map[netip.Addr][]string)
	for _, in := range instances {
		if in.Service.Namespace == weft.DefaultNamespace && isHostName(in.Service.Name) {
			collect(services, in.Address, strings.ToLower(in.Service.Name)+".service"+suffix)
		}
	}
	for _, n := range nodes {
		if isHostName(n.Name) {
			collect(r.byAddr, n.Address, strings.ToLower(n.Name)+".node"+suffix)
		}
	}
	for addr, names := range services {
		if r.byAddr[addr] == nil {
			r.byAddr[addr] = names
		}
	}
	return r
}

func collect(m map[netip.Addr][]string, address, name string) {
	addr, err := netip.ParseAddr(address)
	if err == nil && !slices.Contains(m[addr], name) {
		m[addr] = append(m[addr], name)
	}
}
