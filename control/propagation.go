package control

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/telemetry/metric"
)

// propagationBounds are the buckets of how long a change takes to a proxy, 1 ms to 60 s.
var propagationBounds = []time.Duration{
	1 * time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	1 * time.Second, 2500 * time.Millisecond, 5 * time.Second,
	10 * time.Second, 30 * time.Second, 60 * time.Second,
}

// propagation is the histograms of how long changes take from their commit to the
// acknowledgement of each proxy, by type URL.
type propagation map[string]*metric.Durations

func newPropagation(m *metric.Registry) propagation {
	if m == nil {
		m = metric.New(0)
	}
	p := make(propagation, len(typeOrder))
	for _, typeURL := range typeOrder {
		p[typeURL] = m.Durations("weft_propagation_duration_seconds",
			"How long changes took from their commit to the acknowledgement of each proxy that they concern.",
			propagationBounds, metric.Label{Name: "type", Value: strings.ToLower(kindOf(typeURL))})
	}
	return p
}

// propagated counts a change that a proxy has acknowledged. What it was sent because
// it asked for it (changed is zero) is none.
func (c *Control) propagated(typeURL string, changed, now time.Time) {
	if !changed.IsZero() {
		c.took[typeURL].Observe(now.Sub(changed))
	}
}

// changeClock remembers when this server's registry came to have its last changes. A
// subscriber of the registry hears of them later, one service after the other. The
// zero value knows of none.
type changeClock struct {
	mu   sync.Mutex
	ring [256]struct {
		index uint64
		at    time.Time
	}
	next int
}

func (k *changeClock) note(index uint64, at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ring[k.next].index, k.ring[k.next].at = index, at
	k.next = (k.next + 1) % len(k.ring)
}

// when is the time of the first change that is noted at index or later; now when that
// is not known.
func (k *changeClock) when(index uint64) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, first := time.Now(), ^uint64(0)
	for i := range k.ring {
		if n := &k.ring[i]; n.index >= index && n.index < first {
			at, first = n.at, n.index
		}
	}
	return at
}

// keepClock notes changes until Close.
func (c *Control) keepClock() {
	for index := c.known(); c.ctx.Err() == nil; {
		index = c.registry.Wait(c.ctx, registry.InstancesTopic(), index)
		c.clock.note(index, time.Now())
	}
}

// known is the index of the newest change of any instance that this server knows.
func (c *Control) known() uint64 {
	return c.registry.Wait(context.Background(), registry.InstancesTopic(), 0)
}
