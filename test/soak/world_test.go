package soak

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// world is everything that runs.
type world struct {
	t      testing.TB
	led    *ledger
	dir    string
	weft   string // the program
	race   bool
	api    string // address
	token  string // file
	common []string
	roots  *x509.CertPool // of the gateway's certificate

	server, gateway, caller *process
	stores                  []*process // the third stands beside an application of its own
	storeApp                *process
	bytes, greeter, sockets *process
	near, inner             *breaker // before the gateway; between a sidecar and its application

	edge, edgeTLS, forward                         string // addresses: of the gateway, of the caller's forward proxy
	storeDoor, bytesDoor, greeterDoor, socketsDoor string // of the caller's sidecar
}

// freePorts finds ports below those that the kernel gives to connections, so that
// they are still free when a process is started again.
func freePorts(t testing.TB, n int) (addresses []string) {
	t.Helper()
	for port := 10000 + os.Getpid()%8000; len(addresses) < n && port < 20000; port++ {
		ln, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		addresses = append(addresses, ln.Addr().String())
		_ = ln.Close()
	}
	if len(addresses) < n {
		t.Fatal("no free ports")
	}
	return addresses
}

func port(address string) string {
	_, p, _ := net.SplitHostPort(address)
	return p
}

// build makes the program from this tree.
func build(t testing.TB, dir string, race bool) string {
	t.Helper()
	program := filepath.Join(dir, "weft")
	args := []string{"build", "-o", program}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./cmd/weft")...)
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build weft: %v\n%s", err, out)
	}
	return program
}

func newWorld(t testing.TB, led *ledger, dir string, race bool) *world {
	t.Helper()
	w := &world{t: t, led: led, dir: dir, race: race, weft: build(t, dir, race)}
	p := freePorts(t, 14)
	w.api, w.edge, w.forward = p[0], p[1], p[2]
	w.storeDoor, w.bytesDoor, w.greeterDoor, w.socketsDoor = p[3], p[4], p[5], p[6]
	control, storeApp := p[7], p[8]
	w.edgeTLS = p[13]
	cert, key := w.certificate()
	data := filepath.Join(dir, "data")
	w.token = filepath.Join(data, "join-token")
	w.server = w.process("server", "server", "--data", data, "--api", w.api, "--control", control,
		"--consul", p[9], "--eureka", "127.0.0.1:0", "--dns", p[10], "--otlp-http", p[11], "--otlp-grpc", p[12])
	w.common = []string{"--control", control, "--token-file", w.token, "--access-log", "off", "--drain", "30s"}
	w.mustStart(w.server)
	w.mustStart(w.storeSidecars(storeApp)...)
	w.bytes = w.sidecar("bytes", "bytes", "--protocol", "tcp")
	w.greeter = w.sidecar("greeter", "greeter")
	w.sockets = w.sidecar("sockets", "sockets")
	w.gateway = w.process("gateway", append([]string{"gateway", "--name", "edge", "--http", w.edge,
		"--https", w.edgeTLS, "--cert", cert, "--key", key}, w.common...)...)
	w.near = newBreaker(t, w.edge)
	// What the caller is beside is this program: it listens, and calls.
	self, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = self.Close() })
	w.caller = w.process("caller", append([]string{"run", "--service", "caller", "--port", port(self.Addr().String()), "--outbound", w.forward,
		"--upstream", "store=" + port(w.storeDoor), "--upstream", "bytes=" + port(w.bytesDoor),
		"--upstream", "greeter=" + port(w.greeterDoor), "--upstream", "sockets=" + port(w.socketsDoor)}, w.common...)...)
	w.mustStart(w.bytes, w.greeter, w.sockets)
	if err := w.apply(routes(1, 1, 1, 0)); err != nil {
		t.Fatal(err)
	}
	w.mustStart(w.gateway, w.caller)
	return w
}

// certificate makes one that signs itself, for the gateway, and returns its files.
func (w *world) certificate() (cert, key string) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(crand.Reader, leaf, leaf, &private.PublicKey, private)
	if err != nil {
		w.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		w.t.Fatal(err)
	}
	cert, key = filepath.Join(w.dir, "cert.pem"), filepath.Join(w.dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		w.t.Fatal(err)
	}
	w.roots = x509.NewCertPool()
	w.roots.AddCert(parsed)
	return cert, key
}

// storeSidecars makes the instances of the service with more than one.
func (w *world) storeSidecars(app string) []*process {
	for _, version := range []string{"v1", "v2"} {
		p := w.sidecar("store", "web", "--version", version)
		p.name, p.log = p.name+"-"+version, filepath.Join(w.dir, p.name+"-"+version+".log")
		w.stores = append(w.stores, p)
	}
	w.inner = newBreaker(w.t, app)
	w.storeApp = w.process("store-app", "-test.run=^$")
	w.storeApp.program, w.storeApp.weft, w.storeApp.env = os.Args[0], false, []string{appEnv + "=web", "PORT=" + port(app)}
	w.mustStart(w.storeApp)
	third := w.process("store-v3", append([]string{"run", "--service", "store", "--version", "v3", "--port", port(w.inner.address())}, w.common...)...)
	w.stores = append(w.stores, third)
	return w.stores
}

// sidecar with an application.
func (w *world) sidecar(service, app string, flags ...string) *process {
	args := append([]string{"run", "--service", service}, flags...)
	args = append(append(args, w.common...), "--", os.Args[0], "-test.run=^$")
	p := w.process(service, args...)
	p.env = []string{appEnv + "=" + app}
	return p
}

func (w *world) process(name string, args ...string) *process {
	p := &process{name: name, program: w.weft, args: args, log: filepath.Join(w.dir, name+".log"), weft: true, led: w.led}
	w.t.Cleanup(func() { w.stop(p) })
	return p
}

func (w *world) mustStart(all ...*process) {
	w.t.Helper()
	for _, p := range all {
		p.mu.Lock()
		err := p.start()
		p.mu.Unlock()
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// stop ends a process politely when the test ends.
func (w *world) stop(p *process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended == nil {
		return
	}
	if err := p.end(p.pid(), syscall.SIGTERM); err != nil {
		w.led.Complain("%v", err)
	}
}

// proxies are the processes whose leaks matter.
func (w *world) proxies() []*process {
	return append([]*process{w.gateway, w.caller, w.bytes, w.greeter, w.sockets}, w.stores...)
}

// apply gives resources to the server as a user does.
func (w *world) apply(resources string) error {
	cmd := exec.Command(w.weft, "apply", "--addr", w.api, "-f", "-")
	cmd.Stdin = strings.NewReader(resources)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("weft apply: %w: %s", err, out)
	}
	return nil
}

// routes spread what the gateway and callers send to the service over its versions.
// decoys are rules that nothing fits.
func routes(v1, v2, v3, decoys int) string {
	total := v1 + v2 + v3
	share := []int{v1 * 100 / total, v2 * 100 / total}
	var spread, more strings.Builder
	for i, weight := range []int{share[0], share[1], 100 - share[0] - share[1]} {
		fmt.Fprintf(&spread, "        - destination: {host: store, subset: v%d}\n          weight: %d\n", i+1, weight)
	}
	for i := range decoys {
		fmt.Fprintf(&more, "    - match: [{uri: {prefix: /decoy-%d}}]\n      route: [{destination: {host: bytes}}]\n", i)
	}
	return `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge}
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
` + more.String() + `    - match: [{uri: {prefix: /socket}}]
      route: [{destination: {host: sockets}}]
    - route:
` + spread.String() + `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: store}
spec:
  hosts: [store]
  http:
` + more.String() + `    - route:
` + spread.String() + `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: store}
spec:
  host: store
  subsets:
    - {name: v1, labels: {version: v1}}
    - {name: v2, labels: {version: v2}}
    - {name: v3, labels: {version: v3}}
`
}

// measure notes what idle processes use.
func (w *world) measure() {
	for _, p := range w.proxies() {
		u, err := p.usage()
		if err != nil {
			w.t.Fatal(err)
		}
		p.fresh = u
	}
}

// Growth that is no leak: connections that are kept for a while, threads that the
// runtime does not give back, memory that it has not given back yet.
const (
	moreFiles      = 60
	moreThreads    = 40
	moreGoroutines = 60
	moreKilobytes  = 100 << 10
	// settle is longer than connections are kept without use.
	settle = 90 * time.Second
)

// awaitSettled waits until the processes use about what they used at the beginning.
func (w *world) awaitSettled() {
	var all sync.WaitGroup
	for _, p := range w.proxies() {
		all.Go(func() {
			var last error
			for deadline := time.Now().Add(settle); time.Now().Before(deadline); <-time.After(time.Second) {
				if last = w.settled(p); last == nil {
					return
				}
			}
			w.led.Complain("%s after %s without load: %v", p.name, settle, last)
		})
	}
	all.Wait()
	for _, p := range w.proxies() {
		u, err := p.usage()
		fmt.Fprintf(os.Stderr, "%-10s fresh %+v, in the end %+v %v\n", p.name, p.fresh, u, errors.Join(err))
	}
}

func (w *world) settled(p *process) error {
	u, err := p.usage()
	if err != nil {
		return err
	}
	f := p.fresh
	if u.files > f.files+moreFiles || u.threads > f.threads+moreThreads || u.goroutines > f.goroutines+moreGoroutines ||
		!w.race && u.kilobytes > f.kilobytes+moreKilobytes {
		return fmt.Errorf("it uses %+v, in the beginning %+v", u, f)
	}
	return nil
}
