package weftgrpc

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/resolver"

	"github.com/weftmesh/weft/balance"
)

// gRPC finds balancers by name in a list of the process, which may change only
// before main.
func init() {
	balancer.Register(base.NewBalancerBuilder(Scheme, builds{}, base.Config{}))
}

// group is what the members of one connection share.
type group struct{ algorithm atomic.Uint32 }

// member is an endpoint with what is known of it. To gRPC an address with another
// attribute is another address, so what changes is behind a pointer.
type member struct {
	group  *group
	weight atomic.Uint32
	target balance.Target
}

type memberKey struct{}

// with is an address that leads to a member.
func with(a resolver.Address, m *member) resolver.Address {
	a.Attributes = a.Attributes.WithValue(memberKey{}, m)
	return a
}

type builds struct{}

// Build implements base.PickerBuilder. It is called whenever an endpoint becomes
// ready or ceases to be, and with each state of the service.
func (builds) Build(info base.PickerBuildInfo) balancer.Picker {
	if len(info.ReadySCs) == 0 {
		return base.NewErrPicker(balancer.ErrNoSubConnAvailable)
	}
	p := &picker{}
	var list []balance.Member
	algorithm := balance.LeastRequest
	for sc, at := range info.ReadySCs {
		m, ok := at.Address.Attributes.Value(memberKey{}).(*member)
		if !ok { // of another resolver
			m = &member{group: new(group)}
		}
		algorithm = balance.Algorithm(m.group.algorithm.Load())
		p.connections, p.members = append(p.connections, sc), append(p.members, m)
		list = append(list, balance.Member{Target: &m.target, Weight: m.weight.Load()})
	}
	// Only what hashes, shares or starts slowly can be wrong, and here is none of it.
	p.picker, _ = balance.NewPicker(balance.Config{Algorithm: algorithm}, list)
	return p
}

// picker is one immutable set of ready endpoints.
type picker struct {
	connections []balancer.SubConn
	members     []*member
	picker      *balance.Picker
}

// Pick implements balancer.Picker.
func (p *picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	began := time.Now()
	tried, _ := info.Ctx.Value(triedKey{}).(*tried)
	q := balance.Query{Random: rand.Uint64(), Now: began.UnixNano(), Usable: func(i int) bool { return !tried.has(p.members[i]) }}
	i := p.picker.Pick(&q)
	if i < 0 { // all were tried
		q.Usable = nil
		i = p.picker.Pick(&q)
	}
	m := p.members[i]
	tried.add(m)
	m.target.Begin()
	return balancer.PickResult{SubConn: p.connections[i], Done: func(done balancer.DoneInfo) {
		m.target.End()
		if done.BytesReceived && (tried == nil || !tried.lasting) {
			now := time.Now()
			m.target.Observe(now.Sub(began), now.UnixNano())
		}
	}}, nil
}

// tried is what the attempts of one call have picked. A nil one is empty and stays it.
type tried struct {
	lasting bool // it is a stream, whose duration is no latency

	mu      sync.Mutex
	members []*member
}

type triedKey struct{}

// remembering makes the attempts under a context go to different endpoints.
func remembering(ctx context.Context, lasting bool) context.Context {
	return context.WithValue(ctx, triedKey{}, &tried{lasting: lasting})
}

func (t *tried) has(m *member) bool {
	if t == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Contains(t.members, m)
}

func (t *tried) add(m *member) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.members = append(t.members, m)
}
