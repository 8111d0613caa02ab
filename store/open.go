package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
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
	// A member that waits for others says so after tellAfter, and then every tellEvery.
	tellAfter, tellEvery = 2 * time.Second, 10 * time.Second
	// partEvery is how often a member that starts looks whether it takes part.
	partEvery = 20 * time.Millisecond
	// voterEvery is how often a member that only follows asks for its vote. It is
	// refused, and that logged, until it has caught up.
	voterEvery = 200 * time.Millisecond
	// aloneName is the name of a member that never was in a cluster.
	aloneName = "weft"
)

// nowhere stands for the address of a member that nobody is to reach.
var nowhere = url.URL{Scheme: "http", Host: "127.0.0.1:0"}

// Segments of etcd's log are preallocated, two at a time. At the default of 64 MB
// an empty store would take 123 MB of disk; 4 MB segments are 25 MB.
var smallSegments = sync.OnceFunc(func() { wal.SegmentSizeBytes = 4 << 20 })

// Open opens or creates the store in c.Dir, and returns when it can be written: in
// a cluster, when a majority is there and this member knows what it knows.
func Open(ctx context.Context, c Config) (*Store, error) {
	return open(ctx, c, quotaBytes)
}

func open(ctx context.Context, c Config, quota int64) (*Store, error) {
	if c.Dir == "" {
		return nil, weft.Errorf(weft.Invalid, "open", "store", "no directory is given")
	}
	if c.Cluster != nil {
		if err := c.Cluster.validate(); err != nil {
			return nil, err
		}
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
	s := &Store{
		log: c.Logger, dir: dir, lock: lock, etcdLog: newEtcdLog(c.Logger),
		quota: quota, space: &space{dir: dir}, closed: make(chan struct{}), done: make(chan struct{}),
	}
	s.life, s.die = context.WithCancel(context.Background())
	if err := s.open(ctx, c.Cluster); err != nil {
		s.die()
		if weft.KindOf(err) == weft.Internal {
			err = &weft.Error{Op: "open", Thing: "store " + dir, Err: err}
		}
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context, c *Cluster) error {
	smallSegments()
	if err := s.space.prepare(); err != nil {
		return err
	}
	if err := checkFiles(s.dir); err != nil {
		return err
	}
	name, err := s.memberOf(c)
	if err != nil {
		return err
	}
	cfg, err := etcdConfig(s.dir, s.quota, s.etcdLog)
	if err != nil {
		return err
	}
	if c != nil {
		if err := c.configure(cfg, name); err != nil {
			return err
		}
	}
	if s.etcd, err = s.startEtcd(cfg); err != nil {
		return err
	}
	s.server = s.etcd.Server
	if err = s.becomeReady(ctx, c); err != nil {
		s.etcd.Close()
		if s.peers != nil {
			s.peers.close()
		}
		return &weft.Error{Kind: weft.Unavailable, Op: "open", Thing: "store " + s.dir, Err: err}
	}
	s.lookAtSpace()
	if err := markOpen(s.dir); err != nil { // on a full disk; then the next start looks no less
		s.log.Warn("store: cannot note that it is open", "error", err)
	}
	s.etcdLog.opened()
	s.reign.Store(newReign(s.Leader(), s.server.Term()))
	s.start(s.tidy)
	s.start(s.followLeader)
	s.start(s.awaitEnd)
	s.start(s.watchSpace)
	if c != nil {
		s.start(s.becomeVoter)
	}
	return nil
}

// becomeReady waits until this member takes part, and tells the others its address
// if that is a new one.
func (s *Store) becomeReady(ctx context.Context, c *Cluster) (err error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if c != nil {
		if s.peers, err = newPeerClient(s.server.Cfg.PeerTLSInfo, s.ID()); err != nil {
			return err
		}
	}
	if err := s.takePart(ctx); err != nil {
		return err
	}
	if err := s.endAlarms(); err != nil {
		s.log.Error("store: it is full, and cannot be mended", "error", err)
	}
	if c != nil {
		return s.announce(ctx, c.advertise())
	}
	return nil
}

// takePart waits until this member is known by its name and has caught up. etcd's own
// sign for that (ReadyNotify) comes a request timeout late when the leader sends a
// whole snapshot, which has the answer to the member's request in it.
func (s *Store) takePart(ctx context.Context) error {
	ready := s.server.ReadyNotify()
	tick := time.NewTicker(partEvery)
	defer tick.Stop()
	for tell := time.Now().Add(tellAfter); ; {
		select {
		case <-ready:
			return nil
		case <-s.server.StopNotify():
			return s.endedBy(errEndedEarly)
		case <-s.etcdLog.ended:
			return s.endedBy(errEndedEarly)
		case <-ctx.Done():
			if s.peers != nil && s.Leader() == 0 {
				return s.noLeader()
			}
			return fmt.Errorf("etcd is not ready: %w", ctx.Err())
		case now := <-tick.C:
			if s.peers != nil && s.Leader() == 0 && now.After(tell) {
				s.log.Warn("store: waiting for the others: this member takes part when a majority is there", "members", s.otherMembers())
				tell = now.Add(tellEvery)
			}
		}
		if me := s.server.Cluster().Member(s.server.MemberID()); s.peers == nil || me == nil || me.Name == "" {
			continue
		}
		if s.isCaughtUp(ctx) {
			return nil
		}
	}
}

// isCaughtUp asks for no longer than there is to tell who is waited for.
func (s *Store) isCaughtUp(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, tellAfter)
	defer cancel()
	return s.server.LinearizableReadNotify(ctx) == nil
}

// otherMembers are the others' names and addresses, for messages.
func (s *Store) otherMembers() (list []string) {
	for _, m := range s.Members() {
		if m.ID != s.ID() {
			list = append(list, m.Name+" at "+m.Peer)
		}
	}
	return list
}

// announce changes the address by which the others know this member.
func (s *Store) announce(ctx context.Context, peer string) error {
	u := peerURL(peer)
	me := s.server.Cluster().Member(s.server.MemberID())
	if me == nil || slices.Equal(me.PeerURLs, []string{u.String()}) {
		return nil
	}
	changed := membership.Member{ID: me.ID, RaftAttributes: membership.RaftAttributes{PeerURLs: []string{u.String()}, IsLearner: me.IsLearner}}
	_, err := s.change(ctx, func(ctx context.Context) ([]*membership.Member, error) {
		return s.server.UpdateMember(ctx, changed)
	})
	if err != nil {
		return fmt.Errorf("tell the others the address %s: %w", peer, err)
	}
	return nil
}

// becomeVoter ends the time in which a new member only follows.
func (s *Store) becomeVoter() {
	tick := time.NewTicker(voterEvery)
	defer tick.Stop()
	for {
		me := s.server.Cluster().Member(s.server.MemberID())
		if me != nil && !me.IsLearner {
			return
		}
		if err := s.PromoteMember(context.Background(), s.ID()); err != nil && s.Err() == nil {
			s.log.Debug("store: no vote yet", "error", err)
		}
		select {
		case <-tick.C:
		case <-s.done:
			return
		}
	}
}

// awaitEnd notices when etcd ends without being asked to.
func (s *Store) awaitEnd() {
	select {
	case <-s.server.StopNotify():
	case <-s.etcdLog.ended:
	case <-s.closed:
		return
	}
	s.fail(s.endedBy(errors.New("etcd has stopped by itself")))
}

// endedBy says why etcd ended, which it only logs.
func (s *Store) endedBy(otherwise error) error {
	why := s.etcdLog.reason()
	switch {
	case why == "":
		return otherwise
	case strings.Contains(why, "permanently removed"): // etcd has no other word for it
		return fmt.Errorf("%w; to join again, empty %s", ErrRemoved, s.dir)
	}
	return errors.New(why)
}

// fail ends the store without closing it.
func (s *Store) fail(err error) {
	s.mu.Lock()
	first := s.failure == nil && !s.ended
	if first {
		s.failure = err
		close(s.done)
	}
	s.mu.Unlock()
	if first {
		s.log.Error("store: it has ended", "reason", err)
	}
}

// startEtcd runs in a goroutine of its own what may end in it (see etcdLog): a
// directory that etcd cannot read must not end the process without a word.
func (s *Store) startEtcd(cfg *embed.Config) (e *embed.Etcd, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%v", p)
			}
		}()
		err = errEndedEarly
		e, err = embed.StartEtcd(cfg)
	}()
	<-done
	if err == nil {
		return e, nil
	}
	var network *net.OpError
	if errors.As(err, &network) {
		return nil, &weft.Error{Kind: weft.Unavailable, Op: "open", Thing: "store " + s.dir, Err: err}
	}
	if err = s.endedBy(err); errors.Is(err, ErrRemoved) {
		return nil, err
	}
	return nil, damaged(filepath.Join(s.dir, "member"), err)
}

var errEndedEarly = errors.New("etcd ended while it started")

func etcdConfig(dir string, quota int64, log *etcdLog) (*embed.Config, error) {
	cfg := embed.NewConfig()
	cfg.Name = aloneName
	cfg.Dir = dir
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log.zap())

	// One member, which listens nowhere and has no peer: the address only has to
	// look like one.
	cfg.ListenPeerUrls, cfg.ListenClientUrls = nil, nil
	cfg.AdvertisePeerUrls, cfg.AdvertiseClientUrls = []url.URL{nowhere}, nil
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	// The identity of a new cluster comes out of this: no two are to be the same, or
	// members of one would be let into the other.
	cfg.InitialClusterToken = rand.Text()

	// Alone it has nobody to wait for: these only decide how soon after its start
	// it elects itself.
	cfg.TickMs, cfg.ElectionMs = 10, 100

	// Nobody needs the log to catch up: it is only read at start, and what comes after
	// the last snapshot is kept in memory then. Its entries are large: the registry's
	// writes share them, and a catalogue of 172,000 instances comes in 320. A snapshot
	// is a small file and a few fsyncs.
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 200, 100

	cfg.QuotaBackendBytes = quota
	cfg.MaxRequestBytes = maxTxnBytes
	cfg.AutoCompactionMode = embed.CompactorModePeriodic
	cfg.AutoCompactionRetention = "1h"
	return cfg, nil
}
