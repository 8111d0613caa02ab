package client

import (
	"time"

	"github.com/weftmesh/weft"
)

// Service is one line of the catalogue: a service and how its instances are.
type Service struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Tags      []string `json:"tags,omitempty"`     // sorted union of the instances' tags
	Versions  []string `json:"versions,omitempty"` // sorted, of the instances' "version" label
	Instances int      `json:"instances"`          // all of them
	Healthy   int      `json:"healthy"`            // passing or warning: these get traffic
	Kept      int      `json:"kept,omitempty"`     // get traffic though they failed, as the service is guarded
	Guard     string   `json:"guard,omitempty"`    // why it is; see Client.Guards
}

// Instance is one running process of a service.
type Instance struct {
	ID          string            `json:"id"` // unique on its node
	Namespace   string            `json:"namespace"`
	Service     string            `json:"service"`
	Node        string            `json:"node"`
	Address     string            `json:"address"`            // "host:port" of the process itself
	Protocol    weft.Protocol     `json:"protocol,omitempty"` // declared; empty: found out by the first bytes
	Version     string            `json:"version,omitempty"`
	Zone        string            `json:"zone,omitempty"`
	Health      weft.Health       `json:"health"`         // the worst of its own and its node's checks
	Kept        string            `json:"kept,omitempty"` // why it gets traffic though it failed
	PID         int               `json:"pid,omitempty"`  // 0 when not known
	Tags        []string          `json:"tags,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Identity    weft.Identity     `json:"identity,omitempty"`    // set when a sidecar stands before it
	MeshAddress string            `json:"meshAddress,omitempty"` // "host:port" where its sidecar takes mTLS
	Dialect     string            `json:"dialect,omitempty"`     // who registered it: "weft", "consul", "catalog"
	Checks      []Check           `json:"checks,omitempty"`      // its own, then its node's
}

// Check is one way in which an instance's health is known, with its last result.
// What it sends (headers, body) stays on the server: there may be secrets in it.
type Check struct {
	ID       string         `json:"id"`
	Kind     weft.CheckKind `json:"kind"`
	Node     bool           `json:"node,omitempty"` // a check of the node, which counts for all its instances
	Status   weft.Health    `json:"status"`
	Output   string         `json:"output,omitempty"` // at most 4 KiB
	Target   string         `json:"target,omitempty"` // URL, or host:port
	Interval weft.Duration  `json:"interval,omitempty"`
	TTL      weft.Duration  `json:"ttl,omitempty"`
}

// Status of a server.
type Status struct {
	Version    string     `json:"version"`
	Datacenter string     `json:"datacenter"`
	Node       string     `json:"node"`
	PID        int        `json:"pid"`
	Started    time.Time  `json:"started"`
	Uptime     float64    `json:"uptimeSeconds"`
	Index      uint64     `json:"index"`    // of the newest change to any instance or check
	Services   int        `json:"services"` // counts
	Instances  int        `json:"instances"`
	Healthy    int        `json:"healthy"`
	Resources  int        `json:"resources"`
	Guarded    []string   `json:"guarded,omitempty"` // services whose failed instances get traffic; see Client.Guards
	Listeners  []Listener `json:"listeners,omitempty"`
	Sources    []Source   `json:"sources,omitempty"` // what else fills the catalogue, through this server
	Proxies    []Proxy    `json:"proxies"`           // connected now, sorted by identity and id
}

// Source is another place that says which instances run: directories of files, an etcd,
// a ZooKeeper.
type Source struct {
	Name      string    `json:"name"` // "files in /etc/weft/services", "etcd at 10.0.0.1:2379/services"
	Dialect   string    `json:"dialect"`
	Node      string    `json:"node"` // on which its instances are
	Instances int       `json:"instances"`
	Synced    time.Time `json:"synced,omitzero"`    // when the catalogue last said what the source says
	Standby   bool      `json:"standby,omitempty"`  // another server writes what it says
	Away      string    `json:"away,omitempty"`     // why it cannot be read; the catalogue keeps what it said last
	AwaySince time.Time `json:"awaySince,omitzero"` // when that began
	Problems  []string  `json:"problems,omitempty"` // with what it says, each with its place and mend
}

// Up reports whether the source can be read, and was.
func (s *Source) Up() bool { return s.Away == "" && (s.Standby || !s.Synced.IsZero()) }

// Listener is a door of the server.
type Listener struct {
	Name    string `json:"name"`    // "api", "consul", "dns", "control", "otlp-http"
	Address string `json:"address"` // "127.0.0.1:8500", as bound
}

// Proxy is a sidecar or a gateway that takes its configuration from the server.
type Proxy struct {
	Role      string        `json:"role"`              // "sidecar" or "gateway"
	Gateway   string        `json:"gateway,omitempty"` // the Gateway resource that a gateway serves
	Service   string        `json:"service"`           // of its identity: "order-service.default"
	ID        string        `json:"id"`
	Identity  weft.Identity `json:"identity"`
	PID       int           `json:"pid,omitempty"` // 0 when not known
	Address   string        `json:"address"`       // its end of the control connection
	Version   string        `json:"version"`       // of its weft
	Connected time.Time     `json:"connected"`
	Applied   uint64        `json:"applied"`            // index up to which it acknowledged all that concerns it
	Current   uint64        `json:"current"`            // index that the server is at
	Rejected  string        `json:"rejected,omitempty"` // why it refused its newest configuration
}
