package soak

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a weft process, or an application, that is started again and again.
type process struct {
	name    string
	program string
	args    []string
	env     []string
	log     string // file
	weft    bool   // it says when it is ready
	led     *ledger

	mu    sync.Mutex // held by who starts, ends or replaces it
	ended chan struct{}

	state   sync.Mutex // guards what follows
	wanted  bool       // nobody has ended it
	first   int        // process id
	serving int        // process id, another one after an upgrade
	app     int        // process id of the application that it runs, or 0
	admin   string
	fresh   usage // after its first start
}

func (p *process) set(change func()) { p.state.Lock(); defer p.state.Unlock(); change() }

// pid of the process that serves.
func (p *process) pid() int { p.state.Lock(); defer p.state.Unlock(); return p.serving }

func (p *process) appPID() int { p.state.Lock(); defer p.state.Unlock(); return p.app }

// start starts it and waits until it is ready. The caller holds p.mu.
func (p *process) start() error {
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	from, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := exec.Command(p.program, p.args...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	ended := make(chan struct{})
	started := make(chan error)
	go p.run(cmd, started, ended)
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.ended = ended
	p.set(func() { p.wanted, p.first, p.serving, p.app = true, cmd.Process.Pid, cmd.Process.Pid, 0 })
	if !p.weft {
		return nil
	}
	return p.awaitReady(from, 30*time.Second)
}

// run keeps its thread for as long as the child lives: Pdeathsig comes when the
// thread that started the child ends.
func (p *process) run(cmd *exec.Cmd, started chan<- error, ended chan struct{}) {
	defer close(ended)
	runtime.LockOSThread()
	err := cmd.Start()
	started <- err
	if err != nil {
		return
	}
	err = cmd.Wait()
	p.state.Lock()
	wanted, replaced := p.wanted && p.first == cmd.Process.Pid, p.serving != p.first
	p.state.Unlock()
	if wanted && !(replaced && err == nil) {
		p.led.Complain("%s (%d) ended by itself: %v", p.name, cmd.Process.Pid, err)
	}
}

// awaitReady reads the log from an offset on until a process says that it is ready.
func (p *process) awaitReady(from int64, wait time.Duration) error {
	for deadline := time.Now().Add(wait); ; {
		lines, err := p.ready(from)
		if err != nil {
			return err
		}
		if n := len(lines); n > 0 {
			last := lines[n-1]
			p.set(func() { p.serving, p.app, p.admin = last.PID, last.App, last.Admin })
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended instead of becoming ready: %s", p.name, p.tail())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready after %s: %s", p.name, wait, p.tail())
		}
	}
}

// readyLine is how a weft process tells its addresses.
type readyLine struct {
	Msg      string `json:"msg"`
	PID      int    `json:"pid"`
	App      int    `json:"app_pid"`
	Admin    string `json:"admin"`
	HTTP     string `json:"http"`
	Outbound string `json:"outbound"`
}

func (p *process) ready(from int64) (found []readyLine, err error) {
	f, err := os.Open(p.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return nil, err
	}
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var line readyLine
		if json.Unmarshal(in.Bytes(), &line) == nil && line.Msg == "ready" {
			found = append(found, line)
		}
	}
	return found, in.Err()
}

func (p *process) size() int64 {
	info, err := os.Stat(p.log)
	if err != nil {
		return 0
	}
	return info.Size()
}

func (p *process) tail() string {
	b, _ := os.ReadFile(p.log)
	return string(b[max(0, len(b)-2000):])
}

// signal sends to the process that serves.
func (p *process) signal(s syscall.Signal) { signal(p.pid(), s) }

func signal(pid int, s syscall.Signal) {
	if pid > 0 {
		_ = syscall.Kill(pid, s)
	}
}

// end ends it by a signal to pid, and waits until all of it is gone. What was
// upgraded may have a parent that serves nothing. The caller holds p.mu.
func (p *process) end(pid int, s syscall.Signal) error {
	p.set(func() { p.wanted = false })
	signal(pid, s)
	const wait = 40 * time.Second
	select {
	case <-p.ended:
	case <-time.After(wait):
		p.state.Lock()
		first, serving := p.first, p.serving
		p.state.Unlock()
		signal(serving, syscall.SIGKILL)
		signal(first, syscall.SIGKILL)
		<-p.ended
		return fmt.Errorf("%s was there %s after %s to %d", p.name, wait, s, pid)
	}
	for deadline := time.Now().Add(wait); exists(p.pid()); {
		if time.Now().After(deadline) {
			p.signal(syscall.SIGKILL)
			return fmt.Errorf("%s: process %d was there %s after %s", p.name, p.pid(), wait, s)
		}
		<-time.After(10 * time.Millisecond)
	}
	return nil
}

// exists says whether a process runs; one that only waits for its parent does not.
func exists(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// restart ends it by a signal to one of its processes, and starts it again.
func (p *process) restart(whom func() int, s syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pid := whom() // now: it may have been another before
	if pid == 0 {
		return nil
	}
	return errors.Join(p.end(pid, s), p.start())
}

// upgrade replaces it by a new process, as `weft upgrade` does.
func (p *process) upgrade(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	from, old := p.size(), p.pid()
	ctx, cancel := context.WithTimeout(ctx, 70*time.Second)
	defer cancel()
	// The old process may end before we know of the new one.
	p.set(func() { p.serving = 0 })
	out, err := exec.CommandContext(ctx, p.program, "upgrade", strconv.Itoa(old)).CombinedOutput()
	if err != nil {
		p.set(func() { p.serving = old })
		return fmt.Errorf("upgrade %s (%d): %w: %s", p.name, old, err, out)
	}
	return p.awaitReady(from, 10*time.Second)
}

// usage of a process.
type usage struct{ files, threads, goroutines, kilobytes int }

var (
	threads   = regexp.MustCompile(`(?m)^Threads:\s+(\d+)$`)
	anonymous = regexp.MustCompile(`(?m)^RssAnon:\s+(\d+) kB$`)
	routines  = regexp.MustCompile(`(?m)^go_goroutines (\d+)$`)
)

func (p *process) usage() (u usage, err error) {
	pid := p.pid()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return u, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	p.state.Lock()
	admin := p.admin
	p.state.Unlock()
	resp, err := admins.Get("http://" + admin + "/metrics")
	if err != nil {
		return u, err
	}
	defer resp.Body.Close()
	metrics, err := io.ReadAll(resp.Body)
	if err != nil {
		return u, err
	}
	return usage{len(files), only(threads, text), only(routines, metrics), only(anonymous, text)}, nil
}

var admins = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func only(what *regexp.Regexp, text []byte) int {
	m := what.FindSubmatch(text)
	if m == nil {
		return -1
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n
}

// bad is what no log may have in it.
var bad = regexp.MustCompile(`panic:|DATA RACE|fatal error:|WRONG:|SIGSEGV|concurrent map`)

// searchLogs complains about what was printed.
func searchLogs(l *ledger, dir string) {
	logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	if len(logs) == 0 {
		l.Complain("there are no logs in %s", dir)
	}
	for _, name := range logs {
		b, err := os.ReadFile(name)
		if err != nil {
			l.Complain("%v", err)
			continue
		}
		all := bad.FindAllIndex(b, -1)
		const shown = 3
		for i, at := range all {
			if i == shown {
				l.Complain("%s: %d times more", filepath.Base(name), len(all)-shown)
				break
			}
			l.Complain("%s:\n%s", filepath.Base(name), b[max(0, at[0]-200):min(len(b), at[1]+3000)])
		}
	}
}
