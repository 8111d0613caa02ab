package resilience

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func newPool(t testing.TB, s PoolSpec) *Pool {
	t.Helper()
	p, err := NewPool(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func ExamplePool() {
	p, err := NewPool(PoolSpec{Workers: 2, Queue: 10})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	err = p.Do(context.Background(), func(context.Context) error {
		fmt.Println("on a worker")
		return errors.New("paper jam")
	})
	fmt.Println(err)
	// Output:
	// on a worker
	// paper jam
}

func TestPoolRejectsBadSpecs(t *testing.T) {
	for _, s := range []PoolSpec{{}, {Workers: -1}, {Workers: 1, Queue: -1}} {
		if p, err := NewPool(s); err == nil || p != nil {
			t.Errorf("%+v: accepted", s)
		}
	}
}

// TestPoolQueue fills a pool: two run, three wait, the sixth is rejected; and the
// queue is served in order.
func TestPoolQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, PoolSpec{Workers: 2, Queue: 3})
		defer p.Close()
		step := make(chan struct{})
		var mu sync.Mutex
		var began []int
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				if err := p.Do(t.Context(), func(context.Context) error {
					mu.Lock()
					began = append(began, i)
					mu.Unlock()
					<-step
					return nil
				}); err != nil {
					t.Errorf("call %d: %v", i, err)
				}
			})
			synctest.Wait()
		}
		if err := p.Do(t.Context(), func(context.Context) error { return nil }); err != ErrBulkheadFull {
			t.Errorf("with a full queue: %v", err)
		}
		for range 5 {
			step <- struct{}{}
			synctest.Wait()
		}
		wg.Wait()
		if !slices.Equal(began, []int{0, 1, 2, 3, 4}) {
			t.Errorf("began in the order %v", began)
		}
	})
}

func TestPoolWithoutQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, PoolSpec{Workers: 1})
		defer p.Close()
		stop := make(chan struct{})
		go func() {
			_ = p.Do(t.Context(), func(context.Context) error { <-stop; return nil })
		}()
		synctest.Wait()
		nothing := func(context.Context) error { return nil }
		if err := p.Do(t.Context(), nothing); err != ErrBulkheadFull {
			t.Errorf("with a busy worker: %v", err)
		}
		close(stop)
		for range 100 { // an idle worker takes one after the other
			synctest.Wait()
			if err := p.Do(t.Context(), nothing); err != nil {
				t.Fatalf("with an idle worker: %v", err)
			}
		}
	})
}

func TestPoolNeverRunsWhoGaveUp(t *testing.T) {
	errGone := errors.New("client gone")
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, PoolSpec{Workers: 1, Queue: 1})
		defer p.Close()
		stop := make(chan struct{})
		go func() {
			_ = p.Do(t.Context(), func(context.Context) error { <-stop; return nil })
		}()
		synctest.Wait()
		ran := func(context.Context) error { t.Error("ran"); return nil }
		for range 3 { // each leaves its place in the queue to the next
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errGone)
			start := time.Now()
			if err := p.Do(ctx, ran); err != errGone || time.Since(start) != time.Second {
				t.Errorf("%v after %v", err, time.Since(start))
			}
			if err := p.Do(ctx, ran); err != errGone {
				t.Errorf("ended before: %v", err)
			}
			cancel()
		}
		close(stop)
	})
}

// TestPoolEndedInTheQueue ends ctx in the instant in which the worker becomes free.
func TestPoolEndedInTheQueue(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			p := newPool(t, PoolSpec{Workers: 1, Queue: 1})
			defer p.Close()
			stop := make(chan struct{})
			go func() {
				_ = p.Do(t.Context(), func(context.Context) error { <-stop; return nil })
			}()
			synctest.Wait()
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				cancel()
				close(stop)
			}()
			ran := false
			if err := p.Do(ctx, func(context.Context) error { ran = true; return nil }); ran || err != context.Canceled {
				t.Fatalf("ran %v, %v", ran, err)
			}
		})
	}
}

func TestPoolPassesPanicsOn(t *testing.T) {
	p := newPool(t, PoolSpec{Workers: 1})
	defer p.Close()
	errJam := errors.New("paper jam")
	for range 3 {
		func() {
			defer func() {
				if got := recover(); got != errJam {
					t.Errorf("recovered %v", got)
				}
			}()
			err := p.Do(t.Context(), func(context.Context) error { panic(errJam) })
			t.Errorf("Do returned %v", err)
		}()
		returned := true
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = p.Do(t.Context(), func(context.Context) error { runtime.Goexit(); return nil })
			returned = false
		}()
		if <-ended; !returned {
			t.Error("Do returned though fn ended its goroutine")
		}
		waitForPool(t, p, func() error { return p.Do(t.Context(), func(context.Context) error { return nil }) })
	}
}

// waitForPool tries until a worker has become free: Do returns a little before its
// worker is idle.
func waitForPool(t *testing.T, p *Pool, do func() error) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); runtime.Gosched() {
		if err := do(); err == nil {
			return
		} else if err != ErrBulkheadFull {
			t.Fatal(err)
		}
	}
	t.Fatal("the worker is lost")
}

// TestPoolWorkerThatEnds has a queue behind a call that ends its worker.
func TestPoolWorkerThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, PoolSpec{Workers: 1, Queue: 5})
		defer p.Close()
		stop := make(chan struct{})
		go func() {
			_ = p.Do(t.Context(), func(context.Context) error { <-stop; runtime.Goexit(); return nil })
		}()
		synctest.Wait()
		var done atomic.Int32
		for range 5 {
			go func() {
				_ = p.Do(t.Context(), func(context.Context) error { done.Add(1); return nil })
			}()
		}
		synctest.Wait()
		close(stop)
		synctest.Wait()
		if done.Load() != 5 {
			t.Errorf("%d of 5 ran", done.Load())
		}
	})
}

func TestPoolClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, PoolSpec{Workers: 2, Queue: 3})
		var finished, rejected atomic.Int32
		for range 5 {
			go func() {
				switch err := p.Do(t.Context(), func(context.Context) error {
					time.Sleep(time.Second)
					finished.Add(1)
					return nil
				}); err {
				case nil:
				case ErrPoolClosed:
					rejected.Add(1)
				default:
					t.Error(err)
				}
			}()
		}
		synctest.Wait()
		start := time.Now()
		p.Close()
		if finished.Load() != 2 || time.Since(start) != time.Second {
			t.Errorf("%d finished when Close returned after %v", finished.Load(), time.Since(start))
		}
		synctest.Wait()
		if rejected.Load() != 3 {
			t.Errorf("%d of 3 in the queue were rejected", rejected.Load())
		}
		if err := p.Do(t.Context(), func(context.Context) error { return nil }); err != ErrPoolClosed {
			t.Errorf("after Close: %v", err)
		}
		p.Close()
	})
}

func TestPoolStartsNoMoreWorkersThanNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, PoolSpec{Workers: 1000, Queue: 10})
		defer p.Close()
		for range 50 {
			if err := p.Do(t.Context(), func(context.Context) error { return nil }); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if p.workers != 1 {
			t.Errorf("%d workers for one call at a time", p.workers)
		}
	})
}

func TestPoolStorm(t *testing.T) {
	const workers, callers, calls = 3, 16, 500
	p := newPool(t, PoolSpec{Workers: workers, Queue: 4})
	var inside, ran atomic.Int32
	var ok, full, gone atomic.Int32
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for n := range calls {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration((i*n)%50)*time.Microsecond)
				switch err := p.Do(ctx, func(context.Context) error {
					if n := inside.Add(1); n > workers {
						t.Errorf("%d run at once", n)
					}
					runtime.Gosched()
					ran.Add(1)
					inside.Add(-1)
					return nil
				}); {
				case err == nil:
					ok.Add(1)
				case err == ErrBulkheadFull:
					full.Add(1)
				case errors.Is(err, context.DeadlineExceeded):
					gone.Add(1)
				default:
					t.Error(err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	p.Close()
	if ran.Load() != ok.Load() || ok.Load()+full.Load()+gone.Load() != callers*calls {
		t.Errorf("%d ran, %d returned nil, %d full, %d gone", ran.Load(), ok.Load(), full.Load(), gone.Load())
	}
}

func TestPoolAllocatesNothing(t *testing.T) {
	p := newPool(t, PoolSpec{Workers: 1, Queue: 1})
	defer p.Close()
	ctx := context.Background()
	nothing := func(context.Context) error { return nil }
	if n := testing.AllocsPerRun(1000, func() { _ = p.Do(ctx, nothing) }); n >= 1 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPool(b *testing.B) {
	p := newPool(b, PoolSpec{Workers: 2, Queue: 100})
	defer p.Close()
	ctx := context.Background()
	nothing := func(context.Context) error { return nil }
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Do(ctx, nothing); err != nil {
			b.Fatal(err)
		}
	}
}
