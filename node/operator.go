package node

import (
	"bytes"
	"context"

	"github.com/prometheus/common/expfmt"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry/consul"
)

// consulServers are the servers of a cluster as Consul's operators see them.
type consulServers struct{ *Server }

// Servers implements consul.Cluster.
func (c consulServers) Servers() []consul.Server {
	var list []consul.Server
	for _, o := range c.cluster.Servers() {
		s := consul.Server{
			ID: o.Name, Name: o.Name, Address: o.Peer, API: o.Consul,
			Leader: o.Leader, Voter: !o.Learner, Healthy: o.Self || c.cluster.Reaches(o.ID),
		}
		if n, _, _ := c.registry.Node(o.Name); n != nil && n.ID != "" {
			s.ID = n.ID
		}
		list = append(list, s)
	}
	return list
}

// Remove implements consul.Cluster.
func (c consulServers) Remove(ctx context.Context, id string) error {
	for _, s := range c.Servers() {
		if s.ID == id {
			return c.cluster.Remove(ctx, s.Name)
		}
	}
	return weft.Errorf(weft.NotFound, "remove", "server "+id, "there is no such server")
}

// MoveLeader implements consul.Cluster.
func (c consulServers) MoveLeader(ctx context.Context, id string) error {
	const op, thing = "move", "leadership"
	switch {
	case id != "":
		return weft.Errorf(weft.Invalid, op, thing, "weft chooses who leads next; leave out the id")
	case !c.store.IsLeader():
		return weft.Errorf(weft.Unavailable, op, thing, "this server does not have it; ask the one that \"weft members\" calls the leader")
	}
	return c.store.MoveLeader(ctx)
}

// metricsText appends all metrics of this process in Prometheus's text format.
func (s *Server) metricsText(b *bytes.Buffer) error {
	families, err := gatherer(s.metrics).Gather()
	if err != nil {
		return err
	}
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(b, f); err != nil {
			return err
		}
	}
	return nil
}
