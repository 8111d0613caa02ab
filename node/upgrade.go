package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/node/handover"
)

// Process is this process in the chain of those that replace one another; see
// package handover. One Process is for one gateway, sidecar, server or demo. With a
// nil one, these cannot be replaced.
//
// SIGUSR2, and `weft upgrade`, ask it to be replaced: it starts the executable
// again by the path by which it was started, hands its sockets over, and when the
// new process serves it stops accepting, drains, and exits with 0. When the new
// process fails, it goes on as if nothing had happened.
//
// Who started the process may be watching it and nothing else: then its exit would
// end everything. So it stays, as a thin parent that serves nothing, when
//
//   - it runs an application (`weft run -- COMMAND`). The application is its child:
//     no other process can wait for it and learn its exit code, and a shell, a
//     container and every supervisor wait for this one. So the application keeps its
//     process id, its parent and its streams, and only the data plane moves;
//   - it is the first process of a container, or its parent is init and no notify
//     socket is there by which systemd could be told of the new main process;
//   - it was told to by --keep-pid: for a supervisor that watches one process.
//
// The parent passes SIGTERM on as a word over the leash, and exits with the code of
// the application, or else of the data plane. It can be upgraded again: who asks it
// is sent on to the process that serves.
//
// SIGHUP is kept free: there is nothing to reload, since configuration is pushed.
// Without a terminal it is logged and does nothing; on one it means that the
// terminal has gone, and ends the process as it does any other.
type Process struct {
	// constant
	chain   *handover.Process
	door    *handover.Door // nil: somebody stands there; SIGUSR2 still works
	keepPID bool
	logger  *slog.Logger

	signals  chan os.Signal
	requests chan request
	asked    context.Context // until nobody takes requests any more
	deaf     context.CancelFunc
	work     sync.WaitGroup

	moved atomic.Bool // another process is the main one
	led   *led        // of the goroutine that runs Run; nil: no older process has stayed
}

// request to be replaced. Whoever takes it sends one reply.
type request struct{ reply chan handover.Reply }

// Begin takes over what the process before has handed to this one, if there is one.
// Call it first of all, and End last. keepPID makes the process stay when it is
// replaced.
func Begin(keepPID bool, logger *slog.Logger) (*Process, error) {
	chain, err := handover.Inherit()
	if err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "start", Thing: "process", Err: err}
	}
	p := &Process{chain: chain, keepPID: keepPID, logger: logger, signals: make(chan os.Signal, 1), requests: make(chan request)}
	p.asked, p.deaf = context.WithCancel(context.Background())
	signal.Notify(p.signals, syscall.SIGUSR2)
	if !signal.Ignored(syscall.SIGHUP) && !onTerminal() {
		signal.Notify(p.signals, syscall.SIGHUP)
	}
	p.work.Go(p.hearSignals)
	if p.door, err = handover.OpenDoor(); err != nil {
		logger.Warn("weft upgrade will not find this process; kill -USR2 will", "error", err)
		return p, nil
	}
	p.work.Go(func() {
		if err := p.door.Serve(p.ask); err != nil {
			logger.Warn("weft upgrade does not find this process any more", "error", err)
		}
	})
	return p, nil
}

// End gives everything up. A process that was to take over and did not tells the one
// before why.
func (p *Process) End(reason error) {
	if p == nil {
		return
	}
	if reason != nil {
		p.chain.Failed(reason)
	}
	p.close()
	p.work.Wait()
	p.chain.Close()
}

// close lets nobody ask any more.
func (p *Process) close() {
	signal.Stop(p.signals)
	p.deaf()
	if p.door != nil {
		p.door.Close()
	}
}

// onTerminal reports whether the process has a controlling terminal.
func onTerminal() bool {
	f, err := os.OpenFile("/dev/tty", os.O_RDONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

func (p *Process) hearSignals() {
	for {
		select {
		case <-p.asked.Done():
			return
		case s := <-p.signals:
			if s == syscall.SIGHUP {
				p.logger.Info("there is nothing to reload: configuration is pushed; SIGUSR2 and weft upgrade replace the process")
				continue
			}
			if r := p.ask(); r.Ask != 0 { // the log says what came of any other
				if err := syscall.Kill(r.Ask, syscall.SIGUSR2); err != nil {
					p.logger.Error("the data plane could not be told to upgrade", "pid", r.Ask, "error", err)
				}
			}
		}
	}
}

// ask passes a request on to who runs the process, and returns the reply.
func (p *Process) ask() handover.Reply {
	r := request{make(chan handover.Reply, 1)}
	select {
	case p.requests <- r:
		return <-r.reply
	case <-p.asked.Done():
		return handover.Reply{Error: "it is ending"}
	}
}

func (p *Process) link() *handover.Process {
	if p == nil {
		return nil
	}
	return p.chain
}

// Inherited reports whether this process is about to take over from another one,
// which also gives it the join token.
func (p *Process) Inherited() bool { return p.link().Inherited() }

// stays reports whether this process must not exit when it is replaced.
func (p *Process) stays() bool {
	if p == nil || p.chain.Leash() != nil {
		return false // an older one has stayed already
	}
	return p.keepPID || os.Getpid() == 1 || os.Getppid() == 1 && !p.chain.Supervised()
}

// onlyUses refuses sockets of a supervisor that nobody would accept from. What an
// older weft handed over and this one has no use for is closed.
func (p *Process) onlyUses(names ...string) error {
	unused := p.link().Unused(names...)
	if len(unused) == 0 {
		return nil
	}
	if p.Inherited() {
		p.chain.Close(unused...)
		return nil
	}
	return weft.Errorf(weft.Invalid, "start", "sockets of the supervisor", "nobody listens to %s; their names are those of flags: %s", strings.Join(unused, ", "), strings.Join(names, ", "))
}

// notify tells the supervisor.
func (p *Process) notify(what string) {
	if p == nil || p.moved.Load() {
		return
	}
	if err := p.link().Notify(what); err != nil {
		p.logger.Warn("the supervisor was not told", "error", err)
	}
}

// tenure returns the context of the time in which this process serves: it ends with
// ctx, and when the process that has stayed says so. over ends the tenure, and has to
// be called.
func (p *Process) tenure(ctx context.Context) (_ context.Context, over func()) {
	if p == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(ctx, func() { p.notify(handover.Stopping) })
	if l := p.chain.Leash(); l != nil {
		p.led = newLed(l, cancel)
	}
	return ctx, func() {
		unhook()
		cancel()
		if p.led != nil {
			p.led.close()
		}
	}
}

// serving tells all who wait for it that this process serves: the process before,
// the one that has stayed, the supervisor.
func (p *Process) serving() {
	if p == nil {
		return
	}
	inherited := p.Inherited()
	if err := p.chain.Serving(); err != nil {
		p.logger.Warn("nobody learns that this process serves", "error", err)
	}
	switch {
	case p.led != nil:
		p.led.say(handover.Word{PID: os.Getpid()})
	case !inherited: // else the old main process tells
		p.notify(handover.Started)
	}
}

// bye tells the process that has stayed with which code this one ends.
func (p *Process) bye(code int, err error) {
	if p == nil || p.led == nil {
		return
	}
	if err != nil && code == 0 {
		code = 1
	}
	p.led.say(handover.Word{Bye: true, Code: code})
}

// Limits of a replacement.
const (
	readyTimeout = 30 * time.Second // from the start of the new process until it is ready
	giveTimeout  = 30 * time.Second // until it serves
)

// errReplaced is the cause of the end when another process has taken over.
var errReplaced = errors.New("another process has taken over")

// watch waits until this process need not serve any more: ctx has ended, a part has,
// the application has, or next has taken over. state is what to hand over.
func (p *Process) watch(ctx context.Context, parts *running, exited <-chan struct{}, stay bool, state func() any) (next *handover.Next) {
	for {
		next, r := p.successor(ctx, parts, exited, stay, state)
		if next == nil {
			return nil
		}
		if err := p.give(ctx, next); err != nil {
			p.refused(ctx, err, r)
			continue
		}
		p.replaced(next, r)
		return next
	}
}

// successor is watch, but returns when next is ready to take over; r waits for a
// reply.
func (p *Process) successor(ctx context.Context, parts *running, exited <-chan struct{}, stay bool, state func() any) (next *handover.Next, r request) {
	var requests chan request
	if p != nil {
		requests = p.requests
	}
	for {
		select {
		case <-ctx.Done():
			return nil, r
		case <-parts.done:
			return nil, r
		case <-exited:
			return nil, r
		case r = <-requests:
			next, err := p.prepare(ctx, exited, state(), stay)
			if err == nil {
				return next, r
			}
			p.refused(ctx, err, r)
		}
	}
}

// prepare starts the next process and waits until it is ready; not when the
// application exits meanwhile.
func (p *Process) prepare(ctx context.Context, exited <-chan struct{}, state any, stay bool) (*handover.Next, error) {
	p.logger.Info("upgrade begins", "pid", os.Getpid())
	p.notify(handover.Reloading())
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("it was not ready in %s", readyTimeout))
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		select {
		case <-exited:
			giveUp(errors.New("the application ended meanwhile"))
		case <-ctx.Done():
		}
	})
	defer waiting.Wait()
	defer giveUp(nil)
	return p.chain.Begin(ctx, state, stay)
}

// give lets the next process take over. What the process that has stayed says from
// now on is for the next one.
func (p *Process) give(ctx context.Context, next *handover.Next) error {
	ctx, cancel := context.WithTimeoutCause(ctx, giveTimeout, fmt.Errorf("it did not serve in %s", giveTimeout))
	defer cancel()
	if p.led != nil {
		p.led.pause()
	}
	if err := ctx.Err(); err != nil { // heard at the last moment
		next.Abort()
		return context.Cause(ctx)
	}
	err := next.Give(ctx)
	if err != nil && p.led != nil {
		p.led.resume()
	}
	return err
}

// replaced tells everybody that next serves. What connects is its business alone:
// when it stops, nobody shall wait in a queue that this process has kept.
func (p *Process) replaced(next *handover.Next, r request) {
	p.chain.Close()
	then := "drains and exits"
	if next.Leash != nil {
		then = "drains and stays as its parent"
		p.notify(handover.Started)
	} else {
		p.notify(handover.MovedTo(next.PID))
		p.moved.Store(true)
	}
	p.logger.Info("upgraded: another process serves now", "old", os.Getpid(), "new", next.PID)
	r.reply <- handover.Reply{Said: fmt.Sprintf("process %d serves now; %d %s", next.PID, os.Getpid(), then)}
	if next.Leash == nil {
		p.led = nil // it is the next one's
		p.chain.LetGo()
		p.close()
	}
}

// refused says why nobody has taken over.
func (p *Process) refused(ctx context.Context, err error, r request) {
	if ctx.Err() == nil {
		p.notify(handover.Started)
	}
	p.logger.Error("not upgraded: this process goes on as before", "pid", os.Getpid(), "error", err)
	r.reply <- handover.Reply{Error: err.Error()}
}

// outlive is what remains when next serves: to wait until the parts have drained and
// release what they stood on, and, if this process stays, to be the parent of next
// and of app. Then code is the one to exit with.
func (p *Process) outlive(ctx context.Context, next *handover.Next, app application, parts *running, release func() error) (code int, err error) {
	drained := make(chan struct{})
	var released error
	go func() {
		defer close(drained)
		<-parts.done
		released = release()
	}()
	if next.Leash != nil {
		k := keeper{process: p, app: app, leash: next.Leash, pids: []int{next.PID}, last: next.PID}
		code, err = k.run(ctx, drained)
	}
	<-drained
	return code, errors.Join(err, released)
}

// exitError is for shapes that end with a code only when they have stayed for another
// process, which has logged its reason.
func exitError(code int, err error) error {
	if err == nil && code != 0 {
		return weft.Errorf(weft.Internal, "run", "process that has taken over", "it ended with code %d; its log says why", code)
	}
	return err
}

// Upgrade asks a weft process to be replaced, and returns what it says.
func Upgrade(ctx context.Context, pid int) (string, error) {
	thing := fmt.Sprintf("process %d", pid)
	for range 3 { // from a parent that has stayed to the one that serves
		r, err := handover.Ask(ctx, pid)
		switch {
		case err != nil:
			return "", &weft.Error{Kind: weft.Unavailable, Op: "upgrade", Thing: thing, Err: err}
		case r.Error != "":
			return "", weft.Errorf(weft.Unavailable, "upgrade", thing, "it goes on as before: %s", r.Error)
		case r.Ask == 0:
			return r.Said, nil
		}
		pid = r.Ask
	}
	return "", weft.Errorf(weft.Unavailable, "upgrade", thing, "each process sends on to another one")
}
