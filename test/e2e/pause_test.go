package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

// stops is how long the server is stopped: many times what the clients' leases last.
const stops = 10 * time.Second

// A server that was stopped for a while takes nobody for dead who went on: nobody
// could tell it of himself meanwhile. Who died in that time is found when it goes on.
func TestServerThatWasStopped(t *testing.T) {
	c := newChain(t)
	consul := "http://" + c.server.ready(t, 1).text("consul")
	web := &http.Client{Timeout: time.Second}
	defer web.CloseIdleConnections()
	send := func(ctx context.Context, method, url, body string) error {
		r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
		if err != nil {
			return err
		}
		resp, err := web.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode >= 300 {
			return fmt.Errorf("%s: %s", resp.Status, b)
		}
		return nil
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// renew sends signs of life until ctx ends, and counts those that arrived.
	var work sync.WaitGroup
	renew := func(ctx context.Context, every time.Duration, url, body string) *atomic.Int64 {
		arrived := new(atomic.Int64)
		work.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				if send(ctx, http.MethodPut, url, body) == nil {
					arrived.Add(1)
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
			}
		})
		return arrived
	}
	living, end := context.WithCancel(t.Context())
	defer work.Wait()
	defer end()

	must(send(t.Context(), http.MethodPut, consul+"/v1/agent/service/register", `{"Name": "by-ttl", "Port": 1, "Check": {"TTL": "2s", "Status": "passing"}}`))
	reports := renew(living, 400*time.Millisecond, consul+"/v1/agent/check/pass/service:by-ttl", "")
	_, err := c.client.Register(t.Context(), client.Registration{Service: "by-lease", Port: 2, TTL: weft.Duration(time.Second)})
	must(err)
	must(send(t.Context(), http.MethodPost, "http://"+c.api+"/api/instances", `{"service": "dies", "id": "dies-1", "port": 3, "ttl": "1s"}`))
	short, die := context.WithCancel(living)
	defer die()
	renew(short, 300*time.Millisecond, "http://"+c.api+"/api/instances/dies-1/heartbeat", "{}")

	health := func(service string) string {
		list, err := c.client.Instances(t.Context(), weft.NewServiceName("", service))
		if err != nil || len(list) != 1 {
			return fmt.Sprint(list, err)
		}
		return list[0].Health.String()
	}
	eventually(t, 5*time.Second, "all three to be there, and to go on", func() error {
		for _, service := range []string{"by-ttl", "by-lease", "dies"} {
			if got := health(service); got != "passing" {
				return fmt.Errorf("%s is %s", service, got)
			}
		}
		if reports.Load() < 3 {
			return fmt.Errorf("%d reports", reports.Load())
		}
		return nil
	})
	changes := func(service string) []client.Change {
		h, err := c.client.History(t.Context(), weft.NewServiceName("", service), time.Minute)
		must(err)
		return h.Changes
	}
	before := map[string]int{"by-ttl": len(changes("by-ttl")), "by-lease": len(changes("by-lease"))}

	pid := c.server.cmd.Process.Pid
	must(syscall.Kill(pid, syscall.SIGSTOP))
	defer syscall.Kill(pid, syscall.SIGCONT)
	<-time.After(stops / 2)
	die()
	<-time.After(stops / 2)
	must(syscall.Kill(pid, syscall.SIGCONT))
	resumed, seen := time.Now(), reports.Load()

	eventually(t, 4*time.Second, "the one that died to be found", func() error {
		if got := health("dies"); got != "critical" {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
	t.Logf("found %s after the server went on", time.Since(resumed).Round(time.Millisecond))
	// Two lifetimes later, too, there was no moment in which another one was critical.
	eventually(t, 10*time.Second, "the others to go on", func() error {
		if n := reports.Load() - seen; n < 10 {
			return fmt.Errorf("%d reports", n)
		}
		return nil
	})
	for service, n := range before {
		if list := changes(service); len(list) != n || health(service) != "passing" {
			t.Errorf("%s is %s; it changed: %+v", service, health(service), list)
		}
	}
}
