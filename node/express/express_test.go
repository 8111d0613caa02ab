package express

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft/wire/http1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// door is net/http behind a Listener that knows /ready; net/http says "slow PATH BODY".
type door struct {
	*testing.T
	*Listener
	quick atomic.Int32
}

func open(t *testing.T) *door {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{T: t}
	d.Listener = Listen(ln, func(dst []byte, r *http1.Request) ([]byte, bool) {
		if string(r.Path) != "/ready" {
			return nil, false
		}
		d.quick.Add(1)
		body := strings.Repeat("r", max(1, len(r.Query)*1000))
		dst = append(dst, "HTTP/1.1 200 OK\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"...)
		return append(dst, body...), true
	})
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		io.WriteString(w, "slow "+r.URL.Path+" "+string(body))
	}), ReadHeaderTimeout: 200 * time.Millisecond}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(d) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return d
}

// says sends bytes and returns the bodies of n answers on one connection.
func (d *door) says(bytes string, n int) (bodies []string) {
	d.Helper()
	c := d.dial()
	defer c.Close()
	if _, err := io.WriteString(c, bytes); err != nil {
		d.Fatal(err)
	}
	in := bufio.NewReader(c)
	for range n {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			d.Fatalf("after %q: %v", bodies, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			d.Fatal(err)
		}
		bodies = append(bodies, string(body))
	}
	return bodies
}

func (d *door) dial() net.Conn {
	d.Helper()
	c, err := net.Dial("tcp", d.Addr().String())
	if err != nil {
		d.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func TestWhoAnswers(t *testing.T) {
	const ready, other, post = "GET /ready HTTP/1.1\r\nHost: h\r\n\r\n", "GET /other HTTP/1.1\r\nHost: h\r\n\r\n",
		"POST /ready HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
	for _, tt := range []struct {
		name, bytes, want string
		quick             int32
	}{
		{"what is ready", ready, "r", 1},
		{"several at once", ready + ready + ready, "r r r", 3},
		{"something else", other, "slow /other ", 0},
		{"something else behind", ready + other, "r slow /other ", 1},
		{"from then on net/http", other + ready, "slow /other  slow /ready ", 0},
		{"a body", ready + post, "r slow /ready abc", 1},
		{"the last request", "GET /ready HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "slow /ready ", 0},
		{"HTTP/1.0", "GET /ready HTTP/1.0\r\n\r\n", "slow /ready ", 0},
		{"no host", "GET /ready HTTP/1.1\r\n\r\n", "400 Bad Request: missing required Host header", 0},
		{"a head that is too long for the buffer", "GET /ready HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("x", headRoom) + "\r\n\r\n", "slow /ready ", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := open(t)
			n := strings.Count(tt.bytes, " HTTP/1.")
			if got := strings.Join(d.says(tt.bytes, n), " "); got != tt.want || d.quick.Load() != tt.quick {
				t.Errorf("%q with %d answered from what is ready, want %q with %d", got, d.quick.Load(), tt.want, tt.quick)
			}
		})
	}
}

func TestManyLongAnswersAtOnce(t *testing.T) {
	d := open(t)
	const n = 50
	request := "GET /ready?" + strings.Repeat("q", 30) + " HTTP/1.1\r\nHost: h\r\n\r\n" // 30 kB each
	for _, body := range d.says(strings.Repeat(request, n), n) {
		if len(body) != 30_000 {
			t.Fatalf("%d bytes", len(body))
		}
	}
	if d.quick.Load() != n {
		t.Errorf("%d of %d", d.quick.Load(), n)
	}
}

func TestAHeadInPieces(t *testing.T) {
	d := open(t)
	c := d.dial()
	defer c.Close()
	for _, piece := range []string{"GET /re", "ady HTTP/1.1\r\nHo", "st: h\r\n\r\n"} {
		io.WriteString(c, piece)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	// One that never comes whole has net/http's time, not ours.
	slow := d.dial()
	defer slow.Close()
	io.WriteString(slow, "GET /ready HT")
	if b, err := io.ReadAll(slow); err != nil || strings.Contains(string(b), " 200 ") {
		t.Errorf("%q %v, want it refused and closed", b, err)
	}
}

func TestCloseEndsIdleConnections(t *testing.T) {
	d := open(t)
	c := d.dial()
	defer c.Close()
	io.WriteString(c, "GET /ready HTTP/1.1\r\nHost: h\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("an idle connection is still open")
	}
	if _, err := d.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
}

// brittle fails to accept for a while, as when there are no file descriptors.
type brittle struct {
	net.Listener
	failures atomic.Int32
}

func (b *brittle) Accept() (net.Conn, error) {
	if b.failures.Add(-1) >= 0 {
		return nil, errors.New("too many open files")
	}
	return b.Listener.Accept()
}

func TestFailuresThatPass(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &brittle{Listener: inner}
	b.failures.Store(3)
	l := Listen(b, func([]byte, *http1.Request) ([]byte, bool) { return nil, false })
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	got, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	first := make([]byte, 3)
	if _, err := io.ReadFull(got, first); err != nil || string(first) != "GET" {
		t.Errorf("%q %v", first, err)
	}
}
