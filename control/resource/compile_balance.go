//lint:file-ignore SA1019 what Istio calls deprecated stands in users' files

package resource

import (
	"math"
	"strings"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
)

// balancerAnnotation names, on a DestinationRule, an algorithm for which Istio has
// no word. It takes the place of trafficPolicy.loadBalancer.simple, which a rule may
// keep for Istio to read; a subset that names an algorithm itself keeps that.
const balancerAnnotation = "weft.dev/load-balancer"

// named is the algorithm that the annotation of a DestinationRule names, or "".
func named(r *Resource) weft.LoadBalancer {
	return weft.LoadBalancer(r.Annotations[balancerAnnotation])
}

// ofSubset is the algorithm that takes the place of a subset's simple one.
func ofSubset(instead weft.LoadBalancer, lb *networking.LoadBalancerSettings) weft.LoadBalancer {
	if lb.GetLbPolicy() != nil {
		return ""
	}
	return instead
}

// compileBalance compiles how endpoints are chosen. instead takes the place of a
// simple algorithm; "" leaves it.
func compileBalance(out *weft.TrafficPolicy, p *networking.TrafficPolicy, instead weft.LoadBalancer) {
	lb := p.GetLoadBalancer()
	out.LoadBalancer = weft.LeastRequest
	switch lb.GetSimple() {
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		out.LoadBalancer = weft.RoundRobin
	case networking.LoadBalancerSettings_RANDOM:
		out.LoadBalancer = weft.Random
	}
	if instead != "" {
		out.LoadBalancer = instead
	}
	if c := lb.GetConsistentHash(); c != nil {
		out.LoadBalancer, out.Hash = compileHash(c)
	}
	if warms(out.LoadBalancer) {
		out.SlowStart = compileWarmup(lb)
	}
	out.Locality = compileLocality(lb.GetLocalityLbSetting(), p.GetOutlierDetection() != nil)
}

func compileHash(c *networking.LoadBalancerSettings_ConsistentHashLB) (weft.LoadBalancer, *weft.Hash) {
	cookie := c.GetHttpCookie()
	out := &weft.Hash{
		Header: strings.ToLower(c.GetHttpHeaderName()), Query: c.GetHttpQueryParameterName(), SourceIP: c.GetUseSourceIp(),
		Cookie: cookie.GetName(), CookiePath: cookie.GetPath(), CookieTTL: cookie.GetTtl().AsDuration(),
		SessionTTL: cookie.GetTtl() != nil && cookie.GetTtl().AsDuration() == 0,
	}
	switch a := c.HashAlgorithm.(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_Maglev:
		out.RingSize = uint32(a.Maglev.GetTableSize())
		return weft.Maglev, out
	case *networking.LoadBalancerSettings_ConsistentHashLB_RingHash_:
		out.RingSize = uint32(a.RingHash.GetMinimumRingSize())
	default:
		out.RingSize = uint32(c.MinimumRingSize)
	}
	return weft.RingHash, out
}

// warms reports whether an algorithm gives a new endpoint less than its share for a
// while. A hash does not: keys would move twice. Istio's RANDOM does not, either; ours
// does.
func warms(lb weft.LoadBalancer) bool { return lb != weft.RingHash && lb != weft.Maglev }

func compileWarmup(lb *networking.LoadBalancerSettings) *weft.SlowStart {
	w := lb.GetWarmup()
	switch {
	case w == nil && lb.GetWarmupDurationSecs() == nil:
		return nil
	case w == nil:
		return &weft.SlowStart{Window: lb.WarmupDurationSecs.AsDuration()}
	}
	out := &weft.SlowStart{Window: w.Duration.AsDuration(), Aggression: w.GetAggression().GetValue()}
	if w.MinimumPercent != nil {
		out.MinPercent = max(1, uint32(math.Ceil(w.MinimumPercent.Value))) // 0 would be the default
	}
	return out
}

// compileLocality returns nil where it does not matter which zone an endpoint is in.
// As in Istio an outlierDetection is enough to make it matter, and without one only
// shares do: who ejects nothing never has a reason to fail over.
func compileLocality(s *networking.LocalityLoadBalancerSetting, ejects bool) *weft.Locality {
	if s.GetEnabled() != nil && !s.Enabled.Value || !ejects && len(s.GetDistribute()) == 0 {
		return nil
	}
	out := &weft.Locality{Priority: s.GetFailoverPriority()}
	for _, d := range s.GetDistribute() {
		out.Distribute = append(out.Distribute, weft.LocalityShares{From: d.From, To: d.To})
	}
	for _, f := range s.GetFailover() {
		out.Failover = append(out.Failover, weft.LocalityFailover{From: f.From, To: f.To})
	}
	return out
}
