package http2

import (
	"encoding/binary"

	"github.com/weftmesh/weft/wire/http1"
)

// Kind is what an Event tells.
type Kind uint8

const (
	None             Kind = iota
	HeadReceived          // a request, or a response (also an informational one)
	DataReceived          // bytes of the body, and maybe its end
	TrailersReceived      // the end of the body, with fields
	StreamReset           // by the peer, or here (Local) because of what the peer did
	WindowOpened          // a window that was empty has room: Stream's, or nil: maybe of all streams
	SettingsReceived      // what Room and ExtendedConnect say is new
	GoAwayReceived        // Open fails from now on
	PongReceived          // the answer to a Ping
	// RequestRefused: a server has reset a stream of which the driver does not know,
	// for it was malformed or one too many. For the metrics.
	RequestRefused
)

// Event is one thing that was received. What it points to is valid until the next
// Receive or Tick.
type Event struct {
	Kind   Kind
	Stream *Stream // nil: the connection
	New    bool    // HeadReceived of a server: the stream begins; set its Owner, Release it once
	End    bool    // the peer has ended its side of the stream
	Data   []byte  // DataReceived: a part of in

	Code   Code   // StreamReset, GoAwayReceived, RequestRefused
	Local  bool   // StreamReset: it was reset here, because of the peer's fault
	Reason string // Local, RequestRefused: one word for logs and metric labels
	LastID uint32 // GoAwayReceived: streams above were not processed; they are closed

	// TooLarge: the request is over the limits. Request has what was read before and
	// may lack anything: answer 431.
	TooLarge bool
	Request  *http1.Request  // HeadReceived of a server
	Response *http1.Response // HeadReceived of a client
	Trailers *http1.Head     // TrailersReceived
	Protocol []byte          // HeadReceived of a server: :protocol of an extended CONNECT
}

// state is what the next byte belongs to.
type state uint8

const (
	atPreface state = iota // left is how much of it is here
	atFrame
	inData
	inBlock // of HEADERS or CONTINUATION
	inSettings
	inIgnored // padding, or a frame that is skipped
)

// Receive consumes from in and reports at most one event. Kind None with n == 0 asks
// for more bytes: call again with the same bytes and others behind them. It needs
// no more than 17 bytes in one piece, whatever the length of a frame. The error is
// a *ConnError.
func (c *Conn) Receive(in []byte) (n int, e Event, err error) {
	if c.dead != nil {
		return 0, Event{}, c.dead
	}
	for n < len(in) && e.Kind == None {
		used, fatal := c.step(in[n:], &e)
		if fatal == nil && c.control > unreadMost {
			fatal = c.fail(EnhanceYourCalm, "unread_replies")
		}
		if fatal != nil {
			return n, Event{}, fatal
		}
		if used == 0 {
			break
		}
		n += used
	}
	return n, e, nil
}

// step consumes what is next, or nothing when it is not complete.
func (c *Conn) step(in []byte, e *Event) (int, *ConnError) {
	switch c.state {
	case atFrame:
		return c.frame(in, e)
	case inData:
		return c.dataBytes(in, e), nil
	case inBlock:
		return c.fragment(in, e)
	case inSettings:
		return c.settingBytes(in, e)
	case inIgnored:
		n := min(len(in), c.left)
		c.ignore(c.left - n)
		return n, nil
	}
	n := min(len(in), len(preface)-c.left)
	if string(in[:n]) != preface[c.left:c.left+n] {
		return 0, c.fail(ProtocolError, "bad_preface")
	}
	if c.left += n; c.left == len(preface) {
		c.ignore(0)
	}
	return n, nil
}

// ignore skips n bytes before the next frame.
func (c *Conn) ignore(n int) {
	c.left, c.state = n, inIgnored
	if n == 0 {
		c.state = atFrame
	}
}

// frame begins a frame.
func (c *Conn) frame(in []byte, e *Event) (int, *ConnError) {
	if len(in) < headerLen {
		return 0, nil
	}
	f := readFrame(in)
	switch {
	case f.length > frameMost:
		return 0, c.fail(FrameSizeError, "frame_size")
	case !c.greeted && (f.kind != frameSettings || f.has(flagAck)):
		return 0, c.fail(ProtocolError, "no_settings")
	case c.blockStream != 0 && (f.kind != frameContinuation || f.stream != c.blockStream):
		return 0, c.fail(ProtocolError, "split_head")
	}
	switch f.kind {
	case frameData:
		return c.data(f, in, e)
	case frameHeaders:
		return c.headers(f, in, e)
	case framePriority:
		return c.priority(f, in, e)
	case frameReset:
		return c.resetByPeer(f, in, e)
	case frameSettings:
		return c.settings(f, e)
	case framePush:
		return 0, c.fail(ProtocolError, "push") // a server must not get it, and we have refused it
	case framePing:
		return c.ping(f, in, e)
	case frameGoAway:
		return c.goAwayByPeer(f, in, e)
	case frameWindowUpdate:
		return c.windowUpdate(f, in, e)
	case frameContinuation:
		return c.continuation(f, in, e)
	}
	c.ignore(f.length)
	return headerLen, c.charge(unknownFrames, 1)
}

// idle tells whether a stream has not begun.
func (c *Conn) idle(id uint32) bool { return id&1 == 0 || id > c.lastID }

// padding reads the length of the padding, if there is one, behind the header.
// size is what remains of the payload without it.
func (c *Conn) padding(f frame, in []byte) (n, size, pad int, fatal *ConnError) {
	if !f.has(flagPadded) {
		return headerLen, f.length, 0, nil
	}
	if f.length == 0 {
		return 0, 0, 0, c.fail(FrameSizeError, "frame_size")
	}
	if len(in) == headerLen {
		return 0, 0, 0, nil
	}
	pad = int(in[headerLen])
	if pad >= f.length {
		return 0, 0, 0, c.fail(ProtocolError, "padding")
	}
	return headerLen + 1, f.length - 1 - pad, pad, nil
}

func (c *Conn) data(f frame, in []byte, e *Event) (int, *ConnError) {
	if f.stream == 0 {
		return 0, c.fail(ProtocolError, "stream_zero")
	}
	n, size, pad, fatal := c.padding(f, in)
	if n == 0 {
		return 0, fatal
	}
	if c.idle(f.stream) {
		return 0, c.fail(ProtocolError, "idle_stream")
	}
	c.received(f.length)
	s := c.streams.find(f.stream)
	if s == nil {
		c.ignore(size + pad)
		return n, c.lateData(f.stream)
	}
	end := f.has(flagEndStream)
	if code, reason := s.takesData(f.length, size, end); reason != "" {
		c.ignore(size + pad)
		return n, c.streamError(s, code, reason, e)
	}
	s.recv -= int32(f.length)
	if f.length > size {
		c.Consumed(s, f.length-size)
	}
	if size > 0 {
		c.worked(0, 1)
		c.current, c.endsStream = s, end
		c.state, c.left, c.pad = inData, size, pad
		return n, nil
	}
	c.ignore(pad)
	if !end {
		return n, c.charge(emptyFrames, 1)
	}
	*e = Event{Kind: DataReceived, Stream: s, End: true}
	s.remoteEnded = true
	c.ends(s)
	return n, nil
}

// takesData judges a DATA frame, and counts its bytes against content-length. No
// reason: it is welcome.
func (s *Stream) takesData(length, size int, end bool) (code Code, reason string) {
	switch {
	case s.remoteEnded:
		return StreamClosed, "data_after_end"
	case !s.headSeen:
		return ProtocolError, "data_before_head"
	case length > int(s.recv):
		return FlowControlError, "window_exceeded"
	case s.bodyLeft < 0:
		return NoError, ""
	}
	s.bodyLeft -= int64(size)
	if s.bodyLeft < 0 || end && s.bodyLeft > 0 {
		return ProtocolError, "content_length"
	}
	return NoError, ""
}

// lateData is DATA on a closed stream.
func (c *Conn) lateData(id uint32) *ConnError {
	if c.ended.has(id) || c.ended.has(id|byPeer) {
		return c.refuse(id, StreamClosed, nil, "")
	}
	// It was under way when we reset the stream, or ignored it after GOAWAY.
	return c.charge(lateFrames, 1)
}

// dataBytes reports what is here of the DATA.
func (c *Conn) dataBytes(in []byte, e *Event) int {
	n := min(len(in), c.left)
	c.left -= n
	s := c.current
	last := c.left == 0
	if last {
		c.ignore(c.pad)
	}
	if s == nil {
		return n // the driver gave the stream up meanwhile
	}
	*e = Event{Kind: DataReceived, Stream: s, Data: in[:n], End: last && c.endsStream}
	if e.End {
		s.remoteEnded = true
		c.ends(s)
	}
	return n
}

// streamError resets a stream that the driver knows.
func (c *Conn) streamError(s *Stream, code Code, reason string, e *Event) *ConnError {
	c.Reset(s, code)
	c.control += headerLen + resetLen
	*e = Event{Kind: StreamReset, Stream: s, Code: code, Local: true, Reason: reason}
	return c.charge(madeYouReset, 1)
}

// refuse resets a stream that the driver does not know. Without a reason there is
// nothing to report.
func (c *Conn) refuse(id uint32, code Code, e *Event, reason string) *ConnError {
	c.reset.add(id, keptResets)
	c.out = appendReset(c.out, id, code)
	c.control += headerLen + resetLen
	if reason != "" {
		*e = Event{Kind: RequestRefused, Code: code, Reason: reason}
	}
	if code == RefusedStream && !c.acked && c.early < earlyMost {
		c.early++ // it cannot know our limit yet
		return nil
	}
	return c.charge(madeYouReset, 1)
}

// earlyMost is how many streams a client may begin over a limit that it does not
// know.
const earlyMost = 1000

func (c *Conn) priority(f frame, in []byte, e *Event) (int, *ConnError) {
	if f.stream == 0 {
		return 0, c.fail(ProtocolError, "stream_zero")
	}
	s := c.streams.find(f.stream)
	if f.length != priorityLen {
		if s == nil {
			return 0, c.fail(FrameSizeError, "frame_size")
		}
		c.ignore(f.length)
		return headerLen, c.streamError(s, FrameSizeError, "frame_size", e)
	}
	if len(in) < headerLen+priorityLen {
		return 0, nil
	}
	if dependsOnItself(in[headerLen:], f.stream) {
		if s == nil {
			return 0, c.fail(ProtocolError, "self_dependency")
		}
		return headerLen + priorityLen, c.streamError(s, ProtocolError, "self_dependency", e)
	}
	return headerLen + priorityLen, c.charge(priorityFlood, 1)
}

// dependsOnItself looks at the priority fields, which are otherwise ignored, as RFC
// 9113 §5.3.2 says. RFC 7540 §5.3.1 has this error, and nobody makes it by accident.
func dependsOnItself(b []byte, id uint32) bool {
	return binary.BigEndian.Uint32(b)&idMost == id
}

func (c *Conn) resetByPeer(f frame, in []byte, e *Event) (int, *ConnError) {
	const n = headerLen + resetLen
	switch {
	case f.length != resetLen:
		return 0, c.fail(FrameSizeError, "frame_size")
	case f.stream == 0:
		return 0, c.fail(ProtocolError, "stream_zero")
	case c.idle(f.stream):
		return 0, c.fail(ProtocolError, "idle_stream")
	case len(in) < n:
		return 0, nil
	}
	s := c.streams.find(f.stream)
	if s == nil {
		return n, c.charge(lateFrames, 1)
	}
	c.close(s)
	c.ended.add(s.ID|byPeer, keptEnds)
	*e = Event{Kind: StreamReset, Stream: s, Code: Code(binary.BigEndian.Uint32(in[headerLen:]))}
	// A request that was given up within the second, before there was an answer, has
	// cost us more than the client. Older ones are bounded by Streams for each Tick.
	if c.config.Server && !s.headSent && s.born == c.ticks {
		return n, c.charge(rapidReset, 1)
	}
	return n, nil
}

func (c *Conn) ping(f frame, in []byte, e *Event) (int, *ConnError) {
	const n = headerLen + pingLen
	switch {
	case f.length != pingLen:
		return 0, c.fail(FrameSizeError, "frame_size")
	case f.stream != 0:
		return 0, c.fail(ProtocolError, "not_stream_zero")
	case len(in) < n:
		return 0, nil
	}
	if !f.has(flagAck) {
		c.out = appendFrame(c.out, pingLen, framePing, flagAck, 0)
		c.out = append(c.out, in[headerLen:n]...)
		c.control += n
	} else if number := binary.BigEndian.Uint64(in[headerLen:]); number > c.ponged && number <= c.pinged {
		c.ponged = number
		*e = Event{Kind: PongReceived}
		return n, nil
	}
	return n, c.charge(pingFlood, 1)
}

func (c *Conn) goAwayByPeer(f frame, in []byte, e *Event) (int, *ConnError) {
	const n = headerLen + goAwayLen
	switch {
	case f.length < goAwayLen:
		return 0, c.fail(FrameSizeError, "frame_size")
	case f.stream != 0:
		return 0, c.fail(ProtocolError, "not_stream_zero")
	case len(in) < n:
		return 0, nil
	}
	last := binary.BigEndian.Uint32(in[headerLen:]) & idMost
	*e = Event{
		Kind:   GoAwayReceived,
		LastID: last,
		Code:   Code(binary.BigEndian.Uint32(in[headerLen+4:])),
	}
	c.ignore(f.length - goAwayLen)
	if c.config.Server {
		return n, c.charge(settingsFlood, 1)
	}
	c.leaving = true
	for _, s := range c.unprocessed(last) {
		c.close(s)
		c.ended.add(s.ID, keptEnds)
	}
	return n, c.charge(settingsFlood, 1)
}

// unprocessed lists the streams above an ID. (Removing moves streams in the table.)
func (c *Conn) unprocessed(last uint32) (list []*Stream) {
	for _, s := range c.streams.slots {
		if s != nil && s.ID > last {
			list = append(list, s)
		}
	}
	return list
}

func (c *Conn) windowUpdate(f frame, in []byte, e *Event) (int, *ConnError) {
	const n = headerLen + incrementLen
	switch {
	case f.length != incrementLen:
		return 0, c.fail(FrameSizeError, "frame_size")
	case f.stream != 0 && c.idle(f.stream):
		return 0, c.fail(ProtocolError, "idle_stream")
	case len(in) < n:
		return 0, nil
	}
	by := binary.BigEndian.Uint32(in[headerLen:]) & windowMost
	if f.stream == 0 {
		if by == 0 {
			return 0, c.fail(ProtocolError, "window_zero")
		}
		opened, valid := widen(&c.sendWindow, int64(by))
		if !valid {
			return 0, c.fail(FlowControlError, "window_overflow")
		}
		if opened {
			*e = Event{Kind: WindowOpened}
		}
		return n, c.opens(by)
	}
	s := c.streams.find(f.stream)
	if s == nil {
		return n, c.opens(by) // it was under way when the stream ended
	}
	if by == 0 {
		return n, c.streamError(s, ProtocolError, "window_zero", e)
	}
	opened, valid := widen(&s.send, int64(by))
	if !valid {
		return n, c.streamError(s, FlowControlError, "window_overflow", e)
	}
	if opened {
		*e = Event{Kind: WindowOpened, Stream: s}
	}
	return n, c.opens(by)
}

func (c *Conn) settings(f frame, e *Event) (int, *ConnError) {
	switch {
	case f.stream != 0:
		return 0, c.fail(ProtocolError, "not_stream_zero")
	case f.has(flagAck) && f.length != 0, f.length%settingLen != 0:
		return 0, c.fail(FrameSizeError, "frame_size")
	case f.has(flagAck):
		c.settle()
		return headerLen, c.charge(settingsFlood, 1)
	}
	c.greeted = true
	c.state, c.left, c.opened = inSettings, f.length, false
	if f.length == 0 {
		c.acknowledge()
		c.ignore(0)
		*e = Event{Kind: SettingsReceived}
	}
	// Each setting can make us touch all streams.
	return headerLen, c.charge(settingsFlood, 1+int32(f.length/(16*settingLen)))
}

func (c *Conn) acknowledge() {
	c.out = appendFrame(c.out, 0, frameSettings, flagAck, 0)
	c.control += headerLen
}

// settingBytes applies the settings that are here. The acknowledgement comes before
// the event that makes the driver use the windows. When there is such an event, one
// byte of the last setting is left for the other, SettingsReceived: none comes
// without bytes.
func (c *Conn) settingBytes(in []byte, e *Event) (n int, fatal *ConnError) {
	for c.left >= settingLen {
		if len(in)-n < settingLen {
			return n, nil
		}
		opened, fatal := c.setting(binary.BigEndian.Uint16(in[n:]), binary.BigEndian.Uint32(in[n+2:]))
		if fatal != nil {
			return n, fatal
		}
		c.opened = c.opened || opened
		n, c.left = n+settingLen, c.left-settingLen
		if c.left == 0 {
			c.acknowledge()
			if c.opened {
				c.left = 1
				*e = Event{Kind: WindowOpened}
				return n - 1, nil
			}
		}
	}
	n, c.left = n+c.left, 0
	c.ignore(0)
	*e = Event{Kind: SettingsReceived}
	return n, nil
}

func (c *Conn) setting(id uint16, value uint32) (opened bool, fatal *ConnError) {
	switch id {
	case settingTableSize:
		c.encoder.SetMaxTable(value)
	case settingPush:
		if value > 1 || value == 1 && !c.config.Server {
			return false, c.fail(ProtocolError, "bad_setting")
		}
	case settingStreams:
		c.peerMost = value
	case settingWindow:
		return c.resize(value)
	case settingFrameSize:
		if value < frameMost || value > 1<<24-1 {
			return false, c.fail(ProtocolError, "bad_setting")
		}
		c.peerFrame = int(min(value, longestFrame))
	case settingExtendedConnect:
		if value > 1 || value == 0 && c.peerConnect {
			return false, c.fail(ProtocolError, "bad_setting")
		}
		c.peerConnect = value == 1
	}
	return false, nil
}

// longestFrame is what we send at most: others wait behind it.
const longestFrame = 64 << 10
