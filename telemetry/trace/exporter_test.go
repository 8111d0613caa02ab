package trace

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receiver is the far end of an exporter: what arrived, and what it answers.
type receiver struct {
	t    *testing.T
	hang bool // until the call's context ends

	mu      sync.Mutex
	answers []error // to the next calls; then nil
	got     []int   // spans of each call that was taken
	called  int
}

func (r *receiver) send(ctx context.Context, payload []byte) error {
	if r.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.called++
	if len(r.answers) > 0 {
		err := r.answers[0]
		r.answers = r.answers[1:]
		if err != nil {
			return err
		}
	}
	r.got = append(r.got, len(decodeOTLP(r.t, payload).ResourceSpans[0].ScopeSpans[0].Spans))
	return nil
}

func (r *receiver) calls() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.called
}

func (r *receiver) batches() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func (r *receiver) spans() (n int) {
	for _, g := range r.batches() {
		n += g
	}
	return n
}

// exporting runs an exporter in a synctest bubble while fn acts, then stops it.
func exporting(t *testing.T, size int, r *receiver, fn func(*Exporter)) *Exporter {
	e := &Exporter{Recorder: NewRecorder(size), Resource: Resource{Service: "s"}, Send: r.send}
	r.t = t
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); e.Run(ctx) }()
	synctest.Wait()
	fn(e)
	stop()
	<-done
	return e
}

func record(e *Exporter, n int) {
	for range n {
		e.Recorder.Record(&Span{Name: "s"})
	}
	synctest.Wait()
}

func TestExporterSendsEverySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r receiver
		e := exporting(t, 16, &r, func(e *Exporter) {
			record(e, 3)
			if r.calls() != 0 {
				t.Error("sent before the interval was over")
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if r.spans() != 3 {
				t.Errorf("%d spans arrived, want 3", r.spans())
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if r.calls() != 1 {
				t.Errorf("%d calls, although there was nothing to send", r.calls())
			}
		})
		if e.Sent() != 3 || e.Lost() != 0 {
			t.Errorf("sent %d, lost %d", e.Sent(), e.Lost())
		}
	})
}

func TestExporterSendsWhenTheRingIsHalfFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r receiver
		exporting(t, 16, &r, func(e *Exporter) {
			record(e, 7)
			if r.spans() != 0 {
				t.Fatal("sent below half")
			}
			record(e, 1)
			if r.spans() != 8 {
				t.Errorf("%d spans arrived at once, want 8", r.spans())
			}
		})
	})
}

func TestExporterSplitsBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r receiver
		exporting(t, 4096, &r, func(e *Exporter) {
			record(e, maxBatch+1)
			time.Sleep(time.Second)
			synctest.Wait()
			if got := r.batches(); !slices.Equal(got, []int{maxBatch, 1}) {
				t.Errorf("batches %v", got)
			}
		})
	})
}

func TestExporterRetriesThenCountsAsLost(t *testing.T) {
	boom := errors.New("unreachable")
	synctest.Test(t, func(t *testing.T) {
		r := receiver{answers: []error{boom, boom, nil}}
		e := exporting(t, 16, &r, func(e *Exporter) {
			record(e, 2)
			time.Sleep(5 * time.Second)
		})
		if r.calls() != 3 || e.Sent() != 2 || e.Lost() != 0 {
			t.Errorf("calls %d, sent %d, lost %d; want 3, 2, 0", r.calls(), e.Sent(), e.Lost())
		}

	})
	synctest.Test(t, func(t *testing.T) {
		r := receiver{answers: []error{boom, boom, boom, boom, nil}}
		e := exporting(t, 16, &r, func(e *Exporter) {
			record(e, 2)
			time.Sleep(5 * time.Second)
			record(e, 1)
			time.Sleep(5 * time.Second)
		})
		if r.calls() != 5 || e.Sent() != 1 || e.Lost() != 2 {
			t.Errorf("calls %d, sent %d, lost %d; want 5, 1, 2", r.calls(), e.Sent(), e.Lost())
		}
	})
}

func TestExporterFlushesAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r receiver
		e := exporting(t, 4096, &r, func(e *Exporter) { record(e, maxBatch+5) })
		if r.spans() != maxBatch+5 || e.Sent() != maxBatch+5 {
			t.Errorf("%d spans arrived, sent %d", r.spans(), e.Sent())
		}
	})
}

func TestExporterFlushesABatchThatWasWaitingForItsRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := receiver{answers: []error{errors.New("busy")}}
		e := exporting(t, 16, &r, func(e *Exporter) {
			record(e, 2)
			time.Sleep(time.Second + firstBackoff/2)
			synctest.Wait()
		})
		if r.spans() != 2 || e.Lost() != 0 {
			t.Errorf("%d spans arrived, %d lost", r.spans(), e.Lost())
		}
	})
}

func TestExporterStopsInTimeWhenTheReceiverHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := receiver{hang: true}
		var stopping time.Time
		e := exporting(t, 4096, &r, func(e *Exporter) {
			record(e, 2*maxBatch)
			time.Sleep(2 * time.Second) // within the first attempt
			stopping = time.Now()
		})
		if took := time.Since(stopping); took > flushTimeout {
			t.Errorf("Run took %v to end, limit %v", took, flushTimeout)
		}
		if e.Lost() != 2*maxBatch || e.Sent() != 0 {
			t.Errorf("lost %d, sent %d", e.Lost(), e.Sent())
		}
	})
}
