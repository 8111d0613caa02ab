package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/client"
)

func (a *app) status() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the server, its doors, and the proxies that are connected",
		Long: `Show what the server is, where it listens, how much it holds, and every
sidecar and gateway that takes its configuration from it.

A proxy is "current" when it took over everything that concerns it, "behind" while
something is on its way to it, and "rejected" with the reason when it refused its
newest configuration and runs on the one before.

A source is another place that fills the catalogue, such as a directory of files. What
is wrong with what it says follows its line, each with its place.

With --breakers the circuits are shown instead, one line for each target at each proxy
that calls it: state, since when, and the shares of failed and slow calls among those
in its window ("-" while they are too few to tell). A change shows at once, shares may
be seconds old. With --events it is their last changes, and why they changed. Times
are UTC, by the proxy's clock.`,
		Example: `  weft status
  weft status -o json | jq '.proxies | length'
  weft status --breakers
  weft status --breakers --events --since 10m --service inventory-service`,
		Args:              wantArgs(0, 0, "no arguments"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	out := formatFlag(cmd, "json")
	breakers := a.breakerFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := breakers.complete(); err != nil {
			return err
		}
		if breakers.wanted {
			return a.showBreakers(cmd.Context(), breakers, out.value)
		}
		s, err := a.client().Status(cmd.Context())
		if err != nil {
			return err
		}
		if out.value == "json" {
			return printJSON(a.out, s)
		}
		return a.printStatus(s)
	}
	return cmd
}

func (a *app) printStatus(s *client.Status) error {
	up := time.Duration(s.Uptime) * time.Second
	fmt.Fprintf(a.out, "server     weft %s, pid %d, node %s, datacenter %s, up %s\n",
		printable(s.Version), s.PID, printable(s.Node), printable(s.Datacenter), up)
	fmt.Fprintf(a.out, "catalogue  %s, %s (%d healthy), index %d\n",
		plural(s.Services, "service"), plural(s.Instances, "instance"), s.Healthy, s.Index)
	fmt.Fprintf(a.out, "resources  %d\n", s.Resources)
	if len(s.Guarded) > 0 {
		fmt.Fprintf(a.out, "guarded    %s: too many of their instances failed together, see \"weft guard\"\n", printable(strings.Join(s.Guarded, ", ")))
	}
	if len(s.Listeners) > 0 {
		fmt.Fprintln(a.out)
		t := newTable(a.out, "", "LISTENER", "ADDRESS")
		for _, l := range s.Listeners {
			t.row("", l.Name, l.Address)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if err := a.printSources(s.Sources); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	if len(s.Proxies) == 0 {
		fmt.Fprintln(a.out, "no proxy is connected")
		return nil
	}
	t := newTable(a.out, "", "PROXY", "SERVICE", "ID", "PID", "ADDRESS", "APPLIED", "STATE")
	for _, p := range s.Proxies {
		t.row("", p.Role, p.Service, p.ID, number(p.PID), p.Address, number(p.Applied), proxyState(&p))
	}
	return t.flush()
}

// shownProblems is how many problems of a source are worth a line each.
const shownProblems = 10

func (a *app) printSources(list []client.Source) error {
	if len(list) == 0 {
		return nil
	}
	fmt.Fprintln(a.out)
	t := newTable(a.out, "", "SOURCE", "NODE", "INSTANCES", "SYNCED", "STATE")
	for i := range list {
		s := &list[i]
		synced := ""
		if !s.Synced.IsZero() {
			synced = timestamp(s.Synced)
		}
		t.row("", s.Name, s.Node, strconv.Itoa(s.Instances), synced, sourceState(s))
	}
	if err := t.flush(); err != nil {
		return err
	}
	for i := range list {
		problems := list[i].Problems
		for _, p := range problems[:min(len(problems), shownProblems)] {
			fmt.Fprintf(a.out, "  %s\n", printable(p))
		}
		if more := len(problems) - shownProblems; more > 0 {
			fmt.Fprintf(a.out, "  and %d more; -o json has all\n", more)
		}
	}
	return nil
}

func sourceState(s *client.Source) string {
	state := "not read yet"
	switch {
	case s.Away != "":
		return "away since " + timestamp(s.AwaySince) + ", what it said last stands: " + s.Away
	case s.Standby:
		state = "standby, another server writes"
	case s.Up():
		state = "current"
	}
	if n := len(s.Problems); n > 0 {
		state += ", " + plural(n, "problem")
	}
	return state
}

func proxyState(p *client.Proxy) string {
	switch {
	case p.Rejected != "":
		return "rejected: " + p.Rejected
	case p.Applied < p.Current:
		return "behind, at " + number(p.Applied) + " of " + number(p.Current)
	}
	return "current"
}
