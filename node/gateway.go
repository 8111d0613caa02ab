package node

import (
	"context"
	"errors"
	"net"
	"os"

	"github.com/weftmesh/weft/control/subscribe"
)

// GatewayConfig of a Gateway.
type GatewayConfig struct {
	ProxyConfig
	Name string // of the Gateway resource that it serves
	HTTP string // where clients come; may be any address: a gateway is there to be reached
}

// DefaultGateway listens where design and README say.
var DefaultGateway = GatewayConfig{
	Name: "gateway", HTTP: "127.0.0.1:8080",
	ProxyConfig: ProxyConfig{Control: "127.0.0.1:8502", Admin: "127.0.0.1:0", Sample: 0.01},
}

// Gateway is a proxy at the edge.
type Gateway struct {
	dataPlane
	http net.Listener
	name string
}

// NewGateway binds its ports and joins the mesh.
func NewGateway(ctx context.Context, c GatewayConfig) (_ *Gateway, err error) {
	g := &Gateway{name: c.Name}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.undo.close())
		}
	}()
	if g.http, err = listen("gateway", c.HTTP, "--http"); err != nil {
		return nil, err
	}
	g.undo.add(closeQuietly(g.http))
	err = g.join(ctx, c.ProxyConfig, subscribe.Config{ServiceAccount: "gateway", Role: subscribe.Gateway, GatewayName: c.Name, PID: os.Getpid()})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// Address where clients come.
func (g *Gateway) Address() string { return g.http.Addr().String() }

// Run serves until ctx ends, then drains.
func (g *Gateway) Run(ctx context.Context) error {
	var p parts
	g.parts(&p)
	p.add("gateway", g.serve(g.http, gatewayChain()))
	g.logger.Info("ready", "role", "gateway", "name", g.name, "pid", os.Getpid(), "http", g.Address(), "admin", g.admin.Addr().String())
	return errors.Join(p.run(ctx), g.undo.close())
}
