package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
)

const (
	// keepRevisions bounds the history that a watch may resume from. An hour at
	// full speed would be a hundred million revisions, far over the quota; half a
	// million of registrations are some 500 MB.
	keepRevisions = 500_000
	// tidyEvery is long against a compaction, and short against the time in which
	// the history could double.
	tidyEvery = 10 * time.Second
)

// tidy drops history and mends a store that filled up, until the store ends.
func (s *Store) tidy() {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
		}
		if s.IsLeader() { // one is enough
			s.compactBeyond(keepRevisions)
		}
		if err := s.endAlarms(); err != nil {
			s.log.Warn("store: it is full, and cannot be mended", "error", err)
		}
	}
}

// compactBeyond drops what is older than the newest keep revisions. It waits
// until half as many again are there, so that compactions are few.
func (s *Store) compactBeyond(keep int64) {
	rev := s.server.KV().Rev() - keep
	if rev < max(s.server.KV().FirstRev(), 0)+keep/2 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	if _, err := s.server.Compact(ctx, &pb.CompactionRequest{Revision: rev}); err != nil {
		s.log.Warn("store: compaction failed", "revision", rev, "error", err)
	}
}

// inUse is how many bytes of the database are in use, once that is not more than enough
// or does not become less. What a compaction frees counts as used until those who read
// it have ended and something is written after them: in a full store nothing might be.
// So the revision of the last compaction is written again.
func inUse(ctx context.Context, b backend.Backend, enough int64) int64 {
	for range 20 {
		tx := b.BatchTx()
		tx.LockOutsideApply()
		_, values := tx.UnsafeRange(schema.Meta, schema.FinishedCompactKeyName, nil, 1)
		if len(values) > 0 {
			tx.UnsafePut(schema.Meta, schema.FinishedCompactKeyName, bytes.Clone(values[0]))
		}
		tx.Unlock()
		b.ForceCommit()
		if b.SizeInUse() <= enough {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return b.SizeInUse()
}

// endAlarms mends a store whose database has reached its quota: what is superseded
// goes, the file shrinks, and writing is allowed again where that has helped.
func (s *Store) endAlarms() error {
	me, full := uint64(s.server.MemberID()), false
	for _, a := range s.server.Alarms() {
		if a.Alarm == pb.AlarmType_CORRUPT {
			return errors.New("etcd found that its state is not that of the other members; " + mend)
		}
		full = full || a.Alarm == pb.AlarmType_NOSPACE && a.MemberID == me
	}
	if !full {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	_, err := s.server.Compact(ctx, &pb.CompactionRequest{Revision: s.server.KV().Rev(), Physical: true})
	if err != nil && !errors.Is(err, mvcc.ErrCompacted) {
		return fmt.Errorf("compact it: %w", err)
	}
	b := s.server.Backend()
	if used := inUse(ctx, b, s.quota/10*9); used > s.quota/10*9 {
		return fmt.Errorf("%d of %d MB are in use; delete what is not needed", used>>20, s.quota>>20)
	}
	if err := b.Defrag(); err != nil {
		return fmt.Errorf("defragment it: %w", err)
	}
	_, err = s.server.Alarm(ctx, &pb.AlarmRequest{
		Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: me,
	})
	if err != nil {
		return fmt.Errorf("allow writes again: %w", err)
	}
	return nil
}
