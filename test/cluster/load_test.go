package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// load writes keys of their own through each of some servers and reads them, until
// it is stopped. It remembers what was acknowledged, and what failed.
type load struct {
	c      *cluster
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu       sync.Mutex
	acked    map[string]string // key → value
	at       []time.Time       // of acknowledgements
	writeErr []failure
	reads    int
	readErr  []failure
	slowest  time.Duration // read
}

// failure of a call.
type failure struct {
	at     time.Time
	server string
	err    error
}

func (f failure) String() string {
	return fmt.Sprintf("%s at %s: %v", f.at.Format("05.000"), f.server, f.err)
}

// callTimeout is longer than a server tries by itself.
const callTimeout = 15 * time.Second

// under starts a load on these servers; how is how the readers read.
func (c *cluster) under(how string, servers ...*server) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{c: c, cancel: cancel, acked: map[string]string{}}
	for _, s := range servers {
		l.work.Go(func() { l.write(ctx, s) })
		l.work.Go(func() { l.read(ctx, s, how) })
	}
	c.t.Cleanup(l.stop)
	return l
}

func (l *load) stop() {
	l.cancel()
	l.work.Wait()
}

// pace of one client.
const pace = 5 * time.Millisecond

func (l *load) write(ctx context.Context, s *server) {
	for i := 0; ctx.Err() == nil; i++ {
		key, value := fmt.Sprintf("load/%s/%d", s.name, i), fmt.Sprint(time.Now().UnixNano())
		ok, err := s.put(within(callTimeout), key, value, "")
		now := time.Now()
		if err == nil && i%4 == 0 {
			err = s.registerAgent(within(callTimeout), fmt.Sprintf("i%d", i%40), map[string]any{"Name": "load", "Port": 80, "Meta": map[string]string{"n": fmt.Sprint(i)}})
		}
		l.mu.Lock()
		if ok {
			l.acked[key], l.at = value, append(l.at, now)
		}
		if err != nil || !ok {
			l.writeErr = append(l.writeErr, failure{now, s.name, err})
		}
		l.mu.Unlock()
		<-time.After(pace)
	}
}

func (l *load) read(ctx context.Context, s *server, how string) {
	for ctx.Err() == nil {
		began := time.Now()
		_, _, err := s.get(within(callTimeout), "load/"+s.name+"/0", how)
		if err == nil {
			_, _, err = s.instances(within(callTimeout), "load", how)
		}
		took := time.Since(began)
		l.mu.Lock()
		l.reads++
		l.slowest = max(l.slowest, took)
		if err != nil {
			l.readErr = append(l.readErr, failure{time.Now(), s.name, err})
		}
		l.mu.Unlock()
		<-time.After(pace)
	}
}

// ackedSince waits until something that was begun after a time is acknowledged
// through each of the servers, and returns how long the longest of them took.
func (l *load) ackedSince(from time.Time, patience time.Duration, servers ...*server) time.Duration {
	l.c.t.Helper()
	var longest time.Duration
	for _, s := range servers {
		for deadline := from.Add(patience); ; {
			ok, err := s.put(within(patience), "probe/"+s.name, "x", "")
			if ok {
				break
			}
			if time.Now().After(deadline) {
				l.c.t.Fatalf("no write through %s for %s: %v", s.name, patience, err)
			}
			<-time.After(pace)
		}
		longest = max(longest, time.Since(from))
	}
	return longest
}

// nothingLost reads all that was acknowledged, as consistent, from every server.
func (l *load) nothingLost(servers ...*server) {
	l.c.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range servers {
		have := s.tree("load/")
		lost := 0
		for key, value := range l.acked {
			if have[key] != value {
				if lost++; lost < 5 {
					l.c.t.Errorf("%s: %s is %q, and %q was acknowledged", s.name, key, have[key], value)
				}
			}
		}
		if lost > 0 {
			l.c.t.Fatalf("%s has lost %d of %d acknowledged writes", s.name, lost, len(l.acked))
		}
	}
	if len(l.acked) == 0 {
		l.c.t.Fatal("nothing was acknowledged at all")
	}
}

// readsWentOn fails when a read failed or took long.
func (l *load) readsWentOn(most time.Duration) {
	l.c.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, f := range l.readErr {
		if i < 5 {
			l.c.t.Errorf("a read failed %s", f)
		}
	}
	if l.reads == 0 || l.slowest > most {
		l.c.t.Errorf("%d reads, the slowest took %s", l.reads, l.slowest)
	}
}

// writesWentOn fails when a write failed.
func (l *load) writesWentOn() {
	l.c.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, f := range l.writeErr {
		if i < 5 {
			l.c.t.Errorf("a write failed %s", f)
		}
	}
}
