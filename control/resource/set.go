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
	virtualServices []*virtualService             // in order of precedence
	mesh            map[string][]*virtualService  // for sidecars, by full name of host, or "*.x"
	gateways        map[string]*gateway           // by "namespace/name"
	local           map[ruleKey]*destinationRules // for clients in the rules' namespace
	exported        map[ruleKey]*destinationRules // for clients elsewhere
	policies        map[string][]authorization    // by namespace
	warnings        weft.Problems                 // found while compiling
}

type virtualService struct {
	*Resource
	spec    *networking.VirtualService
	private bool        // for clients in its namespace only
	rules   []weft.Rule // as sidecars apply them, completed by weft.NewRouteTable
}

type authorization struct {
	labels map[string]string // the selector
	policy *weft.AuthorizationPolicy
}

// NewSet indexes and compiles resources, in any order.
func NewSet(resources []*Resource) *Set {
	s := &Set{
		mesh:     map[string][]*virtualService{},
		gateways: map[string]*gateway{},
		policies: map[string][]authorization{},
	}
	var destinationRules []*Resource
	for _, r := range slices.SortedFunc(slices.Values(resources), precedence) {
		switch spec := r.Spec.(type) {
		case *networking.VirtualService:
			s.addVirtualService(r, spec)
		case *networking.DestinationRule:
			destinationRules = append(destinationRules, r)
		case *networking.Gateway:
			s.gateways[r.Namespace+"/"+r.Name] = &gateway{Resource: r, spec: spec}
		case *security.AuthorizationPolicy:
			a := authorization{spec.Selector.GetMatchLabels(), compileAuthorization(r)}
			s.policies[r.Namespace] = append(s.policies[r.Namespace], a)
		}
	}
	s.addDestinationRules(destinationRules)
	for _, name := range slices.Sorted(maps.Keys(s.gateways)) {
		s.serve(name, s.gateways[name])
	}
	return s
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

func (s *Set) addVirtualService(r *Resource, spec *networking.VirtualService) {
	v := &virtualService{Resource: r, spec: spec, private: private(spec.ExportTo)}
	s.virtualServices = append(s.virtualServices, v)
	if !inMesh(spec.Gateways) {
		return
	}
	v.rules = newTable("", reached(compileRules(r, mesh))).Rules
	for _, host := range spec.Hosts {
		name := fullName(host, r.Namespace)
		if !slices.Contains(s.mesh[name], v) {
			s.mesh[name] = append(s.mesh[name], v)
		}
	}
}

// newTable cannot fail: what weft.NewRouteTable refuses is no Resource.
func newTable(host string, rules []weft.Rule) *weft.RouteTable {
	table, err := weft.NewRouteTable(host, rules)
	if err != nil {
		return &weft.RouteTable{Host: host}
	}
	return table
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
	return &weft.RouteTable{Host: strings.ToLower(host), Rules: v.rules}
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

// Gateway returns the route tables of the Gateway resource "namespace/name", or
// "name" in the default namespace; nil when there is none.
func (s *Set) Gateway(name string) []*weft.RouteTable {
	if !strings.Contains(name, "/") {
		name = weft.DefaultNamespace + "/" + name
	}
	g := s.gateways[name]
	if g == nil {
		return nil
	}
	return slices.Clip(g.tables)
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
