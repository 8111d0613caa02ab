package consul

import (
	"fmt"
	"slices"

	"github.com/weftmesh/weft"
)

// Intentions are a list of which the first that fits decides. The mesh's policies
// are sets: what a DENY fits is denied, and then, where there are ALLOWs, only what
// one of them fits is allowed. So each intention becomes what it decides itself, less
// what those before it decide.
//
// Of one service (precedence 9 and 8) what is denied becomes a DENY, what is allowed
// an ALLOW. Of all services ("*", precedence 6 and 5) everything becomes an ALLOW of
// the namespace, to which the ALLOW of one service adds, and from which its DENY
// takes: so the more precise one decides.

// conjunction is what a rule asks of a request: all of it.
type conjunction struct {
	paths, notPaths     []string
	methods, notMethods []string
	when                []object
}

// maxConjunctions bounds what "less those before" may grow to.
const maxConjunctions = 256

// asks is what a permission fits.
func (p *intentionPermission) asks() conjunction {
	var c conjunction
	if path := p.HTTP.path(); path != "" {
		c.paths = []string{path}
	}
	c.methods = p.HTTP.Methods
	for i := range p.HTTP.Header {
		c.when = append(c.when, p.HTTP.Header[i].condition(false))
	}
	return c
}

// lacks is what a permission does not fit: any of these.
func (p *intentionPermission) lacks() []conjunction {
	var out []conjunction
	if path := p.HTTP.path(); path != "" {
		out = append(out, conjunction{notPaths: []string{path}})
	}
	if len(p.HTTP.Methods) > 0 {
		out = append(out, conjunction{notMethods: p.HTTP.Methods})
	}
	for i := range p.HTTP.Header {
		out = append(out, conjunction{when: []object{p.HTTP.Header[i].condition(true)}})
	}
	return out
}

func (h *intentionHTTP) path() string {
	if h.PathPrefix != "" {
		return h.PathPrefix + "*"
	}
	return h.PathExact
}

func (h *intentionHeader) condition(negated bool) object {
	value := "*"
	switch {
	case h.Exact != "":
		value = h.Exact
	case h.Prefix != "":
		value = h.Prefix + "*"
	case h.Suffix != "":
		value = "*" + h.Suffix
	}
	field := "values"
	if h.Invert != negated {
		field = "notValues"
	}
	return object{"key": "request.headers[" + h.Name + "]", field: []string{value}}
}

// and is what both ask.
func (c conjunction) and(d conjunction) conjunction {
	return conjunction{
		paths: slices.Concat(c.paths, d.paths), notPaths: slices.Concat(c.notPaths, d.notPaths),
		methods: slices.Concat(c.methods, d.methods), notMethods: slices.Concat(c.notMethods, d.notMethods),
		when: slices.Concat(c.when, d.when),
	}
}

// less is what c asks, without what any of the permissions fits.
func (c conjunction) less(permissions []*intentionPermission) ([]conjunction, error) {
	out := []conjunction{c}
	for _, p := range permissions {
		var next []conjunction
		for _, lack := range p.lacks() {
			for _, c := range out {
				next = append(next, c.and(lack))
			}
		}
		if out = next; len(out) > maxConjunctions {
			return nil, fieldError("Permissions", "too many to tell apart; write fewer, or all of one Action")
		}
	}
	return out, nil
}

// rule is the conjunction as a rule of a policy, about requests from somebody.
func (c conjunction) rule(from object) object {
	r := object{}
	if len(from) > 0 {
		r["from"] = []object{{"source": from}}
	}
	operation := object{}
	for field, values := range map[string][]string{"paths": c.paths, "notPaths": c.notPaths, "methods": c.methods, "notMethods": c.notMethods} {
		if len(values) > 0 {
			operation[field] = values
		}
	}
	if len(operation) > 0 {
		r["to"] = []object{{"operation": operation}}
	}
	if len(c.when) > 0 {
		r["when"] = c.when
	}
	return r
}

// verdicts are the rules that an entry becomes.
type verdicts struct{ deny, allow []object }

// principal is a service's identity as policies write it, of whatever trust domain:
// there is one authority, and it signs for one.
func principal(n weft.ServiceName) string { return "*/ns/" + n.Namespace + "/sa/" + n.Name }

// from is what a source is: a service, or everybody whom the entry does not name.
func (e *serviceIntentions) from(s *sourceIntention) object {
	if s.Name != "*" {
		return object{"principals": []string{principal(s.source())}}
	}
	var names []string
	for i := range e.Sources {
		if e.Sources[i].Name != "*" {
			names = append(names, principal(e.Sources[i].source()))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return object{"notPrincipals": names}
}

// ofOne adds what a source of one service decides.
func (v *verdicts) ofOne(from object, s *sourceIntention, byDefault bool) error {
	switch s.Action {
	case "allow":
		v.allow = append(v.allow, conjunction{}.rule(from))
		return nil
	case "deny":
		v.deny = append(v.deny, conjunction{}.rule(from))
		return nil
	}
	var allowed []*intentionPermission // so far
	deny := func(c conjunction) error {
		parts, err := c.less(allowed)
		for _, c := range parts {
			v.deny = append(v.deny, c.rule(from))
		}
		return err
	}
	for i := range s.Permissions {
		p := &s.Permissions[i]
		if p.Action == "allow" {
			v.allow = append(v.allow, p.asks().rule(from))
			allowed = append(allowed, p)
		} else if err := deny(p.asks()); err != nil {
			return err
		}
	}
	if byDefault {
		v.allow = append(v.allow, conjunction{}.rule(from))
		return nil
	}
	return deny(conjunction{})
}

// ofAll adds what a source of all services allows.
func (v *verdicts) ofAll(from object, s *sourceIntention, byDefault bool) error {
	if s.Action != "" {
		if s.Action == "allow" {
			v.allow = append(v.allow, conjunction{}.rule(from))
		}
		return nil
	}
	var refused []*intentionPermission // so far
	allow := func(c conjunction) error {
		parts, err := c.less(refused)
		for _, c := range parts {
			v.allow = append(v.allow, c.rule(from))
		}
		return err
	}
	for i := range s.Permissions {
		p := &s.Permissions[i]
		if p.Action == "deny" {
			refused = append(refused, p)
		} else if err := allow(p.asks()); err != nil {
			return err
		}
	}
	if byDefault {
		return allow(conjunction{})
	}
	return nil
}

// addIntentions adds the policies of one entry.
func (out meshResources) addIntentions(s *entrySet, e *serviceIntentions, byDefault bool) error {
	var v verdicts
	add := v.ofOne
	if e.Name == "*" {
		add = v.ofAll
		if !slices.ContainsFunc(e.Sources, func(s sourceIntention) bool { return s.Name == "*" }) && byDefault {
			rest := sourceIntention{Name: "*", Action: "allow"}
			if err := v.ofAll(e.from(&rest), &rest, byDefault); err != nil {
				return err
			}
		}
	}
	for i := range e.Sources {
		if err := add(e.from(&e.Sources[i]), &e.Sources[i], byDefault); err != nil {
			return fmt.Errorf("service-intentions %q: Sources[%d].%w", e.Name, i, err)
		}
	}
	policy := func(suffix, action string, rules []object) error {
		spec := object{"action": action}
		if e.Name != "*" {
			spec["selector"] = object{"matchLabels": object{serviceLabel: e.Name}}
		}
		if len(rules) > 0 {
			spec["rules"] = rules
		}
		return out.add("security.istio.io/v1", "AuthorizationPolicy", e.service(), suffix, spec)
	}
	if len(v.deny) > 0 {
		if err := policy("-deny", "DENY", v.deny); err != nil {
			return err
		}
	}
	_, wild := entryFor[*serviceIntentions](s, serviceIntentionsKind, weft.ServiceName{Namespace: e.namespace(), Name: "*"})
	if len(v.allow) > 0 && (wild || !byDefault) || e.Name == "*" && byDefault {
		return policy("-allow", "ALLOW", v.allow)
	}
	return nil
}

// rootNamespace is where policies are of all namespaces.
const rootNamespace = "istio-system"

// denyByDefault adds the ALLOW of nothing: what no other allows is denied.
func (out meshResources) denyByDefault() error {
	return out.add("security.istio.io/v1", "AuthorizationPolicy", weft.NewServiceName(rootNamespace, "*"), "-default", object{"action": "ALLOW"})
}
