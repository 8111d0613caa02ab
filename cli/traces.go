package cli

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/client"
)

// screenWidth is how wide a waterfall is printed, in columns.
const screenWidth = 100

func (a *app) traces() *cobra.Command {
	var q client.TraceQuery
	cmd := &cobra.Command{
		Use:   "traces [ID]",
		Short: "List traces, or draw one as a waterfall",
		Long: `List the newest traces that the server holds; with the ID of one, draw its spans
as a waterfall: what called what, when each began, how long it took and how it
ended.

Flags choose traces in which one span fits all of them.`,
		Example: `  weft traces
  weft traces --service order-service --errors --since 10m
  weft traces 4bf92f3577b34da6a3ce929d0e0e4736`,
		Args:              wantArgs(0, 1, "the ID of one trace or nothing"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&q.Service, "service", "", "with a span of this `service`")
	f.DurationVar(&q.Since, "since", 0, "with a span that began within this `time`, as 10m")
	f.DurationVar(&q.MinDuration, "min-duration", 0, "with a span that took at least this `time`")
	f.BoolVar(&q.Errors, "errors", false, "with a span that failed")
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
		if q.Since < 0 || q.MinDuration < 0 {
			return usagef("--since %s, --min-duration %s: want no negative time", q.Since, q.MinDuration)
		}
		list, err := a.client().Traces(cmd.Context(), q)
		if err != nil {
			return err
		}
		if out.value == "json" {
			return printJSON(a.out, list)
		}
		t := newTable(a.out, "", "ID", "START", "DURATION", "SPANS", "STATUS", "SERVICE", "OPERATION")
		for _, s := range list {
			t.row("", s.ID, timestamp(s.Start), millis(s.DurationMS), strconv.Itoa(s.Spans), traceStatus(&s), s.Service, s.Operation)
		}
		return t.flush()
	}
	return cmd
}

func traceStatus(s *client.TraceSummary) string {
	if s.Error {
		return "error"
	}
	return "ok"
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
