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
	queryName   // a prepared query
	connectName // the mesh's side of a service
	ingressName
	virtualName
	kubeNamespace // ns.svc.cluster.local
	kubeService
	kubeProtocol // _tcp.name.ns.svc.cluster.local
	kubePort     // _port._tcp.name.ns.svc.cluster.local
	kubeEndpoint // 10-0-0-1.name.ns.svc.cluster.local
	kubePods     // ns.pod.cluster.local
	kubePod      // 10-0-0-1.ns.pod.cluster.local
	kubeVersion
	pointer
)

// target is a name that was read.
type target struct {
	zone    zone
	domain  string // of the zone, as it was asked for
	kind    nameKind
	service weft.ServiceName
	tag     string     // "" is any; of kubePort the port, of kubeEndpoint the first label
	proto   string     // of kubePort: "tcp"
	node    string     // of nodeName; of queryName the query
	addr    netip.Addr // of addressName, kubePod and pointer

	// searched is what stands before the namespace in a name below svc.cluster.local,
	// when it may be a name that a resolver looks for in its search path.
	searched string
}

// parseName reads the labels of a name in lower case.
func (s *Server) parseName(labels []string) target {
	for _, domain := range s.domains {
		if rest, ok := below(labels, domain.labels); ok {
			t := parseConsul(rest, s.datacenter)
			t.zone, t.domain = consulZone, domain.name
			return t
		}
	}
	if rest, ok := below(labels, kubeLabels); ok {
		t := parseKube(rest)
		t.zone, t.domain = kubeZone, kubeDomain
		return t
	}
	if addr, ok := parseReverse(labels); ok {
		return target{zone: reverseZone, kind: pointer, addr: addr}
	}
	return target{}
}

var (
	kubeLabels = strings.Split(weft.ClusterDomain, ".")
	inAddrArpa = []string{"in-addr", "arpa"}
	ip6Arpa    = []string{"ip6", "arpa"}
)

// below returns the labels of a name before its zone.
func below(labels, zone []string) (rest []string, ok bool) {
	n := len(labels) - len(zone)
	if n < 0 || !slices.Equal(labels[n:], zone) {
		return nil, false
	}
	return labels[:n:n], true
}

// consulKinds are the labels that say what stands before them.
var consulKinds = map[string]nameKind{
	"service": serviceName, "node": nodeName, "addr": addressName, "query": queryName,
	"connect": connectName, "ingress": ingressName, "virtual": virtualName,
}

// parseConsul reads the labels before the domain. dc is our datacenter; a name in
// another one is unknown.
func parseConsul(labels []string, dc string) target {
	n := len(labels)
	if n == 0 {
		return target{kind: apexName}
	}
	last := labels[n-1]
	_, isKind := consulKinds[last]
	switch {
	case n == 1 && last == "ns":
		return target{kind: serverName}
	case n == 1 && last == "dc":
		return target{kind: innerName}
	case last == "dc":
		if labels[n-2] != dc {
			return target{}
		}
		labels = labels[:n-2]
	case isKind || strings.HasPrefix(last, "_"):
	case last != dc:
		return target{}
	default:
		labels = labels[:n-1]
	}
	if len(labels) == 0 {
		return target{kind: innerName}
	}
	return parseConsulKind(labels)
}

// parseConsulKind reads the labels before the datacenter.
func parseConsulKind(labels []string) target {
	rest, word := labels[:len(labels)-1], labels[len(labels)-1]
	kind := consulKinds[word]
	switch {
	case strings.HasPrefix(word, "_"):
		return parseService(labels, true)
	case kind == unknownName:
		return target{}
	case len(rest) == 0:
		return target{kind: innerName}
	}
	switch kind {
	case serviceName:
		return parseService(rest, false)
	case nodeName:
		return target{kind: nodeName, node: strings.Join(rest, ".")}
	case addressName:
		return parseAddress(rest)
	case queryName:
		return parseQuery(rest)
	}
	if len(rest) != 1 {
		return target{}
	}
	return target{kind: kind, service: weft.NewServiceName("", rest[0])}
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

// parseQuery reads the name of a prepared query, which may have dots, or _name._tcp.
func parseQuery(labels []string) target {
	if len(labels) == 2 && labels[1] == "_tcp" && len(labels[0]) > 1 && labels[0][0] == '_' {
		return target{kind: queryName, node: labels[0][1:]}
	}
	return target{kind: queryName, node: strings.Join(labels, ".")}
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
	case n == 1 && (labels[0] == "dns" || labels[0] == "svc" || labels[0] == "pod"):
		return target{kind: innerName}
	case labels[n-1] == "pod":
		return parsePod(labels[:n-1])
	case labels[n-1] != "svc":
		return target{}
	}
	labels = labels[:n-1]
	t := target{kind: kubeNamespace, service: weft.ServiceName{Namespace: labels[len(labels)-1]}}
	if len(labels) == 1 {
		return t
	}
	labels = labels[:len(labels)-1]
	t.service.Name = labels[len(labels)-1]
	switch before := labels[:len(labels)-1]; {
	case len(before) == 0:
		t.kind = kubeService
	case len(before) == 1 && isProtocol(before[0]):
		t.kind = kubeProtocol
	case len(before) == 1:
		t.kind, t.tag = kubeEndpoint, before[0]
	case len(before) == 2 && isProtocol(before[1]) && len(before[0]) > 1 && before[0][0] == '_':
		t.kind, t.tag, t.proto = kubePort, before[0][1:], before[1][1:]
	default:
		t.kind = unknownName
	}
	if len(labels) > 1 {
		t.searched = searchedName(labels)
	}
	return t
}

func isProtocol(label string) bool { return label == "_tcp" || label == "_udp" || label == "_sctp" }

// searchedName joins labels that may be a host name; of others it returns "".
// Names with underscores are not looked for in search paths.
func searchedName(labels []string) string {
	for _, l := range labels {
		if strings.ContainsFunc(l, func(c rune) bool {
			return c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z')
		}) {
			return ""
		}
	}
	return strings.Join(labels, ".")
}

// parsePod reads [10-0-0-1.]ns.
func parsePod(labels []string) target {
	t := target{kind: kubePods, service: weft.ServiceName{Namespace: labels[len(labels)-1]}}
	if len(labels) == 1 {
		return t
	}
	addr, ok := parseDashed(labels[0])
	if !ok || len(labels) != 2 {
		return target{}
	}
	t.kind, t.addr = kubePod, addr
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
func parseReverse(name []string) (netip.Addr, bool) {
	if labels, ok := below(name, inAddrArpa); ok && len(labels) == 4 {
		addr, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
		return addr, err == nil && addr.Is4()
	}
	labels, ok := below(name, ip6Arpa)
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
