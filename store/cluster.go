package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/pkg/v3/featuregate"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/etcd/server/v3/features"

	"github.com/weftmesh/weft"
)

// Cluster says how a member finds and meets the others.
type Cluster struct {
	Name      string // unique per member; kept in the directory, so that a restart needs none
	Listen    string // host:port for the other members, with mutual TLS
	Advertise string // host:port that the others reach it by; Listen when empty

	// PEM files for both directions. The certificate names the host of Advertise;
	// who has one by the same authority is let in. They are read again for each
	// handshake.
	CertFile, KeyFile, CAFile string

	// Join is what AddMember returned for a new member. Nil for the first start of
	// the first member, and for restarts.
	Join []Member
}

// Member is one of a cluster.
type Member struct {
	ID      uint64
	Name    string // empty until its first start
	Peer    string // host:port
	Learner bool   // follows, but does not vote yet
	Leader  bool
}

func (c *Cluster) validate() error {
	invalid := func(format string, args ...any) error {
		return weft.Errorf(weft.Invalid, "open", "cluster", format, args...)
	}
	if c.Name != "" && strings.ContainsAny(c.Name, "=, \t\r\n/") {
		return invalid("the member's name %q may not contain = , / or white space", c.Name)
	}
	for what, addr := range map[string]string{"listen": c.Listen, "advertised": c.advertise()} {
		host, port, err := net.SplitHostPort(addr)
		if err != nil || port == "" || what == "advertised" && (host == "" || port == "0") {
			return invalid("the %s address %q is not host:port", what, addr)
		}
	}
	if c.CertFile == "" || c.KeyFile == "" || c.CAFile == "" {
		return invalid("the members speak mutual TLS: a certificate, its key and an authority are needed")
	}
	return nil
}

func (c *Cluster) advertise() string {
	if c.Advertise == "" {
		return c.Listen
	}
	return c.Advertise
}

func peerURL(addr string) url.URL { return url.URL{Scheme: "https", Host: addr} }

// configure makes an etcd member that meets others out of one that is alone.
func (c *Cluster) configure(cfg *embed.Config, name string) error {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return err
	}
	if host == "" {
		host = "0.0.0.0"
	}
	cfg.Name = name
	cfg.ListenPeerUrls = []url.URL{peerURL(net.JoinHostPort(host, port))}
	cfg.AdvertisePeerUrls = []url.URL{peerURL(c.advertise())}
	cfg.InitialCluster = cfg.InitialClusterFromName(name)
	cfg.PeerTLSInfo.CertFile, cfg.PeerTLSInfo.KeyFile = c.CertFile, c.KeyFile
	cfg.PeerTLSInfo.TrustedCAFile = c.CAFile
	cfg.PeerTLSInfo.ClientCertAuth = true
	// A member may dial from another address than it is reached by.
	cfg.PeerTLSInfo.SkipClientSANVerify = true
	cfg.TlsMinVersion = "TLS1.3"

	cfg.TickMs, cfg.ElectionMs = 100, 1000
	// A follower that was away for less than this many entries needs no copy of the
	// whole database. The leader has them in memory.
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 2000, 2000
	// What a safe change of members is, AddMember and RemoveMember decide: etcd's own
	// check wants everybody to have been up for five seconds.
	cfg.StrictReconfigCheck = false
	cfg.MaxLearners = 4
	if err := compareWithPeers(cfg); err != nil {
		return err
	}

	if len(c.Join) == 0 {
		return nil
	}
	var parts []string
	for _, m := range c.Join {
		n := m.Name
		if n == "" || m.Peer == c.advertise() {
			n = fmt.Sprintf("%x", m.ID) // etcd compares the addresses, not the names
		}
		if m.Peer == c.advertise() {
			n = name
		}
		u := peerURL(m.Peer)
		parts = append(parts, n+"="+u.String())
	}
	cfg.InitialCluster = strings.Join(parts, ",")
	cfg.ClusterState = embed.ClusterStateFlagExisting
	return nil
}

// compareWithPeers turns on what finds members whose data differ. The first check walks
// all keys at start; the second compares every minute what was compacted.
func compareWithPeers(cfg *embed.Config) error {
	gate := features.NewDefaultServerFeatureGate(cfg.Name, nil)
	on := fmt.Sprintf("%s=true,%s=true", features.InitialCorruptCheck, features.CompactHashCheck)
	if err := gate.(featuregate.MutableFeatureGate).Set(on); err != nil {
		return fmt.Errorf("turn the corruption checks on: %w", err)
	}
	cfg.ServerFeatureGate = gate
	return nil
}

// Members lists the members as this one knows them, sorted by name.
func (s *Store) Members() []Member { return s.members(s.server.Cluster().Members()) }

func (s *Store) members(list []*membership.Member) []Member {
	leader := s.Leader()
	out := make([]Member, len(list))
	for i, m := range list {
		out[i] = Member{ID: uint64(m.ID), Name: m.Name, Learner: m.IsLearner, Leader: uint64(m.ID) == leader}
		if len(m.PeerURLs) > 0 {
			out[i].Peer = m.PeerURLs[0][strings.Index(m.PeerURLs[0], "//")+2:]
		}
	}
	slices.SortFunc(out, func(a, b Member) int {
		if a.Name != b.Name {
			return strings.Compare(a.Name, b.Name)
		}
		return strings.Compare(a.Peer, b.Peer)
	})
	return out
}

// AddMember lets m (Name and Peer are used) into the cluster, and returns the list
// that it starts with, as Cluster.Join. It follows without a vote until it has
// caught up, so that writes do not wait for it; then it makes itself a voter. To ask
// again for a member that has not started yet is no mistake.
func (s *Store) AddMember(ctx context.Context, m Member) ([]Member, error) {
	thing := "member " + m.Name + " at " + m.Peer
	if s.peers == nil {
		return nil, weft.Errorf(weft.Invalid, "add", thing, "this store is alone; start it with an address for other members")
	}
	if _, _, err := net.SplitHostPort(m.Peer); err != nil || m.Name == "" {
		return nil, weft.Errorf(weft.Invalid, "add", thing, "a member has a name and an address host:port")
	}
	for _, have := range s.Members() {
		switch {
		case have.Peer == m.Peer && have.Name == "":
			return s.named(s.Members(), m), nil
		case have.Peer == m.Peer || have.Name == m.Name:
			return nil, weft.Errorf(weft.Conflict, "add", thing,
				"member %s at %s (%x) is there already; remove it first if its data is lost", have.Name, have.Peer, have.ID)
		}
	}
	u := peerURL(m.Peer)
	now := time.Now()
	learner := membership.NewMemberAsLearner("", types.URLs{u}, "", &now)
	list, err := s.change(ctx, func(ctx context.Context) ([]*membership.Member, error) {
		return s.server.AddMember(ctx, *learner)
	})
	if err != nil {
		return nil, s.memberError("add", thing, err)
	}
	return s.named(s.members(list), m), nil
}

// named fills the name of a member in that etcd learns at its first start.
func (s *Store) named(list []Member, m Member) []Member {
	for i := range list {
		if list[i].Peer == m.Peer {
			list[i].Name = m.Name
		}
	}
	return list
}

// PromoteMember gives a member that has caught up its vote. Members do this for
// themselves.
func (s *Store) PromoteMember(ctx context.Context, id uint64) error {
	if m := s.server.Cluster().Member(types.ID(id)); m != nil && !m.IsLearner {
		return s.memberError("promote", s.memberName(id), membership.ErrMemberNotLearner)
	}
	_, err := s.change(ctx, func(ctx context.Context) ([]*membership.Member, error) {
		return s.server.PromoteMember(ctx, id)
	})
	if err != nil {
		return s.memberError("promote", s.memberName(id), err)
	}
	return nil
}

// RemoveMember takes a member out for good: its store ends, and its directory is of
// no use any more. It refuses when those who can be reached would not be enough to
// go on.
func (s *Store) RemoveMember(ctx context.Context, id uint64) error {
	thing := s.memberName(id)
	if err := s.mayRemove(ctx, id, thing); err != nil {
		return err
	}
	if err := s.handOverFrom(ctx, id); err != nil {
		return err
	}
	_, err := s.change(ctx, func(ctx context.Context) ([]*membership.Member, error) {
		return s.server.RemoveMember(ctx, id)
	})
	if err != nil && id == s.ID() && s.wasRemoved() {
		return nil
	}
	if err != nil {
		return s.memberError("remove", thing, err)
	}
	return nil
}

// handOverFrom lets a member that is to go and leads hand over first, so that what is
// being written is not cut short. One that does not answer cannot, and is replaced
// anyway.
func (s *Store) handOverFrom(ctx context.Context, id uint64) error {
	switch {
	case id != s.Leader():
		return nil
	case id == s.ID():
		return s.MoveLeader(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	if err := s.moveFrom(ctx, id); err != nil {
		s.log.Debug("store: who is removed did not hand over", "member", s.memberName(id), "error", err)
	}
	return nil
}

// handOverTimeout is long for a hand-over, which takes some round trips, and is lost
// when the leader does not answer.
const handOverTimeout = 2 * time.Second

// wasRemoved waits for this member's own end, which may be faster than the answer, or
// come instead of it: who is out is told no more, until it asks.
func (s *Store) wasRemoved() bool {
	late := time.NewTimer(callTimeout)
	defer late.Stop()
	select {
	case <-s.done:
	case <-late.C:
	}
	return errors.Is(s.Err(), ErrRemoved)
}

func (s *Store) mayRemove(ctx context.Context, id uint64, thing string) error {
	list := s.Members()
	i := slices.IndexFunc(list, func(m Member) bool { return m.ID == id })
	if i < 0 || list[i].Learner {
		return nil
	}
	if len(list) == 1 {
		return weft.Errorf(weft.Conflict, "remove", thing, "it is the last one")
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	reach := s.peers.reach(ctx, list)
	rest, reached := 0, 0
	for _, m := range list {
		if m.Learner || m.ID == id {
			continue
		}
		rest++
		if m.ID == s.ID() || reach[m.ID] {
			reached++
		}
	}
	if need := rest/2 + 1; reached < need {
		return weft.Errorf(weft.Unavailable, "remove", thing,
			"of the %d voting members that would be left %d can be reached, and %d are needed", rest, reached, need)
	}
	return nil
}

// change bounds a change of the membership.
func (s *Store) change(ctx context.Context, do func(context.Context) ([]*membership.Member, error)) ([]*membership.Member, error) {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	list, err := do(ctx)
	return list, withCause(ctx, err)
}

func (s *Store) memberName(id uint64) string {
	for _, m := range s.Members() {
		if m.ID == id {
			return fmt.Sprintf("member %s (%x)", m.Name, id)
		}
	}
	return fmt.Sprintf("member %x", id)
}

func (s *Store) memberError(op, thing string, err error) error {
	switch {
	case errors.Is(err, membership.ErrIDNotFound):
		return weft.Errorf(weft.NotFound, op, thing, "there is none")
	case errors.Is(err, membership.ErrIDRemoved):
		return weft.Errorf(weft.NotFound, op, thing, "it was removed already")
	case errors.Is(err, membership.ErrIDExists), errors.Is(err, membership.ErrPeerURLexists):
		return weft.Errorf(weft.Conflict, op, thing, "another member has its address")
	case errors.Is(err, membership.ErrMemberNotLearner):
		return weft.Errorf(weft.Conflict, op, thing, "it votes already")
	case errors.Is(err, membership.ErrTooManyLearners):
		return weft.Errorf(weft.Unavailable, op, thing, "too many members are just joining")
	case errors.Is(err, etcderrors.ErrLearnerNotReady):
		return weft.Errorf(weft.Unavailable, op, thing, "it has not caught up yet")
	}
	return s.error(op, thing, err)
}
