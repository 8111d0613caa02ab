package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/subscribe"
	"github.com/weftmesh/weft/node/handover"
	"github.com/weftmesh/weft/proxy"
)

// SidecarConfig of a Sidecar: one instance of a service and its proxy.
type SidecarConfig struct {
	ProxyConfig
	Service   string
	Namespace string            // weft.DefaultNamespace when empty
	Version   string            // the instance's "version" label
	Labels    map[string]string // "app" is the service's name when absent
	Protocol  weft.Protocol     // what the application's port speaks; "" is not declared
	Port      int               // where the application listens; 0: a free one is chosen and told to it as PORT
	Health    string            // path that answers 200 when the application is well; empty: it accepts connections
	// Upstreams are services that the application calls: "NAME" is made known to
	// the proxy before the application starts, so that not even a first call needs
	// the server; with "NAME=PORT", 127.0.0.1:PORT is that service too.
	Upstreams []string
	Inbound   string   // where other sidecars call, over mTLS
	Outbound  string   // the application's forward proxy
	Command   []string // the application; empty: it is started by somebody else
	Stdin     io.Reader
	Stdout    io.Writer
	Stderr    io.Writer
}

// DefaultSidecar takes free ports on loopback: many sidecars share a machine.
var DefaultSidecar = SidecarConfig{
	Inbound: "127.0.0.1:0", Outbound: "127.0.0.1:0",
	ProxyConfig: ProxyConfig{Control: "127.0.0.1:8502", Admin: "127.0.0.1:0", Sample: 0.01, Drain: DefaultDrain},
}

// Sidecar stands beside one instance: it starts the application, registers it,
// carries its calls, and takes it out of every view before it stops.
type Sidecar struct {
	dataPlane
	config            SidecarConfig
	inward            *proxy.Proxy // of inbound; the other one carries the application's calls
	inbound, outbound net.Listener
	upstreams         map[string]net.Listener // by service name; nil: no port of its own
	held              net.Listener            // keeps the application's port free until it starts; nil when it was given
	app               application
	instanceID        string
	lease             *subscribe.Lease // nil until it is registered

	mu     sync.Mutex // guards what follows
	health weft.Health
	output string
}

// leaseTTL is how long the registry believes in an instance whose sidecar says
// nothing.
const leaseTTL = 3 * time.Second

// NewSidecar binds its ports and joins the mesh. The application is not started
// yet.
func NewSidecar(ctx context.Context, c SidecarConfig) (_ *Sidecar, err error) {
	s := &Sidecar{config: c, upstreams: map[string]net.Listener{}, app: (*process)(nil),
		health: weft.Critical, output: "its health is not known yet"}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.undo.close())
		}
	}()
	if c.Service == "" {
		return nil, weft.Errorf(weft.Invalid, "run", "sidecar", "no service name: give --service NAME")
	}
	if err := s.bind(c); err != nil {
		return nil, err
	}
	err = s.join(ctx, c.ProxyConfig, subscribe.Config{Namespace: c.Namespace, ServiceAccount: c.Service, Role: subscribe.Sidecar, PID: os.Getpid()})
	if err != nil {
		return nil, err
	}
	// It goes only to the application: what the mesh looks like is nothing to it.
	s.inward = proxy.New(s.dataPlane.config)
	s.undo.add(func() error { s.inward.Close(); return nil })
	sockets := []string{"inbound", "outbound", "admin"}
	for name, ln := range s.upstreams {
		if ln != nil {
			sockets = append(sockets, upstreamSocket(name))
		}
	}
	return s, c.Process.onlyUses(sockets...)
}

func upstreamSocket(name string) string { return socketName("--upstream " + name) }

func (s *Sidecar) bind(c SidecarConfig) (err error) {
	if s.inbound, err = listen(c.Process, "inbound", c.Inbound, "--inbound"); err != nil {
		return err
	}
	s.undo.add(closeQuietly(s.inbound))
	if err = loopbackOnly("outbound", c.Outbound, "--outbound"); err != nil {
		return err
	}
	if s.outbound, err = listen(c.Process, "outbound", c.Outbound, "--outbound"); err != nil {
		return err
	}
	s.undo.add(closeQuietly(s.outbound))
	for _, u := range c.Upstreams {
		name, port, ownPort := strings.Cut(u, "=")
		if !ownPort && name != "" {
			s.upstreams[strings.ToLower(name)] = nil
			continue
		}
		if _, err := strconv.ParseUint(port, 10, 16); name == "" || err != nil {
			return weft.Errorf(weft.Invalid, "run", "upstream "+strconv.Quote(u), "want NAME or NAME=PORT, as in --upstream inventory-service=9001")
		}
		name = strings.ToLower(name)
		ln, err := listen(c.Process, "upstream "+name, "127.0.0.1:"+port, "--upstream "+name)
		if err != nil {
			return err
		}
		s.upstreams[name] = ln
		s.undo.add(closeQuietly(ln))
	}
	if s.config.Port == 0 && !c.Process.Inherited() {
		if s.held, err = holdFreePort(); err != nil {
			return err
		}
		s.undo.add(closeQuietly(s.held))
		s.config.Port = s.held.Addr().(*net.TCPAddr).Port
	}
	return nil
}

// holdFreePort finds a port for the application and holds it until the
// application starts. It looks below the range from which the kernel gives ports
// to outgoing connections (32768 and up on Linux), from a place that depends on
// the process: sidecars that start together do not choose alike in the moment
// between our letting go and the application's own bind.
func holdFreePort() (net.Listener, error) {
	const low, count, tries = 20000, 12000, 1000
	for i := range tries {
		port := low + (os.Getpid()+i)%count
		if ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return ln, nil
		}
	}
	return nil, weft.Errorf(weft.Unavailable, "run", "application", "found no free port from %d to %d; choose one with --port", low, low+count)
}

// Run starts the application and serves until ctx ends or the application does, or
// until another process has taken over. code is the application's exit code.
func (s *Sidecar) Run(ctx context.Context) (code int, err error) {
	outer := ctx
	ctx, over := s.process.tenure(ctx)
	defer over()
	defer func() { s.process.bye(code, err) }()
	begin := s.begin
	if s.process.Inherited() {
		if err := s.takeOver(ctx); err != nil {
			return 1, errors.Join(err, s.abandon())
		}
		begin = func(context.Context) error { return nil } // it has begun
	}
	// The proxies outlive the application: they run under contexts of their own.
	serving, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	leaving, leave := context.WithCancel(serving)
	defer leave()
	left := make(chan struct{}) // closed when the inbound proxy is drained
	running := s.proxies(leaving, left).start(serving)
	if err := begin(ctx); err != nil {
		end(nil)
		<-running.done
		return 1, errors.Join(err, s.abandon())
	}
	next := s.stand(ctx, running)
	if next != nil {
		s.lease.Release() // it is the next one's, and so is the application's health
		end(errReplaced)
		return s.process.outlive(outer, next, s.child(), running, s.undo.close)
	}
	s.leaveViews(ctx)
	leave()
	<-left // what is in flight to the application has ended; its own calls go on
	code = s.app.end()
	end(nil)
	<-running.done
	return code, errors.Join(running.err, s.undo.close())
}

// proxies are the parts that serve. The inbound proxy drains alone when leaving
// ends, and closes left then.
func (s *Sidecar) proxies(leaving context.Context, left chan<- struct{}) *parts {
	var p parts
	s.parts(&p)
	policies := func() *weft.Authorization { return s.mesh.Snapshot().Authorization }
	inbound := s.serve(s.inward, opening{"inbound", s.inbound, inboundChain(s.mesh.Credentials(), s.local(), s.config.Protocol, policies)})
	p.add("inbound", func(ctx context.Context) error {
		either, stop := context.WithCancel(ctx)
		defer stop()
		defer context.AfterFunc(leaving, stop)()
		err := inbound(either)
		close(left)
		if err == nil {
			<-ctx.Done()
		}
		return err
	})
	outbound := []opening{{"outbound", s.outbound, outboundChain("")}}
	for name, ln := range s.upstreams {
		if ln != nil {
			outbound = append(outbound, opening{upstreamSocket(name), ln, outboundChain(name)})
		}
	}
	p.add("outbound", s.serve(s.proxy, outbound...))
	return &p
}

// local is where the application listens.
func (s *Sidecar) local() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.config.Port)) }

// begin starts the application and registers it.
func (s *Sidecar) begin(ctx context.Context) error {
	s.meetUpstreams(ctx)
	app, err := s.start()
	if err != nil {
		return err
	}
	s.app = app
	id := s.config.Service
	if s.config.Version != "" {
		id += "-" + s.config.Version
	}
	if err := s.register(ctx, fmt.Sprintf("%s-%d", id, os.Getpid())); err != nil {
		app.end()
		return err
	}
	return nil
}

func (s *Sidecar) register(ctx context.Context, id string) (err error) {
	s.instanceID = id
	s.lease, err = s.mesh.Register(ctx, s.instance(id, s.app.id()), leaseTTL)
	return err
}

// sidecarState is what a sidecar hands to the process that replaces it.
type sidecarState struct {
	proxyState
	Instance string      `json:"instance"`
	Port     int         `json:"port"`
	AppPID   int         `json:"appPID,omitempty"`
	Health   weft.Health `json:"health"`
	Output   string      `json:"output,omitempty"`
}

func (s *Sidecar) state() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sidecarState{s.dataPlane.state(), s.instanceID, s.config.Port, s.app.id(), s.health, s.output}
}

// takeOver makes this process ready to stand where another one stands, and waits
// until it may. From here on both hold the lease of the instance; the other one lets
// it go.
func (s *Sidecar) takeOver(ctx context.Context) error {
	var old sidecarState
	if err := s.process.chain.State(&old); err != nil {
		return err
	}
	s.config.Port = old.Port
	if len(s.config.Command) > 0 {
		if s.process.led == nil {
			return weft.Errorf(weft.Invalid, "take over", "application", "the old process did not say how its application is reached")
		}
		s.process.led.pid, s.app = old.AppPID, s.process.led
	}
	s.meetUpstreams(ctx)
	s.learn(ctx, old.proxyState)
	// Nobody is told policies before it is registered: what is held now denies all.
	none, told := s.mesh.Snapshot().Authorization, make(chan struct{}, 1)
	if err := s.register(ctx, old.Instance); err != nil {
		return err
	}
	s.report(old.Health, old.Output)
	s.mesh.OnChange(func(now *weft.Snapshot) {
		if now.Authorization != none {
			select {
			case told <- struct{}{}:
			default:
			}
		}
	})
	patience, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	select {
	case <-told:
	case <-patience.Done():
		return weft.Errorf(weft.Unavailable, "take over", "instance "+old.Instance, "the server did not tell its policies in %s", learnTimeout)
	}
	return s.process.chain.Ready(ctx)
}

// abandon ends a sidecar that has not begun. An instance that another process has
// registered too stays with that one.
func (s *Sidecar) abandon() error {
	if s.lease != nil {
		s.lease.Release()
	}
	return s.undo.close()
}

// stand serves until it is time to end, or until next has taken over.
func (s *Sidecar) stand(ctx context.Context, running *running) (next *handover.Next) {
	s.process.serving()
	s.logger.Info("ready", "role", "sidecar", "service", s.config.Service, "version", s.config.Version, "pid", os.Getpid(), "app_pid", s.app.id(), "app", s.local(),
		"inbound", s.inbound.Addr().String(), "outbound", s.outbound.Addr().String(), "admin", s.admin.Addr().String())
	watching, stopWatching := context.WithCancel(ctx)
	var watched sync.WaitGroup
	watched.Go(func() { s.watchHealth(watching, s.local()) })
	defer watched.Wait()
	defer stopWatching()
	stay := s.process.stays() || s.child() != nil
	return s.process.watch(ctx, running, s.app.exited(), stay, s.state)
}

// child is the application if it is this process's child, else nil.
func (s *Sidecar) child() application {
	if p, ok := s.app.(*process); ok && p != nil {
		return p
	}
	return nil
}

// leaveTimeout is how long callers may take to learn that an instance goes.
const leaveTimeout = 10 * time.Second

// leaveViews takes the instance out of the registry, and returns when its callers
// know.
func (s *Sidecar) leaveViews(ctx context.Context) {
	wait := leaveTimeout
	if !s.mesh.Connected() {
		wait = time.Second // the server is away: there is hardly anybody to tell
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait)
	defer cancel()
	if err := s.lease.Drain(patience); err != nil {
		s.logger.Warn("the instance was not taken out of the registry politely; its lease will lapse", "error", err)
	}
}

// meetUpstreams asks for the services that the application will call. One that
// does not exist yet is pushed when it appears.
func (s *Sidecar) meetUpstreams(ctx context.Context) {
	patience, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for name := range s.upstreams {
		all.Go(func() { s.mesh.Need(patience, name) })
	}
	all.Wait()
}

// instance as the registry gets it.
func (s *Sidecar) instance(id string, pid int) weft.Instance {
	labels := maps.Clone(s.config.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	if s.config.Version != "" {
		labels["version"] = s.config.Version
	}
	if labels["app"] == "" {
		labels["app"] = s.config.Service
	}
	return weft.Instance{
		ID: id, Service: weft.NewServiceName(s.config.Namespace, s.config.Service),
		Address: "127.0.0.1", Port: s.config.Port, Protocol: s.config.Protocol, Labels: labels, Zone: s.config.Zone, PID: pid,
		MeshAddr: s.inbound.Addr().String(),
	}
}

// Health probes of the application by its own sidecar.
const (
	probeStarting = 50 * time.Millisecond // until it is well for the first time
	probeInterval = 2 * time.Second
	probeTimeout  = time.Second
)

// watchHealth reports the application's health until ctx ends.
func (s *Sidecar) watchHealth(ctx context.Context, local string) {
	web := &http.Client{Timeout: probeTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	defer web.CloseIdleConnections()
	wait := probeStarting
	for {
		health, output := probe(ctx, web, local, s.config.Health)
		if ctx.Err() != nil {
			return
		}
		s.report(health, output)
		if health == weft.Passing {
			wait = probeInterval
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// report tells the registry, and keeps it for the process that may replace this one.
func (s *Sidecar) report(health weft.Health, output string) {
	s.mu.Lock()
	s.health, s.output = health, output
	s.mu.Unlock()
	s.lease.SetHealth(health, output)
}

// probe asks the application once.
func probe(ctx context.Context, web *http.Client, local, path string) (weft.Health, string) {
	if path == "" {
		d := net.Dialer{Timeout: probeTimeout}
		c, err := d.DialContext(ctx, "tcp", local)
		if err != nil {
			return weft.Critical, err.Error()
		}
		_ = c.Close()
		return weft.Passing, "accepts connections on " + local
	}
	return probeURL(ctx, web, "http://"+local+path, path)
}

// probeURL asks once; what names the URL in the answer.
func probeURL(ctx context.Context, web *http.Client, url, what string) (weft.Health, string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return weft.Critical, err.Error()
	}
	resp, err := web.Do(req)
	if err != nil {
		return weft.Critical, err.Error()
	}
	_ = resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return weft.Critical, what + " answers " + resp.Status
	}
	return weft.Passing, what + " answers " + resp.Status
}

// start runs the command, if there is one.
func (s *Sidecar) start() (*process, error) {
	if len(s.config.Command) == 0 {
		return nil, nil
	}
	cmd := exec.Command(s.config.Command[0], s.config.Command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.config.Stdin, s.config.Stdout, s.config.Stderr
	cmd.Env = append(os.Environ(), s.environment()...)
	if s.held != nil {
		_ = s.held.Close()
	}
	return startProcess(cmd)
}

// environment tells the application where it listens and how it calls others.
func (s *Sidecar) environment() []string {
	forward := "http://" + s.outbound.Addr().String()
	return []string{
		"PORT=" + strconv.Itoa(s.config.Port), "WEFT_SERVICE=" + s.config.Service, "WEFT_VERSION=" + s.config.Version,
		"WEFT_NAMESPACE=" + cmp.Or(s.config.Namespace, weft.DefaultNamespace),
		"HTTP_PROXY=" + forward, "http_proxy=" + forward,
		"NO_PROXY=localhost,127.0.0.0/8,::1", "no_proxy=localhost,127.0.0.0/8,::1",
	}
}
