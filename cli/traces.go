package cli

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/client"
)

// screenWidth is how wide a waterfall is printed, in columns.
const screenWidth = 100

func (a *app) traces() *cobra.Command {
	var q client.TraceQuery
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "traces [ID]",
		Short: "List traces, or draw one as a waterfall",
		Long: `List the newest traces that the server holds; with the ID of one, draw its spans
as a waterfall: what called what, when each began, how long it took and how it
ended.`,
		Example: `  weft traces
  weft traces --service order-service --errors --since 10m
  weft traces 4bf92f3577b34da6a3ce929d0e0e4736`,
		Args:              wantArgs(0, 1, "the ID of one trace or nothing"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&q.Service, "service", "", "only traces that touch this `service`")
	f.DurationVar(&since, "since", 0, "only traces that began within this `time`, as 10m")
	f.DurationVar(&q.MinDuration, "min-duration", 0, "only traces that took at least this `time`")
	f.BoolVar(&q.Errors, "errors", false, "only traces with a failed span")
	f.IntVar(&q.Limit, "limit", 20, "at most so many, up to 1000")
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("service", a.ask(a.completeServices))
	out := formatFlag(cmd, "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return a.trace(cmd, args[0], out.value)
		}
		if q.Limit < 1 || q.Limit > 1000 {
			return usagef("--limit %d: want 1 to 1000", q.Limit)
		}
		if since > 0 {
			q.Since = time.Now().Add(-since)
		}
		list, err := a.client().Traces(cmd.Context(), q)
		if err != nil {
			return err
		}
		if out.value == "json" {
			return printJSON(a.out, list)
		}
		t := newTable(a.out, "", "ID", "START", "DURATION", "SPANS", "ERRORS", "SERVICE", "OPERATION")
		for _, s := range list {
			t.row("", s.ID, timestamp(s.Start), millis(s.DurationMS), strconv.Itoa(s.Spans), number(s.Errors), s.Service, s.Operation)
		}
		return t.flush()
	}
	return cmd
}

func (a *app) trace(cmd *cobra.Command, id, format string) error {
	t, err := a.client().Trace(cmd.Context(), id)
	if err != nil {
		return err
	}
	if format == "json" {
		return printJSON(a.out, t)
	}
	for _, line := range waterfall(t, screenWidth) {
		fmt.Fprintln(a.out, line)
	}
	return nil
}
