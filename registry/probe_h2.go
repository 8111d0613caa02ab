package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft"
)

// probeH2Ping sends a PING on a new HTTP/2 connection (RFC 9113 §6.7), by TLS or
// with prior knowledge.
func probeH2Ping(ctx context.Context, c *weft.Check) (weft.Health, string) {
	conn, err := dialProbe(ctx, c, "h2")
	if err != nil {
		return weft.Critical, err.Error()
	}
	defer conn.Close()
	if t, ok := conn.(*tls.Conn); ok && t.ConnectionState().NegotiatedProtocol != "h2" {
		return weft.Critical, "HTTP/2 PING " + c.Target + ": it does not speak HTTP/2 (ALPN)"
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // it fails for a closed connection, and so does what follows
	}
	if err := pingH2(conn); err != nil {
		return weft.Critical, "HTTP/2 PING " + c.Target + ": " + err.Error()
	}
	return weft.Passing, "HTTP/2 PING " + c.Target + ": Success"
}

// maxPingFrames are more than a server sends before it acknowledges a PING.
const maxPingFrames = 100

// pingH2 begins a connection and waits for the acknowledgement of one PING. net/http
// has nothing that sends one.
func pingH2(conn io.ReadWriter) error {
	data := [8]byte{'w', 'e', 'f', 't'}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return err
	}
	f := http2.NewFramer(conn, conn)
	if err := errors.Join(f.WriteSettings(), f.WritePing(false, data)); err != nil {
		return err
	}
	for range maxPingFrames {
		frame, err := f.ReadFrame()
		if err != nil {
			return err
		}
		switch frame := frame.(type) {
		case *http2.PingFrame:
			if frame.IsAck() && frame.Data == data {
				return nil
			}
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = f.WriteSettingsAck()
			}
		case *http2.GoAwayFrame:
			err = fmt.Errorf("it goes away: %s", frame.ErrCode)
		}
		if err != nil {
			return err
		}
	}
	return errors.New("it does not acknowledge")
}

// maxHealthAnswer is more bytes than grpc.health.v1 ever answers.
const maxHealthAnswer = 4 << 10

// probeGRPC asks grpc.health.v1 for the service that stands behind the address, or
// for the server when there is none.
func probeGRPC(ctx context.Context, c *weft.Check) (weft.Health, string) {
	address, service, _ := strings.Cut(c.Target, "/")
	secret := insecure.NewCredentials()
	if c.TLS {
		secret = credentials.NewTLS(probeTLS(c))
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(secret), grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
		grpc.WithUserAgent("weft-check/"+weft.Version),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxHealthAnswer)))
	if err != nil {
		return weft.Critical, err.Error()
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		s := status.Convert(err)
		return weft.Critical, fmt.Sprintf("gRPC %s: %s: %s", c.Target, s.Code(), s.Message())
	}
	if answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return weft.Critical, fmt.Sprintf("gRPC %s: %s", c.Target, answer.GetStatus())
	}
	return weft.Passing, "gRPC " + c.Target + ": SERVING"
}
