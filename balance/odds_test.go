package balance

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// weightings that draws and rounds have to cope with.
var weightings = map[string][]float64{
	"one":           {7},
	"two":           {1, 1},
	"equal":         {3, 3, 3, 3, 3},
	"small":         {5, 1, 1},
	"common factor": {100, 200, 300},
	"coprime":       {9973, 10007, 3},
	"fractions":     {1, 0.1, 0.37},
	"huge":          {math.MaxUint32, 1, math.MaxUint32},
	"tiny tail":     {1, 1, 1, 1e9},
	"tiny head":     {1e9, 1, 1, 1},
}

// The quick draw must agree with adding up one weight after another, but for numbers
// so near to a border that rounding decides.
func TestDrawIsThatOfALinearScan(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for name, weights := range weightings {
		o := newOdds(weights)
		total := 0.0
		for _, w := range weights {
			total += w
		}
		for k := range 20_000 {
			x := r.Uint64()
			switch k {
			case 0:
				x = 0
			case 1:
				x = math.MaxUint64
			}
			point := float64(x) / (1 << 64) * total
			want, sum := 0, weights[0]
			for want < len(weights)-1 && sum <= point {
				want++
				sum += weights[want]
			}
			border := math.Abs(point-sum) < 1e-9*total || math.Abs(point-(sum-weights[want])) < 1e-9*total
			if got := o.at(x); got != want && !border {
				t.Fatalf("%s: %#x draws %d, want %d", name, x, got, want)
			}
		}
	}
}

func TestPerIsMeanWeightThroughWeight(t *testing.T) {
	for name, weights := range weightings {
		o := newOdds(weights)
		mean := 0.0
		for _, w := range weights {
			mean += w / float64(len(weights))
		}
		for i, w := range weights {
			if got := float64(o.per(i)); math.Abs(got*w/mean-1) > 1e-6 {
				t.Errorf("%s: per(%d) = %v, want %v", name, i, got, mean/w)
			}
		}
	}
}

// A round has everyone exactly as often as its weight says, and never lets one wait
// for two of its distances, rounded up.
func TestRoundIsExactAndSmooth(t *testing.T) {
	for name, weights := range weightings {
		total := 0.0
		for _, w := range weights {
			total += w
		}
		cycle := newCycle(weights)
		switch name {
		case "coprime", "fractions", "huge", "tiny tail", "tiny head":
			if cycle != nil {
				t.Errorf("%s: a round of %d turns", name, len(cycle))
			}
			continue
		}
		turns, last, gap := make([]int, len(weights)), make([]int, len(weights)), make([]int, len(weights))
		for k := range 2 * len(cycle) {
			i := cycle[k%len(cycle)]
			if turns[i]++; turns[i] > 1 {
				gap[i] = max(gap[i], k-last[i])
			}
			last[i] = k
		}
		for i, w := range weights {
			if want := int(2 * float64(len(cycle)) * w / total); turns[i] != want {
				t.Errorf("%s: %d turns in two rounds for weight %v of %v, want %d", name, turns[i], w, total, want)
			}
			if most := 2 * int(math.Ceil(total/w)); gap[i] > most {
				t.Errorf("%s: weight %v waited %d turns, at most %d", name, w, gap[i], most)
			}
		}
	}
	if got, want := fmt.Sprint(newCycle([]float64{5, 1, 1})), "[0 0 0 1 2 0 0]"; got != want {
		t.Errorf("round of 5, 1, 1 is %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(newCycle([]float64{40, 40, 40})), "[0 1 2]"; got != want {
		t.Errorf("round of equal weights is %s, want %s", got, want)
	}
}

func TestLongestRound(t *testing.T) {
	if n := len(newCycle([]float64{maxCycle - 1, 1})); n != maxCycle {
		t.Errorf("a round of %d turns, want %d", n, maxCycle)
	}
	if n := len(newCycle([]float64{maxCycle, 1})); n != 0 {
		t.Errorf("a round of %d turns is longer than the bound", n)
	}
}
