package registry

import (
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
)

// Datacenter returns the configured name of this datacenter.
func (r *Registry) Datacenter() string { return r.datacenter }

// LocalNode returns this server's own node as it is now.
func (r *Registry) LocalNode() *weft.Node {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	return r.view.node(r.node)
}

// Instances returns a service's instances, sorted by node and id, with the index
// of ServiceTopic(n).
func (r *Registry) Instances(n weft.ServiceName) ([]*weft.Instance, uint64) {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	if e := r.view.services[n]; e != nil {
		return e.instances, e.index
	}
	return nil, 1
}

// Services returns the services of a namespace ("" is the default one) that have
// an instance, with the sorted union of their tags, never nil, and the index of
// ServicesTopic. The map is the caller's, the tags are shared.
func (r *Registry) Services(namespace string) (map[string][]string, uint64) {
	if namespace == "" {
		namespace = weft.DefaultNamespace
	}
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	services := make(map[string][]string)
	for name, e := range r.view.services {
		if name.Namespace != namespace || len(e.instances) == 0 {
			continue
		}
		services[name.Name] = e.tags
		if e.tags == nil {
			services[name.Name] = []string{}
		}
	}
	return services, r.view.indexLocked(ServicesTopic())
}

// ServiceNames returns every service of every namespace that has an instance,
// sorted by namespace and name, with the index of ServicesTopic.
func (r *Registry) ServiceNames() ([]weft.ServiceName, uint64) {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	return r.view.serviceNames(), r.view.indexLocked(ServicesTopic())
}

func (s *state) serviceNames() []weft.ServiceName {
	var names []weft.ServiceName
	for name, e := range s.services {
		if len(e.instances) > 0 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, byName)
	return names
}

// Nodes returns the nodes sorted by name, with the index of NodesTopic.
func (r *Registry) Nodes() ([]*weft.Node, uint64) {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	var nodes []*weft.Node
	for _, name := range slices.Sorted(maps.Keys(r.view.nodes)) {
		if n := r.view.nodes[name].node; n != nil {
			nodes = append(nodes, n)
		}
	}
	return nodes, r.view.indexLocked(NodesTopic())
}

// Node returns a node (nil when it is not there) and its instances sorted by id,
// with the index of NodeTopic(name).
func (r *Registry) Node(name string) (n *weft.Node, instances []*weft.Instance, index uint64) {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	e := r.view.nodes[name]
	if e == nil {
		return nil, nil, 1
	}
	sorted := e.sorted.Load()
	if sorted == nil {
		list := slices.SortedFunc(maps.Values(e.instances), byKey)
		sorted = &list
		e.sorted.Store(sorted)
	}
	return e.node, *sorted, r.view.indexLocked(NodeTopic(name))
}

// AllInstances returns every instance, sorted by service, node and id, with the
// index of InstancesTopic.
func (r *Registry) AllInstances() ([]*weft.Instance, uint64) {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	var all []*weft.Instance
	for _, name := range r.view.serviceNames() {
		all = append(all, r.view.services[name].instances...)
	}
	return all, r.view.indexLocked(InstancesTopic())
}

// Instance returns one instance, with the index of its service's topic. When it is
// not there it returns nil, with the index of InstancesTopic.
func (r *Registry) Instance(key weft.InstanceKey) (*weft.Instance, uint64) {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	if in := r.view.instance(key); in != nil {
		return in, r.view.indexLocked(ServiceTopic(in.Service))
	}
	return nil, r.view.indexLocked(InstancesTopic())
}

// Endpoints returns what traffic may go to: the service's instances that are
// passing or warning by the worst of their own and their node's checks, and those
// that its guard keeps; sorted by id, with the index of ServiceTopic(n).
func (r *Registry) Endpoints(n weft.ServiceName) ([]weft.Endpoint, uint64) {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	e := r.view.services[n]
	if e == nil {
		return nil, 1
	}
	if cached := e.endpoints.Load(); cached != nil {
		return *cached, e.index
	}
	guard := r.view.guards[n]
	var list []weft.Endpoint
	for _, in := range e.instances {
		node := r.view.node(in.Node)
		s := standingOf(in, node)
		if s == healthy || s == failed && guard != nil && guard.Keeps(in.Key()) {
			list = append(list, endpointOf(in, node))
		}
	}
	e.endpoints.Store(&list)
	return list, e.index
}

// endpointOf returns an instance as the data plane sees it. The node may be nil.
func endpointOf(in *weft.Instance, node *weft.Node) weft.Endpoint {
	address, health := in.Address, max(in.Health(), worst(checksOfNode(node)))
	if node != nil {
		address = orElse(address, node.Address)
	}
	weight := in.Weights.Passing
	if health == weft.Warning {
		weight = in.Weights.Warning
	}
	ep := weft.Endpoint{
		ID:       in.Node + "/" + in.ID,
		Address:  net.JoinHostPort(address, strconv.Itoa(in.Port)),
		Protocol: in.Protocol,
		Weight:   uint32(max(weight, 1)),
		Zone:     in.Zone,
		Labels:   in.Labels,
	}
	if in.MeshAddr != "" && in.Identity != "" {
		ep.Address, ep.Identity = in.MeshAddr, in.Identity
	}
	return ep
}

func worst(checks []weft.Check) weft.Health {
	health := weft.Passing
	for i := range checks {
		health = max(health, checks[i].Status)
	}
	return health
}

// NodeNamed returns a node, nil when it is not there, without its instances, which may
// have to be sorted first.
func (r *Registry) NodeNamed(name string) *weft.Node {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	return r.view.node(name)
}

// NodeAddress returns the address of a node, "" when it is not there.
func (r *Registry) NodeAddress(name string) string {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	if n := r.view.node(name); n != nil {
		return n.Address
	}
	return ""
}

func byName(a, b weft.ServiceName) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}
