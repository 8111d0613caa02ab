package http2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	x "golang.org/x/net/http2"
	xhpack "golang.org/x/net/http2/hpack"
)

// TestSessions has golang.org/x/net write requests in all the forms that frames
// allow (padded, with priorities, heads in parts, streams interleaved), and expects
// each of them back.
func TestSessions(t *testing.T) {
	for seed := range uint64(50) {
		s := &session{t: t, rand: rand.New(rand.NewPCG(seed, 3))}
		s.run()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

type session struct {
	t       *testing.T
	rand    *rand.Rand
	wire    bytes.Buffer
	framer  *x.Framer
	block   bytes.Buffer
	encoder *xhpack.Encoder
}

// sentRequest is what one stream of a session carries.
type sentRequest struct {
	id       uint32
	fields   [][2]string
	body     []byte
	sent     int
	trailers bool
	ended    bool

	gotBody     []byte
	gotTrailers bool
	gotEnd      bool
}

func (s *session) run() {
	s.framer = x.NewFramer(&s.wire, nil)
	s.framer.AllowIllegalWrites = true // of WriteRawFrame's kind: padded HEADERS of length 0
	s.encoder = xhpack.NewEncoder(&s.block)
	s.wire.WriteString(preface)
	s.must(s.framer.WriteSettings(x.Setting{ID: x.SettingMaxFrameSize, Val: 20_000}))
	s.must(s.framer.WriteSettingsAck())

	c := New(Config{Server: true, StreamWindow: 200_000})
	requests := map[uint32]*sentRequest{}
	var open []*sentRequest
	for id := uint32(1); id < 80 || len(open) > 0; {
		switch i := s.rand.IntN(3); {
		case i == 0 && id < 80 && len(open) < 50:
			r := s.begin(id)
			requests[id] = r
			if !r.ended {
				open = append(open, r)
			}
			id += 2 + 2*s.rand.Uint32N(2)
		case len(open) > 0:
			k := s.rand.IntN(len(open))
			if s.goOn(open[k]); open[k].ended {
				open = append(open[:k], open[k+1:]...)
			}
		}
		s.noise()
		s.deliver(c, requests, s.rand.IntN(s.wire.Len()+1))
	}
	s.deliver(c, requests, s.wire.Len())
	for id, r := range requests {
		if !bytes.Equal(r.gotBody, r.body) || !r.gotEnd || r.gotTrailers != r.trailers {
			s.t.Errorf("stream %d: %d of %d bytes, end %v, trailers %v of %v", id, len(r.gotBody), len(r.body), r.gotEnd, r.gotTrailers, r.trailers)
		}
	}
}

func (s *session) must(err error) {
	if err != nil {
		s.t.Fatal(err)
	}
}

// begin writes the head of a request.
func (s *session) begin(id uint32) *sentRequest {
	r := &sentRequest{id: id, trailers: s.rand.IntN(3) == 0}
	if s.rand.IntN(3) > 0 {
		r.body = bytes.Repeat([]byte{byte(id)}, s.rand.IntN(30_000))
	}
	for i := range s.rand.IntN(10) {
		name := fmt.Sprintf("x-%d-%d", i, s.rand.IntN(5))
		r.fields = append(r.fields, [2]string{name, string(bytes.Repeat([]byte{'v'}, s.rand.IntN(300)))})
	}
	if len(r.body) > 0 && s.rand.IntN(2) == 0 {
		r.fields = append(r.fields, [2]string{"content-length", fmt.Sprint(len(r.body))})
	}
	pseudo := [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "a"}, {":path", fmt.Sprintf("/%d", id)}}
	r.ended = len(r.body) == 0 && !r.trailers
	s.writeHead(id, append(pseudo, r.fields...), r.ended)
	return r
}

// writeHead writes HEADERS and CONTINUATIONs.
func (s *session) writeHead(id uint32, fields [][2]string, end bool) {
	s.block.Reset()
	for _, f := range fields {
		s.must(s.encoder.WriteField(xhpack.HeaderField{Name: f[0], Value: f[1], Sensitive: s.rand.IntN(5) == 0}))
	}
	block := s.block.Bytes()
	first := min(len(block), 10_000)
	if s.rand.IntN(3) == 0 {
		first = s.rand.IntN(first + 1)
	}
	p := x.HeadersFrameParam{
		StreamID: id, EndStream: end,
		BlockFragment: block[:first], EndHeaders: first == len(block),
		PadLength: uint8(s.rand.IntN(2) * s.rand.IntN(256)),
	}
	if s.rand.IntN(3) == 0 {
		p.Priority = x.PriorityParam{StreamDep: id - 1, Weight: 3}
	}
	s.must(s.framer.WriteHeaders(p))
	for block = block[first:]; !p.EndHeaders; {
		n := min(len(block), 10_000)
		if s.rand.IntN(2) == 0 {
			n = s.rand.IntN(n + 1)
		}
		p.EndHeaders = n == len(block)
		s.must(s.framer.WriteContinuation(id, p.EndHeaders, block[:n]))
		block = block[n:]
	}
}

// goOn writes some of the body, or what ends it.
func (s *session) goOn(r *sentRequest) {
	left := r.body[r.sent:]
	if len(left) == 0 {
		r.ended = true
		if r.trailers {
			s.writeHead(r.id, [][2]string{{"x-trailer", "yes"}}, true)
			return
		}
		s.must(s.framer.WriteData(r.id, true, nil))
		return
	}
	n := s.rand.IntN(min(len(left), 10_000) + 1)
	r.sent += n
	r.ended = n == len(left) && !r.trailers && s.rand.IntN(2) == 0
	if s.rand.IntN(2) == 0 {
		s.must(s.framer.WriteDataPadded(r.id, r.ended, left[:n], make([]byte, s.rand.IntN(256))))
		return
	}
	s.must(s.framer.WriteData(r.id, r.ended, left[:n]))
}

// noise writes what changes nothing.
func (s *session) noise() {
	switch s.rand.IntN(20) {
	case 0:
		s.must(s.framer.WritePing(false, [8]byte{1}))
	case 1:
		s.must(s.framer.WriteWindowUpdate(0, 1+s.rand.Uint32N(100)))
	case 2:
		s.must(s.framer.WritePriority(1, x.PriorityParam{StreamDep: 3}))
	case 3:
		s.must(s.framer.WriteRawFrame(0x20, 0xff, 5, []byte("extension")))
	}
}

// deliver gives n bytes to the Conn.
func (s *session) deliver(c *Conn, requests map[uint32]*sentRequest, n int) {
	b := s.wire.Bytes()[:n]
	for len(b) > 0 {
		used, e, err := c.Receive(b)
		if err != nil {
			s.t.Fatal(err)
		}
		if used == 0 {
			break
		}
		b = b[used:]
		if e.Stream != nil {
			s.event(c, requests[e.Stream.ID], &e)
		}
	}
	s.wire.Next(n - len(b))
}

func (s *session) event(c *Conn, r *sentRequest, e *Event) {
	switch e.Kind {
	case HeadReceived:
		if want := fmt.Sprintf("/%d", r.id); string(e.Request.Path) != want {
			s.t.Errorf("path is %q, want %q", e.Request.Path, want)
		}
		if len(e.Request.Fields) != len(r.fields) {
			s.t.Errorf("stream %d: %d fields, want %d", r.id, len(e.Request.Fields), len(r.fields))
			return
		}
		for i, f := range r.fields {
			if string(e.Request.Name(i)) != f[0] || string(e.Request.Value(i)) != f[1] {
				s.t.Errorf("stream %d: %s: %s, want %v", r.id, e.Request.Name(i), e.Request.Value(i), f)
			}
		}
	case DataReceived:
		r.gotBody = append(r.gotBody, e.Data...)
		c.Consumed(e.Stream, len(e.Data))
	case TrailersReceived:
		value, _ := e.Trailers.Lookup("X-Trailer")
		r.gotTrailers = string(value) == "yes"
	default:
		s.t.Errorf("stream %d: %s", r.id, eventText(e))
	}
	if e.End {
		r.gotEnd = true
		c.SendResponse(e.Stream, 204, nil, true)
		c.Release(e.Stream)
	}
}

func TestTableFindsWhatIsInIt(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var found table
	want := map[uint32]*Stream{}
	for range 20_000 {
		id := 1 + 2*r.Uint32N(300)*(1+31*r.Uint32N(2)) // some of them share a home
		if s := want[id]; s != nil {
			found.remove(s)
			delete(want, id)
		} else if len(want) < 100 {
			s = &Stream{ID: id}
			found.add(s)
			want[id] = s
		}
		if id = 1 + 2*r.Uint32N(300); found.find(id) != want[id] || found.n != len(want) {
			t.Fatalf("stream %d: %v, want %v", id, found.find(id), want[id])
		}
	}
}
