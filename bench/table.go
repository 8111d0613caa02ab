package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// laneResult is a measured lane.
type laneResult struct {
	lane lane
	rows []row
}

// table is a way to show rows. Lanes with the same one share it.
type table struct {
	columns []string // the first two are the lane and the proxy
	// cells of a row behind those two; haproxy is its row, nil where it was not
	// measured.
	cells func(l lane, r row, haproxy *row) []string
}

var requestsTable = table{
	[]string{"lane", "proxy", "CPU µs/request", "× HAProxy", "requests/s", "p50 ms", "p99 ms", "RSS MB", "anonymous MB"},
	func(_ lane, r row, haproxy *row) []string {
		return []string{fmt.Sprintf("%.2f", micros(r.cpu)), ratio(haproxy, func(h *row) float64 { return float64(r.cpu) / float64(h.cpu) }),
			fmt.Sprintf("%.0f", r.rate), millis(r.p50), millis(r.p99), megabytes(r.rss), megabytes(r.anon)}
	},
}

var bodiesTable = table{
	[]string{"lane", "proxy", "CPU µs/MB", "× HAProxy", "MB/s", "MB/s × HAProxy", "peak RSS MB", "anonymous MB"},
	func(l lane, r row, haproxy *row) []string {
		size := float64(l.job.size) / (1 << 20)
		return []string{fmt.Sprintf("%.0f", micros(r.cpu)/size), ratio(haproxy, func(h *row) float64 { return float64(r.cpu) / float64(h.cpu) }),
			fmt.Sprintf("%.0f", r.rate*size), ratio(haproxy, func(h *row) float64 { return r.rate / h.rate }), megabytes(r.peak), megabytes(r.anon)}
	},
}

var idleTable = table{
	[]string{"lane", "proxy", "bytes/connection", "× HAProxy", "anonymous MB"},
	func(_ lane, r row, haproxy *row) []string {
		return []string{fmt.Sprint(r.each), ratio(haproxy, func(h *row) float64 { return float64(r.each) / float64(h.each) }), megabytes(r.anon)}
	},
}

var routesTable = table{
	[]string{"lane", "proxy", "bytes/route", "change p50 ms", "change max ms", "anonymous MB"},
	func(_ lane, r row, _ *row) []string {
		return []string{fmt.Sprint(r.each), millis(r.p50), millis(r.p99), megabytes(r.anon)}
	},
}

func ratio(haproxy *row, of func(h *row) float64) string {
	if haproxy == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f", of(haproxy))
}

func millis(d time.Duration) string { return fmt.Sprintf("%.2f", micros(d)/1000) }
func megabytes(n int64) string      { return fmt.Sprintf("%.1f", float64(n)/(1<<20)) }

// noisy is the share of the proxies' core that others may take before it is said.
// Some of it is error: CPU time is counted in two ways.
const noisy = 0.03

// full is the share of the load's core from which on requests wait for it.
const full = 0.9

// printResults prints the tables, what they were measured on, and what disturbed
// it.
func printResults(w io.Writer, results []laneResult, o options, machine []string) {
	var tables [][][]string
	lines := []string{fmt.Sprintf("%s; %d s × %d rounds", time.Now().Format("2006-01-02"), o.seconds, o.rounds)}
	var disturbed []string
	for i, l := range results {
		if i == 0 || !slices.Equal(results[i-1].lane.table.columns, l.lane.table.columns) {
			tables = append(tables, [][]string{l.lane.table.columns})
		}
		last := &tables[len(tables)-1]
		for _, r := range l.rows {
			*last = append(*last, append([]string{l.lane.title, r.peer}, l.lane.table.cells(l.lane, r, l.of("haproxy"))...))
			if r.others > noisy {
				disturbed = append(disturbed, fmt.Sprintf("%s/%s: others took up to %.0f %% of the proxy's core", l.lane.name, r.peer, 100*r.others))
			}
			if r.paced && r.loader > full {
				disturbed = append(disturbed, fmt.Sprintf("%s/%s: the load's own core was busy for %.0f %%: latencies are its, too", l.lane.name, r.peer, 100*r.loader))
			}
		}
		lines = append(lines, l.lane.title+": "+l.lane.job.how)
	}
	lines = append(append(lines, machine...), disturbed...)
	show, mark := printText, ""
	if o.markdown {
		show, mark = printMarkdown, "- "
	}
	for _, t := range tables {
		show(w, t)
		fmt.Fprintln(w)
	}
	for _, line := range lines {
		fmt.Fprintln(w, mark+line)
	}
}

// of is a peer's row.
func (l laneResult) of(peer string) *row {
	for i := range l.rows {
		if l.rows[i].peer == peer {
			return &l.rows[i]
		}
	}
	return nil
}

func printText(w io.Writer, table [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range table {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	_ = t.Flush()
}

// printMarkdown aligns numbers to the right: all columns but the first two.
func printMarkdown(w io.Writer, table [][]string) {
	for i, row := range table {
		fmt.Fprintln(w, "| "+strings.Join(row, " | ")+" |")
		if i == 0 {
			fmt.Fprintln(w, "|---|---|"+strings.Repeat("---:|", len(row)-2))
		}
	}
}
