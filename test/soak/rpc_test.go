package soak

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// rpc calls the service by gRPC on one connection.
type rpc struct {
	conn   *grpc.ClientConn
	client testpb.TestServiceClient
}

func newRPC(address string) (*rpc, error) {
	c, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, err
	}
	return &rpc{c, testpb.NewTestServiceClient(c)}, nil
}

func (g *rpc) close() { _ = g.conn.Close() }

func payload(id uint64, n int64) *testpb.Payload { return &testpb.Payload{Body: message(id, n)} }

// replied checks what came back for a message.
func replied(b []byte, id uint64, n int64) error {
	got, err := checkMessage(b, n)
	if err == nil && got != id+1 {
		err = &wrongBytes{fmt.Sprintf("the answer to %x is %x's", id, got)}
	}
	return err
}

// fault sorts a call's error: what is not a matter of connections is wrong.
func fault(err error) error {
	switch status.Code(err) {
	case codes.OK, codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return err
	case codes.Internal: // a stream that was reset
		return err
	}
	return &wrongBytes{err.Error()}
}

func (g *rpc) unary(ctx context.Context, r *rand.Rand) error {
	id, m := r.Uint64(), size(r)
	giveUp := r.IntN(15) == 0
	if giveUp {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.Int64N(int64(10*time.Millisecond))))
		defer cancel()
	}
	resp, err := g.client.UnaryCall(ctx, &testpb.SimpleRequest{Payload: payload(id, size(r)), ResponseSize: int32(m)})
	if giveUp && (ctx.Err() != nil && err != nil || expired(err)) {
		return errCancelled
	}
	if err != nil {
		return fault(err)
	}
	return replied(resp.GetPayload().GetBody(), id, m)
}

// expired says that somebody on the way looked at the clock before us. When that
// cuts a message in two, the library complains of that, and not of the status.
func expired(err error) bool {
	s := status.Convert(err)
	return s.Code() == codes.DeadlineExceeded || s.Code() == codes.Internal && s.Message() == "unexpected EOF"
}

// stream talks for a while, in turns.
func (g *rpc) stream(ctx context.Context, r *rand.Rand) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := g.client.FullDuplexCall(ctx)
	if err != nil {
		return fault(err)
	}
	for range 1 + r.IntN(20) {
		id, n := r.Uint64(), size(r)
		sizes := []*testpb.ResponseParameters{{Size: int32(n)}, {Size: int32(n / 2)}}
		if err := s.Send(&testpb.StreamingOutputCallRequest{Payload: payload(id, r.Int64N(64<<10)), ResponseParameters: sizes}); err != nil && err != io.EOF {
			return fault(err)
		}
		for _, p := range sizes {
			m, err := s.Recv()
			if err == io.EOF {
				return &wrongBytes{"a stream ended with OK that was not over"}
			}
			if err != nil {
				return fault(err)
			}
			if err := replied(m.GetPayload().GetBody(), id, int64(p.Size)); err != nil {
				return err
			}
		}
		<-time.After(time.Duration(r.Int64N(int64(50 * time.Millisecond))))
	}
	if r.IntN(10) == 0 {
		return errCancelled
	}
	if err := s.CloseSend(); err != nil {
		return fault(err)
	}
	if _, err := s.Recv(); err != io.EOF {
		return fmt.Errorf("at the end: %w", fault(err))
	}
	return nil
}
