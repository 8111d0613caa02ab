package resilience

import "time"

// State of a circuit.
type State uint8

const (
	Closed      State = iota // calls pass and are counted
	Open                     // calls are rejected until a wait is over
	HalfOpen                 // a few calls pass, and decide
	ForcedOpen               // held: calls are rejected
	Disabled                 // held: calls pass and nothing is counted
	MetricsOnly              // held: calls pass and are counted
)

var stateNames = [...]string{
	Closed: "closed", Open: "open", HalfOpen: "half-open",
	ForcedOpen: "forced-open", Disabled: "disabled", MetricsOnly: "metrics-only",
}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "unknown"
}

// ParseState is the inverse of String.
func ParseState(name string) (State, bool) {
	for s, n := range stateNames {
		if n == name {
			return State(s), true
		}
	}
	return Closed, false
}

// state that a mode holds a circuit in; an automatic circuit begins closed.
func (m Mode) state() State {
	switch m {
	case ModeForcedOpen:
		return ForcedOpen
	case ModeDisabled:
		return Disabled
	case ModeMetricsOnly:
		return MetricsOnly
	}
	return Closed
}

// Event tells that a circuit changed its state, or was reset: From and To are then
// the same if it was closed before.
type Event struct {
	Time     time.Time
	Policy   string // the name that NewBreaker was given
	From, To State
	// Reason completes "the circuit opened because": "failure rate 60.0 % of 10
	// calls reached 50 %".
	Reason string
	// Window is what had been counted in From.
	Window WindowCounts
}
