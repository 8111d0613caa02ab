package resource

import (
	"math"
	"time"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
)

// Istio's and Envoy's values for what an outlierDetection leaves out.
const (
	defaultConsecutive5xx     = 5
	defaultConsecutiveLocal   = 5
	defaultOutlierInterval    = 10 * time.Second
	defaultBaseEjection       = 30 * time.Second
	defaultMaxEjection        = 300 * time.Second // or the base, if that is longer
	defaultMaxEjectionPercent = 10
)

// overlaid is the policy of a subset: each block that it has replaces the
// rule's whole block.
func overlaid(rule, subset *networking.TrafficPolicy) *networking.TrafficPolicy {
	out := &networking.TrafficPolicy{
		LoadBalancer:     rule.GetLoadBalancer(),
		ConnectionPool:   rule.GetConnectionPool(),
		OutlierDetection: rule.GetOutlierDetection(),
		ProxyProtocol:    rule.GetProxyProtocol(),
	}
	if b := subset.GetLoadBalancer(); b != nil {
		out.LoadBalancer = b
	}
	if b := subset.GetConnectionPool(); b != nil {
		out.ConnectionPool = b
	}
	if b := subset.GetOutlierDetection(); b != nil {
		out.OutlierDetection = b
	}
	if b := subset.GetProxyProtocol(); b != nil {
		out.ProxyProtocol = b
	}
	return out
}

// compilePolicy leaves 0 what is left out or 0: that is weft's "no limit" and
// "default" as it is Istio's.
//
// instead is the algorithm that an annotation names, or "".
func compilePolicy(p *networking.TrafficPolicy, instead weft.LoadBalancer, source weft.SourceRef) weft.TrafficPolicy {
	out := weft.TrafficPolicy{Source: source}
	compileBalance(&out, p, instead)
	tcp, http := p.GetConnectionPool().GetTcp(), p.GetConnectionPool().GetHttp()
	out.ConnectTimeout = tcp.GetConnectTimeout().AsDuration()
	out.MaxConnections = uint32(tcp.GetMaxConnections())
	out.IdleTimeout = http.GetIdleTimeout().AsDuration()
	out.MaxPendingRequests = uint32(http.GetHttp1MaxPendingRequests())
	out.MaxRequests = uint32(http.GetHttp2MaxRequests())
	out.MaxRequestsPerConn = uint32(http.GetMaxRequestsPerConnection())
	out.HTTP2 = http.GetH2UpgradePolicy() == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE
	out.MaxStreams = uint32(http.GetMaxConcurrentStreams())
	out.Outlier = compileOutlier(p.GetOutlierDetection())
	if b := p.GetProxyProtocol(); b != nil {
		out.ProxyProtocol = 1
		if b.Version == networking.TrafficPolicy_ProxyProtocol_V2 {
			out.ProxyProtocol = 2
		}
	}
	return out
}

// compileOutlier returns nil for nil: without the block nothing is ejected.
func compileOutlier(o *networking.OutlierDetection) *weft.Outlier {
	if o == nil {
		return nil
	}
	out := &weft.Outlier{
		Consecutive5xx:     defaultConsecutive5xx,
		ConsecutiveGateway: o.GetConsecutiveGatewayErrors().GetValue(),
		Interval:           defaultOutlierInterval,
		BaseEjection:       defaultBaseEjection,
		MaxEjectionPercent: defaultMaxEjectionPercent,
		MinHealthPercent:   uint32(o.MinHealthPercent),
	}
	if n := o.Consecutive_5XxErrors; n != nil {
		out.Consecutive5xx = n.Value
	}
	if o.Interval != nil {
		out.Interval = o.Interval.AsDuration()
	}
	if o.BaseEjectionTime != nil {
		out.BaseEjection = o.BaseEjectionTime.AsDuration()
	}
	if o.MaxEjectionPercent > 0 {
		out.MaxEjectionPercent = uint32(o.MaxEjectionPercent)
	}
	out.MaxEjection = max(defaultMaxEjection, out.BaseEjection)
	if o.SplitExternalLocalOriginErrors {
		out.ConsecutiveLocal = defaultConsecutiveLocal
		if n := o.ConsecutiveLocalOriginFailures; n != nil {
			out.ConsecutiveLocal = n.Value
		}
		if out.ConsecutiveLocal == 0 {
			out.ConsecutiveLocal = math.MaxUint32 // apart, and never enough
		}
	}
	return out
}
