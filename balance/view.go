package balance

import (
	"math"
	"time"
)

// view is one immutable state of a picker's members: who is in service, with which
// weight, and how traffic is divided.
type view struct {
	stages []stage
	total  uint64 // of the stages' loads
}

// stage is a tier as a view has it.
type stage struct {
	tier    *tier
	load    uint64 // its part of view.total
	panic   bool
	healthy int // in service

	members []uint32 // who may be picked: those in service, in panic all
	odds    odds     // by place in members; not with RingHash and Maglev
	cycle   []uint32 // RoundRobin: one round, by place in members; nil when weights do not allow one
	in      []bool   // RingHash and Maglev: members in service; nil when all may be picked
}

// Load is what a priority or a zone gets.
type Load struct {
	Priority uint8
	Zone     string  // with Config.Shares
	Percent  float64 // of the traffic
	Members  int
	Healthy  int  // of Members, in service
	Panic    bool // all of Members get traffic
}

// Loads says how traffic is divided now, priorities first to last, or zones by name.
func (p *Picker) Loads() []Load {
	v := p.view.Load()
	out := make([]Load, len(v.stages))
	for i := range v.stages {
		s := &v.stages[i]
		out[i] = Load{Priority: s.tier.priority, Zone: s.tier.zone, Members: len(s.tier.members), Healthy: s.healthy, Panic: s.panic}
		if v.total > 0 {
			out[i].Percent = 100 * float64(s.load) / float64(v.total)
		}
	}
	return out
}

// Refresh tells which members are in service; nil says all. Call it when that
// changes, and every 100 ms or so while there is slow start: weights grow in these
// steps. It costs little when nothing changed, and is done when it returns: whatever
// healthy says by then, following picks know. healthy must not call the picker.
func (p *Picker) Refresh(now int64, healthy func(i int) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := p.warming
	for i := range p.in {
		in := healthy == nil || healthy(i)
		changed = changed || in != p.in[i]
		p.in[i] = in
	}
	// A target may have joined again since.
	weights, warming := p.effective(now)
	if changed || warming {
		p.warming = warming
		p.view.Store(p.newView(weights))
	}
}

// effective returns the members' weights at now, and whether some of them still grow.
func (p *Picker) effective(now int64) (weights []float64, warming bool) {
	if p.config.SlowStart.Window == 0 || p.config.Algorithm >= RingHash {
		return p.weights, false
	}
	weights = p.weights
	for i, t := range p.targets {
		joined := t.joined.Load()
		if joined == 0 {
			continue
		}
		f := p.config.SlowStart.factor(time.Duration(now - joined))
		if f == 1 {
			continue
		}
		if !warming {
			warming, weights = true, append([]float64(nil), p.weights...)
		}
		weights[i] *= f
	}
	return weights, warming
}

// factor of a weight at an age. An age that is negative by more than a window comes
// from a clock that was set back, and tells nothing.
func (s *SlowStart) factor(age time.Duration) float64 {
	if age >= s.Window || age <= -s.Window {
		return 1
	}
	grown := float64(max(age, 0)) / float64(s.Window)
	return max(float64(s.MinPercent)/100, math.Pow(grown, 1/s.Aggression))
}

// newView reads in, which mu guards.
func (p *Picker) newView(weights []float64) *view {
	v := &view{stages: make([]stage, len(p.tiers))}
	for i := range p.tiers {
		s := &v.stages[i]
		s.tier = &p.tiers[i]
		for _, member := range s.tier.members {
			if p.in[member] {
				s.healthy++
			}
		}
	}
	if p.config.Shares != nil {
		byShare(v.stages, p.config.PanicPercent)
	} else {
		byPriority(v.stages, p.config.PanicPercent)
	}
	for i := range v.stages {
		v.total += v.stages[i].load
		p.furnish(&v.stages[i], weights)
	}
	return v
}

// furnish prepares a stage, whose load and panic are known, for picks.
func (p *Picker) furnish(s *stage, weights []float64) {
	s.members = s.tier.members
	all := s.panic || s.healthy == len(s.members)
	if !all {
		s.members = make([]uint32, 0, s.healthy)
		for _, member := range s.tier.members {
			if p.in[member] {
				s.members = append(s.members, member)
			}
		}
	}
	if p.config.Algorithm >= RingHash {
		if !all {
			s.in = append([]bool(nil), p.in...)
		}
		return
	}
	w := make([]float64, len(s.members))
	for i, member := range s.members {
		w[i] = weights[member]
	}
	s.odds = newOdds(w)
	if p.config.Algorithm == RoundRobin {
		s.cycle = newCycle(w)
	}
}

// overprovision is how much more than its load a tier is taken to be able to carry,
// in percent, as with Envoy: with 72 % of its members a tier is whole.
const overprovision = 140

// whole is how much of its load a tier with these members can carry, in percent.
func whole(healthy, members int) uint64 {
	return uint64(min(100, overprovision*healthy/members))
}

// byPriority divides traffic among stages: each takes what it can carry of what those
// before it left. When all together cannot carry everything, each takes its part of
// what they can, and those of which too few members are in service panic.
func byPriority(stages []stage, panicPercent uint32) {
	rest, carried := uint64(100), uint64(0)
	for i := range stages {
		s := &stages[i]
		carries := whole(s.healthy, len(s.tier.members))
		s.load = min(rest, carries)
		rest -= s.load
		carried += carries
	}
	if carried >= 100 || panicPercent == 0 {
		return
	}
	panics := 0
	for i := range stages {
		s := &stages[i]
		if s.panic = tooFew(s.healthy, len(s.tier.members), panicPercent); s.panic {
			panics++
		}
	}
	if panics == len(stages) {
		// Nobody knows better than to spread it over everything there is.
		for i := range stages {
			stages[i].load = uint64(len(stages[i].tier.members))
		}
	}
}

// byShare divides traffic among zones by their shares, less for a zone that is not
// whole.
func byShare(stages []stage, panicPercent uint32) {
	healthy, members := 0, 0
	for i := range stages {
		s := &stages[i]
		healthy, members = healthy+s.healthy, members+len(s.tier.members)
		s.load = uint64(s.tier.share) * whole(s.healthy, len(s.tier.members))
	}
	if members == 0 || whole(healthy, members) == 100 || !tooFew(healthy, members, panicPercent) {
		return
	}
	for i := range stages {
		stages[i].load, stages[i].panic = uint64(stages[i].tier.share), true
	}
}

func tooFew(healthy, members int, panicPercent uint32) bool {
	return 100*healthy < int(panicPercent)*members
}

// choose returns the stage for a place: a random number, or the hash of a key, which
// so has its priority as it has its member.
func (v *view) choose(place uint64) *stage {
	point := scale(mix(^place), v.total)
	for i := range v.stages {
		s := &v.stages[i]
		if point < s.load {
			return s
		}
		point -= s.load
	}
	return &v.stages[0] // nobody is in service
}
