package resource

import (
	"slices"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/weftmesh/weft"
)

// Contend reports whether a and b both want to say alone how a service is reached:
// of VirtualServices of a host sidecars take one, of the policies of DestinationRules
// the first.
func Contend(a, b *Resource) bool {
	if a.Namespace != b.Namespace {
		return false
	}
	switch spec := a.Spec.(type) {
	case *networking.VirtualService:
		other, same := b.Spec.(*networking.VirtualService)
		return same && InMesh(spec) && InMesh(other) && slices.ContainsFunc(spec.Hosts, func(h string) bool {
			return slices.ContainsFunc(other.Hosts, func(o string) bool { return sameService(h, o, a.Namespace) })
		})
	case *networking.DestinationRule:
		other, same := b.Spec.(*networking.DestinationRule)
		return same && sameService(spec.Host, other.Host, a.Namespace)
	}
	return false
}

func sameService(host, other, namespace string) bool {
	a, ok := weft.ParseHost(host, namespace)
	b, both := weft.ParseHost(other, namespace)
	return ok && both && a == b
}
