package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/test/world"
)

// applicationEnv makes the test program an application that `weft run` runs.
const applicationEnv = "WEFT_E2E_APPLICATION"

// The application does not get as far as TestMain, which builds weft.
func init() {
	if os.Getenv(applicationEnv) != "" {
		application()
	}
}

// application answers with its process id, slowly under /slow, and ends with code 7
// under /exit.
func application() {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %d", r.Method, os.Getpid())
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		for i := range slowPieces {
			fmt.Fprintf(w, "piece %04d\n", i)
			_ = http.NewResponseController(w).Flush()
			<-time.After(20 * time.Millisecond)
		}
	})
	mux.HandleFunc("/exit", func(http.ResponseWriter, *http.Request) { os.Exit(7) })
	fmt.Fprintln(os.Stderr, http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), mux))
	os.Exit(1)
}

// slowPieces make a download of three seconds.
const slowPieces = 150

func slowBody() string {
	var b strings.Builder
	for i := range slowPieces {
		fmt.Fprintf(&b, "piece %04d\n", i)
	}
	return b.String()
}

// chain is a server, a gateway and one service, each a process of its own.
type chain struct {
	t      *testing.T
	dir    string
	weft   string // path of the program, which may be replaced
	env    []string
	server *worker
	api    string
	client *client.Client
}

// worker is a weft process and what has come of it.
type worker struct {
	name  string
	cmd   *exec.Cmd
	log   *lines
	ended chan struct{} // closed when the first process has
}

// newChain starts a server.
func newChain(t *testing.T) *chain {
	t.Helper()
	c := &chain{t: t, dir: t.TempDir()}
	c.weft = filepath.Join(c.dir, "weft")
	c.install(binary)
	free := "127.0.0.1:0"
	c.server = c.start("server", nil, "server", "--data", c.data(), "--api", free, "--consul", free, "--eureka", free, "--dns", free,
		"--control", free, "--otlp-http", free, "--otlp-grpc", free)
	facts := c.server.ready(t, 1)
	token, err := os.ReadFile(filepath.Join(c.data(), "join-token"))
	if err != nil {
		t.Fatal(err)
	}
	c.env = []string{"WEFT_TOKEN=" + strings.TrimSpace(string(token))}
	c.api = facts.text("api")
	if c.client, err = client.New(t.Context(), client.At(c.api)); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *chain) data() string { return filepath.Join(c.dir, "data") }

// install puts a program where the workers are started from, as a package manager
// does: by rename, since the file is in use.
func (c *chain) install(program string) {
	c.t.Helper()
	link := c.weft + ".new"
	if err := os.Symlink(program, link); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(link, c.weft); err != nil {
		c.t.Fatal(err)
	}
}

// script installs a shell script.
func (c *chain) script(text string) {
	c.t.Helper()
	path := filepath.Join(c.t.TempDir(), "weft")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		c.t.Fatal(err)
	}
	c.install(path)
}

// start runs weft. When the test ends, whoever serves then is stopped.
func (c *chain) start(name string, env []string, args ...string) *worker {
	c.t.Helper()
	w := &worker{name: name, log: &lines{}, ended: make(chan struct{})}
	w.cmd = exec.Command(c.weft, args...)
	w.cmd.Env = append(append(os.Environ(), c.env...), env...)
	r, out, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	w.cmd.Stdout, w.cmd.Stderr = out, out
	if err := w.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	_ = out.Close()
	read := make(chan struct{}) // closed when the last process of the chain has ended
	go func() { defer close(read); _, _ = io.Copy(w.log, r) }()
	go func() { defer close(w.ended); _ = w.cmd.Wait() }()
	c.t.Cleanup(func() {
		w.stop()
		select {
		case <-read:
		case <-time.After(20 * time.Second):
			c.t.Errorf("%s did not end", name)
		}
		_ = r.Close()
		<-w.ended
		if c.t.Failed() {
			c.t.Logf("--- %s\n%s", name, w.log)
		}
	})
	return w
}

// stop ends whatever process of the chain is left.
func (w *worker) stop() {
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	for _, f := range w.all() {
		_ = syscall.Kill(f.number("pid"), syscall.SIGTERM)
	}
}

type facts map[string]any

func (f facts) text(key string) string { s, _ := f[key].(string); return s }

func (f facts) number(key string) int { n, _ := f[key].(float64); return int(n) }

// all are the "ready" lines so far.
func (w *worker) all() []facts {
	var out []facts
	for line := range strings.Lines(w.log.String()) {
		var f facts
		if json.Unmarshal([]byte(line), &f) == nil && f["msg"] == "ready" {
			out = append(out, f)
		}
	}
	return out
}

// ready waits for the nth "ready" line.
func (w *worker) ready(t *testing.T, n int) facts {
	t.Helper()
	var f facts
	eventually(t, 30*time.Second, fmt.Sprintf("%s to be ready the %d. time", w.name, n), func() error {
		all := w.all()
		if len(all) < n {
			return fmt.Errorf("it said %s", w.log)
		}
		f = all[n-1]
		return nil
	})
	return f
}

// exits waits for the first process's exit code.
func (w *worker) exits(t *testing.T, code int) {
	t.Helper()
	select {
	case <-w.ended:
	case <-time.After(40 * time.Second):
		t.Fatalf("%s did not end", w.name)
	}
	if got := w.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("%s ended with %d, want %d", w.name, got, code)
	}
}

func (c *chain) gateway(env ...string) (*worker, string) {
	c.t.Helper()
	w := c.start("gateway", env, "gateway", "--name", "edge", "--control", c.control(), "--http", "127.0.0.1:0", "--access-log", "off")
	return w, "http://" + w.ready(c.t, 1).text("http")
}

// sidecar runs the application beside a sidecar.
func (c *chain) sidecar(flags ...string) *worker {
	c.t.Helper()
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	args := append([]string{"run", "--service", "hello", "--version", "v1", "--control", c.control(), "--access-log", "off"}, flags...)
	w := c.start("sidecar", []string{applicationEnv + "=1"}, append(args, "--", self)...)
	w.ready(c.t, 1)
	return w
}

func (c *chain) control() string { return c.server.ready(c.t, 1).text("control") }

// route sends what the gateway gets to the service, and waits until it works.
func (c *chain) route(url string) {
	c.t.Helper()
	file := client.File{Name: "edge.yaml", Data: `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: everything}
spec:
  hosts: ["*"]
  gateways: [edge]
  http: [{route: [{destination: {host: hello}}]}]
`}
	if _, err := c.client.Apply(c.t.Context(), []client.File{file}, client.ApplyOptions{}); err != nil {
		c.t.Fatal(err)
	}
	eventually(c.t, 20*time.Second, "the service to answer", func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 {
			return errors.New(resp.Status)
		}
		return nil
	})
}

// upgrade runs `weft upgrade`.
func (c *chain) upgrade(pid int) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "upgrade", strconv.Itoa(pid)).CombinedOutput()
	return string(out), err
}

func (c *chain) mustUpgrade(pid int) {
	c.t.Helper()
	if out, err := c.upgrade(pid); err != nil {
		c.t.Fatalf("upgrade: %v\n%s", err, out)
	}
}

// instance is the only one of the service.
func (c *chain) instance() client.Instance {
	c.t.Helper()
	list, err := c.client.Instances(c.t.Context(), weft.NewServiceName("", "hello"))
	if err != nil || len(list) != 1 {
		c.t.Fatalf("instances: %+v %v", list, err)
	}
	return list[0]
}

// traffic calls from all sides until stopped: kept connections, new ones, and posts
// that nobody may repeat.
type traffic struct {
	done, failed atomic.Int64
	first        atomic.Pointer[string]
	stopped      chan struct{}
	wait         sync.WaitGroup
}

func newTraffic(url string) *traffic {
	l := &traffic{stopped: make(chan struct{})}
	kept := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	fresh := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range 6 {
		l.run(2*time.Millisecond, func() (*http.Response, error) { return kept.Get(url) })
		l.run(5*time.Millisecond, func() (*http.Response, error) { return fresh.Get(url) })
		l.run(2*time.Millisecond, func() (*http.Response, error) { return kept.Post(url, "text/plain", strings.NewReader("order")) })
	}
	return l
}

// run calls once in every pause.
func (l *traffic) run(pause time.Duration, call func() (*http.Response, error)) {
	l.wait.Go(func() {
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for {
			select {
			case <-l.stopped:
				return
			case <-tick.C:
			}
			l.done.Add(1)
			if why := outcome(call()); why != "" {
				l.failed.Add(1)
				l.first.CompareAndSwap(nil, &why)
			}
		}
	})
}

func outcome(resp *http.Response, err error) string {
	if err != nil {
		return err.Error()
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || resp.StatusCode != 200 {
		return fmt.Sprint(resp.Status, " ", string(body), " ", err)
	}
	return ""
}

func (l *traffic) more(t *testing.T, n int64) {
	t.Helper()
	until := l.done.Load() + n
	eventually(t, 60*time.Second, fmt.Sprint(n, " calls"), func() error {
		if got := l.done.Load(); got < until {
			return fmt.Errorf("%d of %d", got, until)
		}
		return nil
	})
}

func (l *traffic) mustBeClean(t *testing.T) {
	t.Helper()
	close(l.stopped)
	l.wait.Wait()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d calls failed, the first: %s", n, l.done.Load(), *l.first.Load())
	}
}

// Every process is replaced under load, the sidecar twice, and nobody notices.
func TestUpgradeUnderLoad(t *testing.T) {
	c := newChain(t)
	sidecar := c.sidecar()
	gateway, url := c.gateway()
	c.route(url)
	before := c.instance()
	index := c.index()
	l := newTraffic(url)
	l.more(t, 500)

	c.mustUpgrade(gateway.cmd.Process.Pid)
	second := gateway.ready(t, 2)
	l.more(t, 500)
	gateway.exits(t, 0)
	if second.number("pid") == gateway.cmd.Process.Pid || "http://"+second.text("http") != url {
		t.Errorf("the new gateway: %v", second)
	}

	c.mustUpgrade(sidecar.cmd.Process.Pid)
	first := sidecar.ready(t, 2).number("pid")
	l.more(t, 500)
	c.mustUpgrade(sidecar.cmd.Process.Pid) // it sends on
	eventually(t, 20*time.Second, "the first replacement to end", func() error { return gone(first) })
	l.more(t, 500)
	select {
	case <-sidecar.ended:
		t.Error("the parent of the application has ended")
	default:
	}
	for n := range 2 {
		f, was := sidecar.ready(t, n+2), sidecar.ready(t, 1)
		if f.number("app_pid") != was.number("app_pid") || f.text("inbound") != was.text("inbound") || f.text("outbound") != was.text("outbound") {
			t.Errorf("replacement %d: %v, was %v", n+1, f, was)
		}
	}
	if now := c.index(); now != index {
		t.Errorf("the instance changed from index %s to %s; want no change at all", index, now)
	}

	pause := c.watchServer()
	c.mustUpgrade(c.server.cmd.Process.Pid)
	c.server.exits(t, 0)
	l.more(t, 500)
	t.Logf("the longest of the server's answers took %s", pause())
	l.mustBeClean(t)
	if after := c.instance(); after.ID != before.ID || after.PID != before.PID || after.Health != weft.Passing {
		t.Errorf("the instance: %+v, was %+v", after, before)
	}
}

// gone reports whether a process has ended, or waits for its parent to notice.
func gone(pid int) error {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err == nil && !bytes.Contains(status, []byte(") Z ")) {
		return fmt.Errorf("process %d is there", pid)
	}
	return nil
}

// index is when the service's instances last changed.
func (c *chain) index() string {
	c.t.Helper()
	resp, err := http.Get("http://" + c.server.ready(c.t, 1).text("consul") + "/v1/health/service/hello")
	if err != nil {
		c.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.Header.Get("X-Consul-Index")
}

// watchServer asks the server all the time, over new connections, over a kept one,
// and with a query that blocks. The test fails when one of them does. It returns
// what tells how long the longest answer took.
func (c *chain) watchServer() (longest func() time.Duration) {
	consul := c.server.ready(c.t, 1).text("consul")
	stopped := make(chan struct{})
	var wait sync.WaitGroup
	var slowest atomic.Int64
	kept := &http.Client{Timeout: 30 * time.Second}
	fresh := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	watch := func(web *http.Client, url string, timed bool) {
		wait.Go(func() {
			for {
				select {
				case <-stopped:
					return
				case <-time.After(2 * time.Millisecond):
				}
				begin := time.Now()
				if why := outcome(web.Get(url)); why != "" {
					c.t.Errorf("%s: %s", url, why)
					return
				}
				if took := int64(time.Since(begin)); timed && took > slowest.Load() {
					slowest.Store(took)
				}
			}
		})
	}
	watch(fresh, "http://"+c.api+"/healthz", true)
	watch(kept, "http://"+c.api+"/api/services", true)
	watch(kept, "http://"+consul+"/v1/health/service/hello?wait=1s&index="+c.index(), false)
	return func() time.Duration {
		close(stopped)
		wait.Wait()
		return time.Duration(slowest.Load())
	}
}

// What is on its way when a process is replaced comes whole.
func TestUpgradeLetsADownloadEnd(t *testing.T) {
	c := newChain(t)
	sidecar := c.sidecar()
	gateway, url := c.gateway()
	c.route(url)
	resp, err := http.Get(url + "/slow")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	firstLine, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	c.mustUpgrade(gateway.cmd.Process.Pid)
	c.mustUpgrade(sidecar.cmd.Process.Pid)
	rest, err := io.ReadAll(in)
	if got := firstLine + string(rest); err != nil || got != slowBody() {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(slowBody()))
	}
	gateway.exits(t, 0)
}

// A drain lets requests in flight end before the application is told to.
func TestPoliteStopIsADrain(t *testing.T) {
	c := newChain(t)
	sidecar := c.sidecar()
	_, url := c.gateway()
	c.route(url)
	resp, err := http.Get(url + "/slow")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := sidecar.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != slowBody() {
		t.Errorf("%d bytes, %v; want %d", len(body), err, len(slowBody()))
	}
	sidecar.exits(t, 128+int(syscall.SIGTERM)) // the application has no handler
}

// After an upgrade `weft run` is still what its parent waits for.
func TestUpgradedSidecarEndsWithItsApplication(t *testing.T) {
	c := newChain(t)
	sidecar := c.sidecar()
	c.mustUpgrade(sidecar.cmd.Process.Pid)
	f := sidecar.ready(t, 2)
	eventually(t, 10*time.Second, "the application to listen", func() error {
		resp, err := http.Get("http://" + f.text("app") + "/exit")
		if err == nil {
			_ = resp.Body.Close()
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		return nil // it ended without an answer
	})
	sidecar.exits(t, 7)
	eventually(t, 10*time.Second, "the data plane to end", func() error { return gone(f.number("pid")) })
	list, err := c.client.Instances(t.Context(), weft.NewServiceName("", "hello"))
	if weft.KindOf(err) != weft.NotFound || len(list) != 0 {
		t.Errorf("still registered: %+v %v", list, err)
	}
}

// SIGTERM to `weft run` reaches the process that serves, and ends everything in
// order.
func TestUpgradedSidecarDrains(t *testing.T) {
	c := newChain(t)
	sidecar := c.sidecar()
	_, url := c.gateway()
	c.route(url)
	c.mustUpgrade(sidecar.cmd.Process.Pid)
	f := sidecar.ready(t, 2)
	resp, err := http.Get(url + "/slow")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := sidecar.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the sidecar to refuse connections", func() error {
		conn, err := net.Dial("tcp", f.text("inbound"))
		if err == nil {
			_ = conn.Close()
			return errors.New("it accepts")
		}
		return nil
	})
	if err := gone(sidecar.cmd.Process.Pid); err == nil {
		t.Error("it ended before the request in flight")
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != slowBody() {
		t.Errorf("%d bytes, %v; want %d", len(body), err, len(slowBody()))
	}
	sidecar.exits(t, 128+int(syscall.SIGTERM))
	eventually(t, 10*time.Second, "the data plane to end", func() error { return gone(f.number("pid")) })
}

// Whichever of the two processes of an upgraded sidecar is killed, the application
// and the other one do not go on alone.
func TestNobodyIsLeftOfAKilledSidecar(t *testing.T) {
	c := newChain(t)
	for _, victim := range []string{"parent", "data plane"} {
		sidecar := c.sidecar()
		c.mustUpgrade(sidecar.cmd.Process.Pid)
		f := sidecar.ready(t, 2)
		pid := f.number("pid")
		if victim == "parent" {
			pid = sidecar.cmd.Process.Pid
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for _, other := range []int{sidecar.cmd.Process.Pid, f.number("pid"), f.number("app_pid")} {
			eventually(t, 20*time.Second, fmt.Sprintf("process %d to end after its %s", other, victim), func() error { return gone(other) })
		}
		if victim == "data plane" {
			sidecar.exits(t, 1)
		}
	}
}

// The door with TLS is handed over like the others.
func TestUpgradeOfATLSDoor(t *testing.T) {
	c := newChain(t)
	c.sidecar()
	certificate := world.NewCertificate(t)
	w := c.start("gateway", nil, "gateway", "--name", "edge", "--control", c.control(), "--http", "127.0.0.1:0",
		"--https", "127.0.0.1:0", "--cert", certificate.Cert, "--key", certificate.Key)
	f := w.ready(t, 1)
	c.route("http://" + f.text("http"))
	call := func() {
		t.Helper()
		web := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{ForceAttemptHTTP2: true, DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{RootCAs: certificate.Pool, ServerName: "localhost"}}}
		resp, err := web.Get("https://" + f.text("https"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
			t.Errorf("%s over %s", resp.Status, resp.Proto)
		}
	}
	call()
	c.mustUpgrade(w.cmd.Process.Pid)
	if now := w.ready(t, 2); now.text("https") != f.text("https") {
		t.Errorf("the door moved from %s to %s", f.text("https"), now.text("https"))
	}
	call()
	w.exits(t, 0)
}

// A new executable that does not work is tried, and the old process goes on.
func TestBrokenUpgradeChangesNothing(t *testing.T) {
	c := newChain(t)
	sidecar := c.sidecar()
	gateway, url := c.gateway()
	c.route(url)
	index := c.index()
	l := newTraffic(url)
	l.more(t, 200)
	everybody := map[string]*worker{"gateway": gateway, "sidecar": sidecar, "server": c.server}

	c.script("exit 3")
	for name, w := range everybody {
		if out, err := c.upgrade(w.cmd.Process.Pid); err == nil || !strings.Contains(out, "exit status 3") || !strings.Contains(out, "goes on") {
			t.Errorf("%s: an executable that fails: %v %s", name, err, out)
		}
	}
	if err := os.Remove(c.weft); err != nil {
		t.Fatal(err)
	}
	if out, err := c.upgrade(gateway.cmd.Process.Pid); err == nil || !strings.Contains(out, "no such file") {
		t.Errorf("no executable: %v %s", err, out)
	}
	// It is ready, but cannot open the state: the old one has to take that back.
	newer := filepath.Join(t.TempDir(), "newer")
	if err := os.MkdirAll(filepath.Join(newer, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(newer, "state", "FORMAT"), []byte("99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.script(fmt.Sprintf("exec %q \"$@\" --data %q", binary, newer))
	if out, err := c.upgrade(c.server.cmd.Process.Pid); err == nil || !strings.Contains(out, "format 99") {
		t.Errorf("a server that cannot open its state: %v %s", err, out)
	}
	l.more(t, 200)
	for name, w := range everybody {
		select {
		case <-w.ended:
			t.Errorf("the %s has ended", name)
		default:
		}
	}
	if now := c.index(); now != index {
		t.Errorf("the instance changed from index %s to %s", index, now)
	}
	c.install(binary)
	for _, w := range everybody {
		c.mustUpgrade(w.cmd.Process.Pid)
	}
	l.more(t, 200)
	l.mustBeClean(t)
	if now := c.index(); now != index {
		t.Errorf("the instance changed from index %s to %s", index, now)
	}
}

// A supervisor with a notify socket is told of the new main process.
func TestSupervisorIsTold(t *testing.T) {
	c := newChain(t)
	address := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	told := func() string {
		t.Helper()
		var b [4096]byte
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := conn.Read(b[:])
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	gateway, _ := c.gateway("NOTIFY_SOCKET=" + address)
	if got := told(); got != "READY=1" {
		t.Errorf("at the start: %q", got)
	}
	c.script("exit 3")
	if _, err := c.upgrade(gateway.cmd.Process.Pid); err == nil {
		t.Error("upgraded to nothing")
	}
	if got := told(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
		t.Errorf("an upgrade begins: %q", got)
	}
	if got := told(); got != "READY=1" {
		t.Errorf("an upgrade failed: %q", got)
	}
	c.install(binary)
	if err := gateway.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	_ = told()
	next := gateway.ready(t, 2).number("pid")
	if got := told(); got != fmt.Sprintf("MAINPID=%d\nREADY=1", next) {
		t.Errorf("an upgrade worked: %q; want %d", got, next)
	}
	gateway.exits(t, 0)
	if err := syscall.Kill(next, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := told(); got != "STOPPING=1" {
		t.Errorf("at the end: %q", got)
	}
}

// A parent that was told to keep its process id passes signals on.
func TestKeepPID(t *testing.T) {
	c := newChain(t)
	w := c.start("gateway", nil, "gateway", "--keep-pid", "--control", c.control(), "--http", "127.0.0.1:0")
	w.ready(t, 1)
	c.mustUpgrade(w.cmd.Process.Pid)
	next := w.ready(t, 2).number("pid")
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	w.exits(t, 0)
	eventually(t, 10*time.Second, "the data plane to end", func() error { return gone(next) })
}

// The demo replaces all of its processes, and its shop goes on.
func TestUpgradeTheDemo(t *testing.T) {
	d := startDemo(t)
	l := startLoad("http://"+d.gateway+"/api/orders/1", 8, 200)
	l.waitCalls(t, 100)
	before := map[string]int{}
	for _, in := range d.instances(t, "order-service") {
		before[in.ID] = in.PID
	}
	out, err := exec.Command(binary, "upgrade", strconv.Itoa(d.cmd.Process.Pid)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), "serves now"); n != 10 {
		t.Errorf("%d processes were replaced, want 10:\n%s", n, out)
	}
	l.waitCalls(t, 200)
	l.stop()
	l.mustBeClean(t)
	for _, in := range d.instances(t, "order-service") {
		if before[in.ID] != in.PID || in.Health != weft.Passing {
			t.Errorf("instance %+v; application was %d", in, before[in.ID])
		}
	}
}
