package eureka

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/weftmesh/weft"
)

// unreachable is npm when it cannot fetch packages.
var unreachable = regexp.MustCompile(`ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|network`)

// install puts the client, as the lock file has it, into a directory of the test.
func install(t *testing.T) (node, dir string) {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("there is no Node.js here: ", err)
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		t.Skip("there is no npm here: ", err)
	}
	dir = t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "client.js"} {
		b, err := os.ReadFile(name)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name), b, 0o644))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ci := exec.CommandContext(ctx, npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--fetch-retries=1")
	ci.Dir = dir
	out, err := ci.CombinedOutput()
	if err != nil && (ctx.Err() != nil || unreachable.Match(out)) {
		t.Skipf("npm cannot fetch the packages: %v\n%s", err, out)
	}
	if err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	return node, dir
}

// application is a process that uses eureka-js-client.
type application struct {
	*testing.T
	stdin  io.Writer
	events chan event
	seen   map[string]int // how often each event came; of the test's goroutine
}

type event struct {
	Event     string
	Text      string
	Instances []jsInstance
}

type jsInstance struct {
	ID, Host, Enabled, Status, Zone string
	Port                            int
}

// start runs the application with a service path, and its own service "js-service".
func start(w *world, node, dir, servicePath string) *application {
	w.Helper()
	u, err := url.Parse(w.eureka)
	must(w.T, err)
	config, err := json.Marshal(map[string]any{
		"shouldUseDelta": true,
		"eureka": map[string]any{
			"host": u.Hostname(), "port": u.Port(), "servicePath": servicePath,
			"heartbeatInterval": 100, "registryFetchInterval": 100, "maxRetries": 1, "requestRetryDelay": 50,
		},
		"instance": map[string]any{
			"app": "js-service", "hostName": "js-host", "ipAddr": "10.0.0.9", "vipAddress": "js-service",
			"port":           map[string]any{"$": 3000, "@enabled": true},
			"dataCenterInfo": map[string]any{"@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn"},
			"leaseInfo":      map[string]any{"renewalIntervalInSecs": 1, "durationInSecs": 1},
			"metadata":       map[string]any{"zone": "b", "workers": 4},
		},
	})
	must(w.T, err)
	cmd := exec.CommandContext(context.Background(), node, "client.js", string(config))
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	must(w.T, err)
	stdout, err := cmd.StdoutPipe()
	must(w.T, err)
	must(w.T, cmd.Start())
	a := &application{T: w.T, stdin: stdin, events: make(chan event, 1024), seen: make(map[string]int)}
	go func() {
		defer close(a.events)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var e event
			if json.Unmarshal(lines.Bytes(), &e) != nil {
				e = event{Event: "warn", Text: lines.Text()}
			}
			a.events <- e
		}
	}()
	w.Cleanup(func() {
		stdin.Close() // it ends by itself
		for range a.events {
		}
		if err := cmd.Wait(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			w.Errorf("node: %v\n%s", err, stderr.String())
		}
	})
	return a
}

// wait returns the next event of a name.
func (a *application) wait(name string) event {
	a.Helper()
	timeout := time.NewTimer(20 * time.Second)
	defer timeout.Stop()
	for {
		select {
		case e, ok := <-a.events:
			if !ok {
				a.Fatalf("node is gone, and %q did not come; seen: %v", name, a.seen)
			}
			a.seen[e.Event]++
			if e.Event == "warn" {
				a.Log("client: ", e.Text)
			}
			if e.Event == name {
				return e
			}
		case <-timeout.C:
			a.Fatalf("%q did not come in 20 s; seen: %v", name, a.seen)
		}
	}
}

func (a *application) command(line string) {
	a.Helper()
	_, err := fmt.Fprintln(a.stdin, line)
	must(a.T, err)
}

// calls returns what the application would call for a VIP address.
func (a *application) calls(vip string) []jsInstance {
	a.Helper()
	a.command("vip " + vip)
	return a.wait("instances").Instances
}

func TestEurekaJSClient(t *testing.T) {
	node, dir := install(t)
	for _, path := range []string{"/eureka/v2/apps/", "/eureka/apps/"} {
		t.Run(path, func(t *testing.T) {
			w := newWorld(t)
			a := start(w, node, dir, path)
			a.command("start")
			if e := a.wait("started"); e.Text != "" {
				t.Fatal(e.Text)
			}
			w.jsRegisters(a)
			w.jsFollows(a)
			w.jsComesBack(a)
			a.command("stop")
			if e := a.wait("stopped"); e.Text != "" {
				t.Fatal(e.Text)
			}
			if n := len(w.passing("js-service")); n != 0 {
				t.Errorf("%d are left after it deregistered", n)
			}
		})
	}
}

// jsRegisters: it is there for others, and stays as long as it renews its lease.
func (w *world) jsRegisters(a *application) {
	w.Helper()
	list := w.passing("js-service")
	if len(list) != 1 || list[0].Service.Address != "10.0.0.9" || list[0].Service.Port != 3000 || list[0].Service.Meta["workers"] != "4" {
		w.Fatalf("Consul's clients see %+v", list)
	}
	for begin := time.Now(); time.Since(begin) < 2*time.Second; { // twice its lease
		a.wait("heartbeat")
	}
	if a.seen["registered"] != 1 || len(w.passing("js-service")) != 1 {
		w.Errorf("registered %d times, while it renewed its lease", a.seen["registered"])
	}
}

// jsFollows: by deltas it sees what others register, and what becomes of it.
func (w *world) jsFollows(a *application) {
	w.Helper()
	if own := a.calls("js-service"); len(own) != 1 || own[0] != (jsInstance{ID: "js-host", Host: "js-host", Enabled: "true", Status: "UP", Zone: "b", Port: 3000}) {
		w.Errorf("it sees itself as %+v", own)
	}
	must(w.T, w.consul.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: "billing-1", Name: "billing", Address: "10.0.0.2", Port: 9090,
		Check: &api.AgentServiceCheck{TTL: "1h", Status: "passing"},
	}))
	w.eventually("it sees a service of Consul's", func() bool {
		list := a.calls("billing")
		return len(list) == 1 && list[0] == jsInstance{ID: "server-1:billing-1", Host: "10.0.0.2", Enabled: "true", Status: "UP", Port: 9090}
	})
	must(w.T, w.consul.Agent().FailTTL("service:billing-1", ""))
	w.eventually("it sees that the service is ill", func() bool {
		list := a.calls("billing")
		return len(list) == 1 && list[0].Status == "DOWN"
	})
	must(w.T, w.consul.Agent().ServiceDeregister("billing-1"))
	w.eventually("it sees that the service is gone", func() bool { return len(a.calls("billing")) == 0 })
}

// jsComesBack: when the server does not know it any more, it registers again.
func (w *world) jsComesBack(a *application) {
	w.Helper()
	_, err := w.registry.Deregister(w.Context(), weft.InstanceKey{Node: "eureka", ID: "js-host"})
	must(w.T, err)
	for a.seen["registered"] < 2 {
		a.wait("registered")
	}
	if n := len(w.passing("js-service")); n != 1 {
		w.Errorf("%d instances after it registered again", n)
	}
}
