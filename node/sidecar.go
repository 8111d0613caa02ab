package node

import (
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
)

// SidecarConfig of a Sidecar: one instance of a service and its proxy.
type SidecarConfig struct {
	ProxyConfig
	Service   string
	Namespace string            // weft.DefaultNamespace when empty
	Version   string            // the instance's "version" label
	Labels    map[string]string // "app" is the service's name when absent
	Zone      string
	Port      int    // where the application listens; 0: a free one is chosen and told to it as PORT
	Health    string // path that answers 200 when the application is well; empty: it accepts connections
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
	ProxyConfig: ProxyConfig{Control: "127.0.0.1:8502", Admin: "127.0.0.1:0", Sample: 0.01},
}

// Sidecar stands beside one instance: it starts the application, registers it,
// carries its calls, and takes it out of every view before it stops.
type Sidecar struct {
	dataPlane
	config            SidecarConfig
	inbound, outbound net.Listener
	upstreams         map[string]net.Listener // by service name; nil: no port of its own
	held              net.Listener            // keeps the application's port free until it starts; nil when it was given
}

// leaseTTL is how long the registry believes in an instance whose sidecar says
// nothing.
const leaseTTL = 3 * time.Second

// NewSidecar binds its ports and joins the mesh. The application is not started
// yet.
func NewSidecar(ctx context.Context, c SidecarConfig) (_ *Sidecar, err error) {
	s := &Sidecar{config: c, upstreams: map[string]net.Listener{}}
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
	return s, nil
}

func (s *Sidecar) bind(c SidecarConfig) (err error) {
	if s.inbound, err = listen("inbound", c.Inbound, "--inbound"); err != nil {
		return err
	}
	s.undo.add(closeQuietly(s.inbound))
	if err = loopbackOnly("outbound", c.Outbound, "--outbound"); err != nil {
		return err
	}
	if s.outbound, err = listen("outbound", c.Outbound, "--outbound"); err != nil {
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
		ln, err := listen("upstream "+name, "127.0.0.1:"+port, "--upstream "+name)
		if err != nil {
			return err
		}
		s.upstreams[strings.ToLower(name)] = ln
		s.undo.add(closeQuietly(ln))
	}
	if s.config.Port == 0 {
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

// Run starts the application and serves until ctx ends or the application does.
// code is the application's exit code.
func (s *Sidecar) Run(ctx context.Context) (code int, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var p parts
	s.parts(&p)
	local := net.JoinHostPort("127.0.0.1", strconv.Itoa(s.config.Port))
	policies := func() *weft.Authorization { return s.mesh.Snapshot().Authorization }
	p.add("inbound", s.serve(s.inbound, inboundChain(s.mesh.Credentials(), local, policies)))
	p.add("outbound", s.serve(s.outbound, outboundChain("")))
	for name, ln := range s.upstreams {
		if ln != nil {
			p.add("upstream "+name, s.serve(ln, outboundChain(name)))
		}
	}
	// The proxy outlives the application: it runs under a context of its own,
	// which ends when the application has.
	proxies, endProxies := context.WithCancel(context.WithoutCancel(ctx))
	defer endProxies()
	ended := make(chan error, 1)
	go func() { ended <- p.run(proxies) }()
	code, err = s.runApplication(ctx, local)
	endProxies()
	return code, errors.Join(err, <-ended, s.undo.close())
}

// runApplication starts the application, keeps it registered while it is well,
// and ends it politely: first out of the views, then SIGTERM.
func (s *Sidecar) runApplication(ctx context.Context, local string) (code int, err error) {
	s.meetUpstreams(ctx)
	app, err := s.start()
	if err != nil {
		return 1, err
	}
	lease, err := s.mesh.Register(ctx, s.instance(app.id()), leaseTTL)
	if err != nil {
		app.end()
		return 1, err
	}
	s.logger.Info("ready", "role", "sidecar", "service", s.config.Service, "version", s.config.Version, "pid", os.Getpid(), "app_pid", app.id(), "app", local,
		"inbound", s.inbound.Addr().String(), "outbound", s.outbound.Addr().String(), "admin", s.admin.Addr().String())
	watching, stopWatching := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() { defer close(watched); s.watchHealth(watching, lease, local) }()
	select {
	case <-ctx.Done():
	case <-app.exited():
	}
	stopWatching()
	<-watched
	wait := drainTimeout
	if !s.mesh.Connected() {
		wait = time.Second // the server is away: there is hardly anybody to tell
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait)
	defer cancel()
	if err := lease.Drain(patience); err != nil {
		s.logger.Warn("the instance was not taken out of the registry politely; its lease will lapse", "error", err)
	}
	return app.end(), nil
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
func (s *Sidecar) instance(pid int) weft.Instance {
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
	id := s.config.Service
	if s.config.Version != "" {
		id += "-" + s.config.Version
	}
	return weft.Instance{
		ID: fmt.Sprintf("%s-%d", id, os.Getpid()), Service: weft.NewServiceName(s.config.Namespace, s.config.Service),
		Address: "127.0.0.1", Port: s.config.Port, Labels: labels, Zone: s.config.Zone, PID: pid,
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
func (s *Sidecar) watchHealth(ctx context.Context, lease *subscribe.Lease, local string) {
	web := &http.Client{Timeout: probeTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	defer web.CloseIdleConnections()
	wait := probeStarting
	for {
		health, output := probe(ctx, web, local, s.config.Health)
		if ctx.Err() != nil {
			return
		}
		lease.SetHealth(health, output)
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
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+local+path, nil)
	if err != nil {
		return weft.Critical, err.Error()
	}
	resp, err := web.Do(req)
	if err != nil {
		return weft.Critical, err.Error()
	}
	_ = resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return weft.Critical, path + " answers " + resp.Status
	}
	return weft.Passing, path + " answers " + resp.Status
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
		"HTTP_PROXY=" + forward, "http_proxy=" + forward,
		"NO_PROXY=localhost,127.0.0.0/8,::1", "no_proxy=localhost,127.0.0.0/8,::1",
	}
}
