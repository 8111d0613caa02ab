package mux

import (
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/weftmesh/weft/wire/http2"
)

// Conn is one HTTP/2 connection. All methods may be called from any goroutine.
type Conn struct {
	// constant
	sock   net.Conn
	raw    syscall.RawConn // nil: not a plain TCP socket
	client bool
	config Config
	done   chan struct{}
	flush  func() // c.write, made once

	reader reader // of the goroutine that reads

	mu    sync.Mutex
	ended sync.Cond // on mu: writing or serving became less, and err is set
	h2    *http2.Conn
	err   error // why the connection moves no more bytes and takes no more streams
	batch bool  // the reader processes what one read brought: wake after it

	// streams, under mu
	active   []*Stream // those that somebody holds
	free     []*Stream
	opened   int // client: of active, those that have not sent their request
	serving  int // server: calls of Serve that have not returned
	grown    int // by how much the windows of streams are larger than configured
	draining drainState
	drained  time.Time // when draining began

	// writing, under mu
	turns   streams // streams that write, in the order in which they are served
	parked  streams // streams that write and wait for the peer's window
	memory  *memory // of frames that wait, and of those that are being written; nil while idle
	writing bool    // the writer runs
	inWrite bool    // it is in the socket's Write
	shut    bool    // nothing will be written any more
	taken   int64   // bytes that were handed to the socket's Write
	flushed int64   // bytes that it took

	// the reader's nudge, under mu
	seen   uint64 // reads when Expire looked last
	nudged bool   // the read deadline is past, only to make the reader look

	// time, under mu; clock is what Expire was told last
	clock      time.Time
	idleSince  time.Time
	writeSince time.Time // when the present Write began
	lastTick   time.Time
	hurried    bool // memory was short when Expire looked
}

type drainState uint8

const (
	staying  drainState = iota
	notified            // no new streams; the peer of a server was told that the end is near
	final               // server: the peer knows which streams will be served
)

const (
	// drainPatience bounds the round trip between the two GOAWAYs of a drain.
	drainPatience = time.Second
	// lingerTime is how long a connection that we end may still send, so that our
	// last bytes are not lost to a TCP reset.
	lingerTime  = time.Second
	lingerBytes = 256 << 10
	// tick is how often streams are looked at for stalls.
	tick = time.Second
)

var (
	errIdle    = fmt.Errorf("%w: idle", ErrGone)
	errDrained = fmt.Errorf("%w: drained", ErrGone)
	errClosed  = fmt.Errorf("%w: closed", ErrGone)
	errStalled = fmt.Errorf("%w: the peer takes no bytes", ErrGone)
	errEOF     = fmt.Errorf("%w: closed by the peer", ErrGone)
)

// NewServer makes the server's side of a connection. Run runs it.
func NewServer(sock net.Conn, config Config) *Conn {
	config.Protocol.Server = true
	return newConn(sock, config)
}

// NewClient makes the client's side of a connection and starts to read. The owner
// ends it by Close or Drain and waits for Done.
func NewClient(sock net.Conn, config Config) *Conn {
	config.Protocol.Server = false
	c := newConn(sock, config)
	c.client = true
	go c.run(nil)
	return c
}

func newConn(sock net.Conn, config Config) *Conn {
	if config.Idle == 0 {
		config.Idle = defaultIdle
	}
	if config.Stall == 0 {
		config.Stall = defaultStall
	}
	c := &Conn{sock: sock, config: config, h2: http2.New(config.Protocol), done: make(chan struct{})}
	c.ended.L = &c.mu
	c.flush = c.write
	c.clock = time.Now()
	c.idleSince, c.lastTick = c.clock, c.clock
	c.reader.c = c
	if tcp, ok := sock.(*net.TCPConn); ok {
		c.raw, _ = tcp.SyscallConn()
		c.reader.ready = c.reader.serveReady
	}
	return c
}

// Run serves the connection to its end. already is what was read from the socket
// before. When it returns, every Serve has returned, the writer has stopped and the
// socket is closed. The error is nil when one of the two sides ended the connection
// in good order.
func (c *Conn) Run(already []byte) error {
	c.run(already)
	switch c.err {
	case errIdle, errDrained, errClosed, errEOF:
		return nil
	}
	return c.err
}

// Done is closed when the connection has ended: nothing of it runs any more but
// streams that are still held.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Alive reports whether the connection takes new streams.
func (c *Conn) Alive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err == nil && c.draining == staying && !c.shut
}

// Active is the number of streams that somebody holds.
func (c *Conn) Active() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.active)
}

// Room is how many more streams a client may open now.
func (c *Conn) Room() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.room()
}

func (c *Conn) room() int {
	if c.err != nil || c.draining != staying || c.shut {
		return 0
	}
	return max(0, c.h2.Room()-c.opened)
}

// Open begins a stream of a client. It sends nothing yet. The error is ErrBusy or
// wraps ErrGone.
func (c *Conn) Open() (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return nil, c.err
	case c.draining != staying || c.shut:
		return nil, errDrained
	case c.room() == 0:
		return nil, ErrBusy
	}
	c.opened++
	return c.takeStream(), nil
}

// Close ends the connection at once: every stream fails.
func (c *Conn) Close() { c.abort(errClosed) }

// Drain ends the connection when its streams have ended. A server tells its peer
// first, and a round trip later which streams will be served: nothing that was
// under way is lost (RFC 9113 §6.8).
func (c *Conn) Drain() {
	c.lock()
	defer c.unlock()
	if c.err != nil || c.draining != staying {
		return
	}
	c.draining = notified
	if !c.client {
		c.drained = time.Now()
		c.h2.GoAway(http2.NoError, false)
		c.h2.Ping()
	}
	c.endIfDrained()
}

// lastCall is the second half of a server's drain.
func (c *Conn) lastCall() {
	c.draining = final
	c.h2.GoAway(http2.NoError, true)
	c.endIfDrained()
}

// endIfDrained ends a connection that was drained and has no streams any more.
func (c *Conn) endIfDrained() {
	if len(c.active) > 0 || c.err != nil || c.draining == staying || c.draining == notified && !c.client {
		return
	}
	if c.client {
		c.h2.GoAway(http2.NoError, true)
	}
	c.fail(errDrained)
}

// fail ends the connection: no stream moves on. What the protocol still has to say
// is written, then the peer has a moment to read it.
func (c *Conn) fail(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	_ = c.sock.SetDeadline(time.Now().Add(lingerTime))
	for _, s := range c.active {
		s.lose(err)
	}
}

func (c *Conn) refused(reason string) {
	if c.config.Refused != nil {
		c.config.Refused(reason)
	}
}

// lock locks the connection for somebody who may have something to send.
func (c *Conn) lock() {
	c.mu.Lock()
	if c.memory == nil {
		c.takeMemory()
	}
}

// unlock ends what lock began, and sees that what was queued gets written.
func (c *Conn) unlock() {
	start := c.startWriter()
	c.mu.Unlock()
	if start {
		go c.flush()
	}
}

// wake wakes a stream's side that waits, which is known to the caller: the channel
// is empty.
func (c *Conn) wake(side chan struct{}) {
	if c.batch {
		c.reader.wakes = append(c.reader.wakes, side)
		return
	}
	side <- struct{}{}
}

// Expire ends what has waited for too long. The owner calls it about ten times a
// second.
func (c *Conn) Expire(now time.Time) {
	c.mu.Lock()
	c.clock = now
	if c.err != nil { // ends by itself
		c.mu.Unlock()
		return
	}
	c.nudge()
	c.hurried = c.config.Hurry != nil && c.config.Hurry()
	if c.inWrite && now.Sub(c.writeSince) > c.patience() {
		c.refused("write_stall")
		c.mu.Unlock()
		c.abort(errStalled)
		return
	}
	if c.draining == notified && !c.client && now.Sub(c.drained) >= drainPatience {
		c.lastCall()
	}
	if now.Sub(c.lastTick) >= tick {
		c.lastTick = now
		c.h2.Tick()
		c.expireStreams()
	}
	if len(c.active) == 0 && now.Sub(c.idleSince) >= c.config.Idle {
		c.h2.GoAway(http2.NoError, true)
		c.fail(errIdle)
	}
	if !c.writing && c.h2.Pending() == 0 {
		c.dropMemory()
	}
	c.unlock()
}

// expireStreams resets the streams that make no progress.
func (c *Conn) expireStreams() {
	if len(c.active) == 0 {
		c.dropFree() // a connection that is not used keeps nothing
		return
	}
	for _, s := range c.active {
		stall, reason, slow := c.config.Stall, "stall", false
		switch {
		case s.list == &c.parked:
			stall, reason = c.patience(), "window_stall" // CVE-2019-9517, and HTTP/2 bombs
			slow = s.giving.waits(c.config.Grace)
		case s.rests:
			continue
		case s.bounded && s.waitsRead && !s.ended:
			reason = "slow_body"
			slow = s.taking.waits(c.config.Grace)
		}
		if !slow && c.clock.Sub(s.moved) <= stall || s.h == nil || s.err != nil {
			continue
		}
		c.refused(reason)
		c.h2.Reset(s.h, http2.Cancel)
		s.lose(&ResetError{Code: http2.Cancel})
	}
}

// patience is how long the peer may take no bytes.
func (c *Conn) patience() time.Duration {
	if c.hurried {
		return min(c.config.Stall, hurriedStall)
	}
	return c.config.Stall
}

// abort ends the connection without a word.
func (c *Conn) abort(err error) {
	c.mu.Lock()
	c.fail(err)
	c.shut = true
	c.mu.Unlock()
	// Not Close: it would wait for the reader, who may be processing a batch.
	_ = c.sock.SetDeadline(time.Unix(1, 0))
}
