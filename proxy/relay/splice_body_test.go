package relay

import (
	"bytes"
	"io"
	"math/rand"
	"net"
	"syscall"
	"testing"
	"time"
)

// counter is a Meter that counts, and checks the order of calls.
type counter struct {
	t     *testing.T
	waits bool
	n     int64
}

func (c *counter) Waits()      { c.waits = true }
func (c *counter) Moved(n int) { c.n += int64(n) }
func (c *counter) Rests() {
	if !c.waits {
		c.t.Error("rests without having waited")
	}
	c.waits = false
}

func sockets(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	for _, c := range []net.Conn{a, b} {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

func rawOf(t *testing.T, c *net.TCPConn) syscall.RawConn {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestSpliceMovesExactlyABody(t *testing.T) {
	for _, size := range []int{1, 100_000, 3 << 20} {
		server, up := sockets(t)
		down, client := sockets(t)
		body := make([]byte, size)
		_, _ = rand.New(rand.NewSource(int64(size))).Read(body)
		go func() {
			_, _ = server.Write(body)
			_, _ = server.Write([]byte("the next response"))
		}()
		got := make(chan []byte, 1)
		go func() {
			b := make([]byte, size)
			_, _ = io.ReadFull(client, b)
			got <- b
		}()
		m := &counter{t: t}
		moved, from, to := Splice(rawOf(t, down), rawOf(t, up), int64(size), m)
		if moved != int64(size) || from != nil || to != nil || m.n != moved {
			t.Fatalf("%d bytes: moved %d (told %d), %v, %v", size, moved, m.n, from, to)
		}
		if !bytes.Equal(<-got, body) {
			t.Errorf("%d bytes arrived changed", size)
		}
		rest := make([]byte, 17)
		if _, err := io.ReadFull(up, rest); err != nil || string(rest) != "the next response" {
			t.Errorf("behind the body: %q, %v", rest, err)
		}
	}
}

func TestSpliceTellsWhichSideFailed(t *testing.T) {
	server, up := sockets(t)
	down, _ := sockets(t)
	_, _ = server.Write([]byte("short"))
	server.Close()
	if moved, from, to := Splice(rawOf(t, down), rawOf(t, up), 100, &counter{t: t}); moved != 5 || from != io.ErrUnexpectedEOF || to != nil {
		t.Errorf("the source ends: %d, %v, %v", moved, from, to)
	}

	server, up = sockets(t)
	down, client := sockets(t)
	_ = client.SetLinger(0)
	client.Close()
	go func() {
		b := make([]byte, 64<<10)
		for {
			if _, err := server.Write(b); err != nil {
				return
			}
		}
	}()
	if _, from, to := Splice(rawOf(t, down), rawOf(t, up), 1<<30, &counter{t: t}); from != nil || to == nil {
		t.Errorf("the destination is gone: %v, %v", from, to)
	}
	up.Close()

	_, up = sockets(t)
	down, _ = sockets(t)
	_ = up.SetReadDeadline(time.Unix(1, 0))
	if _, from, _ := Splice(rawOf(t, down), rawOf(t, up), 10, &counter{t: t}); from == nil {
		t.Error("a deadline did not end it")
	}
}
