package trace

import (
	"context"
	"sync/atomic"
	"time"
)

// Exporter drains a recorder and sends its spans as OTLP. Fill in the first
// group, start Run in a goroutine, and wait for it after cancelling its context.
type Exporter struct {
	// constant
	Recorder *Recorder
	Resource Resource
	Scope    string // instrumentation scope; "" is "weft"
	// Send delivers one encoded ExportTraceServiceRequest. It is called from
	// Run's goroutine only, must return when ctx ends, and must not keep payload.
	Send     func(ctx context.Context, payload []byte) error
	Interval time.Duration // between exports while the ring is less than half full; 0 is 1 s

	// of Run's goroutine
	payload []byte
	spans   int // in payload, not yet delivered or given up

	// atomics
	sent atomic.Uint64
	lost atomic.Uint64
}

const (
	defaultInterval = time.Second
	maxBatch        = 512     // spans in one request
	maxBatchBytes   = 1 << 20 // below the 4 MiB that OTLP receivers take by default
	maxAttempts     = 4       // to deliver one batch
	firstBackoff    = 200 * time.Millisecond
	sendTimeout     = 5 * time.Second // of one attempt
	flushTimeout    = 2 * time.Second // for all that is left when Run's context ends
)

// Sent counts the spans that Send took.
func (e *Exporter) Sent() uint64 { return e.sent.Load() }

// Lost counts the spans that no attempt could deliver. Spans that did not fit
// the ring are counted by Recorder.Dropped.
func (e *Exporter) Lost() uint64 { return e.lost.Load() }

// Run exports until ctx ends, then flushes what is left, once.
func (e *Exporter) Run(ctx context.Context) {
	interval := e.Interval
	if interval <= 0 {
		interval = defaultInterval
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			e.flush(ctx)
			return
		case <-tick.C:
		case <-e.Recorder.wake:
		}
		for ctx.Err() == nil && e.fill() {
			e.deliver(ctx)
		}
	}
}

// flush gives every batch that is left one attempt, all within flushTimeout.
func (e *Exporter) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	for e.spans > 0 || e.fill() {
		if e.attempt(ctx) != nil {
			e.giveUp()
		}
	}
}

// deliver sends the batch, again after a failure. It keeps the batch for flush
// when ctx ends first.
func (e *Exporter) deliver(ctx context.Context) {
	backoff := firstBackoff
	for try := 1; e.attempt(ctx) != nil; try++ {
		if ctx.Err() != nil {
			return
		}
		if try == maxAttempts {
			e.giveUp()
			return
		}
		wait := time.NewTimer(backoff)
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
		}
		backoff *= 2
	}
}

func (e *Exporter) attempt(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	err := e.Send(ctx, e.payload)
	if err == nil {
		e.sent.Add(uint64(e.spans))
		e.spans = 0
	}
	return err
}

func (e *Exporter) giveUp() {
	e.lost.Add(uint64(e.spans))
	e.spans = 0
}

// fill encodes the next batch from the recorder; false when it is empty.
func (e *Exporter) fill() bool {
	scope := e.Scope
	if scope == "" {
		scope = "weft"
	}
	dst, resourceSpans, scopeSpans := openRequest(e.payload[:0], &e.Resource, scope)
	encode := func(s *Span) { dst = appendSpan(dst, s) }
	for e.spans < maxBatch && len(dst) < maxBatchBytes && e.Recorder.drainOne(encode) {
		e.spans++
	}
	e.payload = closeRequest(dst, resourceSpans, scopeSpans)
	return e.spans > 0
}
