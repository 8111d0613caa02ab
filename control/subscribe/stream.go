package subscribe

import (
	"context"
	"crypto/x509"
	"slices"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/weftmesh/weft"
)

const (
	reconnectLimit = 5 * time.Second
	// requestNames bounds the names of one request, well below the 4 MiB that the
	// server reads.
	requestNames = 2000
	// responseQueue is more than the server sends without an ACK: one of each type.
	// So the reader never waits for the sender, which may be waiting for the server.
	responseQueue = 16
)

type adsStream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

// follow keeps a delta ADS stream open until Close.
func (c *Client) follow() {
	failures := 0
	for c.ctx.Err() == nil {
		heard, err := c.converse()
		wasConnected := c.connected.Swap(false)
		if c.ctx.Err() != nil {
			return
		}
		if heard {
			failures = 0
		}
		if wasConnected || failures == 0 {
			c.log.Warn("the control plane is away; going on with what it told last", "server", c.config.Server, "error", err)
		}
		if !pause(c.ctx, retryAfter(failures, reconnectLimit)) {
			return
		}
		failures++
		c.conn.ResetConnectBackoff()
	}
}

// converse runs one stream. heard says whether the server took it.
func (c *Client) converse() (heard bool, err error) {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(c.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return false, err
	}
	in := incoming{opened: make(chan struct{}), responses: make(chan *discovery.DeltaDiscoveryResponse, responseQueue), broken: make(chan error, 1)}
	ended := make(chan struct{})
	go func() { defer close(ended); in.read(ctx, stream) }()
	defer func() { cancel(); <-ended }()
	requests := c.opening()
	requests[0].Node = c.node()
	for {
		for _, r := range requests {
			if err := stream.Send(r); err != nil {
				return heard, in.reason() // Send says only EOF
			}
		}
		requests = nil
		select {
		case <-in.opened:
			in.opened, heard = nil, true
			c.connected.Store(true)
			c.log.Info("following the control plane", "server", c.config.Server)
		case r := <-in.responses:
			requests = append(requests, c.take(r))
		case <-c.kick:
		case err := <-in.broken:
			return heard, err
		}
		requests = append(requests, c.asking()...)
	}
}

// incoming is what the reader of a stream tells.
type incoming struct {
	opened    chan struct{} // closed when the server has taken the stream
	responses chan *discovery.DeltaDiscoveryResponse
	broken    chan error // holds one: the stream has ended
}

// reason is why the stream broke. What it brought before does not matter any more.
func (in incoming) reason() error {
	for {
		select {
		case <-in.responses:
		case err := <-in.broken:
			return err
		}
	}
}

// read hands responses over until the stream breaks.
func (in incoming) read(ctx context.Context, stream adsStream) {
	if _, err := stream.Header(); err == nil {
		close(in.opened)
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			in.broken <- err
			return
		}
		select {
		case in.responses <- r:
		case <-ctx.Done():
			in.broken <- ctx.Err()
			return
		}
	}
}

func (c *Client) node() *core.Node {
	return &core.Node{Id: c.id, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		"role":    structpb.NewStringValue(string(c.config.Role)),
		"gateway": structpb.NewStringValue(c.config.GatewayName),
		"version": structpb.NewStringValue(c.config.Version),
		"pid":     structpb.NewNumberValue(float64(c.config.PID)),
	}}}
}

// take applies a response, and makes the request that acknowledges or refuses it.
func (c *Client) take(r *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryRequest {
	c.mu.Lock()
	bad := c.state.take(r, c.setRoots)
	c.mu.Unlock()
	c.publish()
	ack := &discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	if len(bad) > 0 {
		c.log.Error("refusing configuration; the last good one stays", "type", r.GetTypeUrl(), "reason", bad.reason())
		ack.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: bad.reason()}
	}
	return ack
}

func (c *Client) setRoots(trustDomain string, roots []*x509.Certificate) error {
	if own := c.Identity().TrustDomain(); trustDomain != own {
		return weft.Errorf(weft.Denied, "set roots", trustDomain, "this proxy belongs to the trust domain %s", own)
	}
	return c.credentials.SetRoots(roots)
}

// opening makes the requests that begin a stream: every subscription, with the
// versions that are held already.
func (c *Client) opening() []*discovery.DeltaDiscoveryRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*discovery.DeltaDiscoveryRequest
	for _, typeURL := range c.state.types() {
		n := c.state.names[typeURL]
		clear(n.subscribe)
		clear(n.unsubscribe)
		for chunk := range slices.Chunk(keys(n.all), requestNames) {
			r := &discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: chunk, InitialResourceVersions: make(map[string]string)}
			for _, name := range chunk {
				for _, held := range c.state.held(typeURL, name) {
					if v := c.state.versionOf(typeURL, held); v != "" {
						r.InitialResourceVersions[held] = v
					}
				}
			}
			out = append(out, r)
		}
	}
	return out
}

// asking makes the requests for what has come to be wanted, or is wanted no more.
func (c *Client) asking() []*discovery.DeltaDiscoveryRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*discovery.DeltaDiscoveryRequest
	for _, typeURL := range c.state.types() {
		n := c.state.names[typeURL]
		for chunk := range slices.Chunk(keys(n.unsubscribe), requestNames) {
			out = append(out, &discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesUnsubscribe: chunk})
		}
		for chunk := range slices.Chunk(keys(n.subscribe), requestNames) {
			out = append(out, &discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: chunk})
		}
		clear(n.subscribe)
		clear(n.unsubscribe)
	}
	return out
}

// keys sorts, so that the same wishes make the same requests.
func keys(set map[string]struct{}) []string {
	out := make([]string, 0, len(set))
	for name := range set {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
