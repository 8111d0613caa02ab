package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/raft/v3"

	"github.com/weftmesh/weft"
)

const (
	// callTimeout bounds every call, whatever the caller's context says. An
	// election takes one to two seconds.
	callTimeout = 5 * time.Second
	// dropPause is what a leader needs to hand over to a member that has
	// everything: a round trip or two.
	dropPause = 10 * time.Millisecond
)

// ErrRemoved is in the errors of Open, Err and of calls when this member was taken out
// of its cluster. It is for good: its directory must be emptied to join again.
var ErrRemoved = errors.New("this member was removed from its cluster")

// ErrNoRoom is in the errors of Commit when the disk is full: nothing was sent, and it
// may be tried again.
var ErrNoRoom = errors.New("the disk is full")

var (
	errClosed     = errors.New("the store is closed")
	errNobody     = errors.New("no other member can be reached")
	errSlow       = fmt.Errorf("no answer within %v", callTimeout)
	errDamaged    = errors.New("the disk has changed since the start")
	errLeaderLost = errors.New("the leader went away meanwhile; whether it happened is not known")
)

// withCause replaces etcd's word for an ended context by the reason.
func withCause(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	return context.Cause(ctx)
}

// error classifies an error of etcd.
func (s *Store) error(op, thing string, err error) error {
	kind := weft.Internal
	switch {
	case s.isClosed():
		kind = weft.Unavailable
		err = errClosed
	case s.Err() != nil || errors.Is(err, etcderrors.ErrStopped):
		kind = weft.Unavailable
		if failure := s.Err(); failure != nil {
			err = failure
		}
	case errors.Is(err, etcderrors.ErrRequestTooLarge):
		kind = weft.TooLarge
		err = fmt.Errorf("over the limit of %d bytes for one transaction", maxTxnBytes)
	case errors.Is(err, etcderrors.ErrNoSpace):
		kind = weft.Unavailable
		err = fmt.Errorf("the store in %s is full: its database has reached %d MB; history is dropped to make room, and if that helps writes go on by themselves",
			s.dir, s.quota>>20)
	case errors.Is(err, mvcc.ErrCompacted):
		kind = weft.NotFound
		err = fmt.Errorf("compacted: the history before revision %d is gone", s.server.KV().FirstRev()+1)
	case errors.Is(err, mvcc.ErrFutureRev):
		kind = weft.NotFound
		err = fmt.Errorf("the newest revision is %d", s.server.KV().Rev())
	case errors.Is(err, errDamaged):
		err = damaged(databasePath(s.dir), err)
	case errors.Is(err, context.Canceled):
		kind = weft.Unavailable
	case mayWorkLater(err):
		kind = weft.Unavailable
		if s.peers != nil && s.Leader() == 0 {
			err = s.noLeader()
		}
	}
	return &weft.Error{Kind: kind, Op: op, Thing: thing, Err: err}
}

func mayWorkLater(err error) bool {
	for _, target := range []error{
		errSlow, errLeaderLost, errNobody, context.DeadlineExceeded,
		raft.ErrProposalDropped, raft.ErrStopped,
		etcderrors.ErrTimeout, etcderrors.ErrTimeoutDueToLeaderFail, etcderrors.ErrTimeoutDueToConnectionLost,
		etcderrors.ErrTimeoutLeaderTransfer, etcderrors.ErrTimeoutWaitAppliedIndex, etcderrors.ErrCanceled,
		etcderrors.ErrTooManyRequests, etcderrors.ErrNoLeader, etcderrors.ErrNotLeader,
		etcderrors.ErrLeaderChanged, etcderrors.ErrUnhealthy, etcderrors.ErrLearnerNotReady,
		etcderrors.ErrNotEnoughStartedMembers, etcderrors.ErrBadLeaderTransferee,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}
