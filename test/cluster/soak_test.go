package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/test/world"
)

const (
	clients = 8
	// epoch is how long registers are in use. Writes of unknown outcome stay open
	// for ever, and make the search for an order long.
	epoch     = 10 * time.Second
	keys      = 4 // in an epoch
	instances = 4
	// think is what a client waits between two calls.
	think = 10 * time.Millisecond
)

// settings are in the environment.
func settings(t *testing.T) (length time.Duration, seed uint64) {
	t.Helper()
	text := os.Getenv("CLUSTER_SOAK")
	if text == "" {
		t.Skip("it takes minutes: make soak, or CLUSTER_SOAK=duration")
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	seed = rand.Uint64()
	if text := os.Getenv("CLUSTER_SOAK_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return length, seed
}

// soak is three servers, clients, and what befalls them.
type soak struct {
	*cluster
	history *history
	dir     string // for what is left of a failure

	mu     sync.Mutex
	starts map[*server]int // how often each was started
	wrong  []string
	counts map[string]int
}

func TestSoak(t *testing.T) {
	length, seed := settings(t)
	t.Logf("CLUSTER_SOAK=%s CLUSTER_SOAK_SEED=%d", length, seed)
	net, err := tryNetwork(t)
	if err != nil {
		t.Logf("no network namespaces, and so no cuts: %v", err)
		net = nil
	}
	dir, err := os.MkdirTemp("", "weft-cluster-")
	if err != nil {
		t.Fatal(err)
	}
	s := &soak{cluster: newCluster(t, net, 3), history: newHistory(), dir: dir, starts: map[*server]int{}, counts: map[string]int{}}
	ctx, stop := context.WithTimeout(t.Context(), length)
	defer stop()
	var work sync.WaitGroup
	for i := range clients {
		work.Go(func() { s.client(ctx, i, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	s.weather(ctx, rand.New(rand.NewPCG(seed, clients)))
	stop()
	work.Wait()
	s.last()
	s.history.judge(t, dir)
	t.Log(s.counts)
	for i, text := range s.wrong {
		if i < 20 {
			t.Error(text)
		}
	}
	if !t.Failed() {
		_ = os.RemoveAll(dir)
	}
}

func (s *soak) complain(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
}

func (s *soak) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

// weather lets one server suffer at a time, and all recover in between.
func (s *soak) weather(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		one := s.servers[r.IntN(len(s.servers))]
		faults := []func(){
			func() { s.kill(one, r) },
			func() { s.count("stop"); one.proc.Pause(); rest(ctx, 200, 4000, r); one.proc.Resume() },
		}
		if s.net != nil {
			faults = append(faults, func() { s.count("cut"); one.place.cut(s.t); rest(ctx, 200, 5000, r); one.place.heal(s.t) })
		}
		faults[r.IntN(len(faults))]()
		s.recovers()
		rest(ctx, 0, 1500, r)
	}
}

// rest waits for some milliseconds.
func rest(ctx context.Context, least, most int, r *rand.Rand) {
	select {
	case <-time.After(time.Duration(least+r.IntN(most-least)) * time.Millisecond):
	case <-ctx.Done():
	}
}

func (s *soak) kill(one *server, r *rand.Rand) {
	s.count("kill")
	one.proc.Kill()
	rest(context.Background(), 0, 3000, r)
	s.mu.Lock()
	s.starts[one]++
	s.mu.Unlock()
	one.start()
}

// recovers waits until every server takes writes again.
func (s *soak) recovers() {
	began := time.Now()
	for _, one := range s.servers {
		world.Eventually(s.t, 20*time.Second, "writes through "+one.name, func() error {
			_, err := one.put(within(callTimeout), "recovered/"+one.name, "x", "")
			return err
		})
	}
	if took := time.Since(began); took > 10*time.Second {
		s.complain("all servers took writes only %s after a fault", took)
	}
}

// start of a server's process that is running.
func (s *soak) start(one *server) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.starts[one]
}

// client does one thing after the other, through any server.
func (s *soak) client(ctx context.Context, id int, r *rand.Rand) {
	c := &soakClient{soak: s, id: id, r: r, seen: map[string]seen{}, newest: map[string]uint64{}}
	for ctx.Err() == nil {
		c.step()
		<-time.After(think)
	}
}

// soakClient is of one goroutine.
type soakClient struct {
	*soak
	id     int
	n      int // of its writes
	r      *rand.Rand
	seen   map[string]seen   // the newest it read of a key
	newest map[string]uint64 // index of stale reads, by server, start and query
}

// seen is what a key was.
type seen struct {
	value string
	index uint64
}

func (c *soakClient) step() {
	at := c.servers[c.r.IntN(len(c.servers))]
	e := int(time.Since(c.history.began) / epoch)
	key := fmt.Sprintf("soak/%d/k%d", e, c.r.IntN(keys))
	id := fmt.Sprintf("i%d", c.r.IntN(instances))
	switch n := c.r.IntN(100); {
	case n < 20:
		c.read(at, key)
	case n < 35:
		c.write(at, key)
	case n < 55:
		c.swap(at, key)
	case n < 60:
		c.remove(at, key)
	case n < 70:
		c.register(at, e, id)
	case n < 78:
		c.deregister(at, e, id)
	case n < 90:
		c.list(at, e)
	case n < 95:
		c.staleRead(at, key)
	default:
		c.staleList(at, e)
	}
}

// value is one that nobody else writes.
func (c *soakClient) value() string {
	c.n++
	return fmt.Sprintf("%d.%d", c.id, c.n)
}

// wrote records a write. One that reached nobody did not happen.
func (c *soakClient) wrote(called int64, o operation, done bool, err error) {
	switch {
	case errors.Is(err, errRefused):
		c.count("refused")
		return
	case err != nil:
		c.count("unknown " + string(o.kind))
	default:
		c.count(string(o.kind))
	}
	c.history.record(c.id, called, o, outcome{known: err == nil, done: done})
}

func (c *soakClient) read(at *server, key string) {
	called := c.history.now()
	p, _, err := at.get(within(callTimeout), key, consistent)
	if err != nil {
		c.count("failed get")
		return
	}
	var now seen
	if p != nil {
		now = seen{string(p.Value), p.ModifyIndex}
	}
	c.seen[key] = now
	c.count("get")
	c.history.record(c.id, called, operation{register: key, kind: get}, outcome{known: true, value: now.value})
}

func (c *soakClient) write(at *server, key string) {
	called, value := c.history.now(), c.value()
	done, err := at.put(within(callTimeout), key, value, "")
	if err == nil && !done {
		c.complain("%s refused a put", at.name)
	}
	c.wrote(called, operation{register: key, kind: put, value: value}, done, err)
}

func (c *soakClient) swap(at *server, key string) {
	was, value := c.seen[key], c.value()
	called := c.history.now()
	done, err := at.put(within(callTimeout), key, value, "cas="+strconv.FormatUint(was.index, 10))
	c.wrote(called, operation{register: key, kind: cas, value: value, expected: was.value}, done, err)
}

func (c *soakClient) remove(at *server, key string) {
	called := c.history.now()
	_, err := at.consulCall(within(callTimeout), "DELETE", "kv/"+key, nil)
	c.wrote(called, operation{register: key, kind: del}, true, err)
}

func service(e int) string { return "soak-" + strconv.Itoa(e) }

func (c *soakClient) register(at *server, e int, id string) {
	called, value := c.history.now(), c.value()
	_, err := at.consulCall(within(callTimeout), "PUT", "catalog/register", map[string]any{
		"Node": "elsewhere", "Address": "192.0.2.1", "SkipNodeUpdate": true,
		"Service": map[string]any{"ID": service(e) + "-" + id, "Service": service(e), "Port": 80, "Meta": map[string]string{"value": value}},
	})
	c.wrote(called, operation{register: service(e) + "-" + id, kind: put, value: value}, true, err)
}

func (c *soakClient) deregister(at *server, e int, id string) {
	called := c.history.now()
	_, err := at.consulCall(within(callTimeout), "PUT", "catalog/deregister", map[string]any{"Node": "elsewhere", "ServiceID": service(e) + "-" + id})
	c.wrote(called, operation{register: service(e) + "-" + id, kind: del}, true, err)
}

// list reads the service, which is a read of every instance that it could have.
func (c *soakClient) list(at *server, e int) {
	called := c.history.now()
	list, _, err := at.instances(within(callTimeout), service(e), consistent)
	if err != nil {
		c.count("failed list")
		return
	}
	c.count("list")
	have := map[string]string{}
	for _, in := range list {
		have[in.Service.ID] = in.Service.Meta["value"]
	}
	for i := range instances {
		id := fmt.Sprintf("%s-i%d", service(e), i)
		c.history.record(c.id, called, operation{register: id, kind: get}, outcome{known: true, value: have[id]})
	}
}

func (c *soakClient) staleRead(at *server, key string) {
	before := c.start(at)
	_, index, err := at.get(within(callTimeout), key, stale)
	c.forward(at, before, key, index, err)
}

func (c *soakClient) staleList(at *server, e int) {
	before := c.start(at)
	_, index, err := at.instances(within(callTimeout), service(e), stale)
	c.forward(at, before, service(e), index, err)
}

// forward: what a server tells never goes back while it runs.
func (c *soakClient) forward(at *server, start int, what string, index uint64, err error) {
	if err != nil {
		c.count("failed stale read")
		return
	}
	c.count("stale read")
	if c.start(at) != start {
		return // it was started meanwhile
	}
	k := fmt.Sprint(at.name, " ", start, " ", what)
	if index < c.newest[k] {
		c.complain("%s went back from index %d to %d for %s", at.name, c.newest[k], index, what)
	}
	c.newest[k] = index
}

// last reads everything once more, from every server.
func (s *soak) last() {
	s.settled()
	c := &soakClient{soak: s, id: clients, seen: map[string]seen{}}
	for e := range int(time.Since(s.history.began)/epoch) + 1 {
		for _, at := range s.servers {
			for i := range keys {
				c.read(at, fmt.Sprintf("soak/%d/k%d", e, i))
			}
			c.list(at, e)
		}
	}
	for _, one := range s.servers {
		log := one.proc.Log()
		if i := slices.IndexFunc([]string{"panic", "DATA RACE"}, func(bad string) bool { return strings.Contains(log, bad) }); i >= 0 {
			s.complain("%s: its log has a panic or a race", one.name)
		}
	}
}
