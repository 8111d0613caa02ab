package weft

import (
	"fmt"
	"net/netip"
	"strings"
)

// Action of an AuthorizationPolicy.
type Action uint8

const (
	Allow Action = iota
	Deny
	Audit // never changes the outcome
)

var actionNames = [...]string{"ALLOW", "DENY", "AUDIT"}

func (a Action) String() string { return actionNames[a] }

// AuthorizationPolicy says who may do what on the workloads that it was selected
// for. Without rules it never matches: an ALLOW policy without rules therefore
// denies everything.
type AuthorizationPolicy struct {
	Source SourceRef
	Action Action
	DryRun bool // decided and reported, not enforced
	Rules  []AuthorizationRule
}

// AuthorizationRule fits when one of From, one of To and all of When fit. An
// empty list asks nothing.
type AuthorizationRule struct {
	From []SourceMatch
	To   []OperationMatch
	When []Condition
}

// Values is a list of alternatives with exceptions: one of Any must fit (when
// there is one), and none of Not.
type Values struct {
	Any []StringMatch
	Not []StringMatch
}

// Empty reports whether nothing is asked.
func (v *Values) Empty() bool { return len(v.Any)+len(v.Not) == 0 }

// A negative match on something that is missing is true; a positive one is
// false (facts/mesh.md §2.3 item 8).
func (v *Values) match(s string, present bool) bool {
	for i := range v.Not {
		if present && v.Not[i].Match(s) {
			return false
		}
	}
	if len(v.Any) == 0 {
		return true
	}
	for i := range v.Any {
		if present && v.Any[i].Match(s) {
			return true
		}
	}
	return false
}

// SourceMatch is about who asks. Fields are ANDed.
type SourceMatch struct {
	Principals Values // "cluster.local/ns/default/sa/order-service"
	Namespaces Values
	Addresses  Prefixes // of the peer's socket
}

// Prefixes is a list of IP blocks with exceptions.
type Prefixes struct {
	Any []netip.Prefix
	Not []netip.Prefix
}

func (p *Prefixes) match(a netip.Addr) bool {
	in := func(list []netip.Prefix) bool {
		for _, block := range list {
			if block.Contains(a) {
				return true
			}
		}
		return false
	}
	return !in(p.Not) && (len(p.Any) == 0 || in(p.Any))
}

// OperationMatch is about what is asked. Fields are ANDed.
type OperationMatch struct {
	Methods Values
	Paths   Values
	Hosts   Values // compared in lower case
	Ports   Values
}

// Condition is one entry of a policy's "when".
type Condition struct {
	Key    string // "request.headers[x-team]", "source.principal", "source.namespace", "source.ip", "destination.port"
	Values Values
}

// AuthorizationRequest is a Request with what only authorization looks at.
type AuthorizationRequest struct {
	*Request
	PeerAddr netip.Addr
	Port     string // the workload's port
	// Raw says that it is a connection whose bytes nobody looks at, and of the
	// Request only Source is known. As in Istio, an ALLOW rule that asks for a
	// method, a path, a host or a header never fits then, and of a DENY rule the
	// rest decides: what cannot be seen is not let in.
	Raw bool
}

// Authorization is all policies of one workload, ready to decide.
type Authorization struct {
	Policies []*AuthorizationPolicy
}

// Verdict of an authorization. Policy is the one that decided, and Rule its
// index there; both are empty when no policy applies. For a request that is
// denied because no ALLOW policy fits, Policy is the first ALLOW policy.
type Verdict struct {
	Allowed bool
	Policy  *AuthorizationPolicy
	Rule    int // -1: no rule of Policy fits
}

// Reason names what decided: "AuthorizationPolicy default/inventory-policy
// (inventory.yaml:1) rule 0 denies", for logs and explanations.
func (v Verdict) Reason() string {
	switch {
	case v.Policy == nil:
		return "no policy applies"
	case v.Rule < 0:
		return fmt.Sprintf("no rule of %s allows it", v.Policy.Source)
	case v.Allowed:
		return fmt.Sprintf("%s rule %d allows it", v.Policy.Source, v.Rule)
	}
	return fmt.Sprintf("%s rule %d denies it", v.Policy.Source, v.Rule)
}

// Decide applies the policies in Istio's order: any DENY that fits denies; with
// no ALLOW policy everything else passes; otherwise one ALLOW must fit.
func (a *Authorization) Decide(r *AuthorizationRequest) Verdict {
	if a == nil {
		return Verdict{Allowed: true, Rule: -1}
	}
	var firstAllow *AuthorizationPolicy
	for _, p := range a.Policies {
		if p.DryRun || p.Action != Deny {
			continue
		}
		if rule := p.fits(r); rule >= 0 {
			return Verdict{Policy: p, Rule: rule}
		}
	}
	for _, p := range a.Policies {
		if p.DryRun || p.Action != Allow {
			continue
		}
		if rule := p.fits(r); rule >= 0 {
			return Verdict{Allowed: true, Policy: p, Rule: rule}
		}
		if firstAllow == nil {
			firstAllow = p
		}
	}
	return Verdict{Allowed: firstAllow == nil, Policy: firstAllow, Rule: -1}
}

// fits returns the index of the first rule that fits, or -1.
func (p *AuthorizationPolicy) fits(r *AuthorizationRequest) int {
	for i := range p.Rules {
		if r.Raw && p.Action != Deny && p.Rules[i].asksOfRequests() {
			continue
		}
		if p.Rules[i].fits(r) {
			return i
		}
	}
	return -1
}

// asksOfRequests reports whether a rule asks for what only requests have.
func (rule *AuthorizationRule) asksOfRequests() bool {
	for i := range rule.To {
		if o := &rule.To[i]; !o.Methods.Empty() || !o.Paths.Empty() || !o.Hosts.Empty() {
			return true
		}
	}
	for i := range rule.When {
		if strings.HasPrefix(rule.When[i].Key, headerKey) {
			return true
		}
	}
	return false
}

func (rule *AuthorizationRule) fits(r *AuthorizationRequest) bool {
	if len(rule.From) > 0 && !anyFits(rule.From, func(m *SourceMatch) bool { return m.fits(r) }) {
		return false
	}
	if len(rule.To) > 0 && !anyFits(rule.To, func(m *OperationMatch) bool { return m.fits(r) }) {
		return false
	}
	for i := range rule.When {
		if r.Raw && strings.HasPrefix(rule.When[i].Key, headerKey) {
			continue
		}
		v, ok := r.attribute(rule.When[i].Key)
		if !rule.When[i].Values.match(v, ok) {
			return false
		}
	}
	return true
}

func anyFits[T any](list []T, fits func(*T) bool) bool {
	for i := range list {
		if fits(&list[i]) {
			return true
		}
	}
	return false
}

func (m *SourceMatch) fits(r *AuthorizationRequest) bool {
	known := r.Source != ""
	return m.Principals.match(r.Source.Principal(), known) &&
		m.Namespaces.match(r.Source.Namespace(), known) &&
		m.Addresses.match(r.PeerAddr)
}

func (m *OperationMatch) fits(r *AuthorizationRequest) bool {
	return m.Ports.match(r.Port, true) && (r.Raw ||
		m.Methods.match(r.Method, true) &&
			m.Paths.match(r.Path, true) &&
			m.Hosts.match(r.Host, true))
}

const headerKey = "request.headers["

// attribute finds the value of a condition's key.
func (r *AuthorizationRequest) attribute(key string) (value string, ok bool) {
	if name, found := strings.CutPrefix(key, headerKey); found {
		return r.Header(strings.TrimSuffix(name, "]"))
	}
	switch key {
	case "source.principal":
		return r.Source.Principal(), r.Source != ""
	case "source.namespace":
		return r.Source.Namespace(), r.Source != ""
	case "source.ip":
		return r.PeerAddr.String(), r.PeerAddr.IsValid()
	case "destination.port":
		return r.Port, r.Port != ""
	}
	return "", false
}
