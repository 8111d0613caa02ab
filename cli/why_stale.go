package cli

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/client"
)

func (a *app) whyStale() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "why-stale SERVICE",
		Short: "Show who has the last change of a service, and who has not",
		Long: `Show the last change of a service, and for each proxy that calls it, of any server
of the cluster, whether it has acknowledged that change: since when it has it, or since
when it is waited for and why. A proxy that is not connected any more is shown for some
minutes: it goes on with what it has, or it has ended.

Watchers are the readers that wait for the next change (Consul's blocking queries,
weft's API); each has been told what its server has. Times are UTC, by the server's
clock.`,
		Example: `  weft why-stale order-service
  weft why-stale order-service -o json | jq -r '.proxies[] | select(.has | not) | .proxyID'`,
		Args:              wantArgs(1, 1, "one SERVICE"),
		ValidArgsFunction: a.first(a.completeServices),
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "`namespace` of the service (default \"default\")")
	out := formatFlag(cmd, "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		n, err := serviceName(args[0], namespace)
		if err != nil {
			return err
		}
		r, err := a.client().Receipts(cmd.Context(), n)
		switch {
		case err != nil:
			return err
		case out.value == "json":
			return printJSON(a.out, r)
		}
		return a.printReceipts(n.String(), &r)
	}
	return cmd
}

func (a *app) printReceipts(service string, r *client.Receipts) error {
	fmt.Fprintf(a.out, "%s  index %d", printable(service), r.Index)
	if len(r.Changes) == 0 {
		fmt.Fprintln(a.out, ", longer ago than the servers remember")
	} else {
		last := &r.Changes[0]
		if !last.When.IsZero() {
			fmt.Fprintf(a.out, ", %s, %s ago", timestamp(last.When), ago(r.At, last.When))
		}
		if last.By != "" {
			fmt.Fprintf(a.out, ", by %s", printable(last.By))
		}
		fmt.Fprintln(a.out)
	}
	for i := range r.Changes {
		for _, what := range r.Changes[i].What {
			fmt.Fprintf(a.out, "  %s: %s\n", printable(subject(&r.Changes[i])), printable(what))
		}
	}
	fmt.Fprintln(a.out)
	t := newTable(a.out, "", "SERVER", "INDEX", "WATCHERS", "STATE")
	for _, s := range r.Servers {
		switch {
		case s.Error != "":
			t.row("", s.Server, "", "", "no answer: "+s.Error)
		case s.Behind > 0:
			t.row("", s.Server, number(s.Index), strconv.Itoa(s.Watchers), "behind by "+number(s.Behind))
		default:
			t.row("", s.Server, number(s.Index), strconv.Itoa(s.Watchers), "has it")
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	if len(r.Proxies) == 0 {
		fmt.Fprintln(a.out, "no proxy calls it")
		return nil
	}
	t = newTable(a.out, "", "PROXY", "ID", "SERVER", "ACKED", "STATE", "FOR", "WHY")
	for _, p := range r.Proxies {
		state := "has it"
		if !p.Has {
			state = "has not"
		}
		t.row("", p.Proxy, p.ProxyID, p.Server, number(p.Acked), state, ago(r.At, p.Since), p.Why)
	}
	return t.flush()
}

// subject is what a change happened to.
func subject(c *client.Change) string {
	switch {
	case c.Instance != "":
		return c.Node + "/" + c.Instance
	case c.Node != "":
		return "node " + c.Node
	}
	return "the service"
}

// ago is how long before now a time was, as "2.3s"; empty when nobody knows.
func ago(now, then time.Time) string {
	if then.IsZero() {
		return ""
	}
	return span(max(now.Sub(then), 0))
}

func span(d time.Duration) string {
	if d < 10*time.Second {
		return millis(float64(d.Microseconds()) / 1e3)
	}
	return d.Round(time.Second).String()
}
