package cluster

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/control/weftpb"
)

// Holder says how far this server's proxies are with a service.
type Holder interface {
	Holding(ctx context.Context, q control.Question) control.Holding
}

// Tell lets the other servers ask h. It is called before Register.
func (c *Cluster) Tell(h Holder) { c.holder = h }

// maxHolding is of an answer: of some ten thousand proxies.
const maxHolding = 16 << 20

// Others implements control.Others.
func (c *Cluster) Others() (names []string) {
	for _, s := range c.Servers() {
		if !s.Self {
			names = append(names, s.Name)
		}
	}
	return names
}

// Holding implements control.Others.
func (c *Cluster) Holding(ctx context.Context, server string, q control.Question) (control.Holding, error) {
	conn, err := c.connectionTo(server)
	if err != nil {
		return control.Holding{}, err
	}
	r, err := weftpb.NewServersClient(conn).Holding(ctx, control.EncodeQuestion(q, c.raw), grpc.MaxCallRecvMsgSize(maxHolding))
	if err != nil {
		return control.Holding{}, rpcFailure("ask", "server "+server, err)
	}
	return control.DecodeHolding(r), nil
}

func (c *Cluster) connectionTo(server string) (*grpc.ClientConn, error) {
	for _, s := range c.Servers() {
		if s.Name == server {
			return c.connection(s.ID)
		}
	}
	return nil, weft.Errorf(weft.NotFound, "ask", "server "+server, "it is no member any more")
}

// Holding answers another server.
func (s servers) Holding(ctx context.Context, r *weftpb.HoldingRequest) (*weftpb.HoldingResponse, error) {
	if err := s.cluster.admits(r.GetToken()); err != nil {
		return nil, err
	}
	if s.cluster.holder == nil {
		return nil, status.Error(codes.Unavailable, "this server does not know yet")
	}
	return control.EncodeHolding(s.cluster.holder.Holding(ctx, control.DecodeQuestion(r))), nil
}
