package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a registry with the DNS server before it, on loopback ports.
type world struct {
	*testing.T
	registry *registry.Registry
	server   *Server
	udp, tcp string
	served   chan error
}

func newWorld(t *testing.T, c Config) *world {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.Open(t.Context(), registry.Config{
		Store: st, Node: weft.Node{Name: "Server-1", Address: "127.0.0.1", Labels: map[string]string{"rack": "r1", "rfc1035-note": `a\b`}},
	})
	if err != nil {
		t.Fatal(err)
	}
	packet, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		T: t, registry: r, server: New(r, c), served: make(chan error, 1),
		udp: packet.LocalAddr().String(), tcp: listener.Addr().String(),
	}
	go func() { w.served <- w.server.Serve(packet, listener) }()
	t.Cleanup(func() {
		if err := w.server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-w.served; err != nil {
			t.Error(err)
		}
		r.Close()
		st.Close()
	})
	return w
}

// add registers instances with a check of the given status.
func (w *world) add(status weft.Health, list ...weft.Instance) {
	w.Helper()
	for _, in := range list {
		in.Checks = []weft.Check{{Kind: weft.StaticCheck, Status: status}}
		if _, err := w.registry.Register(w.Context(), in); err != nil {
			w.Fatal(err)
		}
	}
}

func (w *world) addNode(n weft.Node) {
	w.Helper()
	if _, err := w.registry.RegisterNode(w.Context(), n); err != nil {
		w.Fatal(err)
	}
}

func instance(id, address string, port int, tags ...string) weft.Instance {
	return weft.Instance{ID: id, Service: weft.NewServiceName("", "web"), Address: address, Port: port, Tags: tags}
}

// ask sends a question over UDP, without EDNS.
func (w *world) ask(name, rrtype string) *dns.Msg {
	w.Helper()
	return w.exchange("udp", question(name, rrtype))
}

func question(name, rrtype string) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.StringToType[rrtype])
}

func (w *world) exchange(network string, m *dns.Msg) *dns.Msg {
	w.Helper()
	c := dns.Client{Net: network, Timeout: 10 * time.Second, UDPSize: 65535}
	addr := w.udp
	if network == "tcp" {
		addr = w.tcp
	}
	answer, _, err := c.Exchange(m, addr)
	if err != nil {
		w.Fatalf("%v: %v", m.Question, err)
	}
	if answer.Id != m.Id || !answer.Response {
		w.Fatalf("not an answer: %v", answer)
	}
	return answer
}

// show writes records as "type data", sorted: the order of answers is random.
func show(list []dns.RR) string {
	var out []string
	for _, r := range list {
		if r.Header().Rrtype == dns.TypeOPT {
			continue
		}
		data := strings.TrimPrefix(r.String(), r.Header().String())
		if soa, ok := r.(*dns.SOA); ok {
			data = soa.Ns + " " + soa.Mbox + " " + strconv.Itoa(int(soa.Minttl))
		}
		out = append(out, dns.TypeToString[r.Header().Rrtype]+" "+data)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

const (
	consulSOA = "SOA ns.consul. postmaster.consul. 1"
	kubeSOA   = "SOA ns.dns.cluster.local. hostmaster.cluster.local. 1"
)

// shop has services in every condition.
func shop(t *testing.T) *world {
	w := newWorld(t, Config{})
	w.addNode(weft.Node{Name: "sick", Address: "10.9.9.9", Checks: []weft.Check{{ID: "disk", Kind: weft.StaticCheck, Status: weft.Critical}}})
	w.addNode(weft.Node{Name: "named", Address: "host.example.com"})
	w.addNode(weft.Node{Name: "a.b", Address: "2001:db8::2"})
	w.add(weft.Passing,
		instance("1", "10.0.0.1", 81, "v1", "http"),
		instance("6", "2001:db8::1", 86, "v2"),
		instance("n", "", 80),
	)
	w.add(weft.Warning, instance("2", "10.0.0.2", 82, "v2"))
	w.add(weft.Critical, instance("3", "10.0.0.3", 83, "v1"))
	maintained := instance("4", "10.0.0.4", 84)
	w.add(weft.Passing, maintained)
	if err := w.registry.Maintain(w.Context(), weft.InstanceKey{ID: "4"}, true, ""); err != nil {
		t.Fatal(err)
	}
	onSick := instance("5", "10.0.0.5", 85)
	onSick.Node = "sick"
	w.add(weft.Passing, onSick)

	ill := weft.Instance{ID: "ill", Service: weft.NewServiceName("", "ill"), Address: "10.0.1.1", Port: 80}
	w.add(weft.Critical, ill)
	mixed := weft.Instance{ID: "mix", Service: weft.NewServiceName("Shop", "MixedCase"), Address: "10.0.2.1", Port: 80}
	w.add(weft.Passing, mixed)
	w.add(weft.Passing,
		weft.Instance{ID: "cn", Service: weft.NewServiceName("", "far"), Address: "far.example.com", Port: 443},
		weft.Instance{ID: "on", Service: weft.NewServiceName("", "onnamed"), Node: "named", Port: 80},
		weft.Instance{ID: "Up", Service: weft.NewServiceName("", "Upper"), Address: "10.0.3.1", Port: 80},
	)
	return w
}

func TestAnswers(t *testing.T) {
	w := shop(t)
	const (
		v4  = "A 10.0.0.1, A 10.0.0.2, A 127.0.0.1"
		srv = "SRV 1 1 80 server-1.node.dc1.consul., SRV 1 1 81 0a000001.addr.dc1.consul., " +
			"SRV 1 1 82 0a000002.addr.dc1.consul., SRV 1 1 86 20010db8000000000000000000000001.addr.dc1.consul."
		glue    = v4 + ", AAAA 2001:db8::1"
		kubeSRV = "SRV 1 1 80 127-0-0-1.web.default.svc.cluster.local., SRV 1 1 81 10-0-0-1.web.default.svc.cluster.local., " +
			"SRV 1 1 82 10-0-0-2.web.default.svc.cluster.local., SRV 1 1 86 2001-db8--1.web.default.svc.cluster.local."
	)
	for _, c := range []struct {
		name, rrtype string
		rcode        int
		answer       string
		authority    string
		extra        string
	}{
		// services
		{"web.service.consul", "A", dns.RcodeSuccess, v4, "", ""},
		{"web.service.dc1.consul", "A", dns.RcodeSuccess, v4, "", ""},
		{"web.service.dc1.dc.consul", "A", dns.RcodeSuccess, v4, "", ""},
		{"web.service.consul", "AAAA", dns.RcodeSuccess, "AAAA 2001:db8::1", "", ""},
		{"web.service.consul", "SRV", dns.RcodeSuccess, srv, "", glue},
		{"web.service.consul", "TXT", dns.RcodeSuccess, "", consulSOA, ""},
		{"web.service.consul", "ANY", dns.RcodeSuccess, `HINFO "RFC8482" ""`, "", ""},
		{"v2.web.service.consul", "A", dns.RcodeSuccess, "A 10.0.0.2", "", ""},
		{"V1.web.service.consul", "A", dns.RcodeSuccess, "A 10.0.0.1", "", ""},
		{"v3.web.service.consul", "A", dns.RcodeNameError, "", consulSOA, ""},
		{"_web._tcp.service.consul", "SRV", dns.RcodeSuccess, srv, "", glue},
		{"_web._tcp.consul", "SRV", dns.RcodeSuccess, srv, "", glue},
		{"_web._http.service.dc1.consul", "SRV", dns.RcodeSuccess, "SRV 1 1 81 0a000001.addr.dc1.consul.", "", "A 10.0.0.1"},
		{"upper.service.consul", "A", dns.RcodeSuccess, "A 10.0.3.1", "", ""},
		{"ill.service.consul", "A", dns.RcodeNameError, "", consulSOA, ""},
		{"none.service.consul", "A", dns.RcodeNameError, "", consulSOA, ""},
		{"none.service.consul", "ANY", dns.RcodeNameError, "", consulSOA, ""},
		{"web.service.dc2.consul", "A", dns.RcodeNameError, "", consulSOA, ""},
		{"mixedcase.service.consul", "A", dns.RcodeNameError, "", consulSOA, ""}, // another namespace
		// host names
		{"far.service.consul", "A", dns.RcodeSuccess, "CNAME far.example.com.", "", ""},
		{"far.service.consul", "AAAA", dns.RcodeSuccess, "CNAME far.example.com.", "", ""},
		{"far.service.consul", "SRV", dns.RcodeSuccess, "SRV 1 1 443 far.example.com.", "", ""},
		{"onnamed.service.consul", "A", dns.RcodeSuccess, "CNAME host.example.com.", "", ""},
		// nodes and addresses
		{"server-1.node.consul", "A", dns.RcodeSuccess, "A 127.0.0.1", "", ""},
		{"server-1.node.dc1.consul", "TXT", dns.RcodeSuccess, `TXT "a\\b", TXT "rack=r1"`, "", ""},
		{"server-1.node.consul", "AAAA", dns.RcodeSuccess, "", consulSOA, ""},
		{"a.b.node.consul", "AAAA", dns.RcodeSuccess, "AAAA 2001:db8::2", "", ""},
		{"named.node.consul", "A", dns.RcodeSuccess, "CNAME host.example.com.", "", ""},
		{"sick.node.consul", "A", dns.RcodeSuccess, "A 10.9.9.9", "", ""},
		{"none.node.consul", "A", dns.RcodeNameError, "", consulSOA, ""},
		{"c0a80101.addr.consul", "A", dns.RcodeSuccess, "A 192.168.1.1", "", ""},
		{"c0a80101.addr.dc1.consul", "AAAA", dns.RcodeSuccess, "", consulSOA, ""},
		{"20010db8000000000000000000000001.addr.consul", "AAAA", dns.RcodeSuccess, "AAAA 2001:db8::1", "", ""},
		// the zone
		{"consul", "SOA", dns.RcodeSuccess, consulSOA, "", ""},
		{"consul", "NS", dns.RcodeSuccess, "NS ns.consul.", "", "A 127.0.0.1"},
		{"consul", "A", dns.RcodeSuccess, "", consulSOA, ""},
		{"ns.consul", "A", dns.RcodeSuccess, "A 127.0.0.1", "", ""},
		{"service.consul", "A", dns.RcodeSuccess, "", consulSOA, ""},
		{"x.consul", "A", dns.RcodeNameError, "", consulSOA, ""},
		{"web.query.consul", "A", dns.RcodeNameError, "", consulSOA, ""},
		// backwards
		{"1.0.0.127.in-addr.arpa", "PTR", dns.RcodeSuccess, "PTR server-1.node.dc1.consul.", "", ""},
		{"1.0.0.10.in-addr.arpa", "PTR", dns.RcodeSuccess, "PTR web.service.dc1.consul.", "", ""},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", "PTR", dns.RcodeSuccess, "PTR web.service.dc1.consul.", "", ""},
		{"1.0.0.10.in-addr.arpa", "A", dns.RcodeSuccess, "", "", ""},
		{"8.8.8.8.in-addr.arpa", "PTR", dns.RcodeRefused, "", "", ""},
		// Kubernetes
		{"web.default.svc.cluster.local", "A", dns.RcodeSuccess, v4, "", ""},
		{"web.default.svc.cluster.local", "AAAA", dns.RcodeSuccess, "AAAA 2001:db8::1", "", ""},
		{"web.default.svc.cluster.local", "SRV", dns.RcodeSuccess, kubeSRV, "", glue},
		{"_http._tcp.web.default.svc.cluster.local", "SRV", dns.RcodeSuccess, "SRV 1 1 81 10-0-0-1.web.default.svc.cluster.local.", "", "A 10.0.0.1"},
		{"_82._tcp.web.default.svc.cluster.local", "SRV", dns.RcodeSuccess, "SRV 1 1 82 10-0-0-2.web.default.svc.cluster.local.", "", "A 10.0.0.2"},
		{"_http._tcp.web.default.svc.cluster.local", "A", dns.RcodeSuccess, "", kubeSOA, ""},
		{"_grpclb._tcp.web.default.svc.cluster.local", "SRV", dns.RcodeNameError, "", kubeSOA, ""},
		{"_tcp.web.default.svc.cluster.local", "A", dns.RcodeSuccess, "", kubeSOA, ""},
		{"10-0-0-1.web.default.svc.cluster.local", "A", dns.RcodeSuccess, "A 10.0.0.1", "", ""},
		{"10-0-0-3.web.default.svc.cluster.local", "A", dns.RcodeNameError, "", kubeSOA, ""},
		{"ill.default.svc.cluster.local", "A", dns.RcodeNameError, "", kubeSOA, ""},
		{"none.default.svc.cluster.local", "A", dns.RcodeNameError, "", kubeSOA, ""},
		{"web.shop.svc.cluster.local", "A", dns.RcodeNameError, "", kubeSOA, ""},
		{"mixedcase.shop.svc.cluster.local", "A", dns.RcodeSuccess, "A 10.0.2.1", "", ""},
		{"shop.svc.cluster.local", "A", dns.RcodeSuccess, "", kubeSOA, ""},
		{"other.svc.cluster.local", "A", dns.RcodeNameError, "", kubeSOA, ""},
		{"svc.cluster.local", "A", dns.RcodeSuccess, "", kubeSOA, ""},
		{"dns-version.cluster.local", "TXT", dns.RcodeSuccess, `TXT "1.1.0"`, "", ""},
		{"dns-version.cluster.local", "A", dns.RcodeSuccess, "", kubeSOA, ""},
		{"cluster.local", "NS", dns.RcodeSuccess, "NS ns.dns.cluster.local.", "", "A 127.0.0.1"},
		{"cluster.local", "SOA", dns.RcodeSuccess, kubeSOA, "", ""},
		{"ns.dns.cluster.local", "A", dns.RcodeSuccess, "A 127.0.0.1", "", ""},
		// not ours
		{"example.com", "A", dns.RcodeRefused, "", "", ""},
		{"local", "A", dns.RcodeRefused, "", "", ""},
		{".", "NS", dns.RcodeRefused, "", "", ""},
		{"xconsul", "A", dns.RcodeRefused, "", "", ""},
		{"consul", "AXFR", dns.RcodeRefused, "", "", ""},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if c.rrtype == "AXFR" && network == "udp" {
				continue
			}
			a := w.exchange(network, question(c.name, c.rrtype))
			if a.Rcode != c.rcode || show(a.Answer) != c.answer || show(a.Ns) != c.authority || show(a.Extra) != c.extra {
				t.Errorf("%s %s over %s: %s\nanswer    %s\nauthority %s\nextra     %s", c.name, c.rrtype, network,
					dns.RcodeToString[a.Rcode], show(a.Answer), show(a.Ns), show(a.Extra))
			}
			if ours := c.rcode != dns.RcodeRefused; a.Authoritative != ours || a.RecursionAvailable || a.Truncated || !a.RecursionDesired {
				t.Errorf("%s %s: flags %s", c.name, c.rrtype, a.MsgHdr.String())
			}
			for _, r := range a.Answer {
				if c.rrtype != "SOA" && r.Header().Ttl != 0 {
					t.Errorf("%s %s: TTL of %v", c.name, c.rrtype, r)
				}
			}
		}
	}
}

func TestConfiguredZoneAndTimes(t *testing.T) {
	w := newWorld(t, Config{Domain: "Mesh.Example", TTL: 30 * time.Second, NegativeTTL: 5 * time.Second})
	w.add(weft.Passing, instance("1", "10.0.0.1", 80))
	a := w.ask("web.service.mesh.example", "A")
	if show(a.Answer) != "A 10.0.0.1" || a.Answer[0].Header().Ttl != 30 {
		t.Errorf("answer: %v", a)
	}
	a = w.ask("none.service.mesh.example", "A")
	if show(a.Ns) != "SOA ns.mesh.example. postmaster.mesh.example. 5" || a.Ns[0].Header().Ttl != 5 {
		t.Errorf("no: %v", a)
	}
	if a := w.ask("web.service.consul", "A"); a.Rcode != dns.RcodeRefused {
		t.Errorf("another zone: %v", a)
	}
}

// Names come back in the letters of the question: resolvers that mix case at
// random check it.
func TestCaseOfTheQuestionIsKept(t *testing.T) {
	w := newWorld(t, Config{})
	w.add(weft.Passing, instance("1", "10.0.0.1", 80))
	for _, name := range []string{"wEb.SerVice.conSUL.", "WEB.default.SVC.cluster.LOCAL.", "SERVER-1.node.Consul."} {
		a := w.ask(name, "A")
		if a.Question[0].Name != name || len(a.Answer) != 1 || a.Answer[0].Header().Name != name {
			t.Errorf("%s: %v", name, a)
		}
	}
}

// Registered, ill, well and gone: every answer is of the moment.
func TestAnswersFollowTheRegistry(t *testing.T) {
	w := newWorld(t, Config{})
	step := func(what, want string, kube int) {
		t.Helper()
		if got := show(w.ask("web.service.consul", "A").Answer); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
		if got := w.ask("web.default.svc.cluster.local", "A"); got.Rcode != kube || show(got.Answer) != want {
			t.Errorf("%s: Kubernetes form %v", what, got)
		}
	}
	step("before", "", dns.RcodeNameError)
	in := instance("1", "10.0.0.1", 80)
	in.Checks = []weft.Check{{Kind: weft.TTLCheck, TTL: weft.Duration(time.Hour), Status: weft.Critical}}
	if _, err := w.registry.Register(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	step("critical", "", dns.RcodeNameError)
	for _, s := range []weft.Health{weft.Passing, weft.Critical, weft.Warning} {
		if err := w.registry.Report(t.Context(), "Server-1", "service:1", s, ""); err != nil {
			t.Fatal(err)
		}
		want, rcode := "A 10.0.0.1", dns.RcodeSuccess
		if s == weft.Critical {
			want, rcode = "", dns.RcodeNameError
		}
		step(s.String(), want, rcode)
	}
	if err := w.registry.Maintain(t.Context(), weft.InstanceKey{Node: "Server-1"}, true, ""); err != nil {
		t.Fatal(err)
	}
	step("node in maintenance", "", dns.RcodeNameError)
	if err := w.registry.Maintain(t.Context(), weft.InstanceKey{Node: "Server-1"}, false, ""); err != nil {
		t.Fatal(err)
	}
	step("node back", "A 10.0.0.1", dns.RcodeSuccess)
	if _, err := w.registry.Deregister(t.Context(), weft.InstanceKey{Node: "Server-1", ID: "1"}); err != nil {
		t.Fatal(err)
	}
	step("gone", "", dns.RcodeNameError)
	if a := w.ask("1.0.0.10.in-addr.arpa", "PTR"); a.Rcode != dns.RcodeRefused {
		t.Errorf("gone, but backwards %v", a)
	}
}

// Two instances at one address are one A record, and two SRV records.
func TestAddressesStandOnce(t *testing.T) {
	w := newWorld(t, Config{})
	w.add(weft.Passing, instance("1", "10.0.0.1", 80), instance("2", "10.0.0.1", 81))
	if got := show(w.ask("web.service.consul", "A").Answer); got != "A 10.0.0.1" {
		t.Errorf("A: %s", got)
	}
	a := w.ask("web.service.consul", "SRV")
	if len(a.Answer) != 2 || show(a.Extra) != "A 10.0.0.1" {
		t.Errorf("SRV: %v", a)
	}
}

func TestWeightsReachSRV(t *testing.T) {
	w := newWorld(t, Config{})
	in := instance("1", "10.0.0.1", 80)
	in.Weights = weft.Weights{Passing: 7, Warning: 3}
	w.add(weft.Passing, in)
	if got := show(w.ask("web.service.consul", "SRV").Answer); got != "SRV 1 7 80 0a000001.addr.dc1.consul." {
		t.Errorf("passing: %s", got)
	}
	w.add(weft.Warning, in)
	if got := show(w.ask("web.service.consul", "SRV").Answer); got != "SRV 1 3 80 0a000001.addr.dc1.consul." {
		t.Errorf("warning: %s", got)
	}
}

// crowd registers n instances.
func crowd(t *testing.T, n int) *world {
	w := newWorld(t, Config{})
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	jobs := make(chan int)
	done := make(chan error, 32)
	for range cap(done) {
		go func() {
			var failed error
			for i := range jobs {
				in := instance(strconv.Itoa(i), fmt.Sprintf("10.1.%d.%d", i/250, i%250+1), 1000+i%50000)
				if _, err := w.registry.Register(ctx, in); err != nil {
					failed = err
				}
			}
			done <- failed
		}()
	}
	for i := range n {
		jobs <- i
	}
	close(jobs)
	var errs []error
	for range cap(done) {
		errs = append(errs, <-done)
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return w
}

// What does not fit is cut at the size that the client takes, and said so. Over
// TCP it is whole.
func TestTruncation(t *testing.T) {
	w := crowd(t, 600)
	for _, c := range []struct {
		network string
		rrtype  string
		edns    uint16 // 0 is none
		size    int    // bytes at most
		answers int    // at least
		cut     bool
	}{
		{"udp", "A", 0, 512, 28, true},
		{"udp", "A", 100, 512, 28, true}, // less than 512 is 512
		{"udp", "A", 1232, 1232, 70, true},
		{"udp", "A", 4096, 4096, 240, true},
		{"udp", "A", 65535, 65467, 600, false},
		{"udp", "SRV", 20000, 20000, 400, true},
		{"udp", "SRV", 0, 512, 10, true},
		{"udp", "SRV", 4096, 4096, 80, true},
		{"tcp", "A", 0, 65535, 600, false},
		{"tcp", "SRV", 0, 65535, 600, false},
		{"tcp", "SRV", 1232, 65535, 600, false},
	} {
		m := question("web.service.consul", c.rrtype)
		if c.edns > 0 {
			m.SetEdns0(c.edns, false)
		}
		a := w.exchange(c.network, m)
		a.Compress = true
		if packed, err := a.Pack(); err != nil || len(packed) > c.size {
			t.Errorf("%+v: %d bytes, %v", c, len(packed), err)
		}
		if len(a.Answer) < c.answers || a.Truncated != c.cut {
			t.Errorf("%+v: %d answers, TC %v", c, len(a.Answer), a.Truncated)
		}
		opt := a.IsEdns0()
		if (opt != nil) != (c.edns > 0) || opt != nil && (opt.UDPSize() != 1232 || opt.Version() != 0) {
			t.Errorf("%+v: OPT %v", c, opt)
		}
	}
}

// To leave out additional records is no truncation.
func TestAdditionalRecordsDoNotTruncate(t *testing.T) {
	w := crowd(t, 10)
	a := w.ask("web.service.consul", "SRV")
	if len(a.Answer) != 10 || a.Truncated || len(a.Extra) >= 10 {
		t.Errorf("%d answers, %d additional, TC %v", len(a.Answer), len(a.Extra), a.Truncated)
	}
}

// A service of thousands: over TCP as many as 64 KiB hold, each once and as it was
// registered, and TC.
func TestMoreThanAMessageHolds(t *testing.T) {
	w := crowd(t, 5000)
	a := w.exchange("tcp", question("web.service.consul", "SRV"))
	seen := make(map[string]bool)
	for _, r := range a.Answer {
		r := r.(*dns.SRV)
		seen[r.Target] = true
		var net, host int
		if _, err := fmt.Sscanf(r.Target, "0a01%02x%02x.addr.dc1.consul.", &net, &host); err != nil || int(r.Port) != 1000+net*250+host-1 {
			t.Errorf("nobody registered %v", r)
		}
	}
	if !a.Truncated || len(a.Answer) < 1400 || len(seen) != len(a.Answer) {
		t.Errorf("%d answers, %d different, TC %v", len(a.Answer), len(seen), a.Truncated)
	}
	if a = w.exchange("tcp", question("web.service.consul", "A")); !a.Truncated || len(a.Answer) < 4000 {
		t.Errorf("%d addresses, TC %v", len(a.Answer), a.Truncated)
	}
}

// EDNS of a later version is BADVERS, with our version; flags are echoed.
func TestEDNS(t *testing.T) {
	w := newWorld(t, Config{})
	w.add(weft.Passing, instance("1", "10.0.0.1", 80))
	m := question("web.service.consul", "A")
	m.SetEdns0(4096, true)
	if a := w.exchange("udp", m); a.IsEdns0() == nil || !a.IsEdns0().Do() || len(a.Answer) != 1 {
		t.Errorf("DO: %v", a)
	}
	m.IsEdns0().SetVersion(1)
	if a := w.exchange("udp", m); a.Rcode != dns.RcodeBadVers || a.IsEdns0().Version() != 0 || len(a.Answer) != 0 {
		t.Errorf("version 1: %v", a)
	}
	m = question("example.com", "A")
	m.SetEdns0(4096, false)
	if a := w.exchange("udp", m); a.Rcode != dns.RcodeRefused || a.IsEdns0() == nil {
		t.Errorf("refused: %v", a)
	}
}

// What is malformed, or not a question, is told so, or gets nothing.
func TestStrangeMessages(t *testing.T) {
	w := newWorld(t, Config{})
	w.add(weft.Passing, instance("1", "10.0.0.1", 80))
	good := question("web.service.consul", "A")
	packed := func(change func(m *dns.Msg)) []byte {
		m := good.Copy()
		change(m)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	whole := packed(func(*dns.Msg) {})
	chaos := packed(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS })
	for _, c := range []struct {
		name  string
		send  []byte
		rcode int // -1: no answer
	}{
		{"good", whole, dns.RcodeSuccess},
		{"nothing", nil, -1},
		{"short", whole[:11], -1},
		{"an answer", packed(func(m *dns.Msg) { m.Response = true }), -1},
		{"cut in the name", whole[:20], dns.RcodeFormatError},
		{"cut in the class", whole[:len(whole)-1], dns.RcodeFormatError},
		{"no question", packed(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		{"two questions", packed(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{"with an answer", packed(func(m *dns.Msg) {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeA, Class: 1}, A: net.IPv4zero}}
		}), dns.RcodeFormatError},
		{"two OPTs", packed(func(m *dns.Msg) { m.SetEdns0(1, false).SetEdns0(1, false) }), dns.RcodeFormatError},
		{"NOTIFY", packed(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		{"UPDATE", packed(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"a pointer loop", append(slices.Clone(whole[:12]), 0xc0, 12, 0, 1, 0, 1), dns.RcodeFormatError},
		{"class CHAOS", chaos, dns.RcodeRefused},
	} {
		c1, err := net.Dial("udp", w.udp)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{c.send, whole} { // the second shows that the first got no answer
			if _, err := c1.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		wantAnswers := 2
		if c.rcode < 0 {
			wantAnswers = 1
		}
		var rcodes []int
		for range wantAnswers {
			c1.SetReadDeadline(time.Now().Add(10 * time.Second))
			b := make([]byte, 512)
			n, err := c1.Read(b)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			var m dns.Msg
			if err := m.Unpack(b[:n]); err != nil || m.Id != good.Id || !m.Response {
				t.Errorf("%s: %v %v", c.name, err, &m)
			}
			rcodes = append(rcodes, m.Rcode)
		}
		if c.rcode >= 0 && !slices.Contains(rcodes, c.rcode) || c.rcode < 0 && rcodes[0] != dns.RcodeSuccess {
			t.Errorf("%s: %v", c.name, rcodes)
		}
		c1.Close()
	}
}

// Many questions on one connection, sent before any answer is read.
func TestPipelining(t *testing.T) {
	w := newWorld(t, Config{})
	w.add(weft.Passing, instance("1", "10.0.0.1", 80))
	c, err := net.Dial("tcp", w.tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	var all []byte
	for i := range 300 {
		m := question("web.service.consul", "A")
		m.Id = uint16(i)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		all = append(binary.BigEndian.AppendUint16(all, uint16(len(b))), b...)
	}
	if _, err := c.Write(all[:len(all)-3]); err != nil { // the last one in two pieces
		t.Fatal(err)
	}
	conn := &dns.Conn{Conn: c}
	for i := range 300 {
		if i == 299 {
			c.Write(all[len(all)-3:])
		}
		a, err := conn.ReadMsg()
		if err != nil || a.Id != uint16(i) || show(a.Answer) != "A 10.0.0.1" {
			t.Fatalf("answer %d: %v %v", i, a, err)
		}
	}
}

// Connections over the limit are closed at once; when one goes, there is room.
func TestConnectionLimit(t *testing.T) {
	w := newWorld(t, Config{MaxConns: 2})
	dial := func() net.Conn {
		c, err := net.Dial("tcp", w.tcp)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}
	alive := func(c net.Conn) bool {
		conn := &dns.Conn{Conn: c}
		if conn.WriteMsg(question("consul", "SOA")) != nil {
			return false
		}
		_, err := conn.ReadMsg()
		return err == nil
	}
	a, b := dial(), dial()
	defer b.Close()
	if !alive(a) || !alive(b) {
		t.Fatal("within the limit, but closed")
	}
	over := dial()
	if _, err := over.Read(make([]byte, 1)); err == nil {
		t.Error("over the limit, but open")
	}
	over.Close()
	a.Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		c := dial()
		ok := alive(c)
		c.Close()
		if ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no room after a connection went")
		}
	}
}

// Something else than DNS over TCP is hung up on, and so are broken questions'
// connections not.
func TestStrangeConnections(t *testing.T) {
	w := newWorld(t, Config{})
	for name, c := range map[string]struct {
		send   string
		answer bool
	}{
		"an answer":        {"\x00\x0c\x00\x01\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00", false},
		"an empty one":     {"\x00\x00", false},
		"a malformed one":  {"\x00\x0d\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xff", true},
		"an HTTP request":  {"GET / HTTP/1.1\r\n\r\n", false},
		"half of a length": {"\x00", false},
	} {
		c1, err := net.Dial("tcp", w.tcp)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c1, c.send)
		c1.(*net.TCPConn).CloseWrite()
		c1.SetDeadline(time.Now().Add(10 * time.Second))
		got, err := io.ReadAll(c1)
		if err != nil || (len(got) > 0) != c.answer {
			t.Errorf("%s: %q %v", name, got, err)
		}
		c1.Close()
	}
}

// A connection that is silent, that sends slowly, or that does not take its answer
// is closed in time.
func TestDeadlines(t *testing.T) {
	notify := question("consul", "SOA")
	notify.Opcode = dns.OpcodeNotify // is answered without a registry
	packed, err := notify.Pack()
	if err != nil {
		t.Fatal(err)
	}
	framed := string(binary.BigEndian.AppendUint16(nil, uint16(len(packed)))) + string(packed)
	for name, c := range map[string]struct {
		send string
		want time.Duration
	}{
		"silent":        {"", idleTimeout},
		"half":          {framed[:7], idleTimeout},
		"does not read": {framed, writeTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			go io.WriteString(client, c.send)
			start := time.Now()
			New(nil, Config{}).serveConn(server)
			server.Close()
			if took := time.Since(start); took != c.want {
				t.Errorf("%s: served for %v, want %v", name, took, c.want)
			}
		})
	}
}

// Close ends idle connections and Serve, and a second Close is nothing.
func TestClose(t *testing.T) {
	w := newWorld(t, Config{})
	c, err := net.Dial("tcp", w.tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(question("consul", "SOA")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.ReadMsg(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.server.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-w.served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	w.served <- nil // for the cleanup
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.ReadMsg(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection: %v", err)
	}
	if c, err := net.Dial("tcp", w.tcp); err == nil {
		c.Close()
		t.Error("still listening")
	}
	packet, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.server.Serve(packet, listener); weft.KindOf(err) != weft.Conflict {
		t.Errorf("Serve after Close: %v", err)
	}
	if _, err := listener.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener was not closed: %v", err)
	}
}

// A socket that fails ends Serve with the reason, and closes the other one.
func TestServeEndsWhenASocketFails(t *testing.T) {
	w := newWorld(t, Config{})
	server := New(w.registry, Config{})
	packet, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(packet, listener) }()
	listener.Close()
	select {
	case err := <-served:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Serve goes on")
	}
	if _, _, err := packet.ReadFrom(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the other socket: %v", err)
	}
}

// On a socket bound to every address, an answer leaves from the one that was asked.
func TestAnswersLeaveFromTheAskedAddress(t *testing.T) {
	w := newWorld(t, Config{})
	w.add(weft.Passing, instance("1", "10.0.0.1", 80))
	packet, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := New(w.registry, Config{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(packet, listener) }()
	_, port, _ := net.SplitHostPort(packet.LocalAddr().String())
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.1.2.3"} {
		c := dns.Client{Timeout: 10 * time.Second} // its socket is connected: it hears only whom it asked
		a, _, err := c.Exchange(question("web.service.consul", "A"), net.JoinHostPort(host, port))
		if err != nil || show(a.Answer) != "A 10.0.0.1" {
			t.Errorf("%s: %v %v", host, a, err)
		}
	}
	if err := errors.Join(server.Close(), <-served); err != nil {
		t.Error(err)
	}
}

// A panic costs one question its answer, and nobody else theirs.
func TestPanicIsOneQuestionsFailure(t *testing.T) {
	broken := New(nil, Config{}) // has no registry to ask
	q, err := question("web.service.consul", "A").Pack()
	if err != nil {
		t.Fatal(err)
	}
	answer, _ := broken.newResponder().respond(nil, q, asker{})
	var m dns.Msg
	if err := m.Unpack(answer); err != nil || m.Rcode != dns.RcodeServerFailure || !m.Response {
		t.Errorf("%v %v", err, &m)
	}
}

// Whatever comes in: no panic, no answer to an answer, and an answer that is one,
// to the same question, within the size.
func FuzzRespond(f *testing.F) {
	st, err := store.Open(f.Context(), store.Config{Dir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	r, err := registry.Open(f.Context(), registry.Config{Store: st, Node: weft.Node{Name: "n", Address: "127.0.0.1"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { r.Close(); st.Close() })
	if _, err := r.Register(f.Context(), weft.Instance{Service: weft.NewServiceName("", "web"), Address: "10.0.0.1", Port: 80}); err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{"web.service.consul", "_web._tcp.consul", "web.default.svc.cluster.local", "1.0.0.10.in-addr.arpa", "x.example"} {
		m := question(name, "SRV")
		m.SetEdns0(1232, true)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	failed := make(chan string, 1)
	s := New(r, Config{Logger: failures(failed)})
	responder := s.newResponder()
	f.Fuzz(func(t *testing.T, b []byte) {
		out, _ := responder.respond(nil, b, asker{})
		select {
		case what := <-failed:
			t.Fatal(what)
		default:
		}
		if len(out) == 0 {
			return
		}
		var q, a dns.Msg
		if err := a.Unpack(out); err != nil || len(out) > advertisedUDP {
			t.Fatalf("%d bytes: %v", len(out), err)
		}
		if len(b) < 12 || b[2]&0x80 != 0 || !a.Response || a.Id != binary.BigEndian.Uint16(b) {
			t.Fatalf("answer %v to %x", &a, b)
		}
		if q.Unpack(b) == nil && a.Rcode != dns.RcodeFormatError && a.Rcode != dns.RcodeNotImplemented &&
			(len(a.Question) != 1 || a.Question[0] != q.Question[0]) {
			t.Fatalf("question %v, answer %v", &q, &a)
		}
	})
}
