package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/weftmesh/weft"
)

// Peers carries a write to the server that writes. It is what a registry needs of
// the other servers.
type Peers interface {
	// Forward gives command to Execute of the registry on the server that leads, and
	// returns its answer. sent is false when the command certainly did not arrive.
	Forward(ctx context.Context, command []byte) (answer []byte, sent bool, err error)
}

// operation is a write that may be asked of any server: it is done by the one that
// writes. Its argument and result travel as JSON.
type operation[A, R any] func(ctx context.Context, argument A) (R, error)

// operations are the writes of a registry.
type operations struct {
	byName map[string]func(ctx context.Context, argument []byte) (any, error)

	register       operation[weft.Instance, uint64]
	deregister     operation[weft.InstanceKey, uint64]
	registerNode   operation[weft.Node, uint64]
	deregisterNode operation[string, uint64]
	addCheck       operation[checkEdit, bool]
	setCheck       operation[checkEdit, bool]
	removeCheck    operation[checkEdit, bool]
	report         operation[reportArgument, bool]
	maintain       operation[maintenance, bool]
	releaseGuard   operation[weft.ServiceName, uint64]
	observe        operation[Observation, bool]
	markDrain      operation[drainMark, drainMarked]
	transact       operation[TxnRequest, TxnResult]
	createSession  operation[Session, Session]
	destroySession operation[string, bool]
	renewSession   operation[string, *Session]
}

func (r *Registry) makeOperations() {
	o := &r.operations
	o.byName = make(map[string]func(context.Context, []byte) (any, error))
	o.register = operate(r, "register", r.registerHere)
	o.deregister = operate(r, "deregister", r.deregisterHere)
	o.registerNode = operate(r, "register-node", r.registerNodeHere)
	o.deregisterNode = operate(r, "deregister-node", r.deregisterNodeHere)
	o.addCheck = operate(r, "add-check", r.addCheckHere)
	o.setCheck = operate(r, "set-check", r.setCheckHere)
	o.removeCheck = operate(r, "remove-check", r.removeCheckHere)
	o.report = operate(r, "report", r.reportHere)
	o.maintain = operate(r, "maintain", r.maintainHere)
	o.releaseGuard = operate(r, "release-guard", r.releaseGuardHere)
	o.observe = operate(r, "observe", r.observeHere)
	o.markDrain = operate(r, "mark-drain", r.markDrainHere)
	o.transact = operate(r, "transact", r.transactHere)
	o.createSession = operate(r, "create-session", r.createSessionHere)
	o.destroySession = operate(r, "destroy-session", r.destroySessionHere)
	o.renewSession = operate(r, "renew-session", r.renewSessionHere)
}

// operate makes an operation of what does it on the server that writes. When the
// answer is lost with that server, it is asked for again: whatever here writes, it
// writes by once.
func operate[A, R any](r *Registry, name string, here operation[A, R]) operation[A, R] {
	r.operations.byName[name] = func(ctx context.Context, b []byte) (any, error) {
		var argument A
		if err := json.Unmarshal(b, &argument); err != nil {
			return nil, weft.Errorf(weft.Invalid, name, "forwarded write", "%w", err)
		}
		return here(ctx, argument)
	}
	return func(ctx context.Context, argument A) (result R, err error) {
		var t *ticket
		if r.peers != nil {
			t = r.newTicket()
			ctx = withTicket(ctx, t)
		}
		deadline := time.Now().Add(writerPatience)
		var lost error // of an attempt that may have done it
		for {
			moved := r.leadership.LeaderChanged()
			if r.writes.Load() {
				result, err = here(ctx, argument)
			} else {
				err = r.forward(ctx, name, argument, &result)
			}
			switch {
			case errors.Is(err, errMayHaveHappened):
				if lost = err; t == nil || t.Earlier == maxAttempts {
					return result, err
				}
				t.Earlier++
			case !errors.Is(err, errNotWriter):
				return result, err
			}
			var hindered *cannotWrite
			known := errors.As(err, &hindered)
			if alone := r.peers == nil; alone && known || !r.awaitWriter(ctx, moved, deadline) {
				switch {
				case lost != nil:
					return result, lost
				case known:
					err = hindered
				case r.ctx.Err() != nil:
					err = errClosed
				default:
					err = errNoLeader
				}
				return result, &weft.Error{Kind: weft.Unavailable, Op: name, Thing: "registry", Err: err}
			}
		}
	}
}

const (
	// writerPatience is how long a write waits for a server that writes: longer than
	// an election takes (about a second, two when votes split).
	writerPatience = 10 * time.Second
	// writerPoll is how soon a write tries again when it does not know what to wait
	// for: a leader that does not know yet that it is one, a peer that cannot be
	// reached.
	writerPoll = 50 * time.Millisecond
)

// errMayHaveHappened: the answer to the write was lost with who led. By its ticket who
// leads next can tell.
var errMayHaveHappened = errors.New("the server that led gave no answer; it may have happened")

// errNoLeader: nothing was done for as long as a write waits.
var errNoLeader = errors.New("no server leads: a majority of the servers must be up and reach each other")

// errNotWriter: this server does not write, now; nothing was done.
var errNotWriter = errors.New("this server does not lead")

func (r *Registry) awaitWriter(ctx context.Context, moved <-chan struct{}, deadline time.Time) bool {
	if time.Now().After(deadline) {
		return false
	}
	timer := time.NewTimer(writerPoll)
	defer timer.Stop()
	select {
	case <-moved:
	case <-timer.C:
	case <-ctx.Done():
		return false
	case <-r.ctx.Done():
		return false
	}
	return true
}

// command is a forwarded write.
type command struct {
	Op       string          `json:"op"`
	Actor    string          `json:"actor,omitempty"`
	Ticket   *ticket         `json:"ticket,omitempty"`
	Argument json.RawMessage `json:"argument"`
}

// reply to a forwarded write.
type reply struct {
	NotWriter bool            `json:"notWriter,omitempty"`
	Lost      bool            `json:"lost,omitempty"` // with Failure: it may have happened
	Why       string          `json:"why,omitempty"`  // it leads, and cannot write
	Rev       int64           `json:"rev,omitempty"`  // the writer's view has it when it answers
	Result    json.RawMessage `json:"result,omitempty"`
	Failure   *failure        `json:"failure,omitempty"`
}

// failure is a weft.Error on its way to another server.
type failure struct {
	Kind  weft.Kind `json:"kind"`
	Op    string    `json:"op"`
	Thing string    `json:"thing"`
	Text  string    `json:"text"`
}

func newFailure(err error) *failure {
	f := &failure{Kind: weft.KindOf(err), Text: err.Error()}
	var e *weft.Error
	if errors.As(err, &e) {
		f.Op, f.Thing, f.Text = e.Op, e.Thing, ""
		if e.Err != nil {
			f.Text = e.Err.Error()
		}
	}
	return f
}

func (f *failure) error() error {
	return &weft.Error{Kind: f.Kind, Op: f.Op, Thing: f.Thing, Err: errors.New(f.Text)}
}

// forward asks the server that writes. When it returns, this server's view has what
// was written.
func (r *Registry) forward(ctx context.Context, op string, argument, result any) error {
	if r.peers == nil || r.hindered.Load() != nil {
		return r.notWriter()
	}
	b, err := json.Marshal(argument)
	if err != nil {
		return weft.Errorf(weft.Internal, op, "forwarded write", "%w", err)
	}
	t := ticketOf(ctx)
	t.id()
	if b, err = json.Marshal(command{Op: op, Actor: actorOf(ctx), Ticket: t, Argument: b}); err != nil {
		return weft.Errorf(weft.Internal, op, "forwarded write", "%w", err)
	}
	got, sent, err := r.peers.Forward(ctx, b)
	switch {
	case err != nil && !sent:
		return fmt.Errorf("%w, and who does cannot be reached: %w", errNotWriter, err)
	case err != nil:
		return &weft.Error{Kind: weft.Unavailable, Op: op, Thing: "registry", Err: fmt.Errorf("%w: %w", errMayHaveHappened, err)}
	}
	var a reply
	if err := json.Unmarshal(got, &a); err != nil {
		return weft.Errorf(weft.Internal, op, "answer of the server that leads", "%w", err)
	}
	switch {
	case a.NotWriter && a.Why != "":
		return &cannotWrite{a.Why}
	case a.NotWriter:
		return errNotWriter
	case a.Lost:
		return fmt.Errorf("%w: %w", errMayHaveHappened, a.Failure.error())
	case a.Failure != nil:
		return a.Failure.error()
	}
	if err := r.reach(ctx, a.Rev); err != nil {
		return err
	}
	return json.Unmarshal(a.Result, result)
}

// Execute does a write that another server forwarded, and returns the answer for it.
func (r *Registry) Execute(ctx context.Context, b []byte) []byte {
	a := r.execute(ctx, b)
	encoded, err := json.Marshal(a)
	if err != nil {
		encoded, _ = json.Marshal(reply{Failure: newFailure(err)}) // texts and numbers only
	}
	return encoded
}

func (r *Registry) execute(ctx context.Context, b []byte) reply {
	var c command
	if err := json.Unmarshal(b, &c); err != nil {
		return reply{Failure: newFailure(weft.Errorf(weft.Invalid, "write", "forwarded write", "%w", err))}
	}
	do := r.operations.byName[c.Op]
	if do == nil {
		return reply{Failure: newFailure(weft.Errorf(weft.Invalid, c.Op, "forwarded write",
			"this server does not know it; it is of an older version than the one that forwarded it"))}
	}
	if !r.writes.Load() {
		return elsewhere(r.notWriter())
	}
	if err := c.Ticket.check(); err != nil {
		return reply{Failure: newFailure(err)}
	}
	if c.Ticket != nil {
		ctx = withTicket(ctx, c.Ticket)
	}
	result, err := do(WithActor(ctx, c.Actor), c.Argument)
	switch {
	case errors.Is(err, errMayHaveHappened):
		return reply{Lost: true, Failure: newFailure(err)}
	case errors.Is(err, errNotWriter):
		return elsewhere(err)
	case err != nil:
		return reply{Failure: newFailure(err)}
	}
	encoded, err := json.Marshal(result)
	if err != nil {
		return reply{Failure: newFailure(err)}
	}
	return reply{Rev: r.view.revision(), Result: encoded}
}

// elsewhere answers a server that has to ask another one, or later.
func elsewhere(notWriter error) reply {
	a := reply{NotWriter: true}
	var e *cannotWrite
	if errors.As(notWriter, &e) {
		a.Why = e.why
	}
	return a
}
