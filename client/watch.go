package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/balance"
	"github.com/weftmesh/weft/resilience"
)

// State is what a caller of a service has to know. It is shared: read it only.
type State struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	// Index moves, and only then, when an instance of the service comes, goes, or
	// changes its health. It never goes back, but on a server that began anew.
	Index uint64 `json:"index"`
	// Policy names LoadBalancer, Resilience and Breaker: the same name, the same
	// policy. An asker tells it back with the index.
	Policy    string     `json:"policy"`
	Instances int        `json:"instances"` // all of them; 0: nobody has registered the service
	Endpoints []Endpoint `json:"endpoints"` // those that are healthy, sorted by id

	LoadBalancer weft.LoadBalancer `json:"loadBalancer,omitempty"`
	Resilience   json.RawMessage   `json:"resilience,omitempty"` // a resilience.Spec, if the service has a ResiliencePolicy
	// Breaker is the state in which a person holds the service's circuit:
	// "forced-open", "disabled", "metrics-only"; empty: the calls decide.
	Breaker string `json:"breaker,omitempty"`

	// Stale: the server does not answer, Err says how, and this is what it said
	// last. Before its first answer there are no endpoints.
	Stale bool  `json:"-"`
	Err   error `json:"-"`
}

// Problem is why no endpoint can be called from a program without a sidecar; nil when
// one can. Before the server's first answer it is Err.
func (s *State) Problem() error {
	kind, why := weft.Unavailable, fmt.Errorf("none of its %d instances is healthy", s.Instances)
	switch {
	case s.Policy == "":
		return s.Err
	case slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Plain }):
		return nil
	case s.Instances == 0:
		kind, why = weft.NotFound, errors.New("no instance of it is registered; \"weft services\" lists the services that have one")
	case len(s.Endpoints) > 0:
		why = errors.New("its instances stand behind sidecars on other machines, which take mTLS only: start this program with \"weft run --service NAME -- PROGRAM\"")
	}
	return &weft.Error{Kind: kind, Op: "call", Thing: "service " + s.Service + "." + s.Namespace, Err: why}
}

// Algorithm is that of LoadBalancer as package balance has it. What goes by a hash of
// the request goes by load here: what to hash is told to proxies only.
func (s *State) Algorithm() balance.Algorithm {
	switch s.LoadBalancer {
	case weft.RoundRobin:
		return balance.RoundRobin
	case weft.Random:
		return balance.Random
	case weft.PeakEWMA:
		return balance.PeakEWMA
	}
	return balance.LeastRequest
}

const (
	watchWait   = 20 * time.Second // of one call; below requestTimeout
	watchRetry  = 50 * time.Millisecond
	watchMaxGap = 5 * time.Second
	// firstAnswer is how long a call waits for the first state of its service.
	firstAnswer = 5 * time.Second
	// idleWatch is how long a service is followed after its last use. It is long,
	// because its circuit is forgotten with it.
	idleWatch = 10 * time.Minute
)

var errClosed = errors.New("the client is closed")

// Resolve returns the service's state: as it is now, or with Stale as it was when
// the server was last there. name is "order-service", "order-service.shop", or one
// of the longer forms that weft.ParseHost knows. A service that nobody registered
// is weft.NotFound; a service without healthy instances is none.
func (c *Client) Resolve(ctx context.Context, name string) (State, error) {
	s, err := c.named("resolve", name)
	if err != nil {
		return State{}, err
	}
	return s.first(ctx, "resolve")
}

// Watch yields the service's state, and then each newer one, until ctx or the
// client ends; what changes while the loop's body runs is yielded once. A service
// that does not exist yet has a State without instances. While the server is away
// the last state is yielded once more, with Stale. The error is for a name that is
// none, or a closed client, and the last that is yielded.
func (c *Client) Watch(ctx context.Context, name string) iter.Seq2[State, error] {
	return func(yield func(State, error) bool) {
		s, err := c.named("watch", name)
		if err != nil {
			yield(State{}, err)
			return
		}
		s.users.Add(1)
		defer s.users.Add(-1)
		for {
			state, moved := s.now()
			if state != nil && !yield(*state, nil) {
				return
			}
			select {
			case <-moved:
			case <-ctx.Done():
				return
			case <-c.ctx.Done():
				return
			}
		}
	}
}

// named finds the service of a name that must be one.
func (c *Client) named(op, name string) (*service, error) {
	n, ok := weft.ParseHost(strings.ToLower(name), c.namespace)
	if !ok {
		return nil, weft.Errorf(weft.Invalid, op, "service "+strconv.Quote(name), "want a name such as order-service or order-service.shop")
	}
	return c.service(op, n)
}

// service returns the one watch of n, and begins it if there is none.
func (c *Client) service(op string, n weft.ServiceName) (*service, error) {
	c.mu.RLock()
	s := c.services[n]
	c.mu.RUnlock()
	if s == nil {
		var err error
		if s, err = c.follow(op, n); err != nil {
			return nil, err
		}
	}
	s.used.Store(time.Now().UnixNano())
	return s, nil
}

func (c *Client) follow(op string, n weft.ServiceName) (*service, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.services[n]; s != nil {
		return s, nil
	}
	if c.ctx.Err() != nil {
		return nil, &weft.Error{Kind: weft.Unavailable, Op: op, Thing: "service " + n.String(), Err: errClosed}
	}
	s := &service{client: c, name: n, moved: make(chan struct{})}
	s.used.Store(time.Now().UnixNano())
	if c.services == nil {
		c.services = make(map[weft.ServiceName]*service)
	}
	c.services[n] = s
	c.work.Go(s.follow)
	return s, nil
}

// forget ends the watch of a service that nobody uses any more.
func (c *Client) forget(s *service, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.users.Load() > 0 || now.Sub(time.Unix(0, s.used.Load())) < idleWatch {
		return false
	}
	delete(c.services, s.name)
	return true
}

// service is one service that is followed.
type service struct {
	client *Client
	name   weft.ServiceName

	users atomic.Int64 // loops of Watch, which keep it
	used  atomic.Int64 // when somebody asked for it last, unix ns
	calls callee

	mu    sync.Mutex // guards what follows
	state *State     // nil before the server's first answer, or failure
	moved chan struct{}
}

// now returns the state, nil when there is none yet, and what is closed with the
// next one.
func (s *service) now() (*State, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.moved
}

// first returns the state, and waits for the first one.
func (s *service) first(ctx context.Context, op string) (State, error) {
	state, moved := s.now()
	if state == nil {
		patience, cancel := context.WithTimeoutCause(ctx, firstAnswer, fmt.Errorf("%s did not answer in %v", s.client.Addr(), firstAnswer))
		defer cancel()
		var why error
		select {
		case <-moved:
		case <-patience.Done():
			why = context.Cause(patience)
		case <-s.client.ctx.Done():
			why = errClosed
		}
		if state, _ = s.now(); state == nil {
			return State{}, &weft.Error{Kind: weft.Unavailable, Op: op, Thing: "service " + s.name.String(), Err: why}
		}
	}
	switch {
	case state.Policy == "": // the server has never been there
		return State{}, &weft.Error{Kind: weft.Unavailable, Op: op, Thing: "service " + s.name.String(), Err: state.Err}
	case state.Instances == 0:
		return *state, weft.Errorf(weft.NotFound, op, "service "+s.name.String(), "no instance of it is registered; \"weft services\" lists the services that have one")
	}
	return *state, nil
}

// follow keeps the state up to date until the client ends or nobody wants it.
func (s *service) follow() {
	ctx := s.client.ctx
	var known State
	for failures := 0; ; {
		asked, wait, gap := time.Now(), watchWait, time.Duration(0)
		if failures > 0 {
			wait = 0 // that it is back is news enough
		}
		next, err := s.client.ask(ctx, s.name, &known, wait)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.lost(err)
			failures++
			gap = rand.N(min(watchRetry<<min(failures, 10), watchMaxGap))
		case failures > 0 || next.Index != known.Index || next.Policy != known.Policy:
			failures, known = 0, next
			s.found(&next)
		case time.Since(asked) < watchWait/2:
			gap = watchRetry // it has no news and does not wait, because it is about to end
		}
		if s.client.forget(s, time.Now()) || !pause(ctx, gap) {
			return
		}
	}
}

// pause waits, and reports whether it was for the whole time.
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

// lost marks the state as stale, once.
func (s *service) lost(err error) {
	state, _ := s.now()
	if state != nil && state.Stale {
		return
	}
	next := State{Namespace: s.name.Namespace, Service: s.name.Name}
	if state != nil {
		next = *state
	}
	next.Stale, next.Err = true, err
	if s.client.away.CompareAndSwap(false, true) {
		s.client.log.Warn("the weft server does not answer; what it said last is used on", "error", err)
	}
	s.set(&next)
}

// found takes what the server says.
func (s *service) found(next *State) {
	if s.client.away.CompareAndSwap(true, false) {
		s.client.log.Info("the weft server is back")
	}
	s.calls.guard(s.name, next, s.client.log)
	s.calls.update(next)
	s.set(next)
}

func (s *service) set(next *State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = next
	close(s.moved)
	s.moved = make(chan struct{})
}

// ask gets a service's state when it is another than the known one, or as it is
// when wait is over.
func (c *Client) ask(ctx context.Context, n weft.ServiceName, known *State, wait time.Duration) (State, error) {
	q := []string{"namespace", n.Namespace, "from", c.namespace, "wait", wait.String()}
	if known.Policy != "" {
		q = append(q, "index", strconv.FormatUint(known.Index, 10), "policy", known.Policy)
	}
	var next State
	err := c.call(ctx, request{op: "watch", thing: "service " + n.String(),
		path: "/api/services/" + url.PathEscape(n.Name) + "/watch" + query(q...)}, &next)
	if err == nil && next.Policy == "" {
		err = weft.Errorf(weft.Internal, "watch", "service "+n.String(), "%s does not answer as a weft server does", c.Addr())
	}
	return next, err
}

// sameTargets reports whether two states name the same endpoints in the same way.
func sameTargets(a, b *State) bool {
	return a.LoadBalancer == b.LoadBalancer && slices.EqualFunc(a.Endpoints, b.Endpoints, func(x, y Endpoint) bool {
		return x.ID == y.ID && x.Address == y.Address && x.Protocol == y.Protocol && x.Weight == y.Weight && x.Plain == y.Plain
	})
}

func samePolicy(a, b *State) bool {
	return a.Breaker == b.Breaker && bytes.Equal(a.Resilience, b.Resilience)
}

// Policy returns the policy under which the client calls a service. It is the one of
// the transport and follows the server's, so that its circuit can be looked at. The
// errors are Resolve's.
func (c *Client) Policy(ctx context.Context, name string) (*resilience.Policy, error) {
	s, err := c.named("resolve", name)
	if err != nil {
		return nil, err
	}
	if _, err := s.first(ctx, "resolve"); err != nil {
		return nil, err
	}
	return s.calls.guarding.Load().Policy, nil
}
