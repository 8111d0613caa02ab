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
	// GatewayTable), or the workload (Authorization).
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
	index    uint64              // the newest change that it is compiled with; of Endpoints, of the service
	saw      map[weft.ServiceName]bool
	streams  map[*stream]struct{}
}

// catalogue is the compiled resources, and what each depends on. Guarded by
// Control.mu.
type catalogue struct {
	entries   map[entryKey]*entry
	byService map[weft.ServiceName]map[*entry]struct{}
	byLabel   map[string]map[*entry]struct{} // route tables and services, by the first label of their name
	others    map[*entry]struct{}            // of types of which there are few
	// followers are the streams that are subscribed to all tables of a gateway, by
	// the name that they have for it.
	followers map[string]map[*stream]struct{}
}

func newCatalogue() catalogue {
	return catalogue{
		entries: make(map[entryKey]*entry), byService: make(map[weft.ServiceName]map[*entry]struct{}),
		byLabel: make(map[string]map[*entry]struct{}), others: make(map[*entry]struct{}),
		followers: make(map[string]map[*stream]struct{}),
	}
}

func (g *catalogue) add(e *entry) {
	g.entries[e.key] = e
	if label, ok := e.label(); ok {
		insert(g.byLabel, label, e)
	} else if e.key.typeURL != weftpb.EndpointsType && e.key.typeURL != weftpb.GatewayTableType {
		g.others[e] = struct{}{}
	}
}

// label is what a concern's names are compared with.
func (e *entry) label() (label string, ok bool) {
	switch e.key.typeURL {
	case weftpb.RouteTableType, weftpb.ServiceType:
		return firstLabel(nameOf(e.key)), true
	}
	return "", false
}

func insert[K comparable, V comparable](index map[K]map[V]struct{}, key K, v V) {
	if index[key] == nil {
		index[key] = make(map[V]struct{})
	}
	index[key][v] = struct{}{}
}

func remove[K comparable, V comparable](index map[K]map[V]struct{}, key K, v V) {
	delete(index[key], v)
	if len(index[key]) == 0 {
		delete(index, key)
	}
}

// index notes what e depends on now, instead of what it did.
func (g *catalogue) index(e *entry, saw map[weft.ServiceName]bool) {
	for n := range e.saw {
		if _, still := saw[n]; !still {
			remove(g.byService, n, e)
		}
	}
	for n := range saw {
		insert(g.byService, n, e)
	}
	e.saw = saw
}

func (g *catalogue) drop(e *entry) {
	for n := range e.saw {
		remove(g.byService, n, e)
	}
	if label, ok := e.label(); ok {
		remove(g.byLabel, label, e)
	}
	delete(g.others, e)
	delete(g.entries, e.key)
}

// affected are the entries that a change of resources may touch.
func (g *catalogue) affected(n concern) map[*entry]struct{} {
	out := make(map[*entry]struct{})
	if n.names == nil {
		for _, e := range g.entries {
			if n.touches(e) {
				out[e] = struct{}{}
			}
		}
		return out
	}
	look := func(entries map[*entry]struct{}) {
		for e := range entries {
			if n.touches(e) {
				out[e] = struct{}{}
			}
		}
	}
	look(g.others)
	for label := range n.names {
		look(g.byLabel[label])
	}
	if n.kinds["DestinationRule"] {
		for service, entries := range g.byService {
			if n.names[service.Name] {
				look(entries)
			}
		}
	}
	return out
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
		if _, ok := k.set.GatewayHosts(key.name); ok {
			return &weftpb.Gateway{Name: key.name}
		}
	case weftpb.GatewayTableType:
		if gateway, host, ok := weftpb.ParseGatewayTableName(key.name); ok {
			if t := k.gatewayTable(gateway, host, key.scope); t != nil {
				return weftpb.EncodeGatewayTable(t)
			}
		}
	case weftpb.AuthorizationType:
		service, labels := parseWorkload(key.scope)
		return weftpb.EncodeAuthorization(policiesOf(k.set, service, labels), k.set.Paths(service))
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
func workloadScope(service weft.ServiceName, labels map[string]string) string {
	return weftpb.ServiceResource(service) + "\n" + labelsKey(labels)
}

func parseWorkload(scope string) (service weft.ServiceName, labels map[string]string) {
	name, text, _ := strings.Cut(scope, "\n")
	service, _ = weftpb.ParseServiceResource(name)
	if json.Unmarshal([]byte(text), &labels) != nil {
		return service, nil
	}
	return service, labels
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
	kinds map[string]bool // "VirtualService" is one for sidecars
	// names are the first labels of the hosts that the changed resources name.
	// Two names of one service always share the first label. nil means all.
	names map[string]bool
}

// touches reports whether the change may touch an entry. Of a gateway's tables
// resource.Set says which VirtualServices touch them.
func (n concern) touches(e *entry) bool {
	switch e.key.typeURL {
	case weftpb.GatewayType:
		return n.kinds["Gateway"]
	case weftpb.GatewayTableType:
		return n.subsetsOf(e)
	case weftpb.AuthorizationType:
		service, _ := parseWorkload(e.key.scope)
		return n.kinds["AuthorizationPolicy"] || n.kinds["VirtualService"] && n.fits(service.Name)
	case weftpb.ServiceType:
		return (n.kinds["DestinationRule"] || n.kinds["ResiliencePolicy"] || n.kinds["BreakerOverride"]) && n.fits(nameOf(e.key))
	case weftpb.RouteTableType:
		return n.kinds["VirtualService"] && n.fits(nameOf(e.key)) || n.subsetsOf(e)
	}
	return false
}

// subsetsOf reports whether a DestinationRule may define a subset that e points to.
func (n concern) subsetsOf(e *entry) bool {
	if !n.kinds["DestinationRule"] {
		return false
	}
	for service := range e.saw {
		if n.fits(service.Name) {
			return true
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
