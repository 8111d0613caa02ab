package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// laneResult is a measured lane.
type laneResult struct {
	lane lane
	rows []row
}

var columns = []string{"lane", "proxy", "CPU µs/request", "× HAProxy", "requests/s", "p50 ms", "p99 ms", "RSS MB", "anonymous MB"}

// noisy is the share of the proxies' core that others may take before it is said.
// Some of it is error: CPU time is counted in two ways.
const noisy = 0.03

// printResults prints one table, what it was measured on, and what disturbed it.
func printResults(w io.Writer, results []laneResult, o options, machine []string) {
	table := [][]string{columns}
	var disturbed []string
	for _, l := range results {
		haproxy := l.cpuOf("haproxy")
		for _, r := range l.rows {
			table = append(table, cells(l.lane.title, r, haproxy))
			if r.others > noisy {
				disturbed = append(disturbed, fmt.Sprintf("%s/%s: others took up to %.0f %% of the proxy's core", l.lane.name, r.peer, 100*r.others))
			}
		}
	}
	how := fmt.Sprintf("%s; %d connections, %d-byte bodies, %d s × %d rounds", time.Now().Format("2006-01-02"), connections, len(body), o.seconds, o.rounds)
	lines := append(append([]string{how}, machine...), disturbed...)
	if o.markdown {
		printMarkdown(w, table, lines)
		return
	}
	printText(w, table, lines)
}

func (l laneResult) cpuOf(peer string) time.Duration {
	for _, r := range l.rows {
		if r.peer == peer {
			return r.cpu
		}
	}
	return 0
}

// cells of a row; the ratio is left out when HAProxy was not measured.
func cells(title string, r row, haproxy time.Duration) []string {
	ratio := "-"
	if haproxy > 0 {
		ratio = fmt.Sprintf("%.2f", float64(r.cpu)/float64(haproxy))
	}
	millis := func(d time.Duration) string { return fmt.Sprintf("%.2f", micros(d)/1000) }
	megabytes := func(n int64) string { return fmt.Sprintf("%.1f", float64(n)/(1<<20)) }
	return []string{title, r.peer, fmt.Sprintf("%.2f", micros(r.cpu)), ratio, fmt.Sprintf("%.0f", r.rate),
		millis(r.p50), millis(r.p99), megabytes(r.rss), megabytes(r.anon)}
}

func printText(w io.Writer, table [][]string, lines []string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range table {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	_ = t.Flush()
	fmt.Fprintln(w)
	for _, line := range lines {
		fmt.Fprintln(w, line)
	}
}

// printMarkdown aligns numbers to the right: all columns but the first two.
func printMarkdown(w io.Writer, table [][]string, lines []string) {
	for i, row := range table {
		fmt.Fprintln(w, "| "+strings.Join(row, " | ")+" |")
		if i == 0 {
			fmt.Fprintln(w, "|---|---|"+strings.Repeat("---:|", len(row)-2))
		}
	}
	fmt.Fprintln(w)
	for _, line := range lines {
		fmt.Fprintln(w, "- "+line)
	}
}
