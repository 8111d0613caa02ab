// Package cli is weft's command line: one file for each subcommand, which reads
// flags, calls client or node, and prints.
//
// What was asked for goes to stdout, everything else to stderr. The exit code is
// 0 when it worked, 1 when it failed, 2 when the command line itself was wrong;
// `weft run` ends with the code of the program that it ran. A failure is one line
// that names the thing, the place and the mend; what is wrong in a user's file is
// one line for each problem, beginning with file:line.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

// Main runs the command line args (without the program's name) and returns the
// exit code. An interrupt or SIGTERM cancels the command; a second one kills the
// process.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	unhook := context.AfterFunc(ctx, stop) // the default action is back: a second Ctrl-C kills
	defer unhook()

	a := &app{in: stdin, out: stdout, err: stderr}
	root := a.root()
	root.SetArgs(append([]string{}, args...)) // never nil: cobra would take os.Args
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return a.report(cmd, err)
}

// app is what all subcommands share.
type app struct {
	in       io.Reader
	out, err io.Writer
	addr     string         // --addr
	api      *client.Client // of the server at addr; nil in commands that ask none
	started  bool           // the command line was understood
}

// client is for commands that ask a server; see asking.
func (a *app) client() *client.Client { return a.api }

// connect makes client. Nothing is dialled yet.
func (a *app) connect(ctx context.Context) (err error) {
	if a.api, err = client.New(ctx, client.At(a.addr)); err != nil {
		return usage{err}
	}
	return nil
}

// serverAddr is where commands ask.
func (a *app) serverAddr() string {
	if a.api == nil {
		return client.DefaultAddr
	}
	return a.api.Addr()
}

const (
	groupRun    = "run"
	groupLook   = "look"
	groupChange = "change"
)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "weft",
		Short: "Registry, gateway and service mesh in one binary",
		Long: `weft is everything between your services: registry and DNS, gateway,
sidecars with mTLS, routing, retries and traces.

"weft demo" shows all of it at work on this machine.`,
		Example: `  weft demo
  weft services
  weft explain GET http://order-service/api/orders/1`,
		Version:       weft.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs, // so that RunE can name an unknown command itself
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
		PersistentPreRun: func(*cobra.Command, []string) { a.started = true },
	}
	root.SetVersionTemplate("weft {{.Version}}\n")
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run:"},
		&cobra.Group{ID: groupLook, Title: "Look:"},
		&cobra.Group{ID: groupChange, Title: "Change:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	// A process has no --addr: what it serves and what it calls have flags of
	// their own, and one that did nothing would be believed.
	asking := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.Flags().StringVar(&a.addr, "addr", "", "`host:port` of the weft server (default $"+client.AddrEnv+", else "+client.DefaultAddr+")")
			c.PreRunE = func(cmd *cobra.Command, _ []string) error { return a.connect(cmd.Context()) }
		}
		add(group, commands...)
	}
	add(groupRun, a.demo(), a.server(), a.gateway(), a.run(), a.upgrade(), a.restore())
	asking(groupRun, a.register())
	asking(groupLook, a.services(), a.instances(), a.explain(), a.traces(), a.status(), a.members(), a.whyStale(), a.history())
	asking(groupChange, a.apply(), a.get(), a.delete(), a.breaker(), a.guard(), a.drain(), a.backup())
	root.AddCommand(a.version(), a.shop())
	return root
}

// usage is an error of the command line itself.
type usage struct{ error }

func usagef(format string, args ...any) error { return usage{fmt.Errorf(format, args...)} }

func unknownCommand(cmd *cobra.Command, name string) error {
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return usagef("there is no command %q; did you mean %q?", name, near[0])
	}
	return usagef("there is no command %q", name)
}

// wantArgs refuses a number of arguments outside min..max; what names them.
func wantArgs(least, most int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return usagef("want %s, got %d arguments", what, len(args))
		}
		return nil
	}
}

// report prints err and returns the exit code.
func (a *app) report(cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	var program exitCode
	if errors.As(err, &program) {
		return int(program)
	}
	var wrong usage
	if !a.started || errors.As(err, &wrong) {
		a.complain("%s: %s; see %q", cmd.CommandPath(), err, cmd.CommandPath()+" --help")
		return exitUsage
	}
	var problems weft.Problems
	switch {
	case errors.As(err, &problems):
		a.printProblems(problems)
	case errors.Is(err, syscall.ECONNREFUSED):
		a.complain("weft: no weft server at %s: start one with `weft server` or `weft demo`, or set --addr/%s", a.serverAddr(), client.AddrEnv)
	case errors.Is(err, context.Canceled):
		a.complain("weft: interrupted")
	default:
		a.complain("weft: %s", err)
	}
	return exitFailed
}

// complain writes one line to stderr. Several errors that happened together are
// told on that line.
func (a *app) complain(format string, args ...any) {
	line := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	fmt.Fprintln(a.err, printable(line))
}

// printProblems writes one line for each, in order.
func (a *app) printProblems(problems weft.Problems) {
	for _, p := range problems {
		a.complain("%s", p)
	}
}

// serviceName reads a service's name as a user writes it: "order-service", or
// "order-service.shop" in another namespace.
func serviceName(arg, namespace string) (weft.ServiceName, error) {
	n, ok := weft.ParseHost(strings.ToLower(arg), namespace)
	if !ok {
		return n, usagef("%q is no name of a service; want \"name\" or \"name.namespace\"", arg)
	}
	return n, nil
}
