package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/pkg/v3/featuregate"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/weftmesh/weft"
)

const (
	// quotaBytes bounds the database file. Beyond it etcd refuses writes.
	quotaBytes = 8 << 30
	// maxTxnBytes bounds one transaction: large enough to take a node with ten
	// thousand instances away at one revision.
	maxTxnBytes = 8 << 20
	// readyTimeout bounds the start. Replaying a full log takes well under a
	// second; a disk that needs longer than this is broken.
	readyTimeout = time.Minute
)

// Segments of etcd's log are preallocated, two at a time. At the default of 64 MB
// an empty store would take 123 MB of disk; 4 MB segments are 25 MB.
var smallSegments = sync.OnceFunc(func() { wal.SegmentSizeBytes = 4 << 20 })

// Open opens or creates the store in c.Dir, and returns when it can be written.
func Open(ctx context.Context, c Config) (*Store, error) {
	return open(ctx, c, quotaBytes)
}

func open(ctx context.Context, c Config, quota int64) (*Store, error) {
	if c.Dir == "" {
		return nil, weft.Errorf(weft.Invalid, "open", "store", "no directory is given")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, dirError(c.Dir, err)
	}
	if c.Logger == nil {
		c.Logger = discardLogger()
	}
	lock, err := claimDir(dir)
	if err != nil {
		return nil, err
	}
	s, err := openClaimed(ctx, dir, lock, c, quota)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

func openClaimed(ctx context.Context, dir string, lock *os.File, c Config, quota int64) (*Store, error) {
	smallSegments()
	log := newEtcdLog(c.Logger)
	cfg, err := etcdConfig(dir, quota, log)
	if err != nil {
		return nil, &weft.Error{Op: "open", Thing: "store " + dir, Err: err}
	}
	if err = checkDatabase(dir); err != nil {
		return nil, &weft.Error{Op: "open", Thing: "store " + dir, Err: err}
	}
	e, err := startEtcd(cfg)
	if err != nil {
		return nil, &weft.Error{Op: "open", Thing: "store " + dir, Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	select {
	case <-e.Server.ReadyNotify():
	case <-e.Server.StopNotify():
		err = errors.New("etcd stopped while it was starting")
	case <-ctx.Done():
		err = fmt.Errorf("etcd is not ready: %w", ctx.Err())
	}
	if err == nil {
		err = endAlarms(ctx, e)
	}
	if err != nil {
		e.Close()
		return nil, &weft.Error{Kind: weft.Unavailable, Op: "open", Thing: "store " + dir, Err: err}
	}
	log.opened()
	s := &Store{log: c.Logger, etcd: e, server: e.Server, lock: lock, closed: make(chan struct{})}
	s.start(s.compactByCount)
	return s, nil
}

// checkDatabase opens the database once to see whether it can be opened: etcd
// does it in a goroutine of its own, whose panic would end the process.
func checkDatabase(dir string) error {
	path := filepath.Join(dir, "member", "snap", "db")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("its database cannot be read: %w; restore it from a backup", err)
	}
	return db.Close()
}

// startEtcd turns the panics that etcd means to be fatal into errors: a directory
// that it cannot read must not end the process without a word.
func startEtcd(cfg *embed.Config) (e *embed.Etcd, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("its log cannot be read: %v; restore it from a backup", p)
		}
	}()
	return embed.StartEtcd(cfg)
}

func etcdConfig(dir string, quota int64, log *etcdLog) (*embed.Config, error) {
	cfg := embed.NewConfig()
	cfg.Name = "weft"
	cfg.Dir = dir
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log.zap())

	// One member, which listens nowhere and has no peer: the addresses only have
	// to look like some.
	nowhere := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.ListenPeerUrls, cfg.ListenClientUrls = nil, nil
	cfg.AdvertisePeerUrls, cfg.AdvertiseClientUrls = nowhere, nowhere
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)

	// Alone it has nobody to wait for: these only decide how soon after its start
	// it elects itself.
	cfg.TickMs, cfg.ElectionMs = 10, 100

	// Nobody needs the log to catch up: it is only read at start, after the last
	// snapshot. Its entries are large (the registry's writes share them), and etcd
	// holds those it keeps in memory.
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 2000, 100

	cfg.QuotaBackendBytes = quota
	cfg.MaxRequestBytes = maxTxnBytes
	cfg.AutoCompactionMode = embed.CompactorModePeriodic
	cfg.AutoCompactionRetention = "1h"
	// Walks all keys at start and compares with the peers, when there are some.
	gate := features.NewDefaultServerFeatureGate(cfg.Name, nil)
	if err := gate.(featuregate.MutableFeatureGate).Set(string(features.InitialCorruptCheck) + "=true"); err != nil {
		return nil, fmt.Errorf("turn the corruption check on: %w", err)
	}
	cfg.ServerFeatureGate = gate
	return cfg, nil
}

// endAlarms mends a store that filled up: what is superseded goes, the file
// shrinks, and writing is allowed again.
func endAlarms(ctx context.Context, e *embed.Etcd) error {
	full := false
	for _, a := range e.Server.Alarms() {
		if a.Alarm == pb.AlarmType_CORRUPT {
			return errors.New("etcd found its state corrupt; restore it from a backup")
		}
		full = full || a.Alarm == pb.AlarmType_NOSPACE
	}
	if !full {
		return nil
	}
	rev := e.Server.KV().Rev()
	if _, err := e.Server.Compact(ctx, &pb.CompactionRequest{Revision: rev, Physical: true}); err != nil {
		return fmt.Errorf("compact the full store: %w", err)
	}
	if err := e.Server.Backend().Defrag(); err != nil {
		return fmt.Errorf("defragment the full store: %w", err)
	}
	_, err := e.Server.Alarm(ctx, &pb.AlarmRequest{
		Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: uint64(e.Server.MemberID()),
	})
	if err != nil {
		return fmt.Errorf("allow writes to the store again: %w", err)
	}
	return nil
}

const (
	// keepRevisions bounds the history that a watch may resume from. An hour at
	// full speed would be a hundred million revisions, far over the quota; half a
	// million of registrations are some 500 MB.
	keepRevisions = 500_000
	// compactEvery is long against a compaction, and short against the time in
	// which the history could double.
	compactEvery = 10 * time.Second
)

// compactByCount drops history beyond keepRevisions, which etcd's own compaction
// by age would keep.
func (s *Store) compactByCount() {
	tick := time.NewTicker(compactEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.closed:
			return
		case <-tick.C:
		}
		s.compactBeyond(keepRevisions)
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
