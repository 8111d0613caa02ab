// Package balance picks one of several targets for a call.
//
// A Picker is immutable: build a new one when the members change, Refresh it, and
// publish it with an atomic swap. The Targets live on from picker to picker, because
// they carry what is known of a target while calls are in flight:
//
//	p, err := balance.NewPicker(balance.Config{Algorithm: balance.PeakEWMA}, members)
//	p.Refresh(now, func(i int) bool { return !ejected(i) })
//	current.Store(p)
//
//	i := current.Load().Pick(&balance.Query{Random: r, Now: now, Usable: func(i int) bool { return !tried(i) }})
//	target.Begin()
//	…
//	target.End()
//	target.Observe(took, now)
//
// A pick takes no lock and allocates nothing. The package has no clock and no
// randomness of its own: both come from the caller, so that tests decide them.
//
// # Who may be picked
//
// There are two reasons not to pick a member. It is out of service, for everybody
// and for a while: that is told to Refresh, at once when it changes, and every 100 ms
// or so besides, and Refresh prepares everything that follows from it (whose share
// the others take, how much spills over to other zones, whether there is panic, how
// far slow starts have come). Or this one call does not want it, because it was tried
// before: that is told to Pick by Usable, and is meant for few members. Panic
// overrules the first reason, never the second.
//
// # Algorithms
//
// LeastRequest and PeakEWMA draw two members by weight and take the one with fewer
// calls in flight for its weight, or with less latency × calls in flight. While
// nothing distinguishes the two the first drawn is taken, so that shares follow the
// weights. RoundRobin goes in turn, smoothly interleaved; Random draws by weight.
// RingHash and Maglev give the same Query.Hash the same member, and, while that one
// cannot be picked, the same stand-in; sticky sessions are a hash of the session's
// cookie (HashString). Of the two Maglev spreads more evenly, and the ring moves fewer
// keys when members come and go.
//
// # Where
//
// Members of priority 0 come first, the others stand in for what those cannot carry:
// as in Envoy a priority counts as whole while at least 1/1.4 of it is in service. Or
// Config.Shares gives fixed shares to zones. Subsets by label are a Picker each.
//
// The package imports only the standard library and is part of the stable API.
package balance

import (
	"fmt"
	"math/bits"
)

// Algorithm that chooses among members.
type Algorithm uint8

const (
	LeastRequest Algorithm = iota // the less loaded of two random ones
	RoundRobin                    // in turn, each as often as its weight says
	Random                        // by weight
	PeakEWMA                      // of two random ones the one with less latency × calls in flight
	RingHash                      // by Query.Hash: the next point on a ring
	Maglev                        // by Query.Hash: an entry of a table
)

var algorithmNames = [...]string{"least request", "round robin", "random", "peak EWMA", "ring hash", "Maglev"}

func (a Algorithm) String() string {
	if int(a) < len(algorithmNames) {
		return algorithmNames[a]
	}
	return fmt.Sprintf("algorithm %d", uint8(a))
}

// scale maps 64 random bits to 0…n-1 (Lemire's multiplication instead of a
// division).
func scale(random, n uint64) uint64 {
	hi, _ := bits.Mul64(random, n)
	return hi
}
