package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/weftmesh/weft"
)

// Registration makes an instance known. Service and Port must be given.
type Registration struct {
	Service   string `json:"service"`
	Namespace string `json:"namespace,omitempty"` // weft.DefaultNamespace when empty
	// ID is unique on the server's node. Empty: Register makes one of service,
	// version, process and port.
	ID       string            `json:"id,omitempty"`
	Address  string            `json:"address,omitempty"` // IP or host name; empty: where the registration comes from
	Port     int               `json:"port"`
	Protocol weft.Protocol     `json:"protocol,omitempty"`
	Tags     []string          `json:"tags,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Zone     string            `json:"zone,omitempty"`
	Weight   int               `json:"weight,omitempty"` // 0 is 1
	PID      int               `json:"pid,omitempty"`    // 0: Register takes this process's
	// TTL is how long the instance gets traffic without a sign of life: 1 s to 1 h,
	// 10 s when 0. Three go out in it.
	TTL weft.Duration `json:"ttl,omitempty"`
	Heartbeat
}

// Heartbeat is a sign of life, and what the instance says of itself.
type Heartbeat struct {
	Health weft.Health `json:"health"` // passing unless it says otherwise
	Output string      `json:"output,omitempty"`
}

// Leased is the answer to a Registration.
type Leased struct {
	ID    string        `json:"id"`
	Node  string        `json:"node"` // where the catalogue has it, whichever server renews it
	TTL   weft.Duration `json:"ttl"`
	Index uint64        `json:"index"` // at which every view has the instance
}

// Drained is the answer to the end of a lease.
type Drained struct {
	Index   uint64 `json:"index"`   // at which no view has the instance any more
	Waiting int    `json:"waiting"` // proxies that call the service and have not acknowledged it in time
}

const (
	defaultLease = 10 * time.Second
	closeDrain   = 10 * time.Second // for the leases that Close finds; the server waits 5 s for proxies
)

// Lease keeps an instance registered. Its methods may be called from any goroutine.
type Lease struct {
	client *Client // nil: a sidecar keeps the instance
	in     Registration
	ttl    time.Duration
	said   chan struct{} // holds one: beat changed
	end    context.CancelFunc
	done   chan struct{} // closed when keep has ended

	drain   sync.Once
	drained error

	mu   sync.Mutex
	beat Heartbeat
	node string // where the catalogue has it; empty before the first answer
}

// Register makes an instance of this process known, and keeps it registered until
// Drain, or until the client ends: also over a restart of the server, and when
// somebody has deregistered it meanwhile.
//
// Beside a sidecar the sidecar has registered the application as its service, and
// looks after it: for that service Register does nothing.
func (c *Client) Register(ctx context.Context, in Registration) (*Lease, error) {
	if c.sidecar != "" && in.Service == c.self {
		return &Lease{}, nil
	}
	if c.ctx.Err() != nil {
		return nil, &weft.Error{Kind: weft.Unavailable, Op: "register", Thing: "instance of " + in.Service, Err: errClosed}
	}
	in.PID = cmp.Or(in.PID, os.Getpid())
	if in.ID == "" {
		in.ID = in.Service
		if v := in.Labels["version"]; v != "" {
			in.ID += "-" + v
		}
		in.ID = fmt.Sprintf("%s-%d-%d", in.ID, in.PID, in.Port)
	}
	l := &Lease{client: c, in: in, said: make(chan struct{}, 1), done: make(chan struct{}), beat: in.Heartbeat}
	leased, err := l.register(ctx)
	if err != nil {
		if ctx.Err() != nil {
			l.takeBack()
		}
		return nil, err
	}
	l.ttl = leased.TTL.Std()
	if l.ttl <= 0 {
		l.ttl = defaultLease
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return nil, &weft.Error{Kind: weft.Unavailable, Op: "register", Thing: "instance " + in.ID, Err: errClosed}
	}
	if c.leases == nil {
		c.leases = make(map[*Lease]struct{})
	}
	c.leases[l] = struct{}{}
	keeping, end := context.WithCancel(c.ctx)
	l.end = end
	c.work.Go(func() { l.keep(keeping) })
	return l, nil
}

// takeBack ends a registration that the server may have and its caller gave up. Should
// it fail, the lease lapses.
func (l *Lease) takeBack() {
	c := l.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return
	}
	c.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), closeDrain)
		defer cancel()
		err := c.call(ctx, request{op: "drain", thing: l.thing(), method: http.MethodDelete, path: l.path("")}, nil)
		if err != nil && weft.KindOf(err) != weft.NotFound {
			c.log.Warn("a registration that was given up is not taken back; its lease lapses", "instance", l.in.ID, "error", err)
		}
	})
}

// ID of the instance; empty when a sidecar keeps it.
func (l *Lease) ID() string { return l.in.ID }

// SetHealth says how the instance is. It is told at once, and again with each sign
// of life.
func (l *Lease) SetHealth(h weft.Health, output string) {
	if l.client == nil {
		return
	}
	l.mu.Lock()
	l.beat = Heartbeat{h, output}
	l.mu.Unlock()
	select {
	case l.said <- struct{}{}:
	default:
	}
}

// Drain takes the instance out of every view, and returns when the proxies that
// call its service know: nobody who asks the mesh comes any more, and what is in
// flight can be finished. Then stop the server:
//
//	<-ctx.Done()        // SIGTERM
//	lease.Drain(patience)
//	server.Shutdown(patience)
//
// Without a server to tell, it returns the error; the lease then lapses. A second
// call returns what the first did.
func (l *Lease) Drain(ctx context.Context) error {
	if l.client == nil {
		return nil
	}
	l.drain.Do(func() {
		l.end()
		<-l.done // or the instance might be registered again
		c := l.client
		c.mu.Lock()
		delete(c.leases, l)
		c.mu.Unlock()
		l.drained = c.call(ctx, request{op: "drain", thing: l.thing(), method: http.MethodDelete, path: l.path("")}, &Drained{})
		if weft.KindOf(l.drained) == weft.NotFound {
			l.drained = nil // gone is what it wants to be
		}
	})
	return l.drained
}

func (l *Lease) thing() string { return "instance " + l.in.Service + "/" + l.in.ID }

func (l *Lease) path(below string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return "/api/instances/" + url.PathEscape(l.in.ID) + below + query("node", l.node)
}

func (l *Lease) register(ctx context.Context) (leased Leased, err error) {
	in := l.in
	in.Heartbeat = l.told()
	err = l.client.call(ctx, request{op: "register", thing: l.thing(), method: http.MethodPost, path: "/api/instances" + query("node", l.onNode("")), body: in}, &leased)
	l.onNode(leased.Node)
	return leased, err
}

// onNode remembers where the instance is, once that is known.
func (l *Lease) onNode(name string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.node = cmp.Or(l.node, name)
	return l.node
}

func (l *Lease) told() Heartbeat {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.beat
}

// keep sends signs of life until ctx ends. One that fails is followed by the next,
// in its turn or soon: there are three in a TTL.
func (l *Lease) keep(ctx context.Context) {
	defer close(l.done)
	interval := l.ttl / 3
	tick := time.NewTicker(interval)
	defer tick.Stop()
	lost := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.said:
		case <-tick.C:
		}
		patience, cancel := context.WithTimeout(ctx, max(interval, time.Second))
		err := l.renew(patience)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !lost:
			l.client.log.Warn("the instance cannot be kept registered; trying on", "instance", l.in.ID, "service", l.in.Service, "error", err)
		case err == nil && lost:
			l.client.log.Info("the instance is registered again", "instance", l.in.ID, "service", l.in.Service)
		}
		lost = err != nil
	}
}

// renew sends one sign of life, and registers the instance again when the server
// does not know it.
func (l *Lease) renew(ctx context.Context) error {
	err := l.client.call(ctx, request{op: "renew", thing: l.thing(), method: http.MethodPut,
		path: l.path("/heartbeat"), body: l.told()}, nil)
	if weft.KindOf(err) == weft.NotFound {
		_, err = l.register(ctx)
	}
	return err
}

// drainAll ends every lease.
func (c *Client) drainAll() error {
	c.mu.Lock()
	leases := make([]*Lease, 0, len(c.leases))
	for l := range c.leases {
		leases = append(leases, l)
	}
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), closeDrain)
	defer cancel()
	errs := make([]error, len(leases))
	var all sync.WaitGroup
	for i, l := range leases {
		all.Go(func() { errs[i] = l.Drain(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}
