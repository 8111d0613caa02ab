package control

import (
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/weftpb"
)

const (
	// departedFor is how long a proxy is remembered that was connected: it may run on
	// with what it has, or have ended.
	departedFor = 5 * time.Minute
	maxDeparted = 1000
	// maxFollowed is of how many services of such a proxy it is remembered how far it
	// was.
	maxFollowed = 1000
)

// departure is what a proxy had when its last stream ended. Guarded by Control.mu.
type departure struct {
	connection
	at    time.Time
	index map[weft.ServiceName]uint64 // acknowledged, of those that it followed
}

// depart remembers a stream that ends, if its proxy has no other one.
func (c *Control) depart(s *stream) {
	sub := s.types[weftpb.EndpointsType]
	if len(s.proxy.streams) > 1 || sub == nil {
		return
	}
	now := time.Now()
	for key, d := range c.departed {
		if now.Sub(d.at) > departedFor {
			delete(c.departed, key)
		}
	}
	if len(c.departed) >= maxDeparted {
		return
	}
	d := &departure{connection: s.proxy.streams[s], at: now, index: make(map[weft.ServiceName]uint64)}
	for name, in := range sub.names {
		if n, ok := weftpb.ParseServiceResource(name); ok && len(d.index) < maxFollowed {
			d.index[n] = in.has()
		}
	}
	c.departed[s.proxy.key] = d
}

// departures are the receipts of proxies that are not connected any more.
func (c *Control) departures(n weft.ServiceName) (out []Receipt) {
	for key, d := range c.departed {
		index, followed := d.index[n]
		if !followed || time.Since(d.at) > departedFor {
			continue
		}
		out = append(out, Receipt{
			Name: nameOfProxy(key), Identity: key.identity, ID: key.id, Role: d.role, Address: d.address, PID: d.pid,
			Acked: index, Since: d.at,
		})
	}
	return out
}
