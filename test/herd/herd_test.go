package herd

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weftmesh/weft/resilience"
	"github.com/weftmesh/weft/test/world"
)

func TestMain(m *testing.M) { world.Main(m) }

// The herd: each client makes a call every second, so that in every 100 ms a tenth
// of them comes.
const (
	clients = 1000
	every   = time.Second
	bucket  = 100 * time.Millisecond
	steady  = clients * int(bucket) / int(every) // arrivals in a bucket

	// Before it dies the service stands still, for as long as it takes until all
	// clients wait for it: they learn in one instant that it is gone.
	stall = every
)

// Retries as somebody writes them who wants to be sure, and as they should be.
var (
	eager  = retry("none", 1000, 1_000_000)
	polite = retry("full", 20, 3)
)

func retry(jitter string, percent, perSecond int) string {
	return fmt.Sprintf(`{maxAttempts: 10, backoff: {initial: 200ms, multiplier: 2, max: 10s, jitter: %s}, budget: {percent: %d, minPerSecond: %d}}`,
		jitter, percent, perSecond)
}

// service counts arrivals, and dies and comes back by the clock.
type service struct {
	// constant
	began      time.Time
	dies, back time.Duration // since began; it stands still for a while before it dies
	dead       chan struct{} // closed when it dies

	mu       sync.Mutex
	arrivals map[time.Duration]int // by the bucket's beginning
}

func newService(dies, down time.Duration) *service {
	return &service{began: time.Now(), dies: dies, back: dies + down, dead: make(chan struct{}), arrivals: map[time.Duration]int{}}
}

// arrive counts a request, and reports whether it is answered. It returns when that
// is known.
func (s *service) arrive() bool {
	at := time.Since(s.began)
	s.mu.Lock()
	s.arrivals[at.Truncate(bucket)]++
	s.mu.Unlock()
	switch {
	case at < s.dies-stall, at >= s.back:
		return true
	case at < s.dies:
		<-s.dead
	}
	return false
}

// die at the time for it.
func (s *service) die() {
	<-time.After(time.Until(s.began.Add(s.dies)))
	close(s.dead)
}

// peak is the most arrivals in a bucket of a span.
func (s *service) peak(from, to time.Duration) (most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, n := range s.arrivals {
		if at >= from && at < to {
			most = max(most, n)
		}
	}
	return most
}

// herd calls until the end, each client at a moment of its own in every second,
// whether or not it still waits for the answers to earlier calls: what is tried again
// comes on top of what is new.
func herd(s *service, end time.Duration, call func(client int)) {
	var all sync.WaitGroup
	for client := range clients {
		all.Go(func() {
			for next := every * time.Duration(client) / clients; next < end; next += every {
				<-time.After(next - time.Since(s.began))
				all.Go(func() { call(client) })
			}
		})
	}
	all.Wait()
}

// RoundTrip makes the service a network of its own.
func (s *service) RoundTrip(r *http.Request) (*http.Response, error) {
	if !s.arrive() {
		return nil, errors.New("connection reset")
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
}

// programs share the herd: a budget is that of a program, not of a client.
const programs = 10

// inVirtualTime is the peak in units of the steady state after a service was down.
func inVirtualTime(t *testing.T, retry string, down time.Duration) (ratio float64) {
	synctest.Test(t, func(t *testing.T) {
		const dies, watch = 12 * time.Second, 15 * time.Second
		s := newService(dies, down)
		var web [programs]*http.Client
		for i := range web {
			document, err := yaml.YAMLToJSON([]byte("retry: " + retry))
			if err != nil {
				t.Fatal(err)
			}
			spec, err := resilience.ParseSpec(document)
			if err != nil {
				t.Fatal(err)
			}
			policy, err := resilience.New("service", *spec)
			if err != nil {
				t.Fatal(err)
			}
			web[i] = &http.Client{Transport: &resilience.Transport{Policy: policy, Base: s}}
		}
		go s.die()
		herd(s, s.back+watch, func(client int) {
			if resp, err := web[client%programs].Get("http://service/"); err == nil {
				resp.Body.Close()
			}
		})
		if n := s.peak(every, dies-stall); n != steady {
			t.Errorf("%d arrivals in %v before, want %d", n, bucket, steady)
		}
		if n := s.peak(s.back+watch-every, s.back+watch); n != steady {
			t.Errorf("%d arrivals in %v at the end, want %d", n, bucket, steady)
		}
		ratio = float64(s.peak(s.back, s.back+watch)) / float64(steady)
	})
	return ratio
}

// A service that was away is met by at most twice what it is used to, whenever it
// returns.
func TestTheHerdInVirtualTime(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		name, retry string
		down        time.Duration
		low, high   float64 // of the peak, in units of the steady state
	}{
		{"neither jitter nor budget", eager, 10 * s, 5, clients},
		{"full jitter without a budget", retry("full", 1000, 1_000_000), 10 * s, 3, clients},
		{"full jitter and budget", polite, 5 * s, 1, 2},
		{"full jitter and budget", polite, 10 * s, 1, 2},
		{"full jitter and budget", polite, 10*s + 300*time.Millisecond, 1, 2},
		{"full jitter and budget", polite, 11 * s, 1, 2},
		{"full jitter and budget", polite, 21 * s, 1, 2},
	} {
		ratio := inVirtualTime(t, c.retry, c.down)
		t.Logf("%s, down for %v: %.2f × the steady state at most", c.name, c.down, ratio)
		if ratio < c.low || ratio > c.high {
			t.Errorf("%s, down for %v: the peak is %.2f × the steady state; want %v to %v", c.name, c.down, ratio, c.low, c.high)
		}
	}
}
