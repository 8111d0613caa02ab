package proxy

import (
	"maps"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/resilience"
)

// What a client got instead of a failure, in x-weft-fallback, records and metrics.
const (
	fallbackService = "service"
	fallbackCached  = "cached"
	fallbackStatic  = "static"
)

// fallback is the compiled form of a FallbackSpec.
type fallback struct {
	service weft.ServiceName // empty: none
	cached  bool
	static  *Answer // nil: none
}

func newFallback(s *resilience.FallbackSpec, from weft.SourceRef) *fallback {
	if s == nil {
		return nil
	}
	f := &fallback{cached: s.Cached != nil}
	if s.Service != "" {
		f.service, _ = weft.ParseHost(s.Service, from.Namespace)
	}
	if s.Status != 0 {
		f.static = &Answer{Status: s.Status, Body: s.Body, Fallback: fallbackStatic}
		typed := false
		for _, name := range slices.Sorted(maps.Keys(s.Headers)) {
			typed = typed || strings.EqualFold(name, "content-type")
			f.static.Lines += textproto.CanonicalMIMEHeaderKey(name) + ": " + s.Headers[name] + "\r\n"
		}
		if !typed && s.Body != "" {
			f.static.Lines += "Content-Type: text/plain; charset=utf-8\r\n"
		}
	}
	return f
}

// giveUp answers a request that failed: by what the policy has for that, or else by
// saying what is wrong.
func (x *Exchange) giveUp(pl *plan, fault *Answer) (keep bool) {
	g := pl.guard
	if g == nil || x.upgrade || !replaceable(fault) || fault.Close && !x.whole || x.wasExpired() {
		return x.answer(fault)
	}
	f := g.settings.Load().fallback
	if f == nil {
		return x.answer(fault)
	}
	if f.service.Name != "" && x.whole {
		if keep, answered := x.askInstead(pl, f.service, fault); answered {
			return keep
		}
	}
	if f.cached {
		if a := x.lastGood(g); a != nil {
			g.stats.fallbacks[fallbackCached].Add(1)
			a.Reason, a.Policy = fault.Reason, *g.origin.Load()
			return x.answer(a)
		}
	}
	if f.static != nil && !x.grpc {
		g.stats.fallbacks[fallbackStatic].Add(1)
		a := *f.static
		a.Reason, a.Policy = fault.Reason, *g.origin.Load()
		return x.answer(&a)
	}
	return x.answer(fault)
}

// upstreamError is the reason of a fault that stands for an answer of the service's
// own, which was not passed on.
const upstreamError = "upstream_error"

// replaceable reports whether a fault is a failure of the service, or of reaching
// it, and not of the client.
func replaceable(fault *Answer) bool {
	return fault.Status >= 500 || fault.Status == 429 || fault.Reason == upstreamError
}

// failing reports whether the response is a failure of the service.
func (x *Exchange) failing(pl *plan) bool {
	g := pl.guard
	if g == nil {
		g = pl.instead
	}
	if g == nil {
		return false
	}
	if x.grpc {
		_, early := x.earlyGRPCStatus()
		return early && g.policy.FailsStatus(x.callStatus())
	}
	return g.policy.FailsStatus(x.response.Status)
}

// hasFallback reports whether something can be answered in place of a failing
// response, which is therefore not passed on.
func (x *Exchange) hasFallback(pl *plan) bool {
	g := pl.guard
	if pl.instead != nil {
		g = pl.instead
	}
	if g == nil || x.upgrade {
		return false
	}
	f := g.settings.Load().fallback
	switch {
	case f == nil:
		return false
	case f.static != nil && !x.grpc, pl.instead == nil && x.whole && x.view.clusters[f.service] != nil:
		return true
	}
	return f.cached && x.lastGood(g) != nil
}

// replaced is the fault that stands for a failing response.
func (x *Exchange) replaced() Answer {
	a := Answer{Status: x.response.Status, Reason: upstreamError}
	if x.grpc {
		a.Status, a.GRPCStatus = x.callStatus(), x.record.GRPCStatus
	}
	a.Text = x.record.Endpoint + " answered " + strconv.Itoa(a.Status)
	return a
}

// lastGood is the last good answer to this request.
func (x *Exchange) lastGood(g *guard) *Answer {
	key, ok := x.keeperKey()
	if !ok {
		return nil
	}
	now := time.Now()
	k := g.settings.Load().keeper.get(key, now)
	if k == nil {
		return nil
	}
	age := strconv.Itoa(int((k.age + now.Sub(k.at)) / time.Second))
	return &Answer{Status: k.status, Body: str(k.body), Lines: str(k.lines) + "Age: " + age + "\r\n", Fallback: fallbackCached}
}

// askInstead sends the request to another service. answered is false when that
// failed, too.
func (x *Exchange) askInstead(pl *plan, name weft.ServiceName, fault *Answer) (keep, answered bool) {
	cl := x.view.clusters[name]
	if cl == nil {
		return false, false
	}
	second := plan{cluster: cl, group: cl.set.Load().all, rule: pl.rule, dest: pl.dest, retry: &weft.DefaultRetry,
		guard: cl.guard.Load(), instead: pl.guard, timeout: pl.timeout}
	if second.guard != nil {
		s := second.guard.settings.Load()
		second.perTry, second.retries = s.attempt, s.retries
		if s.timeout > 0 && (second.timeout == 0 || s.timeout < second.timeout) {
			second.timeout = s.timeout
		}
	}
	now := time.Now()
	if second.timeout > 0 { // the first one's is used up
		second.deadline = now.Add(second.timeout)
	}
	if x.limitByClient(&second); !second.deadline.IsZero() && !now.Before(second.deadline) {
		return false, false // nobody waits any more
	}
	before := x.record
	x.sticky = "" // who answers now has its own
	x.tried = [maxTried]*endpoint{}
	x.record.series, x.record.calls = nil, nil
	x.record.Destination, x.record.Fallback = name.Name, fallbackService
	x.record.Reason, x.record.Policy = fault.Reason, *pl.guard.origin.Load()
	keep, again := x.try(&second)
	if again == nil {
		pl.guard.stats.fallbacks[fallbackService].Add(1)
		return keep, true
	}
	x.record = before
	return false, false
}
