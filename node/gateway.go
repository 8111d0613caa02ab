package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/weftmesh/weft/control/subscribe"
)

// GatewayConfig of a Gateway.
type GatewayConfig struct {
	ProxyConfig
	Name  string // of the Gateway resource that it serves
	HTTP  string // where clients come; may be any address: a gateway is there to be reached
	HTTPS string // where they come over TLS; empty: nowhere
	// TCP are doors for bytes: where to listen, by the port of a Gateway resource's
	// TCP server.
	TCP map[uint16]string
	// ProxyFrom are the load balancers whose PROXY headers say who the client is.
	// They must send one; nobody else may.
	ProxyFrom []netip.Prefix
	// Certificates of HTTPS. Without any, only connections whose name a route passes
	// on as they are get through. Which one a client gets is chosen by the name it asks
	// for; the first one when none fits.
	Certificates []CertificateFiles
}

// DefaultGateway listens where design and README say.
var DefaultGateway = GatewayConfig{
	Name: "gateway", HTTP: "127.0.0.1:8080",
	ProxyConfig: ProxyConfig{Control: "127.0.0.1:8502", Admin: "127.0.0.1:0", Sample: 0.01, Drain: DefaultDrain},
}

// Gateway is a proxy at the edge.
type Gateway struct {
	dataPlane
	http, https  net.Listener            // https may be nil
	certificates *certificates           // nil without HTTPS
	tcp          map[uint16]net.Listener // by the Gateway's port
	from         []netip.Prefix
	name         string
}

// NewGateway binds its ports and joins the mesh.
func NewGateway(ctx context.Context, c GatewayConfig) (_ *Gateway, err error) {
	g := &Gateway{name: c.Name, from: c.ProxyFrom, tcp: map[uint16]net.Listener{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.undo.close())
		}
	}()
	if err := g.bind(c); err != nil {
		return nil, err
	}
	err = g.join(ctx, c.ProxyConfig, subscribe.Config{ServiceAccount: "gateway", Role: subscribe.Gateway, GatewayName: c.Name, PID: os.Getpid()})
	if err != nil {
		return nil, err
	}
	names := []string{"http", "https", "admin"}
	for port := range g.tcp {
		names = append(names, tcpName(port))
	}
	return g, c.Process.onlyUses(names...)
}

func (g *Gateway) bind(c GatewayConfig) (err error) {
	if c.HTTPS != "" {
		if g.certificates, err = loadCertificates(c.Certificates, c.Logger); err != nil {
			return err
		}
		if g.https, err = listen(c.Process, "gateway (TLS)", c.HTTPS, "--https"); err != nil {
			return err
		}
		g.undo.add(closeQuietly(g.https))
	}
	if g.http, err = listen(c.Process, "gateway", c.HTTP, "--http"); err != nil {
		return err
	}
	g.undo.add(closeQuietly(g.http))
	for port, address := range c.TCP {
		ln, err := listen(c.Process, fmt.Sprintf("gateway (TCP %d)", port), address, "--"+tcpName(port))
		if err != nil {
			return err
		}
		g.tcp[port] = ln
		g.undo.add(closeQuietly(ln))
	}
	return nil
}

// tcpName names a door for bytes among the process's sockets.
func tcpName(port uint16) string { return fmt.Sprintf("tcp-%d", port) }

// Address where clients come.
func (g *Gateway) Address() string { return g.http.Addr().String() }

// Run serves until ctx ends, then drains; or until another process has taken over.
func (g *Gateway) Run(ctx context.Context) (err error) {
	outer := ctx
	ctx, over := g.process.tenure(ctx)
	defer over()
	defer func() { g.process.bye(0, err) }()
	if g.process.Inherited() {
		var old proxyState
		if err := g.process.chain.State(&old); err != nil {
			return errors.Join(err, g.undo.close())
		}
		g.learn(ctx, old)
		if err := g.process.chain.Ready(ctx); err != nil {
			return errors.Join(err, g.undo.close())
		}
	}
	var p parts
	g.parts(&p)
	ready := []any{"role", "gateway", "name", g.name, "pid", os.Getpid(), "http", g.Address()}
	openings := []opening{{"http", g.http, gatewayChain(nil, g.from)}}
	for port, ln := range g.tcp {
		openings = append(openings, opening{tcpName(port), ln, gatewayRawChain(port, g.from)})
		ready = append(ready, tcpName(port), ln.Addr().String())
	}
	if g.https != nil {
		openings = append(openings, opening{"https", g.https, gatewayChain(g.certificates.config(), g.from)})
		p.add("certificates", g.certificates.watch)
		ready = append(ready, "https", g.https.Addr().String())
	}
	p.add("gateway", g.serve(g.proxy, openings...))
	serving, end := context.WithCancelCause(context.WithoutCancel(ctx))
	running := p.start(serving)
	g.process.serving()
	g.logger.Info("ready", append(ready, "admin", g.admin.Addr().String())...)
	next := g.process.watch(ctx, running, nil, g.process.stays(), func() any { return g.state() })
	if next == nil {
		end(nil)
		<-running.done
		return errors.Join(running.err, g.undo.close())
	}
	end(errReplaced)
	code, err := g.process.outlive(outer, next, nil, running, g.undo.close)
	return exitError(code, err)
}
