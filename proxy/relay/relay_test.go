package relay

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests.
const patience = 10 * time.Second

// tcpPair returns the two ends of a connection over loopback.
func tcpPair(t testing.TB) (outer, inner *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	outer, inner = c.(*net.TCPConn), a.(*net.TCPConn)
	_ = outer.SetDeadline(time.Now().Add(6 * patience))
	t.Cleanup(func() { _, _ = outer.Close(), inner.Close() })
	return outer, inner
}

var serverTLS = sync.OnceValue(func() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
})

// tlsPair is tcpPair after a handshake.
func tlsPair(t testing.TB) (outer, inner *tls.Conn) {
	t.Helper()
	o, i := tcpPair(t)
	return handshake(t, o, i)
}

func handshake(t testing.TB, o, i net.Conn) (outer, inner *tls.Conn) {
	t.Helper()
	outer = tls.Client(o, &tls.Config{InsecureSkipVerify: true})
	inner = tls.Server(i, serverTLS())
	done := make(chan error, 1)
	go func() { done <- inner.Handshake() }()
	if err := errors.Join(outer.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	return outer, inner
}

// halfCloser is what both ends of all lanes in these tests can do.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// wrapped hides what a connection is, as the wrappers of other packages do.
type wrapped struct{ halfCloser }

// lanes are the sorts of connections that a relay may have on a side. Each returns
// the peer's end and the relay's.
var lanes = map[string]func(t testing.TB) (outer halfCloser, inner Side){
	"tcp": func(t testing.TB) (halfCloser, Side) {
		outer, inner := tcpPair(t)
		return outer, Side{Conn: inner}
	},
	"tls": func(t testing.TB) (halfCloser, Side) {
		outer, inner := tlsPair(t)
		return outer, Side{Conn: inner}
	},
	"wrapped": func(t testing.TB) (halfCloser, Side) {
		outer, inner := tcpPair(t)
		return outer, Side{Conn: wrapped{inner}}
	},
	"accepted": func(t testing.TB) (halfCloser, Side) {
		outer, inner := tcpPair(t)
		if _, err := outer.Write([]byte("PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n")); err != nil {
			t.Fatal(err)
		}
		a, err := AcceptProxy(inner, patience)
		if err != nil {
			t.Fatal(err)
		}
		return outer, Side{Conn: a}
	},
}

// eachPair runs a test with every sort of client and server.
func eachPair(t *testing.T, test func(t *testing.T, client, server halfCloser, c, s Side)) {
	for from, makeClient := range lanes {
		for to, makeServer := range lanes {
			t.Run(from+" to "+to, func(t *testing.T) {
				client, c := makeClient(t)
				server, s := makeServer(t)
				test(t, client, server, c, s)
			})
		}
	}
}

// start runs a relay until the test ends, at the latest.
func start(t testing.TB, client, server Side, c Config) (r *Relay, result <-chan Result) {
	t.Helper()
	r = New(client, server, c)
	done := make(chan Result, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		done <- r.Run()
	}()
	t.Cleanup(func() {
		r.Interrupt()
		<-ended
	})
	return r, done
}

func wait(t testing.TB, result <-chan Result) Result {
	t.Helper()
	select {
	case r := <-result:
		return r
	case <-time.After(patience):
		t.Fatal("the relay does not end")
		panic("unreachable")
	}
}

// say writes, and hear reads exactly, what is expected.
func say(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func hear(t testing.TB, c net.Conn, want string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("heard %q, %v; want %q", got[:n], err, want)
	}
}

// eventually polls until something is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not so: %s", what)
		}
	}
}

// hearEnd wants a clean end.
func hearEnd(t testing.TB, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("heard %d bytes, %v; want EOF", n, err)
	}
}

// hearReset wants an end that is not clean.
func hearReset(t testing.TB, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(c)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("heard %d bytes, then %v; want a reset", len(rest), err)
	}
}

func (r Result) String() string {
	return fmt.Sprintf("%s, %d from client, %d from server, %v", r.Reason, r.FromClient, r.FromServer, r.Err)
}

func checkResult(t testing.TB, got Result, reason string, fromClient, fromServer int64) {
	t.Helper()
	if got.Reason != reason || got.FromClient != fromClient || got.FromServer != fromServer || (got.Err != nil) != (reason == Reset) {
		t.Errorf("%v; want %s, %d, %d", got, reason, fromClient, fromServer)
	}
}

// TestHalfClose: each side ends when it wants to, hears the rest, and what was read
// before comes first.
func TestHalfClose(t *testing.T) {
	eachPair(t, func(t *testing.T, client, server halfCloser, c, s Side) {
		_ = c.Conn.SetDeadline(time.Now().Add(-time.Second)) // left behind by who read the head
		c.Already, s.Already = []byte("first "), []byte("greeting ")
		r, result := start(t, c, s, Config{})
		say(t, client, "question")
		hear(t, server, "first question")
		if err := client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		hearEnd(t, server)
		say(t, server, "answer")
		hear(t, client, "greeting answer")
		eventually(t, "14 and 15 bytes are counted", func() bool { return r.FromClient() == 14 && r.FromServer() == 15 })
		say(t, server, " after a while")
		hear(t, client, " after a while")
		if err := server.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		hearEnd(t, client)
		checkResult(t, wait(t, result), ClientClosed, 14, 29)
	})
}

func TestServerClosesFirst(t *testing.T) {
	eachPair(t, func(t *testing.T, client, server halfCloser, c, s Side) {
		_, result := start(t, c, s, Config{})
		say(t, server, "goodbye")
		if err := server.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		hear(t, client, "goodbye")
		hearEnd(t, client)
		say(t, client, "but")
		hear(t, server, "but")
		if err := client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		hearEnd(t, server)
		checkResult(t, wait(t, result), ServerClosed, 3, 7)
	})
}

// resetTCP makes the peer's end of a lane disappear with RST.
func resetTCP(t *testing.T, c net.Conn) {
	t.Helper()
	if secured, ok := c.(*tls.Conn); ok {
		c = secured.NetConn()
	}
	tcp := c.(*net.TCPConn)
	if err := errors.Join(tcp.SetLinger(0), tcp.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestReset: a reset comes out as a reset, on both sides, whoever began and whether
// or not something was said.
func TestReset(t *testing.T) {
	eachPair(t, func(t *testing.T, client, server halfCloser, c, s Side) {
		if _, ok := s.Conn.(wrapped); ok {
			t.Skip("a wrapper that hides its socket can only be closed")
		}
		_, result := start(t, c, s, Config{})
		say(t, client, "half a que")
		hear(t, server, "half a que")
		resetTCP(t, client)
		hearReset(t, server)
		got := wait(t, result)
		checkResult(t, got, Reset, 10, 0)
		if !strings.HasPrefix(got.Err.Error(), "read from client: ") || !errors.Is(got.Err, syscall.ECONNRESET) {
			t.Errorf("error %v", got.Err)
		}
	})
	eachPair(t, func(t *testing.T, client, server halfCloser, c, s Side) {
		if _, ok := c.Conn.(wrapped); ok {
			t.Skip("a wrapper that hides its socket can only be closed")
		}
		_, result := start(t, c, s, Config{})
		if err := client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		hearEnd(t, server)
		resetTCP(t, server)
		hearReset(t, client)
		checkResult(t, wait(t, result), Reset, 0, 0)
	})
}

// TestResetHeardByTheWriter: the kernel tells of a reset once. When it has told the
// lane that writes, the one that reads must not take it for an end.
func TestResetHeardByTheWriter(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("isReset is for Linux")
	}
	client, c := tcpPair(t)
	server, s := tcpPair(t)
	resetTCP(t, client)
	eventually(t, "the reset has come", func() bool { return isReset(c) })
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	_, result := start(t, Side{Conn: c}, Side{Conn: s}, Config{})
	hearReset(t, server)
	checkResult(t, wait(t, result), Reset, 0, 0)
}

// TestTruncatedTLS: a record that was cut off is not the end of what was said.
func TestTruncatedTLS(t *testing.T) {
	client, inner := tlsPair(t)
	server, s := tcpPair(t)
	_, result := start(t, Side{Conn: inner}, Side{Conn: s}, Config{})
	say(t, client, "one")
	hear(t, server, "one")
	tcp := client.NetConn().(*net.TCPConn)
	if _, err := tcp.Write([]byte{23, 3, 3, 0, 100, 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	_ = tcp.CloseWrite()
	hearReset(t, server)
	checkResult(t, wait(t, result), Reset, 3, 0)
}

// TestCutTLS: an end that TLS did not announce is not the end of what was said,
// where the peer is known to announce it.
func TestCutTLS(t *testing.T) {
	cuttable := func() (outer, inner *tls.Conn) {
		o, i := tcpPair(t)
		return handshake(t, o, &Cuttable{Conn: i})
	}
	t.Run("cut", func(t *testing.T) {
		client, inner := cuttable()
		server, s := tcpPair(t)
		_, result := start(t, Side{Conn: inner}, Side{Conn: s}, Config{})
		say(t, client, "one")
		hear(t, server, "one")
		if err := client.NetConn().(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		hearReset(t, server)
		if got := wait(t, result); got.Reason != Reset || !errors.Is(got.Err, errCut) {
			t.Errorf("%+v", got)
		}
	})
	t.Run("announced", func(t *testing.T) {
		client, inner := cuttable()
		server, s := tcpPair(t)
		_, result := start(t, Side{Conn: inner}, Side{Conn: s}, Config{})
		say(t, client, "one")
		if err := errors.Join(client.CloseWrite(), client.NetConn().(*net.TCPConn).CloseWrite()); err != nil {
			t.Fatal(err)
		}
		hear(t, server, "one")
		hearEnd(t, server)
		if err := server.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		checkResult(t, wait(t, result), ClientClosed, 3, 0)
	})
	t.Run("aborted", func(t *testing.T) {
		client, inner := cuttable()
		Abort(inner)
		hearReset(t, client)
	})
}

func TestInterrupt(t *testing.T) {
	eachPair(t, func(t *testing.T, client, server halfCloser, c, s Side) {
		_, hidden := s.Conn.(wrapped)
		r, result := start(t, c, s, Config{})
		say(t, client, "question")
		hear(t, server, "question")
		r.Interrupt()
		r.Interrupt()
		if !hidden {
			hearReset(t, server)
		}
		checkResult(t, wait(t, result), Interrupted, 8, 0)
		r.Interrupt() // too late
	})
}

func TestInterruptBeforeRun(t *testing.T) {
	client, c := tcpPair(t)
	_, s := tcpPair(t)
	r := New(Side{Conn: c}, Side{Conn: s}, Config{})
	r.Interrupt()
	checkResult(t, r.Run(), Interrupted, 0, 0)
	hearReset(t, client)
}

// TestInterruptStalled: who does not read does not hold the relay up.
func TestInterruptStalled(t *testing.T) {
	for name, makeLane := range lanes {
		t.Run(name, func(t *testing.T) {
			client, c := tcpPair(t)
			_, s := makeLane(t)
			r, result := start(t, Side{Conn: c}, s, Config{})
			stall(t, client)
			r.Interrupt()
			if got := wait(t, result); got.Reason != Interrupted {
				t.Error(got)
			}
		})
	}
}

// stall writes until nothing more fits between here and a peer who does not read.
func stall(t *testing.T, c net.Conn) {
	t.Helper()
	chunk := make([]byte, 256<<10)
	end := time.Now().Add(patience)
	for stalled := 0; stalled < 2; {
		if time.Now().After(end) {
			t.Fatal("the peer reads on")
		}
		_ = c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		n, err := c.Write(chunk)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return // the relay has lost its patience with the peer
		}
		if n == 0 {
			stalled++
		}
	}
}

// TestOwnerCloses: whoever closes a connection under the relay interrupts it.
func TestOwnerCloses(t *testing.T) {
	client, c := tcpPair(t)
	_, s := tcpPair(t)
	r, result := start(t, Side{Conn: c}, Side{Conn: s}, Config{})
	say(t, client, "x")
	eventually(t, "a byte is counted", func() bool { return r.FromClient() == 1 })
	_ = s.Close()
	checkResult(t, wait(t, result), Interrupted, 1, 0)
}

// doublePipe is a connection in memory whose ends can be closed by halves.
type doublePipe struct {
	net.Conn
	out net.Conn
}

func (p doublePipe) Write(b []byte) (int, error) { return p.out.Write(b) }
func (p doublePipe) CloseWrite() error           { return p.out.Close() }
func (p doublePipe) Close() error                { return errors.Join(p.Conn.Close(), p.out.Close()) }
func (p doublePipe) SetDeadline(t time.Time) error {
	return errors.Join(p.Conn.SetDeadline(t), p.out.SetDeadline(t))
}

func newDoublePipe() (a, b doublePipe) {
	ab, ba := net.Pipe()
	cd, dc := net.Pipe()
	return doublePipe{ab, cd}, doublePipe{dc, ba}
}

// TestPatience: a relay ends when no byte has moved for its patience, up to a
// quarter later, and never before.
func TestPatience(t *testing.T) {
	config := Config{Idle: 8 * time.Minute, HalfClosed: time.Minute}
	for name, c := range map[string]struct {
		act    func(client, server doublePipe)
		want   Result
		before time.Duration // what act takes
		limit  time.Duration
	}{
		"nobody says a word": {
			act:   func(client, server doublePipe) {},
			want:  Result{Reason: Idle},
			limit: 8 * time.Minute,
		},
		"a byte every seven minutes": {
			act: func(client, server doublePipe) {
				for range 5 {
					time.Sleep(7 * time.Minute) //weft:sleep fake time: TestPatience runs it under synctest
					_, _ = client.Write([]byte("x"))
					_, _ = server.Read(make([]byte, 1))
				}
			},
			want:   Result{Reason: Idle, FromClient: 5},
			before: 35 * time.Minute,
			limit:  8 * time.Minute,
		},
		"one side has ended": {
			act: func(client, server doublePipe) {
				time.Sleep(time.Minute) //weft:sleep fake time: TestPatience runs it under synctest
				_ = client.CloseWrite()
			},
			want:   Result{Reason: HalfClosed},
			before: time.Minute,
			limit:  time.Minute,
		},
		"one side has ended, the other talks on": {
			act: func(client, server doublePipe) {
				_ = server.CloseWrite()
				for range 5 {
					time.Sleep(50 * time.Second) //weft:sleep fake time: TestPatience runs it under synctest
					_, _ = client.Write([]byte("x"))
					_, _ = server.Read(make([]byte, 1))
				}
			},
			want:   Result{Reason: HalfClosed, FromClient: 5},
			before: 250 * time.Second,
			limit:  time.Minute,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, inner := newDoublePipe()
				server, outer := newDoublePipe()
				done := make(chan Result, 1)
				began := time.Now()
				go func() { done <- Run(Side{Conn: inner}, Side{Conn: outer}, config) }()
				c.act(client, server)
				got := <-done
				if got != c.want {
					t.Errorf("%v; want %v", got, c.want)
				}
				if took := time.Since(began) - c.before; took < c.limit || took > c.limit+c.limit/4 {
					t.Errorf("ended after %v; want %v, at most a quarter more", took, c.limit)
				}
				hearEnd(t, client)
				hearEnd(t, server)
			})
		})
	}
}

// TestIdleStalled: bytes that never arrived must not look like a clean end, whether
// they wait in a buffer or in a pipe.
func TestIdleStalled(t *testing.T) {
	for _, from := range []string{"tcp", "wrapped"} {
		t.Run(from, func(t *testing.T) {
			client, c := lanes[from](t)
			server, s := tcpPair(t)
			_, result := start(t, c, Side{Conn: s}, Config{Idle: 500 * time.Millisecond})
			stall(t, client)
			if got := wait(t, result); got.Reason != Idle {
				t.Error(got)
			}
			hearReset(t, server)
		})
	}
}

// asked notes how much its reader asks for.
type asked struct {
	halfCloser
	sizes chan int
}

func (a asked) Read(b []byte) (int, error) {
	a.sizes <- len(b)
	return a.halfCloser.Read(b)
}

// TestReadsGrow: a lane that cannot wait without a buffer has a small one, and a
// large one for what is large.
func TestReadsGrow(t *testing.T) {
	client, c := newDoublePipe()
	server, s := tcpPair(t)
	sizes := make(chan int, 100)
	start(t, Side{Conn: asked{c, sizes}}, Side{Conn: s}, Config{})
	for _, step := range []struct{ say, asks int }{
		{0, smallSize}, {100, smallSize}, {smallSize, bufferSize}, {bufferSize, bufferSize}, {3000, bufferSize}, {100, smallSize}, {100, smallSize},
	} {
		if step.say > 0 {
			say(t, client, strings.Repeat("x", step.say))
			hear(t, server, strings.Repeat("x", step.say))
		}
		if got := <-sizes; got != step.asks {
			t.Errorf("asks for %d after %d bytes; want %d", got, step.say, step.asks)
		}
	}
}

// TestWithoutHalfClose: on connections that can only be closed whole, the server's
// end ends all, and the client's end leaves the server its word.
func TestWithoutHalfClose(t *testing.T) {
	t.Run("server ends", func(t *testing.T) {
		client, inner := net.Pipe()
		server, s := tcpPair(t)
		_, result := start(t, Side{Conn: inner}, Side{Conn: s}, Config{})
		say(t, server, "answer")
		_ = server.CloseWrite()
		hear(t, client, "answer")
		hearEnd(t, client)
		hearEnd(t, server)
		checkResult(t, wait(t, result), ServerClosed, 0, 6)
	})
	t.Run("client ends", func(t *testing.T) {
		client, c := tcpPair(t)
		server, outer := net.Pipe()
		r, result := start(t, Side{Conn: c}, Side{Conn: outer}, Config{})
		say(t, client, "question")
		_ = client.CloseWrite()
		hear(t, server, "question")
		eventually(t, "the client's end is noticed", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.reason == ClientClosed
		})
		say(t, server, "answer")
		hear(t, client, "answer")
		_ = server.Close()
		hearEnd(t, client)
		checkResult(t, wait(t, result), ClientClosed, 8, 6)
	})
}

// brokenEnd cannot pass its peer's end on.
type brokenEnd struct{ halfCloser }

func (brokenEnd) CloseWrite() error { return syscall.ENOTCONN }

// TestEndThatCannotBePassedOn is a reset, and not silence.
func TestEndThatCannotBePassedOn(t *testing.T) {
	client, c := tcpPair(t)
	_, s := tcpPair(t)
	_, result := start(t, Side{Conn: c}, Side{Conn: brokenEnd{s}}, Config{})
	_ = client.CloseWrite()
	got := wait(t, result)
	checkResult(t, got, Reset, 0, 0)
	if !errors.Is(got.Err, syscall.ENOTCONN) {
		t.Error(got.Err)
	}
	hearReset(t, client)
}

// script is what one side says before it ends.
type script struct {
	seed   uint64
	writes []int
}

func newScript(rng *mathrand.Rand) script {
	s := script{seed: rng.Uint64(), writes: make([]int, rng.IntN(12))}
	for i := range s.writes {
		s.writes[i] = 1 + rng.IntN(1<<(1+rng.IntN(18))) // mostly small, up to 256 KiB
	}
	return s
}

// perform says the script, ends, and returns all that the other side said.
func (s script) perform(c halfCloser) (heard []byte, err error) {
	_ = c.SetDeadline(time.Now().Add(patience))
	done := make(chan error, 1)
	go func() {
		noise := mathrand.NewChaCha8([32]byte{byte(s.seed), byte(s.seed >> 8), byte(s.seed >> 16)})
		for _, n := range s.writes {
			b := make([]byte, n)
			_, _ = noise.Read(b)
			if _, err := c.Write(b); err != nil {
				done <- err
				return
			}
		}
		done <- c.CloseWrite()
	}()
	heard, err = io.ReadAll(c)
	return heard, errors.Join(err, <-done)
}

// TestAsDirect: random traffic with ends at random points is the same through a
// relay as over one connection.
func TestAsDirect(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	eachPair(t, func(t *testing.T, client, server halfCloser, c, s Side) {
		rng := mathrand.New(mathrand.NewPCG(seed, 1))
		t.Logf("seed %d", seed)
		seed++
		question, answer := newScript(rng), newScript(rng)
		c.Already, s.Already = make([]byte, rng.IntN(100)), make([]byte, rng.IntN(100<<10))

		a, b := tcpPair(t)
		wantByServer, wantByClient := perform(t, question, a, answer, b)
		_, result := start(t, c, s, Config{})
		byServer, byClient := perform(t, question, client, answer, server)
		if !bytes.Equal(byServer, append(c.Already, wantByServer...)) || !bytes.Equal(byClient, append(s.Already, wantByClient...)) {
			t.Errorf("the server heard %d bytes, the client %d; direct and before: %d+%d, %d+%d",
				len(byServer), len(byClient), len(wantByServer), len(c.Already), len(wantByClient), len(s.Already))
		}
		got := wait(t, result)
		if got.FromClient != int64(len(byServer)) || got.FromServer != int64(len(byClient)) || got.Err != nil {
			t.Error(got)
		}
	})
}

func perform(t *testing.T, question script, client halfCloser, answer script, server halfCloser) (byServer, byClient []byte) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		var err error
		byServer, err = answer.perform(server)
		done <- err
	}()
	byClient, err := question.perform(client)
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	return byServer, byClient
}
