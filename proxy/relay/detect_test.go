package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// step is something that a peer says some time after the last thing; "" is its end.
type step struct {
	after time.Duration
	text  string
}

// act plays steps on the peer's end of a connection.
func act(c net.Conn, steps []step) {
	for _, s := range steps {
		time.Sleep(s.after) //weft:sleep the peer is slow on purpose; fake time, under synctest
		if s.text == "" {
			_ = c.(halfCloser).CloseWrite()
			return
		}
		if _, err := io.WriteString(c, s.text); err != nil {
			return // the other end was closed: its right
		}
	}
}

func all(steps []step) (text string) {
	for _, s := range steps {
		text += s.text
	}
	return text
}

var errNoRoute = errors.New("no route")

const (
	ms       = time.Millisecond
	get      = "GET / HTTP/1.1\r\n\r\n"
	greeting = "220 ready\r\n"
)

var detections = []struct {
	name           string
	detector       Detector
	client, server []step
	read           string        // was read from the client before
	dials          time.Duration // how long dialling takes
	noDial         error         // dialling fails
	clientOnly     bool
	cancel         time.Duration // when the context ends

	kind       Kind
	sure       bool
	fromClient string // "": all that the client says
	takes      time.Duration
	dialled    bool
	err        error
}{
	{name: "request at once", client: []step{{0, get}}, kind: HTTP1, sure: true},
	{name: "hello at once", client: []step{{0, hello}}, kind: TLS, sure: true},
	{name: "request before quiet ends", client: []step{{4 * ms, get}}, kind: HTTP1, sure: true, takes: 4 * ms},
	{name: "request byte by byte, slowly", client: []step{{ms, "G"}, {time.Second, "E"}, {time.Second, "T / HTT"}, {time.Second, "P/1.1\r\n"}, {0, "\r\n"}},
		kind: HTTP1, sure: true, fromClient: "GET / HTTP/1.1\r\n", takes: 3*time.Second + ms},
	{name: "binary, then more", client: []step{{0, "\x00"}, {ms, "\x01"}}, kind: Raw, sure: true, fromClient: "\x00"},
	{name: "request after quiet", client: []step{{6 * ms, get}}, kind: HTTP1, sure: true, takes: 6 * ms, dialled: true},
	{name: "request while dialling hangs", client: []step{{20 * ms, get}}, dials: time.Hour, kind: HTTP1, sure: true, takes: 20 * ms},
	{name: "something raw while dialling", client: []step{{20 * ms, "\x00"}}, dials: time.Second, kind: Raw, sure: true, takes: time.Second + 5*ms, dialled: true},
	{name: "something raw, dialling fails", client: []step{{20 * ms, "\x00"}}, dials: time.Second, noDial: errNoRoute, kind: Raw, sure: true, takes: time.Second + 5*ms},

	{name: "server first", server: []step{{0, greeting}}, kind: ServerFirst, sure: true, takes: 5 * ms, dialled: true},
	{name: "server first, far and slow", server: []step{{300 * ms, greeting}}, dials: 100 * ms, kind: ServerFirst, sure: true, takes: 405 * ms, dialled: true},
	{name: "server first, dialled at once", detector: Detector{Quiet: -1}, server: []step{{0, greeting}}, kind: ServerFirst, sure: true, dialled: true},
	{name: "server first, longer quiet", detector: Detector{Quiet: time.Second}, server: []step{{0, greeting}}, kind: ServerFirst, sure: true, takes: time.Second, dialled: true},
	{name: "both: the client has only begun", client: []step{{6 * ms, "EH"}}, server: []step{{2 * ms, greeting}}, kind: ServerFirst, sure: true, takes: 7 * ms, dialled: true},

	{name: "nobody", kind: Unknown, takes: 10 * time.Second, dialled: true},
	{name: "nobody, less patience", detector: Detector{Patience: time.Second}, kind: Unknown, takes: time.Second, dialled: true},
	{name: "nobody, the client alone", clientOnly: true, kind: Unknown, takes: 10 * time.Second},
	{name: "a late request, the client alone", client: []step{{9 * time.Second, get}}, clientOnly: true, kind: HTTP1, sure: true, takes: 9 * time.Second},
	{name: "begun and never ended", client: []step{{0, "GE"}}, kind: Raw, takes: 10 * time.Second},
	{name: "begun after quiet and never ended", client: []step{{6 * ms, "GE"}}, kind: Raw, takes: 10 * time.Second, dialled: true},

	{name: "client ends at once", client: []step{{0, ""}}, kind: Raw},
	{name: "client ends later", client: []step{{time.Second, ""}}, kind: Raw, takes: time.Second, dialled: true},
	{name: "client ends in the middle", client: []step{{0, "GET / HT"}, {ms, ""}}, kind: Raw, takes: ms},
	{name: "server ends", server: []step{{time.Second, ""}}, kind: ServerFirst, takes: time.Second + 5*ms, dialled: true},
	{name: "server says a word and ends", server: []step{{0, "x"}, {0, ""}}, kind: ServerFirst, sure: true, takes: 5 * ms, dialled: true},

	{name: "read before: all", read: get, kind: HTTP1, sure: true, fromClient: get},
	{name: "read before: some", read: "GET / ", client: []step{{ms, "HTTP/1.1\r\n"}}, kind: HTTP1, sure: true, fromClient: "GET / HTTP/1.1\r\n", takes: ms},
	{name: "read before: some, dialled at once", detector: Detector{Quiet: -1}, read: "GET / ", client: []step{{ms, "HTTP/1.1\r\n"}},
		kind: HTTP1, sure: true, fromClient: "GET / HTTP/1.1\r\n", takes: ms},

	{name: "dialling fails", dials: time.Second, noDial: errNoRoute, takes: time.Second + 5*ms, err: errNoRoute},
	{name: "dialling hangs", dials: time.Hour, takes: 10 * time.Second, err: context.DeadlineExceeded},
	{name: "context ends", cancel: time.Second, takes: time.Second, err: context.Canceled, dialled: true},
	{name: "context ends, the client alone", cancel: time.Second, clientOnly: true, takes: time.Second, err: context.Canceled},
	{name: "context ends while dialling", cancel: time.Second, dials: time.Hour, takes: time.Second, err: context.Canceled},
	{name: "context has ended", cancel: -1, client: []step{{time.Second, get}}, err: context.Canceled},
}

func TestDetect(t *testing.T) {
	for _, c := range detections {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, inner := newDoublePipe()
				server, outer := newDoublePipe()
				ctx, cancel := context.WithCancel(t.Context())
				if c.cancel < 0 {
					cancel()
				} else if c.cancel > 0 {
					defer time.AfterFunc(c.cancel, cancel).Stop()
				}
				var actors sync.WaitGroup
				dialled := false
				dial := func(ctx context.Context) (net.Conn, error) {
					select {
					case <-time.After(c.dials):
					case <-ctx.Done():
						return nil, ctx.Err()
					}
					if c.noDial != nil {
						return nil, c.noDial
					}
					dialled = true
					actors.Go(func() { act(server, c.server) })
					return outer, nil
				}
				if c.clientOnly {
					dial = nil
				}
				actors.Go(func() { act(client, c.client) })
				began := time.Now()
				buf := append(make([]byte, 0, 4<<10), c.read...)
				v, err := c.detector.Detect(ctx, inner, buf, dial)
				if took := time.Since(began); took != c.takes {
					t.Errorf("took %v; want %v", took, c.takes)
				}
				if !errors.Is(err, c.err) || v.Kind != c.kind || v.Sure != c.sure {
					t.Errorf("%v, sure %v, %v; want %v, sure %v, %v", v.Kind, v.Sure, err, c.kind, c.sure, c.err)
				}
				if dialled != c.dialled || (v.Server != nil) != (c.dialled && c.err == nil) {
					t.Errorf("dialled %v, server %v; want %v", dialled, v.Server, c.dialled)
				}
				want := c.fromClient
				if want == "" {
					want = all(c.client)
				}
				if c.err == nil && string(v.FromClient) != want {
					t.Errorf("client said %q; want %q", v.FromClient, want)
				}
				if c.err == nil && (c.kind == ServerFirst || !c.dialled) && string(v.FromServer) != all(c.server) {
					t.Errorf("server said %q; want %q", v.FromServer, all(c.server))
				}
				if c.err != nil && c.dialled {
					hearEnd(t, server) // it was closed
				}
				cancel()
				for _, p := range []doublePipe{client, inner, server, outer} {
					_ = p.Close()
				}
				actors.Wait()
			})
		})
	}
}

// TestDetectLeavesNoDeadline: who goes on may wait as long as it likes.
func TestDetectLeavesNoDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, inner := newDoublePipe()
		server, outer := newDoublePipe()
		v, err := Detector{}.Detect(t.Context(), inner, make([]byte, 0, 100), func(context.Context) (net.Conn, error) { return outer, nil })
		if err != nil || v.Kind != Unknown {
			t.Fatal(v.Kind, err)
		}
		for _, c := range [][2]net.Conn{{client, inner}, {server, v.Server}} {
			go act(c[0], []step{{time.Hour, "late"}})
			b := make([]byte, 4)
			if n, err := c[1].Read(b); string(b[:n]) != "late" {
				t.Errorf("%q, %v", b[:n], err)
			}
			_ = c[0].Close()
			_ = c[1].Close()
		}
	})
}

// TestCutLasts: a wait that begins after everything was called off is over at once.
func TestCutLasts(t *testing.T) {
	_, inner := tcpPair(t)
	x := detection{client: inner}
	x.cut()
	until := time.Now().Add(patience)
	x.wait(until)
	if _, err := inner.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(until) {
		t.Error(err)
	}
}

// TestDetectKeepsAll: whatever the schedule, what was detected and what follows is
// all that each side said, and the relay carries it on.
func TestDetectKeepsAll(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	steps := func(text string) []step {
		var s []step
		for len(text) > 0 {
			n := 1 + rng.IntN(len(text))
			s = append(s, step{time.Duration(rng.IntN(12)) * ms / 4, text[:n]})
			text = text[n:]
		}
		return append(s, step{time.Duration(rng.IntN(3)) * ms, ""})
	}
	starts := []string{"", get, hello, preface, "\x00\x01binary", "EHLO a\r\n", "GET", greeting}
	for range 500 {
		question, answer := steps(starts[rng.IntN(len(starts))]), steps(starts[rng.IntN(len(starts))])
		synctest.Test(t, func(t *testing.T) {
			client, inner := newDoublePipe()
			server, outer := newDoublePipe()
			dial := func(context.Context) (net.Conn, error) { return outer, nil }
			var actors sync.WaitGroup
			defer actors.Wait()
			actors.Go(func() { act(client, question) })
			actors.Go(func() { act(server, answer) })
			v, err := Detector{Patience: time.Second}.Detect(t.Context(), inner, make([]byte, 0, 4<<10), dial)
			if err != nil {
				t.Fatal(err)
			}
			if v.Server == nil {
				v.Server = outer
			}
			heard := make(chan []byte, 2)
			go func() { b, _ := io.ReadAll(server); heard <- b }()
			actors.Go(func() { Run(Side{inner, v.FromClient}, Side{v.Server, v.FromServer}, Config{}) })
			byClient, err := io.ReadAll(client)
			if byServer := <-heard; err != nil || string(byServer) != all(question) || string(byClient) != all(answer) {
				t.Errorf("%v: server heard %q of %q; client %q of %q, %v", v.Kind, byServer, all(question), byClient, all(answer), err)
			}
		})
	}
}

// scripted is a connection whose reads are written down.
type scripted struct {
	net.Conn
	reads  []func([]byte) (int, error)
	closed bool
}

func (s *scripted) Read(b []byte) (int, error) {
	next := s.reads[0]
	s.reads = s.reads[1:]
	return next(b)
}

func (s *scripted) SetReadDeadline(time.Time) error { return nil }
func (s *scripted) Close() error                    { s.closed = true; return nil }

func TestDetectOverSockets(t *testing.T) {
	dialTo := func(c net.Conn) func(context.Context) (net.Conn, error) {
		return func(context.Context) (net.Conn, error) { return c, nil }
	}
	buf := make([]byte, 0, 4<<10)
	t.Run("request over TLS", func(t *testing.T) {
		client, inner := tlsPair(t)
		say(t, client, get)
		v, err := Detector{}.Detect(t.Context(), inner, buf, nil)
		if err != nil || v.Kind != HTTP1 || string(v.FromClient) != get {
			t.Errorf("%v, %q, %v", v.Kind, v.FromClient, err)
		}
	})
	t.Run("server first, to a client of TLS, which goes on", func(t *testing.T) {
		client, inner := tlsPair(t)
		server, outer := tcpPair(t)
		say(t, server, greeting)
		v, err := Detector{}.Detect(t.Context(), inner, buf, dialTo(outer))
		if err != nil || v.Kind != ServerFirst || string(v.FromServer) != greeting {
			t.Fatalf("%v, %q, %v", v.Kind, v.FromServer, err)
		}
		_, result := start(t, Side{Conn: inner}, Side{v.Server, v.FromServer}, Config{})
		hear(t, client, greeting)
		say(t, client, "EHLO a\r\n") // the deadline that ended the wait has harmed nothing
		hear(t, server, "EHLO a\r\n")
		_, _ = client.Close(), server.Close()
		wait(t, result)
	})
	t.Run("client is reset", func(t *testing.T) {
		client, inner := tcpPair(t)
		server, outer := tcpPair(t)
		resetTCP(t, client)
		_, err := Detector{}.Detect(t.Context(), inner, buf, dialTo(outer))
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		_ = server.Close()
	})
	t.Run("client is reset after quiet", func(t *testing.T) {
		client, inner := tcpPair(t)
		server, outer := tcpPair(t)
		dial := func(context.Context) (net.Conn, error) {
			resetTCP(t, client)
			return outer, nil
		}
		_, err := Detector{}.Detect(t.Context(), inner, buf, dial)
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		hearEnd(t, server)
	})
	t.Run("server is reset when the client speaks", func(t *testing.T) {
		failed := make(chan struct{})
		client, server := &scripted{}, &scripted{}
		client.reads = []func([]byte) (int, error){
			func([]byte) (int, error) { return 0, os.ErrDeadlineExceeded },
			func(b []byte) (int, error) { <-failed; return copy(b, get), nil },
		}
		server.reads = []func([]byte) (int, error){
			func([]byte) (int, error) { close(failed); return 0, syscall.ECONNRESET },
		}
		v, err := Detector{}.Detect(t.Context(), client, buf, dialTo(server))
		if err != nil || v.Kind != HTTP1 || string(v.FromClient) != get {
			t.Errorf("%v, %q, %v", v.Kind, v.FromClient, err)
		}
		if v.Server != nil || !server.closed {
			t.Error("a relay would read the reset connection's end as a clean one")
		}
	})
	t.Run("server is reset", func(t *testing.T) {
		_, inner := tcpPair(t)
		server, outer := tcpPair(t)
		resetTCP(t, server)
		v, err := Detector{}.Detect(t.Context(), inner, buf, dialTo(outer))
		if !errors.Is(err, syscall.ECONNRESET) || v.Server != nil {
			t.Error(v.Server, err)
		}
	})
}

// TestDetectFullBuffer: a buffer that is too small makes Raw of what it cannot tell.
func TestDetectFullBuffer(t *testing.T) {
	client, inner := tcpPair(t)
	say(t, client, get)
	v, err := Detector{}.Detect(t.Context(), inner, make([]byte, 0, 8), nil)
	if err != nil || v.Kind != Raw || v.Sure || !bytes.Equal(v.FromClient, []byte(get[:8])) {
		t.Errorf("%v, sure %v, %q, %v", v.Kind, v.Sure, v.FromClient, err)
	}
	hear(t, inner, get[8:])
}

func TestKindNames(t *testing.T) {
	for k := Unknown; k <= ServerFirst; k++ {
		if k.String() == "" {
			t.Errorf("kind %d has no name", k)
		}
	}
}
