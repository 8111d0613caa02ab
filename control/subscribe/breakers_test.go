package subscribe_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/controltest"
	"github.com/weftmesh/weft/control/subscribe"
)

// circuits are those of a proxy.
type circuits struct {
	mu  sync.Mutex
	all []subscribe.Breaker
}

func (c *circuits) list() []subscribe.Breaker {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]subscribe.Breaker{}, c.all...)
}

// become makes the circuits of targets be in states: "cart.default open".
func (c *circuits) become(states ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = nil
	for _, s := range states {
		b := subscribe.Breaker{Policy: "ResiliencePolicy default/p", Since: time.Now(), Calls: 10, FailureRate: 70, SlowRate: -1}
		fmt.Sscan(s, &b.Target, &b.State)
		c.all = append(c.all, b)
	}
}

func (c *circuits) change(to *subscribe.Client, target, from, state string) {
	c.become(target + " " + state)
	to.BreakerChanged(subscribe.BreakerEvent{Time: time.Now(), Target: target, From: from, To: state, Reason: "told"})
}

// serverSees waits until the server knows circuits: "cart.default open".
func serverSees(t *testing.T, s *controltest.Server, want ...string) {
	t.Helper()
	controltest.Eventually(t, func() string {
		got := []string{}
		for _, b := range s.Control.Breakers("") {
			got = append(got, b.Target+" "+b.State)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Sprintf("the server sees %v, want %v", got, want)
		}
		return ""
	})
}

func TestTheServerSeesTheCircuits(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	c := join(t, s, subscribe.Config{ServiceAccount: "shop"})
	var mine circuits
	c.ReportBreakers(mine.list)
	mine.change(c, "cart.default", "closed", "open")
	serverSees(t, s, "cart.default open")
	b := s.Control.Breakers("")[0]
	if b.Proxy.String() != "shop.default" || b.Identity != c.Identity() || b.Policy != "ResiliencePolicy default/p" || b.Calls != 10 || b.FailureRate != 70 || b.SlowRate != -1 || b.Since.IsZero() {
		t.Errorf("%+v", b)
	}
	mine.change(c, "cart.default", "open", "half-open")
	serverSees(t, s, "cart.default half-open")
	got := s.Control.BreakerEvents("cart.default", time.Time{})
	if len(got) != 2 || got[0].To != "open" || got[1].From != "open" || got[1].To != "half-open" || got[1].Reason != "told" || got[1].Identity != c.Identity() {
		t.Errorf("events %+v", got)
	}
	// A policy that comes or goes comes or goes with a snapshot.
	mine.become("cart.default half-open", "order.default closed")
	need(t, c, "order")
	serverSees(t, s, "cart.default half-open", "order.default closed")
	mine.become("order.default closed")
	need(t, c, "user")
	serverSees(t, s, "order.default closed")
}

func TestCircuitsAreToldAgainToAServerThatComesBack(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	c := join(t, s, subscribe.Config{ServiceAccount: "shop"})
	var mine circuits
	c.ReportBreakers(mine.list)
	mine.change(c, "cart.default", "closed", "open")
	serverSees(t, s, "cart.default open")
	s.Stop()
	connected(t, c, false)
	for i := range 300 { // more than are kept
		mine.change(c, "cart.default", "open", fmt.Sprint("state-", i))
	}
	s.Restart()
	serverSees(t, s, "cart.default state-299")
	got := s.Control.BreakerEvents("", time.Time{})
	if len(got) != 256 || got[0].To != "state-44" || got[0].Lost != 44 || got[255].To != "state-299" || got[255].Lost != 0 {
		t.Errorf("%d events; the first %+v", len(got), got[0])
	}
}

func TestCloseEndsTheReport(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	c, err := subscribe.Open(soon(t), subscribe.Config{Server: s.Address, Token: s.Token, ServiceAccount: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	var mine circuits
	mine.become("cart.default open")
	c.ReportBreakers(mine.list)
	serverSees(t, s, "cart.default open")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	serverSees(t, s)
	c.ReportBreakers(mine.list) // does nothing
	c.BreakerChanged(subscribe.BreakerEvent{})
}

// What a policy says reaches the proxy, with the service that it falls back to.
func TestPoliciesAndHeldCircuitsArrive(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("cart", "v1", 8001)
	s.Instance("spare", "v1", 8002)
	c := join(t, s, subscribe.Config{ServiceAccount: "shop"})
	need(t, c, "cart")
	s.Apply(`
apiVersion: weft.dev/v1
kind: ResiliencePolicy
metadata: {name: cart}
spec:
  targetRef: {kind: Service, name: cart}
  timeout: 2s
  fallback: {service: spare}
---
apiVersion: weft.dev/v1
kind: BreakerOverride
metadata: {name: cart}
spec: {state: disabled, reason: a test}
`)
	sees := func(want string) {
		t.Helper()
		controltest.Eventually(t, func() string {
			now := c.Snapshot()
			cart := now.Services[weft.NewServiceName("", "cart")]
			policy := ""
			if cart.Resilience != nil {
				policy = cart.Resilience.Source.String()
			}
			if got := fmt.Sprintf("%s, %q, %d services", policy, cart.Breaker, len(now.Services)); got != want {
				return "cart is under " + got + ", want " + want
			}
			return ""
		})
	}
	sees(`ResiliencePolicy default/cart (test.yaml:2), "disabled", 2 services`)
	if svc := c.Snapshot().Services[weft.NewServiceName("", "spare")]; svc == nil || len(svc.Endpoints) != 1 {
		t.Errorf("the fallback is %+v", svc)
	}
	for _, kind := range []string{"ResiliencePolicy", "BreakerOverride"} {
		if _, err := s.Control.Delete(t.Context(), kind, "default", "cart"); err != nil {
			t.Fatal(err)
		}
	}
	sees(`, "", 1 services`)
}
