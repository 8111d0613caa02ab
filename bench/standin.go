package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// runStandIn is this program as a child of itself: "rate" and "idle" are clients
// that no installed program can play, "backend" stands for nginx and "load" for wrk
// where those are not installed. Both are costlier than what they stand for, so
// that a lane has less load; CPU a request still compares.
func runStandIn(ctx context.Context, args []string) error {
	switch args[0] {
	case "backend":
		if len(args) == 2 {
			return serveBackend(ctx, args[1])
		}
	case "idle", "rate", "load":
		f := flag.NewFlagSet(args[0], flag.ContinueOnError)
		clients := f.Int("c", connections, "connections")
		seconds := f.Int("d", 1, "seconds")
		rate := f.Float64("r", 1000, "requests a second")
		if err := f.Parse(separate(args[1:])); err != nil {
			return err
		}
		duration := time.Duration(*seconds) * time.Second
		switch args[0] {
		case "idle":
			return holdIdle(ctx, os.Stdout, f.Arg(0), *clients)
		case "rate":
			return generateAt(ctx, os.Stdout, f.Arg(0), *clients, *rate, duration)
		}
		return generate(ctx, os.Stdout, f.Arg(0), *clients, duration)
	}
	return fmt.Errorf("unknown arguments %q", args)
}

// separate makes Go's "-c=64" of wrk's "-c64".
func separate(args []string) []string {
	var out []string
	for _, a := range args {
		if len(a) > 2 && a[0] == '-' && a[2] != '=' {
			a = a[:2] + "=" + a[2:]
		}
		out = append(out, a)
	}
	return out
}

// serveBackend answers every request with body until ctx ends.
func serveBackend(ctx context.Context, address string) error {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return serveBackendOn(ctx, ln)
}

func serveBackendOn(ctx context.Context, ln net.Listener) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		serving.Go(func() {
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			defer conn.Close()
			answerAll(conn)
		})
	}
}

// answerAll answers requests without bodies until the client goes.
func answerAll(conn net.Conn) {
	answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return
		}
		if len(bytes.TrimSpace(line)) > 0 {
			continue
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// latencies counts answers by microseconds; the last one holds all that took longer.
type latencies [1 << 20]atomic.Uint32

// share returns the latency that a share of n answers did not exceed.
func (l *latencies) share(share float64, n int64) time.Duration {
	left := int64(share * float64(n))
	for us := range l {
		if left -= int64(l[us].Load()); left <= 0 {
			return time.Duration(us) * time.Microsecond
		}
	}
	return time.Duration(len(l)) * time.Microsecond
}

// generate loads target and prints what wrk would print of it, so that one reader
// serves both.
func generate(ctx context.Context, out io.Writer, target string, clients int, duration time.Duration) error {
	u, err := url.Parse(target)
	if err != nil {
		return err
	}
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", u.RequestURI(), u.Host)
	ctx, cancel := context.WithTimeout(ctx, duration)
	defer cancel()
	seen := &latencies{}
	var answered, failed atomic.Int64
	var asking sync.WaitGroup
	began := time.Now()
	for range clients {
		asking.Go(func() {
			n, err := ask(ctx, u.Host, request, seen)
			answered.Add(n)
			if err != nil && ctx.Err() == nil {
				failed.Add(1)
			}
		})
	}
	asking.Wait()
	took, n := time.Since(began), answered.Load()
	fmt.Fprintf(out, "  50%% %s\n  99%% %s\n", inMillis(seen.share(0.50, n)), inMillis(seen.share(0.99, n)))
	fmt.Fprintf(out, "  %d requests in %.2fs\n", n, took.Seconds())
	if failed.Load() > 0 {
		fmt.Fprintf(out, "  Socket errors: %d\n", failed.Load())
	}
	_, err = fmt.Fprintf(out, "Requests/sec: %.2f\n", float64(n)/took.Seconds())
	return err
}

func inMillis(d time.Duration) string {
	return fmt.Sprintf("%.2fms", float64(d)/float64(time.Millisecond))
}

// ask sends requests over one connection, each after the answer to the one before.
func ask(ctx context.Context, address string, request []byte, seen *latencies) (n int64, err error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	in := bufio.NewReader(conn)
	for {
		sent := time.Now()
		if _, err := conn.Write(request); err != nil {
			return n, err
		}
		if err := readAnswer(in); err != nil {
			return n, err
		}
		seen[min(int(time.Since(sent).Microseconds()), len(seen)-1)].Add(1)
		n++
	}
}

// readAnswer expects the backend's answer.
func readAnswer(in *bufio.Reader) error {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
		return errors.New("not a 200")
	}
	for len(bytes.TrimSpace(line)) > 0 {
		if line, err = in.ReadSlice('\n'); err != nil {
			return err
		}
	}
	_, err = in.Discard(len(body))
	return err
}
