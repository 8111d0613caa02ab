package dns

import (
	"fmt"
	"testing"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
	"github.com/weftmesh/weft/store"
)

// One question from bytes to bytes, of a service with ten instances.
func BenchmarkRespond(b *testing.B) {
	st, err := store.Open(b.Context(), store.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	r, err := registry.Open(b.Context(), registry.Config{Store: st, Node: weft.Node{Name: "n", Address: "127.0.0.1"}})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	for i := range 10 {
		if _, err := r.Register(b.Context(), instance(fmt.Sprint(i), fmt.Sprintf("10.0.0.%d", i+1), 80)); err != nil {
			b.Fatal(err)
		}
	}
	s := New(r, Config{})
	for _, rrtype := range []string{"A", "SRV"} {
		q, err := question("web.service.consul", rrtype).Pack()
		if err != nil {
			b.Fatal(err)
		}
		b.Run(rrtype, func(b *testing.B) {
			b.ReportAllocs()
			buffer := make([]byte, 0, dns.MinMsgSize)
			responder := s.newResponder()
			for b.Loop() {
				if answer, _ := responder.respond(buffer, q, asker{}); len(answer) < 100 {
					b.Fatal("short answer")
				}
			}
		})
	}
}
