package api

import (
	"cmp"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/wire/http1"
)

// explain says where a request would go.
func (a *api) explain(r *http.Request) (any, error) {
	var in client.ExplainRequest
	if err := decode(r, "explain", &in); err != nil {
		return nil, err
	}
	req, authority, err := requestOf(&in)
	if err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "explain", Thing: in.Method + " " + in.URL, Err: err}
	}
	port := portOf(authority, req.Scheme)
	who, err := a.caller(in.From, req.Host, port, func(s *weft.Snapshot) bool { return serves(s, req, port) })
	if err != nil {
		return nil, err
	}
	v := &evaluation{request: req, authority: authority, caller: who.identity, workload: a.workloads()}
	if who.isGateway {
		v.snapshot = a.Control.GatewaySnapshot(who.gateway)
	} else {
		v.snapshot = a.Control.Mesh(who.namespace, req.Host)
		req.Source = who.identity
	}
	raw := req.Scheme == tcpScheme || req.Scheme == tlsScheme
	if !raw {
		if req.Path, err = normalized(v.snapshot.PathMode(req.Host), req.Path); err != nil {
			return nil, &weft.Error{Kind: weft.Invalid, Op: "explain", Thing: in.Method + " " + in.URL, Err: err}
		}
	}
	out := &client.Explanation{Method: req.Method, Scheme: req.Scheme, Host: req.Host, Path: req.Path, Query: req.Query,
		From: who.identity, Namespace: who.namespace, Gateway: who.gateway}
	if raw {
		out.Method, out.Path = "", ""
		v.runRaw(out, port)
	} else {
		v.run(out)
	}
	a.tellGuards(out)
	return out, nil
}

// tellGuards says why there are failed instances among the endpoints.
func (a *api) tellGuards(e *client.Explanation) {
	for _, r := range e.Routes {
		for i := range r.Destinations {
			d := &r.Destinations[i]
			if g, guarded := a.Registry.Guard(weft.NewServiceName(d.Namespace, d.Service)); guarded {
				d.Guard = g.Reason
			}
		}
	}
}

// serves reports whether a gateway has rules for what is asked about.
func serves(s *weft.Snapshot, req *weft.Request, port uint16) bool {
	ok := false
	switch {
	case s.Gateway == nil:
	case req.Scheme == tcpScheme:
		_, ok = s.RouteGatewayTCP(port, 0)
	case req.Scheme == tlsScheme:
		_, ok = s.RouteTLS(req.Host, port, 0)
	default:
		ok = s.Gateway.Lookup(req.Host) != nil
	}
	return ok
}

// normalized is a path as a proxy of a mode sees it.
func normalized(mode weft.PathMode, path string) (string, error) {
	raw := []byte(path)
	out, err := http1.PathMode(mode).Normalize(make([]byte, 0, len(raw)), raw)
	return string(out), err
}

// requestOf reads the request that is asked about, and the host and port that it is
// sent to. Its path is not normalised yet: that is the host's to say.
func requestOf(in *client.ExplainRequest) (req *weft.Request, authority string, err error) {
	u, err := url.Parse(in.URL)
	if err != nil || u.Hostname() == "" || !slices.Contains([]string{"http", "https", tcpScheme, tlsScheme}, u.Scheme) {
		return nil, "", errors.New("want a URL such as http://order-service/api/orders/1, tcp://database:5432 or tls://vault.example.com:443")
	}
	if _, err := strconv.ParseUint(u.Port(), 10, 16); u.Port() != "" && err != nil {
		return nil, "", errors.New("the port is no number from 0 to 65535")
	}
	if u.Scheme == tcpScheme && u.Port() == "" {
		return nil, "", errors.New("the port is missing: want a URL such as tcp://database:5432")
	}
	h := fields{}
	for _, line := range in.Headers {
		name, value, ok := strings.Cut(line, ":")
		name = textproto.TrimString(name)
		if !ok || name == "" {
			return nil, "", errors.New("header " + strconv.Quote(line) + ": want \"name: value\"")
		}
		h.add(name, textproto.TrimString(value))
	}
	return &weft.Request{Method: cmp.Or(strings.ToUpper(in.Method), http.MethodGet), Scheme: u.Scheme,
		Host: strings.ToLower(u.Hostname()), Path: cmp.Or(u.EscapedPath(), "/"), Query: u.RawQuery, Headers: h}, u.Host, nil
}

// portOf is the port of an authority, or its scheme's.
func portOf(authority, scheme string) uint16 {
	u := url.URL{Host: authority}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	switch {
	case err == nil:
		return uint16(port)
	case scheme == "https", scheme == tlsScheme:
		return 443
	}
	return 80
}

// fields is a request's headers by lower-case name.
type fields map[string]string

func (f fields) add(name, value string) {
	name = strings.ToLower(name)
	if before, ok := f[name]; ok {
		value = before + "," + value
	}
	f[name] = value
}

// Header implements weft.Headers.
func (f fields) Header(name string) (string, bool) {
	v, ok := f[strings.ToLower(name)]
	return v, ok
}

// caller is who asks.
type caller struct {
	identity  weft.Identity // that destinations see; "" is plain text
	namespace string        // of its names; "" at a gateway
	gateway   string
	isGateway bool
}

// caller finds who from is: a connected gateway, or a registered service. When it
// is empty, it is the client of the gateway that the URL leads to, else somebody
// in the mesh without an identity. serves says whether a gateway has rules for it.
func (a *api) caller(from, host string, port uint16, serves func(*weft.Snapshot) bool) (caller, error) {
	if from == "" {
		if p, ok := a.gatewayAt(host, port, serves); ok {
			return caller{identity: p.Identity, gateway: p.Gateway, isGateway: true}, nil
		}
		return caller{namespace: weft.DefaultNamespace}, nil
	}
	for _, p := range a.Control.Proxies() {
		if p.Role == gatewayRole && (from == p.Gateway || from == p.Service.Name || from == p.Service.String()) {
			return caller{identity: p.Identity, gateway: p.Gateway, isGateway: true}, nil
		}
	}
	n, ok := weft.ParseHost(strings.ToLower(from), "")
	instances, _ := a.Registry.Instances(n)
	if !ok || len(instances) == 0 {
		return caller{}, weft.Errorf(weft.NotFound, "explain", "from "+from,
			"no service with an instance and no connected gateway has this name; \"weft services\" and \"weft status\" list them")
	}
	out := caller{namespace: n.Namespace}
	for _, in := range instances {
		if out.identity = in.Identity; out.identity != "" {
			break
		}
	}
	return out, nil
}

const gatewayRole = "gateway"

// gatewayAt finds the connected gateway to which a URL leads: one that registered
// itself at host and port, or else, when no service of the mesh has that host's
// name, one with rules for it.
func (a *api) gatewayAt(host string, port uint16, serves func(*weft.Snapshot) bool) (control.ProxyStatus, bool) {
	var gateways []control.ProxyStatus
	for _, p := range a.Control.Proxies() {
		if p.Role != gatewayRole {
			continue
		}
		if a.listensAt(p, host, port) {
			return p, true
		}
		gateways = append(gateways, p)
	}
	if len(gateways) == 0 || a.Control.Mesh(weft.DefaultNamespace, host).Hosts[host] != nil {
		return control.ProxyStatus{}, false
	}
	for _, p := range gateways {
		if serves(a.Control.GatewaySnapshot(p.Gateway)) {
			return p, true
		}
	}
	return control.ProxyStatus{}, false
}

// listensAt reports whether gateway p takes requests at host and port, as it
// registered itself.
func (a *api) listensAt(p control.ProxyStatus, host string, port uint16) bool {
	instances, _ := a.Registry.Instances(p.Service)
	for _, in := range instances {
		if in.Port == int(port) && sameHost(cmp.Or(in.Address, a.Registry.NodeAddress(in.Node)), host) {
			return true
		}
	}
	return false
}

// sameHost reports whether a socket bound to address is reached by host. All
// loopback addresses count as one, and an unspecified address as every one.
func sameHost(address, host string) bool {
	if address == host {
		return true
	}
	bound, err := netip.ParseAddr(address)
	if err != nil {
		return false
	}
	called, err := netip.ParseAddr(host)
	loopback := host == "localhost" || err == nil && called.IsLoopback()
	return bound.IsUnspecified() || bound.IsLoopback() && loopback
}

// workloads returns a function that says what stands before an endpoint. It asks for
// each service once.
func (a *api) workloads() func(weft.ServiceName, *weft.Endpoint) workload {
	known := map[weft.ServiceName]map[weft.InstanceKey]workload{}
	return func(n weft.ServiceName, e *weft.Endpoint) workload {
		if known[n] == nil {
			known[n] = map[weft.InstanceKey]workload{}
			for _, w := range a.Control.AuthorizationFor(n) {
				for _, key := range w.Instances {
					known[n][key] = workload{authorization: w.Authorization, paths: w.Paths}
				}
			}
		}
		node, id, _ := strings.Cut(e.ID, "/")
		key := weft.InstanceKey{Node: node, ID: id}
		out := known[n][key]
		_, out.port, _ = net.SplitHostPort(e.Address)
		if in, _ := a.Registry.Instance(key); in != nil {
			out.port = strconv.Itoa(in.Port)
		}
		return out
	}
}
