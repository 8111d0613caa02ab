// Package subscribe is a proxy's side of the control plane.
//
// Open joins the mesh with a join token, and from then on keeps three things up to
// date for its process: the certificate (Credentials), the configuration
// (Snapshot), and whatever instances it registers (Register).
//
// A sidecar begins with an empty snapshot and asks for hosts when somebody calls
// them (Need): its memory follows what it calls and not the size of the mesh. With
// a host's route table come the services that it points to and their endpoints. A
// gateway asks for all its tables, and for all that these lead to. A table
// is taken into the snapshot only when the services that it points to are there,
// so that a change never leads to nowhere on its way.
//
// While the server is away everything goes on as it was last told; the client
// connects again by itself, and is sent only what has changed since. A resource
// that this weft cannot read is refused by name and reason, and its last good form
// stays; the others of the same response are used.
//
// The other way, a client tells the server of the proxy's circuits
// (ReportBreakers), for people to see, and of the endpoints that it reaches and those
// that it does not (ReportEndpoints), so that what nobody reaches leaves every view.
//
// Until a sidecar has been told the policies of its workload, its Authorization
// denies everything.
package subscribe

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
)

// Role of a proxy.
type Role string

// The roles.
const (
	Sidecar Role = "sidecar"
	Gateway Role = "gateway"
)

// Config of a Client.
type Config struct {
	Server         string // host:port of the control port; of a cluster several, with commas
	Token          string // join token
	Namespace      string // weft.DefaultNamespace when empty
	ServiceAccount string // the service's name
	Role           Role   // Sidecar when empty
	GatewayName    string // of a Gateway resource; role Gateway only
	PID            int    // shown to people
	Version        string // shown to people; weft.Version when empty
	Logger         *slog.Logger
}

// Client is a joined proxy. Its methods may be called from any goroutine.
type Client struct {
	// constant after Open
	config      Config
	log         *slog.Logger
	id          string // of this process among those of its identity
	token       ca.JoinToken
	credentials ca.Credentials
	conn        *grpc.ClientConn
	ctx         context.Context // ends with Close
	cancel      context.CancelFunc
	work        sync.WaitGroup

	published atomic.Pointer[published]
	connected atomic.Bool
	kick      chan struct{} // holds one: there is something to ask for
	breakers  outbox

	deliver   sync.Mutex // one publication at a time; taken before mu
	observers []func(*weft.Snapshot)

	mu     sync.Mutex // guards what follows
	state  *state
	told   chan struct{} // closed and replaced after each publication
	leases map[*Lease]struct{}
	closed bool
	seen   func() []Observation // of ReportEndpoints; nil: nobody looks
}

// published is what a proxy runs on. It is immutable, but for hosts' times.
type published struct {
	snapshot *weft.Snapshot
	hosts    map[string]*host // those of the snapshot
}

// Open joins the mesh, trying until ctx ends while the server cannot be reached.
// A token that is refused, or a server that is not the token's, is an error at
// once. The client lives on after ctx, until Close.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Namespace == "" {
		cfg.Namespace = weft.DefaultNamespace
	}
	if cfg.Role == "" {
		cfg.Role = Sidecar
	}
	if cfg.Version == "" {
		cfg.Version = weft.Version
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if cfg.Role == Gateway && cfg.GatewayName == "" {
		return nil, weft.Errorf(weft.Invalid, "join", "gateway", "it needs the name of its Gateway resource")
	}
	token, err := ca.ParseJoinToken(cfg.Token)
	if err != nil {
		return nil, err
	}
	c := &Client{
		config: cfg, log: cfg.Logger, id: newID(), token: token,
		kick: make(chan struct{}, 1), told: make(chan struct{}), breakers: outbox{kick: make(chan struct{}, 1)},
		state: newState(cfg.Role, cfg.Namespace, cfg.GatewayName), leases: make(map[*Lease]struct{}),
	}
	c.publish()
	if err := c.joinPatiently(ctx); err != nil {
		return nil, err
	}
	c.conn, err = c.dial(c.dialOptions()...)
	if err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "connect", Thing: cfg.Server, Err: err}
	}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	c.work.Go(c.follow)
	c.work.Go(c.renew)
	c.work.Go(c.forget)
	return c, nil
}

func newID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Close drains the instances that are still registered (for some seconds at most,
// and only when the server is there), ends everything, and waits for it.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	var leases []*Lease
	for l := range c.leases {
		leases = append(leases, l)
	}
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	var errs []error
	for _, l := range leases {
		if !c.connected.Load() {
			break // their leases lapse
		}
		errs = append(errs, l.Drain(ctx))
	}
	c.cancel()
	c.work.Wait()
	return errors.Join(append(errs, c.conn.Close())...)
}

// closePatience is a little more than the server takes at most for a drain.
const closePatience = 6 * time.Second

// Credentials of the proxy. They are renewed in place.
func (c *Client) Credentials() *ca.Credentials { return &c.credentials }

// Identity of the proxy.
func (c *Client) Identity() weft.Identity { return c.credentials.Identity() }

// Connected reports whether the configuration stream is up.
func (c *Client) Connected() bool { return c.connected.Load() }

// Snapshot is the present configuration, never nil.
func (c *Client) Snapshot() *weft.Snapshot { return c.published.Load().snapshot }

// Need returns the snapshot when it tells of host (lower case, no port): how to
// reach it, or that there is no such host. If it does not yet, Need asks for the
// host and waits, until ctx ends at the latest. Afterwards the host is kept up to
// date. A host that is there costs a look into a map.
//
// A gateway does not ask for hosts: there Need waits until the gateway's
// configuration is there.
func (c *Client) Need(ctx context.Context, host string) *weft.Snapshot {
	if p := c.published.Load(); p.has(host, time.Now()) {
		return p.snapshot
	}
	if c.config.Role == Sidecar && !c.ask(host) {
		return c.Snapshot()
	}
	for {
		c.mu.Lock()
		told, hopeless := c.told, c.state.hopeless(host)
		c.mu.Unlock()
		p := c.published.Load()
		if hopeless || p.has(host, time.Now()) {
			return p.snapshot
		}
		select {
		case <-told:
		case <-ctx.Done():
			return c.Snapshot()
		case <-c.ctx.Done():
			return c.Snapshot()
		}
	}
}

func (p *published) has(name string, now time.Time) bool {
	if p.snapshot.Gateway != nil {
		return true
	}
	h := p.hosts[name]
	if h == nil {
		return false
	}
	h.touch(now)
	return true
}

// ask makes sure that the server is or was asked for a host. It returns false for
// what cannot be a host.
func (c *Client) ask(name string) bool {
	if len(name) > maxHostLength || name == "" {
		return false
	}
	c.mu.Lock()
	changed := c.state.want(name, time.Now())
	c.mu.Unlock()
	if changed {
		c.publish()
	}
	c.wake()
	return true
}

func (c *Client) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// OnChange calls fn at once, and then after every change with the new snapshot, in
// order, before the control plane is told that the change is applied and before
// Need returns. fn must not block, nor call Need or OnChange.
func (c *Client) OnChange(fn func(*weft.Snapshot)) {
	c.deliver.Lock()
	defer c.deliver.Unlock()
	c.observers = append(c.observers, fn)
	fn(c.Snapshot())
}

// publish makes what the state holds now the snapshot, if that is anything new, and
// wakes those who wait for an answer: the observers know it by then.
func (c *Client) publish() {
	c.deliver.Lock()
	defer c.deliver.Unlock()
	c.mu.Lock()
	next := c.state.build(c.published.Load())
	c.mu.Unlock()
	if next != nil {
		for _, fn := range c.observers {
			fn(next.snapshot)
		}
		c.published.Store(next)
		c.breakers.wake() // circuits may have come or gone
	}
	c.mu.Lock()
	close(c.told)
	c.told = make(chan struct{})
	c.mu.Unlock()
}

// forget drops hosts that nobody has asked for lately.
func (c *Client) forget() {
	tick := time.NewTicker(forgetInterval)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case now := <-tick.C:
			if !c.connected.Load() {
				continue // what is forgotten now could not be asked for again
			}
			c.mu.Lock()
			changed := c.state.forget(now)
			c.mu.Unlock()
			if changed {
				c.publish()
				c.wake()
			}
		}
	}
}

// retryAfter is how long to wait before the next try: from 100 ms, doubled each
// time, to limit; of that between the half and the whole, so that proxies which
// lost their server together do not come back together.
func retryAfter(failures int, limit time.Duration) time.Duration {
	d := min(limit, 100*time.Millisecond<<min(failures, 20))
	return d/2 + mathrand.N(d/2+1)
}

// pause waits, and reports false when ctx ended first.
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
