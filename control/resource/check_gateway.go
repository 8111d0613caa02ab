package resource

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
	networking "istio.io/api/networking/v1alpha3"
)

func checkGateway(r *report, res *Resource) {
	spec := res.Spec.(*networking.Gateway)
	if len(spec.Servers) == 0 {
		r.errorf("spec.servers", "write at least one server", "servers is empty")
	}
	for i, s := range spec.Servers {
		path := fmt.Sprintf("spec.servers[%d]", i)
		r.serverPort(path+".port", s.Port)
		r.serverTLS(path+".tls", s)
		r.otherServers(path+".port", s, spec.Servers[:i])
		if len(s.Hosts) == 0 {
			r.errorf(path+".hosts", "write \"*\" for all", "hosts is empty")
		}
		for k, h := range s.Hosts {
			at := fmt.Sprintf("%s.hosts[%d]", path, k)
			ns, host, qualified := strings.Cut(h, "/")
			if !qualified {
				host = h
			} else if ns != "*" && ns != "." && !label.MatchString(ns) {
				r.errorf(at, "write *, . or a namespace before the \"/\"", "%q is no namespace", ns)
			}
			r.host(at, host)
		}
	}
}

func (r *report) serverPort(path string, p *networking.Port) {
	if p == nil {
		r.errorf(path, "write number and protocol", "port is missing")
		return
	}
	r.port(path+".number", fmt.Sprint(p.Number))
	if _, known := serverProtocols[strings.ToUpper(p.Protocol)]; !known {
		r.errorf(path+".protocol", "write "+anyOf(slices.Sorted(maps.Keys(serverProtocols))), "unknown protocol %q", p.Protocol)
	}
}

// serverTLS checks who ends TLS. A certificate is nothing that a Gateway can give:
// it would be a path on whatever machine the gateway runs, or a Kubernetes secret.
func (r *report) serverTLS(path string, s *networking.Server) {
	protocol := strings.ToUpper(s.GetPort().GetProtocol())
	switch {
	case serverProtocol(s) != weft.TLS:
		if s.Tls != nil && protocol != "" {
			r.errorf(path, "write protocol HTTPS, or TLS with mode PASSTHROUGH, or leave tls out", "a server of protocol %s has no TLS", s.Port.Protocol)
		}
	case s.Tls == nil:
		r.errorf(path, "write mode: SIMPLE where the gateway ends TLS, or mode: PASSTHROUGH", "a server of protocol %s needs tls", s.Port.Protocol)
	case protocol == "TLS" && !passesOn(s):
		r.unsupported(path+".mode", "write protocol HTTPS to end TLS here, or mode: PASSTHROUGH", "protocol TLS with mode %s", s.Tls.Mode)
	}
}

// otherServers compares a server with those before it. A gateway's addresses are
// given when it is started: requests come to any of them.
func (r *report) otherServers(path string, s *networking.Server, before []*networking.Server) {
	protocol := serverProtocol(s)
	if protocol == "" || portNumber(s) == 0 {
		return // something was said of that
	}
	for _, other := range before {
		same := portNumber(other) == portNumber(s)
		switch {
		case same && serverProtocol(other) != protocol:
			r.errorf(path, "give one of them another port", "port %d speaks %s already", portNumber(s), other.Port.GetProtocol())
			return
		case !same && serverProtocol(other) == protocol && protocol != weft.TCP:
			r.warnf(path, "", "the gateway serves all hosts on every address that it is started with: port %d is not told from port %d", portNumber(s), portNumber(other))
			return
		}
	}
}
