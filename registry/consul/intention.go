package consul

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// serviceIntentions is who may call one service; the service "*" is every one of the
// namespace. It is kept as a config entry, and shown as intentions, too.
type serviceIntentions struct {
	entryHead
	Sources []sourceIntention
}

type sourceIntention struct {
	Name        string
	Namespace   string                `json:",omitempty"`
	Partition   string                `json:",omitempty"`
	Action      string                `json:",omitempty"` // allow or deny; none with Permissions
	Permissions []intentionPermission `json:",omitempty"`
	Precedence  int                   // 9 to 5: the greatest decides
	Type        string
	Description string `json:",omitempty"`

	LegacyID         string            `json:",omitempty"` // of an intention that has one
	LegacyMeta       map[string]string `json:",omitempty"`
	LegacyCreateTime *time.Time        `json:",omitempty"`
	LegacyUpdateTime *time.Time        `json:",omitempty"`
}

type intentionPermission struct {
	Action string
	HTTP   *intentionHTTP `json:",omitempty"`
}

type intentionHTTP struct {
	PathExact  string            `json:",omitempty"`
	PathPrefix string            `json:",omitempty"`
	Header     []intentionHeader `json:",omitempty"`
	Methods    []string          `json:",omitempty"`
}

type intentionHeader struct {
	Name    string
	Present bool   `json:",omitempty"`
	Exact   string `json:",omitempty"`
	Prefix  string `json:",omitempty"`
	Suffix  string `json:",omitempty"`
	Invert  bool   `json:",omitempty"`
}

// intentionRecord is one source of one service, as the intention endpoints show it.
type intentionRecord struct {
	ID              string `json:",omitempty"`
	Description     string `json:",omitempty"`
	SourceNS        string
	SourceName      string
	DestinationNS   string
	DestinationName string
	SourceType      string
	Action          string                `json:",omitempty"`
	Permissions     []intentionPermission `json:",omitempty"`
	Meta            map[string]string     `json:",omitempty"`
	Precedence      int
	CreatedAt       time.Time
	UpdatedAt       time.Time
	Hash            []byte `json:",omitempty"`
	CreateIndex     uint64
	ModifyIndex     uint64
}

// maxSources bounds one entry.
const maxSources = 1024

func (s *sourceIntention) source() weft.ServiceName { return weft.NewServiceName(s.Namespace, s.Name) }

// normalise checks the sources, fills in their precedence, and sorts them by it.
func (e *serviceIntentions) normalise(string) error {
	if len(e.Sources) == 0 {
		return fieldError("Sources", "at least one source is required")
	}
	if len(e.Sources) > maxSources {
		return fieldError("Sources", "more than %d", maxSources)
	}
	seen := make(map[weft.ServiceName]bool)
	for i := range e.Sources {
		s := &e.Sources[i]
		at := fmt.Sprintf("Sources[%d]", i)
		if err := s.check(at); err != nil {
			return err
		}
		if seen[s.source()] {
			return fmt.Errorf("%s.Name: %q is there twice", at, s.Name)
		}
		seen[s.source()] = true
		s.Precedence = precedence(s.Name, e.Name)
		s.Type = "consul"
	}
	slices.SortStableFunc(e.Sources, func(a, b sourceIntention) int { return cmp.Compare(b.Precedence, a.Precedence) })
	return nil
}

// precedence is Consul's: a destination that is named counts more than a source.
func precedence(source, destination string) int {
	p := 9
	if source == "*" {
		p--
	}
	if destination == "*" {
		p -= 3
	}
	return p
}

func (s *sourceIntention) check(at string) error {
	switch {
	case s.Name == "":
		return fmt.Errorf("%s.Name: is required", at)
	case strings.Contains(s.Name, "*") && s.Name != "*" || strings.ContainsAny(s.Name+s.Namespace, "/\x00"):
		return fmt.Errorf("%s.Name: \"*\" must stand alone, as whole name", at)
	case strings.Contains(s.Namespace, "*") || s.Name == "*" && noDefault(s.Namespace) != "":
		return fmt.Errorf("%s.Namespace: weft does not carry out wildcards of one namespace: \"*\" is everybody", at)
	case s.Type != "" && s.Type != "consul":
		return fmt.Errorf("%s.Type: want consul", at)
	case len(s.Description) > 512:
		return fmt.Errorf("%s.Description: is over 512 bytes", at)
	case len(s.Permissions) > 0 && s.Action != "":
		return fmt.Errorf("%s.Action: must be omitted if Permissions are specified", at)
	case len(s.Permissions) == 0 && s.Action != "allow" && s.Action != "deny":
		return fmt.Errorf("%s.Action: must be set to 'allow' or 'deny'", at)
	}
	if err := onePartition(at+".Partition", s.Partition); err != nil {
		return err
	}
	for i := range s.Permissions {
		if err := s.Permissions[i].check(fmt.Sprintf("%s.Permissions[%d]", at, i)); err != nil {
			return err
		}
	}
	return nil
}

func (p *intentionPermission) check(at string) error {
	if p.Action != "allow" && p.Action != "deny" {
		return fmt.Errorf("%s.Action: must be set to 'allow' or 'deny'", at)
	}
	h := p.HTTP
	if h == nil || h.PathExact == "" && h.PathPrefix == "" && len(h.Header) == 0 && len(h.Methods) == 0 {
		return fmt.Errorf("%s.HTTP: must say something of the request", at)
	}
	if h.PathExact != "" && h.PathPrefix != "" {
		return fmt.Errorf("%s.HTTP: only one of PathExact and PathPrefix can be set", at)
	}
	for field, path := range map[string]string{"PathExact": h.PathExact, "PathPrefix": h.PathPrefix} {
		if path != "" && path[0] != '/' || strings.ContainsAny(path, "*{}") {
			return fmt.Errorf("%s.HTTP.%s: want a path that begins with \"/\" and has no \"*\" or braces", at, field)
		}
	}
	for i, header := range h.Header {
		field := fmt.Sprintf("%s.HTTP.Header[%d]", at, i)
		switch {
		case header.Name == "" || count(header.Present, header.Exact != "", header.Prefix != "", header.Suffix != "") != 1:
			return fmt.Errorf("%s: want a Name, and one of Present, Exact, Prefix and Suffix", field)
		case strings.Contains(header.Exact+header.Prefix+header.Suffix, "*"):
			return fmt.Errorf("%s: weft does not carry out a \"*\" in a value", field)
		}
	}
	for i, method := range h.Methods {
		if !methodForm.MatchString(method) {
			return fmt.Errorf("%s.HTTP.Methods[%d]: %q is no method", at, i, method)
		}
	}
	return nil
}

// record shows a source as an intention.
func (e *serviceIntentions) record(s *sourceIntention) intentionRecord {
	r := intentionRecord{
		ID: s.LegacyID, Description: s.Description, SourceNS: s.source().Namespace, SourceName: s.Name,
		DestinationNS: e.namespace(), DestinationName: e.Name, SourceType: "consul",
		Action: s.Action, Permissions: s.Permissions, Precedence: s.Precedence, Meta: e.Meta,
		CreateIndex: e.CreateIndex, ModifyIndex: e.ModifyIndex,
	}
	if s.LegacyID != "" {
		r.Meta = s.LegacyMeta
	}
	if s.LegacyCreateTime != nil && s.LegacyUpdateTime != nil {
		r.CreatedAt, r.UpdatedAt = *s.LegacyCreateTime, *s.LegacyUpdateTime
	}
	r.Hash = hashOf([]any{r.SourceNS, r.SourceName, r.DestinationNS, r.DestinationName, r.Action, r.Permissions, r.Description, r.Meta})
	return r
}

// intentions are all of them, those that decide first first.
func (s *entrySet) intentions() []intentionRecord {
	out := []intentionRecord{}
	for _, e := range all[*serviceIntentions](s, serviceIntentionsKind) {
		for i := range e.Sources {
			out = append(out, e.record(&e.Sources[i]))
		}
	}
	slices.SortStableFunc(out, func(a, b intentionRecord) int {
		return cmp.Or(cmp.Compare(b.Precedence, a.Precedence), cmp.Compare(a.SourceName, b.SourceName), cmp.Compare(a.DestinationName, b.DestinationName))
	})
	return out
}

func fits(pattern, name string) bool { return pattern == "*" || pattern == name }

func (r *intentionRecord) matches(source, destination weft.ServiceName) bool {
	return (r.SourceName == "*" || r.SourceName == source.Name && r.SourceNS == source.Namespace) &&
		fits(r.DestinationName, destination.Name) && r.DestinationNS == destination.Namespace
}

// decide says whether a connection is allowed by the intentions, and by which.
// Permissions look at requests, of which a connection has none yet: permissive says
// whether they count as allowed.
func (s *entrySet) decide(source, destination weft.ServiceName, byDefault, permissive bool) (allowed bool, reason string) {
	for _, r := range s.intentions() {
		if !r.matches(source, destination) {
			continue
		}
		if len(r.Permissions) > 0 {
			return permissive, "Matched intention with L7 permissions: " + r.SourceName + " => " + r.DestinationName
		}
		return r.Action == "allow", "Matched intention: " + strings.ToUpper(r.Action) + " " +
			r.SourceNS + "/" + r.SourceName + " => " + r.DestinationNS + "/" + r.DestinationName
	}
	return byDefault, "Default behavior configured by ACLs"
}

func (a *api) intentionEndpoints() endpoints {
	return endpoints{
		"connect/intentions":       {get: a.intentionList, post: a.intentionCreate},
		"connect/intentions/exact": {get: a.intentionExact, put: a.intentionUpsert, delete: a.intentionDeleteExact},
		"connect/intentions/match": {get: a.intentionMatch},
		"connect/intentions/check": {get: a.intentionCheck},
		"connect/intentions/":      {get: a.intentionByID, put: a.intentionUpdate, delete: a.intentionDelete},
	}
}

// intentionTopic changes with any intention.
var intentionTopic = registry.KeysTopic(configTree, serviceIntentionsKind+"/")

// seen leaves out the intentions whose destination and source the reader may not see.
func (q *query) seen(list []intentionRecord) []intentionRecord {
	out := make([]intentionRecord, 0, len(list))
	for _, r := range list {
		if q.may(intentionResource, r.DestinationName, readable) || q.may(intentionResource, r.SourceName, readable) {
			out = append(out, r)
		} else {
			q.filtered = true
		}
	}
	return out
}

// GET /v1/connect/intentions
func (a *api) intentionList(w http.ResponseWriter, q *query) error {
	fits, err := keep[intentionRecord](q)
	if err != nil {
		return err
	}
	return a.answer(w, q, view{topic: intentionTopic, part: q.narrowed(), build: func() (any, uint64) {
		index := a.index(q.request.Context(), configTree, serviceIntentionsKind+"/")
		out := q.seen(a.entries().intentions())
		return slices.DeleteFunc(out, func(r intentionRecord) bool { return !fits(&r) }), index
	}})
}

// pairOf reads source and destination, "web" or "default/web", and asks for the right to
// the destination.
func (a *api) pairOf(q *query, resource string, want access) (source, destination weft.ServiceName, err error) {
	if source, err = q.serviceNamed("source"); err == nil {
		destination, err = q.serviceNamed("destination")
	}
	if err == nil {
		err = a.authorize(q, resource, destination.Name, want)
	}
	return source, destination, err
}

func (q *query) serviceNamed(param string) (weft.ServiceName, error) {
	text := q.params.Get(param)
	if text == "" {
		return weft.ServiceName{}, refuse(http.StatusBadRequest, "required query parameter '%s' not set", param)
	}
	parts := strings.Split(text, "/")
	if len(parts) == 3 && (parts[0] == "default" || parts[0] == "") {
		parts = parts[1:]
	}
	switch {
	case len(parts) == 1:
		return q.service(parts[0]), nil
	case len(parts) == 2 && parts[1] != "":
		return weft.NewServiceName(parts[0], parts[1]), nil
	}
	return weft.ServiceName{}, refuse(http.StatusBadRequest, "error decoding %s %q: want name or namespace/name", param, text)
}

func intentionsKey(n weft.ServiceName) string {
	return serviceIntentionsKind + "/" + n.Namespace + "/" + n.Name
}

// findSource returns the source of an entry that is this very service; nil when
// there is none.
func findSource(e *serviceIntentions, source weft.ServiceName) *sourceIntention {
	for i := range e.Sources {
		if e.Sources[i].source() == source {
			return &e.Sources[i]
		}
	}
	return nil
}

// GET /v1/connect/intentions/exact?source=&destination=
func (a *api) intentionExact(w http.ResponseWriter, q *query) error {
	source, destination, err := a.pairOf(q, intentionResource, readable)
	if err != nil {
		return err
	}
	return a.answerIntention(w, q, registry.KeyTopic(configTree, intentionsKey(destination)), func(r *intentionRecord) bool {
		return r.SourceName == source.Name && r.SourceNS == source.Namespace &&
			r.DestinationName == destination.Name && r.DestinationNS == destination.Namespace
	})
}

func (a *api) answerIntention(w http.ResponseWriter, q *query, topic registry.Topic, wanted func(*intentionRecord) bool) error {
	found := false
	body, index, err := a.settle(q, view{topic: topic, build: func() (any, uint64) {
		index := a.registry.Wait(q.request.Context(), topic, 0)
		found = false
		for _, r := range a.entries().intentions() {
			if wanted(&r) {
				found = true
				return r, index
			}
		}
		return nil, index
	}})
	if err != nil {
		return err
	}
	q.setHeaders(w, index)
	if !found {
		return refuse(http.StatusNotFound, "Intention not found")
	}
	writeJSON(w, http.StatusOK, body)
	return nil
}

// intentionBody is what clients send of one intention.
type intentionBody struct {
	Description, SourceNS, SourceName, DestinationNS, DestinationName string
	SourcePartition, DestinationPartition, SourcePeer                 string
	SourceType, Action                                                string
	Permissions                                                       []intentionPermission
	Meta                                                              map[string]string
	// sent along by clients that read an intention, and not looked at
	ID, CreatedAt, UpdatedAt, Hash, Precedence, CreateIndex, ModifyIndex, DefaultAddr, DefaultPort any
}

// readIntention reads an intention strictly: a field of a permission that weft does
// not carry out must not be dropped.
func readIntention(w http.ResponseWriter, q *query) (*intentionBody, error) {
	raw, err := readBody(w, q, maxBody)
	if err != nil {
		return nil, err
	}
	body := &intentionBody{}
	return body, decodeStrict(raw, body)
}

func (b *intentionBody) source() sourceIntention {
	return sourceIntention{
		Name: b.SourceName, Namespace: noDefault(b.SourceNS), Partition: noDefault(b.SourcePartition), Action: b.Action,
		Permissions: b.Permissions, Type: b.SourceType, Description: b.Description,
	}
}

func noDefault(name string) string {
	if name == weft.DefaultNamespace {
		return ""
	}
	return name
}

// PUT /v1/connect/intentions/exact?source=&destination=
func (a *api) intentionUpsert(w http.ResponseWriter, q *query) error {
	source, destination, err := a.pairOf(q, intentionResource, writable)
	if err != nil {
		return err
	}
	body, err := readIntention(w, q)
	if err != nil {
		return err
	}
	switch {
	case body.SourcePeer != "":
		return refuse(http.StatusBadRequest, "SourcePeer: there are no other clusters")
	case len(body.Meta) > 0:
		return refuse(http.StatusBadRequest, "Meta: is for intentions with an ID, or for the config entry")
	}
	body.SourceName, body.SourceNS = source.Name, source.Namespace
	_, err = a.writeEntry(q, intentionsKey(destination), func(old configEntry, _ uint64) (configEntry, error) {
		return a.withSource(old, destination, source, body.source())
	})
	if err != nil {
		return err
	}
	return a.answerBool(w, q, true)
}

// withSource is the entry of a service with one source replaced, or added.
func (a *api) withSource(old configEntry, destination, was weft.ServiceName, s sourceIntention) (configEntry, error) {
	next := newIntentions(old, destination)
	if strings.Contains(destination.Name, "*") && destination.Name != "*" {
		return nil, refuse(http.StatusBadRequest, "DestinationName: \"*\" must stand alone, as whole name")
	}
	if kept := findSource(next, was); kept != nil {
		if s.LegacyID == "" {
			s.LegacyID, s.LegacyMeta, s.LegacyCreateTime, s.LegacyUpdateTime = kept.LegacyID, kept.LegacyMeta, kept.LegacyCreateTime, kept.LegacyUpdateTime
		}
		*kept = s
	} else {
		next.Sources = append(next.Sources, s)
	}
	if err := checkHead(next.head()); err != nil {
		return nil, err
	}
	if err := next.normalise(a.registry.Datacenter()); err != nil {
		return nil, refuse(http.StatusBadRequest, "Failed to write intention: %v", err)
	}
	return next, nil
}

// newIntentions is a copy of the entry of a service, or an empty one.
func newIntentions(old configEntry, destination weft.ServiceName) *serviceIntentions {
	next := &serviceIntentions{entryHead: entryHead{Kind: serviceIntentionsKind, Name: destination.Name, Namespace: noDefault(destination.Namespace)}}
	if e, ok := old.(*serviceIntentions); ok {
		*next = *e
		next.Sources = slices.Clone(e.Sources)
	}
	next.CreateIndex, next.ModifyIndex = 0, 0
	return next
}

// withoutSource is the entry without some sources; nil when none is left.
func withoutSource(old configEntry, gone func(*sourceIntention) bool) configEntry {
	e, ok := old.(*serviceIntentions)
	if !ok {
		return nil
	}
	next := newIntentions(e, e.service())
	next.Sources = slices.DeleteFunc(next.Sources, func(s sourceIntention) bool { return gone(&s) })
	if len(next.Sources) == 0 {
		return nil
	}
	return next
}

// DELETE /v1/connect/intentions/exact?source=&destination=
func (a *api) intentionDeleteExact(w http.ResponseWriter, q *query) error {
	source, destination, err := a.pairOf(q, intentionResource, writable)
	if err != nil {
		return err
	}
	_, err = a.writeEntry(q, intentionsKey(destination), func(old configEntry, _ uint64) (configEntry, error) {
		return withoutSource(old, func(s *sourceIntention) bool { return s.source() == source }), nil
	})
	if err != nil {
		return err
	}
	return a.answerBool(w, q, true)
}

// GET /v1/connect/intentions/match?by=source|destination&name=
func (a *api) intentionMatch(w http.ResponseWriter, q *query) error {
	by := q.params.Get("by")
	if by != "source" && by != "destination" {
		return refuse(http.StatusBadRequest, "'by' parameter must be one of 'source' or 'destination'")
	}
	names := q.params["name"]
	if len(names) == 0 {
		return refuse(http.StatusBadRequest, "required query parameter 'name' not set")
	}
	for _, name := range names {
		if err := a.authorize(q, intentionResource, name[strings.LastIndexByte(name, '/')+1:], readable); err != nil {
			return err
		}
	}
	return a.answer(w, q, view{topic: intentionTopic, build: func() (any, uint64) {
		index := a.index(q.request.Context(), configTree, serviceIntentionsKind+"/")
		list := a.entries().intentions()
		out := make(map[string][]intentionRecord, len(names))
		for _, text := range names {
			namespace, name, qualified := strings.Cut(text, "/")
			if !qualified {
				namespace, name = q.namespace, text
			}
			out[text] = []intentionRecord{}
			for _, r := range list {
				if by == "source" && (r.SourceName == "*" || r.SourceName == name && r.SourceNS == namespace) ||
					by == "destination" && fits(r.DestinationName, name) && r.DestinationNS == namespace {
					out[text] = append(out[text], r)
				}
			}
		}
		return out, index
	}})
}

// GET /v1/connect/intentions/check?source=&destination=
func (a *api) intentionCheck(w http.ResponseWriter, q *query) error {
	source, destination, err := a.pairOf(q, serviceResource, readable)
	if err != nil {
		return err
	}
	if kind := q.params.Get("source-type"); kind != "" && kind != "consul" {
		return refuse(http.StatusBadRequest, "source-type: want consul")
	}
	allowed, _ := a.entries().decide(source, destination, !a.closed, false)
	return a.fixed(w, q, map[string]bool{"Allowed": allowed})
}

// POST /v1/connect/intentions makes an intention with an ID.
func (a *api) intentionCreate(w http.ResponseWriter, q *query) error {
	body, err := readIntention(w, q)
	if err != nil {
		return err
	}
	destination := weft.NewServiceName(body.DestinationNS, body.DestinationName)
	if err := a.authorize(q, intentionResource, destination.Name, writable); err != nil {
		return err
	}
	if destination.Name == "" {
		return refuse(http.StatusBadRequest, "DestinationName must be set")
	}
	now := time.Now().UTC()
	s := body.source()
	s.LegacyID, s.LegacyMeta, s.LegacyCreateTime, s.LegacyUpdateTime = newUUID(), body.Meta, &now, &now
	_, err = a.writeEntry(q, intentionsKey(destination), func(old configEntry, _ uint64) (configEntry, error) {
		if e, ok := old.(*serviceIntentions); ok && findSource(e, s.source()) != nil {
			return nil, refuse(http.StatusBadRequest, "duplicate intention found: %s => %s", s.Name, destination.Name)
		}
		return a.withSource(old, destination, s.source(), s)
	})
	if err != nil {
		return err
	}
	b, err := q.marshal(map[string]string{"ID": s.LegacyID})
	if err == nil {
		writeJSON(w, http.StatusOK, b)
	}
	return err
}

// legacy finds the intention of an ID.
func (a *api) legacy(q *query) (*serviceIntentions, *sourceIntention, error) {
	if !isUUID(q.argument) {
		return nil, nil, refuse(http.StatusInternalServerError, "failed intention lookup: index error: UUID must be 36 characters")
	}
	for _, e := range all[*serviceIntentions](a.entries(), serviceIntentionsKind) {
		for i := range e.Sources {
			if e.Sources[i].LegacyID == q.argument {
				return e, &e.Sources[i], nil
			}
		}
	}
	return nil, nil, nil
}

// GET /v1/connect/intentions/{id}
func (a *api) intentionByID(w http.ResponseWriter, q *query) error {
	e, _, err := a.legacy(q)
	if err != nil {
		return err
	}
	if e != nil {
		if err := a.authorize(q, intentionResource, e.Name, readable); err != nil {
			return err
		}
	}
	return a.answerIntention(w, q, intentionTopic, func(r *intentionRecord) bool { return r.ID == q.argument })
}

// PUT /v1/connect/intentions/{id}
func (a *api) intentionUpdate(w http.ResponseWriter, q *query) error {
	e, kept, err := a.legacy(q)
	if err != nil {
		return err
	}
	if e == nil {
		return refuse(http.StatusInternalServerError, "Cannot modify non-existent intention: '%s'", q.argument)
	}
	if err := a.authorize(q, intentionResource, e.Name, writable); err != nil {
		return err
	}
	body, err := readIntention(w, q)
	if err != nil {
		return err
	}
	if weft.NewServiceName(body.DestinationNS, body.DestinationName) != e.service() {
		return refuse(http.StatusBadRequest, "Failed intention upsert: cannot change the destination")
	}
	now := time.Now().UTC()
	s := body.source()
	s.LegacyID, s.LegacyMeta, s.LegacyCreateTime, s.LegacyUpdateTime = kept.LegacyID, body.Meta, kept.LegacyCreateTime, &now
	_, err = a.writeEntry(q, e.key(), func(old configEntry, _ uint64) (configEntry, error) {
		return a.withSource(old, e.service(), kept.source(), s)
	})
	if err != nil {
		return err
	}
	b, err := q.marshal(map[string]string{"ID": s.LegacyID})
	if err == nil {
		writeJSON(w, http.StatusOK, b)
	}
	return err
}

// DELETE /v1/connect/intentions/{id}
func (a *api) intentionDelete(w http.ResponseWriter, q *query) error {
	e, kept, err := a.legacy(q)
	if err != nil {
		return err
	}
	if e != nil {
		if err := a.authorize(q, intentionResource, e.Name, writable); err != nil {
			return err
		}
		_, err = a.writeEntry(q, e.key(), func(old configEntry, _ uint64) (configEntry, error) {
			return withoutSource(old, func(s *sourceIntention) bool { return s.LegacyID == kept.LegacyID }), nil
		})
		if err != nil {
			return err
		}
	}
	return a.answerBool(w, q, true)
}
