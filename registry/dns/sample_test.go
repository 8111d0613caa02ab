package dns

import (
	"math"
	"math/rand/v2"
	"testing"
)

// set is a set of records with these weights.
func set(weights []uint32) *packed {
	p := &packed{}
	same, sum := true, uint64(0)
	var sums []uint64
	for _, w := range weights {
		p.records = append(p.records, packedRecord{weight: w})
		sum += uint64(w)
		sums = append(sums, sum)
		same = same && w == weights[0]
	}
	if !same {
		p.sums = sums
	}
	return p
}

// slowSample draws one after the other from a list of tickets, of which everybody
// has as many as its weight.
func slowSample(rng *rand.Rand, weights []uint32, n int) []int {
	left := make(map[int]bool)
	for i := range weights {
		left[i] = true
	}
	var out []int
	for len(out) < n {
		var tickets []int
		for i, w := range weights {
			for range w {
				if left[i] {
					tickets = append(tickets, i)
				}
			}
		}
		i := tickets[rng.IntN(len(tickets))]
		delete(left, i)
		out = append(out, i)
	}
	return out
}

// Of each way of drawing, which records are among the first, when the answer is cut
// there, is as in the slow model: chi-square over two samples, at 1 in 100,000.
func TestSampleIsAsTheSlowModel(t *testing.T) {
	of := func(n int, weight func(i int) uint32) []uint32 {
		out := make([]uint32, n)
		for i := range out {
			out[i] = weight(i)
		}
		return out
	}
	skewed := func(i int) uint32 { return uint32(1 + i%5) }
	for name, c := range map[string]struct {
		weights []uint32
		cut     int
		mode    sampling // in which it ends
	}{
		"equal":              {of(12, func(int) uint32 { return 3 }), 4, shuffling},
		"few":                {of(12, skewed), 4, few},
		"few, one heavy":     {of(12, func(i int) uint32 { return uint32(1 + 29*(i/11)) }), 2, few},
		"many":               {of(40, skewed), 6, many},
		"many, to the end":   {of(40, func(i int) uint32 { return uint32(1 + 200*(i/39)) }), 38, sorted},
		"many, almost whole": {of(36, func(i int) uint32 { return uint32(1 + 50*(i/34)) }), 20, sorted},
	} {
		t.Run(name, func(t *testing.T) {
			const rounds = 6000
			seed := uint64(len(name))
			rng := rand.New(rand.NewPCG(1, seed))
			d := newSampler()
			d.rand = rand.New(rand.NewPCG(2, seed))
			p := set(c.weights)
			n := len(c.weights)
			// How often each is first, last before the cut, and anywhere before it.
			fast, slow := make([]float64, 3*n), make([]float64, 3*n)
			ended := 0
			for range rounds {
				d.begin(p)
				for k := range c.cut {
					i, ok := d.next()
					if !ok {
						t.Fatal("drawn out")
					}
					count(fast, n, k, c.cut, i)
				}
				if d.mode == c.mode {
					ended++
				}
				for k, i := range slowSample(rng, c.weights, c.cut) {
					count(slow, n, k, c.cut, i)
				}
			}
			if ended == 0 {
				t.Errorf("it never drew in the way that this case is for")
			}
			for k, what := range []string{"first", "last", "given"} {
				x, freedom := 0.0, -1.0
				for i := k * n; i < (k+1)*n; i++ {
					if sum := fast[i] + slow[i]; sum > 0 {
						x += (fast[i] - slow[i]) * (fast[i] - slow[i]) / sum
						freedom++
					}
				}
				// Wilson and Hilferty; 4.26 standard deviations.
				limit := freedom * math.Pow(1-2/(9*freedom)+4.26*math.Sqrt(2/(9*freedom)), 3)
				if x > limit {
					t.Errorf("%s: chi-square %.0f of %.0f degrees, at most %.0f", what, x, freedom, limit)
				}
			}
		})
	}
}

func count(counts []float64, n, k, cut, i int) {
	if k == 0 {
		counts[i]++
	}
	if k == cut-1 {
		counts[n+i]++
	}
	counts[2*n+i]++
}

// Everybody is drawn once, whatever the weights.
func TestSampleGivesEachOnce(t *testing.T) {
	d := newSampler()
	for _, n := range []int{0, 1, 2, 31, 32, 33, 1000} {
		for _, heavy := range []uint32{1, 2, 65535} {
			weights := make([]uint32, n)
			for i := range weights {
				weights[i] = 1
			}
			if n > 0 {
				weights[n/2] = heavy
			}
			seen := make(map[int]bool)
			d.begin(set(weights))
			for i, ok := d.next(); ok; i, ok = d.next() {
				seen[i] = true
			}
			if len(seen) != n || d.at != n {
				t.Errorf("%d of %d were drawn, in %d draws", len(seen), n, d.at)
			}
		}
	}
}
