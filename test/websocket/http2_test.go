package websocket

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"golang.org/x/net/http2"

	"github.com/weftmesh/weft/test/frames"
)

// tunnel is a connection with streams that are WebSockets.
type tunnel struct {
	*frames.Conn
	seen map[uint32]*heardOf
	away bool           // the peer said GOAWAY
	room map[uint32]int // what may be sent on each stream, and on all by 0, beyond what it began with
}

// firstWindow is every window's before it is told otherwise (RFC 9113 §6.9.2).
const firstWindow = 1<<16 - 1

// heardOf is what came on a stream and was not looked at yet.
type heardOf struct {
	status string
	fields map[string]string
	data   []byte
	end    error // io.EOF, or the reset; nil: it goes on
}

func (w *way) tunnel(t *testing.T) *tunnel {
	t.Helper()
	c, err := frames.Dial(w.address, w.tls)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	tu := &tunnel{Conn: c, seen: map[uint32]*heardOf{}, room: map[uint32]int{}}
	// The first frame is SETTINGS, which Next keeps to itself: an answer is behind it.
	if err := c.Request(1, true, "GET", "/"); err != nil {
		t.Fatal(err)
	}
	if got := tu.await(t, 1, func(h *heardOf) bool { return h.end != nil }); got.status != "200" || string(got.data) != "plain" {
		t.Fatalf("GET by HTTP/2: %+v", got)
	}
	return tu
}

// await reads until a stream is as it should be.
func (tu *tunnel) await(t *testing.T, stream uint32, enough func(*heardOf) bool) *heardOf {
	t.Helper()
	for {
		h := tu.seen[stream]
		if h == nil {
			h = &heardOf{fields: map[string]string{}}
			tu.seen[stream] = h
		}
		if enough(h) {
			return h
		}
		if h.end != nil {
			t.Fatalf("stream %d ended with %v, %d bytes before it", stream, h.end, len(h.data))
		}
		f, err := tu.Next()
		if err != nil {
			t.Fatalf("stream %d: %v", stream, err)
		}
		if err := tu.take(f); err != nil {
			t.Fatal(err)
		}
	}
}

func (tu *tunnel) take(f http2.Frame) error {
	h := tu.seen[f.Header().StreamID]
	if h == nil {
		h = &heardOf{fields: map[string]string{}}
		tu.seen[f.Header().StreamID] = h
	}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		h.status = f.PseudoValue("status")
		for _, field := range f.RegularFields() {
			h.fields[field.Name] = field.Value
		}
		if f.StreamEnded() {
			h.end = io.EOF
		}
	case *http2.DataFrame:
		h.data = append(h.data, f.Data()...)
		if f.StreamEnded() {
			h.end = io.EOF
		}
		if n := f.Header().Length; n > 0 {
			return errors.Join(tu.WriteWindowUpdate(0, n), tu.WriteWindowUpdate(f.StreamID, n))
		}
	case *http2.RSTStreamFrame:
		h.end = http2.StreamError{StreamID: f.StreamID, Code: f.ErrCode}
	case *http2.WindowUpdateFrame:
		tu.room[f.StreamID] += int(f.Increment)
	case *http2.GoAwayFrame:
		tu.away = true
	}
	return nil
}

// open asks for a WebSocket.
func (tu *tunnel) open(t *testing.T, stream uint32, path string, fields ...string) *heardOf {
	t.Helper()
	fields = append([]string{":protocol", "websocket", "sec-websocket-version", "13"}, fields...)
	if err := tu.Request(stream, false, "CONNECT", path, fields...); err != nil {
		t.Fatal(err)
	}
	return tu.await(t, stream, func(h *heardOf) bool { return h.status != "" })
}

// hear waits for bytes and takes them.
func (tu *tunnel) hear(t *testing.T, stream uint32, want string) {
	t.Helper()
	h := tu.await(t, stream, func(h *heardOf) bool { return len(h.data) >= len(want) })
	if got := string(h.data[:len(want)]); got != want {
		t.Fatalf("stream %d: heard %.80q, want %.80q", stream, got, want)
	}
	h.data = h.data[len(want):]
}

// say sends bytes as the windows allow, in frames that everybody takes.
func (tu *tunnel) say(t *testing.T, stream uint32, end bool, text string) {
	t.Helper()
	const most = 16 << 10
	for {
		n := min(len(text), most)
		tu.await(t, stream, func(*heardOf) bool { return min(tu.room[0], tu.room[stream])+firstWindow >= n })
		if err := tu.WriteData(stream, end && n == len(text), []byte(text[:n])); err != nil {
			t.Fatal(err)
		}
		tu.room[0] -= n
		tu.room[stream] -= n
		if text = text[n:]; text == "" {
			return
		}
	}
}

// wsText is a frame with a text, masked.
func wsText(text string) string { return masked(0x81, text) }

func masked(first byte, text string) string {
	key := []byte{1, 2, 3, 4}
	b := append([]byte{first, byte(0x80 | len(text))}, key...)
	for i := range len(text) {
		b = append(b, text[i]^key[i%4])
	}
	return string(b)
}

// byHTTP2 is RFC 8441: streams of one connection are WebSockets to an application
// that speaks HTTP/1.
func byHTTP2(t *testing.T, w *way) {
	tu := w.tunnel(t)
	if tu.Settings[http2.SettingEnableConnectProtocol] != 1 {
		t.Fatalf("SETTINGS_ENABLE_CONNECT_PROTOCOL is not announced: %v", tu.Settings)
	}
	var next uint32 = 1
	stream := func() uint32 { next += 2; return next }

	t.Run("two sockets and a request", func(t *testing.T) {
		one, other, plain := stream(), stream(), stream()
		h := tu.open(t, one, "/gorilla", "sec-websocket-protocol", "mqtt, chat.v1", "origin", "http://localhost")
		if h.status != "200" || h.fields["sec-websocket-protocol"] != "chat.v1" || h.fields["x-app"] != "gorilla" {
			t.Fatalf("%+v", h)
		}
		for _, name := range []string{"connection", "upgrade", "sec-websocket-accept", "transfer-encoding", "content-length"} {
			if v, has := h.fields[name]; has {
				t.Errorf("the answer has %s: %s", name, v)
			}
		}
		tu.open(t, other, "/coder")
		for _, text := range []string{"a", "hello", "你好"} {
			tu.say(t, one, false, wsText(text+"1"))
			tu.say(t, other, false, wsText(text+"2"))
			tu.hear(t, other, "\x81"+string(byte(len(text)+1))+text+"2")
			tu.hear(t, one, "\x81"+string(byte(len(text)+1))+text+"1")
		}
		if err := tu.Request(plain, true, "GET", "/"); err != nil {
			t.Fatal(err)
		}
		tu.await(t, plain, func(h *heardOf) bool { return h.end == io.EOF && string(h.data) == "plain" })
		// Closed by the client with 1001; the reply has no mask.
		tu.say(t, one, true, masked(0x88, "\x03\xe9"))
		tu.hear(t, one, "\x88\x02\x03\xe9")
		tu.await(t, one, func(h *heardOf) bool { return h.end == io.EOF })
		if err := tu.WriteRSTStream(other, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("bytes and ends", func(t *testing.T) {
		id := newID()
		s := stream()
		tu.open(t, s, "/raw?id="+id)
		tu.hear(t, s, behind)
		for i := range uint64(40) { // in all more than any window
			text := string(pattern(i, 48<<10))
			tu.say(t, s, false, text)
			tu.hear(t, s, text)
		}
		tu.say(t, s, true, "")
		tu.hear(t, s, lastWords)
		tu.await(t, s, func(h *heardOf) bool { return h.end == io.EOF && len(h.data) == 0 })
		if err := ended(t, w, id); err != nil {
			t.Errorf("the server saw %v", err)
		}
	})
	t.Run("the server ends first", func(t *testing.T) {
		id := newID()
		s := stream()
		tu.open(t, s, "/first?id="+id)
		tu.hear(t, s, behind)
		tu.await(t, s, func(h *heardOf) bool { return h.end == io.EOF })
		tu.say(t, s, true, "still here")
		if err := ended(t, w, id); err != heard("still here") {
			t.Errorf("the server heard %v", err)
		}
	})
	t.Run("the server dies", func(t *testing.T) {
		s := stream()
		tu.open(t, s, "/dies?how=reset")
		tu.say(t, s, false, "hello")
		h := tu.await(t, s, func(h *heardOf) bool { return h.end != nil })
		if h.end == io.EOF {
			t.Errorf("a reset came as END_STREAM behind %d bytes", len(h.data))
		}
	})
	t.Run("the client is reset", func(t *testing.T) {
		id := newID()
		s := stream()
		tu.open(t, s, "/raw?id="+id)
		tu.hear(t, s, behind)
		if err := tu.WriteRSTStream(s, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
		if err := ended(t, w, id); err == nil {
			t.Error("the server saw a clean end")
		}
	})
	t.Run("refused", func(t *testing.T) {
		s := stream()
		h := tu.open(t, s, "/refuses")
		tu.await(t, s, func(h *heardOf) bool { return h.end != nil })
		if h.status != "403" || h.fields["x-why"] != "policy" || !bytes.Equal(h.data, []byte("no sockets for you\n")) {
			t.Errorf("%+v", h)
		}
	})
	for _, protocol := range []string{"h2c", "connect-udp", "connect-ip", "websocket2"} {
		t.Run("unknown "+protocol, func(t *testing.T) {
			s := stream()
			if err := tu.Request(s, false, "CONNECT", "/anything", ":protocol", protocol); err != nil {
				t.Fatal(err)
			}
			if h := tu.await(t, s, func(h *heardOf) bool { return h.status != "" }); h.status != "501" {
				t.Errorf("answered with %s", h.status)
			}
		})
	}
	t.Run("the connection goes on", func(t *testing.T) {
		s := stream()
		tu.open(t, s, "/coder")
		tu.say(t, s, false, wsText("hello"))
		tu.hear(t, s, "\x81\x05hello")
		if tu.away {
			t.Error("GOAWAY")
		}
	})
}
