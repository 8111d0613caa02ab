package relay

import (
	"io"
	"runtime"
	"syscall"
	"testing"
)

// BenchmarkBulk moves bytes one way and shows what that costs the lane itself, not
// its peers, in nanoseconds of CPU a byte.
func BenchmarkBulk(b *testing.B) {
	for _, how := range []string{"splice", "copy"} {
		b.Run(how, func(b *testing.B) {
			client, c := tcpPair(b)
			server, s := tcpPair(b)
			r := New(Side{Conn: c}, Side{Conn: s}, Config{})
			r.fromClient.noPipe = how == "copy"
			used := make(chan int64, 1)
			go func() {
				runtime.LockOSThread()
				before := threadTime()
				_ = r.fromClient.run()
				used <- threadTime() - before
				_ = s.Close()
			}()
			heard := make(chan struct{})
			go func() {
				defer close(heard)
				buf := make([]byte, 256<<10)
				for {
					if _, err := server.Read(buf); err != nil {
						return
					}
				}
			}()
			chunk := make([]byte, 256<<10)
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				if _, err := client.Write(chunk); err != nil {
					b.Fatal(err)
				}
			}
			_ = client.CloseWrite()
			b.ReportMetric(float64(<-used)/float64(r.FromClient()), "lane-ns/B")
			<-heard
		})
	}
}

// threadTime is the CPU time of the present thread, in nanoseconds.
func threadTime() int64 {
	const rusageThread = 1
	var u syscall.Rusage
	_ = syscall.Getrusage(rusageThread, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkMessages sends 100 bytes there and back.
func BenchmarkMessages(b *testing.B) {
	client, c := tcpPair(b)
	server, s := tcpPair(b)
	start(b, Side{Conn: c}, Side{Conn: s}, Config{})
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		buf := make([]byte, 100)
		for {
			if _, err := io.ReadFull(server, buf); err != nil {
				return
			}
			_, _ = server.Write(buf)
		}
	}()
	buf := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(client, buf); err != nil {
			b.Fatal(err)
		}
	}
	_ = client.CloseWrite()
	<-echoed
}

// BenchmarkIdle shows what an idle relay costs in memory; its time means nothing.
func BenchmarkIdle(b *testing.B) {
	bytes := idleBytes(b, 2000)
	for b.Loop() {
	}
	b.ReportMetric(float64(bytes), "B/relay")
}
