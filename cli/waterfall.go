package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/weftmesh/weft/client"
)

// waterfall draws a trace in lines of at most width columns: a heading, the spans
// as an indented tree with a bar each, and the messages of those that failed. A
// span whose parent is not known (it was not sampled, or has not arrived yet)
// stands at the left behind a "?".
func waterfall(t *client.Trace, width int) []string {
	labels := make([]string, len(t.Tree))
	nameWidth := len("SPAN")
	for i := range t.Tree {
		labels[i] = spanLabel(&t.Tree[i])
		nameWidth = max(nameWidth, utf8.RuneCountInString(labels[i]))
	}
	const numbers = 9 // columns of each of OFFSET, DURATION and STATUS, with a space after
	nameWidth = min(nameWidth, width/2-5)
	barWidth := width - nameWidth - 1 - 3*(numbers+1)

	heading := fmt.Sprintf("trace %s  %s  %s  %s", t.ID, timestamp(t.Start), millis(t.DurationMS), plural(t.Spans, "span"))
	if t.Truncated {
		heading += ", of which not all are here"
	}
	lines := []string{printable(heading), "",
		fmt.Sprintf("%-*s %*s %*s %s", nameWidth, "SPAN", numbers, "OFFSET", numbers, "DURATION", "STATUS")}
	for i := range t.Tree {
		s := &t.Tree[i]
		offset := float64(s.Start.Sub(t.Start)) / float64(time.Millisecond)
		lines = append(lines, fmt.Sprintf("%-*s %*s %*s %-*s %s", nameWidth, cut(labels[i], nameWidth),
			numbers, millis(offset), numbers, millis(s.DurationMS), numbers, cut(spanStatus(s), numbers),
			bar(offset, s.DurationMS, t.DurationMS, barWidth)))
	}
	return append(lines, failures(t.Tree)...)
}

// spanLabel is what a span is, at its place in the tree.
func spanLabel(s *client.Span) string {
	label := s.Service + " " + s.Operation
	if s.Orphan {
		label = "? " + label
	}
	const deepest = 20 // beyond, the label would have no room
	return strings.Repeat("  ", min(s.Depth, deepest)) + printable(label)
}

// bar is a span's part of total, drawn on width columns: at least one column,
// so that every span is seen.
func bar(offset, duration, total float64, width int) string {
	if total <= 0 {
		return strings.Repeat("█", width)
	}
	from := max(0, min(int(offset/total*float64(width)), width-1))
	to := min(int((offset+duration)/total*float64(width)+0.5), width)
	return strings.Repeat(" ", from) + strings.Repeat("█", max(to-from, 1))
}

// spanStatus is the HTTP status where there is one, with "!" when the span
// failed, else "ok" or "error".
func spanStatus(s *client.Span) string {
	code := cmp.Or(s.Attributes["http.response.status_code"], s.Attributes["http.status_code"])
	switch {
	case code != "" && s.Error:
		return printable(code) + " !"
	case code != "":
		return printable(code)
	case s.Error:
		return "error"
	}
	return "ok"
}

// cut shortens s to width columns.
func cut(s string, width int) string {
	r := []rune(s)
	if len(r) <= width {
		return s
	}
	return string(r[:width-1]) + "…"
}

func failures(spans []client.Span) []string {
	var out []string
	for _, s := range spans {
		if s.Error && s.Message != "" {
			out = append(out, "! "+printable(s.Service+" "+s.Operation+": "+s.Message))
		}
	}
	if out != nil {
		out = slices.Insert(out, 0, "")
	}
	return out
}
