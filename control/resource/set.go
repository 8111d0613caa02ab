package resource

import "github.com/weftmesh/weft"

// Set is all resources at one moment, indexed for questions. It is immutable
// and may be asked from any goroutine.
type Set struct{}

// NewSet indexes and compiles resources.
func NewSet(resources []*Resource) *Set { return &Set{} }

// RouteTable returns the rules for a host as a client in namespace calls it, or
// nil when no VirtualService names it. The table's Host is host.
func (s *Set) RouteTable(host, namespace string) *weft.RouteTable { return nil }

// Gateway returns the route tables of the Gateway resource "namespace/name", or
// "name" in the default namespace.
func (s *Set) Gateway(name string) []*weft.RouteTable { return nil }

// Service returns the policy and the subsets of a service for clients in
// clientNamespace.
func (s *Set) Service(n weft.ServiceName, clientNamespace string) (weft.TrafficPolicy, []weft.Subset) {
	return weft.TrafficPolicy{LoadBalancer: weft.LeastRequest}, nil
}

// Authorization returns the policies that apply to a workload, or nil when there
// are none.
func (s *Set) Authorization(namespace string, labels map[string]string) *weft.Authorization {
	return nil
}

// Warnings reports what was accepted but cannot work as written, or not yet.
func (s *Set) Warnings(knownService func(weft.ServiceName) bool) weft.Problems { return nil }
