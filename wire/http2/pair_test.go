package http2

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	x "golang.org/x/net/http2"
)

// side is one end of a pair: a Conn and what it has received but not yet read.
type side struct {
	c     *Conn
	in    []byte
	spare []byte
}

// drain gives the bytes that c has to say to the other side.
func (s *side) drain(to *side) {
	out := s.c.Take(s.spare)
	to.in = append(to.in, out...)
	s.spare = out
}

// exchange is one request with a body, and its response with a body, between two
// Conns that are recycled.
type exchange struct {
	t              testing.TB
	client, server side
	stream         Stream
	head           RequestHead
	lines, body    []byte
	got            int
}

func newExchange(t testing.TB) *exchange {
	p := &exchange{
		t:      t,
		client: side{c: New(Config{})},
		server: side{c: New(Config{Server: true})},
		head: RequestHead{
			Method: []byte("POST"), Scheme: []byte("https"),
			Authority: []byte("shop.example"), Path: []byte("/orders?id=7"),
		},
		lines: []byte("User-Agent: test\r\nAccept: */*\r\nCookie: a=b\r\nContent-Length: 100\r\nX-Request-ID: 1234\r\n"),
		body:  bytes.Repeat([]byte("b"), 100),
	}
	return p
}

func (p *exchange) run() {
	if err := p.client.c.Open(&p.stream); err != nil {
		p.t.Fatal(err)
	}
	p.client.c.SendRequest(&p.stream, &p.head, p.lines, false)
	p.client.c.SendData(&p.stream, p.body, true)
	p.got = 0
	p.client.drain(&p.server)
	p.receive(&p.server, true)
	p.server.drain(&p.client)
	p.receive(&p.client, false)
	if p.got != 2*len(p.body) || !p.stream.Closed() {
		p.t.Fatal("not answered", p.got)
	}
	p.client.c.Release(&p.stream)
}

func (p *exchange) receive(s *side, server bool) {
	in := s.in
	for {
		n, e, err := s.c.Receive(in)
		if err != nil {
			p.t.Fatal(err)
		}
		if n == 0 && e.Kind == None {
			break
		}
		in = in[n:]
		if e.Kind == DataReceived {
			p.got += len(e.Data)
			s.c.Consumed(e.Stream, len(e.Data))
		}
		if e.End && server {
			s.c.SendResponse(e.Stream, 200, p.lines, false)
			s.c.SendData(e.Stream, p.body, true)
			s.c.Release(e.Stream)
		}
	}
	s.in = s.in[:copy(s.in, in)]
}

func TestExchangeAllocatesNothing(t *testing.T) {
	p := newExchange(t)
	for range 200 { // buffers grow, tables fill
		p.run()
	}
	if n := testing.AllocsPerRun(500, p.run); n != 0 {
		t.Errorf("%v allocations for a request and its response", n)
	}
}

func BenchmarkExchange(b *testing.B) {
	p := newExchange(b)
	b.ReportAllocs()
	for b.Loop() {
		p.run()
	}
}

// TestPairs lets a client and a server do whatever they may, with bytes that arrive
// in pieces, and compares the flow control of both with a model that reads the
// frames as golang.org/x/net does.
func TestPairs(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		p := newPair(t, seed)
		for range 400 {
			p.step()
			p.check()
		}
		p.finish()
	}
}

// call is a stream as both sides see it.
type call struct {
	request, response   []byte // what is to be sent, in whole
	client, server      *Stream
	sentQ, sentR        int // bytes of them that were sent
	gotQ, gotR          []byte
	usedQ, usedR        int // bytes that were said to be consumed
	endedQ, endedR      bool
	answered, responded bool
	trailers            bool
	reset               bool
}

type pair struct {
	t      *testing.T
	seed   uint64
	rand   *rand.Rand
	sides  [2]side // client, server
	models [2]*model
	calls  []*call
}

func newPair(t *testing.T, seed uint64) *pair {
	p := &pair{t: t, seed: seed, rand: rand.New(rand.NewPCG(seed, 7))}
	for i := range p.sides {
		p.sides[i].c = New(Config{
			Server:       i == 1,
			Streams:      1 + p.rand.Uint32N(20),
			StreamWindow: 1000 + p.rand.Uint32N(100_000), // smaller ones are an attack
			ConnWindow:   windowInit + p.rand.Uint32N(100_000),
		})
		p.models[i] = newModel(i == 0)
	}
	return p
}

func (p *pair) failf(format string, args ...any) {
	p.t.Helper()
	p.t.Fatalf("seed %d: %s", p.seed, fmt.Sprintf(format, args...))
}

// body makes bytes that differ from stream to stream.
func (p *pair) body() []byte {
	b := make([]byte, p.rand.IntN(60_000)*p.rand.IntN(4)/3)
	fill := p.rand.Uint32()
	for i := range b {
		b[i] = byte(fill >> (i % 25))
	}
	return b
}

func (p *pair) any() *call {
	if len(p.calls) == 0 {
		return nil
	}
	return p.calls[p.rand.IntN(len(p.calls))]
}

// step does one thing at random.
func (p *pair) step() {
	client, server := p.sides[0].c, p.sides[1].c
	switch k := p.any(); p.rand.IntN(10) {
	case 0:
		p.open()
	case 1:
		if k != nil && k.sentQ < len(k.request) {
			n := p.rand.IntN(len(k.request)-k.sentQ) + 1
			took := client.SendData(k.client, k.request[k.sentQ:k.sentQ+n], k.sentQ+n == len(k.request) && !k.trailers)
			if k.sentQ += took; k.sentQ == len(k.request) && k.trailers {
				client.SendTrailers(k.client, []byte("X-Trailer: yes\r\n"))
			}
		}
	case 2:
		p.respond(k)
	case 3:
		if k != nil && k.server != nil && k.usedQ < len(k.gotQ) {
			n := p.rand.IntN(len(k.gotQ)-k.usedQ) + 1
			server.Consumed(k.server, n)
			k.usedQ += n
		}
	case 4:
		if k != nil && k.usedR < len(k.gotR) {
			n := p.rand.IntN(len(k.gotR)-k.usedR) + 1
			client.Consumed(k.client, n)
			k.usedR += n
		}
	case 5:
		if k != nil && k.server != nil && p.rand.IntN(8) == 0 {
			server.Grow(k.server, p.rand.Uint32N(300_000))
		}
	case 6:
		if k == nil || p.rand.IntN(10) > 0 {
			return
		}
		k.reset = true
		if p.rand.IntN(2) == 0 || k.server == nil {
			client.Reset(k.client, Cancel)
		} else {
			server.Reset(k.server, InternalError)
		}
	default:
		from := p.rand.IntN(2)
		p.carry(from, 1+p.rand.IntN(20_000))
	}
}

func (p *pair) open() {
	client := p.sides[0].c
	k := &call{client: new(Stream), request: p.body(), response: p.body(), trailers: p.rand.IntN(3) == 0}
	k.trailers = k.trailers && len(k.request) > 0
	if err := client.Open(k.client); err != nil {
		if client.Room() > 0 {
			p.failf("room for %d streams: %v", client.Room(), err)
		}
		return
	}
	k.client.Owner = k
	head := RequestHead{[]byte("POST"), []byte("https"), []byte("a"), []byte("/"), nil}
	lines := fmt.Appendf(nil, "X-Call: %d\r\n", len(p.calls))
	client.SendRequest(k.client, &head, lines, len(k.request) == 0)
	p.calls = append(p.calls, k)
}

// respond sends some of a response.
func (p *pair) respond(k *call) {
	if k == nil || k.server == nil {
		return
	}
	server := p.sides[1].c
	if !k.answered {
		k.answered = true
		if p.rand.IntN(3) == 0 {
			server.SendResponse(k.server, 103, nil, false)
		}
		server.SendResponse(k.server, 200, []byte("Server: x\r\n"), len(k.response) == 0)
		return
	}
	if k.sentR < len(k.response) {
		n := p.rand.IntN(len(k.response)-k.sentR) + 1
		k.sentR += server.SendData(k.server, k.response[k.sentR:k.sentR+n], k.sentR+n == len(k.response))
	}
}

// carry brings up to n bytes from one side to the other.
func (p *pair) carry(from, n int) {
	sender, receiver := &p.sides[from], &p.sides[1-from]
	out := sender.c.out
	n = min(n, len(out))
	p.models[from].sends(p, out[:n])
	p.models[1-from].receives(p, out[:n])
	receiver.in = append(receiver.in, out[:n]...)
	sender.c.out = append(out[:0], out[n:]...)
	sender.c.control = 0
	for {
		used, e, err := receiver.c.Receive(receiver.in)
		if err != nil {
			p.failf("%v", err)
		}
		if used == 0 {
			return
		}
		p.event(1-from, &e) // before what it points to moves
		receiver.in = append(receiver.in[:0], receiver.in[used:]...)
	}
}

func (p *pair) event(at int, e *Event) {
	if e.Stream == nil {
		return
	}
	if e.New {
		value, _ := e.Request.Lookup("x-call")
		var i int
		if _, err := fmt.Sscan(string(value), &i); err != nil {
			p.failf("x-call is %q", value)
		}
		e.Stream.Owner = p.calls[i]
		p.calls[i].server = e.Stream
	}
	k := e.Stream.Owner.(*call)
	if e.Kind == StreamReset {
		if e.Local {
			p.failf("reset for %s", e.Reason)
		}
		k.reset = true
	}
	if at == 1 {
		k.gotQ, k.endedQ = append(k.gotQ, e.Data...), k.endedQ || e.End
	} else {
		k.gotR, k.endedR = append(k.gotR, e.Data...), k.endedR || e.End
		k.responded = k.responded || e.Kind == HeadReceived && e.Response.Status == 200
	}
}

// check compares what both sides think they may send with the models.
func (p *pair) check() {
	for i, s := range p.sides {
		// What waits in out was counted by the Conn and not yet by the model.
		m := p.models[i].ahead(p, s.c.out)
		for _, k := range p.calls {
			stream := k.client
			if i == 1 {
				stream = k.server
			}
			if stream == nil || stream.Closed() || stream.localEnded {
				continue
			}
			if got, want := s.c.Sendable(stream), m.sendable(stream.ID); got != want {
				p.failf("side %d stream %d: may send %d, the model %d", i, stream.ID, got, want)
			}
		}
	}
}

// finish lets both sides end what they have begun.
func (p *pair) finish() {
	for range 100_000 {
		done := true
		for _, k := range p.calls {
			if k.client.Closed() && (k.server == nil || k.server.Closed()) {
				continue
			}
			done = false
			if k.sentQ < len(k.request) {
				k.sentQ += p.sides[0].c.SendData(k.client, k.request[k.sentQ:], !k.trailers)
				if k.sentQ == len(k.request) && k.trailers {
					p.sides[0].c.SendTrailers(k.client, []byte("X-Trailer: yes\r\n"))
				}
			}
			p.respond(k)
			p.sides[0].c.Consumed(k.client, len(k.gotR)-k.usedR)
			k.usedR = len(k.gotR)
			if k.server != nil {
				p.sides[1].c.Consumed(k.server, len(k.gotQ)-k.usedQ)
				k.usedQ = len(k.gotQ)
			}
		}
		p.carry(0, 1<<20)
		p.carry(1, 1<<20)
		p.check()
		if done && len(p.sides[0].c.out)+len(p.sides[1].c.out) == 0 {
			p.over()
			return
		}
	}
	p.failf("does not end")
}

func (p *pair) over() {
	for i, s := range p.sides {
		if s.c.Active() != 0 {
			p.failf("side %d: %d streams are open", i, s.c.Active())
		}
	}
	for i, k := range p.calls {
		if k.reset {
			continue
		}
		if !k.endedQ || !bytes.Equal(k.gotQ, k.request) {
			p.failf("call %d: %d bytes of request, want %d", i, len(k.gotQ), len(k.request))
		}
		if !k.endedR || !k.responded || !bytes.Equal(k.gotR, k.response) {
			p.failf("call %d: %d bytes of response, want %d", i, len(k.gotR), len(k.response))
		}
	}
}

// model is the flow control of a sender, from the frames alone.
type model struct {
	skip, gotSkip int // of the preface
	sent, got     bytes.Buffer
	conn          int64
	initial       int64
	streams       map[uint32]int64
	sentF, gotF   *x.Framer
}

func newModel(client bool) *model {
	m := &model{conn: windowInit, initial: windowInit, streams: map[uint32]int64{}}
	if client {
		m.skip = len(preface)
	} else {
		m.gotSkip = len(preface)
	}
	m.sentF, m.gotF = x.NewFramer(nil, &m.sent), x.NewFramer(nil, &m.got)
	m.sentF.SetMaxReadFrameSize(1 << 20)
	m.gotF.SetMaxReadFrameSize(1 << 20)
	return m
}

// frames reads the complete frames in a buffer.
func frames(p *pair, b *bytes.Buffer, f *x.Framer, use func(x.Frame)) {
	for b.Len() >= headerLen {
		raw := b.Bytes()
		if b.Len() < headerLen+readFrame(raw).length {
			return
		}
		frame, err := f.ReadFrame()
		if err == io.EOF {
			return
		}
		if err != nil {
			p.failf("%v", err)
		}
		use(frame)
	}
}

func (m *model) sends(p *pair, b []byte) {
	n := min(m.skip, len(b))
	m.skip -= n
	m.sent.Write(b[n:])
	frames(p, &m.sent, m.sentF, m.sentFrame)
}

func (m *model) sentFrame(f x.Frame) {
	if d, is := f.(*x.DataFrame); is {
		m.conn -= int64(d.Length)
		m.streams[d.StreamID] = m.window(d.StreamID) - int64(d.Length)
	}
}

func (m *model) window(id uint32) int64 {
	if w, known := m.streams[id]; known {
		return w
	}
	return m.initial
}

func (m *model) receives(p *pair, b []byte) {
	n := min(m.gotSkip, len(b))
	m.gotSkip -= n
	m.got.Write(b[n:])
	frames(p, &m.got, m.gotF, func(f x.Frame) {
		switch f := f.(type) {
		case *x.WindowUpdateFrame:
			if f.StreamID == 0 {
				m.conn += int64(f.Increment)
				return
			}
			m.streams[f.StreamID] = m.window(f.StreamID) + int64(f.Increment)
		case *x.SettingsFrame:
			if v, has := f.Value(x.SettingInitialWindowSize); has {
				for id := range m.streams {
					m.streams[id] += int64(v) - m.initial
				}
				m.initial = int64(v)
			}
		}
	})
}

// ahead is the model when all of out was sent.
func (m *model) ahead(p *pair, out []byte) *model {
	later := newModel(false)
	later.conn, later.initial = m.conn, m.initial
	for id, w := range m.streams {
		later.streams[id] = w
	}
	later.skip = m.skip
	later.sent.Write(m.sent.Bytes())
	later.sends(p, out)
	return later
}

func (m *model) sendable(id uint32) int {
	return int(max(0, min(m.conn, m.window(id))))
}
