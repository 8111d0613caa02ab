package resilience

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestBudget(t *testing.T) {
	for _, tc := range []struct {
		name  string
		calls int
		want  int // retries allowed at once
	}{
		{"no traffic: three a second over the window", 0, 30},
		{"20 % of the window's calls on top", 1000, 230},
		{"a burst after steady load all retries", 20_000, 4030},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b Budget
			for i := range tc.calls {
				b.Call(noon.Add(time.Duration(i%9) * time.Second))
			}
			now := noon.Add(9 * time.Second)
			got := 0
			for b.Retry(now) {
				got++
			}
			if got != tc.want {
				t.Errorf("%d retries, want %d", got, tc.want)
			}
		})
	}
}

func TestBudgetInFractions(t *testing.T) {
	b := Budget{Percent: 0.5, MinPerSecond: 0.1}
	for range 1000 {
		b.Call(noon)
	}
	got := 0
	for b.Retry(noon) {
		got++
	}
	if got != 5+1 {
		t.Errorf("%d retries, want half a percent of 1000 and one in ten seconds", got)
	}
}

func TestBudgetForgets(t *testing.T) {
	var b Budget
	for range 1000 {
		b.Call(noon)
	}
	later := noon.Add(budgetWindow * time.Second)
	got := 0
	for b.Retry(later) {
		got++
	}
	if got != 30 {
		t.Errorf("calls of an earlier window still pay for retries: %d, want 30", got)
	}
	for range 30 {
		if !b.Retry(later.Add(budgetWindow * time.Second)) {
			t.Fatal("retries of an earlier window still count")
		}
	}
}

// What was spent in one instant comes back evenly: no second gives more than its
// tenth.
func TestBudgetComesBackEvenly(t *testing.T) {
	var b Budget
	now := noon
	for range 10 {
		for range 100 {
			b.Call(now)
		}
		now = now.Add(time.Second)
	}
	for b.Retry(now) {
	}
	for second := range 25 {
		for range 100 {
			b.Call(now)
		}
		now = now.Add(time.Second)
		got := 0
		for b.Retry(now) {
			got++
		}
		if got < 20 || got > 24 { // 20 % of 100, and 3; the present second has no calls yet
			t.Errorf("second %d gives %d retries", second, got)
		}
	}
}

// Of several goroutines that ask at once no more than the budget get one.
func TestBudgetIsNotOverspent(t *testing.T) {
	var b Budget
	var got atomic.Int64
	var askers sync.WaitGroup
	for range 16 {
		askers.Go(func() {
			for range 10 {
				if b.Retry(noon) {
					got.Add(1)
				}
			}
		})
	}
	if askers.Wait(); got.Load() != 30 {
		t.Errorf("%d retries of 30", got.Load())
	}
}
