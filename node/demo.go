package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/node/handover"
)

// DemoConfig of a Demo. A demo is an ordinary user of the product: it starts
// processes with the command line that anybody would type, and applies files.
type DemoConfig struct {
	Weft      string // path of the weft program
	DataDir   string
	Server    []string      // arguments of `weft server`
	Gateway   []string      // arguments of `weft gateway`
	Sidecars  []DemoSidecar // in the order in which they are listed
	Resources []client.File // applied when the server is ready
	// Try is what to print at the end: commands to try, for the server whose API
	// and the gateway whose HTTP are at these addresses.
	Try     func(api, http string) string
	Process *Process
	Out     io.Writer
}

// DemoSidecar is one `weft run`.
type DemoSidecar struct {
	Name string // of its log file
	Args []string
	Env  []string
}

// Demo is a running demo.
type Demo struct {
	config DemoConfig
	server *demoProcess
	others []*demoProcess // the gateway first

	logs sync.WaitGroup
}

// demoProcess is a weft process that the demo started.
type demoProcess struct {
	*process
	name  string
	log   string
	ready chan map[string]any // what its "ready" line says, once
	facts map[string]any      // the same, after await

	logged chan struct{} // closed when all its output was read

	mu   sync.Mutex
	last string // last line that is not a log record: why it ended
}

// demoStart bounds how long everything may take to come up.
const demoStart = 60 * time.Second

// RunDemo starts everything, tells what runs where, waits for ctx to end, and
// stops everything.
func RunDemo(ctx context.Context, c DemoConfig) error {
	d := &Demo{config: c}
	err := d.start(ctx)
	if err == nil {
		d.report()
		d.wait(ctx)
		fmt.Fprintln(c.Out, "\nstopping: gateway and sidecars drain, then the server …")
	}
	d.stop()
	if err != nil && ctx.Err() != nil {
		return nil // interrupted while starting
	}
	return err
}

func (d *Demo) start(ctx context.Context) (err error) {
	c := d.config
	ctx, cancel := context.WithTimeout(ctx, demoStart)
	defer cancel()
	if err := os.MkdirAll(filepath.Join(c.DataDir, "logs"), 0o700); err != nil {
		return &weft.Error{Kind: weft.Invalid, Op: "start", Thing: "demo data directory", Err: err}
	}
	if d.server, err = d.launch("server", append([]string{"server", "--keep-pid"}, c.Server...), nil); err != nil {
		return err
	}
	if err := d.server.await(ctx); err != nil {
		return err
	}
	if err := d.startProxies(); err != nil {
		return err
	}
	api, err := client.New(ctx, client.At(d.server.fact("api")))
	if err != nil {
		return err
	}
	if _, err := api.Apply(ctx, c.Resources, client.ApplyOptions{}); err != nil {
		return err
	}
	for _, p := range d.others {
		if err := p.await(ctx); err != nil {
			return err
		}
	}
	return d.healthy(ctx, api)
}

// startProxies launches the gateway and the sidecars, joined to the server.
func (d *Demo) startProxies() error {
	c := d.config
	token, err := os.ReadFile(TokenFile(c.DataDir))
	if err != nil {
		return &weft.Error{Kind: weft.Internal, Op: "start", Thing: "demo: join token", Err: err}
	}
	env := []string{"WEFT_TOKEN=" + strings.TrimSpace(string(token)), client.AddrEnv + "=" + d.server.fact("api"),
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + d.server.fact("otlp-http")}
	join := []string{"--control", d.server.fact("control")}
	gateway, err := d.launch("gateway", slices.Concat([]string{"gateway", "--keep-pid"}, join, c.Gateway), env)
	if err != nil {
		return err
	}
	d.others = append(d.others, gateway)
	for _, s := range c.Sidecars {
		p, err := d.launch(s.Name, slices.Concat([]string{"run"}, join, s.Args), slices.Concat(env, s.Env))
		if err != nil {
			return err
		}
		d.others = append(d.others, p)
	}
	return nil
}

// healthy waits until every instance passes its checks.
func (d *Demo) healthy(ctx context.Context, api *client.Client) error {
	for {
		status, err := api.Status(ctx)
		if err == nil && status.Healthy >= len(d.config.Sidecars) {
			return nil
		}
		for _, p := range d.others {
			select {
			case <-p.exited():
				return p.lastWords()
			default:
			}
		}
		select {
		case <-ctx.Done():
			return weft.Errorf(weft.Unavailable, "start", "demo", "not all instances became healthy in %s; see the logs in %s", demoStart, filepath.Join(d.config.DataDir, "logs"))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// launch starts one weft process whose output goes to a log file.
func (d *Demo) launch(name string, args, env []string) (*demoProcess, error) {
	p := &demoProcess{name: name, log: filepath.Join(d.config.DataDir, "logs", name+".log"), ready: make(chan map[string]any, 1), logged: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, &weft.Error{Kind: weft.Internal, Op: "start", Thing: name, Err: err}
	}
	r, w, err := os.Pipe()
	if err != nil {
		_ = out.Close()
		return nil, err
	}
	cmd := exec.Command(d.config.Weft, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, w
	p.process, err = startProcess(cmd)
	_ = w.Close() // the child has its own
	if err != nil {
		return nil, errors.Join(err, r.Close(), out.Close())
	}
	d.logs.Go(func() {
		p.follow(r, out)
		close(p.logged)
		_ = r.Close()
		_ = out.Close()
	})
	return p, nil
}

// follow copies a child's log to its file, and notices the line that says "ready".
func (p *demoProcess) follow(r io.Reader, out io.Writer) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Bytes()
		_, _ = out.Write(append(line, '\n'))
		var record map[string]any
		if json.Unmarshal(line, &record) != nil {
			p.mu.Lock()
			p.last = string(line)
			p.mu.Unlock()
		} else if record["msg"] == "ready" {
			select {
			case p.ready <- record:
			default:
			}
		}
	}
	_, _ = io.Copy(out, r) // a line too long to look at
}

// await waits until the process says that it is ready.
func (p *demoProcess) await(ctx context.Context) error {
	select {
	case p.facts = <-p.ready:
		return nil
	case <-p.exited():
		return p.lastWords()
	case <-ctx.Done():
		return weft.Errorf(weft.Unavailable, "start", p.name, "it was not ready in time; see %s", p.log)
	}
}

// lastWords is why a process ended that should not have.
func (p *demoProcess) lastWords() error {
	select {
	case <-p.logged: // all of them are read
	case <-time.After(time.Second):
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return weft.Errorf(weft.Unavailable, "start", p.name, "%s (its log: %s)", strings.TrimPrefix(p.last, "weft: "), p.log)
}

// report prints what runs where.
func (d *Demo) report() {
	out := d.config.Out
	t := tabwriter.NewWriter(out, 2, 8, 2, ' ', 0)
	fmt.Fprintln(t, "ROLE\tSERVICE\tVERSION\tPID\tAPP PID\tADDRESS\tMETRICS")
	for _, p := range append([]*demoProcess{d.server}, d.others...) {
		switch p.fact("role") {
		case "server":
			fmt.Fprintf(t, "server\t-\t-\t%d\t-\tAPI %s, Consul %s, DNS %s\t%s\n", p.pid, p.fact("api"), p.fact("consul"), p.fact("dns"), p.fact("api"))
		case "gateway":
			fmt.Fprintf(t, "gateway\t%s\t-\t%d\t-\t%s\t%s\n", p.fact("name"), p.pid, p.fact("http"), p.fact("admin"))
		default:
			fmt.Fprintf(t, "sidecar\t%s\t%s\t%d\t%s\t%s (mTLS %s)\t%s\n", p.fact("service"), p.fact("version"), p.pid, p.fact("app_pid"), p.fact("app"), p.fact("inbound"), p.fact("admin"))
		}
	}
	_ = t.Flush()
	fmt.Fprintf(out, "\nlogs: %s\n\n%s", filepath.Join(d.config.DataDir, "logs"), d.config.Try(d.server.fact("api"), d.others[0].fact("http")))
}

// fact is a text or a number of the process's "ready" line, "-" when it says none.
func (p *demoProcess) fact(key string) string {
	switch v := p.facts[key].(type) {
	case string:
		if v != "" {
			return v
		}
	case float64:
		if v != 0 {
			return strconv.Itoa(int(v))
		}
	}
	return "-"
}

// wait tells of processes that end, until ctx ends. People are meant to kill
// them: nothing is restarted.
func (d *Demo) wait(ctx context.Context) {
	ended := make(chan *demoProcess)
	for _, p := range append([]*demoProcess{d.server}, d.others...) {
		go func() {
			select {
			case <-p.exited():
				select {
				case ended <- p:
				case <-ctx.Done():
				}
			case <-ctx.Done():
			}
		}()
	}
	var requests chan request
	if d.config.Process != nil {
		requests = d.config.Process.requests
	}
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-requests:
			r.reply <- d.upgrade(ctx)
		case p := <-ended:
			fmt.Fprintf(d.config.Out, "%s (pid %d) ended: %s\n", p.name, p.pid, p.cmd.ProcessState)
		}
	}
}

// upgrade replaces all processes of the demo, one after the other. They keep their
// process ids; the demo itself only watches them, and stays as it is.
func (d *Demo) upgrade(ctx context.Context) handover.Reply {
	var said []string
	for _, p := range append([]*demoProcess{d.server}, d.others...) {
		select {
		case <-p.exited():
			continue // somebody has killed it
		default:
		}
		what, err := Upgrade(ctx, p.pid)
		if err != nil {
			fmt.Fprintf(d.config.Out, "%s: %s\n", p.name, err)
			return handover.Reply{Error: strings.Join(append(said, p.name+": "+err.Error()), "\n")}
		}
		said = append(said, p.name+": "+what)
		fmt.Fprintf(d.config.Out, "%s: %s\n", p.name, what)
	}
	return handover.Reply{Said: strings.Join(said, "\n")}
}

// stop ends the gateway, then the sidecars together, then the server.
func (d *Demo) stop() {
	if len(d.others) > 0 {
		d.others[0].end()
		var all sync.WaitGroup
		for _, p := range d.others[1:] {
			all.Go(func() { p.end() })
		}
		all.Wait()
	}
	if d.server != nil {
		d.server.end()
	}
	d.logs.Wait()
}
