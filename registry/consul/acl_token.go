package consul

import (
	"net/http"
	"strings"
	"time"

	"github.com/weftmesh/weft/registry"
)

// tokenRecord is a token as it is told.
type tokenRecord struct {
	CreateIndex       uint64
	ModifyIndex       uint64
	AccessorID        string // names the token, and is no secret
	SecretID          string // is the token
	Description       string
	Policies          []aclLink         `json:",omitempty"`
	Roles             []aclLink         `json:",omitempty"`
	ServiceIdentities []serviceIdentity `json:",omitempty"`
	NodeIdentities    []nodeIdentity    `json:",omitempty"`
	TemplatedPolicies []templatedPolicy `json:",omitempty"`
	Local             bool
	AuthMethod        string     `json:",omitempty"` // of a login
	ExpirationTime    *time.Time `json:",omitempty"` // after it the token is as if deleted
	CreateTime        time.Time
	Hash              []byte
}

// keptToken is a token as it is kept: without its secret, the names of its links, and
// indexes. A secret is found by its hash, in secretTree. A store that is stolen tells
// none; Consul's clients expect, though, that managers of tokens can read secrets
// again, so there is one sealed by a key that is not in the store, if there is such a
// key.
type keptToken struct {
	tokenRecord
	SecretHash string // secretKey of the secret: its other half is deleted with it
	Sealed     []byte `json:",omitempty"`
}

// putToken adds a new token to a change, in both halves.
func (a *api) putToken(c *change, t *tokenRecord) {
	kept := keptToken{tokenRecord: *t, SecretHash: secretKey(t.SecretID), Sealed: a.acl.sealed(t.SecretID, t.AccessorID)}
	kept.SecretID = ""
	c.put(tokenTree, t.AccessorID, 0, kept)
	c.put(secretTree, kept.SecretHash, 0, t.AccessorID)
}

func (c *change) removeToken(t *keptToken) {
	c.removeAnyway(tokenTree, t.AccessorID)
	c.removeAnyway(secretTree, t.SecretHash)
}

// tokenBody is what clients send to create or change a token.
type tokenBody struct {
	tokenRecord
	ExpirationTTL duration
}

const (
	minTokenTTL = time.Minute
	maxTokenTTL = 24 * time.Hour
	// reapEvery is how often, at most, a creation looks for tokens that have expired.
	reapEvery = time.Minute
)

func (t *tokenRecord) expired(now time.Time) bool {
	return t.ExpirationTime != nil && !now.Before(*t.ExpirationTime)
}

// tokenByAccessor returns a token as it is kept, nil when there is none that is still
// good. Two are there without being written: the anonymous one, and the one whose
// secret is configured.
func (a *api) tokenByAccessor(accessor string) *keptToken {
	d, _ := find[keptToken](a, tokenTree, accessor)
	if d != nil {
		d.Value.CreateIndex, d.Value.ModifyIndex = d.CreateIndex, d.ModifyIndex
		if d.Value.expired(time.Now()) {
			return nil
		}
		return &d.Value
	}
	switch {
	case accessor == anonymousAccessor:
		return builtinToken(accessor, "Anonymous Token")
	case accessor == initialAccessor && a.acl.initial != nil:
		return builtinToken(accessor, "Initial Management Token", aclLink{ID: managementPolicy})
	}
	return nil
}

func builtinToken(accessor, description string, policies ...aclLink) *keptToken {
	return &keptToken{tokenRecord: tokenRecord{
		AccessorID: accessor, Description: description, Policies: policies, CreateIndex: 1, ModifyIndex: 1, Hash: hashOf(accessor),
	}}
}

// errNoToken is for an accessor that names none.
var errNoToken = refuse(http.StatusNotFound, "token does not exist: ACL not found")

// shown is a token with the names of its links, and without its secret for those
// who may not manage tokens.
func (a *api) shown(q *query, t *keptToken) *tokenRecord {
	out := t.tokenRecord
	out.Policies, out.Roles = a.namedLinks("policy", t.Policies), a.namedLinks("role", t.Roles)
	switch {
	case !q.may(aclResource, "", writable):
		out.SecretID = hidden
	case t.AccessorID == anonymousAccessor:
		out.SecretID = anonymousSecret
	default:
		out.SecretID = a.acl.unsealed(t.Sealed, t.AccessorID)
	}
	return &out
}

// answerToken answers a token with its secret, to who made it or has it.
func (a *api) answerToken(w http.ResponseWriter, q *query, accessor, secret string) error {
	t := a.tokenByAccessor(accessor)
	if t == nil {
		return errNoToken
	}
	out := a.shown(q, t)
	out.SecretID = secret
	return a.answer(w, q, view{build: func() (any, uint64) { return out, t.ModifyIndex }})
}

// PUT /v1/acl/token
func (a *api) tokenCreate(w http.ResponseWriter, q *query) error {
	if err := a.manages(q, writable); err != nil {
		return err
	}
	var body tokenBody
	if err := decodeOptional(w, q, &body); err != nil {
		return err
	}
	t, err := a.newToken(&body)
	if err != nil {
		return err
	}
	if err := a.addToken(q, t); err != nil {
		return err
	}
	return a.answerToken(w, q, t.AccessorID, t.SecretID)
}

// newToken makes a token of what was sent.
func (a *api) newToken(body *tokenBody) (*tokenRecord, error) {
	t := body.tokenRecord
	for what, id := range map[string]*string{"AccessorID": &t.AccessorID, "SecretID": &t.SecretID} {
		switch {
		case *id == "":
			*id = newUUID()
		case !isUUID(*id):
			return nil, refuse(http.StatusBadRequest, "Invalid Token: %s is not a valid UUID", what)
		case strings.HasPrefix(*id, "00000000-0000-0000-0000-0000000000"):
			return nil, refuse(http.StatusBadRequest, "Invalid Token: %s is reserved", what)
		}
	}
	t.CreateIndex, t.ModifyIndex, t.CreateTime, t.AuthMethod = 0, 0, time.Now().UTC(), ""
	if err := t.expireAfter(body.ExpirationTTL); err != nil {
		return nil, err
	}
	return &t, a.complete(&t)
}

// expireAfter sets the end of a new token's life.
func (t *tokenRecord) expireAfter(text duration) error {
	ttl, err := text.parse("ExpirationTTL")
	if err != nil {
		return err
	}
	if ttl != 0 {
		if t.ExpirationTime != nil {
			return refuse(http.StatusBadRequest, "Invalid Token: ExpirationTTL and ExpirationTime cannot both be set")
		}
		end := t.CreateTime.Add(time.Duration(ttl))
		t.ExpirationTime = &end
	}
	if t.ExpirationTime == nil {
		return nil
	}
	switch left := t.ExpirationTime.Sub(t.CreateTime); {
	case left < minTokenTTL:
		return refuse(http.StatusBadRequest, "Invalid Token: ExpirationTime cannot be less than %s in the future (was %s)", minTokenTTL, left)
	case left > maxTokenTTL:
		return refuse(http.StatusBadRequest, "Invalid Token: ExpirationTime cannot be more than %s in the future (was %s)", maxTokenTTL, left)
	}
	return nil
}

// complete checks what a token refers to, and makes its hash.
func (a *api) complete(t *tokenRecord) (err error) {
	if err := checkIdentities(t.grants()); err != nil {
		return err
	}
	if t.Policies, err = a.linksTo("policy", t.Policies); err != nil {
		return err
	}
	if t.Roles, err = a.linksTo("role", t.Roles); err != nil {
		return err
	}
	t.Hash = hashOf([]any{t.AccessorID, t.Description, t.Policies, t.Roles, t.ServiceIdentities, t.NodeIdentities,
		t.TemplatedPolicies, t.Local, t.AuthMethod, t.ExpirationTime})
	return nil
}

// addToken writes a new token.
func (a *api) addToken(q *query, t *tokenRecord) error {
	var c change
	a.putToken(&c, t)
	done, _, err := a.commit(q.request.Context(), &c)
	if err != nil {
		return err
	}
	if !done {
		return refuse(http.StatusBadRequest, "Invalid Token: AccessorID or SecretID is already in use")
	}
	a.reapTokens(q)
	return nil
}

// reapTokens deletes tokens that nobody can use any more, now and then. Failing costs
// nothing but their room.
func (a *api) reapTokens(q *query) {
	now := time.Now()
	if !a.acl.reaps(now) {
		return
	}
	docs, _ := findAll[keptToken](a, tokenTree, "")
	var c change
	for _, d := range docs {
		if d.Value.expired(now) && len(c.ops)+2 <= maxTxnOps {
			c.removeToken(&d.Value)
		}
	}
	if len(c.ops) > 0 {
		if _, _, err := a.commit(q.request.Context(), &c); err != nil {
			a.logger.Warn("consul: expired tokens stay for now", "error", err)
		}
	}
}

func (ac *accessControl) reaps(now time.Time) bool {
	ac.mu.Lock()
	defer ac.mu.Unlock()
	if now.Sub(ac.reaped) < reapEvery {
		return false
	}
	ac.reaped = now
	return true
}

// PUT /v1/acl/token/{accessor}, and PUT /v1/acl/token/{accessor}/clone
func (a *api) tokenUpdate(w http.ResponseWriter, q *query) error {
	accessor, err := q.need("token AccessorID")
	if err == nil {
		err = a.manages(q, writable)
	}
	if err != nil {
		return err
	}
	if from, ok := strings.CutSuffix(accessor, "/clone"); ok {
		return a.tokenClone(w, q, from)
	}
	if accessor == initialAccessor {
		return refuse(http.StatusBadRequest, "the initial management token is configured, and cannot be changed here")
	}
	var body tokenBody
	if err := decode(w, q, &body); err != nil {
		return err
	}
	_, err = a.update(q.request.Context(), "write token", accessor, func(c *change) error {
		old := a.tokenByAccessor(accessor)
		if old == nil {
			return refuse(http.StatusNotFound, "Cannot find token %q: ACL not found", accessor)
		}
		next, err := a.changed(old, &body)
		if err == nil {
			err = a.complete(&next.tokenRecord)
		}
		if err != nil {
			return err
		}
		index := old.ModifyIndex
		if e, _ := a.registry.Key(tokenTree, accessor); e == nil {
			index = 0 // the anonymous token, which is not written yet
		}
		c.put(tokenTree, accessor, index, next)
		return nil
	})
	if err != nil {
		return err
	}
	return a.answerShown(w, q, accessor)
}

// changed is the token after an update. Some things stay as they were made.
func (a *api) changed(t *keptToken, body *tokenBody) (*keptToken, error) {
	next := *t
	next.tokenRecord = body.tokenRecord
	ttl, err := body.ExpirationTTL.parse("ExpirationTTL")
	if err != nil {
		return nil, err
	}
	sameEnd := next.ExpirationTime == nil || t.ExpirationTime != nil && next.ExpirationTime.Equal(*t.ExpirationTime)
	switch {
	case !t.sameSecret(next.SecretID):
		return nil, refuse(http.StatusBadRequest, "Changing a token's SecretID is not permitted")
	case next.AccessorID != "" && next.AccessorID != t.AccessorID:
		return nil, refuse(http.StatusBadRequest, "Token Accessor ID in URL and payload do not match")
	case next.AuthMethod != "" && next.AuthMethod != t.AuthMethod:
		return nil, refuse(http.StatusBadRequest, "Cannot change AuthMethod of %s", t.AccessorID)
	case next.Local != t.Local:
		return nil, refuse(http.StatusBadRequest, "cannot toggle local mode of %s", t.AccessorID)
	case ttl != 0 || !sameEnd:
		return nil, refuse(http.StatusBadRequest, "Cannot change expiration time of %s", t.AccessorID)
	}
	next.AccessorID, next.SecretID, next.AuthMethod = t.AccessorID, "", t.AuthMethod
	next.ExpirationTime, next.CreateTime = t.ExpirationTime, t.CreateTime
	next.CreateIndex, next.ModifyIndex = 0, 0
	return &next, nil
}

// sameSecret says whether the secret that was sent leaves a token's as it is: clients
// send back what they have read.
func (t *keptToken) sameSecret(sent string) bool {
	return sent == "" || sent == hidden || secretKey(sent) == t.SecretHash || t.AccessorID == anonymousAccessor && sent == anonymousSecret
}

func (a *api) tokenClone(w http.ResponseWriter, q *query, accessor string) error {
	var body struct{ Description string }
	if err := decodeOptional(w, q, &body); err != nil {
		return err
	}
	old := a.tokenByAccessor(accessor)
	switch {
	case old == nil:
		return refuse(http.StatusNotFound, "Cannot find token %q: ACL not found", accessor)
	case old.AuthMethod != "":
		return refuse(http.StatusBadRequest, "Cannot clone a token created from an auth method")
	}
	next := old.tokenRecord
	next.CreateIndex, next.ModifyIndex = 0, 0
	next.AccessorID, next.SecretID, next.CreateTime = newUUID(), newUUID(), time.Now().UTC()
	if body.Description != "" {
		next.Description = body.Description
	}
	if err := a.complete(&next); err != nil {
		return err
	}
	if err := a.addToken(q, &next); err != nil {
		return err
	}
	return a.answerToken(w, q, next.AccessorID, next.SecretID)
}

// GET /v1/acl/token/{accessor}?expanded
func (a *api) tokenRead(w http.ResponseWriter, q *query) error {
	accessor, err := q.need("token AccessorID")
	if err == nil {
		err = a.manages(q, readable)
	}
	if err != nil {
		return err
	}
	expanded, err := q.flag("expanded")
	if err != nil {
		return err
	}
	if expanded {
		return a.answerExpanded(w, q, accessor)
	}
	return a.answerShown(w, q, accessor)
}

func (a *api) answerShown(w http.ResponseWriter, q *query, accessor string) error {
	if a.tokenByAccessor(accessor) == nil {
		return errNoToken
	}
	return a.answer(w, q, view{topic: registry.KeyTopic(tokenTree, accessor), build: func() (any, uint64) {
		_, index := a.registry.Key(tokenTree, accessor)
		t := a.tokenByAccessor(accessor)
		if t == nil {
			return nil, index
		}
		return a.shown(q, t), index
	}})
}

// expandedToken is a token with all that it may do.
type expandedToken struct {
	*tokenRecord
	ExpandedPolicies []policyRecord
	ExpandedRoles    []roleRecord

	NamespaceDefaultPolicyIDs []string
	NamespaceDefaultRoleIDs   []string

	AgentACLDefaultPolicy string
	AgentACLDownPolicy    string
	ResolvedByAgent       string
}

func (a *api) answerExpanded(w http.ResponseWriter, q *query, accessor string) error {
	t := a.tokenByAccessor(accessor)
	if t == nil {
		return errNoToken
	}
	out := expandedToken{
		tokenRecord: a.shown(q, t), AgentACLDefaultPolicy: q.defaultPolicy(), AgentACLDownPolicy: "extend-cache",
		ResolvedByAgent: a.registry.LocalNode().Name, ExpandedPolicies: []policyRecord{}, ExpandedRoles: []roleRecord{},
	}
	g := t.grants()
	for _, link := range t.Roles {
		if d, _ := find[roleRecord](a, roleTree, link.ID); d != nil {
			out.ExpandedRoles = append(out.ExpandedRoles, *a.roleOf(d))
			g.join(d.Value.grants())
		}
	}
	seen := make(map[string]bool)
	for _, link := range g.policies {
		if p := a.policyByID(link.ID); p != nil && !seen[p.ID] {
			seen[p.ID] = true
			out.ExpandedPolicies = append(out.ExpandedPolicies, *p)
		}
	}
	for _, text := range a.identityRules(&g) {
		out.ExpandedPolicies = append(out.ExpandedPolicies, synthetic(text, nil))
	}
	return a.answer(w, q, view{build: func() (any, uint64) { return out, t.ModifyIndex }})
}

// GET /v1/acl/token/self needs no permission but to be somebody.
func (a *api) tokenSelf(w http.ResponseWriter, q *query) error {
	if a.acl == nil {
		return errACLDisabled
	}
	secret := q.sender
	if secret == "" {
		secret = anonymousSecret
	}
	return a.answerToken(w, q, q.acl.accessor, secret)
}

// DELETE /v1/acl/token/{accessor}
func (a *api) tokenDelete(w http.ResponseWriter, q *query) error {
	accessor, err := q.need("token AccessorID")
	if err == nil {
		err = a.manages(q, writable)
	}
	switch {
	case err != nil:
		return err
	case accessor == anonymousAccessor:
		return refuse(http.StatusBadRequest, "Delete operation not permitted on the anonymous token")
	case accessor == initialAccessor:
		return refuse(http.StatusBadRequest, "the initial management token is configured, and cannot be deleted here")
	case accessor == q.acl.accessor:
		return refuse(http.StatusBadRequest, "Deletion of the request's authorization token is not permitted")
	}
	return a.dropToken(w, q, accessor)
}

func (a *api) dropToken(w http.ResponseWriter, q *query, accessor string) error {
	if t := a.tokenByAccessor(accessor); t != nil {
		var c change
		c.removeToken(t)
		if _, _, err := a.commit(q.request.Context(), &c); err != nil {
			return err
		}
	}
	return a.done(w, q)
}

// GET /v1/acl/tokens?policy=&role=&servicename=&authmethod=
func (a *api) tokenList(w http.ResponseWriter, q *query) error {
	if err := a.manages(q, readable); err != nil {
		return err
	}
	asked := 0
	for _, name := range []string{"policy", "role", "servicename", "authmethod"} {
		if q.params.Get(name) != "" {
			asked++
		}
	}
	if asked > 1 {
		return refuse(http.StatusBadRequest, "can only filter by one of: policy, role, servicename, authmethod")
	}
	return a.answer(w, q, view{topic: registry.KeysTopic(tokenTree, ""), build: func() (any, uint64) {
		docs, index := findAll[keptToken](a, tokenTree, "")
		now := time.Now()
		out := make([]*tokenRecord, 0, len(docs)+2)
		for _, accessor := range []string{anonymousAccessor, initialAccessor} { // the anonymous one may be written, too
			if e, _ := a.registry.Key(tokenTree, accessor); e != nil {
				continue
			}
			if t := a.tokenByAccessor(accessor); t != nil && q.wantsToken(&t.tokenRecord) {
				out = append(out, a.shown(q, t))
			}
		}
		for _, d := range docs {
			t := &d.Value
			t.CreateIndex, t.ModifyIndex = d.CreateIndex, d.ModifyIndex
			if !t.expired(now) && q.wantsToken(&t.tokenRecord) {
				out = append(out, a.shown(q, t))
			}
		}
		return out, index
	}})
}

// wantsToken says whether a token fits what the list is narrowed to.
func (q *query) wantsToken(t *tokenRecord) bool {
	if id := q.params.Get("policy"); id != "" {
		return linked(t.Policies, id)
	}
	if id := q.params.Get("role"); id != "" {
		return linked(t.Roles, id)
	}
	if name := q.params.Get("servicename"); name != "" {
		for _, s := range t.ServiceIdentities {
			if s.ServiceName == name {
				return true
			}
		}
		return false
	}
	if name := q.params.Get("authmethod"); name != "" {
		return t.AuthMethod == name
	}
	return true
}
