package consul

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
)

// quick answers the plain reads of health/service from what is kept, without taking
// the request apart as the others need it. It returns false, and has done nothing,
// when it is another request, or nothing is kept for it.
func (a *api) quick(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.RawPath != "" || r.Method != http.MethodGet {
		return false
	}
	e, service, p, ok := a.quickly(r.URL.Path, r.URL.RawQuery)
	if !ok {
		return false
	}
	f := a.registry.Stale()
	if !p.stale { // newer than this server perhaps is
		var err error
		if f, err = a.registry.Fresh(r.Context(), false); err != nil {
			return false
		}
	}
	answer := a.current(e, service, p)
	if answer == nil {
		return false
	}
	h := w.Header()
	h["X-Consul-Index"] = answer.header
	h["X-Consul-Default-Acl-Policy"], h["X-Consul-Query-Backend"] = allowed, backend
	h["X-Consul-Effective-Consistency"] = leaderRead
	if p.stale {
		h["X-Consul-Effective-Consistency"] = staleRead
	}
	freshHeaders(h, f)
	a.writeKept(w, r, answer)
	return true
}

// quickly finds what is kept for a plain read of health/service.
func (a *api) quickly(path, query string) (e *keptEntry, service weft.ServiceName, p plain, ok bool) {
	name, ok := strings.CutPrefix(path, "/v1/health/service/")
	if !ok || name == "" || a.acl != nil {
		return nil, service, p, false
	}
	if p, ok = plainParams(query); !ok {
		return nil, service, p, false
	}
	service = weft.ServiceName{Namespace: weft.DefaultNamespace, Name: name}
	a.kept.mu.RLock()
	e = a.kept.by[keptQuery{of: healthServiceKept, service: service, passing: p.passing}]
	a.kept.mu.RUnlock()
	return e, service, p, e != nil
}

// current returns the kept answer when it is good still, and no reason to wait.
func (a *api) current(e *keptEntry, service weft.ServiceName, p plain) *keptAnswer {
	answer := e.answer.Load()
	if _, now := a.registry.Instances(service); answer == nil || answer.at < now || answer.index <= p.index && p.index > 0 {
		return nil
	}
	e.used.Store(a.kept.clock.Add(1))
	return answer
}

// plain are the parameters of a plain read.
type plain struct {
	passing, stale bool
	index          uint64
}

// plainParams reads a query that has nothing but these, in the spellings of the usual
// clients. "wait" is not looked at: who has to wait is not answered here.
func plainParams(query string) (p plain, ok bool) {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		name, value, _ := strings.Cut(pair, "=")
		flag := value == "" || value == "1" || value == "true"
		switch {
		case name == "passing" && flag && !p.passing:
			p.passing = true
		case name == "stale" && flag && !p.stale:
			p.stale = true
		case name == "index" && p.index == 0:
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return p, false
			}
			p.index = n
		default:
			return p, false
		}
	}
	return p, true
}
