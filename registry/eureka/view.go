package eureka

import (
	"compress/flate"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// view is the newest picture of the catalogue, and what changed lately. It follows
// the registry when it is asked, not by itself: who asks sees all that was there
// before, and while nobody asks it costs nothing. So the deltas tell the differences
// between the pictures that readers were shown, which is all that they have to know.
type view struct {
	registry *registry.Registry // constant
	now      func() time.Time   // constant

	mu        sync.Mutex
	picture   *picture
	instances uint64 // indexes of the registry at which the picture was taken
	nodes     uint64
	guarded   []weft.ServiceName // then, too: a guard may end by itself
	log       deltaLog
}

// picture is the whole catalogue. It is immutable but for its caches.
type picture struct {
	apps   []*app // sorted by name
	hash   string // apps__hashcode
	counts counts

	mu      sync.Mutex
	streams [forms]*stream // made when first asked for
}

// app is one application. It is immutable but for its caches.
type app struct {
	name    string
	sources []source
	rows    []*row // sorted by id; those that readers see
	counts  counts
	leases  int
	lapsed  int
	guards  []registry.Guard // of its services

	mu       sync.Mutex
	segments [forms]*segment // made when first asked for
}

// source is a service of an application, at an index.
type source struct {
	service weft.ServiceName
	index   uint64
}

// counts are numbers of instances by their status's place.
type counts [len(statuses)]int

func (c *counts) add(o *counts, sign int) {
	for i := range c {
		c[i] += sign * o[i]
	}
}

func newView(r *registry.Registry, now func() time.Time) view {
	return view{registry: r, now: now, picture: &picture{}}
}

// current returns the picture of the catalogue as it is now.
func (v *view) current() *picture {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.refresh()
}

// refresh brings the picture up to date. The indexes are read first: what changes
// while it is taken is looked at again.
func (v *view) refresh() *picture {
	instances := v.registry.Wait(context.Background(), registry.InstancesTopic(), 0)
	nodes := v.registry.Wait(context.Background(), registry.NodesTopic(), 0)
	guarded := v.registry.Guarded()
	if instances == v.instances && nodes == v.nodes && slices.Equal(guarded, v.guarded) {
		return v.picture
	}
	v.instances, v.nodes, v.guarded = instances, nodes, guarded
	before := v.picture
	after := &picture{counts: before.counts}
	lookup := nodesOf{registry: v.registry, seen: make(map[string]*weft.Node)}
	for _, group := range v.groups() {
		old := before.app(group.name)
		if old != nil && slices.Equal(old.sources, group.sources) {
			after.apps = append(after.apps, old)
			continue
		}
		after.apps = append(after.apps, newApp(group, old, &lookup))
	}
	v.compare(before, after)
	after.hash = after.counts.hash()
	v.picture = after
	return after
}

// group is what an application will be made of.
type group struct {
	name      string
	sources   []source
	instances []*weft.Instance
	guards    []registry.Guard
}

// groups returns the services by their applications, sorted by name.
func (v *view) groups() []group {
	names, _ := v.registry.ServiceNames()
	all := make([]group, 0, len(names))
	for _, n := range names {
		instances, index := v.registry.Instances(n)
		g := group{name: appOf(n), sources: []source{{n, index}}, instances: instances}
		if slices.Contains(v.guarded, n) {
			if guard, ok := v.registry.Guard(n); ok {
				g.guards = append(g.guards, guard)
			}
		}
		all = append(all, g)
	}
	slices.SortStableFunc(all, func(a, b group) int { return strings.Compare(a.name, b.name) })
	merged := all[:0]
	for _, g := range all {
		if n := len(merged); n > 0 && merged[n-1].name == g.name {
			last := &merged[n-1]
			last.sources = append(last.sources, g.sources...)
			last.instances = slices.Concat(last.instances, g.instances)
			last.guards = append(last.guards, g.guards...)
			continue
		}
		merged = append(merged, g)
	}
	return merged
}

// nodesOf remembers nodes while a picture is taken.
type nodesOf struct {
	registry *registry.Registry
	seen     map[string]*weft.Node
}

func (l *nodesOf) node(name string) *weft.Node {
	n, ok := l.seen[name]
	if !ok {
		n, _, _ = l.registry.Node(name)
		l.seen[name] = n
	}
	return n
}

// newApp makes an application. old is what it was before, or nil: what was read then
// of an instance that is the same need not be read again.
func newApp(g group, old *app, nodes *nodesOf) *app {
	a := &app{name: g.name, sources: g.sources, guards: g.guards}
	known := make(map[*weft.Instance]*record)
	if old != nil {
		for _, w := range old.rows {
			known[w.in] = w.kept
		}
	}
	rows := make([]*row, 0, len(g.instances))
	for _, in := range g.instances {
		if in.Dialect == registry.ServerDialect {
			continue
		}
		kept, ok := known[in]
		if !ok {
			kept = keptOf(in)
		}
		w := newRow(g.name, in, kept, nodes.node(in.Node), a.keeps(in.Key()))
		if w.kept != nil {
			a.leases++
		}
		if w.lapsed {
			a.lapsed++
		}
		rows = append(rows, w)
	}
	slices.SortStableFunc(rows, func(a, b *row) int { return strings.Compare(a.id, b.id) })
	for _, w := range rows {
		if w.lapsed && !a.preserved() && !a.keeps(w.in.Key()) {
			continue
		}
		// Clients keep one instance of an id: of two they would count another number.
		if n := len(a.rows); n > 0 && a.rows[n-1].id == w.id {
			a.counts[a.rows[n-1].status.place()]--
			a.rows = a.rows[:n-1]
		}
		a.rows = append(a.rows, w)
		a.counts[w.status.place()]++
	}
	return a
}

func (a *app) preserved() bool { return preserves(a.lapsed, a.leases) }

// keeps reports whether a guard of the registry does.
func (a *app) keeps(key weft.InstanceKey) bool {
	return slices.ContainsFunc(a.guards, func(g registry.Guard) bool { return g.Keeps(key) })
}

// reasons say why instances are shown as healthy that are not; none, when there is
// no such instance.
func (a *app) reasons() (reasons []string) {
	if a.preserved() {
		reasons = append(reasons, preserveReason(a.lapsed, a.leases))
	}
	for _, g := range a.guards {
		reasons = append(reasons, g.Reason)
	}
	return reasons
}

// compare notes the differences of two pictures in the log, and counts.
func (v *view) compare(before, after *picture) {
	now := v.now()
	old, next := before.apps, after.apps
	for len(old) > 0 || len(next) > 0 {
		var a, b *app
		switch {
		case len(next) == 0 || len(old) > 0 && old[0].name < next[0].name:
			a, b = old[0], &app{}
			old = old[1:]
		case len(old) == 0 || next[0].name < old[0].name:
			a, b = &app{}, next[0]
			next = next[1:]
		default:
			a, b = old[0], next[0]
			old, next = old[1:], next[1:]
		}
		if a != b {
			after.counts.add(&a.counts, -1)
			after.counts.add(&b.counts, +1)
			v.log.compare(a.rows, b.rows, now)
		}
	}
	v.log.hash = ""
}

// hash is the apps__hashcode: the statuses that there are, in alphabetical order,
// with how many instances have them.
func (c *counts) hash() string {
	var b []byte
	for i, n := range c {
		if n > 0 {
			b = append(append(b, statuses[i]...), '_')
			b = append(appendInt(b, n), '_')
		}
	}
	return string(b)
}

// app returns the application of a name in capitals, nil when there is none.
func (p *picture) app(name string) *app {
	i, found := slices.BinarySearchFunc(p.apps, name, func(a *app, name string) int { return strings.Compare(a.name, name) })
	if !found {
		return nil
	}
	return p.apps[i]
}

// row returns an instance, nil when readers do not see it.
func (a *app) row(id string) *row {
	if a == nil {
		return nil
	}
	i, found := slices.BinarySearchFunc(a.rows, id, func(w *row, id string) int { return strings.Compare(w.id, id) })
	if !found {
		return nil
	}
	return a.rows[i]
}

// preserved returns the applications that show instances as healthy that are not.
func (p *picture) preserved() (apps []*app) {
	for _, a := range p.apps {
		apps = append(apps, a.ifPreserved()...)
	}
	return apps
}

// ifPreserved is a itself if it shows instances as healthy that are not.
func (a *app) ifPreserved() []*app {
	if a.preserved() || len(a.guards) > 0 {
		return []*app{a}
	}
	return nil
}

// stream returns the full list.
func (p *picture) stream(f form) *stream {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams[f] != nil {
		return p.streams[f]
	}
	z := packers.Get().(*flate.Writer)
	defer packers.Put(z)
	segments := []segment{stored(f.listHead(p.hash))}
	comma := stored(",")
	for _, a := range p.apps {
		if len(a.rows) == 0 {
			continue
		}
		if f.json() && len(segments) > 1 {
			segments = append(segments, comma)
		}
		segments = append(segments, *a.segment(f, z))
	}
	p.streams[f] = newStream(append(segments, stored(f.listTail())))
	return p.streams[f]
}

func (a *app) segment(f form, z *flate.Writer) *segment {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.segments[f] == nil {
		g := compress(z, f.appendApp(nil, a.name, a.rows, alwaysAdded))
		a.segments[f] = &g
	}
	return a.segments[f]
}
