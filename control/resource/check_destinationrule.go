package resource

import (
	"fmt"

	networking "istio.io/api/networking/v1alpha3"
)

func checkDestinationRule(r *report, res *Resource) {
	spec := res.Spec.(*networking.DestinationRule)
	if spec.Host == "" {
		r.errorf("spec.host", "name the service", "host is empty")
	} else {
		r.host("spec.host", spec.Host)
	}
	r.exportTo(spec.ExportTo)
	r.trafficPolicy("spec.trafficPolicy", spec.TrafficPolicy)
	r.balance("spec.trafficPolicy.loadBalancer", spec.TrafficPolicy.GetLoadBalancer(), spec.TrafficPolicy.GetOutlierDetection() != nil)
	first := map[string]int{}
	for i, s := range spec.Subsets {
		path := fmt.Sprintf("spec.subsets[%d]", i)
		switch other, twice := first[s.Name]; {
		case s.Name == "":
			r.errorf(path+".name", "", "the subset has no name")
		case !label.MatchString(s.Name):
			r.errorf(path+".name", "write small letters, digits and \"-\", at most 63", "%q is no name of a subset", s.Name)
		case twice:
			r.errorf(path+".name", fmt.Sprintf("the first is on line %d", r.lines.line(fmt.Sprintf("spec.subsets[%d]", other))), "the subset %q is defined twice", s.Name)
		default:
			first[s.Name] = i
		}
		r.trafficPolicy(path+".trafficPolicy", s.TrafficPolicy)
		ejects := overlaid(spec.TrafficPolicy, s.TrafficPolicy).OutlierDetection != nil
		r.balance(path+".trafficPolicy.loadBalancer", s.TrafficPolicy.GetLoadBalancer(), ejects)
	}
}

func (r *report) trafficPolicy(path string, p *networking.TrafficPolicy) {
	if p == nil {
		return
	}
	if p.Tls != nil && p.Tls.Mode != networking.ClientTLSSettings_ISTIO_MUTUAL {
		r.unsupported(path+".tls", "leave it out: weft uses mTLS wherever a sidecar is", "tls of mode %s", p.Tls.Mode)
	}
	if tcp := p.ConnectionPool.GetTcp(); tcp != nil {
		r.notNegative(path+".connectionPool.tcp.maxConnections", tcp.MaxConnections)
		r.duration(path+".connectionPool.tcp.connectTimeout", tcp.ConnectTimeout, false)
	}
	if http := p.ConnectionPool.GetHttp(); http != nil {
		at := path + ".connectionPool.http."
		r.notNegative(at+"http1MaxPendingRequests", http.Http1MaxPendingRequests)
		r.notNegative(at+"http2MaxRequests", http.Http2MaxRequests)
		r.notNegative(at+"maxRequestsPerConnection", http.MaxRequestsPerConnection)
		r.notNegative(at+"maxConcurrentStreams", http.MaxConcurrentStreams)
		r.duration(at+"idleTimeout", http.IdleTimeout, true)
	}
	if p.OutlierDetection != nil {
		r.outlier(path+".outlierDetection.", p.OutlierDetection)
	}
}

func (r *report) outlier(at string, o *networking.OutlierDetection) {
	r.duration(at+"interval", o.Interval, false)
	r.duration(at+"baseEjectionTime", o.BaseEjectionTime, false)
	r.percent(at+"maxEjectionPercent", o.MaxEjectionPercent)
	r.percent(at+"minHealthPercent", o.MinHealthPercent)
	if o.ConsecutiveLocalOriginFailures != nil && !o.SplitExternalLocalOriginErrors {
		r.warnf(at+"consecutiveLocalOriginFailures", "write splitExternalLocalOriginErrors: true", "it has no effect: what fails here is counted with the answers")
	}
	compiled := compileOutlier(o)
	if compiled.ConsecutiveGateway > 0 && compiled.Consecutive5xx > 0 && compiled.ConsecutiveGateway >= compiled.Consecutive5xx {
		r.warnf(at+"consecutiveGatewayErrors", "write fewer", "it has no effect: consecutive5xxErrors (%d) counts the same errors and is not higher", compiled.Consecutive5xx)
	}
}
