package weftpb

import (
	"crypto/x509"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weftmesh/weft"
)

// EncodeRouteTable returns the message of a route table.
func EncodeRouteTable(t *weft.RouteTable) *RouteTable {
	out := &RouteTable{
		Host: t.Host, Rules: make([]*Rule, len(t.Rules)),
		Tcp: each(t.TCP, encodeRawRule), Tls: each(t.TLS, encodeRawRule), Paths: PathMode(t.Paths),
	}
	for i := range t.Rules {
		out.Rules[i] = encodeRule(&t.Rules[i])
	}
	return out
}

// EncodeGatewayTable returns the message of a gateway's route table.
func EncodeGatewayTable(t *weft.RouteTable) *GatewayTable {
	return &GatewayTable{Table: EncodeRouteTable(t)}
}

// EncodeService returns the message of a service without its endpoints.
func EncodeService(s *weft.Service) *Service {
	out := &Service{
		Name: encodeServiceName(s.Name), Policy: encodePolicy(&s.Policy),
		Resilience: encodeResilience(s.Resilience), Breaker: s.Breaker,
	}
	for i := range s.Subsets {
		sub := &s.Subsets[i]
		out.Subsets = append(out.Subsets, &Subset{Name: sub.Name, Labels: sub.Labels, Policy: encodePolicy(&sub.Policy)})
	}
	return out
}

// EncodeEndpoints returns the message of a service's endpoints, without an index.
func EncodeEndpoints(n weft.ServiceName, endpoints []weft.Endpoint) *Endpoints {
	out := &Endpoints{Service: encodeServiceName(n)}
	for i := range endpoints {
		e := &endpoints[i]
		out.Endpoints = append(out.Endpoints, &Endpoint{
			Id: e.ID, Address: e.Address, Identity: string(e.Identity), Weight: e.Weight, Zone: e.Zone, Labels: e.Labels,
			Protocol: string(e.Protocol),
		})
	}
	return out
}

// EncodeAuthorization returns the message of a workload's policies, and of the
// paths that they see.
func EncodeAuthorization(a *weft.Authorization, paths weft.PathMode) *Authorization {
	out := &Authorization{Paths: PathMode(paths)}
	if a != nil {
		out.Policies = each(a.Policies, encodePolicyOfAuthorization)
	}
	return out
}

// EncodeTrust returns the message of a trust domain's roots.
func EncodeTrust(trustDomain string, roots []*x509.Certificate) *Trust {
	return &Trust{TrustDomain: trustDomain, Roots: EncodeCertificates(roots)}
}

// EncodeCertificates returns the DER of each.
func EncodeCertificates(certs []*x509.Certificate) [][]byte {
	return each(certs, func(c *x509.Certificate) []byte { return c.Raw })
}

// EncodeInstance returns the message of what a sidecar may say of an instance:
// its checks, dialect, indexes and identity are the server's to set.
func EncodeInstance(in *weft.Instance) *Instance {
	return &Instance{
		Id: in.ID, Service: encodeServiceName(in.Service), Node: in.Node, Address: in.Address, Port: int32(in.Port),
		Tags: in.Tags, Labels: in.Labels, Zone: in.Zone,
		WeightPassing: uint32(max(in.Weights.Passing, 0)), WeightWarning: uint32(max(in.Weights.Warning, 0)),
		Pid: int32(in.PID), MeshAddr: in.MeshAddr, Protocol: string(in.Protocol),
	}
}

// EncodeHealth returns the message's word for h.
func EncodeHealth(h weft.Health) Health { return Health(h) }

func each[A, B any](list []A, f func(A) B) []B {
	if len(list) == 0 {
		return nil
	}
	out := make([]B, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return out
}

func encodeServiceName(n weft.ServiceName) *ServiceName {
	return &ServiceName{Namespace: n.Namespace, Name: n.Name}
}

func encodeDuration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func encodeSource(s weft.SourceRef) *SourceRef {
	if s == (weft.SourceRef{}) {
		return nil
	}
	return &SourceRef{Kind: s.Kind, Namespace: s.Namespace, Name: s.Name, File: s.File, Line: int32(s.Line), Field: s.Field}
}

func encodeRule(r *weft.Rule) *Rule {
	out := &Rule{
		Name: r.Name, Source: encodeSource(r.Source), Timeout: encodeDuration(r.Timeout),
		Retry: encodeRetry(&r.Retry), Resilience: encodeResilience(r.Resilience),
		Request: encodeHeaderOps(&r.Request), Response: encodeHeaderOps(&r.Response),
	}
	for i := range r.Matches {
		out.Matches = append(out.Matches, encodeMatch(&r.Matches[i]))
	}
	if d := r.Redirect; d != nil {
		out.Redirect = &Redirect{Code: int32(d.Code), Scheme: d.Scheme, Authority: d.Authority, Path: d.Path}
	}
	if d := r.Direct; d != nil {
		out.Direct = &DirectResponse{Status: int32(d.Status), Body: d.Body}
	}
	if w := r.Rewrite; w != nil {
		out.Rewrite = &Rewrite{Path: w.Path, Prefix: w.Prefix, Authority: w.Authority}
	}
	out.Destinations = each(r.Destinations, encodeDestination)
	return out
}

func encodeRawRule(r weft.RawRule) *RawRule {
	return &RawRule{
		Name: r.Name, Source: encodeSource(r.Source), Sni: r.SNI,
		Ports:        each(r.Ports, func(port uint16) uint32 { return uint32(port) }),
		Destinations: each(r.Destinations, encodeDestination),
	}
}

func encodeDestination(d weft.Destination) *Destination {
	return &Destination{
		Service: encodeServiceName(d.Service), Subset: d.Subset, Weight: d.Weight,
		Request: encodeHeaderOps(&d.Request), Unresolved: d.Unresolved,
	}
}

func encodeRetry(r *weft.Retry) *Retry {
	return &Retry{
		Attempts: int32(r.Attempts), PerTryTimeout: encodeDuration(r.PerTryTimeout), On: uint32(r.On),
		Statuses: each(r.Statuses, func(code int) int32 { return int32(code) }),
		Backoff:  encodeDuration(r.Backoff), Chosen: r.Chosen,
	}
}

func encodeResilience(r *weft.Resilience) *Resilience {
	if r == nil {
		return nil
	}
	return &Resilience{Source: encodeSource(r.Source), Spec: r.Spec}
}

func encodeMatch(m *weft.Match) *Match {
	return &Match{
		Name: m.Name,
		Path: encodeOptionalString(m.Path), Method: encodeOptionalString(m.Method),
		Scheme: encodeOptionalString(m.Scheme), Authority: encodeOptionalString(m.Authority),
		Headers: each(m.Headers, encodeNamedMatch), Query: each(m.Query, encodeNamedMatch),
	}
}

func encodeNamedMatch(m weft.NamedMatch) *NamedMatch {
	return &NamedMatch{Name: m.Name, Value: encodeString(m.Value), Invert: m.Invert}
}

func encodeOptionalString(m *weft.StringMatch) *StringMatch {
	if m == nil {
		return nil
	}
	return encodeString(*m)
}

func encodeString(m weft.StringMatch) *StringMatch {
	return &StringMatch{Kind: StringMatch_Kind(m.Kind), Value: m.Value, IgnoreCase: m.IgnoreCase}
}

func encodeHeaderOps(h *weft.HeaderOps) *HeaderOps {
	if h.Empty() {
		return nil
	}
	field := func(f weft.HeaderField) *HeaderField { return &HeaderField{Name: f.Name, Value: f.Value} }
	return &HeaderOps{Set: each(h.Set, field), Add: each(h.Add, field), Remove: h.Remove}
}

func encodePolicy(p *weft.TrafficPolicy) *TrafficPolicy {
	out := &TrafficPolicy{
		Source: encodeSource(p.Source), LoadBalancer: string(p.LoadBalancer),
		ConnectTimeout: encodeDuration(p.ConnectTimeout), IdleTimeout: encodeDuration(p.IdleTimeout),
		MaxConnections: p.MaxConnections, MaxPendingRequests: p.MaxPendingRequests,
		MaxRequests: p.MaxRequests, MaxRequestsPerConn: p.MaxRequestsPerConn,
		Http2: p.HTTP2, MaxStreams: p.MaxStreams, ProxyProtocol: uint32(p.ProxyProtocol),
		Hash: encodeHash(p.Hash), Locality: encodeLocality(p.Locality),
	}
	if s := p.SlowStart; s != nil {
		out.SlowStart = &SlowStart{Window: encodeDuration(s.Window), Aggression: s.Aggression, MinPercent: s.MinPercent}
	}
	if o := p.Outlier; o != nil {
		out.Outlier = &Outlier{
			Consecutive_5Xx: o.Consecutive5xx, ConsecutiveGateway: o.ConsecutiveGateway,
			Interval: encodeDuration(o.Interval), BaseEjection: encodeDuration(o.BaseEjection), MaxEjection: encodeDuration(o.MaxEjection),
			MaxEjectionPercent: o.MaxEjectionPercent, MinHealthPercent: o.MinHealthPercent,
			ConsecutiveLocal: o.ConsecutiveLocal,
		}
	}
	return out
}

func encodeHash(h *weft.Hash) *Hash {
	if h == nil {
		return nil
	}
	return &Hash{
		Header: h.Header, Query: h.Query, Cookie: h.Cookie, CookiePath: h.CookiePath, CookieTtl: encodeDuration(h.CookieTTL),
		SessionTtl: h.SessionTTL, SourceIp: h.SourceIP, RingSize: h.RingSize,
	}
}

func encodeLocality(l *weft.Locality) *Locality {
	if l == nil {
		return nil
	}
	return &Locality{
		Priority:   l.Priority,
		Distribute: each(l.Distribute, func(s weft.LocalityShares) *Locality_Shares { return &Locality_Shares{From: s.From, To: s.To} }),
		Failover:   each(l.Failover, func(f weft.LocalityFailover) *Locality_Failover { return &Locality_Failover{From: f.From, To: f.To} }),
	}
}

func encodePolicyOfAuthorization(p *weft.AuthorizationPolicy) *AuthorizationPolicy {
	out := &AuthorizationPolicy{Source: encodeSource(p.Source), Action: AuthorizationPolicy_Action(p.Action), DryRun: p.DryRun}
	for _, r := range p.Rules {
		out.Rules = append(out.Rules, &AuthorizationRule{
			From: each(r.From, func(m weft.SourceMatch) *SourceMatch {
				return &SourceMatch{Principals: encodeValues(m.Principals), Namespaces: encodeValues(m.Namespaces), Addresses: encodePrefixes(m.Addresses)}
			}),
			To: each(r.To, func(m weft.OperationMatch) *OperationMatch {
				return &OperationMatch{Methods: encodeValues(m.Methods), Paths: encodeValues(m.Paths), Hosts: encodeValues(m.Hosts), Ports: encodeValues(m.Ports)}
			}),
			When: each(r.When, func(c weft.Condition) *Condition { return &Condition{Key: c.Key, Values: encodeValues(c.Values)} }),
		})
	}
	return out
}

func encodeValues(v weft.Values) *Values {
	if v.Empty() {
		return nil
	}
	return &Values{Any: each(v.Any, encodeString), Not: each(v.Not, encodeString)}
}

func encodePrefixes(p weft.Prefixes) *Prefixes {
	if len(p.Any)+len(p.Not) == 0 {
		return nil
	}
	return &Prefixes{Any: each(p.Any, netip.Prefix.String), Not: each(p.Not, netip.Prefix.String)}
}
