package consul

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// ACL turns access control on. Without it (nil in Config) everybody may do
// everything, tokens are accepted and not looked at, and the endpoints of access
// control say that it is off.
//
// Rights are those of names: a rule for the service "web" holds in each namespace.
type ACL struct {
	// DefaultPolicy is "allow" (also when empty) or "deny": what holds where no rule
	// says anything.
	DefaultPolicy string
	// InitialManagement is the secret of a token that may do everything. It is kept
	// nowhere else: another secret here ends it. With it acl/bootstrap is refused.
	InitialManagement string
	// SealKey seals the secrets of tokens, which managers of tokens may read again, in
	// the store; all servers must have the same. Without it a secret is told once, to
	// who makes the token, and then only its hash is kept.
	SealKey []byte
}

// accessControl resolves secrets to permissions.
type accessControl struct {
	byDefault access      // constant
	initial   []byte      // constant: SHA-256 of a secret; nil when there is none
	seal      cipher.AEAD // constant; nil without a key

	mu       sync.Mutex
	standing string                      // a token for requests that have none
	resolved map[credential]*known       // by the secret's hash
	missed   map[[sha256.Size]byte]*miss // by the secret's hash
	reaped   time.Time                   // when expired tokens were last cleared away
}

// known is what a secret was resolved to. It is immutable, and holds while what it
// was made of is as it was.
type known struct {
	permissions *permissions
	expires     time.Time // zero: never
	made        []source
}

// source is an entry that a resolution looked at; nil when it was not there.
type source struct {
	tree, key string
	entry     *registry.Entry
}

// maxResolved bounds the tokens whose permissions are remembered.
const maxResolved = 4 << 10

const (
	anonymousAccessor = "00000000-0000-0000-0000-000000000002"
	initialAccessor   = "00000000-0000-0000-0000-000000000003"
	anonymousSecret   = "anonymous"
	managementPolicy  = "00000000-0000-0000-0000-000000000001"
	readOnlyPolicy    = "00000000-0000-0000-0000-000000000002"
	bootstrapKey      = "bootstrap"
)

func newAccessControl(c *ACL) *accessControl {
	if c == nil {
		return nil
	}
	ac := &accessControl{byDefault: writable, resolved: make(map[credential]*known), missed: make(map[[sha256.Size]byte]*miss)}
	if c.DefaultPolicy == "deny" {
		ac.byDefault = denied
	}
	if c.InitialManagement != "" {
		hash := sha256.Sum256([]byte(c.InitialManagement))
		ac.initial = hash[:]
	}
	if len(c.SealKey) > 0 {
		ac.seal = newSeal(c.SealKey)
	}
	return ac
}

// newSeal derives a key of its own from one that may seal other things, too.
func newSeal(from []byte) cipher.AEAD {
	key, err := hkdf.Key(sha256.New, from, nil, "weft consul token secrets", 32)
	if err != nil { // only for keys of absurd length
		panic("consul: derive a key: " + err.Error())
	}
	block, err := aes.NewCipher(key)
	if err != nil { // only for keys of wrong length
		panic("consul: make a cipher: " + err.Error())
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil { // only for other block sizes
		panic("consul: make a cipher: " + err.Error())
	}
	return seal
}

// sealed returns nil without a key. A seal is of one token only.
func (ac *accessControl) sealed(secret, accessor string) []byte {
	if ac.seal == nil {
		return nil
	}
	return ac.seal.Seal(nil, nil, []byte(secret), []byte(accessor))
}

// hidden stands for a secret that is not told.
const hidden = "<hidden>"

// unsealed returns hidden for what this key has not sealed.
func (ac *accessControl) unsealed(sealed []byte, accessor string) string {
	if ac.seal == nil || len(sealed) < ac.seal.Overhead() {
		return hidden
	}
	secret, err := ac.seal.Open(nil, nil, sealed, []byte(accessor))
	if err != nil {
		return hidden
	}
	return string(secret)
}

// refuse is an answer that is given word for word: clients compare the text.
func refuse(status int, format string, args ...any) error {
	return &plainError{status, fmt.Sprintf(format, args...)}
}

var (
	errACLDisabled = refuse(http.StatusUnauthorized, "ACL support disabled")
	errACLNotFound = refuse(http.StatusForbidden, "ACL not found")
)

// secret is the token that a request came with, "" when it has none.
func (q *query) secret() string {
	if s := q.params.Get("token"); s != "" {
		return s
	}
	return headerToken(q.request)
}

func headerToken(r *http.Request) string {
	if s := r.Header.Get("X-Consul-Token"); s != "" {
		return s
	}
	scheme, s, found := strings.Cut(r.Header.Get("Authorization"), " ")
	if found && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(s)
	}
	return ""
}

// credential is what permissions are resolved by. What clients send is a secret, never
// an accessor: that one names a token, and is known to many.
type credential struct {
	secret   [sha256.Size]byte // its hash
	accessor string
}

// resolve returns the permissions of a secret: the same ones until something changes
// that they were made of.
func (a *api) resolve(ctx context.Context, secret string) (*permissions, error) {
	if secret == "" {
		secret = anonymousSecret
	}
	hash := sha256.Sum256([]byte(secret))
	return a.resolveBy(credential{secret: hash}, func() (*known, error) {
		k, err := a.look(secret, hash)
		if k == nil && err == nil {
			return a.lookAgain(ctx, secret, hash)
		}
		return k, err
	})
}

// resolveAccessor is resolve for a token that something kept refers to.
func (a *api) resolveAccessor(accessor string) (*permissions, error) {
	return a.resolveBy(credential{accessor: accessor}, func() (*known, error) {
		if accessor == initialAccessor && a.acl.initial != nil {
			return a.manager(), nil
		}
		return (&reading{api: a}).token(accessor)
	})
}

func (a *api) resolveBy(c credential, look func() (*known, error)) (*permissions, error) {
	k := a.acl.remembered(c)
	if k == nil || !a.holds(k) {
		var err error
		if k, err = look(); err != nil {
			return nil, err
		}
		a.acl.remember(c, k)
	}
	if k == nil || !k.expires.IsZero() && !time.Now().Before(k.expires) {
		return nil, a.notFound()
	}
	return k.permissions, nil
}

func (a *api) holds(k *known) bool {
	for i := range k.made {
		if e, _ := a.registry.Key(k.made[i].tree, k.made[i].key); e != k.made[i].entry {
			return false
		}
	}
	return true
}

func (ac *accessControl) remembered(c credential) *known {
	ac.mu.Lock()
	defer ac.mu.Unlock()
	return ac.resolved[c]
}

// remember forgets what a credential was resolved to when k is nil: what nobody knows
// is not worth room.
func (ac *accessControl) remember(c credential, k *known) {
	ac.mu.Lock()
	defer ac.mu.Unlock()
	delete(ac.resolved, c)
	if k == nil {
		return
	}
	for other := range ac.resolved {
		if len(ac.resolved) < maxResolved {
			break
		}
		delete(ac.resolved, other)
	}
	ac.resolved[c] = k
}

const (
	// missAgain is for how long a secret that nobody knew is not asked about again: a
	// client with a wrong token may try all the time.
	missAgain = time.Second
	// maxMissed bounds the secrets that are remembered for it.
	maxMissed = 1 << 10
)

// miss is a secret that nobody knew here.
type miss struct {
	at   time.Time
	over chan struct{} // closed when this server has caught up since
}

// lookAgain looks for a secret that nobody knows here: its token may have just been
// made on another server.
func (a *api) lookAgain(ctx context.Context, secret string, hash [sha256.Size]byte) (*known, error) {
	m, first := a.acl.miss(hash, time.Now())
	if m == nil {
		return nil, nil
	}
	if first {
		err := a.catchUp(ctx)
		close(m.over)
		if err != nil {
			return nil, err
		}
	} else {
		select {
		case <-m.over:
		case <-ctx.Done():
		}
	}
	return a.look(secret, hash)
}

// miss returns what is known of a miss, and whether the caller is the first who has
// it; nil when there are so many that they are guesses.
func (ac *accessControl) miss(hash [sha256.Size]byte, now time.Time) (m *miss, first bool) {
	ac.mu.Lock()
	defer ac.mu.Unlock()
	if m := ac.missed[hash]; m != nil && now.Sub(m.at) < missAgain {
		return m, false
	}
	if len(ac.missed) >= maxMissed {
		maps.DeleteFunc(ac.missed, func(_ [sha256.Size]byte, m *miss) bool { return now.Sub(m.at) >= missAgain })
	}
	if len(ac.missed) >= maxMissed {
		return nil, false
	}
	m = &miss{at: now, over: make(chan struct{})}
	ac.missed[hash] = m
	return m, true
}

// notFound is what is said of a secret that nobody knows.
func (a *api) notFound() error {
	if a.acl.initial == nil {
		if marker, _ := a.registry.Key(aclStateTree, bootstrapKey); marker == nil {
			return refuse(http.StatusForbidden,
				"ACL system must be bootstrapped before making any requests that require authorization: ACL not found")
		}
	}
	return errACLNotFound
}

// secretKey is what a secret is found by: its hash, so that the store tells none.
func secretKey(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// reading notes what it has looked at.
type reading struct {
	api   *api
	made  []source
	index uint64 // of the newest of made
}

func take[T any](r *reading, tree, key string) *document[T] {
	e, index := r.api.registry.Key(tree, key)
	r.made, r.index = append(r.made, source{tree, key, e}), max(r.index, index)
	if e == nil {
		return nil
	}
	return decodeEntry[T](r.api, tree, e)
}

// look resolves a secret. It returns nil when no token has it.
func (a *api) look(secret string, hash [sha256.Size]byte) (*known, error) {
	if a.acl.initial != nil && subtle.ConstantTimeCompare(hash[:], a.acl.initial) == 1 {
		return a.manager(), nil
	}
	r := &reading{api: a}
	if secret == anonymousSecret {
		return r.token(anonymousAccessor)
	}
	ref := take[string](r, secretTree, hex.EncodeToString(hash[:]))
	if ref == nil {
		return nil, nil
	}
	return r.token(ref.Value)
}

// manager is the token whose secret is configured.
func (a *api) manager() *known {
	p := newPermissions(initialAccessor, a.acl.byDefault)
	p.management = true
	return &known{permissions: p}
}

// token resolves a token by its accessor. It returns nil when there is none.
func (r *reading) token(accessor string) (*known, error) {
	token := &keptToken{tokenRecord: tokenRecord{AccessorID: anonymousAccessor}}
	if d := take[keptToken](r, tokenTree, accessor); d != nil {
		token = &d.Value
	} else if accessor != anonymousAccessor {
		return nil, nil
	}
	if token.AuthMethod != "" && take[methodRecord](r, methodTree, token.AuthMethod) == nil {
		return nil, nil // the method ended, and all who came by it
	}
	k := &known{}
	var err error
	if k.permissions, err = r.permissionsOf(token); err != nil {
		return nil, err
	}
	if token.ExpirationTime != nil {
		k.expires = *token.ExpirationTime
	}
	k.made, k.permissions.index = r.made, r.index
	return k, nil
}

// permissionsOf joins what a token may do: by its own policies, by its roles, and by
// the identities of both.
func (r *reading) permissionsOf(t *keptToken) (*permissions, error) {
	g := t.grants()
	for _, link := range t.Roles {
		if role := take[roleRecord](r, roleTree, link.ID); role != nil {
			g.join(role.Value.grants())
		}
	}
	texts := r.api.identityRules(&g)
	management := false
	for _, link := range g.policies {
		p := builtinPolicy(link.ID)
		if p == nil {
			if d := take[policyRecord](r, policyTree, link.ID); d != nil {
				p = &d.Value
			}
		}
		switch {
		case p == nil || !r.api.here(p.Datacenters):
		case p.ID == managementPolicy:
			management = true
		default:
			texts = append(texts, p.Rules)
		}
	}
	var all []rules
	for _, text := range texts {
		one, err := parseRules(text)
		if err != nil { // it was read when it was written; nobody may have more rights for it
			return nil, weft.Errorf(weft.Internal, "read token", t.AccessorID, "%w", err)
		}
		all = append(all, one)
	}
	p := newPermissions(t.AccessorID, r.api.acl.byDefault, all...)
	p.management = management
	return p, nil
}

// grants are what a token or a role links to.
type grants struct {
	policies  []aclLink
	services  []serviceIdentity
	nodes     []nodeIdentity
	templates []templatedPolicy
}

func (g *grants) join(more grants) {
	g.policies = slices.Concat(g.policies, more.policies)
	g.services = slices.Concat(g.services, more.services)
	g.nodes = slices.Concat(g.nodes, more.nodes)
	g.templates = slices.Concat(g.templates, more.templates)
}

func (t *tokenRecord) grants() grants {
	return grants{t.Policies, t.ServiceIdentities, t.NodeIdentities, t.TemplatedPolicies}
}

func (r *roleRecord) grants() grants {
	return grants{r.Policies, r.ServiceIdentities, r.NodeIdentities, r.TemplatedPolicies}
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
		"acl/bootstrap":                 {put: a.aclBootstrap},
		"acl/replication":               {get: a.aclReplication},
		"acl/token":                     {put: a.tokenCreate},
		"acl/token/":                    {get: a.tokenRead, put: a.tokenUpdate, delete: a.tokenDelete},
		"acl/token/self":                {get: a.tokenSelf},
		"acl/tokens":                    {get: a.tokenList},
		"acl/policy":                    {put: a.policyCreate},
		"acl/policy/":                   {get: a.policyRead, put: a.policyUpdate, delete: a.policyDelete},
		"acl/policy/name/":              {get: a.policyReadByName},
		"acl/policies":                  {get: a.policyList},
		"acl/role":                      {put: a.roleCreate},
		"acl/role/":                     {get: a.roleRead, put: a.roleUpdate, delete: a.roleDelete},
		"acl/role/name/":                {get: a.roleReadByName},
		"acl/roles":                     {get: a.roleList},
		"acl/templated-policies":        {get: a.templateList},
		"acl/templated-policy/name/":    {get: a.templateRead},
		"acl/templated-policy/preview/": {post: a.templatePreview, put: a.templatePreview},
		"acl/auth-method":               {put: a.methodWrite},
		"acl/auth-method/":              {get: a.methodRead, put: a.methodWrite, delete: a.methodDelete},
		"acl/auth-methods":              {get: a.methodList},
		"acl/binding-rule":              {put: a.bindingWrite},
		"acl/binding-rule/":             {get: a.bindingRead, put: a.bindingWrite, delete: a.bindingDelete},
		"acl/binding-rules":             {get: a.bindingList},
		"acl/login":                     {put: a.login, post: a.login},
		"acl/logout":                    {put: a.logout, post: a.logout},
		"acl/oidc/auth-url":             {put: a.noOIDC, post: a.noOIDC},
		"acl/oidc/callback":             {put: a.noOIDC, post: a.noOIDC},
		"internal/acl/authorize":        {put: a.aclAuthorize, post: a.aclAuthorize},
		// Of the tokens before Consul 1.4.
		"acl/create":   {put: a.aclLegacy},
		"acl/update":   {put: a.aclLegacy},
		"acl/destroy/": {put: a.aclLegacy},
		"acl/info/":    {get: a.aclLegacy},
		"acl/clone/":   {put: a.aclLegacy},
		"acl/list":     {get: a.aclLegacy},
	}
}

func (a *api) aclLegacy(http.ResponseWriter, *query) error {
	return refuse(http.StatusGone, "this endpoint of Consul's old tokens has been removed, there as here: use acl/token, acl/tokens and acl/policy")
}

func (a *api) noOIDC(http.ResponseWriter, *query) error {
	return notHere("weft sends nobody to a page for logging in: use an auth method of type jwt, and acl/login")
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
	if a.acl.initial != nil {
		return refuse(http.StatusForbidden, "Permission denied: ACL bootstrap no longer allowed: an initial management token is configured")
	}
	t := tokenRecord{
		AccessorID: newUUID(), SecretID: body.BootstrapSecret, Description: "Bootstrap Token (Global Management)",
		Policies: []aclLink{{ID: managementPolicy}}, CreateTime: time.Now().UTC(),
	}
	if t.SecretID == "" {
		t.SecretID = newUUID()
	}
	if err := a.complete(&t); err != nil {
		return err
	}
	var c change
	c.put(aclStateTree, bootstrapKey, 0, t.AccessorID)
	a.putToken(&c, &t)
	done, _, err := a.commit(q.request.Context(), &c)
	if err != nil {
		return err
	}
	if !done {
		marker, index := a.registry.Key(aclStateTree, bootstrapKey)
		if marker == nil {
			return weft.Errorf(weft.Conflict, "bootstrap", "", "another token has this secret")
		}
		return refuse(http.StatusForbidden, "Permission denied: ACL bootstrap no longer allowed (reset index: %d)", index)
	}
	return a.answerToken(w, q, t.AccessorID, t.SecretID)
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

// maxAuthorizations is how many questions acl/authorize answers at once.
const maxAuthorizations = 64

// POST /v1/internal/acl/authorize tells the sender of a token what it may do.
func (a *api) aclAuthorize(w http.ResponseWriter, q *query) error {
	if a.acl == nil {
		return errACLDisabled
	}
	type question struct {
		Resource string
		Segment  string `json:",omitempty"`
		Access   string
		Allow    bool
	}
	var list []question
	if err := decode(w, q, &list); err != nil {
		return err
	}
	if len(list) > maxAuthorizations {
		return refuse(http.StatusBadRequest, "Refusing to process more than %d authorizations at once", maxAuthorizations)
	}
	for i := range list {
		x := &list[i]
		want, known := accessWords[x.Access]
		if !known || want == denied {
			return refuse(http.StatusBadRequest, "Invalid access level %q, want read, list or write", x.Access)
		}
		if !slices.Contains(whole, x.Resource) && !slices.Contains(named, x.Resource) && x.Resource != intentionResource {
			return refuse(http.StatusBadRequest, "Invalid ACL resource requested: %q", x.Resource)
		}
		x.Allow = q.may(x.Resource, x.Segment, want)
	}
	return a.fixed(w, q, list)
}
