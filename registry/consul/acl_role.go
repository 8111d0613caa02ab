package consul

import (
	"net/http"
	"regexp"

	"github.com/weftmesh/weft/registry"
)

// PUT /v1/acl/role
func (a *api) roleCreate(w http.ResponseWriter, q *query) error { return a.roleWrite(w, q, "") }

// PUT /v1/acl/role/{id}
func (a *api) roleUpdate(w http.ResponseWriter, q *query) error {
	id, err := q.need("role ID")
	if err != nil {
		return err
	}
	return a.roleWrite(w, q, id)
}

func (a *api) roleWrite(w http.ResponseWriter, q *query, id string) error {
	if err := a.manages(q, writable); err != nil {
		return err
	}
	var body roleRecord
	if err := decode(w, q, &body); err != nil {
		return err
	}
	if err := checkName("Role", body.Name); err != nil {
		return err
	}
	creates := id == ""
	if creates && body.ID != "" {
		return refuse(http.StatusBadRequest, "Cannot specify the ID field of a new role")
	}
	if err := checkIdentities(body.grants()); err != nil {
		return err
	}
	if creates {
		id = newUUID()
	}
	next := body
	next.ID, next.CreateIndex, next.ModifyIndex, next.Hash = id, 0, 0, nil
	_, err := a.update(q.request.Context(), "write role", body.Name, func(c *change) error {
		var err error
		if next.Policies, err = a.linksTo("policy", body.Policies); err != nil {
			return err
		}
		next.Hash = nil
		next.Hash = hashOf(next)
		old, _ := find[roleRecord](a, roleTree, id)
		if old == nil && !creates {
			return refuse(http.StatusNotFound, "Requested role not found: ACL not found")
		}
		was, index := "", uint64(0)
		if old != nil {
			was, index = old.Value.Name, old.ModifyIndex
		}
		if err := a.rename(c, "role", id, was, next.Name); err != nil {
			return err
		}
		c.put(roleTree, id, index, next)
		return nil
	})
	if err != nil {
		return err
	}
	return a.answerRole(w, q, id)
}

// linksTo finds the ids of policies or roles that are named by id or by name, each
// once.
func (a *api) linksTo(kind string, links []aclLink) ([]aclLink, error) {
	var out []aclLink
	seen := make(map[string]bool)
	for _, link := range links {
		id := link.ID
		if id == "" {
			id = a.idByName(kind, link.Name)
		}
		if id == "" || a.nameOf(kind, id) == "" {
			return nil, refuse(http.StatusBadRequest, "No such ACL %s with the ID or name %q", kind, link.ID+link.Name)
		}
		if !seen[id] {
			seen[id] = true
			out = append(out, aclLink{ID: id})
		}
	}
	return out, nil
}

// nameOf is the name that a policy or a role has now, "" when there is none of that
// id.
func (a *api) nameOf(kind, id string) string {
	if kind == "policy" {
		if p := a.policyByID(id); p != nil {
			return p.Name
		}
		return ""
	}
	if d, _ := find[roleRecord](a, roleTree, id); d != nil {
		return d.Value.Name
	}
	return ""
}

// namedLinks tells the names; what has been deleted is left out.
func (a *api) namedLinks(kind string, links []aclLink) []aclLink {
	var out []aclLink
	for _, link := range links {
		if name := a.nameOf(kind, link.ID); name != "" {
			out = append(out, aclLink{ID: link.ID, Name: name})
		}
	}
	return out
}

// identityName is what services and nodes of identities may be called, as in Consul.
var identityName = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,254}[a-z0-9])?$`)

func checkIdentities(g grants) error {
	for _, s := range g.services {
		switch {
		case s.ServiceName == "":
			return refuse(http.StatusBadRequest, "Service identity is missing the service name field on this token")
		case !identityName.MatchString(s.ServiceName):
			return refuse(http.StatusBadRequest, "Service identity %q has an invalid name. Only lowercase alphanumeric characters, '-' and '_' are allowed", s.ServiceName)
		}
	}
	for _, n := range g.nodes {
		switch {
		case n.NodeName == "":
			return refuse(http.StatusBadRequest, "Node identity is missing the node name field on this token")
		case n.Datacenter == "":
			return refuse(http.StatusBadRequest, "Node identity is missing the datacenter field on this token")
		case !identityName.MatchString(n.NodeName):
			return refuse(http.StatusBadRequest, "Node identity has an invalid name. Only lowercase alphanumeric characters, '-' and '_' are allowed")
		}
	}
	for _, t := range g.templates {
		known, ok := policyTemplates[t.TemplateName]
		switch {
		case !ok:
			return refuse(http.StatusBadRequest, "no such ACL templated policy with Name %q", t.TemplateName)
		case known.named && !identityName.MatchString(t.name()):
			return refuse(http.StatusBadRequest, "templated policy %s: validation error: want a name of lowercase alphanumeric characters, '-' and '_'", t.TemplateName)
		}
	}
	return nil
}

func (a *api) roleOf(d *document[roleRecord]) *roleRecord {
	r := d.Value
	r.CreateIndex, r.ModifyIndex = d.CreateIndex, d.ModifyIndex
	r.Policies = a.namedLinks("policy", r.Policies)
	return &r
}

func (a *api) answerRole(w http.ResponseWriter, q *query, id string) error {
	if d, _ := find[roleRecord](a, roleTree, id); d == nil {
		return refuse(http.StatusNotFound, "Requested role not found: ACL not found")
	}
	return a.answer(w, q, view{topic: registry.KeyTopic(roleTree, id), build: func() (any, uint64) {
		d, index := find[roleRecord](a, roleTree, id)
		if d == nil {
			return nil, index
		}
		return a.roleOf(d), index
	}})
}

// GET /v1/acl/role/{id}
func (a *api) roleRead(w http.ResponseWriter, q *query) error {
	id, err := q.need("role ID")
	if err == nil {
		err = a.manages(q, readable)
	}
	if err != nil {
		return err
	}
	return a.answerRole(w, q, id)
}

// GET /v1/acl/role/name/{name}
func (a *api) roleReadByName(w http.ResponseWriter, q *query) error {
	return a.byName(w, q, "role", a.answerRole)
}

// GET /v1/acl/roles?policy=
func (a *api) roleList(w http.ResponseWriter, q *query) error {
	if err := a.manages(q, readable); err != nil {
		return err
	}
	policy := q.params.Get("policy")
	return a.answer(w, q, view{topic: registry.KeysTopic(roleTree, ""), build: func() (any, uint64) {
		docs, index := findAll[roleRecord](a, roleTree, "")
		out := make([]*roleRecord, 0, len(docs))
		for _, d := range docs {
			if policy == "" || linked(d.Value.Policies, policy) {
				out = append(out, a.roleOf(d))
			}
		}
		return out, index
	}})
}

func linked(links []aclLink, id string) bool {
	for _, l := range links {
		if l.ID == id {
			return true
		}
	}
	return false
}

// DELETE /v1/acl/role/{id}. Tokens that name it go on without it.
func (a *api) roleDelete(w http.ResponseWriter, q *query) error {
	id, err := q.need("role ID")
	if err == nil {
		err = a.manages(q, writable)
	}
	if err != nil {
		return err
	}
	return a.deleteNamed(w, q, roleTree, "role", id)
}
