package weft

import (
	"encoding/json"
	"strings"
	"time"
)

// ServiceName names a service: a set of instances in a namespace. It is
// comparable, and so a map key.
type ServiceName struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// NewServiceName returns the service name in namespace, or in the default
// namespace when that is empty.
func NewServiceName(namespace, name string) ServiceName {
	if namespace == "" {
		namespace = DefaultNamespace
	}
	return ServiceName{Namespace: namespace, Name: name}
}

// String is "order-service.default".
func (n ServiceName) String() string { return n.Name + "." + n.Namespace }

// Host is the full Kubernetes-form name, "order-service.default.svc.cluster.local".
func (n ServiceName) Host() string {
	return n.Name + "." + n.Namespace + ".svc." + ClusterDomain
}

// hasHost reports whether host is Host.
func (n ServiceName) hasHost(host string) bool {
	rest, ok := strings.CutPrefix(host, n.Name)
	if !ok || rest == "" || rest[0] != '.' {
		return false
	}
	rest, ok = strings.CutPrefix(rest[1:], n.Namespace)
	return ok && rest == ".svc."+ClusterDomain
}

// ParseHost reads a host name (lower case, no port) as the name of a service,
// seen from namespace. It knows "name", "name.namespace", "name.namespace.svc",
// "name.namespace.svc.cluster.local" and "name.service.consul". A name of two
// labels may also be somebody's domain (example.com): ok says only that the form
// fits; who asks must look whether the service exists.
func ParseHost(host, namespace string) (n ServiceName, ok bool) {
	host = strings.TrimSuffix(host, ".")
	if name, found := strings.CutSuffix(host, ".service.consul"); found && plainLabel(name) {
		return NewServiceName("", name), true
	}
	host = strings.TrimSuffix(host, "."+ClusterDomain)
	if rest, found := strings.CutSuffix(host, ".svc"); found {
		name, ns, two := strings.Cut(rest, ".")
		return ServiceName{Namespace: ns, Name: name}, two && plainLabel(name) && plainLabel(ns)
	}
	name, ns, two := strings.Cut(host, ".")
	if !two {
		return NewServiceName(namespace, name), plainLabel(name)
	}
	return ServiceName{Namespace: ns, Name: name}, plainLabel(name) && plainLabel(ns)
}

func plainLabel(s string) bool { return s != "" && !strings.ContainsAny(s, ".*:/") }

// Health of an instance or of one of its checks, from good to bad.
type Health uint8

const (
	Passing Health = iota
	Warning
	Critical
	Maintenance // taken out by a person; counts as critical everywhere
)

var healthNames = [...]string{"passing", "warning", "critical", "maintenance"}

func (h Health) String() string { return healthNames[h] }

// MarshalText writes "passing", "warning", "critical" or "maintenance".
func (h Health) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (h *Health) UnmarshalText(b []byte) error {
	v, err := ParseHealth(string(b))
	*h = v
	return err
}

// ParseHealth reads "passing", "warning", "critical" or "maintenance".
func ParseHealth(s string) (Health, error) {
	for i, name := range healthNames {
		if s == name {
			return Health(i), nil
		}
	}
	return Critical, Errorf(Invalid, "parse health", s, "want passing, warning, critical or maintenance")
}

// CheckKind says how the health of a check is learnt.
type CheckKind string

const (
	HTTPCheck        CheckKind = "http"        // the server GETs Target
	TCPCheck         CheckKind = "tcp"         // the server connects to Target
	GRPCCheck        CheckKind = "grpc"        // the server asks grpc.health.v1 at Target, host:port or host:port/service
	H2PingCheck      CheckKind = "h2ping"      // the server sends an HTTP/2 PING to Target, host:port
	UDPCheck         CheckKind = "udp"         // the server sends a datagram to Target; silence is healthy, a refusal is not
	AliasCheck       CheckKind = "alias"       // the worst of AliasNode's checks, or of its instance AliasService
	ScriptCheck      CheckKind = "script"      // the server runs Args; only where the server allows it
	TTLCheck         CheckKind = "ttl"         // somebody reports within TTL, else critical
	LeaseCheck       CheckKind = "lease"       // the sidecar's stream keeps it alive within TTL, else critical
	MaintenanceCheck CheckKind = "maintenance" // set by a person
	StaticCheck      CheckKind = "static"      // status given with the registration, never probed
)

// Check is one way in which an instance's (or a node's) health is known, with
// its last result.
type Check struct {
	ID     string    `json:"id"` // "service:order-service-1"
	Name   string    `json:"name"`
	Kind   CheckKind `json:"kind"`
	Notes  string    `json:"notes,omitempty"`
	Status Health    `json:"status"`
	Output string    `json:"output,omitempty"` // at most 4 KiB

	Target          string              `json:"target,omitempty"` // URL of an HTTP check, host:port of a TCP check
	Method          string              `json:"method,omitempty"` // GET when empty
	Header          map[string][]string `json:"header,omitempty"`
	Body            string              `json:"body,omitempty"`
	TLSSkipVerify   bool                `json:"tlsSkipVerify,omitempty"`
	NoRedirects     bool                `json:"noRedirects,omitempty"`
	Interval        Duration            `json:"interval,omitempty"`
	Timeout         Duration            `json:"timeout,omitempty"`
	TLS             bool                `json:"tls,omitempty"`           // of a gRPC or HTTP/2 PING check
	TLSServerName   string              `json:"tlsServerName,omitempty"` // of any check over TLS; Target's host when empty
	Args            []string            `json:"args,omitempty"`          // of a script check
	AliasNode       string              `json:"aliasNode,omitempty"`
	AliasService    string              `json:"aliasService,omitempty"` // instance id on AliasNode; empty means the node's own checks
	TTL             Duration            `json:"ttl,omitempty"`
	DeregisterAfter Duration            `json:"deregisterAfter,omitempty"` // critical for so long: the instance goes; 0 is never

	// How many equal results in a row change the status. 0 means 1.
	SuccessBeforePassing   int `json:"successBeforePassing,omitempty"`
	FailuresBeforeWarning  int `json:"failuresBeforeWarning,omitempty"`
	FailuresBeforeCritical int `json:"failuresBeforeCritical,omitempty"`

	CreateIndex uint64 `json:"createIndex,omitempty"`
	ModifyIndex uint64 `json:"modifyIndex,omitempty"`
}

// Instance is one running process of a service.
type Instance struct {
	ID                string            `json:"id"` // unique on its node
	Service           ServiceName       `json:"service"`
	Node              string            `json:"node"`
	Address           string            `json:"address"` // IP or host name; empty means the node's address
	Port              int               `json:"port"`
	Protocol          Protocol          `json:"protocol,omitempty"` // of the port; "" is not declared
	Tags              []string          `json:"tags,omitempty"`
	Labels            map[string]string `json:"labels,omitempty"` // Consul's Meta; "version" and "app" matter to the mesh
	Zone              string            `json:"zone,omitempty"`
	Weights           Weights           `json:"weights"`
	Checks            []Check           `json:"checks,omitempty"`
	PID               int               `json:"pid,omitempty"`               // 0 when not known
	Identity          Identity          `json:"identity,omitempty"`          // set when a sidecar stands before it
	MeshAddr          string            `json:"meshAddr,omitempty"`          // host:port where its sidecar accepts mTLS
	Dialect           string            `json:"dialect,omitempty"`           // who registered it: "weft", "consul", "catalog", "eureka", "file", …
	TaggedAddresses   map[string]string `json:"taggedAddresses,omitempty"`   // "lan" -> "10.0.0.1:80"
	EnableTagOverride bool              `json:"enableTagOverride,omitempty"` // Consul: the catalogue may change the tags

	// Extra is what a dialect keeps with the instance that has no word here, by the
	// dialect's name: "consul", "eureka". Others carry it along and do not look in.
	Extra map[string]json.RawMessage `json:"extra,omitempty"`

	CreateIndex uint64 `json:"createIndex,omitempty"`
	ModifyIndex uint64 `json:"modifyIndex,omitempty"`
}

// Weights of an instance by its health. Zero values mean 1.
type Weights struct {
	Passing int `json:"passing,omitempty"`
	Warning int `json:"warning,omitempty"`
}

// InstanceKey finds an instance in the registry.
type InstanceKey struct {
	Node string
	ID   string
}

// Key of the instance.
func (i *Instance) Key() InstanceKey { return InstanceKey{Node: i.Node, ID: i.ID} }

// Health is the worst of the instance's checks; passing when it has none. The
// node's own checks are not looked at here.
func (i *Instance) Health() Health {
	worst := Passing
	for k := range i.Checks {
		worst = max(worst, i.Checks[k].Status)
	}
	return worst
}

// Weight of the instance at its present health, at least 1 unless set to 0 by
// being critical.
func (i *Instance) Weight() int {
	switch i.Health() {
	case Passing:
		return max(i.Weights.Passing, 1)
	case Warning:
		return max(i.Weights.Warning, 1)
	}
	return 0
}

// Version is the instance's "version" label.
func (i *Instance) Version() string { return i.Labels["version"] }

// Node is a machine, or whatever a dialect registers as one.
type Node struct {
	ID      string            `json:"id"` // UUID
	Name    string            `json:"name"`
	Address string            `json:"address"`
	Labels  map[string]string `json:"labels,omitempty"` // Consul's NodeMeta
	Zone    string            `json:"zone,omitempty"`
	Checks  []Check           `json:"checks,omitempty"`

	TaggedAddresses map[string]string          `json:"taggedAddresses,omitempty"` // "wan" -> "10.0.0.1"
	Extra           map[string]json.RawMessage `json:"extra,omitempty"`           // as Instance.Extra

	CreateIndex uint64 `json:"createIndex,omitempty"`
	ModifyIndex uint64 `json:"modifyIndex,omitempty"`
}

// Duration is a time.Duration that is written as "1m30s" in JSON.
type Duration time.Duration

// Std returns the duration as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON writes "1m30s".
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads "1m30s", or an integer of nanoseconds.
func (d *Duration) UnmarshalJSON(b []byte) error {
	s, plain := plainText(b)
	if !plain {
		var ns int64
		if json.Unmarshal(b, &ns) == nil {
			*d = Duration(ns)
			return nil
		}
		if err := json.Unmarshal(b, &s); err != nil {
			return Errorf(Invalid, "parse duration", string(b), "want a text such as \"10s\"")
		}
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return Errorf(Invalid, "parse duration", s, "want a text such as \"10s\"")
	}
	*d = Duration(v)
	return nil
}

// plainText reads a JSON text that says what it has between its quotes, as that of a
// duration does. A catalogue has a few of them in each record.
func plainText(b []byte) (s string, plain bool) {
	if len(b) < 2 || b[0] != '"' || b[len(b)-1] != '"' {
		return "", false
	}
	for _, c := range b[1 : len(b)-1] {
		if c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return "", false
		}
	}
	return string(b[1 : len(b)-1]), true
}
