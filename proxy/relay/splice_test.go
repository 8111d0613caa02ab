package relay

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"
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
	if runtime.GOOS != "linux" {
		t.Skip("splice(2) is Linux's")
	}
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

// TestStalledPipe: an interrupted lane closes its pipe, for there are bytes in it.
func TestStalledPipe(t *testing.T) {
	client, c := tcpPair(t)
	_, s := tcpPair(t)
	before := pipesInUse()
	r, result := start(t, Side{Conn: c}, Side{Conn: s}, Config{})
	stall(t, client)
	if runtime.GOOS == "linux" && pipesInUse() != before+1 {
		t.Errorf("%d pipes in use; want %d", pipesInUse(), before+1)
	}
	r.Interrupt()
	wait(t, result)
	if pipesInUse() != before {
		t.Errorf("%d pipes in use; want %d", pipesInUse(), before)
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

// TestAllocates: once a relay runs, messages and bulk allocate nothing.
func TestAllocates(t *testing.T) {
	for name, makeLane := range lanes {
		t.Run(name, func(t *testing.T) {
			if raceEnabled {
				t.Skip("the race detector's pools lose buffers on purpose")
			}
			client, c := makeLane(t)
			server, s := makeLane(t)
			if name == "tls" {
				t.Skip("TLS itself allocates")
			}
			start(t, c, s, Config{})
			for _, size := range []int{100, 100 << 10} { // fits the kernel's buffers, and needs a pipe
				in, out := make([]byte, size), make([]byte, size)
				if n := testing.AllocsPerRun(100, func() {
					if _, err := client.Write(out); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(server, in); err != nil {
						t.Fatal(err)
					}
				}); n != 0 {
					t.Errorf("%d bytes: %v allocations", size, n)
				}
			}
		})
	}
}

// TestIdleMemory: ten thousand idle relays are cheap.
func TestIdleMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has memory of its own")
	}
	if got := idleBytes(t, 200); got > 8<<10 {
		t.Errorf("%d bytes an idle relay", got)
	}
}

// idleBytes measures what an idle relay between TCP sockets costs after it has
// carried messages both ways: heap and both goroutines' stacks, but for the sockets.
func idleBytes(t testing.TB, n int) int64 {
	t.Helper()
	clients, servers := make([]*net.TCPConn, n), make([]*net.TCPConn, n)
	relays := make([]*Relay, n)
	inner := make([][2]*net.TCPConn, n)
	for i := range n {
		clients[i], inner[i][0] = tcpPair(t)
		servers[i], inner[i][1] = tcpPair(t)
	}
	before := memory()
	results := make(chan Result, n)
	for i := range n {
		relays[i] = New(Side{Conn: inner[i][0]}, Side{Conn: inner[i][1]}, Config{})
		go func() { results <- relays[i].Run() }()
	}
	for i := range n {
		say(t, clients[i], "question")
		hear(t, servers[i], "question")
		say(t, servers[i], "answer")
		hear(t, clients[i], "answer")
	}
	after := memory()
	for i := range n {
		relays[i].Interrupt()
	}
	for range n {
		<-results
	}
	return (after - before) / int64(n)
}

func memory() int64 {
	runtime.GC()
	runtime.GC() // pools give up what they hold only now
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
