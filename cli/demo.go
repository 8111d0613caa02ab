package cli

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/examples/shop/resources"
	"github.com/weftmesh/weft/examples/shop/shop"
	"github.com/weftmesh/weft/node"
)

func (a *app) demo() *cobra.Command {
	server := node.DefaultServer
	server.DataDir = filepath.Join(server.DataDir, "demo")
	http := node.DefaultGateway.HTTP
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a small shop on this machine, with all of weft around it",
		Long: `Run a small shop on this machine: a server, a gateway, and five services as
processes of their own, each beside its sidecar. What weft does for the shop is in
examples/shop/resources; nothing of it is made for the demo.

It prints what runs where and commands to try, and stops everything on Ctrl-C.
Kill what you like meanwhile, or replace all processes with "weft upgrade".`,
		Example: `  weft demo
  weft demo --http 127.0.0.1:9080`,
		Args:              wantArgs(0, 0, "no arguments"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	serverFlags(cmd, &server)
	cmd.Flags().StringVar(&http, "http", http, "`address` of the gateway")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		c, err := a.shopDemo(server, http)
		if err != nil {
			return err
		}
		if c.Process, err = node.Begin(false, node.NewLogger(a.err, slog.LevelWarn)); err != nil {
			return err
		}
		defer func() { c.Process.End(err) }()
		return node.RunDemo(cmd.Context(), c)
	}
	return cmd
}

// shopInstances are the processes of the shop. The label app is what the policies
// in examples/shop/resources select by.
var shopInstances = []struct {
	service, version, app string
	calls                 []string
}{
	{"user-service", "v1", "user", nil},
	{"order-service", "v1", "order", orderCalls},
	{"order-service", "v1", "order", orderCalls},
	{"order-service", "v2", "order", orderCalls},
	{"inventory-service", "v1", "inventory", nil},
	{"inventory-service", "v1", "inventory", nil},
	{"recommendation-service", "v1", "recommendation", nil},
	{"payment-service", "v1", "payment", nil},
}

var orderCalls = []string{"inventory-service", "payment-service", "user-service"}

// shopDemo says with which command lines the shop is run.
func (a *app) shopDemo(server node.ServerConfig, http string) (node.DemoConfig, error) {
	exe, err := os.Executable()
	if err != nil {
		return node.DemoConfig{}, fmt.Errorf("find the weft program: %w", err)
	}
	files, err := shopResources()
	if err != nil {
		return node.DemoConfig{}, err
	}
	c := node.DemoConfig{
		Weft: exe, DataDir: server.DataDir, Resources: files, Out: a.out, Try: shopCommands,
		Server: []string{"--data", server.DataDir, "--api", server.API, "--consul", server.Consul, "--eureka", server.Eureka, "--dns", server.DNS,
			"--control", server.Control, "--otlp-http", server.OTLPHTTP, "--otlp-grpc", server.OTLPGRPC},
		Gateway: []string{"--name", "shop", "--http", http, "--sample", "1"},
	}
	for i, in := range shopInstances {
		args := []string{"--service", in.service, "--version", in.version, "--label", "app=" + in.app, "--health", "/health", "--sample", "1"}
		for _, name := range in.calls {
			args = append(args, "--upstream", name)
		}
		c.Sidecars = append(c.Sidecars, node.DemoSidecar{
			Name: fmt.Sprintf("%s-%s-%d", in.service, in.version, i),
			Args: append(args, "--", exe, "shop", in.service),
			Env: []string{"VERSION=" + in.version, "OTEL_SERVICE_NAME=" + in.service,
				"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "OTEL_PROPAGATORS=tracecontext,baggage",
				"OTEL_BSP_SCHEDULE_DELAY=1000"}, // ms: somebody is waiting to see the trace
		})
	}
	return c, nil
}

// shopResources are the shop's files, under the names that they have in the
// repository.
func shopResources() ([]client.File, error) {
	entries, err := fs.ReadDir(resources.Files, ".")
	if err != nil {
		return nil, err
	}
	var files []client.File
	for _, e := range entries {
		b, err := resources.Files.ReadFile(e.Name())
		if err != nil {
			return nil, err
		}
		files = append(files, client.File{Name: path.Join(resources.Path, e.Name()), Data: string(b)})
	}
	return files, nil
}

// shopCommands are worth trying.
func shopCommands(api, http string) string {
	at := ""
	if api != client.DefaultAddr {
		at = " --addr " + api
	}
	return fmt.Sprintf(`try:
  curl %[1]s/api/orders/1                      an order: four services behind one gateway
  curl -i %[1]s/api/inventory/42               403: only order-service may ask
  weft instances order-service%[2]s            kill -9 one of these, and watch nothing fail
  weft explain GET http://order-service/api/orders/1%[2]s
  weft traces%[2]s
  weft status%[2]s

Ctrl-C stops everything.
`, http, at)
}

// shop runs one service of the example shop. It is how the demo's processes come
// out of one binary, and hidden because it is nobody's business else.
func (a *app) shop() *cobra.Command {
	return &cobra.Command{
		Use:    "shop SERVICE",
		Hidden: true,
		Args:   wantArgs(1, 1, "the name of a service"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := shop.Run(cmd.Context(), args[0], shop.ReadEnv(os.Getenv)); err != nil {
				return &weft.Error{Kind: weft.Internal, Op: "run", Thing: "shop's " + args[0], Err: err}
			}
			return nil
		},
	}
}
