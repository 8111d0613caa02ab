package resource

import (
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

func (r *report) tcpRule(path string, t *networking.TCPRoute) {
	for i, m := range t.Match {
		at := fmt.Sprintf("%s.match[%d]", path, i)
		r.rawPort(at+".port", m.Port)
		r.gateways(at+".gateways", m.Gateways)
	}
	r.rawRoute(path+".route", t.Route)
}

// tlsRule checks a rule for the hosts of its VirtualService.
func (r *report) tlsRule(path string, t *networking.TLSRoute, hosts []string) {
	if len(t.Match) == 0 {
		r.errorf(path+".match", "write sniHosts", "a tls rule needs the names that it is for")
	}
	for i, m := range t.Match {
		at := fmt.Sprintf("%s.match[%d]", path, i)
		r.rawPort(at+".port", m.Port)
		r.gateways(at+".gateways", m.Gateways)
		if len(m.SniHosts) == 0 {
			r.errorf(at+".sniHosts", "name the hosts in the client's TLS handshake", "sniHosts is empty")
		}
		for k, name := range m.SniHosts {
			field := fmt.Sprintf("%s.sniHosts[%d]", at, k)
			r.host(field, name)
			if !slices.ContainsFunc(hosts, func(h string) bool {
				return narrower(strings.ToLower(h), strings.ToLower(name)) == strings.ToLower(name)
			}) {
				r.errorf(field, "add it to spec.hosts", "%q is none of the VirtualService's hosts", name)
			}
		}
	}
	r.rawRoute(path+".route", t.Route)
}

// rawPort checks the port of a match block, which may be left out.
func (r *report) rawPort(path string, port uint32) {
	if port > 65535 {
		r.port(path, fmt.Sprint(port))
	}
}

func (r *report) rawRoute(path string, route []*networking.RouteDestination) {
	if len(route) == 0 {
		r.errorf(path, "say where its connections go", "the rule has no route")
	}
	sum := int64(0)
	for i, d := range route {
		sum += int64(d.Weight)
		r.destination(fmt.Sprintf("%s[%d]", path, i), d.Destination, d.Weight)
	}
	r.weights(path, len(route), sum)
}

// destination checks where a rule of any sort sends a share.
func (r *report) destination(at string, d *networking.Destination, weight int32) {
	if weight < 0 {
		r.errorf(at+".weight", "", "%d is negative", weight)
	}
	host := d.GetHost()
	if host == "" {
		r.errorf(at+".destination.host", "", "the destination has no host")
	} else if r.host(at+".destination.host", host); strings.HasPrefix(host, "*") {
		r.errorf(at+".destination.host", "name one service", "a destination cannot have a wildcard")
	}
	if s := d.GetSubset(); s != "" && !label.MatchString(s) {
		r.errorf(at+".destination.subset", "", "%q is no name of a subset", s)
	}
}

func (r *report) weights(path string, destinations int, sum int64) {
	if destinations > 1 && sum == 0 {
		r.errorf(path, "give at least one destination a weight above 0", "the weights of its %d destinations are all zero", destinations)
	}
}
