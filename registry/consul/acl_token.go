package consul

import (
	"net/http"
	"strings"
	"time"

	"github.com/weftmesh/weft/registry"
)

// tokenRecord is a token as it is told, and, without the names of its links and
// without indexes, as it is kept.
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

// tokenBody is what clients send to create or change a token.
type tokenBody struct {
	tokenRecord
	ExpirationTTL duration
}

const (
	minTokenTTL = time.Minute
	maxTokenTTL = 24 * time.Hour
	// maxReaped bounds the expired tokens that one creation clears away.
	maxReaped = 16
)

func (t *tokenRecord) expired(now time.Time) bool {
	return t.ExpirationTime != nil && !now.Before(*t.ExpirationTime)
}

// tokenByAccessor returns a token as it is kept, nil when there is none. The
// anonymous token is always there.
func (a *api) tokenByAccessor(accessor string) *tokenRecord {
	d, _ := find[tokenRecord](a, tokenTree, accessor)
	switch {
	case d != nil:
		d.Value.CreateIndex, d.Value.ModifyIndex = d.CreateIndex, d.ModifyIndex
		return &d.Value
	case accessor == anonymousAccessor:
		return &tokenRecord{
			AccessorID: anonymousAccessor, SecretID: anonymousSecret, Description: "Anonymous Token",
			CreateIndex: 1, ModifyIndex: 1, Hash: []byte{1},
		}
	}
	return nil
}

// shown is a token with the names of its links, and without its secret for those
// who may not manage tokens.
func (a *api) shown(q *query, t *tokenRecord) *tokenRecord {
	out := *t
	out.Policies, out.Roles = a.namedLinks("policy", t.Policies), a.namedLinks("role", t.Roles)
	if !q.may(aclResource, "", writable) {
		out.SecretID = "<hidden>"
	}
	return &out
}

// answerToken answers a token with its secret, which its owner or a manager of
// tokens asked for.
func (a *api) answerToken(w http.ResponseWriter, q *query, accessor string) error {
	t := a.tokenByAccessor(accessor)
	if t == nil || t.expired(time.Now()) {
		return refuse(http.StatusNotFound, "token does not exist: ACL not found")
	}
	out := *t
	out.Policies, out.Roles = a.namedLinks("policy", t.Policies), a.namedLinks("role", t.Roles)
	return a.answer(w, q, view{build: func() (any, uint64) { return &out, t.ModifyIndex }})
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
	return a.answerToken(w, q, t.AccessorID)
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
	if err := checkIdentities(t.ServiceIdentities, t.NodeIdentities, t.TemplatedPolicies); err != nil {
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

// addToken writes a new token, and clears away some whose time is over.
func (a *api) addToken(q *query, t *tokenRecord) error {
	var c change
	c.put(tokenTree, t.AccessorID, 0, t)
	c.put(secretTree, secretKey(t.SecretID), 0, t.AccessorID)
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

// reapTokens deletes tokens that nobody can use any more. Failing costs nothing but
// their room.
func (a *api) reapTokens(q *query) {
	docs, _ := findAll[tokenRecord](a, tokenTree, "")
	now := time.Now()
	var c change
	for _, d := range docs {
		if d.Value.expired(now) && len(c.ops) < 2*maxReaped {
			c.removeAnyway(tokenTree, d.Key)
			c.removeAnyway(secretTree, secretKey(d.Value.SecretID))
		}
	}
	if len(c.ops) > 0 {
		if _, _, err := a.commit(q.request.Context(), &c); err != nil {
			a.logger.Warn("consul: expired tokens stay for now", "error", err)
		}
	}
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
	var body tokenBody
	if err := decode(w, q, &body); err != nil {
		return err
	}
	_, err = a.update(q.request.Context(), "write token", accessor, func(c *change) error {
		old := a.tokenByAccessor(accessor)
		if old == nil || old.expired(time.Now()) {
			return refuse(http.StatusNotFound, "Cannot find token %q: ACL not found", accessor)
		}
		next, err := old.changed(&body)
		if err == nil {
			err = a.complete(next)
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
	return a.answerToken(w, q, accessor)
}

// changed is the token after an update. Some things stay as they were made.
func (t *tokenRecord) changed(body *tokenBody) (*tokenRecord, error) {
	next := body.tokenRecord
	ttl, err := body.ExpirationTTL.parse("ExpirationTTL")
	if err != nil {
		return nil, err
	}
	sameEnd := next.ExpirationTime == nil || t.ExpirationTime != nil && next.ExpirationTime.Equal(*t.ExpirationTime)
	switch {
	case next.SecretID != "" && next.SecretID != t.SecretID:
		return nil, refuse(http.StatusBadRequest, "Changing a tokens SecretID is not permitted")
	case next.AccessorID != "" && next.AccessorID != t.AccessorID:
		return nil, refuse(http.StatusBadRequest, "Token Accessor ID in URL and payload do not match")
	case next.AuthMethod != "" && next.AuthMethod != t.AuthMethod:
		return nil, refuse(http.StatusBadRequest, "Cannot change AuthMethod of %s", t.AccessorID)
	case next.Local != t.Local:
		return nil, refuse(http.StatusBadRequest, "cannot toggle local mode of %s", t.AccessorID)
	case ttl != 0 || !sameEnd:
		return nil, refuse(http.StatusBadRequest, "Cannot change expiration time of %s", t.AccessorID)
	}
	next.AccessorID, next.SecretID, next.AuthMethod = t.AccessorID, t.SecretID, t.AuthMethod
	next.ExpirationTime, next.CreateTime = t.ExpirationTime, t.CreateTime
	next.CreateIndex, next.ModifyIndex = 0, 0
	return &next, nil
}

func (a *api) tokenClone(w http.ResponseWriter, q *query, accessor string) error {
	var body struct{ Description string }
	if err := decodeOptional(w, q, &body); err != nil {
		return err
	}
	old := a.tokenByAccessor(accessor)
	switch {
	case old == nil || old.expired(time.Now()):
		return refuse(http.StatusNotFound, "Cannot find token %q: ACL not found", accessor)
	case old.AuthMethod != "":
		return refuse(http.StatusBadRequest, "Cannot clone a token created from an auth method")
	}
	next := *old
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
	return a.answerToken(w, q, next.AccessorID)
}

// GET /v1/acl/token/{accessor}
func (a *api) tokenRead(w http.ResponseWriter, q *query) error {
	accessor, err := q.need("token AccessorID")
	if err == nil {
		err = a.manages(q, readable)
	}
	if err != nil {
		return err
	}
	if t := a.tokenByAccessor(accessor); t == nil || t.expired(time.Now()) {
		return refuse(http.StatusNotFound, "token does not exist: ACL not found")
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

// GET /v1/acl/token/self needs no permission but to be somebody.
func (a *api) tokenSelf(w http.ResponseWriter, q *query) error {
	if a.acl == nil {
		return errACLDisabled
	}
	return a.answerToken(w, q, q.acl.accessor)
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
	case accessor == q.acl.accessor:
		return refuse(http.StatusBadRequest, "Deletion of the request's authorization token is not permitted")
	}
	return a.dropToken(w, q, accessor)
}

func (a *api) dropToken(w http.ResponseWriter, q *query, accessor string) error {
	if t := a.tokenByAccessor(accessor); t != nil {
		var c change
		c.removeAnyway(tokenTree, accessor)
		c.removeAnyway(secretTree, secretKey(t.SecretID))
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
		docs, index := findAll[tokenRecord](a, tokenTree, "")
		now := time.Now()
		out := make([]*tokenRecord, 0, len(docs)+1)
		anonymous := a.tokenByAccessor(anonymousAccessor)
		if anonymous.ModifyIndex == 1 && asked == 0 { // it is not among those that are written
			out = append(out, a.shown(q, anonymous))
		}
		for _, d := range docs {
			d.Value.CreateIndex, d.Value.ModifyIndex = d.CreateIndex, d.ModifyIndex
			if t := &d.Value; !t.expired(now) && q.wantsToken(t) {
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
