package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Side is one of the two connections.
type Side struct {
	Conn net.Conn
	// Already was read from Conn before: it goes to the other side first. It is read
	// until Run returns.
	Already []byte
}

// Config is how patient a relay is. The zero value means the defaults.
type Config struct {
	// Idle ends a relay that has not moved a byte either way for so long. Default 1
	// hour: connection pools and WebSockets keep quiet for long, and an idle relay
	// is cheap. It is noticed up to a quarter late.
	Idle time.Duration
	// HalfClosed takes Idle's place when one side has ended what it says. Default 5
	// minutes: who has asked and waits for a slow answer looks the same as who has
	// vanished behind a firewall.
	HalfClosed time.Duration
}

// Why a relay ended.
const (
	ClientClosed = "client_closed" // the client ended first, both ended cleanly
	ServerClosed = "server_closed" // the server did
	Idle         = "idle"          // no byte for Config.Idle
	HalfClosed   = "half_closed"   // one side ended; then no byte for Config.HalfClosed
	Reset        = "reset"         // a side was reset or failed: Err says which, and how
	Interrupted  = "interrupted"   // by Interrupt, or the owner has closed a connection
)

// Result is what became of a relay.
type Result struct {
	FromClient, FromServer int64  // bytes that were handed on to the other side's socket
	Reason                 string // one of the constants
	Err                    error  // with Reset only
}

// Relay joins two connections. Make it with New.
type Relay struct {
	// constant
	config     Config
	fromClient lane
	fromServer lane

	mu      sync.Mutex
	running bool
	stopped bool   // both lanes were told to end; reason and err stay
	reason  string // "" while both sides talk
	err     error
	timer   *time.Timer
	seen    int64     // bytes moved when the timer looked last
	seenAt  time.Time // when it found that any had moved
}

// Run joins two connections until both have ended, closes both, and says what
// happened.
func Run(client, server Side, c Config) Result { return New(client, server, c).Run() }

// New prepares a relay, for those who want to interrupt or watch it. The
// connections are the relay's from now on; call Run.
func New(client, server Side, c Config) *Relay {
	if c.Idle <= 0 {
		c.Idle = time.Hour
	}
	if c.HalfClosed <= 0 {
		c.HalfClosed = 5 * time.Minute
	}
	client, server = client.unwrap(), server.unwrap()
	r := &Relay{config: c}
	r.fromClient.init("client", client, "server", server.Conn)
	r.fromServer.init("server", server, "client", client.Conn)
	return r
}

// unwrap takes AcceptProxy's wrapping off, so that the lanes see the socket.
func (s Side) unwrap() Side {
	if p, ok := s.Conn.(*Accepted); ok {
		s.Already = append(s.Already[:len(s.Already):len(s.Already)], p.rest...)
		s.Conn = p.Conn
	}
	return s
}

// FromClient and FromServer are the bytes handed on so far. They may be called
// from anywhere, while the relay runs and after it.
func (r *Relay) FromClient() int64 { return r.fromClient.moved.Load() }
func (r *Relay) FromServer() int64 { return r.fromServer.moved.Load() }

// Interrupt ends the relay: both sides are reset, since what they were saying may
// not have been all. It may be called from anywhere, at any time, and returns
// without waiting for Run.
func (r *Relay) Interrupt() { r.stop(Interrupted, nil) }

// Run is the relay's life; call it once.
func (r *Relay) Run() Result {
	r.start()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.end(&r.fromClient, r.fromClient.run(), ClientClosed)
	}()
	r.end(&r.fromServer, r.fromServer.run(), ServerClosed)
	<-done
	return r.finish()
}

func (r *Relay) start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.fromClient.src.SetDeadline(time.Time{}) // whoever read the first bytes may have left one
	_ = r.fromServer.src.SetDeadline(time.Time{})
	r.running = true
	r.seenAt = time.Now()
	r.timer = time.AfterFunc(r.config.Idle/4, r.look)
	if r.stopped {
		r.wake()
	}
}

// end is called by each lane at its end.
func (r *Relay) end(l *lane, err error, reason string) {
	if err != io.EOF {
		r.fail(err)
		return
	}
	r.mu.Lock()
	if r.stopped {
		r.mu.Unlock()
		return
	}
	first := r.reason == ""
	if first {
		r.reason = reason
		r.seenAt = time.Now()
		r.timer.Reset(r.config.HalfClosed / 4)
	}
	reason = r.reason
	r.mu.Unlock()
	if first && isReset(l.src) {
		r.fail(l.readError(syscall.ECONNRESET))
		return
	}
	passed, err := closeWrite(l.dst)
	switch {
	case err != nil:
		r.fail(fmt.Errorf("end what is said to the %s: %w", l.to, err))
	case !passed && l == &r.fromServer:
		// The client can only learn that the answer has ended by losing the rest.
		r.stop(reason, nil)
	}
}

// fail ends the relay as a reset.
func (r *Relay) fail(err error) {
	if errors.Is(err, net.ErrClosed) {
		r.stop(Interrupted, nil)
		return
	}
	r.stop(Reset, err)
}

// stop ends both lanes. Only the first call counts.
func (r *Relay) stop(reason string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopLocked(reason, err)
}

func (r *Relay) stopLocked(reason string, err error) {
	if r.stopped {
		return
	}
	r.stopped, r.reason, r.err = true, reason, err
	if r.running {
		r.wake()
	}
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

// wake makes the lanes return from whatever they wait for. Closing would do, too,
// but how to close is only known when both have ended.
func (r *Relay) wake() {
	_ = r.fromClient.src.SetDeadline(past)
	_ = r.fromServer.src.SetDeadline(past)
}

// look is the relay's clock: four times in a patience, it asks whether any byte has
// moved. No byte ever touches a timer.
func (r *Relay) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped || !r.running {
		return
	}
	patience, reason := r.config.Idle, Idle
	if r.reason != "" {
		patience, reason = r.config.HalfClosed, HalfClosed
	}
	now := time.Now()
	if moved := r.FromClient() + r.FromServer(); moved != r.seen {
		r.seen, r.seenAt = moved, now
	}
	quiet := now.Sub(r.seenAt)
	if quiet >= patience {
		r.stopLocked(reason, nil)
		return
	}
	r.timer.Reset(min(patience/4, patience-quiet))
}

// finish closes both connections when both lanes have ended.
func (r *Relay) finish() Result {
	r.mu.Lock()
	r.running = false
	r.timer.Stop()
	result := Result{FromClient: r.FromClient(), FromServer: r.FromServer(), Reason: r.reason, Err: r.err}
	r.mu.Unlock()
	cut := r.fromClient.have > 0 || r.fromServer.have > 0
	for _, l := range []*lane{&r.fromClient, &r.fromServer} {
		if cut || result.Reason == Reset || result.Reason == Interrupted {
			reset(l.src)
		} else {
			_ = l.src.Close()
		}
	}
	return result
}
