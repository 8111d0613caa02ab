package consul

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/weftmesh/weft/registry"
)

// aclLink names a policy or a role. Only ID is kept; Name is told as it is now.
type aclLink struct {
	ID   string
	Name string `json:",omitempty"`
}

type policyRecord struct {
	ID          string
	Name        string
	Description string
	Rules       string   `json:",omitempty"` // a list does not have it
	Datacenters []string `json:",omitempty"` // where it holds; everywhere when empty
	Hash        []byte
	CreateIndex uint64
	ModifyIndex uint64
}

type serviceIdentity struct {
	ServiceName string
	Datacenters []string `json:",omitempty"`
}

type nodeIdentity struct {
	NodeName   string
	Datacenter string
}

type templatedPolicy struct {
	TemplateName      string
	TemplateVariables *templateVariables `json:",omitempty"`
	Datacenters       []string           `json:",omitempty"`
}

type templateVariables struct{ Name string }

type roleRecord struct {
	ID                string
	Name              string
	Description       string
	Policies          []aclLink         `json:",omitempty"`
	ServiceIdentities []serviceIdentity `json:",omitempty"`
	NodeIdentities    []nodeIdentity    `json:",omitempty"`
	TemplatedPolicies []templatedPolicy `json:",omitempty"`
	Hash              []byte
	CreateIndex       uint64
	ModifyIndex       uint64
}

// nameTree keeps names that must be unique: "policy/<name>" and "role/<name>" -> id.
const nameTree = "acl/name"

// builtinPolicies are there without being written.
var builtinPolicies = []policyRecord{
	{
		ID: managementPolicy, Name: "global-management",
		Description: "A policy that allows everything",
		Rules:       "acl = \"write\"\noperator = \"write\"\nkeyring = \"write\"\nmesh = \"write\"\npeering = \"write\"\n" + everyName("write"),
		CreateIndex: 1, ModifyIndex: 1, Hash: []byte{1},
	},
	{
		ID: readOnlyPolicy, Name: "builtin/global-read-only",
		Description: "A policy that allows to read everything",
		Rules:       "acl = \"read\"\noperator = \"read\"\nkeyring = \"read\"\nmesh = \"read\"\npeering = \"read\"\n" + everyName("read"),
		CreateIndex: 1, ModifyIndex: 1, Hash: []byte{2},
	},
}

// everyName are rules for all names of all resources that have names.
func everyName(word string) string {
	var b strings.Builder
	for _, resource := range named {
		fmt.Fprintf(&b, "%s_prefix \"\" { policy = %q }\n", resource, word)
	}
	return b.String()
}

func builtinPolicy(id string) *policyRecord {
	for _, p := range builtinPolicies {
		if p.ID == id {
			return &p
		}
	}
	return nil
}

// policyByID returns nil when there is no such policy.
func (a *api) policyByID(id string) *policyRecord {
	if p := builtinPolicy(id); p != nil {
		return p
	}
	d, _ := find[policyRecord](a, policyTree, id)
	if d == nil {
		return nil
	}
	return policyOf(d)
}

func policyOf(d *document[policyRecord]) *policyRecord {
	d.Value.CreateIndex, d.Value.ModifyIndex = d.CreateIndex, d.ModifyIndex
	return &d.Value
}

// idByName returns "" when nothing of that kind has the name.
func (a *api) idByName(kind, name string) string {
	if kind == "policy" {
		for _, p := range builtinPolicies {
			if p.Name == name {
				return p.ID
			}
		}
	}
	d, _ := find[string](a, nameTree, kind+"/"+name)
	if d == nil {
		return ""
	}
	return d.Value
}

var validName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

func checkName(kind, name string) error {
	if !validName.MatchString(name) {
		return refuse(http.StatusBadRequest, "Invalid %s: invalid Name. Only alphanumeric characters, '-' and '_' are allowed, at most 128", kind)
	}
	return nil
}

// hashOf identifies content.
func hashOf(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return nil // plain structs of texts always marshal
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

// newUUID returns a random UUID (RFC 9562 §5.4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

var uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)

func isUUID(s string) bool { return uuidForm.MatchString(s) }

// PUT /v1/acl/policy
func (a *api) policyCreate(w http.ResponseWriter, q *query) error { return a.policyWrite(w, q, "") }

// PUT /v1/acl/policy/{id}
func (a *api) policyUpdate(w http.ResponseWriter, q *query) error {
	id, err := q.need("policy ID")
	if err != nil {
		return err
	}
	return a.policyWrite(w, q, id)
}

func (a *api) policyWrite(w http.ResponseWriter, q *query, id string) error {
	if err := a.manages(q, writable); err != nil {
		return err
	}
	var body policyRecord
	if err := decode(w, q, &body); err != nil {
		return err
	}
	if err := checkName("Policy", body.Name); err != nil {
		return err
	}
	if id == "" && body.ID != "" {
		return refuse(http.StatusBadRequest, "Cannot specify the ID field of a new policy")
	}
	if builtinPolicy(id) != nil {
		return refuse(http.StatusBadRequest, "Changing the builtin policy %s is not permitted", builtinPolicy(id).Name)
	}
	if _, err := parseRules(body.Rules); err != nil {
		return err
	}
	creates := id == ""
	if creates {
		id = newUUID()
	}
	next := policyRecord{ID: id, Name: body.Name, Description: body.Description, Rules: body.Rules, Datacenters: body.Datacenters}
	next.Hash = hashOf(next)
	_, err := a.update(q.request.Context(), "write policy", body.Name, func(c *change) error {
		old, _ := find[policyRecord](a, policyTree, id)
		if old == nil && !creates {
			return refuse(http.StatusNotFound, "Requested policy not found: ACL not found")
		}
		was, index := "", uint64(0)
		if old != nil {
			was, index = old.Value.Name, old.ModifyIndex
		}
		if err := a.rename(c, "policy", id, was, next.Name); err != nil {
			return err
		}
		c.put(policyTree, id, index, next)
		return nil
	})
	if err != nil {
		return err
	}
	return a.answerPolicy(w, q, id)
}

// rename moves the unique name of a document, or takes one for a new document.
func (a *api) rename(c *change, kind, id, was, name string) error {
	if was == name {
		return nil
	}
	if a.idByName(kind, name) != "" {
		return refuse(http.StatusBadRequest, "Invalid %s: A %s with Name %q already exists", strings.ToUpper(kind[:1])+kind[1:], kind, name)
	}
	c.put(nameTree, kind+"/"+name, 0, id)
	if was != "" {
		c.removeAnyway(nameTree, kind+"/"+was)
	}
	return nil
}

// answerPolicy answers what is kept now.
func (a *api) answerPolicy(w http.ResponseWriter, q *query, id string) error {
	if a.policyByID(id) == nil {
		return refuse(http.StatusNotFound, "Requested policy not found: ACL not found")
	}
	return a.answer(w, q, view{topic: registry.KeyTopic(policyTree, id), build: func() (any, uint64) {
		_, index := a.registry.Key(policyTree, id)
		return a.policyByID(id), index
	}})
}

// GET /v1/acl/policy/{id}
func (a *api) policyRead(w http.ResponseWriter, q *query) error {
	id, err := q.need("policy ID")
	if err == nil {
		err = a.manages(q, readable)
	}
	if err != nil {
		return err
	}
	return a.answerPolicy(w, q, id)
}

// GET /v1/acl/policy/name/{name}
func (a *api) policyReadByName(w http.ResponseWriter, q *query) error {
	return a.byName(w, q, "policy", a.answerPolicy)
}

func (a *api) byName(w http.ResponseWriter, q *query, kind string, answer func(http.ResponseWriter, *query, string) error) error {
	name, err := q.need(kind + " name")
	if err == nil {
		err = a.manages(q, readable)
	}
	if err != nil {
		return err
	}
	return answer(w, q, a.idByName(kind, name))
}

// GET /v1/acl/policies
func (a *api) policyList(w http.ResponseWriter, q *query) error {
	if err := a.manages(q, readable); err != nil {
		return err
	}
	return a.answer(w, q, view{topic: registry.KeysTopic(policyTree, ""), build: func() (any, uint64) {
		docs, index := findAll[policyRecord](a, policyTree, "")
		out := slices.Clone(builtinPolicies)
		for _, d := range docs {
			out = append(out, *policyOf(d))
		}
		for i := range out {
			out[i].Rules = ""
		}
		return out, index
	}})
}

// DELETE /v1/acl/policy/{id}. Tokens and roles that name it go on without it.
func (a *api) policyDelete(w http.ResponseWriter, q *query) error {
	id, err := q.need("policy ID")
	if err == nil {
		err = a.manages(q, writable)
	}
	if err != nil {
		return err
	}
	if p := builtinPolicy(id); p != nil {
		return refuse(http.StatusBadRequest, "Delete operation not permitted on the builtin %s policy", p.Name)
	}
	return a.deleteNamed(w, q, policyTree, "policy", id)
}

func (a *api) deleteNamed(w http.ResponseWriter, q *query, tree, kind, id string) error {
	_, err := a.update(q.request.Context(), "delete "+kind, id, func(c *change) error {
		old, _ := find[struct{ Name string }](a, tree, id)
		if old != nil {
			c.remove(tree, id, old.ModifyIndex)
			c.removeAnyway(nameTree, kind+"/"+old.Value.Name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return a.done(w, q)
}

// identityRules are the rules that identities and templates stand for.
func (a *api) identityRules(g *grants) (out []string) {
	for _, s := range g.services {
		if a.here(s.Datacenters) {
			out = append(out, serviceRules(s.ServiceName))
		}
	}
	for _, n := range g.nodes {
		if n.Datacenter == a.registry.Datacenter() {
			out = append(out, nodeRules(n.NodeName))
		}
	}
	for _, t := range g.templates {
		if known := policyTemplates[t.TemplateName]; known.rules != nil && a.here(t.Datacenters) {
			out = append(out, known.rules(t.name()))
		}
	}
	return out
}

func (t *templatedPolicy) name() string {
	if t.TemplateVariables == nil {
		return ""
	}
	return t.TemplateVariables.Name
}

// serviceRules let a service register itself and its sidecar, and find the others.
// Names are checked (see identityName): they cannot end the text that they are in.
func serviceRules(name string) string {
	return fmt.Sprintf("service %q { policy = \"write\" }\nservice %q { policy = \"write\" }\n", name, name+"-sidecar-proxy") +
		"service_prefix \"\" { policy = \"read\" }\nnode_prefix \"\" { policy = \"read\" }\n"
}

// nodeRules let a node register itself, and find services.
func nodeRules(name string) string {
	return fmt.Sprintf("node %q { policy = \"write\" }\nservice_prefix \"\" { policy = \"read\" }\n", name)
}

// template is a policy with a hole for a name.
type template struct {
	named       bool
	description string
	rules       func(name string) string
}

// policyTemplates are those of Consul's templated policies that this server has.
var policyTemplates = map[string]template{
	"builtin/service": {true, "What a service needs to register itself and find others", serviceRules},
	"builtin/node":    {true, "What a node needs to register itself", nodeRules},
	"builtin/dns": {false, "What it takes to answer DNS", func(string) string {
		return "node_prefix \"\" { policy = \"read\" }\nservice_prefix \"\" { policy = \"read\" }\nquery_prefix \"\" { policy = \"read\" }\n"
	}},
}

// templateRecord is a template as it is told.
type templateRecord struct {
	TemplateName string
	Schema       string
	Template     string
	Description  string
}

func (t template) record(name string) templateRecord {
	r := templateRecord{TemplateName: name, Template: t.rules("${name}"), Description: t.description}
	if t.named {
		r.Schema = `{"type":"object","properties":{"name":{"type":"string"}},"required":["name"]}`
	}
	return r
}

// GET /v1/acl/templated-policies
func (a *api) templateList(w http.ResponseWriter, q *query) error {
	if err := a.manages(q, readable); err != nil {
		return err
	}
	out := make(map[string]templateRecord, len(policyTemplates))
	for name, t := range policyTemplates {
		out[name] = t.record(name)
	}
	return a.fixed(w, q, out)
}

// GET /v1/acl/templated-policy/name/{name}
func (a *api) templateRead(w http.ResponseWriter, q *query) error {
	if err := a.manages(q, readable); err != nil {
		return err
	}
	t, known := policyTemplates[q.argument]
	if !known {
		return refuse(http.StatusNotFound, "Invalid templated policy Name: %s: ACL not found", q.argument)
	}
	return a.fixed(w, q, t.record(q.argument))
}

// POST /v1/acl/templated-policy/preview/{name} is the policy that a template makes.
func (a *api) templatePreview(w http.ResponseWriter, q *query) error {
	if err := a.manages(q, readable); err != nil {
		return err
	}
	var body templateVariables
	if err := decodeOptional(w, q, &body); err != nil {
		return err
	}
	t := templatedPolicy{TemplateName: q.argument, TemplateVariables: &body}
	if err := checkIdentities(grants{templates: []templatedPolicy{t}}); err != nil {
		return err
	}
	return a.fixed(w, q, synthetic(policyTemplates[q.argument].rules(body.Name), nil))
}

// synthetic is the policy that an identity or a template stands for.
func synthetic(text string, datacenters []string) policyRecord {
	sum := sha256.Sum256([]byte(text))
	id := hex.EncodeToString(sum[:16])
	return policyRecord{
		ID: id, Name: "synthetic-policy-" + id, Description: "synthetic policy", Rules: text, Datacenters: datacenters, Hash: sum[:],
		CreateIndex: 1, ModifyIndex: 1,
	}
}
