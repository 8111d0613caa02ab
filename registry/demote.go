package registry

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft"
)

// Observation is what one caller of an endpoint saw since its last observation of it.
// Callers report successes, too: they say that the caller's own network works, and
// who calls a service at all.
type Observation struct {
	Key       weft.InstanceKey
	Observer  string // who calls: the instance of a proxy, of one name as long as it runs
	Failures  int    // of the endpoint, not of requests: no connection, a reset, no answer
	Successes int
	Kind      string // of the failures, for people: "connect", "reset", "timeout", …
}

// ReportEndpoint takes in what a caller saw of an endpoint, and returns whether the
// endpoint is demoted now: has a critical check by which it leaves every view at once.
//
// Most of those who called it lately must agree, and two at least unless for some time
// only one has called the service. Observers that find everything dead have lost their own network,
// and do not count. Half of a service's instances may be demoted, never the last
// healthy one, and never so many that the service would be guarded.
//
// The check is a probe of this server's: when it can connect, after a wait that grows
// with each demotion, the endpoint is back; or when its callers report that it works.
func (r *Registry) ReportEndpoint(ctx context.Context, o Observation) (demoted bool, err error) {
	o.Key = r.onOwnNode(o.Key)
	return r.operations.observe(ctx, o)
}

// EndpointKey returns the key of the instance whose endpoint has the id.
func EndpointKey(id string) (weft.InstanceKey, bool) {
	node, instance, ok := strings.Cut(id, "/")
	return weft.InstanceKey{Node: node, ID: instance}, ok && node != "" && instance != ""
}

const (
	observedPrefix = "_weft_observed:" // + instance id
	// badStreak failures without as many successes make an observer think that an
	// endpoint is dead.
	badStreak = 3
	// voteLife is how long what an observer thinks counts.
	voteLife = 30 * time.Second
	// firstWait before a demoted endpoint is probed is doubled with every demotion up
	// to maxWait: a connect says little of a process that hangs. After calmAfter
	// without a demotion it begins anew.
	firstWait = 3 * time.Second
	maxWait   = 5 * time.Minute
	calmAfter = 10 * time.Minute
	// aloneAfter is how long after the first report of a service one caller may be
	// taken for the only one: others report what works every 10 s.
	aloneAfter = 15 * time.Second
	// betweenDemotions of one service others have time to see what the first did.
	betweenDemotions = time.Second
	// maxVotes bounds the memory, to some 10 MB.
	maxVotes = 1 << 16
	// A caller reports each of its endpoints every few seconds at most.
	maxReports   = 500 // a second and observer
	reportsBurst = 1000
)

// isObservation reports whether a check stands for a demotion.
func isObservation(checkID string) bool { return strings.HasPrefix(checkID, observedPrefix) }

func (r *Registry) observeHere(ctx context.Context, o Observation) (bool, error) {
	var f faults
	f.name("observer", o.Observer, maxID)
	if o.Failures < 0 || o.Successes < 0 {
		f.add("failures", "%d, and successes %d: counts are from 0", o.Failures, o.Successes)
	}
	thing := "endpoint " + o.Key.Node + "/" + o.Key.ID
	if err := f.err("observe", thing); err != nil {
		return false, err
	}
	in, _ := r.Instance(o.Key)
	if in == nil {
		return false, noInstance("observe", o.Key)
	}
	now := time.Now()
	demoted := findCheck(in.Checks, observedPrefix+o.Key.ID) != nil
	v, ok := r.observed.take(o, in.Service, demoted, now)
	switch {
	case !ok:
		return demoted, weft.Errorf(weft.Unavailable, "observe", thing, "%q reports too often; at most %d reports a second are taken", o.Observer, maxReports)
	case v.demote:
		return r.demote(ctx, in, v, now)
	case v.recover:
		return false, r.promote(ctx, in.Key(), "its callers reach it again", nil)
	}
	return demoted, nil
}

// demote adds the check, when the rest of the service can do without the instance.
func (r *Registry) demote(ctx context.Context, in *weft.Instance, v verdict, now time.Time) (bool, error) {
	done := false
	err := r.do(WithActor(ctx, "demoted by reports of its callers: "+v.text), "demote", "instance "+in.ID, func(d *draft) error {
		in := d.instance(in.Key())
		if in == nil || !d.mayDemote(in) {
			return nil
		}
		ep := endpointOf(in, d.node(in.Node))
		done = true
		return planCheck(d, in.Key(), weft.Check{
			ID: observedPrefix + in.ID, Name: "Seen by its callers", Kind: weft.TCPCheck, Target: ep.Address,
			Interval: weft.Duration(v.wait), Timeout: weft.Duration(firstWait), Status: weft.Critical, Output: shortOutput(v.text),
		})
	})
	if err != nil {
		return false, err
	}
	if done {
		r.observed.demoted(in.Key(), in.Service, now)
		r.log.Warn("registry: endpoint demoted", "instance", in.ID, "node", in.Node, "reason", v.text)
	}
	return done, nil
}

// mayDemote reports whether an instance is healthy and its service can do without it.
func (d *draft) mayDemote(in *weft.Instance) bool {
	if standingOf(in, d.node(in.Node)) != healthy {
		return false
	}
	present := d.instancesOf(in.Service)
	total, lost, demoted := 0, 0, 0
	for _, other := range present {
		switch standingOf(other, d.node(other.Node)) {
		case resting:
			continue
		case failed:
			lost++
		}
		total++
		if findCheck(other.Checks, observedPrefix+other.ID) != nil {
			demoted++
		}
	}
	share, guarded := guardShare(present)
	if !guarded {
		share = 100
	}
	return lost+1 < total && 2*(demoted+1) <= total && (lost+1)*100 < share*total
}

// promote ends a demotion. still, when it is not nil, is asked in the loop whether the
// reason for that still holds.
func (r *Registry) promote(ctx context.Context, key weft.InstanceKey, reason string, still func(*weft.Check) bool) error {
	id, done := observedPrefix+key.ID, false
	err := r.do(WithActor(ctx, "promoted: "+firstLine(reason)), "promote", "instance "+key.ID, func(d *draft) error {
		c := findCheck(d.checksOf(key), id)
		if c == nil || still != nil && !still(c) {
			return nil
		}
		done = true
		return editChecks(d, key, "promote", without(id))
	})
	if err == nil && done {
		r.log.Info("registry: endpoint is back", "instance", key.ID, "node", key.Node, "reason", reason)
	}
	return err
}

// observations are the votes of observers. They are lost with this process: callers
// vote again within seconds.
type observations struct {
	mu        sync.Mutex
	observers map[string]*observer
	endpoints map[weft.InstanceKey]*observedEndpoint
	services  map[weft.ServiceName]*observedService
	votes     int
	swept     time.Time
}

type observer struct {
	votes    map[weft.InstanceKey]*vote
	bad      int // of votes
	tokens   float64
	refilled time.Time
}

type observedEndpoint struct {
	service   weft.ServiceName
	votes     map[string]*vote // by observer
	demotions int              // without calmAfter between them
	last      time.Time        // demotion
}

type observedService struct {
	callers map[string]time.Time // last report about any endpoint of it
	since   time.Time            // the first report
	demoted time.Time
}

// vote is what one observer thinks of one endpoint.
type vote struct {
	failures int // since it last worked
	kind     string
	at       time.Time
}

func (v *vote) bad() bool                { return v.failures >= badStreak }
func (v *vote) fresh(now time.Time) bool { return now.Sub(v.at) < voteLife }

// verdict on an endpoint, after a report.
type verdict struct {
	demote, recover bool
	wait            time.Duration // until a demoted one is probed
	text            string
}

// take counts an observation. ok is false when the observer reports too often.
func (s *observations) take(o Observation, n weft.ServiceName, demoted bool, now time.Time) (v verdict, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(now)
	ob := s.observer(o.Observer, now)
	if ob == nil || !ob.allow(now) {
		return v, false
	}
	e, svc := s.endpoint(o.Key, n)
	if svc.since.IsZero() {
		svc.since = now
	}
	svc.callers[o.Observer] = now
	vt := s.vote(ob, e, o)
	if vt == nil {
		return v, true // full; those who are there decide
	}
	was := vt.bad()
	if vt.at = now; o.Successes > 0 && o.Successes >= o.Failures {
		vt.failures = 0
	} else if o.Failures > 0 {
		vt.failures, vt.kind = vt.failures+o.Failures, o.Kind
	}
	switch {
	case vt.bad() && !was:
		ob.bad++
	case !vt.bad() && was:
		ob.bad--
	}
	switch {
	case vt.bad() && !demoted && now.Sub(svc.demoted) >= betweenDemotions:
		v.text, v.demote = s.agree(e, svc, now, true)
		v.wait = e.wait(now)
	case vt.failures == 0 && demoted && now.Sub(e.last) >= firstWait:
		_, v.recover = s.agree(e, svc, now, false)
	}
	return v, true
}

// agree counts the votes about an endpoint that are fresh and of sound observers.
func (s *observations) agree(e *observedEndpoint, svc *observedService, now time.Time, bad bool) (text string, yes bool) {
	callers := 0
	for name, at := range svc.callers {
		if now.Sub(at) < 2*voteLife && !s.observers[name].broken() {
			callers++
		}
	}
	votes, of := 0, 0
	var who []string
	for name, v := range e.votes {
		if !v.fresh(now) || s.observers[name].broken() {
			continue
		}
		of++
		if v.bad() == bad && (bad || v.failures == 0) {
			votes++
			who = append(who, fmt.Sprintf("%s (%d× %s)", name, v.failures, orElse(v.kind, "failure")))
		}
	}
	if callers == 1 && now.Sub(svc.since) < aloneAfter {
		callers++ // who may not have reported yet
	}
	need := max(of/2+1, min(callers, 2))
	slices.Sort(who)
	if more := len(who) - maxNamed; more > 0 {
		who = append(who[:maxNamed], fmt.Sprintf("and %d more", more))
	}
	return fmt.Sprintf("%d of %d callers cannot reach it: %s", votes, of, strings.Join(who, ", ")), votes >= max(need, 1)
}

// maxNamed observers are named in the output of a check.
const maxNamed = 10

// broken reports whether an observer finds everything dead that it calls, and that is
// more than one thing. Nil is an observer that is forgotten.
func (o *observer) broken() bool { return o == nil || o.bad > 1 && o.bad == len(o.votes) }

// allow takes one of the observer's tokens.
func (o *observer) allow(now time.Time) bool {
	o.tokens = min(o.tokens+now.Sub(o.refilled).Seconds()*maxReports, reportsBurst)
	o.refilled = now
	if o.tokens < 1 {
		return false
	}
	o.tokens--
	return true
}

// wait is how long the next demotion lasts at least.
func (e *observedEndpoint) wait(now time.Time) time.Duration {
	if now.Sub(e.last) >= calmAfter {
		return firstWait
	}
	return min(firstWait<<min(e.demotions, 10), maxWait)
}

// demoted notes that an endpoint was demoted. Who thinks what of it begins anew.
func (s *observations) demoted(key weft.InstanceKey, n weft.ServiceName, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, svc := s.endpoint(key, n)
	if now.Sub(e.last) >= calmAfter {
		e.demotions = 0
	}
	e.demotions, e.last, svc.demoted = e.demotions+1, now, now
	for name := range e.votes {
		s.drop(key, e, name)
	}
}

func (s *observations) observer(name string, now time.Time) *observer {
	ob := s.observers[name]
	if ob == nil {
		if len(s.observers) >= maxVotes {
			return nil
		}
		if s.observers == nil {
			s.observers = make(map[string]*observer)
		}
		ob = &observer{votes: make(map[weft.InstanceKey]*vote), tokens: reportsBurst, refilled: now}
		s.observers[name] = ob
	}
	return ob
}

func (s *observations) endpoint(key weft.InstanceKey, n weft.ServiceName) (*observedEndpoint, *observedService) {
	if s.endpoints == nil {
		s.endpoints = make(map[weft.InstanceKey]*observedEndpoint)
		s.services = make(map[weft.ServiceName]*observedService)
	}
	e := s.endpoints[key]
	if e == nil || e.service != n {
		if e != nil {
			for name := range e.votes {
				s.drop(key, e, name)
			}
		}
		e = &observedEndpoint{service: n, votes: make(map[string]*vote)}
		s.endpoints[key] = e
	}
	svc := s.services[n]
	if svc == nil {
		svc = &observedService{callers: make(map[string]time.Time)}
		s.services[n] = svc
	}
	return e, svc
}

// vote returns the vote of an observer about an endpoint; nil when there is no room
// for another one.
func (s *observations) vote(ob *observer, e *observedEndpoint, o Observation) *vote {
	v := e.votes[o.Observer]
	if v == nil {
		if s.votes >= maxVotes {
			return nil
		}
		v = new(vote)
		e.votes[o.Observer], ob.votes[o.Key] = v, v
		s.votes++
	}
	return v
}

func (s *observations) drop(key weft.InstanceKey, e *observedEndpoint, name string) {
	v := e.votes[name]
	delete(e.votes, name)
	s.votes--
	if ob := s.observers[name]; ob != nil {
		delete(ob.votes, key)
		if v.bad() {
			ob.bad--
		}
	}
}

// sweep forgets what counts no more, now and then.
func (s *observations) sweep(now time.Time) {
	if now.Sub(s.swept) < voteLife/10 {
		return
	}
	s.swept = now
	for key, e := range s.endpoints {
		for name, v := range e.votes {
			if !v.fresh(now) {
				s.drop(key, e, name)
			}
		}
		if len(e.votes) == 0 && now.Sub(e.last) >= calmAfter {
			delete(s.endpoints, key)
		}
	}
	for n, svc := range s.services {
		for name, at := range svc.callers {
			if now.Sub(at) >= 2*voteLife {
				delete(svc.callers, name)
			}
		}
		if len(svc.callers) == 0 && now.Sub(svc.demoted) >= betweenDemotions {
			delete(s.services, n)
		}
	}
	for name, ob := range s.observers {
		if len(ob.votes) == 0 && now.Sub(ob.refilled) >= 2*voteLife {
			delete(s.observers, name)
		}
	}
}
