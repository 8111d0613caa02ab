package weftgrpc

import (
	"context"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/weftmesh/weft/resilience"
)

func (g *guard) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx = withTrace(ctx)
	p := g.policy(ctx)
	if p == nil {
		return open(ctx, desc, cc, method, options...)
	}
	ctx = remembering(ctx, true)
	call, err := p.Begin(ctx, time.Now(), resilience.Normal)
	if err != nil {
		return nil, refused(err)
	}
	s := &stream{call: &call, caller: ctx}
	a := attempt{policy: p, call: &call}
	for {
		err := s.open(&a, func(ctx context.Context, more ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(ctx, desc, cc, method, append(more, options...)...)
		})
		if err == nil {
			return s, nil
		}
		if !a.again(ctx) {
			call.End(a.ended, a.outcome)
			return nil, err
		}
	}
}

// stream is a stream under a policy.
type stream struct {
	grpc.ClientStream
	caller context.Context
	cancel context.CancelFunc // of the attempt that succeeded

	mu       sync.Mutex // guards what follows; gRPC calls from several goroutines
	call     *resilience.Call
	permit   resilience.Permit
	answered time.Time // when the circuit was told; zero: not yet
	ended    bool
}

// open makes one attempt to begin the stream, within its time. The permit stays with
// the stream.
func (s *stream) open(a *attempt, try func(context.Context, ...grpc.CallOption) (grpc.ClientStream, error)) error {
	now := time.Now()
	*a = attempt{policy: a.policy, call: a.call, outcome: resilience.Ignored, ended: now}
	permit, err := a.call.Attempt(now)
	if err != nil {
		return refused(err)
	}
	a.made, a.outcome = true, resilience.Failure // if try panics
	begun := false
	defer func() {
		if !begun {
			a.ended = time.Now()
			a.call.AttemptDone(permit, a.ended, a.outcome)
		}
	}()
	inner, cancel := context.WithCancel(s.caller)
	deadline := a.call.AttemptDeadline(now)
	if own, ok := s.caller.Deadline(); ok && !deadline.Before(own) {
		deadline = time.Time{} // the caller's, which gRPC heeds
	}
	late := func() bool { return true }
	if !deadline.IsZero() {
		late = time.AfterFunc(time.Until(deadline), cancel).Stop
	}
	// gRPC calls finish in any case when the stream is over; also when its beginning
	// failed, which is told here and not there.
	var life lifetime
	inside, err := try(inner, grpc.Peer(&a.peer), grpc.Trailer(&a.trailer), grpc.OnFinish(life.finish))
	inTime := late()
	if err != nil || !inTime {
		cancel()
		if a.err, a.outcome = err, judge(s.caller, time.Time{}, err); !inTime && s.caller.Err() == nil {
			a.outcome = resilience.TimedOut
			a.err = &refusal{&resilience.Rejected{Policy: a.policy.Name(), Reason: resilience.ReasonTimeout, Err: resilience.ErrAttemptTimeout}}
		}
		return a.err
	}
	begun = true
	s.ClientStream, s.permit, s.cancel = inside, permit, cancel
	life.follow(s)
	return nil
}

// lifetime brings the end of a stream to what follows it, whichever is there first.
type lifetime struct {
	mu     sync.Mutex
	stream *stream
	over   bool
	err    error
}

func (l *lifetime) finish(err error) {
	l.mu.Lock()
	s := l.stream
	l.over, l.err = true, err
	l.mu.Unlock()
	if s != nil {
		s.end(err)
	}
}

func (l *lifetime) follow(s *stream) {
	l.mu.Lock()
	l.stream = s
	over, err := l.over, l.err
	l.mu.Unlock()
	if over {
		s.end(err)
	}
}

// Header implements grpc.ClientStream.
func (s *stream) Header() (metadata.MD, error) {
	md, err := s.ClientStream.Header()
	if err == nil && md != nil {
		s.answer(nil)
	}
	return md, err
}

// RecvMsg implements grpc.ClientStream.
func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil || err == io.EOF {
		s.answer(nil)
	}
	return err
}

// answer tells the circuit how the stream began, once.
func (s *stream) answer(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answerLocked(err)
}

func (s *stream) answerLocked(err error) {
	if s.answered.IsZero() {
		s.answered = time.Now()
		s.call.AttemptDone(s.permit, s.answered, judge(s.caller, time.Time{}, err))
	}
}

// end gives everything back. A stream that fails behind a good beginning is one more
// failure.
func (s *stream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	s.cancel()
	begun := !s.answered.IsZero()
	s.answerLocked(err)
	o := judge(s.caller, time.Time{}, err)
	if begun && o.Failed() {
		now := time.Now()
		if permit, refused := s.call.Attempt(now); refused == nil {
			s.call.AttemptDone(permit, now, o)
		}
	}
	s.call.End(s.answered, o)
}
