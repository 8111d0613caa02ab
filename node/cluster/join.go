package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/control/weftpb"
	"github.com/weftmesh/weft/store"
)

// joinTimeout bounds the join: the cluster may be electing, and a member is only
// added when a majority has that on disk.
const joinTimeout = 30 * time.Second

// reachPatience is how long nobody may listen there: servers that are started
// together come up within it.
const reachPatience = 5 * time.Second

// joinOnce joins when the data directory has no state yet, and none was joined.
func (c *Cluster) joinOnce(ctx context.Context) error {
	if c.config.Join == "" {
		return nil
	}
	members, err := c.joinedMembers()
	if err != nil {
		return err
	}
	if members != nil {
		return nil // a restart
	}
	if _, err := os.Stat(filepath.Join(c.config.Dir, "state")); err == nil {
		return weft.Errorf(weft.Conflict, "join", "the cluster at "+c.config.Join,
			"the data directory %s has the state of a server already; use a new directory", c.config.Dir)
	}
	token, err := ca.ParseJoinToken(c.config.Token)
	if err != nil {
		return weft.Errorf(weft.Invalid, "join", "the cluster at "+c.config.Join,
			"no server token: %w; it is in the file %q of a server's data directory (--server-token-file)", err, "server-token")
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	r, err := c.askToJoin(ctx, token)
	if err != nil {
		return err
	}
	return c.keep(r)
}

func (c *Cluster) askToJoin(ctx context.Context, token ca.JoinToken) (*weftpb.ServerJoinResponse, error) {
	conn, err := dial(c.config.Join, token)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for began := time.Now(); ; {
		var served peer.Peer // known once there was a connection
		r, err := weftpb.NewServersClient(conn).Join(ctx, &weftpb.ServerJoinRequest{
			Token: c.config.Token, Name: c.config.Name, Peer: c.config.Peer,
		}, grpc.Peer(&served))
		switch {
		case err == nil:
			return r, nil
		case status.Code(err) != codes.Unavailable:
			return nil, c.joinFailure(err, "")
		case strings.Contains(err.Error(), "authentication handshake failed"):
			return nil, c.joinFailure(err, "; --join wants the control address (--control) of a server, and --server-token-file a token of the same mesh")
		case served.Addr == nil && time.Since(began) > reachPatience:
			return nil, c.joinFailure(err, "; is that server running, and is this its control address (--join)?")
		}
		timer := time.NewTimer(again)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, c.joinFailure(err, "; no server leads there, or the others cannot be reached")
		}
	}
}

func (c *Cluster) joinFailure(err error, mend string) error {
	why := status.Convert(err)
	return rpcFailure("join", "the cluster at "+c.config.Join, status.Error(why.Code(), why.Message()+mend))
}

// keep writes down what servers share, the members last: with them the join is done.
func (c *Cluster) keep(r *weftpb.ServerJoinResponse) error {
	for _, f := range []struct {
		path string
		b    []byte
	}{
		{filepath.Join(c.config.Dir, "seal.key"), r.GetSealKey()},
		{filepath.Join(c.config.Dir, "join-token"), r.GetJoinToken()},
		{TokenFile(c.config.Dir), []byte(c.config.Token + "\n")},
		{c.file("ca.key"), r.GetPeerCaKey()},
		{c.file("ca.pem"), r.GetPeerCa()},
	} {
		if err := writeFile(f.path, f.b); err != nil {
			return err
		}
	}
	members := make([]store.Member, len(r.GetMembers()))
	for i, m := range r.GetMembers() {
		members[i] = store.Member{ID: m.GetId(), Name: m.GetName(), Peer: m.GetPeer(), Learner: m.GetLearner()}
	}
	b, err := json.Marshal(members)
	if err != nil {
		return err
	}
	return writeFile(c.file("members.json"), b)
}

// dial connects to a server's control port, if it is of the mesh that the token is
// for.
func dial(address string, token ca.JoinToken) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(ca.JoinTLS(token.Pin()))), grpc.WithNoProxy(),
		grpc.WithConnectParams(reconnect), grpc.WithKeepaliveParams(alive))
	if err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "connect", Thing: "server " + address, Err: err}
	}
	return conn, nil
}

func rpcFailure(op, thing string, err error) error {
	kind := weft.Internal
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Aborted:
		kind = weft.Unavailable
	case codes.PermissionDenied, codes.Unauthenticated:
		kind = weft.Denied
	case codes.InvalidArgument:
		kind = weft.Invalid
	case codes.FailedPrecondition:
		kind = weft.Conflict
	}
	return &weft.Error{Kind: kind, Op: op, Thing: thing, Err: errors.New(status.Convert(err).Message())}
}
