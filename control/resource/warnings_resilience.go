package resource

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
)

// ruleOf is an http rule of a VirtualService.
type ruleOf struct {
	v *virtualService
	i int
}

func (o ruleOf) field() string { return fmt.Sprintf("spec.http[%d]", o.i) }

// name is weft.Rule's.
func (o ruleOf) name() string {
	return cmp.Or(o.v.spec.Http[o.i].Name, strings.TrimPrefix(o.field(), "spec."))
}

func (o ruleOf) String() string {
	return o.v.lines.at(o.v.Source, o.field()).String() + " " + o.field()
}

// said are the fields of the rule that speak of what a policy speaks of, too, by the
// policy's name for it.
func (o ruleOf) said() map[string]string {
	h, out := o.v.spec.Http[o.i], map[string]string{}
	if h.Retries != nil {
		out["retry"] = "retries"
	}
	if h.Retries.GetPerTryTimeout().AsDuration() > 0 {
		out["attemptTimeout"] = "retries.perTryTimeout"
	}
	if h.Timeout.AsDuration() > 0 {
		out["timeout"] = "timeout"
	}
	return out
}

// services are those that the rule sends requests to.
func (o ruleOf) services() []weft.ServiceName {
	var out []weft.ServiceName
	for _, d := range o.v.spec.Http[o.i].Route {
		if n, ok := serviceOf(d.Destination.GetHost(), o.v.Namespace); ok && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// writtenAtRules are the rules with retries or a timeout, and no policy of their own,
// by the services that they send requests to.
func (s *Set) writtenAtRules() map[weft.ServiceName][]ruleOf {
	out := map[weft.ServiceName][]ruleOf{}
	for _, v := range s.virtual {
		for i := range v.spec.Http {
			rule := ruleOf{v, i}
			if len(rule.said()) == 0 || s.ofRule(v.Resource, rule.name()) != nil {
				continue
			}
			for _, n := range rule.services() {
				out[n] = append(out[n], rule)
			}
		}
	}
	return out
}

// speaksOf are the parts of a policy that a rule may speak of, too.
func (p *ResiliencePolicy) speaksOf() map[string]bool {
	return map[string]bool{"retry": p.Spec.Retry != nil, "timeout": p.Spec.Timeout > 0, "attemptTimeout": p.Spec.AttemptTimeout > 0}
}

// lacks are the parts of other that p does not have.
func (p *ResiliencePolicy) lacks(other *ResiliencePolicy) []string {
	var out []string
	mine, theirs := reflect.ValueOf(p.Spec), reflect.ValueOf(other.Spec)
	for i := range mine.NumField() {
		if mine.Field(i).IsZero() && !theirs.Field(i).IsZero() {
			name, _, _ := strings.Cut(mine.Type().Field(i).Tag.Get("json"), ",")
			out = append(out, name)
		}
	}
	return out
}

// policyWarnings are about a ResiliencePolicy.
func (s *Set) policyWarnings(r *Resource, knownService func(weft.ServiceName) bool, written func() map[weft.ServiceName][]ruleOf) weft.Problems {
	p := r.Spec.(*ResiliencePolicy)
	var out weft.Problems
	if n, ok := fallback(r, p); ok && !knownService(n) {
		out = append(out, r.warning("spec.fallback.service", "", "the service %s is not known: as long as there is none, nobody stands in", p.Spec.Fallback.Service))
	}
	for i, t := range p.Targets {
		at := targetPath(p, i)
		if winner := s.holding(t.in(r.Namespace)); winner != r {
			out = append(out, r.warning(at, "put them into one", "it has no effect on %s: %s was first, and they are not merged", t, winner.Source))
			continue
		}
		if t.Kind == serviceTarget {
			n := weft.ServiceName{Namespace: r.Namespace, Name: t.Name}
			if !knownService(n) {
				out = append(out, r.warning(at, "", "the service %s is not known", t.Name))
			}
			out = append(out, overruledBy(r, p, written()[n])...)
			continue
		}
		out = append(out, s.routePolicyWarnings(r, t, at)...)
	}
	return out
}

func (t TargetRef) String() string {
	if t.SectionName != "" {
		return fmt.Sprintf("the rule %s of %s %s", t.SectionName, t.Kind, t.Name)
	}
	return t.Kind + " " + t.Name
}

// overruledBy is about rules whose own words win over a service's policy. Of many it
// names one.
func overruledBy(r *Resource, p *ResiliencePolicy, rules []ruleOf) weft.Problems {
	by := map[string][]string{}
	for _, rule := range rules {
		for part, field := range rule.said() {
			if p.speaksOf()[part] {
				by[part] = append(by[part], field+" of "+rule.String())
			}
		}
	}
	var out weft.Problems
	for part, said := range by {
		first := slices.Min(said)
		if len(said) > 1 {
			first += fmt.Sprintf(", and of %d more", len(said)-1)
		}
		out = append(out, r.warning("spec."+part, "take that out, or attach the policy to the VirtualService", "it gives way to %s", first))
	}
	return out
}

// routePolicyWarnings are about a policy that is for rules of a VirtualService.
func (s *Set) routePolicyWarnings(r *Resource, t TargetRef, at string) weft.Problems {
	v := s.virtual[Ref{virtualServiceKind, r.Namespace, t.Name}]
	if v == nil {
		return weft.Problems{r.warning(at, "", "the VirtualService %s does not exist", t.Name)}
	}
	p := r.Spec.(*ResiliencePolicy)
	instead, _ := fallback(r, p)
	var out weft.Problems
	found, holds := false, false
	for i := range v.spec.Http {
		rule := ruleOf{v, i}
		if t.SectionName != "" && t.SectionName != rule.name() {
			continue
		}
		found = true
		if s.ofRule(v.Resource, rule.name()) != r {
			continue
		}
		holds = true
		for _, n := range rule.services() {
			if n == instead {
				out = append(out, r.warning("spec.fallback.service", "name another service", "%s would stand in for itself at %s", p.Spec.Fallback.Service, rule))
			}
			if of := s.holding(serviceNamed(n)); of != nil {
				if lost := p.lacks(of.Spec.(*ResiliencePolicy)); len(lost) > 0 {
					out = append(out, r.warning(at, "write them here, too", "at %s it takes the place of %s, and has no %s", rule, of.Source, anyOf(lost)))
				}
			}
		}
		for part, field := range rule.said() {
			if p.speaksOf()[part] {
				out = append(out, r.warning("spec."+part, "keep one", "it goes before %s of %s", field, rule))
			}
		}
	}
	switch {
	case !found:
		out = append(out, r.warning(at, "give one of its http rules that name", "the VirtualService %s has no http rule %s", t.Name, t.SectionName))
	case !holds:
		out = append(out, r.warning(at, "", "it has no effect on %s: each of its rules has a policy of its own", t))
	}
	return out
}

// overruledWarnings are about retries and timeouts of rules where a policy has some,
// too: who wins.
func (s *Set) overruledWarnings(v *virtualService) weft.Problems {
	if len(s.resilience) == 0 {
		return nil
	}
	var out weft.Problems
	for i := range v.spec.Http {
		rule := ruleOf{v, i}
		own := s.ofRule(v.Resource, rule.name())
		for part, field := range rule.said() {
			path := rule.field() + "." + field
			if own != nil {
				if own.Spec.(*ResiliencePolicy).speaksOf()[part] {
					out = append(out, v.warning(path, "keep one", "it gives way to %s of %s, which is attached to the rule", part, own.Source))
				}
				continue
			}
			for _, n := range rule.services() {
				if r := s.holding(serviceNamed(n)); r != nil && r.Spec.(*ResiliencePolicy).speaksOf()[part] {
					out = append(out, v.warning(path, "keep one", "it goes before %s of %s", part, r.Source))
				}
			}
		}
	}
	return out
}
