package h2spec

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/summerwind/h2spec/spec"

	"github.com/weftmesh/weft/test/world"
)

// upstreamCase is a server that behaves as one client case says.
type upstreamCase struct {
	clientCase
	service string
	address string
	results chan error // of the connections, in the order in which they ended
	called  atomic.Bool
}

// startClientCases starts a server for each case.
func startClientCases(t *testing.T, cases []clientCase) []*upstreamCase {
	t.Helper()
	var all []*upstreamCase
	for _, c := range cases {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		u := &upstreamCase{clientCase: c, service: strings.NewReplacer("/", "-", ".", "-").Replace(c.id),
			address: ln.Addr().String(), results: make(chan error, 100)}
		var serving sync.WaitGroup
		serving.Go(func() { u.serve(t, ln, &serving) })
		t.Cleanup(func() { _ = ln.Close(); serving.Wait() })
		all = append(all, u)
	}
	return all
}

func (u *upstreamCase) serve(t *testing.T, ln net.Listener, serving *sync.WaitGroup) {
	for {
		sock, err := ln.Accept()
		if err != nil {
			return
		}
		u.called.Store(true)
		serving.Go(func() {
			defer sock.Close()
			conf := configFor(t, u.address, false)
			conn, err := spec.Accept(conf, sock)
			if err == nil {
				err = u.Run(conf, conn)
			}
			select {
			case u.results <- err:
			default: // only the first is looked at
			}
		})
	}
}

// begun asks until the server was called: a gateway that has just started does not
// know all routes yet. What is answered does not matter.
func (u *upstreamCase) begun(t *testing.T, url string) {
	t.Helper()
	client := &http.Client{Timeout: 3 * timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	world.Eventually(t, 15*time.Second, "a call of the server", func() error {
		resp, err := client.Get(url)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body) // it may be cut, on purpose
			_ = resp.Body.Close()
		}
		if u.called.Load() {
			return nil
		}
		return fmt.Errorf("%v %w", resp, err)
	})
}

// result is that of the first connection. What a proxy that repeats a request sees
// on later ones is the same again.
func (u *upstreamCase) result(t *testing.T) error {
	t.Helper()
	select {
	case err := <-u.results:
		return err
	case <-time.After(4 * timeout):
		return spec.ErrTimeout
	}
}
