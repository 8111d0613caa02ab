package cluster

import (
	"context"
	"net"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/control/weftpb"
)

// Reaches reports whether a server could be reached when that was last tried. One
// that was never tried counts as reached.
func (c *Cluster) Reaches(id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := c.conns[c.book[id].Control]
	return conn == nil || conn.GetState() != connectivity.TransientFailure
}

// Answers asks a server whether it is there. The error says why that is not known.
func (c *Cluster) Answers(ctx context.Context, id uint64) error {
	conn, err := c.connection(id)
	if err != nil {
		return err
	}
	_, err = weftpb.NewServersClient(conn).Holding(ctx, control.EncodeQuestion(control.Question{}, c.raw))
	if code := status.Code(err); code == codes.Unavailable || code == codes.DeadlineExceeded {
		return rpcFailure("ask", "server "+c.nameOf(id), err)
	}
	return nil // whatever it says, it does
}

func (c *Cluster) nameOf(id uint64) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.book[id].Name
}

// reachable is a control address as the others reach it: of a door on every address
// of the machine it is that of the peers' door. Where only this machine reaches it
// the others could not forward what they are asked to write.
func reachable(controlAddr, peer string) (string, error) {
	host, port, err := net.SplitHostPort(controlAddr)
	if err != nil {
		return "", err
	}
	peerHost, _, err := net.SplitHostPort(peer)
	if err != nil {
		return "", err
	}
	switch ip := net.ParseIP(host); {
	case ip == nil:
	case ip.IsUnspecified():
		return net.JoinHostPort(peerHost, port), nil
	case ip.IsLoopback() && !loopback(peerHost):
		return "", weft.Errorf(weft.Invalid, "start", "server: --control "+controlAddr,
			"the other servers, which reach this one at %s, forward writes to its control address, and cannot reach that; set --control %s",
			peer, net.JoinHostPort(peerHost, port))
	}
	return controlAddr, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
