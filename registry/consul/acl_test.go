package consul

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestBootstrap(t *testing.T) {
	w := worldWith(t, Config{ACL: &ACL{DefaultPolicy: "deny"}})
	const before = "ACL system must be bootstrapped before making any requests that require authorization: ACL not found\n"
	if got := w.as("guess", "GET", "/v1/acl/tokens", "").want(403); got.body != before {
		t.Errorf("before: %q", got.body)
	}
	const anonymous = "Permission denied: anonymous token lacks permission 'acl:read'. " +
		"The anonymous token is used implicitly when a request does not specify a token.\n"
	if got := w.as("", "GET", "/v1/acl/tokens", "").want(403); got.body != anonymous {
		t.Errorf("without a token: %q", got.body)
	}
	w.as("", "PUT", "/v1/acl/bootstrap", `{"BootstrapSecret":"short"}`).want(400)
	// A client's old token does not keep it from the first step.
	root := w.as("guess", "PUT", "/v1/acl/bootstrap", `{"BootstrapSecret":"`+rootSecret+`"}`).want(200)
	if root.field("SecretID") != rootSecret || root.field("Policies.0.Name") != "global-management" {
		t.Errorf("%s", root.body)
	}
	if got := w.as("", "PUT", "/v1/acl/bootstrap", "").want(403); !strings.HasPrefix(got.body, "Permission denied: ACL bootstrap no longer allowed (reset index: ") {
		t.Errorf("again: %q", got.body)
	}
	if got := w.as("guess", "GET", "/v1/acl/tokens", "").want(403); got.body != "ACL not found\n" {
		t.Errorf("after: %q", got.body)
	}
	w.as(rootSecret, "PUT", "/v1/kv/a", "").want(200)
}

func TestConfiguredManagementToken(t *testing.T) {
	w := secured(t)
	w.as("", "PUT", "/v1/acl/bootstrap", "").want(403)
	self := w.as(rootSecret, "GET", "/v1/acl/token/self", "").want(200)
	accessor := self.field("AccessorID").(string)
	if self.field("SecretID") != rootSecret {
		t.Errorf("%s", self.body)
	}
	w.as(rootSecret, "PUT", "/v1/acl/token/"+accessor, `{}`).want(400)
	w.as(rootSecret, "DELETE", "/v1/acl/token/"+accessor, "").want(400)
	clone := w.as(rootSecret, "PUT", "/v1/acl/token/"+accessor+"/clone", `{"Description":"mine"}`).want(200)
	w.as(clone.field("SecretID").(string), "GET", "/v1/acl/tokens", "").want(200)
}

func TestWhereTokensAreSent(t *testing.T) {
	w := secured(t)
	for _, header := range [][]string{{"X-Consul-Token", rootSecret}, {"Authorization", "Bearer " + rootSecret}, {"Authorization", "bearer  " + rootSecret}} {
		w.send("GET", "/v1/kv/other", "", header...).want(200)
	}
	w.send("GET", "/v1/kv/other?token="+rootSecret, "").want(200)
	w.send("GET", "/v1/kv/other?token="+rootSecret, "", "X-Consul-Token", "wrong").want(200) // as Consul: the first of them counts
	w.send("GET", "/v1/kv/other", "", "Authorization", "Basic "+rootSecret).want(403)
	w.send("GET", "/v1/status/leader", "", "X-Consul-Token", "wrong").want(200)
	w.send("GET", "/v1/status/leader?index=1&wait=1ms", "", "X-Consul-Token", "wrong").want(200)
}

func TestTokens(t *testing.T) {
	w := secured(t)
	w.as(rootSecret, "PUT", "/v1/acl/policy", `{"Name":"keys","Rules":"key_prefix \"\" { policy = \"write\" }"}`).want(200)
	role := w.as(rootSecret, "PUT", "/v1/acl/role", `{"Name":"writers","Policies":[{"Name":"keys"}]}`).want(200)
	made := w.as(rootSecret, "PUT", "/v1/acl/token", `{"Description":"d","Roles":[{"Name":"writers"}]}`).want(200)
	accessor, secret := made.field("AccessorID").(string), made.field("SecretID").(string)
	w.as(secret, "PUT", "/v1/kv/a", "").want(200)
	if got := w.as(secret, "GET", "/v1/acl/token/self", "").want(200); got.body != made.body {
		t.Errorf("self: %s, want %s", got.body, made.body)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"PUT", "token", `{"AccessorID":"x"}`, 400, "not a valid UUID"},
		{"PUT", "token", `{"SecretID":"00000000-0000-0000-0000-000000000009"}`, 400, "reserved"},
		{"PUT", "token", `{"SecretID":"` + secret + `"}`, 400, "already in use"},
		{"PUT", "token", `{"AccessorID":"` + accessor + `"}`, 400, "already in use"},
		{"PUT", "token", `{"Policies":[{"Name":"none"}]}`, 400, "No such ACL policy"},
		{"PUT", "token", `{"Roles":[{"ID":"none"}]}`, 400, "No such ACL role"},
		{"PUT", "token", `{"ExpirationTTL":"1s"}`, 400, "ExpirationTime cannot be less than 1m0s"},
		{"PUT", "token", `{"ExpirationTTL":"25h"}`, 400, "ExpirationTime cannot be more than 24h0m0s"},
		{"PUT", "token", `{"ServiceIdentities":[{"ServiceName":"a\" { policy = \"write\" }"}]}`, 400, "invalid name"},
		{"PUT", "token", `{"NodeIdentities":[{"NodeName":"n1"}]}`, 400, "missing the datacenter"},
		{"PUT", "token", `{"TemplatedPolicies":[{"TemplateName":"builtin/none"}]}`, 400, "no such ACL templated policy"},
		{"PUT", "token", `{"TemplatedPolicies":[{"TemplateName":"builtin/service"}]}`, 400, "want a name"},
		{"PUT", "token/" + accessor, `{"SecretID":"` + newUUID() + `"}`, 400, "SecretID"},
		{"PUT", "token/" + accessor, `{"AccessorID":"` + newUUID() + `"}`, 400, "do not match"},
		{"PUT", "token/" + accessor, `{"Local":true}`, 400, "toggle local"},
		{"PUT", "token/" + accessor, `{"ExpirationTTL":"1h"}`, 400, "expiration"},
		{"PUT", "token/" + newUUID(), `{}`, 404, "ACL not found"},
		{"GET", "token/" + newUUID(), ``, 404, "token does not exist: ACL not found"},
		{"DELETE", "token/" + anonymousAccessor, ``, 400, "anonymous"},
		{"GET", "tokens?policy=a&role=b", ``, 400, "can only filter by one of"},
		{"PUT", "create", `{}`, 410, "removed"},
		{"POST", "oidc/auth-url", `{}`, 501, "jwt"},
	} {
		if got := w.as(rootSecret, c.method, "/v1/acl/"+c.path, c.body); got.status != c.status || !strings.Contains(got.body, c.says) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, got.status, got.body)
		}
	}
	clone := w.as(rootSecret, "PUT", "/v1/acl/token/"+accessor+"/clone", `{"Description":"copy"}`).want(200)
	w.as(clone.field("SecretID").(string), "PUT", "/v1/kv/a", "").want(200)
	w.as(rootSecret, "PUT", "/v1/acl/token/"+accessor, `{"Description":"less","SecretID":"`+hidden+`"}`).want(200)
	w.as(secret, "PUT", "/v1/kv/a", "").want(403)
	w.as(rootSecret, "DELETE", "/v1/acl/role/"+role.field("ID").(string), "").want(200)
	w.as(clone.field("SecretID").(string), "PUT", "/v1/kv/a", "").want(403)
	w.as(rootSecret, "DELETE", "/v1/acl/token/"+accessor, "").want(200)
	if got := w.as(secret, "GET", "/v1/kv/a", "").want(403); got.body != "ACL not found\n" {
		t.Errorf("deleted: %q", got.body)
	}
}

// The anonymous token is there before it is written, and can be given rights.
func TestAnonymousToken(t *testing.T) {
	w := secured(t)
	w.send("GET", "/v1/kv/other", "").want(403)
	w.as(rootSecret, "PUT", "/v1/acl/policy", `{"Name":"look","Rules":"key \"other\" { policy = \"read\" }"}`).want(200)
	w.as(rootSecret, "PUT", "/v1/acl/token/"+anonymousAccessor, `{"Policies":[{"Name":"look"}]}`).want(200)
	w.send("GET", "/v1/kv/other", "").want(200)
	w.as(rootSecret, "PUT", "/v1/acl/token/"+anonymousAccessor, `{}`).want(200)
	w.send("GET", "/v1/kv/other", "").want(403)
}

func TestIdentities(t *testing.T) {
	w := secured(t)
	for _, c := range []struct {
		grants, method, path, body string
		status                     int
	}{
		{`"ServiceIdentities":[{"ServiceName":"new"}]`, "PUT", "agent/service/register", `{"Name":"new","Port":1,"Connect":{"SidecarService":{}}}`, 200},
		{`"ServiceIdentities":[{"ServiceName":"new"}]`, "PUT", "agent/service/register", `{"Name":"web"}`, 403},
		{`"ServiceIdentities":[{"ServiceName":"new","Datacenters":["dc9"]}]`, "PUT", "agent/service/register", `{"Name":"new"}`, 403},
		{`"NodeIdentities":[{"NodeName":"n9","Datacenter":"dc1"}]`, "PUT", "catalog/register", `{"Node":"n9","Address":"1.1.1.1"}`, 200},
		{`"NodeIdentities":[{"NodeName":"n9","Datacenter":"dc9"}]`, "PUT", "catalog/register", `{"Node":"n9","Address":"1.1.1.2"}`, 403},
		{`"TemplatedPolicies":[{"TemplateName":"builtin/node","TemplateVariables":{"Name":"n9"}}]`, "PUT", "catalog/register", `{"Node":"n9","Address":"1.1.1.3"}`, 200},
		{`"TemplatedPolicies":[{"TemplateName":"builtin/dns"}]`, "GET", "query/find-web/explain", "", 200},
	} {
		secret := w.as(rootSecret, "PUT", "/v1/acl/token", "{"+c.grants+"}").want(200).field("SecretID").(string)
		if got := w.as(secret, c.method, "/v1/"+c.path, c.body); got.status != c.status {
			t.Errorf("%s: %s: %d, want %d: %s", c.grants, c.path, got.status, c.status, got.body)
		}
	}
	preview := w.as(rootSecret, "POST", "/v1/acl/templated-policy/preview/builtin/service", `{"Name":"api"}`).want(200)
	if _, err := parseRules(preview.field("Rules").(string)); err != nil || !strings.Contains(preview.body, "api-sidecar-proxy") {
		t.Errorf("%v: %s", err, preview.body)
	}
	w.as(rootSecret, "GET", "/v1/acl/templated-policy/name/builtin/node", "").want(200)
	w.as(rootSecret, "GET", "/v1/acl/templated-policy/name/none", "").want(404)
}

func TestPolicies(t *testing.T) {
	w := secured(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"PUT", "policy", `{"Name":"bad name"}`, 400, "Only alphanumeric"},
		{"PUT", "policy", `{"Name":"p","Rules":"nonsense {"}`, 400, "read rules"},
		{"PUT", "policy", `{"Name":"p","ID":"x"}`, 400, "Cannot specify the ID"},
		{"PUT", "policy", `{"Name":"global-management"}`, 400, "already exists"},
		{"PUT", "policy/" + managementPolicy, `{"Name":"global-management"}`, 400, "not permitted"},
		{"DELETE", "policy/" + managementPolicy, ``, 400, "not permitted"},
		{"GET", "policy/none", ``, 404, "ACL not found"},
		{"GET", "policy/name/none", ``, 404, "ACL not found"},
		{"PUT", "policy/none", `{"Name":"q"}`, 404, "ACL not found"},
		{"GET", "role/none", ``, 404, "ACL not found"},
		{"PUT", "role", `{"Name":"r","Policies":[{"Name":"none"}]}`, 400, "No such ACL policy"},
	} {
		if got := w.as(rootSecret, c.method, "/v1/acl/"+c.path, c.body); got.status != c.status || !strings.Contains(got.body, c.says) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, got.status, got.body)
		}
	}
	id := w.as(rootSecret, "PUT", "/v1/acl/policy", `{"Name":"p","Rules":"operator = \"read\""}`).want(200).field("ID").(string)
	w.as(rootSecret, "PUT", "/v1/acl/policy", `{"Name":"p"}`).want(400)
	w.as(rootSecret, "PUT", "/v1/acl/policy/"+id, `{"Name":"p2"}`).want(200)
	w.as(rootSecret, "PUT", "/v1/acl/policy", `{"Name":"p"}`).want(200) // its name is free again
	w.as(rootSecret, "DELETE", "/v1/acl/policy/"+id, "").want(200)
	w.as(rootSecret, "GET", "/v1/acl/policy/name/p2", "").want(404)
}

// A store that is stolen, and its snapshots, tell no secret.
func TestSecretsAtRest(t *testing.T) {
	for _, key := range [][]byte{nil, []byte("a key of the servers")} {
		w := worldWith(t, Config{ACL: &ACL{DefaultPolicy: "deny", InitialManagement: rootSecret, SealKey: key}})
		made := w.as(rootSecret, "PUT", "/v1/acl/token", `{}`).want(200)
		secret, accessor := made.field("SecretID").(string), made.field("AccessorID").(string)
		for _, tree := range snapshotTrees {
			entries, _ := w.registry.Keys(tree, "")
			for _, e := range entries {
				for _, s := range []string{secret, rootSecret} {
					if strings.Contains(e.Key, s) || bytes.Contains(e.Value, []byte(s)) {
						t.Errorf("%s/%s has a secret: %s", tree, e.Key, e.Value)
					}
				}
			}
		}
		want := secret
		if key == nil {
			want = hidden
		}
		if got := w.as(rootSecret, "GET", "/v1/acl/token/"+accessor, "").want(200).field("SecretID"); got != want {
			t.Errorf("read again: %q, want %q", got, want)
		}
		// Whoever only reads tokens gets none of them.
		w.as(rootSecret, "PUT", "/v1/acl/policy", `{"Name":"look","Rules":"acl = \"read\""}`).want(200)
		reader := w.as(rootSecret, "PUT", "/v1/acl/token", `{"Policies":[{"Name":"look"}]}`).want(200).field("SecretID").(string)
		for _, path := range []string{"tokens", "token/" + accessor, "token/" + accessor + "?expanded"} {
			if got := w.as(reader, "GET", "/v1/acl/"+path, "").want(200); strings.Contains(got.body, secret) {
				t.Errorf("%s: %s", path, got.body)
			}
		}
	}
}

// A seal is of one token, and of one key.
func TestSeals(t *testing.T) {
	one, other := newAccessControl(&ACL{SealKey: []byte("one")}), newAccessControl(&ACL{SealKey: []byte("other")})
	sealed := one.sealed("secret", "accessor")
	if got := one.unsealed(sealed, "accessor"); got != "secret" {
		t.Errorf("unsealed %q", got)
	}
	for _, got := range []string{one.unsealed(sealed, "another"), other.unsealed(sealed, "accessor"), one.unsealed(sealed[:9], "accessor"), one.unsealed(nil, "accessor")} {
		if got != hidden {
			t.Errorf("unsealed %q", got)
		}
	}
}

func TestExpiredTokens(t *testing.T) {
	w := secured(t)
	a := w.server.Config.Handler.(*Handler).api
	made := w.as(rootSecret, "PUT", "/v1/acl/token", `{"ExpirationTTL":"1h","Policies":[{"Name":"global-management"}]}`).want(200)
	secret, accessor := made.field("SecretID").(string), made.field("AccessorID").(string)
	w.as(secret, "GET", "/v1/kv/other", "").want(200)
	// Time goes by.
	d, _ := find[keptToken](a, tokenTree, accessor)
	past := time.Now().Add(-time.Second)
	d.Value.ExpirationTime = &past
	var c change
	c.putAnyway(tokenTree, accessor, d.Value)
	if _, _, err := a.commit(t.Context(), &c); err != nil {
		t.Fatal(err)
	}
	if got := w.as(secret, "GET", "/v1/kv/other", "").want(403); got.body != "ACL not found\n" {
		t.Errorf("%q", got.body)
	}
	w.as(rootSecret, "GET", "/v1/acl/token/"+accessor, "").want(404)
	if got := w.as(rootSecret, "GET", "/v1/acl/tokens", "").want(200); strings.Contains(got.body, accessor) {
		t.Errorf("listed: %s", got.body)
	}
	a.acl.mu.Lock()
	a.acl.reaped = time.Time{}
	a.acl.mu.Unlock()
	w.as(rootSecret, "PUT", "/v1/acl/token", `{}`).want(200) // clears away
	for tree, key := range map[string]string{tokenTree: accessor, secretTree: secretKey(secret)} {
		if e, _ := w.registry.Key(tree, key); e != nil {
			t.Errorf("%s/%s is still there", tree, key)
		}
	}
}

// What a token may do is made once, and again only when something changes that it was
// made of.
func TestPermissionsAreRemembered(t *testing.T) {
	w := secured(t)
	a := w.server.Config.Handler.(*Handler).api
	secret, _ := w.tokenWith(`key "a" { policy = "read" }`)
	now := func() *permissions {
		p, err := a.resolve(t.Context(), secret)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := now()
	w.tokenWith(`key "b" { policy = "read" }`) // others come and go
	w.as(rootSecret, "PUT", "/v1/kv/other", "").want(200)
	if now() != first {
		t.Error("made again")
	}
	if n := testing.AllocsPerRun(100, func() { now() }); n > 1 { // the copy of the secret that is hashed
		t.Errorf("%v allocations", n)
	}
	d, _ := find[json.RawMessage](a, secretTree, secretKey(secret))
	var accessor string
	if err := json.Unmarshal(d.Value, &accessor); err != nil {
		t.Fatal(err)
	}
	policy := a.tokenByAccessor(accessor).Policies[0].ID
	w.as(rootSecret, "PUT", "/v1/acl/policy/"+policy, `{"Name":"changed","Rules":"key \"a\" { policy = \"write\" }"}`).want(200)
	if p := now(); p == first || !p.allows("key", "a", writable) {
		t.Error("the policy changed, and the permissions did not")
	}
	for range maxResolved + 10 {
		a.acl.remember(credential{secret: [32]byte{byte(len(a.acl.resolved)), byte(len(a.acl.resolved) >> 8), 1}}, &known{})
	}
	if n := len(a.acl.resolved); n > maxResolved {
		t.Errorf("%d tokens are remembered", n)
	}
}

// A policy that is kept and cannot be read any more gives no rights and takes no
// denial away: its tokens do not work.
func TestUnreadablePolicy(t *testing.T) {
	w := secured(t)
	a := w.server.Config.Handler.(*Handler).api
	secret, _ := w.tokenWith(`key "a" { policy = "deny" }`)
	entries, _ := w.registry.Keys(policyTree, "")
	var c change
	for _, e := range entries {
		c.putAnyway(policyTree, e.Key, policyRecord{ID: e.Key, Name: "broken", Rules: "key {"})
	}
	if _, _, err := a.commit(t.Context(), &c); err != nil {
		t.Fatal(err)
	}
	w.as(secret, "GET", "/v1/kv/other", "").want(500)
}

func TestWhatATokenMayDo(t *testing.T) {
	w := secured(t)
	secret, _ := w.tokenWith(`key_prefix "app/" { policy = "read" } operator = "write"`)
	got := w.as(secret, "POST", "/v1/internal/acl/authorize", `[
		{"Resource":"key","Segment":"app/x","Access":"read"}, {"Resource":"key","Segment":"app/x","Access":"write"},
		{"Resource":"operator","Access":"write"}, {"Resource":"acl","Access":"read"}]`).want(200)
	var list []struct{ Allow bool }
	if err := json.Unmarshal([]byte(got.body), &list); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, true, false} {
		if list[i].Allow != want {
			t.Errorf("question %d: %v", i, list[i].Allow)
		}
	}
	w.as(secret, "POST", "/v1/internal/acl/authorize", `[{"Resource":"keys","Access":"read"}]`).want(400)
	w.as(secret, "POST", "/v1/internal/acl/authorize", `[{"Resource":"key","Access":"deny"}]`).want(400)
}

// A restore brings tokens back.
func TestTokensSurviveASnapshot(t *testing.T) {
	w := secured(t)
	secret, accessor := w.tokenWith(`key "other" { policy = "read" }`)
	saved := w.as(rootSecret, "GET", "/v1/snapshot", "").want(200).body
	w.as(rootSecret, "DELETE", "/v1/acl/token/"+accessor, "").want(200)
	w.as(secret, "GET", "/v1/kv/other", "").want(403)
	w.as(rootSecret, "PUT", "/v1/snapshot", saved).want(200)
	w.as(secret, "GET", "/v1/kv/other", "").want(200)
}

// A server's default token is taken for requests that have none, and for no others.
func TestDefaultToken(t *testing.T) {
	w := secured(t)
	secret, _ := w.tokenWith(`key_prefix "" { policy = "write" }`)
	w.as("", "PUT", "/v1/kv/a", "1").want(403)
	w.as(secret, "PUT", "/v1/agent/token/default", `{"Token":"`+secret+`"}`).want(403)
	w.as(rootSecret, "PUT", "/v1/agent/token/lost", `{"Token":"`+secret+`"}`).want(404)
	for _, name := range []string{"agent", "replication", "agent_recovery", "config_file_service_registration", "dns", "acl_agent_token"} {
		w.as(rootSecret, "PUT", "/v1/agent/token/"+name, `{"Token":"`+rootSecret+`"}`).want(200)
	}
	w.as("", "PUT", "/v1/kv/a", "1").want(403)
	w.as(rootSecret, "PUT", "/v1/agent/token/default", `{"Token":"`+secret+`"}`).want(200)
	w.as("", "PUT", "/v1/kv/a", "1").want(200)
	w.as("", "GET", "/v1/acl/tokens", "").want(403)
	if self := w.as("", "GET", "/v1/acl/token/self", "").want(200); self.field("SecretID") != secret {
		t.Errorf("%s", self.body)
	}
	w.as("wrong", "PUT", "/v1/kv/a", "1").want(403)
	w.as(rootSecret, "PUT", "/v1/agent/token/default", `{"Token":""}`).want(200)
	w.as("", "PUT", "/v1/kv/a", "1").want(403)
}

// Who waits for what cannot be here is not sent round in circles.
func TestNothingIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	began := time.Now()
	w.get("/v1/exported-services?index=1&wait=30ms").wantJSON("[]")
	if took := time.Since(began); took < 30*time.Millisecond {
		t.Errorf("answered after %v", took)
	}
}
