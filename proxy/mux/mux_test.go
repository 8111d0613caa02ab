package mux

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft/wire/http2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair returns two ends of a TCP connection.
func pair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// counter counts reasons.
type counter struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counter) count(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[reason]++
}

func (c *counter) of(reason string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[reason]
}

// serve runs a server on sock until the test ends, or earlier.
func serve(t testing.TB, sock net.Conn, config Config) (c *Conn, ended <-chan error) {
	t.Helper()
	c = NewServer(sock, config)
	done := make(chan error, 1)
	go func() { done <- c.Run(nil) }()
	t.Cleanup(func() { c.Close(); <-c.Done() })
	go own(c)
	return c, done
}

// own does what the owner of a connection does: without it, an end of stream that
// came together with the bytes before it is not noticed.
func own(c *Conn) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-c.Done():
			return
		case now := <-tick.C:
			c.Expire(now)
		}
	}
}

// connect makes a client and a server on the two ends of a connection.
func connect(t testing.TB, server, client Config) (*Conn, *Conn) {
	t.Helper()
	a, b := pair(t)
	s, _ := serve(t, b, server)
	return s, dial(t, a, client)
}

func dial(t testing.TB, sock net.Conn, config Config) *Conn {
	t.Helper()
	c := NewClient(sock, config)
	t.Cleanup(func() { c.Close(); <-c.Done() })
	go own(c)
	return c
}

var get = http2.RequestHead{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte("shop"), Path: []byte("/orders")}
var post = http2.RequestHead{Method: []byte("POST"), Scheme: []byte("http"), Authority: []byte("shop"), Path: []byte("/orders")}

func open(t testing.TB, c *Conn) *Stream {
	t.Helper()
	s, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// readAll returns the rest of the body.
func readAll(s *Stream) ([]byte, error) {
	var all []byte
	for {
		b, err := s.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, b...)
	}
}

// ask sends a request and returns the status and the body of the response.
func ask(c *Conn, r *http2.RequestHead, lines string, body []byte) (int, []byte, error) {
	s, err := c.Open()
	if err != nil {
		return 0, nil, err
	}
	defer s.Close()
	s.SetDeadline(time.Now().Add(10 * time.Second))
	if err := s.SendRequest(r, []byte(lines), nil, len(body) == 0); err != nil {
		return 0, nil, err
	}
	if len(body) > 0 {
		sent := make(chan error, 1)
		go func() { sent <- s.Write(body, true) }()
		defer func() { s.Interrupt(); <-sent }() // Close is deferred behind it
	}
	if err := s.AwaitHead(); err != nil {
		return 0, nil, err
	}
	status := s.Response().Status
	answer, err := readAll(s)
	return status, answer, err
}

// echo answers with the request's body and path.
func echo(s *Stream) {
	path := append([]byte("path: "), s.Request().Path...)
	if s.SendResponse(200, append(path, "\r\n"...), nil, false) != nil {
		return
	}
	for {
		b, err := s.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				_ = s.Write(nil, true)
			}
			return
		}
		if s.Write(b, false) != nil {
			return
		}
	}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

func TestRequestAndResponse(t *testing.T) {
	_, c := connect(t, Config{Serve: echo}, Config{})
	for range 3 {
		status, body, err := ask(c, &post, "x-test: 1\r\n", []byte("hello"))
		if err != nil || status != 200 || string(body) != "hello" {
			t.Fatalf("%d %q %v", status, body, err)
		}
	}
}

func TestManyStreamsAtOnce(t *testing.T) {
	_, c := connect(t, Config{Serve: echo}, Config{})
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			for k := range 20 {
				want := pattern(i*100 + k)
				if _, body, err := ask(c, &post, "", want); err != nil || !bytes.Equal(body, want) {
					t.Errorf("stream %d: %d bytes, %v", i, len(body), err)
					return
				}
			}
		})
	}
	all.Wait()
	if n := c.Active(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

func TestBigBodiesBothWaysAtOnce(t *testing.T) {
	_, c := connect(t, Config{Serve: echo}, Config{})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			want := pattern(5 << 20)
			s := open(t, c)
			defer s.Close()
			if err := s.SendRequest(&post, nil, nil, false); err != nil {
				t.Error(err)
				return
			}
			sent := make(chan error, 1)
			go func() { sent <- s.Write(want, true) }()
			if err := s.AwaitHead(); err != nil {
				t.Error(err)
			}
			got, err := readAll(s)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// certificate is a certificate for nobody in particular.
var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"shop"}}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// securedPair is a pair over TLS, after the handshake.
func securedPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	a, b := pair(t)
	y := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{certificate()}, NextProtos: []string{"h2"}})
	x := tls.Client(a, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	done := make(chan error, 1)
	go func() { done <- y.Handshake() }()
	if err := x.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return x, y
}
