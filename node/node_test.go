package node

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/telemetry/metric"
)

func TestFirstFailureEndsAllParts(t *testing.T) {
	var ended atomic.Int32
	waits := func(ctx context.Context) error {
		<-ctx.Done()
		ended.Add(1)
		return nil
	}
	var p parts
	p.add("one", waits)
	p.add("two", waits)
	p.add("bad", func(context.Context) error { return errors.New("disk is gone") })
	if err := p.run(context.Background()); err == nil || err.Error() != "bad: disk is gone" || ended.Load() != 2 {
		t.Errorf("%v, %d others ended", err, ended.Load())
	}
}

// What serves the others ends after them.
func TestLastPartsEndLast(t *testing.T) {
	var order []string
	ctx, cancel := context.WithCancelCause(context.Background())
	var p parts
	begun := make(chan struct{})
	p.addLast("spans", func(ctx context.Context) error {
		close(begun)
		<-ctx.Done()
		order = append(order, "spans")
		return nil
	})
	why := errors.New("enough")
	p.add("gateway", func(ctx context.Context) error {
		<-begun
		cancel(why)
		<-ctx.Done()
		if context.Cause(ctx) != why {
			t.Errorf("the cause is %v", context.Cause(ctx))
		}
		order = append(order, "gateway")
		return nil
	})
	if err := p.run(ctx); err != why || len(order) != 2 || order[0] != "gateway" {
		t.Error(order, err)
	}
}

func TestCancelledPartsAreNoFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var p parts
	p.add("one", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	cancel()
	if err := p.run(ctx); err != nil {
		t.Error(err)
	}
}

func TestClosersRunBackwards(t *testing.T) {
	var order []int
	var c closers
	for i := range 3 {
		c.add(func() error { order = append(order, i); return nil })
	}
	if err := c.close(); err != nil || order[0] != 2 || order[2] != 0 {
		t.Error(order, err)
	}
}

func TestTakenPortSaysWhatToDo(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	_, err = listen(nil, "Consul API", taken.Addr().String(), "--consul")
	for _, want := range []string{"Consul API", "port " + port + " is taken", "--consul"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	if weft.KindOf(err) != weft.Conflict {
		t.Errorf("kind %v", weft.KindOf(err))
	}
}

func TestUnprotectedDoorsStayOnLoopback(t *testing.T) {
	for address, ok := range map[string]bool{
		"127.0.0.1:7400": true, "127.5.5.5:0": true, "[::1]:7400": true, "localhost:7400": true,
		":7400": false, "0.0.0.0:7400": false, "10.0.0.1:7400": false, "example.com:7400": false,
		"127.0.0.1": false, "127.0.0.1:http": false, "127.0.0.1:70000": false,
	} {
		err := loopbackOnly("weft API", address, "--api")
		if (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
		if err != nil && !strings.Contains(err.Error(), "--api") {
			t.Errorf("%v does not name the flag", err)
		}
	}
}

func TestClockJump(t *testing.T) {
	for _, tc := range []struct{ wall, want time.Duration }{
		{time.Second, 0}, {1500 * time.Millisecond, 0}, {time.Hour + time.Second, time.Hour}, {time.Second - time.Hour, -time.Hour},
	} {
		if got := clockJump(tc.wall, time.Second); got != tc.want {
			t.Errorf("the wall clock moved %v in a second: %v, want %v", tc.wall, got, tc.want)
		}
	}
}

func TestChildEndsWithItsOwnCode(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -9 $$": 137} {
		p, err := startProcess(exec.Command("sh", "-c", script))
		if err != nil {
			t.Fatal(err)
		}
		<-p.exited()
		if got := p.end(); got != want {
			t.Errorf("%s: code %d, want %d", script, got, want)
		}
	}
	p, err := startProcess(exec.Command("sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do read x; done"))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.end(); got != 3 && got != 143 { // 143: the signal came before the trap
		t.Errorf("a child that is asked to end: code %d", got)
	}
	if _, err := startProcess(exec.Command("/does/not/exist")); err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("a missing program: %v", err)
	}
	var nobody *process
	if nobody.end() != 0 || nobody.id() != 0 || nobody.exited() != nil {
		t.Error("a process of somebody else's is none of ours")
	}
}

func TestProbe(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" {
			w.WriteHeader(500)
		}
	})}
	go s.Serve(ln)
	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, want := range map[string]weft.Health{"": weft.Passing, "/health": weft.Passing, "/sick": weft.Critical} {
		if got, output := probe(context.Background(), web, ln.Addr().String(), path); got != want || output == "" {
			t.Errorf("%q: %v %q", path, got, output)
		}
	}
	s.Close()
	if got, _ := probe(context.Background(), web, ln.Addr().String(), ""); got != weft.Critical {
		t.Errorf("nobody listens: %v", got)
	}
}

func TestMetricsReachPrometheus(t *testing.T) {
	m := metric.New(0)
	m.Requests("outbound", "order-service", "inventory-service", "v1").Observe(200, 3*time.Millisecond)
	m.GaugeFunc("weft_things", "Things.", func() float64 { return 4 })
	h := metricsHandler(m, NewLogger(io.Discard, 0))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serveHTTP(ln, h, NewLogger(io.Discard, 0))(ctx) }()
	resp, err := http.Get("http://" + ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	for _, want := range []string{
		`weft_requests_total{code="200",destination="inventory-service",direction="outbound",source="order-service",version="v1"} 1`,
		`weft_request_duration_seconds_bucket{destination="inventory-service",direction="outbound",source="order-service",version="v1",le="0.005"} 1`,
		"weft_things 4", "go_goroutines",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("lacks %s", want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestHeldPortsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 10 {
		ln, err := holdFreePort()
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if a := ln.Addr().String(); seen[a] {
			t.Errorf("%s twice", a)
		} else {
			seen[a] = true
		}
	}
}
