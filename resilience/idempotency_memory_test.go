package resilience

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// claim begins, and fails the test unless the key is found in the wanted state.
func claimKey(t *testing.T, s IdempotencyStore, key string, want ClaimState) Claim {
	t.Helper()
	c, err := s.Begin(t.Context(), key, [32]byte{}, time.Minute)
	if err != nil || c.State != want {
		t.Fatalf("%s is %v, %v; want %v", key, c.State, err, want)
	}
	return c
}

func answerOf(bytes int) StoredAnswer { return StoredAnswer{Status: 200, Body: make([]byte, bytes)} }

func TestLifeOfAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ctx := NewMemoryStore(1<<20), t.Context()
		first := claimKey(t, s, "k", ClaimMine)
		time.Sleep(20 * time.Second)
		if c := claimKey(t, s, "k", ClaimInFlight); c.Wait != 40*time.Second {
			t.Errorf("to wait: %v", c.Wait)
		}
		if c, err := s.Begin(ctx, "k", [32]byte{1}, time.Minute); err != nil || c.State != ClaimMismatch {
			t.Errorf("another request, while the first runs: %v, %v", c.State, err)
		}
		answer := StoredAnswer{Status: 201, Header: []HeaderLine{{"B", "1"}, {"A", "2"}}, Body: []byte("done")}
		if err := s.Finish(ctx, first, answer, time.Hour); err != nil {
			t.Fatal(err)
		}
		if c := claimKey(t, s, "k", ClaimDone); !reflect.DeepEqual(c.Answer, answer) {
			t.Errorf("the answer became %+v", c.Answer)
		}
		if c, err := s.Begin(ctx, "k", [32]byte{1}, time.Minute); err != nil || c.State != ClaimMismatch {
			t.Errorf("another request, after the first: %v, %v", c.State, err)
		}
		if err := s.Finish(ctx, first, answerOf(1), time.Hour); !errors.Is(err, ErrClaimLost) {
			t.Errorf("finished twice: %v", err)
		}
		if err := s.Abandon(ctx, first); !errors.Is(err, ErrClaimLost) {
			t.Errorf("abandoned after it was finished: %v", err)
		}
		time.Sleep(time.Hour)
		second := claimKey(t, s, "k", ClaimMine)
		if err := s.Abandon(ctx, second); err != nil {
			t.Error(err)
		}
		claimKey(t, s, "k", ClaimMine)
	})
}

func TestALateAnswerDoesNotReplaceANewerOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ctx := NewMemoryStore(1<<20), t.Context()
		slow := claimKey(t, s, "k", ClaimMine)
		time.Sleep(time.Minute)
		next := claimKey(t, s, "k", ClaimMine)
		if err := s.Finish(ctx, slow, answerOf(1), time.Hour); !errors.Is(err, ErrClaimLost) {
			t.Errorf("while the next one runs: %v", err)
		}
		if err := s.Abandon(ctx, slow); !errors.Is(err, ErrClaimLost) {
			t.Errorf("while the next one runs: %v", err)
		}
		if err := s.Finish(ctx, next, answerOf(2), time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := s.Finish(ctx, slow, answerOf(1), time.Hour); !errors.Is(err, ErrClaimLost) {
			t.Errorf("after the next one: %v", err)
		}
		if c := claimKey(t, s, "k", ClaimDone); len(c.Answer.Body) != 2 {
			t.Error("the answer is the late one's")
		}
	})
}

func TestBadTimes(t *testing.T) {
	s := NewMemoryStore(1 << 20)
	if _, err := s.Begin(t.Context(), "k", [32]byte{}, 0); err == nil {
		t.Error("a claim without a lease")
	}
	if err := s.Finish(t.Context(), claimKey(t, s, "k", ClaimMine), answerOf(1), 0); err == nil {
		t.Error("an answer without time")
	}
}

func TestTheOldestAnswersMakeRoom(t *testing.T) {
	ctx := t.Context()
	s := NewMemoryStore(4 * (entryBytes + 1 + 32 + 1000))
	late := claimKey(t, s, "a", ClaimMine) // the first claim, and the last that is finished
	for _, key := range []string{"b", "c", "d"} {
		if err := s.Finish(ctx, claimKey(t, s, key, ClaimMine), answerOf(1000), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Finish(ctx, late, answerOf(1000), time.Minute); err != nil {
		t.Fatal(err)
	}
	e := claimKey(t, s, "e", ClaimMine) // there is room for a, c and d only
	claimKey(t, s, "a", ClaimDone)
	claimKey(t, s, "c", ClaimDone)
	if _, there := s.entries["b"]; there {
		t.Error("b is not forgotten")
	}
	if err := s.Finish(ctx, e, answerOf(6000), time.Hour); !errors.Is(err, ErrStoreFull) {
		t.Errorf("an answer that never fits: %v", err)
	}
	claimKey(t, s, "c", ClaimDone) // forgetting all would not have helped
	claimKey(t, s, "e", ClaimInFlight)
	if s.bytes > s.maxBytes {
		t.Errorf("%d bytes; at most %d", s.bytes, s.maxBytes)
	}
}

func TestWhatRunsIsNeverForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewMemoryStore(10 * (entryBytes + 1))
		for i := range 10 {
			claimKey(t, s, strconv.Itoa(i), ClaimMine)
		}
		if _, err := s.Begin(t.Context(), "x", [32]byte{}, time.Minute); !errors.Is(err, ErrStoreFull) {
			t.Errorf("one more: %v", err)
		}
		for i := range 10 {
			claimKey(t, s, strconv.Itoa(i), ClaimInFlight)
		}
		time.Sleep(time.Minute)
		claimKey(t, s, "x", ClaimMine) // their runners crashed
	})
}

func TestNothingIsLeftOfWhatIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewMemoryStore(1 << 20)
		for i := range 100 {
			c := claimKey(t, s, strconv.Itoa(i), ClaimMine)
			if i%2 == 0 {
				if err := s.Finish(t.Context(), c, answerOf(i), time.Duration(1+i%7)*time.Minute); err != nil {
					t.Fatal(err)
				}
			}
		}
		time.Sleep(10 * time.Minute)
		for range 100/expireAtOnce + 1 {
			c := claimKey(t, s, "last", ClaimMine)
			if err := s.Abandon(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		if len(s.entries) != 0 || len(s.byEnd) != 0 || s.done.Len() != 0 || s.bytes != 0 || s.doneBytes != 0 {
			t.Errorf("%d entries, %d ends, %d done, %d and %d bytes", len(s.entries), len(s.byEnd), s.done.Len(), s.bytes, s.doneBytes)
		}
	})
}

func TestOneOfManyCallersRuns(t *testing.T) {
	s := NewMemoryStore(1 << 20)
	for round := range 200 {
		key := strconv.Itoa(round)
		var mine atomic.Int32
		var callers sync.WaitGroup
		for range 16 {
			callers.Go(func() {
				c, err := s.Begin(context.Background(), key, [32]byte{}, time.Minute)
				switch {
				case err != nil:
					t.Error(err)
				case c.State == ClaimMine:
					mine.Add(1)
					runtime.Gosched()
					if err := s.Finish(context.Background(), c, answerOf(10), time.Hour); err != nil {
						t.Error(err)
					}
				}
			})
		}
		callers.Wait()
		if mine.Load() != 1 {
			t.Fatalf("%d callers ran %s", mine.Load(), key)
		}
	}
}

// slowStore is MemoryStore without a bound, as one would write it down first.
type slowStore struct {
	keys   map[string]*slowKey
	tokens int64
}

type slowKey struct {
	fingerprint [32]byte
	token       int64
	done        bool
	end         time.Time
	answer      StoredAnswer
}

func (s *slowStore) begin(key string, fingerprint [32]byte, lease time.Duration) Claim {
	c := Claim{Key: key, Fingerprint: fingerprint}
	k := s.keys[key]
	switch {
	case k == nil || !time.Now().Before(k.end):
		s.tokens++
		s.keys[key] = &slowKey{fingerprint: fingerprint, token: s.tokens, end: time.Now().Add(lease)}
		c.State, c.Token = ClaimMine, s.tokens
	case k.fingerprint != fingerprint:
		c.State = ClaimMismatch
	case k.done:
		c.State, c.Answer = ClaimDone, k.answer
	default:
		c.State, c.Wait = ClaimInFlight, time.Until(k.end)
	}
	return c
}

func (s *slowStore) held(c Claim) *slowKey {
	if k := s.keys[c.Key]; k != nil && !k.done && k.token == c.Token {
		return k
	}
	return nil
}

// Random lives of ten keys, beside the slow store. A claim is given up when its lease
// is over: only then does it depend on what was removed already.
func TestMemoryStoreAgainstASlowOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		fast, slow, ctx := NewMemoryStore(1<<30), &slowStore{keys: map[string]*slowKey{}}, t.Context()
		var held []Claim
		for step := range 20_000 {
			for i, e := range fast.byEnd {
				if e.index != i || e.end.Before(fast.byEnd[(i-1)/2].end) {
					t.Fatalf("step %d: %s is not where its end belongs", step, e.key)
				}
			}
			switch op := r.IntN(10); {
			case op < 6 || len(held) == 0:
				key, fingerprint := strconv.Itoa(r.IntN(10)), [32]byte{byte(r.IntN(8) / 7)}
				lease := time.Duration(1+r.IntN(20)) * time.Second
				got, err := fast.Begin(ctx, key, fingerprint, lease)
				if want := slow.begin(key, fingerprint, lease); err != nil || !reflect.DeepEqual(got, want) {
					t.Fatalf("step %d: begin %s: %+v, %v; want %+v", step, key, got, err, want)
				}
				if got.State == ClaimMine {
					held = append(held, got)
				}
			case op < 9:
				i := r.IntN(len(held))
				c := held[i]
				held = append(held[:i], held[i+1:]...)
				k := slow.held(c)
				if k != nil && !time.Now().Before(k.end) {
					continue
				}
				var err error
				if op == 6 {
					err = fast.Abandon(ctx, c)
					if k != nil {
						delete(slow.keys, c.Key)
					}
				} else {
					ttl, answer := time.Duration(1+r.IntN(60))*time.Second, answerOf(step%50)
					err = fast.Finish(ctx, c, answer, ttl)
					if k != nil {
						k.done, k.answer, k.end = true, answer, time.Now().Add(ttl)
					}
				}
				if errors.Is(err, ErrClaimLost) != (k == nil) || k != nil && err != nil {
					t.Fatalf("step %d: end of %s: %v", step, c.Key, err)
				}
			default:
				time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
			}
		}
	})
}

func BenchmarkMemoryStore(b *testing.B) {
	answer := answerOf(200)
	for _, goroutines := range []int{1, 16} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) {
			s := NewMemoryStore(16 << 20)
			ctx := context.Background()
			var next atomic.Int64
			b.SetParallelism(max(1, goroutines/runtime.GOMAXPROCS(0)))
			if goroutines == 1 {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					key := strconv.FormatInt(next.Add(1), 36)
					c, err := s.Begin(ctx, key, [32]byte{}, time.Minute)
					if err != nil || s.Finish(ctx, c, answer, time.Hour) != nil {
						b.Error("a call failed", err)
						return
					}
				}
			})
		})
	}
}
