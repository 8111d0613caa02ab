package node

import (
	"crypto/tls"
	"net/netip"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/proxy"
	"github.com/weftmesh/weft/proxy/filter/authz"
	"github.com/weftmesh/weft/proxy/filter/edge"
)

// What a request passes, in order. Reading and normalising come before every
// chain (a filter sees the path that is forwarded), routing and the resilience
// stack after it: connection limits, retries within the budget, endpoint pick,
// attempt.

// gatewayChain: from outside into the mesh, in plain text when there is no config.
// from are the load balancers that say by PROXY headers who the client is.
func gatewayChain(config *tls.Config, from []netip.Prefix) *proxy.Listener {
	return &proxy.Listener{Direction: proxy.Edge, TLS: config, ProxyFrom: from, Filters: []proxy.Filter{
		edge.Filter{}, // first: nothing behind it may believe what a client says of itself
	}}
}

// gatewayRawChain: bytes from outside into the mesh, by the port of a Gateway's TCP
// server. There is nothing to filter in them.
func gatewayRawChain(port uint16, from []netip.Prefix) *proxy.Listener {
	return &proxy.Listener{Direction: proxy.Edge, Raw: true, Port: port, ProxyFrom: from}
}

// inboundChain: from other sidecars to the own application, which listens at local.
func inboundChain(c *ca.Credentials, local string, speaks weft.Protocol, policies func() *weft.Authorization) *proxy.Listener {
	return &proxy.Listener{Direction: proxy.Inbound, TLS: c.ServerTLS(proxy.Protocols...), Identify: ca.PeerIdentity,
		Local: local, LocalProtocol: speaks,
		Filters: []proxy.Filter{
			&authz.Filter{Policies: policies}, // last before the application: a denied request costs it nothing
		}}
}

// outboundChain: from the own application to other services. host is the one
// upstream that a listener of its own stands for, or "" for the forward proxy.
func outboundChain(host string) *proxy.Listener {
	return &proxy.Listener{Direction: proxy.Outbound, Host: host}
}
