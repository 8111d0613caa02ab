package clients

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/test/world"
)

const contenders = 10

// Ten clients add to a number that they read and write apart: with a lock that holds
// they lose nothing.
func TestLockUnderContention(t *testing.T) {
	const rounds = 2
	s := start(t)
	_, err := s.api.KV().Put(&api.KVPair{Key: "shared/count", Value: []byte("0")}, nil)
	must(t, err)
	failures := make(chan error, contenders)
	var inside atomic.Int32
	for range contenders {
		c := client(t, s.counted)
		go func() { failures <- addLocked(c, rounds, &inside) }()
	}
	// A client that loses a race waits five seconds, as it is written.
	late := time.After(45 * time.Second)
	for range contenders {
		select {
		case err := <-failures:
			if err != nil {
				t.Error(err)
			}
		case <-late:
			pair, _, err := s.api.KV().Get("shared/lock", nil)
			t.Fatalf("not all had their turns; the lock is %+v %v", pair, err)
		}
	}
	pair, _, err := s.api.KV().Get("shared/count", nil)
	must(t, err)
	if string(pair.Value) != fmt.Sprint(contenders*rounds) {
		t.Errorf("%s are counted, want %d", pair.Value, contenders*rounds)
	}
	world.Eventually(t, soon, "the end of all sessions", func() error { // each is ended behind Unlock's back
		sessions, _, err := s.api.Session().List(nil)
		if len(sessions) != 0 {
			err = fmt.Errorf("%d are left", len(sessions))
		}
		return err
	})
	t.Logf("%d requests of the lock for %d turns", s.requests.of("/v1/kv/shared/lock"), contenders*rounds)
}

func addLocked(c *api.Client, rounds int, inside *atomic.Int32) error {
	for range rounds {
		l, err := c.LockOpts(&api.LockOptions{Key: "shared/lock", LockDelay: time.Millisecond, SessionTTL: "10s"})
		if err != nil {
			return err
		}
		if lost, err := l.Lock(nil); err != nil || lost == nil {
			return fmt.Errorf("lock: %w", err)
		}
		if err := errors.Join(addOne(c, inside), l.Unlock()); err != nil {
			return err
		}
	}
	return nil
}

// addOne is what the lock is for.
func addOne(c *api.Client, inside *atomic.Int32) error {
	defer inside.Add(-1)
	if n := inside.Add(1); n != 1 {
		return fmt.Errorf("%d hold the lock", n)
	}
	pair, _, err := c.KV().Get("shared/count", &api.QueryOptions{RequireConsistent: true})
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(string(pair.Value))
	if err != nil {
		return err
	}
	pair.Value = fmt.Append(nil, n+1)
	_, err = c.KV().Put(pair, nil)
	return err
}

// Ten clients share three slots.
func TestSemaphoreUnderContention(t *testing.T) {
	const slots = 3
	s := start(t)
	var inside, most atomic.Int32
	failures := make(chan error, contenders)
	full := make(chan struct{})
	var fullOnce sync.Once
	for range contenders {
		c := client(t, s.counted)
		go func() {
			failures <- func() error {
				m, err := c.SemaphoreOpts(&api.SemaphoreOptions{Prefix: "shared/slots", Limit: slots, SessionTTL: "10s"})
				if err != nil {
					return err
				}
				if lost, err := m.Acquire(nil); err != nil || lost == nil {
					return fmt.Errorf("acquire: %w", err)
				}
				n := inside.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				if n >= slots {
					fullOnce.Do(func() { close(full) })
				}
				<-full // the first ones stay until all slots are taken
				inside.Add(-1)
				return m.Release()
			}()
		}()
	}
	for range contenders {
		select {
		case err := <-failures:
			must(t, err)
		case <-time.After(20 * time.Second):
			t.Fatalf("not all had their turn; %d are inside", inside.Load())
		}
	}
	if most.Load() != slots {
		t.Errorf("%d were inside at once, want %d", most.Load(), slots)
	}
}

// A leader whose session ends is followed at once by another, and learns it.
func TestLeaderIsFollowed(t *testing.T) {
	s := start(t)
	type term struct {
		name string
		lost <-chan struct{}
	}
	terms := make(chan term, contenders)
	stop := make(chan struct{})
	var done sync.WaitGroup
	for i := range contenders {
		name := fmt.Sprint("candidate-", i)
		c := client(t, s.counted)
		done.Go(func() {
			id, _, err := c.Session().Create(&api.SessionEntry{Name: name, TTL: "10s", Behavior: api.SessionBehaviorRelease, LockDelay: time.Millisecond}, nil)
			if err != nil {
				t.Error(err)
				return
			}
			l, err := c.LockOpts(&api.LockOptions{Key: "leader", Value: []byte(name), Session: id})
			if err != nil {
				t.Error(err)
				return
			}
			lost, err := l.Lock(stop)
			if err != nil {
				t.Error(err)
				return
			}
			if lost != nil {
				terms <- term{name, lost}
			}
		})
	}
	defer func() {
		close(stop)
		// Who waits for the key looks at stop when that changes, and not before.
		if _, err := s.api.KV().Delete("leader", nil); err != nil {
			t.Error(err)
		}
		done.Wait()
	}()
	next := func() term {
		t.Helper()
		select {
		case n := <-terms:
			return n
		case <-time.After(20 * time.Second):
			t.Fatal("there is no leader")
		}
		panic("unreachable")
	}
	leader := next()
	for range 3 {
		world.Eventually(t, soon, "the leader in the key", func() error {
			pair, _, err := s.api.KV().Get("leader", nil)
			if err != nil || pair == nil || string(pair.Value) != leader.name {
				return fmt.Errorf("%+v, want %s: %w", pair, leader.name, err)
			}
			return nil
		})
		pair, _, err := s.api.KV().Get("leader", nil)
		must(t, err)
		_, err = s.api.Session().Destroy(pair.Session, nil) // what its crash comes to
		must(t, err)
		begin := time.Now()
		select {
		case <-leader.lost:
		case <-time.After(soon):
			t.Errorf("%s did not learn in %s that it does not lead", leader.name, soon)
		}
		was := leader.name
		if leader = next(); leader.name == was {
			t.Errorf("%s follows itself", was)
		}
		t.Logf("%s follows %s after %s", leader.name, was, time.Since(begin))
	}
}

// A lock that another kind of client holds, and one that is not free, are refused with
// the errors that programs compare.
func TestLockRefuses(t *testing.T) {
	s := start(t)
	first, err := s.api.LockOpts(&api.LockOptions{Key: "one", SessionTTL: "10s"})
	must(t, err)
	_, err = first.Lock(nil)
	must(t, err)
	second, err := s.api.LockOpts(&api.LockOptions{Key: "one", SessionTTL: "10s", LockTryOnce: true, LockWaitTime: 100 * time.Millisecond})
	must(t, err)
	begin := time.Now()
	if lost, err := second.Lock(nil); err != nil || lost != nil {
		t.Errorf("a second lock: %v %v", lost, err)
	}
	if waited := time.Since(begin); waited > 2*time.Second {
		t.Errorf("it waited %s, want 100 ms", waited)
	}
	if err := second.Destroy(); !errors.Is(err, api.ErrLockInUse) {
		t.Errorf("destroy of a lock in use: %v", err)
	}
	must(t, first.Unlock())
	_, err = s.api.KV().Put(&api.KVPair{Key: "two", Value: []byte("mine"), Flags: 1}, nil)
	must(t, err)
	conflicting, err := s.api.LockKey("two")
	must(t, err)
	if _, err := conflicting.Lock(nil); !errors.Is(err, api.ErrLockConflict) {
		t.Errorf("a lock on a key with other flags: %v", err)
	}
}
