package weftpb

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weftmesh/weft"
)

// Type URLs of the resources that travel over delta ADS.
const (
	RouteTableType    = "type.googleapis.com/weft.control.v1.RouteTable"
	ServiceType       = "type.googleapis.com/weft.control.v1.Service"
	EndpointsType     = "type.googleapis.com/weft.control.v1.Endpoints"
	GatewayType       = "type.googleapis.com/weft.control.v1.Gateway"
	GatewayTableType  = "type.googleapis.com/weft.control.v1.GatewayTable"
	AuthorizationType = "type.googleapis.com/weft.control.v1.Authorization"
	TrustType         = "type.googleapis.com/weft.control.v1.Trust"
)

// MaxBreakers is of how many circuits a proxy tells, at most.
const MaxBreakers = 10_000

// Self names the resources of which a proxy has one: Authorization and Trust.
const Self = "self"

// RouteTableName names the rules of a host for clients in a namespace.
func RouteTableName(namespace, host string) string { return namespace + "/" + host }

// ParseRouteTableName reads what RouteTableName writes.
func ParseRouteTableName(name string) (namespace, host string, ok bool) {
	namespace, host, ok = strings.Cut(name, "/")
	return namespace, host, ok && namespace != "" && host != ""
}

// GatewayTableName names the rules of a host of a gateway. With an empty host it
// stands for those of all hosts.
func GatewayTableName(gateway, host string) string { return gateway + "/" + host }

// ParseGatewayTableName reads what GatewayTableName writes. A gateway's name may
// have a "/" itself.
func ParseGatewayTableName(name string) (gateway, host string, ok bool) {
	i := strings.LastIndexByte(name, '/')
	if i <= 0 {
		return "", "", false
	}
	return name[:i], name[i+1:], true
}

// ServiceResource names a service's Service and Endpoints.
func ServiceResource(n weft.ServiceName) string { return n.Namespace + "/" + n.Name }

// ParseServiceResource reads what ServiceResource writes.
func ParseServiceResource(name string) (n weft.ServiceName, ok bool) {
	n.Namespace, n.Name, ok = strings.Cut(name, "/")
	return n, ok && n.Namespace != "" && n.Name != "" && !strings.Contains(n.Name, "/")
}

// Pack encodes a resource so that equal messages give equal bytes.
func Pack(m proto.Message) (*anypb.Any, error) {
	out := new(anypb.Any)
	err := anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true})
	return out, err
}
