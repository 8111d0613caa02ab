package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weftmesh/weft"
)

// catalogue is a registry of one node, which writes down what is done to it.
type catalogue struct {
	mu     sync.Mutex
	has    map[string]*weft.Instance
	node   *weft.Node
	done   []string
	refuse error // of every Register
}

func (c *catalogue) Register(_ context.Context, in weft.Instance) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return 0, c.refuse
	}
	c.has[in.ID] = &in
	c.done = append(c.done, "+"+in.ID)
	return 1, nil
}

func (c *catalogue) Deregister(_ context.Context, key weft.InstanceKey) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.has[key.ID] == nil {
		return 0, weft.Errorf(weft.NotFound, "deregister", key.ID, "gone")
	}
	delete(c.has, key.ID)
	c.done = append(c.done, "-"+key.ID)
	return 1, nil
}

func (c *catalogue) RegisterNode(_ context.Context, n weft.Node) (uint64, error) {
	c.node = &n
	c.done = append(c.done, "node "+n.Name+" at "+n.Address)
	return 1, nil
}

func (c *catalogue) Node(string) (*weft.Node, []*weft.Instance, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*weft.Instance
	for _, id := range slices.Sorted(maps.Keys(c.has)) {
		all = append(all, c.has[id])
	}
	return c.node, all, 1
}

// take returns what was done since the last call.
func (c *catalogue) take() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	done := c.done
	c.done = nil
	return strings.Join(done, " ")
}

func claim(id string, port int) Claim {
	return Claim{weft.Instance{ID: id, Service: weft.NewServiceName("", "web"), Port: port}, "line of " + id}
}

func newMirror() (*Mirror, *catalogue, *bytes.Buffer) {
	c, log := &catalogue{has: make(map[string]*weft.Instance)}, new(bytes.Buffer)
	return New(c, Config{Node: "n1", Dialect: "file", Source: "files", Logger: slog.New(slog.NewTextHandler(log, nil))}), c, log
}

func apply(t *testing.T, m *Mirror, claims ...Claim) {
	t.Helper()
	if err := m.Apply(t.Context(), claims, nil); err != nil {
		t.Fatal(err)
	}
}

func TestOnlyDifferencesAreWritten(t *testing.T) {
	m, c, _ := newMirror()
	apply(t, m, claim("a", 1))
	apply(t, m, claim("a", 1), claim("b", 1))
	apply(t, m, claim("a", 1), claim("b", 2))
	if got := c.take(); got != "+a +b +b" {
		t.Errorf("done: %s", got)
	}
	// A service is not empty when all its instances are others now.
	apply(t, m, claim("c", 1))
	if got := c.take(); !strings.HasPrefix(got, "+c -") || m.Status().Instances != 1 {
		t.Errorf("done: %s, status %+v", got, m.Status())
	}
	// What somebody else took out comes back.
	delete(c.has, "c")
	apply(t, m, claim("c", 1))
	if got := c.take(); got != "+c" {
		t.Errorf("done: %s", got)
	}
	if c.has["c"].Node != "n1" || c.has["c"].Dialect != "file" {
		t.Errorf("%+v", c.has["c"])
	}
}

func TestANewMirrorKnowsItsOwn(t *testing.T) {
	m, c, _ := newMirror()
	c.has["old"] = &weft.Instance{ID: "old", Dialect: "file"}
	c.has["theirs"] = &weft.Instance{ID: "theirs", Dialect: "consul"}
	if own := m.Owned(); len(own) != 1 || own[0].ID != "old" {
		t.Errorf("%v", own)
	}
	apply(t, m, claim("theirs", 1))
	if got := c.take(); got != "-old" {
		t.Errorf("done: %s", got)
	}
	want := `line of theirs: instance "theirs": node n1 has an instance of this id already, registered by consul; choose another id, or deregister that one`
	if s := m.Status(); len(s.Problems) != 1 || s.Problems[0] != want {
		t.Errorf("%q", s.Problems)
	}
	apply(t, m) // it says nothing: what is not its own stays
	if c.take() != "" || c.has["theirs"] == nil {
		t.Error("another dialect's instance was touched")
	}
}

func TestRefusedAndUnavailable(t *testing.T) {
	m, c, log := newMirror()
	apply(t, m, claim("a", 1))
	c.refuse = weft.Errorf(weft.Invalid, "register", "instance web/a", "port: is wrong")
	for range 3 {
		apply(t, m, claim("a", -1))
	}
	s := m.Status()
	if len(s.Problems) != 1 || s.Problems[0] != "line of a: register instance web/a: port: is wrong" || c.has["a"].Port != 1 {
		t.Errorf("%q, %+v", s.Problems, c.has["a"])
	}
	if n := strings.Count(log.String(), "port: is wrong"); n != 1 {
		t.Errorf("logged %d times: %s", n, log)
	}

	// Nothing is taken out while what shall replace it cannot be written.
	c.refuse = weft.Errorf(weft.Unavailable, "register", "instance", "no quorum")
	if err := m.Apply(t.Context(), []Claim{claim("b", 1)}, nil); weft.KindOf(err) != weft.Unavailable || c.has["a"] == nil {
		t.Errorf("%v, %v", err, c.has)
	}
	c.refuse = nil
	c.take()
	apply(t, m, claim("b", 1))
	if got := c.take(); got != "+b -a" || len(m.Status().Problems) != 0 {
		t.Errorf("done: %s, %q", got, m.Status().Problems)
	}
}

func TestAwayKeepsWhatIsKnown(t *testing.T) {
	m, c, log := newMirror()
	apply(t, m, claim("a", 1))
	for range 3 {
		m.Away(errors.New("connection refused"))
	}
	s := m.Status()
	if s.Away != "connection refused" || s.AwaySince.IsZero() || s.Instances != 1 || len(c.has) != 1 {
		t.Errorf("%+v", s)
	}
	since := s.AwaySince
	if m.Away(errors.New("timeout")); !m.Status().AwaySince.Equal(since) || m.Status().Away != "timeout" {
		t.Errorf("%+v", m.Status())
	}
	apply(t, m, claim("a", 1))
	if s := m.Status(); s.Away != "" || !s.AwaySince.IsZero() {
		t.Errorf("%+v", s)
	}
	if strings.Count(log.String(), "is away") != 1 || strings.Count(log.String(), "is back") != 1 {
		t.Errorf("log: %s", log)
	}
}

func TestMany(t *testing.T) {
	m, c, _ := newMirror()
	var claims []Claim
	for i := range 3*writers + 1 {
		claims = append(claims, claim(fmt.Sprint(i), 1))
	}
	apply(t, m, claims...)
	if len(c.has) != len(claims) {
		t.Errorf("%d of %d", len(c.has), len(claims))
	}
	if apply(t, m); len(c.has) != 0 {
		t.Errorf("%d left", len(c.has))
	}
}

func TestOnlyOneServerWrites(t *testing.T) {
	c, writes := &catalogue{has: make(map[string]*weft.Instance)}, false
	m := New(c, Config{Node: "etcd", Address: "10.0.0.9", Dialect: "etcd", Source: "etcd", Writes: func() bool { return writes }})
	apply(t, m, claim("a", 1))
	if c.take() != "" || !m.Status().Standby {
		t.Errorf("%+v", m.Status())
	}
	writes = true
	apply(t, m, claim("a", 1))
	if got := c.take(); got != "node etcd at 10.0.0.9 +a" || m.Status().Standby {
		t.Errorf("done: %s, %+v", got, m.Status())
	}
	writes = false
	apply(t, m)
	c.has["b"] = &weft.Instance{ID: "b", Dialect: "etcd"} // by the other one
	writes = true
	apply(t, m, claim("a", 1), claim("b", 1))
	if got := c.take(); got != "+a +b" && got != "+b +a" {
		t.Errorf("done: %s; what the other one wrote is compared again", got)
	}
}
