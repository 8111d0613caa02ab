// Package node puts the planes together: it is the only place where registry,
// control, certificate authority, telemetry and proxy meet.
//
// Each shape of weft is a composition here (Server, Gateway, Sidecar, Demo) with
// the same life: its constructor binds every port and opens all state, so that
// what is wrong is said before anything runs; Run serves until its context ends or
// a part fails, and then drains. What a request passes on its way through a proxy
// is in chain.go, in order.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/weftmesh/weft"
)

// parts run together: when one ends, or the context does, all are told to end.
// The zero value is empty and ready.
type parts struct {
	list, last []part
}

type part struct {
	name string
	run  func(context.Context) error
}

// add a part. run must return soon after its context ends.
func (p *parts) add(name string, run func(context.Context) error) {
	p.list = append(p.list, part{name, run})
}

// addLast adds a part that serves the others: it is told to end when they have.
func (p *parts) addLast(name string, run func(context.Context) error) {
	p.last = append(p.last, part{name, run})
}

// run returns when every part has returned, with the error of the part that ended
// first; nil when that was because ctx ended. The cause of the end of the parts'
// context is that error, or the cause of ctx.
func (p *parts) run(ctx context.Context) error {
	first, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	last, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var waitFirst, waitLast sync.WaitGroup
	launch := func(wait *sync.WaitGroup, ctx context.Context, list []part) {
		for _, part := range list {
			wait.Go(func() {
				err := part.run(ctx)
				if err != nil && !errors.Is(err, context.Canceled) {
					cancel(fmt.Errorf("%s: %w", part.name, err))
					return
				}
				cancel(nil)
			})
		}
	}
	launch(&waitLast, last, p.last)
	launch(&waitFirst, first, p.list)
	waitFirst.Wait()
	end()
	waitLast.Wait()
	if cause := context.Cause(first); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// start runs the parts in the background.
func (p *parts) start(ctx context.Context) *running {
	r := &running{done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = p.run(ctx)
	}()
	return r
}

// running are parts that were started. Whoever ends their context waits for done.
type running struct {
	done chan struct{}
	err  error // of run; set before done is closed
}

// closers are undone in reverse order of their making.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c *closers) close() error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i]())
	}
	*c = nil
	return errors.Join(errs...)
}

// listen binds a door, or takes the socket over from the process before. flag is
// the command line flag that moves it, and without its dashes the socket's name.
func listen(p *Process, what, address, flag string) (net.Listener, error) {
	ln, err := p.link().Listen(socketName(flag), address)
	if err != nil {
		return nil, bindError(what, address, flag, err)
	}
	return ln, nil
}

// socketName is what a socket is called on its way from process to process:
// "https" of --https, "upstream:user-service" of --upstream user-service.
func socketName(flag string) string {
	return strings.ReplaceAll(strings.TrimPrefix(flag, "--"), " ", ":")
}

func bindError(what, address, flag string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return weft.Errorf(weft.Conflict, "start", what, "port %s is taken: another process listens on %s; stop it, or choose another address with %s (port 0 picks a free one)", portOf(address), address, flag)
	case errors.Is(err, syscall.EACCES):
		return weft.Errorf(weft.Denied, "start", what, "no permission to listen on %s; choose a port above 1023 with %s", address, flag)
	}
	return &weft.Error{Kind: weft.Invalid, Op: "start", Thing: what, Err: fmt.Errorf("cannot listen on %q (%s): %w", address, flag, err)}
}

func portOf(address string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return port
}

// loopbackOnly refuses to offer an unprotected door to a network.
func loopbackOnly(what, address, flag string) error {
	return offered(what, address, flag, "without TLS and tokens, which this version does not have for it; bind it to 127.0.0.1")
}

// offered refuses to offer a door to a network while it lacks something; an empty
// lack is nothing.
func offered(what, address, flag, lack string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return weft.Errorf(weft.Invalid, "start", what, "%s %q: want host:port", flag, address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return weft.Errorf(weft.Invalid, "start", what, "%s %q: %q is not a port number", flag, address, port)
	}
	if ip := net.ParseIP(host); lack == "" || host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return weft.Errorf(weft.Denied, "start", what, "%s %s would offer it to the network %s", flag, address, lack)
}

// NewLogger is the log of weft's own processes: JSON lines.
func NewLogger(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}

// watchClock says so when the machine's clock jumps: leases and checks run on
// the monotonic clock and do not notice, certificates and log times do.
func watchClock(logger *slog.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		last := time.Now()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			now := time.Now()
			if jump := clockJump(now.Round(0).Sub(last.Round(0)), now.Sub(last)); jump != 0 {
				logger.Warn("the clock jumped: leases and checks go on, but certificates may look expired or not yet valid until it is right",
					"by", jump.String(), "now", now.Format(time.RFC3339))
			}
			last = now
		}
	}
}

// clockJump is how far the wall clock moved beyond the monotonic one; small
// differences (slewing) count as none.
func clockJump(wall, monotonic time.Duration) time.Duration {
	if jump := wall - monotonic; jump.Abs() >= 2*time.Second {
		return jump
	}
	return 0
}
