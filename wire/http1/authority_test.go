package http1

import (
	"net/netip"
	"strings"
	"testing"
)

// FuzzIPv6 holds validIPv6 against net/netip. Its seeds are its table.
func FuzzIPv6(f *testing.F) {
	for _, address := range []string{
		"::", "::1", "1::", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1::8", "ABCD:ef::",
		"1:2:3:4:5:6:1.2.3.4", "::1.2.3.4", "::255.255.255.255", "1::0.0.0.0",
		"", ":", ":::", "1", "1:", ":1", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7:8::", "1::2::3",
		"12345::", "::12345", "g::", "1::2:", "1:::2", "1.2.3.4", "::1.2.3", "::1.2.3.4.5", "::1.2.3.256",
		"::1.2.3.04", "::1.2.3.", "::1..3.4", "::a.2.3.4", "1:2:3:4:5:6:7:1.2.3.4", "::1.2.3.4:5", "::1%eth0",
	} {
		f.Add(address)
	}
	f.Fuzz(func(t *testing.T, address string) {
		addr, err := netip.ParseAddr(address)
		want := err == nil && addr.Is6() && addr.Zone() == "" && !strings.Contains(address, "%")
		if got := validIPv6([]byte(address)); got != want {
			t.Fatalf("%q is valid: %v, net/netip: %v (%v)", address, got, want, err)
		}
	})
}
