//lint:file-ignore SA1019 what Istio calls deprecated stands in users' files

package resource

import (
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
)

// Bounds of tables for consistent hashing, Envoy's. Each proxy has a table for each
// service that it calls.
const (
	maxRingSize  = 8 << 20
	maxTableSize = 5_000_011
)

// balance checks how a policy chooses endpoints. ejects says whether the policy, or
// the one that it is laid over, has an outlierDetection.
func (r *report) balance(path string, lb *networking.LoadBalancerSettings, ejects bool) {
	if lb == nil {
		return
	}
	r.warmup(path, lb)
	if c := lb.GetConsistentHash(); c != nil {
		r.hash(path+".consistentHash", c)
		for field, written := range map[string]bool{"warmup": lb.Warmup != nil, "warmupDurationSecs": lb.WarmupDurationSecs != nil} {
			if written {
				r.warnf(path+"."+field, "leave one of them out", "it has no effect with consistentHash")
			}
		}
	}
	if s := lb.LocalityLbSetting; s != nil {
		r.locality(path+".localityLbSetting", s, ejects)
	}
}

func (r *report) hash(path string, c *networking.LoadBalancerSettings_ConsistentHashLB) {
	const mend = "write httpHeaderName, httpCookie, useSourceIp: true or httpQueryParameterName"
	switch key := c.HashKey.(type) {
	case nil:
		r.errorf(path, mend, "it does not say what of a request chooses the endpoint")
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		r.headerName(path+".httpHeaderName", key.HttpHeaderName)
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		at := path + ".httpCookie"
		if !token.MatchString(key.HttpCookie.GetName()) {
			r.errorf(at+".name", "", "%q is no name of a cookie", key.HttpCookie.GetName())
		}
		if strings.ContainsAny(key.HttpCookie.GetPath(), ";\r\n\x00") {
			r.errorf(at+".path", "", "%q is no path of a cookie", key.HttpCookie.GetPath())
		}
		if ttl := key.HttpCookie.GetTtl(); ttl.AsDuration() < 0 {
			r.errorf(at+".ttl", "write 0s for a cookie that lives as long as the browser", "%s is negative", ttl.AsDuration())
		}
	case *networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		if !key.UseSourceIp {
			r.errorf(path+".useSourceIp", mend, "false says nothing")
		}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		if key.HttpQueryParameterName == "" {
			r.errorf(path+".httpQueryParameterName", "", "the parameter has no name")
		}
	}
	ringSize := func(at string, size uint64) {
		if size > maxRingSize {
			r.errorf(at, fmt.Sprintf("write at most %d", maxRingSize), "%d points are too many", size)
		}
	}
	ringSize(path+".minimumRingSize", c.MinimumRingSize)
	if c.MinimumRingSize > 0 && c.HashAlgorithm != nil {
		r.warnf(path+".minimumRingSize", "leave it out", "it has no effect: the size is that of the algorithm that is named")
	}
	switch a := c.HashAlgorithm.(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_RingHash_:
		ringSize(path+".ringHash.minimumRingSize", a.RingHash.GetMinimumRingSize())
	case *networking.LoadBalancerSettings_ConsistentHashLB_Maglev:
		if n := a.Maglev.GetTableSize(); n > maxTableSize || n > 0 && !new(big.Int).SetUint64(n).ProbablyPrime(0) {
			r.errorf(path+".maglev.tableSize", fmt.Sprintf("write 65537, which is the default, or another prime, up to %d", maxTableSize), "%d does not fit", n)
		}
	}
}

func (r *report) warmup(path string, lb *networking.LoadBalancerSettings) {
	r.duration(path+".warmupDurationSecs", lb.WarmupDurationSecs, false)
	w := lb.Warmup
	if w == nil {
		return
	}
	at := path + ".warmup"
	if lb.WarmupDurationSecs != nil {
		r.errorf(path+".warmupDurationSecs", "keep warmup", "it cannot stand beside warmup")
	}
	if r.duration(at+".duration", w.Duration, false); w.Duration == nil {
		r.errorf(at, "write duration", "it does not say for how long")
	}
	if p := w.MinimumPercent; p != nil && (p.Value < 0 || p.Value > 100) {
		r.errorf(at+".minimumPercent", "write 0 to 100", "%v is no percentage", p.Value)
	}
	if a := w.Aggression; a != nil && a.Value < 1 {
		r.errorf(at+".aggression", "write 1 for an even growth, or more", "%v is less than 1", a.Value)
	}
}

func (r *report) locality(path string, s *networking.LocalityLoadBalancerSetting, ejects bool) {
	var written []string
	for _, f := range []struct {
		name string
		n    int
	}{{"distribute", len(s.Distribute)}, {"failover", len(s.Failover)}, {"failoverPriority", len(s.FailoverPriority)}} {
		if f.n > 0 {
			written = append(written, f.name)
		}
	}
	if len(written) > 1 {
		r.errorf(path+"."+written[1], "keep one", "%s cannot stand beside %s", written[0], anyOf(written[1:]))
	}
	from := map[string]bool{}
	for i, d := range s.Distribute {
		at := fmt.Sprintf("%s.distribute[%d]", path, i)
		r.shares(at, d)
		if from[d.From] {
			r.errorf(at+".from", "put them into one", "%q is written twice", d.From)
		}
		from[d.From] = true
	}
	for i, f := range s.Failover {
		at := fmt.Sprintf("%s.failover[%d]", path, i)
		r.region(at+".from", f.From)
		r.region(at+".to", f.To)
		if f.From == f.To && f.From != "" {
			r.errorf(at, "", "%s would stand in for itself", f.From)
		}
	}
	for i, name := range s.FailoverPriority {
		r.sharedLabel(fmt.Sprintf("%s.failoverPriority[%d]", path, i), name)
	}
	disabled := s.Enabled != nil && !s.Enabled.Value
	switch {
	case disabled && len(written) > 0:
		r.warnf(path+"."+written[0], "leave enabled out", "it has no effect: enabled is false")
	case !disabled && !ejects && len(s.Distribute) == 0:
		r.warnf(path, "write outlierDetection, too", "it has no effect: without outlierDetection nothing fails over")
	}
}

// topology are the labels that a proxy knows of itself, and of endpoints, by where
// they are.
var topology = []string{"topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"}

func (r *report) sharedLabel(path, label string) {
	key, value, valued := strings.Cut(label, "=")
	known := slices.Contains(topology, key)
	switch {
	case key == "" || valued && value == "":
		r.errorf(path, "write name=value", "%q is no label", label)
	case valued && known:
		r.unsupported(path, "write "+key+": an endpoint should be where the proxy is", "a value of %s", key)
	case !valued && !known:
		r.unsupported(path, "write "+key+"=value: a proxy knows where it is, and no other label of itself", "%s without a value", key)
	}
}

// shares checks what one place sends to others.
func (r *report) shares(path string, d *networking.LocalityLoadBalancerSetting_Distribute) {
	r.place(path+".from", d.From)
	sum := uint64(0)
	for _, to := range slices.Sorted(maps.Keys(d.To)) {
		at := path + ".to[" + to + "]"
		r.place(at, to)
		if n := d.To[to]; n == 0 || n > 100 {
			r.errorf(at, "write 1 to 100", "%d is no share in percent", n)
		}
		sum += uint64(d.To[to])
	}
	if sum != 100 {
		r.errorf(path+".to", "", "the shares come to %d %%, not to 100", sum)
	}
}

// place checks a locality: region, region/zone or region/zone/subzone, the last of
// which may be "*".
func (r *report) place(path, v string) {
	parts := strings.Split(v, "/")
	for i, p := range parts {
		wildcard := p == "*" && i == len(parts)-1
		if i > 2 || p == "" || strings.Contains(p, "*") && !wildcard {
			r.errorf(path, "write region, region/zone, region/zone/subzone or region/*", "%q is no place", v)
			return
		}
	}
}

func (r *report) region(path, v string) {
	if v == "" || strings.ContainsAny(v, "/*") {
		r.errorf(path, "write the region alone", "%q is no region", v)
	}
}

func (r *report) balancerAnnotation(at, value string, res *Resource) {
	rule, ok := res.Spec.(*networking.DestinationRule)
	switch {
	case !ok:
		r.errorf(at, "write it on a DestinationRule", "a %s chooses no endpoints", res.Kind)
	case weft.LoadBalancer(value) != weft.PeakEWMA:
		r.errorf(at, "write PEAK_EWMA; for what Istio has a word, write trafficPolicy.loadBalancer", "unknown value %q", value)
	case rule.TrafficPolicy.GetLoadBalancer().GetConsistentHash() != nil:
		r.errorf(at, "keep one", "it cannot stand beside consistentHash")
	}
}
