package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/registry/mirror"
	"github.com/weftmesh/weft/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestValues(t *testing.T) {
	provider := "dubbo%3A%2F%2F10.0.0.1%3A20880%2Fcom.acme.Orders%3Fapplication%3Dshop%26version%3D1.0.0%26group%3Dg%26weight%3D200%26timestamp%3D1%26methods%3Da%2Cb"
	for _, c := range []struct{ path, data, want string }{
		{"web/7f3c", `{"name":"web","id":"7f3c","address":"10.0.0.1","port":8080,"sslPort":null,"payload":{"@class":"org.springframework.cloud.zookeeper.discovery.ZookeeperInstance","id":"application-1","name":"web","metadata":{"version":"v1","zone":"a"}},"registrationTimeUTC":1,"serviceType":"DYNAMIC","uriSpec":{"parts":[]}}`,
			"web web/7f3c 10.0.0.1:8080 map[version:v1 zone:a]"},
		{"x/7f3c", `{"name":"web","address":"h","port":null,"sslPort":8443,"payload":{"version":2}}`, "web x/7f3c h:8443 map[version:2]"},
		{"web/7f3c", `{"name":"web","address":"h","port":80,"enabled":false}`, "none"},
		{"shop/web/member_01", `{"serviceEndpoint":{"host":"h","port":80},"additionalEndpoints":{"admin":{"host":"h","port":81}},"status":"ALIVE","shard":3}`,
			"shop-web shop/web/member_01 h:80 map[shard:3]"},
		{"web/member_01", `{"serviceEndpoint":{"host":"h","port":80},"status":"STOPPING"}`, "none"},
		{"web/i-1", `{"host":"h","port":80,"name":"i-1","weight":5}`, "web web/i-1 h:80 map[weight:5]"},
		{"com.acme.Orders/providers/" + provider, "", "com.acme.Orders com.acme.Orders/dubbo/10.0.0.1:20880/1.0.0/g 10.0.0.1:20880 map[application:shop dubbo:dubbo group:g version:1.0.0]"},
		{"com.acme.Orders/consumers/consumer%3A%2F%2F10.0.0.1%2Fcom.acme.Orders", "", "none"},
		{"com.acme.Orders/configurators/override%3A%2F%2F0.0.0.0%2Fx", "", "none"},
		{"com.acme.Orders/providers/dubbo%3A%2F%2F10.0.0.1%3A20880%2Fx%3Fenabled%3Dfalse", "", "none"},
		{"com.acme.Orders/providers/dubbo%3A%2F%2F10.0.0.1%2Fx", "", "has no interface, host and port"},
		{"com.acme.Orders/providers/dubbo%3A%2F%2F%zz", "", "its name is no URL"},
		{"web", "192.168.1.5", "maybe"},
		{"web", "", "maybe"},
		{"web/1", `{"name":`, "maybe"},
		{"web/1", `{"colour":"red"}`, "maybe"},
		{"web/1", `{"address":"h","port":70000}`, `znode "web/1": h:70000 is no address with a port`},
		{"member_1", `{"host":"h","port":1}`, `no service stands in it; give the path above`},
	} {
		claim, there, sure, err := parse(c.path, []byte(c.data))
		got := fmt.Sprintf("%s %s %s:%d %v", claim.Service.Name, claim.ID, claim.Address, claim.Port, claim.Labels)
		switch {
		case err != nil && !sure:
			got = "maybe"
		case err != nil:
			got = err.Error()
		case !there:
			got = "none"
		}
		if got != c.want && (err == nil || !strings.Contains(got, c.want)) {
			t.Errorf("%s = %s:\n got %s\nwant %s", c.path, c.data, got, c.want)
		}
	}
	claim, _, _, _ := parse("com.acme.Orders/providers/"+provider, nil)
	if claim.Weights != (weft.Weights{Passing: 200, Warning: 200}) {
		t.Errorf("%+v", claim.Weights)
	}
}

func FuzzValue(f *testing.F) {
	f.Add("web/1", []byte(`{"name":"web","address":"h","port":80}`))
	f.Add("web/1", []byte(`{"serviceEndpoint":{"host":"h","port":80},"status":"ALIVE"}`))
	f.Add("a/providers/dubbo%3A%2F%2F10.0.0.1%3A20880%2Fx", []byte(nil))
	f.Fuzz(func(t *testing.T, path string, data []byte) {
		claim, there, _, err := parse(path, data)
		if err == nil && there && (claim.Port < 1 || claim.Port > 65535 || claim.Address == "" || claim.Service.Name == "" || claim.ID == "") {
			t.Errorf("%q = %q: %+v", path, data, claim)
		}
	})
}

// forest stands for a ZooKeeper: nodes with watches that fire once.
type forest struct {
	mu      sync.Mutex
	nodes   map[string]string // path -> data; those with "!" before it are persistent
	watches map[string]bool   // "data /path", "children /path"
	fired   []zk.Event
	fail    error
}

func (f *forest) GetW(p string) ([]byte, *zk.Stat, <-chan zk.Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, ok := f.nodes[p]
	switch {
	case f.fail != nil:
		return nil, nil, nil, f.fail
	case !ok:
		return nil, nil, nil, zk.ErrNoNode
	}
	f.watches["data "+p] = true
	stat := &zk.Stat{EphemeralOwner: 1}
	if rest, persistent := strings.CutPrefix(data, "!"); persistent {
		data, stat.EphemeralOwner = rest, 0
	}
	return []byte(data), stat, nil, nil
}

func (f *forest) ChildrenW(p string) (names []string, _ *zk.Stat, _ <-chan zk.Event, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.nodes[p]; !ok {
		return nil, nil, nil, zk.ErrNoNode
	}
	for other := range f.nodes {
		if other != p && path.Dir(other) == p {
			names = append(names, path.Base(other))
		}
	}
	f.watches["children "+p] = true
	return names, &zk.Stat{}, nil, nil
}

func (f *forest) fire(watch, p string, e zk.EventType) {
	if f.watches[watch+" "+p] {
		delete(f.watches, watch+" "+p)
		f.fired = append(f.fired, zk.Event{Type: e, Path: p})
	}
}

func (f *forest) set(p, data string) {
	_, was := f.nodes[p]
	f.nodes[p] = data
	if was {
		f.fire("data", p, zk.EventNodeDataChanged)
	} else {
		f.fire("children", path.Dir(p), zk.EventNodeChildrenChanged)
	}
}

func (f *forest) remove(p string) {
	for other := range maps.Clone(f.nodes) {
		if other != p && path.Dir(other) == p {
			f.remove(other)
		}
	}
	delete(f.nodes, p)
	f.fire("data", p, zk.EventNodeDeleted)
	f.fire("children", path.Dir(p), zk.EventNodeChildrenChanged)
}

// none is a catalogue of nothing.
type none struct{ mirror.Catalogue }

func (none) Node(string) (*weft.Node, []*weft.Instance, uint64) { return nil, nil, 1 }

func curator(port int) string { return fmt.Sprintf(`{"address":"h","port":%d}`, port) }

func TestTree(t *testing.T) {
	f := &forest{nodes: map[string]string{"/s": "!10.0.0.9", "/s/web": "!10.0.0.9", "/s/web/1": curator(1)}, watches: make(map[string]bool)}
	entries := mirror.NewEntries(mirror.New(none{}, mirror.Config{Dialect: Dialect}))
	tree := newTree(f, "/s", entries)
	if err := tree.read(); err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		what string
		do   func()
		want string
	}{
		{"at first", func() {}, "web/1:1"},
		{"one comes", func() { f.set("/s/web/2", curator(2)) }, "web/1:1 web/2:2"},
		{"one changes, twice", func() { f.set("/s/web/2", curator(3)); f.set("/s/web/2", curator(4)) }, "web/1:1 web/2:4"},
		{"a service comes", func() { f.set("/s/db", "!"); f.set("/s/db/1", curator(5)) }, "db/1:5 web/1:1 web/2:4"},
		{"one cannot be read", func() { f.set("/s/web/1", "rubbish") }, `db/1:5 web/1:1 web/2:4 znode "web/1": its data is no JSON`},
		{"one comes back under its name", func() { f.remove("/s/web/1"); f.set("/s/web/1", curator(6)) }, "db/1:5 web/1:6 web/2:4"},
		{"one goes", func() { f.remove("/s/web/2") }, "db/1:5 web/1:6"},
		{"a service goes", func() { f.remove("/s/db") }, "web/1:6"},
		{"all go, but their folder", func() { f.remove("/s/web/1") }, ""},
		{"one comes again", func() { f.set("/s/web/1", curator(7)) }, "web/1:7"},
	} {
		s.do()
		for len(f.fired) > 0 {
			e := f.fired[0]
			f.fired = f.fired[1:]
			if err := tree.changed(e); err != nil {
				t.Fatalf("%s: %v", s.what, err)
			}
		}
		claims, problems := entries.Claims()
		var got []string
		for _, c := range claims {
			got = append(got, fmt.Sprintf("%s:%d", c.ID, c.Port))
		}
		if text := strings.Join(append(got, problems...), " "); text != s.want {
			t.Errorf("%s: got %q, want %q", s.what, text, s.want)
		}
	}

	// The path itself goes: that is said by nobody.
	delete(f.nodes, "/s")
	err := tree.changed(zk.Event{Type: zk.EventNodeDeleted, Path: "/s"})
	if claims, _ := entries.Claims(); err == nil || len(claims) != 1 {
		t.Errorf("%v, %v", err, claims)
	}
	if err := newTree(f, "/s", entries).read(); err == nil || !strings.Contains(err.Error(), "there is no node /s") {
		t.Errorf("%v", err)
	}
	f.fail = errors.New("connection lost")
	if err := newTree(f, "/s", entries).read(); !errors.Is(err, f.fail) {
		t.Errorf("%v", err)
	}
	if claims, _ := entries.Claims(); len(claims) != 1 {
		t.Errorf("what could not be read took out %v", claims)
	}
}

func TestAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"zk://10.0.0.1:2181,10.0.0.2/services/": "[10.0.0.1:2181 10.0.0.2:2181] services   ",
		"zk://u:p@h/?node=old":                  "[h:2181]  u p old",
		"http://h/":                             "want scheme://host:port/path with one of the schemes zk, zookeeper",
		"zk://h/?password-file=/not/there":      "no such file",
	} {
		c, err := Parse(address)
		got := fmt.Sprint(c.Servers, " ", c.Path, " ", c.User, " ", c.Password, " ", c.Node)
		if err != nil {
			got = err.Error()
		}
		if got != want && (err == nil || weft.KindOf(err) != weft.Invalid || !strings.Contains(got, want)) {
			t.Errorf("%s:\n got %s\nwant %s", address, got, want)
		}
	}
}

// Run ends, and waits for what the library began, also when nobody answers.
func TestNobodyThere(t *testing.T) {
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
	if _, err := New(r, Config{}); weft.KindOf(err) != weft.Invalid {
		t.Errorf("%v", err)
	}
	s, err := New(r, Config{Servers: []string{"127.0.0.1:1"}, Path: "services"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for deadline := time.Now().Add(20 * time.Second); s.Status().Away == "" && time.Now().Before(deadline); {
		time.Sleep(2 * time.Millisecond)
	}
	if away := s.Status().Away; !strings.Contains(away, "connection refused") {
		t.Errorf("away: %q", away)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := s.Status(); got.Source != "ZooKeeper at 127.0.0.1:1/services" || got.Dialect != Dialect || got.Node != "zookeeper" {
		t.Errorf("%+v", got)
	}
}
