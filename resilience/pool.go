package resilience

import (
	"context"
	"errors"
	"runtime"
	"sync"
)

// ErrPoolClosed is what Pool.Do returns after Close.
var ErrPoolClosed = errors.New("pool closed")

// Pool is a bulkhead with goroutines of its own: at most Workers calls run at once
// and at most Queue wait for their turn, first come, first served. It suits calls
// that must not run on their caller's stack, as those into C or into code that
// pins its thread; otherwise a Bulkhead does the same for less.
//
//	err := p.Do(ctx, func(ctx context.Context) error { return resize(ctx, image) })
//
// Workers are started when first needed, and stay until Close.
type Pool struct {
	spec PoolSpec
	jobs sync.Pool

	mu          sync.Mutex
	work        sync.Cond // of mu: a job was queued, or the pool closed
	first, last *job      // under mu, like all below
	queued      int
	idle        int // workers that wait for work, also those that were woken and have not taken it yet
	workers     int
	closed      bool

	running sync.WaitGroup // workers
}

// job is a call of Do. Do owns it until it is queued, and again after done.
type job struct {
	ctx  context.Context
	fn   func(context.Context) error
	done chan struct{} // of capacity 1

	next, prev *job // under Pool.mu
	waiting    bool // under Pool.mu

	// Written by the worker before done.
	err      error
	panicked any
	exited   bool // fn called runtime.Goexit
}

// NewPool returns a Pool, or a FieldError when s is out of range.
func NewPool(s PoolSpec) (*Pool, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	p := &Pool{spec: s.withDefaults()}
	p.work.L = &p.mu
	return p, nil
}

// Do runs fn on a worker and returns what it returns. It returns ErrBulkheadFull
// when all workers are busy and the queue is full, ErrPoolClosed after Close, and
// the cause of ctx when that ended before fn began: then fn never runs. Once fn
// runs Do waits for it, also when ctx ends; fn is to look at its ctx. A panic in
// fn is a panic of Do.
func (p *Pool) Do(ctx context.Context, fn func(context.Context) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	j, _ := p.jobs.Get().(*job)
	if j == nil {
		j = &job{done: make(chan struct{}, 1)}
	}
	j.ctx, j.fn = ctx, fn
	if err := p.submit(j); err != nil {
		p.put(j)
		return err
	}
	select {
	case <-j.done:
	case <-ctx.Done():
		if p.withdraw(j) {
			p.put(j)
			return context.Cause(ctx)
		}
		<-j.done
	}
	err, panicked, exited := j.err, j.panicked, j.exited
	p.put(j)
	switch {
	case panicked != nil:
		panic(panicked)
	case exited:
		runtime.Goexit()
	}
	return err
}

// Close lets what runs finish and waits for it. What waits in the queue, and every
// later Do, returns ErrPoolClosed. Close must not be called by a worker.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	for j := p.first; j != nil; j = p.first {
		p.unlink(j)
		j.err = ErrPoolClosed
		j.done <- struct{}{}
	}
	p.work.Broadcast()
	p.mu.Unlock()
	p.running.Wait()
}

func (p *Pool) put(j *job) {
	*j = job{done: j.done}
	p.jobs.Put(j)
}

// submit gives j to a worker: to a new one, one that is idle, or later.
func (p *Pool) submit(j *job) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return ErrPoolClosed
	case p.queued < p.idle:
		p.push(j)
		p.work.Signal()
	case p.workers < p.spec.Workers:
		p.start(j)
	case p.queued < p.idle+p.spec.Queue:
		p.push(j)
	default:
		return ErrBulkheadFull
	}
	return nil
}

// start starts a worker. The caller holds mu.
func (p *Pool) start(j *job) {
	p.workers++
	p.running.Add(1)
	go p.run(j)
}

// run is a worker.
func (p *Pool) run(j *job) {
	defer p.running.Done()
	left := false
	defer func() {
		if left {
			return
		}
		// fn ended this goroutine. Whoever is queued needs another.
		p.mu.Lock()
		p.workers--
		if next := p.first; next != nil && p.queued > p.idle {
			p.unlink(next)
			p.start(next)
		}
		p.mu.Unlock()
	}()
	for ; j != nil; j = p.next() {
		j.run()
	}
	left = true
}

// next waits for work. It returns nil when the pool is closed.
func (p *Pool) next() *job {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle++
	for p.first == nil && !p.closed {
		p.work.Wait()
	}
	p.idle--
	j := p.first
	if j != nil {
		p.unlink(j)
	}
	return j
}

// withdraw takes j out of the queue. It reports false when it is not there any more.
func (p *Pool) withdraw(j *job) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !j.waiting {
		return false
	}
	p.unlink(j)
	return true
}

// run runs j on the goroutine of a worker, unless its ctx ended while it waited.
func (j *job) run() {
	if j.ctx.Err() != nil {
		j.err = context.Cause(j.ctx)
		j.done <- struct{}{}
		return
	}
	returned := false
	defer func() {
		if !returned {
			j.panicked = recover()
			j.exited = j.panicked == nil
		}
		j.done <- struct{}{}
	}()
	j.err = j.fn(j.ctx)
	returned = true
}

func (p *Pool) push(j *job) {
	p.queued++
	j.waiting, j.prev = true, p.last
	if p.last == nil {
		p.first = j
	} else {
		p.last.next = j
	}
	p.last = j
}

func (p *Pool) unlink(j *job) {
	p.queued--
	if j.prev == nil {
		p.first = j.next
	} else {
		j.prev.next = j.next
	}
	if j.next == nil {
		p.last = j.prev
	} else {
		j.next.prev = j.prev
	}
	j.next, j.prev, j.waiting = nil, nil, false
}
