package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is a server under test.
type process struct {
	cmd  *exec.Cmd
	addr string
	in   *os.File // the server ends with it
}

// serverCore is that of the servers; the load has loadCore.
const serverCore = 0

func loadCore() int { return min(1, runtime.NumCPU()-1) }

// pin puts a process, 0 is this one, and all its threads onto a core.
func pin(pid, core int) error {
	var set unix.CPUSet
	set.Set(core)
	tasks := "/proc/self/task"
	if pid != 0 {
		tasks = fmt.Sprintf("/proc/%d/task", pid)
	}
	list, err := os.ReadDir(tasks)
	if err != nil {
		return err
	}
	for _, t := range list {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, &set); err != nil {
			return fmt.Errorf("put thread %d onto core %d: %w", id, core, err)
		}
	}
	return nil
}

// start starts a server, which prints the address that it serves, and waits for it.
func start(name string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "serve", name)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r.Close()
	p := &process{cmd: cmd, in: w}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if addr, ok := strings.CutPrefix(lines.Text(), "serving "); ok {
			p.addr = addr
			go func() { // ends with the process
				for lines.Scan() {
				}
			}()
			return p, pin(cmd.Process.Pid, serverCore)
		}
	}
	return nil, fmt.Errorf("%s did not start: %v", name, cmd.Wait())
}

func (p *process) stop() {
	p.in.Close()
	done := make(chan error, 1)
	go func() { done <- p.cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		p.cmd.Process.Kill()
		<-done
	}
}

// cpuTime is what the process has used until now, user and system.
func (p *process) cpuTime() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil // USER_HZ is 100
}

var perSecond = regexp.MustCompile(`Queries per second:\s+([0-9.]+)`)

// dnsperf is what Debian's dnsperf measures, 0 where it is not installed.
func dnsperf(addr string, length time.Duration) (float64, error) {
	path, err := exec.LookPath("dnsperf")
	if err != nil {
		return 0, nil
	}
	questions, err := os.CreateTemp("", "dnsperf")
	if err != nil {
		return 0, err
	}
	defer os.Remove(questions.Name())
	_, err = questions.WriteString(name + " A\n")
	if err = errors.Join(err, questions.Close()); err != nil {
		return 0, err
	}
	host, port, _ := strings.Cut(addr, ":")
	cmd := exec.Command(path, "-d", questions.Name(), "-s", host, "-p", port, "-l", fmt.Sprint(max(1, int(length.Seconds()))), "-c", "4", "-q", "128")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("dnsperf: %w: %s", err, out)
	}
	m := perSecond.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("dnsperf says nothing: %s", out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}
