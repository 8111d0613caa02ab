package control

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft"
)

// proxyKey finds a proxy: several processes may have one identity.
type proxyKey struct {
	identity weft.Identity
	id       string // it made that itself, for its life
}

// proxy is a process with a stream or a lease. Guarded by Control.mu.
type proxy struct {
	key      proxyKey
	streams  map[*stream]connection
	leases   int
	workload *workload // nil: it has registered no instance
}

// workload is the instance that a sidecar stands before.
type workload struct {
	service weft.ServiceName // always that of the proxy's identity
	labels  map[string]string
}

// connection is what a stream's node said of itself. It is shown to people, and
// nothing is decided by it.
type connection struct {
	role, gateway, version, address string
	pid                             int
	since                           time.Time
}

// ProxyStatus is a connected proxy.
type ProxyStatus struct {
	ID        string           `json:"id"`
	Role      string           `json:"role"` // "sidecar" or "gateway"
	Gateway   string           `json:"gateway,omitempty"`
	Service   weft.ServiceName `json:"service"` // of its identity
	Identity  weft.Identity    `json:"identity"`
	PID       int              `json:"pid,omitempty"`
	Address   string           `json:"address"` // its end of the control connection
	Version   string           `json:"version"` // of its weft
	Connected time.Time        `json:"connected"`
	Applied   uint64           `json:"applied"` // it has acknowledged everything of its own up to this index
	Current   uint64           `json:"current"` // the control plane's index
	LastNack  string           `json:"lastNack,omitempty"`
}

// proxyOf finds or makes the record of a proxy.
func (c *Control) proxyOf(key proxyKey) *proxy {
	p := c.proxies[key]
	if p == nil {
		p = &proxy{key: key, streams: make(map[*stream]connection)}
		c.proxies[key] = p
	}
	return p
}

// forgetProxy drops the record of a proxy that has gone.
func (c *Control) forgetProxy(p *proxy) {
	if len(p.streams) == 0 && p.leases == 0 {
		delete(c.proxies, p.key)
	}
}

// Proxies returns the connected proxies, sorted by identity and id. Of a proxy
// that has just reconnected only the newer stream is shown.
func (c *Control) Proxies() []ProxyStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []ProxyStatus
	for key, p := range c.proxies {
		var newest ProxyStatus
		for s, n := range p.streams {
			if n.since.Before(newest.Connected) {
				continue
			}
			newest = ProxyStatus{
				ID: key.id, Role: n.role, Gateway: n.gateway, Identity: key.identity,
				Service: weft.ServiceName{Namespace: key.identity.Namespace(), Name: key.identity.ServiceAccount()},
				PID:     n.pid, Address: n.address, Version: n.version, Connected: n.since,
				Applied: s.applied(c.index), Current: c.index, LastNack: s.lastNack,
			}
		}
		if len(p.streams) > 0 {
			out = append(out, newest)
		}
	}
	slices.SortFunc(out, func(a, b ProxyStatus) int {
		return cmp.Or(strings.Compare(string(a.Identity), string(b.Identity)), strings.Compare(a.ID, b.ID))
	})
	return out
}

// gatewayNamespace is where the proxies of a gateway are: that of a connected one,
// else the one that the name says, else the default namespace.
func (c *Control) gatewayNamespace(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, p := range c.proxies {
		for _, n := range p.streams {
			if n.gateway == name {
				return key.identity.Namespace()
			}
		}
	}
	if namespace, _, ok := strings.Cut(name, "/"); ok {
		return namespace
	}
	return weft.DefaultNamespace
}

// deltaADS serves envoy.service.discovery.v3.AggregatedDiscoveryService.
type deltaADS struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	control *Control
}

// StreamAggregatedResources is the older protocol, which needs every resource of a
// type in each response: it is not offered.
func (a deltaADS) StreamAggregatedResources(discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return status.Error(codes.Unimplemented, "this server speaks delta ADS only")
}

// DeltaAggregatedResources serves one proxy until either side ends the stream.
func (a deltaADS) DeltaAggregatedResources(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	c := a.control
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
	s := c.enter(rpc.Context(), id, first.GetNode())
	defer c.leave(s)
	// At once: a proxy that has everything already gets no response to tell by that
	// it is connected.
	if err := rpc.SendHeader(nil); err != nil {
		return err
	}
	if err := c.request(s, first); err != nil {
		return err
	}
	return c.converse(rpc, s, requests)
}

// converse takes requests and sends what is pending. Send blocks while the proxy
// reads nothing; the connection's keepalive ends that when the proxy is gone.
func (c *Control) converse(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, s *stream, requests <-chan received[*discovery.DeltaDiscoveryRequest]) error {
	watch := time.NewTicker(c.patience.ack / 4)
	defer watch.Stop()
	for {
		select {
		case m := <-requests:
			if m.err != nil {
				return ended(m.err)
			}
			if err := c.request(s, m.value); err != nil {
				s.log.Warn("control: a proxy's stream is closed", "reason", err)
				return err
			}
		case <-s.kick:
			for r := c.next(s); r != nil; r = c.next(s) {
				if err := rpc.Send(r); err != nil {
					return err
				}
			}
		case <-watch.C:
			if err := c.stalled(s); err != nil {
				s.log.Warn("control: a proxy's stream is closed", "reason", err)
				return err
			}
		case <-rpc.Context().Done():
			return rpc.Context().Err()
		case <-c.ctx.Done():
			return rpcError(closedError())
		}
	}
}

// enter makes the stream of a proxy.
func (c *Control) enter(ctx context.Context, id weft.Identity, node *core.Node) *stream {
	meta := node.GetMetadata().GetFields()
	n := connection{
		role: meta["role"].GetStringValue(), gateway: meta["gateway"].GetStringValue(),
		version: meta["version"].GetStringValue(), pid: int(meta["pid"].GetNumberValue()),
		address: peerAddress(ctx), since: time.Now(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.proxyOf(proxyKey{identity: id, id: node.GetId()})
	delete(c.departed, p.key)
	s := newStream(p, id.Namespace(), c.log.With("proxy", id, "proxy_id", node.GetId(), "address", n.address))
	p.streams[s] = n
	return s
}

func peerAddress(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

// received is what a stream's reader hands over.
type received[T any] struct {
	value T
	err   error
}

// receive reads a stream in a goroutine, which ends with the stream: after the
// handler has returned at the latest; then it hands over nothing more. Close waits
// for it.
func receive[T any](c *Control, ctx context.Context, recv func() (T, error)) <-chan received[T] {
	out := make(chan received[T])
	c.work.Go(func() {
		for {
			v, err := recv()
			select {
			case out <- received[T]{v, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	return out
}

// nextOf waits for what the reader hands over, the end of the stream, or Close.
func nextOf[T any](c *Control, ctx context.Context, messages <-chan received[T]) (v T, err error) {
	select {
	case m := <-messages:
		return m.value, m.err
	case <-ctx.Done():
		return v, ctx.Err()
	case <-c.ctx.Done():
		return v, rpcError(closedError())
	}
}

func closedError() error {
	return &weft.Error{Kind: weft.Unavailable, Op: "serve", Thing: "control", Err: errors.New("the server stops; connect again")}
}
