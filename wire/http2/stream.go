package http2

// Stream is one request and its response. A server's streams are made by the
// Conn, a client's by the driver, who gives them to Open.
type Stream struct {
	ID    uint32
	Owner any // the driver's

	send   int32 // bytes that the peer's window has room for; below 0 when it shrank
	recv   int32 // bytes that our window has room for
	window int32 // size of our window
	credit int32 // bytes that were used and not yet given back to the peer

	// bodyLeft is what is missing of the announced content-length; -1: none was
	// announced, or it announces nothing (after HEAD and 304).
	bodyLeft int64

	remoteEnded, localEnded bool
	closed                  bool // both sides ended, or one side reset it
	headSeen                bool // the request, or the final response, was received
	headSent                bool // the final response was sent
	toHead                  bool // client: the method is HEAD
	tunnel                  bool // client: the method is CONNECT

	born uint32  // Conn.ticks when it began
	next *Stream // in Conn.free
}

// Ended tells which sides have said their last word on the stream.
func (s *Stream) Ended() (remote, local bool) { return s.remoteEnded, s.localEnded }

// Closed tells that nothing can be sent or received any more: both sides have
// ended, or one has reset the stream.
func (s *Stream) Closed() bool { return s.closed }

// table finds the open streams by ID: open addressing, linear probing. IDs count
// up, so neighbours in time are neighbours in memory and collisions are rare.
// (A map allocates now and then when keys come and go.)
type table struct {
	slots []*Stream // a power of two, at most half full
	n     int
}

const fewestSlots = 16

func (t *table) home(id uint32) int { return int(id>>1) & (len(t.slots) - 1) }

func (t *table) find(id uint32) *Stream {
	if t.n == 0 {
		return nil
	}
	for i := t.home(id); ; i = (i + 1) & (len(t.slots) - 1) {
		if s := t.slots[i]; s == nil || s.ID == id {
			return s
		}
	}
}

func (t *table) add(s *Stream) {
	if 2*(t.n+1) > len(t.slots) {
		old := t.slots
		t.slots = make([]*Stream, max(fewestSlots, 2*len(old)))
		for _, s := range old {
			if s != nil {
				t.place(s)
			}
		}
	}
	t.place(s)
	t.n++
}

func (t *table) place(s *Stream) {
	i := t.home(s.ID)
	for t.slots[i] != nil {
		i = (i + 1) & (len(t.slots) - 1)
	}
	t.slots[i] = s
}

// remove takes a stream out that is in the table.
func (t *table) remove(s *Stream) {
	mask := len(t.slots) - 1
	i := t.home(s.ID)
	for t.slots[i] != s {
		i = (i + 1) & mask
	}
	t.n--
	// Streams behind the gap move up, unless that would put them before their home.
	for j := (i + 1) & mask; t.slots[j] != nil; j = (j + 1) & mask {
		if (j-t.home(t.slots[j].ID))&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = nil
}

// ring remembers the last IDs that were put into it.
type ring struct {
	ids  []uint32
	next int
}

func (r *ring) add(id uint32, most int) {
	if len(r.ids) < most {
		r.ids = append(r.ids, id)
		return
	}
	r.ids[r.next] = id
	r.next = (r.next + 1) % most
}

func (r *ring) has(id uint32) bool {
	for _, have := range r.ids {
		if have == id {
			return true
		}
	}
	return false
}
