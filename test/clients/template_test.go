package clients

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul-template/config"
	"github.com/hashicorp/consul-template/manager"
	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft/test/world"
)

// page is a template as a load balancer's configuration is made from.
const page = `color={{ key "app/color" }}
size={{ keyOrDefault "app/size" "none" }}
{{ range ls "app/ports" }}{{ .Key }}={{ .Value }}
{{ end }}{{ range tree "app/deep" }}{{ .Key }}={{ .Value }}
{{ end }}{{ range service "web" }}server {{ .ID }} {{ .Address }}:{{ .Port }} {{ .Tags }} {{ .ServiceMeta.version }} {{ .Status }}
{{ end }}{{ range service "blue.web|any" }}blue {{ .ID }} {{ .Status }}
{{ end }}{{ range services }}name {{ .Name }}
{{ end }}{{ range nodes }}node {{ .Address }}
{{ end }}{{ range datacenters }}datacenter {{ . }}
{{ end }}{{ range caRoots }}root {{ .Active }}
{{ end }}`

// render runs consul-template until the test ends, and returns the file it writes.
func render(t *testing.T, address, page string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "page")
	c := config.TestConfig(&config.Config{
		Consul:    &config.ConsulConfig{Address: &address},
		Templates: &config.TemplateConfigs{{Contents: &page, Destination: &out}},
	})
	r, err := manager.NewRunner(c, false)
	must(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Start()
	}()
	failed := make(chan error, 1)
	go func() {
		select {
		case err := <-r.ErrCh:
			failed <- err
		case <-ended:
		}
		close(failed)
	}()
	t.Cleanup(func() {
		r.Stop()
		if err := <-failed; err != nil {
			t.Errorf("consul-template: %v", err)
		}
		<-ended
	})
	return out
}

// reads is a check for world.Eventually.
func reads(file, want string) func() error {
	return func() error {
		got, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if string(got) != want {
			return fmt.Errorf("it wrote\n%swant\n%s", got, want)
		}
		return nil
	}
}

func TestConsulTemplate(t *testing.T) {
	s := start(t)
	put := func(key, value string) {
		t.Helper()
		_, err := s.api.KV().Put(&api.KVPair{Key: key, Value: []byte(value)}, nil)
		must(t, err)
	}
	put("app/ports/http", "80")
	put("app/deep/a/b", "c")
	s.passes("web", "web-1", "10.0.0.1", 8080, "blue")
	s.passes("web", "web-2", "10.0.0.2", 8080)
	file := render(t, s.counted, page)
	world.Eventually(t, soon, "everything but one key is asked for", func() error {
		if n := s.requests.of("/v1/kv/app/color"); n < 1 {
			return fmt.Errorf("%d requests of the key", n)
		}
		return nil
	})
	put("app/color", "red") // it renders nothing before each key is there
	lines := []string{
		"color=red", "size=none", "http=80", "a/b=c",
		"server web-1 10.0.0.1:8080 [blue] 2 passing", "server web-2 10.0.0.2:8080 [] 2 passing", "blue web-1 passing",
		"name consul", "name web", "node 127.0.0.1", "datacenter dc1", "root true",
	}
	want := func() func() error { return reads(file, strings.Join(lines, "\n")+"\n") }
	world.Eventually(t, soon, "the page", want())
	put("app/size", "big")
	lines[1] = "size=big"
	world.Eventually(t, soon, "a key that was absent", want())
	must(t, s.api.Agent().FailTTL("service:web-1", ""))
	lines = append(lines[:4], "server web-2 10.0.0.2:8080 [] 2 passing", "blue web-1 critical", "name consul", "name web", "node 127.0.0.1", "datacenter dc1", "root true")
	world.Eventually(t, soon, "an ill instance", want())
	s.Deregister("web-1")
	lines = append(lines[:5], lines[6:]...)
	world.Eventually(t, soon, "the end of an instance", want())
	s.Register("churn", "churn", "10.9.9.9:1")
	lines = append(lines[:5], "name churn", "name consul", "name web", "node 127.0.0.1", "datacenter dc1", "root true")
	world.Eventually(t, soon, "a new service", want())
	s.idle("/v1/kv/", "/v1/health/service/web", "/v1/catalog/services", "/v1/catalog/nodes")
	_, err := s.api.KV().DeleteTree("app/ports", nil)
	must(t, err)
	lines = append(lines[:2], lines[3:]...)
	world.Eventually(t, soon, "the end of a folder", want())
}
