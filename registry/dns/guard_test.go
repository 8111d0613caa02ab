package dns

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
)

// fleet registers n instances of a service, with a check each, on addresses of theirs.
func (w *world) fleet(service string, n int, host func(i int) string) {
	w.Helper()
	for i := range n {
		in := weft.Instance{ID: fmt.Sprintf("%s-%d", service, i), Service: weft.NewServiceName("", service), Address: host(i), Port: 80, Tags: []string{"http"}}
		in.Checks = []weft.Check{{ID: in.ID, Kind: weft.StaticCheck, Status: weft.Passing}}
		if _, err := w.registry.Register(w.Context(), in); err != nil {
			w.Fatal(err)
		}
	}
}

// turn sets the checks of a fleet.
func (w *world) turn(service string, n int, status weft.Health) {
	w.Helper()
	for i := range n {
		id := fmt.Sprintf("%s-%d", service, i)
		if err := w.registry.SetCheck(w.Context(), "", id, weft.Check{Kind: weft.StaticCheck, Status: status, Output: "no route to the database"}); err != nil {
			w.Fatal(err)
		}
	}
}

// noteOf returns the explanation of an answer, as "code text"; "" without one.
func noteOf(m *dns.Msg) string {
	opt := m.IsEdns0()
	if opt == nil {
		return ""
	}
	for _, o := range opt.Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok {
			return fmt.Sprintf("%d %s", e.InfoCode, e.ExtraText)
		}
	}
	return ""
}

func withEDNS(name, rrtype string, size uint16) *dns.Msg {
	return question(name, rrtype).SetEdns0(size, false)
}

func tenNet(i int) string { return fmt.Sprintf("10.0.%d.%d", i/250, 1+i%250) }

func TestGuardIsToldWithTheAnswer(t *testing.T) {
	w := newWorld(t, Config{})
	w.fleet("order", 3, tenNet)
	w.fleet("pay", 3, func(i int) string { return fmt.Sprintf("pay-%d.example.com", i) })
	w.fleet("stock", 3, tenNet)
	forms := []struct {
		name, rrtype string
		records      int
	}{
		{"order.service.consul", "A", 3}, {"http.order.service.consul", "A", 3}, {"order.service.consul", "SRV", 3},
		{"_order._tcp.service.consul", "SRV", 3}, {"order.service.consul", "SVCB", 1},
		{"order.default.svc.cluster.local", "A", 3}, {"order.default.svc.cluster.local", "SRV", 3},
		{"_http._tcp.order.default.svc.cluster.local", "SRV", 3}, {"10-0-0-2.order.default.svc.cluster.local", "A", 1},
		{"order.default.svc.cluster.local.default.svc.cluster.local", "A", 4}, // through a search path: an alias before them
		{"order.service.consul", "AAAA", 0}, {"pay.service.consul", "A", 1}, {"stock.service.consul", "A", 3},
		{"10.0.0.1.in-addr.arpa", "PTR", 0},
	}
	look := func(when string, rcode int, guarded bool) {
		t.Helper()
		for _, f := range forms {
			ours := !strings.HasPrefix(f.name, "stock") && !strings.HasSuffix(f.name, "arpa")
			m := w.exchange("udp", withEDNS(f.name, f.rrtype, 1232))
			wantCode, wantRecords, wantNote := dns.RcodeSuccess, f.records, ""
			if !ours {
				if strings.HasSuffix(f.name, "arpa") {
					wantCode = m.Rcode
				}
			} else {
				wantCode = rcode
				if rcode != dns.RcodeSuccess {
					wantRecords = 0
				}
				if guarded && f.records > 0 {
					wantNote = "3 3 of 3 instances failed"
				}
			}
			if m.Rcode != wantCode || len(m.Answer) != wantRecords || !strings.HasPrefix(noteOf(m), wantNote) || wantNote == "" && noteOf(m) != "" {
				t.Errorf("%s, %s %s: %s, %d records, note %q; want %s, %d, %q", when, f.name, f.rrtype,
					dns.RcodeToString[m.Rcode], len(m.Answer), noteOf(m), dns.RcodeToString[wantCode], wantRecords, wantNote)
			}
			if plain := w.ask(f.name, f.rrtype); plain.IsEdns0() != nil || len(plain.Answer) != len(m.Answer) || plain.Rcode != m.Rcode {
				t.Errorf("%s, %s %s without EDNS: %v", when, f.name, f.rrtype, plain)
			}
		}
	}
	look("before", dns.RcodeSuccess, false)
	w.turn("order", 3, weft.Critical)
	w.turn("pay", 3, weft.Critical)
	look("guarded", dns.RcodeSuccess, true)
	if note := noteOf(w.exchange("udp", withEDNS("order.service.consul", "A", 1232))); !strings.Contains(note, "no route to the database") {
		t.Errorf("the note does not say which failure: %q", note)
	}
	for _, name := range []string{"order", "pay"} {
		if _, err := w.registry.ReleaseGuard(t.Context(), weft.NewServiceName("", name)); err != nil {
			t.Fatal(err)
		}
	}
	look("released", dns.RcodeNameError, false)
	w.turn("order", 3, weft.Passing)
	w.turn("pay", 3, weft.Passing)
	look("healed", dns.RcodeSuccess, false)
}

// What does not fit is left out before any record is, and TC says so.
func TestGuardsNoteGivesWayToRecords(t *testing.T) {
	w := newWorld(t, Config{})
	w.fleet("order", 70, tenNet) // 70 records of 16 bytes
	w.turn("order", 70, weft.Critical)
	m := w.exchange("udp", withEDNS("order.service.consul", "A", 1232))
	if len(m.Answer) != 70 || noteOf(m) != "" || !m.Truncated {
		t.Errorf("%d records, note %q, TC %v", len(m.Answer), noteOf(m), m.Truncated)
	}
	m = w.exchange("tcp", withEDNS("order.service.consul", "A", 1232))
	if len(m.Answer) != 70 || noteOf(m) == "" || m.Truncated {
		t.Errorf("over TCP %d records, note %q, TC %v", len(m.Answer), noteOf(m), m.Truncated)
	}
	ask := withEDNS("order.service.consul", "A", 4096)
	ask.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}}
	m = w.exchange("udp", ask)
	if len(m.Answer) != 70 || noteOf(m) == "" || len(m.IsEdns0().Option) != 2 || m.Truncated {
		t.Errorf("with a cookie: %d records, options %v", len(m.Answer), m.IsEdns0().Option)
	}
}

func TestNoteIsCutAtALetter(t *testing.T) {
	w := newWorld(t, Config{})
	w.fleet("order", 3, tenNet)
	for i := range 3 {
		id := fmt.Sprintf("order-%d", i)
		if err := w.registry.SetCheck(t.Context(), "", id, weft.Check{Kind: weft.StaticCheck, Status: weft.Critical, Output: strings.Repeat("é", 500)}); err != nil {
			t.Fatal(err)
		}
	}
	note := noteOf(w.exchange("udp", withEDNS("order.service.consul", "A", 1232)))
	if len(note) > maxNote+2 || !strings.HasSuffix(note, "é") {
		t.Errorf("%d bytes: %q", len(note), note)
	}
}

// What is kept with an answer must not outlive what it was made of.
func TestNoteOfAKeptAnswer(t *testing.T) {
	w := newWorld(t, Config{})
	w.add(weft.Passing, instance("well", "10.1.0.1", 80))
	w.fleet("web", 3, tenNet)
	in, _ := w.registry.Instance(weft.InstanceKey{Node: "Server-1", ID: "well"})
	turnWell := func(status weft.Health) {
		t.Helper()
		if err := w.registry.SetCheck(t.Context(), "", in.Checks[0].ID, weft.Check{Kind: weft.StaticCheck, Status: status}); err != nil {
			t.Fatal(err)
		}
	}
	w.turn("web", 3, weft.Critical)
	for range 3 {
		for _, c := range []struct {
			status  weft.Health
			records int
		}{{weft.Critical, 4}, {weft.Passing, 1}} {
			turnWell(c.status)
			m := w.exchange("udp", withEDNS("web.service.consul", "A", 1232))
			_, guarded := w.registry.Guard(weft.NewServiceName("", "web"))
			if len(m.Answer) != c.records || (noteOf(m) != "") != guarded || guarded != (c.status == weft.Critical) {
				t.Errorf("%s: %d records, note %q, guarded %v", c.status, len(m.Answer), noteOf(m), guarded)
			}
		}
	}
}
