package handover

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// roleEnv makes the test program the next process of a test.
const roleEnv = "WEFT_HANDOVER_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		if err := play(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// state of the tests' processes.
type state struct{ Secret string }

// play is the next process: it takes over as its role says.
func play(role string) error {
	if role == "deaf" {
		select {}
	}
	p, err := Inherit()
	if err != nil {
		return err
	}
	var s state
	if err := p.State(&s); err != nil {
		return err
	}
	ln, err := p.Listen("door", "")
	if err != nil {
		return err
	}
	switch role {
	case "refuses":
		p.Failed(errors.New("the secret is " + s.Secret))
		return nil
	case "dies":
		return errors.New("as it was told to")
	}
	if err := p.Ready(context.Background()); err != nil {
		return err
	}
	if role == "dies later" {
		return errors.New("as it was told to")
	}
	if err := p.Serving(); err != nil {
		return err
	}
	if l := p.Leash(); l != nil {
		_ = l.Say(Word{PID: os.Getpid()})
		if w, err := l.Hear(); err != nil || !w.Stop {
			return fmt.Errorf("heard %+v, %w", w, err)
		}
		return l.Say(Word{Bye: true, Code: 5})
	}
	conn, err := ln.Accept()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(conn, "%s from %v\n", s.Secret, os.Getenv(handoverEnv) == "")
	return errors.Join(err, conn.Close())
}

// process makes a process that starts the test program again in a role.
func process(t *testing.T, role string) (*Process, net.Listener) {
	t.Helper()
	p, err := Inherit()
	if err != nil {
		t.Fatal(err)
	}
	p.env = append(p.env, roleEnv+"="+role)
	ln, err := p.Listen("door", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close(); p.Close() })
	return p, ln
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// What connects before, during and after the change of processes is answered: the
// queue is the socket's.
func TestTheQueueOutlivesTheListener(t *testing.T) {
	p, ln := process(t, "serves")
	early, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := p.Begin(soon(t), state{"pear"}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Give(soon(t)); err != nil {
		t.Fatal(err)
	}
	p.Close()
	_ = early.SetReadDeadline(time.Now().Add(10 * time.Second))
	if line, err := bufio.NewReader(early).ReadString('\n'); line != "pear from true\n" {
		t.Errorf("%q, %v", line, err)
	}
	if n := len(p.Unused()); n != 0 {
		t.Errorf("%d sockets are still open", n)
	}
}

// However the next process fails, the old one is told why and has its socket.
func TestFailureLeavesEverything(t *testing.T) {
	for role, want := range map[string]string{
		"refuses": "the secret is pear", "dies": "it ended: exit status 1", "deaf": "too slow", "dies later": "it ended: exit status 1",
	} {
		t.Run(role, func(t *testing.T) {
			p, ln := process(t, role)
			patience := 10 * time.Second
			if role == "deaf" {
				patience = 200 * time.Millisecond
			}
			ctx, cancel := context.WithTimeoutCause(t.Context(), patience, errors.New("it was too slow"))
			defer cancel()
			next, err := p.Begin(ctx, state{"pear"}, false)
			if role == "dies later" && err == nil {
				err = next.Give(ctx)
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v; want %q", err, want)
			}
			answered := make(chan error, 1)
			go func() {
				conn, err := ln.Accept()
				if err == nil {
					err = conn.Close()
				}
				answered <- err
			}()
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := <-answered; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNoExecutable(t *testing.T) {
	p, _ := process(t, "serves")
	p.path = filepath.Join(t.TempDir(), "missing")
	if _, err := p.Begin(soon(t), state{}, true); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
}

// A process that stays holds the leash of the next one.
func TestLeash(t *testing.T) {
	p, _ := process(t, "serves")
	next, err := p.Begin(soon(t), state{"pear"}, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Give(soon(t)); err != nil {
		t.Fatal(err)
	}
	defer next.Leash.Close()
	hear := func(want Word) {
		t.Helper()
		if w, err := next.Leash.Hear(); w != want || err != nil {
			t.Errorf("heard %+v, %v; want %+v", w, err, want)
		}
	}
	hear(Word{PID: next.PID})
	if err := next.Leash.Say(Word{Stop: true}); err != nil {
		t.Error(err)
	}
	hear(Word{Bye: true, Code: 5})
	if w, err := next.Leash.Hear(); !errors.Is(err, io.EOF) {
		t.Errorf("after its end: %+v, %v", w, err)
	}
	if found, err := os.FindProcess(next.PID); err == nil {
		_, _ = found.Wait()
	}
}

func TestPausedLeashKeepsWords(t *testing.T) {
	a, b := pair(t)
	b.Pause()
	if err := a.Say(Word{Stop: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Hear(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("heard while paused: %v", err)
	}
	b.Resume()
	if _, err := a.conn.Write([]byte("of a later version")); err != nil {
		t.Fatal(err)
	}
	if err := a.Say(Word{Exited: true, Code: 3}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []Word{{Stop: true}, {Exited: true, Code: 3}} {
		if w, err := b.Hear(); w != want || err != nil {
			t.Errorf("heard %+v, %v; want %+v", w, err, want)
		}
	}
}

func pair(t *testing.T) (a, b *Leash) {
	t.Helper()
	x, y, err := socketPair(syscall.SOCK_SEQPACKET)
	if err != nil {
		t.Fatal(err)
	}
	if a, err = newLeash(x); err != nil {
		t.Fatal(err)
	}
	if b, err = newLeash(y); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// Sockets as systemd gives them, to a process of its own: they begin at 3.
func TestSocketActivation(t *testing.T) {
	if os.Getenv("WEFT_ACTIVATED") != "" {
		activated(t)
		return
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	run := func(names string, count int) string {
		// The shell's process id is that of the program that it becomes.
		cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run '^TestSocketActivation$' -test.v`, os.Args[0])
		cmd.Env = append(os.Environ(), "WEFT_ACTIVATED="+ln.Addr().String(), "LISTEN_FDNAMES="+names, fmt.Sprint("LISTEN_FDS=", count))
		cmd.ExtraFiles = []*os.File{f}
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	if out := run("http", 1); !strings.Contains(out, "--- PASS") {
		t.Error(out)
	}
	for _, names := range []string{"", "http"} {
		if out := run(names, 2); !strings.Contains(out, "FileDescriptorName=") {
			t.Errorf("names %q of 2: %s", names, out)
		}
	}
}

func activated(t *testing.T) {
	p, err := Inherit()
	if err != nil {
		t.Fatal(err)
	}
	if unused := p.Unused("http"); len(unused) > 0 {
		t.Errorf("unused: %v", unused)
	}
	ln, err := p.Listen("http", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if got := ln.Addr().String(); got != os.Getenv("WEFT_ACTIVATED") {
		t.Errorf("listens on %s", got)
	}
	_, set := os.LookupEnv(listenFDs)
	if set || slices.ContainsFunc(p.env, func(s string) bool { return strings.HasPrefix(s, "LISTEN_") }) {
		t.Error("children would believe that the sockets are theirs")
	}
}

// Who has replaced the file at the path by which a process was started means it.
func TestExecutableIsThePathOfTheStart(t *testing.T) {
	link := filepath.Join(t.TempDir(), "weft")
	if err := os.Symlink(os.Args[0], link); err != nil {
		t.Fatal(err)
	}
	was := os.Args[0]
	defer func() { os.Args[0] = was }()
	os.Args[0] = link
	if got := executable(); got != link {
		t.Errorf("%s, want the link %s", got, link)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	os.Args[0] = "no-such-program"
	if got := executable(); got != self {
		t.Errorf("%s, want %s", got, self)
	}
}

func TestNotify(t *testing.T) {
	var nobody *Process
	if err := nobody.Notify(Started); err != nil {
		t.Error(err)
	}
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@" + t.Name()} {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		p := &Process{notify: name}
		if err := p.Notify(MovedTo(42)); err != nil {
			t.Error(err)
		}
		b := make([]byte, 100)
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := conn.Read(b); string(b[:n]) != "MAINPID=42\nREADY=1" {
			t.Errorf("%s: %q, %v", name, b[:n], err)
		}
	}
	if !strings.HasPrefix(Reloading(), "RELOADING=1\nMONOTONIC_USEC=") {
		t.Error(Reloading())
	}
}

func TestDoor(t *testing.T) {
	if _, err := Ask(soon(t), os.Getpid()); err == nil || !strings.Contains(err.Error(), "no weft process") {
		t.Errorf("without a door: %v", err)
	}
	d, err := OpenDoor()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDoor(); err == nil {
		t.Error("a second door of one process")
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(func() Reply { return Reply{Said: "done"} }) }()
	for range 2 {
		if r, err := Ask(soon(t), os.Getpid()); r.Said != "done" || err != nil {
			t.Errorf("%+v, %v", r, err)
		}
	}
	d.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	// Somebody else at the door of a process is not believed.
	other, err := net.ListenUnix("unix", &net.UnixAddr{Name: doorName(1), Net: "unix"})
	if err != nil {
		t.Skip("process 1 has a door here:", err)
	}
	defer other.Close()
	if _, err := Ask(soon(t), 1); err == nil || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("a door of another process: %v", err)
	}
}

// A process that nobody can replace only listens.
func TestNilProcess(t *testing.T) {
	var p *Process
	ln, err := p.Listen("door", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	packets, err := p.ListenPacket("packets", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	if p.Inherited() || p.Leash() != nil || p.Supervised() || p.Unused() != nil || p.Ready(t.Context()) != nil || p.Serving() != nil {
		t.Error("it is nobody's")
	}
	_, _ = ln.Close(), packets.Close()
}

func TestPacketsWaitToo(t *testing.T) {
	p := &Process{sockets: map[string]int{}}
	defer p.Close()
	first, err := p.ListenPacket("dns", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := first.LocalAddr().String()
	_ = first.Close()
	conn, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	second, err := p.ListenPacket("dns", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	b := make([]byte, 100)
	_ = second.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, _, err := second.ReadFrom(b); string(b[:n]) != "question" {
		t.Errorf("%q, %v", b[:n], err)
	}
}
