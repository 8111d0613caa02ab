package weftpb

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/json"
	"math"
	"net/netip"
	"strings"
	"time"
	"unique"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/resilience"
)

// decoder keeps the first error, so that the conversions read straight on.
type decoder struct{ err error }

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *decoder) refuse(thing, format string, args ...any) {
	d.fail(weft.Errorf(weft.Invalid, "decode", thing, format, args...))
}

// DecodeRouteTable checks and compiles a route table.
func DecodeRouteTable(m *RouteTable) (*weft.RouteTable, error) {
	var d decoder
	t := d.routeTable(m)
	return t, d.err
}

// DecodeService reads a service without its endpoints.
func DecodeService(m *Service) (*weft.Service, error) {
	var d decoder
	s := &weft.Service{
		Name: d.serviceName(m.GetName()), Policy: d.policy(m.GetPolicy()),
		Resilience: d.resilience(m.GetResilience()), Breaker: d.held(m.GetBreaker()),
	}
	for _, sub := range m.GetSubsets() {
		s.Subsets = append(s.Subsets, weft.Subset{Name: sub.GetName(), Labels: sub.GetLabels(), Policy: d.policy(sub.GetPolicy())})
	}
	return s, d.err
}

// DecodeEndpoints reads the endpoints of a service.
func DecodeEndpoints(m *Endpoints) (n weft.ServiceName, endpoints []weft.Endpoint, index uint64, err error) {
	var d decoder
	n = d.serviceName(m.GetService())
	for _, e := range m.GetEndpoints() {
		if e.GetAddress() == "" || e.GetWeight() == 0 {
			d.refuse("endpoint "+e.GetId(), "it has address %q and weight %d", e.GetAddress(), e.GetWeight())
		}
		if e.GetIdentity() != "" {
			if _, err := weft.ParseIdentity(e.GetIdentity()); err != nil {
				d.fail(err)
			}
		}
		endpoints = append(endpoints, weft.Endpoint{
			ID: e.GetId(), Address: e.GetAddress(), Identity: weft.Identity(e.GetIdentity()),
			Weight: e.GetWeight(), Zone: e.GetZone(), Labels: e.GetLabels(),
			Protocol: weft.Protocol(e.GetProtocol()), // one that this weft does not know is as good as none
		})
	}
	return n, endpoints, m.GetIndex(), d.err
}

// DecodeAuthorization checks and compiles the policies of a workload, and reads how
// the paths that they see are normalised.
func DecodeAuthorization(m *Authorization) (*weft.Authorization, weft.PathMode, error) {
	var d decoder
	a := &weft.Authorization{Policies: each(m.GetPolicies(), d.authorizationPolicy)}
	paths := d.pathMode(m.GetPaths())
	if d.err != nil {
		return nil, 0, d.err
	}
	return a, paths, nil
}

// DecodeTrust reads the roots of a trust domain.
func DecodeTrust(m *Trust) (trustDomain string, roots []*x509.Certificate, err error) {
	roots, err = DecodeCertificates(m.GetRoots())
	if err == nil && len(roots) == 0 {
		err = weft.Errorf(weft.Invalid, "decode", "trust of "+m.GetTrustDomain(), "it has no root")
	}
	return m.GetTrustDomain(), roots, err
}

// DecodeCertificates parses each.
func DecodeCertificates(ders [][]byte) ([]*x509.Certificate, error) {
	out := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, &weft.Error{Kind: weft.Invalid, Op: "decode", Thing: "certificate", Err: err}
		}
		out[i] = cert
	}
	return out, nil
}

// DecodeInstance reads what a sidecar says of an instance.
func DecodeInstance(m *Instance) (weft.Instance, error) {
	var d decoder
	in := weft.Instance{
		ID: m.GetId(), Service: d.serviceName(m.GetService()), Node: m.GetNode(), Address: m.GetAddress(), Port: int(m.GetPort()),
		Tags: m.GetTags(), Labels: m.GetLabels(), Zone: m.GetZone(),
		Weights: weft.Weights{Passing: int(m.GetWeightPassing()), Warning: int(m.GetWeightWarning())},
		PID:     int(m.GetPid()), MeshAddr: m.GetMeshAddr(),
	}
	var err error
	if in.Protocol, err = weft.ParseProtocol(m.GetProtocol()); err != nil {
		d.fail(err)
	}
	if in.ID == "" || in.Port < 0 || in.Port > 65535 || in.PID < 0 {
		d.refuse("instance "+in.ID, "it has id %q, port %d and pid %d", in.ID, in.Port, in.PID)
	}
	return in, d.err
}

// DecodeHealth reads a health; a word that is not known is critical.
func DecodeHealth(h Health) weft.Health {
	if h < Health_PASSING || h > Health_MAINTENANCE {
		return weft.Critical
	}
	return weft.Health(h)
}

func (d *decoder) serviceName(m *ServiceName) weft.ServiceName {
	if m.GetName() == "" || m.GetNamespace() == "" {
		d.refuse("service name", "name %q, namespace %q", m.GetName(), m.GetNamespace())
	}
	return weft.ServiceName{Namespace: interned(m.GetNamespace()), Name: interned(m.GetName())}
}

func (d *decoder) duration(m *durationpb.Duration) time.Duration {
	if m == nil {
		return 0
	}
	v := m.AsDuration()
	if err := m.CheckValid(); err != nil || v < 0 {
		d.refuse("duration", "%d s %d ns is no duration of ours", m.GetSeconds(), m.GetNanos())
	}
	return v
}

func source(m *SourceRef) weft.SourceRef {
	return weft.SourceRef{
		Kind: interned(m.GetKind()), Namespace: interned(m.GetNamespace()), Name: interned(m.GetName()),
		File: interned(m.GetFile()), Line: int(m.GetLine()), Field: interned(m.GetField()),
	}
}

func (d *decoder) routeTable(m *RouteTable) *weft.RouteTable {
	rules := make([]weft.Rule, len(m.GetRules()))
	for i, r := range m.GetRules() {
		rules[i] = d.rule(r)
	}
	t := d.table(m, rules)
	if d.err != nil {
		return nil
	}
	if err := t.Complete(); err != nil {
		d.fail(err)
	}
	return t
}

// table makes a table of a message and the rules that were decoded of it.
func (d *decoder) table(m *RouteTable, rules []weft.Rule) *weft.RouteTable {
	return &weft.RouteTable{
		Host: m.GetHost(), Rules: rules, Paths: d.pathMode(m.GetPaths()),
		TCP: each(m.GetTcp(), d.rawRule), TLS: each(m.GetTls(), d.rawRule),
	}
}

// pathMode refuses what this weft does not know: another normalisation than the
// policies were written for would let somebody around them.
func (d *decoder) pathMode(m PathMode) weft.PathMode {
	if _, known := PathMode_name[int32(m)]; !known {
		d.refuse("path normalisation", "this weft does not know mode %d", m)
		return weft.PathBase
	}
	return weft.PathMode(m)
}

func (d *decoder) rawRule(m *RawRule) weft.RawRule {
	return weft.RawRule{
		Name: interned(m.GetName()), Source: source(m.GetSource()), SNI: m.GetSni(),
		Ports: each(m.GetPorts(), func(port uint32) uint16 {
			if port == 0 || port > 1<<16-1 {
				d.refuse("raw rule "+m.GetName(), "%d is no port", port)
			}
			return uint16(port)
		}),
		Destinations: each(m.GetDestinations(), d.destination),
	}
}

func (d *decoder) destination(m *Destination) weft.Destination {
	return weft.Destination{
		Service: d.serviceName(m.GetService()), Subset: interned(m.GetSubset()), Weight: m.GetWeight(),
		Request: headerOps(m.GetRequest()), Unresolved: m.GetUnresolved(),
	}
}

// interned is one copy of a text that comes again and again: of 5,000 route tables
// nearly all name the same kind, file and namespace.
func interned(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

func (d *decoder) rule(m *Rule) weft.Rule {
	r := weft.Rule{
		Name: interned(m.GetName()), Source: source(m.GetSource()), Timeout: d.duration(m.GetTimeout()),
		Retry: d.retry(m.GetRetry()), Resilience: d.resilience(m.GetResilience()),
		Request: headerOps(m.GetRequest()), Response: headerOps(m.GetResponse()),
	}
	r.Matches = each(m.GetMatches(), d.match)
	if v := m.GetRedirect(); v != nil {
		r.Redirect = &weft.Redirect{Code: int(v.GetCode()), Scheme: v.GetScheme(), Authority: v.GetAuthority(), Path: v.GetPath()}
	}
	if v := m.GetDirect(); v != nil {
		r.Direct = &weft.DirectResponse{Status: int(v.GetStatus()), Body: v.GetBody()}
	}
	if v := m.GetRewrite(); v != nil {
		r.Rewrite = &weft.Rewrite{Path: v.GetPath(), Prefix: v.GetPrefix(), Authority: v.GetAuthority()}
	}
	r.Destinations = each(m.GetDestinations(), d.destination)
	return r
}

func (d *decoder) retry(m *Retry) weft.Retry {
	if m.GetOn() > 1<<16-1 || m.GetAttempts() < 0 {
		d.refuse("retry", "attempts %d, conditions %#x", m.GetAttempts(), m.GetOn())
	}
	return weft.Retry{
		Attempts: int(m.GetAttempts()), PerTryTimeout: d.duration(m.GetPerTryTimeout()), On: weft.RetryOn(m.GetOn()),
		Statuses: each(m.GetStatuses(), func(code int32) int { return int(code) }),
		Backoff:  d.duration(m.GetBackoff()), Chosen: m.GetChosen(),
	}
}

func (d *decoder) resilience(m *Resilience) *weft.Resilience {
	if m == nil {
		return nil
	}
	if !json.Valid(m.GetSpec()) {
		d.refuse("resilience policy "+m.GetSource().GetName(), "its spec is no JSON")
	}
	return &weft.Resilience{Source: source(m.GetSource()), Spec: m.GetSpec()}
}

// Fallback is the service that a policy's callers are answered by when their own
// cannot; ok is false when it names none. A name without a namespace is one in the
// policy's own.
func Fallback(r *weft.Resilience) (n weft.ServiceName, ok bool) {
	if r == nil || !bytes.Contains(r.Spec, []byte(`"fallback"`)) {
		return n, false
	}
	var spec struct {
		Fallback struct{ Service string }
	}
	if json.Unmarshal(r.Spec, &spec) != nil || spec.Fallback.Service == "" {
		return n, false // who runs the policy refuses it
	}
	return weft.ParseHost(strings.ToLower(spec.Fallback.Service), cmp.Or(r.Source.Namespace, weft.DefaultNamespace))
}

// held refuses what this weft does not know: who holds a circuit wants to know that
// it is not held.
func (d *decoder) held(state string) string {
	switch resilience.Mode(state) {
	case resilience.ModeAutomatic, resilience.ModeForcedOpen, resilience.ModeDisabled, resilience.ModeMetricsOnly:
	default:
		d.refuse("breaker", "this weft does not know the state %q", state)
	}
	return interned(state)
}

func (d *decoder) match(m *Match) weft.Match {
	return weft.Match{
		Name: m.GetName(),
		Path: d.optionalString(m.GetPath()), Method: d.optionalString(m.GetMethod()),
		Scheme: d.optionalString(m.GetScheme()), Authority: d.optionalString(m.GetAuthority()),
		Headers: each(m.GetHeaders(), d.namedMatch), Query: each(m.GetQuery(), d.namedMatch),
	}
}

func (d *decoder) namedMatch(m *NamedMatch) weft.NamedMatch {
	return weft.NamedMatch{Name: m.GetName(), Value: d.stringMatch(m.GetValue()), Invert: m.GetInvert()}
}

func (d *decoder) optionalString(m *StringMatch) *weft.StringMatch {
	if m == nil {
		return nil
	}
	v := d.stringMatch(m)
	return &v
}

func (d *decoder) stringMatch(m *StringMatch) weft.StringMatch {
	kind := m.GetKind()
	if kind < StringMatch_PRESENT || kind > StringMatch_REGEX {
		d.refuse("match", "this weft does not know kind %d", kind)
		return weft.StringMatch{}
	}
	v, err := weft.NewStringMatch(weft.MatchKind(kind), m.GetValue())
	if err != nil {
		d.fail(err)
	}
	v.IgnoreCase = m.GetIgnoreCase()
	return v
}

func headerOps(m *HeaderOps) weft.HeaderOps {
	field := func(f *HeaderField) weft.HeaderField { return weft.HeaderField{Name: f.GetName(), Value: f.GetValue()} }
	return weft.HeaderOps{Set: each(m.GetSet(), field), Add: each(m.GetAdd(), field), Remove: m.GetRemove()}
}

func (d *decoder) policy(m *TrafficPolicy) weft.TrafficPolicy {
	p := weft.TrafficPolicy{
		Source: source(m.GetSource()), LoadBalancer: weft.LoadBalancer(m.GetLoadBalancer()),
		ConnectTimeout: d.duration(m.GetConnectTimeout()), IdleTimeout: d.duration(m.GetIdleTimeout()),
		MaxConnections: m.GetMaxConnections(), MaxPendingRequests: m.GetMaxPendingRequests(),
		MaxRequests: m.GetMaxRequests(), MaxRequestsPerConn: m.GetMaxRequestsPerConn(),
		HTTP2: m.GetHttp2(), MaxStreams: m.GetMaxStreams(), ProxyProtocol: uint8(m.GetProxyProtocol()),
		Hash: d.hash(m.GetHash()), SlowStart: d.slowStart(m.GetSlowStart()), Locality: locality(m.GetLocality()),
	}
	if m.GetProxyProtocol() > 2 {
		d.refuse("traffic policy", "version %d of the PROXY protocol is not known", m.GetProxyProtocol())
	}
	if o := m.GetOutlier(); o != nil {
		p.Outlier = &weft.Outlier{
			Consecutive5xx: o.GetConsecutive_5Xx(), ConsecutiveGateway: o.GetConsecutiveGateway(),
			Interval: d.duration(o.GetInterval()), BaseEjection: d.duration(o.GetBaseEjection()), MaxEjection: d.duration(o.GetMaxEjection()),
			MaxEjectionPercent: o.GetMaxEjectionPercent(), MinHealthPercent: o.GetMinHealthPercent(),
			ConsecutiveLocal: o.GetConsecutiveLocal(),
		}
	}
	return p
}

func (d *decoder) hash(m *Hash) *weft.Hash {
	if m == nil {
		return nil
	}
	return &weft.Hash{
		Header: m.GetHeader(), Query: m.GetQuery(), Cookie: m.GetCookie(), CookiePath: m.GetCookiePath(), CookieTTL: d.duration(m.GetCookieTtl()),
		SessionTTL: m.GetSessionTtl(), SourceIP: m.GetSourceIp(), RingSize: m.GetRingSize(),
	}
}

func (d *decoder) slowStart(m *SlowStart) *weft.SlowStart {
	if m == nil {
		return nil
	}
	if !(m.GetAggression() >= 0) || math.IsInf(m.GetAggression(), 1) { // NaN is refused, too
		d.refuse("slow start", "its aggression is %v", m.GetAggression())
	}
	return &weft.SlowStart{Window: d.duration(m.GetWindow()), Aggression: m.GetAggression(), MinPercent: m.GetMinPercent()}
}

func locality(m *Locality) *weft.Locality {
	if m == nil {
		return nil
	}
	return &weft.Locality{
		Priority: m.GetPriority(),
		Distribute: each(m.GetDistribute(), func(s *Locality_Shares) weft.LocalityShares {
			return weft.LocalityShares{From: s.GetFrom(), To: s.GetTo()}
		}),
		Failover: each(m.GetFailover(), func(f *Locality_Failover) weft.LocalityFailover {
			return weft.LocalityFailover{From: f.GetFrom(), To: f.GetTo()}
		}),
	}
}

func (d *decoder) authorizationPolicy(m *AuthorizationPolicy) *weft.AuthorizationPolicy {
	action := m.GetAction()
	if action < AuthorizationPolicy_ALLOW || action > AuthorizationPolicy_AUDIT {
		d.refuse("authorization policy "+m.GetSource().GetName(), "this weft does not know action %d", action)
		return nil
	}
	p := &weft.AuthorizationPolicy{Source: source(m.GetSource()), Action: weft.Action(action), DryRun: m.GetDryRun()}
	for _, r := range m.GetRules() {
		p.Rules = append(p.Rules, weft.AuthorizationRule{
			From: each(r.GetFrom(), func(m *SourceMatch) weft.SourceMatch {
				return weft.SourceMatch{Principals: d.values(m.GetPrincipals()), Namespaces: d.values(m.GetNamespaces()), Addresses: d.prefixes(m.GetAddresses())}
			}),
			To: each(r.GetTo(), func(m *OperationMatch) weft.OperationMatch {
				return weft.OperationMatch{Methods: d.values(m.GetMethods()), Paths: d.values(m.GetPaths()), Hosts: d.values(m.GetHosts()), Ports: d.values(m.GetPorts())}
			}),
			When: each(r.GetWhen(), func(m *Condition) weft.Condition {
				return weft.Condition{Key: m.GetKey(), Values: d.values(m.GetValues())}
			}),
		})
	}
	return p
}

func (d *decoder) values(m *Values) weft.Values {
	return weft.Values{Any: each(m.GetAny(), d.stringMatch), Not: each(m.GetNot(), d.stringMatch)}
}

func (d *decoder) prefixes(m *Prefixes) weft.Prefixes {
	return weft.Prefixes{Any: each(m.GetAny(), d.prefix), Not: each(m.GetNot(), d.prefix)}
}

func (d *decoder) prefix(s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		d.refuse("IP block", "%v", err)
	}
	return p
}
