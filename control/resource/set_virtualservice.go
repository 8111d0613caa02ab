package resource

import (
	"slices"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
)

// virtualService is a VirtualService as each of its gateways applies it. It is
// compiled once, whatever else changes.
type virtualService struct {
	*Resource
	spec      *networking.VirtualService
	private   bool // for clients in its namespace only
	paths     pathChoice
	meshHosts []string              // full names, for sidecars
	gateways  []string              // "namespace/name"
	compiled  map[string]*ruleLists // by gateway, mesh included
}

// ruleLists is the rules of one VirtualService at one gateway, up to the first of
// each list that fits everything. Complete has completed them: tables that are put
// together of them only copy.
type ruleLists struct {
	http []weft.Rule
	tcp  []weft.RawRule
	tls  []weft.RawRule
}

func (s *Set) newVirtualService(r *Resource, spec *networking.VirtualService) *virtualService {
	v := &virtualService{Resource: r, spec: spec, private: private(spec.ExportTo), paths: pathsOf(r)}
	for _, name := range contexts(spec, r.Namespace) {
		if name != mesh {
			v.gateways = append(v.gateways, name)
		}
	}
	if v.compiled = r.rules; v.compiled == nil {
		v.compiled = compileAll(r, spec)
	}
	v.compiled = s.attached(r, v.compiled)
	if !inMesh(spec.Gateways) {
		return v
	}
	for _, host := range spec.Hosts {
		if name := fullName(host, r.Namespace); !slices.Contains(v.meshHosts, name) {
			v.meshHosts = append(v.meshHosts, name)
		}
	}
	return v
}

// contexts are where a VirtualService applies: its gateways, and the mesh.
func contexts(spec *networking.VirtualService, namespace string) []string {
	if len(spec.Gateways) == 0 {
		return []string{mesh}
	}
	var out []string
	for _, name := range qualified(spec.Gateways, namespace) {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// compile does what takes long for a Set ahead of it, and once for several: the one
// to compare with, and the one that follows.
func (r *Resource) compile() {
	switch spec := r.Spec.(type) {
	case *networking.VirtualService:
		r.rules = compileAll(r, spec)
	case *ResiliencePolicy:
		r.resilience = compileResilience(r, spec)
	}
}

func compileAll(r *Resource, spec *networking.VirtualService) map[string]*ruleLists {
	out := map[string]*ruleLists{}
	for _, name := range contexts(spec, r.Namespace) {
		out[name] = compileLists(r, name)
	}
	return out
}

func compileLists(r *Resource, gateway string) *ruleLists {
	t := weft.RouteTable{
		Rules: reached(compileRules(r, gateway)),
		TCP:   reachedRaw(compileTCP(r, gateway)),
		TLS:   compileTLS(r, gateway),
	}
	if t.Complete() != nil {
		return &ruleLists{} // cannot be: what weft.RouteTable refuses is no Resource
	}
	return &ruleLists{http: t.Rules, tcp: t.TCP, tls: t.TLS}
}
