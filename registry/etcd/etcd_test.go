package etcd

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a registry, an etcd, and a line to it that can be cut.
type world struct {
	*testing.T
	registry *registry.Registry
	client   *clientv3.Client // straight to the etcd
	line     *line
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

	c := embed.NewConfig()
	c.Dir, c.ZapLoggerBuilder = filepath.Join(t.TempDir(), "etcd"), embed.NewZapLoggerBuilder(zap.NewNop())
	free := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	c.ListenClientUrls, c.AdvertiseClientUrls, c.ListenPeerUrls, c.AdvertisePeerUrls = free, free, free, free
	c.InitialCluster = c.Name + "=" + free[0].String()
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	address := e.Clients[0].Addr().String()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return &world{t, r, client, newLine(t, address)}
}

// line passes bytes on to an address, unless it is cut.
type line struct {
	net.Listener
	to string

	mu    sync.Mutex
	cut   bool
	conns []net.Conn
	work  sync.WaitGroup
}

func newLine(t *testing.T, to string) *line {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{Listener: ln, to: to}
	l.work.Go(l.serve)
	t.Cleanup(func() {
		_ = l.Close()
		l.set(true)
		l.work.Wait()
	})
	return l
}

func (l *line) serve() {
	for {
		a, err := l.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", l.to)
		l.mu.Lock()
		if l.cut || err != nil {
			_ = a.Close()
			if b != nil {
				_ = b.Close()
			}
			l.mu.Unlock()
			continue
		}
		l.conns = append(l.conns, a, b)
		l.mu.Unlock()
		for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
			l.work.Go(func() {
				_, _ = pair[0].(*net.TCPConn).ReadFrom(pair[1])
				_ = pair[0].Close()
				_ = pair[1].Close()
			})
		}
	}
}

// set cuts the line, or mends it.
func (l *line) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

func (w *world) follow(c Config) (*Source, func()) {
	w.Helper()
	c.Endpoints = []string{w.line.Addr().String()}
	s, err := New(w.registry, c)
	w.must(err)
	s.patience, s.every = time.Second, 200*time.Millisecond
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.Error(err)
		}
	})
	w.Cleanup(stop)
	return s, stop
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) put(key, value string) {
	w.Helper()
	_, err := w.client.Put(w.Context(), key, value)
	w.must(err)
}

func (w *world) delete(key string) {
	w.Helper()
	_, err := w.client.Delete(w.Context(), key)
	w.must(err)
}

// registered is "web/a=10.0.0.1:80 …", of the import's node.
func (w *world) registered() string {
	_, all, _ := w.registry.Node("etcd")
	var out []string
	for _, in := range all {
		out = append(out, fmt.Sprintf("%s=%s:%d", in.ID, in.Address, in.Port))
	}
	return strings.Join(out, " ")
}

func (w *world) eventually(want string, what func() string) {
	w.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for what() != want {
		if time.Now().After(deadline) {
			w.Fatalf("got %q, want %q", what(), want)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (w *world) wants(want string) { w.Helper(); w.eventually(want, w.registered) }

func TestFollow(t *testing.T) {
	w := newWorld(t)
	w.put("services/web/a", `{"Op":0,"Addr":"10.0.0.1:80","Metadata":{"version":"v2","zone":"a","weight":3}}`)
	w.put("other/web/x", "10.9.9.9:1")
	s, stop := w.follow(Config{Prefix: "services"})
	w.wants("web/a=10.0.0.1:80")
	in, _ := w.registry.Instance(weft.InstanceKey{Node: "etcd", ID: "web/a"})
	if in.Service != weft.NewServiceName("", "web") || in.Dialect != "etcd" || in.Version() != "v2" || in.Zone != "a" || in.Labels["weight"] != "3" {
		t.Errorf("%+v", in)
	}
	w.put("services/web/b", "10.0.0.2:80")
	w.wants("web/a=10.0.0.1:80 web/b=10.0.0.2:80")
	w.put("services/web/b", "10.0.0.2:81")
	w.wants("web/a=10.0.0.1:80 web/b=10.0.0.2:81")
	w.put("services/web/b", "nonsense") // what it said stands
	w.eventually(`etcd key "services/web/b": the value has the address "nonsense"; want host:port, or {"Op":0,"Addr":"host:port"}`,
		func() string { return strings.Join(s.Status().Problems, ";") })
	w.wants("web/a=10.0.0.1:80 web/b=10.0.0.2:81")
	w.delete("services/web/a")
	w.wants("web/b=10.0.0.2:81")
	h, err := w.registry.History(w.Context(), registry.HistoryRequest{Service: in.Service, Since: weft.Duration(time.Hour)})
	for _, c := range h.Changes {
		if want := "import from " + s.Status().Source; c.By != want || err != nil {
			t.Errorf("%v by %q, want %q; %v", c.What, c.By, want, err)
		}
	}

	// What went while nobody looked goes with the next start; what is broken by then
	// stays as it was.
	stop()
	w.put("services/web/c", "10.0.0.3:80")
	_, stop = w.follow(Config{Prefix: "services/"})
	w.wants("web/b=10.0.0.2:81 web/c=10.0.0.3:80")
	stop()
	w.delete("services/web/b")
	w.follow(Config{Prefix: "services"})
	w.wants("web/c=10.0.0.3:80")
}

// An etcd that is away says nothing, least of all that nobody is there.
func TestAwayAndBack(t *testing.T) {
	w := newWorld(t)
	w.put("services/web/a", "10.0.0.1:80")
	w.put("services/web/b", "10.0.0.2:80")
	s, _ := w.follow(Config{Prefix: "services"})
	w.wants("web/a=10.0.0.1:80 web/b=10.0.0.2:80")

	w.line.set(true)
	w.delete("services/web/a")
	w.put("services/web/c", "10.0.0.3:80")
	away := func() string { return fmt.Sprint(s.Status().Away != "", !s.Status().AwaySince.IsZero()) }
	w.eventually("true true", away)
	if got := w.registered(); got != "web/a=10.0.0.1:80 web/b=10.0.0.2:80" {
		t.Errorf("while it is away: %q", got)
	}
	// Meanwhile its history is compacted: what the watch would resume from is gone.
	resp, err := w.client.Get(t.Context(), "services", clientv3.WithPrefix())
	w.must(err)
	_, err = w.client.Compact(t.Context(), resp.Header.Revision)
	w.must(err)

	w.line.set(false)
	w.wants("web/b=10.0.0.2:80 web/c=10.0.0.3:80")
	w.eventually("false false", away)
}

func TestNobodyThere(t *testing.T) {
	w := newWorld(t)
	w.line.set(true)
	s, stop := w.follow(Config{Prefix: "services"})
	w.eventually("true", func() string { return fmt.Sprint(s.Status().Away != "") })
	stop()
	if _, err := New(w.registry, Config{}); weft.KindOf(err) != weft.Invalid {
		t.Errorf("%v", err)
	}
}
