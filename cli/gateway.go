package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/node"
)

func (a *app) gateway() *cobra.Command {
	c := node.DefaultGateway
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Run a gateway, through which requests come into the mesh",
		Long: `Run a gateway in the foreground. It joins the mesh at the server's control door and
serves the hosts and routes of the Gateway resource of its name, and of the
VirtualServices that are bound to it.

Ctrl-C drains it: no new connections, requests in flight end.`,
		Example: `  weft gateway
  weft gateway --name edge --http 0.0.0.0:8080 --token-file /run/secrets/weft-token`,
		Args:              wantArgs(0, 0, "no arguments"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&c.Name, "name", c.Name, "`name` of the Gateway resource to serve")
	f.StringVar(&c.HTTP, "http", c.HTTP, "`address` where clients come; port 0 takes a free one")
	flags := addProxyFlags(cmd, &c.ProxyConfig)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		log, err := flags.fill(&c.ProxyConfig, a.err)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, log.Close()) }()
		g, err := node.NewGateway(cmd.Context(), c)
		if err != nil {
			return err
		}
		return g.Run(cmd.Context())
	}
	return cmd
}
