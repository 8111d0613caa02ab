package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	readInstances = 10   // of the service that is read
	churn         = 1000 // changes a second to other services
	churnClients  = 16
)

// runReads measures reads of health/service by wrk from the real server, while nothing
// changes, and while other services do.
func runReads(ctx context.Context, o options) error {
	s, err := startServer(ctx, o.dir)
	if err != nil {
		return err
	}
	defer s.stop()
	for i := range readInstances {
		if err := s.register(ctx, fmt.Sprintf(`{"ID": "web-%d", "Name": "web", "Address": "10.0.0.%d", "Port": 8080, "Tags": ["v1", "primary"], "Meta": {"version": "1"}}`, i, i)); err != nil {
			return err
		}
	}
	for range o.rounds {
		for _, connections := range []int{4, 64} {
			if err := s.measureReads(ctx, o, connections, "nothing changes"); err != nil {
				return err
			}
			changing, stop := context.WithCancel(ctx)
			changed := s.churn(changing)
			err := s.measureReads(ctx, o, connections, "others change")
			stop()
			n, failed := changed()
			fmt.Printf("  meanwhile %d changes of other services\n", n)
			if err = errors.Join(err, failed); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *process) measureReads(ctx context.Context, o options, connections int, what string) error {
	before, err := cpuTime(s.cmd.Process.Pid)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "wrk", "-t2", "-c"+strconv.Itoa(connections), fmt.Sprintf("-d%ds", max(1, int(o.length.Seconds()))), "--latency",
		"http://"+s.consul+"/v1/health/service/web?passing").CombinedOutput()
	if err != nil {
		return fmt.Errorf("wrk (Debian: apt-get install wrk): %w: %s", err, out)
	}
	after, err := cpuTime(s.cmd.Process.Pid)
	if err != nil {
		return err
	}
	found := make(map[string]string) // the lines of wrk's that are looked at
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2 && (fields[0] == "50%" || fields[0] == "99%" || fields[0] == "Requests/sec:"):
			found[fields[0]] = fields[1]
		case len(fields) > 2 && fields[1] == "requests":
			found["requests"] = fields[0]
		case strings.Contains(line, "Non-2xx") || strings.Contains(line, "Socket errors"):
			return errors.New(strings.TrimSpace(line))
		}
	}
	n, err := strconv.Atoi(found["requests"])
	if err != nil || n == 0 {
		return fmt.Errorf("wrk said nothing of its requests: %s", out)
	}
	fmt.Printf("health/service, %d instances, %2d connections, %s: %s requests/s, p50 %s, p99 %s, %.1f µs CPU of the server each\n",
		readInstances, connections, what, found["Requests/sec:"], found["50%"], found["99%"], float64((after-before).Microseconds())/float64(n))
	return nil
}

// churn registers services anew until ctx ends, evenly over time. What is returned
// waits for its end.
func (s *process) churn(ctx context.Context) (changed func() (int64, error)) {
	var n atomic.Int64
	failed := make(chan error, churnClients)
	for client := range churnClients {
		go func() {
			tick := time.NewTicker(time.Second * churnClients / churn)
			defer tick.Stop()
			for port := 1; ; port++ {
				select {
				case <-ctx.Done():
					failed <- nil
					return
				case <-tick.C:
				}
				body := fmt.Sprintf(`{"ID": "other-%d", "Name": "other-%d", "Port": %d}`, client, client, 1+port%60000)
				if err := s.register(context.WithoutCancel(ctx), body); err != nil {
					failed <- err
					return
				}
				n.Add(1)
			}
		}()
	}
	return func() (int64, error) {
		var err error
		for range churnClients {
			err = errors.Join(err, <-failed)
		}
		return n.Load(), err
	}
}

// process is a weft server.
type process struct {
	cmd    *exec.Cmd
	consul string // host:port
}

// startServer builds weft and starts a server on free ports.
func startServer(ctx context.Context, dir string) (*process, error) {
	weft := filepath.Join(dir, "weft")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", weft, "github.com/weftmesh/weft/cmd/weft").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build weft: %w: %s", err, out)
	}
	args := []string{"server", "--data", filepath.Join(dir, "server")}
	for _, door := range []string{"api", "consul", "eureka", "dns", "control", "otlp-http", "otlp-grpc"} {
		args = append(args, "--"+door, "127.0.0.1:0")
	}
	s := &process{cmd: exec.CommandContext(ctx, weft, args...)}
	log, err := s.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(log)
	for s.consul == "" && lines.Scan() {
		var line struct{ Msg, Consul string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "ready" {
			s.consul = line.Consul
		}
	}
	if s.consul == "" {
		return nil, errors.New("weft server ended before it was ready")
	}
	go func() { _, _ = io.Copy(io.Discard, log) }() // until the process ends
	return s, nil
}

func (s *process) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait()
}

func (s *process) register(ctx context.Context, body string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+s.consul+"/v1/agent/service/register", strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("register: %s: %s", resp.Status, b)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
