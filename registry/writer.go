package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// One server writes the registry, the one that leads the store's cluster: so plans
// see the newest catalogue without asking anybody, and checks, leases and sessions
// have one clock. It takes over by putting the fence, and every transaction of its
// asks that the fence still has the revision of that: what a server sends that was
// replaced, or sends late, comes to nothing.
const fence = root + "writer"

// Writes reports whether this server is the one that writes, as far as it knows.
func (r *Registry) Writes() bool { return r.writes.Load() }

// lead begins or ends writing, as the store says. It is the loop's. again is set
// when it could not, and has to be tried again.
func (r *Registry) lead(events <-chan store.Batch) (_ <-chan store.Batch, again <-chan time.Time, err error) {
	switch leads := r.leadership.IsLeader(); {
	case !leads:
		r.hindered.Store(nil)
		r.stepDown("another server leads")
		return events, nil, nil
	case r.writes.Load():
		return events, nil, nil
	}
	ctx, cancel := context.WithTimeout(r.ctx, commitTimeout)
	defer cancel()
	rev, err := r.store.Commit(ctx, store.Txn{Put: []store.KV{{Key: fence, Value: []byte(r.node)}}})
	if err != nil {
		r.hinder(err)
		return events, time.After(takeOverAgain), nil
	}
	if events, err = r.catchUp(events, rev); err != nil {
		return nil, nil, err
	}
	if r.marked, err = r.readMark(ctx); err != nil {
		return events, time.After(takeOverAgain), nil
	}
	r.term = rev
	r.hindered.Store(nil)
	r.checks.lead(true)
	r.startSessions()
	r.writes.Store(true)
	return events, nil, nil
}

// cannotWrite is errNotWriter of the server that leads, with what hinders it.
type cannotWrite struct{ why string }

func (e *cannotWrite) Error() string { return "the server that leads cannot write: " + e.why }

func (e *cannotWrite) Is(target error) bool { return target == errNotWriter }

// hinder keeps why this server cannot write, and logs it once. It is the loop's.
func (r *Registry) hinder(err error) {
	h := &cannotWrite{err.Error()}
	var e *weft.Error
	if errors.As(err, &e) && e.Err != nil {
		h.why = e.Err.Error() // what was to be written is no news
	}
	if r.hindered.Swap(h) == nil && r.ctx.Err() == nil {
		r.log.Warn("registry: this server leads and cannot write; it is tried again", "error", err)
	}
}

// notWriter says why this server does not write.
func (r *Registry) notWriter() error {
	if e := r.hindered.Load(); e != nil {
		return e
	}
	return errNotWriter
}

// takeOverAgain is the time between two tries to take over.
const takeOverAgain = 200 * time.Millisecond

// stepDown ends writing. Reports and duties come to nothing from then on.
func (r *Registry) stepDown(why string) {
	if r.writes.Swap(false) {
		r.checks.lead(false)
		r.stopSessions()
		r.log.Info("registry: this server no longer writes", "reason", why)
	}
}

// catchUp follows the watch until the view has rev.
func (r *Registry) catchUp(events <-chan store.Batch, rev int64) (<-chan store.Batch, error) {
	for r.view.rev < rev {
		b, ok := <-events
		var err error
		if events, err = r.follow(events, b, ok); err != nil {
			return nil, err
		}
	}
	return events, nil
}

// doubt says what to do about a failed commit. When it was refused by the fence,
// another server writes. When nobody knows whether it happened, or still will, the
// next plans must not be made without it: taking over again settles that, as a
// transaction of the old term comes to nothing after it.
func (r *Registry) doubt(err error) error {
	switch weft.KindOf(err) {
	case weft.Conflict:
		r.stepDown("another server took over")
		return &weft.Error{Kind: weft.Unavailable, Op: "write", Thing: "registry", Err: errNotWriter}
	case weft.Invalid, weft.TooLarge:
		return err // refused before it was sent
	}
	if errors.Is(err, store.ErrNoRoom) {
		r.hinder(err)
		r.stepDown("its disk is full")
		return &weft.Error{Kind: weft.Unavailable, Op: "write", Thing: "registry", Err: r.notWriter()}
	}
	r.stepDown("it is not known what became of a write")
	if r.peers != nil { // who leads next can tell
		return &weft.Error{Kind: weft.Unavailable, Op: "write", Thing: "registry", Err: fmt.Errorf("%w: %w", errMayHaveHappened, err)}
	}
	return err
}

// refusal is a request whose plan could not be carried out.
type refusal struct {
	*request
	err error
}

// answerRefused tells why, when it is certain that this server wrote at the time; else the
// server that does is asked, as nothing was done.
func answerRefused(refused []refusal, failed error) {
	for _, f := range refused {
		if failed != nil {
			f.err = &weft.Error{Kind: weft.Unavailable, Op: "write", Thing: "registry", Err: errNotWriter}
		}
		f.done <- f.err
	}
}

// confirm makes sure that this server still writes. What a plan refused, or found
// done already, is an answer as binding as a write: a server that was stopped for a
// while would give it by what it knew before. An error is of Kind Conflict.
func (r *Registry) confirm() error {
	if r.peers == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(r.ctx, confirmTimeout)
	defer cancel()
	kv, _, err := r.store.Get(ctx, fence)
	if err == nil && kv.ModRev != r.term {
		err = errors.New("another server took over")
	}
	if err != nil {
		return &weft.Error{Kind: weft.Conflict, Op: "write", Thing: "registry", Err: err}
	}
	return nil
}

// confirmTimeout is longer than an election takes; the loop stands still meanwhile.
const confirmTimeout = 3 * time.Second

// CatchUp waits until this server's view has everything that was acknowledged
// anywhere before the call: reads after it are linearizable. Without a majority of
// the servers it fails, with Kind Unavailable.
func (r *Registry) CatchUp(ctx context.Context) error {
	rev, err := r.store.Barrier(ctx)
	if err != nil {
		return err
	}
	return r.reach(ctx, rev)
}

// reach waits until the view has rev.
func (r *Registry) reach(ctx context.Context, rev int64) error {
	for {
		moved := r.view.moving()
		if r.view.revision() >= rev {
			return nil
		}
		var err error
		select {
		case <-moved:
			continue
		case <-ctx.Done():
			err = ctx.Err()
		case <-r.ctx.Done():
			err = errClosed
		}
		return &weft.Error{Kind: weft.Unavailable, Op: "read", Thing: "registry", Err: errors.Join(errors.New("this server is behind"), err)}
	}
}

// revision is the newest revision of the store that the view has.
func (v *view) revision() int64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.rev
}

// moving is closed when the view gets another revision.
func (v *view) moving() <-chan struct{} {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.moved
}

// move announces that; the view is locked.
func (v *view) move() {
	close(v.moved)
	v.moved = make(chan struct{})
}
