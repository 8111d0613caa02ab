package subscribe

import (
	"crypto/x509"
	"fmt"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/control/weftpb"
)

// refusals are the resources of a response that could not be used.
type refusals []string

func (r *refusals) add(name string, err error) { *r = append(*r, name+": "+err.Error()) }

// take applies a response. Roots of trust go to setRoots. What is refused keeps
// its last good form, and its old version, so that it is sent again after the next
// change or connection.
func (s *state) take(r *discovery.DeltaDiscoveryResponse, setRoots func(trustDomain string, roots []*x509.Certificate) error) refusals {
	var bad refusals
	for _, resource := range r.GetResources() {
		if !s.wants(r.GetTypeUrl(), resource.GetName()) {
			continue // given up meanwhile
		}
		if err := s.set(r.GetTypeUrl(), resource, setRoots); err != nil {
			bad.add(resource.GetName(), err)
			s.setBroken(r.GetTypeUrl(), resource.GetName())
		}
	}
	for _, name := range r.GetRemovedResources() {
		s.unset(r.GetTypeUrl(), name)
	}
	s.settle()
	return bad
}

// wants reports whether a resource is one that was asked for.
func (s *state) wants(typeURL, name string) bool {
	if typeURL == weftpb.GatewayTableType {
		_, ok := s.tableOf(name)
		return ok
	}
	_, ok := s.namesOf(typeURL).all[name]
	return ok
}

// tableOf is the host of a GatewayTable's name, if it is one of this gateway's.
func (s *state) tableOf(name string) (host string, ok bool) {
	gateway, host, ok := weftpb.ParseGatewayTableName(name)
	return host, ok && host != "" && s.role == Gateway && gateway == s.gateway.name
}

func decode[M proto.Message](resource *discovery.Resource, m M) (M, error) {
	err := resource.GetResource().UnmarshalTo(m)
	return m, err
}

// set takes one resource.
func (s *state) set(typeURL string, resource *discovery.Resource, setRoots func(string, []*x509.Certificate) error) error {
	switch typeURL {
	case weftpb.RouteTableType:
		return s.setRouteTable(resource)
	case weftpb.ServiceType:
		return s.setService(resource)
	case weftpb.EndpointsType:
		return s.setEndpoints(resource)
	case weftpb.GatewayType:
		if _, err := decode(resource, &weftpb.Gateway{}); err != nil {
			return err
		}
		s.gateway.version, s.gateway.told = resource.GetVersion(), true
		s.gatewayChanged = true
	case weftpb.GatewayTableType:
		return s.setGatewayTable(resource)
	case weftpb.AuthorizationType:
		m, err := decode(resource, &weftpb.Authorization{})
		if err != nil {
			return err
		}
		a, paths, err := weftpb.DecodeAuthorization(m)
		if err != nil {
			return err
		}
		s.authorization, s.paths = versioned[*weft.Authorization]{a, resource.GetVersion()}, paths
		s.otherChanged = true
	case weftpb.TrustType:
		m, err := decode(resource, &weftpb.Trust{})
		if err != nil {
			return err
		}
		trustDomain, roots, err := weftpb.DecodeTrust(m)
		if err == nil {
			err = setRoots(trustDomain, roots)
		}
		if err != nil {
			return err
		}
		s.trust = resource.GetVersion()
	default:
		return fmt.Errorf("this weft does not know the type %s", typeURL)
	}
	return nil
}

func (s *state) setRouteTable(resource *discovery.Resource) error {
	h := s.hostOf(resource.GetName())
	if h == nil {
		return nil
	}
	t, err := h.decoder.Decode(resource.GetResource())
	if err != nil {
		return err
	}
	s.await(&h.routed, t)
	h.broken, h.version = false, resource.GetVersion()
	s.waiting[h] = struct{}{}
	delete(s.unknown, h.name)
	return nil
}

func (s *state) setGatewayTable(resource *discovery.Resource) error {
	host, _ := s.tableOf(resource.GetName())
	r := s.gateway.tables[host]
	if r == nil {
		r = &routed{}
	}
	t, err := r.decoder.Decode(resource.GetResource())
	if err != nil {
		return err
	}
	if t.Host != host {
		return fmt.Errorf("it holds the table of %s", t.Host)
	}
	s.gateway.tables[host] = r
	s.pin(t)
	s.unpin(r.next)
	s.await(r, t)
	r.version = resource.GetVersion()
	s.gateway.waiting[r] = struct{}{}
	return nil
}

func (s *state) setService(resource *discovery.Resource) error {
	m, err := decode(resource, &weftpb.Service{})
	if err != nil {
		return err
	}
	v, err := weftpb.DecodeService(m)
	if err != nil {
		return err
	}
	svc := s.services[v.Name]
	if svc == nil || weftpb.ServiceResource(v.Name) != resource.GetName() {
		return fmt.Errorf("it holds the service %s", v.Name)
	}
	svc.service = versioned[*weft.Service]{v, resource.GetVersion()}
	svc.serviceAnswered, svc.merged = true, nil
	s.servicesChanged = true
	s.rely(svc)
	return nil
}

func (s *state) setEndpoints(resource *discovery.Resource) error {
	m, err := decode(resource, &weftpb.Endpoints{})
	if err != nil {
		return err
	}
	n, endpoints, index, err := weftpb.DecodeEndpoints(m)
	if err != nil {
		return err
	}
	svc := s.services[n]
	if svc == nil || weftpb.ServiceResource(n) != resource.GetName() {
		return fmt.Errorf("it holds the endpoints of %s", n)
	}
	svc.endpoints, svc.index, svc.endpointsVersion = endpoints, index, resource.GetVersion()
	svc.endpointsAnswered, svc.merged = true, nil
	s.servicesChanged = true
	return nil
}

// setBroken notes that an answer was unreadable. Whoever waits for it must not
// wait on; what was there before stays.
func (s *state) setBroken(typeURL, name string) {
	switch typeURL {
	case weftpb.RouteTableType:
		if h := s.hostOf(name); h != nil {
			h.broken = !h.ready && h.next == nil
		}
	case weftpb.ServiceType, weftpb.EndpointsType:
		n, ok := weftpb.ParseServiceResource(name)
		if svc := s.services[n]; ok && svc != nil {
			svc.serviceAnswered = svc.serviceAnswered || typeURL == weftpb.ServiceType
			svc.endpointsAnswered = svc.endpointsAnswered || typeURL == weftpb.EndpointsType
			svc.merged = nil
			s.servicesChanged = true
		}
	}
}

// unset takes the word that a resource does not exist. Authorization and Trust
// always do: a server that says otherwise is not believed.
func (s *state) unset(typeURL, name string) {
	switch typeURL {
	case weftpb.RouteTableType:
		if h := s.hostOf(name); h != nil {
			s.hostsChanged = s.hostsChanged || !h.ready || h.current != nil
			s.release(h.current)
			s.release(h.next)
			delete(s.waiting, h)
			h.broken, h.routed = false, routed{ready: true}
			if s.unknown[h.name] == nil && !h.pinned {
				s.makeRoom()
				s.unknown[h.name] = h
			}
		}
	case weftpb.ServiceType, weftpb.EndpointsType:
		n, ok := weftpb.ParseServiceResource(name)
		svc := s.services[n]
		if !ok || svc == nil {
			return
		}
		if typeURL == weftpb.ServiceType {
			svc.service, svc.serviceAnswered = versioned[*weft.Service]{}, true
			s.rely(svc)
		} else {
			svc.endpoints, svc.endpointsVersion, svc.endpointsAnswered = nil, "", true
		}
		svc.merged = nil
		s.servicesChanged = true
	case weftpb.GatewayType:
		// It has no routes then, which is not the same as not to be loaded.
		s.gateway.version, s.gateway.told = "", true
		s.gatewayChanged = true
	case weftpb.GatewayTableType:
		if host, ok := s.tableOf(name); ok {
			s.removeGatewayTable(host)
		}
	}
}

// versionOf is the version of a resource that is held; "" when it is not.
func (s *state) versionOf(typeURL, name string) string {
	switch typeURL {
	case weftpb.RouteTableType:
		if h := s.hostOf(name); h != nil {
			return h.version
		}
	case weftpb.ServiceType, weftpb.EndpointsType:
		n, _ := weftpb.ParseServiceResource(name)
		svc := s.services[n]
		switch {
		case svc == nil:
		case typeURL == weftpb.ServiceType:
			return svc.service.version
		default:
			return svc.endpointsVersion
		}
	case weftpb.GatewayType:
		return s.gateway.version
	case weftpb.GatewayTableType:
		if t := s.gateway.tables[strings.TrimPrefix(name, s.gateway.name+"/")]; t != nil {
			return t.version
		}
	case weftpb.AuthorizationType:
		return s.authorization.version
	case weftpb.TrustType:
		return s.trust
	}
	return ""
}

// held are the names that a subscription to name brought: itself, or those of every
// table of the gateway.
func (s *state) held(typeURL, name string) []string {
	if typeURL != weftpb.GatewayTableType {
		return []string{name}
	}
	out := make([]string, 0, len(s.gateway.tables))
	for host := range s.gateway.tables {
		out = append(out, weftpb.GatewayTableName(s.gateway.name, host))
	}
	return out
}

// reason joins refusals for a NACK.
func (r refusals) reason() string { return strings.Join(r, "; ") }
