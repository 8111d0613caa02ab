package proxy

import (
	"crypto/tls"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/wire/http1"
)

// Direction is which way a listener's requests go, seen from the workload.
type Direction uint8

const (
	Outbound Direction = iota // from the own application to other services
	Inbound                   // from other proxies to the own application
	Edge                      // from outside the mesh into it
)

var directionNames = [...]string{"outbound", "inbound", "gateway"}

func (d Direction) String() string { return directionNames[d] }

// Listener says what a listening socket is for.
type Listener struct {
	Direction Direction
	TLS       *tls.Config // nil: plain text
	// Host of every request, whatever it says of itself: an Outbound listener
	// that stands for one upstream ("--upstream inventory-service=9001").
	Host string
	// Local is the own application's address, for Inbound only.
	Local string
	// LocalProtocol is what the application declares to speak; "" is HTTP/1, and
	// HTTP/2 for gRPC.
	LocalProtocol weft.Protocol
	// Port is the listener's port as routes name it, for Edge: TLS connections
	// whose name a route passes on are relayed, all others are served.
	Port uint16
	// Raw says that an Edge listener carries bytes, routed by Port.
	Raw bool
	// ProxyFrom are the peers that say by a PROXY header whose connection they
	// carry: load balancers. They have to, and nobody else may.
	ProxyFrom []netip.Prefix
	Filters   []Filter
	// Identify reads the peer's identity from a finished handshake. Needed with TLS.
	Identify func(*tls.ConnectionState) (weft.Identity, error)

	local *cluster // of Local
	port  string   // of Local: policies name the workload's port
}

// prepare completes the listener once, before its first connection.
func (l *Listener) prepare(p *Proxy) error {
	if l.Direction != Inbound {
		return nil
	}
	i := strings.LastIndexByte(l.Local, ':')
	if _, err := strconv.ParseUint(l.Local[i+1:], 10, 16); i < 0 || err != nil {
		return weft.Errorf(weft.Invalid, "serve", "inbound listener", "local address %q: want host:port", l.Local)
	}
	l.port = l.Local[i+1:]
	l.local = newCluster(p.self.String(), "")
	l.local.update(&weft.Service{
		Name:      p.self,
		Endpoints: []weft.Endpoint{{ID: "local", Address: l.Local, Weight: 1, Protocol: l.LocalProtocol}},
		Policy:    weft.TrafficPolicy{ConnectTimeout: 5 * time.Second},
	})
	p.mu.Lock()
	p.locals = append(p.locals, l.local)
	p.mu.Unlock()
	return nil
}

// Filter is one step that an exchange passes before it goes upstream. Request is
// called once, from the connection's goroutine, before routing; it must not
// block. A non-nil Answer ends the exchange with it. What x gives out is valid
// until Request returns.
type Filter interface {
	Request(x *Exchange) *Answer
}

// Limits and patience of downstream connections.
const (
	headTimeout  = 15 * time.Second // from the first byte of a head to its end
	idleTimeout  = 75 * time.Second // between requests; above what most clients keep
	stallTimeout = 5 * time.Minute  // without any byte in either direction
	shakeTimeout = 10 * time.Second // TLS handshake
	lingerTime   = 500 * time.Millisecond
	// lastGrace is what is left to a connection without a request in a drain.
	lastGrace   = time.Second
	lingerBytes = 256 << 10
)

var limits = http1.Limits{HeadBytes: bufferSize, Fields: 100, TargetBytes: 8 << 10}
