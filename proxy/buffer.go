package proxy

import "sync"

// bufferSize bounds a message head, and is the unit of all streaming.
const bufferSize = 16 << 10

type buffer [bufferSize]byte

// buffers are shared by the whole process: a connection holds one only while it
// has bytes to work on.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

func takeBuffer() *buffer { return buffers.Get().(*buffer) }

func (b *buffer) free() { buffers.Put(b) }
