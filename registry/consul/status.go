package consul

import "net/http"

func (a *api) statusEndpoints() endpoints {
	return endpoints{
		"status/leader": {get: a.statusLeader},
		"status/peers":  {get: a.statusPeers},
	}
}

// GET /v1/status/leader: empty when there is none.
func (a *api) statusLeader(w http.ResponseWriter, q *query) error {
	leader := ""
	for _, s := range a.servers() {
		if s.Leader {
			leader = s.Address
		}
	}
	return a.fixed(w, q, leader)
}

// GET /v1/status/peers
func (a *api) statusPeers(w http.ResponseWriter, q *query) error {
	peers := []string{}
	for _, s := range a.servers() {
		peers = append(peers, s.Address)
	}
	return a.fixed(w, q, peers)
}
