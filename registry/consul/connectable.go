package consul

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// connectables find the instances by which a service is reached with Connect: the
// proxies before it, which are instances of other services, and those of its own that
// need none. They are brought up to date when they are asked, by the services that have
// changed since. The zero value is ready.
type connectables struct {
	mu      sync.Mutex
	at      uint64                                 // of InstancesTopic, when they were brought up to date
	floor   uint64                                 // the index of who is not reached, and the least of all
	by      map[weft.ServiceName]*reachable        // who is reached
	through map[weft.ServiceName]*connectedThrough // every service
}

// reachable is a service that is reached with Connect.
type reachable struct {
	index   uint64             // of InstancesTopic, when something of it changed last
	through []weft.ServiceName // the services whose instances it is reached through, sorted
}

// connectedThrough is what is reached through the instances of one service.
type connectedThrough struct {
	index     uint64 // of the service's topic
	connected []connected
}

type connected struct {
	in *weft.Instance
	to weft.ServiceName
}

// of returns the instances by which a service is reached, sorted by their service, node
// and id, with an index that moves when something of them has changed, and that of
// InstancesTopic.
func (c *connectables) of(r *registry.Registry, service weft.ServiceName) (list []*weft.Instance, index, topic uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if topic = r.Wait(context.Background(), registry.InstancesTopic(), 0); topic > c.at {
		c.update(r, topic)
	}
	to := c.by[service]
	if to == nil {
		return nil, c.floor, topic
	}
	for _, name := range to.through {
		for _, one := range c.through[name].connected {
			if one.to == service {
				list = append(list, one.in)
			}
		}
	}
	return list, max(to.index, c.floor), topic
}

// update looks at the services that have changed since it last did. What it finds may
// be newer than topic; it counts as of topic, so that what comes next is greater.
func (c *connectables) update(r *registry.Registry, topic uint64) {
	if c.through == nil {
		c.through, c.by = make(map[weft.ServiceName]*connectedThrough), make(map[weft.ServiceName]*reachable)
		c.floor = topic // what was there before a restart is forgotten
	}
	names, _ := r.ServiceNames()
	for _, name := range names {
		c.look(r, name, topic)
	}
	if len(c.through) > len(names) { // some have gone
		for name := range c.through {
			c.look(r, name, topic)
		}
	}
	c.at = topic
}

func (c *connectables) look(r *registry.Registry, name weft.ServiceName, topic uint64) {
	instances, index := r.Instances(name)
	was := c.through[name]
	switch {
	case was == nil && len(instances) == 0:
		return
	case was == nil:
		was = &connectedThrough{}
	case was.index == index:
		return
	}
	next := &connectedThrough{index: index, connected: connectedOf(instances, was.connected)}
	c.through[name] = next
	if len(instances) == 0 {
		delete(c.through, name)
	}
	reaches := next.reaches()
	for to := range was.reaches() {
		if !reaches[to] {
			c.leave(name, to, topic)
		}
	}
	for to := range reaches {
		c.enter(name, to, topic)
	}
}

func (c *connectables) enter(name, to weft.ServiceName, topic uint64) {
	s := c.by[to]
	if s == nil {
		s = &reachable{}
		c.by[to] = s
	}
	s.index = topic
	if at, found := slices.BinarySearchFunc(s.through, name, compareNames); !found {
		s.through = slices.Insert(s.through, at, name)
	}
}

// leave forgets a service that is not reached any more; its index stays as the floor of
// all.
func (c *connectables) leave(name, to weft.ServiceName, topic uint64) {
	s := c.by[to]
	s.index = topic
	if at, found := slices.BinarySearchFunc(s.through, name, compareNames); found {
		s.through = slices.Delete(s.through, at, at+1)
	}
	if len(s.through) == 0 {
		delete(c.by, to)
		c.floor = topic
	}
}

func (t *connectedThrough) reaches() map[weft.ServiceName]bool {
	out := make(map[weft.ServiceName]bool)
	for _, one := range t.connected {
		out[one.to] = true
	}
	return out
}

// connectedOf returns what is reached through instances. Those that it was found out of
// before are not read again: an instance never changes, another one takes its place.
func connectedOf(instances []*weft.Instance, before []connected) (out []connected) {
	known := make(map[*weft.Instance][]connected, len(before))
	for i, one := range before {
		known[one.in] = append(known[one.in], before[i])
	}
	for _, in := range instances {
		if was, ok := known[in]; ok {
			out = append(out, was...)
			continue
		}
		if in.Extra[dialect] == nil {
			continue
		}
		x := extraOf(in)
		native := x.Connect != nil && x.Connect.Native
		if native {
			out = append(out, connected{in, in.Service})
		}
		if x.Kind != connectProxy || x.Proxy == nil || native && x.Proxy.DestinationServiceName == in.Service.Name {
			continue
		}
		out = append(out, connected{in, weft.ServiceName{Namespace: in.Service.Namespace, Name: x.Proxy.DestinationServiceName}})
	}
	return out
}

func compareNames(a, b weft.ServiceName) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}
