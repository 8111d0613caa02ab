package consul

import (
	"context"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// preparedQuery says which instances of which service to give to whoever executes it
// by its id or its name. Its document is locked by its session, if it has one, and so
// goes when that ends.
type preparedQuery struct {
	ID       string
	Name     string
	Session  string
	Token    string // of those that are sent and told: with whose rights it is executed; "": the sender's
	Service  serviceQuery
	DNS      queryDNS
	Template queryTemplate

	CreateIndex uint64
	ModifyIndex uint64

	accessor string // of those that are kept: names Token, which is a secret
}

// keptPrepared is a query as it is kept.
type keptPrepared struct {
	preparedQuery
	TokenAccessor string `json:",omitempty"`
}

type serviceQuery struct {
	Service        string
	Namespace      string `json:",omitempty"`
	Partition      string `json:",omitempty"`
	Near           string
	Failover       queryFailover
	IgnoreCheckIDs []string
	OnlyPassing    bool
	Tags           []string // "!tag": without it
	NodeMeta       map[string]string
	ServiceMeta    map[string]string
	Connect        bool
}

// queryFailover is where to look when nothing was found. There are no other
// datacenters, so that they count as empty; other namespaces are looked at.
type queryFailover struct {
	NearestN    int
	Datacenters []string
	Targets     []failoverTarget
}

type failoverTarget struct {
	Peer       string
	Datacenter string
	Partition  string `json:",omitempty"`
	Namespace  string `json:",omitempty"`
}

type queryDNS struct{ TTL string }

// queryTemplate makes a query one for all names that begin with its own; the texts of
// the query then may have ${name.full} and the like in them.
type queryTemplate struct {
	Type            string // "name_prefix_match", or "" for none
	Regexp          string
	RemoveEmptyTags bool
}

const prefixTemplate = "name_prefix_match"

// executed is the answer of an execution.
type executed struct {
	Service    string
	Namespace  string `json:",omitempty"`
	Nodes      []entryRecord
	DNS        queryDNS
	Datacenter string
	Failovers  int
}

// Queries executes prepared queries by name, for package dns.
type Queries struct {
	api     *api // of which only the registry, access control and connectables are used
	current atomic.Pointer[querySet]
}

// NewQueries returns the prepared queries that are kept in a registry, with the access
// control that New has for the same ACL: who asks DNS has no token, and so sees what
// the anonymous one may, or that of the query.
func NewQueries(r *registry.Registry, c *ACL) *Queries { return &Queries{api: NewAccess(r, c).api} }

// querySet is every query, as it was at an index. It is immutable.
type querySet struct {
	index     uint64
	list      []*preparedQuery // by id
	byID      map[string]*preparedQuery
	byName    map[string]*preparedQuery // lower case; no templates
	templates []*preparedQuery          // longest name first
}

var queriesTopic = registry.KeysTopic(queryTree, "")

// all returns the queries that there are.
func (s *Queries) all() *querySet {
	r := s.api.registry
	index := r.Wait(context.Background(), queriesTopic, 0)
	if now := s.current.Load(); now != nil && now.index == index {
		return now
	}
	kept, index := r.Keys(queryTree, "")
	set := &querySet{index: index, byID: make(map[string]*preparedQuery), byName: make(map[string]*preparedQuery)}
	for _, e := range kept {
		k := new(keptPrepared)
		if json.Unmarshal(e.Value, k) != nil {
			continue // this server wrote it: an older or newer one that means something else by it
		}
		p := &k.preparedQuery
		p.CreateIndex, p.ModifyIndex, p.Session, p.accessor = e.CreateIndex, e.ModifyIndex, e.Session, k.TokenAccessor
		set.list = append(set.list, p)
		set.byID[p.ID] = p
		switch {
		case p.Template.Type != "":
			set.templates = append(set.templates, p)
		case p.Name != "":
			set.byName[strings.ToLower(p.Name)] = p
		}
	}
	slices.SortStableFunc(set.templates, func(x, y *preparedQuery) int { return len(y.Name) - len(x.Name) })
	s.current.Store(set)
	return set
}

// find returns the query that an id or a name means, with its template filled in;
// nil when there is none.
func (s *Queries) find(idOrName string) *preparedQuery {
	all := s.all()
	p := all.byID[idOrName]
	if p == nil {
		p = all.byName[strings.ToLower(idOrName)]
	}
	if p != nil {
		if p.Template.Type == "" {
			return p
		}
		return p.fill(idOrName)
	}
	for _, t := range all.templates {
		if len(idOrName) >= len(t.Name) && strings.EqualFold(idOrName[:len(t.Name)], t.Name) {
			return t.fill(idOrName)
		}
	}
	return nil
}

// interpolation is what stands for something else in the texts of a template.
var interpolation = regexp.MustCompile(`\$\{\s*([^{}]*?)\s*\}`)

var matchCall = regexp.MustCompile(`^match\(\s*([0-9]{1,4})\s*\)$`)

// interpolate replaces ${name.full}, ${name.prefix}, ${name.suffix}, ${match(N)} and
// ${agent.segment}, and returns the first that is none of these.
func interpolate(text, full, prefix string, matched []string) (_, unknown string) {
	out := interpolation.ReplaceAllStringFunc(text, func(found string) string {
		word := interpolation.FindStringSubmatch(found)[1]
		call := matchCall.FindStringSubmatch(word)
		switch {
		case word == "name.full":
			return full
		case word == "name.prefix":
			return prefix
		case word == "name.suffix":
			return full[len(prefix):]
		case word == "agent.segment":
			return ""
		case call != nil:
			if i, _ := strconv.Atoi(call[1]); i < len(matched) {
				return matched[i]
			}
			return ""
		}
		unknown = found
		return ""
	})
	return out, unknown
}

// fill is a template as the query that a name makes of it.
func (p *preparedQuery) fill(name string) *preparedQuery {
	out := *p
	var matched []string
	if re, err := regexp.Compile(p.Template.Regexp); err == nil && p.Template.Regexp != "" {
		matched = re.FindStringSubmatch(name)
	}
	prefix := p.Name
	if len(prefix) > len(name) || !strings.EqualFold(name[:len(prefix)], prefix) { // it was asked for by its id
		prefix = ""
	} else {
		prefix = name[:len(prefix)]
	}
	out.Service.each(&out.DNS, func(s string) string {
		s, _ = interpolate(s, name, prefix, matched)
		return s
	})
	if p.Template.RemoveEmptyTags {
		out.Service.Tags = slices.DeleteFunc(out.Service.Tags, func(tag string) bool { return tag == "" })
	}
	return &out
}

// each replaces every text that a template may have something to fill in. Lists and
// maps are made anew.
func (s *serviceQuery) each(d *queryDNS, replace func(string) string) {
	for _, text := range []*string{&s.Service, &s.Namespace, &s.Near, &d.TTL} {
		*text = replace(*text)
	}
	for _, list := range []*[]string{&s.Tags, &s.IgnoreCheckIDs, &s.Failover.Datacenters} {
		*list = slices.Clone(*list)
		for i := range *list {
			(*list)[i] = replace((*list)[i])
		}
	}
	for _, labels := range []*map[string]string{&s.NodeMeta, &s.ServiceMeta} {
		*labels = maps.Clone(*labels)
		for k, v := range *labels {
			(*labels)[k] = replace(v)
		}
	}
}

// found is an instance that fits a query, with its node.
type found struct {
	in   *weft.Instance
	node *weft.Node
}

// run returns what fits a query: the nearest to a node first, or, without one, in
// random order. failovers counts the other places that were asked.
func (s *Queries) run(p *preparedQuery, from string, connect bool) (list []found, failovers int) {
	name := weft.NewServiceName(p.Service.Namespace, p.Service.Service)
	list = s.fitting(p, name, connect, false)
	f := &p.Service.Failover
	places := len(f.Datacenters)
	for _, t := range f.Targets {
		places++
		here := t.Peer == "" && (t.Datacenter == "" || t.Datacenter == s.api.registry.Datacenter())
		if len(list) > 0 || !here || t.Namespace == "" {
			continue
		}
		list, failovers = s.fitting(p, weft.NewServiceName(t.Namespace, name.Name), connect, false), places
	}
	if len(list) == 0 {
		list, failovers = s.fitting(p, name, connect, true), places
	}
	rand.Shuffle(len(list), func(i, k int) { list[i], list[k] = list[k], list[i] })
	if from == "" {
		from = p.Service.Near
	}
	nearTo(s.api, from, list, func(f *found) string { return f.in.Node })
	return list, failovers
}

// fitting returns the instances of a service that are as a query wants them, and well,
// or else kept by the service's guard.
func (s *Queries) fitting(p *preparedQuery, name weft.ServiceName, connect, kept bool) (out []found) {
	want := &p.Service
	instances, _ := s.api.registry.Instances(name)
	if connect || want.Connect {
		instances, _, _ = s.api.connectable(name).list()
	}
	worst := weft.Warning
	if want.OnlyPassing {
		worst = weft.Passing
	}
	nodes := s.api.newNodeCache()
	for _, in := range instances {
		n := nodes.get(in.Node)
		if n == nil || !carries(n.Labels, want.NodeMeta) || !carries(in.Labels, want.ServiceMeta) || !hasTags(in.Tags, want.Tags) {
			continue
		}
		if max(want.health(in.Checks), want.health(n.Checks)) <= worst || kept && s.api.keeps(in) {
			out = append(out, found{in, n})
		}
	}
	return out
}

// health is the worst of checks that are not to be ignored.
func (s *serviceQuery) health(checks []weft.Check) weft.Health {
	h := weft.Passing
	for i := range checks {
		if !slices.Contains(s.IgnoreCheckIDs, checks[i].ID) {
			h = max(h, checks[i].Status)
		}
	}
	return h
}

// hasTags says whether tags are as wanted: there, or with "!" before, not there.
func hasTags(tags, want []string) bool {
	for _, w := range want {
		bare, without := strings.CutPrefix(w, "!")
		if containsFold(tags, bare) == without {
			return false
		}
	}
	return true
}

// Execute returns the instances that a query gives, best first.
func (s *Queries) Execute(name string, limit int) (instances []*weft.Instance, ttl time.Duration, ok bool) {
	p := s.find(name)
	if p == nil {
		return nil, 0, false
	}
	ttl, _ = time.ParseDuration(p.DNS.TTL) // 0 without one, or when a template made none
	ttl = max(ttl, 0)
	var reader *permissions
	if s.api.acl != nil {
		var err error
		if reader, err = s.api.resolve(context.Background(), anonymousSecret); err == nil {
			reader, err = s.reader(p, reader)
		}
		if err != nil { // its token has ended: nobody sees anything by it
			return nil, ttl, true
		}
	}
	list, _ := s.run(p, "", false)
	for _, f := range seenBy(reader, list) {
		if len(instances) == limit {
			break
		}
		instances = append(instances, f.in)
	}
	return instances, ttl, true
}

// reader returns with whose rights a query is executed: those of its token, or else the
// sender's.
func (s *Queries) reader(p *preparedQuery, sender *permissions) (*permissions, error) {
	if s.api.acl == nil || p.accessor == "" {
		return sender, nil
	}
	return s.api.resolveAccessor(p.accessor)
}

// seenBy leaves out what a reader may not see; nil sees everything.
func seenBy(reader *permissions, list []found) []found {
	if reader == nil || reader.management {
		return list
	}
	return slices.DeleteFunc(list, func(f found) bool {
		return !reader.allows(serviceResource, f.in.Service.Name, readable) || !reader.allows(nodeResource, f.node.Name, readable)
	})
}

func (a *api) queryEndpoints() endpoints {
	return endpoints{
		"query":  {get: a.queryList, post: a.queryCreate},
		"query/": {get: a.queryGet, put: a.queryUpdate, delete: a.queryDelete},
	}
}

// shownQuery is a query as the sender of a request may see it: its token is told to
// those only who may do everything.
func (a *api) shownQuery(q *query, p *preparedQuery) *preparedQuery {
	if p.accessor == "" {
		return p
	}
	shown := *p
	shown.Token = hidden
	if a.acl != nil && q.acl.management {
		if t := a.tokenByAccessor(p.accessor); t != nil {
			shown.Token = a.acl.unsealed(t.Sealed, p.accessor)
		}
	}
	return &shown
}

// mayQuery says whether the sender may have access to a query. One without a name is
// known to those who know its id, who may do everything with it.
func (q *query) mayQuery(p *preparedQuery, want access) bool {
	return p.Name == "" && p.Template.Type == "" || q.may(queryResource, p.Name, want)
}

// GET /v1/query
func (a *api) queryList(w http.ResponseWriter, q *query) error {
	return a.answer(w, q, view{topic: queriesTopic, part: true, build: func() (any, uint64) {
		all := a.queries.all()
		out := make([]*preparedQuery, 0, len(all.list))
		for _, p := range all.list {
			if p.Name == "" && p.Template.Type == "" && q.acl != nil && !q.acl.management || !q.mayQuery(p, readable) {
				q.filtered = true
				continue
			}
			out = append(out, a.shownQuery(q, p))
		}
		return out, all.index
	}})
}

var errNoQuery = refuse(http.StatusNotFound, "Query not found")

// GET /v1/query/{id}, /v1/query/{id or name}/execute, /v1/query/{id or name}/explain
func (a *api) queryGet(w http.ResponseWriter, q *query) error {
	if name, ok := strings.CutSuffix(q.argument, "/execute"); ok {
		return a.queryExecute(w, q, name, false)
	}
	if name, ok := strings.CutSuffix(q.argument, "/execute/connect"); ok {
		return a.queryExecute(w, q, name, true)
	}
	if name, ok := strings.CutSuffix(q.argument, "/explain"); ok {
		return a.queryExplain(w, q, name)
	}
	id := q.argument
	var got *preparedQuery
	body, index, err := a.settle(q, view{topic: registry.KeyTopic(queryTree, id), build: func() (any, uint64) {
		all := a.queries.all()
		if got = all.byID[id]; got == nil {
			return nil, a.registry.Wait(q.request.Context(), registry.KeyTopic(queryTree, id), 0)
		}
		return []*preparedQuery{a.shownQuery(q, got)}, got.ModifyIndex
	}})
	switch {
	case err != nil:
		return err
	case got == nil:
		q.setHeaders(w, index)
		return errNoQuery
	case !q.mayQuery(got, readable):
		return q.lacks(queryResource, got.Name, readable)
	}
	q.setHeaders(w, index)
	writeJSON(w, http.StatusOK, body)
	return nil
}

// queryExplain answers the query that a name means, with its template filled in.
func (a *api) queryExplain(w http.ResponseWriter, q *query, name string) error {
	p := a.queries.find(name)
	switch {
	case p == nil:
		return errNoQuery
	case !q.mayQuery(p, readable):
		return q.lacks(queryResource, p.Name, readable)
	}
	return a.fixed(w, q, map[string]any{"Query": a.shownQuery(q, p)})
}

// queryExecute needs no right to the query: what it shows is what its token, or else
// the sender's, may see.
func (a *api) queryExecute(w http.ResponseWriter, q *query, name string, connect bool) error {
	limit, err := q.number("limit")
	if err != nil {
		return err
	}
	if q.params.Has("connect") {
		if connect, err = q.flag("connect"); err != nil {
			return err
		}
	}
	p := a.queries.find(name)
	if p == nil {
		return errNoQuery
	}
	reader, err := a.queries.reader(p, q.acl)
	if err != nil {
		return err
	}
	all, failovers := a.queries.run(p, a.nearOf(q), connect)
	n := len(all)
	list := seenBy(reader, all)
	q.filtered = len(list) < n
	if limit > 0 && uint64(len(list)) > limit {
		list = list[:limit]
	}
	instances := make([]*weft.Instance, len(list))
	for i, f := range list {
		instances[i] = f.in
	}
	tellGuard(w, a.guardOf(instances))
	out := executed{Service: p.Service.Service, DNS: p.DNS, Datacenter: a.registry.Datacenter(), Failovers: failovers, Namespace: noDefault(p.Service.Namespace)}
	out.Nodes = make([]entryRecord, 0, len(list))
	for _, f := range list {
		out.Nodes = append(out.Nodes, entryRecord{Node: a.nodeRecord(f.node), Service: newServiceRecord(f.in), Checks: append(nodeChecks(f.node), instanceChecks(f.in)...)})
	}
	return a.fixed(w, q, out)
}

// nearOf is the node that a request wants to be near; "_ip" is the one that it came
// from, if that is a node.
func (a *api) nearOf(q *query) string {
	from := q.params.Get("near")
	if from != "_ip" {
		return from
	}
	host, _, _ := net.SplitHostPort(q.request.RemoteAddr)
	nodes, _ := a.registry.Nodes()
	for _, n := range nodes {
		if n.Address == host {
			return n.Name
		}
	}
	return ""
}

// readQuery reads a definition strictly, and checks what it says by itself.
func (a *api) readQuery(w http.ResponseWriter, q *query) (*preparedQuery, error) {
	raw, err := readBody(w, q, maxBody)
	if err != nil {
		return nil, err
	}
	return a.parseQueryBody(raw)
}

func (a *api) parseQueryBody(raw []byte) (*preparedQuery, error) {
	p := &preparedQuery{}
	if err := decodeStrict(raw, p); err != nil {
		return nil, err
	}
	p.CreateIndex, p.ModifyIndex = 0, 0
	return p, p.check(a.registry.Datacenter())
}

func (p *preparedQuery) check(dc string) error {
	bad := func(field, format string, args ...any) error { return fieldError(field, format, args...) }
	f := &p.Service.Failover
	switch {
	case p.Service.Service == "":
		return bad("Service.Service", "Must provide a Service name to query")
	case len(p.Name) > 512 || strings.ContainsAny(p.Name, "/\x00"):
		return bad("Name", "want at most 512 bytes without \"/\"")
	case isUUID(p.Name):
		return bad("Name", "looks like an ID")
	case f.NearestN < 0:
		return bad("Service.Failover.NearestN", "must not be negative")
	case len(f.Targets) > 0 && (f.NearestN > 0 || len(f.Datacenters) > 0):
		return bad("Service.Failover.Targets", "cannot stand beside NearestN or Datacenters")
	case p.Template.Type == "" && p.Template.Regexp != "":
		return bad("Template.Regexp", "needs a Template.Type")
	case p.Template.Type != "" && p.Template.Type != prefixTemplate:
		return bad("Template.Type", "unknown %q, want %s", p.Template.Type, prefixTemplate)
	}
	if err := onePartition("Service.Partition", p.Service.Partition); err != nil {
		return refuse(http.StatusBadRequest, "%v", err)
	}
	if _, err := regexp.Compile(p.Template.Regexp); err != nil {
		return bad("Template.Regexp", "%v", err)
	}
	if p.Template.Type == "" {
		return p.checkTTL()
	}
	var unknown string
	trial := *p
	trial.Service.each(&trial.DNS, func(s string) string {
		out, u := interpolate(s, "", "", nil)
		if u != "" {
			unknown = u
		}
		return out
	})
	if unknown != "" {
		return bad("Template", "%s is not name.full, name.prefix, name.suffix, match(N) or agent.segment", unknown)
	}
	if strings.Contains(p.DNS.TTL, "${") {
		return nil
	}
	return p.checkTTL()
}

func (p *preparedQuery) checkTTL() error {
	if p.DNS.TTL == "" {
		return nil
	}
	if d, err := time.ParseDuration(p.DNS.TTL); err != nil || d < 0 {
		return fieldError("DNS.TTL", "want a duration such as \"10s\", not %q", p.DNS.TTL)
	}
	return nil
}

// POST /v1/query
func (a *api) queryCreate(w http.ResponseWriter, q *query) error {
	p, err := a.readQuery(w, q)
	if err != nil {
		return err
	}
	if p.ID != "" {
		return refuse(http.StatusBadRequest, "ID must be empty when creating a new prepared query")
	}
	p.ID = newUUID()
	if err := a.writeQuery(q, p.ID, p); err != nil {
		return err
	}
	b, err := q.marshal(map[string]string{"ID": p.ID})
	if err == nil {
		writeJSON(w, http.StatusOK, b)
	}
	return err
}

// PUT /v1/query/{id}
func (a *api) queryUpdate(w http.ResponseWriter, q *query) error {
	id, err := q.need("query ID")
	if err != nil {
		return err
	}
	p, err := a.readQuery(w, q)
	if err != nil {
		return err
	}
	if p.ID != "" && p.ID != id {
		return refuse(http.StatusBadRequest, "ID: the path says %q", id)
	}
	p.ID = id
	return a.writeQuery(q, id, p)
}

// DELETE /v1/query/{id}
func (a *api) queryDelete(w http.ResponseWriter, q *query) error {
	id, err := q.need("query ID")
	if err != nil {
		return err
	}
	return a.writeQuery(q, id, nil)
}

// writeQuery writes a query, or deletes it when p is nil. A new one has a new id.
func (a *api) writeQuery(q *query, id string, p *preparedQuery) error {
	creates := q.request.Method == http.MethodPost
	if p != nil && !q.mayQuery(p, writable) {
		return q.lacks(queryResource, p.Name, writable)
	}
	if err := a.lend(q, p); err != nil {
		return err
	}
	_, err := a.update(q.request.Context(), "write prepared query", id, func(c *change) error {
		all := a.queries.all()
		old := all.byID[id]
		switch {
		case creates:
		case old == nil:
			return errNoQuery
		case !q.mayQuery(old, writable):
			return q.lacks(queryResource, old.Name, writable)
		}
		if p != nil && p.Session != "" {
			if session, _ := a.registry.Session(p.Session); session == nil {
				return refuse(http.StatusBadRequest, "invalid session %q", p.Session)
			}
		}
		if err := a.claim(c, all, id, old, p); err != nil {
			return err
		}
		a.dropClaims(c, all, p.claims())
		c.replaceQuery(id, old, p)
		return nil
	})
	return err
}

// lend finds the token that a query brings its rights from. Without access control
// tokens are not looked at.
func (a *api) lend(q *query, p *preparedQuery) error {
	if p == nil || p.Token == "" || p.Token == hidden || a.acl == nil {
		return nil
	}
	lender, err := a.resolve(q.request.Context(), p.Token)
	if err != nil {
		return err
	}
	p.accessor = lender.accessor
	return nil
}

// replaceQuery writes a query in place of an old one, and binds it to its session: who
// has it locked keeps it through other writes.
func (c *change) replaceQuery(id string, old, p *preparedQuery) {
	var index uint64
	var holder string
	if old != nil {
		index, holder = old.ModifyIndex, old.Session
	}
	if p == nil {
		c.remove(queryTree, id, index)
		return
	}
	next := keptPrepared{preparedQuery: *p, TokenAccessor: p.accessor}
	if old != nil && p.Token == hidden { // somebody sends back what they were shown
		next.TokenAccessor = old.accessor
	}
	next.Token, next.Session = "", "" // the lock says it
	c.put(queryTree, id, index, &next)
	if holder == p.Session {
		return
	}
	if holder != "" {
		c.bind("unlock", queryTree, id, holder, &next)
	}
	if p.Session != "" {
		c.bind("lock", queryTree, id, p.Session, &next)
	}
}

// claim moves a query's name, so that no two answer for the same. The name of a query
// that went with its session is free; its claim stays until somebody else wants it, or
// the next query is written.
func (a *api) claim(c *change, all *querySet, id string, old, p *preparedQuery) error {
	was, is := old.claims(), p.claims()
	if was == is {
		return nil
	}
	if was != "" {
		c.removeAnyway(nameTree, was)
	}
	if is == "" {
		return nil
	}
	index := uint64(0)
	if d, _ := find[string](a, nameTree, is); d != nil {
		if other := all.byID[d.Value]; other != nil {
			return refuse(http.StatusBadRequest, "a prepared query of the name %q is there already: %s", p.Name, other.ID)
		}
		index = d.ModifyIndex
	}
	c.put(nameTree, is, index, id)
	return nil
}

// dropClaims removes, as far as there is room, claims of queries that went with their
// sessions, but for one that is being written.
func (a *api) dropClaims(c *change, all *querySet, but string) {
	claims, _ := findAll[string](a, nameTree, "query/")
	for _, d := range claims {
		if all.byID[d.Value] == nil && d.Key != but && len(c.ops) < maxTxnOps/2 {
			c.remove(nameTree, d.Key, d.ModifyIndex)
		}
	}
}

// claims is the key of a query's name; "" for none.
func (p *preparedQuery) claims() string {
	if p == nil || p.Name == "" && p.Template.Type == "" {
		return ""
	}
	return "query/" + p.Template.Type + "/" + strings.ToLower(p.Name)
}
