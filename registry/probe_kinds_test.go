package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/weftmesh/weft"
)

// patience is for probes that end by themselves.
const patience = 20 * time.Second

// probeWithin probes with a deadline, and checks health and output.
func probeWithin(t *testing.T, c weft.Check, limit time.Duration, want weft.Health, output string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	got, text := probe(ctx, &c)
	if got != want || !strings.Contains(text, output) {
		t.Errorf("%s %s: %s with %q; want %s with %q", c.Kind, c.Target, got, text, want, output)
	}
}

// probeLate probes what does not answer, and checks that the deadline is the reason,
// in the words of what was waited for then.
func probeLate(t *testing.T, c weft.Check) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	got, text := probe(ctx, &c)
	for _, why := range []string{"deadline", "DeadlineExceeded", "timeout"} {
		if got == weft.Critical && strings.Contains(text, why) {
			return
		}
	}
	t.Errorf("%s %s: %s with %q; want it late", c.Kind, c.Target, got, text)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// closedAddress is one where nothing listens.
func closedAddress(t *testing.T) string {
	l := listen(t)
	l.Close()
	return l.Addr().String()
}

// silent accepts connections and says nothing.
func silent(t *testing.T) string { return listen(t).Addr().String() }

func tlsServer(t *testing.T, http2 bool) *httptest.Server {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.EnableHTTP2 = http2
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

func TestProbeGRPC(t *testing.T) {
	serve := func(options ...grpc.ServerOption) (string, *health.Server) {
		l, server, h := listen(t), grpc.NewServer(options...), health.NewServer()
		grpc_health_v1.RegisterHealthServer(server, h)
		ended := make(chan bool)
		go func() { server.Serve(l); close(ended) }()
		t.Cleanup(func() { server.Stop(); <-ended })
		return l.Addr().String(), h
	}
	plain, h := serve()
	h.SetServingStatus("order", grpc_health_v1.HealthCheckResponse_SERVING)
	h.SetServingStatus("billing", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	certificate := tlsServer(t, true).TLS.Certificates[0]
	secret, _ := serve(grpc.Creds(credentials.NewServerTLSFromCert(&certificate)))
	bare := listen(t) // speaks gRPC, without health
	server := grpc.NewServer()
	ended := make(chan bool)
	go func() { server.Serve(bare); close(ended) }()
	t.Cleanup(func() { server.Stop(); <-ended })

	cases := []struct {
		check  weft.Check
		want   weft.Health
		output string
	}{
		{weft.Check{Target: plain}, weft.Passing, "SERVING"},
		{weft.Check{Target: plain + "/order"}, weft.Passing, "SERVING"},
		{weft.Check{Target: plain + "/billing"}, weft.Critical, "NOT_SERVING"},
		{weft.Check{Target: plain + "/nobody"}, weft.Critical, "NotFound"},
		{weft.Check{Target: bare.Addr().String()}, weft.Critical, "Unimplemented"},
		{weft.Check{Target: secret, TLS: true, TLSSkipVerify: true}, weft.Passing, "SERVING"},
		{weft.Check{Target: secret, TLS: true}, weft.Critical, "certificate"},
		{weft.Check{Target: secret}, weft.Critical, ""},
		{weft.Check{Target: closedAddress(t)}, weft.Critical, "refused"},
	}
	for _, c := range cases {
		c.check.Kind = weft.GRPCCheck
		probeWithin(t, c.check, patience, c.want, c.output)
	}
	probeLate(t, weft.Check{Kind: weft.GRPCCheck, Target: silent(t)})
}

func TestProbeH2Ping(t *testing.T) {
	plain := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	plain.Config.Protocols = new(http.Protocols)
	plain.Config.Protocols.SetUnencryptedHTTP2(true)
	plain.Start()
	defer plain.Close()
	both, old := tlsServer(t, true), tlsServer(t, false)
	cases := []struct {
		check  weft.Check
		want   weft.Health
		output string
	}{
		{weft.Check{Target: plain.Listener.Addr().String()}, weft.Passing, "Success"},
		{weft.Check{Target: both.Listener.Addr().String(), TLS: true, TLSSkipVerify: true}, weft.Passing, "Success"},
		{weft.Check{Target: both.Listener.Addr().String(), TLS: true}, weft.Critical, "certificate"},
		{weft.Check{Target: old.Listener.Addr().String(), TLS: true, TLSSkipVerify: true}, weft.Critical, ""},
		{weft.Check{Target: closedAddress(t)}, weft.Critical, "refused"},
	}
	for _, c := range cases {
		c.check.Kind = weft.H2PingCheck
		probeWithin(t, c.check, patience, c.want, c.output)
	}
	probeLate(t, weft.Check{Kind: weft.H2PingCheck, Target: silent(t)})
}

func TestProbeUDP(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	got := make(chan string, 1)
	go func() {
		b := make([]byte, 100)
		n, from, err := server.ReadFrom(b)
		if err != nil {
			return
		}
		got <- string(b[:n])
		server.WriteTo([]byte("pong"), from)
	}()
	c := weft.Check{Kind: weft.UDPCheck, Target: server.LocalAddr().String(), Body: "ping"}
	probeWithin(t, c, patience, weft.Passing, "answered with 4 bytes")
	if sent := <-got; sent != "ping" {
		t.Errorf("sent %q", sent)
	}
	probeWithin(t, c, 50*time.Millisecond, weft.Passing, "not refused") // nobody reads any more
	server.Close()
	probeWithin(t, c, patience, weft.Critical, "refused")
}

func TestProbeTLS(t *testing.T) {
	server := tlsServer(t, false)
	address := server.Listener.Addr().String()
	probeWithin(t, weft.Check{Kind: weft.TCPCheck, Target: address, TLS: true, TLSSkipVerify: true}, patience, weft.Passing, "Success")
	probeWithin(t, weft.Check{Kind: weft.TCPCheck, Target: address, TLS: true}, patience, weft.Critical, "certificate")
	probeLate(t, weft.Check{Kind: weft.TCPCheck, Target: silent(t), TLS: true, TLSSkipVerify: true})
	// The name of the certificate is asked for, and it is not trusted: both show.
	names := make(chan string, 1)
	probeWithin(t, weft.Check{Kind: weft.HTTPCheck, Target: server.URL, TLSServerName: "example.com"}, patience, weft.Critical, "certificate")
	probeWithin(t, weft.Check{Kind: weft.HTTPCheck, Target: server.URL, TLSServerName: "example.com", TLSSkipVerify: true}, patience, weft.Passing, "200")
	named := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { names <- r.TLS.ServerName }))
	named.StartTLS()
	defer named.Close()
	probeWithin(t, weft.Check{Kind: weft.HTTPCheck, Target: named.URL, TLSServerName: "shop.example", TLSSkipVerify: true}, patience, weft.Passing, "200")
	if name := <-names; name != "shop.example" {
		t.Errorf("the server was asked as %q", name)
	}
}

func TestRunScript(t *testing.T) {
	t.Setenv("WEFT_SECRET", "sesame")
	cases := []struct {
		name, script string
		want         weft.Health
		output       string
	}{
		{"good", "echo fine", weft.Passing, "fine"},
		{"warning", "echo hot; exit 1", weft.Warning, "hot"},
		{"bad", "echo broken >&2; exit 2", weft.Critical, "broken"},
		{"killed", "kill -9 $$", weft.Critical, "killed"},
		{"endless", "echo begun; sleep 60", weft.Critical, "longer than 30s. Output: begun"},
		{"secrets", "echo \"[$WEFT_SECRET]\"", weft.Passing, "[]"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			limit := patience
			if c.name == "endless" {
				limit = time.Second // it has begun by then
			}
			probeWithin(t, weft.Check{Kind: weft.ScriptCheck, Args: []string{"/bin/sh", "-c", c.script}}, limit, c.want, c.output)
		})
	}
	probeWithin(t, weft.Check{Kind: weft.ScriptCheck, Args: []string{"/no/such/program"}}, patience, weft.Critical, "no such file")
}

func TestScriptOutputIsShort(t *testing.T) {
	c := weft.Check{Kind: weft.ScriptCheck, Args: []string{"/bin/sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo end"}}
	got, output := probe(t.Context(), &c)
	if got != weft.Passing || len(output) != maxOutput || !strings.HasSuffix(output, "xend\n") {
		t.Errorf("%s with %d bytes, %.20q", got, len(output), output[max(len(output)-20, 0):])
	}
}

// TestScriptLeavesNothing: what a script began ends with it, also when it is stopped.
func TestScriptLeavesNothing(t *testing.T) {
	for _, script := range []string{
		"sleep 60 & echo $! > %s; exit 0",
		"sleep 60 & echo $! > %s; wait",
	} {
		file := filepath.Join(t.TempDir(), "pid")
		c := weft.Check{Kind: weft.ScriptCheck, Args: []string{"/bin/sh", "-c", fmt.Sprintf(script, file)}}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		ended := make(chan bool)
		go func() { probe(ctx, &c); close(ended) }()
		var b []byte
		for err := error(nil); ctx.Err() == nil && !bytes.HasSuffix(b, []byte("\n")); b, err = os.ReadFile(file) {
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			syscall.Select(0, nil, nil, nil, &syscall.Timeval{Usec: 5000})
		}
		cancel()
		<-ended
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(5 * time.Second); running(pid); {
			if time.Now().After(deadline) {
				t.Fatalf("%q left a process behind", script)
			}
			syscall.Select(0, nil, nil, nil, &syscall.Timeval{Usec: 5000})
		}
	}
}

// running reports whether a process is there and no zombie: who reaps those of a
// test is not ours to say.
func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}
