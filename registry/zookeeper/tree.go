package zookeeper

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"

	"github.com/go-zookeeper/zk"

	"github.com/weftmesh/weft/registry/mirror"
)

const (
	maxDepth = 12
	maxNodes = 200000
	readers  = 32 // questions under way at a time
)

// asker is what the tree asks. It leaves a watch, whose event comes by changed.
type asker interface {
	GetW(path string) ([]byte, *zk.Stat, <-chan zk.Event, error)
	ChildrenW(path string) ([]string, *zk.Stat, <-chan zk.Event, error)
}

// tree is what stands under a path, as far as it was read. It is for one goroutine.
type tree struct {
	ask     asker
	base    string
	entries *mirror.Entries
	nodes   map[string][]string // path -> names of its children
}

func newTree(ask asker, base string, entries *mirror.Entries) *tree {
	return &tree{ask: ask, base: base, entries: entries, nodes: make(map[string][]string)}
}

// found is what was read of one node.
type found struct {
	path      string
	data      []byte
	ephemeral bool
	children  []string
	err       error
}

// read reads everything, and forgets what is not there.
func (t *tree) read() error {
	if err := t.add([]string{t.base}); err != nil {
		return err
	}
	if _, ok := t.nodes[t.base]; !ok {
		return t.noBase()
	}
	t.entries.Keep(func(key string) bool { _, ok := t.nodes[key]; return ok })
	return nil
}

func (t *tree) noBase() error {
	return fmt.Errorf("there is no node %s; what stood under it stands until it is there", t.base)
}

// add reads nodes and all under them, a level at a time.
func (t *tree) add(paths []string) error {
	for len(paths) > 0 {
		if len(t.nodes)+len(paths) > maxNodes {
			return fmt.Errorf("there are more than %d nodes under %s", maxNodes, t.base)
		}
		level := make([]found, len(paths))
		var work sync.WaitGroup
		step := (len(paths) + readers - 1) / readers
		for from := 0; from < len(paths); from += step {
			work.Go(func() {
				for i := from; i < min(from+step, len(paths)); i++ {
					level[i] = t.visit(paths[i])
				}
			})
		}
		work.Wait()
		paths = nil
		for _, f := range level {
			switch {
			case errors.Is(f.err, zk.ErrNoNode):
				continue // it went meanwhile; its folder's watch tells, too
			case f.err != nil:
				return fmt.Errorf("read %s: %w", f.path, f.err)
			}
			t.nodes[f.path] = f.children
			t.take(f)
			if strings.Count(f.path, "/") < maxDepth {
				for _, name := range f.children {
					paths = append(paths, path.Join(f.path, name))
				}
			}
		}
	}
	return nil
}

// visit asks for one node. An ephemeral one has no children.
func (t *tree) visit(p string) (f found) {
	f.path = p
	data, stat, _, err := t.ask.GetW(p)
	if err != nil {
		f.err = err
		return f
	}
	f.data, f.ephemeral = data, stat.EphemeralOwner != 0
	if !f.ephemeral {
		f.children, _, _, f.err = t.ask.ChildrenW(p)
	}
	return f
}

// take reads a node as an instance. A persistent one may be a folder, whose data are
// nobody's business.
func (t *tree) take(f found) {
	if f.path == t.base {
		return
	}
	claim, there, sure, err := parse(strings.TrimPrefix(strings.TrimPrefix(f.path, t.base), "/"), f.data)
	switch {
	case err != nil && (sure || f.ephemeral || t.entries.Has(f.path)):
		t.entries.Put(f.path, claim, err)
	case err != nil || !there:
		t.entries.Delete(f.path)
	default:
		t.entries.Put(f.path, claim, nil)
	}
}

// changed follows what a watch told.
func (t *tree) changed(e zk.Event) error {
	children, known := t.nodes[e.Path]
	if !known {
		return nil
	}
	switch e.Type {
	case zk.EventNodeDeleted:
		t.remove(e.Path)
	case zk.EventNodeDataChanged:
		data, stat, _, err := t.ask.GetW(e.Path)
		if errors.Is(err, zk.ErrNoNode) {
			t.remove(e.Path)
			break
		}
		if err != nil {
			return err
		}
		t.take(found{path: e.Path, data: data, ephemeral: stat.EphemeralOwner != 0})
	case zk.EventNodeChildrenChanged:
		if err := t.regroup(e.Path, children); err != nil {
			return err
		}
	}
	if _, ok := t.nodes[t.base]; !ok {
		return t.noBase()
	}
	return nil
}

// regroup reads the children of a folder, of which some were known.
func (t *tree) regroup(folder string, known []string) error {
	now, _, _, err := t.ask.ChildrenW(folder)
	if errors.Is(err, zk.ErrNoNode) {
		t.remove(folder)
		return nil
	}
	if err != nil {
		return err
	}
	t.nodes[folder] = now
	there := make(map[string]bool, len(now))
	for _, name := range now {
		there[name] = true
	}
	for _, name := range known {
		if p := path.Join(folder, name); !there[name] {
			t.remove(p)
		}
	}
	var fresh []string
	if strings.Count(folder, "/") < maxDepth {
		for _, name := range now {
			if _, ok := t.nodes[path.Join(folder, name)]; !ok {
				fresh = append(fresh, path.Join(folder, name))
			}
		}
	}
	return t.add(fresh)
}

// remove forgets a node and all under it. When the base goes its entries stay: a path
// that is gone is a mistake, or somebody's clean-up, and no word of any service.
func (t *tree) remove(p string) {
	children, ok := t.nodes[p]
	if !ok {
		return
	}
	delete(t.nodes, p)
	if p == t.base {
		return
	}
	for _, name := range children {
		t.remove(path.Join(p, name))
	}
	t.entries.Delete(p)
}
