package subscribe_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/controltest"
	"github.com/weftmesh/weft/control/subscribe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// join opens a client that ends with the test, before the server does.
func join(t *testing.T, s *controltest.Server, c subscribe.Config) *subscribe.Client {
	t.Helper()
	c.Server = s.Address
	if c.Token == "" {
		c.Token = s.Token
	}
	client, err := subscribe.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}

func need(t *testing.T, c *subscribe.Client, host string) *weft.Snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s := c.Need(ctx, host)
	if ctx.Err() != nil {
		t.Fatalf("%s was not answered", host)
	}
	return s
}

// route asks a snapshot where a request goes: "order-service.default v2" or the problem.
func route(s *weft.Snapshot, host string) string {
	d := s.Route(&weft.Request{Method: "GET", Scheme: "http", Host: host, Path: "/"}, 0)
	if d.Problem != "" {
		return string(d.Problem)
	}
	return fmt.Sprintf("%s %s %d", d.Destination.Service, d.Destination.Subset, len(d.Service.Endpoints))
}

func TestSidecarFollowsWhatItCalls(t *testing.T) {
	s := controltest.Start(t, controltest.Config{})
	s.Instance("order-service", "v1", 8001)
	c := join(t, s, subscribe.Config{ServiceAccount: "user-service"})
	if got := route(c.Snapshot(), "order-service"); got != string(weft.NotLoaded) {
		t.Errorf("before it was asked for: %s", got)
	}
	if got := route(need(t, c, "order-service"), "order-service"); got != "order-service.default  1" {
		t.Errorf("order-service: %s", got)
	}
	if got := route(need(t, c, "nobody"), "nobody"); got != string(weft.NoHost) {
		t.Errorf("nobody: %s", got)
	}
	s.Instance("order-service", "v2", 8002)
	controltest.Eventually(t, func() string {
		if got := route(c.Snapshot(), "order-service"); got != "order-service.default  2" {
			return got
		}
		return ""
	})
}
