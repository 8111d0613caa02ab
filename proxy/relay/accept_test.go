package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftmesh/weft/wire/proxyproto"
)

func TestAcceptProxy(t *testing.T) {
	two := func(h proxyproto.Header) string {
		b, err := proxyproto.AppendV2(nil, h)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	known, _, _ := proxyproto.Parse([]byte("PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n"))
	tagged := known
	tagged.TLVs = proxyproto.AppendTLV(nil, proxyproto.TypeAuthority, []byte("shop.example"))
	for name, c := range map[string]struct {
		header, remote, authority string
	}{
		"version 1":   {header: "PROXY TCP6 ::ffff:1.2.3.4 5::6 9 10\r\n", remote: "1.2.3.4:9"},
		"version 2":   {header: two(known), remote: "1.2.3.4:9"},
		"with TLVs":   {header: two(tagged), remote: "1.2.3.4:9", authority: "shop.example"},
		"unix socket": {header: two(proxyproto.Header{Unix: true, SourcePath: []byte("/run/a.sock")}), remote: "/run/a.sock"},
		"unknown":     {header: "PROXY UNKNOWN\r\n", remote: "pipe"},
		"health":      {header: two(proxyproto.Header{Local: true}), remote: "pipe"},
	} {
		for cut, pieces := range map[string][]string{
			"at once":      {c.header + "hello"},
			"then hello":   {c.header, "hello"},
			"in the midst": {c.header[:7], c.header[7:] + "hel", "lo"},
		} {
			t.Run(name+", "+cut, func(t *testing.T) {
				client, inner := newDoublePipe()
				defer client.Close()
				go func() {
					for _, p := range pieces {
						_, _ = io.WriteString(client, p)
					}
					_ = client.CloseWrite()
				}()
				a, err := AcceptProxy(inner, patience)
				if err != nil {
					t.Fatal(err)
				}
				defer a.Close()
				if a.RemoteAddr().String() != c.remote {
					t.Errorf("remote %v; want %s", a.RemoteAddr(), c.remote)
				}
				if v, _ := a.Header.TLVs.Get(proxyproto.TypeAuthority); string(v) != c.authority {
					t.Errorf("authority %q; want %q", v, c.authority)
				}
				if rest, err := io.ReadAll(onlyReader{a}); err != nil || string(rest) != "hello" {
					t.Errorf("then %q, %v", rest, err)
				}
				go func() { _ = a.CloseWrite() }()
				hearEnd(t, client)
			})
		}
	}
}

// onlyReader reads three bytes at a time, so that more than one Read is needed.
type onlyReader struct{ io.Reader }

func (r onlyReader) Read(b []byte) (int, error) { return r.Reader.Read(b[:min(len(b), 3)]) }

func TestAcceptProxyRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		said  string
		check func(error) bool
	}{
		"another protocol": {get, func(err error) bool { var e *proxyproto.Error; return errors.As(err, &e) && e.Reason == "not_proxy" }},
		"half a header":    {"PROXY TCP4 1.", func(err error) bool { return err == io.ErrUnexpectedEOF }},
		"nothing":          {"", func(err error) bool { return err == io.EOF }},
	} {
		client, inner := tcpPair(t)
		say(t, client, c.said)
		_ = client.CloseWrite()
		if a, err := AcceptProxy(inner, patience); !c.check(err) || a != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAcceptProxySlow: the timeout is for all of the header.
func TestAcceptProxySlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, inner := net.Pipe()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for _, c := range []byte("PROXY TCP4 1.2.3.4") {
				time.Sleep(time.Second)
				if _, err := client.Write([]byte{c}); err != nil {
					return
				}
			}
		}()
		began := time.Now()
		_, err := AcceptProxy(inner, 5*time.Second)
		if took := time.Since(began); !errors.Is(err, os.ErrDeadlineExceeded) || took != 5*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		_ = inner.Close()
		<-stopped
	})
}

// TestAcceptProxyLeavesNoDeadline: the timeout is for the header only.
func TestAcceptProxyLeavesNoDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, inner := newDoublePipe()
		go act(client, []step{{0, "PROXY UNKNOWN\r\n"}, {time.Hour, "late"}})
		a, err := AcceptProxy(inner, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4)
		if n, err := a.Read(b); string(b[:n]) != "late" {
			t.Errorf("%q, %v", b[:n], err)
		}
		_, _ = client.Close(), a.Close()
	})
}

// TestAcceptedCannotHalfClose says so, instead of doing nothing.
func TestAcceptedCannotHalfClose(t *testing.T) {
	client, inner := net.Pipe()
	go func() { _, _ = io.WriteString(client, "PROXY UNKNOWN\r\n") }()
	a, err := AcceptProxy(inner, patience)
	if err != nil {
		t.Fatal(err)
	}
	if a.NetConn() != inner {
		t.Error("another connection beneath")
	}
	if err := a.CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	_, _ = client.Close(), a.Close()
}

// TestAcceptedIsSpliced: behind the header there is a socket, and the relay sees it.
func TestAcceptedIsSpliced(t *testing.T) {
	client, inner := tcpPair(t)
	say(t, client, "PROXY UNKNOWN\r\nfirst ")
	server, s := tcpPair(t)
	a, err := AcceptProxy(inner, patience)
	if err != nil {
		t.Fatal(err)
	}
	three := make([]byte, 3)
	if _, err := io.ReadFull(a, three); err != nil {
		t.Fatal(err)
	}
	r, _ := start(t, Side{Conn: a, Already: three}, Side{Conn: s}, Config{})
	if r.fromClient.fromTCP == nil {
		t.Error("the relay sees no socket")
	}
	say(t, client, "second")
	hear(t, server, "first second")
}
