package http2

import (
	"encoding/binary"
	"errors"

	"github.com/weftmesh/weft/wire/hpack"
)

// Config is how a connection behaves. The zero value is a client's.
type Config struct {
	Server bool
	// Streams is how many streams a client may have open; 0: 100. A client's Config
	// need not say it.
	Streams uint32
	// StreamWindow is how many bytes of a stream the peer may send before the driver
	// has used them (Consumed); 0: 65535. With Streams it bounds what a connection
	// can pin.
	StreamWindow uint32
	// ConnWindow is how many bytes may be under way on the connection; 0: 1 MiB. It
	// never is below 65535.
	ConnWindow uint32
	// HeadBytes bounds a head: its names and values, and 32 bytes for each field
	// (RFC 9113 §6.5.2); 0: 32 KiB.
	HeadBytes int
	// Fields bounds the fields of a head; 0: 100. Parts of a cookie count.
	Fields int
	// ExtendedConnect lets clients open WebSockets and the like (RFC 8441).
	ExtendedConnect bool
}

const (
	defaultStreams    = 100
	defaultConnWindow = 1 << 20
	defaultHeadBytes  = 32 << 10
	defaultFields     = 100

	// peerStreams is how many streams we open before the server has said its limit.
	peerStreams = 100
	// unreadMost is how many bytes of answers to control frames may wait: a peer
	// that makes us answer and does not read (CVE-2019-9512, 9515).
	unreadMost = 64 << 10
	// keptBlock is how much memory for a split head is kept.
	keptBlock = 4 << 10
	// keptResets and keptEnds are how many closed streams are remembered, with the
	// way in which they were closed: it decides what a late frame means.
	keptResets = 128
	keptEnds   = 32
)

// byPeer marks an ID in Conn.ended whose stream the peer has reset.
const byPeer = 1 << 31

// Conn is one side of a connection. It is not safe for concurrent use: the driver
// has one lock for it and all of its streams.
type Conn struct {
	config Config // with defaults filled in
	ledger
	ticks uint32 // Tick calls

	// sending
	out         []byte // what is to be written
	control     int    // bytes in out that answer control frames
	encoder     hpack.Encoder
	sendWindow  int32
	peerWindow  int32 // initial window of streams
	peerFrame   int   // longest payload
	peerMost    uint32
	peerConnect bool   // the server announced RFC 8441
	pinged      uint64 // pings sent
	ponged      uint64 // the newest of them that was answered

	// streams
	streams    table
	held       int     // server: streams that were not released
	free       *Stream // server: streams to be used again
	lastTicked uint32  // lastID at the last Tick
	lastID     uint32  // server: the newest of the client's; client: the newest of ours
	cutoff     uint32  // streams above it are ignored: we have said so
	reset      ring    // IDs that we have reset
	ended      ring    // IDs that ended otherwise
	leaving    bool    // GOAWAY was sent or received: Open fails

	// receiving
	state      state
	left       int     // bytes of the payload, or of the part of it that is being read
	pad        int     // bytes of padding behind that part
	greeted    bool    // the peer's first SETTINGS are here
	acked      bool    // the peer knows our SETTINGS
	credit     int32   // received bytes of which the peer does not know that they were received
	current    *Stream // of the DATA that is being read; nil: nobody wants it
	endsStream bool    // the DATA that is being read is the last
	opened     bool    // by the SETTINGS that are being read: a window
	early      int     // streams refused while the peer did not know our settings

	// the head that is being read
	block       []byte // what is here of it when it comes in parts
	blockStream uint32 // 0: none
	blockFrames int
	blockEnds   bool // END_STREAM
	endHeaders  bool // the present frame is its last
	fate        fate
	refusal     refusal
	decoder     hpack.Decoder
	head        head

	dead *ConnError
}

// New returns a Conn; Pending holds what it has to say first.
func New(config Config) *Conn {
	c := &Conn{config: config.filled()}
	c.peerWindow, c.sendWindow = windowInit, windowInit
	c.peerFrame, c.peerMost = frameMost, peerStreams
	c.cutoff = idMost
	c.state = atFrame
	if c.config.Server {
		c.state = atPreface
	} else {
		c.out = append(c.out, preface...)
	}
	c.out = c.config.appendSettings(c.out)
	if grow := c.config.ConnWindow - windowInit; grow > 0 {
		c.out = appendWindowUpdate(c.out, 0, grow)
	}
	return c
}

func (config Config) filled() Config {
	if config.Streams == 0 {
		config.Streams = defaultStreams
	}
	if config.StreamWindow == 0 {
		config.StreamWindow = windowInit
	}
	if config.ConnWindow == 0 {
		config.ConnWindow = defaultConnWindow
	}
	if config.HeadBytes <= 0 {
		config.HeadBytes = defaultHeadBytes
	}
	if config.Fields <= 0 {
		config.Fields = defaultFields
	}
	config.StreamWindow = min(config.StreamWindow, windowMost)
	config.ConnWindow = min(max(config.ConnWindow, windowInit), windowMost)
	return config
}

// appendSettings appends the SETTINGS frame with what is not the protocol's
// default.
func (config *Config) appendSettings(dst []byte) []byte {
	start := len(dst)
	dst = appendFrame(dst, 0, frameSettings, 0, 0)
	if config.Server {
		dst = appendSetting(dst, settingStreams, config.Streams)
		if config.ExtendedConnect {
			dst = appendSetting(dst, settingExtendedConnect, 1)
		}
	} else {
		dst = appendSetting(dst, settingPush, 0)
	}
	if config.StreamWindow != windowInit {
		dst = appendSetting(dst, settingWindow, config.StreamWindow)
	}
	dst = appendSetting(dst, settingHeadBytes, uint32(min(config.HeadBytes, windowMost)))
	putLength(dst[start:], len(dst)-start-headerLen)
	return dst
}

// ConnError is the end of a connection: the peer broke the protocol or spent a
// budget. The GOAWAY that says so is in Pending; the driver writes it and closes.
type ConnError struct {
	Code   Code
	Reason string // one word for logs and metric labels
}

func (e *ConnError) Error() string { return "http2: " + e.Reason + ": " + e.Code.String() }

var (
	// ErrStreams: the peer allows no more streams at the moment.
	ErrStreams = errors.New("http2: the peer's limit of streams is reached")
	// ErrGoingAway: the connection takes no more streams.
	ErrGoingAway = errors.New("http2: the connection is going away")
)

// fail ends the connection.
func (c *Conn) fail(code Code, reason string) *ConnError {
	if c.dead == nil {
		c.goAway(min(c.processed(), c.cutoff), code, reason)
		c.dead = &ConnError{code, reason}
		c.leaving = true
	}
	return c.dead
}

// processed is the highest of the peer's streams that we may have acted on.
func (c *Conn) processed() uint32 {
	if c.config.Server {
		return c.lastID
	}
	return 0
}

func (c *Conn) goAway(last uint32, code Code, reason string) {
	c.out = appendGoAway(c.out, last, code, reason)
}

// GoAway tells the peer that the connection will end, and the streams that are open
// may finish. A server says it twice: first not final, so that requests which are
// under way are still served; then, a round trip later (a Ping's), final: streams
// that begin after that are ignored, and the client knows that they were.
func (c *Conn) GoAway(code Code, final bool) {
	if c.dead != nil {
		return
	}
	c.leaving = true
	last := uint32(idMost)
	switch {
	case !c.config.Server:
		last = 0
	case final:
		c.cutoff = min(c.cutoff, c.lastID)
		last = c.cutoff
	}
	c.goAway(min(last, c.cutoff), code, "")
}

// Ping sends a PING; the answer is the event PongReceived.
func (c *Conn) Ping() {
	if c.dead != nil {
		return
	}
	c.pinged++
	c.out = appendFrame(c.out, pingLen, framePing, 0, 0)
	c.out = binary.BigEndian.AppendUint64(c.out, c.pinged)
}

// Active is how many streams are open on the wire.
func (c *Conn) Active() int { return c.streams.n }

// ExtendedConnect tells a client that the server takes RFC 8441's requests.
func (c *Conn) ExtendedConnect() bool { return c.peerConnect }

// Pending is how many bytes wait to be written.
func (c *Conn) Pending() int { return len(c.out) }

// Take returns the bytes to write and gives spare's memory to the next ones.
func (c *Conn) Take(spare []byte) []byte {
	out := c.out
	c.out, c.control = spare[:0], 0
	return out
}

// Room is how many more streams a client may open now.
func (c *Conn) Room() int {
	if c.leaving || c.config.Server {
		return 0
	}
	limit := min(int64(c.peerMost)-int64(c.streams.n), int64(idMost-c.lastID)/2)
	return int(max(0, limit))
}

// Open begins a stream of a client; s may be new or one that was released.
// SendRequest follows before the next Open: streams begin in the order of their
// IDs.
func (c *Conn) Open(s *Stream) error {
	switch {
	case c.Room() > 0:
	case c.leaving || c.lastID >= idMost-2:
		return ErrGoingAway
	default:
		return ErrStreams
	}
	if c.lastID == 0 {
		c.lastID = 1
	} else {
		c.lastID += 2
	}
	*s = Stream{Owner: s.Owner}
	c.begin(s, c.lastID)
	return nil
}

// accept begins a stream of the peer's.
func (c *Conn) accept(id uint32) *Stream {
	s := c.free
	if s == nil {
		s = new(Stream)
	} else {
		c.free = s.next
		*s = Stream{}
	}
	c.held++
	c.begin(s, id)
	return s
}

func (c *Conn) begin(s *Stream, id uint32) {
	s.ID, s.born, s.bodyLeft = id, c.ticks, -1
	s.send = c.peerWindow
	s.window = int32(c.config.StreamWindow)
	s.recv = s.window
	if !c.acked {
		// Until the peer has our settings it uses the protocol's window.
		s.recv = max(s.window, windowInit)
	}
	c.streams.add(s)
}

// Reset gives a stream up: RST_STREAM, unless it is closed already.
func (c *Conn) Reset(s *Stream, code Code) {
	if s.closed {
		return
	}
	c.close(s)
	if c.dead != nil {
		return
	}
	if !c.config.Server && !s.headSent {
		return // it is idle for the peer
	}
	c.reset.add(s.ID, keptResets)
	c.out = appendReset(c.out, s.ID, code)
}

// close takes a stream off the wire. The driver still has it.
func (c *Conn) close(s *Stream) {
	s.closed = true
	c.streams.remove(s)
	if c.current == s {
		c.current = nil
	}
}

// ends closes a stream when both sides have ended it.
func (c *Conn) ends(s *Stream) {
	if s.remoteEnded && s.localEnded {
		c.close(s)
		c.ended.add(s.ID, keptEnds)
		c.worked(1, 0)
	}
}

// Release says that the driver is done with a stream, and resets it if it is still
// open. A server's stream is then used for another request.
func (c *Conn) Release(s *Stream) {
	c.Reset(s, Cancel)
	if c.config.Server {
		c.held--
		s.Owner = nil
		s.next, c.free = c.free, s
	}
}
