package resource

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
)

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
	return s.WarningsAbout(slices.Collect(maps.Keys(s.resources)), knownService)
}

// WarningsAbout are the warnings about some resources only.
func (s *Set) WarningsAbout(about []Ref, knownService func(weft.ServiceName) bool) weft.Problems {
	if knownService == nil {
		knownService = func(weft.ServiceName) bool { return true }
	}
	var out weft.Problems
	written := sync.OnceValue(s.writtenAtRules)
	for _, ref := range about {
		r, v := s.resources[ref], s.virtual[ref]
		switch {
		case r == nil:
			continue
		case r.Kind == gatewayKind && len(s.users[r.Namespace+"/"+r.Name]) == 0:
			out = append(out, r.warning("", "name it under gateways of a VirtualService", "no VirtualService uses the gateway"))
		case r.Kind == destinationRuleKind:
			out = append(out, s.ruleWarnings(r, knownService)...)
		case r.Kind == resiliencePolicyKind:
			out = append(out, s.policyWarnings(r, knownService, written)...)
		case r.Kind == breakerOverrideKind && !knownService(weft.ServiceName{Namespace: r.Namespace, Name: r.Name}):
			out = append(out, r.warning("metadata.name", "", "the service %s is not known", r.Name))
		}
		if v == nil {
			continue
		}
		out = append(out, s.destinationWarnings(v, knownService)...)
		out = append(out, s.gatewayWarnings(v)...)
		out = append(out, unreachedWarnings(v)...)
		out = append(out, unreachedRawWarnings(v)...)
		out = append(out, rewriteWarnings(v)...)
		out = append(out, s.competingWarnings(v)...)
		out = append(out, s.overruledWarnings(v)...)
	}
	return sorted(out)
}

// sorted puts problems in the order of files and lines, each once.
func sorted(out weft.Problems) weft.Problems {
	slices.SortFunc(out, func(a, b weft.Problem) int {
		return cmp.Or(strings.Compare(a.Source.File, b.Source.File), a.Source.Line-b.Source.Line, strings.Compare(a.Message, b.Message), strings.Compare(a.String(), b.String()))
	})
	return slices.CompactFunc(out, func(a, b weft.Problem) bool { return a == b })
}

// destinationWarnings are about services and subsets that do not exist (yet).
// Their requests get 503.
func (s *Set) destinationWarnings(v *virtualService, knownService func(weft.ServiceName) bool) weft.Problems {
	var out weft.Problems
	look := func(path string, d *networking.Destination, fate string) {
		n, ok := serviceOf(d.GetHost(), v.Namespace)
		if !ok || !knownService(n) {
			out = append(out, v.warning(path, "", "the service %s is not known: its %s", d.GetHost(), fate))
			return
		}
		subset := d.GetSubset()
		if subset == "" {
			return
		}
		if rules := s.destination(n, v.Namespace); rules == nil || !rules.defines(subset) {
			out = append(out, v.warning(path, "define it in a DestinationRule of "+n.Name,
				"the subset %s of %s is not defined: its %s", subset, n, fate))
		}
	}
	for i, h := range v.spec.Http {
		for k, d := range h.Route {
			path := fmt.Sprintf("spec.http[%d].route[%d]", i, k)
			look(path, d.Destination, "requests get 503")
			if s.announces(v.Namespace, d.Destination) {
				out = append(out, v.warning(path, "read x-forwarded-for there",
					"requests to %s bring no PROXY header: its proxyProtocol is for connections that are not HTTP", d.Destination.Host))
			}
		}
	}
	for i, t := range v.spec.Tcp {
		for k, d := range t.Route {
			look(fmt.Sprintf("spec.tcp[%d].route[%d]", i, k), d.Destination, "connections are closed")
		}
	}
	for i, t := range v.spec.Tls {
		for k, d := range t.Route {
			look(fmt.Sprintf("spec.tls[%d].route[%d]", i, k), d.Destination, "connections are closed")
		}
	}
	return out
}

// announces reports whether connections to the destination begin with a PROXY header.
func (s *Set) announces(namespace string, d *networking.Destination) bool {
	n, ok := serviceOf(d.GetHost(), namespace)
	if !ok {
		return false
	}
	rules := s.destination(n, namespace)
	if rules == nil {
		return false
	}
	for _, sub := range rules.subsets {
		if sub.Name == d.GetSubset() {
			return sub.Policy.ProxyProtocol > 0
		}
	}
	return rules.policy.ProxyProtocol > 0
}

// gatewayWarnings are about gateways that do not exist, or that have nothing to do
// with the VirtualService; and about what it loses there to others.
func (s *Set) gatewayWarnings(v *virtualService) weft.Problems {
	var out weft.Problems
	for i, name := range qualified(v.spec.Gateways, v.Namespace) {
		g := s.gateways[name]
		switch {
		case name == mesh:
			continue
		case g == nil:
			out = append(out, v.warning(fmt.Sprintf("spec.gateways[%d]", i), "", "the gateway %s does not exist", name))
			continue
		}
		places := g.places(v)
		switch {
		case len(places) > 0:
		case g.servesHost(v):
			out = append(out, v.warning(fmt.Sprintf("spec.gateways[%d]", i), "http rules need a server of HTTP or HTTPS, tls rules one whose tls.mode is PASSTHROUGH, tcp rules one of TCP and their port",
				"no server of the Gateway %s takes its rules", name))
		default:
			out = append(out, v.warning("spec.hosts", "add one to the Gateway's servers", "the Gateway %s serves none of its hosts", name))
		}
		for _, p := range places {
			for _, w := range g.tables[p.name].warnings {
				if w.Source.Name == v.Name && w.Source.Namespace == v.Namespace {
					out = append(out, w)
				}
			}
		}
	}
	return out
}

// servesHost reports whether a server of the gateway has a host of the
// VirtualService, whatever its protocol.
func (g *gateway) servesHost(v *virtualService) bool {
	return (!v.private || v.Namespace == g.Namespace) && slices.ContainsFunc(g.spec.Servers, func(s *networking.Server) bool {
		return len(g.narrowed(s, v.Namespace, v.spec.Hosts)) > 0
	})
}

// competingWarnings are about hosts that a VirtualService loses in the mesh to
// another one wherever they are seen.
func (s *Set) competingWarnings(v *virtualService) weft.Problems {
	var out weft.Problems
	for _, name := range v.meshHosts {
		for _, winner := range s.mesh[name] {
			if winner == v {
				break
			}
			if winner.private != v.private || v.private && winner.Namespace != v.Namespace {
				continue
			}
			path := fmt.Sprintf("spec.hosts[%d]", slices.IndexFunc(v.spec.Hosts, func(h string) bool { return fullName(h, v.Namespace) == name }))
			out = append(out, v.warning(path, "put their rules into one",
				"for sidecars it has no effect on %s: %s was first, and they are not merged", name, winner.Source))
			break
		}
	}
	return out
}

// unreachedWarnings are about rules that get no request at any gateway: an
// earlier rule takes all of theirs, or none of their blocks is for a gateway of
// the VirtualService.
func unreachedWarnings(v *virtualService) weft.Problems {
	reached, taken := map[string]bool{}, map[string]*weft.Rule{}
	for _, gateway := range contexts(v.spec, v.Namespace) {
		rules := compileRules(v.Resource, gateway)
		var earlier coverIndex
		for from, to := 0, 0; from < len(rules); from = to {
			field := rules[from].Source.Field
			for to < len(rules) && rules[to].Source.Field == field {
				to++ // a written rule may be spread over several
			}
			if by := earlier.takes(rules[from:to]); by == nil {
				reached[field] = true
			} else if taken[field] == nil {
				taken[field] = by
			}
			for i := from; i < to; i++ {
				earlier.add(&rules[i])
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

// unreachedRawWarnings are about tcp and tls rules that get no connection: an
// earlier one of the same VirtualService takes all of theirs.
func unreachedRawWarnings(v *virtualService) weft.Problems {
	reached, taken := map[string]bool{}, map[string]*weft.RawRule{}
	var fields []string
	for _, gateway := range contexts(v.spec, v.Namespace) {
		for _, rules := range [][]weft.RawRule{compileTCP(v.Resource, gateway), compileTLS(v.Resource, gateway)} {
			for i := range rules {
				field := rules[i].Source.Field
				if !slices.Contains(fields, field) {
					fields = append(fields, field)
				}
				by := slices.IndexFunc(rules[:i], func(r weft.RawRule) bool { return coversRaw(&r, &rules[i]) })
				if by < 0 {
					reached[field] = true
				} else if taken[field] == nil {
					taken[field] = &rules[by]
				}
			}
		}
	}
	var out weft.Problems
	for _, field := range fields {
		if by := taken[field]; by != nil && !reached[field] {
			out = append(out, v.warning(field, "move it up, or take it out",
				"the rule is never reached: its connections fit %s on line %d", by.Name, by.Source.Line))
		}
	}
	return out
}

// coversRaw reports whether all that fits b surely fits a.
func coversRaw(a, b *weft.RawRule) bool {
	if len(a.Ports) > 0 && (len(b.Ports) == 0 || !slices.Contains(a.Ports, b.Ports[0])) {
		return false
	}
	for _, name := range b.SNI {
		if !slices.ContainsFunc(a.SNI, func(pattern string) bool { return weft.FitsHost(pattern, name) }) {
			return false
		}
	}
	return true
}

// coverIndex finds, among the rules that were added, one that takes all requests of
// a block. Blocks are kept by what they ask of the path: looking through all of
// them for each of 5,000 rules would take a second.
type coverIndex struct {
	whole    map[weft.StringMatch][]covering // by their path's match, written the same
	prefixes map[string][]covering           // by their prefix
	longest  int                             // of the prefixes
	any      []covering                      // that ask nothing of the path
	odd      []covering                      // by regex or without case; at most maxOdd
}

type covering struct {
	rule  *weft.Rule
	block *weft.Match
}

// maxOdd bounds the blocks that have to be tried one by one. A warning less is better
// than an apply that takes long.
const maxOdd = 64

func (x *coverIndex) add(r *weft.Rule) {
	if x.whole == nil {
		x.whole, x.prefixes = map[weft.StringMatch][]covering{}, map[string][]covering{}
	}
	if len(r.Matches) == 0 {
		x.any = append(x.any, covering{r, &weft.Match{}})
	}
	for i := range r.Matches {
		c := covering{r, &r.Matches[i]}
		path := c.block.Path
		switch {
		case path == nil || anyPath(path):
			x.any = append(x.any, c)
			continue
		case path.Kind == weft.MatchPrefix && !path.IgnoreCase:
			x.prefixes[path.Value] = append(x.prefixes[path.Value], c)
			x.longest = max(x.longest, len(path.Value))
		case path.Kind != weft.MatchExact || path.IgnoreCase:
			if len(x.odd) < maxOdd {
				x.odd = append(x.odd, c)
			}
		}
		key := weft.StringMatch{Kind: path.Kind, Value: path.Value}
		x.whole[key] = append(x.whole[key], c)
	}
}

// takes is an added rule that takes requests of these, if the added ones take all
// of them.
func (x *coverIndex) takes(rules []weft.Rule) *weft.Rule {
	var by *weft.Rule
	for i := range rules {
		blocks := rules[i].Matches
		if len(blocks) == 0 {
			blocks = []weft.Match{{}}
		}
		for b := range blocks {
			if by = x.covering(&blocks[b]); by == nil {
				return nil
			}
		}
	}
	return by
}

func (x *coverIndex) covering(block *weft.Match) *weft.Rule {
	find := func(list []covering) *weft.Rule {
		for _, c := range list {
			if covers(c.block, block) {
				return c.rule
			}
		}
		return nil
	}
	if r := find(x.any); r != nil || block.Path == nil {
		return r
	}
	if r := find(x.whole[weft.StringMatch{Kind: block.Path.Kind, Value: block.Path.Value}]); r != nil {
		return r
	}
	if block.Path.Kind == weft.MatchExact || block.Path.Kind == weft.MatchPrefix {
		for n := range min(x.longest, len(block.Path.Value)) + 1 {
			if r := find(x.prefixes[block.Path.Value[:n]]); r != nil {
				return r
			}
		}
	}
	return find(x.odd)
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

// ruleWarnings are about a DestinationRule.
func (s *Set) ruleWarnings(r *Resource, knownService func(weft.ServiceName) bool) weft.Problems {
	var out weft.Problems
	host := r.Spec.(*networking.DestinationRule).Host
	key := ruleKey{r.Namespace, fullName(host, r.Namespace)}
	for _, index := range []map[ruleKey]*destinationRules{s.local, s.exported} {
		if d := index[key]; d != nil && d.rules[0] != r && slices.Contains(d.rules, r) {
			out = append(out, r.warning("spec.host", "put them into one",
				"%s is a rule for the same host: the first trafficPolicy holds, and the first subset of each name", d.rules[0].Source))
		}
	}
	if n, ok := weft.ParseHost(key.host, key.namespace); ok && !knownService(n) {
		out = append(out, r.warning("spec.host", "", "the service %s is not known", host))
	}
	return out
}
