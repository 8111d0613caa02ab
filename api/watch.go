package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/registry"
)

const (
	defaultWait = 30 * time.Second
	maxWait     = time.Minute
)

// watch answers with the state of a service as soon as it is another than the
// asker knows, or when the wait is over. A service that nobody registered has a
// state, too: its watcher sees it come.
func (a *api) watch(r *http.Request) (any, error) {
	n := weft.NewServiceName(r.URL.Query().Get("namespace"), r.PathValue("name"))
	known, wait, err := watchQuery(r.URL.Query())
	if err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "watch", Thing: "service " + n.String(), Err: err}
	}
	from := r.URL.Query().Get("from")
	if from == "" {
		from = n.Namespace
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	for {
		changed := a.Control.Changed()
		s := a.stateOf(n, from)
		if s.Index != known.Index || s.Policy != known.Policy || ctx.Err() != nil {
			return s, nil
		}
		a.await(ctx, registry.ServiceTopic(n), s.Index, changed)
	}
}

// await returns when the topic's index is greater than after, when changed is
// closed, or when ctx ends.
func (a *api) await(ctx context.Context, t registry.Topic, after uint64, changed <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	}()
	a.Registry.Wait(ctx, t, after)
	cancel()
	<-done
}

// watchQuery reads what the asker knows already, and how long it waits for news.
func watchQuery(q url.Values) (known client.State, wait time.Duration, err error) {
	known.Policy, wait = q.Get("policy"), defaultWait
	if s := q.Get("index"); s != "" {
		if known.Index, err = strconv.ParseUint(s, 10, 64); err != nil {
			return known, 0, fmt.Errorf("index=%s: want the index of an earlier answer", s)
		}
	}
	if s := q.Get("wait"); s != "" {
		if wait, err = time.ParseDuration(s); err != nil || wait < 0 {
			return known, 0, fmt.Errorf("wait=%s: want a time such as 30s", s)
		}
	}
	for k := range q {
		switch k {
		case "namespace", "from", "index", "policy", "wait":
		default:
			return known, 0, fmt.Errorf("%s=: want namespace, from, index, policy or wait", k)
		}
	}
	if _, given := q["policy"]; known.Index != 0 && !given {
		return known, 0, fmt.Errorf("an index without the policy that came with it")
	}
	return known, min(wait, maxWait), nil
}

// stateOf is a service as callers in namespace from see it now.
func (a *api) stateOf(n weft.ServiceName, from string) client.State {
	s := client.State{Namespace: n.Namespace, Service: n.Name, Endpoints: []client.Endpoint{}}
	instances, index := a.Registry.Instances(n)
	for {
		s.Index = index
		if service := a.Control.Service(from, n); service != nil {
			s.LoadBalancer, s.Breaker = service.Policy.LoadBalancer, service.Breaker
			if service.Resilience != nil {
				s.Resilience = service.Resilience.Spec
			}
		}
		endpoints, same := a.Registry.Endpoints(n)
		if same == index {
			s.Endpoints = a.plainEndpoints(endpoints, instances)
			break
		}
		instances, index = a.Registry.Instances(n) // it changed in between
	}
	s.Instances = len(instances)
	s.Policy = policyVersion(&s)
	return s
}

// policyVersion names how a service is to be called. It follows from what it names,
// so that it is the same after a restart of the server.
func policyVersion(s *client.State) string {
	h := sha256.New()
	_ = json.NewEncoder(h).Encode([]string{string(s.LoadBalancer), s.Breaker, string(s.Resilience)})
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// plainEndpoints are endpoints with the addresses of the processes themselves: who
// asks here has no certificate, and cannot call a sidecar. They are the addresses
// that Consul's API and DNS tell.
func (a *api) plainEndpoints(endpoints []weft.Endpoint, instances []*weft.Instance) []client.Endpoint {
	byID := make(map[string]*weft.Instance, len(instances))
	for _, in := range instances {
		byID[in.Node+"/"+in.ID] = in
	}
	out := make([]client.Endpoint, 0, len(endpoints))
	for i := range endpoints {
		e := &endpoints[i]
		in := byID[e.ID]
		if in == nil {
			continue
		}
		host := in.Address
		if host == "" {
			host = a.Registry.NodeAddress(in.Node)
		}
		out = append(out, client.Endpoint{ID: e.ID, Address: net.JoinHostPort(host, strconv.Itoa(in.Port)),
			Version: e.Labels["version"], Zone: e.Zone, Labels: e.Labels, Protocol: e.Protocol, Weight: e.Weight,
			Identity: e.Identity, Plain: isPlain(host, in)})
	}
	return out
}

// isPlain reports whether who has no sidecar can call an instance at host. An
// application on loopback behind a sidecar that others reach by another address is
// on the loopback of another machine.
func isPlain(host string, in *weft.Instance) bool {
	if in.Port == 0 {
		return false
	}
	return in.Identity == "" || !onLoopback(host) || onLoopback(meshHost(in))
}

func meshHost(in *weft.Instance) string {
	host, _, err := net.SplitHostPort(in.MeshAddr)
	if err != nil {
		return ""
	}
	return host
}

func onLoopback(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}
