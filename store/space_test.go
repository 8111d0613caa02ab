package store

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/weftmesh/weft"
)

// insideEnv says that this process has mounts of its own.
const insideEnv = "STORE_TEST_INSIDE"

// smallDisk is a file system in memory, of so many MB, for a test that runs inside.
func smallDisk(t *testing.T, mb int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("weft", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mb)); err != nil {
		t.Skipf("a file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// inside says whether the test is to go on. Outside, it has run in a process that has
// mounts of its own, which go with it however it ends.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		return true
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	child.Env = append(os.Environ(), insideEnv+"=1")
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	out, err := child.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		t.Fatalf("%v\n%s", err, out)
	case err != nil:
		t.Skipf("no process with mounts of its own can be had here: %v", err)
	case bytes.Contains(out, []byte("--- SKIP")):
		t.Skipf("%s", out)
	case !bytes.Contains(out, []byte("--- PASS: "+t.Name())):
		t.Fatalf("it did not run:\n%s", out)
	}
	return false
}

// records counts what is logged.
type records struct {
	mu    sync.Mutex
	lines []string
}

func (r *records) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, string(b))
	return len(b), nil
}

func (r *records) count(text string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, line := range r.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// fillUp commits until it is refused.
func fillUp(t *testing.T, s *Store, prefix string) (acked []string, refusal error) {
	t.Helper()
	value := bytes.Repeat([]byte("v"), 64<<10)
	for i := range 20_000 {
		key := prefix + strconv.Itoa(i)
		if _, err := s.Commit(t.Context(), Txn{Put: []KV{{Key: key, Value: value}}}); err != nil {
			return acked, err
		}
		acked = append(acked, key)
	}
	t.Fatal("it takes everything")
	return nil, nil
}

func wantAll(t *testing.T, s *Store, prefix string, acked []string) {
	t.Helper()
	kvs, _, err := s.List(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[string]bool)
	for _, kv := range kvs {
		have[kv.Key] = true
	}
	for _, key := range acked {
		if !have[key] {
			t.Errorf("%s was acknowledged, and is lost", key)
		}
	}
}

// TestFullDisk: the store fills its disk by itself.
func TestFullDisk(t *testing.T) {
	if !inside(t) {
		return
	}
	disk := smallDisk(t, 160)
	dir := filepath.Join(disk, "state")
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 40<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var log records
	open := func() *Store {
		s, err := Open(t.Context(), Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	defer func() { _ = s.Close() }()
	start := put(t, s, "start", "x")
	watch := s.Watch(t.Context(), "k/", start)
	acked, err := fillUp(t, s, "k/")
	wantKind(t, err, weft.Unavailable, dir, "MB left", "MB are kept")
	if len(acked) == 0 {
		t.Fatal("nothing is acknowledged")
	}
	if s.Err() != nil {
		t.Fatal(s.Err())
	}
	if got := collect(t, watch, start+int64(len(acked))); len(got) != len(acked) {
		t.Errorf("the watch sees %d of %d", len(got), len(acked))
	}
	wantAll(t, s, "k/", acked)
	eventually(t, "it is logged", func() bool { return log.count("writes are refused") == 1 })

	// Refused for long, it stays as it is.
	for range 200 {
		_, err := s.Commit(t.Context(), Txn{Put: []KV{{Key: "no", Value: make([]byte, 64<<10)}}})
		wantKind(t, err, weft.Unavailable, dir)
	}

	// A start on the full disk serves what is there. It also takes old parts of the log
	// away, whose room others fill here.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	wantAll(t, s, "k/", acked)
	others := filepath.Join(disk, "others")
	eventually(t, "writes are refused", func() bool {
		takeAll(t, others)
		_, err = s.Commit(t.Context(), Txn{Put: []KV{{Key: "no"}}})
		return err != nil
	})
	wantKind(t, err, weft.Unavailable, dir)
	if err := os.Remove(others); err != nil {
		t.Fatal(err)
	}
	watch = s.Watch(t.Context(), "again/", start)

	// Room comes back, and writes with it, without a restart.
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "writes go on", func() bool {
		_, err := s.Commit(t.Context(), Txn{Put: []KV{{Key: "again/0"}}})
		return err == nil
	})
	if b := next(t, watch); b.Err != nil || len(b.Events) != 1 {
		t.Errorf("the watch sees %+v", b)
	}
	acked = append(acked, "again/0")
	wantAll(t, s, "", acked)
}

// TestDiskFilledByOthers: a neighbour takes the last byte at once, while a writer is at
// work, which is then killed.
func TestDiskFilledByOthers(t *testing.T) {
	if !inside(t) {
		return
	}
	disk := smallDisk(t, 128)
	dir := filepath.Join(disk, "state")
	var log records
	logger := slog.New(slog.NewTextHandler(&log, nil))
	s, err := Open(t.Context(), Config{Dir: dir, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	w := startWriter(t, "w/", s)
	ballast := filepath.Join(disk, "ballast")
	takeAll(t, ballast)
	eventually(t, "writes are refused", func() bool {
		_, err := s.Commit(t.Context(), Txn{Put: []KV{{Key: "no"}}})
		return weft.KindOf(err) == weft.Unavailable
	})
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		s.server.Backend().ForceCommit() // as etcd does ten times a second
	}
	if _, _, err := s.List(t.Context(), "w/"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "writes go on", func() bool {
		_, err := s.Commit(t.Context(), Txn{Put: []KV{{Key: "after"}}})
		return err == nil
	})
	w.lostNothing(t, s, "w/")

	// Killed on a full disk.
	takeAll(t, ballast)
	killed := readFiles(t, dir)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	again := openTest(t, killed.write(t))
	wantAll(t, again, "", append(w.acked, "after"))
}

// takeAll fills the disk to its last block.
func takeAll(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 4096; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
}

// TestKilledOnFullDisk: the process is killed while it writes to a disk that is all but
// full, and started there again.
func TestKilledOnFullDisk(t *testing.T) {
	if !inside(t) {
		return
	}
	disk := smallDisk(t, 160)
	dir := filepath.Join(disk, "state")
	acked := killInTheMiddle(t, dir, 300)
	ballast := filepath.Join(disk, "ballast")
	takeAll(t, ballast)
	if err := os.Remove(filepath.Join(dir, "RESERVE")); err != nil {
		t.Fatal(err)
	}
	takeAll(t, ballast+"2")
	_, err := Open(t.Context(), Config{Dir: dir})
	wantKind(t, err, weft.Unavailable, dir, "0 MB left", "8 MB are needed to open")
	if err := os.Remove(ballast + "2"); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, s, "key/", acked)
	_, err = s.Commit(t.Context(), Txn{Put: []KV{{Key: "no"}}})
	wantKind(t, err, weft.Unavailable, "MB left")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, dir)
	wantAll(t, s, "key/", acked)
	put(t, s, "k", "v")
}

// TestQuota: a database that has reached its quota is mended while it is open, and at
// the start; when all is in use, reads and deletions go on.
func TestQuota(t *testing.T) {
	dir := t.TempDir()
	const quota = 4 << 20
	open := func() *Store {
		s, err := open(t.Context(), Config{Dir: dir}, quota)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	s := open()
	put(t, s, "precious", "x")
	overwrite := func() {
		t.Helper()
		var err error
		for err == nil {
			_, err = s.Commit(t.Context(), Txn{Put: []KV{{Key: "same", Value: make([]byte, 256<<10)}}})
		}
		wantKind(t, err, weft.Unavailable, dir, "full", "4 MB")
	}
	overwrite()
	if err := s.endAlarms(); err != nil {
		t.Fatal(err)
	}
	put(t, s, "new", "y")
	overwrite()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	put(t, s, "newer", "z")
	wantKeys(t, s, "", "new", "newer", "precious", "same")

	var acked []string
	for round := 0; ; round++ { // where pages lie idle there is room again
		more, err := fillUp(t, s, fmt.Sprintf("k/%02d/", round))
		wantKind(t, err, weft.Unavailable, "full")
		acked = append(acked, more...)
		if err = s.endAlarms(); err != nil || round == 20 {
			break
		}
	}
	for range 2 { // when there is nothing to compact any more, too
		if err := s.endAlarms(); err == nil || !strings.Contains(err.Error(), "are in use") {
			t.Errorf("where everything is in use it says %v", err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	wantAll(t, s, "k/", acked)
	if _, err := s.Commit(t.Context(), Txn{Delete: acked}); err != nil {
		t.Fatal(err)
	}
	if err := s.endAlarms(); err != nil {
		t.Fatal(err)
	}
	put(t, s, "newest", "z")
}
