package registry_test

import (
	"bytes"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/store"
)

// tellHistory writes changes as "who: instance: what".
func tellHistory(changes []registry.Change) (lines []string) {
	for _, c := range changes {
		lines = append(lines, c.By+": "+c.Key.ID+": "+strings.Join(c.What, "; "))
	}
	return lines
}

func historyOf(t *testing.T, r *registry.Registry, q registry.HistoryRequest) registry.HistoryResult {
	t.Helper()
	h, err := r.History(t.Context(), q)
	must(t, err)
	return h
}

func TestHistory(t *testing.T) {
	r := open(t)
	began := time.Now()
	alice := registry.WithActor(t.Context(), "alice")
	bob := registry.WithActor(t.Context(), "bob")
	_, err := r.Register(alice, withChecks(instance("web", "w-1"), ttlCheck("c", weft.Passing)))
	must(t, err)
	_, err = r.Register(alice, instance("web", "w-2"))
	must(t, err)
	_, err = r.Register(bob, instance("other", "o-1"))
	must(t, err)
	must(t, r.Report(bob, "", "c", weft.Critical, "connection refused\nsecond line"))
	_, err = r.Register(alice, instance("web", "w-2")) // the same
	must(t, err)
	moved := instance("web", "w-2")
	moved.Address, moved.Labels = "10.0.0.2", map[string]string{"version": "v2", "app": "web"}
	_, err = r.Register(bob, moved)
	must(t, err)
	_, err = r.Deregister(bob, key("o-1"))
	must(t, err)
	_, err = r.Deregister(alice, key("w-1"))
	must(t, err)
	elsewhere := moved
	elsewhere.Service = service("other")
	_, err = r.Register(bob, elsewhere)
	must(t, err)

	h := historyOf(t, r, registry.HistoryRequest{Service: service("web"), Since: weft.Duration(time.Hour)})
	want := []string{
		"alice: w-1: registered: 10.0.0.1:8080, passing",
		"alice: w-2: registered: 10.0.0.1:8080, passing",
		"bob: w-1: check c: passing → critical: connection refused",
		"bob: w-2: address 10.0.0.1 → 10.0.0.2; labels app: web added; labels version: v1 → v2",
		"alice: w-1: deregistered",
		"bob: w-2: is of other.default now",
	}
	if diff := cmp.Diff(want, tellHistory(h.Changes)); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if len(h.Start) != 0 || h.Next != 0 {
		t.Errorf("it began with %d instances, and goes on after %d; want none, and 0", len(h.Start), h.Next)
	}
	var last uint64
	for _, c := range h.Changes {
		if c.Index <= last {
			t.Errorf("index %d comes after %d", c.Index, last)
		}
		last = c.Index
		if c.When.Before(began.Add(-time.Second)) || c.When.After(time.Now()) {
			t.Errorf("index %d is of %s; it is %s", c.Index, c.When, time.Now())
		}
	}
	if _, index := r.Instances(service("web")); index != last {
		t.Errorf("the last change is of %d; the service's index is %d", last, index)
	}
}

// TestHistoryStart: the catalogue as of the beginning, from what is now and what
// happened since.
func TestHistoryStart(t *testing.T) {
	r := open(t)
	for _, id := range []string{"changes", "goes", "moves", "stays"} {
		register(t, r, instance("web", id))
	}
	comes := instance("other", "comes")
	register(t, r, comes)
	first := historyOf(t, r, registry.HistoryRequest{Service: service("web"), Since: weft.Duration(time.Hour)})
	middle := first.Changes[len(first.Changes)-1].Index
	then, _ := r.Instances(service("web"))

	changes, moves := instance("web", "changes"), instance("other", "moves")
	changes.Port = 1
	register(t, r, changes)
	register(t, r, moves)
	comes.Service = service("web")
	register(t, r, comes)
	register(t, r, instance("web", "new"))
	_, err := r.Deregister(t.Context(), key("goes"))
	must(t, err)

	h, err := r.HistoryFrom(t.Context(), service("web"), int64(middle)+1)
	must(t, err)
	if diff := cmp.Diff(then, h.Start); diff != "" {
		t.Errorf("catalogue as of index %d (-want +got):\n%s", middle, diff)
	}
	want := []string{
		": changes: port 8080 → 1", ": moves: is of other.default now",
		": comes: registered: 10.0.0.1:8080, passing, was of other.default",
		": new: registered: 10.0.0.1:8080, passing", ": goes: deregistered",
	}
	if diff := cmp.Diff(want, tellHistory(h.Changes)); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

func TestHistoryInPages(t *testing.T) {
	r := open(t)
	ids := []string{"a", "b", "c", "d", "e"}
	for _, id := range ids {
		register(t, r, instance("web", id))
	}
	q := registry.HistoryRequest{Service: service("web"), Since: weft.Duration(time.Hour), Limit: 2}
	var got []string
	for range len(ids) {
		h := historyOf(t, r, q)
		for _, c := range h.Changes {
			got = append(got, c.Key.ID)
		}
		if q.After = h.Next; h.Next == 0 {
			break
		}
		if len(h.Changes) != 2 {
			t.Errorf("a page has %d changes; want 2", len(h.Changes))
		}
	}
	if !slices.Equal(got, ids) {
		t.Errorf("the pages have %v; want %v", got, ids)
	}
}

// TestHistoryOfTheRegistrysOwnWrites: what nobody asked for says what it comes from.
func TestHistoryOfTheRegistrysOwnWrites(t *testing.T) {
	r := open(t)
	ctx := registry.WithActor(t.Context(), "alice")
	lease := weft.Check{ID: "lease", Kind: weft.LeaseCheck, TTL: weft.Duration(100 * time.Millisecond)}
	_, err := r.Register(ctx, withChecks(instance("web", "leased"), lease))
	must(t, err)
	refused := refusedAddress(t)
	_, err = r.Register(ctx, withChecks(instance("web", "probed"),
		weft.Check{ID: "tcp", Kind: weft.TCPCheck, Target: refused, Interval: weft.Duration(time.Hour)}))
	must(t, err)
	_, err = r.Register(ctx, withChecks(instance("web", "alias"), aliasOf("alias", "", "leased")))
	must(t, err)
	waitForHealth(t, r, "leased", weft.Critical)
	waitForHealth(t, r, "probed", weft.Critical)
	waitForHealth(t, r, "alias", weft.Critical)
	must(t, r.Maintain(registry.WithActor(ctx, "bob"), key("alias"), true, "repair"))

	var got []string
	for _, line := range tellHistory(historyOf(t, r, registry.HistoryRequest{Service: service("web"), Since: weft.Duration(time.Hour)}).Changes) {
		if !strings.HasPrefix(line, "alice: ") {
			got = append(got, line)
		}
	}
	slices.Sort(got)
	want := []string{
		"bob: alias: check _service_maintenance:alias added: critical: repair",
		"check " + refused + " failed: probed: check tcp: passing → critical: ",
		"lease of leased lapsed: leased: check lease: passing → critical: no report for 100ms",
		`what its alias check looks at: alias: check alias: passing → critical: Aliased check "Service 'web' check" failing: no report for 100ms`,
	}
	for _, w := range want {
		if !slices.ContainsFunc(got, func(line string) bool { return strings.HasPrefix(line, w) }) {
			t.Errorf("%q is missing in\n%s", w, strings.Join(got, "\n"))
		}
	}
}

// TestHistoryOfNodesAndMany: a node changes under its instances, and goes with them.
func TestHistoryOfNodesAndMany(t *testing.T) {
	r := open(t)
	ctx := registry.WithActor(t.Context(), "alice")
	_, err := r.RegisterNode(ctx, weft.Node{Name: "far", Address: "10.0.0.9"})
	must(t, err)
	for i := range 3 {
		in := instance("web", fmt.Sprint("w-", i))
		in.Node = "far"
		_, err := r.Register(ctx, in)
		must(t, err)
	}
	from, _ := r.Instances(service("web"))
	_, err = r.RegisterNode(registry.WithActor(ctx, "bob"), weft.Node{Name: "far", Address: "10.0.0.10"})
	must(t, err)
	_, err = r.DeregisterNode(registry.WithActor(ctx, "carol"), "far")
	must(t, err)
	h, err := r.HistoryFrom(ctx, service("web"), int64(from[2].ModifyIndex)+1)
	must(t, err)
	want := []string{
		"bob: : node: address 10.0.0.9 → 10.0.0.10",
		"carol: w-0: deregistered", "carol: w-1: deregistered", "carol: w-2: deregistered",
	}
	if diff := cmp.Diff(want, tellHistory(h.Changes)); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

// TestHistoryTooFarBack: a restored store has no history of before.
func TestHistoryTooFarBack(t *testing.T) {
	s := openStore(t, t.TempDir())
	r := openRegistry(t, s)
	register(t, r, instance("web", "a"))
	var backup bytes.Buffer
	must(t, s.Backup(t.Context(), &backup))
	dir := filepath.Join(t.TempDir(), "restored")
	must(t, store.Restore(t.Context(), dir, &backup))
	restored := openRegistry(t, openStore(t, dir))
	register(t, restored, instance("web", "b"))
	_, err := restored.History(t.Context(), registry.HistoryRequest{Service: service("web"), Since: weft.Duration(time.Hour)})
	if weft.KindOf(err) != weft.NotFound {
		t.Fatalf("got %v; want an error of kind not found", err)
	}
	wantText(t, err.Error(), "the history reaches back to 20")
}

func TestBadHistoryRequests(t *testing.T) {
	r := open(t)
	for _, c := range []struct {
		q    registry.HistoryRequest
		want string
	}{
		{registry.HistoryRequest{Since: 1}, "service: is empty"},
		{registry.HistoryRequest{Service: service("web")}, "since: 0s is no time"},
		{registry.HistoryRequest{Service: service("web"), Since: 1, Limit: -1}, "limit: -1 is out of range"},
		{registry.HistoryRequest{Service: service("web"), Since: 1, Limit: 1 << 30}, "use 1 to 10000"},
	} {
		_, err := r.History(t.Context(), c.q)
		if weft.KindOf(err) != weft.Invalid {
			t.Errorf("%+v: got %v; want an error of kind invalid", c.q, err)
			continue
		}
		wantText(t, err.Error(), c.want)
	}
}

// refusedAddress is one where nobody listens.
func refusedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, l.Close())
	return l.Addr().String()
}

// waitForHealth waits until an instance has a health.
func waitForHealth(t *testing.T, r *registry.Registry, id string, want weft.Health) {
	t.Helper()
	eventually(t, id+" to be "+want.String(), func() bool {
		in, _ := r.Instance(key(id))
		return in.Health() == want
	})
}
