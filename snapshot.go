package weft

import (
	"math/bits"
	"strings"
	"time"
)

// Endpoint is an instance as the data plane sees it. Only healthy instances
// become endpoints.
type Endpoint struct {
	ID       string   // "<node>/<instance id>"
	Address  string   // host:port to dial: the sidecar's mTLS port, or the instance itself
	Identity Identity // of the sidecar there; "" means plain text
	Weight   uint32   // at least 1
	Zone     string
	Labels   map[string]string
	Protocol Protocol // of the instance; "" is not declared
}

// Service is what a proxy needs to call one service.
type Service struct {
	Name      ServiceName
	Index     uint64 // the registry's index of these endpoints
	Endpoints []Endpoint
	Policy    TrafficPolicy
	Subsets   []Subset
	// Resilience is the ResiliencePolicy of the service, if it has one.
	Resilience *Resilience
	// Breaker holds the service's circuit in a state, as a person wants it:
	// "forced-open", "disabled", "metrics-only"; "" leaves it to the calls.
	Breaker string
}

// Resilience is a ResiliencePolicy on its way to a proxy.
type Resilience struct {
	Source SourceRef
	// Spec is the JSON of a resilience.Spec that has been validated. It stays JSON
	// because who carries it has no use for its fields, and who runs it has the
	// struct.
	Spec []byte
}

// Subset is the endpoints of a service that carry all of Labels, with a policy of
// their own.
type Subset struct {
	Name   string
	Labels map[string]string
	Policy TrafficPolicy // complete: already merged with the service's
}

// Subset finds a subset by name.
func (s *Service) Subset(name string) *Subset {
	for i := range s.Subsets {
		if s.Subsets[i].Name == name {
			return &s.Subsets[i]
		}
	}
	return nil
}

// Fits reports whether the endpoint carries all labels of the subset.
func (s *Subset) Fits(e *Endpoint) bool {
	for k, v := range s.Labels {
		if e.Labels[k] != v {
			return false
		}
	}
	return true
}

// LoadBalancer names an algorithm of package balance.
type LoadBalancer string

const (
	LeastRequest LoadBalancer = "LEAST_REQUEST" // two random choices, fewer in flight wins; the default
	RoundRobin   LoadBalancer = "ROUND_ROBIN"   // smoothly weighted
	Random       LoadBalancer = "RANDOM"
	PeakEWMA     LoadBalancer = "PEAK_EWMA" // two random choices, less latency × in flight wins
	RingHash     LoadBalancer = "RING_HASH" // by TrafficPolicy.Hash
	Maglev       LoadBalancer = "MAGLEV"    // by TrafficPolicy.Hash
)

// Hash says what of a request chooses its endpoint, with RingHash and Maglev: the
// first of its fields that is set. A request that lacks it is placed at random.
type Hash struct {
	Header     string // by name, lower case
	Query      string // parameter
	Cookie     string // by name; a response gets it when the request had none and CookieTTL is set
	CookiePath string
	CookieTTL  time.Duration // 0: the application sets the cookie
	SessionTTL bool          // the cookie is set, and lives as long as the browser
	SourceIP   bool
	RingSize   uint32 // least number of points on the ring, or Maglev's table size; 0: the default
}

// SlowStart gives a new endpoint less than its share for a while.
type SlowStart struct {
	Window     time.Duration // until it has its whole share
	Aggression float64       // 1 grows evenly; 0 means 1
	MinPercent uint32        // of its share at the start; 0 means 10
}

// Locality says which endpoints come first, by where they are. Endpoint.Zone and a
// proxy's own zone are "region/zone/subzone", or just a zone.
type Locality struct {
	// Distribute gives shares in percent to zones ("region/zone", or "region/*").
	// It excludes the others.
	Distribute []LocalityShares
	// Failover says which region stands in for another; without one, any does.
	Failover []LocalityFailover
	// Priority are labels that an endpoint should have, the most important first:
	// "key=value", or topology.kubernetes.io/region, topology.kubernetes.io/zone and
	// topology.istio.io/subzone for those of the proxy.
	Priority []string
}

// LocalityShares are the shares of what calls come From.
type LocalityShares struct {
	From string
	To   map[string]uint32
}

// LocalityFailover of a region.
type LocalityFailover struct{ From, To string }

// TrafficPolicy is how a proxy treats a service. Zero values mean no limit, or
// the default named.
type TrafficPolicy struct {
	Source             SourceRef // the DestinationRule, if any
	LoadBalancer       LoadBalancer
	Hash               *Hash         // nil: endpoints are not chosen by what is asked
	SlowStart          *SlowStart    // nil: new endpoints get their share at once
	Locality           *Locality     // nil: where an endpoint is does not matter
	ConnectTimeout     time.Duration // default 10 s
	IdleTimeout        time.Duration // of pooled connections; default 1 h, capped by the proxy
	MaxConnections     uint32        // per proxy
	MaxPendingRequests uint32        // waiting for a connection, per proxy
	MaxRequests        uint32        // in flight, per proxy
	MaxRequestsPerConn uint32
	HTTP2              bool   // speak HTTP/2 to endpoints that declare nothing or plain http
	MaxStreams         uint32 // at once on one HTTP/2 connection
	// ProxyProtocol is the version, 1 or 2, of the PROXY header that raw connections
	// to endpoints without an identity begin with; 0: none. Sidecars know their
	// callers better, and connections of HTTP carry requests of many clients: to
	// those it does not apply.
	ProxyProtocol uint8
	Outlier       *Outlier // nil: no ejection
}

// Outlier ejects endpoints that fail (DestinationRule outlierDetection).
type Outlier struct {
	Consecutive5xx     uint32 // 0 is off
	ConsecutiveGateway uint32 // 502, 503, 504 and broken connections; 0 is off
	// ConsecutiveLocal counts what fails on this side (no connection, a broken one, a
	// timeout) apart from answers: so many in a row eject, and neither of the other
	// two counts them. 0: they count as 503. More than ever come in a row: they eject
	// nothing.
	ConsecutiveLocal   uint32
	Interval           time.Duration // how often ejected endpoints are looked at
	BaseEjection       time.Duration // × times ejected
	MaxEjection        time.Duration // cap of one ejection
	MaxEjectionPercent uint32
	MinHealthPercent   uint32
}

// Gateway is the edge's view: route tables by host pattern.
type Gateway struct {
	Name  string
	hosts map[string]*RouteTable // exact, and wildcards as ".example.com"
	any   *RouteTable            // "*"
	tls   bool                   // a table has tls rules
	tcp   map[uint16]*RawRule    // by port of the gateway
}

// NewGateway indexes tables by their Host: exact, "*.example.com" or "*"; and
// their tcp rules by port, the first that asks for it.
func NewGateway(name string, tables []*RouteTable) *Gateway {
	g := &Gateway{Name: name, hosts: make(map[string]*RouteTable, len(tables)), tcp: make(map[uint16]*RawRule)}
	for _, t := range tables {
		g.tls = g.tls || len(t.TLS) > 0
		for i := range t.TCP {
			for _, port := range t.TCP[i].Ports {
				if g.tcp[port] == nil {
					g.tcp[port] = &t.TCP[i]
				}
			}
		}
		switch {
		case t.Host == "*":
			g.any = t
		case strings.HasPrefix(t.Host, "*."):
			g.hosts[t.Host[1:]] = t
		default:
			g.hosts[t.Host] = t
		}
	}
	return g
}

// Tables returns every table of the gateway, in no order.
func (g *Gateway) Tables() []*RouteTable {
	var out []*RouteTable
	for _, t := range g.hosts {
		out = append(out, t)
	}
	if g.any != nil {
		out = append(out, g.any)
	}
	return out
}

// Lookup finds the table of a host: exact, then the longest wildcard, then "*".
// "*.foo.com" does not fit "foo.com".
func (g *Gateway) Lookup(host string) *RouteTable {
	if t := g.hosts[host]; t != nil {
		return t
	}
	for rest := host; ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			return g.any
		}
		if t := g.hosts[rest[i:]]; t != nil {
			return t
		}
		rest = rest[i+1:]
	}
}

// Snapshot is the immutable compiled state that a proxy runs on. A proxy swaps
// one pointer to change it; exchanges in flight finish on the one they began
// with.
type Snapshot struct {
	Version uint64 // grows with every change of this proxy's snapshot
	// Hosts holds the route table of every host that was asked for, by the name
	// that was asked for. A nil value says that the host is known not to exist.
	Hosts    map[string]*RouteTable
	Services map[ServiceName]*Service
	Gateway  *Gateway // set at a gateway only
	// Authorization of the workload that this proxy stands before, and how the paths
	// of the requests to it are normalised before its policies see them.
	Authorization *Authorization
	Paths         PathMode
}

// PathMode is how the paths of requests to a host (lower case, no port) are
// normalised on their way out of a sidecar or into a gateway. It is to be asked
// before Route, which takes the normal path.
func (s *Snapshot) PathMode(host string) PathMode {
	var t *RouteTable
	if s.Gateway != nil {
		t = s.Gateway.Lookup(host)
	} else {
		t = s.Hosts[host]
	}
	if t == nil {
		return PathBase
	}
	return t.Paths
}

// Decision is the answer of Snapshot.Route, and of RouteTCP, RouteTLS and
// RouteGatewayTCP, which have EdgeRaw and Raw in place of Edge and Rule.
type Decision struct {
	Edge        *Rule // the gateway's rule that handed over to Rule; nil elsewhere
	Rule        *Rule
	EdgeRaw     *RawRule
	Raw         *RawRule
	Destination *Destination
	Service     *Service
	// Problem says why there is nowhere to go; empty when Destination and
	// Service are set, or when Rule answers by itself (Redirect, Direct).
	Problem RouteProblem
}

// OwnPolicy is the rule whose own ResiliencePolicy goes before that of the service,
// or nil. Nothing goes before a person who holds the service's circuit open.
func (d *Decision) OwnPolicy() *Rule {
	switch {
	case d.Service != nil && d.Service.Breaker == "forced-open":
		return nil
	case d.Rule != nil && d.Rule.Resilience != nil:
		return d.Rule
	case d.Edge != nil && d.Edge.Resilience != nil:
		return d.Edge
	}
	return nil
}

// RouteProblem is why a request has nowhere to go.
type RouteProblem string

const (
	NoHost      RouteProblem = "no such host"
	NoRule      RouteProblem = "no rule fits"
	NoService   RouteProblem = "service is not known"
	NoSubset    RouteProblem = "subset is not defined"
	NoEndpoints RouteProblem = "no healthy endpoint"
	NotLoaded   RouteProblem = "configuration is not loaded yet"
)

// Route decides where a request goes. random (uniform over 64 bits) chooses
// between weighted destinations.
//
// At a gateway the edge's rule is looked up first. If its destination names a
// service without a subset, that service's own rules apply next, as they would
// for a call inside the mesh: a canary of order-service is a canary for
// everybody who calls it.
func (s *Snapshot) Route(r *Request, random uint64) Decision {
	if s.Gateway == nil {
		table, asked := s.Hosts[r.Host]
		switch {
		case !asked:
			return Decision{Problem: NotLoaded}
		case table == nil:
			return Decision{Problem: NoHost}
		}
		return s.follow(table, r, random)
	}
	table := s.Gateway.Lookup(r.Host)
	if table == nil {
		return Decision{Problem: NoHost}
	}
	d := s.follow(table, r, random)
	if d.Destination == nil || d.Destination.Subset != "" {
		return d
	}
	own := s.Hosts[d.Destination.host]
	if own == nil || len(own.Rules) == 0 {
		return d
	}
	// Scrambled, so that the edge's choice does not decide this one (splitmix64's step).
	inner := s.follow(own, r, bits.RotateLeft64(random*0x9e3779b97f4a7c15, 32))
	inner.Edge = d.Rule
	return inner
}

// follow applies one table.
func (s *Snapshot) follow(t *RouteTable, r *Request, random uint64) Decision {
	rule := t.Match(r)
	if rule == nil {
		return Decision{Problem: NoRule}
	}
	d := Decision{Rule: rule}
	if rule.Redirect != nil || rule.Direct != nil {
		return d
	}
	d.Destination = rule.pick(random)
	d.Service = s.Services[d.Destination.Service]
	d.Problem = d.nowhere()
	return d
}

// nowhere says why the destination that was chosen cannot be reached.
func (d *Decision) nowhere() RouteProblem {
	switch {
	case d.Service == nil:
		return NoService
	case d.Destination.Subset != "" && d.Service.Subset(d.Destination.Subset) == nil:
		return NoSubset
	}
	return ""
}
