package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control/controltest"
	"github.com/weftmesh/weft/control/subscribe"
	"github.com/weftmesh/weft/node/cluster"
)

const anyPort = "127.0.0.1:0"

// testServer is a whole server in this process.
type testServer struct {
	*Server
	api  *client.Client
	stop func() // ends it; may be called again
}

func startMember(t *testing.T, c ServerConfig) *testServer {
	t.Helper()
	c.DataDir = t.TempDir()
	c.API, c.Consul, c.Eureka, c.DNS, c.Control, c.OTLPHTTP, c.OTLPGRPC = anyPort, anyPort, anyPort, anyPort, anyPort, anyPort, anyPort
	ctx, cancel := context.WithCancel(context.Background())
	s, err := NewServer(ctx, c)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	out := &testServer{Server: s}
	ended := false
	out.stop = func() {
		cancel()
		if !ended {
			ended = true
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(out.stop)
	if out.api, err = client.New(context.Background(), client.At(s.doors.api.Addr().String())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = out.api.Close() })
	return out
}

func (s *testServer) controlAddr() string { return s.doors.control.Addr().String() }

// freePort is an address that nobody listens on, for what has to know it before.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := holdFreePort()
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func startCluster(t *testing.T, names ...string) (list []*testServer) {
	t.Helper()
	for i, name := range names {
		c := ServerConfig{Node: name, Peer: freePort(t)}
		if i > 0 {
			token, err := os.ReadFile(cluster.TokenFile(list[0].config.DataDir))
			if err != nil {
				t.Fatal(err)
			}
			c.Join, c.ServerToken = list[0].controlAddr(), strings.TrimSpace(string(token))
		}
		list = append(list, startMember(t, c))
	}
	controltest.Eventually(t, func() string {
		for _, s := range list {
			for _, other := range s.cluster.Servers() {
				if other.Learner || other.Control == "" {
					return "a server does not know " + other.Name + " yet"
				}
			}
			if n := len(s.cluster.Servers()); n != len(names) {
				return fmt.Sprintf("%d servers, want %d", n, len(names))
			}
		}
		return ""
	})
	return list
}

// follower is a proxy that follows a service, and may be made to hang.
type follower struct {
	*subscribe.Client
	name string
	gate chan struct{} // receives while it does not hang
	hang atomic.Bool
}

func follow(t *testing.T, s *testServer, service, host string) *follower {
	t.Helper()
	f := &follower{name: service + ".default/", gate: make(chan struct{})}
	c, err := subscribe.Open(t.Context(), subscribe.Config{Server: s.controlAddr(), Token: s.JoinToken(), ServiceAccount: service})
	if err != nil {
		t.Fatal(err)
	}
	f.Client = c
	c.OnChange(func(*weft.Snapshot) {
		if f.hang.Load() {
			<-f.gate
		}
	})
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if c.Need(ctx, host).Hosts[host] == nil {
		t.Fatalf("%s was not told of %s", service, host)
	}
	return f
}

func registered(t *testing.T, s *testServer, service string, ids ...string) {
	t.Helper()
	for i, id := range ids {
		in := weft.Instance{ID: id, Service: weft.NewServiceName("", service), Address: "127.0.0.1", Port: 7000 + i}
		if _, err := s.registry.Register(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
}

// prefixes cuts the ids off names of proxies.
func prefixes(names []string) (out []string) {
	for _, n := range names {
		n, _, _ = strings.Cut(n, "/")
		out = append(out, n)
	}
	return out
}

// A drain is waited for by the proxies of all servers, and receipts tell of them
// wherever they are asked for.
func TestProxiesOfAllServersAcknowledge(t *testing.T) {
	servers := startCluster(t, "a", "b", "c")
	a, b, c := servers[0], servers[1], servers[2]
	registered(t, a, "web", "web-1", "web-2", "web-3")
	web := weft.NewServiceName("", "web")
	for i, s := range servers {
		controltest.Eventually(t, func() string {
			if list, _ := s.registry.Instances(web); len(list) != 3 {
				return fmt.Sprintf("server %d has %d instances", i, len(list))
			}
			return ""
		})
	}
	follow(t, a, "one", "web")
	follow(t, b, "two", "web")
	three := follow(t, c, "three", "web")

	d, err := a.api.DrainInstance(t.Context(), "", "web-1", client.DrainOptions{Deadline: weft.Duration(5 * time.Second)})
	if err != nil || len(d.Waiting) > 0 || !slices.Equal(prefixes(d.Acked), []string{"one.default", "three.default", "two.default"}) {
		t.Fatalf("drained: %+v, %v", d, err)
	}

	three.hang.Store(true)
	d, err = b.api.DrainInstance(t.Context(), "a", "web-2", client.DrainOptions{Deadline: weft.Duration(time.Second)})
	if err != nil || !slices.Equal(prefixes(d.Waiting), []string{"three.default"}) || len(d.Acked) != 2 {
		t.Errorf("drained while a proxy hangs: %+v, %v", d, err)
	}
	r, err := a.api.Receipts(t.Context(), web)
	if err != nil || len(r.Servers) != 3 || len(r.Proxies) != 3 || len(r.Changes) != 1 || r.Changes[0].Instance != "web-2" {
		t.Fatalf("receipts: %+v, %v", r, err)
	}
	first := r.Proxies[0]
	if first.Proxy != "three.default" || first.Has || !first.Connected || first.Server != "c" || first.Acked >= r.Index ||
		first.Why != "it has not acknowledged the change" || r.At.Sub(first.Since) < 500*time.Millisecond {
		t.Errorf("of the proxy that hangs: %+v", first)
	}
	for _, p := range r.Proxies[1:] {
		if !p.Has || p.Acked < r.Index {
			t.Errorf("of one that does not: %+v", p)
		}
	}
	three.hang.Store(false)
	close(three.gate)
	controltest.Eventually(t, func() string {
		if r, err := b.api.Receipts(t.Context(), web); err != nil || !r.Proxies[0].Has {
			return fmt.Sprintf("receipts when it hangs no more: %+v, %v", r, err)
		}
		return ""
	})

	c.stop()
	if err := a.api.EndDrain(t.Context(), "a", "web-1"); err != nil {
		t.Fatal(err)
	}
	d, err = a.api.DrainInstance(t.Context(), "", "web-1", client.DrainOptions{Deadline: weft.Duration(time.Second)})
	if err != nil || !slices.Contains(d.Waiting, "server c") {
		t.Errorf("drained while a server is away: %+v, %v", d, err)
	}
	r, err = b.api.Receipts(t.Context(), web)
	if err != nil || !slices.ContainsFunc(r.Servers, func(s client.ServerReceipt) bool { return s.Server == "c" && s.Error != "" }) {
		t.Errorf("receipts while a server is away: %+v, %v", r.Servers, err)
	}
}

// caller is a sidecar whose application calls a service through it, all the time.
func caller(t *testing.T, s *testServer, name, upstream string) {
	t.Helper()
	c := DefaultSidecar
	c.Drain, c.Port = time.Second, 1 // it has no application of its own
	c.Control, c.Token, c.Service, c.Upstreams, c.Logger = s.controlAddr(), s.JoinToken(), name, []string{upstream}, NewLogger(io.Discard, 0)
	sidecar, err := NewSidecar(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := sidecar.Run(ctx)
		done <- err
	}()
	through := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: sidecar.outbound.Addr().String()})}
	calls := make(chan struct{})
	go func() {
		defer close(calls)
		web := &http.Client{Transport: through, Timeout: 2 * time.Second}
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if resp, err := web.Get("http://" + upstream + "/"); err == nil {
				_ = resp.Body.Close()
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-calls
		through.CloseIdleConnections()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// What a Consul client registered without checks, and nobody reaches, leaves every
// view by the word of those who call it, and comes back when it is reached.
func TestCallersDemoteWhatNobodyReaches(t *testing.T) {
	s := startMember(t, ServerConfig{Node: "a"})
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {})}
	alive, err := net.Listen("tcp", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	go app.Serve(alive)
	defer app.Close()
	dead := freePort(t)
	for id, addr := range map[string]string{"web-1": alive.Addr().String(), "web-2": dead} {
		_, port, _ := net.SplitHostPort(addr)
		body := fmt.Sprintf(`{"ID": %q, "Name": "web", "Address": "127.0.0.1", "Port": %s}`, id, port)
		r, _ := http.NewRequest(http.MethodPut, "http://"+s.doors.consul.Addr().String()+"/v1/agent/service/register", strings.NewReader(body))
		resp, err := http.DefaultClient.Do(r)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		_ = resp.Body.Close()
	}
	defer http.DefaultClient.CloseIdleConnections()
	for _, name := range []string{"one", "two", "three"} {
		caller(t, s, name, "web")
	}
	web := weft.NewServiceName("", "web")
	reason := func() string {
		in, _ := s.registry.Instance(weft.InstanceKey{Node: "a", ID: "web-2"})
		for _, c := range in.Checks {
			if c.Status == weft.Critical {
				return c.Output
			}
		}
		return ""
	}
	controltest.Eventually(t, func() string {
		if list, _ := s.registry.Endpoints(web); len(list) != 1 || list[0].ID != "a/web-1" {
			return fmt.Sprintf("endpoints: %+v", list)
		}
		return ""
	})
	if got := reason(); !strings.Contains(got, "callers cannot reach it") || !strings.Contains(got, "connect") || !strings.Contains(got, ".default/") {
		t.Errorf("the reason is %q", got)
	}
	ln, err := net.Listen("tcp", dead)
	if err != nil {
		t.Fatal(err)
	}
	go app.Serve(ln)
	controltest.Eventually(t, func() string {
		if list, _ := s.registry.Endpoints(web); len(list) != 2 {
			return fmt.Sprintf("it is reached again; endpoints: %+v, reason %s", list, reason())
		}
		return ""
	})
}
