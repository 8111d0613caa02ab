package clienthello

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// vec8 and vec16 put a length in one or two bytes before b.
func vec8(b ...byte) []byte  { return append([]byte{byte(len(b))}, b...) }
func vec16(b ...byte) []byte { return append([]byte{byte(len(b) >> 8), byte(len(b))}, b...) }

func cat(parts ...[]byte) []byte { return slices.Concat(parts...) }

func extension(kind uint16, data ...byte) []byte {
	return cat([]byte{byte(kind >> 8), byte(kind)}, vec16(data...))
}

func sni(name string) []byte {
	return extension(extensionName, vec16(cat([]byte{hostName}, vec16([]byte(name)...))...)...)
}

func alpn(protocols ...string) []byte {
	var list []byte
	for _, p := range protocols {
		list = append(list, vec8([]byte(p)...)...)
	}
	return extension(extensionALPN, vec16(list...)...)
}

// hello is a handshake message with the given extensions.
func hello(extensions ...[]byte) []byte {
	return message(cat([]byte{3, 3}, make([]byte, 32), vec8(), vec16(0x13, 0x01), vec8(0), vec16(cat(extensions...)...)))
}

func message(body []byte) []byte {
	return cat([]byte{messageHello, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body)
}

// records wraps a message in records of at most size bytes each.
func records(message []byte, size int) []byte {
	var wire []byte
	for part := range slices.Chunk(message, size) {
		wire = append(append(wire, recordHandshake, 3, 1), vec16(part...)...)
	}
	return wire
}

func protocols(h *Hello) []string {
	var all []string
	for p := range h.Protocols() {
		all = append(all, string(p))
	}
	return all
}

// check parses wire whole, with more behind it, and in all its beginnings.
func check(t *testing.T, wire []byte, name string, offered []string, reason string) {
	t.Helper()
	before := slices.Clone(wire)
	for _, buf := range [][]byte{wire, append(slices.Clone(wire), 0x14, 3, 3, 0, 1, 1)} {
		h, err := Parse(buf)
		var refused *Error
		switch {
		case reason != "" && (!errors.As(err, &refused) || refused.Reason != reason):
			t.Errorf("%v; want %s", err, reason)
		case reason == "" && (err != nil || string(h.ServerName()) != name || !slices.Equal(protocols(&h), offered)):
			t.Errorf("%q, %q, %v; want %q, %q", h.ServerName(), protocols(&h), err, name, offered)
		}
	}
	if !bytes.Equal(wire, before) {
		t.Error("the hello was changed; it belongs to the server behind us")
	}
	checkCuts(t, wire)
}

// checkCuts holds Parse to one answer, however the bytes are cut: incomplete until
// it is there. Of long hellos it tries only some cuts: the work grows with the
// square.
func checkCuts(t *testing.T, wire []byte) {
	t.Helper()
	whole, wholeErr := Parse(wire)
	decided := false
	for i := 0; i < len(wire); i += 1 + len(wire)/500 {
		h, err := Parse(wire[:i])
		if err == ErrIncomplete && !decided {
			continue
		}
		decided = true
		if err != wholeErr || !bytes.Equal(h.ServerName(), whole.ServerName()) || !slices.Equal(protocols(&h), protocols(&whole)) {
			t.Fatalf("cut at %d: %q, %v; whole: %q, %v", i, h.ServerName(), err, whole.ServerName(), wholeErr)
		}
	}
}

func TestParse(t *testing.T) {
	typical := hello(extension(10, 0, 2, 0, 29), sni("Shop.Example"), alpn("h2", "http/1.1"))
	offered := []string{"h2", "http/1.1"}
	many := make([][]byte, mostExtensions)
	for i := range many {
		many[i] = extension(uint16(1000 + i))
	}
	// Fits Limit exactly in one record: its header, the message's, the hello.
	full := func(extra int) []byte {
		rest := Limit - recordHeader - len(hello(sni("a.b"), extension(21))) + extra
		return hello(sni("a.b"), extension(21, make([]byte, rest)...))
	}
	for name, c := range map[string]struct {
		wire     []byte
		name     string
		offered  []string
		reason   string
		noRecord bool
	}{
		"one record":              {wire: records(typical, 1<<14), name: "shop.example", offered: offered},
		"a record for each byte":  {wire: records(typical, 1), name: "shop.example", offered: offered},
		"records of three bytes":  {wire: records(typical, 3), name: "shop.example", offered: offered},
		"header in two records":   {wire: cat(records(typical[:2], 9), records(typical[2:], 1<<14)), name: "shop.example", offered: offered},
		"another message behind":  {wire: records(cat(typical, []byte{2, 0, 0}), 1<<14), name: "shop.example", offered: offered},
		"another one, in records": {wire: records(cat(typical, []byte{2, 0, 0}), 7), name: "shop.example", offered: offered},
		"no extensions":           {wire: records(message(cat([]byte{3, 1}, make([]byte, 32), vec8(), vec16(0, 5), vec8(0))), 99)},
		"no name, no protocols":   {wire: records(hello(extension(10, 0, 2, 0, 29)), 1<<14)},
		"as long as may be":       {wire: records(full(0), 1<<14), name: "a.b"},
		"64 extensions":           {wire: records(hello(many...), 1<<14)},

		"65 extensions":        {wire: records(hello(append(many, extension(1))...), 1<<14), reason: "too_many"},
		"one byte too long":    {wire: records(full(1), 1<<14), reason: "too_large"},
		"too long, said early": {wire: []byte{22, 3, 1, 0x40, 0, 1, 0, 0x40, 0}, reason: "too_large"},
		"too many headers":     {wire: records(full(-100), 100), reason: "too_large"},
		"HTTP":                 {wire: []byte("GET / HTTP/1.1\r\n"), reason: "not_tls"},
		"an alert":             {wire: []byte{21, 3, 1, 0, 2, 1, 0}, reason: "not_tls"},
		"SSL 2":                {wire: []byte{0x80, 0x2e, 1, 3, 1}, reason: "not_tls"},
		"version 4":            {wire: []byte{22, 4}, reason: "not_tls"},
		"empty record":         {wire: []byte{22, 3, 1, 0, 0}, reason: "not_tls"},
		"record over 16 KiB":   {wire: []byte{22, 3, 1, 0x40, 1}, reason: "not_tls"},
		"empty second record":  {wire: cat(records(typical[:9], 9), []byte{22, 3, 1, 0, 0}), reason: "bad_record"},
		"other second record":  {wire: cat(records(typical[:9], 9), []byte{23, 3, 3, 0, 1, 0}), reason: "bad_record"},
		"server hello":         {wire: records([]byte{2, 0, 0, 0}, 9), reason: "not_hello"},
		"hello of SSL 2's":     {wire: records(message(cat([]byte{2, 3}, make([]byte, 40))), 99), reason: "malformed"},
		"empty hello":          {wire: records(message(nil), 9), reason: "malformed"},
		"long session ID":      {wire: records(message(cat([]byte{3, 3}, make([]byte, 32), vec8(make([]byte, 33)...), vec16(1, 2), vec8(0))), 99), reason: "malformed"},
		"odd cipher suites":    {wire: records(message(cat([]byte{3, 3}, make([]byte, 32), vec8(), vec16(1), vec8(0))), 99), reason: "malformed"},
		"no cipher suites":     {wire: records(message(cat([]byte{3, 3}, make([]byte, 32), vec8(), vec16(), vec8(0))), 99), reason: "malformed"},
		"no compression":       {wire: records(message(cat([]byte{3, 3}, make([]byte, 32), vec8(), vec16(1, 2), vec8())), 99), reason: "malformed"},
		"bytes at the end":     {wire: records(message(append(typical[messageHeader:], 0)), 1<<14), reason: "malformed"},
		"extension too long":   {wire: records(hello([]byte{0, 1, 0, 9, 0}), 99), reason: "malformed"},
		"half an extension":    {wire: records(hello([]byte{0, 1, 0}), 99), reason: "malformed"},
		"extension twice":      {wire: records(hello(extension(7), extension(8), extension(7)), 99), reason: "duplicate"},
		"two extensions, SNI":  {wire: records(hello(sni("a"), sni("b")), 99), reason: "duplicate"},
		"two names":            {wire: records(hello(extension(0, vec16(0, 0, 1, 'a', 0, 0, 1, 'b')...)), 99), reason: "duplicate"},
		"no name in SNI":       {wire: records(hello(extension(0, vec16()...)), 99), reason: "malformed"},
		"empty SNI":            {wire: records(hello(extension(0)), 99), reason: "malformed"},
		"bytes behind SNI":     {wire: records(hello(extension(0, cat(vec16(0, 0, 1, 'a'), []byte{0})...)), 99), reason: "malformed"},
		"name too long":        {wire: records(hello(extension(0, vec16(0, 0, 2, 'a')...)), 99), reason: "malformed"},
		"another type of name": {wire: records(hello(extension(0, vec16(1, 0, 1, 'a')...)), 99), reason: "bad_name"},
		"no protocols":         {wire: records(hello(alpn()), 99), reason: "bad_protocols"},
		"an empty protocol":    {wire: records(hello(alpn("h2", "")), 99), reason: "bad_protocols"},
		"protocol too long":    {wire: records(hello(extension(16, vec16(3, 'h', '2')...)), 99), reason: "malformed"},
		"bytes behind ALPN":    {wire: records(hello(extension(16, cat(vec16(2, 'h', '2'), []byte{0})...)), 99), reason: "malformed"},
	} {
		t.Run(name, func(t *testing.T) { check(t, c.wire, c.name, c.offered, c.reason) })
	}
}

func TestServerName(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	name253 := strings.Repeat(label63+".", 3) + strings.Repeat("b", 61)
	for name, want := range map[string]string{
		"a":                         "a",
		"ORDER-service.Default":     "order-service.default",
		"xn--mnchen-3ya.example":    "xn--mnchen-3ya.example",
		"_sip._tcp.example":         "_sip._tcp.example",
		"-x.example":                "-x.example",
		"1.2.3.example":             "1.2.3.example",
		"0x.a0x":                    "0x.a0x",
		"1a":                        "1a",
		"0xg":                       "0xg",
		label63 + ".example":        label63 + ".example",
		name253:                     name253,
		"outer.cell-1.node.cluster": "outer.cell-1.node.cluster",
	} {
		h, err := Parse(records(hello(sni(name)), 1<<14))
		if err != nil || string(h.ServerName()) != want {
			t.Errorf("%q: %q, %v; want %q", name, h.ServerName(), err, want)
		}
	}
	for name, reason := range map[string]string{
		"":                    "bad_name",
		".":                   "trailing_dot",
		"shop.example.":       "trailing_dot",
		name253 + ".":         "trailing_dot",
		".shop":               "bad_name",
		"shop..example":       "bad_name",
		label63 + "a.example": "bad_name",
		name253 + "b":         "bad_name",
		"*.example":           "bad_name",
		"a/b":                 "bad_name",
		"a\x00b":              "bad_name",
		"münchen.example":     "bad_name",
		"a b":                 "bad_name",
		"user@shop":           "bad_name",
		"127.0.0.1":           "ip_literal",
		"127.1":               "ip_literal",
		"2130706433":          "ip_literal",
		"0x7f000001":          "ip_literal",
		"0X7F.0.0.0X1":        "ip_literal",
		"0177.0.0.01":         "ip_literal",
		"0x":                  "ip_literal",
		"::1":                 "ip_literal",
		"[::1]":               "ip_literal",
		"shop.example:443":    "ip_literal",
		"fe80::1%eth0":        "ip_literal",
		"shop.example.0x7f":   "ip_literal",
	} {
		_, err := Parse(records(hello(sni(name)), 1<<14))
		var refused *Error
		if !errors.As(err, &refused) || refused.Reason != reason {
			t.Errorf("%q: %v; want %s", name, err, reason)
		}
	}
}

func TestOffers(t *testing.T) {
	h, err := Parse(records(hello(alpn("h2", "weft")), 1<<14))
	if err != nil || !h.Offers("h2") || !h.Offers("weft") || h.Offers("h") || h.Offers("") {
		t.Errorf("%q, %v", protocols(&h), err)
	}
	for range h.Protocols() {
		break // must not go on
	}
}

func TestAllocates(t *testing.T) {
	wire := records(hello(sni("Shop.Example"), alpn("h2", "http/1.1")), 1<<14)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := Parse(wire[:20]); err != ErrIncomplete {
			t.Fatal(err)
		}
		h, err := Parse(wire)
		if err != nil || !h.Offers("http/1.1") || string(h.ServerName()) != "shop.example" {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestClients parses what clients of crypto/tls say.
func TestClients(t *testing.T) {
	ticket := resumable(t)
	for name, c := range map[string]struct {
		config *tls.Config
		want   string
	}{
		"defaults":         {&tls.Config{ServerName: "shop.example"}, "shop.example"},
		"upper case":       {&tls.Config{ServerName: "Shop.EXAMPLE"}, "shop.example"},
		"dot at the end":   {&tls.Config{ServerName: "shop.example."}, "shop.example"}, // the client drops it
		"address":          {&tls.Config{ServerName: "10.0.0.1"}, ""},                  // the client drops it
		"address, IPv6":    {&tls.Config{ServerName: "[::1]"}, ""},
		"no name":          {&tls.Config{InsecureSkipVerify: true}, ""},
		"protocols":        {&tls.Config{ServerName: "a.b", NextProtos: []string{"h2", "http/1.1", strings.Repeat("x", 255)}}, "a.b"},
		"TLS 1.2":          {&tls.Config{ServerName: "a.b", MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}, "a.b"},
		"TLS 1.0":          {&tls.Config{ServerName: "a.b", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}, "a.b"},
		"TLS 1.3":          {&tls.Config{ServerName: "a.b", MinVersion: tls.VersionTLS13}, "a.b"},
		"one curve":        {&tls.Config{ServerName: "a.b", CurvePreferences: []tls.CurveID{tls.CurveP256}}, "a.b"},
		"post-quantum":     {&tls.Config{ServerName: "a.b", CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}}, "a.b"},
		"one suite":        {&tls.Config{ServerName: "a.b", MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}, "a.b"},
		"long name":        {&tls.Config{ServerName: strings.Repeat("abcdefg.", 31) + "abcde"}, strings.Repeat("abcdefg.", 31) + "abcde"},
		"many protocols":   {&tls.Config{ServerName: "a.b", NextProtos: strings.Split(strings.Repeat("a,b,c,", 100)+"d", ",")}, "a.b"},
		"with a ticket":    {&tls.Config{ServerName: "shop.example", InsecureSkipVerify: true, ClientSessionCache: ticket}, "shop.example"},
		"with a TLS cache": {&tls.Config{ServerName: "a.b", ClientSessionCache: tls.NewLRUClientSessionCache(1)}, "a.b"},
	} {
		t.Run(name, func(t *testing.T) {
			wire := capture(t, c.config)
			if name == "with a ticket" && !bytes.Contains(wire, []byte{0, 41}) {
				t.Fatal("the client did not use its ticket")
			}
			check(t, wire, c.want, c.config.NextProtos, "")
			compareServer(t, wire)
			body := wire[recordHeader:]
			for _, size := range []int{1, 5, 100, 1000} {
				if cut := records(body, size); len(cut) <= Limit {
					check(t, cut, c.want, c.config.NextProtos, "")
					compareServer(t, cut)
				}
			}
		})
	}
}

// capture returns the first record that a client sends.
func capture(t *testing.T, config *tls.Config) []byte {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(near, config).Handshake() // fails: nobody answers
	}()
	defer func() {
		_ = near.Close()
		_ = far.Close()
		<-done
	}()
	_ = far.SetDeadline(time.Now().Add(5 * time.Second))
	wire := make([]byte, recordHeader)
	if _, err := io.ReadFull(far, wire); err != nil {
		t.Fatal(err)
	}
	wire = append(wire, make([]byte, int(wire[3])<<8|int(wire[4]))...)
	if _, err := io.ReadFull(far, wire[recordHeader:]); err != nil {
		t.Fatal(err)
	}
	return wire
}

// served is what a server of crypto/tls understood of a hello.
type served struct {
	name  string
	offer []string
}

var errSeen = errors.New("seen")

// askServer gives wire to a server of crypto/tls; ok says that it took the hello.
func askServer(wire []byte) (s served, ok bool) {
	conn := &replay{Reader: bytes.NewReader(wire)}
	err := tls.Server(conn, &tls.Config{
		MinVersion: tls.VersionTLS10,
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			s = served{info.ServerName, slices.Clone(info.SupportedProtos)}
			return nil, errSeen
		},
	}).Handshake()
	return s, errors.Is(err, errSeen)
}

// replay is a connection whose peer said what is in Reader and then left.
type replay struct {
	io.Reader
	net.Conn
}

func (r *replay) Read(b []byte) (int, error)  { return r.Reader.Read(b) }
func (r *replay) Write(b []byte) (int, error) { return len(b), nil }
func (r *replay) Close() error                { return nil }

func compareServer(t *testing.T, wire []byte) {
	t.Helper()
	h, err := Parse(wire)
	s, ok := askServer(wire)
	if err != nil || !ok {
		t.Fatalf("%v, crypto/tls: %v", err, ok)
	}
	if string(h.ServerName()) != strings.ToLower(s.name) || !slices.Equal(protocols(&h), s.offer) {
		t.Errorf("%q, %q; crypto/tls: %q, %q", h.ServerName(), protocols(&h), s.name, s.offer)
	}
}

// FuzzParse: one answer however the bytes are cut; and what crypto/tls understands
// of a hello that it takes is what we say, or we refuse it.
func FuzzParse(f *testing.F) {
	f.Add(records(hello(sni("Shop.Example"), alpn("h2", "http/1.1")), 1<<14))
	f.Add(records(hello(sni("a.b"), extension(43, 2, 3, 4)), 20))
	f.Add(records(hello(sni("127.1")), 99))
	f.Fuzz(func(t *testing.T, wire []byte) {
		if len(wire) < 1<<10 {
			checkCuts(t, wire)
		}
		h, err := Parse(wire)
		s, ok := askServer(wire)
		if err == ErrIncomplete && ok {
			t.Fatalf("incomplete, but crypto/tls has seen %+v", s)
		}
		if err != nil || !ok {
			return
		}
		if string(h.ServerName()) != strings.ToLower(s.name) || !slices.Equal(protocols(&h), s.offer) {
			t.Errorf("%q, %q; crypto/tls: %q, %q", h.ServerName(), protocols(&h), s.name, s.offer)
		}
	})
}
