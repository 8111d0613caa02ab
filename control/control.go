// Package control is the mesh's control plane: it keeps the resources that users
// apply, compiles them together with the registry, and tells every proxy what it
// asks for and no more.
//
// A Control is opened on a store, a registry and a certificate authority, and
// serves one gRPC port:
//
//	control, err := control.Open(ctx, control.Config{…})
//	s := grpc.NewServer(append(control.ServerOptions(), grpc.Creds(credentials.NewTLS(control.ServerTLS())))...)
//	control.Register(s)
//
// Proxies come there to join (Workload.Join, with a join token), to follow their
// configuration (delta ADS with the resource types of control/weftpb) and to keep
// their instance registered (Workload.Lease), and tell of their circuits
// (Workload.Report). Who a proxy is tells its client certificate, never the request.
// Package control/subscribe is the other end.
//
// Each resource that a proxy is subscribed to is compiled once for all proxies
// that see the same, and compiled again when something that it depends on changes:
// a VirtualService or DestinationRule that concerns its host, the existence of a
// service that it points to, the endpoints of its service. A gateway has a resource
// for each of its hosts, and follows all of them by one subscription, so that a
// change of one host among 5,000 compiles and sends that one. When the bytes are the
// same nothing is sent. Endpoints go out at once; nothing is ever held back to
// collect more, but a proxy that has not acknowledged the last response of a type
// gets the changes since then in one. Services and endpoints are sent before the
// route tables that came to point to them.
//
// Lock order: Control.writing, Control.mu, the registry's own locks. The registry
// never calls back under its locks. breakerBook.mu is held alone, and
// changeClock.mu is the last one.
package control

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/control/resource"
	"github.com/weftmesh/weft/control/weftpb"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/store"
	"github.com/weftmesh/weft/telemetry/metric"
)

// Config of a Control. Store, Registry and CA stay the caller's to close.
type Config struct {
	Store     *store.Store
	Registry  *registry.Registry
	CA        *ca.Authority
	JoinToken string // of ca.NewJoinToken; empty: nobody can join
	// Followers is what Registry was opened with, so that it learns from this Control
	// who has acknowledged what; nil: nothing waits for proxies.
	Followers *Followers
	Others    Others           // the other servers; nil: this one is alone
	Metrics   *metric.Registry // nil: nobody looks
	Logger    *slog.Logger
}

// Control is an open control plane. Its methods may be called from any goroutine.
type Control struct {
	// constant after Open
	log         *slog.Logger
	store       *store.Store
	registry    *registry.Registry
	authority   *ca.Authority
	token       ca.JoinToken
	credentials *ca.Credentials // of the control port
	trust       *weftpb.Trust
	ctx         context.Context // ends with Close
	cancel      context.CancelFunc
	unsubscribe func()
	patience    patience
	others      Others     // nil: none
	followers   *Followers // nil: none
	took        propagation

	breakers breakerBook // has a lock of its own
	clock    changeClock // the same
	seen     sightings

	work    sync.WaitGroup // everything that Close waits for
	writing sync.Mutex     // one Apply or Delete at a time
	set     atomic.Pointer[resource.Set]

	mu        sync.Mutex // guards what follows; never held during I/O
	closed    bool
	resources map[string]*resource.Resource // by store key; the map is replaced, not changed
	written   map[string]*resource.Resource // by store key: what an Apply under way writes
	compiled  int64                         // revision of resources
	moved     chan struct{}                 // closed when compiled moves
	index     uint64                        // newest revision of resources or registry that is compiled
	catalogue catalogue
	proxies   map[proxyKey]*proxy
	settled   chan struct{}                      // closed when a stream acknowledges or ends, if somebody waits; nil otherwise
	acks      map[weft.ServiceName]chan struct{} // of services that somebody waits for; see AckChanged
	departed  map[proxyKey]*departure
	inquiries map[inquiryKey]*inquiry
}

// patience is how long the control plane waits for others. Tests shorten it.
type patience struct {
	ack   time.Duration // for the ACK of a response, before the stream is closed
	apply time.Duration // for proxies to apply a drain, or their policies before they are registered
	renew time.Duration // between two tries to renew the server's own certificate
}

var standardPatience = patience{ack: 30 * time.Second, apply: 5 * time.Second, renew: time.Minute}

var errClosed = errors.New("the control plane is closed")

// Open loads the resources, compiles them, and starts to follow the store and the
// registry.
func Open(ctx context.Context, cfg Config) (*Control, error) { return open(ctx, cfg, standardPatience) }

func open(ctx context.Context, cfg Config, p patience) (*Control, error) {
	c := &Control{
		log: cfg.Logger, store: cfg.Store, registry: cfg.Registry, authority: cfg.CA, patience: p,
		credentials: new(ca.Credentials),
		trust:       weftpb.EncodeTrust(cfg.CA.TrustDomain(), cfg.CA.Roots()),
		others:      cfg.Others, followers: cfg.Followers, took: newPropagation(cfg.Metrics), seen: newSightings(),
		acks: make(map[weft.ServiceName]chan struct{}), departed: make(map[proxyKey]*departure), inquiries: make(map[inquiryKey]*inquiry),
		moved:     make(chan struct{}),
		catalogue: newCatalogue(),
		proxies:   make(map[proxyKey]*proxy),
	}
	if c.log == nil {
		c.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if cfg.JoinToken != "" {
		token, err := ca.ParseJoinToken(cfg.JoinToken)
		if err != nil {
			return nil, err
		}
		c.token = token
	}
	renewAt, err := c.renewCertificate()
	if err != nil {
		return nil, err
	}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	rev, err := c.load(ctx)
	if err != nil {
		c.cancel()
		return nil, err
	}
	c.work.Go(func() { c.follow(rev) })
	c.work.Go(func() { c.keepCertificate(renewAt) })
	c.work.Go(c.keepClock)
	c.work.Go(c.passOn)
	c.unsubscribe = c.registry.Subscribe(c.serviceChanged)
	c.followers.attach(c)
	return c, nil
}

// Close ends every stream and everything that Open started, and waits for it.
func (c *Control) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.followers.detach(c)
	c.unsubscribe()
	c.work.Wait()
	return nil
}

// begin counts a call that Close waits for; the caller does c.work.Done.
func (c *Control) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return &weft.Error{Kind: weft.Unavailable, Op: "serve", Thing: "control", Err: errClosed}
	}
	c.work.Add(1)
	return nil
}

// Index is the newest change of resources or registry that is compiled.
func (c *Control) Index() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.index
}

// serviceChanged is the registry's subscriber: the endpoints of n may be others,
// and n may have come or gone.
func (c *Control) serviceChanged(n weft.ServiceName, index uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serviceChangedLocked(n, index)
}

func (c *Control) serviceChangedLocked(n weft.ServiceName, index uint64) {
	instances, _ := c.registry.Instances(n)
	exists := len(instances) > 0
	var affected []*entry
	for e := range c.catalogue.byService[n] {
		if e.key.typeURL == weftpb.EndpointsType || e.saw[n] != exists {
			affected = append(affected, e)
		}
	}
	c.advance(index, c.clock.when(index), affected)
}

// advance compiles entries again at an index, and hands what changed to the
// streams that want it. at is when the change was made, as far as this server knows.
func (c *Control) advance(index uint64, at time.Time, affected []*entry) {
	before := c.index
	c.index = max(c.index, index)
	woken := make(map[*stream]struct{})
	for _, e := range affected {
		was := e.index
		e.index = max(e.index, index)
		c.ackMoved(e)
		if !c.refresh(e) {
			continue
		}
		for s := range e.streams {
			in := s.types[e.key.typeURL].names[e.key.name]
			if in.refused == "" && in.acked >= e.seq {
				in.index = max(in.index, was)
			}
			if in.changed.IsZero() {
				in.changed = at
			}
			s.mark(e.key.typeURL, e.key.name, before)
			woken[s] = struct{}{}
		}
		e.seq++
	}
	for s := range woken {
		s.wake()
	}
}

// ServerTLS is for the control port: TLS 1.3, the server's own identity, and
// client certificates of the trust domain, or none from those who have yet to join.
func (c *Control) ServerTLS() *tls.Config { return c.credentials.ControlTLS() }

// renewCertificate gives the control port a new certificate, and returns when the
// next one is due. Its chain ends with the root, by which those who join recognise
// it.
func (c *Control) renewCertificate() (next time.Time, err error) {
	id := ca.ServerIdentity(c.authority.TrustDomain())
	key, csr, err := ca.NewCSR(id)
	if err != nil {
		return time.Time{}, err
	}
	chain, notAfter, err := c.authority.Sign(csr, id)
	if err != nil {
		return time.Time{}, err
	}
	roots := c.authority.Roots()
	if err := c.credentials.Set(append(chain, roots[0].Raw), key, roots); err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(time.Until(notAfter) / 2), nil
}

func (c *Control) keepCertificate(at time.Time) {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-time.After(time.Until(at)):
		}
		next, err := c.renewCertificate()
		if err != nil {
			c.log.Error("control: its own certificate could not be renewed; trying again", "error", err)
			next = time.Now().Add(c.patience.renew)
		}
		at = next
	}
}
