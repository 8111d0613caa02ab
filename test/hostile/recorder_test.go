package hostile

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// recorder is an upstream that writes down what it gets: each request as another
// parser than weft's (net/http's) reads it, and what cannot be read as one.
type recorder struct {
	address string

	mu       sync.Mutex
	requests []recorded
	odd      []string // bytes that are no request
	open     []net.Conn
}

// recorded is a request as it arrived.
type recorded struct {
	method, target, host, body string
	header                     http.Header
	trailer                    http.Header
}

func startRecorder(t *testing.T) *recorder {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{address: ln.Addr().String()}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.open = append(r.open, c)
			r.mu.Unlock()
			serving.Go(func() { defer c.Close(); r.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		r.mu.Lock()
		for _, c := range r.open {
			_ = c.Close()
		}
		r.mu.Unlock()
		serving.Wait()
	})
	return r
}

func (r *recorder) serve(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		if _, err := in.Peek(1); err != nil {
			return
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		req, err := http.ReadRequest(in)
		if err == nil {
			err = r.take(req)
		}
		if err != nil {
			rest, _ := in.Peek(in.Buffered())
			r.mu.Lock()
			r.odd = append(r.odd, fmt.Sprintf("%v before %.200q", err, rest))
			r.mu.Unlock()
			return
		}
		_ = c.SetReadDeadline(time.Time{})
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
			return
		}
	}
}

func (r *recorder) take(req *http.Request) error {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, recorded{req.Method, req.RequestURI, req.Host, string(body), req.Header, req.Trailer})
	return nil
}

// taken returns what came since the last call.
func (r *recorder) taken() (requests []recorded, odd []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	requests, odd = r.requests, r.odd
	r.requests, r.odd = nil, nil
	return requests, odd
}
