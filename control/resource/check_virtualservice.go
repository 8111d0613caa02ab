package resource

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

func checkVirtualService(r *report, res *Resource) {
	spec := res.Spec.(*networking.VirtualService)
	if len(spec.Hosts) == 0 {
		r.errorf("spec.hosts", "name the hosts whose requests it routes", "hosts is empty")
	}
	for i, h := range spec.Hosts {
		path := fmt.Sprintf("spec.hosts[%d]", i)
		r.host(path, h)
		if h == "*" && inMesh(spec.Gateways) {
			r.errorf(path, "name the hosts, or name a gateway under gateways", "the host \"*\" is for gateways only")
		}
	}
	r.gateways("spec.gateways", spec.Gateways)
	r.exportTo(spec.ExportTo)
	if len(spec.Http)+len(spec.Tcp)+len(spec.Tls) == 0 {
		r.errorf("spec.http", "write at least one rule under http, tcp or tls", "http is empty")
	}
	for i, h := range spec.Http {
		r.httpRule(fmt.Sprintf("spec.http[%d]", i), h)
	}
	for i, t := range spec.Tcp {
		r.tcpRule(fmt.Sprintf("spec.tcp[%d]", i), t)
	}
	for i, t := range spec.Tls {
		r.tlsRule(fmt.Sprintf("spec.tls[%d]", i), t, spec.Hosts)
	}
}

// inMesh reports whether gateways, of a VirtualService, name the sidecars.
func inMesh(gateways []string) bool { return len(gateways) == 0 || slices.Contains(gateways, mesh) }

// InMesh reports whether a VirtualService is for sidecars, too.
func InMesh(spec *networking.VirtualService) bool { return inMesh(spec.GetGateways()) }

// mesh stands for all sidecars in a list of gateways.
const mesh = "mesh"

func (r *report) gateways(path string, names []string) {
	for i, name := range names {
		ns, bare, qualified := strings.Cut(name, "/")
		if !qualified {
			ns, bare = "x", name
		}
		if !label.MatchString(ns) || !subdomain.MatchString(bare) {
			r.errorf(fmt.Sprintf("%s[%d]", path, i), "write mesh, name or namespace/name", "%q is no name of a gateway", name)
		}
	}
}

func (r *report) httpRule(path string, h *networking.HTTPRoute) {
	r.action(path, h)
	for i, m := range h.Match {
		r.matchBlock(fmt.Sprintf("%s.match[%d]", path, i), m)
	}
	r.route(path+".route", h.Route)
	if h.Redirect != nil {
		r.redirect(path+".redirect", h.Redirect)
	}
	if d := h.DirectResponse; d != nil && (d.Status < 200 || d.Status > 599) {
		r.errorf(path+".directResponse.status", "write 200 to 599", "%d is no status of an answer", d.Status)
	}
	if h.Rewrite != nil && h.Rewrite.Uri == "" && h.Rewrite.Authority == "" {
		r.errorf(path+".rewrite", "write uri or authority", "rewrite says nothing")
	}
	r.line(path+".rewrite.uri", h.Rewrite.GetUri())
	r.line(path+".rewrite.authority", h.Rewrite.GetAuthority())
	r.duration(path+".timeout", h.Timeout, true)
	if h.Retries != nil {
		r.retries(path+".retries", h.Retries)
	}
	r.headers(path+".headers", h.Headers, true)
}

// action checks that a rule does exactly one thing.
func (r *report) action(path string, h *networking.HTTPRoute) {
	var actions []string
	if h.Redirect != nil {
		actions = append(actions, "redirect")
	}
	if h.DirectResponse != nil {
		actions = append(actions, "directResponse")
	}
	if len(h.Route) > 0 {
		actions = append(actions, "route")
	}
	switch {
	case len(actions) == 0:
		r.errorf(path, "say where its requests go", "the rule has no route, redirect or directResponse")
	case len(actions) > 1:
		r.errorf(path, "keep one", "%s cannot stand beside %s", actions[0], anyOf(actions[1:]))
	case h.Rewrite != nil && len(h.Route) == 0:
		r.errorf(path+".rewrite", "leave it out", "there is nothing to rewrite for a %s", actions[0])
	}
}

func (r *report) route(path string, route []*networking.HTTPRouteDestination) {
	sum := int64(0)
	for i, d := range route {
		at := fmt.Sprintf("%s[%d]", path, i)
		sum += int64(d.Weight)
		r.destination(at, d.Destination, d.Weight)
		r.headers(at+".headers", d.Headers, false)
	}
	r.weights(path, len(route), sum)
}

func (r *report) matchBlock(path string, m *networking.HTTPMatchRequest) {
	for name, s := range map[string]*networking.StringMatch{"uri": m.Uri, "scheme": m.Scheme, "method": m.Method, "authority": m.Authority} {
		if s != nil && s.MatchType == nil {
			r.errorf(path+"."+name, "write exact, prefix or regex", "%s asks for nothing", name)
		}
		if re := s.GetRegex(); re != "" {
			r.regex(path+"."+name+".regex", re)
		}
	}
	if p, ok := m.Uri.GetMatchType().(*networking.StringMatch_Prefix); ok && !strings.HasPrefix(p.Prefix, "/") {
		r.warnf(path+".uri", "write /"+p.Prefix, "no path begins with %q", p.Prefix)
	}
	if p, ok := m.Uri.GetMatchType().(*networking.StringMatch_Exact); ok && strings.ContainsAny(p.Exact, "?#") {
		r.warnf(path+".uri", "write the query under queryParams", "a path has no query: nothing fits %q", p.Exact)
	}
	if e := m.Method.GetExact(); e != strings.ToUpper(e) {
		r.warnf(path+".method", "write "+strings.ToUpper(e), "methods are compared as written: nothing fits %q", e)
	}
	if v := m.Authority.GetExact() + m.Authority.GetPrefix(); strings.Contains(v, ":") {
		r.unsupported(path+".authority", "leave the port out", "a port in authority")
	}
	for field, headers := range map[string]map[string]*networking.StringMatch{"headers": m.Headers, "withoutHeaders": m.WithoutHeaders} {
		for name, s := range headers {
			r.headerMatch(path+"."+field+"["+name+"]", name, s)
		}
	}
	for name, s := range m.QueryParams {
		r.valueMatch(path+".queryParams["+name+"]", s)
	}
	r.gateways(path+".gateways", m.Gateways)
}

func (r *report) headerMatch(path, name string, s *networking.StringMatch) {
	switch bare := strings.TrimPrefix(strings.ToLower(name), ":"); {
	case strings.HasPrefix(name, "@"):
		r.unsupported(path, "", "a match of token claims")
		return
	case slices.Contains([]string{"uri", "scheme", "method", "authority"}, bare):
		r.errorf(path, "write "+bare+" beside headers", "%q is no header, and Istio ignores it", name)
		return
	}
	r.headerName(path, name)
	r.valueMatch(path, s)
}

func (r *report) redirect(path string, d *networking.HTTPRedirect) {
	if d.Uri == "" && d.Authority == "" && d.Scheme == "" && d.RedirectCode == 0 && d.GetPort() == 0 {
		r.errorf(path, "write uri, authority or scheme", "the redirect leads back to itself")
	}
	switch d.RedirectCode {
	case 0, 301, 302, 303, 307, 308:
	default:
		r.errorf(path+".redirectCode", "write 301, 302, 303, 307 or 308", "%d is no status of a redirect", d.RedirectCode)
	}
	switch d.Scheme {
	case "", "http", "https":
	default:
		r.errorf(path+".scheme", "write http or https", "unknown scheme %q", d.Scheme)
	}
	if port := d.GetPort(); port != 0 {
		r.port(path+".port", fmt.Sprint(port))
		if d.Authority == "" {
			r.unsupported(path+".port", "write authority too", "port without authority")
		}
	}
	r.line(path+".uri", d.Uri)
	r.line(path+".authority", d.Authority)
}

func (r *report) retries(path string, p *networking.HTTPRetry) {
	if p.Attempts < 0 {
		r.errorf(path+".attempts", "write 0 for no retries", "%d is negative", p.Attempts)
	}
	if p.Attempts == 0 && (p.RetryOn != "" || p.PerTryTimeout != nil || p.Backoff != nil) {
		r.warnf(path, "write attempts", "attempts is 0: retries are off, and the rest says nothing")
	}
	r.duration(path+".perTryTimeout", p.PerTryTimeout, true)
	r.duration(path+".backoff", p.Backoff, false)
	if p.RetryIgnorePreviousHosts != nil && !p.RetryIgnorePreviousHosts.Value {
		r.unsupported(path+".retryIgnorePreviousHosts", "leave it out", "retryIgnorePreviousHosts: false")
	}
	for _, word := range retryWords(p.RetryOn) {
		_, known := retryConditions[word]
		code, isCode := statusCode(word)
		switch {
		case known && retryConditions[word] == 0 && word != "retriable-status-codes":
			r.warnf(path+".retryOn", "", "%q has no effect: it is about gRPC", word)
		case known:
		case isCode && (code < 100 || code > 599):
			r.errorf(path+".retryOn", "write 100 to 599", "%d is no status", code)
		case isCode:
		case slices.Contains([]string{"retriable-headers", "envoy-ratelimited", "http3-post-connect-failure"}, word):
			r.unsupported(path+".retryOn", "", "%q", word)
		default:
			r.errorf(path+".retryOn", mendName(word, slices.Sorted(maps.Keys(retryConditions))), "unknown word %q", word)
		}
	}
}

// headers checks changes of headers: of a whole rule, or of one destination.
func (r *report) headers(path string, h *networking.Headers, wholeRule bool) {
	if h == nil {
		return
	}
	if h.Response != nil && !wholeRule {
		r.unsupported(path+".response", "write it at the rule", "a destination's headers.response")
	}
	for side, ops := range map[string]*networking.Headers_HeaderOperations{"request": h.Request, "response": h.Response} {
		at := path + "." + side
		hostAllowed := wholeRule && side == "request"
		for name, value := range ops.GetSet() {
			r.headerChange(at+".set["+name+"]", name, value, hostAllowed)
		}
		for name, value := range ops.GetAdd() {
			r.headerChange(at+".add["+name+"]", name, value, hostAllowed)
		}
		for i, name := range ops.GetRemove() {
			r.headerChange(fmt.Sprintf("%s.remove[%d]", at, i), name, "", false)
		}
	}
}

func (r *report) headerChange(path, name, value string, hostAllowed bool) {
	r.line(path, value)
	if _, ok := literal(value); !ok {
		r.unsupported(path, "write %% for a percent sign", "a value that Envoy fills in (%s)", value)
	}
	switch {
	case isHost(name) && !hostAllowed:
		r.unsupported(path, "write rewrite.authority at the rule", "changing the host here")
	case isHost(name):
	case strings.HasPrefix(name, ":"):
		r.errorf(path, "", "%q is no header, and Istio ignores it", name)
	default:
		r.headerName(path, name)
	}
}
