package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("STORE_TEST_WRITER"); dir != "" {
		writeUntilKilled(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func openTest(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: dir, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// testLogger fails the test on an error record.
func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(errorWriter{t}, &slog.HandlerOptions{Level: slog.LevelError}))
}

type errorWriter struct{ t testing.TB }

func (w errorWriter) Write(b []byte) (int, error) {
	w.t.Errorf("logged: %s", b)
	return len(b), nil
}

func put(t testing.TB, s *Store, key, value string) int64 {
	t.Helper()
	rev, err := s.Commit(t.Context(), Txn{Put: []KV{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func wantKind(t *testing.T, err error, kind weft.Kind, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want kind %d with %q", kind, texts)
	}
	if weft.KindOf(err) != kind {
		t.Errorf("error %q is of kind %d; want %d", err, weft.KindOf(err), kind)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

func TestCommitAndRead(t *testing.T) {
	s := openTest(t, t.TempDir())
	first := put(t, s, "a/1", "one")
	second := put(t, s, "a/1", "uno")
	put(t, s, "a/2", "two")
	put(t, s, "b/1", "other")
	if second <= first {
		t.Errorf("revision %d does not come after %d", second, first)
	}
	kv, ok, err := s.Get(t.Context(), "a/1")
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if string(kv.Value) != "uno" || kv.CreateRev != first || kv.ModRev != second {
		t.Errorf("got %+v; want uno, created at %d, changed at %d", kv, first, second)
	}
	if _, ok, err := s.Get(t.Context(), "a"); ok || err != nil {
		t.Errorf("a key that is only a prefix is found: %v, %v", ok, err)
	}
	if _, err := s.Commit(t.Context(), Txn{Put: []KV{{Key: "a/3"}}, Delete: []string{"a/1"}}); err != nil {
		t.Fatal(err)
	}
	wantKeys(t, s, "a/", "a/2", "a/3")
	wantKeys(t, s, "", "a/2", "a/3", "b/1")
	wantKeys(t, s, "c/")
}

func wantKeys(t *testing.T, s *Store, prefix string, want ...string) {
	t.Helper()
	kvs, rev, err := s.List(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, kv := range kvs {
		got = append(got, kv.Key)
		if kv.ModRev > rev {
			t.Errorf("%s is newer (%d) than the list (%d)", kv.Key, kv.ModRev, rev)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("list %q: got %v; want %v", prefix, got, want)
	}
}

func TestConditions(t *testing.T) {
	s := openTest(t, t.TempDir())
	rev := put(t, s, "taken", "x")
	cases := []struct {
		name  string
		conds []Cond
		says  string // "" means that the transaction succeeds
	}{
		{"absent key must not exist", []Cond{{Key: "free"}}, ""},
		{"present key at its revision", []Cond{{Key: "taken", ModRev: rev}}, ""},
		{"present key must not exist", []Cond{{Key: "taken"}}, "taken: it exists already, at revision " + strconv.FormatInt(rev, 10)},
		{"present key at another revision", []Cond{{Key: "taken", ModRev: 99}}, "expected 99"},
		{"absent key at a revision", []Cond{{Key: "free", ModRev: rev}}, "free: it is gone"},
		{"second condition fails", []Cond{{Key: "free"}, {Key: "taken"}}, "taken: it exists already"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.Commit(t.Context(), Txn{If: c.conds, Put: []KV{{Key: "result", Value: []byte(c.name)}}})
			kv, _, getErr := s.Get(t.Context(), "result")
			if getErr != nil {
				t.Fatal(getErr)
			}
			written := string(kv.Value) == c.name
			if c.says == "" {
				if err != nil || !written {
					t.Errorf("error %v, written %v; want it written", err, written)
				}
				return
			}
			wantKind(t, err, weft.Conflict, c.says)
			if written {
				t.Error("written in spite of the conflict")
			}
		})
	}
}

func TestMalformedTransactions(t *testing.T) {
	s := openTest(t, t.TempDir())
	for name, txn := range map[string]Txn{
		"put twice":       {Put: []KV{{Key: "a"}, {Key: "a"}}},
		"put and delete":  {Put: []KV{{Key: "a"}}, Delete: []string{"a"}},
		"empty put":       {Put: []KV{{}}},
		"empty delete":    {Delete: []string{""}},
		"empty condition": {If: []Cond{{}}, Delete: []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Commit(t.Context(), txn)
			wantKind(t, err, weft.Invalid)
		})
	}
	_, _, err := s.Get(t.Context(), "")
	wantKind(t, err, weft.Invalid)
	_, err = s.Commit(t.Context(), Txn{Put: []KV{{Key: "big", Value: make([]byte, maxTxnBytes+1)}}})
	wantKind(t, err, weft.TooLarge)
}

func TestRestartKeepsDataAndRevision(t *testing.T) {
	dir := t.TempDir()
	s := openTest(t, dir)
	put(t, s, "gone", "x")
	before := put(t, s, "kept", "value")
	if _, err := s.Commit(t.Context(), Txn{Delete: []string{"gone"}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := s.Commit(t.Context(), Txn{Put: []KV{{Key: "late"}}})
	wantKind(t, err, weft.Unavailable, "closed")
	_, _, err = s.Get(t.Context(), "kept")
	wantKind(t, err, weft.Unavailable, "closed")

	s = openTest(t, dir)
	wantKeys(t, s, "", "kept")
	kv, _, err := s.Get(t.Context(), "kept")
	if err != nil || string(kv.Value) != "value" || kv.ModRev != before {
		t.Errorf("got %+v, %v; want value at revision %d", kv, err, before)
	}
	if after := put(t, s, "new", ""); after != before+2 {
		t.Errorf("first revision after the restart is %d; want %d", after, before+2)
	}
}

// writeUntilKilled is the child of TestKillKeepsAcknowledged: it says each key
// that was acknowledged to it.
func writeUntilKilled(dir string) {
	s, err := Open(context.Background(), Config{Dir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	acked := make(chan string)
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("key/%d-%d", w, i)
				if _, err := s.Commit(context.Background(), Txn{Put: []KV{{Key: key, Value: bytes.Repeat([]byte("v"), 300)}}}); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				acked <- key
			}
		}()
	}
	for key := range acked {
		fmt.Println(key)
	}
}

func TestKillKeepsAcknowledged(t *testing.T) {
	dir := t.TempDir()
	for round := range 2 { // the second starts on what the first left behind
		acked := killInTheMiddle(t, dir, 500)
		s := openTest(t, dir)
		kvs, _, err := s.List(t.Context(), "key/")
		if err != nil {
			t.Fatal(err)
		}
		have := make(map[string]bool, len(kvs))
		for _, kv := range kvs {
			have[kv.Key] = true
		}
		for _, key := range acked {
			if !have[key] {
				t.Errorf("round %d: %s was acknowledged, and is lost", round, key)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killInTheMiddle returns the keys that a writer acknowledged before it was
// killed, at least so many.
func killInTheMiddle(t *testing.T, dir string, atLeast int) (acked []string) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "STORE_TEST_WRITER="+dir)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			break // a last line without its end was never said whole
		}
		acked = append(acked, strings.TrimSpace(line))
		if len(acked) == atLeast {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var exit *exec.ExitError
	if err := child.Wait(); !errors.As(err, &exit) {
		t.Fatalf("the writer ended by itself: %v", err)
	}
	if len(acked) < atLeast {
		t.Fatalf("the writer ended after %d keys", len(acked))
	}
	return acked
}

func TestBadGround(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name  string
		dir   func(t *testing.T) string
		kind  weft.Kind
		texts []string
	}{
		{"no directory given", func(*testing.T) string { return "" }, weft.Invalid, nil},
		{"below a file", func(*testing.T) string { return filepath.Join(file, "state") }, weft.Unavailable, []string{file}},
		{"not writable", readOnlyDir, weft.Unavailable, []string{"choose another data directory"}},
		{"newer format", withFile("FORMAT", "3\n"), weft.Invalid, []string{"format 3", "reads format 2"}},
		{"older format", withFile("FORMAT", "1\n"), weft.Invalid, []string{"format 1", "reads format 2"}},
		{"format is no number", withFile("FORMAT", "two"), weft.Invalid, []string{`"two"`}},
		{"somebody else's etcd", withFile("member", ""), weft.Invalid, []string{"not weft's"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s, err := Open(t.Context(), Config{Dir: c.dir(t)})
			if err == nil {
				t.Error("opened", s.Close())
			}
			wantKind(t, err, c.kind, c.texts...)
		})
	}
}

func withFile(name, content string) func(*testing.T) string {
	return func(t *testing.T) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
}

// readOnlyDir is a directory that not even root may write to.
func readOnlyDir(t *testing.T) string {
	if os.Geteuid() != 0 {
		dir := filepath.Join(t.TempDir(), "locked")
		if err := os.Mkdir(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, "state")
	}
	return "/sys/kernel/weft"
}

func TestSecondOpenerIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := openTest(t, dir)
	_, err := Open(t.Context(), Config{Dir: dir})
	wantKind(t, err, weft.Conflict, "process "+strconv.Itoa(os.Getpid()), "choose another data directory")
	put(t, s, "still", "works")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, dir)
	wantKeys(t, s, "", "still")
}

func TestDirectoryIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", strings.Repeat("long", 40)) // longer than a socket's path may be
	openTest(t, dir)
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v; want 0700", info.Mode(), err)
	}
}

func next(t *testing.T, ch <-chan Batch) Batch {
	t.Helper()
	select {
	case b, ok := <-ch:
		if !ok {
			t.Fatal("the watch ended")
		}
		return b
	case <-time.After(10 * time.Second):
		t.Fatal("no batch arrives")
	}
	panic("unreachable")
}

// collect reads batches up to revision rev, and returns "key=value@revision" or
// "-key@revision" for each event.
func collect(t *testing.T, ch <-chan Batch, rev int64) (events []string) {
	t.Helper()
	last := int64(0)
	for last < rev {
		b := next(t, ch)
		if b.Err != nil {
			t.Fatal(b.Err)
		}
		for _, ev := range b.Events {
			if ev.ModRev < last {
				t.Errorf("event of revision %d after %d", ev.ModRev, last)
			}
			last = ev.ModRev
			if ev.Deleted {
				events = append(events, fmt.Sprintf("-%s@%d", ev.Key, ev.ModRev))
			} else {
				events = append(events, fmt.Sprintf("%s=%s@%d", ev.Key, ev.Value, ev.ModRev))
			}
		}
		if b.Rev != last {
			t.Errorf("batch says revision %d; its last event has %d", b.Rev, last)
		}
	}
	return events
}

func TestWatchFromRevision(t *testing.T) {
	s := openTest(t, t.TempDir())
	put(t, s, "a/1", "old")
	start := put(t, s, "a/2", "old")
	put(t, s, "a/1", "missed")
	put(t, s, "b/1", "other")
	ctx, cancel := context.WithCancel(t.Context())
	ch := s.Watch(ctx, "a/", start)
	rev, err := s.Commit(t.Context(), Txn{Put: []KV{{Key: "a/3", Value: []byte("new")}}, Delete: []string{"a/2"}})
	if err != nil {
		t.Fatal(err)
	}
	got := collect(t, ch, rev)
	want := []string{
		fmt.Sprintf("a/1=missed@%d", start+1),
		fmt.Sprintf("a/3=new@%d", rev),
		fmt.Sprintf("-a/2@%d", rev),
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v; want %v", got, want)
	}
	cancel()
	for range ch { // ends
	}
}

func TestWatchKeepsUpWithSlowReader(t *testing.T) {
	s := openTest(t, t.TempDir())
	ch := s.Watch(t.Context(), "", put(t, s, "start", ""))
	const writes = 1000 // several times what etcd's channel holds
	var rev int64
	for i := range writes {
		rev = put(t, s, "k", strconv.Itoa(i))
	}
	if got := collect(t, ch, rev); len(got) != writes {
		t.Errorf("%d of %d changes arrive", len(got), writes)
	}
}

// TestWatchHoldsLittle: what a reader does not take waits in etcd, not in memory.
func TestWatchHoldsLittle(t *testing.T) {
	s := openTest(t, t.TempDir())
	start := put(t, s, "start", "")
	ch := s.Watch(t.Context(), "", start)
	const puts = 1000
	txn := Txn{Put: make([]KV, puts)}
	for i := range txn.Put {
		txn.Put[i].Key = strconv.Itoa(i)
	}
	var rev int64
	for range 2 * maxPending / puts {
		var err error
		if rev, err = s.Commit(t.Context(), txn); err != nil {
			t.Fatal(err)
		}
	}
	total := 0
	for last := start; last < rev; {
		b := next(t, ch)
		if len(b.Events) > maxPending+puts {
			t.Errorf("a batch of %d events", len(b.Events))
		}
		total += len(b.Events)
		last = b.Rev
	}
	if want := 2 * maxPending / puts * puts; total != want {
		t.Errorf("%d events; want %d", total, want)
	}
}

func TestWatchOfCompactedRevisions(t *testing.T) {
	s := openTest(t, t.TempDir())
	start := put(t, s, "a", "1")
	put(t, s, "a", "2")
	rev := put(t, s, "a", "3")
	if _, err := s.server.Compact(t.Context(), &pb.CompactionRequest{Revision: rev, Physical: true}); err != nil {
		t.Fatal(err)
	}
	ch := s.Watch(t.Context(), "", start)
	b := next(t, ch)
	wantKind(t, b.Err, weft.Unavailable, "compacted")
	if b, ok := <-ch; ok {
		t.Errorf("after the error comes %+v", b)
	}
	kvs, rev, err := s.List(t.Context(), "") // what a reader does then
	if err != nil || len(kvs) != 1 {
		t.Fatal(kvs, err)
	}
	ch = s.Watch(t.Context(), "", rev)
	rev = put(t, s, "a", "4")
	if got := collect(t, ch, rev); len(got) != 1 {
		t.Errorf("got %v after the reload", got)
	}
}

func TestHistoryIsBoundedByCount(t *testing.T) {
	s := openTest(t, t.TempDir())
	const keep = 20
	first := put(t, s, "a", "")
	rev := first
	for rev < first+keep+keep/4 {
		rev = put(t, s, "a", "")
	}
	s.compactBeyond(keep)
	if got := collect(t, s.Watch(t.Context(), "", first-1), rev); len(got) != keep+keep/4+1 {
		t.Errorf("%d changes are left; too few were there to drop any", len(got))
	}
	for rev < first+2*keep {
		rev = put(t, s, "a", "")
	}
	s.compactBeyond(keep)
	wantKind(t, next(t, s.Watch(t.Context(), "", first-1)).Err, weft.Unavailable, "compacted")
	if got := collect(t, s.Watch(t.Context(), "", rev-keep), rev); len(got) != keep {
		t.Errorf("%d of the newest %d changes are left", len(got), keep)
	}
}

func TestCloseEndsWatches(t *testing.T) {
	s := openTest(t, t.TempDir())
	ch := s.Watch(t.Context(), "", 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := <-ch; ok {
		t.Error("a batch after Close")
	}
	if _, ok := <-s.Watch(t.Context(), "", 1); ok {
		t.Error("a batch from a closed store")
	}
}

func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := openTest(b, b.TempDir())
			value := bytes.Repeat([]byte("v"), 300)
			b.SetParallelism(max(1, writers/2))
			if writers == 1 {
				for i := range b.N {
					if _, err := s.Commit(b.Context(), Txn{Put: []KV{{Key: strconv.Itoa(i), Value: value}}}); err != nil {
						b.Fatal(err)
					}
				}
				return
			}
			b.RunParallel(func(p *testing.PB) {
				for i := 0; p.Next(); i++ {
					if _, err := s.Commit(b.Context(), Txn{Put: []KV{{Key: strconv.Itoa(i), Value: value}}}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	for i := range b.N {
		_ = i
		s, err := Open(b.Context(), Config{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
