package subscribe

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	mathrand "math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/control/weftpb"
)

const (
	joinTimeout = 10 * time.Second // of one try
	renewLimit  = time.Minute      // between tries
	renewFloor  = time.Second      // certificates of a shorter life are renewed no faster than for this
)

// dialOptions of the lasting connection. gRPC's own backoff is kept short: the
// loops above it decide when to try again.
func (c *Client) dialOptions() []grpc.DialOption {
	server := ca.ServerIdentity(c.Identity().TrustDomain())
	return append(commonOptions(), grpc.WithTransportCredentials(credentials.NewTLS(c.credentials.ClientTLS(server))))
}

// maxResponse bounds a response, in bytes. One is at least as large as the largest
// table in it, and a gateway puts the rules of a host together, however many.
const maxResponse = 64 << 20

func commonOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithNoProxy(), // HTTP_PROXY is for applications
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
		// The next try goes to the next server: one may be there and of no use, cut off
		// from the others or stopped.
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
		grpc.WithUserAgent("weft/" + weft.Version),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectLimit},
			MinConnectTimeout: 5 * time.Second,
		}),
		// Finds out that the server is gone without a word.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
	}
}

// dial connects to the servers.
func (c *Client) dial(options ...grpc.DialOption) (*grpc.ClientConn, error) {
	servers := manual.NewBuilderWithScheme("servers")
	var state resolver.State
	for _, address := range strings.Split(c.config.Server, ",") {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: strings.TrimSpace(address)}}})
	}
	servers.InitialState(state)
	return grpc.NewClient(servers.Scheme()+":///weft", append(options, grpc.WithResolvers(servers))...)
}

// joinPatiently joins, and tries again while the server cannot be reached.
func (c *Client) joinPatiently(ctx context.Context) error {
	for failures := 0; ; failures++ {
		err := c.join(ctx)
		if err == nil || weft.KindOf(err) != weft.Unavailable {
			return err
		}
		if failures == 0 {
			c.log.Info("waiting for the control plane", "server", c.config.Server, "error", err)
		}
		if !pause(ctx, retryAfter(failures, reconnectLimit)) {
			return err
		}
	}
}

// join gets the first certificate.
func (c *Client) join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	thing := "the mesh at " + c.config.Server
	config := ca.JoinTLS(c.token.Pin())
	var refused atomic.Pointer[error] // why the server was not believed: gRPC would only say "unavailable"
	verify := config.VerifyConnection
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		err := verify(cs)
		if err != nil {
			refused.Store(&err)
		}
		return err
	}
	conn, err := c.dial(append(commonOptions(), grpc.WithTransportCredentials(credentials.NewTLS(config)))...)
	if err != nil {
		return &weft.Error{Kind: weft.Invalid, Op: "join", Thing: thing, Err: err}
	}
	defer conn.Close()
	// The trust domain is not known yet; the server ignores what the request says.
	key, csr, err := ca.NewCSR(weft.NewIdentity(weft.DefaultTrustDomain, c.config.Namespace, c.config.ServiceAccount))
	if err != nil {
		return err
	}
	r, err := weftpb.NewWorkloadClient(conn).Join(ctx, &weftpb.JoinRequest{
		Token: c.config.Token, Csr: csr, Namespace: c.config.Namespace, ServiceAccount: c.config.ServiceAccount,
	})
	if why := refused.Load(); why != nil {
		return &weft.Error{Kind: weft.Denied, Op: "join", Thing: thing, Err: *why}
	}
	if err != nil {
		return rpcFailure("join", thing, err)
	}
	want := weft.NewIdentity(r.GetTrustDomain(), c.config.Namespace, c.config.ServiceAccount)
	return c.accept(key, r.GetChain(), r.GetRoots(), want)
}

// accept takes a certificate up, if it is what was asked for.
func (c *Client) accept(key crypto.Signer, chain, rootsDER [][]byte, want weft.Identity) error {
	roots, err := weftpb.DecodeCertificates(rootsDER)
	if err != nil {
		return err
	}
	var fresh ca.Credentials
	if err := fresh.Set(chain, key, roots); err != nil {
		return err
	}
	if got := fresh.Identity(); got != want {
		return weft.Errorf(weft.Denied, "accept certificate", string(want), "the server made one for %s", got)
	}
	return c.credentials.Set(chain, key, roots)
}

// renew replaces the certificate at half of what is left of its life.
func (c *Client) renew() {
	for {
		_, notAfter := c.credentials.Validity()
		left := max(time.Until(notAfter), renewFloor)
		// A tenth of jitter: proxies that were started together do not renew together.
		if !pause(c.ctx, left/2+mathrand.N(left/20)) {
			return
		}
		for failures := 0; ; failures++ {
			err := c.renewOnce()
			if err == nil {
				break
			}
			if c.ctx.Err() != nil {
				return
			}
			c.log.Warn("the certificate could not be renewed; trying again", "expires", notAfter, "error", err)
			if !pause(c.ctx, retryAfter(failures+3, renewLimit)) {
				return
			}
		}
		c.log.Info("certificate renewed", "identity", c.Identity())
	}
}

// renewOnce asks with the old certificate. When that has expired (the server was
// away for long), the join token has to do.
func (c *Client) renewOnce() error {
	ctx, cancel := context.WithTimeout(c.ctx, joinTimeout)
	defer cancel()
	if _, notAfter := c.credentials.Validity(); time.Now().After(notAfter) {
		return c.join(ctx)
	}
	id := c.Identity()
	key, csr, err := ca.NewCSR(id)
	if err != nil {
		return err
	}
	r, err := weftpb.NewWorkloadClient(c.conn).Renew(ctx, &weftpb.RenewRequest{Csr: csr})
	if err != nil {
		return rpcFailure("renew", string(id), err)
	}
	return c.accept(key, r.GetChain(), r.GetRoots(), id)
}

// rpcFailure turns a gRPC status into an error of ours.
func rpcFailure(op, thing string, err error) error {
	kinds := map[codes.Code]weft.Kind{
		codes.InvalidArgument: weft.Invalid, codes.NotFound: weft.NotFound, codes.Aborted: weft.Conflict,
		codes.PermissionDenied: weft.Denied, codes.ResourceExhausted: weft.TooLarge,
		codes.Unavailable: weft.Unavailable, codes.DeadlineExceeded: weft.Unavailable, codes.Canceled: weft.Unavailable,
	}
	s := status.Convert(err)
	return &weft.Error{Kind: kinds[s.Code()], Op: op, Thing: thing, Err: errors.New(s.Message())}
}
