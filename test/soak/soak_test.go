package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(appEnv); kind != "" {
		leaveWithParent()
		fmt.Fprintln(os.Stderr, runApp(kind))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Phases of a soak, but for the storms between.
const (
	calmTime  = 5 * time.Second
	stormTime = 12 * time.Second
	// pauseTime has recovery in it, and a time in which all has to be well.
	pauseTime = recovery + 4*time.Second
)

// settings are in the environment.
func settings(t *testing.T) (d time.Duration, seed uint64, race bool) {
	t.Helper()
	text := os.Getenv("SOAK")
	if text == "" {
		t.Skip("it takes minutes: make soak, or SOAK=duration")
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	seed = rand.Uint64()
	if text := os.Getenv("SOAK_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return d, seed, os.Getenv("SOAK_RACE") != ""
}

func TestSoak(t *testing.T) {
	length, seed, race := settings(t)
	dir, err := os.MkdirTemp("", "weft-soak-")
	if err != nil {
		t.Fatal(err)
	}
	led := newLedger(t)
	t.Cleanup(func() { // last of all: every process has ended
		searchLogs(led, dir)
		if t.Failed() {
			t.Logf("SOAK_SEED=%d; logs are in %s", seed, dir)
		} else {
			_ = os.RemoveAll(dir)
		}
	})
	narrate("SOAK=%s SOAK_SEED=%d", length, seed)
	w := newWorld(t, led, dir, race)
	lanes := w.lanes(t)
	awaitAll(t, lanes)
	w.measure()

	var all sync.WaitGroup
	load, stopLoad := context.WithCancel(t.Context())
	defer stopLoad()
	for i, n := range lanes {
		led.drive(load, &all, seed+uint64(i), n.workers, n.lane)
	}
	all.Go(func() { w.changeRoutes(load, seed) })
	c := &chaos{w: w, r: rand.New(rand.NewPCG(seed, 0)), done: map[string]int{}}
	c.weather(t.Context(), led, length)
	stopLoad()
	all.Wait()
	for _, n := range lanes {
		n.close()
	}
	fmt.Fprintln(os.Stderr, c.done)
	led.judge()
	w.awaitSettled()
}

// weather goes through all phases.
func (c *chaos) weather(ctx context.Context, led *ledger, length time.Duration) {
	end := time.Now().Add(length)
	narrate("calm")
	<-time.After(calmTime)
	narrate("upgrades only")
	quiet, cancel := context.WithTimeout(ctx, length/5)
	c.quietly(quiet)
	cancel()
	for time.Now().Add(stormTime).Before(end) {
		narrate("storm")
		storm, cancel := context.WithTimeout(ctx, stormTime)
		c.storm(storm)
		cancel()
		over := time.Now()
		narrate("pause")
		<-time.After(pauseTime)
		led.mustWorkSince(over)
	}
}

// mustWorkSince complains about lanes on which nothing went well since a storm.
func (l *ledger) mustWorkSince(storm time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, a := range l.lanes {
		if a.lastGood.Before(storm) {
			l.complain("%s: nothing went well in %s after a storm", name, time.Since(storm).Round(time.Second))
		}
	}
}

// client is a lane, how many drive it, and its end.
type client struct {
	lane
	workers int
	close   func()
}

// lanes are all kinds of clients.
func (w *world) lanes(t *testing.T) (all []client) {
	t.Helper()
	nothing := func() {}
	add := func(name string, workers int, c *web) *web {
		all = append(all, client{lane{name, c.call}, workers, c.close})
		return c
	}
	byWeb := func(name, address string, http2, keep bool, workers int) *web {
		return add(name, workers, newWeb(address, http2, keep))
	}
	for _, at := range [][2]string{{"gateway", w.edge}, {"sidecar", w.storeDoor}} {
		name, address := at[0], at[1]
		byWeb(name+" HTTP/1 kept", address, false, true, 3)
		byWeb(name+" HTTP/1 new", address, false, false, 2)
		byWeb(name+" HTTP/2", address, true, true, 5)
		all = append(all, client{lane{name + " pipelined", pipeline(address)}, 2, nothing})
		g, err := newRPC(address)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, client{lane{name + " gRPC unary", g.unary}, 3, g.close}, client{lane{name + " gRPC stream", g.stream}, 2, nothing})
	}
	byWeb("broken HTTP/1", w.near.address(), false, true, 2)
	byWeb("broken HTTP/2", w.near.address(), true, true, 3)
	add("gateway TLS HTTP/1", 2, newWebTLS(w.edgeTLS, false, w.roots))
	add("gateway TLS HTTP/2", 3, newWebTLS(w.edgeTLS, true, w.roots))
	forward := byWeb("forward proxy", "store", false, true, 2)
	forward.transport.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: w.forward})
	return append(all,
		client{lane{"gateway WebSocket", socket("ws://"+w.edge, nil)}, 2, nothing},
		client{lane{"gateway TLS WebSocket", socket("wss://"+w.edgeTLS, w.roots)}, 1, nothing},
		client{lane{"sidecar WebSocket", socket("ws://"+w.socketsDoor, nil)}, 2, nothing},
		client{lane{"bytes", raw(direct(w.bytesDoor), false)}, 2, nothing},
		client{lane{"greeter", raw(direct(w.greeterDoor), true)}, 2, nothing},
		client{lane{"CONNECT", raw(connect(w.forward, "bytes:5432"), false)}, 2, nothing},
	)
}

// awaitAll waits until every lane has worked once.
func awaitAll(t *testing.T, lanes []client) {
	t.Helper()
	r := rand.New(rand.NewPCG(0, 0))
	for _, n := range lanes {
		for deadline := time.Now().Add(20 * time.Second); ; {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			err := n.call(ctx, r)
			cancel()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s does not work at all: %v", n.name, err)
			}
			<-time.After(50 * time.Millisecond)
		}
	}
}
