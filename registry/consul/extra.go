package consul

import (
	"encoding/json"

	"github.com/weftmesh/weft"
)

// dialect is the name under which instances and nodes carry what only Consul has a
// word for.
const dialect = "consul"

// serviceExtra is the part of a registration that weft has no word for. It is
// given back as it came.
type serviceExtra struct {
	Kind       string         `json:",omitempty"`
	SocketPath string         `json:",omitempty"`
	Region     string         `json:",omitempty"`
	Ports      []portRecord   `json:",omitempty"`
	Proxy      *proxyRecord   `json:",omitempty"`
	Connect    *connectRecord `json:",omitempty"`
	// SidecarOf is the ID of the service whose registration asked for this one: it
	// goes with that one.
	SidecarOf string `json:",omitempty"`
}

type portRecord struct {
	Name    string
	Port    int
	Default bool
}

type connectRecord struct {
	Native bool `json:",omitempty"`
}

// proxyRecord says what a proxy stands before, and how.
type proxyRecord struct {
	DestinationServiceName string                  `json:",omitempty"`
	DestinationServiceID   string                  `json:",omitempty"`
	LocalServiceAddress    string                  `json:",omitempty"`
	LocalServicePort       int                     `json:",omitempty"`
	LocalServicePorts      []portRecord            `json:",omitempty"`
	LocalServiceSocketPath string                  `json:",omitempty"`
	Mode                   string                  `json:",omitempty"`
	TransparentProxy       *transparentProxyRecord `json:",omitempty"`
	Config                 map[string]any          `json:",omitempty"`
	Upstreams              []upstreamRecord        `json:",omitempty"`
	MeshGateway            meshGatewayRecord
	Expose                 exposeRecord
	EnvoyExtensions        json.RawMessage `json:",omitempty"`
	AccessLogs             json.RawMessage `json:",omitempty"`
}

type transparentProxyRecord struct {
	OutboundListenerPort int  `json:",omitempty"`
	DialedDirectly       bool `json:",omitempty"`
}

type upstreamRecord struct {
	DestinationType      string `json:",omitempty"`
	DestinationNamespace string `json:",omitempty"`
	DestinationPartition string `json:",omitempty"`
	DestinationPeer      string `json:",omitempty"`
	DestinationName      string
	DestinationPort      string         `json:",omitempty"`
	Datacenter           string         `json:",omitempty"`
	LocalBindAddress     string         `json:",omitempty"`
	LocalBindPort        int            `json:",omitempty"`
	LocalBindSocketPath  string         `json:",omitempty"`
	LocalBindSocketMode  string         `json:",omitempty"`
	Config               map[string]any `json:",omitempty"`
	MeshGateway          meshGatewayRecord
	CentrallyConfigured  bool `json:",omitempty"`
}

type meshGatewayRecord struct {
	Mode string `json:",omitempty"`
}

type exposeRecord struct {
	Checks bool               `json:",omitempty"`
	Paths  []exposePathRecord `json:",omitempty"`
}

type exposePathRecord struct {
	ListenerPort    int    `json:",omitempty"`
	Path            string `json:",omitempty"`
	LocalPathPort   int    `json:",omitempty"`
	Protocol        string `json:",omitempty"`
	ParsedFromCheck bool
}

// kinds of services besides the typical one, which is "".
const (
	connectProxy       = "connect-proxy"
	meshGateway        = "mesh-gateway"
	terminatingGateway = "terminating-gateway"
	ingressGateway     = "ingress-gateway"
	apiGateway         = "api-gateway"
)

func knownKind(kind string) bool {
	switch kind {
	case "", connectProxy, meshGateway, terminatingGateway, ingressGateway, apiGateway:
		return true
	}
	return false
}

// extraOf returns what an instance carries for this dialect. What cannot be read,
// somebody else's document, counts as nothing.
func extraOf(in *weft.Instance) serviceExtra {
	var x serviceExtra
	if raw := in.Extra[dialect]; raw != nil {
		if json.Unmarshal(raw, &x) != nil {
			return serviceExtra{}
		}
	}
	return x
}

// carry puts x on an instance.
func (x *serviceExtra) carry(in *weft.Instance) error {
	b, err := json.Marshal(x)
	switch {
	case err != nil:
		return weft.Errorf(weft.Invalid, "register service", in.Service.Name, "%w", err)
	case string(b) != "{}":
		in.Extra = map[string]json.RawMessage{dialect: b}
	}
	return nil
}

// nodeExtra is what a node carries for this dialect.
type nodeExtra struct {
	Version string `json:",omitempty"` // of the server that runs on it
	Region  string `json:",omitempty"`
}

func nodeExtraOf(n *weft.Node) nodeExtra {
	var x nodeExtra
	if raw := n.Extra[dialect]; raw != nil {
		if json.Unmarshal(raw, &x) != nil {
			return nodeExtra{}
		}
	}
	return x
}

func (x nodeExtra) carry(n *weft.Node) {
	if x == (nodeExtra{}) {
		return
	}
	b, err := json.Marshal(x)
	if err != nil {
		panic("consul: two texts have no JSON: " + err.Error())
	}
	n.Extra = map[string]json.RawMessage{dialect: b}
}
