package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
)

const (
	// lookEvery bounds how late the loss of a leader is noticed: etcd only tells
	// of new ones.
	lookEvery = 50 * time.Millisecond
	// lossGrace is how long a commit may go on under a leader that is gone: it
	// may be with the next one already.
	lossGrace = 500 * time.Millisecond
)

// reign is the time in which nobody else begins to lead, or ceases to.
type reign struct {
	// constant
	leader, term uint64
	over         chan struct{}      // closed by who replaces it
	ctx          context.Context    // ends lossGrace after over
	end          context.CancelFunc // ends ctx at once
}

func newReign(leader, term uint64) *reign {
	r := &reign{leader: leader, term: term, over: make(chan struct{})}
	r.ctx, r.end = context.WithCancel(context.Background())
	return r
}

// followLeader ends reigns, the last one with the store.
func (s *Store) followLeader() {
	defer func() {
		r := s.reign.Load()
		r.end()
		close(r.over)
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		changed := s.server.LeaderChangedNotify()
		if r, next := s.reign.Load(), newReign(s.Leader(), s.server.Term()); r.leader != next.leader || r.term != next.term {
			s.reign.Store(next)
			close(r.over)
			time.AfterFunc(lossGrace, r.end)
		} else {
			next.end()
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-s.done:
			return
		}
	}
}

// underLeader bounds a write, which can be lost together with the leader that it
// was sent to.
func (s *Store) underLeader(ctx context.Context) (context.Context, context.CancelFunc) {
	r := s.reign.Load()
	if s.peers == nil || r.leader == 0 {
		return ctx, func() {}
	}
	ctx, lose := context.WithCancelCause(ctx)
	stop := context.AfterFunc(r.ctx, func() { lose(errLeaderLost) })
	return ctx, func() {
		stop()
		lose(nil)
	}
}

// ID is this member's own.
func (s *Store) ID() uint64 { return uint64(s.server.MemberID()) }

// Leader is the ID of the member that leads, as this one knows; 0 when it knows
// none. Who is cut off believes in a former leader, or in itself, for up to an
// election timeout (a second) longer: writes of that time do not succeed.
func (s *Store) Leader() uint64 { return s.server.Lead() }

// IsLeader says whether this member believes to lead.
func (s *Store) IsLeader() bool { return s.Leader() == s.ID() }

// LeaderChanged returns a channel that is closed when Leader next changes, to none
// too; when the store is Done it is closed for good. Ask for it before looking at
// Leader.
func (s *Store) LeaderChanged() <-chan struct{} { return s.reign.Load().over }

// Barrier returns a revision that is at least that of every commit which any
// member acknowledged before the call, and which this member has applied. Without
// a quorum it is Unavailable.
func (s *Store) Barrier(ctx context.Context) (rev int64, err error) {
	const op, thing = "read", "newest revision"
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return 0, s.error(op, thing, err)
	}
	defer leave()
	for {
		err := s.server.LinearizableReadNotify(ctx)
		if err == nil {
			return s.server.KV().Rev(), nil
		}
		if !errors.Is(err, etcderrors.ErrLeaderChanged) || ctx.Err() != nil {
			return 0, s.error(op, thing, withCause(ctx, err))
		}
	}
}

// MoveLeader hands the leadership to another member, when this one has it and there
// is a voting member that can be reached.
func (s *Store) MoveLeader(ctx context.Context) error {
	ctx, leave, err := s.enter(ctx)
	if err == nil {
		defer leave()
		err = s.moveLeader(ctx)
	}
	if err != nil {
		return s.error("move", "leadership", err)
	}
	return nil
}

func (s *Store) moveLeader(ctx context.Context) error {
	if s.peers == nil || !s.IsLeader() || len(s.Members()) == 1 {
		return nil
	}
	return s.moveFrom(ctx, s.ID())
}

// moveFrom hands the leadership of a member to another, which may be this one: a
// leader does so when a follower asks.
func (s *Store) moveFrom(ctx context.Context, leader uint64) error {
	reached := s.peers.reach(ctx, s.Members())
	err := errNobody
	for _, m := range s.Members() {
		if m.ID == leader || m.Learner || !reached[m.ID] {
			continue
		}
		if err = s.server.MoveLeader(ctx, leader, m.ID); err == nil {
			return nil
		}
	}
	return err
}

// noLeader says why there is none, as well as can be known from here.
func (s *Store) noLeader() error {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	voters, reached := 0, 0
	reach := s.peers.reach(ctx, s.Members())
	for _, m := range s.Members() {
		if m.Learner {
			continue
		}
		voters++
		if m.ID == s.ID() || reach[m.ID] {
			reached++
		}
	}
	return fmt.Errorf("no leader: %d of %d members can be reached, and %d are needed", reached, voters, voters/2+1)
}
