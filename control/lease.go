package control

import (
	"context"
	"errors"
	"maps"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/weftpb"
	"github.com/weftmesh/weft/registry"
)

const (
	defaultLeaseTTL = 3 * time.Second
	minLeaseTTL     = time.Second
	maxLeaseTTL     = time.Hour
	// removeAfter is how long an instance whose lease lapsed is still listed, as
	// critical.
	removeAfter = 30 * time.Second
	maxOutput   = 4 << 10 // bytes of a health report, as package weft says
)

type leaseStream = grpc.BidiStreamingServer[weftpb.LeaseRequest, weftpb.LeaseResponse]

// Lease keeps one instance registered. When the stream ends without a drain
// nothing is done: the sidecar may be back before the lease lapses.
func (w workloads) Lease(rpc leaseStream) error {
	c := w.control
	if err := c.begin(); err != nil {
		return rpcError(err)
	}
	defer c.work.Done()
	id, err := identityOf(rpc.Context())
	if err != nil {
		return rpcError(err)
	}
	requests := receive(c, rpc.Context(), rpc.Recv)
	first, err := nextOf(c, rpc.Context(), requests)
	if err != nil {
		return ended(err)
	}
	register := first.GetRegister()
	if register == nil {
		return status.Error(codes.InvalidArgument, "the first message of a lease registers an instance")
	}
	ctx := registry.WithActor(rpc.Context(), sidecarOf(rpc.Context(), id, register))
	in, ttl, err := c.leased(ctx, id, register)
	if err != nil {
		return rpcError(err)
	}
	if register.GetProxy() != "" {
		p := c.hold(proxyKey{identity: id, id: register.GetProxy()}, &in)
		defer c.release(p)
		if err := c.enforced(ctx, p, &in); err != nil {
			return rpcError(err)
		}
	}
	index, err := c.registry.Register(ctx, in)
	if err != nil {
		return rpcError(err)
	}
	if err := rpc.Send(&weftpb.LeaseResponse{Index: index, Ttl: durationpb.New(ttl), Node: in.Node}); err != nil {
		return err
	}
	return c.keep(ctx, rpc, in, requests)
}

// sidecarOf names a sidecar for the registry's history: "sidecar of order-service v2
// at 10.0.0.7".
func sidecarOf(ctx context.Context, id weft.Identity, r *weftpb.LeaseRegister) string {
	name := "sidecar of " + id.ServiceAccount()
	if v := r.GetInstance().GetLabels()["version"]; v != "" {
		name += " " + v
	}
	if host, _, err := net.SplitHostPort(peerAddress(ctx)); err == nil {
		name += " at " + host
	}
	return name
}

// keep passes heartbeats on until the stream ends or the instance is drained. ctx is
// the stream's, and says who it is.
func (c *Control) keep(ctx context.Context, rpc leaseStream, in weft.Instance, requests <-chan received[*weftpb.LeaseRequest]) error {
	for {
		m, err := nextOf(c, ctx, requests)
		if err != nil {
			return ended(err)
		}
		if m.GetDrain() != nil {
			r, err := c.drain(ctx, in)
			if err != nil {
				return rpcError(err)
			}
			return rpc.Send(r)
		}
		beat := m.GetHeartbeat()
		if beat == nil {
			return status.Error(codes.InvalidArgument, "after the first message a lease has heartbeats and drain")
		}
		if err := c.beat(ctx, in, beat); err != nil {
			return rpcError(err)
		}
		if err := rpc.Send(&weftpb.LeaseResponse{}); err != nil {
			return err
		}
	}
}

// beat renews the lease, and passes on what the sidecar says of the application.
// NotFound means that somebody deregistered the instance. The sidecar, which knows
// better, registers it again when the stream ends.
func (c *Control) beat(ctx context.Context, in weft.Instance, beat *weftpb.LeaseHeartbeat) error {
	err := c.registry.Report(ctx, in.Node, in.Checks[0].ID, weft.Passing, leaseOutput)
	if err != nil {
		return err
	}
	return c.registry.Report(ctx, in.Node, in.Checks[1].ID, weftpb.DecodeHealth(beat.GetHealth()), clipped(beat.GetOutput()))
}

// leaseOutput is what the lease check tells while it is kept.
const leaseOutput = "the sidecar is there"

func clipped(output string) string { return output[:min(len(output), maxOutput)] }

// leased checks a registration against the certificate, and completes it.
func (c *Control) leased(ctx context.Context, id weft.Identity, r *weftpb.LeaseRegister) (in weft.Instance, ttl time.Duration, err error) {
	in, err = weftpb.DecodeInstance(r.GetInstance())
	if err != nil {
		return in, 0, err
	}
	if own := (weft.ServiceName{Namespace: id.Namespace(), Name: id.ServiceAccount()}); in.Service != own {
		return in, 0, weft.Errorf(weft.Denied, "register", "instance "+in.ID, "its service is %s, but the certificate is for %s", in.Service, own)
	}
	ttl = defaultLeaseTTL
	if r.GetTtl() != nil {
		ttl = r.GetTtl().AsDuration()
	}
	if ttl < minLeaseTTL || ttl > maxLeaseTTL {
		return in, 0, weft.Errorf(weft.Invalid, "register", "instance "+in.ID, "a TTL of %v; want %v to %v", ttl, minLeaseTTL, maxLeaseTTL)
	}
	if err := c.placed(ctx, &in); err != nil {
		return in, 0, err
	}
	if old, _ := c.registry.Instance(in.Key()); old != nil && (old.Service != in.Service || old.Identity != "" && old.Identity != id) {
		return in, 0, weft.Errorf(weft.Denied, "register", "instance "+in.ID, "node %s has an instance of this id already, of service %s", in.Node, old.Service)
	}
	in.Identity = id
	in.Dialect = "weft"
	if in.Protocol == "" {
		in.Protocol = weft.DeclaredProtocol(in.Labels, in.Tags)
	}
	// Two checks: an application that is unwell for long stays registered, as long
	// as its sidecar says so; one whose sidecar is gone does not.
	in.Checks = []weft.Check{{
		ID: "lease:" + in.ID, Name: "lease of the sidecar", Kind: weft.LeaseCheck, TTL: weft.Duration(ttl),
		DeregisterAfter: weft.Duration(removeAfter), Status: weft.Passing, Output: leaseOutput,
	}, {
		ID: "health:" + in.ID, Name: "health, by the sidecar", Kind: weft.TTLCheck, TTL: weft.Duration(ttl),
		Status: weftpb.DecodeHealth(r.GetHealth().GetHealth()), Output: clipped(r.GetHealth().GetOutput()),
	}}
	return in, ttl, nil
}

// placed makes sure that the instance's node is there: the server's own when none
// is named, else one at the address that the sidecar comes from.
func (c *Control) placed(ctx context.Context, in *weft.Instance) error {
	if in.Node == "" {
		in.Node = c.registry.LocalNode().Name
		return nil
	}
	if n, _, _ := c.registry.Node(in.Node); n != nil {
		return nil
	}
	host, _, err := net.SplitHostPort(peerAddress(ctx))
	if err != nil {
		return weft.Errorf(weft.Invalid, "register", "node "+in.Node, "there is no such node, and the address it calls from is not known")
	}
	_, err = c.registry.RegisterNode(ctx, weft.Node{Name: in.Node, Address: host})
	return err
}

// hold notes the workload of a proxy, so that its policies are known.
func (c *Control) hold(key proxyKey, in *weft.Instance) *proxy {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.proxyOf(key)
	p.leases++
	if p.workload == nil || !maps.Equal(p.workload.labels, in.Labels) {
		p.workload = &workload{service: in.Service, labels: in.Labels}
		c.rescope(p)
	}
	return p
}

// release ends hold. The workload stays while the proxy is connected: it goes on to
// enforce its policies until it is gone.
func (c *Control) release(p *proxy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.leases--
	c.forgetProxy(p)
}

// enforced waits until a proxy has applied the policies of the workload that it is
// about to register, so that no request comes in before them. One that comes back
// after a broken stream has them already.
func (c *Control) enforced(ctx context.Context, p *proxy, in *weft.Instance) error {
	if old, _ := c.registry.Instance(in.Key()); old != nil && maps.Equal(old.Labels, in.Labels) {
		return nil
	}
	left := c.await(ctx, func() (waiting int) {
		for s := range p.streams {
			if s.authorized() {
				return 0
			}
		}
		return 1
	})
	if left > 0 {
		return weft.Errorf(weft.Unavailable, "register", "instance "+in.ID, "its sidecar has not applied its policies within %v", c.patience.apply)
	}
	return nil
}

// authorized reports whether the proxy has acknowledged its Authorization as it is.
func (s *stream) authorized() bool {
	sub := s.types[weftpb.AuthorizationType]
	if sub == nil {
		return false
	}
	in := sub.names[weftpb.Self]
	return in != nil && in.entry != nil && in.acked >= in.entry.seq
}

// drain takes the instance out of every view, and waits until the proxies that
// call its service have acknowledged that; not longer than patience.apply.
func (c *Control) drain(ctx context.Context, in weft.Instance) (*weftpb.LeaseResponse, error) {
	index, err := c.registry.Deregister(ctx, in.Key())
	if err != nil && weft.KindOf(err) != weft.NotFound { // gone is what it wants to be
		return nil, err
	}
	if index == 0 {
		_, index = c.registry.Instances(in.Service)
	}
	patience, cancel := context.WithTimeout(ctx, c.patience.apply)
	defer cancel()
	_, waiting := c.registry.AwaitAcked(patience, in.Service, index)
	if len(waiting) > 0 {
		c.log.Warn("control: an instance is drained, but not everybody has acknowledged it", "instance", in.ID, "service", in.Service.String(), "waiting", waiting)
	}
	return &weftpb.LeaseResponse{Index: index, Waiting: uint32(len(waiting)), Drained: true}, nil
}

// await waits until waiting (called under mu) returns 0, and returns what it
// returned last when time is up.
func (c *Control) await(ctx context.Context, waiting func() int) int {
	ctx, cancel := context.WithTimeoutCause(ctx, c.patience.apply, errors.New("time is up"))
	defer cancel()
	for {
		c.mu.Lock()
		left := waiting()
		if left > 0 && c.settled == nil {
			c.settled = make(chan struct{})
		}
		settled := c.settled
		c.mu.Unlock()
		if left == 0 {
			return 0
		}
		select {
		case <-settled:
		case <-ctx.Done():
			return left
		case <-c.ctx.Done():
			return left
		}
	}
}
