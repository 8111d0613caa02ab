package node

import (
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
	"github.com/weftmesh/weft/control/resource"
	weftdns "github.com/weftmesh/weft/registry/dns"
)

// runningServer is a whole server on loopback ports.
type runningServer struct {
	*testing.T
	*Server
	client *client.Client
}

func startServer(t *testing.T) *runningServer { return serveTest(t, onFreePorts(t)) }

func onFreePorts(t *testing.T) ServerConfig {
	c := ServerConfig{DataDir: t.TempDir(), Node: "server-1", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, door := range []*string{&c.API, &c.Consul, &c.Eureka, &c.DNS, &c.Control, &c.OTLPHTTP, &c.OTLPGRPC} {
		*door = "127.0.0.1:0"
	}
	return c
}

func serveTest(t *testing.T, c ServerConfig) *runningServer {
	t.Helper()
	s, err := NewServer(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	api, err := client.New(t.Context(), client.At(s.doors.api.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		api.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &runningServer{t, s, api}
}

// dig asks over UDP, and returns the answers as "type data", sorted; or what is wrong.
func (s *runningServer) dig(name string, rrtype uint16) string {
	s.Helper()
	answer, err := dns.Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(name), rrtype), s.doors.dnsPackets.LocalAddr().String())
	if err != nil {
		s.Fatal(err)
	}
	if answer.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[answer.Rcode]
	}
	var list []string
	for _, r := range answer.Answer {
		list = append(list, dns.TypeToString[r.Header().Rrtype]+" "+strings.TrimPrefix(r.String(), r.Header().String()))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func (s *runningServer) eventually(name string, rrtype uint16, want string) {
	s.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got := s.dig(name, rrtype)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("%s %s: %q, want %q", name, dns.TypeToString[rrtype], got, want)
		}
	}
}

const twoServices = `
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  ports:
  - {name: http, port: 80, targetPort: 8080}
---
apiVersion: v1
kind: Service
metadata: {name: bank, namespace: shop}
spec: {type: ExternalName, externalName: api.bank.example}
`

// A Service that is applied has its names, until it is deleted.
func TestAppliedServicesHaveNames(t *testing.T) {
	s := startServer(t)
	const orders, bank = "orders.shop.svc.cluster.local", "bank.shop.svc.cluster.local"
	if got := s.dig(orders, dns.TypeA); got != "NXDOMAIN" {
		t.Fatalf("before: %q", got)
	}
	if _, err := s.client.Apply(t.Context(), []client.File{{Name: "shop.yaml", Data: twoServices}}, client.ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	s.eventually(orders, dns.TypeA, "A 10.96.0.1")
	s.eventually("_http._tcp."+orders, dns.TypeSRV, "SRV 1 1 80 orders.shop.svc.cluster.local.")
	s.eventually("1.0.96.10.in-addr.arpa", dns.TypePTR, "PTR orders.shop.svc.cluster.local.")
	s.eventually(bank, dns.TypeA, "CNAME api.bank.example.")
	if err := s.client.Delete(t.Context(), "Service", "shop", "orders"); err != nil {
		t.Fatal(err)
	}
	s.eventually(orders, dns.TypeA, "NXDOMAIN")
	s.eventually(bank, dns.TypeA, "CNAME api.bank.example.")
}

func TestServicesInWordsOfDNS(t *testing.T) {
	parsed, problems := resource.Parse([]resource.File{{Name: "a.yaml", Data: []byte(`
apiVersion: v1
kind: Service
metadata: {name: head, namespace: shop}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  ports:
  - {name: dns, port: 53, protocol: UDP, targetPort: dns}
  - {name: web, port: 80, targetPort: 8080}
---
apiVersion: v1
kind: Service
metadata: {name: two}
spec: {clusterIPs: [10.96.0.2, "fd00::2"]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: other}
spec: {host: two}
`)}})
	if errs := problems.Errors(); len(errs) > 0 {
		t.Fatal(errs)
	}
	var all []resource.Resource
	for _, r := range parsed {
		all = append(all, *r)
	}
	want := []weftdns.Service{
		{Name: weft.NewServiceName("shop", "head"), PublishNotReady: true, Ports: []weftdns.ServicePort{
			{Name: "dns", Protocol: "udp", Port: 53}, {Name: "web", Protocol: "tcp", Port: 80, Target: 8080},
		}},
		{Name: weft.NewServiceName("", "two"), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.2"), netip.MustParseAddr("fd00::2")}},
	}
	if got := dnsServices(all); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
