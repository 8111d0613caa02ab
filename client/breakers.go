package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/weftmesh/weft"
)

// Breaker is a circuit of a connected proxy, as the proxy told last. Each proxy has
// circuits of its own: one may be open where another one is closed.
type Breaker struct {
	Target      string        `json:"target"`           // a service, "inventory-service.default", or a route's rule
	Policy      string        `json:"policy,omitempty"` // where it was asked for: "ResiliencePolicy default/inventory-service (inventory.yaml:1)"
	Proxy       string        `json:"proxy"`            // that calls the target: "order-service.default"
	ProxyID     string        `json:"proxyId"`          // as in Status
	Identity    weft.Identity `json:"identity"`         // of the proxy
	State       string        `json:"state"`            // "closed", "open", "half-open", "forced-open", "disabled" or "metrics-only"
	Since       time.Time     `json:"since"`            // of the state, by the proxy's clock
	Calls       uint32        `json:"calls"`            // in its window
	Failures    uint32        `json:"failures"`
	Slow        uint32        `json:"slow"`
	FailureRate float64       `json:"failureRate"` // percent; below 0: too few calls to tell
	SlowRate    float64       `json:"slowRate"`
}

// BreakerEvent is a change of a circuit's state.
type BreakerEvent struct {
	Time     time.Time     `json:"time"` // by the proxy's clock
	Target   string        `json:"target"`
	Policy   string        `json:"policy,omitempty"`
	Proxy    string        `json:"proxy"`
	ProxyID  string        `json:"proxyId"`
	Identity weft.Identity `json:"identity"`
	From     string        `json:"from"` // states
	To       string        `json:"to"`
	Reason   string        `json:"reason,omitempty"`
	Calls    uint32        `json:"calls"` // in its window when it changed
	Failures uint32        `json:"failures"`
	Slow     uint32        `json:"slow"`
	Lost     uint64        `json:"lost,omitempty"` // changes just before this one that the proxy could not tell: the server was away for long
}

// BreakerOverride holds the circuits of a service in a state, at every proxy. It is
// kept as a resource of the kind BreakerOverride.
type BreakerOverride struct {
	State  string `json:"state"` // "forced-open", "disabled" or "metrics-only"
	Reason string `json:"reason,omitempty"`
}

// BreakerQuery chooses circuits, or their changes. Zero values ask nothing.
type BreakerQuery struct {
	Service weft.ServiceName // its circuits, not those of single routes
	Since   time.Duration    // changes only: those that happened no longer ago
}

func (q BreakerQuery) encode() string {
	pairs := []string{"service", q.Service.Name, "namespace", q.Service.Namespace}
	if q.Since > 0 {
		pairs = append(pairs, "since", q.Since.String())
	}
	return query(pairs...)
}

// Breakers lists the circuits of connected proxies, sorted by target and proxy.
func (c *Client) Breakers(ctx context.Context, q BreakerQuery) ([]Breaker, error) {
	var out []Breaker
	q.Since = 0
	err := c.call(ctx, request{op: "list", thing: "breakers", path: "/api/breakers" + q.encode()}, &out)
	return out, err
}

// BreakerEvents lists the last changes of circuits, oldest first. The server keeps
// some, and forgets them when it restarts.
func (c *Client) BreakerEvents(ctx context.Context, q BreakerQuery) ([]BreakerEvent, error) {
	var out []BreakerEvent
	err := c.call(ctx, request{op: "list", thing: "changes of breakers", path: "/api/breakers/events" + q.encode()}, &out)
	return out, err
}

// HoldBreaker holds the circuits of a service in a state until ReleaseBreaker. A
// service that the server does not know is weft.NotFound.
func (c *Client) HoldBreaker(ctx context.Context, n weft.ServiceName, o BreakerOverride) (ApplyResult, error) {
	var out ApplyResult
	err := c.call(ctx, request{op: "hold", thing: "breaker of " + n.String(), method: http.MethodPut, path: breakerPath(n), body: o}, &out)
	return out, err
}

// ReleaseBreaker leaves the circuits of a service to their calls again. One that is
// not held is weft.NotFound.
func (c *Client) ReleaseBreaker(ctx context.Context, n weft.ServiceName) error {
	return c.call(ctx, request{op: "release", thing: "breaker of " + n.String(), method: http.MethodDelete, path: breakerPath(n)}, nil)
}

func breakerPath(n weft.ServiceName) string {
	return "/api/breakers/" + url.PathEscape(n.Name) + query("namespace", n.Namespace)
}
