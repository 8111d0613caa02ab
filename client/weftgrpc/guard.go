package weftgrpc

import (
	"context"
	"errors"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft/resilience"
)

// guard puts a policy in force.
type guard struct {
	policy func(context.Context) *resilience.Policy // nil: calls go as they are
}

// UnaryClientInterceptor puts p in force for calls.
func UnaryClientInterceptor(p *resilience.Policy) grpc.UnaryClientInterceptor {
	return (&guard{policy: func(context.Context) *resilience.Policy { return p }}).unary
}

// StreamClientInterceptor puts p in force for streams.
func StreamClientInterceptor(p *resilience.Policy) grpc.StreamClientInterceptor {
	return (&guard{policy: func(context.Context) *resilience.Policy { return p }}).stream
}

func (g *guard) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	ctx = withTrace(ctx)
	p := g.policy(ctx)
	if p == nil {
		return invoke(ctx, method, req, reply, cc, options...)
	}
	ctx = remembering(ctx, false)
	call, err := p.Begin(ctx, time.Now(), resilience.Normal)
	if err != nil {
		return refused(err)
	}
	a := attempt{policy: p, call: &call}
	defer func() { call.End(a.ended, a.outcome) }()
	for {
		err := a.make(ctx, func(ctx context.Context, more ...grpc.CallOption) error {
			return invoke(ctx, method, req, reply, cc, append(more, options...)...)
		})
		if err == nil || !a.again(ctx) {
			return err
		}
	}
}

// attempt is the latest attempt of a call.
type attempt struct {
	policy *resilience.Policy
	call   *resilience.Call

	outcome resilience.Outcome
	ended   time.Time
	made    bool  // the circuit let it pass
	err     error // of a status
	peer    peer.Peer
	trailer metadata.MD
}

// make asks the circuit, and makes an attempt within its time.
func (a *attempt) make(ctx context.Context, try func(context.Context, ...grpc.CallOption) error) error {
	now := time.Now()
	*a = attempt{policy: a.policy, call: a.call, outcome: resilience.Ignored, ended: now}
	permit, err := a.call.Attempt(now)
	if err != nil {
		return refused(err)
	}
	a.made, a.outcome = true, resilience.Failure // if try panics
	defer func() {
		a.ended = time.Now()
		a.call.AttemptDone(permit, a.ended, a.outcome)
	}()
	inner, deadline := ctx, a.call.AttemptDeadline(now)
	if !deadline.IsZero() {
		var cancel context.CancelFunc
		inner, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	a.err = try(inner, grpc.Peer(&a.peer), grpc.Trailer(&a.trailer))
	a.outcome = judge(ctx, deadline, a.err)
	return a.err
}

// judge says how an attempt ended that had until deadline (zero: for ever).
func judge(ctx context.Context, deadline time.Time, err error) resilience.Outcome {
	code := status.Code(err)
	switch {
	case code == codes.OK:
		return resilience.Success
	case ctx.Err() == context.Canceled || code == codes.Canceled:
		return resilience.Ignored
	case code == codes.DeadlineExceeded && ctx.Err() == nil && !deadline.IsZero() && !time.Now().Before(deadline):
		return resilience.TimedOut
	}
	switch code {
	case codes.Unavailable, codes.Internal, codes.Unknown, codes.DeadlineExceeded, codes.ResourceExhausted:
		return resilience.Failure
	}
	return resilience.Success // the service has answered
}

// again reports whether another attempt is due, when the pause before it is over.
func (a *attempt) again(ctx context.Context) bool {
	if !a.made || ctx.Err() != nil || a.outcome == resilience.Ignored {
		return false
	}
	if a.outcome != resilience.TimedOut && !a.policy.RetriesGRPC(int(status.Code(a.err))) {
		return false
	}
	hint, asked := pushback(a.trailer)
	unseen := a.peer.Addr == nil // it never had a connection
	if !unseen && !asked && !a.policy.RetriesMethod("POST") && !hasKey(ctx) {
		return false
	}
	wait, again := a.call.Retry(a.ended, hint)
	return again && pause(ctx, wait)
}

// pushback is what a server says about the next attempt (gRFC A6): negative is
// never. asked: it wants one.
func pushback(trailer metadata.MD) (hint time.Duration, asked bool) {
	values := trailer.Get("grpc-retry-pushback-ms")
	if len(values) == 0 {
		return 0, false
	}
	ms, err := strconv.ParseUint(values[0], 10, 31)
	if err != nil || len(values) > 1 {
		return -1, false
	}
	return max(time.Duration(ms)*time.Millisecond, 1), true // 0 is at once, and not the policy's pause
}

func hasKey(ctx context.Context) bool {
	md, _ := metadata.FromOutgoingContext(ctx)
	return len(md.Get("idempotency-key")) > 0
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// refusal is a call that was refused, as gRPC's callers know errors.
type refusal struct{ *resilience.Rejected }

// GRPCStatus is for status.FromError.
func (r *refusal) GRPCStatus() *status.Status {
	code := codes.ResourceExhausted
	switch r.Reason {
	case resilience.ReasonCircuitOpen:
		code = codes.Unavailable
	case resilience.ReasonTimeout:
		code = codes.DeadlineExceeded
	}
	return status.New(code, r.Error())
}

// Unwrap lets errors.As find the *resilience.Rejected.
func (r *refusal) Unwrap() error { return r.Rejected }

// refused is an error of Begin or Attempt as a status.
func refused(err error) error {
	var r *resilience.Rejected
	if errors.As(err, &r) {
		return &refusal{r}
	}
	return status.FromContextError(err).Err()
}
