package resource

import (
	"fmt"
	"slices"
	"strings"

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
		if first := spec.Servers[0].Port.GetNumber(); s.Port.GetNumber() != first {
			r.warnf(path+".port", "", "the gateway serves all hosts on every address that it is started with: port %d is not told from port %d", s.Port.GetNumber(), first)
		}
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
	switch protocol := strings.ToUpper(p.Protocol); {
	case protocol == "HTTP":
	case slices.Contains([]string{"HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "TCP", "TLS", "MYSQL", "REDIS"}, protocol):
		r.unsupported(path+".protocol", "write HTTP", "the protocol %s", p.Protocol)
	default:
		r.errorf(path+".protocol", "write HTTP", "unknown protocol %q", p.Protocol)
	}
}
