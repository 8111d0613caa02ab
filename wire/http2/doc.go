// Package http2 is one side of an HTTP/2 connection (RFC 9113, RFC 8441) as a state
// machine: bytes in, events out, bytes to send in a buffer. It has no sockets, no
// clock, no goroutines and no locks, and in the steady state it allocates nothing.
// Whoever has the socket drives it, and holds one lock around every call.
//
// # Receiving
//
//	c := http2.New(http2.Config{Server: true})
//	write(c.Take(nil))
//	for {
//		n, e, err := c.Receive(in)
//		in = in[n:]
//		switch {
//		case err != nil: // *ConnError: write what is Pending and close
//		case e.Kind != http2.None: // one event
//		case n == 0: // read more behind in
//		}
//	}
//
// Frames need not fit into what is read: DATA is reported as its bytes come, and a
// head that comes in parts is gathered here. Each event consumes at least one byte.
//
// # Heads
//
// A head is reported as a wire/http1 Request, Response or Head, as if it had been
// parsed: the rules of HTTP/2 for field names, pseudo-header fields, framing and so
// on have been applied, Cookie fields are joined, and nothing is in it that would
// read differently in HTTP/1. What the event points to is used again by the next
// Receive; a driver that wants to keep it swaps it for one of its own:
//
//	mine, *e.Request = *e.Request, mine
//
// Content-Length is checked against DATA. A body of unknown length is Chunked; what
// follows a CONNECT, or its response, belongs to the tunnel and is no body.
//
// # Sending
//
// Open, SendRequest, SendResponse, SendData, SendTrailers and the control calls
// append to Pending, in the order in which they are called; Take hands the bytes
// over. SendData takes what both windows have room for; when that is less than all,
// an event WindowOpened follows. A Conn does not bound Pending for what the driver
// sends: a driver stops sending when much is Pending.
//
// # Streams
//
// A server's Stream comes with the event that has New set, and is the driver's until
// Release. A client's is the driver's own, given to Open. After StreamReset, or after
// a call of Reset, no event names the stream again.
//
// # What ends a stream
//
// A message that is malformed, or does not keep to its content-length or its window,
// is reset here; the event says so with Local and a Reason. Streams over
// Config.Streams are refused. A request over the limits of a head is reported with
// TooLarge, to be answered with 431.
//
// # What ends the connection
//
// What RFC 9113 says, and attacks that are made of allowed frames: resets, pings,
// settings, empty frames, small windows and so on have budgets (budget.go), which
// useful work and Tick refill; the code is then ENHANCE_YOUR_CALM. Tick is the only
// notion of time. What a peer can pin is bounded: Config.Streams × StreamWindow of
// DATA not used, twice Config.HeadBytes for a head that is not complete, tables of
// 4 KiB for each direction, 64 KiB of answers to control frames.
package http2
