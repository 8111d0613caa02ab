package api

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/resilience"
)

const appliedPolicy = `apiVersion: weft.dev/v1
kind: ResiliencePolicy
metadata:
  name: inventory-service
spec:
  targetRef: {kind: Service, name: inventory-service}
  timeout: 2s
  circuitBreaker:
    failureRateThreshold: 50
    slidingWindow: {type: count, size: 10}
    waitDurationInOpenState: 1ms
    permittedCallsInHalfOpenState: 3
  retry:
    maxAttempts: 3
    ignoreStatuses: ["4xx"]
  bulkhead:
    maxConcurrentCalls: 10
    maxWaitDuration: 50ms
  fallback:
    status: 200
    headers: {content-type: application/json}
    body: '{"status":"unknown"}'
`

// A program without a sidecar, a service that registers itself, and the policy that
// somebody applies: client, server and sockets are the real ones.
func TestASDKCallsByThePolicyThatIsApplied(t *testing.T) {
	h := openHouse(t)
	ctx := t.Context()
	c, err := client.New(context.Background(), client.At(h.url))
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })

	var asked atomic.Int64
	var failing atomic.Bool
	inventory := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if failing.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = io.WriteString(w, `{"status":"known"}`)
	}))
	t.Cleanup(func() { inventory.CloseClientConnections(); inventory.Close() })
	lease, err := c.Register(ctx, client.Registration{Service: "inventory-service", Port: inventory.Listener.Addr().(*net.TCPAddr).Port})
	check(t, err)

	web := c.HTTPClient()
	ask := func(want string) {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, "GET", "http://inventory-service/api/inventory/1", nil)
		check(t, err)
		resp, err := web.Do(r)
		check(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		check(t, err)
		if got := `{"status":"` + want + `"}`; resp.StatusCode != http.StatusOK || string(body) != got {
			t.Fatalf("status %d: %s, want %s", resp.StatusCode, body, got)
		}
	}
	ask("known")
	_, err = h.Apply(ctx, []client.File{{Name: "resilience.yaml", Data: appliedPolicy}}, client.ApplyOptions{})
	check(t, err)
	policy, err := c.Policy(ctx, "inventory-service")
	check(t, err)
	state := func(want resilience.State) {
		t.Helper()
		eventually(t, func() (resilience.State, bool) {
			if b := policy.Breaker(); b != nil {
				return b.State(), b.State() == want
			}
			return resilience.Disabled, false
		})
	}
	state(resilience.Closed)

	failing.Store(true)
	asked.Store(0)
	for range 10 {
		ask("unknown")
	}
	if state(resilience.Open); asked.Load() != 10 {
		t.Errorf("the service was asked %d times, want 10", asked.Load())
	}
	failing.Store(false)
	eventually(t, func() (resilience.State, bool) { // three probes that succeed
		r, _ := http.NewRequestWithContext(ctx, "GET", "http://inventory-service/", nil)
		if resp, err := web.Do(r); err == nil {
			resp.Body.Close()
		}
		return policy.Breaker().State(), policy.Breaker().State() == resilience.Closed
	})
	ask("known")

	_, err = h.HoldBreaker(ctx, weft.NewServiceName("", "inventory-service"), client.BreakerOverride{State: "forced-open"})
	check(t, err)
	state(resilience.ForcedOpen)
	asked.Store(0)
	if ask("unknown"); asked.Load() != 0 {
		t.Error("a circuit that is held open let a call pass")
	}
	check(t, h.ReleaseBreaker(ctx, weft.NewServiceName("", "inventory-service")))
	state(resilience.Closed)
	check(t, lease.Drain(ctx))
}
