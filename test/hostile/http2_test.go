package hostile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/weftmesh/weft/test/frames"
)

// attack is a way to misuse one HTTP/2 connection with frames that are allowed one
// by one.
type attack struct {
	name    string
	reasons []string        // one of them is counted
	codes   []http2.ErrCode // one of them is in the GOAWAY
	// blow is called until the connection is ended, at most a number of times.
	blow func(c *frames.Conn, n int) error
	most int
}

// calm is the code for behaviour that is legal and too much.
var calm = []http2.ErrCode{http2.ErrCodeEnhanceYourCalm}

var attacks = []attack{
	{"rapid reset, CVE-2023-44487", []string{"rapid_reset", "made_you_reset"}, calm, func(c *frames.Conn, n int) error {
		id := uint32(2*n + 1)
		return errors.Join(c.Request(id, true, "GET", "/"), c.WriteRSTStream(id, http2.ErrCodeCancel))
	}, 50_000},
	{"MadeYouReset by a window of zero, CVE-2025-8671", []string{"made_you_reset"}, calm, func(c *frames.Conn, n int) error {
		id := uint32(2*n + 1)
		return errors.Join(c.Request(id, true, "GET", "/"), c.WriteWindowUpdate(id, 0))
	}, 50_000},
	{"MadeYouReset by data behind the end", []string{"made_you_reset", "late_frames"}, append(calm, http2.ErrCodeStreamClosed), func(c *frames.Conn, n int) error {
		id := uint32(2*n + 1)
		return errors.Join(c.Request(id, true, "GET", "/"), c.WriteData(id, true, []byte("more")))
	}, 50_000},
	{"MadeYouReset by a window that overflows", []string{"made_you_reset"}, calm, func(c *frames.Conn, n int) error {
		id := uint32(2*n + 1)
		return errors.Join(c.Request(id, true, "GET", "/"), c.WriteWindowUpdate(id, 1<<31-1))
	}, 50_000},
	{"MadeYouReset by malformed requests", []string{"made_you_reset"}, calm, func(c *frames.Conn, n int) error {
		return c.Request(uint32(2*n+1), true, "GET", "/", "connection", "close")
	}, 50_000},
	{"CONTINUATION flood, CVE-2023-45288", []string{"continuation_flood", "head_too_large", "header_bomb"}, append(calm, http2.ErrCodeProtocol, http2.ErrCodeCompression), func(c *frames.Conn, n int) error {
		if n == 0 {
			return c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, BlockFragment: c.Block(":method", "GET")})
		}
		return c.WriteContinuation(1, false, c.Block(fmt.Sprint("x-", n), strings.Repeat("y", 8000)))
	}, 50_000},
	{"CONTINUATION flood of empty frames", []string{"continuation_flood", "empty_frames"}, append(calm, http2.ErrCodeProtocol), func(c *frames.Conn, n int) error {
		if n == 0 {
			return c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, BlockFragment: c.Block(":method", "GET")})
		}
		return c.WriteContinuation(1, false, nil)
	}, 200_000},
	{"SETTINGS flood, CVE-2019-9515", []string{"settings_flood", "unread_replies"}, calm, func(c *frames.Conn, n int) error {
		return c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(n)})
	}, 200_000},
	{"PING flood, CVE-2019-9512", []string{"ping_flood", "unread_replies"}, calm, func(c *frames.Conn, n int) error {
		return c.WritePing(false, [8]byte{byte(n)})
	}, 200_000},
	{"empty DATA frames, CVE-2019-9518", []string{"empty_frames"}, calm, func(c *frames.Conn, n int) error {
		if n == 0 {
			return c.Request(1, false, "POST", "/")
		}
		return c.WriteData(1, false, nil)
	}, 200_000},
	{"PRIORITY flood, CVE-2019-9513", []string{"priority_flood"}, calm, func(c *frames.Conn, n int) error {
		return c.WritePriority(uint32(2*n+1), http2.PriorityParam{StreamDep: uint32(2*n + 3), Weight: byte(n)})
	}, 200_000},
	{"window updates by the byte", []string{"window_update_flood"}, calm, func(c *frames.Conn, n int) error {
		return c.WriteWindowUpdate(0, 1)
	}, 200_000},
	{"frames of unknown types", []string{"unknown_frames"}, calm, func(c *frames.Conn, n int) error {
		return c.WriteRawFrame(0xbe, 0, 0, []byte("grease"))
	}, 200_000},
	{"HPACK bomb", []string{"header_bomb", "head_too_large"}, append(calm, http2.ErrCodeCompression, http2.ErrCodeProtocol), bomb("x-bomb"), 3000},
	{"cookie crumbs, CVE-2026-49975", []string{"header_bomb", "head_too_large"}, append(calm, http2.ErrCodeCompression, http2.ErrCodeProtocol), bomb("cookie"), 3000},
}

// bomb puts a field of 3,900 bytes into the table once, and then names it 16,000
// times a request: 62 MB of fields in 16 KB.
func bomb(name string) func(c *frames.Conn, n int) error {
	return func(c *frames.Conn, n int) error {
		id := uint32(2*n + 1)
		if n == 0 {
			return c.Request(id, true, "GET", "/", name, strings.Repeat("b", 3900))
		}
		// The newest entry of the dynamic table is index 62 (RFC 7541, 2.3.3).
		fields := []byte(strings.Repeat("\xbe", 16_000))
		return c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: true, EndHeaders: true,
			BlockFragment: append([]byte{0x82, 0x86, 0x84, 0x41, 1, 'a'}, fields...)})
	}
}

// attackers is how many connections attack at once.
const attackers = 8

func TestHTTP2Attacks(t *testing.T) {
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			s := newScene(t)
			ends := make(chan ending, attackers)
			var attacking sync.WaitGroup
			for range attackers {
				attacking.Go(func() { ends <- a.run(s.gateway.HTTP) })
			}
			attacking.Wait()
			for range attackers {
				if e := <-ends; e.err != nil {
					t.Errorf("after %d blows, GOAWAY %v (seen: %v): %v", e.blows, e.code, e.seen, e.err)
				} else if e.seen && !slices.Contains(a.codes, e.code) {
					t.Errorf("GOAWAY %s, want one of %v", e.code, a.codes)
				} else if !e.seen {
					t.Logf("closed without a GOAWAY that could still be read, after %d blows", e.blows)
				}
			}
			s.over(a.reasons...)
		})
	}
}

// ending is how a connection was ended.
type ending struct {
	code  http2.ErrCode
	seen  bool // a GOAWAY
	blows int
	err   error
}

// run attacks over one connection. It reads all the time, so that it is the frames
// that count and not what waits unread.
func (a attack) run(address string) ending {
	c, err := frames.Dial(address, nil)
	if err != nil {
		return ending{err: err}
	}
	defer c.Close()
	if err := c.Handshake(); err != nil {
		return ending{err: err}
	}
	reading := make(chan ending, 1)
	go func() {
		code, seen, err := c.End()
		reading <- ending{code: code, seen: seen, err: err}
	}()
	for n := range a.most {
		_ = c.SetWriteDeadline(time.Now().Add(frames.Timeout))
		if err := a.blow(c, n); err != nil { // it was ended: that is what is wanted
			e := <-reading
			e.blows = n
			return e
		}
		select {
		case e := <-reading:
			e.blows = n
			return e
		default:
		}
	}
	select {
	case e := <-reading:
		e.blows = a.most
		return e
	case <-time.After(2 * frames.Timeout):
		return ending{err: fmt.Errorf("the connection bore %d blows", a.most)}
	}
}

// TestNeverReading asks for answers, to pings and to requests, and reads none: what
// waits for it must not grow.
func TestNeverReading(t *testing.T) {
	for name, blow := range map[string]func(c *frames.Conn, n int) error{
		"pings":    func(c *frames.Conn, n int) error { return c.WritePing(false, [8]byte{}) },
		"settings": func(c *frames.Conn, n int) error { return c.WriteSettings() },
		"requests": func(c *frames.Conn, n int) error { return c.Request(uint32(2*n+1), true, "GET", "/large/64") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			var attacking sync.WaitGroup
			for range attackers {
				attacking.Go(func() {
					c, err := frames.Dial(s.gateway.HTTP, nil, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					for n := range 200_000 {
						_ = c.SetWriteDeadline(time.Now().Add(time.Second))
						if blow(c, n) != nil {
							return // ended, or nobody reads us either
						}
					}
				})
			}
			attacking.Wait()
			s.over()
		})
	}
}

// TestWindowStall asks for large bodies on all streams and never opens a window:
// what the upstream sends is not taken from it.
func TestWindowStall(t *testing.T) {
	s := newScene(t)
	var conns []*frames.Conn
	// A gigabyte in a thousand answers. With much more it is the application that keeps
	// honest clients waiting: it has to fill the kernel's buffers first.
	for range 10 {
		c, err := frames.Dial(s.gateway.HTTP, nil, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		for n := range 100 {
			if err := c.Request(uint32(2*n+1), true, "GET", "/large/1024"); err != nil {
				t.Fatal(err)
			}
		}
		conns = append(conns, c)
	}
	// All of them have been asked for when the last connection answers a ping.
	last := conns[len(conns)-1]
	if err := last.WritePing(false, [8]byte{1}); err != nil {
		t.Fatal(err)
	}
	for answered := false; !answered; {
		f, err := last.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		p, ok := f.(*http2.PingFrame)
		answered = ok && p.IsAck()
	}
	s.honest.after(t, 1000)
	s.over()
}

// TestStreamsOverTheLimit are refused one by one, and the connection goes on.
func TestStreamsOverTheLimit(t *testing.T) {
	s := newScene(t)
	c, err := frames.Dial(s.gateway.HTTP, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	const streams = 300
	for n := range streams {
		if err := c.Request(uint32(2*n+1), false, "POST", "/"); err != nil { // its body does not end
			t.Fatal(err)
		}
	}
	refused := 0
	for refused < streams-int(max(c.Settings[http2.SettingMaxConcurrentStreams], 100)) {
		f, err := c.Next()
		if err != nil {
			t.Fatalf("after %d refusals: %v", refused, err)
		}
		if r, ok := f.(*http2.RSTStreamFrame); ok {
			if r.ErrCode != http2.ErrCodeRefusedStream {
				t.Fatalf("stream %d: %s", r.StreamID, r.ErrCode)
			}
			refused++
		}
	}
	if err := c.WriteData(1, true, nil); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Response(1); err != nil || r.Get(":status") != "200" {
		t.Errorf("the first stream: %+v, %v", r, err)
	}
	s.over()
}

// TestLyingFrames are errors of the connection.
func TestLyingFrames(t *testing.T) {
	s := newScene(t)
	for name, raw := range map[string]func() []byte{
		"padding longer than the frame": func() []byte { return frame(http2.FrameData, 0x8, 1, []byte{200, 0, 0}) },
		"a frame over the limit":        func() []byte { return frame(http2.FrameData, 0, 1, make([]byte, 1<<20)) },
		"a window update of 3 bytes":    func() []byte { return frame(http2.FrameWindowUpdate, 0, 0, []byte{1, 2, 3}) },
		"a ping of 9 bytes":             func() []byte { return frame(http2.FramePing, 0, 0, make([]byte, 9)) },
		"settings on a stream":          func() []byte { return frame(http2.FrameSettings, 0, 1, nil) },
		"a push":                        func() []byte { return frame(http2.FramePushPromise, 0x4, 1, []byte{0, 0, 0, 2, 0x82}) },
		"an index outside of the table": func() []byte { return frame(http2.FrameHeaders, 0x5, 1, []byte{0xff, 0xff, 0x7f}) },
	} {
		t.Run(name, func(t *testing.T) {
			c, err := frames.Dial(s.gateway.HTTP, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			_, err = c.Conn.Write(raw())
			if err != nil {
				t.Fatal(err)
			}
			if code, seen, err := c.End(); err != nil || seen && code == http2.ErrCodeNo {
				t.Errorf("ended with %v (seen %v), %v", code, seen, err)
			}
		})
	}
	s.over()
}

// frame makes any frame.
func frame(kind http2.FrameType, flags byte, stream uint32, payload []byte) []byte {
	b := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), byte(kind), flags}
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// TestTheJudgesBombIsOne: it decodes, and to as much as it says.
func TestTheJudgesBombIsOne(t *testing.T) {
	decoded := 0
	d := hpack.NewDecoder(4096, func(f hpack.HeaderField) { decoded += len(f.Name) + len(f.Value) })
	var enc strings.Builder
	e := hpack.NewEncoder(&enc)
	if err := e.WriteField(hpack.HeaderField{Name: "x-bomb", Value: strings.Repeat("b", 3900)}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write([]byte(enc.String())); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write([]byte(strings.Repeat("\xbe", 16_000))); err != nil {
		t.Fatal(err)
	}
	if decoded < 62_000_000 {
		t.Errorf("%d bytes", decoded)
	}
}
