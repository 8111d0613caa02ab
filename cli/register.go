package cli

import (
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/node"
)

const (
	shortestTTL = time.Second
	longestTTL  = time.Hour
)

func (a *app) register() *cobra.Command {
	var c node.RegisterConfig
	ttl := 10 * time.Second
	cmd := &cobra.Command{
		Use:   "register --service NAME [flags] [-- COMMAND...]",
		Short: "Keep a program registered as an instance of a service, without a sidecar",
		Long: `Keep a program registered as an instance of a service while it lives, without a
sidecar: callers find it, by DNS, the Consul API or the mesh, and call it directly.

With COMMAND the program is run here. It finds in its environment PORT, where it
shall listen, unless --port says where it does; "weft register" ends when it does,
with its exit code. With --pid a process that runs already is watched, with
--systemd a unit, over its restarts. The instance is registered when the port
accepts connections.

The registration has a lease: when "weft register" is killed, or its machine dies,
the instance gets no more traffic after --ttl. Ctrl-C or SIGTERM takes it out of the
registry, waits until its callers know, and then sends COMMAND SIGTERM; a process or
unit that was only watched runs on. Other signals are passed on to COMMAND. As long
as the server is away, it is tried again.

As a systemd unit of its own, for a program that needs no other:

  [Service]
  ExecStart=/usr/bin/weft register --service orders --port 3000 -- /usr/bin/orders
  KillMode=mixed
  SuccessExitStatus=143

KillMode=mixed leaves it to "weft register" to end the program, after its callers
know; 143 is what it ends with when the program has no handler of SIGTERM. Beside a
unit that is there already, a second one runs "weft register --systemd".`,
		Example: `  weft register --service order-service --port 3000 -- ./orders
  weft register --service order-service --label version=v2 --check-http http://127.0.0.1:3000/health --port 3000 -- ./orders
  weft register --service postgres --port 5432 --systemd postgresql.service
  weft register --service legacy --port 8081 --pid 4711`,
		Args: cobra.ArbitraryArgs,
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // flags behind COMMAND are the program's
	f.StringVar(&c.Service, "service", "", "`name` of the service (required)")
	f.StringVarP(&c.Namespace, "namespace", "n", "", "`namespace` of the service (default \"default\")")
	f.IntVar(&c.Port, "port", 0, "`port` where the program listens (default a free one, told to COMMAND as PORT)")
	f.StringVar(&c.Address, "address", "", "`address` where others reach it (default the one that the server sees)")
	f.Var(&protocol{&c.Protocol}, "protocol", "what the port `speaks`: http, http2, grpc or tcp (default: labels and tags tell)")
	_ = cmd.RegisterFlagCompletionFunc("protocol", cobra.FixedCompletions([]string{"http", "http2", "grpc", "tcp"}, cobra.ShellCompDirectiveNoFileComp))
	f.StringArrayVar(&c.Tags, "tag", nil, "`tag` of the instance; may be repeated")
	f.StringToStringVar(&c.Labels, "label", nil, "label of the instance, `key=value`, as version=v2; may be repeated")
	f.StringVar(&c.Zone, "zone", "", "`zone` where it runs, as eu-west/a: services may prefer what is near")
	f.DurationVar(&ttl, "ttl", ttl, "how `long` it gets traffic without a sign of life, 1s to 1h")
	f.StringVar(&c.CheckHTTP, "check-http", "", "`URL` that answers 2xx when the program is well")
	f.StringVar(&c.CheckTCP, "check-tcp", "", "`host:port` that accepts connections when the program is well")
	f.BoolVar(&c.NoWait, "no-wait", false, "register at once, not when the port accepts connections")
	f.IntVar(&c.PID, "pid", 0, "`id` of a process that runs already")
	f.StringVar(&c.Unit, "systemd", "", "name of a systemd `unit`")
	level := levelFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c.Command, c.Registration.TTL = args, weft.Duration(ttl)
		if err := checkRegister(&c, cmd.Flags().Changed("pid")); err != nil {
			return err
		}
		c.Server, c.Stdin, c.Stdout, c.Stderr = a.addr, a.in, a.out, a.err
		c.Logger = node.NewLogger(a.err, *level)
		code, err := node.Register(cmd.Context(), c)
		if err == nil && code != 0 {
			return exitCode(code)
		}
		return err
	}
	return cmd
}

// checkRegister looks whether the flags fit together.
func checkRegister(c *node.RegisterConfig, pid bool) error {
	ways := 0
	for _, given := range []bool{len(c.Command) > 0, pid, c.Unit != ""} {
		if given {
			ways++
		}
	}
	ttl := c.Registration.TTL.Std()
	switch {
	case c.Service == "":
		return usagef("want --service NAME")
	case ways == 0:
		return usagef("want a COMMAND to run, or --pid or --systemd of what runs already")
	case ways > 1:
		return usagef("want only one of COMMAND, --pid and --systemd")
	case pid && c.PID <= 0:
		return usagef("--pid %d: is no process id", c.PID)
	case c.Port < 0 || c.Port > 65535:
		return usagef("--port %d: is no port; want 1 to 65535", c.Port)
	case c.Port == 0 && len(c.Command) == 0:
		return usagef("want --port, where it listens")
	case ttl < shortestTTL || ttl > longestTTL:
		return usagef("--ttl %v: want a time from %v to %v", ttl, shortestTTL, longestTTL)
	case c.CheckHTTP != "" && c.CheckTCP != "":
		return usagef("want only one of --check-http and --check-tcp")
	}
	if c.CheckHTTP != "" {
		if u, err := url.Parse(c.CheckHTTP); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return usagef("--check-http %q: is no URL; want one such as http://127.0.0.1:3000/health", c.CheckHTTP)
		}
	}
	if c.CheckTCP != "" {
		_, port, err := net.SplitHostPort(c.CheckTCP)
		if n, bad := strconv.Atoi(port); err != nil || bad != nil || n < 1 || n > 65535 {
			return usagef("--check-tcp %q: is not host:port", c.CheckTCP)
		}
	}
	return nil
}
