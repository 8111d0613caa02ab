package subscribe

import (
	"maps"
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
	authorization versioned[*weft.Authorization]
	trust         string            // version
	names         map[string]*names // by type URL

	version         uint64
	hostsChanged    bool // since the last build
	servicesChanged bool
	otherChanged    bool
}

// versioned is a resource that exists once.
type versioned[T any] struct {
	value   T
	version string
}

// gatewayState is the Gateway resource: what is published, and what waits for the
// services that it points to.
type gatewayState struct {
	name    string
	version string
	current *weft.Gateway // nil: not told yet
	next    *weft.Gateway // nil: current is the newest
}

// host is one that was asked for.
type host struct {
	name    string
	asked   atomic.Int64 // unix seconds; also written without the lock
	pinned  bool         // a gateway's tables lead here
	ready   bool         // current says something
	broken  bool         // not ready, as the only answer was unreadable
	version string
	current *weft.RouteTable // nil: it does not exist
	next    *weft.RouteTable // waits for its services; nil: current is the newest
}

func (h *host) touch(now time.Time) {
	if t := now.Unix(); h.asked.Load() != t {
		h.asked.Store(t)
	}
}

// service is one that a table points to.
type service struct {
	service           versioned[*weft.Service] // without endpoints; nil: it does not exist
	endpoints         []weft.Endpoint
	index             uint64
	endpointsVersion  string
	serviceAnswered   bool
	endpointsAnswered bool
	merged            *weft.Service // nil: make it anew
}

func (s *service) answered() bool { return s.serviceAnswered && s.endpointsAnswered }

// names are the subscriptions of one type: those that the server does not know of
// yet, and those that it should forget.
type names struct {
	all         map[string]struct{}
	subscribe   map[string]struct{}
	unsubscribe map[string]struct{}
}

func newState(role Role, namespace, gateway string) *state {
	s := &state{
		role: role, namespace: namespace, gateway: gatewayState{name: gateway},
		hosts: make(map[string]*host), unknown: make(map[string]*host),
		services: make(map[weft.ServiceName]*service), names: make(map[string]*names),
		hostsChanged: true, servicesChanged: true, otherChanged: true,
	}
	s.subscribe(weftpb.TrustType, weftpb.Self)
	if role == Gateway {
		s.subscribe(weftpb.GatewayType, gateway)
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
	delete(s.hosts, h.name)
	delete(s.unknown, h.name)
	if plausible(h.name) {
		s.unsubscribe(weftpb.RouteTableType, weftpb.RouteTableName(s.namespace, h.name))
	}
	s.hostsChanged = true
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
	s.track()
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

// settle follows the tables after a response: it asks for the services that they
// point to, takes up those tables whose services are all there, and gives up what
// nothing points to any more.
func (s *state) settle(tablesChanged bool) {
	if tablesChanged {
		s.track()
	}
	if s.promote() || tablesChanged {
		if known := len(s.hosts) - len(s.unknown); known > maxHosts && s.role == Sidecar {
			s.remove(oldest(s.known())) // one response may bring more; they go with the next
		}
		s.track()
	}
}

// promote takes up the tables that waited for services which are there now.
func (s *state) promote() (any bool) {
	for _, h := range s.hosts {
		if h.next != nil && s.complete(h.next) {
			h.current, h.next, h.ready, any = h.next, nil, true, true
			s.hostsChanged = true
		}
	}
	if s.gateway.next != nil && s.gatewayComplete() {
		s.gateway.current, s.gateway.next, any = s.gateway.next, nil, true
		s.otherChanged = true
	}
	return any
}

// complete reports whether every service that a table points to is answered.
func (s *state) complete(t *weft.RouteTable) bool {
	for n := range pointsTo(t) {
		if svc := s.services[n]; svc == nil || !svc.answered() {
			return false
		}
	}
	return true
}

func (s *state) gatewayComplete() bool {
	for _, t := range s.gateway.next.Tables() {
		if !s.complete(t) {
			return false
		}
		for n := range leadsInto(t) {
			if h := s.hosts[n.Host()]; h == nil || !h.ready && !h.broken {
				return false
			}
		}
	}
	return true
}

// pointsTo are the services that a table's rules send requests to.
func pointsTo(t *weft.RouteTable) map[weft.ServiceName]bool {
	out := make(map[weft.ServiceName]bool)
	if t == nil {
		return out
	}
	for i := range t.Rules {
		for _, d := range t.Rules[i].Destinations {
			out[d.Service] = true
		}
	}
	return out
}

// leadsInto are the services whose own rules apply next at a gateway.
func leadsInto(t *weft.RouteTable) map[weft.ServiceName]bool {
	out := make(map[weft.ServiceName]bool)
	for i := range t.Rules {
		for _, d := range t.Rules[i].Destinations {
			if d.Subset == "" {
				out[d.Service] = true
			}
		}
	}
	return out
}

func (s *state) gatewayTables() []*weft.RouteTable {
	var out []*weft.RouteTable
	for _, g := range []*weft.Gateway{s.gateway.current, s.gateway.next} {
		if g != nil {
			out = append(out, g.Tables()...)
		}
	}
	return out
}

// track makes services (and, at a gateway, pinned hosts) exactly what the tables
// point to, those that wait included.
func (s *state) track() {
	wanted := make(map[weft.ServiceName]bool)
	pinned := make(map[string]bool)
	for _, t := range s.gatewayTables() {
		maps.Copy(wanted, pointsTo(t))
		for n := range leadsInto(t) {
			pinned[n.Host()] = true
		}
	}
	if s.role == Gateway {
		s.pin(pinned)
	}
	for _, h := range s.hosts {
		maps.Copy(wanted, pointsTo(h.current))
		maps.Copy(wanted, pointsTo(h.next))
	}
	for n := range wanted {
		if s.services[n] == nil {
			s.services[n] = &service{}
			s.subscribe(weftpb.ServiceType, weftpb.ServiceResource(n))
			s.subscribe(weftpb.EndpointsType, weftpb.ServiceResource(n))
		}
	}
	for n := range s.services {
		if !wanted[n] {
			delete(s.services, n)
			s.unsubscribe(weftpb.ServiceType, weftpb.ServiceResource(n))
			s.unsubscribe(weftpb.EndpointsType, weftpb.ServiceResource(n))
			s.servicesChanged = true
		}
	}
}

// pin makes the hosts of a gateway those that its tables lead to.
func (s *state) pin(pinned map[string]bool) {
	for name := range pinned {
		if s.hosts[name] == nil {
			s.hosts[name] = &host{name: name, pinned: true}
			s.subscribe(weftpb.RouteTableType, weftpb.RouteTableName(s.namespace, name))
		}
	}
	for name, h := range s.hosts {
		if !pinned[name] {
			s.remove(h)
		}
	}
}

// build makes the next snapshot, or returns nil when nothing has changed. Parts
// that did not change are shared with the last one.
func (s *state) build(last *published) *published {
	if !s.hostsChanged && !s.servicesChanged && !s.otherChanged {
		return nil
	}
	s.version++
	next := &published{snapshot: &weft.Snapshot{Version: s.version, Gateway: s.gateway.current, Authorization: s.authorization.value}}
	if last != nil && !s.hostsChanged {
		next.snapshot.Hosts, next.hosts = last.snapshot.Hosts, last.hosts
	} else {
		next.snapshot.Hosts, next.hosts = make(map[string]*weft.RouteTable, len(s.hosts)), make(map[string]*host, len(s.hosts))
		for name, h := range s.hosts {
			if h.ready {
				next.snapshot.Hosts[name], next.hosts[name] = h.current, h
			}
		}
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
