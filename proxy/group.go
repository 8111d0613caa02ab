package proxy

import (
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/balance"
	"github.com/weftmesh/weft/resilience"
)

// group is a subset's endpoints (or all) with the policy that applies to them.
type group struct {
	policy    *weft.TrafficPolicy
	outlier   *resilience.OutlierPolicy // nil: no ejection
	endpoints []*endpoint
	picker    *balance.Picker
	observes  bool // the picker wants to know how long calls take
	refreshes bool // what the picker knows of its members changes with time
}

var algorithms = map[weft.LoadBalancer]balance.Algorithm{
	weft.LeastRequest: balance.LeastRequest, weft.RoundRobin: balance.RoundRobin, weft.Random: balance.Random,
	weft.PeakEWMA: balance.PeakEWMA, weft.RingHash: balance.RingHash, weft.Maglev: balance.Maglev,
}

// newGroup groups those endpoints that fit the subset; nil fits all. live has the
// same endpoints as they live on. zone is where the proxy is.
func newGroup(p *weft.TrafficPolicy, zone string, endpoints []weft.Endpoint, live []*endpoint, subset *weft.Subset) *group {
	g := &group{policy: p, observes: p.LoadBalancer == weft.PeakEWMA}
	config := balance.Config{Algorithm: algorithms[p.LoadBalancer]}
	if p.Hash != nil {
		config.RingSize = p.Hash.RingSize
	}
	if s := p.SlowStart; s != nil {
		config.SlowStart = balance.SlowStart{Window: s.Window, Aggression: s.Aggression, MinPercent: s.MinPercent}
	}
	if o := p.Outlier; o != nil {
		config.PanicPercent = o.MinHealthPercent
		g.outlier = &resilience.OutlierPolicy{
			Consecutive5xx: o.Consecutive5xx, ConsecutiveGateway: o.ConsecutiveGateway, ConsecutiveLocal: o.ConsecutiveLocal,
			Interval: o.Interval, BaseEjection: o.BaseEjection, MaxEjection: o.MaxEjection,
			MaxEjectionPercent: o.MaxEjectionPercent,
		}
	}
	g.refreshes = p.Outlier != nil || p.SlowStart != nil
	where := newPlaces(p.Locality, zone)
	config.Shares = where.shares
	var members []balance.Member
	keys := make(map[string]bool, len(endpoints))
	for i := range endpoints {
		e := &endpoints[i]
		if subset != nil && !subset.Fits(e) {
			continue
		}
		g.endpoints = append(g.endpoints, live[i])
		key := e.Address
		if keys[key] { // two instances at one address
			key += "|" + e.ID
		}
		keys[key] = true
		members = append(members, balance.Member{Target: &live[i].target, Key: key, Weight: e.Weight,
			Priority: where.priority(e), Zone: where.share(e)})
	}
	var err error
	if g.picker, err = balance.NewPicker(config, members); err != nil {
		// A ring's size, or shares that are none: control has said so. Any endpoint is
		// better than none.
		g.picker, _ = balance.NewPicker(balance.Config{}, members)
	}
	g.refresh(time.Now().UnixNano())
	return g
}

// refresh tells the pickers which endpoints are ejected.
func (s *endpointSet) refresh(now int64) {
	if s.all.refreshes {
		s.all.refresh(now)
	}
	for _, g := range s.subsets {
		if g.refreshes {
			g.refresh(now)
		}
	}
}

func (g *group) refresh(now int64) {
	at := time.Unix(0, now)
	g.picker.Refresh(now, func(i int) bool { return g.outlier == nil || !g.endpoints[i].outlier.Ejected(at) })
}

// maxTried bounds how many endpoints an exchange remembers having tried.
const maxTried = 8

// choice is what of a call decides its endpoint.
type choice struct {
	random uint64
	hash   uint64
	hashed bool // hash counts
	now    time.Time
	tried  []*endpoint
}

// pick chooses an endpoint that is in service, is not known to be down and was not
// tried yet, or nil.
func (g *group) pick(c choice) *endpoint {
	ns := c.now.UnixNano()
	return g.at(g.picker.Pick(&balance.Query{Random: c.random, Hash: c.hash, Hashed: c.hashed, Now: ns, Usable: func(i int) bool {
		e := g.endpoints[i]
		if e.downUntil.Load() > ns {
			return false
		}
		for _, t := range c.tried {
			if t == e {
				return false
			}
		}
		return true
	}}))
}

// pickAny chooses also what was tried or is down; ejected endpoints never get
// traffic, unless nearly all are.
func (g *group) pickAny(c choice) *endpoint {
	return g.at(g.picker.Pick(&balance.Query{Random: c.random, Hash: c.hash, Hashed: c.hashed, Now: c.now.UnixNano()}))
}

// dropIdle closes one idle connection to make room for a new one.
func (g *group) dropIdle() {
	for _, e := range g.endpoints {
		if e.pool.dropOldest() {
			return
		}
	}
}

func (g *group) at(i int) *endpoint {
	if i < 0 {
		return nil
	}
	return g.endpoints[i]
}

// succeeded and failed tell what an endpoint answered: the food of outlier
// detection.
func (g *group) succeeded(e *endpoint) {
	e.answered()
	if g.outlier != nil {
		e.outlier.Success()
	}
}

// failed returns for how long the endpoint was ejected because of this failure,
// or 0.
func (g *group) failed(e *endpoint, kind resilience.Fault, now time.Time) time.Duration {
	if kind != resilience.FaultLocal {
		e.answered()
	}
	if g.outlier == nil || !e.outlier.Failure(g.outlier, kind) {
		return 0
	}
	ejected := 0
	for _, other := range g.endpoints {
		if other.outlier.Ejected(now) {
			ejected++
		}
	}
	out := e.outlier.Eject(g.outlier, now, ejected, len(g.endpoints))
	if out > 0 {
		e.target.Join(now.Add(out).UnixNano()) // slowly, when it is back
		g.refresh(now.UnixNano())
	}
	return out
}

// places says how near endpoints are, seen from one zone. The zero value sees no
// difference.
type places struct {
	own      []string // region, zone, subzone
	labels   []string // that count instead, the most important first
	failover string   // region that stands in for the own one; "": any
	shares   map[string]uint32
}

func newPlaces(l *weft.Locality, zone string) places {
	if l == nil || zone == "" {
		return places{}
	}
	own := split(zone)
	for _, s := range l.Distribute {
		if inPlace(own, s.From) {
			return places{own: own, shares: s.To}
		}
	}
	p := places{own: own, labels: l.Priority}
	for _, f := range l.Failover {
		if f.From == own[0] {
			p.failover = f.To
		}
	}
	return p
}

// split makes "region/zone/subzone" of what is there; a zone alone is a region.
func split(zone string) []string {
	parts := strings.SplitN(zone, "/", 3)
	for len(parts) < 3 {
		parts = append(parts, "")
	}
	return parts
}

// inPlace reports whether a place fits a pattern: "*", "region/*", "region/zone/*", or
// all of it.
func inPlace(place []string, pattern string) bool {
	for i, want := range strings.SplitN(pattern, "/", 3) {
		if want == "*" {
			return true
		}
		if place[i] != want {
			return false
		}
	}
	return true
}

// priority is 0 for the nearest endpoints (facts/mesh.md says how Istio counts).
func (p *places) priority(e *weft.Endpoint) uint8 {
	if p.own == nil || p.shares != nil {
		return 0
	}
	theirs := split(e.Zone)
	if p.labels != nil {
		return p.byLabels(e, theirs)
	}
	for i := range p.own {
		if theirs[i] == p.own[i] {
			continue
		}
		if i == 0 && p.failover != "" && theirs[0] != p.failover {
			return 4
		}
		return uint8(3 - i)
	}
	return 0
}

// byLabels counts the labels that an endpoint shares with the proxy until the first
// that it does not. Of its own a proxy knows where it is.
func (p *places) byLabels(e *weft.Endpoint, theirs []string) uint8 {
	for i, label := range p.labels {
		same := false
		switch label {
		case "topology.kubernetes.io/region":
			same = theirs[0] == p.own[0]
		case "topology.kubernetes.io/zone":
			same = theirs[1] == p.own[1]
		case "topology.istio.io/subzone":
			same = theirs[2] == p.own[2]
		default:
			if key, value, ok := strings.Cut(label, "="); ok {
				same = e.Labels[key] == value
			}
		}
		if !same {
			return uint8(len(p.labels) - i)
		}
	}
	return 0
}

// share is the pattern of the shares that an endpoint falls under.
func (p *places) share(e *weft.Endpoint) string {
	if p.shares == nil {
		return ""
	}
	theirs, best := split(e.Zone), ""
	for pattern := range p.shares {
		if inPlace(theirs, pattern) && len(pattern) > len(best) {
			best = pattern
		}
	}
	return best
}

// choice is what of the exchange decides its endpoint.
func (x *Exchange) choice(pl *plan, random uint64, now time.Time, tried []*endpoint) choice {
	c := choice{random: random, now: now, tried: tried}
	h := pl.group.policy.Hash
	switch {
	case h == nil:
	case h.Header != "":
		if v, ok := x.Header(h.Header); ok {
			c.hash, c.hashed = balance.HashString(v), true
		}
	case h.Query != "":
		if v, ok := queryValue(x.request.Query, h.Query); ok {
			c.hash, c.hashed = balance.HashString(v), true
		}
	case h.Cookie != "":
		c.hash, c.hashed = x.cookieHash(h, random)
	case h.SourceIP:
		c.hash, c.hashed = balance.HashString(x.conn.peerAddr.String()), true
	}
	return c
}

// queryValue is the first value of a parameter.
func queryValue(query, name string) (string, bool) {
	for part := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(part, "=")
		if key, err := url.QueryUnescape(key); err == nil && key == name {
			value, err := url.QueryUnescape(value)
			return value, err == nil
		}
	}
	return "", false
}

// cookieHash is the hash of the client's cookie. A client without one gets one if the
// policy says so, and is from now on where its cookie leads.
func (x *Exchange) cookieHash(h *weft.Hash, random uint64) (uint64, bool) {
	header, _ := x.Header("cookie")
	for part := range strings.SplitSeq(strings.ReplaceAll(header, ",", ";"), ";") {
		if name, value, _ := strings.Cut(strings.TrimSpace(part), "="); name == h.Cookie {
			return balance.HashString(strings.Trim(value, `"`)), true
		}
	}
	if h.CookieTTL == 0 && !h.SessionTTL {
		return 0, false
	}
	if x.sticky == "" {
		x.sticky = strconv.FormatUint(random, 16)
	}
	x.stickyBy = h
	return balance.HashString(x.sticky), true
}

// appendSticky appends the cookie that was made for the client.
func (x *Exchange) appendSticky(dst []byte) []byte {
	h := x.stickyBy
	dst = append(append(append(append(dst, "Set-Cookie: "...), h.Cookie...), '='), x.sticky...)
	if h.CookieTTL > 0 {
		dst = strconv.AppendInt(append(dst, "; Max-Age="...), int64(h.CookieTTL/time.Second), 10)
	}
	path := h.CookiePath
	if path == "" {
		path = "/"
	}
	return append(append(append(dst, "; Path="...), path...), "; HttpOnly\r\n"...)
}
