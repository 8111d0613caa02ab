package proxyproto

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// v2 builds a header from what follows the signature.
func v2(versionCommand, familyTransport byte, block ...byte) []byte {
	b := append([]byte(v2Start), versionCommand, familyTransport, byte(len(block)>>8), byte(len(block)))
	return append(b, block...)
}

var (
	block4 = []byte{192, 0, 2, 1, 198, 51, 100, 9, 0x30, 0x39, 0x01, 0xbb} // 192.0.2.1:12345 → 198.51.100.9:443
	blockU = append(padded("/run/a.sock"), padded("\x00abstract")...)
)

func padded(path string) []byte { return appendPath(nil, []byte(path)) }

func with(block []byte, more ...byte) []byte { return append(slices.Clone(block), more...) }

func TestParseLine(t *testing.T) {
	tcp4 := Header{Version: 1, Source: ap("192.168.0.1:56324"), Destination: ap("192.168.0.11:443")}
	for _, c := range []struct {
		line   string
		want   Header
		reason string
	}{
		{line: "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", want: tcp4},
		{line: "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
			want: Header{Version: 1, Source: ap("255.255.255.255:65535"), Destination: ap("255.255.255.255:65535")}},
		{line: "PROXY TCP4 0.0.0.0 1.2.3.4 0 1\r\n", want: Header{Version: 1, Source: ap("0.0.0.0:0"), Destination: ap("1.2.3.4:1")}},
		{line: "PROXY TCP6 2001:db8::1 ::1 1 2\r\n", want: Header{Version: 1, Source: ap("[2001:db8::1]:1"), Destination: ap("[::1]:2")}},
		{line: "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
			want: Header{Version: 1, Source: ap("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"), Destination: ap("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")}},
		{line: "PROXY TCP6 ::ffff:10.0.0.1 ::1 1 2\r\n", want: Header{Version: 1, Source: ap("10.0.0.1:1"), Destination: ap("[::1]:2")}},
		{line: "PROXY UNKNOWN\r\n", want: Header{Version: 1}},
		{line: "PROXY UNKNOWN what ever  it is\r\n", want: Header{Version: 1}},
		// the longest line there can be: 107 bytes
		{line: "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", want: Header{Version: 1}},

		{line: "PROXY UNKNOWN " + strings.Repeat("x", 92) + "\r\n", reason: "too_large"}, // 108 bytes
		{line: "PROXY UNKNOWNS\r\n", reason: "bad_family"},
		{line: "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", reason: "bad_line"},
		{line: "PROXY \n", reason: "bad_line"},
		{line: "PROXY \r\n", reason: "bad_family"},
		{line: "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r\n", reason: "bad_line"},
		{line: "PROXY TCP4\t1.2.3.4 1.2.3.4 1 2\r\n", reason: "bad_line"},
		{line: "PROXY UNKNOWN \x00\r\n", reason: "bad_line"},
		{line: "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", reason: "bad_line"},
		{line: "PROXY TCP4\r\n", reason: "bad_line"},
		{line: "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", reason: "bad_line"},
		{line: "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", reason: "bad_line"},
		{line: "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n", reason: "bad_family"},
		{line: "PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n", reason: "bad_line"},
		{line: "PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n", reason: "bad_family"},
		{line: "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", reason: "bad_family"},
		{line: "PROXY TCP4 ::1 ::1 1 2\r\n", reason: "bad_address"},
		{line: "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", reason: "bad_address"},
		{line: "PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n", reason: "bad_address"},
		{line: "PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n", reason: "bad_address"},
		{line: "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", reason: "bad_address"},
		{line: "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", reason: "bad_port"},
		{line: "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", reason: "bad_port"},
		{line: "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", reason: "bad_port"},
		{line: "PROXY TCP4 1.2.3.4 1.2.3.4 1 \r\n", reason: "bad_port"},
		{line: "PROXX TCP4 1.2.3.4 1.2.3.4 1 2\r\n", reason: "not_proxy"},
		{line: "proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n", reason: "not_proxy"},
		{line: "GET / HTTP/1.1\r\n", reason: "not_proxy"},
		{line: "\r\n\r\nGET", reason: "not_proxy"},
	} {
		check(t, []byte(c.line), c.want, c.reason)
	}
}

func TestParseBinary(t *testing.T) {
	four := Header{Version: 2, Source: ap("192.0.2.1:12345"), Destination: ap("198.51.100.9:443")}
	datagram := four
	datagram.Datagram = true
	tagged := four
	tagged.TLVs = AppendTLV(AppendTLV(nil, TypeAuthority, []byte("shop.example")), TypeNoop, nil)
	checked := four
	checked.TLVs = TLVs{TypeCRC32C, 0, 4, 0x15, 0x3c, 0x7f, 0x96}
	mapped := append(bytes.Repeat([]byte{0}, 10), 0xff, 0xff, 10, 0, 0, 1)
	six := append(append(slices.Clone(mapped), netip.IPv6Loopback().AsSlice()...), 0, 1, 0, 2)
	long := append(slices.Clone(block4), AppendTLV(nil, 0xe0, make([]byte, DefaultLimit-16-12-3))...)
	for name, c := range map[string]struct {
		wire   []byte
		want   Header
		reason string
	}{
		"tcp over IPv4":           {wire: v2(0x21, 0x11, block4...), want: four},
		"udp over IPv4":           {wire: v2(0x21, 0x12, block4...), want: datagram},
		"IPv4 mapped into IPv6":   {wire: v2(0x21, 0x21, six...), want: Header{Version: 2, Source: ap("10.0.0.1:1"), Destination: ap("[::1]:2")}},
		"unix":                    {wire: v2(0x21, 0x31, blockU...), want: Header{Version: 2, Unix: true, SourcePath: []byte("/run/a.sock"), DestinationPath: []byte("\x00abstract")}},
		"unspecified":             {wire: v2(0x21, 0x00), want: Header{Version: 2}},
		"local":                   {wire: v2(0x20, 0x00), want: Header{Version: 2, Local: true}},
		"local skips what it has": {wire: v2(0x20, 0xff, 1, 2, 3), want: Header{Version: 2, Local: true}},
		"TLVs":                    {wire: v2(0x21, 0x11, with(block4, tagged.TLVs...)...), want: tagged},
		"checksum":                {wire: v2(0x21, 0x11, with(block4, checked.TLVs...)...), want: checked},
		"as long as may be": {wire: v2(0x21, 0x11, long...), want: Header{Version: 2, Source: four.Source, Destination: four.Destination,
			TLVs: TLVs(long[12:])}},

		"one byte longer":       {wire: v2(0x21, 0x11, append(long, 0)...), reason: "too_large"},
		"version 1 in binary":   {wire: v2(0x11, 0x11, block4...), reason: "bad_version"},
		"version 3":             {wire: v2(0x31, 0x11, block4...), reason: "bad_version"},
		"unknown command":       {wire: v2(0x22, 0x11, block4...), reason: "bad_command"},
		"unknown family":        {wire: v2(0x21, 0x41, block4...), reason: "bad_family"},
		"unknown transport":     {wire: v2(0x21, 0x13, block4...), reason: "bad_family"},
		"family, no transport":  {wire: v2(0x21, 0x10, block4...), reason: "bad_family"},
		"transport, no family":  {wire: v2(0x21, 0x01), reason: "bad_family"},
		"IPv4 in 11 bytes":      {wire: v2(0x21, 0x11, block4[:11]...), reason: "short_block"},
		"IPv6 in 12 bytes":      {wire: v2(0x21, 0x21, block4...), reason: "short_block"},
		"unix in 12 bytes":      {wire: v2(0x21, 0x31, block4...), reason: "short_block"},
		"half a TLV":            {wire: v2(0x21, 0x11, with(block4, 4, 0)...), reason: "bad_tlv"},
		"TLV beyond the block":  {wire: v2(0x21, 0x11, with(block4, 4, 0, 2, 0)...), reason: "bad_tlv"},
		"unique ID of 129":      {wire: v2(0x21, 0x11, with(block4, AppendTLV(nil, TypeUniqueID, make([]byte, 129))...)...), reason: "bad_tlv"},
		"wrong checksum":        {wire: v2(0x21, 0x11, with(block4, 3, 0, 4, 1, 2, 3, 4)...), reason: "bad_checksum"},
		"checksum of 3 bytes":   {wire: v2(0x21, 0x11, with(block4, 3, 0, 3, 1, 2, 3)...), reason: "bad_checksum"},
		"two checksums":         {wire: v2(0x21, 0x11, with(block4, 3, 0, 4, 0, 0, 0, 0, 3, 0, 4, 0, 0, 0, 0)...), reason: "bad_checksum"},
		"another last byte":     {wire: []byte("\r\n\r\n\x00\r\nQUIT\r"), reason: "not_proxy"},
		"signature, then block": {wire: append([]byte(v2Start), "GET / HTTP/1.1\r\n"...), reason: "bad_version"},
	} {
		t.Run(name, func(t *testing.T) { check(t, c.wire, c.want, c.reason) })
	}
}

// check parses wire whole, with more bytes behind it, and in all its beginnings.
func check(t *testing.T, wire []byte, want Header, reason string) {
	t.Helper()
	for _, behind := range []string{"", "\r\nmore"} {
		buf := append(slices.Clone(wire), behind...)
		h, n, err := Parse(buf)
		var refused *Error
		switch {
		case reason != "" && (!errors.As(err, &refused) || refused.Reason != reason):
			t.Errorf("%q: %v; want %s", wire, err, reason)
		case reason == "" && (err != nil || n != len(wire) || !equal(h, want)):
			t.Errorf("%q: %+v, %d, %v; want %+v, %d", wire, h, n, err, want, len(wire))
		}
	}
	checkCuts(t, wire)
}

// checkCuts holds the parser to one answer, however the bytes are cut: incomplete
// until it is there.
func checkCuts(t *testing.T, wire []byte) {
	t.Helper()
	whole, wholeN, wholeErr := Parse(wire)
	decided := false
	for i := range wire {
		h, n, err := Parse(wire[:i])
		if err == ErrIncomplete && !decided {
			continue
		}
		decided = true
		if err != wholeErr || n != wholeN || !equal(h, whole) {
			t.Fatalf("%q cut at %d: %+v, %d, %v; whole: %+v, %d, %v", wire, i, h, n, err, whole, wholeN, wholeErr)
		}
	}
}

func equal(a, b Header) bool {
	return a.Version == b.Version && a.Local == b.Local && a.Datagram == b.Datagram && a.Unix == b.Unix &&
		a.Source == b.Source && a.Destination == b.Destination && bytes.Equal(a.TLVs, b.TLVs) &&
		bytes.Equal(a.SourcePath, b.SourcePath) && bytes.Equal(a.DestinationPath, b.DestinationPath)
}

func TestParseLimit(t *testing.T) {
	wire := v2(0x21, 0x11, with(block4, AppendTLV(nil, TypeSSL, make([]byte, 2000))...)...)
	if _, n, err := ParseLimit(wire, 4096); err != nil || n != len(wire) {
		t.Errorf("limit 4096: %d, %v", n, err)
	}
	if _, _, err := Parse(wire[:fixedV2]); err != errTooLarge {
		t.Errorf("default limit: %v; want it to fail before the block arrives", err)
	}
}

func TestTLVs(t *testing.T) {
	tlvs := AppendTLV(nil, TypeALPN, []byte("h2"))
	tlvs = AppendTLV(tlvs, TypeNoop, nil)
	tlvs = AppendTLV(tlvs, TypeALPN, []byte("second"))
	var got []string
	for kind, value := range tlvs.All() {
		got = append(got, hex.EncodeToString([]byte{kind})+string(value))
	}
	if want := []string{"01h2", "04", "01second"}; !slices.Equal(got, want) {
		t.Errorf("All: %q; want %q", got, want)
	}
	for range tlvs.All() {
		break // must not go on
	}
	if v, ok := tlvs.Get(TypeALPN); !ok || string(v) != "h2" {
		t.Errorf("Get ALPN: %q, %v", v, ok)
	}
	if v, ok := tlvs.Get(TypeNoop); !ok || len(v) != 0 {
		t.Errorf("Get NOOP: %q, %v", v, ok)
	}
	if _, ok := tlvs.Get(TypeNetNS); ok {
		t.Error("Get finds what is not there")
	}
}

func TestAppendV1(t *testing.T) {
	for want, h := range map[string]Header{
		"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n":            {Source: ap("1.2.3.4:9"), Destination: ap("5.6.7.8:10")},
		"PROXY TCP4 1.2.3.4 5.6.7.8 9 11\r\n":            {Source: ap("[::ffff:1.2.3.4]:9"), Destination: ap("5.6.7.8:11")},
		"PROXY TCP6 ::ffff:1.2.3.4 fe80::1 9 10\r\n":     {Source: ap("1.2.3.4:9"), Destination: ap("[fe80::1%eth0]:10")},
		"PROXY TCP6 2001:db8::1 2001:db8::2 9 65535\r\n": {Source: ap("[2001:db8::1]:9"), Destination: ap("[2001:db8::2]:65535")},
	} {
		if got := AppendV1([]byte("x"), h); string(got) != "x"+want {
			t.Errorf("%q; want %q", got, want)
		}
	}
	known := Header{Source: ap("1.2.3.4:9"), Destination: ap("5.6.7.8:10")}
	local, datagram := known, known
	local.Local, datagram.Datagram = true, true
	for _, h := range []Header{{}, local, datagram, {Unix: true}, {Source: known.Source}} {
		if got := AppendV1(nil, h); string(got) != "PROXY UNKNOWN\r\n" {
			t.Errorf("%+v: %q", h, got)
		}
	}
}

func TestAppendV2(t *testing.T) {
	known := Header{Source: ap("192.0.2.1:12345"), Destination: ap("198.51.100.9:443")}
	mixed := Header{Source: ap("10.0.0.1:1"), Destination: ap("[::1]:2")}
	local, tagged, datagram := known, known, mixed
	local.Local, local.TLVs, datagram.Datagram = true, TLVs{4, 0, 0}, true
	tagged.TLVs = AppendTLV(nil, TypeCRC32C, make([]byte, 4))
	for name, c := range map[string]struct {
		h    Header
		want []byte
	}{
		"IPv4":     {known, v2(0x21, 0x11, block4...)},
		"checksum": {tagged, v2(0x21, 0x11, with(block4, 3, 0, 4, 0x15, 0x3c, 0x7f, 0x96)...)},
		"local":    {local, v2(0x20, 0x00)},
		"nobody":   {Header{}, v2(0x21, 0x00)},
		"half":     {Header{Source: known.Source}, v2(0x21, 0x00)},
		"unix":     {Header{Unix: true, SourcePath: []byte("/run/a.sock"), DestinationPath: []byte("\x00abstract")}, v2(0x21, 0x31, blockU...)},
		"IPv4 and IPv6": {datagram, v2(0x21, 0x22, append(append(append(bytes.Repeat([]byte{0}, 10), 0xff, 0xff, 10, 0, 0, 1),
			netip.IPv6Loopback().AsSlice()...), 0, 1, 0, 2)...)},
	} {
		got, err := AppendV2([]byte("x"), c.h)
		if err != nil || !bytes.Equal(got[1:], c.want) {
			t.Errorf("%s: %x, %v; want %x", name, got[1:], err, c.want)
		}
	}
	for name, h := range map[string]Header{
		"too_large":   {TLVs: make(TLVs, 1<<16)},
		"bad_tlv":     {TLVs: TLVs{1}},
		"bad_address": {Unix: true, SourcePath: make([]byte, pathLen+1)},
	} {
		got, err := AppendV2([]byte("x"), h)
		var refused *Error
		if !errors.As(err, &refused) || refused.Reason != name || string(got) != "x" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestAllocates(t *testing.T) {
	h := Header{Source: ap("[2001:db8::1]:9"), Destination: ap("[2001:db8::2]:65535"), TLVs: AppendTLV(nil, TypeCRC32C, make([]byte, 4))}
	one := AppendV1(nil, h)
	two, _ := AppendV2(nil, h)
	buf := make([]byte, 0, DefaultLimit)
	if n := testing.AllocsPerRun(100, func() {
		for _, wire := range [][]byte{one, two, two[:20]} {
			h, _, err := Parse(wire)
			if err != nil && err != ErrIncomplete {
				t.Fatal(err)
			}
			for range h.TLVs.All() {
			}
			h.TLVs.Get(TypeALPN)
		}
		AppendV1(buf, h)
		_, _ = AppendV2(buf, h)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzParse: one answer however the bytes are cut, nothing read beyond the header,
// and what was read is written and read again the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte("PROXY TCP6 2001:db8::1 ::ffff:1.2.3.4 1 65535\r\nGET"))
	f.Add([]byte("PROXY UNKNOWN a b\r\n"))
	f.Add(v2(0x21, 0x31, blockU...))
	f.Add(v2(0x21, 0x11, with(block4, 3, 0, 4, 0x15, 0x3c, 0x7f, 0x96)...))
	f.Add(v2(0x20, 0x11, 1, 2, 3))
	f.Fuzz(func(t *testing.T, wire []byte) {
		if len(wire) <= 2*DefaultLimit {
			checkCuts(t, wire)
		}
		h, n, err := Parse(wire)
		if err != nil {
			if n != 0 || !equal(h, Header{}) {
				t.Fatalf("%v, but %+v, %d", err, h, n)
			}
			return
		}
		alone, _, err := Parse(slices.Clone(wire[:n]))
		if err != nil || !equal(alone, h) {
			t.Fatalf("without what follows: %+v, %v; before: %+v", alone, err, h)
		}
		two, err := AppendV2(nil, h)
		if err != nil {
			t.Fatal(err)
		}
		checkAgain(t, two, h, 2)
		if h.ip() && !h.Datagram {
			h.TLVs = nil
			checkAgain(t, AppendV1(nil, h), h, 1)
		}
	})
}

func checkAgain(t *testing.T, wire []byte, want Header, version uint8) {
	t.Helper()
	want.Version = version
	got, n, err := Parse(wire)
	if err != nil || n != len(wire) || !equal(got, want) {
		t.Fatalf("%q: %+v, %d, %v; want %+v", wire, got, n, err, want)
	}
}
