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
	if g == nil || !instead(fault) {
		return x.answer(fault)
	}
	f := g.settings.Load().fallback
	if f == nil || fault.Close && !x.whole {
		return x.answer(fault)
	}
	if f.service.Name != "" && x.whole && !x.upgrade {
		keep, tried := x.askInstead(pl, g, f.service)
		if tried {
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

// instead reports whether a fault is a failure of the service, or of reaching it,
// and not of the client.
func instead(fault *Answer) bool { return fault.Status >= 500 || fault.Status == 429 }

// failing reports whether the response is a failure of the service.
func (x *Exchange) failing(pl *plan) bool {
	if pl.guard == nil {
		return false
	}
	if x.grpc {
		status, early := x.earlyGRPCStatus()
		return early && pl.guard.policy.FailsStatus(status)
	}
	return pl.guard.policy.FailsStatus(x.response.Status)
}

// hasFallback reports whether something can be answered in place of a failing
// response, which is therefore not passed on.
func (x *Exchange) hasFallback(pl *plan) bool {
	if pl.guard == nil || pl.instead || x.upgrade {
		return false
	}
	g := pl.guard
	f := g.settings.Load().fallback
	switch {
	case f == nil:
		return false
	case f.static != nil && !x.grpc, f.service.Name != "" && x.whole:
		return true
	}
	return f.cached && x.lastGood(g) != nil
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
	age := strconv.Itoa(int(now.Sub(k.at) / time.Second))
	return &Answer{Status: k.status, Body: string(k.body), Lines: string(k.lines) + "Age: " + age + "\r\n", Fallback: fallbackCached}
}

// askInstead sends the request to another service. tried is false when that failed,
// too, and nothing was answered.
func (x *Exchange) askInstead(pl *plan, g *guard, name weft.ServiceName) (keep, tried bool) {
	cl := x.view.clusters[name]
	if cl == nil {
		return false, false
	}
	reason := x.record.Reason
	x.sticky = "" // who answers now has its own
	x.tried = [maxTried]*endpoint{}
	x.record.series, x.record.calls = nil, nil
	x.record.Destination, x.record.Fallback = name.Name, fallbackService
	second := plan{cluster: cl, group: cl.set.Load().all, rule: pl.rule, dest: pl.dest, retry: &weft.DefaultRetry,
		guard: serviceGuard(x.view.guards, name), instead: true}
	if t := g.settings.Load().timeout; t > 0 { // the first one's is used up
		second.deadline = time.Now().Add(t)
	}
	keep, fault := x.try(&second)
	if fault == nil {
		g.stats.fallbacks[fallbackService].Add(1)
		return keep, true
	}
	x.record.Reason, x.record.Fallback = reason, ""
	return false, false
}
