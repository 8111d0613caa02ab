package proxy

import (
	"io"
	"net"
	"testing"
	"time"
)

// TestLateNudge: the sweeper nudges at the moment at which the answer arrives. What
// then reads from the socket, the kernel's own copying included, sees nothing of it.
func TestLateNudge(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sock, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_ = other.SetDeadline(time.Now().Add(10 * time.Second))
	answered := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(other, make([]byte, len("request")))
		if err == nil {
			_, err = other.Write([]byte("head"))
		}
		answered <- err
	}()

	x := &Exchange{}
	u := &link{sock: sock, x: x}
	if u.raw, err = sock.(*net.TCPConn).SyscallConn(); err != nil {
		t.Fatal(err)
	}
	u.pass = func(fd uintptr) bool {
		done := u.step(fd)
		if u.w > 0 {
			x.nudge()
		}
		return done
	}
	x.hold(u)
	if _, err := u.sendAndWait(x, []byte("request")); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil || u.w == 0 {
		t.Fatal("there is no head", err)
	}
	if _, err := other.Write([]byte("body")); err != nil {
		t.Fatal(err)
	}
	if n, err := sock.Read(make([]byte, 4)); n == 0 {
		t.Errorf("the body was not to be read: %v", err)
	}
}
