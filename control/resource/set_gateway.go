package resource

import (
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
)

// gateway is a Gateway with the VirtualServices that name it.
type gateway struct {
	*Resource
	spec   *networking.Gateway
	used   bool // by a VirtualService, though maybe for no host of its own
	tables []*weft.RouteTable
}

// serve compiles the route tables of a gateway. Unlike in sidecars, the rules of
// several VirtualServices for one host are put together, those that fit
// everything at the end.
func (s *Set) serve(name string, g *gateway) {
	var hosts []string // in order of appearance
	byHost := map[string][]weft.Rule{}
	for _, v := range s.virtualServices {
		if !slices.Contains(qualified(v.spec.Gateways, v.Namespace), name) {
			continue
		}
		g.used = true
		served := g.hosts(v)
		if len(served) == 0 {
			s.warn(v.Resource, "spec.hosts", "add one to the Gateway's servers", "the Gateway %s serves none of its hosts", name)
			continue
		}
		rules := reached(compileRules(v.Resource, name))
		for _, h := range served {
			if _, seen := byHost[h]; !seen {
				hosts = append(hosts, h)
			}
			byHost[h] = append(byHost[h], rules...)
		}
	}
	for _, h := range hosts {
		g.tables = append(g.tables, newTable(h, s.catchAllsLast(h, byHost[h])))
	}
}

// catchAllsLast keeps one rule that fits everything, at the end. The rules are
// copied: several tables share them.
func (s *Set) catchAllsLast(host string, rules []weft.Rule) []weft.Rule {
	var out []weft.Rule
	var last *weft.Rule
	for i := range rules {
		switch r := &rules[i]; {
		case !fitsAll(r):
			out = append(out, *r)
		case last == nil:
			last = r
		default:
			s.warnings = append(s.warnings, weft.Problem{Warning: true, Source: r.Source, Mend: "give one of them a match",
				Message: "for the host " + host + " it is never reached: everything fits " + last.Source.String()})
		}
	}
	if last != nil {
		out = append(out, *last)
	}
	return out
}

// hosts are the hosts of a VirtualService that the gateway serves: of each pair
// that overlaps, the narrower.
func (g *gateway) hosts(v *virtualService) []string {
	var out []string
	if v.private && v.Namespace != g.Namespace {
		return nil
	}
	for _, server := range g.spec.Servers {
		for _, pattern := range server.Hosts {
			ns, host, found := strings.Cut(pattern, "/")
			if !found {
				ns, host = "*", pattern
			}
			if ns != "*" && ns != v.Namespace && !(ns == "." && v.Namespace == g.Namespace) {
				continue
			}
			for _, h := range v.spec.Hosts {
				if n := narrower(gatewayHost(host, g.Namespace), gatewayHost(h, v.Namespace)); n != "" && !slices.Contains(out, n) {
					out = append(out, n)
				}
			}
		}
	}
	return out
}

// gatewayHost is a host as requests at the edge name it. Only a short name is a
// service's: example.com is somebody's domain there.
func gatewayHost(host, namespace string) string {
	host = strings.ToLower(host)
	if strings.ContainsAny(host, ".*") {
		return host
	}
	return fullName(host, namespace)
}

// narrower is the host of the two that the other contains, or "".
func narrower(a, b string) string {
	contains := func(wide, narrow string) bool {
		suffix, wildcard := strings.CutPrefix(wide, "*")
		return wide == narrow || wildcard && strings.HasSuffix(strings.TrimPrefix(narrow, "*"), suffix)
	}
	switch {
	case contains(a, b):
		return b
	case contains(b, a):
		return a
	}
	return ""
}
