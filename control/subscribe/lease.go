package subscribe

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/weftpb"
)

const defaultTTL = 3 * time.Second

// Lease is a registered instance. It is registered again by itself after the
// connection broke or the server restarted.
type Lease struct {
	// constant
	client   *Client
	instance weft.Instance
	ttl      time.Duration
	kick     chan struct{} // holds one: the health has changed
	draining chan struct{} // closed by Drain
	done     chan struct{} // closed when run has ended
	ctx      context.Context
	cancel   context.CancelFunc
	drain    sync.Once

	node string // of the goroutine run: where the catalogue has the instance, once it is there

	mu     sync.Mutex
	health weft.Health
	output string
	index  uint64 // the registry's, of the last registration
	result error  // of Drain, set before done is closed
}

// Register registers an instance with a lease: the server counts it as gone when
// nothing was heard of this process for ttl (1 s at least; 3 s when 0). The
// instance is critical until SetHealth says otherwise. Its identity is the
// client's; its Checks are not used. Register returns when the instance is in the
// registry, or with the reason why it cannot be; while the server is away it waits
// until ctx ends. The lease lasts until Drain or Close.
func (c *Client) Register(ctx context.Context, in weft.Instance, ttl time.Duration) (*Lease, error) {
	if ttl <= 0 {
		ttl = defaultTTL
	}
	l := &Lease{
		client: c, instance: in, ttl: ttl,
		kick: make(chan struct{}, 1), draining: make(chan struct{}), done: make(chan struct{}),
		health: weft.Critical, output: "its health is not known yet",
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, weft.Errorf(weft.Unavailable, "register", "instance "+in.ID, "the client is closed")
	}
	c.leases[l] = struct{}{}
	l.ctx, l.cancel = context.WithCancel(c.ctx)
	first := make(chan error, 1)
	c.work.Go(func() { l.run(first) })
	c.mu.Unlock()
	select {
	case err := <-first:
		if err != nil {
			<-l.done
			return nil, err
		}
		return l, nil
	case <-ctx.Done():
		l.cancel()
		<-l.done
		return nil, &weft.Error{Kind: weft.Unavailable, Op: "register", Thing: "instance " + in.ID, Err: ctx.Err()}
	}
}

// SetHealth reports the health of the application. It does not block.
func (l *Lease) SetHealth(h weft.Health, output string) {
	l.mu.Lock()
	changed := l.health != h
	l.health, l.output = h, output
	l.mu.Unlock()
	if changed {
		select {
		case l.kick <- struct{}{}:
		default:
		}
	}
}

// Drain takes the instance out of every view. It returns when the proxies that call
// it have applied that, so that no new request comes, or at the latest some seconds
// later; or when ctx ends. Afterwards the lease has ended, whatever Drain returns.
func (l *Lease) Drain(ctx context.Context) error {
	l.drain.Do(func() { close(l.draining) })
	select {
	case <-l.done:
	case <-ctx.Done():
		l.cancel()
		<-l.done
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.result
}

// Release ends the lease and leaves the instance as it is: another process that
// has registered it too, under the same id, keeps it from now on.
func (l *Lease) Release() {
	l.cancel()
	<-l.done
}

// Index is the registry's index at the last registration.
func (l *Lease) Index() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index
}

// run keeps the lease until it is drained, refused at the first try, or cancelled.
func (l *Lease) run(first chan<- error) {
	defer close(l.done)
	defer l.leave()
	failures := 0
	registered := func(index uint64) {
		if failures > 0 {
			l.client.log.Info("registered again", "instance", l.instance.ID, "attempts", failures+1)
		}
		failures = 0
		l.mu.Lock()
		l.index = index
		l.mu.Unlock()
		if first != nil {
			first <- nil
			first = nil
		}
	}
	for {
		drained, err := l.session(registered)
		if drained {
			return
		}
		if l.ctx.Err() != nil {
			op := "drain"
			if first != nil {
				op = "register"
			}
			l.finish(first, weft.Errorf(weft.Unavailable, op, "instance "+l.instance.ID, "the server was not reached in time"))
			return
		}
		if first != nil && weft.KindOf(err) != weft.Unavailable {
			l.finish(first, err)
			return
		}
		if failures == 0 { // once an outage: the next words are those of coming back
			l.client.log.Warn("the lease is interrupted; registering again until it works", "instance", l.instance.ID, "error", err)
		}
		// Soon enough that the lease at a server that restarts does not lapse.
		if pause(l.ctx, retryAfter(failures, min(reconnectLimit, l.ttl/2))) {
			l.client.conn.ResetConnectBackoff()
		}
		failures++
	}
}

func (l *Lease) finish(first chan<- error, err error) {
	l.mu.Lock()
	l.result = err
	l.mu.Unlock()
	if first != nil {
		first <- err
	}
}

func (l *Lease) leave() {
	l.cancel()
	l.client.mu.Lock()
	delete(l.client.leases, l)
	l.client.mu.Unlock()
}

func (l *Lease) heartbeat() *weftpb.LeaseHeartbeat {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &weftpb.LeaseHeartbeat{Health: weftpb.EncodeHealth(l.health), Output: l.output}
}

type leaseStream = grpc.BidiStreamingClient[weftpb.LeaseRequest, weftpb.LeaseResponse]

// leaseAnswer is what the reader of a stream hands over.
type leaseAnswer struct {
	response *weftpb.LeaseResponse
	err      error
}

// session runs one Lease stream, and calls registered when it stands.
func (l *Lease) session(registered func(index uint64)) (drained bool, err error) {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	thing := "instance " + l.instance.ID
	stream, err := weftpb.NewWorkloadClient(l.client.conn).Lease(ctx)
	if err != nil {
		return false, rpcFailure("register", thing, err)
	}
	answers := make(chan leaseAnswer)
	ended := make(chan struct{})
	go func() { defer close(ended); readLease(ctx, stream, answers) }()
	defer func() { cancel(); <-ended }()
	proxy := l.client.id // whose policies have to be applied first
	if l.client.config.Role == Gateway {
		proxy = "" // it enforces none
	}
	in := weftpb.EncodeInstance(&l.instance)
	patience := registerPatience
	if l.node != "" { // at whichever server it was; it must be heard of again before it lapses
		in.Node, patience = l.node, max(l.ttl/2, minPatience)
	}
	// An error of Send is only EOF; the reader knows why.
	_ = stream.Send(&weftpb.LeaseRequest{Message: &weftpb.LeaseRequest_Register{Register: &weftpb.LeaseRegister{
		Instance: in, Ttl: durationpb.New(l.ttl), Health: l.heartbeat(), Proxy: proxy,
	}}})
	r, err := awaitAnswer(answers, patience)
	if err != nil {
		return false, rpcFailure("register", thing, err)
	}
	l.node = r.GetNode()
	registered(r.GetIndex())
	drained, err = l.keep(stream, answers)
	if err != nil {
		err = rpcFailure("keep", thing, err)
	}
	return drained, err
}

const (
	// registerPatience is longer than the server waits for the proxy's policies.
	registerPatience = 10 * time.Second
	minPatience      = 500 * time.Millisecond
)

var errSilent = status.Error(codes.Unavailable, "the server does not answer")

func awaitAnswer(answers <-chan leaseAnswer, patience time.Duration) (*weftpb.LeaseResponse, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case a, open := <-answers:
		if !open {
			return nil, context.Canceled
		}
		return a.response, a.err
	case <-timer.C:
		return nil, errSilent
	}
}

// readLease hands answers over until the stream ends, and closes out then.
func readLease(ctx context.Context, stream leaseStream, out chan<- leaseAnswer) {
	defer close(out)
	for {
		r, err := stream.Recv()
		select {
		case out <- leaseAnswer{r, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// keep sends heartbeats, and drains when that is asked for. A server that has not
// answered the last one when the next is due is left: the lease would lapse with it.
func (l *Lease) keep(stream leaseStream, answers <-chan leaseAnswer) (drained bool, err error) {
	tick := time.NewTicker(l.ttl / 3)
	defer tick.Stop()
	draining, unanswered := l.draining, 0
	for {
		m := &weftpb.LeaseRequest{}
		select {
		case <-tick.C:
			if unanswered > 0 && draining != nil {
				return false, errSilent
			}
		case <-l.kick:
		case <-draining:
			draining = nil
			m.Message = &weftpb.LeaseRequest_Drain{Drain: &weftpb.LeaseDrain{}}
			_ = stream.Send(m) // as below
			continue
		case a, open := <-answers:
			if !open {
				a.err = context.Canceled
			}
			if a.err != nil || a.response.GetDrained() {
				return a.err == nil, a.err
			}
			unanswered--
			continue
		}
		if draining != nil {
			m.Message = &weftpb.LeaseRequest_Heartbeat{Heartbeat: l.heartbeat()}
			_ = stream.Send(m) // an error is EOF, and answers tells it with its reason
			unanswered++
		}
	}
}
