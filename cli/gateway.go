package cli

import (
	"net/netip"
	"strconv"
	"strings"

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

With --tcp it listens for a TCP server of the Gateway and passes bytes on. With
--https it takes TLS 1.2 and later, too, and speaks HTTP/2 to who prefers it.
Of several certificates the one is shown that fits the name the client asks for, or
the first. Files that change are loaded again.

Ctrl-C or SIGTERM drains it: no new connections, requests in flight end, for --drain
at most; a second one ends it at once. SIGUSR2 and "weft upgrade" replace it by a new
process. SIGHUP does nothing: configuration is pushed.`,
		Example: `  weft gateway
  weft gateway --name edge --http 0.0.0.0:8080 --token-file /run/secrets/weft-token
  weft gateway --https 0.0.0.0:8443 --cert shop.pem --key shop.key`,
		Args:              wantArgs(0, 0, "no arguments"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&c.Name, "name", c.Name, "`name` of the Gateway resource to serve")
	f.StringVar(&c.HTTP, "http", c.HTTP, "`address` where clients come; port 0 takes a free one")
	f.StringVar(&c.HTTPS, "https", "", "`address` where clients come over TLS (default none); without --cert and --key only names that a route passes on get through")
	var certs, keys []string
	f.StringArrayVar(&certs, "cert", nil, "PEM `file` of a certificate and those that it hangs on; may be repeated")
	f.StringArrayVar(&keys, "key", nil, "PEM `file` of the key to the --cert at the same place, mode 0600; may be repeated")
	var tcp, from []string
	f.StringArrayVar(&tcp, "tcp", nil, "`PORT[=ADDRESS]`: a Gateway's TCP server of that port, and where to listen for it (default 127.0.0.1:PORT); may be repeated")
	f.StringSliceVar(&from, "proxy-protocol", nil, "`networks` of load balancers that send PROXY headers, as 10.0.0.0/8; they have to, and nobody else may")
	keepPID := keepPIDFlag(cmd)
	flags := addProxyFlags(cmd, &c.ProxyConfig)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if c.Certificates, err = certificateFiles(certs, keys); err != nil {
			return err
		}
		if c.HTTPS == "" && len(certs) > 0 {
			return usagef("--cert and --key belong to --https: want an address, too")
		}
		if c.TCP, err = tcpDoors(tcp); err != nil {
			return err
		}
		if c.ProxyFrom, err = prefixes("--proxy-protocol", from); err != nil {
			return err
		}
		end, err := flags.begin(&c.ProxyConfig, *keepPID, a.err)
		if err != nil {
			return err
		}
		defer end(&err)
		g, err := node.NewGateway(cmd.Context(), c)
		if err != nil {
			return err
		}
		return g.Run(cmd.Context())
	}
	return cmd
}

// tcpDoors reads PORT and PORT=ADDRESS.
func tcpDoors(flags []string) (map[uint16]string, error) {
	doors := make(map[uint16]string, len(flags))
	for _, s := range flags {
		portText, address, given := strings.Cut(s, "=")
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil || port == 0 {
			return nil, usagef("--tcp %q: want PORT or PORT=ADDRESS, as in --tcp 5432=0.0.0.0:5432", s)
		}
		if !given {
			address = "127.0.0.1:" + portText
		}
		doors[uint16(port)] = address
	}
	return doors, nil
}

// keepPIDFlag gives cmd the flag --keep-pid.
func keepPIDFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("keep-pid", false, "stay as the parent of the new process after an upgrade, for a supervisor that watches one process")
}

// certificateFiles pairs certificates with their keys.
func certificateFiles(certs, keys []string) (list []node.CertificateFiles, err error) {
	if len(certs) != len(keys) {
		return nil, usagef("%d --cert and %d --key: want a key to each certificate", len(certs), len(keys))
	}
	for i := range certs {
		list = append(list, node.CertificateFiles{Cert: certs[i], Key: keys[i]})
	}
	return list, nil
}

// prefixes reads the networks of a flag.
func prefixes(flag string, networks []string) (list []netip.Prefix, err error) {
	for _, network := range networks {
		p, err := netip.ParsePrefix(network)
		if err != nil {
			return nil, usagef("%s %q: want a network, as 10.0.0.0/8", flag, network)
		}
		list = append(list, p.Masked())
	}
	return list, nil
}
