package hpack

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// block writes fields in the form of list.
func block(e *Encoder, fields ...string) []byte {
	dst := e.Begin(nil)
	for _, f := range fields {
		i := strings.Index(f[1:], ": ") + 1 // behind the colon of :path
		name, value := []byte(f[:i]), []byte(f[i+2:])
		if plain, sensitive := strings.CutSuffix(f, "!"); sensitive {
			dst = e.AppendSensitive(dst, name, []byte(plain[i+2:]))
		} else {
			dst = e.Append(dst, name, value)
		}
	}
	return dst
}

// Each step is a block of one connection, with the bytes that it must have.
func TestEncoder(t *testing.T) {
	type step struct {
		fields []string
		hex    string
	}
	twice := func(field, hex string) []step { return []step{{[]string{field}, hex}, {[]string{field}, hex}} }
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"static fields", []step{{[]string{":method: GET", ":scheme: https", ":path: /", ":status: 404", "accept-encoding: gzip, deflate"}, "8287848d90"}}},
		{"an empty static field", []step{{[]string{"via: "}, "bc"}}},
		{"a field is indexed when it comes again", []step{
			{[]string{":authority: www.example.com"}, "01 0f 7777772e6578616d706c652e636f6d"},
			{[]string{":authority: www.example.com"}, "41 8c f1e3c2e5f23a6ba0ab90f4ff"},
			{[]string{":authority: www.example.com"}, "be"},
		}},
		{"within a block too, whatever the case of the name", []step{
			{[]string{"X-A: b", "x-a: b", "X-a: b"}, "00 03 782d61 01 62" + "40 03 782d61 01 62" + "be"},
		}},
		{"the name of an indexed field serves another value", []step{
			{[]string{"x-a: b", "x-a: b", "x-a: c", "x-a: c"}, "00 03 782d61 01 62" + "40 03 782d61 01 62" + "0f2f 01 63" + "7e 01 63"},
		}},
		{"a path is never indexed", twice(":path: /a", "04 02 2f61")},
		{"nor is what changes with each message", twice("traceparent: 0", "00 0b 7472616365706172656e74 01 30")},
		{"a length", twice("Content-Length: 5", "0f0d 01 35")},
		{"a secret must not be indexed by anybody", twice("authorization: a", "1f08 01 61")},
		{"a cookie too", twice("cookie: a", "1f11 01 61")},
		{"what came as a secret stays one", twice("x-a: b!", "10 03 782d61 01 62")},
		{"even when it is a static field", twice(":method: GET!", "12 03 474554")},
	} {
		t.Run(c.name, func(t *testing.T) {
			var e Encoder
			for i, s := range c.steps {
				got := hex.EncodeToString(block(&e, s.fields...))
				if want := strings.ReplaceAll(s.hex, " ", ""); got != want {
					t.Errorf("block %d is %s, want %s", i+1, got, want)
				}
			}
		})
	}
}

func TestAppendStatus(t *testing.T) {
	var e Encoder
	var d Decoder
	for range 3 {
		for code := 100; code < 1000; code++ {
			dst := e.AppendStatus(e.Begin(nil), code)
			if got, want := decode(t, &d, dst), (list{fmt.Sprintf(":status: %d", code)}); !slices.Equal(got, want) {
				t.Fatalf("%x is %q, want %q", dst, got, want)
			}
		}
	}
	for code, want := range map[int]string{200: "88", 204: "89", 206: "8a", 304: "8b", 400: "8c", 404: "8d", 500: "8e"} {
		if got := hex.EncodeToString(e.AppendStatus(nil, code)); got != want {
			t.Errorf("%d is %s, want %s", code, got, want)
		}
	}
}

func TestEncoderSetMaxTable(t *testing.T) {
	for _, c := range []struct {
		name  string
		sizes []uint32
		want  string
	}{
		{"the default is not said", []uint32{4096}, ""},
		{"a smaller one", []uint32{100}, "3f45"},
		{"none", []uint32{0}, "20"},
		{"a larger one is not used", []uint32{65536}, "3fe11f"},
		{"down and up", []uint32{100, 4096}, "3f45 3fe11f"},
		{"down, down and up", []uint32{100, 50, 60}, "3f13 3f1d"},
		{"up and down", []uint32{8192, 100}, "3f45"},
	} {
		var e Encoder
		for _, n := range c.sizes {
			e.SetMaxTable(n)
		}
		if got, want := hex.EncodeToString(e.Begin(nil)), strings.ReplaceAll(c.want, " ", ""); got != want {
			t.Errorf("%s: %s, want %s", c.name, got, want)
		}
		if got := e.Begin(nil); len(got) > 0 {
			t.Errorf("%s: said again: %x", c.name, got)
		}
	}
}

// Without a table, nothing is put into it.
func TestEncoderWithoutTable(t *testing.T) {
	var e Encoder
	e.SetMaxTable(0)
	e.Begin(nil)
	for range 3 {
		if got := hex.EncodeToString(block(&e, "x-a: b")); got != "0003782d610162" {
			t.Errorf("got %s", got)
		}
	}
}

// Values that never repeat must not push out those that do.
func TestUniqueValuesLeaveTheTableAlone(t *testing.T) {
	var e Encoder
	var d Decoder
	var last []byte
	for i := range 1000 {
		fields := []string{"user-agent: shop/1.0", "accept: */*", fmt.Sprintf("x-user: %d", i)}
		last = block(&e, fields...)
		if got := decode(t, &d, last); !slices.Equal(got, fields) {
			t.Fatalf("message %d: %q", i, got)
		}
	}
	if e.table.len() != 2 || len(last) > 2+1+1+len("x-user")+1+3 {
		t.Errorf("%d entries, last block of %d bytes", e.table.len(), len(last))
	}
}

// More fields repeat than the table can hold: entries come and go, and the index
// follows. The decoder is the judge of each block.
func TestFullTable(t *testing.T) {
	var e Encoder
	var d Decoder
	hits := 0
	for i := range 4000 {
		n := i * i % 307
		fields := []string{fmt.Sprintf("x-%d: value of %d", n%40, n), "accept: */*"}
		b := block(&e, fields...)
		if len(b) == 2 {
			hits++
		}
		if got := decode(t, &d, b); !slices.Equal(got, fields) {
			t.Fatalf("message %d: %q, want %q", i, got, fields)
		}
		if i%100 == 0 && !slices.Equal(e.table.dump(), d.table.dump()) {
			t.Fatalf("message %d: the tables differ", i)
		}
		if i == 2000 {
			e.SetMaxTable(300)
			d.SetMaxTable(300)
		}
	}
	if hits == 0 {
		t.Error("nothing was ever found in the table")
	}
	if held := cap(e.table.buf); held > 2*defaultTable {
		t.Errorf("holds %d bytes", held)
	}
}

// An entry whose hash another one has is told apart by its bytes, and found.
func TestHashCollisions(t *testing.T) {
	var e Encoder
	e.begin()
	e.index = new(index)
	for i := range 3 {
		e.insert(7, 7, []byte{'a' + byte(i)}, []byte("v"))
	}
	for i := range 3 {
		if got := e.findField(7, []byte{'a' + byte(i)}, []byte("v")); got != 2-i {
			t.Errorf("field %d has age %d, want %d", i, got, 2-i)
		}
		if got := e.findName(7, []byte{'a' + byte(i)}); got != 2-i {
			t.Errorf("name %d has age %d, want %d", i, got, 2-i)
		}
	}
	if got := e.findField(7, []byte("d"), []byte("v")); got != -1 {
		t.Errorf("found what is not there at %d", got)
	}
}

var typical = []string{":status: 200", "content-type: application/json; charset=utf-8", "server: shop",
	"cache-control: private, max-age=0", "content-length: 512", "date: Thu, 01 Jan 2026 00:00:00 GMT",
	"X-Request-Id: 8c5e3c1a-7a51-4b7e-9a55-0c3a2f1f6d11", "set-cookie: session=6f1d9c1e8b7a4c0e",
	"strict-transport-security: max-age=31536000"}

// fieldsOf splits once what a steady state writes again and again.
func fieldsOf(lines []string) (names, values [][]byte) {
	for _, f := range lines {
		i := strings.Index(f[1:], ": ") + 1
		names, values = append(names, []byte(f[:i])), append(values, []byte(f[i+2:]))
	}
	return names, values
}

func TestAllocatesNothing(t *testing.T) {
	var e Encoder
	var d Decoder
	names, values := fieldsOf(typical)
	dst := make([]byte, 0, 4096)
	n, unique := 0, []byte("00000000")
	message := func() {
		dst = e.Begin(dst[:0])
		dst = e.AppendStatus(dst, 302)
		for i := range names {
			dst = e.Append(dst, names[i], values[i])
		}
		for i := range unique { // so that entries are evicted, too
			unique[i] = 'a' + byte(n>>(4*i)&7)
		}
		n++
		dst = e.Append(dst, names[2], unique)
		dst = e.Append(dst, names[2], unique)
		fields, bytes := 0, 0
		err := d.Decode(dst, func(name, value []byte, sensitive bool) bool {
			fields++
			bytes += len(name) + len(value)
			return true
		})
		if err != nil || fields != len(names)+3 || bytes == 0 {
			t.Errorf("%d fields, %v", fields, err)
		}
	}
	for range 1000 {
		message()
	}
	if n := testing.AllocsPerRun(1000, message); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEncode(b *testing.B) {
	var e Encoder
	names, values := fieldsOf(typical)
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		dst = e.Begin(dst[:0])
		for i := range names {
			dst = e.Append(dst, names[i], values[i])
		}
	}
	b.ReportMetric(float64(len(dst)), "bytes/block")
}

func BenchmarkDecode(b *testing.B) {
	var e Encoder
	var d Decoder
	for range 2 {
		d.Decode(block(&e, typical...), nil)
	}
	steady := block(&e, typical...)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if err := d.Decode(steady, func(_, _ []byte, _ bool) bool { n++; return true }); err != nil || n != len(typical) {
			b.Fatal(n, err)
		}
	}
}

// What a literal costs in its two forms, both sides together: the reason why
// literals that are not indexed are plain.
func BenchmarkLiteral(b *testing.B) {
	value := []byte("8c5e3c1a-7a51-4b7e-9a55-0c3a2f1f6d11")
	for _, c := range []struct {
		name   string
		append func(dst, s []byte) []byte
	}{{"plain", appendPlain}, {"huffman", appendText}} {
		b.Run(c.name, func(b *testing.B) {
			var d Decoder
			var dst []byte
			for b.Loop() {
				dst = c.append(append(dst[:0], 0x00, 1, 'a'), value)
				if err := d.Decode(dst, nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(dst)), "bytes")
		})
	}
}
