package dns

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
)

// zone is who a name belongs to.
type zone uint8

const (
	outside zone = iota
	consulZone
	kubeZone
	reverseZone
)

const kubeDomain = weft.ClusterDomain + "."

// nameKind says what a name stands for.
type nameKind uint8

const (
	unknownName nameKind = iota
	apexName             // the zone itself
	innerName            // leads to other names: service.consul
	serverName           // the name server of the zone
	serviceName
	nodeName
	addressName
	kubeNamespace // ns.svc.cluster.local
	kubeService
	kubeProtocol // _tcp.name.ns.svc.cluster.local
	kubePort     // _port._tcp.name.ns.svc.cluster.local
	kubeEndpoint // 10-0-0-1.name.ns.svc.cluster.local
	kubeVersion
	pointer
)

// target is a name that was read.
type target struct {
	zone    zone
	kind    nameKind
	service weft.ServiceName
	tag     string     // "" is any; of kubePort the port
	node    string     // of nodeName
	addr    netip.Addr // of addressName, kubeEndpoint and pointer
}

// parseName reads a name in its presentation form, in any case.
func (s *Server) parseName(name string) target {
	name = strings.ToLower(name)
	if labels, ok := below(name, s.domain); ok {
		t := parseConsul(labels, strings.ToLower(s.registry.Datacenter()))
		t.zone = consulZone
		return t
	}
	if labels, ok := below(name, kubeDomain); ok {
		t := parseKube(labels)
		t.zone = kubeZone
		return t
	}
	if addr, ok := parseReverse(name); ok {
		return target{zone: reverseZone, kind: pointer, addr: addr}
	}
	return target{}
}

// below returns the labels of a name before its zone, both with a final dot.
func below(name, zone string) (labels []string, ok bool) {
	if name == zone {
		return nil, true
	}
	rest, ok := strings.CutSuffix(name, "."+zone)
	if !ok {
		return nil, false
	}
	return strings.Split(rest, "."), true
}

// parseConsul reads the labels before the domain. dc is our datacenter; a name in
// another one is unknown.
func parseConsul(labels []string, dc string) target {
	n := len(labels)
	if n == 0 {
		return target{kind: apexName}
	}
	switch last := labels[n-1]; {
	case n == 1 && last == "ns":
		return target{kind: serverName}
	case n == 1 && last == "dc":
		return target{kind: innerName}
	case last == "dc":
		if labels[n-2] != dc {
			return target{}
		}
		labels = labels[:n-2]
	case last == "service" || last == "node" || last == "addr" || strings.HasPrefix(last, "_"):
	case last != dc:
		return target{}
	default:
		labels = labels[:n-1]
	}
	if len(labels) == 0 {
		return target{kind: innerName}
	}
	rest, kind := labels[:len(labels)-1], labels[len(labels)-1]
	switch {
	case strings.HasPrefix(kind, "_"):
		return parseService(labels, true)
	case kind != "service" && kind != "node" && kind != "addr":
		return target{}
	case len(rest) == 0:
		return target{kind: innerName}
	case kind == "service":
		return parseService(rest, false)
	case kind == "node":
		return target{kind: nodeName, node: strings.Join(rest, ".")}
	}
	return parseAddress(rest)
}

// parseService reads [tag.]name, or _name._tag with "tcp" for any tag. strict
// wants the second form: the word "service" was left out.
func parseService(labels []string, strict bool) target {
	n := len(labels)
	name, tag := labels[n-1], strings.Join(labels[:n-1], ".")
	if strings.HasPrefix(name, "_") {
		switch {
		case n == 1:
			return target{kind: innerName}
		case n > 2 || !strings.HasPrefix(labels[0], "_"):
			return target{}
		}
		name, tag = labels[0][1:], labels[1][1:]
		if tag == "tcp" {
			tag = ""
		}
	} else if strict {
		return target{}
	}
	return target{kind: serviceName, service: weft.NewServiceName("", name), tag: tag}
}

// parseAddress reads 8 or 32 hexadecimal digits.
func parseAddress(labels []string) target {
	b, err := hex.DecodeString(labels[0])
	addr, ok := netip.AddrFromSlice(b)
	if err != nil || !ok || len(labels) != 1 {
		return target{}
	}
	return target{kind: addressName, addr: addr}
}

// parseKube reads the labels before cluster.local.
func parseKube(labels []string) target {
	n := len(labels)
	switch {
	case n == 0:
		return target{kind: apexName}
	case slices.Equal(labels, []string{"dns-version"}):
		return target{kind: kubeVersion}
	case slices.Equal(labels, []string{"ns", "dns"}):
		return target{kind: serverName}
	case slices.Equal(labels, []string{"dns"}), slices.Equal(labels, []string{"svc"}):
		return target{kind: innerName}
	case labels[n-1] != "svc":
		return target{}
	}
	labels = labels[:n-1]
	t := target{kind: kubeNamespace, service: weft.ServiceName{Namespace: labels[len(labels)-1]}}
	if len(labels) == 1 {
		return t
	}
	t.service.Name = labels[len(labels)-2]
	switch before := labels[:len(labels)-2]; {
	case len(before) == 0:
		t.kind = kubeService
	case len(before) == 1 && (before[0] == "_tcp" || before[0] == "_udp"):
		t.kind = kubeProtocol
	case len(before) == 1:
		addr, ok := parseDashed(before[0])
		if !ok {
			return target{}
		}
		t.kind, t.addr = kubeEndpoint, addr
	case len(before) == 2 && before[1] == "_tcp" && len(before[0]) > 1 && before[0][0] == '_':
		t.kind, t.tag = kubePort, before[0][1:]
	default:
		return target{}
	}
	return t
}

// dashed writes an address as a label: 10-0-0-1, 2001-db8--1.
func dashed(addr netip.Addr) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(addr.String())
}

func parseDashed(label string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.ReplaceAll(label, "-", "."))
	if err != nil {
		addr, err = netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	}
	return addr, err == nil && dashed(addr) == label
}

// parseReverse reads the name that stands for an address backwards (RFC 1035
// section 3.5, RFC 3596 section 2.5).
func parseReverse(name string) (netip.Addr, bool) {
	if labels, ok := below(name, "in-addr.arpa."); ok && len(labels) == 4 {
		slices.Reverse(labels)
		addr, err := netip.ParseAddr(strings.Join(labels, "."))
		return addr, err == nil && addr.Is4()
	}
	labels, ok := below(name, "ip6.arpa.")
	if !ok || len(labels) != 32 {
		return netip.Addr{}, false
	}
	var bytes [16]byte
	for i, label := range labels {
		digit, err := strconv.ParseUint(label, 16, 4)
		if err != nil || len(label) != 1 {
			return netip.Addr{}, false
		}
		bytes[15-i/2] |= byte(digit) << (4 * (i % 2))
	}
	return netip.AddrFrom16(bytes), true
}
