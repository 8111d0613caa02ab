package eureka

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

// follower is a client that fetches the full list once and deltas from then on, as
// Java's client applies them.
type follower struct {
	apps map[string]map[string]listInstance
}

func (f *follower) take(l list) {
	f.apps = make(map[string]map[string]listInstance)
	f.apply(l)
}

func (f *follower) apply(l list) {
	for _, app := range l.Applications.List {
		for _, in := range app.Instances {
			action := in.Action
			in.Action = ""
			switch action {
			case added, modified:
				if f.apps[in.App] == nil {
					f.apps[in.App] = make(map[string]listInstance)
				}
				f.apps[in.App][in.InstanceID] = in
			case deleted:
				delete(f.apps[in.App], in.InstanceID)
				if len(f.apps[in.App]) == 0 {
					delete(f.apps, in.App)
				}
			default:
				panic("action " + action)
			}
		}
	}
}

// hash computes the hash code in the obvious way.
func (f *follower) hash() string {
	n := make(map[string]int)
	for _, app := range f.apps {
		for _, in := range app {
			n[string(in.Status)]++
		}
	}
	var b strings.Builder
	for _, s := range slices.Sorted(maps.Keys(n)) {
		fmt.Fprintf(&b, "%s_%d_", s, n[s])
	}
	return b.String()
}

// Whoever follows by deltas, at any pace within the retention, has at every step the
// hash code and the contents of the full list.
func TestDeltasMakeTheFullList(t *testing.T) {
	w := newWorld(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	followers := make([]follower, 3)
	for i := range followers {
		followers[i].take(w.apps())
	}
	apps := []string{"A", "B", "C.PROD"}
	for step := range 200 {
		w.randomChange(random, apps[random.IntN(len(apps))], fmt.Sprint("i", random.IntN(4)))
		w.ahead.Add(int64(random.IntN(4000)) * int64(time.Millisecond))
		for i := range followers {
			if random.IntN(1+4*i) != 0 { // some ask seldom: at most a minute or so
				continue
			}
			d := w.delta()
			f := &followers[i]
			f.apply(d)
			if got := f.hash(); got != d.Applications.Hash {
				t.Fatalf("step %d: after the delta, follower %d has %q, the server says %q", step, i, got, d.Applications.Hash)
			}
			var full follower
			l := w.apps()
			full.take(l)
			if l.Applications.Hash != d.Applications.Hash || !reflect.DeepEqual(full.apps, f.apps) {
				t.Fatalf("step %d: follower %d has\n%v\nthe full list is\n%v", step, i, f.apps, full.apps)
			}
		}
	}
}

func (w *world) randomChange(random *rand.Rand, app, id string) {
	path := "/eureka/apps/" + app + "/" + id
	elsewhere := weft.InstanceKey{Node: "server-1", ID: app + "-" + id}
	switch random.IntN(9) {
	case 0, 1, 2:
		st := statuses[random.IntN(len(statuses))]
		w.registerHere(app, id, `"status":"`+string(st)+`"`)
	case 3:
		w.send("DELETE", path, "")
	case 4:
		w.send("PUT", path+"/status?value="+string(statuses[random.IntN(len(statuses))]), "")
	case 5:
		w.send("DELETE", path+"/status", "")
	case 6:
		w.send("PUT", fmt.Sprintf("%s/metadata?k=%d", path, random.IntN(3)), "")
	case 7:
		name, ns, _ := strings.Cut(strings.ToLower(app), ".")
		w.registerElsewhere(weft.Instance{ID: elsewhere.ID, Service: weft.ServiceName{Namespace: ns, Name: name}, Port: 1 + random.IntN(3),
			Checks: []weft.Check{{Kind: weft.StaticCheck, Status: weft.Health(random.IntN(3))}}})
	case 8:
		if random.IntN(2) == 0 {
			_, _ = w.registry.Deregister(w.Context(), elsewhere) // when it is there
		} else if err := w.registry.Maintain(w.Context(), weft.InstanceKey{Node: "server-1"}, random.IntN(2) == 0, ""); err != nil {
			w.Fatal(err) // of the whole node: no instance changes, but its status does
		}
	}
}

func TestDeltaActions(t *testing.T) {
	w := newWorld(t)
	actions := func() map[string]string {
		all := make(map[string]string)
		for _, app := range w.delta().Applications.List {
			for _, in := range app.Instances {
				all[app.Name+"/"+in.InstanceID] = in.Action
			}
		}
		return all
	}
	w.registerHere("A", "a-1")
	w.registerHere("B", "b-1")
	if got, want := actions(), (map[string]string{"A/a-1": added, "B/b-1": added}); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	w.ahead.Add(int64(2 * time.Minute))
	w.registerHere("A", "a-1", `"metadata":{"k":"v"}`)
	if got, want := actions(), (map[string]string{"A/a-1": modified, "B/b-1": added}); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	w.send("PUT", "/eureka/apps/A/a-1", "").want(200)
	w.send("DELETE", "/eureka/apps/B/b-1", "").want(200)
	w.ahead.Add(int64(90 * time.Second))
	if got, want := actions(), (map[string]string{"A/a-1": modified, "B/b-1": deleted}); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	w.ahead.Add(int64(91 * time.Second))
	if got, want := actions(), (map[string]string{"B/b-1": deleted}); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v: a change is told for three minutes after it was noticed", got, want)
	}
	w.ahead.Add(int64(90 * time.Second))
	if got := actions(); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if n := len(w.api.view.log.changes); n != 0 {
		t.Errorf("%d changes are kept for nobody", n)
	}
}

// When too much went to be remembered, clients are sent to the full list, as long as
// something that they might not know is missing.
func TestDeltaOverflow(t *testing.T) {
	w := newWorld(t)
	now := w.api.now()
	w.registerHere("A", "a-1")
	w.delta()
	log := &w.api.view.log
	in := &weft.Instance{Node: "n", ID: "x"}
	for i := range maxTombstones + 2 {
		log.note(&row{app: "Z", id: fmt.Sprint(i), in: in}, deleted, now)
	}
	if log.tombstones > maxTombstones || len(log.last) > maxTombstones+1 {
		t.Errorf("%d tombstones of %d changes", log.tombstones, len(log.last))
	}
	w.send("GET", "/eureka/apps/delta", "").want(403)
	w.ahead.Add(int64(retention + time.Second))
	w.send("GET", "/eureka/apps/delta", "").want(200)
}

// An instance that changes all the time does not fill the memory.
func TestDeltaOfOneRestless(t *testing.T) {
	var log deltaLog
	in := &weft.Instance{Node: "n", ID: "x"}
	now := time.Now()
	for range 10000 {
		log.note(&row{app: "Z", id: "1", in: in}, modified, now)
		log.expire(now)
	}
	if len(log.changes) > 100 {
		t.Errorf("%d changes are kept of one instance", len(log.changes))
	}
}
