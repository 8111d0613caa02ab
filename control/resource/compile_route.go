package resource

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
)

// compileRules makes the rules of a VirtualService as one gateway ("namespace/
// name", or mesh) applies them, in order; also those that are never reached.
func compileRules(res *Resource, gateway string) []weft.Rule {
	var rules []weft.Rule
	for i, h := range res.Spec.(*networking.VirtualService).Http {
		blocks := compileMatches(h.Match, gateway, res.Namespace)
		if len(h.Match) == 0 {
			blocks = []weft.Match{{}}
		}
		rules = append(rules, spread(compileRule(res, i, h), blocks)...)
	}
	return rules
}

// spread gives a rule its match blocks. A block gets a rule of its own when
// something must be known of the block alone: that it fits everything, as such
// rules come last at a gateway; or which prefix a rewrite replaces.
func spread(rule weft.Rule, blocks []weft.Match) []weft.Rule {
	var rules []weft.Rule
	open := false // the last rule may take more blocks
	for _, b := range blocks {
		if open && !catchAll(&b) {
			last := &rules[len(rules)-1]
			last.Matches = append(last.Matches, b)
			continue
		}
		one := rule
		one.Matches = []weft.Match{b}
		if rule.Rewrite != nil && rule.Rewrite.Path != "" {
			one.Matches[0], one.Rewrite = anchored(b, *rule.Rewrite)
		} else {
			open = !catchAll(&b)
			if isZero(&b) {
				one.Matches = nil
			}
		}
		rules = append(rules, one)
		if catchAll(&b) {
			break // the blocks after it add nothing
		}
	}
	return rules
}

// anchored settles what a rewrite of the path replaces. A block that asks
// nothing of the path counts as the prefix "/", as in Istio.
func anchored(b weft.Match, w weft.Rewrite) (weft.Match, *weft.Rewrite) {
	if b.Path == nil {
		b.Path = &weft.StringMatch{Kind: weft.MatchPrefix, Value: "/"}
	}
	w.Prefix = b.Path.Kind == weft.MatchPrefix
	return b, &w
}

// isZero reports whether a block says nothing at all.
func isZero(m *weft.Match) bool { return m.Name == "" && m.Path == nil && onlyPath(m) }

func onlyPath(m *weft.Match) bool {
	return m.Method == nil && m.Scheme == nil && m.Authority == nil && len(m.Headers)+len(m.Query) == 0
}

// catchAll reports whether a block fits every request (facts: §2.1 item 1).
func catchAll(m *weft.Match) bool {
	return onlyPath(m) && (m.Path == nil || anyPath(m.Path))
}

func anyPath(m *weft.StringMatch) bool {
	return m.Kind == weft.MatchPrefix && m.Value == "/" || m.Kind == weft.MatchRegex && m.Value == ".*"
}

// fitsAll reports whether a rule fits every request.
func fitsAll(r *weft.Rule) bool {
	return len(r.Matches) == 0 || slices.ContainsFunc(r.Matches, func(m weft.Match) bool { return catchAll(&m) })
}

// reached are the rules up to the first that fits everything.
func reached(rules []weft.Rule) []weft.Rule {
	for i := range rules {
		if fitsAll(&rules[i]) {
			return rules[:i+1]
		}
	}
	return rules
}

// compileRule makes a rule without its matches.
func compileRule(res *Resource, i int, h *networking.HTTPRoute) weft.Rule {
	path := fmt.Sprintf("spec.http[%d]", i)
	rule := weft.Rule{
		Name:     h.Name,
		Source:   res.lines.at(res.Source, path),
		Timeout:  h.Timeout.AsDuration(),
		Retry:    compileRetry(h.Retries),
		Request:  compileHeaders(h.Headers.GetRequest()),
		Response: compileHeaders(h.Headers.GetResponse()),
	}
	if rule.Name == "" {
		rule.Name = strings.TrimPrefix(path, "spec.")
	}
	rewrite := weft.Rewrite{Path: h.Rewrite.GetUri(), Authority: h.Rewrite.GetAuthority()}
	if rewrite.Authority == "" {
		rewrite.Authority = hostChange(h.Headers.GetRequest())
	}
	if rewrite != (weft.Rewrite{}) {
		rule.Rewrite = &rewrite
	}
	if d := h.Redirect; d != nil {
		rule.Redirect = &weft.Redirect{Code: int(d.RedirectCode), Scheme: d.Scheme, Authority: d.Authority, Path: d.Uri}
		if d.GetPort() != 0 {
			rule.Redirect.Authority += fmt.Sprintf(":%d", d.GetPort())
		}
	}
	if d := h.DirectResponse; d != nil {
		rule.Direct = &weft.DirectResponse{Status: int(d.Status), Body: d.Body.GetString_() + string(d.Body.GetBytes())}
	}
	for _, d := range h.Route {
		rule.Destinations = append(rule.Destinations, compileDestination(d.Destination, d.Weight, d.Headers.GetRequest(), res.Namespace))
	}
	return rule
}

func compileDestination(d *networking.Destination, weight int32, request *networking.Headers_HeaderOperations, namespace string) weft.Destination {
	out := weft.Destination{Subset: d.GetSubset(), Weight: uint32(weight), Request: compileHeaders(request)}
	n, ok := serviceOf(d.GetHost(), namespace)
	out.Service = n
	if !ok {
		out.Unresolved = fmt.Sprintf("service %s does not exist", n.Name)
	}
	return out
}

// serviceOf reads a destination's host, as a rule in namespace writes it. A host
// that cannot be a service's is returned as the name, and not ok.
func serviceOf(host, namespace string) (weft.ServiceName, bool) {
	host = strings.ToLower(host)
	if n, ok := weft.ParseHost(host, namespace); ok {
		return n, true
	}
	return weft.ServiceName{Name: host}, false
}

// fullName is the one name of a host that may be written in several ways:
// a service's in Kubernetes form, anything else in lower case.
func fullName(host, namespace string) string {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if n, ok := weft.ParseHost(host, namespace); ok {
		return n.Host()
	}
	return host
}

// compileMatches keeps the blocks that a gateway applies.
func compileMatches(blocks []*networking.HTTPMatchRequest, gateway, namespace string) []weft.Match {
	var out []weft.Match
	for _, b := range blocks {
		if appliesAt(b.Gateways, gateway, namespace) {
			out = append(out, compileMatch(b))
		}
	}
	return out
}

// qualified gives names of gateways their namespace.
func qualified(gateways []string, namespace string) []string {
	out := make([]string, len(gateways))
	for i, g := range gateways {
		out[i] = g
		if g != mesh && !strings.Contains(g, "/") {
			out[i] = namespace + "/" + g
		}
	}
	return out
}

func compileMatch(b *networking.HTTPMatchRequest) weft.Match {
	m := weft.Match{Name: b.Name, Path: compileString(b.Uri), Scheme: compileString(b.Scheme), Method: compileString(b.Method)}
	if m.Path != nil {
		m.Path.IgnoreCase = b.IgnoreUriCase
	}
	if b.Authority != nil {
		m.Authority = compileString(lowerCase(b.Authority))
	}
	for _, name := range slices.Sorted(maps.Keys(b.Headers)) {
		m.Headers = append(m.Headers, weft.NamedMatch{Name: strings.ToLower(name), Value: *compileString(b.Headers[name])})
	}
	for _, name := range slices.Sorted(maps.Keys(b.WithoutHeaders)) {
		m.Headers = append(m.Headers, weft.NamedMatch{Name: strings.ToLower(name), Value: *compileString(b.WithoutHeaders[name]), Invert: true})
	}
	for _, name := range slices.Sorted(maps.Keys(b.QueryParams)) {
		m.Query = append(m.Query, weft.NamedMatch{Name: name, Value: *compileString(b.QueryParams[name])})
	}
	return m
}

// lowerCase makes a match of a host one without case: Request.Host is lower.
func lowerCase(s *networking.StringMatch) *networking.StringMatch {
	switch t := s.MatchType.(type) {
	case *networking.StringMatch_Exact:
		return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: strings.ToLower(t.Exact)}}
	case *networking.StringMatch_Prefix:
		return &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: strings.ToLower(t.Prefix)}}
	case *networking.StringMatch_Regex:
		return &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: "(?i)" + t.Regex}}
	}
	return s
}

// compileString returns nil for nil. A match of no kind, and Istio's regex "*",
// ask for presence.
func compileString(s *networking.StringMatch) *weft.StringMatch {
	if s == nil {
		return nil
	}
	switch t := s.MatchType.(type) {
	case *networking.StringMatch_Exact:
		return &weft.StringMatch{Kind: weft.MatchExact, Value: t.Exact}
	case *networking.StringMatch_Prefix:
		return &weft.StringMatch{Kind: weft.MatchPrefix, Value: t.Prefix}
	case *networking.StringMatch_Regex:
		if t.Regex != "*" {
			m := regexMatch(t.Regex)
			return &m
		}
	}
	return &weft.StringMatch{Kind: weft.MatchPresent}
}

// regexMatch compiles an expression that was checked. A match whose expression
// does not compile fits nothing.
func regexMatch(value string) weft.StringMatch {
	m, _ := weft.NewStringMatch(weft.MatchRegex, value)
	return m
}

// retryConditions are the words of retryOn. A word without a condition changes
// nothing: those of gRPC, and retriable-status-codes, which only says that the
// codes in the list count.
var retryConditions = map[string]weft.RetryOn{
	"connect-failure":        weft.RetryConnectFailure,
	"refused-stream":         weft.RetryRefusedStream,
	"reset":                  weft.RetryReset,
	"reset-before-request":   weft.RetryRefusedStream, // nothing was processed, as there
	"5xx":                    weft.Retry5xx,
	"gateway-error":          weft.RetryGatewayError,
	"retriable-4xx":          weft.RetryRetriable4xx,
	"unavailable":            weft.RetryUnavailable,
	"retriable-status-codes": 0,
	"cancelled":              0,
	"deadline-exceeded":      0,
	"internal":               0,
	"resource-exhausted":     0,
}

// retryWords splits retryOn.
func retryWords(on string) []string {
	return strings.FieldsFunc(on, func(c rune) bool { return c == ',' || c == ' ' })
}

func statusCode(word string) (int, bool) {
	code, err := strconv.Atoi(word)
	return code, err == nil
}

func compileRetry(p *networking.HTTPRetry) weft.Retry {
	switch {
	case p == nil:
		return weft.DefaultRetry
	case p.Attempts == 0:
		return weft.Retry{Chosen: true}
	}
	out := weft.Retry{Attempts: int(p.Attempts), PerTryTimeout: p.PerTryTimeout.AsDuration(), Backoff: p.Backoff.AsDuration(), Chosen: true}
	words := retryWords(p.RetryOn)
	if len(words) == 0 {
		out.On = weft.DefaultRetry.On
	}
	for _, word := range words {
		out.On |= retryConditions[word]
		if code, ok := statusCode(word); ok && !slices.Contains(out.Statuses, code) {
			out.Statuses = append(out.Statuses, code)
		}
	}
	return out
}

// isHost reports whether a change of this header is a change of the authority.
func isHost(name string) bool { return name == ":authority" || strings.EqualFold(name, "host") }

// hostChange is the authority that changes of headers ask for, or "". Set has
// precedence over add.
func hostChange(ops *networking.Headers_HeaderOperations) string {
	for _, fields := range []map[string]string{ops.GetSet(), ops.GetAdd()} {
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			if isHost(name) {
				value, _ := literal(fields[name])
				return value
			}
		}
	}
	return ""
}

func compileHeaders(ops *networking.Headers_HeaderOperations) weft.HeaderOps {
	fields := func(of map[string]string) []weft.HeaderField {
		var out []weft.HeaderField
		for _, name := range slices.Sorted(maps.Keys(of)) {
			if value, ok := literal(of[name]); ok && !isHost(name) {
				out = append(out, weft.HeaderField{Name: name, Value: value})
			}
		}
		return out
	}
	out := weft.HeaderOps{Set: fields(ops.GetSet()), Add: fields(ops.GetAdd())}
	for _, name := range ops.GetRemove() {
		out.Remove = append(out.Remove, strings.ToLower(name))
	}
	return out
}

// literal undoes the escape of Envoy's format strings: "%%" is a percent sign,
// and any other "%" begins a variable, which weft does not fill in.
func literal(value string) (out string, ok bool) {
	ok = !strings.Contains(strings.ReplaceAll(value, "%%", ""), "%")
	return strings.ReplaceAll(value, "%%", "%"), ok
}
