package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// Resources is the mesh, as far as intentions and config entries need it: who carries
// out Istio's resources. What this dialect writes has the label WrittenBy. Nothing
// else is changed.
type Resources interface {
	// Check says what is wrong with documents, and changes nothing. A document that
	// would take the place of a resource without the label, or that would not count
	// beside one, is weft.Conflict; the error names both.
	Check(ctx context.Context, documents []Document) error
	// Replace makes the documents all that there is with the label, and returns when
	// they hold. A bad one is left out, and is in the error.
	Replace(ctx context.Context, documents []Document) error
}

// Document is a resource as JSON.
type Document struct {
	From string // what it was made of, for messages and listings
	JSON []byte
}

// WrittenBy is the label of the resources that this dialect writes; its value is
// "consul".
const WrittenBy = "weft.dev/written-by"

// serviceLabel is in the selector of a policy for one service. Every instance carries
// it (package control).
const serviceLabel = "weft.dev/service"

// meshRef names a resource of the mesh.
type meshRef struct{ kind, namespace, name string }

// meshResources are what config entries become: each resource as its document.
type meshResources map[meshRef]Document

// compileMesh returns what the entries say in the mesh's own words. allow says what
// holds where no intention does.
func compileMesh(s *entrySet, allow bool) (meshResources, error) {
	out := make(meshResources)
	for _, n := range s.routed() {
		spec, err := s.virtualService(n)
		if err != nil {
			return nil, err
		}
		if err := out.add("networking.istio.io/v1", "VirtualService", n, "", spec); err != nil {
			return nil, err
		}
	}
	for _, e := range all[*serviceResolver](s, serviceResolverKind) {
		spec, err := e.destinationRule()
		if err != nil {
			return nil, err
		}
		if spec == nil {
			continue
		}
		if err := out.add("networking.istio.io/v1", "DestinationRule", e.service(), "", spec); err != nil {
			return nil, err
		}
	}
	for _, e := range all[*serviceIntentions](s, serviceIntentionsKind) {
		if err := out.addIntentions(s, e, allow); err != nil {
			return nil, err
		}
	}
	if !allow {
		return out, out.denyByDefault()
	}
	return out, nil
}

// object is a piece of a document.
type object map[string]any

var resourceName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,240}[a-z0-9])?$`)

func (out meshResources) add(version, kind string, n weft.ServiceName, suffix string, spec object) error {
	name := "consul-" + n.Name + suffix
	if n.Name == "*" {
		name = "consul" + suffix
	} else if !resourceName.MatchString(n.Name) {
		return fieldError("Name", "%q cannot be the name of a resource of the mesh: want small letters, digits, \"-\" and \".\"", n.Name)
	}
	b, err := json.Marshal(object{
		"apiVersion": version, "kind": kind,
		"metadata": object{"name": name, "namespace": n.Namespace, "labels": object{WrittenBy: "consul"}},
		"spec":     spec,
	})
	if err != nil {
		return err
	}
	out[meshRef{kind, n.Namespace, name}] = Document{From: "consul/" + n.Namespace + "/" + n.Name, JSON: b}
	return nil
}

// checkMesh refuses a change that the mesh cannot carry out.
func (a *api) checkMesh(ctx context.Context, before, after *entrySet) error {
	was, _ := compileMesh(before, !a.closed)
	will, err := compileMesh(after, !a.closed)
	if err != nil {
		return refuse(http.StatusBadRequest, "config entry: %v", err)
	}
	documents := will.differentFrom(was)
	if a.mesh == nil || len(documents) == 0 {
		return nil
	}
	err = a.mesh.Check(ctx, documents)
	switch weft.KindOf(err) {
	case weft.Conflict:
		return refuse(http.StatusConflict, "config entry: %v", err)
	case weft.Invalid:
		return refuse(http.StatusBadRequest, "config entry: the mesh cannot carry it out: %v", err)
	}
	return err
}

// carryOut makes the mesh be as the entries are now.
func (a *api) carryOut(ctx context.Context) error {
	if a.mesh == nil {
		return nil
	}
	is, err := compileMesh(a.entries(), !a.closed)
	if err != nil { // what the mesh has stays: half of the policies may allow more than all
		return weft.Errorf(weft.Invalid, "carry out", "config entries", "%v", err)
	}
	return a.mesh.Replace(ctx, is.differentFrom(nil))
}

// again is after how long the mesh is told again what it could not do.
const again = 30 * time.Second

// CarryOut keeps c.Mesh as config entries and intentions say until ctx ends, whoever
// wrote them: through another server, before this one started, or by a restored
// snapshot. Handlers do so by themselves for what they write. c is the handler's.
func CarryOut(ctx context.Context, r *registry.Registry, c Config) error {
	a := &api{registry: r, logger: c.Logger, mesh: c.Mesh, closed: c.Closed}
	if a.logger == nil {
		a.logger = slog.New(slog.DiscardHandler)
	}
	topic := registry.KeysTopic(configTree, "")
	for ctx.Err() == nil {
		index := r.Wait(ctx, topic, 0)
		wait, cancel := context.WithCancel(ctx)
		if err := a.carryOut(ctx); err != nil && ctx.Err() == nil {
			a.logger.Error("consul: the mesh is not as config entries say", "error", err)
			cancel()
			wait, cancel = context.WithTimeout(ctx, again)
		}
		closed := r.Wait(wait, topic, index) == index && wait.Err() == nil
		cancel()
		if closed {
			return nil
		}
	}
	return nil
}

// differentFrom are the documents that was does not have so, sorted.
func (out meshResources) differentFrom(was meshResources) (documents []Document) {
	for _, ref := range slices.SortedFunc(maps.Keys(out), func(x, y meshRef) int {
		return strings.Compare(x.kind+"/"+x.namespace+"/"+x.name, y.kind+"/"+y.namespace+"/"+y.name)
	}) {
		if !bytes.Equal(out[ref].JSON, was[ref].JSON) {
			documents = append(documents, out[ref])
		}
	}
	return documents
}

// routed are the services whose requests go elsewhere than to all their instances,
// sorted.
func (s *entrySet) routed() []weft.ServiceName {
	seen := make(map[weft.ServiceName]bool)
	for _, e := range all[*serviceRouter](s, serviceRouterKind) {
		seen[e.service()] = true
	}
	for _, e := range all[*serviceSplitter](s, serviceSplitterKind) {
		seen[e.service()] = true
	}
	for _, e := range all[*serviceResolver](s, serviceResolverKind) {
		if e.Redirect != nil || e.DefaultSubset != "" || e.RequestTimeout != 0 {
			seen[e.service()] = true
		}
	}
	return slices.SortedFunc(maps.Keys(seen), func(x, y weft.ServiceName) int { return strings.Compare(x.String(), y.String()) })
}

// share is a part of a route's requests.
type share struct {
	service weft.ServiceName
	subset  string
	weight  float64 // of 1
	headers *headerModifiers
	timeout weft.Duration // of the service that it ends at; 0: none
}

var errLoop = fieldError("Routes", "services lead in a circle")

// maxSteps bounds the splitters and redirects on the way of a request.
const maxSteps = 32

// shares follows splitters and redirects from a service to where its requests end.
func (s *entrySet) shares(n weft.ServiceName, subset string, steps int) ([]share, error) {
	if steps > maxSteps {
		return nil, errLoop
	}
	splitter, ok := entryFor[*serviceSplitter](s, serviceSplitterKind, n)
	if !ok || subset != "" {
		end, err := s.resolve(n, subset, steps)
		return []share{end}, err
	}
	var out []share
	for i := range splitter.Splits {
		split := &splitter.Splits[i]
		next := serviceAt(split.Service, split.Namespace, n)
		var parts []share
		var err error
		if next == n { // a splitter that names itself means the instances
			var end share
			end, err = s.resolve(next, split.ServiceSubset, steps+1)
			parts = []share{end}
		} else {
			parts, err = s.shares(next, split.ServiceSubset, steps+1)
		}
		if err != nil {
			return nil, err
		}
		for _, p := range parts {
			p.weight *= float64(hundredths(split.Weight)) / 10000
			if split.RequestHeaders != nil {
				if p.headers != nil {
					return nil, fmt.Errorf("service-splitter %q: Splits[%d].RequestHeaders: the splitter that follows changes headers, too", n.Name, i)
				}
				p.headers = split.RequestHeaders
			}
			out = append(out, p)
		}
	}
	return out, nil
}

// serviceAt is the service that an entry about "of" names; empty names mean it.
func serviceAt(name, namespace string, of weft.ServiceName) weft.ServiceName {
	if name == "" {
		name = of.Name
	}
	if namespace == "" {
		namespace = of.Namespace
	}
	return weft.NewServiceName(namespace, name)
}

// resolve follows redirects to the instances that a service stands for.
func (s *entrySet) resolve(n weft.ServiceName, subset string, steps int) (share, error) {
	for ; steps <= maxSteps; steps++ {
		e, ok := entryFor[*serviceResolver](s, serviceResolverKind, n)
		if !ok {
			if subset != "" {
				return share{}, fieldError("ServiceSubset", "service %q does not have a subset named %q", n.Name, subset)
			}
			return share{service: n, weight: 1}, nil
		}
		if e.Redirect != nil {
			n, subset = serviceAt(e.Redirect.Service, e.Redirect.Namespace, n), e.Redirect.ServiceSubset
			continue
		}
		if subset == "" {
			subset = e.DefaultSubset
		}
		if _, ok := e.Subsets[subset]; subset != "" && !ok {
			return share{}, fieldError("ServiceSubset", "service %q does not have a subset named %q", n.Name, subset)
		}
		return share{service: n, subset: subset, weight: 1, timeout: e.RequestTimeout}, nil
	}
	return share{}, errLoop
}

// virtualService is what router, splitter and resolver of a service say together.
func (s *entrySet) virtualService(n weft.ServiceName) (object, error) {
	var rules []object
	if router, ok := entryFor[*serviceRouter](s, serviceRouterKind, n); ok {
		for i := range router.Routes {
			r, err := s.httpRule(n, &router.Routes[i])
			if err != nil {
				return nil, fmt.Errorf("service-router %q: Routes[%d].%w", n.Name, i, err)
			}
			rules = append(rules, r)
		}
	}
	rest, err := s.httpRule(n, &serviceRoute{})
	if err != nil {
		return nil, fmt.Errorf("service %q: %w", n.Name, err)
	}
	return object{"hosts": []string{n.Host()}, "http": append(rules, rest)}, nil
}

func (s *entrySet) httpRule(n weft.ServiceName, r *serviceRoute) (object, error) {
	rule := object{}
	if r.Match != nil && r.Match.HTTP != nil {
		if m := r.Match.HTTP.block(); len(m) > 0 {
			rule["match"] = []object{m}
		}
	}
	d := r.Destination
	if d == nil {
		d = &routeDestination{}
	}
	shares, err := s.shares(serviceAt(d.Service, d.Namespace, n), d.ServiceSubset, 0)
	if err != nil {
		return nil, err
	}
	timeout := d.RequestTimeout
	route, err := destinations(shares, &timeout)
	if err != nil {
		return nil, err
	}
	rule["route"] = route
	if timeout != 0 {
		rule["timeout"] = timeout.String()
	}
	if d.PrefixRewrite != "" {
		rule["rewrite"] = object{"uri": d.PrefixRewrite}
	}
	if retries := d.retries(); retries != nil {
		rule["retries"] = retries
	}
	headers := object{}
	if o := d.RequestHeaders.operations(); o != nil {
		headers["request"] = o
	}
	if o := d.ResponseHeaders.operations(); o != nil {
		headers["response"] = o
	}
	if len(headers) > 0 {
		rule["headers"] = headers
	}
	return rule, nil
}

// destinations are the weighted ends of a route. timeout, when the route has none, is
// that of the services that it ends at, which must be one.
func destinations(shares []share, timeout *weft.Duration) ([]object, error) {
	var route []object
	own := *timeout == 0
	for i, p := range shares {
		d := object{"host": p.service.Host()}
		if p.subset != "" {
			d["subset"] = p.subset
		}
		end := object{"destination": d}
		if len(shares) > 1 {
			weight := int(p.weight*10000 + 0.5)
			if weight == 0 {
				continue
			}
			end["weight"] = weight
		}
		if o := p.headers.operations(); o != nil {
			end["headers"] = object{"request": o}
		}
		route = append(route, end)
		switch {
		case !own:
		case i == 0:
			*timeout = p.timeout
		case *timeout != p.timeout:
			return nil, fieldError("Destination.RequestTimeout", "the services of a split have different RequestTimeouts; write one at the route")
		}
	}
	return route, nil
}

func (m *headerModifiers) operations() object {
	if m == nil {
		return nil
	}
	o := object{}
	if len(m.Add) > 0 {
		o["add"] = m.Add
	}
	if len(m.Set) > 0 {
		o["set"] = m.Set
	}
	if len(m.Remove) > 0 {
		o["remove"] = m.Remove
	}
	if len(o) == 0 {
		return nil
	}
	return o
}

// block is the match of a route in the words of a VirtualService.
func (m *routeHTTP) block() object {
	b := object{}
	switch {
	case m.PathExact != "":
		b["uri"] = object{"exact": m.PathExact}
	case m.PathPrefix != "":
		b["uri"] = object{"prefix": m.PathPrefix}
	case m.PathRegex != "":
		b["uri"] = object{"regex": m.PathRegex}
	}
	if m.CaseInsensitive {
		b["ignoreUriCase"] = true
	}
	with, without := object{}, object{}
	for _, h := range m.Header {
		to := with
		if h.Invert {
			to = without
		}
		to[h.Name] = textMatch(h.Exact, h.Prefix, h.Suffix, h.Regex)
	}
	if len(with) > 0 {
		b["headers"] = with
	}
	if len(without) > 0 {
		b["withoutHeaders"] = without
	}
	params := object{}
	for _, p := range m.QueryParam {
		params[p.Name] = textMatch(p.Exact, "", "", p.Regex)
	}
	if len(params) > 0 {
		b["queryParams"] = params
	}
	switch len(m.Methods) {
	case 0:
	case 1:
		b["method"] = object{"exact": m.Methods[0]}
	default:
		b["method"] = object{"regex": strings.Join(m.Methods, "|")}
	}
	return b
}

// textMatch is the one condition that is given, or that there is a text at all.
func textMatch(exact, prefix, suffix, regex string) object {
	switch {
	case exact != "":
		return object{"exact": exact}
	case prefix != "":
		return object{"prefix": prefix}
	case suffix != "":
		return object{"regex": ".*" + regexp.QuoteMeta(suffix)}
	case regex != "":
		return object{"regex": regex}
	}
	return object{"regex": ".*"}
}

// retries is nil when the entry says nothing: then the mesh's own caution holds.
func (d *routeDestination) retries() object {
	var on []string
	if d.RetryOnConnectFailure {
		on = append(on, "connect-failure")
	}
	on = append(on, d.RetryOn...)
	for _, code := range d.RetryOnStatusCodes {
		on = append(on, fmt.Sprint(code))
	}
	if d.NumRetries == 0 && len(on) == 0 {
		return nil
	}
	r := object{"attempts": max(d.NumRetries, 1)}
	if len(on) > 0 {
		r["retryOn"] = strings.Join(on, ",")
	}
	return r
}

// destinationRule is nil when a resolver says nothing of how its service is called.
func (e *serviceResolver) destinationRule() (object, error) {
	policy := object{}
	if e.ConnectTimeout != 0 {
		policy["connectionPool"] = object{"tcp": object{"connectTimeout": e.ConnectTimeout.String()}}
	}
	if lb := e.LoadBalancer.settings(); lb != nil {
		policy["loadBalancer"] = lb
	}
	spec := object{"host": e.service().Host()}
	if len(policy) > 0 {
		spec["trafficPolicy"] = policy
	}
	var subsets []object
	for _, name := range slices.Sorted(maps.Keys(e.Subsets)) {
		labels, err := subsetLabels(e.Subsets[name].Filter)
		if err != nil {
			return nil, fmt.Errorf("service-resolver %q: Subsets[%s].Filter: %w", e.Name, name, err)
		}
		subset := object{"name": name}
		if len(labels) > 0 {
			subset["labels"] = labels
		}
		subsets = append(subsets, subset)
	}
	if len(subsets) > 0 {
		spec["subsets"] = subsets
	}
	if len(spec) == 1 {
		return nil, nil
	}
	return spec, nil
}

func (l *loadBalancer) settings() object {
	if l == nil {
		return nil
	}
	switch l.Policy {
	case "":
		return nil
	case "random", "round_robin", "least_request":
		return object{"simple": strings.ToUpper(l.Policy)}
	}
	p := l.HashPolicies[0]
	hash := object{}
	switch {
	case p.SourceIP:
		hash["useSourceIp"] = true
	case p.Field == "header":
		hash["httpHeaderName"] = p.FieldValue
	case p.Field == "query_parameter":
		hash["httpQueryParameterName"] = p.FieldValue
	default:
		cookie := object{"name": p.FieldValue}
		if c := p.CookieConfig; c != nil {
			if c.TTL != 0 || c.Session {
				cookie["ttl"] = c.TTL.String()
			}
			if c.Path != "" {
				cookie["path"] = c.Path
			}
		}
		hash["httpCookie"] = cookie
	}
	switch {
	case l.Policy == "maglev":
		hash["maglev"] = object{}
	case l.RingHashConfig != nil && l.RingHashConfig.MinimumRingSize > 0:
		hash["ringHash"] = object{"minimumRingSize": l.RingHashConfig.MinimumRingSize}
	default:
		hash["ringHash"] = object{}
	}
	return object{"consistentHash": hash}
}

// metaEquals is one condition of a subset's filter.
var metaEquals = regexp.MustCompile(`^Service\.Meta(?:\.([A-Za-z0-9_-]+)|\["([^"]+)"\])\s*==\s*(?:"([^"]*)"|([^\s"()]+))$`)

// subsetLabels are the labels that a filter asks for. The mesh knows instances by
// their labels only.
func subsetLabels(filter string) (map[string]string, error) {
	if strings.TrimSpace(filter) == "" {
		return nil, nil
	}
	labels := make(map[string]string)
	for condition := range strings.SplitSeq(filter, " and ") {
		m := metaEquals.FindStringSubmatch(strings.TrimSpace(condition))
		if m == nil {
			return nil, fmt.Errorf("weft carries out Service.Meta.KEY == VALUE, and those joined by \"and\", not %q", condition)
		}
		key, value := m[1]+m[2], m[3]+m[4]
		if was, twice := labels[key]; twice && was != value {
			return nil, fmt.Errorf("%s cannot be %q and %q", key, was, value)
		}
		labels[key] = value
	}
	return labels, nil
}
