package control

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/weftpb"
)

// Followers tells a registry who has acknowledged what of a service. The registry is
// opened with it before the Control, which is opened with it too. Before that and
// after Close nobody follows anything. It implements registry.Followers.
type Followers struct {
	control atomic.Pointer[Control]
	never   chan struct{} // of a Followers without a Control: nil, which is never closed
}

func (f *Followers) attach(c *Control) {
	if f != nil {
		f.control.Store(c)
	}
}

func (f *Followers) detach(c *Control) {
	if f != nil {
		f.control.CompareAndSwap(c, nil)
	}
}

// Acked returns the names of the proxies that follow a service, of all servers: who
// has acknowledged its state at index or later, and for whom that is still to come. A
// server that has not said how far its proxies are is waited for itself. It does not
// block: the other servers are asked beside it, and AckChanged tells of their answers.
func (f *Followers) Acked(n weft.ServiceName, index uint64) (acked, waiting []string) {
	if c := f.control.Load(); c != nil {
		return c.acked(n, index)
	}
	return nil, nil
}

// AckChanged is closed when what Acked says of a service may be different.
func (f *Followers) AckChanged(n weft.ServiceName) <-chan struct{} {
	if c := f.control.Load(); c != nil {
		return c.ackChanged(n)
	}
	return f.never
}

// Others asks the other servers of a cluster. Its methods may be called from any
// goroutine.
type Others interface {
	// Others are the names of the other servers.
	Others() []string
	// Holding asks one of them. Its answer is a moment old.
	Holding(ctx context.Context, server string, q Question) (Holding, error)
}

// Question asks a server who of its proxies follows a service.
type Question struct {
	Service weft.ServiceName
	Index   uint64 // of the service
	// Patience, above 0, is how long the answer may wait for all proxies to have the
	// service at Index.
	Patience time.Duration
}

// Holding is how far the proxies of one server are with a service.
type Holding struct {
	Server   string
	Err      error  // why the server does not say; the rest is empty then
	Index    uint64 // of the service, on this server
	Known    uint64 // of the newest change of any instance that this server knows
	Watchers int    // readers that wait for the next change of the service
	Proxies  []Receipt
}

// Receipt is how far a proxy is with a service.
type Receipt struct {
	Name      string // "order-service.default/4f2a": service and id
	Identity  weft.Identity
	ID        string
	Role      string
	Address   string // its end of the control connection
	PID       int
	Connected bool      // else it was, some minutes ago at most
	Acked     uint64    // index of the service up to which it has acknowledged
	Since     time.Time // when it acknowledged that; of one that is not connected, when its stream ended
	Waiting   time.Time // since when a change is on its way to it; zero: none is
	Refused   string    // why it goes on with what it had before
}

// indexOf is the index of the newest change that an entry made now is compiled with.
func (c *Control) indexOf(key entryKey) uint64 {
	if n, ok := weftpb.ParseServiceResource(key.name); ok && key.typeURL == weftpb.EndpointsType {
		_, index := c.registry.Instances(n)
		return index
	}
	return c.index
}

// ackChanged is closed by ackMoved.
func (c *Control) ackChanged(n weft.ServiceName) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.acks[n] == nil {
		c.acks[n] = make(chan struct{})
	}
	return c.acks[n]
}

// ackMoved says that somebody may have come to have the changes of an entry's service,
// or may have gone. It is called under mu.
func (c *Control) ackMoved(e *entry) {
	if len(c.acks) == 0 || e == nil || e.key.typeURL != weftpb.EndpointsType {
		return
	}
	if n, ok := weftpb.ParseServiceResource(e.key.name); ok {
		c.tellWaiting(n)
	}
}

func (c *Control) tellWaiting(n weft.ServiceName) {
	if moved := c.acks[n]; moved != nil {
		close(moved)
		delete(c.acks, n)
	}
}

// nameOfProxy is how a proxy is named where others wait for it.
func nameOfProxy(key proxyKey) string {
	return weft.ServiceName{Namespace: key.identity.Namespace(), Name: key.identity.ServiceAccount()}.String() + "/" + key.id
}

// receipts are how far this server's proxies are with a service, sorted by name. It is
// called under mu.
func (c *Control) receipts(n weft.ServiceName) []Receipt {
	name := weftpb.ServiceResource(n)
	out := c.departures(n)
	if e := c.catalogue.entries[entryKey{typeURL: weftpb.EndpointsType, name: name}]; e != nil {
		// Of a proxy that has just come back the newer stream counts.
		newest := make(map[*proxy]*stream)
		for s := range e.streams {
			if old := newest[s.proxy]; old == nil || s.proxy.streams[old].since.Before(s.proxy.streams[s].since) {
				newest[s.proxy] = s
			}
		}
		for p, s := range newest {
			out = append(out, receiptOf(p, s, name))
		}
	}
	slices.SortFunc(out, func(a, b Receipt) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func receiptOf(p *proxy, s *stream, name string) Receipt {
	sub := s.types[weftpb.EndpointsType]
	in, n := sub.names[name], p.streams[s]
	r := Receipt{
		Name: nameOfProxy(p.key), Identity: p.key.identity, ID: p.key.id, Role: n.role, Address: n.address, PID: n.pid,
		Connected: true, Acked: in.has(), Since: in.at, Waiting: in.changed, Refused: in.refused,
	}
	if sub.flight != nil {
		if sent, under := sub.flight.sent[name]; under {
			if r.Waiting = sent.changed; r.Waiting.IsZero() { // it asked for it
				r.Waiting = sub.flight.since
			}
		}
	}
	return r
}

// holding is Holding of this server, as it is now.
func (c *Control) holding(n weft.ServiceName) Holding {
	h := Holding{Server: c.registry.LocalNode().Name, Watchers: c.registry.Watchers(n)}
	h.Known = c.known()
	_, h.Index = c.registry.Instances(n)
	c.mu.Lock()
	defer c.mu.Unlock()
	h.Proxies = c.receipts(n)
	return h
}

// Holding answers a question of another server.
func (c *Control) Holding(ctx context.Context, q Question) Holding {
	ctx, cancel := context.WithTimeout(ctx, q.Patience)
	defer cancel()
	for {
		moved := c.ackChanged(q.Service)
		h := c.holding(q.Service)
		if h.Index >= q.Index && !slices.ContainsFunc(h.Proxies, func(r Receipt) bool { return r.Connected && r.Acked < q.Index }) {
			return h
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return h
		case <-c.ctx.Done():
			return h
		}
	}
}

// Receipts asks all servers, this one first, how far their proxies are with a service.
// Those that do not answer within the deadline of ctx, or some seconds, say why.
func (c *Control) Receipts(ctx context.Context, n weft.ServiceName) []Holding {
	out := []Holding{c.holding(n)}
	if c.others == nil {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	servers := c.others.Others()
	out = slices.Grow(out, len(servers))[:1+len(servers)]
	var all sync.WaitGroup
	for i, server := range servers {
		all.Go(func() {
			h, err := c.others.Holding(ctx, server, Question{Service: n, Index: out[0].Index})
			h.Server, h.Err = server, err
			out[1+i] = h
		})
	}
	all.Wait()
	// Who is connected to one server was perhaps connected to another one before.
	here := make(map[string]bool)
	for _, h := range out {
		for _, r := range h.Proxies {
			here[r.Name] = here[r.Name] || r.Connected
		}
	}
	for i := range out {
		out[i].Proxies = slices.DeleteFunc(out[i].Proxies, func(r Receipt) bool { return !r.Connected && here[r.Name] })
	}
	return out
}

// acked sorts the followers of a service into those who have index, and the others.
func (c *Control) acked(n weft.ServiceName, index uint64) (acked, waiting []string) {
	have := make(map[string]bool)
	take := func(h *Holding) {
		for _, r := range h.Proxies {
			if r.Connected {
				have[r.Name] = have[r.Name] || r.Acked >= index
			}
		}
	}
	own := c.holding(n)
	take(&own)
	for server, h := range c.inquire(n, index) {
		if h != nil {
			take(h)
		}
		if h == nil || h.Index < index {
			waiting = append(waiting, "server "+server)
		}
	}
	for name, has := range have {
		if has {
			acked = append(acked, name)
		} else {
			waiting = append(waiting, name)
		}
	}
	return acked, waiting
}
