// Package e2e drives the real weft program with real processes over loopback, as
// a user would. It asserts what happens, never how fast.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft/client"
)

// binary is the weft program under test, built once.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "weft-e2e")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "weft")
	build := exec.Command("go", "build", "-o", binary, "github.com/weftmesh/weft/cmd/weft")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build weft:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// demo is a running `weft demo` on free ports.
type demo struct {
	t    *testing.T
	cmd  *exec.Cmd
	data string
	out  *lines

	api, consul, dns, gateway string
	client                    *client.Client
}

// lines collects what a process prints.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.buf.String() }

func (l *lines) Write(b []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.buf.Write(b) }

var addresses = regexp.MustCompile(`API (\S+), Consul (\S+), DNS (\S+)`)

// startDemo waits until the demo says what runs where.
func startDemo(t *testing.T) *demo {
	t.Helper()
	d := &demo{t: t, data: filepath.Join(t.TempDir(), "data"), out: &lines{}}
	free := "127.0.0.1:0"
	d.cmd = exec.Command(binary, "demo", "--data", d.data, "--http", free, "--api", free, "--consul", free, "--eureka", free,
		"--dns", free, "--control", free, "--otlp-http", free, "--otlp-grpc", free)
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.stop)
	eventually(t, 60*time.Second, "the demo to be up", func() error {
		text := d.out.String()
		m := addresses.FindStringSubmatch(text)
		g := regexp.MustCompile(`(?m)^gateway .* (127\.0\.0\.1:\d+) `).FindStringSubmatch(text)
		if m == nil || g == nil || !strings.Contains(text, "logs:") {
			if d.cmd.ProcessState != nil {
				t.Fatalf("the demo ended: %s", text)
			}
			return fmt.Errorf("it printed %q", text)
		}
		d.api, d.consul, d.dns, d.gateway = m[1], m[2], m[3], g[1]
		return nil
	})
	var err error
	if d.client, err = client.New(t.Context(), client.At(d.api)); err != nil {
		t.Fatal(err)
	}
	return d
}

// stop interrupts the demo like Ctrl-C and waits for it.
func (d *demo) stop() {
	if d.cmd.ProcessState != nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGINT)
	done := make(chan error, 1)
	go func() { done <- d.cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(40 * time.Second):
		_ = d.cmd.Process.Kill()
		d.t.Errorf("the demo did not stop: %s", d.out)
	}
	if d.t.Failed() {
		d.dumpLogs()
	}
}

func (d *demo) dumpLogs() {
	d.t.Logf("the demo printed:\n%s", d.out)
	logs, _ := filepath.Glob(filepath.Join(d.data, "logs", "*.log"))
	for _, name := range logs {
		b, _ := os.ReadFile(name)
		if len(b) > 2000 {
			b = b[len(b)-2000:]
		}
		d.t.Logf("--- %s\n%s", filepath.Base(name), b)
	}
}

// eventually polls until check is content.
func eventually(t *testing.T, patience time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s: %v", patience, what, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// weft runs the command line and returns what it printed.
func (d *demo) weft(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(args, "--addr", d.api)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (d *demo) must(args ...string) string {
	d.t.Helper()
	out, err := d.weft(args...)
	if err != nil {
		d.t.Fatalf("weft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// get asks the gateway.
func (d *demo) get(path string) (int, string) {
	d.t.Helper()
	return fetch(d.t, "http://"+d.gateway+path)
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	web := &http.Client{Timeout: 10 * time.Second}
	resp, err := web.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// load calls one URL from several keep-alive clients until stopped.
type load struct {
	done, failed atomic.Int64
	versions     sync.Map // version -> *atomic.Int64
	first        atomic.Pointer[string]
	stopped      chan struct{}
	wait         sync.WaitGroup
}

// startLoad paces calls at about rate a second over n clients.
func startLoad(url string, n, rate int) *load {
	l := &load{stopped: make(chan struct{})}
	transport := &http.Transport{MaxIdleConnsPerHost: n}
	web := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	for range n {
		l.wait.Go(func() {
			tick := time.NewTicker(time.Duration(n) * time.Second / time.Duration(rate))
			defer tick.Stop()
			for {
				select {
				case <-l.stopped:
					return
				case <-tick.C:
					l.call(web, url)
				}
			}
		})
	}
	return l
}

func (l *load) call(web *http.Client, url string) {
	l.done.Add(1)
	resp, err := web.Get(url)
	if err != nil {
		l.fail(err.Error())
		return
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != 200 {
		l.fail(fmt.Sprint(resp.StatusCode, " ", string(body), " ", err))
		return
	}
	var order struct{ Version string }
	_ = json.Unmarshal(body, &order)
	n, _ := l.versions.LoadOrStore(order.Version, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}

func (l *load) fail(why string) {
	l.failed.Add(1)
	l.first.CompareAndSwap(nil, &why)
}

func (l *load) count(version string) int64 {
	n, ok := l.versions.Load(version)
	if !ok {
		return 0
	}
	return n.(*atomic.Int64).Load()
}

func (l *load) stop() {
	close(l.stopped)
	l.wait.Wait()
}

// mustBeClean fails the test when a call failed.
func (l *load) mustBeClean(t *testing.T) {
	t.Helper()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d calls failed, the first: %s", n, l.done.Load(), *l.first.Load())
	}
}

// waitCalls waits until n more calls were made.
func (l *load) waitCalls(t *testing.T, n int64) {
	t.Helper()
	until := l.done.Load() + n
	eventually(t, 60*time.Second, fmt.Sprint(n, " calls"), func() error {
		if got := l.done.Load(); got < until {
			return fmt.Errorf("%d of %d", got, until)
		}
		return nil
	})
}
