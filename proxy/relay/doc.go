// Package relay carries bytes that nobody looks into: TCP, TLS passthrough, CONNECT
// and WebSocket. It finds out what a connection speaks (Sniff, Detector, Memory),
// takes PROXY headers off (AcceptProxy), and joins two connections (Run, Relay).
//
//	result := relay.Run(
//		relay.Side{Conn: client, Already: leftover},
//		relay.Side{Conn: server}, relay.Config{})
//
// # What a relay keeps
//
// Run takes both connections over, lives until both directions have ended, and
// closes both. Every byte comes out in its order, those in Already first. An end is
// passed on as what it was:
//
//   - A side that ends what it says (FIN, TLS's close_notify) ends it on the other
//     side, by CloseWrite, and still hears the rest. A connection without CloseWrite
//     is closed whole when the server has ended; when the client has, the server
//     keeps its word until it ends or Config.HalfClosed is over.
//   - A reset, a broken TLS record, an end of TLS without close_notify (see
//     Cuttable), or a write that fails is a reset for the other side: RST instead of
//     FIN, no close_notify, so that nobody takes what was cut off for the whole. So
//     is Interrupt, and so are bytes that were read and could not be delivered. A
//     wrapper hides its socket from this, and is closed simply, unless it has a
//     method NetConn, as *tls.Conn has.
//
// To tell the server whose connection it is, put a PROXY header (wire/proxyproto)
// in front of the client's Already.
//
// What TCP itself does not keep is not kept either: what was on its way when one
// side sent RST may be lost. A lane that waits for a peer to take bytes does not
// notice that their sender has been reset: Config.Idle does.
//
// # What it costs
//
// Two goroutines, one of them the caller's. A lane out of a TCP socket that waits
// holds no buffer: an idle relay between two TCP sockets took 5.1 to 6.1 kB, heap
// and both stacks, sockets aside (BenchmarkIdle, 2,000 relays that had carried
// messages). A lane out of something else holds 2 KiB while it waits. One timer a
// relay looks four times in a Config.Idle whether a byte has moved; reads and
// writes touch no timer. In the steady state nothing is allocated.
//
// Between two TCP sockets, messages are copied, by one read and one write each; when
// one fills a buffer of 16 KiB, splice(2) takes over until the socket is empty, with
// one of at most 256 pipes. Over loopback, on one core of two, with the peers on
// both, the lane itself spent 0.17 to 0.22 ns of CPU a byte by splice and 0.57 to
// 0.62 by copying (BenchmarkBulk).
package relay
