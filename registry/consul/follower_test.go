package consul

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// lagging is an api whose server is behind: catching up is what brings the writes.
func lagging(t *testing.T, arrives func()) (a *api, caught func() int) {
	t.Helper()
	a = &api{registry: newRegistry(t), acl: newAccessControl(&ACL{DefaultPolicy: "deny", InitialManagement: rootSecret})}
	var mu sync.Mutex
	n := 0
	a.catchUp = func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if n++; n == 1 && arrives != nil {
			arrives()
		}
		return nil
	}
	return a, func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

func (a *api) writeToken(t *testing.T, secret string) {
	t.Helper()
	var c change
	a.putToken(&c, &tokenRecord{AccessorID: newUUID(), SecretID: secret, Policies: []aclLink{{ID: managementPolicy}}})
	if done, _, err := a.commit(t.Context(), &c); err != nil || !done {
		t.Fatal(done, err)
	}
}

// A token that was just made on another server is good here at once, for all who come
// with it at the same time.
func TestNewTokenOnFollower(t *testing.T) {
	const secret = "f0f0f0f0-0000-4000-8000-000000000001"
	var a *api
	a, caught := lagging(t, func() { a.writeToken(t, secret) })
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if p, err := a.resolve(t.Context(), secret); err != nil || !p.management {
				t.Errorf("permissions %v, error %v", p, err)
			}
		})
	}
	all.Wait()
	if n := caught(); n != 1 {
		t.Errorf("caught up %d times, want 1", n)
	}
}

// Wrong tokens do not make this server ask the leader again and again.
func TestWrongTokensAskTheLeaderRarely(t *testing.T) {
	a, caught := lagging(t, nil)
	for range 100 {
		if _, err := a.resolve(t.Context(), "wrong"); err != errACLNotFound {
			t.Fatal(err)
		}
	}
	if n := caught(); n != 1 {
		t.Errorf("caught up %d times for one wrong token, want 1", n)
	}
	now, asked := time.Now(), 0
	for i := range 3 * maxMissed {
		if m, _ := a.acl.miss(sha256.Sum256([]byte(strconv.Itoa(i))), now); m != nil {
			asked++
		}
	}
	if asked >= maxMissed || len(a.acl.missed) > maxMissed {
		t.Errorf("%d guesses at once were asked about, and %d are remembered; want at most %d", asked, len(a.acl.missed), maxMissed)
	}
	if m, _ := a.acl.miss(sha256.Sum256([]byte("later")), now.Add(missAgain)); m == nil {
		t.Error("after the guesses nobody is asked about any more")
	}
}

// After a while a secret is looked for again: its token may have been made later.
func TestMissIsForgotten(t *testing.T) {
	ac := newAccessControl(&ACL{})
	hash, now := sha256.Sum256([]byte("x")), time.Unix(1, 0)
	for _, c := range []struct {
		after time.Duration
		first bool
	}{{0, true}, {missAgain - 1, false}, {missAgain, true}, {missAgain + 1, false}} {
		if m, first := ac.miss(hash, now.Add(c.after)); m == nil || first != c.first {
			t.Errorf("after %v: %v, want %v", c.after, first, c.first)
		}
	}
}

// A write that was planned on old data is planned again on what the others wrote.
func TestUpdateCatchesUp(t *testing.T) {
	a, _ := lagging(t, nil)
	write := func(index uint64, value string) bool {
		raw, _ := json.Marshal(value)
		done, err := a.registry.Transact(t.Context(), registry.TxnRequest{Ops: []registry.Op{{Key: &registry.KeyOp{Tree: configTree, Verb: "cas", Key: "k", Value: raw, Index: index}}}})
		if err != nil {
			t.Fatal(err)
		}
		return len(done.Errors) == 0
	}
	if !write(0, "theirs") {
		t.Fatal("not written")
	}
	seen := uint64(0) // what this server has before it catches up: nothing
	a.catchUp = func(context.Context) error {
		_, seen = find[string](a, configTree, "k")
		return nil
	}
	plans := 0
	_, err := a.update(t.Context(), "write", "k", func(c *change) error {
		plans++
		c.put(configTree, "k", seen, "ours")
		return nil
	})
	if d, _ := find[string](a, configTree, "k"); err != nil || plans != 2 || d.Value != "ours" {
		t.Errorf("error %v after %d plans; kept %v", err, plans, d)
	}
	a.catchUp = func(context.Context) error { return weft.Errorf(weft.Unavailable, "read", "registry", "closed") }
	if _, err := a.update(t.Context(), "write", "k", func(c *change) error {
		c.put(configTree, "k", 0, "ours")
		return nil
	}); weft.KindOf(err) != weft.Unavailable {
		t.Errorf("it goes on when the registry is closed: %v", err)
	}
}
