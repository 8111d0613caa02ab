package dns

import (
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"github.com/weftmesh/weft"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The examples of RFC 9018 appendix A.
func TestCookiesAreThoseOfTheStandard(t *testing.T) {
	for _, c := range []struct {
		secret, client, addr string
		at                   uint32
		want                 string
	}{
		{"e5e973e5a6b2a43f48e7dc849e37bfcf", "2464c4abcf10c957", "198.51.100.100", 1559731985, "010000005cf79f111f8130c3eee29480"},
		{"e5e973e5a6b2a43f48e7dc849e37bfcf", "2464c4abcf10c957", "198.51.100.100", 1559734385, "010000005cf7a871d4a564a1442aca77"},
		{"445536bcd2513298075a5d379663c962", "22681ab97d52c298", "2001:db8:220:1:59de:d0f4:8769:82b8", 1559741961, "010000005cf7c609a6bb79d16625507a"},
	} {
		var got [serverCookie]byte
		k := bakerOf([16]byte(unhex(t, c.secret)))
		k.fill(&got, unhex(t, c.client), netip.MustParseAddr(c.addr), c.at)
		if hex.EncodeToString(got[:]) != c.want {
			t.Errorf("%s at %d: %x, want %s", c.addr, c.at, got, c.want)
		}
	}
}

func TestCookiesGrowOld(t *testing.T) {
	k := newBaker()
	here, there := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	const at = 1 << 31
	var server [serverCookie]byte
	client := []byte("12345678")
	k.fill(&server, client, here, at)
	option := append(client, server[:]...)
	for _, c := range []struct {
		from        netip.Addr
		now         uint32
		ours, fresh bool
	}{
		{here, at, true, true},
		{here, at + 1800, true, true},
		{here, at + 1801, true, false},
		{here, at + 3600, true, false},
		{here, at + 3601, false, false},
		{here, at - 300, true, true},
		{here, at - 301, false, false},
		{there, at, false, false},
	} {
		if ours, fresh := k.proves(option, c.from, c.now); ours != c.ours || fresh != c.fresh {
			t.Errorf("%+v: ours %v, fresh %v", c, ours, fresh)
		}
	}
	option[len(option)-1]++
	if ours, _ := k.proves(option, here, at); ours {
		t.Error("another hash is taken for ours")
	}
}

// A large answer goes only to who proved its address: a stranger gets little more
// than it sent, whatever size it says that it takes.
func TestLargeAnswersAreForTheProven(t *testing.T) {
	w := crowd(t, 300)
	stranger := asker{addr: netip.MustParseAddr("192.0.2.1")}
	r := w.server.newResponder()
	ask := func(from asker, cookie string) (*dns.Msg, int, string) {
		m := question("web.service.consul", "A")
		m.SetEdns0(65535, false)
		if cookie != "" {
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: cookie})
		}
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		out, _ := r.respond(nil, b, from)
		a := new(dns.Msg)
		if err := a.Unpack(out); err != nil {
			t.Fatal(err)
		}
		given := ""
		for _, o := range a.IsEdns0().Option {
			given = o.(*dns.EDNS0_COOKIE).Cookie
		}
		return a, len(out), given
	}
	if a, n, cookie := ask(stranger, ""); n > 1232 || !a.Truncated || cookie != "" {
		t.Errorf("without a cookie: %d bytes, TC %v, cookie %q", n, a.Truncated, cookie)
	}
	a, n, cookie := ask(stranger, "0102030405060708")
	if n > 1232 || !a.Truncated || len(cookie) != 2*(clientCookie+serverCookie) || cookie[:16] != "0102030405060708" {
		t.Errorf("with its own: %d bytes, TC %v, cookie %q", n, a.Truncated, cookie)
	}
	a, n, again := ask(stranger, cookie)
	if n < 300*16 || a.Truncated || again != cookie {
		t.Errorf("with ours: %d bytes, TC %v, cookie %q", n, a.Truncated, again)
	}
	if _, n, renewed := ask(asker{addr: netip.MustParseAddr("192.0.2.2")}, cookie); n > 1232 || renewed == cookie {
		t.Errorf("with another's: %d bytes, cookie %q", n, renewed)
	}
	if _, n, _ := ask(asker{addr: netip.MustParseAddr("127.0.0.1")}, ""); n < 300*16 {
		t.Errorf("on this machine: %d bytes", n)
	}
	for _, bad := range []string{"01", "01020304050607", "010203040506070809"} {
		if a, _, _ := func() (a *dns.Msg, n int, s string) {
			m := question("web.service.consul", "A")
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: bad})
			b, _ := m.Pack()
			out, _ := r.respond(nil, b, stranger)
			a = new(dns.Msg)
			if err := a.Unpack(out); err != nil {
				t.Fatal(err)
			}
			return a, len(out), ""
		}(); a.Rcode != dns.RcodeFormatError {
			t.Errorf("cookie %s: %s", bad, dns.RcodeToString[a.Rcode])
		}
	}
	w.add(weft.Passing, instance("more", "10.9.0.1", 80))
}
