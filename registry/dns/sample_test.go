package dns

import (
	"strconv"
	"testing"

	"github.com/weftmesh/weft"
)

// An instance of three times the weight stands first about three times as often,
// and every instance stands somewhere, once.
func TestSampleByWeight(t *testing.T) {
	const rounds = 20000
	for name, c := range map[string]struct {
		weights []int
		least   float64 // share of rounds in which the first instance comes first
		most    float64
	}{
		"equal":    {weights: []int{1, 1, 1, 1}, least: 0.23, most: 0.27},
		"one to 3": {weights: []int{3, 1}, least: 0.73, most: 0.77},
		"10 of 12": {weights: []int{10, 1, 1}, least: 0.81, most: 0.86},
	} {
		list := make([]*weft.Instance, len(c.weights))
		for i, w := range c.weights {
			list[i] = &weft.Instance{ID: strconv.Itoa(i), Weights: weft.Weights{Passing: w}}
		}
		first := 0
		for range rounds {
			seen := make(map[string]bool)
			for in := range sample(list) {
				if len(seen) == 0 && in.ID == "0" {
					first++
				}
				seen[in.ID] = true
			}
			if len(seen) != len(list) {
				t.Fatalf("%s: only %v were given", name, seen)
			}
		}
		if share := float64(first) / rounds; share < c.least || share > c.most {
			t.Errorf("%s: the first instance came first in %.3f of all rounds", name, share)
		}
	}
}
