package http2

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	x "golang.org/x/net/http2"
	xhpack "golang.org/x/net/http2/hpack"
)

// FuzzReceive gives a Conn any bytes, to a driver that does what drivers do. It
// must not panic, stay in its bounds, and say nothing that another implementation
// cannot read; and what it reports must not depend on how the bytes were cut.
func FuzzReceive(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		server, sent := sentBy(f, file, string(text))
		f.Add(server, uint8(7), sent)
	}
	f.Fuzz(func(t *testing.T, server bool, piece uint8, b []byte) {
		if len(b) > 64<<10 {
			return
		}
		whole := drive(t, server, len(b), b)
		parts := drive(t, server, int(piece)+1, b)
		if !slices.Equal(whole, parts) {
			t.Fatalf("in one piece: %q\nin pieces of %d: %q", whole, int(piece)+1, parts)
		}
	})
}

// sentBy is what the peer sends in a script, up to a flood.
func sentBy(f *testing.F, file, text string) (server bool, sent []byte) {
	if i := strings.Index(text, "! flood"); i >= 0 {
		text = text[:i]
	}
	r := &runner{t: f, file: file, chunk: 1 << 20, streams: map[uint32]*Stream{}, lenient: true}
	r.run(text)
	return strings.Contains(text, "conn server"), r.sent
}

// drive returns what the Conn reported.
func drive(t *testing.T, server bool, piece int, b []byte) (events []string) {
	d := &driver{t: t, c: New(Config{Server: server, Streams: 4, HeadBytes: 2000, Fields: 20, ExtendedConnect: true})}
	d.start()
	var in []byte
	for len(b) > 0 {
		n := min(piece, len(b))
		in = append(in[:len(in):len(in)], b[:n]...)
		b = b[n:]
		for {
			used, e, err := d.c.Receive(in)
			if used < 0 || used > len(in) {
				t.Fatalf("used %d of %d", used, len(in))
			}
			if err != nil {
				d.flush()
				d.events = append(d.events, err.Error())
				d.over()
				return d.events
			}
			if used == 0 {
				if e.Kind != None {
					t.Fatal("an event without a byte")
				}
				break
			}
			d.event(&e)
			in = in[used:]
			d.bounds()
		}
		if len(in) >= 17 {
			t.Fatalf("%d bytes are not enough", len(in))
		}
	}
	d.flush()
	d.over()
	return d.events
}

type driver struct {
	t      *testing.T
	c      *Conn
	live   []*Stream
	events []string
	stream uint32 // of the DATA before; 0: none
	data   []byte // that it had so far
}

func (d *driver) start() {
	if d.c.config.Server {
		return
	}
	for _, method := range []string{"GET", "HEAD", "CONNECT"} {
		s := new(Stream)
		if err := d.c.Open(s); err != nil {
			d.t.Fatal(err)
		}
		d.live = append(d.live, s)
		head := RequestHead{Method: []byte(method), Scheme: []byte("http"), Authority: []byte("a:80"), Path: []byte("/")}
		d.c.SendRequest(s, &head, nil, method != "CONNECT")
	}
}

// event notes an event, and answers.
func (d *driver) event(e *Event) {
	if e.Kind == DataReceived {
		// As long as the same stream goes on it is one, however it was cut.
		if d.stream != e.Stream.ID {
			d.flush()
		}
		d.stream = e.Stream.ID
		d.data = append(d.data, e.Data...)
		if e.End {
			d.flush()
			d.events = append(d.events, "end")
		}
	} else if text := eventText(e); text != "" {
		d.flush()
		d.events = append(d.events, text)
	}
	if e.Kind == GoAwayReceived && !d.c.config.Server {
		d.live = slices.DeleteFunc(d.live, func(s *Stream) bool { return s.ID > e.LastID })
	}
	if e.Kind == SettingsReceived {
		d.c.Tick()
	}
	s := e.Stream
	if s == nil {
		return
	}
	if e.New {
		d.live = append(d.live, s)
	}
	if e.Kind == DataReceived {
		d.c.Consumed(s, len(e.Data))
	}
	if e.Kind == HeadReceived && e.TooLarge {
		d.c.SendResponse(s, 431, nil, true)
		d.c.Reset(s, NoError)
	}
	if e.End && d.c.config.Server {
		d.c.SendResponse(s, 200, []byte("Server: x\r\n"), false)
		d.c.SendData(s, bytes.Repeat([]byte("y"), 100), true)
	}
	if s.Closed() {
		d.live = slices.DeleteFunc(d.live, func(l *Stream) bool { return l == s })
		d.c.Release(s)
	}
}

// flush notes DATA that is over.
func (d *driver) flush() {
	if d.stream != 0 {
		d.events = append(d.events, fmt.Sprintf("data %d %q", d.stream, d.data))
		d.stream, d.data = 0, nil
	}
}

// bounds are what a peer can make us hold.
func (d *driver) bounds() {
	c := d.c
	streams := 3
	if c.config.Server {
		streams = int(c.config.Streams)
	}
	switch {
	case c.streams.n > streams, c.held > 2*streams:
		d.t.Fatalf("%d streams, %d held", c.streams.n, c.held)
	case len(c.block) > 2*c.config.HeadBytes:
		d.t.Fatalf("%d bytes of a head", len(c.block))
	case c.control > unreadMost+64:
		d.t.Fatalf("%d bytes of replies", c.control)
	case c.Active() != len(d.live) && c.dead == nil:
		d.t.Fatalf("%d streams are open, the driver knows %d", c.Active(), len(d.live))
	}
	for _, s := range d.live {
		if s.recv > s.window+windowInit || d.c.Sendable(s) < 0 {
			d.t.Fatalf("windows: %+v", s)
		}
	}
}

// over reads what the Conn has said.
func (d *driver) over() {
	out := d.c.Take(nil)
	if !d.c.config.Server {
		out = out[len(preface):]
	}
	parser := x.NewFramer(nil, bytes.NewReader(out))
	parser.ReadMetaHeaders = xhpack.NewDecoder(4096, nil)
	parser.SetMaxReadFrameSize(longestFrame)
	for {
		f, err := parser.ReadFrame()
		if err == io.EOF {
			return
		}
		if err != nil {
			d.t.Fatalf("what it said is no frame: %v", err)
		}
		if m, is := f.(*x.MetaHeadersFrame); is && m.Truncated {
			d.t.Fatal("truncated")
		}
	}
}
