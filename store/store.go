// Package store keeps weft's durable state: one embedded etcd member, which this
// process alone owns.
//
// It holds keys with values at revisions. A Commit puts and deletes keys at one
// revision, on conditions, and is on disk (fsync) when it returns; Get and List
// read what is committed; a Watch delivers every change after a revision, in
// order. The rooms above share it by key prefix: "registry/", "resources/",
// "ca/".
//
// The member listens nowhere: the package calls it inside the process. So no
// other process can reach the state around weft, there is no socket whose path
// could be too long, and a request is not encoded twice.
//
// With Config.Cluster the member meets others, by mutual TLS, and Commit needs a
// majority of them. A member that was taken out ends with ErrRemoved.
//
// The directory has a FORMAT file with a number; a store of another format is
// refused. It has a LOCK file, which is locked (flock) while the store is open,
// with the pid of its owner in it; SUMS, by which the next Open checks the files;
// RESERVE, room that is given back when there is none; and in a cluster NAME.
//
// Damage: Open checks the files before etcd reads them, and each value has a
// checksum that every read checks. Its error is weft.Internal, names the file, and
// says how to mend it; nothing of a damaged file is served. After Close any changed
// byte is noticed. After a kill a database's bookkeeping (the index of the log that it
// has, members' addresses) is only known to be plausible.
//
// A full disk: below 32 MB of free space Commit is refused (weft.Unavailable, which
// names the directory and what is free and needed), and is taken again at 40 MB.
// Reads and watches go on. A leader hands over to another member. To open the store
// takes 8 MB. A database that has reached its quota of 8 GB refuses puts until
// history that is dropped has made room. When etcd can no longer write its log all
// the same (I/O error), the store ends: see Done and Err.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/raft/v3"

	"github.com/weftmesh/weft"
)

// Config says where the state lives.
type Config struct {
	Dir     string       // created 0700 when it is not there
	Logger  *slog.Logger // etcd's warnings and errors go here; nil discards them
	Cluster *Cluster     // nil: the member is alone, and listens nowhere
}

// KV is one key with its value. Value must not be changed.
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
// at one revision, else nothing. No key may stand twice in Put and Delete.
type Txn struct {
	If     []Cond
	Put    []KV // Key and Value are used
	Delete []string
}

// Store is an open store. Its methods may be called from any goroutine.
type Store struct {
	// constant after Open
	log     *slog.Logger
	dir     string
	quota   int64 // bytes of the database
	etcd    *embed.Etcd
	server  *etcdserver.EtcdServer
	etcdLog *etcdLog
	lock    *os.File
	peers   *peerClient // nil when alone
	space   *space

	life   context.Context // ends with Close
	die    context.CancelFunc
	closed chan struct{}  // closed by Close
	done   chan struct{}  // closed by Close, or when etcd has ended by itself
	work   sync.WaitGroup // calls, watches, the compactor, and who looks after etcd

	reign atomic.Pointer[reign] // who leads, as the last look found

	mu      sync.Mutex // guards what follows, and work.Add against Close's Wait
	ended   bool
	failure error // why etcd has ended by itself
	closing sync.Once
}

// Close ends the calls that are under way and the watches, whose channels are closed,
// hands the leadership over if it can, and stops the store.
func (s *Store) Close() error {
	s.closing.Do(func() {
		s.mu.Lock()
		s.ended = true
		if s.failure == nil {
			close(s.done)
		}
		s.mu.Unlock()
		close(s.closed)
		s.die()
		s.work.Wait()
		s.etcdLog.closing()
		s.handOver()
		s.server.HardStop() // etcd's own hand-over may wait for seconds for a member that is gone
		s.etcd.Close()
		if s.peers != nil {
			s.peers.close()
		}
		if s.Err() == nil {
			if err := writeSums(s.dir); err != nil { // without them the next start looks deeper
				s.log.Warn("store: no checksums are kept", "error", err)
			}
		}
	})
	if err := s.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return &weft.Error{Op: "close", Thing: "store", Err: err}
	}
	return nil
}

// handOver is the polite end of a leader.
func (s *Store) handOver() {
	if s.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if err := s.moveLeader(ctx); err != nil {
		s.log.Debug("store: the leadership stays", "error", err)
	}
}

// Done is closed when the store is closed, or when it has ended by itself: Err says
// why then. Nothing but Close is of use on it any more.
func (s *Store) Done() <-chan struct{} { return s.done }

// Err says why the store has ended by itself, and is nil while it has not.
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}

// start runs fn in a goroutine that Close waits for. It reports false when the
// store is closed.
func (s *Store) start(fn func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.work.Go(fn)
	return true
}

// stay makes Close wait until work.Done, and reports whether the store is there.
func (s *Store) stay() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.failure != nil {
		return false
	}
	s.work.Add(1)
	return true
}

// enter begins a call: it is bounded, Close cuts it short, and waits until it has
// left.
func (s *Store) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	if !s.stay() {
		return nil, nil, etcderrors.ErrStopped // s.error says why
	}
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errSlow)
	stop := context.AfterFunc(s.life, cancel)
	return ctx, func() {
		stop()
		cancel()
		s.work.Done()
	}, nil
}

func (s *Store) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// Get returns the value of a key, and whether it is there: at least as new as
// every commit that was acknowledged by any member before the call.
func (s *Store) Get(ctx context.Context, key string) (KV, bool, error) {
	if key == "" {
		return KV{}, false, weft.Errorf(weft.Invalid, "get", "key", "the key is empty")
	}
	return s.get(ctx, key, &pb.RangeRequest{Key: []byte(key)})
}

func (s *Store) get(ctx context.Context, thing string, r *pb.RangeRequest) (KV, bool, error) {
	resp, err := s.read(ctx, r)
	if err == nil && len(resp.Kvs) == 0 {
		return KV{}, false, nil
	}
	var kv KV
	if err == nil {
		kv, err = fromEtcd(resp.Kvs[0])
	}
	if err != nil {
		return KV{}, false, s.error("get", thing, err)
	}
	return kv, true, nil
}

// List returns the keys that start with prefix, sorted, all as they were at
// revision rev. An empty prefix lists everything. It is as new as Get.
func (s *Store) List(ctx context.Context, prefix string) (kvs []KV, rev int64, err error) {
	resp, err := s.read(ctx, listRequest(prefix))
	if err != nil {
		return nil, 0, s.error("list", prefix, err)
	}
	if kvs, err = allFromEtcd(resp.Kvs); err != nil {
		return nil, 0, s.error("list", prefix, err)
	}
	return kvs, resp.Header.Revision, nil
}

func listRequest(prefix string) *pb.RangeRequest {
	key, end := prefixRange(prefix)
	if len(end) == 0 {
		end = []byte{0} // how etcd's API says "to the last key"
	}
	return &pb.RangeRequest{Key: key, RangeEnd: end}
}

// read repeats what a change of the leader interrupted.
func (s *Store) read(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	for {
		resp, err := s.server.Range(ctx, r)
		if !errors.Is(err, etcderrors.ErrLeaderChanged) || ctx.Err() != nil {
			return resp, withCause(ctx, err)
		}
	}
}

// Commit applies t and returns the revision that it made, or the present one
// when it changes nothing. The change is on disk when Commit returns, in a cluster
// on the disks of a majority. A condition that does not hold is a *weft.Error of
// Kind Conflict that names the key. When ctx ends early, or the error is
// weft.Unavailable, the change may still happen.
func (s *Store) Commit(ctx context.Context, t Txn) (rev int64, err error) {
	req, err := t.request()
	if err != nil {
		return 0, err
	}
	if err := s.space.check(); err != nil {
		return 0, &weft.Error{Kind: weft.Unavailable, Op: "commit", Thing: t.String(), Err: err}
	}
	resp, err := s.propose(ctx, req)
	if err != nil {
		return 0, s.error("commit", t.String(), err)
	}
	if !resp.Succeeded {
		return 0, t.conflict(resp)
	}
	return resp.Header.Revision, nil
}

// propose repeats what was dropped before it left this member, as everything is
// while the leadership is handed over.
func (s *Store) propose(ctx context.Context, req *pb.TxnRequest) (*pb.TxnResponse, error) {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := s.underLeader(ctx)
	defer cancel()
	for {
		resp, err := s.server.Txn(ctx, req)
		if !errors.Is(err, raft.ErrProposalDropped) {
			return resp, withCause(ctx, err)
		}
		select {
		case <-time.After(dropPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-s.done:
			return nil, etcderrors.ErrStopped
		}
	}
}

// request checks t as etcd's own API would (it is not asked here), and encodes it.
func (t *Txn) request() (*pb.TxnRequest, error) {
	req := &pb.TxnRequest{}
	for _, c := range t.If {
		if c.Key == "" {
			return nil, weft.Errorf(weft.Invalid, "commit", "condition", "the key is empty")
		}
		req.Compare = append(req.Compare, &pb.Compare{
			Key: []byte(c.Key), Result: pb.Compare_EQUAL, Target: pb.Compare_MOD,
			TargetUnion: &pb.Compare_ModRevision{ModRevision: c.ModRev},
		})
		// On failure the keys are read, so that the error can say what changed.
		req.Failure = append(req.Failure, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{
			RequestRange: &pb.RangeRequest{Key: []byte(c.Key), KeysOnly: true},
		}})
	}
	seen := make(map[string]bool, len(t.Put)+len(t.Delete))
	once := func(key string) error {
		if key == "" {
			return weft.Errorf(weft.Invalid, "commit", "key", "the key is empty")
		}
		if seen[key] {
			return weft.Errorf(weft.Invalid, "commit", key, "the key stands twice in one transaction")
		}
		seen[key] = true
		return nil
	}
	for _, kv := range t.Put {
		if err := once(kv.Key); err != nil {
			return nil, err
		}
		req.Success = append(req.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: []byte(kv.Key), Value: seal(kv.Key, kv.Value)},
		}})
	}
	for _, key := range t.Delete {
		if err := once(key); err != nil {
			return nil, err
		}
		req.Success = append(req.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
			RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)},
		}})
	}
	return req, nil
}

// String says how large t is.
func (t *Txn) String() string {
	return fmt.Sprintf("%d puts, %d deletes", len(t.Put), len(t.Delete))
}

// conflict names the first condition that does not hold.
func (t *Txn) conflict(resp *pb.TxnResponse) error {
	for i, c := range t.If {
		var have int64
		if kvs := resp.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			have = kvs[0].ModRevision
		}
		switch {
		case have == c.ModRev:
		case c.ModRev == 0:
			return weft.Errorf(weft.Conflict, "commit", c.Key, "it exists already, at revision %d", have)
		case have == 0:
			return weft.Errorf(weft.Conflict, "commit", c.Key, "it is gone; expected revision %d", c.ModRev)
		default:
			return weft.Errorf(weft.Conflict, "commit", c.Key, "it is at revision %d; expected %d", have, c.ModRev)
		}
	}
	return weft.Errorf(weft.Conflict, "commit", "transaction", "a condition does not hold")
}

func discardLogger() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }
