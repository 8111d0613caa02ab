package consul

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

const (
	// serverDialect marks the instances of the service "consul": the servers
	// themselves. The agent's endpoints tell of its clients, and not of these.
	serverDialect = registry.ServerDialect
	serverID      = "consul"
	serverCheckID = "weft-server" // the lease of a server
	aliveCheckID  = "serfHealth"  // says that a node is there

	// serverLease is how long a server that died is taken for alive: several renewals,
	// so that a busy one is not taken for dead.
	serverLease = 5 * time.Second
	serverRenew = time.Second
)

var serverService = weft.NewServiceName("", "consul")

// Announcement makes a server known as an instance of the service "consul", under which
// Consul's clients find the servers, and its version with its node.
//
// The instance has a lease that the server itself renews, as any process does. So a
// server that died is critical when the lease ends, by the same clock and with the
// same care for pauses and elections as everything else; and its node, and what else
// is there, is not concerned, because checks are run by whichever server leads.
type Announcement struct {
	Registry *registry.Registry
	Address  string // host:port of the server's API
	Version  string // weft.Version when empty
	// Members are the nodes of all servers; none: they are not known now. The server
	// that writes takes out the instances of others. nil: nobody is taken out.
	Members func() []string
	Logger  *slog.Logger // nil discards
}

// Run keeps the server announced until ctx ends.
func (a *Announcement) Run(ctx context.Context) error {
	log := a.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	tick := time.NewTicker(serverRenew)
	defer tick.Stop()
	failing := false
	for {
		err := a.renew(ctx)
		if err == nil {
			err = a.tidy(ctx)
		}
		if err != nil && !failing && ctx.Err() == nil {
			log.Info("consul: this server is not announced; it is tried again", "reason", err)
		}
		failing = err != nil
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// renew renews the lease, and announces the server when it has none.
func (a *Announcement) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*serverRenew)
	defer cancel()
	own := weft.InstanceKey{Node: a.Registry.LocalNode().Name, ID: serverID}
	if in, _ := a.Registry.Instance(own); in != nil && in.Dialect == serverDialect {
		err := a.Registry.Report(a.actor(ctx), own.Node, serverCheckID, weft.Passing, serverAlive)
		if weft.KindOf(err) != weft.NotFound {
			return err
		}
	}
	return a.Announce(ctx)
}

const serverAlive = "the server is alive"

// Announce announces the server, until its lease ends. Run does that, too.
func (a *Announcement) Announce(ctx context.Context) error {
	ctx = a.actor(ctx)
	version := cmp.Or(a.Version, weft.Version)
	node := *a.Registry.LocalNode()
	nodeExtra{Version: version, Region: nodeExtraOf(&node).Region}.carry(&node)
	node.Checks = nil // as they are
	if _, err := a.Registry.RegisterNode(ctx, node); err != nil {
		return err
	}
	in := weft.Instance{
		ID: serverID, Service: serverService, Dialect: serverDialect,
		Labels: map[string]string{"version": version},
		Checks: []weft.Check{{
			ID: serverCheckID, Name: "Server", Kind: weft.LeaseCheck, TTL: weft.Duration(serverLease),
			Status: weft.Passing, Output: serverAlive,
		}},
	}
	if host, port, err := net.SplitHostPort(a.Address); err == nil {
		in.Port, _ = strconv.Atoi(port) // 0 when it is a name
		if ip, err := netip.ParseAddr(host); err == nil && !ip.IsUnspecified() && host != node.Address {
			in.Address = host
		}
	}
	_, err := a.Registry.Register(ctx, in)
	return err
}

func (a *Announcement) actor(ctx context.Context) context.Context {
	return registry.WithActor(ctx, "server "+a.Registry.LocalNode().Name)
}

// tidy takes out the servers that are no members any more, if this is the server that
// writes. One that was taken out may announce itself once more before it knows.
func (a *Announcement) tidy(ctx context.Context) error {
	if a.Members == nil || !a.Registry.Writes() {
		return nil
	}
	members := a.Members()
	if len(members) == 0 {
		return nil
	}
	instances, _ := a.Registry.Instances(serverService)
	for _, in := range instances {
		if in.Dialect != serverDialect || slices.Contains(members, in.Node) {
			continue
		}
		if _, err := a.Registry.Deregister(a.actor(ctx), in.Key()); err != nil && weft.KindOf(err) != weft.NotFound {
			return err
		}
	}
	return nil
}
