package main

import (
	"bytes"
	"context"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"
)

const wrkOutput = `Running 5s test @ http://127.0.0.1:40001/api/items/1
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     0.95ms  331.08us  12.05ms   88.11%
    Req/Sec    66.90k     2.21k   70.12k    80.00%
  Latency Distribution
     50%  830.00us
     75%    1.02ms
     90%    1.31ms
     99%    1.81ms
  333227 requests in 5.00s, 81.03MB read
Requests/sec:  66645.40
Transfer/sec:     16.21MB
`

func TestParseWrk(t *testing.T) {
	l, err := parseWrk(wrkOutput)
	want := load{requests: 333227, rate: 66645.40, p50: 830 * time.Microsecond, p99: 1810 * time.Microsecond}
	if err != nil || l != want {
		t.Fatalf("got %+v, %v, want %+v", l, err, want)
	}
}

func TestParseWrkRefusesWhatIsNoMeasurement(t *testing.T) {
	rate := "Requests/sec: "
	for name, text := range map[string]string{
		"a failed status": strings.Replace(wrkOutput, rate, "  Non-2xx or 3xx responses: 3\n"+rate, 1),
		"a broken socket": strings.Replace(wrkOutput, rate, "  Socket errors: connect 0, read 1, write 0, timeout 0\n"+rate, 1),
		"a missing line":  strings.Replace(wrkOutput, "     99%    1.81ms\n", "", 1),
		"no request":      strings.Replace(wrkOutput, "333227 requests", "0 requests", 1),
		"a message":       "unable to connect to 127.0.0.1:40001 Connection refused\n",
	} {
		if l, err := parseWrk(text); err == nil {
			t.Errorf("%s: got %+v, want an error", name, l)
		}
	}
}

func TestSummaryIsTheMedianOfEachNumberAndTheWorstDisturbance(t *testing.T) {
	got := summary("weft", []row{
		{cpu: 9, rate: 100, p50: 3, p99: 30, rss: 5, anon: 3, others: 0.1},
		{cpu: 11, rate: 300, p50: 1, p99: 10, rss: 7, anon: 1, others: 0.3},
		{cpu: 10, rate: 200, p50: 2, p99: 20, rss: 6, anon: 2, others: 0.2},
	})
	if want := (row{peer: "weft", cpu: 10, rate: 200, p50: 2, p99: 20, rss: 6, anon: 2, others: 0.3}); got != want {
		t.Errorf("three rounds: got %+v, want %+v", got, want)
	}
	if got := summary("weft", []row{{cpu: 9}, {cpu: 12}, {cpu: 8}, {cpu: 50}}).cpu; got != 10 {
		t.Errorf("four rounds: got %d, want 10, between the two in the middle", got)
	}
}

func results() []laneResult {
	return []laneResult{
		{lane{title: "HTTP/1 hop"}, []row{
			{peer: "haproxy", cpu: 10 * time.Microsecond, rate: 90000, p50: 700 * time.Microsecond, p99: 2 * time.Millisecond, rss: 15 << 20, anon: 9 << 20},
			{peer: "weft", cpu: 11 * time.Microsecond, rate: 80000.4, p50: 800 * time.Microsecond, p99: 3 * time.Millisecond, rss: 20 << 20, anon: 10 << 20},
		}},
		{lane{name: "pair", title: "mTLS pair"}, []row{{peer: "weft", cpu: 20 * time.Microsecond, rss: 1 << 20, others: 0.41}}},
	}
}

func TestTable(t *testing.T) {
	var text, markdown bytes.Buffer
	printResults(&text, results(), options{seconds: 5, rounds: 2}, []string{"two cores"})
	printResults(&markdown, results(), options{seconds: 5, rounds: 2, markdown: true}, []string{"two cores"})
	for _, want := range []string{
		`(?m)^HTTP/1 hop  haproxy  10\.00 +1\.00 +90000 +0\.70 +2\.00 +15\.0 +9\.0$`,
		`(?m)^HTTP/1 hop  weft     11\.00 +1\.10 +80000 +0\.80 +3\.00 +20\.0 +10\.0$`,
		`(?m)^mTLS pair   weft     20\.00 +- `, // HAProxy was not there to compare with
		`(?m)64 connections, 100-byte bodies, 5 s × 2 rounds\ntwo cores\npair/weft: others took up to 41 % of the proxy's core\n\z`,
	} {
		if !regexp.MustCompile(want).MatchString(text.String()) {
			t.Errorf("%s is not in:\n%s", want, &text)
		}
	}
	for _, want := range []string{
		"|---|---|---:|---:|---:|---:|---:|---:|---:|\n",
		"| HTTP/1 hop | weft | 11.00 | 1.10 | 80000 | 0.80 | 3.00 | 20.0 | 10.0 |\n",
		"\n- two cores\n",
	} {
		if !strings.Contains(markdown.String(), want) {
			t.Errorf("%s is not in:\n%s", want, &markdown)
		}
	}
}

func TestParseStatOfANameWithSpacesAndParentheses(t *testing.T) {
	got, err := parseStat("42 (a) b (c) S 7 42 42 0 -1 4194560 100 0 0 0 150 50 9 9 20 0 1 0 12345 1000000 10 18446744073709551615 1 1")
	if err != nil || got.parent != 7 || got.cpu != 2*time.Second || got.rss == 0 || got.rss%10 != 0 {
		t.Errorf("got %+v, %v, want parent 7, 2 s of CPU, 10 pages", got, err)
	}
	if _, err := parseStat("42 (short) S 7"); err == nil {
		t.Error("a short line: no error")
	}
}

func TestDescendantsCount(t *testing.T) {
	all := map[int]procStat{10: {parent: 1}, 11: {parent: 10}, 12: {parent: 11}, 20: {parent: 1}}
	for pid, want := range map[int]bool{10: true, 12: true, 20: false, 1: false} {
		if got := descends(all, pid, []*process{{pid: 10}}); got != want {
			t.Errorf("process %d: got %v, want %v", pid, got, want)
		}
	}
}

// What stands in for nginx and wrk must do what those would, or a machine without
// them measures something else.
func TestTheStandInsWorkTogether(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serveBackendOn(ctx, ln) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	if err := answers(ctx, ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if err := refuses(ln.Addr().String(), nil); err == nil {
		t.Error("a door that serves strangers passes for one that refuses them")
	}
	var out bytes.Buffer
	if err := generate(ctx, &out, "http://"+ln.Addr().String()+path, 4, 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	l, err := parseWrk(out.String())
	if err != nil || l.p99 < l.p50 {
		t.Errorf("got %+v, %v, from %s", l, err, &out)
	}
}

func TestTheStandInGeneratorSaysWhenRequestsFail(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := generate(t.Context(), &out, "http://"+gone+path, 2, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if l, err := parseWrk(out.String()); err == nil || !strings.Contains(err.Error(), "Socket errors: 2") {
		t.Errorf("got %+v, %v, want the failed sockets", l, err)
	}
}

func TestArgumentsOfWrkAreUnderstood(t *testing.T) {
	got := strings.Join(separate([]string{"-c64", "-d5", "http://127.0.0.1:1/x"}), " ")
	if want := "-c=64 -d=5 http://127.0.0.1:1/x"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
