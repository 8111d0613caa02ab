package mux

import (
	"sync"
	"unsafe"
)

// bufferSize is what one read takes from a socket, and the unit in which received
// bytes are kept.
const bufferSize = 16 << 10

// buffer holds received bytes: b[r:w] was not read yet. With its header it fills
// exactly one size class of the allocator.
type buffer struct {
	next *buffer
	r, w int
	b    [bufferSize - unsafe.Sizeof(uintptr(0)) - 2*unsafe.Sizeof(int(0))]byte
}

// buffers are shared by the whole process: nobody holds one without bytes in it.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

func takeBuffer() *buffer { return buffers.Get().(*buffer) }

func (b *buffer) free() {
	b.next, b.r, b.w = nil, 0, 0
	buffers.Put(b)
}

// queue is the bytes that a stream received and nobody read yet.
type queue struct {
	first, last *buffer
	size        int // bytes in it
}

func (q *queue) put(p []byte) {
	q.size += len(p)
	for len(p) > 0 {
		if q.last == nil || q.last.w == len(q.last.b) {
			b := takeBuffer()
			if q.last == nil {
				q.first = b
			} else {
				q.last.next = b
			}
			q.last = b
		}
		n := copy(q.last.b[q.last.w:], p)
		q.last.w += n
		p = p[n:]
	}
}

// front is a view of the oldest bytes, valid until they are dropped. Bytes that
// arrive meanwhile are put behind it.
func (q *queue) front() []byte { return q.first.b[q.first.r:q.first.w] }

// drop takes n bytes away that front returned, and keeps no empty buffer.
func (q *queue) drop(n int) {
	q.size -= n
	b := q.first
	b.r += n
	if b.r < b.w {
		return
	}
	if q.first = b.next; q.first == nil {
		q.last = nil
	}
	b.free()
}

// clear takes everything away.
func (q *queue) clear() {
	for q.first != nil {
		q.drop(q.first.w - q.first.r)
	}
}
