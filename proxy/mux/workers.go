package mux

import (
	"sync"
	"time"
)

// Workers runs streams on goroutines that have run streams before: their stacks
// have grown to what a request needs, and the one that worked last, whose stack is
// still in the cache, works next. With a Serve that needs 8 KiB of stack a request
// costs 2 µs less than with a new goroutine each (BenchmarkWorkers); with a shallow
// one it costs the same. The zero value is ready. Its Go method fits Config.Go.
type Workers struct {
	mu     sync.Mutex
	idle   []*worker // the one used last on top
	closed bool
	live   sync.WaitGroup
}

const (
	idleWorkers = 256
	// workerPatience is how long a worker waits for its next stream.
	workerPatience = 10 * time.Second
)

type worker struct {
	next  chan task
	since time.Time // under mu: when Expire first saw it idle
}

// task is one call. Without a function it ends the worker.
type task struct {
	serve func(*Stream)
	s     *Stream
}

// Go calls serve(s) in a goroutine.
func (w *Workers) Go(serve func(*Stream), s *Stream) {
	w.mu.Lock()
	n := len(w.idle)
	if n == 0 {
		w.live.Add(1)
		w.mu.Unlock()
		k := &worker{next: make(chan task, 1)}
		k.next <- task{serve, s}
		go w.work(k)
		return
	}
	k := w.idle[n-1]
	w.idle[n-1] = nil
	w.idle = w.idle[:n-1]
	k.since = time.Time{}
	w.mu.Unlock()
	k.next <- task{serve, s}
}

func (w *Workers) work(k *worker) {
	defer w.live.Done()
	for {
		t := <-k.next
		if t.serve == nil {
			return
		}
		t.serve(t.s)
		w.mu.Lock()
		if w.closed || len(w.idle) >= idleWorkers {
			w.mu.Unlock()
			return
		}
		w.idle = append(w.idle, k)
		w.mu.Unlock()
	}
}

// Expire ends workers that have been idle for long. Its owner calls it now and
// then.
func (w *Workers) Expire(now time.Time) {
	w.mu.Lock()
	n := 0
	for _, k := range w.idle {
		if k.since.IsZero() {
			k.since = now
		}
		if now.Sub(k.since) >= workerPatience {
			n++
		}
	}
	old := append([]*worker(nil), w.idle[:n]...)
	w.idle = append(w.idle[:0], w.idle[n:]...)
	w.mu.Unlock()
	for _, k := range old {
		k.next <- task{}
	}
}

// Close ends the idle workers and waits for those that run.
func (w *Workers) Close() {
	w.mu.Lock()
	idle := w.idle
	w.idle, w.closed = nil, true
	w.mu.Unlock()
	for _, k := range idle {
		k.next <- task{}
	}
	w.live.Wait()
}
