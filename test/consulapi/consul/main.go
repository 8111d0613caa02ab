// Program consul stands in for HashiCorp's program of this name before the tests
// of its API client: it knows "consul version" and "consul agent -config-file F",
// where F is what their test harness writes, and serves weft's registry through
// weft's Consul dialect on the ports that F names.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/registry/consul"
	"github.com/weftmesh/weft/store"
)

// version is the release of Consul whose API is asked for.
const version = "1.22.0"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 0 && args[0] == "version" {
		fmt.Printf("{\"Version\":%q}\n", version)
		return nil
	}
	if len(args) < 3 || args[0] != "agent" || args[1] != "-config-file" {
		return errors.New("usage: consul version | consul agent -config-file FILE")
	}
	b, err := os.ReadFile(args[2])
	if err != nil {
		return err
	}
	var c config
	if err := json.Unmarshal(b, &c); err != nil {
		return fmt.Errorf("%s: %w", args[2], err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return serve(orphaned(ctx), c)
}

// orphaned returns a context that ends with the process that started this one: a
// test binary that dies must not leave its servers behind.
func orphaned(ctx context.Context) context.Context {
	ctx, end := context.WithCancel(ctx)
	parent := os.Getppid()
	go func() {
		for range time.Tick(time.Second) {
			if os.Getppid() != parent {
				end()
				return
			}
		}
	}()
	return ctx
}

// config is what is read of the harness's configuration. Gossip, RPC and the
// tuning of Raft are not: there is nothing of theirs here.
type config struct {
	NodeName   string            `json:"node_name"`
	NodeID     string            `json:"node_id"`
	NodeMeta   map[string]string `json:"node_meta"`
	Locality   *struct{ Region, Zone string }
	Datacenter string `json:"datacenter"`
	DataDir    string `json:"data_dir"`
	Addresses  struct{ HTTP string }
	Ports      struct{ HTTP int }

	EnableScriptChecks bool `json:"enable_script_checks"`
}

func serve(ctx context.Context, c config) (err error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := store.Open(ctx, store.Config{Dir: filepath.Join(c.DataDir, "state"), Logger: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	node := weft.Node{ID: c.NodeID, Name: c.NodeName, Address: "127.0.0.1", Labels: c.NodeMeta}
	if c.Locality != nil {
		node.Zone = c.Locality.Zone
	}
	r, err := registry.Open(ctx, registry.Config{Store: s, Node: node, Datacenter: c.Datacenter, Logger: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	ln, err := c.listen()
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           consul.New(r, consul.Config{Logger: log, Version: version, Address: c.address()}),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ln) }()
	select {
	case err = <-ended:
		return err
	case <-ctx.Done():
	}
	err = server.Close()
	<-ended
	return err
}

func (c *config) address() string { return fmt.Sprintf("127.0.0.1:%d", c.Ports.HTTP) }

func (c *config) listen() (net.Listener, error) {
	if path, ok := strings.CutPrefix(c.Addresses.HTTP, "unix://"); ok {
		return net.Listen("unix", path)
	}
	return net.Listen("tcp", c.address())
}
