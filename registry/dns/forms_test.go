package dns

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
)

// expectation is a question and its whole answer.
type expectation struct {
	name, rrtype string
	rcode        int
	answer       string
	extra        string
}

func (w *world) expect(list []expectation) {
	w.Helper()
	for _, c := range list {
		a := w.exchange("tcp", question(c.name, c.rrtype))
		if a.Rcode != c.rcode || show(a.Answer) != c.answer || show(a.Extra) != c.extra {
			w.Errorf("%s %s: %s\nanswer %s\nextra  %s", c.name, c.rrtype, dns.RcodeToString[a.Rcode], show(a.Answer), show(a.Extra))
		}
	}
}

// fixedQueries knows one prepared query.
type fixedQueries struct{ list []*weft.Instance }

func (q fixedQueries) Execute(name string, limit int) ([]*weft.Instance, time.Duration, bool) {
	return q.list[:min(limit, len(q.list))], 7 * time.Second, name == "near.web"
}

// The forms of Consul beside plain services and nodes.
func TestOtherConsulForms(t *testing.T) {
	far := instance("q", "10.7.0.1", 77)
	w := newWorld(t, Config{AltDomain: "Mesh.Example.", Queries: fixedQueries{[]*weft.Instance{&far}}})
	mesh := instance("1", "10.0.0.1", 80)
	mesh.MeshAddr, mesh.Identity = "10.0.0.1:15006", "spiffe://cluster.local/ns/default/sa/web"
	w.add(weft.Passing, mesh, instance("2", "10.0.0.2", 80))
	kinds := func(in weft.Instance, extra string) weft.Instance {
		in.Extra = map[string]json.RawMessage{"consul": json.RawMessage(extra)}
		return in
	}
	proxy := kinds(instance("p", "10.0.0.3", 20000), `{"Kind":"connect-proxy","Proxy":{"DestinationServiceName":"Web"}}`)
	proxy.Service.Name = "web-proxy"
	other := kinds(instance("o", "10.0.0.4", 20000), `{"Kind":"connect-proxy","Proxy":{"DestinationServiceName":"db"}}`)
	other.Service.Name = "db-proxy"
	edge := kinds(instance("e", "10.0.0.5", 8080), `{"Kind":"ingress-gateway"}`)
	edge.Service.Name = "edge"
	native := kinds(instance("n", "10.0.0.6", 90), `{"Connect":{"Native":true}}`)
	native.Service.Name = "native"
	strange := kinds(instance("s", "10.0.0.7", 91), `[1]`)
	strange.Service.Name = "strange"
	w.add(weft.Passing, proxy, other, edge, native, strange)
	virtual := VirtualIP(weft.NewServiceName("", "web")).String()
	if a := netip.MustParseAddr(virtual).As4(); a[0] < 240 {
		t.Errorf("the virtual address is %s", virtual)
	}
	w.expect([]expectation{
		{"web.connect.consul", "A", dns.RcodeSuccess, "A 10.0.0.1, A 10.0.0.3", ""},
		{"web.connect.dc1.consul", "SRV", dns.RcodeSuccess,
			"SRV 1 1 15006 0a000001.addr.dc1.consul., SRV 1 1 20000 0a000003.addr.dc1.consul.", "A 10.0.0.1, A 10.0.0.3"},
		{"native.connect.consul", "SRV", dns.RcodeSuccess, "SRV 1 1 90 0a000006.addr.dc1.consul.", "A 10.0.0.6"},
		{"strange.connect.consul", "A", dns.RcodeNameError, "", ""},
		{"edge.connect.consul", "A", dns.RcodeNameError, "", ""},
		{"web.ingress.consul", "SRV", dns.RcodeSuccess, "SRV 1 1 8080 0a000005.addr.dc1.consul.", "A 10.0.0.5"},
		{"none.ingress.consul", "A", dns.RcodeNameError, "", ""},
		{"web.virtual.consul", "A", dns.RcodeSuccess, "A " + virtual, ""},
		{"web.virtual.consul", "AAAA", dns.RcodeSuccess, "", ""},
		{"none.virtual.consul", "A", dns.RcodeNameError, "", ""},
		{"near.web.query.consul", "A", dns.RcodeSuccess, "A 10.7.0.1", ""},
		{"near.web.query.dc1.consul", "SRV", dns.RcodeSuccess, "SRV 1 1 77 0a070001.addr.dc1.consul.", "A 10.7.0.1"},
		{"web.query.consul", "A", dns.RcodeNameError, "", ""},
		// another domain, which answers keep
		{"web.service.mesh.example", "A", dns.RcodeSuccess, "A 10.0.0.1, A 10.0.0.2", ""},
		{"edge.service.mesh.example", "SRV", dns.RcodeSuccess, "SRV 1 1 8080 0a000005.addr.dc1.mesh.example.", "A 10.0.0.5"},
		{"0a000005.addr.dc1.mesh.example", "A", dns.RcodeSuccess, "A 10.0.0.5", ""},
		{"mesh.example", "NS", dns.RcodeSuccess, "NS ns.mesh.example.", "A 127.0.0.1"},
	})
	a := w.ask("near.web.query.consul", "A")
	if len(a.Answer) != 1 || a.Answer[0].Header().Ttl != 7 {
		t.Errorf("the query's TTL: %v", a)
	}
	// what a proxy is for may change
	proxy.Extra["consul"] = json.RawMessage(`{"Kind":"connect-proxy","Proxy":{"DestinationServiceName":"db"}}`)
	w.add(weft.Passing, proxy)
	w.expect([]expectation{
		{"web.connect.consul", "A", dns.RcodeSuccess, "A 10.0.0.1", ""},
		{"db.connect.consul", "A", dns.RcodeSuccess, "A 10.0.0.3, A 10.0.0.4", ""},
	})
}

func TestOnlyPassing(t *testing.T) {
	w := newWorld(t, Config{OnlyPassing: true})
	w.add(weft.Passing, instance("1", "10.0.0.1", 80))
	w.add(weft.Warning, instance("2", "10.0.0.2", 80))
	w.expect([]expectation{
		{"web.service.consul", "A", dns.RcodeSuccess, "A 10.0.0.1", ""},
		{"web.default.svc.cluster.local", "A", dns.RcodeSuccess, "A 10.0.0.1", ""},
	})
}

func TestTTLByName(t *testing.T) {
	s := New(nil, Config{TTL: time.Second, ServiceTTL: map[string]time.Duration{
		"*": 2 * time.Second, "we*": 3 * time.Second, "web*": 4 * time.Second, "Web": 5 * time.Second,
	}})
	for name, want := range map[string]uint32{"web": 5, "web1": 4, "wet": 3, "x": 2} {
		if got := s.serviceTTL(name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
	if got := New(nil, Config{TTL: time.Second}).serviceTTL("web"); got != 1 {
		t.Errorf("without any: %d", got)
	}
}

// How a service is spoken to, when all instances are alike and when they are not.
func TestServiceBindings(t *testing.T) {
	w := newWorld(t, Config{})
	as := func(name, id, address string, port int, p weft.Protocol) {
		in := instance(id, address, port)
		in.Service.Name, in.Protocol = name, p
		w.add(weft.Passing, in)
	}
	as("alike", "1", "10.0.0.1", 80, weft.GRPC)
	as("alike", "2", "10.0.0.2", 80, weft.HTTP2)
	as("mixed", "3", "10.0.0.3", 80, weft.HTTP)
	as("mixed", "4", "10.0.0.4", 443, weft.TLS)
	as("mixed", "5", "10.0.0.5", 5432, weft.TCP)
	as("secret", "6", "10.0.0.6", 443, weft.TLS)
	w.expect([]expectation{
		{"alike.service.consul", "SVCB", dns.RcodeSuccess, `SVCB 1 . alpn="h2" port="80"`, ""},
		{"alike.default.svc.cluster.local", "SVCB", dns.RcodeSuccess, `SVCB 1 . alpn="h2" port="80"`, ""},
		{"alike.service.consul", "HTTPS", dns.RcodeSuccess, "", ""},
		{"mixed.service.consul", "SVCB", dns.RcodeSuccess, `SVCB 1 0a000003.addr.dc1.consul. alpn="http/1.1" port="80", ` +
			`SVCB 1 0a000004.addr.dc1.consul. port="443", SVCB 1 0a000005.addr.dc1.consul. port="5432"`, "A 10.0.0.3, A 10.0.0.4, A 10.0.0.5"},
		{"mixed.service.consul", "HTTPS", dns.RcodeSuccess, `HTTPS 1 0a000004.addr.dc1.consul. port="443"`, "A 10.0.0.4"},
		{"mixed.default.svc.cluster.local", "HTTPS", dns.RcodeSuccess, `HTTPS 1 10-0-0-4.mixed.default.svc.cluster.local. port="443"`, "A 10.0.0.4"},
		{"secret.service.consul", "HTTPS", dns.RcodeSuccess, `HTTPS 1 . port="443"`, ""},
	})
}

// Kubernetes Services of every kind, and what changes with them.
func TestKubernetesServices(t *testing.T) {
	w := newWorld(t, Config{})
	at := func(name, id, address string, labels map[string]string) weft.Instance {
		return weft.Instance{ID: id, Service: weft.NewServiceName("shop", name), Address: address, Port: 8080, Labels: labels}
	}
	w.add(weft.Passing, at("cluster", "c1", "10.0.0.1", nil), at("head", "h1", "10.0.0.2", map[string]string{"hostname": "head-0"}),
		at("head", "h2", "10.0.0.3", nil))
	w.add(weft.Critical, at("head", "h3", "10.0.0.4", nil), at("early", "e1", "10.0.0.5", nil))
	before := []expectation{
		{"cluster.shop.svc.cluster.local", "A", dns.RcodeSuccess, "A 10.0.0.1", ""},
		{"early.shop.svc.cluster.local", "A", dns.RcodeNameError, "", ""},
		{"far.shop.svc.cluster.local", "A", dns.RcodeNameError, "", ""},
		{"3.0.0.10.in-addr.arpa", "PTR", dns.RcodeSuccess, "", ""},
	}
	before[3].rcode = dns.RcodeRefused // in a namespace that Consul's names do not know, and no Service speaks of it
	w.expect(before)

	name := func(n string) weft.ServiceName { return weft.NewServiceName("shop", n) }
	w.server.SetServices([]Service{
		{Name: name("cluster"), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00::1")},
			Ports: []ServicePort{{Name: "http", Protocol: "tcp", Port: 80, Target: 8080}, {Name: "dns", Protocol: "udp", Port: 53}, {Protocol: "tcp", Port: 9}}},
		{Name: name("head"), Ports: []ServicePort{{Name: "http", Protocol: "tcp", Port: 80}, {Name: "admin", Protocol: "tcp", Port: 81, Target: 8081}}},
		{Name: name("early"), PublishNotReady: true},
		{Name: name("empty"), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.2")}},
		{Name: name("far"), ExternalName: "api.example.com"},
		{Name: weft.NewServiceName("lonely", "x"), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.3")}},
	})
	const zone = ".shop.svc.cluster.local"
	w.expect([]expectation{
		{"cluster" + zone, "A", dns.RcodeSuccess, "A 10.96.0.1", ""},
		{"CLUSTER" + zone, "AAAA", dns.RcodeSuccess, "AAAA fd00::1", ""},
		{"_http._tcp.cluster" + zone, "SRV", dns.RcodeSuccess, "SRV 1 1 80 cluster.shop.svc.cluster.local.", "A 10.96.0.1"},
		{"_dns._udp.cluster" + zone, "SRV", dns.RcodeSuccess, "SRV 1 1 53 cluster.shop.svc.cluster.local.", "A 10.96.0.1"},
		{"_dns._tcp.cluster" + zone, "SRV", dns.RcodeNameError, "", ""},
		{"_http._tcp.cluster" + zone, "A", dns.RcodeSuccess, "", ""},
		{"cluster" + zone, "SRV", dns.RcodeSuccess, "SRV 1 1 53 cluster.shop.svc.cluster.local., SRV 1 1 80 cluster.shop.svc.cluster.local.", "A 10.96.0.1"},
		{"10-0-0-1.cluster" + zone, "A", dns.RcodeSuccess, "A 10.0.0.1", ""},
		{"1.0.96.10.in-addr.arpa", "PTR", dns.RcodeSuccess, "PTR cluster.shop.svc.cluster.local.", ""},
		{"empty" + zone, "A", dns.RcodeSuccess, "A 10.96.0.2", ""},
		{"lonely.svc.cluster.local", "A", dns.RcodeSuccess, "", ""},
		// headless: two instances times two ports
		{"head" + zone, "A", dns.RcodeSuccess, "A 10.0.0.2, A 10.0.0.3", ""},
		{"_http._tcp.head" + zone, "SRV", dns.RcodeSuccess, "SRV 1 1 8080 10-0-0-3.head.shop.svc.cluster.local., SRV 1 1 8080 head-0.head.shop.svc.cluster.local.", "A 10.0.0.2, A 10.0.0.3"},
		{"_admin._tcp.head" + zone, "SRV", dns.RcodeSuccess, "SRV 1 1 8081 10-0-0-3.head.shop.svc.cluster.local., SRV 1 1 8081 head-0.head.shop.svc.cluster.local.", "A 10.0.0.2, A 10.0.0.3"},
		{"head" + zone, "SRV", dns.RcodeSuccess, "SRV 1 1 8080 10-0-0-3.head.shop.svc.cluster.local., SRV 1 1 8080 head-0.head.shop.svc.cluster.local., " +
			"SRV 1 1 8081 10-0-0-3.head.shop.svc.cluster.local., SRV 1 1 8081 head-0.head.shop.svc.cluster.local.", "A 10.0.0.2, A 10.0.0.3"},
		{"_8080._tcp.head" + zone, "SRV", dns.RcodeNameError, "", ""},
		{"head-0.head" + zone, "A", dns.RcodeSuccess, "A 10.0.0.2", ""},
		{"10-0-0-2.head" + zone, "A", dns.RcodeNameError, "", ""}, // it has a name
		{"10-0-0-4.head" + zone, "A", dns.RcodeNameError, "", ""}, // it is ill
		{"2.0.0.10.in-addr.arpa", "PTR", dns.RcodeSuccess, "PTR head-0.head.shop.svc.cluster.local.", ""},
		{"3.0.0.10.in-addr.arpa", "PTR", dns.RcodeSuccess, "PTR 10-0-0-3.head.shop.svc.cluster.local.", ""},
		{"early" + zone, "A", dns.RcodeSuccess, "A 10.0.0.5", ""},
		// another name
		{"far" + zone, "A", dns.RcodeSuccess, "CNAME api.example.com.", ""},
		{"far" + zone, "SRV", dns.RcodeSuccess, "CNAME api.example.com.", ""},
		{"_http._tcp.far" + zone, "SRV", dns.RcodeNameError, "", ""},
		// pods
		{"10-0-0-4.shop.pod.cluster.local", "A", dns.RcodeSuccess, "A 10.0.0.4", ""},
		{"10-0-0-4.default.pod.cluster.local", "A", dns.RcodeNameError, "", ""},
		{"10-0-0-9.shop.pod.cluster.local", "A", dns.RcodeNameError, "", ""},
		{"shop.pod.cluster.local", "A", dns.RcodeSuccess, "", ""},
		{"pod.cluster.local", "A", dns.RcodeSuccess, "", ""},
	})
	w.server.SetServices(nil)
	w.expect(before)
}

// An alias within our zones is answered with what it leads to.
func TestAliasesWithinTheZones(t *testing.T) {
	w := newWorld(t, Config{})
	w.add(weft.Passing, instance("1", "10.0.0.1", 80))
	w.add(weft.Passing, weft.Instance{ID: "a", Service: weft.NewServiceName("", "alias"), Address: "web.default.svc.cluster.local", Port: 1})
	name := func(n string) weft.ServiceName { return weft.NewServiceName("", n) }
	w.server.SetServices([]Service{
		{Name: name("one"), ExternalName: "alias.service.consul"},
		{Name: name("a"), ExternalName: "b.default.svc.cluster.local"},
		{Name: name("b"), ExternalName: "a.default.svc.cluster.local"},
		{Name: name("lost"), ExternalName: "none.service.consul"},
	})
	w.expect([]expectation{
		{"alias.service.consul", "A", dns.RcodeSuccess, "A 10.0.0.1, CNAME web.default.svc.cluster.local.", ""},
		{"alias.service.consul", "CNAME", dns.RcodeSuccess, "CNAME web.default.svc.cluster.local.", ""},
		{"alias.service.consul", "AAAA", dns.RcodeSuccess, "CNAME web.default.svc.cluster.local.", ""},
		{"one.default.svc.cluster.local", "A", dns.RcodeSuccess, "A 10.0.0.1, CNAME alias.service.consul., CNAME web.default.svc.cluster.local.", ""},
		{"lost.default.svc.cluster.local", "A", dns.RcodeNameError, "CNAME none.service.consul.", ""},
	})
	a := w.ask("a.default.svc.cluster.local", "A") // a ring ends
	if len(a.Answer) > 1+maxChase {
		t.Errorf("a ring: %v", a)
	}
}
