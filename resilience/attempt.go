package resilience

import (
	"context"
	"sync"
	"time"
)

// attemptContext is the caller's context with an end of its own. Most functions
// never wait for a context, and so it has a timer, a channel and a place among the
// caller's children only from the first Done on: the one allocation of a call with a
// timeout is this struct. It is not reused: whoever was given it may keep it.
type attemptContext struct {
	caller   context.Context
	deadline time.Time // zero: the caller's only

	mu     sync.Mutex
	waited context.Context // from the first Done on
	cancel context.CancelFunc
	ended  error // what Err said, or finish, if nobody waited until then
}

func (c *attemptContext) Deadline() (time.Time, bool) {
	if !c.deadline.IsZero() {
		return c.deadline, true
	}
	return c.caller.Deadline()
}

func (c *attemptContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waited == nil {
		if c.deadline.IsZero() {
			c.waited, c.cancel = context.WithCancel(c.caller)
		} else {
			c.waited, c.cancel = context.WithDeadline(c.caller, c.deadline)
		}
		if c.ended != nil {
			c.cancel()
		}
	}
	return c.waited.Done()
}

func (c *attemptContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended != nil:
	case c.waited != nil:
		return c.waited.Err()
	case c.caller.Err() != nil:
		c.ended = c.caller.Err()
	case !c.deadline.IsZero() && !time.Now().Before(c.deadline):
		c.ended = context.DeadlineExceeded
	}
	return c.ended
}

// Value asks the context that somebody waits for, so that package context finds its
// own kind there and contexts derived from this one need no goroutine.
func (c *attemptContext) Value(key any) any {
	c.mu.Lock()
	waited := c.waited
	c.mu.Unlock()
	if waited != nil {
		return waited.Value(key)
	}
	return c.caller.Value(key)
}

// finish ends the context and frees what it holds.
func (c *attemptContext) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waited != nil {
		c.cancel()
	} else if c.ended == nil {
		c.ended = context.Canceled
	}
}
