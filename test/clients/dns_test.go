package clients

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/miekg/dns"

	"github.com/weftmesh/weft/test/world"
)

// crowd is how many instances do not fit in a datagram.
const crowd = 300

// populate registers what the resolvers are asked for.
func (s *server) populate() {
	s.Helper()
	s.passes("web", "web-1", "10.0.0.1", 8081, "v1")
	s.passes("web", "web-2", "10.0.0.2", 8082, "v2")
	must(s.T, s.api.Agent().FailTTL("service:web-2", ""))
	s.passes("web", "web-3", "10.0.0.3", 8083, "v2")
	s.passes("six", "six-1", "2001:db8::7", 8086)
	_, err := s.api.Catalog().Register(&api.CatalogRegistration{Node: "far", Address: "10.2.0.1", Service: &api.AgentService{ID: "db-1", Service: "db", Port: 5432}}, nil)
	must(s.T, err)
	_, _, err = s.api.PreparedQuery().Create(&api.PreparedQueryDefinition{Name: "nearest", Service: api.ServiceQuery{Service: "web", OnlyPassing: true}}, nil)
	must(s.T, err)
	for i := 0; i < crowd; i += 50 { // a transaction takes 64 operations
		var ops api.TxnOps
		for j := i; j < i+50; j++ {
			ops = append(ops, &api.TxnOp{Service: &api.ServiceTxnOp{Verb: api.ServiceSet, Node: "far", Service: api.AgentService{
				ID: fmt.Sprint("crowd-", j), Service: "crowd", Address: fmt.Sprintf("10.3.%d.%d", j/100, j%100), Port: 1000 + j}}})
		}
		ok, answer, _, err := s.api.Txn().Txn(ops, nil)
		if err != nil || !ok {
			s.Fatalf("register a crowd: %v %+v", err, answer)
		}
	}
}

// resolver is Go's own, which asks this server alone.
func (s *server) resolver(network string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, given, _ string) (net.Conn, error) {
		if network != "" {
			given = network
		}
		return (&net.Dialer{}).DialContext(ctx, given, s.dns)
	}}
}

func TestGoResolver(t *testing.T) {
	s := start(t)
	s.populate()
	for _, network := range []string{"", "tcp"} { // "" begins with UDP, as it does by itself
		r := s.resolver(network)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		for name, want := range map[string][]string{
			"web.service.consul.":                     {"10.0.0.1", "10.0.0.3"},
			"v2.web.service.consul.":                  {"10.0.0.3"},
			"web.service.dc1.consul.":                 {"10.0.0.1", "10.0.0.3"},
			"nearest.query.consul.":                   {"10.0.0.1", "10.0.0.3"},
			"far.node.consul.":                        {"10.2.0.1"},
			"db.service.consul.":                      {"10.2.0.1"},
			"six.service.consul.":                     {"2001:db8::7"},
			"0a000001.addr.dc1.consul.":               {"10.0.0.1"},
			"web.default.svc.cluster.local.":          {"10.0.0.1", "10.0.0.3"},
			"10-0-0-3.web.default.svc.cluster.local.": {"10.0.0.3"},
		} {
			got, err := r.LookupHost(ctx, name)
			slices.Sort(got)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: %q %v, want %q", name, got, err, want)
			}
		}
		for _, name := range []string{"absent.service.consul.", "absent.default.svc.cluster.local."} {
			_, err := r.LookupHost(ctx, name)
			if e, ok := err.(*net.DNSError); !ok || !e.IsNotFound || e.IsTimeout {
				t.Errorf("%s: %v, want that there is no such host", name, err)
			}
		}
		_, targets, err := r.LookupSRV(ctx, "web", "tcp", "service.consul")
		must(t, err)
		for _, target := range targets {
			addresses, err := r.LookupHost(ctx, target.Target)
			if err != nil || len(addresses) != 1 || !strings.HasSuffix(addresses[0], fmt.Sprint(target.Port%10)) {
				t.Errorf("%+v is at %q %v", target, addresses, err)
			}
		}
		if len(targets) != 2 {
			t.Errorf("%d targets, want 2", len(targets))
		}
		_, many, err := r.LookupSRV(ctx, "", "", "crowd.service.consul")
		if err != nil || len(many) != crowd {
			t.Errorf("%d of a crowd of %d: %v", len(many), crowd, err)
		}
		names, err := r.LookupAddr(ctx, "10.2.0.1")
		if err != nil || !slices.Contains(names, "far.node.dc1.consul.") {
			t.Errorf("10.2.0.1 is %q: %v", names, err)
		}
	}
	s.Deregister("web-3")
	world.Eventually(t, soon, "the end of an instance", func() error {
		got, err := s.resolver("").LookupHost(t.Context(), "web.service.consul.")
		if err == nil && !slices.Equal(got, []string{"10.0.0.1"}) {
			err = fmt.Errorf("%q", got)
		}
		return err
	})
}

// A search list tries names outside of the zones before the one that is meant: they
// must be refused at once, and the right one be found.
func TestSearchList(t *testing.T) {
	dig := program(t, "dig")
	s := start(t)
	s.populate()
	host, port, err := net.SplitHostPort(s.dns)
	must(t, err)
	for _, domain := range []string{"service.consul", "default.svc.cluster.local"} {
		begin := time.Now()
		out, err := exec.CommandContext(t.Context(), dig, "@"+host, "-p", port, "+domain="+domain, "+search", "+ndots=5", "+short", "web", "A").CombinedOutput()
		lines := strings.Fields(string(out))
		slices.Sort(lines)
		if err != nil || !slices.Equal(lines, []string{"10.0.0.1", "10.0.0.3"}) {
			t.Errorf("%s: %v\n%s", domain, err, out)
		}
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("%s took %s", domain, d)
		}
	}
}

// What dig can be told to send, and what must be in its answer.
func TestDig(t *testing.T) {
	dig := program(t, "dig")
	s := start(t)
	s.populate()
	host, port, err := net.SplitHostPort(s.dns)
	must(t, err)
	for _, test := range []struct {
		ask  string
		want []string
		not  []string
	}{
		{"web.service.consul A", []string{"status: NOERROR", "flags: qr aa", "ANSWER: 2,", "EDNS: version: 0", "(good)"}, []string{"10.0.0.2"}},
		{"+noedns +nocookie web.service.consul A", []string{"status: NOERROR", "ANSWER: 2,"}, []string{"EDNS"}},
		{"+tcp web.service.consul SRV", []string{"ANSWER: 2,", "ADDITIONAL: 3", "1 1 8081 0a000001.addr.dc1.consul.", "A\t10.0.0.1", "(TCP)"}, []string{"8082"}},
		{"+notcp +ignore crowd.service.consul SRV", []string{"status: NOERROR", " tc"}, nil},
		{"+notcp +ignore +noedns crowd.service.consul A", []string{"status: NOERROR", " tc"}, nil},
		{"+notcp +ignore +bufsize=4096 crowd.service.consul A", []string{"status: NOERROR"}, nil},
		{"+notcp crowd.service.consul A", []string{"Truncated, retrying in TCP mode", fmt.Sprintf("ANSWER: %d,", crowd)}, nil},
		{"+tcp +keepalive crowd.service.consul SRV", []string{fmt.Sprintf("ANSWER: %d,", crowd)}, nil},
		{"+dnssec web.service.consul A", []string{"ANSWER: 2,", "flags: do"}, nil},
		{"+edns=1 +noednsneg web.service.consul A", []string{"status: BADVERS"}, nil},
		{"+ednsopt=65001:cafe web.service.consul A", []string{"ANSWER: 2,"}, nil},
		{"+subnet=192.0.2.0/24 web.service.consul A", []string{"ANSWER: 2,"}, nil},
		{"+cookie=0123456789abcdef web.service.consul A", []string{"COOKIE: 0123456789abcdef", "(good)"}, nil},
		{"+padding=128 web.service.consul A", []string{"ANSWER: 2,"}, nil},
		{"WeB.SeRvIcE.CoNsUl A", []string{"WeB.SeRvIcE.CoNsUl.", "ANSWER: 2,"}, nil},
		{"web.service.consul MX", []string{"status: NOERROR", "ANSWER: 0,", "SOA\tns.consul."}, nil},
		{"absent.service.consul A", []string{"status: NXDOMAIN", "SOA\tns.consul."}, nil},
		{"consul SOA", []string{"ANSWER: 1,", "SOA\tns.consul. postmaster.consul."}, nil},
		{"consul NS", []string{"status: NOERROR", "IN\tNS"}, nil},
		{"-x 10.0.0.1", []string{"PTR\tweb.service.dc1.consul."}, nil},
		{"-x 2001:db8::7", []string{"PTR six.service.dc1.consul."}, nil},
		{"example.com A", []string{"status: REFUSED"}, nil},
		{"web.service.consul AXFR +tcp", []string{"Transfer failed"}, nil},
		{"+opcode=notify web.service.consul SOA", []string{"status: NOTIMP"}, nil},
		{"-c CH version.bind TXT", nil, []string{"SERVFAIL", "timed out"}},
		{"dns-version.cluster.local TXT", []string{`"1.1.0"`}, nil},
		{"web.default.svc.cluster.local SRV", []string{"8081 10-0-0-1.web.default.svc.cluster.local.", "A\t10.0.0.1"}, nil},
		{"absent.default.svc.cluster.local A", []string{"status: NXDOMAIN", "cluster.local."}, nil},
		{"default.svc.cluster.local A", []string{"status: NOERROR", "ANSWER: 0,"}, nil},
	} {
		t.Run(test.ask, func(t *testing.T) {
			args := append([]string{"@" + host, "-p", port, "+tries=1", "+timeout=5"}, strings.Fields(test.ask)...)
			out, err := exec.CommandContext(t.Context(), dig, args...).CombinedOutput()
			text := string(out)
			if err != nil && !strings.Contains(text, "Transfer failed") {
				t.Errorf("dig: %v", err)
			}
			squeezed := strings.ReplaceAll(text, "\t\t", "\t")
			for _, part := range test.want {
				if !strings.Contains(squeezed, part) {
					t.Errorf("%q is missing", part)
				}
			}
			for _, part := range test.not {
				if strings.Contains(squeezed, part) {
					t.Errorf("%q is there", part)
				}
			}
			if t.Failed() {
				t.Logf("%s", text)
			}
		})
	}
}

// Many questions on one connection are answered, whatever the order, and many clients
// at once are too.
func TestPipelinedQuestions(t *testing.T) {
	s := start(t)
	s.populate()
	conn, err := dns.DialTimeout("tcp", s.dns, soon)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	asked := make(map[uint16]bool)
	for i := range 200 {
		q := new(dns.Msg)
		q.SetQuestion("web.service.consul.", dns.TypeSRV)
		q.Id = uint16(i + 1)
		asked[q.Id] = true
		must(t, conn.WriteMsg(q))
	}
	for len(asked) > 0 {
		a, err := conn.ReadMsg()
		must(t, err)
		if !asked[a.Id] || len(a.Answer) != 2 {
			t.Fatalf("answer %d with %d records; %d are awaited", a.Id, len(a.Answer), len(asked))
		}
		delete(asked, a.Id)
	}
	var clients sync.WaitGroup
	for range 20 {
		clients.Go(func() {
			for range 20 {
				q := new(dns.Msg)
				q.SetQuestion("web.service.consul.", dns.TypeA)
				a, err := dns.Exchange(q, s.dns)
				if err != nil || len(a.Answer) != 2 {
					t.Errorf("%v %v", a, err)
					return
				}
			}
		})
	}
	clients.Wait()
}

func TestNodeResolver(t *testing.T) {
	node := program(t, "node")
	s := start(t)
	s.populate()
	dir, err := os.Getwd()
	must(t, err)
	steps(t, dir, node, "resolve.js", s.dns)
}
