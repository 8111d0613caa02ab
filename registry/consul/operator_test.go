package consul

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

// threeServers are a cluster of which the third is down.
type threeServers struct {
	removed, leads string
}

func (c *threeServers) Servers() []Server {
	since := time.Unix(1700000000, 0)
	return []Server{
		{ID: "id-1", Name: "server-1", Address: "10.0.0.1:8300", API: "10.0.0.1:8500", Voter: true, Healthy: true, Since: since},
		{ID: "id-2", Name: "server-2", Address: "10.0.0.2:8300", API: "10.0.0.2:8500", Voter: true, Healthy: true, Leader: true, Since: since},
		{ID: "id-3", Name: "server-3", Address: "10.0.0.3:8300", API: "10.0.0.3:8500", Voter: true},
	}
}

func (c *threeServers) Remove(_ context.Context, id string) error { c.removed = id; return nil }

func (c *threeServers) MoveLeader(_ context.Context, id string) error {
	if id == "id-3" {
		return weft.Errorf(weft.Unavailable, "move leader", id, "it is down")
	}
	c.leads = id
	return nil
}

func TestServersOfACluster(t *testing.T) {
	cluster := new(threeServers)
	w := worldWith(t, Config{Cluster: cluster, Version: "1.2.3"})
	w.get("/v1/status/leader").wantJSON(`"10.0.0.2:8300"`)
	w.get("/v1/status/peers").wantJSON(`["10.0.0.1:8300","10.0.0.2:8300","10.0.0.3:8300"]`)
	members := w.get("/v1/agent/members")
	for field, want := range map[string]any{
		"0.Name": "server-1", "0.Addr": "10.0.0.1", "0.Port": 8500.0, "0.Status": 1.0,
		"1.Name": "server-2", "1.Tags.id": "id-2", "2.Name": "server-3", "2.Status": 4.0,
	} {
		if got := members.field(field); got != want {
			t.Errorf("members: %s is %v, want %v", field, got, want)
		}
	}
	if self := w.get("/v1/agent/self"); self.field("Stats.consul.leader") != "false" || self.field("Stats.consul.known_servers") != "3" {
		t.Errorf("self: %s", self.body)
	}
	raft := w.get("/v1/operator/raft/configuration")
	if raft.field("Servers.1.Leader") != true || raft.field("Servers.2.Node") != "server-3" || raft.field("Servers.0.Voter") != true {
		t.Errorf("raft: %s", raft.body)
	}
	health := w.send("GET", "/v1/operator/autopilot/health", "").want(429)
	for field, want := range map[string]any{
		"Healthy": false, "FailureTolerance": 0.0, "Servers.2.Healthy": false, "Servers.2.SerfStatus": "failed", "Servers.0.Version": "1.2.3",
	} {
		if got := health.field(field); got != want {
			t.Errorf("health: %s is %v, want %v", field, got, want)
		}
	}
	state := w.get("/v1/operator/autopilot/state")
	if state.field("Leader") != "id-2" || state.field("Servers.id-2.Status") != "leader" || state.field("Servers.id-3.NodeStatus") != "failed" {
		t.Errorf("state: %s", state.body)
	}
	w.send("DELETE", "/v1/operator/raft/peer?address=10.0.0.3:8300", "").want(200)
	w.put("/v1/operator/raft/transfer-leader?id=id-1", "").wantJSON(`{"Success":true}`)
	if cluster.removed != "id-3" || cluster.leads != "id-1" {
		t.Errorf("removed %q, leads %q", cluster.removed, cluster.leads)
	}
	if a := w.send("PUT", "/v1/operator/raft/transfer-leader?id=id-3", "").want(500); !strings.Contains(a.body, "it is down") {
		t.Errorf("transfer to a server that is down: %s", a.body)
	}
	w.put("/v1/agent/join/10.0.0.2", "")
	w.put("/v1/agent/force-leave/server-3", "")
}

func TestTolerance(t *testing.T) {
	for _, c := range []struct {
		well, ill, learners int
		healthy             bool
		n                   int
	}{
		{1, 0, 0, true, 0}, {2, 0, 0, true, 0}, {3, 0, 0, true, 1}, {2, 1, 0, false, 0}, {1, 2, 0, false, 0},
		{5, 0, 0, true, 2}, {4, 1, 0, false, 1}, {3, 0, 2, true, 1},
	} {
		var servers []Server
		for range c.well {
			servers = append(servers, Server{Voter: true, Healthy: true})
		}
		for range c.ill {
			servers = append(servers, Server{Voter: true})
		}
		for range c.learners {
			servers = append(servers, Server{Healthy: true})
		}
		if healthy, n := tolerance(servers); healthy != c.healthy || n != c.n {
			t.Errorf("%+v: %v %d", c, healthy, n)
		}
	}
}

func TestOperatorAlone(t *testing.T) {
	w := newWorld(t)
	w.get("/v1/operator/autopilot/health")
	usage := w.get("/v1/operator/usage")
	if usage.field("Usage.dc1.Nodes") != 1.0 || usage.field("Usage.dc1.Services") != 0.0 {
		t.Errorf("usage: %s", usage.body)
	}
	for _, c := range []struct {
		method, path string
		status       int
		says         string
	}{
		{"DELETE", "/v1/operator/raft/peer", 400, "Must specify either"},
		{"DELETE", "/v1/operator/raft/peer?id=a&address=b", 400, "Must specify either"},
		{"DELETE", "/v1/operator/raft/peer?address=127.0.0.1:8500", 400, "the only one"},
		{"DELETE", "/v1/operator/raft/peer?id=none", 404, "no such server"},
		{"PUT", "/v1/operator/raft/transfer-leader", 500, "no other server"},
		{"PUT", "/v1/agent/join/10.0.0.9", 501, "servers join by"},
		{"PUT", "/v1/agent/join/", 400, "missing address"},
		{"PUT", "/v1/agent/force-leave/none", 500, "No node found with name 'none'"},
		{"PUT", "/v1/agent/reload", 501, "configuration"},
		{"PUT", "/v1/agent/leave", 501, "stopped by"},
		{"GET", "/v1/agent/monitor", 501, "log"},
	} {
		if a := w.send(c.method, c.path, ""); a.status != c.status || !strings.Contains(a.body, c.says) {
			t.Errorf("%s %s: %d %s, want %d with %q", c.method, c.path, a.status, a.body, c.status, c.says)
		}
	}
}

// Nothing takes servers out by itself, and there are no gateways of Consul's kind: so it
// is told to who asks.
func TestWhatIsNotHereIsTold(t *testing.T) {
	w := newWorld(t)
	if got := w.get("/v1/operator/autopilot/configuration"); got.field("CleanupDeadServers") != false || got.field("ModifyIndex") != 1.0 {
		t.Error(got.body)
	}
	w.get("/v1/health/ingress/web").wantJSON("[]")
	w.get("/v1/catalog/gateway-services/gate?index=1&wait=1ms").wantJSON("[]")
}
