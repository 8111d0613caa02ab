package balance

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Member is a target with what a picker has to know of it.
type Member struct {
	Target *Target
	// Key is what RingHash and Maglev hash: a stable name, the same in all processes
	// that shall agree. Other algorithms do not look at it.
	Key      string
	Weight   uint32 // 0 counts as 1
	Priority uint8  // 0 comes first; those of higher numbers stand in. Gaps do not matter.
	Zone     string // only for Config.Shares
}

// Config says how a picker chooses. The zero value is least request among all.
type Config struct {
	Algorithm Algorithm
	SlowStart SlowStart
	// PanicPercent of the members must be in service; with fewer all are taken for
	// usable, because what the few cannot carry would take them down too. It is asked
	// of each priority, and only when all of them together lack members; with Shares,
	// of all zones together. 0 is never.
	PanicPercent uint32
	// RingSize is, for RingHash, the least number of points, up to 8388608; 0 means
	// 1024. A member of usual weight has at least 128. For Maglev it is the size of the
	// table, a prime up to 5000011; 0 means 65537. It should be a hundred times the
	// number of members: a member's share strays by one entry.
	RingSize uint32
	// Shares are percent of the traffic by zone, 100 in all, instead of priorities.
	// Members of other zones get nothing. A zone that is not whole gets less, by the
	// same measure as a priority.
	Shares map[string]uint32
}

// SlowStart gives a target that has just joined less than its weight, with all
// algorithms but RingHash and Maglev: Weight × max(MinPercent, (age/Window)^(1/Aggression)).
type SlowStart struct {
	Window     time.Duration // 0: no slow start
	Aggression float64       // 1 grows evenly, more grows early; 0 means 1
	MinPercent uint32        // 0 means 10
}

// Query is one call that needs a member.
type Query struct {
	Random uint64 // uniform over 64 bits
	// Hash chooses the member with RingHash and Maglev, when Hashed says that the call
	// has one. Random does when it has not.
	Hash   uint64
	Hashed bool
	Now    int64 // unix ns, a coarse clock will do; only PeakEWMA looks at it
	// Usable excludes members for this call alone. nil excludes none.
	Usable func(i int) bool
}

func (q *Query) usable(i uint32) bool { return q.Usable == nil || q.Usable(int(i)) }

// Picker chooses among members. Its methods may be called from any goroutine.
type Picker struct {
	// constant
	config  Config
	targets []*Target
	weights []float64
	tiers   []tier

	view atomic.Pointer[view] // what Pick reads; replaced by Refresh

	mu      sync.Mutex
	in      []bool // members in service
	warming bool   // some slow start had not ended at the last Refresh
}

// tier is the members of one priority, or of one zone that has a share.
type tier struct {
	// constant
	priority uint8
	zone     string
	share    uint32
	members  []uint32
	circle   *circle // RingHash and Maglev

	turns atomic.Uint64 // RoundRobin: how many were taken
}

// NewPicker builds a picker. It takes all members for in service and, for slow start,
// now for the moment when the last one joined: call Refresh before you publish it. An
// error names the field that it is about.
func NewPicker(c Config, members []Member) (*Picker, error) {
	if err := c.check(members); err != nil {
		return nil, err
	}
	if c.SlowStart.Aggression == 0 {
		c.SlowStart.Aggression = 1
	}
	if c.SlowStart.MinPercent == 0 {
		c.SlowStart.MinPercent = 10
	}
	p := &Picker{
		config:  c,
		targets: make([]*Target, len(members)),
		weights: make([]float64, len(members)),
		in:      make([]bool, len(members)),
		tiers:   newTiers(&c, members),
	}
	newest := int64(0)
	for i := range members {
		m := &members[i]
		p.targets[i], p.weights[i], p.in[i] = m.Target, float64(max(m.Weight, 1)), true
		newest = max(newest, m.Target.joined.Load())
	}
	for i := range p.tiers {
		p.tiers[i].circle = newCircle(&c, p.tiers[i].members, members)
	}
	weights, warming := p.effective(newest)
	p.warming = warming
	p.view.Store(p.newView(weights))
	return p, nil
}

func (c *Config) check(members []Member) error {
	hashing := c.Algorithm == RingHash || c.Algorithm == Maglev
	switch {
	case c.Algorithm > Maglev:
		return fmt.Errorf("balance: Algorithm: %d is none", c.Algorithm)
	case c.SlowStart.Window < 0:
		return fmt.Errorf("balance: SlowStart.Window: %s is negative", c.SlowStart.Window)
	case !(c.SlowStart.Aggression >= 0) || math.IsInf(c.SlowStart.Aggression, 0):
		return fmt.Errorf("balance: SlowStart.Aggression: %v is not a number from 0 up", c.SlowStart.Aggression)
	case c.SlowStart.MinPercent > 100:
		return fmt.Errorf("balance: SlowStart.MinPercent: %d is more than 100", c.SlowStart.MinPercent)
	case c.PanicPercent > 100:
		return fmt.Errorf("balance: PanicPercent: %d is more than 100", c.PanicPercent)
	case c.Algorithm == RingHash && c.RingSize > maxRing:
		return fmt.Errorf("balance: RingSize: %d is more than %d", c.RingSize, maxRing)
	case c.Algorithm == Maglev && c.RingSize > maxMaglevTable:
		return fmt.Errorf("balance: RingSize: %d is more than %d", c.RingSize, maxMaglevTable)
	case c.Algorithm == Maglev && c.RingSize != 0 && !prime(c.RingSize):
		return fmt.Errorf("balance: RingSize: %d is not a prime, as the table of Maglev must be", c.RingSize)
	}
	if c.Shares != nil {
		sum := uint64(0)
		for _, percent := range c.Shares {
			sum += uint64(percent)
		}
		if sum != 100 {
			return fmt.Errorf("balance: Shares: their sum is %d and not 100", sum)
		}
	}
	seen := make(map[string]int)
	for i := range members {
		m := &members[i]
		if m.Target == nil {
			return fmt.Errorf("balance: members[%d].Target: nil", i)
		}
		if !hashing {
			continue
		}
		if m.Key == "" {
			return fmt.Errorf("balance: members[%d].Key: empty, and %s goes by it", i, c.Algorithm)
		}
		if other, twice := seen[m.Key]; twice {
			return fmt.Errorf("balance: members[%d].Key: %q is also that of members[%d]", i, m.Key, other)
		}
		seen[m.Key] = i
	}
	return nil
}

func prime(n uint32) bool {
	for d := uint32(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n >= 2
}

// newTiers sorts the members into tiers, ascending by priority or zone.
func newTiers(c *Config, members []Member) []tier {
	var order []uint32
	for i := range members {
		if c.Shares == nil || c.Shares[members[i].Zone] > 0 {
			order = append(order, uint32(i))
		}
	}
	compare := func(a, b uint32) int {
		if c.Shares != nil {
			return cmp.Compare(members[a].Zone, members[b].Zone)
		}
		return cmp.Compare(members[a].Priority, members[b].Priority)
	}
	slices.SortStableFunc(order, compare)
	begins := 0
	for i := range order {
		if i == 0 || compare(order[i-1], order[i]) != 0 {
			begins++
		}
	}
	tiers := make([]tier, begins)
	t := -1
	for i, member := range order {
		if i == 0 || compare(order[i-1], member) != 0 {
			t++
			if m := &members[member]; c.Shares != nil {
				tiers[t].zone, tiers[t].share = m.Zone, c.Shares[m.Zone]
			} else {
				tiers[t].priority = m.Priority
			}
		}
		tiers[t].members = append(tiers[t].members, member)
	}
	return tiers
}

// newCircle returns nil for algorithms that need none.
func newCircle(c *Config, tier []uint32, members []Member) *circle {
	if c.Algorithm != RingHash && c.Algorithm != Maglev {
		return nil
	}
	list := make([]hashed, len(tier))
	for i, member := range tier {
		m := &members[member]
		list[i] = hashed{member: member, weight: max(m.Weight, 1), hash: HashString(m.Key)}
	}
	slices.SortFunc(list, func(a, b hashed) int { return cmp.Compare(members[a.member].Key, members[b.member].Key) })
	if c.Algorithm == RingHash {
		return newRing(list, c.RingSize)
	}
	size := c.RingSize
	if size == 0 {
		size = maglevTable
	}
	return newMaglev(list, size)
}

// Len is the number of members.
func (p *Picker) Len() int { return len(p.targets) }

// Pick returns the index of a member, or -1 when there is none in service that is
// usable. When the tier whose turn it is has none, the others are asked in order.
func (p *Picker) Pick(q *Query) int {
	v := p.view.Load()
	switch len(v.stages) {
	case 0:
		return -1
	case 1:
		return p.from(&v.stages[0], q)
	}
	chosen := v.choose(p.place(q))
	if i := p.from(chosen, q); i >= 0 {
		return i
	}
	for s := range v.stages {
		if other := &v.stages[s]; other != chosen {
			if i := p.from(other, q); i >= 0 {
				return i
			}
		}
	}
	return -1
}

// place is where a query stands with algorithms that hash, and elsewhere just random.
func (p *Picker) place(q *Query) uint64 {
	if q.Hashed && p.config.Algorithm >= RingHash {
		return mix(q.Hash)
	}
	return q.Random
}

func (p *Picker) from(s *stage, q *Query) int {
	if len(s.members) == 0 {
		return -1
	}
	var i int
	switch p.config.Algorithm {
	case RoundRobin:
		i = s.inTurn(q)
	case Random:
		i = s.draw(q.Random, q)
	case RingHash, Maglev:
		return s.walk(p.place(q), q)
	default:
		i = p.lessOfTwo(s, q)
	}
	if i < 0 {
		return -1
	}
	return int(s.members[i])
}

// tries bounds how often a draw, a turn or a step on a circle is repeated because the
// query excludes what came; what then still is not found is looked for among all.
// Queries exclude few.
const tries = 8

// draw returns a usable one of s.members by weight, or -1.
func (s *stage) draw(random uint64, q *Query) int {
	if i := s.odds.at(random); q.usable(s.members[i]) {
		return i
	}
	return s.redraw(random, q)
}

func (s *stage) redraw(random uint64, q *Query) int {
	for range tries {
		random = mix(random + golden)
		if i := s.odds.at(random); q.usable(s.members[i]) {
			return i
		}
	}
	return s.search(random, q)
}

// search draws by weight among those that are usable, by asking all: each of them
// takes the place of the one before with the odds of its weight in the sum so far.
func (s *stage) search(random uint64, q *Query) int {
	found, sum := -1, 0.0
	for i, member := range s.members {
		if !q.usable(member) {
			continue
		}
		w := 1 / float64(s.odds.per(i))
		sum += w
		random = mix(random + golden)
		if found < 0 || float64(random>>11)*sum < w*(1<<53) {
			found = i
		}
	}
	return found
}

// lessOfTwo draws two and returns the one with less to do ("the power of two
// choices"), and of equals the first, so that shares follow the weights.
func (p *Picker) lessOfTwo(s *stage, q *Query) int {
	a := s.draw(q.Random, q)
	if a < 0 || len(s.members) == 1 {
		return a
	}
	b := s.draw(mix(q.Random+golden), q)
	if b == a {
		if b = a + 1; b == len(s.members) {
			b = 0
		}
		if !q.usable(s.members[b]) {
			return a
		}
	}
	first, second := p.targets[s.members[a]], p.targets[s.members[b]]
	costA := float32(max(0, first.InFlight())) * s.odds.per(a)
	costB := float32(max(0, second.InFlight())) * s.odds.per(b)
	if p.config.Algorithm == PeakEWMA {
		tick := uint32(q.Now >> tickBits)
		costA, costB = first.cost(tick, s.odds.per(a)), second.cost(tick, s.odds.per(b))
	}
	// Nobody can predict which costs less. Costs are not negative, so that their bits
	// compare as they do, and for integers the compiler needs no branch.
	if math.Float32bits(costB) < math.Float32bits(costA) {
		a = b
	}
	return a
}

// inTurn takes turns until one falls on a usable member, so that what is excluded
// leaves its turn to all others alike.
func (s *stage) inTurn(q *Query) int {
	for range tries {
		turn := s.tier.turns.Add(1)
		if turn == 1 {
			// Pickers that were built at the same moment, in many processes, should
			// not all begin with the same member.
			turn = s.tier.turns.Add(q.Random >> 1)
		}
		var i int
		if s.cycle != nil {
			i = int(s.cycle[(turn-1)%uint64(len(s.cycle))])
		} else {
			// Multiples of the golden ratio: each member comes as often as its weight
			// says, give or take a few, at distances that hardly differ, whatever the
			// weights are.
			i = s.odds.at(turn * golden)
		}
		if q.usable(s.members[i]) {
			return i
		}
	}
	return s.search(q.Random, q)
}

// steps bounds a walk on a circle that meets only members which cannot be picked: more
// than 31 of 32 cannot, when it ends.
const steps = 128

// walk returns the member of a hash: the first on its way that is in service and
// usable. Which stand-in a key has depends on the key and on who can be picked, and
// on nothing else.
func (s *stage) walk(hash uint64, q *Query) int {
	c := s.tier.circle
	at, places := c.start(hash), c.len()
	for range min(steps, places) {
		if member := c.owner(at); (s.in == nil || s.in[member]) && q.usable(member) {
			return int(member)
		}
		if at++; at == places {
			at = 0
		}
	}
	n := len(s.members)
	first := int(scale(mix(hash), uint64(n)))
	for k := range n {
		if member := s.members[(first+k)%n]; q.usable(member) {
			return int(member)
		}
	}
	return -1
}
