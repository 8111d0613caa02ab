package resource

import (
	"fmt"
	"slices"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
)

// ruleKey finds the DestinationRules of one host (full name, "*.x" or "*") in
// one namespace.
type ruleKey struct{ namespace, host string }

// destinationRules is what all DestinationRules under one key say together.
type destinationRules struct {
	rules   []*Resource // in order of precedence
	policy  weft.TrafficPolicy
	subsets []weft.Subset
}

// replaceDestinationRules takes the DestinationRules of a change.
func (s *Set) replaceDestinationRules(gone, came []*Resource) {
	left := make(map[*Resource]bool)
	local, exported := map[ruleKey][]*Resource{}, map[ruleKey][]*Resource{} // what enters under the keys that are concerned
	note := func(r *Resource, entered ...*Resource) {
		spec := r.Spec.(*networking.DestinationRule)
		key := ruleKey{r.Namespace, fullName(spec.Host, r.Namespace)}
		own := private(spec.ExportTo)
		// Clients in the root namespace see its public rules where others see them: last.
		if own || r.Namespace != rootNamespace {
			local[key] = append(local[key], entered...)
		}
		if !own {
			exported[key] = append(exported[key], entered...)
		}
	}
	for _, r := range gone {
		if r.Kind == destinationRuleKind {
			left[r] = true
			note(r)
		}
	}
	for _, r := range came {
		if r.Kind == destinationRuleKind {
			note(r, r)
		}
	}
	s.local, s.exported = recompiled(s.local, left, local), recompiled(s.exported, left, exported)
}

func recompiled(index map[ruleKey]*destinationRules, left map[*Resource]bool, entered map[ruleKey][]*Resource) map[ruleKey]*destinationRules {
	if len(entered) == 0 && index != nil {
		return index
	}
	out := cloned(index)
	for key, in := range entered {
		var before []*Resource
		if d := index[key]; d != nil {
			before = d.rules
		}
		if rules := merged(before, func(r *Resource) bool { return left[r] }, in, precedence); len(rules) > 0 {
			out[key] = compileDestinationRules(rules)
		} else {
			delete(out, key)
		}
	}
	return out
}

// compileDestinationRules puts rules together: the first policy holds, and the
// first subset of each name.
func compileDestinationRules(rules []*Resource) *destinationRules {
	var policy *networking.TrafficPolicy
	var instead weft.LoadBalancer
	source := rules[0].Source
	for _, r := range rules {
		p := r.Spec.(*networking.DestinationRule).TrafficPolicy
		if p == nil && named(r) == "" {
			continue
		}
		policy, instead, source = p, named(r), r.lines.at(r.Source, "spec.trafficPolicy")
		break
	}
	d := &destinationRules{rules: rules, policy: compilePolicy(policy, instead, source)}
	for _, r := range rules {
		for i, sub := range r.Spec.(*networking.DestinationRule).Subsets {
			if d.defines(sub.Name) {
				continue
			}
			from := source
			if sub.TrafficPolicy != nil {
				from = r.lines.at(r.Source, fmt.Sprintf("spec.subsets[%d].trafficPolicy", i))
			}
			compiled := compilePolicy(overlaid(policy, sub.TrafficPolicy), ofSubset(instead, sub.TrafficPolicy.GetLoadBalancer()), from)
			d.subsets = append(d.subsets, weft.Subset{Name: sub.Name, Labels: sub.Labels, Policy: compiled})
		}
	}
	return d
}

func (d *destinationRules) defines(subset string) bool {
	return slices.ContainsFunc(d.subsets, func(s weft.Subset) bool { return s.Name == subset })
}

// Service returns the policy and the subsets of a service for clients in
// clientNamespace. Without a DestinationRule the policy is the default one.
func (s *Set) Service(n weft.ServiceName, clientNamespace string) (weft.TrafficPolicy, []weft.Subset) {
	d := s.destination(n, clientNamespace)
	if d == nil {
		return weft.TrafficPolicy{LoadBalancer: weft.LeastRequest}, nil
	}
	return d.policy, slices.Clip(d.subsets)
}

// destination looks where Istio does, and takes the first namespace with a rule
// whose host fits: the client's, the service's, the root. Inside a namespace
// the most specific host wins. Nothing is inherited from the others.
func (s *Set) destination(n weft.ServiceName, clientNamespace string) *destinationRules {
	if d := mostSpecific(s.local, clientNamespace, n.Host()); d != nil {
		return d
	}
	if d := mostSpecific(s.exported, n.Namespace, n.Host()); d != nil {
		return d
	}
	return mostSpecific(s.exported, rootNamespace, n.Host())
}

func mostSpecific(index map[ruleKey]*destinationRules, namespace, host string) *destinationRules {
	if d := index[ruleKey{namespace, host}]; d != nil {
		return d
	}
	for pattern := range wildcards(host) {
		if d := index[ruleKey{namespace, pattern}]; d != nil {
			return d
		}
	}
	return nil
}
