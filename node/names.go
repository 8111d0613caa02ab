package node

import (
	"context"
	"reflect"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/resource"
	"github.com/weftmesh/weft/registry/consul"
	"github.com/weftmesh/weft/registry/dns"
)

// addDNS adds DNS, and what keeps it up to date about Services.
func (s *Server) addDNS(p *parts) {
	d := dns.New(s.registry, dns.Config{Recursors: s.config.Recursors, Clients: s.config.DNSClients, Queries: consul.NewQueries(s.registry, s.acl()), Logger: s.logger})
	p.add("DNS", func(ctx context.Context) error {
		unhook := context.AfterFunc(ctx, func() { _ = d.Close() })
		defer unhook()
		return d.Serve(s.doors.dnsPackets, s.doors.dns)
	})
	p.add("names of Services", s.tellServices(d))
}

// tellServices tells DNS which Services of Kubernetes' kind are applied, now and
// whenever that changes, until ctx ends. Other resources are no news for it: what it
// has packed stays good.
func (s *Server) tellServices(d *dns.Server) func(context.Context) error {
	return func(ctx context.Context) error {
		var told []dns.Service
		for {
			changed := s.control.Changed()
			if list := dnsServices(s.control.Resources()); !reflect.DeepEqual(list, told) {
				d.SetServices(list)
				told = list
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// dnsServices are the Services among resources, as much of them as names need.
func dnsServices(all []resource.Resource) (list []dns.Service) {
	for i := range all {
		spec, ok := all[i].Spec.(*resource.Service)
		if !ok {
			continue
		}
		named := dns.Service{
			Name: weft.NewServiceName(all[i].Namespace, all[i].Name), ClusterIPs: spec.Addresses(),
			ExternalName: spec.ExternalName, PublishNotReady: spec.PublishNotReadyAddresses,
		}
		for _, p := range spec.Ports {
			named.Ports = append(named.Ports, dnsPort(p))
		}
		list = append(list, named)
	}
	return list
}

// dnsPort is a port of a Service. A target that is a name says nothing: instances
// here have one port each.
func dnsPort(p resource.ServicePort) dns.ServicePort {
	protocol := strings.ToLower(p.Protocol)
	if protocol == "" {
		protocol = "tcp"
	}
	return dns.ServicePort{Name: p.Name, Protocol: protocol, Port: uint16(p.Port), Target: uint16(p.TargetPort.Number)}
}
