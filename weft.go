// Package weft holds the nouns of the product: what a service, an instance, an
// endpoint, a route, a policy, an identity and a snapshot are, how each is
// checked, and how a request is matched against them.
//
// It imports only the standard library and does no I/O. Everything else in the
// module speaks in these values: the registry stores Instances, the control
// plane compiles resources to RouteTables, Services and Policies, a proxy runs
// on one Snapshot, and `weft explain` asks the same Snapshot the same question
// as the proxy does (Snapshot.Route, Authorization.Decide).
//
// Values that are shared between goroutines (Instance, Endpoint, RouteTable,
// Service, Authorization, Snapshot) are immutable once published: change a copy.
package weft

// Version of the product. The data directory has its own format number.
const Version = "0.1.0"

// DefaultNamespace is the namespace of everything that names none.
const DefaultNamespace = "default"

// ClusterDomain is the zone of Kubernetes-form names:
// order-service.default.svc.cluster.local.
const ClusterDomain = "cluster.local"
