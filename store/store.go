// Package store keeps weft's durable state: one embedded etcd member, owned by
// this process alone.
package store

import (
	"context"
	"log/slog"

	"github.com/weftmesh/weft"
)

// Config says where the state lives.
type Config struct {
	Dir    string       // created 0700 when it is not there
	Logger *slog.Logger // etcd's warnings and errors go here; nil discards them
}

// KV is one key with its value.
type KV struct {
	Key       string
	Value     []byte
	ModRev    int64 // revision of the last change
	CreateRev int64 // revision of the first put since the key was last absent
}

// Event is a change of one key. A deleted key has no value, and its ModRev is
// the revision of the deletion.
type Event struct {
	KV
	Deleted bool
}

// Cond is a condition of a transaction: the key was last changed at ModRev. 0
// means that the key must not exist.
type Cond struct {
	Key    string
	ModRev int64
}

// Txn is a transaction: when every Cond of If holds, every Put and Delete happens
// at one revision, else nothing. A key must not stand twice in Put and Delete.
type Txn struct {
	If     []Cond
	Put    []KV // Key and Value are used
	Delete []string
}

// Batch is what a watch delivers: all events of one or more whole revisions, in
// revision order, or a final Err.
type Batch struct {
	Rev    int64 // of the last event
	Events []Event
	Err    error // the watched revisions are compacted: List again, watch from there
}

// Store is an open store. Its methods may be called from any goroutine.
type Store struct{}

// Open opens or creates the store in c.Dir.
func Open(ctx context.Context, c Config) (*Store, error) { return nil, notYet("open") }

// Close stops the store. Watches end.
func (s *Store) Close() error { return notYet("close") }

// Get returns the value of a key, and whether it is there.
func (s *Store) Get(ctx context.Context, key string) (KV, bool, error) {
	return KV{}, false, notYet("get")
}

// List returns the keys that start with prefix, sorted, all as they were at
// revision rev.
func (s *Store) List(ctx context.Context, prefix string) (kvs []KV, rev int64, err error) {
	return nil, 0, notYet("list")
}

// Commit applies t and returns the revision that it made. The change is on disk
// when Commit returns. A condition that does not hold is a *weft.Error of Kind
// Conflict.
func (s *Store) Commit(ctx context.Context, t Txn) (rev int64, err error) {
	return 0, notYet("commit")
}

// Watch delivers the changes after revision after to the keys that start with
// prefix. The channel is closed when ctx ends, when the store closes, or after a
// Batch with Err.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) <-chan Batch {
	return nil
}

func notYet(op string) error { return weft.Errorf(weft.Internal, op, "store", "not built yet") }
