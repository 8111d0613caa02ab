package api

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

// evaluation asks a snapshot everything about one request. It decides nothing
// itself: Snapshot.Route and Authorization.Decide do, as in a proxy.
type evaluation struct {
	snapshot *weft.Snapshot
	request  *weft.Request
	caller   weft.Identity // that the destination sees
	// authority is the request's host as it was written, with its port.
	authority string
	// workload says what stands before an endpoint of a service.
	workload func(weft.ServiceName, *weft.Endpoint) workload
}

// workload is what a sidecar decides by.
type workload struct {
	authorization *weft.Authorization
	paths         weft.PathMode // of the requests that reach it
	port          string        // of the process
}

// run fills in where the request may go.
func (v *evaluation) run(e *client.Explanation) {
	if v.snapshot.Gateway == nil {
		table := v.snapshot.Hosts[v.request.Host]
		e.Routes = []client.Route{v.route(1, v.request.Host, table, v.snapshot.Route(v.request, 0))}
		return
	}
	table := v.snapshot.Gateway.Lookup(v.request.Host)
	first := v.snapshot.Route(v.request, 0)
	if table == nil || first.Rule == nil && first.Edge == nil {
		e.Routes = []client.Route{v.route(1, v.request.Host, table, first)}
		return
	}
	edge := first.Rule
	if first.Edge != nil {
		edge = first.Edge
	}
	e.Routes, e.Edge = v.throughEdge(table, edge)
}

// throughEdge follows every destination of a gateway's rule. The rule is returned
// only when some destination has rules of its own; else it stands in the one
// route.
func (v *evaluation) throughEdge(table *weft.RouteTable, edge *weft.Rule) ([]client.Route, *client.Rule) {
	var routes []client.Route
	handsOver := false
	for i, random := range offsets(edge.Destinations) {
		d := &edge.Destinations[i]
		if edge.Share(d) == 0 {
			continue
		}
		decision := v.snapshot.Route(v.request, random)
		if decision.Edge == nil {
			direct := v.route(edge.Share(d), table.Host, table, decision)
			direct.Destinations = []client.Destination{v.destination(edge.Share(d), weft.Decision{Rule: edge}, d, decision)}
			direct.Destinations[0].Share = 1
			routes = append(routes, direct)
			continue
		}
		handsOver = true
		host := d.Service.Host()
		routes = append(routes, v.route(edge.Share(d), host, v.snapshot.Hosts[host], decision))
	}
	if !handsOver {
		return []client.Route{v.route(1, table.Host, table, v.snapshot.Route(v.request, 0))}, nil
	}
	return routes, v.rule(edge)
}

// offsets returns, for each destination of a rule, a random number by which the
// rule chooses it: the sum of the weights before it. One of weight 0 is never
// chosen.
func offsets(of []weft.Destination) []uint64 {
	out := make([]uint64, len(of))
	sum := uint64(0)
	for i := range of {
		out[i] = sum
		sum += uint64(of[i].Weight)
	}
	return out
}

// route describes one table's decision: its rule, the rules before it, and all
// destinations of the rule instead of the one that decision happened to choose.
func (v *evaluation) route(share float64, host string, table *weft.RouteTable, decision weft.Decision) client.Route {
	out := client.Route{Share: share, Table: host}
	if table != nil {
		out.Passed = v.passed(table, decision.Rule)
	}
	rule := decision.Rule
	if rule == nil {
		out.Problem = string(decision.Problem)
		return out
	}
	out.Rule = v.rule(rule)
	if rule.Redirect != nil || rule.Direct != nil {
		return out
	}
	// The same table alone, so that each destination can be chosen in turn.
	alone := weft.Snapshot{Hosts: map[string]*weft.RouteTable{v.request.Host: table}, Services: v.snapshot.Services}
	for i, random := range offsets(rule.Destinations) {
		d := &rule.Destinations[i]
		chosen := weft.Decision{Service: v.snapshot.Services[d.Service]}
		if rule.Share(d) > 0 {
			chosen = alone.Route(v.request, random)
		}
		out.Destinations = append(out.Destinations, v.destination(rule.Share(d), weft.Decision{Rule: rule, Edge: decision.Edge}, d, chosen))
	}
	return out
}

// passed lists the rules before the one that fits, or all when none does.
func (v *evaluation) passed(table *weft.RouteTable, fits *weft.Rule) []client.PassedRule {
	var out []client.PassedRule
	for i := range table.Rules {
		r := &table.Rules[i]
		if r == fits {
			break
		}
		out = append(out, client.PassedRule{Name: r.Name, Source: r.Source, Why: whyNot(r, v.request)})
	}
	return out
}

func (v *evaluation) rule(r *weft.Rule) *client.Rule {
	m := fitting(r, v.request)
	out := &client.Rule{
		Name: r.Name, Source: r.Source, Match: describe(m), Timeout: weft.Duration(r.Timeout),
		Retry: client.Retry{Attempts: r.Retry.Attempts, PerTryTimeout: weft.Duration(r.Retry.PerTryTimeout),
			On: retryWords(r.Retry.On), Statuses: r.Retry.Statuses},
	}
	if r.Rewrite != nil {
		path, authority := (&weft.Decision{Rule: r}).Onward(v.request)
		out.Rewrite = &client.Rewrite{Authority: authority}
		if path != v.request.Path {
			out.Rewrite.Path = path
		}
	}
	if r.Redirect != nil {
		code, location := r.Redirect.Apply(v.request, v.authority)
		out.Redirect = &client.Redirect{Code: code, Location: location}
	}
	if r.Direct != nil {
		out.Direct = &client.Direct{Status: r.Direct.Status, Body: r.Direct.Body}
	}
	return out
}

// destination describes d, of the rule by has, and its share of that rule; chosen is
// the decision for it.
func (v *evaluation) destination(share float64, by weft.Decision, d *weft.Destination, chosen weft.Decision) client.Destination {
	out := client.Destination{
		Namespace: d.Service.Namespace, Service: d.Service.Name, Subset: d.Subset,
		Weight: d.Weight, Share: share, Problem: d.Unresolved, Endpoints: []client.Endpoint{},
	}
	if out.Problem == "" {
		out.Problem = string(chosen.Problem)
	}
	s := chosen.Service
	if s == nil {
		return out
	}
	policy := &s.Policy
	subset := s.Subset(d.Subset)
	if d.Subset != "" {
		if subset == nil {
			return out
		}
		policy = &subset.Policy
	}
	out.Policy = policyOf(policy)
	out.Resilience = resilienceOf(&by, s)
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if subset != nil && !subset.Fits(e) {
			continue
		}
		out.Endpoints = append(out.Endpoints, client.Endpoint{ID: e.ID, Address: e.Address, Version: e.Labels["version"],
			Zone: e.Zone, Weight: e.Weight, Identity: e.Identity, Protocol: e.Protocol})
		out.Authorization = addVerdict(out.Authorization, v.verdict(by, d.Service, e))
	}
	if out.Problem == "" && len(out.Endpoints) == 0 {
		out.Problem = string(weft.NoEndpoints)
	}
	return out
}

// verdict asks the policies that stand before one endpoint.
func (v *evaluation) verdict(by weft.Decision, n weft.ServiceName, e *weft.Endpoint) client.Verdict {
	if e.Identity == "" {
		return client.Verdict{Allowed: true, Reason: "no sidecar stands there to ask", Endpoints: []string{e.ID}}
	}
	w := v.workload(n, e)
	there := *v.request
	there.Source = v.caller
	raw := by.Rule == nil
	if !raw {
		path, authority := by.Onward(v.request)
		normal, err := normalized(w.paths, path)
		if err != nil {
			return client.Verdict{Reason: "its sidecar refuses the path: " + err.Error(), Endpoints: []string{e.ID}}
		}
		there.Path = normal
		if authority != "" {
			there.Host = strings.ToLower(authority)
		}
	}
	verdict := w.authorization.Decide(&weft.AuthorizationRequest{Request: &there, Port: w.port, Raw: raw})
	out := client.Verdict{Allowed: verdict.Allowed, Reason: verdict.Reason(), Endpoints: []string{e.ID}}
	if verdict.Policy != nil {
		out.Policy = verdict.Policy.Source
	}
	return out
}

// addVerdict joins endpoints about which the same was decided.
func addVerdict(list []client.Verdict, one client.Verdict) []client.Verdict {
	for i := range list {
		if v := &list[i]; v.Allowed == one.Allowed && v.Reason == one.Reason {
			v.Endpoints = append(v.Endpoints, one.Endpoints...)
			return list
		}
	}
	return append(list, one)
}

func policyOf(p *weft.TrafficPolicy) *client.Policy {
	out := &client.Policy{
		Source: p.Source, LoadBalancer: string(p.LoadBalancer), ConnectTimeout: weft.Duration(p.ConnectTimeout),
		MaxConnections: p.MaxConnections, MaxPendingRequests: p.MaxPendingRequests,
		MaxRequests: p.MaxRequests, MaxRequestsPerConn: p.MaxRequestsPerConn,
		HTTP2: p.HTTP2, MaxStreams: p.MaxStreams, ProxyProtocol: p.ProxyProtocol,
	}
	if out.LoadBalancer == "" {
		out.LoadBalancer = string(weft.LeastRequest)
	}
	if o := p.Outlier; o != nil {
		out.Outlier = &client.Outlier{
			Consecutive5xx: o.Consecutive5xx, ConsecutiveGateway: o.ConsecutiveGateway,
			Interval: weft.Duration(o.Interval), BaseEjection: weft.Duration(o.BaseEjection), MaxEjection: weft.Duration(o.MaxEjection),
			MaxEjectionPercent: o.MaxEjectionPercent, MinHealthPercent: o.MinHealthPercent,
		}
	}
	return out
}

// resilienceOf is the policy that the proxy asks: the route's before the service's.
func resilienceOf(d *weft.Decision, s *weft.Service) *client.Resilience {
	if d.Rule == nil {
		return nil // bytes are not guarded
	}
	if rule := d.OwnPolicy(); rule != nil {
		return &client.Resilience{Source: rule.Resilience.Source, Of: "route", Spec: rule.Resilience.Spec}
	}
	switch {
	case s.Resilience != nil:
		return &client.Resilience{Source: s.Resilience.Source, Of: "service", Held: s.Breaker, Spec: s.Resilience.Spec}
	case s.Breaker != "":
		return &client.Resilience{Of: "service", Held: s.Breaker}
	}
	return nil
}

// retryNames in the order of the bits of weft.RetryOn, in Istio's words.
var retryNames = []string{"connect-failure", "refused-stream", "reset", "5xx", "gateway-error", "retriable-4xx", "unavailable"}

func retryWords(on weft.RetryOn) []string {
	var out []string
	for i, name := range retryNames {
		if on&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

// fitting is the first match of a rule that fits; nil when the rule has none and
// so fits everything.
func fitting(r *weft.Rule, req *weft.Request) *weft.Match {
	for i := range r.Matches {
		if r.Matches[i].Matches(req) {
			return &r.Matches[i]
		}
	}
	return nil
}

// condition is one field of a match: alone it is a match too, so that the same
// code says whether it fits.
type condition struct {
	match weft.Match
	what  string // "path", "header x-beta"
	want  string // "/api/*"
	got   string // what the request has there
	has   bool   // the request has something there
}

func conditions(m *weft.Match, req *weft.Request) []condition {
	var out []condition
	add := func(match weft.Match, what string, want *weft.StringMatch, got string) {
		out = append(out, condition{match: match, what: what, want: want.String(), got: got, has: true})
	}
	if m.Path != nil {
		add(weft.Match{Path: m.Path}, "path", m.Path, req.Path)
	}
	if m.Method != nil {
		add(weft.Match{Method: m.Method}, "method", m.Method, req.Method)
	}
	if m.Scheme != nil {
		add(weft.Match{Scheme: m.Scheme}, "scheme", m.Scheme, req.Scheme)
	}
	if m.Authority != nil {
		add(weft.Match{Authority: m.Authority}, "host", m.Authority, req.Host)
	}
	for i := range m.Headers {
		h := &m.Headers[i]
		want := h.Value.String()
		if h.Invert {
			want = "not " + want
		}
		got, has := req.Header(h.Name)
		out = append(out, condition{weft.Match{Headers: m.Headers[i : i+1]}, "header " + h.Name, want, got, has})
	}
	for i := range m.Query {
		q := &m.Query[i]
		got, has := queryParameter(req.Query, q.Name)
		out = append(out, condition{weft.Match{Query: m.Query[i : i+1]}, "query parameter " + q.Name, q.Value.String(), got, has})
	}
	return out
}

func queryParameter(query, name string) (value string, ok bool) {
	for pair := range strings.SplitSeq(query, "&") {
		if k, v, _ := strings.Cut(pair, "="); k == name {
			return v, true
		}
	}
	return "", false
}

// describe says what a match asks: "path /api/* and method = GET".
func describe(m *weft.Match) string {
	if m == nil {
		return "every request"
	}
	var parts []string
	for _, c := range conditions(m, &weft.Request{}) {
		parts = append(parts, c.what+" "+c.want)
	}
	if len(parts) == 0 {
		return "every request"
	}
	return strings.Join(parts, " and ")
}

// whyNot says for each match of a rule the first condition that does not hold.
func whyNot(r *weft.Rule, req *weft.Request) string {
	var out []string
	for i := range r.Matches {
		for _, c := range conditions(&r.Matches[i], req) {
			if c.match.Matches(req) {
				continue
			}
			why := fmt.Sprintf("%s is missing, wanted %s", c.what, c.want)
			if c.has {
				why = fmt.Sprintf("%s is %q, wanted %s", c.what, c.got, c.want)
			}
			if !slices.Contains(out, why) {
				out = append(out, why)
			}
			break
		}
	}
	return strings.Join(out, "; ")
}
