package resource

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftmesh/weft"
)

const (
	headlessIP   = "None"
	clusterIP    = "ClusterIP"
	externalName = "ExternalName"
)

func checkService(r *report, res *Resource) {
	s := res.Spec.(*Service)
	if !label.MatchString(res.Name) {
		r.errorf("metadata.name", "write small letters, digits and \"-\", at most 63", "%q is no name of a service", res.Name)
	}
	switch s.Type {
	case "", clusterIP, externalName:
	case "NodePort", "LoadBalancer":
		r.warnf("spec.type", "", "weft opens no ports for a service of type %s: it is found as one of type ClusterIP", s.Type)
	default:
		r.errorf("spec.type", "write "+anyOf([]string{clusterIP, externalName, "NodePort", "LoadBalancer"}), "unknown value %q", s.Type)
	}
	r.clusterIPs(s)
	r.externalName(s)
	if s.SessionAffinity != "" && s.SessionAffinity != "None" {
		r.unsupported("spec.sessionAffinity", "write None; a DestinationRule has consistentHash", "sessionAffinity %s", s.SessionAffinity)
	}
	if len(s.Selector) > 0 {
		r.warnf("spec.selector", "", "labels select nobody: the endpoints are the instances that are registered as %s/%s", res.Namespace, res.Name)
	}
	for i, p := range s.Ports {
		r.servicePort(fmt.Sprintf("spec.ports[%d]", i), p, s.Ports[:i], len(s.Ports) > 1)
	}
}

func (r *report) clusterIPs(s *Service) {
	isAddress := func(path, text string) {
		if addr, err := netip.ParseAddr(text); text != headlessIP && (err != nil || addr.Zone() != "") {
			r.errorf(path, "write an IP address, or None", "%q is no address", text)
		}
	}
	if s.ClusterIP != "" {
		isAddress("spec.clusterIP", s.ClusterIP)
	}
	for i, text := range s.ClusterIPs {
		at := fmt.Sprintf("spec.clusterIPs[%d]", i)
		isAddress(at, text)
		if i == 0 && s.ClusterIP != "" && text != s.ClusterIP {
			r.errorf(at, "write the same, or leave one out", "it is not spec.clusterIP, which is %s", s.ClusterIP)
		}
		if text == headlessIP && len(s.ClusterIPs) > 1 {
			r.errorf(at, "", "None cannot stand beside addresses")
		}
	}
}

func (r *report) externalName(s *Service) {
	_, notAddress := netip.ParseAddr(s.ExternalName)
	switch {
	case s.Type != externalName && s.ExternalName != "":
		r.errorf("spec.externalName", "write type: ExternalName, or leave it out", "a service of type %s has none", typeOf(s))
	case s.Type != externalName:
	case s.ExternalName == "":
		r.errorf("spec.externalName", "write the name that is meant", "externalName is missing")
	case notAddress == nil:
		r.errorf("spec.externalName", "write clusterIP for an address", "%q is an address, no name", s.ExternalName)
	case strings.HasPrefix(s.ExternalName, "*"):
		r.errorf("spec.externalName", "", "%q is no host name", s.ExternalName)
	default:
		r.host("spec.externalName", strings.TrimSuffix(s.ExternalName, "."))
	}
	if s.Type == externalName && len(s.Addresses()) > 0 {
		r.errorf("spec.clusterIP", "leave it out", "an ExternalName has no address")
	}
}

func typeOf(s *Service) string {
	if s.Type == "" {
		return clusterIP
	}
	return s.Type
}

func (r *report) servicePort(at string, p ServicePort, before []ServicePort, several bool) {
	r.port(at+".port", fmt.Sprint(p.Port))
	if p.TargetPort.Number != 0 || p.TargetPort.Name == "" && r.lines[at+".targetPort"] > 0 {
		r.port(at+".targetPort", fmt.Sprint(p.TargetPort.Number))
	}
	if p.Name == "" && several {
		r.errorf(at+".name", "", "of several ports each needs a name")
	}
	if p.Name != "" && !label.MatchString(p.Name) {
		r.errorf(at+".name", "write small letters, digits and \"-\"", "%q is no name of a port", p.Name)
	}
	if p.Name != "" && slices.ContainsFunc(before, func(o ServicePort) bool { return o.Name == p.Name }) {
		r.errorf(at+".name", "", "the name %q is written twice", p.Name)
	}
	switch p.Protocol {
	case "", "TCP", "UDP", "SCTP":
	default:
		r.errorf(at+".protocol", "write TCP, UDP or SCTP", "unknown value %q", p.Protocol)
	}
	if _, err := weft.ParseProtocol(p.AppProtocol); err != nil {
		r.warnf(at+".appProtocol", "", "weft does not know %q", p.AppProtocol)
	}
}
