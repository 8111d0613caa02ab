package control

import (
	"context"

	"github.com/weftmesh/weft"
)

// Service returns a service as clients in namespace see it, with its endpoints;
// nil when nothing of that name is registered.
func (c *Control) Service(namespace string, n weft.ServiceName) *weft.Service {
	k := compiler{set: c.set.Load(), registry: c.registry}
	s := k.service(n, namespace)
	if s != nil {
		s.Endpoints, s.Index = c.registry.Endpoints(n)
	}
	return s
}

// Changed returns a channel that is closed when resources change next, after they
// are compiled. Who takes it before looking misses nothing.
func (c *Control) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.moved
}

// Drain takes an instance out of every view, and waits until the proxies that call
// its service have acknowledged that. waiting is how many have not when patience
// ends. An instance that is not there is drained already.
func (c *Control) Drain(ctx context.Context, in weft.Instance) (index uint64, waiting int, err error) {
	if err := c.begin(); err != nil {
		return 0, 0, err
	}
	defer c.work.Done()
	r, err := c.drain(ctx, in)
	if err != nil {
		return 0, 0, err
	}
	return r.GetIndex(), int(r.GetWaiting()), nil
}
