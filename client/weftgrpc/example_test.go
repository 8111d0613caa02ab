package weftgrpc_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/client/weftgrpc"
	"github.com/weftmesh/weft/resilience"
)

// orders runs an order-service, which answers health checks.
func orders() (address string, stop func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(l) }()
	return l.Addr().String(), func() { s.Stop(); <-served }
}

func Example() {
	address, stop := orders()
	defer stop()
	weftServer := newServer()
	defer weftServer.close()
	weftServer.set("order-service", address)

	ctx := context.Background()
	c, err := client.New(ctx, client.At(weftServer.Listener.Addr().String())) // without At: by $WEFT_ADDR
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	conn, err := weftgrpc.Dial(c, "weft:///order-service")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.GetStatus())
	// Output: SERVING
}

// A policy of the program's own, without a weft server.
func ExampleUnaryClientInterceptor() {
	policy, err := resilience.New("orders", resilience.Spec{
		CircuitBreaker: &resilience.BreakerSpec{ConsecutiveFailures: 2},
	})
	if err != nil {
		log.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///127.0.0.1:1", // where nobody is
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(weftgrpc.UnaryClientInterceptor(policy)),
		grpc.WithStreamInterceptor(weftgrpc.StreamClientInterceptor(policy)))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	web := grpc_health_v1.NewHealthClient(conn)
	for range 3 {
		_, err := web.Check(context.Background(), &grpc_health_v1.HealthCheckRequest{})
		fmt.Println(status.Code(err) == codes.Unavailable, errors.Is(err, resilience.ErrCircuitOpen))
	}
	// Output:
	// true false
	// true false
	// true true
}
