package store

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"google.golang.org/protobuf/proto"

	"github.com/weftmesh/weft"
)

const (
	// maxHistory and maxHistoryBytes bound what one question about the past takes.
	maxHistory      = 100_000
	maxHistoryBytes = 64 << 20
	// historyPage is how many revisions one look into the database reads. Each has
	// maxTxnBytes at most.
	historyPage = 16
)

// ListAt returns the keys that start with prefix as they were at revision rev. It
// is NotFound when the history before is compacted, or rev is yet to come.
func (s *Store) ListAt(ctx context.Context, prefix string, rev int64) ([]KV, error) {
	thing := fmt.Sprintf("%s at revision %d", prefix, rev)
	if rev < 1 {
		return nil, weft.Errorf(weft.Invalid, "list", thing, "revisions begin with 1")
	}
	req := listRequest(prefix)
	req.Revision = rev
	// What is past does not change, so another member need not be asked for it.
	req.Serializable = rev <= s.server.KV().Rev()
	req.Limit = maxHistory
	resp, err := s.read(ctx, req)
	if err != nil {
		return nil, s.error("list", thing, err)
	}
	if resp.More {
		return nil, weft.Errorf(weft.TooLarge, "list", thing, "over %d keys; ask for a longer prefix", maxHistory)
	}
	kvs, err := allFromEtcd(resp.Kvs)
	if err != nil {
		return nil, s.error("list", thing, err)
	}
	return kvs, nil
}

// GetAt returns the value of a key as it was at revision rev, and whether it was
// there. It is NotFound as ListAt.
func (s *Store) GetAt(ctx context.Context, key string, rev int64) (KV, bool, error) {
	thing := fmt.Sprintf("%s at revision %d", key, rev)
	if key == "" || rev < 1 {
		return KV{}, false, weft.Errorf(weft.Invalid, "get", thing, "the key is empty, or the revision is less than 1")
	}
	return s.get(ctx, thing, &pb.RangeRequest{Key: []byte(key), Revision: rev, Serializable: rev <= s.server.KV().Rev()})
}

// History returns the changes of the keys that start with prefix from revision
// from to revision to, each revision as a Batch of its own. It is NotFound when
// they are compacted, TooLarge when they are too many.
func (s *Store) History(ctx context.Context, prefix string, from, to int64) ([]Batch, error) {
	thing := fmt.Sprintf("%s from revision %d to %d", prefix, from, to)
	if from < 1 || to < from {
		return nil, weft.Errorf(weft.Invalid, "read", thing, "the span is empty")
	}
	if to > s.server.KV().Rev() {
		newest, err := s.Barrier(ctx)
		if err != nil {
			return nil, err
		}
		to = min(to, newest)
	}
	var out []Batch
	events, size := 0, 0
	for next := from; next <= to; next += historyPage {
		if err := ctx.Err(); err != nil {
			return nil, s.error("read", thing, err)
		}
		page, err := s.changes(ctx, next, min(next+historyPage-1, to))
		if err != nil {
			return nil, s.error("read", thing, err)
		}
		for _, ev := range page {
			if !strings.HasPrefix(ev.Key, prefix) {
				continue
			}
			if len(out) == 0 || out[len(out)-1].Rev != ev.ModRev {
				out = append(out, Batch{Rev: ev.ModRev})
			}
			b := &out[len(out)-1]
			b.Events = append(b.Events, ev)
			events++
			size += len(ev.Key) + len(ev.Value)
		}
		if events > maxHistory || size > maxHistoryBytes {
			return nil, weft.Errorf(weft.TooLarge, "read", thing,
				"over %d changes or %d bytes; ask for a shorter span", maxHistory, maxHistoryBytes)
		}
	}
	return out, nil
}

// changes reads etcd's records as they lie in the database: by revision.
func (s *Store) changes(ctx context.Context, from, to int64) ([]Event, error) {
	_, leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	key := mvcc.RevToBytes(mvcc.Revision{Main: from}, mvcc.NewRevBytes())
	end := mvcc.RevToBytes(mvcc.Revision{Main: to + 1}, mvcc.NewRevBytes())
	tx := s.server.Backend().ConcurrentReadTx()
	tx.RLock()
	defer tx.RUnlock() // the records are only there until then
	// No limit: with one, etcd leaves out what lies between its file and its buffer.
	keys, values := tx.UnsafeRange(schema.Key, key, end, 0)
	// Asked afterwards: what a compaction takes away it announces first.
	if from <= s.server.KV().FirstRev() {
		return nil, mvcc.ErrCompacted
	}
	events := make([]Event, 0, len(keys))
	var before []byte
	for i, key := range keys {
		// Just after etcd wrote its buffer into its file, what was in it comes twice:
		// from the file, and then from a copy of the buffer.
		if bytes.Compare(key, before) <= 0 {
			continue
		}
		before = key
		var kv mvccpb.KeyValue
		if err := proto.Unmarshal(values[i], &kv); err != nil {
			return nil, err
		}
		ev := Event{Deleted: mvcc.IsTombstone(key)}
		if ev.Deleted { // its record has only the key
			ev.KV = KV{Key: string(kv.Key), ModRev: mvcc.BytesToRev(key).Main}
		} else if ev.KV, err = fromEtcd(&kv); err != nil {
			return nil, err
		}
		events = append(events, ev)
	}
	return events, nil
}
