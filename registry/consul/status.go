package consul

import "net/http"

func (a *api) statusEndpoints() endpoints {
	return endpoints{
		"status/leader": {get: a.statusLeader},
		"status/peers":  {get: a.statusPeers},
	}
}

// GET /v1/status/leader
func (a *api) statusLeader(w http.ResponseWriter, q *query) error {
	return a.fixed(w, q, a.advertised())
}

// GET /v1/status/peers
func (a *api) statusPeers(w http.ResponseWriter, q *query) error {
	return a.fixed(w, q, []string{a.advertised()})
}
