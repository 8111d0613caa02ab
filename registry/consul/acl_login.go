package consul

import (
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// methodRecord is an auth method: how somebody who has a proof from elsewhere gets a
// token. This server has the type "jwt" with public keys that are written here.
type methodRecord struct {
	Name          string
	Type          string
	DisplayName   string        `json:",omitempty"`
	Description   string        `json:",omitempty"`
	MaxTokenTTL   weft.Duration `json:",omitempty"` // 0: tokens of a login do not expire
	TokenLocality string        `json:",omitempty"` // "local" (also when empty) or "global"
	Config        *jwtConfig    `json:",omitempty"`
	CreateIndex   uint64
	ModifyIndex   uint64
}

type methodBody struct {
	Name, Type, DisplayName, Description, TokenLocality string
	MaxTokenTTL                                         duration
	Config                                              jwtConfigBody
}

// bindingRecord says what a login gets: the rights of a service, a node, a policy or
// a role, of which BindName is the name, with ${value.x} for a claim.
type bindingRecord struct {
	ID          string
	Description string
	AuthMethod  string
	Selector    string // a filter over value.x and list.x; empty fits all
	BindType    string
	BindName    string
	CreateIndex uint64
	ModifyIndex uint64
}

// claims are what a proof says, by the names that the method's mappings give.
type claims struct {
	value map[string]string
	list  map[string][]string
}

// PUT /v1/acl/auth-method, PUT /v1/acl/auth-method/{name}
func (a *api) methodWrite(w http.ResponseWriter, q *query) error {
	if err := a.manages(q, writable); err != nil {
		return err
	}
	var body methodBody
	if err := decode(w, q, &body); err != nil {
		return err
	}
	creates := q.argument == ""
	if !creates && body.Name == "" {
		body.Name = q.argument
	}
	if err := checkName("Auth Method", body.Name); err != nil {
		return err
	}
	if !creates && body.Name != q.argument {
		return refuse(http.StatusBadRequest, "Auth Method Name in URL and payload do not match")
	}
	m, err := body.record()
	if err != nil {
		return err
	}
	_, err = a.update(q.request.Context(), "write auth method", m.Name, func(c *change) error {
		e, _ := a.registry.Key(methodTree, m.Name)
		switch {
		case e == nil && !creates:
			return refuse(http.StatusNotFound, "Cannot find auth method %q: ACL not found", m.Name)
		case e != nil && creates:
			return refuse(http.StatusBadRequest, "Invalid Auth Method: a method of Name %q already exists", m.Name)
		case e != nil:
			c.put(methodTree, m.Name, e.ModifyIndex, m)
		default:
			c.put(methodTree, m.Name, 0, m)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return a.answerMethod(w, q, m.Name)
}

func (b *methodBody) record() (*methodRecord, error) {
	if b.Type != "jwt" {
		return nil, refuse(http.StatusNotImplemented, "weft has auth methods of type \"jwt\" only, not %q", b.Type)
	}
	ttl, err := b.MaxTokenTTL.parse("MaxTokenTTL")
	if err != nil {
		return nil, err
	}
	if d := time.Duration(ttl); d != 0 && (d < minTokenTTL || d > maxTokenTTL) {
		return nil, refuse(http.StatusBadRequest, "MaxTokenTTL %s must be between %s and %s", d, minTokenTTL, maxTokenTTL)
	}
	if b.TokenLocality != "" && b.TokenLocality != "local" && b.TokenLocality != "global" {
		return nil, refuse(http.StatusBadRequest, "Invalid Auth Method: TokenLocality should be one of 'local' or 'global'")
	}
	config, err := b.Config.config()
	if err != nil {
		return nil, err
	}
	return &methodRecord{
		Name: b.Name, Type: b.Type, DisplayName: b.DisplayName, Description: b.Description,
		MaxTokenTTL: ttl, TokenLocality: b.TokenLocality, Config: config,
	}, nil
}

func (a *api) method(name string) (*methodRecord, uint64) {
	d, index := find[methodRecord](a, methodTree, name)
	if d == nil {
		return nil, index
	}
	d.Value.CreateIndex, d.Value.ModifyIndex = d.CreateIndex, d.ModifyIndex
	return &d.Value, index
}

func (a *api) answerMethod(w http.ResponseWriter, q *query, name string) error {
	if m, _ := a.method(name); m == nil {
		return refuse(http.StatusNotFound, "Cannot find auth method %q: ACL not found", name)
	}
	return a.answer(w, q, view{topic: registry.KeyTopic(methodTree, name), build: func() (any, uint64) {
		m, index := a.method(name)
		return m, index
	}})
}

// GET /v1/acl/auth-method/{name}
func (a *api) methodRead(w http.ResponseWriter, q *query) error {
	name, err := q.need("auth method name")
	if err == nil {
		err = a.manages(q, readable)
	}
	if err != nil {
		return err
	}
	return a.answerMethod(w, q, name)
}

// GET /v1/acl/auth-methods
func (a *api) methodList(w http.ResponseWriter, q *query) error {
	if err := a.manages(q, readable); err != nil {
		return err
	}
	return a.answer(w, q, view{topic: registry.KeysTopic(methodTree, ""), build: func() (any, uint64) {
		docs, index := findAll[methodRecord](a, methodTree, "")
		out := make([]methodRecord, 0, len(docs))
		for _, d := range docs {
			m := d.Value
			m.Config, m.CreateIndex, m.ModifyIndex = nil, d.CreateIndex, d.ModifyIndex
			out = append(out, m)
		}
		return out, index
	}})
}

// DELETE /v1/acl/auth-method/{name} ends the tokens and the binding rules of the
// method, too.
func (a *api) methodDelete(w http.ResponseWriter, q *query) error {
	name, err := q.need("auth method name")
	if err == nil {
		err = a.manages(q, writable)
	}
	if err != nil {
		return err
	}
	var c change
	c.removeAnyway(methodTree, name) // first: with it gone nobody logs in, and its tokens are as if they were (see look)
	bindings, _ := findAll[bindingRecord](a, bindingTree, "")
	for _, d := range bindings {
		if d.Value.AuthMethod == name {
			c.removeAnyway(bindingTree, d.Key)
		}
	}
	tokens, _ := findAll[keptToken](a, tokenTree, "")
	for _, d := range tokens {
		if d.Value.AuthMethod == name {
			c.removeToken(&d.Value)
		}
	}
	for part := range slices.Chunk(c.ops, maxTxnOps) {
		if _, _, err := a.commit(q.request.Context(), &change{ops: part}); err != nil {
			return err
		}
	}
	return a.done(w, q)
}

// bindTypes are what a login can be bound to.
var bindTypes = []string{"service", "node", "policy", "role"}

// PUT /v1/acl/binding-rule, PUT /v1/acl/binding-rule/{id}
func (a *api) bindingWrite(w http.ResponseWriter, q *query) error {
	if err := a.manages(q, writable); err != nil {
		return err
	}
	var b bindingRecord
	if err := decode(w, q, &b); err != nil {
		return err
	}
	creates := q.argument == ""
	switch {
	case creates && b.ID != "":
		return refuse(http.StatusBadRequest, "Cannot specify the ID field of a new binding rule")
	case !slices.Contains(bindTypes, b.BindType):
		return refuse(http.StatusBadRequest, "Invalid Binding Rule: unknown BindType %q, want one of %s", b.BindType, strings.Join(bindTypes, ", "))
	case b.BindName == "":
		return refuse(http.StatusBadRequest, "Invalid Binding Rule: no BindName is set")
	}
	if m, _ := a.method(b.AuthMethod); m == nil {
		return refuse(http.StatusBadRequest, "cannot find auth method with name %q", b.AuthMethod)
	}
	if b.Selector != "" {
		if _, err := parseFilter(b.Selector, reflect.TypeFor[claims]()); err != nil {
			return err
		}
	}
	if b.ID = q.argument; creates {
		b.ID = newUUID()
	}
	b.CreateIndex, b.ModifyIndex = 0, 0
	_, err := a.update(q.request.Context(), "write binding rule", b.ID, func(c *change) error {
		e, _ := a.registry.Key(bindingTree, b.ID)
		switch {
		case e != nil:
			c.put(bindingTree, b.ID, e.ModifyIndex, b)
		case !creates:
			return refuse(http.StatusNotFound, "Cannot find binding rule %q: ACL not found", b.ID)
		default:
			c.put(bindingTree, b.ID, 0, b)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return a.answerBinding(w, q, b.ID)
}

func (a *api) answerBinding(w http.ResponseWriter, q *query, id string) error {
	if e, _ := a.registry.Key(bindingTree, id); e == nil {
		return refuse(http.StatusNotFound, "Cannot find binding rule %q: ACL not found", id)
	}
	return a.answer(w, q, view{topic: registry.KeyTopic(bindingTree, id), build: func() (any, uint64) {
		d, index := find[bindingRecord](a, bindingTree, id)
		if d == nil {
			return nil, index
		}
		d.Value.CreateIndex, d.Value.ModifyIndex = d.CreateIndex, d.ModifyIndex
		return d.Value, index
	}})
}

// GET /v1/acl/binding-rule/{id}
func (a *api) bindingRead(w http.ResponseWriter, q *query) error {
	id, err := q.need("binding rule ID")
	if err == nil {
		err = a.manages(q, readable)
	}
	if err != nil {
		return err
	}
	return a.answerBinding(w, q, id)
}

// GET /v1/acl/binding-rules?authmethod=
func (a *api) bindingList(w http.ResponseWriter, q *query) error {
	if err := a.manages(q, readable); err != nil {
		return err
	}
	method := q.params.Get("authmethod")
	return a.answer(w, q, view{topic: registry.KeysTopic(bindingTree, ""), build: func() (any, uint64) {
		docs, index := findAll[bindingRecord](a, bindingTree, "")
		out := make([]bindingRecord, 0, len(docs))
		for _, d := range docs {
			if b := d.Value; method == "" || b.AuthMethod == method {
				b.CreateIndex, b.ModifyIndex = d.CreateIndex, d.ModifyIndex
				out = append(out, b)
			}
		}
		return out, index
	}})
}

// DELETE /v1/acl/binding-rule/{id}
func (a *api) bindingDelete(w http.ResponseWriter, q *query) error {
	id, err := q.need("binding rule ID")
	if err == nil {
		err = a.manages(q, writable)
	}
	if err != nil {
		return err
	}
	var c change
	c.removeAnyway(bindingTree, id)
	if _, _, err := a.commit(q.request.Context(), &c); err != nil {
		return err
	}
	return a.done(w, q)
}

// POST /v1/acl/login needs no token: what it is given proves who asks.
func (a *api) login(w http.ResponseWriter, q *query) error {
	if a.acl == nil {
		return errACLDisabled
	}
	var body struct {
		AuthMethod, BearerToken string
		Meta                    map[string]string
	}
	if err := decode(w, q, &body); err != nil {
		return err
	}
	m, _ := a.method(body.AuthMethod)
	if m == nil {
		return refuse(http.StatusForbidden, "ACL not found: auth method %q", body.AuthMethod)
	}
	now := time.Now()
	said, err := m.Config.verify(body.BearerToken, now)
	if err != nil {
		a.logger.InfoContext(q.request.Context(), "consul: a login was refused", "method", m.Name, "error", err)
		return refuse(http.StatusForbidden, "Permission denied: %v", err)
	}
	t := tokenRecord{
		AccessorID: newUUID(), SecretID: newUUID(), Description: "token created via login",
		AuthMethod: m.Name, Local: m.TokenLocality != "global", CreateTime: now.UTC(),
	}
	if m.MaxTokenTTL != 0 {
		end := t.CreateTime.Add(time.Duration(m.MaxTokenTTL))
		t.ExpirationTime = &end
	}
	if bound, err := a.bind(&t, said); err != nil || !bound {
		return refuse(http.StatusForbidden, "Permission denied")
	}
	if err := a.complete(&t); err != nil {
		return refuse(http.StatusForbidden, "Permission denied")
	}
	if err := a.addToken(q, &t); err != nil {
		return err
	}
	return a.answerToken(w, q, t.AccessorID, t.SecretID)
}

// bind gives a token what the binding rules of its method say of its claims. A
// policy or a role that is not there is left out.
func (a *api) bind(t *tokenRecord, said *claims) (bound bool, err error) {
	docs, _ := findAll[bindingRecord](a, bindingTree, "")
	for _, d := range docs {
		b := &d.Value
		if b.AuthMethod != t.AuthMethod {
			continue
		}
		if b.Selector != "" {
			f, err := parseFilter(b.Selector, reflect.TypeFor[claims]())
			if err != nil {
				return false, err
			}
			if !f.match(reflect.ValueOf(said)) {
				continue
			}
		}
		name, ok := fill(b.BindName, said)
		if !ok {
			continue
		}
		switch b.BindType {
		case "service":
			t.ServiceIdentities = append(t.ServiceIdentities, serviceIdentity{ServiceName: name})
		case "node":
			t.NodeIdentities = append(t.NodeIdentities, nodeIdentity{NodeName: name, Datacenter: a.registry.Datacenter()})
		default:
			id := a.idByName(b.BindType, name)
			if id == "" {
				continue
			}
			if b.BindType == "policy" {
				t.Policies = append(t.Policies, aclLink{ID: id})
			} else {
				t.Roles = append(t.Roles, aclLink{ID: id})
			}
		}
		bound = true
	}
	return bound, nil
}

// fill puts claims into ${value.x}. ok is false when one is missing, or makes no
// name.
func fill(text string, said *claims) (name string, ok bool) {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "${")
		b.WriteString(before)
		if !found {
			break
		}
		hole, after, closed := strings.Cut(rest, "}")
		claim, isValue := strings.CutPrefix(strings.TrimSpace(hole), "value.")
		value, known := said.value[claim]
		if !closed || !isValue || !known {
			return "", false
		}
		b.WriteString(value)
		text = after
	}
	return b.String(), validName.MatchString(b.String())
}

// POST /v1/acl/logout ends the token that it is asked with.
func (a *api) logout(w http.ResponseWriter, q *query) error {
	if a.acl == nil {
		return errACLDisabled
	}
	t := a.tokenByAccessor(q.acl.accessor)
	if t == nil || t.AuthMethod == "" {
		return refuse(http.StatusForbidden, "Permission denied: the token was not made by a login")
	}
	return a.dropToken(w, q, t.AccessorID)
}
