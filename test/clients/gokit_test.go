package clients

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/go-kit/kit/sd"
	"github.com/go-kit/kit/sd/consul"
	"github.com/go-kit/log"
	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/test/world"
)

// instances are what an instancer of go-kit tells, as its balancers see them.
type instances struct {
	mu   sync.Mutex
	last sd.Event
	seen int // events
}

func (i *instances) follow(events <-chan sd.Event) {
	for e := range events {
		i.mu.Lock()
		i.last, i.seen = e, i.seen+1
		i.mu.Unlock()
	}
}

func (i *instances) are(want ...string) func() error {
	return func() error {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.last.Err != nil || !slices.Equal(i.last.Instances, want) {
			return fmt.Errorf("go-kit has %q (%v), want %q", i.last.Instances, i.last.Err, want)
		}
		return nil
	}
}

func TestGoKit(t *testing.T) {
	s := start(t)
	kit := consul.NewClient(client(t, s.counted))
	logger := log.NewLogfmtLogger(io.Discard)
	instancer := consul.NewInstancer(kit, logger, "cart", []string{"v2", "blue"}, true)
	events := make(chan sd.Event)
	found := &instances{}
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		found.follow(events)
	}()
	instancer.Register(events)
	t.Cleanup(func() {
		instancer.Deregister(events)
		instancer.Stop()
		close(events)
		<-followed
	})
	world.Eventually(t, soon, "nothing", found.are())
	registrar := func(id, address string, tags ...string) *consul.Registrar {
		return consul.NewRegistrar(kit, &api.AgentServiceRegistration{
			ID: id, Name: "cart", Address: address, Port: 7070, Tags: tags,
			Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing},
		}, logger)
	}
	first, second := registrar("cart-1", "10.0.0.1", "v2", "blue"), registrar("cart-2", "10.0.0.2", "v2", "blue")
	first.Register()
	registrar("cart-3", "10.0.0.3", "v2").Register()
	world.Eventually(t, soon, "the first", found.are("10.0.0.1:7070"))
	second.Register()
	world.Eventually(t, soon, "the second", found.are("10.0.0.1:7070", "10.0.0.2:7070"))
	s.idle("/v1/health/service/cart")
	must(t, s.api.Agent().FailTTL("service:cart-1", ""))
	world.Eventually(t, soon, "that the first is ill", found.are("10.0.0.2:7070"))
	second.Deregister()
	world.Eventually(t, soon, "that the second left", found.are())
}
