package cli

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/node"
)

func (a *app) server() *cobra.Command {
	c := node.DefaultServer
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run a server: registry, DNS, certificate authority, control, traces",
		Long: `Run a server in the foreground: the registry with its Consul API and DNS, the
certificate authority, the control plane, and the store of traces.

Everything is kept in the data directory, also the join token that gateways and
sidecars need (DIR/join-token). Every address may have port 0, which takes a free
one; "weft status" and the "ready" line of the log tell which. The log goes to
stderr, one JSON object a line.

Ctrl-C or SIGTERM stops the server; a second one ends it at once. SIGUSR2 and "weft
upgrade" replace it by a new process: clients wait a moment, proxies go on meanwhile.
SIGHUP does nothing.`,
		Example: `  weft server
  weft server --data /var/lib/weft --dns 127.0.0.1:53`,
		Args:              wantArgs(0, 0, "no arguments"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	serverFlags(cmd, &c)
	registryFlags(cmd, &c)
	access := accessFlags(cmd, &c)
	token := clusterFlags(cmd, &c)
	keepPID := keepPIDFlag(cmd)
	level := levelFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		c.Logger = node.NewLogger(a.err, *level)
		if c.ServerToken, err = readToken(*token); err != nil {
			return err
		}
		if err = access(); err != nil {
			return err
		}
		if c.Process, err = node.Begin(*keepPID, c.Logger); err != nil {
			return err
		}
		defer func() { c.Process.End(err) }()
		s, err := node.NewServer(cmd.Context(), c)
		if err != nil {
			return wrongStart(err)
		}
		return s.Run(cmd.Context())
	}
	return cmd
}

// wrongStart tells a wrong flag, which "start" complains of, from all else that keeps a
// server from starting.
func wrongStart(err error) error {
	var e *weft.Error
	if errors.As(err, &e) && e.Op == "start" && e.Kind == weft.Invalid {
		return usage{err}
	}
	return err
}

// serverFlags gives cmd the flags of a server's directory and doors.
func serverFlags(cmd *cobra.Command, c *node.ServerConfig) {
	f := cmd.Flags()
	f.StringVar(&c.DataDir, "data", c.DataDir, "`directory` of all state; made when it does not exist")
	f.StringVar(&c.API, "api", c.API, "`address` of weft's own API, /metrics and /healthz")
	f.StringVar(&c.Consul, "consul", c.Consul, "`address` of the Consul API")
	f.StringVar(&c.Eureka, "eureka", c.Eureka, "`address` of the Eureka API")
	f.StringVar(&c.DNS, "dns", c.DNS, "`address` of DNS, UDP and TCP")
	f.StringVar(&c.Control, "control", c.Control, "`address` where gateways and sidecars join")
	f.StringVar(&c.OTLPHTTP, "otlp-http", c.OTLPHTTP, "`address` that takes OTLP traces over HTTP")
	f.StringVar(&c.OTLPGRPC, "otlp-grpc", c.OTLPGRPC, "`address` that takes OTLP traces over gRPC")
}

// registryFlags gives cmd the flags of what fills the registry.
func registryFlags(cmd *cobra.Command, c *node.ServerConfig) {
	f := cmd.Flags()
	f.StringSliceVar(&c.Directories, "services", nil, "`directory` of YAML and JSON files that name services and their instances; repeatable")
	f.StringArrayVar(&c.Etcd, "import-etcd", nil, "`URL` of an etcd and a prefix whose registrations are taken over, as http://10.0.0.1:2379/services; repeatable")
	f.StringArrayVar(&c.ZooKeeper, "import-zookeeper", nil, "`URL` of a ZooKeeper and a path, as zk://10.0.0.1:2181/services; repeatable")
	f.BoolVar(&c.EnableScripts, "enable-script-checks", false, "let checks run programs on this server: whoever may register may then run anything")
	f.StringSliceVar(&c.Recursors, "dns-recursor", nil, "`address` of a resolver that DNS asks for names that are not of the catalogue; repeatable")
}

// accessFlags gives cmd the flags of who may use the catalogue. What is returned
// reads what they name.
func accessFlags(cmd *cobra.Command, c *node.ServerConfig) func() error {
	f := cmd.Flags()
	f.StringVar(&c.Access.Default, "acl", "", "access control of Consul's and Eureka's clients: what tokens may do that no rule speaks of, `deny` or allow (default no access control)")
	f.StringVar(&c.ConsulHTTPS, "consul-https", "", "`address` of the Consul API over TLS, as 0.0.0.0:8501; beyond loopback it needs --acl deny")
	f.StringVar(&c.EurekaHTTPS, "eureka-https", "", "`address` of the Eureka API over TLS; clients have a token as the password in their URL")
	f.StringVar(&c.DefaultIntention, "default-intention", "", "what holds between services that no intention speaks of: `allow` or deny (default allow)")
	management := f.String("acl-token-file", "", "`file` with the secret of a token that may do everything (default: the first acl/bootstrap makes one)")
	networks := f.StringSlice("dns-clients", nil, "`network` that DNS answers beside loopback, as 10.0.0.0/8; repeatable")
	certs := f.StringArray("cert", nil, "PEM `file` of a certificate for --consul-https and --eureka-https; repeatable")
	keys := f.StringArray("key", nil, "PEM `file` of the key to the --cert at the same place, mode 0600; repeatable")
	return func() (err error) {
		if c.Management, err = readSecret(*management); err != nil {
			return err
		}
		if c.DNSClients, err = prefixes("--dns-clients", *networks); err != nil {
			return err
		}
		if err := checkRecursors(c.Recursors); err != nil {
			return err
		}
		c.Certificates, err = certificateFiles(*certs, *keys)
		return err
	}
}

func checkRecursors(addresses []string) error {
	for _, address := range addresses {
		host, port, err := net.SplitHostPort(address)
		if n, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || host == "" || n == 0 {
			return usagef("--dns-recursor %q: want host:port, as 9.9.9.9:53", address)
		}
	}
	return nil
}

// clusterFlags gives cmd the flags of a server among others, and returns the file
// with the token by which it joins.
func clusterFlags(cmd *cobra.Command, c *node.ServerConfig) (tokenFile *string) {
	f := cmd.Flags()
	f.StringVar(&c.Node, "node", "", "`name` of this machine in the catalogue, and of the server in its cluster (default its host name)")
	f.StringVar(&c.Datacenter, "datacenter", "dc1", "`name` of the datacenter, as Consul's clients see it")
	f.StringVar(&c.Peer, "peer", "", "`address` where other servers' stores reach this one's (default: as before, or alone)")
	f.StringVar(&c.Join, "join", "", "control `address` of a server whose cluster this one joins, the first time it starts")
	return f.String("server-token-file", "", "`file` with the server token of that cluster; needed to join")
}

// readToken reads a file with a token; no file is no token.
func readToken(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", &weft.Error{Kind: weft.Invalid, Op: "read token", Thing: path, Err: err}
	}
	return strings.TrimSpace(string(b)), nil
}

// readSecret reads a token that others must not see.
func readSecret(path string) (string, error) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		return "", weft.Errorf(weft.Denied, "read token", path, "its mode is %#o: others could read it; chmod 600 it", info.Mode().Perm())
	}
	return readToken(path)
}

// levelFlag gives cmd the flag --log-level.
func levelFlag(cmd *cobra.Command) *slog.Level {
	level := slog.LevelInfo
	cmd.Flags().TextVar(&level, "log-level", slog.LevelInfo, "least `level` that is logged: debug, info, warn or error")
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
	return &level
}
