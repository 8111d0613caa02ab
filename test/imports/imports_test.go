package imports

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/registry/etcd"
	"github.com/weftmesh/weft/registry/mirror"
	"github.com/weftmesh/weft/registry/zookeeper"
	"github.com/weftmesh/weft/store"
	"github.com/weftmesh/weft/test/world"
)

func TestMain(m *testing.M) {
	code := world.Run(m)
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// need skips the test when a program of Debian's is not there.
func need(t *testing.T, what, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(what); err != nil {
		if _, err := os.Stat(what); err != nil {
			t.Skipf("%s is not there; apt-get install %s", what, pkg)
		}
	}
}

func openRegistry(t *testing.T) *registry.Registry {
	t.Helper()
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
	return r
}

// source is what both imports are.
type source interface {
	Run(context.Context) error
	Status() mirror.Status
}

func follow(t *testing.T, s source) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// wants waits until the services of an import's node are these: "web=10.0.0.1:80 …".
func wants(t *testing.T, r *registry.Registry, node, want string) {
	t.Helper()
	world.Eventually(t, 20*time.Second, "the instances "+want, func() error {
		if got := on(r, node); got != want {
			return fmt.Errorf("there are %q", got)
		}
		return nil
	})
}

func on(r *registry.Registry, node string) string {
	_, all, _ := r.Node(node)
	var got []string
	for _, in := range all {
		got = append(got, fmt.Sprintf("%s=%s:%d", in.Service.Name, in.Address, in.Port))
	}
	return strings.Join(got, " ")
}

func away(t *testing.T, s source, want bool) {
	t.Helper()
	world.Eventually(t, 20*time.Second, "word of the source", func() error {
		if st := s.Status(); (st.Away != "") != want || st.AwaySince.IsZero() == want {
			return fmt.Errorf("away %q since %s", st.Away, st.AwaySince)
		}
		return nil
	})
}

// problem waits until the import names a place, and no other; "" is none.
func problem(t *testing.T, s source, place string) {
	t.Helper()
	world.Eventually(t, 20*time.Second, "a problem with "+place, func() error {
		got := s.Status().Problems
		if place == "" && len(got) == 0 || len(got) == 1 && place != "" && strings.Contains(got[0], place) {
			return nil
		}
		return fmt.Errorf("there are %q", got)
	})
}

func TestEtcd(t *testing.T) {
	need(t, "etcd", "etcd-server")
	client, peer := world.FreePort(t), world.FreePort(t)
	dir := t.TempDir()
	start := func() *world.Process {
		url, peerURL := fmt.Sprintf("http://127.0.0.1:%d", client), fmt.Sprintf("http://127.0.0.1:%d", peer)
		return world.Start(t, "etcd", "etcd", "--data-dir", dir, "--listen-client-urls", url, "--advertise-client-urls", url,
			"--listen-peer-urls", peerURL, "--initial-advertise-peer-urls", peerURL, "--initial-cluster", "default="+peerURL)
	}
	process := start()
	address := fmt.Sprintf("127.0.0.1:%d", client)
	world.Eventually(t, 10*time.Second, "etcd", world.Accepts(address))
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{address}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	// A service of gRPC's registers as it does, by a lease that it keeps.
	naming, err := endpoints.NewManager(c, "services/web")
	if err != nil {
		t.Fatal(err)
	}
	lease, err := c.Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	add := func(address string, options ...clientv3.OpOption) {
		t.Helper()
		err := naming.AddEndpoint(t.Context(), "services/web/"+address, endpoints.Endpoint{Addr: address, Metadata: map[string]string{"version": "v1"}}, options...)
		if err != nil {
			t.Fatal(err)
		}
	}
	add("10.0.0.1:80", clientv3.WithLease(lease.ID))
	add("10.0.0.2:80")

	config, err := etcd.Parse("http://" + address + "/services")
	if err != nil {
		t.Fatal(err)
	}
	r := openRegistry(t)
	s, err := etcd.New(r, config)
	if err != nil {
		t.Fatal(err)
	}
	follow(t, s)
	wants(t, r, "etcd", "web=10.0.0.1:80 web=10.0.0.2:80")
	if list, _ := r.Instances(weft.NewServiceName("", "web")); list[0].Version() != "v1" || list[0].Dialect != "etcd" {
		t.Errorf("%+v", list[0])
	}
	if _, err := c.Put(t.Context(), "services/web/typo", "10.0.0.4"); err != nil {
		t.Fatal(err)
	}
	problem(t, s, "services/web/typo")
	if got := on(r, "etcd"); got != "web=10.0.0.1:80 web=10.0.0.2:80" {
		t.Errorf("beside a key that cannot be read: %q", got)
	}
	if _, err := c.Delete(t.Context(), "services/web/typo"); err != nil {
		t.Fatal(err)
	}
	problem(t, s, "")
	if _, err := c.Revoke(t.Context(), lease.ID); err != nil { // it died
		t.Fatal(err)
	}
	wants(t, r, "etcd", "web=10.0.0.2:80")

	process.Pause() // it is silent: that is no word of any service
	away(t, s, true)
	if got := on(r, "etcd"); got != "web=10.0.0.2:80" {
		t.Errorf("while etcd is silent: %q", got)
	}
	process.Resume()
	away(t, s, false)

	process.Kill()
	away(t, s, true)
	start()
	world.Eventually(t, 10*time.Second, "etcd", world.Accepts(address))
	add("10.0.0.3:80")
	if err := naming.DeleteEndpoint(t.Context(), "services/web/10.0.0.2:80"); err != nil {
		t.Fatal(err)
	}
	wants(t, r, "etcd", "web=10.0.0.3:80")
	away(t, s, false)
}

const zookeeperJar = "/usr/share/java/zookeeper.jar"

func TestZooKeeper(t *testing.T) {
	need(t, "java", "default-jre-headless")
	need(t, zookeeperJar, "libzookeeper-java")
	port, dir := world.FreePort(t), t.TempDir()
	config := filepath.Join(dir, "zoo.cfg")
	text := fmt.Sprintf("tickTime=200\ndataDir=%s\nclientPort=%d\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n", dir, port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func() *world.Process {
		return world.Start(t, "zookeeper", "java", "-Xmx128m", "-XX:+UseSerialGC", "-cp", zookeeperJar, "org.apache.zookeeper.server.quorum.QuorumPeerMain", config)
	}
	process := start()
	address := fmt.Sprintf("127.0.0.1:%d", port)
	world.Eventually(t, 20*time.Second, "ZooKeeper", serves(address))
	service := connect(t, address) // the session of a service
	create(t, service, "/services", "10.0.0.9", 0)
	create(t, service, "/services/web", "10.0.0.9", 0)
	create(t, service, "/services/web/7f3c", `{"name":"web","id":"7f3c","address":"10.0.0.1","port":8080,"sslPort":null,"payload":{"version":"v2"},"registrationTimeUTC":1500000000000,"serviceType":"DYNAMIC","uriSpec":null}`, zk.FlagEphemeral)

	c, err := zookeeper.Parse("zk://" + address + "/services")
	if err != nil {
		t.Fatal(err)
	}
	r := openRegistry(t)
	s, err := zookeeper.New(r, c)
	if err != nil {
		t.Fatal(err)
	}
	follow(t, s)
	wants(t, r, "zookeeper", "web=10.0.0.1:8080")
	if list, _ := r.Instances(weft.NewServiceName("", "web")); list[0].Version() != "v2" || list[0].Dialect != "zookeeper" {
		t.Errorf("%+v", list[0])
	}

	// The other forms, while it is followed.
	lasting := connect(t, address)
	create(t, lasting, "/services/db", "", 0)
	create(t, lasting, "/services/db/member_", `{"serviceEndpoint":{"host":"10.0.0.2","port":5432},"additionalEndpoints":{},"status":"ALIVE"}`, zk.FlagSequence)
	create(t, lasting, "/services/com.acme.Orders", "", 0)
	create(t, lasting, "/services/com.acme.Orders/providers", "", 0)
	create(t, lasting, "/services/com.acme.Orders/providers/dubbo%3A%2F%2F10.0.0.3%3A20880%2Fcom.acme.Orders%3Fversion%3D1.0.0", "", 0)
	wants(t, r, "zookeeper", "com.acme.Orders=10.0.0.3:20880 db=10.0.0.2:5432 web=10.0.0.1:8080")

	create(t, lasting, "/services/web/typo", `{"name":"web"`, zk.FlagEphemeral)
	problem(t, s, "web/typo")
	if got := on(r, "zookeeper"); got != "com.acme.Orders=10.0.0.3:20880 db=10.0.0.2:5432 web=10.0.0.1:8080" {
		t.Errorf("beside a node that cannot be read: %q", got)
	}

	service.Close() // it died: its session ends, and its node goes
	wants(t, r, "zookeeper", "com.acme.Orders=10.0.0.3:20880 db=10.0.0.2:5432")

	process.Kill()
	away(t, s, true)
	if got := on(r, "zookeeper"); got != "com.acme.Orders=10.0.0.3:20880 db=10.0.0.2:5432" {
		t.Errorf("while ZooKeeper is away: %q", got)
	}
	lasting.Close()
	start()
	world.Eventually(t, 20*time.Second, "ZooKeeper", serves(address))
	after := connect(t, address)
	if err := after.Delete("/services/com.acme.Orders/providers/dubbo%3A%2F%2F10.0.0.3%3A20880%2Fcom.acme.Orders%3Fversion%3D1.0.0", -1); err != nil {
		t.Fatal(err)
	}
	wants(t, r, "zookeeper", "db=10.0.0.2:5432")
	away(t, s, false)
}

// serves is a check for Eventually. ZooKeeper accepts before it serves, and a client
// that comes between waits most of a minute.
func serves(address string) func() error {
	return func() error {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if _, err := c.Write([]byte("srvr")); err != nil {
			return err
		}
		said, err := io.ReadAll(io.LimitReader(c, 4096))
		if err == nil && !strings.Contains(string(said), "Mode:") {
			err = fmt.Errorf("it says %q", said)
		}
		return err
	}
}

// quiet keeps the library from writing to stderr.
type quiet struct{}

func (quiet) Printf(string, ...any) {}

func connect(t *testing.T, address string) *zk.Conn {
	t.Helper()
	conn, events, err := zk.Connect([]string{address}, 4*time.Second, zk.WithLogger(quiet{}), zk.WithLogInfo(false))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		for range events { // closed when the library's goroutines have ended
		}
	})
	return conn
}

func create(t *testing.T, conn *zk.Conn, path, data string, flags int32) {
	t.Helper()
	world.Eventually(t, 10*time.Second, path, func() error {
		_, err := conn.Create(path, []byte(data), flags, zk.WorldACL(zk.PermAll))
		if errors.Is(err, zk.ErrNodeExists) {
			return nil
		}
		return err
	})
}

// A registrar that is killed leaves nobody behind: its lease lapses.
func TestRegister(t *testing.T) {
	w := world.New(t)
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	port := strconv.Itoa(app.Addr().(*net.TCPAddr).Port)
	register := func(args ...string) *world.Process {
		return w.Start("register", world.Binary, append([]string{"register", "--addr", w.API, "--service", "web", "--port", port, "--ttl", "1s"}, args...)...)
	}
	passing := func(want int) {
		t.Helper()
		world.Eventually(t, 10*time.Second, fmt.Sprintf("%d healthy instances", want), func() error {
			resp, err := http.Get("http://" + w.Consul + "/v1/health/service/web?passing")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			var list []struct{ Service struct{ Port int } }
			if err := json.NewDecoder(resp.Body).Decode(&list); err != nil || len(list) != want {
				return fmt.Errorf("there are %v, %v", list, err)
			}
			return nil
		})
	}
	polite := register("--", "sleep", "60")
	passing(1)
	polite.Stop()
	passing(0)
	killed := register("--pid", strconv.Itoa(os.Getpid()))
	passing(1)
	killed.Kill()
	passing(0)
	http.DefaultClient.CloseIdleConnections()
}
