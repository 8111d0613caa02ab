package node

import (
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/weftmesh/weft"
)

// process is a running child. A nil process is one that somebody else runs: it
// never exits, and ending it does nothing.
type process struct {
	pid  int
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// startProcess runs cmd in a process group of its own: a Ctrl-C on the terminal
// reaches only us, and we end the child when its time has come. Should this
// process be killed, the kernel asks the child to end.
func startProcess(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the starting thread ends, so this
		// goroutine keeps its thread for as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // the exit code is read from ProcessState
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, &weft.Error{Kind: weft.Invalid, Op: "run", Thing: cmd.Path, Err: err}
	}
	p.pid = cmd.Process.Pid
	return p, nil
}

// id is the process id, 0 when it is not known.
func (p *process) id() int {
	if p == nil {
		return 0
	}
	return p.pid
}

func (p *process) exited() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.done
}

// killAfter is how long a child may take to end after SIGTERM.
const killAfter = 15 * time.Second

// end asks the child's whole group to end, waits, and returns the child's exit
// code as a shell would: 128 + n for signal n.
func (p *process) end() int {
	if p == nil {
		return 0
	}
	_ = syscall.Kill(-p.pid, syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(killAfter):
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
		<-p.done
	}
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return p.cmd.ProcessState.ExitCode()
}
