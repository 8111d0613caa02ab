package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"
)

// ending is an HTTP server that a test ends.
type ending struct {
	url    string
	socket *os.File // keeps the port open
	end    context.CancelFunc
	done   chan error
}

func serveUntil(t *testing.T, h http.HandlerFunc) *ending {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	e := &ending{url: "http://" + ln.Addr().String(), socket: socket, end: cancel, done: make(chan error, 1)}
	go func() { e.done <- serveHTTP(ln, h, NewLogger(io.Discard, 0))(ctx) }()
	return e
}

// A server that ends lets short requests finish, and asks those that block to answer.
func TestHTTPServerEndsItsRequests(t *testing.T) {
	begun := make(chan struct{}, 2)
	e := serveUntil(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		if r.URL.Path == "/watch" {
			<-r.Context().Done()
		} else {
			<-time.After(20 * time.Millisecond)
			if r.Context().Err() != nil {
				w.WriteHeader(503)
			}
		}
		fmt.Fprint(w, "what there is")
	})
	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var calls sync.WaitGroup
	for _, path := range []string{"/short", "/watch"} {
		calls.Go(func() {
			resp, err := web.Get(e.url + path)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				return
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != "what there is" || err != nil {
				t.Errorf("%s: %s %q %v", path, resp.Status, b, err)
			}
		})
		<-begun
	}
	e.end()
	calls.Wait()
	if err := <-e.done; err != nil {
		t.Error(err)
	}
}

// Whom the server has accepted it answers, to the end. Others wait in the queue of
// the socket, for another process.
func TestHTTPServerDropsNobody(t *testing.T) {
	e := serveUntil(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	kept := &http.Transport{MaxIdleConnsPerHost: 4}
	defer kept.CloseIdleConnections()
	var calls sync.WaitGroup
	served, over := make(chan struct{}, 1), make(chan struct{})
	for i := range 8 {
		web := fresh
		if i%2 == 0 {
			web = &http.Client{Transport: kept}
		}
		calls.Go(func() {
			for {
				resp, err := web.Get(e.url)
				if err != nil {
					select {
					case <-over: // it was in the queue when that was closed
					default:
						t.Error(err)
					}
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				select {
				case served <- struct{}{}:
				default:
				}
			}
		})
	}
	<-served
	e.end()
	if err := <-e.done; err != nil {
		t.Error(err)
	}
	close(over)
	_ = e.socket.Close()
	calls.Wait()
}
