package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/registry"
)

// receipts says who has the last change of a service, and who has not.
func (a *api) receipts(r *http.Request) (any, error) {
	n, err := serviceOf(r)
	if err != nil {
		return nil, err
	}
	_, index := a.Registry.Instances(n)
	if index <= 1 {
		return nil, neverThere("receipts", n)
	}
	holdings := a.Control.Receipts(r.Context(), n)
	for _, h := range holdings { // another server may know of a newer change
		index = max(index, h.Index)
	}
	out := client.Receipts{Namespace: n.Namespace, Service: n.Name, At: time.Now(), Index: index,
		Changes: a.changesAt(r.Context(), n, index), Proxies: []client.Receipt{}}
	for _, h := range holdings {
		s := client.ServerReceipt{Server: h.Server, Index: h.Index, Watchers: h.Watchers}
		switch {
		case h.Err != nil:
			s.Error = h.Err.Error()
		case h.Index < index:
			s.Behind = max(index-min(index, h.Known), 1)
		}
		out.Servers = append(out.Servers, s)
		for i := range h.Proxies {
			out.Proxies = append(out.Proxies, receiptOf(&h.Proxies[i], &s, index))
		}
	}
	slices.SortFunc(out.Proxies, func(x, y client.Receipt) int {
		return cmp.Or(compareBools(x.Has, y.Has), cmp.Compare(x.Proxy, y.Proxy), cmp.Compare(x.ProxyID, y.ProxyID), cmp.Compare(x.Server, y.Server))
	})
	return out, nil
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func neverThere(what string, n weft.ServiceName) error {
	return weft.Errorf(weft.NotFound, "read", what+" of "+n.String(),
		"no instance of this service was ever registered; \"weft services\" lists those that are there")
}

// receiptOf says of a proxy whether it has index, and why not.
func receiptOf(p *control.Receipt, s *client.ServerReceipt, index uint64) client.Receipt {
	r := client.Receipt{
		Proxy:   weft.ServiceName{Namespace: p.Identity.Namespace(), Name: p.Identity.ServiceAccount()}.String(),
		ProxyID: p.ID, Identity: p.Identity, Role: p.Role, Address: p.Address, PID: p.PID, Server: s.Server,
		Connected: p.Connected, Has: p.Acked >= index, Acked: p.Acked, Since: p.Since,
	}
	if r.Has {
		return r
	}
	if p.Connected && !p.Waiting.IsZero() {
		r.Since = p.Waiting
	}
	switch {
	case !p.Connected:
		r.Why = "it is not connected: it goes on with what it has, if it runs"
	case p.Refused != "":
		r.Why = "it refused the change: " + p.Refused
	case s.Behind > 0:
		r.Why = fmt.Sprintf("its server is behind by %d", s.Behind)
	default:
		r.Why = "it has not acknowledged the change"
	}
	return r
}

// historyPatience bounds the search for what a last change was, which is not what
// receipts are asked for.
const historyPatience = 2 * time.Second

// changesAt returns what changed at an index; nothing when that is forgotten.
func (a *api) changesAt(ctx context.Context, n weft.ServiceName, index uint64) []client.Change {
	ctx, cancel := context.WithTimeout(ctx, historyPatience)
	defer cancel()
	out := []client.Change{}
	h, err := a.Registry.History(ctx, registry.HistoryRequest{Service: n, After: index - 1, Until: index})
	if err != nil {
		return out
	}
	for i := range h.Changes {
		out = append(out, changeOf(&h.Changes[i]))
	}
	return out
}

func changeOf(c *registry.Change) client.Change {
	return client.Change{Index: c.Index, When: c.When, By: c.By, Node: c.Key.Node, Instance: c.Key.ID, What: c.What}
}

// history tells what happened to a service.
func (a *api) history(r *http.Request) (any, error) {
	n, err := serviceOf(r)
	if err != nil {
		return nil, err
	}
	q := registry.HistoryRequest{Service: n}
	for name, v := range r.URL.Query() {
		var bad error
		switch name {
		case "namespace":
		case "since":
			var since time.Duration
			since, bad = time.ParseDuration(v[0])
			q.Since = weft.Duration(since)
		case "after":
			q.After, bad = strconv.ParseUint(v[0], 10, 63)
		case "limit":
			q.Limit, bad = strconv.Atoi(v[0])
		default:
			return nil, weft.Errorf(weft.Invalid, "read", "history of "+n.String(), "there is no parameter %q", name)
		}
		if bad != nil {
			return nil, weft.Errorf(weft.Invalid, "read", "history of "+n.String(), "parameter %s=%q: want a time as 1h, or a number", name, v[0])
		}
	}
	if q.Since == 0 && q.After == 0 {
		q.Since = weft.Duration(time.Hour)
	}
	h, err := a.Registry.History(r.Context(), q)
	if err != nil {
		return nil, err
	}
	if _, index := a.Registry.Instances(n); index <= 1 && len(h.Start)+len(h.Changes) == 0 {
		return nil, neverThere("history", n)
	}
	out := client.History{From: h.From, At: h.At, Start: []client.Instance{}, Changes: []client.Change{}, Next: h.Next}
	for _, in := range h.Start {
		out.Start = append(out.Start, instanceOf(in, &weft.Node{Address: a.Registry.NodeAddress(in.Node)}))
	}
	for i := range h.Changes {
		out.Changes = append(out.Changes, changeOf(&h.Changes[i]))
	}
	return out, nil
}

// serviceOf reads the service that a path and the parameter namespace name.
func serviceOf(r *http.Request) (weft.ServiceName, error) {
	name := r.PathValue("name")
	n, ok := weft.ParseHost(name, cmp.Or(r.URL.Query().Get("namespace"), weft.DefaultNamespace))
	if !ok {
		return n, weft.Errorf(weft.Invalid, "read", "service "+name, "it is no name of a service; want \"name\" or \"name.namespace\"")
	}
	return n, nil
}

// guards lists the services that are guarded.
func (a *api) guards(*http.Request) (any, error) {
	out := []client.Guarded{}
	for _, n := range a.Registry.Guarded() {
		g, guarded := a.Registry.Guard(n)
		if !guarded {
			continue
		}
		v := client.Guarded{Namespace: n.Namespace, Service: n.Name, Reason: g.Reason, Since: g.Since, Kept: []string{}}
		for _, key := range g.Kept {
			v.Kept = append(v.Kept, key.Node+"/"+key.ID)
		}
		out = append(out, v)
	}
	return out, nil
}

func (a *api) releaseGuard(r *http.Request) (any, error) {
	n, err := serviceOf(r)
	if err != nil {
		return nil, err
	}
	_, err = a.Registry.ReleaseGuard(r.Context(), n)
	return nil, err
}

// drainInstance takes an instance out of every view, and says who knows.
func (a *api) drainInstance(r *http.Request) (any, error) {
	var o client.DrainOptions
	if err := decode(r, "drain", &o); err != nil {
		return nil, err
	}
	in, err := a.instanceNamed(r.URL.Query(), r.PathValue("id"), "drain")
	if err != nil {
		return nil, err
	}
	d, err := a.Registry.Drain(r.Context(), registry.DrainRequest{Key: in.Key(), Deadline: o.Deadline})
	if err != nil {
		return nil, err
	}
	out := client.DrainedBy{Node: in.Node, Instance: in.ID, Service: in.Service.String(), Index: d.Index, Acked: d.Acked, Waiting: d.Waiting}
	for _, list := range []*[]string{&out.Acked, &out.Waiting} {
		if *list == nil {
			*list = []string{}
		}
	}
	return out, nil
}

func (a *api) endDrain(r *http.Request) (any, error) {
	in, err := a.instanceNamed(r.URL.Query(), r.PathValue("id"), "end the drain of")
	if err != nil {
		return nil, err
	}
	return nil, a.Registry.EndDrain(r.Context(), in.Key())
}

// instanceNamed finds an instance by its id, and its node when several have one of
// that id.
func (a *api) instanceNamed(q url.Values, id, op string) (*weft.Instance, error) {
	if node := q.Get("node"); node != "" {
		in, _ := a.Registry.Instance(weft.InstanceKey{Node: node, ID: id})
		if in == nil {
			return nil, weft.Errorf(weft.NotFound, op, "instance "+id, "node %s has no such instance", node)
		}
		return in, nil
	}
	var found []*weft.Instance
	all, _ := a.Registry.AllInstances()
	for _, in := range all {
		if in.ID == id {
			found = append(found, in)
		}
	}
	switch len(found) {
	case 0:
		return nil, weft.Errorf(weft.NotFound, op, "instance "+id, "no instance of this id is registered; \"weft instances SERVICE\" lists those of a service")
	case 1:
		return found[0], nil
	}
	return nil, weft.Errorf(weft.Conflict, op, "instance "+id, "nodes %s and %s both have an instance of this id; say which (--node)", found[0].Node, found[1].Node)
}
