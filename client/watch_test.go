package client_test

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

// world is a weft server and a client of it.
type world struct {
	*server
	client *client.Client
	log    *lines
}

func open(t *testing.T, options ...client.Option) *world {
	t.Helper()
	w := &world{server: newServer(), log: new(lines)}
	options = append([]client.Option{client.At(w.addr()), client.Log(slog.New(slog.NewTextHandler(w.log, nil)))}, options...)
	c, err := client.New(context.Background(), options...)
	check(t, err)
	w.client = c
	t.Cleanup(func() {
		check(t, c.Close())
		w.stop()
	})
	return w
}

// lines is a log that tests read.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), s)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// follow pulls the states of a service one by one.
func follow(t *testing.T, c *client.Client, name string) func() client.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	next, stop := iter.Pull2(c.Watch(ctx, name))
	t.Cleanup(func() { stop(); cancel() })
	return func() client.State {
		t.Helper()
		s, err, ok := next()
		if err != nil || !ok {
			t.Fatalf("the watch of %s ended: %v", name, err)
		}
		return s
	}
}

func addresses(s client.State) string {
	var list []string
	for _, e := range s.Endpoints {
		list = append(list, e.Address)
	}
	return strings.Join(list, " ")
}

// eventually asks until it is so, for at most 10 seconds.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !ask() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after 10 s still not: %s", what)
		}
	}
}

func TestResolve(t *testing.T) {
	w := open(t, client.In("shop"))
	w.set("order-service.shop", "10.0.0.1:80", "10.0.0.2:80")
	w.set("order-service", "10.0.0.3:80")
	w.change("resting-service.shop", func(s *client.State) { s.Instances = 1 })
	for name, want := range map[string]string{
		"order-service":                           "10.0.0.1:80 10.0.0.2:80", // of the client's own namespace
		"Order-Service.shop":                      "10.0.0.1:80 10.0.0.2:80",
		"order-service.default":                   "10.0.0.3:80",
		"order-service.default.svc.cluster.local": "10.0.0.3:80",
		"resting-service":                         "", // there, but not well
	} {
		s, err := w.client.Resolve(t.Context(), name)
		if err != nil || addresses(s) != want || s.Stale {
			t.Errorf("%s: %q, %v; want %q", name, addresses(s), err, want)
		}
	}
	for name, want := range map[string]weft.Kind{"nobody": weft.NotFound, "a.b.c": weft.Invalid, "http://a": weft.Invalid, "": weft.Invalid} {
		if _, err := w.client.Resolve(t.Context(), name); weft.KindOf(err) != want {
			t.Errorf("%q: %v, want kind %d", name, err, want)
		}
	}
}

func TestOneWatchForAll(t *testing.T) {
	w := open(t)
	w.set("order-service", "10.0.0.1:80")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if s, err := w.client.Resolve(t.Context(), "order-service"); err != nil || addresses(s) != "10.0.0.1:80" {
					t.Errorf("%q, %v", addresses(s), err)
				}
			}
		})
	}
	all.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watches > 2 { // the first answer, and the wait for the next
		t.Errorf("the server was asked %d times", w.watches)
	}
}

func TestAWatchSeesAServiceComeChangeAndGo(t *testing.T) {
	w := open(t)
	next := follow(t, w.client, "order-service")
	if s := next(); s.Instances != 0 || s.Stale || s.Service != "order-service" || s.Namespace != "default" {
		t.Errorf("a service that is not there yet: %+v", s)
	}
	w.set("order-service", "10.0.0.1:80")
	before := next()
	if addresses(before) != "10.0.0.1:80" {
		t.Errorf("it came: %+v", before)
	}
	w.set("other-service", "10.0.0.9:80") // wakes nobody
	w.policy("order-service", `{"timeout":"1s"}`)
	if s := next(); s.Policy == before.Policy || string(s.Resilience) != `{"timeout":"1s"}` {
		t.Errorf("another policy: %+v", s)
	}
	w.set("order-service")
	if s := next(); s.Instances != 0 {
		t.Errorf("it went: %+v", s)
	}
}

func TestAWatchOutlivesItsServer(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		w := open(t)
		w.set("order-service", "10.0.0.1:80")
		next := follow(t, w.client, "order-service")
		next()
		w.stop()
		s := next()
		if !s.Stale || s.Err == nil || addresses(s) != "10.0.0.1:80" {
			t.Errorf("the server went: %+v, want its last word, stale", s)
		}
		if s, err := w.client.Resolve(t.Context(), "order-service"); err != nil || !s.Stale || addresses(s) != "10.0.0.1:80" {
			t.Errorf("resolved without a server: %+v, %v", s, err)
		}
		w.restart(fresh)
		want := "10.0.0.1:80"
		if fresh {
			want = ""
		}
		if s := next(); s.Stale || s.Err != nil || addresses(s) != want {
			t.Errorf("the server is back: %+v, want %q", s, want)
		}
		w.set("order-service", "10.0.0.2:80")
		if s := next(); addresses(s) != "10.0.0.2:80" {
			t.Errorf("a change after it came back: %+v", s)
		}
		if w.log.count("does not answer") != 1 || w.log.count("is back") != 1 {
			t.Errorf("the log says %s", w.log.text.String())
		}
	}
}

func TestWithoutAServer(t *testing.T) {
	w := open(t)
	w.stop()
	_, err := w.client.Resolve(t.Context(), "order-service")
	if weft.KindOf(err) != weft.Unavailable || !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), w.addr()) {
		t.Errorf("got %v", err)
	}
	next := follow(t, w.client, "order-service")
	if s := next(); !s.Stale || s.Err == nil || len(s.Endpoints) != 0 {
		t.Errorf("got %+v", s)
	}
	w.restart(false)
	w.set("order-service", "10.0.0.1:80")
	eventually(t, "it is found", func() bool {
		s, err := w.client.Resolve(t.Context(), "order-service")
		return err == nil && addresses(s) == "10.0.0.1:80" && !s.Stale
	})
}

func TestAWatchEndsWithItsContextTheLoopAndTheClient(t *testing.T) {
	w := open(t)
	w.set("order-service", "10.0.0.1:80")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for s, err := range w.client.Watch(ctx, "order-service") {
		check(t, err)
		if addresses(s) != "10.0.0.1:80" {
			t.Errorf("got %+v", s)
		}
		cancel()
	}
	for range w.client.Watch(t.Context(), "order-service") {
		break
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, err := range w.client.Watch(context.Background(), "order-service") {
			if err != nil {
				t.Error(err)
			}
			check(t, w.client.Close())
		}
	}()
	<-ended
	var last error
	for _, err := range w.client.Watch(t.Context(), "order-service") {
		last = err
	}
	if _, err := w.client.Resolve(t.Context(), "other-service"); weft.KindOf(err) != weft.Unavailable {
		t.Errorf("resolved with a closed client: %v", err)
	}
	if last != nil {
		t.Errorf("a service that it knew: %v", last)
	}
	for _, err := range w.client.Watch(t.Context(), "cart-service") {
		last = err
	}
	if weft.KindOf(last) != weft.Unavailable {
		t.Errorf("watched with a closed client: %v", last)
	}
}

func TestALeaseIsKept(t *testing.T) {
	w := open(t)
	next := follow(t, w.client, "order-service")
	next()
	lease, err := w.client.Register(t.Context(), client.Registration{Service: "order-service", Port: 8080,
		Labels: map[string]string{"version": "v2"}, TTL: weft.Duration(time.Second)})
	check(t, err)
	if s := next(); len(s.Endpoints) != 1 || s.Endpoints[0].ID != lease.ID() || !strings.HasPrefix(lease.ID(), "order-service-v2-") {
		t.Errorf("registered %+v as %q", s, lease.ID())
	}
	lease.SetHealth(weft.Warning, "disk is nearly full")
	eventually(t, "it is told at once", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.beats[lease.ID()] == client.Heartbeat{Health: weft.Warning, Output: "disk is nearly full"}
	})
	w.stop()
	if s := next(); !s.Stale {
		t.Errorf("the server went: %+v", s)
	}
	w.restart(true) // on an empty disk
	for s := next(); len(s.Endpoints) != 1; s = next() {
		if s.Stale {
			t.Errorf("the server is back: %+v", s)
		}
	}
	w.mu.Lock()
	if beat := w.beats[lease.ID()]; beat.Health != weft.Warning {
		t.Errorf("registered again as %+v, want what it said last", beat)
	}
	w.mu.Unlock()
	check(t, lease.Drain(t.Context()))
	if s := next(); len(s.Endpoints) != 0 {
		t.Errorf("drained: %+v", s)
	}
}

func TestCloseDrains(t *testing.T) {
	w := open(t)
	for _, port := range []int{1, 2, 3} {
		_, err := w.client.Register(t.Context(), client.Registration{Service: "order-service", Port: port})
		check(t, err)
	}
	w.mu.Lock()
	kept := len(w.beats)
	w.mu.Unlock()
	check(t, w.client.Close())
	w.mu.Lock()
	if kept != 3 || len(w.beats) != 0 {
		t.Errorf("%d registered, %d left by Close", kept, len(w.beats))
	}
	w.mu.Unlock()
	if _, err := w.client.Register(t.Context(), client.Registration{Service: "order-service", Port: 4}); weft.KindOf(err) != weft.Unavailable {
		t.Errorf("registered by a closed client: %v", err)
	}
}

func TestADrainWithoutAServerFails(t *testing.T) {
	w := open(t)
	lease, err := w.client.Register(t.Context(), client.Registration{Service: "order-service", Port: 1})
	check(t, err)
	w.stop()
	if err := lease.Drain(t.Context()); weft.KindOf(err) != weft.Unavailable {
		t.Errorf("drained: %v", err)
	}
	w.restart(false)
}

func TestBesideASidecarTheSidecarRegisters(t *testing.T) {
	t.Setenv("WEFT_SERVICE", "order-service")
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:15001")
	w := open(t)
	lease, err := w.client.Register(t.Context(), client.Registration{Service: "order-service", Port: 1})
	check(t, err)
	lease.SetHealth(weft.Critical, "nobody listens")
	check(t, lease.Drain(t.Context()))
	other, err := w.client.Register(t.Context(), client.Registration{Service: "metrics-service", Port: 2})
	check(t, err)
	if lease.ID() != "" || other.ID() == "" || w.client.Sidecar() != "127.0.0.1:15001" {
		t.Errorf("leases %q and %q beside %q", lease.ID(), other.ID(), w.client.Sidecar())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.beats) != 1 {
		t.Errorf("%d registered, want the other service alone", len(w.beats))
	}
}

func TestASidecarThatCannotBe(t *testing.T) {
	t.Setenv("WEFT_SERVICE", "order-service")
	for _, bad := range []string{"127.0.0.1:15001", "socks5://127.0.0.1:1", "http://[::1"} {
		t.Setenv("HTTP_PROXY", bad)
		if _, err := client.New(t.Context()); weft.KindOf(err) != weft.Invalid || !strings.Contains(err.Error(), bad) {
			t.Errorf("HTTP_PROXY=%s: %v", bad, err)
		}
	}
	t.Setenv("WEFT_SERVICE", "") // then it is somebody else's proxy
	if _, err := client.New(t.Context()); err != nil {
		t.Error(err)
	}
}
