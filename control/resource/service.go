package resource

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftmesh/weft/resilience"
)

// Service is the spec of Kubernetes' kind of that name (v1): under which names and
// addresses a service is found. Its endpoints are the instances that are registered
// under its name and namespace.
type Service struct {
	Type                     string            `json:"type,omitempty"` // "" is ClusterIP
	ClusterIP                string            `json:"clusterIP,omitempty"`
	ClusterIPs               []string          `json:"clusterIPs,omitempty"`
	ExternalName             string            `json:"externalName,omitempty"`
	Ports                    []ServicePort     `json:"ports,omitempty"`
	PublishNotReadyAddresses bool              `json:"publishNotReadyAddresses,omitempty"`
	Selector                 map[string]string `json:"selector,omitempty"` // says nothing here
	SessionAffinity          string            `json:"sessionAffinity,omitempty"`

	// What the server of Kubernetes adds, and means nothing here.
	IPFamilies            []string `json:"ipFamilies,omitempty"`
	IPFamilyPolicy        string   `json:"ipFamilyPolicy,omitempty"`
	InternalTrafficPolicy string   `json:"internalTrafficPolicy,omitempty"`
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Name        string     `json:"name,omitempty"`
	Protocol    string     `json:"protocol,omitempty"` // "" is TCP
	AppProtocol string     `json:"appProtocol,omitempty"`
	Port        int        `json:"port"`
	TargetPort  TargetPort `json:"targetPort,omitzero"`
	NodePort    int        `json:"nodePort,omitempty"` // nobody listens there
}

// TargetPort is the number of a port, or its name at the endpoint, or neither.
type TargetPort struct {
	Number int
	Name   string
}

// MarshalJSON writes a number or a text.
func (p TargetPort) MarshalJSON() ([]byte, error) {
	if p.Name != "" {
		return json.Marshal(p.Name)
	}
	return json.Marshal(p.Number)
}

// UnmarshalJSON reads a number or a text.
func (p *TargetPort) UnmarshalJSON(b []byte) error {
	*p = TargetPort{}
	if json.Unmarshal(b, &p.Number) == nil {
		return nil
	}
	return json.Unmarshal(b, &p.Name)
}

// UnmarshalJSON reads a spec. After an error s has what could be read.
func (s *Service) UnmarshalJSON(data []byte) error {
	*s = Service{}
	var ports []json.RawMessage
	problems := readFields("", data, map[string]reading{
		"type": {"text", &s.Type}, "clusterIP": {"text", &s.ClusterIP}, "clusterIPs": {"a list of texts", &s.ClusterIPs},
		"externalName": {"text", &s.ExternalName}, "ports": {"a list", &ports},
		"publishNotReadyAddresses": {"true or false", &s.PublishNotReadyAddresses},
		"selector":                 {"an object of texts", &s.Selector}, "sessionAffinity": {"text", &s.SessionAffinity},
		"ipFamilies": {"a list of texts", &s.IPFamilies}, "ipFamilyPolicy": {"text", &s.IPFamilyPolicy},
		"internalTrafficPolicy": {"text", &s.InternalTrafficPolicy},
	})
	for i, raw := range ports {
		var p ServicePort
		problems = append(problems, readFields(fmt.Sprintf("ports[%d]", i), raw, map[string]reading{
			"name": {"text", &p.Name}, "protocol": {"text", &p.Protocol}, "appProtocol": {"text", &p.AppProtocol},
			"port": {"a whole number", &p.Port}, "targetPort": {"a whole number, or text", &p.TargetPort},
			"nodePort": {"a whole number", &p.NodePort},
		})...)
		s.Ports = append(s.Ports, p)
	}
	return errors.Join(problems...)
}

// reading is a field that may be written: what it wants, and where that goes.
type reading struct {
	want string
	into any
}

// readFields reads an object of which all fields are known.
func readFields(at string, data json.RawMessage, fields map[string]reading) []error {
	var written map[string]json.RawMessage
	if json.Unmarshal(data, &written) != nil {
		return []error{&resilience.FieldError{Field: at, Problem: "want an object"}}
	}
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(written)) {
		field := strings.TrimPrefix(at+"."+name, ".")
		into, known := fields[name]
		switch {
		case !known:
			problems = append(problems, unknownNamed(field, name, slices.Sorted(maps.Keys(fields))))
		case json.Unmarshal(written[name], into.into) != nil:
			problems = append(problems, &resilience.FieldError{Field: field, Problem: fmt.Sprintf("want %s, got %s", into.want, written[name])})
		}
	}
	return problems
}

// Addresses are the cluster's addresses of a Service; none when it is headless, or
// leaves them to be chosen, which nobody does here.
func (s *Service) Addresses() []netip.Addr {
	var out []netip.Addr
	for _, text := range append([]string{s.ClusterIP}, s.ClusterIPs...) {
		if addr, err := netip.ParseAddr(text); err == nil && !slices.Contains(out, addr.Unmap()) {
			out = append(out, addr.Unmap())
		}
	}
	return out
}
