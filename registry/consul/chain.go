package consul

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// A discovery chain is what config entries say of the way to a service: router,
// splitter, resolver. Proxies of others walk it; weft's own get routes instead, which
// are compiled from the same entries (see compileMesh).

type compiledChain struct {
	ServiceName       string
	Namespace         string
	Partition         string
	Datacenter        string
	CustomizationHash string `json:",omitempty"` // of what the request overrides
	Default           bool   `json:",omitempty"` // no entry says anything of the service
	Protocol          string
	ServiceMeta       map[string]string `json:",omitempty"`
	StartNode         string
	Nodes             map[string]*chainNode
	Targets           map[string]*chainTarget
}

type chainNode struct {
	Type         string
	Name         string
	Routes       []chainRoute   `json:",omitempty"`
	Splits       []chainSplit   `json:",omitempty"`
	Resolver     *chainResolver `json:",omitempty"`
	LoadBalancer *loadBalancer  `json:",omitempty"`
}

type chainRoute struct {
	Definition *serviceRoute
	NextNode   string
}

type chainSplit struct {
	Definition *serviceSplit
	Weight     float32
	NextNode   string
}

type chainResolver struct {
	Default        bool `json:",omitempty"`
	ConnectTimeout weft.Duration
	RequestTimeout weft.Duration `json:",omitempty"`
	Target         string
}

type chainTarget struct {
	ID             string
	Service        string
	ServiceSubset  string `json:",omitempty"`
	Namespace      string
	Partition      string
	Datacenter     string
	Subset         resolverSubset
	ConnectTimeout weft.Duration
	SNI            string
	Name           string
}

const defaultConnectTimeout = weft.Duration(5 * time.Second)

// chainOverrides are what a request wants otherwise than the entries say.
type chainOverrides struct {
	OverrideProtocol       string
	OverrideConnectTimeout duration
	OverrideMeshGateway    struct{ Mode string }

	connectTimeout weft.Duration
}

func (a *api) chainEndpoints() endpoints {
	return endpoints{"discovery-chain/": {get: a.chainGet, post: a.chainGet}}
}

// GET or POST /v1/discovery-chain/{service}?compile-dc=
func (a *api) chainGet(w http.ResponseWriter, q *query) error {
	name, err := q.need("service name")
	if err != nil {
		return err
	}
	if dc := q.params.Get("compile-dc"); dc != "" && dc != a.registry.Datacenter() {
		return noPath(dc)
	}
	var o chainOverrides
	if q.request.Method == http.MethodPost {
		if err := decodeOptional(w, q, &o); err != nil {
			return err
		}
		if err := o.check(); err != nil {
			return err
		}
	}
	return a.answer(w, q, view{topic: registry.KeysTopic(configTree, ""), part: true, build: func() (any, uint64) {
		index := a.index(q.request.Context(), configTree, "")
		c := chainCompiler{entries: a.entries(), dc: a.registry.Datacenter(), trustDomain: weft.DefaultTrustDomain, overrides: &o}
		if a.ca != nil {
			c.trustDomain = a.ca.TrustDomain()
		}
		return map[string]any{"Chain": c.compile(q.service(name))}, index
	}})
}

func (o *chainOverrides) check() (err error) {
	if o.OverrideMeshGateway.Mode != "" && o.OverrideMeshGateway.Mode != "none" {
		return refuse(http.StatusBadRequest, "OverrideMeshGateway.Mode: weft has no mesh gateways")
	}
	if _, known := protocols[o.OverrideProtocol]; !known {
		return refuse(http.StatusBadRequest, "OverrideProtocol: unknown %q, want tcp, http, http2 or grpc", o.OverrideProtocol)
	}
	if o.OverrideConnectTimeout == "" {
		return nil
	}
	if o.connectTimeout, err = o.OverrideConnectTimeout.parse("OverrideConnectTimeout"); err == nil && o.connectTimeout < 0 {
		err = refuse(http.StatusBadRequest, "OverrideConnectTimeout: is negative")
	}
	return err
}

// chainCompiler compiles one chain. Entries were checked when they were written: a
// circle or a missing subset, which cannot be, ends the way where it is.
type chainCompiler struct {
	entries     *entrySet
	dc          string
	trustDomain string
	overrides   *chainOverrides
	chain       *compiledChain
}

func (c *chainCompiler) compile(n weft.ServiceName) *compiledChain {
	c.chain = &compiledChain{
		ServiceName: n.Name, Namespace: n.Namespace, Partition: "default", Datacenter: c.dc, Protocol: c.protocol(n),
		Nodes: make(map[string]*chainNode), Targets: make(map[string]*chainTarget),
	}
	if e, ok := entryFor[*serviceDefaults](c.entries, serviceDefaultsKind, n); ok {
		c.chain.ServiceMeta = e.Meta
	}
	own := c.chain.Protocol
	if o := c.overrides; o.OverrideProtocol != "" {
		c.chain.Protocol = o.OverrideProtocol
	}
	if o := c.overrides; c.chain.Protocol != own || o.connectTimeout != 0 {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %s", o.OverrideProtocol, o.connectTimeout))
		c.chain.CustomizationHash = hex.EncodeToString(sum[:4])
	}
	if router, ok := entryFor[*serviceRouter](c.entries, serviceRouterKind, n); ok && protocols[own] && protocols[c.chain.Protocol] {
		c.chain.StartNode = c.router(n, router)
	} else {
		c.chain.StartNode = c.next(n, "", protocols[own] && protocols[c.chain.Protocol], 0)
	}
	c.chain.Default = c.isDefault()
	return c.chain
}

// isDefault reports whether the chain is that of a service of which no entry speaks.
func (c *chainCompiler) isDefault() bool {
	start := c.chain.Nodes[c.chain.StartNode]
	return len(c.chain.Nodes) == 1 && start.Resolver != nil && start.Resolver.Default && c.chain.Targets[start.Resolver.Target].Service == c.chain.ServiceName
}

// protocol is what the entries say that a service speaks. A service with a router or
// a splitter speaks HTTP.
func (c *chainCompiler) protocol(n weft.ServiceName) string {
	if e, ok := entryFor[*serviceDefaults](c.entries, serviceDefaultsKind, n); ok && e.Protocol != "" {
		return e.Protocol
	}
	global := weft.NewServiceName("", "global")
	if e, ok := entryFor[*proxyDefaults](c.entries, proxyDefaultsKind, global); ok {
		if p, _ := e.Config["protocol"].(string); p != "" {
			return p
		}
	}
	_, routed := entryFor[*serviceRouter](c.entries, serviceRouterKind, n)
	_, split := entryFor[*serviceSplitter](c.entries, serviceSplitterKind, n)
	if routed || split {
		return "http"
	}
	return "tcp"
}

// place names a service within a chain.
func place(n weft.ServiceName) string { return n.Name + "." + n.Namespace + ".default" }

func (c *chainCompiler) router(n weft.ServiceName, e *serviceRouter) string {
	node := &chainNode{Type: "router", Name: place(n)}
	key := "router:" + node.Name
	c.chain.Nodes[key] = node
	for i := range e.Routes {
		route := &e.Routes[i]
		to, subset := n, ""
		if d := route.Destination; d != nil {
			to, subset = serviceAt(d.Service, d.Namespace, n), d.ServiceSubset
		}
		node.Routes = append(node.Routes, chainRoute{Definition: route, NextNode: c.next(to, subset, true, 0)})
	}
	rest := &serviceRoute{
		Match:       &routeMatch{HTTP: &routeHTTP{PathPrefix: "/"}},
		Destination: &routeDestination{Service: n.Name, Namespace: n.Namespace, Partition: "default"},
	}
	node.Routes = append(node.Routes, chainRoute{Definition: rest, NextNode: c.next(n, "", true, 0)})
	return key
}

// next is the splitter of a service, where requests are looked at and it has one, or
// else its resolver.
func (c *chainCompiler) next(n weft.ServiceName, subset string, requests bool, steps int) string {
	e, ok := entryFor[*serviceSplitter](c.entries, serviceSplitterKind, n)
	if !ok || !requests || subset != "" || steps > maxSteps {
		return c.resolver(n, subset)
	}
	key := "splitter:" + place(n)
	if c.chain.Nodes[key] != nil {
		return key
	}
	node := &chainNode{Type: "splitter", Name: place(n)}
	c.chain.Nodes[key] = node
	for i := range e.Splits {
		split := &e.Splits[i]
		to := serviceAt(split.Service, split.Namespace, n)
		leg := chainSplit{Definition: split, Weight: split.Weight}
		if to == n {
			leg.NextNode = c.resolver(to, split.ServiceSubset)
		} else {
			leg.NextNode = c.next(to, split.ServiceSubset, true, steps+1)
		}
		node.Splits = append(node.Splits, leg)
	}
	return key
}

func (c *chainCompiler) resolver(n weft.ServiceName, subset string) string {
	if end, err := c.entries.resolve(n, subset, 0); err == nil {
		n, subset = end.service, end.subset
	}
	e, ok := entryFor[*serviceResolver](c.entries, serviceResolverKind, n)
	if !ok {
		e = &serviceResolver{}
	}
	target := &chainTarget{
		ID: place(n) + "." + c.dc, Service: n.Name, ServiceSubset: subset, Namespace: n.Namespace, Partition: "default", Datacenter: c.dc,
		Subset: e.Subsets[subset], ConnectTimeout: defaultConnectTimeout,
		SNI: n.Name + "." + n.Namespace + "." + c.dc + ".internal." + c.trustDomain,
	}
	if subset != "" {
		target.ID, target.SNI = subset+"."+target.ID, subset+"."+target.SNI
	}
	target.Name = target.SNI
	if e.ConnectTimeout != 0 {
		target.ConnectTimeout = e.ConnectTimeout
	}
	if t := c.overrides.connectTimeout; t != 0 {
		target.ConnectTimeout = t
	}
	c.chain.Targets[target.ID] = target
	key := "resolver:" + target.ID
	c.chain.Nodes[key] = &chainNode{
		Type: "resolver", Name: target.ID, LoadBalancer: e.LoadBalancer,
		Resolver: &chainResolver{Default: !ok, ConnectTimeout: target.ConnectTimeout, RequestTimeout: e.RequestTimeout, Target: target.ID},
	}
	return key
}
