package consul

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/api/watch"
)

// Each kind of watch plan tells what is there first, and then the change.
func TestWatchPlans(t *testing.T) {
	for _, c := range []struct {
		name   string
		params map[string]any
		before string
		after  string
		show   func(any) string
	}{
		{"services", map[string]any{"type": "services"}, "1", "2",
			func(v any) string { return fmt.Sprint(len(v.(map[string][]string))) }},
		{"nodes", map[string]any{"type": "nodes", "stale": true}, "1", "2",
			func(v any) string { return fmt.Sprint(len(v.([]*api.Node))) }},
		{"service", map[string]any{"type": "service", "service": "web", "tag": "a"}, "1", "2", func(v any) string {
			return fmt.Sprint(v.([]*api.ServiceEntry)[0].Service.Port)
		}},
		{"service that passes", map[string]any{"type": "service", "service": "web", "passingonly": true}, "0", "1",
			func(v any) string { return fmt.Sprint(len(v.([]*api.ServiceEntry))) }},
		{"checks of a state", map[string]any{"type": "checks", "state": "passing"}, "1", "3",
			func(v any) string { return fmt.Sprint(len(v.([]*api.HealthCheck))) }},
		{"checks of a service", map[string]any{"type": "checks", "service": "web"}, "critical", "passing",
			func(v any) string { return v.([]*api.HealthCheck)[0].Status }},
		{"agent service", map[string]any{"type": "agent_service", "service_id": "web"}, "1", "2",
			func(v any) string { return fmt.Sprint(v.(*api.AgentService).Port) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			client, address := newClient(t)
			register := func(port int, status string) {
				t.Helper()
				must(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{
					Name: "web", Port: port, Tags: []string{"a"}, Check: &api.AgentServiceCheck{TTL: "1h", Status: status},
				}))
			}
			register(1, "critical")
			plan, err := watch.Parse(c.params)
			must(t, err)
			seen := make(chan string, 100)
			plan.HybridHandler = func(_ watch.BlockingParamVal, v any) { seen <- c.show(v) }
			plan.LogOutput = io.Discard //lint:ignore SA1019 its successor needs a logger of another library
			ended := make(chan error, 1)
			go func() { ended <- plan.Run(address) }()
			defer func() {
				plan.Stop()
				must(t, <-ended)
			}()
			if got := receive(t, seen); got != c.before {
				t.Errorf("first %s, want %s", got, c.before)
			}
			_, err = client.Catalog().Register(&api.CatalogRegistration{
				Node: "far", Address: "10.0.0.9", Service: &api.AgentService{Service: "db"},
				Check: &api.AgentCheck{CheckID: "up", Status: api.HealthPassing},
			}, nil)
			must(t, err)
			register(2, "passing")
			for got := ""; got != c.after; {
				got = receive(t, seen)
			}
		})
	}
}

func receive(t *testing.T, from <-chan string) string {
	t.Helper()
	select {
	case got := <-from:
		return got
	case <-time.After(10 * time.Second):
		t.Fatal("the watch tells nothing")
		return ""
	}
}
