package weftgrpc

import (
	"context"
	"sync"

	"google.golang.org/grpc/resolver"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

type builder struct{ client *client.Client }

// Scheme implements resolver.Builder.
func (*builder) Scheme() string { return Scheme }

// Build implements resolver.Builder.
func (b *builder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	name := target.Endpoint()
	if target.URL.Host != "" {
		return nil, weft.Errorf(weft.Invalid, "dial", target.String(), "want %s:///%s, with three strokes: the name is no server's", Scheme, target.URL.Host)
	}
	if _, ok := weft.ParseHost(name, weft.DefaultNamespace); !ok {
		return nil, weft.Errorf(weft.Invalid, "dial", target.String(), "want a name such as %s:///order-service or %s:///order-service.shop", Scheme, Scheme)
	}
	if address := b.client.Sidecar(); address != "" {
		r := &follower{stop: func() {}}
		return r, cc.UpdateState(resolver.State{Addresses: []resolver.Address{with(resolver.Address{Addr: address}, &member{group: new(group)})}})
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &follower{client: b.client, name: name, cc: cc, stop: cancel, members: make(map[string]*member), group: new(group)}
	r.work.Go(func() { r.follow(ctx) })
	return r, nil
}

// follower tells one connection the endpoints of one service.
type follower struct {
	// constant
	client *client.Client
	name   string
	cc     resolver.ClientConn
	stop   context.CancelFunc
	work   sync.WaitGroup
	group  *group

	// of the goroutine that follows
	members map[string]*member // by address
}

// ResolveNow implements resolver.Resolver. News come by themselves.
func (*follower) ResolveNow(resolver.ResolveNowOptions) {}

// Close implements resolver.Resolver.
func (r *follower) Close() {
	r.stop()
	r.work.Wait()
}

func (r *follower) follow(ctx context.Context) {
	for state, err := range r.client.Watch(ctx, r.name) {
		switch {
		case err != nil:
			r.cc.ReportError(err)
		case state.Policy == "": // the server has never been there
			r.cc.ReportError(state.Problem())
		case !state.Stale:
			r.take(&state)
		}
	}
}

// take tells the connection a state. What the connection then says of it has been
// said to its callers.
func (r *follower) take(state *client.State) {
	r.group.algorithm.Store(uint32(state.Algorithm()))
	members := make(map[string]*member, len(state.Endpoints))
	var addresses []resolver.Address
	for i := range state.Endpoints {
		e := &state.Endpoints[i]
		if !e.Plain || members[e.Address] != nil {
			continue
		}
		m := r.members[e.Address]
		if m == nil {
			m = &member{group: r.group}
		}
		m.weight.Store(e.Weight)
		members[e.Address] = m
		addresses = append(addresses, with(resolver.Address{Addr: e.Address}, m))
	}
	none := len(r.members) == 0
	r.members = members
	if len(addresses) > 0 || !none {
		_ = r.cc.UpdateState(resolver.State{Addresses: addresses})
	}
	if len(addresses) == 0 { // after the state, which takes the old addresses away without a reason
		r.cc.ReportError(state.Problem())
	}
}
