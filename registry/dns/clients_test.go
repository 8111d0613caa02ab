package dns

import (
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

func TestWhoMayAsk(t *testing.T) {
	s := New(nil, Config{Clients: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}})
	for client, want := range map[string]bool{
		"10.1.2.3": true, "11.0.0.1": false, "127.0.0.9": true, "::1": true, "fd12::1": true, "fe80::1%eth0": false,
		"::ffff:10.1.2.3": true, "::ffff:192.0.2.1": false,
	} {
		if got := s.serves(netip.MustParseAddr(client)); got != want {
			t.Errorf("%s: %v, want %v", client, got, want)
		}
	}
	if s.serves(netip.Addr{}) {
		t.Error("a client without an address is served")
	}
	if !New(nil, Config{}).serves(netip.MustParseAddr("192.0.2.1")) {
		t.Error("without a list somebody is refused")
	}
}

func TestStrangersAreRefused(t *testing.T) {
	m := new(dns.Msg)
	m.SetQuestion("web.service.consul.", dns.TypeA)
	question, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var a dns.Msg
	if err := a.Unpack(turnAway(nil, question)); err != nil || a.Rcode != dns.RcodeRefused || a.Id != m.Id || !a.Response {
		t.Errorf("%v: %v", err, &a)
	}
	m.Response = true
	answer, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if got := turnAway(nil, answer); got != nil {
		t.Errorf("an answer is answered: %x", got)
	}
	if got := turnAway(nil, question[:11]); got != nil {
		t.Errorf("rubbish is answered: %x", got)
	}
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	if clientOf(here) != (netip.Addr{}) {
		t.Error("a pipe has an address")
	}
}
