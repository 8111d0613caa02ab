package control

import (
	"context"
	"maps"
	"time"

	"github.com/weftmesh/weft"
)

const (
	// askTimeout is how long another server may take to answer.
	askTimeout = 2 * time.Second
	// askPatience is how long it may wait for its proxies before it does. Whoever waits
	// here looks again after each answer, so an inquiry that nobody looked at for
	// several of them is over.
	askPatience  = time.Second
	inquiryIdle  = 5 * time.Second
	pauseToAsk   = 250 * time.Millisecond // after a failure
	maxInquiries = 1000                   // beyond, other servers are named as waiting
)

// inquiryKey is what servers are asked.
type inquiryKey struct {
	service weft.ServiceName
	index   uint64
}

// inquiry is what other servers answered. Guarded by Control.mu.
type inquiry struct {
	used    time.Time
	answers map[string]*Holding // by server; nil: none yet, or none any more. A Holding is not changed.
}

// inquire returns what the other servers have answered so far, and sees to it that
// they are asked.
func (c *Control) inquire(n weft.ServiceName, index uint64) map[string]*Holding {
	if c.others == nil {
		return nil
	}
	servers := c.others.Others()
	key := inquiryKey{n, index}
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.inquiries[key]
	if q == nil && len(c.inquiries) < maxInquiries {
		for old, other := range c.inquiries {
			if time.Since(other.used) > inquiryIdle {
				delete(c.inquiries, old)
			}
		}
		q = &inquiry{answers: make(map[string]*Holding)}
		c.inquiries[key] = q
	}
	out := make(map[string]*Holding)
	for _, server := range servers {
		out[server] = nil
	}
	if q == nil {
		return out
	}
	q.used = time.Now()
	for _, server := range servers {
		if _, asked := q.answers[server]; !asked && !c.closed {
			q.answers[server] = nil
			c.work.Go(func() { c.ask(server, key, q) })
		}
	}
	maps.Copy(out, q.answers)
	return out
}

// ask asks one server until all its proxies have the change, or nobody wants to know
// any more.
func (c *Control) ask(server string, key inquiryKey, q *inquiry) {
	for patience := time.Duration(0); c.ctx.Err() == nil; patience = askPatience {
		ctx, cancel := context.WithTimeout(c.ctx, patience+askTimeout)
		h, err := c.others.Holding(ctx, server, Question{Service: key.service, Index: key.index, Patience: patience})
		cancel()
		done := err == nil && h.Index >= key.index
		for _, r := range h.Proxies {
			done = done && (!r.Connected || r.Acked >= key.index)
		}
		c.mu.Lock()
		q.answers[server] = &h
		if err != nil {
			q.answers[server] = nil
		}
		idle := time.Since(q.used) > inquiryIdle
		if done || idle {
			if idle {
				delete(q.answers, server) // asked again when somebody wants to know
			}
			c.tellWaiting(key.service)
			c.mu.Unlock()
			return
		}
		c.tellWaiting(key.service)
		c.mu.Unlock()
		if err != nil {
			select {
			case <-time.After(pauseToAsk):
			case <-c.ctx.Done():
			}
		}
	}
}
