package api

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/control/resource"
)

// The resource that holds the circuits of the service of its name.
const (
	overrideKind       = "BreakerOverride"
	overrideAPIVersion = "weft.dev/v1"
)

// breakers lists the circuits that connected proxies tell of.
func (a *api) breakers(r *http.Request) (any, error) {
	target, _, err := breakerQuery(r.URL.Query(), false)
	if err != nil {
		return nil, err
	}
	out := []client.Breaker{}
	for _, b := range a.Control.Breakers(target) {
		out = append(out, client.Breaker{Target: b.Target, Policy: b.Policy, Proxy: b.Proxy.String(), ProxyID: b.ID, Identity: b.Identity,
			State: b.State, Since: b.Since, Calls: b.Calls, Failures: b.Failures, Slow: b.Slow, FailureRate: b.FailureRate, SlowRate: b.SlowRate})
	}
	return out, nil
}

// breakerEvents lists what became of them.
func (a *api) breakerEvents(r *http.Request) (any, error) {
	target, since, err := breakerQuery(r.URL.Query(), true)
	if err != nil {
		return nil, err
	}
	out := []client.BreakerEvent{}
	for _, e := range a.Control.BreakerEvents(target, since) {
		out = append(out, client.BreakerEvent{Time: e.Time, Target: e.Target, Policy: e.Policy, Proxy: e.Proxy.String(), ProxyID: e.ID, Identity: e.Identity,
			From: e.From, To: e.To, Reason: e.Reason, Calls: e.Calls, Failures: e.Failures, Slow: e.Slow, Lost: e.Lost})
	}
	return out, nil
}

// breakerQuery reads a query strictly, as traceQuery does.
func breakerQuery(values url.Values, events bool) (target string, since time.Time, err error) {
	for name, v := range values {
		switch {
		case name == "service" || name == "namespace":
		case name == "since" && events:
			ago, err := time.ParseDuration(v[0])
			if err != nil || ago < 0 {
				return "", since, weft.Errorf(weft.Invalid, "list", "breakers", "parameter since=%q: want a time, as 10m", v[0])
			}
			since = time.Now().Add(-ago)
		default:
			return "", since, weft.Errorf(weft.Invalid, "list", "breakers", "there is no parameter %q", name)
		}
	}
	service, namespace := values.Get("service"), values.Get("namespace")
	switch {
	case service != "":
		n, err := breakerService("list", service, namespace)
		return n.String(), since, err
	case namespace != "":
		return "", since, weft.Errorf(weft.Invalid, "list", "breakers", "a namespace without a service chooses nothing")
	}
	return "", since, nil
}

// breakerService reads a service's name: "name", or "name.namespace".
func breakerService(op, name, namespace string) (weft.ServiceName, error) {
	n, ok := weft.ParseHost(strings.ToLower(name), cmp.Or(namespace, weft.DefaultNamespace))
	if !ok {
		return n, weft.Errorf(weft.Invalid, op, "breaker of "+name, "it is no name of a service; want \"name\" or \"name.namespace\"")
	}
	return n, nil
}

// holdBreaker applies a BreakerOverride, as if somebody had written it.
func (a *api) holdBreaker(r *http.Request) (any, error) {
	n, err := breakerService("hold", r.PathValue("service"), r.URL.Query().Get("namespace"))
	if err != nil {
		return nil, err
	}
	var in client.BreakerOverride
	if err := decode(r, "hold", &in); err != nil {
		return nil, err
	}
	switch in.State {
	case "forced-open", "disabled", "metrics-only":
	default:
		return nil, weft.Errorf(weft.Invalid, "hold", "breaker of "+n.String(), "state %q: want forced-open, disabled or metrics-only; DELETE leaves it to its calls", in.State)
	}
	if err := a.knownService(n); err != nil {
		return nil, err
	}
	document, err := json.Marshal(map[string]any{
		"apiVersion": overrideAPIVersion, "kind": overrideKind,
		"metadata": map[string]string{"name": n.Name, "namespace": n.Namespace}, "spec": in,
	})
	if err != nil {
		return nil, err
	}
	return a.applyFiles(r.Context(), []resource.File{{Name: "PUT " + r.URL.Path, Data: document}}, control.ApplyOptions{})
}

// releaseBreaker deletes it.
func (a *api) releaseBreaker(r *http.Request) (any, error) {
	n, err := breakerService("release", r.PathValue("service"), r.URL.Query().Get("namespace"))
	if err != nil {
		return nil, err
	}
	_, err = a.Control.Delete(r.Context(), overrideKind, n.Namespace, n.Name)
	if weft.KindOf(err) == weft.NotFound {
		err = weft.Errorf(weft.NotFound, "release", "breaker of "+n.String(), "nobody holds it; \"weft get %s\" lists those that are held", strings.ToLower(overrideKind))
	}
	return nil, err
}

// knownService refuses to hold the circuit of a service that nobody has heard of:
// the name is wrong then, and whoever trusts the hold would trust nothing.
func (a *api) knownService(n weft.ServiceName) error {
	names, _ := a.Registry.ServiceNames()
	if slices.Contains(names, n) {
		return nil
	}
	// All its instances may be gone, which is when somebody opens its circuit.
	if len(a.Control.Breakers(n.String())) > 0 {
		return nil
	}
	for _, r := range a.Control.Resources() {
		if r.Kind == overrideKind && r.Namespace == n.Namespace && r.Name == n.Name {
			return nil
		}
	}
	mend := "\"weft services\" lists those that are there"
	if near := alike(n, names); len(near) > 0 {
		mend = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return weft.Errorf(weft.NotFound, "hold", "breaker of "+n.String(), "no instance of this service is registered; %s", mend)
}

// alike are the services whose names begin and end as that of n does, but for a
// quarter in the middle, and those of its name elsewhere; three at most, the most
// alike first.
func alike(n weft.ServiceName, names []weft.ServiceName) []string {
	score := func(of weft.ServiceName) float64 {
		a, b := n.Name, of.Name
		head := 0
		for head < min(len(a), len(b)) && a[head] == b[head] {
			head++
		}
		tail := 0
		for tail < min(len(a), len(b))-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
			tail++
		}
		return float64(head+tail) / float64(max(len(a), len(b)))
	}
	near := slices.DeleteFunc(slices.Clone(names), func(of weft.ServiceName) bool { return score(of) <= 0.75 })
	slices.SortStableFunc(near, func(a, b weft.ServiceName) int { return cmp.Compare(score(b), score(a)) })
	out := make([]string, 0, 3)
	for _, of := range near[:min(len(near), 3)] {
		out = append(out, of.String())
	}
	return out
}
