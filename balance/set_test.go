package balance

import (
	"math"
	"math/rand/v2"
	"testing"
)

func targets(n int) []*Target {
	out := make([]*Target, n)
	for i := range out {
		out[i] = new(Target)
	}
	return out
}

func all(int) bool { return true }

// Shares of many picks must follow the weights: the chi-squared statistic stays
// below the value that pure chance exceeds once in 10,000 runs.
func TestSharesFollowWeights(t *testing.T) {
	const picks = 100_000
	for _, tc := range []struct {
		name      string
		algorithm Algorithm
		weights   []uint32
		limit     float64 // chi-squared at p = 0.0001 for len-1 degrees of freedom
	}{
		{"random, equal", Random, []uint32{1, 1, 1, 1}, 21.1},
		{"random, weighted", Random, []uint32{1, 2, 5}, 18.4},
		{"round robin, weighted", RoundRobin, []uint32{1, 2, 5}, 18.4},
		{"round robin, equal", RoundRobin, nil, 21.1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := max(len(tc.weights), 4*btoi(tc.weights == nil))
			set := NewSet(tc.algorithm, targets(n), tc.weights)
			random := rand.New(rand.NewPCG(1, 2))
			counts := make([]float64, n)
			for range picks {
				counts[set.Pick(random.Uint64(), all)]++
			}
			total := 0.0
			weight := func(i int) float64 {
				if tc.weights == nil {
					return 1
				}
				return float64(tc.weights[i])
			}
			for i := range counts {
				total += weight(i)
			}
			chi := 0.0
			for i, got := range counts {
				want := picks * weight(i) / total
				chi += math.Pow(got-want, 2) / want
			}
			if chi > tc.limit {
				t.Errorf("chi-squared %.1f over %.1f: counts %v", chi, tc.limit, counts)
			}
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestLeastRequestAvoidsTheBusyOne(t *testing.T) {
	ts := targets(3)
	for range 10 {
		ts[1].Begin()
	}
	set := NewSet(LeastRequest, ts, nil)
	random := rand.New(rand.NewPCG(3, 4))
	for range 10_000 {
		if set.Pick(random.Uint64(), all) == 1 {
			t.Fatal("picked the target with ten calls in flight beside idle ones")
		}
	}
	for range 10 {
		ts[1].End()
	}
	seen := map[int]int{}
	for range 10_000 {
		seen[set.Pick(random.Uint64(), all)]++
	}
	for i := range ts {
		if seen[i] < 2_000 {
			t.Errorf("idle targets should share evenly, got %v", seen)
		}
	}
}

func TestUnusableTargetsAreSkipped(t *testing.T) {
	for _, algorithm := range []Algorithm{LeastRequest, RoundRobin, Random} {
		set := NewSet(algorithm, targets(5), nil)
		random := rand.New(rand.NewPCG(5, 6))
		seen := map[int]int{}
		for range 8_000 {
			seen[set.Pick(random.Uint64(), func(i int) bool { return i >= 2 })]++
		}
		for i := 2; i < 5; i++ {
			if seen[i] < 1_600 {
				t.Errorf("algorithm %d: the usable three should share, got %v", algorithm, seen)
			}
		}
		if seen[0]+seen[1]+seen[-1] != 0 {
			t.Errorf("algorithm %d picked an unusable target: %v", algorithm, seen)
		}
		if got := set.Pick(random.Uint64(), func(int) bool { return false }); got != -1 {
			t.Errorf("algorithm %d: none usable, got %d", algorithm, got)
		}
	}
	if got := NewSet(LeastRequest, nil, nil).Pick(1, all); got != -1 {
		t.Errorf("empty set: got %d", got)
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	set := NewSet(LeastRequest, targets(1000), nil)
	var random uint64 = 12345
	if n := testing.AllocsPerRun(1000, func() {
		random = random*6364136223846793005 + 1442695040888963407
		set.Pick(random, all)
	}); n != 0 {
		t.Errorf("%v allocations a pick", n)
	}
}

func BenchmarkLeastRequest1000(b *testing.B) {
	set := NewSet(LeastRequest, targets(1000), nil)
	random := uint64(1)
	for b.Loop() {
		random = random*6364136223846793005 + 1442695040888963407
		set.Pick(random, all)
	}
}
