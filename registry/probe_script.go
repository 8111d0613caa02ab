package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/weftmesh/weft"
)

// scriptsAreOff is what a script check says where they are off: whoever may register
// one may run what he likes on the server.
const scriptsAreOff = "script checks are off on this server; whoever may register one may run any program there, so they have to be enabled in its configuration"

// allow refuses checks that this server must not run.
func (r *Registry) allow(op, thing string, checks []weft.Check) error {
	for i := range checks {
		if checks[i].Kind == weft.ScriptCheck && !r.scripts {
			return weft.Errorf(weft.Denied, op, thing, "checks[%d].kind: %s", i, scriptsAreOff)
		}
	}
	return nil
}

// allowOp refuses an operation of a transaction with such checks.
func (r *Registry) allowOp(o *Op) error {
	switch {
	case o.Service != nil:
		return r.allow("register", "instance "+o.Service.Instance.ID, o.Service.Instance.Checks)
	case o.Node != nil:
		return r.allow("register", "node "+o.Node.Node.Name, o.Node.Node.Checks)
	case o.Check != nil:
		return r.allow("set", "check "+o.Check.Check.ID, []weft.Check{o.Check.Check})
	}
	return nil
}

// runScript finds exit code 0 passing, 1 warning, and everything else critical. The
// script's whole process group is gone when it returns.
func runScript(ctx context.Context, c *weft.Check) (weft.Health, string) {
	var output tail
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.Env = scriptEnviron()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return killGroup(cmd.Process.Pid) }
	cmd.WaitDelay = time.Second // for who left the group and holds the output open
	if err := cmd.Start(); err != nil {
		return weft.Critical, err.Error()
	}
	err := cmd.Wait()
	killGroup(cmd.Process.Pid) // what it left behind; mostly nothing
	var exit *exec.ExitError
	switch {
	case err == nil:
		return weft.Passing, output.String()
	case ctx.Err() != nil:
		return weft.Critical, fmt.Sprintf("%s was stopped: it took longer than %s. Output: %s", c.Args[0], timeoutOf(c), output.String())
	case errors.Is(err, exec.ErrWaitDelay): // it ended well, and something that it began had its output
		return weft.Passing, output.String()
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return weft.Warning, output.String()
	}
	return weft.Critical, fmt.Sprintf("%s: %v. Output: %s", c.Args[0], err, output.String())
}

func killGroup(pid int) error { return syscall.Kill(-pid, syscall.SIGKILL) }

// scriptEnviron is what a script gets of the server's environment: where programs
// are, and who and where it is. The rest may have secrets.
func scriptEnviron() (env []string) {
	for _, name := range []string{"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// tail keeps the last maxOutput bytes that are written to it: what a script says in
// the end is why it failed. exec writes from one goroutine, which has ended when
// Wait returns.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p[max(len(p)-maxOutput, 0):]...)
	if len(t.b) > maxOutput {
		t.b = append(t.b[:0], t.b[len(t.b)-maxOutput:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.b) }
