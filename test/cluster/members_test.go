package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/test/world"
)

func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, 3)
	leader, others := c.leader()
	l := c.under(ordinary, others[0])
	l.ackedSince(time.Now(), 5*time.Second, others[0])

	// A follower goes, and joins again with an emptied directory.
	c.remove(others[1], others[0])
	if err := os.RemoveAll(others[1].data); err != nil {
		t.Fatal(err)
	}
	others[1].join(others[0])
	others[1].start()
	c.servers = append(c.servers, others[1])
	c.settled()

	// So does the leader, which hands over first.
	c.remove(leader, others[1])
	l.ackedSince(time.Now(), 5*time.Second, others...)
	l.stop()
	l.readsWentOn(readsWithin)
	l.writesWentOn()
	l.nothingLost(others...)
}

// remove takes one out, asked of another, and sees it end and say so.
func (c *cluster) remove(one, by *server) {
	c.t.Helper()
	out, err := by.run("members", "remove", one.name, "--addr", by.api)
	if err != nil || !strings.Contains(out, one.name+": removed") {
		c.t.Fatalf("weft members remove: %v: %s", err, out)
	}
	select {
	case <-one.proc.Done():
	case <-time.After(10 * time.Second):
		c.t.Fatalf("%s was removed and does not end", one.name)
	}
	one.proc.Kill() // it is meant to have ended
	if log := one.proc.Log(); !strings.Contains(log, "removed from its cluster") || !strings.Contains(log, one.data) {
		c.t.Errorf("%s does not say that it was removed, and what to empty", one.name)
	}
	_, c.servers = c.split(one.name)
	c.settled()
}

func TestABackupUnderLoadIsRestored(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, 3)
	_, others := c.leader()
	l := c.under(ordinary, c.servers...)
	l.ackedSince(time.Now(), 5*time.Second, c.servers...)
	from := others[0]
	from.mustPut("before", "the backup")
	_, index, err := from.get(t.Context(), "before", consistent)
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	before := map[string]string{}
	for key, value := range l.acked {
		before[key] = value
	}
	l.mu.Unlock()
	file := filepath.Join(c.dir, "weft.backup")
	if out, err := from.run("backup", "--addr", from.api, "--data", from.data, file); err != nil {
		t.Fatalf("weft backup: %v: %s", err, out)
	}
	l.ackedSince(time.Now(), 5*time.Second, c.servers...)
	l.stop()
	l.writesWentOn()

	restored := &cluster{t: t, dir: c.dir}
	s := restored.add("restored")
	if out, err := s.run("restore", "--data", s.data, file); err != nil {
		t.Fatalf("weft restore: %v: %s", err, out)
	}
	if out, err := s.run("restore", "--data", s.data, file); err == nil || !strings.Contains(out, s.data) {
		t.Errorf("a directory with data was restored over: %v: %s", err, out)
	}
	s.start()
	have := s.tree("load/")
	for key, value := range before {
		if have[key] != value {
			t.Fatalf("%s is %q, and was %q before the backup", key, have[key], value)
		}
	}
	if _, now, err := s.get(t.Context(), "before", consistent); err != nil || now < index {
		t.Errorf("the index was %d and is %d: %v", index, now, err)
	}
	s.mustPut("after", "the restore")
	if p := s.mustGet("after", consistent); p.ModifyIndex <= index {
		t.Errorf("a new write has index %d, and there was %d before", p.ModifyIndex, index)
	}
	if list, err := s.members(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("who was restored knows %v: %v", list, err)
	}
}

func TestTwoOfFiveAreKilledAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, 5)
	leader, others := c.leader()
	left := others[1:]
	l := c.under(stale, left...)
	l.ackedSince(time.Now(), 5*time.Second, left...)
	killed := time.Now()
	leader.proc.Kill()
	others[0].proc.Kill()
	took := l.ackedSince(killed, 2*writesWithin, left...)
	t.Logf("writes stopped for %s", took)
	if took > writesWithin {
		t.Errorf("writes stopped for %s", took)
	}
	leader.start()
	others[0].start()
	c.settled()
	l.stop()
	l.readsWentOn(readsWithin)
	l.nothingLost(c.servers...)
}

// Every refusal names the thing, the place, and what to do.
func TestWrongSetUpsAreRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, 1)
	first := c.servers[0]
	other := newCluster(t, nil, 1).servers[0] // of another mesh
	nowhere := c.add("nowhere").control
	c.servers = c.servers[:1]
	noToken := filepath.Join(c.dir, "no-token")
	if err := os.WriteFile(noToken, []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(first.data, "server-token")
	joinToken := filepath.Join(first.data, "join-token")
	for _, refused := range []struct {
		what  string
		name  string
		flags []string
		says  []string
	}{
		{"a token that is none", "x1", []string{"--join", first.control, "--server-token-file", noToken}, []string{first.control, "server-token", "--server-token-file"}},
		{"no token", "x2", []string{"--join", first.control}, []string{first.control, "server-token"}},
		{"the token of proxies", "x3", []string{"--join", first.control, "--server-token-file", joinToken}, []string{first.control, "wrong server token", "server-token"}},
		{"another mesh", "x4", []string{"--join", other.control, "--server-token-file", token}, []string{other.control, "--server-token-file", "same mesh"}},
		{"nobody", "x5", []string{"--join", nowhere, "--server-token-file", token}, []string{nowhere, "connection refused", "--join"}},
		{"not a control port", "x6", []string{"--join", first.consul, "--server-token-file", token}, []string{first.consul, "--control"}},
		{"a name that is taken", first.name, []string{"--join", first.control, "--server-token-file", token}, []string{first.name, "--node", "members remove"}},
		{"a missing file", "x7", []string{"--join", first.control, "--server-token-file", noToken + "!"}, []string{noToken + "!"}},
	} {
		t.Run(strings.ReplaceAll(refused.what, " ", "-"), func(t *testing.T) {
			t.Parallel()
			c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "data")}
			s := c.add(refused.name)
			s.joins = refused.flags
			began := time.Now()
			s.refused(t, refused.says...)
			t.Logf("refused after %s", time.Since(began))
		})
	}
	t.Run("a-directory-with-data", func(t *testing.T) {
		t.Parallel()
		lone := newCluster(t, nil, 1).servers[0]
		lone.proc.Stop()
		lone.join(first)
		lone.refused(t, first.control, lone.data, "new directory")
	})
	t.Run("no-peer-address", func(t *testing.T) {
		t.Parallel()
		out, err := first.run("server", "--data", t.TempDir(), "--join", first.control, "--server-token-file", token,
			"--api", "127.0.0.1:0", "--consul", "127.0.0.1:0", "--eureka", "127.0.0.1:0", "--dns", "127.0.0.1:0", "--control", "127.0.0.1:0", "--otlp-http", "127.0.0.1:0", "--otlp-grpc", "127.0.0.1:0")
		if err == nil || !strings.Contains(out, "--peer") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// refused starts the server, which has to end with an error that says all of these.
func (s *server) refused(t *testing.T, says ...string) {
	t.Helper()
	s.launch()
	select {
	case <-s.proc.Done():
		s.proc.Kill() // it is meant to have ended
	case <-time.After(20 * time.Second):
		t.Fatalf("it neither started nor failed in 20 s: %s", s.proc.Log())
	}
	log := s.proc.Log()
	t.Log(strings.TrimSpace(log))
	for _, text := range says {
		if !strings.Contains(log, text) {
			t.Errorf("it does not say %q", text)
		}
	}
}

func TestAnEvenNumberIsWarnedAbout(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, 2)
	world.Eventually(t, 5*time.Second, "a warning", func() error {
		for _, s := range c.servers {
			if strings.Contains(s.proc.Log(), "even number of servers") {
				return nil
			}
		}
		return os.ErrNotExist
	})
	if log := c.grow().proc.Log(); strings.Contains(log, "even number") {
		t.Errorf("three are no even number: %s", log)
	}
}
