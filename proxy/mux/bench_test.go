package mux

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

var answerLines = []byte("content-type: text/plain\r\nserver: test\r\n")
var answerBody = pattern(100)

func answer(s *Stream) { _ = s.SendResponse(200, answerLines, answerBody, true) }

// roundTrip is one small request and its response.
func roundTrip(c *Conn) error {
	s, err := c.Open()
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.SendRequest(&get, answerLines, nil, true); err != nil {
		return err
	}
	if err := s.AwaitHead(); err != nil {
		return err
	}
	for {
		if n, ended := s.Ready(); n == 0 && ended {
			return nil
		}
		if _, err := s.Next(); err != nil {
			return err
		}
	}
}

// BenchmarkRoundTrip has client and server in one process: half of what it shows
// is the client's.
func BenchmarkRoundTrip(b *testing.B) {
	for _, shape := range []struct{ conns, streams int }{{1, 1}, {1, 16}, {8, 16}} {
		for _, pooled := range []bool{false, true} {
			b.Run(fmt.Sprintf("%dx%d/workers=%v", shape.conns, shape.streams, pooled), func(b *testing.B) {
				config := Config{Serve: answer}
				if pooled {
					var w Workers
					b.Cleanup(w.Close)
					config.Go = w.Go
				}
				var conns []*Conn
				for range shape.conns {
					_, c := connect(b, config, Config{})
					conns = append(conns, c)
				}
				load(b, conns, shape.streams)
			})
		}
	}
}

func load(b *testing.B, conns []*Conn, streams int) {
	b.ReportAllocs()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var all sync.WaitGroup
	for _, c := range conns {
		for range streams {
			all.Go(func() {
				for left.Add(-1) >= 0 {
					if err := roundTrip(c); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
	}
	all.Wait()
}

// deep uses as much stack as an exchange of the proxy does (about 8 KiB).
//
//go:noinline
func deep(n int) byte {
	var frame [512]byte
	frame[n] = byte(n)
	if n == 0 {
		return frame[0]
	}
	return deep(n-1) + frame[n]
}

// BenchmarkWorkers compares goroutines that are reused with new ones, when what
// they run needs more stack than a new one has.
func BenchmarkWorkers(b *testing.B) {
	for _, pooled := range []bool{false, true} {
		b.Run(fmt.Sprintf("workers=%v", pooled), func(b *testing.B) {
			config := Config{Serve: func(s *Stream) {
				if deep(14) != 105 {
					b.Error("wrong sum")
				}
				answer(s)
			}}
			if pooled {
				var w Workers
				b.Cleanup(w.Close)
				config.Go = w.Go
			}
			var conns []*Conn
			for range 8 {
				_, c := connect(b, config, Config{})
				conns = append(conns, c)
			}
			load(b, conns, 16)
		})
	}
}

// BenchmarkRoundTripTLS is BenchmarkRoundTrip over TLS.
func BenchmarkRoundTripTLS(b *testing.B) {
	var w Workers
	b.Cleanup(w.Close)
	var conns []*Conn
	for range 8 {
		x, y := securedPair(b)
		serve(b, y, Config{Serve: answer, Go: w.Go})
		conns = append(conns, dial(b, x, Config{}))
	}
	load(b, conns, 16)
}
