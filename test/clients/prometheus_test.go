package clients

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/consul"
	"github.com/prometheus/prometheus/discovery/eureka"
	"github.com/prometheus/prometheus/discovery/targetgroup"

	"github.com/weftmesh/weft/test/world"
)

// targets are what a discovery of Prometheus has found.
type targets struct {
	mu     sync.Mutex
	groups map[string]*targetgroup.Group // by source
}

// discover runs a discovery until the test ends.
func discover(t *testing.T, config discovery.Config) *targets {
	t.Helper()
	registry := prometheus.NewRegistry()
	refresh := discovery.NewRefreshMetrics(registry)
	must(t, refresh.Register())
	metrics := config.NewDiscovererMetrics(registry, refresh)
	must(t, metrics.Register())
	d, err := config.NewDiscoverer(discovery.DiscovererOptions{Logger: slog.New(slog.DiscardHandler), Metrics: metrics, SetName: "tests"})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	found := make(chan []*targetgroup.Group)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.Run(ctx, found)
	}()
	g := &targets{groups: make(map[string]*targetgroup.Group)}
	go func() {
		for {
			select {
			case list := <-found:
				g.put(list)
			case <-ended:
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return g
}

func (g *targets) put(list []*targetgroup.Group) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, group := range list {
		g.groups[group.Source] = group
	}
}

// has is a check for world.Eventually: the targets are these, and each as `address
// label=value …`.
func (g *targets) has(labels []string, want ...string) func() error {
	return func() error {
		g.mu.Lock()
		defer g.mu.Unlock()
		got := []string{}
		for _, group := range g.groups {
			for _, t := range group.Targets {
				all := group.Labels.Merge(t)
				line := string(all[model.AddressLabel])
				for _, l := range labels {
					line += " " + string(all[model.LabelName(l)])
				}
				got = append(got, line)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("Prometheus has %q, want %q", got, want)
		}
		return nil
	}
}

func TestPrometheusByConsul(t *testing.T) {
	s := start(t)
	s.passes("web", "web-1", "10.0.0.1", 8080, "v1", "scrape")
	s.passes("web", "web-2", "10.0.0.2", 8080, "v1")
	s.passes("other", "other-1", "10.0.0.3", 80)
	config := consul.DefaultSDConfig
	config.Server, config.ServiceTags, config.RefreshInterval = s.counted, []string{"scrape"}, model.Duration(50*time.Millisecond)
	g := discover(t, &config)
	labels := []string{"__meta_consul_service", "__meta_consul_tags", "__meta_consul_service_id", "__meta_consul_health", "__meta_consul_dc", "__meta_consul_service_metadata_version"}
	world.Eventually(t, soon, "the instance with the tag", g.has(labels, "10.0.0.1:8080 web ,v1,scrape, web-1 passing dc1 2"))
	s.idle("/v1/health/service/web", "/v1/catalog/services")

	must(t, s.api.Agent().FailTTL("service:web-1", "ill"))
	world.Eventually(t, soon, "its health", g.has(labels, "10.0.0.1:8080 web ,v1,scrape, web-1 critical dc1 2"))
	s.passes("api", "api-1", "10.0.0.4", 9090, "scrape")
	world.Eventually(t, soon, "a new service", g.has(labels,
		"10.0.0.1:8080 web ,v1,scrape, web-1 critical dc1 2", "10.0.0.4:9090 api ,scrape, api-1 passing dc1 2"))
	s.Deregister("web-1")
	world.Eventually(t, soon, "its end", g.has(labels, "10.0.0.4:9090 api ,scrape, api-1 passing dc1 2"))
	s.Deregister("api-1")
	world.Eventually(t, soon, "the end of the service", g.has(labels))
	if n := s.requests.of("/v1/agent/self"); n != 1 {
		t.Errorf("%d requests of /v1/agent/self, want 1", n)
	}
}

// Filters, node metadata and a list of services are the other ways to choose.
func TestPrometheusChooses(t *testing.T) {
	s := start(t)
	for _, node := range []string{"east", "west"} {
		_, err := s.api.Catalog().Register(&api.CatalogRegistration{
			Node: node, Address: "10.1.0.1", NodeMeta: map[string]string{"region": node},
			Service: &api.AgentService{ID: "db", Service: "db", Port: 5432},
		}, nil)
		must(t, err)
	}
	s.passes("web", "web-1", "10.0.0.1", 8080, "v1")
	labels := []string{"__meta_consul_service", "__meta_consul_node"}
	for name, test := range map[string]struct {
		change func(*consul.SDConfig)
		want   []string
	}{
		"filter":        {func(c *consul.SDConfig) { c.Filter = `ServiceName == "db" and NodeMeta.region == east` }, []string{"10.1.0.1:5432 db east", "10.1.0.1:5432 db west"}},
		"health filter": {func(c *consul.SDConfig) { c.HealthFilter = `Node.Meta.region == "west"` }, []string{"10.1.0.1:5432 db west"}},
		"node metadata": {func(c *consul.SDConfig) { c.NodeMeta = map[string]string{"region": "east"} }, []string{"10.1.0.1:5432 db east"}},
		"services":      {func(c *consul.SDConfig) { c.Services = []string{"db"}; c.AllowStale = false }, []string{"10.1.0.1:5432 db east", "10.1.0.1:5432 db west"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := consul.DefaultSDConfig
			config.Server, config.RefreshInterval = s.counted, model.Duration(50*time.Millisecond)
			test.change(&config)
			g := discover(t, &config)
			world.Eventually(t, soon, "the chosen", g.has(labels, test.want...))
		})
	}
}

func TestPrometheusByEureka(t *testing.T) {
	s := start(t)
	config := eureka.DefaultSDConfig
	config.Server, config.RefreshInterval = "http://"+s.eureka+"/eureka", model.Duration(50*time.Millisecond)
	g := discover(t, &config)
	labels := []string{"__meta_eureka_app_name", "__meta_eureka_app_instance_id", "__meta_eureka_app_instance_status", "__meta_eureka_app_instance_metadata_zone"}
	const instance = `{"instance":{"instanceId":"cart-1","app":"CART","hostName":"cart.example","ipAddr":"10.0.0.7","status":"%s","vipAddress":"cart",
		"port":{"$":7070,"@enabled":"true"},"dataCenterInfo":{"@class":"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo","name":"MyOwn"},"metadata":{"zone":"b"}}}`
	s.asks(http.MethodPost, "http://"+s.eureka+"/eureka/apps/CART", fmt.Sprintf(instance, "UP"), http.StatusNoContent)
	s.passes("web", "web-1", "10.0.0.1", 8080)
	web := "10.0.0.1:8080 WEB " + s.node() + ":web-1 UP "
	world.Eventually(t, soon, "both", g.has(labels, web, "cart.example:7070 CART cart-1 UP b"))
	s.asks(http.MethodPut, "http://"+s.eureka+"/eureka/apps/CART/cart-1/status?value=OUT_OF_SERVICE", "", http.StatusOK)
	world.Eventually(t, soon, "its status", g.has(labels, web, "cart.example:7070 CART cart-1 OUT_OF_SERVICE b"))
	s.asks(http.MethodDelete, "http://"+s.eureka+"/eureka/apps/CART/cart-1", "", http.StatusOK)
	world.Eventually(t, soon, "its end", g.has(labels, web))
}

// node is the name of the server's node.
func (s *server) node() string {
	s.Helper()
	name, err := s.api.Agent().NodeName()
	must(s.T, err)
	return name
}

// asks makes a request that must have this status.
func (s *server) asks(method, url, body string, status int) {
	s.Helper()
	req, err := http.NewRequestWithContext(s.Context(), method, url, strings.NewReader(body))
	must(s.T, err)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	must(s.T, err)
	resp.Body.Close()
	if resp.StatusCode != status {
		s.Fatalf("%s %s: %s", method, url, resp.Status)
	}
}
