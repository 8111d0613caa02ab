package hpack

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

// oneUpdate is what x/net says when a second table size update stands before the
// first field and the table is not empty. §4.2 may need two.
const oneUpdate = "size update MUST occur"

// FuzzDecode holds the decoder against that of x/net: the same fields or an error
// in both. A byte of length stands before each block; the blocks are of one
// connection.
func FuzzDecode(f *testing.F) {
	for _, series := range [][]string{
		{"828684410f7777772e6578616d706c652e636f6d", "828684be58086e6f2d6361636865"},
		{"828684418cf1e3c2e5f23a6ba0ab90f4ff", "828684be5886a8eb10649cbf", "bebf"},
		{"20", "4001610162", "3fe11f4001610162be", "7e0163", "10016101620f2f0164"},
		{"ff808080808000"}, {"00016184ffffffff"}, {"0001618228a7"},
	} {
		var data []byte
		for _, s := range series {
			b := unhex(f, s)
			data = append(append(data, byte(len(b))), b...)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var d Decoder
		std := hpack.NewDecoder(defaultTable, nil)
		for len(data) > 0 {
			n := min(int(data[0]), len(data)-1)
			b := data[1 : 1+n]
			data = data[1+n:]
			if !sameBlock(t, &d, std, b) {
				return
			}
		}
	})
}

// sameBlock tells whether both can read on.
func sameBlock(t *testing.T, d *Decoder, std *hpack.Decoder, b []byte) bool {
	t.Helper()
	var got, want list
	err := d.Decode(b, got.add)
	fields, stdErr := std.DecodeFull(b)
	for _, f := range fields {
		want.add([]byte(f.Name), []byte(f.Value), f.Sensitive)
	}
	switch {
	case err == ErrLateUpdate, err == ErrInteger:
		// x/net takes an update anywhere while its table is empty, and numbers of
		// any length.
		return false
	case err == nil && stdErr != nil && strings.Contains(stdErr.Error(), oneUpdate):
		return false
	case (err == nil) != (stdErr == nil):
		t.Fatalf("%x: %v, x/net: %v", b, err, stdErr)
	case err != nil:
		return false
	case !slices.Equal(got, want):
		t.Fatalf("%x:\n%q, x/net:\n%q", b, got, want)
	}
	return true
}

// FuzzEncode writes fields, and lets our decoder and that of x/net read them. In
// data, lines are "name: value", with "!" behind a sensitive one; an empty line
// ends a block; a line of digits is a table size of the peer.
func FuzzEncode(f *testing.F) {
	f.Add("x-a: b\nx-a: b\n\nx-a: b\n:path: /\n\n100\nX-A: b\nx-a: c!\n\n4096\n:status: 200\ncookie: a\n\n" +
		"date: now\n0\naccept: x\n\n7\n5000\naccept: x\n\naccept: x\naccept: x\n")
	f.Add(strings.Repeat("x-"+strings.Repeat("a", 100)+": b\nx-"+strings.Repeat("c", 900)+": "+strings.Repeat("d", 900)+"\n\n", 8))
	f.Fuzz(func(t *testing.T, data string) {
		var e Encoder
		var d Decoder
		std := hpack.NewDecoder(defaultTable, nil)
		var want list
		b := e.Begin(nil)
		for line := range strings.SplitSeq(data+"\n\n", "\n") {
			name, value, isField := strings.Cut(line, ": ")
			if isField {
				value, sensitive := strings.CutSuffix(value, "!")
				lower := asciiLower(name)
				want.add(lower, []byte(value), sensitive || lookupName(hash(0, lower), lower).treatment == secret)
				write := e.Append
				if sensitive {
					write = e.AppendSensitive
				}
				b = write(b, []byte(name), []byte(value))
				continue
			}
			if got := decode(t, &d, b); !slices.Equal(got, want) {
				t.Fatalf("%x:\n%q, want\n%q", b, got, want)
			}
			if !slices.Equal(e.table.dump(), d.table.dump()) || e.table.size > e.table.max {
				t.Fatalf("%x: the tables differ", b)
			}
			if std != nil && !sameAsStd(t, std, b, want) {
				std = nil
			}
			if n, err := strconv.ParseUint(line, 10, 32); err == nil {
				e.SetMaxTable(uint32(n))
				d.SetMaxTable(uint32(n))
				if std != nil {
					std.SetAllowedMaxDynamicTableSize(uint32(n))
				}
			}
			want = want[:0]
			b = e.Begin(b[:0])
		}
	})
}

// sameAsStd checks that x/net reads what was written, and tells whether it can
// read on.
func sameAsStd(t *testing.T, std *hpack.Decoder, b []byte, want list) bool {
	t.Helper()
	fields, err := std.DecodeFull(b)
	if err != nil {
		if strings.Contains(err.Error(), oneUpdate) {
			return false
		}
		t.Fatalf("x/net refuses %x: %v", b, err)
	}
	var got list
	for _, f := range fields {
		got.add([]byte(f.Name), []byte(f.Value), f.Sensitive)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%x: x/net reads\n%q, want\n%q", b, got, want)
	}
	return true
}

func asciiLower(s string) []byte {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] |= 0x20
		}
	}
	return b
}

// FuzzStdEncode lets x/net write and our decoder read.
func FuzzStdEncode(f *testing.F) {
	f.Add("x-a", "b", "x-a", "c", uint32(4096), uint32(100))
	f.Add(":path", "/a", "cookie", strings.Repeat("x", 300), uint32(200), uint32(0))
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string, size1, size2 uint32) {
		var out bytes.Buffer
		std := hpack.NewEncoder(&out)
		var d Decoder
		for _, size := range []uint32{defaultTable, size1, size2} {
			std.SetMaxDynamicTableSizeLimit(size)
			std.SetMaxDynamicTableSize(size)
			d.SetMaxTable(size)
			for range 2 {
				out.Reset()
				var want list
				for _, f := range []hpack.HeaderField{{Name: n1, Value: v1}, {Name: n2, Value: v2}, {Name: n1, Value: v2, Sensitive: true}, {Name: n1, Value: v1}} {
					std.WriteField(f)
					want.add([]byte(f.Name), []byte(f.Value), f.Sensitive)
				}
				if got := decode(t, &d, out.Bytes()); !slices.Equal(got, want) {
					t.Fatalf("%x:\n%q, want\n%q", out.Bytes(), got, want)
				}
			}
		}
	})
}

// FuzzHuffman holds both directions against x/net, and decodes what is no code.
func FuzzHuffman(f *testing.F) {
	f.Add([]byte("www.example.com"))
	f.Add([]byte("\x00\n\r\x16\xff\xfe\\"))
	f.Add([]byte{0xff, 0xff, 0xff, 0xfc})
	f.Fuzz(func(t *testing.T, s []byte) {
		coded := appendHuffman(nil, s)
		if want := hpack.AppendHuffmanString(nil, string(s)); !bytes.Equal(coded, want) || huffmanLen(s) != len(want) {
			t.Fatalf("%q is %x (%d bytes), x/net: %x", s, coded, huffmanLen(s), want)
		}
		if plain, valid := decodeHuffman(nil, coded); !valid || !bytes.Equal(plain, s) {
			t.Fatalf("%q comes back as %q, %v", s, plain, valid)
		}
		got, valid := decodeHuffman(nil, s)
		want, err := hpack.HuffmanDecodeToString(s)
		if valid != (err == nil) || valid && string(got) != want {
			t.Fatalf("%x stands for %q, %v; x/net: %q, %v", s, got, valid, want, err)
		}
	})
}

func TestEveryByteHasItsCode(t *testing.T) {
	for c := range 256 {
		s := strings.Repeat(string([]byte{byte(c)}), 9)
		if got, want := appendHuffman(nil, []byte(s)), hpack.AppendHuffmanString(nil, s); !bytes.Equal(got, want) {
			t.Errorf("byte %d is %x, want %x", c, got, want)
		}
	}
}

func TestStaticTableIsThatOfXNet(t *testing.T) {
	for i := 1; i <= statics; i++ {
		fields, err := hpack.NewDecoder(0, nil).DecodeFull([]byte{0x80 | byte(i)})
		if err != nil || fields[0].Name != staticTable[i].name || fields[0].Value != staticTable[i].value {
			t.Errorf("row %d is %v, x/net: %v, %v", i, staticTable[i], fields, err)
		}
	}
}
