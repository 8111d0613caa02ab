package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

// state asks for a service's state with the query given.
func (h *house) state(t *testing.T, service, query string) client.State {
	t.Helper()
	var s client.State
	status, body := h.do(t, "GET", "/api/services/"+service+"/watch?"+query, "", nil)
	if status != http.StatusOK {
		t.Fatalf("watch %s?%s: status %d: %s", service, query, status, body)
	}
	unmarshal(t, body, &s)
	return s
}

// after is the query of an asker who knows s.
func after(s client.State, wait time.Duration) string {
	return url.Values{"index": {strconv.FormatUint(s.Index, 10)}, "policy": {s.Policy}, "wait": {wait.String()}}.Encode()
}

func TestAStateHasTheAddressesOfTheProcesses(t *testing.T) {
	h := openHouse(t)
	mesh := func(id, address, mesh string) weft.Instance {
		return weft.Instance{ID: id, Service: named("order-service"), Address: address, Port: 3000, Identity: ordersID, MeshAddr: mesh, Dialect: "weft"}
	}
	h.register(t, weft.Instance{ID: "a-plain", Service: named("order-service"), Address: "10.0.0.2", Port: 3000, Zone: "a", Protocol: weft.HTTP2,
		Labels: map[string]string{"version": "v2"}, Weights: weft.Weights{Passing: 3}})
	h.register(t, mesh("b-here", "127.0.0.1", "127.0.0.1:15006"))
	h.register(t, mesh("c-elsewhere", "127.0.0.1", "10.0.0.3:15006"))
	h.register(t, mesh("d-open", "10.0.0.4", "10.0.0.4:15006"))
	h.register(t, weft.Instance{ID: "e-noport", Service: named("order-service")})
	h.register(t, weft.Instance{ID: "f-ill", Service: named("order-service"), Port: 3000, Checks: static(weft.Critical)})
	got := h.state(t, "order-service", "")
	want := client.State{Namespace: "default", Service: "order-service", Instances: 6, LoadBalancer: weft.LeastRequest, Endpoints: []client.Endpoint{
		{ID: "laptop/a-plain", Address: "10.0.0.2:3000", Version: "v2", Zone: "a", Labels: map[string]string{"version": "v2"}, Protocol: weft.HTTP2, Weight: 3, Plain: true},
		{ID: "laptop/b-here", Address: "127.0.0.1:3000", Weight: 1, Identity: ordersID, Plain: true},
		{ID: "laptop/c-elsewhere", Address: "127.0.0.1:3000", Weight: 1, Identity: ordersID},
		{ID: "laptop/d-open", Address: "10.0.0.4:3000", Weight: 1, Identity: ordersID, Plain: true},
		{ID: "laptop/e-noport", Address: "127.0.0.1:0", Weight: 1},
	}}
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(client.State{}, "Index", "Policy")); d != "" {
		t.Error(d)
	}
	if _, index := h.registry.Instances(weft.NewServiceName("", "order-service")); got.Index != index || got.Policy == "" {
		t.Errorf("index %d, want the registry's %d; policy %q", got.Index, index, got.Policy)
	}
}

func TestAWatchAnswersWhenItsServiceChanges(t *testing.T) {
	h := openHouse(t)
	first := h.state(t, "order-service", "wait=1m") // asked for the first time: at once
	if first.Instances != 0 || first.Endpoints == nil || first.Policy == "" {
		t.Errorf("a service that nobody registered: %+v", first)
	}
	ask := func(known client.State) <-chan client.State {
		answer := make(chan client.State, 1)
		web := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		go func() {
			defer close(answer)
			resp, err := web.Get(h.url + "/api/services/order-service/watch?" + after(known, time.Minute))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			var s client.State
			if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
				t.Error(err)
			}
			answer <- s
		}()
		return answer
	}
	answer := ask(first)
	h.register(t, weft.Instance{ID: "x", Service: named("other-service"), Port: 1}) // concerns nobody
	h.register(t, weft.Instance{ID: "o1", Service: named("order-service"), Port: 3000})
	second := <-answer
	if len(second.Endpoints) != 1 || second.Index <= first.Index {
		t.Errorf("after it came: %+v", second)
	}

	answer = ask(second)
	_, err := h.Apply(t.Context(), []client.File{{Name: "a.yaml", Data: strings.ReplaceAll(roundRobin, "order-service", "cart-service")}}, client.ApplyOptions{})
	check(t, err) // concerns nobody
	_, err = h.Apply(t.Context(), []client.File{{Name: "b.yaml", Data: roundRobin}}, client.ApplyOptions{})
	check(t, err)
	third := <-answer
	if third.LoadBalancer != weft.RoundRobin || third.Index != second.Index || third.Policy == second.Policy {
		t.Errorf("after another policy: %+v", third)
	}

	answer = ask(third)
	_, err = h.registry.Deregister(t.Context(), weft.InstanceKey{Node: "laptop", ID: "o1"})
	check(t, err)
	if last := <-answer; last.Instances != 0 || last.Index <= third.Index {
		t.Errorf("after it went: %+v", last)
	}
}

const roundRobin = `apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: order-service
spec:
  host: order-service
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
`

func TestAWatchWithoutNewsEndsWithItsWait(t *testing.T) {
	h := openHouse(t)
	h.register(t, weft.Instance{ID: "o1", Service: named("order-service"), Port: 3000})
	known := h.state(t, "order-service", "")
	if same := h.state(t, "order-service", after(known, time.Millisecond)); same.Index != known.Index || same.Policy != known.Policy || len(same.Endpoints) != 1 {
		t.Errorf("got %+v, want what it knew", same)
	}
	// An index of another server, which was further: this one tells what it has.
	further := known
	further.Index += 1000
	if got := h.state(t, "order-service", after(further, time.Minute)); got.Index != known.Index {
		t.Errorf("index %d, want %d", got.Index, known.Index)
	}
}

func TestBadWatches(t *testing.T) {
	h := openHouse(t)
	for query, says := range map[string]string{
		"index=soon": "index=soon", "index=-1": "index=-1", "wait=soon": "wait=soon", "wait=-1s": "wait=-1s",
		"index=5": "policy", "indx=5": "indx",
	} {
		if status, body := h.do(t, "GET", "/api/services/a/watch?"+query, "", nil); status != http.StatusBadRequest || !strings.Contains(body, says) {
			t.Errorf("?%s: status %d %s", query, status, body)
		}
	}
}

func TestAnInstanceIsKeptByItsHeartbeats(t *testing.T) {
	h := openHouse(t)
	order := weft.NewServiceName("", "order-service")
	register := `{"service":"order-service","id":"o1","port":3000,"ttl":"1s","labels":{"protocol":"grpc"},"weight":7,"health":"critical","output":"warming up"}`
	status, body := h.do(t, "POST", "/api/instances", register, nil)
	var leased client.Leased
	unmarshal(t, body, &leased)
	if status != 200 || leased.ID != "o1" || leased.TTL != weft.Duration(time.Second) || leased.Index == 0 {
		t.Fatalf("status %d: %s", status, body)
	}
	in, _ := h.registry.Instance(weft.InstanceKey{Node: "laptop", ID: "o1"})
	if in == nil || in.Address != "127.0.0.1" || in.Protocol != weft.GRPC || in.Health() != weft.Critical || in.Dialect != "weft" {
		t.Fatalf("registered %+v", in)
	}
	if s := h.state(t, "order-service", ""); s.Instances != 1 || len(s.Endpoints) != 0 {
		t.Errorf("it gets traffic though it says that it is critical: %+v", s)
	}
	if status, body = h.do(t, "PUT", "/api/instances/o1/heartbeat", `{"health":"passing"}`, nil); status != http.StatusNoContent {
		t.Fatalf("heartbeat: status %d: %s", status, body)
	}
	if list, _ := h.registry.Endpoints(order); len(list) != 1 || list[0].Weight != 7 {
		t.Errorf("endpoints %+v, want the one that is well", list)
	}
	// Without heartbeats the lease lapses.
	eventually(t, func() (string, bool) {
		list, _ := h.registry.Endpoints(order)
		return "an endpoint whose lease lapsed", len(list) == 0
	})
	h.do(t, "PUT", "/api/instances/o1/heartbeat", `{}`, nil)
	if list, _ := h.registry.Endpoints(order); len(list) != 1 {
		t.Errorf("%d endpoints after a late heartbeat, want 1", len(list))
	}
	status, body = h.do(t, "DELETE", "/api/instances/o1", "", nil)
	if in, _ := h.registry.Instance(in.Key()); status != 200 || in != nil {
		t.Errorf("drained: status %d %s, instance %v", status, body, in)
	}
	for _, call := range [][2]string{{"DELETE", "/api/instances/o1"}, {"PUT", "/api/instances/o1/heartbeat"}} {
		if status, body := h.do(t, call[0], call[1], "{}", nil); status != http.StatusNotFound {
			t.Errorf("%s %s of what is gone: status %d %s", call[0], call[1], status, body)
		}
	}
}

func TestBadRegistrations(t *testing.T) {
	h := openHouse(t)
	h.register(t, weft.Instance{ID: "meshed", Service: named("order-service"), Port: 3000, Identity: ordersID, MeshAddr: "127.0.0.1:15006", Dialect: "weft"})
	h.register(t, weft.Instance{ID: "consul's", Service: named("order-service"), Port: 3000, Dialect: "consul"})
	h.register(t, weft.Instance{ID: "mine", Service: named("cart-service"), Port: 3000, Dialect: "weft"})
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		says                     string
	}{
		{"no service", "POST", "", `{"port":1}`, 400, "service"},
		{"no port", "POST", "", `{"service":"a"}`, 400, "port"},
		{"a port that is none", "POST", "", `{"service":"a","port":70000}`, 400, "port"},
		{"a short TTL", "POST", "", `{"service":"a","port":1,"ttl":"999ms"}`, 400, "ttl"},
		{"a long TTL", "POST", "", `{"service":"a","port":1,"ttl":"2h"}`, 400, "ttl"},
		{"an unknown field", "POST", "", `{"service":"a","port":1,"tll":"1s"}`, 400, "tll"},
		{"an unknown protocol", "POST", "", `{"service":"a","port":1,"protocol":"smtp"}`, 400, "protocol"},
		{"an unknown health", "POST", "", `{"service":"a","port":1,"health":"good"}`, 400, "passing"},
		{"an id that a sidecar keeps", "POST", "", `{"service":"order-service","port":1,"id":"meshed"}`, 403, "sidecar"},
		{"an id of another API", "POST", "", `{"service":"order-service","port":1,"id":"consul's"}`, 403, "consul"},
		{"an id of another service", "POST", "", `{"service":"order-service","port":1,"id":"mine"}`, 409, "cart-service"},
		{"a heartbeat for a sidecar", "PUT", "/meshed/heartbeat", `{}`, 403, "sidecar"},
		{"a drain for a sidecar", "DELETE", "/meshed", ``, 403, "sidecar"},
		{"a drain of what Consul's API has", "DELETE", "/consul's", ``, 403, "consul"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, body := h.do(t, tt.method, "/api/instances"+tt.path, tt.body, nil)
			if status != tt.status || !strings.Contains(body, tt.says) {
				t.Errorf("status %d, want %d with %q: %s", status, tt.status, tt.says, body)
			}
		})
	}
}

// The client and the server, with nothing in between.
func TestAClientKeepsAnInstanceAndWatchesIt(t *testing.T) {
	h := openHouse(t)
	c, err := client.New(context.Background(), client.At(h.url))
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	states := make(chan client.State)
	watching, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s, err := range c.Watch(watching, "order-service") {
			if err != nil {
				t.Error(err)
			}
			states <- s
		}
	}()
	if s := <-states; s.Instances != 0 {
		t.Errorf("before it is registered: %+v", s)
	}
	lease, err := c.Register(t.Context(), client.Registration{Service: "order-service", Port: 3000, TTL: weft.Duration(time.Second)})
	check(t, err)
	if s := <-states; len(s.Endpoints) != 1 || s.Endpoints[0].Address != "127.0.0.1:3000" || !s.Endpoints[0].Plain {
		t.Errorf("registered: %+v", s)
	}
	lease.SetHealth(weft.Critical, "disk is full")
	if s := <-states; len(s.Endpoints) != 0 || s.Instances != 1 {
		t.Errorf("unwell: %+v", s)
	}
	lease.SetHealth(weft.Warning, "disk is nearly full")
	if s := <-states; len(s.Endpoints) != 1 {
		t.Errorf("well again: %+v", s)
	}
	// Somebody takes it out; it knows better.
	_, err = h.registry.Deregister(t.Context(), weft.InstanceKey{Node: "laptop", ID: lease.ID()})
	check(t, err)
	if s := <-states; s.Instances != 0 {
		t.Errorf("deregistered: %+v", s)
	}
	if s := <-states; len(s.Endpoints) != 1 {
		t.Errorf("registered again: %+v", s)
	}
	check(t, lease.Drain(t.Context()))
	if s := <-states; s.Instances != 0 {
		t.Errorf("drained: %+v", s)
	}
	check(t, lease.Drain(t.Context()))
	stop()
	<-done
}

func unmarshal(t *testing.T, body string, v any) {
	t.Helper()
	check(t, json.Unmarshal([]byte(body), v))
}
