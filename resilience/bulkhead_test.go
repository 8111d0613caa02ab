package resilience

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func newBulkhead(t testing.TB, s BulkheadSpec) *Bulkhead {
	t.Helper()
	b, err := NewBulkhead(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ExampleBulkhead() {
	b, err := NewBulkhead(BulkheadSpec{MaxConcurrentCalls: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	fmt.Println(b.Acquire(ctx))
	fmt.Println(b.Acquire(ctx))
	b.Release()
	fmt.Println(b.Acquire(ctx))
	// Output:
	// <nil>
	// bulkhead full
	// <nil>
}

func TestBulkheadRejectsBadSpecs(t *testing.T) {
	for _, s := range []BulkheadSpec{{}, {MaxConcurrentCalls: -1}, {MaxConcurrentCalls: 1, MaxWaitDuration: -1}, {MaxConcurrentCalls: 1, MaxWaiting: -1}} {
		if b, err := NewBulkhead(s); err == nil || b != nil {
			t.Errorf("%+v: accepted", s)
		}
		b := newBulkhead(t, BulkheadSpec{MaxConcurrentCalls: 1})
		if err := b.Update(s); err == nil {
			t.Errorf("%+v: update accepted", s)
		}
	}
}

func TestBulkheadWaits(t *testing.T) {
	errGone := errors.New("client gone")
	for _, tc := range []struct {
		name    string
		spec    BulkheadSpec
		ctx     func() (context.Context, context.CancelFunc)
		release time.Duration // of the one slot; 0: never
		want    error
		after   time.Duration
	}{
		{name: "no wait: rejected at once", spec: BulkheadSpec{MaxConcurrentCalls: 1}, want: ErrBulkheadFull},
		{name: "the wait is over", spec: BulkheadSpec{MaxConcurrentCalls: 1, MaxWaitDuration: time.Second},
			want: ErrBulkheadFull, after: time.Second},
		{name: "a slot in time", spec: BulkheadSpec{MaxConcurrentCalls: 1, MaxWaitDuration: time.Second},
			release: 999 * time.Millisecond, after: 999 * time.Millisecond},
		{name: "the deadline is nearer", spec: BulkheadSpec{MaxConcurrentCalls: 1, MaxWaitDuration: time.Second},
			ctx: func() (context.Context, context.CancelFunc) {
				return context.WithTimeoutCause(context.Background(), time.Millisecond, errGone)
			}, want: errGone, after: time.Millisecond},
		{name: "the deadline is farther", spec: BulkheadSpec{MaxConcurrentCalls: 1, MaxWaitDuration: time.Second},
			ctx: func() (context.Context, context.CancelFunc) {
				return context.WithTimeout(context.Background(), time.Minute)
			}, want: ErrBulkheadFull, after: time.Second},
		{name: "ended before", spec: BulkheadSpec{MaxConcurrentCalls: 1, MaxWaitDuration: time.Second},
			ctx: func() (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancelCause(context.Background())
				cancel(errGone)
				return ctx, func() { cancel(nil) }
			}, want: errGone},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBulkhead(t, tc.spec)
				ctx, cancel := context.Background(), func() {}
				if err := b.Acquire(ctx); err != nil {
					t.Fatal(err)
				}
				if tc.ctx != nil {
					ctx, cancel = tc.ctx()
				}
				defer cancel()
				if tc.release > 0 {
					time.AfterFunc(tc.release, b.Release)
				}
				start := time.Now()
				if err := b.Acquire(ctx); err != tc.want {
					t.Errorf("got %v, want %v", err, tc.want)
				}
				if got := time.Since(start); got != tc.after {
					t.Errorf("after %v, want %v", got, tc.after)
				}
				if b.InUse() != 1 || b.Waiting() != 0 {
					t.Errorf("%d in use, %d wait", b.InUse(), b.Waiting())
				}
			})
		})
	}
}

func TestBulkheadMaxWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBulkhead(t, BulkheadSpec{MaxConcurrentCalls: 1, MaxWaitDuration: time.Hour, MaxWaiting: 2})
		var let atomic.Int32
		for range 3 {
			go func() {
				if b.Acquire(t.Context()) == nil {
					let.Add(1)
				}
			}()
		}
		synctest.Wait()
		start := time.Now()
		if err := b.Acquire(t.Context()); err != ErrBulkheadFull || time.Since(start) != 0 {
			t.Errorf("with two waiting: %v after %v", err, time.Since(start))
		}
		for want := int32(1); want <= 3; want++ {
			if synctest.Wait(); let.Load() != want {
				t.Fatalf("%d let in, want %d", let.Load(), want)
			}
			b.Release()
		}
	})
}

func TestBulkheadReleaseWithoutAcquire(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	newBulkhead(t, BulkheadSpec{MaxConcurrentCalls: 1}).Release()
}

// bulkheadModel is the slow, obvious bulkhead.
type bulkheadModel struct {
	spec    BulkheadSpec
	now     time.Duration
	inUse   int
	waiting []modelCall
	ended   map[int]error
}

type modelCall struct {
	id    int
	until time.Duration
}

func (m *bulkheadModel) acquire(id int) {
	switch {
	case len(m.waiting) == 0 && m.inUse < m.spec.MaxConcurrentCalls:
		m.inUse++
		m.ended[id] = nil
	case m.spec.MaxWaitDuration == 0, m.spec.MaxWaiting > 0 && len(m.waiting) >= m.spec.MaxWaiting:
		m.ended[id] = ErrBulkheadFull
	default:
		m.waiting = append(m.waiting, modelCall{id, m.now + m.spec.MaxWaitDuration})
	}
}

func (m *bulkheadModel) letIn() {
	for len(m.waiting) > 0 && m.inUse < m.spec.MaxConcurrentCalls {
		m.inUse++
		m.ended[m.waiting[0].id] = nil
		m.waiting = m.waiting[1:]
	}
}

func (m *bulkheadModel) end(err error, which func(modelCall) bool) {
	var left []modelCall
	for _, c := range m.waiting {
		if which(c) {
			m.ended[c.id] = err
		} else {
			left = append(left, c)
		}
	}
	m.waiting = left
}

// TestBulkheadAgainstModel does the same to a Bulkhead and to the model, and compares
// who was let in, who was not and why, after each step. Waits end at odd
// milliseconds and everything else happens at even ones, so that the order of what
// happens is never open.
func TestBulkheadAgainstModel(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 4))
			spec := func() BulkheadSpec {
				s := BulkheadSpec{MaxConcurrentCalls: 1 + rnd.IntN(4), MaxWaiting: rnd.IntN(5)}
				if rnd.IntN(8) > 0 {
					s.MaxWaitDuration = time.Duration(1+2*rnd.IntN(20)) * time.Millisecond
				}
				return s
			}
			m := &bulkheadModel{spec: spec(), ended: make(map[int]error)}
			b := newBulkhead(t, m.spec)
			var mu sync.Mutex
			ended := make(map[int]error)
			cancels := make(map[int]context.CancelFunc)
			calls := 0
			for step := range 400 {
				switch op := rnd.IntN(10); {
				case op < 5:
					id := calls
					calls++
					ctx, cancel := context.WithCancel(context.Background())
					cancels[id] = cancel
					m.acquire(id)
					go func() {
						err := b.Acquire(ctx)
						mu.Lock()
						defer mu.Unlock()
						ended[id] = err
					}()
				case op < 7 && m.inUse > 0:
					m.inUse--
					m.letIn()
					b.Release()
				case op < 8 && len(m.waiting) > 0:
					id := m.waiting[rnd.IntN(len(m.waiting))].id
					m.end(context.Canceled, func(c modelCall) bool { return c.id == id })
					cancels[id]()
				case op < 9:
					d := time.Duration(2*rnd.IntN(10)) * time.Millisecond
					m.now += d
					m.end(ErrBulkheadFull, func(c modelCall) bool { return c.until < m.now })
					time.Sleep(d)
				default:
					m.spec = spec()
					m.letIn()
					if err := b.Update(m.spec); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				mu.Lock()
				same := len(ended) == len(m.ended)
				for id, err := range m.ended {
					got, ok := ended[id]
					same = same && ok && got == err
				}
				mu.Unlock()
				if !same || b.InUse() != m.inUse || b.Waiting() != len(m.waiting) {
					t.Fatalf("seed %d, step %d: %v, %d in use, %d wait; want %v, %d, %d", seed, step,
						ended, b.InUse(), b.Waiting(), m.ended, m.inUse, len(m.waiting))
				}
			}
			for _, cancel := range cancels {
				cancel()
			}
		})
	}
}

// TestBulkheadStorm has callers that give up at any moment, also in the one in which
// they are handed a slot, and limits that change.
func TestBulkheadStorm(t *testing.T) {
	const callers, most = 16, 4
	b := newBulkhead(t, BulkheadSpec{MaxConcurrentCalls: most, MaxWaitDuration: time.Minute})
	var inside, let, gone atomic.Int32
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 7))
			for range 2000 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rnd.IntN(30))*time.Microsecond)
				switch err := b.Acquire(ctx); {
				case err == nil:
					if n := inside.Add(1); n > most {
						t.Errorf("%d inside, at most %d may be", n, most)
					}
					let.Add(1)
					for range rnd.IntN(300) {
						_ = rnd.Uint64()
					}
					inside.Add(-1)
					b.Release()
				case errors.Is(err, context.DeadlineExceeded):
					gone.Add(1)
				default:
					t.Error(err)
				}
				cancel()
			}
		})
	}
	wg.Go(func() {
		for i := range 2000 {
			if err := b.Update(BulkheadSpec{MaxConcurrentCalls: 1 + i%most, MaxWaitDuration: time.Minute}); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if b.InUse() != 0 || b.Waiting() != 0 {
		t.Fatalf("after all are gone %d in use, %d wait", b.InUse(), b.Waiting())
	}
	if let.Load() == 0 {
		t.Error("nobody was let in")
	}
	t.Logf("%d let in, %d gave up", let.Load(), gone.Load())
	if err := b.Update(BulkheadSpec{MaxConcurrentCalls: most}); err != nil {
		t.Fatal(err)
	}
	for range most {
		if err := b.Acquire(context.Background()); err != nil {
			t.Fatal("a slot is lost:", err)
		}
	}
}

// TestBulkheadSlotOfOneWhoLeaves hands a slot over in the instant in which the waiter's
// time ends: whoever wins, the slot is there afterwards.
func TestBulkheadSlotOfOneWhoLeaves(t *testing.T) {
	for _, byContext := range []bool{false, true} {
		for range 200 {
			synctest.Test(t, func(t *testing.T) {
				b := newBulkhead(t, BulkheadSpec{MaxConcurrentCalls: 1, MaxWaitDuration: time.Second})
				ctx, cancel := context.Background(), context.CancelFunc(func() {})
				if byContext {
					ctx, cancel = context.WithTimeout(ctx, time.Millisecond)
				}
				defer cancel()
				if err := b.Acquire(ctx); err != nil {
					t.Fatal(err)
				}
				wait := time.Second
				if byContext {
					wait = time.Millisecond
				}
				time.AfterFunc(wait, b.Release)
				err := b.Acquire(ctx)
				synctest.Wait()
				want := 0
				if err == nil {
					want = 1
				}
				if b.InUse() != want || b.Waiting() != 0 {
					t.Fatalf("%v: %d in use, %d wait", err, b.InUse(), b.Waiting())
				}
			})
		}
	}
}

// TestBulkheadCancelledBeforeTheSlot cancels a waiter, and then hands it a slot before
// it runs: it has ended, and the slot goes to the next.
func TestBulkheadCancelledBeforeTheSlot(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			b := newBulkhead(t, BulkheadSpec{MaxConcurrentCalls: 1, MaxWaitDuration: time.Second})
			if err := b.Acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			first, second := make(chan error, 1), make(chan error, 1)
			go func() { first <- b.Acquire(ctx) }()
			synctest.Wait()
			go func() { second <- b.Acquire(t.Context()) }()
			synctest.Wait()
			cancel()
			b.Release()
			if err := <-first; err != context.Canceled {
				t.Fatalf("the first: %v", err)
			}
			if err := <-second; err != nil {
				t.Fatalf("the second: %v", err)
			}
			if b.InUse() != 1 || b.Waiting() != 0 {
				t.Fatalf("%d in use, %d wait", b.InUse(), b.Waiting())
			}
		})
	}
}

func TestBulkheadAllocatesNothing(t *testing.T) {
	ctx := context.Background()
	b := newBulkhead(t, BulkheadSpec{MaxConcurrentCalls: 1})
	if n := testing.AllocsPerRun(1000, func() {
		_ = b.Acquire(ctx)
		_ = b.Acquire(ctx)
		b.Release()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	b = newBulkhead(t, BulkheadSpec{MaxConcurrentCalls: 1, MaxWaitDuration: time.Microsecond})
	_ = b.Acquire(ctx)
	// The race detector makes a sync.Pool forget a part of what it is given. Were
	// nothing used again it would be four.
	if n := testing.AllocsPerRun(1000, func() { _ = b.Acquire(ctx) }); n > 1 {
		t.Errorf("%v allocations for a wait; the timer is to be used again", n)
	}
}

func BenchmarkBulkhead(b *testing.B) {
	ctx := context.Background()
	free := newBulkhead(b, BulkheadSpec{MaxConcurrentCalls: 100})
	b.Run("free", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = free.Acquire(ctx)
			free.Release()
		}
	})
	b.Run("free/parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				_ = free.Acquire(ctx)
				free.Release()
			}
		})
	})
	queue := newBulkhead(b, BulkheadSpec{MaxConcurrentCalls: 1, MaxWaitDuration: time.Minute})
	b.Run("waiting", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if queue.Acquire(ctx) == nil {
					queue.Release()
				}
			}
		})
	})
}
