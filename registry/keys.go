package registry

import (
	"net/url"
	"strings"

	"github.com/weftmesh/weft"
)

// What the store holds. Parts of a key are escaped, so that a "/" in a name does
// not make another key of it.
//
//	registry/nodes/<node>                   weft.Node as JSON, with its checks and a signature
//	registry/instances/<node>/<id>          weft.Instance as JSON, with its checks and a signature
//	registry/guards/<ns>/<service>          Guard as JSON
//	registry/index/service/<ns>/<service>   departures as JSON, or empty
//	registry/index/node/<node>              empty
//	registry/index/instances                empty
//	registry/index/services                 empty
//	registry/index/nodes                    empty
//	registry/kv/…                           keys: see kvrecord.go
//	registry/time                           Unix milliseconds of a change, about
//	registry/tickets                        ids of tickets, one after the other
//
// The index of a topic is the revision of its last change. The newest change that
// put a record is known by the record's own revision; every other one (a record
// went, a node changed under a service's instances) also puts the topic's index
// cell. The greater of both is the index, before and after a restart; what is left
// of a deregistered service is its cell. A registration, the common write, is so
// one put.
const (
	root          = "registry/"
	nodesDir      = root + "nodes/"
	instancesDir  = root + "instances/"
	serviceCells  = root + "index/service/"
	nodeCells     = root + "index/node/"
	instancesCell = root + "index/instances"
	servicesCell  = root + "index/services"
	nodesCell     = root + "index/nodes"
	timeMark      = root + "time"
)

func instanceRecord(k weft.InstanceKey) string {
	return instancesDir + url.PathEscape(k.Node) + "/" + url.PathEscape(k.ID)
}

func nodeRecord(name string) string { return nodesDir + url.PathEscape(name) }

// recordOf returns the record of an instance, or of a node (ID "").
func recordOf(k weft.InstanceKey) string {
	if k.ID == "" {
		return nodeRecord(k.Node)
	}
	return instanceRecord(k)
}

func serviceCell(n weft.ServiceName) string {
	return serviceCells + url.PathEscape(n.Namespace) + "/" + url.PathEscape(n.Name)
}

func nodeCell(name string) string { return nodeCells + url.PathEscape(name) }

// parseCell returns the topic whose index cell key is.
func parseCell(key string) (t Topic, ok bool) {
	switch key {
	case instancesCell:
		return InstancesTopic(), true
	case servicesCell:
		return ServicesTopic(), true
	case nodesCell:
		return NodesTopic(), true
	}
	if rest, found := strings.CutPrefix(key, nodeCells); found {
		name, err := url.PathUnescape(rest)
		return NodeTopic(name), err == nil
	}
	if rest, found := strings.CutPrefix(key, serviceCells); found {
		ns, name, ok := cutPair(rest)
		return ServiceTopic(weft.ServiceName{Namespace: ns, Name: name}), ok
	}
	return Topic{}, false
}

// parseInstanceRecord returns the key of the instance whose record key is.
func parseInstanceRecord(key string) (weft.InstanceKey, bool) {
	rest, found := strings.CutPrefix(key, instancesDir)
	node, id, ok := cutPair(rest)
	return weft.InstanceKey{Node: node, ID: id}, found && ok
}

func parseNodeRecord(key string) (name string, ok bool) {
	rest, found := strings.CutPrefix(key, nodesDir)
	name, err := url.PathUnescape(rest)
	return name, found && err == nil
}

func cutPair(s string) (a, b string, ok bool) {
	a, b, ok = strings.Cut(s, "/")
	a, errA := url.PathUnescape(a)
	b, errB := url.PathUnescape(b)
	return a, b, ok && errA == nil && errB == nil
}
