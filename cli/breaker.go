package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/client"
)

// heldStates are what `weft breaker` may do, with the state that it leads to; reset
// leaves the circuit to its calls.
var heldStates = map[string]string{"open": "forced-open", "disable": "disabled", "observe": "metrics-only", "reset": ""}

func (a *app) breaker() *cobra.Command {
	var o client.BreakerOverride
	var namespace string
	cmd := &cobra.Command{
		Use:   "breaker open|disable|observe|reset SERVICE",
		Short: "Hold the circuits of a service open or closed",
		Long: `Hold the circuits of a service in a state, at every proxy that calls it, until they
are reset:

  open     no call passes: callers get the fallback, or 503
  disable  every call passes, and nothing is counted
  observe  every call passes; calls are counted, but never open the circuit
  reset    the calls decide again

It is kept as a resource, a BreakerOverride of the service's name, and outlives
restarts. "weft get breakeroverride" lists all of them, "weft status --breakers" the
circuits as they are.`,
		Example: `  weft breaker open inventory-service --reason 'its database is being moved'
  weft breaker reset inventory-service`,
		Args:              wantArgs(2, 2, "open, disable, observe or reset, and a SERVICE"),
		ValidArgsFunction: a.completeBreaker,
	}
	f := cmd.Flags()
	f.StringVar(&o.Reason, "reason", "", "`why`, for whoever looks next")
	f.StringVarP(&namespace, "namespace", "n", "", "`namespace` of the service (default \"default\")")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		state, known := heldStates[args[0]]
		if !known {
			return usagef("%q: want open, disable, observe or reset", args[0])
		}
		n, err := serviceName(args[1], namespace)
		if err != nil {
			return err
		}
		if state == "" {
			if o.Reason != "" {
				return usagef("--reason is for who holds a circuit; reset keeps none")
			}
			if err := a.client().ReleaseBreaker(cmd.Context(), n); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s: its calls decide again\n", n)
			return nil
		}
		o.State = state
		result, err := a.client().HoldBreaker(cmd.Context(), n, o)
		if err != nil {
			return err
		}
		a.printProblems(result.Problems)
		fmt.Fprintf(a.out, "%s: held %s\n", n, state)
		return nil
	}
	return cmd
}

// completeBreaker offers what to do, then the names of services.
func (a *app) completeBreaker(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return withPrefix(slices.Sorted(maps.Keys(heldStates)), prefix), cobra.ShellCompDirectiveNoFileComp
	case 1:
		return a.ask(a.completeServices)(cmd, args, prefix)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// breakerFlags are those of `weft status` that ask for circuits.
type breakerFlags struct {
	wanted, events     bool
	service, namespace string
	query              client.BreakerQuery
}

func (a *app) breakerFlags(cmd *cobra.Command) *breakerFlags {
	b := &breakerFlags{}
	f := cmd.Flags()
	f.BoolVar(&b.wanted, "breakers", false, "show the circuits of the proxies")
	f.BoolVar(&b.events, "events", false, "with --breakers: show their last changes")
	f.DurationVar(&b.query.Since, "since", 0, "with --events: only changes within this `time`, as 10m")
	f.StringVar(&b.service, "service", "", "with --breakers: only circuits of this `service`")
	f.StringVarP(&b.namespace, "namespace", "n", "", "`namespace` of --service (default \"default\")")
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("service", a.ask(a.completeServices))
	return b
}

// complete refuses flags that would do nothing, and makes the query of the others.
func (b *breakerFlags) complete() (err error) {
	switch {
	case !b.wanted && (b.events || b.service != ""):
		return usagef("--events and --service belong to --breakers")
	case b.query.Since < 0 || b.query.Since > 0 && !b.events:
		return usagef("--since %v: want a time from 0s, and --events", b.query.Since)
	case b.service == "" && b.namespace != "":
		return usagef("--namespace belongs to --service")
	case b.service != "":
		b.query.Service, err = serviceName(b.service, b.namespace)
	}
	return err
}

func (a *app) showBreakers(ctx context.Context, b *breakerFlags, format string) error {
	if b.events {
		list, err := a.client().BreakerEvents(ctx, b.query)
		switch {
		case err != nil:
			return err
		case format == "json":
			return printJSON(a.out, list)
		}
		return a.printBreakerEvents(list)
	}
	list, err := a.client().Breakers(ctx, b.query)
	switch {
	case err != nil:
		return err
	case format == "json":
		return printJSON(a.out, list)
	}
	return a.printBreakers(list)
}

func (a *app) printBreakers(list []client.Breaker) error {
	if len(list) == 0 {
		a.complain("no proxy tells of a circuit: they come with a ResiliencePolicy that has a circuitBreaker, and the calls under it")
		return nil
	}
	t := newTable(a.out, "", "TARGET", "STATE", "SINCE", "CALLS", "FAILED", "SLOW", "PROXY", "ID", "POLICY")
	for _, b := range list {
		t.row("", b.Target, b.State, sinceWhen(b.Since), strconv.FormatUint(uint64(b.Calls), 10), rate(b.FailureRate), rate(b.SlowRate), b.Proxy, b.ProxyID, b.Policy)
	}
	return t.flush()
}

func (a *app) printBreakerEvents(list []client.BreakerEvent) error {
	if len(list) == 0 {
		a.complain("no circuit has changed its state")
		return nil
	}
	t := newTable(a.out, "", "TIME", "TARGET", "FROM", "TO", "PROXY", "ID", "REASON")
	for _, e := range list {
		if e.Lost > 0 {
			t.row("", timestamp(e.Time), "("+plural(int(e.Lost), "change")+" before it)", "", "", e.Proxy, e.ProxyID, "not told: the server was away for too long")
		}
		t.row("", timestamp(e.Time), e.Target, e.From, e.To, e.Proxy, e.ProxyID, e.Reason)
	}
	return t.flush()
}

// sinceWhen is empty for a time that nobody knows.
func sinceWhen(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return timestamp(t)
}

// rate writes percent; empty when too few calls were counted to tell.
func rate(v float64) string {
	if v < 0 {
		return ""
	}
	return percent(v / 100)
}
