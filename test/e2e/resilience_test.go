package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/resilience"
)

// behaviour of all instances of inventory-service for some calls.
type behaviour string

const (
	well behaviour = ""
	ill  behaviour = "?status=500" // not among what is tried again
	late behaviour = "?delay=4s"   // the policy's timeout is 2 s
)

// step is some calls, and what the client gets each time.
type step struct {
	behaviour behaviour
	calls     int
	reason    string // x-weft-reason; "" when the answer is inventory's
	wait      bool   // until the circuit lets the first one through
}

// inventoryTrace opens the circuit by half of ten calls, one of them slow; fails the
// first probes, and passes the second ones.
var inventoryTrace = []step{
	{behaviour: well, calls: 5},
	{behaviour: ill, calls: 4, reason: "upstream_error"},
	{behaviour: late, calls: 1, reason: "timeout"},
	{behaviour: well, calls: 3, reason: "circuit_open"},
	{behaviour: ill, calls: 2, reason: "upstream_error", wait: true},
	{behaviour: well, calls: 1},
	{behaviour: well, calls: 2, reason: "circuit_open"},
	{behaviour: well, calls: 2, wait: true},
	{behaviour: ill, calls: 1, reason: "upstream_error"},
	{behaviour: well, calls: 3},
}

// transition is what a circuit tells of a change, without its time.
type transition struct{ from, to, reason string }

var inventoryTransitions = []transition{
	{"closed", "open", "failure rate 50.0 % of 10 calls reached 50 %"},
	{"open", "half-open", "the wait of 1s is over"},
	{"half-open", "open", "failure rate 66.7 % of 3 probes reached 50 %"},
	{"open", "half-open", "the wait of 1s is over"},
	{"half-open", "closed", "failure rate 33.3 % and slow-call rate 0.0 % of 3 probes"},
}

// The policy of the acceptance file, for a client that knows nothing of it, and the
// same in Go: one trace of outcomes, the same transitions.
func TestInventoryPolicy(t *testing.T) {
	d := startDemo(t)
	plain := filepath.Join(acceptance, "resilience-inventory.yaml")
	d.must("apply", "-f", plain)
	first, second := d.ready(t, "order-service-v1-1"), d.ready(t, "order-service-v2-3")
	d.awaitPolicy(t, first.id, "resilience-inventory.yaml")

	t.Run("the file as it stands", func(t *testing.T) {
		curl := first.curl(t)
		d.walk(t, curl, []step{{behaviour: well, calls: 5}, {behaviour: ill, calls: 5, reason: "upstream_error"}, {behaviour: well, calls: 3, reason: "circuit_open"}})
		mustHappen(t, func() []transition { return d.transitions(first.id) }, inventoryTransitions[:1])
	})

	// The wait of 30 s is too long for a test.
	text, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	hasty := strings.Replace(string(text), "waitDurationInOpenState: 30s", "waitDurationInOpenState: 1s", 1)
	file := filepath.Join(t.TempDir(), "hasty.yaml")
	if err := os.WriteFile(file, []byte(hasty), 0o600); err != nil || hasty == string(text) {
		t.Fatal("the file's wait cannot be replaced: ", err)
	}
	d.must("apply", "-f", file)
	d.awaitPolicy(t, second.id, "hasty.yaml")

	t.Run("a plain client through a sidecar", func(t *testing.T) {
		d.walk(t, second.curl(t), inventoryTrace)
		mustHappen(t, func() []transition { return d.transitions(second.id) }, inventoryTransitions)
	})
	t.Run("resilience in Go", func(t *testing.T) {
		seen := make(chan transition, 2*len(inventoryTransitions))
		policy, err := resilience.NewWith("inventory", specOf(t, hasty), resilience.Config{OnEvent: func(e resilience.Event) {
			seen <- transition{e.From.String(), e.To.String(), e.Reason}
		}})
		if err != nil {
			t.Fatal(err)
		}
		web := &http.Client{Transport: &resilience.Transport{Policy: policy}}
		instance := d.instances(t, "inventory-service")[0].Address
		d.walk(t, caller(t, web, "http://"+instance), inventoryTrace)
		close(seen)
		mustHappen(t, func() (all []transition) {
			for e := range seen {
				all = append(all, e)
			}
			return all
		}, inventoryTransitions)
	})
	t.Run("client in Go", func(t *testing.T) {
		log := &lines{}
		c, err := client.New(t.Context(), client.At(d.api), client.Log(slog.New(slog.NewJSONHandler(log, nil))))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		d.walk(t, caller(t, c.HTTPClient(), "http://inventory-service"), inventoryTrace)
		mustHappen(t, func() []transition { return logged(t, log) }, inventoryTransitions)
	})
	t.Run("the first circuit still waits for its 30 s", func(t *testing.T) {
		mustHappen(t, func() []transition { return d.transitions(first.id) }, inventoryTransitions[:1])
		out := d.must("status", "--breakers", "--service", "inventory-service")
		row := regexp.MustCompile(`inventory-service\.default +open .* 10 +50 % +0 % .*` + first.id)
		if !row.MatchString(out) {
			t.Errorf("weft status --breakers:\n%s", out)
		}
	})
}

// reply is what a caller got.
type reply struct {
	status                    int
	body, contentType, reason string
}

// caller makes calls to inventory-service.
func caller(t *testing.T, web *http.Client, base string) func() reply {
	return func() reply {
		t.Helper()
		resp, err := web.Get(base + "/api/inventory/42")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return reply{resp.StatusCode, strings.TrimSpace(string(body)), resp.Header.Get("Content-Type"), resp.Header.Get("X-Weft-Reason")}
	}
}

// walk goes along a trace and looks at every answer.
func (d *demo) walk(t *testing.T, call func() reply, trace []step) {
	t.Helper()
	for i, s := range trace {
		for _, in := range d.instances(t, "inventory-service") {
			method := "POST"
			if s.behaviour == well {
				method = "DELETE"
			}
			mustTell(t, method, in, string(s.behaviour))
		}
		for n := range s.calls {
			got := call()
			if s.wait && n == 0 {
				eventually(t, 20*time.Second, "a call to be let through", func() error {
					if got.reason != "circuit_open" {
						return nil
					}
					defer func() { got = call() }()
					return fmt.Errorf("got %+v", got)
				})
			}
			want := reply{200, `{"status":"unknown"}`, "application/json", s.reason}
			if s.reason == "" {
				want.body = got.body
			}
			if got != want || s.reason == "" && !strings.Contains(got.body, "warehouse") {
				t.Fatalf("step %d, call %d: got %+v, want %+v", i, n, got, want)
			}
		}
	}
}

// specOf is the spec of a ResiliencePolicy without its targets, as Go code has it.
func specOf(t *testing.T, document string) resilience.Spec {
	t.Helper()
	var resource struct{ Spec map[string]json.RawMessage }
	if err := yaml.Unmarshal([]byte(document), &resource); err != nil {
		t.Fatal(err)
	}
	delete(resource.Spec, "targetRef")
	text, err := json.Marshal(resource.Spec)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := resilience.ParseSpec(text)
	if err != nil {
		t.Fatal(err)
	}
	return *spec
}

// mustHappen waits for transitions, and wants no others.
func mustHappen(t *testing.T, seen func() []transition, want []transition) {
	t.Helper()
	var got []transition
	eventually(t, 10*time.Second, "the circuit's transitions", func() error {
		if got = append(got, seen()...); len(got) >= len(want) {
			return nil
		}
		defer func() { got = nil }()
		return fmt.Errorf("got %q, want %q", got, want)
	})
	if !slices.Equal(got, want) {
		t.Errorf("the circuit went\n%q, want\n%q", got, want)
	}
}

// transitions are what the command line shows of inventory's circuit at a proxy.
func (d *demo) transitions(proxy string) (all []transition) {
	d.t.Helper()
	var events []client.BreakerEvent
	out := d.must("status", "--breakers", "--events", "-o", "json")
	if err := json.Unmarshal([]byte(out), &events); err != nil {
		d.t.Fatalf("%v\n%s", err, out)
	}
	for _, e := range events {
		if e.ProxyID == proxy && e.Target == "inventory-service.default" {
			all = append(all, transition{e.From, e.To, e.Reason})
		}
	}
	return all
}

// logged are the transitions that the SDK tells.
func logged(t *testing.T, log *lines) (all []transition) {
	t.Helper()
	for line := range strings.Lines(log.String()) {
		var e struct{ Msg, From, To, Reason string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.Msg == "circuit" {
			all = append(all, transition{e.From, e.To, e.Reason})
		}
	}
	return all
}

// sidecar of the demo.
type sidecar struct{ id, outbound string }

// ready finds a sidecar by the name of its log, in which it says where it listens.
func (d *demo) ready(t *testing.T, name string) sidecar {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.data, "logs", name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var said struct {
			Msg, Service, Outbound string
			PID                    int
		}
		if json.Unmarshal(line, &said) != nil || said.Msg != "ready" {
			continue
		}
		status, err := d.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range status.Proxies {
			if p.PID == said.PID {
				return sidecar{p.ID, said.Outbound}
			}
		}
	}
	t.Fatalf("no sidecar in %s: %s", name, text)
	return sidecar{}
}

// curl is what `curl -x` through the sidecar does.
func (s sidecar) curl(t *testing.T) func() reply {
	transport := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: s.outbound})}
	t.Cleanup(transport.CloseIdleConnections)
	return caller(t, &http.Client{Transport: transport, Timeout: 10 * time.Second}, "http://inventory-service")
}

// awaitPolicy waits until a proxy runs on inventory's policy from a file.
func (d *demo) awaitPolicy(t *testing.T, proxy, file string) {
	t.Helper()
	query := client.BreakerQuery{Service: weft.NewServiceName("", "inventory-service")}
	eventually(t, 10*time.Second, "the policy of "+file, func() error {
		list, err := d.client.Breakers(t.Context(), query)
		for _, b := range list {
			if b.ProxyID == proxy && strings.Contains(b.Policy, file) {
				return nil
			}
		}
		return fmt.Errorf("%+v %v", list, err)
	})
}
