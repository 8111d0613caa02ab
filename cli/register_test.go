package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft/client"
)

// registry stands for a server: it writes down what instances say.
type registry struct {
	*testing.T
	addr string

	mu   sync.Mutex
	away bool
	said []string // "register web 80 passing", "beat critical", "drain"
	last client.Registration
}

func newRegistry(t *testing.T) *registry {
	r := &registry{T: t}
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	r.addr = s.Listener.Addr().String()
	return r
}

func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `{"kind":"unavailable","message":"no quorum"}`)
		return
	}
	body, _ := io.ReadAll(q.Body)
	switch q.Method {
	case http.MethodPost:
		r.last = client.Registration{}
		_ = json.Unmarshal(body, &r.last)
		r.said = append(r.said, fmt.Sprintf("register %s %s", r.last.Service, r.last.Health))
		_ = json.NewEncoder(w).Encode(client.Leased{ID: r.last.ID, TTL: r.last.TTL, Index: 1})
	case http.MethodPut:
		var beat client.Heartbeat
		_ = json.Unmarshal(body, &beat)
		if said := "beat " + beat.Health.String(); r.said[len(r.said)-1] != said {
			r.said = append(r.said, said)
		}
		w.WriteHeader(http.StatusNoContent)
	case http.MethodDelete:
		r.said = append(r.said, "drain")
		_, _ = io.WriteString(w, `{"index":2}`)
	}
}

func (r *registry) heard() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.said, ", ")
}

func (r *registry) registration() client.Registration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

func (r *registry) eventually(want string) {
	r.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for r.heard() != want {
		if time.Now().After(deadline) {
			r.Fatalf("heard %q, want %q", r.heard(), want)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// began is a `weft register` that runs.
type began struct {
	t        *testing.T
	stop     context.CancelFunc
	done     chan int
	out, err *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (r *registry) begin(args ...string) *began {
	ctx, stop := context.WithCancel(r.Context())
	b := &began{r.T, stop, make(chan int, 1), &lockedBuffer{}, &lockedBuffer{}}
	a := &app{in: strings.NewReader(""), out: b.out, err: b.err}
	root := a.root()
	root.SetArgs(append([]string{"register", "--addr", r.addr}, args...))
	go func() {
		cmd, err := root.ExecuteContextC(ctx)
		b.done <- a.report(cmd, err)
	}()
	r.Cleanup(stop)
	return b
}

// ends waits for the end, and wants this exit code.
func (b *began) ends(want int) {
	b.t.Helper()
	select {
	case code := <-b.done:
		if code != want {
			b.t.Errorf("ended with %d, want %d: %s", code, want, b.err)
		}
	case <-time.After(20 * time.Second):
		b.t.Fatalf("does not end: %s", b.err)
	}
}

func freePort(t *testing.T) (net.Listener, string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return ln, port
}

func TestRegisterAProgramUntilItEnds(t *testing.T) {
	r := newRegistry(t)
	gate := filepath.Join(t.TempDir(), "gate")
	b := r.begin("--service", "web", "--no-wait", "--tag", "a", "--tag", "b", "--label", "version=v2", "--ttl", "2s", "--zone", "z",
		"--", "sh", "-c", "echo port $PORT; while [ ! -e "+gate+" ]; do sleep 0.02; done; exit 7")
	r.eventually("register web passing")
	in := r.registration()
	if strings.Join(in.Tags, " ") != "a b" || in.Labels["version"] != "v2" || in.TTL.Std() != 2*time.Second || in.Zone != "z" || in.PID == os.Getpid() || in.PID == 0 {
		t.Errorf("%+v", in)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.ends(7)
	r.eventually("register web passing, drain")
	if got := b.out.String(); got != "port "+strconv.Itoa(in.Port)+"\n" {
		t.Errorf("the program was told %q, port %d is registered", got, in.Port)
	}
}

// The instance is drained before the program hears of the end.
func TestRegisterIsInterrupted(t *testing.T) {
	r := newRegistry(t)
	heard := filepath.Join(t.TempDir(), "heard")
	b := r.begin("--service", "web", "--no-wait", "--", "sh", "-c", "trap 'echo term >> "+heard+"; exit 3' TERM; trap 'echo hup >> "+heard+"' HUP; echo ready; while true; do sleep 0.02; done")
	r.eventually("register web passing")
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(b.out.String(), "ready") && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	read := func() string { b, _ := os.ReadFile(heard); return string(b) }
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); read() == "" && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	b.stop()
	b.ends(3)
	r.eventually("register web passing, drain")
	if got := read(); got != "hup\nterm\n" {
		t.Errorf("the program heard %q", got)
	}
}

func TestRegisterWaitsForThePort(t *testing.T) {
	r := newRegistry(t)
	ln, port := freePort(t)
	_ = ln.Close()
	b := r.begin("--service", "web", "--port", port, "--", "sleep", "60")
	ln, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Skip("somebody else has taken the port meanwhile")
	}
	defer ln.Close()
	conn, err := ln.Accept() // it looks
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	r.eventually("register web passing")
	b.stop()
	b.ends(128 + 15)
	r.eventually("register web passing, drain")

	// One that never listens is never registered.
	r2 := newRegistry(t)
	ln2, dead := freePort(t)
	_ = ln2.Close()
	r2.begin("--service", "web", "--port", dead, "--", "sleep", "0.2").ends(0)
	if r2.heard() != "" {
		t.Errorf("heard %q", r2.heard())
	}
}

func TestRegisterTellsWhatTheCheckSays(t *testing.T) {
	var mu sync.Mutex
	status := 500
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.WriteHeader(status)
	}))
	defer app.Close()
	_, port, _ := net.SplitHostPort(app.Listener.Addr().String())
	r := newRegistry(t)
	b := r.begin("--service", "web", "--port", port, "--check-http", app.URL+"/health", "--", "sleep", "60")
	r.eventually("register web critical, beat critical")
	mu.Lock()
	status = 204
	mu.Unlock()
	r.eventually("register web critical, beat critical, beat passing")
	b.stop()
	b.ends(128 + 15)

	r = newRegistry(t)
	b = r.begin("--service", "web", "--port", port, "--check-tcp", app.Listener.Addr().String(), "--", "sleep", "60")
	r.eventually("register web passing, beat passing")
	b.stop()
	b.ends(128 + 15)
}

func TestRegisterAProcessThatRuns(t *testing.T) {
	r := newRegistry(t)
	program := exec.Command("sleep", "60")
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(program.Process.Pid)
	b := r.begin("--service", "web", "--port", "80", "--no-wait", "--pid", pid)
	r.eventually("register web passing")
	if got := r.registration().PID; strconv.Itoa(got) != pid {
		t.Errorf("pid %d, want %s", got, pid)
	}
	b.stop() // it is not ours to end
	b.ends(0)
	r.eventually("register web passing, drain")
	if err := program.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process was ended: %v", err)
	}

	b = r.begin("--service", "web", "--port", "80", "--no-wait", "--pid", pid)
	r.eventually("register web passing, drain, register web passing")
	_ = program.Process.Kill()
	b.ends(0)
	_ = program.Wait() // it was noticed before anybody reaped it
	r.eventually("register web passing, drain, register web passing, drain")
}

// A unit is registered whenever it is active. systemd is played by a script.
func TestRegisterAUnit(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	say := func(text string) {
		if err := os.WriteFile(state+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(state+".new", state); err != nil {
			t.Fatal(err)
		}
	}
	script := "#!/bin/sh\n[ \"$1 $3 $4\" = 'show -- db.service' ] || exit 1\nexec cat " + state + "\n"
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	r := newRegistry(t)
	say("LoadState=loaded\nActiveState=inactive\nMainPID=0\n")
	b := r.begin("--service", "db", "--port", "80", "--no-wait", "--systemd", "db.service")
	say("LoadState=loaded\nActiveState=active\nMainPID=0\n")
	r.eventually("register db passing")
	say("LoadState=loaded\nActiveState=failed\nMainPID=0\n")
	r.eventually("register db passing, drain")
	say("LoadState=loaded\nActiveState=active\nMainPID=0\n")
	r.eventually("register db passing, drain, register db passing")
	b.stop()
	b.ends(0)
	r.eventually("register db passing, drain, register db passing, drain")

	say("LoadState=not-found\nActiveState=inactive\nMainPID=0\n")
	b = r.begin("--service", "db", "--port", "80", "--systemd", "db.service")
	b.ends(exitFailed)
	if !strings.Contains(b.err.String(), "ask for unit db.service: systemd does not know it") {
		t.Errorf("said %s", b.err)
	}
	t.Setenv("PATH", t.TempDir())
	b = r.begin("--service", "db", "--port", "80", "--systemd", "db.service")
	b.ends(exitFailed)
	if !strings.Contains(b.err.String(), "there is no systemctl here") {
		t.Errorf("said %s", b.err)
	}
}

func TestRegisterWaitsForTheServer(t *testing.T) {
	r := newRegistry(t)
	r.away = true
	b := r.begin("--service", "web", "--no-wait", "--", "sleep", "60")
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(b.err.String(), "trying on") && time.Now().Before(deadline); {
		time.Sleep(2 * time.Millisecond)
	}
	r.mu.Lock()
	r.away = false
	r.mu.Unlock()
	r.eventually("register web passing")
	b.stop()
	b.ends(128 + 15)
}
