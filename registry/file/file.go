// Package file registers what the files in some directories say: for services that
// cannot register themselves, and for whatever writes files already.
//
//	w, err := file.New(registry, file.Config{Dirs: []string{"/etc/weft/services"}})
//	err = w.Run(ctx)
//
// It reads *.json, *.yaml and *.yml, not in folders beneath and none that begin
// with a dot, in the forms that people have:
//
//	{"service": {"name": "db", "address": "10.0.0.7", "port": 5432, "check": {"tcp": "10.0.0.7:5432", "interval": "5s"}}}
//	{"services": [{…}, {…}]}                                      Consul's service definitions
//	[{"targets": ["10.0.0.8:9100"], "labels": {"job": "node"}}]   Prometheus's file_sd
//
// What a file says belongs to the file (Dialect "file", and its path in Extra): when
// the file or an entry goes, so does the instance; also when it went while the
// server was down. A file with a mistake, an empty one, and one that cannot be read
// change nothing: what it said last stands, and the mistake is told, with file, line
// and column, in the log once and in Status as long as it is there. The same goes
// for all files of a directory that cannot be read. Of two files that claim an id the
// first keeps it, as long as it does.
//
// Files may be replaced or written in place: a change is taken when it has stood for
// a moment. Symbolic links are followed, so that the swap of a mounted ConfigMap is
// seen. Where the kernel does not tell of changes (network mounts), they are found
// within ten seconds.
//
// The instances are on the own node of the server: of several servers each has a
// directory of its own. Whoever may write there may register anything.
package file

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/registry/mirror"
)

// Dialect of the instances that files register.
const Dialect = "file"

const (
	// settle is how long a change must stand before it is taken. A writer that
	// writes in place pauses for less, and people do not notice it.
	settle = 100 * time.Millisecond
	// rescan finds what the kernel does not tell, and what somebody else took out of
	// the registry.
	rescan   = 10 * time.Second
	retry    = time.Second // when the registry cannot be written
	maxFiles = 10000       // in a directory
)

// Config of a Watcher.
type Config struct {
	Dirs   []string // one at least; each must be there at the start
	Logger *slog.Logger
}

// Watcher follows directories.
type Watcher struct {
	// constant
	dirs   []string // absolute
	log    *slog.Logger
	mirror *mirror.Mirror
	node   string
	settle time.Duration
	rescan time.Duration

	// of Run's goroutine
	notify *fsnotify.Watcher    // nil when the kernel does not tell
	files  map[string]*document // by path
	holder map[string]string    // id -> path of the file that has it
}

// document is a file as it was read last.
type document struct {
	sum      [sha256.Size]byte // of the content that was taken; zero: none yet
	claims   []mirror.Claim    // what it said when it had no mistake
	problems []string

	changed [sha256.Size]byte // a content that has not stood long enough, and since when
	since   time.Time
	missing time.Time // since when it is not there; zero: it is
}

// New looks at the directories, and reads nothing yet.
func New(r *registry.Registry, c Config) (*Watcher, error) {
	if len(c.Dirs) == 0 {
		return nil, weft.Errorf(weft.Invalid, "watch", "files of services", "no directory is given")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Watcher{log: c.Logger, node: r.LocalNode().Name, settle: settle, rescan: rescan,
		files: make(map[string]*document), holder: make(map[string]string)}
	for _, dir := range c.Dirs {
		abs, err := filepath.Abs(dir)
		if err == nil {
			_, err = os.ReadDir(abs)
		}
		if err != nil {
			return nil, &weft.Error{Kind: weft.Invalid, Op: "watch", Thing: "directory " + dir, Err: innermost(err)}
		}
		if !slices.Contains(w.dirs, abs) {
			w.dirs = append(w.dirs, abs)
		}
	}
	w.mirror = mirror.New(signing{r}, mirror.Config{Node: w.node, Dialect: Dialect, Source: "files in " + strings.Join(w.dirs, ", "), Logger: c.Logger})
	return w, nil
}

// signing is a registry whose history tells which file it was.
type signing struct{ *registry.Registry }

// Register implements mirror.Catalogue.
func (s signing) Register(ctx context.Context, in weft.Instance) (uint64, error) {
	return s.Registry.Register(actor(ctx, &in), in)
}

// Deregister implements mirror.Catalogue.
func (s signing) Deregister(ctx context.Context, key weft.InstanceKey) (uint64, error) {
	if in, _ := s.Instance(key); in != nil {
		ctx = actor(ctx, in)
	}
	return s.Registry.Deregister(ctx, key)
}

// actor names the file with its directory only: where that is says Status.
func actor(ctx context.Context, in *weft.Instance) context.Context {
	path := pathOf(in)
	return registry.WithActor(ctx, "file "+filepath.Join(filepath.Base(filepath.Dir(path)), filepath.Base(path)))
}

// Status tells what is registered, and what is wrong with the files.
func (w *Watcher) Status() mirror.Status { return w.mirror.Status() }

// Run follows the directories until ctx ends. What is registered then stays, for the
// next start to compare.
func (w *Watcher) Run(ctx context.Context) error {
	var events <-chan fsnotify.Event
	var errs <-chan error
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		w.log.Warn("the kernel does not tell of changed files; they are found by looking", "every", w.rescan.String(), "error", err)
	} else {
		defer notify.Close()
		w.notify, events, errs = notify, notify.Events, notify.Errors
	}
	w.inherit()
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := time.Now()
	for {
		look := false
		select {
		case <-ctx.Done():
			return nil
		case <-events:
		case <-errs: // events were lost, or a directory cannot be watched: look
		case <-timer.C:
			look = true
		}
		if look {
			due = time.Now().Add(w.look(ctx))
		} else if soon := time.Now().Add(w.settle); soon.Before(due) {
			due = soon
		}
		timer.Reset(time.Until(due))
	}
}

// inherit takes from the registry what the files said before this start. So a file
// that has become bad meanwhile keeps what it said.
func (w *Watcher) inherit() {
	for _, in := range w.mirror.Owned() {
		path := pathOf(in)
		if !slices.Contains(w.dirs, filepath.Dir(path)) {
			continue // of a directory that is watched no more
		}
		doc := w.files[path]
		if doc == nil {
			doc = &document{}
			w.files[path] = doc
		}
		doc.claims = append(doc.claims, mirror.Claim{Instance: *in, Origin: path})
		w.holder[in.ID] = path
	}
}

// extra is what is kept with an instance.
type extra struct {
	File string `json:"file"`
}

func pathOf(in *weft.Instance) string {
	var e extra
	if json.Unmarshal(in.Extra[Dialect], &e) != nil {
		return ""
	}
	return e.File
}

// look reads what has changed and registers it. It returns when to look again.
func (w *Watcher) look(ctx context.Context) time.Duration {
	var problems []string
	again := false // something has not stood long enough
	there := make(map[string]bool)
	for _, dir := range w.dirs {
		w.watch(dir)
		paths, err := list(dir)
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: cannot be read: %v; what its files said stands until it can", dir, innermost(err)))
			for path := range w.files {
				there[path] = there[path] || filepath.Dir(path) == dir
			}
			continue
		}
		for _, path := range paths {
			there[path] = true
			again = w.read(path) || again
		}
	}
	for path, doc := range w.files {
		switch {
		case there[path]:
			doc.missing = time.Time{}
		case doc.missing.IsZero(): // an editor may be about to put it back
			doc.missing, again = time.Now(), true
		case time.Since(doc.missing) < w.settle:
			again = true
		default:
			delete(w.files, path)
		}
	}
	claims, found := w.resolve()
	err := w.mirror.Apply(ctx, claims, append(problems, found...))
	switch {
	case err != nil:
		return retry
	case again:
		return w.settle
	}
	return w.rescan
}

// watch asks the kernel to tell. It is done again each time: a directory may have
// been replaced by another one of its name.
func (w *Watcher) watch(dir string) {
	if w.notify == nil {
		return
	}
	_ = w.notify.Remove(dir) // it may not be watched (any more)
	// When it cannot be watched it cannot be read, which is told, or the kernel has
	// no more watches: then it is looked at now and then.
	_ = w.notify.Add(dir)
}

// list returns the paths of the files that count, sorted.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		name := e.Name()
		switch filepath.Ext(name) {
		case ".json", ".yaml", ".yml":
			if !strings.HasPrefix(name, ".") && !e.IsDir() {
				paths = append(paths, filepath.Join(dir, name))
			}
		}
	}
	if len(paths) > maxFiles {
		return nil, fmt.Errorf("there are more than %d files", maxFiles)
	}
	return paths, nil
}

// read takes in one file. It reports whether to look again soon.
func (w *Watcher) read(path string) (again bool) {
	doc := w.files[path]
	if doc == nil {
		doc = &document{}
		w.files[path] = doc
	}
	content, modified, err := load(path)
	if err != nil { // not there: it is a link to nothing, or went just now
		doc.sum, doc.problems = [sha256.Size]byte{}, []string{fmt.Sprintf("%s: cannot be read: %v; what it said stands until it can", path, innermost(err))}
		return false
	}
	sum := sha256.Sum256(content)
	if sum == doc.sum {
		doc.changed = sum
		return false
	}
	if !w.stands(doc, sum, modified) {
		return true
	}
	doc.sum, doc.problems = sum, nil
	claims, wrong := instances(path, content)
	for _, p := range wrong {
		doc.problems = append(doc.problems, p.String())
	}
	if len(wrong) > 0 {
		return false
	}
	kept, _ := json.Marshal(extra{path}) // a text never fails
	for i := range claims {
		claims[i].Extra = map[string]json.RawMessage{Dialect: kept}
	}
	doc.claims = claims
	return false
}

// stands reports whether a new content is old enough not to be half written.
func (w *Watcher) stands(doc *document, sum [sha256.Size]byte, modified time.Time) bool {
	now := time.Now()
	if age := now.Sub(modified); age >= w.settle {
		return true // by the file's own clock; one in the future does not count
	}
	if sum != doc.changed {
		doc.changed, doc.since = sum, now
		return false
	}
	return now.Sub(doc.since) >= w.settle
}

// load reads a file, to a limit.
func load(path string) (content []byte, modified time.Time, err error) {
	// A pipe would keep us waiting for whoever writes to it.
	info, err := os.Stat(path)
	if err != nil {
		return nil, modified, err
	}
	if !info.Mode().IsRegular() {
		return nil, modified, errors.New("it is no regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, modified, err
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, io.LimitReader(f, maxFile+1)); err != nil {
		return nil, modified, err
	}
	if b.Len() > maxFile {
		return nil, modified, fmt.Errorf("it is over %d MiB", maxFile>>20)
	}
	return b.Bytes(), info.ModTime(), nil
}

// resolve returns one claim for each id, and what is wrong with the files. Who has an
// id keeps it; of several new ones the first by path gets it.
func (w *Watcher) resolve() (claims []mirror.Claim, problems []string) {
	chosen := make(map[string]mirror.Claim)
	holder := make(map[string]string)
	paths := slices.Sorted(maps.Keys(w.files))
	for _, path := range paths {
		problems = append(problems, w.files[path].problems...)
		for _, c := range w.files[path].claims {
			if first, twice := chosen[c.ID]; twice && w.holder[c.ID] != path {
				problems = append(problems, contested(c, first))
				continue
			} else if twice {
				problems = append(problems, contested(first, c))
			}
			chosen[c.ID], holder[c.ID] = c, path
		}
	}
	w.holder = holder
	for _, id := range slices.Sorted(maps.Keys(chosen)) {
		claims = append(claims, chosen[id])
	}
	return claims, problems
}

func contested(late, first mirror.Claim) string {
	return fmt.Sprintf("%s: instance %q is registered by %s already, which keeps it; give it another id", late.Origin, late.ID, first.Origin)
}

// innermost takes off what repeats operation and path.
func innermost(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
