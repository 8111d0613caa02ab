package resource

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
)

// compileTCP makes the tcp rules of a VirtualService as one gateway applies them,
// in order; also those that are never reached.
func compileTCP(res *Resource, gateway string) []weft.RawRule {
	var rules []weft.RawRule
	for i, t := range res.Spec.(*networking.VirtualService).Tcp {
		rule := compileRawRule(res, fmt.Sprintf("spec.tcp[%d]", i), t.Route)
		if len(t.Match) == 0 {
			rules = append(rules, rule)
		}
		for _, m := range t.Match {
			if !appliesAt(m.Gateways, gateway, res.Namespace) {
				continue
			}
			rule.Ports = portOf(m.Port)
			rules = append(rules, rule)
		}
	}
	return rules
}

// compileTLS makes the tls rules, likewise.
func compileTLS(res *Resource, gateway string) []weft.RawRule {
	var rules []weft.RawRule
	for i, t := range res.Spec.(*networking.VirtualService).Tls {
		rule := compileRawRule(res, fmt.Sprintf("spec.tls[%d]", i), t.Route)
		for _, m := range t.Match {
			if !appliesAt(m.Gateways, gateway, res.Namespace) {
				continue
			}
			rule.Ports = portOf(m.Port)
			rule.SNI = nil
			for _, name := range m.SniHosts {
				rule.SNI = append(rule.SNI, strings.ToLower(name))
			}
			rules = append(rules, rule)
		}
	}
	return rules
}

// appliesAt reports whether a match block is for a gateway. One that names none is
// for all of the VirtualService's.
func appliesAt(gateways []string, gateway, namespace string) bool {
	return len(gateways) == 0 || slices.Contains(qualified(gateways, namespace), gateway)
}

func portOf(port uint32) []uint16 {
	if port == 0 {
		return nil
	}
	return []uint16{uint16(port)}
}

// compileRawRule makes a rule without what it matches.
func compileRawRule(res *Resource, path string, route []*networking.RouteDestination) weft.RawRule {
	rule := weft.RawRule{Name: strings.TrimPrefix(path, "spec."), Source: res.lines.at(res.Source, path)}
	for _, d := range route {
		rule.Destinations = append(rule.Destinations, compileDestination(d.Destination, d.Weight, nil, res.Namespace))
	}
	return rule
}

func fitsAllRaw(r *weft.RawRule) bool { return len(r.Ports)+len(r.SNI) == 0 }

// reachedRaw are the rules up to the first that fits everything.
func reachedRaw(rules []weft.RawRule) []weft.RawRule {
	for i := range rules {
		if fitsAllRaw(&rules[i]) {
			return rules[:i+1]
		}
	}
	return rules
}
