package node

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

// RegisterConfig of Register: who is registered, as what, and for as long as what
// lives. One of Command, PID and Unit is given.
type RegisterConfig struct {
	Server string // host:port of the weft API; as client.At takes it
	client.Registration
	CheckHTTP string // URL that answers 2xx when the instance is well; at most one check is given
	CheckTCP  string // host:port that accepts connections when it is well
	NoWait    bool   // register before the port accepts connections

	Command []string // a program to run; Port may be 0, and the program finds it as PORT
	PID     int      // a process that runs already
	Unit    string   // a systemd unit, over its restarts

	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Logger         *slog.Logger
}

// subject is something that lives for a while.
type subject interface {
	id() int                 // process id, 0 when it is not known
	exited() <-chan struct{} // closed when it has ended
}

// registrar keeps subjects registered.
type registrar struct {
	config RegisterConfig
	client *client.Client
	log    *slog.Logger
	web    *http.Client // for checks
}

// Register runs or watches what c says, and keeps it registered while it lives: from
// when its port accepts connections, until ctx ends or it does. Then the instance is
// drained; a program that was run here is ended after that, and its exit code is
// returned. Should this process be killed, the lease lapses.
func Register(ctx context.Context, c RegisterConfig) (code int, err error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	// The leases outlive ctx: they are drained after it.
	api, err := client.New(context.WithoutCancel(ctx), client.At(c.Server), client.Log(c.Logger))
	if err != nil {
		return 1, err
	}
	r := &registrar{config: c, client: api, log: c.Logger,
		web: &http.Client{Timeout: probeTimeout, Transport: &http.Transport{DisableKeepAlives: true}}}
	defer func() {
		r.web.CloseIdleConnections()
		err = errors.Join(err, api.Close())
	}()
	switch {
	case len(c.Command) > 0:
		return r.run(ctx)
	case c.Unit != "":
		return 0, r.followUnit(ctx)
	}
	p, err := watchProcess(c.PID)
	if err != nil {
		return 1, err
	}
	defer p.close()
	return 0, r.keep(ctx, p)
}

// run runs the command and keeps it registered.
func (r *registrar) run(ctx context.Context) (code int, err error) {
	if r.config.Port == 0 {
		held, err := holdFreePort()
		if err != nil {
			return 1, err
		}
		r.config.Port = held.Addr().(*net.TCPAddr).Port
		if err := held.Close(); err != nil {
			return 1, err
		}
	}
	cmd := exec.Command(r.config.Command[0], r.config.Command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r.config.Stdin, r.config.Stdout, r.config.Stderr
	cmd.Env = append(os.Environ(), "PORT="+strconv.Itoa(r.config.Port))
	p, err := startProcess(cmd)
	if err != nil {
		return 1, err
	}
	defer forwardSignals(p.pid)()
	err = r.keep(ctx, p)
	return p.end(), err
}

// forwardSignals passes on what a terminal or a supervisor may send to a program, and
// what this process has no use for. What ends us ends the program by itself.
func forwardSignals(pid int) (stop func()) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range signals {
			_ = syscall.Kill(pid, s.(syscall.Signal)) // it may have ended
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-done
	}
}

// keep keeps s registered until ctx ends or it does.
func (r *registrar) keep(ctx context.Context, s subject) error {
	living, stop := context.WithCancel(ctx)
	defer stop()
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	work.Go(func() {
		defer stop()
		select {
		case <-s.exited():
		case <-living.Done():
		}
	})
	if !r.config.NoWait && !r.awaitPort(living) {
		return nil
	}
	lease, err := r.enrol(living, s.id())
	if err != nil || lease == nil {
		return err
	}
	if r.config.CheckHTTP != "" || r.config.CheckTCP != "" {
		work.Go(func() { r.watchHealth(living, lease) })
	}
	<-living.Done()
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := lease.Drain(patience); err != nil {
		r.log.Warn("the instance was not taken out of the registry; its lease will lapse", "error", err)
		return nil
	}
	r.log.Info("deregistered", "service", r.config.Service, "instance", lease.ID())
	return nil
}

const (
	// slowStart is when it is said what is waited for.
	slowStart = 10 * time.Second
	tryAgain  = time.Second
)

// awaitPort waits until the port accepts connections. It reports false when ctx ends
// first.
func (r *registrar) awaitPort(ctx context.Context) bool {
	address := net.JoinHostPort(cmp.Or(r.config.Address, "127.0.0.1"), strconv.Itoa(r.config.Port))
	began, said := time.Now(), false
	for ctx.Err() == nil {
		health, output := probe(ctx, r.web, address, "")
		if health == weft.Passing {
			return true
		}
		if !said && time.Since(began) > slowStart {
			said = true
			r.log.Warn("the port does not accept connections yet; it is registered when it does, or at once with --no-wait", "port", address, "error", output)
		}
		select {
		case <-ctx.Done():
		case <-time.After(probeStarting):
		}
	}
	return false
}

// enrol registers the instance. A server that is away is waited for; nil when ctx
// ends meanwhile.
func (r *registrar) enrol(ctx context.Context, pid int) (*client.Lease, error) {
	in := r.config.Registration
	in.PID = cmp.Or(pid, in.PID)
	if r.config.CheckHTTP != "" || r.config.CheckTCP != "" {
		in.Health, in.Output = r.probe(ctx)
	}
	for said := false; ; said = true {
		lease, err := r.client.Register(ctx, in)
		switch {
		case ctx.Err() != nil && err != nil:
			return nil, nil
		case err == nil && lease.ID() == "":
			r.log.Info("a sidecar stands beside this process and has registered it; nothing is left to do", "service", in.Service)
			return lease, nil
		case err == nil:
			r.log.Info("registered", "service", in.Service, "instance", lease.ID(), "port", in.Port, "pid", in.PID)
			return lease, nil
		case weft.KindOf(err) != weft.Unavailable:
			return nil, err
		case !said:
			r.log.Warn("cannot be registered yet; trying on", "server", r.client.Addr(), "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(tryAgain):
		}
	}
}

// watchHealth reports what the check says until ctx ends.
func (r *registrar) watchHealth(ctx context.Context, lease *client.Lease) {
	wait := probeStarting
	for {
		health, output := r.probe(ctx)
		if ctx.Err() != nil {
			return
		}
		lease.SetHealth(health, output)
		if health == weft.Passing {
			wait = probeInterval
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (r *registrar) probe(ctx context.Context) (weft.Health, string) {
	if r.config.CheckHTTP != "" {
		return probeURL(ctx, r.web, r.config.CheckHTTP, r.config.CheckHTTP)
	}
	return probe(ctx, r.web, r.config.CheckTCP, "")
}

// stranger is a process that somebody else started.
type stranger struct {
	pid  int
	fd   *os.File // a pidfd: readable when the process has ended, whoever gets its id next
	done chan struct{}
	work sync.WaitGroup
}

func (p *stranger) id() int                 { return p.pid }
func (p *stranger) exited() <-chan struct{} { return p.done }

// watchProcess begins to watch a process; close ends that.
func watchProcess(pid int) (*stranger, error) {
	thing := "process " + strconv.Itoa(pid)
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case err == unix.ESRCH || err == unix.EINVAL:
		return nil, weft.Errorf(weft.NotFound, "watch", thing, "there is no such process")
	case err != nil:
		return nil, &weft.Error{Kind: weft.Unavailable, Op: "watch", Thing: thing, Err: err}
	}
	if err := unix.SetNonblock(fd, true); err != nil { // as os.NewFile wants it to poll
		_ = unix.Close(fd)
		return nil, &weft.Error{Kind: weft.Unavailable, Op: "watch", Thing: thing, Err: err}
	}
	p := &stranger{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}
	raw, err := p.fd.SyscallConn()
	if err == nil {
		err = p.fd.SetReadDeadline(time.Time{}) // that it can be waited for
	}
	if err != nil {
		_ = p.fd.Close()
		return nil, &weft.Error{Kind: weft.Unavailable, Op: "watch", Thing: thing, Err: err}
	}
	p.work.Go(func() {
		err := raw.Read(func(fd uintptr) bool {
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0
		})
		if err == nil {
			close(p.done)
		}
	})
	return p, nil
}

func (p *stranger) close() {
	_ = p.fd.SetReadDeadline(time.Unix(1, 0))
	p.work.Wait()
	_ = p.fd.Close()
}

// unitState is what systemd says of a unit.
type unitState struct {
	active bool
	pid    int
}

const (
	unitInterval = time.Second
	unitTimeout  = 5 * time.Second // of one question to systemd
)

// askUnit asks systemd.
func askUnit(ctx context.Context, name string) (s unitState, err error) {
	ctx, cancel := context.WithTimeout(ctx, unitTimeout)
	defer cancel()
	var complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, "systemctl", "show", "--property=LoadState,ActiveState,MainPID", "--", name)
	cmd.Stderr = &complaint
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return s, weft.Errorf(weft.Invalid, "ask for", "unit "+name, "there is no systemctl here; use --pid, or run the program with -- COMMAND")
	case err != nil:
		return s, weft.Errorf(weft.Unavailable, "ask for", "unit "+name, "systemctl: %s", cmp.Or(strings.TrimSpace(complaint.String()), err.Error()))
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		switch key, value, _ := strings.Cut(lines.Text(), "="); key {
		case "LoadState":
			if value == "not-found" {
				return s, weft.Errorf(weft.NotFound, "ask for", "unit "+name, "systemd does not know it; see \"systemctl list-units\"")
			}
		case "ActiveState":
			s.active = value == "active" || value == "reloading"
		case "MainPID":
			s.pid, _ = strconv.Atoi(value)
		}
	}
	return s, nil
}

// followUnit keeps a unit registered whenever it is active, until ctx ends.
func (r *registrar) followUnit(ctx context.Context) error {
	for waiting := false; ctx.Err() == nil; {
		s, err := askUnit(ctx, r.config.Unit)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && weft.KindOf(err) != weft.Unavailable:
			return err
		case err != nil && !waiting:
			r.log.Warn("systemd does not answer; trying on", "error", err)
		case err == nil && s.active:
			if err := r.keepUnit(ctx, s.pid); err != nil {
				return err
			}
			waiting = false
		case !waiting:
			r.log.Info("the unit is not active; it is registered when it is", "unit", r.config.Unit)
		}
		waiting = waiting || err != nil || !s.active
		select {
		case <-ctx.Done():
		case <-time.After(unitInterval):
		}
	}
	return nil
}

// keepUnit keeps an active unit registered until it is not, or has another process.
func (r *registrar) keepUnit(ctx context.Context, pid int) error {
	u := &life{pid: pid, done: make(chan struct{})}
	watching, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	var gone <-chan struct{}
	if p, err := watchProcess(pid); pid > 0 && err == nil {
		defer p.close()
		gone = p.exited() // sooner than systemd is asked again
	}
	work.Go(func() {
		defer close(u.done)
		tick := time.NewTicker(unitInterval)
		defer tick.Stop()
		for {
			select {
			case <-watching.Done():
				return
			case <-gone:
				return
			case <-tick.C:
			}
			s, err := askUnit(watching, r.config.Unit)
			if err == nil && (!s.active || s.pid != pid) || weft.KindOf(err) == weft.NotFound && err != nil {
				return
			}
		}
	})
	return r.keep(ctx, u)
}

// life is one run of a unit.
type life struct {
	pid  int
	done chan struct{}
}

func (l *life) id() int                 { return l.pid }
func (l *life) exited() <-chan struct{} { return l.done }
