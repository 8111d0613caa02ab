package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/client"
)

func (a *app) history() *cobra.Command {
	var namespace string
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "history SERVICE",
		Short: "Show what changed in a service, when, and who changed it",
		Long: `Show the instances of a service as they were some time ago, and every change since
then: when, who made it, and what was different. Servers remember about an hour. Times
are UTC, by the clock of the server that wrote the change, and exact to 0.1 s.`,
		Example: `  weft history order-service
  weft history order-service --since 10m
  weft history order-service --since 5m -o json | jq '.changes[].what'`,
		Args:              wantArgs(1, 1, "one SERVICE"),
		ValidArgsFunction: a.first(a.completeServices),
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "`namespace` of the service (default \"default\")")
	cmd.Flags().DurationVar(&since, "since", time.Hour, "how `long` ago to begin, as 10m")
	out := formatFlag(cmd, "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		n, err := serviceName(args[0], namespace)
		if err != nil {
			return err
		}
		if since <= 0 {
			return usagef("--since %v: want a time, as 10m", since)
		}
		h, err := a.client().History(cmd.Context(), n, since)
		switch {
		case err != nil:
			return err
		case out.value == "json":
			return printJSON(a.out, h)
		}
		return a.printHistory(n.String(), &h)
	}
	return cmd
}

func (a *app) printHistory(service string, h *client.History) error {
	at := "before it began"
	if !h.At.IsZero() {
		at = timestamp(h.At)
	}
	fmt.Fprintf(a.out, "%s  %s, index %d: %s\n", printable(service), at, h.From, plural(len(h.Start), "instance"))
	if len(h.Start) > 0 {
		t := newTable(a.out, "  ", "INSTANCE", "ADDRESS", "VERSION", "HEALTH")
		for i := range h.Start {
			in := &h.Start[i]
			t.row("  ", in.Node+"/"+in.ID, in.Address, in.Version, in.Health.String())
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	fmt.Fprintln(a.out)
	if len(h.Changes) == 0 {
		fmt.Fprintln(a.out, "nothing changed since then")
		return nil
	}
	t := newTable(a.out, "", "TIME", "INDEX", "INSTANCE", "BY", "WHAT")
	for i := range h.Changes {
		c := &h.Changes[i]
		for _, what := range c.What {
			t.row("", sinceWhen(c.When), number(c.Index), subject(c), c.By, what)
		}
	}
	return t.flush()
}
