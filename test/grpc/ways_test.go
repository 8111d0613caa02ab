package grpc

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/weftmesh/weft/test/world"
)

// What the tests have between client and servers.

// startPair starts sidecars beside servers of one service, and the sidecar of a
// caller, whose door for that service it returns.
func startPair(t *testing.T, w *world.World, servers ...string) string {
	t.Helper()
	for _, address := range servers {
		w.Sidecar("app", world.Port(t, address), "--protocol", "grpc", "--access-log", "off")
	}
	_, door := w.Caller("tests", "app", "--access-log", "off")
	ready(t, door)
	return door
}

// gateway before servers that have no sidecars.
type gateway struct {
	*world.Proxy
	certificate world.Certificate
}

func startGateway(t *testing.T, w *world.World, servers ...string) gateway {
	t.Helper()
	for i, address := range servers {
		w.Register("app", "app-"+string(rune('1'+i)), address, "protocol", "grpc")
	}
	w.Apply(world.Everything("app"))
	g := gateway{certificate: world.NewCertificate(t)}
	g.Proxy = w.Gateway("--access-log", "off", "--https", "127.0.0.1:0", "--cert", g.certificate.Cert, "--key", g.certificate.Key)
	ready(t, g.HTTP)
	return g
}

// ready waits until a call gets as far as a server: any status of its own will do.
func ready(t *testing.T, address string) {
	t.Helper()
	client := dial(t, address)
	world.Eventually(t, 15*time.Second, "calls to "+address, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := client.EmptyCall(ctx, &testpb.Empty{})
		return err
	})
}

// dial makes a client with one connection.
func dial(t *testing.T, address string) testpb.TestServiceClient {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return testpb.NewTestServiceClient(c)
}

// startServer serves in this process.
func startServer(t *testing.T, s testpb.TestServiceServer) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	testpb.RegisterTestServiceServer(server, s)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ln) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}
