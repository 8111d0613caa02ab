package control

import (
	"maps"
	"slices"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/resource"
	"github.com/weftmesh/weft/control/weftpb"
	"github.com/weftmesh/weft/registry"
)

// compiler answers what proxies ask, from one set of resources and the registry
// as it is. It notes which services the answer depends on, and whether they
// existed, so that the answer is compiled again when that changes.
type compiler struct {
	set      *resource.Set
	registry *registry.Registry
	saw      map[weft.ServiceName]bool // nil: nobody wants to know
}

// exists reports whether a service has a registered instance, healthy or not.
func (k *compiler) exists(n weft.ServiceName) bool {
	instances, _ := k.registry.Instances(n)
	exists := len(instances) > 0
	if k.saw != nil {
		k.saw[n] = exists
	}
	return exists
}

// routeTable returns the rules for a host as a client in namespace calls it: a
// VirtualService's, or, for a registered service without one, that its requests and
// connections go there. nil means that there is no such host.
func (k *compiler) routeTable(namespace, host string) *weft.RouteTable {
	n, isName := weft.ParseHost(host, namespace)
	registered := isName && k.exists(n)
	t := k.set.RouteTable(host, namespace)
	switch {
	case t != nil:
		t = k.resolve(t, namespace)
	case registered:
		t = &weft.RouteTable{Host: host}
	default:
		return nil
	}
	if registered {
		toItself(t, n)
	}
	return t
}

// toItself adds what holds for a service of which its VirtualService does not speak:
// one with tcp rules only says nothing of requests, and the other way round.
func toItself(t *weft.RouteTable, n weft.ServiceName) {
	itself := []weft.Destination{{Service: n, Weight: 1}}
	if len(t.Rules) == 0 {
		t.Rules = []weft.Rule{{Name: "default", Retry: weft.DefaultRetry, Destinations: itself}}
	}
	if last := len(t.TCP) - 1; last < 0 || len(t.TCP[last].Ports) > 0 {
		t.TCP = append(slices.Clip(t.TCP), weft.RawRule{Name: "default", Destinations: itself})
	}
}

// gatewayTable returns one table of a gateway whose proxy is in namespace, or nil.
func (k *compiler) gatewayTable(name, host, namespace string) *weft.RouteTable {
	if t := k.set.GatewayTable(name, host); t != nil {
		return k.resolve(t, namespace)
	}
	return nil
}

// resolve says of destinations that cannot serve why. The table it is given
// belongs to the set: what changes is copied.
func (k *compiler) resolve(t *weft.RouteTable, namespace string) *weft.RouteTable {
	out := *t
	ofRaw := func(r *weft.RawRule) *[]weft.Destination { return &r.Destinations }
	out.Rules = resolved(k, t.Rules, func(r *weft.Rule) *[]weft.Destination { return &r.Destinations }, namespace)
	out.TCP = resolved(k, t.TCP, ofRaw, namespace)
	out.TLS = resolved(k, t.TLS, ofRaw, namespace)
	return &out
}

func resolved[R any](k *compiler, rules []R, destinations func(*R) *[]weft.Destination, namespace string) []R {
	out, copied := rules, false
	for i := range rules {
		before, copiedThese := *destinations(&rules[i]), false
		for j := range before {
			why := k.unresolved(&before[j], namespace)
			if why == before[j].Unresolved {
				continue
			}
			if !copied {
				out, copied = slices.Clone(rules), true
			}
			after := destinations(&out[i])
			if !copiedThese {
				*after, copiedThese = slices.Clone(*after), true
			}
			(*after)[j].Unresolved = why
		}
	}
	return out
}

func (k *compiler) unresolved(d *weft.Destination, namespace string) string {
	if !k.exists(d.Service) {
		return "service " + d.Service.String() + " does not exist"
	}
	if d.Subset == "" {
		return ""
	}
	_, subsets := k.set.Service(d.Service, namespace)
	if !slices.ContainsFunc(subsets, func(s weft.Subset) bool { return s.Name == d.Subset }) {
		return "subset " + d.Subset + " of " + d.Service.String() + " is not defined"
	}
	return ""
}

// service returns a service without its endpoints, as clients in namespace see it;
// nil when nothing of that name is registered.
func (k *compiler) service(n weft.ServiceName, namespace string) *weft.Service {
	if !k.exists(n) {
		return nil
	}
	policy, subsets := k.set.Service(n, namespace)
	return &weft.Service{Name: n, Policy: policy, Subsets: subsets, Resilience: k.set.Resilience(n), Breaker: k.set.Breaker(n)}
}

// destinations adds to services whatever the tables point to.
func destinations(services map[weft.ServiceName]bool, tables ...*weft.RouteTable) {
	for _, t := range tables {
		if t == nil {
			continue
		}
		for i := range t.Rules {
			for j := range t.Rules[i].Destinations {
				services[t.Rules[i].Destinations[j].Service] = true
			}
		}
		for _, raw := range [][]weft.RawRule{t.TCP, t.TLS} {
			for i := range raw {
				for j := range raw[i].Destinations {
					services[raw[i].Destinations[j].Service] = true
				}
			}
		}
	}
}

// fallbacks adds to services those that answer in place of what the tables point to,
// as the policies of rules say.
func fallbacks(services map[weft.ServiceName]bool, tables ...*weft.RouteTable) {
	for _, t := range tables {
		if t == nil {
			continue
		}
		for i := range t.Rules {
			if n, ok := weftpb.Fallback(t.Rules[i].Resilience); ok {
				services[n] = true
			}
		}
	}
}

// complete adds to a snapshot the services that its tables point to, and those that
// they fall back to. A fallback has none itself.
func (k *compiler) complete(s *weft.Snapshot, namespace string) {
	tables := slices.Collect(maps.Values(s.Hosts))
	if s.Gateway != nil {
		tables = append(tables, s.Gateway.Tables()...)
	}
	needed, instead := make(map[weft.ServiceName]bool), make(map[weft.ServiceName]bool)
	destinations(needed, tables...)
	fallbacks(instead, tables...)
	s.Services = make(map[weft.ServiceName]*weft.Service, len(needed))
	add := func(n weft.ServiceName) *weft.Service {
		svc := k.service(n, namespace)
		if svc != nil {
			svc.Endpoints, svc.Index = k.registry.Endpoints(n)
			s.Services[n] = svc
		}
		return svc
	}
	for n := range needed {
		if svc := add(n); svc != nil {
			if to, ok := weftpb.Fallback(svc.Resilience); ok {
				instead[to] = true
			}
		}
	}
	for n := range instead {
		if s.Services[n] == nil {
			add(n)
		}
	}
}

// Mesh compiles what a proxy in namespace sees of hosts, or of every registered
// service by its full name when no host is given.
func (c *Control) Mesh(namespace string, hosts ...string) *weft.Snapshot {
	k := compiler{set: c.set.Load(), registry: c.registry}
	if len(hosts) == 0 {
		names, _ := c.registry.ServiceNames()
		for _, n := range names {
			hosts = append(hosts, n.Host())
		}
	}
	s := &weft.Snapshot{Version: c.Index(), Hosts: make(map[string]*weft.RouteTable, len(hosts))}
	for _, host := range hosts {
		s.Hosts[host] = k.routeTable(namespace, host)
	}
	k.complete(s, namespace)
	return s
}

// GatewaySnapshot compiles what the proxies of a gateway see. A gateway without
// resources has no routes.
func (c *Control) GatewaySnapshot(name string) *weft.Snapshot {
	k := compiler{set: c.set.Load(), registry: c.registry}
	namespace := c.gatewayNamespace(name)
	tables := slices.Clone(k.set.Gateway(name))
	for i, t := range tables {
		tables[i] = k.resolve(t, namespace)
	}
	s := &weft.Snapshot{Version: c.Index(), Gateway: weft.NewGateway(name, tables), Hosts: make(map[string]*weft.RouteTable)}
	services := make(map[weft.ServiceName]bool)
	destinations(services, tables...)
	for n := range services {
		s.Hosts[n.Host()] = k.routeTable(namespace, n.Host())
	}
	k.complete(s, namespace)
	return s
}

// WorkloadAuthorization is the policies of those instances of a service that carry
// one set of labels.
type WorkloadAuthorization struct {
	Labels        map[string]string
	Instances     []weft.InstanceKey
	Authorization *weft.Authorization // nil: no policy applies
	Paths         weft.PathMode       // how the paths that it sees are normalised
}

// ServiceLabel is a label that every instance carries for selectors of policies,
// without being registered with it: the name of its service.
const ServiceLabel = "weft.dev/service"

// policiesOf returns the policies of the instances of a service that carry labels.
func policiesOf(set *resource.Set, service weft.ServiceName, labels map[string]string) *weft.Authorization {
	all := make(map[string]string, len(labels)+1)
	maps.Copy(all, labels)
	all[ServiceLabel] = service.Name
	return set.Authorization(service.Namespace, all)
}

// AuthorizationFor returns the policies of a service's instances, one entry for
// each distinct set of labels. A service without instances gets one entry without
// labels.
func (c *Control) AuthorizationFor(service weft.ServiceName) []WorkloadAuthorization {
	set := c.set.Load()
	instances, _ := c.registry.Instances(service)
	paths := set.Paths(service)
	if len(instances) == 0 {
		return []WorkloadAuthorization{{Authorization: policiesOf(set, service, nil), Paths: paths}}
	}
	var out []WorkloadAuthorization
	at := make(map[string]int)
	for _, in := range instances {
		key := labelsKey(in.Labels)
		i, seen := at[key]
		if !seen {
			i = len(out)
			at[key] = i
			out = append(out, WorkloadAuthorization{Labels: in.Labels, Authorization: policiesOf(set, service, in.Labels), Paths: paths})
		}
		out[i].Instances = append(out[i].Instances, in.Key())
	}
	return out
}
