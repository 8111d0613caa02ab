// Package subscribe is a proxy's side of the control plane.
package subscribe

import (
	"context"
	"log/slog"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
)

// Role of a proxy.
type Role string

const (
	Sidecar Role = "sidecar"
	Gateway Role = "gateway"
)

// Config of a Client.
type Config struct {
	Server         string // host:port of the control port
	Token          string // join token
	Namespace      string // weft.DefaultNamespace when empty
	ServiceAccount string
	Role           Role
	GatewayName    string // of a Gateway resource; role Gateway only
	PID            int    // of the process that the proxy serves; 0 when not known
	Version        string // weft.Version when empty
	Logger         *slog.Logger
}

// Client is a joined proxy.
type Client struct{}

// Open joins the mesh and starts to follow the control plane.
func Open(ctx context.Context, c Config) (*Client, error) { return nil, errNotBuilt }

// Close drains the leases and ends everything.
func (c *Client) Close() error { return errNotBuilt }

// Credentials of the proxy, kept fresh.
func (c *Client) Credentials() *ca.Credentials { return nil }

// Identity of the proxy.
func (c *Client) Identity() weft.Identity { return "" }

// Connected reports whether the configuration stream is up.
func (c *Client) Connected() bool { return false }

// Snapshot is the present configuration, never nil.
func (c *Client) Snapshot() *weft.Snapshot { return &weft.Snapshot{} }

// Need is Snapshot with the host in it: it asks for a host that is not there yet,
// and waits until it is answered or ctx ends. Call it for each request.
func (c *Client) Need(ctx context.Context, host string) *weft.Snapshot { return c.Snapshot() }

// OnChange calls fn at once and after every change, in order, before the control
// plane is told that the change is applied. fn must not block nor call Need.
func (c *Client) OnChange(fn func(*weft.Snapshot)) {}

// Register keeps an instance in the registry until it is drained.
func (c *Client) Register(ctx context.Context, in weft.Instance, ttl time.Duration) (*Lease, error) {
	return nil, errNotBuilt
}

// Export sends an encoded OTLP ExportTraceServiceRequest.
func (c *Client) Export(ctx context.Context, otlp []byte) error { return errNotBuilt }

// Lease is a registered instance.
type Lease struct{}

// SetHealth reports the instance's health.
func (l *Lease) SetHealth(h weft.Health, output string) {}

// Drain takes the instance out of every view and returns when its callers know.
func (l *Lease) Drain(ctx context.Context) error { return errNotBuilt }

var errNotBuilt = weft.Errorf(weft.Internal, "open", "subscription", "not built yet")
