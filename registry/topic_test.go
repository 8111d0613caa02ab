package registry_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// waitInBackground returns a channel that receives what Wait returns.
func waitInBackground(t *testing.T, r *registry.Registry, topic registry.Topic, after uint64) <-chan uint64 {
	t.Helper()
	done := make(chan uint64, 1)
	already := r.Waiting(topic)
	go func() { done <- r.Wait(t.Context(), topic, after) }()
	eventually(t, "waiter", func() bool { return r.Waiting(topic) > already })
	return done
}

func receive(t *testing.T, ch <-chan uint64) uint64 {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nobody is woken")
		return 0
	}
}

// TestWhatWakesWhom is the table of who is told of which change.
func TestWhatWakesWhom(t *testing.T) {
	ctx := context.Background()
	topics := map[string]registry.Topic{
		"order": registry.ServiceTopic(service("order")), "user": registry.ServiceTopic(service("user")),
		"ghost": registry.ServiceTopic(service("ghost")), "services": registry.ServicesTopic(),
		"nodes": registry.NodesTopic(), "own": registry.NodeTopic(ownNode), "db-1": registry.NodeTopic("db-1"),
		"instances": registry.InstancesTopic(),
	}
	on := func(node string, in weft.Instance) weft.Instance { in.Node = node; return in }
	tagged := func(in weft.Instance, tag string) weft.Instance { in.Tags = []string{tag}; return in }
	reg := func(in weft.Instance) func(*registry.Registry) error {
		return func(r *registry.Registry) error { _, err := r.Register(ctx, in); return err }
	}
	cases := []struct {
		name  string
		do    func(*registry.Registry) error
		wakes []string
	}{
		{"another instance", reg(instance("order", "o-2")), []string{"order", "own", "instances"}},
		{"a new service", reg(instance("ghost", "g-1")), []string{"ghost", "services", "own", "instances"}},
		{"a new tag", reg(tagged(instance("order", "o-2"), "new")), []string{"order", "services", "own", "instances"}},
		{"an instance elsewhere", reg(on("db-1", instance("order", "o-2"))), []string{"order", "db-1", "instances"}},
		{"an instance changes its service", reg(instance("user", "o-1")), []string{"order", "user", "services", "own", "instances"}},
		{"the same again", reg(withChecks(instance("order", "o-1"), ttlCheck("", weft.Critical))), nil},
		{"a status", func(r *registry.Registry) error {
			return r.Report(ctx, "", "service:o-1", weft.Passing, "")
		}, []string{"order", "own", "instances"}},
		{"the same status", func(r *registry.Registry) error {
			return r.Report(ctx, "", "service:o-1", weft.Critical, "")
		}, nil},
		{"the last instance goes", func(r *registry.Registry) error {
			_, err := r.Deregister(ctx, key("o-1"))
			return err
		}, []string{"order", "services", "own", "instances"}},
		{"a node comes", func(r *registry.Registry) error {
			_, err := r.RegisterNode(ctx, weft.Node{Name: "db-2", Address: "10.0.0.2"})
			return err
		}, []string{"nodes"}},
		{"a node moves", func(r *registry.Registry) error {
			_, err := r.RegisterNode(ctx, weft.Node{Name: "db-1", Address: "10.0.0.2"})
			return err
		}, []string{"nodes", "db-1", "user", "instances"}},
		{"a node's check", func(r *registry.Registry) error {
			return r.SetCheck(ctx, "db-1", "disk", weft.Check{Kind: weft.StaticCheck, Status: weft.Critical})
		}, []string{"db-1", "user", "instances"}},
		{"node maintenance", func(r *registry.Registry) error {
			return r.Maintain(ctx, weft.InstanceKey{Node: "db-1"}, true, "")
		}, []string{"db-1", "user", "instances"}},
		{"a node goes", func(r *registry.Registry) error {
			_, err := r.DeregisterNode(ctx, "db-1")
			return err
		}, []string{"nodes", "db-1", "user", "services", "instances"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := open(t)
			_, err := r.RegisterNode(ctx, weft.Node{Name: "db-1", Address: "10.0.0.1"})
			must(t, err)
			register(t, r, withChecks(instance("order", "o-1"), ttlCheck("", weft.Critical)))
			register(t, r, on("db-1", instance("user", "u-1")))
			before := make(map[string]uint64)
			for name, topic := range topics {
				before[name] = r.Wait(ctx, topic, 0)
			}
			must(t, c.do(r))
			var moved []string
			for name, topic := range topics {
				if after := r.Wait(ctx, topic, 0); after > before[name] {
					moved = append(moved, name)
				} else if after < before[name] {
					t.Errorf("index of %s went from %d to %d", name, before[name], after)
				}
			}
			slices.Sort(moved)
			slices.Sort(c.wakes)
			if !slices.Equal(moved, c.wakes) {
				t.Errorf("moved %v; want %v", moved, c.wakes)
			}
		})
	}
}

func TestWait(t *testing.T) {
	r := open(t)
	topic := registry.ServiceTopic(service("order"))
	fresh := waitInBackground(t, r, topic, 1)
	index := register(t, r, instance("order", "o-1"))
	if got := receive(t, fresh); got != index {
		t.Errorf("a wait for a service to appear returns %d; want %d", got, index)
	}
	if got := r.Wait(t.Context(), topic, 0); got != index {
		t.Errorf("with 0 it returns %d; want %d", got, index)
	}
	if got := r.Wait(t.Context(), topic, index-1); got != index {
		t.Errorf("behind the index it returns %d; want %d", got, index)
	}
	several := []<-chan uint64{waitInBackground(t, r, topic, index), waitInBackground(t, r, topic, index)}
	ahead := waitInBackground(t, r, topic, index+1) // woken by the next change, but it is not enough for it
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if got := r.Wait(ctx, topic, index); got != index {
		t.Errorf("when its time ends it returns %d; want %d", got, index)
	}
	gone, err := r.Deregister(t.Context(), key("o-1"))
	must(t, err)
	for _, ch := range several {
		if got := receive(t, ch); got != gone {
			t.Errorf("woken with %d; want %d", got, gone)
		}
	}
	again := register(t, r, instance("order", "o-1"))
	if got := receive(t, ahead); got != gone && got != again {
		t.Errorf("woken with %d; want more than %d", got, index+1)
	}
	if n := r.Waiting(topic); n != 0 {
		t.Errorf("%d waiters are left in the list", n)
	}
}

// TestChurnWakesNobodyElse: fifty services change a thousand times; who waits for
// others sleeps on.
func TestChurnWakesNobodyElse(t *testing.T) {
	r := open(t)
	wakes := r.CountWakes()
	_, err := r.RegisterNode(t.Context(), weft.Node{Name: "quiet-node", Address: "10.0.0.9"})
	must(t, err)
	quiet := instance("quiet", "q-1")
	quiet.Node = "quiet-node"
	quietIndex := register(t, r, quiet)
	for i := range 50 {
		register(t, r, instance(fmt.Sprintf("busy-%d", i), fmt.Sprintf("b-%d", i)))
	}
	_, servicesIndex := r.Services("")
	_, nodesIndex := r.Nodes()
	sleepers := map[registry.Topic]uint64{
		registry.ServiceTopic(service("quiet")): quietIndex,
		registry.ServiceTopic(service("never")): 1,
		registry.ServicesTopic():                servicesIndex,
		registry.NodesTopic():                   nodesIndex,
		registry.NodeTopic("quiet-node"):        quietIndex,
		registry.NodeTopic("never"):             1,
	}
	woken := make(map[registry.Topic]<-chan uint64)
	for topic, index := range sleepers {
		woken[topic] = waitInBackground(t, r, topic, index)
	}
	busy := registry.ServiceTopic(service("busy-7"))
	busyWoken := waitInBackground(t, r, busy, r.Wait(t.Context(), busy, 0))
	var work sync.WaitGroup
	for i := range 50 {
		work.Go(func() {
			for n := range 20 {
				in := instance(fmt.Sprintf("busy-%d", i), fmt.Sprintf("b-%d", i))
				in.Port = n
				if _, err := r.Register(t.Context(), in); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	receive(t, busyWoken)
	if wakes.Of(busy) == 0 {
		t.Error("the count of wakes does not count")
	}
	for topic := range sleepers {
		if n := wakes.Of(topic); n != 0 {
			t.Errorf("%v was woken %d times by others", topic, n)
		}
		select {
		case index := <-woken[topic]:
			t.Errorf("%v returned %d", topic, index)
		default:
		}
	}
	quiet.Port++
	index := register(t, r, quiet)
	if got := receive(t, woken[registry.ServiceTopic(service("quiet"))]); got != index {
		t.Errorf("its own change wakes it with %d; want %d", got, index)
	}
}

func TestSubscribe(t *testing.T) {
	r := open(t)
	register(t, r, instance("order", "o-1"))
	register(t, r, instance("user", "u-1"))
	register(t, r, instance("gone", "g-1"))
	_, err := r.Deregister(t.Context(), key("g-1"))
	must(t, err)
	type call struct {
		name  weft.ServiceName
		index uint64
	}
	calls := make(chan call, 100)
	cancel := r.Subscribe(func(n weft.ServiceName, index uint64) { calls <- call{n, index} })
	next := func() call {
		t.Helper()
		select {
		case c := <-calls:
			return c
		case <-time.After(10 * time.Second):
			t.Fatal("no call")
			return call{}
		}
	}
	want := func(service weft.ServiceName) {
		t.Helper()
		_, index := r.Instances(service)
		if got := next(); got.name != service || got.index != index {
			t.Errorf("called with %v; want %v at %d", got, service, index)
		}
	}
	want(service("order")) // what is there, in the order of the indexes
	want(service("user"))
	register(t, r, instance("order", "o-2"))
	want(service("order"))
	_, err = r.Deregister(t.Context(), key("u-1"))
	must(t, err)
	want(service("user"))
	cancel()
	register(t, r, instance("order", "o-3"))
	select {
	case c := <-calls:
		t.Errorf("called with %v after cancel", c)
	default:
	}
	cancel() // again does no harm
}

// TestSubscriberIsNotFlooded: what changes while fn runs comes once, and in order.
func TestSubscriberIsNotFlooded(t *testing.T) {
	r := open(t)
	register(t, r, instance("first", "f-1"))
	enter, leave := make(chan weft.ServiceName), make(chan bool)
	var last uint64
	cancel := r.Subscribe(func(n weft.ServiceName, index uint64) {
		if index < last {
			t.Errorf("%s has index %d, after %d", n, index, last)
		}
		last = index
		enter <- n
		<-leave
	})
	if n := <-enter; n.Name != "first" {
		t.Fatalf("first call is for %s", n)
	}
	for i := range 10 {
		in := instance("busy", "b-1")
		in.Port = i
		register(t, r, in)
	}
	register(t, r, instance("last", "l-1"))
	for _, want := range []string{"busy", "last"} {
		leave <- true
		if n := <-enter; n.Name != want {
			t.Errorf("called for %s; want %s", n, want)
		}
	}
	leave <- true
	cancel()
}
