package resource

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
)

// Set is all resources at one moment, compiled and indexed for questions. It is
// immutable and may be asked from any goroutine; what it returns is shared, and
// must not be changed.
type Set struct {
	resources map[Ref]*Resource
	virtual   map[Ref]*virtualService
	mesh      map[string][]*virtualService  // for sidecars, by full name of host, or "*.x"; in order of precedence
	users     map[string][]*virtualService  // of a gateway, whether that exists or not; in order of precedence
	gateways  map[string]*gateway           // by "namespace/name"
	local     map[ruleKey]*destinationRules // for clients in the rules' namespace
	exported  map[ruleKey]*destinationRules // for clients elsewhere
	policies  map[string][]authorization    // by namespace, in order of precedence
	// resilience is the ResiliencePolicies for each target, in order of precedence.
	resilience map[target][]*Resource
	breakers   map[weft.ServiceName]*Resource // BreakerOverrides
}

// Ref names a resource.
type Ref struct{ Kind, Namespace, Name string }

// Ref of the resource.
func (r *Resource) Ref() Ref { return Ref{r.Kind, r.Namespace, r.Name} }

type authorization struct {
	*Resource
	labels map[string]string // the selector
	policy *weft.AuthorizationPolicy
}

// NewSet indexes and compiles resources, in any order.
func NewSet(resources []*Resource) *Set {
	next, _ := new(Set).With(resources, nil)
	return next
}

// HostOfGateway is a host (or a port, ":5432") of a gateway ("namespace/name").
type HostOfGateway struct{ Gateway, Host string }

// With is the set after a change: resources that are new or others than before,
// and those that are gone. Only what these concern is compiled again; the rest is
// shared with s, which stays as it is. tables are the tables of gateways that may
// be others now, in no order.
func (s *Set) With(put []*Resource, removed []Ref) (next *Set, tables []HostOfGateway) {
	next = new(Set)
	*next = *s
	next.resources = cloned(s.resources)
	var gone, came []*Resource
	for _, ref := range removed {
		if old := next.resources[ref]; old != nil {
			gone = append(gone, old)
			delete(next.resources, ref)
		}
	}
	for _, r := range put {
		if old := next.resources[r.Ref()]; old != nil {
			gone = append(gone, old)
		}
		next.resources[r.Ref()] = r
		came = append(came, r)
	}
	slices.SortFunc(came, precedence)
	next.replaceDestinationRules(gone, came)
	next.replacePolicies(gone, came)
	also := next.touched(next.replaceResilience(gone, came), came)
	came = append(came, also...)
	slices.SortFunc(came, precedence)
	return next, next.replaceRouting(append(gone, also...), came)
}

// cloned is a copy that may be written to.
func cloned[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}

// precedence orders resources that compete: the older first, as in Istio.
func precedence(a, b *Resource) int {
	age := func(r *Resource) int64 {
		if r.Created == 0 {
			return math.MaxInt64
		}
		return r.Created
	}
	return cmp.Or(cmp.Compare(age(a), age(b)), strings.Compare(a.Name, b.Name), strings.Compare(a.Namespace, b.Namespace))
}

// merged is an ordered list without those that are gone and with those that came,
// which are in order themselves.
func merged[T any](list []T, gone func(T) bool, came []T, order func(a, b T) int) []T {
	out := make([]T, 0, len(list)+len(came))
	for _, v := range list {
		if gone(v) {
			continue
		}
		for len(came) > 0 && order(came[0], v) < 0 {
			out, came = append(out, came[0]), came[1:]
		}
		out = append(out, v)
	}
	return append(out, came...)
}

// replaceRouting takes the VirtualServices and Gateways of a change.
func (s *Set) replaceRouting(gone, came []*Resource) []HostOfGateway {
	left := make(map[*virtualService]bool)
	var entered []*virtualService
	gateways := make(map[string]bool) // those that are others themselves
	virtual := s.virtual
	for _, r := range gone {
		switch r.Kind {
		case virtualServiceKind:
			left[virtual[r.Ref()]] = true
		case gatewayKind:
			gateways[r.Namespace+"/"+r.Name] = true
		}
	}
	if len(left) > 0 || s.virtual == nil || slices.ContainsFunc(came, func(r *Resource) bool { return r.Kind == virtualServiceKind }) {
		s.virtual = cloned(virtual)
	}
	for v := range left {
		delete(s.virtual, v.Ref())
	}
	for _, r := range came {
		switch spec := r.Spec.(type) {
		case *networking.VirtualService:
			v := s.newVirtualService(r, spec)
			s.virtual[r.Ref()] = v
			entered = append(entered, v)
		case *networking.Gateway:
			gateways[r.Namespace+"/"+r.Name] = true
		}
	}
	s.mesh, _ = rerouted(s.mesh, left, entered, func(v *virtualService) []string { return v.meshHosts })
	var using map[string][]*virtualService
	s.users, using = rerouted(s.users, left, entered, func(v *virtualService) []string { return v.gateways })
	return s.replaceGateways(gateways, left, using)
}

// rerouted is an index of VirtualServices after a change, and those that entered it
// under each key that the change concerns.
func rerouted(index map[string][]*virtualService, left map[*virtualService]bool, entered []*virtualService,
	keys func(*virtualService) []string) (next, concerned map[string][]*virtualService) {
	concerned = make(map[string][]*virtualService)
	for v := range left {
		for _, key := range keys(v) {
			concerned[key] = nil
		}
	}
	for _, v := range entered {
		for _, key := range keys(v) {
			concerned[key] = append(concerned[key], v)
		}
	}
	if len(concerned) == 0 && index != nil {
		return index, nil
	}
	next = cloned(index)
	for key, in := range concerned {
		if list := mergedServices(index[key], left, in); len(list) > 0 {
			next[key] = list
		} else {
			delete(next, key)
		}
	}
	return next, concerned
}

func mergedServices(list []*virtualService, left map[*virtualService]bool, entered []*virtualService) []*virtualService {
	return merged(list, func(v *virtualService) bool { return left[v] }, entered,
		func(a, b *virtualService) int { return precedence(a.Resource, b.Resource) })
}

func (s *Set) replacePolicies(gone, came []*Resource) {
	left := make(map[*Resource]bool)
	entered := make(map[string][]authorization) // by namespace
	for _, r := range gone {
		if r.Kind == authorizationPolicyKind {
			left[r] = true
			entered[r.Namespace] = nil
		}
	}
	for _, r := range came {
		if spec, ok := r.Spec.(*security.AuthorizationPolicy); ok {
			entered[r.Namespace] = append(entered[r.Namespace], authorization{r, spec.Selector.GetMatchLabels(), compileAuthorization(r)})
		}
	}
	if len(entered) == 0 && s.policies != nil {
		return
	}
	s.policies = cloned(s.policies)
	for namespace, in := range entered {
		s.policies[namespace] = merged(s.policies[namespace], func(a authorization) bool { return left[a.Resource] }, in,
			func(a, b authorization) int { return precedence(a.Resource, b.Resource) })
	}
}

// RouteTable returns the rules for a host as a client in namespace calls it, or
// nil when no VirtualService names it. The table's Host is host, in lower case.
//
// As in Istio's sidecars, the VirtualServices of one host are not merged: the
// first wins, a private one of the client's namespace before the others. An
// exact host goes before wildcards, of which the longest wins.
func (s *Set) RouteTable(host, namespace string) *weft.RouteTable {
	v := s.route(host, namespace)
	if v == nil {
		return nil
	}
	rules := v.compiled[mesh]
	return &weft.RouteTable{Host: strings.ToLower(host), Rules: rules.http, TCP: rules.tcp, TLS: rules.tls, Paths: v.paths.mode}
}

// Paths returns how a service normalises the paths of the requests that reach it:
// as those do who call it by its full name.
func (s *Set) Paths(n weft.ServiceName) weft.PathMode {
	if v := s.route(n.Host(), n.Namespace); v != nil {
		return v.paths.mode
	}
	return weft.PathBase
}

func (s *Set) route(host, namespace string) *virtualService {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	full := fullName(host, namespace)
	if v := visible(s.mesh[full], namespace); v != nil {
		return v
	}
	for _, name := range []string{full, host} {
		for pattern := range wildcards(name) {
			if v := visible(s.mesh[pattern], namespace); v != nil {
				return v
			}
		}
	}
	return nil
}

// visible is the first VirtualService that clients in namespace see.
func visible(candidates []*virtualService, namespace string) *virtualService {
	var public *virtualService
	for _, v := range candidates {
		if v.private && v.Namespace == namespace {
			return v
		}
		if !v.private && public == nil {
			public = v
		}
	}
	return public
}

// wildcards yields "*.b.c", "*.c" and "*" of "a.b.c".
func wildcards(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for {
			i := strings.IndexByte(name, '.')
			if i < 0 {
				yield("*")
				return
			}
			if !yield("*" + name[i:]) {
				return
			}
			name = name[i+1:]
		}
	}
}

// Authorization returns the policies that apply to a workload, or nil when there
// are none: those of its namespace and of istio-system whose selector fits its
// labels.
func (s *Set) Authorization(namespace string, labels map[string]string) *weft.Authorization {
	namespaces := []string{rootNamespace, namespace}
	if namespace == rootNamespace {
		namespaces = namespaces[:1]
	}
	var out weft.Authorization
	for _, ns := range namespaces {
		for _, a := range s.policies[ns] {
			if selects(a.labels, labels) {
				out.Policies = append(out.Policies, a.policy)
			}
		}
	}
	if len(out.Policies) == 0 {
		return nil
	}
	return &out
}

func selects(selector, labels map[string]string) bool {
	for k, want := range selector {
		if got, ok := labels[k]; !ok || got != want {
			return false
		}
	}
	return true
}
