package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft"
)

// catalogue is the least that a checker needs around it: it keeps checks in a map.
type catalogue struct {
	k       *checker
	mu      sync.Mutex
	checks  map[weft.InstanceKey][]weft.Check
	events  []string
	started time.Time
	fail    error
	stop    func() // stops the checker, and waits for it
}

// newCatalogue runs a checker on fake time until the test ends.
func newCatalogue(t *testing.T, probe func(context.Context, *weft.Check) (weft.Health, string)) *catalogue {
	c := &catalogue{checks: make(map[weft.InstanceKey][]weft.Check), started: time.Now()}
	c.k = newChecker(c.write, c.reap, probe, slog.New(slog.NewTextHandler(io.Discard, nil)))
	c.k.lead(true)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan bool)
	go func() { c.k.run(ctx); close(ended) }()
	c.stop = func() { cancel(); <-ended }
	t.Cleanup(c.stop)
	return c
}

func (c *catalogue) set(owner weft.InstanceKey, checks ...weft.Check) {
	c.mu.Lock()
	c.checks[owner] = checks
	c.mu.Unlock()
	c.k.set(map[weft.InstanceKey][]weft.Check{owner: checks})
	c.k.wake()
}

func (c *catalogue) note(format string, args ...any) {
	c.events = append(c.events, fmt.Sprintf("%.1f ", time.Since(c.started).Seconds())+fmt.Sprintf(format, args...))
}

func (c *catalogue) write(_ context.Context, d duty, status weft.Health, output string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note("%s %s (%s)", d.key.id, status, output)
	if c.fail != nil {
		return c.fail
	}
	checks := c.checks[d.owner]
	changed := findCheck(checks, d.key.id)
	changed.Status, changed.Output = status, output
	c.k.set(map[weft.InstanceKey][]weft.Check{d.owner: checks})
	c.k.wake()
	return nil
}

func (c *catalogue) reap(_ context.Context, d duty) error {
	c.mu.Lock()
	c.note("reap %s", d.owner.ID)
	c.mu.Unlock()
	c.set(d.owner)
	return nil
}

func (c *catalogue) want(t *testing.T, events ...string) {
	t.Helper()
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if fmt.Sprint(c.events) != fmt.Sprint(events) {
		t.Errorf("happened:\n%q\nwant:\n%q", c.events, events)
	}
	c.events = nil
}

func TestCheckerProbesAndReaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var result atomic.Uint32
		c := newCatalogue(t, func(ctx context.Context, check *weft.Check) (weft.Health, string) {
			return weft.Health(result.Load()), "result of " + check.Target
		})
		c.set(order, weft.Check{ID: "c", Kind: weft.HTTPCheck, Target: "x", Status: weft.Critical,
			Interval: weft.Duration(time.Millisecond), DeregisterAfter: seconds(5)})
		time.Sleep(2 * time.Millisecond)
		c.want(t, "0.0 c passing (result of x)")
		time.Sleep(10*time.Second - 2*time.Millisecond)
		result.Store(uint32(weft.Critical))
		time.Sleep(4900 * time.Millisecond)
		c.want(t, "10.0 c critical (result of x)")
		time.Sleep(time.Second)
		c.want(t, "15.0 reap order")
	})
}

func TestCheckerTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalogue(t, func(ctx context.Context, check *weft.Check) (weft.Health, string) {
			<-ctx.Done()
			return weft.Critical, ctx.Err().Error()
		})
		c.set(order,
			weft.Check{ID: "given", Kind: weft.TCPCheck, Interval: weft.Duration(time.Millisecond), Timeout: seconds(2)},
			weft.Check{ID: "default", Kind: weft.TCPCheck, Interval: weft.Duration(time.Millisecond)})
		time.Sleep(5 * time.Second)
		c.want(t, "2.0 given critical (context deadline exceeded)")
		time.Sleep(6 * time.Second)
		c.want(t, "10.0 default critical (context deadline exceeded)")
	})
}

func TestCheckerLapses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalogue(t, nil)
		c.set(order, weft.Check{ID: "c", Kind: weft.LeaseCheck, TTL: seconds(3)})
		for range 10 {
			time.Sleep(time.Second)
			if kind, changed := c.k.report(checkKey{"n", "c"}, weft.Passing, ""); kind != weft.LeaseCheck || changed {
				t.Fatalf("a renewal is to be written: %v, %v", kind, changed)
			}
		}
		time.Sleep(5 * time.Second)
		c.want(t, "13.0 c critical (no report for 3s)")
		if _, changed := c.k.report(checkKey{"n", "c"}, weft.Passing, ""); !changed {
			t.Error("the report after a lapse is not written")
		}
	})
}

// TestCheckerTriesAgain: a store that cannot be written for a while loses no status.
func TestCheckerTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalogue(t, func(context.Context, *weft.Check) (weft.Health, string) { return weft.Critical, "" })
		c.fail = errors.New("store is away")
		c.set(order, weft.Check{ID: "p", Kind: weft.TCPCheck, Interval: seconds(10)},
			weft.Check{ID: "l", Kind: weft.LeaseCheck, TTL: seconds(15)})
		time.Sleep(30 * time.Second)
		synctest.Wait()
		c.mu.Lock()
		if len(c.events) < 8 {
			t.Errorf("happened: %q", c.events)
		}
		c.fail, c.events = nil, nil
		c.mu.Unlock()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.events) != 2 {
			t.Errorf("happened: %q", c.events)
		}
	})
}

// TestCheckerStopsWithItsProbes: what a probe finds because the server stops is
// not written.
func TestCheckerStopsWithItsProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalogue(t, func(ctx context.Context, check *weft.Check) (weft.Health, string) {
			<-ctx.Done()
			return weft.Critical, "stopped"
		})
		c.set(order, weft.Check{ID: "c", Kind: weft.TCPCheck, Interval: seconds(1), Timeout: seconds(60)})
		time.Sleep(2 * time.Second)
		c.stop()
		c.want(t)
	})
}

func TestCheckerIsCheapForThousands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var atOnce, most, probes atomic.Int64
		c := newCatalogue(t, func(ctx context.Context, check *weft.Check) (weft.Health, string) {
			most.Store(max(most.Load(), atOnce.Add(1)))
			defer atOnce.Add(-1)
			probes.Add(1)
			time.Sleep(20 * time.Millisecond)
			return weft.Passing, ""
		})
		for i := range 5000 {
			c.set(weft.InstanceKey{Node: "n", ID: fmt.Sprint(i)}, weft.Check{ID: fmt.Sprint(i), Kind: weft.TCPCheck, Interval: seconds(10)})
		}
		time.Sleep(30*time.Second - time.Millisecond)
		if n := probes.Load(); n != 15000 {
			t.Errorf("%d probes in 30 s; want 15000", n)
		}
		if n := most.Load(); n > maxProbes {
			t.Errorf("%d probes at a time", n)
		}
		c.want(t)
	})
}
