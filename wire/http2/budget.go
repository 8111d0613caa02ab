package http2

// offence is something that costs us work or memory, that a peer may do now and
// then, and that attacks do all the time.
type offence uint8

const (
	rapidReset    offence = iota // CVE-2023-44487
	madeYouReset                 // CVE-2025-8671
	pingFlood                    // CVE-2019-9512
	settingsFlood                // CVE-2019-9515
	priorityFlood                // CVE-2019-9513
	emptyFrames                  // CVE-2019-9518
	windowFlood                  // CVE-2019-9517, and windows that are opened by the byte
	lateFrames                   // on streams that we have reset
	unknownFrames
	offences
)

// A budget is what a connection may spend on an offence. It is refilled by useful
// work, so that what is honest beside a thousand requests ends a connection that
// makes none; and by a quarter with each Tick, so that a quiet connection may go on
// for ever with its keepalives.
type budget struct {
	reason  string
	most    int32
	request int32 // refill by a stream that was answered to its end
	data    int32 // refill by a DATA frame with content, received or sent, and by each KiB sent
}

var budgets = [offences]budget{
	// A cancelled request that was not answered yet; 2 × Config.Streams is added: a
	// client that goes away from a page cancels all that is open, and then again.
	rapidReset:   {"rapid_reset", 200, 1, 0},
	madeYouReset: {"made_you_reset", 100, 1, 0},
	// gRPC pings for each message that it receives, to measure the bandwidth.
	pingFlood:     {"ping_flood", 100, 4, 2},
	settingsFlood: {"settings_flood", 50, 0, 0},
	priorityFlood: {"priority_flood", 400, 8, 1},
	// Clients exist that end each of their messages with an empty frame.
	emptyFrames: {"empty_frames", 100, 2, 2},
	// Clients exist that open both windows after each frame.
	windowFlood: {"window_update_flood", 1000, 8, 4},
	// What was under way when we reset: a window of small frames for each stream.
	lateFrames:    {"late_frames", 8000, 8, 2},
	unknownFrames: {"unknown_frames", 400, 8, 1},
}

// ledger is what a connection has spent.
type ledger struct {
	spent [offences]int32
	owing bool // something is spent
	// lent is how many bytes of DATA the peer was sent and has not opened windows
	// for again, counted for its stream's window and for the connection's.
	lent int64
}

// opens charges for a window that the peer opens. Who has a large window may take
// megabytes before it reads, and then says so piece by piece: that is no offence,
// unless the pieces are small or are more than there was to read.
func (c *Conn) opens(by uint32) *ConnError {
	if by >= usefulUnit && int64(by) <= c.lent {
		c.lent -= int64(by)
		return nil
	}
	return c.charge(windowFlood, 1)
}

// charge spends n of a budget.
func (c *Conn) charge(o offence, n int32) *ConnError {
	most := budgets[o].most
	if o == rapidReset {
		most += 2 * int32(min(c.config.Streams, 1<<20))
	}
	c.owing = true
	if c.spent[o] += n; c.spent[o] > most {
		return c.fail(EnhanceYourCalm, budgets[o].reason)
	}
	return nil
}

// worked refills the budgets.
func (c *Conn) worked(requests, data int32) {
	if !c.owing {
		return
	}
	c.owing = false
	for o := range c.spent {
		if c.spent[o] > 0 {
			c.spent[o] = max(0, c.spent[o]-requests*budgets[o].request-data*budgets[o].data)
			c.owing = c.owing || c.spent[o] > 0
		}
	}
}

// Tick is the only clock that a Conn has: call it about once a second.
func (c *Conn) Tick() {
	c.ticks++
	for o := range c.spent {
		c.spent[o] -= (c.spent[o] + 3) / 4
	}
	if c.streams.n == 0 && c.held == 0 && c.blockStream == 0 && c.lastID == c.lastTicked {
		c.rest()
	}
	c.lastTicked = c.lastID
}

// rest drops the memory that a connection without streams does not need: most
// connections are idle most of the time. What the hpack tables hold stays, for the
// peer has it too.
func (c *Conn) rest() {
	c.head, c.block, c.free = head{}, nil, nil
	c.streams.slots = nil
	if len(c.out) == 0 {
		c.out = nil
	}
}
