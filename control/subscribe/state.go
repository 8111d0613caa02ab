package subscribe

import (
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/weftpb"
)

const (
	maxHostLength = 253 // RFC 1035 §2.3.4, without the final dot

	// maxHosts bounds the hosts that exist and are kept; maxUnknown those that do
	// not, or were not answered yet: any client can make those up. Beyond, the
	// least recently asked for goes.
	maxHosts   = 10_000
	maxUnknown = 1000

	// A host that nobody asked for in forgetAfter goes, if there are more than
	// keepAlways. Whoever looks only at snapshots is not seen to use a host; with
	// few hosts it should not lose one, and the connections to it, every hour.
	forgetAfter    = time.Hour
	forgetInterval = time.Minute
	keepAlways     = 256
)

// state is what the server told, and what it was asked: the protocol's state
// without I/O and clock. Client.mu guards it.
type state struct {
	role      Role // constant
	namespace string
	gateway   gatewayState

	hosts         map[string]*host
	unknown       map[string]*host // those of hosts that do not exist, or are not answered
	services      map[weft.ServiceName]*service
	waiting       map[*host]struct{} // those with a table that waits for its services
	authorization versioned[*weft.Authorization]
	paths         weft.PathMode     // comes with authorization
	trust         string            // version
	names         map[string]*names // by type URL

	// What nothing points to any more, if nothing has come to since.
	spareServices map[weft.ServiceName]struct{}
	spareHosts    map[string]struct{}

	version         uint64
	hostsChanged    bool // since the last build
	servicesChanged bool
	gatewayChanged  bool
	otherChanged    bool
}

// versioned is a resource that exists once.
type versioned[T any] struct {
	value   T
	version string
}

// gatewayState is the Gateway resource and its tables.
type gatewayState struct {
	name    string
	version string
	told    bool                 // whether there is a Gateway; all its tables have come, then
	live    bool                 // it was published
	tables  map[string]*routed   // by host
	waiting map[*routed]struct{} // those that wait for services, or for rules of services
	// pins counts the tables that lead into a host's rules.
	pins map[string]int
}

// routed is a table as it was told, and as it is published.
type routed struct {
	version string
	ready   bool             // current says something
	current *weft.RouteTable // nil: it does not exist
	next    *weft.RouteTable // waits for its services; nil: current is the newest
	decoder weftpb.TableDecoder
}

// host is one that was asked for.
type host struct {
	name   string
	asked  atomic.Int64 // unix seconds; also written without the lock
	pinned bool         // a gateway's tables lead here
	broken bool         // not ready, as the only answer was unreadable
	routed
}

func (h *host) touch(now time.Time) {
	if t := now.Unix(); h.asked.Load() != t {
		h.asked.Store(t)
	}
}

// service is one that a table points to.
type service struct {
	uses              int                      // tables that point here, those that wait included
	standsIn          int                      // services in use that fall back to this one
	fallback          weft.ServiceName         // what this one, while in use, falls back to; empty: nothing
	service           versioned[*weft.Service] // without endpoints; nil: it does not exist
	endpoints         []weft.Endpoint
	index             uint64
	endpointsVersion  string
	serviceAnswered   bool
	endpointsAnswered bool
	merged            *weft.Service // nil: make it anew
}

func (s *service) answered() bool { return s.serviceAnswered && s.endpointsAnswered }

func (s *service) needed() bool { return s.uses+s.standsIn > 0 }

// names are the subscriptions of one type: those that the server does not know of
// yet, and those that it should forget.
type names struct {
	all         map[string]struct{}
	subscribe   map[string]struct{}
	unsubscribe map[string]struct{}
}

func newState(role Role, namespace, gateway string) *state {
	s := &state{
		role: role, namespace: namespace,
		gateway: gatewayState{name: gateway, tables: make(map[string]*routed), waiting: make(map[*routed]struct{}), pins: make(map[string]int)},
		hosts:   make(map[string]*host), unknown: make(map[string]*host), waiting: make(map[*host]struct{}),
		services: make(map[weft.ServiceName]*service), names: make(map[string]*names),
		spareServices: make(map[weft.ServiceName]struct{}), spareHosts: make(map[string]struct{}),
		hostsChanged: true, servicesChanged: true, otherChanged: true,
	}
	s.subscribe(weftpb.TrustType, weftpb.Self)
	if role == Gateway {
		s.subscribe(weftpb.GatewayType, gateway)
		s.subscribe(weftpb.GatewayTableType, weftpb.GatewayTableName(gateway, ""))
	} else {
		s.subscribe(weftpb.AuthorizationType, weftpb.Self)
		s.authorization.value = notTold
	}
	return s
}

// notTold denies everything, as a policy that allows nothing does.
var notTold = &weft.Authorization{Policies: []*weft.AuthorizationPolicy{{
	Source: weft.SourceRef{Kind: "weft", Name: "policies of this workload are not loaded yet"},
	Action: weft.Allow,
}}}

func (s *state) namesOf(typeURL string) *names {
	n := s.names[typeURL]
	if n == nil {
		n = &names{all: make(map[string]struct{}), subscribe: make(map[string]struct{}), unsubscribe: make(map[string]struct{})}
		s.names[typeURL] = n
	}
	return n
}

// types are those of names, the Gateway's last: the server sends that when all tables
// that were asked for before it are sent.
func (s *state) types() []string {
	return slices.SortedFunc(maps.Keys(s.names), func(a, b string) int {
		switch weftpb.GatewayType {
		case a:
			return 1
		case b:
			return -1
		}
		return strings.Compare(a, b)
	})
}

func (s *state) subscribe(typeURL, name string) {
	n := s.namesOf(typeURL)
	n.all[name] = struct{}{}
	n.subscribe[name] = struct{}{}
	delete(n.unsubscribe, name)
}

func (s *state) unsubscribe(typeURL, name string) {
	n := s.namesOf(typeURL)
	delete(n.all, name)
	delete(n.subscribe, name)
	n.unsubscribe[name] = struct{}{}
}

// want notes that a host was asked for. It reports whether the snapshot changes by
// that alone: for what cannot be a host's name nobody needs to be asked.
func (s *state) want(name string, now time.Time) (changed bool) {
	if h := s.hosts[name]; h != nil {
		h.touch(now)
		return false
	}
	s.makeRoom()
	h := &host{name: name}
	h.touch(now)
	s.hosts[name], s.unknown[name] = h, h
	if !plausible(name) {
		h.ready, s.hostsChanged = true, true
		return true
	}
	s.subscribe(weftpb.RouteTableType, weftpb.RouteTableName(s.namespace, name))
	return false
}

// makeRoom for one more host that is not known to exist.
func (s *state) makeRoom() {
	for len(s.unknown) >= maxUnknown {
		s.remove(oldest(s.unknown))
	}
}

// plausible reports whether name may be a host: nothing else needs to go over the
// wire. What a host is exactly is the server's to say.
func plausible(name string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || c == '/' || 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return true
}

// oldest is the host that was asked for longest ago; nil of none.
func oldest(hosts map[string]*host) *host {
	var out *host
	for _, h := range hosts {
		if out == nil || h.asked.Load() < out.asked.Load() {
			out = h
		}
	}
	return out
}

// known are the hosts that exist, and may be given up.
func (s *state) known() map[string]*host {
	out := make(map[string]*host)
	for name, h := range s.hosts {
		if s.unknown[name] == nil && !h.pinned {
			out[name] = h
		}
	}
	return out
}

func (s *state) remove(h *host) {
	s.release(h.current)
	s.release(h.next)
	delete(s.waiting, h)
	delete(s.hosts, h.name)
	delete(s.unknown, h.name)
	if plausible(h.name) {
		s.unsubscribe(weftpb.RouteTableType, weftpb.RouteTableName(s.namespace, h.name))
	}
	s.hostsChanged = s.hostsChanged || h.ready
}

// forget removes what nobody asked for in forgetAfter, and reports whether that was
// anything.
func (s *state) forget(now time.Time) bool {
	limit := now.Add(-forgetAfter).Unix()
	known := s.known()
	spare := len(known) - keepAlways
	before := len(s.hosts)
	for _, h := range s.unknown {
		if h.asked.Load() < limit {
			s.remove(h)
		}
	}
	for _, h := range known {
		if spare > 0 && h.asked.Load() < limit {
			s.remove(h)
			spare--
		}
	}
	if len(s.hosts) == before {
		return false
	}
	s.sweep()
	return true
}

// hopeless reports whether a host that is not in the snapshot will not come into it:
// what the server told of it is unreadable, or it had to make room for others.
func (s *state) hopeless(name string) bool {
	if s.role == Gateway {
		return false
	}
	h := s.hosts[name]
	return h == nil || h.broken
}

// settle follows a response: it takes up the tables whose services are all there,
// and gives up what nothing points to any more.
func (s *state) settle() {
	s.promote()
	if s.role == Sidecar && len(s.hosts)-len(s.unknown) > maxHosts {
		s.remove(oldest(s.known())) // one response may bring more; they go with the next
	}
	s.sweep()
}

// promote takes up the tables that waited for services which are there now.
func (s *state) promote() {
	for h := range s.waiting {
		if s.complete(h.next) {
			s.takeUp(&h.routed)
			delete(s.waiting, h)
			s.hostsChanged = true
		}
	}
	for t := range s.gateway.waiting {
		if s.complete(t.next) && s.rulesBehind(t.next) {
			s.unpin(t.current)
			s.takeUp(t)
			delete(s.gateway.waiting, t)
			s.gatewayChanged = true
		}
	}
}

func (s *state) takeUp(t *routed) {
	before := t.current
	t.current, t.next, t.ready = t.next, nil, true
	s.release(before)
}

// complete reports whether every service that a table points to is answered, and
// what it falls back to, too.
func (s *state) complete(t *weft.RouteTable) bool {
	for n := range pointsTo(t) {
		svc := s.services[n]
		if svc == nil || !svc.answered() {
			return false
		}
		if svc.fallback.Name != "" && !s.services[svc.fallback].answered() {
			return false
		}
	}
	return true
}

// rulesBehind reports whether the rules of all services that a gateway's table leads
// into are there.
func (s *state) rulesBehind(t *weft.RouteTable) bool {
	for n := range leadsInto(t) {
		if h := s.hosts[n.Host()]; h == nil || !h.ready && !h.broken {
			return false
		}
	}
	return true
}

// eachDestination calls f for every destination of a table; nil has none.
func eachDestination(t *weft.RouteTable, f func(*weft.Destination)) {
	if t == nil {
		return
	}
	for i := range t.Rules {
		for j := range t.Rules[i].Destinations {
			f(&t.Rules[i].Destinations[j])
		}
	}
	for _, raw := range [...][]weft.RawRule{t.TCP, t.TLS} {
		for i := range raw {
			for j := range raw[i].Destinations {
				f(&raw[i].Destinations[j])
			}
		}
	}
}

// pointsTo are the services that a table's rules send requests or connections to, or
// fall back to.
func pointsTo(t *weft.RouteTable) map[weft.ServiceName]bool {
	out := make(map[weft.ServiceName]bool)
	eachDestination(t, func(d *weft.Destination) { out[d.Service] = true })
	if t == nil {
		return out
	}
	for i := range t.Rules {
		if n, ok := weftpb.Fallback(t.Rules[i].Resilience); ok {
			out[n] = true
		}
	}
	return out
}

// leadsInto are the services whose own rules apply next at a gateway.
func leadsInto(t *weft.RouteTable) map[weft.ServiceName]bool {
	out := make(map[weft.ServiceName]bool)
	eachDestination(t, func(d *weft.Destination) {
		if d.Subset == "" {
			out[d.Service] = true
		}
	})
	return out
}

// use asks for the services that a table points to.
func (s *state) use(t *weft.RouteTable) {
	for n := range pointsTo(t) {
		svc := s.serviceOf(n)
		svc.uses++
		s.rely(svc)
	}
}

// release ends use.
func (s *state) release(t *weft.RouteTable) {
	for n := range pointsTo(t) {
		svc := s.services[n]
		svc.uses--
		s.rely(svc)
		s.spare(n)
	}
}

// serviceOf is a service that has come to be needed.
func (s *state) serviceOf(n weft.ServiceName) *service {
	svc := s.services[n]
	if svc == nil {
		svc = &service{}
		s.services[n] = svc
		s.subscribe(weftpb.ServiceType, weftpb.ServiceResource(n))
		s.subscribe(weftpb.EndpointsType, weftpb.ServiceResource(n))
	}
	return svc
}

// spare notes a service that may be needed no more.
func (s *state) spare(n weft.ServiceName) {
	if !s.services[n].needed() {
		s.spareServices[n] = struct{}{}
	}
}

// rely asks for the service that svc falls back to, as long as tables point to svc.
// What that one falls back to is not asked for: a fallback has none.
func (s *state) rely(svc *service) {
	var next weft.ServiceName
	if svc.uses > 0 && svc.service.value != nil {
		next, _ = weftpb.Fallback(svc.service.value.Resilience)
	}
	before := svc.fallback
	if next == before {
		return
	}
	svc.fallback = next
	if next.Name != "" {
		s.serviceOf(next).standsIn++
	}
	if before.Name != "" {
		s.services[before].standsIn--
		s.spare(before)
	}
}

// await makes t the newest of a table, which is taken up when its services are there.
func (s *state) await(r *routed, t *weft.RouteTable) {
	s.use(t)
	s.release(r.next)
	r.next = t
}

// pin asks for the rules of the services that a gateway's table leads into, which
// apply next; unpin ends that.
func (s *state) pin(t *weft.RouteTable) {
	for n := range leadsInto(t) {
		name := n.Host()
		s.gateway.pins[name]++
		if s.hosts[name] == nil {
			s.hosts[name] = &host{name: name, pinned: true}
			s.subscribe(weftpb.RouteTableType, weftpb.RouteTableName(s.namespace, name))
		}
	}
}

func (s *state) unpin(t *weft.RouteTable) {
	for n := range leadsInto(t) {
		name := n.Host()
		if s.gateway.pins[name]--; s.gateway.pins[name] == 0 {
			delete(s.gateway.pins, name)
			s.spareHosts[name] = struct{}{}
		}
	}
}

// sweep gives up what nothing points to.
func (s *state) sweep() {
	for name := range s.spareHosts {
		if h := s.hosts[name]; h != nil && s.gateway.pins[name] == 0 {
			s.remove(h)
		}
	}
	clear(s.spareHosts)
	for n := range s.spareServices {
		svc := s.services[n]
		if svc == nil || svc.needed() {
			continue
		}
		s.servicesChanged = s.servicesChanged || svc.merge() != nil
		delete(s.services, n)
		s.unsubscribe(weftpb.ServiceType, weftpb.ServiceResource(n))
		s.unsubscribe(weftpb.EndpointsType, weftpb.ServiceResource(n))
	}
	clear(s.spareServices)
}

// removeGatewayTable takes the word that a table is no more.
func (s *state) removeGatewayTable(host string) {
	r := s.gateway.tables[host]
	if r == nil {
		return
	}
	for _, t := range []*weft.RouteTable{r.current, r.next} {
		s.unpin(t)
		s.release(t)
	}
	delete(s.gateway.tables, host)
	delete(s.gateway.waiting, r)
	s.gatewayChanged = true
}

// gatewayReady reports whether the gateway's tables can be published: it is known
// whether there is a Gateway, and all that it led to at first is there.
func (s *state) gatewayReady() bool {
	return s.gateway.told && (s.gateway.live || len(s.gateway.waiting) == 0)
}

func (s *state) buildGateway() *weft.Gateway {
	tables := make([]*weft.RouteTable, 0, len(s.gateway.tables))
	for _, t := range s.gateway.tables {
		if t.ready {
			tables = append(tables, t.current)
		}
	}
	return weft.NewGateway(s.gateway.name, tables)
}

// build makes the next snapshot, or returns nil when nothing has changed. Parts
// that did not change are shared with the last one.
func (s *state) build(last *published) *published {
	gateway := s.gatewayChanged && s.gatewayReady()
	if !s.hostsChanged && !s.servicesChanged && !gateway && !s.otherChanged {
		return nil
	}
	s.version++
	next := &published{snapshot: &weft.Snapshot{Version: s.version, Authorization: s.authorization.value, Paths: s.paths}}
	if last != nil && !s.hostsChanged {
		next.snapshot.Hosts, next.hosts = last.snapshot.Hosts, last.hosts
	} else {
		s.buildHosts(next)
	}
	if gateway {
		next.snapshot.Gateway = s.buildGateway()
		s.gateway.live, s.gatewayChanged = true, false
	} else if last != nil {
		next.snapshot.Gateway = last.snapshot.Gateway
	}
	if last != nil && !s.servicesChanged {
		next.snapshot.Services = last.snapshot.Services
	} else {
		next.snapshot.Services = make(map[weft.ServiceName]*weft.Service, len(s.services))
		for n, svc := range s.services {
			if m := svc.merge(); m != nil {
				next.snapshot.Services[n] = m
			}
		}
	}
	s.hostsChanged, s.servicesChanged, s.otherChanged = false, false, false
	return next
}

func (s *state) buildHosts(next *published) {
	next.snapshot.Hosts = make(map[string]*weft.RouteTable, len(s.hosts))
	if s.role == Sidecar { // a gateway's hosts are not asked for by name
		next.hosts = make(map[string]*host, len(s.hosts))
	}
	for name, h := range s.hosts {
		if !h.ready {
			continue
		}
		next.snapshot.Hosts[name] = h.current
		if next.hosts != nil {
			next.hosts[name] = h
		}
	}
}

// merge puts Service and Endpoints together. What did not change stays the same
// value, by which a proxy sees that there is nothing to do.
func (s *service) merge() *weft.Service {
	if s.service.value == nil || !s.answered() {
		return nil
	}
	if s.merged == nil {
		m := *s.service.value
		m.Endpoints, m.Index = s.endpoints, s.index
		s.merged = &m
	}
	return s.merged
}

// hostOf is the host of a RouteTable's name.
func (s *state) hostOf(name string) *host {
	namespace, host, _ := strings.Cut(name, "/")
	if namespace != s.namespace {
		return nil
	}
	return s.hosts[host]
}
