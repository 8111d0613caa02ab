package control

import (
	"context"
	"math"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/weftpb"
	"github.com/weftmesh/weft/registry"
)

const (
	// maxSighted observations of a kind wait for the registry. Beyond, new ones are
	// dropped: proxies tell of what lasts again.
	maxSighted = 4096
	// sightTimeout bounds passing one on; an election may be under way.
	sightTimeout = 5 * time.Second
)

// sightings are what proxies saw of endpoints, on their way to the registry.
type sightings struct {
	failed, reached chan registry.Observation
}

func newSightings() sightings {
	return sightings{make(chan registry.Observation, maxSighted), make(chan registry.Observation, maxSighted)}
}

// sighted takes in what a proxy saw. Only what it says of services that it follows
// counts: nobody calls what he does not follow.
func (c *Control) sighted(of proxyKey, list []*weftpb.EndpointSeen) {
	for _, m := range list {
		key, ok := registry.EndpointKey(m.GetId())
		if !ok {
			continue
		}
		in, _ := c.registry.Instance(key)
		if in == nil || !c.follows(of, in.Service) {
			continue
		}
		to := c.seen.reached
		if m.GetFailures() > 0 {
			to = c.seen.failed
		}
		select {
		case to <- registry.Observation{
			Key: key, Observer: nameOfProxy(of), Kind: shown(m.GetKind()),
			Failures: int(min(m.GetFailures(), math.MaxInt32)), Successes: int(min(m.GetSuccesses(), math.MaxInt32)),
		}:
		default:
		}
	}
}

// follows reports whether a proxy is subscribed to the endpoints of a service.
func (c *Control) follows(key proxyKey, n weft.ServiceName) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.proxies[key]
	if p == nil {
		return false
	}
	for s := range p.streams {
		if sub := s.types[weftpb.EndpointsType]; sub != nil && sub.names[weftpb.ServiceResource(n)] != nil {
			return true
		}
	}
	return false
}

// passOn gives observations to the registry until Close, failures first.
func (c *Control) passOn() {
	for {
		var o registry.Observation
		select {
		case o = <-c.seen.failed:
		default:
			select {
			case o = <-c.seen.failed:
			case o = <-c.seen.reached:
			case <-c.ctx.Done():
				return
			}
		}
		ctx, cancel := context.WithTimeout(c.ctx, sightTimeout)
		_, err := c.registry.ReportEndpoint(ctx, o)
		cancel()
		if err != nil && c.ctx.Err() == nil && weft.KindOf(err) != weft.NotFound { // it was deregistered meanwhile
			c.log.Debug("control: what a proxy saw of an endpoint is lost", "endpoint", o.Key.Node+"/"+o.Key.ID, "proxy", o.Observer, "error", err)
		}
	}
}
