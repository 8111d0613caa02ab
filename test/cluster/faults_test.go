package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/test/world"
)

// writesWithin is how long a fault of one server may cost writes.
const writesWithin = 3 * time.Second

// readsWithin is how long a read may take at most: none waits for an election.
const readsWithin = 2 * time.Second

// tree reads all keys below a prefix, as consistent.
func (s *server) tree(prefix string) map[string]string {
	s.c.t.Helper()
	have := map[string]string{}
	a, err := s.consulCall(within(callTimeout), "GET", "kv/"+prefix+"?consistent&recurse", nil)
	if err != nil {
		s.c.t.Fatalf("read %s at %s: %v", prefix, s.name, err)
	}
	var list []pair
	if a.status == 200 {
		if err := json.Unmarshal(a.body, &list); err != nil {
			s.c.t.Fatal(err)
		}
	}
	for _, p := range list {
		have[p.Key] = string(p.Value)
	}
	return have
}

func TestOneServerGrowsToThree(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, 1)
	first := c.servers[0]
	l := c.under(consistent, first)
	l.ackedSince(time.Now(), time.Second, first)
	c.grow()
	c.grow()
	l.ackedSince(time.Now(), time.Second, c.servers...)
	l.stop()
	l.writesWentOn()
	l.readsWentOn(readsWithin)
	l.nothingLost(c.servers...)
}

func TestTheLeaderIsKilled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, 3)
	leader, others := c.leader()
	l := c.under(stale, others...)
	l.ackedSince(time.Now(), 5*time.Second, others...)
	locks := newLocks(others[0])

	killed := time.Now()
	leader.proc.Kill()
	if took := l.ackedSince(killed, 2*writesWithin, others...); took > writesWithin {
		t.Errorf("writes stopped for %s", took)
	} else {
		t.Logf("writes stopped for %s", took)
	}
	locks.stillHeldAt(others[1])
	leader.start()
	c.settled()
	l.stop()
	l.readsWentOn(readsWithin)
	l.nothingLost(c.servers...)
	locks.delayOutlives(c)
}

func TestTheLeaderIsStopped(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, 3)
	leader, others := c.leader()
	l := c.under(stale, others...)
	lease := others[0].newLease("lease-a")
	leader.mustPut("seen", "old")
	newer := others[0]

	stopped := time.Now()
	leader.proc.Pause()
	if took := l.ackedSince(stopped, 2*writesWithin, others...); took > writesWithin {
		t.Errorf("writes stopped for %s", took)
	} else {
		t.Logf("writes stopped for %s", took)
	}
	newer.mustPut("seen", "new")
	index := newer.mustGet("seen", consistent).ModifyIndex
	lease.renewFor(3 * time.Second)

	// These wait in the stopped server's socket and are what it does first.
	const askers = 8
	done := make(chan error, 2*askers)
	for i := range askers {
		go func() { done <- leader.readsNothingOld() }()
		go func() { done <- leader.refusesNothingNew(index, i) }()
	}
	<-time.After(300 * time.Millisecond)
	leader.proc.Resume()
	for range 2 * askers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	lease.renewFor(2 * time.Second)
	l.ackedSince(time.Now(), 5*time.Second, c.servers...)
	l.stop()
	l.readsWentOn(readsWithin)
	l.nothingLost(c.servers...)
	lease.neverLapsed(c.servers...)
}

// readsNothingOld: a consistent read tells what is acknowledged, or fails.
func (s *server) readsNothingOld() error {
	p, _, err := s.get(within(callTimeout), "seen", consistent)
	if err == nil && string(p.Value) == "old" {
		return fmt.Errorf("%s answered what is old as consistent", s.name)
	}
	return nil
}

// refusesNothingNew: a compare-and-set by the newest index is not refused by what was
// before it.
func (s *server) refusesNothingNew(index uint64, i int) error {
	ok, err := s.put(within(callTimeout), "seen", fmt.Sprintf("newer by %d", i), fmt.Sprintf("cas=%d", index))
	if err == nil && !ok {
		// Another of these may have been first, then the value is newer.
		if p, _, err := s.get(within(callTimeout), "seen", consistent); err == nil && string(p.Value) == "new" {
			return fmt.Errorf("%s refused a compare-and-set by what it knew before it was stopped", s.name)
		}
	}
	return nil
}

func TestAFollowerIsStopped(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, 3)
	leader, others := c.leader()
	l := c.under(ordinary, leader, others[0])
	l.ackedSince(time.Now(), 5*time.Second, leader, others[0])
	others[1].proc.Pause()
	<-time.After(2 * time.Second)
	others[1].proc.Resume()
	l.ackedSince(time.Now(), 5*time.Second, c.servers...)
	l.stop()
	l.writesWentOn()
	l.readsWentOn(readsWithin)
	l.nothingLost(c.servers...)

	// All of them at once, as a machine that sleeps: nobody lapses for that.
	lease := others[0].newLease("lease-b")
	lease.renewFor(time.Second)
	for _, s := range c.servers {
		s.proc.Pause()
	}
	<-time.After(2 * leaseTTL)
	for _, s := range c.servers {
		s.proc.Resume()
	}
	lease.renewFor(2 * leaseTTL)
	lease.neverLapsed(c.servers...)
}

// lease is an instance that keeps a promise.
type lease struct {
	s  *server
	id string
}

const leaseTTL = 2 * time.Second

func (s *server) newLease(id string) *lease {
	s.c.t.Helper()
	err := s.registerAgent(within(callTimeout), id, map[string]any{
		"Name": "leases", "Port": 80, "Check": map[string]any{"TTL": leaseTTL.String(), "Status": "passing"},
	})
	if err != nil {
		s.c.t.Fatal(err)
	}
	return &lease{s: s, id: id}
}

// renewFor keeps the promise, four times in a TTL.
func (l *lease) renewFor(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); <-time.After(leaseTTL / 4) {
		_, err := l.s.consulCall(within(callTimeout), "PUT", "agent/check/pass/service:"+l.id, nil)
		if err != nil {
			l.s.c.t.Errorf("renew %s: %v", l.id, err)
		}
		l.holds(l.s)
	}
}

func (l *lease) holds(s *server) {
	list, _, err := s.instances(within(callTimeout), "leases", stale)
	if err != nil || len(list) != 1 {
		l.s.c.t.Errorf("%s: %d instances with a lease, %v", s.name, len(list), err)
		return
	}
	for _, c := range list[0].Checks {
		if c.Status != "passing" {
			l.s.c.t.Errorf("%s: %s is %s: %s", s.name, c.CheckID, c.Status, c.Output)
		}
	}
}

// neverLapsed looks into the servers' logs.
func (l *lease) neverLapsed(servers ...*server) {
	for _, s := range servers {
		l.holds(s)
		if strings.Contains(s.proc.Log(), `"check changed","check":"service:`+l.id) {
			l.s.c.t.Errorf("%s: %s lapsed", s.name, l.id)
		}
	}
}

// locks are two keys that sessions hold.
type locks struct {
	s    *server
	held string // session
}

const lockDelay = 4 * time.Second

func (s *server) newSession() string {
	s.c.t.Helper()
	a, err := s.consulCall(within(callTimeout), "PUT", "session/create", map[string]any{"TTL": "60s", "LockDelay": lockDelay.String()})
	var made struct{ ID string }
	if err == nil {
		err = json.Unmarshal(a.body, &made)
	}
	if err != nil {
		s.c.t.Fatalf("session at %s: %v", s.name, err)
	}
	return made.ID
}

// acquire tries until it is answered: an answer can be lost with the leader, and to
// ask again for a lock that one has is no mistake.
func (s *server) acquire(key, session string) (ok bool) {
	s.c.t.Helper()
	world.Eventually(s.c.t, callTimeout, "an answer to acquire "+key+" at "+s.name, func() (err error) {
		ok, err = s.put(within(callTimeout), key, "by "+session, "acquire="+session)
		return err
	})
	return ok
}

func newLocks(s *server) *locks {
	s.c.t.Helper()
	l := &locks{s: s, held: s.newSession()}
	if !s.acquire("lock/a", l.held) {
		s.c.t.Fatal("the lock was not free")
	}
	return l
}

// stillHeldAt: nobody else gets the lock, and its holder has it.
func (l *locks) stillHeldAt(s *server) {
	l.s.c.t.Helper()
	if s.acquire("lock/a", s.newSession()) {
		l.s.c.t.Errorf("%s gave a lock away that is held", s.name)
	}
	if p := s.mustGet("lock/a", consistent); p.Session != l.held {
		l.s.c.t.Errorf("%s: the lock is held by %q", s.name, p.Session)
	}
	if !s.acquire("lock/a", l.held) {
		l.s.c.t.Errorf("%s does not give the lock to who has it", s.name)
	}
}

// delayOutlives ends the session and kills the leader: the lock is not given away
// before its delay is over, and it is then.
func (l *locks) delayOutlives(c *cluster) {
	c.t.Helper()
	leader, others := c.leader()
	from := others[0]
	other := from.newSession()
	ended := time.Now()
	if _, err := from.consulCall(within(callTimeout), "PUT", "session/destroy/"+l.held, nil); err != nil {
		c.t.Fatal(err)
	}
	destroyed := time.Now()
	leader.proc.Kill()
	got := time.Time{}
	world.Eventually(c.t, lockDelay+10*time.Second, "the lock to be free", func() error {
		if !from.acquire("lock/a", other) {
			return fmt.Errorf("not yet")
		}
		got = time.Now()
		return nil
	})
	// What the two writers' clocks may differ by is nothing here.
	if after := got.Sub(ended); after < lockDelay {
		c.t.Errorf("the lock was given away %s after its session ended; its delay is %s", after, lockDelay)
	}
	c.t.Logf("the lock was free %s after its session ended", got.Sub(destroyed))
	leader.start()
	c.settled()
}
