// Package http1 reads and writes HTTP/1.0 and HTTP/1.1 messages (RFC 9110, RFC
// 9112): bytes in, values out. It has no sockets, no goroutines and no clock, and
// in the steady state it allocates nothing.
//
// # Reading a head
//
// Keep one Request (or Response) per connection and give Parse the bytes that
// were read so far, from the first byte of the message:
//
//	n, err := req.Parse(buf, &limits)
//	switch {
//	case err == nil: // buf[:n] is the head; the body begins at buf[n]
//	case err == http1.ErrIncomplete: // read more behind buf and call again
//	default: // *Error: answer its Status and close the connection
//	}
//
// Everything that Parse fills in points into buf: it is valid as long as buf is
// neither changed nor moved. A line is judged when its line feed is there, so the
// answer does not depend on how the bytes were cut into reads. A head that cannot
// fit the limits any more fails even when it is not complete.
//
// # Reading a body
//
// Framing says how: NoBody; FixedLength, exactly Length bytes; Chunked, feed a
// ChunkDecoder; UntilClose, all bytes until the peer closes.
//
// # Building a head
//
// A head that came in another form, as HTTP/2's does, is built: Reset, Set… and
// Add, Finish. It then has the same methods and marks as one that was parsed, and
// nothing can be built that HTTP/1 would read as something else. Framing Chunked
// says of it that there is a body whose length is unknown.
//
// # Writing
//
// Append… functions write canonical bytes. AppendFields copies the fields that
// are not marked Drop, with case, order and bytes as they came; framing, Host and
// Connection are the caller's to write (AppendFraming).
//
// # What is refused
//
// A proxy and the server behind it must never disagree where a message ends, so
// whatever two parsers are known to read differently is an error and is not
// mended: bare CR or LF, NUL and control bytes, folded lines, whitespace before a
// colon, Content-Length together with Transfer-Encoding, any Content-Length that
// is not one plain decimal number, any Transfer-Encoding that is not the one word
// chunked, Transfer-Encoding in HTTP/1.0, missing, repeated or malformed Host,
// "#" or user information in the target.
package http1
