package world

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Process is a child that ends with its test.
type Process struct {
	Name string
	PID  int

	t    testing.TB
	log  string        // file with what it printed
	done chan struct{} // closed when it has ended
	err  error         // how it ended; set before done is closed
	fine bool          // the test itself ended it
}

// Start runs a program. It is stopped when the test ends, and must live until
// then unless Stop or Kill was called.
func (w *World) Start(name, program string, args ...string) *Process {
	w.t.Helper()
	return Start(w.t, name, program, args...)
}

// Start runs a program without a world.
func Start(t testing.TB, name, program string, args ...string) *Process {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p := &Process{Name: name, t: t, log: out.Name(), done: make(chan struct{})}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	// An end by the kernel, should this process be killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go p.run(cmd, started)
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	p.PID = cmd.Process.Pid
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			t.Logf("--- %s printed:\n%s", name, p.tail())
		}
	})
	return p
}

// run keeps its thread as long as the child lives: Pdeathsig comes when the
// thread that started the child ends.
func (p *Process) run(cmd *exec.Cmd, started chan<- error) {
	defer close(p.done)
	runtime.LockOSThread()
	err := cmd.Start()
	started <- err
	if err == nil {
		p.err = cmd.Wait()
	}
}

// stopTimeout is how long a process may take to drain and end.
const stopTimeout = 20 * time.Second

// Stop ends the process politely and waits for it.
func (p *Process) Stop() {
	p.t.Helper()
	if p.Alive() {
		_ = syscall.Kill(p.PID, syscall.SIGTERM)
	} else if !p.fine {
		p.fine = true
		p.t.Errorf("%s had ended by itself: %v", p.Name, p.err)
	}
	p.fine = true
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		p.t.Errorf("%s did not end in %s", p.Name, stopTimeout)
		p.Kill()
	}
}

// Terminate asks the process to end, as Stop does, but does not wait.
func (p *Process) Terminate() {
	p.fine = true
	_ = syscall.Kill(p.PID, syscall.SIGTERM)
}

// Kill ends the process at once and waits for it.
func (p *Process) Kill() {
	p.fine = true
	if p.Alive() {
		_ = syscall.Kill(p.PID, syscall.SIGKILL)
	}
	<-p.done
}

// Pause and Resume stop the process's clock hands, not its sockets.
func (p *Process) Pause() { _ = syscall.Kill(p.PID, syscall.SIGSTOP) }

// Resume ends a Pause.
func (p *Process) Resume() { _ = syscall.Kill(p.PID, syscall.SIGCONT) }

// Alive says whether the process has not ended yet.
func (p *Process) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Log is what the process has printed.
func (p *Process) Log() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text)
}

// tail is the end of Log.
func (p *Process) tail() string {
	const most = 8 << 10
	text := p.Log()
	return text[max(0, len(text)-most):]
}

// Printed waits until the process has printed what fits, and returns its groups.
func (p *Process) Printed(what *regexp.Regexp) []string {
	p.t.Helper()
	var found []string
	Eventually(p.t, 30*time.Second, p.Name+" to print "+what.String(), func() error {
		if found = what.FindStringSubmatch(p.Log()); found != nil {
			return nil
		}
		if !p.Alive() {
			p.fine = true
			p.t.Fatalf("%s ended: %v\n%s", p.Name, p.err, p.tail())
		}
		return fmt.Errorf("it printed %q", p.tail())
	})
	return found
}

var readyLine = regexp.MustCompile(`(?m)^(\{.*"msg":"ready".*\})$`)

// ready waits for the log line by which a weft process says its addresses.
func (p *Process) ready() map[string]string {
	p.t.Helper()
	var line map[string]any
	if err := json.Unmarshal([]byte(p.Printed(readyLine)[1]), &line); err != nil {
		p.t.Fatalf("%s: ready line: %v", p.Name, err)
	}
	addresses := map[string]string{}
	for key, value := range line {
		if text, ok := value.(string); ok {
			addresses[key] = text
		}
	}
	return addresses
}

// FDs is how many file descriptors the process has open.
func (p *Process) FDs() int {
	p.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(entries)
}

var anonymous = regexp.MustCompile(`(?m)^RssAnon:\s+(\d+) kB$`)

// Memory is the resident memory of the process in bytes that no file is behind.
func (p *Process) Memory() int64 {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		p.t.Fatal(err)
	}
	m := anonymous.FindSubmatch(text)
	if m == nil {
		p.t.Fatalf("%s: its status has no RssAnon", p.Name)
	}
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return kb << 10
}

// Metric adds up a metric's samples that have all the labels, given as
// `name="value"`. It is 0 when there are none.
func (p *Proxy) Metric(name string, labels ...string) float64 {
	p.t.Helper()
	sum, err := p.metric(name, labels)
	if err != nil {
		p.t.Fatal(err)
	}
	return sum
}

func (p *Proxy) metric(name string, labels []string) (sum float64, err error) {
	resp, err := web.Get("http://" + p.Admin + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	in := bufio.NewScanner(io.LimitReader(resp.Body, 16<<20))
	for in.Scan() {
		series, value, ok := cutLast(in.Text(), " ")
		if !ok || !fits(series, name, labels) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %q: %w", p.Name, in.Text(), err)
		}
		sum += v
	}
	return sum, in.Err()
}

// Series is all samples of a metric, a line each.
func (p *Proxy) Series(name string) string {
	p.t.Helper()
	resp, err := web.Get("http://" + p.Admin + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		p.t.Fatal(err)
	}
	var found strings.Builder
	for line := range strings.Lines(string(text)) {
		if series, _, _ := cutLast(line, " "); fits(series, name, nil) {
			found.WriteString(line)
		}
	}
	return found.String()
}

// fits says whether a series, as in name{a="1",b="2"}, is of the metric and has
// the labels.
func fits(series, name string, labels []string) bool {
	got, rest, _ := strings.Cut(series, "{")
	if got != name {
		return false
	}
	rest = "," + strings.TrimSuffix(rest, "}") + ","
	for _, l := range labels {
		if !strings.Contains(rest, ","+l+",") {
			return false
		}
	}
	return true
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
