package h2spec

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/subscribe"
	"github.com/weftmesh/weft/test/world"
)

// startApplication serves HTTP/1: what a door does with frames must not depend on
// what is behind it.
func startApplication(t *testing.T) string {
	t.Helper()
	app := httptest.NewServer(application)
	t.Cleanup(app.Close)
	return app.Listener.Addr().String()
}

// TestGateway asks a gateway, in plain text with prior knowledge, on the port that
// also speaks HTTP/1, and over TLS.
func TestGateway(t *testing.T) {
	w := world.New(t)
	w.Register("app", "app-1", startApplication(t))
	w.Apply(world.Everything("app"))
	certificate := world.NewCertificate(t)
	gateway := w.Gateway("--access-log", "off", "--https", "127.0.0.1:0", "--cert", certificate.Cert, "--key", certificate.Key)
	world.Eventually(t, 10*time.Second, "the gateway", world.Answers("http://"+gateway.HTTP+"/"))
	t.Run("plain", func(t *testing.T) { judge(t, "gateway", gateway.HTTP, false) })
	t.Run("TLS", func(t *testing.T) { judge(t, "gateway-tls", gateway.HTTPS, true) })
}

// TestSidecar asks both sides of a sidecar pair: the one where the application's
// own calls come in, and the one where other sidecars call over mutual TLS.
func TestSidecar(t *testing.T) {
	w := world.New(t)
	server := w.Sidecar("app", world.Port(t, startApplication(t)), "--access-log", "off")
	_, door := w.Caller("tests", "app", "--access-log", "off")
	world.Eventually(t, 10*time.Second, "the sidecars", world.Answers("http://"+door+"/"))
	t.Run("outbound", func(t *testing.T) { judge(t, "outbound", door, false) })
	t.Run("inbound", func(t *testing.T) {
		judge(t, "inbound", startBridge(t, w, weft.NewIdentity(weft.DefaultTrustDomain, weft.DefaultNamespace, "app"), server.Inbound), false)
	})
}

// startBridge joins the mesh as a service of its own and carries plain connections
// to a sidecar's inbound port over mutual TLS, because h2spec has no identity.
func startBridge(t *testing.T, w *world.World, to weft.Identity, address string) string {
	t.Helper()
	token, err := os.ReadFile(w.Token())
	if err != nil {
		t.Fatal(err)
	}
	joined, err := subscribe.Open(t.Context(), subscribe.Config{Server: w.Control, Token: strings.TrimSpace(string(token)), ServiceAccount: "bridge"})
	if err != nil {
		t.Fatal(err)
	}
	config := joined.Credentials().ClientTLS(to).Clone()
	config.NextProtos = []string{"h2"}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var carrying sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	carrying.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			carrying.Go(func() { carry(ctx, c, address, config) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		carrying.Wait()
		if err := joined.Close(); err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// carry moves bytes both ways until both ways have ended.
func carry(ctx context.Context, near net.Conn, address string, config *tls.Config) {
	defer near.Close()
	far, err := tls.Dial("tcp", address, config)
	if err != nil {
		return
	}
	defer far.Close()
	defer context.AfterFunc(ctx, func() { _ = near.Close(); _ = far.Close() })()
	var ways sync.WaitGroup
	ways.Go(func() { _, _ = io.Copy(far, near); _ = far.CloseWrite() })
	ways.Go(func() { _, _ = io.Copy(near, far); _ = near.(*net.TCPConn).CloseWrite() })
	ways.Wait()
}

// TestUpstream has weft as the client: a gateway calls a server that behaves as
// each of h2spec's client cases says.
func TestUpstream(t *testing.T) {
	w := world.New(t)
	listed := disagreements(t, "upstream")
	all := startClientCases(t, clientCases())
	routes := strings.Builder{}
	for _, c := range all {
		w.Register(c.service, c.service, c.address, "protocol", "http2")
		routes.WriteString("    - match: [{uri: {exact: /" + c.service + "}}]\n      route: [{destination: {host: " + c.service + "}}]\n")
	}
	w.Apply(strings.Replace(world.Everything("none"), "    - route:\n        - destination: {host: none}\n", routes.String(), 1))
	gateway := w.Gateway("--access-log", "off")
	for _, c := range all {
		t.Run(c.id, func(t *testing.T) {
			t.Parallel()
			c.begun(t, "http://"+gateway.HTTP+"/"+c.service)
			verdict(t, c.id, c.Desc, c.Requirement, c.result(t), listed)
		})
	}
}
