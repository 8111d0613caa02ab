package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"
)

// Next is the process that takes over from this one.
type Next struct {
	PID   int
	Leash *Leash // this process's end, when Begin was told to stay

	cmd  *exec.Cmd
	talk *conversation
}

// Begin starts the next process, gives it the sockets and state (which is encoded
// as JSON), and waits until it is ready to take over. When it cannot, or ctx ends
// first, it is killed and the error says why.
//
// stay says that this process will not exit afterwards. It then holds the leash,
// unless it is on one itself: that one is passed on.
func (p *Process) Begin(ctx context.Context, state any, stay bool) (_ *Next, err error) {
	encoded, err := json.Marshal(state)
	if err != nil {
		return nil, err
	}
	ours, theirs, err := socketPair(syscall.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	n := &Next{}
	if n.talk, err = converse(ours); err != nil {
		return nil, errors.Join(err, theirs.Close())
	}
	hello := message{Word: "hello", State: encoded}
	gifts, err := p.gifts(n, &hello, stay)
	files := append([]*os.File{theirs}, gifts...)
	if err == nil {
		err = n.start(p, files)
	}
	for _, f := range files { // so that the end of the next process ends the conversation
		_ = f.Close()
	}
	if err != nil {
		n.close()
		return nil, fmt.Errorf("start %s: %w", p.path, err)
	}
	if err := n.await(ctx, hello); err != nil {
		return nil, n.failed(ctx, err)
	}
	return n, nil
}

// gifts are duplicates of what the next process inherits; hello says what it is.
func (p *Process) gifts(n *Next, hello *message, stay bool) (files []*os.File, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	hello.Sockets = slices.Sorted(maps.Keys(p.sockets))
	for _, name := range hello.Sockets {
		f, err := duplicate(p.sockets[name])
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	lead, err := p.leashFor(n, stay)
	if lead != nil {
		hello.Leash = true
		files = append(files, lead)
	}
	return files, err
}

// leashFor returns the end of a leash for the next process, nil for none.
func (p *Process) leashFor(n *Next, stay bool) (*os.File, error) {
	switch {
	case p.leash != nil:
		fd, err := descriptor(p.leash.conn)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), "leash"), nil
	case !stay:
		return nil, nil
	}
	ours, theirs, err := socketPair(syscall.SOCK_SEQPACKET)
	if err != nil {
		return nil, err
	}
	if n.Leash, err = newLeash(ours); err != nil {
		return nil, errors.Join(err, theirs.Close())
	}
	return theirs, nil
}

func socketPair(kind int) (a, b *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, kind|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "handover"), os.NewFile(uintptr(fds[1]), "handover"), nil
}

func (n *Next) start(p *Process, files []*os.File) error {
	n.cmd = &exec.Cmd{
		Path: p.path, Args: os.Args, Env: append(slices.Clone(p.env), fmt.Sprintf("%s=%d", handoverEnv, firstFD)),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, ExtraFiles: files,
	}
	if err := n.cmd.Start(); err != nil {
		n.cmd = nil
		return err
	}
	n.PID = n.cmd.Process.Pid
	return nil
}

// await says hello and waits until the process is ready.
func (n *Next) await(ctx context.Context, hello message) error {
	defer n.bound(ctx)()
	if err := n.talk.say(hello); err != nil {
		return err
	}
	return n.expect("ready")
}

// Give tells the next process to take over, and waits until it serves. When it
// fails, or ctx ends first, it is killed, and this process has to go on.
func (n *Next) Give(ctx context.Context) error {
	release := n.bound(ctx)
	err := n.talk.say(message{Word: "take"})
	if err == nil {
		err = n.expect("serving")
	}
	release()
	if err != nil {
		return n.failed(ctx, err)
	}
	_ = n.talk.conn.Close()
	return n.cmd.Process.Release() // it outlives this process, or is waited for by its number
}

// bound makes the conversation fail when ctx ends, until release is called.
func (n *Next) bound(ctx context.Context) (release func()) {
	stop := context.AfterFunc(ctx, func() { _ = n.talk.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

func (n *Next) expect(word string) error {
	m, err := n.talk.hear()
	switch {
	case err != nil:
		return err
	case m.Word == "failed":
		return errors.New(m.Reason)
	case m.Word != word:
		return fmt.Errorf("it said %q; want %q", m.Word, word)
	}
	return nil
}

// failed ends the process and says why it did not take over.
func (n *Next) failed(ctx context.Context, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = context.Cause(ctx)
	}
	gone := errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
	if state := n.end(); gone {
		err = fmt.Errorf("it ended: %s (what it said is in the log)", state)
	}
	return fmt.Errorf("the new process %d did not take over: %w", n.PID, err)
}

// endTimeout is how long a process that is not wanted may take to end by itself:
// its end of the conversation is closed, which it takes for a reason.
const endTimeout = 2 * time.Second

// Abort gives up a process that was ready.
func (n *Next) Abort() { n.end() }

func (n *Next) end() *os.ProcessState {
	n.close()
	if n.cmd == nil {
		return nil
	}
	kill := time.AfterFunc(endTimeout, func() { _ = n.cmd.Process.Kill() })
	defer kill.Stop()
	_ = n.cmd.Wait() // how it ended is in ProcessState
	return n.cmd.ProcessState
}

func (n *Next) close() {
	_ = n.talk.conn.Close()
	if n.Leash != nil {
		n.Leash.Close()
	}
}

// takeTimeout is how long a process that is ready waits to be told to take over:
// more than an old one takes to close its state.
const takeTimeout = time.Minute

// Ready tells the process before that this one is prepared, and waits until it is
// told to take over. Without a process before it returns at once.
func (p *Process) Ready(ctx context.Context) error {
	if !p.Inherited() {
		return nil
	}
	_ = p.before.conn.SetDeadline(time.Now().Add(takeTimeout))
	stop := context.AfterFunc(ctx, func() { _ = p.before.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := p.before.say(message{Word: "ready"})
	var m message
	if err == nil {
		m, err = p.before.hear()
	}
	if err == nil && m.Word != "take" {
		err = fmt.Errorf("it said %q; want \"take\"", m.Word)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("take over: the old process goes on: %w", err)
	}
	return nil
}

// Serving tells the process before that it may stop: this one serves, and has
// inherited everything.
func (p *Process) Serving() error {
	if !p.Inherited() {
		return nil
	}
	_ = p.before.conn.SetDeadline(time.Now().Add(helloTimeout))
	err := p.before.say(message{Word: "serving"})
	_ = p.before.conn.Close()
	p.before = nil
	if err != nil {
		return fmt.Errorf("take over: the old process went away: %w", err)
	}
	return nil
}

// Failed tells the process before why this one cannot take over.
func (p *Process) Failed(reason error) {
	if !p.Inherited() {
		return
	}
	_ = p.before.conn.SetDeadline(time.Now().Add(helloTimeout))
	_ = p.before.say(message{Word: "failed", Reason: reason.Error()}) // who is not there need not know
	_ = p.before.conn.Close()
	p.before = nil
}
