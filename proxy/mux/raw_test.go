package mux

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	judge "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/weftmesh/weft/wire/http2"
)

// raw is a peer that sends whatever the test says, frame by frame.
type raw struct {
	t    *testing.T
	sock net.Conn
	*judge.Framer
}

// rawClient is the client of a server with the given config.
func rawClient(t *testing.T, config Config, settings ...judge.Setting) (*raw, *Conn, <-chan error) {
	t.Helper()
	a, b := pair(t)
	c, ended := serve(t, b, config)
	r := &raw{t, a, judge.NewFramer(a, a)}
	t.Cleanup(func() { a.Close() })
	_ = a.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(a, judge.ClientPreface); err != nil {
		t.Fatal(err)
	}
	r.must(r.WriteSettings(settings...))
	return r, c, ended
}

// rawServer is the server of a client.
func rawServer(t *testing.T, config Config, settings ...judge.Setting) (*raw, *Conn) {
	t.Helper()
	a, b := pair(t)
	c := dial(t, a, config)
	r := &raw{t, b, judge.NewFramer(b, b)}
	t.Cleanup(func() { b.Close() })
	_ = b.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(b, make([]byte, len(judge.ClientPreface))); err != nil {
		t.Fatal(err)
	}
	r.must(r.WriteSettings(settings...))
	return r, c
}

func (r *raw) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// headers sends a head that ends its block.
func (r *raw) headers(id uint32, end bool, fields ...string) {
	r.t.Helper()
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		r.must(e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	r.must(r.WriteHeaders(judge.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: end, EndHeaders: true}))
}

func (r *raw) request(id uint32, end bool) {
	r.t.Helper()
	r.headers(id, end, ":method", "POST", ":scheme", "http", ":authority", "shop", ":path", "/orders")
}

// await reads frames until one of the kind comes.
func (r *raw) await(kind judge.FrameType) judge.Frame {
	r.t.Helper()
	for {
		f, err := r.ReadFrame()
		if err != nil {
			r.t.Fatalf("waiting for %v: %v", kind, err)
		}
		if f.Header().Type == kind {
			return f
		}
	}
}

func (r *raw) awaitReset(id uint32, code judge.ErrCode) {
	r.t.Helper()
	f := r.await(judge.FrameRSTStream).(*judge.RSTStreamFrame)
	if f.StreamID != id || f.ErrCode != code {
		r.t.Errorf("RST_STREAM of %d with %v; want %d with %v", f.StreamID, f.ErrCode, id, code)
	}
}

func (r *raw) awaitGoAway(last uint32, code judge.ErrCode) {
	r.t.Helper()
	f := r.await(judge.FrameGoAway).(*judge.GoAwayFrame)
	if f.LastStreamID != last || f.ErrCode != code {
		r.t.Errorf("GOAWAY %d with %v; want %d with %v", f.LastStreamID, f.ErrCode, last, code)
	}
}

// awaitEnd reads until the connection ends in good order.
func (r *raw) awaitEnd() {
	r.t.Helper()
	if _, err := io.Copy(io.Discard, r.sock); err != nil {
		r.t.Errorf("the connection ends with %v", err)
	}
}

const settled = 5 * time.Second // more than any test needs for what happens at once

// until polls a condition.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(settled); !cond(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestPeerResetsRequest(t *testing.T) {
	seen := make(chan error, 1)
	r, _, _ := rawClient(t, Config{Serve: func(s *Stream) {
		_, err := s.Next()
		seen <- err
	}})
	r.request(1, false)
	r.must(r.WriteRSTStream(1, judge.ErrCodeCancel))
	var reset *ResetError
	if err := <-seen; !errors.As(err, &reset) || !reset.Remote || reset.Code != http2.Cancel {
		t.Errorf("%v", err)
	}
	if err := reset.Error(); !strings.Contains(err, "CANCEL") || !strings.Contains(err, "peer") {
		t.Error(err)
	}
}

// A request that waits for an upstream learns that its client went away.
func TestResetInterruptsWhatIsWatched(t *testing.T) {
	up, upstream := rawServer(t, Config{})
	for _, late := range []bool{false, true} {
		seen := make(chan error, 1)
		gone := make(chan struct{})
		r, _, _ := rawClient(t, Config{Serve: func(s *Stream) {
			u := open(t, upstream)
			defer u.Close()
			if err := u.SendRequest(&get, nil, nil, true); err != nil {
				t.Error(err)
			}
			if late {
				_, _ = s.Next() // fails
			} else {
				close(gone)
			}
			s.Watch(u)
			seen <- u.AwaitHead()
			s.Watch(nil)
		}})
		r.request(1, false)
		if !late {
			<-gone
		}
		r.must(r.WriteRSTStream(1, judge.ErrCodeCancel))
		if err := <-seen; !errors.Is(err, ErrInterrupted) {
			t.Errorf("%v", err)
		}
		if f := up.await(judge.FrameRSTStream).(*judge.RSTStreamFrame); f.ErrCode != judge.ErrCodeCancel {
			t.Errorf("upstream saw %v", f.ErrCode)
		}
	}
}

func TestServeThatReturnsEarlyResets(t *testing.T) {
	for name, tc := range map[string]struct {
		serve func(*Stream)
		code  judge.ErrCode
	}{
		"without an answer":         {func(s *Stream) {}, judge.ErrCodeInternal},
		"in the middle":             {func(s *Stream) { _ = s.SendResponse(200, nil, []byte("begin"), false) }, judge.ErrCodeInternal},
		"without reading the rest":  {answer, judge.ErrCodeNo},
		"with a code of its choice": {func(s *Stream) { s.Reset(http2.EnhanceYourCalm) }, judge.ErrCodeEnhanceYourCalm},
	} {
		t.Run(name, func(t *testing.T) {
			r, c, _ := rawClient(t, Config{Serve: tc.serve})
			r.request(1, false)
			r.awaitReset(1, tc.code)
			until(t, "no stream is held", func() bool { return c.Active() == 0 })
		})
	}
}

func TestRefusedStreamWasNotSent(t *testing.T) {
	r, c := rawServer(t, Config{})
	s := open(t, c)
	defer s.Close()
	if s.Sent() {
		t.Error("sent before the request")
	}
	if err := s.SendRequest(&post, nil, []byte("body"), true); err != nil {
		t.Fatal(err)
	}
	r.await(judge.FrameHeaders)
	if !s.Sent() {
		t.Error("not sent, though the server has it")
	}
	r.must(r.WriteRSTStream(1, judge.ErrCodeRefusedStream))
	var reset *ResetError
	if err := s.AwaitHead(); !errors.As(err, &reset) || reset.Code != http2.RefusedStream || s.Sent() {
		t.Errorf("%v, sent %v", err, s.Sent())
	}
}

func TestGoAwayInTheMiddle(t *testing.T) {
	r, c := rawServer(t, Config{})
	one, two, three := open(t, c), open(t, c), open(t, c)
	for _, s := range []*Stream{one, two} {
		if err := s.SendRequest(&get, nil, nil, true); err != nil {
			t.Fatal(err)
		}
	}
	r.await(judge.FrameHeaders)
	r.must(r.WriteGoAway(1, judge.ErrCodeNo, nil))
	if err := two.AwaitHead(); err == nil || two.Sent() {
		t.Errorf("%v, sent %v", err, two.Sent())
	}
	if err := three.SendRequest(&get, nil, nil, true); !errors.Is(err, ErrGone) || three.Sent() {
		t.Errorf("%v, sent %v", err, three.Sent())
	}
	if _, err := c.Open(); !errors.Is(err, ErrGone) || c.Alive() || c.Room() != 0 {
		t.Errorf("the connection takes more: %v", err)
	}
	r.headers(1, false, ":status", "200")
	if err := one.AwaitHead(); err != nil || !one.Sent() {
		t.Errorf("%v, sent %v", err, one.Sent())
	}
	r.must(r.WriteData(1, true, []byte("hello")))
	if body, err := readAll(one); err != nil || string(body) != "hello" {
		t.Errorf("%q, %v", body, err)
	}
	for _, s := range []*Stream{one, two, three} {
		s.Close()
	}
	<-c.Done()
}

func TestResponseThatIsCompleteSurvivesAReset(t *testing.T) {
	r, c := rawServer(t, Config{})
	s := open(t, c)
	defer s.Close()
	if err := s.SendRequest(&post, nil, []byte("begin"), false); err != nil {
		t.Fatal(err)
	}
	r.headers(1, false, ":status", "413")
	r.must(r.WriteData(1, true, []byte("too much")))
	r.must(r.WriteRSTStream(1, judge.ErrCodeNo))
	until(t, "reset", func() bool { return s.Write([]byte("more"), false) != nil })
	if err := s.AwaitHead(); err != nil || s.Response().Status != 413 {
		t.Fatalf("%d, %v", s.Response().Status, err)
	}
	if body, err := readAll(s); err != nil || string(body) != "too much" {
		t.Errorf("%q, %v", body, err)
	}
}

func TestPeersLimitOfStreams(t *testing.T) {
	r, c := rawServer(t, Config{}, judge.Setting{ID: judge.SettingMaxConcurrentStreams, Val: 2})
	until(t, "settings", func() bool { return c.Room() == 2 })
	a, b := open(t, c), open(t, c)
	if _, err := c.Open(); !errors.Is(err, ErrBusy) || c.Room() != 0 || c.Active() != 2 {
		t.Errorf("%v, room %d, active %d", err, c.Room(), c.Active())
	}
	if err := a.SendRequest(&get, nil, nil, true); err != nil {
		t.Fatal(err)
	}
	if c.Room() != 0 {
		t.Errorf("room %d", c.Room())
	}
	r.must(r.WriteSettings(judge.Setting{ID: judge.SettingMaxConcurrentStreams, Val: 1}))
	r.must(r.WritePing(false, [8]byte{1}))
	r.await(judge.FramePing)
	if err := b.SendRequest(&get, nil, nil, true); !errors.Is(err, ErrBusy) || b.Sent() {
		t.Errorf("%v, sent %v", err, b.Sent())
	}
	a.Close()
	b.Close()
	if c.Room() != 1 || !c.Alive() {
		t.Errorf("room %d", c.Room())
	}
}

func TestInterimFloodIsReset(t *testing.T) {
	var refused counter
	r, c := rawServer(t, Config{Refused: refused.count})
	s := open(t, c)
	defer s.Close()
	if err := s.SendRequest(&get, nil, nil, true); err != nil {
		t.Fatal(err)
	}
	for range mostInterim + 1 {
		r.headers(1, false, ":status", "102")
	}
	r.awaitReset(1, judge.ErrCodeEnhanceYourCalm)
	if err := s.AwaitHead(); err == nil || refused.of("interim_flood") != 1 {
		t.Errorf("%v, %d", err, refused.of("interim_flood"))
	}
}

func TestAttacksEndWithTheirCode(t *testing.T) {
	for reason, tc := range map[string]struct {
		attack func(r *raw)
		code   judge.ErrCode
	}{
		"ping_flood": {func(r *raw) {
			for range 1000 {
				if r.WritePing(false, [8]byte{}) != nil {
					return
				}
			}
		}, judge.ErrCodeEnhanceYourCalm},
		"rapid_reset": {func(r *raw) {
			var block bytes.Buffer
			e := hpack.NewEncoder(&block)
			for _, f := range []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "shop"}, {Name: ":path", Value: "/"}} {
				_ = e.WriteField(f)
			}
			for id := uint32(1); id < 4000; id += 2 {
				head := judge.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}
				if r.WriteHeaders(head) != nil || r.WriteRSTStream(id, judge.ErrCodeCancel) != nil {
					return
				}
			}
		}, judge.ErrCodeEnhanceYourCalm},
		"stream_zero": {func(r *raw) { r.AllowIllegalWrites = true; _ = r.WriteData(0, false, []byte("x")) }, judge.ErrCodeProtocol},
	} {
		t.Run(reason, func(t *testing.T) {
			var refused counter
			r, c, ended := rawClient(t, Config{Refused: refused.count, Serve: func(s *Stream) { _, _ = s.Next() }})
			// The honest client of another connection notices nothing.
			_, honest := connect(t, Config{Serve: echo}, Config{})
			attacked := make(chan struct{})
			go func() { defer close(attacked); tc.attack(r) }()
			f := r.await(judge.FrameGoAway).(*judge.GoAwayFrame)
			if f.ErrCode != tc.code {
				t.Errorf("GOAWAY with %v, want %v", f.ErrCode, tc.code)
			}
			if _, body, err := ask(honest, &post, "", []byte("hello")); err != nil || string(body) != "hello" {
				t.Errorf("%q, %v", body, err)
			}
			r.sock.Close()
			<-attacked
			<-c.Done()
			var fatal *http2.ConnError
			err := <-ended
			if !errors.As(err, &fatal) {
				t.Fatalf("ended with %v", err)
			}
			if reason == "rapid_reset" && fatal.Reason == "made_you_reset" {
				reason = fatal.Reason // it was so rapid that Serve could not keep up, and streams were refused
			}
			if fatal.Reason != reason || refused.of(reason) != 1 {
				t.Errorf("ended with %v, counted %v", err, refused.n)
			}
		})
	}
}

func TestRequestsThatAreRefusedAreCounted(t *testing.T) {
	var refused counter
	r, _, _ := rawClient(t, Config{Refused: refused.count, Serve: answer})
	r.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/", "connection", "close")
	r.awaitReset(1, judge.ErrCodeProtocol)
	r.request(3, true)
	r.await(judge.FrameHeaders)
	refused.mu.Lock()
	defer refused.mu.Unlock()
	if len(refused.n) != 1 {
		t.Errorf("counted %v", refused.n)
	}
}

func TestDrainServesWhatIsUnderWay(t *testing.T) {
	release := make(chan struct{})
	r, c, ended := rawClient(t, Config{Serve: func(s *Stream) { <-release; answer(s) }})
	r.request(1, true)
	until(t, "the request", func() bool { return c.Active() == 1 })
	c.Drain()
	c.Drain() // does nothing
	r.awaitGoAway(1<<31-1, judge.ErrCodeNo)
	ping := r.await(judge.FramePing).(*judge.PingFrame)
	r.request(3, true) // it did not know yet
	until(t, "the second request", func() bool { return c.Active() == 2 })
	r.must(r.WritePing(true, ping.Data))
	r.awaitGoAway(3, judge.ErrCodeNo)
	r.request(5, true) // it should know
	if c.Alive() {
		t.Error("alive")
	}
	close(release)
	served := map[uint32]bool{}
	for len(served) < 2 {
		f, err := r.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := f.(*judge.DataFrame); ok && d.StreamEnded() {
			served[d.StreamID] = true
		}
	}
	r.awaitEnd()
	if err := <-ended; err != nil || !served[1] || !served[3] {
		t.Errorf("%v, served %v", err, served)
	}
}

// A peer that does not answer the PING is not waited for.
func TestDrainDoesNotWaitForPings(t *testing.T) {
	r, c, ended := rawClient(t, Config{Serve: answer})
	c.Drain()
	r.awaitGoAway(1<<31-1, judge.ErrCodeNo)
	c.Expire(time.Now().Add(drainPatience))
	r.awaitGoAway(0, judge.ErrCodeNo)
	r.awaitEnd()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestNobodyFailsWhileTheServerDrains(t *testing.T) {
	s, c := connect(t, Config{Serve: echo}, Config{})
	var all sync.WaitGroup
	served := make(chan int, 16)
	for range 16 {
		all.Go(func() {
			for n := 0; ; n++ {
				_, body, err := ask(c, &post, "", pattern(3000))
				if errors.Is(err, ErrGone) {
					served <- n
					return // Open or SendRequest, before anything was sent
				}
				if err != nil || len(body) != 3000 {
					t.Errorf("%d bytes, %v", len(body), err)
					return
				}
				if n == 20 {
					s.Drain()
				}
			}
		})
	}
	all.Wait()
	if len(served) != 16 {
		t.Errorf("%d clients saw the end", len(served))
	}
	<-s.Done()
	<-c.Done()
}

func TestClientDrainsWhenItsStreamsEnd(t *testing.T) {
	s, c := connect(t, Config{Serve: echo}, Config{})
	one := open(t, c)
	if err := one.SendRequest(&post, nil, []byte("hello"), false); err != nil {
		t.Fatal(err)
	}
	c.Drain()
	if _, err := c.Open(); !errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	if err := one.Write(nil, true); err != nil {
		t.Fatal(err)
	}
	if body, err := readAll(one); err != nil || string(body) != "hello" {
		t.Errorf("%q, %v", body, err)
	}
	one.Close()
	<-c.Done()
	<-s.Done()
}
