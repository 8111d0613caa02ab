package proxy

import (
	"sync/atomic"
	"time"
)

// patience bounds how long clients may keep an exchange waiting for them, while
// they send a body or take a response. What counts is only the time that is spent
// waiting for the client: an application may think as long as it likes.
//
// A client has grace, and a second more for every minRate bytes that it moves. A
// few bytes now and then (slow body, slow read) do not hold a connection, a buffer
// and a place at the application for ever.
type patience struct {
	since atomic.Int64 // coarse unix ns when the present wait began; 0: none
	spent atomic.Int64 // ns of waits before
	bytes atomic.Int64
}

const (
	// grace is what mod_reqtimeout of Apache gives a body.
	grace = 20 * time.Second
	// hurriedGrace is grace while memory is short.
	hurriedGrace = 2 * time.Second
	minRate      = 500 // bytes a second
)

// begin and end stand around each wait. The coarse clock makes short ones free.
func (w *patience) begin(now int64) { w.since.Store(now) }

func (w *patience) end(now int64, n int) {
	if since := w.since.Swap(0); now > since {
		w.spent.Add(now - since)
	}
	if n > 0 {
		w.bytes.Add(int64(n))
	}
}

// reset is for the next exchange.
func (w *patience) reset() {
	w.since.Store(0)
	w.spent.Store(0)
	w.bytes.Store(0)
}

// over reports that the client has used up what it has.
func (w *patience) over(now int64, grace time.Duration) bool {
	since := w.since.Load()
	if since == 0 || now < since {
		return false
	}
	allowed := int64(grace) + w.bytes.Load()*int64(time.Second)/minRate
	return w.spent.Load()+now-since > allowed
}
