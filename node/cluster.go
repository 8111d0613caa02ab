package node

import (
	"cmp"
	"context"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/client"
)

// members is a Server as the API sees it among others.
type members struct{ *Server }

// answerPatience is for a server to say that it is there.
const answerPatience = time.Second

// Servers implements api.Cluster.
func (m members) Servers(ctx context.Context) []client.Server {
	s := m.Server
	if s.cluster == nil {
		return []client.Server{{
			ID: strconv.FormatUint(s.store.ID(), 16), Name: s.registry.LocalNode().Name, Leader: true, Self: true,
			Control: s.doors.control.Addr().String(), API: s.doors.api.Addr().String(), Consul: s.doors.consul.Addr().String(),
		}}
	}
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	known := s.cluster.Servers()
	list := make([]client.Server, len(known))
	var asking sync.WaitGroup
	for i, o := range known {
		list[i] = client.Server{
			ID: strconv.FormatUint(o.ID, 16), Name: o.Name, Peer: o.Peer, Learner: o.Learner, Leader: o.Leader, Self: o.Self,
			Control: o.Control, API: o.API, Consul: o.Consul,
		}
		if !o.Self {
			asking.Go(func() {
				if err := s.cluster.Answers(ctx, o.ID); err != nil {
					list[i].Away = err.Error()
				}
			})
		}
	}
	asking.Wait()
	slices.SortFunc(list, func(a, b client.Server) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return list
}

// Remove implements api.Cluster.
func (m members) Remove(ctx context.Context, name string) error {
	if m.cluster == nil {
		return weft.Errorf(weft.Conflict, "remove", "server "+name, "this server is alone; there is no cluster to take one out of")
	}
	return m.cluster.Remove(ctx, name)
}

// Backup implements api.Cluster. The join token is in a file that only the owner of
// the data directory can read.
func (m members) Backup(ctx context.Context, token string, w io.Writer) error {
	own, err := ca.ParseJoinToken(m.token)
	if err != nil {
		return err
	}
	shown, err := ca.ParseJoinToken(token)
	if err != nil || !own.Admits(shown) {
		return weft.Errorf(weft.Denied, "back up", "server", `wrong token: a backup needs the one in the file "join-token" of this server's data directory`)
	}
	return m.store.Backup(ctx, w)
}
