package consul

import (
	"context"
	"net/http"
	"time"

	"github.com/weftmesh/weft"
)

// Server is one of the servers that keep the state together.
type Server struct {
	ID      string // UUID of its node
	Name    string // of its node
	Address string // host:port by which the servers reach each other
	API     string // host:port of its Consul API
	Leader  bool
	Voter   bool
	Healthy bool
	Since   time.Time // it is so healthy; zero when that is not known
}

// Cluster is what the operator's endpoints need of the servers. Its methods are
// called from any goroutine.
type Cluster interface {
	Servers() []Server // all of them, this one too
	// Remove takes a server out for good; MoveLeader gives the lead to a server, or
	// to any other one when id is empty. Ids are those of Server.
	Remove(ctx context.Context, id string) error
	MoveLeader(ctx context.Context, id string) error
}

func (a *api) operatorEndpoints() endpoints {
	return endpoints{
		"operator/raft/configuration":      {get: a.raftConfiguration},
		"operator/raft/peer":               {delete: a.raftRemove},
		"operator/raft/transfer-leader":    {put: a.raftTransfer, post: a.raftTransfer},
		"operator/autopilot/health":        {get: a.autopilotHealth},
		"operator/autopilot/state":         {get: a.autopilotState},
		"operator/autopilot/configuration": {get: a.autopilotConfiguration, put: a.autopilotConfigure},
		"operator/usage":                   {get: a.operatorUsage},
	}
}

// servers are those of the cluster, or this one alone.
func (a *api) servers() []Server {
	if a.cluster != nil {
		return a.cluster.Servers()
	}
	n := a.registry.LocalNode()
	return []Server{{ID: n.ID, Name: n.Name, Address: a.advertised(), API: a.advertised(), Leader: true, Voter: true, Healthy: true, Since: a.started}}
}

// GET /v1/operator/raft/configuration
func (a *api) raftConfiguration(w http.ResponseWriter, q *query) error {
	type server struct {
		ID              string
		Node            string
		Address         string
		Leader          bool
		ProtocolVersion string
		Voter           bool
		LastIndex       uint64
	}
	_, index := a.registry.AllInstances()
	list := []server{}
	for _, s := range a.servers() {
		list = append(list, server{ID: s.ID, Node: s.Name, Address: s.Address, Leader: s.Leader, ProtocolVersion: "3", Voter: s.Voter, LastIndex: index})
	}
	return a.fixed(w, q, map[string]any{"Servers": list, "Index": index})
}

// DELETE /v1/operator/raft/peer?id=|address=
func (a *api) raftRemove(w http.ResponseWriter, q *query) error {
	id, address := q.params.Get("id"), q.params.Get("address")
	if (id == "") == (address == "") {
		return weft.Errorf(weft.Invalid, "remove server", "", "Must specify either ?id with the server's ID or ?address with IP:port of peer to remove")
	}
	for _, s := range a.servers() {
		if s.ID != id && s.Address != address {
			continue
		}
		if a.cluster == nil {
			return weft.Errorf(weft.Invalid, "remove server", s.Name, "it is the only one")
		}
		return a.cluster.Remove(q.request.Context(), s.ID)
	}
	return weft.Errorf(weft.NotFound, "remove server", id+address, "there is no such server")
}

// PUT /v1/operator/raft/transfer-leader?id=
func (a *api) raftTransfer(w http.ResponseWriter, q *query) error {
	if a.cluster == nil {
		return weft.Errorf(weft.Unavailable, "transfer leadership", "", "there is no other server")
	}
	if err := a.cluster.MoveLeader(q.request.Context(), q.params.Get("id")); err != nil {
		return err
	}
	b, err := q.marshal(struct{ Success bool }{true})
	if err == nil {
		writeJSON(w, http.StatusOK, b)
	}
	return err
}

// GET /v1/operator/autopilot/configuration tells what holds, in Consul's words: nobody
// but an operator takes a server out.
func (a *api) autopilotConfiguration(w http.ResponseWriter, q *query) error {
	return a.fixed(w, q, map[string]any{
		"CleanupDeadServers": false, "LastContactThreshold": "0s", "MaxTrailingLogs": 0, "MinQuorum": 0,
		"ServerStabilizationTime": "0s", "RedundancyZoneTag": "", "DisableUpgradeMigration": true, "UpgradeVersionTag": "",
		"CreateIndex": 1, "ModifyIndex": 1,
	})
}

// PUT /v1/operator/autopilot/configuration
func (a *api) autopilotConfigure(http.ResponseWriter, *query) error {
	return notHere("weft has nothing that autopilot's settings would tune: servers are taken out by operator/raft/peer")
}

type serverHealthRecord struct {
	ID          string
	Name        string
	Address     string
	SerfStatus  string
	Version     string
	Leader      bool
	LastContact string
	LastTerm    uint64
	LastIndex   uint64
	Healthy     bool
	Voter       bool
	StableSince time.Time
}

func (a *api) serverHealth(s *Server, index uint64) serverHealthRecord {
	r := serverHealthRecord{
		ID: s.ID, Name: s.Name, Address: s.Address, SerfStatus: "alive", Version: a.version, Leader: s.Leader, LastContact: "0s",
		LastTerm: 1, LastIndex: index, Healthy: s.Healthy, Voter: s.Voter, StableSince: s.Since,
	}
	if !s.Healthy {
		r.SerfStatus = "failed"
	}
	return r
}

// tolerance is how many healthy voters may go before nobody can write.
func tolerance(servers []Server) (healthy bool, n int) {
	voters, well := 0, 0
	healthy = true
	for _, s := range servers {
		healthy = healthy && s.Healthy
		if s.Voter {
			voters++
			if s.Healthy {
				well++
			}
		}
	}
	return healthy, max(well-voters/2-1, 0)
}

// GET /v1/operator/autopilot/health: 429 unless every server is healthy.
func (a *api) autopilotHealth(w http.ResponseWriter, q *query) error {
	servers := a.servers()
	_, index := a.registry.AllInstances()
	healthy, n := tolerance(servers)
	list := []serverHealthRecord{}
	for i := range servers {
		list = append(list, a.serverHealth(&servers[i], index))
	}
	b, err := q.marshal(map[string]any{"Healthy": healthy, "FailureTolerance": n, "Servers": list})
	if err != nil {
		return err
	}
	status := http.StatusOK
	if !healthy {
		status = http.StatusTooManyRequests
	}
	q.setHeaders(w, index)
	writeJSON(w, status, b)
	return nil
}

// GET /v1/operator/autopilot/state
func (a *api) autopilotState(w http.ResponseWriter, q *query) error {
	type server struct {
		serverHealthRecord
		NodeStatus string
		Status     string
		NodeType   string
		Meta       map[string]string
	}
	servers := a.servers()
	_, index := a.registry.AllInstances()
	healthy, n := tolerance(servers)
	byID, leader, voters := map[string]server{}, "", []string{}
	for i := range servers {
		s := &servers[i]
		r := server{serverHealthRecord: a.serverHealth(s, index), Status: "non-voter", NodeType: "voter", Meta: map[string]string{}}
		r.NodeStatus = r.SerfStatus
		if s.Voter {
			r.Status, voters = "voter", append(voters, s.ID)
		}
		if s.Leader {
			r.Status, leader = "leader", s.ID
		}
		byID[s.ID] = r
	}
	return a.fixed(w, q, map[string]any{
		"Healthy": healthy, "FailureTolerance": n, "OptimisticFailureTolerance": n,
		"Servers": byID, "Leader": leader, "Voters": voters,
	})
}

// GET /v1/operator/usage
func (a *api) operatorUsage(w http.ResponseWriter, q *query) error {
	instances, index := a.registry.AllInstances()
	nodes, _ := a.registry.Nodes()
	services := make(map[weft.ServiceName]bool)
	connect := map[string]int{"connect-native": 0, connectProxy: 0, meshGateway: 0, terminatingGateway: 0, ingressGateway: 0, apiGateway: 0}
	billable := 0
	for _, in := range instances {
		services[in.Service] = true
		x := extraOf(in)
		if x.Kind != "" {
			connect[x.Kind]++
		} else if in.Dialect != serverDialect {
			billable++
		}
		if x.Connect != nil && x.Connect.Native {
			connect["connect-native"]++
		}
	}
	usage := map[string]any{
		"Nodes": len(nodes), "Services": len(services), "ServiceInstances": len(instances),
		"ConnectServiceInstances": connect, "BillableServiceInstances": billable,
	}
	b, err := q.marshal(map[string]any{"Usage": map[string]any{a.registry.Datacenter(): usage}})
	if err == nil {
		q.setHeaders(w, index)
		writeJSON(w, http.StatusOK, b)
	}
	return err
}
