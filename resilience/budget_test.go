package resilience

import (
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
