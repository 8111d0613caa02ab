package consul

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// The kinds of config entries that this server has a meaning for.
const (
	serviceDefaultsKind   = "service-defaults"
	proxyDefaultsKind     = "proxy-defaults"
	serviceRouterKind     = "service-router"
	serviceSplitterKind   = "service-splitter"
	serviceResolverKind   = "service-resolver"
	serviceIntentionsKind = "service-intentions"
)

// otherKinds are those that Consul has besides, and what to write instead.
var otherKinds = map[string]string{
	"ingress-gateway":             "write Istio's Gateway and VirtualService",
	"terminating-gateway":         "register the external service",
	"api-gateway":                 "write Istio's Gateway",
	"http-route":                  "write Istio's VirtualService",
	"tcp-route":                   "write Istio's VirtualService",
	"inline-certificate":          "a gateway is given its certificate when it is started",
	"file-system-certificate":     "a gateway is given its certificate when it is started",
	"mesh":                        "weft's own resources say how the mesh is",
	"jwt-provider":                "there are no JSON web tokens in intentions",
	"exported-services":           "there are no other clusters to export to",
	"sameness-group":              "there are no other clusters",
	"control-plane-request-limit": "requests to the server have no limit of their own",
	"rate-limit":                  "requests to the server have no limit of their own",
}

// entryHead is what all kinds have.
type entryHead struct {
	Kind        string
	Name        string
	Partition   string            `json:",omitempty"`
	Namespace   string            `json:",omitempty"`
	Meta        map[string]string `json:",omitempty"`
	CreateIndex uint64
	ModifyIndex uint64
}

func (h *entryHead) head() *entryHead { return h }

// service is what the entry is about.
func (h *entryHead) service() weft.ServiceName { return weft.NewServiceName(h.namespace(), h.Name) }

func (h *entryHead) namespace() string {
	if h.Namespace == "" {
		return weft.DefaultNamespace
	}
	return h.Namespace
}

func (h *entryHead) key() string { return h.Kind + "/" + h.namespace() + "/" + h.Name }

// configEntry is one of the structs below.
type configEntry interface {
	head() *entryHead
	// normalise checks what the entry says by itself, and fills in what Consul
	// fills in. dc is this datacenter.
	normalise(dc string) error
}

// newEntry returns nil for a kind that this server has no meaning for.
func newEntry(kind string) configEntry {
	switch kind {
	case serviceDefaultsKind:
		return &serviceDefaults{}
	case proxyDefaultsKind:
		return &proxyDefaults{}
	case serviceRouterKind:
		return &serviceRouter{}
	case serviceSplitterKind:
		return &serviceSplitter{}
	case serviceResolverKind:
		return &serviceResolver{}
	case serviceIntentionsKind:
		return &serviceIntentions{}
	}
	return nil
}

func (a *api) configEndpoints() endpoints {
	return endpoints{
		"config":  {put: a.configWrite},
		"config/": {get: a.configRead, delete: a.configDelete},
	}
}

// readEntry reads the body of a write. dc is this datacenter.
func readEntry(body []byte, dc string) (configEntry, error) {
	raw, err := parseJSON(body)
	if err != nil {
		return nil, err
	}
	object, ok := raw.(map[string]any)
	if !ok {
		return nil, refuse(http.StatusBadRequest, "Request decode error: want an object")
	}
	kind := ""
	for key, v := range object {
		if strings.EqualFold(key, "kind") {
			kind, _ = v.(string)
		}
	}
	e, err := entryOf(kind)
	if err != nil {
		return nil, err
	}
	if err := decodeFields(object, reflect.ValueOf(e).Elem(), ""); err != nil {
		return nil, refuse(http.StatusBadRequest, "config entry %s: %v", kind, err)
	}
	if e.head().Kind != kind {
		return nil, refuse(http.StatusBadRequest, "config entry %s: Kind: is there twice", kind)
	}
	if err := checkHead(e.head()); err != nil {
		return nil, err
	}
	if err := e.normalise(dc); err != nil {
		return nil, refuse(http.StatusBadRequest, "config entry %s %q: %v", kind, e.head().Name, err)
	}
	return e, nil
}

func entryOf(kind string) (configEntry, error) {
	if e := newEntry(kind); e != nil {
		return e, nil
	}
	if instead, known := otherKinds[kind]; known {
		return nil, refuse(http.StatusNotImplemented, "weft does not carry out config entries of kind %s: %s", kind, instead)
	}
	return nil, refuse(http.StatusBadRequest, "invalid config entry kind: %s", kind)
}

// knownEntryKind says whether Consul has the kind.
func knownEntryKind(kind string) bool {
	_, other := otherKinds[kind]
	return other || newEntry(kind) != nil
}

func checkHead(h *entryHead) error {
	switch {
	case h.Name == "":
		return refuse(http.StatusBadRequest, "config entry %s: Name must not be empty", h.Kind)
	case h.Partition != "" && h.Partition != "default":
		return refuse(http.StatusBadRequest, "config entry %s %q: Partition: there is only \"default\"", h.Kind, h.Name)
	case strings.ContainsAny(h.Name+h.Namespace, "/\x00") || len(h.Name)+len(h.Namespace) > 512:
		return refuse(http.StatusBadRequest, "config entry %s %q: Name: not a name of a service", h.Kind, h.Name)
	case h.Kind == proxyDefaultsKind && h.Name != "global":
		return refuse(http.StatusBadRequest, "invalid name (%q), only \"global\" is supported", h.Name)
	}
	h.CreateIndex, h.ModifyIndex = 0, 0
	return nil
}

// mayConfigure asks for what an entry is about.
func (a *api) mayConfigure(q *query, kind, name string, want access) error {
	switch {
	case kind == serviceIntentionsKind:
		return a.authorize(q, intentionResource, name, want)
	case kind == proxyDefaultsKind && want == readable:
		return nil // what every proxy has to know
	case kind == proxyDefaultsKind:
		return a.authorize(q, operatorResource, "", want)
	}
	return a.authorize(q, serviceResource, name, want)
}

// PUT /v1/config?cas=
func (a *api) configWrite(w http.ResponseWriter, q *query) error {
	body, err := readBody(w, q, maxBody)
	if err != nil {
		return err
	}
	e, err := readEntry(body, a.registry.Datacenter())
	if err != nil {
		return err
	}
	h := e.head()
	if h.Namespace == "" && q.params.Get("ns") != "" {
		h.Namespace = q.namespace
	}
	if err := a.mayConfigure(q, h.Kind, h.Name, writable); err != nil {
		return err
	}
	cas, err := q.number("cas")
	if err != nil {
		return err
	}
	done, err := a.writeEntry(q, h.key(), func(old configEntry, index uint64) (configEntry, error) {
		if q.params.Has("cas") && index != cas {
			return nil, errChanged
		}
		return e, nil
	})
	if err != nil {
		return err
	}
	return a.answerBool(w, q, done)
}

func (a *api) answerBool(w http.ResponseWriter, q *query, v bool) error {
	b, err := q.marshal(v)
	if err == nil {
		writeJSON(w, http.StatusOK, b)
	}
	return err
}

// errChanged ends a conditional write of an entry that is not as it was.
var errChanged = weft.Errorf(weft.Conflict, "write config entry", "", "it has changed")

// writeEntry replaces the entry of a key by what plan makes of it; nil deletes it.
// What the mesh cannot carry out is refused before it is written. Afterwards the
// mesh has it.
func (a *api) writeEntry(q *query, key string, plan func(old configEntry, index uint64) (configEntry, error)) (done bool, err error) {
	a.configuring.Lock()
	defer a.configuring.Unlock()
	ctx := q.request.Context()
	_, err = a.update(ctx, "write config entry", key, func(c *change) error {
		now := a.entries()
		old := now.byKey[key]
		index := uint64(0)
		if old != nil {
			index = old.head().ModifyIndex
		}
		next, err := plan(old, index)
		if err != nil {
			return err
		}
		if err := a.checkMesh(ctx, now, now.with(key, next)); err != nil {
			return err
		}
		switch {
		case next != nil:
			c.put(configTree, key, index, next)
		case old != nil:
			c.remove(configTree, key, index)
		}
		return nil
	})
	switch {
	case err == errChanged: //nolint:errorlint // plan returned this very value
		return false, nil
	case err != nil:
		return false, err
	}
	err = a.carryOut(ctx)
	switch weft.KindOf(err) {
	case weft.Invalid, weft.Conflict: // of other entries: this one was checked
		a.logger.ErrorContext(ctx, "consul: the mesh is not as config entries say", "error", err)
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("the entry is kept, but the mesh does not have it yet: %w", err)
	}
	return true, nil
}

// entrySet is every config entry, as it is kept or would be. It is immutable.
type entrySet struct{ byKey map[string]configEntry }

func (a *api) entries() *entrySet {
	list, _ := a.registry.Keys(configTree, "")
	s := &entrySet{byKey: make(map[string]configEntry, len(list))}
	for _, kept := range list {
		if e := a.decodeConfigEntry(kept); e != nil {
			s.byKey[kept.Key] = e
		}
	}
	return s
}

// decodeConfigEntry returns nil for what cannot be read, and says so in the log.
func (a *api) decodeConfigEntry(kept *registry.Entry) configEntry {
	kind, _, _ := strings.Cut(kept.Key, "/")
	e := newEntry(kind)
	if e == nil {
		return nil
	}
	if err := json.Unmarshal(kept.Value, e); err != nil {
		a.logger.Error("consul: a config entry that is kept cannot be read", "key", kept.Key, "error", err)
		return nil
	}
	e.head().CreateIndex, e.head().ModifyIndex = kept.CreateIndex, kept.ModifyIndex
	return e
}

// with is the set after a change of one entry.
func (s *entrySet) with(key string, e configEntry) *entrySet {
	next := &entrySet{byKey: make(map[string]configEntry, len(s.byKey)+1)}
	for k, v := range s.byKey {
		next.byKey[k] = v
	}
	if e == nil {
		delete(next.byKey, key)
	} else {
		next.byKey[key] = e
	}
	return next
}

// entryFor returns the entry of a kind about a service.
func entryFor[E configEntry](s *entrySet, kind string, n weft.ServiceName) (e E, ok bool) {
	e, ok = s.byKey[kind+"/"+n.Namespace+"/"+n.Name].(E)
	return e, ok
}

// all returns the entries of a kind, sorted by key.
func all[E configEntry](s *entrySet, kind string) []E {
	var out []E
	for key, e := range s.byKey {
		if strings.HasPrefix(key, kind+"/") {
			out = append(out, e.(E))
		}
	}
	slices.SortFunc(out, func(x, y E) int { return strings.Compare(x.head().key(), y.head().key()) })
	return out
}

// GET /v1/config/{kind}, GET /v1/config/{kind}/{name}
func (a *api) configRead(w http.ResponseWriter, q *query) error {
	kind, name, one := strings.Cut(q.argument, "/")
	if !knownEntryKind(kind) {
		return refuse(http.StatusBadRequest, "invalid config entry kind: %s", kind)
	}
	if !one || name == "" {
		return a.configList(w, q, kind)
	}
	if err := a.mayConfigure(q, kind, name, readable); err != nil {
		return err
	}
	key := kind + "/" + q.namespace + "/" + name
	if e, _ := a.registry.Key(configTree, key); e == nil && q.index == 0 {
		return refuse(http.StatusNotFound, "Config entry not found for %q / %q", kind, name)
	}
	var found configEntry
	body, index, err := a.settle(q, view{topic: registry.KeyTopic(configTree, key), build: func() (any, uint64) {
		kept, index := a.registry.Key(configTree, key)
		if found = nil; kept != nil {
			found = a.decodeConfigEntry(kept)
		}
		return found, index
	}})
	if err != nil {
		return err
	}
	q.setHeaders(w, index)
	if found == nil {
		return refuse(http.StatusNotFound, "Config entry not found for %q / %q", kind, name)
	}
	writeJSON(w, http.StatusOK, body)
	return nil
}

func (a *api) configList(w http.ResponseWriter, q *query, kind string) error {
	prefix := kind + "/"
	if q.params.Get("ns") != "" {
		prefix += q.namespace + "/"
	}
	return a.answer(w, q, view{topic: registry.KeysTopic(configTree, prefix), build: func() (any, uint64) {
		list, index := a.registry.Keys(configTree, prefix)
		out := make([]configEntry, 0, len(list))
		for _, kept := range list {
			e := a.decodeConfigEntry(kept)
			if e == nil {
				continue
			}
			if a.mayConfigure(q, kind, e.head().Name, readable) != nil {
				q.filtered = true
				continue
			}
			out = append(out, e)
		}
		return out, index
	}})
}

// DELETE /v1/config/{kind}/{name}?cas=
func (a *api) configDelete(w http.ResponseWriter, q *query) error {
	kind, name, _ := strings.Cut(q.argument, "/")
	if !knownEntryKind(kind) || name == "" {
		return refuse(http.StatusBadRequest, "invalid config entry kind or name: %s", q.argument)
	}
	if err := a.mayConfigure(q, kind, name, writable); err != nil {
		return err
	}
	cas, err := q.number("cas")
	if err != nil {
		return err
	}
	done, err := a.writeEntry(q, kind+"/"+q.namespace+"/"+name, func(old configEntry, index uint64) (configEntry, error) {
		if q.params.Has("cas") && (index != cas || old == nil) {
			return nil, errChanged
		}
		return nil, nil
	})
	if err != nil {
		return err
	}
	if q.params.Has("cas") {
		return a.answerBool(w, q, done)
	}
	b, err := q.marshal(struct{}{})
	if err == nil {
		writeJSON(w, http.StatusOK, b)
	}
	return err
}
