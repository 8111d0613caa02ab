package proxy_test

import (
	"crypto"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/proxy"
	"github.com/weftmesh/weft/proxy/filter/authz"
	"github.com/weftmesh/weft/telemetry/metric"
)

// pair is two sidecars with mTLS between them: the one of order-service, which
// calls, and the one before an application of inventory-service.
type pair struct {
	t              *testing.T
	address        string // of the caller's door for inventory-service
	client, server *proxy.Proxy
	metrics        *metric.Registry // of both
	authority      *ca.Authority
	callers, apps  *ca.Credentials
	inbound        string // the server's sidecar
	protocol       weft.Protocol
	policies       []*weft.AuthorizationPolicy
	timeout        time.Duration // of the route
	version        uint64
}

var inventory = weft.NewServiceName("", "inventory-service")

// newPair stands before app, which declares to speak p. change may change the pair
// before it runs.
func newPair(t *testing.T, app string, p weft.Protocol, change ...func(*pair)) *pair {
	t.Helper()
	pr := &pair{t: t, protocol: p, metrics: metric.New(0), authority: authority(t, "cluster.local")}
	pr.callers, pr.apps = credentials(t, pr.authority, "order-service"), credentials(t, pr.authority, "inventory-service")
	for _, f := range change {
		f(pr)
	}
	pr.server = proxy.New(proxy.Config{Self: inventory, Metrics: pr.metrics})
	pr.client = proxy.New(proxy.Config{Self: weft.NewServiceName("", "order-service"), ClientTLS: pr.callers.DialTLS, Metrics: pr.metrics})
	t.Cleanup(func() {
		pr.client.Close()
		pr.server.Close()
		if wrong := pr.client.Books() + pr.server.Books(); wrong != "" {
			t.Errorf("after Close: %s", wrong)
		}
	})
	policies := &weft.Authorization{Policies: pr.policies}
	pr.inbound = serve(t, pr.server, &proxy.Listener{Direction: proxy.Inbound, TLS: pr.apps.ServerTLS(proxy.Protocols...), Identify: ca.PeerIdentity,
		Local: app, LocalProtocol: p, Filters: []proxy.Filter{&authz.Filter{Policies: func() *weft.Authorization { return policies }}}})
	pr.endpoints(pr.inbound)
	pr.address = serve(t, pr.client, &proxy.Listener{Direction: proxy.Outbound, Host: inventory.Name})
	return pr
}

// endpoints are sidecars of inventory-service.
func (pr *pair) endpoints(addresses ...string) {
	pr.t.Helper()
	pr.version++
	svc := &weft.Service{Name: inventory}
	for _, a := range addresses {
		svc.Endpoints = append(svc.Endpoints, weft.Endpoint{ID: a, Address: a, Weight: 1, Protocol: pr.protocol,
			Identity: weft.NewIdentity("cluster.local", "default", inventory.Name)})
	}
	to := []weft.Destination{{Service: inventory}}
	table := &weft.RouteTable{Host: inventory.Name, Rules: []weft.Rule{{Name: "http[0]", Destinations: to, Retry: weft.DefaultRetry, Timeout: pr.timeout}},
		TCP: []weft.RawRule{{Name: "service", Destinations: to}}}
	if err := table.Complete(); err != nil {
		pr.t.Fatal(err)
	}
	pr.client.Update(&weft.Snapshot{Version: pr.version, Hosts: map[string]*weft.RouteTable{inventory.Name: table},
		Services: map[weft.ServiceName]*weft.Service{inventory: svc}})
}

// settled waits until nothing is in flight in either sidecar.
func (pr *pair) settled() {
	pr.t.Helper()
	proxy.Settled(pr.t, pr.client)
	proxy.Settled(pr.t, pr.server)
}

// rotate gives a workload a new certificate of the same authority.
func rotate(t testing.TB, a *ca.Authority, c *ca.Credentials, service string) {
	t.Helper()
	id := weft.NewIdentity(a.TrustDomain(), "default", service)
	var key crypto.Signer
	key, csr, err := ca.NewCSR(id)
	if err != nil {
		t.Error(err)
		return
	}
	chain, _, err := a.Sign(csr, id)
	if err != nil {
		t.Error(err)
		return
	}
	if err := c.Set(chain, key, a.Roots()); err != nil {
		t.Error(err)
	}
}

// denyAll lets nobody call.
var denyAll = &weft.AuthorizationPolicy{Source: weft.SourceRef{Kind: "AuthorizationPolicy", Namespace: "default", Name: "nobody"}}
