package resilience

// Outcome is how a call or an attempt ended, as far as breakers, limiters and
// budgets are concerned.
type Outcome uint8

const (
	Success Outcome = iota
	// Failure is the service's fault.
	Failure
	// Ignored is neither good nor bad: the caller gave up, or nothing was sent.
	Ignored
	// TimedOut is a Failure by a timeout of our own. It counts as slow as well,
	// however short the timeout was.
	TimedOut
)

// Failed reports whether o counts against the service.
func (o Outcome) Failed() bool { return o == Failure || o == TimedOut }

func (o Outcome) String() string {
	switch o {
	case Success:
		return "success"
	case Failure:
		return "failure"
	case Ignored:
		return "ignored"
	case TimedOut:
		return "timed-out"
	}
	return "unknown"
}
