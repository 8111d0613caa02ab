package consul

import (
	"maps"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
)

// The records of the API. Field names are the JSON keys, and the selectors of
// filters (see filter.go).

type nodeRecord struct {
	ID              string
	Node            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
	Locality        *localityRecord `json:",omitempty"`
	CreateIndex     uint64
	ModifyIndex     uint64
}

type addressRecord struct {
	Address string
	Port    int
}

type weightsRecord struct {
	Passing int
	Warning int
}

type localityRecord struct {
	Region string `json:",omitempty"`
	Zone   string
}

// serviceRecord is an instance as the agent and health endpoints show it.
type serviceRecord struct {
	ID                string
	Service           string
	Tags              []string
	Meta              map[string]string
	Address           string
	TaggedAddresses   map[string]addressRecord `json:",omitempty"`
	Port              int
	Kind              string       `json:",omitempty"`
	SocketPath        string       `json:",omitempty"`
	Ports             []portRecord `json:",omitempty"`
	Weights           weightsRecord
	EnableTagOverride bool
	Proxy             *proxyRecord    `json:",omitempty"`
	Connect           *connectRecord  `json:",omitempty"`
	Namespace         string          `json:",omitempty"`
	Datacenter        string          `json:",omitempty"`
	Locality          *localityRecord `json:",omitempty"`
	ContentHash       string          `json:",omitempty"`
	CreateIndex       uint64
	ModifyIndex       uint64
}

// catalogRecord is an instance as catalog/service shows it.
type catalogRecord struct {
	ID                       string
	Node                     string
	Address                  string
	Datacenter               string
	TaggedAddresses          map[string]string
	NodeMeta                 map[string]string
	ServiceKind              string
	ServiceID                string
	ServiceName              string
	ServiceTags              []string
	ServiceAddress           string
	ServiceTaggedAddresses   map[string]addressRecord
	ServiceWeights           weightsRecord
	ServiceMeta              map[string]string
	ServicePort              int
	ServiceEnableTagOverride bool
	ServiceSocketPath        string       `json:",omitempty"`
	ServicePorts             []portRecord `json:",omitempty"`
	ServiceProxy             *proxyRecord
	ServiceConnect           connectRecord
	Namespace                string          `json:",omitempty"`
	ServiceLocality          *localityRecord `json:",omitempty"`
	CreateIndex              uint64
	ModifyIndex              uint64
}

type checkRecord struct {
	Node        string
	CheckID     string
	Name        string
	Status      string
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	Definition  definitionRecord
	Namespace   string `json:",omitempty"`
	CreateIndex uint64
	ModifyIndex uint64
}

// definitionRecord says how a check is made. The header and the body of an HTTP
// check are not told: they may hold a password.
type definitionRecord struct {
	HTTP                           string         `json:",omitempty"`
	Method                         string         `json:",omitempty"`
	TLSServerName                  string         `json:",omitempty"`
	TLSSkipVerify                  bool           `json:",omitempty"`
	TCP                            string         `json:",omitempty"`
	UDP                            string         `json:",omitempty"`
	GRPC                           string         `json:",omitempty"`
	GRPCUseTLS                     bool           `json:",omitempty"`
	H2PING                         string         `json:",omitempty"`
	H2PingUseTLS                   bool           `json:",omitempty"`
	AliasNode                      string         `json:",omitempty"`
	AliasService                   string         `json:",omitempty"`
	Interval                       *weft.Duration `json:",omitempty"`
	Timeout                        *weft.Duration `json:",omitempty"`
	DeregisterCriticalServiceAfter *weft.Duration `json:",omitempty"`
}

// entryRecord is one line of health/service.
type entryRecord struct {
	Node    nodeRecord
	Service serviceRecord
	Checks  []checkRecord
}

// nodeServices is the answer of catalog/node.
type nodeServices struct {
	Node     nodeRecord
	Services map[string]serviceRecord
}

// nodeServiceList is the answer of catalog/node-services.
type nodeServiceList struct {
	Node     nodeRecord
	Services []serviceRecord
}

// serviceHealth is a line of agent/health/service.
type serviceHealth struct {
	AggregatedStatus string
	Service          serviceRecord
	Checks           []checkRecord
}

type memberRecord struct {
	Name        string
	Addr        string
	Port        uint16
	Tags        map[string]string
	Status      int
	ProtocolMin uint8
	ProtocolMax uint8
	ProtocolCur uint8
	DelegateMin uint8
	DelegateMax uint8
	DelegateCur uint8
}

func (a *api) nodeRecord(n *weft.Node) nodeRecord {
	x := nodeExtraOf(n)
	meta := orEmpty(n.Labels)
	if x.Version != "" {
		meta = maps.Clone(meta)
		meta["consul-version"], meta["consul-network-segment"] = x.Version, ""
	}
	return nodeRecord{
		ID: n.ID, Node: n.Name, Address: n.Address, Datacenter: a.registry.Datacenter(),
		TaggedAddresses: nodeAddresses(n), Meta: meta, Locality: locality(x.Region, n.Zone),
		CreateIndex: n.CreateIndex, ModifyIndex: n.ModifyIndex,
	}
}

// nodeAddresses are those that the node was registered with, or else its address
// under the names that Consul's agents give it.
func nodeAddresses(n *weft.Node) map[string]string {
	if len(n.TaggedAddresses) > 0 {
		return n.TaggedAddresses
	}
	out := map[string]string{"lan": n.Address, "wan": n.Address}
	if ip, err := netip.ParseAddr(n.Address); err == nil {
		family := "_ipv6"
		if ip.Unmap().Is4() {
			family = "_ipv4"
		}
		out["lan"+family], out["wan"+family] = n.Address, n.Address
	}
	return out
}

// newServiceRecord is an instance as the catalogue shows it: Proxy and Connect are
// always there.
func newServiceRecord(in *weft.Instance) serviceRecord {
	x := extraOf(in)
	if x.Proxy == nil {
		x.Proxy = &proxyRecord{}
	}
	if x.Connect == nil {
		x.Connect = &connectRecord{}
	}
	return serviceRecord{
		ID: in.ID, Service: in.Service.Name, Tags: orNone(in.Tags), Meta: orEmpty(in.Labels),
		Address: in.Address, TaggedAddresses: addressRecords(in.TaggedAddresses), Port: in.Port,
		Kind: x.Kind, SocketPath: x.SocketPath, Ports: x.Ports, Proxy: x.Proxy, Connect: x.Connect,
		Weights: weightsOf(in), EnableTagOverride: in.EnableTagOverride,
		Namespace: namespaceOf(in), Locality: locality(x.Region, in.Zone),
		CreateIndex: in.CreateIndex, ModifyIndex: in.ModifyIndex,
	}
}

func (a *api) catalogRecord(n *weft.Node, in *weft.Instance) catalogRecord {
	node, x := a.nodeRecord(n), extraOf(in)
	r := catalogRecord{
		ID: node.ID, Node: node.Node, Address: node.Address, Datacenter: node.Datacenter,
		TaggedAddresses: node.TaggedAddresses, NodeMeta: node.Meta,
		ServiceKind: x.Kind, ServiceID: in.ID, ServiceName: in.Service.Name, ServiceTags: orNone(in.Tags),
		ServiceAddress: in.Address, ServiceTaggedAddresses: addressRecords(in.TaggedAddresses),
		ServiceWeights: weightsOf(in), ServiceMeta: orEmpty(in.Labels), ServicePort: in.Port,
		ServiceEnableTagOverride: in.EnableTagOverride,
		ServiceSocketPath:        x.SocketPath, ServicePorts: x.Ports, ServiceProxy: x.Proxy,
		Namespace: namespaceOf(in), ServiceLocality: locality(x.Region, in.Zone),
		CreateIndex: in.CreateIndex, ModifyIndex: in.ModifyIndex,
	}
	if r.ServiceProxy == nil {
		r.ServiceProxy = &proxyRecord{}
	}
	if x.Connect != nil {
		r.ServiceConnect = *x.Connect
	}
	return r
}

// newCheckRecord shows a check of an instance, or of a node when in is nil.
func newCheckRecord(node string, in *weft.Instance, c *weft.Check) checkRecord {
	r := checkRecord{
		Node: node, CheckID: c.ID, Name: c.Name, Status: statusText(c.Status), Notes: c.Notes, Output: c.Output,
		ServiceTags: []string{}, Type: checkType(c), Definition: newDefinition(c),
		Interval: durationText(c.Interval), Timeout: durationText(c.Timeout),
		CreateIndex: c.CreateIndex, ModifyIndex: c.ModifyIndex,
	}
	if in != nil {
		r.ServiceID, r.ServiceName, r.ServiceTags = in.ID, in.Service.Name, orNone(in.Tags)
		r.Namespace = namespaceOf(in)
	}
	return r
}

func newDefinition(c *weft.Check) definitionRecord {
	d := definitionRecord{
		Interval: orAbsent(c.Interval), Timeout: orAbsent(c.Timeout),
		DeregisterCriticalServiceAfter: orAbsent(c.DeregisterAfter),
	}
	d.TLSServerName, d.TLSSkipVerify = c.TLSServerName, c.TLSSkipVerify
	switch c.Kind {
	case weft.HTTPCheck:
		d.HTTP, d.Method = c.Target, c.Method
	case weft.TCPCheck:
		d.TCP = c.Target
	case weft.UDPCheck:
		d.UDP = c.Target
	case weft.GRPCCheck:
		d.GRPC, d.GRPCUseTLS = c.Target, c.TLS
	case weft.H2PingCheck:
		d.H2PING, d.H2PingUseTLS = c.Target, c.TLS
	case weft.AliasCheck:
		d.AliasNode, d.AliasService = c.AliasNode, c.AliasService
	case weft.StaticCheck: // of the catalogue: somebody else makes it
		switch kind, target := staticDefinition(c); kind {
		case weft.HTTPCheck:
			d.HTTP, d.Method = target, c.Method
		case weft.TCPCheck:
			d.TCP = target
		case weft.UDPCheck:
			d.UDP = target
		case weft.GRPCCheck:
			d.GRPC, d.GRPCUseTLS = target, c.TLS
		}
	}
	return d
}

// staticDefinition is how somebody else makes a check of the catalogue: the kind
// stands before its target. It is empty for one that only has a status.
func staticDefinition(c *weft.Check) (weft.CheckKind, string) {
	kind, target, _ := strings.Cut(c.Target, " ")
	return weft.CheckKind(kind), target
}

// instanceChecks are the checks of one instance.
func instanceChecks(in *weft.Instance) []checkRecord {
	out := make([]checkRecord, 0, len(in.Checks))
	for i := range in.Checks {
		out = append(out, newCheckRecord(in.Node, in, &in.Checks[i]))
	}
	return out
}

// nodeChecks are the checks of a node itself.
func nodeChecks(n *weft.Node) []checkRecord {
	out := make([]checkRecord, 0, len(n.Checks))
	for i := range n.Checks {
		out = append(out, newCheckRecord(n.Name, nil, &n.Checks[i]))
	}
	return out
}

// worst is the aggregated status of checks: maintenance, critical, warning, passing.
func worst(checks []checkRecord) weft.Health {
	h := weft.Passing
	for i := range checks {
		c := &checks[i]
		switch {
		case c.Type == string(weft.MaintenanceCheck):
			return weft.Maintenance
		case c.Status == "critical":
			h = weft.Critical
		case c.Status == "warning":
			h = max(h, weft.Warning)
		}
	}
	return h
}

// statusText is a check's status on the wire, where maintenance is critical.
func statusText(h weft.Health) string { return min(h, weft.Critical).String() }

func checkType(c *weft.Check) string {
	switch c.Kind {
	case weft.LeaseCheck:
		return string(weft.TTLCheck) // the nearest that Consul has
	case weft.StaticCheck:
		kind, _ := staticDefinition(c)
		return string(kind)
	}
	return string(c.Kind)
}

func weightsOf(in *weft.Instance) weightsRecord {
	return weightsRecord{Passing: max(in.Weights.Passing, 1), Warning: max(in.Weights.Warning, 1)}
}

// namespaceOf is empty for the default namespace: Consul without namespaces does
// not send the key.
func namespaceOf(in *weft.Instance) string {
	if in.Service.Namespace == weft.DefaultNamespace {
		return ""
	}
	return in.Service.Namespace
}

func locality(region, zone string) *localityRecord {
	if region == "" && zone == "" {
		return nil
	}
	return &localityRecord{Region: region, Zone: zone}
}

func addressRecords(tagged map[string]string) map[string]addressRecord {
	out := make(map[string]addressRecord, len(tagged))
	for name, hostport := range tagged {
		r := addressRecord{Address: hostport}
		if host, port, err := net.SplitHostPort(hostport); err == nil {
			n, _ := strconv.Atoi(port) // 0 when it is a name
			r = addressRecord{Address: host, Port: n}
		}
		out[name] = r
	}
	return out
}

func durationText(d weft.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}

func orAbsent(d weft.Duration) *weft.Duration {
	if d == 0 {
		return nil
	}
	return &d
}

// orEmpty and orNone: clients iterate over what they get, so it is never null.
func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func orNone(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
