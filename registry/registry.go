// Package registry is the catalogue of nodes, the instances on them, and their
// health.
//
// Writes (Register, Deregister, AddCheck, Report, Maintain, …) are on disk when
// they return, and every later read sees them. Reads answer from memory, each
// with the index of what it tells: the revision at which that last changed. Wait
// blocks until an index moves; Subscribe is told which services changed.
//
//	nodes, and services as name -> tags, have an index each (NodesTopic, ServicesTopic);
//	so has each service (ServiceTopic) and each node (NodeTopic), also when it is gone,
//	and everything together (InstancesTopic).
//
// An index moves when, and only when, what its topic tells is different. It never
// goes back, not over a restart either; what never was has index 1. Registering
// the same again, or another result of a check with the same status, changes
// nothing.
//
// Health: the registry probes HTTP and TCP checks itself; TTL and lease checks are
// reported (Report) and lapse to critical without a report. Only a change of
// status is written. After a restart each has its whole TTL again, and a pause of
// this process is not counted against anybody. An instance whose check is critical
// for longer than its DeregisterAfter is deregistered; the check of a node is
// never a reason to deregister it.
package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// Config of a Registry.
type Config struct {
	Store      *store.Store
	Node       weft.Node // this server's own node: Name and Address; an empty ID is made once and kept
	Datacenter string    // "dc1" when empty
	Peers      Peers     // the other servers; nil: this one is alone
	Followers  Followers // who follows which service; nil: nobody does
	// EnableScripts lets the checks of instances run programs on this server. Whoever
	// may register an instance may then run what he likes.
	EnableScripts bool
	Logger        *slog.Logger
}

// Registry is an open registry. Its methods may be called from any goroutine.
// Values that it returns are shared and immutable.
type Registry struct {
	// constant after Open
	store      *store.Store
	log        *slog.Logger
	datacenter string
	node       string // name of the own node
	ctx        context.Context
	cancel     context.CancelFunc

	peers      Peers
	followers  Followers
	scripts    bool // script checks are run
	operations operations
	leadership leadership

	view      view        // written by the loop only
	committed *draft      // owned by the loop: what it committed and has not seen yet, else nil
	term      int64       // owned by the loop: revision of the fence while it writes
	pool      pool        // owned by the loop
	marked    int64       // owned by the loop: Unix milliseconds of the newest time mark
	writes    atomic.Bool // this server writes; set by the loop

	hindered   atomic.Pointer[cannotWrite] // set while it leads and cannot write; by the loop
	leaderless atomic.Int64                // since when no server leads, in Unix nanoseconds; 0: one does; set by the loop

	waiters  waiters
	checks   *checker
	observed observations
	sessions *sessionClock
	subs     subscribers
	requests chan *request
	work     sync.WaitGroup // loop and checker
}

const (
	// maxBatch bounds the writes of one transaction. It is more than the writers
	// that one machine has at a time, so that nobody waits for two transactions.
	maxBatch = 4096
	// maxBatchBytes ends a batch early: the store's limit less one largest record.
	maxBatchBytes = 4 << 20
	// commitTimeout is longer than the store's own (5 s): it gives up first, with
	// a better reason.
	commitTimeout = 15 * time.Second
)

// Open loads the catalogue from the store, makes the own node known, and starts
// the watch, the probes and the timers.
func Open(ctx context.Context, c Config) (*Registry, error) { return open(ctx, c, c.Store) }

// leadership says which server leads.
type leadership interface {
	// IsLeader reports whether this one does, as far as it knows.
	IsLeader() bool
	// LeaderChanged is closed when another one does, or none.
	LeaderChanged() <-chan struct{}
}

func open(ctx context.Context, c Config, l leadership) (*Registry, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if c.Datacenter == "" {
		c.Datacenter = "dc1"
	}
	r := &Registry{
		store: c.Store, log: c.Logger, datacenter: c.Datacenter, node: c.Node.Name, peers: c.Peers,
		followers: c.Followers, scripts: c.EnableScripts, leadership: l,
		requests: make(chan *request, maxBatch),
	}
	r.view.moved = make(chan struct{})
	r.makeOperations()
	r.ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	r.checks = newChecker(r.writeStatus, r.reap, r.probe, r.log)
	r.sessions = newSessionClock(r.endLapsed, r.log)
	rev, err := r.load(ctx)
	if err != nil {
		r.cancel()
		return nil, err
	}
	events := r.store.Watch(r.ctx, watched, rev)
	r.work.Go(func() { r.run(events) })
	r.work.Go(func() { r.checks.run(r.ctx) })
	r.work.Go(func() { r.sessions.run(r.ctx) })
	var hindered *cannotWrite
	switch err := r.registerOwnNode(ctx, c.Node); {
	case errors.As(err, &hindered) && r.LocalNode() != nil:
		r.work.Go(func() { r.registerOwnNodeLater(c.Node) })
	case err != nil:
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Close stops everything that Open started, and waits for it. Waits return. The
// store stays open.
func (r *Registry) Close() error {
	r.cancel()
	r.work.Wait()
	r.subs.close()
	return nil
}

// registerOwnNode writes the node that this server stands for, with the check by
// which Consul's clients know that a node is there.
//
// What is not set is as it was: what dialects and operators have added since, too, so
// that a restart is no change of whatever stands on the node.
func (r *Registry) registerOwnNode(ctx context.Context, n weft.Node) error {
	if old := r.LocalNode(); old != nil {
		n.ID, n.Zone = orElse(n.ID, old.ID), orElse(n.Zone, old.Zone)
		if n.Labels == nil {
			n.Labels = old.Labels
		}
		if n.TaggedAddresses == nil {
			n.TaggedAddresses = old.TaggedAddresses
		}
		if n.Extra == nil {
			n.Extra = old.Extra
		}
	}
	if n.ID == "" {
		n.ID = newUUID()
	}
	n.Checks = slices.Concat(n.Checks, []weft.Check{{
		ID: "serfHealth", Name: "Serf Health Status", Kind: weft.StaticCheck,
		Status: weft.Passing, Output: "Agent alive and reachable",
	}})
	if old := r.LocalNode(); old != nil {
		n.Checks = keepOthers(n.Checks, old.Checks)
	}
	_, err := r.RegisterNode(WithActor(ctx, "server "+n.Name), n)
	return err
}

// registerOwnNodeLater does it when it can: a server whose disk is full has reads to
// answer meanwhile, by what it was when it was last started.
func (r *Registry) registerOwnNodeLater(n weft.Node) {
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-time.After(ownNodeAgain):
		}
		if r.hindered.Load() == nil && r.registerOwnNode(r.ctx, n) == nil {
			return
		}
	}
}

// ownNodeAgain is the time between two tries to register the own node.
const ownNodeAgain = time.Second

// keepOthers adds the checks of old that checks has not.
func keepOthers(checks, old []weft.Check) []weft.Check {
	for _, c := range old {
		if findCheck(checks, c.ID) == nil {
			checks = append(checks, c)
		}
	}
	return checks
}

// newUUID returns a random UUID (RFC 9562 §5.4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// load reads the whole catalogue, and returns the revision that it has.
func (r *Registry) load(ctx context.Context) (rev int64, err error) {
	kvs, rev, err := r.store.List(ctx, root)
	if err != nil {
		return 0, fmt.Errorf("load the registry: %w", err)
	}
	events := make([]store.Event, len(kvs))
	for i, kv := range kvs {
		events[i] = store.Event{KV: kv}
	}
	all := r.decodeAll(events, nil)
	var work sync.WaitGroup
	work.Go(func() { r.checks.fill(all) }) // it takes as long as the view
	next := newState()
	c := next.apply(rev, all)
	work.Wait()
	r.view.mu.Lock()
	c.owners = make(map[weft.InstanceKey][]weft.Check)
	for key := range r.view.owners() {
		if !next.has(key) {
			c.owners[key] = nil
		}
	}
	for t := range c.topics {
		if r.view.indexLocked(t) == next.indexLocked(t) {
			delete(c.topics, t)
		}
	}
	r.view.state = next
	r.view.move()
	r.view.mu.Unlock()
	r.announce(c)
	return rev, nil
}

// decodeAll decodes events. What the draft d put need not be decoded. A large
// catalogue is decoded on all processors: it takes most of the start.
func (r *Registry) decodeAll(events []store.Event, d *draft) []decoded {
	out := make([]decoded, len(events))
	ok := make([]bool, len(events))
	if len(events) <= maxBatch {
		for i := range events {
			out[i], ok[i] = decode(&events[i], d.says(&events[i]), &r.pool, r.log)
		}
	} else {
		var work sync.WaitGroup
		step := len(events)/runtime.GOMAXPROCS(0) + 1
		for from := 0; from < len(events); from += step {
			work.Go(func() {
				var p pool
				for i := from; i < min(from+step, len(events)); i++ {
					out[i], ok[i] = decode(&events[i], nil, &p, r.log)
				}
			})
		}
		work.Wait()
	}
	n := 0
	for i := range out {
		if ok[i] {
			out[n] = out[i]
			n++
		}
	}
	return out[:n]
}

// watched is everything: so the view's revision follows that of the store, and a
// read can tell how new it is.
const watched = ""

// request is a write on its way through the loop.
type request struct {
	ctx    context.Context
	plan   func(*draft) error // on an error it has not changed the draft
	ticket *ticket            // nil: it is asked for this once
	done   chan error         // holds one

	// Set by the loop before done, when the ticket was used before.
	used   int64  // the revision
	usedIn *draft // or the draft whose revision it is
}

// do runs plan on the newest catalogue, and returns when what it changed is on disk
// and in the view. Plans of several callers share a transaction.
func (r *Registry) do(ctx context.Context, op, thing string, plan func(*draft) error) error {
	return r.ask(&request{ctx: ctx, plan: plan, done: make(chan error, 1)}, op, thing)
}

// ask gives a request to the loop, and waits for its answer.
func (r *Registry) ask(req *request, op, thing string) error {
	var err error
	select {
	case r.requests <- req:
		select {
		case err := <-req.done:
			return err
		case <-req.ctx.Done():
			err = req.ctx.Err()
		case <-r.ctx.Done():
			err = fmt.Errorf("%w: %w", errMayHaveHappened, errClosed)
		}
	case <-req.ctx.Done():
		err = req.ctx.Err()
	case <-r.ctx.Done():
		err = fmt.Errorf("%w: %w", errNotWriter, errClosed)
	}
	return &weft.Error{Kind: weft.Unavailable, Op: op, Thing: thing, Err: err}
}

var errClosed = errors.New("the registry is closed")

// run is the loop: it alone changes the view. It ends with the registry, or when
// the store closes under it.
func (r *Registry) run(events <-chan store.Batch) {
	defer r.cancel()
	for {
		moved := r.leadership.LeaderChanged()
		r.noteLeader()
		var again <-chan time.Time
		var err error
		if events, again, err = r.lead(events); err == nil {
			events, err = r.step(events, moved, again)
		}
		if err != nil {
			if r.ctx.Err() == nil {
				r.log.Error("registry: stopped", "error", err)
			}
			return
		}
	}
}

// step does one thing.
func (r *Registry) step(events <-chan store.Batch, moved <-chan struct{}, again <-chan time.Time) (<-chan store.Batch, error) {
	select {
	case <-r.ctx.Done():
		return nil, r.ctx.Err()
	case <-moved:
	case <-again:
	case b, ok := <-events:
		return r.follow(events, b, ok)
	case req := <-r.requests:
		return r.write(events, r.gather(req))
	}
	return events, nil
}

// follow applies a batch of the watch. When history was compacted under the watch
// it loads everything again.
func (r *Registry) follow(events <-chan store.Batch, b store.Batch, ok bool) (<-chan store.Batch, error) {
	if !ok {
		return nil, errors.New("the store is closed")
	}
	if b.Err != nil {
		r.log.Warn("registry: loading everything again", "reason", b.Err)
		rev, err := r.load(r.ctx)
		if err != nil {
			return nil, err
		}
		return r.store.Watch(r.ctx, watched, rev), nil
	}
	decoded := r.decodeAll(b.Events, r.committed)
	r.view.mu.Lock()
	c := r.view.apply(b.Rev, decoded)
	r.view.move()
	r.view.mu.Unlock()
	r.announce(c)
	return events, nil
}

// announce tells everybody concerned of a change that the view has.
func (r *Registry) announce(c change) {
	r.checks.set(c.owners)
	r.checks.wake()
	r.sessions.set(c.sessions)
	r.waiters.wake(c.topics)
	services := make(map[weft.ServiceName]uint64)
	for t := range c.topics {
		if t.kind == serviceTopic {
			services[t.service()] = r.view.indexLocked(t)
		}
	}
	r.subs.changed(services)
}

// gather takes what else waits to be written.
func (r *Registry) gather(first *request) []*request {
	batch := []*request{first}
	for len(batch) < maxBatch {
		select {
		case req := <-r.requests:
			batch = append(batch, req)
		default:
			return batch
		}
	}
	return batch
}

// write commits the requests, in as few transactions as their size allows, and
// answers each when the view has it.
func (r *Registry) write(events <-chan store.Batch, batch []*request) (<-chan store.Batch, error) {
	for len(batch) > 0 {
		if !r.writes.Load() {
			answer(batch, &weft.Error{Kind: weft.Unavailable, Op: "write", Thing: "registry", Err: r.notWriter()})
			return events, nil
		}
		d := newDraft(&r.view.state)
		var accepted []*request
		var refused []refusal
		for len(batch) > 0 && d.size < maxBatchBytes {
			req := batch[0]
			batch = batch[1:]
			if req.ctx.Err() != nil {
				continue // who asked has its own answer and is gone
			}
			done, err := d.admit(req)
			if err == nil && !done {
				d.actor = actorOf(req.ctx)
				err = req.plan(d)
				d.settleTicket(req, err != nil)
			}
			if err != nil {
				refused = append(refused, refusal{req, err})
				continue
			}
			accepted = append(accepted, req)
		}
		r.settle(d)
		rev, err := r.commit(d)
		r.committed, d.rev = d, rev
		if err != nil {
			err = r.doubt(err)
		} else if events, err = r.catchUp(events, rev); err != nil {
			answer(accepted, err)
			return nil, err
		} else {
			r.sessions.doom(d.keys.ending)
		}
		r.committed = nil
		answer(accepted, err)
		answerRefused(refused, err)
	}
	return events, nil
}

func answer(requests []*request, err error) {
	for _, req := range requests {
		req.done <- err
	}
}

// commit makes the draft true, and returns the revision at which it is.
func (r *Registry) commit(d *draft) (rev int64, err error) {
	txn := d.txn()
	d.ticketTxn(&txn)
	if len(txn.Put)+len(txn.Delete) == 0 {
		return 0, r.confirm()
	}
	ctx, cancel := context.WithTimeout(r.ctx, commitTimeout)
	defer cancel()
	txn.If = append(txn.If, store.Cond{Key: fence, ModRev: r.term})
	now := time.Now().UnixMilli()
	if now -= now % markEvery.Milliseconds(); now > r.marked {
		txn.Put = append(txn.Put, store.KV{Key: timeMark, Value: strconv.AppendInt(nil, now, 10)})
	}
	if rev, err = r.store.Commit(ctx, txn); err == nil {
		r.marked = max(r.marked, now)
	}
	return rev, err
}

// has reports whether an instance or a node (ID "") is there.
func (s *state) has(k weft.InstanceKey) bool {
	if k.ID == "" {
		return s.node(k.Node) != nil
	}
	return s.instance(k) != nil
}

// owners returns every instance and node (with ID "").
func (s *state) owners() map[weft.InstanceKey]bool {
	all := make(map[weft.InstanceKey]bool)
	for name, n := range s.nodes {
		if n.node != nil {
			all[weft.InstanceKey{Node: name}] = true
		}
		for id := range n.instances {
			all[weft.InstanceKey{Node: name, ID: id}] = true
		}
	}
	return all
}
