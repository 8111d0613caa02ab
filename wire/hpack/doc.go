// Package hpack compresses and decompresses the heads of HTTP/2 (RFC 7541): bytes
// in, fields out. It has no sockets and no goroutines, and in the steady state it
// allocates nothing.
//
// # Reading
//
// Keep one Decoder per connection and give it every header block of the
// connection, in the order of the wire and complete (HEADERS or PUSH_PROMISE with
// its CONTINUATIONs), also the blocks of streams that were refused: each block
// may change the table that later ones speak of.
//
//	err := dec.Decode(block, func(name, value []byte, sensitive bool) bool {
//		bytes += len(name) + len(value) + 32
//		if bytes > most {
//			return false // answer 431: the connection is still good
//		}
//		…
//	})
//	if err != nil { … } // COMPRESSION_ERROR: the connection is lost
//
// The function is called, never kept, so a closure over local variables stays on
// the stack. A callback was taken over an iterator because a reader that breaks off
// an iteration loses the table; here it cannot.
//
// What a block costs: one byte of it can name a field of the whole table's size,
// so the sum of what is reported has no bound but the one that the callback sets
// by returning false. The Decoder itself holds at most 2 tables and the unpacked
// literals of one block, which are at most 8/5 of its length: bound the block
// while it is gathered. A literal larger than the table is reported and empties
// the table (§4.4); it is no error.
//
// Whether names and values are lawful in HTTP is not decided here.
//
// # Writing
//
// Keep one Encoder per connection, write the blocks in the order in which they
// are sent:
//
//	block = enc.Begin(block[:0])
//	block = enc.AppendStatus(block, 200)
//	block = enc.Append(block, name, value)
//
// Fields that the static table has are one byte. A field enters the dynamic table
// when it is written for the second time, Huffman-coded when that is shorter: what
// repeats pays once, and values that never come again push nothing out. All other
// literals are plain, for coding each of them costs more time than the bytes it
// saves on the wire between two proxies. Fields whose values are of one message
// (:path, content-length, date, etag, traceparent, …) are not considered for the
// table. Secrets (authorization, cookie, set-cookie, …) are literals that are never
// indexed (§7.1), here and at every hop behind.
package hpack
