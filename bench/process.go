package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cores of a run.
type cores struct {
	proxy int // the proxies under test and nothing else
	load  int // backend, load generator, and weft's server
}

// twoCores takes the first two that this process may run on.
func twoCores() (cores, error) {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return cores{}, fmt.Errorf("which cores may be used: %w", err)
	}
	var found []int
	for cpu := 0; cpu < 1024 && len(found) < 2; cpu++ {
		if may.IsSet(cpu) {
			found = append(found, cpu)
		}
	}
	if len(found) < 2 {
		return cores{}, errors.New("needs two cores: the proxy alone on one, backend and load on the other")
	}
	return cores{proxy: found[0], load: found[1]}, nil
}

// rig is what runs during a lane. Its stop ends every process that it started.
type rig struct {
	dir      string // of the lane, for configuration and logs
	weft     string // the program under test
	cores    cores
	children []*process
}

// process is a child on a core of its own choice.
type process struct {
	name string
	pid  int
	log  string        // file with what it printed
	done chan struct{} // closed when it has ended; err is set then
	err  error
}

// start runs a program on one core. What it prints goes to a file.
func (r *rig) start(core int, name, program string, args ...string) (*process, error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, err
	}
	p := &process{name: name, log: filepath.Join(r.dir, fmt.Sprintf("%02d-%s.log", len(r.children), name)), done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.dir, out, out
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	// A group of its own, so that a Ctrl-C on the terminal reaches only us; and an
	// end by the kernel, should this process be killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	go p.run(cmd, core, started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.pid = cmd.Process.Pid
	r.children = append(r.children, p)
	return p, nil
}

// run starts and awaits cmd from a thread that has the child's core, because a
// child inherits it, and that lives as long as the child, because Pdeathsig comes
// when the thread ends. The thread is never unlocked: it ends with the goroutine.
func (p *process) run(cmd *exec.Cmd, core int, started chan<- error) {
	defer close(p.done)
	runtime.LockOSThread()
	var one unix.CPUSet
	one.Set(core)
	err := unix.SchedSetaffinity(0, &one)
	if err == nil {
		err = cmd.Start()
	}
	started <- err
	if err == nil {
		p.err = cmd.Wait()
	}
}

// killAfter is how long a child may take to end after SIGTERM.
const killAfter = 15 * time.Second

// stop ends all children, the last one first.
func (r *rig) stop() error {
	for i := len(r.children) - 1; i >= 0; i-- {
		r.children[i].stop()
	}
	r.children = nil
	return os.RemoveAll(r.dir)
}

func (p *process) stop() {
	select {
	case <-p.done:
		return
	default:
	}
	_ = syscall.Kill(p.pid, syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(killAfter):
		_ = syscall.Kill(-p.pid, syscall.SIGKILL) // its group: it may have workers
		<-p.done
	}
}

// output runs a program to its end and returns what it printed.
func (r *rig) output(ctx context.Context, core int, name, program string, args ...string) (string, error) {
	p, err := r.start(core, name, program, args...)
	if err != nil {
		return "", err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		p.stop()
		return "", fmt.Errorf("%s: %w", name, context.Cause(ctx))
	}
	text, err := os.ReadFile(p.log)
	if err != nil {
		return "", err
	}
	if p.err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, p.err, text)
	}
	return string(text), nil
}

// startTimeout is how long anything may take until it is there to be measured.
const startTimeout = 30 * time.Second

// printed waits until the process has printed what fits, and returns its groups.
func (p *process) printed(ctx context.Context, what *regexp.Regexp) ([]string, error) {
	var found []string
	err := p.eventually(ctx, func() error {
		text, err := os.ReadFile(p.log)
		if err != nil {
			return err
		}
		if found = what.FindStringSubmatch(string(text)); found == nil {
			return fmt.Errorf("it did not say %s", what)
		}
		return nil
	})
	return found, err
}

// eventually waits until try succeeds; the process must live meanwhile.
func (p *process) eventually(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			err = fmt.Errorf("it ended: %w", errors.Join(p.err, err))
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
			continue
		}
		text, _ := os.ReadFile(p.log) // what it said helps, if it said anything
		return fmt.Errorf("%s: %w\n%s", p.name, err, text)
	}
}

// freePort is for programs that cannot choose one themselves and say which.
func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

// write puts a file into the rig's folder and returns its path.
func (r *rig) write(name, text string) (string, error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(r.dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}
