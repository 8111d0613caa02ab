package api

import (
	"cmp"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control"
	"github.com/weftmesh/weft/registry"
)

// services counts the instances of every service.
func (a *api) services(r *http.Request) (any, error) {
	namespace := r.URL.Query().Get("namespace")
	out := []client.Service{} // never null in JSON
	a.eachService(func(instances []*weft.Instance, healthy int) {
		first := instances[0].Service
		if namespace != "" && first.Namespace != namespace {
			return
		}
		s := client.Service{Namespace: first.Namespace, Name: first.Name, Instances: len(instances), Healthy: healthy}
		for _, in := range instances {
			s.Tags = append(s.Tags, in.Tags...)
			if v := in.Version(); v != "" {
				s.Versions = append(s.Versions, v)
			}
		}
		s.Tags, s.Versions = sortedSet(s.Tags), sortedSet(s.Versions)
		if g, guarded := a.Registry.Guard(first); guarded {
			s.Kept, s.Guard = len(g.Kept), g.Reason
		}
		out = append(out, s)
	})
	return out, nil
}

// eachService calls fn with the instances of one service after another, sorted by
// namespace and name, and how many of them get traffic. The servers themselves are none
// of them.
func (a *api) eachService(fn func(instances []*weft.Instance, healthy int)) {
	nodes, _ := a.Registry.Nodes()
	nodeHealth := make(map[string]weft.Health, len(nodes))
	for _, n := range nodes {
		nodeHealth[n.Name] = worst(n.Checks)
	}
	all, _ := a.Registry.AllInstances()
	all = slices.Clone(all) // shared, and its order is the registry's
	all = slices.DeleteFunc(all, func(in *weft.Instance) bool { return in.Dialect == registry.ServerDialect })
	slices.SortStableFunc(all, func(x, y *weft.Instance) int {
		return cmp.Or(cmp.Compare(x.Service.Namespace, y.Service.Namespace), cmp.Compare(x.Service.Name, y.Service.Name))
	})
	for len(all) > 0 {
		n, healthy := 0, 0
		for ; n < len(all) && all[n].Service == all[0].Service; n++ {
			if max(all[n].Health(), nodeHealth[all[n].Node]) <= weft.Warning {
				healthy++
			}
		}
		fn(all[:n], healthy)
		all = all[n:]
	}
}

func worst(checks []weft.Check) weft.Health {
	h := weft.Passing
	for i := range checks {
		h = max(h, checks[i].Status)
	}
	return h
}

func sortedSet(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

// instances describes the instances of one service.
func (a *api) instances(r *http.Request) (any, error) {
	n := weft.NewServiceName(r.URL.Query().Get("namespace"), r.PathValue("name"))
	list, _ := a.Registry.Instances(n)
	if len(list) == 0 {
		return nil, weft.Errorf(weft.NotFound, "list", "instances of "+n.String(),
			"no instance of this service is registered; \"weft services\" lists those that have one")
	}
	guard, _ := a.Registry.Guard(n)
	nodes := map[string]*weft.Node{}
	out := make([]client.Instance, len(list))
	for i, in := range list {
		node, seen := nodes[in.Node]
		if !seen {
			node, _, _ = a.Registry.Node(in.Node)
			nodes[in.Node] = node
		}
		if node == nil {
			node = &weft.Node{} // it went a moment ago
		}
		out[i] = instanceOf(in, node)
		if guard.Keeps(in.Key()) {
			out[i].Kept = guard.Reason
		}
	}
	return out, nil
}

func instanceOf(in *weft.Instance, node *weft.Node) client.Instance {
	host := cmp.Or(in.Address, node.Address)
	out := client.Instance{
		ID: in.ID, Namespace: in.Service.Namespace, Service: in.Service.Name, Node: in.Node,
		Address: net.JoinHostPort(host, strconv.Itoa(in.Port)), Protocol: in.Protocol, Version: in.Version(), Zone: in.Zone,
		Health: max(in.Health(), worst(node.Checks)), PID: in.PID, Tags: in.Tags, Labels: in.Labels,
		Identity: in.Identity, MeshAddress: in.MeshAddr, Dialect: in.Dialect,
	}
	for i := range in.Checks {
		out.Checks = append(out.Checks, checkOf(&in.Checks[i], false))
	}
	for i := range node.Checks {
		out.Checks = append(out.Checks, checkOf(&node.Checks[i], true))
	}
	return out
}

func checkOf(c *weft.Check, node bool) client.Check {
	return client.Check{ID: c.ID, Kind: c.Kind, Node: node, Status: c.Status, Output: c.Output,
		Target: c.Target, Interval: c.Interval, TTL: c.TTL}
}

// status describes this server and who is connected to it.
func (a *api) status(*http.Request) (any, error) {
	_, index := a.Registry.AllInstances()
	s := client.Status{
		Version: weft.Version, Datacenter: a.Registry.Datacenter(), PID: os.Getpid(),
		Started: a.Started, Uptime: time.Since(a.Started).Seconds(), Index: index,
		Resources: len(a.Control.Resources()), Listeners: a.Listeners, Proxies: []client.Proxy{},
	}
	if n := a.Registry.LocalNode(); n != nil {
		s.Node = n.Name
	}
	a.eachService(func(instances []*weft.Instance, healthy int) {
		s.Services++
		s.Instances += len(instances)
		s.Healthy += healthy
	})
	for _, n := range a.Registry.Guarded() {
		s.Guarded = append(s.Guarded, n.String())
	}
	if a.Sources != nil {
		s.Sources = a.Sources()
	}
	for _, p := range a.Control.Proxies() {
		s.Proxies = append(s.Proxies, proxyOf(p))
	}
	return s, nil
}

func proxyOf(p control.ProxyStatus) client.Proxy {
	return client.Proxy{Role: p.Role, Gateway: p.Gateway, Service: p.Service.String(), ID: p.ID, Identity: p.Identity,
		PID: p.PID, Address: p.Address, Version: p.Version, Connected: p.Connected,
		Applied: p.Applied, Current: p.Current, Rejected: p.LastNack}
}
