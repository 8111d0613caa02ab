package consul

import (
	"net/http"
)

// agentTokens are the tokens that an agent of Consul's has for requests of its own, by
// the names of now and of before Consul 1.4. The one that is true is taken for requests
// that come without a token. Servers here make no requests that would need the others:
// those are accepted, as who sets up a server by a script sets them all, and forgotten.
var agentTokens = map[string]bool{
	"default": true, "acl_token": true,
	"agent": false, "acl_agent_token": false,
	"agent_recovery": false, "agent_master": false, "acl_agent_master_token": false,
	"replication": false, "acl_replication_token": false,
	"config_file_service_registration": false,
	"dns":                              false,
}

// PUT /v1/agent/token/{which}. The token is of this server only, and until it stops.
func (a *api) agentToken(w http.ResponseWriter, q *query) error {
	if a.acl == nil {
		return errACLDisabled
	}
	isDefault, known := agentTokens[q.argument]
	if !known {
		return refuse(http.StatusNotFound, "Token %q is unknown", q.argument)
	}
	var body struct{ Token string }
	if err := decode(w, q, &body); err != nil {
		return err
	}
	if isDefault {
		a.acl.mu.Lock()
		a.acl.standing = body.Token
		a.acl.mu.Unlock()
	}
	return nil
}

// standIn is the token for requests that come without one; "" for the anonymous one.
func (ac *accessControl) standIn() string {
	ac.mu.Lock()
	defer ac.mu.Unlock()
	return ac.standing
}
