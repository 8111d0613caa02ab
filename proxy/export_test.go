package proxy

// What tests outside the package need of its insides.
var (
	Settled = settled
	Gone    = gone
	Until   = until
	Within  = within
	Peers   = peers
)

// Books lists what does not add up while nothing is in flight.
func (p *Proxy) Books() string { return p.books() }
