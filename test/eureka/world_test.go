package eureka

import (
	"context"
	"fmt"
	"net"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/registry/consul"
	weftdns "github.com/weftmesh/weft/registry/dns"
	"github.com/weftmesh/weft/registry/eureka"
	"github.com/weftmesh/weft/store"
)

// world is a registry with three dialects before it, on loopback ports.
type world struct {
	*testing.T
	registry *registry.Registry
	eureka   string // http://host:port
	consul   *api.Client
	dns      string // host:port
}

func newWorld(t *testing.T) *world {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	must(t, err)
	r, err := registry.Open(t.Context(), registry.Config{Store: st, Node: weft.Node{Name: "server-1", Address: "127.0.0.1"}})
	must(t, err)
	e := eureka.New(r, eureka.Config{})
	w := &world{T: t, registry: r}
	w.serve(e, st)
	return w
}

// serve opens the doors, and closes them when the test ends.
func (w *world) serve(e *eureka.API, st *store.Store) {
	ctx, cancel := context.WithCancel(context.Background())
	leases := make(chan error, 1)
	go func() { leases <- e.Run(ctx) }()
	eurekaServer := httptest.NewServer(e)
	consulServer := httptest.NewUnstartedServer(consul.New(w.registry, consul.Config{}))
	consulServer.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	consulServer.Start()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(w.T, err)
	packets, err := net.ListenPacket("udp", ln.Addr().String())
	must(w.T, err)
	d := weftdns.New(w.registry, weftdns.Config{})
	served := make(chan error, 1)
	go func() { served <- d.Serve(packets, ln) }()
	w.eureka, w.dns = eurekaServer.URL, ln.Addr().String()
	config := api.DefaultConfig()
	config.Address = consulServer.Listener.Addr().String()
	w.consul, err = api.NewClient(config)
	must(w.T, err)
	w.Cleanup(func() {
		cancel()
		eurekaServer.Close()
		consulServer.Close()
		d.Close()
		for _, ended := range []chan error{leases, served} {
			if err := <-ended; err != nil {
				w.Error(err)
			}
		}
		w.registry.Close()
		st.Close()
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) eventually(what string, holds func() bool) {
	w.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("not in 20 s: %s", what)
		}
	}
}

// passing is what Consul's API says of a service.
func (w *world) passing(service string) []*api.ServiceEntry {
	w.Helper()
	list, _, err := w.consul.Health().Service(service, "", true, nil)
	must(w.T, err)
	return list
}

// lookup asks DNS over UDP, and returns the records as text without their TTL.
func (w *world) lookup(name string, qtype uint16) (records []string) {
	w.Helper()
	q := new(dns.Msg)
	q.SetQuestion(name, qtype)
	a, err := dns.Exchange(q, w.dns)
	must(w.T, err)
	for _, rr := range append(a.Answer, a.Extra...) {
		switch rr := rr.(type) {
		case *dns.A:
			records = append(records, "A "+rr.A.String())
		case *dns.SRV:
			records = append(records, fmt.Sprint("SRV ", rr.Port))
		}
	}
	return records
}
