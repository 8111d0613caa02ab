// Command consul stands in for HashiCorp's program of this name before the tests
// of its API client: it knows "consul version" and "consul agent -config-file F",
// where F is what their test harness writes, and serves weft's registry through
// weft's Consul dialect on the ports that F names.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
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
		return errors.New("usage: consul version | consul agent -config-file FILE [-config-file FILE]")
	}
	var c config
	if err := readJSON(args[2], &c); err != nil {
		return err
	}
	for i := 4; i < len(args); i += 2 {
		c.files = append(c.files, args[i])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return serve(orphaned(ctx), stop, c)
}

func readJSON(file string, v any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
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

	Connect struct {
		Enabled  bool
		CAConfig struct {
			ClusterID string `json:"cluster_id"`
		} `json:"ca_config"`
	}
	ACL struct {
		Enabled       bool
		DefaultPolicy string `json:"default_policy"`
		Tokens        struct {
			InitialManagement string `json:"initial_management"`
			Master            string // its older name
		}
	}

	files []string // of services; read when the agent is told to reload
}

func serve(ctx context.Context, stop func(), c config) (err error) {
	tap := new(consul.LogTap)
	log := slog.New(tap.Handler(slog.NewTextHandler(os.Stderr, nil)))
	s, err := store.Open(ctx, store.Config{Dir: filepath.Join(c.DataDir, "state"), Logger: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	node := weft.Node{ID: c.NodeID, Name: c.NodeName, Address: "127.0.0.1", Labels: c.NodeMeta}
	if c.Locality != nil {
		node.Zone = c.Locality.Zone
	}
	r, err := registry.Open(ctx, registry.Config{
		Store: s, Node: node, Datacenter: c.Datacenter, EnableScripts: c.EnableScriptChecks, Logger: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	known := &consul.Announcement{Registry: r, Address: c.address(), Version: version, Logger: log}
	if err := known.Announce(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { _ = known.Run(ctx) })
	defer func() { cancel(); work.Wait() }()
	var api http.Handler
	authority, err := c.authority(ctx)
	if err != nil {
		return err
	}
	api = consul.New(r, consul.Config{
		Logger: log, Version: version, Address: c.address(), Scripts: c.EnableScriptChecks, ACL: c.access(), CA: authority,
		Process: consul.Process{Log: tap, Leave: stop, Reload: func(ctx context.Context) error { return c.reload(ctx, api) }},
	})
	return c.listenAndServe(ctx, api)
}

// access is how the configuration wants access controlled.
func (c *config) access() *consul.ACL {
	if !c.ACL.Enabled {
		return nil
	}
	return &consul.ACL{
		DefaultPolicy:     c.ACL.DefaultPolicy,
		InitialManagement: cmp.Or(c.ACL.Tokens.InitialManagement, c.ACL.Tokens.Master),
		SealKey:           []byte("secrets of tokens are read again by the tests"),
	}
}

// authority signs for Connect, which the harness turns on. Its root lives as long as
// this process.
func (c *config) authority(ctx context.Context) (consul.CA, error) {
	if !c.Connect.Enabled {
		return nil, nil
	}
	seal, err := ca.LoadOrCreateSealKey(filepath.Join(c.DataDir, "seal.key"))
	if err != nil {
		return nil, err
	}
	trust := ca.Config{SealKey: seal}
	if id := c.Connect.CAConfig.ClusterID; id != "" {
		trust.TrustDomain = id + ".consul"
	}
	return ca.Open(ctx, memory{}, trust)
}

// memory keeps what an authority stores. One goroutine uses it.
type memory map[string][]byte

func (m memory) Load(_ context.Context, name string) ([]byte, bool, error) {
	value, found := m[name]
	return value, found, nil
}

func (m memory) Create(_ context.Context, name string, value []byte) error {
	m[name] = value
	return nil
}

// reload registers the services of the other files, as an agent would.
func (c *config) reload(ctx context.Context, api http.Handler) error {
	for _, file := range c.files {
		var content struct{ Service json.RawMessage }
		if err := readJSON(file, &content); err != nil {
			return err
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPut, "/v1/agent/service/register", bytes.NewReader(content.Service))
		if err != nil {
			return err
		}
		w := httptest.NewRecorder()
		if api.ServeHTTP(w, r); w.Code != http.StatusOK {
			return fmt.Errorf("%s: %s", file, w.Body)
		}
	}
	return nil
}

func (c *config) listenAndServe(ctx context.Context, api http.Handler) error {
	ln, err := c.listen()
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           api,
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
