package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
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
		{cpu: 9, rate: 100, p50: 3, p99: 30, rss: 5, anon: 3, others: 0.1, loader: 0.5},
		{cpu: 11, rate: 300, p50: 1, p99: 10, rss: 7, anon: 1, others: 0.3},
		{cpu: 10, rate: 200, p50: 2, p99: 20, rss: 6, anon: 2, others: 0.2},
	})
	if want := (row{peer: "weft", cpu: 10, rate: 200, p50: 2, p99: 20, rss: 6, anon: 2, others: 0.3, loader: 0.5}); got != want {
		t.Errorf("three rounds: got %+v, want %+v", got, want)
	}
	if got := summary("weft", []row{{cpu: 9}, {cpu: 12}, {cpu: 8}, {cpu: 50}}).cpu; got != 10 {
		t.Errorf("four rounds: got %d, want 10, between the two in the middle", got)
	}
}

func results() []laneResult {
	return []laneResult{
		{lane{title: "HTTP/1 hop", job: small, table: requestsTable}, []row{
			{peer: "haproxy", cpu: 10 * time.Microsecond, rate: 90000, p50: 700 * time.Microsecond, p99: 2 * time.Millisecond, rss: 15 << 20, anon: 9 << 20},
			{peer: "weft", cpu: 11 * time.Microsecond, rate: 80000.4, p50: 800 * time.Microsecond, p99: 3 * time.Millisecond, rss: 20 << 20, anon: 10 << 20},
		}},
		{lane{name: "pair", title: "mTLS pair", job: small, table: requestsTable}, []row{{peer: "weft", cpu: 20 * time.Microsecond, rss: 1 << 20, others: 0.41, loader: 1}}},
		{lane{name: "half", title: "Half", job: small, table: requestsTable}, []row{{peer: "weft", paced: true, loader: 0.99}}},
		{lane{name: "1mb", title: "1 MB bodies", job: large(1<<20, 16), table: bodiesTable}, []row{
			{peer: "haproxy", cpu: 100 * time.Microsecond, rate: 2000, peak: 30 << 20, anon: 9 << 20},
			{peer: "weft", cpu: 150 * time.Microsecond, rate: 1900, peak: 60 << 20, anon: 10 << 20},
		}},
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
		`(?m)^1 MB bodies  weft +150 +1\.50 +1900 +0\.95 +60\.0 +10\.0$`,
		`(?m); 5 s × 2 rounds\nHTTP/1 hop: 64 connections, 100-byte bodies\nmTLS pair: .*\nHalf: .*\n1 MB bodies: 16 connections, bodies of 1 MB\ntwo cores\npair/weft: others took up to 41 % of the proxy's core\nhalf/weft: the load's own core was busy for 99 %: latencies are its, too\n\z`,
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

const h2loadOutput = `finished in 1.00s, 66510.00 req/s, 17.00MB/s
requests: 66510 total, 66518 started, 66510 done, 66510 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 66511 2xx, 0 3xx, 0 4xx, 0 5xx
`

func TestParseH2load(t *testing.T) {
	l, err := parseH2load(h2loadOutput)
	if want := (load{requests: 66510, rate: 66510}); err != nil || l != want {
		t.Errorf("got %+v, %v, want %+v", l, err, want)
	}
	for name, text := range map[string]string{
		"a failed request":  strings.Replace(h2loadOutput, "66510 succeeded, 0 failed", "66509 succeeded, 1 failed", 1),
		"another status":    strings.Replace(h2loadOutput, "66510 succeeded", "66509 succeeded", 1),
		"a timeout":         strings.Replace(h2loadOutput, "0 timeout", "1 timeout", 1),
		"a missing line":    strings.Replace(h2loadOutput, "requests:", "request:", 1),
		"no request at all": strings.ReplaceAll(h2loadOutput, "66510 done, 66510", "0 done, 0"),
	} {
		if l, err := parseH2load(text); err == nil {
			t.Errorf("%s: got %+v, want an error", name, l)
		}
	}
	p50, p99, err := percentiles(strings.NewReader("1\t200\t100\n2\t200\t200\n3\t200\t9000\n"))
	if err != nil || p50 != 100*time.Microsecond || p99 != 200*time.Microsecond {
		t.Errorf("percentiles %s, %s, %v", p50, p99, err)
	}
}

// serveSlowly answers one connection after another, each request after a while.
func serveSlowly(t *testing.T, wait time.Duration) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		<-time.After(wait)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// One connection bears 50 requests a second when each takes 20 ms. At twice that
// rate half of them are late, the last by half of the duration: a closed loop would
// say 20 ms of all.
func TestLateRequestsCountFromWhenTheyWereDue(t *testing.T) {
	var out bytes.Buffer
	address := serveSlowly(t, 20*time.Millisecond)
	if err := generateAt(t.Context(), &out, "http://"+address+path, 1, 100, 500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	l, err := parseWrk(out.String())
	if err != nil || l.requests != 50 || l.p99 < 300*time.Millisecond || l.p50 > l.p99 {
		t.Errorf("got %+v, %v, want 50 requests and a p99 of half a second", l, err)
	}
}

func TestAConstantRateIsKept(t *testing.T) {
	var out bytes.Buffer
	address := serveSlowly(t, 0)
	if err := generateAt(t.Context(), &out, "http://"+address+path, 8, 400, 500*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if l, err := parseWrk(out.String()); err != nil || l.requests != 200 {
		t.Errorf("got %+v, %v, want 200 requests", l, err)
	}
}

func TestAConstantRateOfNothingIsAnError(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close() })
	var out bytes.Buffer
	if err := generateAt(t.Context(), &out, "http://"+ln.Addr().String()+path, 2, 1000, 100*time.Millisecond); err == nil {
		if l, err := parseWrk(out.String()); err == nil {
			t.Errorf("got %+v from a server that closes", l)
		}
	}
}

func TestIdleConnectionsAreHeldUntilTheEnd(t *testing.T) {
	address := serveSlowly(t, 0)
	ctx, stop := context.WithCancel(t.Context())
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- holdIdle(ctx, in, address, 20) }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "20 idle\n" {
		t.Errorf("it says %q, %v", line, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestEveryRouteIsThere(t *testing.T) {
	text := manyRoutes()
	if got := strings.Count(text, "destination:"); got != routedHosts*rulesEach {
		t.Errorf("%d rules", got)
	}
}
