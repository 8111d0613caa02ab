package mux

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	judge "golang.org/x/net/http2"

	"github.com/weftmesh/weft/wire/http2"
)

// owned runs Expire as an owner does, until stop is called.
func owned(c *Conn) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		every := time.NewTicker(100 * time.Millisecond)
		defer every.Stop()
		for {
			select {
			case now := <-every.C:
				c.Expire(now)
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}

// bubble runs a test on fake time with a server and a client on a pipe.
func bubble(t *testing.T, server, client Config, test func(t *testing.T, s, c *Conn)) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		s, _ := serve(t, b, server)
		c := dial(t, a, client)
		stopServer, stopClient := owned(s), owned(c)
		defer func() { stopClient(); stopServer() }()
		test(t, s, c)
	})
}

func TestDeadlineIsExact(t *testing.T) {
	bubble(t, Config{Serve: func(s *Stream) { _, _ = s.Next() }}, Config{}, func(t *testing.T, _, c *Conn) {
		for _, wait := range []time.Duration{3 * time.Second, 7 * time.Second, 5 * time.Second, 20 * time.Millisecond} { // a stream with a timer that runs
			begin := time.Now()
			s := open(t, c)
			s.SetDeadline(begin.Add(time.Hour))
			s.SetDeadline(begin.Add(wait / 2))
			s.SetDeadline(begin.Add(wait))
			if err := s.SendRequest(&post, nil, nil, false); err != nil {
				t.Fatal(err)
			}
			if err := s.AwaitHead(); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != wait {
				t.Errorf("%v after %v, want %v", err, time.Since(begin), wait)
			}
			if err := s.Write([]byte("more"), true); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("writing: %v", err)
			}
			s.Close()
		}
		s := open(t, c)
		s.SetDeadline(time.Now().Add(-time.Second))
		if err := s.SendRequest(&post, nil, nil, false); !errors.Is(err, os.ErrDeadlineExceeded) || s.Sent() {
			t.Errorf("%v", err)
		}
		s.SetDeadline(time.Time{})
		if err := s.SendRequest(&post, nil, nil, false); err != nil {
			t.Error("no deadline any more, but", err)
		}
		s.Close()
	})
}

func TestDeadlineEndsAWrite(t *testing.T) {
	bubble(t, Config{Serve: func(s *Stream) { time.Sleep(time.Minute) }}, Config{}, func(t *testing.T, _, c *Conn) { //weft:sleep fake time
		s := open(t, c)
		defer s.Close()
		begin := time.Now()
		s.SetDeadline(begin.Add(2 * time.Second))
		err := s.SendRequest(&post, nil, pattern(1<<20), true) // nobody reads it
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

func TestInterruptEndsBothSides(t *testing.T) {
	bubble(t, Config{Serve: func(s *Stream) { time.Sleep(time.Minute) }}, Config{}, func(t *testing.T, _, c *Conn) { //weft:sleep fake time
		s := open(t, c)
		defer s.Close()
		if err := s.SendRequest(&post, nil, nil, false); err != nil {
			t.Fatal(err)
		}
		wrote := make(chan error, 1)
		go func() { wrote <- s.Write(pattern(1<<20), true) }()
		go func() { time.Sleep(time.Second); s.Interrupt() }() //weft:sleep fake time
		if err := s.AwaitHead(); !errors.Is(err, ErrInterrupted) {
			t.Errorf("%v", err)
		}
		if err := <-wrote; !errors.Is(err, ErrInterrupted) {
			t.Errorf("%v", err)
		}
	})
}

func TestIdleConnectionEnds(t *testing.T) {
	for name, tc := range map[string]struct{ server, client time.Duration }{
		"by the server": {10 * time.Second, time.Hour},
		"by the client": {time.Hour, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{Serve: answer, Idle: tc.server}, Config{Idle: tc.client}, func(t *testing.T, s, c *Conn) {
				for range 3 { // while it is used now and then it stays
					if _, _, err := ask(c, &get, "", nil); err != nil {
						t.Fatal(err)
					}
					time.Sleep(8 * time.Second) //weft:sleep fake time
				}
				begin := time.Now()
				<-s.Done()
				<-c.Done()
				if waited := time.Since(begin); waited < 1800*time.Millisecond || waited > 3500*time.Millisecond {
					t.Errorf("it ended after %v", waited)
				}
			})
		})
	}
}

func TestStreamWithoutProgressIsReset(t *testing.T) {
	var refused counter
	bubble(t, Config{Serve: func(s *Stream) { _, _ = readAll(s) }}, Config{Stall: 10 * time.Second, Refused: refused.count}, func(t *testing.T, _, c *Conn) {
		s := open(t, c)
		defer s.Close()
		if err := s.SendRequest(&post, nil, nil, false); err != nil {
			t.Fatal(err)
		}
		for range 5 { // a byte now and then is progress
			time.Sleep(8 * time.Second) //weft:sleep fake time
			if err := s.Write([]byte("x"), false); err != nil {
				t.Fatal(err)
			}
		}
		var reset *ResetError
		if err := s.AwaitHead(); !errors.As(err, &reset) || reset.Remote || refused.of("stall") != 1 {
			t.Errorf("%v, %v", err, refused.n)
		}
	})
}

// An attacker asks for much and opens no window (CVE-2019-9517).
func TestWindowStall(t *testing.T) {
	var refused counter
	wrote := make(chan error, 1)
	r, c, _ := rawClient(t, Config{Refused: refused.count, Serve: func(s *Stream) { wrote <- s.SendResponse(200, nil, pattern(1000), true) }},
		judge.Setting{ID: judge.SettingInitialWindowSize, Val: 10})
	r.request(1, true)
	r.await(judge.FrameData)
	c.Expire(time.Now().Add(defaultStall - time.Minute))
	r.must(r.WriteWindowUpdate(1, 1))
	r.await(judge.FrameData)
	c.Expire(time.Now().Add(2*defaultStall - 2*time.Minute))
	if n := refused.of("window_stall"); n != 0 {
		t.Errorf("a byte is progress")
	}
	until(t, "the write is over", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return !c.writing }) // time jumps here
	c.Expire(time.Now().Add(3 * defaultStall))
	r.awaitReset(1, judge.ErrCodeCancel)
	var reset *ResetError
	if err := <-wrote; !errors.As(err, &reset) || reset.Code != http2.Cancel || refused.of("window_stall") != 1 {
		t.Errorf("%v, %v", err, refused.n)
	}
}

// A peer that does not read its socket loses the connection, and what waits for it
// is bounded until then.
func TestPeerThatTakesNoBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refused counter
		a, b := net.Pipe()
		s, ended := serve(t, b, Config{Stall: 10 * time.Second, Refused: refused.count, Serve: func(s *Stream) {
			if err := s.SendResponse(200, nil, pattern(1<<20), true); !errors.Is(err, ErrGone) {
				t.Errorf("%v", err)
			}
		}})
		stop := owned(s)
		defer stop()
		r := &raw{t, a, judge.NewFramer(a, a)}
		go func() { _, _ = io.ReadFull(a, make([]byte, 9)) }() // of the SETTINGS, and no more
		_, _ = io.WriteString(a, judge.ClientPreface)
		r.must(r.WriteSettings(judge.Setting{ID: judge.SettingInitialWindowSize, Val: 1 << 30}))
		r.must(r.WriteWindowUpdate(0, 1<<30))
		for i := range uint32(50) {
			r.request(2*i+1, true)
		}
		synctest.Wait()
		s.mu.Lock()
		if n := s.h2.Pending(); n < mostPending/2 || n > mostPending+turn+(64<<10) {
			t.Errorf("%d bytes wait", n)
		}
		s.mu.Unlock()
		begin := time.Now()
		err := <-ended
		if waited := time.Since(begin); !errors.Is(err, errStalled) || waited < 10*time.Second || waited > 11*time.Second {
			t.Errorf("%v after %v", err, waited)
		}
		if refused.of("write_stall") != 1 {
			t.Errorf("counted %v", refused.n)
		}
		a.Close()
	})
}

func TestWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w Workers
		ran := make(chan *Stream, 4)
		hold := make(chan struct{})
		job := func(s *Stream) { <-hold; ran <- s }
		streams := []*Stream{{}, {}, {}}
		for _, s := range streams {
			w.Go(job, s)
		}
		close(hold)
		synctest.Wait()
		if len(ran) != 3 || len(w.idle) != 3 {
			t.Fatalf("%d ran, %d are idle", len(ran), len(w.idle))
		}
		top := w.idle[2]
		for range 5 { // the one that worked last works again
			w.Expire(time.Now())
			time.Sleep(4 * time.Second) //weft:sleep fake time
			<-ran
			w.Go(job, streams[0])
			synctest.Wait()
			if w.idle[len(w.idle)-1] != top {
				t.Fatal("another worker worked")
			}
		}
		w.Expire(time.Now())
		if len(w.idle) != 1 || w.idle[0] != top {
			t.Errorf("%d workers are idle", len(w.idle))
		}
		w.Go(job, streams[1])
		w.Close()
		for range 3 {
			<-ran
		}
		select {
		case <-ran:
		default:
			t.Error("Close did not wait for what runs")
		}
	})
}
