package clients

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/test/world"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // several libraries tell each of their steps
	world.Main(m)
}

// soon is how long a client may take to notice a change. Weft needs milliseconds;
// the rest is for a machine that is busy.
const soon = 5 * time.Second

// server is a running "weft server", with a client that speaks for the test itself.
type server struct {
	*world.World
	*testing.T
	eureka, dns string
	requests    *counter // of the Consul API, through counted
	counted     string   // host and port of a proxy before the Consul API that counts
	api         *api.Client
}

func start(t *testing.T) *server {
	t.Helper()
	w := world.New(t)
	s := &server{World: w, T: t, requests: &counter{by: make(map[string]int)}}
	s.eureka, s.dns = s.door("eureka"), s.door("dns")
	target := &url.URL{Scheme: "http", Host: w.Consul}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	// The end of the test ends what it still asks: the proxy would wait for the answers.
	ctx, cancel := context.WithCancel(context.Background())
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.count(r.URL.Path)
		proxy.ServeHTTP(w, r)
	}))
	front.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	front.Start()
	t.Cleanup(func() {
		cancel()
		front.CloseClientConnections()
		front.Close()
	})
	s.counted = front.Listener.Addr().String()
	s.api = client(t, w.Consul)
	return s
}

// door is an address of the server's ready line.
func (s *server) door(name string) string {
	s.Helper()
	return s.Server.Printed(regexp.MustCompile(`"msg":"ready".*"` + name + `":"([^"]+)"`))[1]
}

func client(t *testing.T, address string) *api.Client {
	t.Helper()
	config := api.DefaultConfig()
	config.Address = address
	c, err := api.NewClient(config)
	must(t, err)
	return c
}

// passes registers an instance whose TTL check passes.
func (s *server) passes(service, id, address string, port int, tags ...string) {
	s.Helper()
	must(s.T, s.api.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: id, Name: service, Address: address, Port: port, Tags: tags, Meta: map[string]string{"version": "2"},
		Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing},
	}))
}

// counter counts requests by their path.
type counter struct {
	mu   sync.Mutex
	by   map[string]int
	last time.Time
}

func (c *counter) count(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by[path]++
	c.last = time.Now()
}

// settled is nil when no request has come for longer than clients pause.
func (c *counter) settled() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if quiet := time.Since(c.last); quiet < 250*time.Millisecond {
		return fmt.Errorf("the last request came %s ago; so far %v", quiet, c.by)
	}
	return nil
}

// of is how many requests there were for paths that begin so.
func (c *counter) of(prefix string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, k := range c.by {
		if strings.HasPrefix(path, prefix) {
			n += k
		}
	}
	return n
}

// idle fails when a client asks again for paths that begin so while only others
// change. Its queries must block first: there is one that has not been answered.
func (s *server) idle(prefixes ...string) {
	s.Helper()
	s.Register("churn", "churn", "10.9.9.9:1")
	world.Eventually(s.T, soon, "queries that block", func() error { return s.requests.settled() })
	before := make(map[string]int)
	for _, p := range prefixes {
		before[p] = s.requests.of(p)
	}
	for i := range 40 {
		s.Register("churn", "churn", "10.9.9.9:1", "round", strconv.Itoa(i))
		time.Sleep(10 * time.Millisecond) //weft:sleep changes come at a rate that a spinning client can follow
	}
	for _, p := range prefixes {
		if n := s.requests.of(p) - before[p]; n > 0 {
			s.Errorf("%d requests of %s while only others changed", n, p)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// program finds a program, or skips the test.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("there is no %s here: %v", name, err)
	}
	return path
}
