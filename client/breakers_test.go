package client

import (
	"testing"
	"time"

	"github.com/weftmesh/weft"
)

func TestBreakerMethodsCallTheirPaths(t *testing.T) {
	ctx := t.Context()
	inventory := weft.NewServiceName("", "inventory")
	for _, tt := range []struct {
		call   func(c *Client) error
		answer string
		want   asked
	}{
		{func(c *Client) error { _, err := c.Breakers(ctx, BreakerQuery{}); return err }, "[]", asked{"GET /api/breakers", ""}},
		{func(c *Client) error {
			_, err := c.Breakers(ctx, BreakerQuery{Service: weft.NewServiceName("shop", "a"), Since: time.Minute})
			return err
		}, "[]", asked{"GET /api/breakers?namespace=shop&service=a", ""}},
		{func(c *Client) error {
			_, err := c.BreakerEvents(ctx, BreakerQuery{Service: inventory, Since: time.Minute})
			return err
		}, "[]", asked{"GET /api/breakers/events?namespace=default&service=inventory&since=1m0s", ""}},
		{func(c *Client) error {
			_, err := c.HoldBreaker(ctx, inventory, BreakerOverride{State: "disabled"})
			return err
		}, "{}", asked{"PUT /api/breakers/inventory?namespace=default", `{"state":"disabled"}`}},
		{func(c *Client) error { return c.ReleaseBreaker(ctx, inventory) }, "", asked{"DELETE /api/breakers/inventory?namespace=default", ""}},
	} {
		c, got := serve(t, 200, tt.answer)
		if err := tt.call(c); err != nil {
			t.Errorf("%s: %v", tt.want.line, err)
		}
		if *got != tt.want {
			t.Errorf("asked %+v, want %+v", *got, tt.want)
		}
	}
}
