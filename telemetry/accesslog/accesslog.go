// Package accesslog writes JSON lines that cost little: one for each request that
// a proxy served.
//
//	w := accesslog.New(file, func(err error) { logger.Error("access log", "error", err) })
//	defer w.Close()
//
//	l := w.Begin(time.Now(), slog.LevelInfo, "200")
//	l.Str("method", "GET")
//	l.Int("status", 200)
//	l.Float("duration_ms", 0.25)
//	l.End()
//
// gives
//
//	{"time":"2026-05-01T12:00:00.000000001Z","level":"INFO","msg":"200","method":"GET","status":200,"duration_ms":0.25}
//
// which is what a slog.JSONHandler writes for the same record, byte for byte.
//
// Lines are kept in memory and written together, each within 100 ms, so that a
// killed process loses no more than those. Whole lines go into one Write:
// a terminal, or a file that is open for appending, may be shared with others.
// Nobody who logs waits for the disk. When it is slower than the lines, and 1 MiB
// waits for it, further ones are dropped and counted.
package accesslog

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	flushInterval = 100 * time.Millisecond // how long a line may wait
	bufferSize    = 64 << 10
	// maxBuffers hold what comes while a disk stalls: 1 MiB is 50 ms of 50,000
	// lines of 400 bytes a second. All but two are given back when it is over.
	maxBuffers  = 16
	keptBuffers = 2
	// closeTimeout bounds how long Close waits for an output that takes nothing,
	// such as a terminal that was stopped.
	closeTimeout = 2 * time.Second
)

var errStuck = errors.New("close access log: the output takes nothing, the last lines are lost")

// Writer gathers lines and writes them. Its methods may be called from any
// goroutine.
type Writer struct {
	// constant
	out    io.Writer
	failed func(error)
	stop   chan struct{} // closed by Close
	done   chan struct{} // closed by run
	some   chan struct{} // there is a first line; of capacity 1
	full   chan struct{} // a buffer is full; of capacity 1

	// atomics
	written atomic.Uint64
	dropped atomic.Uint64

	// under mu
	mu      sync.Mutex
	filling []byte   // whole lines
	waiting [][]byte // full ones, to be written in this order
	free    [][]byte
	made    int // buffers that exist: filling, waiting, free, and those that run writes
	closed  bool

	// of run's goroutine
	torn    bool // the output ends in the middle of a line
	failing bool
}

// New starts a writer to out, which must take each Write whole as files do. The
// caller closes out, after Close. failed hears of the first of several Writes
// that failed one after another, on a goroutine of the writer.
func New(out io.Writer, failed func(error)) *Writer {
	w := &Writer{
		out: out, failed: failed,
		stop: make(chan struct{}), done: make(chan struct{}),
		some: make(chan struct{}, 1), full: make(chan struct{}, 1),
		filling: make([]byte, 0, bufferSize), made: 1,
	}
	go w.run()
	return w
}

// Written counts the lines that the output took.
func (w *Writer) Written() uint64 { return w.written.Load() }

// Dropped counts the lines that it did not: it was too slow or failed, or the
// line was longer than 64 KiB or came after Close.
func (w *Writer) Dropped() uint64 { return w.dropped.Load() }

// Close writes what is left. Lines that end later are dropped. It waits at most
// two seconds for an output that takes nothing.
func (w *Writer) Close() error {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.stop)
	}
	w.mu.Unlock()
	timeout := time.NewTimer(closeTimeout)
	defer timeout.Stop()
	select {
	case <-w.done:
		return nil
	case <-timeout.C:
		return errStuck
	}
}

// add takes a copy of a line.
func (w *Writer) add(line []byte) {
	w.mu.Lock()
	full := len(line) > cap(w.filling)-len(w.filling)
	if w.closed || len(line) > bufferSize || full && !w.swap() {
		w.mu.Unlock()
		w.dropped.Add(1)
		return
	}
	first := len(w.filling) == 0
	w.filling = append(w.filling, line...)
	w.mu.Unlock()
	if full {
		signal(w.full)
	}
	if first {
		signal(w.some)
	}
}

// swap puts the full buffer where run finds it, and an empty one into its place.
// It is called under mu.
func (w *Writer) swap() bool {
	var next []byte
	switch n := len(w.free); {
	case n > 0:
		next, w.free = w.free[n-1], w.free[:n-1]
	case w.made < maxBuffers:
		next = make([]byte, 0, bufferSize)
		w.made++
	default:
		return false
	}
	w.waiting = append(w.waiting, w.filling)
	w.filling = next
	return true
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run writes what add gathered, until Close. While nothing is logged it sleeps
// and no timer runs.
func (w *Writer) run() {
	defer close(w.done)
	timer := time.NewTimer(flushInterval)
	timer.Stop()
	for {
		select {
		case <-w.some:
			timer.Reset(flushInterval)
		case <-w.full:
			w.flush(false)
		case <-timer.C:
			if w.flush(true) {
				signal(w.some)
			}
		case <-w.stop:
			for w.flush(true) {
			}
			return
		}
	}
}

// flush writes the full buffers, and when all is set the one that is being
// filled, too. It tells whether that one has lines.
func (w *Writer) flush(all bool) (more bool) {
	w.mu.Lock()
	if all && len(w.filling) > 0 {
		w.swap() // fails when all wait for the disk: then next time
	}
	for len(w.waiting) > 0 {
		b := w.waiting[0]
		n := copy(w.waiting, w.waiting[1:])
		w.waiting[n] = nil
		w.waiting = w.waiting[:n]
		w.mu.Unlock()
		w.write(b)
		w.mu.Lock()
		if len(w.free) < keptBuffers-1 {
			w.free = append(w.free, b[:0])
		} else {
			w.made--
		}
	}
	more = len(w.filling) > 0
	w.mu.Unlock()
	return more
}

// write gives whole lines to the output. The rest of a line of which only a part
// was taken is lost, and the next begins on a line of its own.
func (w *Writer) write(b []byte) {
	if w.torn {
		if _, err := w.out.Write([]byte("\n")); err != nil {
			w.lost(b, err)
			return
		}
		w.torn = false
	}
	n, err := w.out.Write(b)
	if err == nil {
		w.failing = false
		w.written.Add(uint64(bytes.Count(b, newline)))
		return
	}
	n = min(max(n, 0), len(b))
	w.torn = n > 0 && b[n-1] != '\n'
	w.written.Add(uint64(bytes.Count(b[:n], newline)))
	w.lost(b[n:], err)
}

func (w *Writer) lost(b []byte, err error) {
	w.dropped.Add(uint64(bytes.Count(b, newline)))
	if !w.failing {
		w.failing = true
		w.failed(err)
	}
}

var newline = []byte{'\n'}
