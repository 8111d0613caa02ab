package resource

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	security "istio.io/api/security/v1beta1"
)

// rootNamespace is the namespace whose policies hold in all namespaces.
const rootNamespace = "istio-system"

func checkPeerAuthentication(r *report, res *Resource) {
	spec := res.Spec.(*security.PeerAuthentication)
	r.selector(spec.Selector.GetMatchLabels())
	selects := len(spec.Selector.GetMatchLabels()) > 0
	if len(spec.PortLevelMtls) > 0 && !selects {
		r.errorf("spec.portLevelMtls", "write a selector", "portLevelMtls holds only for selected workloads")
	}
	if selects && res.Namespace == rootNamespace {
		r.warnf("spec.selector", "move it to the workload's namespace", "a policy with a selector has no effect in %s", rootNamespace)
	}
}

func checkAuthorizationPolicy(r *report, res *Resource) {
	spec := res.Spec.(*security.AuthorizationPolicy)
	r.selector(spec.Selector.GetMatchLabels())
	if spec.Action == security.AuthorizationPolicy_DENY && len(spec.Rules) == 0 {
		r.errorf("spec.rules", "write \"rules: [{}]\" to deny everything", "DENY without rules never denies")
	}
	if v, ok := res.Annotations[dryRunAnnotation]; ok && v != "true" && v != "false" {
		r.errorf("metadata.annotations["+dryRunAnnotation+"]", "write \"true\" or \"false\"", "%q is neither", v)
	}
	for i, rule := range spec.Rules {
		path := fmt.Sprintf("spec.rules[%d]", i)
		for k, from := range rule.From {
			r.who(fmt.Sprintf("%s.from[%d].source", path, k), from.Source)
		}
		for k, to := range rule.To {
			r.operation(fmt.Sprintf("%s.to[%d].operation", path, k), to.Operation)
		}
		for k, c := range rule.When {
			r.condition(fmt.Sprintf("%s.when[%d]", path, k), c)
		}
	}
}

// dryRunAnnotation makes a policy decide without being enforced.
const dryRunAnnotation = "istio.io/dry-run"

func (r *report) who(path string, s *security.Source) {
	if s == nil || len(slices.Concat(s.Principals, s.NotPrincipals, s.Namespaces, s.NotNamespaces,
		s.ServiceAccounts, s.NotServiceAccounts, s.IpBlocks, s.NotIpBlocks)) == 0 {
		r.errorf(path, "leave \"from\" out to ask nothing of the source", "the source says nothing, and would fit everybody")
		return
	}
	r.each(path+".principals", s.Principals, r.principal)
	r.each(path+".notPrincipals", s.NotPrincipals, r.principal)
	r.each(path+".namespaces", s.Namespaces, r.present)
	r.each(path+".notNamespaces", s.NotNamespaces, r.present)
	r.each(path+".serviceAccounts", s.ServiceAccounts, r.serviceAccount)
	r.each(path+".notServiceAccounts", s.NotServiceAccounts, r.serviceAccount)
	r.each(path+".ipBlocks", s.IpBlocks, r.block)
	r.each(path+".notIpBlocks", s.NotIpBlocks, r.block)
	if len(s.ServiceAccounts) > 0 && len(s.Principals)+len(s.Namespaces) > 0 {
		r.errorf(path+".serviceAccounts", "keep one", "serviceAccounts cannot stand beside principals or namespaces")
	}
}

func (r *report) operation(path string, o *security.Operation) {
	if o == nil || len(slices.Concat(o.Methods, o.NotMethods, o.Paths, o.NotPaths, o.Hosts, o.NotHosts, o.Ports, o.NotPorts)) == 0 {
		r.errorf(path, "leave \"to\" out to ask nothing of the request", "the operation says nothing, and would fit everything")
		return
	}
	r.each(path+".methods", o.Methods, r.method)
	r.each(path+".notMethods", o.NotMethods, r.method)
	r.each(path+".paths", o.Paths, r.pathPattern)
	r.each(path+".notPaths", o.NotPaths, r.pathPattern)
	r.each(path+".ports", o.Ports, r.port)
	r.each(path+".notPorts", o.NotPorts, r.port)
	r.hostPatterns(path+".hosts", o.Hosts)
	r.hostPatterns(path+".notHosts", o.NotHosts)
}

// each checks every value of a list.
func (r *report) each(path string, values []string, check func(path, value string)) {
	for i, v := range values {
		check(fmt.Sprintf("%s[%d]", path, i), v)
	}
}

func (r *report) present(path, v string) {
	if v == "" {
		r.errorf(path, "write \"*\" for any", "the value is empty")
	}
}

// pattern checks an exact value, or one with "*" at its begin or at its end.
func (r *report) pattern(path, v string) {
	r.present(path, v)
	inner := v
	if v != "*" {
		if inner = strings.TrimPrefix(v, "*"); inner == v {
			inner = strings.TrimSuffix(v, "*")
		}
		if strings.Contains(inner, "*") {
			r.errorf(path, "write one \"*\", at the begin or at the end", "%q has a \"*\" that would be compared as written", v)
		}
	}
}

func (r *report) principal(path, v string) {
	r.pattern(path, v)
	if bare, ok := strings.CutPrefix(v, "spiffe://"); ok {
		r.errorf(path, "write "+bare, "principals are written without spiffe://")
	}
}

func (r *report) serviceAccount(path, v string) {
	ns, name, qualified := strings.Cut(v, "/")
	if !qualified {
		ns, name = "x", v
	}
	if !label.MatchString(ns) || !subdomain.MatchString(name) {
		r.errorf(path, "write name or namespace/name, without wildcards", "%q is no service account", v)
	}
}

func (r *report) block(path, v string) {
	if _, err := prefixOf(v); err != nil {
		r.errorf(path, "write 10.1.0.0/16 or 10.1.2.3", "%q is no IP block", v)
	}
}

// prefixOf reads an address or a CIDR block.
func prefixOf(v string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(v); err == nil && !p.Addr().Is4In6() {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(v)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("no IP block: %q", v)
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

func (r *report) method(path, v string) {
	r.pattern(path, v)
	if v != strings.ToUpper(v) {
		r.warnf(path, "write "+strings.ToUpper(v), "methods are compared as written: nothing fits %q", v)
	}
}

// pathPattern checks a path, or a path template by Istio's rules: nothing but
// "{*}" or "{**}" in a segment that has one, no other "*", and "{**}" last.
func (r *report) pathPattern(path, v string) {
	if !strings.ContainsAny(v, "{}") {
		r.pattern(path, v)
		if v != "" && v[0] != '/' && v[0] != '*' {
			r.warnf(path, "write /"+v, "no path begins with %q", v)
		}
		return
	}
	rest := false
	for segment := range strings.SplitSeq(v, "/") {
		operator := segment == "{*}" || segment == "{**}"
		switch {
		case operator && rest:
			r.errorf(path, "", "{**} must be the last operator of %q", v)
			return
		case !operator && strings.ContainsAny(segment, "{}*"):
			r.errorf(path, "write {*} or {**} as a whole segment", "%q is no path template", v)
			return
		}
		rest = rest || segment == "{**}"
	}
	if v[0] != '/' {
		r.errorf(path, "begin it with \"/\"", "%q is no path template", v)
	}
}

// hostPatterns checks hosts. They are compared without the request's port: a
// pattern for "any port" is the host itself, one for a certain port would never
// fit.
func (r *report) hostPatterns(path string, hosts []string) {
	for i, v := range hosts {
		at := fmt.Sprintf("%s[%d]", path, i)
		bare, anyPort := strings.CutSuffix(v, ":*")
		switch {
		case anyPort && !strings.Contains(bare, ":"):
			r.pattern(at, bare)
			if !slices.Contains(hosts, bare) {
				r.warnf(at, "", "the port is not looked at: %q fits as %q does", v, bare)
			}
		case strings.Contains(v, ":"):
			r.unsupported(at, "leave the port out", "a port in a host")
		default:
			r.pattern(at, v)
		}
	}
}

// conditionKeys are Istio's, and whether weft knows the value.
var conditionKeys = map[string]bool{
	"source.ip": true, "source.namespace": true, "source.principal": true, "destination.port": true, "request.headers": true,
	"source.serviceAccount": false, "remote.ip": false, "destination.ip": false, "connection.sni": false, "source.trustDomain": false,
	"request.auth.principal": false, "request.auth.audiences": false, "request.auth.presenter": false, "request.auth.claims": false,
}

func (r *report) condition(path string, c *security.Condition) {
	name, inner, bracket := strings.Cut(c.Key, "[")
	known, exists := conditionKeys[name]
	if bracket != (name == "request.headers" || name == "request.auth.claims") || bracket && !strings.HasSuffix(inner, "]") {
		exists = false
	}
	switch {
	case strings.HasPrefix(name, "experimental.") || exists && !known:
		r.unsupported(path+".key", "", "the key %s", c.Key)
		return
	case !exists:
		r.errorf(path+".key", "known are request.headers[name], source.ip, source.namespace, source.principal and destination.port", "unknown key %q", c.Key)
		return
	case bracket:
		r.headerName(path+".key", strings.TrimSuffix(inner, "]"))
	}
	if len(c.Values)+len(c.NotValues) == 0 {
		r.errorf(path, "write values or notValues", "the condition has no values")
	}
	check := map[string]func(string, string){
		"source.ip": r.block, "source.principal": r.principal, "source.namespace": r.present, "destination.port": r.port,
	}[name]
	if check == nil {
		check = r.pattern
	}
	r.each(path+".values", c.Values, check)
	r.each(path+".notValues", c.NotValues, check)
}
