package resource

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
)

// gateway is a Gateway with the VirtualServices that name it. It is immutable; with
// makes the next one.
type gateway struct {
	*Resource
	spec         *networking.Gateway
	paths        pathChoice
	contributors map[place][]*virtualService // in order of precedence
	tables       map[string]*gatewayTable    // by host, or ":5432"
}

// gatewayTable is a table that is put together when it is asked for: a Set that is
// only looked at for what is wrong with it needs none.
type gatewayTable struct {
	table    func() *weft.RouteTable
	warnings weft.Problems
}

// place is what one VirtualService's rules of one sort are found by.
type place struct {
	sort placeSort
	name string // a host, or ":5432"
}

type placeSort uint8

const (
	httpPlace placeSort = iota // requests to a host
	tlsPlace                   // connections with an SNI, passed on
	tcpPlace                   // connections to a port
)

func newGateway(r *Resource, users []*virtualService) *gateway {
	g := &gateway{Resource: r, spec: r.Spec.(*networking.Gateway), paths: pathsOf(r)}
	next, _ := g.with(nil, users)
	return next
}

// with is the gateway after VirtualServices left and entered, and the names of the
// tables that this concerns.
func (g *gateway) with(left map[*virtualService]bool, entered []*virtualService) (*gateway, []string) {
	concerned := make(map[place][]*virtualService)
	for v := range left {
		for _, p := range g.places(v) {
			concerned[p] = nil
		}
	}
	for _, v := range entered {
		for _, p := range g.places(v) {
			concerned[p] = append(concerned[p], v)
		}
	}
	next := *g
	next.contributors, next.tables = cloned(g.contributors), cloned(g.tables)
	names := make(map[string]bool)
	for p, in := range concerned {
		names[p.name] = true
		if list := mergedServices(g.contributors[p], left, in); len(list) > 0 {
			next.contributors[p] = list
		} else {
			delete(next.contributors, p)
		}
	}
	for name := range names {
		if t := next.compile(name); t != nil {
			next.tables[name] = t
		} else {
			delete(next.tables, name)
		}
	}
	return &next, slices.Collect(maps.Keys(names))
}

// replaceGateways takes the Gateways of a change (changed), and the VirtualServices
// that left or entered, by the gateways that they name.
func (s *Set) replaceGateways(changed map[string]bool, left map[*virtualService]bool, entered map[string][]*virtualService) []HostOfGateway {
	if len(changed)+len(entered) == 0 && s.gateways != nil {
		return nil
	}
	var tables []HostOfGateway
	before := s.gateways
	s.gateways = cloned(before)
	for name := range changed {
		hosts := make(map[string]bool)
		if old := before[name]; old != nil {
			for host := range old.tables {
				hosts[host] = true
			}
		}
		namespace, bare, _ := strings.Cut(name, "/")
		if r := s.resources[Ref{gatewayKind, namespace, bare}]; r == nil {
			delete(s.gateways, name)
		} else {
			s.gateways[name] = newGateway(r, s.users[name])
			for host := range s.gateways[name].tables {
				hosts[host] = true
			}
		}
		for host := range hosts {
			tables = append(tables, HostOfGateway{name, host})
		}
	}
	for name, in := range entered {
		if g := before[name]; g != nil && !changed[name] {
			using := make(map[*virtualService]bool)
			for v := range left {
				using[v] = slices.Contains(v.gateways, name)
			}
			maps.DeleteFunc(using, func(_ *virtualService, uses bool) bool { return !uses })
			next, hosts := g.with(using, in)
			s.gateways[name] = next
			for _, host := range hosts {
				tables = append(tables, HostOfGateway{name, host})
			}
		}
	}
	return tables
}

// places are where a VirtualService's rules are found at the gateway.
func (g *gateway) places(v *virtualService) []place {
	rules := g.rulesOf(v)
	if rules == nil || v.private && v.Namespace != g.Namespace {
		return nil
	}
	var out []place
	if len(rules.http) > 0 {
		for _, host := range g.httpHosts(v) {
			out = append(out, place{httpPlace, host})
		}
	}
	for _, s := range g.spec.Servers {
		switch {
		case len(rules.tls) > 0 && passesOn(s):
			for i := range rules.tls {
				for _, host := range g.narrowed(s, v.Namespace, rules.tls[i].SNI) {
					if p := (place{tlsPlace, host}); rules.tls[i].Fits(host, portNumber(s)) && !slices.Contains(out, p) {
						out = append(out, p)
					}
				}
			}
		case len(rules.tcp) > 0 && serverProtocol(s) == weft.TCP && len(g.narrowed(s, v.Namespace, v.spec.Hosts)) > 0:
			if p := (place{tcpPlace, tcpTable(portNumber(s))}); firstFor(rules.tcp, portNumber(s)) && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

// tcpTable names the table of a TCP port: no host begins with ":".
func tcpTable(port uint16) string { return fmt.Sprintf(":%d", port) }

func tcpPort(table string) uint16 {
	port, _ := strconv.ParseUint(table[1:], 10, 16) // tcpTable wrote it
	return uint16(port)
}

func portNumber(s *networking.Server) uint16 { return uint16(s.GetPort().GetNumber()) }

func firstFor(rules []weft.RawRule, port uint16) bool {
	return slices.ContainsFunc(rules, func(r weft.RawRule) bool { return r.Fits("", port) })
}

// httpHosts are the hosts of a VirtualService whose requests the gateway serves: of
// each pair that overlaps, the narrower.
func (g *gateway) httpHosts(v *virtualService) []string {
	var out []string
	if v.private && v.Namespace != g.Namespace {
		return nil
	}
	for _, s := range g.spec.Servers {
		if serverProtocol(s) == weft.TCP || passesOn(s) {
			continue
		}
		for _, host := range g.narrowed(s, v.Namespace, v.spec.Hosts) {
			if !slices.Contains(out, host) {
				out = append(out, host)
			}
		}
	}
	return out
}

// narrowed are the hosts, as a VirtualService in namespace names them, that a server
// of the gateway serves.
func (g *gateway) narrowed(s *networking.Server, namespace string, hosts []string) []string {
	var out []string
	for _, pattern := range s.Hosts {
		ns, host, found := strings.Cut(pattern, "/")
		if !found {
			ns, host = "*", pattern
		}
		if ns != "*" && ns != namespace && !(ns == "." && namespace == g.Namespace) {
			continue
		}
		for _, h := range hosts {
			if n := narrower(gatewayHost(host, g.Namespace), gatewayHost(h, namespace)); n != "" && !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

// compile makes the table of a host or a port; nil when nothing is there.
func (g *gateway) compile(name string) *gatewayTable {
	http, tcp, tls := g.contributors[place{httpPlace, name}], g.contributors[place{tcpPlace, name}], g.contributors[place{tlsPlace, name}]
	if len(http)+len(tcp)+len(tls) == 0 {
		return nil
	}
	t := &gatewayTable{warnings: append(g.unreached(name, http), g.withoutPort(name, tcp)...)}
	// Not g itself: a table lives longer than the gateway of one moment, and must not
	// keep all other tables of that moment.
	alone := &gateway{Resource: g.Resource, spec: g.spec, paths: g.paths}
	t.table = sync.OnceValue(func() *weft.RouteTable {
		out := &weft.RouteTable{Host: name, Paths: alone.paths.mode, Rules: alone.requests(http), TCP: alone.connections(name, tcp), TLS: alone.passed(name, tls)}
		if i := slices.IndexFunc(http, func(v *virtualService) bool { return v.paths.said }); i >= 0 {
			out.Paths = http[i].paths.mode
		}
		if ends := alone.endsTLS(name, http); len(ends) > 0 {
			out.TLS = append(out.TLS, weft.RawRule{Name: "the gateway ends TLS", Source: alone.Source, Ports: ends})
		}
		return out
	})
	return t
}

// rulesOf are the rules of a VirtualService at this gateway.
func (g *gateway) rulesOf(v *virtualService) *ruleLists { return v.compiled[g.Namespace+"/"+g.Name] }

// requests puts the rules of VirtualServices one after another, and keeps one rule
// that fits everything, at the end: unlike sidecars, gateways put them together. The
// rules of one alone are shared.
func (g *gateway) requests(from []*virtualService) []weft.Rule {
	if len(from) == 1 {
		return g.rulesOf(from[0]).http
	}
	n := 0
	for _, v := range from {
		n += len(g.rulesOf(v).http)
	}
	out := make([]weft.Rule, 0, n)
	var last *weft.Rule
	for _, v := range from {
		rules := g.rulesOf(v).http
		for i := range rules {
			if !fitsAll(&rules[i]) {
				out = append(out, rules[i])
			} else if last == nil {
				last = &rules[i]
			}
		}
	}
	if last != nil {
		out = append(out, *last)
	}
	return out
}

// unreached warns of rules that requests leaves out. A rule that fits everything is
// always the last of its VirtualService.
func (g *gateway) unreached(host string, from []*virtualService) weft.Problems {
	var out weft.Problems
	var last *weft.Rule
	for _, v := range from {
		rules := g.rulesOf(v).http
		switch r := &rules[len(rules)-1]; {
		case !fitsAll(r):
		case last == nil:
			last = r
		default:
			out = append(out, weft.Problem{Warning: true, Source: r.Source, Mend: "give one of them a match",
				Message: "for the host " + host + " it is never reached: everything fits " + last.Source.String()})
		}
	}
	return out
}

// connections is the one rule of a TCP port: only the port tells connections apart.
func (g *gateway) connections(table string, from []*virtualService) []weft.RawRule {
	if len(from) == 0 {
		return nil
	}
	rule := *g.ruleFor(from[0], table)
	rule.Ports = []uint16{tcpPort(table)}
	return []weft.RawRule{rule}
}

// ruleFor is the first tcp rule of a VirtualService that takes a port's connections.
func (g *gateway) ruleFor(v *virtualService, table string) *weft.RawRule {
	rules := g.rulesOf(v).tcp
	return &rules[slices.IndexFunc(rules, func(r weft.RawRule) bool { return r.Fits("", tcpPort(table)) })]
}

// withoutPort warns of VirtualServices whose rules connections leaves out.
func (g *gateway) withoutPort(table string, from []*virtualService) weft.Problems {
	var out weft.Problems
	for i := 1; i < len(from); i++ {
		out = append(out, weft.Problem{Warning: true, Source: g.ruleFor(from[i], table).Source, Mend: "take it out, or give it another port",
			Message: fmt.Sprintf("it gets no connection to port %d: all go to %s", tcpPort(table), g.ruleFor(from[0], table).Source)})
	}
	return out
}

// passed are the tls rules of an SNI.
func (g *gateway) passed(host string, from []*virtualService) []weft.RawRule {
	var out []weft.RawRule
	for _, s := range g.spec.Servers {
		if !passesOn(s) {
			continue
		}
		for _, v := range from {
			if !slices.Contains(g.narrowed(s, v.Namespace, g.sniHosts(v)), host) {
				continue
			}
			for _, r := range g.rulesOf(v).tls {
				if r.Fits(host, portNumber(s)) {
					r.Ports, r.SNI = []uint16{portNumber(s)}, []string{host}
					out = append(out, r)
				}
			}
		}
	}
	return out
}

// endsTLS are the ports where the gateway itself ends TLS for a host whose requests
// VirtualServices route, though it passes on a wider name at the same port.
func (g *gateway) endsTLS(host string, requests []*virtualService) []uint16 {
	var out []uint16
	for _, s := range g.spec.Servers {
		if serverProtocol(s) == weft.TLS && !passesOn(s) && g.passesOnAt(portNumber(s)) &&
			slices.ContainsFunc(requests, func(v *virtualService) bool {
				return slices.Contains(g.narrowed(s, v.Namespace, v.spec.Hosts), host)
			}) {
			out = append(out, portNumber(s))
		}
	}
	return out
}

func (g *gateway) sniHosts(v *virtualService) []string {
	var out []string
	for _, r := range g.rulesOf(v).tls {
		out = append(out, r.SNI...)
	}
	return out
}

// passesOn reports whether a server passes TLS on as it is, which is what a tls
// without a mode says.
func passesOn(s *networking.Server) bool {
	return serverProtocol(s) == weft.TLS && s.GetTls().GetMode() == networking.ServerTLSSettings_PASSTHROUGH
}

func (g *gateway) passesOnAt(port uint16) bool {
	return slices.ContainsFunc(g.spec.Servers, func(s *networking.Server) bool { return portNumber(s) == port && passesOn(s) })
}

// serverProtocols are the words of a server's port.protocol, and what they come to:
// HTTP takes both versions anyway, and what is inside TLS is found out by ALPN.
var serverProtocols = map[string]weft.Protocol{
	"HTTP": weft.HTTP, "HTTP2": weft.HTTP, "GRPC": weft.HTTP, "GRPC-WEB": weft.HTTP,
	"HTTPS": weft.TLS, "TLS": weft.TLS,
	"TCP": weft.TCP, "MONGO": weft.TCP, "MYSQL": weft.TCP, "REDIS": weft.TCP,
}

func serverProtocol(s *networking.Server) weft.Protocol {
	return serverProtocols[strings.ToUpper(s.GetPort().GetProtocol())]
}

// Gateway returns the route tables of the Gateway resource "namespace/name", or
// "name" in the default namespace, sorted by host; nil when there is none.
func (s *Set) Gateway(name string) []*weft.RouteTable {
	g := s.gateways[qualifiedName(name)]
	if g == nil {
		return nil
	}
	out := make([]*weft.RouteTable, 0, len(g.tables))
	for _, host := range slices.Sorted(maps.Keys(g.tables)) {
		out = append(out, g.tables[host].table())
	}
	return out
}

// GatewayTable returns one table of what Gateway returns, or nil.
func (s *Set) GatewayTable(name, host string) *weft.RouteTable {
	if g := s.gateways[qualifiedName(name)]; g != nil && g.tables[host] != nil {
		return g.tables[host].table()
	}
	return nil
}

// HasGatewayTable reports whether GatewayTable returns one.
func (s *Set) HasGatewayTable(name, host string) bool {
	g := s.gateways[qualifiedName(name)]
	return g != nil && g.tables[host] != nil
}

// GatewayHosts returns the hosts of what Gateway returns, in no order; ok is false
// when there is no such Gateway.
func (s *Set) GatewayHosts(name string) (hosts []string, ok bool) {
	g := s.gateways[qualifiedName(name)]
	if g == nil {
		return nil, false
	}
	return slices.Collect(maps.Keys(g.tables)), true
}

// SameGateway reports whether name names the gateway "namespace/name".
func SameGateway(name, full string) bool { return qualifiedName(name) == full }

func qualifiedName(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return weft.DefaultNamespace + "/" + name
}

// gatewayHost is a host as requests at the edge name it. Only a short name is a
// service's: example.com is somebody's domain there.
func gatewayHost(host, namespace string) string {
	host = strings.ToLower(host)
	if strings.ContainsAny(host, ".*") {
		return host
	}
	return fullName(host, namespace)
}

// narrower is the host of the two that the other contains, or "".
func narrower(a, b string) string {
	contains := func(wide, narrow string) bool {
		suffix, wildcard := strings.CutPrefix(wide, "*")
		return wide == narrow || wildcard && strings.HasSuffix(strings.TrimPrefix(narrow, "*"), suffix)
	}
	switch {
	case contains(a, b):
		return b
	case contains(b, a):
		return a
	}
	return ""
}
