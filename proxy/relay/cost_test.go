package relay

import (
	"io"
	"net"
	"runtime"
	"testing"
)

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
