package resource

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
)

// warn notes a trap that was found while compiling.
func (s *Set) warn(r *Resource, path, mend, format string, args ...any) {
	s.warnings = append(s.warnings, r.warning(path, mend, format, args...))
}

func (r *Resource) warning(path, mend, format string, args ...any) weft.Problem {
	source := r.Source
	if path != "" {
		source = r.lines.at(source, path)
	}
	return weft.Problem{Warning: true, Source: source, Message: fmt.Sprintf(format, args...), Mend: mend}
}

// Warnings reports what was accepted but does not work as written, or not yet,
// in the order of files and lines. knownService says whether a service exists;
// nil takes all to exist.
func (s *Set) Warnings(knownService func(weft.ServiceName) bool) weft.Problems {
	if knownService == nil {
		knownService = func(weft.ServiceName) bool { return true }
	}
	out := slices.Clone(s.warnings)
	for _, v := range s.virtualServices {
		out = append(out, s.destinationWarnings(v, knownService)...)
		out = append(out, s.gatewayWarnings(v)...)
		out = append(out, unreachedWarnings(v)...)
		out = append(out, rewriteWarnings(v)...)
	}
	out = append(out, s.competingWarnings()...)
	for _, name := range slices.Sorted(maps.Keys(s.gateways)) {
		if g := s.gateways[name]; !g.used {
			out = append(out, g.warning("", "name it under gateways of a VirtualService", "no VirtualService uses the gateway"))
		}
	}
	out = append(out, s.ruleWarnings(knownService)...)
	slices.SortStableFunc(out, func(a, b weft.Problem) int {
		return cmp.Or(strings.Compare(a.Source.File, b.Source.File), a.Source.Line-b.Source.Line, strings.Compare(a.Message, b.Message))
	})
	return slices.CompactFunc(out, func(a, b weft.Problem) bool { return a == b })
}

// destinationWarnings are about services and subsets that do not exist (yet).
// Their requests get 503.
func (s *Set) destinationWarnings(v *virtualService, knownService func(weft.ServiceName) bool) weft.Problems {
	var out weft.Problems
	for i, h := range v.spec.Http {
		for k, d := range h.Route {
			path := fmt.Sprintf("spec.http[%d].route[%d]", i, k)
			n, ok := serviceOf(d.Destination.GetHost(), v.Namespace)
			if !ok || !knownService(n) {
				out = append(out, v.warning(path, "", "the service %s is not known: its requests get 503", d.Destination.GetHost()))
				continue
			}
			subset := d.Destination.GetSubset()
			if subset == "" {
				continue
			}
			if rules := s.destination(n, v.Namespace); rules == nil || !rules.defines(subset) {
				out = append(out, v.warning(path, "define it in a DestinationRule of "+n.Name,
					"the subset %s of %s is not defined: its requests get 503", subset, n))
			}
		}
	}
	return out
}

func (s *Set) gatewayWarnings(v *virtualService) weft.Problems {
	var out weft.Problems
	for i, name := range qualified(v.spec.Gateways, v.Namespace) {
		if name != mesh && s.gateways[name] == nil {
			out = append(out, v.warning(fmt.Sprintf("spec.gateways[%d]", i), "", "the gateway %s does not exist", name))
		}
	}
	return out
}

// competingWarnings are about VirtualServices that lose a host in the mesh to
// another one wherever they are seen.
func (s *Set) competingWarnings() weft.Problems {
	var out weft.Problems
	for _, name := range slices.Sorted(maps.Keys(s.mesh)) {
		for i, v := range s.mesh[name] {
			for _, winner := range s.mesh[name][:i] {
				if winner.private != v.private || v.private && winner.Namespace != v.Namespace {
					continue
				}
				path := fmt.Sprintf("spec.hosts[%d]", slices.IndexFunc(v.spec.Hosts, func(h string) bool { return fullName(h, v.Namespace) == name }))
				out = append(out, v.warning(path, "put their rules into one",
					"for sidecars it has no effect on %s: %s was first, and they are not merged", name, winner.Source))
				break
			}
		}
	}
	return out
}

// unreachedWarnings are about rules that get no request at any gateway: an
// earlier rule takes all of theirs, or none of their blocks is for a gateway of
// the VirtualService.
func unreachedWarnings(v *virtualService) weft.Problems {
	reached, taken := map[string]bool{}, map[string]*weft.Rule{}
	contexts := qualified(v.spec.Gateways, v.Namespace)
	if len(contexts) == 0 {
		contexts = []string{mesh}
	}
	for _, gateway := range contexts {
		rules := compileRules(v.Resource, gateway)
		for from, to := 0, 0; from < len(rules); from = to {
			field := rules[from].Source.Field
			for to < len(rules) && rules[to].Source.Field == field {
				to++ // a written rule may be spread over several
			}
			if by := takenBy(rules[:from], rules[from:to]); by == nil {
				reached[field] = true
			} else if taken[field] == nil {
				taken[field] = by
			}
		}
	}
	var out weft.Problems
	for i := range v.spec.Http {
		field := fmt.Sprintf("spec.http[%d]", i)
		switch by := taken[field]; {
		case reached[field]:
		case by != nil:
			out = append(out, v.warning(field, "move it up, or take it out",
				"the rule is never reached: its requests fit %s on line %d", by.Name, by.Source.Line))
		default:
			out = append(out, v.warning(field, "name one that spec.gateways names",
				"the rule is never reached: its matches are for other gateways than the VirtualService"))
		}
	}
	return out
}

// takenBy is an earlier rule that takes requests of these, if the earlier ones
// take all of them.
func takenBy(earlier, rules []weft.Rule) *weft.Rule {
	var by *weft.Rule
	for i := range rules {
		blocks := rules[i].Matches
		if len(blocks) == 0 {
			blocks = []weft.Match{{}}
		}
		for b := range blocks {
			if by = coveredBy(earlier, &blocks[b]); by == nil {
				return nil
			}
		}
	}
	return by
}

func coveredBy(earlier []weft.Rule, block *weft.Match) *weft.Rule {
	for i := range earlier {
		r := &earlier[i]
		if len(r.Matches) == 0 {
			return r
		}
		for k := range r.Matches {
			if covers(&r.Matches[k], block) {
				return r
			}
		}
	}
	return nil
}

// covers reports whether all that fits b surely fits a.
func covers(a, b *weft.Match) bool {
	return coversPath(a.Path, b.Path) && implies(a.Method, b.Method) && implies(a.Scheme, b.Scheme) &&
		implies(a.Authority, b.Authority) && among(a.Headers, b.Headers) && among(a.Query, b.Query)
}

// implies reports whether what fits b surely fits a, as far as they are equal.
func implies(a, b *weft.StringMatch) bool {
	return a == nil || b != nil && a.Kind == b.Kind && a.Value == b.Value
}

func among(list, of []weft.NamedMatch) bool {
	for i := range list {
		if !slices.ContainsFunc(of, func(o weft.NamedMatch) bool {
			return o.Name == list[i].Name && o.Invert == list[i].Invert && implies(&list[i].Value, &o.Value)
		}) {
			return false
		}
	}
	return true
}

func coversPath(a, b *weft.StringMatch) bool {
	switch {
	case a == nil || anyPath(a):
		return true
	case b == nil || b.IgnoreCase && !a.IgnoreCase:
		return false
	case b.Kind == weft.MatchExact:
		return a.Match(b.Value)
	case b.Kind == weft.MatchPrefix:
		return a.Kind == weft.MatchPrefix && a.Match(b.Value)
	}
	return implies(a, b)
}

// rewriteWarnings are about a prefix without "/" at its end that is replaced by
// one with it: "/api" by "/" makes "//orders" of "/api/orders".
func rewriteWarnings(v *virtualService) weft.Problems {
	var out weft.Problems
	for i, h := range v.spec.Http {
		for k, m := range h.Match {
			prefix := m.Uri.GetPrefix()
			if prefix != "" && !strings.HasSuffix(prefix, "/") && strings.HasSuffix(h.Rewrite.GetUri(), "/") {
				out = append(out, v.warning(fmt.Sprintf("spec.http[%d].match[%d]", i, k), "write the prefix "+prefix+"/",
					"the prefix %s is rewritten to %s: %s/x becomes %s/x", prefix, h.Rewrite.Uri, prefix, h.Rewrite.Uri))
			}
		}
	}
	return out
}

// ruleWarnings are about DestinationRules.
func (s *Set) ruleWarnings(knownService func(weft.ServiceName) bool) weft.Problems {
	var out weft.Problems
	for _, index := range []map[ruleKey]*destinationRules{s.local, s.exported} {
		for key, d := range index {
			first := d.rules[0]
			for _, r := range d.rules[1:] {
				out = append(out, r.warning("spec.host", "put them into one",
					"%s is a rule for the same host: the first trafficPolicy holds, and the first subset of each name", first.Source))
			}
			if n, ok := weft.ParseHost(key.host, key.namespace); !ok || knownService(n) {
				continue
			}
			for _, r := range d.rules {
				out = append(out, r.warning("spec.host", "", "the service %s is not known", r.Spec.(*networking.DestinationRule).Host))
			}
		}
	}
	return out
}
