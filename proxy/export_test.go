package proxy

// What tests outside the package need of its insides.
var (
	Settled = settled
	Gone    = gone
	Until   = until
	Within  = within
	Peers   = peers
	Quiet1  = quiet1
	Quiet2  = quiet2
	Once1   = onceAt1
	Once2   = onceAt2

	RaceDetector = raceDetector
)

// Books lists what does not add up while nothing is in flight.
func (p *Proxy) Books() string { return p.books() }
