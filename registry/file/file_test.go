package file

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a registry, and a directory.
type world struct {
	*testing.T
	registry *registry.Registry
	dir      string
}

func newWorld(t *testing.T) *world {
	st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	r, err := registry.Open(t.Context(), registry.Config{Store: st, Node: weft.Node{Name: "server-1", Address: "127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return &world{t, r, t.TempDir()}
}

// watch follows the directories until the test or stop ends it. The kernel's own
// notice must do: the rescan is far away.
func (w *world) watch(dirs ...string) (watcher *Watcher, stop func()) {
	w.Helper()
	if dirs == nil {
		dirs = []string{w.dir}
	}
	watcher, err := New(w.registry, Config{Dirs: dirs})
	if err != nil {
		w.Fatal(err)
	}
	watcher.settle, watcher.rescan = 30*time.Millisecond, time.Hour
	return watcher, w.run(watcher)
}

func (w *world) run(watcher *Watcher) (stop func()) {
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan error, 1)
	go func() { done <- watcher.Run(ctx) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			w.Error(err)
		}
	}
	w.Cleanup(stop)
	return stop
}

func (w *world) write(name, content string) {
	w.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o600); err != nil {
		w.Fatal(err)
	}
}

// replace writes as careful programs do.
func (w *world) replace(name, content string) {
	w.Helper()
	w.write(name+".tmp", content)
	w.must(os.Rename(filepath.Join(w.dir, name+".tmp"), filepath.Join(w.dir, name)))
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// registered is "a:80 b:81".
func (w *world) registered() string {
	_, all, _ := w.registry.Node("server-1")
	var out []string
	for _, in := range all {
		if in.Dialect == Dialect {
			out = append(out, fmt.Sprintf("%s:%d", in.ID, in.Port))
		}
	}
	return strings.Join(out, " ")
}

// eventually waits until what says want.
func (w *world) eventually(want string, what func() string) {
	w.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for what() != want {
		if time.Now().After(deadline) {
			w.Fatalf("got %q, want %q", what(), want)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (w *world) wants(want string) { w.Helper(); w.eventually(want, w.registered) }

// problem waits for a problem that has these texts.
func (w *world) problem(watcher *Watcher, texts ...string) {
	w.Helper()
	w.eventually("", func() string {
		all := strings.Join(watcher.Status().Problems, "\n")
		for _, text := range texts {
			if !strings.Contains(all, text) {
				return all + " without " + text
			}
		}
		return ""
	})
}

func (w *world) noProblem(watcher *Watcher) {
	w.Helper()
	w.eventually("", func() string { return strings.Join(watcher.Status().Problems, "\n") })
}

func TestFilesComeChangeAndGo(t *testing.T) {
	w := newWorld(t)
	w.write("a.yaml", "service: {name: a, address: 10.0.0.1, port: 80, check: {status: passing}}\n")
	w.write("notes.txt", "service: {name: x, port: 1}\n")
	w.write(".hidden.yaml", "service: {name: x, port: 1}\n")
	watcher, _ := w.watch()
	w.wants("a:80")
	in, _ := w.registry.Instance(weft.InstanceKey{Node: "server-1", ID: "a"})
	if got := pathOf(in); got != filepath.Join(w.dir, "a.yaml") || in.Health() != weft.Passing {
		t.Errorf("path %q, %+v", got, in)
	}
	w.write("b.json", `{"services": [{"name": "b", "port": 81}, {"name": "c", "port": 82}]}`)
	w.wants("a:80 b:81 c:82")
	w.replace("b.json", `{"services": [{"name": "b", "port": 91}]}`)
	w.wants("a:80 b:91")
	w.must(os.Remove(filepath.Join(w.dir, "a.yaml")))
	w.wants("b:91")
	w.must(os.Rename(filepath.Join(w.dir, "b.json"), filepath.Join(w.dir, "b.json.off")))
	w.wants("")
	w.noProblem(watcher)
	if s := watcher.Status(); s.Instances != 0 || s.Dialect != "file" || s.Node != "server-1" || s.Synced.IsZero() {
		t.Errorf("%+v", s)
	}
}

// A file that is written piece by piece is taken when it stands, and one that stays
// broken leaves what it said.
func TestBrokenFilesChangeNothing(t *testing.T) {
	w := newWorld(t)
	w.write("a.yaml", "services:\n- {name: a, port: 80}\n- {name: b, port: 81}\n")
	watcher, _ := w.watch()
	w.wants("a:80 b:81")
	_, _, index := w.registry.Node("server-1")

	for _, content := range []string{"", "services:\n- {name: a, po", "services:\n- {name: a, prt: 80}\n"} {
		w.write("a.yaml", content)
		w.problem(watcher, filepath.Join(w.dir, "a.yaml")+":")
		if got := w.registered(); got != "a:80 b:81" {
			t.Fatalf("%q left %q", content, got)
		}
	}
	w.problem(watcher, `a.yaml:2:13: services[0]: unknown key "prt"; did you mean "port"?`)
	if _, _, now := w.registry.Node("server-1"); now != index {
		t.Error("broken files moved the node's index")
	}
	w.write("a.yaml", "services:\n- {name: a, port: 90}\n")
	w.wants("a:90")
	w.noProblem(watcher)

	// What only the registry knows to be wrong is told with its place, too.
	w.write("a.yaml", "services:\n- {name: a, port: 99999}\n- {name: c, port: 83}\n")
	w.wants("a:90 c:83")
	w.problem(watcher, "a.yaml:2:3: register instance a/a: port: 99999 is no port")
}

func TestTwoFilesOneID(t *testing.T) {
	w := newWorld(t)
	w.write("m.yaml", "service: {name: a, port: 1}\n")
	watcher, stop := w.watch()
	w.wants("a:1")
	// The first by time keeps it, though its name comes later.
	w.write("b.yaml", "service: {name: a, port: 2}\n")
	w.problem(watcher, "b.yaml:1:10", `instance "a"`, "m.yaml:1:10")
	w.wants("a:1")
	stop()
	watcher, _ = w.watch() // also over a restart
	w.problem(watcher, "b.yaml:1:10", "m.yaml:1:10")
	w.wants("a:1")
	w.must(os.Remove(filepath.Join(w.dir, "m.yaml")))
	w.wants("a:2")
	w.noProblem(watcher)
}

func TestWhatWentWhileNobodyLooked(t *testing.T) {
	w := newWorld(t)
	other := t.TempDir()
	w.write("a.yaml", "service: {name: a, port: 1}\n")
	w.write("b.yaml", "service: {name: b, port: 2}\n")
	w.write("c.yaml", "service: {name: c, port: 3}\n")
	w.must(os.WriteFile(filepath.Join(other, "d.yaml"), []byte("service: {name: d, port: 4}\n"), 0o600))
	if _, err := w.registry.Register(t.Context(), weft.Instance{ID: "hand", Service: weft.NewServiceName("", "x"), Dialect: "consul"}); err != nil {
		t.Fatal(err)
	}
	_, stop := w.watch(w.dir, other)
	w.wants("a:1 b:2 c:3 d:4")
	stop()

	w.must(os.Remove(filepath.Join(w.dir, "a.yaml")))
	w.write("b.yaml", "service: {na") // it breaks, and stays broken over the restart
	watcher, _ := w.watch()           // other is watched no more
	w.wants("b:2 c:3")
	w.problem(watcher, "b.yaml:1:")
	if in, _ := w.registry.Instance(weft.InstanceKey{Node: "server-1", ID: "hand"}); in == nil {
		t.Error("another dialect's instance was taken out")
	}
}

// A directory that cannot be read says nothing of its files.
func TestADirectoryGoesAndComesBack(t *testing.T) {
	w := newWorld(t)
	w.write("a.yaml", "service: {name: a, port: 1}\n")
	watcher, err := New(w.registry, Config{Dirs: []string{w.dir}})
	w.must(err)
	watcher.settle, watcher.rescan = 10*time.Millisecond, 20*time.Millisecond // nobody tells of a directory that comes
	w.run(watcher)
	w.wants("a:1")
	w.must(os.Rename(w.dir, w.dir+".away"))
	w.problem(watcher, w.dir+": cannot be read: no such file or directory; what its files said stands until it can")
	w.wants("a:1")
	w.must(os.Mkdir(w.dir, 0o700))
	w.write("b.yaml", "service: {name: b, port: 2}\n")
	w.wants("b:2")
	w.noProblem(watcher)

	// What somebody else takes out is put back.
	if _, err := w.registry.Deregister(t.Context(), weft.InstanceKey{ID: "b"}); err != nil {
		t.Fatal(err)
	}
	w.wants("b:2")
}

// Kubernetes mounts a ConfigMap as links to ..data, which is a link that is swapped.
func TestConfigMap(t *testing.T) {
	w := newWorld(t)
	put := func(version, content string) {
		w.must(os.Mkdir(filepath.Join(w.dir, version), 0o700))
		w.write(version+"/a.yaml", content)
		w.must(os.Symlink(version, filepath.Join(w.dir, "..data_tmp")))
		w.must(os.Rename(filepath.Join(w.dir, "..data_tmp"), filepath.Join(w.dir, "..data")))
	}
	put("..v1", "service: {name: a, port: 1}\n")
	w.must(os.Symlink("..data/a.yaml", filepath.Join(w.dir, "a.yaml")))
	watcher, _ := w.watch()
	w.wants("a:1")
	put("..v2", "service: {name: a, port: 2}\n")
	w.wants("a:2")
	w.must(os.RemoveAll(filepath.Join(w.dir, "..v1")))

	// A link to nothing is a mistake, not a removal.
	w.must(os.Remove(filepath.Join(w.dir, "..data")))
	w.problem(watcher, "a.yaml: cannot be read: no such file or directory")
	w.wants("a:2")
}

func TestFilesThatAreNone(t *testing.T) {
	w := newWorld(t)
	w.must(os.Mkdir(filepath.Join(w.dir, "dir.yaml"), 0o700))
	w.must(os.Symlink("/dev/zero", filepath.Join(w.dir, "zero.yaml")))
	w.write("big.json", "["+strings.Repeat(" ", maxFile)+"]")
	watcher, _ := w.watch()
	w.problem(watcher, "zero.yaml: cannot be read: it is no regular file", "big.json: cannot be read: it is over 4 MiB")
}

func TestBadDirectories(t *testing.T) {
	w := newWorld(t)
	w.write("a.yaml", "")
	for dir, want := range map[string]string{
		filepath.Join(w.dir, "none"):   "no such file or directory",
		filepath.Join(w.dir, "a.yaml"): "not a directory",
	} {
		if _, err := New(w.registry, Config{Dirs: []string{dir}}); weft.KindOf(err) != weft.Invalid || !strings.Contains(err.Error(), dir+": "+want) {
			t.Errorf("%v", err)
		}
	}
	if _, err := New(w.registry, Config{}); weft.KindOf(err) != weft.Invalid {
		t.Errorf("%v", err)
	}
}

func TestHistorySaysWhichFile(t *testing.T) {
	w := newWorld(t)
	w.dir = filepath.Join(w.dir, "services")
	w.must(os.Mkdir(w.dir, 0o700))
	w.write("orders.yaml", "service: {name: a, port: 80}\n")
	w.watch()
	w.wants("a:80")
	w.must(os.Remove(filepath.Join(w.dir, "orders.yaml")))
	w.wants("")
	h, err := w.registry.History(w.Context(), registry.HistoryRequest{Service: weft.NewServiceName("", "a"), Since: weft.Duration(time.Hour)})
	if err != nil || len(h.Changes) != 2 {
		t.Fatalf("%+v, %v", h, err)
	}
	for _, c := range h.Changes {
		if c.By != "file services/orders.yaml" {
			t.Errorf("%v by %q", c.What, c.By)
		}
	}
}
