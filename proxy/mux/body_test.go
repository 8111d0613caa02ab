package mux

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	judge "golang.org/x/net/http2"

	"github.com/weftmesh/weft/wire/http2"
)

// flood answers with a lot.
func flood(s *Stream) {
	if s.SendResponse(200, nil, nil, false) != nil {
		return
	}
	b := pattern(64 << 10)
	for range 64 {
		if s.Write(b, false) != nil {
			return
		}
	}
	_ = s.Write(nil, true)
}

const flooded = 64 * 64 << 10

func TestSlowReaderHoldsUpOnlyItself(t *testing.T) {
	_, c := connect(t, Config{Serve: flood}, Config{})
	slow := open(t, c)
	defer slow.Close()
	if err := slow.SendRequest(&get, nil, nil, true); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, body, err := ask(c, &get, "", nil); err != nil || len(body) != flooded {
			t.Fatalf("a neighbour got %d bytes, %v", len(body), err)
		}
	}
	until(t, "a full window", func() bool { n, _ := slow.Ready(); return n == 1<<16-1 })
	c.mu.Lock()
	if kept := buffersOf(&slow.in); kept > 5 {
		t.Errorf("%d buffers are kept for %d bytes", kept, slow.in.size)
	}
	c.mu.Unlock()
	if body, err := readAll(slow); err != nil || len(body) != flooded {
		t.Errorf("%d bytes, %v", len(body), err)
	}
}

func buffersOf(q *queue) (n int) {
	for b := q.first; b != nil; b = b.next {
		n++
	}
	return n
}

// Windows grow for a bulk transfer whose reader keeps up, up to a bound.
func TestWindowGrows(t *testing.T) {
	_, c := connect(t, Config{Serve: flood}, Config{})
	s := open(t, c)
	if err := s.SendRequest(&get, nil, nil, true); err != nil {
		t.Fatal(err)
	}
	read := 0
	for {
		b, err := s.Next()
		if err != nil {
			break
		}
		read += len(b)
	}
	c.mu.Lock()
	if read != flooded || s.window < 1<<17 || s.window > mostWindow || c.grown != s.window-c.streamWindow() {
		t.Errorf("%d bytes, window %d, grown %d", read, s.window, c.grown)
	}
	c.mu.Unlock()
	s.Close()
	if c.grown != 0 {
		t.Errorf("%d bytes of windows are not given back", c.grown)
	}
}

// Who has little to say does not wait until who has much is done.
func TestWritersTakeTurns(t *testing.T) {
	r, c := rawServer(t, Config{}, judge.Setting{ID: judge.SettingInitialWindowSize, Val: 1 << 30})
	r.must(r.WriteWindowUpdate(0, 1<<30))
	r.must(r.WritePing(false, [8]byte{}))
	r.await(judge.FramePing) // the settings are there
	big, small := open(t, c), open(t, c)
	defer big.Close()
	defer small.Close()
	wrote := make(chan error, 1)
	go func() { wrote <- big.SendRequest(&post, nil, pattern(64<<20), true) }() // more than any socket takes
	until(t, "the big one waits", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.turns.first == big })
	said := make(chan error, 1)
	go func() { said <- small.SendRequest(&post, nil, pattern(100<<10), true) }()
	var before int
	for {
		f, err := r.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := f.(*judge.DataFrame); ok {
			if d.StreamID == 3 && d.StreamEnded() {
				break
			}
			if d.StreamID == 1 {
				before += len(d.Data())
			}
		}
	}
	if err := <-said; err != nil {
		t.Error(err)
	}
	if before > 32<<20 {
		t.Errorf("%d bytes went first", before)
	}
	big.Interrupt()
	if err := <-wrote; !errors.Is(err, ErrInterrupted) {
		t.Errorf("%v", err)
	}
}

func TestWindowsOfConnectionAndStream(t *testing.T) {
	// The connection's window is 65535: three streams share it, first come first served.
	r, c := rawServer(t, Config{})
	var streams []*Stream
	wrote := make(chan error, 3)
	for range 3 {
		s := open(t, c)
		defer s.Close()
		streams = append(streams, s)
		go func() { wrote <- s.SendRequest(&post, nil, pattern(60000), true) }()
		until(t, "queued", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return s.h != nil })
	}
	got := map[uint32]int{}
	total := 0
	for ended := 0; ended < 3; {
		f, err := r.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		d, ok := f.(*judge.DataFrame)
		if !ok {
			continue
		}
		got[d.StreamID] += len(d.Data())
		if total += len(d.Data()); total%1000 == 0 || total >= 65535 {
			r.must(r.WriteWindowUpdate(0, 20000))
		}
		if d.StreamEnded() {
			ended++
		}
	}
	for i, s := range streams {
		if n := got[uint32(2*i+1)]; n != 60000 {
			t.Errorf("stream %d: %d bytes", i, n)
		}
		if err := <-wrote; err != nil {
			t.Error(err)
		}
		_ = s
	}
}

func TestConnectionIsCut(t *testing.T) {
	a, b := pair(t)
	s, ended := serve(t, b, Config{Serve: func(s *Stream) {
		_ = s.SendResponse(200, nil, []byte("begin"), false)
		if _, err := readAll(s); !errors.Is(err, ErrGone) {
			t.Errorf("the server's stream ended with %v", err)
		}
	}})
	c := dial(t, a, Config{})
	var all sync.WaitGroup
	var begun sync.WaitGroup
	for range 10 {
		begun.Add(1)
		all.Go(func() {
			s := open(t, c)
			defer s.Close()
			err := s.SendRequest(&post, nil, []byte("begin"), false)
			if err == nil {
				err = s.AwaitHead()
			}
			begun.Done()
			if err != nil {
				t.Error(err)
			}
			if _, err := readAll(s); !errors.Is(err, ErrGone) || !s.Sent() {
				t.Errorf("%v, sent %v", err, s.Sent())
			}
			if err := s.Write(pattern(1<<20), true); !errors.Is(err, ErrGone) {
				t.Errorf("%v", err)
			}
		})
	}
	begun.Wait()
	_ = a.(*net.TCPConn).SetLinger(0) // a reset
	a.Close()
	all.Wait()
	<-c.Done()
	<-s.Done()
	if err := <-ended; err == nil {
		t.Error("a reset is no good order")
	}
	if _, err := c.Open(); !errors.Is(err, ErrGone) || c.Alive() {
		t.Errorf("%v", err)
	}
}

func TestClose(t *testing.T) {
	held := make(chan struct{})
	s, c := connect(t, Config{Serve: func(s *Stream) { close(held); _, _ = s.Next() }}, Config{})
	one := open(t, c)
	defer one.Close()
	if err := one.SendRequest(&post, nil, nil, false); err != nil {
		t.Fatal(err)
	}
	<-held
	c.Close()
	if err := one.AwaitHead(); !errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	<-c.Done()
	<-s.Done()
}

// stuck is a connection that takes only so many bytes.
type stuck struct {
	net.Conn
	mu     sync.Mutex
	most   int
	closed chan struct{}
	once   sync.Once
}

func (s *stuck) Write(p []byte) (int, error) {
	s.mu.Lock()
	n := min(len(p), s.most)
	s.most -= n
	s.mu.Unlock()
	if n == len(p) {
		return n, nil
	}
	<-s.closed
	return n, net.ErrClosed
}

func (s *stuck) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.Conn.Close()
}

// What was not written to the socket was not sent, whatever the stream went through.
func TestSentIsTrue(t *testing.T) {
	a, b := pair(t)
	defer b.Close()
	go func() { _, _ = io.Copy(io.Discard, b) }()
	sock := &stuck{Conn: a, most: 300, closed: make(chan struct{})}
	c := dial(t, sock, Config{})
	whole, cut := open(t, c), open(t, c)
	if err := whole.SendRequest(&get, nil, nil, true); err != nil {
		t.Fatal(err)
	}
	until(t, "written", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.flushed > 0 && c.flushed == c.taken })
	// Its head is larger than what the socket still takes.
	if err := cut.SendRequest(&get, append(append([]byte("x-big: "), bytes.Repeat([]byte("ab~"), 300)...), "\r\n"...), nil, true); err != nil {
		t.Fatal(err)
	}
	until(t, "writing", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.inWrite })
	behind := open(t, c)
	if err := behind.SendRequest(&get, nil, nil, true); err != nil {
		t.Fatal(err)
	}
	if !behind.Sent() {
		t.Error("while the connection lives, it may still be sent")
	}
	c.Close()
	if err := behind.AwaitHead(); !errors.Is(err, ErrGone) || behind.Sent() {
		t.Errorf("%v, sent %v", err, behind.Sent())
	}
	<-c.Done()
	if !whole.Sent() || cut.Sent() || behind.Sent() {
		t.Errorf("sent: %v, %v, %v; want only the first", whole.Sent(), cut.Sent(), behind.Sent())
	}
	for _, s := range []*Stream{whole, cut, behind} {
		s.Close()
	}
}

// deaf is a connection whose peer takes no more bytes from some moment on.
type deaf struct {
	net.Conn
	gone chan struct{}
}

func (d *deaf) Write(p []byte) (int, error) {
	select {
	case <-d.gone:
		return 0, syscall.EPIPE
	default:
		return d.Conn.Write(p)
	}
}

// What a server sent before it closed is read, though writing fails already.
func TestAnswerBehindAFailedWrite(t *testing.T) {
	a, b := pair(t)
	defer b.Close()
	sock := &deaf{a, make(chan struct{})}
	c := dial(t, sock, Config{})
	r := &raw{t, b, judge.NewFramer(b, b)}
	if _, err := io.ReadFull(b, make([]byte, len(judge.ClientPreface))); err != nil {
		t.Fatal(err)
	}
	answered, late := open(t, c), open(t, c)
	defer answered.Close()
	defer late.Close()
	if err := answered.SendRequest(&get, nil, nil, true); err != nil {
		t.Fatal(err)
	}
	r.await(judge.FrameHeaders)
	close(sock.gone)
	if err := late.SendRequest(&get, nil, nil, true); err != nil {
		t.Fatal(err)
	}
	until(t, "the write fails", func() bool { return !c.Alive() })
	r.must(r.WriteSettings())
	r.headers(1, true, ":status", "200")
	if err := answered.AwaitHead(); err != nil || answered.Response().Status != 200 {
		t.Errorf("%v", err)
	}
	if _, err := c.Open(); !errors.Is(err, ErrGone) || c.Room() != 0 {
		t.Errorf("%v", err)
	}
	if err := late.AwaitHead(); !errors.Is(err, ErrGone) || late.Sent() {
		t.Errorf("%v, sent %v", err, late.Sent())
	}
	<-c.Done() // after a moment, though the peer keeps the connection
}

func TestOverTLS(t *testing.T) {
	a, b := securedPair(t)
	s, ended := serve(t, b, Config{Serve: echo})
	c := dial(t, a, Config{})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			want := pattern(i * 100000)
			if _, body, err := ask(c, &post, "", want); err != nil || !bytes.Equal(body, want) {
				t.Errorf("%d of %d bytes, %v", len(body), len(want), err)
			}
		})
	}
	all.Wait()
	s.Drain()
	<-c.Done()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestRunTakesWhatWasReadBefore(t *testing.T) {
	a, b := pair(t)
	c := dial(t, a, Config{})
	one := open(t, c)
	defer one.Close()
	if err := one.SendRequest(&post, nil, []byte("hello"), true); err != nil {
		t.Fatal(err)
	}
	already := make([]byte, 40) // ends within a frame
	if _, err := io.ReadFull(b, already); err != nil {
		t.Fatal(err)
	}
	s := NewServer(b, Config{Serve: echo})
	go func() { _ = s.Run(already) }()
	if err := one.AwaitHead(); err != nil {
		t.Fatal(err)
	}
	if body, err := readAll(one); err != nil || string(body) != "hello" {
		t.Errorf("%q, %v", body, err)
	}
	c.Close()
	<-s.Done()
}

func TestExtendedConnectAndLargeHeads(t *testing.T) {
	type seen struct {
		protocol string
		large    bool
	}
	got := make(chan seen, 1)
	_, c := connect(t, Config{
		Protocol: http2.Config{ExtendedConnect: true, HeadBytes: 2000},
		Serve: func(s *Stream) {
			got <- seen{string(s.Protocol()), s.TooLarge()}
			answer(s)
		},
	}, Config{})
	head := http2.RequestHead{Method: []byte("CONNECT"), Scheme: []byte("http"), Authority: []byte("shop"), Path: []byte("/"), Protocol: []byte("websocket")}
	if _, _, err := ask(c, &head, "", nil); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s.protocol != "websocket" || s.large {
		t.Errorf("%+v", s)
	}
	if _, _, err := ask(c, &get, "x-big: "+string(bytes.Repeat([]byte("a"), 3000))+"\r\n", nil); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s.protocol != "" || !s.large {
		t.Errorf("%+v", s)
	}
}

func TestWriteAfterTheEnd(t *testing.T) {
	_, c := connect(t, Config{Serve: echo}, Config{})
	s := open(t, c)
	defer s.Close()
	if err := s.SendRequest(&post, nil, []byte("all"), true); err != nil {
		t.Fatal(err)
	}
	if s.Write([]byte("more"), false) == nil || s.SendTrailers(nil) == nil {
		t.Error("written after the end")
	}
}

// An idle connection holds no buffers.
func TestIdleConnectionHoldsNoBuffers(t *testing.T) {
	s, c := connect(t, Config{Serve: echo}, Config{})
	if _, _, err := ask(c, &post, "", pattern(500000)); err != nil {
		t.Fatal(err)
	}
	until(t, "the streams are over", func() bool { return s.Active() == 0 })
	for _, c := range []*Conn{s, c} {
		c.Expire(time.Now().Add(2 * tick))
		until(t, "no buffers", func() bool {
			c.Expire(time.Now().Add(3 * tick))
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.memory == nil && len(c.free) == 0
		})
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("under the race detector sync.Pool forgets at random")
	}
	body := pattern(300)
	_, c := connect(t, Config{Serve: func(s *Stream) {
		for {
			if n, ended := s.Ready(); n == 0 && ended {
				break
			}
			if _, err := s.Next(); err != nil {
				break
			}
		}
		_ = s.SendResponse(200, answerLines, answerBody, false)
		_ = s.SendTrailers(answerLines)
	}}, Config{})
	once := func() {
		s, err := c.Open()
		if err != nil {
			t.Fatal(err)
		}
		s.SetDeadline(time.Now().Add(20 * time.Second))
		if err := s.SendRequest(&post, answerLines, body, true); err != nil {
			t.Fatal(err)
		}
		if err := s.AwaitHead(); err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = s.Next()
		}
		if err != io.EOF || s.Trailers() == nil {
			t.Fatal(err)
		}
		s.Close()
	}
	for range 500 {
		once()
	}
	if n := testing.AllocsPerRun(2000, once); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
}
