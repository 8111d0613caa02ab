// Package weftgrpc lets gRPC clients call weft's services by name:
//
//	c, err := client.New(ctx)
//	conn, err := weftgrpc.Dial(c, "weft:///order-service")
//	orders := pb.NewOrdersClient(conn)
//
// A target is weft:///name, weft:///name.namespace or a longer form that
// weft.ParseHost knows. Endpoints come and go as the server says (client.Watch);
// each call picks one by the service's load balancer. The service's ResiliencePolicy
// holds for calls and streams, and the trace of the context goes along (see
// client.WithTrace), or that of the gRPC call which the context belongs to. Beside a
// sidecar all goes to the sidecar, which balances, repeats and breaks.
//
// The interceptors need no weft server: they put any resilience.Policy in force.
//
//	policy, err := resilience.New("orders", spec)
//	conn, err := grpc.NewClient(target, grpc.WithUnaryInterceptor(weftgrpc.UnaryClientInterceptor(policy)), …)
//
// # What is a failure
//
// UNAVAILABLE, INTERNAL, UNKNOWN, DEADLINE_EXCEEDED and RESOURCE_EXHAUSTED are; what
// the caller cancelled counts neither way; every other status is an answer. A call
// that the policy refuses ends with UNAVAILABLE (the circuit is open),
// RESOURCE_EXHAUSTED (a limit) or DEADLINE_EXCEEDED (a timeout), and errors.As finds
// the *resilience.Rejected.
//
// # What is repeated
//
// The policy's grpcStatuses, and attempts that took too long, if that can do nothing
// twice: when no server has seen the call, when its metadata has an idempotency-key,
// when the server asks for it (grpc-retry-pushback-ms), or when the policy's
// retry.methods has POST, which all gRPC calls are to HTTP. A service without a policy
// has the one that client.Transport names. Hedges, fallbacks and idempotency of a
// policy are for HTTP.
//
// Of streams only the beginning is repeated and bounded by the policy's timeouts.
// For the circuit a stream has succeeded with its first message, or header; one that
// fails later is one more failure. Its place in the bulkhead it keeps to its end.
package weftgrpc

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"

	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/resilience"
)

// Scheme of targets.
const Scheme = "weft"

// serviceConfig chooses our balancer.
const serviceConfig = `{"loadBalancingConfig":[{"` + Scheme + `":{}}]}`

// Dial returns a connection to a service: "weft:///order-service", or the name alone.
// Nothing is dialled before the first call. options come after those that Dial gives:
// plain text, resolver, balancer, interceptors. c must live as long as the connection.
func Dial(c *client.Client, target string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	if !strings.Contains(target, "://") {
		target = Scheme + ":///" + target
	}
	name := target[strings.LastIndexByte(target, '/')+1:]
	g := &guard{policy: func(ctx context.Context) *resilience.Policy { return policyOf(ctx, c, name) }}
	return grpc.NewClient(target, append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(), // under a sidecar HTTP_PROXY leads to it, and we are there already
		grpc.WithResolvers(Resolver(c)),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithChainUnaryInterceptor(g.unary),
		grpc.WithChainStreamInterceptor(g.stream),
	}, options...)...)
}

// policyOf is the policy of a service; nil when it is not known: the resolver says
// what is wrong then.
func policyOf(ctx context.Context, c *client.Client, name string) *resilience.Policy {
	if c.Sidecar() != "" {
		return nil
	}
	p, err := c.Policy(ctx, name)
	if err != nil {
		return nil
	}
	return p
}

// Resolver is for grpc.WithResolvers: it makes targets of Scheme known to one
// connection. Dial does that.
func Resolver(c *client.Client) resolver.Builder { return &builder{c} }
