package control

import (
	"context"
	"errors"
	"io"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/control/weftpb"
)

// Register adds the control plane's services to a gRPC server that was made with
// ServerOptions.
func (c *Control) Register(s *grpc.Server) {
	discovery.RegisterAggregatedDiscoveryServiceServer(s, deltaADS{control: c})
	weftpb.RegisterWorkloadServer(s, workloads{control: c})
}

// ServerOptions are authentication and limits for the gRPC server of the control
// port: without a client certificate nothing may be called but Join, and what servers
// ask of each other, also of other services on that server. Its credentials are
// ServerTLS.
func (c *Control) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := admit(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := admit(ss.Context(), info.FullMethod); err != nil {
				return err
			}
			return next(srv, ss)
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 20 * time.Second, Timeout: 10 * time.Second,
			// A proxy renews its certificate at half its life, and proves it with the
			// next connection. None may last so long that the certificate which it was
			// made with expires first: made just before the renewal, it ends at 1/2 +
			// 1/3 (and gRPC's 10 % of jitter) of that one's life.
			MaxConnectionAge: c.authority.LeafTTL() / 3, MaxConnectionAgeGrace: 5 * time.Second,
		}),
		grpc.ConnectionTimeout(10 * time.Second), // TLS and HTTP/2 preface
		grpc.ReadBufferSize(8 << 10),
		grpc.MaxRecvMsgSize(4 << 20),
		grpc.MaxConcurrentStreams(100), // of one connection: a proxy needs four and its exports
		grpc.MaxHeaderListSize(16 << 10),
	}
}

// admit asks for a client certificate; it was verified in the handshake.
func admit(ctx context.Context, method string) error {
	switch method {
	case weftpb.Workload_Join_FullMethodName, weftpb.Servers_Join_FullMethodName, weftpb.Servers_Forward_FullMethodName,
		weftpb.Servers_Holding_FullMethodName:
		return nil // they ask for a token
	}
	_, err := identityOf(ctx)
	return rpcError(err)
}

// identityOf is who calls, by the client certificate.
func identityOf(ctx context.Context) (weft.Identity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", weft.Errorf(weft.Denied, "identify peer", "", "there is none")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return "", weft.Errorf(weft.Denied, "identify peer", p.Addr.String(), "the connection is not TLS")
	}
	return ca.PeerIdentity(&info.State)
}

// rpcError turns an error into a gRPC status, which is the answer.
func rpcError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Internal
	switch {
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	}
	switch weft.KindOf(err) {
	case weft.Invalid:
		code = codes.InvalidArgument
	case weft.NotFound:
		code = codes.NotFound
	case weft.Conflict:
		code = codes.Aborted
	case weft.Denied:
		code = codes.PermissionDenied
	case weft.Unavailable:
		code = codes.Unavailable
	case weft.TooLarge:
		code = codes.ResourceExhausted
	}
	return status.Error(code, err.Error())
}

// ended is the handler's answer to the end of a stream's requests.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// workloads serves weft.control.v1.Workload.
type workloads struct {
	weftpb.UnimplementedWorkloadServer
	control *Control
}

// Join gives a certificate to whoever shows the join token.
func (w workloads) Join(ctx context.Context, r *weftpb.JoinRequest) (*weftpb.JoinResponse, error) {
	c := w.control
	shown, err := ca.ParseJoinToken(r.GetToken())
	if err != nil || !c.token.Admits(shown) {
		c.log.Warn("control: a join was refused", "address", peerAddress(ctx), "namespace", r.GetNamespace(), "service_account", r.GetServiceAccount())
		return nil, status.Error(codes.PermissionDenied,
			`wrong join token: the right one is in the file "join-token" in the server's data directory`)
	}
	id := weft.NewIdentity(c.authority.TrustDomain(), r.GetNamespace(), r.GetServiceAccount())
	chain, notAfter, err := c.sign(r.GetCsr(), id)
	if err != nil {
		return nil, rpcError(err)
	}
	c.log.Info("control: a proxy joined", "identity", id, "address", peerAddress(ctx))
	return &weftpb.JoinResponse{
		Chain: chain, Roots: weftpb.EncodeCertificates(c.authority.Roots()),
		TrustDomain: c.authority.TrustDomain(), NotAfter: timestamppb.New(notAfter),
	}, nil
}

// Renew gives a new certificate of the same identity.
func (w workloads) Renew(ctx context.Context, r *weftpb.RenewRequest) (*weftpb.RenewResponse, error) {
	id, err := identityOf(ctx)
	if err != nil {
		return nil, rpcError(err)
	}
	chain, notAfter, err := w.control.sign(r.GetCsr(), id)
	if err != nil {
		return nil, rpcError(err)
	}
	return &weftpb.RenewResponse{
		Chain: chain, Roots: weftpb.EncodeCertificates(w.control.authority.Roots()), NotAfter: timestamppb.New(notAfter),
	}, nil
}

// sign refuses the server's own identity: who has it can pose as the server.
func (c *Control) sign(csr []byte, id weft.Identity) (chain [][]byte, notAfter time.Time, err error) {
	if id == ca.ServerIdentity(c.authority.TrustDomain()) {
		return nil, time.Time{}, weft.Errorf(weft.Denied, "sign certificate", string(id), "this identity is the server's own")
	}
	return c.authority.Sign(csr, id)
}
