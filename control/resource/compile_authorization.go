package resource

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	security "istio.io/api/security/v1beta1"
)

func compileAuthorization(res *Resource) *weft.AuthorizationPolicy {
	spec := res.Spec.(*security.AuthorizationPolicy)
	out := &weft.AuthorizationPolicy{Source: res.Source, DryRun: res.Annotations[dryRunAnnotation] == "true"}
	switch spec.Action {
	case security.AuthorizationPolicy_DENY:
		out.Action = weft.Deny
	case security.AuthorizationPolicy_AUDIT:
		out.Action = weft.Audit
	}
	for _, rule := range spec.Rules {
		out.Rules = append(out.Rules, compileAuthorizationRule(rule, res.Namespace))
	}
	return out
}

// compileAuthorizationRule keeps the rule's index even if it can never fit:
// verdicts name rules by it.
func compileAuthorizationRule(rule *security.Rule, namespace string) weft.AuthorizationRule {
	var out weft.AuthorizationRule
	for _, from := range rule.From {
		out.From = append(out.From, compileSource(from.Source, namespace))
	}
	for _, to := range rule.To {
		out.To = append(out.To, compileOperation(to.Operation))
	}
	for _, c := range rule.When {
		if c.Key != "source.ip" {
			out.When = append(out.When, compileCondition(c))
			continue
		}
		if len(out.From) == 0 {
			out.From = []weft.SourceMatch{{}}
		}
		for i := range out.From {
			out.From[i].Addresses = both(out.From[i].Addresses, prefixes(c.Values, c.NotValues))
		}
	}
	return out
}

func compileSource(s *security.Source, namespace string) weft.SourceMatch {
	m := weft.SourceMatch{
		Principals: values(s.Principals, s.NotPrincipals, pattern),
		Namespaces: values(s.Namespaces, s.NotNamespaces, namespacePattern),
		Addresses:  prefixes(s.IpBlocks, s.NotIpBlocks),
	}
	accounts := values(s.ServiceAccounts, s.NotServiceAccounts, func(v string) weft.StringMatch {
		ns, name, found := strings.Cut(v, "/")
		if !found {
			ns, name = namespace, v
		}
		return weft.StringMatch{Kind: weft.MatchSuffix, Value: "/ns/" + ns + "/sa/" + name}
	})
	m.Principals.Any = append(m.Principals.Any, accounts.Any...)
	m.Principals.Not = append(m.Principals.Not, accounts.Not...)
	return m
}

func compileOperation(o *security.Operation) weft.OperationMatch {
	return weft.OperationMatch{
		Methods: values(o.Methods, o.NotMethods, pattern),
		Paths:   values(o.Paths, o.NotPaths, pathMatch),
		Hosts:   values(o.Hosts, o.NotHosts, hostMatch),
		Ports:   values(o.Ports, o.NotPorts, exactly),
	}
}

func compileCondition(c *security.Condition) weft.Condition {
	match := pattern
	switch c.Key {
	case "source.namespace":
		match = namespacePattern
	case "destination.port":
		match = exactly
	}
	return weft.Condition{Key: c.Key, Values: values(c.Values, c.NotValues, match)}
}

func values(any, not []string, match func(string) weft.StringMatch) weft.Values {
	var out weft.Values
	for _, v := range any {
		out.Any = append(out.Any, match(v))
	}
	for _, v := range not {
		out.Not = append(out.Not, match(v))
	}
	return out
}

func exactly(v string) weft.StringMatch { return weft.StringMatch{Kind: weft.MatchExact, Value: v} }

// pattern reads Istio's forms: exact, "prefix*", "*suffix", and "*" for anything
// that is not empty, which is less than MatchPresent.
func pattern(v string) weft.StringMatch {
	if v == "*" {
		return regexMatch("(?s).+")
	}
	if suffix, ok := strings.CutPrefix(v, "*"); ok {
		return weft.StringMatch{Kind: weft.MatchSuffix, Value: suffix}
	}
	if prefix, ok := strings.CutSuffix(v, "*"); ok {
		return weft.StringMatch{Kind: weft.MatchPrefix, Value: prefix}
	}
	return exactly(v)
}

// namespacePattern allows "*" anywhere, as Istio does there only.
func namespacePattern(v string) weft.StringMatch {
	if v == "*" || !strings.Contains(v, "*") {
		return pattern(v)
	}
	return regexMatch(strings.ReplaceAll(regexp.QuoteMeta(v), `\*`, ".*"))
}

func hostMatch(v string) weft.StringMatch {
	return pattern(strings.ToLower(strings.TrimSuffix(v, ":*")))
}

// pathMatch reads a path or a path template: "{*}" is one segment, "{**}" any
// number of them.
func pathMatch(v string) weft.StringMatch {
	if !strings.ContainsAny(v, "{}") {
		return pattern(v)
	}
	expr := regexp.QuoteMeta(v)
	expr = strings.ReplaceAll(expr, regexp.QuoteMeta("{**}"), ".*")
	expr = strings.ReplaceAll(expr, regexp.QuoteMeta("{*}"), "[^/]+")
	return regexMatch("(?s)" + expr)
}

func prefixes(any, not []string) weft.Prefixes {
	read := func(list []string) []netip.Prefix {
		var out []netip.Prefix
		for _, v := range list {
			if p, err := prefixOf(v); err == nil {
				out = append(out, p)
			}
		}
		return out
	}
	return weft.Prefixes{Any: read(any), Not: read(not)}
}

// everyAddress as exceptions is how "no address fits" is written.
var everyAddress = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// both is the addresses that fit a and b. Two blocks are apart, or one is inside
// the other: then that one is what they share.
func both(a, b weft.Prefixes) weft.Prefixes {
	out := weft.Prefixes{Not: slices.Concat(a.Not, b.Not)}
	if len(a.Any) == 0 || len(b.Any) == 0 {
		out.Any = slices.Concat(a.Any, b.Any)
		return out
	}
	for _, p := range a.Any {
		for _, q := range b.Any {
			switch {
			case !p.Overlaps(q):
			case p.Bits() >= q.Bits():
				out.Any = append(out.Any, p)
			default:
				out.Any = append(out.Any, q)
			}
		}
	}
	if len(out.Any) == 0 {
		out.Any, out.Not = everyAddress, everyAddress
	}
	return out
}
