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

func newVirtualService(r *Resource, spec *networking.VirtualService) *virtualService {
	v := &virtualService{Resource: r, spec: spec, private: private(spec.ExportTo), paths: pathsOf(r), compiled: map[string]*ruleLists{}}
	for _, name := range qualified(spec.Gateways, r.Namespace) {
		if name != mesh && !slices.Contains(v.gateways, name) {
			v.gateways = append(v.gateways, name)
		}
	}
	for _, name := range v.contexts() {
		v.compiled[name] = compileLists(r, name)
	}
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

// contexts are where the VirtualService applies: its gateways, and the mesh.
func (v *virtualService) contexts() []string {
	if inMesh(v.spec.Gateways) {
		return append([]string{mesh}, v.gateways...)
	}
	return v.gateways
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
