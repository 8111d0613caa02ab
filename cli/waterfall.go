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
// stands at the left like a root.
func waterfall(t *client.Trace, width int) []string {
	rows := treeRows(t.Spans)
	begin, total := extent(t.Spans)
	nameWidth := len("SPAN")
	for _, r := range rows {
		nameWidth = max(nameWidth, utf8.RuneCountInString(r.label))
	}
	const numbers = 9 // columns of each of OFFSET, DURATION and STATUS, with a space after
	nameWidth = min(nameWidth, width/2-5)
	barWidth := width - nameWidth - 1 - 3*(numbers+1)

	heading := fmt.Sprintf("trace %s  %s  %s  %s", t.ID, timestamp(begin), millis(total), plural(len(t.Spans), "span"))
	lines := []string{printable(heading), "",
		fmt.Sprintf("%-*s %*s %*s %-*s", nameWidth, "SPAN", numbers, "OFFSET", numbers, "DURATION", numbers, "STATUS")}
	for _, r := range rows {
		offset := sinceMS(begin, r.span.Start)
		lines = append(lines, fmt.Sprintf("%-*s %*s %*s %-*s %s", nameWidth, cut(r.label, nameWidth),
			numbers, millis(offset), numbers, millis(r.span.DurationMS), numbers, cut(spanStatus(r.span), numbers),
			bar(offset, r.span.DurationMS, total, barWidth)))
	}
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " ")
	}
	return append(lines, failures(rows)...)
}

// spanRow is a span at its place in the tree.
type spanRow struct {
	span  *client.Span
	label string // indented
}

// treeRows orders spans as a tree, children after their parent by start.
func treeRows(spans []client.Span) []spanRow {
	known := map[string]bool{}
	for i := range spans {
		known[spans[i].ID] = true
	}
	children := map[string][]*client.Span{}
	for i := range spans {
		parent := spans[i].Parent
		if !known[parent] || parent == spans[i].ID {
			parent = ""
		}
		children[parent] = append(children[parent], &spans[i])
	}
	for _, list := range children {
		slices.SortStableFunc(list, func(a, b *client.Span) int {
			return cmp.Or(a.Start.Compare(b.Start), strings.Compare(a.ID, b.ID))
		})
	}
	var rows []spanRow
	drawn := map[*client.Span]bool{} // spans come from outside: parents may form a circle
	var walk func(s *client.Span, depth int)
	walk = func(s *client.Span, depth int) {
		if drawn[s] {
			return
		}
		drawn[s] = true
		label := strings.Repeat("  ", min(depth, 20)) + printable(s.Service+" "+s.Operation)
		rows = append(rows, spanRow{s, label})
		for _, child := range children[s.ID] {
			walk(child, depth+1)
		}
	}
	for _, root := range children[""] {
		walk(root, 0)
	}
	for i := range spans {
		walk(&spans[i], 0)
	}
	return rows
}

// extent is when the first span began and how many milliseconds later the last
// one ended.
func extent(spans []client.Span) (begin time.Time, total float64) {
	for i, s := range spans {
		if i == 0 || s.Start.Before(begin) {
			begin = s.Start
		}
	}
	for _, s := range spans {
		total = max(total, sinceMS(begin, s.Start)+s.DurationMS)
	}
	return begin, total
}

func sinceMS(begin, t time.Time) float64 { return float64(t.Sub(begin)) / float64(time.Millisecond) }

// bar is a span's part of total, drawn on width columns: at least one column,
// so that every span is seen.
func bar(offset, duration, total float64, width int) string {
	if total <= 0 {
		return strings.Repeat("█", width)
	}
	from := min(int(offset/total*float64(width)), width-1)
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

func failures(rows []spanRow) []string {
	var out []string
	for _, r := range rows {
		if r.span.Error && r.span.Message != "" {
			out = append(out, "! "+printable(r.span.Service+" "+r.span.Operation+": "+r.span.Message))
		}
	}
	if out != nil {
		out = slices.Insert(out, 0, "")
	}
	return out
}
