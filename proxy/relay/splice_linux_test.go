package relay

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"
)

// pipesInUse are the pipes that lanes hold at this moment.
func pipesInUse() int {
	pipes.mu.Lock()
	defer pipes.mu.Unlock()
	return pipes.open - len(pipes.idle)
}

// noise is bytes that nobody could make up.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

// send says all and ends, in the background.
func send(t testing.TB, c *net.TCPConn, all []byte) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := c.Write(all); err != nil {
			t.Error(err)
		}
		_ = c.CloseWrite()
	}()
	t.Cleanup(func() { <-done })
}

// TestBulkIsSpliced: between TCP sockets, the kernel moves what is more than a
// message, and no pipe stays when it is over. splice(2) itself says how many bytes
// it moved: tryPush counts them.
func TestBulkIsSpliced(t *testing.T) {
	const size = 8 << 20
	client, c := tcpPair(t)
	server, s := tcpPair(t)
	r, result := start(t, Side{Conn: c}, Side{Conn: s}, Config{})
	all := noise(size)
	send(t, client, all)
	got, err := io.ReadAll(server)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(all) {
		t.Fatalf("%d bytes arrived, or others: %v", len(got), err)
	}
	eventually(t, "no lane holds a pipe", func() bool { return pipesInUse() == 0 })
	_ = server.Close()
	checkResult(t, wait(t, result), ClientClosed, size, 0)
	if r.fromClient.piped < size*9/10 {
		t.Errorf("%d of %d bytes were spliced", r.fromClient.piped, size)
	}
}

// TestQuietAfterBulk: a lane holds neither pipe nor buffer while it waits.
func TestQuietAfterBulk(t *testing.T) {
	client, c := tcpPair(t)
	server, s := tcpPair(t)
	r, result := start(t, Side{Conn: c}, Side{Conn: s}, Config{})
	for range 3 {
		all := noise(1 << 20)
		done := make(chan struct{})
		go func() { defer close(done); _, _ = client.Write(all) }()
		got := make([]byte, len(all))
		if _, err := io.ReadFull(server, got); err != nil || !bytes.Equal(got, all) {
			t.Fatal("other bytes arrived", err)
		}
		<-done
		eventually(t, "no lane holds a pipe", func() bool { return pipesInUse() == 0 })
	}
	say(t, client, "a message")
	hear(t, server, "a message")
	r.Interrupt()
	wait(t, result)
	if r.fromClient.buf != nil || r.fromClient.pipe != nil {
		t.Error("a lane that has ended holds something")
	}
}

// TestStalledPipe: a lane that ends in the midst closes its pipe, for there are
// bytes in it.
func TestStalledPipe(t *testing.T) {
	for name, end := range map[string]func(r *Relay, server *net.TCPConn){
		Interrupted: func(r *Relay, _ *net.TCPConn) { r.Interrupt() },
		Reset:       func(_ *Relay, server *net.TCPConn) { resetTCP(t, server) },
	} {
		t.Run(name, func(t *testing.T) {
			client, server, r, result := stallInPipe(t)
			end(r, server)
			if got := wait(t, result); got.Reason != name {
				t.Error(got)
			}
			if n := pipesInUse(); n != 0 {
				t.Errorf("%d pipes in use", n)
			}
			_ = client.SetWriteDeadline(time.Now().Add(patience))
			if _, err := client.Write(make([]byte, 16<<20)); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("the client can go on: %v", err)
			}
		})
	}
}

// stallInPipe returns a relay that waits with bytes in a pipe. Which way a lane goes
// at the moment when nothing fits any more is up to the kernel: it tries until it
// was the pipe.
func stallInPipe(t *testing.T) (client, server *net.TCPConn, r *Relay, result <-chan Result) {
	t.Helper()
	for range 20 {
		client, c := tcpPair(t)
		server, s := tcpPair(t)
		r, result := start(t, Side{Conn: c}, Side{Conn: s}, Config{})
		stall(t, client)
		if pipesInUse() == 1 {
			return client, server, r, result
		}
		r.Interrupt()
		wait(t, result)
	}
	t.Fatal("no relay stalls with bytes in its pipe")
	panic("unreachable")
}

// TestCannotSplice: sockets that the kernel does not splice are copied. Instead of
// a pipe, the lane gets two sockets: between three of them, splice(2) refuses.
func TestCannotSplice(t *testing.T) {
	client, c := tcpPair(t)
	server, s := tcpPair(t)
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	pipes.mu.Lock()
	pipes.open++
	pipes.idle = append(pipes.idle, &pipe{r: fds[0], w: fds[1]})
	pipes.mu.Unlock()
	defer func() { // it is the last one again
		p := takePipe()
		if p.r != fds[0] {
			t.Error("another pipe is on top")
		}
		p.free(false)
	}()
	r, result := start(t, Side{Conn: c}, Side{Conn: s}, Config{})
	all := noise(4 << 20)
	send(t, client, all)
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, all) {
		t.Fatal("other bytes arrived", err)
	}
	_ = server.Close()
	checkResult(t, wait(t, result), ClientClosed, 4<<20, 0)
	if r.fromClient.piped != 0 || !r.fromClient.noPipe {
		t.Error("spliced through sockets")
	}
}

// TestNoMorePipes: a lane that gets none copies.
func TestNoMorePipes(t *testing.T) {
	pipes.mu.Lock()
	idle, open := pipes.idle, pipes.open
	pipes.idle, pipes.open = nil, mostPipes
	pipes.mu.Unlock()
	defer func() {
		pipes.mu.Lock()
		defer pipes.mu.Unlock()
		pipes.idle, pipes.open = idle, open
	}()
	client, c := tcpPair(t)
	server, s := tcpPair(t)
	r, result := start(t, Side{Conn: c}, Side{Conn: s}, Config{})
	all := noise(2 << 20)
	send(t, client, all)
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, all) {
		t.Fatal("other bytes arrived", err)
	}
	_ = server.Close()
	checkResult(t, wait(t, result), ClientClosed, 2<<20, 0)
	if r.fromClient.piped != 0 {
		t.Error("spliced without a pipe")
	}
}
