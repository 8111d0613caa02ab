package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Sizes of bodies, small ones most often; around the edges of buffers, frames and
// windows.
const largest = 5 << 20

func size(r *rand.Rand) int64 {
	edges := []int64{0, 1, 4 << 10, 16 << 10, 32 << 10, 64 << 10, 256 << 10}
	switch n := r.IntN(100); {
	case n < 50:
		return r.Int64N(4 << 10)
	case n < 80:
		return max(0, edges[r.IntN(len(edges))]+r.Int64N(5)-2)
	case n < 98:
		return r.Int64N(256 << 10)
	}
	return r.Int64N(largest)
}

// Limits of what is asked of weft.
const (
	// recovery is how long things may fail after a storm.
	recovery = 10 * time.Second
	// patience is longer than whatever a call may take: than any pause of a process,
	// and any slow body.
	patience = 30 * time.Second
	// mostFailed is the share of calls that may fail in storms. What has one instance
	// is away for seconds when that is killed.
	mostFailed = 0.2
	// backOff is how long a client waits after a failure, so that it does not count
	// one thing many times.
	backOff = 300 * time.Millisecond
)

// errCancelled is how a call ends that its client gave up.
var errCancelled = errors.New("given up")

// ledger counts how calls end.
type ledger struct {
	t testing.TB

	mu     sync.Mutex
	lanes  map[string]*account
	storms []storm
	wrong  int // how many complaints there were
}

// storm is a time in which calls may fail.
type storm struct{ from, to time.Time } // to is zero while it lasts

type account struct {
	good, cancelled, failed int
	stormy                  int // calls that touched a storm, or what is allowed to follow
	reasons                 map[string]int
	lastGood                time.Time
}

func newLedger(t testing.TB) *ledger { return &ledger{t: t, lanes: map[string]*account{}} }

// begin and end stand around a storm.
func (l *ledger) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.storms = append(l.storms, storm{from: time.Now()})
}

func (l *ledger) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.storms[len(l.storms)-1].to = time.Now()
}

// stormy says whether a call from a time until now may fail.
func (l *ledger) stormy(from time.Time) bool {
	for _, s := range l.storms {
		if s.to.IsZero() || from.Before(s.to.Add(recovery)) {
			return true
		}
	}
	return false
}

// note takes down how a call ended.
func (l *ledger) note(lane string, from time.Time, err error) {
	took := time.Since(from)
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.lanes[lane]
	if a == nil {
		a = &account{reasons: map[string]int{}}
		l.lanes[lane] = a
	}
	stormy := l.stormy(from)
	if stormy {
		a.stormy++
	}
	wrong := new(wrongBytes)
	switch {
	case errors.As(err, &wrong):
		l.complain("%s: %v", lane, err)
	case took > patience:
		l.complain("%s: a call took %s and ended with %v", lane, took.Round(time.Millisecond), err)
	case err == nil:
		a.good++
		a.lastGood = time.Now()
	case errors.Is(err, errCancelled):
		a.cancelled++
	case !stormy:
		l.complain("%s: failed after %s without a storm: %v", lane, took.Round(time.Millisecond), err)
	default:
		a.failed++
		a.reasons[shorten(err)]++
	}
}

// complain fails the test, in so many words a limited number of times.
func (l *ledger) complain(format string, args ...any) {
	const most = 60
	if l.wrong++; l.wrong > most {
		l.t.Fail()
		return
	}
	l.t.Errorf("%s "+format, append([]any{time.Now().Format("15:04:05.000")}, args...)...)
}

// Complain is complain for those who do not hold the ledger.
func (l *ledger) Complain(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.complain(format, args...)
}

// shorten leaves out of an error what is different each time.
func shorten(err error) string {
	var b strings.Builder
	for word := range strings.FieldsSeq(err.Error()) {
		if strings.ContainsAny(word, "0123456789") && !strings.HasPrefix(word, "5") {
			word = "#"
		}
		b.WriteString(word + " ")
	}
	s := b.String()
	return s[:min(len(s), 160)]
}

// judge looks at the whole.
func (l *ledger) judge() {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for name := range l.lanes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		a := l.lanes[name]
		fmt.Fprintf(os.Stderr, "%-28s %6d good %5d given up %5d failed\n", name, a.good, a.cancelled, a.failed)
		for reason, n := range a.reasons {
			fmt.Fprintf(os.Stderr, "%30s%5d  %s\n", "", n, reason)
		}
		if a.good == 0 {
			l.complain("%s: not one call went well", name)
		}
		if float64(a.failed) > mostFailed*float64(a.stormy) {
			l.complain("%s: %d of %d calls failed in storms", name, a.failed, a.stormy)
		}
	}
	if l.wrong > 0 {
		fmt.Fprintln(os.Stderr, l.wrong, "complaints")
	}
}

// lane is one kind of client.
type lane struct {
	name string
	call func(ctx context.Context, r *rand.Rand) error
}

// drive calls again and again until ctx ends, and waits for the last call.
func (l *ledger) drive(ctx context.Context, all *sync.WaitGroup, seed uint64, workers int, n lane) {
	for w := range workers {
		r := rand.New(rand.NewPCG(seed, uint64(w)))
		all.Go(func() {
			for ctx.Err() == nil {
				from := time.Now()
				// Calls end by themselves: a load that stops cuts nothing off.
				call, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience+5*time.Second)
				err := n.call(call, r)
				cancel()
				l.note(n.name, from, err)
				pause := time.Duration(r.Int64N(int64(100 * time.Millisecond)))
				if err != nil && !errors.Is(err, errCancelled) {
					pause += backOff
				}
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
}

// slowly is a reader with pauses, which takes two seconds or so.
type slowly struct {
	io.Reader
	step int // bytes between pauses
}

func slow(r io.Reader, n int64) io.Reader { return &slowly{r, int(n/40) + 1} }

func (s *slowly) Read(p []byte) (int, error) {
	<-time.After(30 * time.Millisecond)
	return s.Reader.Read(p[:min(len(p), s.step)])
}
