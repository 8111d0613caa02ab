package http2

// Sendable is how many bytes of DATA both windows have room for.
func (c *Conn) Sendable(s *Stream) int {
	if s.closed || s.localEnded {
		return 0
	}
	return int(max(0, min(s.send, c.sendWindow)))
}

// Consumed says that the driver has used n bytes of the stream's DATA, so that the
// peer may send others. The connection's window was given back when they arrived:
// a slow reader holds up its own stream only.
func (c *Conn) Consumed(s *Stream, n int) {
	if s.closed || s.remoteEnded || c.dead != nil {
		return
	}
	s.credit += int32(n)
	// Half a window at once: the peer need not stop, and we do not chatter.
	if s.credit < (s.window+1)/2 || s.credit == 0 {
		return
	}
	s.recv += s.credit
	c.update(s.ID, s.credit)
	s.credit = 0
}

// Grow makes the stream's receive window larger, for a reader that keeps up with a
// peer that is far away.
func (c *Conn) Grow(s *Stream, window uint32) {
	grown := int32(min(window, windowMost))
	if s.closed || s.remoteEnded || c.dead != nil || grown <= s.window {
		return
	}
	by := grown - s.window
	s.window = grown
	s.recv += by
	c.update(s.ID, by)
}

func (c *Conn) update(id uint32, by int32) {
	c.out = appendWindowUpdate(c.out, id, uint32(by))
	c.control += headerLen + incrementLen
}

// received gives n bytes of the connection's window back. They never can be more
// than the window has: half of it is given back as soon as it is used, and the rest
// is more than a frame.
func (c *Conn) received(n int) {
	if c.credit += int32(n); c.credit >= int32(c.config.ConnWindow)/2 {
		c.update(0, c.credit)
		c.credit = 0
	}
}

// widen adds to a window that the peer gives us, and tells whether it opened. A
// window cannot be wider than 2^31-1.
func widen(window *int32, by int64) (opened, valid bool) {
	sum := int64(*window) + by
	if sum > windowMost {
		return false, false
	}
	opened = *window <= 0 && sum > 0
	*window = int32(sum)
	return opened, true
}

// resize applies the peer's SETTINGS_INITIAL_WINDOW_SIZE to all streams.
func (c *Conn) resize(initial uint32) (opened bool, fatal *ConnError) {
	if initial > windowMost {
		return false, c.fail(FlowControlError, "window_overflow")
	}
	by := int64(initial) - int64(c.peerWindow)
	c.peerWindow = int32(initial)
	if by == 0 {
		return false, nil
	}
	for _, s := range c.streams.slots {
		if s == nil {
			continue
		}
		o, valid := widen(&s.send, by)
		if !valid {
			return false, c.fail(FlowControlError, "window_overflow")
		}
		opened = opened || o
	}
	return opened, nil
}

// settle makes our own settings count, now that the peer has acknowledged them.
func (c *Conn) settle() {
	if c.acked {
		return
	}
	c.acked = true
	less := int32(windowInit) - int32(min(c.config.StreamWindow, windowInit))
	if less == 0 {
		return
	}
	for _, s := range c.streams.slots {
		if s != nil {
			s.recv -= less
		}
	}
}
