// Package registry is the catalogue of nodes, instances and their health.
package registry

import (
	"context"
	"log/slog"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// Config of a Registry.
type Config struct {
	Store      *store.Store
	Node       weft.Node // this server's own node: Name and Address; an empty ID is made once and kept
	Datacenter string    // "dc1" when empty
	Logger     *slog.Logger
}

// Registry is an open registry. Its methods may be called from any goroutine.
// Values that it returns are shared and immutable.
type Registry struct{}

// Open loads the catalogue from the store, makes the own node known, and starts
// the watch, the probes and the timers.
func Open(ctx context.Context, c Config) (*Registry, error) { return nil, notYet("open") }

// Close stops everything that Open started, and waits for it. The store stays open.
func (r *Registry) Close() error { return notYet("close") }

// Datacenter returns the configured name of this datacenter.
func (r *Registry) Datacenter() string { return "" }

// LocalNode returns this server's own node as it is now.
func (r *Registry) LocalNode() *weft.Node { return nil }

// Register writes an instance; one of the same node and id is replaced. An empty
// Node means the own node. Checks without an id get "service:<ID>", or
// "service:<ID>:1", ":2", … when there are several. The given Status of a check is
// kept until its first result. What is the same already is not written, and the
// service's present index is returned.
func (r *Registry) Register(ctx context.Context, in weft.Instance) (index uint64, err error) {
	return 0, notYet("register")
}

// Deregister removes an instance. The error is weft.NotFound when it is not there.
func (r *Registry) Deregister(ctx context.Context, key weft.InstanceKey) (uint64, error) {
	return 0, notYet("deregister")
}

// RegisterNode writes a node: id, address, labels, and its checks when the node
// is new or n.Checks is not nil.
func (r *Registry) RegisterNode(ctx context.Context, n weft.Node) (uint64, error) {
	return 0, notYet("register node")
}

// DeregisterNode removes a node and every instance on it, at one index.
func (r *Registry) DeregisterNode(ctx context.Context, name string) (uint64, error) {
	return 0, notYet("deregister node")
}

// SetCheck adds or replaces the check checkID of a node: an instance's check when
// one of the node's instances has a check of that id, else a check of the node
// itself.
func (r *Registry) SetCheck(ctx context.Context, node, checkID string, c weft.Check) error {
	return notYet("set check")
}

// AddCheck adds or replaces a check of an instance, or of the node when key.ID is
// empty.
func (r *Registry) AddCheck(ctx context.Context, key weft.InstanceKey, c weft.Check) error {
	return notYet("add check")
}

// RemoveCheck removes a check of the node or of one of its instances.
func (r *Registry) RemoveCheck(ctx context.Context, node, checkID string) error {
	return notYet("remove check")
}

// Report tells the result of a TTL or lease check, and so renews it. Only a
// change of status is written. The error is weft.NotFound when there is no such
// check.
func (r *Registry) Report(ctx context.Context, node, checkID string, status weft.Health, output string) error {
	return notYet("report")
}

// Maintain takes an instance (or, when key.ID is empty, a node) out of service by
// a critical check, or puts it back.
func (r *Registry) Maintain(ctx context.Context, key weft.InstanceKey, on bool, reason string) error {
	return notYet("maintain")
}

// Instances returns a service's instances, sorted by node and id, with the index
// of ServiceTopic(n).
func (r *Registry) Instances(n weft.ServiceName) ([]*weft.Instance, uint64) { return nil, 1 }

// Services returns the services of a namespace with the sorted union of their
// tags, with the index of ServicesTopic.
func (r *Registry) Services(namespace string) (map[string][]string, uint64) { return nil, 1 }

// ServiceNames returns every service of every namespace that has an instance,
// sorted by namespace and name, with the index of ServicesTopic.
func (r *Registry) ServiceNames() ([]weft.ServiceName, uint64) { return nil, 1 }

// Nodes returns the nodes sorted by name, with the index of NodesTopic.
func (r *Registry) Nodes() ([]*weft.Node, uint64) { return nil, 1 }

// Node returns a node (nil when it is not there) and its instances sorted by id,
// with the index of NodeTopic(name).
func (r *Registry) Node(name string) (n *weft.Node, instances []*weft.Instance, index uint64) {
	return nil, nil, 1
}

// AllInstances returns every instance, sorted by service, node and id, with the
// index of InstancesTopic.
func (r *Registry) AllInstances() ([]*weft.Instance, uint64) { return nil, 1 }

// Instance returns one instance, nil when it is not there, with the index of its
// service's topic, or of InstancesTopic when it is not there.
func (r *Registry) Instance(key weft.InstanceKey) (*weft.Instance, uint64) { return nil, 1 }

// Endpoints returns what traffic may go to: the service's instances that are
// passing or warning by their own and their node's checks, with the index of
// ServiceTopic(n).
func (r *Registry) Endpoints(n weft.ServiceName) ([]weft.Endpoint, uint64) { return nil, 1 }

// NodeAddress returns the address of a node, "" when it is not there.
func (r *Registry) NodeAddress(name string) string { return "" }

// Topic is something that a reader can wait for. Topics are comparable.
type Topic struct {
	kind      topicKind
	namespace string
	name      string
}

type topicKind uint8

const (
	_ topicKind = iota
	serviceTopic
	servicesTopic
	nodesTopic
	nodeTopic
	instancesTopic
)

// ServiceTopic changes with the instances of a service, their checks, and the
// nodes that they are on.
func ServiceTopic(n weft.ServiceName) Topic {
	return Topic{kind: serviceTopic, namespace: n.Namespace, name: n.Name}
}

// ServicesTopic changes when a service appears or goes, or its union of tags changes.
func ServicesTopic() Topic { return Topic{kind: servicesTopic} }

// NodesTopic changes when a node appears, goes, or has another id, address or labels.
func NodesTopic() Topic { return Topic{kind: nodesTopic} }

// NodeTopic changes with a node, its checks, its instances and their checks.
func NodeTopic(name string) Topic { return Topic{kind: nodeTopic, name: name} }

// InstancesTopic changes with any instance and any check, also of nodes.
func InstancesTopic() Topic { return Topic{kind: instancesTopic} }

// Wait returns the topic's index as soon as it is greater than after, or as it is
// when ctx ends. With after 0 it returns at once. A change of another topic does
// not wake it.
func (r *Registry) Wait(ctx context.Context, t Topic, after uint64) uint64 { return 1 }

// Subscribe calls fn for each service that exists now, and then for each service
// whose instances or endpoints changed, in index order, from one goroutine; fn
// must not block long. Changes that come while fn runs are delivered once, with
// the newest index. cancel stops the calls, and returns after the last one ended;
// it must not be called from fn.
func (r *Registry) Subscribe(fn func(n weft.ServiceName, index uint64)) (cancel func()) {
	return func() {}
}

func notYet(op string) error { return weft.Errorf(weft.Internal, op, "registry", "not built yet") }
