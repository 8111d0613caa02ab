package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/weftmesh/weft"
)

// files are a store's, by their path below its directory.
type files map[string][]byte

const dbFile = "member/snap/db"

func readFiles(t *testing.T, dir string) files {
	t.Helper()
	all := make(files)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		all[rel] = b
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// write makes a directory of them.
func (f files) write(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, b := range f {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// logs are the names of the log's segments, the oldest one first.
func (f files) logs() (names []string) {
	for name := range f {
		if strings.HasSuffix(name, ".wal") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// lived is a store as it was left, and what it held.
type lived struct {
	files files
	want  string
}

// content is all that a store serves, with its history.
func content(t *testing.T, s *Store) string {
	t.Helper()
	kvs, rev, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	batches, err := s.History(t.Context(), "", s.server.KV().FirstRev()+1, rev)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	fmt.Fprintln(&text, "at", rev, "since", s.server.KV().FirstRev())
	for _, kv := range kvs {
		fmt.Fprintf(&text, "%s %d %d %x\n", kv.Key, kv.CreateRev, kv.ModRev, sealOf(nil, kv.Value))
	}
	for _, b := range batches {
		for _, ev := range b.Events {
			fmt.Fprintf(&text, "%s %v %d %d %x\n", ev.Key, ev.Deleted, ev.CreateRev, ev.ModRev, sealOf(nil, ev.Value))
		}
	}
	return text.String()
}

// live makes a store whose log has several segments, with deletions and a compacted
// history. A small one stays in its first segment.
func live(t *testing.T, small bool) (killed, closed lived) {
	t.Helper()
	dir := t.TempDir()
	s := openTest(t, dir)
	value := bytes.Repeat([]byte("value "), 100)
	for i := range 60 {
		put(t, s, fmt.Sprintf("key/%d", i%40), fmt.Sprintf("%d %s", i, value))
	}
	rev, err := s.Commit(t.Context(), Txn{Delete: []string{"key/1", "key/2"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.server.Compact(t.Context(), &pb.CompactionRequest{Revision: rev - 10, Physical: true}); err != nil {
		t.Fatal(err)
	}
	if !small {
		for i := range 10 {
			put(t, s, fmt.Sprintf("large/%d", i), string(bytes.Repeat([]byte("0123456789abcdef"), 64<<10)))
		}
	}
	put(t, s, "key/1", "again")
	s.server.Backend().ForceCommit()
	if _, err := s.Commit(t.Context(), Txn{Put: []KV{{Key: "last", Value: []byte("in the log")}}, Delete: []string{"key/3"}}); err != nil {
		t.Fatal(err)
	}
	want := content(t, s)
	killed = lived{readFiles(t, dir), want}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return killed, lived{readFiles(t, dir), want}
}

// mustTell opens the files, which are not as they were.
func (l lived) mustTell(t *testing.T, f files, file string) {
	t.Helper()
	dir := f.write(t)
	s, err := Open(t.Context(), Config{Dir: dir})
	if err == nil {
		_ = s.Close()
		t.Fatal("it is not noticed")
	}
	wantKind(t, err, weft.Internal, filepath.Join(dir, file), "is damaged", "from a backup, or in a cluster join again with an empty directory")
}

// mustTellOrServe opens what may be damaged where it does no harm.
func (l lived) mustTellOrServe(t *testing.T, f files, file string) (noticed bool) {
	t.Helper()
	dir := f.write(t)
	s, err := Open(t.Context(), Config{Dir: dir})
	if err != nil {
		wantKind(t, err, weft.Internal, filepath.Join(dir, file), "is damaged")
		return true
	}
	if got := content(t, s); got != l.want {
		t.Errorf("it serves something else: %s; want %s", got, l.want)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return false
}

func (f files) with(name string, b []byte) files {
	out := make(files)
	for n, old := range f {
		out[n] = old
	}
	if out[name] = b; b == nil {
		delete(out, name)
	}
	return out
}

func TestUndamaged(t *testing.T) {
	for _, small := range []bool{true, false} {
		killed, closed := live(t, small)
		if logs := killed.files.logs(); (len(logs) == 1) != small {
			t.Fatalf("the log is %v", logs)
		}
		for _, l := range []lived{killed, closed} {
			if l.mustTellOrServe(t, l.files, "") {
				t.Error("it is damaged")
			}
		}
	}
}

// TestLostFiles: files that are cut, empty or gone.
func TestLostFiles(t *testing.T) {
	killed, closed := live(t, false)
	logs := killed.files.logs()
	last := logs[len(logs)-1]
	cut := func(name string, to int) func(files) files {
		return func(f files) files { return f.with(name, f[name][:to]) }
	}
	gone := func(names ...string) func(files) files {
		return func(f files) files {
			for _, name := range names {
				f = f.with(name, nil)
			}
			return f
		}
	}
	half := func(name string) func(files) files { return cut(name, len(killed.files[name])/2) }
	for _, c := range []struct {
		name   string
		damage func(files) files
		file   string // that the error names
	}{
		{"the database is gone", gone(dbFile), dbFile},
		{"the database is empty", cut(dbFile, 0), dbFile},
		{"the database is cut", half(dbFile), dbFile},
		{"the database is but its first pages", cut(dbFile, 8192), dbFile},
		{"the log is gone", gone(logs...), "member/wal"},
		{"the log's first segment is gone", gone(logs[0]), "member/wal"},
		{"a segment in the middle is gone", gone(logs[1]), "member/wal"},
		{"the log's first segment is empty", cut(logs[0], 0), logs[0]},
		{"the log's first segment is cut", half(logs[0]), logs[0]},
		{"the log's last segment is empty", cut(last, 0), last},
		{"the log's last segment is cut", half(last), last},
		{"the log's last segment is cut within what is used", cut(last, 1000), last},
		{"everything is gone", gone(append(logs, dbFile)...), "member"},
	} {
		t.Run(c.name, func(t *testing.T) {
			killed.mustTell(t, c.damage(killed.files), c.file)
			closed.mustTell(t, c.damage(closed.files), "member")
		})
	}
}

// TestTornWrite: what the machine's end tore was never acknowledged.
func TestTornWrite(t *testing.T) {
	killed, _ := live(t, true)
	name := killed.files.logs()[0]
	used := len(bytes.TrimRight(killed.files[name], "\x00"))
	used += (8 - used%8) % 8
	b := slices.Clone(killed.files[name])
	b[used], b[used+1] = 0, 8                // a length
	copy(b[used+8:], []byte{0x08, 2, 0x10})  // how its record begins
	copy(b[(used+1024)&^511:], "rest of it") // a later sector came through
	if killed.mustTellOrServe(t, killed.files.with(name, b), name) {
		t.Error("a torn write is taken for damage")
	}
}

// TestFlippedBytes changes single bytes of a store that was closed, and of one that
// was killed. Where the checks see nothing, the store must serve what it served.
func TestFlippedBytes(t *testing.T) {
	killed, closed := live(t, true)
	log := killed.files.logs()[0]
	used := len(bytes.TrimRight(killed.files[log], "\x00"))
	for _, file := range []string{dbFile, log} {
		for _, at := range []int{0, 1, 7, 8, 10, 12, 15, 16, 17, 24, 40, 100, 4096, 4112, 5000, 8192, 8200, 8208, 9000, 12288, 12300, used - 1} {
			b := slices.Clone(closed.files[file])
			b[at] ^= 0xff
			closed.mustTell(t, closed.files.with(file, b), file)
		}
	}
	sums := slices.Clone(closed.files["SUMS"])
	sums[3] ^= 1
	dir := closed.files.with("SUMS", sums).write(t)
	_, err := Open(t.Context(), Config{Dir: dir})
	wantKind(t, err, weft.Internal, "SUMS is damaged", "remove this file")

	for _, file := range []string{dbFile, log} {
		killed.flip(t, file, 1000, 12)
	}
}

// flip changes so many single bytes of a file, one after the other. Where the checks
// see nothing, it opens the store, but not more often than opens: that takes long.
func (l lived) flip(t *testing.T, file string, changes, opens int) {
	t.Helper()
	whole := l.files[file]
	size := len(bytes.TrimRight(whole, "\x00")) + 16
	dir := l.files.write(t)
	silent := 0
	for n := range changes {
		at, b := rand.IntN(size), byte(rand.IntN(256))
		if n < changes/2 { // etcd's own bookkeeping is in the first page and in the last
			at = n + n%2*(size-changes)
		}
		if b == whole[at] {
			continue
		}
		if err := poke(filepath.Join(dir, file), at, b); err != nil {
			t.Fatal(err)
		}
		err := checkFiles(dir)
		if pokeErr := poke(filepath.Join(dir, file), at, whole[at]); pokeErr != nil {
			t.Fatal(pokeErr)
		}
		if err != nil {
			if !strings.Contains(err.Error(), filepath.Join(dir, file)+" is damaged") {
				t.Fatalf("byte %d of %s: %v", at, file, err)
			}
			continue
		}
		if silent++; silent > opens || whole[at] == 0 && silent%2 == 0 {
			continue
		}
		changed := slices.Clone(whole)
		changed[at] = b
		if l.mustTellOrServe(t, l.files.with(file, changed), file); t.Failed() {
			t.Fatalf("byte %d of %s is %#x, and was %#x", at, file, b, whole[at])
		}
	}
	t.Logf("%s: %d of %d changes do no harm", file, silent, changes)
}

func poke(path string, at int, b byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{b}, int64(at))
	return errors.Join(err, f.Close())
}
