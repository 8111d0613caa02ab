// Package world starts weft for the judges in test/… as a user would: the program
// built from this tree, its command line, its Consul API. Every process listens on
// free loopback ports, ends with the test that started it, and keeps what it
// printed; a test that fails shows it.
//
//	func TestMain(m *testing.M) { world.Main(m) }
//
//	w := world.New(t)                          // weft server
//	w.Register("echo", "echo-1", address)      // an instance outside the mesh
//	w.Apply(resources)                         // YAML
//	gateway := w.Gateway()                     // weft gateway
//	server := w.Sidecar("echo", port)          // weft run beside a running program
//	caller := w.Caller("tests", "echo")        // … beside a program that only calls
//
// It needs nothing but the standard library, so that a judge's module has its own
// libraries alone.
package world

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Binary is the weft program, once Main has built it.
var Binary string

// Main builds weft and runs a package's tests. It does not return.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for those who have something to do afterwards.
func Run(m *testing.M) (code int) {
	dir, err := os.MkdirTemp("", "weft-judge-")
	if err == nil {
		err = build(dir)
	}
	code = 1
	if err != nil {
		fmt.Fprintln(os.Stderr, "build weft:", err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	return code
}

// build works where weft's own go.mod is: a judge's has not all of its libraries.
func build(dir string) error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/weftmesh/weft").Output()
	if err != nil {
		return err
	}
	Binary = filepath.Join(dir, "weft")
	cmd := exec.Command("go", "build", "-o", Binary, "./cmd/weft")
	cmd.Dir, cmd.Stderr = strings.TrimSpace(string(root)), os.Stderr
	return cmd.Run()
}

// World is a running server, and what joins it.
type World struct {
	Server               *Process
	API, Consul, Control string

	t     testing.TB
	dir   string
	token string // file
}

// New starts a server.
func New(t testing.TB) *World {
	t.Helper()
	w := &World{t: t, dir: t.TempDir()}
	data := filepath.Join(w.dir, "data")
	args := []string{"server", "--data", data}
	for _, door := range []string{"api", "consul", "eureka", "dns", "control", "otlp-http", "otlp-grpc"} {
		args = append(args, "--"+door, "127.0.0.1:0")
	}
	w.Server = w.Start("server", Binary, args...)
	ready := w.Server.ready()
	w.API, w.Consul, w.Control = ready["api"], ready["consul"], ready["control"]
	w.token = filepath.Join(data, "join-token")
	return w
}

// Token is the file with the join token.
func (w *World) Token() string { return w.token }

// Apply gives resources to the server.
func (w *World) Apply(resources string) {
	w.t.Helper()
	cmd := exec.Command(Binary, "apply", "--addr", w.API, "-f", "-")
	cmd.Stdin = strings.NewReader(resources)
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("weft apply: %v\n%s", err, out)
	}
}

// Register says by the Consul API where an instance is that has no sidecar. meta
// is keys and values in turn.
func (w *World) Register(service, id, address string, meta ...string) {
	w.t.Helper()
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		w.t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		w.t.Fatal(err)
	}
	pairs := map[string]string{}
	for i := 0; i+1 < len(meta); i += 2 {
		pairs[meta[i]] = meta[i+1]
	}
	w.consul("register", map[string]any{"ID": id, "Name": service, "Address": host, "Port": port, "Meta": pairs})
}

// Deregister takes an instance out that Register put in.
func (w *World) Deregister(id string) {
	w.t.Helper()
	w.consul("deregister/"+id, nil)
}

func (w *World) consul(call string, what any) {
	w.t.Helper()
	body, err := json.Marshal(what)
	if err != nil {
		w.t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPut, "http://"+w.Consul+"/v1/agent/service/"+call, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := web.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		w.t.Fatalf("%s %s: %s %s %v", call, body, resp.Status, text, err)
	}
}

// web asks doors that are not under test.
var web = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// Proxy is a gateway or a sidecar. Addresses that it does not have are empty.
type Proxy struct {
	*Process
	HTTP, HTTPS       string // of a gateway
	Inbound, Outbound string // of a sidecar
	Admin             string
}

func (w *World) proxy(name string, args ...string) *Proxy {
	w.t.Helper()
	p := w.Start(name, Binary, append(args, "--control", w.Control, "--token-file", w.token)...)
	ready := p.ready()
	return &Proxy{Process: p, HTTP: ready["http"], HTTPS: ready["https"],
		Inbound: ready["inbound"], Outbound: ready["outbound"], Admin: ready["admin"]}
}

// Gateway starts a gateway that serves the Gateway resource "edge".
func (w *World) Gateway(flags ...string) *Proxy {
	w.t.Helper()
	return w.proxy("gateway", append([]string{"gateway", "--name", "edge", "--http", "127.0.0.1:0"}, flags...)...)
}

// Sidecar starts a sidecar beside a program that listens on a loopback port.
func (w *World) Sidecar(service string, port int, flags ...string) *Proxy {
	w.t.Helper()
	return w.proxy("sidecar-"+service, append([]string{"run", "--service", service, "--port", strconv.Itoa(port)}, flags...)...)
}

// Caller starts the sidecar of a service that only calls others, with a port of
// its own for the upstream. It returns that port's address.
func (w *World) Caller(service, upstream string, flags ...string) (*Proxy, string) {
	w.t.Helper()
	app, err := net.Listen("tcp", "127.0.0.1:0") // the application: it accepts connections, so it is well
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = app.Close() })
	port := FreePort(w.t)
	p := w.Sidecar(service, app.Addr().(*net.TCPAddr).Port, append([]string{"--upstream", upstream + "=" + strconv.Itoa(port)}, flags...)...)
	return p, net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// Everything routes all that the gateway gets to one service.
func Everything(service string) string {
	return `
apiVersion: networking.istio.io/v1beta1
kind: Gateway
metadata: {name: edge}
spec:
  servers:
    - port: {number: 80, name: http, protocol: HTTP}
      hosts: ["*"]
---
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: everything}
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
    - route:
        - destination: {host: ` + service + `}
`
}

// FreePort is for programs that cannot choose one themselves and say which. The port is
// below those that the kernel gives to connections (32768 and up on Linux), so nobody
// gets it by chance, also while the program is down; and no other FreePort gives it,
// of any process, until the test ends: the port before it is held as a sign.
func FreePort(t testing.TB) int {
	t.Helper()
	const low, pairs = 10000, 5000
	for i := range pairs {
		sign := low + 2*((os.Getpid()*16+i)%pairs)
		held, err := listen(sign)
		if err != nil {
			continue
		}
		ln, err := listen(sign + 1)
		if err != nil {
			_ = held.Close()
			continue
		}
		_ = ln.Close()
		t.Cleanup(func() { _ = held.Close() })
		return sign + 1
	}
	t.Fatalf("no free port from %d to %d", low, low+2*pairs)
	return 0
}

func listen(port int) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

// Port of an address.
func Port(t testing.TB, address string) int {
	t.Helper()
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Eventually polls until check is content.
func Eventually(t testing.TB, patience time.Duration, what string, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s: %v", patience, what, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// Accepts is a check for Eventually: somebody listens.
func Accepts(address string) func() error {
	return func() error {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err
	}
}

// Answers is a check for Eventually: a GET is answered with 200.
func Answers(url string) func() error {
	return func() error {
		resp, err := web.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if text, err := io.ReadAll(io.LimitReader(resp.Body, 4096)); resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %s %v", resp.Status, text, err)
		}
		return nil
	}
}
