// Package collect receives OTLP traces over HTTP and gRPC, keeps them in a
// directory for a day or until a size is reached, and answers which traces there
// were and what one of them looks like.
//
//	c, err := collect.Open(collect.Config{Dir: dir})
//	http.Serve(otlpHTTP, c.Handler())   // POST /v1/traces
//	c.RegisterGRPC(grpcServer)          // TraceService
//	recent, err := c.Traces(ctx, collect.Query{Service: "order-service", ErrorsOnly: true})
//	whole, err := c.Trace(ctx, recent[0].TraceID)
//
// A span that was accepted is visible to queries a moment later, when the writer
// has stored it. It survives a crash of the process, and a crash of the machine
// only when the operating system had written it: spans are not worth an fsync.
// On a disk that is almost full, spans are refused until there is room again. A
// store whose writing fails all the same refuses spans from then on and says why;
// it never stops the process.
package collect

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weftmesh/weft"
)

// Config opens a Collector.
type Config struct {
	Dir       string        // of this collector alone; made when it is not there
	Retention time.Duration // how long a span is kept after its arrival, to the hour; 0 is 24 h
	MaxBytes  int64         // of Dir; beyond it the oldest spans go; 0 is 1 GiB, at least 16 MiB
	Logger    *slog.Logger  // nil is silent
}

const (
	defaultRetention = 24 * time.Hour
	defaultMaxBytes  = 1 << 30
	minMaxBytes      = 16 << 20 // write-ahead log and memtables alone take up to 12 MiB

	queueBatches = 256      // accepted requests that wait for the writer
	queueBytes   = 16 << 20 // of their spans
	writeBytes   = 1 << 20  // the writer commits about this much at once
	sweepEvery   = time.Minute
)

// Collector receives, keeps and finds traces. Its methods may be called from any
// goroutine; after Close they answer weft.Unavailable.
type Collector struct {
	// constant
	retention time.Duration
	maxBytes  int64
	log       *slog.Logger
	now       func() time.Time
	store     *store
	written   chan struct{} // closed when the writer has ended

	// under mu
	mu     sync.Mutex
	closed bool
	queue  chan batch // sent to only while !closed

	// readers holds off the closing of the store.
	readers sync.RWMutex

	// atomics
	queued   atomic.Int64 // bytes in queue
	accepted atomic.Uint64
	rejected atomic.Uint64
	refused  atomic.Uint64
	stored   atomic.Uint64
	lost     atomic.Uint64
}

// batch is the spans of one request.
type batch struct {
	spans []record
	bytes int64
}

// Stats counts what happened to spans since Open.
type Stats struct {
	Accepted uint64 // taken into the queue
	Rejected uint64 // invalid or too large; the sender was told
	Refused  uint64 // the queue was full or the store broken; the sender was told to come again
	Stored   uint64 // accepted and written; with Lost, it lags behind Accepted by what waits
	Lost     uint64 // accepted, but could not be written
	Bytes    int64  // that the directory takes
}

// Open opens or makes the store in c.Dir and starts the writer. A directory that
// another process has open is a weft.Conflict.
func Open(c Config) (*Collector, error) { return open(c, vfs.Default, time.Now) }

func open(conf Config, disk vfs.FS, now func() time.Time) (*Collector, error) {
	const op = "open span store"
	if conf.Retention == 0 {
		conf.Retention = defaultRetention
	}
	if conf.MaxBytes == 0 {
		conf.MaxBytes = defaultMaxBytes
	}
	switch {
	case conf.Dir == "":
		return nil, weft.Errorf(weft.Invalid, op, "", "no directory given")
	case conf.Retention < time.Minute:
		return nil, weft.Errorf(weft.Invalid, op, conf.Dir, "retention %v is below a minute", conf.Retention)
	case conf.MaxBytes < minMaxBytes:
		return nil, weft.Errorf(weft.Invalid, op, conf.Dir, "a maximum of %d bytes is below %d (16 MiB)", conf.MaxBytes, minMaxBytes)
	}
	if conf.Logger == nil {
		conf.Logger = slog.New(slog.DiscardHandler)
	}
	if err := disk.MkdirAll(conf.Dir, 0o700); err != nil {
		return nil, weft.Errorf(kindOfFile(err), op, conf.Dir, "%w", err)
	}
	s, err := openStore(conf.Dir, disk, conf.MaxBytes, conf.Logger)
	if err != nil {
		return nil, err
	}
	c := &Collector{
		retention: conf.Retention, maxBytes: conf.MaxBytes, log: conf.Logger, now: now,
		store: s, queue: make(chan batch, queueBatches), written: make(chan struct{}),
	}
	c.sweep()
	go c.write()
	return c, nil
}

func kindOfFile(err error) weft.Kind {
	if errors.Is(err, fs.ErrPermission) {
		return weft.Denied
	}
	return weft.Internal
}

// Close refuses further spans, writes those that wait, and closes the store.
func (c *Collector) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		<-c.written
		return nil
	}
	c.closed = true
	close(c.queue)
	c.mu.Unlock()
	<-c.written

	c.readers.Lock()
	defer c.readers.Unlock()
	if err := c.store.close(); err != nil {
		return weft.Errorf(weft.Internal, "close span store", c.store.dir, "%w", err)
	}
	return nil
}

// Stats returns the counters.
func (c *Collector) Stats() Stats {
	s := Stats{
		Accepted: c.accepted.Load(), Rejected: c.rejected.Load(),
		Refused: c.refused.Load(), Stored: c.stored.Load(), Lost: c.lost.Load(),
	}
	c.readers.RLock()
	defer c.readers.RUnlock()
	if !c.isClosed() {
		s.Bytes = c.store.bytes()
	}
	return s
}

func (c *Collector) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

var errQueueFull = errors.New("the queue of spans is full")

// enqueue hands the spans of one request to the writer, all or none. It never
// waits.
func (c *Collector) enqueue(spans []record) error {
	b := batch{spans: spans}
	for i := range spans {
		b.bytes += spans[i].size()
	}
	refuse := func(why error) error {
		c.refused.Add(uint64(len(spans)))
		return weft.Errorf(weft.Unavailable, "store spans", "", "%w", why)
	}
	if why := c.store.broken(); why != "" {
		return refuse(errors.New("the span store cannot write: " + why))
	}
	if c.store.low() {
		return refuse(fmt.Errorf("less than %d MiB are free on the disk", diskReserve>>20))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return refuse(errors.New("the collector is stopping"))
	}
	// A batch that is larger than the bound by itself passes an empty queue.
	if waiting := c.queued.Load(); waiting > 0 && waiting+b.bytes > queueBytes {
		return refuse(errQueueFull)
	}
	select {
	case c.queue <- b:
		c.queued.Add(b.bytes)
		c.accepted.Add(uint64(len(spans)))
		return nil
	default:
		return refuse(errQueueFull)
	}
}

// write is the writer goroutine: it owns everything that changes the store. It
// ends when the queue is closed and empty.
func (c *Collector) write() {
	defer close(c.written)
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case b, ok := <-c.queue:
			if !ok {
				return
			}
			c.commit(b)
		case <-tick.C:
			c.sweep()
		}
	}
}

// commit writes one batch together with the others that wait, up to writeBytes.
func (c *Collector) commit(b batch) {
	spans, bytes := b.spans, b.bytes
	for more := true; more && bytes < writeBytes; {
		select {
		case next, ok := <-c.queue:
			if more = ok; ok {
				spans, bytes = append(spans, next.spans...), bytes+next.bytes
			}
		default:
			more = false
		}
	}
	c.queued.Add(-bytes)
	newPart, err := c.store.write(spans, c.now())
	if err != nil {
		c.lost.Add(uint64(len(spans)))
		c.log.Error("spans lost", "spans", len(spans), "error", err)
		return
	}
	if newPart {
		c.sweep()
	}
	c.stored.Add(uint64(len(spans)))
}

// sweep drops what is over the retention or the size. Called by the writer, and
// by open before it starts.
func (c *Collector) sweep() {
	if err := c.store.sweep(c.now().Add(-c.retention), c.maxBytes); err != nil {
		c.log.Error("old spans were not dropped", "error", err)
	}
}

// reading runs fn while the store is open.
func (c *Collector) reading(op, thing string, fn func() error) error {
	c.readers.RLock()
	defer c.readers.RUnlock()
	if c.isClosed() {
		return weft.Errorf(weft.Unavailable, op, thing, "the collector is stopped")
	}
	return fn()
}
