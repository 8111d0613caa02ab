package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft/test/world"
	"github.com/weftmesh/weft/wire/proxyproto"
)

// rawEnv makes the test program an application that speaks first: it tells its
// process id, and then repeats what it hears.
const rawEnv = "WEFT_E2E_RAW"

func init() {
	if os.Getenv(rawEnv) == "" {
		return
	}
	ln, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			os.Exit(1)
		}
		go func() {
			defer c.Close()
			fmt.Fprintf(c, "%d\n", os.Getpid())
			_, _ = io.Copy(c, c)
		}()
	}
}

// newWorld starts a server and what belongs to it by package world.
func newWorld(t *testing.T) *world.World {
	t.Helper()
	world.Binary = binary
	return world.New(t)
}

// serveBytes runs an application for the test's life; serve owns each connection.
func serveBytes(t *testing.T, serve func(c net.Conn, r *bufio.Reader)) (port int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			serving.Go(func() {
				serve(c, bufio.NewReader(c))
				_ = c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return ln.Addr().(*net.TCPAddr).Port
}

// greeting says what it is given and repeats what it hears.
func greeting(words string) func(net.Conn, *bufio.Reader) {
	return func(c net.Conn, r *bufio.Reader) {
		_, _ = io.WriteString(c, words)
		_, _ = io.Copy(c, r)
	}
}

// redis answers commands and does not speak before.
func redis(c net.Conn, r *bufio.Reader) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		answer := "-ERR unknown command\r\n"
		if line == "PING\r\n" {
			answer = "+PONG\r\n"
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
	}
}

// dialled is a connection with a deadline.
func dialled(address string) (net.Conn, *bufio.Reader, error) {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return nil, nil, err
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c, bufio.NewReader(c), nil
}

// talks opens a connection, hears the greeting and gets back what it says.
func talks(address, greeting, say, hear string) error {
	c, r, err := dialled(address)
	if err != nil {
		return err
	}
	defer c.Close()
	return converse(c, r, greeting, say, hear)
}

func converse(c net.Conn, r *bufio.Reader, greeting, say, hear string) error {
	for _, step := range []struct{ say, hear string }{{"", greeting}, {say, hear}, {say, hear}} {
		if _, err := io.WriteString(c, step.say); err != nil {
			return err
		}
		got := make([]byte, len(step.hear))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != step.hear {
			return fmt.Errorf("heard %q, %w; want %q", got, err, step.hear)
		}
	}
	return nil
}

// heard is the first line that an address says, "" when the connection ends before.
func heard(address string) (string, error) {
	c, r, err := dialled(address)
	if errors.Is(err, syscall.ECONNRESET) { // that was faster than the dialler
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer c.Close()
	line, err := r.ReadString('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "", err
	}
	return strings.TrimSpace(line), nil
}

// command runs weft against the world's server.
func command(t *testing.T, w *world.World, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, append(args, "--addr", w.API)...).CombinedOutput()
	if err != nil {
		t.Fatalf("weft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func mustSay(t *testing.T, out string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(out, part) {
			t.Errorf("want %q in:\n%s", part, out)
		}
	}
}

const denyCaller = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-caller}
spec:
  selector: {matchLabels: {app: echo}}
  action: DENY
  rules: [{from: [{source: {principals: ["cluster.local/ns/default/sa/caller"]}}]}]
`

// Connections of every kind between sidecars: declared, detected, by CONNECT,
// denied.
func TestRawBetweenSidecars(t *testing.T) {
	w := newWorld(t)
	echo := w.Sidecar("echo", serveBytes(t, greeting("")), "--protocol", "tcp", "--label", "app=echo")
	greeter := w.Sidecar("greeter", serveBytes(t, greeting("220 ready\r\n")))
	cache := w.Sidecar("cache", serveBytes(t, redis))
	greeterPort, cachePort := world.FreePort(t), world.FreePort(t)
	caller, echoAt := w.Caller("caller", "echo",
		"--upstream", fmt.Sprint("greeter=", greeterPort), "--upstream", fmt.Sprint("cache=", cachePort))
	at := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	for _, lane := range []struct {
		name, address, greeting, say, hear string
		callee                             *world.Proxy
	}{
		{"declared", echoAt, "", "anything\n", "anything\n", echo},
		{"server first", at(greeterPort), "220 ready\r\n", "HELO me\r\n", "HELO me\r\n", greeter},
		{"client first", at(cachePort), "", "PING\r\n", "+PONG\r\n", cache},
	} {
		t.Run(lane.name, func(t *testing.T) {
			eventually(t, 20*time.Second, "an answer", func() error { return talks(lane.address, lane.greeting, lane.say, lane.hear) })
			for range 3 { // what was found out is remembered
				if err := talks(lane.address, lane.greeting, lane.say, lane.hear); err != nil {
					t.Error(err)
				}
			}
			eventually(t, 10*time.Second, "the callee's sidecar to count connections of the caller's identity", func() error {
				if n := lane.callee.Metric("weft_raw_connections_total", `direction="inbound"`, `source="caller"`); n < 4 {
					return fmt.Errorf("%v", n)
				}
				return nil
			})
		})
	}
	t.Run("CONNECT", func(t *testing.T) {
		c, r, err := dialled(caller.Outbound)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "CONNECT greeter:25 HTTP/1.1\r\nHost: greeter:25\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v %v", resp, err)
		}
		if err := converse(c, r, "220 ready\r\n", "x\n", "x\n"); err != nil {
			t.Error(err)
		}
	})
	t.Run("explained", func(t *testing.T) {
		mustSay(t, command(t, w, "explain", "tcp://echo:5432", "--from", "caller"),
			"connection      tcp://echo:5432", "100 % to echo.default", "spiffe://cluster.local/ns/default/sa/echo", "allowed")
	})
	t.Run("denied", func(t *testing.T) {
		w.Apply(denyCaller)
		eventually(t, 20*time.Second, "the connection to be refused", func() error {
			err := talks(echoAt, "", "x\n", "x\n")
			if err == nil {
				return errors.New("it was served")
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the connection was left hanging")
			}
			return nil
		})
		if err := talks(at(greeterPort), "220 ready\r\n", "x\n", "x\n"); err != nil {
			t.Errorf("the service beside it: %v", err)
		}
		mustSay(t, command(t, w, "explain", "tcp://echo:5432", "--from", "caller"), "denied: AuthorizationPolicy default/no-caller")
		eventually(t, 10*time.Second, "the callee's sidecar to say why", func() error {
			if !strings.Contains(echo.Log(), `"reason":"denied","policy":"AuthorizationPolicy default/no-caller`) {
				return errors.New("it does not")
			}
			return nil
		})
		command(t, w, "delete", "authorizationpolicy", "no-caller")
		eventually(t, 20*time.Second, "the connection to be served again", func() error { return talks(echoAt, "", "x\n", "x\n") })
	})
}

const doors = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  servers:
    - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}
    - {port: {number: 5432, name: tcp-db, protocol: TCP}, hosts: ["*"]}
    - {port: {number: 443, name: tls-pass, protocol: TLS}, tls: {mode: PASSTHROUGH}, hosts: [vault.example.com]}
    - {port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: ["*"]
  gateways: [edge]
  tcp:
    - match: [{port: 5432}]
      route:
        - {destination: {host: db, subset: v1}, weight: 80}
        - {destination: {host: db, subset: v2}, weight: 20}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db}
spec:
  host: db
  subsets:
    - {name: v1, labels: {version: v1}}
    - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vault}
spec:
  hosts: [vault.example.com]
  gateways: [edge]
  tls:
    - match: [{port: 443, sniHosts: [vault.example.com]}]
      route: [{destination: {host: vault}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web.example.com]
  gateways: [edge]
  http: [{route: [{destination: {host: web}}]}]
`

// A gateway's doors for bytes and for TLS, with and without a certificate.
func TestRawThroughAGateway(t *testing.T) {
	w := newWorld(t)
	w.Sidecar("db", serveBytes(t, greeting("v1\n")), "--protocol", "tcp", "--version", "v1")
	w.Sidecar("db", serveBytes(t, greeting("v2\n")), "--protocol", "tcp", "--version", "v2")
	vault := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "sealed") }))
	vault.Config.ErrorLog = log.New(io.Discard, "", 0) // health checks connect and go
	vault.StartTLS()
	t.Cleanup(vault.Close)
	w.Sidecar("vault", vault.Listener.Addr().(*net.TCPAddr).Port, "--protocol", "tcp")
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "web for ", r.Header.Get("X-Forwarded-For"))
	}))
	t.Cleanup(web.Close)
	w.Register("web", "web-1", web.Listener.Addr().String())
	w.Apply(doors)

	certificate := world.NewCertificate(t)
	free := "127.0.0.1:0"
	bare := w.Gateway("--tcp", "5432="+free, "--https", free)
	ending := w.Gateway("--https", free, "--cert", certificate.Cert, "--key", certificate.Key)

	t.Run("weights", func(t *testing.T) {
		address := door(t, bare, "tcp-5432")
		eventually(t, 20*time.Second, "the database", func() error {
			line, err := heard(address)
			if line == "" {
				return fmt.Errorf("it said nothing: %v", err)
			}
			return nil
		})
		const connections = 200
		got := map[string]int{}
		for range connections {
			line, err := heard(address)
			if err != nil {
				t.Fatal(err)
			}
			got[line]++
		}
		// Of 200 with a chance of 80 %, fewer than 120 or more than 190 come once in
		// some hundred million runs.
		if got["v1"] < 120 || got["v1"] > 190 || got["v1"]+got["v2"] != connections {
			t.Errorf("%v, want about 160 of v1 and 40 of v2", got)
		}
		mustSay(t, command(t, w, "explain", "tcp://localhost:5432", "--from", "edge"), "tcp[0]", "80 %", "20 %", "subset v2")
	})
	t.Run("passthrough without a certificate", func(t *testing.T) {
		passed(t, bare.HTTPS, vault)
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", bare.HTTPS, &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"})
		if err == nil {
			_ = c.Close()
			t.Error("TLS ended at a gateway without a certificate")
		}
		mustSay(t, command(t, w, "explain", "tls://vault.example.com", "--from", "edge"), "tls[0]", "100 % to vault.default")
	})
	t.Run("passthrough beside a certificate", func(t *testing.T) {
		passed(t, ending.HTTPS, vault)
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{ForceAttemptHTTP2: true, DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{RootCAs: certificate.Pool, ServerName: "localhost"}}}
		eventually(t, 20*time.Second, "the gateway to answer over TLS", func() error {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+ending.HTTPS, nil)
			if err != nil {
				return err
			}
			req.Host = "web.example.com"
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || resp.ProtoMajor != 2 || !strings.HasPrefix(string(body), "web for ") {
				return fmt.Errorf("%s %s %q %v", resp.Proto, resp.Status, body, err)
			}
			return nil
		})
	})
}

// door is an address that a gateway's ready line says beside those of world.Proxy.
func door(t *testing.T, p *world.Proxy, key string) string {
	t.Helper()
	_, rest, _ := strings.Cut(p.Log(), `"`+key+`":"`)
	address, _, ok := strings.Cut(rest, `"`)
	if !ok {
		t.Fatalf("%s does not say where %s is", p.Name, key)
	}
	return address
}

// passed expects the application's own TLS behind the gateway's door.
func passed(t *testing.T, address string, vault *httptest.Server) {
	t.Helper()
	transport := vault.Client().Transport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	transport.TLSClientConfig.ServerName = "vault.example.com"
	transport.TLSClientConfig.InsecureSkipVerify = true // its own certificate is looked at instead
	client := &http.Client{Timeout: 10 * time.Second, Transport: transport}
	eventually(t, 20*time.Second, "the application behind the gateway", func() error {
		resp, err := client.Get("https://vault.example.com/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != "sealed" {
			return fmt.Errorf("%s %q %v", resp.Status, body, err)
		}
		if !resp.TLS.PeerCertificates[0].Equal(vault.Certificate()) {
			t.Fatal("the certificate is not the application's")
		}
		return nil
	})
}

const announced = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db}
spec:
  host: db
  trafficPolicy: {proxyProtocol: {version: V2}}
  subsets:
    - {name: v1, labels: {version: v1}}
    - {name: v2, labels: {version: v2}}
`

// A load balancer says by a PROXY header who the client is; weft believes it, tells
// it on in x-forwarded-for, and by a header of its own where a service wants one.
func TestProxyProtocolInAndOut(t *testing.T) {
	w := newWorld(t)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("X-Forwarded-For")) }))
	t.Cleanup(web.Close)
	w.Register("web", "web-1", web.Listener.Addr().String())
	db := serveBytes(t, func(c net.Conn, r *bufio.Reader) {
		b := make([]byte, 0, proxyproto.DefaultLimit)
		for {
			h, _, err := proxyproto.Parse(b)
			if err == nil {
				fmt.Fprintf(c, "version %d from %s\n", h.Version, h.Source)
				return
			}
			one, readErr := r.ReadByte()
			if err != proxyproto.ErrIncomplete || readErr != nil {
				return // health checks come without a header
			}
			b = append(b, one)
		}
	})
	w.Register("db", "db-1", net.JoinHostPort("127.0.0.1", strconv.Itoa(db)), "protocol", "tcp", "version", "v1")
	w.Apply(doors)
	w.Apply(announced)
	g := w.Gateway("--tcp", "5432=127.0.0.1:0", "--proxy-protocol", "127.0.0.0/8")
	const header = "PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n"
	ask := func(address, say, want string) {
		t.Helper()
		eventually(t, 20*time.Second, want, func() error {
			c, r, err := dialled(address)
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := io.WriteString(c, header+say); err != nil {
				return err
			}
			b, err := io.ReadAll(r)
			if !strings.HasSuffix(string(b), want) {
				return fmt.Errorf("heard %q, %v", b, err)
			}
			return nil
		})
	}
	ask(g.HTTP, "GET / HTTP/1.1\r\nHost: web.example.com\r\nConnection: close\r\n\r\n", "\r\n\r\n192.0.2.7")
	// The 20 % for v2, which does not exist, are refused: ask asks again.
	ask(door(t, g, "tcp-5432"), "", "version 2 from 192.0.2.7:4711\n")
	if resp, err := http.Get("http://" + g.HTTP); err == nil {
		resp.Body.Close()
		t.Errorf("a client without a header got %s", resp.Status)
	}
}

// The third client of two is turned away at once, and may come when one has gone.
func TestCeilingOfConnections(t *testing.T) {
	w := newWorld(t)
	w.Register("db", "db-1", net.JoinHostPort("127.0.0.1", strconv.Itoa(serveBytes(t, greeting("v1\n")))), "protocol", "tcp", "version", "v1")
	w.Apply(strings.NewReplacer("weight: 80", "weight: 100", "weight: 20", "weight: 0").Replace(doors))
	g := w.Gateway("--tcp", "5432=127.0.0.1:0", "--max-connections", "2", "--memory", "256MiB")
	address := door(t, g, "tcp-5432")
	eventually(t, 20*time.Second, "the database", func() error {
		if line, err := heard(address); line != "v1" {
			return fmt.Errorf("heard %q, %v", line, err)
		}
		return nil
	})
	hold := func() (c net.Conn) {
		t.Helper()
		eventually(t, 10*time.Second, "a place", func() error { // those before are given up when weft has seen their end
			var r *bufio.Reader
			var err error
			if c, r, err = dialled(address); err != nil {
				return err
			}
			if line, err := r.ReadString('\n'); line != "v1\n" {
				_ = c.Close()
				return fmt.Errorf("heard %q, %v", line, err)
			}
			return nil
		})
		return c
	}
	one, two := hold(), hold()
	defer two.Close()
	for range 3 {
		if line, err := heard(address); line != "" || err != nil {
			t.Errorf("the third connection heard %q, %v; want a reset", line, err)
		}
	}
	_ = one.Close()
	_ = hold().Close()
}

// kill -9 of one of two applications: new connections go to the other.
func TestKilledRawInstance(t *testing.T) {
	t.Setenv(rawEnv, "1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	run := func(version string) *world.Process {
		return w.Start("pid-"+version, binary, "run", "--service", "pid", "--protocol", "tcp", "--version", version,
			"--control", w.Control, "--token-file", w.Token(), "--", self)
	}
	instances := []*world.Process{run("v1"), run("v2")}
	_, address := w.Caller("caller", "pid")
	seen := map[string]bool{}
	eventually(t, 30*time.Second, "both instances", func() error {
		line, err := heard(address)
		if line != "" {
			seen[line] = true
		}
		if len(seen) < 2 {
			return fmt.Errorf("%v, %v", seen, err)
		}
		return nil
	})
	c, r, err := dialled(address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	victim, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(victim))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the victim's connection hangs: %q", rest)
	}
	_ = c.Close() // its sidecar waits for who has not ended yet
	select {      // its sidecar ends with it
	case <-instances[0].Done():
		instances[0].Kill()
	case <-instances[1].Done():
		instances[1].Kill()
	case <-time.After(20 * time.Second):
		t.Fatal("no sidecar ended with its application")
	}
	delete(seen, strings.TrimSpace(victim))
	for range 50 {
		line, err := heard(address)
		if err != nil || !seen[line] {
			t.Fatalf("heard %q, %v; want %v", line, err, seen)
		}
	}
}
