package mux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/wire/http2"
)

// unencrypted is HTTP/2 by prior knowledge, and nothing else.
func unencrypted() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// judgeClient is the standard library's client of servers with the given config.
func judgeClient(t *testing.T, config Config) *http.Client {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			sock, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				// It may drop a connection that it did not need with a TCP reset, but neither
				// side finds fault with the other's protocol.
				if err := NewServer(sock, config).Run(nil); errors.As(err, new(*http2.ConnError)) {
					t.Error(err)
				}
			})
		}
	})
	transport := &http.Transport{
		Protocols: unencrypted(),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", ln.Addr().String())
		},
	}
	t.Cleanup(func() { ln.Close(); transport.CloseIdleConnections(); all.Wait() })
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// judgeServer is a client of the standard library's server with the given handler.
func judgeServer(t *testing.T, config Config, handler http.HandlerFunc) *Conn {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Protocols: unencrypted(), Handler: handler}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(ln) }()
	t.Cleanup(func() { server.Close(); <-done })
	sock, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return dial(t, sock, config)
}

func TestJudgesClientAsksMany(t *testing.T) {
	client := judgeClient(t, Config{Serve: echo})
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			for k := range 5 {
				want := pattern(i * k * 2000)
				resp, err := client.Post("http://shop/orders", "text/plain", bytes.NewReader(want))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.Equal(got, want) || resp.Header.Get("path") != "/orders" {
					t.Errorf("%d of %d bytes, %v, %v", len(got), len(want), resp.Header, err)
				}
			}
		})
	}
	all.Wait()
}

func TestJudgesClientEchoesBothWaysAtOnce(t *testing.T) {
	client := judgeClient(t, Config{Serve: echo})
	want := pattern(8 << 20)
	resp, err := client.Post("http://shop/", "text/plain", io.MultiReader(bytes.NewReader(want))) // no length
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestJudgesClientReadsInterimHeadsAndTrailers(t *testing.T) {
	client := judgeClient(t, Config{Serve: func(s *Stream) {
		body, err := readAll(s)
		if err != nil {
			t.Error(err)
		}
		sum, _ := s.Trailers().Lookup("x-sum")
		_ = s.SendResponse(103, []byte("link: </style.css>\r\n"), nil, false)
		_ = s.SendResponse(200, []byte("trailer: x-answer\r\n"), body, false)
		_ = s.SendTrailers(append(append([]byte("x-answer: "), sum...), "\r\n"...))
	}})
	var early textproto.MIMEHeader
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error { early = header; return nil },
	})
	r, _ := http.NewRequestWithContext(ctx, "POST", "http://shop/", io.MultiReader(strings.NewReader("hello")))
	r.Trailer = http.Header{"X-Sum": {"42"}}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "hello" || resp.Trailer.Get("x-answer") != "42" || early.Get("link") == "" {
		t.Errorf("%q, %v, trailers %v, early %v", body, err, resp.Trailer, early)
	}
}

func TestJudgesClientGivesUp(t *testing.T) {
	seen := make(chan error, 1)
	client := judgeClient(t, Config{Serve: func(s *Stream) {
		_ = s.SendResponse(200, nil, []byte("begin"), false)
		_, err := s.Next()
		seen <- err
	}})
	ctx, cancel := context.WithCancel(t.Context())
	body, never := io.Pipe()
	defer never.Close()
	r, _ := http.NewRequestWithContext(ctx, "POST", "http://shop/", body)
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	cancel()
	_ = never.CloseWithError(context.Canceled) // it looks at ctx when its body says something
	var reset *ResetError
	if err := <-seen; !errors.As(err, &reset) || !reset.Remote || reset.Code != http2.Cancel {
		t.Errorf("the server saw %v", err)
	}
}

func TestJudgesServerAnswers(t *testing.T) {
	c := judgeServer(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Bytes")
		if r.URL.Path != "/orders" || r.Host != "shop" {
			t.Errorf("asked for %s at %s", r.URL, r.Host)
		}
		n, err := io.Copy(w, r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Bytes", http.StatusText(int(n%2)+200))
	})
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			want := pattern(i * 30000)
			status, got, err := ask(c, &post, "x-test: 1\r\n", want)
			if err != nil || status != 200 || !bytes.Equal(got, want) {
				t.Errorf("%d, %d of %d bytes, %v", status, len(got), len(want), err)
			}
		})
	}
	all.Wait()
}

func TestJudgesServerSendsInterimHeadsAndTrailers(t *testing.T) {
	c := judgeServer(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(103)
		w.WriteHeader(103)
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Trailer.Get("X-Sum") != "7" {
			t.Errorf("%q %v %v", body, r.Trailer, err)
		}
		w.Header().Set("Trailer", "X-Answer")
		w.WriteHeader(201)
		_, _ = w.Write(body)
		w.Header().Set("X-Answer", "42")
	})
	for range 3 { // the stream is reused
		s := open(t, c)
		s.SetDeadline(time.Now().Add(10 * time.Second))
		if err := s.SendRequest(&post, []byte("trailer: x-sum\r\n"), []byte("hel"), false); err != nil {
			t.Fatal(err)
		}
		if err := s.Write([]byte("lo"), false); err != nil {
			t.Fatal(err)
		}
		if err := s.SendTrailers([]byte("x-sum: 7\r\n")); err != nil {
			t.Fatal(err)
		}
		for _, want := range []int{103, 103, 201} {
			if err := s.AwaitHead(); err != nil || s.Response().Status != want {
				t.Fatalf("%d, %v; want %d", s.Response().Status, err, want)
			}
		}
		body, err := readAll(s)
		if err != nil || string(body) != "hello" {
			t.Errorf("%q, %v", body, err)
		}
		if v, n := s.Trailers().Lookup("x-answer"); n != 1 || string(v) != "42" {
			t.Errorf("trailer %q", v)
		}
		s.Close()
	}
}

func TestJudgesServerAborts(t *testing.T) {
	c := judgeServer(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "begin")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	_, _, err := ask(c, &get, "", nil)
	var reset *ResetError
	if !errors.As(err, &reset) || !reset.Remote {
		t.Errorf("%v", err)
	}
}

func TestJudgesServerSeesOurReset(t *testing.T) {
	gone := make(chan struct{})
	c := judgeServer(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(gone)
	})
	s := open(t, c)
	if err := s.SendRequest(&get, nil, nil, true); err != nil {
		t.Fatal(err)
	}
	if err := s.AwaitHead(); err != nil {
		t.Fatal(err)
	}
	s.Close()
	<-gone
}
