package cluster

import (
	"context"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/control/weftpb"
	"github.com/weftmesh/weft/store"
)

// Register adds what servers ask of each other to the gRPC server of the control
// port. execute does a forwarded write.
func (c *Cluster) Register(g *grpc.Server, execute func(ctx context.Context, command []byte) []byte) {
	c.execute = execute
	weftpb.RegisterServersServer(g, servers{cluster: c})
}

// servers serves weft.control.v1.Servers.
type servers struct {
	weftpb.UnimplementedServersServer
	cluster *Cluster
}

func (c *Cluster) admits(token string) error {
	own := c.token.Load()
	shown, err := ca.ParseJoinToken(token)
	if err != nil || own == nil || !own.Admits(shown) {
		return status.Error(codes.PermissionDenied, `wrong server token: the right one is in the file "server-token" in a server's data directory`)
	}
	return nil
}

// Forward does a write that another server forwards.
func (s servers) Forward(ctx context.Context, r *weftpb.ForwardRequest) (*weftpb.ForwardResponse, error) {
	if err := s.cluster.admits(r.GetToken()); err != nil {
		return nil, err
	}
	return &weftpb.ForwardResponse{Answer: s.cluster.execute(ctx, r.GetCommand())}, nil
}

// Join makes a new server a member, and gives it what servers share.
func (s servers) Join(ctx context.Context, r *weftpb.ServerJoinRequest) (*weftpb.ServerJoinResponse, error) {
	c := s.cluster
	if err := c.admits(r.GetToken()); err != nil {
		c.log.Warn("cluster: a server was refused", "name", r.GetName(), "peer", r.GetPeer())
		return nil, err
	}
	if r.GetName() == "" || r.GetPeer() == "" {
		return nil, status.Error(codes.InvalidArgument, "a server that joins has a name and an address for its peers")
	}
	for _, m := range c.store.Members() {
		if m.Name == r.GetName() {
			return nil, status.Errorf(codes.FailedPrecondition,
				"there is a server %q already, at %s: choose another name (--node), or take that one out first (weft members remove %s)", m.Name, m.Peer, m.Name)
		}
	}
	out := &weftpb.ServerJoinResponse{}
	for _, f := range []struct {
		to   *[]byte
		path string
	}{
		{&out.PeerCa, c.file("ca.pem")}, {&out.PeerCaKey, c.file("ca.key")},
		{&out.SealKey, filepath.Join(c.config.Dir, "seal.key")}, {&out.JoinToken, filepath.Join(c.config.Dir, "join-token")},
	} {
		b, err := os.ReadFile(f.path)
		if err != nil {
			c.log.Error("cluster: a server could not join", "name", r.GetName(), "error", err)
			return nil, status.Error(codes.Internal, "this server cannot read what servers share; its log tells more")
		}
		*f.to = b
	}
	members, err := c.store.AddMember(ctx, store.Member{Name: r.GetName(), Peer: r.GetPeer()})
	if err != nil {
		c.log.Warn("cluster: a server could not join", "name", r.GetName(), "peer", r.GetPeer(), "error", err)
		return nil, status.Error(joinCode(err), err.Error())
	}
	for _, m := range members {
		out.Members = append(out.Members, &weftpb.ServerMember{Id: m.ID, Name: m.Name, Peer: m.Peer, Learner: m.Learner})
	}
	c.log.Info("cluster: a server joins", "name", r.GetName(), "peer", r.GetPeer())
	c.warnOfEven()
	return out, nil
}

func joinCode(err error) codes.Code {
	switch weft.KindOf(err) {
	case weft.Unavailable:
		return codes.Unavailable
	case weft.Invalid:
		return codes.InvalidArgument
	case weft.Conflict:
		return codes.FailedPrecondition
	}
	return codes.Internal
}
