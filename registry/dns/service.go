package dns

import (
	"net/netip"
	"strings"

	"github.com/weftmesh/weft"
)

// Service is a Kubernetes v1 Service, as much of it as names need. Its endpoints
// are the instances of the registry's service of the same name and namespace.
type Service struct {
	Name weft.ServiceName

	// ClusterIPs are the addresses that stand for the service. Without, it is
	// headless: its names are those of its instances.
	ClusterIPs []netip.Addr

	ExternalName    string        // the name is a CNAME of this one; then nothing else matters
	Ports           []ServicePort // those with a name have SRV records
	PublishNotReady bool          // instances that are ill are given, too
}

// ServicePort is a port of a Service.
type ServicePort struct {
	Name     string
	Protocol string // "tcp", "udp" or "sctp"
	Port     uint16 // of the cluster's address
	Target   uint16 // of a headless service's instances; 0: the instance's own
}

// documents are the Services that were applied. They are immutable.
type documents struct {
	byName     map[weft.ServiceName]*Service
	namespaces map[string]bool
	clusterIPs map[netip.Addr][]weft.ServiceName
}

func (d *documents) find(n weft.ServiceName) *Service { return d.byName[n] }

// SetServices makes list all of the Services there are. It may be called at any
// time, from any goroutine; answers that are sent after it returns know them.
func (s *Server) SetServices(list []Service) {
	d := &documents{
		byName:     make(map[weft.ServiceName]*Service, len(list)),
		namespaces: make(map[string]bool),
		clusterIPs: make(map[netip.Addr][]weft.ServiceName),
	}
	for i := range list {
		doc := list[i]
		doc.Name = lower(doc.Name)
		d.byName[doc.Name] = &doc
		d.namespaces[doc.Name.Namespace] = true
		for _, ip := range doc.ClusterIPs {
			d.clusterIPs[ip.Unmap()] = append(d.clusterIPs[ip.Unmap()], doc.Name)
		}
	}
	s.documents.Store(d)
}

// kubeHost is the full name of a service, with its final dot.
func kubeHost(n weft.ServiceName) string { return strings.ToLower(n.Host()) + "." }
