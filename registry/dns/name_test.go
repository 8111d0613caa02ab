package dns

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weftmesh/weft"
)

func web(tag string) target {
	return target{kind: serviceName, service: weft.NewServiceName("", "web"), tag: tag}
}

func TestConsulNames(t *testing.T) {
	nothing, inner := target{}, target{kind: innerName}
	for _, c := range []struct {
		name string
		want target
	}{
		{"web.service", web("")},
		{"web.service.dc1", web("")},
		{"web.service.dc1.dc", web("")},
		{"web.service.dc2", nothing},
		{"web.service.dc2.dc", nothing},
		{"v2.web.service", web("v2")},
		{"v1.2.web.service.dc1", web("v1.2")},
		{"_web._tcp.service", web("")},
		{"_web._tcp.service.dc1", web("")},
		{"_web._tcp", web("")},
		{"_web._v2.service", web("v2")},
		{"_web._v2", web("v2")},
		{"x._web._tcp.service", nothing},
		{"web._tcp", nothing},
		{"host-1.node", target{kind: nodeName, node: "host-1"}},
		{"a.b.node.dc1", target{kind: nodeName, node: "a.b"}},
		{"c0a80101.addr", target{kind: addressName, addr: netip.MustParseAddr("192.168.1.1")}},
		{"20010db8000000000000000000000001.addr.dc1", target{kind: addressName, addr: netip.MustParseAddr("2001:db8::1")}},
		{"c0a801.addr", nothing},
		{"c0a8010g.addr", nothing},
		{"x.c0a80101.addr", nothing},
		{"ns", target{kind: serverName}},
		{"", target{kind: apexName}},
		// what only leads to names exists, for resolvers that ask label by label (RFC 9156)
		{"service", inner}, {"node", inner}, {"addr", inner}, {"dc1", inner}, {"dc", inner}, {"dc1.dc", inner},
		{"service.dc1", inner}, {"_tcp", inner}, {"_tcp.service", inner},
		{"query", inner}, {"virtual.dc1", inner},
		{"web.query", target{kind: queryName, node: "web"}},
		{"a.b.query.dc1", target{kind: queryName, node: "a.b"}},
		{"_web._tcp.query", target{kind: queryName, node: "web"}},
		{"web.connect", target{kind: connectName, service: web("").service}},
		{"web.ingress.dc1", target{kind: ingressName, service: web("").service}},
		{"web.virtual", target{kind: virtualName, service: web("").service}},
		{"x.web.virtual", nothing}, {"web", nothing}, {"web.service.dc1.x", nothing},
	} {
		var labels []string
		if c.name != "" {
			labels = strings.Split(c.name, ".")
		}
		if got := parseConsul(labels, "dc1"); got != c.want {
			t.Errorf("%s.consul: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestKubernetesNames(t *testing.T) {
	n := weft.ServiceName{Namespace: "shop", Name: "web"}
	for _, c := range []struct {
		name string
		want target
	}{
		{"web.shop.svc", target{kind: kubeService, service: n}},
		{"_http._tcp.web.shop.svc", target{kind: kubePort, service: n, tag: "http", proto: "tcp"}},
		{"_dns._udp.web.shop.svc", target{kind: kubePort, service: n, tag: "dns", proto: "udp"}},
		{"_tcp.web.shop.svc", target{kind: kubeProtocol, service: n}},
		{"_tcp.x.web.shop.svc", target{service: n}},
		{"10-0-0-1.web.shop.svc", target{kind: kubeEndpoint, service: n, tag: "10-0-0-1", searched: "10-0-0-1.web"}},
		{"2001-db8--1.web.shop.svc", target{kind: kubeEndpoint, service: n, tag: "2001-db8--1", searched: "2001-db8--1.web"}},
		{"pod-0.web.shop.svc", target{kind: kubeEndpoint, service: n, tag: "pod-0", searched: "pod-0.web"}},
		{"x.10-0-0-1.web.shop.svc", target{service: n, searched: "x.10-0-0-1.web"}},
		{"_.._tcp.web.shop.svc", target{service: n}},
		{"shop.svc", target{kind: kubeNamespace, service: weft.ServiceName{Namespace: "shop"}}},
		{"svc", target{kind: innerName}},
		{"dns", target{kind: innerName}},
		{"ns.dns", target{kind: serverName}},
		{"dns-version", target{kind: kubeVersion}},
		{"10-0-0-1.shop.pod", target{kind: kubePod, service: weft.ServiceName{Namespace: "shop"}, addr: netip.MustParseAddr("10.0.0.1")}},
		{"shop.pod", target{kind: kubePods, service: weft.ServiceName{Namespace: "shop"}}},
		{"10-0-0-01.shop.pod", target{}}, {"x.10-0-0-1.shop.pod", target{}}, {"web.shop.pod", target{}},
		{"pod", target{kind: innerName}},
		{"web.shop", target{}},
		{"", target{kind: apexName}},
	} {
		var labels []string
		if c.name != "" {
			labels = strings.Split(c.name, ".")
		}
		if got := parseKube(labels); got != c.want {
			t.Errorf("%s.cluster.local: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestReverseNames(t *testing.T) {
	for name, want := range map[string]string{
		"4.3.2.1.in-addr.arpa.":     "1.2.3.4",
		"3.2.1.in-addr.arpa.":       "",
		"x.3.2.1.in-addr.arpa.":     "",
		"004.3.2.1.in-addr.arpa.":   "",
		"5.4.3.2.1.in-addr.arpa.":   "",
		"4.3.2.1.in-addr.arpa.com.": "",
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.":  "2001:db8::1",
		"10.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.": "",
		"0.0.2.ip6.arpa.": "",
	} {
		addr, ok := parseReverse(strings.Split(strings.TrimSuffix(name, "."), "."))
		if ok != (want != "") || ok && addr.String() != want {
			t.Errorf("%s: %v %v, want %q", name, addr, ok, want)
		}
	}
}

// An address written as a label is read back as the same address.
func FuzzDashedAddress(f *testing.F) {
	f.Add("10-0-0-1")
	f.Add("2001-db8--1")
	f.Add("--ffff-1-2-3-4")
	f.Fuzz(func(t *testing.T, label string) {
		addr, ok := parseDashed(label)
		if !ok {
			return
		}
		if again, ok := parseDashed(dashed(addr)); !ok || again != addr || dashed(addr) != label {
			t.Fatalf("%q is %v, which is written %q and read %v", label, addr, dashed(addr), again)
		}
	})
}
