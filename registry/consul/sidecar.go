package consul

import (
	"net"
	"strconv"

	"github.com/weftmesh/weft"
)

// The ports that sidecars get which ask for none, as Consul gives them.
const (
	sidecarMinPort = 21000
	sidecarMaxPort = 21255
)

// sidecarOf returns the proxy that the registration of a service asks for with
// Connect.SidecarService, nil when it asks for none. What is not given there is
// made from the service.
func (a *api) sidecarOf(q *query, parent *agentServiceBody, of *weft.Instance) (*weft.Instance, error) {
	if parent.Connect == nil || parent.Connect.SidecarService == nil {
		return nil, nil
	}
	body := *parent.Connect.SidecarService
	invalid := func(format string, args ...any) error {
		return weft.Errorf(weft.Invalid, "register sidecar of", of.ID, format, args...)
	}
	switch {
	case body.ID != "":
		return nil, invalid("sidecar service can't have an ID, it is given one")
	case body.Connect != nil && body.Connect.SidecarService != nil:
		return nil, invalid("sidecar service can't have a nested sidecar_service")
	case body.Kind != "" && body.Kind != connectProxy:
		return nil, invalid("sidecar service can't be of Kind %q", body.Kind)
	}
	body.ID, body.Kind, body.Namespace = of.ID+"-sidecar-proxy", connectProxy, parent.Namespace
	if body.Name == "" {
		body.Name = of.Service.Name + "-sidecar-proxy"
	}
	if body.Tags == nil {
		body.Tags = parent.Tags
	}
	if body.Meta == nil {
		body.Meta = parent.Meta
	}
	if body.Locality == nil {
		body.Locality = parent.Locality
	}
	if err := a.sidecarPort(&body, invalid); err != nil {
		return nil, err
	}
	body.Proxy = sidecarProxy(body.Proxy, of)
	if body.Check == nil && len(body.Checks) == 0 {
		body.Checks = sidecarChecks(&body, of)
	}
	in, err := a.agentInstance(q, &body)
	if err != nil {
		return nil, err
	}
	x := body.extra()
	x.SidecarOf = of.ID
	return &in, x.carry(&in)
}

// sidecarPort keeps the port that the sidecar has already, or takes the first that
// is free on this node.
func (a *api) sidecarPort(body *agentServiceBody, invalid func(string, ...any) error) error {
	if body.Port != 0 || len(body.Ports) > 0 || body.SocketPath != "" {
		return nil
	}
	taken := make(map[int]bool)
	_, instances, _ := a.registry.Node(a.registry.LocalNode().Name)
	for _, in := range instances {
		if in.ID == body.ID && in.Port != 0 {
			body.Port = in.Port
			return nil
		}
		taken[in.Port] = true
	}
	for port := sidecarMinPort; port <= sidecarMaxPort; port++ {
		if !taken[port] {
			body.Port = port
			return nil
		}
	}
	return invalid("no port is free from %d to %d", sidecarMinPort, sidecarMaxPort)
}

func sidecarProxy(given *proxyRecord, of *weft.Instance) *proxyRecord {
	var p proxyRecord
	if given != nil {
		p = *given
	}
	if p.DestinationServiceName == "" {
		p.DestinationServiceName = of.Service.Name
	}
	if p.DestinationServiceID == "" {
		p.DestinationServiceID = of.ID
	}
	if p.LocalServicePort == 0 && p.LocalServiceSocketPath == "" && of.Port != 0 {
		p.LocalServicePort = of.Port
		if p.LocalServiceAddress == "" {
			p.LocalServiceAddress = "127.0.0.1"
		}
	}
	return &p
}

// sidecarChecks: the proxy listens, and what it stands before is well.
func sidecarChecks(body *agentServiceBody, of *weft.Instance) []*checkBody {
	checks := []*checkBody{{Name: "Connect Sidecar Aliasing " + of.ID, AliasService: of.ID}}
	if body.Port == 0 {
		return checks
	}
	host := body.Address
	if host == "" {
		host = "127.0.0.1"
	}
	return append([]*checkBody{{
		Name: "Connect Sidecar Listening", TCP: net.JoinHostPort(host, strconv.Itoa(body.Port)), Interval: `"10s"`,
	}}, checks...)
}
