package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

func (a *app) drain() *cobra.Command {
	var node string
	var end bool
	var deadline time.Duration
	cmd := &cobra.Command{
		Use:   "drain INSTANCE",
		Short: "Take an instance out of every view, and see who knows",
		Long: `Take an instance out of every view (API, DNS, mesh) at once: it finishes what it has,
and gets nothing new. The command returns when every proxy that calls its service has
acknowledged that, or when the deadline passes, and then says who has not. Afterwards
stop or change the instance, and bring it back with --end.

INSTANCE is an id, or node/id.`,
		Example: `  weft drain order-2
  weft drain order-2 --deadline 1m
  weft drain order-2 --end`,
		Args:              wantArgs(1, 1, "one INSTANCE"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&node, "node", "", "`node` that has it; needed when several have one of this id")
	f.BoolVar(&end, "end", false, "bring it back")
	f.DurationVar(&deadline, "deadline", 10*time.Second, "how `long` to wait for proxies, at most 5m")
	out := formatFlag(cmd, "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id := args[0]
		if on, rest, qualified := strings.Cut(id, "/"); qualified && node == "" {
			node, id = on, rest
		}
		switch {
		case id == "":
			return usagef("%q: want an INSTANCE, or NODE/INSTANCE", args[0])
		case deadline <= 0:
			return usagef("--deadline %v: want a time, as 10s", deadline)
		case end && (cmd.Flags().Changed("deadline") || out.value != ""):
			return usagef("--end waits for nobody, and prints one line")
		case end:
			if err := a.client().EndDrain(cmd.Context(), node, id); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s: back in every view\n", printable(id))
			return nil
		}
		d, err := a.client().DrainInstance(cmd.Context(), node, id, client.DrainOptions{Deadline: weft.Duration(deadline)})
		switch {
		case err != nil:
			return err
		case out.value == "json":
			return printJSON(a.out, d)
		}
		return a.printDrained(&d)
	}
	return cmd
}

func (a *app) printDrained(d *client.DrainedBy) error {
	fmt.Fprintf(a.out, "%s/%s of %s: out of every view at index %d\n", printable(d.Node), printable(d.Instance), printable(d.Service), d.Index)
	for _, name := range d.Acked {
		fmt.Fprintf(a.out, "  acknowledged  %s\n", printable(name))
	}
	for _, name := range d.Waiting {
		fmt.Fprintf(a.out, "  waited for    %s\n", printable(name))
	}
	switch {
	case len(d.Waiting) > 0:
		return fmt.Errorf("%s: %s had not acknowledged in time; \"weft why-stale %s\" tells more",
			d.Instance, plural(len(d.Waiting), "follower"), d.Service)
	case len(d.Acked) == 0:
		fmt.Fprintln(a.out, "no proxy calls it")
	}
	return nil
}
