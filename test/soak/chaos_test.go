package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"
)

// chaos does things to a world.
type chaos struct {
	w    *world
	r    *rand.Rand
	done map[string]int // how often what was done
}

// narrate prints what happens, so that what fails can be told from what was done.
func narrate(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s "+format+"\n", append([]any{time.Now().Format("15:04:05.000")}, args...)...)
}

// changeRoutes applies another table again and again until ctx ends. Nobody may
// notice. The server is away at times.
func (w *world) changeRoutes(ctx context.Context, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	for ctx.Err() == nil {
		begun := time.Now()
		err := w.apply(routes(1+r.IntN(100), 1+r.IntN(100), 1+r.IntN(100), r.IntN(20)))
		w.led.note("weft apply", begun, err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(300+r.IntN(700)) * time.Millisecond):
		}
	}
}

// quietly does what nobody may notice, until ctx ends.
func (c *chaos) quietly(ctx context.Context) {
	for ctx.Err() == nil {
		p := []*process{c.w.gateway, c.w.caller, c.w.stores[c.r.IntN(3)], c.w.gateway, c.w.sockets, c.w.bytes}[c.r.IntN(6)]
		narrate("upgrade %s", p.name)
		c.done["upgrade"]++
		if err := p.upgrade(context.WithoutCancel(ctx)); err != nil {
			c.w.led.Complain("%v", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(500+c.r.IntN(1500)) * time.Millisecond):
		}
	}
}

// event is one thing that happens. It returns when its consequences are repaired.
type event struct {
	name   string
	weight int
	do     func(*chaos, *process, *rand.Rand) error
}

var events = []event{
	{"kill the application of", 4, func(c *chaos, p *process, _ *rand.Rand) error { return c.killApp(p) }},
	{"kill", 4, func(_ *chaos, p *process, _ *rand.Rand) error { return p.restart(p.pid, syscall.SIGKILL) }},
	{"stop politely", 2, func(_ *chaos, p *process, _ *rand.Rand) error { return p.restart(p.pid, syscall.SIGTERM) }},
	{"pause", 4, func(_ *chaos, p *process, r *rand.Rand) error { pause(p.pid(), r); return nil }},
	{"pause the application of", 2, func(_ *chaos, p *process, r *rand.Rand) error { pause(p.appPID(), r); return nil }},
	{"upgrade", 1, func(_ *chaos, p *process, _ *rand.Rand) error { return p.upgrade(context.Background()) }},
	{"upgrade the gateway, and not", 1, func(c *chaos, _ *process, _ *rand.Rand) error { return c.w.gateway.upgrade(context.Background()) }},
	{"pause the gateway, and not", 1, func(c *chaos, _ *process, r *rand.Rand) error { pause(c.w.gateway.pid(), r); return nil }},
	{"kill the server, and not", 1, func(c *chaos, _ *process, _ *rand.Rand) error {
		return c.w.server.restart(c.w.server.pid, syscall.SIGKILL)
	}},
	{"break connections, and not", 8, func(c *chaos, _ *process, r *rand.Rand) error { c.breakConnections(r); return nil }},
}

// killApp kills an application, and has it started again as whoever looks after it
// would.
func (c *chaos) killApp(p *process) error {
	if p == c.w.stores[2] {
		return c.w.storeApp.restart(c.w.storeApp.pid, syscall.SIGKILL)
	}
	// Its sidecar ends with it. The caller's is this program: it has none.
	return p.restart(p.appPID, syscall.SIGKILL)
}

// pause stops a process for up to two seconds.
func pause(pid int, r *rand.Rand) {
	signal(pid, syscall.SIGSTOP)
	<-time.After(time.Duration(100+r.IntN(1900)) * time.Millisecond)
	signal(pid, syscall.SIGCONT)
}

func (c *chaos) breakConnections(r *rand.Rand) {
	b := []*breaker{c.w.near, c.w.inner}[r.IntN(2)]
	switch r.IntN(3) {
	case 0:
		b.reset(r.Float64())
	case 1:
		b.end(r.Float64())
	default:
		b.stall(time.Duration(r.IntN(1000)) * time.Millisecond)
	}
}

// storm lets things happen until ctx ends, and then waits until all is repaired.
func (c *chaos) storm(ctx context.Context) {
	c.w.led.begin()
	defer c.w.led.end()
	var going sync.WaitGroup
	defer going.Wait()
	places := make(chan struct{}, 3) // at most so much at a time
	busy := map[*process]chan struct{}{}
	for ctx.Err() == nil {
		e, p := c.pick()
		r := rand.New(rand.NewPCG(c.r.Uint64(), 0))
		if busy[p] == nil {
			busy[p] = make(chan struct{}, 1)
		}
		mine := busy[p]
		select {
		case mine <- struct{}{}:
		default:
			continue // something else happens to it
		}
		places <- struct{}{}
		c.done[e.name]++
		narrate("%s %s", e.name, p.name)
		going.Go(func() {
			defer func() { <-places; <-mine }()
			if err := e.do(c, p, r); err != nil {
				c.w.led.Complain("%s %s: %v", e.name, p.name, err)
			}
		})
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(c.r.IntN(1200)) * time.Millisecond):
		}
	}
}

// pick chooses what happens next, and to whom.
func (c *chaos) pick() (event, *process) {
	all := append([]*process{c.w.caller, c.w.bytes, c.w.greeter, c.w.sockets}, c.w.stores...)
	p := all[c.r.IntN(len(all))]
	total := 0
	for _, e := range events {
		total += e.weight
	}
	n := c.r.IntN(total)
	for _, e := range events {
		if n -= e.weight; n < 0 {
			return e, p
		}
	}
	panic("unreachable")
}
