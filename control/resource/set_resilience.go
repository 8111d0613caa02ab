package resource

import (
	"slices"

	"github.com/weftmesh/weft"
)

// target is what a ResiliencePolicy may be for.
type target struct{ kind, namespace, name, section string }

func (t TargetRef) in(namespace string) target {
	return target{t.Kind, namespace, t.Name, t.SectionName}
}

func serviceNamed(n weft.ServiceName) target {
	return target{kind: serviceTarget, namespace: n.Namespace, name: n.Name}
}

// replaceResilience takes the ResiliencePolicies and BreakerOverrides of a change,
// and returns the VirtualServices whose rules get other policies by it.
func (s *Set) replaceResilience(gone, came []*Resource) []Ref {
	left := make(map[*Resource]bool)
	entered := make(map[target][]*Resource)
	note := func(r *Resource, in ...*Resource) {
		switch spec := r.Spec.(type) {
		case *ResiliencePolicy:
			for _, t := range spec.Targets {
				entered[t.in(r.Namespace)] = append(entered[t.in(r.Namespace)], in...)
			}
		case *BreakerOverride:
			s.breakers = cloned(s.breakers)
			delete(s.breakers, weft.ServiceName{Namespace: r.Namespace, Name: r.Name})
			for _, r := range in {
				s.breakers[weft.ServiceName{Namespace: r.Namespace, Name: r.Name}] = r
			}
		}
	}
	for _, r := range gone {
		left[r] = true
		note(r)
	}
	for _, r := range came {
		note(r, r)
	}
	if len(entered) == 0 {
		return nil
	}
	var concerned []Ref
	s.resilience = cloned(s.resilience)
	for t, in := range entered {
		list := merged(s.resilience[t], func(r *Resource) bool { return left[r] }, in, precedence)
		if s.resilience[t] = list; len(list) == 0 {
			delete(s.resilience, t)
		}
		if ref := (Ref{t.kind, t.namespace, t.name}); t.kind == virtualServiceKind && !slices.Contains(concerned, ref) {
			concerned = append(concerned, ref)
		}
	}
	return concerned
}

// touched are resources that did not change, but are compiled anew: those of refs
// that are neither gone nor came.
func (s *Set) touched(refs []Ref, came []*Resource) []*Resource {
	var out []*Resource
	for _, ref := range refs {
		if r := s.resources[ref]; r != nil && !slices.Contains(came, r) {
			out = append(out, r)
		}
	}
	return out
}

// holding is the policy that holds for a target: the oldest. nil is none.
func (s *Set) holding(t target) *Resource {
	if list := s.resilience[t]; len(list) > 0 {
		return list[0]
	}
	return nil
}

// ofRule is the policy that is attached to a rule: to it by name, or else to the
// whole VirtualService.
func (s *Set) ofRule(v *Resource, rule string) *Resource {
	t := target{virtualServiceKind, v.Namespace, v.Name, rule}
	if r := s.holding(t); r != nil {
		return r
	}
	t.section = ""
	return s.holding(t)
}

// attached are the rules of a VirtualService with the policies that are attached to
// them. What it is given is shared: it is copied where it changes.
func (s *Set) attached(v *Resource, lists map[string]*ruleLists) map[string]*ruleLists {
	if len(s.resilience) == 0 {
		return lists
	}
	out, copied := lists, false
	for gateway, rules := range lists {
		var with []weft.Rule
		for i := range rules.http {
			policy := s.ofRule(v, rules.http[i].Name)
			if policy == nil {
				continue
			}
			if with == nil {
				with = slices.Clone(rules.http)
			}
			with[i].Resilience = policy.resilience
		}
		if with == nil {
			continue
		}
		if !copied {
			out, copied = cloned(lists), true
		}
		next := *rules
		next.http = with
		out[gateway] = &next
	}
	return out
}

// Resilience returns the policy that is attached to a service, or nil.
func (s *Set) Resilience(n weft.ServiceName) *weft.Resilience {
	if r := s.holding(serviceNamed(n)); r != nil {
		return r.resilience
	}
	return nil
}

// Breaker returns the state that a service's circuit is held in, or "".
func (s *Set) Breaker(n weft.ServiceName) string {
	if r := s.breakers[n]; r != nil {
		return string(r.Spec.(*BreakerOverride).State)
	}
	return ""
}
