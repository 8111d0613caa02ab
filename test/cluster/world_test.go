package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft/test/world"
)

func TestMain(m *testing.M) { world.Main(m) }

// cluster is some servers of one mesh, and the directory with their data.
type cluster struct {
	t       *testing.T
	dir     string
	net     *network // nil: all are on loopback
	servers []*server
}

// server is one of a cluster. Its doors keep their ports over restarts.
type server struct {
	c                          *cluster
	name, data                 string
	place                      *place // nil: loopback
	peer, control, api, consul string
	proc                       *world.Process
	http                       *caller
	joins                      []string // flags of its first start
}

var ready = regexp.MustCompile(`(?m)^(\{.*"msg":"ready".*\})$`)

// newCluster starts n servers, one after the other, and waits until all vote.
func newCluster(t *testing.T, net *network, n int) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), net: net}
	for range n {
		c.grow()
	}
	return c
}

// grow starts one more server, which joins through the last one, and waits until it
// votes.
func (c *cluster) grow() *server {
	c.t.Helper()
	s := c.add("server-" + strconv.Itoa(len(c.servers)+1))
	if len(c.servers) > 1 {
		s.join(c.servers[len(c.servers)-2])
	}
	s.start()
	c.settled()
	return s
}

// add makes a server that is not started.
func (c *cluster) add(name string) *server {
	s := &server{c: c, name: name, data: filepath.Join(c.dir, name)}
	host := "127.0.0.1"
	if c.net != nil {
		s.place = c.net.add(c.t)
		host = s.place.address
	}
	for _, door := range []struct {
		at   *string
		host string
	}{{&s.peer, host}, {&s.control, host}, {&s.api, "127.0.0.1"}, {&s.consul, "127.0.0.1"}} {
		*door.at = net.JoinHostPort(door.host, strconv.Itoa(world.FreePort(c.t)))
	}
	s.http = newCaller(s)
	c.servers = append(c.servers, s)
	return s
}

func (s *server) join(other *server) {
	s.joins = []string{"--join", other.control, "--server-token-file", filepath.Join(other.data, "server-token")}
}

// program is how to run weft where the server is.
func (s *server) program(args ...string) (string, []string) {
	if s.place == nil {
		return world.Binary, args
	}
	return "ip", append([]string{"netns", "exec", s.place.name, world.Binary}, args...)
}

func (s *server) flags() []string {
	f := []string{"server", "--data", s.data, "--node", s.name, "--peer", s.peer, "--control", s.control, "--api", s.api, "--consul", s.consul}
	for _, door := range []string{"dns", "eureka", "otlp-http", "otlp-grpc"} {
		f = append(f, "--"+door, "127.0.0.1:0")
	}
	return append(f, s.joins...)
}

// launch starts the process and waits for nothing.
func (s *server) launch() {
	s.c.t.Helper()
	program, args := s.program(s.flags()...)
	s.proc = world.Start(s.c.t, s.name, program, args...)
	proc := s.proc
	s.c.t.Cleanup(proc.Resume) // a stopped process does not end
}

// start starts the process and waits until it serves.
func (s *server) start() {
	s.c.t.Helper()
	s.launch()
	s.proc.Printed(ready)
}

// run runs a command of weft where the server is, and returns what it printed.
func (s *server) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 45*time.Second)
	defer cancel()
	program, args := s.program(args...)
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	return string(out), err
}

// member is what weft says of a server.
type member struct {
	Name            string
	Leader, Learner bool
}

// members are the cluster's servers as this one knows them.
func (s *server) members(ctx context.Context) (list []member, err error) {
	a, err := s.http.call(ctx, "GET", "http://"+s.api+"/api/servers", nil)
	if err == nil {
		err = json.Unmarshal(a.body, &list)
	}
	return list, err
}

// settled waits until every running server knows the same voters and one leader.
func (c *cluster) settled() {
	c.t.Helper()
	c.settledWithin(20 * time.Second)
}

func (c *cluster) settledWithin(patience time.Duration) {
	c.t.Helper()
	var want []string
	for _, s := range c.servers {
		want = append(want, s.name)
	}
	slices.Sort(want)
	world.Eventually(c.t, patience, "every server to vote and to know one leader", func() error {
		leaders := map[string]bool{}
		for _, s := range c.servers {
			if !s.proc.Alive() {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			list, err := s.members(ctx)
			cancel()
			if err != nil {
				return err
			}
			var names []string
			for _, m := range list {
				names = append(names, m.Name)
				if m.Learner {
					return fmt.Errorf("%s says that %s is learning", s.name, m.Name)
				}
				if m.Leader {
					leaders[m.Name] = true
				}
			}
			if !slices.Equal(names, want) {
				return fmt.Errorf("%s knows %v, not %v", s.name, names, want)
			}
		}
		if len(leaders) != 1 {
			return fmt.Errorf("leaders: %v", leaders)
		}
		return nil
	})
}

// leader waits for the servers to know one, and returns it and the others.
func (c *cluster) leader() (leader *server, others []*server) {
	c.t.Helper()
	c.settled()
	for _, s := range c.servers {
		list, err := s.members(c.t.Context())
		if err != nil {
			continue
		}
		for _, m := range list {
			if m.Leader {
				return c.split(m.Name)
			}
		}
	}
	c.t.Fatal("no server leads")
	return nil, nil
}

func (c *cluster) split(name string) (one *server, others []*server) {
	for _, s := range c.servers {
		if s.name == name {
			one = s
		} else {
			others = append(others, s)
		}
	}
	return one, others
}

// network is a bridge in a namespace of its own, to which the servers' namespaces
// are joined. The machine's own network is left as it is.
type network struct {
	hub    string
	places []*place
}

// place is a namespace with one server.
type place struct {
	net           *network
	name, address string
	port          string // at the hub
}

var networks atomic.Int32 // made by this process

// newNetwork makes one, or skips the test where that is not permitted.
func newNetwork(t *testing.T) *network {
	t.Helper()
	n, err := tryNetwork(t)
	if err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	return n
}

func tryNetwork(t *testing.T) (*network, error) {
	n := &network{hub: fmt.Sprintf("weft-%d-%d", pid, networks.Add(1))}
	if err := ip("netns", "add", n.hub); err != nil {
		return nil, err
	}
	t.Cleanup(func() { remove(t, n.hub) })
	return n, errors.Join(ip("-n", n.hub, "link", "set", "lo", "up"),
		ip("-n", n.hub, "link", "add", "br0", "type", "bridge"), ip("-n", n.hub, "link", "set", "br0", "up"))
}

// remove waits a little: the namespace's process may be about to end.
func remove(t *testing.T, namespace string) {
	if err := ip("netns", "del", namespace); err != nil {
		t.Error(err)
	}
}

// add makes a namespace on the bridge.
func (n *network) add(t *testing.T) *place {
	t.Helper()
	i := len(n.places) + 1
	p := &place{net: n, name: fmt.Sprintf("%s-%d", n.hub, i), address: fmt.Sprintf("10.77.0.%d", i), port: fmt.Sprintf("to%d", i)}
	n.places = append(n.places, p)
	if err := ip("netns", "add", p.name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, p.name) })
	for _, args := range [][]string{
		{"-n", n.hub, "link", "add", p.port, "type", "veth", "peer", "name", "eth0", "netns", p.name},
		{"-n", n.hub, "link", "set", p.port, "up", "master", "br0"},
		{"-n", p.name, "link", "set", "lo", "up"},
		{"-n", p.name, "link", "set", "eth0", "up"},
		{"-n", p.name, "addr", "add", p.address + "/24", "dev", "eth0"},
	} {
		if err := ip(args...); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// cut takes the place off the bridge: packets vanish, and no socket is told.
func (p *place) cut(t *testing.T) {
	t.Helper()
	if err := ip("-n", p.net.hub, "link", "set", p.port, "nomaster"); err != nil {
		t.Fatal(err)
	}
}

// heal ends a cut.
func (p *place) heal(t *testing.T) {
	t.Helper()
	if err := ip("-n", p.net.hub, "link", "set", p.port, "master", "br0"); err != nil {
		t.Fatal(err)
	}
}

func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
