package store

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/weftmesh/weft"
)

// Batch is what a watch delivers: all events of one or more whole revisions, in
// revision order, or a final Err.
type Batch struct {
	Rev    int64 // of the last event
	Events []Event
	Err    error // Unavailable: the watched revisions are compacted; List again, and watch from there
}

// maxPending bounds the events that a watch holds for a reader that is slower
// than the writers. Beyond it they wait in etcd, on disk.
const maxPending = 16 << 10

// Watch delivers the changes after revision after to the keys that start with
// prefix. The channel is closed when ctx ends, when the store is Done, or after a
// Batch with Err. Changes that come while the reader is busy arrive together in
// one Batch.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) <-chan Batch {
	out := make(chan Batch)
	stream := s.server.Watchable().NewWatchStream()
	key, end := prefixRange(prefix)
	_, err := stream.Watch(ctx, 0, key, end, after+1)
	ok := s.start(func() {
		defer close(out)
		defer stream.Close()
		if err != nil {
			err = &weft.Error{Kind: weft.Internal, Op: "watch", Thing: prefix, Err: err}
			send(ctx, s.done, out, Batch{Err: err})
			return
		}
		s.forward(ctx, prefix, stream.Chan(), out)
	})
	if !ok {
		stream.Close()
		close(out)
	}
	return out
}

// forward moves batches from etcd to the reader. It keeps etcd's channel empty:
// a watcher whose channel is full is put aside there for up to 100 ms.
func (s *Store) forward(ctx context.Context, prefix string, in <-chan mvcc.WatchResponse, out chan<- Batch) {
	var pending Batch
	for {
		source, sink := in, out
		if len(pending.Events) == 0 {
			sink = nil
		}
		if len(pending.Events) >= maxPending {
			source = nil
		}
		select {
		case resp := <-source:
			if resp.CompactRevision != 0 {
				if len(pending.Events) > 0 && !send(ctx, s.done, out, pending) {
					return
				}
				send(ctx, s.done, out, Batch{Err: weft.Errorf(weft.Unavailable, "watch", prefix,
					"revisions before %d are compacted", resp.CompactRevision)})
				return
			}
			if err := pending.add(resp.Events); err != nil {
				send(ctx, s.done, out, Batch{Err: s.error("watch", prefix, err)})
				return
			}
		case sink <- pending:
			pending = Batch{}
		case <-ctx.Done():
			return
		case <-s.done:
			return
		}
	}
}

func send(ctx context.Context, closed <-chan struct{}, out chan<- Batch, b Batch) bool {
	select {
	case out <- b:
		return true
	case <-ctx.Done():
	case <-closed:
	}
	return false
}

// add appends events, which etcd never splits within a revision.
func (b *Batch) add(events []*mvccpb.Event) error {
	for _, in := range events {
		ev := Event{Deleted: in.Type == mvccpb.Event_DELETE}
		var err error
		if ev.Deleted {
			ev.KV = KV{Key: string(in.Kv.Key), ModRev: in.Kv.ModRevision}
		} else if ev.KV, err = fromEtcd(in.Kv); err != nil {
			return err
		}
		b.Events = append(b.Events, ev)
		b.Rev = ev.ModRev
	}
	return nil
}

func allFromEtcd(kvs []*mvccpb.KeyValue) (all []KV, err error) {
	all = make([]KV, len(kvs))
	for i, kv := range kvs {
		if all[i], err = fromEtcd(kv); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func fromEtcd(kv *mvccpb.KeyValue) (KV, error) {
	value, err := unseal(kv.Key, kv.Value)
	if err != nil {
		err = fmt.Errorf("%w: at revision %d, %w", errDamaged, kv.ModRevision, err)
	}
	return KV{Key: string(kv.Key), Value: value, ModRev: kv.ModRevision, CreateRev: kv.CreateRevision}, err
}

// prefixRange returns the range [key, end) of the keys that start with prefix. An
// empty end means that there is none.
func prefixRange(prefix string) (key, end []byte) {
	key, end = []byte(prefix), []byte(prefix)
	for len(end) > 0 {
		last := len(end) - 1
		if end[last] < 0xff {
			end[last]++
			return key, end
		}
		end = end[:last]
	}
	if prefix == "" {
		key = []byte{0}
	}
	return key, end
}
