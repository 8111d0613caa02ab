package api

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

const (
	defaultLeaseTTL = 10 * time.Second
	minLeaseTTL     = time.Second
	maxLeaseTTL     = time.Hour
	// removeAfter is how long an instance whose lease lapsed is still listed, as
	// critical; a sidecar's is listed as long.
	removeAfter = 30 * time.Second

	leasedOutput = "the instance says that it is there"
)

// register makes an instance known that has no sidecar, and keeps it for as long as
// its lease is renewed.
func (a *api) register(r *http.Request) (any, error) {
	var in client.Registration
	if err := decode(r, "register", &in); err != nil {
		return nil, err
	}
	thing := "instance " + in.Service + "/" + in.ID
	ttl := cmp.Or(in.TTL.Std(), defaultLeaseTTL)
	switch {
	case in.Service == "":
		return nil, weft.Errorf(weft.Invalid, "register", "instance "+in.ID, "service: give it a name")
	case in.Port < 1 || in.Port > 65535:
		return nil, weft.Errorf(weft.Invalid, "register", thing, "port: %d is no port; use 1 to 65535", in.Port)
	case ttl < minLeaseTTL || ttl > maxLeaseTTL:
		return nil, weft.Errorf(weft.Invalid, "register", thing, "ttl: %v; want %v to %v", ttl, minLeaseTTL, maxLeaseTTL)
	}
	instance := weft.Instance{
		ID: cmp.Or(in.ID, in.Service), Service: weft.NewServiceName(in.Namespace, in.Service), Node: a.leaseNode(r),
		Address: cmp.Or(in.Address, callerHost(r)), Port: in.Port, Protocol: in.Protocol, Tags: in.Tags, Labels: in.Labels, Zone: in.Zone,
		Weights: weft.Weights{Passing: in.Weight, Warning: in.Weight}, PID: in.PID, Dialect: "weft",
	}
	if instance.Protocol == "" {
		instance.Protocol = weft.DeclaredProtocol(in.Labels, in.Tags)
	}
	// Two checks, as for a sidecar's: an application that says it is unwell stays
	// registered, one that says nothing does not.
	instance.Checks = []weft.Check{{
		ID: leaseID(instance.ID), Name: "lease of the instance", Kind: weft.LeaseCheck, TTL: weft.Duration(ttl),
		DeregisterAfter: weft.Duration(removeAfter), Status: weft.Passing, Output: leasedOutput,
	}, {
		ID: healthID(instance.ID), Name: "health, by the instance", Kind: weft.TTLCheck, TTL: weft.Duration(ttl),
		Status: in.Health, Output: in.Output,
	}}
	if old, _ := a.Registry.Instance(instance.Key()); old != nil {
		if err := own(old, "register"); err != nil {
			return nil, err
		}
		if old.Service != instance.Service {
			return nil, weft.Errorf(weft.Conflict, "register", thing, "node %s has an instance of this id already, of service %s", old.Node, old.Service)
		}
	}
	index, err := a.Registry.Register(r.Context(), instance)
	if err != nil {
		return nil, err
	}
	return client.Leased{ID: instance.ID, Node: instance.Node, TTL: weft.Duration(ttl), Index: index}, nil
}

func leaseID(instance string) string  { return "lease:" + instance }
func healthID(instance string) string { return "health:" + instance }

// leaseNode is the node that has the instance: that of the server where it came first,
// which the client names when it comes to another one.
func (a *api) leaseNode(r *http.Request) string {
	name := r.URL.Query().Get("node")
	if n, _, _ := a.Registry.Node(name); n != nil {
		return name
	}
	return a.Registry.LocalNode().Name
}

// callerHost is the address that a request comes from.
func callerHost(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return "" // the node's
	}
	return host
}

// own refuses what was not registered here: a sidecar keeps its instance itself,
// and an instance that came by Consul's API is kept there.
func own(in *weft.Instance, op string) error {
	thing := "instance " + in.Service.Name + "/" + in.ID
	switch {
	case in.Identity != "":
		return weft.Errorf(weft.Denied, op, thing, "its sidecar has registered it, and keeps it")
	case in.Dialect != "weft":
		return weft.Errorf(weft.Denied, op, thing, "it was registered by another API (%s)", in.Dialect)
	}
	return nil
}

// leased finds the instance that a path names.
func (a *api) leased(r *http.Request, op string) (*weft.Instance, error) {
	key := weft.InstanceKey{Node: a.leaseNode(r), ID: r.PathValue("id")}
	in, _ := a.Registry.Instance(key)
	if in == nil {
		return nil, weft.Errorf(weft.NotFound, op, "instance "+key.ID, "it is not registered (any more); register it again")
	}
	return in, own(in, op)
}

// heartbeat renews a lease, and takes what the instance says of itself.
func (a *api) heartbeat(r *http.Request) (any, error) {
	var beat client.Heartbeat
	if err := decode(r, "renew", &beat); err != nil {
		return nil, err
	}
	in, err := a.leased(r, "renew")
	if err != nil {
		return nil, err
	}
	if err := a.Registry.Report(r.Context(), in.Node, leaseID(in.ID), weft.Passing, leasedOutput); err != nil {
		return nil, err
	}
	return nil, a.Registry.Report(r.Context(), in.Node, healthID(in.ID), beat.Health, beat.Output)
}

// drain takes an instance out of every view. The answer comes when the proxies that
// call its service know.
func (a *api) drain(r *http.Request) (any, error) {
	in, err := a.leased(r, "drain")
	if err != nil {
		return nil, err
	}
	// Who asks may be about to end: what was begun is finished all the same.
	index, waiting, err := a.Control.Drain(context.WithoutCancel(r.Context()), *in)
	if err != nil {
		return nil, err
	}
	return client.Drained{Index: index, Waiting: waiting}, nil
}
