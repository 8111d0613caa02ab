package node

import (
	"github.com/weftmesh/weft/control/subscribe"
	"github.com/weftmesh/weft/proxy"
)

// breakerChanged tells the server of a change of a circuit. It does not block: an
// exchange is waiting.
func (d *dataPlane) breakerChanged(e proxy.BreakerEvent) {
	d.mesh.BreakerChanged(subscribe.BreakerEvent{
		Time: e.Time, Target: e.Target, Policy: e.Policy, From: e.From, To: e.To, Reason: e.Reason,
		Calls: e.Calls, Failures: e.Failures, Slow: e.Slow,
	})
}

// breakers are the proxy's circuits, as the server is told of them.
func (d *dataPlane) breakers() []subscribe.Breaker {
	circuits := d.proxy.Breakers()
	out := make([]subscribe.Breaker, len(circuits))
	for i, b := range circuits {
		out[i] = subscribe.Breaker{
			Target: b.Target, Policy: b.Policy, State: b.State, Since: b.Since,
			Calls: b.Calls, Failures: b.Failures, Slow: b.Slow, FailureRate: b.FailureRate, SlowRate: b.SlowRate,
		}
	}
	return out
}

// observed is what the proxy saw of endpoints, as the server is told of it.
func (d *dataPlane) observed() []subscribe.Observation {
	seen := d.proxy.Observed()
	out := make([]subscribe.Observation, len(seen))
	for i, o := range seen {
		out[i] = subscribe.Observation{Endpoint: o.Endpoint, Failures: o.Failures, Successes: o.Successes, Kind: "connect"}
	}
	return out
}
