package hostile

import (
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weftmesh/weft/test/frames"
	"github.com/weftmesh/weft/test/world"
)

// TestSlowReaders ask for megabytes and take none of them.
func TestSlowReaders(t *testing.T) {
	const clients = 200
	s := newScene(t)
	enemy := &siege{}
	t.Cleanup(enemy.lift)
	for range clients {
		c := dialTCP(t, s.gateway.HTTP)
		if err := c.SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET /large/10240 HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		enemy.conns = append(enemy.conns, c)
	}
	world.Eventually(t, 150*time.Second, "slow readers to be given up", func() error {
		if n := s.gateway.Metric("weft_refused_total", `reason="slow_client"`) + s.gateway.Metric("weft_refused_total", `reason="overload_request"`); n < clients {
			return fmt.Errorf("%v of %d", n, clients)
		}
		return nil
	})
	s.over("slow_client", "slow_body", "overload_request")
}

// TestSlowHTTP2Bodies hold a stream each with a body that does not come.
func TestSlowHTTP2Bodies(t *testing.T) {
	const conns = 20
	s := newScene(t)
	var enemies []*frames.Conn
	for range conns {
		c, err := frames.Dial(s.gateway.HTTP, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		for n := range 50 {
			if err := c.Request(uint32(2*n+1), false, "POST", "/", "content-length", "100000"); err != nil {
				t.Fatal(err)
			}
		}
		enemies = append(enemies, c)
	}
	var waiting sync.WaitGroup
	for _, c := range enemies {
		waiting.Go(func() {
			if err := awaitGivenUp(c, 50); err != nil {
				t.Error(err)
			}
		})
	}
	waiting.Wait()
	s.over("slow_client", "slow_body", "overload_request")
}

// awaitGivenUp drips into all streams until each was answered or reset.
func awaitGivenUp(c *frames.Conn, streams int) error {
	over := map[uint32]bool{}
	reading := make(chan uint32, 1000)
	failed := make(chan error, 1)
	go func() {
		for {
			_ = c.SetReadDeadline(time.Now().Add(90 * time.Second))
			f, err := c.ReadFrame()
			if err != nil {
				failed <- err
				return
			}
			switch f := f.(type) {
			case *http2.RSTStreamFrame:
				reading <- f.StreamID
			case *http2.GoAwayFrame:
				failed <- fmt.Errorf("GOAWAY %s", f.ErrCode)
				return
			}
		}
	}()
	deadline := time.After(80 * time.Second)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case id := <-reading:
			if over[id] = true; len(over) == streams {
				return nil
			}
		case err := <-failed:
			return fmt.Errorf("%d of %d streams were given up: %w", len(over), streams, err)
		case <-deadline:
			return fmt.Errorf("%d of %d streams were given up in 80 s", len(over), streams)
		case <-tick.C:
			for n := range streams {
				if id := uint32(2*n + 1); !over[id] {
					if err := c.WriteData(id, false, []byte("a")); err != nil {
						return err
					}
				}
			}
		}
	}
}
