package consul

import (
	"context"
	"net"
	"strconv"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

const (
	// serverDialect marks the instances of the service "consul": the servers
	// themselves. The agent's endpoints tell of its clients, and not of these.
	serverDialect = "server"
	aliveCheckID  = "serfHealth" // says that a node is there
)

// Announce registers this server as an instance of the service "consul", under
// which Consul's clients find the servers, and its version with its node. address
// is the host:port of its API.
func Announce(ctx context.Context, r *registry.Registry, address, version string) error {
	node := *r.LocalNode()
	nodeExtra{Version: version, Region: nodeExtraOf(&node).Region}.carry(&node)
	node.Checks = nil // as they are
	if _, err := r.RegisterNode(ctx, node); err != nil {
		return err
	}
	in := weft.Instance{
		ID: "consul", Service: weft.NewServiceName("", "consul"), Dialect: serverDialect,
		Labels: map[string]string{"version": version},
	}
	if _, port, err := net.SplitHostPort(address); err == nil {
		in.Port, _ = strconv.Atoi(port) // 0 when it is a name
	}
	_, err := r.Register(ctx, in)
	return err
}
