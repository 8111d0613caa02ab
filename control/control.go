// Package control is the mesh's control plane.
package control

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/ca"
	"github.com/weftmesh/weft/control/resource"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/store"
)

// Config of a Control.
type Config struct {
	Store     *store.Store
	Registry  *registry.Registry
	CA        *ca.Authority
	JoinToken string // ca.NewJoinToken; empty: nobody can join
	Logger    *slog.Logger
}

// Control is an open control plane.
type Control struct{}

// Open loads the resources and starts to follow the store and the registry.
func Open(ctx context.Context, c Config) (*Control, error) { return nil, errNotBuilt }

// Close ends every stream and waits for them.
func (c *Control) Close() error { return errNotBuilt }

// ApplyOptions of Apply.
type ApplyOptions struct {
	Partial bool // apply the good documents though others are bad
	DryRun  bool // check and compare only
}

// ApplyAction is what became of one document.
type ApplyAction string

const (
	Created   ApplyAction = "created"
	Updated   ApplyAction = "updated"
	Unchanged ApplyAction = "unchanged"
)

// ApplyChange is one document of an Apply.
type ApplyChange struct {
	Kind      string         `json:"kind"`
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Action    ApplyAction    `json:"action"`
	Source    weft.SourceRef `json:"source"`
}

// ApplyResult is what an Apply did, or would do.
type ApplyResult struct {
	Index    uint64        `json:"index"` // at which the change is visible
	Changes  []ApplyChange `json:"changes"`
	Problems weft.Problems `json:"problems,omitempty"` // warnings; with Partial also the errors of what was left out
}

// Apply checks files and writes their resources in one transaction. Without
// Partial any error refuses all; the error is then weft.Invalid around
// weft.Problems.
func (c *Control) Apply(ctx context.Context, files []resource.File, o ApplyOptions) (ApplyResult, error) {
	return ApplyResult{}, errNotBuilt
}

// Delete removes one resource. The error is weft.NotFound when it is not there.
func (c *Control) Delete(ctx context.Context, kind, namespace, name string) (index uint64, err error) {
	return 0, errNotBuilt
}

// Resources returns every resource, sorted by kind, namespace and name.
func (c *Control) Resources() []resource.Resource { return nil }

// ProxyStatus is a connected proxy.
type ProxyStatus struct {
	ID        string           `json:"id"`
	Role      string           `json:"role"` // "sidecar" or "gateway"
	Gateway   string           `json:"gateway,omitempty"`
	Service   weft.ServiceName `json:"service"` // of its identity
	Identity  weft.Identity    `json:"identity"`
	PID       int              `json:"pid,omitempty"`
	Address   string           `json:"address"` // its end of the control connection
	Version   string           `json:"version"` // of its weft
	Connected time.Time        `json:"connected"`
	Applied   uint64           `json:"applied"` // it acknowledged everything of its own up to this index
	Current   uint64           `json:"current"` // the control plane's index
	LastNack  string           `json:"lastNack,omitempty"`
}

// Proxies returns the connected proxies, sorted by identity and id.
func (c *Control) Proxies() []ProxyStatus { return nil }

// Mesh compiles what a proxy in namespace sees of hosts, or of every registered
// service by its full name when no host is given.
func (c *Control) Mesh(namespace string, hosts ...string) *weft.Snapshot { return &weft.Snapshot{} }

// GatewaySnapshot compiles what the gateway sees.
func (c *Control) GatewaySnapshot(name string) *weft.Snapshot { return &weft.Snapshot{} }

// WorkloadAuthorization is the policies of the instances that carry one set of labels.
type WorkloadAuthorization struct {
	Labels        map[string]string
	Instances     []weft.InstanceKey
	Authorization *weft.Authorization
}

// AuthorizationFor returns the policies of a service's instances, one entry for
// each distinct set of labels. A service without instances gets one entry of no labels.
func (c *Control) AuthorizationFor(service weft.ServiceName) []WorkloadAuthorization { return nil }

// Register adds the control plane's services to a gRPC server that was made with
// ServerOptions.
func (c *Control) Register(s *grpc.Server) {}

// ServerOptions are TLS, authentication and limits of the control port.
func (c *Control) ServerOptions() []grpc.ServerOption { return nil }

// ServerTLS is the control port's TLS: included in ServerOptions.
func (c *Control) ServerTLS() *tls.Config { return nil }

var errNotBuilt = weft.Errorf(weft.Internal, "open", "control", "not built yet")
