package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/weftmesh/weft"
)

// Receipts say who has the last change of a service, and who has not.
type Receipts struct {
	Namespace string    `json:"namespace"`
	Service   string    `json:"service"`
	At        time.Time `json:"at"`      // of the answer, by the server's clock
	Index     uint64    `json:"index"`   // of the last change
	Changes   []Change  `json:"changes"` // what it was; empty when that is too long ago
	// Servers are those that were asked, the one that answers first.
	Servers []ServerReceipt `json:"servers"`
	Proxies []Receipt       `json:"proxies"` // who has not, then who has; sorted by name
}

// ServerReceipt is how far a server is with a service.
type ServerReceipt struct {
	Server string `json:"server"`
	Index  uint64 `json:"index"` // of the service, on this server
	// Behind is by how many changes of anything it lags, about; 0: it has the last of
	// this service.
	Behind uint64 `json:"behind,omitempty"`
	// Watchers are the readers (Consul's blocking queries, DNS, weft's API) that wait
	// there for the next change. Each of them has been told what the server has.
	Watchers int    `json:"watchers"`
	Error    string `json:"error,omitempty"` // why it does not say
}

// Receipt is how far a proxy is with a service.
type Receipt struct {
	Proxy     string        `json:"proxy"` // its service
	ProxyID   string        `json:"proxyID"`
	Identity  weft.Identity `json:"identity"`
	Role      string        `json:"role"`
	Address   string        `json:"address"` // its end of the control connection
	PID       int           `json:"pid,omitempty"`
	Server    string        `json:"server"` // that it follows, or did
	Connected bool          `json:"connected"`
	Has       bool          `json:"has"`          // the last change
	Acked     uint64        `json:"acked"`        // index of the service up to which it has acknowledged
	Since     time.Time     `json:"since"`        // when it acknowledged that; of one that has not: since when the change is on its way, or it is gone
	Why       string        `json:"why,omitzero"` // it has not
}

// Change is what happened to one instance of a service at one index.
type Change struct {
	Index    uint64    `json:"index"`
	When     time.Time `json:"when,omitzero"` // to 0.1 s, by the clock of the server that wrote it
	By       string    `json:"by,omitempty"`  // "" when nobody said so
	Node     string    `json:"node,omitempty"`
	Instance string    `json:"instance,omitempty"` // empty: it happened to the node, or to the service's guard
	What     []string  `json:"what"`
}

// History is how a service came to be what it is.
type History struct {
	From    uint64     `json:"from"` // index at which it begins
	At      time.Time  `json:"at,omitzero"`
	Start   []Instance `json:"start"`   // as they were then
	Changes []Change   `json:"changes"` // since then, oldest first
	Next    uint64     `json:"next,omitempty"`
}

// Guarded is a service whose failed instances get traffic, because too many failed
// together.
type Guarded struct {
	Namespace string    `json:"namespace"`
	Service   string    `json:"service"`
	Reason    string    `json:"reason"`
	Since     time.Time `json:"since"`
	Kept      []string  `json:"kept"` // instances, as "node/id"
}

// DrainOptions of Client.DrainInstance.
type DrainOptions struct {
	Deadline weft.Duration `json:"deadline,omitempty"` // how long to wait for those who follow; 10 s when 0, at most 5 m
}

// DrainedBy says who knows that an instance is drained.
type DrainedBy struct {
	Node     string   `json:"node"`
	Instance string   `json:"instance"`
	Service  string   `json:"service"`
	Index    uint64   `json:"index"`   // at which no view has it any more
	Acked    []string `json:"acked"`   // proxies, as "service/id"
	Waiting  []string `json:"waiting"` // who had not acknowledged in time
}

// Receipts says who has the last change of a service.
func (c *Client) Receipts(ctx context.Context, n weft.ServiceName) (Receipts, error) {
	var out Receipts
	err := c.call(ctx, request{op: "read", thing: "receipts of " + n.String(), path: servicePath(n, "receipts")}, &out)
	return out, err
}

// History tells what happened to a service since a time ago, as far back as the
// servers remember.
func (c *Client) History(ctx context.Context, n weft.ServiceName, since time.Duration) (History, error) {
	var all History
	r := request{op: "read", thing: "history of " + n.String(), path: servicePath(n, "history") + "&since=" + url.QueryEscape(since.String())}
	if err := c.call(ctx, r, &all); err != nil {
		return all, err
	}
	for all.Next != 0 {
		var more History
		r.path = servicePath(n, "history") + "&after=" + strconv.FormatUint(all.Next, 10)
		if err := c.call(ctx, r, &more); err != nil {
			return all, err
		}
		all.Changes, all.Next = append(all.Changes, more.Changes...), more.Next
	}
	return all, nil
}

func servicePath(n weft.ServiceName, what string) string {
	return "/api/services/" + url.PathEscape(n.Name) + "/" + what + "?namespace=" + url.QueryEscape(n.Namespace)
}

// Guards lists the services that are guarded, sorted by namespace and name.
func (c *Client) Guards(ctx context.Context) ([]Guarded, error) {
	var out []Guarded
	err := c.call(ctx, request{op: "list", thing: "guards", path: "/api/guards"}, &out)
	return out, err
}

// ReleaseGuard ends the guard of a service: its failed instances get no traffic.
func (c *Client) ReleaseGuard(ctx context.Context, n weft.ServiceName) error {
	return c.call(ctx, request{op: "release", thing: "guard of " + n.String(), method: http.MethodDelete,
		path: "/api/guards/" + url.PathEscape(n.Name) + "?namespace=" + url.QueryEscape(n.Namespace)}, nil)
}

// DrainInstance takes an instance out of every view until EndDrain, and waits for
// those who follow its service. node may be empty when one node only has an instance
// of this id.
func (c *Client) DrainInstance(ctx context.Context, node, id string, o DrainOptions) (DrainedBy, error) {
	left := o.Deadline.Std()
	for {
		var out DrainedBy
		o.Deadline = weft.Duration(min(left, drainStep))
		err := c.call(ctx, request{op: "drain", thing: "instance " + id, method: http.MethodPut, path: drainPath(node, id), body: o}, &out)
		if left -= drainStep; err != nil || len(out.Waiting) == 0 || left <= 0 {
			return out, err
		}
	}
}

// drainStep is how long one call waits at most, of those that a long wait is made of.
const drainStep = requestTimeout - 10*time.Second

// EndDrain brings a drained instance back.
func (c *Client) EndDrain(ctx context.Context, node, id string) error {
	return c.call(ctx, request{op: "end the drain of", thing: "instance " + id, method: http.MethodDelete, path: drainPath(node, id)}, nil)
}

func drainPath(node, id string) string {
	path := "/api/instances/" + url.PathEscape(id) + "/drain"
	if node != "" {
		path += "?node=" + url.QueryEscape(node)
	}
	return path
}
