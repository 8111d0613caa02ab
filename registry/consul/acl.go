package consul

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft"
)

// ACL turns access control on. Without it (nil in Config) everybody may do
// everything, tokens are accepted and not looked at, and the endpoints of access
// control say that it is off.
type ACL struct {
	// DefaultPolicy is "allow" (also when empty) or "deny": what holds where no rule
	// says anything.
	DefaultPolicy string
	// InitialManagement is the secret of a token that may do everything. It is for
	// those who do not want to call acl/bootstrap; that is then refused.
	InitialManagement string
}

// accessControl resolves secrets to permissions.
type accessControl struct {
	byDefault access // constant
	initial   string // constant: a secret

	mu       sync.Mutex
	at       [3]uint64                   // indexes of the token, policy and role trees
	resolved map[[sha256.Size]byte]known // by the secret's hash; true at those indexes
}

// known is what a secret was resolved to.
type known struct {
	permissions *permissions
	expires     time.Time // zero: never
}

// maxResolved bounds the tokens whose permissions are remembered.
const maxResolved = 4 << 10

const (
	anonymousAccessor = "00000000-0000-0000-0000-000000000002"
	anonymousSecret   = "anonymous"
	managementPolicy  = "00000000-0000-0000-0000-000000000001"
	readOnlyPolicy    = "00000000-0000-0000-0000-000000000002"
	bootstrapKey      = "bootstrap"
)

func newAccessControl(c *ACL) *accessControl {
	if c == nil {
		return nil
	}
	ac := &accessControl{byDefault: writable, initial: c.InitialManagement, resolved: make(map[[sha256.Size]byte]known)}
	if c.DefaultPolicy == "deny" {
		ac.byDefault = denied
	}
	return ac
}

// refuse is an answer that is given word for word: clients compare the text.
func refuse(status int, format string, args ...any) error {
	return &plainError{status, fmt.Sprintf(format, args...)}
}

var (
	errACLDisabled = refuse(http.StatusUnauthorized, "ACL support disabled")
	errACLNotFound = refuse(http.StatusForbidden, "ACL not found")
)

// secretOf is the token that a request came with, "" when it has none.
func secretOf(r *http.Request) string {
	if r.URL.RawQuery != "" {
		if s := r.URL.Query().Get("token"); s != "" {
			return s
		}
	}
	if s := r.Header.Get("X-Consul-Token"); s != "" {
		return s
	}
	scheme, s, found := strings.Cut(r.Header.Get("Authorization"), " ")
	if found && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(s)
	}
	return ""
}

// identify finds what the sender of a request may do: nil when access control is
// off.
func (a *api) identify(r *http.Request) (*permissions, error) {
	if a.acl == nil {
		return nil, nil
	}
	return a.resolve(r.Context(), secretOf(r))
}

// resolve returns the permissions of a secret.
func (a *api) resolve(ctx context.Context, secret string) (*permissions, error) {
	if secret == "" {
		secret = anonymousSecret
	}
	hash := sha256.Sum256([]byte(secret))
	at := [3]uint64{a.index(ctx, tokenTree, ""), a.index(ctx, policyTree, ""), a.index(ctx, roleTree, "")}
	now := time.Now()
	if k, ok := a.acl.remembered(hash, at); ok {
		if k.expires.IsZero() || now.Before(k.expires) {
			return k.permissions, nil
		}
		return nil, errACLNotFound
	}
	token, err := a.tokenBySecret(ctx, secret)
	if err != nil {
		return nil, err
	}
	if token == nil || token.expired(now) {
		return nil, a.notFound()
	}
	p, err := a.permissionsOf(token)
	if err != nil {
		return nil, err
	}
	k := known{permissions: p}
	if token.ExpirationTime != nil {
		k.expires = *token.ExpirationTime
	}
	a.acl.remember(hash, at, k)
	return p, nil
}

func (ac *accessControl) remembered(hash [sha256.Size]byte, at [3]uint64) (known, bool) {
	ac.mu.Lock()
	defer ac.mu.Unlock()
	if ac.at != at {
		return known{}, false
	}
	k, ok := ac.resolved[hash]
	return k, ok
}

func (ac *accessControl) remember(hash [sha256.Size]byte, at [3]uint64, k known) {
	ac.mu.Lock()
	defer ac.mu.Unlock()
	if ac.at != at || len(ac.resolved) >= maxResolved {
		ac.at = at
		clear(ac.resolved)
	}
	ac.resolved[hash] = k
}

// notFound is what is said of a secret that nobody knows.
func (a *api) notFound() error {
	if a.acl.initial == "" {
		if marker, _ := a.registry.Key(aclStateTree, bootstrapKey); marker == nil {
			return refuse(http.StatusForbidden,
				"ACL system must be bootstrapped before making any requests that require authorization: ACL not found")
		}
	}
	return errACLNotFound
}

// tokenBySecret returns nil when there is no such token. The initial management
// token and the anonymous one are there even when they are not written yet.
func (a *api) tokenBySecret(ctx context.Context, secret string) (*tokenRecord, error) {
	if secret == anonymousSecret {
		return a.tokenByAccessor(anonymousAccessor), nil
	}
	if ref, _ := find[string](a, secretTree, secretKey(secret)); ref != nil {
		return a.tokenByAccessor(ref.Value), nil
	}
	if a.acl.initial != "" && subtle.ConstantTimeCompare([]byte(secret), []byte(a.acl.initial)) == 1 {
		return a.createInitial(ctx, secret)
	}
	return nil, nil
}

// secretKey is what a secret is found by: its hash, so that the names of keys tell
// no secrets.
func secretKey(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// createInitial writes the token of a configured secret, when it is first used. Of
// several servers that do so at once, one wins.
func (a *api) createInitial(ctx context.Context, secret string) (*tokenRecord, error) {
	t := tokenRecord{
		AccessorID: newUUID(), SecretID: secret, Description: "Initial Management Token",
		Policies: []aclLink{{ID: managementPolicy}}, CreateTime: time.Now().UTC(),
	}
	var c change
	c.put(tokenTree, t.AccessorID, 0, t)
	c.put(secretTree, secretKey(secret), 0, t.AccessorID)
	if _, _, err := a.commit(ctx, &c); err != nil {
		return nil, err
	}
	if ref, _ := find[string](a, secretTree, secretKey(secret)); ref != nil {
		return a.tokenByAccessor(ref.Value), nil
	}
	return nil, nil
}

// permissionsOf joins what a token may do: by its own policies, by its roles, and by
// the identities of both.
func (a *api) permissionsOf(t *tokenRecord) (*permissions, error) {
	policies, services, nodes, templates := slices.Clone(t.Policies), t.ServiceIdentities, t.NodeIdentities, t.TemplatedPolicies
	for _, link := range t.Roles {
		role, _ := find[roleRecord](a, roleTree, link.ID)
		if role == nil {
			continue
		}
		policies = append(policies, role.Value.Policies...)
		services = slices.Concat(services, role.Value.ServiceIdentities)
		nodes = slices.Concat(nodes, role.Value.NodeIdentities)
		templates = slices.Concat(templates, role.Value.TemplatedPolicies)
	}
	var all []rules
	management := false
	for _, link := range policies {
		p := a.policyByID(link.ID)
		if p == nil || !a.here(p.Datacenters) {
			continue
		}
		if p.ID == managementPolicy {
			management = true
			continue
		}
		r, err := parseRules(p.Rules)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	all = append(all, a.identityRules(services, nodes, templates)...)
	p := newPermissions(t.AccessorID, a.acl.byDefault, all...)
	p.management = management
	return p, nil
}

// here says whether something holds in this datacenter. Named none, it does.
func (a *api) here(datacenters []string) bool {
	return len(datacenters) == 0 || slices.Contains(datacenters, a.registry.Datacenter())
}

// authorize returns the refusal when the sender of a request may not have access to
// a thing of a resource. For a resource without names, name is "".
func (a *api) authorize(q *query, resource, name string, want access) error {
	if q.may(resource, name, want) {
		return nil
	}
	return q.lacks(resource, name, want)
}

// may says whether the sender of a request may have access to a thing.
func (q *query) may(resource, name string, want access) bool {
	return q.acl == nil || q.acl.allows(resource, name, want)
}

func (q *query) lacks(resource, name string, want access) error {
	what := "'" + resource + ":" + want.String() + "'"
	if name != "" {
		what += fmt.Sprintf(" on %q", name)
	}
	if q.acl.accessor == anonymousAccessor {
		return refuse(http.StatusForbidden, "Permission denied: anonymous token lacks permission %s."+
			" The anonymous token is used implicitly when a request does not specify a token.", what)
	}
	return refuse(http.StatusForbidden, "Permission denied: token with AccessorID '%s' lacks permission %s", q.acl.accessor, what)
}

// manages is the way into the endpoints of access control itself.
func (a *api) manages(q *query, want access) error {
	if a.acl == nil {
		return errACLDisabled
	}
	return a.authorize(q, aclResource, "", want)
}

func (a *api) aclEndpoints() endpoints {
	return endpoints{
		"acl/bootstrap":          {put: a.aclBootstrap},
		"acl/replication":        {get: a.aclReplication},
		"acl/token":              {put: a.tokenCreate},
		"acl/token/":             {get: a.tokenRead, put: a.tokenUpdate, delete: a.tokenDelete},
		"acl/token/self":         {get: a.tokenSelf},
		"acl/tokens":             {get: a.tokenList},
		"acl/policy":             {put: a.policyCreate},
		"acl/policy/":            {get: a.policyRead, put: a.policyUpdate, delete: a.policyDelete},
		"acl/policy/name/":       {get: a.policyReadByName},
		"acl/policies":           {get: a.policyList},
		"acl/role":               {put: a.roleCreate},
		"acl/role/":              {get: a.roleRead, put: a.roleUpdate, delete: a.roleDelete},
		"acl/role/name/":         {get: a.roleReadByName},
		"acl/roles":              {get: a.roleList},
		"acl/templated-policies": {get: a.templateList},
		"acl/auth-method":        {put: a.methodWrite},
		"acl/auth-method/":       {get: a.methodRead, put: a.methodWrite, delete: a.methodDelete},
		"acl/auth-methods":       {get: a.methodList},
		"acl/binding-rule":       {put: a.bindingWrite},
		"acl/binding-rule/":      {get: a.bindingRead, put: a.bindingWrite, delete: a.bindingDelete},
		"acl/binding-rules":      {get: a.bindingList},
		"acl/login":              {put: a.login, post: a.login},
		"acl/logout":             {put: a.logout, post: a.logout},
	}
}

// PUT /v1/acl/bootstrap
func (a *api) aclBootstrap(w http.ResponseWriter, q *query) error {
	if a.acl == nil {
		return errACLDisabled
	}
	var body struct{ BootstrapSecret string }
	if err := decodeOptional(w, q, &body); err != nil {
		return err
	}
	if body.BootstrapSecret != "" && !isUUID(body.BootstrapSecret) {
		return refuse(http.StatusBadRequest, "invalid bootstrap secret: want a UUID")
	}
	if a.acl.initial != "" {
		return refuse(http.StatusForbidden, "Permission denied: ACL bootstrap no longer allowed: an initial management token is configured")
	}
	t := tokenRecord{
		AccessorID: newUUID(), SecretID: body.BootstrapSecret, Description: "Bootstrap Token (Global Management)",
		Policies: []aclLink{{ID: managementPolicy}}, CreateTime: time.Now().UTC(),
	}
	if t.SecretID == "" {
		t.SecretID = newUUID()
	}
	var c change
	c.put(aclStateTree, bootstrapKey, 0, t.AccessorID)
	c.put(tokenTree, t.AccessorID, 0, t)
	c.put(secretTree, secretKey(t.SecretID), 0, t.AccessorID)
	done, _, err := a.commit(q.request.Context(), &c)
	if err != nil {
		return err
	}
	if !done {
		marker, index := a.registry.Key(aclStateTree, bootstrapKey)
		if marker == nil {
			return weft.Errorf(weft.Conflict, "bootstrap", "", "another token has this secret")
		}
		return refuse(http.StatusForbidden, "Permission denied: rpc error making call: ACL bootstrap no longer allowed (reset index: %d)", index)
	}
	return a.answerToken(w, q, t.AccessorID)
}

// GET /v1/acl/replication. There is one datacenter, and nothing to replicate from.
func (a *api) aclReplication(w http.ResponseWriter, q *query) error {
	if a.acl == nil {
		return errACLDisabled
	}
	return a.fixed(w, q, map[string]any{
		"Enabled": false, "Running": false, "SourceDatacenter": "", "ReplicationType": "",
		"ReplicatedIndex": 0, "ReplicatedRoleIndex": 0, "ReplicatedTokenIndex": 0,
		"LastSuccess": time.Time{}, "LastError": time.Time{}, "LastErrorMessage": "",
	})
}
