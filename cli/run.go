package cli

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/node"
)

func (a *app) run() *cobra.Command {
	c := node.DefaultSidecar
	cmd := &cobra.Command{
		Use:   "run --service NAME [flags] [-- COMMAND...]",
		Short: "Run a program as an instance of a service, with a sidecar beside it",
		Long: `Run a program as an instance of a service, with a sidecar beside it: the instance
is registered, checked and taken out again, others call it over mTLS, and it
calls others by their names.

The program finds in its environment PORT, where it shall listen, and HTTP_PROXY,
through which a plain "GET http://order-service/..." goes into the mesh. With
--upstream NAME=PORT, 127.0.0.1:PORT is that service too.

Without COMMAND the program is somebody else's business, and --port says where it
listens. Otherwise "weft run" ends when the program does, with its exit code.

Ctrl-C or SIGTERM takes the instance out of the mesh, lets requests in flight end
(for --drain at most), and then sends the program SIGTERM; a second one ends all at
once. SIGUSR2 and "weft upgrade" replace the sidecar by a new process and leave the
program alone: it keeps its process id and its parent, which stays as long as it
runs. SIGHUP does nothing.`,
		Example: `  weft run --service order-service --version v1 -- ./orders
  weft run --service order-service --port 3000 --health /health
  weft run --service order-service --upstream inventory-service=9001 -- ./orders`,
		Args: cobra.ArbitraryArgs,
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // flags behind COMMAND are the program's
	f.StringVar(&c.Service, "service", "", "`name` of the service (required)")
	f.StringVarP(&c.Namespace, "namespace", "n", "", "`namespace` of the service (default \"default\")")
	f.StringVar(&c.Version, "version", "", "the instance's `version`")
	f.StringToStringVar(&c.Labels, "label", nil, "more labels of the instance, `key=value`; may be repeated")
	f.IntVar(&c.Port, "port", 0, "`port` where the program listens (default a free one, told to it as PORT)")
	f.Var(&protocol{&c.Protocol}, "protocol", "what the port `speaks`: http, http2, grpc or tcp (default: the first bytes tell)")
	_ = cmd.RegisterFlagCompletionFunc("protocol", cobra.FixedCompletions([]string{"http", "http2", "grpc", "tcp"}, cobra.ShellCompDirectiveNoFileComp))
	f.StringVar(&c.Health, "health", "", "`path` that answers 2xx when the program is well (default: it accepts connections)")
	f.StringArrayVar(&c.Upstreams, "upstream", nil, "`NAME[=PORT]`: a service that the program calls, known from the start; with =PORT, 127.0.0.1:PORT is it; may be repeated")
	f.StringVar(&c.Inbound, "inbound", c.Inbound, "`address` where other sidecars call over mTLS; port 0 takes a free one")
	f.StringVar(&c.Outbound, "outbound", c.Outbound, "`address` of the program's HTTP proxy; port 0 takes a free one")
	keepPID := keepPIDFlag(cmd)
	flags := addProxyFlags(cmd, &c.ProxyConfig)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		switch {
		case c.Service == "":
			return usagef("want --service NAME")
		case len(args) == 0 && c.Port == 0:
			return usagef("want a COMMAND to run, or --port of a program that runs already")
		}
		end, err := flags.begin(&c.ProxyConfig, *keepPID, a.err)
		if err != nil {
			return err
		}
		defer end(&err)
		c.Command, c.Stdin, c.Stdout, c.Stderr = args, a.in, a.out, a.err
		s, err := node.NewSidecar(cmd.Context(), c)
		if err != nil {
			return err
		}
		code, err := s.Run(cmd.Context())
		if err == nil && code != 0 {
			return exitCode(code)
		}
		return err
	}
	return cmd
}

// protocol is the flag --protocol.
type protocol struct{ value *weft.Protocol }

func (p *protocol) String() string { return string(*p.value) }

func (p *protocol) Type() string { return "protocol" }

func (p *protocol) Set(s string) (err error) {
	*p.value, err = weft.ParseProtocol(s)
	return err
}

// exitCode is how the program ended that weft ran; there is nothing to say about
// it.
type exitCode int

func (c exitCode) Error() string { return "the program ended with code " + strconv.Itoa(int(c)) }
