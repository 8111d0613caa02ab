package control

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/weftpb"
)

// entryKey finds a compiled resource. Proxies that see the same share it.
type entryKey struct {
	typeURL string
	name    string // as the proxy asks for it
	// scope is what else the answer depends on: the client's namespace (Service,
	// Gateway), or the workload (Authorization).
	scope string
}

// entry is a compiled resource that at least one stream is subscribed to. All of
// it is guarded by Control.mu; resource itself is immutable, it is shared with
// responses under way.
type entry struct {
	key      entryKey
	resource *discovery.Resource // nil: there is no such thing
	version  string              // "" when resource is nil
	seq      uint64              // grows with every change
	saw      map[weft.ServiceName]bool
	streams  map[*stream]struct{}
}

// catalogue is the compiled resources, and which services each depends on.
// Guarded by Control.mu.
type catalogue struct {
	entries   map[entryKey]*entry
	byService map[weft.ServiceName]map[*entry]struct{}
}

func newCatalogue() catalogue {
	return catalogue{entries: make(map[entryKey]*entry), byService: make(map[weft.ServiceName]map[*entry]struct{})}
}

// index notes what e depends on now, instead of what it did.
func (g *catalogue) index(e *entry, saw map[weft.ServiceName]bool) {
	for n := range e.saw {
		if _, still := saw[n]; !still {
			g.unlink(e, n)
		}
	}
	for n := range saw {
		if g.byService[n] == nil {
			g.byService[n] = make(map[*entry]struct{})
		}
		g.byService[n][e] = struct{}{}
	}
	e.saw = saw
}

func (g *catalogue) unlink(e *entry, n weft.ServiceName) {
	delete(g.byService[n], e)
	if len(g.byService[n]) == 0 {
		delete(g.byService, n)
	}
}

func (g *catalogue) drop(e *entry) {
	for n := range e.saw {
		g.unlink(e, n)
	}
	delete(g.entries, e.key)
}

// compile makes the message of a key; nil when there is no such thing. A name that
// makes no sense is a thing that does not exist.
func (k *compiler) compile(key entryKey, trust *weftpb.Trust) proto.Message {
	switch key.typeURL {
	case weftpb.RouteTableType:
		if namespace, host, ok := weftpb.ParseRouteTableName(key.name); ok {
			if t := k.routeTable(namespace, host); t != nil {
				return weftpb.EncodeRouteTable(t)
			}
		}
	case weftpb.ServiceType:
		if n, ok := weftpb.ParseServiceResource(key.name); ok {
			if s := k.service(n, key.scope); s != nil {
				return weftpb.EncodeService(s)
			}
		}
	case weftpb.EndpointsType:
		if n, ok := weftpb.ParseServiceResource(key.name); ok && k.exists(n) {
			endpoints, _ := k.registry.Endpoints(n)
			return weftpb.EncodeEndpoints(n, endpoints)
		}
	case weftpb.GatewayType:
		if tables := k.gateway(key.name, key.scope); len(tables) > 0 {
			return weftpb.EncodeGateway(key.name, tables)
		}
	case weftpb.AuthorizationType:
		namespace, labels := parseWorkload(key.scope)
		return weftpb.EncodeAuthorization(k.set.Authorization(namespace, labels))
	case weftpb.TrustType:
		return trust
	}
	return nil
}

// refresh compiles e again, and reports whether its bytes changed.
func (c *Control) refresh(e *entry) bool {
	k := compiler{set: c.set.Load(), registry: c.registry, saw: make(map[weft.ServiceName]bool)}
	m := k.compile(e.key, c.trust)
	c.catalogue.index(e, k.saw)
	if m == nil {
		changed := e.resource != nil
		e.resource, e.version = nil, ""
		return changed
	}
	body, err := weftpb.Pack(m)
	if err != nil { // a text that is not UTF-8; resources and the registry refuse those
		c.log.Error("control: a resource cannot be encoded; the last good one stays", "type", e.key.typeURL, "name", e.key.name, "error", err)
		return false
	}
	version := versionOf(body)
	if version == e.version {
		return false
	}
	if endpoints, ok := m.(*weftpb.Endpoints); ok {
		body = c.indexed(endpoints, body)
	}
	e.resource = &discovery.Resource{Name: e.key.name, Version: version, Resource: body}
	e.version = version
	return true
}

// indexed adds the registry's index, which is no part of the version: a change
// that leaves the endpoints as they are is not sent.
func (c *Control) indexed(m *weftpb.Endpoints, body *anypb.Any) *anypb.Any {
	_, m.Index = c.registry.Endpoints(weft.ServiceName{Namespace: m.GetService().GetNamespace(), Name: m.GetService().GetName()})
	with, err := weftpb.Pack(m)
	if err != nil {
		return body
	}
	return with
}

// versionOf names content: 64 bits are plenty to tell one version of one resource
// from the next, and equal content keeps its version over a restart.
func versionOf(body *anypb.Any) string {
	sum := sha256.Sum256(body.GetValue())
	return hex.EncodeToString(sum[:8])
}

// workloadScope is the scope of a workload's Authorization.
func workloadScope(namespace string, labels map[string]string) string {
	return namespace + "\n" + labelsKey(labels)
}

func parseWorkload(scope string) (namespace string, labels map[string]string) {
	namespace, text, _ := strings.Cut(scope, "\n")
	if json.Unmarshal([]byte(text), &labels) != nil {
		return namespace, nil
	}
	return namespace, labels
}

// labelsKey is equal for equal labels: json sorts the keys.
func labelsKey(labels map[string]string) string {
	b, err := json.Marshal(labels)
	if err != nil {
		return "" // a map of strings always marshals
	}
	return string(b)
}

// concern says which entries a change of resources may touch.
type concern struct {
	kinds map[string]bool
	// names are the first labels of the hosts that the changed resources name.
	// Two names of one service always share the first label. nil means all.
	names map[string]bool
}

func (n concern) touches(e *entry) bool {
	routing := n.kinds["VirtualService"] || n.kinds["DestinationRule"]
	switch e.key.typeURL {
	case weftpb.GatewayType:
		return routing || n.kinds["Gateway"]
	case weftpb.AuthorizationType:
		return n.kinds["AuthorizationPolicy"]
	case weftpb.ServiceType:
		return n.kinds["DestinationRule"] && n.fits(nameOf(e.key))
	case weftpb.RouteTableType:
		if n.kinds["VirtualService"] && n.fits(nameOf(e.key)) {
			return true
		}
		if n.kinds["DestinationRule"] { // it may define a subset that the table points to
			for service := range e.saw {
				if n.fits(service.Name) {
					return true
				}
			}
		}
	}
	return false
}

func (n concern) fits(host string) bool { return n.names == nil || n.names[firstLabel(host)] }

// nameOf is the host or the service of "<namespace>/<name>".
func nameOf(key entryKey) string {
	_, name, _ := strings.Cut(key.name, "/")
	return name
}

func firstLabel(host string) string {
	label, _, _ := strings.Cut(strings.ToLower(host), ".")
	return label
}
