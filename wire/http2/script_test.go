package http2

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	x "golang.org/x/net/http2"
	xhpack "golang.org/x/net/http2/hpack"
)

// A script in testdata is one conversation with a Conn, line by line:
//
//	conn server streams=2      the Conn and its Config; "new" leaves the handshake to the script
//	> HEADERS 1 END_STREAM …   the peer sends a frame ("x50" at the end: fifty of them)
//	! respond 1 200 end        the driver calls
//	= head 1 new end GET …     an event
//	< RST_STREAM 1 CANCEL      a frame that the Conn has queued
//	< …                        whatever else it has queued ("= …": reported)
//	x PROTOCOL_ERROR padding   the connection ended, with code and reason
//
// All events and frames must be named, in order; events and frames each for
// themselves, and before the next "> " and "! " that comes after other lines.
// Fields are name=value, bytes are "quoted" or hex=…; a head is sent in parts with
// cut=10 (the first ten bytes of its block) and CONTINUATION 1 rest or rest=5.
//
// Every script runs twice: a frame at a time and a byte at a time.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		for _, chunk := range []int{1 << 20, 1} {
			t.Run(fmt.Sprintf("%s/%d", name, chunk), func(t *testing.T) {
				r := &runner{t: t, file: file, chunk: chunk, streams: map[uint32]*Stream{}}
				r.run(string(text))
			})
		}
	}
}

// runner is a script that runs.
type runner struct {
	t     testing.TB
	file  string
	line  int
	chunk int

	c       *Conn
	streams map[uint32]*Stream
	fatal   error
	sent    []byte // by the peer
	unread  []byte // of that
	lenient bool   // nothing is expected

	events []string
	body   []byte // of the last event
	open   bool   // the last event is DATA of a frame that goes on
	frames []string
	output bytes.Buffer // of the Conn
	parser *x.Framer    // reads output

	encoder *xhpack.Encoder // the peer's
	block   bytes.Buffer
	rest    []byte // of a block that was cut
}

func (r *runner) failf(format string, args ...any) {
	r.t.Helper()
	text := fmt.Sprintf(format, args...)
	r.t.Fatalf("%s:%d: %.2000s", r.file, r.line, text)
}

func (r *runner) run(text string) {
	expecting := false
	for i, line := range strings.Split(text, "\n") {
		r.line = i + 1
		if line == "" || line[0] == '#' {
			continue
		}
		verb, rest, _ := strings.Cut(line, " ")
		words := fields(rest)
		if expecting && (verb == ">" || verb == "!") {
			r.nothingLeft()
		}
		expecting = strings.Contains("=<x", verb)
		switch verb {
		case "conn":
			r.connect(words)
		case ">":
			r.send(words)
		case "!":
			r.call(words)
		case "=":
			if rest == "…" {
				r.events = nil
				continue
			}
			r.expect(&r.events, rest)
		case "<":
			if rest == "…" {
				r.frames = nil
				continue
			}
			r.expect(&r.frames, rest)
		case "x":
			var e *ConnError
			if !errors.As(r.fatal, &e) || e.Code.String()+" "+e.Reason != rest {
				r.failf("the connection ended with %v, want %s", r.fatal, rest)
			}
			r.fatal = nil
		default:
			r.failf("what is %q?", line)
		}
	}
	r.nothingLeft()
}

func (r *runner) nothingLeft() {
	r.t.Helper()
	if r.lenient {
		r.events, r.frames = nil, nil
		return
	}
	if len(r.events) > 0 || len(r.frames) > 0 || r.fatal != nil {
		r.failf("unexpected: events %q, frames %q, error %v", r.events, r.frames, r.fatal)
	}
}

func (r *runner) expect(queue *[]string, want string) {
	r.t.Helper()
	if len(*queue) == 0 {
		r.failf("nothing, want %q (events %q, frames %q, error %v)", want, r.events, r.frames, r.fatal)
	}
	if got := (*queue)[0]; got != want {
		r.failf("\n got %s\nwant %s", got, want)
	}
	*queue = (*queue)[1:]
}

// fields splits at spaces that are not inside quotes.
func fields(line string) (words []string) {
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimLeft(line, " ") {
		end, quoted := 0, false
		for end < len(line) && (quoted || line[end] != ' ') {
			if line[end] == '"' {
				quoted = !quoted
			}
			end++
		}
		words = append(words, line[:end])
		line = line[end:]
	}
	return words
}

func (r *runner) number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		r.failf("%v", err)
	}
	return n
}

func (r *runner) connect(words []string) {
	config := Config{Server: words[0] == "server"}
	fresh := false
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "new":
			fresh = true
		case "connect":
			config.ExtendedConnect = true
		case "streams":
			config.Streams = uint32(r.number(value))
		case "window":
			config.StreamWindow = uint32(r.number(value))
		case "connwindow":
			config.ConnWindow = uint32(r.number(value))
		case "bytes":
			config.HeadBytes = r.number(value)
		case "fields":
			config.Fields = r.number(value)
		default:
			r.failf("what is %q?", w)
		}
	}
	r.c = New(config)
	r.encoder = xhpack.NewEncoder(&r.block)
	r.parser = x.NewFramer(nil, &r.output)
	r.parser.ReadMetaHeaders = xhpack.NewDecoder(4096, nil)
	r.parser.SetMaxReadFrameSize(1<<24 - 1)
	if !config.Server {
		start := make([]byte, len(preface))
		out := r.c.Take(nil)
		if copy(start, out); string(start) != preface {
			r.failf("no preface")
		}
		r.c.out = append(r.c.out, out[len(preface):]...)
	}
	if fresh {
		r.flush()
		return
	}
	if config.Server {
		r.feed([]byte(preface))
	}
	r.feed(r.frame(x.FrameSettings, 0, 0, nil))
	r.feed(r.frame(x.FrameSettings, x.FlagSettingsAck, 0, nil))
	r.events, r.frames = nil, nil
}

func (r *runner) frame(kind x.FrameType, flags x.Flags, stream uint32, payload []byte) []byte {
	var b bytes.Buffer
	f := x.NewFramer(&b, nil)
	f.AllowIllegalWrites = true
	if err := f.WriteRawFrame(kind, flags, stream, payload); err != nil {
		r.failf("%v", err)
	}
	return b.Bytes()
}

var codes = func() map[string]Code {
	m := map[string]Code{}
	for i, name := range codeNames {
		m[name] = Code(i)
	}
	return m
}()

func (r *runner) code(name string) Code {
	c, known := codes[name]
	if !known {
		r.failf("%q is no code", name)
	}
	return c
}

// send sends what a ">" line says.
func (r *runner) send(words []string) {
	times := 1
	if last := words[len(words)-1]; len(last) > 1 && last[0] == 'x' && last[1] >= '0' && last[1] <= '9' {
		times = r.number(last[1:])
		words = words[:len(words)-1]
	}
	for range times {
		r.feed(r.bytes(words))
		if r.fatal != nil {
			return
		}
	}
}

func be32(n int) []byte { return []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)} }

func (r *runner) bytes(words []string) []byte {
	arg := func(i int) int { return r.number(words[i]) }
	switch words[0] {
	case "BYTES":
		return r.literal(words[1])
	case "RAW": // kind flags stream payload
		return r.frame(x.FrameType(arg(1)), x.Flags(arg(2)), uint32(arg(3)), r.literal(words[4]))
	case "SETTINGS":
		return r.settingsFrame(words[1:])
	case "PING":
		flags := x.Flags(0)
		if len(words) > 2 {
			flags = flagAck
		}
		return r.frame(x.FramePing, flags, 0, r.literal(words[1]))
	case "GOAWAY":
		return r.frame(x.FrameGoAway, 0, 0, append(be32(arg(1)), be32(int(r.code(words[2])))...))
	case "WINDOW_UPDATE":
		return r.frame(x.FrameWindowUpdate, 0, uint32(arg(1)), be32(arg(2)))
	case "RST_STREAM":
		return r.frame(x.FrameRSTStream, 0, uint32(arg(1)), be32(int(r.code(words[2]))))
	case "PRIORITY":
		return r.frame(x.FramePriority, 0, uint32(arg(1)), append(be32(arg(2)), 15))
	case "DATA", "HEADERS", "CONTINUATION":
		return r.streamFrame(words)
	}
	r.failf("what is %q?", words[0])
	return nil
}

func (r *runner) settingsFrame(words []string) []byte {
	var payload []byte
	for _, w := range words {
		if w == "ACK" {
			return r.frame(x.FrameSettings, flagAck, 0, payload)
		}
		id, value, _ := strings.Cut(w, "=")
		if id == "1" {
			r.parser.ReadMetaHeaders.SetMaxDynamicTableSize(uint32(r.number(value)))
		}
		payload = append(payload, 0, byte(r.number(id)))
		payload = append(payload, be32(r.number(value))...)
	}
	return r.frame(x.FrameSettings, 0, 0, payload)
}

// literal is "text", hex=… or fill=N.
func (r *runner) literal(w string) []byte {
	if digits, is := strings.CutPrefix(w, "hex="); is {
		b, err := hex.DecodeString(digits)
		if err != nil {
			r.failf("%v", err)
		}
		return b
	}
	if n, is := strings.CutPrefix(w, "fill="); is {
		return bytes.Repeat([]byte("x"), r.number(n))
	}
	s, err := strconv.Unquote(w)
	if err != nil {
		r.failf("%s: %v", w, err)
	}
	return []byte(s)
}

// streamFrame is DATA, HEADERS or CONTINUATION.
func (r *runner) streamFrame(words []string) []byte {
	kind := map[string]x.FrameType{"DATA": x.FrameData, "HEADERS": x.FrameHeaders, "CONTINUATION": x.FrameContinuation}[words[0]]
	stream := uint32(r.number(words[1]))
	flags := x.Flags(0)
	if kind != x.FrameData {
		flags = flagEndHeaders
	}
	var before, payload, padding []byte
	r.block.Reset()
	for _, w := range words[2:] {
		key, value, isField := strings.Cut(w, "=")
		switch {
		case w == "END_STREAM":
			flags |= flagEndStream
		case w == "rest":
			payload = r.rest
		case key == "rest":
			n := r.number(value)
			payload, r.rest = r.rest[:n], r.rest[n:]
			flags &^= flagEndHeaders
		case key == "pad":
			flags |= flagPadded
			padding = make([]byte, r.number(value))
			before = append([]byte{byte(len(padding))}, before...)
		case key == "dependency":
			flags |= flagPriority
			before = append(before, append(be32(r.number(value)), 15)...)
		case key == "hex", key == "fill", w[0] == '"':
			payload = append(payload, r.literal(w)...)
		case key == "cut":
			n := r.number(value)
			payload, r.rest = bytes.Clone(r.block.Bytes()[:n]), bytes.Clone(r.block.Bytes()[n:])
			flags &^= flagEndHeaders
		case isField:
			if strings.HasPrefix(value, `"`) || strings.HasPrefix(value, "fill=") {
				value = string(r.literal(value))
			}
			if err := r.encoder.WriteField(xhpack.HeaderField{Name: key, Value: value}); err != nil {
				r.failf("%v", err)
			}
		default:
			r.failf("what is %q?", w)
		}
	}
	if payload == nil {
		payload = r.block.Bytes()
	}
	return r.frame(kind, flags, stream, append(append(before, payload...), padding...))
}

// feed gives bytes to the Conn and notes what it says.
func (r *runner) feed(b []byte) {
	r.sent = append(r.sent, b...)
	for len(b) > 0 {
		n := min(r.chunk, len(b))
		r.unread = append(r.unread, b[:n]...)
		b = b[n:]
		r.receive()
	}
	r.flush()
}

func (r *runner) receive() {
	for r.fatal == nil {
		n, e, err := r.c.Receive(r.unread)
		if err != nil {
			r.fatal = err
			return
		}
		if n == 0 {
			if e.Kind != None {
				r.failf("an event without a byte: %v", e)
			}
			return
		}
		r.note(&e)
		r.unread = append(r.unread[:0], r.unread[n:]...)
	}
}

func (r *runner) note(e *Event) {
	if e.New {
		r.streams[e.Stream.ID] = e.Stream
	}
	text := eventText(e)
	if text == "" {
		return
	}
	// The bytes of one frame may come in any number of events.
	if e.Kind == DataReceived && r.open && r.chunk == 1 {
		r.body = append(r.body, e.Data...)
		whole := Event{Kind: DataReceived, Stream: e.Stream, Data: r.body, End: e.End}
		r.events[len(r.events)-1] = eventText(&whole)
	} else {
		r.body = append(r.body[:0], e.Data...)
		r.events = append(r.events, text)
	}
	r.open = e.Kind == DataReceived && r.c.state == inData
}

// flush reads what the Conn has queued.
func (r *runner) flush() {
	r.output.Write(r.c.Take(nil))
	for r.output.Len() > 0 {
		f, err := r.parser.ReadFrame()
		if err == io.EOF {
			return
		}
		if err != nil {
			r.failf("what it queued is no frame: %v", err)
		}
		r.frames = append(r.frames, frameText(f))
	}
}

// call does what a "!" line says.
func (r *runner) call(words []string) {
	end := words[len(words)-1] == "end"
	if end {
		words = words[:len(words)-1]
	}
	var s *Stream
	if len(words) > 1 {
		if id, err := strconv.Atoi(words[1]); err == nil {
			s = r.streams[uint32(id)]
		}
	}
	lines := func(from int) (b []byte) {
		for _, w := range words[min(from, len(words)):] {
			name, value, _ := strings.Cut(w, "=")
			if strings.HasPrefix(value, `"`) || strings.HasPrefix(value, "fill=") {
				value = string(r.literal(value))
			}
			b = append(b, name+": "+value+"\r\n"...)
		}
		return b
	}
	switch words[0] {
	case "open":
		s = new(Stream)
		if err := r.c.Open(s); err != nil {
			r.events = append(r.events, "error "+err.Error())
			break
		}
		r.streams[s.ID] = s
	case "request": // id method authority path
		h := RequestHead{Method: []byte(words[2]), Scheme: []byte("https"), Authority: []byte(words[3]), Path: []byte(words[4])}
		if words[2] == "CONNECT" {
			h.Scheme, h.Path = nil, nil
		}
		r.c.SendRequest(s, &h, lines(5), end)
	case "respond":
		r.c.SendResponse(s, r.number(words[2]), lines(3), end)
	case "trailers":
		r.c.SendTrailers(s, lines(2))
	case "data":
		p := []byte{}
		if len(words) > 2 {
			p = r.literal(words[2])
		}
		if n := r.c.SendData(s, p, end); n < len(p) {
			r.events = append(r.events, fmt.Sprintf("took %d of %d", n, len(p)))
		}
	case "consumed":
		r.c.Consumed(s, r.number(words[2]))
	case "grow":
		r.c.Grow(s, uint32(r.number(words[2])))
	case "reset":
		r.c.Reset(s, r.code(words[2]))
	case "release":
		r.c.Release(s)
	case "goaway":
		r.c.GoAway(r.code(words[1]), len(words) > 2)
	case "ping":
		r.c.Ping()
	case "tick":
		r.c.Tick()
	case "flood":
		r.flood(words[1], r.number(words[2]))
	case "show":
		r.events = append(r.events, r.show(s))
	default:
		r.failf("what is %q?", words[0])
	}
	r.flush()
}

// flood repeats what an attacker does, or an honest client with much to do. The
// driver answers as it must.
func (r *runner) flood(what string, n int) {
	request := []string{"HEADERS", "", ":method=POST", ":scheme=https", ":authority=a", ":path=/"}
	for range n {
		if r.fatal != nil {
			return
		}
		id := r.c.lastID + 2 - (r.c.lastID+1)%2
		text := strconv.Itoa(int(id))
		request[1] = text
		begin := func() *Stream {
			r.feed(r.bytes(request))
			return r.streams[id]
		}
		cancel := func(s *Stream) {
			r.feed(r.bytes([]string{"RST_STREAM", text, "CANCEL"}))
			r.c.Release(s)
		}
		ping := []string{"PING", "hex=0102030405060708"}
		switch what {
		case "reset":
			cancel(begin())
		case "request":
			begin()
		case "broken":
			s := begin()
			r.feed(r.bytes([]string{"WINDOW_UPDATE", text, "0"}))
			if r.fatal == nil {
				r.c.Release(s)
			}
		case "honest":
			s := begin()
			if id%3 == 0 {
				cancel(s)
				continue
			}
			r.c.SendResponse(s, 200, nil, true)
			r.feed(r.bytes([]string{"DATA", text, "END_STREAM", `"x"`}))
			r.c.Release(s)
		case "watches":
			s := begin()
			r.c.SendResponse(s, 200, nil, false)
			cancel(s)
		case "dribble":
			r.feed(r.bytes([]string{"WINDOW_UPDATE", "1", "1"}))
			r.c.SendData(r.streams[1], []byte("many bytes"), false)
		case "unread":
			r.receiveOnly(r.bytes([]string{"DATA", "1", `"x"`}))
			r.c.Consumed(r.streams[1], 1)
			r.receiveOnly(r.bytes(ping))
		case "grpc":
			r.feed(r.bytes([]string{"DATA", "1", `"message"`}))
			r.c.Consumed(r.streams[1], 7)
			r.feed(r.bytes(ping))
			r.feed(r.bytes([]string{"WINDOW_UPDATE", "0", "7"}))
			r.feed(r.bytes([]string{"WINDOW_UPDATE", "1", "7"}))
		case "download":
			r.c.SendData(r.streams[1], make([]byte, 16<<10), false)
			for range 4 {
				r.feed(r.bytes([]string{"WINDOW_UPDATE", "1", "4096"}))
				r.feed(r.bytes([]string{"WINDOW_UPDATE", "0", "4096"}))
			}
		case "keepalive":
			r.feed(r.bytes(ping))
			r.c.Tick()
		default:
			r.failf("what is %q?", what)
		}
	}
}

// receiveOnly is feed for a peer that does not read.
func (r *runner) receiveOnly(b []byte) {
	r.unread = append(r.unread, b...)
	r.receive()
}

// show is what the Conn says of itself, or of a stream.
func (r *runner) show(s *Stream) string {
	if s == nil {
		return fmt.Sprintf("active %d room %d", r.c.Active(), r.c.Room())
	}
	remote, local := s.Ended()
	return fmt.Sprintf("sendable %d remote %v local %v closed %v", r.c.Sendable(s), remote, local, s.Closed())
}
